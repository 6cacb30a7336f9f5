"""Families: maps from the unconstrained outputs of a network to a Pyro distribution over an event."""

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    SoftplusLowerCholeskyTransform,
)
from pyro.distributions.transforms import SoftplusTransform as Softplus
from torch import Tensor, nn
from torch.distributions import transform_to
from torch.distributions.transforms import Transform

from pyrolatent.declaration import choices, declared_name
from pyrolatent.errors import InputError
from pyrolatent.models.components.distributions import Levels, LowRankMultivariateNormal, Transformed

if TYPE_CHECKING:
    from pyrolatent.models.components.scaling import Affine

_IN_UNITS: tuple[tuple[dict[str, int], tuple[type, ...]], ...] = (
    (
        {"loc": 1, "scale": 1},
        (dist.AsymmetricLaplace, dist.Cauchy, dist.Gumbel, dist.Laplace, dist.Logistic, dist.Normal, dist.SkewLogistic,
         dist.SoftLaplace, dist.Stable, dist.StudentT),
    ),
    ({"loc": 1, "scale_tril": 1}, (dist.MultivariateNormal, dist.MultivariateStudentT)),
    ({"loc": 1, "cov_factor": 1, "cov_diag": 2}, (LowRankMultivariateNormal,)),
    ({"scale": 1}, (dist.HalfCauchy, dist.HalfNormal, dist.Weibull)),
    ({"rate": -1}, (dist.Exponential, dist.Gamma)),
    ({"rate": 1}, (dist.InverseGamma,)),
)  # fmt: skip
UNITS = {distribution: powers for powers, several in _IN_UNITS for distribution in several}
"""The power of the unit of x in each parameter of the distributions that stay in their class when x is multiplied.

Those with a `loc` are over the real line, and x may also be moved; the others are over positive numbers.
"""

OTHER_PARAMETRISATIONS = {"probs", "gate", "covariance_matrix", "precision_matrix"}
"""Alternative parametrisations that are not used: logits, gate_logits and scale_tril are."""


class Family(nn.Module):
    """Maps unconstrained numbers u to a distribution p(v; theta), theta = transform(u), over `event_shape`.

    Each parameter theta_i is u under the transform of its constraint: identity for real numbers, softplus for positive
    ones, softmax for the simplex, a Cholesky factor with softplus diagonal for matrices.

    Args:
        event_shape: shape of one value v.
        distribution: a class of `pyro.distributions`.
        constants: parameters that are fixed instead of computed from u; integers and temperatures must be.
        learned: parameters that are trained but do not depend on u: one number ("shared") or one per element ("each").
        floors: lower bounds of positive parameters, and of the diagonals of Cholesky factors.
        ceilings: upper bounds c of positive parameters: t = softplus(u) becomes t / (1 + t / c).
        maps: maps from real to positive numbers, of positive parameters that are not a softplus.
        axes: sizes of parameter axes that the event does not determine, such as the levels of a Categorical's logits.

    Attributes:
        event_dims: number of the distribution's batch dimensions that belong to the event, for `to_event`.
        unconstrained_shape: shape of u without leading dimensions. For elementwise distributions it is `event_shape`
            with its first axis multiplied by the numbers per element (so an image stays an image), else one flat axis.
        measure: the measure of exp(log_prob): "mass", "density", or a mixture of both in words.
        scores_any_value: whether the distribution can score a value that it did not draw itself.
        starts_at_data: whether the bias of a network is initialised from the data without being asked.
        own_scaling: the `Scaling` of x that is part of the family; None for most.

    Raises:
        InputError: the distribution cannot be a family; the message has the reason.
    """

    measure: str = "density"
    scores_any_value: ClassVar[bool] = True
    starts_at_data: ClassVar[bool] = False
    own_scaling: Any = None
    _scaling: tuple[Any, ...] = ()  # a tuple keeps it unregistered: it belongs to the model and is saved once

    def __init__(
        self,
        event_shape: tuple[int, ...],
        distribution: type[dist.TorchDistribution],
        *,
        constants: Mapping[str, Any] | None = None,
        learned: Mapping[str, Literal["shared", "each"]] | None = None,
        floors: Mapping[str, float] | None = None,
        ceilings: Mapping[str, float] | None = None,
        maps: Mapping[str, Transform] | None = None,
        axes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(distribution, type):
            raise InputError(f"a family takes a class of pyro.distributions, but was given {distribution}")
        self.event_shape = torch.Size(event_shape)
        self.distribution = distribution
        self.constants = dict(constants or {})
        self.floors, self.ceilings = dict(floors or {}), dict(ceilings or {})
        self.maps = dict(maps or {})
        self.transforms: dict[str, Transform] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.learned = nn.ParameterDict()
        for name, value in self.constants.items():
            if isinstance(value, float | Tensor):
                self.register_buffer(f"constant_{name}", torch.as_tensor(value), persistent=False)

        own = self._own_event_dim()
        self.event_dims = len(self.event_shape) - own
        batch, event = self.event_shape[: self.event_dims], self.event_shape[self.event_dims :]
        free = self._free_parameters()
        settings = {"learned": learned, "floors": floors, "ceilings": ceilings, "axes": axes}
        for setting, values in settings.items():
            if unknown := {*(values or {})} - {*free, *self.constants}:
                raise self._refuse(f"{setting} names {min(unknown)!r}; {choices(min(unknown), free)}")
        if other := {*(learned or {}).values()} - {"shared", "each"}:
            raise self._refuse(f"learned was given {min(other)!r}; {choices(min(other), ('shared', 'each'))}")
        for name, constraint in free.items():
            try:
                transform = self._transform(name, constraint)
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
            A distribution whose last `event_dims` batch dimensions belong to the event.
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
        found = self.distribution(**parameters, **constants)
        for scaling in self._scaling:
            outer = scaling.outer if self.distribution in UNITS else scaling.transform
            return found if outer is None else Transformed(found, outer)
        return found

    @property
    def has_free_units(self) -> bool:
        """Whether it is over the real line with a location and a scale that are not known."""
        units = UNITS.get(self.distribution, {})
        return "loc" in units and not units.keys() & self.constants.keys()

    def scale_by(self, scaling: "Affine") -> None:
        """Puts the family in the units of x: the network's numbers are in those of s, and the distribution is of x.

        Where the distribution stays in its class its parameters are transformed, so that known parameters, floors and
        ceilings are in the units of x. Families over {0, 1}, over [0, 1] or over levels of it are `Transformed`.
        Counts, categories and one-hot vectors stay as they are, whatever the encoder sees.

        Raises:
            InputError: the family is over a set that the scaling does not map, or belongs to another model.
        """
        support = self(torch.zeros(self.unconstrained_shape)).support
        over, units = domain(support), UNITS.get(self.distribution)
        if not scaling.changes or (support.is_discrete and over not in ("{0, 1}", "levels in [0, 1]")):
            return
        of_log = scaling.outer is not None and not issubclass(self.distribution, dist.Normal)
        if over not in scaling.takes or of_log or (over == "real numbers" and units is None):
            raise InputError(
                f"scaling {declared_name(scaling)} does not go with {self}, which is over {over}; declare another "
                "likelihood, or scaling: none"
            )
        if self._scaling:
            raise InputError(f"{self} is in the units of another model; build a family for each")
        self._scaling = (scaling,)
        free = self._free_parameters()
        for name, power in (units or {}).items():
            if name in free:
                self.transforms[name] = self._transform(name, free[name], _InUnits(scaling, name, power))

    @torch.no_grad()
    def at_floor(self) -> bool:
        """Whether a learned parameter lies within 1% of its floor; predicted parameters are not considered."""
        return any(
            bool((self.transforms[name](value) <= 1.01 * self.floors[name]).any())
            for name, value in self.learned.items()
            if self.floors.get(name)
        )

    def below_floor(self) -> int:
        """Number of entries of x whose unit, fitted to data, is below the floor of their scale."""
        powers = UNITS.get(self.distribution) or {} if self._scaling else {}
        free = [name for name in powers if name in self.transforms and self.floors.get(name)]
        floor = max((self.floors[name] ** (1 / powers[name]) for name in free), default=0.0)
        return sum(int((unit.scale <= floor).sum()) for unit in self._scaling if unit.fits)

    def __str__(self) -> str:
        known = [f"{name}={value}" for name, value in self.constants.items() if value is not None]
        learned = [f"{name} learned" for name in self.learned]
        return f"{self.distribution.__name__}({', '.join([*self.shapes, *learned, *known])})"

    def _refuse(self, reason: str) -> InputError:
        return InputError(f"{self.distribution.__name__} cannot be a family over {tuple(self.event_shape)}: {reason}")

    def _transform(self, name: str, constraint: constraints.Constraint, units: Transform | None = None) -> Transform:
        floor, ceiling = self.floors.get(name, 1e-12), self.ceilings.get(name)
        return _transform(constraint, floor, ceiling, units, self.maps.get(name, Softplus()))

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
            if name in self.constants or name in OTHER_PARAMETRISATIONS:
                continue
            constraint = stated.get(name)
            if continuous(constraint):
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
        """Builds the distribution from two sets of numbers and validates it as a family."""
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
            except Exception as error:  # a foreign class may raise anything
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise self._refuse(f"it cannot be built, drawn and scored ({reason})") from error
        if shapes != ((2, *batch), tuple(event)) or scored != shapes[0]:
            raise self._refuse(f"its class does not state its parameters' shapes (it has {shapes[0]} and {shapes[1]})")
        if len(supports) > 1:
            raise self._refuse("its support moves with its parameters, so data can fall outside of it")


class _InUnits(Transform):
    """A parameter of s, as a parameter of x: multiplied by a power of the unit of x and, if it is `loc`, moved."""

    domain = constraints.real
    codomain = constraints.real

    def __init__(self, scaling: "Affine", name: str, power: int) -> None:
        super().__init__()
        self.scaling, self.name, self.power = scaling, name, power

    def _call(self, x: Tensor) -> Tensor:
        unit = self.scaling.scale**self.power if self.power != 1 else self.scaling.scale
        if self.name in ("scale_tril", "cov_factor"):
            unit = unit.unsqueeze(-1)
        return self.scaling.loc + unit * x if self.name == "loc" else unit * x


class CholeskyFloor(SoftplusLowerCholeskyTransform):
    """L = softplus on the diagonal, identity below it, in other units if any, plus a floor on the diagonal."""

    def __init__(self, floor: float, units: Transform | None = None) -> None:
        super().__init__()
        self.floor, self.units = floor, units

    def _call(self, x: Tensor) -> Tensor:
        found = super()._call(x) if self.units is None else self.units(super()._call(x))
        return found + self.floor * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(y - self.floor * torch.eye(y.shape[-1], dtype=y.dtype, device=y.device))


class _Ceiling(Transform):
    """t -> t / (1 + t / ceiling), from positive numbers to positive numbers below the ceiling."""

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


def continuous(constraint: constraints.Constraint | None) -> bool:
    """Whether a parameter with this constraint can come from a network."""
    return constraint is not None and not constraint.is_discrete and not constraints.is_dependent(constraint)


def _transform(
    constraint: constraints.Constraint,
    floor: float,
    ceiling: float | None,
    units: Transform | None,
    positive: Transform,
) -> Transform:
    """The given map for positive numbers; torch's own transform for every other constraint.

    Args:
        constraint: that of the parameter.
        floor: lower bound of positive parameters.
        ceiling: upper bound of positive parameters.
        units: the parameter in the units of x, in which floor and ceiling are.
        positive: the map from real to positive numbers.
    """
    if isinstance(constraint, type(constraints.lower_cholesky)):
        return CholeskyFloor(floor, units)
    if isinstance(constraint, type(constraints.independent(constraints.real, 1))):
        return _transform(constraint.base_constraint, floor, ceiling, units, positive)
    steps = [] if units is None else [units]
    if isinstance(constraint, type(constraints.positive) | type(constraints.nonnegative)):
        lower = float(constraint.lower_bound) + floor
        steps = [positive, *steps, *([_Ceiling(ceiling)] if ceiling else [])]
        return ComposeTransform([*steps, *([AffineTransform(lower, 1.0)] if lower else [])])
    return ComposeTransform([transform_to(constraint), *steps]) if steps else transform_to(constraint)


def domain(support: Any) -> str:
    """The set that a constraint describes, in words and up to a boundary of measure zero."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if isinstance(support, type(constraints.positive) | type(constraints.nonnegative)) and support.lower_bound == 0:
        return "positive numbers"
    if isinstance(support, Levels):
        return "levels in [0, 1]"
    names = {"Real()": "real numbers", "Boolean()": "{0, 1}", "OneHot()": "one-hot vectors", "Simplex()": "the simplex"}
    if str(support) in ("RealVector()", "Interval(lower_bound=0.0, upper_bound=1.0)"):
        return "real numbers" if "Real" in str(support) else "numbers in [0, 1]"
    return names.get(str(support), str(support))
