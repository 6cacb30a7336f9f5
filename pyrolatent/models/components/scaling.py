"""Scalings: the elementwise maps between the units of the data and the numbers that networks see."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform, Transform

from pyrolatent.declaration import Component, PositiveFloat, build, component, declared_name, register
from pyrolatent.errors import InputError
from pyrolatent.models.components.distributions import Expm1Transform
from pyrolatent.models.components.family import Family

FAR = 10.0
"""Distance from 0, from the unit 1 or from earlier data, in units of these, above which numbers are far."""
Rows = Iterable[tuple[Tensor, Any, Tensor | None]]
"""Batches of x (batch, *event_shape), labels and mask; the latter is True where x is observed."""


class Scaling(nn.Module):
    """What networks see of x, in whose units the data and all densities are.

    Args:
        event_shape: shape of x.

    Attributes:
        output_shape: the shape of what networks see of x.
        changes: whether it differs from x.
        described: what the scaling does to x, in words.
    """

    changes: bool = True
    described: str = ""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output_shape = torch.Size(event_shape)

    def forward(self, x: Tensor) -> Tensor:
        """What networks see of x (..., *event_shape), (..., *output_shape)."""
        return x

    def fit(self, batches: Rows) -> None:
        """Fits the scaling to training data."""

    def __str__(self) -> str:
        return f"x {self.described}"


class Affine(Scaling):
    """x = T(loc + scale s) for each entry; networks see s.

    Args:
        event_shape: shape of x.

    Attributes:
        loc, scale: (*event_shape); 0 and 1 before they are fitted, and in models that were saved without them.
        outer: T; None if it leaves its argument as it is.
        fits: whether loc and scale are fitted to data.
        takes: the sets that a likelihood may be over to be put in the units of x.
    """

    loc: Tensor
    scale: Tensor
    outer: Transform | None = None
    fits: bool = True
    takes: tuple[str, ...] = ("real numbers",)

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.fitted = False
        self.register_buffer("loc", torch.zeros(event_shape), persistent=self.fits)
        self.register_buffer("scale", torch.ones(event_shape), persistent=self.fits)

    def forward(self, x: Tensor) -> Tensor:
        """s."""
        return (self._inner(x) - self.loc) / self.scale

    @property
    def transform(self) -> AffineTransform:
        """s -> loc + scale s."""
        return AffineTransform(self.loc, self.scale)

    @torch.no_grad()
    def fit(self, batches: Rows) -> None:
        """Sets loc and scale from the observed entries of training data; an entry that is constant keeps its unit."""
        if not self.fits:
            return
        count, mean, squares = (self.loc.new_zeros(self.loc.shape, dtype=torch.float64) for _ in range(3))
        low, high = torch.full_like(self.loc, math.inf), torch.full_like(self.loc, -math.inf)
        for x, _, mask in batches:
            value = self._inner(x)
            seen = torch.ones_like(value, dtype=torch.bool) if mask is None else mask
            low = torch.minimum(low, torch.where(seen, value, math.inf).amin(0))
            high = torch.maximum(high, torch.where(seen, value, -math.inf).amax(0))
            here = seen.double().sum(0)
            total, value = count + here, torch.where(seen, value, 0.0).double()
            away = value.sum(0) / here.clamp(min=1) - mean
            squares += torch.where(seen, value - mean - away, 0.0).square().sum(0)  # Chan et al. 1983
            squares += away.square() * count * here / total.clamp(min=1)
            mean += away * here / total.clamp(min=1)
            count = total
        loc, scale = self.moments(mean, (squares / count.clamp(min=1)).sqrt(), low, high)
        self.loc.copy_(torch.where(count > 0, loc, 0.0))
        self.scale.copy_(torch.where((high > low) & (scale > 0), scale, 1.0))
        self.fitted = True

    def moments(self, mean: Tensor, deviation: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """loc and scale, from the mean, standard deviation, minimum and maximum of each entry."""
        return mean, deviation

    def initialise(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Fits the scaling to data, unless it has been fitted."""
        if not self.fitted:
            self.fit([(x, None, mask)])

    def resume(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Warns if the data of continued training are far from those that have set loc and scale."""
        if self.fits and (self.loc.any() or (self.scale != 1).any()):
            warn_if_far(self._inner(x), self.loc, self.scale, mask)

    def _inner(self, x: Tensor) -> Tensor:
        return x if self.outer is None else self.outer.inv(x)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if self.fits:  # models were saved without them when networks received x unscaled
            state_dict.setdefault(f"{prefix}loc", torch.zeros_like(self.loc))
            state_dict.setdefault(f"{prefix}scale", torch.ones_like(self.scale))
        super()._load_from_state_dict(state_dict, prefix, *args)


@component("standardise", "scaling")
class Standardise(Affine):
    """x = m + d s, m and d the mean and standard deviation of each entry of the training data.

    Args:
        event_shape: shape of x.
    """

    described = "standardised"


@component("minmax", "scaling")
class MinMax(Affine):
    """x = low + (high - low) s, low and high the smallest and largest value of each entry of the training data.

    Args:
        event_shape: shape of x.
    """

    described = "in [0, 1] by its smallest and largest values"
    takes = ("real numbers", "numbers in [0, 1]", "levels in [0, 1]", "{0, 1}")

    def moments(self, mean: Tensor, deviation: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest value and the range."""
        return low, high - low


@component("log1p", "scaling")
class Log1p(Affine):
    """log(1 + x) = m + d s, m and d the mean and standard deviation of log(1 + x) over the training data.

    A normal likelihood is then a log-normal density of 1 + x, whose scale is that of log(1 + x).

    Args:
        event_shape: shape of x.
    """

    described = "as log(1 + x), standardised"
    outer = Expm1Transform()
    takes = ("real numbers",)


@component("divide", "scaling")
class Divide(Affine):
    """x = by s, as in `{divide: 255}`.

    Args:
        event_shape: shape of x.
        by: the divisor.
    """

    whole = "by"
    fits = False
    takes = ("real numbers", "numbers in [0, 1]", "levels in [0, 1]", "{0, 1}", "positive numbers")

    def __init__(self, event_shape: tuple[int, ...], *, by: PositiveFloat) -> None:
        super().__init__(event_shape)
        self.scale.fill_(by)
        self.described = f"divided by {by:g}"


@component("none", "scaling")
class Unscaled(Scaling):
    """Networks see x as it is.

    Args:
        event_shape: shape of x.
    """

    changes = False


def auto(event_shape: tuple[int, ...], family: Family | None) -> Scaling:
    """standardise for a table of real numbers whose noise is not known, and none for everything else.

    x is such a table if its events have one axis and its likelihood is a family over the real line with a location and
    a scale, such as the normal one, that is predicted or learned.

    Args:
        event_shape: shape of x.
        family: the likelihood's family; None if it has none.
    """
    table = len(event_shape) == 1 and family is not None and family.has_free_units
    return Standardise(event_shape) if table else Unscaled(event_shape)


register("scaling", "auto", Component(auto, ("event_shape", "family")))


def scaled(scaling: Any, likelihood: nn.Module, event_shape: tuple[int, ...]) -> Any:
    """Builds the scaling of a model from its declaration, and puts the family of its likelihood in the units of x.

    Args:
        scaling: its declaration.
        likelihood: the likelihood or its family.
        event_shape: shape of x.

    Raises:
        InputError: the likelihood has no family, or its family does not go with the scaling.
    """
    family = getattr(likelihood, "family", likelihood)
    family = family if isinstance(family, Family) else None
    built = build("scaling", scaling, event_shape=tuple(event_shape), family=family)
    if family is not None:
        family.scale_by(built)
    elif built.changes:
        raise InputError(
            f"scaling {declared_name(built)} puts the family of a likelihood in the units of x, but "
            f"{type(likelihood).__name__} has none; declare a family, or scaling: none"
        )
    return built


def warn_if_far(x: Tensor, loc: Tensor, scale: Tensor, mask: Tensor | None = None) -> None:
    """Warns if data lie more than ten standard deviations from those that have set the base or the units."""
    observed = x if mask is None else torch.where(mask, x, torch.nan)
    distance = ((observed.nanmean(0).reshape(loc.shape) - loc).abs() / scale).nan_to_num(0.0).max().item()
    spread = (observed - observed.nanmean(0)).square().nanmean(0).sqrt().reshape(loc.shape)
    ratio = (spread / scale).nan_to_num(0.0).max().item()
    if max(distance, ratio) > FAR:
        warnings.warn(
            f"training goes on in the units of other data: the mean of x is up to {distance:.3g} of their standard "
            f"deviations away, and its spread up to {ratio:.3g}; build a new model, or scale x",
            stacklevel=6,
        )
