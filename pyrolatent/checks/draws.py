"""Draws from a posterior with everything that checks ask of them, in chunks."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyrolatent.inference.evidence import FLOATS
from pyrolatent.inference.objectives import Inputs
from pyrolatent.inference.weights import Program, Weights, weigh
from pyrolatent.models.latent import LatentVariableModel

SCORES = ("log_weights", "log_likelihood", "log_prior", "log_posterior")


@dataclass(frozen=True)
class Draws:
    """Draws of a batch from q(z | x), which can be ranked as they are; of enumerated sites a state is drawn. Nats.

    Attributes:
        log_weights: log p(x, z) - log q(z | x), (draws, batch), with the states of enumerated sites summed out: for
            log p(x) and k-hat, and not those of the states that were drawn.
        log_likelihood: log p(x | z), (draws, batch).
        log_prior: log p(z) over all sites, (draws, batch).
        log_posterior: log q(z | x) over all sites, (draws, batch).
        latents: by site, (kept, batch, ...), the first of the draws.
    """

    log_weights: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    latents: dict[str, Tensor]

    @property
    def log_weights_of_states(self) -> Tensor:
        """log p(x, z) - log q(z | x) of what was drawn, (draws, batch): weighted by it, draws are the posterior's."""
        return self.log_likelihood + self.log_prior - self.log_posterior


@torch.no_grad()
def draw(
    model: LatentVariableModel,
    inputs: Inputs,
    draws: int,
    *,
    keep: int | None = None,
    guide: Program | None = None,
    floats: int = FLOATS,
) -> Draws:
    """Draws from q(z | x), or from another guide, for each datapoint.

    Args:
        model: a fitted model.
        inputs: x, y, mask.
        draws: number for each datapoint.
        keep: number of draws whose latents are kept; None for all.
        guide: in place of the model's.
        floats: bound on the numbers decoded at a time.
    """
    at_once = max(1, floats // inputs[0].numel())
    parts = [
        _scored(weigh(model.generate, guide or model.infer, *inputs, particles=min(at_once, draws - start)))
        for start in range(0, draws, at_once)
    ]
    first, kept = parts[0].latents, draws if keep is None else keep
    return Draws(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in SCORES},
        latents={site: torch.cat([part.latents[site] for part in parts])[:kept] for site in first},
    )


def joined(parts: list[Draws]) -> Draws:
    """Draws of consecutive batches as one."""
    return Draws(
        **{name: torch.cat([getattr(part, name) for part in parts], 1) for name in SCORES},
        latents={site: torch.cat([part.latents[site] for part in parts], 1) for site in parts[0].latents},
    )


@torch.no_grad()
def log_posterior_of(
    model: LatentVariableModel, inputs: Inputs, latents: Mapping[str, Tensor], floats: int = FLOATS
) -> Tensor:
    """log q(z_i | x_j) over all sites, (draws, batch), nats.

    Args:
        model: a model whose posterior can score values that it did not draw.
        inputs: x, y, mask of the batch.
        latents: by site, (draws, *shape), each scored for every datapoint, or (draws, batch, *shape).
        floats: bound on the numbers scored at a time.
    """
    x = inputs[0]
    count = len(next(iter(latents.values())))
    dims = {site: node["fn"].event_dim for site, node in _guide_sites(model, inputs).items()}
    width = sum(value[0].numel() for value in latents.values())
    at_once = max(1, floats // (len(x) * max(width, 1)))
    rows = []
    for start in range(0, count, at_once):
        values = {}
        for site, value in latents.items():
            part = value[start : start + at_once]
            if part.dim() == dims[site] + 1:
                part = part.unsqueeze(1).expand(len(part), len(x), *part.shape[1:])
            values[site] = part
        number = len(next(iter(values.values())))
        with pyro.plate("particles", number, dim=-2):
            trace: Any = poutine.trace(poutine.condition(model.infer, data=values)).get_trace(*inputs)
        rows.append(_sum(trace.nodes[site]["fn"].log_prob(values[site]) for site in values))
    return torch.cat(rows)


def _guide_sites(model: LatentVariableModel, inputs: Inputs) -> dict[str, Any]:
    trace: Any = prune_subsample_sites(poutine.trace(model.infer).get_trace(*inputs))
    return {site: trace.nodes[site] for site in trace.stochastic_nodes}


def _scored(weights: Weights) -> Draws:
    """The draws of one pass; where sites are enumerated, one of their states is drawn for each particle."""
    log_weights = weights.log_weights()
    terms = {
        "log_likelihood": weights.log_likelihood,
        "log_prior": _sum(weights.log_prior.values()),
        "log_posterior": _sum(weights.log_posterior.values()),
    }
    log_states = weights.log_states()
    if log_states is None:
        spread = {name: term.expand_as(log_weights) for name, term in terms.items()}
        return Draws(log_weights, **spread, latents=weights.latents)
    shape = torch.broadcast_shapes(log_states.shape, *(term.shape for term in terms.values()))
    flat = log_states.expand(shape).flatten(0, -3)
    index = dist.Categorical(logits=flat.movedim(0, -1)).sample()

    def chosen(values: Tensor, event_dims: int = 0) -> Tensor:
        event = values.shape[values.dim() - event_dims :]
        spread = values.expand((*shape, *event)).flatten(0, len(shape) - 3)
        at = index.reshape(1, *index.shape, *[1] * event_dims).expand(1, *index.shape, *event)
        return spread.gather(0, at).squeeze(0)

    latents = {
        site: chosen(value, weights.guide_trace.nodes[site]["fn"].event_dim) for site, value in weights.latents.items()
    }
    return Draws(log_weights, **{name: chosen(term) for name, term in terms.items()}, latents=latents)


def _sum(terms: Any) -> Tensor:
    return functools.reduce(torch.add, terms)
