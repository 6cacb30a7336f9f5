"""Priors p(z) or p(z | y): modules whose forward returns a distribution over (latent_dim,)."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pyro.distributions as dist
import torch
from annotated_types import Interval
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrolatent.declaration import Kind, PositiveFloat, PositiveInt, build, component
from pyrolatent.errors import InputError
from pyrolatent.models.components import distributions as ours
from pyrolatent.models.components.conditional import Conditional, one_hot
from pyrolatent.models.components.families import Normal, ScaleBy
from pyrolatent.models.isolation import evaluation_mode


@component("normal", "prior")
class NormalPrior(nn.Module):
    """p(z) = N(0, I / alpha).

    Args:
        latent_dim: number of latent dimensions.
        precision: alpha, known, or "learned" (one number, initially 1).
    """

    def __init__(self, latent_dim: int, *, precision: Literal["learned"] | PositiveFloat = 1.0) -> None:
        super().__init__()
        self.loc: Tensor
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.precision = precision
        self.log_precision = nn.Parameter(torch.zeros(())) if precision == "learned" else None

    def forward(self, y: Tensor | None = None) -> TorchDistributionMixin:
        """The prior, with batch shape ()."""
        if self.log_precision is not None:
            return dist.Normal(self.loc, torch.exp(-0.5 * self.log_precision).expand_as(self.loc)).to_event(1)
        return dist.Normal(self.loc, torch.full_like(self.loc, float(self.precision) ** -0.5)).to_event(1)

    def __str__(self) -> str:
        if self.log_precision is not None:
            return "Normal(loc=0, learned scale)"
        return f"Normal(loc=0, scale={float(self.precision) ** -0.5:.4g})"


class Factorised(nn.Module):
    """p(z) = prod_d p(z_d) with the same known parameters in all dimensions.

    Args:
        latent_dim: number of latent dimensions.
        distribution: a class of univariate `pyro.distributions`.
        **parameters: its parameters.
    """

    def __init__(self, latent_dim: int, distribution: Callable[..., Any], **parameters: float) -> None:
        super().__init__()
        self.distribution = distribution
        self.parameters_known = parameters
        for name, value in parameters.items():
            self.register_buffer(name, torch.full((latent_dim,), float(value)), persistent=False)

    def forward(self, y: Tensor | None = None) -> TorchDistributionMixin:
        """The prior, with batch shape ()."""
        return self.distribution(**{name: getattr(self, name) for name in self.parameters_known}).to_event(1)

    def __str__(self) -> str:
        known = ", ".join(f"{name}={value:g}" for name, value in self.parameters_known.items())
        return f"{getattr(self.distribution, '__name__', self.distribution)}({known})"


@component("exponential", "prior")
class ExponentialPrior(Factorised):
    """p(z) = prod_d rate exp(-rate z_d), z > 0.

    Args:
        latent_dim: number of latent dimensions.
        rate: the rate; the mean is 1 / rate.
    """

    def __init__(self, latent_dim: int, *, rate: PositiveFloat = 1.0) -> None:
        super().__init__(latent_dim, dist.Exponential, rate=rate)


@component("gamma", "prior")
class GammaPrior(Factorised):
    """p(z) = prod_d Gamma(z_d; concentration, rate), z > 0.

    Args:
        latent_dim: number of latent dimensions.
        concentration: the shape parameter.
        rate: the rate; the mean is concentration / rate.
    """

    def __init__(self, latent_dim: int, *, concentration: PositiveFloat = 2.0, rate: PositiveFloat = 1.0) -> None:
        super().__init__(latent_dim, dist.Gamma, concentration=concentration, rate=rate)


@component("laplace", "prior")
class LaplacePrior(Factorised):
    """p(z) = prod_d exp(-|z_d| / scale) / (2 scale).

    Args:
        latent_dim: number of latent dimensions.
        scale: the scale b; the variance is 2 b^2.
    """

    def __init__(self, latent_dim: int, *, scale: PositiveFloat = 1.0) -> None:
        super().__init__(latent_dim, dist.Laplace, loc=0.0, scale=scale)


@component("beta", "prior")
class BetaPrior(Factorised):
    """p(z) = prod_d Beta(z_d; concentration1, concentration0), 0 < z < 1.

    Args:
        latent_dim: number of latent dimensions.
        concentration1: weight of 1.
        concentration0: weight of 0.
    """

    def __init__(
        self, latent_dim: int, *, concentration1: PositiveFloat = 1.0, concentration0: PositiveFloat = 1.0
    ) -> None:
        super().__init__(latent_dim, dist.Beta, concentration1=concentration1, concentration0=concentration0)


@component("bernoulli", "prior")
class BernoulliPrior(Factorised):
    """p(z) = prod_d Bernoulli(z_d; probability), z in {0, 1}.

    Args:
        latent_dim: number of latent dimensions.
        probability: probability of 1.
    """

    def __init__(self, latent_dim: int, *, probability: Annotated[float, Interval(gt=0, lt=1)] = 0.5) -> None:
        super().__init__(latent_dim, dist.Bernoulli, probs=probability)


@component("relaxed_bernoulli", "prior")
class RelaxedBernoulliPrior(nn.Module):
    """p(z) = prod_d BinaryConcrete(z_d; probability, temperature), 0 < z < 1 (Maddison et al. 2017, 1611.00712).

    Args:
        latent_dim: number of latent dimensions.
        probability: probability of values above 1/2.
        temperature: temperature; near 0 the values are close to 0 and 1.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        probability: Annotated[float, Interval(gt=0, lt=1)] = 0.5,
        temperature: PositiveFloat = 0.5,
    ) -> None:
        super().__init__()
        self.probs: Tensor
        self.temperature: Tensor
        self.register_buffer("probs", torch.full((latent_dim,), probability), persistent=False)
        self.register_buffer("temperature", torch.tensor(temperature), persistent=False)

    def forward(self, y: Tensor | None = None) -> TorchDistributionMixin:
        """The prior, with batch shape ()."""
        return ours.RelaxedBernoulli(self.temperature, probs=self.probs).to_event(1)

    def __str__(self) -> str:
        return f"RelaxedBernoulli({self.probs[0].item():g}, temperature={self.temperature.item():g})"


@component("categorical", "prior")
class CategoricalPrior(nn.Module):
    """p(z) = 1 / latent_dim for each one-hot z of latent_dim classes."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.logits: Tensor
        self.register_buffer("logits", torch.zeros(latent_dim), persistent=False)

    def forward(self, y: Tensor | None = None) -> TorchDistributionMixin:
        """The prior, with batch shape ()."""
        return dist.OneHotCategorical(logits=self.logits)

    def __str__(self) -> str:
        return f"OneHotCategorical(1 / {len(self.logits)})"


@component("mixture", "prior")
class MixturePrior(nn.Module):
    """p(z) = sum_k pi_k N(z; mu_k, diag(sigma_k^2)), all parameters learned.

    Args:
        latent_dim: number of latent dimensions.
        components: number of mixture components.
    """

    def __init__(self, latent_dim: int, *, components: PositiveInt = 10) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.scale = nn.Parameter(torch.full((components, latent_dim), 0.5413))  # softplus of it is 1

    def forward(self, y: Tensor | None = None) -> TorchDistributionMixin:
        """The prior, with batch shape ()."""
        normals = dist.Normal(self.loc, 1e-3 + softplus(self.scale)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), normals)

    def __str__(self) -> str:
        return f"mixture of {len(self.logits)} Normal(loc, scale)"


@component("vamp", "prior")
class VampPrior(nn.Module):
    """p(z) = sum_k pi_k q(z | u_k): the posterior at learned pseudo-inputs u_k (Tomczak and Welling 2018, 1705.07120).

    q(z | u_k) is the posterior in evaluation mode, without dropout and with running statistics of batch normalisation,
    so that training and evaluation have the same prior.

    Args:
        latent_dim: number of latent dimensions.
        event_shape: shape of one pseudo-input.
        posterior: the model's q(z | x), shared with this prior.
        scaling: how x is scaled for the posterior; pseudo-inputs are what it sees.
        components: number of pseudo-inputs.
        start: initial pseudo-inputs: "data" draws datapoints from the first batch, "random" uniform noise on [0, 1].
    """

    def __init__(
        self,
        latent_dim: int,
        event_shape: tuple[int, ...],
        posterior: nn.Module,
        scaling: nn.Module | None = None,
        *,
        components: PositiveInt = 500,
        start: Literal["data", "random"] = "data",
    ) -> None:
        super().__init__()
        if not getattr(getattr(posterior, "family", None), "scores_any_value", True):
            raise InputError(
                f"prior vamp scores values that it did not draw, which the posterior {posterior} cannot; "
                "declare another prior, or posterior normal, iaf, coupling or spline"
            )
        if getattr(posterior, "label_dim", 0):
            raise InputError(
                "prior vamp has pseudo-inputs without labels, but the posterior takes labels; declare another prior"
            )
        self.start = start
        self.pseudo_inputs = nn.Parameter(torch.rand(components, *event_shape))
        self.logits = nn.Parameter(torch.zeros(components))
        # A tuple keeps it unregistered: its weights belong to the model and are saved once.
        self._posterior = (posterior,)
        self._scaling = () if scaling is None else (scaling,)

    def initialise(self, batch: Tensor, mask: Tensor | None = None) -> None:
        """Sets the pseudo-inputs to datapoints, drawn with replacement if there are too few."""
        if self.start == "data":
            count = len(self.pseudo_inputs)
            for scaling in self._scaling:
                batch = scaling(batch, mask)
            index = torch.randperm(len(batch)) if len(batch) >= count else torch.randint(len(batch), (count,))
            self.pseudo_inputs.data.copy_(batch[index[:count].to(batch.device)])

    def forward(self, y: Tensor | None = None) -> TorchDistributionMixin:
        """The prior, with batch shape ()."""
        posterior = self._posterior[0]
        with evaluation_mode(posterior):  # a prior has no dropout noise and no minibatch statistics
            components = posterior(self.pseudo_inputs)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)

    def __str__(self) -> str:
        return f"mixture of q(z | u) at {len(self.logits)} pseudo-inputs"


@component("label_normal", "prior")
class LabelNormalPrior(nn.Module):
    """p(z | y) = N(loc(y), diag(scale(y)^2)), loc and scale from a network of the label.

    Args:
        latent_dim: number of latent dimensions.
        label_dim: number of classes or width of the label.
        network: the network from the label to loc and scale.
        scale_by: what the scale is of its number, as of the family `normal`.
    """

    def __init__(
        self,
        latent_dim: int,
        label_dim: int,
        *,
        network: Annotated[Any, Kind("network")] = {"mlp": {"hidden": ()}},  # noqa: B006 (only read)
        scale_by: ScaleBy = "softplus",
    ) -> None:
        super().__init__()
        if not label_dim:
            raise InputError(
                "prior label_normal is p(z | y), but the model has no labels; declare conditional_vae on labelled data"
            )
        family = Normal((latent_dim,), scale_by=scale_by)
        built = build("network", network, input_shape=(label_dim,), output_shape=family.unconstrained_shape)
        self.conditional = Conditional(built, family, (label_dim,))

    def forward(self, y: Tensor | None = None) -> TorchDistributionMixin:
        """The prior of each label, with batch shape (batch,)."""
        if y is None:
            raise InputError("prior label_normal is p(z | y), but no labels were given")
        parameter = next(self.parameters())
        return self.conditional(one_hot(y, self.conditional.input_shape[0]).to(parameter))

    def __str__(self) -> str:
        return f"{self.conditional} given y"
