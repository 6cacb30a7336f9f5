"""Callbacks that send the rows of training to TensorBoard, MLflow or Weights & Biases."""

import importlib
from pathlib import Path
from typing import Any

from pyrolatent.errors import InputError
from pyrolatent.inference.training.callbacks import Callback
from pyrolatent.inference.training.fitted import Fit


def _needed(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{extra} is not installed; pip install 'pyrolatent[{extra}]', or leave it out") from None


def numbers(fit: Fit) -> dict[str, float]:
    """The numbers of the last epoch, without its own number and its time."""
    row = fit.history[-1]
    return {name: row[name] for name in row if name not in ("epoch", "seconds") and row[name] is not None}


class TensorBoard(Callback):
    """Writes a curve of each number for TensorBoard (the extra `tensorboard`).

    Args:
        directory: the directory of its files.
    """

    def __init__(self, directory: str | Path) -> None:
        self._writer = _needed("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self.directory = str(directory)

    def on_start(self, fit: Fit) -> None:
        """Opens the files."""
        self.writer = self._writer(self.directory)

    def on_epoch(self, fit: Fit) -> None:
        """Adds a point to each curve."""
        for name, value in numbers(fit).items():
            self.writer.add_scalar(name, value, fit.history[-1]["epoch"])
        self.writer.flush()

    def on_end(self, fit: Fit) -> None:
        """Closes the files."""
        self.writer.close()


class MLflow(Callback):
    """Logs settings and numbers to the active run of MLflow, or to a new one (the extra `mlflow`)."""

    def __init__(self) -> None:
        self._mlflow = _needed("mlflow", "mlflow")

    def on_start(self, fit: Fit) -> None:
        """Logs the settings."""
        self._mlflow.log_params(fit.settings)

    def on_epoch(self, fit: Fit) -> None:
        """Logs the numbers of the epoch."""
        self._mlflow.log_metrics(numbers(fit), step=fit.history[-1]["epoch"])


class WeightsAndBiases(Callback):
    """Logs settings and numbers to a run of Weights & Biases (the extra `wandb`).

    Args:
        **options: options of `wandb.init`, such as `project`.
    """

    def __init__(self, **options: Any) -> None:
        self._wandb, self.options = _needed("wandb", "wandb"), options

    def on_start(self, fit: Fit) -> None:
        """Starts a run."""
        self.run = self._wandb.init(config=fit.settings, **self.options)

    def on_epoch(self, fit: Fit) -> None:
        """Logs the numbers of the epoch."""
        self.run.log(numbers(fit), step=fit.history[-1]["epoch"])

    def on_end(self, fit: Fit) -> None:
        """Finishes the run."""
        self.run.finish()
