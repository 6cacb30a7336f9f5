"""Loading named data sets, files and arrays into memory: splits, binarization, masks.

    data = load_data("mnist", binarize="dynamic")
    for x, y, mask in data.train.batches(128, shuffle=True):
        ...

Data stay on their device in the smallest type that holds them and are converted batch by batch. The datapoints and the
noise of the validation and test splits are drawn on the CPU at a separate *data seed*, so these splits are the same for
every training seed and every device.
"""

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from narwhals.stable.v2.dependencies import is_into_dataframe, is_polars_lazyframe
from pydantic import Field, WithJsonSchema
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyrolatent.data import anndata
from pyrolatent.data.files import (
    Part,
    Source,
    as_array,
    clean,
    dataset_of,
    is_csv,
    opened,
    read_anndata,
    read_dataset,
    read_frame,
    read_path,
)
from pyrolatent.data.images import Layout, arranged, factor_like, largest_of, layout_of, require_one_unit
from pyrolatent.data.labels import encode_labels
from pyrolatent.data.named_sets import NAMED, read_named
from pyrolatent.data.parts import HELD, choose, duplicates, hold_out, rows_by_word, rows_given, take
from pyrolatent.data.splits import PARTS, Data, Split
from pyrolatent.data.store import Array, MappedFile, bytes_of, limited, mapped, unlimited
from pyrolatent.data.tables import (
    Column,
    Frame,
    Kind,
    Table,
    TableShape,
    as_frame,
    as_words,
    cells_of,
    columns_record,
    encode,
    event_shape_of,
    frame_of_words,
    is_table,
    numbered,
    with_index,
    with_kinds,
)
from pyrolatent.declaration import Component, choices
from pyrolatent.errors import SEEDS, InputError

Binarize = Literal["dynamic", "static", "threshold", "relaxed", "none"]
Dequantize = Literal["uniform", "none"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Held = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                {"type": "array", "items": {"type": "integer", "minimum": 0}},
                {"type": "string"},
            ]
        }
    ),
]
ROLES = {"labels": "y", "id": "ids", "split": "split"}
"""Options that name a column which is not of x, and the fields of a part that hold it."""
NAMES = (*ROLES, "layer")
"""Options that name a part of the source."""


def load_data(
    source: Any,
    *,
    binarize: Binarize | None = None,
    dequantize: Dequantize | None = None,
    validation: Held | None = None,
    test: Held | None = None,
    split: Any = None,
    labels: Any = None,
    classes: Annotated[int, Field(gt=0)] | None = None,
    kinds: dict[str, Kind] | None = None,
    mask: Any = None,
    stratified: bool | None = None,
    id: Any = None,
    layer: str | None = None,
    layout: Layout | None = None,
    shape: list[Annotated[int, Field(gt=0)]] | None = None,
    resize: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None,
    labelled: Annotated[int, Field(gt=0)] | None = None,
    labelled_share: Fraction | None = None,
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 0,
    data_dir: str | Path | None = None,
    memory: int | str | None = None,
) -> Data:
    """Loads a named data set, a file, a folder of images, a table, an array or a `Dataset`, and splits it.

    Arrays of shape (N, D) have the event shape (D,). Images of any type have their channels first. uint8 arrays with
    three or more axes are images, converted from 0..255 to [0, 1], or binary if they hold only 0 and 1. Other integers
    are counts.

    Args:
        source: one of

            - a name: digits, mnist, fashion-mnist, kmnist, emnist, omniglot, cifar10, svhn, binarized-mnist;
            - a file: .npy, .npz (x, y, mask, or x_train, y_train, x_test, ...), or a table with names of columns: .csv,
              .csv.gz, .parquet, .feather; or .h5ad;
            - a folder of images of one size, whose sub-folders, if any, are the classes;
            - an array, tensor or sparse matrix, a data frame of pandas, polars or Arrow, or an AnnData object, whose
              variables are the columns of a table and whose columns of observations are labels, ids or parts;
            - a `Dataset` or `DataLoader`, whose items are x, (x, y), or mappings of x and possibly y and mask; of a
              loader the data set alone is taken, and what is iterated over needs validation and test data beside it;
            - a mapping of one of the first three to its options, as in a declaration.
        binarize: treatment of grey values p in [0, 1]. "dynamic": 1 with probability p, drawn anew for each training
            batch and once for validation and test; "static": drawn once for all; "threshold": 1 where p > 1/2;
            "relaxed": kept, and trained as a cross-entropy; "none": kept. None is "dynamic" for the named data sets of
            handwriting and clothing unless they are dequantized, else "none".
        dequantize: "uniform" turns an integer k of L levels into (k + u) / L with u ~ Uniform[0, 1), drawn anew for
            each training batch. L is 256 for uint8, 17 for digits, and for other counts one more than the largest.
        validation: the part for validation: the fraction that is drawn after the test part, None being 0.1; a list of
            numbers of rows; or a file, an array, a table, or x and its labels as (x, labels).
        test: the part for test, likewise. A source with its own split takes neither.
        split: a column of a table, or an array, of the words train, validation and test.
        labels: an array, (N,) words or integers of classes, or vectors (N, label_dim); or the name of the column of a
            table or of an array of a file. Classes are those that occur, numbered in sorted order; a blank, NaN or -1
            is unknown.
        classes: number of classes, of which some may not occur; integers below it keep their numbers.
        kinds: kinds of columns of a table by their names, the column of labels among them: "real", "positive", "count",
            "binary" or "category". Without, they are inferred.
        mask: bool array of x's shape, or a table with its columns, True where observed; NaN is not observed in any
            case.
        stratified: whether parts are held out of each class in proportion, as near as whole numbers allow; None is so
            for your own data of classes, and not for the named data sets.
        id: a column of a table, or an array, of names of the datapoints, which results have beside numbers of rows.
        layer: the layer of an AnnData object that is x; None is X.
        layout: where the channels of images (N, ...) are, "channels_first" or "channels_last"; None is last where the
            last of four axes has 1, 3 or 4 entries and the second has neither 1, 3 nor as many as the last.
        shape: shape of a datapoint whose entries are a flat row, such as [28, 28]; whole numbers from 0 to 255 are then
            images in bytes.
        resize: height and width to which the images of a folder are resized.
        labelled: number of training labels to keep, as balanced over classes as possible, drawn at the data seed; the
            others become -1, which is unknown.
        labelled_share: datapoints with a known label are repeated until they are this share of the training data, so
            that every batch contains some.
        seed: the data seed, of the splits and of all noise that is drawn once.
        data_dir: directory of named data sets, overriding a declaration; None is the environment variable
            PYROLATENT_DATA, else the user's cache.
        memory: the memory that data may take, in bytes or as "2GB"; None is half of the machine's. Larger data lie in
            files while they are used: an .npy file whose values need no conversion where it is, everything else in
            temporary files in the directory above. Numbers are the same with any limit.

    Raises:
        InputError: a name or option is unknown, a file cannot be read, or the data cannot be modelled.
    """
    options: dict[str, Any] = {
        "binarize": binarize, "dequantize": dequantize, "validation": validation, "test": test, "split": split,
        "labels": labels, "id": id, "classes": classes, "kinds": kinds, "mask": mask, "stratified": stratified,
        "layer": layer, "layout": layout, "shape": shape, "resize": resize, "labelled": labelled,
        "labelled_share": labelled_share, "seed": seed or None, "data_dir": data_dir, "memory": memory,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(source, Mapping):
        source, declared = _only(source)
        if twice := sorted((given.keys() & declared.keys()) - {"data_dir"}):
            raise InputError(f"{twice[0]} is declared for {source} and given beside it; give it once")
        given = {name: value for name, value in declared.items() if value is not None} | given
    given |= {role: str(given[role]) for role in ROLES if type(given.get(role)) is int}  # columns may be named so
    given = Component(load_data, ("source",)).validate(given, f"data.{source}" if isinstance(source, str) else "data")
    if "memory" in given:
        given["memory"] = bytes_of(given["memory"])
    with torch.inference_mode(False), limited(given.get("memory")):  # gradients cannot pass through inference tensors
        return _assemble(*_read(source, given), given)


def load_rows(
    source: Any,
    like: Data | Mapping[str, Any],
    *,
    labels: Any = None,
    mask: Any = None,
    memory: int | str | None = None,
) -> Split:
    """Loads data to apply a fitted model to, whole and as its training data were: without parts of their own.

    The columns of a table are matched by name, whatever their order. Columns of labels, ids or parts, as in the
    training data, may be there or not.

    Args:
        source: a file, a folder, a table, an array or a `Dataset`, as in `load_data`.
        like: the data that the model was trained on, or their record, as in `Run.record["data"]`.
        labels: an array of labels in the place of those of the source: codes, or words of the training data.
        mask: bool array of the source's shape, or a table with its columns, True where observed; NaN is not observed in
            any case.
        memory: the memory that the data may take, as in `load_data`.

    Raises:
        InputError: the data cannot be read, or differ from the training data in columns, words or shape.
    """
    with limited(None if memory is None else bytes_of(memory)):
        return _rows(source, like.record if isinstance(like, Data) else like, labels, mask)[0]


def load_table(source: Any, record: Mapping[str, Any]) -> tuple[Split, Frame | None]:
    """Loads data as `load_rows` does, in memory, with the table as it is, None if they are no table."""
    with unlimited():
        split, table = _rows(source, record)
    return split, cast(Frame | None, table)


def _rows(source: Any, record: Mapping[str, Any], labels: Any = None, mask: Any = None) -> tuple[Split, Table | None]:
    roles = record.get("roles") or {}
    archive = isinstance(source, str | Path) and str(source).endswith(".npz")
    folder = isinstance(source, str | Path) and Path(source).is_dir()
    source = opened(source)
    annotated = anndata.is_anndata(source)
    named = {
        role: column
        for role, column in roles.items()
        if archive or (annotated and (role == "layer" or column in source.obs))
    }
    read, _ = _read_own(source, named, record.get("resize") if folder else None)
    if read.validation or read.test:
        raise InputError(f"{read.name} has parts of its own; give one of them")
    part, columns, frame = read.train, event_shape_of(record["event_shape"], record.get("columns")), None
    if mask is not None and not is_table(part.x):
        part = part._replace(mask=as_array(mask, "mask"))
    if is_table(part.x):
        frame = part.x
        whole = with_index(frame)
        present = {role: roles[role] for role in ROLES if roles.get(role) in whole.columns and not annotated}
        if present:
            part = read_frame(frame, read.name, str(source) if is_csv(source) else read.name, present).train
        frame = whole
        known = columns.columns if isinstance(columns, TableShape) else ()
        (x,), _ = encode({read.name: part.x}, known)
        if mask is not None:
            part = part._replace(mask=_mask_of(mask, part.x, [column.name for column in known]))
        part = part._replace(x=x)
    classes = record.get("classes")
    if labels is not None:
        y: Any = as_array(labels, "labels")
        codes = cells_of(y, "labels", read.name) if classes and y.ndim == 1 else None
        if isinstance(codes, np.ndarray):
            words = {str(code): word for code, word in enumerate(classes or ())} | {"-1": None, None: None}
            y = np.array([words.get(code, code) for code in as_words(codes)], dtype="O")
        part = part._replace(y=y)
    if part.x.shape[1:] != columns and part.x.dtype.kind in "buif":
        part = _with_channels_first(part, record.get("shape"), record.get("layout"), read.name)
    dtype, part = part.x.dtype, clean(part, read.name, columns=getattr(columns, "columns", None))
    if part.x.shape[1:] != columns:
        raise InputError(f"{read.name}: x has shape {part.x.shape}, but the training data {('N', *columns)}")
    if part.y is not None:
        kind: Kind | None = "category" if classes else "real" if record.get("label_dim") else None
        (y,), _ = encode_labels({read.name: part.y}, kind=kind, known=None if classes is None else tuple(classes))
        part = part._replace(y=y)
    factor = factor_like(part.x, dtype, record)
    if largest := record.get("largest"):  # older records lack it
        require_one_unit(part.x, factor, largest, read.name)
    _require_unit_interval(record["binarize"], {"train": part}, factor, read.name)
    split = _as_split(part, factor, record["levels"])
    generator = torch.Generator().manual_seed(record["seed"])
    return _watched(_prepare(split, record["binarize"], record["dequantize"])._fixed(generator), part), frame


def _mask_of(mask: Any, x: Table, names: Sequence[str]) -> Array:
    """The mask of the named columns of a table; a table by its names, an array in the order of the table."""
    if is_into_dataframe(mask):
        given = as_frame(mask, "mask")
        if missing := [name for name in names if name not in given.columns]:
            raise InputError(f"the mask lacks {', '.join(map(repr, missing))}; its columns must be {', '.join(names)}")
        return given.select(names).to_numpy()
    array = as_array(mask, "mask")
    same = array.ndim == 2 and array.shape[1] == len(names)  # another shape is refused later
    return array[:, [x.columns.index(name) for name in names]] if same else array


def _only(declaration: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if len(declaration) != 1:
        listed = ", ".join(map(str, declaration)) or "none"
        raise InputError(f"data takes one source with its options, but was given {len(declaration)}: {listed}")
    ((source, options),) = declaration.items()
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"data.{source} takes its options as a mapping, but was given {options!r}")
    return source, options or {}


def _read(source: Any, given: dict[str, Any]) -> tuple[Source, str | None]:
    """The arrays of a source and of parts given beside it, and what declares the source, if that is possible."""
    key: str | None
    roles = {role: given[role] for role in NAMES if isinstance(given.get(role), str)}
    if isinstance(source, str) and source in NAMED:
        for option in (*NAMES, "mask"):
            if option in given:
                raise InputError(f"{source} has labels and a mask of its own or none; {option} goes with your own data")
        read, key = read_named(source, given.get("data_dir")), source
    else:
        read, key = _read_own(source, roles, given.get("resize"))
        if "data_dir" in given:
            raise InputError(f"data_dir is where named data sets are, but {read.name} is your own; leave it out")
    beside = {
        field: as_array(given[option], option)
        for option, field in (*ROLES.items(), ("mask", "mask"))
        if option in given and not isinstance(given[option], str)
    }
    if single := next((option for option, field in ROLES.items() if field in beside and not beside[field].ndim), None):
        raise InputError(f"{single} was given {given[single]!r}; the name of a column, or an array, is expected")
    if beside and read.test is not None:
        raise InputError(f"{read.name} has a test part of its own; put labels and masks for each part into the file")
    if "mask" in beside and is_table(read.train.x):
        beside["mask"] = _mask_of(given["mask"], read.train.x, read.train.x.columns)
    read = read._replace(train=read.train._replace(**beside))
    streamed = getattr(source, "dataset", source)
    if isinstance(streamed, IterableDataset) and any(_in_rows(given.get(held)) for held in HELD):
        raise InputError(
            f"{read.name} has no numbered items to hold out; give validation and test data of its own kind"
        )
    for held in HELD:
        value = given.get(held)
        if value is None or _is_fraction(value, held):
            continue
        if getattr(read, held) is not None:
            raise InputError(f"{read.name} has a {held} part of its own; leave {held} out")
        if (rows := rows_given(value)) is not None:
            given[held] = rows
            continue
        part, path = _read_own(value, roles, given.get("resize"))
        if part.validation or part.test:
            raise InputError(f"{part.name} has parts of its own, and so cannot be the {held} part of {read.name}")
        given[held] = path
        parts: dict[str, Any] = {held: part.train}
        read, key = read._replace(**parts), key if path else None
    return read, None if beside else key


def _in_rows(value: Any) -> bool:
    """Whether a part is held out of the rows of a source, rather than data of its own."""
    return value is None or isinstance(value, int | float) or rows_given(value) is not None


def _is_fraction(value: Any, held: str) -> bool:
    """Whether a part is declared as a fraction of the rows.

    Raises:
        InputError: it is a number that is none.
    """
    if not isinstance(value, int | float):
        return False
    if not 0 < value < 1:
        raise InputError(
            f"{held} was given {value!r}; a fraction between 0 and 1, numbers of rows, or data are expected"
        )
    return True


def _read_own(source: Any, roles: Mapping[str, str], resize: Any = None) -> tuple[Source, str | None]:
    """The contents of the user's own data, and their path if they are a file."""
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.exists() and isinstance(source, str) and not path.suffix and len(path.parts) == 1:
            raise InputError(
                f"there is no data set {source!r}; {choices(source, NAMED)}; or the path of a .npy, .npz, .csv "
                "or .parquet file or of a folder of images"
            )
        return read_path(path, roles, resize), str(path.resolve())
    if resize:
        raise InputError("resize is of the images in a folder; leave it out")
    if anndata.is_anndata(source):
        return read_anndata(source, roles), None
    if is_into_dataframe(source) or is_polars_lazyframe(source):
        return read_frame(as_frame(source, "table"), "table", "table", roles), None
    if roles:
        ((role, name), *_) = roles.items()
        raise InputError(f"{role}={name!r} names a column, but the data are in memory; give the {role} themselves")
    if isinstance(source, DataLoader):
        source = dataset_of(source)
    if isinstance(source, Dataset):
        return read_dataset(source), None
    if isinstance(source, tuple) and len(source) == 2:
        read, _ = _read_own(source[0], roles)
        return read._replace(train=read.train._replace(y=as_array(source[1], "labels"))), None
    if isinstance(source, np.ndarray | Tensor) or hasattr(source, "toarray"):
        x = as_array(source, "x")
        return Source("array", Part(frame_of_words(x, "array") if x.dtype.kind in "OUT" and x.ndim == 2 else x)), None
    raise InputError(f"data cannot be a {type(source).__name__}; give a name, a path, a table, an array or a Dataset")


def _assemble(source: Source, key: str | None, given: dict[str, Any]) -> Data:
    source, columns = _encoded(source, given.get("kinds", {}))
    source, columns, layout = _arranged(source, columns, given)
    parts = {
        name: clean(part, _part_name(source.name, name), given.get("mask"), columns)
        for name in PARTS
        if (part := getattr(source, name))
    }
    parts, classes = _with_codes(parts, source.name, given)
    levels, factor = _scale(source, parts)
    for name, part in parts.items():
        require_one_unit(part.x, factor, largest_of(parts["train"].x, factor), _part_name(source.name, name))
    binarize, dequantize = _noise(source, parts, given, factor, levels)
    seed = given.get("seed", 0)
    # Always on the CPU, so that a seed gives the same data everywhere.
    generator = torch.Generator().manual_seed(seed)
    whole = _split({name: _as_split(part, factor, levels) for name, part in parts.items()}, source, given, generator)
    repeated = duplicates(whole)
    # Training comes last, so that the evaluation splits do not depend on whether it draws here or in each batch.
    fixed = {name: _prepare(whole[name], binarize, dequantize)._fixed(generator) for name in ("validation", "test")}
    train = _prepare(whole["train"], binarize, dequantize)
    splits = {"train": train._fixed(generator) if binarize == "static" else train, **fixed}
    if "labelled" in given:
        y = _forget(splits["train"].y, given["labelled"], source.name, torch.Generator().manual_seed(seed))
        splits["train"] = dataclasses.replace(splits["train"], y=y)
    if "labelled_share" in given:
        splits["train"] = _repeat_labelled(splits["train"], given["labelled_share"], source.name)

    splits = {name: _watched(split, parts.get(name)) for name, split in splits.items()}
    _warn_of_unobserved(splits["train"].mask, source.name)
    event_shape = _event_shape(splits["train"], columns, given.get("kinds"))
    _validate_kinds(given, event_shape, source.name)
    options = {name: value for name, value in given.items() if key and value != _default(name, source, dequantize)}
    options |= {name: list(value) for name, value in options.items() if isinstance(value, tuple)}
    if "data_dir" in options:
        options["data_dir"] = str(Path(options["data_dir"]).expanduser().resolve())
    label_dim = len(classes) if classes is not None else 0 if train.y is None else train.y.shape[1]
    record = {
        "source": key or source.name,
        "binarize": binarize,
        "dequantize": dequantize,
        "labelled": given.get("labelled"),
        "labelled_share": given.get("labelled_share"),
        "seed": seed,
        "sizes": {name: len(split) for name, split in splits.items()},
        "factor": factor,
        "levels": levels,
        "largest": largest_of(parts["train"].x, factor),
        "event_shape": list(event_shape),
        "columns": columns_record(event_shape.columns) if isinstance(event_shape, TableShape) else None,
        "layout": layout,
        "shape": given.get("shape"),
        "resize": None if given.get("resize") is None else list(given["resize"]),
        "roles": {role: given[role] for role in NAMES if isinstance(given.get(role), str)},
        "label_dim": label_dim,
        "classes": None if classes is None else list(classes),
        "duplicates": repeated,
        "training_sha256": _digest(splits["train"]),
        "evaluation_sha256": _digest(splits["validation"], splits["test"]),
    }
    return Data(
        name=source.name,
        event_shape=event_shape,
        label_dim=label_dim,
        binarize=binarize,
        dequantize=dequantize,
        declaration={key: options} if key and options else key,
        record=record,
        **splits,
    )


def _as_split(part: Part, factor: float, levels: int | None) -> Split:
    """A part in memory, with numbers and names of its rows."""
    ids = None if part.ids is None else tuple(word or "" for word in as_words(cells_of(part.ids, "id", "id")))
    if ids is not None and len(ids) != len(part.x):
        raise InputError(f"there are {len(ids)} ids but {len(part.x)} datapoints")
    x, y, mask = (None if field is None else torch.from_numpy(field) for field in (part.x, part.y, part.mask))
    return Split(cast(Tensor, x), y, mask, factor, levels=levels, rows=torch.arange(len(part.x)), ids=ids)


def _watched(split: Split, part: Part | None) -> Split:
    """A split that knows the user's file in which it lies, if it does."""
    path = None if part is None else getattr(part.x, "filename", None)
    if part is None or path is None or split.x.data_ptr() != part.x.ctypes.data:
        return split
    return dataclasses.replace(split, file=MappedFile.of(Path(path)))


def _split(
    whole: dict[str, Split], source: Source, given: Mapping[str, Any], generator: torch.Generator
) -> dict[str, Split]:
    """The three parts: those of the source, those of given rows, and the rest drawn at the data seed."""
    y = whole["train"].y
    classes = y is not None and not y.is_floating_point()
    stratified = given.get("stratified", classes and source.name not in NAMED)
    if stratified and not classes:
        raise InputError(f"{source.name} has no classes by which parts could be stratified; leave stratified out")
    rows = {held: given[held] for held in HELD if isinstance(given.get(held), list)}
    if source.train.split is not None:
        if rows or len(whole) > 1 or any(held in given for held in HELD):
            raise InputError(f"{source.name}: split says which rows are validation and test; leave both out")
        rows = rows_by_word(source.train.split, len(whole["train"]), source.name)
    if rows:
        whole |= choose(whole["train"], rows, source.name)
    for held in HELD:
        if held not in whole:
            fraction = given.get(held, 0.1)
            whole["train"], whole[held] = hold_out(whole["train"], fraction, held, source.name, generator, stratified)
        elif isinstance(given.get(held), float):
            raise InputError(f"{source.name} has a {held} part of its own; leave {held}={given[held]} out")
    return {name: whole[name] for name in PARTS}


def _encoded(source: Source, kinds: Mapping[str, Kind]) -> tuple[Source, tuple[Column, ...] | None]:
    """Turns data frames into arrays, with the columns of the table."""
    own = {name: part for name in PARTS if (part := getattr(source, name)) and is_table(part.x)}
    if not own:
        return source, None
    if other := next((name for name in PARTS if getattr(source, name) and name not in own), None):
        raise InputError(f"{_part_name(source.name, other)}: an array was given, but another part is a table")
    arrays, columns = encode({_part_name(source.name, name): part.x for name, part in own.items()}, kinds=kinds)
    if len({x.dtype.kind for x in arrays}) > 1:  # gaps and decimals are in some parts alone
        arrays = [mapped(np.asarray, x, dtype=np.float64) for x in arrays]
    coded = {name: part._replace(x=x) for (name, part), x in zip(own.items(), arrays, strict=True)}
    return source._replace(**coded), columns


def _arranged(
    source: Source, columns: tuple[Column, ...] | None, given: Mapping[str, Any]
) -> tuple[Source, tuple[Column, ...] | None, str | None]:
    """The source with channels first, the columns unless rows are shaped, and where the channels were."""
    shape, layout = given.get("shape"), given.get("layout")
    arrays = {name: part for name in PARTS if (part := getattr(source, name)) and part.x.dtype.kind in "buif"}
    if shape and any(column.categories for column in columns or ()):
        raise InputError(f"{source.name}: rows with words cannot have the shape {list(shape)}")
    moved: dict[str, Any] = {
        name: _with_channels_first(part, shape, layout, source.name) for name, part in arrays.items()
    }
    where = layout or (layout_of((1, *(shape or source.train.x.shape[1:]))) if arrays else None)
    return source._replace(**moved), None if shape else columns, where


def _with_channels_first(part: Part, shape: Sequence[int] | None, layout: Any, name: str) -> Part:
    x, mask = arranged(part.x, shape, layout, name), part.mask
    if mask is not None and mask.shape == part.x.shape:
        mask = arranged(mask, shape, layout, name).reshape(x.shape)
    return part._replace(x=x, mask=mask)


def _with_codes(
    parts: Mapping[str, Part], name: str, given: Mapping[str, Any]
) -> tuple[dict[str, Part], tuple[str, ...] | None]:
    """The parts with their labels encoded, and the words of the classes."""
    labels = {_part_name(name, part): of.y for part, of in parts.items() if of.y is not None}
    if len(labels) not in (0, len(parts)):
        without = next(part for part, of in parts.items() if of.y is None)
        raise InputError(f"{_part_name(name, without)}: either all parts have labels or none")
    if not labels:
        if "classes" in given:
            raise InputError(f"{name} has no labels, but classes was {given['classes']}; leave it out")
        return dict(parts), None
    codes, classes = encode_labels(labels, given.get("classes"), _kind_of_labels(given))
    return {part: of._replace(y=y) for (part, of), y in zip(parts.items(), codes, strict=True)}, classes


def _kind_of_labels(given: Mapping[str, Any]) -> Kind | None:
    """The declared kind of the column of labels."""
    labels = given.get("labels")
    return given.get("kinds", {}).get(labels) if isinstance(labels, str) else None


def _event_shape(train: Split, columns: tuple[Column, ...] | None, kinds: Mapping[str, Kind] | None) -> tuple[int, ...]:
    """The shape of one datapoint, with the columns of a table, whose kinds follow from the training part."""
    shape = train.x.shape[1:]
    if len(shape) != 1:
        return tuple(shape)
    columns = columns or numbered(shape[0])
    if train.noise:
        kind: Kind = "binary" if train.noise == "binarize" else "real"
        return TableShape(shape, columns=[dataclasses.replace(column, kind=kind) for column in columns])
    return TableShape(shape, columns=with_kinds(columns, train.x.numpy(), _array(train.mask), kinds))


def _validate_kinds(given: Mapping[str, Any], event_shape: tuple[int, ...], name: str) -> None:
    """Requires declared kinds to be of columns of a table, or of the column of labels."""
    names = [column.name for column in event_shape.columns] if isinstance(event_shape, TableShape) else []
    names += [labels] if isinstance(labels := given.get("labels"), str) else []
    if unknown := next((column for column in given.get("kinds", {}) if column not in names), None):
        known = choices(unknown, names) if names else "x is not a table"
        raise InputError(f"{name}: there is no column {unknown!r}, whose kind was declared; {known}")


def _default(option: str, source: Source, dequantize: str | None) -> Any:
    defaults = {"binarize": "none" if dequantize else source.binarize, "dequantize": "none", "seed": 0}
    return defaults.get(option, 0.1 if option in ("validation", "test") else None)


def _part_name(name: str, part: str) -> str:
    return name if part == "train" else f"{name} ({part})"


def _scale(source: Source, parts: Mapping[str, Part]) -> tuple[int | None, float]:
    """The number of levels of integer x, if any, and the factor that converts x; refuses parts that differ."""
    first = parts["train"].x
    for name, part in parts.items():
        if part.x.shape[1:] != first.shape[1:] or (part.x.dtype.kind == "f") != (first.dtype.kind == "f"):
            raise InputError(
                f"{_part_name(source.name, name)}: datapoints are {part.x.dtype} of shape {part.x.shape[1:]}, but "
                f"those of the training part are {first.dtype} of shape {first.shape[1:]}"
            )
    original = source.train.x.dtype
    if original.kind in "bf":
        return None, 1.0
    if source.levels:
        return source.levels, 1 / (source.levels - 1)
    low, high = _range(parts)
    if original == np.uint8:
        # Images that hold only 0 and 1 are binary, not nearly black.
        return 256, 1 / 255 if first.ndim > 2 and high > 1 else 1.0
    return (int(high) + 1 if low >= 0 else None), 1.0


def _noise(
    source: Source, parts: Mapping[str, Part], given: Mapping[str, Any], factor: float, levels: int | None
) -> tuple[str | None, str | None]:
    """The declared binarization and dequantization, or the source's defaults; refuses what is impossible."""
    dequantize = None if given.get("dequantize", "none") == "none" else given["dequantize"]
    declared = given.get("binarize", _default("binarize", source, dequantize))
    binarize = None if declared == "none" else declared
    if dequantize and binarize:
        raise InputError(
            f"{source.name}: binarize: {binarize} and dequantize: {dequantize} exclude each other; keep one"
        )
    if dequantize and levels is None:
        kind = source.train.x.dtype
        raise InputError(f"{source.name}: dequantize needs integers that are not negative, but x is {kind}")
    _require_unit_interval(binarize, parts, factor, source.name)
    return binarize, dequantize


def _require_unit_interval(binarize: str | None, parts: Mapping[str, Part], factor: float, name: str) -> None:
    """Refuses values that cannot be binarized."""
    low, high = (factor * value for value in _range(parts))
    if binarize and not 0 <= low <= high <= 1:
        raise InputError(
            f"{name}: binarize: {binarize} takes values in [0, 1], but x is in [{low:.4g}, {high:.4g}]; scale it"
        )


def _range(parts: Mapping[str, Part]) -> tuple[float, float]:
    return min(float(p.x.min()) for p in parts.values()), max(float(p.x.max()) for p in parts.values())


def _prepare(split: Split, binarize: str | None, dequantize: str | None) -> Split:
    """Thresholds the raw values of a split, or declares the noise that it draws."""
    if binarize == "threshold":
        ones = mapped(lambda x: x > 0.5 / split.factor, split.x.numpy(), dtype=np.uint8)
        return dataclasses.replace(split, x=torch.from_numpy(ones), factor=1.0)
    if binarize in ("dynamic", "static"):
        return dataclasses.replace(split, noise="binarize")
    return dataclasses.replace(split, noise="dequantize") if dequantize else split


def _digest(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        for field in (split.x, split.y, split.mask):
            digest.update(b"none" if field is None else f"{field.dtype} {tuple(field.shape)}".encode())
            if field is not None:
                digest.update(np.ascontiguousarray(field.numpy()).data)
    return digest.hexdigest()


def _forget(y: Tensor | None, labelled: int, name: str, generator: torch.Generator) -> Tensor:
    """Keeps `labelled` of the labels, classes in turn, and sets the others to -1."""
    if y is None or y.ndim != 1:
        raise InputError(f"{name} has no class labels of which labelled: {labelled} could be kept; leave labelled out")
    known = int((y >= 0).sum())
    if labelled > known:
        raise InputError(f"labelled was {labelled}, but {name} has {known} training labels")
    order = torch.randperm(len(y), generator=generator)
    order = order[y[order] >= 0]
    turn = torch.empty_like(y)  # position of each datapoint within its class
    for label in y[y >= 0].unique():
        members = order[y[order] == label]
        turn[members] = torch.arange(len(members))
    kept = order[turn[order].argsort(stable=True)[:labelled]]
    return torch.full_like(y, -1).scatter(0, kept, y[kept])


def _repeat_labelled(train: Split, share: float, name: str) -> Split:
    known = torch.tensor([]) if train.y is None or train.y.ndim != 1 else (train.y >= 0).nonzero().squeeze(1)
    unknown = len(train) - len(known)
    if not len(known) or not unknown:
        raise InputError(f"{name} has no known labels beside unknown ones, of which labelled_share is; leave it out")
    wanted = round(share / (1 - share) * unknown)
    return take(
        train, torch.cat([torch.arange(len(train)), known.repeat(-(-wanted // len(known)))[len(known) : wanted]])
    )


def _warn_of_unobserved(mask: Tensor | None, name: str) -> None:
    """Warns of entries of x that are observed in no training datapoint."""
    never = torch.empty(0) if mask is None else (~mask.any(0)).flatten().nonzero().flatten()
    if len(never):
        listed = ", ".join(map(str, never[:5].tolist())) + ", ..." * (len(never) > 5)
        warnings.warn(
            f"{name}: {len(never)} entries of x (from 0: {listed}) are observed in no training datapoint, so that "
            "nothing is learnt about them and imputed values are arbitrary; leave them out",
            stacklevel=4,
        )


def _array(field: Tensor | None) -> Array | None:
    return None if field is None else field.numpy()
