"""Labels: classes by words or numbers, of which some may be unknown, and vectors of real numbers."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pyrolatent.data.store import Array
from pyrolatent.data.tables import Cells, Kind, as_words, cells_of, in_order
from pyrolatent.declaration import choices
from pyrolatent.errors import InputError

CLASSES = 2**20
"""Largest number of classes; more are taken for identifiers and refused."""


def encode_labels(
    labels: Mapping[str, Any],
    classes: int | None = None,
    kind: Kind | None = None,
    known: tuple[str, ...] | None = None,
) -> tuple[list[Array], tuple[str, ...] | None]:
    """Encodes the labels of all parts of the data together.

    Words, integers and truth values are classes, numbered 0 to C - 1 in sorted order; a blank, NaN or -1 is unknown.
    Whole numbers are classes too if some labels are blank. Other real numbers are vectors.

    Args:
        labels: the labels of each part by its name in messages: (N,) or (N, 1) words or numbers, or (N, label_dim).
        classes: number of classes, of which some may not occur; integers below it keep their numbers. None for those
            that occur.
        kind: "category" or "binary" where labels are classes, another kind where they are numbers; None for the rule
            above.
        known: the words of the classes, if no others are allowed.

    Returns:
        The labels of each part, (N,), int64, -1 where unknown, or (N, label_dim), float32; and the words of the
        classes, None if the labels are vectors.

    Raises:
        InputError: the labels are neither classes nor finite vectors, or there are too many classes.
    """
    cells = {part: _cells(values, part) for part, values in labels.items()}
    first = next(iter(labels))
    if not _are_classes(cells.values(), kind):
        if classes is not None:
            raise InputError(f"{first}: classes was {classes}, but the labels are real numbers; leave it out")
        return [_vectors(values, part, kind) for part, values in cells.items()], None
    words = {part: _known(values, part) for part, values in cells.items()}
    found = {word for values in words.values() for word in values if word is not None}
    names = in_order(found) if known is None else known
    if new := [word for word in in_order(found) if word not in names]:
        raise InputError(f"{first}: there is no class {new[0]!r} in the training data; {choices(new[0], names)}")
    if len(names) > (classes or CLASSES):
        most = f"classes was {classes}" if classes else f"at most {CLASSES} can be told apart"
        raise InputError(f"{first}: there are {len(names)} classes ({', '.join(names[:5])}, ...), but {most}")
    if known is None and classes is None and len(found) == 1:
        unknown = sum(word is None for values in words.values() for word in values)
        others = f", and {unknown} are unknown (a blank or -1; give it as a word if it is a class)" * bool(unknown)
        warnings.warn(
            f"{first}: all known labels are {names[0]!r}{others}; declare the number of classes if there are more",
            stacklevel=5,
        )
    numbers = tuple(map(str, range(classes or 0)))
    names = numbers if {*names} <= {*numbers} else names + numbers[len(names) :]
    code = {None: -1} | {word: i for i, word in enumerate(names)}
    return [np.array([code[word] for word in values], np.int64) for values in words.values()], names


def _cells(values: Any, part: str) -> Cells:
    """Labels as numbers or words."""
    if not isinstance(values, np.ndarray) or values.dtype.kind in "OUTb":
        return cells_of(values.reshape(-1) if isinstance(values, np.ndarray) else values, "labels", part)
    if values.dtype.kind not in "uif" or values.ndim not in (1, 2):
        raise InputError(
            f"{part}: labels are {values.dtype} of shape {values.shape}; give (N,) integers or (N, label_dim)"
        )
    return values.reshape(-1) if values.dtype.kind != "f" and values.size == len(values) else values


def _are_classes(cells: Iterable[Cells], kind: Kind | None) -> bool:
    arrays = [values for values in cells if isinstance(values, np.ndarray)]
    if any(values.ndim > 1 for values in arrays):
        return False
    if kind or len(arrays) < len([*cells]):
        return kind in (None, "category", "binary")
    blank = any(np.isnan(values).any() for values in arrays if values.dtype.kind == "f")
    return all(values.dtype.kind != "f" or (blank and _whole(values)) for values in arrays)


def _whole(values: Array) -> bool:
    known = values[np.isfinite(values)]
    return bool((known == known.round()).all())


def _known(values: Cells, part: str) -> list[str | None]:
    """Labels as words, None where unknown."""
    if isinstance(values, list):
        return values
    low = np.nanmin(values, initial=0)
    if low < -1:
        raise InputError(f"{part}: labels go down to {low:g}, but classes are numbers from 0, and -1 is unknown")
    return [None if word == "-1" else word for word in as_words(values)]


def _vectors(values: Cells, part: str, kind: Kind | None) -> Array:
    if isinstance(values, list):
        raise InputError(f"{part}: labels are words, which are no numbers of kind {kind}")
    y = values.astype(np.float32).reshape(len(values), -1)
    if not np.isfinite(y).all():
        raise InputError(
            f"{part}: {int((~np.isfinite(y)).sum())} label values are NaN or infinite; a real number cannot be "
            "unknown, so remove these rows"
        )
    if values.ndim == 1 and kind is None and _whole(y):
        raise InputError(
            f"{part}: labels are {values.dtype} of shape {values.shape}, but all whole numbers; give integers if they "
            "are classes, or shape (N, 1) if they are quantities; of a column, declare its kind, category or real"
        )
    return y
