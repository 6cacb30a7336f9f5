"""Objectives of training: bounds on log p(x), exact solutions, and objectives for unnormalised densities."""

from pyrolatent.inference.objectives.base import Objective, PyroObjective
from pyrolatent.inference.objectives.bounds import (
    ELBO,
    IWAE,
    STL,
    VIMCO,
    AnalyticELBO,
    Bound,
    CombinationIWAE,
    DReG,
    MultiplyIWAE,
    PartiallyIWAE,
    Renyi,
    ReweightedWakeSleep,
)
from pyrolatent.inference.objectives.exact import EM, ClosedForm, SquaredError

__all__ = [
    "ELBO",
    "EM",
    "IWAE",
    "STL",
    "VIMCO",
    "AnalyticELBO",
    "Bound",
    "ClosedForm",
    "CombinationIWAE",
    "DReG",
    "MultiplyIWAE",
    "Objective",
    "PartiallyIWAE",
    "PyroObjective",
    "Renyi",
    "ReweightedWakeSleep",
    "SquaredError",
]
