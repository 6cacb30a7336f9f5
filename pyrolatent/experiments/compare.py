"""Comparing runs by held-out scores, paired over datapoints and repeated over seeds."""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from textwrap import fill
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrolatent.errors import InputError
from pyrolatent.experiments.run import Run
from pyrolatent.inference.monte_carlo import none_if_nan, standard_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVEL = 0.05
"""Level of the comparisons, over all pairs of a group of equally good declarations."""
SCORES = {"cross-entropy": "elbo", "squared error": "squared_error"}
"""What runs are compared by, by measure; other measures have log p(x)."""


def sign_of(score: str) -> int:
    """-1 for a score that is better where it is lower, and 1 for the others."""
    return -1 if score == "squared_error" else 1


@dataclass(frozen=True)
class Difference:
    """A declaration's mean score minus that of the best; nats per datapoint.

    Attributes:
        value: the difference, at most 0.
        over_datapoints: its standard error at these seeds, over paired datapoints and including errors common to all
            datapoints of a run; NaN for a single datapoint.
        over_seeds: its standard error over seeds; None if either has one seed.
        half_width: half-width of the confidence interval; the intervals of all pairs hold simultaneously with a
            probability of 95 %. None if an error is unknown.
    """

    value: float
    over_datapoints: float
    over_seeds: float | None
    half_width: float | None

    @property
    def significant(self) -> bool | None:
        """Whether the interval excludes 0."""
        return None if self.half_width is None else abs(self.value) > self.half_width


def differences(scores: Sequence[Tensor], common: Sequence[float] | None = None) -> list[Difference | None]:
    """The difference of each declaration to the best, with its variance over seeds and datapoints.

    With s_dr the mean over N datapoints of declaration d at seed r of R_d, the variance of the difference between the
    means of two declarations d and e is that of a crossed design,

        V = A + B,  A = var_r(s_dr) / R_d + var_r(s_er) / R_e,  B = max(0, P - I) + c_d² + c_e²,

    where P is the variance over datapoints, divided by N, of the paired differences between means over seeds, and I is
    the part of P that is due to the interaction of datapoints and seeds, which A already includes, so that V does not
    count it twice. c are the errors `common`. The difference is significant if it exceeds

        (A h(k, ν) + B h(k, N - 1)) / sqrt(V),  h(k, ν) = q(k, ν) / sqrt(2),

    where q is the upper 5 % point of the studentised range of k means, k the number of declarations, and ν the degrees
    of freedom of A by Welch and Satterthwaite. For B = 0 this is the procedure of Games and Howell (1976), which is
    valid for all pairs at once and therefore for the best, which is selected by the data; for k = 2 it is Welch's test
    (1947). The two quantiles are weighted as by Cochran and Cox (1957), because Satterthwaite's degrees of freedom of
    A + B are too large if A is small by chance: with two seeds, up to 14 % of groups of six equal declarations differ.

    Args:
        scores: scores of each declaration, (seeds, datapoints), nats; the datapoints are the same, but the number of
            seeds may differ.
        common: for each declaration, an error in nats that is common to all datapoints, such as that of log Z. It may
            have the same sign at all seeds, so it is not divided by their number. None is 0.
    """
    common = common or [0.0] * len(scores)
    by_datapoint = [each.mean(0) for each in scores]
    means = [each.mean().item() for each in by_datapoint]
    seeds, interaction = zip(*(_variances(each) for each in scores), strict=True)
    best = max(range(len(scores)), key=means.__getitem__)
    found: list[Difference | None] = []
    for place, each in enumerate(by_datapoint):
        if place == best:
            found.append(None)
            continue
        shared = common[place] ** 2 + common[best] ** 2
        paired = standard_error(each - by_datapoint[best]) ** 2
        of_seeds, half_width = seeds[place] + seeds[best], None
        if not math.isnan(of_seeds + paired):
            rest = max(0.0, paired - interaction[place] - interaction[best]) + shared
            spread = sum(seeds[d] ** 2 / (len(scores[d]) - 1) for d in (place, best))
            freedom = max(1.0, of_seeds**2 / spread) if spread else 1.0
            allowed = of_seeds * _studentised_range(len(scores), freedom)
            allowed += rest * _studentised_range(len(scores), len(each) - 1)
            half_width = allowed / math.sqrt(of_seeds + rest) if of_seeds + rest else 0.0
        over_seeds = None if math.isnan(of_seeds) else math.sqrt(of_seeds)
        found.append(Difference(means[place] - means[best], math.sqrt(paired + shared), over_seeds, half_width))
    return found


def _variances(scores: Tensor) -> tuple[float, float]:
    """Variance of the mean over seeds, and its part due to interaction with datapoints; NaN for one seed."""
    seeds, datapoints = scores.shape
    if seeds == 1:
        return math.nan, math.nan
    means = scores.mean(1, keepdim=True)
    squares = (scores - means - scores.mean(0) + means.mean()).square().sum().item()
    return means.var().item() / seeds, squares / (seeds - 1) / max(1, datapoints - 1) / (seeds * datapoints)


def _studentised_range(k: int, freedom: float) -> float:
    """q(k, ν) / sqrt(2), log-linear in 1 / ν between multiples of 1/2, because each takes a fifth of a second."""
    below, above = math.floor(2 * freedom) / 2, math.ceil(2 * freedom) / 2
    if below == above:
        return _studentised_range_at(k, freedom)
    share = (1 / freedom - 1 / above) / (1 / below - 1 / above)
    return _studentised_range_at(k, below) ** share * _studentised_range_at(k, above) ** (1 - share)


@cache
def _studentised_range_at(k: int, freedom: float) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(1 - LEVEL, k, freedom)) / math.sqrt(2)


@dataclass(frozen=True)
class Row:
    """One declaration over all its seeds; nats per datapoint, higher is better.

    Attributes:
        name: every declared field in which it differs from the other compared declarations, including other groups.
        runs: the directories.
        seeds: number of runs.
        score: mean over seeds and datapoints, lower is better for a squared error; None, like all that depends on it,
            if a run has no score.
        score_se: standard error over datapoints of the mean over seeds, including that of an estimated log Z.
        score_seeds: standard deviation over seeds; None for one seed.
        difference: score minus that of the best in the group.
        difference_se: its standard error over paired datapoints, including that of an estimated log Z.
        difference_seeds: its standard error over seeds; None if either has one seed.
        half_width: half-width of the confidence interval of the difference, see `differences`; None for the best and
            for a single seed, which does not determine a difference between declarations.
        significant: whether the interval excludes 0; None if there is none.
        gap: log p(x) minus the bound; None for a cross-entropy and without a bound.
        active_units: mean over seeds; None without latents.
        khat_share: mean share of datapoints whose k-hat is too large, if all runs were checked on this split; else
            None.
        parameters: number of trained parameters.
        seconds: mean training time.
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
    half_width: float | None
    significant: bool | None
    gap: float | None
    active_units: float | None
    khat_share: float | None
    parameters: int
    seconds: float
    missing: str | None = None


@dataclass(frozen=True)
class Group:
    """Runs with comparable scores: one measure on the same datapoints, by equally many draws.

    Attributes:
        measure: the measure of the scores.
        score: "log_evidence"; "elbo" for a cross-entropy; or "squared_error", of which less is better.
        data: name of the data.
        split: part of the data.
        datapoints: number of datapoints.
        draws: how the scores were estimated, in words; empty if all are exact.
        rows: the declarations, best first, those without a score last.
    """

    measure: str
    score: str
    data: str
    split: str
    datapoints: int
    draws: str
    rows: list[Row]

    @property
    def unit(self) -> str:
        """What the scores are, in words."""
        return self.measure if self.score == "squared_error" else f"nats of a {self.measure}"


def compare(runs: Sequence[Run]) -> list[Group]:
    """Compares evaluated runs.

    Runs that differ only in their seed are one declaration; an interrupted run, or one trained on other datapoints, is
    another declaration. Evaluations on other data or another split, given y, or with another number of draws belong to
    another group, because log p(x) by importance sampling is a bound that increases with the number of draws. Runs
    without draws, such as those with an exact log Z, belong to every group of their measure and data. `differences`
    decides significance, for all pairs of a group at once; with one seed no difference is significant. A declaration
    without a score is listed with the reason.

    Raises:
        InputError: a run has not been evaluated, or two runs have the same declaration and seed.
    """
    for run in runs:
        if not isinstance(run, Run):
            raise InputError(f"compare was given {run!r}; give runs, as Run.load({str(run)!r})")
    declared = _declared(runs)
    _validate_seeds(runs, declared)
    comparable: dict[tuple[Any, ...], list[tuple[str, Run]]] = defaultdict(list)
    for name, run in zip(described(declared), runs, strict=True):
        if run.evaluation is None:
            raise InputError(f"{run.path} has not been evaluated; pyrolatent evaluate {run.path}")
        evaluation, data = run.evaluation, run.record["data"]
        measure = evaluation["measure"] + " of x given y" * bool(evaluation.get("given"))
        key = measure, data["source"], evaluation["split"], data["evaluation_sha256"]
        comparable[key].append((name or _model_name(run), run))
    groups = []
    for (measure, data, split, _), members in comparable.items():
        draws = [_draws(run) for _, run in members]
        kinds = {kind: dict.fromkeys(words for other, words in draws if other == kind) for kind, _ in draws if kind}
        for chosen in itertools.product(*([(kind, words) for words in found] for kind, found in kinds.items())):
            alike = [member for member, own in zip(members, draws, strict=True) if own in chosen or not own[0]]
            groups.append(_group(measure, data, split, ", ".join(words for _, words in chosen), alike))
    return groups


def _validate_seeds(runs: Sequence[Run], declared: Sequence[Mapping[str, Any]]) -> None:
    """Refuses two runs of one declaration at one seed, which do not show the variation over seeds."""
    seen: dict[Any, Run] = {}
    for run, declaration in zip(runs, declared, strict=True):
        evaluation: Any = run.evaluation or {}
        what = (
            repr(declaration),
            run.declaration.get("seed"),
            evaluation.get("split"),
            _draws(run) if evaluation else (),
        )
        if what in seen:
            raise InputError(
                f"{seen[what].path} and {run.path} are one declaration at one seed, which do not show the spread "
                "over seeds; leave one out"
            )
        seen[what] = run


def _draws(run: Run) -> tuple[str, str]:
    """The type and number of draws of an evaluation in words; empty if it is exact."""
    evaluation: Any = run.evaluation
    if evaluation.get("particles"):
        return "particles", f"{evaluation['particles']:,} draws"
    if evaluation.get("log_z_method", "exact") == "exact":
        return "", ""
    return "chains", f"log Z by {evaluation['chains']:,} chains of {evaluation['temperatures']:,} temperatures"


def _group(measure: str, data: str, split: str, draws: str, named: list[tuple[str, Run]]) -> Group:
    score = SCORES.get(measure.partition(" (")[0].partition(" of")[0], "log_evidence")
    declarations: dict[str, list[Run]] = defaultdict(list)
    for name, run in named:
        declarations[name].append(run)
    missing = {name: _missing(members, score) for name, members in declarations.items()}
    scored = {name: members for name, members in declarations.items() if not missing[name]}
    scores = {
        name: sign_of(score) * torch.stack([run.evaluation_each[score] for run in members]).double()
        for name, members in scored.items()
    }
    common = {name: _common_error(members) for name, members in scored.items()}
    found: dict[str, Difference | None] = {}
    if scores:
        found = dict(zip(scores, differences([*scores.values()], [*common.values()]), strict=True))
    rows = [
        _row(name, members, scores.get(name), common.get(name, 0.0), found.get(name), missing[name], sign_of(score))
        for name, members in declarations.items()
    ]
    rows.sort(key=lambda row: math.inf if row.score is None else -sign_of(score) * row.score)
    evaluation: Any = named[0][1].evaluation
    return Group(measure, score, data, split, evaluation["datapoints"], draws, rows)


def _missing(runs: list[Run], score: str) -> str | None:
    """Why a declaration has no score, because one of its runs has none; None if it has one."""
    for run in runs:
        evaluation: Any = run.evaluation
        reason = evaluation.get("log_z_missing")
        unfit = 0 if reason else int((~torch.isfinite(run.evaluation_each[score])).sum())
        if reason or unfit:
            return f"{run.path}: {reason or f'{score} is not finite for {unfit} datapoints'}"
    return None


def _common_error(runs: list[Run]) -> float:
    """Root mean square of the errors of log Z; Monte Carlo errors of latents are part of those over datapoints."""
    evaluations: list[Any] = [run.evaluation for run in runs]
    errors = [each["log_evidence_mcse"] if "log_z" in each else 0.0 for each in evaluations]
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def _row(
    name: str,
    runs: list[Run],
    scores: Tensor | None,
    common: float,
    found: Difference | None,
    missing: str | None,
    sign: int,
) -> Row:
    """A row from its scores (seeds, datapoints), if any, and its difference to the best, unless it is the best."""
    best = None if scores is None else 0.0
    evaluations: list[Any] = [run.evaluation for run in runs]
    likelihood = "log_evidence" in evaluations[0] and "elbo" in evaluations[0]
    active = [each["active_units"] for each in evaluations if each.get("active_units") is not None]
    gaps = [each["log_evidence"] - each["elbo"] for each in evaluations] if likelihood and scores is not None else []
    return Row(
        name=name,
        runs=[str(run.path) for run in runs],
        seeds=len(runs),
        score=None if scores is None else sign * scores.mean().item(),
        score_se=None if scores is None else none_if_nan(math.hypot(standard_error(scores.mean(0)), common)),
        score_seeds=None if scores is None else _spread(scores.mean(1)),
        difference=sign * found.value if found else best,
        difference_se=none_if_nan(found.over_datapoints) if found else best,
        difference_seeds=found.over_seeds if found else None,
        half_width=found.half_width if found else None,
        significant=found.significant if found else None,
        gap=sum(gaps) / len(gaps) if gaps else None,
        active_units=sum(active) / len(active) if active else None,
        khat_share=_khat_share(runs),
        parameters=runs[0].record["parameters"],
        seconds=sum(row["seconds"] for run in runs for row in run.history) / len(runs),
        missing=missing,
    )


def _khat_share(runs: Sequence[Run]) -> float | None:
    """The mean share, if all runs were checked on the split that they were evaluated on."""
    both: list[tuple[Any, Any]] = [(run.checks or {}, run.evaluation) for run in runs]
    shares = [
        verdict["value"]
        for checks, evaluation in both
        for verdict in checks.get("verdicts", [])
        if verdict["check"] == "k-hat" and checks["split"] == evaluation["split"]
    ]
    return sum(shares) / len(shares) if len(shares) == len(runs) else None


def forest(groups: Sequence[Group]) -> "Figure":
    """A forest plot of the difference of each declaration to the best of its group.

    Thin lines are simultaneous confidence intervals for all pairs; a difference is significant if its interval excludes
    0. Thick lines are two standard errors over paired datapoints at these seeds. Markers are hollow if the difference
    is not significant or there is a single seed and so no interval. A declaration without a score has only its name.
    """
    from matplotlib import color_sequences
    from matplotlib.figure import Figure

    colour = color_sequences["petroff10"][0]
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
            for width, half in {1.0: row.half_width or 0.0, 3.5: 2 * row.difference_se}.items():
                axes.plot([row.difference - half, row.difference + half], [place] * 2, color=colour, linewidth=width)
            face = colour if row.significant or place == 0 else "white"
            axes.plot(row.difference, place, "o", color=colour, markerfacecolor=face, markersize=6, zorder=3)
        axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(group.rows) - 0.5, -0.5)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
        title = f"{group.data}, {group.split}: {group.score}, {group.unit}"
        axes.set_title(title + f", {group.draws}" * bool(group.draws), fontsize=9, loc="left")
    panels[-1].set_xlabel(
        f"difference to the best [{'nats ' * (groups[-1].score != 'squared_error')}per datapoint], "
        f"{'right' if sign_of(groups[-1].score) > 0 else 'left'} is better\n"
        "thin: 95 % interval, for all pairs at once; thick: ± 2 standard errors over datapoints",
        fontsize=8,
    )
    return fig


def curve(groups: Sequence[Group], field: str, values: Mapping[str, float]) -> "Figure":
    """The score of runs against a numeric field, a line for each combination of the others, to choose the field by.

    Markers are means over seeds, bars their standard deviation over seeds.

    Args:
        groups: groups of runs.
        field: name of the field.
        values: the value of the field of each run, by its directory.
    """
    from matplotlib import color_sequences
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6, 3.2 * len(groups) + 0.4), dpi=130, layout="constrained")
    for axes, group in zip(fig.subplots(len(groups), 1, squeeze=False)[:, 0], groups, strict=True):
        lines: dict[str, list[Row]] = defaultdict(list)
        short = field.rpartition(".")[2]
        for row in group.rows:
            if row.score is not None:
                others = [part for part in row.name.split(", ") if not part.partition(":")[0].endswith(short)]
                lines[", ".join(others)].append(row)
        for (name, rows), colour in zip(lines.items(), color_sequences["petroff10"], strict=False):
            rows.sort(key=lambda row: values[row.runs[0]])
            at = [values[row.runs[0]] for row in rows]
            errors = [row.score_seeds or 0.0 for row in rows]
            axes.errorbar(at, [row.score for row in rows], errors, fmt="o-", color=colour, capsize=2, label=name)
        if any(lines):
            axes.legend(frameon=False, fontsize=8)
        axes.set(xlabel=field, ylabel=f"{group.score}, {'higher' if sign_of(group.score) > 0 else 'lower'} is better")
        axes.set_title(f"{group.data}, {group.split}: {group.unit} per datapoint", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        if all(value == round(value) for value in values.values()):
            axes.set_xticks(sorted({*values.values()}))
    return fig


def _spread(values: Tensor) -> float | None:
    return values.std().item() if len(values) > 1 else None


def _declared(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What distinguishes each run from others: its declaration without the seed, and what is not declared.

    The latter is the hash of the user's code, whether training was interrupted, and, if runs of one declaration were
    trained on different datapoints, the hash of these.
    """
    found, trained_on = [], defaultdict[str, set[str]](set)
    for run in runs:
        hashes = {name: sha256[:8] for name, sha256 in run.record.get("components", {}).items()}
        model = run.declaration["model"] or f"given in {run.path}"
        interrupted = not run.record.get("finished", True)
        found.append({**run.declaration, "model": model, "seed": None, "interrupted": interrupted, **hashes})
        if sha256 := run.record["data"].get("training_sha256"):
            trained_on[repr(found[-1])].add(sha256)
    return [
        {**each, "training data": run.record["data"].get("training_sha256", "unknown")[:8]}
        if len(trained_on[repr(each)]) > 1
        else each
        for run, each in zip(runs, found, strict=True)
    ]


def described(declarations: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields in which each declaration differs from others, in order, such as `prior: vamp, components: 20`.

    Options of a component that only some declarations have are listed if these differ in them. Names of fields are the
    shortest unique ones: `encoder.mlp.hidden` if that of the decoder differs, too.
    """
    found: list[dict[tuple[str, ...], str]] = [{} for _ in declarations]
    _compare_fields(dict(enumerate(declarations)), (), found)
    paths = {path for fields in found for path in fields} | {("seed",)}  # the seed of training

    def short(path: tuple[str, ...]) -> str:
        endings = (path[-length:] for length in range(1, len(path) + 1))
        return ".".join(
            next(ending for ending in endings if [other[-len(ending) :] for other in paths].count(ending) == 1)
        )

    return [", ".join(f"{short(path)}: {value}" for path, value in fields.items()) for fields in found]


Found = list[dict[tuple[str, ...], str]]


def _compare_fields(nodes: Mapping[int, Mapping[str, Any]], path: tuple[str, ...], found: Found) -> None:
    """Adds the fields in which these options differ to `found`, by index of the declaration."""
    for field in dict.fromkeys(field for options in nodes.values() for field in options):
        _compare_values(
            {place: options.get(field, "default") for place, options in nodes.items()}, (*path, field), found
        )


def _compare_values(nodes: Mapping[int, Any], path: tuple[str, ...], found: Found) -> None:
    """The same for the values of one field: numbers, or names of components with or without options."""
    if all(node == next(iter(nodes.values())) for node in nodes.values()):
        return
    if all(isinstance(node, Mapping) for node in nodes.values()) and any(len(node) > 1 for node in nodes.values()):
        return _compare_fields(nodes, path, found)
    named = {place: isinstance(node, Mapping) and len(node) == 1 for place, node in nodes.items()}
    chosen = {
        place: str(next(iter(node)) if named[place] else node).replace(", ", ",") for place, node in nodes.items()
    }
    alternatives = dict.fromkeys(chosen.values())
    for name in alternatives:
        options = {
            place: next(iter(node.values())) if named[place] else {}
            for place, node in nodes.items()
            if chosen[place] == name
        }
        if len(alternatives) > 1:
            for place in options:
                found[place][path] = name
        compare = _compare_fields if all(isinstance(each, Mapping) for each in options.values()) else _compare_values
        compare(options, (*path, name), found)


def _model_name(run: Run) -> str:
    """The name of a declaration that is compared with no other."""
    model = run.declaration["model"]
    return f"model: {next(iter(model)) if isinstance(model, Mapping) else 'given'}"
