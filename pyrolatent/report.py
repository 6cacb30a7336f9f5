"""The pictures of a trained model."""

import torch
from matplotlib.figure import Figure

from pyrolatent import figures, tasks
from pyrolatent.data import Data
from pyrolatent.inference.fit import Row
from pyrolatent.inference.weights import arguments
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.unnormalised import UnnormalisedDensity
from pyrolatent.report_energy import draw_energy


def draw(
    model: LatentVariableModel | UnnormalisedDensity, data: Data, history: list[Row], *, split: str = "test"
) -> dict[str, Figure]:
    """Every figure of a trained model, by name.

    Samples are drawn of models with a density, and a latent grid of those with one vector z.

    Args:
        model: a trained model.
        data: what it was trained on.
        history: the rows of its training; none, no training curve.
        split: the part of the data that is reconstructed and embedded.
    """
    if isinstance(model, UnnormalisedDensity):
        return draw_energy(model, data, history)
    part = getattr(data, split).to(next(model.parameters()).device)
    shown = part.batch(slice(0, 10))
    coded = part.batch(slice(0, 1000))
    drawn = {"training": figures.training_curve(history)} if history else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn["reconstructions"] = figures.reconstructions(shown.x, tasks.reconstruct(model, *arguments(model, shown)))
        means = tasks.means(model, *arguments(model, coded))
        if isinstance(model, LatentVariableModel):
            drawn["samples"] = figures.samples(tasks.sample(model, 64, mean=True))
            if [*means] == ["z"] and means["z"].dim() == 2:
                mosaic, quantiles = tasks.latent_grid(model, 15)
                drawn["latent_grid"] = figures.latent_grid(mosaic, 15, quantiles)
            if model.label_dim and coded.y is not None and coded.y.dim() == 1:
                drawn["label_grid"] = figures.label_grid(tasks.label_grid(model, 8), model.label_dim)
    codes = torch.cat([mean.flatten(1) for mean in means.values()], -1)
    labels = coded.y if coded.y is not None and coded.y.dim() == 1 else None
    method = "t-SNE" if codes.shape[-1] > 2 else "first two dimensions"
    title = f"Posterior means of {split} data, {method}"
    drawn["embedding"] = figures.embedding(figures.project(codes), labels, title)
    return drawn
