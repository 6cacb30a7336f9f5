"""What ArviZ is given: groups, names and coordinates, and that a file of it is read back by ArviZ alone."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

from pyrolatent import VAE, Data, HierarchicalVAE, InputError, LinearGaussian, Run, checks, fit, load_data, to_arviz

SMALL: dict[str, Any] = {"encoder": {"mlp": {"hidden": [8]}}, "decoder": {"mlp": {"hidden": [8]}}}
READ = """
import warnings
warnings.simplefilter("ignore", FutureWarning)
import sys
import matplotlib
matplotlib.use("Agg")
import arviz as az
found = az.from_netcdf(sys.argv[1])
summary = az.summary(found, var_names=["z"])
assert list(summary.index)[:3] == ["z[0, 0]", "z[0, 1]", "z[1, 0]"], summary.index
assert (summary["r_hat"] < 1.1).all(), summary
az.plot_forest(found, var_names=["z"], coords={"datapoint": [0, 1]})
az.plot_posterior(found, var_names=["z"], coords={"datapoint": [0]})
az.plot_ppc(found, data_pairs={"x": "x"}, num_pp_samples=5)
assert not any(name.startswith(("pyrolatent", "torch")) for name in sys.modules)
print(len(matplotlib.pyplot.get_fignums()))
"""


@pytest.fixture
def data() -> Data:
    random = np.random.default_rng(0)
    x = random.normal(size=(100, 6)).astype(np.float32)
    return load_data(x, labels=np.arange(100) % 3)


def test_groups_dimensions_and_names(data: Data) -> None:
    model = LinearGaussian((6,), latent_dim=2)
    found = to_arviz(model, data, size=5, draws=80, predictive=16)
    expected: dict[str, dict[str, tuple[str, ...]]] = {
        "posterior": {"z": ("chain", "draw", "datapoint", "z_dim")},
        "sample_stats": {"log_weight": ("chain", "draw", "datapoint"), "khat": ("datapoint",)},
        "log_likelihood": {"x": ("chain", "draw", "datapoint")},
        "posterior_predictive": {"x": ("chain", "draw", "datapoint", "feature")},
        "prior": {"z": ("chain", "draw", "z_dim")},
        "prior_predictive": {"x": ("chain", "draw", "feature")},
        "observed_data": {"x": ("datapoint", "feature")},
        "constant_data": {"row": ("datapoint",), "label": ("datapoint",)},
    }
    for group, variables in expected.items():
        assert {name: found[group][name].dims for name in found[group].data_vars} == variables
    assert found["posterior"]["z"].shape == (4, 20, 5, 2)
    assert found["posterior_predictive"]["x"].shape == (4, 4, 5, 6)
    batch = data.test.batch(slice(0, 5))
    np.testing.assert_array_equal(found["observed_data"]["x"].values, batch.x)
    assert batch.y is not None
    np.testing.assert_array_equal(found["constant_data"]["label"].values, batch.y)
    # The exact posterior's weights are all log p(x), and log p(x | z) is what decode says.
    truth = model.log_evidence(batch.x).detach().numpy()
    np.testing.assert_allclose(
        found["sample_stats"]["log_weight"].values, np.broadcast_to(truth, (4, 20, 5)), rtol=1e-4
    )
    assert (found["sample_stats"]["khat"].values == -np.inf).all()
    scored = model.decode(torch.from_numpy(found["posterior"]["z"].values)).log_prob(batch.x).detach()
    np.testing.assert_allclose(found["log_likelihood"]["x"].values, scored, rtol=1e-5)


def test_images_several_sites_and_masks() -> None:
    random = np.random.default_rng(0)
    x = random.integers(2, size=(60, 1, 4, 4)).astype(np.uint8)
    found = to_arviz(HierarchicalVAE((1, 4, 4), latent_dims=(3, 2)), load_data(x), size=3, draws=32, predictive=16)
    assert set(found["posterior"].data_vars) == {"z1", "z2"}
    assert found["posterior_predictive"]["x"].dims[2:] == ("datapoint", "channel", "row", "column")
    masked = load_data(x, mask=random.random(x.shape) < 0.8)
    found = to_arviz(VAE((1, 4, 4), latent_dim=2, **SMALL), masked, size=3, draws=32, predictive=16)
    assert found["constant_data"]["observed"].dims == ("datapoint", "channel", "row", "column")


def test_what_is_refused(data: Data) -> None:
    model = LinearGaussian((6,), latent_dim=2)
    for options, message in (({"split": "tset"}, "no split"), ({"draws": 2}, "draws was 2; at least 4 are needed")):
        with pytest.raises(InputError, match=message):
            to_arviz(model, data, **options)


def test_a_file_is_read_back_by_arviz_alone(data: Data, tmp_path: Path) -> None:
    """Summary and three plots in a process that imports neither this package nor torch."""
    fitted = fit(VAE((6,), latent_dim=2, likelihood="normal", **SMALL), data, epochs=1, progress=False, device="cpu")
    run = Run.save(tmp_path / "run", fitted)
    path = run.write_netcdf("draws", to_arviz(run.model, data, size=3))
    assert path == tmp_path / "run" / "draws.nc"
    result = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 3


def test_with_arviz_1(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `from_dict` and DataTree are those of arviz-base, which says the same of the same draws."""
    pytest.importorskip("arviz_base")
    model = LinearGaussian((6,), latent_dim=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = to_arviz(model, data, size=4, draws=40, predictive=16)
        monkeypatch.setattr(checks.arviz, "_below_1", lambda: False)
        new = to_arviz(model, data, size=4, draws=40, predictive=16)
        assert type(new).__name__ == "DataTree"
        new.to_netcdf(str(tmp_path / "draws.nc"), engine="h5netcdf")
        read = xarray.open_datatree(tmp_path / "draws.nc", engine="h5netcdf")
    for group in old.groups():
        assert set(read[group].data_vars) == set(old[group].data_vars)
        for name, values in old[group].data_vars.items():
            assert read[group][name].dims == values.dims
            np.testing.assert_array_equal(read[group][name].values, values.values)
