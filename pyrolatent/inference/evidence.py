"""Held-out bounds and log p(x), per datapoint, each with its errors."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyrolatent.data import Batch, Data
from pyrolatent.errors import InputError
from pyrolatent.inference.modes import device_of, evaluating
from pyrolatent.inference.partition import Annealing, evaluate_energy
from pyrolatent.inference.rules import likelihood_name, same_event_shape
from pyrolatent.inference.weights import Weights, arguments, closed_kl, weigh
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.unnormalised import UnnormalisedDensity

FLOATS = 2**21
"""Numbers in one decoded chunk of draws: small enough for a processor's cache, large enough to keep it busy."""


@dataclass(frozen=True)
class Scores:
    """What importance sampling says about each datapoint of a batch; nats, higher is better but for `kl`.

    Attributes:
        elbo: E_q[log p(x | z)] - KL, (batch,).
        reconstruction: E_q[log p(x | z)], (batch,).
        kl: KL(q(z | x) || p(z)) over all sites, (batch,).
        log_evidence: log (1/K) sum_k w_k, (batch,); a lower bound in expectation.
        mcse: Monte Carlo standard error of `log_evidence`, (batch,), by the delta method; NaN for one draw.
        ess: effective sample size (sum w)^2 / sum w^2, (batch,), between 1 and K.
        means: posterior mean of each site, (batch, dimensions).
        kl_dimensions: KL of each dimension of each site whose prior and posterior factorise, (batch, dimensions).
    """

    elbo: Tensor
    reconstruction: Tensor
    kl: Tensor
    log_evidence: Tensor
    mcse: Tensor
    ess: Tensor
    means: dict[str, Tensor]
    kl_dimensions: dict[str, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Held-out scores of a model, means over datapoints in nats; a field is None where it is not defined.

    Attributes:
        split: which part of the data.
        measure: what the nats are of: "mass", "density", "density (dequantized)", "mixed ..." or "cross-entropy".
            Numbers of different measures cannot be compared.
        elbo: evidence lower bound; higher is better.
        reconstruction: its term E_q[log p(x | z)].
        kl: its term KL(q(z | x) || p(z)).
        log_evidence: log p(x) by importance sampling; None for a cross-entropy, which is not a likelihood.
        log_evidence_se: its standard error over datapoints.
        log_evidence_mcse: its Monte Carlo standard error of the draws.
        ess: mean effective sample size of the draws.
        kl_per_dimension: KL of each latent dimension; None where the posterior does not factorise.
        active_units: number of latent dimensions whose posterior mean varies over the data by more than 0.01
            (Burda et al. 2016, 1509.00519).
        datapoints: number of datapoints.
        particles: draws for each datapoint.
        classification_error: share of known labels that the most probable one under q(y | x) misses, of models with
            a latent label.
        each: the bound, and log p(x) where there is one, of each datapoint, (datapoints,), float64.
    """

    split: str
    measure: str
    elbo: float
    reconstruction: float
    kl: float
    log_evidence: float | None
    log_evidence_se: float | None
    log_evidence_mcse: float | None
    ess: float | None
    kl_per_dimension: list[float] | None
    active_units: int
    datapoints: int
    particles: int
    classification_error: float | None = None
    each: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)


@torch.no_grad()
def score(
    model: LatentVariableModel,
    x: Tensor,
    y: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    particles: int = 5000,
    floats: int = FLOATS,
) -> Scores:
    """Scores a batch by importance sampling with the posterior as proposal, in chunks that stay in log space.

    Args:
        model: any latent-variable model.
        x: data (batch, *event_shape).
        y: labels of conditional models.
        mask: True where x is observed; what is not is left out of the likelihood, so this is log p of the rest.
        particles: number K of draws for each datapoint.
        floats: bound on the numbers decoded at a time.
    """
    at_once = max(1, floats // x.numel())
    counts = [min(at_once, particles - start) for start in range(0, particles, at_once)]
    log_sum = log_square_sum = x.new_full((len(x),), -math.inf)
    reconstruction, kl = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
    means: dict[str, Tensor] = {}
    kl_dimensions: dict[str, Tensor] = {}
    for count in counts:
        weights = weigh(model.generate, model.infer, x, y, mask, particles=count)
        log_weights = weights.log_weights()
        log_sum = torch.logaddexp(log_sum, log_weights.logsumexp(0))
        log_square_sum = torch.logaddexp(log_square_sum, (2 * log_weights).logsumexp(0))
        share = count / particles
        reconstruction = reconstruction + share * weights.expect(weights.log_likelihood).mean(0)
        kl = kl + share * weights.expect(functools.reduce(torch.add, weights.kl.values())).mean(0)
        for site in weights.latents:
            means[site] = means.get(site, 0.0) + share * _mean(weights, site)
            by_dimension = _kl_dimensions(weights, site)
            if by_dimension is not None:
                kl_dimensions[site] = kl_dimensions.get(site, 0.0) + share * by_dimension
    ess = (2 * log_sum - log_square_sum).exp()
    variance = (1 / ess - 1 / particles).clamp(min=0) * particles / (particles - 1) if particles > 1 else ess * math.nan
    return Scores(
        reconstruction - kl,
        reconstruction,
        kl,
        log_sum - math.log(particles),
        variance.sqrt(),
        ess,
        means,
        kl_dimensions,
    )


def evaluate(
    model: LatentVariableModel | UnnormalisedDensity,
    data: Data,
    *,
    split: str = "test",
    particles: int = 5000,
    batch_size: int = 100,
    seed: int = 0,
    on_batch: Callable[[int], Any] | None = None,
    annealing: Annealing | None = None,
) -> Any:
    """Held-out bound, its parts, and log p(x) by importance sampling (Burda et al. 2016, 1509.00519).

    Args:
        model: a fitted model; it is evaluated where its parameters are.
        data: data with the event shape and in the support of the model's likelihood.
        split: "train", "validation" or "test".
        particles: number of draws for each datapoint.
        batch_size: datapoints at a time.
        seed: seed of the draws.
        on_batch: called with the number of datapoints done.
        annealing: how log Z of an unnormalised density is estimated; the other arguments but `split` and `seed` say
            nothing to these.

    Returns:
        An `Evaluation`, or an `EnergyEvaluation` of an unnormalised density.

    Raises:
        InputError: the data does not fit the model, or there is no such split.
    """
    if isinstance(model, UnnormalisedDensity):
        return evaluate_energy(model, data, split=split, annealing=annealing or Annealing(), seed=seed)
    if particles < 1:
        raise InputError(f"particles was {particles}; at least one draw is needed")
    if split not in ("train", "validation", "test"):
        raise InputError(f"there is no split {split!r}; valid: train, validation, test")
    part = getattr(data, split).to(device_of(model))
    support = observation_support(model, part.batch(slice(0, 1)), data)
    data.check_support(support, likelihood_name(model))
    with pyro.validation_enabled(False), evaluating(model, seed):
        scores, done = [], 0
        for batch in part.batches(batch_size):
            scores.append(score(model, *arguments(model, batch), particles=particles))
            done += len(batch.x)
            if on_batch:
                on_batch(done)
    found = _summarise(scores, split, measure(model, data, support), particles)
    return replace(found, classification_error=_classification_error(scores, part.y))


def measure(model: LatentVariableModel, data: Data, support: Constraint) -> str:
    """What the nats of a likelihood on this data are of: a mass, a density, a mixture of both, or a cross-entropy."""
    if data.binarize == "relaxed":
        return "cross-entropy"
    family = getattr(model.likelihood, "family", None)
    named = getattr(family, "measure", "mass" if support.is_discrete else "density")
    return f"{named} (dequantized)" if named == "density" and data.dequantize else named


@torch.no_grad()
def observation_support(model: LatentVariableModel, one: Batch, data: Data) -> Constraint:
    """The support of p(x | z), from one datapoint."""
    same_event_shape(model, data)
    with evaluating(model):
        trace: Any = poutine.trace(poutine.uncondition(model.generate)).get_trace(*arguments(model, one))
    return trace.nodes["x"]["fn"].support


def _mean(weights: Weights, site: str) -> Tensor:
    """The posterior mean of a site, (batch, dimensions), from its draws where it has no closed form."""
    fn, draws = weights.guide_trace.nodes[site]["fn"], weights.latents[site]
    try:
        mean = fn.mean
    except NotImplementedError:
        mean = draws
    if torch.isnan(mean).any():
        mean = draws
    mean = weights.expect(mean, fn.event_dim).mean(0)
    return mean.reshape(len(mean), -1)


def _kl_dimensions(weights: Weights, site: str) -> Tensor | None:
    """The KL of each dimension of a site, (batch, dimensions); None where prior or posterior does not factorise."""
    prior, posterior = (trace.nodes[site]["fn"] for trace in (weights.model_trace, weights.guide_trace))
    if not all(isinstance(d, dist.Independent) and not d.base_dist.event_shape for d in (prior, posterior)):
        return None
    kl = closed_kl(posterior.base_dist, prior.base_dist) if weights.has_closed_kl(site) else None
    if kl is None:
        draws = weights.latents[site]
        kl = posterior.base_dist.log_prob(draws) - prior.base_dist.log_prob(draws)
    kl = weights.expect(kl, posterior.event_dim).mean(0)
    return kl.reshape(len(kl), -1)


def _summarise(scores: list[Scores], split: str, measure: str, particles: int) -> Evaluation:
    def joined(name: str) -> Tensor:
        return torch.cat([getattr(score, name) for score in scores]).double().cpu()

    evidence, mcse, ess = joined("log_evidence"), joined("mcse"), joined("ess")
    n = len(evidence)
    means = torch.cat([torch.cat([*score.means.values()], -1) for score in scores])
    factorised = all(score.kl_dimensions.keys() == score.means.keys() for score in scores)
    by_dimension = [torch.cat([*score.kl_dimensions.values()], -1) for score in scores] if factorised else None
    likelihood = measure != "cross-entropy"
    return Evaluation(
        split=split,
        measure=measure,
        elbo=joined("elbo").mean().item(),
        reconstruction=joined("reconstruction").mean().item(),
        kl=joined("kl").mean().item(),
        log_evidence=evidence.mean().item() if likelihood else None,
        log_evidence_se=evidence.std().item() / math.sqrt(n) if likelihood and n > 1 else None,
        log_evidence_mcse=mcse.square().sum().sqrt().item() / n if likelihood and particles > 1 else None,
        ess=ess.mean().item() if likelihood else None,
        kl_per_dimension=torch.cat(by_dimension).mean(0).tolist() if by_dimension else None,
        active_units=int((means.var(0) > 0.01).sum()) if n > 1 else 0,
        datapoints=n,
        particles=particles,
        each={"elbo": joined("elbo")} | ({"log_evidence": evidence} if likelihood else {}),
    )


def _classification_error(scores: list[Scores], y: Tensor | None) -> float | None:
    if "y" not in scores[0].means or y is None:
        return None
    probable = torch.cat([score.means["y"] for score in scores]).argmax(-1)
    return (probable != y)[y >= 0].double().mean().item()
