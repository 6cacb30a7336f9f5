"""Objectives without draws: squared error, closed-form solutions, expectation-maximisation."""

from typing import Any

from torch import Tensor

from pyrolatent.declaration import component
from pyrolatent.inference.objectives.base import Objective
from pyrolatent.inference.weights import (
    Inputs,
)
from pyrolatent.models.model import Capability


@component("squared_error", "objective")
class SquaredError(Objective):
    """sum_i (x_i - decode(encode(x))_i)^2 over observed entries, for models without a density."""

    needs = frozenset({Capability.CODES})

    def loss(self, model: Any, inputs: Inputs) -> Tensor:
        """The squared error of each datapoint, (batch,), in the squared units of x; lower is better."""
        x, _, mask = inputs
        error = (model(x, mask) - x).square()
        return (error if mask is None else error * mask).flatten(1).sum(-1)

    def accumulate(self, model: Any, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the gradient of the mean squared error of a minibatch; returns its negative sum."""
        loss = self.loss(model, inputs)
        loss.mean().backward()
        return -loss.detach().sum()


@component("closed_form", "objective")
class ClosedForm(Objective):
    """The model's maximum-likelihood or least-squares solution on all training data, in one epoch."""

    needs = frozenset({Capability.SOLUTION})
    settings = ("objective", "seed", "device")
    by_gradient = False
    takes_masks = False
    epochs = 1

    def update(self, model: Any, inputs: Inputs) -> None:
        """Sets the model's parameters to the solution."""
        model.solve(inputs[0])


@component("em", "objective")
class EM(Objective):
    """Expectation-maximisation with the exact posterior on all training data, one step per epoch."""

    needs = frozenset({Capability.EM})
    by_gradient = False
    settings = ("objective", "epochs", "patience", "seed", "device")

    def update(self, model: Any, inputs: Inputs) -> None:
        """Takes one step of expectation and maximisation, which never lowers the evidence."""
        x, _, mask = inputs
        model.em_step(x, mask)
