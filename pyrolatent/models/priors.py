"""Priors: p(z), modules whose forward gives a distribution over (latent_dim,)."""

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrolatent.declaration import component


@component("prior", "normal")
class NormalPrior(nn.Module):
    """p(z) = N(0, I).

    Args:
        latent_dim: number of latent dimensions.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc: Tensor
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self, y: Tensor | None = None) -> TorchDistributionMixin:
        """The prior, with batch shape ()."""
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)

    def __str__(self) -> str:
        return "Normal(0, 1)"
