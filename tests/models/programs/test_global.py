"""Pyro pairs with latents outside the plate over datapoints, held against conjugate models and Pyro's estimators."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.infer.autoguide as autoguide
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import pyrolatent as pl
from pyrolatent import InputError, from_pyro
from pyrolatent.inference.objectives import ELBO, IWAE, STL, VIMCO, AnalyticELBO, DReG, Renyi
from pyrolatent.inference.objectives.base import as_objective
from pyrolatent.inference.objectives.bounds import CombinationIWAE, MultiplyIWAE, PartiallyIWAE, ReweightedWakeSleep
from pyrolatent.inference.weights import weigh
from pyrolatent.pictures import plot

D, NOISE = 3, 0.5
RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(40, D))
ROWS = np.c_[FEATURES, FEATURES @ [1.0, -0.5, 0.3] + NOISE * RANDOM.normal(size=40)].astype(np.float32)
LINE = torch.tensor(RANDOM.normal(1.0, 1.2, (80, 1)), dtype=torch.float32)


def regression(rows: Tensor) -> None:
    """w ~ N(0, 1), y_n ~ N(w x_n, 0.5²): a row holds x_n and y_n."""
    w = pyro.sample("w", dist.Normal(rows.new_zeros(D), 1.0).to_event(1))
    with pyro.plate("data", len(rows)):
        pyro.sample("y", dist.Normal(rows[:, :-1] @ w, NOISE), obs=rows[:, -1])


def weights_guide(rows: Tensor) -> None:
    loc = pyro.param("loc", lambda: rows.new_zeros(D))
    tril = pyro.param("tril", lambda: 0.2 * torch.eye(D), constraint=constraints.lower_cholesky)
    pyro.sample("w", dist.MultivariateNormal(loc, scale_tril=tril))


def posterior_of(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of w, and log p(y), of the regression in closed form."""
    x, y = rows[:, :-1].double(), rows[:, -1].double()
    covariance = torch.linalg.inv(torch.eye(D, dtype=torch.double) + x.T @ x / NOISE**2)
    of_y = torch.eye(len(x), dtype=torch.double) * NOISE**2 + x @ x.T
    evidence = dist.MultivariateNormal(y.new_zeros(len(y)), of_y).log_prob(y)
    return covariance @ x.T @ y / NOISE**2, covariance, evidence


class Levels:
    """u ~ N(0, 1), z_n ~ N(u, 1), x_n ~ N(z_n, s²): what is common to all datapoints, and what is of each.

    Args:
        size: how many datapoints the plate says that there are; None: those that it is given.
        exact: whether the guide is the posterior given 80 datapoints.
    """

    s = 0.5

    def __init__(self, size: int | None = None, exact: Tensor | None = None) -> None:
        self.size = size
        self.exact = exact

    def plate(self, x: Tensor) -> Any:
        return (
            pyro.plate("data", len(x))
            if self.size is None
            else pyro.plate("data", self.size, subsample=torch.arange(len(x)))
        )

    def model(self, x: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(u, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), self.s).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        if self.exact is not None:
            u = pyro.sample("u", self.posterior())
            loc, scale = (x[:, 0] + self.s**2 * u) / (1 + self.s**2), self.s / math.sqrt(1 + self.s**2)
        else:
            mean = pyro.param("mean", lambda: x.new_tensor(0.3))
            width = pyro.param("width", lambda: x.new_tensor(0.4), constraint=constraints.positive)
            u = pyro.sample("u", dist.Normal(mean, width))
            a, b = pyro.param("a", lambda: x.new_tensor(0.6)), pyro.param("b", lambda: x.new_tensor(0.3))
            loc, scale = a * x[:, 0] + b * u, pyro.param("scale", lambda: x.new_tensor(0.6), constraints.positive)
        with self.plate(x):
            pyro.sample("z", dist.Normal(loc, scale))

    def posterior(self) -> dist.Normal:
        """p(u | the datapoints)."""
        assert self.exact is not None
        precision = 1 + len(self.exact) / (1 + self.s**2)
        return dist.Normal(self.exact.sum() / (1 + self.s**2) / precision, 1 / math.sqrt(precision))

    def predictive(self, x: Tensor) -> Tensor:
        """log p(x | the datapoints) of new ones."""
        u = self.posterior()
        return dist.Normal(u.loc, (u.scale**2 + 1 + self.s**2).sqrt()).log_prob(x[:, 0])


def met(levels: Levels) -> Any:
    pyro.clear_param_store()
    m = from_pyro(levels.model, levels.guide)
    m.meet(LINE[:3])
    return m


def gradients(m: Any, objective: Any, x: Tensor, datapoints: int, seed: int = 0) -> Tensor:
    """The gradient that a step on x, of so many datapoints, takes, of every parameter."""
    torch.manual_seed(seed)
    m.zero_grad()
    with m.of_rows(torch.arange(len(x)), datapoints):
        objective.accumulate(m, (x, None, None))
    return torch.stack([parameter.grad for parameter in m.parameters()]).detach().clone()


# What is counted.


def test_the_bound_at_the_exact_posterior_is_the_evidence() -> None:
    """At q(w) = p(w | y), log p(y, w) - log q(w) is log p(y) at every draw, whatever is shared among datapoints."""
    rows = torch.as_tensor(ROWS)
    mean, covariance, evidence = posterior_of(rows)
    m = from_pyro(regression, weights_guide)
    m.meet(rows[:3])
    with torch.no_grad():
        m.parameters_met["loc"].copy_(mean)
        tril = torch.linalg.cholesky(covariance)
        m.parameters_met["tril"].copy_(torch.distributions.transform_to(constraints.lower_cholesky).inv(tril))
    for objective in (ELBO(), ELBO(particles=3), IWAE(particles=4), AnalyticELBO()):
        loss = objective.loss(m.generate, m.infer, rows)
        analytic = isinstance(objective, AnalyticELBO)  # which has the closed KL beside one draw of the likelihood
        assert -loss == pytest.approx(float(evidence), abs=8.0 if analytic else 1e-3)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(ELBO(), pyro.infer.Trace_ELBO()), (AnalyticELBO(), pyro.infer.TraceMeanField_ELBO())]
)
@pytest.mark.parametrize("levels", [Levels(), Levels(size=400)], ids=["of the batch", "of all"])
def test_loss_is_that_of_pyro_at_the_same_draws(ours: Any, theirs: Any, levels: Levels) -> None:
    m = met(levels)
    losses = []
    for objective in (ours, theirs):
        torch.manual_seed(1)
        losses.append(objective.loss(m.model, m.guide, LINE[:20]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("theirs", [pyro.infer.Trace_ELBO(), pyro.infer.TraceMeanField_ELBO()])
def test_a_minibatch_counts_what_lies_outside_by_its_share(theirs: Any) -> None:
    """The mean gradient of minibatches at one draw of u is that of all data."""
    rows, levels = LINE[:48], Levels()

    def held(x: Tensor) -> None:  # u alone is drawn, so that a seed fixes it
        mean = pyro.param("mean", lambda: x.new_tensor(0.3))
        width = pyro.param("width", lambda: x.new_tensor(0.4), constraint=constraints.positive)
        u = pyro.sample("u", dist.Normal(mean, width))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(u.expand(len(x))))

    m = from_pyro(levels.model, held)
    m.meet(rows[:3])
    for objective in (ELBO(), as_objective(theirs)):
        whole = gradients(m, objective, rows, 48)
        for size in (1, 8, 16):
            parts = [gradients(m, objective, part, 48) for part in rows.split(size)]
            assert torch.allclose(torch.stack(parts).mean(0), whole, rtol=1e-4, atol=1e-5)


def groups(rows: Tensor) -> None:
    """Intercepts of three groups, as many as there are datapoints in the first run; a row holds a group and y_n."""
    tau = pyro.sample("tau", dist.HalfNormal(rows.new_tensor(2.0)))
    with pyro.plate("groups", 3):
        a = pyro.sample("a", dist.Normal(0.0, tau))
    with pyro.plate("data", len(rows)):
        pyro.sample("y", dist.Normal(a[rows[:, 0].long()], NOISE), obs=rows[:, 1])


def columns(x: Tensor) -> None:
    """One mean for each of three columns, which have a plate beside that of the datapoints."""
    with pyro.plate("columns", 3, dim=-1):
        a = pyro.sample("a", dist.Normal(x.new_zeros(3), 1.0))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)


@pytest.mark.parametrize("model", [groups, columns])
def test_plates_over_datapoints_are_told_from_others_of_their_size(model: Any) -> None:
    x = torch.as_tensor(RANDOM.normal(size=(30, 3)).astype(np.float32))
    x[:, 0] = torch.arange(30) % 3
    x = x[:, :2] if model is groups else x
    guide = AutoNormal(model)
    m = from_pyro(model, guide)
    m.meet(x)
    assert m.plate == "data"
    assert m.global_sites == (["tau", "a"] if model is groups else ["a"])
    losses = []
    for objective, pair in ((ELBO(), (m.model, m.guide)), (pyro.infer.Trace_ELBO(), (model, guide))):
        torch.manual_seed(0)
        losses.append(objective.loss(*pair, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_plate_that_declares_all_datapoints_is_left_as_it_is() -> None:
    """Steps on a minibatch are those of the same pair whose plate is of the minibatch."""
    pairs = [met(Levels()), met(Levels(size=64))]
    for objective in (ELBO(), IWAE(particles=5), DReG(particles=5)):
        one, other = (gradients(m, objective, LINE[:16], 64) for m in pairs)
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_bounds_have_one_draw_of_u_and_k_of_z() -> None:
    """The value is (1/N) (log p(u) - log q(u)) + log mean_k p(x, z_k | u) / q(z_k | x, u), by hand."""
    m = met(Levels())
    weights = weigh(m.generate, m.infer, LINE[:6], particles=4, outside=True)
    u, z = weights.guide_trace.nodes["u"], weights.guide_trace.nodes["z"]
    assert u["value"].shape == ()
    assert z["value"].shape == (4, 6)
    log_w = dist.Normal(z["value"], Levels.s).log_prob(LINE[:6, 0]) + dist.Normal(u["value"], 1).log_prob(z["value"])
    log_w = log_w - z["fn"].log_prob(z["value"])
    outside = (dist.Normal(0.0, 1.0).log_prob(u["value"]) - u["fn"].log_prob(u["value"])) / 6
    assert torch.allclose(IWAE().bound(weights), log_w.logsumexp(0) - math.log(4) + outside, atol=1e-5)
    assert torch.allclose(weights.log_weights(), log_w + outside, atol=1e-5)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (DReG(particles=3), IWAE(particles=3)),
        pytest.param(STL(particles=1), ELBO(), marks=pytest.mark.slow),
        pytest.param(MultiplyIWAE(groups=1, particles=3), IWAE(particles=3), marks=pytest.mark.slow),
        pytest.param(Renyi(alpha=0.0, particles=3), IWAE(particles=3), marks=pytest.mark.slow),
        pytest.param(CombinationIWAE(share=1.0, particles=3), ELBO(particles=3), marks=pytest.mark.slow),
    ],
    ids=["dreg", "stl", "multiply", "renyi", "combination"],
)
def test_gradients_that_have_one_mean_have_one(one: Any, other: Any) -> None:
    """Within 4.5 standard errors of 200 steps each, in the parameters of q(u), of q(z | x, u), and of both paths."""
    m = met(Levels())
    found = [
        torch.stack([gradients(m, objective, LINE[:8], 32, seed) for seed in range(1000 * count, 1000 * count + 200)])
        for count, objective in enumerate((one, other))
    ]
    difference = found[0].mean(0) - found[1].mean(0)
    error = sum(each.var(0) / len(each) for each in found) ** 0.5
    assert (difference.abs() < 4.5 * error + 1e-6).all(), (difference / error).tolist()


@pytest.mark.parametrize("objective", [VIMCO(), ReweightedWakeSleep(), PartiallyIWAE(), pyro.infer.RenyiELBO(0.5, 2)])
def test_weights_that_would_join_both_are_refused(objective: Any) -> None:
    m = met(Levels())
    with pytest.raises(InputError, match="latents that are each of one datapoint alone"):
        pl.fit(m, pl.load_data(LINE.numpy()), objective=objective, epochs=1, progress=False)


def test_free_bits_are_of_the_latents_of_datapoints() -> None:
    """What lies outside is counted whole: with more free bits than KL(z), only log p(x | z) and KL(u) are left."""
    m = met(Levels())
    torch.manual_seed(0)
    weights = ELBO(free_bits=50.0).weigh(m.generate, m.infer, LINE[:6])
    target = ELBO(free_bits=50.0).target(weights)
    by_hand = weights.log_likelihood[0] - 50.0 - weights.sampled_kl("u")[0]
    assert torch.allclose(target, by_hand, atol=1e-5)


# Training.


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 10, 1000])
def test_regression_in_minibatches_ends_at_the_posterior(batch_size: int) -> None:
    """Bayesian linear regression, averaged over the last epochs, against the closed form.

    A Gaussian q with a free covariance holds the posterior, so the optimum is exact. The gradient of `stl` has no noise
    there but that of minibatches, whose steps leave some tenths of a posterior standard deviation; terms outside the
    plate that are not weighted at all would make it 1.8 and 5.7 times too narrow or too wide.
    """
    data = pl.load_data(ROWS)
    mean, covariance, evidence = posterior_of(data.train.x)
    m = from_pyro(regression, weights_guide)
    epochs = {1: 60, 10: 400, 1000: 1500}[batch_size]
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(fit: Any) -> None:
        if len(fit.history) > epochs * 0.75:
            loc, tril = (m.parameters_met[name].detach().clone() for name in ("loc", "tril"))
            tril = torch.distributions.transform_to(constraints.lower_cholesky)(tril)
            kept.append((loc, tril @ tril.T))

    schedule = {"MultiStepLR": {"milestones": [epochs // 2], "gamma": 0.2}}
    pl.fit(
        m, data, keep, progress=False, epochs=epochs, batch_size=batch_size, compile="never",
        optimizer={"Adam": {"lr": 0.02}}, scheduler=schedule, objective={"stl": {"particles": 1}},
    )  # fmt: skip
    loc, variance = (torch.stack(values).mean(0) for values in zip(*kept, strict=True))
    noise = 0.02 if batch_size == 1000 else 0.4
    assert ((loc - mean).abs() < noise * covariance.diag().sqrt()).all()
    assert ((variance.diag() / covariance.diag()).log().abs() < noise).all()
    if batch_size == 1000:
        assert -ELBO().loss(m.generate, m.infer, data.train.x) == pytest.approx(float(evidence), abs=0.01)


@pytest.mark.slow
def test_pair_trains_compiled_as_uncompiled() -> None:
    """Compiled steps of a pair with what lies outside draw the same numbers and end at the same parameters."""
    found = []
    for compile in ("never", "always"):
        pyro.clear_param_store()
        m = from_pyro(Levels().model, Levels().guide)
        pl.fit(m, pl.load_data(LINE.numpy()), objective="dreg", epochs=3, compile=compile, progress=False)
        found.append(torch.stack([parameter.detach().clone() for parameter in m.parameters()]))
    assert torch.allclose(*found, atol=1e-5)


# Evidence.


def test_evidence_is_predictive() -> None:
    """log p(x_n | training data) in closed form, within 4 Monte Carlo errors for each datapoint and for the mean."""
    data = pl.load_data(LINE.numpy())
    levels = Levels(exact=data.train.x)
    m = from_pyro(levels.model, levels.guide)
    truth = levels.predictive(data.test.x)
    found = pl.evaluate(m, data, particles=1000)
    assert found.global_sites == ["u"]
    u = levels.posterior()
    kl = torch.distributions.kl_divergence(u, dist.Normal(0.0, 1.0))
    assert found.global_kl == pytest.approx(float(kl), rel=1e-4)
    assert abs(found.log_evidence - truth.mean()) < 4 * found.log_evidence_mcse + found.log_evidence_bias
    assert ((found.each["log_evidence"] - truth).abs() < 0.03).all()
    assert found.elbo < found.log_evidence


@pytest.mark.parametrize("how", ["full size", "scale of the site", "scale of x"])
def test_divergence_outside_is_in_nats_whatever_scales_it(how: str) -> None:
    """KL(q(w) || p(w)) in closed form: neither `poutine.scale` nor the full size of the plate is part of it."""

    def scaled(on: str) -> Any:
        return poutine.scale(scale=0.2 if on == how else 1.0)

    def model(rows: Tensor) -> None:
        with scaled("scale of the site"):
            w = pyro.sample("w", dist.Normal(rows.new_zeros(D), 1.0).to_event(1))
        size = {"size": 30, "subsample": torch.arange(len(rows))} if how == "full size" else {"size": len(rows)}
        with pyro.plate("data", **size), scaled("scale of x"):
            pyro.sample("y", dist.Normal(rows[:, :-1] @ w, NOISE), obs=rows[:, -1])

    def guide(rows: Tensor) -> None:
        with scaled("scale of the site"):
            pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(D)), 0.1).to_event(1))

    found = pl.evaluate(from_pyro(model, guide), pl.load_data(ROWS), particles=20)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(0.0, 0.1), torch.distributions.Normal(0.0, 1.0))
    assert found.global_kl == pytest.approx(D * float(kl), rel=1e-4)


@pytest.mark.slow
def test_error_of_the_mean_knows_that_draws_are_common() -> None:
    """Over 100 seeds the mean's deviation from the truth has the size that is reported, within 30 %.

    The datapoints share the draws of u: added up as if independent, the errors would be too small by a factor of 2.6.
    """
    data = pl.load_data(LINE.numpy() + 3.0)
    levels = Levels(exact=data.train.x[:1])  # little known of u, and data far from where it is thought to be
    m = from_pyro(levels.model, levels.guide)
    truth = levels.predictive(data.test.x).double().mean()
    runs = [pl.evaluate(m, data, particles=300, seed=seed) for seed in range(100)]
    deviations = torch.tensor([(run.log_evidence or 0) + (run.log_evidence_bias or 0) - truth for run in runs])
    errors = torch.tensor([run.log_evidence_mcse or 0 for run in runs])
    assert (deviations.std() / errors.mean()).log().abs() < 0.3


def test_a_point_in_place_of_a_posterior_has_its_own_evidence() -> None:
    """AutoDelta for what lies outside: log p(x | u) at the point, without a KL."""
    data = pl.load_data(ROWS)
    m = from_pyro(regression, autoguide.AutoDelta(regression))
    pl.fit(m, data, epochs=2, progress=False, objective="elbo")
    found = pl.evaluate(m, data, particles=50)
    w = m.global_draw((data.test.x, None, None))["w"]
    truth = dist.Normal(data.test.x[:, :-1] @ w, NOISE).log_prob(data.test.x[:, -1])
    assert found.global_kl is None
    assert found.log_evidence == pytest.approx(float(truth.mean()), abs=1e-4)


# Working with it.


@pytest.mark.slow
def test_draws_are_of_the_posterior_of_what_lies_outside() -> None:
    """`sample` draws u ~ q(u) anew for each x, whose mean and variance are those of the predictive distribution."""
    data = pl.load_data(LINE.numpy())
    levels = Levels(exact=data.train.x)
    m = from_pyro(levels.model, levels.guide)
    pl.evaluate(m, data, particles=30)
    torch.manual_seed(0)
    drawn = pl.sample(m, 1000)
    u = levels.posterior()
    variance = float(u.scale**2) + 1 + levels.s**2
    assert abs(drawn.mean() - u.loc) < 4 * math.sqrt(variance / 1000)
    assert drawn.var() == pytest.approx(variance, rel=4 * math.sqrt(2 / 1000))


def test_decoding_takes_what_lies_outside_or_its_mean() -> None:
    def decoder(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * w, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(x.new_tensor([2.0]), 0.1).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    m = from_pyro(decoder, guide)
    m.meet(LINE[:3])
    z = torch.tensor([[1.0], [3.0]])
    assert torch.allclose(m.decode(z).mean, 2 * z, atol=4 * 0.1 / math.sqrt(100) * 3)
    assert torch.equal(m.decode(z).mean, m.decode({"z": z}).mean)
    assert torch.equal(m.decode({"z": z, "w": torch.tensor([5.0])}).mean, 5 * z)
    assert pl.reconstruct(m, LINE[:4]).shape == (4, 1)
    assert pl.impute(m, LINE[:2].numpy(), np.array([[True], [False]]), draws=2, particles=10).shape == (2, 2, 1)


def test_arviz_has_what_lies_outside_without_datapoints() -> None:
    data = pl.load_data(LINE.numpy())
    levels = Levels(exact=data.train.x)
    m = from_pyro(levels.model, levels.guide)
    found = pl.to_arviz(m, data, size=5, draws=400, predictive=20)
    posterior = found["posterior"]
    assert posterior["u"].dims == ("chain", "draw")
    assert posterior["z"].dims == ("chain", "draw", "datapoint")
    u = levels.posterior()
    assert abs(float(posterior["u"].mean()) - float(u.loc)) < 4 * float(u.scale) / math.sqrt(400)


def test_prior_of_arviz_is_that_of_what_lies_outside() -> None:
    """u ~ N(0, 1), x ~ N(u, 1 + s²), in closed form, whatever q(u) is; of the posterior predictive u ~ q(u)."""
    data = pl.load_data(LINE.numpy())
    levels = Levels(exact=data.train.x)
    m = from_pyro(levels.model, levels.guide)
    found = pl.to_arviz(m, data, size=2, draws=400, predictive=4)
    drawn = found["prior"]["u"], found["prior"]["z"], found["prior_predictive"]["x"]
    for values, variance in zip(drawn, (1.0, 2.0, 2.0 + levels.s**2), strict=True):
        assert abs(float(values.mean())) < 4 * math.sqrt(variance / 400)
        assert float(values.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / 400))
    correlation = np.corrcoef(drawn[0].values.ravel(), drawn[2].values.ravel())[0, 1]
    assert correlation == pytest.approx(1 / math.sqrt(2 + levels.s**2), abs=4 / math.sqrt(400))


def test_arviz_has_what_the_program_records() -> None:
    """`pyro.deterministic` at each draw: by datapoint in the plate, and in the prior unless it is computed of x."""

    def model(x: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
        pyro.deterministic("square", u**2)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(u, 1.0))
            loc = pyro.deterministic("loc", torch.stack([z, u - z], -1))
            pyro.deterministic("left", x - loc, event_dim=1)
            pyro.sample("x", dist.Normal(loc, Levels.s).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("u", dist.Normal(x.new_tensor(0.3), 0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 0.5))

    found = pl.to_arviz(
        from_pyro(model, guide), pl.load_data(np.tile(LINE.numpy(), (1, 2))), size=3, draws=8, predictive=4
    )
    of_each = ("chain", "draw", "datapoint")
    for group, over in (("posterior", of_each), ("prior", of_each[:2])):
        values = found[group]
        assert values["square"].dims == ("chain", "draw")
        assert values["loc"].dims == (*over, "loc_dim")
        assert np.allclose(values["square"], values["u"] ** 2)
        assert np.allclose(values["loc"].isel(loc_dim=1), values["u"] - values["z"], atol=1e-6)
    assert found["posterior"]["left"].dims == (*of_each, "left_dim")
    assert "left" not in found["prior"]


@pytest.mark.parametrize("guide", [weights_guide, AutoNormal])
def test_arviz_has_the_prior_of_a_regression(guide: Any) -> None:
    """No site observes x as it is, but p(w), and what is computed of w for given rows, are draws of the prior."""

    def model(rows: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(rows.new_zeros(D), 1.0).to_event(1))
        with pyro.plate("data", len(rows)):
            mean = pyro.deterministic("mean", rows[:, :-1] @ w)
            pyro.sample("y", dist.Normal(mean, NOISE), obs=rows[:, -1])

    data = pl.load_data(ROWS)
    m = from_pyro(model, guide if guide is weights_guide else guide(model))
    found = pl.to_arviz(m, data, size=3, draws=200, predictive=4)
    assert {*found["prior"].data_vars} == {*found["posterior"].data_vars} == {"w", "mean"}
    assert np.allclose(found["prior"]["w"].var(("chain", "draw")), 1.0, rtol=4.5 * math.sqrt(2 / 200))
    x = data.test.x[:3, :-1].numpy()
    for group in ("prior", "posterior"):
        assert np.allclose(found[group]["mean"], found[group]["w"].values @ x.T, atol=1e-5)


def common(x: Tensor) -> None:
    """x_n ~ N(w, 0.5²): no datapoint has a latent of its own, and no shape says how many there are."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, NOISE).to_event(1), obs=x)


def common_guide(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor([1.0, -1.0])), 0.3).to_event(1))


def test_datapoints_without_latents_of_their_own_are_drawn_one_by_one() -> None:
    """Draws of several datapoints share w, so that their covariance is that of w, and have noise of their own."""
    data = pl.load_data(np.tile(LINE.numpy(), (1, 2)))
    m = from_pyro(common, common_guide)
    found = pl.to_arviz(m, data, size=4, draws=400, predictive=400)["posterior_predictive"]["x"]
    imputed = pl.impute(m, torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.bool), draws=400, particles=2)
    for x in (torch.as_tensor(found.values).flatten(0, 1), imputed):
        assert x.shape[1:] == (4, 2)
        covariance = torch.cov(x[..., 0].T)
        assert torch.allclose(covariance, 0.3**2 + NOISE**2 * torch.eye(4), atol=0.1)
    text = str(pl.check(m, data, split="train", size=20, draws=50, simulations=50, replicates=99, annealed=0))
    assert "coverage: left out; the check is of the latents of each datapoint" in text
    with pytest.raises(InputError, match="no datapoint has latents of its own, beside w outside the plate"):
        pl.reconstruct(m, torch.zeros(4, 2))
    means = pl.sample(m, 200, mean=True)  # E[x | w] at draws of w
    assert means.var(0).numpy() == pytest.approx(0.3**2, rel=4.5 * math.sqrt(2 / 200))
    assert {*plot(m, data, [])} == {"samples", "sample_means"}


def of_states_and_correlations(x: Tensor) -> None:
    k = pyro.sample("k", dist.Categorical(x.new_ones(3)))
    tril = pyro.sample("tril", dist.LKJCholesky(2, 1.0))
    share = pyro.sample("share", dist.Dirichlet(x.new_ones(50)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ tril.mT + k + share[0], 1.0).to_event(1), obs=x)


def of_their_priors(x: Tensor) -> None:
    poutine.block(of_states_and_correlations, hide=["x"])(x)


def test_values_without_a_mean_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A category, and a correlation matrix; the mean of a simplex is one."""
    monkeypatch.setattr("pyrolatent.tasks.codes.DRAWS", 2)
    monkeypatch.setattr("pyrolatent.models.programs.pair.MEAN_OF", 20)
    m = from_pyro(of_states_and_correlations, of_their_priors)
    m.meet(torch.zeros(3, 2))
    z, tril = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    with pytest.raises(InputError, match=r"the mean of 'k' and 'tril' .* as \{'k': ..., 'tril': ...\}"):
        m.decode(z)
    with pytest.raises(InputError, match=r"the mean of 'tril' .* as \{'tril': ...\}"):
        m.decode({"z": z, "k": 1})
    given = {"z": z, "k": 1, "tril": tril}
    assert torch.allclose(m.decode(given).mean, z @ tril.mT + 1 + 1 / 50, atol=0.02)
    assert "samples" in plot(m, pl.load_data(np.tile(LINE.numpy(), (1, 2))), [])


def test_encoding_has_distributions_alone() -> None:
    """What an automatic guide draws by way of auxiliary sites is no point, and these are no latents."""
    levels = Levels()
    weights = AutoNormal(poutine.block(levels.model, hide=["z", "x"]))

    def guide(x: Tensor) -> None:
        weights(x)
        with levels.plate(x):
            pyro.sample("z", dist.Normal(x[:, 0], 0.5))

    m = from_pyro(levels.model, guide)
    assert {*m.encode(LINE[:4])} == {"z"}
    assert {*met(Levels()).encode(LINE[:4])} == {"u", "z"}
    with pytest.raises(InputError, match="the guide draws w by way of auxiliary sites"):
        from_pyro(regression, AutoNormal(regression)).encode(ROWS[:4])


def test_what_lies_outside_of_x_given_y_is_decoded_and_predicted() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal((y * w).sum(-1, keepdim=True), NOISE).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.ones(D)), 1e-4).to_event(1))

    m, data = from_pyro(model, guide), pl.load_data(ROWS[:, -1:], labels=FEATURES)
    m.meet(*data.train.batch(slice(0, 3)), data.label_dim)
    y = torch.as_tensor(FEATURES[:5], dtype=torch.float32)
    assert torch.allclose(m.decode({}, y).mean, y.sum(1, keepdim=True), atol=1e-3)
    assert torch.allclose(m.decode({"w": [2.0, 0.0, 0.0]}, y).mean, 2 * y[:, :1])
    with pytest.raises(InputError, match=r"w has shape \(5, 3\), but it is common to all datapoints"):
        m.decode({"w": torch.ones(5, 3)}, y)
    assert (
        dict(pl.to_arviz(m, data, size=3, draws=8, predictive=8)["posterior_predictive"]["x"].sizes)["datapoint"] == 3
    )


def test_checks_are_given_one_draw() -> None:
    data = pl.load_data(LINE.repeat(4, 1).numpy())
    levels = Levels(exact=data.train.x)
    m = from_pyro(levels.model, levels.guide)
    found = pl.check(m, data, size=50, draws=50, simulations=50, replicates=99, annealed=0, seed=1)
    assert "given one draw of u" in str(found)
    calibrated = [verdict for verdict in found.verdicts if verdict.check in ("sbc latents", "tarp", "coverage")]
    assert len(calibrated) == 3
    assert all(verdict.passed for verdict in calibrated)


@pytest.mark.parametrize("kind", [None, autoguide.AutoIAFNormal])
def test_run_keeps_what_lies_outside(kind: Any, tmp_path: Path) -> None:
    """Also where one tensor has several names, as in a normalising flow's guide."""
    data = pl.load_data(ROWS)

    def pair() -> Any:
        pyro.clear_param_store()
        return from_pyro(regression, weights_guide if kind is None else kind(regression))

    fit = pl.fit(pair(), data, epochs=2, progress=False, objective="elbo")
    pl.Run.save(tmp_path / "run", fit)
    again = pl.Run.load(tmp_path / "run", model=pair())
    assert not plot(again.model, data, [])
    found, before = (pl.evaluate(m, data, particles=100) for m in (again.model, fit.model))
    assert found.log_evidence == before.log_evidence


def test_pair_that_was_loaded_is_decoded_before_it_has_seen_data(tmp_path: Path) -> None:
    """At the u that is given, or at the mean of q(u); at draws of p(u), as before, E[x | z, u] would change."""

    def decoder(x: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal((u + z).unsqueeze(-1), 1.0).to_event(1), obs=x)

    pyro.clear_param_store()
    guide, z = Levels().guide, torch.zeros(2)
    m = from_pyro(decoder, guide)
    run = pl.Run.save(tmp_path / "run", pl.fit(m, pl.load_data(LINE.numpy()), epochs=1, progress=False))
    pyro.clear_param_store()
    again = [pl.Run.load(run.path, model=from_pyro(decoder, guide)).model for _ in range(2)]
    assert torch.equal(again[0].decode({"z": z, "u": 7.0}).mean, torch.full((2, 1), 7.0))
    assert torch.equal(again[1].decode(z).mean, m.decode(z).mean)


# Automatic guides.

GUIDES: dict[str, Any] = {
    "normal": autoguide.AutoNormal,
    "multivariate": autoguide.AutoMultivariateNormal,
    "low rank": autoguide.AutoLowRankMultivariateNormal,
    "iaf": autoguide.AutoIAFNormal,
    "structured": autoguide.AutoStructured,
    "gaussian": autoguide.AutoGaussian,
    "laplace": autoguide.AutoDiagonalNormal,
}


def scales(rows: Tensor) -> None:
    """The regression with a noise scale that is not known: a latent over positive numbers."""
    w = pyro.sample("w", dist.Normal(rows.new_zeros(D), 1.0).to_event(1))
    s = pyro.sample("s", dist.LogNormal(rows.new_zeros(()), 1.0))
    with pyro.plate("data", len(rows)):
        pyro.sample("y", dist.Normal(rows[:, :-1] @ w, s), obs=rows[:, -1])


class Easy(EasyGuide):
    def guide(self, rows: Tensor) -> None:
        group = self.group(match=".*")
        loc = pyro.param("easy_loc", lambda: torch.zeros(group.event_shape))
        scale = pyro.param("easy_scale", lambda: torch.full(group.event_shape, 0.2), constraint=constraints.positive)
        group.sample("both", dist.Normal(loc, scale).to_event(1))


def listed(model: Any) -> Any:
    guides = autoguide.AutoGuideList(model)
    guides.append(AutoNormal(poutine.block(model, hide=["s"])))
    guides.append(autoguide.AutoDelta(poutine.block(model, hide=["w"])))
    return guides


FAST = ("multivariate", "list")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=name, marks=() if name in FAST else SLOW)
        for name, kind in {**GUIDES, "easy": Easy, "list": listed}.items()
    ],
)
def test_automatic_guides_of_what_lies_outside(kind: Any) -> None:
    """The loss is Pyro's at the same draws, training raises the bound, and evidence is predictive."""
    data = pl.load_data(ROWS)
    m = from_pyro(scales, kind(scales))
    first = pl.fit(m, data, objective="elbo", epochs=1, progress=False, optimizer={"Adam": {"lr": 0.02}})
    losses = []
    for objective in (ELBO(), pyro.infer.Trace_ELBO()):
        torch.manual_seed(1)
        losses.append(objective.loss(m.model, m.guide, data.train.x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    second = pl.fit(m, data, objective="elbo", epochs=150, progress=False, optimizer={"Adam": {"lr": 0.02}})
    assert second.history[-1]["train_loss"] < first.history[-1]["train_loss"] - 0.1
    found = pl.evaluate(m, data, particles=100)
    assert {*found.global_sites} == {"w", "s"}
    assert math.isfinite(found.log_evidence or math.nan)
    assert "unconstrained" not in str(m)


# What is refused.


def test_guide_with_another_posterior_for_each_minibatch_is_refused() -> None:
    def guide(rows: Tensor) -> None:
        pyro.sample("w", dist.Normal(rows[:, :-1].mean(0), 1.0).to_event(1))

    with pytest.raises(InputError, match="'w' lies outside the plate over datapoints, but its distribution"):
        from_pyro(regression, guide).meet(torch.as_tensor(ROWS[:3]))


def of_other_plate(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)).expand(len(x)), 0.5))


def one_by_one(x: Tensor) -> None:
    u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
    for n in pyro.plate("loop", len(x)):
        pyro.sample(f"x_{n}", dist.Normal(u, 1.0), obs=x[n, 0])


def of_u(x: Tensor) -> None:
    pyro.sample("u", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.5))


def test_latents_of_another_plate_over_datapoints_are_not_common_to_them() -> None:
    """As in Pyro, they are one for each datapoint: the loss is Pyro's, and evidence asks for one plate."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 0.5).to_event(1), obs=x)

    m = from_pyro(model, of_other_plate)
    m.meet(LINE[:3])
    assert m.global_sites == []
    losses = []
    for objective in (ELBO(), pyro.infer.Trace_ELBO()):
        torch.manual_seed(0)
        losses.append(objective.loss(m.model, m.guide, LINE))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(InputError, match="'data', 'rows'; put every site into one plate"):
        pl.evaluate(m, pl.load_data(LINE.numpy()))
    pyro.clear_param_store()
    with pytest.raises(InputError, match="'z' lies in the plate 'rows', others in 'data'"):
        from_pyro(model, of_other_plate, plate="data").meet(LINE[:3])


def test_datapoints_one_by_one_beside_what_is_common_are_refused() -> None:
    """Otherwise each minibatch would count what is common as a whole."""
    with pytest.raises(InputError, match="'u' is common to all datapoints, but the others lie in no single vectorised"):
        from_pyro(one_by_one, of_u).meet(LINE[:3])


def test_states_outside_are_refused() -> None:
    def model(x: Tensor) -> None:
        k = pyro.sample("k", dist.Categorical(x.new_ones(2)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(k.to(x).unsqueeze(-1).unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", lambda: x.new_zeros(2))
        pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            pass

    with pytest.raises(InputError, match="'k' is to be summed out, but it lies outside the plate 'data'"):
        pl.fit(from_pyro(model, guide), pl.load_data(LINE.numpy()), objective="elbo", epochs=1, progress=False)


def test_a_likelihood_that_is_scaled_to_all_datapoints_is_counted_once(recwarn: pytest.WarningsRecorder) -> None:
    """As by `poutine.scale(scale=size / len(x))`, at whose minibatches SVI ends at the posterior of all datapoints."""
    data = pl.load_data(np.random.default_rng(0).normal(1.0, 0.5, size=(600, 1)))
    size, y = len(data.train), data.train.batch(slice(None)).x
    exact = float(y.sum() / 0.25 / (1 / 0.02**2 + size / 0.25))

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 0.02))
        with pyro.poutine.scale(scale=size / len(x)), pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 0.5).expand([1]).to_event(1), obs=x)

    guide = AutoNormal(model, init_scale=0.02)
    m = pl.from_pyro(model, guide)
    settings: dict[str, Any] = {"batch_size": 27, "optimizer": {"Adam": {"lr": 0.01}}, "progress": False}
    pl.fit(m, data, epochs=40, scheduler={"ExponentialLR": {"gamma": 0.9}}, **settings)
    assert float(guide.median()["w"]) == pytest.approx(exact, abs=0.01)  # half of the posterior's standard deviation
    assert not [each for each in recwarn if "declares" in str(each.message)]


@pytest.mark.parametrize(
    ("outside", "inside", "declared", "said"),
    [
        ("1 / size", "1 / len(x)", 486, None),
        ("1 / len(x)", "1 / len(x)", None, None),
        ("size / len(x)", "size / len(x)", None, None),
        ("1 / size", "1 / size", None, None),
        ("1.0", "size / 27", None, "the likelihood is scaled by 18 in minibatches of any size"),
        ("1.0", "0.5", None, "counts 0.5 times"),
        ("1.0", "600 / len(x)", 600, "counts 600/486 times"),
        ("0.1", "0.1 * 600 / len(x)", 600, "counts 600/486 times"),
    ],
)
def test_what_counts_is_the_scale_of_the_likelihood_beside_that_of_latents_outside(
    outside: str, inside: str, declared: int | None, said: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    """A scale of the whole program is none of the likelihood, and one that is the same in all minibatches is said."""
    data = pl.load_data(np.random.default_rng(0).normal(size=(600, 1)))

    def scaled(by: str, x: Tensor) -> Any:
        return pyro.poutine.scale(scale=eval(by, {"len": len, "size": len(data.train), "x": x}))

    def model(x: Tensor) -> None:
        with scaled(outside, x):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with scaled(inside, x), pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 0.5).expand([1]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with scaled(outside, x):
            pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(())), 0.1))

    m = pl.from_pyro(model, guide)
    pl.fit(m, data, objective="Trace_ELBO", epochs=1, batch_size=486, progress=False)
    assert m._run is not None
    assert m._run.declared == declared
    warned = [str(each.message) for each in recwarn if "likelihood" in str(each.message)]
    assert [said in each for each in warned if said] == [True] * len(warned) == [True] * (said is not None)


def test_a_scale_of_each_datapoint_declares_no_number_of_them() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=torch.linspace(1.0, 2.0, len(x))):
            pyro.sample("x", dist.Normal(w, 0.5).expand([1]).to_event(1), obs=x)

    m = pl.from_pyro(model, AutoNormal(model))
    pl.fit(m, pl.load_data(LINE[:20].numpy()), objective="Trace_ELBO", epochs=1, progress=False)
    assert m._run is not None
    assert m._run.declared is None
