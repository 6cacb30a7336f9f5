"""Checks of fitted models: each is one class in one file, and its statistic is a pure function of arrays."""

from pyrolatent.checks.active_units import ActiveUnits
from pyrolatent.checks.aggregated_posterior import (
    AggregatedPosterior,
    aggregated_log_prob,
    marginal_kl,
    mutual_information,
)
from pyrolatent.checks.annealed import AnnealedEvidence, EvidenceBracket
from pyrolatent.checks.c2st import paired_c2st
from pyrolatent.checks.check import LEVEL, Check, Verdict
from pyrolatent.checks.conditional import ConditionalC2st
from pyrolatent.checks.coverage import Coverage
from pyrolatent.checks.exchangeability import RankTest, paired_ecdf_test, rank_test, replicate_test, sign_flip_test
from pyrolatent.checks.importance import KHat
from pyrolatent.checks.inference_gap import Gaps, InferenceGap, gaps
from pyrolatent.checks.intervals import PredictiveIntervals, conditional_draws
from pyrolatent.checks.memorisation import HeldOutCopies, Memorisation, nearer, nearest_distances
from pyrolatent.checks.overview import CHECKS, Checks, check, holm
from pyrolatent.checks.predictive import STATISTICS, PosteriorPredictive, PriorPredictive, Statistic
from pyrolatent.checks.ranks import coverage, ecdf_band, fractional_ranks
from pyrolatent.checks.sbc import SbcLatents, SbcLogLikelihood
from pyrolatent.checks.subject import Simulated, Subject
from pyrolatent.checks.tarp import Tarp, distances, references_from_data
from pyrolatent.inference.draws import Draws, draw, joined, log_posterior_of
from pyrolatent.inference.evidence.psis import khat, khat_threshold

__all__ = [
    "CHECKS",
    "LEVEL",
    "STATISTICS",
    "ActiveUnits",
    "AggregatedPosterior",
    "AnnealedEvidence",
    "Check",
    "Checks",
    "ConditionalC2st",
    "Coverage",
    "Draws",
    "EvidenceBracket",
    "Gaps",
    "HeldOutCopies",
    "InferenceGap",
    "KHat",
    "Memorisation",
    "PosteriorPredictive",
    "PredictiveIntervals",
    "PriorPredictive",
    "RankTest",
    "SbcLatents",
    "SbcLogLikelihood",
    "Simulated",
    "Statistic",
    "Subject",
    "Tarp",
    "Verdict",
    "aggregated_log_prob",
    "check",
    "conditional_draws",
    "coverage",
    "distances",
    "draw",
    "ecdf_band",
    "fractional_ranks",
    "gaps",
    "holm",
    "joined",
    "khat",
    "khat_threshold",
    "log_posterior_of",
    "marginal_kl",
    "mutual_information",
    "nearer",
    "nearest_distances",
    "paired_c2st",
    "paired_ecdf_test",
    "rank_test",
    "references_from_data",
    "replicate_test",
    "sign_flip_test",
]
