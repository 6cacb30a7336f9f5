"""Simulating models, x and z ~ p(z, x), and drawing and resampling from their posteriors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyrolatent.errors import InputError
from pyrolatent.inference.weights import Inputs, Program, Weights, total, weigh
from pyrolatent.models.arrays import as_labels, as_numbers
from pyrolatent.models.latent import NOISE, LatentVariableModel, only_records

AT_ONCE = 1000
"""Number of datapoints per batch of draws."""
MAX_ELEMENTS = 2**21
"""Elements per decoded chunk of draws: small enough for a processor's cache, large enough to keep it busy."""
Values = dict[str, tuple[Tensor, bool]]
"""Values by site, and whether they have a dimension of datapoints."""
SCORES = ("log_weights", "log_likelihood", "log_prior", "log_posterior")


@torch.no_grad()
def simulate(model: LatentVariableModel, size: int, y: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Draws (z, x) ~ p(z, x): data (size, *event_shape), and latents by site, (size, ...).

    Args:
        model: any latent-variable model.
        size: number of draws.
        y: labels of conditional models; for a model that infers the label, the classes to draw, or None to draw them
            too. Given labels are not among the latents.

    Raises:
        InputError: a conditional model without labels, or labels that do not fit the model.
    """
    nodes = model.simulated(size, None if y is None else as_labels(model, y, size))
    return nodes.pop(model.observed_site)["value"], {site: node["value"] for site, node in nodes.items()}


def simulate_prior(model: LatentVariableModel, inputs: Inputs, draws: int) -> Values:
    """Draws (u, z, x) ~ p(u) p(z | u) p(x | z, u), of one datapoint each, with what the program records.

    Sites u outside the plate are drawn from their prior too, which `simulate` draws from the guide. Where no site
    observes x, the program is run on the datapoints that are given, and has u and what it records of these.

    Args:
        model: any latent-variable model.
        inputs: x, y, mask.
        draws: number of draws, one run of the generative function each.

    Returns:
        By site, (draws, ...) or (draws, batch, ...), and which of the two it is.
    """
    found: list[Values] = []
    labels = labels_for(model, draws, of_data=inputs[1])
    of_x: list[str] = []
    for i in range(draws):
        given, program = inputs, model.generate
        if model.observes_x:
            given = torch.zeros_like(inputs[0][:1]), None if labels is None else labels[i : i + 1], None
            program = model.simulator(given[1])
        trace: Any = prune_subsample_sites(poutine.trace(program).get_trace(*given))
        nodes = {site: trace.nodes[site] for site in trace.stochastic_nodes if site != model.observed_site}
        kept = {site: node for site, node in nodes.items() if "was_observed" not in node["infer"]}
        if not model.observes_x:
            found.append(_values(model, _outside(model, kept) | _recorded(model, trace), len(given[0])))
            continue
        if i == 0:  # what is computed of the x that is given, and not of the one that is drawn
            of_x = _changing(model, poutine.replay(program, trace=trace), trace, (inputs[0][:1], *given[1:]))
        kept |= {site: node for site, node in _recorded(model, trace).items() if site not in of_x}
        kept[model.observed_site] = model.observation(trace)
        of_one = _values(model, kept, 1)
        found.append({site: (value[0] if of_each else value, False) for site, (value, of_each) in of_one.items()})
    return _stacked(found)


def recorded(
    model: LatentVariableModel, inputs: Inputs, latents: Mapping[str, Tensor], outside: Mapping[str, Tensor]
) -> Values:
    """What the generative function records by `pyro.deterministic`, at draws of its latents.

    Args:
        model: any latent-variable model.
        inputs: x, y, mask.
        latents: values by site, (draws, batch, ...).
        outside: values of sites outside the plate, (draws, ...).

    Returns:
        By site, (draws, batch, ...) of those in the plate over datapoints and else (draws, ...), and which it is.
    """
    found: list[Values] = []
    for i in range(len(next(iter({**latents, **outside}.values())))):
        program = poutine.condition(model.generate, data={site: value[i] for site, value in latents.items()})
        with model.given({site: value[i] for site, value in outside.items()}):
            trace: Any = poutine.trace(program).get_trace(*inputs)
        nodes = {site: node for site, node in _recorded(model, trace).items() if site not in latents}
        if not nodes:
            return {}
        found.append(_values(model, nodes, len(inputs[0])))
    return _stacked(found)


def _recorded(model: LatentVariableModel, trace: Any) -> dict[str, Any]:
    """The nodes that have no distribution, by site."""
    nodes = {site: trace.nodes[site] for site in trace.observation_nodes if site != model.observed_site}
    return {site: node for site, node in nodes.items() if only_records(node)}


def _changing(model: LatentVariableModel, replayed: Program, trace: Any, inputs: Inputs) -> list[str]:
    """The recorded sites of a trace that have other values where its program is replayed on these inputs."""
    again: Any = poutine.trace(replayed).get_trace(*inputs)
    nodes = _recorded(model, trace)
    return [site for site, node in nodes.items() if not torch.equal(node["value"], again.nodes[site]["value"])]


def _frames(model: LatentVariableModel, node: Any) -> list[Any]:
    """The plate over datapoints, if a site lies in it."""
    return [one for one in node["cond_indep_stack"] if one.vectorized and model.plate in (None, one.name)]


def _outside(model: LatentVariableModel, nodes: Mapping[str, Any]) -> dict[str, Any]:
    return {site: node for site, node in nodes.items() if not _frames(model, node)}


def _values(model: LatentVariableModel, nodes: Mapping[str, Any], batch: int) -> Values:
    found = {}
    for site, node in nodes.items():
        found[site] = node["value"], False
        for frame in _frames(model, node)[:1]:
            # What is recorded says its number of event dimensions only if the user does.
            dim = max(0, node["value"].dim() - node["fn"].event_dim + frame.dim)
            if node["value"].shape[dim : dim + 1] == (batch,):
                found[site] = node["value"].movedim(dim, 0), True
    return found


def _stacked(found: list[Values]) -> Values:
    return {site: (torch.stack([one[site][0] for one in found]), of_each) for site, (_, of_each) in found[0].items()}


def labels_for(model: Any, size: int, y: Any = None, *, of_data: Tensor | None = None) -> Tensor | None:
    """The labels at which to draw from a model, (size,) or (size, label_dim); None if it needs none.

    Args:
        model: a model.
        size: number of labels.
        y: requested labels; None repeats those of the data or, without data, the classes in turn.
        of_data: labels of available data, -1 for unknown ones.

    Raises:
        InputError: the labels do not fit the model, or a model of label vectors has none to draw at.
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


@torch.no_grad()
def prior_variances(
    model: LatentVariableModel, widths: Mapping[str, int], y: Tensor | None = None, draws: int = 1000
) -> Tensor:
    """The prior variance of each dimension of some latent sites, concatenated, (dimensions,).

    Args:
        model: any latent-variable model.
        widths: number of dimensions by site; auxiliary sites of the guide, which have no prior, get variance 1.
        y: labels of the data, for conditional models.
        draws: number of draws from the prior.
    """
    _, latents = simulate(model, draws, labels_for(model, draws, of_data=y))
    ones = as_numbers(model, torch.ones(()), "x")
    return torch.cat(
        [
            latents[site].to(ones).reshape(draws, -1).var(0) if site in latents else ones.expand(width)
            for site, width in widths.items()
        ]
    )


def repeated(rows: Tensor, count: int) -> Tensor:
    """The rows of a batch repeated, (count * batch, ...)."""
    return rows.repeat(count, *[1] * (rows.dim() - 1))


def posterior_means(model: LatentVariableModel, inputs: Inputs, draws: int) -> dict[str, Tensor]:
    """The mean of each latent site under the guide, (batch, ...), averaging `site_means` over draws.

    Args:
        model: any latent-variable model.
        inputs: x, y, mask.
        draws: number of draws of the guide's sites per datapoint.
    """
    found: dict[str, list[Tensor]] = {}
    at_once = draws if model.vectorises and not model.global_sites else 1
    for part in zip(*(_split(each, len(inputs[0])) for each in inputs), strict=True):
        runs = []
        for _ in range(draws // at_once):
            with model.given(model.global_draw(part)):
                # The guide takes the model's place, so that nothing is decoded.
                runs.append(weigh(model.infer, model.infer, *part, particles=at_once))
        for site in [site for site in runs[0].latents if site != NOISE]:
            found.setdefault(site, []).append(torch.cat([site_means(weights, site) for weights in runs]).mean(0))
    return {site: torch.cat(parts) for site, parts in found.items()}


@dataclass(frozen=True)
class Draws:
    """Draws of a batch from q(z | x), including one state of every enumerated site; nats.

    Attributes:
        log_weights: log p(x, z) - log q(z | x), (draws, batch), with enumerated sites summed out, for log p(x) and
            k-hat.
        log_likelihood: log p(x | z), (draws, batch).
        log_prior: log p(z) over all sites, (draws, batch).
        log_posterior: log q(z | x) over all sites, (draws, batch).
        latents: the first draws by site, (kept, batch, ...).
        outside: the first draws of sites outside the plate over datapoints, (kept, ...), which the others are given.
    """

    log_weights: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    latents: dict[str, Tensor]
    outside: dict[str, Tensor] = field(default_factory=dict)

    @property
    def log_weights_of_states(self) -> Tensor:
        """log p(x, z) - log q(z | x) at the drawn states too, (draws, batch), for weighting the draws themselves."""
        return self.log_likelihood + self.log_prior - self.log_posterior


@torch.no_grad()
def draw(
    model: LatentVariableModel,
    inputs: Inputs,
    draws: int,
    *,
    keep: int | None = None,
    guide: Program | None = None,
    max_elements: int = MAX_ELEMENTS,
) -> Draws:
    """Draws from q(z | x), or from another guide, for each datapoint.

    Args:
        model: a fitted model.
        inputs: x, y, mask.
        draws: number of draws per datapoint.
        keep: number of draws whose latents are kept; None for all.
        guide: guide to use instead of the model's.
        max_elements: largest number of elements decoded at a time.
    """
    single = not model.vectorises or bool(model.global_sites)
    at_once = 1 if single else max(1, max_elements // inputs[0].numel())
    kept, outside = draws if keep is None else keep, []
    found: dict[str, Tensor] = {}
    latents: dict[str, Tensor] = {}
    for start in range(0, draws, at_once):
        values = model.global_draw(inputs)
        rows = slice(start, min(start + at_once, draws))
        with model.given(values):
            weights = weigh(model.generate, guide or model.infer, *inputs, particles=rows.stop - start)
            weights.require_posterior()
            part = _scored(weights)
        # Written in place, because small results between large intermediate ones would fragment memory.
        for name in SCORES:
            _write(found, name, rows, draws, getattr(part, name))
        for site, value in part.latents.items():
            _write(latents, site, rows, kept, value)
        outside.append({site: values[site] for site in model.global_sites})
    return Draws(
        **found,
        latents=latents,
        outside={site: torch.stack([values[site] for values in outside])[:kept] for site in outside[0]},
    )


def _write(into: dict[str, Tensor], name: str, rows: slice, count: int, values: Tensor) -> None:
    """Writes rows of the first `count` into a tensor that is made with the first of them."""
    if name not in into:
        into[name] = values.new_empty(count, *values.shape[1:])
    into[name][rows] = values[: max(0, count - rows.start)]


@torch.no_grad()
def log_weights_at(model: LatentVariableModel, inputs: Inputs, latents: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """log p(x, z) - log q(z | x) and log p(x, z) at given latents, (batch,) each, nats.

    Args:
        model: a model whose posterior can score values that it did not draw.
        inputs: x, y, mask.
        latents: values of every site of the guide, (batch, ...).
    """
    held = poutine.Trace()
    for site, value in latents.items():
        held.add_node(site, name=site, type="sample", is_observed=False, value=value, infer={})
    scored = _scored(weigh(model.generate, poutine.replay(model.infer, trace=held), *inputs))
    return scored.log_weights_of_states[0], (scored.log_likelihood + scored.log_prior)[0]


def joined(parts: list[Draws]) -> Draws:
    """Concatenates the draws of consecutive batches."""
    return Draws(
        **{name: torch.cat([getattr(part, name) for part in parts], 1) for name in SCORES},
        latents={site: torch.cat([part.latents[site] for part in parts], 1) for site in parts[0].latents},
        outside=parts[0].outside,
    )


def decoded(model: LatentVariableModel, latents: Mapping[str, Tensor], y: Tensor | None, shape: Iterable[int]) -> Any:
    """The likelihood p(x | latents) of datapoints of a shape (..., batch), also where no latent or label has it."""
    likelihood: Any = model.decode(latents, y)
    return likelihood if latents else likelihood.expand(torch.Size(shape))


@torch.no_grad()
def log_posterior_of(
    model: LatentVariableModel, inputs: Inputs, latents: Mapping[str, Tensor], max_elements: int = MAX_ELEMENTS
) -> Tensor:
    """log q(z_i | x_j) over all sites, (draws, batch), nats.

    Args:
        model: a model whose posterior can score values that it did not draw.
        inputs: x, y, mask of the batch.
        latents: values by site, (draws, *shape), scored for every datapoint, or (draws, batch, *shape).
        max_elements: largest number of elements scored at a time.
    """
    x = inputs[0]
    count = len(next(iter(latents.values())))
    dims = {site: node["fn"].event_dim for site, node in _guide_sites(model, inputs).items()}
    width = sum(value[0].numel() for value in latents.values())
    at_once = max(1, max_elements // (len(x) * max(width, 1))) if model.vectorises else 1
    rows = []
    for start in range(0, count, at_once):
        values = {}
        for site, value in latents.items():
            part = value[start : start + at_once]
            if part.dim() == dims[site] + 1:
                part = part.unsqueeze(1).expand(len(part), len(x), *part.shape[1:])
            values[site] = part if model.vectorises else part[0]
        number = len(next(iter(values.values())))
        with pyro.plate("particles", number, dim=-2) if model.vectorises else nullcontext():
            trace: Any = poutine.trace(poutine.condition(model.infer, data=values)).get_trace(*inputs)
        scored = total(trace.nodes[site]["fn"].log_prob(values[site]) for site in values)
        rows.append(scored if model.vectorises else scored.unsqueeze(0))
    return torch.cat(rows)


def _guide_sites(model: LatentVariableModel, inputs: Inputs) -> dict[str, Any]:
    trace: Any = prune_subsample_sites(poutine.trace(model.infer).get_trace(*inputs))
    return {site: trace.nodes[site] for site in trace.stochastic_nodes}


def _scored(weights: Weights) -> Draws:
    """The draws of one pass, with one state of every enumerated site drawn per particle, without auxiliary sites."""
    log_weights = weights.log_weights()
    terms: dict[str, Any] = {
        "log_likelihood": weights.log_likelihood,
        "log_prior": weights.log_prior_of_all,
        "log_posterior": weights.log_guide,
    }
    log_states = weights.log_states()
    if log_states is None:
        spread: dict[str, Any] = {name: term.expand_as(log_weights) for name, term in terms.items()}
        return Draws(log_weights, **spread, latents={site: weights.latents[site] for site in weights.log_prior})
    shape = torch.broadcast_shapes(log_states.shape, *(term.shape for term in terms.values()))
    flat = log_states.expand(shape).flatten(0, -3)
    index = dist.Categorical(logits=flat.movedim(0, -1)).sample()

    def chosen(values: Tensor, event_dims: int = 0) -> Tensor:
        event = values.shape[values.dim() - event_dims :]
        spread = values.expand((*shape, *event)).flatten(0, len(shape) - 3)
        at = index.reshape(1, *index.shape, *[1] * event_dims).expand(1, *index.shape, *event)
        return spread.gather(0, at).squeeze(0)

    latents = {
        site: chosen(weights.latents[site], weights.guide_trace.nodes[site]["fn"].event_dim)
        for site in weights.log_prior
    }
    terms = {name: chosen(term) for name, term in terms.items()}
    return Draws(log_weights, **terms, latents=latents)


@torch.no_grad()
def weighted_draws(
    model: LatentVariableModel, inputs: Inputs, particles: int, guide: Program | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted draws of the latents given the observed entries of x.

    They are drawn from q(z | x) and weighted by p(x, z) / q(z | x) if the encoder was trained with missing entries, or
    if the posterior can score only its own draws. Otherwise half of them are drawn from the prior, and all are weighted
    by p(x, z) / (q(z | x) / 2 + p(z) / 2), so that no weight exceeds twice the likelihood, however wrong the encoder is
    (Veach and Guibas 1995; Owen and Zhou 2000). For sites that are summed out, one state is drawn.

    Args:
        model: any latent-variable model.
        inputs: x, y, mask.
        particles: number of draws, rounded up to an even one if half of them come from the prior.
        guide: guide from which all of them are drawn instead.

    Returns:
        Log-weights (particles, batch), and latents by site (particles, batch, ...).
    """
    if guide is not None or model.sees_gaps or not model.scores_any_value:
        drawn = draw(model, inputs, particles, guide=guide)
        return drawn.log_weights_of_states, drawn.latents
    prior = poutine.block(model.generate, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])
    half = -(-particles // 2)
    of_q, of_p = (weigh(model.generate, guide, *inputs, particles=half) for guide in (model.infer, prior))
    values = {site: of_p.guide_trace.nodes[site]["value"] for site in of_p.latents}
    both = [_scored(of_q), _scored(of_p)]
    log_q = [both[0].log_posterior, of_q.log_posterior_at(values)]
    log_weights = [
        drawn.log_likelihood + drawn.log_prior - torch.logaddexp(log_posterior, drawn.log_prior) + math.log(2)
        for drawn, log_posterior in zip(both, log_q, strict=True)
    ]
    return torch.cat(log_weights), {site: torch.cat([each.latents[site] for each in both]) for site in both[0].latents}


def resampled(
    model: LatentVariableModel, inputs: Inputs, particles: int, draws: int = 1, guide: Program | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Draws from p(z | observed entries of x) by sampling importance resampling (Rubin 1988).

    The draws are exact in the limit of many particles.

    Args:
        model: any latent-variable model.
        inputs: x, y, mask.
        particles: number of `weighted_draws` from which each draw is resampled.
        draws: number of draws per datapoint, all from the same particles.
        guide: guide from which the particles are drawn, as in `weighted_draws`.

    Returns:
        Latents by site, (draws, batch, ...), and the log-weights of the particles, (particles, batch).

    Raises:
        InputError: the weights of a datapoint are not finite.
    """
    log_weights, proposed = weighted_draws(model, inputs, particles, guide)
    if not torch.isfinite(log_weights.logsumexp(0)).all():
        raise InputError("log p(x, z) is not finite at the draws of z for some datapoints, so none can be chosen")
    chosen = dist.Categorical(logits=log_weights.T).sample(torch.Size([draws]))
    rows = torch.arange(log_weights.shape[1], device=log_weights.device)
    return {site: value[chosen, rows] for site, value in proposed.items()}, log_weights


def site_means(weights: Weights, site: str) -> Tensor:
    """The mean of a latent site under the guide given each draw of the sites before it, (particles, batch, ...).

    A mean without closed form is replaced by the draw itself. States that are summed out are averaged by probability.
    """
    fn, draws = weights.guide_trace.nodes[site]["fn"], weights.latents[site]
    try:
        mean = weights.with_particles(fn.mean, fn.event_dim)
    except NotImplementedError:
        mean = draws
    mean = torch.where(torch.isnan(mean).any(), draws, mean)  # a Student-t with few degrees of freedom has no mean
    return weights.expect(mean, fn.event_dim)


def _split(field: Tensor | None, size: int) -> Sequence[Tensor | None]:
    return field.split(AT_ONCE) if field is not None else [None] * -(-size // AT_ONCE)
