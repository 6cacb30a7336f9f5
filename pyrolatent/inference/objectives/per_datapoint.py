"""Semi-amortized training, with a posterior that is refined for each datapoint."""

from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from pyrolatent.declaration import PositiveFloat, component
from pyrolatent.errors import InputError
from pyrolatent.inference.objectives.bounds import AnalyticELBO
from pyrolatent.inference.refine import FOLLOWING, LocalPosterior, Start, encoded, nearest_to_prior, optimise
from pyrolatent.inference.weights import Inputs, Program
from pyrolatent.models.latent import LatentVariableModel, owner_of


@component("local", "objective")
class Local(AnalyticELBO):
    """E_q_n[log p(x, z) - log q_n(z)], q_n refined for each datapoint before each step (Kim et al. 2018, 1802.02550).

    The generative parameters maximise the refined bound with q_n held fixed; the encoder maximises its own amortized
    bound, so that it remains a good initial posterior. Parameters that prior and encoder share maximise both. The
    column `train_loss` is that of the refined bound, `train_loss_amortized` that of the encoder's.

    Args:
        steps: number of refinement steps before each step of the parameters.
        start: initial posterior of the refinement, the encoder's or the one closest to the prior.
        lr: initial learning rate of the refinement.
    """

    compiles = False  # it stores the amortized bound for the history

    steps: Annotated[int, Ge(0)] = 5
    start: Start = "encoder"
    lr: PositiveFloat = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._amortized: dict[str, Tensor] = {}
        self._nearest: LocalPosterior | None = None

    def accumulate(self, model: Any, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the mean gradients of both bounds to the parameters'; returns the summed refined bound."""
        loss, bound = self._both(model, model.generate, inputs, self.beta * warmup)
        (loss / len(inputs[0])).backward()
        return bound

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The negative refined bound, summed over the minibatch, with both gradients."""
        owner = owner_of(guide)
        if owner is None:
            raise InputError(
                "local refines the posterior of a LatentVariableModel; give its model.model and model.guide"
            )
        loss, bound = self._both(owner, model, _inputs(*args, **kwargs), self.beta)
        return loss - (loss + bound).detach()

    def unfit(self, model: Any, inputs: Inputs) -> str | None:
        """Why a posterior has no parameters to refine: it is not a network and a family."""
        try:
            encoded(model, inputs)
        except InputError as error:
            return str(error)
        return None

    def extra_losses(self) -> dict[str, Tensor]:
        """The encoder's own bound."""
        return self._amortized

    def _both(
        self, owner: LatentVariableModel, model: Program, inputs: Inputs, beta: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """A loss with the gradients of both bounds, and the refined bound; both summed over the minibatch."""
        guide = self._refined(owner, inputs)

        def held(*args: Any) -> None:
            with torch.no_grad():
                guide(*args)

        refined = self.weigh(model, held, *inputs)
        amortized = self.weigh(model, owner.infer, *inputs)
        target, term = self.target(amortized, beta).sum(), owner.training_term(*inputs)
        encoder = [p for part in guide.numbers for p in part.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(target if term is None else target + term.sum(), encoder, allow_unused=True)
        self._amortized = {"train_loss_amortized": -self.bound(amortized).detach().sum()}
        loss = -self.target(refined, beta).sum()
        for parameter, gradient in zip(encoder, gradients, strict=True):
            # Linear in the parameter with the gradient as its slope, so that no other parameter receives any of it.
            loss = loss if gradient is None else loss - (parameter * gradient).sum()
        return loss, self.bound(refined).detach().sum()

    def _refined(self, owner: LatentVariableModel, inputs: Inputs) -> LocalPosterior:
        posterior = encoded(owner, inputs)
        if self.start == "prior":
            if self._nearest is None or self._nearest.model is not owner or owner.conditional:
                posterior = nearest_to_prior(posterior, inputs)
            else:
                posterior = nearest_to_prior(posterior, inputs, start=self._nearest, steps=FOLLOWING)
            self._nearest = posterior
        return optimise(posterior, inputs, steps=self.steps, particles=self.num_particles, lr=self.lr)


def _inputs(x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Inputs:
    return x, y, mask
