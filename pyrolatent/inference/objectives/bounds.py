"""Bounds on log p(x) as objectives, each a few lines on top of `weigh`.

A bound is a `pyro.infer.ELBO`, so that `SVI(model, guide, optim, loss=ELBO())` and `ELBO()(model, guide)` work. Like
Pyro's classes it returns a loss summed over the minibatch, lower is better.
"""

import math
from abc import abstractmethod
from typing import Annotated, Any

import pyro.infer
import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from pyrolatent.declaration import Component, PositiveInt, component, register
from pyrolatent.errors import InputError
from pyrolatent.inference.objectives.base import PAIR, Objective
from pyrolatent.inference.weights import (
    Inputs,
    Program,
    Weights,
    form,
    log_mean_exp,
    log_sum_over_states,
    plate_nesting,
    sum_over_states,
    total,
    weigh,
)
from pyrolatent.models.latent import owner_of
from pyrolatent.models.model import Capability


class Bound(Objective, pyro.infer.ELBO):
    """A bound on log p(x) for each datapoint, to be maximised.

    Args:
        particles: number K of draws from the posterior per datapoint.
        beta: factor of log p(z) - log q(z | x); with a value other than 1 this is a training target, not a bound
            (Higgins et al. 2017).
        plate: name of the plate over datapoints, for Pyro pairs with several plates; None takes the one that all sites
            share.
    """

    particles: PositiveInt = 1
    beta: Annotated[float, Ge(0)] = 1.0
    plate: str | None = None

    needs = PAIR | {Capability.PATHWISE_DRAWS}
    unused = ()

    def __post_init__(self) -> None:
        pyro.infer.ELBO.__init__(self, num_particles=self.draws, vectorize_particles=True)
        self._found: tuple[Program, Program, dict[Any, int]] | None = None
        self._rerun_validated: set[Any] = set()

    @property
    def draws(self) -> int:
        """Total number of draws from the posterior per datapoint."""
        return self.particles

    @property
    def num_particles(self) -> int:
        """Pyro's name for `draws`; it follows changes of `particles` between steps."""
        return self.draws

    @num_particles.setter
    def num_particles(self, number: int) -> None:
        """Ignored; only Pyro's constructor sets it."""

    @property
    def scores_again(self) -> bool:
        """Whether the guide must score its draws again, which some flows cannot do."""
        return Capability.ANY_DRAW_SCORED in self.needs

    @property
    def jointly(self) -> bool:
        """Whether it is linear in log-probabilities, so that sites may lie outside the plate or differ in scale."""
        return False

    @abstractmethod
    def bound(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """The bound for each datapoint, (batch,), in nats; higher is better."""

    def target(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """The differentiated target, (batch,); if it is not the bound, its gradient estimates that of the bound."""
        return self.bound(weights, beta)

    def weigh(self, model: Program, guide: Program, *args: Any, jointly: bool = False, **kwargs: Any) -> Weights:
        """The draws and weights of this objective; factors in the guide are counted.

        Raises:
            InputError: as in `weigh`, or the objective would not count a term.
        """
        if self._found is None or self._found[0] != model or self._found[1] != guide:
            self._found, self._rerun_validated = (model, guide, {}), set()
        nestings, key = self._found[2], form(args, kwargs)
        if key not in nestings:
            given = self.max_plate_nesting < math.inf
            nestings[key] = int(self.max_plate_nesting if given else plate_nesting(model, guide, *args, **kwargs))
        weights = weigh(
            model,
            guide,
            *args,
            particles=self.num_particles,
            plate=self.plate,
            nesting=nestings[key],
            with_terms=True,
            jointly=jointly,
            outside=True,
            again=self.scores_again,
            **kwargs,
        )
        self._refuse_uncounted(weights)
        return weights

    def accumulate(self, model: Any, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the gradient of the mean negative target of a minibatch; returns the summed bound with beta = 1."""
        linear = self.jointly and model.plate is not None
        weights = self.weigh(model.generate, model.infer, *inputs, jointly=linear)
        target, bound = self.target(weights, self.beta * warmup), self.bound(weights)
        for name, value in {"target": target, "bound": bound}.items():
            shape = getattr(value, "shape", None)
            if shape != (len(inputs[0]),):
                has = f"has the shape {tuple(shape)}" if shape is not None else f"is {value}"
                raise InputError(f"{name} of {self.name} {has}; give one value for each datapoint, ({len(inputs[0])},)")
        term = model.training_term(*inputs)
        (target if term is None else target + term).mean().neg().backward()
        return bound.detach().sum()

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The value of `loss` as a tensor, with the gradient of the target."""
        weights = self.weigh(model, guide, *args, jointly=self.jointly, **kwargs)
        target = self.target(weights, self.beta)
        called = form(args, kwargs)
        if (
            torch.is_grad_enabled() and called not in self._rerun_validated
        ):  # only once, because it waits for the device
            weights.hold_to_rerun()
            self._rerun_validated.add(called)
        owner = owner_of(model)
        term = None if owner is None or not torch.is_grad_enabled() else owner.training_term(*args, **kwargs)
        target = target if term is None else target + term
        # The value is that of the bound, even if the gradient is that of another target.
        value = target + (self.bound(weights, self.beta) - target).detach()
        return -(weights.common_scale * value).sum()

    def _refuse_uncounted(self, weights: Weights) -> None:
        """Refuses programs for which a part of the gradient would silently be left out."""
        if not torch.is_grad_enabled():
            return
        name = type(self).__name__
        if weights.outside and Capability.OWN_LATENTS in self.needs:
            raise InputError(
                f"{name} weighs the draws of each datapoint alone, but {weights.outside[0]!r} lies outside the plate "
                "over datapoints; use ELBO, IWAE or DReG"
            )
        for site in weights.terms:
            fn = weights.guide_trace.nodes[site]["fn"]
            if not fn.has_rsample and weights.log_guide_sites("full")[site].requires_grad:
                raise InputError(
                    f"the guide observes {site!r}, for which estimators differ where has_rsample is False; give "
                    "pyro.factor has_rsample=True, or put the term into the model with its sign changed"
                )
        for site in weights.sampled_inside if self.scores_again else ():
            raise InputError(
                f"{name} weighs draws one by one, but the site {site!r} is drawn num_samples times at once; leave "
                "num_samples out and give particles"
            )
        for site in weights.without_path if Capability.PATHWISE_DRAWS in self.needs else ():
            raise InputError(
                f"{name} needs gradients through the draws of the site {site!r}, but its "
                f"{type(weights.guide_trace.nodes[site]['fn']).__name__} in the guide has none; use VIMCO or "
                'ReweightedWakeSleep, mark it infer={"enumerate": "parallel"}, or use Pyro\'s TraceGraph_ELBO'
            )

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The negative bound at the declared beta, summed over the minibatch.

        Free bits and other training terms enter only the gradient.
        """
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The value of `loss`; adds the gradient of the target to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} scores by `weigh`, not by traces of its own")


@component("elbo", "objective")
class ELBO(Bound):
    """E_q[log p(x | z)] - sum_sites KL(q(z | x) || p(z)), by Monte Carlo (Kingma and Welling 2014, 1312.6114).

    With free bits the target has max(free_bits, mean KL) in place of the KL of each site, averaged over the minibatch,
    so that the first nats of each site are free (Kingma et al. 2016, 1606.04934). None are of sites outside the plate.

    Args:
        free_bits: nats of the KL of each latent site that the training target does not count.
    """

    free_bits: Annotated[float, Ge(0)] = 0.0

    @property
    def jointly(self) -> bool:
        """Whether it is linear in log-probabilities; free bits are not."""
        return not self.free_bits

    def kl(self, weights: Weights) -> dict[str, Tensor]:
        """log q(z_k | x) - log p(z_k) of each site, (..., particles, batch)."""
        return {site: weights.sampled_kl(site) for site in weights.latents}

    def bound(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """mean_k log p(x | z_k) - beta KL, (batch,)."""
        kl = self.kl(weights).values()
        ratio = weights.log_observed()
        return weights.expect(ratio - beta * total(kl) if kl else ratio).mean(0)

    def target(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """The bound, with the KL of a site replaced by free_bits if its mean is smaller, (batch,)."""
        if not (self.free_bits and weights.latents):
            return self.bound(weights, beta)
        by_site = {site: weights.expect(kl).mean(0) for site, kl in self.kl(weights).items()}
        counted = [
            kl if site in weights.outside else torch.where(kl.mean() > self.free_bits, kl, self.free_bits)
            for site, kl in by_site.items()
        ]
        return weights.expect(weights.log_observed()).mean(0) - beta * total(counted)


@component("analytic_elbo", "objective")
class AnalyticELBO(ELBO):
    """E_q[log p(x | z)] - sum_sites KL(q(z | x) || p(z)), with the KL of each site in closed form if it has one."""

    def kl(self, weights: Weights) -> dict[str, Tensor]:
        """KL(q(z | x) || p(z)) of each site, (..., particles, batch)."""
        return weights.kl


@component("iwae", "objective")
class IWAE(Bound):
    """log (1/K) sum_k w_k, w = p(x, z) / q(z | x), for each datapoint (Burda et al. 2016, 1509.00519)."""

    particles: PositiveInt = 50

    def bound(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """log (1/K) sum_k w_k, (batch,)."""
        return log_mean_exp(weights.log_weights(beta))


@component("stl", "objective")
class STL(IWAE):
    """The importance-weighted bound without the score of q: "sticking the landing" (Roeder et al. 2017, 1703.09194).

    Its gradient has no noise where q is the exact posterior. With one draw it is an unbiased estimate of the gradient
    of the ELBO. With more draws, or with states that are summed out beside the draws, the omitted score of q does not
    have mean 0, and the gradient is biased by design, unlike that of `dreg`; if the model shares parameters with q, as
    prior vamp does, the bias affects these too.
    """

    needs = Bound.needs | {Capability.ANY_DRAW_SCORED}

    particles: PositiveInt = 1

    def target(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """log (1/K) sum_k w_k with the parameters of q held fixed in log q, (batch,)."""
        return log_mean_exp(weights.log_weights(beta, score="frozen"))


@component("dreg", "objective")
class DReG(IWAE):
    """The importance-weighted bound with doubly reparameterised gradients (Tucker et al. 2019, 1810.04152).

    With v_k = w_k / sum w, the gradient is sum_k v_k d log w_k / d theta for the model and
    sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi) for the guide. It is unbiased, and its signal-to-noise ratio does
    not vanish as K grows. With beta the factor of a path is v_k (1 - beta + beta v_k), since only beta log q is
    scored. Each state that is summed out counts as a weight. The proof does not cover parameters that model and guide
    share.
    """

    needs = Bound.needs | {Capability.ANY_DRAW_SCORED}

    def target(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """sum_k v_k log w_k, v and the parameters of q held fixed, paths scaled by 1 - beta + beta v, (batch,)."""
        terms = weights.log_terms(beta, score="frozen")
        v = normalised_weights(terms)
        weights.scale_paths(1 - beta + beta * weights.over_draws(v))
        return weighted_sum(v, terms)


@component("renyi", "objective")
class Renyi(Bound):
    """log mean_k w_k^(1 - alpha) / (1 - alpha), for each datapoint (Li and Turner 2016, 1602.02311).

    alpha = 0 is `iwae`, alpha = 1 the ELBO, alpha = -inf the largest weight (vr-max) and alpha = inf the smallest. It
    is a lower bound on log p(x) for alpha >= 0.

    Args:
        alpha: order of the divergence.
    """

    alpha: float = 0.5
    particles: PositiveInt = 50

    def bound(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """log mean_k w_k^(1 - alpha) / (1 - alpha), (batch,), or its limit if alpha is 1, -inf or inf."""
        log_weights = weights.log_weights(beta)
        order = 1 - self.alpha
        if order == 0:
            return log_weights.mean(0)
        furthest = log_weights.max(0).values if order > 0 else log_weights.min(0).values
        if math.isinf(order):
            return furthest
        # If the powers are near 1, the log of their mean loses all digits; log1p of the mean excess over 1 does not.
        exponent = order * (log_weights - furthest.detach())
        near = furthest.detach() + exponent.expm1().mean(0).log1p() / order
        return torch.where(exponent.min(0).values > -1, near, log_mean_exp(order * log_weights) / order)


@component("combination_iwae", "objective")
class CombinationIWAE(Bound):
    """share mean_k log w_k + (1 - share) log mean_k w_k: the CIWAE of Rainforth et al. 2018, 1802.04537.

    Args:
        share: share of the ELBO.
    """

    share: Annotated[float, Interval(ge=0, le=1)] = 0.5
    particles: PositiveInt = 50

    def bound(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """share mean_k log w_k + (1 - share) log mean_k w_k, (batch,)."""
        log_weights = weights.log_weights(beta)
        return self.share * log_weights.mean(0) + (1 - self.share) * log_mean_exp(log_weights)


@component("multiply_iwae", "objective")
class MultiplyIWAE(Bound):
    """mean_m log mean_k w_mk over M groups of K draws: the MIWAE of Rainforth et al. 2018, 1802.04537.

    This is not the bound for missing data of the same name, which is `iwae` with a mask.

    Args:
        groups: number M of groups.
        particles: number K of draws per group.
    """

    groups: PositiveInt = 8
    particles: PositiveInt = 8

    @property
    def draws(self) -> int:
        """M K, the total number of draws."""
        return self.groups * self.particles

    def grouped(self, log_weights: Tensor) -> Tensor:
        """(M, K, batch) from (M K, batch)."""
        return log_weights.unflatten(0, (self.groups, -1))

    def bound(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """mean_m log mean_k w_mk, (batch,)."""
        return log_mean_exp(self.grouped(weights.log_weights(beta)), 1).mean(0)


@component("partially_iwae", "objective")
class PartiallyIWAE(MultiplyIWAE):
    """log mean_mk w_mk for the model, mean_m log mean_k w_mk for the guide: the PIWAE of Rainforth et al. 2018."""

    needs = MultiplyIWAE.needs | {Capability.OWN_LATENTS}

    def bound(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """log mean_mk w_mk, (batch,)."""
        return log_mean_exp(weights.log_weights(beta))

    def target(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """sum_mk v log p - sum_mk u log q, paths scaled by u / v; v over all draws, u within groups and over M."""
        terms = weights.log_terms(beta)
        held = log_sum_over_states(terms).detach()
        ratio = (log_mean_exp(held) - log_mean_exp(self.grouped(held), 1)).exp()
        ratio = ratio.repeat_interleave(self.particles, 0)
        weights.scale_paths(ratio)
        log_p = weights.log_likelihood
        for log_prior in weights.log_prior.values():
            log_p = log_p + beta * log_prior
        v = normalised_weights(terms)
        return weighted_sum(v, log_p) + weighted_sum(v * ratio, terms - log_p)


@component("vimco", "objective")
class VIMCO(IWAE):
    """The importance-weighted bound with score-function gradients and a baseline from the other draws.

    The gradient is sum_k (L - L_-k) d log q(z_k | x) + sum_k v_k d log w_k, where L_-k is the bound with w_k replaced
    by the geometric mean of the others (Mnih and Rezende 2016, 1602.06725). It is for discrete posteriors and needs at
    least two draws. States that are summed out need no score: their part of the gradient is exact.
    """

    needs = PAIR | {Capability.ANY_DRAW_SCORED, Capability.OWN_LATENTS}

    particles: Annotated[int, Gt(1)] = 10

    def target(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """L + sum_k (L - L_-k) log q(z_k | x), the difference held fixed, (batch,)."""
        log_weights = weights.log_weights(beta, score="held")
        weights.scale_paths(torch.zeros_like(log_weights))
        held = log_weights.detach()
        count = len(held)
        # The mean of the others' logs is -inf only if one of theirs is, not if only w_k's is.
        none = held == -math.inf
        finite = held.masked_fill(none, 0.0)
        others = ((finite.sum(0) - finite) / (count - 1)).masked_fill(none.sum(0) > none.long(), -math.inf)
        replaced = torch.where(torch.eye(count, device=held.device, dtype=torch.bool)[..., None], others, held)
        baseline = log_mean_exp(replaced, 1)
        baseline = baseline.masked_fill(baseline == -math.inf, 0.0)  # no baseline if no other draw has weight
        learning_signal = log_mean_exp(held) - baseline
        log_q = weights.log_guide_sites("held")
        scores = [(learning_signal * sum_over_states(log_q[site])).sum(0) for site in weights.drawn]
        return total([log_mean_exp(log_weights), *scores])


@component("rws", "objective")
class ReweightedWakeSleep(IWAE):
    """Reweighted wake-sleep: sum_k v_k d log p(x, z_k) for the model and sum_k v_k d log q(z_k | x) for the guide.

    The update of the guide is the "wake" update, which covers the mass of the posterior (Bornschein and Bengio 2015,
    1406.2751; Le et al. 2019, 1805.10469). Weights v = w / sum w are per datapoint. It also works for discrete
    posteriors.
    """

    needs = PAIR | {Capability.ANY_DRAW_SCORED, Capability.OWN_LATENTS}

    def target(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """sum_k v_k (log p(x | z_k) + beta log p(z_k) + log q(z_k | x)), v and the draws held fixed, (batch,)."""
        for site in weights.terms:
            raise InputError(
                f"rws fits the guide to the posterior and has no place for {site!r}, which the guide observes; put the "
                "term into the model with its sign changed, or use vimco"
            )
        v = normalised_weights(weights.log_terms(beta, score="held"))
        weights.scale_paths(v.new_zeros(1, v.shape[-1]))
        log_p, log_q = weights.log_likelihood, weights.log_guide_sites("held")
        for site in weights.latents:
            log_p = log_p + log_q[site] + (beta * weights.log_prior[site] if site in weights.log_prior else 0)
        return weighted_sum(v, log_p)


def normalised_weights(terms: Tensor) -> Tensor:
    """v = exp(terms), normalised over states and particles, without gradient, (states..., particles, batch)."""
    return terms.detach().flatten(0, -2).softmax(0).reshape(terms.shape)


def weighted_sum(v: Tensor, values: Tensor) -> Tensor:
    """The sum of v values over states and particles, (batch,); values of weight 0 add nothing, even if infinite."""
    return torch.where(v == 0, 0.0, v * values).flatten(0, -2).sum(0)


for _pyro in ("Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO", "TraceEnum_ELBO", "RenyiELBO"):
    register("objective", _pyro, Component(getattr(pyro.infer, _pyro), ()))
