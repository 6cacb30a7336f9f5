"""Images a second of log p(x) at 5,000 draws each, as a ratio to hand-written chunked PyTorch in the same run.

    python -m benchmarks.evidence --rounds 5 --data-dir DIR --json FILE

The network is `notebook`'s, 784-200-10. By hand: encode once, then in chunks of the same size draw, decode, score by
`binary_cross_entropy_with_logits` and add up in log space. `pyrolatent` is what `pyrolatent.evaluate` does with
`compile="always"`, `uncompiled` what it does without. On the same noise all must agree to 1e-3 nat for each image.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.contenders import vae
from benchmarks.training import binary_images, machine, versions
from benchmarks.workloads import WORKLOADS
from pyrolatent.inference.evidence.importance import compiled_chunk, draws_at_once, score

AGREEMENT = 1e-3  # nats, for each image


@torch.no_grad()
def by_hand(model: Any, x: Tensor, particles: int) -> Tensor:
    loc, scale = model.posterior.network(x).chunk(2, -1)
    scale = 1e-3 + functional.softplus(scale)
    at_once, total = draws_at_once(model, x, particles), x.new_full((len(x),), -math.inf)
    for start in range(0, particles, at_once):
        e = torch.randn(min(at_once, particles - start), *loc.shape, device=x.device)
        z = loc + scale * e
        logits = model.likelihood.network(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        log_p = -functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_w = log_p + (0.5 * e.square() + scale.log() - 0.5 * z.square()).sum(-1)
        total = torch.logaddexp(total, log_w.logsumexp(0))
    return total - math.log(particles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=100, help="scored at a time")
    parser.add_argument("--batches", type=int, default=4, help="of each contender in each round")
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    pyro.enable_validation(False)
    torch.manual_seed(0)
    model = vae(WORKLOADS["notebook"]).to(options.device).eval()
    images = binary_images(options.data_dir, options.images)
    x = torch.as_tensor(images, dtype=torch.float32, device=options.device)
    scorer = compiled_chunk(model, draws_at_once(model, x, options.particles), (x, None, None))
    contenders: dict[str, Callable[[], Tensor]] = {
        "by hand": lambda: by_hand(model, x, options.particles),
        "pyrolatent": lambda: score(model, x, particles=options.particles, scorer=scorer).log_evidence,
        "uncompiled": lambda: score(model, x, particles=options.particles).log_evidence,
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    found: dict[str, Tensor] = {}
    for turn in range(options.rounds + 1):  # the first warms up
        for name, scored in contenders.items():
            torch.manual_seed(1)
            started = time.perf_counter()
            for _ in range(options.batches):
                found[name] = scored()
            if options.device == "cuda":
                torch.cuda.synchronize()
            if turn:
                rates[name].append(options.images * options.batches / (time.perf_counter() - started))
    results = []
    for name in contenders:
        ratios = [own / base for own, base in zip(rates[name], rates["by hand"], strict=True)]
        difference = (found[name] - found["by hand"]).abs().max().item()
        # Captured random numbers are the same on a processor; CUDA graphs advance the generator in steps of their own.
        assert difference < AGREEMENT or options.device == "cuda", f"{name} differs by {difference} nat"
        results.append(
            {
                "workload": "evidence",
                "contender": name,
                "precision": "float32",
                "ratio": median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "images_per_second": median(rates[name]),
                "largest_difference": difference,
            }
        )
        row = results[-1]
        print(
            f"{name:<12}{row['ratio']:6.2f}  ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
            f"{row['images_per_second']:9.1f} images/s   largest difference {difference:.1e} nat"
        )
    if options.json:
        told = {"machine": machine(options.device), "versions": versions("torch", "pyro-ppl"), "results": results}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
