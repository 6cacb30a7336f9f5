"""The commands and their options."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.text import Text
from typer.core import TyperCommand

import pyrolatent as pl
from pyrolatent.cli.tables import (
    EpochRows,
    console,
    describe,
    errors,
    print_checks,
    print_comparison,
    print_components,
    print_paths,
    print_scores,
    progress,
)
from pyrolatent.errors import InputError, TrainingError, validate_options

# Names of `pl` are imported on first use, and everything else that a command needs in its body, so that help does not
# wait for torch.

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVALUATED: dict[str, tuple[str, ...]] = {
    "by importance sampling": ("--method", "--particles"),
    "by annealing latents": ("--method", "--size", "--chains", "--temperatures"),
    "by exact log Z": ("--ais", "--raise"),
    "by exact log Z with RAISE": ("--temperatures", "--ais", "--raise", "--kernel"),
    "by squared error": (),
    "by annealed log Z": ("--chains", "--temperatures", "--ais", "--raise", "--kernel"),
}
"""Ways to evaluate, with the options that apply to each."""
SHORT = 1000  # temperatures of the evaluation after training


class Command(TyperCommand):
    """A command with errors of one line: exit code 2 for invalid input, 1 for a failure, 130 for Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command, possibly as one of several processes under torchrun."""
        import torch

        from pyrolatent.inference import distributed

        try:
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: finished work is kept
            torch.set_flush_denormal(True)
            distributed.start()
            try:
                if distributed.rank():
                    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
                return super().invoke(ctx)
            finally:
                distributed.stop()
        except InputError as error:
            _fail("error", error, 2)
        except TrainingError as error:
            _fail("training stopped", error, 1)
        except KeyboardInterrupt as error:
            _fail("interrupted", str(error) or "finished work is kept", 130)


app = typer.Typer(
    help="Deep latent-variable models in Pyro: declare, train, evaluate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
command = partial(app.command, cls=Command)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, written by train.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Trust = Annotated[bool, typer.Option("--trust", help="Import the run's copies of your own components.")]
Kernel = Annotated[str | None, typer.Option(help="Kernel of the chains of an energy: hmc, or '{hmc: {step: 0.1}}'.")]
DataDir = Annotated[Path | None, typer.Option(help="Directory of named data sets (default: PYROLATENT_DATA).")]
Memory = Annotated[str | None, typer.Option(help="Memory that data may take, as 2GB (default: half of the machine's).")]
Device = Literal["auto", "cpu", "cuda", "mps"]
Splits = Literal["train", "validation", "test"]


def limited_to(memory: str | None) -> AbstractContextManager[None]:
    """Limits the memory that data take within a command."""
    from pyrolatent.data.store import bytes_of, limited

    return limited(None if memory is None else bytes_of(memory))


def main() -> None:
    """Entry point."""
    warnings.showwarning = lambda message, *_: errors.print(f"warning: {message}", highlight=False, soft_wrap=True)
    app()


def _version(asked: bool) -> None:
    if asked:
        print(f"pyrolatent {pl.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Deep latent-variable models in Pyro: declare, train, evaluate."""


@command("train")
def train_command(
    experiment: Annotated[Path | None, typer.Argument(metavar="EXPERIMENT", help="An experiment file.")] = None,
    output: Annotated[Path | None, typer.Option(help="Directory of the run (default: a new one in runs/).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    data: Annotated[str | None, typer.Option(help="A named data set, a file or a folder.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the initial weights and of training.")] = None,
    device: Annotated[Device | None, typer.Option(help="Where to train.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field: model.vae.latent_dim=20.")] = None,
    data_dir: DataDir = None,
    memory: Memory = None,
    particles: Annotated[
        int | None, typer.Option(min=1, help="Draws for each datapoint in the evaluation (default: 500).")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing run in the output directory.")] = False,
    tensorboard: Annotated[bool, typer.Option(help="Also write the metrics for TensorBoard.")] = False,
    as_json: Json = False,
) -> None:
    """Train an experiment, evaluate it and draw its figures; without arguments, a VAE on embedded digits."""
    from pyrolatent.experiments.experiment import override
    from pyrolatent.experiments.run import scores
    from pyrolatent.experiments.sweep import PARTICLES
    from pyrolatent.inference import distributed
    from pyrolatent.models.model import Capability

    overrides = _overrides(set_, {"epochs": epochs, "seed": seed, "device": device, "data": data})
    declared = pl.Experiment.load(experiment, overrides) if experiment else pl.Experiment(**override({}, overrides))
    if declared.model_class.always_offers & {Capability.ENERGY, Capability.CODES}:
        validate_options(f"train of {declared.model_class.__name__}", (), {"--particles": particles})
    path = output or _new_directory(experiment or Path(_data_name(declared)))
    path = Path(distributed.broadcast_text(str(path)))
    rows = EpochRows(quiet=as_json)
    try:
        with limited_to(memory):
            run = pl.train(
                declared,
                path,
                data_dir=data_dir,
                overwrite=overwrite,
                tensorboard=tensorboard,
                progress=console.is_terminal and not as_json,
                on_epoch=rows,
                on_start=rows.start,
            )
    except KeyboardInterrupt as interrupt:
        kept = f"{path} holds the model after epoch {rows.epoch}" if rows.epoch else "before the end of the first epoch"
        raise KeyboardInterrupt(kept) from interrupt
    rows.finish()
    if not as_json:
        print(f"\n{run.model}\n")
    short: dict[str, dict[str, Any]] = {
        "by importance sampling": {"particles": particles or PARTICLES},
        "by annealed log Z": {"annealing": pl.Annealing(temperatures=SHORT)},
    }
    try:
        loaded = run.data
        assert loaded is not None
        with progress(quiet=as_json) as on_step:
            evaluation = run.evaluate(loaded, on_step=on_step, **short.get(_way(run.model), {}))
        if distributed.rank():
            return
        drawn = run.plot(loaded)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"{path} holds the trained model; evaluate and figures do the rest") from interrupt
    if as_json:
        print(json.dumps({"run": str(path), "evaluation": scores(evaluation), "figures": [str(p) for p in drawn]}))
        return
    print_scores(evaluation.title, evaluation.rows())
    print(f"run      {path}", "figures  " + "\n         ".join(map(str, drawn)), sep="\n")


@command("evaluate")
def evaluate_command(
    run: RunPath,
    split: Annotated[Splits, typer.Option(help="The part of the data.")] = "test",
    particles: Annotated[int | None, typer.Option(min=1, help="Draws for each datapoint (default: 5000).")] = None,
    method: Annotated[
        Literal["importance", "annealed"] | None,
        typer.Option(help="Estimator of log p(x); annealed does not use the encoder (default: importance)."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="annealed: datapoints, from the first (default: 100).")
    ] = None,
    chains: Annotated[int | None, typer.Option(min=1, help="Annealed chains: 16 per datapoint; 100 for log Z.")] = None,
    temperatures: Annotated[
        int | None, typer.Option(min=1, help="Steps of these chains: 500 per datapoint; 10000 for log Z.")
    ] = None,
    ais: Annotated[bool, typer.Option("--ais", help="Estimate log Z of an energy even if it is tractable.")] = False,
    raised: Annotated[
        int | None, typer.Option("--raise", min=1, help="Number of datapoints for the RAISE bound on log p(x).")
    ] = None,
    kernel: Kernel = None,
    data_dir: DataDir = None,
    memory: Memory = None,
    device: Annotated[Device, typer.Option(help="Where to evaluate.")] = "auto",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Held-out bound, its parts, and log p(x) by importance sampling; written to evaluation.json.

    With --method annealed, log p(x) by annealing from the prior, bracketed on simulated data; written to annealed.json.
    """
    from pyrolatent.experiments.run import scores

    loaded = pl.Run.load(run, trust=trust)
    way = _way(loaded.model, method, ais, raised)
    options = {
        "--method": method, "--particles": particles, "--size": size, "--chains": chains,
        "--temperatures": temperatures, "--ais": ais, "--raise": raised, "--kernel": kernel,
    }  # fmt: skip
    given = validate_options(f"evaluate of {type(loaded.model).__name__} {way}", EVALUATED[way], options)
    with limited_to(memory):
        data = loaded.load_data(data_dir)
    with progress(quiet=as_json) as on_step:
        where: dict[str, Any] = {"split": split, "device": device, "on_step": on_step}
        if way == "by annealing latents":
            steps: dict[str, Any] = {"size": size or 100, "chains": chains or 16, "steps": temperatures or 500}
            found, bracket = loaded.anneal(data, **where, **steps)
            title, rows, contents = found.title, found.rows() + bracket.rows(), loaded.annealed
        else:
            annealing = pl.Annealing(chains or 100, temperatures or 10_000, ais, raised or 0, kernel_of(kernel))
            asked = annealing if given.keys() - {"--method", "--particles"} else None
            evaluation = loaded.evaluate(data, particles=particles, annealing=asked, **where)
            title, rows, contents = evaluation.title, evaluation.rows(), scores(evaluation)
    if as_json:
        print(json.dumps(contents))
    else:
        print_scores(title, rows)


@command("check")
def check_command(
    run: RunPath,
    split: Annotated[Splits, typer.Option(help="The part of the data.")] = "test",
    size: Annotated[int, typer.Option(help="Datapoints, drawn at the seed.")] = 1000,
    draws: Annotated[int, typer.Option(help="Draws from q for each datapoint.")] = 1000,
    simulations: Annotated[int, typer.Option(help="Datapoints that the model simulates, for calibration.")] = 500,
    replicates: Annotated[int, typer.Option(help="Data sets that the model draws, to compare the data with.")] = 1999,
    annealed: Annotated[int, typer.Option(help="Datapoints whose evidence is annealed; 0 leaves it out.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
    data_dir: DataDir = None,
    memory: Memory = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Check the model: verdicts in checks.json, figures, and draws.nc for ArviZ."""
    loaded = pl.Run.load(run, trust=trust)
    with progress(quiet=as_json) as on_step, limited_to(memory):
        found = loaded.check(
            loaded.load_data(data_dir),
            split=split,
            size=size,
            draws=draws,
            simulations=simulations,
            replicates=replicates,
            annealed=annealed,
            seed=seed,
            device=device,
            on_step=on_step,
        )
    if as_json:
        print(json.dumps(found.json()))
    else:
        print_checks(found)
        print(*loaded.written, sep="\n")


@command("figures")
def figures_command(
    run: RunPath, data_dir: DataDir = None, memory: Memory = None, trust: Trust = False, as_json: Json = False
) -> None:
    """Plot every figure of a run again."""
    loaded = pl.Run.load(run, trust=trust)
    with limited_to(memory):
        paths = loaded.plot(loaded.load_data(data_dir))
    print_paths({path.stem: path for path in paths}, as_json)


@command("show")
def show_command(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_EXPERIMENT", help="A run or an experiment file.")],
    data_dir: DataDir = None,
    memory: Memory = None,
    trust: Trust = False,
) -> None:
    """Factorisation, sizes and declaration of a run or of an experiment file."""
    if path.is_dir():
        validate_options(
            f"show of a run as {path}", ("--trust",), {"--trust": trust, "--data-dir": data_dir, "--memory": memory}
        )
        run = pl.Run.load(path, trust=trust)
        model, text = run.model, (path / "experiment.yaml").read_text(encoding="utf-8")
        trained = f"{'' if run.record.get('finished') else 'interrupted '}after epoch {len(run.history)}"
        print(f"{path}, {trained}")
    else:
        validate_options(
            f"show of an experiment file as {path}",
            ("--data-dir", "--memory"),
            {"--trust": trust, "--data-dir": data_dir, "--memory": memory},
        )
        experiment = pl.Experiment.load(path)
        with limited_to(memory):
            data = experiment.load_data(data_dir)
        print(f"{data.describe()}\n")
        model, text = experiment.build(data), experiment.to_yaml()
    print(model, text, sep="\n\n", end="")


@command("compare")
def compare_command(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Evaluated runs.")],
    figure: Annotated[Path | None, typer.Option(help="A PNG file for the forest plot.")] = None,
    as_json: Json = False,
) -> None:
    """Compare evaluated runs, grouped by measure: paired differences, with errors over datapoints and seeds."""
    from pyrolatent.experiments.compare import forest

    groups = pl.compare([pl.Run(path) for path in paths])
    if figure:
        _save_figure(figure, forest(groups))
    print_comparison(groups, as_json)


@command("sweep")
def sweep_command(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="An experiment file.")],
    over: Annotated[list[str], typer.Option(help="A field and its values: model.vae.prior=normal,mixture.")],
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds for each combination.")] = 3,
    output: Annotated[
        Path | None, typer.Option(help="Directory of the runs (default: runs/ and the file's name).")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes at a time (default: one per processor).")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field: model.vae.latent_dim=20.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    particles: Annotated[
        int | None, typer.Option(min=1, help="Draws for each datapoint in the evaluation (default: 500).")
    ] = None,
    checked: Annotated[bool, typer.Option("--check", help="Check every run.")] = False,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to train on, or auto or local.")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Train a grid of experiments in parallel and compare them; finished runs are not trained again."""
    from pyrolatent.experiments.compare import curve, forest
    from pyrolatent.experiments.experiment import override, read_yaml
    from pyrolatent.experiments.sweep import numeric, sweep

    declared = _assigned("--over", over, "model.vae.prior=normal,mixture", several=True)
    fields = override(read_yaml(experiment), _overrides(set_, {"epochs": epochs}))
    path = output or Path("runs") / f"{experiment.stem}-sweep"

    def on_run(name: str, failure: str | None, done: int, total: int) -> None:
        if not as_json:
            print(f"{done}/{total}  {name}" + (f"  FAILED: {failure}" if failure else ""), flush=True)
        elif failure:
            errors.print(f"{name} failed: {failure}", soft_wrap=True, highlight=False)

    try:
        runs = sweep(
            fields,
            declared,
            path,
            seeds=seeds,
            jobs=jobs,
            ray=ray,
            directory=experiment.resolve().parent,
            data_dir=data_dir,
            particles=particles,
            checked=checked,
            on_run=on_run,
        )
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"finished runs are kept in {path}; the same command goes on from there") from interrupt
    groups = pl.compare(runs)
    _save_figure(path / "comparison.png", forest(groups))
    drawn = [path / "comparison.png"]
    for field, values in numeric(declared, runs).items():
        drawn.append(path / f"{field.rpartition('.')[2]}.png")
        _save_figure(drawn[-1], curve(groups, field, values))
    (path / "comparison.json").write_text(json.dumps([asdict(group) for group in groups], indent=2) + "\n")
    print_comparison(groups, as_json)
    if not as_json:
        print(path / "comparison.json", *drawn, sep="\n")


def _save_figure(path: Path, figure: "Figure") -> None:
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


@command("components")
def components_command(as_json: Json = False) -> None:
    """List all components that can be declared, with their options and defaults."""
    from pyrolatent import declaration

    listing = {kind: declaration.registered(kind) for kind in declaration.kinds()}
    if as_json:
        described = {
            kind: {name: describe(entry) for name, entry in entries.items()} for kind, entries in listing.items()
        }
        print(json.dumps(described))
        return
    for kind, entries in listing.items():
        alike = [other for other in listing if listing[other] == entries]
        if kind == alike[0]:
            print_components(", ".join(alike), entries)


@command("schema")
def schema_command() -> None:
    """Write the JSON schema of the experiment file, for editors."""
    from pyrolatent.experiments.experiment import experiment_schema

    print(json.dumps(experiment_schema(), indent=2))


def _way(model: Any, method: str | None = None, ais: bool = False, raised: int | None = None) -> str:
    """The requested entry of `EVALUATED`."""
    from pyrolatent.models.model import Capability

    if Capability.CODES in model.offers:
        return "by squared error"
    if Capability.ENERGY in model.offers:
        exact = "by exact log Z with RAISE" if raised else "by exact log Z"
        return exact if Capability.LOG_Z in model.offers and not ais else "by annealed log Z"
    return "by annealing latents" if method == "annealed" else "by importance sampling"


def kernel_of(declared: str | None) -> Any:
    """Parses a kernel declared in YAML."""
    from pyrolatent.declaration import validate
    from pyrolatent.experiments.experiment import parse_value

    return None if declared is None else validate("kernel", parse_value(declared))


def _overrides(assignments: list[str] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in given.items() if value is not None}
    return values | _assigned("--set", assignments or [], "model.vae.latent_dim=20")


def _assigned(option: str, assignments: list[str], example: str, *, several: bool = False) -> dict[str, Any]:
    """Parses `FIELD=VALUE` assignments with YAML values, or with `several` lists of values."""
    from pyrolatent.experiments.experiment import parse_value

    found = {}
    for assignment in assignments:
        field, equals, value = assignment.partition("=")
        if not equals or not value.strip():
            raise InputError(f"{option} was given {assignment!r}; write it as {option} {example}")
        found[field.strip()] = parse_value(f"[{value}]" if several else value)
    return found


def _data_name(experiment: "pl.Experiment") -> str:
    data = experiment.data
    return str(next(iter(data), "data") if isinstance(data, Mapping) else data)


def _new_directory(named_after: Path) -> Path:
    number = 1
    while (path := Path("runs") / f"{named_after.stem}-{number}").exists():
        number += 1
    return path


def _fail(what: str, message: object, code: int) -> NoReturn:
    line = str(message).partition("\n")[0]  # Pyro appends the shapes of the trace in which an error was raised
    errors.print(Text.assemble((f"{what}: ", "bold red"), line), soft_wrap=True, highlight=False)
    sys.exit(code)
