"""The distribution of each column of a table, in the data and in replicated data sets."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrolatent.checks.panels import COLOURS, Arrays
from pyrolatent.models.components.columns import Columns
from pyrolatent.models.latent import LatentVariableModel

BINS = 20
"""Largest number of bins of a column."""
SHOWN = 40
"""Largest number of columns in a figure."""


class Histograms:
    """The shares of the values of each column in bins, for models with a family for each column.

    Args:
        model: the model.
        x: the data (n, columns), which determine the bins: one for each of few whole values, or 20 of one width.
    """

    def __init__(self, model: LatentVariableModel, x: Tensor) -> None:
        family = getattr(getattr(model, "likelihood", None), "family", None)
        self.family = family if isinstance(family, Columns) else None
        self.edges = (
            []
            if self.family is None
            else [
                _edges(x[:, i].double(), mass=one.measure == "mass")
                for i, one in enumerate(self.family.families[:SHOWN])
            ]
        )
        self.shares: list[list[Tensor]] = [[] for _ in self.edges]

    def add(self, sets: Tensor) -> None:
        """Adds data sets (sets, n, columns); values outside of the bins count in the first or the last one."""
        for i, edges in enumerate(self.edges):
            place = torch.bucketize(sets[..., i].double(), edges[1:-1])
            self.shares[i].append(torch.nn.functional.one_hot(place, len(edges) - 1).double().mean(1).cpu())

    @property
    def arrays(self) -> dict[str, Any]:
        """Of each column the centres of its bins and the shares in each data set, (1 + sets, bins), and its words."""
        found: dict[str, Any] = {}
        for i, edges in enumerate(self.edges):
            assert self.family is not None
            centres = ((edges[1:] + edges[:-1]) / 2).cpu().unsqueeze(0)
            found[f"column {self.family.names[i]}"] = torch.cat([centres, *self.shares[i]])
            found[f"words of {self.family.names[i]}"] = np.asarray(self.family.words[i], dtype=str)
        return found


def _edges(x: Tensor, *, mass: bool) -> Tensor:
    low, high = x.min().item(), x.max().item()
    if mass and high - low < BINS:
        return torch.arange(low - 0.5, high + 1, dtype=torch.float64, device=x.device)
    return torch.linspace(low, high if high > low else low + 1, BINS + 1, dtype=torch.float64, device=x.device)


def figure(arrays: Arrays) -> Figure | None:
    """A panel for each column, shares in the data over the middle 95 % of those in replicates; None without columns."""
    names = [name.removeprefix("column ") for name in arrays if name.startswith("column ")]
    if not names:
        return None
    wide = min(len(names), 4)
    rows = -(-len(names) // wide)
    fig = Figure(figsize=(2.6 * wide, 2.1 * rows), dpi=130, layout="constrained")
    for axes, name in zip(np.ravel(fig.subplots(rows, wide, squeeze=False)), names, strict=False):
        centres, data, *replicates = arrays[f"column {name}"]
        low, high = np.quantile(replicates, [0.025, 0.975], axis=0)
        axes.fill_between(centres, low, high, step="mid", color="0.85", label="replicates")
        axes.plot(centres, data, "o", markersize=3, color=COLOURS[0], label="data")
        words = arrays[f"words of {name}"]
        if 0 < len(words) <= BINS:
            axes.set_xticks(range(len(words)), words, rotation=45, fontsize=6)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
    for unused in fig.axes[len(names) :]:
        unused.set_visible(False)
    fig.axes[0].legend(frameon=False, fontsize=6)
    return fig
