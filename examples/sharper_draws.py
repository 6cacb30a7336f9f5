"""Pixels that are independent given z blur E[x | z] and speckle draws; a likelihood in which they are not does better.

The same VAE is trained with two likelihoods: independent Bernoulli pixels, and an autoregressive one, in which each
pixel also sees those above it and to its left, by masked convolutions (van den Oord et al. 2016, 1601.06759). The
autoregressive likelihood is a module of one's own. Printed is log p(x) of both on the same images.

    python examples/sharper_draws.py
"""

import argparse
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.nn import functional

import pyrolatent as pl
from pyrolatent.figures import latent as figures


class Autoregressive(nn.Module):
    """p(x | z) = prod_i Bernoulli(x_i; sigmoid(u_i(z) + v_i(x_1, ..., x_{i-1}))), pixels row by row.

    Args:
        event_shape: shape of an image, (1, height, width).
        label_dim: unused.
        latent_dim: number of latent dimensions.
        hidden: width of the decoder of u.
        channels: channels of v, two convolutions of which the first sees seven by seven pixels.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        label_dim: int = 0,
        *,
        latent_dim: int,
        hidden: int = 200,
        channels: int = 16,
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, self.event_shape.numel())
        )
        self.first, self.last = nn.Conv2d(1, channels, 7, padding=3), nn.Conv2d(channels, 1, 1)
        seen = torch.ones(7, 7)
        seen[3, 3:] = seen[4:] = 0
        self.seen: Tensor
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, z: Tensor, y: Tensor | None = None) -> "OfPixels":
        """The distribution of images of batch shape z.shape[:-1]."""
        return OfPixels(self, self.decoder(z).unflatten(-1, self.event_shape))

    def of_earlier(self, x: Tensor) -> Tensor:
        """v of images (n, 1, height, width)."""
        return self.last(functional.conv2d(x, self.first.weight * self.seen, self.first.bias, padding=3).relu())


class OfPixels(TorchDistribution):
    """The autoregressive distribution at some z."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.boolean, 3)

    def __init__(self, owner: Autoregressive, logits: Tensor) -> None:
        self.owner, self.logits = owner, logits
        super().__init__(logits.shape[:-3], logits.shape[-3:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "OfPixels":
        """The same over a larger batch."""
        return OfPixels(self.owner, self.logits.expand(*batch_shape, *self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x | z), nats."""
        x = value.reshape(-1, *self.event_shape)
        earlier = self.owner.of_earlier(x).reshape(value.shape)
        logits = self.logits + earlier
        return (value * logits - functional.softplus(logits)).flatten(-3).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws pixel after pixel."""
        logits = self.logits.expand(*sample_shape, *self.logits.shape).reshape(-1, *self.event_shape)
        x = torch.zeros_like(logits)
        for row in range(x.shape[-2]):
            for column in range(x.shape[-1]):
                window = x[..., max(row - 3, 0) : row + 1, max(column - 3, 0) : column + 4]
                at = (..., row - max(row - 3, 0), column - max(column - 3, 0))
                field = logits[..., row, column] + self.owner.of_earlier(window)[at]
                x[..., row, column] = torch.bernoulli(torch.sigmoid(field))
        return x.reshape(*sample_shape, *self.logits.shape)

    @property
    def mean(self) -> Tensor:
        """The mean of 20 draws."""
        return self.sample((20,)).mean(0)


def main() -> None:
    """Trains both, scores the same images and draws the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--particles", type=int, default=200)
    asked = parser.parse_args()
    data = pl.load_data(asked.data, binarize="dynamic")
    torch.manual_seed(0)
    x = data.test.batch(slice(0, asked.images)).x
    network, rows = {"mlp": {"hidden": [200]}}, {"data": x[:10]}
    likelihoods = {"independent": "bernoulli", "autoregressive": Autoregressive(data.event_shape, latent_dim=10)}
    for name, likelihood in likelihoods.items():
        model = pl.VAE(data.event_shape, latent_dim=10, likelihood=likelihood, encoder=network, decoder=network)
        pl.fit(model, data, objective="analytic_elbo", epochs=asked.epochs, seed=0, compile="never", progress=False)
        found = pl.score(model, x, particles=asked.particles).log_p
        print(f"{name:<16} log p(x) {found.mean():.2f} ± {found.std() / len(x) ** 0.5:.2f} nats", flush=True)
        torch.manual_seed(1)
        z = model.prior().sample((len(x[:10]),))
        with torch.no_grad():
            of_x = model.decode(z)
            rows |= {f"{name}:\nE[x | z]": of_x.mean, f"{name}:\ndraws": of_x.sample()}
    title = "data, and the mean and draws of x at draws of z from the prior"
    figures.strips(torch.stack([*rows.values()]), rows=[*rows], title=title).savefig("sharper_draws.png", dpi=100)
    print("sharper_draws.png")


if __name__ == "__main__":
    main()
