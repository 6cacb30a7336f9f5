"""An autoencoder beside PCA at the same code sizes: test errors, and the codes of three dimensions in space.

The plain autoencoder has one hidden layer each way. Its test error against the code size is how to choose the latter:
it stops falling where more numbers say nothing new. `pyrolatent sweep` draws the same curve of any declared model.

    python examples/autoencoder_pca.py
"""

import argparse

import torch
from matplotlib.figure import Figure

import pyrolatent as pl
from pyrolatent.figures import latent as figures
from pyrolatent.tasks import means


def main() -> None:
    """Trains both at each size, prints the table and draws the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="digits")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 3, 5, 10, 20])
    asked = parser.parse_args()
    data = pl.load_data(asked.data, binarize="none")
    x, y, _ = data.test.batch(slice(0, 1000))
    errors: dict[str, list[float]] = {"autoencoder": [], "PCA": []}
    print(f"{'code size':>9}{'autoencoder':>13}{'PCA':>9}   mean squared error of a test image")
    for size in asked.sizes:
        torch.manual_seed(0)
        network = {"mlp": {"hidden": [200]}}
        learned = pl.Autoencoder(data.event_shape, latent_dim=size, encoder=network, decoder=network)
        fast = {"optimizer": {"Adam": {"lr": 2e-3}}, "compile": "never", "progress": False, "seed": 0}
        pl.fit(learned, data, objective="squared_error", epochs=asked.epochs, **fast)
        linear = pl.PCA(data.event_shape, latent_dim=size)
        pl.fit(linear, data, objective="closed_form", progress=False)
        for name, model in (("autoencoder", learned), ("PCA", linear)):
            model.eval()
            errors[name].append((pl.reconstruct(model, x) - x).square().flatten(1).sum(1).mean().item())
        print(f"{size:>9}{errors['autoencoder'][-1]:>13.3f}{errors['PCA'][-1]:>9.3f}", flush=True)
        if size == 3:
            title = "codes of three dimensions of an autoencoder"
            figures.embedding(means(learned, x)["z"], y, title).savefig("codes_in_space.png", dpi=90)
            print("codes_in_space.png")

    figure = Figure(figsize=(5, 3), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for name, values in errors.items():
        axes.plot(asked.sizes, values, "o-", label=name)
    axes.set(xlabel="code size", ylabel="squared error of a test image", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig("autoencoder_pca.png")
    print("autoencoder_pca.png")


if __name__ == "__main__":
    main()
