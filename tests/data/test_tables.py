"""Tables: words have the same code everywhere, gaps are gaps, and kinds of columns follow from the training rows."""

import copy
import json
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest
import torch

from pyrolatent import VAE, evaluate, fit, impute, load_rows
from pyrolatent.data.load import load_data
from pyrolatent.data.splits import Data
from pyrolatent.data.tables import (
    Column,
    TableShape,
    as_frame,
    cells_of,
    columns_record,
    event_shape_of,
    fill,
    in_order,
)
from pyrolatent.errors import InputError

PARTS = ("train", "validation", "test")
ROWS = 200


@pytest.fixture
def people() -> pd.DataFrame:
    """Columns of every kind, without gaps."""
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "height": random.normal(0, 10, ROWS),
            "income": random.exponential(2, ROWS),
            "visits": random.poisson(2, ROWS),
            "ill": random.integers(0, 2, ROWS),
            "smoker": random.choice(["no", "yes"], ROWS),
            "insured": random.random(ROWS) < 0.5,
            "town": random.choice(["Oslo", "Bern", "Rome"], ROWS),
        }
    )


COLUMNS = (
    Column("height", "real"),
    Column("income", "positive"),
    Column("visits", "count"),
    Column("ill", "binary"),
    Column("smoker", "binary", ("no", "yes")),
    Column("insured", "binary", ("False", "True")),
    Column("town", "category", ("Bern", "Oslo", "Rome")),
)


def cells(data: Data) -> list[tuple[Any, ...]]:
    """All rows in the user's words, None where missing, sorted."""
    assert data.columns is not None
    found = []
    for part in PARTS:
        batch = getattr(data, part).batch(slice(None))
        seen = torch.ones_like(batch.x, dtype=torch.bool) if batch.mask is None else batch.mask
        for x, observed in zip(batch.x.tolist(), seen.tolist(), strict=True):
            row = [c.categories[int(v)] if c.categories else v for c, v in zip(data.columns, x, strict=True)]
            found.append(tuple(v if o else None for v, o in zip(row, observed, strict=True)))
    return sorted(found, key=str)


def expected(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    words = frame.astype({"insured": str})
    numbers = words.select_dtypes("number").columns
    words[numbers] = words[numbers].astype(np.float32)
    return sorted((tuple(row) for row in words.itertuples(index=False)), key=str)


def saved(frame: pd.DataFrame, path: Path) -> Path:
    """Writes a table in the format of the file's ending."""
    if path.name.endswith((".csv", ".csv.gz")):
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_feather(path)
    return path


@pytest.mark.parametrize("form", ["pandas", "polars", "arrow", "csv", "csv.gz", "parquet", "feather"])
def test_a_table_is_the_same_from_every_source(people: pd.DataFrame, form: str, tmp_path: Path) -> None:
    made: dict[str, Any] = {
        "pandas": lambda: people,
        "polars": lambda: polars.from_pandas(people),
        "arrow": lambda: pa.Table.from_pandas(people),
    }
    data = load_data(made[form]() if form in made else saved(people, tmp_path / f"people.{form}"))
    assert data.columns == COLUMNS
    assert data.event_shape == (7,)
    assert cells(data) == expected(people)


def test_the_record_gives_the_columns_back(people: pd.DataFrame) -> None:
    data = load_data(people)
    record = json.loads(json.dumps(data.record))
    shape = event_shape_of(record["event_shape"], record["columns"])
    assert isinstance(shape, TableShape)
    assert shape == data.event_shape
    assert shape.columns == COLUMNS
    assert columns_record(shape.columns) == data.record["columns"]
    for copied in (copy.deepcopy(shape), pickle.loads(pickle.dumps(shape))):
        assert copied == (7,)
        assert copied.columns == COLUMNS
    older = event_shape_of([1, 8, 8], None)
    assert older == (1, 8, 8)
    assert not isinstance(older, TableShape)


def test_an_array_of_vectors_is_a_table_with_numbered_columns() -> None:
    random = np.random.default_rng(0)
    x = np.stack([random.normal(size=60), random.integers(0, 2, 60), random.poisson(3, 60), random.random(60) + 1], 1)
    assert load_data(x).columns == (
        Column("0", "real"),
        Column("1", "binary"),
        Column("2", "count"),
        Column("3", "positive"),
    )
    assert load_data(random.integers(0, 9, (20, 4, 4))).columns is None


@pytest.mark.parametrize("made", [np.array, lambda rows: np.array(rows, object)])
def test_an_array_of_words_and_gaps_is_a_table(made: Any) -> None:
    rows = [["Oslo", "1.5"], ["Bern", "2.5"]] * 20
    if made is not np.array:
        rows = [["Oslo", 1.5], [None, 2.5]] * 20
    data = load_data(made(rows))
    assert data.columns is not None
    assert data.columns[0] == Column("0", "category" if made is not np.array else "binary", data.columns[0].categories)
    assert data.columns[1] == Column("1", "positive")
    assert cells(data) == sorted(((town, float(number)) for town, number in rows), key=str)


def test_kinds_follow_from_the_training_rows_and_words_from_all(tmp_path: Path) -> None:
    x = np.arange(40.0)[:, None] % 2
    path = tmp_path / "parts.npz"
    np.savez(path, x_train=x, x_validation=x + 7.5, x_test=-x)
    assert load_data(path).columns == (Column("0", "binary"),)
    words = pd.DataFrame({"town": ["Oslo"] * 39 + ["Bern"]})
    data = load_data(words, test=0.5, validation=0.5)
    assert data.columns is not None
    assert data.columns[0].categories == ("Bern", "Oslo")


@pytest.mark.parametrize(
    ("options", "kind"), [({"binarize": "dynamic"}, "binary"), ({"binarize": "threshold"}, "binary"), ({}, "real")]
)
def test_kinds_are_of_the_values_that_are_modelled(options: dict[str, Any], kind: str) -> None:
    grey = np.random.default_rng(0).integers(0, 5, (60, 3)) / 4
    data = load_data(grey, **options)
    assert data.columns is not None
    assert {column.kind for column in data.columns} == {kind}
    levels = load_data((4 * grey).astype(int), dequantize="uniform")
    assert levels.columns is not None
    assert {column.kind for column in levels.columns} == {"real"}


def test_gaps_of_every_form_are_missing_cells(tmp_path: Path) -> None:
    (tmp_path / "gaps.csv").write_text("a,b,c\n" + "1,x,2.5\n,y,\nNA, ,1.5\n 3 ,x,nan\n" * 10)
    of_frame = pd.DataFrame({"a": [1, None, None, 3], "b": ["x", "y", None, "x"], "c": [2.5, None, 1.5, np.nan]})
    rows = [(1.0, "x", 2.5), (None, "y", None), (None, None, 1.5), (3.0, "x", None)]
    for source in (tmp_path / "gaps.csv", pd.concat([of_frame] * 10), pa.Table.from_pandas(pd.concat([of_frame] * 10))):
        assert cells(load_data(source)) == sorted(rows * 10, key=str)


def test_nan_in_an_array_is_a_gap_without_being_asked() -> None:
    x = np.random.default_rng(1).normal(size=(60, 4))
    x[::3, 1] = np.nan
    x[5] = np.nan
    data, asked = load_data(x), load_data(x, mask="nan")
    assert data.record == asked.record
    assert data.train.mask is not None
    assert torch.equal(data.train.mask, data.train.x != 0)
    assert load_data(np.ones((20, 2))).train.mask is None
    mask = np.random.default_rng(2).random(x.shape) < 0.5
    both = load_data(x, mask=mask)
    assert both.train.mask is not None
    assert sum(int(getattr(both, part).mask.sum()) for part in PARTS) == int((mask & np.isfinite(x)).sum())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"age": [1, 2, 3, "?"] * 10}, r"the column 'age' holds numbers, but '\?' in row 3; leave a cell empty"),
        ({"name": [f"n{i}" for i in range(40)]}, "'name' holds 40 different words in 40 rows .* leave it out"),
        ({"when": pd.to_datetime(["2020-01-01"] * 40)}, "'when' holds Datetime.*leave it out"),
        ({"list": [[1, 2]] * 40}, "'list' holds"),
        ({"mixed": [1, "a"] * 20}, "'mixed' holds int, str, but"),
        ({"code": [2**60 + i for i in range(40)], "x": [0.5] * 40}, "'code' holds integers up to 1152921504606847015"),
    ],
)
def test_columns_that_are_refused_by_name(table: dict[str, list[Any]], message: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(table)
    with pytest.raises(InputError, match=message) as caught:
        load_data(frame.astype({"age": str}) if "age" in frame else frame)
    assert "\n" not in str(caught.value)


def test_tables_that_are_not_in_memory_or_name_a_column_twice() -> None:
    with pytest.raises(InputError, match=r"LazyFrame is not a table in memory; collect"):
        load_data(polars.DataFrame({"a": [1]}).lazy())
    with pytest.raises(InputError, match="two columns have the name 'a'"):
        load_data(pd.DataFrame(np.zeros((20, 2)), columns=["a", "a"]))


def test_a_table_is_described_by_its_columns_and_gaps(people: pd.DataFrame) -> None:
    people.loc[::10, "town"] = None
    people.loc[0, "income"] = None
    lines = [line.split("  ") for line in load_data(people).describe().splitlines()]
    rows = {row[0]: [cell.strip() for cell in row[1:] if cell] for row in lines[1:]}
    assert rows["column"] == ["kind", "values", "missing"]
    assert rows["visits"] == ["count", f"0 to {people['visits'].max()}", "0 %"]
    assert rows["town"] == ["category", "Bern, Oslo, Rome", "10.0 %"]
    assert rows["income"][2] == "0.5 %"
    assert "1.5 % missing" in lines[0][0]


def test_many_columns_are_not_all_described() -> None:
    lines = load_data(np.random.default_rng(0).normal(size=(30, 50))).describe().splitlines()
    assert len(lines) == 33
    assert lines[-1] == "and 20 more columns"
    assert load_data("digits").describe().startswith(f"{load_data('digits')!r}\nlabels: 0 178, 1 182, ")


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_rows_with_nothing_observed_train_and_have_the_evidence_of_nothing(objective: str) -> None:
    """The truth: log p of nothing is 0."""
    x = np.random.default_rng(0).normal(size=(100, 3))
    x[::2] = np.nan
    data = load_data(x, test=0.3)
    model = VAE(data.event_shape, latent_dim=2, likelihood="normal")
    fit(model, data, epochs=2, progress=False, objective=objective)
    evaluation = evaluate(model, data, particles=500)
    assert data.test.mask is not None
    empty = ~data.test.mask.any(1)
    assert empty.any()
    evidence = evaluation.each["log_evidence"][empty]
    assert (evidence.abs() < 0.5).all()


def test_columns_named_by_several_words_keep_them_as_one() -> None:
    frame = pd.DataFrame({"a": np.arange(20.0), "b": ["x", "y"] * 10})
    data = load_data(pd.concat({"first": frame, "second": frame}, axis=1))
    assert [column.name for column in data.columns or ()][:2] == ["('first', 'a')", "('first', 'b')"]
    assert data.event_shape == (4,)


def test_words_of_one_size_have_one_order() -> None:
    words = [f"{zeros}1" for zeros in ("", "0", "00", "000")] + ["+1", "1.0", "1e0"]
    assert in_order(words) == in_order(reversed(words)) == tuple(sorted(words))
    assert in_order(["nan", "2", "10"]) == in_order(["2", "10", "nan"]) == ("10", "2", "nan")


@pytest.mark.parametrize("library", ["pandas", "polars", "arrow", "parquet"])
def test_a_column_that_its_library_calls_categories_has_categories(library: str, tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(1, 4, ROWS)
    frame = pd.DataFrame({"x": np.arange(ROWS) / 3, "code": pd.Categorical(codes)})
    sources: dict[str, Any] = {
        "pandas": frame,
        "polars": polars.DataFrame({"x": frame["x"].to_numpy()}).with_columns(
            code=polars.Series(codes.astype(str)).cast(polars.Enum(["3", "2", "1"]))
        ),
        "arrow": pa.Table.from_pandas(frame),
        "parquet": tmp_path / "table.parquet",
    }
    frame.to_parquet(tmp_path / "table.parquet")
    data = load_data(sources[library])
    assert data.columns is not None
    assert data.columns[1] == Column("code", "category", ("1", "2", "3"))


def test_the_named_index_of_a_data_frame_has_the_ids_of_the_rows(people: pd.DataFrame, tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(ROWS)]
    people.index = pd.Index(names, name="patient")
    people.to_parquet(tmp_path / "people.parquet")
    dated = people.set_axis(pd.MultiIndex.from_product([["a", "b"], range(100)], names=["ward", "bed"]))
    for source, expected in (
        (people, names),
        (people.rename_axis(None), names),
        (pa.Table.from_pandas(people), names),
        (tmp_path / "people.parquet", names),
        (dated, [f"{ward}, {bed}" for ward in "ab" for bed in range(100)]),
    ):
        data = load_data(source)
        ids = {
            row: name
            for split in data.splits
            for row, name in zip(split.row_numbers.tolist(), split.ids or (), strict=True)
        }
        assert [ids[row] for row in range(ROWS)] == expected
        assert len(data.event_shape) == 1
        assert data.event_shape == (7,)
    assert load_data(people, id="patient", labels="town").train.ids is not None
    assert load_data(people.reset_index(drop=True)).train.ids is None
    assert load_data(people.reset_index(drop=True).drop(3)).train.ids is None
    assert load_rows(people, load_data(people)).ids == tuple(names)
    assert load_rows(people.reset_index(), load_data(people, id="patient")).ids == tuple(names)
    with pytest.raises(InputError, match="index"):
        load_data(people.rename_axis("town"))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_cells_of_a_csv_file_are_separated_by_what_its_first_row_has(separator: str, tmp_path: Path) -> None:
    rows = ["age;town", *(f"{20 + i};{'Bern' if i % 2 else 'Oslo, N'}" for i in range(30))]
    lines = [separator.join(f'"{cell}"' for cell in row.split(";")) for row in rows]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data = load_data(tmp_path / "t.csv")
    assert data.columns == (Column("age", "count"), Column("town", "binary", ("Bern", "Oslo, N")))


def test_a_csv_file_with_commas_for_decimals_or_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "comma.csv").write_text("a;b\n" + "1;3,5\n2;4\n" * 20)
    with pytest.raises(InputError, match=r"column 'b' holds '3,5'; write numbers with a point"):
        load_data(tmp_path / "comma.csv")
    assert load_data(tmp_path / "comma.csv", kinds={"b": "category"}).columns is not None
    (tmp_path / "twice.csv").write_text("a,b,a\n" + "1,2,3\n" * 20)
    with pytest.raises(InputError, match="two columns have the name 'a'"):
        load_data(tmp_path / "twice.csv")


def test_columns_may_be_named_by_numbers() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 2)))
    assert load_data(frame.assign(**{"2": [0, 1] * 20}).set_axis([0, 1, 2], axis=1), labels=2).classes == ("0", "1")


def test_numbers_too_large_for_float32_are_refused_by_column(people: pd.DataFrame) -> None:
    infinite = people.assign(height=people["height"].where(people.index != 5, np.inf))
    with pytest.raises(InputError, match=r"first at index \(5, 0\) of the column 'height'"):
        load_data(infinite)
    large = load_data(people.assign(height=people["height"] * 1e20))
    for likelihood, name in (({"columns": "auto"}, "column height"), ("normal", r"the entry \(0,\) of x")):
        table = large if name.startswith("column") else load_data(people[["height", "income"]] * 1e20)
        model = VAE(table.event_shape, latent_dim=1, likelihood=likelihood)
        with pytest.raises(InputError, match=f"{name} holds values up to .*e.21, whose squares float32 cannot hold"):
            fit(model, table, epochs=1, progress=False)


def test_codes_beyond_the_categories_and_tables_of_words_are_refused_by_a_model(people: pd.DataFrame) -> None:
    data = load_data(people)
    model = VAE(data.event_shape, latent_dim=1, likelihood={"columns": "auto"})
    x = data.test.batch(slice(0, 4)).x
    for code in (3.0, -1.0, 0.5):
        wrong = x.clone()
        wrong[2, 6] = code
        with pytest.raises(InputError, match=f"column town holds {code:g} in row 2, but its categories have the codes"):
            model.encode(wrong)
        observed = torch.ones_like(x, dtype=torch.bool)
        observed[2, 6] = False
        model.encode(wrong, mask=observed)
    with pytest.raises(InputError, match="x is a DataFrame of no real numbers; give load_rows"):
        impute(model, people)


@pytest.mark.parametrize("form", ["pandas", "polars", "arrow", "parquet"])
def test_decimals_are_numbers_and_are_filled_as_such(form: str, tmp_path: Path) -> None:
    decimals = [None if i % 5 == 0 else Decimal(i % 7) / 4 for i in range(70)]
    made: dict[str, Any] = {
        "pandas": lambda: pd.DataFrame({"price": decimals}),
        "polars": lambda: polars.DataFrame({"price": decimals}),
        "arrow": lambda: pa.table({"price": decimals}),
        "parquet": lambda: saved(pd.DataFrame({"price": decimals}), tmp_path / "prices.parquet"),
    }
    data = load_data(made[form]())
    assert cells(data) == sorted(((None if d is None else float(d),) for d in decimals), key=str)
    frame, mask = as_frame(pd.DataFrame({"price": decimals}), "table"), np.array([[d is not None] for d in decimals])
    filled = fill(frame, data.columns or (), np.full((70, 1), 0.1, np.float32), mask)
    assert filled["price"] == [Decimal("0.1") if d is None else d for d in decimals]


@pytest.mark.parametrize("date", ["2020-01-{:02}", "{}.1.2020", "1/{}/2020", "2020-01-{:02} 12:30:00"])
def test_dates_written_as_words_are_warned_of(date: str, recwarn: pytest.WarningsRecorder) -> None:
    table = pd.DataFrame({"seen": [date.format(1 + i % 9) for i in range(90)]})
    with pytest.warns(UserWarning, match="table: the column 'seen' holds dates .*, which are taken for categories"):
        load_data(table)
    recwarn.clear()
    load_data(table, kinds={"seen": "category"})
    load_data(table.replace(date.format(1), "never"))
    load_data(pd.DataFrame({"version": [f"1.{i % 3}.4" for i in range(90)]}))
    assert not [each for each in recwarn if "dates" in str(each.message)]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_text_in_another_encoding_is_said_what_to_do_with(encoding: str, tmp_path: Path) -> None:
    pd.DataFrame({"town": ["Zürich", "Bern"] * 20}).to_csv(tmp_path / "towns.csv", index=False, encoding=encoding)
    with pytest.raises(InputError, match=r"towns\.csv: .*its text is not in UTF-8.* save it in UTF-8"):
        load_data(tmp_path / "towns.csv")


def test_cells_are_the_same_words_however_they_are_stored() -> None:
    """Of text, categories and truth values, in one chunk or several, with blanks and gaps."""
    words, truths = [" a", "a", "b ", "", None, "b"] * 5, [True, None, False, True, True, False] * 5
    chunks = pa.table({"w": pa.chunked_array([words[:7], words[7:]]), "t": pa.chunked_array([truths[:4], truths[4:]])})
    frame = pd.DataFrame({"w": words, "t": truths})
    for table in (
        frame,
        frame.astype({"w": "category", "t": "boolean"}),
        frame.astype(object),
        polars.DataFrame({"w": words, "t": truths}),
        polars.DataFrame({"w": words, "t": truths}, schema_overrides={"w": polars.Categorical}),
        chunks,
        chunks.set_column(0, "w", chunks["w"].dictionary_encode()),
    ):
        read = as_frame(table, "table")
        assert cells_of(read["w"], "w", "table") == ["a", "a", "b", None, None, "b"] * 5
        assert cells_of(read["t"], "t", "table") == ["True", None, "False", "True", "True", "False"] * 5


def test_data_of_other_columns_or_words_are_refused_by_a_model(people: pd.DataFrame) -> None:
    data = load_data(people)
    model = VAE(data.event_shape, latent_dim=1, likelihood={"columns": "auto"})
    fit(model, data, epochs=1, progress=False)
    for other, message in (
        (people.rename(columns={"height": "size"}), "table has a column 'size' where the model has 'height'"),
        (people[people.columns[::-1]], "table has a column 'town' where the model has 'height'; load it beside"),
        (
            people.replace({"town": {"Bern": "Wien"}}),
            "column 'town' of the model holds Bern, Oslo, Rome, but .* Oslo, Rome",
        ),
        (people[people["smoker"] == "no"], "'smoker' of the model holds no, yes, but that of table no;"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(model, load_data(other), particles=2)
    beside = load_data(people, test=people[people["smoker"] == "no"][people.columns[::-1]])
    assert evaluate(model, beside, particles=2).measure.startswith("mixed")
    numbers = load_data(people[["height", "income"]])
    other = VAE(numbers.event_shape, latent_dim=1, likelihood="normal")
    fit(other, numbers, epochs=1, progress=False)
    evaluate(other, load_data(people[["height", "income"]].to_numpy()), particles=2)


def test_values_outside_the_support_of_their_columns_are_refused_in_words(people: pd.DataFrame) -> None:
    data = load_data(people)
    model = VAE(data.event_shape, latent_dim=1, likelihood={"columns": "auto"})
    fit(model, data, epochs=1, progress=False)
    rows = load_rows(people.assign(visits=-1, height=None).head(5), data).batch(slice(None))
    with pytest.raises(InputError, match=r"outside the support of the likelihood, SideBySide\(.*Integer"):
        impute(model, rows.x, mask=rows.mask)
