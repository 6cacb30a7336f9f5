"""Deep latent-variable models in Pyro, declared by their distributions and checked before they are believed.

The public names are listed in `__init__.pyi`, which type checkers read too. Each is imported on first use, so that a
program, and `pyrolatent --help`, waits only for what it needs.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"


@cache
def _homes() -> dict[str, str]:
    """Public names and the modules that define them."""
    import ast
    from pathlib import Path

    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_homes())
    if _homes().get(name, __name__) != __name__:
        globals()[name] = getattr(import_module(_homes()[name]), name)
        return globals()[name]
    if name.isidentifier() and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_homes()})
