"""Baselines without a density: a plain autoencoder and principal components."""

from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrolatent.declaration import Kind, PositiveInt, build, component
from pyrolatent.errors import InputError
from pyrolatent.models.arrays import as_inputs, as_labels, as_numbers
from pyrolatent.models.components.conditional import apply_network, filled
from pyrolatent.models.components.networks import MLP
from pyrolatent.models.model import Capability, MaskInput, Model


class DeterministicModel(Model):
    """z = encoder(x), x' = decoder(z): codes and reconstructions, without p(x) or samples.

    Args:
        event_shape: shape of one datapoint x.
        encoder: maps (batch, *event_shape) to (batch, latent_dim).
        decoder: maps (batch, latent_dim) to (batch, *event_shape).
    """

    always_offers = frozenset({Capability.LATENTS, Capability.CODES})

    def __init__(self, event_shape: tuple[int, ...], encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__(event_shape)
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, x: Any, y: Any = None, mask: Any = None) -> dict[str, Any]:
        """The code as a point mass; unobserved entries enter as 0."""
        x, _, mask = as_inputs(self, x, y, mask)
        return {"z": dist.Delta(self._code(x, mask)).to_event(1)}

    def decode(self, latents: Any, y: Any = None) -> TorchDistributionMixin:
        """The reconstruction of codes (..., latent_dim) as a point mass."""
        if y is not None:
            as_labels(self, y, len(y))  # refuses them
        z = as_numbers(self, latents["z"] if isinstance(latents, Mapping) else latents, "z")
        decoded = self.decoder(z.reshape(-1, z.shape[-1])).reshape((*z.shape[:-1], *self.event_shape))
        return dist.Delta(decoded).to_event(len(self.event_shape))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """decoder(encoder(x)), (batch, *event_shape), of training tensors."""
        return self.decoder(self._code(x, mask))

    def reconstruct(self, x: Any, y: Any = None, mask: Any = None) -> Tensor:
        """decoder(encoder(x)), (batch, *event_shape); unobserved entries enter as 0."""
        x, _, mask = as_inputs(self, x, y, mask)
        return self(x, mask)

    @property
    def encoders(self) -> list[nn.Module]:
        """The network that receives x with missing entries."""
        return [self.encoder]

    def _code(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return apply_network(self.encoder, filled(x, mask), mask=mask)

    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> NoReturn:
        """Raises InputError: there is no generative function."""
        raise InputError(
            f"{type(self).__name__} maps x to a code and back and says nothing of how codes or x are distributed, so "
            "it has no density, evidence or samples; declare vae, or linear_gaussian, for these"
        )

    infer = model = guide = simulated = generate

    def __str__(self) -> str:
        return f"{super().__str__()}, no density\n  z  = {self.encoder}\n  x' = {self.decoder}"


@component("autoencoder", "model")
class Autoencoder(DeterministicModel):
    """Deterministic autoencoder, trained by squared error (Hinton and Salakhutdinov 2006).

    Args:
        event_shape: shape of one datapoint x.
        latent_dim: width of the code.
        encoder: the network from x to the code.
        decoder: the network from the code to the reconstruction.
        mask_input: whether the encoder receives the mask; "auto" if it is trained with one.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        latent_dim: PositiveInt,
        encoder: Annotated[Any, Kind("network")] = "mlp",
        decoder: Annotated[Any, Kind("network")] = "mlp",
        mask_input: MaskInput = "auto",
    ) -> None:
        event_shape = tuple(event_shape)
        super().__init__(
            event_shape,
            build("network", encoder, input_shape=event_shape, output_shape=(latent_dim,)),
            build("network", decoder, input_shape=(latent_dim,), output_shape=event_shape),
        )
        self.mask_input = mask_input


@component("pca", "model")
class PCA(DeterministicModel):
    """Principal component analysis: z = W'(x - m), x' = m + W z, W'W = I, the linear code of least squared error.

    Args:
        event_shape: shape of one datapoint x.
        latent_dim: number of components.
    """

    always_offers = DeterministicModel.always_offers | {Capability.SOLUTION}

    def __init__(self, event_shape: tuple[int, ...], *, latent_dim: PositiveInt) -> None:
        size = torch.Size(event_shape).numel()
        if latent_dim > size:
            raise InputError(
                f"pca has at most as many components as x has dimensions, {size}, but latent_dim is {latent_dim}"
            )
        event_shape = tuple(event_shape)
        super().__init__(
            event_shape, MLP(event_shape, (latent_dim,), hidden=()), MLP((latent_dim,), event_shape, hidden=())
        )

    @torch.no_grad()
    def solve(self, x: Tensor) -> None:
        """Sets the exact solution for data x (datapoints, *event_shape), computed by scikit-learn."""
        from sklearn import decomposition

        inward, outward = (_only_layer(part) for part in (self.encoder, self.decoder))
        latent_dim = inward.out_features
        if len(x) < latent_dim:
            raise InputError(
                f"pca of {latent_dim} components needs at least as many datapoints, but there are {len(x)}"
            )
        flat = x.flatten(1).double()
        mean = flat.mean(0)
        # Centred in double precision first: scikit-learn forms moments, in which a mean far from 0 cancels.
        solved = decomposition.PCA(latent_dim).fit((flat - mean).cpu().numpy())
        components = torch.as_tensor(solved.components_, device=x.device)
        inward.weight.copy_(components)
        inward.bias.copy_(-components @ mean)
        outward.weight.copy_(components.T)
        outward.bias.copy_(mean)


def _only_layer(network: nn.Module) -> nn.Linear:
    return next(module for module in network.modules() if isinstance(module, nn.Linear))
