"""The lower half of digits drawn given the upper one, beside three baselines.

A VAE of 50 latents is trained on dynamically binarized MNIST. The lower half of test images is then erased and drawn
from p(x_missing | x_observed) by resampling draws from posteriors that are refined for each image, since the encoder
never saw gaps. The log-likelihood of what was erased is log p(x) - log p(x_observed), both by importance sampling from
such posteriors; the baselines predict each pixel alone.
The squared error is that of the mean of ten draws of E[x | z].

    python examples/inpainting.py --images 1000
"""

import argparse
from pathlib import Path

import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import pyrolatent as pl
from pyrolatent import tasks
from pyrolatent.figures import latent as figures

FLOOR = 0.005  # smallest probability of a baseline, without which a pixel that it excludes would cost infinity


def baselines(train: torch.Tensor, x: torch.Tensor, seen: torch.Tensor) -> dict[str, torch.Tensor]:
    """E[x_missing] by three methods that know the training images, (images, missing pixels)."""
    upper, lower = train[:, seen], train[:, ~seen]
    pca = PCA(50, random_state=0).fit(train)
    covariance, mean = torch.from_numpy(pca.get_covariance()).float(), torch.from_numpy(pca.mean_).float()
    gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen][:, ~seen])
    near = NearestNeighbors(n_neighbors=1).fit(upper).kneighbors(x[:, seen], return_distance=False)
    return {
        "mean image": lower.mean(0).expand(len(x), -1),
        "PCA, 50 components": mean[~seen] + (x[:, seen] - mean[seen]) @ gain,  # probabilistic PCA
        "nearest neighbour": lower[torch.from_numpy(near[:, 0])],
    }


def main() -> None:
    """Trains, fills, compares and draws the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200, help="steps by which posteriors are refined")
    parser.add_argument("--particles", type=int, default=1000)
    asked = parser.parse_args()

    data = pl.load_data(asked.data, binarize="dynamic")
    network = {"mlp": {"hidden": [200, 200]}}
    model = pl.VAE(data.event_shape, latent_dim=50, encoder=network, decoder=network)
    pl.fit(model, data, objective="analytic_elbo", epochs=asked.epochs, optimizer={"Adam": {"lr": 1e-3}}, seed=0)

    torch.manual_seed(0)
    x = data.test.batch(slice(0, asked.images)).x
    train = data.train.batch(slice(0, 20_000)).x.flatten(1)
    mask = tasks.erased("bottom", tuple(model.event_shape)).expand(x.shape)
    seen, missing = mask[0].flatten(), x.flatten(1)[:, ~mask[0].flatten()]

    options = {"refined": asked.steps, "particles": asked.particles}
    drawn = tasks.impute(model, x, mask, draws=asked.draws, mean=True, **options)
    whole, part = (tasks.score(model, x, mask=known, **options) for known in (None, mask))
    ours = whole.log_p - part.log_p
    error = ((drawn.mean(0).flatten(1)[:, ~seen] - missing) ** 2).mean(1)
    unsure = [f"{(scores.khat > 0.7).double().mean():.0%}" for scores in (whole, part)]
    print(f"{len(x)} images, {missing.shape[1]} pixels erased of each; means over images ± standard errors")
    print(f"k-hat above 0.7 for {unsure[0]} of the images and {unsure[1]} of their upper halves")
    print(f"{'':>20}  {'log-likelihood, nats':>22}  {'squared error':>16}")
    rows = {"VAE": (ours, error)}
    for name, mean in baselines(train, x.flatten(1), seen).items():
        p = mean.clamp(FLOOR, 1 - FLOOR)
        log_p = torch.where(missing > 0, p, 1 - p).log().sum(1)
        rows[name] = log_p, ((mean - missing) ** 2).mean(1)
    for name, values in rows.items():
        cells = [f"{value.mean():.{digits}f} ± {value.std() / len(x) ** 0.5:.{digits}f}"
                 for value, digits in zip(values, (2, 4), strict=True)]  # fmt: skip
        print(f"{name:>20}  {cells[0]:>22}  {cells[1]:>16}")

    draws = tasks.impute(model, x[:8], mask[:8], draws=5, **options)
    columns = {"x": x[:8], "observed": torch.where(mask, x, torch.nan)[:8], "mean": drawn.mean(0)[:8]}
    columns |= {f"draw {i + 1}": values for i, values in enumerate(draws)}
    picture = figures.strips(torch.stack([*columns.values()], 1), columns=[*columns])
    picture.savefig(Path("inpainting.png"))
    print("inpainting.png")


if __name__ == "__main__":
    main()
