"""Networks: what a distribution is conditioned on to the unconstrained numbers of its family."""

import math
from typing import Annotated, Literal

from annotated_types import Gt
from torch import Tensor, nn

from pyrolatent.declaration import component

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
}
Activation = Literal["relu", "tanh", "silu", "gelu", "elu", "softplus"]


@component("network", "mlp")
class MLP(nn.Module):
    """Multi-layer perceptron h_l = a(W_l h_(l-1) + b_l), linear at the end.

    Args:
        input_shape: shape of one input; it is flattened.
        output_shape: shape of one output.
        hidden: widths of the hidden layers, from input to output.
        activation: the function a between layers.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        *,
        hidden: tuple[Annotated[int, Gt(0)], ...] = (200,),
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.widths = [math.prod(input_shape), *hidden, math.prod(output_shape)]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip(self.widths[:-2], self.widths[1:-1], strict=True):
            layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
        layers += [nn.Linear(self.widths[-2], self.widths[-1]), nn.Unflatten(1, tuple(output_shape))]
        self.layers = nn.Sequential(*layers)

    def forward(self, value: Tensor) -> Tensor:
        """(batch, *input_shape) to (batch, *output_shape)."""
        return self.layers(value)

    def __str__(self) -> str:
        return f"MLP {'-'.join(map(str, self.widths))}"
