"""Runs: what is on disk is what was trained, at any moment, and nothing of it is executed unless it is trusted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import pyrolatent as pl
from pyrolatent import Experiment, InputError, Run, TrustError
from pyrolatent.experiments import run
from pyrolatent.models.components.priors import NormalPrior

ROW = ["epoch", "train_loss", "validation_elbo", "learning_rate", "seconds"]
OWN = """
import pyro.distributions as dist
import torch
from torch import nn

class MyPrior(nn.Module):
    def __init__(self, latent_dim: int, *, start: float = 0.0) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.full((latent_dim,), start))

    def forward(self, y=None):
        return dist.Normal(self.loc, SCALE).to_event(1)

SCALE = 1.0
"""


@pytest.fixture
def bits(tmp_path: Path) -> Path:
    file = tmp_path / "bits.npy"
    np.save(file, np.random.default_rng(0).integers(2, size=(60, 6)).astype(np.uint8))
    return file


def declared(bits: Path, **fields: object) -> Experiment:
    small = {"mlp": {"hidden": [4]}}
    model = {"vae": {"latent_dim": 2, "encoder": small, "decoder": small}}
    return Experiment(**{"model": model, "data": str(bits), "epochs": 2, "device": "cpu", **fields})


def trained(bits: Path, output: Path, **fields: object) -> Run:
    return pl.train(declared(bits, **fields), output, progress=False)


def own(tmp_path: Path, bits: Path, name: str = "own", source: str = OWN) -> Path:
    directory = tmp_path / name
    directory.mkdir()
    (directory / "my_module.py").write_text(source)
    fields = declared(bits).declaration
    fields["model"]["vae"]["prior"] = {"my_module:MyPrior": {"start": 0.5}}
    (directory / "experiment.yaml").write_text(yaml.safe_dump(fields))
    return directory / "experiment.yaml"


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.usefixtures("few_cells", "few_steps")
def test_a_run_evaluates_checks_anneals_and_plots_itself(tmp_path: Path, bits: Path) -> None:
    """What it writes and returns is what the functions give for its model and data."""
    made = trained(bits, tmp_path / "run")
    data = made.load_data()
    evaluation = made.evaluate(particles=7, split="validation")
    assert evaluation == pl.evaluate(made.model, data, particles=7, split="validation")
    assert made.evaluation == json.loads(json.dumps(run.scores(evaluation)))

    found = made.check(
        data, split="train", size=20, draws=25, simulations=50, replicates=99, annealed=0, pictures=False
    )
    assert made.checks == json.loads(json.dumps(found.json()))
    evidence, bracket = made.anneal(data, size=3, chains=4, steps=5, split="train")
    assert evidence == pl.annealed_evidence(made.model, data, size=3, chains=4, steps=5, split="train")
    assert made.annealed is not None
    assert made.annealed["bracket"]["width"] == bracket.width
    assert "each" not in made.annealed["evidence"]

    names = ["evaluation.safetensors", "evaluation.json", "checks.json", "annealed.json"]
    assert made.written == [made.path / name for name in names]
    assert made.plot() == made.written[4:]
    assert {path.stem for path in made.plot(data)} == {*pl.pictures.plot(made.model, data, made.history)}
    assert all(path.is_file() for path in made.written)


def test_a_run_of_data_in_memory_is_given_them(tmp_path: Path) -> None:
    data = pl.load_data(np.random.default_rng(0).integers(2, size=(60, 6)).astype(np.uint8))
    model = pl.RestrictedBoltzmannMachine((6,), hidden=2)
    made = Run.save(tmp_path / "run", pl.fit(model, data, objective="pcd", epochs=1, progress=False))
    told: list[tuple[str, int, int]] = []
    annealing = pl.Annealing(chains=4, temperatures=3, always=True)
    evaluation = made.evaluate(data, annealing=annealing, on_step=lambda *step: told.append(step))
    assert made.evaluation is not None
    assert made.evaluation["log_z"] == evaluation.log_z
    assert told[0] == ("ais", 1, 3)
    with pytest.raises(InputError, match="trained on data in memory"):
        made.evaluate()
    with pytest.raises(InputError, match="has no latents to anneal"):
        made.anneal(data)


def test_holds_what_it_says_and_gives_the_model_back_bit_for_bit(tmp_path: Path, bits: Path) -> None:
    made = trained(bits, tmp_path / "run")
    assert {p.name for p in made.path.iterdir()} == {
        "experiment.yaml", "rows.csv", "weights.safetensors", "metrics.jsonl", "record.json",
    }  # fmt: skip
    assert same(Run.load(made.path).model, made.model)
    rows = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [ROW, ROW]
    assert [row["epoch"] for row in rows] == [1, 2]
    record = json.loads((made.path / "record.json").read_text())
    assert record["finished"] is True
    assert record["data"]["evaluation_sha256"] == pl.load_data(bits).record["evaluation_sha256"]
    assert made.load_data().event_shape == (6,)
    again = pl.train(Experiment.load(made.path / "experiment.yaml"), tmp_path / "again", progress=False)
    assert same(again.model, made.model)


def test_save_in_python_writes_the_same_as_train(tmp_path: Path, bits: Path) -> None:
    experiment = declared(bits)
    data = experiment.load_data()
    fit = experiment.fit(experiment.build(data), data, progress=False)
    saved, made = Run.save(tmp_path / "saved", fit), trained(bits, tmp_path / "made")
    assert saved.declaration == made.declaration
    assert same(Run.load(saved.path).model, made.model)


def test_a_model_of_instances_loads_with_a_model(tmp_path: Path, bits: Path) -> None:
    data = pl.load_data(bits)

    def build() -> pl.VAE:
        return pl.VAE(data.event_shape, latent_dim=2, prior=NormalPrior(2))

    fit = pl.fit(build(), data, progress=False, epochs=1, device="cpu")
    made = Run.save(tmp_path / "run", fit)
    assert made.declaration["model"] is None
    with pytest.raises(InputError, match=r"built of instances .* Run\.load\(path, model="):
        Run.load(made.path)
    assert same(Run.load(made.path, model=build()).model, fit.model)
    with pytest.raises(InputError, match="do not fit the model"):
        Run.load(made.path, model=pl.VAE(data.event_shape, latent_dim=3))
    with pytest.raises(InputError, match="model was given as null"):
        Experiment.load(made.path / "experiment.yaml")


def test_data_in_memory_and_an_instance_of_an_objective_are_recorded_as_such(tmp_path: Path, bits: Path) -> None:
    data = pl.load_data(np.load(bits))
    from pyro.infer import Trace_ELBO

    model = pl.VAE(data.event_shape, latent_dim=2)
    made = Run.save(
        tmp_path / "run", pl.fit(model, data, progress=False, epochs=1, objective=Trace_ELBO(), device="cpu")
    )
    assert made.declaration["data"] is None
    assert made.declaration["objective"] is None
    assert same(Run.load(made.path).model, model)
    with pytest.raises(InputError, match="data in memory"):
        made.load_data()


def test_a_component_of_the_users_own_is_kept_and_loaded_only_if_trusted(tmp_path: Path, bits: Path) -> None:
    file = own(tmp_path, bits)
    made = pl.train(Experiment.load(file), tmp_path / "run", progress=False)
    assert (made.path / "my_module.py").read_text() == OWN
    assert not torch.equal(made.model.prior.loc.data, torch.full((2,), 0.5))
    with pytest.raises(TrustError, match=r"my_module:MyPrior.*--trust"):
        Run.load(made.path)
    assert same(Run.load(made.path, trust=True).model, made.model)
    again = pl.train(Experiment.load(made.path / "experiment.yaml"), tmp_path / "again", progress=False)
    assert same(again.model, made.model)

    executed = tmp_path / "executed"
    (made.path / "my_module.py").write_text(f"open({str(executed)!r}, 'w')\n" + OWN)
    with pytest.raises(TrustError, match="is not the file that my_module:MyPrior was trained with"):
        Run.load(made.path, trust=True)
    (made.path / "my_module.py").unlink()
    with pytest.raises(TrustError, match="it is not there"):
        Run.load(made.path, trust=True)
    assert not executed.exists()


def test_without_trust_nothing_outside_the_package_is_imported(tmp_path: Path, bits: Path) -> None:
    made = trained(bits, tmp_path / "run")
    fields = made.declaration
    fields["model"]["vae"]["decoder"] = "antigravity:fly_somewhere"
    (made.path / "experiment.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(TrustError, match="antigravity:fly_somewhere"):
        Run.load(made.path)
    with pytest.raises(InputError, match=r"holds no components\.antigravity\.py"):
        Run.load(made.path, trust=True)
    assert "antigravity" not in sys.modules


def test_files_of_one_name_are_told_apart(tmp_path: Path, bits: Path) -> None:
    one = own(tmp_path, bits, "one")
    other = own(tmp_path, bits, "other", OWN.replace("SCALE = 1.0", "SCALE = 3.0"))
    runs = [pl.train(Experiment.load(file), file.parent / "run", progress=False).path for file in (one, other)]
    scales = [Run.load(path, trust=True).model.prior().stddev[0].item() for path in runs]
    assert scales == [1.0, 3.0]


def test_a_file_that_changes_during_training_is_recorded_as_it_was(tmp_path: Path, bits: Path) -> None:
    file = own(tmp_path, bits)

    class Editing(pl.Callback):
        def on_epoch(self, fit: pl.Fit) -> None:
            (file.parent / "my_module.py").write_text("raise SystemError")

    made = pl.train(Experiment.load(file), tmp_path / "run", progress=False, callbacks=[Editing()])
    assert (made.path / "my_module.py").read_text() == OWN


def test_a_density_of_an_older_run_is_the_one_of_today(tmp_path: Path) -> None:
    """Older evaluations say "density" and "density (dequantized)" alone, and are compared with today's."""
    file = tmp_path / "images.npy"
    np.save(file, np.random.default_rng(0).integers(256, size=(60, 4, 4)).astype(np.uint8))
    for declared_data, old, now in (
        (str(file), "density", "density (of [0, 1])"),
        (
            {str(file): {"dequantize": "uniform"}},
            "density (dequantized)",
            "density (of [0, 1], dequantized over 256 levels)",
        ),
    ):
        model = {"vae": {"latent_dim": 2, "likelihood": "normal"}}
        made = trained(file, tmp_path / f"run {len(old)}", data=declared_data, model=model)
        found = pl.evaluate(made.model, made.load_data(), particles=2)
        path = made.write_evaluation(found)
        assert made.evaluation is not None
        assert made.evaluation["measure"] == found.measure == now
        path.write_text(path.read_text().replace(now, old))
        assert json.loads(path.read_text())["measure"] == old
        assert Run.load(made.path).evaluation == run.scores(found)


def test_another_run_is_not_overwritten_unless_it_is_said(tmp_path: Path, bits: Path) -> None:
    made = trained(bits, tmp_path / "run")
    weights = (made.path / "weights.safetensors").read_bytes()
    with pytest.raises(InputError, match="is not empty"):
        trained(bits, made.path)
    (made.path / "evaluation.json").write_text("{}")
    (made.path / "notes.txt").write_text("mine")
    with pytest.raises(InputError):  # a failure before the first epoch leaves the old run
        pl.train(declared(bits, objective={"elbo": {}}, scheduler="StepLR"), made.path, overwrite=True, progress=False)
    assert (made.path / "weights.safetensors").read_bytes() == weights
    pl.train(declared(bits, seed=1), made.path, overwrite=True, progress=False)
    assert (made.path / "weights.safetensors").read_bytes() != weights
    assert not (made.path / "evaluation.json").exists()
    assert (made.path / "notes.txt").read_text() == "mine"

    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a run, so it is not overwritten"):
        pl.train(declared(bits), other, overwrite=True, progress=False)
    with pytest.raises(InputError, match="cannot be the directory of a run: Not a directory"):
        trained(bits, other / "notes.txt" / "run")
    with pytest.raises(InputError, match="cannot be the directory of a run: File exists"):
        trained(bits, other / "notes.txt")


@pytest.mark.parametrize("broken", range(1, 10))
def test_a_crash_at_any_write_leaves_a_finished_epoch(
    tmp_path: Path, bits: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    calls, replace = 0, os.replace

    def failing(source: str, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == broken:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(run.os, "replace", failing)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        trained(bits, tmp_path / "run", epochs=3)
    assert not list(tmp_path.glob("run/.*"))
    if broken <= 4:  # experiment, rows, record, weights of the first epoch
        with pytest.raises(InputError, match=r"is not a run|cannot be read|no weights yet"):
            Run.load(tmp_path / "run")
        return
    loaded = Run.load(tmp_path / "run")
    assert loaded.record["finished"] is False
    experiment = declared(bits, epochs=3)
    finished = []

    class Keeping(pl.Callback):
        def on_epoch(self, fit: pl.Fit) -> None:
            finished.append({name: value.clone() for name, value in fit.model.state_dict().items()})

    data = experiment.load_data()
    experiment.fit(experiment.build(data), data, progress=False, callbacks=[Keeping()])
    held = loaded.model.state_dict()
    assert any(all(torch.equal(held[name], state[name]) for name in state) for state in finished)


def test_a_killed_training_leaves_a_run(tmp_path: Path, bits: Path) -> None:
    path = tmp_path / "run"
    (tmp_path / "e.yaml").write_text(declared(bits, epochs=100_000, compile="never").to_yaml())
    code = "import sys; from pathlib import Path; import pyrolatent as pl; " + (
        "pl.train(pl.Experiment.load(Path(sys.argv[1])), sys.argv[2], progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "e.yaml"), str(path)])
    try:
        for _ in range(1500):
            if (path / "metrics.jsonl").is_file():
                break
            time.sleep(0.1)
        time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    loaded = Run.load(path)
    assert loaded.history[-1]["epoch"] == len(loaded.history) >= 1
    assert all(torch.isfinite(value).all() for value in loaded.model.state_dict().values())
    pl.train(declared(bits), path, overwrite=True, progress=False)


def test_early_stopping_keeps_the_best_weights_and_says_so(tmp_path: Path, bits: Path) -> None:
    made = trained(bits, tmp_path / "run", epochs=40, patience=2, optimizer={"Adam": {"lr": 0.3}})
    best = max(made.history, key=lambda row: row["validation_elbo"])["epoch"]
    assert made.record["best_epoch"] == best < len(made.history) < 40
    assert same(Run.load(made.path).model, made.model)


@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        ("weights.safetensors", 100, "weights.safetensors cannot be read"),
        ("weights.safetensors", 0, "weights.safetensors cannot be read"),
        ("weights.safetensors", None, "holds no weights yet"),
        ("record.json", 100, "record.json cannot be read"),
        ("record.json", b"{}", "record.json holds no data.event_shape"),
        ("record.json", b"[]", "record.json holds no data.event_shape"),
        ("record.json", None, "record.json cannot be read"),
        ("experiment.yaml", b"model: [", "is not valid YAML"),
        ("experiment.yaml", b"- 3", "holds a list"),
        ("experiment.yaml", None, "is not a run"),
    ],
)
def test_refuses_a_broken_run_in_one_line(
    tmp_path: Path, bits: Path, name: str, contents: int | bytes | None, words: str
) -> None:
    file = trained(bits, tmp_path / "run", epochs=1).path / name
    if contents is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:contents] if isinstance(contents, int) else contents)
    with pytest.raises(InputError) as error:
        Run.load(tmp_path / "run")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_refuses_what_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is not a run"):
            Run.load(path)


def test_truncated_metrics_and_evaluation_are_refused(tmp_path: Path, bits: Path) -> None:
    made = trained(bits, tmp_path / "run", epochs=1)
    for name in ("metrics.jsonl", "evaluation.json"):
        (made.path / name).write_text('{"epoch": ')
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be read after line"):
        _ = made.history
    with pytest.raises(InputError, match=r"evaluation\.json cannot be read"):
        _ = made.evaluation


def test_refuses_data_that_have_changed_naming_both_hashes(tmp_path: Path, bits: Path) -> None:
    made = trained(bits, tmp_path / "run", epochs=1)
    was = pl.load_data(bits).record["evaluation_sha256"][:12]
    np.save(bits, 1 - np.load(bits))
    now = pl.load_data(bits).record["evaluation_sha256"][:12]
    with pytest.raises(InputError, match=f"{was}.*{now}"):
        made.load_data()


def test_interruption_before_the_first_epoch_leaves_nothing(tmp_path: Path, bits: Path) -> None:
    class Interrupting(Experiment):
        def fit(self, *args: object, **kwargs: object) -> pl.Fit:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pl.train(Interrupting(data=str(bits)), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
