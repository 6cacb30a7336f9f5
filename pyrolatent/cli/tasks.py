"""The commands that apply a run to data: each writes a table, an array or a figure."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import pyrolatent as pl
from pyrolatent.cli.commands import (
    DataDir,
    Json,
    Kernel,
    Memory,
    RunPath,
    Splits,
    Trust,
    command,
    kernel_of,
    limited_to,
)
from pyrolatent.cli.tables import console, print_paths
from pyrolatent.errors import InputError

New = Annotated[
    Path | None,
    typer.Option("--data", help="New rows: a file or folder with the columns or the shape of the training data."),
]
Part = Annotated[Splits, typer.Option("--split", help="Without --data, the part of the run's own data.")]
Chosen = Annotated[
    str | None, typer.Option("--rows", help="Rows by number or id as 3,17, or a range of positions as 0:10.")
]
Output = Annotated[
    Path | None,
    typer.Option(help="The file to write: a table, .npy, or a figure such as .png (default: files in the run)."),
]
Seed = Annotated[int, typer.Option(help="Seed of the draws.")]
Particles = Annotated[int, typer.Option(min=1, help="Draws of the latents for each row.")]


def _apply(
    task: str,
    run: Path,
    data: Path | None,
    split: str,
    rows: str | None,
    output: Path | None,
    where: tuple[Path | None, str | None, bool, bool],
    **options: Any,
) -> None:
    """Applies a run and prints what was written."""
    from pyrolatent.experiments import applied

    data_dir, memory, trust, as_json = where
    loaded = pl.Run.load(run, trust=trust)
    with limited_to(memory):
        chosen: dict[str, Any] = {"split": split, "rows": rows, "data_dir": data_dir}
        _print(loaded, applied.result(loaded, task, data, output, **chosen, **options), output, as_json)


def _print(run: "pl.Run", result: Any, output: Path | None, as_json: bool) -> None:
    paths = run.write(result, output)
    if not as_json:
        for line in result.said:
            console.print(line, soft_wrap=True, highlight=False)
    print_paths(paths, as_json)


@command("encode")
def encode_command(
    run: RunPath, data: New = None, split: Part = "test", rows: Chosen = None, output: Output = None,
    what: Annotated[
        Literal["means", "draws", "parameters"], typer.Option(help="What of q(z | x): means, draws or all numbers.")
    ] = "means",
    draws: Annotated[int, typer.Option(min=1, help="Number of draws of each row, with --what draws.")] = 10,
    seed: Seed = 0, data_dir: DataDir = None, memory: Memory = None, trust: Trust = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Codes of rows: a row of numbers each, with its id or number."""
    where = data_dir, memory, trust, as_json
    _apply("encode", run, data, split, rows, output, where, what=what, draws=draws, seed=seed)


@command("reconstruct")
def reconstruct_command(
    run: RunPath, data: New = None, split: Part = "test", rows: Chosen = None, output: Output = None,
    data_dir: DataDir = None, memory: Memory = None, trust: Trust = False, as_json: Json = False,
) -> None:  # fmt: skip
    """What the model makes of rows: the mean of x at their posterior means."""
    _apply("reconstruct", run, data, split, rows, output, (data_dir, memory, trust, as_json))


@command("impute")
def impute_command(
    run: RunPath, data: New = None, split: Part = "test", rows: Chosen = None, output: Output = None,
    erase: Annotated[
        str | None,
        typer.Option(help="Erase a region of images first: bottom, top, left, right, centre, "
                          "top,left,height,width, or a mask.png that is dark there."),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Draws of each missing cell (default: 1; 100 with --mean or --interval).")
    ] = None,
    mean: Annotated[bool, typer.Option(help="Write the mean of the draws, or the most frequent word.")] = False,
    interval: Annotated[
        float | None, typer.Option(help="Write the mean and the ends of the interval of this probability.")
    ] = None,
    particles: Annotated[int, typer.Option(min=1, help="Latents that each draw is resampled from.")] = 100,
    method: Annotated[
        Literal["resampling", "gibbs"], typer.Option(help="How latents are drawn given what is observed.")
    ] = "resampling",
    sweeps: Annotated[int | None, typer.Option(min=4, help="Sweeps of each chain of gibbs (default: 500).")] = None,
    refined: Annotated[int, typer.Option(min=0, help="Steps that refine the posterior of each row first.")] = 0,
    seed: Seed = 0, data_dir: DataDir = None, memory: Memory = None, trust: Trust = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Draw what is missing in rows given the rest; all other cells and columns stay as they are."""
    count = draws or (100 if mean or interval is not None else 1)
    _apply(
        "impute", run, data, split, rows, output, (data_dir, memory, trust, as_json), erase=erase, draws=count,
        mean=mean, interval=interval, particles=particles, method=method, sweeps=sweeps, refined=refined, seed=seed,
    )  # fmt: skip


@command("denoise")
def denoise_command(
    run: RunPath,
    corruption: Annotated[
        str,
        typer.Option(help="What happened to the data: flips, gaussian_noise, salt_and_pepper, masking or blur, "
                          "with its number as in '{flips: {rate: 0.1}}', or without it, which learns the number."),
    ],
    data: New = None, split: Part = "test", rows: Chosen = None, output: Output = None,
    add: Annotated[bool, typer.Option("--add", help="Corrupt the rows first, and print errors.")] = False,
    draws: Annotated[int, typer.Option(min=1, help="Draws of each row.")] = 10,
    particles: Annotated[int, typer.Option(min=1, help="Latents that the draws are resampled from.")] = 100,
    refined: Annotated[int, typer.Option(min=0, help="Steps that refine the posterior of each row first.")] = 200,
    sweeps: Annotated[
        int | None, typer.Option(min=4, help="Sweeps of chains that start at the draws (default: 200 to learn).")
    ] = None,
    seed: Seed = 0, data_dir: DataDir = None, memory: Memory = None, trust: Trust = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Remove noise: the mean of clean x, by draws of z given noisy rows and a declared corruption."""
    from pyrolatent.experiments.experiment import parse_value

    _apply(
        "denoise", run, data, split, rows, output, (data_dir, memory, trust, as_json),
        corruption=parse_value(corruption), add=add, draws=draws, particles=particles, refined=refined,
        sweeps=sweeps, seed=seed,
    )  # fmt: skip


@command("interpolate")
def interpolate_command(
    run: RunPath, data: New = None, split: Part = "test",
    rows: Annotated[str, typer.Option("--rows", help="Rows by number or id as 3,17, or a range as 0:6.")] = "0:6",
    output: Output = None,
    steps: Annotated[int, typer.Option(min=1, help="Points along each line.")] = 10,
    data_dir: DataDir = None, memory: Memory = None, trust: Trust = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Decode the way from each row to the next, on the lines between their codes."""
    _apply("interpolate", run, data, split, rows, output, (data_dir, memory, trust, as_json), steps=steps)


@command("score")
def score_command(
    run: RunPath, data: New = None, split: Part = "test", rows: Chosen = None, output: Output = None,
    alarms: Annotated[
        float | None, typer.Option(help="Also call anomalies, at this share of false alarms on the validation data.")
    ] = None,
    particles: Particles = 5000,
    refined: Annotated[
        int | None,
        typer.Option(min=0, help="Steps that refine the posterior of each row first (default: 200 with gaps)."),
    ] = None,
    seed: Seed = 0, data_dir: DataDir = None, memory: Memory = None, trust: Trust = False, as_json: Json = False,
) -> None:  # fmt: skip
    """log p(x) of each row, with its error and k-hat, and possibly which rows are anomalies."""
    where = data_dir, memory, trust, as_json
    _apply(
        "score", run, data, split, rows, output, where, alarms=alarms, particles=particles, refined=refined, seed=seed
    )


@command("classify")
def classify_command(
    run: RunPath, data: New = None, split: Part = "test", rows: Chosen = None, output: Output = None,
    particles: Particles = 1000,
    seed: Seed = 0, data_dir: DataDir = None, memory: Memory = None, trust: Trust = False, as_json: Json = False,
) -> None:  # fmt: skip
    """The class of each row, and the probability of every class, under a model of labels."""
    where = data_dir, memory, trust, as_json
    _apply("classify", run, data, split, rows, output, where, particles=particles, seed=seed)


@command("traverse")
def traverse_command(
    run: RunPath, output: Output = None,
    steps: Annotated[int, typer.Option(min=1, help="Quantiles of each latent.")] = 9,
    plane: Annotated[str | None, typer.Option(help="Vary two latents together, as 0,3, instead of each alone.")] = None,
    label: Annotated[str | None, typer.Option(help="The class, or numbers 0.2,1.5, that is held.")] = None,
    trust: Trust = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Vary each latent over the quantiles of its prior, with the others at their mean."""
    from pyrolatent.experiments import applied

    loaded = pl.Run.load(run, trust=trust)
    result = applied.result(loaded, "traverse", output=output, steps=steps, label=label, plane=_pair(plane))
    _print(loaded, result, output, as_json)


@command("sample")
def sample_command(
    run: RunPath,
    size: Annotated[int, typer.Option("--size", "-n", min=1, help="Number of draws.")] = 64,
    label: Annotated[
        str | None, typer.Option(help="Draw at this label: a class by name or number, or numbers 0.2,1.5.")
    ] = None,
    near: Annotated[
        str | None, typer.Option(help="Draw near a row, by its number or id: z ~ q(z | x), then x.")
    ] = None,
    data: New = None, split: Part = "test",
    mean: Annotated[bool, typer.Option(help="Save means of x given z instead of draws of x, as sample_means.")] = False,
    sweeps: Annotated[
        int | None, typer.Option(min=1, help="Sweeps of the chains of an energy (default: 1000).")
    ] = None,
    kernel: Kernel = None, output: Output = None,
    seed: Seed = 0, data_dir: DataDir = None, memory: Memory = None, trust: Trust = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Draw from the model, of a class, at a condition or near a row."""
    from pyrolatent.experiments import applied

    if data is not None and near is None:
        raise InputError("--data holds the row that --near names; give both, or neither")
    loaded = pl.Run.load(run, trust=trust)
    with limited_to(memory):
        row = None if near is None else applied.rows_of(loaded, data, split=split, rows=near, data_dir=data_dir)
        options: dict[str, Any] = {"label": label, "near": row, "mean": mean, "sweeps": sweeps, "seed": seed}
        result = applied.result(loaded, "sample", output=output, size=size, kernel=kernel_of(kernel), **options)
    _print(loaded, result, output, as_json)


@command("export")
def export_command(
    run: RunPath,
    part: Annotated[Literal["encoder", "decoder"], typer.Argument(help="What to export.")],
    output: Annotated[Path | None, typer.Option(help="The file, .pt2 (default: in the run).")] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Write the encoder or the decoder as a program of torch.export, which runs without this package."""
    loaded = pl.Run.load(run, trust=trust)
    print_paths({part: loaded.export(part, output)}, as_json)


def _pair(text: str | None) -> tuple[int, int] | None:
    """Two numbers joined by a comma."""
    if text is None:
        return None
    try:
        one, other = (int(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"plane was {text!r}; give two dimensions of the latent, such as 0,3") from None
    return one, other
