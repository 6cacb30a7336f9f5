"""The gradient of a minibatch, compiled if it is worthwhile."""

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrolatent.data.splits import Split
from pyrolatent.inference.compiled import WORTH_COMPILING, CaptureError, compiled
from pyrolatent.inference.objectives.base import Objective
from pyrolatent.inference.weights import training_arguments
from pyrolatent.models.components.conditional import networks_in
from pyrolatent.models.model import Model

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}

TIMED = range(5, 25)
"""The steps from whose duration that of training is predicted."""


class Gradient:
    """The bound summed over some datapoints, and the gradient of the mean negative target for each parameter.

    Args:
        model: the model.
        data: the training data, on the model's device.
        objective: what is maximised.
        settings: the declared `compile` and `precision`.
        steps: total number of training steps.
    """

    def __init__(
        self, model: Model, data: Split, objective: Objective, settings: Mapping[str, Any], steps: int
    ) -> None:
        self.model, self.data, self.objective, self.steps_ahead = model, data, objective, steps
        self.parameters = list(model.parameters())
        self.precision = settings["precision"]
        self.policy = settings["compile"] if self.parameters[0].device.type in ("cpu", "cuda") else "never"
        self.compiled: Callable[..., Any] | None = None
        self.size = 0
        """The size of the minibatches that the compiled program takes."""
        self._clock = 0.0

    def __call__(self, index: Tensor, factor: Tensor) -> tuple[Any, ...]:
        """The bound, (), and a gradient or None for each parameter.

        Args:
            index: indices of the datapoints.
            factor: factor of beta, ().
        """
        if self.compiled is not None and len(index) == self.size:
            self.data.require_unchanged()
            found: tuple[Any, ...] = self.compiled(index, factor)
            return found
        return self.uncompiled(index, factor)

    def uncompiled(self, index: Tensor, factor: Tensor) -> tuple[Any, ...]:
        """The same without compilation."""
        for parameter in self.parameters:
            parameter.grad = None
        inputs = training_arguments(self.model, self.data.batch(index))
        with networks_in(PRECISIONS[self.precision]), self.model.of_rows(index, len(self.data)):
            bound = self.objective.accumulate(self.model, inputs, factor)
        return bound, *(parameter.grad for parameter in self.parameters)

    def is_worth_compiling(self, step: int) -> bool:
        """Whether to compile before this step: if declared, or if enough of training remains."""
        if self.policy != "auto":
            return self.policy == "always"
        if step in (TIMED.start, TIMED.stop) and self.parameters[0].is_cuda:
            torch.cuda.synchronize()
        if step == TIMED.start:
            self._clock = time.perf_counter()
        if step != TIMED.stop:
            return False
        return (time.perf_counter() - self._clock) / len(TIMED) * (self.steps_ahead - step) > WORTH_COMPILING

    def compile(self, index: Tensor, factor: Tensor) -> None:
        """Compiles it once, for minibatches of this size, or warns why it cannot be compiled."""
        asked, self.policy = self.policy, "never"
        if not self.objective.compiles:
            if asked == "always":
                name = self.objective.name
                warnings.warn(f"training goes on uncompiled: {name} keeps state outside of the model", stacklevel=5)
            return
        try:
            self.compiled = compiled(self.uncompiled, (index, factor), self.model, self.precision)
            self.size = len(index)
        except CaptureError as error:
            warnings.warn(f"training goes on uncompiled: {error}", stacklevel=5)
