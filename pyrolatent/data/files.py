"""Reading and validating the user's files and folders, as NumPy arrays or as data frames.

Splitting, scaling and noise are in `pyrolatent.data.load`. Nothing is ever unpickled.
"""

import math
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from pyrolatent.data import anndata
from pyrolatent.data.images import IMAGES, image_files, stack_images, warn_of_others
from pyrolatent.data.large_tables import as_pandas, large_csv, large_feather, large_parquet
from pyrolatent.data.store import Array, Stack, header_of, mapped, open_array, pieces, unpacked
from pyrolatent.data.tables import Column, Frame, Table, TableInPieces, as_frame, frames_of, is_number, with_index
from pyrolatent.declaration import choices
from pyrolatent.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

DEFLATED = 1100
"""A bound on how many bytes a byte of a compressed file can stand for: 1,032, and its header."""


class Part(NamedTuple):
    """One part of a data set as it was read, before validation.

    Attributes:
        x: (datapoints, ...), or a table.
        y: labels, (datapoints,) words or numbers or (datapoints, label_dim), or a column of a table.
        mask: True where observed, of the shape of x.
        ids: names of the datapoints, words or numbers (datapoints,), or a column of a table.
        split: the words train, validation or test, (datapoints,), or a column of a table.
    """

    x: Any
    y: Any = None
    mask: Array | None = None
    ids: Any = None
    split: Any = None


class Source(NamedTuple):
    """The contents of a data source.

    Attributes:
        name: name of the source in messages and records.
        train: all datapoints, or the training part if the source has its own split.
        validation: the source's own validation part.
        test: the source's own test part.
        binarize: how its values are binarized by default.
        levels: number of grey levels, if they do not fill a byte.
    """

    name: str
    train: Part
    validation: Part | None = None
    test: Part | None = None
    binarize: str = "none"
    levels: int | None = None


def read_path(path: Path, roles: Mapping[str, str], resize: tuple[int, int] | None = None) -> Source:
    """Reads a file, or a folder of images whose sub-folders are the classes.

    Args:
        path: a folder, or a file that ends in .npy, .npz, .csv, .csv.gz, .parquet, .feather or .h5ad.
        roles: names of the columns of a table that are no part of x: "labels", "id" and "split"; of an .npz archive the
            name of the array of labels; of an .h5ad file also "layer".
        resize: height and width of the images of a folder; None if they have one size.

    Raises:
        InputError: the path does not exist, or its contents cannot be read; the message names the file.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    if not (path.is_file() or path.is_dir()):
        raise InputError(f"{path}: is no file or folder; a pipe or a device cannot be read")
    suffix = "folder" if path.is_dir() else ending(path)
    if suffix != "folder" and suffix not in _READERS:
        raise InputError(
            f"{path}: cannot read a file that ends in {suffix!r}; {choices(suffix, _READERS)}, or a folder"
        )
    for role, name in roles.items():
        if suffix in ("folder", ".npy") or (suffix == ".npz" and role != "labels"):
            raise InputError(f"{path}: {role}={name!r} names a column or an array, and a {suffix} has none for it")
    if suffix == "folder":
        return _read_folder(path, resize)
    if resize:
        raise InputError(f"{path}: resize is of the images in a folder; leave it out")
    return _READERS[suffix](path, roles)


def ending(path: Path) -> str:
    """The ending of a file's name by which its format is known."""
    return "".join(path.suffixes[-2:]).lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def read_dataset(dataset: Dataset[Any]) -> Source:
    """Collects the items of a data set: x, (x, y), or a mapping of x and possibly y and mask.

    Raises:
        InputError: there are no items, or they have another form or differ in shape.
    """
    name = type(dataset).__name__
    stream: Any = dataset if isinstance(dataset, IterableDataset) else None
    try:
        size = len(dataset) if stream is None else 0  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(f"{name} has no length; one with __len__ and __getitem__ is expected") from error
    stacks: dict[str, Stack] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for i, item in enumerate(stream if stream is not None else (dataset[i] for i in range(size))):
        fields = _fields(item, name)
        shapes = shapes or {field: value.shape for field, value in fields.items()}
        if fields.keys() != shapes.keys():
            raise InputError(
                f"{name}: item {i} has {', '.join(fields)}, but item 0 {', '.join(shapes)}; all must be x, (x, y), or "
                "mappings of x and possibly y and mask"
            )
        for field, value in fields.items():
            if value.shape != shapes[field]:
                raise InputError(
                    f"{name}: {field} differs in shape: {shapes[field]} in item 0, {value.shape} in item {i}"
                )
            stacks.setdefault(field, Stack()).add(value[None])
    if not stacks:
        raise InputError(f"{name} has no items")
    return Source(name, Part(**{field: stack.array() for field, stack in stacks.items()}))


def _fields(item: Any, name: str) -> dict[str, Array]:
    """The fields of a part that an item of a data set holds."""
    if isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise InputError(f"{name}: an item has {len(item)} values, but must be x or (x, y)")
        item = dict(zip("xy", item, strict=False))
    elif not isinstance(item, Mapping):
        item = {"x": item}
    if other := next((key for key in item if key not in ("x", "y", "mask")), None) or ("x" not in item and "no x"):
        raise InputError(f"{name}: an item has {other!r}, but must be x, (x, y), or a mapping of x, y and mask")
    return {field: as_array(value, field) for field, value in item.items()}


def dataset_of(loader: DataLoader[Any]) -> Dataset[Any]:
    """The data set of a loader, without its batch size and order.

    Raises:
        InputError: the loader chooses its items by a sampler of its own.
    """
    if not isinstance(loader.dataset, IterableDataset) and not isinstance(
        loader.sampler, SequentialSampler | RandomSampler
    ):
        raise InputError(
            f"a loader's data set is taken whole, but this one chooses items by a {type(loader.sampler).__name__}; "
            "give torch.utils.data.Subset(dataset, indices)"
        )
    return loader.dataset


def as_array(values: Any, what: str) -> Array:
    """An array, tensor, sparse matrix, image or number as a NumPy array.

    Raises:
        InputError: the values are a masked array, whose mask has the opposite meaning.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise InputError(f"{what} is a masked array; give {what}.filled(0), and a mask that is True where observed")
    if isinstance(values, Tensor):
        values = values.detach().to_dense().cpu()
        return np.asarray(values.float() if values.dtype == torch.bfloat16 else values)
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)


def clean(part: Part, name: str, mask: Any = None, columns: Sequence[Column] | None = None) -> Part:
    """Validates a part and converts it to the types that splits hold.

    Args:
        part: the part as it was read.
        name: its name in messages.
        mask: "nan", the default, since NaN marks unobserved entries in any case; an array otherwise.
        columns: the columns of x, if it is a table, for messages.

    Returns:
        x in the smallest type that holds it, 0 where it is not observed.

    Raises:
        InputError: x or the mask have a wrong type or shape, or values that are not finite.
    """
    x, observed = part.x, part.mask
    if x.dtype.kind not in "buif":
        raise InputError(f"{name}: x has dtype {x.dtype}, but real numbers, integers or truth values are expected")
    if x.ndim < 2:
        raise InputError(f"{name}: x has shape {x.shape}, but (N, ...) is expected; for one feature give x[:, None]")
    if x.size == 0:
        raise InputError(f"{name}: x is empty, of shape {x.shape}")
    if isinstance(mask, str) and mask != "nan":
        raise InputError(f"mask was given {mask!r}; an array, or 'nan', is expected")
    if observed is not None and (observed.dtype != bool or observed.shape != x.shape):
        raise InputError(
            f"{name}: the mask is {observed.dtype} of shape {observed.shape}, but bool of shape {x.shape} is needed"
        )
    if mask is not None or any(_gaps(x[rows]).any() for rows in pieces(x)):
        observed = mapped(lambda x, given: ~_gaps(x) & (True if given is None else given), x, observed, dtype=bool)
    dtype = _smallest(x, name, observed, columns)
    if part.y is not None and len(part.y) != len(x):
        raise InputError(f"{name}: there are {len(part.y)} labels but {len(x)} datapoints")
    in_place = isinstance(x, np.memmap) and observed is None and x.dtype == dtype and x.flags.c_contiguous
    return part._replace(x=x if in_place else mapped(_filled, x, observed, dtype=dtype), mask=observed)


def _gaps(x: Array) -> Array:
    return np.isnan(x) if x.dtype.kind == "f" else np.zeros(x.shape, bool)


def _filled(x: Array, observed: Array | None) -> Array:
    """The values of x, 0 where it is not observed."""
    return x if observed is None else np.where(observed, x, np.zeros((), x.dtype))


def _smallest(x: Array, name: str, observed: Array | None, columns: Sequence[Column] | None) -> type[np.generic]:
    """The smallest type that holds the observed values of x.

    Raises:
        InputError: there is none.
    """
    if x.dtype.kind == "b":
        return np.uint8
    if x.dtype.kind == "f":
        _validate_float32(x, name, observed, columns)
        return np.float32
    ranges = [(int(filled.min()), int(filled.max())) for filled in _in_pieces(x, observed)]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= min(np.iinfo(dtype).max, 2**24):
            return dtype
    raise InputError(
        f"{name}: the integers lie in [{low}, {high}], but float32 is exact to 2**24 only; subtract "
        "their mean and give floats"
    )


def _in_pieces(x: Array, observed: Array | None) -> Iterator[Array]:
    """The values of x piece by piece, 0 where it is not observed."""
    return (_filled(x[rows], None if observed is None else observed[rows]) for rows in pieces(x))


def _validate_float32(x: Array, name: str, observed: Array | None, columns: Sequence[Column] | None) -> None:
    """Refuses values that float32 does not hold, and entries whose variation it rounds off, as seconds since 1970."""
    error, high, low = np.zeros(x.shape[1:]), np.full(x.shape[1:], -np.inf), np.full(x.shape[1:], np.inf)
    infinite = 0
    first: tuple[int, ...] = ()
    for rows in pieces(x):
        given, where = x[rows], True if observed is None else observed[rows]
        with np.errstate(over="ignore"):
            rounded = given.astype(np.float32)
        bad = np.argwhere(~np.isfinite(rounded) & where)
        if len(bad) and not infinite:
            first = (rows.start + int(bad[0, 0]), *bad[0, 1:].tolist())
        infinite += len(bad)
        if not infinite and x.dtype.itemsize > rounded.dtype.itemsize:
            error = np.maximum(error, np.abs(given - rounded).max(0, where=where, initial=0.0))
            high = np.maximum(high, given.max(0, where=where, initial=-np.inf))
            low = np.minimum(low, given.min(0, where=where, initial=np.inf))
    if infinite:
        of = f" of the column {columns[first[1]].name!r}" if columns else ""
        raise InputError(
            f"{name}: {infinite} of the observed values are infinite in float32, the first at index {first}{of}; "
            "remove them, or put NaN in the place of what is missing"
        )
    spread, size = high - low, np.maximum(np.abs(high), np.abs(low))
    lost = (error > 1e-2 * spread) & (spread > 1e-12 * size)  # smaller spreads are float64 rounding
    if lost.any():
        first = tuple(int(index) for index in np.argwhere(lost)[0])
        raise InputError(
            f"{name}: {int(lost.sum())} entries of x are lost to rounding, the first at index {first}, with values "
            f"near {size[first]:.4g} that differ by {spread[first]:.2g}, which float32 rounds by {error[first]:.2g}; "
            "subtract their mean first"
        )


def _read_numpy(path: Path, roles: Mapping[str, str]) -> Source:
    labels = roles.get("labels")
    with _reading(path, "a whole .npy or .npz file of numbers (no objects) is expected"):
        arrays = _archive(path) if zipfile.is_zipfile(path) else {"x": _array_file(path)}
    if len(arrays) == 1 and labels is None:
        return Source(path.name, Part(next(iter(arrays.values()))))
    return _split_archive(path, arrays, labels or "y")


def _array_file(path: Path) -> Array:
    with path.open("rb") as file:
        _validate_size(file, path.stat().st_size)
    return open_array(path)


def _archive(path: Path) -> dict[str, Array]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                raise ValueError(f"its member {name!r} is no array")
            if member.file_size > DEFLATED * member.compress_size:
                raise ValueError(f"its member {name!r} claims {member.file_size:,} bytes in {member.compress_size:,}")
            with archive.open(member) as file:
                _validate_size(file, member.file_size)
            with archive.open(member) as file:
                arrays[name] = unpacked(file)
    return arrays


def _validate_size(file: IO[bytes], size: int) -> None:
    """Refuses an array that is larger than its file, before memory is reserved for it.

    Raises:
        ValueError: it is.
    """
    shape, _, dtype = header_of(file)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"it holds {size:,} bytes, but says that it is an array of shape {shape}")


def _split_archive(path: Path, arrays: Mapping[str, Array], labels: str) -> Source:
    """Sorts the arrays of an .npz archive into parts by their names."""
    parts: dict[str, Part] = {}
    used: list[str] = []
    for part, ending in {"train": ""}.items() if "x" in arrays else _ENDINGS.items():
        keys = [f"x{ending}", f"{labels}{ending}", f"mask{ending}"]
        if keys[0] in arrays:
            parts[part] = Part(*(arrays.get(key) for key in keys))
            used += keys
    if "train" not in parts:
        raise InputError(f"{path}: expected an array x, or x_train, but it holds {', '.join(arrays) or 'none'}")
    for key in arrays:
        if key not in used:
            raise InputError(f"{path}: there is no use for an array {key!r}; {choices(key, used)}")
    if labels != "y" and all(part.y is None for part in parts.values()):
        raise InputError(f"{path}: there are no labels {labels!r}; it holds {', '.join(arrays)}")
    return Source(path.name, parts["train"], parts.get("validation"), parts.get("test"))


def _read_table(path: Path, roles: Mapping[str, str]) -> Source:
    return read_frame(open_table(path), path.name, str(path), roles)


def open_table(path: Path) -> Table:
    """The table of a file, which is read in pieces if it is large.

    Raises:
        InputError: it cannot be read.
    """
    with _reading_table(path):
        read, in_pieces = _TABLES[ending(path)]
        large = in_pieces(path)
        table = large or as_frame(read(path), str(path))
    if is_csv(path):
        _validate_header(path, table.columns)
    if large is None:
        return table
    return TableInPieces(large.columns, lambda names: _guarded(path, large.pieces(names)), large.index)


def _guarded(path: Path, frames: Iterator[Frame]) -> Iterator[Frame]:
    with _reading_table(path):
        yield from frames


def _reading_table(path: Path) -> AbstractContextManager[None]:
    return _reading(path, "a table with a row of column names is expected")


def opened(source: Any) -> Any:
    """The AnnData object in a file; anything else as it is."""
    if isinstance(source, str | Path) and ending(path := Path(source).expanduser()) == anndata.ENDING:
        with _reading(path, "an AnnData object is expected"):
            return anndata.read_h5ad(path)
    return source


def _read_h5ad(path: Path, roles: Mapping[str, str]) -> Source:
    return read_anndata(opened(path), roles, path.name, str(path))


def read_anndata(data: Any, roles: Mapping[str, str], name: str = "AnnData", where: str = "AnnData") -> Source:
    """Takes x and the columns of observations that are no part of it out of an AnnData object.

    Args:
        data: the object.
        roles: names of the columns of labels, ids and parts, and of the layer that is x, as in `read_path`.
        name: name of the source.
        where: where it is, for messages.
    """
    of_columns = {role: column for role, column in roles.items() if role != "layer"}
    return read_frame(anndata.frame_of(data, roles, where), name, where, of_columns)


def read_frame(frame: Table, name: str, where: str, roles: Mapping[str, str]) -> Source:
    """Takes the columns that are no part of x out of a data frame; its index, if it has names or words, has the ids.

    Args:
        frame: a table.
        name: name of the source.
        where: where it is, for messages; ids are words as a .csv file there has them, 007 and not 7.
        roles: names of the columns of labels, ids and parts, as in `read_path`.

    Raises:
        InputError: there is no such column.
    """
    whole = with_index(frame)
    index = whole.columns[: len(whole.columns) - len(frame.columns)]
    for role, column in roles.items():
        if column not in whole.columns:
            kind = role.replace("labels", "label")
            raise InputError(f"{where}: there is no {kind} column {column!r}; {choices(column, whole.columns)}")
    columns: list[Any] = [whole[roles[role]] if role in roles else None for role in ("labels", "id", "split")]
    y, ids, split = columns
    if ids is not None and is_csv(where):
        ids = read_text(where, roles["id"])[roles["id"]]
    elif ids is None and index:
        of_index = (rows for frame in frames_of(whole) for rows in frame.select(index).iter_rows())
        ids = np.array([", ".join(map(str, row)) for row in of_index])
    return Source(name, Part(frame.drop([*{*roles.values()} - {*index}]), y, ids=ids, split=split))


def is_csv(source: Any) -> bool:
    """Whether a source is a .csv file."""
    return isinstance(source, str | Path) and ending(Path(source)) in (".csv", ".csv.gz")


def read_text(path: str | Path, *columns: str) -> Frame:
    """The cells of a .csv file as they are written, of some columns or of all."""
    options = {"usecols": [*columns]} if columns else {}
    return as_frame(_read_csv(Path(path).expanduser(), dtype=str, keep_default_na=False, **options), str(path))


def _read_csv(path: Path, **options: Any) -> "pd.DataFrame":
    import pandas as pd

    first: dict[str, Any] = {"header": None, "nrows": 1, "dtype": str, "keep_default_na": False}
    names = pd.read_csv(path, skipinitialspace=True, **first).iloc[0].tolist()
    if len(names) == 1 and (separator := next((each for each in ";\t" if each in names[0]), None)):
        options["sep"], names = separator, names[0].split(separator)
    if twice := next((name for i, name in enumerate(names) if name and name in names[:i]), None):
        raise InputError(f"{path}: two columns have the name {twice!r}; rename one")
    with warnings.catch_warnings():
        # Without index_col=False a column that the header does not name becomes the index and is lost.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(path, index_col=False, skipinitialspace=True, **options)


def _read_arrow(path: Path) -> "pd.DataFrame":
    from pyarrow import feather, parquet

    frame: pd.DataFrame = as_pandas(
        (parquet if ending(path) == ".parquet" else feather).read_table(path, memory_map=False)
    )
    return frame


def _validate_header(path: Path, columns: list[str]) -> None:
    unnamed = [i for i, name in enumerate(columns) if name.startswith("Unnamed: ")]
    if unnamed:
        raise InputError(f"{path}: column {unnamed[0]} has no name; if it numbers the rows, write the file without it")
    # A data frame without column names is written with the valid header 0, 1, 2, ...
    if all(map(is_number, columns)) and columns != [str(i) for i in range(len(columns))]:
        raise InputError(f"{path}: the first row holds numbers ({columns[0]}, ...), but column names are expected")


def _read_folder(path: Path, resize: tuple[int, int] | None) -> Source:
    files = image_files(path)
    if not files:
        raise InputError(f"{path}: there are no images ({', '.join(IMAGES)}) in this folder")
    warn_of_others(path)
    names = [file.relative_to(path).parts[0] for file in files if file.parent != path]
    if 0 < len(names) < len(files):
        stray = next(file for file in files if file.parent == path)
        raise InputError(f"{stray}: this image lies beside the sub-folders of the classes; move it into one of them")
    return Source(path.name, Part(stack_images(files, resize), np.array(names) if names else None))


@contextmanager
def _reading(path: Path, expected: str) -> Iterator[None]:
    """Turns whatever a damaged file does to a reader into one line that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # NumPy takes a file that is not an array for a pickle, and advises to load it.
        reason = ValueError("it holds no array") if "magic" in str(error) else error
        raise unreadable(path, reason, expected) from error


def unreadable(path: Path, error: Exception, expected: str) -> InputError:
    """The error for a file that cannot be read as expected."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        reason = "its text is not in UTF-8"
        expected = "open it in the encoding that it has, such as Latin-1, and save it in UTF-8"
    return InputError(f"{path}: cannot be read ({reason}); {expected}")


_ENDINGS = {part: f"_{part}" for part in ("train", "validation", "test")}
_TABLES: dict[str, tuple[Callable[[Path], Any], Callable[[Path], TableInPieces | None]]] = {
    ".csv": (_read_csv, partial(large_csv, read=_read_csv)),
    ".csv.gz": (_read_csv, partial(large_csv, read=_read_csv)),
    ".parquet": (_read_arrow, large_parquet),
    ".feather": (_read_arrow, large_feather),
}
"""How each kind of table is read whole, and in pieces if it is large."""
_READERS: dict[str, Callable[[Path, Mapping[str, str]], Source]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    **dict.fromkeys(_TABLES, _read_table),
    anndata.ENDING: _read_h5ad,
}
