"""Declarations: what they may say is what the signatures say, and a refusal names the nearest way out."""

import json
from typing import Any

import pytest
from torch import nn

from pyrolatent import VAE, InputError, declaration
from pyrolatent.declaration import build, component, import_path, importing, plain, validate
from pyrolatent.models.components.priors import NormalPrior


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Components that the test registers are forgotten after it."""
    copied = {kind: declaration.registered(kind) for kind in declaration.kinds()}
    monkeypatch.setattr(declaration, "_registry", copied)


# What can be declared.


def test_by_name() -> None:
    built = build("prior", "normal", latent_dim=3)
    assert type(built) is NormalPrior
    assert built.loc.shape == (3,)
    assert built.declaration == "normal"


@pytest.mark.parametrize("options", [{}, None])
def test_a_mapping_without_options_is_the_name(options: dict[str, Any] | None) -> None:
    assert build("prior", {"normal": options}, latent_dim=3).declaration == "normal"
    assert validate("prior", {"normal": options}) == "normal"


def test_by_name_with_options() -> None:
    built = build("network", {"mlp": {"hidden": [5, 4]}}, input_shape=(3,), output_shape=(2,))
    assert built.widths == [3, 5, 4, 2]
    assert built.declaration == {"mlp": {"hidden": (5, 4)}}


def test_by_import_path(own: str) -> None:
    path = f"{own}:Scaled"
    built = build("prior", {path: {"width": 3}}, latent_dim=2)
    assert (type(built).__name__, built.latent_dim, built.width) == ("Scaled", 2, 3.0)
    assert built.declaration == {path: {"width": 3.0}}
    assert build("prior", path, latent_dim=2).declaration == path


def test_an_instance_is_used_as_it_is() -> None:
    prior = NormalPrior(4)
    assert build("prior", prior, latent_dim=2) is prior
    assert validate("prior", prior) is prior


def test_an_importer_replaces_python_s_own_within_its_context(own: str) -> None:
    class Mine(nn.Module):
        def __init__(self, latent_dim: int) -> None:
            super().__init__()

    with importing(lambda path: Mine):
        assert type(build("prior", f"{own}:Scaled", latent_dim=2)) is Mine
    assert type(build("prior", f"{own}:Scaled", latent_dim=2)).__name__ == "Scaled"


@pytest.mark.parametrize(
    "options",
    [
        {"latent_dim": 2},
        {"latent_dim": 2, "decoder": {"mlp": {"hidden": (3,)}}},
        {"latent_dim": 2, "likelihood": {"normal": {"scale": 0.5}}},
    ],
)
def test_a_model_rebuilds_from_its_declaration(options: dict[str, Any]) -> None:
    model = VAE((4,), **options)
    assert model.declaration == {"vae": options}
    again = build("model", json.loads(json.dumps(plain(model.declaration))), event_shape=(4,))
    assert str(again) == str(model)
    assert again.declaration == model.declaration
    assert {n: p.shape for n, p in again.state_dict().items()} == {n: p.shape for n, p in model.state_dict().items()}


# Positional parameters are supplied by the model, keyword-only ones declared by the user.


def test_what_is_supplied_goes_to_the_parameters_of_that_name(own: str) -> None:
    built = build("prior", f"{own}:Content", latent_dim=2, event_shape=(4,))
    assert (built.latent_dim, built.tempo) == (2, 2.0)
    assert build("prior", f"{own}:Content", latent_dim=2, tempo=7.0).tempo == 7.0


def test_a_positional_parameter_that_nobody_supplies(own: str) -> None:
    with pytest.raises(InputError) as refusal:
        build("prior", f"{own}:Asking", latent_dim=2)
    for part in ("'tempo'", "latent_dim", "make 'tempo' keyword-only"):
        assert part in str(refusal.value)


def test_a_positional_parameter_cannot_be_declared(own: str) -> None:
    with pytest.raises(InputError, match="has no option 'latent_dim'; valid: width; options are keyword-only"):
        validate("prior", {f"{own}:Scaled": {"latent_dim": 2}})
    with pytest.raises(InputError, match="has no option 'tempo'; it takes none; options are keyword-only"):
        validate("prior", {f"{own}:Content": {"tempo": 2}})


def test_a_registered_class_validates_when_it_is_constructed_directly(registry: None) -> None:
    @component("wide", "prior")
    class Wide(nn.Module):
        def __init__(self, latent_dim: int, *, width: float = 1.0) -> None:
            super().__init__()
            self.width = width

    assert Wide(2, width=3).declaration == {"wide": {"width": 3.0}}
    assert Wide(latent_dim=2).declaration == "wide"
    with pytest.raises(InputError, match=r"wide has no option 'widht'; valid: width; did you mean 'width'\?"):
        Wide(2, widht=3)
    assert build("prior", {"wide": {"width": 2}}, latent_dim=1).width == 2.0


# Refusals.


@pytest.mark.parametrize(
    ("kind", "declared", "message"),
    [
        ("prior", "nromal", r"there is no prior 'nromal' \(prior\); valid: .*normal.*; did you mean 'normal'\?"),
        ("model", {"vea": {}}, r"there is no model 'vea' \(model\); valid: .*vae.*; did you mean 'vae'\?"),
        (
            "model",
            {"vae": {"latent_dim": 2, "prior": "?"}},
            r"there is no prior '\?' \(model.vae.prior\); valid: [^;]*; .* module:Class$",
        ),
        (
            "model",
            {"vae": {"latent_dim": 2, "decodr": "mlp"}},
            r"model.vae has no option 'decodr'; valid: latent_dim, prior, .*; did you mean 'decoder'\?",
        ),
        ("model", "vae", "model.vae needs the option 'latent_dim', which was not given"),
        (
            "model",
            {"vae": {"latent_dim": "two"}},
            "model.vae.latent_dim was given 'two': input should be a valid integer",
        ),
        ("model", {"vae": {"latent_dim": 0}}, "model.vae.latent_dim was given 0: input should be greater than 0"),
        ("model", {"vae": {"latent_dim": 2.5}}, "model.vae.latent_dim was given 2.5: input should be a valid integer"),
        (
            "model",
            {"vae": {"latent_dim": 2, "encoder": {"mlp": {"hidden": [3, -1]}}}},
            r"model.vae.encoder.mlp.hidden was given \[3, -1\]: input should be greater than 0",
        ),
        ("network", {"mlp": {"activation": "rleu"}}, "network.mlp.activation was given 'rleu': input should be 'relu'"),
        ("likelihood", {"normal": {"scale": -1}}, "likelihood.normal.scale was given -1: .*greater than 0"),
        ("prior", {"normal": {}, "vamp": {}}, "prior takes one name, .* but was given 2: normal, vamp"),
        ("prior", {}, "prior takes one name, or one name with its options, but was given 0: none"),
        ("prior", {"normal": 3}, "prior.normal takes its options as a mapping, but was given 3"),
        ("prior", {"normal": [1]}, r"prior.normal takes its options as a mapping, but was given \[1\]"),
        ("optimizer", "Adm", r"there is no optimizer 'Adm' \(optimizer\); valid: .*; did you mean 'Adam'\?"),
        ("objective", {"Trace_ELBO": {"num_particle": 2}}, r"has no option 'num_particle'.* mean 'num_particles'\?"),
    ],
)
def test_refusals_say_where_what_and_the_nearest_spelling(kind: str, declared: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        validate(kind, declared)
    assert "\n" not in str(refusal.value)


def test_building_refuses_what_checking_refuses() -> None:
    with pytest.raises(InputError, match="there is no prior 'nromal'"):
        VAE((4,), latent_dim=2, prior="nromal")
    with pytest.raises(InputError, match="needs the option 'latent_dim'"):
        VAE((4,))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "no_such_module_of_mine:Prior",
            "there is no module 'no_such_module_of_mine'; is it beside the experiment or on the Python path?",
        ),
        ("components_of_mine:Missing", "the module 'components_of_mine' has no 'Missing'"),
    ],
)
def test_import_paths_that_lead_nowhere(own: str, path: str, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        import_path(path)
    assert message in str(refusal.value)


def test_an_import_path_to_something_that_is_no_class(own: str) -> None:
    with pytest.raises(InputError, match="components_of_mine:number is 3, but a class was expected"):
        validate("prior", f"{own}:number")


@pytest.mark.parametrize("declared", [None, 5, True, ["normal"]])
def test_what_cannot_be_an_instance_is_refused(declared: Any) -> None:
    """YAML gives these for `prior:`, `prior: 5`, `prior: yes` and `prior: [normal]`."""
    with pytest.raises(InputError, match="prior"):
        validate("model", {"vae": {"latent_dim": 2, "prior": declared}})


@pytest.mark.parametrize("declared", [{5: {}}, {"vae": {"latent_dim": 2, 5: 3}}])
def test_a_number_in_the_place_of_a_name_is_refused(declared: Any) -> None:
    with pytest.raises(InputError, match="5"):
        validate("model", declared)


def test_a_subclass_that_has_no_name_has_no_declaration() -> None:
    """Its declaration would build another class."""

    class Mine(VAE):
        pass

    assert getattr(Mine((4,), latent_dim=2), "declaration", None) is None
