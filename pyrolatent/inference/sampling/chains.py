"""Samples from unnormalised densities, and the states of chains over time."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyrolatent.errors import InputError, at_least, at_least_one
from pyrolatent.inference.sampling.kernels import Movement, adapted, no_normaliser
from pyrolatent.models.arrays import as_tensor, device_and_dtype
from pyrolatent.models.energies.density import UnnormalisedDensity, in_double
from pyrolatent.models.model import Capability

SWEEPS = 1000
"""Default number of sweeps from the base before the states of chains are taken as samples."""


@torch.no_grad()
def sample_energy(
    model: UnnormalisedDensity,
    size: int,
    y: Tensor | None = None,
    *,
    mean: bool = False,
    sweeps: int = SWEEPS,
    kernel: Any = None,
) -> Tensor:
    """Draws x from an unnormalised density: exactly if log Z can be summed, else by chains.

    Args:
        model: a fitted model.
        size: number of draws.
        y: labels (size,) to condition on, for models with label units: x ~ p(x | y).
        mean: whether to return E[x | h] at the last h instead of a draw of x, for an RBM.
        sweeps: number of sweeps of the chains.
        kernel: kernel of the chains; None is the model's Gibbs sampler, or HMC with an adapted step if it has none.
            With a kernel, chains are run even if log Z can be summed.

    Returns:
        (size, *event_shape).

    Raises:
        InputError: the chains of a kernel over real x did not move, the density has no normaliser, an argument does not
            fit the model, or `device_and_dtype` refuses the model.
    """
    at_least_one(size=size)
    at_least(0, sweeps=sweeps)
    if mean:
        model.require(Capability.HIDDEN_UNITS, "leave mean out")
    device, dtype = device_and_dtype(model)
    if model.tractable and y is None and kernel is None:
        state = model.restore(in_double(model).flat(in_double(model).exact_sample(size)).to(device, dtype))
    else:
        state = _walk(model, size, sweeps, y, kernel)
    return model.mean_visible(state) if mean else model.visible(state)


@torch.no_grad()
def watch(model: UnnormalisedDensity, size: int, sweeps: Any, *, start: Any = None, kernel: Any = None) -> Tensor:
    """The states of chains after given numbers of sweeps, (len(sweeps), size, *event_shape).

    For an RBM these are E[x | h], except for the initial state.

    Args:
        model: a fitted model.
        size: number of chains.
        sweeps: ascending numbers of sweeps after which to return states; 0 is the initial state.
        start: initial data (size, *event_shape); None draws from the base.
        kernel: kernel of the chains, as in `sample_energy`.

    Raises:
        InputError: an argument does not fit the model or the others, or `device_and_dtype` refuses the model.
    """
    device_and_dtype(model)
    at_least_one(size=size)
    times = as_tensor(sweeps, "sweeps")
    if (
        times.dim() != 1
        or not len(times)
        or (times != times.round()).any()
        or (times.diff(prepend=0 * times[:1]) < 0).any()
    ):
        raise InputError(f"sweeps were {sweeps}; give a list of ascending integers from 0")
    if start is not None:
        start, _ = model.validated(start)
        if len(start) != size:
            raise InputError(f"start holds {len(start)} datapoints, but {size} chains were asked for; give as many")
    state = model.base(size) if start is None else model.state(start)
    frames, done, move = [], 0, adapted(model, kernel, start=state)
    for until in times.long().tolist():
        for _ in range(until - done):
            state = move(model, state)
        done = until
        hidden = Capability.HIDDEN_UNITS in model.offers
        frames.append(model.mean_visible(state) if done and hidden else model.visible(state))
    return torch.stack(frames)


def _walk(model: UnnormalisedDensity, size: int, sweeps: int, y: Tensor | None, kernel: Any) -> object:
    """The final states of chains that begin at persistent chains if there are any, else at the base."""
    if y is not None and not model.label_dim:
        raise InputError(f"{type(model).__name__} has no label units; leave y out")
    if y is not None and (y.shape != (size,) or not ((y >= 0) & (y < model.label_dim)).all()):
        found = f"{tuple(y.shape)} labels from {int(y.min())} to {int(y.max())}" if y.numel() else "no labels"
        raise InputError(f"y holds {found}; give ({size},) from 0 to {model.label_dim - 1}")
    if len(model.chains):
        state = model.restore(model.chains[torch.arange(size, device=model.chains.device) % len(model.chains)])
    else:
        state = model.base(size)
    move = Movement(adapted(model, kernel, start=state))
    if improper := no_normaliser(model, move.kernel):
        raise InputError(f"{type(model).__name__} cannot be sampled: {improper}")
    for _ in range(sweeps):
        state = move(model, state)
        if y is not None:
            flat = model.flat(state)
            code = functional.one_hot(y.to(flat.device), model.label_dim).to(flat)
            state = model.restore(torch.cat([flat[:, : -model.label_dim], code], -1))
    if move.stuck:
        raise InputError(f"{type(model).__name__} cannot be sampled: {move.stuck}")
    return state
