"""The figures of a trained model."""

import warnings
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrolatent import tasks
from pyrolatent.data.splits import Batch, Data
from pyrolatent.errors import InputError
from pyrolatent.figures import energy as figures_energy
from pyrolatent.figures import latent as figures
from pyrolatent.inference.draws import labels_for
from pyrolatent.inference.evidence.energies import LogZ, ais, exact_log_z, model_states, reverse_ais
from pyrolatent.inference.rules import introduce
from pyrolatent.inference.sampling.chains import sample_energy, watch
from pyrolatent.inference.sampling.kernels import adapted, no_normaliser
from pyrolatent.inference.training.fitted import Row
from pyrolatent.inference.weights import arguments
from pyrolatent.models.arrays import device_and_dtype
from pyrolatent.models.energies.density import UnnormalisedDensity
from pyrolatent.models.energies.rbm import RestrictedBoltzmannMachine
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.model import Capability

SIDE = 15
"""Number of points of a latent grid along each dimension."""
WATCHED = [0, 1, 2, 5, 10, 50, 100, 500, 1000]
"""Numbers of sweeps after which chains are plotted."""
TEMPERATURES = 1000
"""Number of annealing steps in the figure of log Z."""


@singledispatch
def plot(model: Any, data: Data, history: list[Row]) -> dict[str, Figure]:
    """Every figure of a trained model by name, with a title.

    Latent-variable models have embeddings of test data, and reconstructions if they model x itself, unless datapoints
    have no latents of their own; samples if they have a density of x; a latent grid if they have one continuous vector
    z; and a label grid if they have classes.
    Unnormalised densities have chains, samples, free energies of data and samples, and log Z along the annealing path.

    Args:
        model: a trained model.
        data: the data that it was trained on; models of label vectors are sampled at those of the test data.
        history: the rows of its training; without rows there is no training curve.
    """
    introduce(model, data)
    part = data.test.to(*device_and_dtype(model))
    shown = part.batch(slice(0, 10))
    coded = part.batch(slice(0, 1000))
    drawn = {"training": figures.training_curve(history)} if history else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, y, mask = arguments(model, shown)
        if not model.encodes_datapoints:
            return drawn | (_of_draws(model, data, part.y, 0) if model.observes_x else {})
        note = "" if _depends_on_x(model, shown) else "; q(z | x) does not depend on x"
        means_of_x = _reconstructed(model, x, y, mask) if model.observes_x else None
        if means_of_x is not None:
            drawn["reconstructions"] = figures.reconstructions(
                x if mask is None else torch.where(mask, x, torch.nan),
                means_of_x,
                title=f"test data and E[x | z] at the mean of q(z | x){note}"
                if Capability.POSTERIOR in model.offers
                else "test data and decoder(encoder(x))",
            )
        means = [mean.reshape(len(mean), -1) for mean in tasks.means(model, *arguments(model, coded)).values()]
        if Capability.POSTERIOR in model.offers and model.observes_x:
            drawn |= _of_draws(model, data, part.y, means[-1].shape[1])
    codes = torch.zeros_like(torch.cat(means, 1)) if note else torch.cat(means, 1)
    labels = coded.y if coded.y is not None and coded.y.dim() == 1 else None
    points, method = figures.drawable(codes)
    named = "Posterior means" if Capability.POSTERIOR in model.offers else "Codes"
    title = f"{named} of test data, {method}"
    drawn["embedding"] = figures.embedding(points, labels, title, data.record["classes"])
    return drawn


@plot.register
@torch.no_grad()
def _of_energy(model: UnnormalisedDensity, data: Data, history: list[Row]) -> dict[str, Figure]:
    data = data.to(*device_and_dtype(model))
    drawn = {"training": figures_energy.monitors(history)} if history else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        entries = model.event_shape.numel()
        if isinstance(model, RestrictedBoltzmannMachine) and model.units.width - model.label_dim == entries:
            drawn["filters"] = figures_energy.filters(model.weight[:entries], tuple(model.event_shape))
        start = data.test.batch(slice(0, 4)).x
        frames = torch.cat([watch(model, 4, WATCHED, start=start), watch(model, 4, WATCHED)], 1)
        has_hidden = Capability.HIDDEN_UNITS in model.offers
        title = "E[x | h] of chains, and their starts" if has_hidden else "draws of chains, and their starts"
        drawn["chains"] = figures_energy.chains(frames, WATCHED, ["test data"] * 4 + ["base"] * 4, title)
        if unsampled := no_normaliser(model, adapted(model)):
            warnings.warn(f"there are no figures of samples and log Z: {unsampled}", stacklevel=2)
            return drawn
        of_chains = "" if model.tractable else f" after {WATCHED[-1]} sweeps"
        for name, mean in (("samples", False), ("sample_means", True))[: 1 + has_hidden]:
            values = sample_energy(model, 64, mean=mean, sweeps=WATCHED[-1])
            drawn[name] = figures.samples(values, tasks.sample_title(model, mean) + of_chains)
        parts = {name: getattr(data, name).batch(slice(0, 1000)).x for name in ("train", "validation")}
        number = 1000 if model.tractable else 300
        of_data = {name: model.free_energy(x) for name, x in parts.items()}
        drawn["free_energies"] = figures_energy.free_energies(
            {**of_data, "samples": model.free_energy(sample_energy(model, number, sweeps=WATCHED[-1]))}
        )
        forward = ais(model, chains=50, temperatures=TEMPERATURES)
        start, starts = model_states(model, data, 50)
        backward = reverse_ais(model, start, starts, temperatures=TEMPERATURES)
        drawn["log_z"] = figures_energy.log_z_trace(
            {
                f"AIS, {_said(forward)}": (forward.betas, forward.log_weights),
                f"from {starts}, {_said(backward)}": (backward.betas, backward.log_weights),
            },
            exact_log_z(model).value if model.tractable else None,
        )
    return drawn


def _of_draws(model: LatentVariableModel, data: Data, y: Tensor | None, width: int) -> dict[str, Figure]:
    """Samples and their means, a latent grid and a label grid.

    Args:
        model: a model with a density.
        data: the data that it was trained on.
        y: labels of the data, at which to draw if they are vectors.
        width: width of the last latent.
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
        given, at = ("", "") if label is None else (", y", f"; y = {label_title(label, names)}")
        title = f"E[x | z{given}] at quantiles of the prior{rest}{at}"
        drawn["latent_grid"] = figures.latent_grid(mosaic, SIDE, quantiles, title)
    if model.label_dim and not model.vector_labels:
        title = "E[x | z, y], the random numbers that z is drawn with held along each row"
        drawn["label_grid"] = figures.label_grid(tasks.label_grid(model, 8), model.label_dim, names, title)
    return drawn


def _reconstructed(model: Any, x: Tensor, y: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """E[x | z], or None where what lies outside the plate over datapoints has no mean to decode at."""
    try:
        return tasks.reconstruct(model, x, y, mask)
    except InputError:
        if not model.global_sites:
            raise
        return None


def label_title(label: Tensor | int, names: Sequence[str] | None) -> str:
    """A label for a title: the name or number of a class, or the numbers of a vector."""
    if isinstance(label, int):
        return names[label] if names else str(label)
    return ", ".join(f"{number:.3g}" for number in label.tolist())


def _depends_on_x(model: Any, batch: Batch) -> bool:
    """Whether codes differ between data; the draws of `means` are the same in every call."""
    x, y, mask = arguments(model, batch)
    codes = [tasks.means(model, values, y, mask) for values in (x, x.flip(0))]
    same = all(torch.equal(codes[0][site], codes[1][site]) for site in codes[0])
    return not same or torch.equal(x, x.flip(0))


def _said(estimate: LogZ) -> str:
    return "no estimate" if estimate.stuck else f"{estimate.value:.2f} ± {estimate.error:.2f}"
