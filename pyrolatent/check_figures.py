"""Figures of what `check` found: arrays in, a `Figure` out, without pyplot."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyrolatent import checks, figures

Arrays = Mapping[str, npt.NDArray[Any]]
COLOURS = color_sequences["petroff10"]
MUTED = "0.6"
STATED = 8  # statistics that have room


def overview(arrays: Arrays) -> Figure:
    """A panel for each check of which there are arrays.

    Args:
        arrays: those of `Checks`.
    """
    panels = [panel for needed, panel in PANELS if all(name in arrays for name in needed)]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    fig = Figure(figsize=(4.2 * columns, 3.3 * rows), dpi=130, layout="constrained")
    for place, panel in enumerate(panels):
        axes = fig.add_subplot(rows, columns, place + 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        panel(axes, arrays)
        axes.set_title(axes.get_title(), fontsize=9)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_fontsize(8)
    return fig


def worst(arrays: Arrays) -> Figure:
    """The datapoints whose weights are the heaviest-tailed, above what a draw of their posterior decodes to."""
    shown = figures.reconstructions(
        arrays["worst_datapoints"], arrays["worst_reconstructions"], ("datapoint", "E[x | z]")
    )
    values = ", ".join(f"{value:.2f}".replace("-", "−") for value in arrays["worst_khat"])
    shown.suptitle(f"largest k-hat: {values}", fontsize=8)
    return shown


def neighbours(arrays: Arrays) -> Figure:
    """The samples that are nearest to a training datapoint, above that."""
    shown = figures.reconstructions(arrays["nearest_samples"], arrays["nearest_training"], ("sample", "nearest"))
    shown.suptitle("the samples nearest to training datapoints", fontsize=8)
    return shown


def _khat(axes: Axes, arrays: Arrays) -> None:
    values = arrays["khat"][np.isfinite(arrays["khat"])]
    constant = len(arrays["khat"]) - len(values)
    if len(values):
        axes.hist(values, bins=30, color=COLOURS[0])
        threshold = float(arrays["khat_threshold"])
        axes.axvline(threshold, color=COLOURS[2], linewidth=1, label=f"too large above {threshold:.2f}")
        axes.legend(frameon=False, fontsize=7)
    else:
        axes.text(0.5, 0.5, "all weights are equal:\nq is the exact posterior", ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
    rest = f", {constant} with equal weights" if constant and len(values) else ""
    axes.set(title=f"Tails of the weights{rest}", xlabel="k-hat", ylabel="datapoints")


def _ranks(axes: Axes, arrays: Arrays) -> None:
    names = {
        "sbc_latents": "latents",
        "sbc_log_likelihood": "log p(x | z)",
        "tarp": "TARP",
        "coverage_ranks": "log q(z | x)",
    }
    count = len(arrays["sbc_latents"])
    points, lower, upper = checks.ecdf_band(count)
    axes.fill_between(points, lower - points, upper - points, color="0.9", label="99 % band")
    for (name, label), colour in zip(names.items(), (MUTED, *COLOURS), strict=False):
        if name not in arrays:
            continue
        columns = arrays[name].reshape(count, -1).T
        for place, column in enumerate(columns):
            share = np.searchsorted(np.sort(column), points, side="right") / count
            style: dict[str, Any] = {
                "linewidth": 0.6 if len(columns) > 1 else 1.4,
                "zorder": 1 if len(columns) > 1 else 2,
            }
            axes.plot(points, share - points, color=colour, label=label if not place else None, **style)
    axes.legend(frameon=False, fontsize=7)
    axes.set(title="Calibration on simulated data", xlabel="rank t of the truth among draws", ylabel="ECDF(t) − t")


def _coverage(axes: Axes, arrays: Arrays) -> None:
    levels = arrays["coverage_levels"]
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    axes.plot(levels, arrays["coverage"], color=COLOURS[0], marker=".", markersize=4)
    axes.set(title="Coverage of regions of highest q", xlabel="nominal", ylabel="found", xlim=(0, 1), ylim=(0, 1))
    axes.set_aspect("equal")


def _gaps(axes: Axes, arrays: Arrays) -> None:
    names = {
        "approximation_gap": "approximation",
        "amortization_gap": "amortization",
        "inference_gap": "log p(x) − bound",
    }
    shown = {label: arrays[name] for name, label in names.items() if name in arrays}
    axes.boxplot(
        [*shown.values()],
        orientation="horizontal",
        widths=0.6,
        flierprops={"markersize": 2},
        medianprops={"color": COLOURS[0]},
    )
    axes.set_yticks(range(1, len(shown) + 1), [*shown])
    if max(np.abs(values).max() for values in shown.values()) < 0.01:  # rounding, which is not worth a scale
        axes.set_xlim(-0.01, 0.01)
    axes.set(title="Gaps of single datapoints", xlabel="nats")


def _dimensions(axes: Axes, arrays: Arrays) -> None:
    values = arrays["kl_dimensions"]
    order = np.argsort(-values)
    active = arrays["active"][order] if len(arrays["active"]) == len(values) else np.ones(len(values), dtype=bool)
    axes.bar(range(1, len(values) + 1), values[order], color=[COLOURS[0] if each else "0.75" for each in active])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=f"{active.sum()} active of {len(values)} dimensions", xlabel="dimension, sorted", ylabel="KL [nats]")


def _aggregate(axes: Axes, arrays: Arrays) -> None:
    chosen = np.sort(np.argsort(-arrays["mean_variance"][: arrays["prior"].shape[1]])[:2])
    for name, colour, label in (("prior", MUTED, "prior"), ("aggregated", COLOURS[0], "posteriors")):
        drawn = arrays[name][:, chosen]
        if len(chosen) == 1:
            axes.hist(drawn[:, 0], bins=40, density=True, histtype="step", color=colour, label=label)
        else:
            axes.plot(*drawn.T, ".", markersize=2, color=colour, label=label)
    axes.legend(frameon=False, fontsize=7, markerscale=3)
    names = [f"dimension {place + 1}" for place in chosen]
    axes.set(title="Prior and aggregated posterior", xlabel=names[0], ylabel=names[1] if len(names) > 1 else "density")


def _predictive(axes: Axes, arrays: Arrays) -> None:
    names = [name.partition(": ")[2] for name in arrays if name.startswith("prior predictive: ")][:STATED]
    largest = 0.0
    for kind, colour, shift in (("prior", COLOURS[0], -0.12), ("posterior", COLOURS[1], 0.12)):
        scores = []
        for name in names:
            number, *draws = arrays[f"{kind} predictive: {name}"]
            spread = np.std(draws)
            scores.append((number - np.mean(draws)) / spread if spread else 0.0)
        largest = max(largest, *map(abs, scores))
        axes.plot(scores, np.arange(len(names)) + shift, "o", markersize=4, color=colour, label=f"{kind} predictive")
    axes.axvspan(-2, 2, color="0.92", zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    if largest > 20:
        axes.set_xscale("symlog", linthresh=2)
    axes.legend(frameon=False, fontsize=7)
    axes.set(title="Data against replicates", xlabel="standard deviations of replicates")


def _pit(axes: Axes, arrays: Arrays) -> None:
    values = arrays["pit"][np.isfinite(arrays["pit"])]
    axes.hist(values, bins=20, range=(0, 1), density=True, color=COLOURS[0])
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.set(title="Held-out entries given the others", xlabel="PIT", ylabel="density")


def _distances(axes: Axes, arrays: Arrays) -> None:
    for name, colour, label in (("held_out_distances", MUTED, "held out"), ("sample_distances", COLOURS[0], "samples")):
        axes.ecdf(arrays[name], color=colour, label=label)
    axes.legend(frameon=False, fontsize=7)
    axes.set(title="Nearest training datapoint", xlabel="Euclidean distance", ylabel="share below")


def _evidence(axes: Axes, arrays: Arrays) -> None:
    one, other = arrays["sampled_evidence"], arrays["annealed_evidence"]
    axes.plot(one, other - one, "o", markersize=3, color=COLOURS[0])
    axes.axhline(0, color=MUTED, linewidth=0.8)
    spread = max(1.0, math.ceil(np.abs(other - one).max() * 10) / 10)
    axes.set_ylim(-spread, spread)
    axes.set(
        title="Annealing against sampling from q", xlabel="log p(x) by sampling [nats]", ylabel="annealed − sampled"
    )


PANELS: list[tuple[tuple[str, ...], Callable[[Axes, Arrays], None]]] = [
    (("khat", "khat_threshold"), _khat),
    (("sbc_latents",), _ranks),
    (("coverage",), _coverage),
    (("inference_gap",), _gaps),
    (("annealed_evidence",), _evidence),
    (("kl_dimensions",), _dimensions),
    (("aggregated", "prior"), _aggregate),
    (("prior predictive: mean", "posterior predictive: mean"), _predictive),
    (("pit",), _pit),
    (("sample_distances",), _distances),
]
"""Panels with the arrays that each needs."""
