"""Pareto k-hat of importance weights: the heaviness of their tail, per datapoint."""

import math

import torch
from torch import Tensor

SHORTEST = 5
"""Smallest number of weights in a tail, that of 21 draws, from which its shape is estimated."""


def khat(log_weights: Tensor) -> Tensor:
    """Shape of a generalised Pareto distribution fitted to the largest weights of each datapoint (Vehtari et al. 2024).

    The tail consists of the M = min(S / 5, 3 sqrt(S)) largest of S weights, less the next one. Its shape is the
    empirical-Bayes estimate of Zhang and Stephens (2009) with a weak prior at 1/2, as in Pareto-smoothed importance
    sampling (1507.02646). Weights with k < 1/2 have a finite variance, with k < 1 a finite mean.

    Args:
        log_weights: (draws, batch), nats; adding a constant to a column changes nothing.

    Returns:
        (batch,), float64. It is minus infinity if all weights, or the larger half of the tail, are equal up to
        rounding, because q is the exact posterior or the weights are bounded; NaN for fewer than 21 draws.
    """
    largest = log_weights.topk(min(tail_length(len(log_weights)) + 1, len(log_weights)), 0).values
    return khat_of_tail(largest, log_weights.min(0).values, len(log_weights))


def tail_length(draws: int) -> int:
    """The number of weights in the tail, M = min(S / 5, 3 sqrt(S)) of S."""
    return math.ceil(min(draws / 5, 3 * math.sqrt(draws)))


def khat_of_tail(largest: Tensor, smallest: Tensor, draws: int) -> Tensor:
    """`khat` from the largest and smallest weights.

    Args:
        largest: the M + 1 largest log-weights in descending order, or all of fewer, (M + 1, batch), nats.
        smallest: the smallest log-weight, (batch,).
        draws: number S of all weights.
    """
    spread, size = largest[0] - smallest, torch.maximum(largest[0].abs(), smallest.abs())
    constant = spread <= 64 * torch.finfo(largest.dtype).eps * size
    if tail_length(draws) < SHORTEST:
        return torch.where(constant, -math.inf, math.nan).double()
    ordered = (largest.double() - largest[0].double()).exp().flip(0)
    excess = ordered[1:] - ordered[0]
    shape = _pareto_shape(excess.clamp(min=torch.finfo(torch.float64).tiny))
    # Weights whose tail mostly lies at an upper bound, up to rounding, have no tail above it.
    bounded = largest[0] - largest[len(largest) // 2] <= 64 * torch.finfo(largest.dtype).eps * size
    return torch.where(constant | bounded, -math.inf, shape)


def khat_threshold(draws: int) -> float:
    """min(1 - 1 / log10 S, 0.7), above which an estimate from S draws is unreliable (Vehtari et al. 2024)."""
    return min(1 - 1 / math.log10(draws), 0.7)


def too_large(khat: Tensor, ess: Tensor, draws: int) -> Tensor:
    """Whether weights are unreliable: k-hat exceeds its threshold and the weights are not nearly equal, (batch,), bool.

    If the effective sample size is at least 90 % of the draws, the weights are so similar that the shape of their
    differences does not matter; for weights of only a few values, as with a few states, it is meaningless.

    Args:
        khat: (batch,).
        ess: effective sample size, (batch,).
        draws: number of draws.
    """
    return ~(khat <= khat_threshold(draws)) & (ess < 0.9 * draws)


def _pareto_shape(excess: Tensor) -> Tensor:
    """Shapes k, (batch,), of ascending exceedances (tail, batch)."""
    size = len(excess)
    grid = 30 + int(math.sqrt(size))
    j = torch.arange(1, grid + 1, dtype=excess.dtype, device=excess.device).unsqueeze(-1)
    quartile = excess[int(size / 4 + 0.5) - 1]
    b = (1 - (grid / (j - 0.5)).sqrt()) / (3 * quartile) + 1 / excess[-1]
    k = torch.log1p(-b.unsqueeze(1) * excess).mean(1)  # (grid, batch)
    log_likelihood = size * ((-(b / k)).log() - k - 1)
    b = (log_likelihood.softmax(0) * b).sum(0)
    k = torch.log1p(-b * excess).mean(0)
    return (size * k + 10 * 0.5) / (size + 10)
