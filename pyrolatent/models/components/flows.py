"""Normalising flows from Pyro's transforms, as posteriors with an amortized normal base and as priors."""

from typing import Any, ClassVar

import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrolatent.declaration import PositiveFloat, PositiveInt, component
from pyrolatent.errors import InputError
from pyrolatent.models.components.family import Family

MIN_SCALE = 1e-3


class Flow(dist.TransformedDistribution):
    """A transformed distribution whose conditional transforms broadcast values against the batch shape."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats; a value of the full shape is passed on unchanged, because its inverse may be cached."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        return super().log_prob(value if value.shape == shape else value.expand(shape))


class FlowFamily(Family):
    """q(z | x) = density of f_L(...f_1(e)), e ~ N(loc(x), scale(x)^2), each f conditioned on a context c(x).

    log q(z) = log N(e; loc, scale^2) - sum_l log |det df_l|.

    The network returns loc, scale and the context; the parameters of the transforms are shared by all datapoints.

    Args:
        event_shape: (latent_dim,).
        layers: number L of transforms; between two of them the dimensions are reversed.
        context_dim: width of c(x).
        hidden: width of the hidden layer of the transforms' networks.
    """

    scores_any_value: ClassVar[bool] = True
    """Whether values that it did not draw itself can be scored."""

    least_width: ClassVar[int] = 2
    """Smallest number of dimensions; two if some are transformed given others."""

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        layers: PositiveInt = 4,
        context_dim: PositiveInt = 16,
        hidden: PositiveInt = 64,
    ) -> None:
        nn.Module.__init__(self)
        if len(event_shape) != 1:
            raise InputError(f"{type(self).__name__} is over vectors, but the event has the shape {event_shape}")
        (latent_dim,) = event_shape
        if latent_dim < self.least_width:
            raise InputError(
                f"{type(self).__name__} transforms dimensions given others, but latent_dim is {latent_dim}; "
                "declare posterior: planar or normal, or a larger latent_dim"
            )
        self.event_shape = torch.Size(event_shape)
        self.event_dims = 0
        self.sizes = [latent_dim, latent_dim, context_dim]
        self.unconstrained_shape = torch.Size((sum(self.sizes),))
        self.flows = nn.ModuleList(self.transform(latent_dim, context_dim, hidden) for _ in range(layers))
        self.reversal: Tensor
        self.register_buffer("reversal", torch.arange(latent_dim - 1, -1, -1), persistent=False)

    def transform(self, latent_dim: int, context_dim: int, hidden: int) -> Any:
        """One conditional transform f of Pyro."""
        raise NotImplementedError

    def forward(self, unconstrained: Tensor) -> TorchDistributionMixin:
        """The distribution of z; the last dimension is the event."""
        loc, scale, context = unconstrained.split(self.sizes, dim=-1)
        base = dist.Normal(loc, MIN_SCALE + softplus(scale)).to_event(1)
        transforms: list[Any] = []
        flows: Any = self.flows
        for flow in flows:
            transforms += [flow.condition(context), T.Permute(self.reversal)]
        return Flow(base, transforms[:-1])

    def at_floor(self) -> bool:
        """False: flows have no learned parameter with a floor."""
        return False

    def __str__(self) -> str:
        return f"{type(self).__name__} flow ({len(self.flows)} layers) of Normal(loc, scale)"


@component("iaf", "posterior")
class InverseAutoregressive(FlowFamily):
    """Inverse autoregressive flow: z_i = mu_i(e_<i, c) + sigma_i(e_<i, c) e_i (Kingma et al. 2016, 1606.04934).

    Args:
        event_shape: (latent_dim,).
        layers: number of transforms.
        **options: those of every flow.
    """

    def __init__(self, event_shape: tuple[int, ...], *, layers: PositiveInt = 2, **options: Any) -> None:
        super().__init__(event_shape, layers=layers, **options)

    def transform(self, latent_dim: int, context_dim: int, hidden: int) -> Any:
        """mu and sigma from a masked network."""
        widths = [max(hidden, latent_dim)]
        return T.conditional_affine_autoregressive(latent_dim, context_dim, hidden_dims=widths, stable=True)


@component("coupling", "posterior")
class AffineCoupling(FlowFamily):
    """Affine coupling: one half is scaled and shifted given the other (Dinh et al. 2017, 1605.08803)."""

    def transform(self, latent_dim: int, context_dim: int, hidden: int) -> Any:
        """Shift and scale from a network of the first half."""
        return T.conditional_affine_coupling(latent_dim, context_dim, hidden_dims=[hidden])


@component("spline", "posterior")
class Spline(FlowFamily):
    """Autoregressive rational splines on [-bound, bound]^d, identity outside (Durkan et al. 2019, 1906.04032).

    Args:
        event_shape: (latent_dim,).
        layers: number of transforms.
        bins: number of segments of each spline.
        bound: half-width of the interval that the splines transform.
        **options: those of every flow.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        layers: PositiveInt = 2,
        bins: PositiveInt = 8,
        bound: PositiveFloat = 5.0,
        **options: Any,
    ) -> None:
        self.bins, self.bound = bins, bound
        super().__init__(event_shape, layers=layers, **options)

    def transform(self, latent_dim: int, context_dim: int, hidden: int) -> Any:
        """Widths, heights and slopes of the segments from a masked network."""
        return T.conditional_spline_autoregressive(
            latent_dim, context_dim, hidden_dims=[max(hidden, latent_dim)], count_bins=self.bins, bound=self.bound
        )


@component("planar", "posterior")
class Planar(FlowFamily):
    """Planar flow: z = e + u tanh(w'e + b), u, w, b from the context (Rezende and Mohamed 2015, 1505.05770).

    Its inverse has no closed form, so it can score only its own draws.
    """

    scores_any_value = False
    least_width = 1

    def transform(self, latent_dim: int, context_dim: int, hidden: int) -> Any:
        """u, w and b from a network of the context."""
        return T.conditional_planar(latent_dim, context_dim, hidden_dims=[hidden])


class FlowPrior(nn.Module):
    """p(z) = density of f_L(...f_1(e)), e ~ N(0, I), the transforms learned.

    Args:
        latent_dim: number of latent dimensions.
        layers: number L of transforms; between two of them the dimensions are reversed.
        hidden: width of the hidden layers of the transforms' networks.
    """

    def __init__(self, latent_dim: int, *, layers: PositiveInt = 4, hidden: PositiveInt = 64) -> None:
        super().__init__()
        if latent_dim < 2:
            raise InputError(
                f"{type(self).__name__} transforms dimensions given others, but latent_dim is {latent_dim}; "
                "declare prior: mixture or normal, or a larger latent_dim"
            )
        self.flows = nn.ModuleList(self.transform(latent_dim, hidden) for _ in range(layers))
        self.reversal: Tensor
        self.register_buffer("reversal", torch.arange(latent_dim - 1, -1, -1), persistent=False)

    def transform(self, latent_dim: int, hidden: int) -> Any:
        """One invertible transform f of Pyro."""
        raise NotImplementedError

    def forward(self, y: Tensor | None = None) -> TorchDistributionMixin:
        """The prior, with batch shape ()."""
        zero = next(self.flows.parameters()).new_zeros(len(self.reversal))
        transforms: list[Any] = []
        for flow in self.flows:
            transforms += [flow, T.Permute(self.reversal)]
        flowed = dist.TransformedDistribution(dist.Normal(zero, torch.ones_like(zero)).to_event(1), transforms[:-1])
        flowed.clear_cache()  # inverses computed with the parameters of an earlier step
        return flowed

    def __str__(self) -> str:
        return f"{type(self).__name__} ({len(self.flows)} layers) of Normal(loc=0, scale=1)"


@component("coupling", "prior")
class AffineCouplingPrior(FlowPrior):
    """Affine coupling flow as a prior (Dinh et al. 2017, 1605.08803)."""

    def transform(self, latent_dim: int, hidden: int) -> Any:
        """Shift and scale from a network of the first half."""
        return T.affine_coupling(latent_dim, hidden_dims=[hidden])


@component("spline", "prior")
class SplineCouplingPrior(FlowPrior):
    """Spline coupling flow as a prior (Durkan et al. 2019, 1906.04032).

    Args:
        latent_dim: number of latent dimensions.
        layers: number of transforms.
        bins: number of segments of each spline.
        bound: half-width of the interval that the splines transform.
        **options: those of every flow prior.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        layers: PositiveInt = 2,
        bins: PositiveInt = 8,
        bound: PositiveFloat = 5.0,
        **options: Any,
    ) -> None:
        self.bins, self.bound = bins, bound
        super().__init__(latent_dim, layers=layers, **options)

    def transform(self, latent_dim: int, hidden: int) -> Any:
        """The segments of the second half from a network of the first."""
        widths = [hidden, hidden]
        return T.spline_coupling(latent_dim, hidden_dims=widths, count_bins=self.bins, bound=self.bound)
