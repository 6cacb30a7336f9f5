"""How often checks fail right models, and how large a mistake they find.

    python -m benchmarks.checks --json FILE                     # both tables
    python -m benchmarks.checks --json FILE --only power        # one of them; the other one stays as FILE has it
    python -m benchmarks.checks --json FILE --repetitions 400 --data-sets 5

False alarms: checks at their smallest settings, on data that a model has drawn whose posterior is exact:
linear-Gaussian (closed form), logistic (one latent, quadrature), enumerated (eight states). Power: a linear-Gaussian
model of six entries and two latents, 300 held-out datapoints and simulations, 200 draws, and one mistake at a time in
the posterior, in the model or in the data, in four sizes. A size is found if the check fails in at least 80 % of the
data sets.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.training import machine, versions
from pyrolatent import LinearGaussian, load_data
from pyrolatent.checks import CHECKS, AnnealedEvidence, Check, Checks, EvidenceBracket, Subject, check
from pyrolatent.checks.annealed import excess
from pyrolatent.data.splits import Data
from pyrolatent.errors import InputError
from pyrolatent.inference.evidence.annealed import annealed_evidence, bidirectional_evidence
from pyrolatent.models.latent import LatentVariableModel

D, L, NOISE = 6, 2, 0.7
LEVELS = (0.01, 0.05, 0.1)
SMALLEST: dict[str, dict[str, int]] = {
    "k-hat": {"draws": 100},
    "active units": {"draws": 25},
    "aggregated posterior": {"draws": 25},
    "sbc latents": {"simulations": 50, "draws": 25},
    "sbc log p(x | z)": {"simulations": 50, "draws": 25},
    "tarp": {"simulations": 50, "draws": 25},
    "coverage": {"simulations": 50, "draws": 25},
    "l-c2st": {"simulations": 50, "draws": 25},
    "inference gap": {"draws": 25, "steps": 10},
    "prior predictive": {"replicates": 99},
    "posterior predictive": {"replicates": 99},
    "predictive intervals": {"particles": 25, "draws": 25},
}
FOUND = 0.8
"""Share of data sets in which a mistake is found that counts as found."""
SIZE = 20
"""Held-out datapoints, as few as there may be; active units are asked for of 200, as a variance of 20 says little."""


class Exact(LinearGaussian):
    """A linear-Gaussian model whose guide is its exact posterior, changed.

    `change` takes the exact posterior and x and gives what is drawn from.
    """

    change: Callable[[dist.MultivariateNormal, Tensor], Any] | None = None

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        q = self.exact_posterior(x, mask)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", q if self.change is None else self.change(q, x))


class _Parts(LatentVariableModel):
    """A model of its three functions alone."""

    def __init__(self, prior: Any, likelihood: Any, posterior: Any) -> None:
        super().__init__((D,), _Function(prior), _Function(likelihood), _Function(posterior))


class _Function(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class _Cells(dist.TorchDistribution):
    """A density that is constant in each cell of a grid, from log-masses (batch, cells)."""

    has_rsample = False
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = dist.constraints.independent(dist.constraints.real, 1)

    def __init__(self, logits: Tensor, start: float, width: float, batch_shape: Any = None) -> None:
        self.logits, self.start, self.width = logits, start, width
        super().__init__(batch_shape or logits.shape[:-1], torch.Size([1]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Cells":
        return _Cells(self.logits, self.start, self.width, torch.Size(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape, cells = torch.Size([*sample_shape, *self.batch_shape]), self.logits.shape[-1]
        below = self.logits.softmax(-1).cumsum(-1)
        uniform = torch.rand(shape).reshape(-1, len(below)).T.contiguous()
        cell = torch.searchsorted(below, uniform * below[:, -1:]).clamp(max=cells - 1).T.reshape(shape)
        return (self.start + (cell + torch.rand(shape)) * self.width).unsqueeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        cell = ((value.squeeze(-1) - self.start) / self.width).long().clamp(0, self.logits.shape[-1] - 1)
        masses = self.logits.log_softmax(-1).expand(*cell.shape, -1)
        return masses.gather(-1, cell.unsqueeze(-1)).squeeze(-1) - math.log(self.width)


def linear() -> Exact:
    """The linear-Gaussian model of all power tables."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Exact((D,), latent_dim=L, noise=NOISE)
        model.likelihood.weight.data = torch.randn(D, L) @ torch.tensor([[1.0, 0.9], [0.0, 0.45]])
    return model


def logistic() -> LatentVariableModel:
    """One normal latent, six entries of either value, the posterior on a grid of 800 cells."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = 2 * torch.randn(1, D, generator=generator), torch.randn(D, generator=generator)
    start, width, cells = -6.0, 0.015, 800
    grid = (start + width * (torch.arange(cells) + 0.5)).unsqueeze(-1)

    def prior(y: Any = None) -> Any:
        return dist.Normal(torch.zeros(1), torch.ones(1)).to_event(1)

    def likelihood(z: Tensor, y: Any = None) -> Any:
        return dist.Bernoulli(logits=z @ weight + bias).to_event(1)

    log_p1, log_p0 = (torch.nn.functional.logsigmoid(s * (grid @ weight + bias)) for s in (1, -1))
    log_prior = dist.Normal(0.0, 1.0).log_prob(grid.squeeze(-1))

    def posterior(x: Tensor, y: Any = None) -> Any:
        return _Cells(x @ log_p1.T + (1 - x) @ log_p0.T + log_prior, start, width)

    return _Parts(prior, likelihood, posterior)


def enumerated() -> LatentVariableModel:
    """A class of eight, six entries of either value; the posterior by enumeration."""
    generator = torch.Generator().manual_seed(2)
    logits, table = torch.randn(8, generator=generator), 2 * torch.randn(8, D, generator=generator)
    log_p1, log_p0 = (torch.nn.functional.logsigmoid(s * table) for s in (1, -1))

    def prior(y: Any = None) -> Any:
        return dist.OneHotCategorical(logits=logits)

    def likelihood(z: Tensor, y: Any = None) -> Any:
        return dist.Bernoulli(logits=z @ table).to_event(1)

    def posterior(x: Tensor, y: Any = None) -> Any:
        return dist.OneHotCategorical(logits=x @ log_p1.T + (1 - x) @ log_p0.T + logits)

    return _Parts(prior, likelihood, posterior)


RIGHT: dict[str, Callable[[], LatentVariableModel]] = {
    "linear-Gaussian": linear,
    "logistic": logistic,
    "enumerated": enumerated,
}


def drawn_data(model: LatentVariableModel, held_out: int, train: int) -> Data:
    """Data that a model has drawn, as a user would load it."""
    x = model.simulated(held_out + train)["x"]["value"].detach()
    return as_data(x[:train], x[train:])


def as_data(train: Tensor, held_out: Tensor) -> Data:
    """Rows to train on and held-out rows, 20 of the first for validation."""
    data = load_data(torch.cat([train, held_out]).numpy(), test=0.5)
    split = type(data.test)
    return replace(data, train=split(train[20:]), validation=split(train[:20]), test=split(held_out))


def false_alarms(name: str, seeds: range) -> dict[str, list[float]]:
    """For each check its value, or 0 or 1 of a check of size, over seeds, on data drawn from a right model."""
    torch.set_num_threads(1)
    model, found = RIGHT[name](), dict[str, list[float]]()
    for seed in seeds:
        torch.manual_seed(seed)
        few = drawn_data(model, SIZE, 100)
        many = drawn_data(model, 200, 100)
        subjects = {data: Subject(model, each, size=500, seed=seed) for data, each in (("few", few), ("many", many))}
        for kind in CHECKS:
            if kind in (AnnealedEvidence, EvidenceBracket):
                continue
            each: Check = kind(**SMALLEST.get(kind.name, {}))
            try:
                verdict = each.asked(subjects["many" if kind.name == "active units" else "few"])
            except InputError:
                continue
            found.setdefault(kind.name, []).append(verdict.value if each.gives_p_value else float(verdict.passed))
    return found


def false_alarms_of_chains(groups: int, datapoints: int = 30) -> dict[str, list[float]]:
    """The same of checks by annealed chains, of the linear-Gaussian model, in groups of datapoints drawn at once."""
    torch.manual_seed(0)
    model, chains = linear(), AnnealedEvidence()
    data = drawn_data(model, groups * datapoints, 100)
    settings: Any = {
        "size": len(data.test),
        "chains": chains.chains,
        "steps": chains.steps,
        "leapfrog": chains.leapfrog,
    }
    annealed = annealed_evidence(model, data, **settings).each["log_evidence"]
    with torch.no_grad():
        exact = model.log_evidence(data.test.x).double()
    bracket = bidirectional_evidence(model, **settings).each
    width = (bracket["upper"] - bracket["lower"]).unflatten(0, (groups, datapoints)).mean(1)
    pairs = zip(annealed.split(datapoints), exact.split(datapoints), strict=True)
    held = [excess(one, other, torch.zeros(datapoints)) for one, other in pairs]
    return {
        AnnealedEvidence.name: [float(value <= threshold) for value, threshold in held],
        EvidenceBracket.name: (width <= 1).double().tolist(),
    }


@dataclass(frozen=True)
class Mistake:
    """One kind of mistake in several sizes, the smallest first.

    Attributes:
        where: "posterior", "model" or "data".
        what: is wrong, with {} for the size.
        sizes: of the mistake.
        made: from a size, a right model and a data set of 500 training and 500 held-out rows, what is checked.
    """

    where: str
    what: str
    sizes: tuple[float, ...]
    made: Callable[[float], tuple[LatentVariableModel, Data]]


def _of_posterior(change: Callable[[float, dist.MultivariateNormal, Tensor], Any], size: float) -> Any:
    model = linear()
    data = drawn_data(model, 500, 500)
    model.exact = False
    model.change = partial(change, size)
    return model, data


def _scaled(size: float, q: dist.MultivariateNormal, x: Tensor) -> Any:
    return dist.MultivariateNormal(q.loc, scale_tril=q.scale_tril * size)


def _shifted(size: float, q: dist.MultivariateNormal, x: Tensor) -> Any:
    return dist.MultivariateNormal(q.loc + size * q.stddev, scale_tril=q.scale_tril)


def _towards_prior(size: float, q: dist.MultivariateNormal, x: Tensor) -> Any:
    covariance = (1 - size) * q.covariance_matrix + size * torch.eye(L)
    return dist.MultivariateNormal((1 - size) * q.loc, covariance_matrix=covariance)


def _uncorrelated(size: float, q: dist.MultivariateNormal, x: Tensor) -> Any:
    variances = torch.diag_embed(q.variance)
    return dist.MultivariateNormal(q.loc, covariance_matrix=(1 - size) * q.covariance_matrix + size * variances)


def _heavy(size: float, q: dist.MultivariateNormal, x: Tensor) -> Any:
    return dist.MultivariateStudentT(torch.tensor(size), q.loc, q.scale_tril * math.sqrt(1 - 2 / size))


def _by_x(size: float, q: dist.MultivariateNormal, x: Tensor) -> Any:
    side = torch.where(x[..., 0] > 0, 1 + size, 1 - size)
    return dist.MultivariateNormal(q.loc, scale_tril=q.scale_tril * side[..., None, None])


def _off_by_x(size: float, q: dist.MultivariateNormal, x: Tensor) -> Any:
    return dist.MultivariateNormal(q.loc + size * q.stddev * torch.sin(2 * x[..., :1]), scale_tril=q.scale_tril)


def _blind(size: float) -> Any:
    model = linear()
    data, whole = drawn_data(model, 500, 500), model.exact_posterior

    def change(q: dist.MultivariateNormal, x: Tensor) -> Any:
        mask = torch.ones_like(x, dtype=torch.bool)
        mask[..., 0] = False
        blind = whole(x, mask)
        loc = (1 - size) * q.loc + size * blind.loc
        covariance = (1 - size) * q.covariance_matrix + size * blind.covariance_matrix
        return dist.MultivariateNormal(loc, covariance_matrix=covariance)

    model.exact, model.change = False, change
    return model, data


def _of_data(rows: Callable[[float, Tensor, Tensor, Exact], Tensor], size: float) -> Any:
    """Data of other latents, means or noise than the model believes; both from standard normal draws."""
    model = linear()
    z, e = torch.randn(1000, L), torch.randn(1000, D)
    with torch.no_grad():
        x = rows(size, z, e, model)
    return model, as_data(x[:500], x[500:])


def _mean(model: Exact, z: Tensor) -> Tensor:
    return z @ model.likelihood.weight.T + model.likelihood.bias


def _standard_gamma(shape: float, like: Tensor) -> Tensor:
    return (dist.Gamma(shape, 1.0).sample(like.shape) - shape) / math.sqrt(shape)


def _standard_t(df: float, like: Tensor) -> Tensor:
    return dist.StudentT(df).sample(like.shape) * math.sqrt(1 - 2 / df)


def _two_modes(size: float, z: Tensor) -> Tensor:
    return math.sqrt(1 - size**2) * z + size * (2 * torch.bernoulli(torch.full_like(z, 0.5)) - 1)


def _correlated(rho: float, e: Tensor) -> Tensor:
    return math.sqrt(1 - rho) * e + math.sqrt(rho) * torch.randn(len(e), 1)


def _outliers(share: float, x: Tensor) -> Tensor:
    return torch.where(torch.rand(len(x), 1) < share, 3 * x, x)


def _first(size: float) -> Tensor:
    return torch.tensor([size] + [0.0] * (D - 1))


def _copied(share: float) -> Any:
    model = linear()
    data = drawn_data(model, 500, 500)
    rows, train = data.test.x.clone(), data.train.x
    chosen = torch.rand(len(rows)) < share
    rows[chosen] = train[torch.randint(len(train), (int(chosen.sum()),))]
    return model, replace(data, test=replace(data.test, x=rows))


class _Memorising(Exact):
    """Gives back a training row with a little noise in a share of its draws."""

    rows: Tensor
    share: float

    def simulated(self, size: int, y: Tensor | None = None) -> dict[str, Any]:
        nodes = super().simulated(size, y)
        copied = self.rows[torch.randint(len(self.rows), (size,))] + 0.1 * torch.randn(size, D)
        x = torch.where(torch.rand(size, 1) < self.share, copied, nodes["x"]["value"])
        return nodes | {"x": nodes["x"] | {"value": x}}


def _memorised(share: float) -> Any:
    model = linear()
    data = drawn_data(model, 500, 500)
    model.__class__ = _Memorising
    model.rows, model.share = data.train.x, share
    return model, data


def _noise(size: float, z: Tensor, e: Tensor, m: Exact) -> Tensor:
    return _mean(m, z) + NOISE * e


MISTAKES: tuple[Mistake, ...] = (
    Mistake("posterior", "too narrow, scale × {}", (0.9, 0.8, 0.7, 0.5), partial(_of_posterior, _scaled)),
    Mistake("posterior", "too wide, scale × {}", (1.1, 1.25, 1.5, 2.0), partial(_of_posterior, _scaled)),
    Mistake("posterior", "mean off by {} sd", (0.1, 0.2, 0.4, 0.8), partial(_of_posterior, _shifted)),
    Mistake("posterior", "{} of the way to the prior", (0.05, 0.1, 0.3, 1.0),
            partial(_of_posterior, _towards_prior)),
    Mistake("posterior", "{} of the correlations dropped", (0.4, 0.6, 0.8, 1.0),
            partial(_of_posterior, _uncorrelated)),
    Mistake("posterior", "heavy tails, Student's t of {}", (10.0, 6.0, 4.0, 3.0), partial(_of_posterior, _heavy)),
    Mistake("posterior", "scale × 1 ± {} by the sign of x", (0.1, 0.2, 0.3, 0.5), partial(_of_posterior, _by_x)),
    Mistake("posterior", "mean off by {} sd, by a sine of x", (0.2, 0.4, 0.8, 1.2),
            partial(_of_posterior, _off_by_x)),
    Mistake("posterior", "{} blind to one entry of x", (0.25, 0.5, 0.75, 1.0), _blind),
    Mistake("model", "noise of the likelihood × {}", (1.05, 1.1, 1.2, 1.4),
            partial(_of_data, lambda s, z, e, m: _mean(m, z) + NOISE / s * e)),
    Mistake("model", "noise of the likelihood × {}", (0.95, 0.9, 0.8, 0.6),
            partial(_of_data, lambda s, z, e, m: _mean(m, z) + NOISE / s * e)),
    Mistake("model", "tails too light: noise is Student's t of {}", (10.0, 6.0, 4.0, 3.0),
            partial(_of_data, lambda s, z, e, m: _mean(m, z) + NOISE * _standard_t(s, e))),
    Mistake("model", "noise is correlated by {}", (0.05, 0.1, 0.2, 0.4),
            partial(_of_data, lambda s, z, e, m: _mean(m, z) + NOISE * _correlated(s, e))),
    Mistake("model", "noise grows with z, exp({} z)", (0.1, 0.2, 0.3, 0.5),
            partial(_of_data, lambda s, z, e, m: _mean(m, z) + NOISE * torch.exp(s * z[:, :1] - s**2) * e)),
    Mistake("model", "noise is skewed, gamma of {}", (30.0, 10.0, 3.0, 1.0),
            partial(_of_data, lambda s, z, e, m: _mean(m, z) + NOISE * _standard_gamma(s, e))),
    Mistake("model", "variance of the prior is 1, of the data {}", (1.2, 1.3, 1.6, 2.0),
            partial(_of_data, lambda s, z, e, m: _noise(s, math.sqrt(s) * z, e, m))),
    Mistake("model", "mean of the prior is 0, of the data {}", (0.1, 0.2, 0.3, 0.5),
            partial(_of_data, lambda s, z, e, m: _noise(s, z + s, e, m))),
    Mistake("model", "latents are skewed, gamma of {}", (30.0, 10.0, 3.0, 1.0),
            partial(_of_data, lambda s, z, e, m: _noise(s, _standard_gamma(s, z), e, m))),
    Mistake("model", "latents have heavy tails, Student's t of {}", (10.0, 6.0, 4.0, 3.0),
            partial(_of_data, lambda s, z, e, m: _noise(s, _standard_t(s, z), e, m))),
    Mistake("model", "latents have two modes, at ± {}", (0.6, 0.7, 0.8, 0.95),
            partial(_of_data, lambda s, z, e, m: _noise(s, _two_modes(s, z), e, m))),
    Mistake("model", "the decoder lacks {} (z² - 1) in one entry", (0.1, 0.2, 0.4, 0.8),
            partial(_of_data, lambda s, z, e, m: _noise(s, z, e, m) + _first(s) * (z[:, :1] ** 2 - 1))),
    Mistake("model", "one entry is off by {}", (0.1, 0.2, 0.3, 0.5),
            partial(_of_data, lambda s, z, e, m: _noise(s, z, e, m) + _first(s))),
    Mistake("data", "outliers, {} of the rows × 3", (0.01, 0.02, 0.05, 0.1),
            partial(_of_data, lambda s, z, e, m: _outliers(s, _noise(s, z, e, m)))),
    Mistake("data", "{} of held-out rows are training rows", (0.01, 0.02, 0.05, 0.2), _copied),
    Mistake("model", "{} of samples are training rows", (0.1, 0.2, 0.4, 0.8), _memorised),
)  # fmt: skip


def power(place: int, size: float, seed: int) -> dict[str, bool]:
    """Which checks fail, of one mistake in one size on one data set."""
    torch.set_num_threads(1)
    torch.manual_seed(1000 * place + seed)
    model, data = MISTAKES[place].made(size)
    settings: dict[str, int] = {"size": 300, "draws": 200, "simulations": 300, "annealed": 0}
    found: Checks = check(model, data, seed=seed, **settings)
    return {verdict.check: not verdict.passed for verdict in found.verdicts} | {"all p-values": bool(found.rejected)}


def table_of_alarms(repetitions: int, chains: int, jobs: int) -> dict[str, Any]:
    """By check and model, the number of repetitions and how often right models fail, at each level for p-values."""
    values: dict[str, dict[str, list[float]]] = {}
    chunks = [range(start, min(start + 50, repetitions)) for start in range(0, repetitions, 50)]
    with ProcessPoolExecutor(jobs) as pool:
        for name in RIGHT:
            for part in pool.map(partial(false_alarms, name), chunks):
                for kind, found in part.items():
                    values.setdefault(kind, {}).setdefault(name, []).extend(found)
    for kind, found in false_alarms_of_chains(chains).items():
        values[kind] = {"linear-Gaussian": found}
    gives_p_value = {kind.name: kind.gives_p_value for kind in CHECKS}

    def shares(kind: str, found: list[float]) -> dict[str, float]:
        if gives_p_value[kind]:
            return {f"{level:g}": float(np.mean(np.array(found) <= level)) for level in LEVELS}
        return {"share": 1 - float(np.mean(found))}

    return {
        kind: {name: {"repetitions": len(found)} | shares(kind, found) for name, found in of_models.items()}
        for kind, of_models in values.items()
    }


def table_of_power(data_sets: int, jobs: int) -> list[dict[str, Any]]:
    """By mistake, the share of data sets in which each check finds it, by size."""
    kinds = [(place, size) for place, each in enumerate(MISTAKES) for size in each.sizes]
    cells = [(*kind, seed) for kind in kinds for seed in range(data_sets)]
    rows = [{"where": each.where, "what": each.what, "sizes": each.sizes, "found": {}} for each in MISTAKES]
    with ProcessPoolExecutor(jobs) as pool:
        failures = pool.map(power, *zip(*cells, strict=True), chunksize=4)
        for (place, size, _), failed in zip(cells, failures, strict=True):
            sizes, found = MISTAKES[place].sizes, rows[place]["found"]
            for kind, fails in failed.items():
                found.setdefault(kind, [0.0] * len(sizes))[sizes.index(size)] += fails / data_sets
    return rows


def smallest_found(row: dict[str, Any], kind: str) -> str:
    """The smallest size that a check finds in 80 % of the data sets, as all larger ones; nothing if there is none."""
    shares = row["found"].get(kind, [])
    found = ""
    for size, share in zip(reversed(row["sizes"]), reversed(shares), strict=False):
        if share < FOUND:
            break
        found = f"{size:g}"
    return found


def page(found: dict[str, Any]) -> str:
    """Both tables in Markdown."""
    alarms, power = found["false_alarms"], found["power"]
    lines = ["| check | model | repetitions | at 1 % | at 5 % | at 10 % |", "| --- | --- | --- | --- | --- | --- |"]
    for kind, of_models in alarms.items():
        for name, row in of_models.items():
            levels = [f"{level:g}" for level in LEVELS] if "share" not in row else ["share"]
            shares = [f"{row[level]:.2%}" for level in levels] + [""] * (len(LEVELS) - len(levels))
            lines.append(f"| {_cell(kind)} | {name} | {row['repetitions']:,} | {' | '.join(shares)} |")
    kinds = [kind for kind in [*alarms, "all p-values"] if any(smallest_found(row, kind) for row in power)]
    lines += ["", f"| mistake | sizes | {' | '.join(map(_cell, kinds))} |", "| --- " * (len(kinds) + 2) + "|"]
    for row in power:
        sizes = ", ".join(f"{size:g}" for size in row["sizes"])
        cells = " | ".join(smallest_found(row, kind) for kind in kinds)
        lines.append(f"| {row['where']}: {row['what'].replace('{}', '…')} | {sizes} | {cells} |")
    return "\n".join(lines)


def in_words(found: dict[str, Any]) -> dict[str, str]:
    """What a verdict is printed with: how often the check fails right models, and how many mistakes it finds."""
    words = {}
    for kind, of_models in found["false_alarms"].items():
        count = sum(row["repetitions"] for row in of_models.values())
        failed = sum(row.get("share", row.get("0.01", 0.0)) * row["repetitions"] for row in of_models.values())
        words[kind] = f"fails {failed / count:.1%} of right models"
        if any(kind in row["found"] for row in found["power"]):
            number = sum(bool(smallest_found(row, kind)) for row in found["power"])
            words[kind] += f", finds {number} of {len(found['power'])} mistakes"
    return words


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=4000, help="of every check on every right model")
    parser.add_argument("--chains", type=int, default=400, help="of the checks by annealed chains")
    parser.add_argument("--data-sets", type=int, default=20, help="of every size of every mistake")
    parser.add_argument("--only", choices=("false_alarms", "power"), help="make one table alone")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(options.json.read_text()) if options.only and options.json.exists() else {}
    found |= {"machine": machine("cpu"), "versions": versions()}
    tables = {
        "false_alarms": partial(table_of_alarms, options.repetitions, options.chains, options.jobs),
        "power": partial(table_of_power, options.data_sets, options.jobs),
    }
    for name, made in tables.items():
        if options.only in (None, name):
            started = time.perf_counter()
            found[name] = made()
            found.setdefault("seconds", {})[name] = round(time.perf_counter() - started)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    if found.keys() >= tables.keys():
        print(page(found))
        (files("pyrolatent.checks") / "measured.json").write_text(json.dumps(in_words(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
