"""Models, and the families, priors, conditionals and networks that they are made of."""

from pyrolatent.models.autoencoder import PCA, Autoencoder
from pyrolatent.models.components import columns, corruption, flows, priors
from pyrolatent.models.components import families as named
from pyrolatent.models.components.conditional import Conditional
from pyrolatent.models.components.family import Family
from pyrolatent.models.components.networks import MLP
from pyrolatent.models.energies.density import UnnormalisedDensity
from pyrolatent.models.energies.markov import MarkovNetwork
from pyrolatent.models.energies.neural import EnergyModel
from pyrolatent.models.energies.rbm import RestrictedBoltzmannMachine
from pyrolatent.models.hierarchical import DiscreteVAE, HierarchicalVAE
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.linear import LinearGaussian, LogisticBernoulli
from pyrolatent.models.programs.pair import PyroPair, from_pyro
from pyrolatent.models.semisupervised import SemiSupervisedVAE
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
    "PyroPair",
    "RestrictedBoltzmannMachine",
    "SemiSupervisedVAE",
    "UnnormalisedDensity",
    "columns",
    "corruption",
    "flows",
    "from_pyro",
    "named",
    "priors",
]
