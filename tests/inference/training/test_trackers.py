"""Trackers send what training has in its history, and no more, to the libraries that they are named after."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyrolatent import VAE, Callback, Data, InputError, fit
from pyrolatent.inference.training.trackers import MLflow, TensorBoard, WeightsAndBiases


class Recorder:
    """Stands for a library: keeps the calls of its functions."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.calls.append((name, args, options)) or self


def trained(data: Data, tracker: Callback) -> Any:
    return fit(VAE(data.event_shape, latent_dim=1), data, epochs=2, callbacks=[tracker], progress=False, device="cpu")


def test_mlflow_gets_the_settings_and_the_rows(binary_data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", library)
    fitted = trained(binary_data, MLflow())
    (settings, *rows) = library.calls
    assert settings == ("log_params", (fitted.settings,), {})
    for epoch, (name, (numbers,), options) in enumerate(rows, 1):
        assert (name, options) == ("log_metrics", {"step": epoch})
        row = fitted.history[epoch - 1]
        assert numbers == {name: row[name] for name in ("train_loss", "validation_elbo", "learning_rate")}


def test_weights_and_biases_has_a_run(binary_data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", library)
    fitted = trained(binary_data, WeightsAndBiases(project="bits"))
    assert [name for name, *_ in library.calls] == ["init", "log", "log", "finish"]
    assert library.calls[0][2] == {"config": fitted.settings, "project": "bits"}
    assert library.calls[2][1][0]["validation_elbo"] == fitted.history[1]["validation_elbo"]


def test_tensorboard_has_a_curve_of_each_number(binary_data: Data, tmp_path: Path) -> None:
    points: list[tuple[str, float, int]] = []
    writer = SimpleNamespace(add_scalar=lambda *point: points.append(point), flush=lambda: None, close=lambda: None)
    library = SimpleNamespace(SummaryWriter=lambda directory: writer)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "torch.utils.tensorboard", library)
        tracker = TensorBoard(tmp_path)
    fitted = trained(binary_data, tracker)
    curve = [(value, step) for name, value, step in points if name == "train_loss"]
    assert curve == [(row["train_loss"], row["epoch"]) for row in fitted.history]


def test_a_library_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"mlflow is not installed; pip install 'pyrolatent\[mlflow\]'"):
        MLflow()
