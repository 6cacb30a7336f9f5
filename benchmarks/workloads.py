"""The three workloads, and the VAE written out by hand in eager PyTorch that everything is measured against."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_SCALE = 1e-3
LR = 1e-3


class Workload(NamedTuple):
    hidden: tuple[int, ...]
    latent_dim: int
    batch_size: int
    particles: int

    @property
    def encoder(self) -> list[int]:
        return [784, *self.hidden, 2 * self.latent_dim]

    @property
    def decoder(self) -> list[int]:
        return [self.latent_dim, *self.hidden[::-1], 784]


WORKLOADS = {
    "notebook": Workload((200,), 10, 128, 1),
    "iwae": Workload((200, 200), 50, 20, 50),
    "wide": Workload((400,), 20, 1024, 1),
}


def network(widths: list[int]) -> nn.Sequential:
    layers = [module for a, b in pairwise(widths) for module in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class ByHand(nn.Module):
    """One tensor of bounds, no distributions."""

    def __init__(self, size: Workload) -> None:
        super().__init__()
        self.encoder, self.decoder = network(size.encoder), network(size.decoder)
        self.particles = size.particles

    def forward(self, x: Tensor) -> Tensor:
        """The negative bound, mean over the minibatch."""
        loc, scale = self.encoder(x).chunk(2, -1)
        scale = MIN_SCALE + functional.softplus(scale)
        e = torch.randn(self.particles, *loc.shape, device=x.device)
        z = loc + scale * e
        logits = self.decoder(z)
        log_p = -functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_w = log_p + (0.5 * e.square() + scale.log() - 0.5 * z.square()).sum(-1)
        return -(log_w.logsumexp(0) - torch.tensor(float(self.particles)).log()).mean()
