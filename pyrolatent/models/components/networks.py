"""Networks: maps from what a distribution is conditioned on to the unconstrained numbers of its family."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Interval, MinLen
from torch import Tensor, nn
from torch.nn import init
from torch.nn.functional import interpolate

from pyrolatent.declaration import PositiveInt, component
from pyrolatent.errors import InputError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}
Activation = Literal["relu", "tanh", "silu", "gelu", "elu", "softplus", "identity"]
Norm = Literal["none", "layer", "batch"]
LabelEntry = Literal["concat", "embed", "film"]
Init = Literal["default", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal"]
Probability = Annotated[float, Interval(ge=0, lt=1)]


class Block(nn.Module):
    """One hidden layer: h' = dropout(a(norm(layer(h)))), modulated by a label, with h added if residual.

    Args:
        layer: the linear map or convolution.
        features: number of its outputs or output channels.
        activation: the function a.
        norm: normalisation over the features or over the batch.
        dropout: probability with which outputs are set to 0 in training.
        residual: whether h is added; it must then have the shape of the output.
        label_dim: width of the label that scales and shifts each feature; 0 for none.
    """

    def __init__(
        self,
        layer: nn.Module,
        features: int,
        *,
        activation: Activation,
        norm: Norm,
        dropout: float,
        residual: bool,
        label_dim: int,
    ) -> None:
        super().__init__()
        image = isinstance(layer, nn.Conv2d)
        norms: dict[str, Callable[[], nn.Module]] = {
            "none": nn.Identity,
            "layer": lambda: nn.GroupNorm(1, features) if image else nn.LayerNorm(features),
            "batch": lambda: nn.BatchNorm2d(features) if image else nn.BatchNorm1d(features),
        }
        self.layer = layer
        self.norm = norms[norm]()
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.residual = residual
        self.film = nn.Linear(label_dim, 2 * features) if label_dim else None

    def forward(self, value: Tensor, label: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """Maps (batch, features, ...), (batch, label_dim) to (batch, features', ...); adds `added` after the layer."""
        hidden = self.layer(value)
        hidden = self.norm(hidden if added is None else hidden + added)
        if self.film is not None and label is not None:
            modulation = self.film(label)
            scale, shift = modulation.reshape((*modulation.shape, *[1] * (hidden.dim() - 2))).chunk(2, dim=1)
            hidden = (1 + scale) * hidden + shift
        hidden = self.dropout(self.activation(hidden))
        return value + hidden if self.residual and value.shape == hidden.shape else hidden


class Network(nn.Module):
    """Base class of networks: how a label and a mask enter, and how the weights are initialised.

    Args:
        input_shape: shape of one input.
        output_shape: shape of one output.
        label_dim: width of the label, 0 for none.
        label: how the label enters: concatenated to the input, to an image as constant channels ("concat"), the same
            after a learned linear map ("embed"), or as a scale and shift of every hidden feature ("film": Perez et al.
            2018, 1709.07871).
        embedding_dim: output width of the learned map.
        norm: normalisation of hidden features, over the features of a datapoint ("layer") or over the batch ("batch").
        dropout: probability with which hidden features are set to 0 in training.
        init: scheme of `torch.nn.init` for the weights.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        label_dim: int = 0,
        *,
        norm: Norm = "none",
        dropout: Probability = 0.0,
        label: LabelEntry = "concat",
        embedding_dim: PositiveInt = 16,
        init: Init = "default",
    ) -> None:
        super().__init__()
        self.input_shape, self.output_shape = tuple(input_shape), tuple(output_shape)
        self.film_dim = label_dim if label == "film" else 0
        self.embedding = nn.Linear(label_dim, embedding_dim) if label_dim and label == "embed" else None
        self.beside = 0 if self.film_dim else embedding_dim if self.embedding is not None else label_dim
        self.missing: nn.Module | None = None
        self.norm, self.dropout, self.init = norm, dropout, init

    def block(self, layer: nn.Module, features: int, activation: Activation, *, residual: bool) -> "Block":
        """A hidden layer with the network's normalisation, dropout and labels."""
        return Block(
            layer,
            features,
            activation=activation,
            norm=self.norm,
            dropout=self.dropout,
            residual=residual,
            label_dim=self.film_dim,
        )

    @property
    def first(self) -> nn.Linear | nn.Conv2d:
        """The first layer."""
        raise NotImplementedError

    def take_mask(self) -> None:
        """Adds a second input to the first layer, 1 for missing entries and else 0, with weights initialised to 0."""
        if self.missing is not None:
            return
        first = self.first
        if isinstance(first, nn.Linear):
            self.missing = nn.Linear(math.prod(self.input_shape), first.out_features, bias=False)
        else:
            like: Any = {name: getattr(first, name) for name in ("out_channels", "kernel_size", "stride", "padding")}
            self.missing = nn.Conv2d(self.input_shape[0], **like, bias=False)
        init.zeros_(self.missing.weight)
        self.missing.to(first.weight)

    def from_mask(self, mask: Tensor | None) -> Tensor | None:
        """The contribution of a mask (batch, *input_shape), True where observed, to the output of the first layer."""
        if self.missing is None or mask is None:
            return None
        missing = (~mask).to(self.first.weight.dtype)
        return self.missing(missing if isinstance(self.first, nn.Conv2d) else missing.flatten(1))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if f"{prefix}missing.weight" in state_dict:
            self.take_mask()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def entering(self, label: Tensor | None) -> Tensor | None:
        """The label as concatenated to the input, (batch, beside); None if it is not."""
        if not self.beside or label is None:
            return None
        return label if self.embedding is None else self.embedding(label)

    def start(self) -> None:
        """Initialises the weights of all layers by the scheme and biases to 0; "default" keeps torch's."""
        if self.init == "default":
            return
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                getattr(init, f"{self.init}_")(module.weight)
                if module.bias is not None:
                    init.zeros_(module.bias)


@component("mlp", "network")
class MLP(Network):
    """Multi-layer perceptron.

    Args:
        input_shape: shape of one input; it is flattened.
        output_shape: shape of one output.
        label_dim: width of the label, 0 for none.
        hidden: widths of the hidden layers, from input to output.
        activation: the function after each hidden layer; one name, or one per layer.
        output_activation: the function after the last layer; families need "identity".
        residual: whether hidden layers add their input where both have the same width.
        **options: those of every network.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        label_dim: int = 0,
        *,
        hidden: tuple[PositiveInt, ...] = (200,),
        activation: Activation | tuple[Activation, ...] = "relu",
        output_activation: Activation | Literal["sigmoid"] = "identity",
        residual: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(input_shape, output_shape, label_dim, **options)
        activations = (activation,) * len(hidden) if isinstance(activation, str) else activation
        if len(activations) != len(hidden):
            raise InputError(f"mlp was given {len(activations)} activations for {len(hidden)} hidden layers")
        self.widths = [math.prod(input_shape) + self.beside, *hidden, math.prod(output_shape)]
        self.blocks = nn.ModuleList(
            self.block(nn.Linear(before, after), after, function, residual=residual)
            for before, after, function in zip(self.widths[:-2], self.widths[1:-1], activations, strict=True)
        )
        self.last = nn.Linear(self.widths[-2], self.widths[-1])
        self.output = nn.Sigmoid() if output_activation == "sigmoid" else ACTIVATIONS[output_activation]()
        self.start()

    @property
    def first(self) -> nn.Linear:
        """The first layer."""
        layer: Any = self.blocks[0].layer if len(self.blocks) else self.last
        return layer

    def forward(self, value: Tensor, label: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Maps (batch, *input_shape), (batch, label_dim) and a mask (batch, *input_shape) to (batch, *output_shape)."""
        beside, added = self.entering(label), self.from_mask(mask)
        hidden = value.flatten(1) if beside is None else torch.cat([value.flatten(1), beside], -1)
        for block in self.blocks:
            hidden, added = block(hidden, label, added), None
        last = self.last(hidden)
        return self.output(last if added is None else last + added).reshape((-1, *self.output_shape))

    def set_output(self, value: Tensor) -> None:
        """Sets the last bias so that the network returns `value` (*output_shape) where its last features are 0."""
        self.last.bias.data.copy_(value.flatten())

    def __str__(self) -> str:
        return f"MLP {'-'.join(map(str, self.widths))}"


@component("conv", "network")
class Conv(Network):
    """Convolutional network from an image to a vector or from a vector to an image, of any size and channels.

    From an image, each level halves height and width (rounded up) by a convolution of stride 2, and a linear map
    follows. To an image, a linear map comes first, each level upsamples by nearest neighbours to the sizes of the other
    direction, followed by a convolution, and a convolution comes last.

    Args:
        input_shape: (channels, height, width), or any shape if the output is an image.
        output_shape: (channels, height, width) if the input is not an image.
        label_dim: width of the label, 0 for none.
        channels: channels of the levels, from the image inwards.
        kernel: width of the convolutions, odd.
        residual: number of residual blocks at each level.
        activation: the function after each hidden layer.
        **options: those of every network.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        label_dim: int = 0,
        *,
        channels: Annotated[tuple[PositiveInt, ...], MinLen(1)] = (32, 64),
        kernel: PositiveInt = 3,
        residual: Annotated[int, Ge(0)] = 0,
        activation: Activation = "relu",
        **options: Any,
    ) -> None:
        super().__init__(input_shape, output_shape, label_dim, **options)
        self.inwards = len(input_shape) == 3
        image = self.input_shape if self.inwards else self.output_shape
        if len(image) != 3:
            raise InputError(
                f"conv goes between an image (channels, height, width) and a vector, but was given the shapes "
                f"{self.input_shape} and {self.output_shape}; declare mlp"
            )
        if kernel % 2 == 0:
            raise InputError(f"conv.kernel was {kernel}; give an odd width, which keeps sizes")
        self.channels = channels

        def block(before: int, after: int, stride: int = 1, residual: bool = False) -> Block:
            layer = nn.Conv2d(before, after, kernel, stride, kernel // 2)
            return self.block(layer, after, activation, residual=residual)

        self.sizes = [image[1:]]
        for _ in channels:
            self.sizes.append((math.ceil(self.sizes[-1][0] / 2), math.ceil(self.sizes[-1][1] / 2)))
        inner = (channels[-1], *self.sizes[-1])
        levels = []
        if self.inwards:
            for before, after in zip((image[0] + self.beside, *channels[:-1]), channels, strict=True):
                levels.append(
                    [block(before, after, stride=2), *(block(after, after, residual=True) for _ in range(residual))]
                )
            self.linear = nn.Linear(math.prod(inner), math.prod(self.output_shape))
        else:
            self.linear = nn.Linear(math.prod(self.input_shape) + self.beside, math.prod(inner))
            for before, after in zip(channels[::-1], (*channels[-2::-1], channels[0]), strict=True):
                levels.append([block(before, after), *(block(after, after, residual=True) for _ in range(residual))])
            self.last = nn.Conv2d(channels[0], image[0], kernel, padding=kernel // 2)
        self.inner = inner
        self.levels: Iterable[Any] = nn.ModuleList(nn.ModuleList(level) for level in levels)
        self.start()

    @property
    def first(self) -> nn.Linear | nn.Conv2d:
        """The first layer."""
        levels: Any = self.levels
        return levels[0][0].layer if self.inwards else self.linear

    def forward(self, value: Tensor, label: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Maps (batch, *input_shape), (batch, label_dim) and a mask (batch, *input_shape) to (batch, *output_shape)."""
        beside, added = self.entering(label), self.from_mask(mask)
        if self.inwards:
            if beside is not None:
                value = torch.cat([value, beside[..., None, None].expand(-1, -1, *value.shape[2:])], 1)
            for block in itertools.chain(*self.levels):
                value, added = block(value, label, added), None
            return self.linear(value.flatten(1)).reshape((-1, *self.output_shape))
        flat = value.flatten(1) if beside is None else torch.cat([value.flatten(1), beside], -1)
        linear = self.linear(flat)
        hidden = (linear if added is None else linear + added).reshape((-1, *self.inner))
        for level, size in zip(self.levels, self.sizes[-2::-1], strict=True):
            hidden = interpolate(hidden, size=size, mode="nearest")
            for block in level:
                hidden = block(hidden, label)
        return self.last(hidden)

    def set_output(self, value: Tensor) -> None:
        """Sets the last bias to `value` (*output_shape), averaged over positions if the output is an image."""
        if self.inwards:
            self.linear.bias.data.copy_(value.flatten())
        else:
            self.last.get_parameter("bias").data.copy_(value.mean((1, 2)))

    def __str__(self) -> str:
        image = self.input_shape if self.inwards else self.output_shape
        names = ["x".join(map(str, image)), *map(str, self.channels)]
        names.append(str(math.prod(self.output_shape if self.inwards else self.input_shape)))
        return f"{type(self).__name__} {'-'.join(names if self.inwards else names[::-1])}"


@component("residual_conv", "network")
class ResidualConv(Conv):
    """conv with residual blocks and normalisation (He et al. 2016, 1512.03385).

    Args:
        input_shape: (channels, height, width), or any shape if the output is an image.
        output_shape: (channels, height, width) if the input is not an image.
        label_dim: width of the label, 0 for none.
        blocks: number of residual blocks at each level.
        activation: the function after each hidden layer.
        norm: normalisation of the hidden features.
        **options: those of conv.
    """

    fixed = ("residual",)

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        label_dim: int = 0,
        *,
        blocks: PositiveInt = 1,
        activation: Activation = "silu",
        norm: Norm = "layer",
        **options: Any,
    ) -> None:
        super().__init__(
            input_shape, output_shape, label_dim, residual=blocks, activation=activation, norm=norm, **options
        )
