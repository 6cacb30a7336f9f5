"""User-defined components: importing and recording files beside an experiment."""

import hashlib
import importlib
import inspect
import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pyrolatent.declaration import Modules, choices, import_path
from pyrolatent.errors import InputError


class FilesIn:
    """Imports components from the Python files of a directory, reading each file once.

    Args:
        directory: directory in which `package.module` is looked up as `package/module.py`; other modules, or all if it
            is None, are imported from the Python path.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._sources: dict[str, bytes] = {}
        self._modules: dict[str, ModuleType] = {}

    def __call__(self, path: str, modules: Modules | None = None) -> Any:
        """Imports `package.module:Name`, its module run anew unless it is in `modules`, where these are given."""
        module, _, name = path.partition(":")
        file = self._file(path)
        if file is None:
            return import_path(path, modules)
        known = self._modules if modules is None else modules
        if module not in known:
            known[module] = _execute(self.source(path), file, module, anew=modules is not None)
        loaded = known[module]
        if not hasattr(loaded, name):
            raise InputError(f"{path}: {file} has no {name!r}; {choices(name, _public(loaded))}")
        return getattr(loaded, name)

    def source(self, path: str) -> bytes:
        """The contents of a component's file when it was first read.

        Raises:
            InputError: the component has no readable file.
        """
        module = path.partition(":")[0]
        if module not in self._sources:
            file = self._file(path) or _installed(path)
            try:
                self._sources[module] = file.read_bytes()
            except OSError as error:
                raise InputError(f"{path}: {file} cannot be read: {error.strerror}") from error
        return self._sources[module]

    def _file(self, path: str) -> Path | None:
        file = self.directory / source_name(path) if self.directory is not None else None
        return file if file is not None and file.is_file() else None


def source_name(path: str) -> str:
    """The file of an import path, relative to the directory it is imported from."""
    return path.partition(":")[0].replace(".", "/") + ".py"


def _execute(source: bytes, file: Path, name: str, *, anew: bool = False) -> ModuleType:
    """Executes the source of a file as a module.

    The import system is avoided because it would prefer a bytecode file, whose hash is not recorded. The name of the
    module depends on path and contents, since other directories may have files of the same name, and where it is
    executed anew on how often that was done.
    """
    unique = f"{name}_{hashlib.sha256(bytes(file.resolve()) + source).hexdigest()[:12]}"
    if anew:
        unique += f"_{next(_executions)}"
    if unique not in sys.modules:
        module = ModuleType(unique)
        module.__file__ = str(file)
        module.__package__ = name.rpartition(".")[0]
        sys.modules[unique] = module
        try:
            exec(compile(source, str(file), "exec"), vars(module))
        except Exception as error:
            del sys.modules[unique]
            reason = " ".join(str(error).split())
            raise InputError(f"{file} cannot be imported: {type(error).__name__}: {reason}") from error
    return sys.modules[unique]


_executions = itertools.count()


def _installed(path: str) -> Path:
    """The file of a component on the Python path."""
    import_path(path)
    try:
        return Path(inspect.getsourcefile(importlib.import_module(path.partition(":")[0])) or "")
    except TypeError as error:  # a built-in module
        raise InputError(f"{path} has no source file that could be kept with the run") from error


def _public(module: Any) -> list[str]:
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__)
    return [name for name in own if isinstance(vars(module)[name], type) and not name.startswith("_")]
