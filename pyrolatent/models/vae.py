"""Variational autoencoders: assemblies of a prior, two networks and two families."""

from typing import Annotated, Any

from annotated_types import Gt
from torch import nn

from pyrolatent.declaration import Kind, build, component
from pyrolatent.models.conditionals import Conditional
from pyrolatent.models.families import Family
from pyrolatent.models.latent import LatentVariableModel


@component("model", "vae")
class VAE(LatentVariableModel):
    """Variational autoencoder: p(z) p(x | z) with an amortized posterior q(z | x) (Kingma and Welling 2014, 1312.6114).

    Args:
        event_shape: shape of one datapoint x.
        latent_dim: number of latent dimensions.
        prior: p(z).
        likelihood: the family of p(x | z).
        posterior: the family of q(z | x).
        encoder: the network from x to the posterior's parameters.
        decoder: the network from z to the likelihood's parameters.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        latent_dim: Annotated[int, Gt(0)],
        prior: Annotated[Any, Kind("prior")] = "normal",
        likelihood: Annotated[Any, Kind("likelihood")] = "bernoulli",
        posterior: Annotated[Any, Kind("posterior")] = "normal",
        encoder: Annotated[Any, Kind("network")] = "mlp",
        decoder: Annotated[Any, Kind("network")] = "mlp",
    ) -> None:
        latent_shape = (latent_dim,)
        super().__init__(
            event_shape,
            build("prior", prior, latent_dim=latent_dim),
            _conditional(build("likelihood", likelihood, event_shape=event_shape), decoder, latent_shape),
            _conditional(build("posterior", posterior, event_shape=latent_shape), encoder, event_shape),
        )


def _conditional(family: nn.Module, network: Any, input_shape: tuple[int, ...]) -> nn.Module:
    """A family is given its network; any other module is a conditional distribution of its own."""
    if not isinstance(family, Family):
        return family
    built = build("network", network, input_shape=input_shape, output_shape=family.unconstrained_shape)
    return Conditional(built, family, input_shape)
