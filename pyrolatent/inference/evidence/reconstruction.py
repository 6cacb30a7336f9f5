"""The test error of models without a density."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyrolatent.data.splits import Data
from pyrolatent.inference import distributed
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.evidence.result import HeldOutScores, Line, OnStep
from pyrolatent.inference.monte_carlo import none_if_nan, standard_error
from pyrolatent.inference.objectives.exact import SquaredError
from pyrolatent.inference.rules import split_for
from pyrolatent.inference.weights import arguments
from pyrolatent.models.autoencoder import DeterministicModel

MEASURE = "squared error"
AT_ONCE = 1000
"""Number of datapoints that are reconstructed at a time."""


@dataclass(frozen=True)
class ReconstructionError(HeldOutScores):
    """How far reconstructions are from held-out data; lower is better.

    Attributes:
        split: the part of the data.
        measure: "squared error".
        squared_error: mean over datapoints of the sum over observed entries of (x - x')², in squared units of x.
        squared_error_se: its standard error over datapoints.
        per_entry: mean of (x - x')² over observed entries.
        explained: share of the variance of the part around its means that is explained, 1 - ∑ (x - x')² / ∑ (x - m)².
        datapoints: number of datapoints.
        each: squared error of each datapoint, (datapoints,), float64; and `row`, the number of its row in the data.
    """

    split: str
    squared_error: float
    squared_error_se: float | None
    per_entry: float
    explained: float | None
    datapoints: int
    measure: str = MEASURE
    each: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def title(self) -> str:
        """Title of the printed scores."""
        return f"{self.split}, {self.datapoints} datapoints, squared error of reconstructions, lower is better"

    def rows(self) -> list[Line]:
        """One printed line per score."""
        error = "" if self.squared_error_se is None else f", ± {self.squared_error_se:.2g} over datapoints"
        rows = [("squared_error", f"{self.squared_error:.4f}", f"sum over the entries{error}"),
                ("per_entry", f"{self.per_entry:.5f}", "mean over the entries")]  # fmt: skip
        if self.explained is not None:
            rows.append(("explained", f"{self.explained:.2%}", "of the variance"))
        return rows


@torch.no_grad()
def reconstruction_error(
    model: DeterministicModel, data: Data, *, split: str = "test", on_step: OnStep | None = None
) -> ReconstructionError:
    """The squared error of decoder(encoder(x)) on held-out data.

    Args:
        model: a fitted model.
        data: data of the model's event shape.
        split: "train", "validation" or "test".
        on_step: called with the current task, the amount done and the total.
    """
    part = split_for(model, data, split)
    own = distributed.shard(torch.arange(len(part), device=part.x.device))
    errors, moments = [], torch.zeros(3, *data.event_shape, dtype=torch.float64, device=part.x.device)
    with evaluating(model):
        for index in own.split(AT_ONCE):
            x, y, mask = arguments(model, part.batch(index))
            errors.append(SquaredError().loss(model, (x, y, mask)).double())
            seen = torch.ones_like(x) if mask is None else mask.to(x)
            moments += torch.stack([seen, seen * x, seen * x.square()]).double().sum(1)
            if on_step:
                on_step("squared error", min(len(errors) * AT_ONCE * distributed.size(), len(part)), len(part))
    each = distributed.gather(torch.cat(errors), len(part)).cpu()
    count, total, squares = distributed.total([moments])[0].cpu()
    variance = (squares - total.square() / count.clamp(min=1)).sum().item()
    return ReconstructionError(
        split=split,
        squared_error=each.mean().item(),
        squared_error_se=none_if_nan(standard_error(each)),
        per_entry=each.sum().item() / count.sum().item(),
        explained=1 - each.sum().item() / variance if variance > 0 else None,
        datapoints=len(each),
        each={"squared_error": each, "row": part.row_numbers},
    )
