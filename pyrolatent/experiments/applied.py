"""A run applied to data: what people do with a fitted model, from files to files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pyrolatent import tasks
from pyrolatent.data.files import ending, is_csv, read_text
from pyrolatent.data.load import load_table
from pyrolatent.data.parts import take
from pyrolatent.data.splits import Batch, Data, Split
from pyrolatent.data.tables import TABLES, TableShape, decode, event_shape_of, fill
from pyrolatent.declaration import build, choices
from pyrolatent.errors import InputError, validate_seed
from pyrolatent.figures import latent as figures
from pyrolatent.inference.draws import labels_for
from pyrolatent.inference.evidence.psis import khat_threshold
from pyrolatent.models.arrays import as_labels
from pyrolatent.models.model import Capability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AT_ONCE = 1000
"""Number of rows that a task is done for at a time."""
FIGURES = (".png", ".pdf", ".svg")
ENDINGS = (*TABLES, ".npy", *FIGURES)
"""Endings of files that results are written to."""
SHOWN = 8
"""Number of rows in a figure of rows."""


class Trained(Protocol):
    """What is applied: a `Run`."""

    record: dict[str, Any]
    data: Data | None

    @property
    def model(self) -> Any:
        """The trained model."""

    def label(self, text: str) -> Any:
        """Parses a label."""

    def load_data(self, data_dir: Path | None = None) -> Data:
        """Loads the data that it was trained on."""


@dataclass
class Rows:
    """Rows that a run is applied to: new ones, or a part of its data.

    Attributes:
        split: the rows.
        title: what they are, for a figure.
        frame: the table that they were read from, if they are one.
        source: the file that they were read from.
        positions: their positions there, if they are not all.
    """

    split: Split
    title: str
    frame: Any = None
    source: Any = None
    positions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.split)

    @property
    def names(self) -> dict[str, Sequence[Any]]:
        """The column of a table by which the rows are known: their ids, or their numbers."""
        if self.split.ids is not None:
            return {"id": list(self.split.ids)}
        return {"row": self.split.row_numbers.tolist()}

    def each(self, of_batch: Callable[[Batch], Any]) -> list[Any]:
        """The results of a function for some rows at a time."""
        return [of_batch(self.split.batch(index)) for index in torch.arange(len(self)).split(AT_ONCE)]


@dataclass
class Result:
    """A result in every form that it can be written in.

    Attributes:
        name: name of its files in a run.
        array: the result as an array.
        cells: the result as a table; None if it is none.
        figure: draws the result; None if there is nothing to look at.
        said: lines to print beside the paths.
    """

    name: str
    array: Tensor
    cells: Callable[[], Mapping[str, Sequence[Any]]] | None = None
    figure: Callable[[], "Figure"] | None = None
    said: list[str] = field(default_factory=list)


def rows_of(
    run: Trained,
    source: Any = None,
    *,
    split: str = "test",
    rows: str | None = None,
    data_dir: Path | None = None,
) -> Rows:
    """New rows, validated by name and shape against the run, or a part of the data that it was trained on.

    Args:
        run: the run.
        source: a file or other source of new rows; None takes a part of the run's own data.
        split: the part: train, validation or test.
        rows: numbers or ids of rows, joined by commas, or a range of positions such as 0:10; None takes all.
        data_dir: directory of named data sets.

    Raises:
        InputError: the rows do not fit the model, or there are none of these numbers.
    """
    if source is None:
        data = run.data if run.data is not None else run.load_data(data_dir)
        found = Rows(data.split(split), f"{split} data")
    else:
        part, frame = load_table(source, run.record["data"])
        found = Rows(part, Path(str(source)).name if isinstance(source, str | Path) else "new data", frame, source)
    if rows is None:
        return found
    index = _positions(found, rows)
    frame = None if found.frame is None else found.frame[index.tolist()]
    numbered = replace(found.split, rows=found.split.row_numbers)
    return Rows(take(numbered, index), found.title, frame, found.source, index)


def _positions(rows: Rows, asked: str) -> Tensor:
    """Positions of the rows that were asked for."""
    start, colon, stop = asked.partition(":")
    if colon:
        try:
            bounds = [int(end) if end else None for end in (start, stop)]
        except ValueError:
            raise InputError(f"rows were {asked!r}; give a range such as 0:10, or numbers of rows") from None
        found = torch.arange(len(rows))[slice(*bounds)]
        if not len(found):
            raise InputError(f"the range {asked} holds none of the {len(rows)} rows")
        return found
    (kind, names), *_ = rows.names.items()
    places = {str(name): position for position, name in enumerate(names)}
    wanted = [name.strip() for name in asked.split(",")]
    for name in wanted:
        if name not in places:
            raise InputError(f"there is no {kind} {name} in the {rows.title}, whose {kind}s begin with "
                             f"{', '.join(list(places)[:5])}")  # fmt: skip
    return torch.tensor([places[name] for name in wanted])


def encode(run: Trained, rows: Rows, *, what: Any = "means", draws: int = 10, seed: int = 0) -> Result:
    """Codes of rows: `pyrolatent.encode`, with a column for each number."""
    parts = rows.each(lambda batch: tasks.encode(run.model, *labelled(run, batch), what=what, draws=draws, seed=seed))
    dim = 1 if what == "draws" else 0
    sites = {site: torch.cat([part[site] for part in parts], dim).cpu() for site in parts[0]}
    flat = {site: value.reshape(*value.shape[: dim + 1], -1) for site, value in sites.items()}
    array = torch.cat([*flat.values()], -1)

    def cells() -> dict[str, Sequence[Any]]:
        columns: dict[str, Sequence[Any]] = {}
        count = len(array) if dim else 1
        for name, values in rows.names.items():
            columns[name] = [*values] * count
        if dim:
            columns = {"draw": [number for number in range(count) for _ in range(len(rows))], **columns}
        for site, value in flat.items():
            numbers = [_shortest(column) for column in value.reshape(-1, value.shape[-1]).T]
            single = len(numbers) == 1
            columns |= {site if single else f"{site}.{i}": column for i, column in enumerate(numbers)}
        return columns

    def figure() -> "Figure":
        codes = array[0] if dim else array
        y = rows.split.y
        points, method = figures.drawable(codes[:AT_ONCE])
        named = "Posterior means" if Capability.POSTERIOR in run.model.offers else "Codes"
        named = {"draws": "Draws from q(z | x)", "parameters": "Numbers of q(z | x)"}.get(what, named)
        labels = y[:AT_ONCE] if y is not None and y.dim() == 1 else None
        title = f"{named} of {rows.title}, {method}"
        return figures.embedding(points, labels, title, run.record["data"].get("classes"))

    return Result("codes", array, cells, figure)


def reconstruct(run: Trained, rows: Rows) -> Result:
    """E[x | z] at the posterior means of rows."""
    found = torch.cat(rows.each(lambda batch: tasks.reconstruct(run.model, *labelled(run, batch)))).cpu()
    shown = rows.split.batch(slice(0, 10))
    x = shown.x if shown.mask is None else torch.where(shown.mask, shown.x, torch.nan)
    title = f"{rows.title} and E[x | z] at the mean of q(z | x)"
    return Result(
        "reconstructions",
        found,
        _cells_of(run, found, rows),
        lambda: figures.reconstructions(x, found[:10], title=title),
    )


def interpolate(run: Trained, rows: Rows, *, steps: int = 10) -> Result:
    """E[x | z] on the way from each row to the next."""
    batch = rows.split.batch(slice(None))
    if len(rows) > AT_ONCE:
        raise InputError(f"there would be {len(rows) - 1} lines between {len(rows)} rows; choose some by rows")
    found = tasks.interpolate(run.model, *labelled(run, batch), steps=steps).cpu()
    ends = batch.x if batch.mask is None else torch.where(batch.mask, batch.x, torch.nan)
    title = "from one row to the next: the row, E[x | z] on the line between their codes, the other row"

    def figure() -> "Figure":
        lines = torch.cat([ends[:-1, None], found, ends[1:, None]], 1)[:SHOWN]
        columns = ["x", *(f"{share:.2g}" for share in torch.linspace(0, 1, steps).tolist()), "x"]
        return figures.strips(lines, columns=columns, title=title)

    return Result("interpolation", found, None, figure)


def traverse(run: Trained, *, steps: int = 9, label: str | None = None, plane: tuple[int, int] | None = None) -> Result:
    """E[x | z] as each latent is varied over its prior's quantiles, or over a plane of two."""
    y = None if label is None else run.label(label)
    at = "" if label is None else f"; y = {label}"
    given = "z, y" if run.model.label_dim else "z"
    if plane is not None:
        found, quantiles = tasks.latent_grid(run.model, steps, y, dimensions=plane)
        title = f"E[x | {given}] at quantiles of the prior of z{plane[0]} and z{plane[1]}{at}"
        return Result(
            "plane", found.cpu(), None, lambda: figures.latent_grid(found, steps, quantiles, title, dimensions=plane)
        )
    found, quantiles = tasks.traverse(run.model, steps, y)
    levels = [f"{(i + 0.5) / steps:.0%}" for i in range(steps)]
    title = f"E[x | {given}] as each latent is varied over the quantiles of its prior{at}"
    names = [f"$z_{{{i}}}$" for i in range(len(found))]
    return Result(
        "traversal", found.cpu(), None, lambda: figures.strips(found, rows=names, columns=levels, title=title)
    )


def sample(
    run: Trained,
    size: int = 64,
    *,
    label: str | None = None,
    near: Rows | None = None,
    mean: bool = False,
    sweeps: int | None = None,
    kernel: Any = None,
    seed: int = 0,
) -> Result:
    """Draws from the model, of a class or at a condition, or near a row: z ~ q(z | x), x ~ p(x | z)."""
    validate_seed(seed)
    model = run.model
    y: Any = None if label is None else [run.label(label)] * size
    at = "" if label is None else f"; y = {label}"
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if near is None:
            y = labels_for(model, size, y) if Capability.LATENTS in model.offers else y
            drawn, title = (
                tasks.sample(model, size, y, mean=mean, sweeps=sweeps, kernel=kernel),
                tasks.sample_title(model, mean),
            )
        else:
            if len(near) != 1:
                raise InputError(f"draws are near one row, but there are {len(near)}; choose one by rows")
            batch = near.split.batch(slice(0, 1))
            codes = tasks.encode(model, *labelled(run, batch), what="draws", draws=size, seed=seed)
            latents = {site: value[:, 0] for site, value in codes.items()}
            if model.conditional:
                y = batch.y.expand(size, *batch.y.shape[1:]) if y is None and batch.y is not None else y
            likelihood = model.decode(latents, y if model.conditional else None)
            drawn = likelihood.mean if mean else likelihood.sample()
            title = f"{'E[x | z]' if mean else 'draws of x ~ p(x | z)'} at draws of z ~ q(z | x) of a row"
    drawn = drawn.cpu()
    of_y = as_labels(model, y, size) if y is not None else None

    def cells() -> Mapping[str, Sequence[Any]]:
        found = dict(_words(run, drawn))
        classes = run.record["data"].get("classes")
        if of_y is not None and classes and of_y.dim() == 1:
            name = (run.record["data"].get("roles") or {}).get("labels", "label")
            found[name] = [classes[code] for code in of_y.tolist()]
        return found

    return Result(
        "sample_means" if mean else "samples",
        drawn,
        cells if _columns(run) else None,
        lambda: figures.samples(drawn[:100], title + at),
    )


def score(
    run: Trained,
    rows: Rows,
    *,
    particles: int = 5000,
    refined: int | None = None,
    alarms: float | None = None,
    seed: int = 0,
) -> Result:
    """log p(x) of each row, with its error and k-hat, and which rows are anomalies."""
    found = _scored(run, rows, particles, refined, seed)
    extra: dict[str, Sequence[Any]] = {}
    said, reference, judged = [], None, None
    if alarms is not None:
        reference = _scored(run, rows_of(run, split="validation"), particles, refined, seed)["log_p"]
        judged = tasks.anomalies(found["log_p"], reference, alarms)
        extra = {"anomaly": judged.by_density.tolist(), "atypical": judged.by_typicality.tolist()}
        said = [
            f"{int(judged.by_density.sum())} of {len(rows)} rows have log p(x) below {judged.lowest:.2f}, as at most "
            f"{alarms:.1%} of data like the validation data have",
            f"{int(judged.by_typicality.sum())} of {len(rows)} rows are further than {judged.distance:.2f} from their "
            f"mean, {judged.centre:.2f}; a density alone can rank outliers above data, so look at both",
        ]
    threshold = khat_threshold(particles) if particles > 1 else 0.7
    unreliable = int((found["khat"] > threshold).sum()) if "khat" in found else 0
    if unreliable:
        said.append(
            f"the errors of {unreliable} of {len(rows)} rows cannot be relied on (k-hat above {threshold:.2f}); give "
            "more particles, or refine their posteriors"
        )
    given = "x | y" if run.model.conditional else "x"

    def figure() -> "Figure":
        groups = {rows.title: found["log_p"]} | ({} if reference is None else {"validation data": reference})
        limits = (
            [] if judged is None else [judged.lowest, judged.centre - judged.distance, judged.centre + judged.distance]
        )
        return figures.densities(groups, f"log p({given}) of each row, nats", limits)

    columns = {name: _shortest(value.float()) for name, value in found.items()}
    array = torch.stack([*found.values()], -1)
    return Result("scores", array, lambda: {**rows.names, **columns, **extra}, figure, said)


def _scored(run: Trained, rows: Rows, particles: int, refined: int | None, seed: int) -> dict[str, Tensor]:
    parts = rows.each(
        lambda batch: tasks.score(run.model, *labelled(run, batch), particles=particles, refined=refined, seed=seed)
    )
    names = ["log_p", "error"] + ["khat"] * (parts[0].khat is not None)
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in names}


def classify(run: Trained, rows: Rows, *, particles: int = 1000, seed: int = 0) -> Result:
    """The most probable class of each row, and p(y | x) of each."""
    found = torch.cat(
        rows.each(lambda batch: tasks.classify(run.model, batch.x, batch.mask, particles=particles, seed=seed))
    ).cpu()
    words = run.record["data"].get("classes") or [str(code) for code in range(found.shape[-1])]
    name = (run.record["data"].get("roles") or {}).get("labels", "label")
    most = found.argmax(-1)
    columns: dict[str, Sequence[Any]] = {name: [words[code] for code in most.tolist()]}
    columns |= {f"p({word})": _shortest(found[:, code]) for code, word in enumerate(words)}
    y, said = rows.split.y, []
    if y is not None and y.dim() == 1 and (known := y >= 0).any():
        wrong = (most != y)[known]
        said = [f"{wrong.double().mean():.2%} of {len(wrong)} known labels differ from the most probable class"]
    return Result("classes", found, lambda: {**rows.names, **columns}, None, said)


def denoise(
    run: Trained,
    rows: Rows,
    corruption: Any,
    *,
    add: bool = False,
    draws: int = 10,
    particles: int = 100,
    refined: int = 200,
    sweeps: int | None = None,
    seed: int = 0,
) -> Result:
    """E[x | noisy x] of rows; with `add` these are corrupted first, and there are errors before and after."""
    validate_seed(seed)
    batch = rows.split.batch(slice(None))
    model, clean = run.model, batch.x
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        noise = build("corruption", corruption)
        if add and noise.learned:
            raise InputError("noise of an unknown rate or scale cannot be added; give its number")
        noisy = noise(clean) if add else clean
        _, y, _ = labelled(run, batch)
        options: dict[str, Any] = {"particles": particles, "refined": refined, "sweeps": sweeps}
        found = tasks.denoise(model, noisy, noise, y, draws=draws, **options)
    said = []
    if found.number_sd is not None:
        said.append(f"the corruption's number is {found.number:.4g} ± {found.number_sd:.2g}")
    if add:
        error = {
            "noisy": noisy, "reconstructed": tasks.reconstruct(model, noisy, y).cpu(), "denoised": found.mean.cpu()
        }  # fmt: skip
        said.append(
            "mean squared error: " + ", ".join(f"{name} {(x - clean).square().mean():.4f}" for name, x in error.items())
        )
    columns = ["clean"] * add + ["noisy", "E[x | noisy]", *(f"draw {i + 1}" for i in range(min(3, draws)))]
    parts = [*[clean] * add, noisy, found.mean.cpu(), *found.draws[:3].cpu()]
    return Result(
        "denoised",
        found.mean.cpu(),
        None,
        lambda: figures.strips(torch.stack(parts, 1)[:SHOWN], columns=columns, title=f"{rows.title} without its noise"),
        said,
    )


def impute(
    run: Trained,
    rows: Rows,
    *,
    erase: str | None = None,
    draws: int = 1,
    mean: bool = False,
    interval: float | None = None,
    particles: int = 100,
    method: Any = "resampling",
    sweeps: int | None = None,
    refined: int = 0,
    seed: int = 0,
) -> Result:
    """Draws what is missing, or erased, with all other cells and columns as they were."""
    validate_seed(seed)
    if interval is not None and not 0 < interval < 1:
        raise InputError(f"interval was {interval}; give its probability, between 0 and 1")
    model, columns = run.model, _columns(run)
    x, y, mask = rows.split.batch(slice(None))
    whole = x
    if erase is not None:
        seen = tasks.erased(erase, tuple(model.event_shape)).expand(x.shape)
        mask = seen if mask is None else mask & seen
    if mask is None:
        what = rows.source if rows.source is not None else f"the {rows.title}"
        raise InputError(f"{what}: nothing is missing; leave cells empty, put NaN in an array, or erase a region")
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in torch.arange(len(x)).split(AT_ONCE):
            labels = None if y is None or not model.label_dim else y[part]
            options: dict[str, Any] = {"particles": particles, "method": method, "sweeps": sweeps, "refined": refined}
            found.append(tasks.impute(model, x[part], mask[part], labels, draws=draws, **options))
    drawn = torch.cat(found, 1)
    words = torch.tensor([bool(column.categories) for column in columns])
    typical = drawn.mean(0)
    typical = torch.where(words, drawn.mode(0).values, typical) if columns else typical
    typical = torch.where(mask, drawn[0], typical)  # means of equal numbers are rounded
    if interval is not None:
        ends = torch.quantile(drawn, drawn.new_tensor([(1 - interval) / 2, (1 + interval) / 2]), dim=0)
        drawn = torch.stack([typical, *ends])
    elif mean:
        drawn = typical[None]

    def cells() -> Mapping[str, Sequence[Any]]:
        frame = rows.frame
        known = mask.numpy()
        if frame is not None and is_csv(rows.source):  # whose cells stay as they are written
            text = read_text(rows.source)
            frame = text if rows.positions is None else text[rows.positions.tolist()]
        copies = [
            decode(values.numpy(), columns) if frame is None else fill(frame, columns, values.numpy(), known)
            for values in drawn
        ]
        if interval is not None:
            between = {
                f"{column.name}_{end}": copy[column.name]
                for end, copy in zip(("low", "high"), copies[1:], strict=True)
                for i, column in enumerate(columns)
                if not column.categories and not known[:, i].all()
            }
            return {**copies[0], **between}
        joined = {name: [cell for copy in copies for cell in copy[name]] for name in copies[0]}
        if len(copies) > 1:
            joined = {"draw": [number for number in range(len(copies)) for _ in range(len(x))], **joined}
        return joined

    def figure() -> "Figure":
        seen = torch.where(mask, x, torch.nan)
        shown = {"x": whole} if erase is not None else {}
        shown |= {"observed": seen, "mean": typical}
        if interval is None and not mean:
            shown |= {f"draw {i + 1}": values for i, values in enumerate(drawn[:4])}
        return figures.strips(
            torch.stack([*shown.values()], 1)[:SHOWN],
            columns=[*shown],
            title=f"{rows.title} with what is missing drawn",
        )

    return Result("imputed", drawn if len(drawn) > 1 else drawn[0], cells if columns else None, figure)


def result(
    run: Trained,
    task: str,
    source: Any = None,
    output: str | Path | None = None,
    *,
    split: str = "test",
    rows: str | None = None,
    data_dir: Path | None = None,
    **options: Any,
) -> Result:
    """The result of a task; arguments as in `Run.apply`, of which `output` is refused before anything is computed."""
    if task not in TASKS:
        raise InputError(f"there is no task {task!r}; {choices(task, TASKS)}")
    if output is not None:
        format_of(output)
    chosen = [] if task in WITHOUT_ROWS else [rows_of(run, source, split=split, rows=rows, data_dir=data_dir)]
    return TASKS[task](run, *chosen, **options)


TASKS: dict[str, Callable[..., Result]] = {
    task.__name__: task
    for task in (encode, reconstruct, impute, denoise, interpolate, traverse, sample, score, classify)
}
"""The tasks by name."""
WITHOUT_ROWS = ("traverse", "sample")
"""Tasks that take no rows."""
AS_TABLES = ("codes", "scores", "classes")
"""Results that are tables in a run."""
NAMES = (*AS_TABLES, "reconstructions", "interpolation", "traversal", "plane", "denoised", "imputed")
"""Names of results in a run, beside samples."""


def labelled(run: Trained, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x, y and mask of a batch, without labels that the model does not take."""
    return batch.x, batch.y if run.model.label_dim else None, batch.mask


def _shortest(numbers: Tensor) -> list[float]:
    """Numbers without digits that their type does not hold."""
    return [float(str(number)) for number in numbers.numpy()]


def _columns(run: Trained) -> tuple[Any, ...]:
    shape = event_shape_of(run.record["data"]["event_shape"], run.record["data"].get("columns"))
    return shape.columns if isinstance(shape, TableShape) else ()


def _words(run: Trained, x: Tensor) -> dict[str, list[Any]]:
    return decode(np.asarray(x), _columns(run))


def _cells_of(run: Trained, x: Tensor, rows: Rows) -> Callable[[], Mapping[str, Sequence[Any]]] | None:
    return (lambda: {**rows.names, **_words(run, x)}) if _columns(run) else None


def format_of(output: str | Path) -> str:
    """The ending of a file of results, by which its format is known.

    Raises:
        InputError: there is no such format.
    """
    found = ending(Path(output))
    if found not in ENDINGS:
        raise InputError(f"{output}: cannot write a file that ends in {found!r}; {choices(found, ENDINGS)}")
    return found
