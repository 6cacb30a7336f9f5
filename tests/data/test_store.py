"""Data larger than memory: the same numbers as in memory, in files that vanish, with bounded memory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import pyrolatent as pl
from pyrolatent import VAE, Data, InputError, fit, load_data, load_rows
from pyrolatent.data import store
from pyrolatent.data.store import bytes_of, limited, mapped, stacked

TINY = 2**15
"""A limit of memory that makes files of everything but the smallest arrays."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are."""
    monkeypatch.setenv("PYROLATENT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def in_files(source: Any, **options: Any) -> Data:
    with limited(TINY):
        return load_data(source, **options)


@pytest.fixture(autouse=True)
def linux() -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("reads /proc")


def lies_in_a_file(x: torch.Tensor) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, *_, name = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in where.split("-"))
        if low <= x.data_ptr() < high:
            return name.startswith("/")
    return False


def same(one: Data, other: Data) -> None:
    """Every value of both, to the last bit, and all that is recorded."""
    assert one.record == other.record
    assert one.describe() == other.describe()
    for mine, theirs in zip(one.splits, other.splits, strict=True):
        for field in ("x", "y", "mask", "rows"):
            a, b = getattr(mine, field), getattr(theirs, field)
            assert (a is None) == (b is None), field
            assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), field
        assert (mine.ids, mine.factor, mine.noise, mine.levels) == (
            theirs.ids,
            theirs.factor,
            theirs.noise,
            theirs.levels,
        )


RANDOM = np.random.default_rng(0)
REALS = RANDOM.normal(size=(400, 7)).astype(np.float32)


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": RANDOM.normal(40, 9, 400).round(1),
            "visits": RANDOM.poisson(3, 400),
            "town": RANDOM.choice(["Rome", "Oslo", "Bern"], 400),
            "code": [*(str(i % 20) for i in range(200)), *(["a"] * 200)],
            "smoker": RANDOM.random(400) < 0.3,
            "late": [np.nan] * 300 + [2.5] * 100,
            "class": RANDOM.choice(["no", "yes"], 400),
            "patient": [f"{i:04}" for i in range(400)],
        }
    ).mask(lambda frame: (frame["age"] > 50).to_numpy()[:, None] & np.isin(frame.columns, ["age", "town"]))


class Images(Dataset[Any]):
    def __len__(self) -> int:
        return 60

    def __getitem__(self, i: int) -> Any:
        return np.full((6, 5), i, np.uint8), i % 3


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (({"x": REALS[i], "y": i % 2}) for i in range(300))


def written(path: Path) -> dict[str, Callable[[], Path]]:
    """Functions that write a file or a folder of each kind."""

    def npy(x: Any, name: str = "x.npy") -> Path:
        np.save(path / name, x)
        return path / name

    def npz(**arrays: Any) -> Path:
        np.savez_compressed(path / "x.npz", **arrays)
        return path / "x.npz"

    def frame(ending: str, *index: str | None) -> Path:
        made = table().assign(ward=pd.Categorical([2, 7] * 200, [2, 5, 7]))
        made = made.set_index(index[0]).rename_axis(index[-1]) if index else made
        options = {"index": False} if "csv" in ending else {}
        getattr(made, f"to_{ending.partition('.')[0]}")(path / f"x.{ending}", **options)
        return path / f"x.{ending}"

    def images(colours: int) -> Path:
        for i in range(50):
            (path / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.new("L" if i < colours else "RGB", (16, 15), i).save(path / "images" / "ab"[i % 2] / f"{i}.png")
        return path / "images"

    gaps = np.where(RANDOM.random(REALS.shape) < 0.2, np.nan, REALS.astype(float))
    return {
        "reals": lambda: npy(REALS),
        "doubles": lambda: npy(REALS.astype(float)),
        "gaps": lambda: npy(gaps),
        "counts": lambda: npy(RANDOM.poisson(300, (900, 5))),
        "pictures": lambda: npy(RANDOM.integers(0, 256, (90, 8, 8, 3), np.uint8)),
        "columns first": lambda: npy(np.asfortranarray(REALS)),
        "archive": lambda: npz(x=REALS, y=np.arange(400) % 4),
        "own parts": lambda: npz(
            x_train=REALS, x_test=REALS[:50] + 1, y_train=np.arange(400) % 4, y_test=np.arange(50) % 4
        ),
        **{ending: lambda ending=ending: frame(ending) for ending in ("csv", "csv.gz", "parquet", "feather")},
        "named index": lambda: frame("parquet", "patient"),
        "index of words": lambda: frame("parquet", "patient", None),
        "folder": lambda: images(50),
        "folder with colours": lambda: images(40),
    }


KINDS = tuple(written(Path()))


@pytest.mark.parametrize("kind", KINDS)
def test_data_in_files_are_the_data_in_memory(kind: str, tmp_path: Path, folder: Path) -> None:
    path = written(tmp_path)[kind]()
    options = {"labels": "class", "id": "patient"} if kind in ("csv", "csv.gz", "parquet", "feather") else {}
    found = in_files(path, **options)
    assert (found.test.ids is not None) == ("id" in options or "index" in kind)
    assert lies_in_a_file(found.train.x)
    same(found, load_data(path, **options))
    assert not any(folder.iterdir())


@pytest.mark.parametrize("options", [
    {"binarize": "dynamic"}, {"binarize": "static"}, {"binarize": "threshold"}, {"dequantize": "uniform"},
    {"labelled": 20}, {"labelled_share": 0.6}, {"test": [3, 1, 2], "validation": 0.2},
], ids=str)  # fmt: skip
def test_noise_parts_and_labels_are_those_in_memory(options: dict[str, Any], tmp_path: Path) -> None:
    labels = np.arange(300) % 5
    labels[::3] = -1 if "labelled_share" in options else 0
    np.savez(tmp_path / "x.npz", x=RANDOM.integers(0, 256, (300, 4, 4), np.uint8), y=labels)
    same(in_files(tmp_path / "x.npz", **options), load_data(tmp_path / "x.npz", **options))


@pytest.mark.parametrize(
    "source", [Images(), REALS, table().drop(columns=["patient", "code"])], ids=["dataset", "array", "frame"]
)
def test_sources_in_memory(source: Any) -> None:
    same(in_files(source), load_data(source))


def test_a_stream_with_parts_of_its_own() -> None:
    parts = {"validation": (REALS[300:350], np.zeros(50, int)), "test": (REALS[350:], np.ones(50, int))}
    same(in_files(Stream(), **parts), load_data(Stream(), **parts))


def test_rows_to_apply_a_model_to(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "x.parquet")
    data = load_data(tmp_path / "x.parquet", labels="class", id="patient")
    with limited(TINY):
        found = load_rows(tmp_path / "x.parquet", data)
    expected = load_rows(tmp_path / "x.parquet", data)
    assert lies_in_a_file(found.x)
    assert torch.equal(found.x, expected.x)
    assert found.ids == expected.ids


@pytest.mark.parametrize("compile", ["never", pytest.param("always", marks=pytest.mark.slow)])
def test_training_is_that_in_memory_to_the_last_bit(tmp_path: Path, compile: Any) -> None:
    np.save(tmp_path / "x.npy", RANDOM.integers(0, 256, (200, 6, 6), np.uint8))
    histories, weights = [], []
    for load in (in_files, load_data):
        data = load(tmp_path / "x.npy", binarize="dynamic")
        torch.manual_seed(0)
        model = VAE(data.event_shape, latent_dim=2, encoder={"mlp": {"hidden": [8]}}, decoder={"mlp": {"hidden": [8]}})
        found = fit(model, data, epochs=3, batch_size=32, progress=False, compile=compile)
        histories.append([{k: v for k, v in row.items() if k != "seconds"} for row in found.history])
        weights.append(pl.evaluate(model, data, particles=20).each["log_evidence"])
    assert histories[0] == histories[1]
    assert torch.equal(*weights)


def test_an_array_that_needs_no_conversion_stays_in_its_file(tmp_path: Path, folder: Path) -> None:
    for part in ("train", "validation", "test"):
        np.save(tmp_path / f"{part}.npy", REALS)
    data = in_files(
        tmp_path / "train.npy", validation=str(tmp_path / "validation.npy"), test=str(tmp_path / "test.npy")
    )
    assert all(lies_in_a_file(split.x) for split in data.splits)
    assert not folder.exists()
    np.testing.assert_array_equal(np.load(tmp_path / "train.npy"), REALS)


def test_rows_of_other_types_widen_those_before() -> None:
    parts = [np.arange(3000)[:, None], np.full((3000, 1), 0.5), np.array([[np.nan]])]
    with limited(TINY):
        found = stacked(parts)
    np.testing.assert_array_equal(found, np.concatenate(parts))
    with limited(TINY):
        np.testing.assert_array_equal(
            mapped(lambda x, y: x + 1, found, None, dtype=np.float32), np.concatenate(parts) + 1
        )


def test_words_of_all_pieces_are_coded_together(tmp_path: Path) -> None:
    frame = pd.DataFrame({"town": ["z"] * 900 + ["a"] * 900, "x": 1.5, "late": [*range(900)] + [""] * 899 + ["lots"]})
    frame[["town", "x"]].to_csv(tmp_path / "x.csv", index=False)
    data = in_files(tmp_path / "x.csv")
    assert data.columns is not None
    assert data.columns[0].categories == ("a", "z")
    frame.to_csv(tmp_path / "late.csv", index=False)
    with pytest.raises(InputError, match="the column 'late' holds numbers, but 'lots' in row 1799"):
        in_files(tmp_path / "late.csv")


def test_names_are_no_categories_however_many_there_are(tmp_path: Path) -> None:
    pd.DataFrame({"name": [f"n{i}" for i in range(900)], "x": 1.0}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="the column 'name' holds 900 different words in 900 rows"):
        in_files(tmp_path / "x.parquet")


@pytest.mark.parametrize("memory", [0, -1, "ten", "1 MB", True])
def test_limits_that_are_none(memory: Any) -> None:
    with pytest.raises(InputError, match=r"memory was given .*; a size such as 2GB, of at least 64 MB, is expected"):
        load_data(REALS, memory=memory)


def test_a_limit_is_kept_in_the_declaration(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", REALS)
    assert load_data(tmp_path / "x.npy", memory="1GB").declaration == {str(tmp_path / "x.npy"): {"memory": 10**9}}
    assert bytes_of("64MB") == store.LEAST


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        InputError, match=r"were to be put here \(No space left on device\), and .* MB are free; make room"
    ):
        in_files(REALS)


MEASURED = """
import json, sys, threading, time, warnings
import pyrolatent as pl
from pyrolatent.data.load import load_data
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024
peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)
load_data(sys.argv[2])  # imports what is used
before = anonymous()
threading.Thread(target=watch).start()
data = load_data(sys.argv[1], memory="64MB")
total = sum(float(x.sum()) for x, _, _ in data.train.batches(512))
done = True
print(json.dumps([peak - before, total]))
"""


@pytest.mark.parametrize("ending", ["npy", pytest.param("parquet", marks=pytest.mark.slow)])
def test_memory_is_bounded_whatever_the_size_of_the_file(ending: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(100_000, 100)).astype(np.float32)  # 40 MB
    for name, rows in (("x", x), ("few", x[:1000])):
        if ending == "npy":
            np.save(tmp_path / f"{name}.npy", rows)
        else:
            frame = pd.DataFrame(rows, columns=map(str, range(100)))
            frame.to_parquet(tmp_path / f"{name}.parquet", row_group_size=10_000)
    files = [str(tmp_path / f"{name}.{ending}") for name in ("x", "few")]
    ran = subprocess.run([sys.executable, "-c", MEASURED, *files], capture_output=True, text=True, check=True)
    peak, total = json.loads(ran.stdout)
    assert np.isfinite(total)
    assert peak < 64e6, peak


def npy_parts(folder: Path) -> dict[str, Any]:
    """Three .npy files that are used where they are, as arguments of `load_data`."""
    for name in ("train", "validation", "test"):
        rows = 2000 if name == "train" else 50
        np.save(folder / f"{name}.npy", np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32))
    return {
        "source": str(folder / "train.npy"),
        **{name: str(folder / f"{name}.npy") for name in ("validation", "test")},
    }


@pytest.mark.parametrize("compile", ["never", "always"])
def test_a_file_that_is_changed_while_it_is_used_stops_training(tmp_path: Path, compile: Any) -> None:
    data = in_files(**npy_parts(tmp_path))
    assert lies_in_a_file(data.train.x)

    def change(row: dict[str, Any]) -> None:
        values = np.load(tmp_path / "train.npy", mmap_mode="r+")
        values[:] += 50
        values.flush()
        os.utime(tmp_path / "train.npy", ns=(0, 0))

    with pytest.raises(InputError, match=r"train\.npy: was changed while its values were used"):
        fit(
            VAE(data.event_shape, latent_dim=1, likelihood="normal"),
            data,
            epochs=2,
            on_epoch=change,
            compile=compile,
            progress=False,
        )


def test_a_file_may_be_replaced_or_removed_while_it_is_used(tmp_path: Path) -> None:
    data = in_files(**npy_parts(tmp_path))
    x = data.train.batch(slice(None)).x.clone()
    os.replace(tmp_path / "test.npy", tmp_path / "train.npy")
    assert torch.equal(data.train.batch(slice(None)).x, x)
    (tmp_path / "train.npy").unlink()
    assert torch.equal(data.train.batch(slice(None)).x, x)


def test_classes_of_other_words_are_refused_by_a_run(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": np.random.default_rng(0).normal(size=60), "kind": ["A", "B", "A"] * 20})
    table.to_csv(tmp_path / "x.csv", index=False)
    experiment = pl.Experiment(
        model={"conditional_vae": {"latent_dim": 1, "likelihood": "normal"}},
        data={str(tmp_path / "x.csv"): {"labels": "kind"}},
        epochs=1,
    )
    run = pl.train(experiment, tmp_path / "run", progress=False)
    table.replace({"kind": {"A": "B", "B": "C"}}).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(InputError, match="the classes were A, B and now are B, C; restore them, or train again"):
        run.load_data()


def test_training_data_that_changed_after_training_are_said(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """The held-out parts are files of their own, and as they were."""
    parts = npy_parts(tmp_path)
    declared = {parts.pop("source"): parts}
    model = {"vae": {"latent_dim": 1, "likelihood": "normal"}}
    run = pl.train(pl.Experiment(model=model, data=declared, epochs=1), tmp_path / "run", progress=False)
    run.load_data()
    assert not [each for each in recwarn if "training data" in str(each.message)]
    np.save(tmp_path / "train.npy", np.load(tmp_path / "train.npy")[:1000])
    with pytest.warns(UserWarning, match="the training data of .*run have changed since training"):
        pl.Run.load(tmp_path / "run").load_data()
