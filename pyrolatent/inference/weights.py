"""Running and scoring a Pyro pair: particles, importance weights and KL terms per datapoint."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from pyrolatent.errors import InputError
from pyrolatent.models.components.distributions import innermost
from pyrolatent.models.isolation import statistics_held
from pyrolatent.models.latent import owner_of
from pyrolatent.models.plates import ParticlePlate, lies_in

Program = Callable[..., Any]
Score = Literal["full", "frozen", "held"]

PARTICLES = "_pyrolatent_particles"
DEEPER = (
    "the sites lie in {} nested plates, but there was room for {}; give both functions the same plates in every run, "
    "or set a larger max_plate_nesting"
)


class Plate(NamedTuple):
    """The plate over datapoints.

    Attributes:
        name: name of the plate; None if the whole program is one datapoint.
        dim: its dimension, negative, from the right.
        nesting: number of dimensions of all plates; the particles are to the left of them.
        size: number of datapoints in it.
        scale: number of all datapoints that it declares, divided by those in it.
    """

    name: str | None = "data"
    dim: int = -1
    nesting: int = 1
    size: int = 1
    scale: float = 1.0


class _Scored(NamedTuple):
    """log q of a run of the guide, (..., particles, batch), by site, and of the states that are summed out."""

    sites: dict[str, Tensor]
    states: dict[str, Tensor]


@dataclass(frozen=True)
class Weights:
    """Draws from a guide, scored under the model on demand and never summed over datapoints.

    Sites that the guide marks `infer={"enumerate": "parallel"}` are not drawn but run over all their states, in
    dimensions to the left of the particles, and the properties below sum over them. With `infer={"num_samples": n}`
    they are drawn n times there, and the mean over these draws replaces the sum.

    Sites outside the plate, such as the weights of a Bayesian decoder, are global: they are drawn once for all
    particles, and each of the B datapoints counts a share 1/B of their terms, so that sums over the plate count them
    once:

        log w_nk = log p(x_n, z_nk | u) - log q(z_nk | x_n, u) + (1/B) (log p(u) - log q(u)),  u ~ q(u)

    log (1/K) sum_k w_nk, summed over n, is then log p(u) - log q(u) above a bound for each u, and so itself a bound.

    Attributes:
        model_trace: the model replayed on the guide's draws.
        guide_trace: the guide's draws.
        seen: the draws by latent site as passed to the model and to reruns of the guide: views, so that their gradients
            are separate from those within the guide's first run.
        rerun: runs the guide again on given values of its sites, replaying all other randomness.
        plate: the plate over datapoints; log-probabilities are summed over any plates inside it.
        particles: number K of draws; a single one has no plate in the traces.
        scale: the scale of all sites in the plate, as of a plate that subsamples. It must stay outside of logarithms of
            means, so no property here includes it, and objectives multiply by it at the end. None if sites differ in
            scale; all properties then include their scales, relative to that of the plate, which is valid only for
            linear functions of them.
        with_terms: whether `log_observed` counts what the guide observes, as training does and evidence does not.
    """

    model_trace: Any
    guide_trace: Any
    seen: dict[str, Tensor]
    rerun: Callable[[dict[str, Tensor]], Any]
    plate: Plate
    particles: int = 1
    scale: float | Tensor | None = 1.0
    with_terms: bool = False

    @cached_property
    def latents(self) -> dict[str, Tensor]:
        """Draws by latent site, (particles, batch, ...); for enumerated sites all states, (states, 1, 1, ...)."""
        nodes = self.guide_trace.nodes
        return {
            site: self.with_particles(nodes[site]["value"], nodes[site]["fn"].event_dim)
            for site in self.guide_trace.stochastic_nodes
        }

    @cached_property
    def summed_out(self) -> list[str]:
        """Sites whose states, or `num_samples` draws, have a dimension of their own."""
        return [site for site in self.latents if "_enumerate_dim" in self.guide_trace.nodes[site]["infer"]]

    @cached_property
    def _states(self) -> set[int]:
        """Dimensions of the states that are summed out, from the right."""
        return {self.guide_trace.nodes[site]["infer"]["_enumerate_dim"] for site in self.summed_out}

    @cached_property
    def drawn(self) -> list[str]:
        """Sites that are drawn, one value per particle (and per state of the sites that they depend on)."""
        return [site for site in self.latents if site not in self.summed_out]

    @cached_property
    def outside(self) -> list[str]:
        """Latent sites outside the plate over datapoints."""
        return [site for site in self.latents if self._is_outside(self.guide_trace.nodes[site])]

    def _is_outside(self, node: Any) -> bool:
        return self.plate.name is not None and not lies_in(self.plate.name, node)

    @cached_property
    def sampled_inside(self) -> list[str]:
        """Sites in `summed_out` that have `num_samples` draws instead of all states."""
        return [site for site in self.summed_out if self.guide_trace.nodes[site]["infer"].get("num_samples")]

    @cached_property
    def terms(self) -> list[str]:
        """Factors and observed sites of the guide, which training counts with a minus sign."""
        return _observed(self.guide_trace)

    def require_posterior(self) -> None:
        """Requires q to be a distribution of each latent, as evidence and calibration do.

        Raises:
            InputError: the guide has a point in place of a density. A transformed draw of an auxiliary site, a point
                that the model has too, and a state are none.
        """
        if len(self.log_prior) < len(self.latents):
            return
        for site in self.drawn:
            prior, posterior = (trace.nodes[site]["fn"] for trace in (self.model_trace, self.guide_trace))
            point = isinstance(innermost(posterior), dist.Delta) and not isinstance(innermost(prior), dist.Delta)
            if point and not prior.support.is_discrete:
                raise InputError(
                    f"the guide has a point (Delta) in place of a distribution of {site!r}, which trains but has no "
                    "evidence, weights or calibration; let the guide draw it, as from a Normal"
                )

    @property
    def without_path(self) -> list[str]:
        """Sites without gradients through their draws: discrete or not reparameterised, and not summed out."""
        nodes = self.guide_trace.nodes
        return [site for site in self.drawn + self.sampled_inside if not nodes[site]["fn"].has_rsample]

    @cached_property
    def log_prior(self) -> dict[str, Tensor]:
        """log p(z) by latent site, (..., particles, batch), nats; excludes auxiliary sites of the guide."""
        nodes = self.model_trace.nodes
        return {site: self._log_prob(nodes[site]) for site in self.latents if site in nodes}

    @cached_property
    def log_posterior(self) -> dict[str, Tensor]:
        """log q(z | x) by latent site, (..., particles, batch), nats."""
        return self.log_guide_sites("full")

    def log_guide_sites(self, score: Score) -> dict[str, Tensor]:
        """log q by site, including sites that the guide observes, (..., particles, batch), nats.

        Args:
            score: which gradient they have. "full": through the parameters and the draws. "frozen": for drawn sites
                only through the draws, as passed to the model; for states and observed sites through both. "held": only
                through the parameters.
        """
        return self._by_score(score).sites

    def _by_score(self, score: Score) -> "_Scored":
        if score == "full":
            return self._full
        return self._frozen if score == "frozen" else self._held

    @cached_property
    def _full(self) -> "_Scored":
        return self._scored(self.guide_trace)

    @cached_property
    def _frozen(self) -> "_Scored":
        # The guide is run again, since the distribution of a lower site depends on the draws of those above it, and
        # detaching its parameters would cut that path too.
        parameters = _leaves([*self._full.sites.values(), *self._full.states.values()])
        live = self._scored(self.rerun(self.seen)) if self.summed_out or self.terms else _Scored({}, {})
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            frozen = self._scored(self.rerun(self.seen)).sites
            if self.outside:  # for the sites of each datapoint, a global latent is a parameter
                held = {site: value.detach() if site in self.outside else value for site, value in self.seen.items()}
                of_datapoints = self._scored(self.rerun(held)).sites
                frozen = of_datapoints | {site: frozen[site] for site in self.outside}
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)
        views = {value.grad_fn for value in self.seen.values()}
        if _leaves([frozen[site] for site in self.drawn], views):
            raise InputError(
                "the guide's distributions depend on tensors that were computed outside of it, so that running it "
                "again does not score its draws with its parameters held; compute them in the guide, or use iwae"
            )
        return _Scored(frozen | {site: live.sites[site] for site in self.summed_out + self.terms}, live.states)

    @cached_property
    def _held(self) -> "_Scored":
        nodes = self.guide_trace.nodes
        if not any(nodes[site]["value"].requires_grad for site in self.latents):
            return self._full
        return self._scored(self.rerun({site: nodes[site]["value"].detach() for site in self.latents}))

    def hold_to_rerun(self) -> None:
        """Refuses a guide whose rerun gives its draws other probabilities."""
        for score in ("_frozen", "_held"):
            for site, again in getattr(vars(self).get(score), "sites", {}).items():
                if not torch.allclose(self._full.sites[site].detach(), again.detach(), rtol=1e-3, atol=1e-3):
                    raise InputError(
                        f"the guide gives the draws of {site!r} another probability when it is run again: it keeps "
                        "state from run to run or draws noise outside of torch; leave that out, or use iwae"
                    )

    def log_posterior_at(self, values: dict[str, Tensor]) -> Tensor:
        """`log_guide` at other values, as many as there are draws."""
        scored = self._scored(self.rerun(values)).sites
        return total([self._zero, *(scored[site] for site in self.latents)])

    @cached_property
    def log_likelihood(self) -> Tensor:
        """log p(x | z) over all observed sites, (..., particles, batch), nats."""
        nodes = [self.model_trace.nodes[site] for site in _observed(self.model_trace)]
        if not nodes:
            return next(iter(self.latents.values()), torch.zeros(())).new_zeros(1, 1)
        return total(map(self._log_prob, nodes))

    def log_observed(self, score: Score = "full") -> Tensor:
        """log p(x | z), less what the guide observes if `with_terms`, (..., particles, batch), nats."""
        if not (self.with_terms and self.terms):
            return self.log_likelihood
        sites = self.log_guide_sites(score)
        return self.log_likelihood - total(sites[site] for site in self.terms)

    @property
    def log_joint(self) -> Tensor:
        """log p(x, z), (..., particles, batch), nats."""
        return total([self.log_likelihood, *self.log_prior.values()])

    @property
    def log_prior_of_all(self) -> Tensor:
        """log p(z) over all sites, (..., particles, batch), nats; 0, (1, 1), if there are none."""
        return total([self._zero, *self.log_prior.values()])

    @property
    def log_guide(self) -> Tensor:
        """log q(z | x) over all sites, (..., particles, batch), nats; 0, (1, 1), if there are none."""
        return total([self._zero, *(self.log_posterior[site] for site in self.latents)])

    @property
    def _zero(self) -> Tensor:
        return self.log_likelihood.new_zeros(1, 1)

    def log_states(self, score: Score = "full") -> Tensor | None:
        """log q over the states that are summed out, (states..., particles, batch), nats; None if there are none."""
        if not self.summed_out:
            return None
        return total(self._by_score(score).states.values())

    def log_ratio(self, beta: float | Tensor = 1.0, *, score: Score = "full") -> Tensor:
        """log p(x | z) + beta (log p(z) - log q(z | x)), (..., particles, batch); beta = 1 makes a bound.

        Args:
            beta: factor of the log-ratio of prior and posterior.
            score: the gradient of log q, as in `log_guide_sites`.
        """
        if not self.latents:
            return self.log_observed(score)
        log_q = self.log_guide_sites(score)
        ratio = total(
            self.log_prior[site] - log_q[site] if site in self.log_prior else -log_q[site] for site in self.latents
        )
        return self.log_observed(score) + beta * ratio

    def log_terms(self, beta: float | Tensor = 1.0, *, score: Score = "full") -> Tensor:
        """log of q(s) exp(log_ratio), (states..., particles, batch), the terms of the sum over states s."""
        ratio, log_states = self.log_ratio(beta, score=score), self.log_states(score)
        if log_states is None:
            return ratio
        # A state of probability 0 adds nothing, though its ratio is infinite.
        return torch.where(log_states == -math.inf, -math.inf, ratio + log_states)

    def log_weights(self, beta: float | Tensor = 1.0, *, score: Score = "full") -> Tensor:
        """log w = log sum_s q(s) exp(log_ratio), (particles, batch)."""
        return log_sum_over_states(self.log_terms(beta, score=score))

    def over_draws(self, shares: Tensor) -> Tensor:
        """Sums shares of states and particles over the states that the drawn sites do not depend on.

        Args:
            shares: normalised weights, (states..., particles, batch).

        Raises:
            InputError: some drawn sites depend on states and others do not.
        """
        states = {}
        for site in self.drawn:
            if site in self.outside:
                continue
            node = self.guide_trace.nodes[site]
            lead = self.with_particles(node["value"], node["fn"].event_dim)
            own = lead.shape[: lead.dim() - node["fn"].event_dim - self.plate.nesting - 1]
            states[site] = (1,) * (shares.dim() - 2 - len(own)) + tuple(own)
        if len({*states.values()}) > 1:
            raise InputError(
                f"the draws of {' and '.join(map(repr, states))} depend on different states that are summed out, for "
                "which this estimator is not known; use iwae, or draw all sites after the states"
            )
        return shares.sum_to_size(*next(iter(states.values())), *shares.shape[-2:]) if states else shares

    def scale_paths(self, factor: Tensor) -> None:
        """Multiplies the gradient that reaches the guide through the draws, once for any number of layers.

        The gradient through draws outside the plate stays as it is.

        Args:
            factor: (..., particles, batch).
        """
        dim, nesting = self.plate.dim, self.plate.nesting
        plates = (1,) * (nesting + dim) + factor.shape[-1:] + (1,) * (-1 - dim) if self.plate.name else (1,) * nesting
        lead = factor.shape[: -2 if self.particles == 1 else -1]
        for site, value in self.seen.items():
            if value.requires_grad and site not in self.outside:
                shaped = factor.reshape(lead + plates + (1,) * self.guide_trace.nodes[site]["fn"].event_dim)
                while shaped.dim() > value.dim():
                    shaped = shaped.squeeze(0)
                value.register_hook(lambda gradient, shaped=shaped: gradient * shaped)

    def expect(self, values: Tensor, event_dims: int = 0) -> Tensor:
        """sum_s q(s) values, (particles, batch, ...): the mean over the states s that are summed out.

        Args:
            values: (..., particles, batch, *event).
            event_dims: number of dimensions after the batch.
        """
        log_states = self.log_states()
        if log_states is None:
            return values
        probability = log_states.exp().reshape(log_states.shape + (1,) * event_dims)
        return (probability * values).flatten(0, -3 - event_dims).sum(0)

    @cached_property
    def kl(self) -> dict[str, Tensor]:
        """KL(q(z | x) || p(z)) by latent site, (..., particles, batch), nats.

        In closed form if one is known and is the required expectation, else estimated by log q(z | x) - log p(z).
        """
        return {site: self._kl(site) for site in self.latents}

    def sampled_kl(self, site: str) -> Tensor:
        """log q(z | x) - log p(z) of a latent site, (..., particles, batch), nats."""
        log_q = self.log_posterior[site]
        return log_q - self.log_prior[site] if site in self.log_prior else log_q

    def has_closed_kl(self, site: str) -> bool:
        """Whether the expectation of log q - log p over the site, given the others, is KL(q || p).

        It is if the guide, too, draws before this site everything that the model draws before it. Otherwise, as for
        p(z1 | z2) with q(z1 | x) q(z2 | z1), the prior depends on the draw that is averaged over.
        """
        before = [trace.stochastic_nodes for trace in (self.model_trace, self.guide_trace)]
        if not all(site in names for names in before):
            return False
        above_in_model, above_in_guide = (set(names[: names.index(site)]) for names in before)
        return above_in_model <= above_in_guide

    def _kl(self, site: str) -> Tensor:
        if not self.has_closed_kl(site):
            return self.sampled_kl(site)
        prior, posterior = self.model_trace.nodes[site], self.guide_trace.nodes[site]
        same = _same(prior["mask"], posterior["mask"]) and _same(prior["scale"], posterior["scale"])
        same = same and _same(*(getattr(each["fn"], "_mask", None) for each in (prior, posterior)))
        closed = closed_kl(posterior["fn"], prior["fn"]) if same else None
        return self.sampled_kl(site) if closed is None else self._by_datapoint(closed, posterior)

    def _scored(self, guide_trace: Any) -> "_Scored":
        nodes = guide_trace.nodes
        states = {}
        for site in self.summed_out:
            fn = nodes[site]["fn"]  # a probability is neither masked nor scaled
            fn = fn.base_dist if isinstance(fn, dist.MaskedDistribution) else fn
            states[site] = self._log_prob({**nodes[site], "fn": fn, "scale": 1.0, "mask": None})
            if site in self.sampled_inside:
                states[site] = torch.full_like(states[site], -math.log(nodes[site]["infer"]["num_samples"]))
        return _Scored({site: self._log_prob(nodes[site]) for site in [*self.latents, *self.terms]}, states)

    def _log_prob(self, node: Any) -> Tensor:
        try:
            log_prob = node["fn"].log_prob(node["value"])
        except (KeyError, NotImplementedError) as error:
            raise InputError(
                f"the distribution {type(node['fn']).__name__} of the site {node['name']!r} cannot score a value that "
                "it did not draw itself; declare another one, or use iwae or elbo"
            ) from error
        return self._by_datapoint(log_prob, node)

    def _by_datapoint(self, values: Tensor, node: Any) -> Tensor:
        """Masks values and sums them over plates inside the plate of datapoints, (..., particles, batch).

        Values of a site outside the plate are summed, and have the share of a datapoint, (1, 1).
        """
        outside = self._is_outside(node)
        scale = node["scale"] if outside else 1.0 if self.scale is not None else node["scale"] / self.plate.scale
        values = torch.as_tensor(scale_and_mask(values, scale, node["mask"]))
        known = {*_frames(node).values(), *self._states}
        known |= {-1 - self.plate.nesting} if self.particles > 1 else set()
        if any(values.shape[dim] != 1 and dim not in known for dim in range(-values.dim(), 0)):
            raise InputError(
                f"the site {node['name']!r} has log-probabilities of the shape {tuple(values.shape)}, with dimensions "
                f"that belong to none of its plates {sorted(_frames(node))}; put it into a plate for each of them, or "
                "make them parts of the event with to_event"
            )
        if outside:
            return values.sum().reshape(1, 1) / self._datapoints
        values = self.with_particles(values)
        inside = [dim for dim in range(-self.plate.nesting, 0) if dim != self.plate.dim or self.plate.name is None]
        values = values.sum(inside) if inside else values
        return values if self.plate.name is not None else values.unsqueeze(-1)

    @cached_property
    def _datapoints(self) -> float | Tensor:
        """Number of datapoints, or the sum of their scales."""
        if isinstance(self.scale, Tensor) and self.scale.numel() > 1:
            return self.scale.sum()
        return self.plate.size * self.common_scale

    @property
    def common_scale(self) -> float | Tensor:
        """What objectives multiply sums over the plate by."""
        return self.plate.scale if self.scale is None else self.scale

    def with_particles(self, values: Tensor, event_dims: int = 0) -> Tensor:
        """Reshapes values of a trace to have the dimensions of all plates and of the particles.

        Args:
            values: (*plates, *event), (particles, *plates, *event) or with leading states.
            event_dims: number of dimensions after the plates.
        """
        one = self.particles == 1
        missing = self.plate.nesting + event_dims + (not one) - values.dim()
        values = values.reshape((1,) * missing + values.shape) if missing > 0 else values
        return values.unsqueeze(-1 - self.plate.nesting - event_dims) if one else values


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one or more tensors, which broadcast."""
    return functools.reduce(torch.add, terms)


def sum_over_states(values: Tensor) -> Tensor:
    """The sum over all dimensions before (particles, batch)."""
    return values if values.dim() == 2 else values.flatten(0, -3).sum(0)


def log_sum_over_states(terms: Tensor) -> Tensor:
    """The log-sum-exp over all dimensions before (particles, batch)."""
    return terms if terms.dim() == 2 else terms.flatten(0, -3).logsumexp(0)


def closed_kl(posterior: Any, prior: Any) -> Tensor | None:
    """KL(posterior || prior) in closed form, with their common batch shape; None if no closed form is known."""
    if isinstance(innermost(posterior), dist.Delta):
        return None  # Pyro's formula omits the log-density of the point
    # Some of torch's closed forms do not broadcast.
    shape = torch.broadcast_shapes(posterior.batch_shape, prior.batch_shape)
    try:
        return kl_divergence(posterior.expand(shape), prior.expand(shape))
    except NotImplementedError:
        return None


def weigh(
    model: Program,
    guide: Program,
    *args: Any,
    particles: int = 1,
    plate: str | None = None,
    nesting: int | None = None,
    with_terms: bool = False,
    jointly: bool = False,
    outside: bool = False,
    again: bool = True,
    **kwargs: Any,
) -> Weights:
    """Draws every latent from the guide and scores the draws under the guide and the model.

    Args:
        model: generative function, with all sites in one plate over datapoints.
        guide: function with the same arguments that samples the model's latent sites in the same plate.
        *args: arguments of both: x, y, mask for the models of this package.
        particles: number K of draws per datapoint, in one vectorised pass. A single particle adds no plate, so that
            programs that do not broadcast over particles work.
        plate: name of the plate over datapoints; None takes the one that all sites share. A program without plates is
            one datapoint.
        nesting: number of dimensions of the plates; None finds it by an additional run.
        with_terms: whether to count what the guide observes, as in `Weights`.
        jointly: for linear functions of log-probabilities: sites may differ in scale, and if they share no plate the
            whole program is one datapoint.
        outside: whether latent sites may lie outside the plate, where the plate is known by its name.
        again: whether the guide may be run again, for which all randomness outside of its sites is recorded.
        **kwargs: keyword arguments of both.

    Raises:
        InputError: a latent site occurs in only one of the two, a site lies outside the plate, or scales differ.
    """
    owner = owner_of(model)
    if particles > 1 and owner is not None and not owner.vectorises:
        raise InputError(
            f"{particles} particles were asked for, but the pair runs with one at a time alone; write it for batches "
            "with a dimension more to their left, or use one particle"
        )
    nesting = plate_nesting(model, guide, *args, **kwargs) if nesting is None else nesting
    plate = plate or getattr(owner, "plate", None)
    noise = _Noise()
    guides, models = (_in_particles(program, particles, nesting, plate) for program in (guide, model))
    enumerated = poutine.enum(guides, first_available_dim=-nesting - (1 if particles == 1 else 2))
    with noise if again else nullcontext():
        drawn = poutine.trace(enumerated).get_trace(*args, **kwargs)
    draws, seen = _seen_by_the_model(drawn)
    with _OnlyDrawn({*drawn.stochastic_nodes}):
        replayed = poutine.trace(poutine.replay(models, trace=draws)).get_trace(*args, **kwargs)
    guide_trace, model_trace = (prune_subsample_sites(trace) for trace in (drawn, replayed))
    _hold_to_sites(model_trace, guide_trace, nesting)
    nodes = [*_sites(guide_trace), *_sites(model_trace)]
    found = _plate_of(nodes, nesting, plate, jointly, outside)
    _hold_to_states(nodes, found)

    def rerun(values: dict[str, Tensor]) -> Any:
        if not again:
            raise RuntimeError("the guide was drawn from without keeping what running it again needs")
        given = drawn.copy()
        for site, value in values.items():
            given.nodes[site] = {**given.nodes[site], "value": value}
        with statistics_held(), noise.again():
            return poutine.trace(poutine.replay(guides, trace=given)).get_trace(*args, **kwargs)

    scale = _common_scale(nodes, found, jointly)
    return Weights(model_trace, guide_trace, seen, rerun, found, particles, scale, with_terms)


_nestings: WeakKeyDictionary[nn.Module, dict[Any, int]] = WeakKeyDictionary()


def plate_nesting(model: Program, guide: Program, *args: Any, **kwargs: Any) -> int:
    """Number of dimensions of the plates of a Pyro pair.

    It is found by running the pair, once for the functions of a module and each `form` of their arguments.

    Args:
        model: generative function.
        guide: function with the same arguments.
        *args: arguments of both.
        **kwargs: keyword arguments of both.
    """
    owner = getattr(model, "owner", getattr(model, "__self__", None))
    known = _nestings.setdefault(owner, {}) if isinstance(owner, nn.Module) else {}
    key = getattr(model, "__func__", type(model)), form(args, kwargs)
    if key not in known:
        devices = {value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_cuda}
        with torch.no_grad(), torch.random.fork_rng(devices=devices), statistics_held():
            guide_trace: Any = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace: Any = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        known[key] = _depth([*_sites(guide_trace), *_sites(model_trace)])
    return known[key]


def form(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The form of arguments on which the structure of a program may depend: presence, dimensions of tensors, flags."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dim()
        return value if value is None or isinstance(value, bool | str) else type(value)

    return tuple(map(of, args)), tuple((name, of(value)) for name, value in sorted(kwargs.items()))


def _depth(nodes: list[Any]) -> int:
    return -min((dim for node in nodes for dim in _frames(node).values()), default=0)


def _plate_of(nodes: list[Any], nesting: int, name: str | None, jointly: bool, outside: bool) -> Plate:
    """The plate over datapoints: the one that all sites share, or the one of this name.

    The whole program is one datapoint if it has no plate or, with `jointly`, if its sites share none. With `outside`,
    latent sites may lie outside the plate of this name.
    """
    if _depth(nodes) > nesting:
        raise InputError(DEEPER.format(_depth(nodes), nesting))
    plates = [_frames(node) for node in nodes]
    dims = {frame: dim for frames in plates for frame, dim in frames.items()}
    common = set.intersection(*map(set, plates)) if plates else set()
    if name is None and len(common) == 1:
        (shared,) = common
        return Plate(shared, dims[shared], nesting, *_size_and_scale(nodes, shared, dims[shared]))
    one_by_one = sorted({frame.name for node in nodes for frame in node["cond_indep_stack"] if not frame.vectorized})
    if name is None and (jointly or not (dims or one_by_one)):
        return Plate(None, 0, nesting)
    if name is None and not dims:
        raise InputError(
            f"the plate {one_by_one[0]!r} runs over its datapoints one by one, so that they would be weighed jointly; "
            "write `with pyro.plate(...)` in the place of `for ... in`, or train the pair with Pyro's Trace_ELBO"
        )
    candidates = {name} if name is not None else common or {*dims}
    if len(candidates) != 1:
        listed = ", ".join(map(repr, sorted(candidates)))
        raise InputError(
            f"the plate over datapoints cannot be told: {'all' if common else 'some'} sites lie in {listed}; "
            "put every site into one plate, of one name in model and guide, or name it with plate=..."
        )
    (found,) = candidates
    if found not in dims:
        raise InputError(f"there is no plate {found!r} over datapoints; the vectorised ones are {sorted(dims)}")
    for node, frames in zip(nodes, plates, strict=True):
        if found not in frames and (name is None or not outside or node["is_observed"]):
            named = f", name the plate with plate={found!r}" * (outside and not node["is_observed"])
            raise InputError(
                f"the site {node['name']!r} lies outside the plate {found!r}, so that datapoints would be weighed "
                f"jointly; move it into the plate{named}, or train the pair with Pyro's Trace_ELBO"
            )
    return Plate(found, dims[found], nesting, *_size_and_scale(nodes, found, dims[found]))


def _size_and_scale(nodes: list[Any], plate: str, dim: int) -> tuple[int, float]:
    """Number of datapoints in a plate, which its own size may not say, and how many of all it says that each is."""
    shapes = [node["fn"].batch_shape for node in nodes if lies_in(plate, node)]
    frame = next(frame for node in nodes for frame in node["cond_indep_stack"] if frame.name == plate)
    return max(shape[dim] for shape in shapes if len(shape) >= -dim), (frame.full_size or frame.size) / frame.size


def _sites(trace: Any) -> Iterator[Any]:
    """The nodes that are sampled, observed or factors."""
    for node in trace.nodes.values():
        if node["type"] == "sample" and not node["infer"].get("_deterministic") and not site_is_subsample(node):
            yield node


def _observed(trace: Any) -> list[str]:
    return [node["name"] for node in _sites(trace) if node["is_observed"]]


def _frames(node: Any) -> dict[str, int]:
    """The plates of the program that contain a site, with their dimensions."""
    return {frame.name: frame.dim for frame in node["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES}


def _hold_to_sites(model_trace: Any, guide_trace: Any, nesting: int) -> None:
    """Refuses latent sites of the guide that the model does not have, observes, or has in another shape."""
    for site in guide_trace.stochastic_nodes:
        guide, model = guide_trace.nodes[site], model_trace.nodes.get(site)
        if model is None and not guide["infer"].get("is_auxiliary"):
            raise InputError(f"the guide samples the latent site {site!r}, but the model does not")
        if model is not None and model["is_observed"]:
            raise InputError(f"the guide samples the site {site!r}, but the model observes it")
        shapes = [
            (fn.event_shape, fn.shape()[-fn.event_dim - nesting :]) for fn in (guide["fn"], (model or guide)["fn"])
        ]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"the site {site!r} has the shape {tuple(shapes[0][1])} in the guide and {tuple(shapes[1][1])} in the "
                "model; give both distributions one shape, with expand and to_event"
            )


class _OnlyDrawn(Messenger):
    """Refuses latent sites of the model that the guide does not have, when they are sampled."""

    def __init__(self, drawn: set[str]) -> None:
        super().__init__()
        self.drawn = drawn

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] not in self.drawn and not site_is_subsample(msg):
            raise InputError(
                f"the model samples the latent site {msg['name']!r}, but the guide does not; sample it in the guide, "
                'marked infer={"enumerate": "parallel"} if it is to be summed out, or use TraceEnum_ELBO'
            )


def _hold_to_states(nodes: list[Any], plate: Plate) -> None:
    """Refuses states that cannot be summed out per datapoint."""
    dims: dict[int, str] = {}
    for node in nodes:
        site, inner = node["name"], sorted({*_frames(node)} - {plate.name})
        within = plate.name is None or lies_in(plate.name, node)
        if node["infer"].get("enumerate") == "sequential" and not node["is_observed"]:
            raise InputError(
                f'the site {site!r} is marked infer={{"enumerate": "sequential"}}; mark it "parallel", or use '
                "Pyro's TraceEnum_ELBO"
            )
        if node["is_observed"] or "_enumerate_dim" not in node["infer"]:
            continue
        if not within:
            reason = f"lies outside the plate {plate.name!r}, where its states are those of all datapoints"
        elif inner:
            reason = f"lies in the plate {inner[0]!r}, where each element has states of its own"
        elif dims.setdefault(node["infer"]["_enumerate_dim"], site) != site:
            reason = "shares the dimension of its states with another, as under pyro.markov"
        else:
            continue
        raise InputError(f"the site {site!r} is to be summed out, but it {reason}; use Pyro's TraceEnum_ELBO")


def _seen_by_the_model(guide_trace: Any) -> tuple[Any, dict[str, Tensor]]:
    """The guide's trace with its draws replaced by views, and the views by site."""
    draws, seen = guide_trace.copy(), {}
    for site in draws.stochastic_nodes:
        node = draws.nodes[site]
        if site_is_subsample(node):
            continue
        seen[site] = node["value"]
        if node["value"].requires_grad:
            seen[site] = node["value"].view_as(node["value"])
            vars(seen[site]).update(vars(node["value"]))  # attributes of Pyro's straight-through draws
            draws.nodes[site] = {**node, "value": seen[site]}
    return draws, seen


def _same(one: Any, other: Any) -> bool:
    """Whether two masks or scales are equal."""
    if one is other or one is None or other is None:
        return one is other
    same = one == other
    return bool(same.all() if isinstance(same, Tensor) else same)


class _Noise(TorchDispatchMode):
    """Records the results of random operations outside of sites, such as dropout masks, and replays them."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []
        self.given: Iterator[Any] | None = None
        self.beside = _BesideSites()

    def __enter__(self) -> Any:
        self.beside.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.beside.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.beside.drawing or torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **(kwargs or {}))
        in_place = function._schema.is_mutable
        if self.given is not None:
            kept = next(self.given, None)
            if kept is None:
                raise InputError(
                    "the guide draws more noise when it is run again to score its draws; let every run draw as much, "
                    "or use iwae"
                )
            return args[0].copy_(kept) if in_place else kept
        result = function(*args, **(kwargs or {}))
        self.kept.append(result.clone() if in_place else result)
        return result

    @contextmanager
    def again(self) -> Iterator[None]:
        """Replays the recorded results in order within this context."""
        self.given = iter(self.kept)
        try:
            with self:
                yield
        finally:
            self.given = None


class _BesideSites(Messenger):
    """Tracks whether a site is being sampled."""

    drawing = False

    def _pyro_sample(self, msg: Any) -> None:
        self.drawing = True

    def _pyro_post_sample(self, msg: Any) -> None:
        self.drawing = False


def _leaves(tensors: Iterable[Tensor], without: Iterable[Any] = ()) -> list[Tensor]:
    """The leaf tensors that receive a gradient from these tensors, except by way of given operations."""
    found: dict[int, Tensor] = {}
    seen = {*without}
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    waiting = [function for function in waiting if function not in seen]
    seen |= {*waiting}
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        for function, _ in node.next_functions:
            if function is not None and function not in seen:
                seen.add(function)
                waiting.append(function)
    return list(found.values())


def _common_scale(sites: list[Any], plate: Plate, jointly: bool) -> float | Tensor | None:
    """The common scale of all sites in the plate, a number or (batch,); None if they differ."""
    sites = [site for site in sites if plate.name is None or lies_in(plate.name, site)]
    scale = sites[0]["scale"] if sites else 1.0
    for site in sites:
        if not _same(site["scale"], scale):
            if jointly:
                return None
            raise InputError(
                f"the site {site['name']!r} is scaled by {_in_words(site['scale'])} and {sites[0]['name']!r} by "
                f"{_in_words(scale)}, in model or guide; a scale that is not common to all sites of both is no part of "
                "a bound, so leave poutine.scale out or put it on all"
            )
    if not isinstance(scale, Tensor) or scale.numel() == 1:
        return scale
    of_datapoints = scale.shape[plate.dim] if plate.name is not None and scale.dim() >= -plate.dim else 0
    if of_datapoints == scale.numel():
        return scale.flatten()
    if jointly:
        return None
    raise InputError(
        f"the sites are scaled by numbers of the shape {tuple(scale.shape)}, which vary within datapoints and are no "
        "part of a bound; scale datapoints alone, or leave poutine.scale out"
    )


def _in_words(scale: Any) -> str:
    several = isinstance(scale, Tensor) and scale.numel() > 1
    return f"numbers of the shape {tuple(scale.shape)}" if several else f"{float(scale):.4g}"


def _in_particles(program: Program, particles: int, nesting: int, plate: str | None) -> Program:
    """The program in a plate of particles, unless there is a single one."""
    if particles == 1:
        return program

    def run(*args: Any, **kwargs: Any) -> Any:
        with ParticlePlate(PARTICLES, particles, -nesting - 1, plate):
            try:
                return program(*args, **kwargs)
            except ValueError as error:
                if PARTICLES not in str(error).partition("\n")[0]:
                    raise
                raise InputError(DEEPER.format(f"more than {nesting}", nesting)) from error

    return run


def arguments(
    model: Any, batch: tuple[Tensor, Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Arguments with which to score a minibatch (x, y, mask); labels only if the model is one of x given y."""
    x, y, mask = batch
    return x, y if model.conditional else None, mask


def training_arguments(
    model: Any, batch: tuple[Tensor, Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Arguments with which to train on a minibatch (x, y, mask); labels only if the model uses them."""
    x, y, mask = batch
    return x, y if model.label_dim else None, mask


Inputs = tuple[Tensor, Tensor | None, Tensor | None]
"""x, y, mask."""


def log_mean_exp(values: Tensor, dim: int = 0) -> Tensor:
    """The log-mean-exp over a dimension."""
    return values.logsumexp(dim) - math.log(values.shape[dim])
