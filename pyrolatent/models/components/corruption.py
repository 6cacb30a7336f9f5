"""Corruptions p(x̃ | x), what noise does to clean data, and p(x | z, x̃), what the clean data were."""

import math
from typing import Annotated, Any, ClassVar

import pyro.distributions as dist
import torch
from annotated_types import Gt, Lt
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.functional import conv2d

from pyrolatent.declaration import PositiveFloat, component
from pyrolatent.errors import InputError
from pyrolatent.models.components import distributions as ours
from pyrolatent.models.components.conditional import filled
from pyrolatent.models.components.distributions import innermost

Rate = Annotated[float, Gt(0), Lt(1)]
NODES = 41
"""Number of nodes of a quadrature over clean values."""
REACH = 4.0
"""Standard deviations of the noise on both sides of a noisy value between which the nodes lie."""


class Clean:
    """p(x | z, x̃) of clean data, and log p(x̃ | z) of each entry or of all together."""

    mean: Tensor
    log_evidence: Tensor

    def sample(self) -> Tensor:
        """A draw of x, of the shape of x̃."""
        raise NotImplementedError


class _Gaussian(Clean):
    """N(mean, deviation²) of a normal x behind normal noise."""

    def __init__(self, entries: Any, noisy: Tensor, scale: Tensor) -> None:
        gain = entries.variance / (entries.variance + scale**2)
        self.mean, self.deviation = torch.lerp(entries.mean, noisy, gain), (gain * scale**2).sqrt()
        self.log_evidence = dist.Normal(entries.mean, (entries.variance + scale**2).sqrt()).log_prob(noisy)

    def sample(self) -> Tensor:
        return torch.normal(self.mean, self.deviation)


class _Bits(Clean):
    """P(x = 1) = sigmoid(log_odds)."""

    def __init__(self, entries: Any, noisy: Tensor, log_noise: Any) -> None:
        """Takes p(x | z) and x -> log p(x̃ | x)."""
        ones, zeros = (
            entries.log_prob(torch.full_like(noisy, value)) + log_noise(torch.full_like(noisy, value))
            for value in (1.0, 0.0)
        )
        self.mean, self.log_evidence = (ones - zeros).sigmoid(), torch.logaddexp(ones, zeros)

    def sample(self) -> Tensor:
        return (torch.rand_like(self.mean) < self.mean).to(self.mean)


class _States(Clean):
    """Values, (states, ...), with log-probabilities up to a constant, (states, batch, *event_shape).

    Args:
        values: the values.
        log_weights: their log-probabilities.
        spacing: width of the cells around values, within which draws are uniform; 0 for a discrete x.
    """

    def __init__(self, values: Tensor, log_weights: Tensor, spacing: float = 0.0) -> None:
        self.values, self.log_weights, self.spacing = values.expand_as(log_weights), log_weights, spacing

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        return (self.log_weights.softmax(0) * self.values).sum(0)

    @property
    def log_evidence(self) -> Tensor:  # type: ignore[override]
        return self.log_weights.logsumexp(0) + (math.log(self.spacing) if self.spacing else 0.0)

    def sample(self) -> Tensor:
        below = self.log_weights.softmax(0).cumsum(0)[:-1]
        chosen = (torch.rand_like(below[:1]) > below).sum(0, keepdim=True)
        drawn = self.values.gather(0, chosen).squeeze(0)
        return drawn + self.spacing * (torch.rand_like(drawn) - 0.5) if self.spacing else drawn


class _Mixture(Clean):
    """x is x̃ with probability `kept`, and drawn from p(x | z) otherwise."""

    def __init__(self, noisy: Tensor, kept: Tensor, likelihood: Any, log_evidence: Tensor) -> None:
        self.noisy, self.kept, self.likelihood, self.log_evidence = noisy, kept, likelihood, log_evidence
        self.replaced = torch.zeros(())

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        return self.kept * self.noisy + (1 - self.kept) * self.likelihood.mean

    def sample(self) -> Tensor:
        kept = torch.rand_like(self.kept) < self.kept
        self.replaced = (~kept).double().mean()
        return torch.where(kept, self.noisy, self.likelihood.sample())


class Corruption(nn.Module):
    """A corruption with one number, a rate or a scale, that is known or to be learned from noisy data.

    Attributes:
        learned: whether the number is to be learned.
        number: its value, (), or that of the last draw.
    """

    first: ClassVar[float] = 0.2
    """The number at which learning starts."""

    def __init__(self, number: float | None) -> None:
        super().__init__()
        self.learned = number is None
        self.number: Tensor
        self.register_buffer("number", torch.tensor(self.first if number is None else number), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Draws x̃ ~ p(x̃ | x), of the shape of x."""
        raise NotImplementedError

    def given(self, likelihood: Any, noisy: Tensor) -> Clean:
        """p(x | z, x̃), from the likelihood p(x | z) and noisy data (batch, *event_shape).

        Raises:
            InputError: it cannot be computed for this likelihood.
        """
        raise NotImplementedError

    def learn(self, clean: Clean, x: Tensor, noisy: Tensor) -> None:
        """Draws the number from its posterior given clean and noisy data, under a flat prior."""
        raise NotImplementedError

    def _of_entries(self, likelihood: Any) -> Any:
        """The distribution of each entry."""
        entries = likelihood
        while isinstance(entries, dist.Independent):
            entries = entries.base_dist
        if entries.event_shape or isinstance(innermost(entries), ours.ZeroOneInflatedBeta | ours.ZeroInflated):
            raise InputError(
                f"{type(self).__name__} is removed from entries that are independent given z and have a mass or a "
                f"density, but the likelihood is {type(innermost(entries)).__name__}; declare another one"
            )
        return entries


class Behind(Messenger):
    """Replaces p(x | z) at the site of x by p(x̃ | z), so that what runs within this context is inference given x̃.

    Args:
        corruption: the corruption.
        site: the site of x.
    """

    def __init__(self, corruption: Corruption, site: str) -> None:
        super().__init__()
        self.corruption, self.site = corruption, site

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site and msg["is_observed"]:
            msg["fn"] = _Noisy(msg["fn"], self.corruption)


class _Noisy(dist.TorchDistribution):
    """p(x̃ | z)."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, likelihood: Any, corruption: Corruption) -> None:
        self.likelihood, self.corruption = likelihood, corruption
        super().__init__(likelihood.batch_shape, likelihood.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or mass of noisy data."""
        lead = torch.broadcast_shapes(self.batch_shape, value.shape[: value.dim() - len(self.event_shape)])
        each = self.corruption.given(self.likelihood, value.expand(*lead, *self.event_shape)).log_evidence
        return each.sum([*range(len(lead), each.dim())]) if each.dim() > len(lead) else each


def _support(entries: Any) -> Any:
    support = entries.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


@component("flips", "corruption")
class Flips(Corruption):
    """Each entry of x in {0, 1} becomes 1 - x with probability rate.

    Args:
        rate: the probability; None learns it.
    """

    def __init__(self, *, rate: Rate | None = None) -> None:
        super().__init__(rate)

    def forward(self, x: Tensor) -> Tensor:
        """Draws x̃."""
        return torch.where(torch.rand_like(x) < self.number, 1 - x, x)

    def given(self, likelihood: Any, noisy: Tensor) -> Clean:
        """p(x | z, x̃) over {0, 1}."""
        entries = self._of_entries(likelihood)
        if not isinstance(_support(entries), type(constraints.boolean)):
            raise InputError(
                "flips are of values 0 and 1, which the likelihood is not over; declare another corruption"
            )
        if not ((noisy == 0) | (noisy == 1)).all():
            raise InputError("flips are of values 0 and 1, but the noisy data hold others; threshold them, or declare "
                             "another corruption")  # fmt: skip
        same, other = (1 - self.number).log(), self.number.log()
        return _Bits(entries, noisy, lambda x: torch.where(x == noisy, same, other))

    def learn(self, clean: Clean, x: Tensor, noisy: Tensor) -> None:
        """Draws the rate from a beta distribution."""
        flipped = (x != noisy).double().sum()
        self.number.copy_(dist.Beta(1 + flipped, 1 + x.numel() - flipped).sample())


class _Replacement(Corruption):
    """x̃ is one of some values with probability rate, and x otherwise."""

    def __init__(self, rate: float | None, values: tuple[float, ...]) -> None:
        super().__init__(rate)
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        """Draws x̃."""
        values = x.new_tensor(self.values)[torch.randint(len(self.values), x.shape, device=x.device)]
        return torch.where(torch.rand_like(x) < self.number, values, x)

    def given(self, likelihood: Any, noisy: Tensor) -> Clean:
        """x is x̃ wherever x̃ is none of the values, and may be elsewhere if x is discrete."""
        entries = self._of_entries(likelihood)
        placed = torch.stack([noisy == value for value in self.values]).any(0)
        replaced = (self.number / len(self.values)).log()
        support = _support(entries)
        outside = int((~support.check(noisy) & ~placed).sum())
        if outside:
            raise InputError(
                f"{outside} noisy values are neither {' nor '.join(map(str, self.values))} nor in {support}"
            )
        scored = noisy if support.is_discrete else filled(noisy, ~placed, support)  # a density may be infinite there
        left = (1 - self.number).log() + entries.log_prob(scored)
        if support.is_discrete:
            kept = torch.where(placed, (left - replaced).sigmoid(), 1.0)
            log_evidence = torch.where(placed, torch.logaddexp(left, replaced), left)
        else:  # a density has no mass at the values
            kept, log_evidence = (~placed).to(noisy), torch.where(placed, replaced, left)
        return _Mixture(noisy, kept, entries, log_evidence)

    def learn(self, clean: Clean, x: Tensor, noisy: Tensor) -> None:
        """Draws the rate from a beta distribution."""
        replaced = clean.replaced * x.numel()  # type: ignore[attr-defined]
        self.number.copy_(dist.Beta(1 + replaced, 1 + x.numel() - replaced).sample())


@component("salt_and_pepper", "corruption")
class SaltAndPepper(_Replacement):
    """Each entry becomes `low` or `high` with probability rate / 2 each.

    Args:
        rate: the probability; None learns it.
        low: pepper.
        high: salt.
    """

    def __init__(self, *, rate: Rate | None = None, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(rate, (low, high))


@component("masking", "corruption")
class Masking(_Replacement):
    """Each entry becomes a value with probability rate; where it is known which, `impute` is the task.

    Args:
        rate: the probability; None learns it.
        value: the value.
    """

    def __init__(self, *, rate: Rate | None = None, value: float = 0.0) -> None:
        super().__init__(rate, (value,))


@component("gaussian_noise", "corruption")
class GaussianNoise(Corruption):
    """x becomes x + scale e, e ~ N(0, 1).

    p(x | z, x̃) is exact for normal likelihoods and for those over a few values, and a quadrature for others.

    Args:
        scale: the standard deviation in the units of x; None learns it.
    """

    def __init__(self, *, scale: PositiveFloat | None = None) -> None:
        super().__init__(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Draws x̃."""
        return x + self.number * torch.randn_like(x)

    def given(self, likelihood: Any, noisy: Tensor) -> Clean:
        """p(x | z, x̃)."""
        entries = self._of_entries(likelihood)
        if isinstance(entries, dist.Normal):
            return _Gaussian(entries, noisy, self.number)
        support, spacing = _support(entries), 0.0
        if isinstance(support, type(constraints.boolean)):
            return _Bits(entries, noisy, lambda x: dist.Normal(x, self.number).log_prob(noisy))
        if support.is_discrete:
            values = _values_of(entries, noisy)
        elif isinstance(support, constraints.interval) and not torch.is_tensor(support.lower_bound):
            low, high = float(support.lower_bound), float(support.upper_bound)
            spacing = (high - low) / NODES
            values = low + spacing * (torch.arange(NODES).to(noisy) + 0.5).reshape(-1, *[1] * noisy.dim())
        else:
            spacing = 2 * REACH * self.number.item() / (NODES - 1)
            steps = torch.linspace(-REACH, REACH, NODES).to(noisy).reshape(-1, *[1] * noisy.dim())
            values = noisy + self.number * steps
        values = values.expand(len(values), *noisy.shape)
        inside = support.check(values)
        log_p = entries.log_prob(filled(values, inside, support))
        noise = dist.Normal(values, self.number).log_prob(noisy)
        return _States(values, torch.where(inside, log_p + noise, -torch.inf), spacing)

    def learn(self, clean: Clean, x: Tensor, noisy: Tensor) -> None:
        """Draws the variance from an inverse gamma distribution."""
        squares = (x - noisy).double().square().sum()
        self.number.copy_((squares / 2 / dist.Gamma(x.numel() / 2, squares.new_ones(())).sample()).sqrt())


def _values_of(entries: Any, noisy: Tensor) -> Tensor:
    """The values of a discrete distribution over few, (values, 1, ...)."""
    support = _support(entries)
    if not isinstance(support, ours.Levels):
        raise InputError(f"Gaussian noise is removed from values of a known range, which {support} has not")
    return torch.linspace(0, 1, support.levels).to(noisy).reshape(-1, *[1] * noisy.dim())


@component("blur", "corruption")
class Blur(Corruption):
    """x becomes B x + scale e, e ~ N(0, 1), B a Gaussian blur of images with zeros beyond their edges.

    p(x | z, x̃) is normal for normal likelihoods, to which it applies.

    Args:
        width: standard deviation of the blur in pixels.
        scale: standard deviation of the noise in the units of x; None learns it.
    """

    def __init__(self, *, width: PositiveFloat = 1.0, scale: PositiveFloat | None = 0.05) -> None:
        super().__init__(scale)
        self.width = width

    def blurred(self, x: Tensor) -> Tensor:
        """B x, of the shape of x, (..., height, width)."""
        if x.dim() < 3:
            raise InputError(f"a blur is of images (batch, ..., height, width), but x has shape {tuple(x.shape)}")
        reach = max(1, round(3 * self.width))
        kernel = (-0.5 * (torch.arange(-reach, reach + 1).to(x) / self.width).square()).exp()
        kernel = kernel / kernel.sum()
        flat = x.reshape(-1, 1, *x.shape[-2:])
        rows = conv2d(flat, kernel.reshape(1, 1, -1, 1), padding=(reach, 0))
        return conv2d(rows, kernel.reshape(1, 1, 1, -1), padding=(0, reach)).reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Draws x̃."""
        blurred = self.blurred(x)
        return blurred + self.number * torch.randn_like(blurred)

    def given(self, likelihood: Any, noisy: Tensor) -> Clean:
        """p(x | z, x̃), by the conditional distribution of a joint normal."""
        entries = self._of_entries(likelihood)
        if not isinstance(entries, dist.Normal):
            raise InputError(
                f"a blur mixes pixels, so that it is removed from normal likelihoods, but this is "
                f"{type(innermost(entries)).__name__}; declare likelihood: normal"
            )
        return _Deblurred(self, entries, noisy, len(likelihood.event_shape))

    def learn(self, clean: Clean, x: Tensor, noisy: Tensor) -> None:
        """Draws the variance of the noise from an inverse gamma distribution."""
        squares = (self.blurred(x) - noisy).double().square().sum()
        self.number.copy_((squares / 2 / dist.Gamma(x.numel() / 2, squares.new_ones(())).sample()).sqrt())


class _Deblurred(Clean):
    """N(m + K (x̃ - B m), ...) with K = V B' (B V B' + scale² I)⁻¹ and V the variances of p(x | z), one for all rows."""

    def __init__(self, blur: Blur, entries: Any, noisy: Tensor, event_dims: int) -> None:
        self.blur, self.entries, self.noisy = blur, entries, noisy
        event = noisy.shape[noisy.dim() - event_dims :]
        size = event.numel()
        variance = entries.variance.expand(noisy.shape).reshape(-1, size)
        if not torch.allclose(variance, variance[:1]):
            raise InputError(
                "a blur is removed under one noise scale for all datapoints, but the likelihood predicts it; declare "
                "normal with a known or a learned scale"
            )
        self.variance = variance[0]
        self.matrix = blur.blurred(torch.eye(size).to(noisy).reshape(size, *event)).reshape(size, size).T
        covariance = (self.matrix * self.variance) @ self.matrix.T
        self.factor = torch.linalg.cholesky(covariance + blur.number**2 * torch.eye(size).to(noisy))
        rest = (noisy - blur.blurred(entries.mean.expand(noisy.shape))).reshape(
            *noisy.shape[: -event_dims or None], size
        )
        self.log_evidence = dist.MultivariateNormal(torch.zeros_like(rest), scale_tril=self.factor).log_prob(rest)

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        mean = self.entries.mean.expand(self.noisy.shape)
        return mean + self._gain(self.noisy - self.blur.blurred(mean))

    def sample(self) -> Tensor:
        x = self.entries.sample().expand(self.noisy.shape)
        return x + self._gain(self.noisy - self.blur(x))

    def _gain(self, rest: Tensor) -> Tensor:
        flat = rest.reshape(-1, len(self.variance))
        solved = torch.cholesky_solve(flat.T, self.factor).T
        return (self.variance * (solved @ self.matrix)).reshape(rest.shape)
