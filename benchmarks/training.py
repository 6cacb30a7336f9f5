"""Training steps a second, as ratios to hand-written eager PyTorch in the same run.

    python -m benchmarks.training --workload notebook iwae wide --rounds 5 --json FILE

Contenders take turns, on the same random binary data in memory, with the same sizes and Adam; `eager` is the VAE
written out by hand, `pyro` is `pyro.infer.SVI` on the model's pair, `pyrolatent` is what `fit` does in a step. Each
ends by the bound that it reached, so that none is fast by doing something else.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.nn import functional

import pyrolatent as pl
from pyrolatent.declaration import build
from pyrolatent.inference.evidence import score


class Workload(NamedTuple):
    hidden: tuple[int, ...]
    latent_dim: int
    batch_size: int
    particles: int


WORKLOADS = {
    "notebook": Workload((200,), 10, 128, 1),
    "iwae": Workload((200, 200), 50, 20, 50),
    "wide": Workload((400,), 20, 1024, 1),
}
LR = 1e-3


class ByHand(nn.Module):
    """The same networks, one tensor of bounds, no distributions."""

    def __init__(self, size: Workload) -> None:
        super().__init__()
        widths = [784, *size.hidden]
        layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
        self.encoder = nn.Sequential(*layers, nn.Linear(widths[-1], 2 * size.latent_dim))
        widths = [size.latent_dim, *size.hidden[::-1]]
        layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
        self.decoder = nn.Sequential(*layers, nn.Linear(widths[-1], 784))
        self.particles = size.particles

    def forward(self, x: Tensor) -> Tensor:
        loc, scale = self.encoder(x).chunk(2, -1)
        scale = 1e-3 + functional.softplus(scale)
        e = torch.randn(self.particles, *loc.shape, device=x.device)
        z = loc + scale * e
        logits = self.decoder(z)
        log_p = -functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_w = log_p + (0.5 * e.square() + scale.log() - 0.5 * z.square()).sum(-1)
        return -(log_w.logsumexp(0) - torch.tensor(float(self.particles)).log()).mean()


def model_of(size: Workload) -> pl.VAE:
    networks = {name: {"mlp": {"hidden": list(size.hidden)}} for name in ("encoder", "decoder")}
    networks["decoder"] = {"mlp": {"hidden": list(size.hidden[::-1])}}
    return pl.VAE((784,), latent_dim=size.latent_dim, **networks)


def objective_of(size: Workload) -> Any:
    return build("objective", "elbo" if size.particles == 1 else {"iwae": {"particles": size.particles}})


def eager(size: Workload, device: str) -> tuple[Callable[[Tensor], None], nn.Module]:
    model = ByHand(size).to(device)
    optimizer = torch.optim.Adam(model.parameters(), LR)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()

    return step, model


def pyrolatent(size: Workload, device: str) -> tuple[Callable[[Tensor], None], nn.Module]:
    model, objective = model_of(size).to(device), objective_of(size)
    optimizer = torch.optim.Adam(model.parameters(), LR)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        objective.accumulate(model, (x, None, None))
        optimizer.step()

    return step, model


def stock_pyro(size: Workload, device: str) -> tuple[Callable[[Tensor], None], nn.Module]:
    model = model_of(size).to(device)
    one = size.particles == 1
    loss = pyro.infer.Trace_ELBO() if one else pyro.infer.RenyiELBO(0.0, size.particles, 1, vectorize_particles=True)
    svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": LR}), loss)
    return svi.step, model


CONTENDERS = {"eager": eager, "pyro": stock_pyro, "pyrolatent": pyrolatent}


def bound(model: nn.Module, particles: int, x: Tensor) -> float:
    """The bound at the end, which tells a contender that learned nothing."""
    with torch.no_grad():
        if isinstance(model, ByHand):
            return -sum(model(x).item() for _ in range(20)) / 20
        draws = [score(model, x, particles=particles).log_evidence.mean().item() for _ in range(20)]
        return sum(draws) / 20


def measure(name: str, rounds: int, seconds: float, device: str) -> list[dict[str, Any]]:
    size = WORKLOADS[name]
    generator = torch.Generator().manual_seed(0)
    likely = torch.rand(10, 784, generator=generator).square()
    x = (torch.rand(5000, 784, generator=generator) < likely[torch.randint(10, (5000,), generator=generator)]).float()
    x = x.to(device)
    made = {contender: make(size, device) for contender, make in CONTENDERS.items()}
    rates: dict[str, list[float]] = {contender: [] for contender in made}
    for _ in range(rounds + 1):  # the first warms up
        for contender, (step, _) in made.items():
            steps, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                step(x[torch.randint(len(x), (size.batch_size,), device=device)])
                steps += 1
            if device == "cuda":
                torch.cuda.synchronize()
            rates[contender].append(steps / (time.perf_counter() - started))
    rows = []
    for contender, (_, model) in made.items():
        ratios = [own / base for own, base in zip(rates[contender][1:], rates["eager"][1:], strict=True)]
        rows.append(
            {
                "workload": name,
                "contender": contender,
                "precision": "float32",
                "ratio": median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "steps_per_second": median(rates[contender][1:]),
                "final_bound": bound(model, size.particles, x[:500]),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each contender in each round")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    pyro.enable_validation(False)
    rounds, seconds, device = arguments.rounds, arguments.seconds, arguments.device
    results = [row for name in arguments.workload for row in measure(name, rounds, seconds, device)]
    for row in results:
        print(
            f"{row['workload']:<10}{row['contender']:<12}{row['ratio']:6.2f}  ({row['ratio_min']:.2f} to "
            f"{row['ratio_max']:.2f}){row['steps_per_second']:10.1f} steps/s   bound {row['final_bound']:9.2f}"
        )
    if arguments.json:
        cores = f"{torch.get_num_threads()} cores, {platform.machine()}"
        found = {
            "machine": torch.cuda.get_device_name() if device == "cuda" else cores,
            "versions": {"torch": torch.__version__, "pyro": pyro.__version__, "python": platform.python_version()},
            "results": results,
        }
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
