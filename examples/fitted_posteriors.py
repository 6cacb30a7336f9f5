"""A posterior fitted to each image by itself beside the encoder's, and the difference between their bounds.

A VAE is trained with its encoder. Then each test image gets a normal q of its own, found by gradient steps from the
prior with the model fixed, and another one that starts at the encoder's. Printed are the bounds, log p(x), and seconds.

    python examples/fitted_posteriors.py
"""

import argparse
import math
import time

import torch
from matplotlib.figure import Figure

import pyrolatent as pl
from pyrolatent.inference.objectives.bounds import ELBO
from pyrolatent.inference.refine import refine


def main() -> None:
    """Trains, fits posteriors, compares and draws the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--draws", type=int, default=500)
    asked = parser.parse_args()
    data = pl.load_data(asked.data, binarize="dynamic")
    network = {"mlp": {"hidden": [200]}}
    model = pl.VAE(data.event_shape, latent_dim=10, encoder=network, decoder=network)
    pl.fit(model, data, objective="analytic_elbo", epochs=asked.epochs, seed=0, compile="never")

    model.eval().requires_grad_(False)
    torch.manual_seed(0)
    x = data.test.batch(slice(0, asked.images)).x
    guides = {"encoder": (model.infer, 0.0)}
    for name, start in (("fitted from the prior", "prior"), ("fitted from the encoder's", "encoder")):
        began = time.perf_counter()
        guide = refine(model, x, steps=asked.steps, particles=5, start=start)
        guides[name] = guide, time.perf_counter() - began
    weights = {
        name: ELBO(particles=asked.draws).weigh(model.generate, guide, x).log_weights()
        for name, (guide, _) in guides.items()
    }
    bounds = {name: log_weights.mean(0) for name, log_weights in weights.items()}
    log_p = {name: (log_weights.logsumexp(0) - math.log(asked.draws)).mean() for name, log_weights in weights.items()}
    print(f"{len(x)} test images, nats; log p(x) by {asked.draws} draws of each q")
    for name, values in bounds.items():
        gain = values - bounds["encoder"]
        error = gain.std() / len(gain) ** 0.5
        print(
            f"{name:<26} bound {values.mean():.2f}, {gain.mean():+.2f} ± {error:.2f}; log p(x) {log_p[name]:.2f}; "
            f"{guides[name][1]:.1f} seconds"
        )

    figure = Figure(figsize=(6, 3), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for name in [*bounds][1:]:
        axes.hist((bounds[name] - bounds["encoder"]).clamp(-3, 10).numpy(), bins=40, alpha=0.5, label=name)
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set(xlabel="bound of an image less that of the encoder's posterior, nats", ylabel="images")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig("fitted_posteriors.png")
    print("fitted_posteriors.png")


if __name__ == "__main__":
    main()
