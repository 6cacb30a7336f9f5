"""Experiment: a model, its data and its training as one declaration, in Python and in YAML."""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import yaml

from pyrolatent.data import Data, load_data
from pyrolatent.declaration import (
    Component,
    build,
    check,
    choices,
    complete,
    import_path,
    importing,
    kinds,
    options_schema,
    plain,
    schema,
)
from pyrolatent.errors import InputError
from pyrolatent.inference.fit import Fit, fit, training_settings
from pyrolatent.models.latent import LatentVariableModel

DEFAULT_MODEL: Mapping[str, Any] = {"vae": {"latent_dim": 10}}
DEFAULT_DATA = "digits"


class Experiment:
    """What is to be trained, on what, and how; validated when it is made, before any work.

    Args:
        model: declaration of a model.
        data: declaration of data: a name, a path, or one of them with the options of `load_data`.
        directory: where import paths and relative data paths are looked for first.
        **settings: the keyword-only parameters of `fit`: objective, epochs, batch_size, optimizer, ..., seed.

    Raises:
        InputError: naming the field that cannot be right and the nearest valid one.
    """

    def __init__(
        self,
        *,
        model: Any = DEFAULT_MODEL,
        data: Any = DEFAULT_DATA,
        directory: Path | None = None,
        **settings: Any,
    ) -> None:
        valid = ["model", "data", *training_settings().options]
        for name in settings:
            if name not in valid:
                raise InputError(f"an experiment has no field {name!r}; {choices(name, valid)}")
        self.directory = directory
        self.data = data
        self.settings = training_settings().check(settings, "experiment")
        with self.importing():
            self.model = check("model", model)

    @classmethod
    def load(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> "Experiment":
        """Reads an experiment file.

        Args:
            path: a YAML file.
            overrides: dotted paths of fields to their values, such as {"model.vae.latent_dim": 20}.
        """
        fields = read_yaml(path)
        return cls(**override(fields, overrides or {}), directory=path.resolve().parent)

    @property
    def declaration(self) -> dict[str, Any]:
        """The experiment in full, defaults written out, in YAML's own types.

        Raises:
            InputError: a part is an instance and has no spelling.
        """
        kinded = {name: parameter.default for name, parameter in training_settings().options.items()} | self.settings
        with self.importing():
            settings = {
                name: complete(name, value) if name in kinds() else value
                for name, value in kinded.items()
                if value is not None
            }
            return {"model": plain(complete("model", self.model)), "data": plain(self.data), **plain(settings)}

    def to_yaml(self) -> str:
        """The declaration as the text of an experiment file."""
        return yaml.safe_dump(self.declaration, sort_keys=False)

    def load_data(self, data_dir: Path | None = None) -> Data:
        """Loads the data that the experiment declares."""
        source = self.data
        if self.directory is not None and isinstance(source, str | Mapping):
            name = source if isinstance(source, str) else next(iter(source), "")
            if Path(name).suffix and (self.directory / name).exists():
                source = _renamed(source, str(self.directory / name))
        return load_data(source, data_dir=data_dir) if data_dir else load_data(source)

    def build(self, data: Data) -> LatentVariableModel:
        """Builds the model for this data; the seed decides its initial weights."""
        with self.importing(), torch.random.fork_rng():
            torch.manual_seed(self.settings.get("seed", 0))
            return build("model", self.model, event_shape=data.event_shape, label_dim=data.label_dim)

    def fit(
        self,
        model: LatentVariableModel,
        data: Data,
        on_epoch: Callable[[Fit], Any] | None = None,
        progress: bool = True,
    ) -> Fit:
        """Trains a model as declared."""
        with self.importing():
            return fit(model, data, on_epoch, progress, **self.settings)

    def importing(self) -> AbstractContextManager[None]:
        """The context in which import paths mean files beside the experiment first."""
        return importing(import_path if self.directory is None else FilesIn(self.directory))


class FilesIn:
    """Imports components from the Python files of a directory.

    Args:
        directory: where `package.module` is looked for as `package/module.py`.
        fallback: what imports a module that is not there.
    """

    def __init__(self, directory: Path, fallback: Callable[[str], Any] = import_path) -> None:
        self.directory = directory
        self.fallback = fallback

    def __call__(self, path: str) -> Any:
        """Imports `package.module:Name`."""
        module, _, name = path.partition(":")
        file = self.directory / source_name(path)
        if not file.is_file():
            return self.fallback(path)
        loaded = _load(file, module)
        if not hasattr(loaded, name):
            raise InputError(f"{path}: {file} has no {name!r}; {choices(name, _public(loaded))}")
        return getattr(loaded, name)


def source_name(path: str) -> str:
    """The file that holds an import path, relative to the directory it is imported from."""
    return path.partition(":")[0].replace(".", "/") + ".py"


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        InputError: no such file, no valid YAML, or something else than a mapping.
    """
    try:
        fields = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; an experiment file was expected") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; an experiment file in YAML was expected") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not valid YAML: {reason}") from error
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise InputError(f"{path} holds {type(fields).__name__}, but a mapping of model, data, ... was expected")
    return fields


def parse_value(text: str) -> Any:
    """A value as YAML reads it: `20` is a number, `[200, 100]` a list."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{text!r} is not a value that YAML can read") from error


def override(fields: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces fields by dotted path: `model.vae.prior.vamp.components`.

    Names and options take turns along a path, and a place holds one name: another one replaces it with its options.
    """
    result = dict(fields)
    for path, value in values.items():
        keys = path.split(".")
        if not all(keys):
            raise InputError(f"{path!r} is not a field; write it as model.vae.latent_dim")
        defaults = {"model": DEFAULT_MODEL, "data": DEFAULT_DATA}
        result[keys[0]] = _set(result.get(keys[0], defaults.get(keys[0])), keys[1:], value, is_name=True)
    return result


def experiment_schema() -> dict[str, Any]:
    """JSON schema of an experiment file."""
    settings = options_schema(training_settings())
    data_options = options_schema(Component(load_data, ("source",)))
    definitions = {kind: schema(kind) for kind in kinds()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pyrolatent experiment",
        "type": "object",
        "properties": {
            "model": {"$ref": "#/$defs/model"},
            "data": {
                "anyOf": [
                    {"type": "string", "description": "a named data set, or the path of a file or folder"},
                    {"type": "object", "additionalProperties": data_options, "minProperties": 1, "maxProperties": 1},
                ]
            },
            **settings["properties"],
        },
        "additionalProperties": False,
        "$defs": definitions,
    }


def _set(place: Any, keys: list[str], value: Any, *, is_name: bool) -> Any:
    if not keys:
        return value
    if isinstance(place, str):
        place = {place: {}}
    inside = dict(place) if isinstance(place, Mapping) else {}
    kept = {name: inside[name] for name in inside if name == keys[0]} if is_name else inside
    return kept | {keys[0]: _set(inside.get(keys[0]), keys[1:], value, is_name=not is_name)}


def _renamed(source: str | Mapping[str, Any], name: str) -> str | dict[str, Any]:
    return name if isinstance(source, str) else {name: next(iter(source.values()))}


def _load(file: Path, module: str) -> Any:
    source = file.read_bytes()
    # Two runs may hold different files of one name, so the module is known by what is in it.
    unique = f"{module}_{hashlib.sha256(source).hexdigest()[:12]}"
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, file)
        if spec is None or spec.loader is None:
            raise InputError(f"{file} cannot be imported: it is not a Python file")
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[unique] = loaded
        try:
            spec.loader.exec_module(loaded)
        except Exception as error:
            del sys.modules[unique]
            raise InputError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    return sys.modules[unique]


def _public(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_")]


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, reading 1e-3 as a number as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
