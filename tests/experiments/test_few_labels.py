"""The example of few labels, of small data."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/few_labels.py"


@pytest.mark.slow
def test_the_example_prints_each_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = [f"--{name}-epochs=1" for name in ("vae", "m2", "m1-m2")]
    options = ["--data=digits", "--labels=100", "--trace", *epochs, f"--output={tmp_path}"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *options])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("   100 labels")]
    assert [row[2] for row in rows] == ["pixels", "pca", "m1", "m2", "m1+m2"]
    errors = {row[2]: float(row[3]) for row in rows}
    assert errors["pixels"] < 20  # of 180 test digits, from 100 labels
    assert all(0 <= error <= 100 for error in errors.values())
    assert "[11.97 ± 1.71]" in " ".join(rows[3])
