"""An option that is given is used, or refused in one line that says which options are taken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pyrolatent import (
    PCA,
    VAE,
    Annealing,
    Autoencoder,
    Data,
    InputError,
    LinearGaussian,
    RestrictedBoltzmannMachine,
    Run,
    evaluate,
    fit,
    load_data,
    sample,
)
from pyrolatent.cli.commands import EVALUATED, app
from pyrolatent.errors import validate_options
from pyrolatent.experiments.sweep import sweep

SMALL: dict[str, Any] = {"encoder": {"mlp": {"hidden": [4]}}, "decoder": {"mlp": {"hidden": [4]}}}
BITS = np.random.default_rng(0).integers(2, size=(60, 22)).astype(np.uint8)
MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "vae": (lambda: VAE((22,), latent_dim=2, **SMALL), "elbo"),
    "exact": (lambda: RestrictedBoltzmannMachine((22,), hidden=2), "pcd"),
    "annealed": (lambda: RestrictedBoltzmannMachine((22,), hidden=22), "pcd"),
    "autoencoder": (lambda: Autoencoder((22,), latent_dim=2, **SMALL), "squared_error"),
}
VALUES = {
    "--method": "importance", "--particles": 5, "--size": 5, "--chains": 5, "--temperatures": 5, "--ais": None,
    "--raise": 2, "--kernel": "gibbs",
}  # fmt: skip
WAYS = {
    "by importance sampling": ("vae", []),
    "by annealing latents": ("vae", ["--method", "annealed"]),
    "by exact log Z": ("exact", []),
    "by exact log Z with RAISE": ("exact", ["--raise", "2"]),
    "by annealed log Z": ("annealed", []),
    "by squared error": ("autoencoder", []),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("options")
    np.save(folder / "bits.npy", BITS)
    data = load_data(folder / "bits.npy")
    for name, (build, objective) in MODELS.items():
        Run.save(folder / name, fit(build(), data, objective=objective, epochs=1, progress=False))
    return {name: folder / name for name in MODELS}


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(BITS)


def call(*args: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args if arg is not None])
    return result.exit_code, " ".join(result.output.split())


UNUSED = [(way, option) for way, takes in EVALUATED.items() for option in VALUES if option not in takes]


@pytest.mark.parametrize(("way", "option"), UNUSED)
def test_evaluate_refuses_what_it_has_no_use_for(way: str, option: str, runs: dict[str, Path]) -> None:
    name, asked = WAYS[way]
    code, said = call("evaluate", runs[name], *asked, option, VALUES[option])
    assert code == 2
    assert said.endswith(f"{way} takes {', '.join(EVALUATED[way]) or 'no such option'}; leave {option} out")


@pytest.mark.parametrize("way", EVALUATED)
def test_evaluate_takes_what_it_says(way: str, runs: dict[str, Path]) -> None:
    name, asked = WAYS[way]
    options = [part for option in EVALUATED[way] if option not in asked for part in (option, VALUES[option])]
    if way == "by exact log Z":
        options = []  # each of its two makes it another
    code, said = call("evaluate", runs[name], *asked, *options)
    assert code == 0, said


@pytest.mark.parametrize(("name", "options"), [("vae", "sweeps"), ("vae", "kernel"), ("exact", "sweeps")])
def test_sample_refuses_options_of_chains_that_are_not_run(name: str, options: str, runs: dict[str, Path]) -> None:
    value: Any = {"sweeps": 3, "kernel": "gibbs"}[options]
    code, said = call("sample", runs[name], f"--{options}", value)
    assert code == 2
    assert f"leave {options} out" in said
    with pytest.raises(InputError, match=f"takes .*; leave {options} out"):
        sample(Run.load(runs[name]).model, 3, **{options: value})


def test_sample_takes_options_of_chains_that_are_run(runs: dict[str, Path]) -> None:
    assert call("sample", runs["annealed"], "--sweeps", 2)[0] == 0
    assert call("sample", runs["exact"], "--sweeps", 2, "--kernel", "gibbs")[0] == 0


def test_show_and_train_refuse_what_they_have_no_use_for(runs: dict[str, Path], tmp_path: Path) -> None:
    assert "takes --trust; leave --data-dir out" in call("show", runs["vae"], "--data-dir", tmp_path)[1]
    written = runs["vae"] / "experiment.yaml"
    assert "takes --data-dir, --memory; leave --trust out" in call("show", written, "--trust")[1]
    for name in ("exact", "autoencoder"):
        output = tmp_path / name
        code, said = call("train", runs[name] / "experiment.yaml", "--particles", 5, "--output", output)
        assert code == 2
        assert "takes no such option; leave --particles out" in said
        assert not output.exists()
    with pytest.raises(
        InputError, match="a sweep over models without a posterior takes no such option; leave particles out"
    ):
        sweep({"model": {"rbm": {"hidden": 2}}, "objective": "pcd"}, {"epochs": [1, 2]}, tmp_path, particles=5)


@pytest.mark.parametrize("option", ["particles", "batch_size", "compile", "on_batch"])
def test_an_energy_takes_no_options_of_latents(option: str, data: Data) -> None:
    value = {"compile": "never", "on_batch": print}.get(option, 5)
    for name, takes in (("annealed", "RestrictedBoltzmannMachine takes annealing"), ("exact", "takes no such option")):
        with pytest.raises(InputError, match=f"{takes}; leave {option} out"):
            evaluate(MODELS[name][0](), data, **{option: value})


def test_latents_and_exact_log_z_take_no_annealing(data: Data) -> None:
    with pytest.raises(InputError, match="VAE takes particles, batch_size, on_batch, compile; leave annealing out"):
        evaluate(MODELS["vae"][0](), data, annealing=Annealing())
    exact = MODELS["exact"][0]()
    with pytest.raises(InputError, match=r"but for Annealing\(always=True\), takes no such option; leave annealing"):
        evaluate(exact, data, annealing=Annealing(chains=5, temperatures=5))
    assert evaluate(exact, data, annealing=Annealing(chains=5, temperatures=5, always=True)).chains == 5
    with pytest.raises(InputError, match="compile was 'yes'; valid: auto, always, never"):
        evaluate(MODELS["vae"][0](), data, compile="yes")  # type: ignore[arg-type]


SETTINGS: dict[str, Any] = {
    "epochs": 5, "batch_size": 5, "optimizer": {"SGD": {"lr": 0.1}}, "scheduler": {"StepLR": {"step_size": 1}},
    "clip_norm": 1.0, "patience": 3, "compile": "always", "precision": "bf16",
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_solutions_take_no_settings_of_gradient_steps(setting: str, data: Data) -> None:
    given = {setting: SETTINGS[setting]}
    with pytest.raises(InputError, match=f"PCA by closed_form takes objective, seed, device; leave {setting} out"):
        fit(PCA((22,), latent_dim=2), data, objective="closed_form", progress=False, **given)
    model = LinearGaussian((22,), latent_dim=2)
    if setting in ("epochs", "patience"):
        assert len(fit(model, data, objective="em", progress=False, **{"epochs": 4} | given).history) <= 5
        return
    with pytest.raises(InputError, match=f"by em takes .*; leave {setting} out"):
        fit(model, data, objective="em", progress=False, **given)


def test_an_energy_has_no_precision(data: Data) -> None:
    with pytest.raises(InputError, match=r"RestrictedBoltzmannMachine by pcd takes .*; leave precision out"):
        fit(MODELS["exact"][0](), data, objective="pcd", precision="bf16", progress=False)


def test_data_of_ones_own_are_not_looked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "bits.npy", BITS)
    for source in (BITS, tmp_path / "bits.npy"):
        with pytest.raises(
            InputError, match=r"data_dir is where named data sets are, but .* is your own; leave it out"
        ):
            load_data(source, data_dir=tmp_path)


def test_what_is_neither_none_nor_false_is_given() -> None:
    options = {"a": 0, "b": None, "c": False}
    assert validate_options("it", ("a",), options) == {"a": 0}
    with pytest.raises(InputError, match="it takes b, c; leave a out"):
        validate_options("it", ("b", "c"), options)
