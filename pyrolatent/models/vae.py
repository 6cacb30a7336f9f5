"""Variational autoencoders: assemblies of a prior, two networks and two families."""

from typing import Annotated, Any

import pyro
from torch import Tensor, nn

from pyrolatent.declaration import Kind, PositiveInt, build, component
from pyrolatent.errors import InputError
from pyrolatent.models.components.conditional import conditional
from pyrolatent.models.components.missingness import require_pathwise
from pyrolatent.models.components.scaling import scaled
from pyrolatent.models.latent import LatentVariableModel, require_labels
from pyrolatent.models.model import MaskInput


class Autoencoding(LatentVariableModel):
    """A model of one latent z, built from declarations of its prior, likelihood and amortized posterior.

    Args:
        event_shape: shape of one datapoint x.
        label_dim: number of classes, or width of label vectors y; 0 for none.
        latent_dim: number of latent dimensions.
        prior: p(z); in conditional models also p(z | y), by label_normal.
        likelihood: the family of p(x | z), or of p(x | z, y) with labels.
        posterior: the family of q(z | x), or of q(z | x, y).
        encoder: the network from x (and y) to the posterior's parameters.
        decoder: the network from z (and y) to the likelihood's parameters.
        scaling: how x is scaled for the networks; densities and draws are in the units of the data.
        start_at_data: whether the decoder's last bias is initialised where the likelihood fits the data best without z.
        mask_input: whether encoders receive the mask; "auto" if they are trained with one.
        missingness: p(mask | x), for values that are not missing at random; log p is then of x and of the mask.
        corrupt: noise that is added to what the encoder sees in training, anew in each step, so that it learns to
            encode noisy data; the bound stays one on log p(x) of the clean data (Im et al. 2017, 1511.06406).
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        label_dim: int = 0,
        *,
        latent_dim: PositiveInt,
        prior: Annotated[Any, Kind("prior")] = "normal",
        likelihood: Annotated[Any, Kind("likelihood")] = "bernoulli",
        posterior: Annotated[Any, Kind("posterior")] = "normal",
        encoder: Annotated[Any, Kind("network")] = "mlp",
        decoder: Annotated[Any, Kind("network")] = "mlp",
        scaling: Annotated[Any, Kind("scaling")] = "auto",
        start_at_data: bool = False,
        mask_input: MaskInput = "auto",
        missingness: Annotated[Any, Kind("missingness")] = None,
        corrupt: Annotated[Any, Kind("corruption")] = None,
    ) -> None:
        latent_shape = (latent_dim,)
        p_x = conditional(
            "likelihood", likelihood, decoder, latent_shape, event_shape, label_dim, start_at_data=start_at_data
        )
        units = scaled(scaling, p_x, event_shape)
        q_z = conditional("posterior", posterior, encoder, units.output_shape, latent_shape, label_dim)
        given = label_dim if self.conditional else 0
        p_z = build(
            "prior",
            prior,
            latent_dim=latent_dim,
            event_shape=units.output_shape,
            label_dim=given,
            posterior=q_z,
            scaling=units,
        )
        super().__init__(event_shape, p_z, p_x, q_z, units)
        self.label_dim = label_dim
        self.mask_input = mask_input
        if missingness is not None:
            require_pathwise(getattr(p_x, "family", None))
            self.missingness = build("missingness", missingness, event_shape=tuple(event_shape), scaling=units)
        self.corrupt = None if corrupt is None else build("corruption", corrupt)
        if self.corrupt is not None and self.corrupt.learned:
            raise InputError("the encoder is trained under a known corruption; give corrupt its rate or scale")

    def seen(self, x: Tensor) -> Tensor:
        """x as encoders see it: corrupted in training, if that is declared."""
        return x if self.corrupt is None or not self.training else self.corrupt(x)


@component("vae", "model")
class VAE(Autoencoding):
    """Variational autoencoder: p(z) p(x | z) with an amortized posterior q(z | x) (Kingma and Welling 2014, 1312.6114).

    Args:
        event_shape: shape of one datapoint x.
        **options: those of `Autoencoding`.
    """

    def __init__(self, event_shape: tuple[int, ...], **options: Any) -> None:
        super().__init__(event_shape, **options)


@component("conditional_vae", "model")
class ConditionalVAE(Autoencoding):
    """Class-conditional VAE: p(z | y) p(x | z, y) with q(z | x, y) (Sohn, Lee and Yan 2015).

    Args:
        event_shape: shape of one datapoint x.
        label_dim: number of classes, or width of label vectors y.
        **options: those of `Autoencoding`.
    """

    conditional = True

    def __init__(self, event_shape: tuple[int, ...], label_dim: int, **options: Any) -> None:
        require_labels(label_dim, "conditional_vae")
        super().__init__(event_shape, label_dim, **options)


@component("generative_network", "model")
class GenerativeNetwork(LatentVariableModel):
    """p(z) p(x | z) without an encoder: the prior is the proposal, and log p(x) is estimated by log mean_k p(x | z_k).

    Training by `iwae` with many particles is maximum likelihood by plain Monte Carlo (MacKay 1995).

    Args:
        event_shape: shape of one datapoint x.
        latent_dim: number of latent dimensions.
        prior: p(z).
        likelihood: the family of p(x | z).
        decoder: the network from z to the likelihood's parameters.
        scaling: how x is scaled for the networks; densities and draws are in the units of the data.
        start_at_data: whether the decoder's last bias is initialised where the likelihood fits the data best without z.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        latent_dim: PositiveInt,
        prior: Annotated[Any, Kind("prior")] = "normal",
        likelihood: Annotated[Any, Kind("likelihood")] = "bernoulli",
        decoder: Annotated[Any, Kind("network")] = "mlp",
        scaling: Annotated[Any, Kind("scaling")] = "auto",
        start_at_data: bool = False,
    ) -> None:
        p_z = build("prior", prior, latent_dim=latent_dim, event_shape=event_shape)
        p_x = conditional("likelihood", likelihood, decoder, (latent_dim,), event_shape, start_at_data=start_at_data)
        super().__init__(event_shape, p_z, p_x, _PriorItself(), scaled(scaling, p_x, event_shape))

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """z ~ p(z), independently of x."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.prior(y))


class _PriorItself(nn.Module):
    """Placeholder for a posterior that is the prior."""

    def __str__(self) -> str:
        return "p(z)"
