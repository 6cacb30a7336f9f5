"""What a bound lacks of log p(x): what its family cannot do, and what its encoder does not."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrolatent.checks.draws import draw
from pyrolatent.errors import InputError
from pyrolatent.inference.annealed import summary
from pyrolatent.inference.local import refine
from pyrolatent.inference.objectives import Inputs
from pyrolatent.models.latent import LatentVariableModel


@dataclass(frozen=True)
class Gaps:
    """Evidence and bounds of each datapoint, (batch,), nats, with their Monte Carlo standard errors.

    Attributes:
        log_evidence: log p(x), exact where the model has it, else by importance sampling with the better guide.
        local: the ELBO of a posterior refined for each datapoint; None where the guide has nothing to refine.
        amortized: the ELBO of the model's own guide.
        error: standard error of log_evidence, of local and of amortized, (3, batch).
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
        """log p(x) - best local bound, (batch,): what the family cannot do (Cremer et al. 2018, 1801.03558)."""
        return None if self.local is None else self.log_evidence - self.local

    @property
    def amortization(self) -> Tensor | None:
        """Best local bound - amortized bound, (batch,): what the encoder does not do."""
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
        steps: of refinement.
        particles: draws in each step of refinement.
        draws: for each of the three numbers.
    """
    amortized = draw(model, inputs, draws, keep=0).log_weights.double()
    # Where the guide is the exact posterior nothing is amortized and there is nothing better.
    best = amortized if getattr(model, "exact", False) else None
    try:
        refined = draw(model, inputs, draws, keep=0, guide=refine(model, *inputs, steps=steps, particles=particles))
        best = refined.log_weights.double()
    except InputError:
        pass
    x, _, mask = inputs
    exact = getattr(model, "log_evidence", None)
    if exact is None:
        evidence, error, _ = summary(amortized if best is None else best)
    else:
        evidence = exact(x, mask).detach().double()
        error = torch.zeros_like(evidence)
    errors = [(amortized if each is None else each).std(0) / draws**0.5 for each in (best, amortized)]
    local = None if best is None else best.mean(0)
    return Gaps(evidence, local, amortized.mean(0), torch.stack([error, *errors]))
