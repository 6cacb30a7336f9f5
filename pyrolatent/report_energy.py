"""The pictures of a trained unnormalised density."""

import warnings

import torch
from matplotlib.figure import Figure

from pyrolatent import figures, figures_energy, tasks
from pyrolatent.chains import sample_energy, watch
from pyrolatent.data import Data
from pyrolatent.inference.kernels import adapted, no_normaliser
from pyrolatent.inference.partition import LogZ, ais, exact_log_z, model_states, reverse_ais
from pyrolatent.inference.training.loop import Row
from pyrolatent.models.arrays import place_of
from pyrolatent.models.rbm import RestrictedBoltzmannMachine
from pyrolatent.models.unnormalised import UnnormalisedDensity

WATCHED = [0, 1, 2, 5, 10, 50, 100, 500, 1000]
"""Sweeps after which chains are drawn."""
TEMPERATURES = 1000
"""Of the annealing that is drawn."""


@torch.no_grad()
def draw_energy(model: UnnormalisedDensity, data: Data, history: list[Row]) -> dict[str, Figure]:
    """Every figure of a trained unnormalised density, by name.

    Args:
        model: a trained model.
        data: what it was trained on.
        history: the rows of its training; none, no training curve.
    """
    data = data.to(*place_of(model))
    drawn = {"training": figures_energy.monitors(history)} if history else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        entries = model.event_shape.numel()
        if isinstance(model, RestrictedBoltzmannMachine) and model.units.width - model.label_dim == entries:
            drawn["filters"] = figures_energy.filters(model.weight[:entries], tuple(model.event_shape))
        start = data.test.batch(slice(0, 4)).x
        frames = torch.cat([watch(model, 4, WATCHED, start=start), watch(model, 4, WATCHED)], 1)
        machine = isinstance(model, RestrictedBoltzmannMachine)
        title = "E[x | h] of chains, and their starts" if machine else "draws of chains, and their starts"
        drawn["chains"] = figures_energy.chains(frames, WATCHED, ["test data"] * 4 + ["base"] * 4, title)
        if unsampled := no_normaliser(model, adapted(model)):
            warnings.warn(f"no samples are drawn, and no log Z: {unsampled}", stacklevel=2)
            return drawn
        of_chains = "" if model.tractable else f" after {WATCHED[-1]} sweeps"
        for name, mean in (("samples", False), ("sample_means", True))[: 1 + machine]:
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


def _said(estimate: LogZ) -> str:
    return "no estimate" if estimate.stuck else f"{estimate.value:.2f} ± {estimate.error:.2f}"
