"""Matplotlib figures of training, reconstructions, samples and latent codes: arrays in, a `Figure` out.

pyplot is not used, so figures can be made in threads and without a display. Values of shape (n, H, W) or (n, 1, H, W)
are plotted as grey images, (n, 3, H, W) in colour, samples and reconstructions of shape (n, 2) as points in the plane,
and all others as profiles of their flattened entries.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import color_sequences
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from pyrolatent.errors import InputError
from pyrolatent.figures.canvas import (
    COLOURS,
    MUTED,
    Array,
    Values,
    add_caption,
    as_array,
    draw_grid,
    new_figure,
    plane,
    scatter,
    tick_labels,
    tidy,
    with_decimals,
    with_title,
)

_COLUMNS = 10  # pairs of an original and a reconstruction side by side
_MAX_LEGEND = 20  # classes
_MAX_BINS = 100


def training_curve(history: Sequence[Mapping[str, float | None]]) -> Figure:
    """The bound in training and validation against the epoch; the squared error for models without a density.

    Args:
        history: one row per epoch with `epoch`, `train_loss` (negative bound, nats per datapoint, or squared error;
            lower is better) and `validation_elbo` or `validation_bound` (nats per datapoint; higher is better; None or
            absent if it was not evaluated) or, for models without a density, `validation_loss`.

    Raises:
        InputError: the history is empty.
    """
    if not history:
        raise InputError("history has 0 epochs; a training curve needs at least 1")
    epoch, loss, elbo, bound, error = (
        np.array([row.get(key) for row in history], dtype=np.float64)
        for key in ("epoch", "train_loss", "validation_elbo", "validation_bound", "validation_loss")
    )
    fig = new_figure(6, 3.6)
    axes = fig.add_subplot()
    marker = "o" if len(history) <= 20 else ""  # a single epoch makes no line
    axes.set_xlim(epoch.min() - 0.5, epoch.max() + 0.5)
    if np.isfinite(error).any():
        training, validation, names = loss, error, ("training", "validation")
        axes.set_ylabel("squared error per datapoint, lower is better")
    else:
        of_bound = np.isfinite(bound).any()
        training, validation = -loss, bound if of_bound else elbo
        names = "training (−train_loss)", "validation bound" if of_bound else "validation ELBO"
        axes.set_ylabel("bound [nats per datapoint], higher is better")
    axes.plot(epoch, training, color=MUTED, marker=marker, markersize=4, label=names[0])
    evaluated = ~np.isnan(validation)
    if evaluated.any():
        best = np.nanargmax(-validation if validation is error else validation)
        label = f"{names[1]} (best {with_decimals(validation[best], 2)}, epoch {epoch[best]:.0f})"
        axes.plot(epoch[evaluated], validation[evaluated], color=COLOURS[0], marker=marker, markersize=4, label=label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="0.92")
    fig.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    tidy(axes)
    return fig


def reconstructions(
    originals: Values, means: Values, names: tuple[str, str] = ("original", "reconstruction"), title: str = ""
) -> Figure:
    """Originals, each above its reconstruction; points in the plane are joined instead.

    Args:
        originals: (n, *event_shape).
        means: (n, *event_shape), means of the likelihood given codes of the originals.
        names: names of the two.
        title: what the figure shows.

    Raises:
        InputError: the shapes differ, or n is 0.
    """
    above, below = as_array(originals), as_array(means)
    if above.shape != below.shape:
        raise InputError(f"originals have shape {above.shape} and means {below.shape}; they must be the same")
    if above.shape[1:] == (2,):
        fig = new_figure(5, 4.2)
        axes = plane(fig)
        axes.plot(*np.stack([above, below]).transpose(2, 0, 1), color="0.75", linewidth=0.6, zorder=0)
        for points, colour, label in ((above, MUTED, names[0]), (below, COLOURS[0], names[1])):
            scatter(axes, points, color=colour, label=label)
        axes.legend(frameon=False, fontsize=8)
        return with_title(fig, title)
    columns = min(len(above), _COLUMNS)
    lines = -(-len(above) // columns)
    pitch = 2.2  # distance between lines of pairs in rows
    fig, axes = draw_grid(
        np.concatenate([above, below]),
        cells=[(i % columns, i // columns * pitch + row) for row in (0, 1) for i in range(len(above))],
        size=(columns, (lines - 1) * pitch + 2),
    )
    axes.set_yticks([line * pitch + row + 0.5 for line in range(lines) for row in (0, 1)], [*names] * lines)
    return with_title(fig, title)


def samples(values: Values, title: str = "") -> Figure:
    """Draws, in a nearly square grid or as points in the plane.

    Args:
        values: (n, *event_shape).
        title: what the figure shows.

    Raises:
        InputError: n is 0.
    """
    drawn = as_array(values)
    if drawn.shape[1:] == (2,):
        fig = new_figure(5, 4.2)
        scatter(plane(fig), drawn, color=COLOURS[0], alpha=0.7)
        return with_title(fig, title)
    columns = int(np.ceil(np.sqrt(len(drawn))))
    cells = [(i % columns, i // columns) for i in range(len(drawn))]
    return with_title(draw_grid(drawn, cells, size=(columns, -(-len(drawn) // columns)))[0], title)


def strips(values: Values, *, rows: Sequence[str] = (), columns: Sequence[str] = (), title: str = "") -> Figure:
    """Values in rows and columns, on a common scale.

    Args:
        values: (rows, columns, *event_shape).
        rows: names of the rows.
        columns: names of the columns.
        title: what the figure shows.
    """
    stacked = as_array(values)
    lines, across = stacked.shape[:2]
    cells = [(column, row) for row in range(lines) for column in range(across)]
    fig, axes = draw_grid(stacked.reshape(lines * across, *stacked.shape[2:]), cells, size=(across, lines))
    if rows:
        axes.set_yticks(np.arange(lines) + 0.5, rows)
    if columns:
        axes.xaxis.tick_top()
        axes.set_xticks(np.arange(across) + 0.5, columns)
    return with_title(fig, title)


def densities(groups: Mapping[str, Values], name: str, limits: Sequence[float] = ()) -> Figure:
    """Histograms of groups of numbers on common bins, each with area 1.

    Args:
        groups: numbers, (n,), by the name of their group.
        name: what the numbers are.
        limits: thresholds: the first one solid, the others dashed.
    """
    numbers = {group: as_array(values) for group, values in groups.items()}
    finite = np.concatenate([values[np.isfinite(values)] for values in numbers.values()])
    if not finite.size:
        raise InputError(f"{name}: no number is finite")
    bins = np.histogram_bin_edges(finite, "auto")
    bins = bins if len(bins) <= _MAX_BINS else np.linspace(finite.min(), finite.max(), _MAX_BINS)
    fig = new_figure(6, 3.2)
    axes = fig.add_subplot()
    for (group, values), colour in zip(numbers.items(), COLOURS, strict=False):
        axes.hist(values, bins.tolist(), density=True, color=colour, alpha=0.5, label=f"{group} ({len(values):,})")
    for number, limit in enumerate(limits):
        axes.axvline(limit, color=MUTED, linestyle="--" if number else "-", linewidth=1)
    axes.set_xlabel(name)
    axes.set_ylabel("density")
    fig.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    tidy(axes)
    return fig


def latent_grid(
    values: Values, side: int, axes_quantiles: Values, title: str = "", *, dimensions: tuple[int, int] = (0, 1)
) -> Figure:
    """Decoded values over a grid of the first two latent dimensions, or along the only one, without gaps.

    The first dimension grows to the right and the second upwards, and the first varies slowest in `values`, as in
    `torch.cartesian_prod(axes_quantiles, axes_quantiles)`.

    Args:
        values: (side * side, *event_shape); `values[i * side + j]` is decoded from z₁ = q₁[i], z₂ = q₂[j]. For a single
            dimension (side, *event_shape).
        side: number of grid points along each dimension.
        axes_quantiles: latent values q of the grid points: (side,) for both dimensions, (2, side), or (1, side) for a
            single dimension.
        title: what the figure shows.
        dimensions: which latents these are, counted from 0.

    Raises:
        InputError: the number of values or of quantiles does not fit `side`.
    """
    decoded, quantiles = as_array(values), as_array(axes_quantiles)
    if quantiles.shape not in ((side,), (1, side), (2, side)):
        raise InputError(f"axes_quantiles has shape {quantiles.shape}; expected ({side},), (1, {side}) or (2, {side})")
    rows = 1 if quantiles.shape == (1, side) else side
    if len(decoded) != side * rows:
        raise InputError(f"values holds {len(decoded)} entries; a grid of side {side} needs {side * rows}")
    cells = [(i, rows - 1 - j) for i in range(side) for j in range(rows)]
    fig, axes = draw_grid(decoded, cells, size=(side, rows), gap=0.0)
    ticks = np.arange(0, side, -(-side // 15))  # more labels would overlap
    horizontal, vertical = np.broadcast_to(quantiles, (2, side))
    axes.set_xticks(ticks + 0.5, tick_labels(horizontal[ticks]))
    across, up = dimensions
    axes.set_xlabel(f"$z_{{{across}}}$" if rows > 1 else "$z$")
    fig.set_figheight(fig.get_figheight() + 0.3)
    if rows > 1:
        axes.set_yticks(side - ticks - 0.5, tick_labels(vertical[ticks]))
        axes.set_ylabel(f"$z_{{{up}}}$")
    return with_title(fig, title)


def label_grid(values: Values, classes: int, names: Sequence[str] | None = None, title: str = "") -> Figure:
    """Decoded values with the same latent in each row and one class per column.

    Args:
        values: (rows * classes, *event_shape), the class varying fastest.
        classes: number of classes.
        names: names of the classes; None uses their numbers.
        title: what the figure shows.

    Raises:
        InputError: the number of values is not a multiple of the number of classes.
    """
    decoded = as_array(values)
    rows, rest = divmod(len(decoded), classes)
    if rest:
        raise InputError(f"values holds {len(decoded)} entries; a grid of {classes} classes needs a multiple of that")
    fig, axes = draw_grid(decoded, [(j, i) for i in range(rows) for j in range(classes)], size=(classes, rows))
    axes.set_xticks(np.arange(classes) + 0.5, names or [str(label) for label in range(classes)])
    axes.set_xlabel("class $y$")
    axes.set_yticks(np.arange(rows) + 0.5, [f"$z^{{({i + 1})}}$" for i in range(rows)])
    return with_title(fig, title)


def embedding(
    codes: Values,
    labels: Values | None = None,
    title: str = "Latent codes",
    names: Sequence[str] | None = None,
) -> Figure:
    """Codes in the plane or in space, coloured by class; if all codes are equal, a line of text instead.

    Args:
        codes: (n, 2), for example from `project`, or (n, 3).
        labels: (n,) integers, or None for a single colour. Up to 20 classes have a legend; beyond, colours repeat.
        title: what the figure shows.
        names: names of the classes; None uses their numbers, -1 for unknown.

    Raises:
        InputError: codes are not (n, 2) or (n, 3), or the numbers of codes and labels differ.
    """
    points = as_array(codes)
    if points.shape[1:] not in ((2,), (3,)):
        raise InputError(f"codes have shape {points.shape}; expected (n, 2) or (n, 3): project() gives that")
    classes, index = np.unique(as_array(np.zeros(len(points)) if labels is None else labels), return_inverse=True)
    if index.shape != (len(points),):
        raise InputError(
            f"labels have shape {index.shape} and there are {len(points)} codes; expected one label per code"
        )
    fig = new_figure(5.4, 4.4)
    equal = len(points) > 1 and not np.ptp(points, axis=0).any()
    in_space = points.shape[1] == 3 and not equal
    axes: Any = fig.add_subplot(projection="3d" if in_space else None)
    axes.set_title(title, fontsize=10)
    if in_space:
        axes.set(xlabel="$z_0$", ylabel="$z_1$", zlabel="$z_2$")
        axes.tick_params(labelsize=7)
    else:
        axes.set_aspect("equal", adjustable="datalim")
        tidy(axes)
    if equal:
        said = f"all {len(points)} codes are equal:\nq(z | x) does not depend on x"
        axes.text(0.5, 0.5, said, ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return fig
    if not np.ptp(points[:, 1]):  # one-dimensional codes have no vertical axis
        axes.set_yticks([])
    if labels is None:
        scatter(axes, points, color=COLOURS[0], alpha=0.7)
        return fig
    colours = np.asarray(COLOURS if len(classes) <= len(COLOURS) else color_sequences["tab20"])
    colours = colours[np.arange(len(classes)) % len(colours)]
    scatter(axes, points, color=colours[index], alpha=0.8)
    if len(classes) <= _MAX_LEGEND:
        handles = [
            Line2D([], [], linestyle="", marker="o", markersize=5, color=colour, label=_class(int(label), names))
            for colour, label in zip(colours, classes, strict=True)
        ]
        fig.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8, handletextpad=0.1)
    else:
        add_caption(fig, f"{len(classes)} classes; colours repeat")
    return fig


def drawable(codes: Values) -> tuple[Array, str]:
    """Codes as `embedding` draws them, and how they came there: three dimensions as they are, others by `project`."""
    points = as_array(codes)
    named = {1: "the only dimension", 2: "both dimensions", 3: "all dimensions"}
    return points if points.shape[-1] == 3 else project(points), named.get(points.shape[-1], "t-SNE")


def project(codes: Values, method: Literal["tsne", "pca"] = "tsne", seed: int = 0) -> Array:
    """Projects codes to the plane, (n, 2).

    One dimension is padded with zeros, and two are returned unchanged. t-SNE needs about three neighbours per unit of a
    perplexity of at least five, so fewer than 16 codes are always projected by PCA.

    Args:
        codes: (n, latent_dim).
        method: `tsne` (van der Maaten and Hinton 2008; perplexity 30, or (n − 1) / 3 if smaller) or `pca`.
        seed: seed of t-SNE; PCA has no randomness.

    Raises:
        InputError: the method is unknown, or codes are not a matrix.
    """
    if method not in ("tsne", "pca"):
        raise InputError(f"unknown method {method!r}; expected 'tsne' or 'pca'")
    points = as_array(codes)
    if points.ndim != 2:
        raise InputError(f"codes have shape {points.shape}; expected (n, latent_dim)")
    n, latent_dim = points.shape
    if latent_dim <= 2:
        return np.pad(points, ((0, 0), (0, 2 - latent_dim)))
    if not np.ptp(points, axis=0).any():  # a single code or a collapsed posterior has no direction to project on
        return np.zeros((n, 2))
    perplexity = min(30.0, (n - 1) / 3)
    if method == "pca" or perplexity < 5:
        return np.asarray(PCA(2).fit_transform(points), dtype=np.float64)
    return np.asarray(TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points), np.float64)


def _class(label: int, names: Sequence[str] | None) -> str:
    return "unknown" if label < 0 else names[label] if names else str(label)
