"""Warm-ups: schedules of the factor of log p(z) - log q(z | x) in the training target."""

import math
from typing import Annotated

from annotated_types import Interval

from pyrolatent.declaration import Options, PositiveFloat, PositiveInt, component


class Warmup(Options):
    """Base class of factors that rise from 0 to 1.

    Args:
        epochs: number of epochs after which the factor stays 1.
    """

    epochs: PositiveFloat

    def __call__(self, t: float) -> float:
        """The factor after t epochs."""
        raise NotImplementedError


@component("linear", "warmup")
class Linear(Warmup):
    """min(1, t / epochs) (Bowman et al. 2016, 1511.06349)."""

    def __call__(self, t: float) -> float:
        """The factor after t epochs."""
        return min(1.0, t / self.epochs)


@component("cyclical", "warmup")
class Cyclical(Warmup):
    """Cycles in which the factor rises linearly from 0 and then stays at 1 (Fu et al. 2019, 1903.10145).

    Args:
        cycles: number of cycles.
        share: share of each cycle in which the factor rises.
    """

    cycles: PositiveInt = 4
    share: Annotated[float, Interval(gt=0, le=1)] = 0.5

    def __call__(self, t: float) -> float:
        """The factor after t epochs."""
        if t >= self.epochs:
            return 1.0
        return min(1.0, t * self.cycles / self.epochs % 1 / self.share)


@component("sigmoid", "warmup")
class Sigmoid(Warmup):
    """(s(t) - s(0)) / (s(epochs) - s(0)), s(t) = sigmoid(steepness (t / epochs - 1/2)), and 1 after these epochs.

    Bowman et al. 2016, 1511.06349, rescaled to rise from 0 to 1.

    Args:
        steepness: steepness of the rise; the factor is 1/2 after half of the epochs.
    """

    steepness: PositiveFloat = 10.0

    def __call__(self, t: float) -> float:
        """The factor after t epochs."""
        # s(t) - 1/2 = tanh(steepness (t / epochs - 1/2) / 2) / 2, which does not overflow.
        reach = math.tanh(self.steepness / 4)
        return min(1.0, 0.5 + 0.5 * math.tanh(self.steepness * (t / self.epochs - 0.5) / 2) / reach)
