"""Held-out bounds and log p(x) per datapoint, by importance sampling, with their errors."""

import functools
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyrolatent.data.splits import Batch, Data, measure_of
from pyrolatent.errors import InputError, at_least_one, validate_options
from pyrolatent.inference import distributed
from pyrolatent.inference.compiled import WORTH_COMPILING, CaptureError, compiled
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.draws import MAX_ELEMENTS, prior_variances, site_means
from pyrolatent.inference.evidence.energies import Annealing, EnergyEvaluation, evaluate_energy
from pyrolatent.inference.evidence.psis import SHORTEST, khat_of_tail, khat_threshold, tail_length, too_large
from pyrolatent.inference.evidence.reconstruction import ReconstructionError, reconstruction_error
from pyrolatent.inference.evidence.result import HeldOutScores, Line, OnStep
from pyrolatent.inference.monte_carlo import log_mean_of_sums, none_if_nan, standard_error
from pyrolatent.inference.rules import same_event_shape, split_for
from pyrolatent.inference.weights import Inputs, Weights, arguments, closed_kl, log_mean_exp, total, weigh
from pyrolatent.models.autoencoder import DeterministicModel
from pyrolatent.models.components.distributions import innermost
from pyrolatent.models.energies.density import UnnormalisedDensity
from pyrolatent.models.latent import NOISE, LatentVariableModel, Unconditioned
from pyrolatent.models.model import Model
from pyrolatent.models.plates import Unweighted

GLOBAL_DRAWS = 500
"""Smallest number of draws of latents outside the plate, if there are as many particles."""
ACTIVE = 0.01
"""Variance of a posterior mean over the data, relative to the prior's, above which a latent dimension is active."""


@dataclass(frozen=True)
class Scores:
    """Importance-sampling scores of each datapoint of a batch; in nats, and higher is better except for `kl`.

    Attributes:
        elbo: E_q[log p(x | z)] - KL, (batch,).
        reconstruction: E_q[log p(x | z)], (batch,).
        kl: KL(q(z | x) || p(z)) over all sites, (batch,).
        log_evidence: log (1/K) sum_k w_k, (batch,); a lower bound in expectation.
        mcse: Monte Carlo standard error of `log_evidence`, (batch,), by the delta method; NaN for one draw.
        mcse_of_mean: the same such that the sum of their squares is the variance of the sum over datapoints, which
            draws outside the plate are common to, (batch,).
        ess: effective sample size (sum w)^2 / sum w^2, (batch,), between 1 and K.
        khat: `psis.khat` of the weights, (batch,).
        means: posterior mean of each site, (batch, dimensions).
        noise: Monte Carlo variance of `means`; 0 if they have a closed form, and for a single draw.
        kl_dimensions: KL of each dimension of each site whose prior and posterior factorise, (batch, dimensions).
    """

    elbo: Tensor
    reconstruction: Tensor
    kl: Tensor
    log_evidence: Tensor
    mcse: Tensor
    mcse_of_mean: Tensor
    ess: Tensor
    khat: Tensor
    means: dict[str, Tensor]
    noise: dict[str, Tensor]
    kl_dimensions: dict[str, Tensor]


@dataclass(frozen=True)
class Evaluation(HeldOutScores):
    """Held-out scores of a model, means over datapoints in nats; undefined scores are None.

    Attributes:
        split: the part of the data.
        measure: the measure of the scores: "mass", "density (in the units of the data)", "density (of [0, 1])",
            "density (of [0, 1], dequantized over 256 levels)", "mixed ..." or "cross-entropy". Scores with different
            measures cannot be compared.
        elbo: evidence lower bound; higher is better.
        reconstruction: its term E_q[log p(x | z)].
        kl: its term KL(q(z | x) || p(z)).
        log_evidence: log p(x) by importance sampling; None for a cross-entropy, which is not a likelihood.
        log_evidence_se: its standard error over datapoints.
        log_evidence_mcse: its Monte Carlo standard error.
        log_evidence_bias: its expected downward bias, since the log of a mean is concave; only a lower limit if k-hat
            is too large.
        log_evidence_interval: the ends of its 95 % interval over draws for these datapoints, by `draws_interval`.
        ess: mean effective sample size of the draws.
        khat_share: share of datapoints whose k-hat is too large (`psis.too_large`), for which Monte Carlo errors are
            unreliable; None for fewer than 21 draws.
        kl_per_dimension: KL of each latent dimension; None if the posterior does not factorise.
        active_units: number of latent dimensions, excluding labels, whose posterior mean has a variance over the data
            of more than 0.01 prior variances (Burda et al. 2016, 1509.00519, for a prior variance of 1), less the Monte
            Carlo variance of means without closed form; None for one datapoint or one draw.
        datapoints: number of datapoints.
        particles: number of draws per datapoint.
        bits_per_dimension: `Data.bits_per_dimension` of log p(x), for images of discrete or dequantized levels.
        classification_error: share of known labels that differ from the most probable one under q(y | x), for models
            with a latent label; None if no label is known.
        global_sites: latent sites u outside the plate over datapoints. All scores are then predictive, log p(x) of each
            datapoint is log E_q(u)[p(x | u)], and `particles` is the number of draws of u.
        global_kl: KL(q(u) || p(u)) over all of them, nats in all, from 100 draws where it has no closed form; no part
            of `kl` and `elbo`. None if there are none, or if the guide has a point in place of q(u).
        left_out: factors and observed sites of the guide, which training counts and a proposal does not.
        given: "y" if the scores are of x given y, which cannot be compared with scores of x.
        each: the bound and, if defined, log p(x) of each datapoint, (datapoints,), float64; and `row`, the number of
            its row in the data, int64.
    """

    split: str
    measure: str
    elbo: float
    reconstruction: float
    kl: float
    log_evidence: float | None
    log_evidence_se: float | None
    log_evidence_mcse: float | None
    log_evidence_bias: float | None
    log_evidence_interval: list[float] | None
    ess: float | None
    khat_share: float | None
    kl_per_dimension: list[float] | None
    active_units: int | None
    datapoints: int
    particles: int
    bits_per_dimension: float | None = None
    classification_error: float | None = None
    global_sites: list[str] = field(default_factory=list)
    global_kl: float | None = None
    left_out: list[str] = field(default_factory=list)
    given: str | None = None
    each: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def title(self) -> str:
        """Title of the printed scores."""
        return super().title + ", of x given y" * bool(self.given)

    def rows(self) -> list[Line]:
        """One printed line per score."""
        rows: list[Line] = [
            ("elbo", f"{self.elbo:.3f}", "higher is better"),
            ("reconstruction", f"{self.reconstruction:.3f}", ""),
            ("kl", f"{self.kl:.3f}", ""),
        ]
        of_draws: list[Line] = []
        if self.log_evidence is None:
            rows.append(("log_evidence", "none", "a cross-entropy on grey values is no likelihood"))
        else:
            if self.log_evidence_interval is not None:
                low, high = self.log_evidence_interval
                worth = "expected of the draws; the interval allows for it"
                if self.khat_share:
                    worth = "at least: only a lower limit where k-hat is too large, and so is the interval's upper end"
                of_draws = [
                    ("  interval", f"{low:.3f}", f"to {high:.3f}, 95 % over draws for these datapoints"),
                    ("  bias", f"{-(self.log_evidence_bias or 0.0):.2g}", worth),
                ]
            mcse = self.log_evidence_mcse
            rows += self.evidence_rows([] if mcse is None else [f"± {mcse:.2g} of the draws"], *of_draws)
        if self.ess is not None:
            rows.append(("ess", f"{self.ess:.1f}", f"of {self.particles} draws"))
        if self.khat_share is not None:
            threshold = khat_threshold(self.particles)
            rows.append(("k-hat", f"{self.khat_share:.1%}", f"of the datapoints above {threshold:.2f}"))
        if self.active_units is not None:
            rows.append(("active_units", str(self.active_units), ""))
        if self.global_sites:
            kl = "" if self.global_kl is None else f"KL {self.global_kl:.3f} in all; "
            rows.append(("outside", ", ".join(self.global_sites), f"{kl}all scores are predictive, over their draws"))
        if self.left_out:
            rows.append(("left out", ", ".join(self.left_out), "terms of the guide that training counts"))
        if self.classification_error is not None:
            rows.append(("classification_error", f"{self.classification_error:.2%}", ""))
        return rows


Chunk = Callable[..., dict[str, Tensor]]
"""Scores some draws of each datapoint: a function of (x, y, mask) to the terms of `score`."""


def chunk(model: LatentVariableModel, particles: int) -> Chunk:
    """A function that scores `particles` draws at a time, for `score` to accumulate.

    Returns:
        A function of x, y and mask to the log-weights, (draws, batch), and the means over draws of log p(x | z), of the
        KL, of each site and of the KL of each of its dimensions. Sites outside the plate are held at one draw, over
        whose draws of the others the weights are averaged, (1, batch).
    """

    def scored(x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> dict[str, Tensor]:
        with model.given(model.global_draw((x, y, mask))):
            weights = weigh(model.generate, model.infer, x, y, mask, particles=particles, again=False)
        weights.require_posterior()
        # A draw of what lies outside the plate counts once, however many it has of the others.
        log_weights = weights.log_weights()
        terms = {
            "log_weights": log_mean_exp(log_weights).unsqueeze(0) if model.global_sites else log_weights,
            "reconstruction": weights.expect(weights.log_likelihood).mean(0),
            "kl": weights.expect(total([torch.zeros_like(log_weights), *weights.kl.values()])).mean(0),
        }
        for site in [site for site in weights.log_prior if site != NOISE]:
            terms[f"mean {site}"], terms[f"square {site}"] = _moments(weights, site)
            by_dimension = _kl_dimensions(weights, site)
            if by_dimension is not None:
                terms[f"kl {site}"] = by_dimension
        return terms

    return scored


def compiled_chunk(model: LatentVariableModel, particles: int, inputs: Inputs) -> Chunk:
    """`chunk` as a compiled graph for batches of these shapes, and uncompiled for others.

    Raises:
        CaptureError: the model depends on values in Python, or there is no compiler.
    """
    uncompiled = chunk(model, particles)
    names: list[str] = []

    def run(*batch: Any) -> tuple[Tensor, ...]:
        terms = uncompiled(*batch)
        names[:] = terms
        return tuple(terms.values())

    program = compiled(run, inputs, model)

    def scored(*batch: Any) -> dict[str, Tensor]:
        if batch[0].shape != inputs[0].shape:
            return uncompiled(*batch)
        return dict(zip(names, program(*batch), strict=True))

    return scored


def draws_at_once(model: LatentVariableModel, x: Tensor, particles: int, max_elements: int = MAX_ELEMENTS) -> int:
    """The number of draws of each datapoint of a batch that are decoded at a time.

    With latents outside the plate, of which a pass has one draw, it is the number of draws of the others for each of at
    least `GLOBAL_DRAWS` of theirs.
    """
    if not model.vectorises:
        return 1
    most = -(-particles // GLOBAL_DRAWS) if model.global_sites else particles
    return max(1, min(most, max_elements // x.numel()))


@torch.no_grad()
def score(
    model: LatentVariableModel,
    x: Tensor,
    y: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    particles: int = 5000,
    max_elements: int = MAX_ELEMENTS,
    scorer: Chunk | None = None,
) -> Scores:
    """Scores a batch by importance sampling with the posterior as proposal, in chunks that stay in log space.

    Args:
        model: any latent-variable model.
        x: data (batch, *event_shape).
        y: labels of conditional models.
        mask: True where x is observed; other entries are left out of the likelihood and of log p(x).
        particles: number K of draws per datapoint.
        max_elements: largest number of elements decoded at a time.
        scorer: function that scores `draws_at_once(model, x, particles, max_elements)` draws; `chunk` by default.
    """
    at_once = draws_at_once(model, x, particles, max_elements)
    scorer = scorer or chunk(model, at_once)
    log_sum = log_square_sum = x.new_full((len(x),), -math.inf)
    largest, smallest = x.new_empty(0, len(x)), x.new_full((len(x),), math.inf)
    starts = range(0, particles, at_once)
    count_of_weights = len(starts) if model.global_sites else particles
    kept = tail_length(count_of_weights) + 1
    common: list[Tensor] = []
    means: dict[str, Tensor] = {}
    for start in starts:
        count = min(at_once, particles - start)
        terms = (scorer if count == at_once else chunk(model, count))(x, y, mask)
        log_weights = terms.pop("log_weights")
        log_sum = torch.logaddexp(log_sum, log_weights.logsumexp(0))
        log_square_sum = torch.logaddexp(log_square_sum, (2 * log_weights).logsumexp(0))
        common += [log_weights] * bool(model.global_sites)
        largest = torch.cat([largest, log_weights])
        largest = largest.topk(min(kept, len(largest)), 0).values
        smallest = torch.minimum(smallest, log_weights.min(0).values)
        for name, value in terms.items():
            means[name] = means.get(name, 0.0) + count / particles * value
    reconstruction, kl = means.pop("reconstruction"), means.pop("kl")
    log_evidence, mcse, ess = log_mean_of_sums(log_sum, log_square_sum, count_of_weights)
    return Scores(
        reconstruction - kl,
        reconstruction,
        kl,
        log_evidence,
        mcse,
        _error_of_common_draws(torch.cat(common), log_evidence) if common else mcse,
        ess,
        khat_of_tail(largest.cpu(), smallest.cpu(), count_of_weights).to(log_sum),
        _of_sites(means, "mean "),
        {
            site: (square - means[f"mean {site}"].square()).clamp(min=0) / max(1, particles - 1)
            for site, square in _of_sites(means, "square ").items()
        },
        _of_sites(means, "kl "),
    )


def _error_of_common_draws(log_weights: Tensor, log_evidence: Tensor) -> Tensor:
    """`Scores.mcse_of_mean` of draws that all datapoints share, by the delta method for their sum, (batch,).

    Args:
        log_weights: of each common draw, (draws, batch).
        log_evidence: the logs of their means, (batch,).
    """
    of_sum = (log_weights - log_evidence).exp().sum(1)
    return (of_sum.var() / len(log_weights) / len(log_evidence)).sqrt().expand_as(log_evidence)


def _of_sites(terms: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in terms.items() if name.startswith(prefix)}


def evaluate(
    model: Model,
    data: Data,
    *,
    split: str = "test",
    particles: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    on_batch: Callable[[int], Any] | None = None,
    annealing: Annealing | None = None,
    compile: Literal["auto", "always", "never"] | None = None,
    on_step: OnStep | None = None,
) -> Any:
    """Held-out bound, its parts, and log p(x) by importance sampling (Burda et al. 2016, 1509.00519).

    Where torch.distributed has a process group, as under torchrun, the processes share the datapoints.

    Args:
        model: a fitted model; it is evaluated on its own device.
        data: data with the event shape and in the support of the model's likelihood.
        split: "train", "validation" or "test".
        particles: number of draws per datapoint, for models with latents; None is 5,000.
        batch_size: number of datapoints per batch, for models with latents; None is 100.
        seed: seed of the draws.
        on_batch: called with the number of datapoints done by all processes, for models with latents.
        annealing: how to estimate log Z of an unnormalised density if it is intractable.
        compile: whether to compile the scoring, for models with latents; "auto" (None) does if it will take a minute or
            more.
        on_step: called with the current task, the amount done and the total.

    Returns:
        An `Evaluation`; an `EnergyEvaluation` for an unnormalised density; or a `ReconstructionError` for a model
        without a density.

    Raises:
        InputError: the data do not fit the model, there is no such split, or an option does not apply to the model.
    """
    options = {"particles": particles, "batch_size": batch_size, "on_batch": on_batch, "compile": compile}
    return _evaluate(model, data, {**options, "annealing": annealing}, split=split, seed=seed, on_step=on_step)


@functools.singledispatch
def _evaluate(model: Any, data: Data, options: dict[str, Any], **about: Any) -> Any:
    """Evaluates a type of model, which refuses options that do not apply to it."""
    taken = ("particles", "batch_size", "on_batch", "compile")
    return _evaluate_latents(model, data, **about, **validate_options(type(model).__name__, taken, options))


@_evaluate.register
def _(model: UnnormalisedDensity, data: Data, options: dict[str, Any], **about: Any) -> EnergyEvaluation:
    name, annealing = type(model).__name__, options["annealing"]
    anneals = not model.tractable or (annealing is not None and (annealing.always or annealing.raised > 0))
    who = name if anneals else f"{name} of exact log Z, but for Annealing(always=True),"
    return evaluate_energy(model, data, **about, **validate_options(who, ["annealing"] * anneals, options))


@_evaluate.register
def _(model: DeterministicModel, data: Data, options: dict[str, Any], **about: Any) -> ReconstructionError:
    validate_options(f"{type(model).__name__}, whose error takes no draws,", (), options)
    return reconstruction_error(model, data, split=about["split"], on_step=about["on_step"])


def _evaluate_latents(
    model: LatentVariableModel,
    data: Data,
    *,
    split: str,
    seed: int,
    on_step: OnStep | None,
    particles: int = 5000,
    batch_size: int = 100,
    on_batch: Callable[[int], Any] | None = None,
    compile: Literal["auto", "always", "never"] = "auto",
) -> Evaluation:
    at_least_one(particles=particles, batch_size=batch_size)
    if compile not in ("auto", "always", "never"):
        raise InputError(f"compile was {compile!r}; valid: auto, always, never")
    part = split_for(model, data, split)
    if len(part) < distributed.size():
        raise InputError(f"{len(part)} datapoints cannot be shared by {distributed.size()} processes; start fewer")
    support = observation_support(model, part.batch(slice(0, 1)), data)
    own = distributed.shard(torch.arange(len(part), device=part.x.device))
    scorer: Chunk | None = None
    scores: list[Scores] = []
    done = 0
    with pyro.validation_enabled(False), evaluating(model, seed + (distributed.rank() << 32)):
        for index in own.split(batch_size):
            inputs, started = arguments(model, part.batch(index)), time.perf_counter()
            if compile == "always" and not scores:
                scorer = _compiled(model, inputs, particles)
            with model.of_rows(index, len(part)):
                scores.append(score(model, *inputs, particles=particles, scorer=scorer))
            if compile == "auto" and len(scores) == 1:
                ahead = (time.perf_counter() - started) * (len(own) / len(index) - 1)
                scorer = _compiled(model, inputs, particles) if ahead > WORTH_COMPILING else None
            done += len(index)
            together = min(done * distributed.size(), len(part))
            if on_batch:
                on_batch(together)
            if on_step:
                on_step(f"log p(x), {particles} draws", together, len(part))
    joined = _joined(scores, len(part))
    if model.global_sites:
        particles = -(-particles // draws_at_once(model, part.batch(slice(0, batch_size)).x, particles))
    widths = {site: mean.shape[-1] for site, mean in joined.means.items() if site != model.label_site}
    prior = None
    if model.observes_x and widths:
        with pyro.validation_enabled(False), evaluating(model, seed):
            prior = prior_variances(model, widths, part.y)
    found = _summarise(joined, split, measure(model, data, support), particles, [*widths], prior)
    beside = _of_training(model, arguments(model, part.batch(slice(0, 1))))
    log_p = found.log_evidence if support is not None else None
    return replace(
        found,
        each=found.each | {"row": part.row_numbers},
        bits_per_dimension=data.bits_per_dimension(log_p, found.measure, support, part.mask),
        classification_error=_classification_error(joined, model, part.y),
        global_sites=[site for site in beside.outside if site in beside.log_prior],
        global_kl=_global_kl(model, arguments(model, part.batch(slice(0, 1)))) if beside.outside else None,
        left_out=beside.terms,
        given="y" if model.conditional else None,
    )


@torch.no_grad()
def _compiled(model: LatentVariableModel, inputs: Inputs, particles: int) -> Chunk | None:
    if model.of_training_rows:
        return None  # the graph would keep the numbers of these rows
    at_once = draws_at_once(model, inputs[0], particles)
    try:
        return compiled_chunk(model, at_once, inputs)
    except CaptureError as error:
        warnings.warn(f"evaluation goes on uncompiled: {error}", stacklevel=3)
        return None


@torch.no_grad()
def _of_training(model: LatentVariableModel, inputs: Inputs) -> Weights:
    """What training counts of some datapoints, sites outside the plate and terms of the guide among it, unscaled."""
    with evaluating(model), Unweighted():
        return weigh(model.generate, model.infer, *inputs, outside=True)


def _global_kl(model: LatentVariableModel, inputs: Inputs) -> float | None:
    """KL(q(u) || p(u)) over the sites outside the plate, nats; None for a point, which has none."""
    runs = [_of_training(model, inputs) for _ in range(100)]
    nodes = runs[0].guide_trace.nodes
    if all(isinstance(innermost(nodes[site]["fn"]), dist.Delta) for site in runs[0].outside):
        return None
    by_run = [total(run.kl[site] for site in run.outside).item() * run.plate.size for run in runs]
    return sum(by_run) / len(by_run)


def _joined(scores: list[Scores], count: int) -> Scores:
    """The scores of all datapoints in their order, gathered from all processes."""

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: joined([value[name] for value in values]) for name in values[0]}
        return distributed.gather(torch.cat(values), count)

    return Scores(*(joined([getattr(score, field.name) for score in scores]) for field in fields(Scores)))


def measure(model: LatentVariableModel, data: Data, support: Constraint | None) -> str:
    """The measure of a likelihood on these data: a mass, a density, a mixture of both, or a cross-entropy.

    A density of other values than x, where `support` is None, is a measure of its own.
    """
    if support is None:
        return "mass or density (of what the program observes)"
    if data.binarize == "relaxed":
        return "cross-entropy"
    family = getattr(getattr(model, "likelihood", None), "family", None)
    named = getattr(family, "measure", "mass" if support.is_discrete else "density")
    return "mass of the mask and " * (model.missingness is not None) + measure_of(named, data.record)


@torch.no_grad()
def observation_support(model: LatentVariableModel, one: Batch, data: Data) -> Constraint | None:
    """The support of p(x | z), found with one datapoint; None if no site observes x.

    Raises:
        InputError: data of another shape, or outside the support.
    """
    same_event_shape(model, data)
    if not model.observes_x:
        return None
    with evaluating(model):
        trace: Any = poutine.trace(Unconditioned()(model.generate)).get_trace(*arguments(model, one))
    support: Constraint = model.observation(trace)["fn"].support
    data.validate_support(support, f"the {model.likelihood_name} likelihood")
    return support


def _moments(weights: Weights, site: str) -> tuple[Tensor, Tensor]:
    """Means over draws of a site's conditional mean and of its square, (batch, dimensions)."""
    means = site_means(weights, site)
    first, second = (moment.mean(0).reshape(means.shape[1], -1) for moment in (means, means.square()))
    return first, second


def _kl_dimensions(weights: Weights, site: str) -> Tensor | None:
    """The KL of each dimension of a site, (batch, dimensions); None if prior or posterior does not factorise.

    A guide with auxiliary sites does not.
    """
    if len(weights.log_prior) < len(weights.latents):
        return None
    prior, posterior = (trace.nodes[site]["fn"] for trace in (weights.model_trace, weights.guide_trace))
    if not all(isinstance(d, dist.Independent) and not d.base_dist.event_shape for d in (prior, posterior)):
        return None
    kl = closed_kl(posterior.base_dist, prior.base_dist) if weights.has_closed_kl(site) else None
    if kl is None:
        draws = weights.guide_trace.nodes[site]["value"]
        kl = posterior.base_dist.log_prob(draws) - prior.base_dist.log_prob(draws)
    kl = weights.expect(weights.with_particles(kl, posterior.event_dim), posterior.event_dim).mean(0)
    return kl.reshape(len(kl), -1)


def _summarise(
    scores: Scores, split: str, measure: str, particles: int, latent: list[str], prior: Tensor | None
) -> Evaluation:
    names = ("elbo", "reconstruction", "kl", "ess", "mcse", "mcse_of_mean", "khat")
    each = {name: getattr(scores, name).double().cpu() for name in names}
    evidence = scores.log_evidence.double().cpu()
    n = len(evidence)
    active = None
    if latent and prior is not None and n > 1 and particles > 1:
        means, noise = (torch.cat([values[site] for site in latent], -1) for values in (scores.means, scores.noise))
        active = active_units(means, noise, prior.to(means))
    factorised = bool(scores.means) and scores.kl_dimensions.keys() == scores.means.keys()
    by_dimension = torch.cat([*scores.kl_dimensions.values()], -1).mean(0).tolist() if factorised else None
    likelihood = measure != "cross-entropy"
    errors = likelihood and particles > 1
    mcse, bias, low, high = (value.item() for value in draws_interval(evidence, each["mcse"], each["mcse_of_mean"]))
    enough = likelihood and tail_length(particles) >= SHORTEST
    heavy = too_large(each["khat"], each["ess"], particles) if enough else None
    return Evaluation(
        split=split,
        measure=measure,
        elbo=each["elbo"].mean().item(),
        reconstruction=each["reconstruction"].mean().item(),
        kl=each["kl"].mean().item(),
        log_evidence=evidence.mean().item() if likelihood else None,
        log_evidence_se=none_if_nan(standard_error(evidence)) if likelihood else None,
        log_evidence_mcse=mcse if errors else None,
        log_evidence_bias=bias if errors else None,
        log_evidence_interval=[low, high] if errors else None,
        ess=each["ess"].mean().item() if likelihood else None,
        khat_share=None if heavy is None else heavy.double().mean().item(),
        kl_per_dimension=by_dimension,
        active_units=None if active is None else int(active.sum()),
        datapoints=n,
        particles=particles,
        each={"elbo": each["elbo"]} | ({"log_evidence": evidence} if likelihood else {}),
    )


def draws_interval(
    log_evidence: Tensor, mcse: Tensor, mcse_of_mean: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Monte Carlo error m of a mean log p(x), its expected downward bias b, and the ends of its 95 % interval.

        [v - 1.96 m, v + b + 1.96 m],  v = (1/N) ∑_n log p(x_n),  m² = (1/N²) ∑_n s_n²,  b = (1/2N) ∑_n s_n²

    To first order, log (1/K) ∑_k w_k lies below log p(x) by half its variance, which does not average out over
    datapoints.

    Args:
        log_evidence: importance-sampled log p(x), (..., datapoints), nats.
        mcse: its Monte Carlo errors s, (..., datapoints).
        mcse_of_mean: what stands for s in m, as in `Scores`; None for s.

    Returns:
        m, b and both ends, (...,).
    """
    mean, bias = log_evidence.mean(-1), mcse.square().mean(-1) / 2
    error = ((mcse if mcse_of_mean is None else mcse_of_mean).square().mean(-1) / mcse.shape[-1]).sqrt()
    return error, bias, mean - 1.96 * error, mean + bias + 1.96 * error


def active_units(means: Tensor, noise: Tensor, prior: Tensor | float = 1.0) -> Tensor:
    """Whether the variance of each posterior mean over the data exceeds 0.01 prior variances, (dimensions,), bool.

    Args:
        means: posterior means, (datapoints, dimensions).
        noise: their Monte Carlo variance (datapoints, dimensions), which is subtracted; 0 for a closed form.
        prior: the variance of each dimension under the prior, (dimensions,).
    """
    return means.var(0) - noise.mean(0) > ACTIVE * prior


def _classification_error(scores: Scores, model: LatentVariableModel, y: Tensor | None) -> float | None:
    """The share of known labels that the most probable class misses, of models whose label site is one-hot."""
    means = scores.means.get(model.label_site or "")
    if means is None or means.shape[-1] != model.label_dim or y is None or not (y >= 0).any():
        return None
    return (means.argmax(-1) != y)[y >= 0].double().mean().item()
