"""Comparison of runs: against the same numbers computed by NumPy, and never across measures."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from typer.testing import CliRunner

from pyrolatent import Experiment, InputError, evaluate, train
from pyrolatent.cli import app
from pyrolatent.compare import compare, forest
from pyrolatent.run import Run


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
    assert row.significant == (abs(row.difference) > 2 * math.hypot(row.difference_se, spread))


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


def test_a_run_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has not been evaluated; pyrolatent evaluate"):
        compare([trained(tmp_path / "run", score=False)])


def without_score(run: Run, path: Path, **changed: Any) -> Run:
    """A copy of a run with another declaration, or with an evaluation like that of an energy whose chains are stuck."""
    shutil.copytree(run.path, path)
    evaluation = {**json.loads((path / "evaluation.json").read_text()), **changed}
    (path / "evaluation.json").write_text(json.dumps(evaluation))
    return Run(path)


def test_a_run_without_a_score_is_a_row_with_its_reason(runs: list[Run], tmp_path: Path) -> None:
    """The others are compared as they are without it."""
    stuck = without_score(runs[3], tmp_path / "stuck", log_evidence=None, log_z_missing="the chains did not move")
    safetensors.torch.save_file({}, stuck.path / "evaluation.safetensors")
    (alone,) = compare(runs[:3])
    (group,) = compare([*runs[:3], stuck])
    row, none = group.rows
    assert (row.score, row.score_se, row.seeds) == (alone.rows[0].score, alone.rows[0].score_se, 3)
    assert (none.name, none.score, none.difference, none.significant, none.gap) == ("prior: mixture", *[None] * 4)
    assert none.missing == f"{stuck.path}: the chains did not move"
    infinite = without_score(runs[4], tmp_path / "infinite")
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
