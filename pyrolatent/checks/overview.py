"""All checks that apply to a model and its data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pyrolatent.checks.active_units import ActiveUnits
from pyrolatent.checks.aggregated_posterior import AggregatedPosterior
from pyrolatent.checks.annealed import AnnealedEvidence, EvidenceBracket
from pyrolatent.checks.arviz import to_arviz
from pyrolatent.checks.check import LEVEL, Check, Verdict
from pyrolatent.checks.conditional import ConditionalC2st
from pyrolatent.checks.coverage import Coverage
from pyrolatent.checks.exchangeability import EXCHANGES
from pyrolatent.checks.importance import KHat
from pyrolatent.checks.inference_gap import InferenceGap
from pyrolatent.checks.intervals import PredictiveIntervals
from pyrolatent.checks.memorisation import HeldOutCopies, Memorisation
from pyrolatent.checks.predictive import PosteriorPredictive, PriorPredictive, Statistic
from pyrolatent.checks.sbc import SbcLatents, SbcLogLikelihood
from pyrolatent.checks.subject import Subject
from pyrolatent.checks.tarp import Tarp
from pyrolatent.data.splits import Data
from pyrolatent.errors import InputError, at_least
from pyrolatent.models.latent import LatentVariableModel

Array = npt.NDArray[Any]

CHECKS: tuple[type[Check], ...] = (
    KHat, ActiveUnits, AggregatedPosterior, SbcLatents, SbcLogLikelihood, Tarp, Coverage, ConditionalC2st, InferenceGap,
    AnnealedEvidence, EvidenceBracket, PriorPredictive, PosteriorPredictive, PredictiveIntervals, Memorisation,
    HeldOutCopies,
)  # fmt: skip
"""All checks, in the order in which they are run."""


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for multiplicity (Holm 1979): at most a share a of correct models has one below a.

    The smallest is multiplied by their number m, the next by m - 1, and so on, and they are made non-decreasing.
    """
    order, m = np.argsort(p_values), len(p_values)
    corrected, largest = [0.0] * m, 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (m - place) * p_values[index]))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class Checks:
    """The results of `check`.

    Attributes:
        subject: the model, and the data restricted to the datapoints that were used.
        verdicts: the verdicts.
        skipped: checks that do not apply, with the reason.
    """

    subject: Subject
    verdicts: list[Verdict] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, float]:
        """Numbers without a verdict: elbo, log_evidence, rate, distortion, ...; nats per datapoint."""
        return {name: value for verdict in self.verdicts for name, value in verdict.numbers.items()}

    @property
    def arrays(self) -> dict[str, Array]:
        """The arrays that the verdicts were computed from."""
        return {name: value for verdict in self.verdicts for name, value in verdict.arrays.items()}

    @property
    def p_values(self) -> dict[str, float]:
        """The p-values after Holm's correction, by check."""
        given = {verdict.check: verdict.p_value for verdict in self.verdicts if verdict.p_value is not None}
        return dict(zip(given, holm([*given.values()]), strict=True))

    @property
    def p_value(self) -> float | None:
        """The p-value over all checks, which is the smallest corrected one; None if there is none."""
        return min(self.p_values.values(), default=None)

    @property
    def rejected(self) -> list[str]:
        """Checks with a corrected p-value below the level; 1 % of correct models have any."""
        return [check for check, p in self.p_values.items() if p < LEVEL]

    @property
    def summary(self) -> str:
        """The data, the number of passed checks, and the verdict over all p-values."""
        passed = sum(verdict.passed for verdict in self.verdicts)
        together = ""
        if self.p_value is not None:
            few = f"refused by {', '.join(self.rejected)}" if self.rejected else "not refused"
            together = f"; over all {len(self.p_values)} p-values p = {self.p_value:.2g} (Holm), {few}"
        of = f"{self.subject.split} of {self.subject.data.name}"
        outside = self.subject.model.global_sites
        of += f", given one draw of {', '.join(outside)}" * bool(outside)
        return f"{of}: {passed} of {len(self.verdicts)} passed{together}"

    def __str__(self) -> str:
        left_out = (f"{name}: left out; {reason}" for name, reason in self.skipped.items())
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in self.numbers.items())
        return "\n".join([self.summary, *map(str, self.verdicts), *left_out, f"beside it: {numbers}"])

    def json(self) -> dict[str, Any]:
        """Verdicts, numbers and skipped checks in JSON types."""
        return {
            "split": self.subject.split,
            "p_value": self.p_value,
            "rejected": self.rejected,
            "verdicts": [verdict.json() for verdict in self.verdicts],
            "skipped": self.skipped,
            "numbers": self.numbers,
        }

    def figure(self) -> Figure:
        """The panels of all checks on one page."""
        columns = min(4, len(self.verdicts))
        rows = -(-len(self.verdicts) // columns)
        fig = Figure(figsize=(4.2 * columns, 3.3 * rows), dpi=130, layout="constrained")
        for place, verdict in enumerate(self.verdicts):
            axes = fig.add_subplot(rows, columns, place + 1)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            verdict.by.panel(axes, verdict.arrays)
            mark = "passed" if verdict.passed else "failed"
            axes.set_title(f"{axes.get_title()}\n{verdict.check}: {mark}", fontsize=9)
            for label in (axes.xaxis.label, axes.yaxis.label):
                label.set_fontsize(8)
        return fig

    def figures(self) -> dict[str, Figure]:
        """The page of panels, and the further figures of checks."""
        drawn = {"checks": self.figure()}
        for verdict in self.verdicts:
            drawn |= verdict.by.figures(verdict.arrays)
        return drawn

    def to_arviz(self, **options: Any) -> Any:
        """Draws, log-likelihoods and data for ArviZ; options as in `pyrolatent.to_arviz`."""
        return to_arviz(self.subject.model, self.subject.data, split=self.subject.split, **options)


def check(
    model: LatentVariableModel,
    data: Data,
    *,
    split: str = "test",
    size: int = 1000,
    draws: int = 1000,
    simulations: int = 500,
    replicates: int = EXCHANGES,
    annealed: int = 30,
    statistics: Mapping[str, Statistic] | None = None,
    seed: int = 0,
    on_step: Callable[[str, int, int], Any] | None = None,
) -> Checks:
    """Runs every check that applies to a fitted model.

    Args:
        model: a fitted model.
        data: data with the event shape and in the support of the model's likelihood.
        split: the part of the data to compare the model with: "train", "validation" or "test".
        size: number of its datapoints, drawn at the seed.
        draws: number of draws from q(z | x) per datapoint.
        simulations: number of simulated datapoints, for the calibration of the posterior.
        replicates: number of simulated data sets to compare the data with.
        annealed: number of datapoints whose evidence is estimated by annealing.
        statistics: further functions of a data set (n, *event_shape) to compare with replicates, by name.
        seed: seed of all draws.
        on_step: called with the name of the next check, its position and the number of checks.

    Raises:
        InputError: the model has no posterior, the data do not fit it, or there is no such split.
    """
    at_least(25, draws=draws)
    at_least(50, simulations=simulations)
    at_least(99, replicates=replicates)
    at_least(0, annealed=annealed)
    subject = Subject(model, data, split=split, size=size, seed=seed)
    of_draws, of_chains = {"draws": draws}, {"datapoints": annealed}
    of_simulations = {"simulations": simulations, "draws": min(draws, 200)}
    asked: list[Check] = [
        KHat(**of_draws),
        ActiveUnits(draws=min(draws, 100)),
        AggregatedPosterior(**of_draws),
        SbcLatents(**of_simulations),
        SbcLogLikelihood(**of_simulations),
        Tarp(**of_simulations),
        Coverage(**of_simulations),
        ConditionalC2st(**of_simulations),
        InferenceGap(**of_draws),
        AnnealedEvidence(**of_draws, **of_chains),
        EvidenceBracket(**of_chains),
        PriorPredictive(statistics=statistics or {}, replicates=replicates),
        PosteriorPredictive(statistics=statistics or {}, replicates=replicates),
        PredictiveIntervals(particles=min(draws, 300)),
        Memorisation(),
        HeldOutCopies(),
    ]
    found = Checks(subject)
    for place, each in enumerate(asked):
        if on_step:
            on_step(each.name, place, len(asked))
        try:
            verdict = each.asked(subject)
        except InputError as error:
            found.skipped[each.name] = str(error)
        else:
            found.verdicts.append(verdict)
            found.skipped.update(verdict.skipped)
    return found
