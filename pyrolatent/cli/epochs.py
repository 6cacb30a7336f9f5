"""What training prints."""

import math

from pyrolatent.inference.training.callbacks import Callback
from pyrolatent.inference.training.fitted import Fit

ROWS = 20
"""Largest number of printed epochs beside the first and the last."""


class EpochRows(Callback):
    """Prints the data, and a row for every n-th epoch, for the first and for the last."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.epoch = 0
        self._pending = ""

    def on_start(self, fit: Fit) -> None:
        """Prints what the data are."""
        if not self.quiet:
            print(f"{fit.data.describe()}\n")

    def on_epoch(self, fit: Fit) -> None:
        """Takes the last row of a fit and prints it if it is due."""
        row = fit.history[-1]
        self.epoch = row["epoch"]
        name = next(key for key in row if key.startswith("validation_") and row[key] is not None)
        self._pending = f"{self.epoch:5}  {row['train_loss']:12.3f}  {row[name]:>{len(name)}.3f}  {row['seconds']:7.1f}"
        if self.epoch == 1 and not self.quiet:
            print(f"epoch    train_loss  {name}  seconds")
        if self.epoch == 1 or self.epoch % math.ceil(fit.settings["epochs"] / ROWS) == 0:
            self.on_end(fit)

    def on_end(self, fit: Fit) -> None:
        """Prints the last row unless it has been printed."""
        if self._pending and not self.quiet:
            print(self._pending, flush=True)
        self._pending = ""
