"""Updates a second of a 784 x 500 restricted Boltzmann machine, batch 100, as ratios to hand-written PyTorch.

    python -m benchmarks.rbm --rounds 15 --json FILE

Contenders take turns on the same random binary data in memory. `eager` is CD-1 written out by hand with the update in
place, `eager pcd` PCD-1, which takes six matrix products in place of five; `autograd` is the difference of free
energies with torch's SGD, `matmul` the five products of CD-1 alone, `scikit-learn` `BernoulliRBM.partial_fit` in
float32 (persistent chains that keep hidden units, five products). `pyrolatent` is what `fit` does in a step, compiled
and not, with plain and centred gradients. Ratios are to `eager`, those of `pyrolatent pcd` to `eager pcd`. Each ends by
the mean pseudo-likelihood that it reached, so that none is fast by doing something else.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from sklearn.neural_network import BernoulliRBM
from torch import Tensor
from torch.nn import functional

import pyrolatent as pl
from benchmarks.training import machine, versions
from pyrolatent.declaration import build
from pyrolatent.inference.evidence.pseudo_likelihood import pseudo_likelihood
from pyrolatent.inference.training.fitted import Fit
from pyrolatent.inference.training.loop import Trainer

VISIBLE, HIDDEN, BATCH, LR = 784, 500, 100, 0.01
Parameters = Callable[[], tuple[Tensor, Tensor, Tensor]]
Made = tuple[Callable[[], Any], Parameters]


def minibatch(x: Tensor) -> Tensor:
    return x[torch.randint(len(x), (BATCH,), device=x.device)]


def eager(data: Tensor, persistent: bool = False) -> Made:
    weight = 0.01 * torch.randn(VISIBLE, HIDDEN, device=data.device)
    b, c = torch.zeros(VISIBLE, device=data.device), torch.zeros(HIDDEN, device=data.device)
    chains = torch.bernoulli(torch.full((BATCH, VISIBLE), 0.5, device=data.device))

    def step() -> None:
        x = minibatch(data)
        h = torch.sigmoid(torch.addmm(c, x, weight))
        start = torch.sigmoid(torch.addmm(c, chains, weight)) if persistent else h
        v = torch.bernoulli(torch.sigmoid(torch.addmm(b, torch.bernoulli(start), weight.T)))
        if persistent:
            chains.copy_(v)
        g = torch.sigmoid(torch.addmm(c, v, weight))
        rate = LR / len(x)
        weight.addmm_(x.T, h, alpha=rate).addmm_(v.T, g, alpha=-rate)
        b.add_((x - v).sum(0), alpha=rate)
        c.add_((h - g).sum(0), alpha=rate)

    return step, lambda: (weight, b, c)


def autograd(data: Tensor) -> Made:
    weight = (0.01 * torch.randn(VISIBLE, HIDDEN, device=data.device)).requires_grad_()
    b = torch.zeros(VISIBLE, device=data.device, requires_grad=True)
    c = torch.zeros(HIDDEN, device=data.device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, b, c], LR)

    def free_energy(x: Tensor) -> Tensor:
        return -(x @ b) - functional.softplus(torch.addmm(c, x, weight)).sum(-1)

    def step() -> None:
        x = minibatch(data)
        with torch.no_grad():
            h = torch.bernoulli(torch.sigmoid(torch.addmm(c, x, weight)))
            v = torch.bernoulli(torch.sigmoid(torch.addmm(b, h, weight.T)))
        optimizer.zero_grad()
        (free_energy(x) - free_energy(v)).mean().backward()
        optimizer.step()

    return step, lambda: (weight, b, c)


def matmul(data: Tensor) -> Made:
    weight, h = torch.randn(VISIBLE, HIDDEN, device=data.device), torch.rand(BATCH, HIDDEN, device=data.device)

    def step() -> None:
        x = minibatch(data)
        for a, b in ((x, weight), (h, weight.T), (x, weight), (x.T, h), (x.T, h)):
            torch.mm(a, b)

    return step, lambda: (weight, torch.zeros(VISIBLE), torch.zeros(HIDDEN))


def scikit_learn(data: Tensor) -> Made:
    boltzmann = BernoulliRBM(n_components=HIDDEN, learning_rate=LR, batch_size=BATCH, random_state=0)

    def step() -> None:
        boltzmann.partial_fit(minibatch(data).numpy())

    def parameters() -> tuple[Tensor, Tensor, Tensor]:
        found = (boltzmann.components_.T, boltzmann.intercept_visible_, boltzmann.intercept_hidden_)
        weight, b, c = (torch.from_numpy(np.ascontiguousarray(each)).float() for each in found)
        return weight, b, c

    return step, parameters


def of_ours(objective: str, centred: bool, compile: str) -> Callable[[Tensor], Made]:
    def make(x: Tensor) -> Made:
        model = pl.RestrictedBoltzmannMachine((VISIBLE,), hidden=HIDDEN, centred=centred).to(x.device)
        data = pl.load_data(x.cpu().numpy(), validation=0.02, test=0.02).to(x.device)
        settings = {
            "epochs": 1, "batch_size": BATCH, "optimizer": {"SGD": {"lr": LR}}, "seed": 0, "compile": compile,
            "precision": "float32",
        }  # fmt: skip
        trainer = Trainer(Fit(model, data, settings), data, build("objective", objective))
        trainer.objective.prepare(model)
        waiting: list[Tensor] = []
        if compile == "always":
            trainer.gradient.compile(trainer.indices()[0], trainer.factor)
            if trainer.gradient.compiled is None:
                raise RuntimeError("the step could not be compiled")

        def step() -> None:
            if not waiting:
                waiting.extend(index for index in trainer.indices() if len(index) == BATCH)
            trainer.step(waiting.pop())

        return step, lambda: (model.weight, model.visible_bias, model.hidden_bias)

    return make


CONTENDERS = {
    "eager": eager,
    "eager pcd": partial(eager, persistent=True),
    "autograd": autograd,
    "matmul": matmul,
    "scikit-learn": scikit_learn,
    "pyrolatent cd": of_ours("cd", centred=False, compile="always"),
    "pyrolatent cd, centred": of_ours("cd", centred=True, compile="always"),
    "pyrolatent pcd": of_ours("pcd", centred=False, compile="always"),
    "pyrolatent cd, uncompiled": of_ours("cd", centred=False, compile="never"),
    "pyrolatent cd, centred, uncompiled": of_ours("cd", centred=True, compile="never"),
    "pyrolatent pcd, uncompiled": of_ours("pcd", centred=False, compile="never"),
}


def reached(parameters: Parameters, x: Tensor) -> float:
    model = pl.RestrictedBoltzmannMachine((VISIBLE,), hidden=HIDDEN).to(x.device)
    for own, found in zip((model.weight, model.visible_bias, model.hidden_bias), parameters(), strict=True):
        own.data.copy_(found)
    torch.manual_seed(0)
    return pseudo_likelihood(model, x, entries=20).mean().item()


def measure(rounds: int, seconds: float, device: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    likely = torch.rand(10, VISIBLE, generator=generator).square()
    chosen = torch.randint(10, (5000,), generator=generator)
    x = (torch.rand(5000, VISIBLE, generator=generator) < likely[chosen]).float().to(device)
    names = [name for name in CONTENDERS if device == "cpu" or name != "scikit-learn"]
    made = {name: CONTENDERS[name](x) for name in names}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 1):  # the first warms up
        for name, (step, _) in made.items():
            time.sleep(0.1)  # until the threads of another library have stopped, which wait for work spinning
            for _ in range(5):
                step()
            steps, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                step()
                steps += 1
            if device == "cuda":
                torch.cuda.synchronize()
            rates[name].append(steps / (time.perf_counter() - started))
    rows = []
    for name, (_, parameters) in made.items():
        pseudo = reached(parameters, x[:500]) if name != "matmul" else None
        base = "eager pcd" if name.startswith("pyrolatent pcd") else "eager"
        ratios = [own / other for own, other in zip(rates[name][1:], rates[base][1:], strict=True)]
        rows.append(
            {
                "workload": f"{VISIBLE} x {HIDDEN}, batch {BATCH}",
                "contender": name,
                "base": base,
                "precision": "float32",
                "ratio": median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "steps_per_second": median(rates[name][1:]),
                "final_pseudo_likelihood": pseudo,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each contender in each round")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    results = measure(arguments.rounds, arguments.seconds, arguments.device)
    for row in results:
        pseudo = row["final_pseudo_likelihood"]
        said = "" if pseudo is None else f"   pseudo-likelihood {pseudo:9.2f}"
        print(
            f"{row['contender']:<36}{row['ratio']:6.2f}  ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
            f"{row['steps_per_second']:10.1f} updates/s{said}"
        )
    if arguments.json:
        found = {
            "machine": machine(arguments.device),
            "versions": versions("torch", "scikit-learn"),
            "results": results,
        }
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
