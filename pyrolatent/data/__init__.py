"""Data: splits, loading, files and named data sets."""

from pyrolatent.data.load import load_data, load_rows
from pyrolatent.data.splits import Batch, Data, Split

__all__ = ["Batch", "Data", "Split", "load_data", "load_rows"]
