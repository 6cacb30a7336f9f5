"""AnnData: a matrix of observations and variables, whose columns of observations may be labels, ids and parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyrolatent.data.tables import Frame, as_frame
from pyrolatent.declaration import choices
from pyrolatent.errors import InputError

ENDING = ".h5ad"
"""Ending of the files of AnnData."""


def is_anndata(source: Any) -> bool:
    """Whether a source is an AnnData object; the package is not imported to find out."""
    return type(source).__name__ == "AnnData" and type(source).__module__.partition(".")[0] == "anndata"


def read_h5ad(path: Path) -> Any:
    """The AnnData object in a file.

    Raises:
        InputError: the package anndata is not installed.
    """
    try:
        import anndata
    except ImportError:
        raise InputError(f"{path}: anndata is not installed; pip install 'pyrolatent[anndata]'") from None
    return anndata.read_h5ad(path)


def frame_of(data: Any, roles: Mapping[str, str], name: str) -> Frame:
    """The table of an AnnData object: its variables and the columns of observations that have a role, by name.

    Args:
        data: the object, whose X or layer is dense or sparse.
        roles: names of columns of observations, and of the layer that is x; X without one.
        name: name of the object in messages.

    Raises:
        InputError: there is no such layer or column, or there is no X.
    """
    import pandas as pd

    layer = roles.get("layer")
    if layer is not None and layer not in data.layers:
        raise InputError(f"{name}: there is no layer {layer!r}; {choices(layer, data.layers)}")
    x = data.X if layer is None else data.layers[layer]
    if x is None:
        raise InputError(f"{name}: X is empty; {choices('', data.layers)} as layer")
    columns = [column for role, column in roles.items() if role != "layer"]
    if unknown := next((column for column in columns if column not in data.obs), None):
        raise InputError(f"{name}: there is no column {unknown!r} of observations; {choices(unknown, data.obs)}")
    index = data.obs_names.astype(str)
    table = pd.DataFrame(
        x.toarray() if hasattr(x, "toarray") else x[:], index=index, columns=data.var_names.astype(str)
    )
    observations = data.obs[[*dict.fromkeys(columns)]].set_axis(index)
    return as_frame(pd.concat([table, observations], axis=1), name)
