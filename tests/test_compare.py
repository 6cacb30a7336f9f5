"""Comparison of runs: against the same numbers computed by NumPy, and never across measures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyrolatent import Experiment, InputError, evaluate, train
from pyrolatent.compare import compare
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
