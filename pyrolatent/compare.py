"""Comparing runs by held-out scores: paired over datapoints, repeated over seeds, never across measures."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import torch
from matplotlib import color_sequences
from matplotlib.figure import Figure
from torch import Tensor

from pyrolatent.errors import InputError
from pyrolatent.run import Run

COLOUR = color_sequences["petroff10"][0]


@dataclass(frozen=True)
class Row:
    """One declaration, over all its seeds; nats a datapoint, higher is better.

    Attributes:
        name: what is declared differently from the others of the group.
        runs: the directories.
        seeds: number of runs.
        score: mean over seeds and datapoints; it and what is computed from it are None where a run has none.
        score_se: standard error over datapoints of the mean over seeds.
        score_seeds: standard deviation over seeds; None for one seed.
        difference: score minus the score of the group's best.
        difference_se: standard error of it over datapoints, which are paired.
        difference_seeds: standard error of it over seeds; None where either has one seed.
        significant: whether the difference exceeds twice its two errors together; None for the best itself and where
            there is one seed, from which no difference between declarations follows.
        gap: log p(x) minus the bound; None for a cross-entropy and where there is no bound.
        active_units: mean over seeds; None without latents.
        khat_share: mean share of datapoints whose k-hat is too large, of runs that were all checked; else None.
        parameters: number of trained numbers.
        seconds: mean time of training.
        missing: why there is no score.
    """

    name: str
    runs: list[str]
    seeds: int
    score: float | None
    score_se: float | None
    score_seeds: float | None
    difference: float | None
    difference_se: float | None
    difference_seeds: float | None
    significant: bool | None
    gap: float | None
    active_units: float | None
    khat_share: float | None
    parameters: int
    seconds: float
    missing: str | None = None


@dataclass(frozen=True)
class Group:
    """Runs whose scores can be compared: one measure on the same datapoints.

    Attributes:
        measure: what the nats are of.
        score: "log_evidence", or "elbo" for a cross-entropy.
        data: name of the data.
        split: part of the data.
        datapoints: number of datapoints.
        rows: the declarations, best first, those without a score last.
    """

    measure: str
    score: str
    data: str
    split: str
    datapoints: int
    rows: list[Row]


def compare(runs: Sequence[Run]) -> list[Group]:
    """Compares evaluated runs.

    Runs that differ in their seed alone are one declaration. Where a difference lies within its errors, or was seen
    in one seed, it is not called significant. A declaration of which a run has no score is named with the reason.

    Raises:
        InputError: a run has not been evaluated.
    """
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if run.evaluation is None:
            raise InputError(f"{run.path} has not been evaluated; pyrolatent evaluate {run.path}")
        evaluation, data = run.evaluation, run.record["data"]
        groups[evaluation["measure"], data["source"], evaluation["split"], data["evaluation_sha256"]].append(run)
    return [_group(measure, data, split, members) for (measure, data, split, _), members in groups.items()]


def _group(measure: str, data: str, split: str, runs: list[Run]) -> Group:
    score = "elbo" if measure == "cross-entropy" else "log_evidence"
    declarations: dict[str, list[Run]] = defaultdict(list)
    leaves = [_leaves({**run.declaration, "seed": None}) for run in runs]
    common = set.intersection(*(set(leaf.items()) for leaf in leaves))
    prefixes = set.intersection(*({path[:n] for path in leaf for n in range(len(path) + 1)} for leaf in leaves))
    for run, leaf in zip(runs, leaves, strict=True):
        different = {path: value for path, value in leaf.items() if (path, value) not in common}
        declarations[_described(different, prefixes) or _model_name(run)].append(run)
    missing = {name: _missing(members, score) for name, members in declarations.items()}
    scores = {
        name: torch.stack([run.evaluation_each[score] for run in members])
        for name, members in declarations.items()
        if not missing[name]
    }
    best = max(scores, key=lambda name: scores[name].mean().item(), default=None)
    rows = [
        _row(name, members, scores.get(name), None if best in (None, name) else scores[best], missing[name])
        for name, members in declarations.items()
    ]
    rows.sort(key=lambda row: math.inf if row.score is None else -row.score)
    evaluation: Any = runs[0].evaluation
    return Group(measure, score, data, split, evaluation["datapoints"], rows)


def _missing(runs: list[Run], score: str) -> str | None:
    """Why a declaration has no score: one of its runs has none."""
    for run in runs:
        evaluation: Any = run.evaluation
        reason = evaluation.get("log_z_missing")
        unfit = 0 if reason else int((~torch.isfinite(run.evaluation_each[score])).sum())
        if reason or unfit:
            return f"{run.path}: {reason or f'{score} is not finite for {unfit} datapoints'}"
    return None


def _row(name: str, runs: list[Run], scores: Tensor | None, best: Tensor | None, missing: str | None) -> Row:
    """A row from scores (seeds, datapoints), None where there are none, and those of the best, None if it is that."""
    difference: float | None = None if scores is None else 0.0
    error, spread, significant = difference, None, None
    if scores is not None and best is not None:
        paired = scores.mean(0) - best.mean(0)
        difference, error = paired.mean().item(), _standard_error(paired)
        spreads = [_spread(each.mean(1)) for each in (scores, best)]
        if spreads[0] is not None and spreads[1] is not None:
            spread = math.sqrt(spreads[0] ** 2 / len(scores) + spreads[1] ** 2 / len(best))
            significant = abs(difference) > 2 * math.hypot(error, spread)
    evaluations: list[Any] = [run.evaluation for run in runs]
    likelihood = "log_evidence" in evaluations[0] and "elbo" in evaluations[0]
    active = [each["active_units"] for each in evaluations if each.get("active_units") is not None]
    gaps = [each["log_evidence"] - each["elbo"] for each in evaluations] if likelihood and scores is not None else []
    return Row(
        name=name,
        runs=[str(run.path) for run in runs],
        seeds=len(runs),
        score=None if scores is None else scores.mean().item(),
        score_se=None if scores is None else _standard_error(scores.mean(0)),
        score_seeds=None if scores is None else _spread(scores.mean(1)),
        difference=difference,
        difference_se=error,
        difference_seeds=spread,
        significant=significant,
        gap=sum(gaps) / len(gaps) if gaps else None,
        active_units=sum(active) / len(active) if active else None,
        khat_share=_khat_share(runs),
        parameters=runs[0].record["parameters"],
        seconds=sum(row["seconds"] for run in runs for row in run.history) / len(runs),
        missing=missing,
    )


def _khat_share(runs: Sequence[Run]) -> float | None:
    shares = [
        verdict["value"]
        for run in runs
        for verdict in (run.checks or {}).get("verdicts", [])
        if verdict["check"] == "k-hat"
    ]
    return sum(shares) / len(shares) if len(shares) == len(runs) else None


def forest(groups: Sequence[Group]) -> Figure:
    """The difference of each declaration to the best of its group, with two standard errors, as a forest plot.

    Thick: over datapoints, which are paired. Thin: together with the error over seeds. Hollow where the difference is
    not significant, or was seen in one seed. A declaration without a score stands there by its name alone.
    """
    labels = [
        [fill(f"{row.name} ({row.seeds})" + ": none" * (row.score is None), 48) for row in group.rows]
        for group in groups
    ]
    heights = [len(names) * (0.2 + 0.15 * max(name.count("\n") + 1 for name in names)) + 0.9 for names in labels]
    fig = Figure(figsize=(8, sum(heights) + 0.3), dpi=130, layout="constrained")
    panels = fig.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, group, names in zip(panels, groups, labels, strict=True):
        for place, row in enumerate(group.rows):
            if row.difference is None or row.difference_se is None:
                continue
            inner, outer = 2 * row.difference_se, 2 * math.hypot(row.difference_se, row.difference_seeds or 0.0)
            ends = {1.0: outer, 3.5: inner}
            for width, half in ends.items():
                axes.plot([row.difference - half, row.difference + half], [place] * 2, color=COLOUR, linewidth=width)
            face = COLOUR if row.significant or place == 0 else "white"
            axes.plot(row.difference, place, "o", color=COLOUR, markerfacecolor=face, markersize=6, zorder=3)
        axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(group.rows) - 0.5, -0.5)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_title(f"{group.data}, {group.split}: {group.score}, nats of a {group.measure}", fontsize=9, loc="left")
    panels[-1].set_xlabel("difference to the best [nats a datapoint], right is better", fontsize=8)
    return fig


def _standard_error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _spread(values: Tensor) -> float | None:
    return values.std().item() if len(values) > 1 else None


def _leaves(declaration: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Every value of a declaration by its path."""
    if isinstance(declaration, Mapping) and declaration:
        return {
            place: leaf
            for key, value in declaration.items()
            for place, leaf in _leaves(value, (*path, str(key))).items()
        }
    return {path: str(declaration)}


def _described(different: Mapping[tuple[str, ...], str], prefixes: set[tuple[str, ...]]) -> str:
    """`prior: vamp, latent_dim: 20`: the first choice along each path that not all runs made, or else the value."""
    described: dict[str, str] = {}
    for path, value in different.items():
        choices = (path[: level + 2] for level in range(0, len(path) - 1, 2))
        choice = next((choice for choice in choices if choice not in prefixes), None)
        key, shown = (path[-1], value) if choice is None else choice[-2:]
        described.setdefault(key, shown)
    return ", ".join(f"{key}: {value}" for key, value in described.items())


def _model_name(run: Run) -> str:
    """What a declaration that has no other beside it is called."""
    model = run.declaration["model"]
    return f"model: {next(iter(model)) if isinstance(model, Mapping) else 'given'}"
