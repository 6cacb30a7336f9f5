"""Ranks of true values among draws, and their plots.

With (z*, x) ~ p(z, x) and z_1, ..., z_L ~ q(z | x), z* is a further draw from q if q is the exact posterior, so that
the rank of any function of it is uniform.
"""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyrolatent.checks.exchangeability import bins, grid, least_tails
from pyrolatent.checks.panels import COLOURS, MUTED

Array = npt.NDArray[np.float64]


def fractional_ranks(truth: Tensor, draws: Tensor) -> Tensor:
    """(number of draws below the truth + U) / (L + 1), which is uniform on (0, 1) if the truth is a further draw.

    U ~ Uniform(0, 1 + number of ties) breaks ties at random (Talts et al. 2018, 1804.06788).

    Args:
        truth: (simulations, ...).
        draws: (L, simulations, ...).
    """
    below, ties = (draws < truth).double().sum(0), (draws == truth).double().sum(0)
    return (below + torch.rand_like(below) * (1 + ties)) / (len(draws) + 1)


def coverage(ranks: Tensor, levels: Tensor) -> Tensor:
    """Coverage of the highest-density regions of q at given credibilities, (levels,); nominal if q is calibrated.

    Args:
        ranks: (simulations,), fractional ranks of log q(z* | x) among those of draws from q: the truth is in the region
            of credibility c if its rank is above 1 - c (Hermans et al. 2022, 2110.06581).
        levels: credibilities c.
    """
    return (ranks > 1 - levels.unsqueeze(-1).to(ranks)).double().mean(-1)


def ecdf_band(n: int, level: float = 0.99) -> tuple[Array, Array, Array]:
    """A simultaneous band for the ECDF of n uniform values (Sailynoja et al. 2022, 2103.10522).

    Args:
        n: number of values.
        level: probability with which the band contains the whole ECDF.

    Returns:
        Points t, (K,), and the lower and upper limits of the band there, as shares of n.
    """
    gamma = float(np.quantile(_least_of_uniform(n), 1 - level))
    points = grid(n)
    lower = scipy.stats.binom.ppf(gamma / 2, n, points) / n
    upper = scipy.stats.binom.ppf(1 - gamma / 2, n, points) / n
    return points, lower, upper


def ecdf_panel(axes: Axes, ranks: npt.NDArray[Any], title: str) -> None:
    """Plots the ECDF of each column of ranks (n, k) minus the uniform one, with the band for uniform ranks."""
    points, lower, upper = ecdf_band(len(ranks))
    axes.fill_between(points, lower - points, upper - points, color="0.9", label="99 % band of one")
    columns = ranks.reshape(len(ranks), -1).T
    for place, column in enumerate(columns):
        share = np.searchsorted(np.sort(column), points, side="right") / len(ranks)
        colour, width = (MUTED, 0.6) if len(columns) > 1 else (COLOURS[0], 1.4)
        axes.plot(points, share - points, color=colour, linewidth=width, label="dimensions" if not place else None)
    if len(columns) > 1:
        axes.legend(frameon=False, fontsize=7)
    axes.set(title=title, xlabel="rank t of the truth among draws", ylabel="ECDF(t) − t")


@functools.lru_cache(maxsize=16)
def _least_of_uniform(n: int, sets: int = 5000) -> Array:
    """The smallest tail probability in each of some simulated sets of n uniform values, (sets,)."""
    return least_tails(bins(np.random.default_rng(0).random((sets, n, 1))))[:, 0]
