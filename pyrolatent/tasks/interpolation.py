"""Decoding the way from one datapoint to the next."""

import itertools
from typing import Any

import torch
from torch import Tensor

from pyrolatent.errors import InputError, at_least_one
from pyrolatent.models.arrays import as_labels
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.tasks.codes import decoded_at, means


@torch.no_grad()
def interpolate(model: LatentVariableModel, x: Any, y: Any = None, mask: Any = None, *, steps: int = 10) -> Tensor:
    """E[x | z] along straight lines between the posterior means of consecutive datapoints.

    Args:
        model: a fitted model.
        x: data (batch, *event_shape), two or more.
        y: labels, for models with labels; a line is decoded with the label of its first end.
        mask: True where x is observed.
        steps: number of points along each line, including both ends.

    Returns:
        (batch - 1, steps, *event_shape).

    Raises:
        InputError: an argument does not fit the model, or there are fewer than two datapoints.
    """
    at_least_one(steps=steps)
    ends = means(model, x, y, mask)
    lines = len(next(iter(ends.values()))) - 1
    if lines < 1:
        raise InputError(f"x holds {lines + 1} datapoints; a line needs two")
    latents = {}
    for site, mean in ends.items():
        weight = torch.linspace(0, 1, steps, dtype=mean.dtype, device=mean.device)
        at = weight.reshape(-1, *[1] * (mean.dim() - 1))
        latents[site] = torch.cat([torch.lerp(start, end, at) for start, end in itertools.pairwise(mean)])
    labels = None if y is None else as_labels(model, y, lines + 1, known=False)[:-1].repeat_interleave(steps, 0)
    return decoded_at(model, latents, labels).unflatten(0, (lines, steps))
