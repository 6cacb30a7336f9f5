"""The command line: what it prints, what it writes, and one line for everything that a user can do wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

import pyrolatent
from pyrolatent import Run, cli, sample

pytestmark = pytest.mark.usefixtures("few_cells")
SMALL = ["--epochs=2", "--device=cpu", "--particles=4", "--set=model.vae.latent_dim=2"]
KEYS = {
    "split", "measure", "elbo", "reconstruction", "kl", "log_evidence", "log_evidence_se", "log_evidence_mcse",
    "log_evidence_bias", "log_evidence_interval", "bits_per_dimension", "ess", "khat_share", "active_units",
    "datapoints", "particles", "kl_per_dimension",
}  # fmt: skip


def call(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], catch_exceptions=False)


def refused(*args: object, code: int = 2) -> str:
    result = call(*args)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("bits.npy", np.random.default_rng(0).integers(2, size=(60, 6)).astype(np.uint8))
    return Path("bits.npy")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "run"
    assert call("train", *SMALL, "--output", path).exit_code == 0
    return path


def test_train_prints_epochs_model_scores_and_paths(bits: Path) -> None:
    result = call("train", *SMALL, "--data", bits, "--epochs=43")
    assert result.exit_code == 0, result.output
    described, _, table = result.stdout.partition("\n\n")
    first, repeated, header, *_ = described.splitlines()
    assert first == "Data(bits.npy: 49 train, 5 validation, 6 test; event_shape=(6,), label_dim=0)"
    assert repeated.startswith("duplicates: 16 repeated in train, ")
    assert header == "column  kind    values  missing"
    lines = table.splitlines()
    rows = [line for line in lines if line[:5].strip().isdecimal()]
    assert lines[0].split() == ["epoch", "train_loss", "validation_elbo", "seconds"]
    assert {len(line) for line in [lines[0], *rows]} == {len(lines[0])}
    epochs = [int(row.split()[0]) for row in rows]
    assert epochs[0] == 1
    assert epochs[-1] == 43
    assert len(epochs) <= 22
    assert "p(x | z) = Bernoulli(logits) of MLP 2-200-6" in result.stdout
    assert "log_evidence" in result.stdout
    run = Path("runs/bits-1")
    figures = [line.split()[-1] for line in lines[-6:]]
    names = ["training", "reconstructions", "samples", "sample_means", "latent_grid", "embedding"]
    assert figures == [str(run / "figures" / f"{name}.png") for name in names]
    assert all(Path(figure).stat().st_size > 1000 for figure in figures)
    assert json.loads((run / "evaluation.json").read_text()).keys() == KEYS
    assert "\x1b" not in result.stdout


def test_train_numbers_its_directories_and_names_them_after_the_experiment(bits: Path) -> None:
    Path("first.yaml").write_text(yaml.safe_dump({"model": {"vae": {"latent_dim": 2}}, "data": str(bits)}))
    for number in (1, 2):
        printed = json.loads(call("train", "first.yaml", *SMALL, "--json").stdout)
        assert printed["run"] == f"runs/first-{number}"
    declared = yaml.safe_load(Path("runs/first-2/experiment.yaml").read_text())
    assert declared["epochs"] == 2
    printed = json.loads(call("train", "runs/first-1/experiment.yaml", "--particles=4", "--json").stdout)
    assert Run.load(printed["run"]).history[-1]["train_loss"] == Run.load("runs/first-1").history[-1]["train_loss"]


def test_options_and_overrides_reach_the_experiment(bits: Path) -> None:
    result = call(
        "train", *SMALL, "--seed=7", "--set=data.digits.binarize=static", "--set=optimizer.SGD.lr=1e-3",
        "--set=objective.elbo.particles=2", "--json", "--output=out",
    )  # fmt: skip
    assert json.loads(result.stdout)["run"] == "out"
    declared = yaml.safe_load(Path("out/experiment.yaml").read_text())
    assert declared["data"] == {"digits": {"binarize": "static"}}
    assert declared["optimizer"] == {"SGD": {"lr": 0.001}}
    assert declared["objective"]["elbo"]["particles"] == 2
    assert declared["seed"] == 7


def test_evaluate_writes_its_scores(made: Path) -> None:
    assert "log_evidence" in call("evaluate", made, "--particles=3").stdout
    printed = json.loads(call("evaluate", made, "--particles=3", "--split=validation", "--json").stdout)
    assert printed == json.loads((made / "evaluation.json").read_text())
    assert printed.keys() == KEYS
    assert printed["measure"] == "mass"
    assert printed["split"] == "validation"
    assert printed["elbo"] == pytest.approx(printed["reconstruction"] - printed["kl"], abs=1e-3)


def test_a_cross_entropy_has_no_evidence(bits: Path) -> None:
    result = call("train", *SMALL, "--set=data.digits.binarize=relaxed", "--output=out")
    assert "a cross-entropy on grey values is no likelihood" in result.stdout
    evaluation = json.loads(Path("out/evaluation.json").read_text())
    assert evaluation["measure"] == "cross-entropy"
    assert KEYS - evaluation.keys() == {name for name in KEYS if name.startswith("log_evidence")}


def test_one_class_is_sampled(bits: Path) -> None:
    """The draws of a class are those of Python with as many labels; what is no class is refused."""
    call("train", "--data=digits", "--epochs=1", "--set=model={conditional_vae: {latent_dim: 2}}", "--output=out")
    call("sample", "out", "--size=4", "--label=3")
    torch.manual_seed(0)
    assert np.array_equal(np.load("out/samples.npy"), sample(Run.load("out").model, 4, torch.full((4,), 3)).numpy())
    refused = call("sample", "out", "--label=10")
    assert (
        refused.exit_code,
        "label was '10'; ConditionalVAE takes a class: valid: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in refused.stderr,
    ) == (2, True)


def test_a_class_is_asked_for_by_its_name(bits: Path) -> None:
    """Names come before numbers: of the classes 1, 10 and b, number 1 is called 10."""
    rows = "".join(f"{('b', '1', '10')[i % 3]},{i % 2},{i % 5 % 2}\n" for i in range(60))
    Path("named.csv").write_text("kind,a,b\n" + rows)
    declared = {"data": {"named.csv": {"labels": "kind"}}, "model": {"conditional_vae": {"latent_dim": 1}}}
    Path("named.yaml").write_text(yaml.safe_dump(declared | {"epochs": 1}))
    assert call("train", "named.yaml", "--output=out", "--particles=2").exit_code == 0
    run = Run.load("out")
    names = run.record["data"]["classes"]
    assert names == ["1", "10", "b"]
    assert [run.label(text) for text in (*names, "0", "2")] == [0, 1, 2, 0, 2]
    call("sample", "out", "--label=b", "--size=3")
    torch.manual_seed(0)
    assert np.array_equal(np.load("out/samples.npy"), sample(run.model, 3, [2, 2, 2]).numpy())
    assert "label was 'x'; ConditionalVAE takes a class: valid: " in refused("sample", "out", "--label=x")


def test_labels_that_are_vectors_are_numbers_on_the_command_line(bits: Path) -> None:
    random = np.random.default_rng(0)
    age = random.uniform(20, 80, (60, 2))
    np.savez("aged.npz", x=age / 20, y=age)
    fields = ["--set=model={conditional_vae: {latent_dim: 1, likelihood: normal}}", "--epochs=1", "--particles=2"]
    assert call("train", "--data=aged.npz", "--output=out", *fields).exit_code == 0
    assert Run.load("out").model.vector_labels
    call("sample", "out", "--size=3", "--label=30,40.5")
    torch.manual_seed(0)
    assert np.array_equal(np.load("out/samples.npy"), sample(Run.load("out").model, 3, [[30, 40.5]] * 3).numpy())
    assert "give labels y" in refused("sample", "out")
    assert "takes 2 numbers joined by commas" in refused("sample", "out", "--label=old")
    assert "takes finite vectors of shape (64, 2)" in refused("sample", "out", "--label=30")
    annealed = call("evaluate", "out", "--method=annealed", "--size=3", "--chains=2", "--temperatures=3", "--json")
    assert json.loads(annealed.stdout)["bracket"]["datapoints"] == 3


def test_a_model_without_labels_has_no_class(made: Path) -> None:
    for text in ("1", "x"):
        assert "VAE takes no labels" in refused("sample", made, f"--label={text}")


def test_sample_and_figures_write_into_the_run(made: Path) -> None:
    assert call("sample", made, "--size=5").stdout.split() == [
        str(made / "samples.npy"),
        str(made / "figures/samples.png"),
    ]
    drawn = np.load(made / "samples.npy")
    assert drawn.shape == (5, 1, 8, 8)
    assert call("sample", made, "--size=5", "--mean").stdout.split() == [
        str(made / "sample_means.npy"),
        str(made / "figures/sample_means.png"),
    ]
    assert np.array_equal(np.load(made / "samples.npy"), drawn)
    call("sample", made, "--size=5", "--seed=1")
    assert not np.array_equal(np.load(made / "samples.npy"), drawn)
    (made / "figures/embedding.png").unlink()
    assert json.loads(call("figures", made, "--json").stdout)["embedding"] == str(made / "figures/embedding.png")
    assert (made / "figures/embedding.png").is_file()


def test_show_of_a_run_and_of_an_experiment(made: Path) -> None:
    shown = call("show", made).stdout
    assert shown.startswith(f"{made}, after epoch 2\n")
    assert shown.endswith((made / "experiment.yaml").read_text())
    data, _, declared = call("show", made / "experiment.yaml").stdout.partition("\n\n")
    assert data.startswith("Data(digits: ")
    assert shown.splitlines()[1:] == declared.splitlines()


def test_components_names_everything_and_fits_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = json.loads(call("components", "--json").stdout)
    for width in (80, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr("pyrolatent.cli.tables.console", Console(width=width))
        shown = call("components").stdout
        assert max(map(len, shown.splitlines())) <= width
        assert "…" not in shown
        for entries in listing.values():
            assert all(name in shown for name in entries)
    assert listing["optimizer"]["Adam"]["options"]["lr"]["default"] == 0.001
    assert "default" not in listing["model"]["vae"]["options"]["latent_dim"]


def test_schema_and_version() -> None:
    assert json.loads(call("schema").stdout)["properties"].keys() >= {"model", "data", "objective", "epochs"}
    assert call("--version").stdout == f"pyrolatent {pyrolatent.__version__}\n"


def test_refuses_mistakes_in_one_line(bits: Path, made: Path) -> None:
    Path("bad.npy").write_bytes(b"\x93NUMPY\x01")
    Path("file").touch()
    assert "none.yaml: No such file" in refused("train", "none.yaml")
    assert "--set was given 'epochs'" in refused("train", "--set", "epochs")
    assert "--set was given 'epochs='" in refused("train", "--set", "epochs=")
    assert "did you mean 'epochs'" in refused("train", "--set", "epoch=3")
    assert "epochs was given 0" in refused("train", "--epochs=0")
    assert "did you mean 'digits'" in refused("train", "--data=digit")
    assert "bad.npy" in refused("train", "--data=bad.npy", *SMALL)
    assert "file/run cannot be the directory of a run" in refused("train", "--output=file/run", *SMALL)
    assert "is not empty" in refused("train", "--output", made, *SMALL)
    assert "[x] is not a run" in refused("evaluate", "[x]")
    for command in ("evaluate", "sample", "figures", "show"):
        Path("empty").mkdir(exist_ok=True)
        assert "empty is not a run" in refused(command, "empty")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "args",
    [
        ("evaluate", "RUN", "--split=tset"),
        ("evaluate", "RUN", "--particles=0"),
        ("evaluate", "RUN", "--device=gpu"),
        ("sample", "RUN", "--size=0"),
        ("train", "--particles=0"),
        ("train", "--device=gpu"),
        ("train", "--nothing"),
        ("evaluate",),
        ("nothing",),
    ],
)
def test_wrong_usage_is_explained(made: Path, args: tuple[str, ...]) -> None:
    result = call(*(made if arg == "RUN" else arg for arg in args))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr


def test_training_that_fails_exits_with_1(bits: Path) -> None:
    message = refused("train", *SMALL, "--set=optimizer.SGD.lr=1e30", "--output=out", "--json", code=1)
    assert message.startswith("training stopped: ")
    assert not Path("out").exists()


def test_interruption_while_loading_and_while_evaluating(bits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyrolatent.experiments.run.evaluate", interrupted)
    assert "out holds the trained model" in refused("train", *SMALL, "--output=out", "--json", code=130)
    assert len(Run.load("out").history) == 2
    assert "interrupted" in refused("evaluate", "out", code=130)
    monkeypatch.setattr("pyrolatent.experiments.experiment.load_data", interrupted)
    assert "before the end of the first epoch" in refused("train", code=130)


def test_ctrl_c_in_training_keeps_the_last_epoch(bits: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pyrolatent",
        "train",
        f"--data={bits}",
        "--epochs=100000",
        "--output=out",
        "--device=cpu",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell starts jobs in the background with SIGINT ignored, and what they start inherits that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(600):
        if Path("out/metrics.jsonl").is_file():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    loaded = Run.load("out")
    assert message.startswith("interrupted: out holds the model after epoch ")
    assert abs(int(message.split()[-1]) - len(loaded.history)) <= 1
    assert call("evaluate", "out", "--particles=2").exit_code == 0
    assert "interrupted after epoch" in call("show", "out").stdout


def test_a_component_of_the_users_own_asks_for_trust(bits: Path) -> None:
    Path("priors.py").write_text(
        "from pyrolatent.models.components.priors import NormalPrior\nclass Mine(NormalPrior):\n    pass\n"
    )
    fields = {"model": {"vae": {"latent_dim": 2, "prior": "priors:Mine"}}, "data": str(bits)}
    Path("mine.yaml").write_text(yaml.safe_dump(fields))
    assert call("train", "mine.yaml", *SMALL, "--output=out").exit_code == 0
    for command in ("evaluate", "sample", "figures", "show"):
        assert "priors:Mine" in refused(command, "out")
        assert call(command, "out", "--trust").exit_code == 0
