"""Shared helpers of figures: converting arrays, empty figures, grids of images and number formats."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import color_sequences, colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pyrolatent.errors import InputError

Values = torch.Tensor | npt.ArrayLike


Array = npt.NDArray[np.float64]


# Distinguishable with any colour vision (Petroff 2021, arXiv 2107.02270); the darker of its two greys is black here.
COLOURS = [*color_sequences["petroff10"][:8], (0.1, 0.1, 0.1), *color_sequences["petroff10"][9:]]


MUTED = "0.4"


MISSING = (0.62, 0.79, 0.88)  # light blue, which differs from every grey value


_MAX_BARS = 64  # entries of a vector; a longer one is drawn as a line


def as_array(values: Values) -> Array:
    """Converts values to a non-empty float64 array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()  # NumPy has no bfloat16
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise InputError(f"nothing to plot: the shape is {array.shape}")
    return array


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def add_caption(fig: Figure, text: str) -> None:
    """Adds a line of text below the axes."""
    fig.supxlabel(text, fontsize=7, color=MUTED)


def with_title(fig: Figure, title: str) -> Figure:
    """Sets the title of a figure unless it is empty, and returns the figure."""
    if title:
        fig.suptitle(title, fontsize=8)
        fig.set_figheight(fig.get_figheight() + 0.25)
    return fig


def tidy(axes: Axes) -> None:
    """Removes the spines without ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def plane(fig: Figure) -> Axes:
    """Axes for two-dimensional data."""
    axes = fig.add_subplot()
    axes.set(xlabel="$x_1$", ylabel="$x_2$")
    axes.set_aspect("equal", adjustable="datalim")
    tidy(axes)
    return axes


def scatter(axes: Any, points: Array, **style: Any) -> None:
    """Plots points (n, 2), or (n, 3) in space, with smaller markers for larger n."""
    axes.scatter(*points.T, s=float(np.clip(6000 / len(points), 3, 20)), linewidths=0, **style)


def with_decimals(value: float, decimals: int) -> str:
    """Formats a number with a typographic minus and without negative zero."""
    return f"{np.round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")


def _short(value: float) -> str:
    """Formats a number with three significant digits."""
    return f"{value:.3g}".replace("-", "−")


def tick_labels(values: Array) -> list[str]:
    """Tick labels with enough decimals to distinguish the values."""
    spread = np.ptp(values) or 1.0
    return [with_decimals(value, max(0, 2 - int(np.floor(np.log10(spread))))) for value in values]


def draw_grid(
    values: Array, cells: Sequence[tuple[float, float]], size: tuple[float, float], gap: float = 0.06
) -> tuple[Figure, Axes]:
    """Plots each value in its own cell, on a common scale and in axes whose units are cells.

    Args:
        values: (n, *event_shape).
        cells: column and row of the upper left corner of each value.
        size: number of columns and rows.
        gap: space between images, as a fraction of a cell.
    """
    columns, rows = size
    shape = values.shape[1:]
    is_image = is_image_shape(shape)
    aspect = shape[-2] / shape[-1] if is_image else 0.7
    width = min(0.8, 6 / columns) if is_image else min(1.3, 7 / columns)
    fig = new_figure(max(columns * width, 2.5) + 1, rows * width * aspect + 0.5)
    axes = fig.add_subplot()
    caption = _images(axes, values, cells, gap) if is_image else _profiles(axes, values, cells)
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect=aspect, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7)
    if caption:
        add_caption(fig, caption)
    return fig, axes


def is_image_shape(event_shape: Sequence[int]) -> bool:
    """Whether values of this shape are drawn as images: (H, W), (1, H, W) or (3, H, W)."""
    return len(event_shape) == 2 or (len(event_shape) == 3 and event_shape[0] in (1, 3))


def _limits(values: Array) -> tuple[float, float]:
    """(0, 1) if all finite values lie between, else their minimum and maximum."""
    finite = values[np.isfinite(values)]
    if not finite.size or (finite.min() >= 0 and finite.max() <= 1):
        return 0.0, 1.0
    return float(finite.min()), float(finite.max())


def _images(axes: Axes, values: Array, cells: Sequence[tuple[float, float]], gap: float) -> str:
    """Plots (n, H, W), (n, 1, H, W) or (n, 3, H, W) in their cells and returns the caption."""
    low, high = _limits(values)
    grey = colormaps["gray"].with_extremes(bad=MISSING)
    missing = ~np.isfinite(values)
    for value, absent, (column, row) in zip(values, missing, cells, strict=True):
        if len(value) == 3 and value.ndim == 3:
            # A constant other than zero and one has no range to scale by.
            image = np.moveaxis((value - low) / ((high - low) or 1.0), 0, -1)
            image[absent.any(0)] = MISSING
        else:
            image = np.where(absent, np.nan, value).reshape(value.shape[-2:])
        left, right, top, bottom = column + gap / 2, column + 1 - gap / 2, row + gap / 2, row + 1 - gap / 2
        axes.imshow(image, cmap=grey, vmin=low, vmax=high, extent=(left, right, bottom, top), aspect="auto")
    scaled = [f"values scaled from [{_short(low)}, {_short(high)}] to [0, 1]"] if (low, high) != (0, 1) else []
    return "; ".join(scaled + ["blue: no value"] * bool(missing.any()))


def _profiles(axes: Axes, values: Array, cells: Sequence[tuple[float, float]]) -> str:
    """Plots the flattened entries of each value as bars or as a line, and returns the caption."""
    values = values.reshape(len(values), -1)
    entries = values.shape[1]
    low, high = _limits(values)
    bars = entries <= _MAX_BARS
    if bars:
        low, high = min(low, 0.0), max(high, 0.0)
    edges = np.linspace(0.08, 0.92, entries + 1)
    for value, (column, row) in zip(values, cells, strict=True):
        axes.add_patch(Rectangle((column + 0.05, row + 0.05), 0.9, 0.9, color="0.96"))
        zero, *heights = (
            row + 0.9 - 0.8 * (np.array([0.0, *value]) - low) / ((high - low) or 1.0)
        )  # rows grow downwards
        if low <= 0 <= high:
            axes.plot(column + edges[[0, -1]], [zero, zero], color="0.7", linewidth=0.5)
        if bars:
            axes.stairs(heights, column + edges, baseline=zero, fill=True, color=COLOURS[0])
        else:
            axes.plot(column + (edges[1:] + edges[:-1]) / 2, heights, color=COLOURS[0], linewidth=0.6)
    return f"across: entries 1 to {entries}; upwards: values from {_short(low)} to {_short(high)}"
