"""Warm-ups: the factor of log p(z) - log q(z | x) in the training target after so many epochs."""

import math
from typing import Annotated

from annotated_types import Interval

from pyrolatent.declaration import Options, PositiveFloat, PositiveInt, component


class Warmup(Options):
    """A factor that rises from 0 to 1.

    Args:
        epochs: until the factor is 1; it stays there.
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
    """Cycles in each of which the factor rises linearly from 0 and then stays 1 (Fu et al. 2019, 1903.10145).

    Args:
        cycles: their number.
        share: of each cycle in which the factor rises.
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
    """(s(t) - s(0)) / (s(epochs) - s(0)), s(t) = sigmoid(steepness (t / epochs - 1/2)), and 1 after that many epochs.

    Bowman et al. 2016, 1511.06349, scaled so that it rises from 0 to 1.

    Args:
        steepness: of the rise; the factor is 1/2 at half of the epochs.
    """

    steepness: PositiveFloat = 10.0

    def __call__(self, t: float) -> float:
        """The factor after t epochs."""
        # s(t) - 1/2 = tanh(steepness (t / epochs - 1/2) / 2) / 2, which no steepness overflows.
        reach = math.tanh(self.steepness / 4)
        return min(1.0, 0.5 + 0.5 * math.tanh(self.steepness * (t / self.epochs - 0.5) / 2) / reach)
