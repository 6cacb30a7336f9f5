"""Maximum likelihood by plain Monte Carlo over the prior, and what an encoder saves.

Points scattered around a path in the plane, X = f(Z) + noise with one latent dimension. First the network f is fitted
without an encoder, log p(x) ~ log mean_k p(x | z_k) with z_k from the prior. Then an encoder is fitted to the same
network, and both proposals estimate log p(x) with more and more draws; with one latent dimension the truth is a
quadrature. Writes monte_carlo.png.

    python examples/monte_carlo.py
"""

import math

import numpy as np
import torch
from matplotlib.figure import Figure

import pyrolatent as pl
from pyrolatent.inference.evidence.importance import score

DRAWS = [1, 3, 10, 30, 100, 300, 1000, 3000]


def path_in_the_plane(size: int) -> np.ndarray:
    """Points (size, 2) around a curve, with noise of scale 0.1."""
    rng = np.random.default_rng(0)
    t = rng.normal(size=size)
    return np.stack([1.5 * t, np.sin(2 * t)], -1).astype(np.float32) + rng.normal(0, 0.1, (size, 2)).astype(np.float32)


def by_quadrature(model: pl.LatentVariableModel, x: torch.Tensor) -> torch.Tensor:
    """log p(x) for each point, by the trapezoidal rule over z."""
    z = torch.linspace(-6, 6, 4001)
    log_joint = model.likelihood(z[:, None, None]).log_prob(x) - 0.5 * z[:, None] ** 2 - 0.5 * math.log(2 * math.pi)
    return log_joint.logsumexp(0) + math.log(z[1] - z[0])


torch.manual_seed(0)
data = pl.load_data(path_in_the_plane(2000))
likelihood = {"normal": {"scale": "learned"}}
network = {"mlp": {"hidden": [50, 50], "activation": "tanh"}}
settings = {"optimizer": {"Adam": {"lr": 0.003}}, "progress": False}

alone = pl.GenerativeNetwork(data.event_shape, latent_dim=1, likelihood=likelihood, decoder=network)
pl.fit(alone, data, objective={"iwae": {"particles": 200}}, epochs=60, **settings)

encoded = pl.VAE(data.event_shape, latent_dim=1, likelihood=alone.likelihood, encoder=network)
alone.likelihood.requires_grad_(False)
pl.fit(encoded, data, objective={"iwae": {"particles": 10}}, epochs=60, **settings)

x = data.test.batch(slice(None)).x
with torch.no_grad():
    truth = by_quadrature(alone, x)
    errors = {
        name: [(score(model, x, particles=k).log_evidence - truth).square().mean().sqrt().item() for k in DRAWS]
        for name, model in (("prior", alone), ("encoder", encoded))
    }
print(f"log p(x) by quadrature: {truth.mean():.3f} nats a datapoint; root mean square error of estimates:")
print(f"{'draws':>8}{'prior':>10}{'encoder':>10}")
for k, *row in zip(DRAWS, errors["prior"], errors["encoder"], strict=True):
    print(f"{k:>8}{row[0]:>10.3f}{row[1]:>10.3f}")

figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
plane, curves = figure.subplots(1, 2)
plane.scatter(*data.train.x[:500].T, s=4, color="0.6", label="data")
plane.scatter(*pl.sample(alone, 500).T, s=4, color="C1", label="samples of the network fitted without an encoder")
plane.set(xlabel="$x_1$", ylabel="$x_2$")
plane.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
for (name, values), style in zip(errors.items(), ("o-", "s-"), strict=True):
    curves.loglog(DRAWS, values, style, markersize=4, label=f"draws from the {name}")
curves.set(xlabel="draws a datapoint", ylabel="error of log p(x) [nats]")
curves.legend(frameon=False, fontsize=8)
for axes in (plane, curves):
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig("monte_carlo.png")
print("monte_carlo.png")
