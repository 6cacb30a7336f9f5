"""The command line: parsing and printing only; all work is done by calls that Python users make too."""

import json
import math
import os
import signal
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch
import typer
from rich.console import Console
from rich.padding import Padding
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from pyrolatent import __version__, declaration, report, tasks
from pyrolatent.chains import SWEEPS
from pyrolatent.checks import Checks, check
from pyrolatent.compare import Group, compare, forest
from pyrolatent.errors import InputError, TrainingError, hold_seed, only
from pyrolatent.experiment import Experiment, experiment_schema, override, parse_value, read_yaml
from pyrolatent.figures import samples as samples_figure
from pyrolatent.inference import distributed
from pyrolatent.inference.annealed import AnnealedEvidence, annealed_evidence, bidirectional_evidence
from pyrolatent.inference.draws import labels_for
from pyrolatent.inference.evidence import Evaluation, evaluate
from pyrolatent.inference.modes import choose_device
from pyrolatent.inference.partition import Annealing, EnergyEvaluation, evaluate_energy
from pyrolatent.inference.psis import khat_threshold
from pyrolatent.inference.training.loop import Fit
from pyrolatent.models.autoencoder import DeterministicModel
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.unnormalised import UnnormalisedDensity
from pyrolatent.run import Run, scores, train
from pyrolatent.sweep import PARTICLES, sweep

EVALUATED: dict[str, tuple[str, ...]] = {
    "by importance sampling": ("--method", "--particles"),
    "by annealing latents": ("--method", "--size", "--chains", "--temperatures"),
    "by exact log Z": ("--ais", "--raise"),
    "by exact log Z with RAISE": ("--temperatures", "--ais", "--raise", "--kernel"),
    "by annealed log Z": ("--chains", "--temperatures", "--ais", "--raise", "--kernel"),
}
"""What evaluate does, and the options that say how; the other ones say of what and where."""
COMPARED = 140  # columns that a comparison needs
SHORT = 1000  # temperatures of the evaluation that ends a training
ROWS = 20  # epochs that are printed, at most, beside the first and the last

console = Console()
errors = Console(stderr=True)


class Commands(TyperGroup):
    """The commands, whose errors are one line: exit code 2 for a mistake, 1 for a failure, 130 for Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            _fail("error", error, 2)
        except TrainingError as error:
            _fail("training stopped", error, 1)
        except KeyboardInterrupt as error:
            _fail("interrupted", str(error) or "what was finished is kept", 130)


app = typer.Typer(
    cls=Commands,
    help="Deep latent-variable models in Pyro: declare, train, evaluate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory that train has written.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Trust = Annotated[bool, typer.Option("--trust", help="Import the run's copies of components of your own.")]
Kernel = Annotated[str | None, typer.Option(help="What moves the chains of an energy: hmc, or '{hmc: {step: 0.1}}'.")]
DataDir = Annotated[Path | None, typer.Option(help="Where named data sets are (default: PYROLATENT_DATA).")]
Device = Literal["auto", "cpu", "cuda", "mps"]
Splits = Literal["train", "validation", "test"]


def main() -> None:
    """Entry point."""
    torch.set_flush_denormal(True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was finished is kept
    warnings.showwarning = lambda message, *_: errors.print(f"warning: {message}", highlight=False, soft_wrap=True)
    distributed.start()
    if distributed.rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
    try:
        app()
    finally:
        distributed.stop()


def _version(asked: bool) -> None:
    if asked:
        print(f"pyrolatent {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Deep latent-variable models in Pyro: declare, train, evaluate."""


@app.command("train")
def train_command(
    experiment: Annotated[Path | None, typer.Argument(metavar="EXPERIMENT", help="An experiment file.")] = None,
    output: Annotated[Path | None, typer.Option(help="Directory of the run (default: a new one in runs/).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    data: Annotated[str | None, typer.Option(help="A named data set, a file or a folder.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the initial weights and of training.")] = None,
    device: Annotated[Device | None, typer.Option(help="Where to train.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field: model.vae.latent_dim=20.")] = None,
    data_dir: DataDir = None,
    particles: Annotated[
        int | None, typer.Option(min=1, help="Draws for each datapoint in the evaluation (default: 500).")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the run that is in the output directory.")] = False,
    tensorboard: Annotated[bool, typer.Option(help="Write the metrics for TensorBoard too.")] = False,
    as_json: Json = False,
) -> None:
    """Train an experiment, evaluate it and draw its figures; without arguments, a VAE on embedded digits."""
    overrides = _overrides(set_, {"epochs": epochs, "seed": seed, "device": device, "data": data})
    declared = Experiment.load(experiment, overrides) if experiment else Experiment(**override({}, overrides))
    if issubclass(declared.model_class, UnnormalisedDensity | DeterministicModel):
        only(f"train of {declared.model_class.__name__}", (), {"--particles": particles})
    path = output or _new_directory(experiment or Path(_data_name(declared)))
    path = Path(distributed.broadcast_text(str(path)))
    rows = _Rows(quiet=as_json)
    try:
        run = train(
            declared,
            path,
            data_dir=data_dir,
            overwrite=overwrite,
            tensorboard=tensorboard,
            progress=console.is_terminal and not as_json,
            on_epoch=rows,
        )
    except KeyboardInterrupt as interrupt:
        kept = f"{path} holds the model after epoch {rows.epoch}" if rows.epoch else "before the end of the first epoch"
        raise KeyboardInterrupt(kept) from interrupt
    rows.finish()
    if not as_json:
        print(f"\n{run.model}\n")
    try:
        target = declared.settings.get("device", "auto")
        has_density = not isinstance(run.model, DeterministicModel)
        short = Annealing(temperatures=SHORT)
        draws = particles or PARTICLES
        evaluation = _evaluate(run, data_dir, "test", draws, target, short, quiet=as_json) if has_density else None
        if distributed.rank():
            return
        drawn = run.write_figures(report.draw(run.model, run.load_data(data_dir), run.history))
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"{path} holds the trained model; evaluate and figures do the rest") from interrupt
    if as_json:
        held_out = scores(evaluation) if evaluation else None
        print(json.dumps({"run": str(path), "evaluation": held_out, "figures": [str(p) for p in drawn]}))
        return
    if evaluation:
        _print_evaluation(evaluation)
    print(f"run      {path}", "figures  " + "\n         ".join(map(str, drawn)), sep="\n")


@app.command("evaluate")
def evaluate_command(
    run: RunPath,
    split: Annotated[Splits, typer.Option(help="The part of the data.")] = "test",
    particles: Annotated[int | None, typer.Option(min=1, help="Draws for each datapoint (default: 5000).")] = None,
    method: Annotated[
        Literal["importance", "annealed"] | None,
        typer.Option(help="How log p(x) is found; annealed asks no encoder (default: importance)."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="annealed: datapoints, from the first (default: 100).")
    ] = None,
    chains: Annotated[int | None, typer.Option(min=1, help="Annealed chains: 16 a datapoint; 100 for log Z.")] = None,
    temperatures: Annotated[
        int | None, typer.Option(min=1, help="Steps of these chains: 500 a datapoint; 10000 for log Z.")
    ] = None,
    ais: Annotated[bool, typer.Option("--ais", help="Estimate log Z of an energy also where it is known.")] = False,
    raised: Annotated[
        int | None, typer.Option("--raise", min=1, help="Datapoints to bound log p(x) of by RAISE.")
    ] = None,
    kernel: Kernel = None,
    data_dir: DataDir = None,
    device: Annotated[Device, typer.Option(help="Where to evaluate.")] = "auto",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Held-out bound, its parts, and log p(x) by importance sampling; written to evaluation.json.

    With --method annealed, log p(x) by annealing from the prior, bracketed on simulated data; written to annealed.json.
    """
    loaded = Run.load(run, trust=trust)
    way = _way(loaded.model, method, ais, raised)
    options = {
        "--method": method, "--particles": particles, "--size": size, "--chains": chains,
        "--temperatures": temperatures, "--ais": ais, "--raise": raised, "--kernel": kernel,
    }  # fmt: skip
    only(f"evaluate of {type(loaded.model).__name__} {way}", EVALUATED[way], options)
    if way == "by annealing latents":
        chosen = {"size": size or 100, "chains": chains or 16, "steps": temperatures or 500}
        _anneal(loaded, data_dir, split, device, chosen, as_json)
        return
    annealing = Annealing(chains or 100, temperatures or 10_000, ais, raised or 0, _kernel(kernel))
    evaluation = _evaluate(loaded, data_dir, split, particles or 5000, device, annealing, quiet=as_json)
    if as_json:
        print(json.dumps(scores(evaluation)))
    else:
        _print_evaluation(evaluation)


@app.command("check")
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
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Can the model be believed? Verdicts into checks.json, figures, and draws.nc for ArviZ."""
    loaded = Run.load(run, trust=trust)
    data, model = loaded.load_data(data_dir), loaded.model.to(choose_device(device))
    options: dict[str, Any] = {"size": size, "draws": draws, "simulations": simulations, "annealed": annealed}
    options["replicates"] = replicates
    with Progress(console=errors, disable=as_json or not errors.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None)

        def on_step(name: str, place: int, steps: int) -> None:
            bar.update(task, description=name, completed=place, total=steps)

        found = check(model, data, split=split, seed=seed, on_step=on_step, **options)
        bar.update(task, description="draws.nc")
        model.cpu()
        paths = [
            loaded.write_json("checks", found.json()),
            loaded.write_netcdf("draws", found.to_arviz(seed=seed)),
            *loaded.write_figures(found.figures()),
        ]
    if as_json:
        print(json.dumps(found.json()))
    else:
        _print_checks(found)
        print(*paths, sep="\n")


@app.command("sample")
def sample_command(
    run: RunPath,
    size: Annotated[int, typer.Option("--size", "-n", min=1, help="Number of draws.")] = 64,
    label: Annotated[
        str | None, typer.Option(help="Draw at this label alone: a class by its name or number, or numbers 0.2,1.5.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    mean: Annotated[
        bool, typer.Option(help="Give E[x | z] instead of draws of x; the figure is sample_means.")
    ] = False,
    sweeps: Annotated[
        int | None, typer.Option(min=1, help=f"Sweeps of the chains of an energy (default: {SWEEPS}).")
    ] = None,
    kernel: Kernel = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Draw from the model: an array and a figure in the run, samples, or sample_means with --mean."""
    loaded = Run.load(run, trust=trust)
    hold_seed(seed)
    torch.manual_seed(seed)
    y = None if label is None else [loaded.label(label)] * size
    drawn = tasks.sample(loaded.model, size, y, mean=mean, sweeps=sweeps, kernel=_kernel(kernel))
    name, at = "sample_means" if mean else "samples", "" if label is None else f"; y = {label}"
    array = loaded.write_array(name, drawn)
    (figure,) = loaded.write_figures({name: samples_figure(drawn[:100], tasks.sample_title(loaded.model, mean) + at)})
    _print_paths({"array": array, "figure": figure}, as_json)


@app.command("figures")
def figures_command(run: RunPath, data_dir: DataDir = None, trust: Trust = False, as_json: Json = False) -> None:
    """Draw every figure of a run again."""
    loaded = Run.load(run, trust=trust)
    paths = loaded.write_figures(report.draw(loaded.model, loaded.load_data(data_dir), loaded.history))
    _print_paths({path.stem: path for path in paths}, as_json)


@app.command("show")
def show_command(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_EXPERIMENT", help="A run or an experiment file.")],
    data_dir: DataDir = None,
    trust: Trust = False,
) -> None:
    """Factorisation, sizes and declaration of a run or of an experiment file."""
    if path.is_dir():
        only(f"show of a run as {path}", ("--trust",), {"--trust": trust, "--data-dir": data_dir})
        run = Run.load(path, trust=trust)
        model, text = run.model, (path / "experiment.yaml").read_text(encoding="utf-8")
        trained = f"{'' if run.record.get('finished') else 'interrupted '}after epoch {len(run.history)}"
        print(f"{path}, {trained}")
    else:
        only(f"show of an experiment file as {path}", ("--data-dir",), {"--trust": trust, "--data-dir": data_dir})
        experiment = Experiment.load(path)
        model, text = experiment.build(experiment.load_data(data_dir)), experiment.to_yaml()
    print(model, text, sep="\n\n", end="")


@app.command("compare")
def compare_command(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Evaluated runs.")],
    figure: Annotated[Path | None, typer.Option(help="A PNG file for the forest plot.")] = None,
    as_json: Json = False,
) -> None:
    """Compare evaluated runs, grouped by measure: paired differences, with errors over datapoints and seeds."""
    groups = compare([Run(path) for path in paths])
    if figure:
        _save_figure(figure, groups)
    _print_comparison(groups, as_json)


@app.command("sweep")
def sweep_command(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="An experiment file.")],
    over: Annotated[list[str], typer.Option(help="A field and its values: model.vae.prior=normal,mixture.")],
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds for each combination.")] = 3,
    output: Annotated[
        Path | None, typer.Option(help="Directory of the runs (default: runs/ and the file's name).")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes at a time (default: one a processor).")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field: model.vae.latent_dim=20.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    particles: Annotated[
        int | None, typer.Option(min=1, help="Draws for each datapoint in the evaluation (default: 500).")
    ] = None,
    checked: Annotated[bool, typer.Option("--check", help="Check every run too.")] = False,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to train on, or auto or local.")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Train a grid of experiments in parallel and compare them; what is finished is not trained again."""
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
            _values(over),
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
    groups = compare(runs)
    _save_figure(path / "comparison.png", groups)
    (path / "comparison.json").write_text(json.dumps([asdict(group) for group in groups], indent=2) + "\n")
    _print_comparison(groups, as_json)
    if not as_json:
        print(path / "comparison.json", path / "comparison.png", sep="\n")


def _values(assignments: list[str]) -> dict[str, list[Any]]:
    """`model.vae.prior=normal,{vamp: {components: 100}}` as a field and the list of its values."""
    found = {}
    for assignment in assignments:
        path, equals, values = assignment.partition("=")
        if not equals or not values.strip():
            raise InputError(f"--over was given {assignment!r}; write it as --over model.vae.prior=normal,mixture")
        found[path.strip()] = parse_value(f"[{values}]")
    return found


def _save_figure(path: Path, groups: list[Group]) -> None:
    try:
        forest(groups).savefig(path, format="png")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def _print_comparison(groups: list[Group], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(group) for group in groups]))
        return
    for group in groups:
        title = f"{group.data}, {group.split}, {group.datapoints} datapoints, nats of a {group.measure} a datapoint"
        title += f", {group.draws}" * bool(group.draws)
        table = Table(title=title, title_justify="left", box=None, caption_justify="left")
        known = any(row.khat_share is not None for row in group.rows)
        columns = ["declaration", "seeds", group.score, "to the best", "95 %", "", "gap", "active"]
        columns += ["k-hat"] * known + ["parameters", "time"]
        for column in columns:
            table.add_column(column, justify="left" if column in ("declaration", "") else "right", no_wrap=column != "")
        for row in group.rows:
            best = row is group.rows[0] and row.score is not None
            difference = _with_errors(row.difference, row.difference_se, row.difference_seeds)
            said = {None: "" if best or row.missing else "one seed", True: "differs", False: "no difference"}
            cells = {
                "declaration": row.name.replace(", ", "\n"),
                "seeds": str(row.seeds),
                group.score: _with_errors(row.score, row.score_se, row.score_seeds),
                "to the best": "best" if best else difference,
                "95 %": "" if row.half_width is None else f"± {row.half_width:.2f}",
                "": said[row.significant],
                "gap": "" if row.gap is None else f"{row.gap:.2f}",
                "active": "" if row.active_units is None else f"{row.active_units:.0f}",
                "k-hat": "" if row.khat_share is None else f"{row.khat_share:.1%}",
                "parameters": f"{row.parameters:,}",
                "time": f"{row.seconds:.0f} s",
            }
            table.add_row(*(cells[column] for column in columns))
        Console(width=max(console.width, COMPARED)).print(table, highlight=False)
        for row in group.rows:
            if row.missing:
                console.print(f"none: {row.missing}", soft_wrap=True, highlight=False)
        about = "± over datapoints (paired in differences) ± over seeds, ? of one seed: its training noise is unknown\n"
        about += "95 %: half-width of the interval, for all pairs at once; gap: log p(x) less the bound"
        console.print(about + ("; k-hat: share too large" * known) + "\n", soft_wrap=True)


def _with_errors(value: float | None, *errors: float | None) -> str:
    if value is None:
        return "none"
    return " ± ".join([f"{value:.2f}", *("?" if error is None else f"{error:.2f}" for error in errors)])


@app.command("components")
def components_command(as_json: Json = False) -> None:
    """List everything that can be declared, with its options and their defaults."""
    listing = {kind: declaration.registered(kind) for kind in declaration.kinds()}
    if as_json:
        described = {
            kind: {name: _component(entry) for name, entry in entries.items()} for kind, entries in listing.items()
        }
        print(json.dumps(described))
        return
    for kind, entries in listing.items():
        alike = [other for other in listing if listing[other] == entries]
        if kind == alike[0]:
            _print_components(", ".join(alike), entries)


@app.command("schema")
def schema_command() -> None:
    """Write the JSON schema of the experiment file, for editors."""
    print(json.dumps(experiment_schema(), indent=2))


def _component(entry: declaration.Component) -> dict[str, Any]:
    schema = declaration.options_schema(entry)["properties"]
    return {
        "summary": entry.summary,
        "options": {
            name: {"schema": schema[name]}
            | ({} if parameter.default is Parameter.empty else {"default": _shown(parameter.default)})
            for name, parameter in entry.options.items()
        },
    }


def _shown(default: Any) -> Any:
    """A default in JSON's types."""
    return json.loads(json.dumps(default, default=str))


def _print_components(title: str, entries: Mapping[str, declaration.Component]) -> None:
    """This package's components with their options, and the names of those of other libraries."""
    package = __name__.partition(".")[0]
    homes = {name: entry.target.__module__.partition(".")[0] for name, entry in entries.items()}
    console.print(Text(title, style="bold"))
    for name, entry in entries.items():
        if homes[name] == package:
            head = f"{name}({_options(entry)})" if entry.options else name
            console.print(Padding(Text(head), (0, 0, 0, 2)), Padding(Text(entry.summary, style="dim"), (0, 0, 0, 6)))
    for home in sorted({*homes.values()} - {package}):
        names = ", ".join(name for name in entries if homes[name] == home)
        console.print(Padding(f"of {home}, with its options: {names}", (0, 1)), highlight=False)
    console.print()


def _options(entry: declaration.Component) -> str:
    defaults = {name: parameter.default for name, parameter in entry.options.items()}
    shown = {
        name: default if isinstance(default, str) else json.dumps(_shown(default)) for name, default in defaults.items()
    }
    return ", ".join(name if defaults[name] is Parameter.empty else f"{name}={shown[name]}" for name in defaults)


class _Rows:
    """Prints a row for every n-th epoch, for the first and for the last."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.epoch = 0
        self._pending = ""

    def __call__(self, fit: Fit) -> None:
        row = fit.history[-1]
        self.epoch = row["epoch"]
        name = next(key for key in row if key.startswith("validation_") and row[key] is not None)
        self._pending = f"{self.epoch:5}  {row['train_loss']:12.3f}  {row[name]:>{len(name)}.3f}  {row['seconds']:7.1f}"
        if self.epoch == 1 and not self.quiet:
            print(f"epoch    train_loss  {name}  seconds")
        if self.epoch == 1 or self.epoch % math.ceil(fit.settings["epochs"] / ROWS) == 0:
            self.finish()

    def finish(self) -> None:
        """Prints the last row, if it has not been."""
        if self._pending and not self.quiet:
            print(self._pending, flush=True)
        self._pending = ""


def _evaluate(
    run: Run, data_dir: Path | None, split: str, particles: int, device: str, annealing: Annealing, *, quiet: bool
) -> Evaluation | EnergyEvaluation:
    data, model = run.load_data(data_dir), run.model.to(choose_device(device))
    with Progress(console=errors, disable=quiet or not errors.is_terminal, transient=True) as bar:
        if isinstance(model, UnnormalisedDensity):
            tasks_of: dict[str, Any] = {}

            def told(what: str, done: int, total: int) -> None:
                if what not in tasks_of:
                    tasks_of[what] = bar.add_task(what, total=total)
                bar.update(tasks_of[what], completed=done)

            found = evaluate_energy(model, data, split=split, annealing=annealing, on_step=told)
            model.cpu()
            if not distributed.rank():
                run.write_evaluation(found)
            return found
        task = bar.add_task(f"log p(x), {particles} draws", total=len(getattr(data, split)))
        evaluation = evaluate(
            model, data, split=split, particles=particles, on_batch=lambda done: bar.update(task, completed=done)
        )
    model.cpu()
    if not distributed.rank():
        run.write_evaluation(evaluation)
    return evaluation


def _way(model: Any, method: str | None, ais: bool, raised: int | None) -> str:
    """Which of `EVALUATED` is asked for."""
    if isinstance(model, UnnormalisedDensity):
        exact = "by exact log Z with RAISE" if raised else "by exact log Z"
        return exact if model.tractable and not ais else "by annealed log Z"
    return "by annealing latents" if method == "annealed" else "by importance sampling"


def _anneal(
    run: Run, data_dir: Path | None, split: str, device: str, options: Mapping[str, Any], as_json: bool
) -> None:
    """Evidence of held-out data and a bracket on simulated data, by annealing."""
    data, model = run.load_data(data_dir), run.model.to(choose_device(device))
    if not isinstance(model, LatentVariableModel):
        raise InputError(
            f"{type(model).__name__} in {run.path} has no latents to anneal; leave --method out, by which "
            "log Z of energies is annealed where it is not exact, or train a vae"
        )
    labels = labels_for(model, options["size"], of_data=getattr(data, split).y)
    with Progress(console=errors, disable=as_json or not errors.is_terminal, transient=True) as bar:
        task = bar.add_task("annealing", total=2 * options["size"])
        found = annealed_evidence(
            model, data, split=split, on_batch=lambda done: bar.update(task, completed=done), **options
        )
        bracket = bidirectional_evidence(
            model, y=labels, on_batch=lambda done: bar.update(task, completed=found.datapoints + done), **options
        )
    model.cpu()
    contents = {"evidence": asdict(replace(found, each={})), "bracket": asdict(replace(bracket, each={}))}
    for part in contents.values():
        del part["each"]
    run.write_json("annealed", contents)
    if as_json:
        print(json.dumps(contents))
        return
    table = Table(
        title=f"{found.split}, {found.datapoints} datapoints, nats of a {found.measure} a datapoint, "
        f"{found.chains} chains of {found.steps} steps",
        title_justify="left", box=None, show_header=False,
    )  # fmt: skip
    table.add_row("log_evidence", *_evidence(found))
    if found.bits_per_dimension is not None:
        table.add_row("  bits", f"{found.bits_per_dimension:.4f}", "a dimension, lower is better")
    if found.exact is not None:
        table.add_row("exact", f"{found.exact:.3f}", "in closed form")
    table.add_row("ess", f"{found.ess:.1f}", f"of {found.chains} chains")
    table.add_row("acceptance", f"{found.acceptance:.2f}")
    table.add_row("bracket", f"{bracket.lower:.3f}", f"to {bracket.upper:.3f} on simulated data")
    table.add_row("width", f"{bracket.width:.3f}", "bounds the error where data are like the simulated")
    console.print(table, "", highlight=False)


def _print_checks(found: Checks) -> None:
    table = Table(title=found.summary, title_justify="left", box=None)
    measured = any(verdict.measured for verdict in found.verdicts)
    for column in ("check", "value", "threshold", "", "what it says", *["as measured"] * measured):
        table.add_column(column, justify="right" if column in ("value", "threshold") else "left", overflow="fold")
    for verdict in found.verdicts:
        mark = Text("passed", style="green") if verdict.passed else Text("FAILED", style="bold red")
        table.add_row(
            verdict.check,
            f"{verdict.value:.3g}",
            f"{verdict.relation} {verdict.threshold:.3g}",
            mark,
            verdict.advice,
            *[verdict.measured] * measured,
        )
    wide = Console(width=max(console.width, COMPARED))
    wide.print(table, highlight=False)
    for name, reason in found.skipped.items():
        wide.print(f"{name}: left out; {reason}", highlight=False)
    numbers = ", ".join(f"{name} {value:.3f}" for name, value in found.numbers.items())
    wide.print(f"beside it: {numbers}", highlight=False)


def _print_evaluation(evaluation: Evaluation | EnergyEvaluation) -> None:
    table = Table(
        title=f"{evaluation.split}, {evaluation.datapoints} datapoints, nats of a {evaluation.measure} a datapoint"
        + ", of x given y" * bool(getattr(evaluation, "given", None)),
        title_justify="left",
        box=None,
        show_header=False,
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    if isinstance(evaluation, EnergyEvaluation):
        for row in evaluation.rows():
            table.add_row(*row)
        console.print(table, "", highlight=False)
        return
    table.add_row("elbo", f"{evaluation.elbo:.3f}", "higher is better")
    table.add_row("reconstruction", f"{evaluation.reconstruction:.3f}")
    table.add_row("kl", f"{evaluation.kl:.3f}")
    table.add_row("log_evidence", *_evidence(evaluation))
    if evaluation.log_evidence_interval is not None:
        low, high = evaluation.log_evidence_interval
        table.add_row("  interval", f"{low:.3f}", f"to {high:.3f}, 95 % over draws for these datapoints")
        table.add_row("  bias", f"{-(evaluation.log_evidence_bias or 0.0):.2g}", _bias(evaluation))
    if evaluation.bits_per_dimension is not None:
        table.add_row("  bits", f"{evaluation.bits_per_dimension:.4f}", "a dimension, lower is better")
    if evaluation.ess is not None:
        table.add_row("ess", f"{evaluation.ess:.1f}", f"of {evaluation.particles} draws")
    if evaluation.khat_share is not None:
        threshold = khat_threshold(evaluation.particles)
        table.add_row("k-hat", f"{evaluation.khat_share:.1%}", f"of the datapoints above {threshold:.2f}")
    if evaluation.active_units is not None:
        table.add_row("active_units", str(evaluation.active_units))
    if evaluation.left_out:
        table.add_row("left out", ", ".join(evaluation.left_out), "terms of the guide that training counts")
    if evaluation.classification_error is not None:
        table.add_row("classification_error", f"{evaluation.classification_error:.2%}")
    console.print(table, "", highlight=False)


def _bias(evaluation: Evaluation) -> str:
    """What the expected bias of log p(x) is worth."""
    if not evaluation.khat_share:
        return "expected of the draws; the interval allows for it"
    return "at least: only a lower limit where k-hat is too large, and so is the interval's upper end"


def _evidence(evaluation: Evaluation | AnnealedEvidence) -> tuple[str, str]:
    """The value of log p(x) and its two errors, or why there is none."""
    if evaluation.log_evidence is None:
        return "none", "a cross-entropy on grey values is no likelihood"
    found = {"over datapoints": evaluation.log_evidence_se, "of the draws": evaluation.log_evidence_mcse}
    return f"{evaluation.log_evidence:.3f}", ", ".join(
        f"± {error:.2g} {name}" for name, error in found.items() if error is not None
    )


def _kernel(declared: str | None) -> Any:
    """A kernel as it was declared in YAML."""
    return None if declared is None else declaration.validate("kernel", parse_value(declared))


def _print_paths(paths: Mapping[str, Path], as_json: bool) -> None:
    if as_json:
        print(json.dumps({name: str(path) for name, path in paths.items()}))
    else:
        print(*paths.values(), sep="\n")


def _overrides(assignments: list[str] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in given.items() if value is not None}
    for assignment in assignments or []:
        path, equals, value = assignment.partition("=")
        if not equals or not value.strip():
            raise InputError(f"--set was given {assignment!r}; write it as --set model.vae.latent_dim=20")
        values[path.strip()] = parse_value(value)
    return values


def _data_name(experiment: Experiment) -> str:
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
