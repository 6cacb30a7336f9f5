"""How often `compare` says that declarations differ: equally good ones, and ones five standard errors apart.

    python -m benchmarks.comparisons --json FILE

Scores of 50 datapoints are normal: a mean of the declaration, an effect of the seed, one of the datapoint and one of
both. False significance is the share of repetitions in which any declaration is said to differ from the best of equally
good ones. Power: one declaration is better than each other by five standard errors of their difference; the share of
the others that are said to differ from it.
"""

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.training import machine, versions
from pyrolatent.experiments.compare import differences

DATAPOINTS = 50
BEHIND = 5.0
SEEDS = (2, 3, 5, 10)
DECLARATIONS = (2, 6)
HALF = 1 / math.sqrt(DATAPOINTS)


@dataclass(frozen=True)
class Noise:
    """Standard deviations: over seeds, over datapoints, of both together, and over seeds of the first declaration."""

    what: str
    seeds: float
    datapoints: float
    both: float
    first: float = 1.0


NOISES = (
    Noise("of seeds", 1.0, 0.0, 0.0),
    Noise("of datapoints and seeds, as much of each at one seed", HALF, 1.0, 0.0),
    Noise("of each datapoint at each seed", 0.0, 0.0, 1.0),
    Noise("of seeds, of one declaration four times as much", 1.0, 0.0, 0.0, 4.0),
)


def said_to_differ(noise: Noise, declarations: int, seeds: int, repetitions: int, behind: float) -> torch.Tensor:
    """Which declarations are said to differ from the best, (repetitions, declarations)."""
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(10_000 * NOISES.index(noise) + 100 * declarations + seeds)
    spread = torch.full((declarations, 1, 1), noise.seeds, dtype=torch.float64)
    spread[0] *= noise.first
    variance = noise.datapoints**2 / DATAPOINTS + (spread**2 + noise.both**2 / DATAPOINTS) / seeds
    means = -behind * (variance + variance[0]).sqrt()
    means[0] = 0.0

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    found = torch.zeros(repetitions, declarations, dtype=torch.bool)
    for repetition in range(repetitions):
        scores = means + spread * normal(declarations, seeds, 1)
        scores = scores + noise.datapoints * normal(declarations, 1, DATAPOINTS)
        scores = scores + noise.both * normal(declarations, seeds, DATAPOINTS)
        found[repetition] = torch.tensor([bool(each and each.significant) for each in differences(list(scores))])
    return found


def cell(place: int, declarations: int, seeds: int, repetitions: int, repetitions_of_power: int) -> dict[str, Any]:
    """False significance and power for this noise."""
    noise = NOISES[place]
    false = said_to_differ(noise, declarations, seeds, repetitions, 0.0).any(1).double().mean().item()
    power = said_to_differ(noise, declarations, seeds, repetitions_of_power, BEHIND)[:, 1:].double().mean().item()
    return {
        "noise": noise.what,
        "declarations": declarations,
        "seeds": seeds,
        "false_significance": false,
        "power": power,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=4000, help="of equally good declarations")
    parser.add_argument("--power", type=int, default=1000, help="repetitions of ones that differ")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    cells = [(place, k, seeds) for k in DECLARATIONS for seeds in SEEDS for place in range(len(NOISES))]
    repetitions = [[count] * len(cells) for count in (options.repetitions, options.power)]
    with ProcessPoolExecutor(options.jobs) as pool:
        results = list(pool.map(cell, *zip(*cells, strict=True), *repetitions))
    print("| noise | declarations |" + "".join(f" {seeds} seeds |" for seeds in SEEDS))
    print("| --- | --- |" + " --- |" * len(SEEDS))
    for noise in NOISES:
        for k in DECLARATIONS:
            rows = [row for row in results if (row["noise"], row["declarations"]) == (noise.what, k)]
            shown = [f" {row['false_significance']:.1%}, {row['power']:.0%} |" for row in rows]
            print(f"| {noise.what} | {k} |" + "".join(shown))
    if options.json:
        told = {
            "machine": machine("cpu"),
            "versions": versions("torch", "scipy"),
            "repetitions": {"false_significance": options.repetitions, "power": options.power},
            "seconds": round(time.perf_counter() - started),
            "results": results,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
