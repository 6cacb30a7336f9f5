"""Coverage: whether highest-density regions of q contain the true latents at their nominal rate."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from matplotlib.axes import Axes

from pyrolatent.checks.check import Verdict
from pyrolatent.checks.exchangeability import rank_test
from pyrolatent.checks.panels import COLOURS, MUTED, Arrays
from pyrolatent.checks.ranks import coverage
from pyrolatent.checks.sbc import OfSimulations
from pyrolatent.checks.subject import Subject
from pyrolatent.errors import InputError


@dataclass(frozen=True)
class Coverage(OfSimulations):
    """Ranks of log q(z* | x) among those of draws from q."""

    name: ClassVar[str] = "coverage"
    source: ClassVar[str] = "p at 1 %; Hermans et al. 2022"
    asks: ClassVar[str] = "whether highest-density regions of q contain the true latents at their nominal rate"

    def verdict(self, subject: Subject) -> Verdict:
        """The p-value, with the coverage of regions of 90 %."""
        if not subject.scores_any_value:
            raise InputError("the posterior cannot score what it did not draw, so its coverage is not known")
        simulated = self.simulated(subject)
        found = rank_test(subject.log_posterior(simulated), simulated.draws.log_posterior)
        levels = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
        covered = coverage(found.ranks[:, 0].cpu(), levels)
        at_90 = covered[17].item()
        return self.judged(
            found.p_value,
            f"regions of 90 % of q hold {at_90:.0%} of the latents that the model drew: q is too "
            f"{'narrow' if at_90 < 0.9 else 'wide'}; declare {subject.richer_posterior}",
            f"regions of 90 % of q hold {at_90:.0%} of the latents that the model drew",
            arrays={"coverage_ranks": found.ranks, "coverage_levels": levels, "coverage": covered},
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """Actual against nominal coverage."""
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
        axes.plot(arrays["coverage_levels"], arrays["coverage"], color=COLOURS[0], marker=".", markersize=4)
        axes.set(title="Coverage of regions of highest q", xlabel="nominal", ylabel="found", xlim=(0, 1), ylim=(0, 1))
        axes.set_aspect("equal")
