"""Evidence by annealing: whether sampling from q misses some of it, and whether annealing itself is reliable."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from torch import Tensor

from pyrolatent.checks.check import Check, Verdict
from pyrolatent.checks.panels import COLOURS, MUTED, Arrays
from pyrolatent.checks.subject import Subject
from pyrolatent.errors import InputError, at_least
from pyrolatent.inference.evidence.annealed import annealed_evidence, bidirectional_evidence
from pyrolatent.inference.monte_carlo import log_mean, standard_error


def excess(annealed: Tensor, sampled: Tensor, mcse: Tensor) -> tuple[float, float]:
    """By how much annealed log p(x) exceeds that by sampling, and how much chance explains.

    The latter is the 0.1 % quantile of Student's t over datapoints plus half the mean squared error of sampling, which
    is the downward bias of the log of a mean.

    Args:
        annealed: log p(x), (datapoints,).
        sampled: log p(x), (datapoints,).
        mcse: Monte Carlo standard error of `sampled`, (datapoints,).
    """
    difference, n = (annealed - sampled).double(), len(annealed)
    error = standard_error(difference)
    expected = float(scipy.stats.t.isf(1e-3, n - 1)) * error + 0.5 * mcse.double().square().mean().item() + 1e-4
    return difference.mean().item(), expected


@dataclass(frozen=True)
class OfChains(Check):
    """Base class of checks by annealed chains on some datapoints.

    Args:
        datapoints: number of datapoints, from the first.
        chains: number of chains per datapoint.
        steps: number of annealing steps.
        leapfrog: number of leapfrog steps per move.
    """

    datapoints: int = 30
    chains: int = 8
    steps: int = 400
    leapfrog: int = 5

    relation: ClassVar[Literal["≤", "≥"]] = "≤"
    gives_p_value: ClassVar[bool] = False
    of_likelihoods: ClassVar[bool] = True

    def settings(self, subject: Subject) -> dict[str, Any]:
        """Options of the chains.

        Raises:
            InputError: the number of datapoints is 0.
        """
        if not self.datapoints:
            raise InputError("annealed was 0")
        at_least(2, annealed=self.datapoints)
        size = min(self.datapoints, len(subject))
        return {
            "size": size, "chains": self.chains, "steps": self.steps, "leapfrog": self.leapfrog, "seed": subject.seed
        }  # fmt: skip


@dataclass(frozen=True)
class AnnealedEvidence(OfChains):
    """Whether annealing finds more log p(x) than sampling from q.

    Args:
        draws: draws from q(z | x) per datapoint.
    """

    draws: int = 1000

    name: ClassVar[str] = "annealed evidence"
    source: ClassVar[str] = "Student's t at 0.1 %; Wu et al. 2017"
    asks: ClassVar[str] = "whether sampling from q misses some of log p(x)"

    def verdict(self, subject: Subject) -> Verdict:
        """The mean difference."""
        found = annealed_evidence(subject.model, subject.data, split=subject.split, **self.settings(subject))
        truth = found.each["log_evidence"]
        sampled, mcse, _ = log_mean(subject.drawn(self.draws).log_weights[:, : len(truth)].double().cpu())
        value, threshold = excess(truth, sampled, mcse)
        return self.judged(
            value,
            "annealing finds more log p(x) than sampling from q, which misses mass: declare another posterior, "
            "and report evaluate --method annealed",
            "nats by which annealed log p(x) exceeds that by importance sampling",
            threshold=threshold,
            arrays={"annealed_evidence": truth, "sampled_evidence": sampled},
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """The difference for each datapoint."""
        one, other = arrays["sampled_evidence"], arrays["annealed_evidence"]
        axes.plot(one, other - one, "o", markersize=3, color=COLOURS[0])
        axes.axhline(0, color=MUTED, linewidth=0.8)
        spread = max(1.0, math.ceil(np.abs(other - one).max() * 10) / 10)
        axes.set_ylim(-spread, spread)
        axes.set(
            title="Annealing against sampling from q", xlabel="log p(x) by sampling [nats]", ylabel="annealed − sampled"
        )


@dataclass(frozen=True)
class EvidenceBracket(OfChains):
    """Whether bounds on log p(x) by annealing are close, for data simulated from the model."""

    name: ClassVar[str] = "evidence bracket"
    source: ClassVar[str] = "1 nat; Grosse et al. 2015, Wu et al. 2017"
    asks: ClassVar[str] = "whether annealing is reliable for this decoder"

    def verdict(self, subject: Subject) -> Verdict:
        """The mean width of the bracket."""
        settings = self.settings(subject)
        found = bidirectional_evidence(subject.model, y=subject.labels(settings["size"]), **settings)
        return self.judged(
            found.width,
            "annealing is too short for this decoder's posterior; evaluate with --method annealed --temperatures 5000",
            "nats between the bounds on log p(x) of simulated data",
            threshold=1.0,
            numbers={"bracket_lower": found.lower, "bracket_upper": found.upper},
            arrays={"bracket_lower": found.each["lower"], "bracket_upper": found.each["upper"]},
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """The bracket of each datapoint."""
        lower, upper = arrays["bracket_lower"], arrays["bracket_upper"]
        axes.plot(lower, upper - lower, "o", markersize=3, color=COLOURS[0])
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set(title="Bracket of log p(x)", xlabel="lower bound [nats]", ylabel="upper − lower")
