"""Whether to believe a model: diagnostics as pure functions, tensors in, arrays out."""

from pyrolatent.checks.aggregate import (
    active_units,
    aggregated_log_prob,
    classifier_two_sample,
    marginal_kl,
    mutual_information,
)
from pyrolatent.checks.calibration import (
    binomial_interval,
    coverage,
    ecdf_band,
    fractional_ranks,
    references_from_data,
    tarp,
    uniformity,
)
from pyrolatent.checks.draws import Draws, draw, joined, log_posterior_of, simulate
from pyrolatent.checks.gaps import Gaps, gaps
from pyrolatent.checks.predictive import (
    STATISTICS,
    Statistic,
    conditional_draws,
    nearer,
    nearest_distances,
    predictive_p_values,
    replicate,
)
from pyrolatent.inference.psis import khat, khat_threshold

__all__ = [
    "STATISTICS",
    "Draws",
    "Gaps",
    "Statistic",
    "active_units",
    "aggregated_log_prob",
    "binomial_interval",
    "classifier_two_sample",
    "conditional_draws",
    "coverage",
    "draw",
    "ecdf_band",
    "fractional_ranks",
    "gaps",
    "joined",
    "khat",
    "khat_threshold",
    "log_posterior_of",
    "marginal_kl",
    "mutual_information",
    "nearer",
    "nearest_distances",
    "predictive_p_values",
    "references_from_data",
    "replicate",
    "simulate",
    "tarp",
    "uniformity",
]
