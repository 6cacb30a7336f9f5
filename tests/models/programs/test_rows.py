"""Pyro pairs with parameters for each row of the training data, which row numbers choose."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import Tensor

import pyrolatent as pl
from pyrolatent import InputError, from_pyro
from pyrolatent.inference.objectives import ELBO

X = np.random.default_rng(0).normal(0.5, 1.5, (40, 1)).astype(np.float32)
DATA = pl.load_data(X)
N = len(DATA.train)
S = 0.5


def model(x: Tensor, rows: Tensor) -> None:
    """z_n ~ N(0, 1), x_n ~ N(z_n, S²), of N rows of which a minibatch is given: z_n | x_n is normal."""
    with pyro.plate("data", N, subsample=rows):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), S).to_event(1), obs=x)


def plates(x: Tensor, rows: Tensor) -> Any:
    return pyro.plate("data", N, subsample=rows)


def pair(**options: Any) -> tuple[Any, Any]:
    guide = AutoNormal(model, create_plates=plates, init_scale=0.3)
    return from_pyro(model, guide, **options), guide


@pytest.mark.slow
@pytest.mark.parametrize("compile", ["never", "always"])
def test_each_row_has_the_posterior_of_its_own(compile: str) -> None:
    """Trained in minibatches, in any order of the rows, q(z_n) is N(x_n / (1 + S²), S² / (1 + S²)).

    The gradient of `stl` has no noise at the exact posterior, so the tolerance is of the last steps alone.
    """
    m, guide = pair()
    schedule = {"MultiStepLR": {"milestones": [300, 400], "gamma": 0.2}}
    pl.fit(
        m, DATA, objective={"stl": {"particles": 1}}, epochs=450, batch_size=8, compile=compile, progress=False,
        optimizer={"Adam": {"lr": 0.03}}, scheduler=schedule,
    )  # fmt: skip
    assert torch.allclose(guide.locs.z, DATA.train.x[:, 0] / (1 + S**2), atol=0.02)
    assert torch.allclose(guide.scales.z, torch.tensor(S / math.sqrt(1 + S**2)), rtol=0.05)
    found = pl.evaluate(m, DATA, split="train", particles=200)
    truth = dist.Normal(0.0, math.sqrt(1 + S**2)).log_prob(DATA.train.x[:, 0])
    assert found.log_evidence == pytest.approx(float(truth.mean()), abs=0.01)
    arviz = pl.to_arviz(m, DATA, split="train", size=6, draws=400, predictive=4)
    assert np.allclose(arviz["posterior"]["z"].mean(("chain", "draw")), guide.locs.z[:6].detach(), atol=0.15)


def test_loss_is_that_of_pyro() -> None:
    m, _ = pair()
    pl.fit(m, DATA, objective="elbo", epochs=1, progress=False)
    losses = []
    for objective in (ELBO(), Trace_ELBO()):
        torch.manual_seed(0)
        with m.of_rows(torch.tensor([5, 3, 20]), N):
            losses.append(objective.loss(m.model, m.guide, DATA.train.x[[5, 3, 20]]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_plate_of_another_size_is_warned_of() -> None:
    def program(x: Tensor, rows: Tensor) -> None:
        with pyro.plate("data", len(X), subsample=rows):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), S).to_event(1), obs=x)

    guide = AutoNormal(program, create_plates=lambda x, rows: pyro.plate("data", len(X), subsample=rows))
    with pytest.warns(UserWarning, match=f"declares {len(X)} datapoints, but there are {N} to train on"):
        pl.fit(from_pyro(program, guide), DATA, objective="elbo", epochs=1, progress=False)


def test_arguments_may_take_rows() -> None:
    m = from_pyro(model, AutoNormal(model, create_plates=plates), arguments=lambda x, y, mask, numbers: (x, numbers))
    pl.fit(m, DATA, objective="elbo", epochs=1, progress=False)
    assert m.of_training_rows


def test_run_keeps_the_rows(tmp_path: Any) -> None:
    fit = pl.fit(pair()[0], DATA, objective="elbo", epochs=2, progress=False)
    pl.Run.save(tmp_path / "run", fit)
    pyro.clear_param_store()
    again = pl.Run.load(tmp_path / "run", model=pair()[0])
    found = [pl.evaluate(each, DATA, split="train", particles=20).elbo for each in (again.model, fit.model)]
    assert found[0] == found[1]


def test_other_rows_are_refused() -> None:
    m, _ = pair()
    pl.fit(m, DATA, objective="elbo", epochs=1, progress=False)
    with pytest.raises(InputError, match="the test split has others; give split='train'"):
        pl.evaluate(m, DATA)
    with pytest.raises(InputError, match="x of other rows has none"):
        m.encode(X[:3])
    with pytest.raises(InputError, match="row numbers, which fit knows"):
        Trace_ELBO().loss(m.model, m.guide, DATA.train.x[:3])
    with pytest.raises(InputError):
        pl.check(m, DATA, split="train")


@pytest.mark.parametrize("guide", [AutoNormal, AutoLowRankMultivariateNormal])
def test_guides_that_choose_rows_are_refused(guide: Any) -> None:
    """Without `create_plates`, the guide draws rows of its own, which are not those of x."""
    with pytest.raises(InputError, match="create_plates"):
        pl.fit(from_pyro(model, guide(model)), DATA, objective="elbo", epochs=1, progress=False)
