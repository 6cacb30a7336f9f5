"""How results are printed: tables, rows of epochs and progress."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from inspect import Parameter
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from rich.console import Console
from rich.padding import Padding
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pyrolatent as pl
    from pyrolatent.declaration import Component
    from pyrolatent.experiments.compare import Group

COMPARED = 140  # columns that a comparison needs
ROWS = 20  # epochs that are printed, at most, beside the first and the last

console = Console()
errors = Console(stderr=True)


def print_comparison(groups: "list[Group]", as_json: bool) -> None:
    """Prints a table for each group of runs that can be compared."""
    if as_json:
        print(json.dumps([asdict(group) for group in groups]))
        return
    for group in groups:
        title = f"{group.data}, {group.split}, {group.datapoints} datapoints, nats of a {group.measure} per datapoint"
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


def describe(entry: "Component") -> dict[str, Any]:
    """A component in JSON's types: its summary, and the schema and default of each option."""
    from pyrolatent import declaration

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


PAGE = """# Components

Everything that can be declared by name, with its options. `pyrolatent components` prints the same list in short, and
`pyrolatent components --json` for a program to read. This page is written by

    python -c "from pyrolatent.cli import tables; print(tables.components_page(), end='')" > docs/components.md

Where an option is a component itself, its type is the kind of component. Components of your own are declared by their
import path; the pages "Add your own" show how.
"""


def components_page() -> str:
    """The page of the documentation that lists all components with their options, in Markdown."""
    from pyrolatent import declaration

    package, lines, places = __name__.partition(".")[0], [PAGE], dict[Any, str]()
    for kind in declaration.kinds():
        entries = declaration.registered(kind)
        own = [name for name in entries if entries[name].target.__module__.partition(".")[0] == package]
        lines.append(f"## {kind}\n")
        for name in sorted(own):
            entry = entries[name]
            place = places.setdefault(entry.target, kind)
            lines.append(f"### `{name}`\n")
            lines.append(f"{entry.summary}.\n" if place == kind else f"As the {place} of this name.\n")
            if entry.options and place == kind:
                rows = [_row(option, parameter, entry) for option, parameter in entry.options.items()]
                lines.append("\n".join(["| option | type | default | |", "| --- | --- | --- | --- |", *rows, ""]))
        others = [f"`{name}`" for name in sorted(entries) if name not in own]
        if others:
            lines.append(f"Of Pyro or torch, with the options that they have there: {', '.join(others)}.\n")
    return "\n".join(lines).replace("](", r"]\(")  # f(x) of what stands in brackets is no link


def _row(option: str, parameter: Parameter, entry: "Component") -> str:
    """A row of the table of options."""
    default = "needed" if parameter.default is Parameter.empty else f"`{json.dumps(_shown(parameter.default))}`"
    cells = (f"`{option}`", _type(parameter.annotation), default, entry.documentation[option])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(annotation: Any) -> str:
    """A type in words: `int > 0`, `"data", "random"`, `prior`."""
    from pyrolatent.declaration import Kind

    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [limit for item in inside[1:] for limit in getattr(item, "metadata", [item])]
        kinds = [limit.name for limit in limits if isinstance(limit, Kind)]
        signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
        bounds = [
            f"{sign} {getattr(limit, name)}"
            for limit in limits
            for name, sign in signs.items()
            if getattr(limit, name, None) is not None
        ]
        return kinds[0] if kinds else " ".join([_type(inside[0]), ", ".join(bounds)]).strip()
    if origin is Literal:
        return ", ".join(json.dumps(value) for value in inside)
    if origin in (Union, UnionType):
        return " or ".join(map(_type, inside))
    if origin in (tuple, list):
        return "list of " + _type(inside[0])
    return "" if annotation is Any else "none" if annotation is type(None) else getattr(annotation, "__name__", "")


def print_components(title: str, entries: Mapping[str, "Component"]) -> None:
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


def _options(entry: "Component") -> str:
    defaults = {name: parameter.default for name, parameter in entry.options.items()}
    shown = {
        name: default if isinstance(default, str) else json.dumps(_shown(default)) for name, default in defaults.items()
    }
    return ", ".join(name if defaults[name] is Parameter.empty else f"{name}={shown[name]}" for name in defaults)


class EpochRows:
    """Prints a row for every n-th epoch, for the first and for the last."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.epoch = 0
        self._pending = ""

    def __call__(self, fit: "pl.Fit") -> None:
        """Takes the last row of a fit, and prints it if its turn has come."""
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


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar, as a function of what is being done, how much of it is done, and of how much."""
    with Progress(console=errors, disable=quiet or not errors.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def print_checks(found: "pl.Checks") -> None:
    """Prints verdicts, what was left out, and what is reported beside them."""
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


def print_scores(title: str, rows: list[tuple[str, str, str]]) -> None:
    """Prints scores: name, value and remark of each."""
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for row in rows:
        table.add_row(*row)
    console.print(table, "", highlight=False)


def print_paths(paths: Mapping[str, Path], as_json: bool) -> None:
    """Prints the files that a command has written."""
    if as_json:
        print(json.dumps({name: str(path) for name, path in paths.items()}))
    else:
        print(*paths.values(), sep="\n")
