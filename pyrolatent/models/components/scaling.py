"""Scalings: the elementwise maps between the units of the data and the numbers that networks see."""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform, ExpTransform, Transform

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
        fitted: whether the scaling is known.
        described: what the scaling does to x, in words.
    """

    changes: bool = True
    fitted: bool = True
    described: str = ""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output_shape = torch.Size(event_shape)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What networks see of x (..., *event_shape), (..., *output_shape), 0 where it is not observed."""
        seen = self.scaled(x)
        return seen if mask is None else torch.where(mask, seen, 0.0)  # floats, also for integers

    def scaled(self, x: Tensor) -> Tensor:
        """x as networks see it."""
        return x

    def compared(self, x: Tensor) -> Tensor:
        """x (..., *event_shape) as checks compare it, (..., entries) or of the shape of x, with nothing learned."""
        return self(x)

    def entries(self, x: Tensor) -> Tensor:
        """x as networks see it, entry by entry, (..., *event_shape)."""
        return self.scaled(x)

    def seen(self, mask: Tensor) -> Tensor:
        """The mask that networks receive, (..., *output_shape)."""
        return mask

    def validate_codes(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Refuses codes of no category in x (batch, *event_shape)."""

    def fit(self, rows: Rows) -> None:
        """Fits the scaling to training data."""

    def warn_if_far(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Warns if the data of continued training are far from those that the scaling was fitted to."""

    @property
    def lines(self) -> list[str]:
        """What networks see, in lines of a printed model."""
        return [f"networks see {self}"] * self.changes

    def __str__(self) -> str:
        return f"x {self.described}"


class Moments:
    """Count, mean, standard deviation, minimum and maximum of each entry of observed data, over several batches.

    Args:
        like: a tensor of the shape of the data.
    """

    def __init__(self, like: Tensor) -> None:
        self.count, self.mean, self._squares = (like.new_zeros(like.shape, dtype=torch.float64) for _ in range(3))
        self.low, self.high = torch.full_like(like, math.inf), torch.full_like(like, -math.inf)

    def add(self, x: Tensor, mask: Tensor | None) -> None:
        """Adds a batch; the squares are those of Chan et al. 1983."""
        seen = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        self.low = torch.minimum(self.low, torch.where(seen, x, math.inf).amin(0))
        self.high = torch.maximum(self.high, torch.where(seen, x, -math.inf).amax(0))
        here, value = seen.double().sum(0), torch.where(seen, x, 0.0).double()
        total, away = self.count + here, value.sum(0) / here.clamp(min=1) - self.mean
        self._squares += torch.where(seen, value - self.mean - away, 0.0).square().sum(0)
        self._squares += away.square() * self.count * here / total.clamp(min=1)
        self.mean += away * here / total.clamp(min=1)
        self.count = total

    @property
    def deviation(self) -> Tensor:
        """The standard deviation."""
        return (self._squares / self.count.clamp(min=1)).sqrt()


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
        self.fitted = not self.fits
        self.register_buffer("loc", torch.zeros(event_shape), persistent=self.fits)
        self.register_buffer("scale", torch.ones(event_shape), persistent=self.fits)

    def scaled(self, x: Tensor) -> Tensor:
        """s."""
        return (self.inner(x) - self.loc) / self.scale

    def inner(self, x: Tensor) -> Tensor:
        """loc + scale s; 0 where x is outside of the map's range, which its likelihood refuses."""
        return x if self.outer is None else self.outer.inv(x).nan_to_num(0.0, neginf=0.0)

    @property
    def transform(self) -> AffineTransform:
        """s -> loc + scale s."""
        return AffineTransform(self.loc, self.scale)

    def fit(self, rows: Rows) -> None:
        """Sets loc and scale from the observed entries of training data; an entry that is constant keeps its unit."""
        moments = Moments(self.loc)
        for x, _, mask in rows:
            moments.add(self.inner(x), mask)
        self.set(moments)

    @torch.no_grad()
    def set(self, moments: Moments, names: Sequence[str] | None = None) -> None:
        """Sets loc and scale from the moments of loc + scale s.

        Args:
            moments: those of the observed entries.
            names: the columns that the entries are.

        Raises:
            InputError: an entry varies by so much that densities of it are infinite in float32.
        """
        if self.fits:
            loc, scale = self.chosen(moments)
            if len(large := (scale.square().float().isinf() & (moments.count > 0)).nonzero()):
                entry = tuple(large[0].tolist())
                name = f"column {names[entry[0]]}" if names else f"the entry {entry} of x"
                raise InputError(
                    f"{name} holds values up to {moments.high[entry]:.3g}, whose squares float32 cannot hold; give it "
                    "in larger units, or put NaN in the place of such values"
                )
            self.loc.copy_(torch.where(moments.count > 0, loc, 0.0))
            self.scale.copy_(torch.where((moments.high > moments.low) & (scale > 0), scale, 1.0))
            self.fitted = True

    def chosen(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """loc and scale."""
        return moments.mean, moments.deviation

    def warn_if_far(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Warns if the data are far from those that have set loc and scale."""
        if self.fits and (self.loc.any() or (self.scale != 1).any()):
            warn_if_far(self.inner(x), self.loc, self.scale, mask)

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

    def chosen(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """The smallest value and the range."""
        return moments.low, moments.high - moments.low


@component("log1p", "scaling")
class Log1p(Affine):
    """log(1 + x) = m + d s, m and d the mean and standard deviation of log(1 + x) over the training data.

    A normal likelihood is then a log-normal density of 1 + x, whose scale is that of log(1 + x).

    Args:
        event_shape: shape of x.
    """

    described = "as log(1 + x), standardised"
    outer = Expm1Transform()


@component("log", "scaling")
class Log(Affine):
    """log x = m + d s, m and d the mean and standard deviation of log x over the training data; x > 0.

    A normal likelihood is then a log-normal density, whose scale is that of log x.

    Args:
        event_shape: shape of x.
    """

    described = "as log x, standardised"
    outer = ExpTransform()


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
    a scale, such as the normal one, that is predicted or learned. Columns of several families have their own.

    Args:
        event_shape: shape of x.
        family: the likelihood's family; None if it has none.
    """
    if family is not None and family.own_scaling is not None:
        return family.own_scaling
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
