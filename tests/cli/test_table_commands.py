"""Commands that write tables: in the words and the columns of the data, with every cell that was given as it was."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import Result
from typer.testing import CliRunner

from pyrolatent import Experiment, Run, cli, impute, sample, train
from pyrolatent.data.tables import Column, as_frame, decode, fill

ROWS = 60


def call(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], catch_exceptions=False)


def table(model: dict[str, Any], frame: pd.DataFrame, options: dict[str, Any] | None = None) -> None:
    """Trains a model of a table with this content in the current folder."""
    frame.to_csv("x.csv", index=False)
    declared = {"model": model, "data": {"x.csv": options or {}}, "epochs": 2, "device": "cpu"}
    Path("experiment.yaml").write_text(yaml.safe_dump(declared))
    result = call("train", "experiment.yaml", "--output=run", "--particles=2")
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of numbers that are not exact in float32, and a run of a model of it."""
    folder = tmp_path_factory.mktemp("numbers")
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(ROWS, 3)) + 1 / 3, columns=["a", "b", "c"])
    frame["c"] = frame["a"] - frame["b"]
    with contextlib.chdir(folder):
        table({"linear_gaussian": {"latent_dim": 2}}, frame)
    return folder


@pytest.fixture
def numbers(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Rows of the table with gaps, in another order than that of training."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    gaps = pd.read_csv("x.csv")[["c", "a", "b"]].iloc[:20].copy()
    gaps.iloc[::3, 0] = np.nan
    gaps.iloc[1] = np.nan
    return gaps


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet", "feather"])
def test_cells_that_are_given_stay_and_the_others_are_drawn(numbers: pd.DataFrame, ending: str) -> None:
    getattr(numbers.reset_index(drop=True), f"to_{ending.partition('.')[0]}")(f"gaps.{ending}")
    if ending.startswith("csv"):
        numbers.to_csv(f"gaps.{ending}", index=False)
    result = call("impute", "run", "--data", f"gaps.{ending}", "--output", f"out.{ending}")
    assert (result.exit_code, result.stdout) == (0, f"out.{ending}\n"), result.output
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "feather": pd.read_feather}[ending.partition(".")[0]]
    filled = read(f"out.{ending}")
    assert list(filled.columns) == ["c", "a", "b"]
    given = numbers.notna().to_numpy()
    assert (filled.to_numpy()[given] == numbers.to_numpy()[given]).all()
    assert filled.notna().all(axis=None)
    x = torch.tensor(numbers[["a", "b", "c"]].to_numpy())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = impute(Run.load("run").model, x, draws=1)[0]
    np.testing.assert_allclose(filled[["a", "b", "c"]].to_numpy(), expected, rtol=1e-6)


def test_several_draws_their_mean_and_arrays(numbers: pd.DataFrame) -> None:
    numbers.to_csv("gaps.csv", index=False)
    assert call("impute", "run", "--data=gaps.csv", "--output=draws.csv", "--draws=5").exit_code == 0
    assert call("impute", "run", "--data=gaps.csv", "--output=mean.csv", "--draws=5", "--mean").exit_code == 0
    draws, mean = pd.read_csv("draws.csv"), pd.read_csv("mean.csv")
    assert draws["draw"].tolist() == [number for number in range(5) for _ in range(20)]
    columns = ["c", "a", "b"]
    averaged = draws[columns].to_numpy().reshape(5, 20, 3).mean(0)
    np.testing.assert_allclose(mean[columns].to_numpy(), averaged, rtol=1e-5, atol=1e-6)
    assert call("impute", "run", "--data=gaps.csv", "--output=draws.npy", "--draws=5").exit_code == 0
    assert np.load("draws.npy").shape == (5, 20, 3)
    np.save("gaps.npy", numbers[["a", "b", "c"]].to_numpy())
    assert call("impute", "run", "--data=gaps.npy", "--output=one.csv").exit_code == 0
    assert list(pd.read_csv("one.csv").columns) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data=x.csv", "--output=o.csv"], "x.csv: nothing is missing; leave cells empty"),
        (["--data=gone.csv", "--output=o.csv"], "gone.csv: there is no such file or folder"),
        (["--data=gaps.csv", "--output=o.txt"], "o.txt: cannot write a file that ends in '.txt'; valid: .csv, .csv.gz"),
        (["--data=gaps.csv", "--output=no/such/o.csv", "--seed=-1"], "seed was -1"),
        (["--data=other.csv", "--output=o.csv"], "other.csv: the table lacks 'b' and also has 'd'"),
    ],
)
def test_what_cannot_be_imputed_is_refused(numbers: pd.DataFrame, args: list[str], message: str) -> None:
    numbers.to_csv("gaps.csv", index=False)
    numbers.rename(columns={"b": "d"}).to_csv("other.csv", index=False)
    result = call("impute", "run", *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("o.csv").exists()


def test_draws_are_written_with_the_columns_of_the_data(numbers: pd.DataFrame) -> None:
    for ending, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        result = call("sample", "run", "-n", 7, "--output", f"draws.{ending}")
        assert (result.exit_code, result.stdout) == (0, f"draws.{ending}\n"), result.output
        torch.manual_seed(0)
        np.testing.assert_allclose(
            read(f"draws.{ending}")[["a", "b", "c"]], sample(Run.load("run").model, 7), rtol=1e-6
        )
    assert call("sample", "run", "-n", 7, "--output", "draws.npy").exit_code == 0
    assert np.load("draws.npy").shape == (7, 3)
    assert not Path("run/samples.npy").exists()


def test_labels_and_ids_stay_beside_what_is_imputed_and_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(ROWS, 2)), columns=["a", "b"])
    frame["name"], frame["town"] = [f"n{i}" for i in range(ROWS)], ["Rome", "Oslo", "Bern"] * 20
    small = {"encoder": {"mlp": {"hidden": [4]}}, "decoder": {"mlp": {"hidden": [4]}}, "likelihood": "normal"}
    table({"conditional_vae": {"latent_dim": 1, **small}}, frame, {"labels": "town", "id": "name"})
    frame.loc[::2, "a"] = None
    frame.to_csv("gaps.csv", index=False)
    result = call("impute", "run", "--data=gaps.csv", "--output=filled.csv")
    assert result.exit_code == 0, result.output
    filled = pd.read_csv("filled.csv")
    assert filled[["b", "name", "town"]].equals(pd.read_csv("gaps.csv")[["b", "name", "town"]])
    assert filled["a"].notna().all()
    assert call("sample", "run", "-n", 5, "--output=turn.csv").exit_code == 0
    assert pd.read_csv("turn.csv")["town"].tolist() == ["Bern", "Oslo", "Rome", "Bern", "Oslo"]
    assert call("sample", "run", "-n", 3, "--label=Oslo", "--output=one.csv").exit_code == 0
    assert pd.read_csv("one.csv")["town"].tolist() == ["Oslo"] * 3


def test_images_are_written_as_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call("train", "--data=digits", "--epochs=1", "--set=model.vae.latent_dim=2", "--output=run", "--particles=2")
    refused = call("sample", "run", "--output=x.csv")
    assert "x.csv is a table, but the result is an array of shape (64, 1, 8, 8); write a .npy" in refused.stderr
    assert call("sample", "run", "--output=x.npy", "-n", 2).exit_code == 0
    assert np.load("x.npy").shape == (2, 1, 8, 8)


COLUMNS = (
    Column("town", "category", ("Bern", "Oslo", "Rome")),
    Column("visits", "count"),
    Column("smoker", "binary", ("no", "yes")),
    Column("height", "real"),
)


def test_codes_become_words_and_counts_whole_numbers() -> None:
    x = np.array([[2, 3, 1, 0.1], [0, 0, 0, -2.5]], np.float32)
    assert decode(x, COLUMNS) == {
        "town": ["Rome", "Bern"],
        "visits": [3, 0],
        "smoker": ["yes", "no"],
        "height": [0.1, -2.5],
    }
    rough = decode(np.array([[3.7, 0.5, -1, 0]], np.float32), COLUMNS)
    assert (rough["town"], rough["smoker"], rough["visits"]) == (["Rome"], ["no"], [0.5])


def test_only_missing_cells_are_filled() -> None:
    frame = as_frame(
        pd.DataFrame(
            {
                "height": [0.123456789, None],
                "id": ["u", "v"],
                "visits": [None, 4],
                "smoker": ["yes", " "],
                "town": [None, "Bern"],
            }
        ),
        "table",
    )
    x = np.array([[2, 3, 1, 9], [0, 9, 0, -2.5]], np.float32)
    mask = np.array([[False, False, True, True], [True, True, False, False]])
    assert fill(frame, COLUMNS, x, mask) == {
        "height": [0.123456789, -2.5],
        "id": ["u", "v"],
        "visits": [3, 4],
        "smoker": ["yes", "no"],
        "town": ["Rome", "Bern"],
    }


def test_words_are_imputed_and_sampled_as_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A town follows from the group, so that a missing town is drawn as the group says."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    group = random.integers(0, 2, 400)
    frame = pd.DataFrame(
        {
            "town": np.array(["Bern", "Oslo"])[group],
            "visits": random.poisson(np.where(group, 20, 1)),
            "height": np.where(group, 5.0, -5.0) + random.normal(size=400),
            "smoker": random.choice(["no", "yes"], 400),
        }
    )
    frame.to_csv("x.csv", index=False)
    model = {"vae": {"latent_dim": 1, "likelihood": {"columns": "auto"}}}
    declared = {"model": model, "data": {"x.csv": {"kinds": {"town": "category"}}}, "epochs": 40, "device": "cpu"}
    Path("experiment.yaml").write_text(yaml.safe_dump(declared))
    assert call("train", "experiment.yaml", "--output=run", "--particles=2").exit_code == 0
    gaps = frame.iloc[:100].astype({"visits": object})
    gaps.loc[:, "town"] = None
    gaps.loc[::2, "visits"] = None
    gaps.to_parquet("gaps.parquet")
    for options in ([], ["--mean", "--draws=9"]):
        result = call("impute", "run", "--data=gaps.parquet", "--output=filled.parquet", *options)
        assert result.exit_code == 0, result.output
        filled = pd.read_parquet("filled.parquet")
        assert set(filled["town"]) == {"Bern", "Oslo"}
        assert (filled["town"] == frame["town"][:100]).mean() > 0.95
        assert (filled["visits"][1::2] == frame["visits"][1:100:2]).all()
        assert filled["smoker"].equals(frame["smoker"][:100])
    assert call("sample", "run", "-n", 200, "--output=drawn.csv").exit_code == 0
    drawn = pd.read_csv("drawn.csv")
    assert list(drawn.columns) == list(frame.columns)
    assert set(drawn["town"]) == {"Bern", "Oslo"}
    assert set(drawn["smoker"]) == {"no", "yes"}
    assert drawn["visits"].dtype == int


def test_given_cells_and_ids_of_a_file_are_written_as_they_are(tmp_path: Path) -> None:
    given = [[f"{i:03}", str(i % 4) if i % 5 else "", f"{i / 7:.17f}"] for i in range(ROWS)]
    text = pd.DataFrame(given, columns=["code", "visits", "a"])
    text.to_csv(tmp_path / "x.csv", index=False)
    model = {"vae": {"latent_dim": 1, "likelihood": {"columns": "auto"}}}
    declared = Experiment(model=model, data={"x.csv": {"id": "code"}}, directory=tmp_path, epochs=1)
    run = train(declared, tmp_path / "run", progress=False)
    names = pd.read_csv(tmp_path / "run" / "rows.csv", dtype=str)
    assert names["id"].tolist() == [f"{int(row):03}" for row in names["row"]]
    assert run.load_rows(tmp_path / "x.csv").ids == tuple(text["code"])
    for draws, mean in ((1, False), (7, True)):
        run.apply("impute", tmp_path / "x.csv", tmp_path / "filled.csv", draws=draws, mean=mean)
        filled = pd.read_csv(tmp_path / "filled.csv", dtype=str, keep_default_na=False)
        assert (filled == text).to_numpy()[text != ""].all()
        assert (filled != "").all(axis=None)


def test_given_numbers_of_an_array_are_unchanged_by_means(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    x[::4, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    model = {"vae": {"latent_dim": 1, "likelihood": "normal"}}
    run = train(Experiment(model=model, data="x.npy", directory=tmp_path, epochs=1), tmp_path / "run", progress=False)
    filled = np.load(run.apply("impute", tmp_path / "x.npy", tmp_path / "filled.npy", mean=True, draws=7)["array"])
    assert (filled == x)[~np.isnan(x)].all()
    assert np.isfinite(filled).all()


def test_truth_values_and_numbers_of_classes_stay_such_in_typed_files(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {"a": random.normal(size=60), "ill": random.random(60) < 0.5, "town": random.integers(3, size=60)}
    )
    gaps = table.astype({"ill": "boolean", "town": "Int64"}).mask(random.random(table.shape) < 0.2)
    gaps.to_parquet(tmp_path / "gaps.parquet")
    data = {"gaps.parquet": {"kinds": {"town": "category"}}}
    model = {"vae": {"latent_dim": 1, "likelihood": {"columns": "auto"}}}
    run = train(Experiment(model=model, data=data, directory=tmp_path, epochs=1), tmp_path / "run", progress=False)
    run.apply("impute", tmp_path / "gaps.parquet", tmp_path / "filled.parquet")
    filled = pd.read_parquet(tmp_path / "filled.parquet")
    assert filled["ill"].dtype == bool
    assert set(filled["town"]) == {0, 1, 2}
    for name in table:
        assert (filled[name] == gaps[name])[gaps[name].notna()].all()
