"""Grids of experiments, trained in parallel processes or on Ray; finished runs are not trained again."""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import torch

from pyrolatent.errors import InputError, at_least_one, validate_options
from pyrolatent.experiments.experiment import Experiment, override
from pyrolatent.experiments.run import Run, train
from pyrolatent.models.model import Capability, Model

PARTICLES = 500
"""Default number of draws per datapoint in the evaluation after training."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a grid.

    Attributes:
        name: what it declares, as the name of its directory.
        fields: the fields of the experiment.
        directory: directory of user-defined components and relative data paths.
        output: the directory of its run.
        data_dir: directory of named data sets.
        particles: number of draws per datapoint in the evaluation.
        checked: whether to run checks.
        threads: number of processor threads.
    """

    name: str
    fields: dict[str, Any]
    directory: Path | None
    output: Path
    data_dir: Path | None
    particles: int
    checked: bool
    threads: int

    @property
    def experiment(self) -> Experiment:
        """The experiment, validated."""
        return Experiment(**self.fields, directory=self.directory)

    def trained(self) -> bool:
        """Whether the run exists and has been trained completely.

        Raises:
            InputError: the directory has a run of another declaration.
        """
        if not (self.output / "record.json").is_file():
            return False
        run, declared = Run(self.output), self.experiment.declaration
        for part in declared.keys() - {"data", "device"}:
            if run.declaration.get(part) != declared[part]:
                raise InputError(
                    f"{self.output} holds a run of another declaration ({part}); choose another --output, or remove it"
                )
        return bool(run.record.get("finished"))

    def evaluated(self) -> bool:
        """Whether the trained run has been evaluated, with this number of draws if it takes any."""
        file = self.output / "evaluation.json"
        if not file.is_file():
            return False
        return bool(json.loads(file.read_text(encoding="utf-8")).get("particles", self.particles) == self.particles)

    def missing_check(self) -> bool:
        """Whether it is still to be checked."""
        return self.checked and not (self.output / "checks.json").is_file()


def sweep(
    fields: Mapping[str, Any],
    over: Mapping[str, Sequence[Any]],
    output: str | Path,
    *,
    seeds: int = 1,
    jobs: int | None = None,
    ray: str | None = None,
    directory: Path | None = None,
    data_dir: Path | None = None,
    particles: int | None = None,
    checked: bool = False,
    on_run: Callable[[str, str | None, int, int], Any] | None = None,
) -> list[Run]:
    """Trains and evaluates every combination that has not been finished yet.

    Args:
        fields: the fields of an experiment.
        over: lists of values by dotted path of the field.
        output: the directory of the runs, each of which is named by what it declares.
        seeds: number of training seeds, from that of the experiment upwards.
        jobs: number of parallel processes, which share the processors; None is one per processor.
        ray: address of a Ray cluster to train on instead: "auto" for a running one, "local" for a new one on this
            machine; `output` must be on a file system that its machines share.
        directory: directory of user-defined components and relative data paths.
        data_dir: directory of named data sets.
        particles: number of draws per datapoint in the evaluation of models with latents; None is 500.
        checked: whether to check every run.
        on_run: called with the name of a run, the reason of its failure or None, the number of runs done and the total.

    Returns:
        The finished runs.

    Raises:
        InputError: a declaration is invalid, before any training; or no run could be finished.
    """
    processors = os.cpu_count() or 1
    jobs = processors if jobs is None else jobs
    at_least_one(seeds=seeds, jobs=jobs, particles=particles)
    draws, threads = PARTICLES if particles is None else particles, max(1, processors // jobs)
    made = [
        Cell(name, chosen, directory, Path(output) / name, data_dir, draws, checked, threads)
        for name, chosen in grid(fields, over, seeds, directory).items()
    ]
    for cell in made:
        _validate_comparison(cell, cell.experiment.model_class)
    if all(cell.experiment.model_class.always_offers & {Capability.ENERGY, Capability.CODES} for cell in made):
        validate_options("a sweep over models without a posterior", (), {"particles": particles})
    waiting = [cell for cell in made if not cell.trained() or not cell.evaluated() or cell.missing_check()]
    done, failures = len(made) - len(waiting), {}
    for cell, failure in _on_ray(waiting, ray) if ray else _in_processes(waiting, jobs):
        done += 1
        if failure:
            failures[cell.name] = failure
        if on_run:
            on_run(cell.name, failure, done, len(made))
    runs = [Run(cell.output) for cell in made if cell.name not in failures]
    if not runs:
        raise InputError(f"none of {len(made)} runs could be finished; the first: {next(iter(failures.values()))}")
    return runs


def grid(
    fields: Mapping[str, Any], over: Mapping[str, Sequence[Any]], seeds: int, directory: Path | None = None
) -> dict[str, dict[str, Any]]:
    """The validated fields of every combination, by a name that is valid for a directory.

    Raises:
        InputError: a declaration is invalid or occurs twice.
    """
    first, combinations = fields.get("seed", 0), {}
    shown = {path: path.rpartition(".")[2] for path in over}
    for values in itertools.product(*over.values()):
        chosen = dict(zip(over, values, strict=True))
        for seed in range(first, first + seeds):
            declared = override(fields, chosen | {"seed": seed})
            Experiment(**declared, directory=directory)
            label = ",".join([*(f"{shown[path]}={_short(value)}" for path, value in chosen.items()), f"seed={seed}"])
            if label in combinations:
                raise InputError(f"{label} occurs twice in the grid; leave one out")
            combinations[label] = declared
    return combinations


def numeric(over: Mapping[str, Sequence[Any]], runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """The fields of a grid whose values are several numbers, with the value of each run by its directory."""
    found: dict[str, dict[str, float]] = {}
    for path, values in over.items():
        if len(values) > 1 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            found[path] = {str(run.path): _at(run.declaration, path) for run in runs}
    return found


def _at(declaration: Mapping[str, Any], path: str) -> float:
    """The value of a dotted field of a declaration."""
    value: Any = declaration
    for part in path.split("."):
        value = value[part]
    return float(value)


def train_cell(cell: Cell) -> None:
    """Trains, evaluates and, if declared, checks one experiment."""
    torch.set_num_threads(cell.threads)
    torch.set_flush_denormal(True)
    experiment = cell.experiment
    if cell.trained():
        run = Run.load(cell.output, trust=True)  # its components are those of the sweep
    else:
        run = train(experiment, cell.output, data_dir=cell.data_dir, overwrite=True, progress=False)
    data = run.load_data(cell.data_dir)
    _validate_comparison(cell, type(run.model))
    if not cell.evaluated():
        run.evaluate(data, particles=cell.particles if Capability.POSTERIOR in run.model.offers else None)
    if cell.missing_check():
        run.check(data, annealed=0, pictures=False)


def _validate_comparison(cell: Cell, model: type[Model]) -> None:
    """Refuses classes of models that cannot be compared or checked; `Model` may be any class."""
    (name,) = cell.experiment.declaration["model"]
    if cell.checked and model is not Model and Capability.POSTERIOR not in model.always_offers:
        raise InputError(
            f"{name} has no {Capability.POSTERIOR} that could be checked; leave --check (checked=True) out"
        )


def _in_processes(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, str | None]]:
    """Runs each cell in its own process, `jobs` at a time, so that a crash does not affect others."""
    context, waiting = get_context("spawn"), list(cells)
    running: dict[int, tuple[Cell, Any, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_reporting, args=(cell, sender))
                process.start()
                sender.close()
                running[process.sentinel] = (cell, process, receiver)
            for sentinel in connection.wait([*running]):
                cell, process, receiver = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                said = receiver.recv() if receiver.poll() and process.exitcode else None
                failed = f"the process ended with code {process.exitcode}" if process.exitcode else None
                yield cell, said or failed
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join()


def _reporting(cell: Cell, sender: Any) -> None:
    """Trains a cell and sends the reason of a failure."""
    try:
        train_cell(cell)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        sender.send(_reason(error))
        raise SystemExit(1) from error


def _on_ray(cells: Sequence[Cell], address: str) -> Iterator[tuple[Cell, str | None]]:
    try:
        import ray
    except ImportError:
        raise InputError("ray is not installed; pip install 'pyrolatent[ray]', or leave --ray out") from None
    try:
        ray.init(address=None if address == "local" else address, log_to_driver=False)
    except Exception as error:  # Ray may raise anything
        raise InputError(f"there is no Ray cluster at {address!r}: {_reason(error)}") from error
    try:
        started = {ray.remote(train_cell).options(num_cpus=cell.threads).remote(cell): cell for cell in cells}
        while started:
            (finished,), _ = ray.wait([*started], num_returns=1)
            cell = started.pop(finished)
            try:
                ray.get(finished)
                yield cell, None
            except Exception as error:
                yield cell, _reason(getattr(error, "cause", error))
    finally:
        ray.shutdown()


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _short(value: Any) -> str:
    """A value as part of the name of a directory."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "none"
