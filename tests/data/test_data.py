"""Data: what is drawn has the right law, what is fixed is fixed, and what cannot be modelled is refused by name."""

import gzip
import io
import json
import os
import struct
import tarfile
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from PIL import Image
from torch.distributions import constraints
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

from pyrolatent.data import named_sets as sources
from pyrolatent.data.load import load_data
from pyrolatent.data.named_sets import NAMED
from pyrolatent.data.splits import Split
from pyrolatent.errors import InputError
from pyrolatent.models.arrays import as_tensor

PARTS = ("train", "validation", "test")


@pytest.fixture
def x() -> np.ndarray:
    """Sixty datapoints of four real features, all different."""
    return np.random.default_rng(1).normal(size=(60, 4))


def whole(split: Split) -> torch.Tensor:
    return split.batch(slice(None)).x


def rows(data: Any) -> np.ndarray:
    """All datapoints of all splits, sorted."""
    values = np.concatenate([whole(getattr(data, part)).flatten(1).numpy() for part in PARTS])
    return values[np.lexsort(values.T)]


def in_order(values: np.ndarray) -> np.ndarray:
    return values[np.lexsort(values.T)].astype(np.float32)


# Splits.


def test_splits_are_disjoint_and_cover_all() -> None:
    data = load_data(np.arange(100)[:, None])
    parts = [whole(getattr(data, part)).flatten().tolist() for part in PARTS]
    assert [len(part) for part in parts] == [81, 9, 10]
    assert sorted(value for part in parts for value in part) == list(range(100))


def test_labels_and_masks_stay_with_their_datapoints() -> None:
    x = np.arange(50.0)[:, None] * np.ones((1, 3))
    mask = (np.arange(50)[:, None] + np.arange(3)) % 2 == 0
    data = load_data(x, labels=np.arange(50), mask=mask)
    for part in PARTS:
        for batch in getattr(data, part).batches(7, shuffle=True):
            assert batch.y is not None
            assert batch.mask is not None
            assert torch.equal(batch.mask, (batch.y[:, None] + torch.arange(3)) % 2 == 0)
            assert torch.equal(batch.x, batch.y[:, None] * batch.mask.float())


def test_data_seed_alone_decides_the_evaluation_splits() -> None:
    runs = []
    for training_seed, seed in ((0, 5), (1, 5), (0, 6)):
        torch.manual_seed(training_seed)
        runs.append(load_data("digits", seed=seed))
    same, other, moved = runs
    for part in ("validation", "test"):
        assert torch.equal(getattr(same, part).x, getattr(other, part).x)
        assert not torch.equal(getattr(same, part).x, getattr(moved, part).x)
    assert same.record["evaluation_sha256"] == other.record["evaluation_sha256"]
    assert same.record["evaluation_sha256"] != moved.record["evaluation_sha256"]


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_data("digits").validate_support(constraints.boolean, "the bernoulli likelihood")
    with pytest.raises(InputError) as kept:
        load_data("digits").validate_support(constraints.one_hot, "the one-hot likelihood")
    assert torch.equal(torch.rand(3), expected)
    del kept  # a refusal that is still held moves nothing either


def test_hash_changes_with_values_labels_and_mask(x: np.ndarray) -> None:
    def sha(values: np.ndarray, **options: Any) -> str:
        digest: str = load_data(values, **options).record["evaluation_sha256"]
        return digest

    labels, mask = np.arange(60) % 3, np.ones((60, 4), bool)
    hashes = [sha(x), sha(x + 1e-3), sha(x, labels=labels), sha(x, labels=(labels + 1) % 3), sha(x, mask=mask)]
    assert len(set(hashes)) == len(hashes)
    assert sha(x) == hashes[0]


# Batches.


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_hold_every_datapoint_once_with_a_smaller_last_one(shuffle: bool) -> None:
    split = Split(torch.arange(10, dtype=torch.uint8)[:, None])
    batches = list(split.batches(4, shuffle=shuffle))
    assert [len(batch.x) for batch in batches] == [4, 4, 2]
    assert sorted(torch.cat([batch.x for batch in batches]).flatten().tolist()) == list(range(10))
    assert [len(batch.x) for batch in split.batches(3, shuffle=shuffle)][-1] == 1
    assert [len(batch.x) for batch in split.batches(99, shuffle=shuffle)] == [10]


def test_shuffling_follows_the_training_seed() -> None:
    split = Split(torch.arange(50)[:, None])
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append(torch.cat([batch.x for batch in split.batches(8, shuffle=True)]))
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_batch_of_one_and_by_index() -> None:
    split = load_data("digits", binarize="none").test
    one = split.batch(torch.tensor([3]))
    assert one.x.shape == (1, 1, 8, 8)
    assert one.y is not None
    assert one.y.shape == (1,)
    assert torch.equal(one.x, split.batch(slice(3, 4)).x)


def test_batch_size_must_be_positive(x: np.ndarray) -> None:
    with pytest.raises(InputError, match="size was 0; at least 1 is needed"):
        load_data(x).train.batches(0)


def test_batches_do_not_expose_integer_storage() -> None:
    split = load_data("digits").train
    assert split.x.dtype == torch.uint8
    assert split.batch(slice(2)).x.dtype == torch.float32


# Binarization.


def test_dynamic_draws_have_the_grey_value_as_their_mean() -> None:
    """Each pixel's mean over n draws lies within 5 standard errors of p; the extremes are certain."""
    split = load_data("digits").train
    index, draws = torch.arange(20), 2000
    p = split.x[index].double() / 16
    mean = torch.stack([split.batch(index).x for _ in range(draws)]).double().mean(0)
    error = (p * (1 - p) / draws).sqrt()
    assert ((mean - p).abs() <= 5 * error).all()
    assert (error == 0).any()


def test_dynamic_training_batches_differ_and_evaluation_batches_do_not() -> None:
    data = load_data("digits")
    assert not torch.equal(whole(data.train), whole(data.train))
    for part in ("validation", "test"):
        split = getattr(data, part)
        assert torch.equal(whole(split), whole(split))
        assert set(split.x.unique().tolist()) == {0, 1}


def test_static_draws_once_with_the_evaluation_splits_of_dynamic() -> None:
    static, dynamic = load_data("digits", binarize="static"), load_data("digits")
    assert torch.equal(whole(static.train), whole(static.train))
    assert static.record["evaluation_sha256"] == dynamic.record["evaluation_sha256"]
    p = dynamic.train.x.double() / 16
    error = (p * (1 - p)).sum().sqrt() / p.numel()
    assert abs(static.train.x.double().mean() - p.mean()) <= 5 * error


def test_threshold_is_strictly_above_one_half() -> None:
    grey = load_data("digits", binarize="none")
    binary = load_data("digits", binarize="threshold")
    for part in PARTS:
        assert torch.equal(whole(getattr(binary, part)), (whole(getattr(grey, part)) > 0.5).float())


@pytest.mark.parametrize("binarize", ["relaxed", "none"])
def test_grey_values_are_kept(binarize: Any) -> None:
    data = load_data("digits", binarize=binarize)
    assert data.binarize == (None if binarize == "none" else "relaxed")
    assert torch.equal(whole(data.train), data.train.x.float() / 16)
    assert whole(data.train).max() == 1


def test_binarization_of_real_values_in_the_unit_interval() -> None:
    p = np.full((4000, 1), 0.3)
    data = load_data(p, binarize="dynamic")
    n = len(data.train)
    assert abs(whole(data.train).mean() - 0.3) <= 5 * (0.3 * 0.7 / n) ** 0.5


@pytest.mark.parametrize("scale", [-1.0, 2.0])
def test_binarization_refuses_values_outside_the_unit_interval(scale: float) -> None:
    values = np.linspace(0, scale, 40)[:, None]
    with pytest.raises(InputError, match=r"binarize: static takes values in \[0, 1\], but x is in \["):
        load_data(values, binarize="static")


# Dequantization.


@pytest.mark.parametrize("levels", [17, 256])
def test_dequantized_values_lie_in_their_cell_and_are_uniform_there(levels: int) -> None:
    """L x - k has mean 1/2 and variance 1/12, and the largest value stays below 1."""
    if levels == 17:
        data = load_data("digits", dequantize="uniform")
    else:
        data = load_data(np.random.default_rng(0).integers(0, 256, (300, 6, 6), np.uint8), dequantize="uniform")
    assert data.binarize is None
    x, k = whole(data.train), data.train.x
    u = x.double() * levels - k
    rounding = levels * 2**-23
    assert -rounding <= u.min()
    assert u.max() <= 1 + rounding
    assert x.max() < 1
    assert abs(u.mean() - 0.5) <= 5 * (1 / 12 / u.numel()) ** 0.5
    assert abs(u.var() - 1 / 12) <= 5 * (1 / 180 / u.numel()) ** 0.5
    assert not torch.equal(x, whole(data.train))
    assert torch.equal(whole(data.test), whole(data.test))


def test_rounding_never_carries_a_dequantized_value_to_one() -> None:
    split = Split(torch.full((2_000_000, 1), 255, dtype=torch.uint8), noise="dequantize", levels=256)
    assert whole(split).max() < 1


def test_counts_have_one_level_more_than_the_largest() -> None:
    data = load_data(np.arange(40)[:, None] % 5, dequantize="uniform")
    assert data.record["levels"] == 5


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((20, 2)), {}, "dequantize needs integers that are not negative, but x is float64"),
        (np.zeros((20, 2), bool), {}, "but x is bool"),
        (-np.ones((20, 2), int), {}, "but x is int64"),
        (np.ones((20, 2), int), {"binarize": "static"}, "binarize: static and dequantize: uniform exclude each other"),
    ],
)
def test_dequantization_is_refused(values: np.ndarray, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(values, dequantize="uniform", **options)


# Own arrays and their types.


@pytest.mark.parametrize(
    ("values", "event_shape", "stored", "largest"),
    [
        (np.full((20, 7), 3.5), (7,), torch.float32, 3.5),
        (np.full((20, 7), 200, np.uint8), (7,), torch.uint8, 200),
        (np.full((20, 7), 300), (7,), torch.int16, 300),
        (np.full((20, 7), 40_000), (7,), torch.int32, 40_000),
        (np.full((20, 7), -3), (7,), torch.int16, -3),
        (np.ones((20, 7), bool), (7,), torch.uint8, 1),
        (np.full((20, 5, 6), 255, np.uint8), (1, 5, 6), torch.uint8, 1),
        (np.full((20, 5, 6, 3), 255, np.uint8), (3, 5, 6), torch.uint8, 1),
        (np.full((20, 5, 6, 1), 255, np.uint8), (1, 5, 6), torch.uint8, 1),
        (np.full((20, 3, 5, 6), 255, np.uint8), (3, 5, 6), torch.uint8, 1),
        (np.ones((20, 1, 5, 6), np.uint8), (1, 5, 6), torch.uint8, 1),
        (np.full((20, 5, 6, 3), 0.5), (3, 5, 6), torch.float32, 0.5),
        (torch.full((20, 7), 0.5, dtype=torch.bfloat16), (7,), torch.float32, 0.5),
    ],
)
def test_event_shape_storage_and_factor(
    values: Any, event_shape: tuple[int, ...], stored: torch.dtype, largest: float
) -> None:
    data = load_data(values)
    assert data.event_shape == event_shape
    assert data.train.x.dtype == stored
    assert whole(data.train).dtype == torch.float32
    assert whole(data.train).unique().tolist() == [largest]


def test_every_grey_level_is_converted_as_by_division() -> None:
    levels = np.tile(np.arange(256, dtype=np.uint8), 20).reshape(20, 16, 16)
    x = whole(load_data(levels).train)[0, 0].flatten()
    torch.testing.assert_close(x, torch.arange(256) / 255, rtol=2**-23, atol=0)
    assert x[0] == 0
    assert x[255] == 1


def test_channels_keep_their_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), np.uint8)
    data = load_data(pixels, labels=np.arange(10))
    batch = data.train.batch(slice(None))
    assert batch.y is not None
    expected = torch.from_numpy(pixels)[batch.y].permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(batch.x, expected)


def test_mask_of_images_moves_with_the_channels() -> None:
    pixels = np.random.default_rng(0).integers(2, 256, (20, 4, 5, 3), np.uint8)
    mask = pixels > 128
    batch = load_data(pixels, mask=mask).train.batch(slice(None))
    assert batch.mask is not None
    assert torch.equal(batch.mask, batch.x > 0)


@pytest.mark.parametrize(
    ("labels", "dtype", "shape", "label_dim"),
    [
        (np.arange(60) % 3, torch.int64, (), 3),
        (torch.arange(60) % 3, torch.int64, (), 3),
        (np.arange(60) % 2 == 0, torch.int64, (), 2),
        (np.arange(60).reshape(60, 1) % 3, torch.int64, (), 3),
        (np.linspace(0, 1, 60).reshape(60, 1), torch.float32, (1,), 1),
        (np.ones((60, 5)), torch.float32, (5,), 5),
        (np.ones((60, 5), int), torch.float32, (5,), 5),
        (np.linspace(0, 1, 60), torch.float32, (1,), 1),
    ],
)
def test_labels(x: np.ndarray, labels: Any, dtype: torch.dtype, shape: tuple[int, ...], label_dim: int) -> None:
    data = load_data(x, labels=labels)
    assert data.label_dim == label_dim
    y = data.train.batch(slice(4)).y
    assert y is not None
    assert y.dtype == dtype
    assert y.shape == (4, *shape)


def test_nan_behind_a_mask_is_stored_as_zero(x: np.ndarray) -> None:
    x[::3, 1] = np.nan
    for mask in (np.isfinite(x), "nan"):
        data = load_data(x, mask=mask)
        for part in PARTS:
            batch = getattr(data, part).batch(slice(None))
            assert torch.isfinite(batch.x).all()
            assert torch.equal(batch.mask, batch.x != 0)


def test_arrays_in_memory_are_copied_and_have_no_declaration(x: np.ndarray) -> None:
    values = x.astype(np.float32)
    data = load_data(values)
    before = whole(data.test).clone()
    values[:] = 0
    assert torch.equal(whole(data.test), before)
    assert data.declaration is None


class Items(Dataset[Any]):
    """A map-style dataset of given items."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(IterableDataset[Any]):
    """A dataset without a length."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)


def test_torch_datasets() -> None:
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    data = load_data(TensorDataset(x, y))
    assert data.event_shape == (3,)
    assert data.label_dim == 2
    assert np.array_equal(rows(data), in_order(x.numpy()))
    assert load_data(TensorDataset(x)).label_dim == 0
    assert load_data(Items(*x)).event_shape == (3,)
    pictures = Items(*((Image.new("RGB", (5, 4), (i, 9, 9)), i % 3) for i in range(20)))
    assert load_data(pictures).event_shape == (3, 4, 5)
    assert load_data(pictures).label_dim == 3


def test_datasets_that_are_refused() -> None:
    with pytest.raises(InputError, match=r"Items: x differs in shape: \(2,\) in item 0, \(3,\) in item 1"):
        load_data(Items(np.zeros(2), np.zeros(3)))
    with pytest.raises(InputError, match=r"an item has 3 values, but must be x or \(x, y\)"):
        load_data(Items((1, 2, 3)))
    for items, said in (
        ((), "Items has no items"),
        ((np.zeros(2), (np.zeros(2), 1)), "all must be x, "),
    ):
        with pytest.raises(InputError, match=said):
            load_data(Items(*items))
    with pytest.raises(InputError, match="an item has 'image', but must be x"):
        load_data(Items({"image": 1}))
    with pytest.raises(InputError, match="an item has 'no x'"):
        load_data(Items({"y": 1}))
    sampled = DataLoader(TensorDataset(torch.zeros(20, 2)), sampler=SubsetRandomSampler([1, 2]))
    with pytest.raises(InputError, match=r"chooses items by a SubsetRandomSampler; give torch\.utils\.data\.Subset"):
        load_data(sampled)


def test_items_as_mappings_and_loaders() -> None:
    x, y, mask = torch.randn(20, 3), torch.arange(20) % 2, torch.rand(20, 3) < 0.8
    pairs = TensorDataset(x, y)
    expected = load_data(x, labels=y, mask=mask)
    mapped = load_data(Items(*({"x": x[i], "mask": mask[i], "y": y[i]} for i in range(20))))
    assert mapped.record["evaluation_sha256"] == expected.record["evaluation_sha256"]
    assert mapped.record["training_sha256"] == expected.record["training_sha256"]
    for loader in (DataLoader(pairs, 7, shuffle=True), DataLoader(pairs, 3, drop_last=True)):
        assert load_data(loader).record["training_sha256"] == load_data(pairs).record["training_sha256"]


def test_a_stream_needs_parts_of_its_own() -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    for source in (Stream(*x[:20]), DataLoader(Stream(*x[:20]), batch_size=5)):
        for held in ({}, {"validation": 0.1, "test": x[:3]}, {"test": [1]}):
            with pytest.raises(InputError, match="Stream has no numbered items to hold out; give validation and test"):
                load_data(source, **held)  # type: ignore[arg-type]
        data = load_data(source, validation=Stream(*x[20:25]), test=x[25:])
        assert np.array_equal(whole(data.train), x[:20].astype(np.float32))
        assert np.array_equal(whole(data.validation), x[20:25].astype(np.float32))


@pytest.mark.parametrize("form", ["csr_array", "csc_matrix", "coo_array", "lil_array"])
def test_sparse_matrices_are_what_they_hold(form: str) -> None:
    x = np.random.default_rng(0).poisson(0.3, (60, 5))
    matrix = getattr(scipy.sparse, form)(x)
    assert load_data(matrix).record == load_data(x).record
    assert load_data(x, test=matrix).record["sizes"]["test"] == 60
    assert torch.equal(as_tensor(matrix, "x"), torch.from_numpy(x))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.array([[None, {}]] * 20), {}, "'1' holds dict"),
        (np.zeros((20, 2), complex), {}, "x has dtype complex128"),
        (np.full((20, 2, 2), "a"), {}, "x has dtype <U1"),
        (np.zeros(20), {}, r"x has shape \(20,\), but \(N, ...\) is expected"),
        (np.zeros((0, 2)), {}, r"x is empty, of shape \(0, 2\)"),
        (np.zeros((20, 0)), {}, r"x is empty, of shape \(20, 0\)"),
        (np.zeros((4, 2)), {}, "0.1 of 4 datapoints for test leaves 0 there and 4 for the rest"),
        (np.full((20, 2), 1e300), {}, "40 of the observed values are infinite in float32"),
        (np.full((20, 2), 2**30), {}, "float32 is exact to"),
        (np.ma.masked_array(np.zeros((20, 2)), mask=True), {}, "x is a masked array"),
        (np.zeros((20, 2)), {"labels": np.zeros(19, int)}, "there are 19 labels but 20 datapoints"),
        (np.zeros((20, 2)), {"labels": np.full(20, -2)}, "labels go down to -2, but classes are numbers from 0"),
        (np.zeros((20, 2)), {"labels": np.full((20, 2), np.nan)}, "40 label values are NaN"),
        (np.zeros((20, 2)), {"labels": "species"}, "names a column, but the data are in memory"),
        (np.zeros((20, 2)), {"mask": np.ones((20, 3), bool)}, r"mask is bool of shape \(20, 3\), but bool of shape"),
        (np.zeros((20, 2)), {"mask": np.ones((20, 2))}, "the mask is float64"),
        (np.zeros((20, 2)), {"mask": "zero"}, "mask was given 'zero'"),
        (np.zeros((20, 2)), {"validation": 1.5}, "validation was given 1.5"),
        (np.zeros((20, 2)), {"test": 0}, "test was given 0"),
        (np.zeros((20, 2)), {"seed": -1}, "seed was given -1"),
        (np.zeros((20, 2)), {"binarize": "dynmic"}, "binarize was given 'dynmic'.*'dynamic'"),
        ([[1.0]], {}, "data cannot be a list"),
    ],
)
def test_what_cannot_be_modelled_is_refused(values: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_data(values, **options)
    assert "\n" not in str(caught.value)


def test_values_that_are_not_finite_are_counted_and_located(x: np.ndarray) -> None:
    x[7, 2], x[9, 0] = -np.inf, np.inf
    with pytest.raises(InputError, match=r"2 of the observed values are infinite.* index \(7, 2\).*put NaN"):
        load_data(x)


# Files.


def write(path: Path, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Writes x (and y where the format has it); returns the options that read it back."""
    frame = pd.DataFrame(x, columns=list("abcd")).assign(label=y)
    if path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".npz":
        np.savez(path, x=x, y=y)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return {"labels": "label"} if path.suffix in (".csv", ".parquet") else {}


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
@pytest.mark.parametrize("integers", [False, True])
def test_round_trip_through_files(tmp_path: Path, x: np.ndarray, suffix: str, integers: bool) -> None:
    values = np.round(100 * x).astype(int) if integers else x
    path = tmp_path / f"own{suffix}"
    options = write(path, values, np.arange(60) % 3)
    data = load_data(path, **options)
    assert data.name == path.name
    assert data.label_dim == (0 if suffix == ".npy" else 3)
    assert data.train.x.dtype == (torch.int16 if integers else torch.float32)
    np.testing.assert_allclose(rows(data), in_order(values), rtol=1e-6)
    assert load_data(str(path), **options).record == data.record


def test_own_test_split_in_an_archive(tmp_path: Path, x: np.ndarray) -> None:
    path = tmp_path / "split.npz"
    np.savez(path, x_train=x[:50], y_train=np.arange(50), x_test=x[50:], y_test=np.arange(50, 60))
    data = load_data(path)
    assert torch.equal(whole(data.test), torch.from_numpy(x[50:]).float())
    assert data.record["sizes"] == {"train": 45, "validation": 5, "test": 10}
    assert data.label_dim == 60
    with pytest.raises(InputError, match=r"has a test part of its own; leave test=0\.2 out"):
        load_data(path, test=0.2)
    with pytest.raises(InputError, match="put labels and masks for each part into the file"):
        load_data(path, mask=np.ones((60, 4), bool))


def test_archive_with_one_array_a_mask_or_other_labels(tmp_path: Path, x: np.ndarray) -> None:
    path = tmp_path / "one.npz"
    np.savez(path, anything=x)
    assert load_data(path).event_shape == (4,)
    np.savez(path, x=np.where(x > 0, x, np.nan), mask=x > 0)
    batch = load_data(path).test.batch(slice(None))
    assert batch.mask is not None
    assert torch.equal(batch.x > 0, batch.mask)
    np.savez(path, x=x, target=np.arange(60) % 4)
    assert load_data(path, labels="target").label_dim == 4
    with pytest.raises(InputError, match="there is no use for an array 'target'"):
        load_data(path)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": 1, "x_test": 1}, {}, "an array 'x_test'"),
        ({"x_train": 1, "x_tets": 1}, {}, "'x_tets'"),
        ({"x_test": 1, "y_test": 1}, {}, "expected an array x, or x_train, but it holds x_test, y_test"),
        ({"x": 1, "mask": 1}, {"labels": "target"}, "there are no labels 'target'; it holds x, mask"),
        ({"x_train": 2, "x_test": 3}, {}, r"\(test\): datapoints are float32 of shape \(3,\), but those"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, arrays: Any, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.npz"
    contents: dict[str, Any] = {key: np.zeros((20, width)) for key, width in arrays.items()}
    np.savez(path, **contents)
    with pytest.raises(InputError, match=message):
        load_data(path, **options)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_truncated_files_are_refused_by_name(tmp_path: Path, x: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    write(path, x, np.arange(60))
    whole_file = path.read_bytes()
    for size in (0, 5, len(whole_file) // 2, len(whole_file) - 40):
        path.write_bytes(whole_file[:size])
        with pytest.raises(InputError, match=f"cut{suffix}: cannot be read") as caught:
            load_data(path)
        assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    for name, value in (("o.npy", np.array([[{}]])), ("o.npz", None)):
        path = tmp_path / name
        if value is None:
            np.savez(path, x=np.array([[{}]]))
        else:
            np.save(path, value, allow_pickle=True)
        with pytest.raises(InputError, match=rf"{name}: cannot be read \(Object arrays cannot be loaded"):
            load_data(path)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "cannot be read"),
        ("a,b\n1,2\n3,4,5\n", {}, "cannot be read"),
        ("a,b\n1,2,3\n3,4,5\n", {}, "cannot be read"),
        ("a,b\n1,2\n", {"labels": "c"}, "there is no label column 'c'"),
        ("a,species\n1,u\n", {"labels": "specis"}, "did you mean 'species'"),
        ("0.5,1.5\n1,2\n", {}, "the first row holds numbers"),
        (",a\n0,1\n1,2\n", {}, "column 0 has no name"),
        ("a,b\n1,2\n3,inf\n", {}, r"1 of the observed values are infinite.*index \(1, 1\)"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_data(path, **options)
    assert "table.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_with_names_for_labels_truth_values_and_gaps(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    lines = [f"{i},{i % 2 == 0},{'' if i % 5 == 0 else i / 2},{'uvw'[i % 3]}" for i in range(30)]
    path.write_text("\n".join(["n,even,half,kind", *lines]))
    data = load_data(path, labels="kind", mask="nan")
    assert data.record["classes"] == ["u", "v", "w"]
    batch = data.train.batch(slice(None))
    assert batch.y is not None
    assert batch.mask is not None
    assert torch.equal(batch.y, batch.x[:, 0].long() % 3)
    assert torch.equal(batch.x[:, 1], (batch.x[:, 0] % 2 == 0).float())
    assert torch.equal(batch.mask[:, 2], batch.x[:, 0] % 5 != 0)


def test_a_header_of_column_numbers_is_a_header(tmp_path: Path, x: np.ndarray) -> None:
    pd.DataFrame(x).to_csv(tmp_path / "t.csv", index=False)
    assert sum(load_data(tmp_path / "t.csv").record["sizes"].values()) == 60


def test_paths_that_do_not_exist_or_have_another_ending(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.npy: there is no such file"):
        load_data(tmp_path / "gone.npy")
    (tmp_path / "a.pkl").touch()
    with pytest.raises(InputError, match=r"cannot read a file that ends in '\.pkl'"):
        load_data(tmp_path / "a.pkl")
    np.save(tmp_path / "a.npy", np.zeros((20, 2)))
    with pytest.raises(InputError, match="names a column or an array"):
        load_data(tmp_path / "a.npy", labels="y")


# Folders of images.


def draw(folder: Path, count: int = 6, *, size: tuple[int, int] = (5, 4), mode: str = "L", ending: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(count).integers(0, 256, (count, size[1], size[0], 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).convert(mode).save(folder / f"{i}.{ending}")


def test_folder_of_images_with_classes(tmp_path: Path) -> None:
    for name, value in (("cats", 10), ("dogs", 20)):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("L", (5, 4), value + i).save(tmp_path / name / f"{i}.png")
    data = load_data(tmp_path)
    assert data.event_shape == (1, 4, 5)
    assert data.record["classes"] == ["cats", "dogs"]
    for part in PARTS:
        split = getattr(data, part)
        assert torch.equal(split.y, (split.x[:, 0, 0, 0] >= 20).long())


@pytest.mark.parametrize(("mode", "ending", "channels"), [("L", "png", 1), ("RGB", "jpg", 3), ("RGBA", "png", 3)])
def test_folder_of_images_without_classes(tmp_path: Path, mode: str, ending: str, channels: int) -> None:
    draw(tmp_path / "images", mode=mode, ending=ending)
    data = load_data(tmp_path / "images", validation=0.3, test=0.3)
    assert data.event_shape == (channels, 4, 5)
    assert data.label_dim == 0
    assert data.record["factor"] == pytest.approx(1 / 255)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no images"):
        load_data(tmp_path)
    draw(tmp_path / "a")
    draw(tmp_path / "a", 1, size=(9, 9), ending="jpeg")
    with pytest.raises(InputError, match=r"images differ in size: .*0\.jpeg is 9 x 9, .*0\.png is 5 x 4"):
        load_data(tmp_path / "a")
    draw(tmp_path / "b" / "class")
    draw(tmp_path / "b", 1)
    with pytest.raises(InputError, match=r"0\.png: this image lies beside the sub-folders"):
        load_data(tmp_path / "b")
    draw(tmp_path / "c")
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(tmp_path / "c" / "3.png")
    with pytest.raises(InputError, match=r"3\.png: more than 8 bits per pixel"):
        load_data(tmp_path / "c")
    draw(tmp_path / "d", size=(40, 40))
    picture = (tmp_path / "d" / "2.png").read_bytes()
    for content in (picture[: len(picture) // 2], b"", b"no image"):
        (tmp_path / "d" / "2.png").write_bytes(content)
        with pytest.raises(InputError, match=r"2\.png: cannot be read"):
            load_data(tmp_path / "d")


# Named data sets.


def idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes())


def small_mnist(root: Path, folder: str = "MNIST", prefixes: tuple[str, str] = ("train", "t10k")) -> np.ndarray:
    """Forty training and ten test images in MNIST's format; returns the test images."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
    for prefix, part in zip(prefixes, (slice(40), slice(40, 50)), strict=True):
        idx(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", pixels[part])
        idx(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", np.arange(50, dtype=np.uint8)[part] % 10)
    return pixels[40:]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_data_sets_in_the_format_of_mnist(tmp_path: Path, name: str, folder: str) -> None:
    test = small_mnist(tmp_path, folder)
    data = load_data(name, binarize="none", data_dir=tmp_path)
    assert data.event_shape == (1, 28, 28)
    assert data.label_dim == 10
    assert data.record["sizes"] == {"train": 36, "validation": 4, "test": 10}
    assert np.array_equal(data.test.x[:, 0], test)
    assert load_data(name, data_dir=tmp_path).binarize == "dynamic"
    with pytest.raises(InputError, match="mask goes with your own data"):
        load_data(name, mask="nan", data_dir=tmp_path)


def test_emnist_is_upright(tmp_path: Path) -> None:
    test = small_mnist(tmp_path, "EMNIST", ("emnist-balanced-train", "emnist-balanced-test"))
    data = load_data("emnist", binarize="none", data_dir=tmp_path)
    assert np.array_equal(data.test.x[:, 0], test.swapaxes(1, 2))


def test_truncated_idx_file_is_named(tmp_path: Path) -> None:
    small_mnist(tmp_path)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    content = path.read_bytes()
    for size in (0, 3, 16, 1000):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"train-images-idx3-ubyte: cannot be read .*; it may be truncated"):
            load_data("mnist", data_dir=tmp_path)


def test_omniglot_has_ink_of_one_and_other_classes_in_the_test_part(tmp_path: Path) -> None:
    for part, characters in (("images_background", 3), ("images_evaluation", 2)):
        for character in range(characters):
            folder = tmp_path / "omniglot-py" / part / "Greek" / f"character{character}"
            folder.mkdir(parents=True)
            for i in range(5):
                paper = Image.new("1", (105, 105), 1)
                paper.paste(0, (0, 0, 105, 50))
                paper.save(folder / f"{i}.png")
    data = load_data("omniglot", binarize="none", data_dir=tmp_path)
    assert data.event_shape == (1, 28, 28)
    assert data.test.y is not None
    assert data.test.y.unique().tolist() == [3, 4]
    image = whole(data.test)[0, 0]
    assert image[0].min() == 1
    assert image[-1].max() == 0


def test_cifar10_is_read_from_its_binary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CIFAR10_RECORDS", 4)
    records = np.random.default_rng(0).integers(0, 256, (24, 3073)).astype(np.uint8)
    records[:, 0] %= 10
    (tmp_path / "cifar-10-batches-bin").mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, part in zip(names, np.split(records, 6), strict=True):
        part.tofile(tmp_path / "cifar-10-batches-bin" / f"{name}.bin")
    data = load_data("cifar10", data_dir=tmp_path)
    assert data.binarize is None
    assert data.event_shape == (3, 32, 32)
    assert data.record["sizes"] == {"train": 18, "validation": 2, "test": 4}
    assert np.array_equal(data.test.x.flatten(1), records[20:, 1:])
    assert data.test.y is not None
    assert data.test.y.tolist() == records[20:, 0].tolist()
    (tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"data_batch_2\.bin: holds 3 bytes, not 12292"):
        load_data("cifar10", data_dir=tmp_path)


def test_svhn_with_other_content_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}_32x32.mat").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"train_32x32\.mat: cannot be read"):
        load_data("svhn", data_dir=tmp_path)


def test_binarized_mnist_is_as_in_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BINARIZED_MNIST_IMAGES", {"train": 5, "valid": 3, "test": 2})
    pixels = np.random.default_rng(0).integers(0, 2, (10, 784))
    (tmp_path / "BinarizedMNIST").mkdir()
    for name, part in (("train", slice(5)), ("valid", slice(5, 8)), ("test", slice(8, 10))):
        np.savetxt(tmp_path / "BinarizedMNIST" / f"binarized_mnist_{name}.amat", pixels[part], "%d")
    data = load_data("binarized-mnist", data_dir=tmp_path)
    for split, expected in ((data.train, pixels[:5]), (data.validation, pixels[5:8]), (data.test, pixels[8:])):
        assert np.array_equal(whole(split).flatten(1), expected)
    assert data.event_shape == (1, 28, 28)
    assert data.label_dim == 0
    data.validate_support(constraints.boolean, "the bernoulli likelihood")
    with pytest.raises(InputError, match="validation part of its own"):
        load_data("binarized-mnist", validation=0.5, data_dir=tmp_path)
    (tmp_path / "BinarizedMNIST/binarized_mnist_valid.amat").write_text("0 1 1")
    with pytest.raises(InputError, match=r"valid\.amat: expected 3 x 784 zeros and ones"):
        load_data("binarized-mnist", data_dir=tmp_path)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", [name for name in NAMED if name != "digits"])
def test_a_failed_download_says_which_files_to_put_where(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    with pytest.raises(InputError, match=f"^{name} is not in {root} and could not be downloaded") as caught:
        load_data(name, data_dir=root)
    assert "\n" not in str(caught.value)
    assert all(file in str(caught.value) for file in NAMED[name].files)
    assert not list(root.iterdir())


def test_a_download_is_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files arrive as torchvision unpacks them, and are not asked for again."""
    small_mnist(tmp_path / "remote")

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        packed = gzip.compress((tmp_path / "remote/MNIST/raw" / Path(filename).stem).read_bytes())
        Path(root, filename).write_bytes(packed)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    root = tmp_path / "data"
    load_data("mnist", data_dir=root)
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    monkeypatch.setattr("torchvision.datasets.utils.download_url", None)
    load_data("mnist", data_dir=root)


def test_the_archive_of_cifar10_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CIFAR10_RECORDS", 2)

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        with tarfile.open(Path(root, filename), "w:gz") as archive:
            for file in NAMED["cifar10"].files:
                member = tarfile.TarInfo(file)
                member.size = 2 * 3073
                archive.addfile(member, io.BytesIO(bytes(member.size)))

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    assert load_data("cifar10", data_dir=tmp_path).record["sizes"] == {"train": 9, "validation": 1, "test": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-bin"]


def test_data_directory_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_mnist(tmp_path)
    monkeypatch.setenv("PYROLATENT_DATA", str(tmp_path))
    assert load_data("mnist").declaration == "mnist"


@pytest.mark.skipif(
    not Path(os.environ.get("PYROLATENT_DATA", ""), "MNIST/raw/train-images-idx3-ubyte").is_file(),
    reason="MNIST is not in the folder that the environment variable PYROLATENT_DATA names",
)
def test_mnist_itself() -> None:
    data = load_data("mnist")
    assert data.record["sizes"] == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert whole(data.train).mean().item() == pytest.approx(0.1307, abs=0.001)
    assert data.test.y is not None
    assert data.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    data.validate_support(constraints.boolean, "the bernoulli likelihood")


# Declarations.


@pytest.mark.parametrize(
    ("given", "declaration"),
    [
        ("digits", "digits"),
        ({"digits": None}, "digits"),
        ({"digits": {"binarize": "dynamic", "seed": 0, "test": 0.1}}, "digits"),
        ({"digits": {"binarize": "none", "seed": 3}}, {"digits": {"binarize": "none", "seed": 3}}),
        ({"digits": {"dequantize": "uniform"}}, {"digits": {"dequantize": "uniform"}}),
        ({"digits": {"dequantize": "uniform", "binarize": "none"}}, {"digits": {"dequantize": "uniform"}}),
    ],
)
def test_declaration_is_short_and_re_creates_the_data(given: Any, declaration: Any) -> None:
    data = load_data(given)
    assert data.declaration == declaration
    assert load_data(declaration).record == data.record
    assert json.loads(json.dumps(data.record)) == data.record


def test_declaration_of_a_file_works_from_everywhere(
    tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "own.csv", x, np.arange(60) % 3)
    monkeypatch.chdir(tmp_path)
    data = load_data("own.csv", labels="label", validation=0.2)
    monkeypatch.chdir("/")
    assert isinstance(data.declaration, dict)
    assert data.declaration == {str(tmp_path / "own.csv"): {"labels": "label", "validation": 0.2}}
    assert load_data(data.declaration).record == data.record


def test_data_directory_is_declared_where_it_was_given(tmp_path: Path) -> None:
    small_mnist(tmp_path)
    data = load_data({"mnist": {"binarize": "static"}}, data_dir=tmp_path)
    assert data.declaration == {"mnist": {"binarize": "static", "data_dir": str(tmp_path)}}


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ("minst", "there is no data set 'minst'; .*did you mean 'mnist'"),
        ("MNIST", "there is no data set 'MNIST'"),
        ({"digits": {"binarise": "static"}}, r"data\.digits has no option 'binarise'; .*did you mean 'binarize'"),
        ({"digits": {"binarize": "statik"}}, r"data\.digits\.binarize was given 'statik'"),
        ({"digits": "static"}, "takes its options as a mapping, but was given 'static'"),
        ({"digits": {}, "mnist": {}}, "was given 2: digits, mnist"),
        ({}, "was given 0: none"),
    ],
)
def test_declarations_that_are_refused(declaration: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(declaration)


def test_an_option_is_given_once() -> None:
    with pytest.raises(InputError, match="binarize is declared for digits and given beside it"):
        load_data({"digits": {"binarize": "static"}}, binarize="threshold")


# Support.


def test_grey_values_under_a_bernoulli_are_refused_with_what_to_declare() -> None:
    message = (
        r"^digits holds values in \[0, 1\] that are not all 0 or 1, but the bernoulli likelihood is defined on "
        r"\{0, 1\}: declare binarize: dynamic, static or threshold, "
        "or relaxed to train on grey values as a cross-entropy$"
    )
    with pytest.raises(InputError, match=message):
        load_data("digits", binarize="none").validate_support(constraints.boolean, "the bernoulli likelihood")


@pytest.mark.parametrize("binarize", ["dynamic", "static", "threshold", "relaxed"])
def test_binarized_and_relaxed_values_go_with_a_bernoulli(binarize: Any) -> None:
    load_data("digits", binarize=binarize).validate_support(constraints.boolean, "the bernoulli likelihood")


@pytest.mark.parametrize("constraint", [constraints.real, constraints.unit_interval])
def test_relaxed_goes_with_the_bernoulli_alone(constraint: Any) -> None:
    with pytest.raises(
        InputError, match=r"relaxed, which goes with the bernoulli likelihood alone.* the beta likelihood;"
    ):
        load_data("digits", binarize="relaxed").validate_support(constraint, "the beta likelihood")


@pytest.mark.parametrize(
    ("values", "constraint", "ok"),
    [
        (np.linspace(-3, 2, 40), constraints.real, True),
        (np.linspace(-3, 2, 40), constraints.boolean, False),
        (np.linspace(0, 2, 40), constraints.positive, False),
        (np.linspace(0, 2, 40), constraints.nonnegative, True),
        (np.linspace(0, 1, 40), constraints.unit_interval, True),
        (np.arange(40), constraints.nonnegative_integer, True),
        (np.arange(40) / 2, constraints.nonnegative_integer, False),
        (np.arange(40) / 2, constraints.dependent, True),
        (np.linspace(-3, 2, 40), constraints.independent(constraints.positive, 1), False),
    ],
)
def test_support(values: np.ndarray, constraint: Any, ok: bool) -> None:
    data = load_data(values[:, None])
    if ok:
        data.validate_support(constraint, "the some likelihood")
    else:
        with pytest.raises(InputError, match=r"array holds values in \[.* the some likelihood is defined on"):
            data.validate_support(constraint, "the some likelihood")


def test_support_of_vectors() -> None:
    simplex = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    load_data(simplex).validate_support(constraints.simplex, "the dirichlet likelihood")
    with pytest.raises(InputError, match="dirichlet likelihood is defined on Simplex"):
        load_data(2 * simplex).validate_support(constraints.simplex, "the dirichlet likelihood")


def test_what_is_not_observed_may_lie_outside_the_support() -> None:
    values = np.linspace(0, 2, 40)[:, None]
    load_data(values, mask=values > 0).validate_support(constraints.positive, "the gamma likelihood")


def test_dequantized_values_lie_in_the_unit_interval() -> None:
    load_data("digits", dequantize="uniform").validate_support(constraints.unit_interval, "the beta likelihood")


# Devices.


@pytest.mark.gpu
def test_evaluation_is_the_same_on_a_gpu() -> None:
    data = load_data("digits")
    moved = data.to("cuda")
    assert moved.train.batch(slice(4)).x.device.type == "cuda"
    assert torch.equal(whole(moved.test).cpu(), whole(data.test))
    assert sum(len(batch.x) for batch in moved.train.batches(100, shuffle=True)) == len(data.train)
    moved.validate_support(constraints.boolean, "the bernoulli likelihood")


def test_moving_keeps_everything(x: np.ndarray) -> None:
    data = load_data(x, labels=np.arange(60) % 2, mask=x > 0)
    moved = data.to("meta")
    assert moved.train.x.device.type == "meta"
    assert moved.train.y is not None
    assert moved.train.mask is not None
    assert moved.record is data.record
    assert repr(data) == "Data(array: 49 train, 5 validation, 6 test; event_shape=(4,), label_dim=2; 52.9 % missing)"


# ------------------------------------------------------------------------------------------------ few labels


@pytest.mark.parametrize("labelled", [1, 10, 25, 100])
def test_few_labels_are_kept_as_many_of_each_class_as_possible(labelled: int) -> None:
    whole, few = load_data("digits"), load_data("digits", labelled=labelled)
    assert whole.train.y is not None
    assert few.train.y is not None
    known = few.train.y >= 0
    assert int(known.sum()) == labelled
    assert torch.equal(few.train.y[known], whole.train.y[known])
    counts = torch.bincount(few.train.y[known], minlength=10)
    assert int(counts.max() - counts.min()) <= 1
    assert few.label_dim == 10
    assert few.record["evaluation_sha256"] == whole.record["evaluation_sha256"]
    assert torch.equal(few.train.y, load_data("digits", labelled=labelled).train.y)
    assert not torch.equal(few.train.y, load_data("digits", labelled=labelled, seed=1).train.y)


def test_labels_that_are_not_there_cannot_be_kept() -> None:
    with pytest.raises(InputError, match="has no class labels of which labelled: 5 could be kept"):
        load_data(np.zeros((20, 3), dtype=np.float32), labelled=5)
    with pytest.raises(InputError, match="labelled was 2000, but digits has"):
        load_data("digits", labelled=2000)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_labelled_datapoints_are_repeated_to_their_share(share: float) -> None:
    plain = load_data("digits", labelled=20).train
    train = load_data("digits", labelled=20, labelled_share=share).train
    assert plain.y is not None
    assert train.y is not None
    known = train.y >= 0
    # To within one datapoint, rounding.
    assert abs(int(known.sum()) - share * len(train)) <= 1
    assert int((~known).sum()) == len(plain) - 20
    times = torch.stack([(train.x[known] == x).flatten(1).all(1).sum() for x in plain.x[plain.y >= 0]])
    assert int(times.max() - times.min()) <= 1


def test_a_share_needs_labels_known_and_unknown() -> None:
    with pytest.raises(InputError, match="digits has no known labels beside unknown ones"):
        load_data("digits", labelled_share=0.2)


def test_a_data_directory_that_is_given_comes_before_a_declared_one(tmp_path: Path) -> None:
    """As `pyrolatent evaluate RUN --data-dir` on another machine needs it."""
    declared = {"digits": {"data_dir": "/where/it/was/trained", "binarize": "threshold"}}
    data = load_data(declared, data_dir=tmp_path)
    assert data.declaration == {"digits": {"data_dir": str(tmp_path), "binarize": "threshold"}}


def test_data_do_not_change_with_the_arrays_that_they_were_loaded_from() -> None:
    parts = [np.full((20, 3), float(i), dtype=np.float32) for i in range(3)]
    data = load_data(parts[0], validation=parts[1], test=parts[2])
    for part in parts:
        part[:] = 9
    assert [split.x.unique().tolist() for split in data.splits] == [[0.0], [1.0], [2.0]]
