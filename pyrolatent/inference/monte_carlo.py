"""Monte Carlo estimates and their errors."""

import math

import torch
from torch import Tensor


def standard_error(values: Tensor) -> float:
    """The standard error of the mean of independent values, (n,); NaN for a single value."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan


def none_if_nan(number: float) -> float | None:
    """The number, or None if it is NaN."""
    return None if math.isnan(number) else number


def log_mean(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log (1/K) ∑_k w_k, its standard error, and the effective sample size, as in `log_mean_of_sums`.

    Args:
        log_weights: log w, (draws, ...), nats.
    """
    return log_mean_of_sums(log_weights.logsumexp(0), (2 * log_weights).logsumexp(0), len(log_weights))


def log_mean_of_sums(log_sum: Tensor, log_square_sum: Tensor, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithm of a mean of weights from their sum and sum of squares.

    Args:
        log_sum: log ∑_k w_k, (...), nats.
        log_square_sum: log ∑_k w_k², (...).
        draws: number K of weights.

    Returns:
        log (1/K) ∑_k w_k; its standard error by the delta method, which is the relative standard error of the mean
        weight, NaN for one draw; and the effective sample size (∑ w)² / ∑ w², between 1 and K.
    """
    ess = (2 * log_sum - log_square_sum).exp()
    variance = (1 / ess - 1 / draws).clamp(min=0) * draws / (draws - 1) if draws > 1 else torch.full_like(ess, math.nan)
    return log_sum - math.log(draws), variance.sqrt(), ess
