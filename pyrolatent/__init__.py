"""Deep latent-variable models in Pyro, declared by their distributions and checked before they are believed."""

from torch import set_flush_denormal

from pyrolatent.chains import watch
from pyrolatent.checks import Checks, Verdict, check
from pyrolatent.checks.arviz import to_arviz
from pyrolatent.compare import compare
from pyrolatent.data import Data, load_data
from pyrolatent.errors import InputError, TrainingError, TrustError
from pyrolatent.experiment import Experiment
from pyrolatent.inference.annealed import AnnealedEvidence, Bracket, annealed_evidence, bidirectional_evidence
from pyrolatent.inference.evidence import Evaluation, evaluate
from pyrolatent.inference.partition import Annealing
from pyrolatent.inference.training.fit import fit
from pyrolatent.inference.training.loop import Fit
from pyrolatent.models import (
    PCA,
    VAE,
    Autoencoder,
    Conditional,
    ConditionalVAE,
    DiscreteVAE,
    EnergyModel,
    Family,
    GenerativeNetwork,
    HierarchicalVAE,
    LatentVariableModel,
    LinearGaussian,
    LogisticBernoulli,
    MarkovNetwork,
    RestrictedBoltzmannMachine,
    SemiSupervisedVAE,
    UnnormalisedDensity,
)
from pyrolatent.run import Run, train
from pyrolatent.tasks import impute, interpolate, reconstruct, sample

__version__ = "0.1.0"

__all__ = [
    "PCA",
    "VAE",
    "AnnealedEvidence",
    "Annealing",
    "Autoencoder",
    "Bracket",
    "Checks",
    "Conditional",
    "ConditionalVAE",
    "Data",
    "DiscreteVAE",
    "EnergyModel",
    "Evaluation",
    "Experiment",
    "Family",
    "Fit",
    "GenerativeNetwork",
    "HierarchicalVAE",
    "InputError",
    "LatentVariableModel",
    "LinearGaussian",
    "LogisticBernoulli",
    "MarkovNetwork",
    "RestrictedBoltzmannMachine",
    "Run",
    "SemiSupervisedVAE",
    "TrainingError",
    "TrustError",
    "UnnormalisedDensity",
    "Verdict",
    "annealed_evidence",
    "bidirectional_evidence",
    "check",
    "compare",
    "evaluate",
    "fit",
    "impute",
    "interpolate",
    "load_data",
    "reconstruct",
    "sample",
    "set_flush_denormal",
    "to_arviz",
    "train",
    "watch",
]
