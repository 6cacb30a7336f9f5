"""Matplotlib figures of training, reconstructions, samples and latent codes: arrays in, a `Figure` out.

Nothing here touches pyplot, so figures can be made in threads and without a display. Values of shape (n, H, W) or
(n, 1, H, W) are drawn as grey images, (n, 3, H, W) in colour, (n, 2) as points in the plane where they are samples or
reconstructions, and all others as profiles of their flattened entries.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import color_sequences, colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from pyrolatent.errors import InputError

Values = torch.Tensor | npt.ArrayLike
Array = npt.NDArray[np.float64]

# Told apart with any colour vision (Petroff 2021, arXiv 2107.02270); of its two greys the darker one is black here.
_COLOURS = [*color_sequences["petroff10"][:8], (0.1, 0.1, 0.1), *color_sequences["petroff10"][9:]]
_MUTED = "0.4"
_MISSING = (0.62, 0.79, 0.88)  # light blue, which no grey value can be mistaken for
_COLUMNS = 10  # pairs of an original and a reconstruction side by side
_MAX_BARS = 64  # entries of a vector; a longer one is drawn as a line
_MAX_LEGEND = 20  # classes


def training_curve(history: Sequence[Mapping[str, float | None]]) -> Figure:
    """Bound against epoch, in training and validation; squared error of models without a density.

    Args:
        history: one row an epoch with `epoch`, `train_loss` (negative bound, nats a datapoint, or squared error, lower
            is better) and `validation_elbo` or `validation_bound` (nats a datapoint, higher is better; None or absent
            where it was not evaluated) or, of models without a density, `validation_loss`.

    Raises:
        InputError: the history is empty.
    """
    if not history:
        raise InputError("history has 0 epochs; a training curve needs at least 1")
    epoch, loss, elbo, bound, error = (
        np.array([row.get(key) for row in history], dtype=np.float64)
        for key in ("epoch", "train_loss", "validation_elbo", "validation_bound", "validation_loss")
    )
    fig = _figure(6, 3.6)
    axes = fig.add_subplot()
    marker = "o" if len(history) <= 20 else ""  # one epoch makes no line
    axes.set_xlim(epoch.min() - 0.5, epoch.max() + 0.5)
    if np.isfinite(error).any():
        training, validation, names = loss, error, ("training", "validation")
        axes.set_ylabel("squared error a datapoint, lower is better")
    else:
        of_bound = np.isfinite(bound).any()
        training, validation = -loss, bound if of_bound else elbo
        names = "training (−train_loss)", "validation bound" if of_bound else "validation ELBO"
        axes.set_ylabel("bound [nats a datapoint], higher is better")
    axes.plot(epoch, training, color=_MUTED, marker=marker, markersize=4, label=names[0])
    evaluated = ~np.isnan(validation)
    if evaluated.any():
        best = np.nanargmax(-validation if validation is error else validation)
        label = f"{names[1]} (best {_text(validation[best], 2)}, epoch {epoch[best]:.0f})"
        axes.plot(epoch[evaluated], validation[evaluated], color=_COLOURS[0], marker=marker, markersize=4, label=label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="0.92")
    fig.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    _tidy(axes)
    return fig


def reconstructions(
    originals: Values, means: Values, names: tuple[str, str] = ("original", "reconstruction"), title: str = ""
) -> Figure:
    """Originals and, below each, its reconstruction; points in the plane are joined instead.

    Args:
        originals: (n, *event_shape).
        means: (n, *event_shape), means of the likelihood given codes of the originals.
        names: what the two are called.
        title: what the figure shows.

    Raises:
        InputError: the shapes differ, or n is 0.
    """
    above, below = _array(originals), _array(means)
    if above.shape != below.shape:
        raise InputError(f"originals have shape {above.shape} and means {below.shape}; they must be the same")
    if above.shape[1:] == (2,):
        fig = _figure(5, 4.2)
        axes = _plane(fig)
        axes.plot(*np.stack([above, below]).transpose(2, 0, 1), color="0.75", linewidth=0.6, zorder=0)
        for points, colour, label in ((above, _MUTED, names[0]), (below, _COLOURS[0], names[1])):
            _scatter(axes, points, color=colour, label=label)
        axes.legend(frameon=False, fontsize=8)
        return _titled(fig, title)
    columns = min(len(above), _COLUMNS)
    lines = -(-len(above) // columns)
    pitch = 2.2  # rows from one line of pairs to the next
    fig, axes = _grid(
        np.concatenate([above, below]),
        cells=[(i % columns, i // columns * pitch + row) for row in (0, 1) for i in range(len(above))],
        size=(columns, (lines - 1) * pitch + 2),
    )
    axes.set_yticks([line * pitch + row + 0.5 for line in range(lines) for row in (0, 1)], [*names] * lines)
    return _titled(fig, title)


def samples(values: Values, title: str = "") -> Figure:
    """Draws, in a grid as nearly square as their number allows, or points in the plane.

    Args:
        values: (n, *event_shape).
        title: what the figure shows.

    Raises:
        InputError: n is 0.
    """
    drawn = _array(values)
    if drawn.shape[1:] == (2,):
        fig = _figure(5, 4.2)
        _scatter(_plane(fig), drawn, color=_COLOURS[0], alpha=0.7)
        return _titled(fig, title)
    columns = int(np.ceil(np.sqrt(len(drawn))))
    cells = [(i % columns, i // columns) for i in range(len(drawn))]
    return _titled(_grid(drawn, cells, size=(columns, -(-len(drawn) // columns)))[0], title)


def latent_grid(values: Values, side: int, axes_quantiles: Values, title: str = "") -> Figure:
    """A seamless mosaic of what is decoded over a grid of the first two latent dimensions, or a line of the only one.

    z₁ grows to the right and z₂ upwards, and the first dimension varies slowest in `values`, as in
    `torch.cartesian_prod(axes_quantiles, axes_quantiles)`.

    Args:
        values: (side * side, *event_shape); `values[i * side + j]` is decoded from z₁ = q₁[i], z₂ = q₂[j]. Of one
            dimension (side, *event_shape).
        side: number of grid points along each dimension.
        axes_quantiles: latent values q of the grid points: (side,) for both dimensions, (2, side), or (1, side) of the
            only one.
        title: what the figure shows.

    Raises:
        InputError: the number of values or of quantiles does not fit `side`.
    """
    decoded, quantiles = _array(values), _array(axes_quantiles)
    if quantiles.shape not in ((side,), (1, side), (2, side)):
        raise InputError(f"axes_quantiles has shape {quantiles.shape}; expected ({side},), (1, {side}) or (2, {side})")
    rows = 1 if quantiles.shape == (1, side) else side
    if len(decoded) != side * rows:
        raise InputError(f"values holds {len(decoded)} entries; a grid of side {side} needs {side * rows}")
    cells = [(i, rows - 1 - j) for i in range(side) for j in range(rows)]
    fig, axes = _grid(decoded, cells, size=(side, rows), gap=0.0)
    ticks = np.arange(0, side, -(-side // 15))  # more labels would run into each other
    horizontal, vertical = np.broadcast_to(quantiles, (2, side))
    axes.set_xticks(ticks + 0.5, _labels(horizontal[ticks]))
    axes.set_xlabel("$z_1$" if rows > 1 else "$z$")
    fig.set_figheight(fig.get_figheight() + 0.3)
    if rows > 1:
        axes.set_yticks(side - ticks - 0.5, _labels(vertical[ticks]))
        axes.set_ylabel("$z_2$")
    return _titled(fig, title)


def label_grid(values: Values, classes: int, names: Sequence[str] | None = None, title: str = "") -> Figure:
    """What is decoded with the latent held along each row and the class varied.

    Args:
        values: (rows * classes, *event_shape), the class varying fastest.
        classes: number of classes.
        names: what they are called; None, their numbers.
        title: what the figure shows.

    Raises:
        InputError: the number of values is no multiple of the classes.
    """
    decoded = _array(values)
    rows, rest = divmod(len(decoded), classes)
    if rest:
        raise InputError(f"values holds {len(decoded)} entries; a grid of {classes} classes needs a multiple of that")
    fig, axes = _grid(decoded, [(j, i) for i in range(rows) for j in range(classes)], size=(classes, rows))
    axes.set_xticks(np.arange(classes) + 0.5, names or [str(label) for label in range(classes)])
    axes.set_xlabel("class $y$")
    axes.set_yticks(np.arange(rows) + 0.5, [f"$z^{{({i + 1})}}$" for i in range(rows)])
    return _titled(fig, title)


def embedding(
    codes: Values,
    labels: Values | None = None,
    title: str = "Latent codes",
    names: Sequence[str] | None = None,
) -> Figure:
    """Codes in the plane, coloured by class; where all codes are one, a line that says so.

    Args:
        codes: (n, 2), for example from `project`.
        labels: (n,) integers, or None for a single colour. Up to 20 classes have a legend; beyond, colours repeat.
        title: what the figure shows.
        names: what the classes are called; None, their numbers, -1 being unknown.

    Raises:
        InputError: codes that are not in the plane, or another number of labels than of codes.
    """
    points = _array(codes)
    if points.shape[1:] != (2,):
        raise InputError(f"codes have shape {points.shape}; expected (n, 2): project() gives that")
    classes, index = np.unique(_array(np.zeros(len(points)) if labels is None else labels), return_inverse=True)
    if index.shape != (len(points),):
        raise InputError(
            f"labels have shape {index.shape} and there are {len(points)} codes; expected one label a code"
        )
    fig = _figure(5.4, 4.4)
    axes = fig.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.set_aspect("equal", adjustable="datalim")
    _tidy(axes)
    if len(points) > 1 and not np.ptp(points, axis=0).any():
        said = f"all {len(points)} codes are equal:\nq(z | x) does not depend on x"
        axes.text(0.5, 0.5, said, ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return fig
    if not np.ptp(points[:, 1]):  # of one dimension, there is nothing upwards
        axes.set_yticks([])
    if labels is None:
        _scatter(axes, points, color=_COLOURS[0], alpha=0.7)
        return fig
    colours = np.asarray(_COLOURS if len(classes) <= len(_COLOURS) else color_sequences["tab20"])
    colours = colours[np.arange(len(classes)) % len(colours)]
    _scatter(axes, points, color=colours[index], alpha=0.8)
    if len(classes) <= _MAX_LEGEND:
        handles = [
            Line2D([], [], linestyle="", marker="o", markersize=5, color=colour, label=_class(int(label), names))
            for colour, label in zip(colours, classes, strict=True)
        ]
        fig.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8, handletextpad=0.1)
    else:
        _caption(fig, f"{len(classes)} classes; colours repeat")
    return fig


def project(codes: Values, method: Literal["tsne", "pca"] = "tsne", seed: int = 0) -> Array:
    """Codes in the plane, (n, 2).

    One dimension is padded with zeros and two are returned as they are. t-SNE needs about three neighbours for each
    unit of a perplexity of at least five, so fewer than 16 codes are projected by PCA whatever the method.

    Args:
        codes: (n, latent_dim).
        method: `tsne` (van der Maaten and Hinton 2008; perplexity 30, or (n − 1) / 3 where that is less) or `pca`.
        seed: of t-SNE; PCA has no randomness.

    Raises:
        InputError: an unknown method, or codes that are not a matrix.
    """
    if method not in ("tsne", "pca"):
        raise InputError(f"unknown method {method!r}; expected 'tsne' or 'pca'")
    points = _array(codes)
    if points.ndim != 2:
        raise InputError(f"codes have shape {points.shape}; expected (n, latent_dim)")
    n, latent_dim = points.shape
    if latent_dim <= 2:
        return np.pad(points, ((0, 0), (0, 2 - latent_dim)))
    if not np.ptp(points, axis=0).any():  # a single code or a collapsed posterior: no direction to project on
        return np.zeros((n, 2))
    perplexity = min(30.0, (n - 1) / 3)
    if method == "pca" or perplexity < 5:
        return np.asarray(PCA(2).fit_transform(points), dtype=np.float64)
    return np.asarray(TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points), np.float64)


def _array(values: Values) -> Array:
    """Anything as float64 on the CPU, with at least one entry."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()  # NumPy has no bfloat16
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise InputError(f"nothing to draw: the shape is {array.shape}")
    return array


def _figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _caption(fig: Figure, text: str) -> None:
    """A line below the axes."""
    fig.supxlabel(text, fontsize=7, color=_MUTED)


def _titled(fig: Figure, title: str) -> Figure:
    """The figure with a line above it, if there is one to say."""
    if title:
        fig.suptitle(title, fontsize=8)
        fig.set_figheight(fig.get_figheight() + 0.25)
    return fig


def _class(label: int, names: Sequence[str] | None) -> str:
    return "unknown" if label < 0 else names[label] if names else str(label)


def _tidy(axes: Axes) -> None:
    """Leaves only the spines that carry ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _plane(fig: Figure) -> Axes:
    """Axes for data with two entries."""
    axes = fig.add_subplot()
    axes.set(xlabel="$x_1$", ylabel="$x_2$")
    axes.set_aspect("equal", adjustable="datalim")
    _tidy(axes)
    return axes


def _scatter(axes: Axes, points: Array, **style: Any) -> None:
    """Draws (n, 2), with smaller markers where there are more."""
    axes.scatter(points[:, 0], points[:, 1], s=float(np.clip(6000 / len(points), 3, 20)), linewidths=0, **style)


def _text(value: float, decimals: int) -> str:
    """A number with a typographic minus and no negative zero."""
    return f"{np.round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")


def _short(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.3g}".replace("-", "−")


def _labels(values: Array) -> list[str]:
    """Tick labels with as many decimals as tell the values apart."""
    spread = np.ptp(values) or 1.0
    return [_text(value, max(0, 2 - int(np.floor(np.log10(spread))))) for value in values]


def _grid(
    values: Array, cells: Sequence[tuple[float, float]], size: tuple[float, float], gap: float = 0.06
) -> tuple[Figure, Axes]:
    """Draws every value into a cell of its own, on one scale and in one axes whose units are cells.

    Args:
        values: (n, *event_shape).
        cells: column and row of the upper left corner of each value.
        size: number of columns and rows.
        gap: space between images, as a fraction of a cell.
    """
    columns, rows = size
    shape = values.shape[1:]
    is_image = _is_image(shape)
    aspect = shape[-2] / shape[-1] if is_image else 0.7
    width = min(0.8, 6 / columns) if is_image else min(1.3, 7 / columns)
    fig = _figure(max(columns * width, 2.5) + 1, rows * width * aspect + 0.5)
    axes = fig.add_subplot()
    caption = _images(axes, values, cells, gap) if is_image else _profiles(axes, values, cells)
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect=aspect, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7)
    if caption:
        _caption(fig, caption)
    return fig, axes


def _is_image(event_shape: Sequence[int]) -> bool:
    return len(event_shape) == 2 or (len(event_shape) == 3 and event_shape[0] in (1, 3))


def _limits(values: Array) -> tuple[float, float]:
    """Zero and one where they hold all finite values, else the least and the greatest of these."""
    finite = values[np.isfinite(values)]
    if not finite.size or (finite.min() >= 0 and finite.max() <= 1):
        return 0.0, 1.0
    return float(finite.min()), float(finite.max())


def _images(axes: Axes, values: Array, cells: Sequence[tuple[float, float]], gap: float) -> str:
    """Draws (n, H, W), (n, 1, H, W) or (n, 3, H, W) into their cells and returns the caption."""
    low, high = _limits(values)
    grey = colormaps["gray"].with_extremes(bad=_MISSING)
    missing = ~np.isfinite(values)
    for value, absent, (column, row) in zip(values, missing, cells, strict=True):
        if len(value) == 3 and value.ndim == 3:
            # A constant other than zero and one has no range to be scaled by.
            image = np.moveaxis((value - low) / ((high - low) or 1.0), 0, -1)
            image[absent.any(0)] = _MISSING
        else:
            image = np.where(absent, np.nan, value).reshape(value.shape[-2:])
        left, right, top, bottom = column + gap / 2, column + 1 - gap / 2, row + gap / 2, row + 1 - gap / 2
        axes.imshow(image, cmap=grey, vmin=low, vmax=high, extent=(left, right, bottom, top), aspect="auto")
    scaled = [f"values scaled from [{_short(low)}, {_short(high)}] to [0, 1]"] if (low, high) != (0, 1) else []
    return "; ".join(scaled + ["blue: no value"] * bool(missing.any()))


def _profiles(axes: Axes, values: Array, cells: Sequence[tuple[float, float]]) -> str:
    """Draws the flattened entries of each value as bars on zero, or as a line, and returns the caption."""
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
            axes.stairs(heights, column + edges, baseline=zero, fill=True, color=_COLOURS[0])
        else:
            axes.plot(column + (edges[1:] + edges[:-1]) / 2, heights, color=_COLOURS[0], linewidth=0.6)
    return f"across: entries 1 to {entries}; upwards: values from {_short(low)} to {_short(high)}"
