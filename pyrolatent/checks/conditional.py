"""L-C2ST: whether q(z | x) is the posterior at every x, by a classifier given x (Linhart et al. 2023, 2306.03580)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyrolatent.checks.c2st import paired_c2st
from pyrolatent.checks.check import Verdict
from pyrolatent.checks.panels import COLOURS, Arrays
from pyrolatent.checks.sbc import OfSimulations
from pyrolatent.checks.subject import Subject, flat_sites

COMPONENTS = 10
"""Number of principal components of x that the classifier receives."""
LOCAL = 20
"""Number of draws per x over which the local statistic is averaged."""


@dataclass(frozen=True)
class ConditionalC2st(OfSimulations):
    """Whether a classifier of (z, x) distinguishes the latents that x was simulated with from draws of q(z | x).

    It receives z, z standardised by q(z | x), and the principal components of x.
    """

    name: ClassVar[str] = "l-c2st"
    source: ClassVar[str] = "p at 1 %; Linhart et al. 2023, by exchanges"
    asks: ClassVar[str] = "whether a classifier that sees x tells draws from q from the latents that x came from"

    def verdict(self, subject: Subject) -> Verdict:
        """The p-value over all x, with the local statistic mean (d(z, x) - 1/2)^2 of each simulated x."""
        simulated = self.simulated(subject)
        truth, draws = flat_sites(simulated.truth).double(), flat_sites(simulated.draws.latents, 2).double()
        centre, scale = draws[1:].mean(0), draws[1:].std(0).clamp(min=1e-12)
        shown = _components(subject.model.scaling.compared(simulated.x))

        def features(z: Tensor) -> Tensor:
            return torch.cat([z, (z - centre) / scale, shown], 1)

        p_value, accuracy, classifier = paired_c2st(features(truth), features(draws[0]), seed=subject.seed)
        several = draws[1 : 1 + LOCAL]
        rows = torch.cat([features(z) for z in several]).cpu().numpy()
        certainty = torch.from_numpy(classifier.predict_proba(rows)[:, 1] - 0.5).square()
        local = certainty.unflatten(0, (len(several), -1)).mean(0)
        return self.judged(
            p_value,
            f"a classifier that sees x tells {accuracy:.0%} of the draws from q from the latents that x came from: q "
            "is wrong at some x even if right on average; declare another posterior, a wider encoder, or train longer",
            f"a classifier that sees x tells {accuracy:.0%} of the draws from q apart, where chance is 50 %",
            numbers={"l_c2st_accuracy": accuracy},
            arrays={"l_c2st": local, "l_c2st_components": shown[:, :2]},
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """Where in x the classifier is most certain."""
        shown, local = arrays["l_c2st_components"], arrays["l_c2st"]
        if shown.shape[1] == 2:
            first, second = shown.T
            most = max(0.05, float(local.max()))
            points = axes.scatter(first, second, s=6, c=local, cmap="viridis", vmin=0, vmax=most)
            figure = axes.get_figure(root=True)
            if figure is not None:
                figure.colorbar(points, ax=axes).set_label("(d − ½)²", size=8)
            axes.set(xlabel="first component of x", ylabel="second component of x")
        else:
            axes.plot(shown[:, 0], local, ".", markersize=3, color=COLOURS[0])
            axes.set(xlabel="x", ylabel="(d − ½)²")
        axes.set(title="Where a classifier tells q from the posterior")


def _components(x: Tensor) -> Tensor:
    """The first principal components of data (n, ...), (n, components), in standard units."""
    flat = x.flatten(1).double()
    centred = flat - flat.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    kept = min(COMPONENTS, int((s > 1e-6 * s[0].clamp(min=1e-300)).sum()) or 1)
    return u[:, :kept] * len(flat) ** 0.5
