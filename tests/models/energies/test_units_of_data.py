"""Energies over data in any units: every number is that of data in units of 1, moved by the Jacobian of the units."""

import functools
import json
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from pyrolatent import (
    Annealing,
    Data,
    EnergyModel,
    InputError,
    MarkovNetwork,
    Run,
    compare,
    evaluate,
    fit,
    load_data,
    sample,
    watch,
)
from pyrolatent.cli import app
from pyrolatent.declaration import build
from pyrolatent.inference.evidence.energies import (
    LogZ,
    _estimate,
    ais,
    apart,
    model_states,
    raise_log_prob,
    reverse_ais,
)
from pyrolatent.inference.objectives.score_matching import sliced_score_matching
from pyrolatent.inference.sampling.kernels import HMC, Langevin, Movement, adapted, no_normaliser

UNITS = {
    "a hundredth": (0.01, 0.01, 0.01),
    "one": (1.0, 1.0, 1.0),
    "thousands": (1000.0, 1000.0, 1000.0),
    "a unit for each column": (1e-3, 50.0, 1e4),
}
ROOT = torch.tensor([[1.5, 0.0, 0.0], [0.7, 0.8, 0.0], [-0.5, 0.3, 1.2]], dtype=torch.float64)
PLACE = torch.tensor([1.0, -0.5, 3.0], dtype=torch.float64)

SMALL = {"mlp": {"hidden": [8], "activation": "silu"}}
HMC_3: dict[str, Any] = {"hmc": {"leapfrogs": 3}}


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def few_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains at which reverse annealing begins go a hundred sweeps, which these densities forget their start in."""
    monkeypatch.setattr(
        "pyrolatent.inference.evidence.energies.model_states", functools.partial(model_states, sweeps=100)
    )


def normal(units: tuple[float, ...], reference: Any = "flat") -> tuple[EnergyModel, Data, Tensor, float]:
    """The energy of a correlated normal density in these units, data of its own, its covariance and its log Z.

    The base has the standard deviations of the data, and so neither the density's mean nor its correlations.
    """
    scale = torch.tensor(units)

    def energy(x: Tensor) -> Tensor:
        return 0.5 * ((x / scale - PLACE) @ ROOT).square().sum(-1).to(x)

    covariance = (ROOT @ ROOT.T).inverse()
    model = EnergyModel((3,), energy=energy, reference=reference)
    x = (torch.distributions.MultivariateNormal(PLACE, covariance).sample((400,)) * scale).float()
    model.initialise(x + 0.5 * x.std(0))
    exact = 1.5 * math.log(2 * math.pi) + 0.5 * covariance.logdet().item() + scale.log().sum().item()
    return model, load_data(x.numpy()), covariance * torch.outer(scale, scale), exact


@pytest.mark.parametrize(
    ("units", "kernel"),
    [
        pytest.param("a hundredth", HMC_3, marks=pytest.mark.slow),
        pytest.param("one", HMC_3, marks=pytest.mark.slow),
        pytest.param("thousands", HMC_3, marks=pytest.mark.slow),
        ("a unit for each column", HMC_3),
        ("a unit for each column", "langevin"),
    ],
)
def test_log_z_of_a_normal_density_in_any_units(units: str, kernel: Any) -> None:
    """From both ends within 4.5 standard errors of the closed form, by chains that move as the kernel's target says."""
    model, data, covariance, exact = normal(UNITS[units])
    move = adapted(model, kernel, 60)
    forward = ais(model, chains=200, temperatures=60, kernel=move)
    start = torch.distributions.MultivariateNormal(PLACE * torch.tensor(UNITS[units]), covariance).sample((200,))
    backward = reverse_ais(model, start, "exact samples", temperatures=60, kernel=move)
    for found in (forward, backward):
        assert found.stuck is None
        assert abs(found.value - exact) < 4.5 * found.error
        assert found.acceptance == pytest.approx(move.kernel.target, abs=0.1)
    x = data.test.x[:20].double()
    bound = raise_log_prob(model, x, temperatures=300, kernel=move)
    gap = -model.free_energy(x) - exact - bound
    assert gap.mean().abs().item() < 0.1 + 4.5 * gap.std().item() / math.sqrt(20)


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("units", [pytest.param("one", marks=pytest.mark.slow), "a unit for each column"])
def test_held_out_log_p_of_a_normal_density_in_any_units(units: str) -> None:
    model, data, _, exact = normal(UNITS[units])
    found = evaluate(model.float(), data, annealing=Annealing(100, 60, raised=5, kernel=HMC_3))
    truth = -model.free_energy(data.test.x).double().mean().item() - exact
    assert abs(found.log_evidence - truth) < 4.5 * found.log_evidence_mcse + 1e-4
    assert found.log_z_missing is None
    assert found.acceptance == pytest.approx(0.65, abs=0.1)


@pytest.mark.parametrize(
    "units",
    ["one", "thousands", *(pytest.param(units, marks=pytest.mark.slow) for units in UNITS if units[0] == "a")],
)
def test_draws_and_what_is_watched_have_the_moments_of_a_normal_density_in_any_units(units: str) -> None:
    """Means and covariances within 4.5 standard errors after 50 moves from the base."""
    model, _, covariance, _ = normal(UNITS[units])
    scale = torch.tensor(UNITS[units])
    n = 4000
    for drawn in (sample(model, n, sweeps=50, kernel=HMC_3), watch(model, n, [50], kernel=HMC_3)[0]):
        z, wanted = drawn / scale - PLACE, covariance / torch.outer(scale, scale)
        assert (z.mean(0).abs() < 4.5 * wanted.diagonal().sqrt() / math.sqrt(n)).all()
        products = z[:, :, None] * z[:, None]
        assert ((products.mean(0) - wanted).abs() < 4.5 * products.std(0) / math.sqrt(n)).all()


OBJECTIVES: list[Any] = [
    "sliced_score_matching",
    {"denoising_score_matching": {"noise": 0.3}},
    {"pcd": {"chains": 50, "kernel": {"hmc": {"leapfrogs": 3}}}},
    {"cd": {"steps": 2, "kernel": {"langevin": {"step": 0.2}}}},
]


def trained(objective: Any, units: list[float]) -> tuple[EnergyModel, Data]:
    torch.manual_seed(0)
    z = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32) @ np.float32([[1, 0.5], [0, 0.5]])
    model, data = EnergyModel((2,), energy=SMALL), load_data(z * np.float32(units))
    fit(model, data, progress=False, objective=objective, epochs=3, batch_size=50, optimizer={"Adam": {"lr": 0.01}})
    return model, data


IN_UNITS: list[list[float]] = [[1, 1], [2.0**10, 2.0**10], [2.0**-7, 2.0**12]]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o if isinstance(o, str) else next(iter(o)))
def test_training_is_the_same_in_any_units(objective: Any) -> None:
    """Units that are powers of two change no rounding: the networks are equal, and the energies at the same data."""
    torch.set_default_dtype(torch.float32)
    found = []
    for units in IN_UNITS:
        model, data = trained(objective, units)
        found.append((model.free_energy(data.test.x), *model.function.parameters()))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_is_estimated_and_drawn_after_training_is_the_same_in_any_units() -> None:
    """log p(x) differs by the Jacobian."""
    torch.set_default_dtype(torch.float32)
    found, short = [], {"hmc": {"leapfrogs": 2}}
    for units in IN_UNITS:
        model, data = trained(OBJECTIVES[0], units)
        estimate = ais(model, chains=50, temperatures=20, kernel=short)
        log_p = -model.free_energy(data.test.x).mean().item() - estimate.value + math.log(math.prod(units))
        drawn = sample(model, 10, sweeps=5, kernel=short) / torch.tensor(units)
        found.append((log_p, estimate.acceptance, drawn))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-4)


def test_a_constant_column_has_a_small_scale_in_the_units_of_the_others() -> None:
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]])
    for scale in (1e-6, 1.0, 1e6):
        model = EnergyModel((2,))
        model.initialise(scale * x)
        torch.testing.assert_close(model.scale, scale * torch.tensor([1.0, 1e-3 / math.sqrt(2)]))
    model = EnergyModel((2,))
    model.initialise(torch.ones(3, 2))
    assert torch.equal(model.scale, torch.ones(2))


STUCK = [
    ({"hmc": {"step": 1e-6, "leapfrogs": 2}}, "all moves of a coordinate together are .* of the distance between"),
    ({"langevin": {"step": 1e-4}}, "all moves of a coordinate"),
    ({"hmc": {"step": 1e3, "leapfrogs": 2}}, r"0.0% of their moves were accepted in a tenth of them"),
    ({"langevin": {"step": 1e3}}, "0.0% of their moves"),
]


@pytest.mark.parametrize(("kernel", "said"), STUCK)
def test_what_chains_that_do_not_move_would_say_is_not_given(kernel: Any, said: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    data = load_data(np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32))
    model = EnergyModel((2,), energy=SMALL)
    model.initialise(data.train.x)
    found = evaluate(model, data, annealing=Annealing(chains=20, temperatures=30, kernel=kernel, raised=2))
    assert (found.log_evidence, found.log_z, found.ais, found.log_evidence_se, found.log_z_se) == (None,) * 5
    assert found.each == {}
    assert found.rows()[0][:2] == ("log_evidence", "none")
    assert found.raised[1] is None
    with pytest.raises(InputError, match=f"cannot be sampled: the chains did not move: {said}"):
        sample(model, 20, sweeps=30, kernel=kernel)
    run = Run.save(tmp_path / "run", fit(model, data, progress=False, objective="cd", epochs=1))
    run.write_evaluation(found)
    ((row,),) = [group.rows for group in compare([run])]
    assert row.score is None
    assert re.search(f": the chains did not move: {said}", str(row.missing))


def test_the_error_of_a_declared_step_that_moves_is_that_of_the_estimate() -> None:
    model, _, _, exact = normal(UNITS["thousands"])
    for kernel in (HMC(step=0.3, leapfrogs=4), Langevin(step=0.4, steps=4)):
        found = ais(model, chains=100, temperatures=60, kernel=kernel)
        assert found.stuck is None
        assert abs(found.value - exact) < 4.5 * found.error


def test_one_column_that_does_not_move_is_enough() -> None:
    """A base of units of 1, where those of the data are a thousandth and thousands: steps follow the narrow column."""
    scale = torch.tensor([1e-3, 1e3])
    model = EnergyModel((2,), energy=lambda x: 0.5 * (x / scale).square().sum(-1), reference="flat")
    exact = math.log(2 * math.pi)
    found = ais(model, chains=50, temperatures=50, kernel=HMC_3)
    assert abs(found.value - exact) > 4.5 * found.error
    assert found.stuck is not None
    model.initialise(torch.randn(400, 2) * scale)
    found = ais(model, chains=50, temperatures=50, kernel=HMC_3)
    assert abs(found.value - exact) < 4.5 * found.error
    assert found.stuck is None


def test_one_step_of_annealing_makes_no_move_and_is_given() -> None:
    model = EnergyModel((3,), energy=lambda x: 0.1 * x.square().sum(-1))
    found = ais(model, chains=20, temperatures=1, kernel=HMC_3)
    assert (found.acceptance, found.stuck) == (None, None)


@pytest.mark.slow
def test_kernels_are_declared_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr("pyrolatent.pictures.WATCHED", [0, 1, 3])
    monkeypatch.setattr("pyrolatent.pictures.TEMPERATURES", 20)
    monkeypatch.setattr("pyrolatent.cli.commands.SHORT", 20)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32) * [1e-2, 1e3])
    model, data = {"energy": {"energy": SMALL}}, str(tmp_path / "x.npy")
    declared = {"model": model, "objective": "sliced_score_matching", "data": data, "epochs": 1}
    (tmp_path / "e.yaml").write_text(json.dumps(declared))
    run = str(tmp_path / "run")

    def cli(*arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments))

    assert cli("train", str(tmp_path / "e.yaml"), "--output", run, "--json").exit_code == 0
    short = ("--chains", "20", "--temperatures", "30")
    scores = json.loads(cli("evaluate", run, *short, "--kernel", "{hmc: {leapfrogs: 1}}", "--json").stdout)
    assert 0.4 < scores["acceptance"] < 0.9
    scores = json.loads(cli("evaluate", run, *short, "--kernel", "{langevin: {step: 1e-7}}", "--json").stdout)
    assert scores["log_evidence"] is None
    assert "the chains did not move" in scores["log_z_missing"]
    assert "the chains did not move" in cli("evaluate", run, *short, "--kernel", "{hmc: {step: 1e-7}}").stdout
    assert cli("sample", run, "--size", "7", "--sweeps", "5", "--kernel", "langevin").exit_code == 0
    for arguments, said in (
        (("sample", run, "--kernel", "{hmc: {step: 1e-7}}"), "the chains did not move"),
        (("sample", run, "--kernel", "hcm"), "did you mean 'hmc'"),
        (("evaluate", run, "--kernel", "{langevin: {adjusted: false}}"), "declare adjusted: true"),
        (("evaluate", run, "--kernel", "gibbs"), "declare kernel: hmc or langevin"),
    ):
        refused = cli(*arguments)
        assert refused.exit_code == 2
        assert said in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1


def test_energies_that_are_not_finite_are_refused() -> None:
    torch.set_default_dtype(torch.float32)
    data = load_data(np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32))
    walls = EnergyModel((2,), energy=lambda x: torch.where(x[:, 0] > 0, 0.0, torch.inf))
    with pytest.raises(InputError, match=r"F.x. of EnergyModel is not finite for \d+ of 6 datapoints"):
        evaluate(walls, data)
    with pytest.raises(InputError, match=r"energy of EnergyModel is not finite at \d+ of 100 states where chains"):
        ais(walls, temperatures=5, kernel=HMC_3)


@pytest.mark.parametrize("kind", ["rbm", "energy"])
def test_training_goes_on_with_other_data_only_with_a_warning(kind: str) -> None:
    """Base and units were set by the first data and stay; data of the same scale say nothing."""
    x = np.random.default_rng(0).normal(size=(100, 2))
    near, far = load_data(x), load_data(100 * x + 500)
    declared: dict[str, Any] = {"rbm": {"hidden": 3, "visible": "normal"}, "energy": {}}
    model: Any = build("model", {kind: declared[kind]}, event_shape=(2,), label_dim=0)
    options: Any = {"objective": "cd" if kind == "rbm" else "denoising_score_matching", "epochs": 1, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, near, **options)
        fit(model, near, **options)
    with pytest.warns(UserWarning, match="training goes on in the units of other data"):
        model.prepare(far.train.x, None)


def test_one_chain_that_carries_all_the_weight_gives_no_number() -> None:
    """The delta method's error is 1 then, however far off log Z is: here a density that has no normaliser."""
    model = EnergyModel((10,), energy=lambda x: 0.5 * ((x - 4) / 0.05).square().sum(-1))
    found = ais(model, chains=50, temperatures=5, kernel={"hmc": {"leapfrogs": 2}})
    assert "of 50 chains carry all the weight" in (found.stuck or "")


def test_weights_whose_largest_are_too_few_give_no_number() -> None:
    """Normal log-weights of standard deviation s: most often refused where n exp(-s²) is small, kept where it is not.

    At s = 3 the mean of 100 weights is on average 1.4 nats too low, and its delta-method error a third of a nat.
    """
    move, refused = Movement(None), {}
    for s in (0.5, 1.0, 3.0):
        weights = s * torch.randn(500, 100)
        refused[s] = sum(_estimate(w, move).stuck is not None for w in weights) / 500
    assert refused[0.5] == 0
    assert refused[1.0] <= 0.01
    assert refused[3.0] >= 0.99


def _one_way(x: Tensor) -> Tensor:
    return 0.5 * x[:, 0].square()


IMPROPER: dict[str, tuple[Any, str, str]] = {
    "nothing": (lambda x: 0 * x.sum(-1), "flat", "in 200 of 200 directions"),
    "a slope": (lambda x: x[:, 0], "flat", r"in \d+ of 200 directions"),
    "a well on a plain": (lambda x: -50 * (-0.5 * x.square().sum(-1)).exp(), "flat", "in 200 of 200 directions"),
    "waves": (lambda x: 3 * x.sin().sum(-1), "flat", "in 200 of 200 directions"),
    "what undoes the base": (lambda x: -0.5 * x.square().sum(-1), "normal", "in 200 of 200 directions"),
    "what outgrows the base": (lambda x: -x.square().sum(-1), "normal", "in 200 of 200 directions"),
    "a well in one direction": (_one_way, "flat", "chains keep spreading"),
    "a valley": (lambda x: 0.5 * x.sum(-1).square(), "flat", "chains keep spreading"),
}


@pytest.mark.parametrize("name", IMPROPER)
def test_an_energy_without_a_normaliser_has_no_log_p_and_no_samples(name: str) -> None:
    energy, reference, said = IMPROPER[name]
    data = load_data(np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32))
    model = EnergyModel((2,), energy=energy, reference=reference).float()  # about N(0, 1), of which the data are
    found = evaluate(model, data, annealing=Annealing(chains=20, temperatures=5, kernel=HMC_3))
    assert (found.log_evidence, found.log_z, found.ais, found.reverse_ais) == (None,) * 4
    value, reason = found.rows()[0][1:]
    assert value == "none"
    assert re.search(f"has no finite integral: .*{said}", reason)
    with pytest.raises(InputError, match=f"cannot be sampled: exp.* has no finite integral: .*{said}"):
        sample(model, 3, sweeps=5, kernel=HMC_3)


PROPER: dict[str, Any] = {
    "heavy tails": lambda x: 1.6 * torch.log1p(x.square().sum(-1)),  # |x|^-3.2 in two dimensions
    "a ridge": lambda x: 0.5 * x[:, 0].square() + 2 * (x[:, 1] - x[:, 0].square()).square(),
    "far more narrow than the base": lambda x: 0.5 * (x / 0.02).square().sum(-1),
    "wider than the base": lambda x: 0.5 * (x / 20).square().sum(-1),
    "two modes": lambda x: -torch.logaddexp(-0.5 * (x - 4).square().sum(-1), -0.5 * (x + 4).square().sum(-1)),
}


@pytest.mark.parametrize("name", PROPER)
def test_an_energy_with_a_normaliser_is_not_taken_for_one_without(name: str) -> None:
    model = EnergyModel((2,), energy=PROPER[name], reference="flat")
    assert no_normaliser(model, adapted(model, {"hmc": {"leapfrogs": 4}})) is None


@pytest.mark.usefixtures("few_sweeps")
def test_annealing_from_both_ends_that_disagrees_is_said() -> None:
    """Within e²/2 + 4 e nothing is said; beyond it the row of log p(x) and its error say how far."""

    def estimate(value: float, error: float) -> LogZ:
        return LogZ(value, error, "ais")

    assert apart(estimate(0, 0.3), estimate(1.9, 0.4)) is None
    assert apart(estimate(0, 0.3), estimate(2.2, 0.4)) == pytest.approx(2.2)
    assert apart(estimate(0, 0.3), estimate(-2.2, 0.4)) == pytest.approx(-2.2)
    assert apart(estimate(0, 0.0), estimate(0.04, 0.0)) is None
    data = load_data(np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32))
    model = EnergyModel((2,)).float()
    model.initialise(data.train.x)
    found = evaluate(model, data, annealing=Annealing(20, 10, kernel={"hmc": {"leapfrogs": 2}}))
    assert found.apart is None
    for gap, said in ((3.0, "too high by up to 3, as reverse ais says"), (-3.0, "hold a part of the model alone")):
        assert said in str(replace(found, apart=gap).rows())


def test_few_temperatures_are_seen_from_the_other_end() -> None:
    """A normal far from its base, in 40 dimensions: so short a path is low from the base and high from exact draws."""
    model = EnergyModel((40,), energy=lambda x: 0.5 * (4 * x).square().sum(-1), reference="flat")
    exact = 20 * math.log(2 * math.pi) - 40 * math.log(4)
    short = {"temperatures": 20, "kernel": {"hmc": {"step": 0.05, "leapfrogs": 2}}}
    forward = ais(model, chains=400, **short)
    backward = reverse_ais(model, torch.randn(400, 40) / 4, "exact samples", **short)
    assert forward.value < exact < backward.value
    assert forward.stuck is not None or (apart(forward, backward) or 0) > 0


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("kind", ["rbm", "energy"])
def test_a_constant_column_is_named_in_training_and_in_evaluation(kind: str) -> None:
    """Both ends of the annealing agree beside it."""
    torch.set_default_dtype(torch.float32)
    x = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    x[:, 1] = 5
    data = load_data(x)
    declared: dict[str, Any] = {"rbm": {"hidden": 3, "visible": "normal"}, "energy": {"energy": SMALL}}
    model: Any = build("model", {kind: declared[kind]}, event_shape=(3,), label_dim=0)
    said = r"1 of 3 entries of x \(from 0: 1\) are the same in all \d+ training datapoints: their width is set to"
    with pytest.warns(UserWarning, match=said):
        fit(model, data, objective="cd", epochs=1, progress=False)
    kernel = HMC_3 if kind == "energy" else None
    with pytest.warns(UserWarning, match=said):
        found = evaluate(model, data, annealing=Annealing(50, 40, always=True, kernel=kernel))
    assert found.apart is None
    (low, a), (high, b) = found.ais, found.reverse_ais
    assert abs(low - high) < 4 * math.hypot(a, b) + 1e-3


def test_an_energy_that_torch_cannot_differentiate_is_one_line() -> None:
    model = EnergyModel((2,), energy=lambda x: torch.zeros(len(x)), reference="flat")
    for ask in (lambda: ais(model, temperatures=5), lambda: sliced_score_matching(model, torch.zeros(3, 2))):
        with pytest.raises(InputError, match="the energy does not depend on x, or was computed outside"):
            ask()


def test_networks_take_no_values_that_their_variables_do_not_have() -> None:
    network = MarkovNetwork((3,), cliques=[(1, 2), (2, 3)])
    for wrong in ([[-1.0, 0, 0]], [[0.7, 0, 0]], [[2.0, 0, 0]]):
        with pytest.raises(InputError, match="1 of 1 datapoints hold values that their variables do not have"):
            network.log_prob(torch.tensor(wrong))
    with pytest.raises(InputError, match=r"x has shape \(1, 4\), but MarkovNetwork is over events of shape \(3,\)"):
        network.free_energy(torch.zeros(1, 4))
