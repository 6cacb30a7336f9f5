"""Runs: a run is a directory with a trained model and everything about it.

experiment.yaml       the full declaration; `pyrolatent train experiment.yaml` trains it again
weights.safetensors   the model's state after the last finished epoch, or the best one after early stopping
rows.csv              which rows of the data were in which part, with their ids if they have some
metrics.jsonl         one row per epoch: epoch, train_loss, validation_elbo, learning_rate, seconds
record.json           versions, the data's record with its hash, the hashes of user-defined components, whether training
                      has finished
evaluation.json       held-out scores; evaluation.safetensors has those of each datapoint, and its row
checks.json           verdicts of checks; annealed.json has the evidence by annealing
draws.nc              draws, predictions and data for ArviZ
figures/              figures
samples.npy           draws; sample_means.npy has their means
my_module.py          copies of the files of user-defined components
"""

import csv
import hashlib
import io
import json
import math
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyro
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pyrolatent.data.load import load_data, load_rows
from pyrolatent.data.splits import PARTS, Data, Split, divisor, measure_of
from pyrolatent.data.tables import event_shape_of, is_number, write_table
from pyrolatent.declaration import Modules, build, choices, import_paths, importing
from pyrolatent.errors import InputError, TrustError
from pyrolatent.experiments import applied
from pyrolatent.experiments.experiment import Experiment, declare, read_yaml, write_yaml
from pyrolatent.experiments.user_components import FilesIn, source_name
from pyrolatent.inference import distributed
from pyrolatent.inference.devices import choose_device
from pyrolatent.inference.draws import labels_for
from pyrolatent.inference.evidence.annealed import AnnealedEvidence, Bracket, annealed_evidence, bidirectional_evidence
from pyrolatent.inference.evidence.importance import evaluate
from pyrolatent.inference.evidence.result import HeldOutScores, OnStep
from pyrolatent.inference.rules import require_data
from pyrolatent.inference.training.callbacks import Callback
from pyrolatent.inference.training.fitted import Fit, Row
from pyrolatent.inference.training.trackers import TensorBoard
from pyrolatent.models.arrays import device_and_dtype
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.model import Capability, count_parameters
from pyrolatent.tasks import export

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyrolatent.checks import Checks

STALE = ("weights.safetensors", "metrics.jsonl", "evaluation.json", "evaluation.safetensors", "samples.npy",
         "sample_means.npy", "checks.json", "annealed.json", "draws.nc",
         *(f"{name}{ending}" for name in applied.NAMES for ending in (".npy", ".csv")))  # fmt: skip
"""Results about a model that was in the directory before."""


class Run:
    """A trained model on disk.

    Created by `Run.save` and `train`, read by `Run.load`. Every file is written beside its old version and then
    replaces it, so that a crash at any moment leaves a readable state.

    Attributes:
        path: the directory.
        declaration: the contents of experiment.yaml.
        record: the contents of record.json.
        written: the files that this object has written to the directory, in order.
        data: the data that it was trained on, if it was trained just now.
    """

    def __init__(self, path: Path, *, model: LatentVariableModel | None = None, trust: bool = False) -> None:
        self.path = path
        self._given, self._trust, self._files = model, trust, FilesIn(path)
        self.data: Data | None = None
        if not (path / "experiment.yaml").is_file():
            raise InputError(
                f"{path} is not a run: it holds no experiment.yaml; give a directory that train has written"
            )
        self.declaration = read_yaml(path / "experiment.yaml")
        self.record: dict[str, Any] = self._json("record.json")
        self.written: list[Path] = []

    @classmethod
    def save(cls, path: str | Path, fit: Fit, *, overwrite: bool = False) -> "Run":
        """Saves a fit.

        Args:
            path: the directory, created if missing.
            fit: the result of `pyrolatent.fit`.
            overwrite: whether to replace an existing run.
        """
        path = Path(path)
        declaration, sources = _declaration(fit)
        create_directory(path, overwrite)
        _begin(path, fit, declaration, sources)
        _write_state(path, fit)
        _write_record(path, fit, sources, finished=True)
        return cls.load(path, model=fit.model)

    @classmethod
    def load(cls, path: str | Path, *, model: LatentVariableModel | None = None, trust: bool = False) -> "Run":
        """Loads a run and restores its model bitwise.

        Args:
            path: the directory.
            model: a model of the same shape to load the weights into, for runs whose model was built from instances.
            trust: whether to import, and therefore execute, the copies of user-defined components in the run.

        Raises:
            InputError: the directory is not a run, or its model cannot be rebuilt from its declaration.
            TrustError: the run needs a user-defined component and `trust` was not given.
        """
        run = cls(Path(path), model=model, trust=trust)
        _ = run.model
        return run

    @cached_property
    def model(self) -> LatentVariableModel:
        """The trained model, in evaluation mode, with the type of its weights and on the CPU unless it was given."""
        model = self._given
        if model is None:
            if self.declaration.get("model") is None:
                raise InputError(
                    f"{self.path} was trained with a model built of instances and cannot be rebuilt from its "
                    "declaration; use Run.load(path, model=...)"
                )
            with self.importing(), torch.random.fork_rng(devices=[]):
                event_shape = event_shape_of(self._recorded("event_shape"), self._recorded("columns", default=None))
                label_dim = self._recorded("label_dim")
                model = build("model", self.declaration["model"], event_shape=event_shape, label_dim=label_dim)
        weights = self._weights()
        try:
            model.to(next((value.dtype for value in weights.values() if value.is_floating_point()), None))
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the weights in {self.path} do not fit the model: {reason}") from error
        model.vector_labels = bool(self._recorded("vector_labels", default=False))
        model.divisor = divisor(self.record.get("data", {}))
        return model.eval()

    @property
    def history(self) -> list[Row]:
        """The rows of metrics.jsonl."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return []
        rows: list[Any] = []
        try:
            for line in file.read_text(encoding="utf-8").splitlines():
                rows.append(json.loads(line))
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read after line {len(rows)}: {error}") from error
        return rows

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The contents of evaluation.json; the measure of a density includes its units, also for older runs."""
        if not (self.path / "evaluation.json").is_file():
            return None
        found = self._json("evaluation.json")
        if "measure" in found:
            found["measure"] = measure_of(found["measure"], self.record.get("data", {}))
        return found

    @property
    def checks(self) -> dict[str, Any] | None:
        """The contents of checks.json."""
        return self._json("checks.json") if (self.path / "checks.json").is_file() else None

    @property
    def annealed(self) -> dict[str, Any] | None:
        """The contents of annealed.json."""
        return self._json("annealed.json") if (self.path / "annealed.json").is_file() else None

    @property
    def evaluation_each(self) -> dict[str, Tensor]:
        """The scores of each datapoint, (datapoints,), nats."""
        file = self.path / "evaluation.safetensors"
        if not file.is_file():
            raise InputError(f"{self.path} has not been evaluated; pyrolatent evaluate {self.path}")
        return safetensors.torch.load_file(file)

    def load_data(self, data_dir: Path | None = None) -> Data:
        """Loads the data that the run was trained on.

        Raises:
            InputError: they were arrays in memory, or have changed.
        """
        declared = self.declaration.get("data")
        if declared is None:
            raise InputError(f"{self.path} was trained on data in memory; give the same data to the Python functions")
        options: dict[str, Any] = {"data_dir": data_dir} if data_dir else {}
        # Older runs have no strata, classes that do not occur, and channels last of images that are not bytes.
        if "columns" not in self.record.get("data", {}):
            options["stratified"] = False
            first = load_data(declared, **options)
            if first.label_dim < self._recorded("label_dim"):
                options["classes"] = self._recorded("label_dim")
            if [*first.event_shape] != self._recorded("event_shape"):
                options["layout"] = "channels_first"
        data = load_data(declared, **options)
        self._validate_record(data, "have changed since training", "restore them, or train again")
        return data

    def load_rows(self, source: Any, **options: Any) -> Split:
        """Loads data to apply the model to, as `pyrolatent.load_rows` does."""
        return load_rows(source, self.record["data"], **options)

    def _validate_record(self, data: Data, what: str, instead: str) -> None:
        """Refuses data whose validation and test parts differ from those of training."""
        was, now = self._recorded("evaluation_sha256"), data.record["evaluation_sha256"]
        if was != now:
            raise InputError(
                f"the data of {self.path} {what}: the validation and test parts hashed to {was[:12]} and now hash to "
                f"{now[:12]}; {instead}"
            )
        classes = self._recorded("classes", default=None)  # whose codes are hashed, not their words
        if classes and data.classes and classes != [*data.classes]:
            raise InputError(
                f"the data of {self.path} {what}: the classes were {', '.join(classes[:5])} and now are "
                f"{', '.join(data.classes[:5])}; {instead}"
            )
        training = self._recorded("training_sha256", default=None)  # older records lack it
        if training not in (None, data.record["training_sha256"]):
            warnings.warn(
                f"the training data of {self.path} {what}: what is said of them is of those that are there now; "
                f"{instead}",
                stacklevel=3,
            )

    def label(self, text: str) -> Any:
        """Parses a label of the run's data.

        Args:
            text: the name or number of a class, or the numbers of a label vector joined by commas.

        Returns:
            The class, or the vector (label_dim,).

        Raises:
            InputError: the model takes no labels, or there is no such label.
        """
        model, names = self.model, self._recorded("classes", default=None) or []
        if not model.label_dim:
            raise InputError(f"label was {text!r}, but {type(model).__name__} takes no labels; leave it out")
        try:
            if model.vector_labels:
                return [float(number) for number in text.split(",")]
            numbers = bool(names) and all(map(is_number, names))  # which are not confused with codes
            return names.index(text) if text in names or numbers else int(text)
        except ValueError:
            if model.vector_labels:
                takes = f"{model.label_dim} numbers joined by commas"
            else:
                takes = "a class: " + (choices(text, names) if names else f"0 to {model.label_dim - 1}")
            raise InputError(f"label was {text!r}; {type(model).__name__} takes {takes}") from None

    def evaluate(self, data: Data | None = None, *, device: str | None = None, **options: Any) -> HeldOutScores:
        """Scores the model on held-out data and saves the scores by `write_evaluation`.

        Args:
            data: the data that it was trained on; None loads them.
            device: where to compute; None is the device of training.
            **options: options of `pyrolatent.evaluate`.
        """
        with self._at(device, data) as (model, data):
            found: HeldOutScores = evaluate(model, data, **options)
        if not distributed.rank():
            self.write_evaluation(found)
        return found

    def anneal(
        self,
        data: Data | None = None,
        *,
        split: str = "test",
        size: int | None = 100,
        device: str | None = None,
        on_step: OnStep | None = None,
        **options: Any,
    ) -> tuple[AnnealedEvidence, Bracket]:
        """Estimates log p(x) of held-out data by annealing, brackets that of simulated data, and writes annealed.json.

        Args:
            data: the data that it was trained on; None loads them.
            split: the part of the data.
            size: number of datapoints, from the first, and of simulated ones; None for all.
            device: where to compute; None is the device of training.
            on_step: called with the number of datapoints done.
            **options: `chains`, `steps`, ... of `annealed_evidence` and `bidirectional_evidence`.
        """
        if Capability.POSTERIOR not in self.model.offers:
            raise InputError(
                f"{type(self.model).__name__} in {self.path} has no latents to anneal; leave --method out, since "
                "log Z of energies is annealed anyway unless it is exact, or train a vae"
            )

        with self._at(device, data) as (model, data):
            part = data.split(split)
            count = len(part) if size is None else size

            def counted(before: int) -> Callable[[int], Any] | None:
                return (lambda done: on_step("annealing", before + done, 2 * count)) if on_step else None

            y = labels_for(model, count, of_data=part.y)
            found = annealed_evidence(model, data, split=split, size=size, on_batch=counted(0), **options)
            bracket = bidirectional_evidence(model, size=count, y=y, on_batch=counted(found.datapoints), **options)
        self.write_json("annealed", {"evidence": _fields(found), "bracket": _fields(bracket)})
        return found, bracket

    def check(
        self, data: Data | None = None, *, device: str | None = None, pictures: bool = True, **options: Any
    ) -> "Checks":
        """Checks the model and writes the verdicts to checks.json.

        Args:
            data: the data that it was trained on; None loads them.
            device: where to compute; None is the device of training.
            pictures: whether to also write the figures of the checks, and draws.nc for ArviZ.
            **options: options of `pyrolatent.check`.
        """
        from pyrolatent.checks import check

        with self._at(device, data) as (model, data):
            found = check(model, data, **options)
        self.write_json("checks", found.json())
        if pictures:
            self.write_netcdf("draws", found.to_arviz(seed=options.get("seed", 0)))
            self.write_figures(found.figures())
        return found

    def plot(self, data: Data | None = None) -> list[Path]:
        """Plots every figure of the model to figures/, on the CPU.

        Args:
            data: the data that it was trained on; None loads them.
        """
        from pyrolatent.pictures import plot

        with self._at("cpu", data) as (model, data):
            return self.write_figures(plot(model, data, self.history))

    def apply(
        self, task: str, source: Any = None, output: str | Path | None = None, *, split: str = "test",
        rows: str | None = None, data_dir: Path | None = None, **options: Any,
    ) -> dict[str, Path]:  # fmt: skip
        """Does a task with new rows or with a part of the data, and writes the result.

        Args:
            task: encode, reconstruct, impute, denoise, interpolate, score or classify; sample or traverse, which take
                no rows.
            source: a file or other source of new rows, as `load_rows` takes them; None is a part of the run's own data.
            output: a table (.csv, .csv.gz, .parquet, .feather) in the units and words of the data, an array (.npy) or a
                figure (.png, .pdf, .svg); None writes an array or a table, and a figure, to the run.
            split: the part of the run's own data.
            rows: numbers or ids of rows, joined by commas, or a range of positions such as 0:10; None takes all.
            data_dir: directory of named data sets.
            **options: options of the task in `pyrolatent.experiments.applied`.

        Returns:
            The paths that were written, by "array", "table" or "figure".

        Raises:
            InputError: the rows do not fit the model, the task is none of its, or there is no such format.
        """
        where: dict[str, Any] = {"split": split, "rows": rows, "data_dir": data_dir}
        return self.write(applied.result(self, task, source, output, **where, **options), output)

    def export(self, part: Any, path: str | Path | None = None) -> Path:
        """Writes the encoder or the decoder as a program of torch alone, to PART.pt2 in the run unless told otherwise.

        Args:
            part: "encoder" or "decoder", as `pyrolatent.tasks.export` takes it.
            path: the file.
        """
        self.written.append(export(self.model, part, self.path / f"{part}.pt2" if path is None else path))
        return self.written[-1]

    def write(self, result: "applied.Result", output: str | Path | None = None) -> dict[str, Path]:
        """Writes the result of a task, to a file by its ending, or to the run.

        Raises:
            InputError: the result has no such form, or the file cannot be written.
        """
        if output is None:
            table = result.cells is not None and result.array.dim() <= 2 and result.name in applied.AS_TABLES
            suffix = ".csv" if table else ".npy"
            written = self._write_result(result, self.path / f"{result.name}{suffix}")
            if result.figure is not None:
                written["figure"] = self.write_figures({result.name: result.figure()})[0]
            return written
        return self._write_result(result, Path(output))

    def _write_result(self, result: "applied.Result", path: Path) -> dict[str, Path]:
        suffix = applied.format_of(path)
        if suffix == ".npy":
            return {"array": self._write_npy(path, result.array)}
        made = result.figure if suffix in applied.FIGURES else result.cells
        if made is None:
            what = "a figure, of which there is none here" if suffix in applied.FIGURES else (
                f"a table, but the result is an array of shape {tuple(result.array.shape)}"
            )  # fmt: skip
            raise InputError(f"{path} is {what}; write a .npy")
        contents: Any = made()
        with _replacing(path) as file:
            if suffix in applied.FIGURES:
                contents.savefig(file, format=suffix[1:])
            else:
                write_table(file, suffix, contents)
        self.written.append(path)
        return {"figure" if suffix in applied.FIGURES else "table": path}

    def _write_npy(self, path: Path, values: Tensor) -> Path:
        with _replacing(path) as file:
            np.save(file, values.cpu().numpy(), allow_pickle=False)
        self.written.append(path)
        return path

    def write_evaluation(self, evaluation: HeldOutScores) -> Path:
        """Writes held-out scores to evaluation.json and those of each datapoint to evaluation.safetensors."""
        self.written.append(_write(self.path / "evaluation.safetensors", safetensors.torch.save(evaluation.each)))
        return self.write_json("evaluation", scores(evaluation))

    def write_json(self, name: str, contents: Mapping[str, Any]) -> Path:
        """Writes NAME.json."""
        self.written.append(_write_json(self.path / f"{name}.json", contents))
        return self.written[-1]

    def write_netcdf(self, name: str, groups: Any) -> Path:
        """Writes the result of `to_arviz` as NAME.nc."""
        path = self.path / f"{name}.nc"
        with tempfile.TemporaryDirectory(dir=self.path) as directory:
            groups.to_netcdf(str(Path(directory) / path.name), engine="h5netcdf")
            os.replace(Path(directory) / path.name, path)
        self.written.append(path)
        return path

    def write_figures(self, figures: Mapping[str, "Figure"]) -> list[Path]:
        """Writes figures as PNG files to figures/."""
        paths = [self.path / "figures" / f"{name}.png" for name in figures]
        for path, figure in zip(paths, figures.values(), strict=True):
            with _replacing(path) as file:
                figure.savefig(file, format="png")
        self.written += paths
        return paths

    def write_array(self, name: str, values: Tensor) -> Path:
        """Writes an array as NAME.npy."""
        return self._write_npy(self.path / f"{name}.npy", values)

    @contextmanager
    def _at(self, device: str | None, data: Data | None) -> Iterator[tuple[Any, Data]]:
        """Moves the model to a device within this context and yields it with the data; None is that of training."""
        if data is None:
            data = self.load_data()
        require_data(data)
        other = "pl.evaluate, pl.check and the others take run.model and other data, and write nothing"
        self._validate_record(data, "are not those that were given", other)
        before, _ = device_and_dtype(self.model)
        try:
            yield self.model.to(choose_device(device or self.declaration.get("device", "auto"))), data
        finally:
            self.model.to(before)

    def importing(self) -> AbstractContextManager[None]:
        """A context in which import paths refer to the copies in this run, if they are trusted."""
        return importing(self._import)

    def _import(self, path: str, modules: Modules | None = None) -> Any:
        name = source_name(path)
        if not self._trust:
            raise TrustError(
                f"{self.path} uses the component {path}, which is code from outside the package ({name} in the run); "
                "read it, then load the run with --trust (trust=True)"
            )
        recorded = self._recorded(name, "components")
        found = _sha256(self._files.source(path)) if (self.path / name).is_file() else None
        if found != recorded:
            raise TrustError(
                f"{self.path / name} is not the file that {path} was trained with: its hash should be {recorded}, but "
                f"{f'is {found}' if found else 'it is not there'}; restore it, or train again"
            )
        return self._files(path, modules)

    def _recorded(self, name: str, part: str = "data", default: Any = ...) -> Any:
        try:
            return self.record[part][name]
        except (KeyError, TypeError) as error:
            if default is not ...:
                return default
            raise InputError(f"{self.path / 'record.json'} holds no {part}.{name}; train again") from error

    def _weights(self) -> dict[str, Tensor]:
        file = self.path / "weights.safetensors"
        if not file.is_file():
            raise InputError(
                f"{self.path} holds no weights yet: its training stopped before the end of the first epoch"
            )
        try:
            return safetensors.torch.load_file(file)
        except SafetensorError as error:
            raise InputError(f"{file} cannot be read ({error}); restore it, or train the run again") from error

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
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Trains an experiment and saves it to a directory after every epoch.

    Under torchrun the first process writes, and calls the callbacks; the directory must be visible to all processes.

    Args:
        experiment: the experiment.
        output: the directory of the run.
        data_dir: directory of named data sets.
        overwrite: whether to replace an existing run.
        tensorboard: whether to also write the metrics for TensorBoard.
        progress: whether to show a progress bar.
        callbacks: called after the run has been saved.
    """
    output = Path(output)
    data = experiment.load_data(data_dir)
    model = experiment.build(data)
    saving = _Saving(output, experiment.declaration | {"data": data.declaration}, experiment.sources)
    boards = [TensorBoard(output / "tensorboard")] if tensorboard else []
    writes = distributed.rank() == 0
    if writes:
        create_directory(output, overwrite)
    try:
        fit = experiment.fit(model, data, progress and writes, [saving, *boards, *callbacks] if writes else [])
    except BaseException:
        with suppress(OSError):  # keeps a directory that is not empty
            output.rmdir()
        raise
    distributed.wait()
    run = Run.load(output, model=fit.model)
    run.data = data
    return run


class _Saving(Callback):
    """Saves a run after every epoch, and its record at the end."""

    def __init__(self, path: Path, declaration: Mapping[str, Any], sources: Mapping[str, bytes]) -> None:
        self.path, self.declaration, self.sources = path, declaration, sources

    def on_epoch(self, fit: Fit) -> None:
        if len(fit.history) == 1:
            _begin(self.path, fit, self.declaration, self.sources)
        _write_state(self.path, fit)

    def on_end(self, fit: Fit) -> None:
        _write_state(self.path, fit)
        _write_record(self.path, fit, self.sources, finished=True)


def scores(evaluation: HeldOutScores) -> dict[str, Any]:
    """The contents of evaluation.json: no `log_evidence` if there is no likelihood; null for NaN."""
    fields = _without_nan(_fields(evaluation))
    for name in (
        "classification_error",
        "global_sites",
        "global_kl",
        "left_out",
        "given",
    ):  # only some models have these
        if fields.get(name) in (None, []):
            fields.pop(name, None)
    if evaluation.measure != "cross-entropy":
        return fields
    return {name: value for name, value in fields.items() if not name.startswith("log_evidence")}


def _fields(scores: Any) -> dict[str, Any]:
    """The fields of scores except the scores of each datapoint."""
    return {name: value for name, value in asdict(replace(scores, each={})).items() if name != "each"}


def _without_nan(value: Any) -> Any:
    """Replaces NaN, which JSON lacks, by None at any depth."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def create_directory(path: Path, overwrite: bool) -> None:
    """Creates the directory of a run; an existing run is kept until it can be replaced.

    Raises:
        InputError: the directory has contents that would be lost, or is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        occupied = any(path.iterdir())
    except OSError as error:
        raise InputError(f"{path} cannot be the directory of a run: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be the directory of a run: it may not be written to")
    if occupied and not overwrite:
        raise InputError(f"{path} is not empty; choose another output, or --overwrite (overwrite=True)")
    if occupied and not (path / "experiment.yaml").is_file():
        raise InputError(f"{path} is not empty and is not a run, so it is not overwritten; choose another output")


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yields a file to write to, which replaces `path` when it is complete."""
    try:
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
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def _write(path: Path, contents: bytes) -> Path:
    """Writes a file atomically."""
    with _replacing(path) as file:
        file.write(contents)
    return path


def _write_json(path: Path, contents: Mapping[str, Any]) -> Path:
    return _write(path, (json.dumps(contents, indent=2) + "\n").encode())


def _begin(path: Path, fit: Fit, declaration: Mapping[str, Any], sources: Mapping[str, bytes]) -> None:
    """Writes what does not change between epochs; deletes the weights of an existing run first."""
    for stale in STALE:
        (path / stale).unlink(missing_ok=True)
    for stale in ("figures", "tensorboard"):
        shutil.rmtree(path / stale, ignore_errors=True)
    _write(path / "experiment.yaml", write_yaml(declaration).encode())
    _write(path / "rows.csv", _rows(fit.data).encode())
    for name, source in sources.items():
        _write(path / name, source)
    _write_record(path, fit, sources, finished=False)


def _rows(data: Data) -> str:
    """Part, number and possibly id of each datapoint, as the text of a .csv file."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    named = any(split.ids is not None for split in data.splits)
    writer.writerow(["part", "row"] + ["id"] * named)
    for part in PARTS:
        split = data.split(part)
        columns = [[part] * len(split), split.row_numbers.tolist(), split.ids or [""] * len(split)]
        writer.writerows(zip(*columns[: 2 + named], strict=True))
    return file.getvalue()


def _write_state(path: Path, fit: Fit) -> None:
    """Writes weights before metrics, so that every row has weights."""
    # Copies, since parameters that are one tensor are refused.
    contiguous = {"memory_format": torch.contiguous_format}
    state = {name: value.detach().cpu().clone(**contiguous) for name, value in fit.model.state_dict().items()}
    _write(path / "weights.safetensors", safetensors.torch.save(state))
    _write(path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in fit.history).encode())


def _write_record(path: Path, fit: Fit, sources: Mapping[str, bytes], *, finished: bool) -> None:
    record = {
        "pyrolatent": version("pyrolatent"),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
        "finished": finished,
        "best_epoch": fit.best_epoch if finished else None,
        "parameters": count_parameters(fit.model),
        "data": fit.data.record | {"vector_labels": fit.model.vector_labels},
        "components": {name: _sha256(source) for name, source in sources.items()},
    }
    _write_json(path / "record.json", record)


def _declaration(fit: Fit) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The declaration of a fit made in Python, as far as it has one, and the files of its user-defined components.

    A model whose source file cannot be found is recorded as an instance.
    """
    files = FilesIn(None)
    declaration = declare(fit.model, fit.data.declaration, fit.settings)
    try:
        return declaration, {source_name(path): files.source(path) for path in import_paths(declaration)}
    except InputError:
        return declaration | {"model": None}, {}


def _sha256(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()
