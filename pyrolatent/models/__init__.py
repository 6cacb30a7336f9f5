"""What is believed: families, priors, conditionals, networks, and the models made of them."""

from pyrolatent.models.conditionals import Conditional
from pyrolatent.models.families import Family
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.networks import MLP
from pyrolatent.models.priors import NormalPrior
from pyrolatent.models.vae import VAE

__all__ = ["MLP", "VAE", "Conditional", "Family", "LatentVariableModel", "NormalPrior"]
