"""Unnormalised densities through the commands, from an experiment file to a comparison with a VAE."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pyrolatent as pl
from pyrolatent import Data, EnergyModel, InputError, MarkovNetwork, Run, fit, load_data, sample
from pyrolatent import RestrictedBoltzmannMachine as RBM  # noqa: N817
from pyrolatent.cli import app
from pyrolatent.figures.energy import chains, filters, free_energies, log_z_trace, monitors
from pyrolatent.inference.evidence.energies import model_states
from pyrolatent.inference.objectives.contrastive import CD
from pyrolatent.inference.rules import validate_combination
from pyrolatent.inference.sampling.chains import sample_energy, watch

MODELS: dict[str, tuple[Any, str]] = {
    "machine": ({"rbm": {"hidden": 3}}, "pcd"),
    "machine by tempering": ({"rbm": {"hidden": 3}}, "tempered_pcd"),
    "labels": ({"rbm": {"hidden": 3, "labels": True}}, "cd"),
    "network": ({"markov_network": {"cliques": [[1, 2], [2, 3, 4], [5, 6]]}}, "exact_likelihood"),
    "bits": ({"energy": {"support": "binary", "energy": {"mlp": {"hidden": [4]}}}}, "cd"),
}


def cli(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    return result


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Sixty datapoints of six bits in two clusters, with their cluster as label."""
    random = np.random.default_rng(0)
    y = random.integers(2, size=60)
    likely = np.array([[0.9, 0.9, 0.9, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.9, 0.9, 0.9]])
    np.savez(tmp_path / "bits.npz", x=(random.random((60, 6)) < likely[y]).astype(np.uint8), y=y)
    return tmp_path / "bits.npz"


def experiment(path: Path, data: Path, model: Any, objective: Any, **fields: Any) -> Path:
    declared = {"model": model, "objective": objective, "data": str(data), "epochs": 3, "batch_size": 20, **fields}
    path.write_text(json.dumps(declared))
    return path


@pytest.mark.usefixtures("few_cells")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("bits", "machine by tempering"))) for name in MODELS],
)
def test_every_command_works_for_every_kind(name: str, file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("pyrolatent.pictures.WATCHED", [0, 1, 3])
    monkeypatch.setattr("pyrolatent.pictures.TEMPERATURES", 20)
    monkeypatch.setattr("pyrolatent.cli.commands.SHORT", 20)
    monkeypatch.setattr(
        "pyrolatent.inference.evidence.energies.model_states", functools.partial(model_states, sweeps=50)
    )
    model, objective = MODELS[name]
    written = experiment(tmp_path / "e.yaml", file, model, objective)
    run = str(tmp_path / "run")
    trained = cli("train", str(written), "--output", run, "--json")
    assert trained.exit_code == 0, trained.output
    for figure in json.loads(trained.stdout)["figures"]:
        assert Path(figure).stat().st_size > 1000
    row = Run(Path(run)).history[-1]
    assert row["validation_elbo"] is None
    assert row["validation_pseudo_likelihood"] < 0
    assert math.isfinite(row["free_energy_gap"])
    evaluated = cli("evaluate", run, "--ais", "--chains", "20", "--temperatures", "50", "--raise", "2", "--json")
    scores = json.loads(evaluated.stdout)
    assert scores["log_evidence"] < 0
    assert scores["log_z_method"] == ("ais" if name == "bits" else "exact")
    assert ("classification_error" in scores) == (name == "labels")
    chains = name == "bits"  # the others have an exact log Z and exact draws
    assert cli("evaluate", run, *["--temperatures", "20"] * chains).exit_code == 0
    drawn = cli("sample", run, "--size", "7", *["--sweeps", "3"] * chains, "--json")
    assert np.load(json.loads(drawn.stdout)["array"]).shape == (7, 6)
    shown = cli("show", run)
    assert "p(x" in shown.stdout or "p(X1" in shown.stdout
    assert cli("figures", run, "--json").exit_code == 0


@pytest.mark.usefixtures("few_cells")
def test_a_machine_is_compared_with_a_vae_on_the_same_scale(file: Path, tmp_path: Path) -> None:
    small = {"mlp": {"hidden": [4]}}
    vae = {"vae": {"latent_dim": 2, "encoder": small, "decoder": small}}
    for name, model, objective in (("a", {"rbm": {"hidden": 3}}, "pcd"), ("b", vae, "elbo")):
        written = experiment(tmp_path / f"{name}.yaml", file, model, objective)
        particles = ["--particles", "50"] if name == "b" else []
        assert cli("train", str(written), "--output", str(tmp_path / name), *particles).exit_code == 0
    compared = cli("compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json")
    assert compared.exit_code == 0, compared.output
    (group,) = json.loads(compared.stdout)
    assert (group["measure"], group["score"], len(group["rows"])) == ("mass", "log_evidence", 2)
    by_gap = {row["gap"] is None: row for row in group["rows"]}
    assert by_gap[True]["active_units"] is None
    assert cli("compare", str(tmp_path / "a"), str(tmp_path / "b")).exit_code == 0


@pytest.mark.parametrize(
    ("model", "objective", "said"),
    [
        ({"rbm": {"hidden": 3}}, "elbo", "has no posterior of latents"),
        ({"vae": {"latent_dim": 2}}, "pcd", "has no energy F"),
        ({"rbm": {"hidden": 30, "visible": "normal"}}, "exact_likelihood", "has no log Z that can be summed"),
        ({"rbm": {"hidden": 3}}, "sliced_score_matching", "has no gradient of log p in x"),
        ({"rbm": {"hidden": 3}}, {"cd": {"kernel": "hmc"}}, "is sampled by kernel: gibbs"),
        ({"energy": {}}, {"cd": {"kernel": "gibbs"}}, "hmc or langevin"),
        ({"energy": {"energy": "mlp"}}, "sliced_score_matching", "declare a smooth activation"),
        ({"rbm": {"hidden": 3}}, {"pcd": {"chans": 3}}, "did you mean 'chains'"),
        ({"rbm": {"hiden": 3}}, "pcd", "did you mean 'hidden'"),
        ({"markov_network": {"cliques": [[1, 9]]}}, "exact_likelihood", "is no clique"),
        ({"rbm": {"hidden": 3}}, {"cd": {"sparsity_target": 2}}, "less than or equal to 1"),
        ({"markov_network": {"cliques": [[1, 2]]}}, {"pcd": {"weight_decay": 0.1}}, "has no hidden units"),
    ],
)
def test_what_cannot_be_right_is_one_line(model: Any, objective: Any, said: str, file: Path, tmp_path: Path) -> None:
    written = experiment(tmp_path / "e.yaml", file, model, objective)
    result = cli("train", str(written), "--output", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_data_outside_the_support_are_refused(binary_data: Data) -> None:
    grey = load_data(np.random.default_rng(0).random((40, 6)))
    objective = CD()
    with pytest.raises(InputError, match="not all 0 or 1"):
        validate_combination(RBM((6,), hidden=2), grey, objective)
    with pytest.raises(InputError, match="declare other visible units"):
        validate_combination(RBM((6,), hidden=2), load_data(grey.train.x.numpy(), binarize="relaxed"), objective)
    mask = np.ones((50, 6), bool)
    x = torch.cat([binary_data.train.x, binary_data.validation.x, binary_data.test.x]).numpy()
    with pytest.raises(InputError, match="has a mask"):
        validate_combination(RBM((6,), hidden=2), load_data(x, mask=mask), objective)


def test_training_over_real_numbers_by_every_objective(tmp_path: Path) -> None:
    """The held-out loss is that of sliced score matching, and falls; a run is read again with its chains."""
    x = np.random.default_rng(0).normal(size=(300, 2)) * [0.5, 2.0] + [3.0, 0.0]
    data = load_data(x.astype(np.float32))
    network = {"mlp": {"hidden": [16], "activation": "silu"}}
    for objective in (
        "sliced_score_matching",
        {"denoising_score_matching": {"noise": 0.3}},
        {"pcd": {"chains": 50, "kernel": {"hmc": {"leapfrogs": 3}}}},
        {"cd": {"steps": 2, "kernel": {"langevin": {"step": 0.2}}}},
    ):
        torch.manual_seed(0)
        model = EnergyModel((2,), energy=network, reference="normal")
        fitted = fit(
            model, data, progress=False, objective=objective, epochs=3, batch_size=50,
            optimizer={"Adam": {"lr": 0.003}},
        )  # fmt: skip
        assert all(math.isfinite(row["validation_loss"]) for row in fitted.history)
        Run.save(tmp_path / "run", fitted, overwrite=True)
        loaded: Any = Run.load(tmp_path / "run").model
        assert torch.equal(loaded.chains, model.chains)
        at = data.test.batch(slice(None)).x
        torch.testing.assert_close(loaded.free_energy(at), model.free_energy(at))


def test_training_is_the_same_again_with_the_same_seed(binary_data: Data) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = RBM((6,), hidden=4)
        fit(model, binary_data, progress=False, objective={"pcd": {"chains": 7, "restarts": 0.1}}, epochs=2, seed=3)
        runs.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    assert runs[0]["chains"].shape == (7, 6)


def test_training_goes_on_from_where_it_ended(binary_data: Data) -> None:
    """A second fit begins at the parameters, the base and the chains of the first, and not at the data's means."""
    model = RBM((6,), hidden=4)
    options: Any = {"progress": False, "objective": {"pcd": {"chains": 7}}, "epochs": 1}
    fit(model, binary_data, **options)
    model.visible_bias.data.fill_(1.5)
    base, chains, before = model.base_bias.clone(), model.chains, model.chains.clone()
    fit(model, binary_data, **options, optimizer={"SGD": {"lr": 1e-9}})
    torch.testing.assert_close(model.visible_bias.data, torch.full((6,), 1.5))
    assert torch.equal(model.base_bias, base)
    assert model.chains is chains
    assert not torch.equal(chains, before)


def test_samples_are_exact_where_they_can_be_and_follow_labels() -> None:
    """Exact means within 4.5 standard errors; with labels held, p(x | y) by enumeration."""
    torch.manual_seed(0)
    model = RBM((4,), 2, hidden=3, labels=True)
    for parameter in model.parameters():
        parameter.data.normal_()
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    p = (-model.free_energy(x)).softmax(0).detach()
    n = 20_000
    drawn = sample(model, n)
    assert ((drawn.mean(0) - p @ x).abs() < 4.5 * drawn.std(0) / math.sqrt(n)).all()
    p_1 = (-model.free_energy(x, torch.ones(16, dtype=torch.int64))).softmax(0).detach()
    drawn = sample_energy(model, n, torch.ones(n, dtype=torch.int64), sweeps=60)
    assert ((drawn.mean(0) - p_1 @ x).abs() < 4.5 * drawn.std(0) / math.sqrt(n)).all()
    with pytest.raises(InputError, match="takes no labels"):
        sample(RBM((4,), hidden=2), 3, torch.zeros(3, dtype=torch.int64))


def test_chains_are_watched_from_where_they_begin() -> None:
    model = RBM((4,), hidden=2)
    start = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    frames = watch(model, 1, [0, 1, 5], start=start)
    assert torch.equal(frames[0], start)
    assert frames.shape == (3, 1, 4)
    assert ((frames[1:] > 0) & (frames[1:] < 1)).all()  # means, not draws
    network = MarkovNetwork((3,), cliques=[[1, 2, 3]])
    assert watch(network, 5, [0, 2]).shape == (2, 5, 3)


@pytest.mark.parametrize("sweeps", [[0, 1, 5], (0, 1, 5), np.array([0, 1, 5]), torch.tensor([0.0, 1.0, 5.0])], ids=str)
def test_chains_are_watched_from_arrays_and_lists(sweeps: Any) -> None:
    model, start = RBM((4,), hidden=2), [[1, 0, 1, 0]]
    for given in (start, np.array(start, dtype=np.float64), torch.tensor(start)):
        torch.manual_seed(0)
        frames = watch(model, 1, sweeps, start=given)
        assert frames.dtype == torch.float32
        assert torch.equal(frames[0], torch.tensor(start).float())
        torch.manual_seed(0)
        assert torch.equal(frames, watch(model, 1, [0, 1, 5], start=torch.tensor(start).float()))


def machine_of_labels() -> RBM:
    return RBM((4,), 3, hidden=2, labels=True)


@pytest.mark.parametrize(
    ("made", "values", "labels"),
    [
        (machine_of_labels, [[1, 0, 1, 0], [0, 0, 1, 1]], [2, -1]),
        (lambda: RBM((4,), hidden=2, visible="normal"), [[1.5, 0, 1, 0], [0, 0, -1, 1]], None),
        (lambda: EnergyModel((4,)), [[1.5, 0, 1, 0], [0, 0, -1, 1]], None),
        (lambda: MarkovNetwork((4,), cliques=[[1, 2], [3, 4]]), [[1, 0, 1, 0], [0, 0, 1, 1]], None),
    ],
    ids=["labels", "real", "energy", "network"],
)
def test_energies_take_numbers_of_any_type(made: Any, values: Any, labels: Any) -> None:
    """Each method gives from a list, an array or a tensor of float64 what it gives from the model's own type."""
    model: Any = made()
    methods = ["free_energy", "state", *(["encode"] if isinstance(model, RBM) else [])]
    methods += ["log_prob"] * model.tractable
    forms = (lambda v: v, np.array, torch.tensor, lambda v: torch.tensor(v).double() if v is values else v)
    for name in methods:
        y = () if labels is None else (labels,)
        found = []
        for form in forms:
            torch.manual_seed(0)
            value = getattr(model, name)(form(values), *map(form, y))
            found.append(model.flat(value) if name == "state" else value)
        for other in found[1:]:
            assert torch.equal(other, found[0])
    if labels:
        assert torch.equal(model.classify(np.array(values)), model.classify(torch.tensor(values).float()))


def test_energies_refuse_labels_and_values_that_they_do_not_have() -> None:
    model, x = machine_of_labels(), [[1, 0, 1, 0], [0, 0, 1, 1]]
    for y, said in (
        ([0.0, 1.0], "labels are float64 of shape"),
        ([0, 3], "labels from 0 to 3 were given; they are 0 to 2, or -1"),
        ([0], r"labels are int64 of shape \(1,\)"),
        ([[0, 1]], r"labels are int64 of shape \(1, 2\)"),
    ):
        for method in (model.free_energy, model.encode, model.state, model.log_prob):
            with pytest.raises(InputError, match=said):
                method(x, y)
    grey = [[0.3, 0, 1, 0], [0, 0, 1, 1]]
    unlabelled = (
        RBM((4,), hidden=2),
        EnergyModel((4,), support="binary"),
        MarkovNetwork((4,), cliques=[[1, 2], [3, 4]]),
    )
    for other in unlabelled:
        with pytest.raises(InputError, match="1 of 2 datapoints hold values that their variables do not have"):
            other.free_energy(grey)
        with pytest.raises(InputError, match="takes no labels, but y was given"):
            other.free_energy(x, [0, 1])
    with pytest.raises(InputError, match="1 values of x are NaN or infinite; energies are of complete data"):
        model.free_energy([[math.nan, 0, 1, 0]])
    for ask in (model.classify, model.encode, model.state, lambda x: watch(model, 2, [1], start=x)):
        with pytest.raises(InputError, match="which are 0 and 1; binarize grey values"):
            ask(grey)


def test_variables_and_evidence_are_numbers_of_any_type() -> None:
    network = MarkovNetwork((3,), cliques=[[1, 2], [2, 3]], spread=1.0)
    wanted = network.marginal(3, given={1: 1})
    for number, value in ((3, True), (np.int64(3), np.int8(1)), (torch.tensor(3), torch.tensor(1.0))):
        assert torch.equal(network.marginal(number, given={1: value}), wanted)
        assert torch.equal(network.marginal(number, given={number - 2: [value]})[0], wanted)
    for variable in ("3", 3.0, None):
        with pytest.raises(InputError, match="is no variable; give its number, 1 to 3"):
            network.marginal(variable)
        with pytest.raises(InputError, match="is no variable"):
            network.log_z({variable: 1})
    with pytest.raises(InputError, match="X1 is a str of no real numbers"):
        network.mode({1: "a"})


def test_energies_may_be_counted_in_any_type() -> None:
    """1 for each pair that differs, as truth values, whole numbers or floats: Z of a chain of 3 bits is 2 (1 + e)^2."""
    for count in (torch.bool, torch.int64, torch.float32, torch.float64):
        table = torch.tensor([[0, 1], [1, 0]]).to(count)
        for energy in (table, lambda a, b, count=count: (a != b).to(count)):
            network = MarkovNetwork((3,), cliques=[[1, 2], [2, 3]], energies=[energy] * 2)
            assert network.log_z().item() == pytest.approx(math.log(2) + 2 * math.log1p(math.exp(-1)), rel=1e-5)
        model = EnergyModel((3,), energy=lambda x, count=count: (x[:, :1] > 0).to(count), reference="flat")
        assert torch.equal(model.free_energy([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]), torch.tensor([1.0, 0.0]).to(table))


def test_a_network_of_what_is_no_table_is_refused() -> None:
    for cardinality, said in (([2, 0], "cardinality of X2 was 0"), ([2.5, 2], "cardinality was given")):
        with pytest.raises(InputError, match=said):
            MarkovNetwork((2,), cliques=[[1, 2]], cardinality=cardinality)
    for cardinality in (np.int64(3), np.array([3, 3])):
        network = MarkovNetwork((2,), cliques=[[1, 2]], cardinality=cardinality, energies=[np.zeros((3, 3))])
        assert network.log_z().item() == pytest.approx(math.log(9))
    with pytest.raises(InputError, match=r"clique {1, 2} gave \(2,\) for its 4 states"):
        MarkovNetwork((2,), cliques=[[1, 2]], energies=[lambda a, b: a[:2]])


def test_figures_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(InputError, match="none of the numbers"):
        monitors([{"epoch": 1}])
    with pytest.raises(InputError, match="3 times, but 2 numbers"):
        chains(np.zeros((3, 1, 4)), [0, 1])
    assert filters(np.random.default_rng(0).normal(size=(6, 3)), (2, 3)).axes
    assert free_energies({"train": np.arange(9.0), "samples": np.arange(5.0)}).axes
    assert free_energies({"train": np.zeros(9)}).axes
    assert len(log_z_trace({"a": ([0.0, 1.0], np.zeros((2, 3)))}, exact=1.0).axes) == 2


def test_python_calls_say_what_is_wrong(binary_data: Data) -> None:
    model: Any = RBM((6,), 2, hidden=3, labels=True)
    x = binary_data.test.batch(slice(0, 4)).x
    for call, said in (
        (lambda: pl.check(model, binary_data), "RestrictedBoltzmannMachine has no posterior of latents"),
        (lambda: pl.impute(model, x, x > 0), "has no latent codes"),
        (lambda: pl.sample(EnergyModel((6,)), 2, mean=True), "EnergyModel has no hidden units; leave mean out"),
        (lambda: pl.reconstruct(model, x), "has no latent codes"),
        (lambda: pl.interpolate(model, x), "has no latent codes"),
        (lambda: model.free_energy(x[:, :5]), r"x has shape \(4, 5\), but .* events of shape \(6,\)"),
        (lambda: RBM((6,), hidden=2).encode(x[0]), r"x has shape \(6,\), but .* events of shape \(6,\)"),
        (lambda: sample(model, 0), "size was 0; at least 1 is needed"),
        (lambda: sample(model, 3, sweeps=-1), "sweeps was -1; at least 0 are needed"),
        (lambda: sample(model, 3, sweeps=2.5), "sweeps was 2.5; a whole number is needed"),
        (lambda: sample(model, 2.5), "size was 2.5; a whole number is needed"),
        (lambda: pl.watch(model, 0, [0, 1]), "size was 0; at least 1 is needed"),
        (lambda: pl.watch(model, 1.5, [0, 1]), "size was 1.5; a whole number is needed"),
        (lambda: pl.watch(model, 2, 5), "sweeps were 5; give a list of ascending integers from 0"),
        (lambda: pl.watch(model, 2, [0.5, 1]), "give a list of ascending integers"),
        (lambda: pl.watch(model, 2, [2, 1]), "give a list of ascending integers"),
        (lambda: pl.watch(model, 2, []), "give a list of ascending integers"),
        (lambda: pl.watch(model, 3, [1], start=x), "start holds 4 datapoints, but 3 chains"),
        (lambda: pl.Annealing(chains=1), "chains was 1; at least 2 are needed"),
        (
            lambda: sample(model, 3, y=torch.tensor([0, 1])),
            r"labels are int64 of shape \(2,\), but .* whole numbers from 0 to 1 of shape \(3,\)",
        ),
        (lambda: sample(model, 2, y=torch.tensor([0, 2])), "labels from 0 to 2 were given; they are 0 to 1"),
        (lambda: watch(model, 2, [0, 1], start=x), "start holds 4 datapoints, but 2 chains"),
        (
            lambda: EnergyModel((6,), energy=lambda x: x, support="binary").free_energy(x),
            r"gave \(4, 6\) for x \(4, 6\)",
        ),
        (lambda: EnergyModel((6,), energy=torch.sum, support="binary").free_energy(x), r"gave \(\) for x \(4, 6\)"),
    ):
        with pytest.raises(InputError, match=said):
            call()
