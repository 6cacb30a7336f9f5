"""Pareto k-hat of importance weights: how heavy their tail is, datapoint by datapoint."""

import math

import torch
from torch import Tensor


def khat(log_weights: Tensor) -> Tensor:
    """The shape of a generalised Pareto distribution of the largest weights of each datapoint (Vehtari et al. 2024).

    The tail is the M = min(S / 5, 3 sqrt(S)) largest of S weights above the next one; its shape is the empirical-Bayes
    estimate of Zhang and Stephens (2009) with a weak prior at 1/2, as in Pareto-smoothed importance sampling
    (1507.02646). Weights with k < 1/2 have a finite variance, with k < 1 a finite mean.

    Args:
        log_weights: (draws, batch), nats; constants in a column do not matter.

    Returns:
        (batch,), float64; minus infinity where all weights are equal up to the rounding of their type, as they are
        where q is the exact posterior, and NaN with fewer than 25 draws, whose tail is too short to tell.
    """
    draws = len(log_weights)
    tail = math.ceil(min(draws / 5, 3 * math.sqrt(draws)))
    spread = log_weights.max(0).values - log_weights.min(0).values
    constant = spread <= 64 * torch.finfo(log_weights.dtype).eps * log_weights.abs().max(0).values
    if tail < 5:
        return torch.where(constant, -math.inf, math.nan).double()
    ordered = log_weights.double().sort(0).values
    ordered = (ordered - ordered[-1]).exp()
    excess = ordered[-tail:] - ordered[-tail - 1]
    shape = _pareto_shape(excess.clamp(min=torch.finfo(torch.float64).tiny))
    return torch.where(constant, -math.inf, shape)


def khat_threshold(draws: int) -> float:
    """min(1 - 1 / log10 S, 0.7): above it the estimate from S draws cannot be relied on (Vehtari et al. 2024)."""
    return min(1 - 1 / math.log10(draws), 0.7)


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
