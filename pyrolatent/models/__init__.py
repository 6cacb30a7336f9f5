"""What is believed: families, priors, conditionals, networks, and the models made of them."""

from pyrolatent.models import flows, named, priors
from pyrolatent.models.autoencoder import PCA, Autoencoder
from pyrolatent.models.conditionals import Conditional
from pyrolatent.models.energy import EnergyModel
from pyrolatent.models.families import Family
from pyrolatent.models.hierarchical import DiscreteVAE, HierarchicalVAE
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.linear import LinearGaussian, LogisticBernoulli
from pyrolatent.models.markov import MarkovNetwork
from pyrolatent.models.networks import MLP
from pyrolatent.models.rbm import RestrictedBoltzmannMachine
from pyrolatent.models.semisupervised import SemiSupervisedVAE
from pyrolatent.models.unnormalised import UnnormalisedDensity
from pyrolatent.models.vae import VAE, ConditionalVAE, GenerativeNetwork

__all__ = [
    "MLP",
    "PCA",
    "VAE",
    "Autoencoder",
    "Conditional",
    "ConditionalVAE",
    "DiscreteVAE",
    "EnergyModel",
    "Family",
    "GenerativeNetwork",
    "HierarchicalVAE",
    "LatentVariableModel",
    "LinearGaussian",
    "LogisticBernoulli",
    "MarkovNetwork",
    "RestrictedBoltzmannMachine",
    "SemiSupervisedVAE",
    "UnnormalisedDensity",
    "flows",
    "named",
    "priors",
]
