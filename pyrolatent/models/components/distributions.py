"""Distributions that Pyro lacks, or whose versions in Pyro are inexact or slow."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import AffineTransform, Transform
from torch.nn.functional import logsigmoid
from torch.quasirandom import SobolEngine

EMPTY = torch.Size()
Size = torch.Size | list[int] | tuple[int, ...]


class Bernoulli(dist.Bernoulli):
    """log p(x) = u (x - 1/2) - |u| / 2 - log(1 + exp(-|u|)), u the logits.

    Pyro's class computes the logarithm by log1p, which takes most of the time of a Bernoulli decoder on a CPU. Here the
    argument lies between 1 and 2, so rounding of the logarithm is at most 6e-8 nats per element. The gradient is
    x - sigmoid(u), also at 0.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass, nats; for values between 0 and 1 the negative cross-entropy."""
        if self._validate_args:
            self._validate_sample(value)
        size = self.logits.abs()
        return self.logits * (value - 0.5) - 0.5 * size - torch.log(1 + torch.exp(-size))


class LowRankMultivariateNormal(dist.LowRankMultivariateNormal):
    """N(loc, W W' + diag(d)), with the capacitance matrix I + W' diag(d)^-1 W formed and factorised in float64.

    In float32 the identity is rounded away beside a large W' diag(d)^-1 W, and the Cholesky factorisation fails.

    Args:
        loc: mean (..., n).
        cov_factor: W (..., n, rank).
        cov_diag: d > 0 (..., n).
    """

    def __init__(self, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(loc.double(), cov_factor.double(), cov_diag.double(), validate_args=validate_args)
        for name in (
            "loc",
            "cov_factor",
            "cov_diag",
            "_unbroadcasted_cov_factor",
            "_unbroadcasted_cov_diag",
            "_capacitance_tril",
        ):
            setattr(self, name, getattr(self, name).to(loc.dtype))

    def expand(self, batch_shape: Size, _instance: Any = None) -> "LowRankMultivariateNormal":
        """The same distribution over a larger batch."""
        return super().expand(batch_shape, self.__new__(type(self)) if _instance is None else _instance)


def innermost(fn: Any) -> Any:
    """The distribution inside of those that make events of it, mask it or transform it."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


class Reshaped(dist.TorchDistribution):
    """A distribution over events of another shape with as many elements.

    Args:
        base: over events of any shape.
        event_shape: of the events.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, base: Any, event_shape: Size, validate_args: bool | None = None) -> None:
        self.base = base
        super().__init__(base.batch_shape, torch.Size(event_shape), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have gradients."""
        return bool(self.base.has_rsample)

    @property
    def support(self) -> Constraint:
        """The support of the base, over events of these dimensions where its elements are independent."""
        support = self.base.support
        if not isinstance(support, constraints.independent):
            return support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        return constraints.independent(support, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """That of the base."""
        return self._shaped(self.base.mean)

    @property
    def variance(self) -> Tensor:
        """That of the base."""
        return self._shaped(self.base.variance)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "Reshaped":
        """The same distribution over a larger batch."""
        return Reshaped(self.base.expand(batch_shape), self.event_shape)

    def rsample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws with gradients."""
        return self._shaped(self.base.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws."""
        return self._shaped(self.base.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass or density of the base, nats."""
        lead = value.shape[: value.dim() - len(self.event_shape)]
        found: Tensor = self.base.log_prob(value.reshape(*lead, *self.base.event_shape))
        return found

    def _shaped(self, value: Tensor) -> Tensor:
        lead = value.shape[: value.dim() - len(self.base.event_shape)]
        return value.reshape(*lead, *self.event_shape)


class Image(Constraint):
    """The set T(S) of values T(s), s in S, for an elementwise map T.

    Args:
        base: S, of single numbers.
        transform: T.
    """

    event_dim = 0

    def __init__(self, base: Constraint, transform: Transform) -> None:
        self.base, self.transform = base, transform
        self.is_discrete = base.is_discrete

    def check(self, value: Tensor) -> Tensor:
        """Whether each value is T(s) of an s in S."""
        inside: Tensor = self.base.check(self.transform.inv(value))
        return inside

    def __repr__(self) -> str:
        return f"{self.base} in the units of x"


class Transformed(dist.TorchDistribution):
    """The distribution of x = T(s), s ~ base, for an increasing elementwise map T.

        log p(x) = log base(s) - log T'(s), s = T^-1(x),

    without the second term where the base has masses, which the map moves but does not change.

    Args:
        base: over single numbers, with masses at its `atoms` if it has any, or everywhere if it is discrete.
        transform: T, an affine map, or exp(s) or exp(s) - 1 of a normal base.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, base: Any, transform: Transform, validate_args: bool | None = None) -> None:
        self.base, self.transform = base, transform
        super().__init__(base.batch_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have gradients."""
        return bool(self.base.has_rsample)

    @property
    def support(self) -> Constraint:
        """T of the support of the base."""
        affine = isinstance(self.transform, AffineTransform)
        return Image(self.base.support, self.transform) if affine else self.transform.codomain

    @property
    def mean(self) -> Tensor:
        """T(E[s]) of an affine map, and T(loc + scale² / 2) of an exponential one and a normal base."""
        if isinstance(self.transform, AffineTransform):
            return self.transform(self.base.mean)
        return self.transform(self.base.loc + self.base.scale.square() / 2)

    @property
    def variance(self) -> Tensor:
        """T'^2 Var[s] of an affine map, and (exp(scale²) - 1) exp(2 loc + scale²) of an exponential one."""
        if isinstance(self.transform, AffineTransform):
            return self.base.variance * torch.as_tensor(self.transform.scale).square()
        scale = self.base.scale.square()
        return torch.expm1(scale) * torch.exp(2 * self.base.loc + scale)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "Transformed":
        """The same distribution over a larger batch."""
        return Transformed(self.base.expand(batch_shape), self.transform)

    def rsample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws with gradients."""
        drawn: Tensor = self.transform(self.base.rsample(torch.Size(sample_shape)))
        return drawn

    @torch.no_grad()
    def sample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws."""
        drawn: Tensor = self.transform(self.base.sample(torch.Size(sample_shape)))
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass or density of x, nats."""
        s = self.transform.inv(value)
        scored: Tensor = self.base.log_prob(s)
        if self.base.support.is_discrete:
            return scored
        slope = self.transform.log_abs_det_jacobian(s, value)
        for atom in getattr(innermost(self.base), "atoms", ()):
            slope = torch.where(s == atom, 0.0, slope)
        return scored - slope


class Codes(dist.Categorical):
    """P(x = k) = softmax(logits)_k over the codes 0 ... K - 1 of categories, as floats; its `mean` is the mode."""

    @property
    def mean(self) -> Tensor:
        """The code of the most probable category."""
        return self.logits.argmax(-1).to(self.logits.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws."""
        return super().sample(torch.Size(sample_shape)).to(self.logits.dtype)


class SideBySide(Constraint):
    """The set of vectors whose entries lie in the supports of several parts.

    Args:
        parts: the supports.
        index: of each part, its entries, (width of the part,).
        order: of each entry, its place in the parts side by side, (entries,).
    """

    event_dim = 0

    def __init__(self, parts: Sequence[Constraint], index: Sequence[Tensor], order: Tensor) -> None:
        self.parts, self.index, self.order = parts, index, order
        self.is_discrete = all(part.is_discrete for part in parts)

    def check(self, value: Tensor) -> Tensor:
        """Whether each entry lies in its support."""
        each = zip(self.parts, self.index, strict=True)
        return torch.cat([part.check(value[..., index]) for part, index in each], -1)[..., self.order]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(str, self.parts))})"

    def of_column(self, column: int) -> Constraint:
        """The support of one entry."""
        return next(part for part, index in zip(self.parts, self.index, strict=True) if column in index)


class Columns(dist.TorchDistribution):
    """Independent entries of several distributions, (batch, columns).

    Args:
        parts: distributions of some of the columns, (batch, width of the part).
        index: of each part, its columns, (width of the part,).
        order: of each column, its place in the parts side by side, (columns,).
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(
        self, parts: Sequence[Any], index: Sequence[Tensor], order: Tensor, validate_args: bool | None = None
    ) -> None:
        self.parts, self.index, self.order = parts, index, order
        super().__init__(torch.Size((*parts[0].batch_shape[:-1], len(order))), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws of all columns have gradients."""
        return all(part.has_rsample for part in self.parts)

    @property
    def support(self) -> Constraint:
        """The support of each column."""
        return SideBySide([part.support for part in self.parts], self.index, self.order)

    @property
    def mean(self) -> Tensor:
        """The mean of each column, the most probable category of categories."""
        return self._joined([part.mean for part in self.parts])

    @property
    def variance(self) -> Tensor:
        """The variance of each column."""
        return self._joined([part.variance for part in self.parts])

    def expand(self, batch_shape: Size, _instance: Any = None) -> "Columns":
        """The same distribution over a larger batch."""
        lead = tuple(batch_shape)[:-1]
        parts = [part.expand((*lead, len(index))) for part, index in zip(self.parts, self.index, strict=True)]
        return Columns(parts, self.index, self.order)

    def rsample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws with gradients."""
        return self._joined([part.rsample(torch.Size(sample_shape)) for part in self.parts])

    @torch.no_grad()
    def sample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws."""
        return self._joined([part.sample(torch.Size(sample_shape)) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass or density of each column, nats."""
        each = zip(self.parts, self.index, strict=True)
        return self._joined([part.log_prob(value.index_select(-1, index)) for part, index in each])

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([*parts], -1).index_select(-1, self.order)


class Expm1Transform(Transform):
    """s -> exp(s) - 1, from real numbers to those above -1."""

    domain = constraints.real
    codomain = constraints.greater_than(-1.0)
    bijective = True
    sign = 1

    def _call(self, x: Tensor) -> Tensor:
        return torch.expm1(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.log1p(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """s itself."""
        return x


class ContinuousBernoulli(dist.TorchDistribution):
    """p(x) = exp(u x) / C(u) on [0, 1], C(u) = (exp(u) - 1) / u (Loaiza-Ganem and Cunningham 2019, 1907.06845).

    In terms of lambda = sigmoid(u) it is lambda^x (1 - lambda)^(1 - x) up to its normaliser. With a = |u| and d the
    distance of x from the end that u favours (1 for u > 0),

        log p(x) = -a d - log((1 - exp(-a)) / a)
                 = u (x - 1/2) - sum_n B_2n u^2n / (2n (2n)!)    near u = 0, B_2n the Bernoulli numbers,

    which is exact up to rounding for every u, like its gradient; torch's class is not for lambda in [0.499, 0.501].

    Args:
        logits: u, (batch_shape).
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    _SERIES = (1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600, -691 / 15692092416000)
    """B_2n / (2n (2n)!), n = 1 ... 6."""

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = torch.as_tensor(logits)
        super().__init__(self.logits.shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats."""
        if self._validate_args:
            self._validate_sample(value)
        near, small, large = self._split(0.5)
        a = large.abs()
        far = torch.where(large > 0, large * (value - 1), large * value) - (-torch.expm1(-a) / a).log()
        return torch.where(near, small * (value - 0.5) - self._even(small, 0), far)

    @property
    def mean(self) -> Tensor:
        """1/2 + coth(u/2) / 2 - 1/u."""
        near, small, large = self._split(0.5)
        return torch.where(near, 0.5 + self._even(small, 1), 0.5 + 0.5 / torch.tanh(large / 2) - 1 / large)

    @property
    def variance(self) -> Tensor:
        """1/u^2 - 1 / (4 sinh(u/2)^2)."""
        near, small, large = self._split(0.5)
        a = large.abs()
        return torch.where(near, self._even(small, 2), a**-2 - torch.exp(-a) / torch.expm1(-a) ** 2)

    def cdf(self, value: Tensor) -> Tensor:
        """(exp(u x) - 1) / (exp(u) - 1) for x = `value` in [0, 1]."""
        near, u, large = self._split(0.01)
        a, x = large.abs(), value
        far = torch.where(large > 0, torch.exp(-a * (1 - x)), 1) * torch.expm1(-a * x) / torch.expm1(-a)
        return torch.where(near, x - x * (1 - x) * (u / 2 + (2 * x - 1) * u**2 / 12 - x * (1 - x) * u**3 / 24), far)

    def icdf(self, value: Tensor) -> Tensor:
        """log(1 - v + v exp(u)) / u for v = `value` in [0, 1]; near u = 0 by the cumulants of Bernoulli(v)."""
        near, u, large = self._split(0.05)
        a, v = large.abs(), value
        w = torch.where(large > 0, 1 - v, v).clamp(max=1 - torch.finfo(v.dtype).eps)  # at 1 and large a: log of 0
        short = -torch.log1p(w * torch.expm1(-a)) / a
        q, skew = v * (1 - v), 1 - 2 * v
        series = v + q * (u / 2 + skew * u**2 / 6 + (1 - 6 * q) * u**3 / 24 + skew * (1 - 12 * q) * u**4 / 120)
        return torch.where(near, series, torch.where(large > 0, 1 - short, short)).clamp(0, 1)

    def rsample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws by inversion of the distribution function, (*sample_shape, *batch_shape)."""
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device))

    def _split(self, radius: float) -> tuple[Tensor, Tensor, Tensor]:
        """Whether |u| < radius, u where it is (else 0), and u where it is not (else 1), so neither branch fails."""
        u = self.logits
        near = u.abs() < radius
        return near, torch.where(near, u, 0.0), torch.where(near, 1.0, u)

    def _even(self, u: Tensor, order: int) -> Tensor:
        """The derivative of this order of log C(u) - u/2, by its series around 0."""
        powers = [(2 * n, c) for n, c in enumerate(self._SERIES, 1)]
        return torch.stack([c * math.perm(p, order) * u ** (p - order) for p, c in powers]).sum(0)


class ZeroOneInflatedBeta(dist.TorchDistribution):
    """p = pi_0 delta_0 + pi_1 delta_1 + (1 - pi_0 - pi_1) Beta(concentration1, concentration0) on [0, 1].

    The log density is with respect to delta_0 + delta_1 + Lebesgue measure: a log mass at 0 and at 1, a log density
    between (Ospina and Ferrari 2010, 0705.0700).

    Args:
        logits: logits of 0, of 1 and of the values between, (*batch_shape, 3).
        concentration1: weight of 1, (batch_shape).
        concentration0: weight of 0, (batch_shape); if both are 1 the density is uniform.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "logits": constraints.real_vector,
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }
    support = constraints.unit_interval
    atoms: ClassVar[tuple[float, ...]] = (0.0, 1.0)

    def __init__(
        self, logits: Tensor, concentration1: Tensor, concentration0: Tensor, validate_args: bool | None = None
    ) -> None:
        self.logits, self.concentration1, self.concentration0 = logits, concentration1, concentration0
        self.beta = dist.Beta(concentration1, concentration0, validate_args=False)
        super().__init__(torch.broadcast_shapes(logits.shape[:-1], self.beta.batch_shape), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass at 0 and 1, log density between, nats."""
        if self._validate_args:
            self._validate_sample(value)
        zero, one, between = self.logits.log_softmax(-1).unbind(-1)
        inside = (value > 0) & (value < 1)
        density = between + self.beta.log_prob(torch.where(inside, value, 0.5))
        return torch.where(inside, density, torch.where(value > 0.5, one, zero))

    @property
    def mean(self) -> Tensor:
        """pi_1 + (1 - pi_0 - pi_1) E[Beta]."""
        _, one, between = self.logits.softmax(-1).unbind(-1)
        return one + between * self.beta.mean

    @property
    def variance(self) -> Tensor:
        """E[x^2] - E[x]^2."""
        _, one, between = self.logits.softmax(-1).unbind(-1)
        return one + between * (self.beta.variance + self.beta.mean**2) - self.mean**2

    @torch.no_grad()
    def sample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws, (*sample_shape, *batch_shape); draws from the density never round to 0 or 1."""
        shape = self._extended_shape(sample_shape)
        which = dist.Categorical(logits=self.logits).expand(self.batch_shape).sample(sample_shape)
        edge = torch.finfo(self.logits.dtype).eps / 2
        return torch.where(which == 2, self.beta.expand(shape).sample().clamp(edge, 1 - edge), which.to(self.logits))


def poisson(rate: Tensor) -> Tensor:
    """Poisson draws for any rate: torch's, which are 64-bit integers, up to 2^40, and above it draws of N(rate, rate).

    There the normal distribution function has an error of at most 1e-6. Draws are bounded by the largest number of the
    type.
    """
    large = rate > 2.0**40
    rate = rate.clamp(max=torch.finfo(rate.dtype).max / 2)
    normal = (rate + rate.sqrt() * torch.randn_like(rate)).round()
    return torch.where(large, normal, torch.poisson(torch.where(large, 0.0, rate)))


class Poisson(dist.Poisson):
    """Poisson(rate) with correct draws for any rate.

    log P is computed in double precision, because for large counts it is a small difference of large numbers.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), (batch_shape), nats."""
        exact = dist.Poisson(self.rate.double(), validate_args=False).log_prob(value.double())
        return exact.to(torch.result_type(self.rate, value))

    @torch.no_grad()
    def sample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws, (*sample_shape, *batch_shape)."""
        return poisson(self.rate.expand(self._extended_shape(sample_shape)))


class NegativeBinomial(dist.NegativeBinomial):
    """NegativeBinomial(total_count, logits) with correct draws for any mean.

    log P is computed in double precision, because for large counts it is a small difference of large numbers.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), (batch_shape), nats."""
        count, logits = self.total_count.double(), self.logits.double()
        exact = dist.NegativeBinomial(count, logits=logits, validate_args=False).log_prob(value.double())
        return exact.to(torch.result_type(self.logits, value))

    @torch.no_grad()
    def sample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws, (*sample_shape, *batch_shape), of Poisson(r exp(logits)) with r ~ Gamma(total_count)."""
        gamma = dist.Gamma(self.total_count, 1.0, validate_args=False).expand(self.batch_shape).sample(sample_shape)
        return poisson(gamma * self.logits.exp())


class ZeroInflated(dist.TorchDistribution):
    """P(x) = g [x = 0] + (1 - g) base(x), g = sigmoid(gate_logits), over counts.

    Pyro's class fails or returns infinities where g or a probability of the base rounds to 1.

    Args:
        base: a distribution over counts.
        gate_logits: (batch_shape).
    """

    support = constraints.nonnegative_integer

    def __init__(self, base: dist.TorchDistribution, gate_logits: Tensor, validate_args: bool | None = None) -> None:
        self.base, self.gate_logits = base, gate_logits
        super().__init__(torch.broadcast_shapes(base.batch_shape, gate_logits.shape), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass, nats."""
        if self._validate_args:
            self._validate_sample(value)
        counted = logsigmoid(-self.gate_logits) + self.base.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(logsigmoid(self.gate_logits), counted), counted)

    @property
    def mean(self) -> Tensor:
        """(1 - g) E[base]."""
        return torch.sigmoid(-self.gate_logits) * self.base.mean

    @property
    def variance(self) -> Tensor:
        """(1 - g) (Var[base] + g E[base]^2)."""
        open_, gate = torch.sigmoid(-self.gate_logits), torch.sigmoid(self.gate_logits)
        return open_ * (self.base.variance + gate * self.base.mean**2)

    @torch.no_grad()
    def sample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws, (*sample_shape, *batch_shape)."""
        shape = self._extended_shape(sample_shape)
        counted = self.base.expand(shape).sample()
        return torch.where(torch.rand_like(counted) < torch.sigmoid(self.gate_logits), 0.0, counted)


class ZeroInflatedPoisson(ZeroInflated):
    """`ZeroInflated` over Poisson(rate)."""

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "rate": constraints.positive,
        "gate_logits": constraints.real,
    }

    def __init__(self, rate: Tensor, gate_logits: Tensor, validate_args: bool | None = None) -> None:
        self.rate = rate
        super().__init__(Poisson(rate, validate_args=False), gate_logits, validate_args)


class ZeroInflatedNegativeBinomial(ZeroInflated):
    """`ZeroInflated` over NegativeBinomial(total_count, logits)."""

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "total_count": constraints.positive,
        "logits": constraints.real,
        "gate_logits": constraints.real,
    }

    def __init__(
        self, total_count: Tensor, logits: Tensor, gate_logits: Tensor, validate_args: bool | None = None
    ) -> None:
        self.total_count, self.logits = total_count, logits
        base = NegativeBinomial(total_count, logits=logits, validate_args=False)
        super().__init__(base, gate_logits, validate_args)


class Levels(Constraint):
    """The numbers 0, 1/(levels - 1), ..., 1, each to within a hundredth of a step.

    Args:
        levels: number of levels.
    """

    is_discrete = True
    event_dim = 0
    lower_bound = 0.0

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        """Whether each value is one of the levels."""
        step = value * (self.levels - 1)
        nearest = step.round()
        return ((step - nearest).abs() < 0.01) & (nearest >= 0) & (nearest < self.levels)

    def __repr__(self) -> str:
        return f"the {self.levels} levels 0, 1/{self.levels - 1}, ..., 1 (option `levels`)"


class CategoricalLevels(dist.TorchDistribution):
    """P(x = k / (levels - 1)) = softmax(logits)_k, k = 0 ... levels - 1.

    Args:
        logits: (*batch_shape, levels).
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"logits": constraints.real_vector}

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits.log_softmax(-1)
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Constraint:
        """The grid."""
        return Levels(self.logits.shape[-1])

    @property
    def grid(self) -> Tensor:
        """The values, (levels,)."""
        return torch.linspace(0, 1, self.logits.shape[-1]).to(self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass, nats."""
        if self._validate_args:
            self._validate_sample(value)
        levels = self.logits.shape[-1]
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        index = (value * (levels - 1)).round().long().expand(shape).unsqueeze(-1)
        return self.logits.expand((*shape, levels)).gather(-1, index).squeeze(-1)

    @property
    def mean(self) -> Tensor:
        """sum_k p_k k / (levels - 1)."""
        return self.logits.exp() @ self.grid

    @property
    def variance(self) -> Tensor:
        """E[(x - E[x])^2]."""
        return (self.logits.exp() * (self.grid - self.mean.unsqueeze(-1)) ** 2).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws, (*sample_shape, *batch_shape)."""
        return self.grid[dist.Categorical(logits=self.logits).sample(sample_shape)]


class DiscretizedLogistic(dist.TorchDistribution):
    """A mixture of logistics rounded to k / (levels - 1), with tails at both ends (Salimans et al. 2017, 1701.05517).

        P(x) = sum_c w_c [sigmoid(b_c) - sigmoid(a_c)],  a_c, b_c = (x -+ step / 2 - loc_c) / scale_c,

    step = 1 / (levels - 1), with a = -inf at x = 0 and b = inf at x = 1, so that it sums to one. In log space,

        log [sigmoid(b) - sigmoid(a)] = log sigmoid(b) + log sigmoid(-a) + log(1 - exp(-step / scale)).

    Args:
        loc: centres, (*batch_shape, components).
        scale: scales, (*batch_shape, components).
        logits: logits of the weights w, (*batch_shape, components); None means equal weights.
        levels: number of levels.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "logits": constraints.real_vector,
    }

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        logits: Tensor | None = None,
        *,
        levels: int,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.logits = (torch.zeros_like(self.loc) if logits is None else logits).log_softmax(-1)
        self.levels = levels
        super().__init__(self.loc.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Constraint:
        """The grid."""
        return Levels(self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass, nats."""
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 / (self.levels - 1)
        x = value.unsqueeze(-1)
        below = logsigmoid((x + half - self.loc) / self.scale)
        above = logsigmoid((self.loc - x + half) / self.scale)
        inner = below + above + (-torch.expm1(-2 * half / self.scale)).log()
        log_mass = torch.where(x < half, below, torch.where(x > 1 - half, above, inner))
        return (self.logits + log_mass).logsumexp(-1)

    @property
    def mean(self) -> Tensor:
        """E[x] = step sum_k P(x >= k step), k = 1 ... levels - 1, computed level by level."""
        weights, step = self.logits.exp(), 1 / (self.levels - 1)
        mean = torch.zeros(self.batch_shape).to(self.loc)
        for k in range(1, self.levels):
            mean = mean + step * (weights * torch.sigmoid((self.loc - (k - 0.5) * step) / self.scale)).sum(-1)
        return mean

    @torch.no_grad()
    def sample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws, (*sample_shape, *batch_shape)."""
        component = dist.Categorical(logits=self.logits).sample(sample_shape).unsqueeze(-1)
        shape = (*component.shape[:-1], self.loc.shape[-1])
        loc, scale = (p.expand(shape).gather(-1, component).squeeze(-1) for p in (self.loc, self.scale))
        noise = torch.logit(torch.rand_like(loc), eps=torch.finfo(loc.dtype).eps)
        return ((loc + scale * noise) * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)


class _Representable:
    """x = T(v) clamped to the numbers that its type can represent.

    At the smallest and largest number `log_prob` is the log of the mass of the tail over a width, so that draws and
    densities agree, and ratios of such densities are correct, however far out the mass lies. The gradient of a draw is
    0 there: pathwise gradients leave out mass that crosses an end.
    """

    transforms: list[Any]
    _validate_args: bool
    _validate_sample: Any

    def _ends(self) -> tuple[float, float, float]:
        """The smallest number, which is also the width of the lower tail, the largest, and the upper tail's width."""
        raise NotImplementedError

    def _draw(self, sample_shape: Size) -> Tensor:
        """Draws of v."""
        raise NotImplementedError

    def _standard(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The log density of v, and the logs of its distribution function and of its survival function."""
        raise NotImplementedError

    def rsample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws, (*sample_shape, *batch_shape), with gradient 0 at either end."""
        v, transform = self._draw(sample_shape), self.transforms[0]
        low, high = (torch.tensor(end, dtype=v.dtype, device=v.device) for end in self._ends()[:2])
        first, last = transform.inv(low), transform.inv(high)
        inner = transform(v.clamp(first, last)).clamp(torch.nextafter(low, high), torch.nextafter(high, low))
        return torch.where(v <= first, low, torch.where(v >= last, high, inner))

    @torch.no_grad()
    def sample(self, sample_shape: Size = EMPTY) -> Tensor:
        """Draws, (*sample_shape, *batch_shape)."""
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats."""
        if self._validate_args:
            self._validate_sample(value)
        (transform,), (low, high, width) = self.transforms, self._ends()
        first, last = (transform.inv(torch.full_like(value, end)) for end in (low, high))
        below, above = value <= low, value >= high
        v = transform.inv(torch.where(below | above, 0.5, value))
        density = self._standard(v)[0] - transform.log_abs_det_jacobian(v, value)
        density = torch.where(below, self._standard(first)[1] - math.log(low), density)
        return torch.where(above, self._standard(last)[2] - math.log(width), density)


class RelaxedBernoulli(_Representable, dist.RelaxedBernoulli):
    """x = sigmoid((logits + logit(v)) / temperature), v uniform (Maddison et al. 2017, 1611.00712), with a mean.

    Pyro's class draws as if logits lay within 16 of 0, and returns infinities far from it.
    """

    def _ends(self) -> tuple[float, float, float]:
        number = torch.finfo(self.logits.dtype)
        return number.tiny, 1 - 8 * number.eps, 8 * number.eps  # closer to 1 the spacing of numbers is too coarse

    def _draw(self, sample_shape: Size) -> Tensor:
        u = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device)
        return (self.logits + torch.logit(u, eps=torch.finfo(u.dtype).eps)) / self.temperature

    def _standard(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        far = self.temperature * v - self.logits
        below, above = logsigmoid(far), logsigmoid(-far)
        return self.temperature.log() + below + above, below, above

    @property
    def mean(self) -> Tensor:
        """E[x], averaged over 200 equal parts of v."""
        v = (torch.arange(200).to(self.logits) + 0.5) / 200
        return torch.sigmoid((self.logits.unsqueeze(-1) + v.logit()) / self.temperature).mean(-1)


class LogNormal(_Representable, dist.LogNormal):
    """x = exp(v), v ~ N(loc, scale^2); Pyro's class also draws 0 and infinity, which have no density."""

    def _ends(self) -> tuple[float, float, float]:
        number = torch.finfo(self.loc.dtype)
        return number.tiny, 1 / number.tiny, 1 / number.tiny

    def _draw(self, sample_shape: Size) -> Tensor:
        return self.base_dist.rsample(sample_shape)

    def _standard(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        far = (v - self.loc) / self.scale
        density = -0.5 * far.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)
        tail = far.clamp(-1e3, 1e3)  # beyond, the gradient of log_ndtr is wrong
        return density, torch.special.log_ndtr(tail), torch.special.log_ndtr(-tail)


class RelaxedOneHotCategorical(dist.RelaxedOneHotCategorical):
    """x = softmax((logits + g) / temperature), g standard Gumbel (Maddison et al. 2017, 1611.00712), with a mean.

    Elements that round to 0 are scored at the smallest number instead of with an infinite density.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats."""
        return super().log_prob(value.clamp(min=torch.finfo(value.dtype).tiny))

    @property
    def mean(self) -> Tensor:
        """E[x], averaged over 512 quasi-random g that are the same in each call; accurate to about 0.01."""
        v = SobolEngine(self.event_shape[0], seed=0, scramble=True).draw(512).clamp(1e-6, 1 - 1e-6).to(self.logits)
        g = -(-v.log()).log()
        return torch.softmax((self.logits.unsqueeze(-2) + g) / self.temperature, -1).mean(-2)
