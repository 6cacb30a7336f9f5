"""Components and objectives of the user's own: validated as ours are, and refused where they would be misread."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

from pyrolatent import VAE, ConditionalVAE, Experiment, Family, InputError, Run, fit, load_data
from pyrolatent.declaration import component, registered
from pyrolatent.inference.objectives import ELBO, IWAE, Bound
from pyrolatent.inference.objectives.per_datapoint import Local
from pyrolatent.models.components.networks import MLP

BITS = (np.random.default_rng(0).random((60, 4)) < 0.5).astype(np.float32)
SMALL: Any = {"encoder": {"mlp": {"hidden": (4,)}}, "decoder": {"mlp": {"hidden": (4,)}}}


class Weighted(ELBO):
    """An objective of the user's own with an option more."""

    gamma: float = 1.0


class AsPyroNamesThem(ELBO):
    """A constructor of the user's own, which takes Pyro's names and is given some that it has no use for."""

    def __init__(self, num_particles: int = 1, vectorize_particles: bool = False, **rest: Any) -> None:
        super().__init__(particles=num_particles, **rest)


class OfTwo(AsPyroNamesThem):
    def __init__(self, num_particles: int = 2, **rest: Any) -> None:
        super().__init__(num_particles, **rest)


class OneForEachDraw(Bound):
    def bound(self, weights: Any, beta: float | Tensor = 1.0) -> Tensor:
        return weights.log_weights(beta)


class PassesOn(MLP):
    def __init__(self, *args: Any, gain: float = 1.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = gain


class WithoutLabels(MLP):
    def __init__(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...], **options: Any) -> None:
        super().__init__(input_shape, output_shape, **options)


def small(**options: Any) -> VAE:
    return VAE((4,), latent_dim=2, **(SMALL | options))


@pytest.mark.parametrize("options", [{"beta": -1}, {"free_bits": -1}, {"particles": 2.5}, {"particles": 0}])
def test_options_of_a_subclass_are_held_to_their_types(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Weighted"):
        Weighted(**options)
    assert Weighted(gamma=2).gamma == 2.0


def test_a_constructor_of_the_users_own_takes_what_it_likes() -> None:
    objective = OfTwo(vectorize_particles=True, beta=2)
    assert (objective.particles, objective.beta) == (2, 2.0)
    with pytest.raises(InputError, match=r"particles was given 0"):
        OfTwo(num_particles=0)
    with pytest.raises(InputError, match=r"no option 'bta'"):
        OfTwo(bta=2)


def test_particles_may_be_changed_between_steps() -> None:
    objective = IWAE(particles=3)
    objective.particles = 7
    model, x = small(), load_data(BITS).train.batch(slice(0, 5)).x
    assert objective.weigh(model.generate, model.infer, x).log_weights().shape == (7, 5)


def test_what_is_recorded_is_what_an_objective_is_trained_with() -> None:
    objective = ELBO()
    objective.beta = torch.tensor(4.0)  # type: ignore[assignment]
    assert objective.declaration == {"elbo": {"beta": 4.0}}  # type: ignore[attr-defined]


def test_a_bound_gives_one_value_for_each_datapoint() -> None:
    with pytest.raises(InputError, match=r"target of OneForEachDraw has the shape \(3, \d+\)"):
        fit(small(), load_data(BITS), objective=OneForEachDraw(particles=3), epochs=1, progress=False)


@pytest.mark.parametrize("kind", ["prior", "objective", "network"])
def test_a_name_belongs_to_one_component(kind: str) -> None:
    name = next(iter(registered(kind)))
    before = registered(kind)[name].target
    with pytest.raises(InputError, match=f"{kind} '{name}' is pyrolatent.* already; choose another name"):
        component(name, kind)(type("Mine", (nn.Module,), {"__init__": lambda self, latent_dim: None}))
    assert registered(kind)[name].target is before


@pytest.mark.parametrize(
    "objective",
    [ELBO, pyro.infer.Trace_ELBO().differentiable_loss, pyro.infer.EnergyDistance(), pyro.infer.JitTraceEnum_ELBO()],
)
def test_what_is_no_objective_is_refused(objective: Any) -> None:
    with pytest.raises(InputError, match="which fit cannot maximise"):
        fit(small(), load_data(BITS), objective=objective, epochs=1, progress=False)


def test_an_objective_of_pyro_that_pyro_refuses() -> None:
    with pytest.raises(InputError, match=r"RenyiELBO cannot be built: .*alpha"):
        fit(small(), load_data(BITS), objective={"RenyiELBO": {"alpha": 1}}, epochs=1, progress=False)


def test_one_local_objective_serves_two_models() -> None:
    objective = Local(start="prior", steps=1)
    for _ in range(2):
        assert fit(small(), load_data(BITS), objective=objective, epochs=1, progress=False).history


def test_positional_parameters_pass_through_args() -> None:
    path = f"{__name__}:PassesOn"
    model = small(encoder={path: {"gain": 2.0, "hidden": (3,)}})
    network: Any = model.posterior.network  # type: ignore[union-attr]
    assert network.gain == 2.0
    assert network.widths == [4, 3, 4]


def test_a_network_that_takes_no_labels_is_refused_where_there_are_some() -> None:
    for decoder in (f"{__name__}:WithoutLabels", MLP((2,), (4,))):
        with pytest.raises(InputError, match="gives the same for every label"):
            ConditionalVAE((4,), 3, latent_dim=2, decoder=decoder)
    for options in ({"label": "film"}, {"label": "embed"}, {"hidden": ()}):
        ConditionalVAE((4,), 3, latent_dim=2, decoder={"mlp": options})
    ConditionalVAE((4,), 1, latent_dim=2, decoder=MLP((2,), (4,), 1))


def test_a_run_is_evaluated_on_its_own_data(tmp_path: Path) -> None:
    data = load_data(BITS)
    run = Run.save(tmp_path / "run", fit(small(), data, epochs=1, progress=False))
    for call in (run.evaluate, run.check, run.anneal, run.plot):
        with pytest.raises(InputError, match="are not those that were given"):
            call(load_data(BITS, seed=7))
    assert not (tmp_path / "run" / "evaluation.json").exists()
    run.evaluate(data, particles=5)
    assert {path.name for path in run.written} == {"evaluation.json", "evaluation.safetensors"}


def test_an_experiment_is_loaded_from_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {vae: {latent_dim: 2}}\n")
    assert Experiment.load(str(tmp_path / "mine.yaml")).model == {"vae": {"latent_dim": 2}}  # type: ignore[arg-type]


def test_no_name_is_missing_after_a_star_import() -> None:
    found: dict[str, Any] = {}
    exec("from pyrolatent import *", found)
    assert {"VAE", "models", "tasks", "checks"} <= {*found}
    assert torch.is_tensor(found["load_data"](BITS).train.x)


class Returns(nn.Module):
    """A prior that returns what it was given."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, y: Tensor | None = None) -> Any:
        return self.returned


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "the prior returned NoneType; its forward must return one of pyro.distributions"),
        (pyro.distributions.Normal(torch.zeros(2), 1.0), r"the prior returned .* batch shape \(2,\) .* \.to_event"),
    ],
)
def test_a_prior_that_returns_no_distribution_of_one_z_is_refused(returned: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(small(prior=Returns(returned)), load_data(BITS), epochs=1, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learned": {"sigma": "shared"}}, "learned names 'sigma'; valid: loc, scale"),
        ({"learned": {"scale": "one"}}, "learned was given 'one'; valid: shared, each"),
        ({"floors": {"sigma": 0.1}}, "floors names 'sigma'"),
    ],
)
def test_a_family_refuses_settings_of_parameters_that_it_does_not_have(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Family((4,), pyro.distributions.Normal, **settings)
