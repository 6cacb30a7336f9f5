"""Models with several layers of latent sites z1 (next to x), ..., zL (the top)."""

import itertools
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import pyro
import pyro.distributions as dist
import torch
from annotated_types import Ge, MinLen
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrolatent.declaration import Kind, PositiveInt, build, component
from pyrolatent.errors import InputError
from pyrolatent.models.components.conditional import apply_network, conditional, given_gaps
from pyrolatent.models.components.family import Family
from pyrolatent.models.components.scaling import Scaling, scaled
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.model import MaskInput, Model

Dims = Annotated[tuple[PositiveInt, ...], MinLen(1)]
MIN_SCALE = 1e-3
MOST_STATES = 1024


class LayeredModel(LatentVariableModel):
    """p(z_L) prod_l p(z_l | z_(l+1)) p(x | z_1), with q(z_1 | x) prod_l q(z_(l+1) | z_l) from the bottom up.

    Args:
        event_shape: shape of one datapoint x.
        prior: p(z_L).
        layers: p(z_l | z_(l+1)) for l = 1 ... L - 1.
        likelihood: p(x | z_1).
        posteriors: q(z_1 | x), q(z_2 | z_1), ..., q(z_L | z_(L-1)).
        scaling: how x is scaled for the first of them; None if it is not.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        prior: nn.Module,
        layers: list[nn.Module],
        likelihood: nn.Module,
        posteriors: list[nn.Module],
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__(event_shape, prior, likelihood, nn.ModuleList(posteriors), scaling)
        self.layers = nn.ModuleList(layers)

    @property
    def depth(self) -> int:
        """Number L of latent sites."""
        return len(self.layers) + 1

    @property
    def upwards(self) -> Iterable[Any]:
        """The parts of the posterior, from x upwards."""
        posteriors: Any = self.posterior
        return posteriors

    @property
    def encoders(self) -> list[nn.Module]:
        """The network that receives x with missing entries."""
        return [next(iter(self.upwards)).network]

    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """z_L ~ p(z_L), z_l ~ p(z_l | z_(l+1)), x ~ p(x | z_1); arguments as in `LatentVariableModel.generate`."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample(f"z{self.depth}", self.prior(y))
            for level in range(self.depth - 1, 0, -1):
                z = pyro.sample(f"z{level}", self.layers[level - 1](z))
            self.observe(self.likelihood(z, y), x, mask)

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """z_1 ~ q(z_1 | x), z_(l+1) ~ q(z_(l+1) | z_l); unobserved entries of x enter the encoder as 0."""
        with pyro.plate("data", x.shape[0], dim=-1):
            value = x
            for level, posterior in enumerate(self.upwards, 1):
                given = given_gaps(posterior, self.scaling, x, None, mask) if level == 1 else posterior(value)
                value = pyro.sample(f"z{level}", self.site(given), infer=self.site_options(level, x))

    def site(self, posterior: TorchDistributionMixin) -> TorchDistributionMixin:
        """The guide's distribution at a site."""
        return posterior

    def site_options(self, level: int, x: Tensor) -> Any:
        """The `infer` options of the guide's site z_level, for gradient estimators."""
        return {}

    def __str__(self) -> str:
        top = self.depth
        lines = [f"p(z{top}) = {self.prior}"]
        lines += [f"p(z{level} | z{level + 1}) = {self.layers[level - 1]}" for level in range(top - 1, 0, -1)]
        lines += [f"p(x | z1) = {self.likelihood}", *self._posterior_lines()]
        lines += self.scaling.lines
        return "\n  ".join([Model.__str__(self), *lines])

    def _posterior_lines(self) -> list[str]:
        given = ["x", *(f"z{level}" for level in range(1, self.depth))]
        return [f"q(z{level} | {given[level - 1]}) = {q}" for level, q in enumerate(self.upwards, 1)]


@component("hierarchical_vae", "model")
class HierarchicalVAE(LayeredModel):
    """VAE with L stochastic layers of normal latents and a bottom-up or top-down posterior.

    bottom_up: q(z_1 | x) prod_l q(z_(l+1) | z_l) (Rezende et al. 2014, 1401.4082).
    top_down: a ladder (Sonderby et al. 2016, 1602.02282). A deterministic pass h_l = net_l(h_(l-1)), h_0 = x, proposes
    N(m_l, s_l^2), which is multiplied with the prior N(m, s^2) of z_l given z_(l+1):
    q(z_l | z_(l+1), x) = N((m_l / s_l^2 + m / s^2) v, v), 1 / v = 1 / s_l^2 + 1 / s^2.

    Args:
        event_shape: shape of one datapoint x.
        latent_dims: number of dimensions of z_1, ..., z_L.
        inference: factorisation of the posterior.
        prior: p(z_L); a top-down posterior needs a prior over all real numbers.
        likelihood: the family of p(x | z_1).
        encoder: the network from x upwards.
        decoder: the network from z_1 to the likelihood's parameters.
        between: the networks between latent layers, in both directions.
        scaling: how x is scaled for the networks; densities and draws are in the units of the data.
        width: width of h_l in the top-down posterior.
        mask_input: whether the encoder receives the mask; "auto" if it is trained with one.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        latent_dims: Dims = (32, 16),
        inference: Literal["bottom_up", "top_down"] = "top_down",
        prior: Annotated[Any, Kind("prior")] = "normal",
        likelihood: Annotated[Any, Kind("likelihood")] = "bernoulli",
        encoder: Annotated[Any, Kind("network")] = "mlp",
        decoder: Annotated[Any, Kind("network")] = "mlp",
        between: Annotated[Any, Kind("network")] = "mlp",
        scaling: Annotated[Any, Kind("scaling")] = "auto",
        width: PositiveInt = 200,
        mask_input: MaskInput = "auto",
    ) -> None:
        shapes = [(dim,) for dim in latent_dims]
        down = [
            conditional("posterior", "normal", between, *pair) for pair in zip(shapes[1:], shapes[:-1], strict=True)
        ]
        top = build("prior", prior, latent_dim=latent_dims[-1], event_shape=tuple(event_shape))
        p_x = conditional("likelihood", likelihood, decoder, shapes[0], event_shape)
        units = scaled(scaling, p_x, event_shape)
        seen = tuple(units.output_shape)
        self.inference = inference
        if inference == "bottom_up":
            up = [conditional("posterior", "normal", encoder, seen, shapes[0])]
            up += [conditional("posterior", "normal", between, *pair) for pair in itertools.pairwise(shapes)]
        else:
            up = [
                _Proposal(
                    build("network", encoder, input_shape=seen, output_shape=(width,)),
                    width,
                    latent_dims[0],
                )
            ]
            for dim in latent_dims[1:]:
                network = build("network", between, input_shape=(width,), output_shape=(width,))
                up.append(_Proposal(network, width, dim))
        super().__init__(event_shape, top, down, p_x, up, units)
        self.mask_input = mask_input

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """The guide, in the declared direction."""
        if self.inference == "bottom_up":
            return super().infer(x, y, mask)
        hidden, seen = self.scaling(x, mask), None if mask is None else self.scaling.seen(mask)
        proposals: list[Any] = []
        for proposal in self.upwards:
            hidden, normal = proposal(hidden, None if proposals else seen)
            proposals.append(normal)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample(f"z{self.depth}", proposals[-1].to_event(1))
            for level in range(self.depth - 1, 0, -1):
                below = joined(proposals[level - 1], self.layers[level - 1](z).base_dist)
                z = pyro.sample(f"z{level}", below.to_event(1))
        return None

    def _posterior_lines(self) -> list[str]:
        if self.inference == "bottom_up":
            return super()._posterior_lines()
        top = self.depth
        lines = [f"q(z{top} | x) = Normal(loc, scale), ladder of {top} networks"]
        return lines + [
            f"q(z{level} | z{level + 1}, x) = Normal joined with p(z{level} | z{level + 1})"
            for level in range(top - 1, 0, -1)
        ]


class _Proposal(nn.Module):
    """One rung of a ladder: h_l = net_l(h_(l-1)) and the normal that it proposes for z_l."""

    def __init__(self, network: nn.Module, width: int, latent_dim: int) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Linear(width, 2 * latent_dim)

    def forward(self, below: Tensor, mask: Tensor | None = None) -> tuple[Tensor, dist.Normal]:
        hidden = torch.relu(apply_network(self.network, below, mask=mask))
        loc, scale = self.head(hidden).chunk(2, dim=-1)
        return hidden, dist.Normal(loc, MIN_SCALE + softplus(scale))


def joined(first: dist.Normal, second: dist.Normal) -> dist.Normal:
    """The normalised product of two normal densities: precisions add, and means are weighted by precision."""
    precisions = first.scale**-2, second.scale**-2
    variance = 1 / (precisions[0] + precisions[1])
    return dist.Normal((first.loc * precisions[0] + second.loc * precisions[1]) * variance, variance.sqrt())


class CartesianProduct(dist.Independent):
    """Independent discrete variables as one variable, whose states are all combinations of their states."""

    has_enumerate_support = True

    @classmethod
    def of(cls, independent: Any) -> "CartesianProduct":
        """The same distribution with an enumerable support."""
        return cls(independent.base_dist, independent.reinterpreted_batch_ndims)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All states, (states, *batch_shape, *event_shape), the batch dimensions of size 1 unless expanded."""
        own = self.base_dist.event_shape
        shape = self.event_shape[: len(self.event_shape) - len(own)]
        single = self.base_dist.enumerate_support(expand=False).reshape(-1, *own)
        index = torch.cartesian_prod(*[torch.arange(len(single))] * shape.numel()).reshape(-1, *shape)
        states = single[index.to(single.device)].reshape(-1, *[1] * len(self.batch_shape), *self.event_shape)
        return states.expand(-1, *self.batch_shape, *self.event_shape) if expand else states


@component("discrete_vae", "model")
class DiscreteVAE(LayeredModel):
    """Layers of discrete latents: a sigmoid belief network with two classes, else a categorical VAE.

    p(z_L) is uniform; p(z_l | z_(l+1)), p(x | z_1) and the bottom-up q are networks (Mnih and Gregor 2014, 1402.0030).
    For relaxed latents (Jang et al. 2017, 1611.01144) declare vae with prior and posterior relaxed_bernoulli.

    Args:
        event_shape: shape of one datapoint x.
        latent_dims: number of variables of z_1, ..., z_L.
        classes: number of classes of each variable: 2 for {0, 1}, more for one-hot vectors.
        estimator: "score" leaves gradients to the objective and provides a baseline network of x for each site;
            "enumerate" sums out every layer exactly, for at most 1,024 states over all layers.
        likelihood: the family of p(x | z_1).
        encoder: the network from x to q(z_1 | x).
        decoder: the network from z_1 to the likelihood's parameters.
        between: the networks between latent layers, in both directions.
        scaling: how x is scaled for the networks; densities and draws are in the units of the data.
        mask_input: whether the encoder receives the mask; "auto" if it is trained with one.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        latent_dims: Dims = (20,),
        classes: Annotated[int, Ge(2)] = 2,
        estimator: Literal["score", "enumerate"] = "score",
        likelihood: Annotated[Any, Kind("likelihood")] = "bernoulli",
        encoder: Annotated[Any, Kind("network")] = "mlp",
        decoder: Annotated[Any, Kind("network")] = "mlp",
        between: Annotated[Any, Kind("network")] = {"mlp": {"hidden": ()}},  # noqa: B006 (only read)
        scaling: Annotated[Any, Kind("scaling")] = "auto",
        mask_input: MaskInput = "auto",
    ) -> None:
        self.estimator = estimator
        variables = sum(latent_dims)
        if estimator == "enumerate" and classes**variables > MOST_STATES:
            raise InputError(
                f"{variables} variables of {classes} classes have {float(classes) ** variables:.3g} states, but "
                f"estimator: enumerate sums out at most {MOST_STATES}; declare fewer variables, or estimator: score"
            )
        shapes = [(dim,) if classes == 2 else (dim, classes) for dim in latent_dims]
        family: Any = "bernoulli" if classes == 2 else "one_hot_categorical"

        def layer(network: Any, input_shape: tuple[int, ...], shape: tuple[int, ...]) -> nn.Module:
            return conditional("posterior", family, network, input_shape, shape)

        of_x = build("likelihood", likelihood, event_shape=event_shape, label_dim=0)
        units = scaled(scaling, of_x, event_shape)
        seen = tuple(units.output_shape)
        up = [layer(encoder, seen, shapes[0])]
        up += [layer(between, *pair) for pair in itertools.pairwise(shapes)]
        down = [layer(between, *pair) for pair in zip(shapes[1:], shapes[:-1], strict=True)]
        p_x = conditional("likelihood", of_x, decoder, shapes[0], event_shape)
        uniform = _Uniform(build("posterior", family, event_shape=shapes[-1]))
        super().__init__(event_shape, uniform, down, p_x, up, units)
        self.mask_input = mask_input
        if estimator == "score":
            self.baselines = nn.ModuleList(
                build("network", encoder, input_shape=seen, output_shape=(1,)) for _ in latent_dims
            )

    def site(self, posterior: TorchDistributionMixin) -> TorchDistributionMixin:
        """The guide's distribution at a site, enumerable if its states are summed out."""
        return CartesianProduct.of(posterior) if self.estimator == "enumerate" else posterior

    def site_options(self, level: int, x: Tensor) -> Any:
        """A baseline network, or the mark that the site is summed out."""
        if self.estimator == "enumerate":
            return {"enumerate": "parallel"}
        baseline = self.baselines[level - 1]
        return {"baseline": {"nn_baseline": lambda x: baseline(x).squeeze(), "nn_baseline_input": self.scaling(x)}}


class _Uniform(nn.Module):
    """The uniform distribution of a discrete family."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family
        self.zeros: Tensor
        self.register_buffer("zeros", torch.zeros(family.unconstrained_shape), persistent=False)

    def forward(self, y: Tensor | None = None) -> TorchDistributionMixin:
        return self.family(self.zeros).to_event(self.family.event_dims)

    def __str__(self) -> str:
        return f"uniform {self.family.distribution.__name__}"
