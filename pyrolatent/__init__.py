"""Deep latent-variable models in Pyro, declared by their distributions and checked before they are believed."""

from torch import set_flush_denormal

from pyrolatent.data import Data, load_data
from pyrolatent.errors import InputError, TrainingError, TrustError
from pyrolatent.experiment import Experiment
from pyrolatent.inference.evidence import Evaluation, evaluate
from pyrolatent.inference.fit import Fit, fit
from pyrolatent.models import VAE, Conditional, Family, LatentVariableModel
from pyrolatent.run import Run, train
from pyrolatent.tasks import reconstruct, sample

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "Conditional",
    "Data",
    "Evaluation",
    "Experiment",
    "Family",
    "Fit",
    "InputError",
    "LatentVariableModel",
    "Run",
    "TrainingError",
    "TrustError",
    "evaluate",
    "fit",
    "load_data",
    "reconstruct",
    "sample",
    "set_flush_denormal",
    "train",
]
