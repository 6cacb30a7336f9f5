"""The means of posteriors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrolatent.inference.objectives import Inputs
from pyrolatent.inference.weights import Weights, weigh
from pyrolatent.models.latent import LatentVariableModel

AT_ONCE = 1000
"""Datapoints whose draws are held at a time."""


def posterior_means(model: LatentVariableModel, inputs: Inputs, draws: int) -> dict[str, Tensor]:
    """The mean of each latent site under the guide, (batch, ...), as `site_mean` has it.

    Args:
        model: any latent-variable model.
        inputs: x, y, mask.
        draws: of the guide's sites, for each datapoint.
    """
    found: dict[str, list[Tensor]] = {}
    for part in zip(*(_split(field, len(inputs[0])) for field in inputs), strict=True):
        # The guide in the model's place: its sites are all that is asked for, so that nothing is decoded.
        weights = weigh(model.infer, model.infer, *part, particles=draws)
        for site in weights.latents:
            found.setdefault(site, []).append(site_mean(weights, site))
    return {site: torch.cat(parts) for site, parts in found.items()}


def site_mean(weights: Weights, site: str) -> Tensor:
    """The mean of a latent site under the guide, (batch, ...).

    It is the mean over draws of the sites before it of its mean given them, that of its own draws where that has no
    closed form; states that are summed out are summed with their probabilities.
    """
    fn, draws = weights.guide_trace.nodes[site]["fn"], weights.latents[site]
    try:
        mean = fn.mean
    except NotImplementedError:
        mean = draws
    mean = torch.where(torch.isnan(mean).any(), draws, mean)  # a Student-t of few degrees of freedom has none
    return weights.expect(mean, fn.event_dim).mean(0)


def _split(field: Tensor | None, size: int) -> Sequence[Tensor | None]:
    return field.split(AT_ONCE) if field is not None else [None] * -(-size // AT_ONCE)
