"""TARP: distances to points that depend on the data (Lemos et al. 2023, 2302.03026)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyrolatent.checks.check import Verdict
from pyrolatent.checks.exchangeability import rank_test
from pyrolatent.checks.panels import Arrays
from pyrolatent.checks.ranks import ecdf_panel
from pyrolatent.checks.sbc import OfSimulations
from pyrolatent.checks.subject import Subject, flat_sites
from pyrolatent.inference.draws import simulate


def distances(z: Tensor, references: Tensor, scale: Tensor) -> Tensor:
    """Distances of latents (..., simulations, dimensions) to reference points, (..., simulations).

    Args:
        z: latents.
        references: (simulations, dimensions). At points that depend on x, uniform ranks of distances are sufficient for
            q to be exact; at other points the prior passes, too.
        scale: unit of each dimension, (dimensions,).
    """
    return ((z - references) / scale.clamp(min=1e-12)).norm(dim=-1)


def references_from_data(x: Tensor, z: Tensor, at: Tensor) -> Tensor:
    """Predictions of latents at other x by a ridge regression of simulated z on x, both standardised.

    Args:
        x: (n, ...) data, flattened.
        z: (n, dimensions).
        at: (m, ...) data.

    Returns:
        (m, dimensions).
    """
    flat, new = x.flatten(1).double(), at.flatten(1).double()
    mean, scale = flat.mean(0), flat.std(0).clamp(min=1e-12)
    flat, new = (((each - mean) / scale) for each in (flat, new))
    target, centre = z.double() - z.double().mean(0), z.double().mean(0)
    gram = flat @ flat.T
    ridge = gram.diagonal().mean() * 0.1
    solved = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), target)
    return (new @ flat.T @ solved + centre).to(z)


@dataclass(frozen=True)
class Tarp(OfSimulations):
    """Ranks of the distance of z* to a point that a regression predicts from x, among those of draws from q."""

    name: ClassVar[str] = "tarp"
    source: ClassVar[str] = "p at 1 %; Lemos et al. 2023"
    asks: ClassVar[str] = "distances to points that a regression predicts from x"

    def verdict(self, subject: Subject) -> Verdict:
        """The p-value of the distances."""
        simulated = self.simulated(subject)
        truth, draws = flat_sites(simulated.truth), flat_sites(simulated.draws.latents, 2)
        other, latents = simulate(subject.model, self.simulations, simulated.y)
        latents_of_others = flat_sites(latents)
        seen = subject.model.scaling.compared
        references = references_from_data(seen(other), latents_of_others, seen(simulated.x))
        scale = latents_of_others.std(0)
        found = rank_test(distances(truth, references, scale), distances(draws, references, scale))
        return self.judged(
            found.p_value,
            "distances to points that depend on x are not those of the exact posterior: declare another posterior, "
            "a wider encoder, or train longer",
            "distances to points that depend on x are those of the exact posterior",
            arrays={"tarp": found.ranks},
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """The ECDF of the ranks."""
        ecdf_panel(axes, arrays["tarp"], "Ranks of distances (TARP)")
