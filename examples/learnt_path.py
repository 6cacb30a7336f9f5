"""A path in the plane learnt from points scattered around it: X = f(Z) + N(0, rho^2 I), with one latent dimension.

The network f and rho are trained together. The figure has the points, the learnt path z -> f(z) and the density of x,
which is summed over z by quadrature, so that the noise around the path is seen.

    python examples/learnt_path.py
"""

import argparse

import numpy as np
import torch
from matplotlib.figure import Figure

import pyrolatent as pl

RHO = 0.1


def points(size: int) -> np.ndarray:
    """Points (size, 2) around a curve, with noise of scale RHO."""
    rng = np.random.default_rng(0)
    t = rng.normal(size=size)
    return (np.stack([1.5 * t, np.sin(2 * t)], -1) + rng.normal(0, RHO, (size, 2))).astype(np.float32)


def main() -> None:
    """Trains, prints rho and draws the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=100)
    asked = parser.parse_args()
    data = pl.load_data(points(2000))
    network = {"mlp": {"hidden": [50, 50], "activation": "tanh"}}
    likelihood = {"normal": {"scale": "learned"}}
    model = pl.VAE(
        data.event_shape, latent_dim=1, likelihood=likelihood, encoder=network, decoder=network, scaling="none"
    )
    fast = {"optimizer": {"Adam": {"lr": 3e-3}}, "progress": False, "seed": 0, "compile": "never"}
    pl.fit(model, data, objective={"iwae": {"particles": 20}}, epochs=asked.epochs, **fast)

    z = torch.linspace(-3.5, 3.5, 701)[:, None]
    with torch.no_grad():
        likelihood = model.decode(z)
        rho = likelihood.base_dist.scale.flatten()[0].item()
        mass = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 0]) + (z[1, 0] - z[0, 0]).log()
        across, up = torch.linspace(-5, 5, 160), torch.linspace(-1.8, 1.8, 100)
        grid = torch.cartesian_prod(across, up)
        density = (likelihood.log_prob(grid[:, None]) + mass).logsumexp(1).exp().reshape(len(across), len(up))
        exact = (likelihood.log_prob(data.test.x[:, None]) + mass).logsumexp(1).mean()
    print(f"rho: {rho:.4f} learnt, {RHO} in the data; log p(x) of test points {exact:.3f} nats by quadrature")

    figure = Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.contourf(across, up, density.T, levels=12, cmap="Blues")
    axes.scatter(*data.train.x[:500].T, s=4, color="0.35", linewidths=0, label="data")
    axes.plot(*likelihood.mean.T, color="C1", label="learnt path f(z)")
    axes.set(
        xlabel="$x_1$", ylabel="$x_2$", xlim=(-5, 5), ylim=(-1.8, 1.8), title=f"density of x; learnt rho = {rho:.3f}"
    )
    axes.legend(frameon=False, fontsize=8, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig("learnt_path.png")
    print("learnt_path.png")


if __name__ == "__main__":
    main()
