"""Arrays that may be larger than memory: large ones lie in temporary files, and are read and written in pieces.

    with limited(2**30):
        x = stacked(parts)  # in memory, or mapped from a file that vanishes with the process
        y = mapped(np.sqrt, x, dtype=np.float32)

A piece is a slice of rows. The file of an array has no name, so that nothing is left behind even by a process that is
killed, and its pages are given back to the system when memory is short.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from platformdirs import user_cache_path
from pydantic import ByteSize, Field, TypeAdapter, ValidationError

from pyrolatent.errors import InputError

Array = NDArray[Any]
LEAST = 64 * 10**6
"""The smallest limit of memory, in bytes."""
_LIMIT: ContextVar[int | None] = ContextVar("memory", default=None)


def bytes_of(memory: int | str) -> int:
    """A limit of memory in bytes.

    Args:
        memory: bytes, or a text such as "2GB".

    Raises:
        InputError: it is no size, or too small.
    """
    try:
        return int(TypeAdapter(Annotated[ByteSize, Field(ge=LEAST)]).validate_python(memory))
    except ValidationError as error:
        raise InputError(
            f"memory was given {memory!r}; a size such as 2GB, of at least {LEAST // 10**6} MB, is expected"
        ) from error


@contextmanager
def limited(memory: int | None) -> Iterator[None]:
    """Limits the memory that data take, in bytes, unless it is limited already; None leaves it as it is."""
    token = _LIMIT.set(_LIMIT.get() or memory)
    try:
        yield
    finally:
        _LIMIT.reset(token)


@contextmanager
def unlimited() -> Iterator[None]:
    """Keeps all data in memory."""
    token = _LIMIT.set(2**62)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def limit() -> int:
    """The memory that data may take, in bytes; without another limit, half of the machine's."""
    return _LIMIT.get() or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def is_large(size: int) -> bool:
    """Whether an array of a size in bytes lies in a file; of others, several fit in memory side by side."""
    return size > limit() // 8


def pieces(x: Any) -> Iterator[slice]:
    """The rows of an array in pieces: all of them at once if the array is not large."""
    size = x[:1].nbytes
    at_once = max(1, min(limit() // 32, 2**26) // max(size, 1)) if is_large(len(x) * size) else max(len(x), 1)
    return (slice(start, min(start + at_once, len(x))) for start in range(0, len(x), at_once))


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """An array to write to, in memory or in a file."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if not is_large(size):
        return np.empty(shape, dtype)
    with _file(size) as file:
        if hasattr(os, "posix_fallocate"):  # a mapped page for which there is no room ends the process
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "w+", shape=shape)


def mapped(function: Callable[..., Array], *arrays: Any, dtype: DTypeLike) -> Array:
    """The results of a function of rows, piece by piece, which share no memory with the first array.

    Args:
        function: takes a piece of each array, and keeps the number of rows.
        arrays: arrays of the same number of rows; None is handed through.
        dtype: type of the results.
    """
    out: Array | None = None
    for rows in pieces(arrays[0]):
        found = function(*(None if array is None else array[rows] for array in arrays))
        if len(found) == len(arrays[0]):
            whole = np.ascontiguousarray(found, dtype)
            return whole.copy() if np.may_share_memory(whole, arrays[0]) else whole
        out = empty((len(arrays[0]), *found.shape[1:]), dtype) if out is None else out
        out[rows] = found
    assert out is not None
    return out


def stacked(parts: Iterable[Array]) -> Array:
    """Arrays of rows, one below the other, whose number and type need not be known before.

    Raises:
        ValueError: there are none.
    """
    stack = Stack()
    for part in parts:
        stack.add(part)
    return stack.array()


class Stack:
    """Arrays of rows, one below the other; as soon as they are large, in a file."""

    def __init__(self) -> None:
        self._held: list[Array] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._shape: tuple[int, ...] = (0,)
        self._dtype: Any = None

    def add(self, rows: Array) -> None:
        """Puts rows below the others."""
        self._held.append(rows)
        self._bytes += rows.nbytes
        if is_large(self._bytes):
            self._write()

    def __iter__(self) -> Iterator[Array]:
        """The rows in pieces."""
        if self._file is not None or self._held:
            array = self.array()
            yield from (array[rows] for rows in pieces(array))

    def array(self) -> Array:
        """All rows, in a type that holds those of each array.

        Raises:
            ValueError: there are none.
        """
        if self._file is None:
            return np.concatenate(self._held)
        if self._held:
            self._write()
        with self._file as file:
            return np.memmap(file, self._dtype, "r+", shape=self._shape)

    def _write(self) -> None:
        """Appends what is held to the file, which is written anew if its type is too narrow."""
        rows = np.concatenate(self._held)
        self._held, self._bytes = [], 0
        with _room(rows.nbytes):
            if self._file is None or np.result_type(self._dtype, rows) != self._dtype:
                narrow = [*self]
                self._dtype = np.result_type(rows, *narrow)
                self._file = _temporary()
                for each in narrow:
                    self._file.write(each.astype(self._dtype).tobytes())
            self._file.write(rows.astype(self._dtype, copy=False).tobytes())
            self._file.flush()
        self._shape = (self._shape[0] + len(rows), *rows.shape[1:])


def header_of(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape of an array in the format of .npy files, whether columns come first, and its type.

    Raises:
        ValueError: the format has another version.
    """
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in header:
        raise ValueError(f"version {version} of the format")
    return header[version](file)


def unpacked(file: IO[bytes]) -> Array:
    """The array that an open stream has in the format of .npy files."""
    shape, fortran, dtype = header_of(file)
    rest = empty((int(np.prod(shape, dtype=np.int64)),), dtype)
    buffer = rest.view(np.uint8).data
    start = 0
    while count := file.readinto(buffer[start : start + 2**20]):  # type: ignore[attr-defined]
        start += count
    if start < rest.nbytes:
        raise ValueError(f"{start:,} of {rest.nbytes:,} bytes are there")
    return rest.reshape(shape, order="F" if fortran else "C")


def open_array(path: Path) -> Array:
    """The array of a .npy file, which is left in it if it is large, and must then not be changed."""
    return np.load(path, mmap_mode="c" if is_large(path.stat().st_size) else None, allow_pickle=False)


@dataclass(frozen=True)
class MappedFile:
    """A file that an array is mapped from, which must stay as it is: changes would be values of the array.

    Attributes:
        path: the file.
        stamp: its number, size and time of the last change.
    """

    path: Path
    stamp: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path) -> "MappedFile":
        """The file as it is now."""
        return cls(path, _stamp(path))

    def require_unchanged(self) -> None:
        """Refuses a file that was written to; one in the place of it, or none, leaves the array as it is.

        Raises:
            InputError: it was.
        """
        try:
            now = _stamp(self.path)
        except FileNotFoundError:
            return
        if now != self.stamp and now[0] == self.stamp[0]:
            raise InputError(
                f"{self.path}: was changed while its values were used, which are read from where they lie; begin "
                "anew, and write changed data to another file"
            )


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def data_directory() -> Path:
    """The directory of named data sets and of temporary files: PYROLATENT_DATA, else the user's cache."""
    return Path(os.environ.get("PYROLATENT_DATA") or user_cache_path("pyrolatent")).expanduser()


def _folder() -> Path:
    folder = data_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot hold data larger than the limit of memory ({error.strerror}); name another directory by "
            "PYROLATENT_DATA"
        ) from error
    return folder


def _temporary() -> IO[bytes]:
    """A file without a name, which lives as long as it is open or mapped."""
    return tempfile.TemporaryFile(dir=_folder())


@contextmanager
def _file(size: int) -> Iterator[IO[bytes]]:
    with _room(size), _temporary() as file:
        yield file


@contextmanager
def _room(size: int) -> Iterator[None]:
    """Turns a full disk into one line that says where room is needed."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(_folder()).free
        raise InputError(
            f"{_folder()}: {size / 1e6:,.0f} MB of data larger than the limit of memory were to be put here "
            f"({error.strerror}), and {free / 1e6:,.0f} MB are free; make room, name another directory by "
            "PYROLATENT_DATA, or raise the limit"
        ) from error
