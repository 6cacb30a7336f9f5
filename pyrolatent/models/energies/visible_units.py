"""Visible units of a restricted Boltzmann machine: exponential families conditioned on the hidden layer.

With a statistic t(x) and a base measure m(x), p(x | η) = m(x) exp(t(x)·η - A(η)) has the natural parameters η = b + W h
(Welling et al. 2004, "Exponential family harmoniums").
"""

import math
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

from pyrolatent.declaration import PositiveFloat, component
from pyrolatent.errors import InputError
from pyrolatent.models.components.conditional import one_hot
from pyrolatent.models.components.scaling import warn_if_far
from pyrolatent.models.energies.density import deviations, warn_if_constant


class Units(nn.Module):
    """Base class of visible units; statistics t are (n, width), data x (n, *event_shape).

    Attributes:
        width: width of a statistic.
        levels: number of values of each entry of x; None if they are real.
    """

    width: int
    levels: Tensor | None

    @property
    def of_x(self) -> "Units":
        """The units of x, without those of a label."""
        return self

    @property
    def values(self) -> str:
        """The number of values of an entry in words, if the name does not tell it."""
        return ""

    def begin_at(self, x: Tensor) -> bool:
        """Sets location and scale of x (n, *event_shape) from data, if any; False if they have been set before."""
        return True

    def warn_if_far(self, x: Tensor) -> None:
        """Warns if the data of continued training are far from the location and scale that were set before."""

    def statistic(self, x: Tensor) -> Tensor:
        """t(x), (n, width), of x flattened to (n, entries)."""
        raise NotImplementedError

    def value(self, t: Tensor) -> Tensor:
        """x of a statistic, flattened to (n, entries)."""
        raise NotImplementedError

    def log_base(self, t: Tensor) -> Tensor | float:
        """log m(x), (n,); 0 here."""
        return 0.0

    def log_partition(self, eta: Tensor) -> Tensor:
        """A(η) = log ∑_x m(x) exp(t(x)·η), (n,)."""
        raise NotImplementedError

    def sample(self, eta: Tensor) -> Tensor:
        """t(x) at draws x ~ p(x | η)."""
        raise NotImplementedError

    def mean(self, eta: Tensor) -> Tensor:
        """E[t(x) | η]."""
        raise NotImplementedError

    def natural(self, mean: Tensor) -> Tensor:
        """The η at which E[t(x)] is `mean`."""
        raise NotImplementedError


@component("bernoulli", "units")
class BernoulliUnits(Units):
    """x_i in {0, 1}: t = x, A(η) = ∑ log(1 + exp η_i).

    Args:
        event_shape: shape of x.
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.width = torch.Size(event_shape).numel()
        self.levels = torch.full((self.width,), 2)

    def statistic(self, x: Tensor) -> Tensor:
        """x itself, flattened."""
        return x.reshape(len(x), -1)

    def value(self, t: Tensor) -> Tensor:
        """The statistic itself."""
        return t

    def log_partition(self, eta: Tensor) -> Tensor:
        """∑_i log(1 + exp η_i), (n,)."""
        return softplus(eta).sum(-1)

    def sample(self, eta: Tensor) -> Tensor:
        """x_i = 1 with probability sigmoid(η_i)."""
        return bernoulli(eta)

    def mean(self, eta: Tensor) -> Tensor:
        """sigmoid(η)."""
        return torch.sigmoid(eta)

    def natural(self, mean: Tensor) -> Tensor:
        """log(m / (1 - m))."""
        return torch.logit(mean)


@component("normal", "units")
class NormalUnits(Units):
    """x_i = m_i + σ_i t_i with t | h ~ N(b + W h, 1): t = (x - m) / σ, A(η) = ∑ η_i² / 2 + log(2π) / 2, over t.

    x is standardised, as by `scaling: standardise` of other models, and p(x) is a density in the units of x. m is the
    mean of the data, so that b and W need not change with σ. σ is learned, one number per entry, and is initialised to
    `scale` times the standard deviation s of the data.

    Args:
        event_shape: shape of x.
        scale: initial σ / s.
        learned: whether σ is trained.
        min_scale: lower bound of σ / s; without one, an entry that hardly varies would drive the density to infinity.
    """

    loc: Tensor
    floor: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        scale: PositiveFloat = 1.0,
        learned: bool = True,
        min_scale: Annotated[float, Ge(0)] = 1e-3,
    ) -> None:
        if scale <= min_scale:
            raise InputError(
                f"the scale {scale:g} of normal units is not above their min_scale {min_scale:g}; raise it"
            )
        super().__init__()
        self.width = torch.Size(event_shape).numel()
        self.levels = None
        self.scale, self.min_scale = scale, min_scale
        above = torch.full((self.width,), math.log(scale - min_scale))
        self.log_above = nn.Parameter(above, requires_grad=learned)
        self.register_buffer("loc", torch.zeros(self.width))
        self.register_buffer("floor", torch.full((self.width,), min_scale))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if f"{prefix}log_sigma" in state_dict:  # saved when σ had no floor
            state_dict[f"{prefix}log_above"] = state_dict.pop(f"{prefix}log_sigma")
            state_dict[f"{prefix}floor"] = torch.zeros_like(self.floor)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def values(self) -> str:
        """That x is standardised."""
        return " of x standardised"

    @property
    def sigma(self) -> Tensor:
        """σ, (width,): the floor plus a learned part."""
        return self.floor + self.log_above.exp()

    @torch.no_grad()
    def at_floor(self) -> bool:
        """Whether a learned σ lies within 1% of its floor."""
        return self.log_above.requires_grad and bool((self.log_above.exp() <= 0.01 * self.floor).any())

    @torch.no_grad()
    def begin_at(self, x: Tensor) -> bool:
        """Sets m to the mean of the data, σ to their standard deviation times `scale`, and its floor, once."""
        if self.loc.any():
            return False
        warn_if_constant(x)
        spread = deviations(x)
        self.loc.copy_(x.reshape(len(x), -1).mean(0))
        self.floor.copy_(self.min_scale * spread)
        self.log_above.copy_(((self.scale - self.min_scale) * spread).log())
        return True

    def warn_if_far(self, x: Tensor) -> None:
        """Warns if data are more than ten standard deviations away from the location and scale set before."""
        warn_if_far(x, self.loc, self.floor / self.min_scale if self.min_scale else self.sigma)

    def statistic(self, x: Tensor) -> Tensor:
        """(x - m) / σ."""
        return (x.reshape(len(x), -1) - self.loc) / self.sigma

    def value(self, t: Tensor) -> Tensor:
        """m + σ t."""
        return self.loc + t * self.sigma

    def log_base(self, t: Tensor) -> Tensor:
        """-∑ t_i² / 2 + log σ_i, for a density of x."""
        return -(0.5 * t.square()).sum(-1) - self.sigma.log().sum()

    def log_partition(self, eta: Tensor) -> Tensor:
        """∑_i η_i² / 2 + log(2π) / 2, (n,)."""
        return (0.5 * eta.square()).sum(-1) + 0.5 * math.log(2 * math.pi) * self.width

    def sample(self, eta: Tensor) -> Tensor:
        """η + e, e ~ N(0, I)."""
        return eta + torch.randn_like(eta)

    def mean(self, eta: Tensor) -> Tensor:
        """η."""
        return eta

    def natural(self, mean: Tensor) -> Tensor:
        """The mean itself."""
        return mean


@component("categorical", "units")
class CategoricalUnits(Units):
    """x_i in {0, ..., K - 1}: t is its one-hot code (K numbers), A(η) = ∑_i log ∑_k exp η_ik.

    Args:
        event_shape: shape of x.
        levels: number K of values.
    """

    def __init__(self, event_shape: tuple[int, ...], *, levels: Annotated[int, Gt(1)]) -> None:
        super().__init__()
        entries = torch.Size(event_shape).numel()
        self.width, self.k = entries * levels, levels
        self.levels = torch.full((entries,), levels)

    @property
    def values(self) -> str:
        """K."""
        return f" of {self.k} values"

    def statistic(self, x: Tensor) -> Tensor:
        """One-hot codes (n, entries * K)."""
        return one_hot(x.reshape(len(x), -1).long(), self.k).flatten(1).to(x)

    def value(self, t: Tensor) -> Tensor:
        """The index of the one, as a floating-point number."""
        return t.unflatten(-1, (-1, self.k)).argmax(-1).to(t.dtype)

    def log_partition(self, eta: Tensor) -> Tensor:
        """∑_i log ∑_k exp η_ik, (n,)."""
        return eta.unflatten(-1, (-1, self.k)).logsumexp(-1).sum(-1)

    def sample(self, eta: Tensor) -> Tensor:
        """One-hot draws, at the largest of η plus Gumbel noise."""
        logits = eta.unflatten(-1, (-1, self.k))
        gumbel = -torch.empty_like(logits).exponential_().log()
        return one_hot((logits + gumbel).argmax(-1), self.k).flatten(1).to(eta.dtype)

    def mean(self, eta: Tensor) -> Tensor:
        """Probabilities (n, entries * K)."""
        return eta.unflatten(-1, (-1, self.k)).softmax(-1).flatten(-2)

    def natural(self, mean: Tensor) -> Tensor:
        """log of the probabilities."""
        return mean.log()


class LabelledUnits(Units):
    """Units of x followed by those of one label y, coded one-hot.

    Args:
        inner: the units of x.
        label_dim: number of classes.
    """

    def __init__(self, inner: Any, label_dim: int) -> None:
        super().__init__()
        self.inner, self.label, self.label_dim = inner, CategoricalUnits((1,), levels=label_dim), label_dim
        self.width = inner.width + label_dim
        self.levels = inner.levels

    @property
    def of_x(self) -> Units:
        """The units of x."""
        inner: Units = self.inner
        return inner

    def _split(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t[..., : self.inner.width], t[..., self.inner.width :]

    def statistic(self, x: Tensor) -> Tensor:
        """The statistic of x, flattened, followed by the code of y."""
        code = x[:, -self.label_dim :]
        return torch.cat([self.inner.statistic(x[:, : -self.label_dim]), code], -1)

    def value(self, t: Tensor) -> Tensor:
        """x, flattened, followed by the code of y."""
        x, y = self._split(t)
        return torch.cat([self.inner.value(x), y], -1)

    def log_base(self, t: Tensor) -> Tensor | float:
        """log m of the units of x."""
        return self.inner.log_base(self._split(t)[0])

    def log_partition(self, eta: Tensor) -> Tensor:
        """The sum of A over the units of x and y."""
        x, y = self._split(eta)
        return self.inner.log_partition(x) + self.label.log_partition(y)

    def sample(self, eta: Tensor) -> Tensor:
        """Independent draws of x and y."""
        x, y = self._split(eta)
        return torch.cat([self.inner.sample(x), self.label.sample(y)], -1)

    def mean(self, eta: Tensor) -> Tensor:
        """The concatenation over the units of x and y."""
        x, y = self._split(eta)
        return torch.cat([self.inner.mean(x), self.label.mean(y)], -1)

    def natural(self, mean: Tensor) -> Tensor:
        """The concatenation over the units of x and y."""
        x, y = self._split(mean)
        return torch.cat([self.inner.natural(x), self.label.natural(y)], -1)


def bernoulli(logits: Tensor) -> Tensor:
    """Draws of 0 and 1 with these log-odds, in their type.

    In-place comparison with uniform noise takes a quarter of the time of `torch.bernoulli` on a CPU.
    """
    u = torch.rand_like(logits)
    return torch.lt(u, torch.sigmoid(logits), out=u)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp x), if no gradient is needed as max(x, 0) - log sigmoid(|x|), whose parts are vectorised."""
    if x.requires_grad:
        return functional.softplus(x)
    return x.relu().sub_(x.abs().sigmoid_().log_())
