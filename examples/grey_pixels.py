"""Grey pixels under likelihoods that are densities of them, beside a Bernoulli, which is none.

A Bernoulli on grey values maximises a cross-entropy, and its draws are black and white. The continuous Bernoulli is a
density on [0, 1], under which a pixel is never exactly black; a zero-one-inflated likelihood has masses at black and at
white and a density between, uniform or a beta. Compared are how many pixels of draws are black, white and between with
those of the data, and log p(x), whose measures differ: a density, and a mixture of a mass and a density.

    python examples/grey_pixels.py
"""

import argparse

import torch

import pyrolatent as pl
from pyrolatent.figures import latent as figures

LIKELIHOODS = {
    "bernoulli": "bernoulli",
    "continuous_bernoulli": "continuous_bernoulli",
    "zero_one_inflated, uniform": {"zero_one_inflated": {"between": "uniform"}},
    "zero_one_inflated, beta": {"zero_one_inflated": {"between": "beta"}},
}


def main() -> None:
    """Trains four models, compares their draws and draws the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--particles", type=int, default=100)
    asked = parser.parse_args()
    data = pl.load_data(asked.data, binarize="none")
    relaxed = pl.load_data(asked.data, binarize="relaxed")  # grey values for a Bernoulli
    test = data.test.batch(slice(0, 1000)).x
    print(f"{'':<28}{'black':>8}{'between':>9}{'white':>8}   log p(x), nats")

    def row(name: str, x: torch.Tensor, said: str) -> None:
        black, white = ((x - end).abs().lt(1e-6).double().mean().item() for end in (0.0, 1.0))
        print(f"{name:<28}{black:>8.1%}{abs(1 - black - white):>9.1%}{white:>8.1%}   {said}", flush=True)

    row("data", test, "")
    network, shown = {"mlp": {"hidden": [200]}}, [test[:8]]
    for name, likelihood in LIKELIHOODS.items():
        used = relaxed if name == "bernoulli" else data
        model = pl.VAE(data.event_shape, latent_dim=10, likelihood=likelihood, encoder=network, decoder=network)
        pl.fit(model, used, objective="analytic_elbo", epochs=asked.epochs, seed=0, compile="never", progress=False)
        torch.manual_seed(1)
        drawn = pl.sample(model, 1000)
        if name == "bernoulli":
            row(name, drawn, "not a density of grey values")
        else:
            found = pl.score(model, test[:200], particles=asked.particles).log_p
            measure = "density" if name == "continuous_bernoulli" else "mass at the ends, density between"
            row(name, drawn, f"{found.mean():.1f} ± {found.std() / len(found) ** 0.5:.1f} ({measure})")
        shown.append(drawn[:8])
    names = ["data", *(name.replace(", ", ",\n").replace("_", " ") for name in LIKELIHOODS)]
    figures.strips(torch.stack(shown), rows=names, title="data, and draws of x").savefig("grey_pixels.png", dpi=100)
    print("grey_pixels.png")


if __name__ == "__main__":
    main()
