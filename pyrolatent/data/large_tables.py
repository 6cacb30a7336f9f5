"""Reading tables that are larger than memory, piece by piece."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw

from pyrolatent.data.store import is_large, limit
from pyrolatent.data.tables import Frame, TableInPieces, as_frame

CELL = 32
"""Bytes that a cell takes while it is read."""


def large_csv(path: Path, read: Callable[..., Any]) -> TableInPieces | None:
    """A .csv file that is read in pieces; None if it fits in memory.

    A column that holds numbers in some pieces and words in others is of words in all of them, as it is when the whole
    is read.

    Args:
        path: the file.
        read: `pandas.read_csv` with the options by which the whole is read.
    """
    import pandas as pd

    if not is_large(path.stat().st_size * (10 if path.suffix == ".gz" else 1)):
        return None
    columns = [*read(path, nrows=0)]
    rows = _rows(len(columns))
    numbers, words = set(), set()
    with warnings.catch_warnings(), read(path, chunksize=rows) as frames:
        warnings.simplefilter("error", pd.errors.ParserWarning)
        for frame in frames:
            known = {name for name in columns if frame[name].notna().any()}
            of_numbers = {*frame.select_dtypes("number")}
            numbers |= known & of_numbers
            words |= known - of_numbers

    def pieces(names: Sequence[str]) -> Iterator[Frame]:
        with read(path, chunksize=rows, dtype=dict.fromkeys(numbers & words, str)) as frames:
            for frame in frames:
                yield as_frame(frame[[*names]], str(path))

    return TableInPieces([str(name) for name in columns], pieces)


def large_parquet(path: Path) -> TableInPieces | None:
    """A .parquet file that is read in pieces; None if it fits in memory."""
    from pyarrow import Table
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        schema, size = file.schema_arrow, file.metadata.num_rows
    if not is_large(size * len(schema.names) * 8):
        return None

    def pieces(names: Sequence[str]) -> Iterator[Frame]:
        with ParquetFile(path, pre_buffer=False) as file:  # a buffer would keep all that is read
            for batch in file.iter_batches(_rows(len(schema.names)), columns=[*names]):
                yield _frame(Table.from_batches([batch]))

    return _table(schema, pieces)


def large_feather(path: Path) -> TableInPieces | None:
    """A .feather file that is read in pieces; None if it fits in memory, or is of the first version."""
    from pyarrow import ArrowInvalid, Table, ipc, memory_map

    if not is_large(4 * path.stat().st_size):
        return None
    try:
        schema = ipc.open_file(memory_map(str(path))).schema
    except ArrowInvalid:
        return None

    def pieces(names: Sequence[str]) -> Iterator[Frame]:
        with memory_map(str(path)) as mapped:
            file, rows = ipc.open_file(mapped), _rows(len(schema.names))
            for i in range(file.num_record_batches):
                batch = file.get_batch(i).select([*names])
                for start in range(0, batch.num_rows, rows):
                    yield _frame(Table.from_batches([batch.slice(start, rows)]))

    return _table(schema, pieces)


def as_pandas(table: Any, **options: Any) -> Any:
    """An Arrow table as a pandas data frame, with the categories of numbers that Parquet does not know itself."""
    table.validate(full=True)  # of words that are no text
    frame = table.to_pandas(**options)
    written = (table.schema.pandas_metadata or {}).get("columns", ())
    numbers = {each["name"] for each in written if each["pandas_type"] == "categorical"} & {*frame.columns}
    return frame.astype(dict.fromkeys(numbers, "category"))


def _table(schema: Any, pieces: Callable[[Sequence[str]], Iterator[Frame]]) -> TableInPieces:
    """A table without the columns of its index, which it has if they have names or hold words."""
    from pyarrow import types

    stored = [name for name in (schema.pandas_metadata or {}).get("index_columns", ()) if isinstance(name, str)]
    unnamed = [name for name in schema.names if name.startswith("__index_level_")]
    of_words = [
        name for name in unnamed if types.is_large_string(kind := schema.field(name).type) or types.is_string(kind)
    ]
    index = [name for name in stored if name not in unnamed or name in of_words]
    return TableInPieces([name for name in schema.names if name not in {*stored, *unnamed}], pieces, index)


def _frame(table: Any) -> Frame:
    return nw.from_native(as_pandas(table, ignore_metadata=True), eager_only=True)


def _rows(columns: int) -> int:
    """Number of rows of a piece."""
    return max(1, min(limit() // 16, 2**26) // (CELL * max(columns, 1)))
