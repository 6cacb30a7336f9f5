"""The commands that apply a run: each writes what the function of its name returns, with names of rows and words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

import pyrolatent as pl
from pyrolatent import Run, cli

pytestmark = pytest.mark.usefixtures("few_cells")


def call(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], catch_exceptions=False)


def done(*args: object) -> str:
    result = call(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: object) -> str:
    result = call(*args)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "run"
    done("train", "--epochs=2", "--device=cpu", "--particles=4", "--set=model.vae.latent_dim=2", "--output", path)
    return path


@pytest.fixture(scope="module")
def towns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a table with words, labels and ids, beside its file, new.csv, with gaps and another order of columns."""
    folder = tmp_path_factory.mktemp("towns")
    generator = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "name": [f"p{i}" for i in range(200)],
            "age": generator.normal(40, 10, 200).round(1),
            "town": generator.choice(["Oslo", "Rome"], 200),
            "group": generator.choice(["ill", "well"], 200),
        }
    )
    table.to_csv(folder / "towns.csv", index=False)
    new = table.head(5)[["town", "age", "name"]].copy()
    new.loc[1, "age"] = np.nan
    new.loc[2, "town"] = None
    new.to_csv(folder / "new.csv", index=False)
    (folder / "experiment.yaml").write_text(
        f"data: {{{folder / 'towns.csv'}: {{labels: group, id: name}}}}\n"
        "model: {semi_supervised_vae: {latent_dim: 2, likelihood: {columns: auto}}}\nepochs: 2\n"
    )
    done("train", folder / "experiment.yaml", "--output", folder / "run", "--particles=4")
    return folder


def test_encode_writes_means_draws_and_numbers_by_row(digits: Path, tmp_path: Path) -> None:
    run = Run.load(digits)
    test = run.load_data().test
    expected = pl.encode(run.model, test.batch(slice(None)).x)["z"]
    done("encode", digits, "--output", tmp_path / "codes.csv")
    codes = pd.read_csv(tmp_path / "codes.csv")
    assert codes["row"].tolist() == test.row_numbers.tolist()
    np.testing.assert_allclose(codes[["z.0", "z.1"]].to_numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    done("encode", digits, "--what=draws", "--draws=3", "--rows=0:4", "--output", tmp_path / "draws.parquet")
    draws = pd.read_parquet(tmp_path / "draws.parquet")
    assert draws["draw"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert draws["row"].tolist() == test.row_numbers[:4].tolist() * 3
    done("encode", digits, "--what=parameters", "--output", tmp_path / "q.npy")
    assert np.load(tmp_path / "q.npy").shape == (len(test), 4)


def test_new_rows_are_matched_by_name_and_keep_their_ids(towns: Path, tmp_path: Path) -> None:
    done("encode", towns / "run", "--data", towns / "new.csv", "--output", tmp_path / "codes.csv")
    codes = pd.read_csv(tmp_path / "codes.csv")
    assert codes["id"].tolist() == ["p0", "p1", "p2", "p3", "p4"]
    assert {"y.0", "y.1", "z.0", "z.1"} < {*codes.columns}
    done("encode", towns / "run", "--data", towns / "new.csv", "--rows=p3,p1", "--output", tmp_path / "two.csv")
    two = pd.read_csv(tmp_path / "two.csv")
    assert two["id"].tolist() == ["p3", "p1"]
    pd.testing.assert_frame_equal(two, codes.iloc[[3, 1]].reset_index(drop=True), rtol=1e-5)
    assert "there is no id p9 in the new.csv" in refused(
        "encode", towns / "run", "--data", towns / "new.csv", "--rows=p9"
    )


def test_reconstructions_and_classes_are_in_words(towns: Path, tmp_path: Path) -> None:
    done("reconstruct", towns / "run", "--data", towns / "new.csv", "--output", tmp_path / "x.csv")
    table = pd.read_csv(tmp_path / "x.csv")
    assert [*table.columns] == ["id", "age", "town"]
    assert set(table["town"]) <= {"Oslo", "Rome"}
    said = done("classify", towns / "run", "--output", tmp_path / "classes.csv")
    assert "known labels differ from the most probable class" in said
    classes = pd.read_csv(tmp_path / "classes.csv")
    assert [*classes.columns] == ["id", "group", "p(ill)", "p(well)"]
    assert (classes["group"] == np.where(classes["p(ill)"] >= 0.5, "ill", "well")).all()
    np.testing.assert_allclose(classes[["p(ill)", "p(well)"]].sum(axis=1), 1, rtol=1e-5)


def test_gaps_have_means_with_the_ends_of_an_interval(towns: Path, tmp_path: Path) -> None:
    out = tmp_path / "filled.csv"
    done("impute", towns / "run", "--data", towns / "new.csv", "--interval=0.8", "--draws=200", "--output", out)
    filled, given = pd.read_csv(out), pd.read_csv(towns / "new.csv")
    assert [*filled.columns] == ["town", "age", "name", "age_low", "age_high"]
    assert filled.loc[2, "town"] in ("Oslo", "Rome")
    assert filled.loc[1, "age_low"] < filled.loc[1, "age"] < filled.loc[1, "age_high"]
    kept = filled["age"].drop(index=1)
    np.testing.assert_array_equal(kept, given["age"].drop(index=1))
    np.testing.assert_allclose(filled["age_low"].drop(index=1), kept)


@pytest.mark.parametrize("method", ["resampling", "gibbs"])
def test_regions_are_erased_and_drawn(digits: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "filled.npy"
    more = ["--sweeps=6"] if method == "gibbs" else []
    done("impute", digits, "--erase=bottom", "--rows=0:3", f"--method={method}", *more, "--output", out)
    x = Run.load(digits).load_data().test.batch(slice(0, 3)).x
    filled = np.load(out)
    assert filled.shape == x.shape
    np.testing.assert_array_equal(filled[:, 0, :4], x[:, 0, :4])
    assert not np.array_equal(filled, x)
    paths = json.loads(done("impute", digits, "--erase=1,1,2,2", "--rows=0:3", "--json"))
    assert all(Path(path).is_file() for path in paths.values())
    assert "nothing is missing" in refused("impute", digits)


def test_noise_is_removed_and_its_rate_learned(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.npy"
    flips = "--corruption={flips: {rate: 0.1}}"
    said = done("denoise", digits, flips, "--add", "--rows=0:5", "--sweeps=8", "--draws=2", "--output", out)
    assert said.startswith("mean squared error: noisy")
    assert np.load(out).shape == (5, 1, 8, 8)
    said = done("denoise", digits, "--corruption=flips", "--rows=0:5", "--sweeps=8", "--draws=2", "--output", out)
    assert said.startswith("the corruption's number is 0.")
    assert "cannot be added; give its number" in refused("denoise", digits, "--corruption=flips", "--add")
    assert "did you mean 'flips'" in refused("denoise", digits, "--corruption=flip")


def test_scores_are_written_with_anomalies(digits: Path, tmp_path: Path) -> None:
    said = done("score", digits, "--particles=30", "--alarms=0.1", "--output", tmp_path / "scores.csv")
    assert "a density alone can rank outliers above data" in said
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert [*scores.columns] == ["row", "log_p", "error", "khat", "anomaly", "atypical"]
    run = Run.load(digits)
    expected = pl.score(run.model, run.load_data().test.batch(slice(None)).x, particles=30)
    np.testing.assert_allclose(scores["log_p"], expected.log_p, rtol=1e-5)
    assert scores.loc[scores["anomaly"], "log_p"].max() < scores.loc[~scores["anomaly"], "log_p"].min()


def test_what_is_looked_at_is_drawn(digits: Path, tmp_path: Path) -> None:
    for name, args in {
        "interpolate": ("--steps=3", "--rows=0:3"),
        "traverse": ("--steps=3",),
        "plane": ("--steps=3", "--plane=1,0"),
        "sample": ("-n", 4),
        "encode": (),
        "score": ("--particles=5",),
    }.items():
        command = "traverse" if name == "plane" else name
        done(command, digits, *args, "--output", tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_draws_are_near_a_row(digits: Path, tmp_path: Path) -> None:
    run = Run.load(digits)
    row = run.load_data().test.row_numbers[3].item()
    done("sample", digits, "-n", 400, "--near", row, "--mean", "--output", tmp_path / "near.npy")
    near = torch.from_numpy(np.load(tmp_path / "near.npy"))
    x = run.load_data().test.batch(slice(3, 4)).x
    with torch.no_grad():
        expected = run.model.decode(run.model.encode(x)["z"].sample((20_000,))[:, 0]).mean
    assert (near.mean(0) - expected.mean(0)).abs().max() < 5 * expected.std(0).max() / 20
    assert "draws are near one row, but there are 2" in refused("sample", digits, "--near=0:2")


REFUSED: dict[str, tuple[list[str], str]] = {
    "an unknown format": (["encode", "--output=codes.txt"], "cannot write a file that ends in '.txt'"),
    "a table of images": (["reconstruct", "--output=x.csv"], "is a table, but the result is an array of shape"),
    "a range without rows": (["encode", "--rows=900:"], "holds none of the 180 rows"),
    "another shape": (["encode", "--data=wide.npy"], "wide.npy: x has shape (3, 9)"),
    "no such file": (["score", "--data=none.npy"], "none.npy"),
    "classes of a VAE": (["classify"], "VAE has no labels and so no classes"),
    "one row": (["interpolate", "--rows=0:1"], "a line needs two"),
    "a plane of one latent": (["traverse", "--plane=1,1"], "give two different ones from 0 to 1"),
    "no plane": (["traverse", "--plane=x"], "give two dimensions of the latent"),
    "a small share": (["score", "--alarms=0.001", "--particles=2"], "needs at least 999 reference datapoints"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_one_line(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("wide.npy", np.zeros((3, 9), np.uint8))
    (command, *options), said = REFUSED[name]
    assert said in refused(command, digits, *options)


def test_a_run_keeps_what_was_made_of_it(digits: Path) -> None:
    paths: dict[str, Any] = json.loads(done("encode", digits, "--rows=0:20", "--json"))
    assert paths == {"table": str(digits / "codes.csv"), "figure": str(digits / "figures" / "codes.png")}
