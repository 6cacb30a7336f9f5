"""Calibration of an approximate posterior on data that the model itself has drawn.

With (z*, x) ~ p(z, x) and z_1, ..., z_L ~ q(z | x), z* is one more draw from q if q is the exact posterior: whatever is
computed of them, its rank is uniform.
"""

import functools
import math

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]


def fractional_ranks(truth: Tensor, draws: Tensor) -> Tensor:
    """(number of draws below the truth + U) / (L + 1), which is uniform on (0, 1) if the truth is one of them.

    U ~ Uniform(0, 1 + number of ties) breaks ties at random (Talts et al. 2018, 1804.06788).

    Args:
        truth: (simulations, ...).
        draws: (L, simulations, ...).
    """
    below, ties = (draws < truth).double().sum(0), (draws == truth).double().sum(0)
    return (below + torch.rand_like(below) * (1 + ties)) / (len(draws) + 1)


def uniformity(ranks: Tensor) -> float:
    """The p-value of the hypothesis that values in (0, 1) are uniform, simultaneously over their whole ECDF.

    The statistic is the smallest of the binomial tail probabilities 2 min(P(B <= k), P(B >= k)), B ~ Bin(n, t), of
    the counts k of values up to t = 1/K, ..., 1; its distribution is simulated (Sailynoja et al. 2022, 2103.10522), and
    where that is too coarse, bounded by K times the statistic.

    Args:
        ranks: (n,).
    """
    counts = _counts(np.sort(ranks.double().cpu().numpy()))
    least, reference = float(_least_tail(counts, len(ranks))), _reference(len(ranks))
    return min(float((1 + (reference <= least).sum()) / (1 + len(reference))), len(counts) * least)


def ecdf_band(n: int, level: float = 0.99) -> tuple[Array, Array, Array]:
    """A band that holds the whole ECDF of n uniform values with this probability.

    Args:
        n: number of values.
        level: the probability.

    Returns:
        Points t, (K,), and the band's lower and upper end there, as shares of n.
    """
    gamma = float(np.quantile(_reference(n), 1 - level))
    points = _points(n)
    lower = scipy.stats.binom.ppf(gamma / 2, n, points) / n
    upper = scipy.stats.binom.ppf(1 - gamma / 2, n, points) / n
    return points, lower, upper


def coverage(ranks: Tensor, levels: Tensor) -> Tensor:
    """How often the truth lies in the region of highest q with this credibility, (levels,); nominal if q is calibrated.

    Args:
        ranks: (simulations,), fractional ranks of log q(z* | x) among those of draws from q: the truth is in the region
            of credibility c if its rank is above 1 - c (Hermans et al. 2022, 2110.06581).
        levels: credibilities c.
    """
    return (ranks > 1 - levels.unsqueeze(-1).to(ranks)).double().mean(-1)


def tarp(truth: Tensor, draws: Tensor, references: Tensor) -> Tensor:
    """Ranks of the truth's distance to a reference point among the draws', uniform if q is exact (Lemos et al. 2023).

    A reference that depends on x makes this sufficient: for one that does not, the prior passes (2302.03026).

    Args:
        truth: z*, (simulations, dimensions).
        draws: of q, (L, simulations, dimensions).
        references: (simulations, dimensions).
    """
    scale = truth.std(0).clamp(min=1e-12)
    distances = [((value - references) / scale).norm(dim=-1) for value in (truth, draws)]
    return fractional_ranks(*distances)


def references_from_data(x: Tensor, z: Tensor, at: Tensor) -> Tensor:
    """What a ridge regression of simulated latents z on their x predicts, in standard units of both, for other x.

    Args:
        x: (n, ...) data, flattened.
        z: (n, dimensions).
        at: (m, ...) data.

    Returns:
        (m, dimensions).
    """
    flat, new = x.flatten(1).double(), at.flatten(1).double()
    mean, scale = flat.mean(0), flat.std(0).clamp(min=1e-12)
    flat, new = (((each - mean) / scale) for each in (flat, new))
    target, centre = z.double() - z.double().mean(0), z.double().mean(0)
    gram = flat @ flat.T
    ridge = gram.diagonal().mean() * 0.1
    solved = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), target)
    return (new @ flat.T @ solved + centre).to(z)


def _points(n: int) -> Array:
    size = min(n, 100)
    return np.arange(1, size) / size


def _counts(ordered: Array) -> Array:
    return np.searchsorted(ordered, _points(len(ordered)), side="right").astype(np.float64)


def _least_tail(counts: Array, n: int) -> Array:
    """Smallest two-sided tail probability over the points, (...), of counts (..., points)."""
    points = _points(n)
    below = scipy.stats.binom.cdf(counts, n, points)
    above = scipy.stats.binom.sf(counts - 1, n, points)
    least: Array = (2 * np.minimum(below, above)).min(-1)
    return least


@functools.lru_cache(maxsize=16)
def _reference(n: int, size: int = 2000) -> Array:
    """The statistic of `size` simulated sets of n uniform values."""
    random = np.random.default_rng(0)
    counts = np.stack([_counts(np.sort(random.random(n))) for _ in range(size)])
    return _least_tail(counts, n)


def binomial_interval(share: float, n: int, level: float = 0.99) -> tuple[float, float]:
    """Where a share that is estimated from n trials lies with this probability."""
    half = float(scipy.stats.norm.ppf(0.5 + level / 2)) * math.sqrt(share * (1 - share) / n)
    return share - half, share + half
