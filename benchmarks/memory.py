"""Data larger than memory: the rate of training and the memory that it takes, beside the same data in memory.

    python -m benchmarks.memory --gigabytes 1 2 4 --folder DIR --json FILE

A .npy file of vectors of 784 numbers in float32 is written for each size. In a process of its own a VAE is then loaded,
trained for one epoch, evaluated and checked, with its data limited to `--memory`; and with the largest file without a
limit too.
Rates are steps a second of the epoch after the first 500 steps, in which it is compiled. Memory is the peak of what the
process holds that is no page of a file (RssAnon), beyond what it held before it loaded the data.
"""

import argparse
import json
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training import machine, versions

WIDTH, BATCH = 784, 128
WARM = 500
"""Steps before the rate is measured."""


def write(path: Path, gigabytes: float) -> None:
    """Writes vectors of values in [0, 1] that two latents explain, piece by piece."""
    random = np.random.default_rng(0)
    rows = int(gigabytes * 2**30) // (4 * WIDTH)
    weights = random.normal(size=(2, WIDTH)).astype(np.float32)
    x = np.lib.format.open_memmap(path, "w+", np.float32, (rows, WIDTH))
    for start in range(0, rows, 10_000):
        z = random.normal(size=(min(10_000, rows - start), 2)).astype(np.float32)
        noise = random.normal(scale=0.1, size=(len(z), WIDTH)).astype(np.float32)
        x[start : start + len(z)] = 1 / (1 + np.exp(-z @ weights)) + noise
    x.flush()


def anonymous() -> int:
    """Bytes that the process holds and that are no pages of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def work(pipe: Any, path: Path, memory: str | None) -> None:
    """Loads, trains, evaluates and checks in this process; sends seconds, steps a second and peaks of memory."""
    import torch

    import pyrolatent as pl
    from pyrolatent.inference.training.loop import Trainer

    torch.set_flush_denormal(True)
    pl.fit(
        pl.VAE((4,), latent_dim=1), pl.load_data(np.eye(40, 4)), epochs=1, progress=False, compile="always"
    )  # imports
    held, peak, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous() - held)

    threading.Thread(target=watch, daemon=True).start()
    found: dict[str, float] = {}
    started = time.perf_counter()
    data = pl.load_data(path, memory=memory, validation=[*range(500)], test=[*range(500, 1000)])
    found |= {"load_seconds": time.perf_counter() - started, "load_bytes": peak}

    times: list[float] = []
    step = Trainer.step

    def timed(self: Any, index: Any) -> Any:
        times.append(time.perf_counter())
        return step(self, index)

    Trainer.step = timed  # type: ignore[method-assign]
    peak = 0
    networks: Any = {part: {"mlp": {"hidden": [200]}} for part in ("encoder", "decoder")}
    torch.manual_seed(0)
    model = pl.VAE(data.event_shape, latent_dim=10, likelihood={"normal": {"scale": 0.1}}, **networks)
    fit = pl.fit(model, data, epochs=1, batch_size=BATCH, compile="always", progress=False)
    found |= {"steps": len(times), "steps_per_second": (len(times) - WARM) / (times[-1] - times[WARM])}
    found |= {"train_bytes": peak, "train_loss": fit.history[-1]["train_loss"]}
    peak = 0
    pl.evaluate(fit.model, data, particles=100)
    pl.check(fit.model, data, size=200, draws=200, simulations=100, replicates=199, annealed=0)
    found["evaluate_and_check_bytes"] = peak
    done.set()
    pipe.send(found)


def measured(path: Path, memory: str | None) -> dict[str, float]:
    """The measurements of a fresh process."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=work, args=(other, path, memory))
    process.start()
    other.close()
    found: dict[str, float] = pipe.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", nargs="+", type=float, default=[1, 2, 4])
    parser.add_argument("--memory", default="500MB")
    parser.add_argument("--folder", type=Path, required=True, help="where the files are written")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for gigabytes in args.gigabytes:
        path = args.folder / f"vectors-{gigabytes:g}.npy"
        write(path, gigabytes)
        for memory in (args.memory, "1TB")[: 1 + (gigabytes == max(args.gigabytes))]:
            found = measured(path, memory)
            rows.append({"gigabytes": gigabytes, "memory": memory, **found})
            peaks = ", ".join(
                f"{found[f'{stage}_bytes'] / 1e6:.0f}" for stage in ("load", "train", "evaluate_and_check")
            )
            print(
                f"{gigabytes:g} GB, limit {memory}: {found['steps_per_second']:.0f} steps a second, loaded in "
                f"{found['load_seconds']:.0f} s; peaks of loading, training, evaluation and checks {peaks} MB",
                flush=True,
            )
        path.unlink()
    if args.json:
        about = {"machine": machine("cpu"), "versions": versions("torch", "numpy", "pyrolatent")}
        args.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
