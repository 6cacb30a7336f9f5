"""What happens beside training: a small protocol, and the progress bar and early stopping, which use it.

class Printing(pl.Callback):
    def on_epoch(self, fit):
        print(fit.history[-1])

pl.fit(model, data, callbacks=[Printing()])
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

from pyrolatent.errors import InputError
from pyrolatent.inference.training.fitted import Fit


class Callback:
    """Methods that training calls. Each does nothing here; a subclass overrides those that it needs."""

    def on_start(self, fit: Fit) -> None:
        """Called once before the first epoch, when the combination of model and data has been validated."""

    def on_step(self, fit: Fit, step: int, value: Callable[[], float]) -> None:
        """Called after each step of the optimiser.

        Args:
            fit: the fit so far.
            step: number of the step, from 1.
            value: returns the objective of the minibatch per datapoint. Calling it waits for the device to finish the
                step, which costs up to half of the speed on a GPU, so call it every few hundred steps.
        """

    def on_epoch(self, fit: Fit) -> None:
        """Called after each epoch, whose row is the last of `fit.history`.

        The model holds the epoch's weights, in evaluation mode. `fit.stop = True` ends training.
        """

    def on_end(self, fit: Fit) -> None:
        """Called once after the last epoch, unless training was interrupted."""


def validated(callbacks: Sequence[Any]) -> list[Callback]:
    """The callbacks.

    Raises:
        InputError: one is no instance of `Callback`.
    """
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Sequence):
        raise InputError(f"callbacks were a {type(callbacks).__name__}; give a list of instances of pl.Callback")
    for each in callbacks:
        if not isinstance(each, Callback):
            what = "the class, not an instance" if isinstance(each, type) else f"a {type(each).__name__}"
            raise InputError(f"a callback was {what}; give instances of a subclass of pl.Callback")
    return [*callbacks]


def on_each_step(callbacks: Sequence[Callback]) -> list[Callback]:
    """Those that ask for steps."""
    return [each for each in callbacks if type(each).on_step is not Callback.on_step]


class EarlyStopping(Callback):
    """Stops after some epochs without an improvement of the validation score, and returns to the best weights.

    Args:
        patience: number of epochs.
        after: epochs that are not judged, because the objective still changes.
    """

    def __init__(self, patience: int, after: int = 0) -> None:
        self.patience, self.after = patience, after
        self.best, self.state = -math.inf, None

    def on_epoch(self, fit: Fit) -> None:
        """Keeps the weights if they are the best so far."""
        epoch = len(fit.history)
        if epoch >= self.after and fit.validation > self.best:
            self.best, self.state, fit.best_epoch = fit.validation, copy.deepcopy(fit.model.state_dict()), epoch
        if fit.best_epoch is not None and epoch - fit.best_epoch >= self.patience:
            fit.stop = True

    def on_end(self, fit: Fit) -> None:
        """Returns to the best weights."""
        if self.state is not None:
            fit.model.load_state_dict(self.state)


class ProgressBar(Callback):
    """A progress bar of steps, with their rate and the remaining time; to be used as a context."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.fields[fit].doing}"),
            BarColumn(),
            TaskProgressColumn(show_speed=True),
            TimeRemainingColumn(),
            transient=True,
        )

    def on_start(self, fit: Fit) -> None:
        """Shows the bar."""
        self.task = self.bar.add_task("", total=fit.total_steps, fit=fit)
        self.bar.start()

    def on_step(self, fit: Fit, step: int, value: Callable[[], float]) -> None:
        """Advances the bar."""
        self.bar.update(self.task, completed=step)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()
