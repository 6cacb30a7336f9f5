"""Every objective's gradient against its exact value; running this file prints the table.

Each datapoint has parameters of its own, all equal, so that one backward pass gives as many independent estimates of
the gradient as there are datapoints. The truth is a sum over all draws: quadrature over normal noise, enumeration of
states. A column is a kind of pair. A cell has the largest distance of a mean from the truth in standard errors, over
parameters and betas, or says that the objective refuses the pair.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import dropout

from pyrolatent.errors import InputError
from pyrolatent.inference.objectives import bounds as o

X = 0.8
K = 2
BETAS = (0.0, 0.5, 1.0, 2.0)
START = {"w": 0.7, "b": 0.4, "s": -0.2}
Parameters = dict[str, Tensor]
float64 = torch.float64


def normal(value: Tensor, loc: Any, scale: Any = 1.0) -> Tensor:
    return dist.Normal(torch.as_tensor(loc, dtype=float64), scale).log_prob(value)


def bernoulli(value: Tensor, logits: Any) -> Tensor:
    return dist.Bernoulli(logits=torch.as_tensor(logits, dtype=float64)).log_prob(value)


@dataclass
class Scored:
    """Log-probabilities of all draws, (draws, K, states); `probability` of each row of draws, (draws,)."""

    likelihood: Tensor
    prior: Tensor
    q: Tensor
    probability: Tensor
    states: Tensor = field(default_factory=lambda: torch.zeros((), dtype=float64))
    prior_of_states: Tensor = field(default_factory=lambda: torch.zeros((), dtype=float64))

    def terms(self, beta: float) -> Tensor:
        """log q(s) exp(ratio), (draws, K, states)."""
        ratio = self.likelihood + beta * (self.prior + self.prior_of_states - self.q - self.states)
        return ratio + self.states


@dataclass(frozen=True)
class Case:
    """A kind of pair: both functions of x and the parameters, and all of its draws scored.

    `score` is given the parameters of the model and of states that are summed out, those that the guide draws with and
    those that it scores its draws with.
    """

    model: Callable[[Tensor, Parameters], None]
    guide: Callable[[Tensor, Parameters], None]
    score: Callable[[Parameters, Parameters, Parameters], Scored]
    pathwise: bool = True


def gauss(dims: int, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes (draws, dims) and probabilities (draws,) of standard normal noise."""
    at, weight = np.polynomial.hermite_e.hermegauss(nodes)
    nodes_, weights = torch.tensor(at, dtype=float64), torch.tensor(weight / weight.sum(), dtype=float64)
    grid = torch.cartesian_prod(*[nodes_] * dims).reshape(-1, dims)
    return grid, torch.cartesian_prod(*[weights] * dims).reshape(-1, dims).prod(-1)


def decoded(z: Tensor, w: Tensor) -> Tensor:
    return w * z + 0.3 * z**2


def one_model(x: Tensor, p: Parameters) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=float64), 1.0))
        pyro.sample("x", dist.Normal(decoded(z, p["w"]), 1.0), obs=x)


def one_guide(x: Tensor, p: Parameters) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(p["b"] * x, p["s"].exp()))


def one_score(p: Parameters, q: Parameters, r: Parameters, thinned: float = 1.0) -> Scored:
    noise, probability = gauss(K, 48)
    z = (q["b"] * X * thinned + q["s"].exp() * noise).unsqueeze(-1)
    x = torch.tensor(X, dtype=float64)
    return Scored(
        normal(x, decoded(z, p["w"])), normal(z, 0.0), normal(z, r["b"] * X * thinned, r["s"].exp()), probability
    )


def masked_model(x: Tensor, p: Parameters) -> None:
    both, mask = torch.stack([x, x + 100], -1), torch.tensor([True, False])
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=float64), 1.0))
        loc = decoded(z, p["w"]).unsqueeze(-1).expand(*z.shape, 2)
        pyro.sample("x", dist.Normal(loc, 1.0).mask(mask).to_event(1), obs=both)


def thinned_guide(x: Tensor, p: Parameters) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(p["b"] * x * dropout(torch.ones_like(x), 0.5), p["s"].exp()))


def thinned_score(p: Parameters, q: Parameters, r: Parameters) -> Scored:
    halves = [one_score(p, q, r, thinned) for thinned in (0.0, 2.0)]
    return Scored(
        *(torch.cat([getattr(half, name) for half in halves]) for name in ("likelihood", "prior", "q")),
        torch.cat([half.probability / 2 for half in halves]),
    )


def layered_model(x: Tensor, p: Parameters) -> None:
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(torch.zeros((), dtype=float64), 1.0))
        z1 = pyro.sample("z1", dist.Normal(p["w"] * z2, 1.0))
        pyro.sample("x", dist.Normal(decoded(z1, p["w"]), 1.0), obs=x)


def layered_guide(x: Tensor, p: Parameters) -> None:
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(p["b"] * x, p["s"].exp()))
        pyro.sample("z2", dist.Normal(p["b"] * z1, p["s"].exp()))


def layered_score(p: Parameters, q: Parameters, r: Parameters) -> Scored:
    noise, probability = gauss(2 * K, 14)
    e1, e2 = noise.reshape(-1, K, 1, 2).unbind(-1)
    z1 = q["b"] * X + q["s"].exp() * e1
    z2 = q["b"] * z1 + q["s"].exp() * e2
    x = torch.tensor(X, dtype=float64)
    log_q = normal(z1, r["b"] * X, r["s"].exp()) + normal(z2, r["b"] * z1, r["s"].exp())
    prior = normal(z2, 0.0) + normal(z1, p["w"] * z2)
    return Scored(normal(x, decoded(z1, p["w"])), prior, log_q, probability)


def discrete_model(x: Tensor, p: Parameters) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4, dtype=float64)))
        pyro.sample("x", dist.Normal(p["w"] * z, 1.0), obs=x)


def discrete_guide(x: Tensor, p: Parameters, infer: Any = None) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=p["b"] * x), infer=infer or {})


def discrete_score(p: Parameters, q: Parameters, r: Parameters) -> Scored:
    z = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=float64)] * K).unsqueeze(-1)
    probability = bernoulli(z, q["b"] * X).sum((1, 2)).exp()
    x, logit = torch.tensor(X, dtype=float64), math.log(0.4 / 0.6)
    return Scored(normal(x, p["w"] * z), bernoulli(z, logit), bernoulli(z, r["b"] * X), probability)


def states_score(p: Parameters, q: Parameters, r: Parameters) -> Scored:
    s = torch.tensor([0.0, 1.0], dtype=float64).expand(1, K, 2)
    x, logit = torch.tensor(X, dtype=float64), math.log(0.4 / 0.6)
    none = torch.zeros_like(s)
    return Scored(
        normal(x, p["w"] * s), none, none, torch.ones(1, dtype=float64), bernoulli(s, p["b"] * X), bernoulli(s, logit)
    )


def beside_model(x: Tensor, p: Parameters) -> None:
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.Bernoulli(torch.tensor(0.4, dtype=float64)))
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=float64), 1.0))
        pyro.sample("x", dist.Normal(decoded(z, p["w"]) + s, 1.0), obs=x)


def beside_guide(x: Tensor, p: Parameters) -> None:
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.Bernoulli(logits=p["b"] * x), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Normal(p["b"] * x * (1 + s), p["s"].exp()))


def beside_score(p: Parameters, q: Parameters, r: Parameters) -> Scored:
    noise, probability = gauss(2 * K, 14)
    s = torch.tensor([0.0, 1.0], dtype=float64)
    z = q["b"] * X * (1 + s) + q["s"].exp() * noise.reshape(-1, K, 2)
    x, logit = torch.tensor(X, dtype=float64), math.log(0.4 / 0.6)
    return Scored(
        normal(x, decoded(z, p["w"]) + s),
        normal(z, 0.0),
        normal(z, r["b"] * X * (1 + s), r["s"].exp()),
        probability,
        bernoulli(s, p["b"] * X),
        bernoulli(s, logit),
    )


def above_guide(x: Tensor, p: Parameters) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(p["b"] * x, p["s"].exp()))
        pyro.sample("s", dist.Bernoulli(logits=p["b"] * z), infer={"enumerate": "parallel"})


def above_score(p: Parameters, q: Parameters, r: Parameters) -> Scored:
    noise, probability = gauss(K, 48)
    z, s = (q["b"] * X + q["s"].exp() * noise).unsqueeze(-1), torch.tensor([0.0, 1.0], dtype=float64)
    x, logit = torch.tensor(X, dtype=float64), math.log(0.4 / 0.6)
    return Scored(
        normal(x, decoded(z, p["w"]) + s),
        normal(z, 0.0).expand(-1, -1, 2),
        normal(z, r["b"] * X, r["s"].exp()).expand(-1, -1, 2),
        probability,
        bernoulli(s, p["b"] * z),
        bernoulli(s, logit),
    )


def summed_guide(x: Tensor, p: Parameters) -> None:
    discrete_guide(x, p, {"enumerate": "parallel"})


CASES = {
    "pathwise": Case(one_model, one_guide, one_score),
    "mask": Case(masked_model, one_guide, one_score),
    "dropout": Case(one_model, thinned_guide, thinned_score),
    "two layers": Case(layered_model, layered_guide, layered_score),
    "discrete": Case(discrete_model, discrete_guide, discrete_score, pathwise=False),
    "summed out": Case(discrete_model, summed_guide, states_score),
    "draws given states": Case(beside_model, beside_guide, beside_score),
    "states given draws": Case(beside_model, above_guide, above_score),
}

OBJECTIVES: dict[str, o.Bound] = {
    "elbo": o.ELBO(particles=K),
    "analytic_elbo": o.AnalyticELBO(particles=K),
    "iwae": o.IWAE(particles=K),
    "stl": o.STL(particles=K),
    "dreg": o.DReG(particles=K),
    "renyi": o.Renyi(alpha=0.3, particles=K),
    "combination_iwae": o.CombinationIWAE(share=0.3, particles=K),
    "multiply_iwae": o.MultiplyIWAE(groups=K, particles=1),
    "partially_iwae": o.PartiallyIWAE(groups=K, particles=1),
    "vimco": o.VIMCO(particles=K),
    "rws": o.ReweightedWakeSleep(particles=K),
}
OWN_TARGET = {"stl": "biased by design", "partially_iwae": "two targets", "rws": "two targets"}


def log_mean(terms: Tensor) -> Tensor:
    return terms.logsumexp((1, 2)) - math.log(K)


def elbo(scored: Scored, beta: float) -> Tensor:
    """E of log w where states are averaged outside the logarithm, (draws,)."""
    return (scored.states.exp() * (scored.terms(beta) - scored.states)).sum(-1).mean(1)


def bounds(name: str, scored: Scored, beta: float) -> Tensor:
    """The bound of each row of draws, (draws,)."""
    log_weights = scored.terms(beta).logsumexp(-1)
    mean = log_weights.logsumexp(1) - math.log(K)
    return {
        "elbo": lambda: elbo(scored, beta),
        "analytic_elbo": lambda: elbo(scored, beta),
        "renyi": lambda: ((0.7 * log_weights).logsumexp(1) - math.log(K)) / 0.7,
        "combination_iwae": lambda: 0.3 * log_weights.mean(1) + 0.7 * mean,
        "multiply_iwae": lambda: log_weights.mean(1),
    }.get(name, lambda: mean)()


def gradient(value: Tensor, parameters: Parameters) -> dict[str, float]:
    found = torch.autograd.grad(value, [*parameters.values()], allow_unused=True, retain_graph=True)
    return {name: 0.0 if g is None else g.item() for name, g in zip(parameters, found, strict=True)}


def truth(case: Case, name: str, beta: float) -> dict[str, float]:
    """The exact derivative by each parameter of what the objective climbs."""
    live = {key: torch.tensor(value, dtype=float64, requires_grad=True) for key, value in START.items()}
    held = {key: value.detach() for key, value in live.items()}
    scored = case.score(live, live, live)
    exact = gradient((scored.probability * bounds(name, scored, beta)).sum(), live)
    if name == "stl":
        frozen = case.score(live, live, held)
        return gradient((frozen.probability.detach() * log_mean(frozen.terms(beta))).sum(), live)
    if name == "partially_iwae":
        guide = gradient((scored.probability * bounds("multiply_iwae", scored, beta)).sum(), live)
        return {**guide, "w": exact["w"]}
    if name == "rws":
        wake = case.score(live, held, live)  # draws and what they are weighed by held
        v = scored.terms(beta).detach().flatten(1).softmax(1).reshape(wake.terms(beta).shape)
        log_q = wake.q + wake.states
        fitted = (scored.probability.detach() * (v * log_q).sum((1, 2))).sum()
        return {**gradient(fitted, live), "w": exact["w"]}
    return exact


def distances(case: Case, name: str, beta: float, datapoints: int = 20_000) -> dict[str, float]:
    """Standard errors between the mean estimate and the truth, by parameter."""
    objective = OBJECTIVES[name]
    objective.beta = beta
    leaves = {key: torch.full((datapoints,), value, dtype=float64, requires_grad=True) for key, value in START.items()}
    x = torch.full((datapoints,), X, dtype=float64)
    torch.manual_seed(0)
    (-objective.differentiable_loss(case.model, case.guide, x, leaves)).backward()
    found, right = {}, truth(case, name, beta)
    for key, leaf in leaves.items():
        each = torch.zeros_like(x) if leaf.grad is None else leaf.grad
        assert each.std() < 20, "the noise of a datapoint's gradient is that of others too"
        error = each.std().item() / datapoints**0.5 + 1e-9
        found[key] = abs(each.mean().item() - right[key]) / error
    return found


def cell(case: Case, name: str, betas: tuple[float, ...] = BETAS) -> str:
    """The largest distance over betas and parameters, or that the pair is refused."""
    try:
        largest = max(max(distances(case, name, beta).values()) for beta in betas)
    except InputError:
        return "refused"
    return f"{largest:.1f}"


def main() -> None:
    print("| objective |", " | ".join(CASES), "|")
    print("| --- " * (len(CASES) + 1) + "|")
    for name in OBJECTIVES:
        cells = " | ".join(cell(case, name) for case in CASES.values())
        target = f" ({OWN_TARGET[name]})" if name in OWN_TARGET else ""
        print(f"| {name}{target} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
