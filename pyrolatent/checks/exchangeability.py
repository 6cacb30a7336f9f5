"""p-values that are valid for any number of draws, by exchangeability.

If a true value is a further draw from the distribution that it is compared with, exchanging it for any of the draws
does not change the joint distribution. A statistic is compared with its values after random exchanges,

    p = (1 + number of exchanges whose statistic is at least as extreme) / (1 + number of exchanges),

so that P(p <= a) <= a for any statistic, however skewed, and any dependence between dimensions, with equality up to
ties and the number of exchanges (Hoeffding 1952; Phipson and Smyth 2010, 1603.05766).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from torch import Tensor

from pyrolatent.errors import InputError

Array = npt.NDArray[np.float64]
EXCHANGES = 1999
"""Number of exchanges: p can then be 1 in 2,000, below a level of 1 % corrected for the number of checks."""
AT_ONCE = 2**22
"""Number of elements that are exchanged at a time."""


@dataclass(frozen=True)
class RankTest:
    """The result of `rank_test`.

    Attributes:
        p_value: p-value over all dimensions.
        ranks: ranks of the true values among their draws, (n, k), uniform on (0, 1) if they are further draws.
        worst: the dimension with the least uniform ranks.
    """

    p_value: float
    ranks: Tensor
    worst: int


def rank_test(truth: Tensor, draws: Tensor, exchanges: int = EXCHANGES) -> RankTest:
    """Tests that each true value is exchangeable with its draws, by the ECDFs of ranks in all dimensions at once.

    The statistic is the smallest of the binomial tail probabilities 2 min(P(B <= c), P(B >= c)), B ~ Bin(n, t), of the
    counts c of ranks up to t = 1/G, ..., 1 in any dimension (Talts et al. 2018, 1804.06788; Sailynoja et al. 2022,
    2103.10522). Ties are broken at random. In the far tail, where exchanges are too few, p is bounded by the statistic
    times the number of points and dimensions.

    Args:
        truth: (n,) or (n, k).
        draws: (L, n) or (L, n, k).
        exchanges: number of random exchanges.
    """
    values = torch.cat([truth.unsqueeze(0), draws]).reshape(len(draws) + 1, len(truth), -1)
    places = _fractional(values)
    n, k = places.shape[1:]
    binned = bins(places.cpu().numpy())
    random = _generator()
    own = least_tails(binned[:1])[0]
    at_once = max(1, AT_ONCE // (n * k))
    sizes = [min(at_once, exchanges - start) for start in range(0, exchanges, at_once)]
    others = [least_tails(binned[random.integers(len(values), size=(size, n)), np.arange(n)]).min(-1) for size in sizes]
    p_value = _at_least_as_extreme(-own.min(), -np.concatenate(others))
    return RankTest(min(p_value, float(own.min() * k * len(grid(n)))), places[0], int(own.argmin()))


def replicate_test(statistics: Mapping[str, Tensor]) -> tuple[float, dict[str, float], dict[str, Array]]:
    """Tests that a data set is exchangeable with its replicates, by several statistics at once.

    A vector T is reduced to its distance sqrt(mean_d ((T_d - m_d) / s_d)^2) from the mean of all sets, over entries
    that vary, of which large values are extreme; a number is extreme on both sides. The smallest of their p-values,
    from normal tails (of the cube root of the squared distance, Wilson and Hilferty 1931), is compared between sets.

    Args:
        statistics: values by name of the statistic, (1 + replicates, k), those of the data set first.

    Returns:
        The p-value over all statistics, the p-value of each, and the compared numbers, those of the data first.
    """
    each, compared, tails = {}, {}, []
    for name, given in statistics.items():
        values = given.double().cpu().numpy()
        if np.isnan(values).any():
            raise InputError(f"the statistic {name!r} is not a number for some of the data sets; leave it out")
        finite = np.abs(values[np.isfinite(values)]).max(initial=1.0)
        values = np.nan_to_num(values, posinf=10 * finite, neginf=-10 * finite)
        scale = values.std(0)
        varies = scale > 1e-9 * np.abs(values).max(0).clip(min=1e-300)
        if values.shape[1] == 1:
            compared[name] = values[:, 0]
            standard = np.abs(_standardised(values[:, 0])) if varies[0] else np.zeros(len(values))
            tails.append(np.log(2) + scipy.stats.norm.logsf(standard))
            below, above = (_at_least_as_extreme(s * values[0, 0], s * values[1:, 0]) for s in (-1, 1))
            each[name] = min(1.0, 2 * min(below, above))
        else:
            standard = (values[:, varies] - values[:, varies].mean(0)) / scale[varies]
            distance = np.sqrt((standard**2).mean(1)) if varies.any() else np.zeros(len(values))
            compared[name] = distance
            root = _standardised(np.cbrt(distance**2)) if varies.any() else distance
            tails.append(scipy.stats.norm.logsf(root))
            each[name] = _at_least_as_extreme(distance[0], distance[1:])
    least = np.min(tails, 0)
    return _at_least_as_extreme(-least[0], -least[1:]), each, compared


def sign_flip_test(differences: Tensor, exchanges: int = EXCHANGES) -> float:
    """Tests that the two members of each pair are exchangeable, against a positive mean difference.

    Args:
        differences: score of the first minus score of the second member of each pair, (n,).
        exchanges: number of random exchanges.
    """
    values = differences.double().cpu().numpy()
    signs = _generator().choice([-1.0, 1.0], size=(exchanges, len(values)))
    return _at_least_as_extreme(values.sum(), signs @ values)


def paired_ecdf_test(one: Tensor, other: Tensor, exchanges: int = EXCHANGES) -> tuple[float, int]:
    """Tests that the rows of two samples are exchangeable within pairs, by the distance of their ECDFs.

    The statistic is the largest difference of the two ECDFs in any column over its standard error, at t = 1/20, ...,
    19/20. With few rows it takes few values, so ties after exchanges are broken at random.

    Args:
        one: values in (0, 1), (n, k); missing values are NaN in both samples.
        other: (n, k).
        exchanges: number of random exchanges.

    Returns:
        The p-value and the column that differs most.
    """
    points = torch.arange(1, 20, dtype=torch.float64) / 20
    below = [(values.double().cpu().unsqueeze(-1) <= points).double() for values in (one, other)]
    difference = (below[0] - below[1]).flatten(1).numpy()
    share = ((below[0] + below[1]) / 2).mean(0).flatten().numpy()
    difference = difference / np.sqrt(share * (1 - share)).clip(min=len(one) ** -0.5)
    random = _generator()
    signs = random.choice([-1.0, 1.0], size=(exchanges, len(difference)))
    own = np.abs(difference.sum(0))
    others = np.abs(signs @ difference).max(1)
    tied = int(np.isclose(others, own.max(), rtol=1e-12).sum()) if own.max() else 0  # without any difference p is 1
    p_value = _at_least_as_extreme(own.max(), others) - random.integers(tied + 1) / (1 + exchanges)
    return float(p_value), int(own.argmax()) // len(points)


def grid(n: int) -> Array:
    """The points t = 1/G, ..., (G - 1)/G at which an ECDF of n values is evaluated, with G = min(n, 100)."""
    return np.arange(1, min(n, 100)) / min(n, 100)


def bins(values: Array) -> npt.NDArray[np.int64]:
    """The bins of the grid in which values in (0, 1) lie, (sets, n, k), counted from 0."""
    cells = len(grid(values.shape[1])) + 1
    return (values * cells).astype(np.int64).clip(max=cells - 1)


def least_tails(binned: npt.NDArray[np.int64]) -> Array:
    """The smallest tail probability of the ECDF of n values at any point of the grid, (sets, k).

    Args:
        binned: the result of `bins`, (sets, n, k).
    """
    sets, n, k = binned.shape
    table = tail_probabilities(n)
    cells = table.shape[1] + 1
    at = (np.arange(sets * k).reshape(-1, 1, k) * cells + binned).ravel()
    counts = np.bincount(at, minlength=sets * k * cells).reshape(sets, k, cells).cumsum(-1)[..., :-1]
    least: Array = table[counts, np.arange(cells - 1)].min(-1)
    return least


@functools.lru_cache(maxsize=16)
def tail_probabilities(n: int) -> Array:
    """2 min(P(B <= c), P(B >= c)), B ~ Bin(n, t), (n + 1, G - 1), for c = 0, ..., n and t on the grid."""
    counts, points = np.arange(n + 1)[:, None], grid(n)
    below, above = scipy.stats.binom.cdf(counts, n, points), scipy.stats.binom.sf(counts - 1, n, points)
    least: Array = 2 * np.minimum(below, above)
    return least


def _fractional(values: Tensor) -> Tensor:
    """The fractional rank (rank + U) / (L + 1) of each value in its column, with ties broken at random."""
    shuffled = torch.rand_like(values, dtype=torch.float64).argsort(0)
    order = shuffled.gather(0, values.gather(0, shuffled).argsort(dim=0, stable=True))
    count = torch.arange(len(values), dtype=torch.float64, device=values.device).reshape(-1, 1, 1).expand_as(values)
    ranks = torch.empty_like(count).scatter(0, order, count)
    return (ranks + torch.rand_like(ranks)) / len(values)


def _standardised(values: Array) -> Array:
    standard: Array = (values - values.mean()) / values.std()
    return standard


def _at_least_as_extreme(own: float, others: Array) -> float:
    """The p-value of a statistic among those after exchanges; values equal up to rounding count as as extreme."""
    slack = 1e-12 * max(abs(float(own)), 1e-300)
    return float(1 + (others >= own - slack).sum()) / (1 + len(others))


def _generator() -> np.random.Generator:
    """A generator of random exchanges, seeded from torch's random state."""
    return np.random.default_rng(int(torch.randint(2**62, ())))
