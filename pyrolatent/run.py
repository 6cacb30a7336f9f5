"""Run: one directory on disk that holds a trained model and everything about it.

experiment.yaml       the declaration in full; `pyrolatent train experiment.yaml` trains it again
weights.safetensors   the model's state
metrics.jsonl         a row an epoch
record.json           versions, the data's record with its hash, the hashes of components of the user's own
evaluation.json       held-out scores
figures/              pictures
my_module.py          copies of the files of components of the user's own
"""

import hashlib
import inspect
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import safetensors.torch
import torch
import yaml
from matplotlib.figure import Figure
from safetensors import SafetensorError
from torch import Tensor

from pyrolatent.data import Data, load_data
from pyrolatent.declaration import build, complete, import_paths, imported, importing, plain
from pyrolatent.errors import InputError, TrustError
from pyrolatent.experiment import Experiment, FilesIn, read_yaml, source_name
from pyrolatent.inference.evidence import Evaluation
from pyrolatent.inference.fit import Fit, Row
from pyrolatent.models.latent import LatentVariableModel


class Run:
    """A trained model on disk.

    Made by `Run.save` and `train`, read by `Run.load`; every file is written beside its old version and then put in
    its place, so that a crash at any moment leaves a readable state.

    Attributes:
        path: the directory.
        declaration: what stands in experiment.yaml.
        record: what stands in record.json.
    """

    def __init__(self, path: Path, *, model: LatentVariableModel | None = None, trust: bool = False) -> None:
        self.path = path
        self._given, self._trust = model, trust
        if not (path / "experiment.yaml").is_file():
            raise InputError(
                f"{path} is not a run: it holds no experiment.yaml; give a directory that train has written"
            )
        self.declaration = read_yaml(path / "experiment.yaml")
        self.record: dict[str, Any] = self._json("record.json")

    @classmethod
    def save(cls, path: str | Path, fit: Fit, *, overwrite: bool = False) -> "Run":
        """Writes a fit.

        Args:
            path: the directory, made if it is not there.
            fit: what `pyrolatent.fit` returned.
            overwrite: whether a run that is there may be replaced.
        """
        path = Path(path)
        claim(path, overwrite)
        _write(path, fit, _declaration(fit))
        return cls.load(path, model=fit.model)

    @classmethod
    def load(cls, path: str | Path, *, model: LatentVariableModel | None = None, trust: bool = False) -> "Run":
        """Reads a run and gives its model back, bit for bit.

        Args:
            path: the directory.
            model: a model of the same shape to be given the weights, for runs whose model was built of instances.
            trust: whether the copies of the user's own components in the run may be imported and so executed.

        Raises:
            InputError: the directory is not a run, or its model cannot be rebuilt from its declaration.
            TrustError: the run needs a component of the user's own and `trust` was not given.
        """
        run = cls(Path(path), model=model, trust=trust)
        _ = run.model
        return run

    @cached_property
    def model(self) -> LatentVariableModel:
        """The trained model, in evaluation mode, on the CPU."""
        model = self._given
        if model is None:
            if self.declaration.get("model") is None:
                raise InputError(
                    f"{self.path} was trained with a model built of instances and cannot be rebuilt from its "
                    "declaration; use Run.load(path, model=...)"
                )
            with self.importing(), torch.random.fork_rng(devices=[]):
                shapes = {name: self.record["data"][name] for name in ("event_shape", "label_dim")}
                shapes["event_shape"] = tuple(shapes["event_shape"])
                model = build("model", self.declaration["model"], **shapes)
        try:
            model.load_state_dict(self._weights())
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the weights in {self.path} do not fit the model: {reason}") from error
        return model.eval()

    @property
    def history(self) -> list[Row]:
        """The rows of metrics.jsonl."""
        file = self.path / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The contents of evaluation.json."""
        return self._json("evaluation.json") if (self.path / "evaluation.json").is_file() else None

    def load_data(self, data_dir: Path | None = None) -> Data:
        """Loads the data that the run was trained on.

        Raises:
            InputError: they were arrays in memory, or are not what they were.
        """
        declared = self.declaration.get("data")
        if declared is None:
            raise InputError(f"{self.path} was trained on data in memory; give the same data to the Python functions")
        data = load_data(declared, data_dir=data_dir) if data_dir else load_data(declared)
        was, now = self.record["data"]["evaluation_sha256"], data.record["evaluation_sha256"]
        if was != now:
            raise InputError(
                f"the data of {self.path} have changed since training: the validation and test parts hashed to "
                f"{was[:12]} and now hash to {now[:12]}; restore them, or train again"
            )
        return data

    def write_evaluation(self, evaluation: Evaluation) -> Path:
        """Writes held-out scores to evaluation.json."""
        return write_text(self.path / "evaluation.json", json.dumps(asdict(evaluation), indent=2) + "\n")

    def write_figures(self, figures: Mapping[str, Figure]) -> list[Path]:
        """Writes figures as PNG files into figures/."""
        (self.path / "figures").mkdir(exist_ok=True)
        paths = [self.path / "figures" / f"{name}.png" for name in figures]
        for path, figure in zip(paths, figures.values(), strict=True):
            with _replacing(path) as file:
                figure.savefig(file, format="png")
        return paths

    def write_array(self, name: str, values: Tensor) -> Path:
        """Writes an array as NAME.npy."""
        path = self.path / f"{name}.npy"
        with _replacing(path) as file:
            np.save(file, values.numpy(), allow_pickle=False)
        return path

    @contextmanager
    def importing(self) -> Any:
        """The context in which import paths mean the copies in this run, if they are trusted."""
        with importing(self._import):
            yield

    def _import(self, path: str) -> Any:
        name = source_name(path)
        if not self._trust:
            raise TrustError(
                f"{self.path} uses the component {path}, which is code from outside the package ({name} in the run); "
                "read it, then load the run with --trust (trust=True)"
            )
        file = self.path / name
        recorded = self.record.get("components", {}).get(name)
        if not file.is_file() or _sha256(file) != recorded:
            raise TrustError(f"{file} is not the file that {path} was trained with; its hash should be {recorded}")
        return FilesIn(self.path)(path)

    def _weights(self) -> dict[str, Tensor]:
        file = self.path / "weights.safetensors"
        if not file.is_file():
            raise InputError(
                f"{self.path} holds no weights yet: its training stopped before the end of the first epoch"
            )
        try:
            return safetensors.torch.load_file(file)
        except SafetensorError as error:
            raise InputError(f"{file} cannot be read: {error}") from error

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path / name} cannot be read: {error}") from error


def train(
    experiment: Experiment,
    output: str | Path,
    *,
    data_dir: Path | None = None,
    overwrite: bool = False,
    tensorboard: bool = False,
    progress: bool = True,
    on_epoch: Callable[[Fit], Any] | None = None,
) -> Run:
    """Trains an experiment into a directory, which holds the state of the last finished epoch at any time.

    Args:
        experiment: what to train.
        output: the directory of the run.
        data_dir: where named data sets are.
        overwrite: whether a run that is there may be replaced.
        tensorboard: whether to write the metrics for TensorBoard too.
        progress: whether to show a progress bar.
        on_epoch: called after each epoch.
    """
    output = Path(output)
    data = experiment.load_data(data_dir)
    model = experiment.build(data)
    claim(output, overwrite)
    writer = _tensorboard(output) if tensorboard else None
    declaration = experiment.declaration | {"data": data.declaration}

    def save(fit: Fit) -> None:
        with experiment.importing():
            _write(output, fit, declaration)
        if writer is not None:
            row = fit.history[-1]
            for name in ("train_loss", "validation_elbo", "learning_rate"):
                writer.add_scalar(name, row[name], row["epoch"])
        if on_epoch:
            on_epoch(fit)

    fit = experiment.fit(model, data, save, progress)
    with experiment.importing():
        _write(output, fit, declaration)
    if writer is not None:
        writer.close()
    return Run.load(output, model=fit.model)


def claim(path: Path, overwrite: bool) -> None:
    """Makes the directory of a run.

    Raises:
        InputError: there is something in it that would be lost.
    """
    if path.is_file():
        raise InputError(f"{path} is a file; a directory for the run was expected")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise InputError(f"{path} is not empty; choose another output, or say overwrite")
        if not (path / "experiment.yaml").is_file():
            raise InputError(f"{path} is not empty and is not a run, so it is not overwritten; choose another output")
        for stale in ("evaluation.json", "weights.safetensors", "metrics.jsonl"):
            (path / stale).unlink(missing_ok=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be made: {error.strerror}") from error


def write_text(path: Path, text: str) -> Path:
    """Writes a text file so that at any moment either its old or its new version is there."""
    with _replacing(path) as file:
        file.write(text.encode())
    return path


@contextmanager
def _replacing(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _write(path: Path, fit: Fit, declaration: Mapping[str, Any]) -> None:
    """Writes everything but evaluations and figures; weights before metrics, so that no row is without its weights."""
    components = _copy_components(path, declaration)
    record = {
        "pyrolatent": version("pyrolatent"),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
        "data": fit.data.record | {"label_dim": fit.data.label_dim},
        "components": components,
        "parameters": sum(parameter.numel() for parameter in fit.model.parameters()),
        "best_epoch": fit.best_epoch,
    }
    write_text(path / "experiment.yaml", yaml.safe_dump(dict(declaration), sort_keys=False))
    write_text(path / "record.json", json.dumps(record, indent=2) + "\n")
    state = {name: value.detach().cpu().contiguous() for name, value in fit.model.state_dict().items()}
    with _replacing(path / "weights.safetensors") as file:
        file.write(safetensors.torch.save(state))
    write_text(path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in fit.history))


def _declaration(fit: Fit) -> dict[str, Any]:
    """An experiment's declaration of a fit made in Python; null where it was made of what has no spelling."""
    try:
        model = plain(complete("model", getattr(fit.model, "declaration", fit.model)))
    except InputError:
        model = None
    return {"model": model, "data": plain(fit.data.declaration), **plain(fit.settings)}


def _copy_components(path: Path, declaration: Mapping[str, Any]) -> dict[str, str]:
    """Copies the source files of the user's own components into the run and returns their hashes."""
    hashes = {}
    for component in import_paths(declaration):
        source = inspect.getsourcefile(imported(component))
        if source is None:
            raise InputError(f"{component} has no source file that could be kept with the run")
        copy = path / source_name(component)
        if not copy.is_file() or copy.read_bytes() != Path(source).read_bytes():
            write_text(copy, Path(source).read_text(encoding="utf-8"))
        hashes[source_name(component)] = _sha256(copy)
    return hashes


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _tensorboard(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "tensorboard is not installed; pip install 'pyrolatent[tensorboard]', or leave it out"
        ) from None
    return SummaryWriter(str(path / "tensorboard"))
