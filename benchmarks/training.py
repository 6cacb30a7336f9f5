"""Training steps a second, as ratios to hand-written eager PyTorch in the same run.

    python -m benchmarks.training --workload notebook iwae wide --peers eager pyro numpyro pythae --rounds 5 \
        --data-dir DIR --json FILE

Contenders take turns, each in a process of its own, on the same binary data (MNIST, thresholded, where its folder is
given, else random), with the same sizes, Adam at the same rate, and denormal numbers flushed to zero. `matmul` does the
matrix products of a step and nothing else, which is the limit. Afterwards fresh copies take equally many steps, so that
nobody is fast by doing something else: the bounds that they reach are printed.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.contenders import CONTENDERS
from benchmarks.workloads import WORKLOADS

OURS = ("pyrolatent", "pyrolatent-bf16")
CHUNK = 50  # steps between looks at the clock


def work(pipe: Any, name: str, workload: str, data: np.ndarray, device: str) -> None:
    """Serves one contender: ("rate", seconds) -> steps a second, ("bound", steps, seed) -> the bound reached."""
    import torch

    torch.set_flush_denormal(True)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
    made: Any = None
    while (order := pipe.recv()) is not None:
        try:
            if order[0] == "rate":
                if made is None:
                    made = CONTENDERS[name](WORKLOADS[workload], data, 0, device)
                    made.train(CHUNK)
                steps, started = 0, time.perf_counter()
                while time.perf_counter() - started < order[1]:
                    made.train(CHUNK)
                    steps += CHUNK
                pipe.send(steps / (time.perf_counter() - started))
            else:
                fresh = CONTENDERS[name](WORKLOADS[workload], data, order[2], device)
                fresh.train(order[1])
                pipe.send(fresh.bound())
        except Exception as error:
            pipe.send(error)


class Contender:
    """A contender in its process."""

    def __init__(self, name: str, workload: str, data: np.ndarray, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        context.Process(target=work, args=(other, name, workload, data, device), daemon=True).start()

    def ask(self, *order: Any) -> float:
        self.pipe.send(order)
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def measure(name: str, peers: list[str], options: argparse.Namespace, data: np.ndarray) -> list[dict[str, Any]]:
    contenders = {peer: Contender(peer, name, data, options.device) for peer in peers}
    rates: dict[str, list[float]] = {peer: [] for peer in peers}
    for turn in range(options.rounds + 1):  # the first warms up
        for peer, contender in contenders.items():
            rate = contender.ask("rate", options.seconds)
            if turn:
                rates[peer].append(rate)
    rows = []
    for peer, contender in contenders.items():
        ratios = [own / base for own, base in zip(rates[peer], rates["eager"], strict=True)]
        shares = [own / limit for own, limit in zip(rates[peer], rates["matmul"], strict=True)]
        seeds = options.seeds if peer in OURS else 1
        bounds = [contender.ask("bound", options.steps, seed) for seed in range(seeds)] if peer != "matmul" else []
        rows.append(
            {
                "workload": name,
                "contender": "pyrolatent" if peer in OURS else peer,
                "precision": "bf16" if peer.endswith("bf16") else "float32",
                "ratio": median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "share_of_limit": median(shares),
                "steps_per_second": median(rates[peer]),
                "final_bound": median(bounds) if bounds else None,
                "final_bounds": bounds,
            }
        )
        print(shown(rows[-1]), flush=True)
        contender.pipe.send(None)
    return rows


def shown(row: dict[str, Any]) -> str:
    bound = "" if row["final_bound"] is None else f"   bound {row['final_bound']:8.2f}"
    name = f"{row['workload']:<10}{row['contender']:<12}{row['precision']:<9}"
    ratio = f"{row['ratio']:5.2f}  ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
    return f"{name}{ratio}  {row['share_of_limit']:4.0%} of the limit {row['steps_per_second']:9.1f} steps/s{bound}"


def binary_images(directory: Path | None, count: int) -> np.ndarray:
    """MNIST, 1 where a pixel is above one half, (count, 784) uint8; or ten random patterns with noise."""
    if directory is not None:
        from torchvision.datasets import MNIST

        images = MNIST(str(directory), download=False).data[:count].flatten(1).numpy()
        return (images > 127).astype(np.uint8)
    random = np.random.default_rng(0)
    likely = random.random((10, 784)) ** 2
    return (random.random((count, 784)) < likely[random.integers(10, size=count)]).astype(np.uint8)


def machine(device: str) -> str:
    """The processor or GPU in words."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].partition(': ')[2]}, {os.cpu_count()} cores"


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--peers", nargs="*", choices=[n for n in CONTENDERS if n not in OURS], default=["pyro"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each contender in each round")
    parser.add_argument("--steps", type=int, default=1000, help="after which the bounds are compared")
    parser.add_argument("--seeds", type=int, default=1, help="of the bounds of this package")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = binary_images(options.data_dir, 20_000)
    peers = list(dict.fromkeys(["eager", "matmul", *OURS, *options.peers]))
    found: dict[str, Any] = {
        "machine": machine(options.device),
        "versions": versions("torch", "pyro-ppl", "numpyro", "jax", "pythae"),
        "data": "MNIST, thresholded" if options.data_dir else "random patterns",
        "steps": options.steps,
        "results": [],
    }
    for name in options.workload:
        found["results"] += measure(name, peers, options, data)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
