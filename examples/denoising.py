"""Noise removed from digits by inference under a declared corruption, beside what passes through an encoder.

Two kinds of noise on MNIST: flips of a tenth of the pixels of binary images, and Gaussian noise of deviation 0.3 on
grey ones. A VAE is trained on clean images, and another with an encoder that sees corrupted ones (`corrupt`). Compared
are the noisy image; the reconstruction of either encoder; `denoise`, the mean of p(x | noisy x) by draws of z, with a
known and with a learned rate; PCA; and a median filter.

    python examples/denoising.py --images 300
"""

import argparse
from pathlib import Path

import torch
from scipy.ndimage import median_filter
from sklearn.decomposition import PCA

import pyrolatent as pl
from pyrolatent import tasks
from pyrolatent.declaration import build
from pyrolatent.figures import latent as figures

NOISES = {
    "flips of 10 %": ("threshold", "bernoulli", {"flips": {"rate": 0.1}}),
    "Gaussian noise of 0.3": ("none", {"normal": {"scale": "learned"}}, {"gaussian_noise": {"scale": 0.3}}),
}


def trained(data: pl.Data, likelihood: object, epochs: int, corrupt: object) -> pl.VAE:
    """A VAE of 50 latents."""
    network = {"mlp": {"hidden": [200, 200]}}
    options = {"likelihood": likelihood, "encoder": network, "decoder": network, "corrupt": corrupt}
    model = pl.VAE(data.event_shape, latent_dim=50, **options)
    pl.fit(model, data, objective="analytic_elbo", epochs=epochs, optimizer={"Adam": {"lr": 1e-3}}, seed=0)
    return model


def main() -> None:
    """Trains, corrupts, denoises, compares and draws the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--sweeps", type=int, default=200, help="of the chains that learn the rate or scale")
    asked = parser.parse_args()
    shown = []
    for name, (binarize, likelihood, corruption) in NOISES.items():
        data = pl.load_data(asked.data, binarize=binarize)
        model, other = (trained(data, likelihood, asked.epochs, corrupt) for corrupt in (None, corruption))
        torch.manual_seed(0)
        x = data.test.batch(slice(0, asked.images)).x
        noisy = build("corruption", corruption)(x)
        learned = tasks.denoise(model, noisy, next(iter(corruption)), draws=10, sweeps=asked.sweeps)
        pca = PCA(50, random_state=0).fit(data.train.batch(slice(0, 20_000)).x.flatten(1))
        found = {
            "noisy": noisy,
            "encoder": tasks.reconstruct(model, noisy),
            "denoise": tasks.denoise(model, noisy, corruption, draws=10).mean,
            "denoise, learned": learned.mean,
            "encoder, corrupt": tasks.reconstruct(other, noisy),
            "PCA": torch.from_numpy(pca.inverse_transform(pca.transform(noisy.flatten(1)))).reshape(x.shape),
            "median filter": torch.from_numpy(median_filter(noisy.numpy(), size=(1, 1, 3, 3))),
        }
        print(f"{name}, {len(x)} images: mean squared error ± standard error")
        for method, values in found.items():
            error = ((values - x) ** 2).flatten(1).mean(1)
            print(f"{method:>22}  {error.mean():.4f} ± {error.std() / len(x) ** 0.5:.4f}")
        print(f"{'learned':>22}  {learned.number:.4f} ± {learned.number_sd:.4f}\n")
        columns = {"clean": x} | found
        shown.append(torch.stack([values[:4].float().clamp(0, 1) for values in columns.values()], 1))
    picture = figures.strips(torch.cat(shown), columns=[name.replace(", ", ",\n") for name in columns])
    picture.savefig(Path("denoising.png"))
    print("denoising.png")


if __name__ == "__main__":
    main()
