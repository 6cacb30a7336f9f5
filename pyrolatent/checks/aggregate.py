"""The aggregated posterior q(z) = mean_n q(z | x_n): how much it holds of x, and whether the prior fits it."""

import math

import numpy as np
import torch
from scipy.stats import norm
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

ACTIVE = 0.01
"""Variance of a posterior mean over the data above which a dimension is active (Burda et al. 2016, 1509.00519)."""


def active_units(means: Tensor) -> Tensor:
    """Which dimensions' posterior means vary over the data by more than 0.01, (dimensions,), bool.

    Args:
        means: (datapoints, dimensions).
    """
    return means.var(0) > ACTIVE


def aggregated_log_prob(log_posterior: Tensor) -> Tensor:
    """log q(z_i) = log mean_j q(z_i | x_j), (n,), nats.

    Args:
        log_posterior: log q(z_i | x_j), (n, n), where z_i was drawn from q(z | x_i).
    """
    return log_posterior.logsumexp(1) - math.log(log_posterior.shape[1])


def mutual_information(log_posterior: Tensor) -> Tensor:
    """log q(z_i | x_i) - log q(z_i), (n,), whose mean is I(x; z) under q, nats (Hoffman and Johnson 2016).

    It cannot exceed log n: a mean near that says only that n datapoints are told apart.

    Args:
        log_posterior: as in `aggregated_log_prob`.
    """
    return log_posterior.diagonal() - aggregated_log_prob(log_posterior)


def marginal_kl(log_posterior: Tensor, log_prior: Tensor) -> Tensor:
    """log q(z_i) - log p(z_i), (n,), whose mean is KL(q(z) || p(z)), nats: the rate less the mutual information.

    Args:
        log_posterior: as in `aggregated_log_prob`.
        log_prior: log p(z_i), (n,).
    """
    return aggregated_log_prob(log_posterior) - log_prior


def classifier_two_sample(one: Tensor, other: Tensor, *, level: float = 0.99, seed: int = 0) -> tuple[float, float]:
    """How well a classifier tells two samples apart (Lopez-Paz and Oquab 2017, 1610.06545).

    Args:
        one: (n, dimensions).
        other: (n, dimensions).
        level: probability that the accuracy on samples of one distribution stays below the threshold.
        seed: of the classifier and of the five folds.

    Returns:
        Its accuracy on held-out fifths, and the threshold 1/2 + quantile / (2 sqrt(2 n)).
    """
    x = torch.cat([one, other]).double().cpu().numpy()
    y = np.repeat([0, 1], [len(one), len(other)])
    order = np.random.default_rng(seed).permutation(len(x))
    classifier = make_pipeline(StandardScaler(), MLPClassifier((64, 64), early_stopping=True, random_state=seed))
    accuracy = float(cross_val_score(classifier, x[order], y[order], cv=5).mean())
    return accuracy, 0.5 + float(norm.ppf(level)) / (2 * math.sqrt(len(x)))
