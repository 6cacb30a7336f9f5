"""Constants shared by the panels of all checks."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from matplotlib import color_sequences

Arrays = Mapping[str, npt.NDArray[Any]]
COLOURS = color_sequences["petroff10"]
MUTED = "0.6"
