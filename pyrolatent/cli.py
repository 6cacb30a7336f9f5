"""The command line: parsing and printing only; all work is done by calls that Python users make too."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pyrolatent import declaration, report, tasks
from pyrolatent.errors import InputError, TrainingError
from pyrolatent.experiment import Experiment, experiment_schema, override, parse_value
from pyrolatent.figures import samples as samples_figure
from pyrolatent.inference.evidence import Evaluation, evaluate
from pyrolatent.inference.fit import Fit, choose_device
from pyrolatent.run import Run, train

app = typer.Typer(
    help="Deep latent-variable models in Pyro: declare, train, evaluate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
errors = Console(stderr=True)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory that train has written.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Trust = Annotated[bool, typer.Option("--trust", help="Import the run's copies of components of your own.")]
DataDir = Annotated[Path | None, typer.Option(help="Where named data sets are (default: PYROLATENT_DATA).")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def main() -> None:
    """Entry point: errors that the user can mend are one line and exit code 2."""
    torch.set_flush_denormal(True)
    try:
        app()
    except InputError as error:
        errors.print(f"[bold red]error:[/] {_escaped(error)}", soft_wrap=True)
        sys.exit(2)
    except TrainingError as error:
        errors.print(f"[bold red]training stopped:[/] {_escaped(error)}", soft_wrap=True)
        sys.exit(1)


@app.command("train")
def train_command(
    experiment: Annotated[Path | None, typer.Argument(metavar="[EXPERIMENT]", help="An experiment file.")] = None,
    output: Annotated[Path | None, typer.Option(help="Directory of the run (default: a new one in runs/).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    data: Annotated[str | None, typer.Option(help="A named data set, a file or a folder.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the initial weights and of training.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field: model.vae.latent_dim=20.")] = None,
    data_dir: DataDir = None,
    particles: Annotated[int, typer.Option(help="Draws for each datapoint in the evaluation.")] = 500,
    overwrite: Annotated[bool, typer.Option(help="Replace the run that is in the output directory.")] = False,
    tensorboard: Annotated[bool, typer.Option(help="Write the metrics for TensorBoard too.")] = False,
    as_json: Json = False,
) -> None:
    """Train an experiment, evaluate it and draw its figures; without arguments, a VAE on embedded digits."""
    overrides = _overrides(set_, {"epochs": epochs, "seed": seed, "device": device, "data": data})
    declared = Experiment.load(experiment, overrides) if experiment else Experiment(**override({}, overrides))
    path = output or _new_directory(experiment.stem if experiment else "digits" if data is None else Path(data).stem)

    def row(fit: Fit) -> None:
        last = fit.history[-1]
        console.print(
            f"epoch {last['epoch']:>4}   train_loss {last['train_loss']:9.3f}   "
            f"validation_elbo {last['validation_elbo']:9.3f}   {last['seconds']:5.1f} s",
            highlight=False,
        )

    try:
        run = train(
            declared,
            path,
            data_dir=data_dir,
            overwrite=overwrite,
            tensorboard=tensorboard,
            progress=not as_json,
            on_epoch=None if as_json else row,
        )
    except KeyboardInterrupt:
        done = len(Run(path).history) if (path / "experiment.yaml").is_file() else 0
        kept = (
            f"{path} holds the model after epoch {done}"
            if done
            else "before the end of the first epoch; nothing is kept"
        )
        errors.print(f"interrupted: {kept}", soft_wrap=True)
        sys.exit(130)
    if not as_json:
        console.print(run.model, highlight=False)
    evaluation = _evaluate(run, data_dir, "test", particles, "auto", quiet=as_json)
    drawn = run.write_figures(report.draw(run.model, run.load_data(data_dir), run.history))
    if as_json:
        print(json.dumps({"run": str(path), "evaluation": asdict(evaluation), "figures": [str(p) for p in drawn]}))
        return
    _print_evaluation(evaluation)
    console.print(f"run      {path}\nfigures  " + "\n         ".join(map(str, drawn)), highlight=False, soft_wrap=True)


@app.command("evaluate")
def evaluate_command(
    run: RunPath,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    particles: Annotated[int, typer.Option(help="Draws for each datapoint.")] = 5000,
    data_dir: DataDir = None,
    device: Device = "auto",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Held-out bound, its parts, and log p(x) by importance sampling; written to evaluation.json."""
    evaluation = _evaluate(Run.load(run, trust=trust), data_dir, split, particles, device, quiet=as_json)
    if as_json:
        print(json.dumps(asdict(evaluation)))
    else:
        _print_evaluation(evaluation)


@app.command("sample")
def sample_command(
    run: RunPath,
    size: Annotated[int, typer.Option("--size", "-n", min=1, help="Number of draws.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    mean: Annotated[bool, typer.Option(help="Show E[x | z] instead of draws of x.")] = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Draw from the model: an array samples.npy and a figure samples.png in the run."""
    loaded = Run.load(run, trust=trust)
    torch.manual_seed(seed)
    drawn = tasks.sample(loaded.model, size, mean=mean)
    array = loaded.write_array("samples", drawn)
    (figure,) = loaded.write_figures({"samples": samples_figure(drawn[:100])})
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
        run = Run.load(path, trust=trust)
        model, text = run.model, (path / "experiment.yaml").read_text(encoding="utf-8")
    else:
        experiment = Experiment.load(path)
        model, text = experiment.build(experiment.load_data(data_dir)), experiment.to_yaml()
    console.print(model, highlight=False)
    console.print()
    console.print(text, highlight=False, soft_wrap=True, end="")


@app.command("components")
def components_command(as_json: Json = False) -> None:
    """List everything that can be declared, with its options and their defaults."""
    listing = {
        kind: {name: _component(entry) for name, entry in declaration.registered(kind).items()}
        for kind in declaration.kinds()
    }
    if as_json:
        print(json.dumps(listing))
        return
    for kind, entries in listing.items():
        table = Table(title=kind, title_justify="left", title_style="bold", expand=True)
        table.add_column("name", no_wrap=True)
        table.add_column("what it is", ratio=2)
        table.add_column("options", ratio=2)
        for name, entry in entries.items():
            table.add_row(
                name,
                _escaped(entry["summary"]),
                _escaped(
                    ", ".join(
                        option if "default" not in value else f"{option}={value['default']}"
                        for option, value in entry["options"].items()
                    )
                ),
            )
        console.print(table)


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
            | ({} if parameter.default is parameter.empty else {"default": _shown(parameter.default)})
            for name, parameter in entry.options.items()
        },
    }


def _shown(default: Any) -> Any:
    return (
        default
        if isinstance(default, str | int | float | bool | None)
        else list(default)
        if isinstance(default, tuple)
        else str(default)
    )


def _evaluate(run: Run, data_dir: Path | None, split: str, particles: int, device: str, *, quiet: bool) -> Evaluation:
    data, model = run.load_data(data_dir), run.model.to(choose_device(device))
    with Progress(disable=quiet, transient=True) as bar:
        task = bar.add_task(f"log p(x), {particles} draws", total=len(getattr(data, split, ())))
        evaluation = evaluate(
            model, data, split=split, particles=particles, on_batch=lambda done: bar.update(task, completed=done)
        )
    model.cpu()
    run.write_evaluation(evaluation)
    return evaluation


def _print_evaluation(evaluation: Evaluation) -> None:
    table = Table(
        title=f"{evaluation.split}, {evaluation.datapoints} datapoints, nats of a {evaluation.measure} a datapoint",
        title_justify="left",
    )
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_column("")
    table.add_row("elbo", f"{evaluation.elbo:.3f}", "higher is better")
    table.add_row("reconstruction", f"{evaluation.reconstruction:.3f}", "")
    table.add_row("kl", f"{evaluation.kl:.3f}", "")
    if evaluation.log_evidence is not None:
        errors_text = f"± {evaluation.log_evidence_se:.3f} over datapoints"
        if evaluation.log_evidence_mcse is not None:
            errors_text += f", ± {evaluation.log_evidence_mcse:.4f} of {evaluation.particles} draws"
        table.add_row("log_evidence", f"{evaluation.log_evidence:.3f}", errors_text)
        table.add_row("ess", f"{evaluation.ess:.1f}", f"of {evaluation.particles}")
    table.add_row("active_units", str(evaluation.active_units), "")
    console.print(table)


def _print_paths(paths: Mapping[str, Path], as_json: bool) -> None:
    if as_json:
        print(json.dumps({name: str(path) for name, path in paths.items()}))
    else:
        for path in paths.values():
            console.print(str(path), highlight=False, soft_wrap=True)


def _overrides(assignments: list[str] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in options.items() if value is not None}
    for assignment in assignments or []:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"--set was given {assignment!r}; write it as --set model.vae.latent_dim=20")
        values[path] = parse_value(value)
    return values


def _new_directory(name: str) -> Path:
    number = 1
    while (path := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return path


def _escaped(text: object) -> str:
    return str(text).replace("[", r"\[")
