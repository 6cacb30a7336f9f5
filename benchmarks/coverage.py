"""How often the interval of `pyrolatent evaluate` holds log p(x), by k-hat, on models whose log p(x) is known.

    python -m benchmarks.coverage --json FILE

The models are linear-Gaussian (closed form) and logistic with one latent (quadrature); the guide is their posterior
made worse in steps. Each repetition draws new latents for the same datapoints, and asks whether the true mean log p(x)
lies in [v - 1.96 m, v + b + 1.96 m], and whether it lies in v ± 1.96 m, which leaves the bias b out.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.checks import Exact, L, linear
from benchmarks.training import machine, versions
from pyrolatent import LogisticBernoulli
from pyrolatent.inference.evidence.importance import draws_interval, score
from pyrolatent.inference.evidence.psis import khat_threshold

TOGETHER = 2000
"""Rows that are scored at a time, repetitions beside each other."""


class Logistic(LogisticBernoulli):
    """A logistic model of one latent; the guide is normal, of the posterior's mean and `scale` times its spread."""

    def __init__(self, scale: float) -> None:
        super().__init__((6,), latent_dim=1)
        self.scale = scale

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        mean, spread, _ = self.quadrature(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(mean, self.scale * spread).to_event(1))


def of_linear(change: Callable[[dist.MultivariateNormal], Any]) -> tuple[Exact, Callable[[Tensor], Tensor]]:
    model = linear().double()
    model.change = lambda q, x: change(q)
    return model, model.log_evidence


def of_logistic(scale: float) -> tuple[Logistic, Callable[[Tensor], Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Logistic(scale).double()
        for parameter in model.likelihood.parameters():
            parameter.data = 2 * torch.randn_like(parameter)
    return model, lambda x: model.quadrature(x)[2]


def scaled(scale: float) -> tuple[Exact, Callable[[Tensor], Tensor]]:
    return of_linear(lambda q: dist.MultivariateNormal(q.loc, scale_tril=scale * q.scale_tril))


def uncorrelated(scale: float) -> tuple[Exact, Callable[[Tensor], Tensor]]:
    """Correlations dropped, each variance that of the dimension given the other, times `scale` squared."""
    return of_linear(
        lambda q: dist.Normal(q.loc, scale * q.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()).to_event(1)
    )


def student(scale: float) -> tuple[Exact, Callable[[Tensor], Tensor]]:
    five = torch.tensor(5.0, dtype=torch.float64)
    return of_linear(lambda q: dist.MultivariateStudentT(five, q.loc, scale * q.scale_tril))


CASES: dict[str, tuple[Callable[[float], Any], tuple[float, ...]]] = {
    "linear-Gaussian, normal of scale {}": (scaled, (1.3, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)),
    "linear-Gaussian, correlations dropped, scale {}": (uncorrelated, (2.4, 2.0, 1.6, 1.2)),
    "linear-Gaussian, Student's t of 5, scale {}": (student, (1.0, 0.3)),
    "logistic, normal of scale {}": (of_logistic, (1.2, 1.0, 0.8, 0.6, 0.5)),
}


@torch.no_grad()
def coverage(
    made: tuple[Any, Callable[[Tensor], Tensor]], datapoints: int, particles: int, repetitions: int
) -> dict[str, float]:
    """Shares of repetitions whose intervals hold the truth, and what k-hat says."""
    model, evidence = made
    torch.manual_seed(0)
    x = model.likelihood(torch.randn(datapoints, 1 if isinstance(model, Logistic) else L).double()).sample()
    truth, at_once = evidence(x).mean(), max(1, TOGETHER // datapoints)
    found = [score(model, x.repeat(at_once, 1), particles=particles) for _ in range(0, repetitions, at_once)]
    log_evidence, mcse, khat = (
        torch.cat([getattr(each, name).unflatten(0, (at_once, datapoints)) for each in found])
        for name in ("log_evidence", "mcse", "khat")
    )
    mean = log_evidence.mean(-1)
    error, bias, low, high = draws_interval(log_evidence, mcse)
    return {
        "khat": khat.median().item(),
        "khat_share": (khat > khat_threshold(particles)).double().mean().item(),
        "coverage": ((low <= truth) & (truth <= high)).double().mean().item(),
        "without_bias": ((mean - truth).abs() <= 1.96 * error).double().mean().item(),
        "too_low": (truth - mean).mean().item(),
        "bias": bias.mean().item(),
        "mcse": error.mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--datapoints", type=int, default=50)
    parser.add_argument("--particles", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    settings = {name: getattr(options, name) for name in ("datapoints", "particles", "repetitions")}
    started, results = time.perf_counter(), []
    for name, (case, scales) in CASES.items():
        for scale in scales:
            results.append({"posterior": name.format(scale)} | coverage(case(scale), **settings))
    results.sort(key=lambda row: row["khat"])
    print(
        "| posterior | median k-hat | too large | coverage | without b | too low by | b | m |",
        "| --- " * 8 + "|",
        sep="\n",
    )
    for row in results:
        print(
            f"| {row['posterior']} | {row['khat']:.2f} | {row['khat_share']:.0%} | {row['coverage']:.3f} "
            f"| {row['without_bias']:.3f} | {row['too_low']:.2g} | {row['bias']:.2g} | {row['mcse']:.2g} |"
        )
    about = {"machine": machine("cpu"), "versions": versions("torch", "pyro-ppl")} | settings
    about |= {"seconds": round(time.perf_counter() - started)}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(about | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
