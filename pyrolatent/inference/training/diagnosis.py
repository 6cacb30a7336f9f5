"""Diagnosis of training: non-finite numbers, and fits that have not converged."""

import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pyrolatent.errors import TrainingError
from pyrolatent.inference.weights import training_arguments, weigh
from pyrolatent.models.model import Capability, Model

if TYPE_CHECKING:
    from pyrolatent.inference.training.loop import Trainer

LEAST_NATS = 0.2
"""Increase of a validation score over the last quarter of training, in nats, above which it has not converged."""
LEAST_SHARE = 0.01
"""The same for a validation loss, which has the units of the data, relative to the loss."""


class State:
    """A snapshot of the state of training."""

    def __init__(self, trainer: "Trainer") -> None:
        self.steps = trainer.steps
        parts = trainer.model.state_dict(), trainer.optimizer.state_dict()
        self.parts: Any = tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, parts)
        self.random = torch.get_rng_state(), torch.cuda.get_rng_state_all() if trainer.factor.is_cuda else []

    def restore(self, trainer: "Trainer") -> None:
        """Restores this state."""
        trainer.steps = self.steps
        trainer.model.load_state_dict(self.parts[0])
        trainer.optimizer.load_state_dict(self.parts[1])
        torch.set_rng_state(self.random[0])
        if self.random[1]:
            torch.cuda.set_rng_state_all(self.random[1])


def not_finite(model: Model, numbers: dict[str, float]) -> str | None:
    """The name of the first non-finite number or parameter; None if all are finite."""
    bad = [name for name, number in numbers.items() if not math.isfinite(number)]
    bad += [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    return bad[0] if bad else None


def replay(trainer: "Trainer", state: State, epoch: int, bad: str) -> NoReturn:
    """Repeats an epoch while checking every step, to find the step and site of a non-finite number.

    Args:
        trainer: the training.
        state: the state before the epoch.
        epoch: number of the epoch.
        bad: what was not finite after it.

    Raises:
        TrainingError: always; the model then holds the last finite state.
    """
    state.restore(trainer)
    trainer.model.train()
    for index in trainer.indices():
        before = State(trainer)
        bound = trainer.step(index)
        if not torch.isfinite(bound) or not all(torch.isfinite(p).all() for p in trainer.parameters):
            step = trainer.steps
            before.restore(trainer)
            culprit = _culprit(trainer, index)
            raise TrainingError(
                f"{culprit} at step {step} (epoch {epoch}); the model holds the state before that step: "
                "lower the learning rate, set clip_norm, or bound the scale with min_scale"
            )
    state.restore(trainer)
    raise TrainingError(
        f"{bad} was not finite after epoch {epoch}; the model holds the state before that epoch: "
        "lower the learning rate, or set clip_norm"
    )


@torch.no_grad()
def _culprit(trainer: "Trainer", index: Tensor) -> str:
    model, batch = trainer.model, trainer.data.train.batch(index)
    if Capability.POSTERIOR not in model.offers or model.own_states:
        return "the loss or its gradient was not finite"
    inputs = training_arguments(model, batch)
    with model.of_rows(index, len(trainer.data.train)):
        particles = trainer.objective.num_particles
        weights = weigh(model.generate, model.infer, *inputs, particles=particles, outside=True)
    terms = {f"log q({site} | x)": value for site, value in weights.log_posterior.items()}
    terms |= {f"log p({site})": value for site, value in weights.log_prior.items()}
    for name, value in {**terms, "log p(x | z)": weights.log_likelihood}.items():
        bad = int((~torch.isfinite(value)).flatten(0, -2).any(0).sum())
        if bad:
            return f"{name} was not finite for {bad} of {len(batch.x)} datapoints"
    return "the gradient was not finite, though every log-probability was,"


def warn_if_not_converged(name: str, scores: list[float], epochs: int) -> None:
    """Warns if a validation score was still increasing at the last epoch.

    Args:
        name: name of the score; if it ends in `loss`, the score is the negative of a loss.
        scores: one per epoch; higher is better.
        epochs: declared number of epochs; training that stopped earlier has converged.
    """
    of_loss = name.endswith("loss")
    slope = still_rising(scores, LEAST_SHARE * abs(scores[-1]) if of_loss else LEAST_NATS)
    if slope is not None and len(scores) == epochs:
        verb = "falling" if of_loss else "rising"
        warnings.warn(
            f"not converged: {name} was still {verb}, by {slope:.2g} per epoch, at the last of {epochs} epochs; set "
            f"epochs: {2 * epochs}, or a larger learning rate",
            stacklevel=5,
        )


def still_rising(scores: list[float], least: float) -> float | None:
    """The slope of scores per epoch over the last quarter of training; None if they have converged.

    They have converged unless a least-squares line increases there by more than `least` and by more than three standard
    errors.

    Args:
        scores: one per epoch; higher is better.
        least: smallest relevant increase, in the units of the scores.
    """
    last = np.array(scores[-max(8, len(scores) // 4) :])
    if len(scores) < 2 * len(last):
        return None
    epochs = np.arange(len(last)) - (len(last) - 1) / 2
    slope = epochs @ last / (epochs @ epochs)
    residuals = last - last.mean() - slope * epochs
    error = math.sqrt(residuals @ residuals / (len(last) - 2) / (epochs @ epochs))
    return float(slope) if slope * (len(last) - 1) > least and slope > 3 * error else None


def warn_of_floors(parts: Iterable[Any]) -> None:
    """Warns of parts of a model with a learned parameter at its lower bound."""
    for part in parts:
        at_floor = getattr(part, "at_floor", None)
        if at_floor and at_floor():
            warnings.warn(
                f"a learned parameter of {part} has reached its lower bound, which then determines the density: "
                "constant dimensions of the data drive it there, or units in which all numbers are small; declare "
                "another bound, scale x, or dequantize the data",
                stacklevel=5,
            )
