"""Experiments: a model, its data and its training in one declaration, in Python or YAML."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import yaml

from pyrolatent.data.load import load_data
from pyrolatent.data.named_sets import NAMED
from pyrolatent.data.parts import HELD
from pyrolatent.data.splits import Data
from pyrolatent.declaration import (
    Component,
    build,
    choices,
    complete,
    import_paths,
    importing,
    kinds,
    options_schema,
    plain,
    schema,
    target,
    validate,
)
from pyrolatent.errors import InputError
from pyrolatent.experiments.user_components import FilesIn, source_name
from pyrolatent.inference.training.callbacks import Callback
from pyrolatent.inference.training.fit import fit, training_settings
from pyrolatent.inference.training.fitted import Fit
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.model import Model

DEFAULT_MODEL: Mapping[str, Any] = {"vae": {"latent_dim": 10}}
DEFAULT_DATA = "digits"


class Experiment:
    """A declaration of a model, its data and its training, validated in the constructor.

    Args:
        model: declaration of a model.
        data: declaration of data: a name or a path, possibly with options of `load_data`.
        directory: directory in which import paths and relative data paths are looked up first.
        **settings: the keyword-only parameters of `fit`: objective, epochs, batch_size, optimizer, ..., seed.

    Attributes:
        files: importer of user-defined components, which reads each file once, so that the recorded source is the one
            that was used.

    Raises:
        InputError: a field is invalid; the message has its name and the nearest valid one.
    """

    def __init__(
        self,
        *,
        model: Any = DEFAULT_MODEL,
        data: Any = DEFAULT_DATA,
        directory: str | Path | None = None,
        **settings: Any,
    ) -> None:
        optional = training_settings().options
        for name, value in {"model": model, "data": data, **settings}.items():
            if name not in ("model", "data", *optional):
                raise InputError(f"an experiment has no field {name!r}; {choices(name, ['model', 'data', *optional])}")
            if value is None and (name not in optional or optional[name].default is not None):
                raise InputError(
                    f"{name} was given as null, which is how a run records an instance or data in memory; declare it"
                )
        self.directory = None if directory is None else Path(directory)
        self.files = FilesIn(self.directory)
        self.data = _validated_data(data)
        with self.importing():
            self.settings = training_settings().validate(settings, "experiment")
            self.model = validate("model", model)

    @classmethod
    def load(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> "Experiment":
        """Reads an experiment file.

        Args:
            path: a YAML file.
            overrides: values by dotted path of the field, such as {"model.vae.latent_dim": 20}.
        """
        path = Path(path)
        fields = read_yaml(path)
        return cls(**override(fields, overrides or {}), directory=path.resolve().parent)

    @property
    def declaration(self) -> dict[str, Any]:
        """The full experiment with defaults in YAML's own types; null for an instance or data in memory."""
        with self.importing():
            return declare(self.model, self.data, self.settings)

    @property
    def model_class(self) -> type[Model]:
        """The class of the model; `Model` if it is made by a function."""
        with self.importing():
            found = target("model", self.model)
        return found if isinstance(found, type) and issubclass(found, Model) else Model

    @property
    def sources(self) -> dict[str, bytes]:
        """The files of user-defined components in the experiment, by their path in a run."""
        return {source_name(path): self.files.source(path) for path in import_paths(self.declaration)}

    def to_yaml(self) -> str:
        """The declaration as the text of an experiment file."""
        return write_yaml(self.declaration)

    def load_data(self, data_dir: Path | None = None) -> Data:
        """Loads the declared data."""
        source = self.data
        if isinstance(source, Mapping) and len(source) == 1:
            ((name, options),) = source.items()
            held = {part: self._beside(options[part]) for part in HELD if part in options} if options else {}
            source = {self._beside(name): {**options, **held} if options else options}
        elif isinstance(source, str):
            source = self._beside(source)
        return load_data(source, data_dir=data_dir) if data_dir else load_data(source)

    def _beside(self, source: Any) -> Any:
        """The path of a file or folder beside the experiment, if there is one; what was given otherwise."""
        if self.directory is None or not isinstance(source, str) or source in NAMED:
            return source
        return str(beside) if (beside := self.directory / source).exists() else source

    def build(self, data: Data) -> LatentVariableModel:
        """Builds the model for these data; the seed determines its initial weights."""
        with self.importing(), torch.random.fork_rng():
            torch.manual_seed(self.settings.get("seed", 0))
            return build("model", self.model, event_shape=data.event_shape, label_dim=data.label_dim)

    def fit(
        self,
        model: LatentVariableModel,
        data: Data,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> Fit:
        """Trains a model as declared."""
        with self.importing():
            return fit(model, data, progress, callbacks, **self.settings)

    def importing(self) -> AbstractContextManager[None]:
        """A context in which import paths are first looked up beside the experiment."""
        return importing(self.files)


def declare(model: Any, data: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of an experiment in YAML's own types; null for an instance or data in memory.

    Args:
        model: declaration of a model, or a model.
        data: declaration of data, or data.
        settings: keyword-only parameters of `fit`; missing ones get their defaults.
    """
    settings = {name: parameter.default for name, parameter in training_settings().options.items()} | dict(settings)
    given = {name: value for name, value in settings.items() if value is not None}
    return {
        "model": _spelled("model", model),
        "data": _spelled("data", str(data) if isinstance(data, Path) else data),
        **{name: _spelled(name, value) for name, value in given.items()},
    }


def write_yaml(fields: Mapping[str, Any]) -> str:
    """The text of a YAML mapping in the order of its keys, with the innermost collections on one line."""
    return yaml.safe_dump(dict(fields), sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        InputError: there is no such file, or it is not a YAML mapping of names.
    """
    try:
        fields = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; an experiment file was expected") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; an experiment file in YAML was expected") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {_reason(error)}") from error
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise InputError(f"{path} holds a {type(fields).__name__}, but a mapping of model, data, ... was expected")
    for key in _keys(fields):
        if not isinstance(key, str):
            raise InputError(f"{path}: a name was expected instead of {key!r}; write it in quotes if it is one")
    return fields


def parse_value(text: str) -> Any:
    """Parses a value as YAML: `20` is a number, `[200, 100]` a list."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{text!r} is not a value that YAML can read") from error


def override(fields: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces fields by dotted path, such as `model.vae.prior.vamp.components`.

    Names and options alternate along a path. Another name replaces the one that is there together with its options.
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


def _validated_data(data: Any) -> Any:
    if isinstance(data, Mapping) and len(data) == 1:
        ((source, options),) = data.items()
        if isinstance(options, Mapping):
            Component(load_data, ("source",)).validate(options, f"data.{source}")
    return data


def _spelled(field: str, value: Any) -> Any:
    """One field in full; an instance of a component is written as its declaration, if it has one."""
    try:
        return plain(complete(field, getattr(value, "declaration", value)) if field in kinds() else value)
    except InputError:
        return None


def _keys(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _keys(part)


def _reason(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but reading 1e-3 as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
