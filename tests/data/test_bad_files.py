"""Damaged, hostile and impossible files: each is read, or refused in one line that names it, in little memory.

Files are mutated at fixed seeds: bytes are changed, cut, repeated, and put in from lists of values that parsers stumble
over. What is left may be a valid file, which must then load.
"""

import gzip
import io
import os
import resource
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pyrolatent.data.load import load_data
from pyrolatent.errors import InputError

MUTANTS = 150
MEMORY = 3 * 2**30
"""Bytes that reading a file of some kilobytes may reserve beside what the process has."""
HOSTILE = [
    *(struct.pack("<q", value) for value in (-1, 2**31, 2**34, 2**40, 2**62)),
    *(b"\xff" * n for n in (1, 4, 8)), *(b"\x00" * n for n in (1, 4, 8)),
    b"9" * 18, b"'descr': 'O'", b"nan", b"1e999", b'"', b"\n", b",", b"\r", b"\xef\xbb\xbf",
]  # fmt: skip


def table() -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {"a": random.normal(size=40), "n": random.integers(0, 5, 40), "town": random.choice(["Oslo", "Rome"], 40)}
    )


def written(write: Callable[[io.BytesIO], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


X = np.random.default_rng(0).normal(size=(40, 3))
FILES: dict[str, bytes] = {
    "x.npy": written(lambda file: np.save(file, X)),
    "x.npz": written(lambda file: np.savez(file, x=X, y=np.arange(40) % 3)),
    "deflated.npz": written(lambda file: np.savez_compressed(file, x=X, y=np.arange(40) % 3)),
    "x.csv": table().to_csv(index=False).encode(),
    "x.csv.gz": gzip.compress(table().to_csv(index=False).encode(), mtime=0),
    "x.parquet": written(table().to_parquet),
    "x.feather": written(table().to_feather),
}
IMAGES = {
    ending: written(lambda file, form=form: Image.fromarray((np.abs(X) * 80).astype(np.uint8)).save(file, form))
    for ending, form in {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "bmp": "BMP", "webp": "WEBP"}.items()
}


def mutants(content: bytes, count: int) -> Iterator[bytes]:
    for seed in range(count):
        random, changed = np.random.default_rng(seed), bytearray(content)
        for _ in range(random.integers(1, 4)):
            at = int(random.integers(0, max(1, len(changed))))
            match random.integers(5):
                case 0:
                    changed[at : at + 1] = bytes([random.integers(256)])
                case 1:
                    del changed[at:]
                case 2:
                    del changed[at : at + int(random.integers(1, 20))]
                case 3:
                    changed[at:at] = changed[at : at + int(random.integers(1, 200))]
                case 4:
                    value = HOSTILE[int(random.integers(len(HOSTILE)))]
                    changed[at : at + len(value)] = value
        yield bytes(changed)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A limit on the memory that the process may reserve."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def loads_or_names(path: Path, named: str, **options: Any) -> bool:
    """Whether a file loads; if it does not, the message is one line that names it."""
    message = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load_data(path, **options)
        except InputError as error:
            message = str(error)
    assert message is None or ("\n" not in message and named in message), message
    return message is None


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", FILES)
def test_mutants_of_files_load_or_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path, loaded = tmp_path / name, 0
    path.write_bytes(FILES[name])
    assert loads_or_names(path, name)
    for mutant in mutants(FILES[name], MUTANTS):
        path.write_bytes(mutant)
        loaded += loads_or_names(path, name)
    assert loaded < MUTANTS


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("ending", IMAGES)
def test_mutants_of_images_load_or_are_refused_by_name(ending: str, tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i:02}.{ending}").write_bytes(IMAGES[ending])
    damaged = tmp_path / f"07.{ending}"
    for mutant in mutants(IMAGES[ending], MUTANTS):
        damaged.write_bytes(mutant)
        loads_or_names(tmp_path, tmp_path.name)


def huge(shape: tuple[int, ...]) -> bytes:
    """An array of a few bytes whose header declares a shape."""
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    return written(lambda file: np.lib.format.write_array_header_1_0(file, header)) + bytes(64)  # type: ignore[arg-type]


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return file.getvalue()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", huge((2**31, 1)), r"it holds 192 bytes, but says that it is an array of shape \(2147483648, 1\)"),
        ("a.npy", huge((-1, 2)), "cannot be read"),
        ("a.npy", huge((2**62, 2**62)), "says that it is an array of shape"),
        ("a.npz", archive(**{"x.npy": huge((2**31, 1))}), "says that it is an array of shape"),
        ("a.npz", archive(**{"x.npy": huge((8, 1)), "notes.txt": b"no array"}), "its member 'notes.txt' is no array"),
        ("a.npz", archive(), "expected an array x|cannot be read"),
        ("a.npz", b"", "cannot be read"),
        ("a.csv", b"\x00" * 100, "cannot be read|first row|no name|x is empty"),
        ("a.csv", b"a,b\n" + b'"' * 1000, "cannot be read|leaves 0 there"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "cannot be read"),
        ("a.csv.gz", b"a,b\n1,2\n", "cannot be read"),
        ("a.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1", "cannot be read"),
        ("a.feather", b"ARROW1" + b"\xff" * 100, "cannot be read"),
    ],
)
def test_hostile_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_data(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("little_memory")
def test_a_member_that_claims_more_than_deflate_can_hold(tmp_path: Path) -> None:
    content = bytearray(archive(**{"x.npy": huge((8, 1))}))
    at = content.index(b"PK\x01\x02") + 24  # the size before compression, in the directory at the end
    content[at : at + 4] = struct.pack("<I", 2**31)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npz: cannot be read \(its member 'x' claims 2,147,483,648 bytes in"):
        load_data(tmp_path / "a.npz")


@pytest.mark.parametrize("ending", ["npy", "npz", "csv", "parquet", "png"])
def test_pipes_and_devices_do_not_hang(ending: str, tmp_path: Path) -> None:
    pipe = tmp_path / f"pipe.{ending}"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=rf"pipe\.{ending}: is no file or folder; a pipe or a device cannot be read"):
        load_data(pipe)
    with pytest.raises(InputError, match=r"there are no images|no file or folder"):
        load_data(tmp_path)
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    for i in range(20):
        Image.new("L", (3, 3)).save(tmp_path / f"{i}.png")
    with pytest.warns(UserWarning, match=rf"1 files are not read, .*: pipe\.{ending}"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 2**64}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"labels": np.full(40, 10**9)}, None),
        ({"labels": np.full(40, 2**64 - 1, np.uint64)}, None),
        ({"labels": 5}, "labels='5' names a column"),
        ({"id": 5}, "id='5' names a column"),
        ({"split": 5}, "split='5' names a column"),
        ({"mask": 5}, "the mask is int64"),
        ({"classes": 2**70}, "classes"),
        ({"kinds": {"0": "word"}}, "kinds"),
        ({"kinds": {"0": "binary"}}, None),
        ({"test": [2**70]}, "test has row"),
        ({"test": {"a": 1}}, "data cannot be a dict"),
        ({"validation": "\x00"}, "no data set|no such file|null byte"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str | None) -> None:
    if message is None:
        load_data(X, **options)
        return
    with pytest.raises(InputError, match=message) as caught:
        load_data(X, **options)
    assert "\n" not in str(caught.value)
