"""Comparison of runs: against the same numbers computed by NumPy and SciPy, and never across measures or draws."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy import stats
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.comparisons import NOISES, cell
from pyrolatent import Experiment, InputError, evaluate, train
from pyrolatent.cli import app
from pyrolatent.experiments.compare import compare, described, differences, forest
from pyrolatent.experiments.run import Run

INTERPOLATED = 1.03
"""Points of the studentised range between degrees of freedom are too large by no more; most at ν from 1 to 1.5."""


def half_widths(scores: list[Tensor], common: list[float] | None = None) -> list[float]:
    return [each.half_width for each in differences(scores, common) if each and each.half_width is not None]


@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (5, 5), (10, 10), (2, 7), (4, 3)])
def test_two_declarations_that_datapoints_do_not_tell_apart_are_told_apart_by_welch(seeds: tuple[int, int]) -> None:
    for _ in range(10):
        scores = [scale * torch.randn(count, 1, dtype=torch.float64).expand(-1, 7)
                  for scale, count in zip((1.0, 3.0), seeds, strict=True)]  # fmt: skip
        welch = stats.ttest_ind(scores[0][:, 0], scores[1][:, 0], equal_var=False).confidence_interval()
        assert 1 - 1e-6 < half_widths(scores)[0] / ((welch.high - welch.low) / 2) < INTERPOLATED


@pytest.mark.slow
def test_several_declarations_are_told_apart_as_by_games_and_howell() -> None:
    scores = [scale * torch.randn(4, 1, dtype=torch.float64).expand(-1, 7) for scale in (1.0, 2.0, 0.5, 1.0)]
    best = max(range(4), key=lambda place: scores[place].mean().item())
    pairs = stats.tukey_hsd(*(each[:, 0].numpy() for each in scores), equal_var=False).confidence_interval()
    expected = [(pairs.high - pairs.low)[place, best] / 2 for place in range(4) if place != best]
    assert half_widths(scores) == pytest.approx(expected, rel=2e-3)


def test_where_seeds_do_not_differ_datapoints_are_paired() -> None:
    shared = 10 * torch.randn(40, dtype=torch.float64)
    scores = [(shared + torch.randn(40, dtype=torch.float64)).expand(3, -1) for _ in range(2)]
    paired = stats.ttest_rel(*(each[0].numpy() for each in scores)).confidence_interval()
    assert half_widths(scores) == pytest.approx([(paired.high - paired.low) / 2])
    found = next(each for each in differences(scores) if each)
    assert found.over_seeds == 0
    assert found.over_datapoints == pytest.approx(stats.sem((scores[0] - scores[1])[0]))


def test_an_error_that_datapoints_have_in_common_is_part_of_every_error() -> None:
    """That of log Z moves all scores of a run together, which no spread over datapoints shows."""
    scores = [torch.randn(40, dtype=torch.float64).expand(3, -1) for _ in range(2)]
    alone, together = half_widths(scores)[0], half_widths(scores, [0.3, 0.4])[0]
    point = stats.t.ppf(0.975, 39)
    assert together == pytest.approx(point * math.hypot(alone / point, 0.5))
    one_seed = next(each for each in differences([each[:1] for each in scores], [0.3, 0.4]) if each)
    assert one_seed.over_datapoints == pytest.approx(math.hypot(alone / point, 0.5))
    assert (one_seed.over_seeds, one_seed.half_width, one_seed.significant) == (None, None, None)


def test_what_seeds_and_datapoints_share_is_counted_once() -> None:
    """Of noise that is drawn anew for each seed and datapoint all is over seeds, and none over datapoints beside."""
    noise = torch.randn(300, 2, 10, 300, dtype=torch.float64)
    widths = torch.tensor([half_widths(list(each))[0] for each in noise])
    exact = math.sqrt(2 / 10 / 300)  # standard error of the difference
    assert widths.square().mean().sqrt().item() == pytest.approx(stats.t.ppf(0.975, 18) * exact, rel=0.05)


@pytest.mark.slow
def test_equal_declarations_differ_in_one_of_twenty_and_different_ones_are_found() -> None:
    repetitions = 1000
    limit = 0.05 + 3.3 * math.sqrt(0.05 * 0.95 / repetitions)
    least = 0.8 - 3.3 * math.sqrt(0.8 * 0.2 / repetitions)
    for place, noise in enumerate(NOISES):
        for declarations in (2, 6):
            for seeds in (2, 3, 5, 10):
                even, powered = noise.first == 1, noise.first == 1 and seeds == 5
                found = cell(place, declarations, seeds, repetitions, repetitions if powered else 1)
                assert found["false_significance"] < limit + 0.015 * (not even), found
                assert not powered or found["power"] > least, found


def test_rows_are_named_by_every_field_that_differs() -> None:
    vae: Any = {"latent_dim": 2, "prior": "normal", "encoder": {"mlp": {"hidden": [200, 200], "norm": "none"}},
                "decoder": {"mlp": {"hidden": [200], "norm": "none"}}}  # fmt: skip
    base: Any = {"model": {"vae": vae}, "optimizer": {"Adam": {"lr": 0.01}}, "data": "digits", "seed": None}

    def other(**changed: Any) -> Any:
        return base | {"model": {"vae": vae | changed}}

    vamps = [other(prior={"vamp": {"components": count}}) for count in (100, 500)]
    assert described([base, *vamps]) == [
        "prior: normal",
        "prior: vamp, components: 100",
        "prior: vamp, components: 500",
    ]
    encoder = other(encoder={"mlp": {"hidden": [50], "norm": "none"}})
    decoder = other(decoder={"mlp": {"hidden": [50], "norm": "none"}})
    assert described([base, encoder, decoder]) == [
        "encoder.mlp.hidden: [200,200], decoder.mlp.hidden: [200]",
        "encoder.mlp.hidden: [50], decoder.mlp.hidden: [200]",
        "encoder.mlp.hidden: [200,200], decoder.mlp.hidden: [50]",
    ]
    assert described([base, base | {"data": {"digits": {"seed": 1}}}]) == ["digits.seed: default", "digits.seed: 1"]
    machine = base | {"model": {"rbm": {"hidden": 3}}, "optimizer": {"SGD": {"lr": 0.1}}}
    assert described([base, machine, base]) == [
        "model: vae, optimizer: Adam", "model: rbm, optimizer: SGD", "model: vae, optimizer: Adam"
    ]  # fmt: skip
    assert described([base, base]) == ["", ""]


def trained(path: Path, *, seed: int = 0, prior: str = "normal", data: Any = "digits", score: bool = True) -> Run:
    model = {"vae": {"latent_dim": 2, "prior": prior}}
    run = train(Experiment(model=model, data=data, seed=seed, epochs=1), path, progress=False)
    if score:
        run.write_evaluation(evaluate(run.model, run.load_data(), particles=4))
    return Run(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    path = tmp_path_factory.mktemp("runs")
    return [trained(path / f"{prior}-{s}", seed=s, prior=prior) for prior in ("normal", "mixture") for s in (0, 1, 2)]


def test_differences_are_paired_and_errors_are_those_of_numpy(runs: list[Run]) -> None:
    (group,) = compare(runs)
    scores = {
        name: np.stack([run.evaluation_each["log_evidence"].numpy() for run in part])
        for name, part in (("prior: normal", runs[:3]), ("prior: mixture", runs[3:]))
    }
    best, other = (scores[row.name] for row in group.rows)
    row, top = group.rows[1], group.rows[0]
    assert (group.measure, group.score, group.datapoints) == ("mass", "log_evidence", best.shape[1])
    assert top.score == pytest.approx(best.mean())
    assert top.score >= row.score
    assert row.score_se == pytest.approx(other.mean(0).std(ddof=1) / math.sqrt(other.shape[1]))
    assert row.score_seeds == pytest.approx(other.mean(1).std(ddof=1))
    paired = other.mean(0) - best.mean(0)
    assert row.difference == pytest.approx(paired.mean())
    assert row.difference_se == pytest.approx(paired.std(ddof=1) / math.sqrt(len(paired)))
    spread = math.sqrt((other.mean(1).var(ddof=1) + best.mean(1).var(ddof=1)) / 3)
    assert row.difference_seeds == pytest.approx(spread)
    assert row.significant == (abs(row.difference) > row.half_width)
    assert (top.half_width, top.significant) == (None, None)


def test_a_difference_seen_in_one_seed_is_not_called_significant(runs: list[Run]) -> None:
    (group,) = compare([runs[0], runs[3]])
    assert [row.seeds for row in group.rows] == [1, 1]
    assert group.rows[1].significant is None
    assert group.rows[1].difference_seeds is None


def test_seeds_of_one_declaration_are_one_row(runs: list[Run]) -> None:
    (group,) = compare(runs[:3])
    assert [(row.name, row.seeds, row.difference) for row in group.rows] == [("model: vae", 3, 0.0)]


def test_measures_and_data_are_never_ranked_together(runs: list[Run], tmp_path: Path) -> None:
    grey = trained(tmp_path / "grey", data={"digits": {"binarize": "relaxed"}})
    other = trained(tmp_path / "other", data={"digits": {"seed": 1}})
    groups = compare([runs[0], grey, other])
    assert [(group.measure, group.score, len(group.rows)) for group in groups] == [
        ("mass", "log_evidence", 1),
        ("cross-entropy", "elbo", 1),
        ("mass", "log_evidence", 1),
    ]


def evaluated(run: Run, path: Path, **changed: Any) -> Run:
    """A copy of a run whose evaluation says something else."""
    shutil.copytree(run.path, path)
    evaluation = {**json.loads((path / "evaluation.json").read_text()), **changed}
    (path / "evaluation.json").write_text(json.dumps(evaluation))
    return Run(path)


def test_splits_and_draws_are_never_pooled(runs: list[Run], tmp_path: Path) -> None:
    """A run of exact log Z takes no draws and stands beside either; errors of log Z enter where it is estimated."""
    more = [evaluated(run, tmp_path / f"more-{run.path.name}", particles=1000) for run in (runs[2], runs[5])]
    validation = evaluated(runs[2], tmp_path / "validation", split="validation")
    groups = compare([*runs[:2], *runs[3:5], *more, validation])
    assert [(group.draws, group.split, [row.seeds for row in group.rows]) for group in groups] == [
        ("4 draws", "test", [2, 2]), ("1,000 draws", "test", [1, 1]), ("4 draws", "validation", [1])
    ]  # fmt: skip
    energy: dict[str, Any] = {"particles": None, "log_z": 1.0, "log_evidence_mcse": 0.0, "log_z_method": "exact"}
    exact = evaluated(runs[0], tmp_path / "exact", **energy)
    assert [len(group.rows[0].runs) for group in compare([exact, runs[1]])] == [2]
    beside = compare([exact, runs[3], more[1]])
    assert [(group.draws, len(group.rows)) for group in beside] == [("4 draws", 2), ("1,000 draws", 2)]
    assert [group.draws for group in compare([exact])] == [""]
    chains: dict[str, Any] = energy | {"log_z_method": "ais", "chains": 100, "temperatures": 1000}
    annealed = evaluated(runs[0], tmp_path / "annealed", **(chains | {"log_evidence_mcse": 0.7}))
    (group,) = compare([annealed, runs[3]])
    assert group.draws == "log Z by 100 chains of 1,000 temperatures, 4 draws"
    (without,) = compare([exact, runs[3]])
    assert group.rows[1].difference_se == pytest.approx(math.hypot(without.rows[1].difference_se, 0.7))
    longer = evaluated(runs[1], tmp_path / "longer", **(chains | {"temperatures": 5000}))
    assert [len(group.rows) for group in compare([annealed, longer])] == [1, 1]


def changed(run: Run, declaration: dict[str, Any], record: dict[str, Any]) -> Run:
    run = Run(run.path)
    run.declaration, run.record = run.declaration | declaration, run.record | record
    return run


def test_what_is_of_x_given_y_is_not_ranked_with_what_is_of_x(runs: list[Run], tmp_path: Path) -> None:
    model = {"conditional_vae": {"latent_dim": 2}}
    run = train(Experiment(model=model, data="digits", epochs=1), tmp_path / "run", progress=False)
    run.write_evaluation(evaluate(run.model, run.load_data(), particles=4))
    assert [group.measure for group in compare([runs[0], Run(run.path)])] == ["mass", "mass of x given y"]


def test_trainings_that_no_declaration_tells_apart_are_not_pooled(runs: list[Run]) -> None:
    """Interrupted ones, and ones on other datapoints; that older runs do not say on which does not part them."""
    (group,) = compare([*runs[:2], changed(runs[2], {}, {"finished": False})])
    assert {row.name: row.seeds for row in group.rows} == {"interrupted: False": 2, "interrupted: True": 1}
    data = [run.record["data"] | {"training_sha256": sha256} for run, sha256 in zip(runs, "aab", strict=False)]
    (group,) = compare([changed(run, {}, {"data": each}) for run, each in zip(runs, data, strict=False)])
    assert {row.name: row.seeds for row in group.rows} == {"training data: a": 2, "training data: b": 1}
    del data[2]["training_sha256"]
    (group,) = compare([changed(run, {}, {"data": each}) for run, each in zip(runs, data, strict=False)])
    assert [row.seeds for row in group.rows] == [3]


def test_models_and_code_that_no_declaration_tells_apart_are_not_pooled(runs: list[Run]) -> None:
    (group,) = compare([changed(run, {"model": None}, {}) for run in runs[:2]])
    assert {row.name for row in group.rows} == {f"model: given in {run.path}" for run in runs[:2]}
    own = [changed(run, {}, {"components": {"mine.py": sha256}}) for run, sha256 in zip(runs, "aab", strict=False)]
    (group,) = compare(own)
    assert {row.name: row.seeds for row in group.rows} == {"mine.py: a": 2, "mine.py: b": 1}


def test_a_run_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has not been evaluated; pyrolatent evaluate"):
        compare([trained(tmp_path / "run", score=False)])


def test_a_run_without_a_score_is_a_row_with_its_reason(runs: list[Run], tmp_path: Path) -> None:
    """The others are compared as they are without it."""
    stuck = evaluated(runs[3], tmp_path / "stuck", log_evidence=None, log_z_missing="the chains did not move")
    safetensors.torch.save_file({}, stuck.path / "evaluation.safetensors")
    (alone,) = compare(runs[:3])
    (group,) = compare([*runs[:3], stuck])
    row, none = group.rows
    assert (row.score, row.score_se, row.seeds) == (alone.rows[0].score, alone.rows[0].score_se, 3)
    assert (none.name, none.score, none.difference, none.significant, none.gap) == ("prior: mixture", *[None] * 4)
    assert none.missing == f"{stuck.path}: the chains did not move"
    infinite = evaluated(runs[4], tmp_path / "infinite")
    each = infinite.evaluation_each
    each["log_evidence"][3] = -math.inf
    safetensors.torch.save_file(each, infinite.path / "evaluation.safetensors")
    (both,) = compare([*runs[:4], infinite])
    assert both.rows[1].score is None  # of two seeds the better one alone would say too much
    assert "infinite: log_evidence is not finite for 1 datapoints" in str(both.rows[1].missing)
    (nothing,) = compare([stuck])
    assert [row.score for row in nothing.rows] == [None]
    for groups in ([group], [nothing], [both]):
        forest(groups).savefig(tmp_path / "forest.png")
    shown = CliRunner().invoke(app, ["compare", *(str(run.path) for run in [*runs[:3], stuck])])
    assert shown.exit_code == 0, shown.output
    assert "none: " in shown.output
    assert "the chains did not move" in shown.output


def test_one_run_is_no_two_seeds(runs: list[Run], tmp_path: Path) -> None:
    """Given twice, or copied; and what is no run is refused by name."""
    shutil.copytree(runs[0].path, tmp_path / "copy")
    for again in (runs[0], Run.load(tmp_path / "copy")):
        with pytest.raises(InputError, match="are one declaration at one seed"):
            compare([*runs, again])
    with pytest.raises(InputError, match=r"give runs, as Run.load\('a'\)"):
        compare(["a"])  # type: ignore[list-item]
