"""Models simulated, x and z ~ p(z, x), at the labels that were asked for, and the means of their posteriors."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrolatent.errors import InputError
from pyrolatent.inference.objectives import Inputs
from pyrolatent.inference.weights import Weights, weigh
from pyrolatent.models.arrays import as_labels
from pyrolatent.models.latent import LatentVariableModel

AT_ONCE = 1000
"""Datapoints whose draws are held at a time."""


@torch.no_grad()
def simulate(model: LatentVariableModel, size: int, y: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """(z, x) ~ p(z, x): data (size, *event_shape) with latents by site, (size, ...).

    Args:
        model: any latent-variable model.
        size: number of draws.
        y: labels of conditional models; of a model that infers the label, the classes that are drawn, or None for its
            own draws of them. A label that is given is not among the latents.

    Raises:
        InputError: a conditional model without labels, or labels that do not fit the model.
    """
    nodes = model.simulated(size, None if y is None else as_labels(model, y, size))
    return nodes.pop("x")["value"], {site: node["value"] for site, node in nodes.items()}


def labels_for(model: Any, size: int, y: Any = None, *, of_data: Tensor | None = None) -> Tensor | None:
    """Labels to draw from a model at, (size,) or (size, label_dim); None where it needs none.

    Args:
        model: a model.
        size: how many.
        y: labels that were asked for; None: those of the data over and over, or without data the classes in turn.
        of_data: labels of data at hand, -1 being unknown.

    Raises:
        InputError: labels that do not fit the model, or a model of label vectors that is given none.
    """
    if y is not None:
        return as_labels(model, y, size)
    if not model.conditional:
        return None
    if of_data is not None:
        known = of_data if of_data.is_floating_point() else of_data[of_data >= 0]
        if len(known):
            return as_labels(model, known[torch.arange(size, device=known.device) % len(known)], size)
    if model.vector_labels:
        raise InputError(
            f"{type(model).__name__} was trained on label vectors, of which there are no classes to draw in turn; "
            f"give labels y of shape ({size}, {model.label_dim})"
        )
    return as_labels(model, torch.arange(size) % model.label_dim, size)


def posterior_means(model: LatentVariableModel, inputs: Inputs, draws: int) -> dict[str, Tensor]:
    """The mean of each latent site under the guide, (batch, ...): that of `site_means` over the draws.

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
            found.setdefault(site, []).append(site_means(weights, site).mean(0))
    return {site: torch.cat(parts) for site, parts in found.items()}


@torch.no_grad()
def weighed_draws(model: LatentVariableModel, inputs: Inputs, particles: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Draws of the latents given what is observed: log weights (particles, batch) and latents (particles, batch, ...).

    They are drawn from q(z | x) and weighed by p(x, z) / q(z | x) if the encoder was trained with gaps. Else half of
    them are drawn from the prior, and all are weighed by p(x, z) / (q(z | x) / 2 + p(z) / 2), so that no weight is
    larger than twice the likelihood, however wrong the encoder is (Veach and Guibas 1995; Owen and Zhou 2000). A
    posterior that scores nothing but its own draws is the only proposal too.

    Args:
        model: any latent-variable model that sums no site out.
        inputs: x, y, mask.
        particles: number of draws, one more if it is odd.
    """
    if model.sees_gaps or not model.scores_any_value:
        weights = weigh(model.generate, model.infer, *inputs, particles=particles)
        return weights.log_weights(), weights.latents
    prior = poutine.block(model.generate, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])
    half = -(-particles // 2)
    of_q, of_p = (weigh(model.generate, guide, *inputs, particles=half) for guide in (model.infer, prior))
    values = {site: of_p.guide_trace.nodes[site]["value"] for site in of_p.latents}
    log_q = [of_q.log_guide, of_q.log_posterior_at(values)]
    parts = []
    for weights, log_posterior in zip((of_q, of_p), log_q, strict=True):
        log_prior = functools.reduce(torch.add, weights.log_prior.values())
        mixed = torch.logaddexp(log_posterior, log_prior) - math.log(2)
        parts.append(weights.log_joint - mixed)
    latents = {site: torch.cat([of_q.latents[site], of_p.latents[site]]) for site in of_q.latents}
    return torch.cat(parts), latents


def site_means(weights: Weights, site: str) -> Tensor:
    """The mean of a latent site under the guide given each draw of the sites before it, (particles, batch, ...).

    It is the site's own draw where that has no closed form; states that are summed out are summed with their
    probabilities.
    """
    fn, draws = weights.guide_trace.nodes[site]["fn"], weights.latents[site]
    try:
        mean = weights.with_particles(fn.mean, fn.event_dim)
    except NotImplementedError:
        mean = draws
    mean = torch.where(torch.isnan(mean).any(), draws, mean)  # a Student-t of few degrees of freedom has none
    return weights.expect(mean, fn.event_dim)


def _split(field: Tensor | None, size: int) -> Sequence[Tensor | None]:
    return field.split(AT_ONCE) if field is not None else [None] * -(-size // AT_ONCE)
