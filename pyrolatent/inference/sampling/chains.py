"""Samples of unnormalised densities, and chains that can be watched."""

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
"""Of chains that begin at the base, before what they hold is called a sample."""


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
    """Draws of x: exact where log Z can be summed, else what chains hold after so many sweeps.

    Args:
        model: a fitted model.
        size: number of draws.
        y: labels (size,) of models with label units; chains then hold them, and x ~ p(x | y).
        mean: whether a machine returns E[x | h] at the last h instead of a draw of x.
        sweeps: of the chains.
        kernel: what moves them; None: the model's Gibbs sampler, or HMC with an adapted step where it has none. With a
            kernel chains are run also where log Z can be summed.

    Returns:
        (size, *event_shape).

    Raises:
        InputError: the chains of a kernel over real x did not move, the density has no normaliser, or what is asked for
            does not go with the model, or a model of a type that `device_and_dtype` refuses.
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
    """What chains hold after so many sweeps from their start, (len(sweeps), size, *event_shape).

    Machines show E[x | h] after the first sweep, and the start as it is.

    Args:
        model: a fitted model.
        size: number of chains.
        sweeps: when they are looked at, whole numbers that rise, 0 being the start.
        start: data (size, *event_shape); None: draws of the base.
        kernel: what moves the chains, as in `sample_energy`.

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
        raise InputError(f"sweeps were {sweeps}; give a list of whole numbers from 0 that rise")
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
    """The last state of chains that begin at persistent ones where there are any, else at the base."""
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
