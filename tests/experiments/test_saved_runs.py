"""Runs that an earlier version saved, one of each kind of model: they load, and are evaluated to the same numbers."""

from pathlib import Path
from typing import Any

import pytest

from pyrolatent import Run, evaluate
from pyrolatent.inference.evidence.energies import Annealing

RUNS = sorted((Path(__file__).parent / "runs").iterdir())


SLOW = {"energy"}  # whose steps of HMC are adapted again


@pytest.mark.parametrize(
    "folder",
    [pytest.param(folder, marks=[pytest.mark.slow] * (folder.name in SLOW), id=folder.name) for folder in RUNS],
)
def test_a_run_of_an_earlier_version_loads(folder: Path) -> None:
    run = Run.load(folder)
    assert len(run.history) == (1 if folder.name == "pca" else 2)
    recorded = run.evaluation
    if recorded is None:  # models without a density
        x = run.load_data().test.batch(slice(0, 3)).x
        assert run.model(x, None).shape == x.shape
        return
    options: Any = {"particles": recorded["particles"]} if "particles" in recorded else {}
    if folder.name == "energy":
        options = {"annealing": Annealing(20, 100)}
    found = evaluate(run.model, run.load_data(), **options)
    # The draws at a seed are the same; sums may be taken in another order.
    assert found.log_evidence == pytest.approx(recorded["log_evidence"], rel=1e-4)
