"""What is to be had of small Pyro programs of each kind: a table of what works, and of what is refused and why."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyrolatent as pl
from pyrolatent import InputError, from_pyro
from tests.models.programs import test_effects as effects
from tests.models.programs import test_global as outside
from tests.models.programs import test_rows as of_rows
from tests.models.programs.programs import Bernoullis, Classes, LocModel, Regression, loc_guide, loc_model

RANDOM = np.random.default_rng(0)
BITS = (RANDOM.random((240, 4)) < 0.4).astype(np.float32)
REALS = RANDOM.normal(1.0, 1.5, (240, 1)).astype(np.float32)
CODES = RANDOM.integers(0, 3, 240)
QUICK: Any = {"size": 30, "draws": 50, "simulations": 50, "replicates": 99, "annealed": 0}


class Steps(nn.Module):
    """A state for each of four steps, in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(4, 8)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x))
            for t in pyro.markov(range(4)):
                z = pyro.sample(f"z_{t}", dist.Normal(0.8 * z, 1.0))
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=z), obs=x[:, t])

    def guide(self, x: Tensor) -> None:
        pyro.module("read", self.read)
        loc, log_scale = self.read(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(4)):
                pyro.sample(f"z_{t}", dist.Normal(loc[:, t], log_scale[:, t].exp()))


def one_hot(x: Tensor, y: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return x, None if y is None else (y.unsqueeze(-1) == torch.arange(3)).to(x.dtype)


def of(program: Any, **options: Any) -> Callable[[], Any]:
    def made() -> Any:
        one = program()
        return from_pyro(one.model, one.guide, **options)

    return made


def bits() -> Any:
    return pl.load_data(BITS)


def reals() -> Any:
    return pl.load_data(REALS)


def given_y() -> Any:
    return pl.load_data(REALS, labels=RANDOM.normal(size=(240, 3)))


def pairs_of_reals() -> Any:
    return pl.load_data(effects.X.repeat(8, 1).numpy())


NO_X = {"check": "", "sample": "asked for x alone"}
"""Where no site observes x: `check` runs, and says of each check that it is left out."""
KINDS: dict[str, tuple[Callable[[], Any], Callable[[], Any], Any, dict[str, str]]] = {
    "methods of a module": (of(Bernoullis), bits, "elbo", {}),
    "functions with parameters": (lambda: from_pyro(loc_model, loc_guide), reals, "elbo", {}),
    "PyroModule": (lambda: from_pyro(LocModel(), loc_guide), reals, "elbo", {}),
    "labels, summed out": (
        of(Classes, observed={"x": "x", "y": "y"}, arguments=one_hot),
        lambda: pl.load_data(BITS, labels=CODES),
        "elbo",
        {},
    ),
    "x given y": (
        of(Regression),
        lambda: pl.load_data(REALS, labels=RANDOM.normal(size=(240, 3))),
        "elbo",
        {"sample": "give labels y"},
    ),
    "states of steps": (of(Steps), bits, "elbo", NO_X),
    "a regression outside the plate": (
        lambda: from_pyro(outside.regression, AutoNormal(outside.regression)),
        lambda: pl.load_data(outside.ROWS.repeat(6, 0)),
        "elbo",
        NO_X,
    ),
    "latents outside and inside": (of(outside.Levels), reals, "elbo", {}),
    "parameters of rows": (
        lambda: of_rows.pair()[0],
        lambda: of_rows.DATA,
        "elbo",
        {"evaluate": "split='train'", "check": "checks simulate", "arviz": "split='train'", "sample": ""},
    ),
    "states of the model alone": (
        lambda: from_pyro(config_enumerate(effects.mixture), effects.normal),
        pairs_of_reals,
        TraceEnum_ELBO(max_plate_nesting=1),
        dict.fromkeys(("evaluate", "check", "arviz"), "samples the latent site 'k'") | {"sample": ""},
    ),
    "condition": (
        lambda: from_pyro(*effects.PAIRS["condition"]),
        pairs_of_reals,
        "elbo",
        {},
    ),
    "reparam": (
        lambda: from_pyro(*effects.PAIRS["reparam"]),
        pairs_of_reals,
        "elbo",
        {},
    ),
    "obs_mask": (
        lambda: from_pyro(*effects.PAIRS["obs_mask"]),
        pairs_of_reals,
        "elbo",
        NO_X,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("made", "given", "objective", "refused"), KINDS.values(), ids=[*KINDS])
def test_what_works_and_what_is_refused(
    made: Any, given: Any, objective: Any, refused: dict[str, str], tmp_path: Path
) -> None:
    """Everything works that is not named, compiled training too; what is named is refused in one line."""
    data = given()
    m = made()
    fit = pl.fit(m, data, objective=objective, epochs=2, progress=False)
    assert np.isfinite(fit.history[-1]["train_loss"])
    asks: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: pl.evaluate(m, data, particles=50),
        "check": lambda: pl.check(m, data, **QUICK),
        "arviz": lambda: pl.to_arviz(m, data, size=5, draws=20, predictive=8),
        "sample": lambda: pl.sample(m, 3),
    }
    for what, ask in asks.items():
        if refused.get(what):
            with pytest.raises(InputError, match=refused[what]) as error:
                ask()
            assert "\n" not in str(error.value)
        elif what == "sample" and what in refused:
            continue
        else:
            ask()
    pl.Run.save(tmp_path / "run", fit)
    pyro.clear_param_store()
    again = pl.Run.load(tmp_path / "run", model=made())
    again.model.meet(*data.train.batch(slice(0, 3)), data.label_dim)
    for one, other in zip(m.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    pyro.clear_param_store()
    if objective == "elbo":
        pl.fit(made(), data, objective=objective, epochs=2, progress=False, compile="always")
