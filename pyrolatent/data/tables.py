"""Tables: rows of named columns of numbers and words, from data frames of any library and from arrays.

In a table x a cell of a column of words is the code of its word, 0 to K - 1 in sorted order, and NaN is a missing cell.
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import IO, Any, Literal, TypeGuard

import narwhals.stable.v2 as nw
import numpy as np

from pyrolatent.data.store import Array, pieces, stacked
from pyrolatent.declaration import choices
from pyrolatent.errors import InputError

Frame = nw.DataFrame[Any]
Cells = Array | list[str | None]
"""The cells of a column: numbers, NaN where missing, or words, None where missing."""
Kind = Literal["real", "positive", "count", "binary", "category"]

ROWS = 20
"""Number of rows from which a column with other words in most of them is refused."""
CATEGORIES = 2**16
"""Largest number of words of a column."""
TABLES = (".csv", ".csv.gz", ".parquet", ".feather")
"""Endings of the files that are read and written as tables."""
TRUTHS = ("False", "True")
"""The words of truth values."""
COMMA = re.compile(r"[-+]?[\d.,]*\d,\d[\d.,]*")
"""A number with a comma for its decimals or thousands."""

DATE = re.compile(r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})([ T].*)?")
"""A date, possibly with the time of day."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its name; "0", "1", ... in an array.
        kind: "real", "positive" (above 0), "count" (0, 1, 2, ...), "binary" (0 or 1) or "category" (0 to K - 1).
        categories: the words of a binary column or a category in sorted order, in which they are coded; () for numbers.
    """

    name: str
    kind: Kind = "real"
    categories: tuple[str, ...] = ()


class TableShape(tuple[int, ...]):
    """The event shape (columns,) of a table, which knows its columns.

    Attributes:
        columns: the columns in the order of x.
    """

    columns: tuple[Column, ...]

    def __new__(cls, shape: Iterable[int], *, columns: Iterable[Column]) -> "TableShape":
        """Creates the shape, a tuple like any other."""
        self = super().__new__(cls, shape)
        self.columns = tuple(columns)
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (tuple(self),), {"columns": self.columns}


class TableInPieces:
    """A table that is read piece by piece, each time that its rows are gone through.

    Args:
        columns: names of its columns.
        pieces: the pieces of the table, with the given columns alone.
        index: names of the columns, not among the others, that are its index.
    """

    def __init__(
        self, columns: Sequence[str], pieces: Callable[[Sequence[str]], Iterator[Frame]], index: Sequence[str] = ()
    ) -> None:
        self.columns, self.pieces, self.index = [*columns], pieces, [*index]

    def __iter__(self) -> Iterator[Frame]:
        return self.pieces(self.columns)

    def __getitem__(self, column: str) -> "nw.Series[Any]":
        """The whole of a column."""
        return nw.concat([*self.pieces([column])])[column]

    def drop(self, columns: Sequence[str]) -> "TableInPieces":
        """The table without some of its columns."""
        return TableInPieces([column for column in self.columns if column not in columns], self.pieces)


Table = Frame | TableInPieces


def is_table(x: Any) -> TypeGuard[Table]:
    """Whether rows are a table, in memory or in pieces, and no array."""
    return isinstance(x, nw.DataFrame | TableInPieces)


def columns_record(columns: Iterable[Column]) -> list[dict[str, Any]]:
    """Columns in JSON types."""
    return [
        {"name": column.name, "kind": column.kind}
        | ({"categories": list(column.categories)} if column.categories else {})
        for column in columns
    ]


def event_shape_of(shape: Iterable[int], columns: Iterable[Mapping[str, Any]] | None) -> tuple[int, ...]:
    """An event shape from a record of data: its shape, and its columns if it is a table; older records have none."""
    if columns is None:
        return tuple(shape)
    found = (Column(each["name"], each["kind"], tuple(each.get("categories", ()))) for each in columns)
    return TableShape(shape, columns=found)


def numbered(width: int) -> tuple[Column, ...]:
    """The columns of an array, which have no names."""
    return tuple(Column(str(i)) for i in range(width))


def with_kinds(
    columns: Iterable[Column], x: Array, mask: Array | None = None, kinds: Mapping[str, Kind] | None = None
) -> tuple[Column, ...]:
    """Columns with kinds as declared, or else inferred from their observed values.

    Args:
        columns: columns of unknown kind.
        x: (rows, columns).
        mask: True where observed, of the same shape.
        kinds: kinds by the name of the column.
    """
    declared = kinds or {}
    return tuple(
        replace(column, kind=declared.get(column.name) or _kind(column, *seen))
        for column, *seen in zip(columns, *ranges_of(x, mask), strict=True)
    )


def ranges_of(x: Array, mask: Array | None = None) -> tuple[Array, Array, Array]:
    """The smallest and the largest observed value of each column, and whether all are whole.

    Args:
        x: (rows, columns).
        mask: True where observed, of the same shape.

    Returns:
        Three arrays (columns,); the smallest is above the largest where nothing is observed.
    """
    least, most = (-math.inf, math.inf) if x.dtype.kind == "f" else (np.iinfo(x.dtype).min, np.iinfo(x.dtype).max)
    low, high, whole = np.full(x.shape[1], most), np.full(x.shape[1], least), np.full(x.shape[1], True)
    for rows in pieces(x):
        values, seen = x[rows], True if mask is None else mask[rows]
        low = np.minimum(low, values.min(0, initial=most, where=seen))
        high = np.maximum(high, values.max(0, initial=least, where=seen))
        whole &= ((values == values.round()) | ~np.asarray(seen)).all(0)
    return low, high, whole


def _kind(column: Column, low: float, high: float, whole: bool) -> Kind:
    if column.categories:
        return "binary" if len(column.categories) == 2 else "category"
    if high < low or low < 0:
        return "real"
    if whole:
        return "binary" if high <= 1 else "count"
    return "positive" if low > 0 else "real"


def as_frame(source: Any, name: str) -> Frame:
    """A data frame of any library, in memory, with names of columns that are words; of pandas if it has an index.

    Raises:
        InputError: it is not in memory, or two columns have one name.
    """
    if nw.dependencies.is_pyarrow_table(source) and _has_named_index(source):
        source = source.to_pandas()
    try:
        frame = nw.from_native(source, eager_only=True)
        names = [str(column) for column in frame.columns]
    except TypeError as error:
        raise InputError(f"{name}: {type(source).__name__} is not a table in memory; collect or compute it") from error
    except nw.exceptions.DuplicateError:
        names = [str(column) for column in source.columns]
    if twice := next((column for i, column in enumerate(names) if column in names[:i]), None):
        raise InputError(f"{name}: two columns have the name {twice!r}; rename one")
    if frame.columns != names:
        frame = nw.from_native(
            source.set_axis(names, axis=1), eager_only=True
        )  # of pandas, whose names may be anything
    return frame.drop([column for column in names if column.startswith("__index_level_")])  # pandas' numbers of rows


def _has_named_index(table: Any) -> bool:
    """Whether an Arrow table was made of a data frame of pandas whose index has a name."""
    index = (table.schema.pandas_metadata or {}).get("index_columns", ())
    return any(isinstance(column, str) and not column.startswith("__index_level_") for column in index)


def with_index(frame: Table) -> Table:
    """A table with its index as its first columns, if it is of pandas and the index has names or holds words."""
    if isinstance(frame, TableInPieces):
        return TableInPieces([*frame.index, *frame.columns], frame.pieces)
    native = frame.to_native()
    if not nw.dependencies.is_pandas_dataframe(native):
        return frame
    index = native.index
    if index.dtype.kind != "O" and all(name is None for name in index.names):
        return frame
    try:
        return nw.from_native(native.reset_index().rename(columns=str), eager_only=True)
    except ValueError as error:
        raise InputError(f"the index of the table and a column have one name ({error}); rename one") from error


def frame_of_words(x: Array, name: str) -> Frame:
    """A data frame of an array of words, (rows, columns), whose columns are of numbers where all their words are."""
    import pandas as pd

    frame = pd.DataFrame(x)
    for column in frame:
        if all(value is None or isinstance(value, str) for value in frame[column]):
            with suppress(ValueError):
                frame[column] = pd.to_numeric(frame[column])
    return as_frame(frame, name)


def encode(
    tables: Mapping[str, Table], known: Sequence[Column] | None = None, kinds: Mapping[str, Kind] | None = None
) -> tuple[list[Array], tuple[Column, ...]]:
    """Encodes the parts of a table together, so that a word has the same code in all of them.

    Args:
        tables: the parts, by their names in messages.
        known: columns that the parts must have, in any order, with their words; None for those of the first part.
        kinds: declared kinds by the name of the column; the numbers of a "category" are taken for words.

    Returns:
        The x of each part, (rows, columns), NaN where a number or a code is missing; and the columns, whose kinds are
        still to be inferred.

    Raises:
        InputError: columns are missing or too many, hold neither numbers nor words, or hold other words than before.
    """
    names = [column.name for column in known] if known else next(iter(tables.values())).columns
    for part, table in tables.items():
        _validate_names(part, table.columns, names)
    words = {column.name: column.categories for column in known or ()} or _words_of(tables, names, kinds or {})
    encoded = [
        stacked(_coded_frame(frame, words, part) for frame in frames_of(table)) for part, table in tables.items()
    ]
    return encoded, tuple(Column(name, categories=words[name]) for name in names)


def frames_of(table: Table) -> Iterable[Frame]:
    """The pieces of a table; one that is in memory is one."""
    return table if isinstance(table, TableInPieces) else [table]


def _words_of(
    tables: Mapping[str, Table], names: Sequence[str], kinds: Mapping[str, Kind]
) -> dict[str, tuple[str, ...]]:
    """The words of each column in sorted order; () where it holds numbers."""
    found = {name: _Words(name, kinds.get(name)) for name in names}
    for part, table in tables.items():
        rows = 0
        for frame in frames_of(table):
            for name, words in found.items():
                words.add(cells_of(frame[name], name, part), part, rows)
            rows += len(frame)
    return {name: words.in_order() for name, words in found.items()}


def _validate_names(part: str, given: Sequence[str], names: Sequence[str]) -> None:
    """Requires a part to have the given columns, in any order."""
    missing, extra = [n for n in names if n not in given], [n for n in given if n not in names]
    said = [
        f"{what} {', '.join(map(repr, which))}" for what, which in (("lacks", missing), ("also has", extra)) if which
    ]
    if said:
        raise InputError(f"{part}: the table {' and '.join(said)}; its columns must be {', '.join(names)}")


def cells_of(values: Any, name: str, part: str) -> Cells:
    """The cells of a column as numbers, NaN where missing, or as a list of words, None where missing.

    Raises:
        InputError: they are neither.
    """
    column = values if isinstance(values, nw.Series) else _series(values)
    dtype, holds = column.dtype, str(column.dtype)
    if dtype.is_numeric():
        whole = dtype.is_integer() and not column.null_count()
        return (column if whole else column.cast(nw.Float64).fill_null(math.nan)).to_numpy()
    if dtype in (nw.Boolean, nw.String, nw.Categorical, nw.Enum, nw.Object, nw.Unknown):
        different, codes = _distinct(column)
        types = {type(value) for value in different if value is not None}
        if types <= {str, np.str_, bool, np.bool_}:
            words = [None if value is None else str(value).strip() or None for value in different]
            return np.array(words, dtype=object)[codes].tolist()
        if all(issubclass(each, int | float | np.number | Decimal) for each in types):
            numbers = np.array([math.nan if value is None else value for value in different], np.float64)[codes]
            return as_words(numbers) if dtype in (nw.Categorical, nw.Enum) else numbers
        holds = ", ".join(sorted(each.__qualname__ for each in types))
    raise InputError(
        f"{part}: the column {name!r} holds {holds}, but numbers or words are expected; turn it into one of them or "
        "leave it out"
    )


def _distinct(column: "nw.Series[Any]") -> tuple[list[Any], Array]:
    """Values of which each cell of a column is one, None for missing, and the place of each cell's among them."""
    if column.dtype in (nw.Object, nw.Unknown):  # values of any types, which may be equal: True is 1
        gaps = column.is_null().to_list()
        values = [None if gap else value for gap, value in zip(gaps, column.to_list(), strict=True)]
        return values, np.arange(len(values))
    encoded: Any = column.to_arrow().dictionary_encode()
    if hasattr(encoded, "combine_chunks"):
        encoded = encoded.unify_dictionaries().combine_chunks()
    different = encoded.dictionary.to_pylist()
    return [*different, None], encoded.indices.fill_null(len(different)).to_numpy(zero_copy_only=False)


def _series(values: Any) -> nw.Series[Any]:
    import pandas as pd

    return nw.from_native(pd.Series(values), series_only=True)


def as_words(cells: Cells) -> list[str | None]:
    """Cells as words, None where missing; whole numbers without a point."""
    if isinstance(cells, list):
        return cells
    different, codes = np.unique(cells, return_inverse=True)
    words = [
        None if math.isnan(value) else str(int(value)) if float(value).is_integer() else repr(value)
        for value in different.tolist()
    ]
    return [words[code] for code in codes]


def in_order(words: Iterable[str]) -> tuple[str, ...]:
    """Words in sorted order, numbers by their size."""
    words = [*words]
    numbers = all(map(is_number, words))
    return tuple(sorted(words, key=lambda word: (float(word), word) if numbers else (0.0, word)))


class _Words:
    """The words that a column holds, in all parts of a table.

    Args:
        name: the column.
        kind: its kind, if it is declared; words are then those of its numbers too.
    """

    def __init__(self, name: str, kind: Kind | None) -> None:
        self.name, self.kind = name, kind
        self.counts: Counter[str] = Counter()
        self.rows: dict[str, tuple[str, int]] = {}  # part and row where a word is first
        self.numbers = False
        self.lists = False

    def add(self, cells: Cells, part: str, start: int) -> None:
        """Counts the words of a part's cells from a row on."""
        if isinstance(cells, list):
            self.lists = self.lists or any(cell is not None for cell in cells)
        else:
            self.numbers = self.numbers or bool(np.isfinite(cells).any())
            if self.kind not in ("category", "binary"):
                return
        written = as_words(cells)
        for word, count in Counter(written).items():
            if word is None:
                continue
            if word not in self.rows:
                self.rows[word] = (part, start + written.index(word))
            self.counts[word] += count
        if len(self.counts) > CATEGORIES:
            raise self._no_categories()

    def in_order(self) -> tuple[str, ...]:
        """The words in sorted order, both truth values if they are some; () if the column holds numbers."""
        words = in_order(self.counts)
        part = next(iter(self.rows.values()), ("", 0))[0]
        if self.kind in ("category", "binary"):
            if self.kind == "binary" and len(words) > 2:
                raise InputError(
                    f"{part}: the column {self.name!r} is declared binary, but holds {', '.join(words[:5])}"
                )
            return () if self.kind == "binary" and {*words} <= {"0", "1"} and not self.lists else words
        if self.kind and words:
            raise InputError(
                f"{part}: the column {self.name!r} is declared {self.kind}, but holds {next(iter(self.counts))!r}"
            )
        commas = [word for word in words if COMMA.fullmatch(word)]
        if commas and all(is_number(word) for word in {*words} - {*commas}):
            raise InputError(
                f"{part}: the column {self.name!r} holds {commas[0]!r}; write numbers with a point for decimals and "
                "without commas, or declare its kind, category"
            )
        if words and {*words} <= {*TRUTHS}:
            words = TRUTHS
        total, other = self.counts.total(), [word for word in self.counts if not is_number(word)]
        if (words and self.numbers) or 0 < sum(self.counts[word] for word in other) < total / 2:
            word = (other or words)[0]
            part, row = self.rows[word]
            raise InputError(
                f"{part}: the column {self.name!r} holds numbers, but {word!r} in row {row}; leave a cell empty where "
                "its value is missing, or declare its kind, category"
            )
        if 2 * len(words) > total >= ROWS:
            raise self._no_categories()
        if words and all(map(DATE.fullmatch, words)):
            warnings.warn(
                f"{part}: the column {self.name!r} holds dates ({words[0]}, ...), which are taken for categories that "
                "have no order; turn them into numbers, such as days, leave it out, or declare its kind, category",
                stacklevel=2,
            )
        return words

    def _no_categories(self) -> InputError:
        part = next(iter(self.rows.values()))[0]
        return InputError(
            f"{part}: the column {self.name!r} holds {len(self.counts)} different words in {self.counts.total()} rows "
            f"({in_order(self.counts)[0]!r}, ...), which are no categories; leave it out"
        )


def _coded_frame(frame: Frame, words: Mapping[str, Sequence[str]], part: str) -> Array:
    """The numbers and codes of the columns of a table, side by side, as integers if all are."""
    return _stacked([_coded(cells_of(frame[name], name, part), words[name], name, part) for name in words])


def _coded(cells: Cells, words: Sequence[str], name: str, part: str) -> Array:
    """Numbers, NaN where missing: those of the cells, or the codes of their words."""
    if not words and not isinstance(cells, list):
        largest = max(int(cells.max(initial=0)), -int(cells.min(initial=0))) if cells.dtype.kind in "iu" else 0
        if largest > 2**53:
            raise InputError(
                f"{part}: the column {name!r} holds integers up to {largest}, which are not exact beside numbers with "
                "decimals; leave it out, or name it as id if it is one"
            )
        return cells
    codes: dict[str | None, float] = {None: math.nan} | {word: i for i, word in enumerate(words)}
    written = as_words(cells)
    if {*written} - codes.keys():
        unknown = next(word for word in written if word and word not in codes)
        takes = choices(unknown, words) if words else "its cells are numbers"
        raise InputError(f"{part}: the column {name!r} holds {unknown!r}, which is new; {takes}")
    return np.array([codes[word] for word in written])


def _stacked(columns: Sequence[Array]) -> Array:
    """Columns of numbers side by side, as integers if all are."""
    return np.stack(columns, 1) if columns else np.empty((0, 0))


def decode(x: Array, columns: Sequence[Column]) -> dict[str, list[Any]]:
    """The cells of each column in the user's words and numbers.

    Args:
        x: (rows, columns), a code being rounded to the nearest of its column.
        columns: the columns of x.
    """
    found: dict[str, list[Any]] = {}
    for i, column in enumerate(columns):
        if column.categories:
            codes = x[:, i].round().clip(0, len(column.categories) - 1).astype(int)
            found[column.name] = [column.categories[code] for code in codes]
        else:
            found[column.name] = _shortest(x[:, i], column)
    return found


def fill(frame: Frame, columns: Sequence[Column], x: Array, mask: Array) -> dict[str, list[Any]]:
    """A table whose missing cells are those of x, with all its other cells and columns as they were.

    Args:
        frame: the table.
        columns: the columns of x, in any order in the table.
        x: (rows, columns).
        mask: True where the table has a value, of the same shape.
    """
    filled: dict[str, list[Any]] = {name: frame[name].to_list() for name in frame.columns}
    for i, (column, drawn) in enumerate(zip(columns, decode(x, columns).values(), strict=True)):
        given = filled[column.name]
        like = next((cell for cell, kept in zip(given, mask[:, i], strict=True) if kept), "")
        cells = [old if kept else _like(like, new) for old, new, kept in zip(given, drawn, mask[:, i], strict=True)]
        whole = column.kind in ("count", "binary") and not column.categories and not isinstance(like, str)
        filled[column.name] = _shortest(np.array(cells, np.float64), column) if whole else cells
    return filled


def _like(cell: Any, word: Any) -> Any:
    """A word or number as another cell of its column is: a truth value, a number or a word."""
    if isinstance(cell, Decimal):
        return Decimal(str(word))
    if not isinstance(word, str) or isinstance(cell, str):
        return word
    return word == TRUTHS[1] if isinstance(cell, bool | np.bool_) else type(cell)(float(word))


def _shortest(values: Array, column: Column) -> list[Any]:
    """Numbers without the digits that float32 adds; whole ones of a column of whole numbers as integers."""
    if column.kind in ("count", "binary") and (values == values.round()).all():
        return values.astype(np.int64).tolist()
    return [float(str(value)) for value in values]


def write_table(file: IO[bytes], ending: str, cells: Mapping[str, Sequence[Any]]) -> None:
    """Writes a table to a file.

    Args:
        file: an open file.
        ending: its format, one of `TABLES`.
        cells: the cells of each column by its name.
    """
    import pandas as pd

    frame = pd.DataFrame(dict(cells))
    if ending == ".parquet":
        frame.to_parquet(file)
    elif ending == ".feather":
        frame.to_feather(file)
    else:
        frame.to_csv(file, index=False, compression="gzip" if ending == ".csv.gz" else None)


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False
