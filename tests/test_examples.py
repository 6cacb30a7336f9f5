"""The examples: a few steps of each, and in the slow tests all of it."""

import os
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
DIGITS = ["--data", "digits", "--epochs", "1"]
QUICK = {
    "autoencoder_pca": ["--epochs", "1", "--sizes", "2", "3"],
    "before_and_after": DIGITS,
    "bound_and_evidence": ["--draws", "1000"],
    "fitted_posteriors": [*DIGITS, "--images", "5", "--steps", "3", "--draws", "5"],
    "grey_pixels": [*DIGITS, "--particles", "2"],
    "learnt_path": ["--epochs", "1"],
    "reparameterizations": ["--draws", "1000"],
    "sharper_draws": [*DIGITS, "--images", "5", "--particles", "2"],
}
"""Settings of a few steps, by the name of the script."""


def run(name: str, settings: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a script in a folder, where it leaves a figure."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name, *settings])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert (folder / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize("name", QUICK)
def test_a_few_steps_of_an_example_end_in_its_figure(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, QUICK[name], tmp_path, monkeypatch)
    assert f"{name}.png" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
@pytest.mark.skipif("PYROLATENT_DATA" not in os.environ, reason="MNIST is not at hand")
def test_an_example_runs_as_its_first_lines_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(name, [], tmp_path, monkeypatch)


def test_the_gallery_names_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.yaml"), *(EXAMPLES / "images").glob("*.png")]:
        assert path.name in text
