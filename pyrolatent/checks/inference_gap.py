"""The gap between a bound and log p(x), decomposed into that of the family and that of the encoder."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyrolatent.checks.check import Check, Verdict
from pyrolatent.checks.panels import COLOURS, Arrays
from pyrolatent.checks.subject import BATCH, Subject
from pyrolatent.errors import InputError, at_least
from pyrolatent.inference.draws import draw
from pyrolatent.inference.monte_carlo import log_mean
from pyrolatent.inference.refine import refine
from pyrolatent.inference.weights import Inputs
from pyrolatent.models.latent import LatentVariableModel


@dataclass(frozen=True)
class Gaps:
    """Evidence and bounds of each datapoint, (batch,), nats, with their Monte Carlo standard errors.

    Attributes:
        log_evidence: log p(x), exact if it has a closed form, else by importance sampling with the better guide.
        local: the ELBO of a posterior refined for each datapoint; None if the guide cannot be refined.
        amortized: the ELBO of the model's own guide.
        error: standard errors of log_evidence, local and amortized, (3, batch).
    """

    log_evidence: Tensor
    local: Tensor | None
    amortized: Tensor
    error: Tensor

    @property
    def inference(self) -> Tensor:
        """log p(x) - amortized bound = KL(q(z | x) || p(z | x)), (batch,)."""
        return self.log_evidence - self.amortized

    @property
    def approximation(self) -> Tensor | None:
        """log p(x) - best local bound, (batch,): the gap of the family (Cremer et al. 2018, 1801.03558)."""
        return None if self.local is None else self.log_evidence - self.local

    @property
    def amortization(self) -> Tensor | None:
        """Best local bound - amortized bound, (batch,): the gap of the encoder."""
        return None if self.local is None else self.local - self.amortized


def gaps(
    model: LatentVariableModel,
    inputs: Inputs,
    *,
    steps: int = 300,
    particles: int = 4,
    draws: int = 1000,
) -> Gaps:
    """The gaps of a batch, by optimising a separate posterior for each datapoint from the encoder's.

    Args:
        model: a fitted model.
        inputs: x, y, mask.
        steps: number of refinement steps.
        particles: number of draws per refinement step.
        draws: number of draws for each of the three estimates.
    """
    amortized = draw(model, inputs, draws, keep=0)
    # If the guide is the exact posterior, nothing is amortized and nothing can be improved.
    best = amortized if model.exact else None
    try:
        with torch.enable_grad():
            guide = refine(model, *inputs, steps=steps, particles=particles)
        best = draw(model, inputs, draws, keep=0, guide=guide)
    except InputError:
        pass
    x, _, mask = inputs
    exact = model.log_evidence(x, mask)
    if exact is None:
        evidence, error, _ = log_mean((amortized if best is None else best).log_weights.double())
    else:
        evidence = exact.detach().double()
        error = torch.zeros_like(evidence)
    # The bounds are means over draws, including drawn states of summed-out sites.
    bounds = [(amortized if each is None else each).log_weights_of_states.double() for each in (best, amortized)]
    errors = [each.std(0) / draws**0.5 for each in bounds]
    local = None if best is None else bounds[0].mean(0)
    return Gaps(evidence, local, bounds[1].mean(0), torch.stack([error, *errors]))


@dataclass(frozen=True)
class InferenceGap(Check):
    """How far the bound lies below log p(x), on the first 100 datapoints.

    Args:
        draws: number of draws for log p(x), the bound, and the bound of a posterior refined for each datapoint.
        steps: number of refinement steps.
        share: largest gap that passes, as a share of the rate, a convention of this package.
    """

    draws: int = 1000
    steps: int = 300
    share: float = 0.05

    name: ClassVar[str] = "inference gap"
    relation: ClassVar[Literal["≤", "≥"]] = "≤"
    source: ClassVar[str] = "5 % of the rate, or 3 standard errors; Cremer et al. 2018"
    asks: ClassVar[str] = "how far the bound lies below log p(x), and whether family or encoder is to blame"
    gives_p_value: ClassVar[bool] = False

    def verdict(self, subject: Subject) -> Verdict:
        """The mean gap, with its two parts."""
        at_least(25, draws=self.draws)
        found = gaps(subject.model, next(subject.batches(BATCH)), steps=self.steps, draws=self.draws)
        gap = found.inference
        error = math.hypot(*(found.error[[0, 2]].square().sum(1).sqrt() / len(gap)).tolist())
        rate = torch.cat([each.kl for each in subject.scored(min(self.draws, 100))]).mean().item()
        arrays, skipped, larger = {"inference_gap": gap}, {}, ""
        if found.approximation is not None and found.amortization is not None:
            arrays |= {"approximation_gap": found.approximation, "amortization_gap": found.amortization}
            larger = "family" if found.approximation.mean() > found.amortization.mean() else "encoder"
        else:
            skipped["amortization gap"] = "the posterior has no parameters to refine"
        return self.judged(
            gap.mean().item(),
            {
                "family": f"most of it is the family's: declare {subject.richer_posterior}",
                "encoder": "most of it is the encoder's: declare a wider encoder, train longer, or objective: local",
                "": "q is not the posterior: declare another one",
            }[larger],
            "nats by which the bound lies below log p(x)",
            threshold=max(self.share * rate, 3 * error),
            numbers=arrays,
            arrays=arrays,
            skipped=skipped,
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """The gaps of each datapoint."""
        names = {
            "approximation_gap": "approximation",
            "amortization_gap": "amortization",
            "inference_gap": "log p(x) − bound",
        }
        shown = {label: arrays[name] for name, label in names.items() if name in arrays}
        axes.boxplot(
            [*shown.values()],
            orientation="horizontal",
            widths=0.6,
            flierprops={"markersize": 2},
            medianprops={"color": COLOURS[0]},
        )
        axes.set_yticks(range(1, len(shown) + 1), [*shown])
        if max(np.abs(values).max() for values in shown.values()) < 0.01:  # do not scale rounding errors
            axes.set_xlim(-0.01, 0.01)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set(title="Gaps of single datapoints", xlabel="nats")
