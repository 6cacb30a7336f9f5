"""Data in memory: splits, and the batches that models receive."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrolatent.data.store import MappedFile, empty
from pyrolatent.data.tables import Column, TableShape, ranges_of
from pyrolatent.errors import InputError, at_least_one

PARTS = ("train", "validation", "test")
SHOWN = 30
"""Number of columns that are described one by one."""
WORDS = 5
"""Number of words of a column that are named."""
CHUNK = 4096  # datapoints converted or drawn at a time, to avoid a float copy of a whole data set


class Batch(NamedTuple):
    """A minibatch as a model receives it.

    Attributes:
        x: (batch, *event_shape), in the split's floating type.
        y: class labels (batch,), int64, or vectors (batch, label_dim), in the same type; None without labels.
        mask: (batch, *event_shape), bool, True where x is observed; None if all of it is. Unobserved values are
            meaningless.
    """

    x: Tensor
    y: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """The training, validation or test data.

    A batch is `x * factor` or, if noise is drawn anew for each batch,

        binarize:    1 if u < x * factor else 0       u ~ Uniform[0, 1)
        dequantize:  (x + u) / levels

    Attributes:
        x: (datapoints, *event_shape), in the smallest type that holds it.
        y: labels (datapoints,), int64, or (datapoints, label_dim), float32.
        mask: (datapoints, *event_shape), bool, True where observed; x is 0 elsewhere.
        factor: multiplier that converts x to the modelled values.
        noise: the noise that is drawn anew for each batch, if any.
        levels: number of levels of integer x, if known.
        dtype: floating type of batches; noise is drawn in float32, so that it does not depend on the type.
        rows: numbers of the datapoints in their source, (datapoints,), int64, on the CPU; None numbers them 0, 1, ...
        ids: their names, if they have some.
        file: the file that x lies in, if it is one of the user's.
    """

    x: Tensor
    y: Tensor | None = None
    mask: Tensor | None = None
    factor: float = 1.0
    noise: Literal["binarize", "dequantize"] | None = None
    levels: int | None = None
    dtype: torch.dtype = torch.float32
    rows: Tensor | None = None
    ids: tuple[str, ...] | None = None
    file: MappedFile | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def row_numbers(self) -> Tensor:
        """The numbers of the datapoints in their source, (datapoints,), int64."""
        return torch.arange(len(self)) if self.rows is None else self.rows

    def batch(self, index: Tensor | slice) -> Batch:
        """Selects and converts datapoints; noise is drawn from torch's global generator of the device.

        Args:
            index: (batch,), int64, or a slice.

        Raises:
            InputError: the file that x lies in was changed.
        """
        self.require_unchanged()
        x, y, mask = (select(field, index) for field in (self.x, self.y, self.mask))
        vectors = y is not None and y.is_floating_point()
        return Batch(self._convert(x).to(self.dtype), y.to(self.dtype) if vectors else y, mask)

    def require_unchanged(self) -> None:
        """Refuses x that lies in a file which was changed.

        Raises:
            InputError: it does.
        """
        if self.file is not None:
            self.file.require_unchanged()

    def batches(self, size: int, *, shuffle: bool = False) -> Iterator[Batch]:
        """Iterates over all datapoints once; the last batch is smaller if the size does not divide their number.

        Args:
            size: number of datapoints per batch.
            shuffle: whether the order is random, drawn from torch's global CPU generator on every device.

        Raises:
            InputError: the size is not positive.
        """
        at_least_one(size=size)
        if shuffle:
            order = torch.randperm(len(self)).to(self.x.device)
            return (self.batch(index) for index in order.split(size))
        return (self.batch(slice(start, start + size)) for start in range(0, len(self), size))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Split":
        """Copies the split to another device and, if given, to another floating type of batches."""
        x = self.x.to(device)
        return dataclasses.replace(
            self,
            x=x,
            y=None if self.y is None else self.y.to(device),
            mask=None if self.mask is None else self.mask.to(device),
            dtype=dtype or self.dtype,
            file=self.file if x is self.x else None,
        )

    def _convert(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.noise is None:
            return x.to(torch.float32) if self.factor == 1 else x.to(torch.float32) * self.factor
        u = torch.rand(x.shape, generator=generator, dtype=torch.float32, device=x.device)
        if self.noise == "binarize":
            return (u < x * self.factor).to(torch.float32)
        # The largest value may round to 1, where the logit is infinite.
        return ((x + u) / (self.levels or 1)).clamp(max=1 - 2**-24)

    def _fixed(self, generator: torch.Generator) -> "Split":
        """The same split with its noise drawn once."""
        if self.noise is None:
            return self
        x = torch.from_numpy(empty(tuple(self.x.shape), "uint8" if self.noise == "binarize" else "float32"))
        for start in range(0, len(x), CHUNK):
            x[start : start + CHUNK] = self._convert(self.x[start : start + CHUNK], generator)
        return dataclasses.replace(self, x=x, factor=1.0, noise=None)


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Training, validation and test data, with a record of how they were made.

    Attributes:
        name: name of the data.
        train: the split to fit models to.
        validation: the split to select models on; fixed by the data seed.
        test: the split to report results on; fixed by the data seed.
        event_shape: shape of one datapoint; a `TableShape` of the columns if x is a table.
        label_dim: number of classes, or width of label vectors; 0 without labels.
        binarize: "dynamic", "static", "threshold", "relaxed" (grey values, trained as a cross-entropy) or None.
        dequantize: "uniform" or None.
        declaration: the argument of `load_data` that recreates the data; None for arrays in memory.
        record: every choice in JSON types, with `training_sha256` and `evaluation_sha256`, hashes of the training data
            and of the validation and test data as stored.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    event_shape: tuple[int, ...]
    label_dim: int
    binarize: str | None
    dequantize: str | None
    declaration: str | dict[str, Any] | None
    record: dict[str, Any]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{size:,} {split}" for split, size in self.record["sizes"].items())
        gaps = f"; {_percent(self.missing)} missing" if self.missing else ""
        return f"Data({self.name}: {sizes}; event_shape={self.event_shape}, label_dim={self.label_dim}{gaps})"

    @property
    def missing(self) -> float:
        """The share of the entries of x that are missing, over all parts."""
        gaps = sum(split.mask.numel() - int(split.mask.sum()) for split in self.splits if split.mask is not None)
        return gaps / sum(split.x.numel() for split in self.splits)

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """The training, validation and test data."""
        return self.train, self.validation, self.test

    def describe(self) -> str:
        """The data in words: sizes, numbers of labels, and of each column of a table the kind, values and gaps."""
        lines = [repr(self)]
        if self.classes is not None:
            y = torch.cat([split.y for split in self.splits if split.y is not None])
            counts = torch.bincount(y + 1, minlength=1).tolist()
            named = [f"{word} {count:,}" for word, count in zip(self.classes[:SHOWN], counts[1:], strict=False)]
            named += [f"and {len(self.classes) - SHOWN} more classes"] * (len(self.classes) > SHOWN)
            lines.append("labels: " + ", ".join(named + [f"unknown {counts[0]:,}"] * bool(counts[0])))
        if self.record["layout"] == "channels_last":
            lines.append("layout: channels last in the source, first in x")
        repeated = {name: count for name, count in self.record["duplicates"].items() if count}
        if repeated:
            said = {"between": "rows of validation or test that are in train too"}
            found = (f"{count:,} {said.get(name, f'repeated in {name}')}" for name, count in repeated.items())
            lines.append("duplicates: " + ", ".join(found))
        if self.columns:
            shown = self.columns[:SHOWN]
            rows = [("column", "kind", "values", "missing"), *self._in_words(shown)]
            widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
            lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
            lines += [f"and {len(self.columns) - SHOWN} more columns"] * (len(self.columns) > SHOWN)
        return "\n".join(lines)

    def _in_words(self, columns: Sequence[Column]) -> Iterator[tuple[str, str, str, str]]:
        """The name, the kind, the values and the share of missing cells of the first columns, in words."""
        count, rows = len(columns), sum(map(len, self.splits))
        masks = [None if split.mask is None else split.mask[:, :count].cpu() for split in self.splits]
        gaps = [torch.zeros(count) if mask is None else len(mask) - mask.sum(0) for mask in masks]
        ranges = [
            ranges_of(split.x[:, :count].cpu().numpy(), None if mask is None else mask.numpy())
            for split, mask in zip(self.splits, masks, strict=True)
        ]
        for i, column in enumerate(columns):
            low, high = min(each[0][i] for each in ranges), max(each[1][i] for each in ranges)
            missing = sum(gap[i].item() for gap in gaps) / rows
            if column.categories:
                words = ", ".join(column.categories[:WORDS])
                values = f"{words}, ... ({len(column.categories)})" if len(column.categories) > WORDS else words
            else:
                values = f"{low:g} to {high:g}" if low <= high else ""
            yield column.name, column.kind, values, _percent(missing)

    @property
    def columns(self) -> tuple[Column, ...] | None:
        """The columns of x, with their kinds and words; None if x is not a table, (rows, columns)."""
        return self.event_shape.columns if isinstance(self.event_shape, TableShape) else None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The words of the classes in the order of their codes; None if there are no labels or they are vectors."""
        classes = self.record["classes"]
        return None if classes is None else tuple(classes)

    @property
    def divisor(self) -> float:
        """The number by which integers of the source were divided; 1 if they were not."""
        return divisor(self.record)

    def split(self, name: str) -> Split:
        """The split named "train", "validation" or "test".

        Raises:
            InputError: there is no split of this name.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise InputError(f"there is no split {name!r}; valid: {', '.join(splits)}")
        return splits[name]

    def bits_per_dimension(
        self, log_p: float | None, measure: str, support: constraints.Constraint | None, mask: Tensor | None = None
    ) -> float | None:
        """Bits per observed entry of images with discrete levels, from the mean of log p(x) over datapoints.

            -log p(x) / (D log 2) + log₂ L

        D is the mean number of observed entries per datapoint. A dequantized level k became (k + u) / L, whose density
        is L times that of k + u, and the mean of its logarithm over u bounds the log mass of k (Theis et al. 2016,
        1511.01844). For a mass, L is 1.

        Args:
            log_p: mean log p(x), nats; None gives None.
            measure: its measure, as `measure_of` names it.
            support: support of the density or mass.
            mask: (datapoints, *event_shape), True where observed.

        Returns:
            None unless the events are images of two or three axes with discrete or dequantized levels; one-hot vectors
            have no bits per dimension.
        """
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        image = len(self.event_shape) in (2, 3) and not isinstance(support, type(constraints.one_hot))
        dequantized = self.dequantize is not None and measure.startswith("density")
        entries = math.prod(self.event_shape) if mask is None else mask.sum().item() / len(mask)
        if log_p is None or not image or not entries or not (dequantized or measure == "mass"):
            return None
        return -log_p / (entries * math.log(2)) + math.log2(self.record["levels"] if dequantized else 1)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Data":
        """Copies the data to another device and, if given, to another floating type of batches."""
        train, validation, test = (split.to(device, dtype) for split in self.splits)
        return dataclasses.replace(self, train=train, validation=validation, test=test)

    def validate_support(self, constraint: constraints.Constraint, density: str) -> None:
        """Validates that the data lie in the support of a density, before training begins.

        A support that depends on parameters is not validated.

        Args:
            constraint: support of the elementwise distribution.
            density: name of the density in messages, such as "the normal likelihood".

        Raises:
            InputError: an observed value lies outside the support, or the data are declared `relaxed` and the
                likelihood is not a Bernoulli.
        """
        while isinstance(constraint, constraints.independent):
            constraint = constraint.base_constraint
        boolean = isinstance(constraint, type(constraints.boolean))
        if self.binarize == "relaxed":
            if not boolean:
                raise InputError(
                    f"{self.name} is declared binarize: relaxed, which goes with the bernoulli likelihood alone, but "
                    f"there is {density}; declare binarize: none to model grey values by a density"
                )
            return
        if constraints.is_dependent(constraint):
            return
        device = self.train.x.device
        # Batches are drawn here as in training, whose random numbers must not depend on it.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for x, mask in self._values():
                if mask is not None and constraint.event_dim > 0:
                    continue  # events with unobserved entries cannot be decided
                inside = constraint.check(x) | (False if mask is None else ~mask)
                if not inside.all():
                    raise InputError(self._outside(constraint, (~inside).any(0), density))

    def _outside(self, constraint: Any, outside: Tensor, density: str) -> str:
        """A message that some values lie outside of a set; `outside` has the entries (*event_shape) where they do."""
        name, entries = self.name, torch.ones_like(outside)
        if hasattr(constraint, "of_column"):  # each column has a set of its own
            column = int(outside.nonzero()[0])
            constraint, entries = (
                constraint.of_column(column),
                torch.arange(len(outside), device=outside.device) == column,
            )
            name += f", column {self.columns[column].name if self.columns else column},"
        boolean = isinstance(constraint, type(constraints.boolean))
        observed = [x[entries.expand_as(x) if mask is None else mask & entries] for x, mask in self._values()]
        low, high = min(x.min().item() for x in observed if len(x)), max(x.max().item() for x in observed if len(x))
        values = f"{name} holds values in [{low:.4g}, {high:.4g}]"
        defined = f"{density} is defined on {_SETS.get(str(constraint), str(constraint))}"
        if boolean and low >= 0 and high <= 1:
            return (
                f"{values} that are not all 0 or 1, but {defined}: declare binarize: dynamic, static or threshold, "
                "or relaxed to train on grey values as a cross-entropy"
            )
        counts = low >= 0 and all(bool((x == x.round()).all()) for x in observed)
        fitting = "poisson or negative_binomial" if counts else "normal or student_t"
        return (
            f"{values} of which some lie outside, but {defined}: declare one of such values, as the likelihood "
            f"{fitting}, or transform x"
        )

    def _values(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The modelled values; a single batch represents a split with noise."""
        for split in self.splits:
            for x, _, mask in split.batches(CHUNK):
                yield x, mask
                if split.noise is not None:
                    break


def _percent(share: float) -> str:
    """A share in words; a small one is not none."""
    return "0 %" if not share else f"{100 * share:.1f} %" if share >= 1e-3 else "< 0.1 %"


def divisor(record: Mapping[str, Any]) -> float:
    """The number by which integers were divided, from a record of data, which older runs may lack."""
    if record.get("dequantize"):
        return float(record["levels"])
    return round(1 / record.get("factor", 1.0), 6)


def measure_of(kind: str, record: Mapping[str, Any]) -> str:
    """The measure of reported nats; that of a density includes its units, from the record of the data.

    Args:
        kind: "mass", "density", ...; older runs also have "density (dequantized)".
        record: record of the data.
    """
    if kind not in ("density", "density (dequantized)"):
        return kind
    if record.get("dequantize"):
        return f"density (of [0, 1], dequantized over {record['levels']} levels)"
    return "density (in the units of the data)" if divisor(record) == 1 else "density (of [0, 1])"


def select(field: Any, index: Tensor | slice) -> Any:
    """The rows of a field at an index; None if the field is None."""
    if field is None or isinstance(index, slice):
        return None if field is None else field[index]
    return field.index_select(0, index.to(field.device))


_SETS = {
    "Boolean()": "{0, 1}",
    "Interval(lower_bound=0.0, upper_bound=1.0)": "[0, 1]",
    "GreaterThan(lower_bound=0.0)": "(0, inf)",
    "GreaterThan(lower_bound=-1.0)": "(-1, inf)",
    "GreaterThanEq(lower_bound=0.0)": "[0, inf)",
    "IntegerGreaterThan(lower_bound=0)": "{0, 1, 2, ...}",
}
