"""Pyro pairs of the user's own, unmodified: held against Pyro's own estimators and against what is known exactly."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyrolatent as pl
from pyrolatent import InputError, from_pyro
from pyrolatent.inference.objectives import ELBO, AnalyticELBO
from pyrolatent.pictures import plot
from tests.models.programs.programs import (
    Bernoullis,
    Classes,
    D,
    K,
    Linear,
    LocModel,
    Regression,
    loc_guide,
    loc_model,
)

BITS = (np.random.default_rng(0).random((80, D)) < 0.4).astype(np.float32)
REALS = np.random.default_rng(1).normal(1.0, 1.5, (80, 1)).astype(np.float32)
CODES = np.random.default_rng(2).integers(0, 3, 80)
ONCE: Any = {"epochs": 1, "batch_size": 16, "progress": False}


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def one_hot(x: Tensor, y: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return x, None if y is None else (y.unsqueeze(-1) == torch.arange(3)).to(x.dtype)


def bernoullis() -> tuple[Bernoullis, Any]:
    torch.manual_seed(0)
    program = Bernoullis()
    return program, from_pyro(program.model, program.guide)


# What is counted, and what is trained.


@pytest.mark.parametrize(
    ("ours", "theirs"), [(ELBO(), pyro.infer.Trace_ELBO()), (AnalyticELBO(), pyro.infer.TraceMeanField_ELBO())]
)
def test_losses_are_those_of_pyro_at_the_same_draws(ours: Any, theirs: Any) -> None:
    program, m = bernoullis()
    x = torch.from_numpy(BITS[:20])
    torch.manual_seed(3)
    loss = ours.loss(m.generate, m.infer, x)
    torch.manual_seed(3)
    assert loss == pytest.approx(theirs.loss(program.model, program.guide, x), rel=1e-5)


@pytest.mark.parametrize("make", [lambda: (Bernoullis().model, Bernoullis().guide), lambda: (loc_model, loc_guide)])
def test_what_svi_trains_is_trained(make: Callable[[], tuple[Any, Any]]) -> None:
    model, guide = make()
    x = torch.from_numpy(BITS[:20] if model is not loc_model else REALS[:20])
    m = from_pyro(model, guide)
    m.meet(x)
    with pyro.poutine.trace(param_only=True) as capture:
        pyro.infer.Trace_ELBO().loss(model, guide, x)
    theirs = {id(node["value"].unconstrained()) for node in capture.trace.nodes.values() if node["type"] == "param"}
    assert {id(parameter) for parameter in m.parameters()} == theirs


def test_a_fit_goes_on_from_svi_and_svi_from_a_fit() -> None:
    data = pl.load_data(REALS)
    svi = pyro.infer.SVI(loc_model, loc_guide, pyro.optim.SGD({"lr": 0.003}), pyro.infer.Trace_ELBO())
    for _ in range(30):
        svi.step(data.train.batch(slice(None)).x)
    trained = pyro.param("loc").item()
    assert trained != 0
    m = from_pyro(loc_model, loc_guide)
    pl.fit(m, data, objective="elbo", optimizer={"SGD": {"lr": 0.0}}, **ONCE)
    assert pyro.param("loc").item() == trained
    pl.fit(m, data, objective="elbo", **ONCE)
    after = pyro.param("loc").item()
    assert after != trained
    assert pyro.param("guide.width").item() != 0.5
    svi.step(data.train.batch(slice(None)).x)
    assert pyro.param("loc").item() != after
    assert m.parameters_met["loc"].item() == pyro.param("loc").item()


def test_constrained_parameters_of_functions_and_of_modules_train_alike() -> None:
    data = pl.load_data(REALS)
    functions, module = from_pyro(loc_model, loc_guide), from_pyro(LocModel(), loc_guide)
    histories = []
    for m in (functions, module):
        histories.append(pl.fit(m, data, objective="elbo", **ONCE | {"epochs": 3}).history[-1]["validation_elbo"])
        pyro.clear_param_store()
    assert histories[0] == pytest.approx(histories[1], rel=1e-6)
    loc, scale = (functions.parameters_met[name] for name in ("loc", "scale"))
    assert loc.item() == pytest.approx(module._programs[0].loc.item(), abs=1e-6)
    assert scale.exp().item() == pytest.approx(module._programs[0].scale.item(), rel=1e-5)


@pytest.mark.parametrize("objective", ["elbo", "analytic_elbo", "iwae", "dreg", "stl", "vimco", "Trace_ELBO"])
def test_every_objective_trains_a_pair(objective: str) -> None:
    program, m = bernoullis()
    before = program.decoder[0].weight.clone()
    fit = pl.fit(m, pl.load_data(BITS), objective=objective, **ONCE)
    assert np.isfinite(fit.history[-1]["validation_elbo"])
    assert not torch.equal(before, program.decoder[0].weight)


@pytest.mark.slow
def test_a_compiled_step_is_the_uncompiled_one() -> None:
    histories = []
    for compile in ("always", "never"):
        _, m = bernoullis()
        histories.append(pl.fit(m, pl.load_data(BITS), compile=compile, **ONCE | {"epochs": 2}).history[-1])
        pyro.clear_param_store()
    assert histories[0]["validation_elbo"] == pytest.approx(histories[1]["validation_elbo"], rel=1e-5)


def test_a_module_that_is_not_named_to_pyro_stays_as_it_is_and_is_saved(tmp_path: Path) -> None:
    features = nn.Linear(D, 2 * 2)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, log_scale = features(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    program = Bernoullis()
    m, before = from_pyro(program.model, guide), features.weight.clone()
    with pytest.warns(UserWarning, match=r"weight, bias of Linear .* not named to Pyro") as warned:
        fit = pl.fit(m, pl.load_data(BITS), **ONCE)
    assert sum("not named to Pyro" in str(one.message) for one in warned) == 1
    assert torch.equal(features.weight, before)
    assert not any(parameter is features.weight for parameter in m.parameters())
    run = pl.Run.save(tmp_path / "run", fit)
    with torch.no_grad():
        features.weight.zero_()
    pl.Run.load(run.path, model=m)
    assert torch.equal(features.weight, before)


class Shifted(nn.Module):
    """An encoder whose method is not `forward`: buffers, parameters and dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.full((D,), 3.0))
        self.linear, self.log_width = nn.Linear(D, K), nn.Parameter(torch.full((K,), 2.0))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dropped = nn.functional.dropout(self.linear(x - self.shift), 0.5, self.training)
        return dropped, self.log_width.exp()


def test_modules_are_met_by_any_of_their_methods_and_evaluated_without_dropout(tmp_path: Path) -> None:
    def pair() -> tuple[Any, Shifted]:
        encoder, dropout, program = Shifted(), nn.Dropout(0.5), Bernoullis()

        def guide(x: Tensor) -> None:
            pyro.module("encoder", encoder)
            with pyro.plate("data", len(x)):
                loc, scale = encoder.encode(dropout(x))
                pyro.sample("latent", dist.Normal(loc, scale).to_event(1))

        return from_pyro(program.model, guide), encoder

    m, encoder = pair()
    fit = pl.fit(m, pl.load_data(BITS), **ONCE)
    x = torch.from_numpy(BITS[:5])
    expected = encoder.linear(x - encoder.shift)
    assert torch.equal(m.encode(x)["latent"].mean, expected)
    encoder.train()
    assert torch.equal(m.encode(x)["latent"].mean, expected)
    with torch.no_grad():
        encoder.shift.fill_(1.0)
    run = pl.Run.save(tmp_path / "run", fit)
    pyro.clear_param_store()
    other, its_encoder = pair()
    pl.Run.load(run.path, model=other)
    found = other.encode(x)["latent"]
    assert torch.equal(its_encoder.shift, encoder.shift)
    assert torch.equal(found.mean, m.encode(x)["latent"].mean)
    assert torch.equal(found.stddev, m.encode(x)["latent"].stddev)


# Save and load.


@pytest.mark.parametrize("make", [lambda: bernoullis()[1], lambda: from_pyro(loc_model, loc_guide)])
def test_a_run_gives_a_pair_its_parameters_back_bit_for_bit(make: Callable[[], Any], tmp_path: Path) -> None:
    m = make()
    data = pl.load_data(BITS if hasattr(m._programs[0], "__self__") else REALS)
    run = pl.Run.save(tmp_path / "run", pl.fit(m, data, **ONCE))
    expected = pl.evaluate(m, data, particles=10)
    state = {name: value.clone() for name, value in m.state_dict().items()}
    pyro.clear_param_store()
    again = make()
    loaded = pl.Run.load(run.path, model=again).model
    assert tuple(loaded.event_shape) == data.event_shape
    assert pl.sample(loaded, 3).shape == (3, *data.event_shape)  # the first run, of no data
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert pl.evaluate(loaded, data, particles=10) == expected


def test_a_run_of_another_pair_is_refused(tmp_path: Path) -> None:
    run = pl.Run.save(tmp_path / "run", pl.fit(bernoullis()[1], pl.load_data(BITS), **ONCE))
    pyro.clear_param_store()
    program = Bernoullis(hidden=5)
    other = from_pyro(program.model, program.guide)
    with pytest.raises((InputError, RuntimeError), match=r"size mismatch|do not fit"):
        pl.evaluate(pl.Run.load(run.path, model=other).model, pl.load_data(BITS), particles=10)


PROGRAMS = """
import pyro, torch
import pyro.distributions as dist
from torch import nn

class Pair(nn.Module):
    def __init__(self, hidden=8, latent=2):
        super().__init__()
        self.latent = latent
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Tanh(), nn.Linear(hidden, 4))
        self.encoder = nn.Linear(4, 2 * latent)

    def model(self, x):
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), self.latent), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

pair = Pair()
"""


@pytest.mark.parametrize("options", ["", ", model_options: {hidden: 3}, guide_options: {hidden: 3}"])
def test_a_pair_is_declared_by_its_import_paths(options: str, tmp_path: Path) -> None:
    owner = "Pair" if options else "pair"
    (tmp_path / "programs.py").write_text(PROGRAMS)
    np.save(tmp_path / "bits.npy", BITS)
    (tmp_path / "experiment.yaml").write_text(
        f'model: {{pyro: {{model: "programs:{owner}.model", guide: "programs:{owner}.guide"{options}}}}}\n'
        "data: bits.npy\nepochs: 2\n"
    )
    experiment = pl.Experiment.load(tmp_path / "experiment.yaml")
    run = pl.train(experiment, tmp_path / "run", progress=False)
    assert run.model._programs[0].__self__ is run.model._programs[1].__self__
    with pytest.raises(pl.TrustError, match="programs"):
        pl.Run.load(tmp_path / "run")
    loaded = pl.Run.load(tmp_path / "run", trust=True)
    assert loaded.evaluate(particles=10).elbo == run.evaluate(particles=10).elbo


def test_pairs_of_one_file_share_nothing_and_their_seed_decides_their_weights(tmp_path: Path) -> None:
    (tmp_path / "programs.py").write_text(PROGRAMS)
    np.save(tmp_path / "bits.npy", BITS)

    def trained(seed: int) -> Tensor:
        declared = {"pyro": {"model": "programs:pair.model", "guide": "programs:pair.guide"}}
        experiment = pl.Experiment(
            model=declared, data="bits.npy", epochs=1, seed=seed, optimizer={"SGD": {"lr": 0.0}}, directory=tmp_path
        )
        data = experiment.load_data()
        model = experiment.fit(experiment.build(data), data, progress=False).model
        return model._programs[0].__self__.encoder.weight.detach().clone()

    first, again, other = trained(0), trained(0), trained(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_why_x_is_not_drawn_is_known_after_loading(tmp_path: Path) -> None:
    program = Linear()
    fit = pl.fit(from_pyro(observes_logs, loc_guide), pl.load_data(np.exp(REALS)), **ONCE)
    run = pl.Run.save(tmp_path / "run", fit)
    pyro.clear_param_store()
    again = pl.Run.load(run.path, model=from_pyro(observes_logs, loc_guide)).model
    with pytest.raises(InputError, match="observes other values than x"):
        pl.sample(again, 3)
    pyro.clear_param_store()
    other = pl.Run.load(run.path, model=from_pyro(program.model, program.guide)).model
    with pytest.raises(InputError, match="what was loaded is not of this pair"):
        pl.sample(other, 3)


def test_a_model_of_x_given_y_is_loaded_before_it_has_seen_data(tmp_path: Path) -> None:
    y = np.random.default_rng(3).normal(size=(80, 3)).astype(np.float32)
    program = Regression()
    fit = pl.fit(from_pyro(program.model, program.guide), pl.load_data(REALS, labels=y), **ONCE)
    run = pl.Run.save(tmp_path / "run", fit)
    pyro.clear_param_store()
    other = Regression()
    loaded = pl.Run.load(run.path, model=from_pyro(other.model, other.guide)).model
    assert loaded.encode(REALS[:5], y=y[:5])["z"].batch_shape == (5,)
    assert torch.equal(other.w.weight, program.w.weight)
    assert pl.sample(loaded, 5, y=y[:5]).shape == (5, 1)


@pytest.mark.parametrize("first", [lambda m: pl.sample(m, 3), lambda m: m.encode(BITS[:3])])
def test_modules_of_a_pair_that_observes_labels_are_loaded_before_it_has_seen_any(first: Any, tmp_path: Path) -> None:
    """With labels another module runs first than without them, of the same class and shape."""

    def pair() -> tuple[Any, nn.Module, nn.Module]:
        program, encoder_y, encoder_z = Classes(), nn.Linear(D, 3), nn.Linear(D, 3)

        def guide(xs: Tensor, ys: Tensor | None = None) -> None:
            pyro.module("y", encoder_y)
            pyro.module("z", encoder_z)
            with pyro.plate("data", len(xs)):
                if ys is None:
                    logits = encoder_y(xs)
                    pyro.sample("y", dist.OneHotCategorical(logits=logits), infer={"enumerate": "parallel"})
                pyro.sample("z", dist.Normal(encoder_z(xs), 1.0).to_event(1))

        def model(xs: Tensor, ys: Tensor | None = None) -> None:
            program.model(xs, ys)
            with pyro.plate("data", len(xs)):
                pyro.sample("z", dist.Normal(xs.new_zeros(len(xs), 3), 1.0).to_event(1))

        m = from_pyro(model, guide, observed={"x": "x", "y": "y"}, arguments=one_hot)
        return m, encoder_y, encoder_z

    m, encoder_y, encoder_z = pair()
    run = pl.Run.save(tmp_path / "run", pl.fit(m, pl.load_data(BITS, labels=CODES), **ONCE))
    pyro.clear_param_store()
    other, its_y, its_z = pair()
    first(pl.Run.load(run.path, model=other).model)
    assert torch.equal(its_y.weight, encoder_y.weight)
    assert torch.equal(its_z.weight, encoder_z.weight)


# Evidence and draws against what is known exactly.


def test_log_evidence_is_exact_where_the_guide_is_the_posterior() -> None:
    program, data = Linear(), pl.load_data(REALS)
    found = pl.evaluate(from_pyro(program.model, program.guide), data, particles=5)
    assert found.each["log_evidence"].numpy() == pytest.approx(program.log_prob(data.test.x).numpy(), abs=1e-5)
    assert found.measure == "density (in the units of the data)"


@pytest.mark.parametrize("full", [pytest.param(False, marks=pytest.mark.slow), True], ids=["of the batch", "of all"])
def test_annealed_evidence_is_of_any_plate_and_of_scalars(full: bool) -> None:
    """Chains that start at z ~ N(0, 1) end at log p(x), whatever the plate is called and how many it declares."""
    program, data = Linear(), pl.load_data(REALS)

    def plate(x: Tensor) -> Any:
        return pyro.plate("all", len(REALS), subsample=torch.arange(len(x)))

    def model(x: Tensor) -> None:
        with plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(program.w * z.unsqueeze(-1), program.s).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with plate(x):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    m = from_pyro(model, guide) if full else from_pyro(program.model, program.guide)
    found = pl.annealed_evidence(m, data, chains=16, steps=30)
    truth = program.log_prob(data.test.x).mean()
    assert found.log_evidence == pytest.approx(float(truth), abs=4 * found.log_evidence_mcse + 0.02)


def test_categories_are_summed_out_and_decoded() -> None:
    weights, locs = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([-2.0, 0.0, 2.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[k].unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=x * locs))

    m, data = from_pyro(model, pyro.infer.config_enumerate(guide)), pl.load_data(REALS)
    found = pl.evaluate(m, data, particles=1)
    expected = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, 1.0)).log_prob(data.test.x)[:, 0]
    assert found.each["log_evidence"].numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    assert torch.equal(m.decode([2, 0]).mean, locs[[2, 0]].unsqueeze(-1))


def test_a_scale_of_the_program_is_no_part_of_its_score_in_training() -> None:
    program, scores = Linear(), []
    for scale in (1.0, 0.01):

        def model(x: Tensor, scale: float = scale) -> None:
            nothing = 0 * pyro.param("weight", torch.ones(()))
            with pyro.poutine.scale(scale=scale):
                program.model(x + nothing)

        def guide(x: Tensor, scale: float = scale) -> None:
            with pyro.poutine.scale(scale=scale):
                program.guide(x)

        pyro.clear_param_store()
        scores.append(pl.fit(from_pyro(model, guide), pl.load_data(REALS), **ONCE).history[-1]["validation_elbo"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_missing_values_are_left_out_of_a_likelihood_that_factorises() -> None:
    """Of x = (x_1, x_2) given z, what is observed alone is scored; the exact value is that of x_1."""
    program = Linear()
    both = np.concatenate([REALS, np.full_like(REALS, np.nan)], 1)
    mask = np.isfinite(both)
    data = pl.load_data(both, mask="nan")
    found = pl.evaluate(from_pyro(program.model, program.guide), data, particles=5)
    assert mask[:, 0].all()
    expected = program.log_prob(data.test.x[:, :1])
    assert found.each["log_evidence"].numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_what_is_missing_is_imputed_by_the_posterior() -> None:
    """x_2 given x_1 is N(w² x_1 / (w² + s²), s² + w² s² / (w² + s²))."""
    program = Linear()
    m = from_pyro(program.model, program.guide)
    x, mask = torch.tensor([[1.2, 0.0]]), torch.tensor([[True, False]])
    torch.manual_seed(0)
    drawn = pl.impute(m, x.expand(50, 2), mask.expand(50, 2), draws=100, particles=200)[..., 1].flatten()
    total = program.w**2 + program.s**2
    mean = program.w**2 * 1.2 / total
    variance = program.s**2 + program.w**2 * program.s**2 / total
    assert drawn.mean().item() == pytest.approx(mean, abs=5 * (variance / len(drawn)) ** 0.5 + 0.02)
    assert drawn.var().item() == pytest.approx(variance, rel=5 * (2 / len(drawn)) ** 0.5 + 0.03)


def test_samples_are_those_of_the_program() -> None:
    program = Linear()
    m = from_pyro(program.model, program.guide)
    m.meet(torch.from_numpy(REALS[:4]))
    torch.manual_seed(0)
    drawn = pl.sample(m, 20_000)
    variance = program.w**2 + program.s**2
    assert drawn.mean().item() == pytest.approx(0.0, abs=5 * (variance / 20_000) ** 0.5)
    assert drawn.var().item() == pytest.approx(variance, rel=5 * (2 / 20_000) ** 0.5)


def test_what_the_program_records_is_not_drawn() -> None:
    program = Linear()

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            loc = pyro.deterministic("loc", program.w * z)
            pyro.sample("x", dist.Normal(loc.unsqueeze(-1), program.s).to_event(1), obs=x)

    m = from_pyro(model, program.guide)
    m.meet(torch.from_numpy(REALS[:4]))
    torch.manual_seed(0)
    drawn = pl.sample(m, 2_000)
    assert drawn.shape == (2_000, 1)
    assert drawn.var().item() == pytest.approx(program.w**2 + program.s**2, rel=5 * (2 / 2_000) ** 0.5)


def test_that_x_is_changed_by_the_program_is_seen_at_the_extremes_of_the_data() -> None:
    program, x = Linear(), np.zeros((80, 1), np.float32)
    x[5::10] = 9.0

    def model(x: Tensor) -> None:
        program.model(x.clamp(-5, 5))

    found = pl.evaluate(from_pyro(model, program.guide), pl.load_data(x), particles=3)
    assert found.measure == "mass or density (of what the program observes)"


def test_that_x_is_changed_by_the_program_is_seen_between_the_extremes_of_the_data() -> None:
    """The first datapoint, the largest and the smallest are what they were."""
    program = Linear()

    def model(x: Tensor) -> None:
        program.model(torch.where(x.abs() < 0.3, 0.0, x))

    found = pl.evaluate(from_pyro(model, program.guide), pl.load_data(REALS), particles=3)
    assert found.measure == "mass or density (of what the program observes)"


def test_images_that_the_program_flattens_keep_their_shape() -> None:
    _, m = bernoullis()
    data = pl.load_data(BITS.reshape(-1, 2, 2))
    pl.fit(m, data, **ONCE)
    assert pl.sample(m, 3).shape == pl.sample(m, 3, mean=True).shape == (3, 2, 2)
    assert pl.reconstruct(m, data.test.batch(slice(0, 5)).x).shape == (5, 2, 2)
    assert m.decode(torch.zeros(7, 2)).event_shape == (2, 2)


def test_a_model_of_x_given_y_is_evaluated_at_its_labels() -> None:
    program = Regression()
    y = np.random.default_rng(3).normal(size=(80, 3)).astype(np.float32)
    data = pl.load_data(REALS, labels=y)
    found = pl.evaluate(from_pyro(program.model, program.guide), data, particles=5)
    expected = program.log_prob(data.test.x, data.test.y)  # type: ignore[arg-type]
    assert found.each["log_evidence"].numpy() == pytest.approx(expected.detach().numpy(), abs=1e-5)
    assert found.given == "y"


def test_a_label_that_the_model_observes_is_summed_out_in_evaluation() -> None:
    program = Classes()
    data = pl.load_data(BITS, labels=CODES)
    m = from_pyro(program.model, program.guide, observed={"x": "x", "y": "y"}, arguments=one_hot)
    pl.fit(m, data, **ONCE)
    assert any(parameter is program.encoder_y.weight for parameter in m.parameters())
    found = pl.evaluate(m, data, particles=1)
    expected = program.log_prob(data.test.batch(slice(None)).x).detach()
    assert found.each["log_evidence"].numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    assert found.given is None
    torch.manual_seed(0)
    drawn = pl.sample(m, 4000, [1] * 4000)
    p = torch.sigmoid(program.decoder(torch.eye(3))[1]).detach()
    assert drawn.mean(0).numpy() == pytest.approx(p.numpy(), abs=5 * 0.5 / 4000**0.5)


def test_unknown_labels_are_refused() -> None:
    program = Classes()
    m = from_pyro(program.model, program.guide, observed={"x": "x", "y": "y"}, arguments=one_hot)
    with pytest.raises(InputError, match="labels are unknown"):
        pl.fit(m, pl.load_data(BITS, labels=CODES, labelled=10), **ONCE)


def test_labels_that_a_pair_does_not_take_are_left_out() -> None:
    _, m = bernoullis()
    data = pl.load_data(BITS, labels=CODES)
    pl.fit(m, data, **ONCE)
    assert m.label_dim == 0
    assert pl.evaluate(m, data, particles=5).given is None


def test_checks_arviz_and_the_picture_of_a_pair() -> None:
    program = Linear()
    m, data = from_pyro(program.model, program.guide), pl.load_data(REALS, test=0.5)
    found = pl.check(m, data, annealed=0)
    judged = {verdict.by.name: verdict for verdict in found.verdicts}
    assert judged["k-hat"].passed
    assert judged["sbc latents"].passed
    assert {"posterior", "posterior_predictive", "prior"} <= set(pl.to_arviz(m, data, draws=20, predictive=20).groups())
    assert str(m).splitlines()[1:] == ["  p(z) = Normal", "  p(x | z) = Normal (1,)", "  q(z | x) = Normal"]


def test_the_pictures_of_a_pair() -> None:
    _, m = bernoullis()
    data = pl.load_data(BITS.reshape(-1, 2, 2))
    fit = pl.fit(m, data, **ONCE)
    whole = {"training", "reconstructions", "embedding", "samples", "sample_means", "latent_grid"}
    assert set(plot(m, data, fit.history)) == whole
    two = from_pyro(with_two_observed, prior_guide)
    assert set(plot(two, pl.load_data(REALS), [])) == {"embedding"}


def test_a_pair_in_double_precision() -> None:
    program, _ = bernoullis()
    m = from_pyro(program.double().model, program.guide)
    fit = pl.fit(m, pl.load_data(BITS), **ONCE)
    assert next(fit.model.parameters()).dtype == torch.float64


def test_the_parts_of_a_pair_train_under_svi() -> None:
    program, m = bernoullis()
    x = torch.from_numpy(BITS)
    svi = pyro.infer.SVI(m.model, m.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert program.decoder[0].weight is m.modules_met["Bernoullis"].decoder[0].weight
    drawn = pyro.infer.Predictive(m.model, guide=m.guide, num_samples=3)(x)
    assert drawn["latent"].shape[:2] == (3, len(x))


# Programs that observe something else than x, or take one particle at a time.


def observes_logs(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("log x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x.log())


def counts_given_their_total(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        p = torch.stack([z, -z, z * 0], -1).softmax(-1)
        pyro.sample("x", dist.Multinomial(int(x.sum(-1).max()), p, validate_args=False), obs=x)


def with_another_site(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("w", dist.Normal(z, 1.0), obs=x.new_ones(len(x)))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)


def with_a_factor(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.factor("factor", -(z**2))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)


def prior_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))


@pytest.mark.parametrize(
    ("model", "x", "reason"),
    [
        (observes_logs, np.exp(REALS), "observes other values than x"),
        (counts_given_their_total, np.full((60, 3), 4.0, np.float32), "depend on x itself"),
        (with_another_site, REALS, "the model scores w besides 'x'"),
        (with_a_factor, REALS, "the model scores factor besides 'x'"),
    ],
)
def test_x_is_not_drawn_from_a_pair_that_does_not_observe_it(model: Callable[..., Any], x: Any, reason: str) -> None:
    m, data = from_pyro(model, prior_guide, observed="log x" if model is observes_logs else "x"), pl.load_data(x)
    found = pl.evaluate(m, data, particles=30)
    assert found.measure == "mass or density (of what the program observes)"
    with pytest.raises(InputError, match=reason):
        pl.sample(m, 3)
    assert "posterior_predictive" not in pl.to_arviz(m, data, draws=20, predictive=20).groups()


def test_arguments_that_are_drawn_are_taken_neither_for_labels_nor_for_a_mask() -> None:
    program, data = Bernoullis(), pl.load_data(0.1 + 0.8 * BITS, labels=CODES)
    m = from_pyro(program.model, program.guide, arguments=lambda x, y, mask: torch.bernoulli(x))
    found = pl.evaluate(m, data, particles=5)
    assert found.given is None
    assert found.measure == "mass or density (of what the program observes)"
    assert not m._takes_mask


def of_one_batch_dimension(x: Tensor) -> None:
    pyro.param("unused", torch.zeros(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(1.5 * z.view(len(x), 1), 0.5).to_event(1), obs=x)


def test_a_program_of_one_batch_dimension_is_run_particle_by_particle() -> None:
    program, data = Linear(), pl.load_data(REALS)
    m = from_pyro(of_one_batch_dimension, program.guide)
    found = pl.evaluate(m, data, particles=8)
    assert found.each["log_evidence"].numpy() == pytest.approx(program.log_prob(data.test.x).numpy(), abs=1e-5)
    with pytest.raises(InputError, match="one at a time"):
        pl.fit(m, data, objective={"iwae": {"particles": 4}}, **ONCE)


# What is refused, by name.


def with_two_observed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("a", dist.Normal(z, 1.0), obs=x[:, 0])
        pyro.sample("b", dist.Normal(z, 1.0), obs=x[:, 0])


def rows_of_parameters(x: Tensor) -> None:
    loc = pyro.param("locs", torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def without_a_plate(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0).to_event(1))


def of_its_own_rows(x: Tensor) -> None:
    with pyro.plate("data", len(x), subsample_size=1) as rows:
        pyro.sample("z", dist.Normal(x[rows, 0], 1.0))


def without_a_latent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x), 1]).to_event(1), obs=x)


def fails(x: Tensor) -> None:
    raise KeyError("no such thing")


def asks_for_more(x: Tensor, lengths: Tensor) -> None: ...


def needs_labels(x: Tensor, y: Tensor) -> None: ...


@pytest.mark.parametrize(
    ("model", "guide", "options", "message"),
    [
        (loc_model, rows_of_parameters, {}, r"'locs' has the shape \(3,\) for 3 datapoints"),
        (without_a_plate, without_a_plate, {}, "no plate of the pair is over the 3 datapoints"),
        (of_its_own_rows, of_its_own_rows, {}, "no plate of the pair is over the 3 datapoints"),
        (without_a_latent, lambda x: None, {}, "no latent site"),
        (fails, loc_guide, {}, "KeyError"),
        (needs_labels, needs_labels, {}, "there are no labels"),
        (loc_model, loc_guide, {"observed": "obs"}, "the observed sites are x"),
        (loc_model, loc_guide, {"arguments": lambda x, y, mask: (x, y.long())}, "arguments fails for x of shape"),
        (loc_model, loc_guide, {"plate": "rows"}, "no plate 'rows'"),
    ],
)
def test_a_pair_that_cannot_be_taken_says_why(model: Any, guide: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pl.fit(from_pyro(model, guide, **options), pl.load_data(REALS), **ONCE)


def test_parameters_of_the_program_that_no_default_fills() -> None:
    with pytest.raises(InputError, match="'lengths', which is none of x, y, mask and rows"):
        from_pyro(asks_for_more, loc_guide)
    with pytest.raises(InputError, match=r"guide was given 3"):
        from_pyro(loc_model, 3)  # type: ignore[arg-type]


def test_two_observed_sites_train_but_say_nothing_of_x() -> None:
    m, data = from_pyro(with_two_observed, prior_guide), pl.load_data(REALS)
    x, z = data.test.x[:, 0].double(), torch.linspace(-8, 8, 4001, dtype=torch.float64)
    one = dist.Normal(z, 1.0).log_prob(x.unsqueeze(-1))
    exact = (dist.Normal(0.0, 1.0).log_prob(z) + 2 * one).logsumexp(-1) + np.log(16 / 4000)
    found = pl.evaluate(m, data, particles=4000)
    assert found.log_evidence == pytest.approx(exact.mean().item(), abs=6 * found.log_evidence_mcse + 1e-3)
    with pytest.raises(InputError, match="observes a, b; name the site"):
        pl.sample(m, 2)
    checked = pl.check(m, pl.load_data(REALS, test=0.5), draws=200, annealed=0)
    assert "k-hat" in {verdict.by.name for verdict in checked.verdicts}
    assert checked.figures()


def test_autoguides_that_hold_the_rows_of_one_batch_are_refused_untouched() -> None:
    program = Bernoullis()
    guide = AutoNormal(program.model)
    with pytest.raises(InputError, match=r"AutoNormal would have parameters of 'latent' for each row"):
        pl.fit(from_pyro(program.model, guide), pl.load_data(BITS), **ONCE)
    assert guide.prototype_trace is None


def test_parameters_that_are_met_in_some_runs_alone_are_refused() -> None:
    runs: list[int] = []

    def guide(x: Tensor) -> None:
        runs.append(1)
        loc = pyro.param("late", torch.tensor(0.0)) if len(runs) > 8 else 0.0
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc + x[:, 0], 1.0))

    with pytest.raises(InputError, match="'late' to Pyro in some runs alone"):
        pl.fit(from_pyro(loc_model, guide), pl.load_data(REALS), **ONCE)


@pytest.mark.parametrize("how", ["load", "set_state"])
def test_parameters_that_the_store_is_given_later_are_said_and_taken_by_a_new_pair(how: str, tmp_path: Path) -> None:
    data, store = pl.load_data(REALS), pyro.get_param_store()
    m = from_pyro(loc_model, loc_guide)
    pl.fit(m, data, **ONCE)
    first = pyro.param("loc").item()
    store.save(tmp_path / "store")
    state = torch.load(tmp_path / "store", weights_only=False)
    pl.fit(m, data, **ONCE)
    second = pyro.param("loc").item()
    assert first != second
    store.load(tmp_path / "store") if how == "load" else store.set_state(state)
    with pytest.warns(UserWarning, match=r"store was given another guide.slope, guide.width, loc since"):
        pl.evaluate(m, data, particles=3)
    assert m.parameters_met["loc"].item() == second
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pl.evaluate(m, data, particles=3)
    again = from_pyro(loc_model, loc_guide)
    pl.evaluate(again, data, particles=3)
    assert again.parameters_met["loc"].item() == first


def test_missing_values_are_refused_where_something_else_is_computed_of_x() -> None:
    x = np.repeat(REALS, 2, 1)
    x[::5, 1] = np.nan
    with pytest.raises(InputError, match=r"the model scores factor besides 'x', which would take them for zeros"):
        pl.fit(from_pyro(with_a_factor, prior_guide, observed="x"), pl.load_data(x), **ONCE)


def test_names_of_parameters_are_not_shared_unawares() -> None:
    data = pl.load_data(REALS)
    first = from_pyro(loc_model, loc_guide)
    pl.fit(first, data, **ONCE)

    def other_guide(x: Tensor) -> None:
        loc_guide(x)

    with pytest.raises(InputError, match=r"of another pair; call pyro.clear_param_store"):
        pl.fit(from_pyro(loc_model, other_guide), data, **ONCE)
    pyro.clear_param_store()
    second = from_pyro(loc_model, other_guide)
    before = first.parameters_met["loc"].item()
    pl.fit(second, data, **ONCE)
    assert first.parameters_met["loc"].item() == before
    program = Bernoullis()
    svi = pyro.infer.SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    svi.step(torch.from_numpy(BITS))
    other = Bernoullis()
    with pytest.raises(InputError, match=r"of another module than the pair's"):
        pl.fit(from_pyro(other.model, other.guide), pl.load_data(BITS), **ONCE)
