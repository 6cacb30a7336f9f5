"""Pyro pairs made of other programs by Pyro's effects: at the same draws the loss is that of Pyro's own estimators."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

import pyrolatent as pl
from pyrolatent import InputError, from_pyro
from pyrolatent.inference.objectives import ELBO, IWAE

X = torch.as_tensor(np.random.default_rng(0).normal(1.0, 1.5, (30, 2)).astype(np.float32))
ONCE: Any = {"epochs": 1, "batch_size": 16, "progress": False}


def base(x: Tensor, beta: float = 1.0) -> None:
    """z ~ N(0, 1), x ~ N(w z, 1) over two numbers, log p(z) times beta."""
    w = pyro.param("w", lambda: torch.tensor([1.0, -0.5]))
    with pyro.plate("data", len(x)):
        with poutine.scale(scale=beta):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1) * w, 1.0).to_event(1), obs=x)


def normal(x: Tensor, site: str = "z", beta: float = 1.0) -> None:
    loc = pyro.param("loc", lambda: torch.tensor(0.2))
    scale = pyro.param("scale", lambda: torch.tensor(0.8), constraint=constraints.positive)
    with pyro.plate("data", len(x)), poutine.scale(scale=beta):
        pyro.sample(site, dist.Normal(loc * x.sum(-1), scale))


def conditioned(x: Tensor) -> None:
    def free(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 2]).to_event(1))

    poutine.condition(free, data={"x": x})(x)


def two_latents(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x.new_zeros(len(x)), 1.0))
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 2]).to_event(1), obs=x)


def intervened(x: Tensor) -> None:
    poutine.do(two_latents, data={"a": x.new_full((len(x),), 0.5)})(x)


def centred(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.3)).expand(len(x)), 2.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 2]).to_event(1), obs=x)


def partly_observed(x: Tensor) -> None:
    """The second number is observed where it is positive, and a latent of its own elsewhere."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("a", dist.Normal(z, 1.0), obs=x[:, 0])
        pyro.sample("b", dist.Normal(z, 1.0), obs=x[:, 1], obs_mask=x[:, 1] > 0)


def guide_of_both(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)) * x.sum(-1), 0.8))
        with poutine.mask(mask=x[:, 1] <= 0):
            pyro.sample("b_unobserved", dist.Normal(x.new_zeros(len(x)), 1.0))


def guide_of_two(x: Tensor) -> None:
    """`do` leaves the site in the program, with nothing below it."""
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)) * x.sum(-1), 0.8))


def one_by_one(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        for column in pyro.plate("columns", 2):
            pyro.sample(f"x_{column}", dist.Normal(z, 1.0), obs=x[:, column])


def mixture(x: Tensor) -> None:
    """A class for each datapoint, which the model sums out and the guide does not have."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        k = pyro.sample("k", dist.Categorical(x.new_ones(2)), infer={"enumerate": "parallel"})
        loc = torch.where(k == 0, z, -z)
        pyro.sample("x", dist.Normal(loc.unsqueeze(-1), 1.0).expand([*loc.shape, 2]).to_event(1), obs=x)


PAIRS = {
    "condition": (conditioned, normal),
    "do": (intervened, guide_of_two),
    "reparam": (
        poutine.reparam(centred, config={"z": LocScaleReparam(centered=0.0)}),
        lambda x: normal(x, site="z_decentered"),
    ),
    "obs_mask": (partly_observed, guide_of_both),
    "sequential plate": (one_by_one, normal),
    "scale of a site": (lambda x: base(x, beta=0.3), lambda x: normal(x, beta=0.3)),
}


@pytest.mark.parametrize(("model", "guide"), PAIRS.values(), ids=[*PAIRS])
def test_loss_is_that_of_pyro_and_the_pair_trains(model: Any, guide: Any) -> None:
    m = from_pyro(model, guide)
    data = pl.load_data(X.numpy())
    first = pl.fit(m, data, objective="elbo", **ONCE)
    losses = []
    for objective in (ELBO(), Trace_ELBO()):
        torch.manual_seed(0)
        losses.append(objective.loss(m.model, m.guide, X))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert np.isfinite(first.history[-1]["train_loss"])


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in ("scale of a site",)])
def test_evidence_is_that_of_the_program(name: str) -> None:
    """log p(x) by importance sampling against many draws from the prior, which need no guide."""
    model, guide = PAIRS[name]
    m = from_pyro(model, guide)
    data = pl.load_data(X.numpy())
    found = pl.evaluate(m, data, particles=1000)
    x = data.test.x
    program = poutine.block(model, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])
    pyro.clear_param_store()
    prior = from_pyro(model, program) if name != "condition" else None
    if prior is not None:
        other = pl.evaluate(prior, data, particles=4000)
        error = (found.log_evidence_mcse or 0) ** 2 + (other.log_evidence_mcse or 0) ** 2
        difference = (found.log_evidence or 0) - (other.log_evidence or 0)
        assert abs(difference) < 4 * error**0.5 + (other.log_evidence_bias or 0)
    else:
        covariance = torch.eye(2) + torch.ones(2, 2)
        truth = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(x)
        assert found.log_evidence == pytest.approx(float(truth.mean()), abs=4 * (found.log_evidence_mcse or 0) + 1e-4)


def test_scale_of_a_site_is_no_part_of_a_bound_inside_a_logarithm() -> None:
    model, guide = PAIRS["scale of a site"]
    with pytest.raises(InputError, match="is scaled by"):
        pl.fit(from_pyro(model, guide), pl.load_data(X.numpy()), objective=IWAE(particles=3), **ONCE)


def test_scales_of_datapoints_of_one_site_alone_are_refused_in_one_line() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            with pyro.poutine.scale(scale=torch.linspace(0.5, 2.0, len(x))):
                pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(2)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.3)) * x.sum(-1), 1.0))

    with pytest.raises(InputError, match=r"'x' is scaled by numbers of the shape .* and 'z' by 1, in model") as caught:
        pl.fit(from_pyro(model, guide), pl.load_data(X.numpy()), objective=IWAE(particles=3), **ONCE)
    assert "\n" not in str(caught.value)


def test_a_point_of_each_datapoint_trains_but_has_no_evidence() -> None:
    """The loss is that of Pyro, the joint density at the point, which is no bound on log p(x)."""

    def point(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(pyro.param("slope", torch.tensor(0.3)) * x.sum(-1)))

    m, data = from_pyro(base, point), pl.load_data(X.numpy())
    pl.fit(m, data, objective="elbo", **ONCE)
    assert ELBO().loss(m.model, m.guide, X) == pytest.approx(Trace_ELBO().loss(m.model, m.guide, X), rel=1e-6)
    for asks in (lambda: pl.evaluate(m, data), lambda: pl.to_arviz(m, data)):
        with pytest.raises(InputError, match=r"a point \(Delta\) in place of a distribution of 'z'"):
            asks()


def test_states_that_the_model_sums_out_are_left_to_pyro() -> None:
    """TraceEnum_ELBO trains them, with its own loss; our objectives and evidence ask for them in the guide."""
    model = config_enumerate(mixture)
    m = from_pyro(model, normal)
    data = pl.load_data(X.numpy())
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    for asks in (lambda: pl.fit(m, data, objective="elbo", **ONCE), lambda: pl.evaluate(m, data)):
        with pytest.raises(InputError, match="samples the latent site 'k', but the guide does not"):
            asks()
    fit = pl.fit(m, data, objective=elbo, **ONCE | {"epochs": 40})
    assert fit.history[-1]["train_loss"] < fit.history[0]["train_loss"]
    losses = []
    for pair in ((m.model, m.guide), (model, normal)):
        torch.manual_seed(0)
        losses.append(elbo.loss(*pair, X))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
