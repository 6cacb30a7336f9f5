"""Matplotlib figures of unnormalised densities: arrays in, a `Figure` out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyrolatent.errors import InputError
from pyrolatent.figures.canvas import (
    COLOURS,
    MUTED,
    Array,
    Values,
    as_array,
    draw_grid,
    is_image_shape,
    new_figure,
    tidy,
    with_decimals,
    with_title,
)

PANELS = {
    "validation_pseudo_likelihood": "pseudo-likelihood, validation\n[nats], higher is better",
    "validation_loss": "score matching loss, validation,\nlower is better",
    "free_energy_gap": "F(validation) − F(training)\n[nats]",
    "reconstruction_error": "reconstruction error\n(not what is minimised)",
    "weight_norm": "length of a unit's\nweights",
    "dead": "share of dead\nhidden units",
}
"""Monitored numbers, in the order in which they are plotted."""


def monitors(history: Sequence[Mapping[str, Any]]) -> Figure:
    """One panel per number that is monitored in training, against the epoch.

    Args:
        history: one row per epoch.

    Raises:
        InputError: the history has no such number.
    """
    shown = [key for key in PANELS if history and history[-1].get(key) is not None]
    if not shown:
        raise InputError("history has none of the numbers that are monitored in training")
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    fig = new_figure(2.6 * columns, 2.0 * rows)
    epochs = [row["epoch"] for row in history]
    for place, key in enumerate(shown):
        axes = fig.add_subplot(rows, columns, place + 1)
        axes.plot(epochs, [row[key] for row in history], color=COLOURS[0], marker="o" if len(epochs) < 5 else "")
        axes.set_title(PANELS[key], fontsize=8)
        if key == "free_energy_gap":
            axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        if key == "dead":
            axes.set_ylim(-0.03, max(0.2, axes.get_ylim()[1]))
        if place >= len(shown) - columns:
            axes.set_xlabel("epoch", fontsize=8)
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        tidy(axes)
    return fig


def filters(weights: Values, event_shape: tuple[int, ...]) -> Figure:
    """The weights of each hidden unit, plotted like x, sorted by decreasing norm and scaled separately.

    Args:
        weights: (visible, hidden).
        event_shape: shape of the visible units.
    """
    columns = as_array(weights).T
    order = np.argsort(-np.square(columns).sum(1))[:100]
    largest = np.abs(columns[order]).max(1, keepdims=True)
    scaled = columns[order] / np.where(largest > 0, largest, 1)
    if is_image_shape(event_shape):
        scaled = 0.5 + 0.5 * scaled
    side = int(np.ceil(np.sqrt(len(order))))
    cells = [(i % side, i // side) for i in range(len(order))]
    fig, axes = draw_grid(scaled.reshape(len(order), *event_shape), cells, size=(side, -(-len(order) // side)))
    zero = "; grey: 0" if is_image_shape(event_shape) else ""
    axes.set_xlabel(f"weights of hidden units, longest first{zero}", fontsize=7, color=MUTED)
    return fig


def chains(frames: Values, sweeps: Sequence[int], starts: Sequence[str] | None = None, title: str = "") -> Figure:
    """The states of chains over time: one row per chain, one column per time.

    Args:
        frames: (times, chains, *event_shape).
        sweeps: number of sweeps since the start, (times,).
        starts: the initial state of each chain in words, (chains,).
        title: what the figure shows.

    Raises:
        InputError: the number of times differs.
    """
    shown = as_array(frames)
    if len(shown) != len(sweeps):
        raise InputError(f"frames holds {len(shown)} times, but {len(sweeps)} numbers of sweeps were given")
    times, number = shown.shape[:2]
    cells = [(t, c) for t in range(times) for c in range(number)]
    fig, axes = draw_grid(shown.reshape(times * number, *shown.shape[2:]), cells, size=(times, number))
    axes.set_xticks(np.arange(times) + 0.5, [str(count) for count in sweeps])
    axes.set_xlabel("sweeps", fontsize=8)
    if starts:
        axes.set_yticks(np.arange(number) + 0.5, [*starts])
    return with_title(fig, title)


def free_energies(groups: Mapping[str, Values]) -> Figure:
    """Histograms of F(x); under a good fit, samples from the model have the free energies of the data.

    Args:
        groups: free energies (n,) by the name of what they are of.
    """
    values = {name: as_array(found).ravel() for name, found in groups.items()}
    joined: Array = np.concatenate(list(values.values()))
    low, high = np.quantile(joined, [0.002, 0.998])
    margin = 0.0 if high > low else 0.5  # an untrained model may have a constant energy
    edges = np.linspace(low - margin, high + margin, 31)
    fig = new_figure(5.6, 3.4)
    axes = fig.add_subplot()
    for colour, (name, found) in zip(COLOURS, values.items(), strict=False):
        density = np.histogram(found, edges)[0] / (len(found) * np.diff(edges))
        axes.stairs(density, edges, color=colour, linewidth=1.4, label=f"{name}, mean {with_decimals(found.mean(), 1)}")
    axes.set_xlabel("free energy F(x) = −log p(x) − log Z [nats]")
    axes.set_ylabel("density")
    fig.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=len(values))
    tidy(axes)
    return fig


def log_z_trace(estimates: Mapping[str, tuple[Values, Values]], exact: float | None = None) -> Figure:
    """The mean log-weight of annealed chains from the base to log Z, and their spread around it.

    Args:
        estimates: by name, β (points,) and the log-weights of each chain including log Z_0, (points, chains).
        exact: the exact log Z, if known.
    """
    fig = new_figure(7.2, 3.4)
    whole, spread = fig.subplots(1, 2)
    for colour, (name, (betas, log_weights)) in zip(COLOURS, estimates.items(), strict=False):
        beta, log_w = as_array(betas), as_array(log_weights)
        whole.plot(beta, log_w.mean(1), color=colour, label=name)
        low, high = np.quantile(log_w, [0.05, 0.95], axis=1) - log_w.mean(1)
        spread.fill_between(beta, low, high, color=colour, alpha=0.3, linewidth=0)
    if exact is not None:
        whole.axhline(exact, color=MUTED, linewidth=0.8, linestyle="--", label=f"exact, {exact:.2f}")
    whole.set(xlabel="β", ylabel="mean log-weight [nats]")
    spread.set(xlabel="β", ylabel="90% of chains, less the mean [nats]")
    fig.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=len(estimates) + 1)
    for axes in (whole, spread):
        tidy(axes)
    return fig
