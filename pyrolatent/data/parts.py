"""Which datapoints are for training, validation and test: rows of the user's own choice, or drawn at the data seed."""

import dataclasses
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrolatent.data.splits import PARTS, Split
from pyrolatent.data.store import Array, empty, pieces
from pyrolatent.data.tables import as_words, cells_of
from pyrolatent.declaration import choices
from pyrolatent.errors import InputError

HELD = ("test", "validation")
"""The parts that are held out, in the order in which they are drawn."""


def take(split: Split, index: Tensor) -> Split:
    """The datapoints of a split at an index, with all that belongs to them."""
    fields: dict[str, Any] = {field: _select(getattr(split, field), index) for field in ("x", "y", "mask", "rows")}
    ids = None if split.ids is None else tuple(split.ids[i] for i in index.tolist())
    return dataclasses.replace(split, ids=ids, **fields)


def _select(field: Tensor | None, index: Tensor) -> Tensor | None:
    """The rows of a field at an index, in a file if they are large."""
    if field is None:
        return None
    found = empty((len(index), *field.shape[1:]), field.numpy().dtype)
    for rows in pieces(found):
        torch.index_select(field, 0, index[rows], out=torch.from_numpy(found[rows]))
    return torch.from_numpy(found)


def rows_by_word(values: Any, size: int, name: str) -> dict[str, list[int]]:
    """The rows of the parts that are held out, from a word of each row: train, validation or test.

    Args:
        values: a column of a table, or words (datapoints,).
        size: number of datapoints.
        name: name of the source in messages.

    Raises:
        InputError: a row has another word, or none.
    """
    words = as_words(cells_of(values, "split", name))
    if len(words) != size:
        raise InputError(f"{name}: split has {len(words)} words, but there are {size} datapoints")
    for row, word in enumerate(words):
        if word not in PARTS:
            said = "is empty" if word is None else f"was {word!r}"
            raise InputError(f"{name}: split {said} in row {row}; {choices(word or '', PARTS)}")
    found = {part: [row for row, word in enumerate(words) if word == part] for part in HELD}
    return {part: rows for part, rows in found.items() if rows}


def rows_given(value: Any) -> list[int] | None:
    """The numbers of rows that a part was declared as, if it was."""
    if isinstance(value, np.ndarray | Tensor):
        value = value.tolist() if value.ndim == 1 and "int" in str(value.dtype) else None
    whole = isinstance(value, Sequence) and not isinstance(value, str) and all(type(row) is int for row in value)
    return [*value] if whole else None


def choose(whole: Split, rows: Mapping[str, Sequence[int]], name: str) -> dict[str, Split]:
    """The training part and those of given rows, of which no row is in two.

    Raises:
        InputError: there are no rows, or one does not exist, is in two parts, or none is left for training.
    """
    part_of = np.full(len(whole), -1)
    for i, (part, numbers) in enumerate(rows.items()):
        if not numbers:
            raise InputError(f"{name}: {part} has no rows; leave it out to draw a tenth of them")
        if outside := [row for row in (min(numbers), max(numbers)) if not 0 <= row < len(whole)]:
            raise InputError(f"{name}: {part} has row {outside[0]}, but rows are numbered 0 to {len(whole) - 1}")
        chosen = np.asarray(numbers)
        others, counts = np.unique(chosen, return_counts=True)
        if len(twice := np.flatnonzero((part_of[others] >= 0) | (counts > 1))):
            row = others[twice[0]]
            other = part if part_of[row] < 0 else [*rows][part_of[row]]
            raise InputError(f"{name}: row {row} is twice among the rows of {other} and {part}")
        part_of[chosen] = i
    rest = np.flatnonzero(part_of < 0)
    if not len(rest):
        raise InputError(f"{name}: no rows are left for training")
    chosen_of = {part: torch.as_tensor(np.asarray(numbers)) for part, numbers in rows.items()}
    return {part: take(whole, index) for part, index in (chosen_of | {"train": torch.as_tensor(rest)}).items()}


def hold_out(
    split: Split, fraction: float, held: str, name: str, generator: torch.Generator, stratified: bool
) -> tuple[Split, Split]:
    """Holds out a random part, of each class in proportion if it is stratified.

    Raises:
        InputError: one of the two has no datapoints.
    """
    size = len(split)
    count = round(fraction * size)
    if not 0 < count < size:
        raise InputError(
            f"{name}: {fraction:g} of {size} datapoints for {held} leaves {count} there and {size - count} for the "
            f"rest, but each needs at least 1; give more data or another {held} fraction"
        )
    order = torch.randperm(size, generator=generator)
    if stratified and split.y is not None:
        order = order[split.y[order].argsort(stable=True)]  # class by class, of which every size / count-th is taken
        taken = torch.zeros(size, dtype=torch.bool)
        taken[((torch.arange(count) + 0.5) * size / count).long()] = True
        order = torch.cat([order[taken], order[~taken]])
    rest, held_out = order[count:].sort().values, order[:count].sort().values
    return take(split, rest), take(split, held_out)


def duplicates(parts: Mapping[str, Split]) -> dict[str, int]:
    """Numbers of datapoints of each part that repeat an earlier one there, and of held-out ones that training has.

    Datapoints are compared with their gaps and without their labels.
    """
    seen = {name: np.unique(_hashes(split)) for name, split in parts.items()}
    found = {name: len(split) - len(seen[name]) for name, split in parts.items()}
    return found | {"between": sum(len(np.intersect1d(seen[name], seen["train"])) for name in HELD)}


def _hashes(split: Split) -> Array:
    """A number of 64 bits for each datapoint and its gaps, the same for the same values alone."""
    fields = [field.flatten(1).numpy() for field in (split.x, split.mask) if field is not None]
    digests = (blake2b(b"".join(row.tobytes() for row in rows), digest_size=8) for rows in zip(*fields, strict=True))
    return np.fromiter((int.from_bytes(digest.digest()) for digest in digests), np.uint64, len(split))
