"""Parts and rows: the user's own parts are kept, rows keep their numbers and names, columns are matched by name."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from pyrolatent import (
    VAE,
    ConditionalVAE,
    Experiment,
    InputError,
    LinearGaussian,
    Run,
    annealed_evidence,
    evaluate,
    fit,
    load_data,
    load_rows,
    to_arviz,
    train,
)
from pyrolatent.data.splits import Data, Split

PARTS = ("train", "validation", "test")
SIZE = 40
X = np.arange(SIZE)[:, None] + np.array([0.25, 0.5])
WORDS = (["train", "test", "train", "validation"] * SIZE)[:SIZE]
SMALL: dict[str, Any] = {
    "encoder": {"mlp": {"hidden": [4]}},
    "decoder": {"mlp": {"hidden": [4]}},
    "likelihood": "normal",
}


def numbers(split: Split) -> list[int]:
    """The rows of X that a split holds, by their values."""
    return split.x[:, 0].long().tolist()


def rows_of(data: Data) -> dict[str, list[int]]:
    """The rows of each part; the recorded numbers are those that the values say."""
    for split in data.splits:
        assert split.row_numbers.tolist() == numbers(split)
    return {part: numbers(data.split(part)) for part in PARTS}


@pytest.fixture
def frame() -> pd.DataFrame:
    """A table with ids, parts and labels beside X."""
    columns = {"name": [f"n{i}" for i in range(SIZE)], "a": X[:, 0], "b": X[:, 1], "part": WORDS}
    return pd.DataFrame(columns).assign(town=(["Rome", "Oslo"] * SIZE)[:SIZE])


EXPECTED = {part: [row for row, word in enumerate(WORDS) if word == part] for part in PARTS}


# The user's own parts.


def test_parts_by_a_column_by_words_and_by_rows(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_csv(tmp_path / "x.csv", index=False)
    options: dict[str, Any] = {"split": "part", "id": "name", "labels": "town"}
    for source in (frame, tmp_path / "x.csv"):
        data = load_data(source, **options)
        assert rows_of(data) == EXPECTED
        assert data.columns is not None
        assert [column.name for column in data.columns] == ["a", "b"]
        for split in data.splits:
            assert split.ids == tuple(f"n{row}" for row in split.row_numbers.tolist())
            assert split.y is not None
            assert torch.equal(split.y, 1 - split.row_numbers % 2)
    assert rows_of(load_data(X, split=WORDS)) == EXPECTED
    held = {part: EXPECTED[part] for part in ("validation", "test")}
    for of_type in (list, np.array, torch.tensor, tuple):
        assert rows_of(load_data(X, **{part: of_type(rows) for part, rows in held.items()})) == EXPECTED
    declared = load_data(tmp_path / "x.csv", labels="town", id="name", kinds={"part": "category"}, **held)
    assert isinstance(declared.declaration, dict)
    assert load_data(declared.declaration).record == declared.record


def test_what_is_not_given_is_drawn_from_the_rest() -> None:
    data = load_data(X, test=[3, 1, 2])
    assert numbers(data.test) == [3, 1, 2]
    assert [len(split) for split in data.splits] == [33, 4, 3]
    assert sorted(row for rows in rows_of(data).values() for row in rows) == list(range(SIZE))
    words = load_data(X, split=["test" if word == "test" else "train" for word in WORDS])
    assert numbers(words.test) == EXPECTED["test"]
    assert len(words.validation) == 3


def test_parts_in_files_arrays_and_tables(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {part: X[rows] for part, rows in EXPECTED.items()}
    expected = {part: values[:, 0].astype(int).tolist() for part, values in own.items()}
    labels = np.arange(SIZE) % 3
    arrays = load_data(own["train"], validation=own["validation"], test=own["test"])
    assert {part: numbers(arrays.split(part)) for part in PARTS} == expected
    assert [split.row_numbers.tolist() for split in arrays.splits] == [list(range(len(own[part]))) for part in PARTS]
    pairs = {part: (own[part], labels[EXPECTED[part]]) for part in PARTS}
    for last in (pairs["test"], TensorDataset(*(torch.from_numpy(values) for values in pairs["test"]))):
        paired = load_data(pairs["train"], validation=pairs["validation"], test=last)
        for split in paired.splits:
            assert split.y is not None
            assert split.y.tolist() == [row % 3 for row in numbers(split)]
    tables = {part: frame.iloc[EXPECTED[part]][["a", "b", "town"]] for part in PARTS}
    tables["test"] = tables["test"][["town", "b", "a"]].assign(town="Bern")
    found = load_data(tables["train"], validation=tables["validation"], test=tables["test"], labels="town")
    assert {part: numbers(found.split(part)) for part in PARTS} == expected
    assert found.classes == ("Bern", "Oslo", "Rome")
    for part, table in tables.items():
        table.to_csv(tmp_path / f"{part}.csv", index=False)
    monkeypatch.chdir("/")
    files = {"validation": "validation.csv", "test": "test.csv", "labels": "town"}
    experiment = Experiment(data={"train.csv": files}, directory=tmp_path)
    read = experiment.load_data()
    assert read.record["evaluation_sha256"] == found.record["evaluation_sha256"]
    assert load_data(read.declaration).record == read.record  # type: ignore[arg-type]


def test_words_have_one_code_in_all_files() -> None:
    train_part = pd.DataFrame({"town": ["Rome"] * 20, "n": 1})
    data = load_data(train_part, test=pd.DataFrame({"n": 2.5, "town": ["Bern"] * 3}))
    assert data.columns is not None
    assert data.columns[0].categories == ("Bern", "Rome")
    assert data.train.x[:, 0].unique().tolist() == [1]
    assert data.test.x.tolist() == [[0, 2.5]] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": ["train"] * 39 + ["dev"]}, "split was 'dev' in row 39; valid: train, validation, test"),
        ({"split": ["train"] * 39 + [None]}, "split is empty in row 39"),
        ({"split": ["train"] * 30}, "split has 30 words, but there are 40 datapoints"),
        ({"split": ["test"] * 40}, "no rows are left for training"),
        ({"split": WORDS, "test": 0.2}, "split says which rows are validation and test; leave both out"),
        ({"split": WORDS, "test": [0]}, "split says which rows are validation and test"),
        ({"split": "part"}, "split='part' names a column, but the data are in memory"),
        ({"test": [40]}, "test has row 40, but rows are numbered 0 to 39"),
        ({"test": [-1]}, "test has row -1"),
        ({"test": [1, 1]}, "row 1 is twice among the rows of test and test"),
        ({"test": [1], "validation": [1]}, "row 1 is twice among the rows of"),
        ({"test": []}, "test has no rows"),
        ({"test": np.zeros((5, 3))}, r"\(test\): datapoints are float32 of shape \(3,\), but those of the training"),
        ({"test": 1}, "test was given 1; a fraction between 0 and 1, numbers of rows, or data"),
        ({"test": "gone.csv"}, r"gone\.csv: there is no such file"),
        ({"id": [1, 2]}, "there are 2 ids but 40 datapoints"),
        ({"test": pd.DataFrame(X)}, r"array: an array was given, but another part is a table"),
    ],
)
def test_parts_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_data(X, **options)
    assert "\n" not in str(caught.value)


def test_a_source_with_parts_takes_no_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=X, x_test=X)
    for held in (X, [1, 2], tmp_path / "x.npz"):
        with pytest.raises(InputError, match="has a test part of its own; leave test out"):
            load_data(tmp_path / "x.npz", test=held)
    with pytest.raises(InputError, match=r"x\.npz has parts of its own, and so cannot be the test part"):
        load_data(X, test=tmp_path / "x.npz")


# Numbers and names of rows in results.


def test_results_have_the_numbers_of_their_rows(frame: pd.DataFrame, tmp_path: Path) -> None:
    data = load_data(frame.drop(columns="part"), id="name", labels="town")
    model = VAE(data.event_shape, latent_dim=1, **SMALL)
    run = Run.save(tmp_path / "run", fit(model, data, epochs=1, progress=False))
    for split in PARTS:
        found = evaluate(model, data, split=split, particles=5)
        assert torch.equal(found.each["row"], data.split(split).row_numbers)
    annealed = annealed_evidence(model, data, size=2, chains=2, steps=2)
    assert torch.equal(annealed.each["row"], data.test.row_numbers[:2])
    run.evaluate(data, particles=5)
    written = safetensors.torch.load_file(tmp_path / "run" / "evaluation.safetensors")
    assert torch.equal(written["row"], data.test.row_numbers)
    with (tmp_path / "run" / "rows.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["part"] for row in rows] == ["train"] * 32 + ["validation"] * 4 + ["test"] * 4
    assert [int(row["row"]) for row in rows] == torch.cat([split.row_numbers for split in data.splits]).tolist()
    assert all(row["id"] == f"n{row['row']}" for row in rows)
    groups = to_arviz(model, data, size=3, draws=8, predictive=4)
    assert groups["constant_data"]["row"].values.tolist() == data.test.row_numbers[:3].tolist()
    assert groups["observed_data"]["x"].coords["feature"].values.tolist() == ["a", "b"]


def test_rows_without_names_and_of_repeated_labels(tmp_path: Path) -> None:
    data = load_data(X, labels=np.arange(SIZE) % 2, labelled=2, labelled_share=0.5)
    assert data.train.row_numbers.tolist() == numbers(data.train)
    model = LinearGaussian(data.event_shape, latent_dim=1)
    Run.save(tmp_path / "run", fit(model, data, epochs=1, progress=False))
    assert (tmp_path / "run" / "rows.csv").read_text().splitlines()[:2] == [
        "part,row",
        f"train,{numbers(data.train)[0]}",
    ]
    assert data.to("cpu", torch.float64).test.row_numbers.tolist() == numbers(data.test)


# Duplicates.


def test_duplicates_within_and_between_parts_are_counted_and_said() -> None:
    x = X.copy()
    x[1] = x[0]
    x[5] = x[0]
    x[6] = x[3]
    data = load_data(x, validation=[5, 6, 7], test=[8, 9])
    assert data.record["duplicates"] == {"train": 1, "validation": 0, "test": 0, "between": 2}
    said = "duplicates: 1 repeated in train, 2 rows of validation or test that are in train too"
    assert said in data.describe().splitlines()
    assert "duplicates" not in load_data(X).describe()
    gaps = np.array([[0.0, np.nan], [0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    assert load_data(gaps, test=[2], validation=[3]).record["duplicates"]["train"] == 0


# Data to apply a model to.


def test_rows_are_matched_by_the_names_of_their_columns(frame: pd.DataFrame, tmp_path: Path) -> None:
    data = load_data(frame, id="name", labels="town", split="part")
    moved = frame[["town", "b", "name", "a"]].iloc[::-1]
    moved.to_csv(tmp_path / "new.csv", index=False)
    for source in (moved, tmp_path / "new.csv"):
        for like in (data, data.record):
            found = load_rows(source, like)
            assert torch.equal(found.x, torch.from_numpy(X[::-1].copy()).float())
            assert found.ids == tuple(f"n{row}" for row in reversed(range(SIZE)))
            assert found.y is not None
            assert found.y.tolist() == [1 - row % 2 for row in reversed(range(SIZE))]
            assert found.row_numbers.tolist() == list(range(SIZE))
    one = load_rows(pd.DataFrame({"b": [None], "a": [1]}), data)
    assert one.y is None
    assert one.mask is not None
    assert (one.x.tolist(), one.mask.tolist()) == ([[1, 0]], [[True, False]])
    for labels in (["Oslo", "Rome", None], [0, 1, -1], np.array([0, 1, -1])):
        assert torch.equal(load_rows(X[:3], data, labels=labels).y, torch.tensor([0, 1, -1]))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="there is no class '2' in the training data"):
        load_rows(X[:1], data, labels=[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="b"), "the table lacks 'b'; its columns must be a, b, city"),
        (lambda f: f.assign(c=1), "the table also has 'c'; its columns must be a, b, city"),
        (lambda f: f.rename(columns={"a": "A"}), "the table lacks 'a' and also has 'A'"),
        (lambda f: f.assign(town="Paris"), "there is no class 'Paris' in the training data; valid: Oslo, Rome"),
        (lambda f: f.assign(city="Paris"), "the column 'city' holds 'Paris', which is new; valid: Bern, Oslo"),
        (lambda f: f.assign(a="x"), "the column 'a' holds 'x', which is new; its cells are numbers"),
        (lambda f: f.assign(city=1), "the column 'city' holds '1', which is new"),
        (lambda f: X[:, :1], r"x has shape \(40, 1\), but the training data \('N', 3\)"),
        (lambda f: "digits", "there is no data set 'digits'|no such file"),
    ],
)
def test_rows_of_other_columns_or_words_are_refused_by_name(frame: pd.DataFrame, change: Any, message: str) -> None:
    known = frame.drop(columns=["name", "part"]).assign(city=(["Bern", "Oslo"] * SIZE)[:SIZE])
    data = load_data(known, labels="town")
    with pytest.raises(InputError, match=message) as caught:
        load_rows(change(known), data)
    assert "\n" not in str(caught.value)


def test_images_are_divided_as_the_training_data_were() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 4, 4), np.uint8)
    data = load_data(pixels)
    for given in (pixels, pixels[:, None] / 255.0):
        found = load_rows(given, data).batch(slice(None)).x
        torch.testing.assert_close(found, torch.from_numpy(pixels[:, None]) / 255)
    binary = load_rows(pixels, load_data(pixels, binarize="threshold"))
    assert torch.equal(binary.batch(slice(None)).x, torch.from_numpy(pixels[:, None] > 127).float())


def test_a_run_loads_rows_and_applies_its_model(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_csv(tmp_path / "x.csv", index=False)
    declared = {"id": "name", "labels": "town", "split": "part"}
    model = {"conditional_vae": {"latent_dim": 1, **SMALL}}
    experiment = Experiment(model=model, data={"x.csv": declared}, directory=tmp_path, epochs=1)
    run = train(experiment, tmp_path / "run", progress=False)
    assert isinstance(run.model, ConditionalVAE)
    found = Run.load(tmp_path / "run").load_rows(frame)
    codes: Any = run.model.encode(*found.batch(slice(None)))
    assert isinstance(codes["z"].mean, Tensor)
    assert len(codes["z"].mean) == SIZE


TABLE = pd.DataFrame({"a": np.arange(40) / 3 - 5, "b": np.arange(40) % 7, "town": ["Bern", "Oslo"] * 20})


def test_a_mask_goes_with_the_columns_of_its_table() -> None:
    data = load_data(TABLE)
    mask = pd.DataFrame(np.ones((40, 3), bool), columns=TABLE.columns).assign(b=False)
    later = TABLE[["town", "b", "a"]]
    for given in (mask[later.columns].to_numpy(), mask, mask[["b", "a", "town"]], mask.assign(other=True)):
        rows = load_rows(later, data, mask=given)
        assert rows.mask is not None
        assert torch.equal(rows.mask, torch.tensor([[True, False, True]] * 40))
        assert torch.equal(rows.x[:, 0], torch.tensor(TABLE["a"].to_numpy(np.float32)))
    with pytest.warns(UserWarning, match="observed in no training datapoint"):
        train = load_data(TABLE.assign(y=[0, 1] * 20), labels="y", mask=mask[["b", "town", "a"]]).train
    assert train.mask is not None
    assert train.mask.all(0).tolist() == [True, False, True]
    with pytest.raises(InputError, match="the mask lacks 'town'"):
        load_rows(later, data, mask=mask[["a", "b"]])


@pytest.mark.parametrize(
    ("values", "kind", "later"),
    [
        ([3, 9] * 20, "real", [9, 9, 3]),  # quantities, though they are integers
        ([0.5, 1.5] * 20, "category", [1.5, 1.5, 0.5]),  # classes, though they are no integers
        ([1.0, np.nan, 2.0, 1.0] * 10, None, [2.0, 2.0, 1.0]),  # classes, though no later one is blank
    ],
)
def test_later_labels_are_taken_as_those_of_training(values: Any, kind: Any, later: Any) -> None:
    table = TABLE.assign(y=values)
    data = load_data(table, labels="y", kinds={"y": kind} if kind else None)
    found = load_rows(TABLE.head(3).assign(y=later), data).y
    expected = torch.tensor([[9.0], [9.0], [3.0]]) if kind == "real" else torch.tensor([1, 1, 0])
    assert found is not None
    assert torch.equal(found, expected)


@pytest.mark.parametrize("codes", [[1, 0, -1], [1.0, 0.0, np.nan], pd.array([1, 0, None], "Int64")])
def test_labels_by_number_are_codes_whatever_their_type(codes: Any) -> None:
    data = load_data(TABLE, labels=np.array([1, 2, 3, 4] * 10))  # words that look like codes
    rows = load_rows(TABLE.head(3), data, labels=codes)
    assert rows.y is not None
    assert rows.y.tolist() == [1, 0, -1]
