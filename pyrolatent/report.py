"""The pictures of a trained model."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrolatent import figures, tasks
from pyrolatent.data import Batch, Data
from pyrolatent.errors import InputError
from pyrolatent.inference.draws import labels_for
from pyrolatent.inference.training.loop import Row
from pyrolatent.inference.weights import arguments
from pyrolatent.models.arrays import place_of
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.model import Capability
from pyrolatent.models.unnormalised import UnnormalisedDensity
from pyrolatent.report_energy import draw_energy

SIDE = 15
"""Points of a latent grid along each dimension."""


def draw(
    model: LatentVariableModel | UnnormalisedDensity, data: Data, history: list[Row], *, split: str = "test"
) -> dict[str, Figure]:
    """Every figure of a trained model, by name, each of which says what it shows.

    Samples are drawn of models with a density, a latent grid of those with one continuous vector z, and a label grid of
    models of classes.

    Args:
        model: a trained model.
        data: what it was trained on.
        history: the rows of its training; none, no training curve.
        split: the part of the data that is reconstructed and embedded, and whose labels, where they are vectors, are
            drawn at.
    """
    if isinstance(model, UnnormalisedDensity):
        return draw_energy(model, data, history)
    part = getattr(data, split).to(*place_of(model))
    shown = part.batch(slice(0, 10))
    coded = part.batch(slice(0, 1000))
    drawn = {"training": figures.training_curve(history)} if history else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, y, mask = arguments(model, shown)
        note = "" if _depends_on_x(model, shown) else "; q(z | x) does not depend on x"
        drawn["reconstructions"] = figures.reconstructions(
            x if mask is None else torch.where(mask, x, torch.nan),
            tasks.reconstruct(model, x, y, mask),
            title=f"{split} data and E[x | z] at the mean of q(z | x){note}"
            if Capability.POSTERIOR in model.offers
            else f"{split} data and decoder(encoder(x))",
        )
        means = [mean.flatten(1) for mean in tasks.means(model, *arguments(model, coded)).values()]
        if Capability.POSTERIOR in model.offers:
            drawn |= _of_draws(model, data, part.y, means[-1].shape[1])
    codes = torch.zeros_like(torch.cat(means, 1)) if note else torch.cat(means, 1)
    labels = coded.y if coded.y is not None and coded.y.dim() == 1 else None
    method = {1: "the only dimension", 2: "both dimensions"}.get(codes.shape[-1], "t-SNE")
    named = "Posterior means" if Capability.POSTERIOR in model.offers else "Codes"
    title = f"{named} of {split} data, {method}"
    drawn["embedding"] = figures.embedding(figures.project(codes), labels, title, data.record["classes"])
    return drawn


def _of_draws(model: LatentVariableModel, data: Data, y: Tensor | None, width: int) -> dict[str, Figure]:
    """Samples and what they are the means of, a latent grid and a label grid.

    Args:
        model: a model with a density.
        data: what it was trained on.
        y: labels of the data, to draw at where they are vectors.
        width: of the last latent.
    """
    names = data.record["classes"]
    own = labels_for(model, 64, of_data=y if model.vector_labels else None)
    at = "" if own is None else "; labels of the data" if model.vector_labels else "; the classes in turn"
    drawn = {
        name: figures.samples(tasks.sample(model, 64, own, mean=mean), tasks.sample_title(model, mean) + at)
        for name, mean in (("samples", False), ("sample_means", True))
    }
    label = own[0] if own is not None and model.vector_labels else 0 if model.label_dim else None
    try:
        mosaic, quantiles = tasks.latent_grid(model, SIDE, label)
    except InputError:  # a model with other latents has none
        pass
    else:
        rest = "" if width < 3 else "; the other dimensions at their prior mean"
        given, at = ("", "") if label is None else (", y", f"; y = {called(label, names)}")
        title = f"E[x | z{given}] at quantiles of the prior{rest}{at}"
        drawn["latent_grid"] = figures.latent_grid(mosaic, SIDE, quantiles, title)
    if model.label_dim and not model.vector_labels:
        title = "E[x | z, y], the random numbers that z is drawn with held along each row"
        drawn["label_grid"] = figures.label_grid(tasks.label_grid(model, 8), model.label_dim, names, title)
    return drawn


def called(label: Tensor | int, names: Sequence[str] | None) -> str:
    """A label in a title: the name or number of a class, or the numbers of a vector."""
    if isinstance(label, int):
        return names[label] if names else str(label)
    return ", ".join(f"{number:.3g}" for number in label.tolist())


def _depends_on_x(model: Any, batch: Batch) -> bool:
    """Whether other data are given other codes; the draws of `means` are the same in every call."""
    x, y, mask = arguments(model, batch)
    codes = [tasks.means(model, values, y, mask) for values in (x, x.flip(0))]
    same = all(torch.equal(codes[0][site], codes[1][site]) for site in codes[0])
    return not same or torch.equal(x, x.flip(0))
