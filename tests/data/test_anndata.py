"""AnnData: x and names of variables and observations are those of the object, in memory and in a file."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from pyrolatent import VAE, Experiment, InputError, Run, fit, load_data, load_rows, train

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    anndata = pytest.importorskip("anndata")

COUNTS = np.random.default_rng(0).poisson(1.0, (60, 5)).astype(np.float32)
TYPES = ["T cell", "B cell", "NK"] * 20


@pytest.fixture
def cells() -> Any:
    observations = pd.DataFrame(
        {"cell_type": pd.Categorical(TYPES)}, index=np.array([f"c{i}" for i in range(60)], object)
    )
    variables = pd.DataFrame(index=np.array([f"gene{i}" for i in range(5)], object))
    found = anndata.AnnData(sparse.csr_matrix(np.log1p(COUNTS)), obs=observations, var=variables)
    found.layers["counts"] = COUNTS
    return found


@pytest.fixture
def file(cells: Any, tmp_path: Path) -> Path:
    anndata.settings.allow_write_nullable_strings = True  # as pandas 3 has its words
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.mark.parametrize("kind", ["object", "file"])
@pytest.mark.parametrize("layer", [None, "counts"])
def test_x_labels_and_names_are_those_of_the_object(cells: Any, file: Path, kind: str, layer: str | None) -> None:
    data = load_data(cells if kind == "object" else file, labels="cell_type", layer=layer)
    rows = torch.cat([split.row_numbers for split in data.splits]).argsort()
    x, y = (torch.cat([getattr(split.batch(slice(None)), field) for split in data.splits])[rows] for field in "xy")
    np.testing.assert_allclose(x, COUNTS if layer else np.log1p(COUNTS), rtol=1e-6)
    assert data.classes == ("B cell", "NK", "T cell")
    assert [data.classes[code] for code in y.tolist()] == TYPES
    assert data.columns is not None
    assert [column.name for column in data.columns] == [f"gene{i}" for i in range(5)]
    assert {column.kind for column in data.columns} == ({"count"} if layer else {"real"})
    ids = [name for split in data.splits for name in split.ids or ()]
    assert [ids[row] for row in rows.tolist()] == [*cells.obs_names]


def test_a_run_takes_other_cells_by_the_names_of_their_genes(cells: Any, file: Path) -> None:
    source = {"cells.h5ad": {"labels": "cell_type", "layer": "counts"}}
    model = {"conditional_vae": {"latent_dim": 1, "likelihood": "poisson"}}
    experiment = Experiment(model=model, data=source, directory=file.parent, epochs=1)
    run = Run.load(train(experiment, file.parent / "run", progress=False).path)
    for later in (cells[:, ::-1].copy(), cells[:, ::-1].copy()[:7]):
        rows = run.load_rows(later)
        np.testing.assert_array_equal(rows.x, COUNTS[: len(rows)])
        assert rows.y is not None
        assert rows.ids == tuple(later.obs_names)
    unlabelled = cells.copy()
    del unlabelled.obs["cell_type"]
    assert run.load_rows(unlabelled).y is None
    assert load_rows(file, run.load_data()).y is not None
    with pytest.raises(InputError, match="lacks 'gene0'"):
        run.load_rows(cells[:, 1:].copy())


def test_what_an_object_does_not_have_is_refused_by_name(cells: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layer 'count'; valid: counts"):
        load_data(cells, layer="count")
    with pytest.raises(InputError, match="no column 'cell_typ' of observations; valid: cell_type"):
        load_data(cells, labels="cell_typ")
    with pytest.raises(InputError, match="layer"):
        load_data(COUNTS, layer="counts")
    (tmp_path / "broken.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=r"broken\.h5ad: cannot be read"):
        load_data(tmp_path / "broken.h5ad")
    with pytest.raises(InputError, match="the name 'gene0'"):
        load_data(anndata.AnnData(COUNTS, var=pd.DataFrame(index=["gene0"] * 5)))


def test_a_model_of_counts_trains_on_an_object(cells: Any) -> None:
    data = load_data(cells, layer="counts")
    fit(VAE(data.event_shape, latent_dim=1, likelihood="negative_binomial"), data, epochs=1, progress=False)
