"""Imputation of tables with cells missing at random, beside scikit-learn's imputers.

    python -m benchmarks.imputation --json FILE

Breast cancer, wine and diabetes of scikit-learn, and a mixed table of words, counts and numbers made from a latent
model. In each a share of the cells is hidden; each imputer is fitted to what is left, and fills it. The error is that
of the hidden cells: for numbers the root mean square in standard deviations of their column, for words and bits the
share that is wrong, both averaged over columns. The same cells are hidden for every imputer. Errors are over seeds.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 (makes IterativeImputer importable)
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

import pyrolatent as pl
from benchmarks.training import machine, versions

Array = npt.NDArray[Any]
TOWNS = ["Bern", "Oslo", "Rome", "Turku"]


def mixed(rows: int = 600) -> pd.DataFrame:
    """A table of six columns that two latents explain: real, positive, a count, yes or no, and two of words."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, rows))
    logits = np.stack([2 * a, -2 * a, 2 * b, -2 * b], 1) + random.gumbel(size=(rows, 4))
    return pd.DataFrame(
        {
            "weight": 70 + 12 * a + 4 * random.normal(size=rows),
            "income": np.exp(10 + 0.6 * b + 0.2 * random.normal(size=rows)),
            "visits": random.poisson(np.exp(0.7 + 0.7 * a)).astype(float),
            "smoker": np.where(a - b + 0.5 * random.logistic(size=rows) > 0, "yes", "no"),
            "town": np.array(TOWNS)[logits.argmax(1)],
            "grade": np.array(["high", "low", "middle"])[np.digitize(b + 0.4 * random.normal(size=rows), [-0.5, 0.5])],
        }
    )


def tables() -> dict[str, pd.DataFrame]:
    """The complete tables by name."""
    loaded = {"breast cancer": load_breast_cancer, "wine": load_wine, "diabetes": load_diabetes}
    found = {name: load(as_frame=True).data for name, load in loaded.items()}
    return {**found, "mixed": mixed()}


def hidden(table: pd.DataFrame, share: float, seed: int) -> Array:
    """Which cells are missing, (rows, columns)."""
    return np.random.default_rng([seed, int(100 * share)]).random(table.shape) < share


def of_scikit(imputer: Callable[[int], Any]) -> Callable[[pd.DataFrame, int], pd.DataFrame]:
    """An imputer of numbers, on standardised columns with words one-hot; the most probable word is taken."""

    def fill(table: pd.DataFrame, seed: int) -> pd.DataFrame:
        words = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
        coded = pd.get_dummies(table, columns=words, dtype=float)
        for name in words:
            coded.loc[table[name].isna(), [column for column in coded if column.startswith(f"{name}_")]] = np.nan
        scaler = StandardScaler()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of iterations that have not converged
            values = imputer(seed).fit_transform(scaler.fit_transform(coded))
        full = pd.DataFrame(scaler.inverse_transform(values), columns=coded.columns, index=table.index)
        filled = table.copy()
        for name in table:
            if name in words:
                own = [column for column in coded if column.startswith(f"{name}_")]
                best = full[own].to_numpy().argmax(1)
                guess = np.array([column.removeprefix(f"{name}_") for column in own])[best]
                filled[name] = table[name].where(table[name].notna(), guess)
            else:
                filled[name] = table[name].fillna(full[name])
        return filled

    return fill


def by_columns(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """A VAE with a family for each column, trained by the importance-weighted bound on what is observed (MIWAE).

    Each hidden cell is the mean, or the most frequent word, of 50 draws.
    """
    data = pl.load_data(table, seed=seed, validation=0.05, test=0.02)
    torch.manual_seed(seed)
    network = {"mlp": {"hidden": [64], "activation": "tanh"}}
    dims = min(8, table.shape[1] // 3)
    parts: dict[str, Any] = {"encoder": network, "decoder": network}
    model = pl.VAE(data.event_shape, latent_dim=dims, likelihood={"columns": "auto"}, **parts)
    fit = pl.fit(
        model, data, objective={"iwae": {"particles": 20}}, epochs=EPOCHS, batch_size=64, seed=seed,
        optimizer={"Adam": {"lr": 1e-3}}, progress=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = pl.Run.save(Path(folder, "run"), fit)
        options = {"draws": 50, "mean": True, "particles": 200, "seed": seed}
        return pd.read_parquet(run.apply("impute", table, Path(folder, "filled.parquet"), **options)["table"])


EPOCHS = 400
IMPUTERS: dict[str, Callable[[pd.DataFrame, int], pd.DataFrame]] = {
    "mean": of_scikit(lambda seed: SimpleImputer()),
    "KNNImputer": of_scikit(lambda seed: KNNImputer(n_neighbors=10)),
    "IterativeImputer": of_scikit(lambda seed: IterativeImputer(random_state=seed, max_iter=20)),
    "IterativeImputer, trees": of_scikit(
        lambda seed: IterativeImputer(ExtraTreesRegressor(20, random_state=seed), max_iter=5, random_state=seed)
    ),
    "pyrolatent": by_columns,
}


def error(filled: pd.DataFrame, table: pd.DataFrame, gaps: Array) -> tuple[float, float, float]:
    """The error of hidden cells: of numbers, of words, and of numbers as MIWAE's authors measure it.

    The mean over columns of numbers of the RMSE in standard deviations, that over columns of words of the share that is
    wrong, and the mean over all cells of numbers of the squared error. NaN if the table has no such columns.
    """
    numbers, words, squares = [], [], []
    for place, name in enumerate(table):
        true, guess, missing = table[name], filled[name], gaps[:, place]
        if pd.api.types.is_numeric_dtype(true):
            difference = (guess.to_numpy(float) - true.to_numpy(float))[missing]
            numbers.append(np.sqrt(np.mean(difference**2)) / true.std(ddof=0))
            squares.extend((difference / true.std(ddof=0)) ** 2)
        else:
            words.append(np.mean(guess.to_numpy()[missing] != true.to_numpy()[missing]))
    numbers_error, words_error, squared = (
        float(np.mean(each)) if each else np.nan for each in (numbers, words, squares)
    )
    return numbers_error, words_error, squared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=tables(), default=[*tables()])
    parser.add_argument("--imputers", nargs="+", choices=IMPUTERS, default=[*IMPUTERS])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.2, 0.5])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.tables:
        table = tables()[name]
        for share in options.shares:
            for imputer in options.imputers:
                started, errors = time.perf_counter(), []
                for seed in range(options.seeds):
                    gaps = hidden(table, share, seed)
                    errors.append(error(IMPUTERS[imputer](table.mask(gaps), seed), table, gaps))
                seconds = (time.perf_counter() - started) / options.seeds
                row: dict[str, Any] = {
                    "table": name,
                    "missing": share,
                    "imputer": imputer,
                    "seconds": round(seconds, 2),
                }
                for kind, of_kind in zip(("numbers", "words", "mse"), np.array(errors).T, strict=True):
                    if not np.isnan(of_kind).any():
                        spread = of_kind.std(ddof=1) / np.sqrt(len(of_kind)) if len(of_kind) > 1 else float("nan")
                        row[kind], row[f"{kind}_se"] = round(float(of_kind.mean()), 4), round(float(spread), 4)
                rows.append(row)
                print(row, flush=True)
                if options.json:
                    about = {"machine": machine("cpu"), "versions": versions("torch", "scikit-learn", "pyrolatent")}
                    options.json.write_text(json.dumps({**about, "seeds": options.seeds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
