"""What training leaves behind: the model, and the record of how it came about."""

from dataclasses import dataclass, field
from typing import Any

from pyrolatent.data.splits import Data

Row = dict[str, Any]


@dataclass
class Fit:
    """A trained model and the record of its training.

    Attributes:
        model: the model, with the weights of `best_epoch` after early stopping, else of the last epoch.
        data: the data that it was trained on.
        settings: the declared settings, as in an experiment file.
        history: one row per epoch: `epoch`, `train_loss` (mean of the negative bound over the epoch's batches, nats per
            datapoint, lower is better), `validation_elbo` (nats per datapoint, higher is better) or the name of another
            `held_out` score, `learning_rate`, `seconds` (training time of the epoch), and further losses of the
            objective.
        best_epoch: the epoch whose weights were kept by early stopping.
        validation: the validation score of the last epoch, higher is better.
        total_steps: number of steps of all declared epochs.
        stop: whether training ends after this epoch, which a callback may set.
        doing: what is being done, in words.
    """

    model: Any
    data: Data
    settings: dict[str, Any]
    history: list[Row] = field(default_factory=list)
    best_epoch: int | None = None
    validation: float = field(default=float("nan"), repr=False)
    total_steps: int = field(default=0, repr=False)
    stop: bool = field(default=False, repr=False)
    doing: str = field(default="", repr=False)
