"""Experiments: what is written is what is read, and what cannot be right is refused in one line that says why."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pyrolatent import Experiment, InputError, load_data
from pyrolatent.experiments.experiment import experiment_schema, override, parse_value

OWN = """
from pyrolatent.models.components.priors import NormalPrior

class Shifted(NormalPrior):
    def __init__(self, latent_dim: int, *, by: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.loc += by
"""


def written(tmp_path: Path, text: str | bytes, name: str = "e.yaml") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def state(experiment: Experiment) -> dict[str, torch.Tensor]:
    return experiment.build(load_data("digits")).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_defaults_are_a_vae_of_ten_latents_on_digits() -> None:
    experiment = Experiment()
    assert experiment.declaration["model"]["vae"]["latent_dim"] == 10
    assert experiment.declaration["data"] == "digits"


def test_yaml_round_trip_rebuilds_the_model_bit_for_bit(tmp_path: Path) -> None:
    experiment = Experiment(
        model={"vae": {"latent_dim": 3, "encoder": {"mlp": {"hidden": [7]}}}}, optimizer={"Adam": {"lr": 1e-5}}, seed=4
    )
    read = Experiment.load(written(tmp_path, experiment.to_yaml()))
    assert read.declaration == experiment.declaration == yaml.safe_load(experiment.to_yaml())
    assert same(state(read), state(experiment))
    assert not same(state(read), state(Experiment.load(tmp_path / "e.yaml", {"seed": 5})))


def test_declaration_writes_out_the_defaults_of_this_package() -> None:
    declaration = Experiment().declaration
    network = declaration["model"]["vae"]["encoder"]["mlp"]
    assert (network["hidden"], network["activation"], network["dropout"]) == ([200], "relu", 0.0)
    assert declaration["objective"] == {"analytic_elbo": {"particles": 1, "beta": 1.0, "free_bits": 0.0}}
    assert declaration["epochs"] == 300
    assert declaration["optimizer"] == {"Adam": {"lr": 3e-3}}
    assert declaration["seed"] == 0
    assert list(declaration)[:3] == ["model", "data", "objective"]


def test_building_leaves_the_random_state_alone() -> None:
    data = load_data("digits")
    before = torch.get_rng_state()
    Experiment().build(data)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", ["'epoch'", "did you mean 'epochs'"]),
        ("model: {vea: {latent_dim: 2}}", ["'vea'", "did you mean 'vae'"]),
        ("model: {vae: {latent_dims: 2}}", ["model.vae", "'latent_dims'", "did you mean 'latent_dim'"]),
        ("model: {vae: {latent_dim: 2, prior: norml}}", ["model.vae.prior", "'norml'", "did you mean 'normal'"]),
        ("model: {vae: {latent_dim: two}}", ["model.vae.latent_dim", "'two'", "integer"]),
        ("model: {vae: {latent_dim: 0}}", ["model.vae.latent_dim", "0", "greater than 0"]),
        ("model: vae", ["model.vae", "'latent_dim'"]),
        ("model: {vae: {}, other: {}}", ["model", "2", "vae, other"]),
        ("model: null", ["model", "null"]),
        ("epochs: null", ["epochs", "null"]),
        ("epochs: many", ["epochs", "'many'", "integer"]),
        ("device: gpu", ["device", "'gpu'", "'cuda'"]),
        ("data: {digits: {binarise: static}}", ["data.digits", "did you mean 'binarize'"]),
        ("data: {digits: {binarize: sttic}}", ["data.digits.binarize", "'sttic'", "'static'"]),
        ("optimizer: {Adam: {learning_rate: 1}}", ["optimizer.Adam", "'learning_rate'"]),
        ("objective: {elbo: {particles: 0}}", ["objective.elbo.particles", "0"]),
        ("model: [vae", ["line 1", "','"]),
        ("- model", ["list", "mapping"]),
        ("3: 4", ["3", "name"]),
        ("model: {vae: {latent_dim: 2, 3: 4}}", ["3", "name"]),
        (b"\x93\x00\xff\xfe", ["not a text file"]),
        ("model: 'a\x00b'", ["not valid YAML"]),
    ],
)
def test_refuses_a_mistake_in_one_line(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        Experiment.load(written(tmp_path, text))
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(("text", "word"), [("data: digit", "did you mean 'digits'"), ("data: 3", "int")])
def test_refuses_data_that_are_not_there(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        Experiment.load(written(tmp_path, text)).load_data()


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: No such file"):
        Experiment.load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="Is a directory"):
        Experiment.load(tmp_path)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("epochs=5", 5),
        ("model.vae.latent_dim=20", 20),
        ("model.vae.encoder.mlp.hidden=[20, 10]", [20, 10]),
        ("model.vae.prior=normal", "normal"),
        ("data.digits.binarize=static", "static"),
        ("optimizer.Adam.lr=1e-3", 1e-3),
        ("optimizer.Adam.lr=2.5E+0", 2.5),
        ("optimizer.SGD.lr=.5", 0.5),
        ("objective.elbo.particles=5", 5),
    ],
)
def test_overrides_set_what_they_name(assignment: str, value: object) -> None:
    path, _, text = assignment.partition("=")
    fields = override({}, {path: parse_value(text)})
    place = Experiment(**fields).declaration
    for key in path.split("."):
        place = place[key]
    if isinstance(place, dict):
        (place,) = place
    assert place == value
    assert type(place) is type(value)


def test_override_replaces_one_name_by_another_and_keeps_the_rest() -> None:
    fields = {"optimizer": {"Adam": {"lr": 0.1}}, "model": {"vae": {"latent_dim": 5, "encoder": {"mlp": {}}}}}
    assert override(fields, {"optimizer.SGD.lr": 1.0})["optimizer"] == {"SGD": {"lr": 1.0}}
    assert override(fields, {"model.vae.latent_dim": 2})["model"] == {"vae": {"latent_dim": 2, "encoder": {"mlp": {}}}}
    assert override({"data": "digits"}, {"data.digits.seed": 3})["data"] == {"digits": {"seed": 3}}
    assert fields["optimizer"] == {"Adam": {"lr": 0.1}}
    with pytest.raises(InputError, match=r"'model\.\.x' is not a field"):
        override(fields, {"model..x": 1})


@pytest.mark.parametrize("declared", ["small.npy", "{small.npy: {seed: 3}}", "digits.npy"])
def test_relative_data_paths_are_looked_for_beside_the_file(tmp_path: Path, declared: str) -> None:
    for name in ("small.npy", "digits.npy"):
        np.save(tmp_path / name, np.eye(30, 4, dtype=np.uint8))
    data = Experiment.load(written(tmp_path, f"data: {declared}")).load_data()
    assert data.event_shape == (4,)


def test_a_named_data_set_is_not_a_folder_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    assert Experiment.load(written(tmp_path, "data: digits")).load_data().event_shape == (1, 8, 8)


def test_component_of_a_file_beside_the_experiment(tmp_path: Path) -> None:
    written(tmp_path, OWN, "shifts.py")
    text = "model: {vae: {latent_dim: 2, prior: {'shifts:Shifted': {by: 3}}}}"
    experiment = Experiment.load(written(tmp_path, text))
    assert experiment.build(load_data("digits")).prior.loc.tolist() == [3.0, 3.0]
    assert experiment.sources == {"shifts.py": OWN.encode()}
    written(tmp_path, "raise SystemError", "shifts.py")  # what was read is what is recorded
    assert experiment.sources == {"shifts.py": OWN.encode()}
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("source", "prior", "words"),
    [
        (OWN, "shifts:Shiftd", ["did you mean 'Shifted'"]),
        (OWN, "{'shifts:Shifted': {bye: 3}}", ["'bye'", "did you mean 'by'"]),
        (OWN, "{'shifts:Shifted': {by: far}}", ["by", "'far'", "number"]),
        (OWN, "nowhere_at_all:Shifted", ["nowhere_at_all"]),
        ("1 +", "shifts:Shifted", ["shifts.py", "SyntaxError"]),
        ("import nowhere_at_all", "shifts:Shifted", ["shifts.py", "nowhere_at_all"]),
        ("Shifted = 3", "shifts:Shifted", ["a class was expected"]),
    ],
)
def test_refuses_a_component_that_cannot_be_imported(tmp_path: Path, source: str, prior: str, words: list[str]) -> None:
    written(tmp_path, source, "shifts.py")
    with pytest.raises(InputError) as error:
        Experiment.load(written(tmp_path, f"model: {{vae: {{latent_dim: 2, prior: {prior}}}}}"))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_byte_code_beside_a_component_is_not_executed(tmp_path: Path) -> None:
    import importlib.util
    import py_compile

    file = written(tmp_path, OWN.replace("+= by", "-= by"), "shifts.py")
    compiled = importlib.util.cache_from_source(str(file))
    py_compile.compile(str(file), compiled, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    written(tmp_path, OWN, "shifts.py")
    experiment = Experiment.load(written(tmp_path, "model: {vae: {latent_dim: 1, prior: 'shifts:Shifted'}}"))
    assert experiment.build(load_data("digits")).prior.loc.tolist() == [1.0]


def test_what_has_no_spelling_is_null() -> None:
    experiment = Experiment(data=np.eye(30, 4, dtype=np.uint8))
    assert experiment.declaration["data"] is None
    with pytest.raises(InputError, match="data was given as null"):
        Experiment(data=None)


def test_schema_is_json_and_knows_every_field() -> None:
    schema = json.loads(json.dumps(experiment_schema()))
    assert schema["properties"].keys() >= Experiment().declaration.keys()
    assert set(schema["$defs"]) >= {"model", "prior", "likelihood", "posterior", "objective", "optimizer"}


@pytest.mark.usefixtures("few_cells", "few_steps")
def test_the_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (python,), (declared,) = (re.findall(rf"```{language}\n(.*?)```", text, re.S) for language in ("python", "yaml"))
    quick = python.replace("epochs=20", "epochs=1").replace(
        'split="test")  # .verdicts', 'split="test", size=50, simulations=60, replicates=99, annealed=0)  # .verdicts'
    )
    assert "annealed=0" in quick  # chains take their time
    exec(quick, {})
    assert (tmp_path / "runs/first/weights.safetensors").is_file()
    experiment = Experiment.load(written(tmp_path, declared), {"epochs": 1})
    experiment.fit(experiment.build(experiment.load_data()), experiment.load_data(), progress=False)


def test_the_directory_of_an_experiment_may_be_a_text(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 2)))
    assert Experiment(data="x.npy", directory=str(tmp_path)).load_data().event_shape == (2,)
