"""The one place where a Pyro pair is run and scored: particles, importance weights and KL terms per datapoint."""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence

from pyrolatent.errors import InputError
from pyrolatent.models.latent import LatentVariableModel

Program = Callable[..., Any]
Score = Literal["full", "frozen", "held"]


class Plate(NamedTuple):
    """The plate over datapoints.

    Attributes:
        name: of the plate.
        dim: its dimension, from the right.
        nesting: number of dimensions that plates take; the particles stand to the left of them.
    """

    name: str = "data"
    dim: int = -1
    nesting: int = 1


@dataclass(frozen=True)
class Weights:
    """Draws from a guide, scored under the model when asked, never summed over datapoints.

    Sites that the guide marks `infer={"enumerate": "parallel"}` are not drawn but run over all their states, in
    dimensions to the left of the particles; their sum is part of what the properties below return.

    Attributes:
        model_trace: the model replayed on the guide's draws.
        guide_trace: the guide's draws.
        rerun: runs the guide again on given values of its sites.
        plate: over the datapoints; log-probabilities are summed over any plates inside it.
        scale: by which every site of the plate is scaled, as a plate that subsamples does; it belongs outside of any
            logarithm of a mean, so no property here has it in, and objectives multiply by it at the end.
    """

    model_trace: Any
    guide_trace: Any
    rerun: Callable[[dict[str, Tensor]], Any]
    plate: Plate
    scale: float | Tensor = 1.0

    @cached_property
    def latents(self) -> dict[str, Tensor]:
        """Draws by latent site, (particles, batch, ...); all states, (states, 1, 1, ...), where enumerated."""
        return {site: self.guide_trace.nodes[site]["value"] for site in self.guide_trace.stochastic_nodes}

    @cached_property
    def log_prior(self) -> dict[str, Tensor]:
        """log p(z) by latent site, (..., particles, batch), nats."""
        return {site: self._log_prob(self.model_trace.nodes[site]) for site in self.latents}

    @cached_property
    def log_posterior(self) -> dict[str, Tensor]:
        """log q(z | x) by latent site, (..., particles, batch), nats."""
        return {site: self._log_prob(self.guide_trace.nodes[site]) for site in self.latents}

    @cached_property
    def log_posterior_frozen(self) -> dict[str, Tensor]:
        """log q(z | x) by latent site with the guide's parameters held: its gradient goes through the draws alone.

        The guide is run again, since the distribution of a lower site depends on the draws of those above it, and
        holding its loc and scale would cut that path too.
        """
        parameters = _leaves(self.log_posterior.values())
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            trace = self.rerun({site: self.model_trace.nodes[site]["value"] for site in self.latents})
            return {site: self._log_prob(trace.nodes[site]) for site in self.latents}
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    @cached_property
    def log_posterior_held(self) -> dict[str, Tensor]:
        """log q(z | x) by latent site with the draws held: its gradient goes through the guide's parameters alone."""
        if not any(draws.requires_grad for draws in self.latents.values()):
            return self.log_posterior
        trace = self.rerun({site: draws.detach() for site, draws in self.latents.items()})
        return {site: self._log_prob(trace.nodes[site]) for site in self.latents}

    @cached_property
    def log_likelihood(self) -> Tensor:
        """log p(x | z) over all observed sites, (..., particles, batch), nats."""
        return _total(self._log_prob(self.model_trace.nodes[site]) for site in self.model_trace.observation_nodes)

    @cached_property
    def log_enumerated(self) -> Tensor | None:
        """log q over the enumerated sites, (states..., particles, batch), nats; None if there are none."""
        sites = [site for site in self.latents if "_enumerate_dim" in self.guide_trace.nodes[site]["infer"]]
        return _total(self.log_posterior[site] for site in sites) if sites else None

    @property
    def without_path(self) -> list[str]:
        """Sites through whose draws no gradient goes: discrete or not reparameterised, and not summed out."""
        nodes = self.guide_trace.nodes
        summed = "_enumerate_dim"
        return [s for s in self.latents if not nodes[s]["fn"].has_rsample and summed not in nodes[s]["infer"]]

    @property
    def log_joint(self) -> Tensor:
        """log p(x, z), (..., particles, batch), nats."""
        return self.log_likelihood + _total(self.log_prior.values())

    @property
    def log_guide(self) -> Tensor:
        """log q(z | x) over all sites, (..., particles, batch), nats."""
        return _total(self.log_posterior.values())

    def log_ratio(self, beta: float | Tensor = 1.0, *, score: Score = "full") -> Tensor:
        """log p(x | z) + beta (log p(z) - log q(z | x)), (..., particles, batch); beta = 1 makes a bound.

        Args:
            beta: factor of the log-ratio of prior and posterior.
            score: which gradient log q has: through its parameters and the draws, through the draws alone ("frozen")
                or through the parameters alone ("held").
        """
        log_posterior = {
            "full": lambda: self.log_posterior,
            "frozen": lambda: self.log_posterior_frozen,
            "held": lambda: self.log_posterior_held,
        }[score]()
        ratio = _total(self.log_prior[site] - log_posterior[site] for site in self.latents)
        return self.log_likelihood + beta * ratio

    def log_weights(self, beta: float | Tensor = 1.0, *, score: Score = "full") -> Tensor:
        """log w = log sum_s q(s) exp(log_ratio), (particles, batch): enumerated states s are summed out exactly."""
        ratio = self.log_ratio(beta, score=score)
        if self.log_enumerated is None:
            return ratio
        # A state of probability 0 adds nothing, though its ratio is infinite.
        terms = torch.where(self.log_enumerated == -math.inf, -math.inf, ratio + self.log_enumerated)
        return terms.flatten(0, -3).logsumexp(0)

    def scale_paths(self, factor: Tensor) -> None:
        """Multiplies the gradient that reaches the guide through the draws, once whatever the guide's layers.

        Args:
            factor: (particles, batch).
        """
        for site in self.latents:
            node = self.model_trace.nodes[site]
            if node["value"].requires_grad:
                dim, nesting = self.plate.dim, self.plate.nesting
                plates = (1,) * (nesting + dim) + factor.shape[-1:] + (1,) * (-1 - dim)
                shaped = factor.reshape(factor.shape[:-1] + plates + (1,) * node["fn"].event_dim)
                node["value"].register_hook(lambda gradient, shaped=shaped: gradient * shaped)

    def expect(self, values: Tensor, event_dims: int = 0) -> Tensor:
        """sum_s q(s) values, (particles, batch, ...): the mean over enumerated states s.

        Args:
            values: (..., particles, batch, *event).
            event_dims: number of its dimensions behind the batch.
        """
        if self.log_enumerated is None:
            return values
        probability = self.log_enumerated.exp().reshape(self.log_enumerated.shape + (1,) * event_dims)
        return (probability * values).flatten(0, -3 - event_dims).sum(0)

    @cached_property
    def kl(self) -> dict[str, Tensor]:
        """KL(q(z | x) || p(z)) by latent site, (..., particles, batch), nats.

        Closed form where one is known and is this expectation, else its estimate log q(z | x) - log p(z).
        """
        return {site: self._kl(site) for site in self.latents}

    def has_closed_kl(self, site: str) -> bool:
        """Whether the expectation of log q - log p over the site, others held, is KL(q || p).

        It is if whatever the model draws before the site the guide has drawn before it too. Else, as for
        p(z1 | z2) with q(z1 | x) q(z2 | z1), the prior changes with the very draw that is averaged over.
        """
        before = [trace.stochastic_nodes for trace in (self.model_trace, self.guide_trace)]
        above_in_model, above_in_guide = (set(names[: names.index(site)]) for names in before)
        return above_in_model <= above_in_guide

    def _kl(self, site: str) -> Tensor:
        prior, posterior = self.model_trace.nodes[site], self.guide_trace.nodes[site]
        closed = closed_kl(posterior["fn"], prior["fn"]) if self.has_closed_kl(site) else None
        if closed is None:
            return self.log_posterior[site] - self.log_prior[site]
        return self._by_datapoint(scale_and_mask(closed, 1.0, posterior["mask"]))

    def _log_prob(self, site: Any) -> Tensor:
        return self._by_datapoint(scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"]))

    def _by_datapoint(self, values: Tensor) -> Tensor:
        """Sums over the plates inside the datapoints', (..., particles, batch)."""
        inside = [dim for dim in range(-self.plate.nesting, 0) if dim != self.plate.dim]
        return values.sum(inside) if inside else values


def closed_kl(posterior: Any, prior: Any) -> Tensor | None:
    """KL(posterior || prior) in closed form, of their common batch shape; None where no form is known."""
    # Some of torch's closed forms take no broadcasting.
    shape = torch.broadcast_shapes(posterior.batch_shape, prior.batch_shape)
    try:
        return kl_divergence(posterior.expand(shape), prior.expand(shape))
    except NotImplementedError:
        return None


def weigh(
    model: Program, guide: Program, *args: Any, particles: int = 1, plate: Plate | None = None, **kwargs: Any
) -> Weights:
    """Draws every latent from the guide and scores the draws under the guide and the model.

    Args:
        model: generative function whose sites all lie in one plate over datapoints.
        guide: function with the same arguments that samples the model's latent sites, in the same plate.
        *args: arguments of both: x, y, mask for the models of this package.
        particles: number K of draws for each datapoint, in one vectorised pass.
        plate: over the datapoints; None finds it, by one more run of a pair that is not a model of this package.
        **kwargs: keyword arguments of both.

    Raises:
        InputError: a latent site that only one of the two has, a site outside the plate, or sites of different scales.
    """
    plate = plate or find_plate(model, guide, *args, **kwargs)
    guide_trace = _trace(poutine.enum(guide, first_available_dim=-plate.nesting - 2), particles, plate, args, kwargs)
    draws = _seen_by_the_model(guide_trace)
    model_trace = _trace(poutine.replay(model, trace=draws), particles, plate, args, kwargs)
    latents = {"guide": {*guide_trace.stochastic_nodes}, "model": {*model_trace.stochastic_nodes}}
    for one, other in (("guide", "model"), ("model", "guide")):
        for site in latents[one] - latents[other]:
            raise InputError(f"the {one} samples the latent site {site!r}, but the {other} does not")

    def rerun(values: dict[str, Tensor]) -> Any:
        given = guide_trace.copy()
        for site, value in values.items():
            given.nodes[site] = {**given.nodes[site], "value": value}
        return _trace(poutine.replay(guide, trace=given), particles, plate, args, kwargs)

    return Weights(model_trace, guide_trace, rerun, plate, _common_scale(model_trace, guide_trace))


def find_plate(model: Program, guide: Program, *args: Any, name: str | None = None, **kwargs: Any) -> Plate:
    """The plate over datapoints of a Pyro pair: the one that all sites share, or the one of this name.

    Raises:
        InputError: sites outside of it, by name, or several plates that all sites share.
    """
    owner = getattr(model, "owner", getattr(model, "__self__", None))
    if isinstance(owner, LatentVariableModel) and name in (None, "data"):
        return Plate()
    devices = {value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        guide_trace: Any = prune_subsample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
        replayed = poutine.trace(poutine.replay(model, trace=guide_trace))
        model_trace: Any = prune_subsample_sites(replayed.get_trace(*args, **kwargs))
    plates: dict[str, set[str]] = {}
    dims: dict[str, int] = {}
    for trace in (guide_trace, model_trace):
        for site, node in trace.nodes.items():
            if node["type"] == "sample":
                frames = {frame.name: frame.dim for frame in node["cond_indep_stack"] if frame.vectorized}
                plates[site] = plates.get(site, {*frames}) & {*frames}
                dims |= frames
    common = set.intersection(*plates.values()) if name is None else {name}
    candidates = common or dims
    if len(candidates) != 1:
        listed = ", ".join(map(repr, sorted(candidates))) or "none"
        raise InputError(
            f"the plate over datapoints cannot be told: {'all' if common else 'some'} sites lie in {listed}; "
            "put every site into one plate, or name it with plate=..."
        )
    (found,) = candidates
    if found not in dims:
        raise InputError(f"there is no plate {found!r} over datapoints; the vectorised ones are {sorted(dims)}")
    outside = [site for site in plates if found not in plates[site]]
    if outside:
        raise InputError(
            f"the site {outside[0]!r} lies outside the plate {found!r}, so that datapoints would be weighed jointly; "
            "move it into the plate, or train with Pyro's Trace_ELBO"
        )
    return Plate(found, dims[found], -min(dims.values()))


def _seen_by_the_model(guide_trace: Any) -> Any:
    """The guide's trace with its draws as views, so that gradients from the model can be told from those inside."""
    draws = guide_trace.copy()
    for site in draws.stochastic_nodes:
        node = draws.nodes[site]
        if node["value"].requires_grad:
            draws.nodes[site] = {**node, "value": node["value"].view_as(node["value"])}
    return draws


def _leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors that a gradient of these would be accumulated in."""
    found: dict[int, Tensor] = {}
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        for function, _ in node.next_functions:
            if function is not None and function not in seen:
                seen.add(function)
                waiting.append(function)
    return list(found.values())


def _common_scale(*traces: Any) -> float | Tensor:
    sites = [site for trace in traces for site in trace.nodes.values() if site["type"] == "sample"]
    scale = sites[0]["scale"]
    for site in sites:
        if site["scale"] is not scale and bool(torch.as_tensor(site["scale"] != scale).any()):
            raise InputError(
                f"the site {site['name']!r} is scaled by {site['scale']} and {sites[0]['name']!r} by {scale}; a scale "
                "that is not common to all sites is no part of a bound, so leave poutine.scale out or put it on all"
            )
    return scale


def _trace(program: Program, particles: int, plate: Plate, args: Any, kwargs: Any) -> Any:
    with pyro.plate("particles", particles, dim=-plate.nesting - 1):
        return prune_subsample_sites(poutine.trace(program).get_trace(*args, **kwargs))


def _total(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


def arguments(
    model: Any, batch: tuple[Tensor, Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What a model is called with to score a minibatch (x, y, mask): without labels if it is no model of x given y."""
    x, y, mask = batch
    return x, y if model.conditional else None, mask


def training_arguments(
    model: Any, batch: tuple[Tensor, Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What a model is called with in training: with the labels if it has any use for them."""
    x, y, mask = batch
    return x, y if model.label_dim else None, mask
