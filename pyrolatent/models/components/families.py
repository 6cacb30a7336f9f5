"""Families that can be declared by name, and Pyro's distributions that can be declared by the name of their class."""

import inspect
from typing import Annotated, Any, Literal

import pyro.distributions as dist
import torch
from annotated_types import Ge, Gt, Le
from pyro.distributions import constraints
from pyro.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    PowerTransform,
    SigmoidTransform,
    SoftplusTransform,
)
from torch import Tensor, nn
from torch.distributions.transforms import Transform

from pyrolatent.declaration import Component, Kind, PositiveFloat, PositiveInt, build, component, register
from pyrolatent.errors import InputError
from pyrolatent.models.components import distributions as ours
from pyrolatent.models.components.family import OTHER_PARAMETRISATIONS, Family, continuous

_TINY = 1e-6
"""Floor of positive parameters that have no option for it, so that none rounds to zero."""

Levels = Annotated[int, Ge(2), Le(65536)]
Chosen = Literal["predicted", "learned", "learned_each"] | PositiveFloat
"""A positive parameter: predicted by the network for each element, learned (one number, or one per element of the
event), or known."""


ScaleBy = Literal["softplus", "log_scale", "log_variance"]
"""What the number of a scale is."""
SCALES: dict[str, Transform] = {
    "softplus": SoftplusTransform(),
    "log_scale": ExpTransform(),
    "log_variance": ComposeTransform([AffineTransform(0.0, 0.5), ExpTransform()]),
    "precision": ComposeTransform(
        [SoftplusTransform(), AffineTransform(_TINY, 1.0), PowerTransform(torch.tensor(-0.5))]
    ),
}
"""Maps from real numbers to scales, above their floor."""


class _PositiveSoftplus(SoftplusTransform):
    """Softplus that does not round to 0."""

    def _call(self, x: Tensor) -> Tensor:
        return super()._call(x).clamp(min=torch.finfo(x.dtype).tiny)


def _how(**parameters: Chosen) -> dict[str, Any]:
    """The constants and learned parameters of a Family."""
    return {
        "constants": {name: value for name, value in parameters.items() if not isinstance(value, str)},
        "learned": {
            name: "shared" if value == "learned" else "each"
            for name, value in parameters.items()
            if value in ("learned", "learned_each")
        },
    }


@component("bernoulli", "likelihood", "posterior")
class Bernoulli(Family):
    """p(x) = prod_i p_i^x_i (1 - p_i)^(1 - x_i) over {0, 1}, p = sigmoid(u)."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, ours.Bernoulli)


@component("continuous_bernoulli", "likelihood")
class ContinuousBernoulli(Family):
    """p(x) = prod_i u_i exp(u_i x_i) / (exp(u_i) - 1) on [0, 1], exact for every u.

    Loaiza-Ganem and Cunningham 2019, 1907.06845.
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, ours.ContinuousBernoulli)


@component("zero_one_inflated", "likelihood")
class ZeroOneInflated(Family):
    """p = prod_i [pi_0 delta_0 + pi_1 delta_1 + (1 - pi_0 - pi_1) f](x_i) on [0, 1], f a density.

    Ospina and Ferrari 2010, 0705.0700.

    Args:
        event_shape: shape of one value.
        between: f, the uniform density or a beta density with two predicted concentrations.
        max_concentration: upper bound of the beta's concentrations.
    """

    measure = "mixed (mass at 0 and 1, density between)"

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        between: Literal["uniform", "beta"] = "beta",
        max_concentration: PositiveFloat = 1e3,
    ) -> None:
        names = ("concentration1", "concentration0")
        super().__init__(
            event_shape,
            ours.ZeroOneInflatedBeta,
            constants=dict.fromkeys(names, 1.0) if between == "uniform" else None,
            floors=dict.fromkeys(names, _TINY),
            ceilings=dict.fromkeys(names, max_concentration),
            axes={"logits": 3},
        )


@component("categorical", "likelihood")
class Categorical(Family):
    """P(x_i = k / (levels - 1)) = softmax(u_i)_k: any distribution over the levels of each element.

    Args:
        event_shape: shape of one value.
        levels: number of levels in [0, 1]: 256 for bytes / 255, 17 for scikit-learn's digits / 16.
    """

    def __init__(self, event_shape: tuple[int, ...], *, levels: Levels = 256) -> None:
        super().__init__(event_shape, ours.CategoricalLevels, axes={"logits": levels})


@component("discretized_logistic", "likelihood")
class DiscretizedLogistic(Family):
    """P(x_i = k / (levels - 1)): a mixture of logistics rounded to the nearest level, with tails at both ends.

    P(x) = sum_c w_c [F((x + step / 2 - loc_c) / scale_c) - F((x - step / 2 - loc_c) / scale_c)], F = sigmoid,
    step = 1 / (levels - 1) (Salimans et al. 2017, 1701.05517).

    Args:
        event_shape: shape of one value.
        levels: number of levels in [0, 1].
        components: number of logistics per element.
        min_scale: lower bound of the scales, in units of x.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        levels: Levels = 256,
        components: PositiveInt = 1,
        min_scale: PositiveFloat = 1e-4,
    ) -> None:
        super().__init__(
            event_shape,
            ours.DiscretizedLogistic,
            constants={"levels": levels} | ({"logits": None} if components == 1 else {}),
            floors={"scale": min_scale},
            axes=dict.fromkeys(("loc", "scale", "logits"), components),
        )


@component("normal", "likelihood", "posterior")
class Normal(Family):
    """p(x) = prod_i N(x_i; loc_i, scale_i^2), the scale or the precision predicted with the mean, learned, or known.

    Args:
        event_shape: shape of one value.
        scale: "predicted" by the network for each element, "learned" (one number, of x as networks see it),
            "learned_each" (one per element of the event), or the known standard deviation, in the units of the data.
        min_scale: lower bound of a predicted or learned scale, in the units of the data; without one, a constant pixel
            would drive the density to infinity.
        scale_by: what a predicted or learned scale is of its number u: softplus(u), exp(u) if u is a "log_scale", or
            exp(u / 2) if it is a "log_variance".
        precision: 1 / scale^2, in the place of `scale`: "predicted" (then softplus of its number), "learned",
            "learned_each", or known.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        scale: Chosen = "predicted",
        min_scale: Annotated[float, Ge(0)] = 1e-3,
        scale_by: ScaleBy = "softplus",
        precision: Chosen | None = None,
    ) -> None:
        if precision is not None:
            if scale != "predicted" or scale_by != "softplus":
                raise InputError("normal has a scale or a precision; leave out scale and scale_by, or precision")
            scale = precision if isinstance(precision, str) else precision**-0.5
        if scale_by != "softplus" and not isinstance(scale, str):
            raise InputError(
                f"scale_by is how a number becomes a scale, but the scale is known, {scale:g}; leave it out"
            )
        maps = {"scale": SCALES[scale_by if precision is None else "precision"]}
        super().__init__(event_shape, dist.Normal, floors={"scale": min_scale}, maps=maps, **_how(scale=scale))


@component("laplace", "likelihood", "posterior")
class Laplace(Family):
    """p(x) = prod_i exp(-|x_i - loc_i| / scale_i) / (2 scale_i).

    Args:
        event_shape: shape of one value.
        scale: mean absolute deviation, in units of x: "predicted", "learned", "learned_each", or known.
        min_scale: lower bound of a predicted or learned scale.
    """

    def __init__(
        self, event_shape: tuple[int, ...], *, scale: Chosen = "predicted", min_scale: Annotated[float, Ge(0)] = 1e-3
    ) -> None:
        super().__init__(event_shape, dist.Laplace, floors={"scale": min_scale}, **_how(scale=scale))


@component("student_t", "likelihood", "posterior")
class StudentT(Family):
    """p(x) = prod_i t(x_i; df_i, loc_i, scale_i), t proportional to (1 + ((x - loc) / scale)^2 / df)^(-(df + 1) / 2).

    Args:
        event_shape: shape of one value.
        df: degrees of freedom, "predicted", "learned", "learned_each", or known; above 1, so that a mean exists.
        scale: scale in units of x: "predicted", "learned", "learned_each", or known.
        min_df: lower bound of predicted or learned degrees of freedom; above 2 the variance is finite.
        min_scale: lower bound of a predicted or learned scale.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        df: Literal["predicted", "learned", "learned_each"] | Annotated[float, Gt(1)] = "predicted",
        scale: Chosen = "predicted",
        min_df: Annotated[float, Ge(1)] = 2.0,
        min_scale: Annotated[float, Ge(0)] = 1e-3,
    ) -> None:
        floors = {"df": min_df, "scale": min_scale}
        super().__init__(event_shape, dist.StudentT, floors=floors, **_how(df=df, scale=scale))


@component("log_normal", "likelihood", "posterior")
class LogNormal(Family):
    """log x_i ~ N(loc_i, scale_i^2), x > 0.

    Args:
        event_shape: shape of one value.
        scale: standard deviation of log x: "predicted", "learned", "learned_each", or known.
        min_scale: lower bound of a predicted or learned scale.
    """

    def __init__(
        self, event_shape: tuple[int, ...], *, scale: Chosen = "predicted", min_scale: Annotated[float, Ge(0)] = 1e-3
    ) -> None:
        super().__init__(event_shape, ours.LogNormal, floors={"scale": min_scale}, **_how(scale=scale))


@component("exponential", "likelihood", "posterior")
class Exponential(Family):
    """p(x) = prod_i rate_i exp(-rate_i x_i), x >= 0; a draw is -log(1 - v) / rate, v uniform.

    Args:
        event_shape: shape of one value.
        max_rate: upper bound of the rate, in units of 1 / x; without one, a pixel that is always 0 would drive the
            density to infinity.
    """

    def __init__(self, event_shape: tuple[int, ...], *, max_rate: PositiveFloat = 1e3) -> None:
        super().__init__(event_shape, dist.Exponential, floors={"rate": _TINY}, ceilings={"rate": max_rate})


@component("gamma", "likelihood", "posterior")
class Gamma(Family):
    """p(x) = prod_i rate_i^c_i x_i^(c_i - 1) exp(-rate_i x_i) / Gamma(c_i), x > 0, with real concentrations c_i.

    Draws have pathwise gradients for any concentration (Figurnov et al. 2018, 1805.08498). At x = 0 the density is 0 or
    infinite: for data with exact zeros declare another likelihood.

    Args:
        event_shape: shape of one value.
        concentration: c, "predicted", "learned", "learned_each", or known.
        rate: rate in units of 1 / x: "predicted", "learned", "learned_each", or known.
        max_concentration: upper bound of a predicted or learned concentration; the standard deviation stays above
            the mean / sqrt(max_concentration).
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        concentration: Chosen = "predicted",
        rate: Chosen = "predicted",
        max_concentration: PositiveFloat = 1e3,
    ) -> None:
        super().__init__(
            event_shape,
            dist.Gamma,
            floors={"concentration": _TINY, "rate": _TINY},
            ceilings={"concentration": max_concentration},
            **_how(concentration=concentration, rate=rate),
        )


@component("beta", "likelihood", "posterior")
class Beta(Family):
    """p(x) = prod_i x_i^(a_i - 1) (1 - x_i)^(b_i - 1) / B(a_i, b_i), 0 < x < 1, a and b the concentrations.

    At exactly 0 and 1 the density is 0 or infinite: for such data declare zero_one_inflated or continuous_bernoulli.

    Args:
        event_shape: shape of one value.
        max_concentration: upper bound of a and b; without one, a constant pixel would drive the density to infinity.
    """

    def __init__(self, event_shape: tuple[int, ...], *, max_concentration: PositiveFloat = 1e3) -> None:
        names = ("concentration1", "concentration0")
        super().__init__(
            event_shape,
            dist.Beta,
            floors=dict.fromkeys(names, _TINY),
            ceilings=dict.fromkeys(names, max_concentration),
        )


@component("poisson", "likelihood")
class Poisson(Family):
    """P(x) = prod_i rate_i^x_i exp(-rate_i) / x_i! over counts."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, ours.Poisson, floors={"rate": _TINY})


@component("negative_binomial", "likelihood")
class NegativeBinomial(Family):
    """P(x) = prod_i C(x_i + r_i - 1, x_i) p_i^x_i (1 - p_i)^r_i over counts, p = sigmoid(u); its mean is r exp(u).

    Args:
        event_shape: shape of one value.
        total_count: r, the inverse dispersion: "predicted", "learned", "learned_each", or known.
    """

    def __init__(self, event_shape: tuple[int, ...], *, total_count: Chosen = "predicted") -> None:
        super().__init__(
            event_shape, ours.NegativeBinomial, floors={"total_count": _TINY}, **_how(total_count=total_count)
        )


@component("zero_inflated_poisson", "likelihood")
class ZeroInflatedPoisson(Family):
    """P(x) = prod_i g_i [x_i = 0] + (1 - g_i) Poisson(x_i; rate_i) over counts, g = sigmoid(u) (Lambert 1992)."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, ours.ZeroInflatedPoisson, floors={"rate": _TINY})


@component("zero_inflated_negative_binomial", "likelihood")
class ZeroInflatedNegativeBinomial(Family):
    """P(x) = prod_i g_i [x_i = 0] + (1 - g_i) NegativeBinomial(x_i; r_i, p_i) over counts, g and p by sigmoid.

    Args:
        event_shape: shape of one value.
        total_count: r, the inverse dispersion: "predicted", "learned", "learned_each", or known.
    """

    def __init__(self, event_shape: tuple[int, ...], *, total_count: Chosen = "predicted") -> None:
        super().__init__(
            event_shape,
            ours.ZeroInflatedNegativeBinomial,
            floors={"total_count": _TINY},
            **_how(total_count=total_count),
        )


@component("one_hot_categorical", "likelihood", "posterior")
class OneHotCategorical(Family):
    """p(x) = prod_c p_c^x_c over one-hot vectors, p = softmax(u); the classes are the last axis of the event."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, dist.OneHotCategorical)


@component("relaxed_bernoulli", "likelihood", "posterior")
class RelaxedBernoulli(Family):
    """x_i = sigmoid((u_i + logit(v_i)) / temperature), v uniform, 0 < x < 1 (Maddison et al. 2017, 1611.00712).

    Args:
        event_shape: shape of one value.
        temperature: temperature; near 0 the values are close to 0 and 1.
    """

    def __init__(self, event_shape: tuple[int, ...], *, temperature: PositiveFloat = 0.5) -> None:
        super().__init__(event_shape, ours.RelaxedBernoulli, constants={"temperature": temperature})


@component("relaxed_one_hot_categorical", "likelihood", "posterior")
class RelaxedOneHotCategorical(Family):
    """x = softmax((u + g) / temperature), g standard Gumbel: a point of the simplex (Maddison et al. 2017, 1611.00712).

    Args:
        event_shape: shape of one value; the classes are its last axis.
        temperature: temperature; near 0 the values are close to one-hot vectors.
    """

    def __init__(self, event_shape: tuple[int, ...], *, temperature: PositiveFloat = 0.5) -> None:
        super().__init__(event_shape, ours.RelaxedOneHotCategorical, constants={"temperature": temperature})


@component("multivariate_normal", "likelihood", "posterior")
class MultivariateNormal(Family):
    """p(x) = N(x; loc, L L') over vectors, L lower triangular with a positive diagonal.

    Args:
        event_shape: shape of one value; vectors are along its last axis.
        min_scale: lower bound of the diagonal of L, in units of x.
    """

    def __init__(self, event_shape: tuple[int, ...], *, min_scale: Annotated[float, Ge(0)] = 1e-3) -> None:
        super().__init__(event_shape, dist.MultivariateNormal, floors={"scale_tril": min_scale})


@component("low_rank_normal", "likelihood", "posterior")
class LowRankNormal(Family):
    """p(x) = N(x; loc, W W' + diag(d)) over vectors, W with `rank` columns.

    Args:
        event_shape: shape of one value; vectors are along its last axis.
        rank: number of columns of W.
        min_scale: lower bound of sqrt(d), in units of x.
    """

    def __init__(self, event_shape: tuple[int, ...], *, rank: PositiveInt = 1, min_scale: PositiveFloat = 1e-2) -> None:
        super().__init__(
            event_shape,
            ours.LowRankMultivariateNormal,
            floors={"cov_diag": min_scale**2},
            axes={"cov_factor": rank},
        )


@component("mapped", "posterior")
class Mapped(Family):
    """q(z) of z = T(v), v ~ family over real numbers, T = softplus or sigmoid: log q(z) = log q(v) - sum log |T'(v)|.

    For priors over positive numbers or over (0, 1). Its mean has no closed form.

    Args:
        event_shape: shape of one value.
        onto: "positive" (T = softplus) or "unit_interval" (T = sigmoid).
        family: the posterior family of v.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        onto: Literal["positive", "unit_interval"],
        family: Annotated[Any, Kind("posterior")] = "normal",
    ) -> None:
        nn.Module.__init__(self)
        self.family = build("posterior", family, event_shape=event_shape)
        self.event_shape = torch.Size(event_shape)
        self.event_dims = self.family.event_dims
        self.unconstrained_shape = self.family.unconstrained_shape
        self.onto = onto
        support = self.family(torch.zeros(self.unconstrained_shape)).support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if not isinstance(support, type(constraints.real)):
            raise InputError(
                f"posterior mapped takes a family over real numbers, but {self.family} is over {support}; declare "
                "family: normal, or the family itself as the posterior"
            )

    @property
    def scores_any_value(self) -> bool:  # type: ignore[override]
        """That of the inner family."""
        return self.family.scores_any_value

    def forward(self, unconstrained: Tensor) -> dist.TorchDistribution:
        """The distribution of T(v); the last draw is scored at its v, because T rounds far from 0."""
        transform = _PositiveSoftplus(cache_size=1) if self.onto == "positive" else SigmoidTransform(cache_size=1)
        return dist.TransformedDistribution(self.family(unconstrained), [transform])

    def at_floor(self) -> bool:
        """That of the inner family."""
        return self.family.at_floor()

    def __str__(self) -> str:
        return f"{'softplus' if self.onto == 'positive' else 'sigmoid'} of {self.family}"


BY_CLASS = (
    "AsymmetricLaplace", "Bernoulli", "Beta", "BetaBinomial", "Binomial", "Categorical", "Cauchy", "Chi2",
    "ContinuousBernoulli", "Dirichlet", "DirichletMultinomial", "Exponential", "ExtendedBetaBinomial",
    "ExtendedBinomial", "FisherSnedecor", "Gamma", "GammaPoisson", "Geometric", "Gumbel", "HalfCauchy", "HalfNormal",
    "InverseGamma", "Kumaraswamy", "LKJCholesky", "Laplace", "LogNormal", "Logistic",
    "LowRankMultivariateNormal", "Multinomial", "MultivariateNormal", "MultivariateStudentT",
    "NanMaskedMultivariateNormal", "NanMaskedNormal", "NegativeBinomial", "Normal", "OneHotCategorical",
    "OneHotCategoricalStraightThrough", "OrderedLogistic", "Poisson", "ProjectedNormal", "RelaxedBernoulli",
    "RelaxedBernoulliStraightThrough", "RelaxedOneHotCategorical", "RelaxedOneHotCategoricalStraightThrough",
    "SkewLogistic", "SoftLaplace", "Stable", "StableWithLogProb", "StudentT", "VonMises",
    "Weibull", "ZeroInflatedNegativeBinomial", "ZeroInflatedPoisson",
)  # fmt: skip
"""Pyro's distributions that can be declared by the name of their class."""


def named_by_class(name: str) -> Component:
    """The family of a class of `pyro.distributions`; its options are the parameters, as constants, and `axes`."""
    cls = getattr(dist, name)

    def family(event_shape: tuple[int, ...], *, axes: dict[str, PositiveInt] | None = None, **given: Any) -> Family:
        constants = {
            key: torch.tensor(value) if isinstance(value, list) else value
            for key, value in given.items()
            if value is not None
        }
        built = Family(event_shape, cls, constants=constants, axes=axes)
        options = {key: value for key, value in {"axes": axes, **given}.items() if value is not None}
        built.declaration = {name: options} if options else name  # type: ignore[assignment]
        return built

    event, axes, _ = inspect.signature(family).parameters.values()
    parameters = [event, axes]
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.name == "validate_args" or parameter.name in OTHER_PARAMETRISATIONS:
            continue
        constraint = cls.arg_constraints.get(parameter.name)
        required = parameter.default is parameter.empty or (constraint is not None and constraint.is_discrete)
        default = parameter.empty if required and not continuous(constraint) else None
        parameters.append(inspect.Parameter(parameter.name, inspect.Parameter.KEYWORD_ONLY, default=default))
        family.__annotations__[parameter.name] = int | float | list[float] | None
    family.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    family.__module__ = cls.__module__
    family.__doc__ = f"Pyro's {name}: its parameters come from the network, or are fixed to what is declared here."
    return Component(family, ("event_shape",))


for _name in BY_CLASS:
    if hasattr(dist, _name):
        register("likelihood", _name, named_by_class(_name))
        # A distribution that rounds draws but scores them unrounded is not a density of a latent.
        rounds = _name in ("RelaxedBernoulliStraightThrough", "RelaxedOneHotCategoricalStraightThrough")
        if getattr(dist, _name).has_rsample is True and not rounds:
            register("posterior", _name, named_by_class(_name))
