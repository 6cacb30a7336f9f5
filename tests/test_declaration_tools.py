"""Declarations written out, as YAML, searched for import paths, and their JSON schema."""

import json
from typing import Any

import pytest

from pyrolatent import InputError, declaration
from pyrolatent.declaration import build, complete, import_paths, plain, schema
from pyrolatent.experiments.experiment import experiment_schema
from pyrolatent.models.components.networks import MLP
from pyrolatent.models.components.priors import NormalPrior

# Written out.


def test_complete_writes_defaults_out_and_rebuilds_the_same() -> None:
    short = {"vae": {"latent_dim": 2, "decoder": {"mlp": {"hidden": (3,)}}}}
    full = complete("model", short)
    assert full["vae"].keys() | {"missingness", "corrupt"} == declaration.registered("model")["vae"].options.keys()
    assert full["vae"]["encoder"]["mlp"].keys() == declaration.registered("network")["mlp"].options.keys()
    assert full["vae"]["decoder"] == {"mlp": full["vae"]["encoder"]["mlp"] | {"hidden": (3,)}}
    assert full["vae"]["posterior"] == {"normal": {"scale": "predicted", "min_scale": 1e-3, "scale_by": "softplus"}}
    assert complete("model", full) == full
    assert str(build("model", full, event_shape=(4,))) == str(build("model", short, event_shape=(4,)))


def test_complete_leaves_the_defaults_of_other_libraries_to_them(own: str) -> None:
    assert complete("optimizer", "Adam") == "Adam"
    assert complete("optimizer", {"Adam": {"lr": 0.1}}) == {"Adam": {"lr": 0.1}}
    assert complete("prior", f"{own}:Scaled") == f"{own}:Scaled"
    prior = NormalPrior(2)
    assert complete("prior", prior) is prior


def test_plain_is_what_yaml_can_say() -> None:
    said = {"mlp": {"hidden": (3, 4), "dropout": None, "bias": True, "gain": 0.5}}
    assert plain(said) == {"mlp": {"hidden": [3, 4], "dropout": None, "bias": True, "gain": 0.5}}
    with pytest.raises(InputError, match="an instance of NormalPrior cannot be written as a declaration"):
        plain({"vae": {"prior": NormalPrior(2)}})


@pytest.mark.parametrize(
    ("declared", "paths"),
    [
        ("normal", []),
        ("my.module:Prior", ["my.module:Prior"]),
        ("http://x:y z", []),
        ({"vae": {"prior": {"mine:P": {"of": ["mine:Q", 3]}}, "encoder": "mlp"}}, ["mine:P", "mine:Q"]),
    ],
)
def test_import_paths_are_found_wherever_they_stand(declared: Any, paths: list[str]) -> None:
    assert import_paths(declared) == paths


# The schema.

ACCEPTED = [
    {"vae": {"latent_dim": 2}},
    {"vae": {"latent_dim": 2, "prior": {"normal": None}, "likelihood": {"normal": {"scale": 0.1}}}},
    {"vae": {"latent_dim": 2, "prior": "mine:Prior", "encoder": {"mine.nets:Net": {"depth": 3}}}},
    "mine:Model",
]
REFUSED = [
    "vae",
    {"vae": {}},
    {"vae": {"latent_dim": 0}},
    {"vae": {"latent_dim": 2, "decodr": "mlp"}},
    {"vae": {"latent_dim": 2, "prior": "nromal"}},
    {"vae": {"latent_dim": 2, "likelihood": {"normal": {"scale": -1}}}},
]


def test_the_schema_has_each_component_with_its_options() -> None:
    def refs(node: Any) -> set[str]:
        if isinstance(node, dict):
            return {node["$ref"]} if "$ref" in node else set().union(*map(refs, node.values()))
        return set().union(*map(refs, node)) if isinstance(node, list) else set()

    whole = json.loads(json.dumps(experiment_schema()))
    assert refs(whole) == {f"#/$defs/{kind}" for kind in whole["$defs"]}
    for kind in declaration.kinds():
        alternatives = schema(kind)["anyOf"]
        options = {name: item for one in alternatives for name, item in one.get("properties", {}).items()}
        assert options.keys() == declaration.registered(kind).keys()
        for name, entry in declaration.registered(kind).items():
            if entry.whole:
                value = declaration.options_schema(entry)["properties"][entry.whole]
                assert options[name] == {"description": entry.summary, **value}
                continue
            assert options[name]["properties"].keys() == entry.options.keys()
            needed = [option for option, parameter in entry.options.items() if parameter.default is parameter.empty]
            assert options[name]["required"] == needed
            assert (name in alternatives[0]["enum"]) == (not needed)


@pytest.mark.parametrize(("declared", "valid"), [(one, True) for one in ACCEPTED] + [(one, False) for one in REFUSED])
def test_the_schema_accepts_what_check_accepts(declared: Any, valid: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(experiment_schema())
    assert validator.is_valid({"model": declared}) == valid


def test_the_docstring_of_a_component_is_its_description() -> None:
    (described,) = [
        one["properties"]["mlp"] for one in schema("network")["anyOf"] if "mlp" in one.get("properties", {})
    ]
    assert described["description"].startswith("Multi-layer perceptron")
    assert (MLP.__doc__ or "").startswith(described["description"])
