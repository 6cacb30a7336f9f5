"""k-hat: whether importance sampling from the posterior is reliable, per datapoint."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrolatent.checks.check import Check, Verdict
from pyrolatent.checks.panels import COLOURS, Arrays
from pyrolatent.checks.subject import Subject
from pyrolatent.errors import at_least
from pyrolatent.figures import latent as figures
from pyrolatent.inference.evidence.psis import khat, khat_threshold, too_large
from pyrolatent.inference.monte_carlo import log_mean
from pyrolatent.inference.weights import arguments

SHARE = 0.05
"""Largest share of unreliable datapoints that passes, a convention of this package."""


@dataclass(frozen=True)
class KHat(Check):
    """The share of held-out datapoints whose importance weights have too heavy a tail.

    Nearly equal weights, with an effective sample size of 90 % of the draws, count as light-tailed: their k-hat
    describes negligible differences.

    Args:
        draws: draws from q(z | x) per datapoint; fewer than 100 have too short a tail.
    """

    draws: int = 1000

    name: ClassVar[str] = "k-hat"
    relation: ClassVar[Literal["≤", "≥"]] = "≤"
    source: ClassVar[str] = "share above min(1 - 1/log10 S, 0.7), Vehtari et al. 2024; at most 5 %"
    asks: ClassVar[str] = "whether importance sampling from q is reliable, per datapoint"
    gives_p_value: ClassVar[bool] = False

    def verdict(self, subject: Subject) -> Verdict:
        """The share of datapoints with a large k-hat, with log p(x) and the effective sample size."""
        at_least(100, draws=self.draws)
        drawn = subject.drawn(self.draws)
        found, threshold = khat(drawn.log_weights), khat_threshold(self.draws)
        evidence, mcse, ess = log_mean(drawn.log_weights)
        worst = found.nan_to_num(-math.inf).argsort(descending=True)[:10]
        pictures = {}
        if subject.model.observes_x:
            shown = subject.part.batch(worst)
            latents = {site: value[0, worst] for site, value in drawn.latents.items()}
            decoded = subject.model.decode(latents, arguments(subject.model, shown)[1]).mean
            pictures = {"worst_datapoints": shown.x, "worst_reconstructions": decoded}
        numbers = {"ess": ess}
        return self.judged(
            too_large(found, ess, self.draws).double().mean().item(),
            f"the share of datapoints with k-hat above {threshold:.2f}: q misses mass there; declare "
            f"{subject.richer_posterior}, train with iwae, and take log p(x) from --method annealed",
            f"importance sampling from q is reliable (k-hat at most {threshold:.2f})",
            threshold=SHARE,
            numbers=numbers if subject.cross_entropy else numbers | {"log_evidence": evidence},
            arrays={
                "khat": found,
                "khat_threshold": np.asarray(threshold),
                "ess": ess,
                "log_evidence": evidence,
                "log_evidence_mcse": mcse,
                "worst_khat": found[worst],
                **pictures,
            },
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """A histogram of k-hat over datapoints."""
        values = arrays["khat"][np.isfinite(arrays["khat"])]
        constant = len(arrays["khat"]) - len(values)
        if len(values):
            axes.hist(values, bins=30 if np.ptp(values) > 1e-6 else 1, color=COLOURS[0])
            threshold = float(arrays["khat_threshold"])
            axes.axvline(threshold, color=COLOURS[2], linewidth=1, label=f"too large above {threshold:.2f}")
            axes.legend(frameon=False, fontsize=7)
        else:
            axes.text(
                0.5, 0.5, "all weights are equal:\nq is the exact posterior", ha="center", transform=axes.transAxes
            )
            axes.set(xticks=[], yticks=[])
        rest = f", {constant} with equal weights" if constant and len(values) else ""
        axes.set(title=f"Tails of the weights{rest}", xlabel="k-hat", ylabel="datapoints")

    def figures(self, arrays: Arrays) -> dict[str, Figure]:
        """The datapoints with the heaviest tails, each above its reconstruction from a posterior draw."""
        if "worst_datapoints" not in arrays or not np.isfinite(arrays["worst_khat"]).any():
            return {}
        shown = figures.reconstructions(
            arrays["worst_datapoints"], arrays["worst_reconstructions"], ("datapoint", "E[x | z]")
        )
        values = ", ".join(f"{value:.2f}".replace("-", "−") for value in arrays["worst_khat"])
        shown.suptitle(f"largest k-hat: {values}", fontsize=8)
        return {"worst_khat": shown}
