"""A grid of experiments: what it makes, what it keeps when killed, and that one failure does not lose the rest."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from pyrolatent import InputError, Run, cli, compare
from pyrolatent.experiments.compare import forest
from pyrolatent.experiments.sweep import Cell, _reason, grid, sweep, train_cell

SMALL = {"mlp": {"hidden": [8]}}
FIELDS: dict[str, Any] = {
    "model": {"vae": {"latent_dim": 2, "encoder": SMALL, "decoder": SMALL}},
    "epochs": 2,
    "device": "cpu",
}
OVER: dict[str, list[Any]] = {"model.vae.prior": ["normal", {"mixture": {"components": 3}}]}


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("bits.npy", np.random.default_rng(0).integers(2, size=(200, 6)).astype(np.uint8))
    Path("small.yaml").write_text(yaml.safe_dump(FIELDS | {"data": "bits.npy"}))
    return Path("small.yaml")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trains the cells here, where what is tested is not that each has a process of its own, which takes seconds."""

    def one_by_one(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, str | None]]:
        for cell in cells:
            try:
                train_cell(cell)
            except Exception as error:
                yield cell, _reason(error)
            else:
                yield cell, None

    monkeypatch.setattr("pyrolatent.experiments.sweep._in_processes", one_by_one)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def test_a_grid_names_every_combination() -> None:
    made = grid(FIELDS, OVER | {"objective": ["elbo", {"iwae": {"particles": 5}}]}, 2)
    assert len(made) == 8
    assert "prior=normal,objective=elbo,seed=0" in made
    assert all("/" not in name and " " not in name for name in made)
    chosen = made["prior=mixture_components_3,objective=iwae_particles_5,seed=1"]
    assert chosen["model"]["vae"]["prior"] == {"mixture": {"components": 3}}
    assert chosen["model"]["vae"]["latent_dim"] == 2
    assert chosen["seed"] == 1
    for over, message in (
        ({"model.vae.prior": ["nromal"]}, "did you mean 'normal'"),
        ({"model.vae.prior": ["normal", "normal"]}, "occurs twice"),
    ):
        with pytest.raises(InputError, match=message):
            grid(FIELDS, over, 1)


@pytest.mark.usefixtures("in_this_process")
def test_a_sweep_trains_evaluates_and_goes_on_where_it_was(experiment: Path) -> None:
    """A run that is there is not touched; one that lacks its end is trained again, one that lacks its scores scored."""
    fields = yaml.safe_load(experiment.read_text())
    done: list[tuple[str, str | None, int, int]] = []

    def again() -> list[Run]:
        done.clear()
        options: dict[str, Any] = {"directory": Path.cwd(), "particles": 10, "jobs": 2}
        return sweep(fields, OVER, "runs", seeds=2, on_run=lambda *row: done.append(row), **options)

    runs = again()
    assert [run.path.name for run in runs] == [*grid(fields, OVER, 2)]
    assert [row[2:] for row in done] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(run.evaluation and run.evaluation["particles"] == 10 for run in runs)
    written = {run.path: (run.path / "weights.safetensors").stat().st_mtime_ns for run in runs}
    (runs[0].path / "evaluation.json").unlink()
    record = json.loads((runs[1].path / "record.json").read_text()) | {"finished": False}
    (runs[1].path / "record.json").write_text(json.dumps(record))
    again()
    assert {row[0] for row in done} == {run.path.name for run in runs[:2]}
    touched = [(run.path / "weights.safetensors").stat().st_mtime_ns != written[run.path] for run in runs]
    assert touched == [False, True, False, False]
    (group,) = compare(runs)
    assert {row.name for row in group.rows} == {"prior: normal", "prior: mixture"}
    assert {row.seeds for row in group.rows} == {2}
    fields["epochs"] = 3
    with pytest.raises(InputError, match=r"run of another declaration \(epochs\)"):
        again()


@pytest.mark.slow
def test_one_failure_does_not_lose_the_rest(experiment: Path) -> None:
    """A learning rate that is not finite stops one run, with its reason."""
    fields = yaml.safe_load(experiment.read_text())
    failed: dict[str, str] = {}
    runs = sweep(
        fields, {"optimizer.SGD.lr": [0.01, 1e30]}, "runs", directory=Path.cwd(), particles=5, jobs=2,
        on_run=lambda name, failure, *_: failed.update({name: failure} if failure else {}),
    )  # fmt: skip
    assert [run.path.name for run in runs] == ["lr=0.01,seed=0"]
    assert list(failed) == ["lr=1e_30,seed=0"] or list(failed) == ["lr=1e+30,seed=0"]
    assert "not finite" in next(iter(failed.values()))


@pytest.mark.usefixtures("in_this_process")
def test_failures_alone_are_an_error(experiment: Path) -> None:
    fields = yaml.safe_load(experiment.read_text())
    with pytest.raises(InputError, match="none of 1 runs could be finished"):
        sweep(fields, {"optimizer.SGD.lr": [1e30]}, "others", directory=Path.cwd(), particles=5)


@pytest.mark.usefixtures("in_this_process")
def test_energies_beside_autoencoders(experiment: Path) -> None:
    """Machines are compared with VAEs by log p(x); without a posterior to check it does not begin."""
    machine: dict[str, Any] = {"data": "bits.npy", "epochs": 1, "device": "cpu", "model": {"rbm": {"hidden": 3}}}
    options: Any = {"directory": Path.cwd(), "jobs": 1}
    for _ in range(2):  # the second finds it done
        (first,) = sweep(machine | {"objective": "pcd"}, {"objective": ["pcd"]}, "runs", **options)
    (second,) = sweep(machine | {"model": FIELDS["model"]}, {"objective": ["elbo"]}, "runs", particles=5, **options)
    (group,) = compare([first, second])
    assert sorted("rbm" in row.name for row in group.rows) == [False, True]
    with pytest.raises(InputError, match="rbm has no posterior of latents that could be checked"):
        sweep(machine | {"objective": "pcd"}, {"seed": [0]}, "others", checked=True, **options)
    assert not Path("others").exists()
    with pytest.raises(InputError, match="PCA has no density of x, which analytic_elbo needs"):
        sweep(machine | {"model": {"pca": {"latent_dim": 2}}}, {"seed": [0]}, "others", **options)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process", "few_steps")
def test_on_the_command_line_with_a_check(experiment: Path) -> None:
    result = CliRunner().invoke(
        cli.app,
        ["sweep", str(experiment), "--over", "objective=elbo,{iwae: {particles: 3}}", "--seeds=1", "--particles=5",
         "--output=runs", "--check", "--jobs=2"],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "2/2" in result.stdout
    assert "one seed" in result.stdout
    assert "k-hat" in result.stdout
    written = json.loads(Path("runs/comparison.json").read_text())
    assert [row["seeds"] for row in written[0]["rows"]] == [1, 1]
    assert all(0 <= row["khat_share"] <= 1 for row in written[0]["rows"])
    assert Path("runs/comparison.png").stat().st_size > 5000
    wrong = CliRunner().invoke(cli.app, ["sweep", str(experiment), "--over", "objective"])
    assert wrong.exit_code == 2
    assert "write it as --over" in wrong.stderr
    figure = forest(compare([Run(path) for path in Path("runs").iterdir() if path.is_dir()]))
    assert figure.axes[0].get_yticklabels()[0].get_text().endswith("(1)")


@pytest.mark.slow
def test_six_runs_killed_half_way_and_resumed(experiment: Path) -> None:
    """Whatever was finished when the processes were killed is as it was; the rest is trained, and all are compared."""
    command = [sys.executable, "-m", "pyrolatent", "sweep", str(experiment), "--over", "model.vae.prior=normal,mixture",
               "--seeds=3", "--jobs=2", "--output=runs", "--particles=20", "--epochs=30"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, start_new_session=True, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("2/6"):
                break
        os.killpg(process.pid, signal.SIGKILL)
    finished = [path.parent for path in Path("runs").glob("*/evaluation.json")]
    assert 2 <= len(finished) < 6
    before = {path: (path / "weights.safetensors").stat().st_mtime_ns for path in finished}
    resumed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "6/6" in resumed.stdout
    assert resumed.stdout.splitlines()[0].startswith(f"{len(finished) + 1}/6")
    assert all((path / "weights.safetensors").stat().st_mtime_ns == when for path, when in before.items())
    rows = json.loads(Path("runs/comparison.json").read_text())[0]["rows"]
    assert [row["seeds"] for row in rows] == [3, 3]


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(experiment: Path) -> None:
    command = [sys.executable, "-m", "pyrolatent", "sweep", str(experiment), "--over", "model.vae.prior=normal,mixture",
               "--seeds=2", "--jobs=1", "--output=runs", "--particles=20", "--epochs=2000"]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not list(Path("runs").glob("*/weights.safetensors")):
        time.sleep(0.2)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors


def test_ray_that_is_not_there(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    fields = yaml.safe_load(experiment.read_text())
    with pytest.raises(InputError, match="ray is not installed"):
        sweep(fields, OVER, "runs", directory=Path.cwd(), ray="auto")


@pytest.mark.slow
def test_on_ray(experiment: Path) -> None:
    """On a cluster of this machine alone: one run fails with its reason, the others are there."""
    pytest.importorskip("ray")
    fields = yaml.safe_load(experiment.read_text())
    failed: dict[str, str | None] = {}
    over: dict[str, list[Any]] = {"optimizer.SGD.lr": [0.01, 0.02, 1e30]}
    runs = sweep(
        fields, over, Path.cwd() / "runs", directory=Path.cwd(), particles=5, jobs=2, ray="local",
        on_run=lambda name, failure, *_: failed.update({name: failure}),
    )  # fmt: skip
    assert [run.path.name for run in runs] == ["lr=0.01,seed=0", "lr=0.02,seed=0"]
    (reason,) = [failure for failure in failed.values() if failure]
    assert "not finite" in reason
