"""Predictive intervals: each entry of a vector predicted from the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyrolatent.checks.check import Check, Verdict
from pyrolatent.checks.exchangeability import paired_ecdf_test
from pyrolatent.checks.panels import COLOURS, MUTED, Arrays
from pyrolatent.checks.ranks import fractional_ranks
from pyrolatent.checks.subject import LEAST, Subject
from pyrolatent.errors import InputError, at_least
from pyrolatent.inference.draws import MAX_ELEMENTS, decoded, repeated, resampled, simulate
from pyrolatent.inference.weights import Inputs, arguments
from pyrolatent.models.latent import LatentVariableModel

ENTRIES = 64
"""Largest number of entries of a vector for which each is predicted from the others."""


@torch.no_grad()
def conditional_draws(
    model: LatentVariableModel, inputs: Inputs, entries: Sequence[int], *, draws: int, particles: int
) -> Tensor:
    """Draws of single entries of each datapoint given its others, (draws, batch, entries), by importance resampling.

    Latents are `resampled` given the other entries, which is exact in the limit of many particles.

    Args:
        model: a model whose likelihood factorises over entries.
        inputs: x, y, mask.
        entries: indices into the flattened event.
        draws: number of draws.
        particles: number K of particles to resample from.
    """
    x, y, mask = inputs
    batch, width = len(x), model.event_shape.numel()
    at_once = max(1, MAX_ELEMENTS // (batch * width * max(particles, draws)))
    parts = []
    for start in range(0, len(entries), at_once):
        predicted = torch.as_tensor(entries[start : start + at_once], device=x.device)
        count = len(predicted)  # one copy of the datapoints per entry
        others = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        several, others = repeated(x, count), repeated(others, count)
        labels = None if y is None else repeated(y, count)
        rows, hidden = torch.arange(count * batch, device=x.device), predicted.repeat_interleave(batch)
        others.flatten(1)[rows, hidden] = False
        latents, _ = resampled(model, (several, labels, others), particles, draws)
        drawn = decoded(model, latents, labels, [draws, len(several)]).sample().flatten(2)[:, rows, hidden]
        parts.append(drawn.unflatten(1, (count, batch)).mT)
    return torch.cat(parts, -1)


@dataclass(frozen=True)
class PredictiveIntervals(Check):
    """The ranks of held-out entries among draws given the others, compared with those of simulated data.

    Importance resampling is exact only in the limit of many particles. The same is done for equally many datapoints
    simulated from the model, whose ranks have the same error, so that a difference is due to the data.

    Args:
        datapoints: largest number of datapoints.
        draws: number of draws per entry.
        particles: number of particles to resample latents from.
    """

    datapoints: int = 300
    draws: int = 100
    particles: int = 300

    name: ClassVar[str] = "predictive intervals"
    source: ClassVar[str] = "p of PIT at 1 %; Gneiting et al. 2007, by exchanges"
    asks: ClassVar[str] = "each entry of a vector predicted from the others: PIT and intervals"
    of_likelihoods: ClassVar[bool] = True

    def verdict(self, subject: Subject) -> Verdict:
        """The p-value over all entries, with the coverage of intervals of 90 %."""
        at_least(25, particles=self.particles)
        at_least(LEAST, datapoints=self.datapoints)
        shape = subject.model.event_shape
        if len(shape) != 1 or shape.numel() > ENTRIES or shape.numel() < 2:
            raise InputError(
                f"entries are predicted from others in vectors of 2 to {ENTRIES}, but x has {tuple(shape)}"
            )
        batch = subject.part.batch(slice(0, min(self.datapoints, len(subject))))
        inputs = arguments(subject.model, batch)
        x, y, mask = inputs
        own = simulate(subject.model, len(x), y)[0]
        pit, pit_of_own = (self._ranks(subject.model, each, batch.mask) for each in ((x, y, mask), (own, y, mask)))
        p_value, worst = paired_ecdf_test(pit, pit_of_own)
        inside, inside_own = (((p[~p.isnan()] - 0.5).abs() < 0.45).double().mean().item() for p in (pit, pit_of_own))
        said = f"intervals of 90 % hold {inside:.0%} of held-out entries, and {inside_own:.0%} of the model's own"
        error = (2 * 0.9 * 0.1 / len(x)) ** 0.5
        if abs(inside - inside_own) > 2 * error:
            few = inside < inside_own
            cause = f"the likelihood says {'less' if few else 'more'} spread than there is; declare " + (
                "student_t, a learned or predicted scale, or a zero-inflated one"
                if few
                else "a learned or predicted scale, or a larger decoder"
            )
        else:
            cause = "predictions are off rather than too narrow or too wide; declare another decoder or prior"
        return self.judged(
            p_value,
            f"{said}, worst entry {worst + 1}: {cause}",
            said,
            numbers={"interval_coverage": inside, "interval_coverage_of_own": inside_own},
            arrays={"pit": pit, "pit_of_own": pit_of_own},
        )

    def _ranks(self, model: LatentVariableModel, inputs: Inputs, mask: Tensor | None) -> Tensor:
        x, entries = inputs[0], range(inputs[0].shape[1])
        drawn = conditional_draws(model, inputs, entries, draws=self.draws, particles=self.particles)
        pit = fractional_ranks(x, drawn)
        return pit if mask is None else torch.where(mask, pit, torch.nan)

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """Histograms of the ranks."""
        for name, style in (
            ("pit", {"histtype": "bar", "color": COLOURS[0], "label": "data"}),
            ("pit_of_own", {"histtype": "step", "color": "black", "label": "the model's own"}),
        ):
            values = arrays[name].ravel()
            axes.hist(values[values == values], bins=20, range=(0, 1), density=True, **style)
        axes.axhline(1, color=MUTED, linewidth=0.8)
        axes.legend(frameon=False, fontsize=7)
        axes.set(title="Held-out entries given the others", xlabel="PIT", ylabel="density")
