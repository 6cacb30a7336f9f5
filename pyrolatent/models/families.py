"""Families: unconstrained numbers, as a network gives them, to a Pyro distribution over an event."""

import inspect
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pyro.distributions as dist
import torch
from annotated_types import Ge, Gt, Le
from pyro.distributions import constraints
from pyro.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    SigmoidTransform,
    SoftplusLowerCholeskyTransform,
)
from pyro.distributions.transforms import SoftplusTransform as Softplus
from torch import Tensor, nn
from torch.distributions import transform_to
from torch.distributions.transforms import Transform

from pyrolatent.declaration import Component, Kind, build, component, register
from pyrolatent.errors import InputError
from pyrolatent.models import distributions as ours

_OTHER_PARAMETRISATIONS = {"probs", "gate", "covariance_matrix", "precision_matrix"}
"""Of each set of alternatives one is used: logits, gate_logits and scale_tril."""

_TINY = 1e-6
"""Floor of positive parameters that have no option for one, so that none rounds to zero."""

PositiveInt = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0)]
Levels = Annotated[int, Ge(2), Le(65536)]
Chosen = Literal["predicted", "learned", "learned_each"] | PositiveFloat
"""A positive parameter: predicted by the network for each element, learned (one number, or one for each element of the
event), or known."""


class Family(nn.Module):
    """Maps unconstrained numbers u to a distribution p(v; theta), theta = transform(u), over `event_shape`.

    Each parameter theta_i comes from u by the transform of its constraint: identity for real numbers,
    softplus for positive ones, softmax for the simplex, a Cholesky factor with softplus diagonal for matrices.

    Args:
        event_shape: shape of one value v.
        distribution: a class of `pyro.distributions`.
        constants: parameters that are fixed instead of computed from u; integers and temperatures must be.
        learned: parameters that are trained but do not depend on u: one number ("shared") or one an element ("each").
        floors: lower bounds of positive parameters, and of the diagonals of Cholesky factors.
        ceilings: upper bounds c of positive parameters: t = softplus(u) becomes t / (1 + t / c).
        axes: sizes of parameter axes that the event does not determine, such as the levels of a Categorical's logits.

    Attributes:
        event_dims: how many of the distribution's batch dimensions belong to the event, for `to_event`.
        unconstrained_shape: shape of u without leading dimensions. For elementwise distributions the first axis of
            `event_shape` times the numbers an element (so an image stays an image), else one flat axis.
        measure: what a log_prob is the log of: "mass", "density", or a mixture of both in words.
        scores_any_value: whether it can score a value that it did not draw itself.

    Raises:
        InputError: the distribution cannot be built in this way; the message says why.
    """

    measure: str = "density"
    scores_any_value: ClassVar[bool] = True

    def __init__(
        self,
        event_shape: tuple[int, ...],
        distribution: type[dist.TorchDistribution],
        *,
        constants: Mapping[str, Any] | None = None,
        learned: Mapping[str, Literal["shared", "each"]] | None = None,
        floors: Mapping[str, float] | None = None,
        ceilings: Mapping[str, float] | None = None,
        axes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.distribution = distribution
        self.constants = dict(constants or {})
        self.floors = dict(floors or {})
        self.transforms: dict[str, Transform] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.learned = nn.ParameterDict()
        for name, value in self.constants.items():
            if isinstance(value, float | Tensor):
                self.register_buffer(f"constant_{name}", torch.as_tensor(value), persistent=False)

        own = self._own_event_dim()
        self.event_dims = len(self.event_shape) - own
        batch, event = self.event_shape[: self.event_dims], self.event_shape[self.event_dims :]
        for name, constraint in self._free_parameters().items():
            try:
                transform = _transform(constraint, self.floors.get(name, 1e-12), (ceilings or {}).get(name))
            except NotImplementedError as error:
                raise self._refuse(f"{name!r} has no map from unconstrained numbers ({error})") from error
            trailing = self._trailing_shape(name, constraint, event, (axes or {}).get(name))
            shape = transform.inverse_shape((*batch, *trailing))
            self.transforms[name] = transform
            if name in (learned or {}):
                self.learned[name] = nn.Parameter(torch.zeros(shape if learned[name] == "each" else ()))  # type: ignore[index]
            else:
                self.shapes[name] = torch.Size(shape)
        if not self.shapes:
            raise self._refuse("all of its parameters are known or learned, so that none comes from the network")

        self._elementwise = own == 0
        if self._elementwise:
            self._numbers = {name: math.prod(shape[self.event_dims :]) for name, shape in self.shapes.items()}
            first = sum(self._numbers.values()) * self.event_shape[0]
            self.unconstrained_shape = torch.Size((first, *self.event_shape[1:]))
        else:
            self._numbers = {name: math.prod(shape) for name, shape in self.shapes.items()}
            self.unconstrained_shape = torch.Size((sum(self._numbers.values()),))
        self._probe(batch, event)

    def forward(self, unconstrained: Tensor) -> dist.TorchDistribution:
        """The elementwise distribution.

        Args:
            unconstrained: (..., *unconstrained_shape).

        Returns:
            A distribution whose last `event_dims` batch dimensions still are the event's.
        """
        lead = unconstrained.shape[: unconstrained.dim() - len(self.unconstrained_shape)]
        parameters = {name: self.transforms[name](value) for name, value in self.learned.items()}
        sizes = list(self._numbers.values())
        if self._elementwise:
            stacked = unconstrained.reshape((*lead, sum(sizes), *self.event_shape))
            parts = stacked.movedim(len(lead), -1).split(sizes, dim=-1)
        else:
            parts = unconstrained.split(sizes, dim=-1)
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            parameters[name] = self.transforms[name](part.reshape((*lead, *shape)))
        constants = {name: getattr(self, f"constant_{name}", value) for name, value in self.constants.items()}
        return self.distribution(**parameters, **constants)

    @torch.no_grad()
    def at_floor(self) -> bool:
        """Whether a learned parameter lies within 1% of its floor; predicted ones differ by input and are not asked."""
        return any(
            bool((self.transforms[name](value) <= 1.01 * self.floors[name]).any())
            for name, value in self.learned.items()
            if self.floors.get(name)
        )

    def __str__(self) -> str:
        known = [f"{name}={value}" for name, value in self.constants.items() if value is not None]
        learned = [f"{name} learned" for name in self.learned]
        return f"{self.distribution.__name__}({', '.join([*self.shapes, *learned, *known])})"

    def _refuse(self, reason: str) -> InputError:
        return InputError(f"{self.distribution.__name__} cannot be a family over {tuple(self.event_shape)}: {reason}")

    def _own_event_dim(self) -> int:
        if not self.event_shape:
            raise self._refuse("an event needs at least one dimension")
        try:
            support: Any = self.distribution.support
            own = int(support.event_dim)
        except (AttributeError, NotImplementedError):
            raise self._refuse("the class does not state the dimension of its support") from None
        if own > len(self.event_shape):
            raise self._refuse(f"its events have {own} dimensions")
        return own

    def _free_parameters(self) -> dict[str, constraints.Constraint]:
        stated = self.distribution.arg_constraints
        if not isinstance(stated, Mapping):
            raise self._refuse("the constraints of its parameters depend on each other")
        free = {}
        for name, parameter in inspect.signature(self.distribution).parameters.items():
            if name in self.constants or name in _OTHER_PARAMETRISATIONS:
                continue
            constraint = stated.get(name)
            if _continuous(constraint):
                free[name] = constraint
            elif parameter.default is parameter.empty or (constraint is not None and constraint.is_discrete):
                raise self._refuse(f"{name!r} cannot come from a network and was not given as a constant")
        if not free:
            raise self._refuse("it has no parameter that could come from a network")
        return free

    def _trailing_shape(
        self, name: str, constraint: constraints.Constraint, event: torch.Size, axis: int | None
    ) -> tuple[int, ...]:
        wanted = constraint.event_dim
        shape = event[:wanted] if axis is None else (*event, axis)
        if len(shape) < wanted and len(shape) == 1 and not isinstance(constraint, type(constraints.real_vector)):
            shape = (*event, *event)
        if len(shape) != wanted:
            raise self._refuse(f"declare the size of the last axis of {name!r} with axes: {{{name}: SIZE}}")
        return tuple(shape)

    def _probe(self, batch: torch.Size, event: torch.Size) -> None:
        """Builds the distribution from two sets of numbers and holds it to what a family must be."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                numbers = torch.stack(
                    [torch.zeros(self.unconstrained_shape), torch.full(self.unconstrained_shape, 0.5)]
                )
                both = self(numbers)
                shapes = (both.batch_shape, both.event_shape)
                supports = {repr(self(row).support) for row in numbers}
                self.measure = "mass" if both.support.is_discrete else self.measure
                scored = both.log_prob(both.sample()).shape
                self(numbers).expand((3, *both.batch_shape))  # as a plate does
            except Exception as error:  # whatever a foreign class raises is the reason
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise self._refuse(f"it cannot be built, drawn and scored ({reason})") from error
        if shapes != ((2, *batch), tuple(event)) or scored != shapes[0]:
            raise self._refuse(f"its class does not state its parameters' shapes (it has {shapes[0]} and {shapes[1]})")
        if len(supports) > 1:
            raise self._refuse("its support moves with its parameters, so data can fall outside of it")


class _CholeskyFloor(SoftplusLowerCholeskyTransform):
    """L = softplus on the diagonal plus a floor, identity below it."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def _call(self, x: Tensor) -> Tensor:
        return super()._call(x) + self.floor * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(y - self.floor * torch.eye(y.shape[-1], dtype=y.dtype, device=y.device))


class _PositiveSoftplus(Softplus):
    """softplus that does not round to 0."""

    def _call(self, x: Tensor) -> Tensor:
        return super()._call(x).clamp(min=torch.finfo(x.dtype).tiny)


class _Ceiling(Transform):
    """t -> t / (1 + t / ceiling), from positive numbers to those below the ceiling."""

    domain = constraints.positive
    codomain = constraints.positive
    bijective = True
    sign = 1

    def __init__(self, ceiling: float) -> None:
        super().__init__()
        self.ceiling = ceiling

    def _call(self, x: Tensor) -> Tensor:
        return x / (1 + x / self.ceiling)

    def _inverse(self, y: Tensor) -> Tensor:
        return y / (1 - y / self.ceiling)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -2 * torch.log1p(x / self.ceiling)


def _continuous(constraint: constraints.Constraint | None) -> bool:
    """Whether a parameter with this constraint can come from a network."""
    return constraint is not None and not constraint.is_discrete and not constraints.is_dependent(constraint)


def _transform(constraint: constraints.Constraint, floor: float, ceiling: float | None = None) -> Transform:
    """Softplus rather than exp for positive numbers; torch's own transform for every other constraint."""
    if isinstance(constraint, type(constraints.lower_cholesky)):
        return _CholeskyFloor(floor)
    if isinstance(constraint, type(constraints.independent(constraints.real, 1))):
        return _transform(constraint.base_constraint, floor, ceiling)
    if isinstance(constraint, type(constraints.positive) | type(constraints.nonnegative)):
        lower = float(constraint.lower_bound) + floor
        steps = [_Ceiling(ceiling)] if ceiling else []
        return ComposeTransform([Softplus(), *steps, *([AffineTransform(lower, 1.0)] if lower else [])])
    return transform_to(constraint)


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


@component("likelihood", "bernoulli")
@component("posterior", "bernoulli")
class Bernoulli(Family):
    """p(x) = prod_i p_i^x_i (1 - p_i)^(1 - x_i) over {0, 1}, p = sigmoid(u)."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, dist.Bernoulli)


@component("likelihood", "continuous_bernoulli")
class ContinuousBernoulli(Family):
    """p(x) = prod_i u_i exp(u_i x_i) / (exp(u_i) - 1) on [0, 1]: the Bernoulli made a density, exact for every u.

    Loaiza-Ganem and Cunningham 2019, 1907.06845.
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, ours.ContinuousBernoulli)


@component("likelihood", "zero_one_inflated")
class ZeroOneInflated(Family):
    """p = prod_i [pi_0 delta_0 + pi_1 delta_1 + (1 - pi_0 - pi_1) f](x_i) on [0, 1], f a density.

    Ospina and Ferrari 2010, 0705.0700.

    Args:
        event_shape: shape of one value.
        between: f, the uniform density or a beta density whose two concentrations are predicted.
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


@component("likelihood", "categorical")
class Categorical(Family):
    """P(x_i = k / (levels - 1)) = softmax(u_i)_k: any distribution over the levels of each element.

    Args:
        event_shape: shape of one value.
        levels: number of levels of a value in [0, 1]: 256 for bytes / 255, 17 for scikit-learn's digits / 16.
    """

    def __init__(self, event_shape: tuple[int, ...], *, levels: Levels = 256) -> None:
        super().__init__(event_shape, ours.CategoricalLevels, axes={"logits": levels})


@component("likelihood", "discretized_logistic")
class DiscretizedLogistic(Family):
    """P(x_i = k / (levels - 1)): a mixture of logistics rounded to the nearest level, open at both ends.

    P(x) = sum_c w_c [F((x + step / 2 - loc_c) / scale_c) - F((x - step / 2 - loc_c) / scale_c)], F = sigmoid,
    step = 1 / (levels - 1) (Salimans et al. 2017, 1701.05517).

    Args:
        event_shape: shape of one value.
        levels: number of levels of a value in [0, 1].
        components: number of logistics an element.
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


@component("likelihood", "normal")
@component("posterior", "normal")
class Normal(Family):
    """p(x) = prod_i N(x_i; loc_i, scale_i^2), the scale predicted with the mean, learned, or known.

    Args:
        event_shape: shape of one value.
        scale: "predicted" by the network for each element, "learned" (one number), "learned_each" (one for each
            element of the event), or the known standard deviation, in the data's own units.
        min_scale: lower bound of a predicted or learned scale; without one, a pixel that is constant in the data
            would drive the density to infinity.
    """

    def __init__(
        self, event_shape: tuple[int, ...], *, scale: Chosen = "predicted", min_scale: Annotated[float, Ge(0)] = 1e-3
    ) -> None:
        super().__init__(event_shape, dist.Normal, floors={"scale": min_scale}, **_how(scale=scale))


@component("likelihood", "laplace")
@component("posterior", "laplace")
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


@component("likelihood", "student_t")
@component("posterior", "student_t")
class StudentT(Family):
    """p(x) = prod_i t(x_i; df_i, loc_i, scale_i), t proportional to (1 + ((x - loc) / scale)^2 / df)^(-(df + 1) / 2).

    Args:
        event_shape: shape of one value.
        df: degrees of freedom, "predicted", "learned", "learned_each", or known; above 1, so that a mean exists.
        scale: in units of x: "predicted", "learned", "learned_each", or known.
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


@component("likelihood", "log_normal")
@component("posterior", "log_normal")
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
        super().__init__(event_shape, dist.LogNormal, floors={"scale": min_scale}, **_how(scale=scale))


@component("likelihood", "exponential")
@component("posterior", "exponential")
class Exponential(Family):
    """p(x) = prod_i rate_i exp(-rate_i x_i), x >= 0; a draw is -log(1 - v) / rate, v uniform.

    Args:
        event_shape: shape of one value.
        max_rate: upper bound of the rate, in units of 1 / x; without one, a pixel that is always 0 would drive the
            density to infinity.
    """

    def __init__(self, event_shape: tuple[int, ...], *, max_rate: PositiveFloat = 1e3) -> None:
        super().__init__(event_shape, dist.Exponential, floors={"rate": _TINY}, ceilings={"rate": max_rate})


@component("likelihood", "gamma")
@component("posterior", "gamma")
class Gamma(Family):
    """p(x) = prod_i rate_i^c_i x_i^(c_i - 1) exp(-rate_i x_i) / Gamma(c_i), x > 0, c the concentration, whole or not.

    Draws have pathwise gradients for any concentration (Figurnov et al. 2018, 1805.08498). At x = 0 the density is 0 or
    infinite: for data with exact zeros declare another likelihood.

    Args:
        event_shape: shape of one value.
        concentration: c, "predicted", "learned", "learned_each", or known.
        rate: in units of 1 / x: "predicted", "learned", "learned_each", or known.
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


@component("likelihood", "beta")
@component("posterior", "beta")
class Beta(Family):
    """p(x) = prod_i x_i^(a_i - 1) (1 - x_i)^(b_i - 1) / B(a_i, b_i), 0 < x < 1, a and b the concentrations.

    At exactly 0 and 1 the density is 0 or infinite: for such data declare zero_one_inflated or continuous_bernoulli.

    Args:
        event_shape: shape of one value.
        max_concentration: upper bound of a and b; without one, a pixel that is constant in the data would drive the
            density to infinity.
    """

    def __init__(self, event_shape: tuple[int, ...], *, max_concentration: PositiveFloat = 1e3) -> None:
        names = ("concentration1", "concentration0")
        super().__init__(
            event_shape,
            dist.Beta,
            floors=dict.fromkeys(names, _TINY),
            ceilings=dict.fromkeys(names, max_concentration),
        )


@component("likelihood", "poisson")
class Poisson(Family):
    """P(x) = prod_i rate_i^x_i exp(-rate_i) / x_i! over counts."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, dist.Poisson, floors={"rate": _TINY})


@component("likelihood", "negative_binomial")
class NegativeBinomial(Family):
    """P(x) = prod_i C(x_i + r_i - 1, x_i) p_i^x_i (1 - p_i)^r_i over counts, p = sigmoid(u); its mean is r exp(u).

    Args:
        event_shape: shape of one value.
        total_count: r, the inverse dispersion: "predicted", "learned", "learned_each", or known.
    """

    def __init__(self, event_shape: tuple[int, ...], *, total_count: Chosen = "predicted") -> None:
        super().__init__(
            event_shape, dist.NegativeBinomial, floors={"total_count": _TINY}, **_how(total_count=total_count)
        )


@component("likelihood", "zero_inflated_poisson")
class ZeroInflatedPoisson(Family):
    """P(x) = prod_i g_i [x_i = 0] + (1 - g_i) Poisson(x_i; rate_i) over counts, g = sigmoid(u) (Lambert 1992)."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, ours.ZeroInflatedPoisson, floors={"rate": _TINY})


@component("likelihood", "zero_inflated_negative_binomial")
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


@component("likelihood", "one_hot_categorical")
@component("posterior", "one_hot_categorical")
class OneHotCategorical(Family):
    """p(x) = prod_c p_c^x_c over one-hot vectors, p = softmax(u); the classes are the last axis of the event."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, dist.OneHotCategorical)


@component("likelihood", "relaxed_bernoulli")
@component("posterior", "relaxed_bernoulli")
class RelaxedBernoulli(Family):
    """x_i = sigmoid((u_i + logit(v_i)) / temperature), v uniform, 0 < x < 1 (Maddison et al. 2017, 1611.00712).

    Args:
        event_shape: shape of one value.
        temperature: near 0 the values are near 0 and 1.
    """

    def __init__(self, event_shape: tuple[int, ...], *, temperature: PositiveFloat = 0.5) -> None:
        super().__init__(event_shape, ours.RelaxedBernoulli, constants={"temperature": temperature})


@component("likelihood", "relaxed_one_hot_categorical")
@component("posterior", "relaxed_one_hot_categorical")
class RelaxedOneHotCategorical(Family):
    """x = softmax((u + g) / temperature), g standard Gumbel: a point of the simplex (Maddison et al. 2017, 1611.00712).

    Args:
        event_shape: shape of one value; the classes are its last axis.
        temperature: near 0 the values are near one-hot.
    """

    def __init__(self, event_shape: tuple[int, ...], *, temperature: PositiveFloat = 0.5) -> None:
        super().__init__(event_shape, ours.RelaxedOneHotCategorical, constants={"temperature": temperature})


@component("likelihood", "multivariate_normal")
@component("posterior", "multivariate_normal")
class MultivariateNormal(Family):
    """p(x) = N(x; loc, L L') over vectors, L lower triangular with a positive diagonal.

    Args:
        event_shape: shape of one value; vectors are along its last axis.
        min_scale: lower bound of the diagonal of L, in units of x.
    """

    def __init__(self, event_shape: tuple[int, ...], *, min_scale: Annotated[float, Ge(0)] = 1e-3) -> None:
        super().__init__(event_shape, dist.MultivariateNormal, floors={"scale_tril": min_scale})


@component("likelihood", "low_rank_normal")
@component("posterior", "low_rank_normal")
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
            dist.LowRankMultivariateNormal,
            floors={"cov_diag": min_scale**2},
            axes={"cov_factor": rank},
        )


@component("posterior", "mapped")
class Mapped(Family):
    """q(z) of z = T(v), v ~ family over real numbers, T = softplus or sigmoid: log q(z) = log q(v) - sum log |T'(v)|.

    For priors over positive numbers or over (0, 1). It has no closed mean.

    Args:
        event_shape: shape of one value.
        onto: "positive" numbers by softplus, or the "unit_interval" by sigmoid.
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
        """As the family that is mapped."""
        return self.family.scores_any_value

    def forward(self, unconstrained: Tensor) -> dist.TorchDistribution:
        """The distribution of T(v); the last draw is scored at its v, since T rounds far from 0."""
        transform = _PositiveSoftplus(cache_size=1) if self.onto == "positive" else SigmoidTransform(cache_size=1)
        return dist.TransformedDistribution(self.family(unconstrained), [transform])

    def at_floor(self) -> bool:
        """As the family that is mapped."""
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
"""The distributions of Pyro that can be declared by the name of their class."""


def named_by_class(name: str) -> Component:
    """The family of a class of `pyro.distributions`: options are its parameters, as constants, and `axes`."""
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
        if parameter.name == "validate_args" or parameter.name in _OTHER_PARAMETRISATIONS:
            continue
        constraint = cls.arg_constraints.get(parameter.name)
        required = parameter.default is parameter.empty or (constraint is not None and constraint.is_discrete)
        default = parameter.empty if required and not _continuous(constraint) else None
        parameters.append(inspect.Parameter(parameter.name, inspect.Parameter.KEYWORD_ONLY, default=default))
        family.__annotations__[parameter.name] = int | float | list[float] | None
    family.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    family.__module__ = cls.__module__
    family.__doc__ = f"Pyro's {name}: its parameters come from the network, or are fixed to what is declared here."
    return Component(family, ("event_shape",))


for _name in BY_CLASS:
    if hasattr(dist, _name):
        register("likelihood", _name, named_by_class(_name))
        # What rounds its draws but scores them unrounded is no density of a latent.
        rounds = _name in ("RelaxedBernoulliStraightThrough", "RelaxedOneHotCategoricalStraightThrough")
        if getattr(dist, _name).has_rsample is True and not rounds:
            register("posterior", _name, named_by_class(_name))
