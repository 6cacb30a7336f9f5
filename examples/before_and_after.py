"""An autoencoder of three layers: images, their outputs before and after training, and their eight numbers.

784-256-64-8 with ReLU and Tanh, and 8-64-256-784 with Tanh, Tanh and a sigmoid, trained by squared error.

    python examples/before_and_after.py
"""

import argparse

import torch
from matplotlib.figure import Figure

import pyrolatent as pl
from pyrolatent.tasks import means


def main() -> None:
    """Trains and draws the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args()
    data = pl.load_data(asked.data, binarize="none")
    torch.manual_seed(0)
    model = pl.Autoencoder(
        data.event_shape, latent_dim=8, encoder={"mlp": {"hidden": [256, 64], "activation": ["relu", "tanh"]}},
        decoder={"mlp": {"hidden": [64, 256], "activation": "tanh", "output_activation": "sigmoid"}},
    )  # fmt: skip
    x = data.test.batch(slice(0, 5)).x
    every = data.test.batch(slice(None)).x
    rows, errors = {"input": x}, []
    for name in ("before", "after"):
        if name == "after":
            pl.fit(model, data, objective="squared_error", epochs=asked.epochs, seed=0, compile="never")
        model.eval()
        rows[name] = pl.reconstruct(model, x)
        errors.append((pl.reconstruct(model, every) - every).square().mean().item())
    codes = means(model, x)["z"]
    print("mean squared error of a test pixel: {:.4f} before training, {:.4f} after".format(*errors))
    print("the eight numbers of the first image:", " ".join(f"{number:.2f}" for number in codes[0]))

    figure = Figure(figsize=(6, 5), dpi=100, layout="constrained")
    for row, (name, values) in enumerate(rows.items()):
        for column, value in enumerate(values.clamp(0, 1)):
            axes = figure.add_subplot(4, 5, row * 5 + column + 1, xticks=[], yticks=[])
            axes.imshow(value.squeeze(), cmap="gray", vmin=0, vmax=1)
            axes.set_ylabel("" if column else name)
    for column, code in enumerate(codes):
        axes = figure.add_subplot(4, 5, 15 + column + 1, xticks=range(8), ylim=(codes.min() - 1, codes.max() + 1))
        axes.bar(range(8), code)
        axes.tick_params(labelsize=6)
        axes.set_ylabel("" if column else "code")
    figure.savefig("before_and_after.png")
    print("before_and_after.png")


if __name__ == "__main__":
    main()
