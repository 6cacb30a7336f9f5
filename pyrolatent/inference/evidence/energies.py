"""log Z and held-out log p(x) of unnormalised densities: exact, by annealing, and bounds from both sides.

Annealed importance sampling moves chains from the base to the model along the path p_β and weights them. With

    log w = ∑_k log p̃_{β_k}(x_{k-1}) - log p̃_{β_{k-1}}(x_{k-1}),     x_k from a kernel that leaves p_{β_k} invariant,

E[w] = Z / Z_0. So the log of the mean weight is below log(Z / Z_0) in expectation, and log p(x) computed with it tends
to be too high. The same chains run backwards from *exact samples* give a bound from the other side.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyrolatent.data.splits import Data, measure_of
from pyrolatent.errors import InputError, at_least_one
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.evidence.pseudo_likelihood import pseudo_likelihood
from pyrolatent.inference.evidence.result import HeldOutScores, Line, OnStep
from pyrolatent.inference.monte_carlo import log_mean, none_if_nan, standard_error
from pyrolatent.inference.rules import same_event_shape
from pyrolatent.inference.sampling.annealing import anneal
from pyrolatent.inference.sampling.kernels import Movement, adapted, no_normaliser, run
from pyrolatent.inference.weights import log_mean_exp
from pyrolatent.models.arrays import device_and_dtype
from pyrolatent.models.energies.density import UnnormalisedDensity, in_double, warn_if_constant

Starts = Literal["exact samples", "persistent chains", "chains begun at training data"]
POINTS = 200
"""Number of points of the path at which weights are kept, to be plotted."""
FEWEST = 5
"""Number of effective chains below which a standard error of log Z is meaningless; a fifth of fewer than 25 chains."""
ERRORS, SMALL = 4.0, 0.05
"""Largest differences of two estimates of log Z, in standard errors and in nats."""


@dataclass(frozen=True)
class LogZ:
    """An estimate of log Z, nats.

    Attributes:
        value: the estimate.
        error: its standard error over chains, by the delta method; 0 if it is exact.
        method: "exact", "ais" or "reverse ais".
        starts: the initial states of reverse chains.
        betas: points of the path, (points,).
        log_weights: log-weights of each chain up to these points, plus log Z_0, (points, chains).
        acceptance: mean acceptance probability of the moves; None if moves cannot be rejected.
        stuck: why the estimate is invalid: the density has no normaliser, the chains did not move, or a few chains
            carry all the weight, so that the error is unknown; None if it is valid.
    """

    value: float
    error: float
    method: str
    starts: Starts | None = None
    betas: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    log_weights: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    acceptance: float | None = None
    stuck: str | None = None


@dataclass(frozen=True)
class Annealing:
    """Options of the estimate of log Z.

    Attributes:
        chains: number of chains.
        temperatures: number of steps from the base to the model.
        always: whether to anneal also if log Z is tractable, for comparison.
        raised: number of datapoints for which the bound `raise_log_prob` is computed.
        kernel: kernel of the chains; None is the model's Gibbs sampler, or HMC with an adapted step if it has none.
    """

    chains: int = 100
    temperatures: int = 10_000
    always: bool = False
    raised: int = 0
    kernel: Any = None

    def __post_init__(self) -> None:
        at_least_one(chains=self.chains, temperatures=self.temperatures)
        if self.chains < 2:
            raise InputError("chains was 1; at least 2 are needed, whose spread gives the error of log Z")


@torch.no_grad()
def exact_log_z(model: UnnormalisedDensity) -> LogZ:
    """log Z summed in double precision.

    Raises:
        InputError: there are too many states.
    """
    return LogZ(in_double(model).log_z().item(), 0.0, "exact")


@torch.no_grad()
def ais(
    model: UnnormalisedDensity,
    *,
    chains: int = 100,
    temperatures: int = 10_000,
    kernel: Any = None,
    on_step: Callable[[int], Any] | None = None,
) -> LogZ:
    """log Z by annealed importance sampling from the base (Neal 2001; Salakhutdinov and Murray 2008).

    Args:
        model: an unnormalised density.
        chains: number of chains, whose spread gives the error.
        temperatures: number of evenly spaced steps of the path.
        kernel: kernel of the chains, as in `Annealing`.
        on_step: called with the number of steps done.
    """
    at_least_one(chains=chains, temperatures=temperatures)
    path = _Path(model, Movement(adapted(model, kernel, temperatures)))
    state = model.base(chains)
    _require_finite(model, state)
    if improper := no_normaliser(model, path.kernel.kernel):
        return LogZ(math.nan, math.nan, "ais", stuck=improper)
    return _log_z(path, state, temperatures, on_step, method="ais")


@torch.no_grad()
def reverse_ais(
    model: UnnormalisedDensity,
    start: Any,
    starts: Starts,
    *,
    temperatures: int = 10_000,
    kernel: Any = None,
    on_step: Callable[[int], Any] | None = None,
) -> LogZ:
    """log Z by the same path run backwards: minus the log of the mean inverse weight.

    It is above log Z in expectation only if the initial states are exact samples (Grosse et al. 2013; Burda et al.
    2015); chains that have not reached the model give no bound.

    Args:
        model: an unnormalised density.
        start: initial states, one per chain.
        starts: what the initial states are.
        temperatures: number of steps of the path.
        kernel: reversible kernel of the chains, as in `Annealing`.
        on_step: called with the number of steps done.
    """
    at_least_one(temperatures=temperatures)
    path = _Path(model, Movement(adapted(model, kernel, temperatures)))
    _require_finite(model, start)
    return _log_z(path, start, temperatures, on_step, method="reverse ais", starts=starts)


@torch.no_grad()
def raise_log_prob(
    model: UnnormalisedDensity,
    x: Tensor,
    *,
    temperatures: int = 1000,
    chains: int = 1,
    kernel: Any = None,
    on_step: Callable[[int], Any] | None = None,
) -> Tensor:
    """RAISE: a lower bound in expectation on log p_ann(x), (batch,), p_ann being the distribution of annealed chains.

    log p_0(x_0) + ∑_k log p̃_{β_k}(x_k) - log p̃_{β_k}(x_{k-1}) over chains that begin at x_K = x and run down to the
    base (Burda, Grosse and Salakhutdinov 2015, 1412.8566). p_ann is the distribution of the final states of chains with
    these steps; it approaches the model as their number grows.

    Args:
        model: an unnormalised density with a reversible kernel.
        x: data (batch, *event_shape).
        temperatures: number of steps of the path.
        chains: number of chains per datapoint; the bound is the log of their mean weight.
        kernel: reversible kernel of the chains, as in `Annealing`.
        on_step: called with the number of steps done.
    """
    at_least_one(chains=chains, temperatures=temperatures)
    path = _Path(model, adapted(model, kernel, temperatures))
    state = model.state(x.repeat_interleave(chains, 0))
    log_p = (model.log_density(state) - model.base_log_z()).double()
    report = (lambda step, _: on_step(step)) if on_step else None
    log_w, _ = anneal(path, path.move(state, 1.0), _betas(temperatures)[::-1], report)
    return log_mean_exp((log_p + log_w).reshape(-1, chains), 1)


def model_states(
    model: UnnormalisedDensity, data: Data, chains: int, sweeps: int = 1000, kernel: Any = None
) -> tuple[Any, Starts]:
    """States of the model and what they are: exact samples if possible, else chains after a number of sweeps."""
    if model.tractable:
        exact = in_double(model).exact_sample(chains)
        return model.restore(in_double(model).flat(exact).to(*device_and_dtype(model))), "exact samples"
    starts: Starts = "persistent chains" if len(model.chains) else "chains begun at training data"
    if len(model.chains):
        state = model.restore(model.chains[torch.randperm(len(model.chains))[:chains].to(model.chains.device)])
    else:
        index = torch.randperm(len(data.train))[:chains].to(data.train.x.device)
        batch = data.train.batch(index)
        state = model.state(batch.x, batch.y if model.label_dim else None)
    for after in run(model, state, sweeps, kernel):
        state = after
    return state, starts


@dataclass(frozen=True)
class EnergyEvaluation(HeldOutScores):
    """Held-out scores of an unnormalised density, means over datapoints in nats; undefined scores are None.

    Attributes:
        split: the part of the data.
        measure: the measure of p(x), as for latent-variable models.
        log_evidence: log p(x) = -F(x) - log Z, with log Z by `log_z_method`.
        log_evidence_se: its standard error over datapoints.
        log_evidence_mcse: the standard error of log Z or, if larger than the errors allow, its distance from reverse
            annealing.
        bits_per_dimension: `Data.bits_per_dimension` of log p(x), for images of discrete or dequantized levels.
        log_z: log Z.
        log_z_se: its standard error.
        log_z_method: "exact" or "ais"; the latter is too low in expectation, so that log p(x) is too high.
        log_z_missing: why log Z and log p(x) are missing.
        acceptance: mean acceptance probability in annealing from the base, over real x.
        ais: log Z by annealing from the base and its standard error, if requested or needed.
        reverse_ais: log Z by annealing from samples of the model, and its standard error.
        reverse_starts: what these samples are, and whether the estimate is a bound.
        reverse_missing: why there is no such estimate.
        apart: by how many nats reverse annealing exceeds annealing from the base, if by more than `apart` allows.
        raised: mean bound on log p(x) of the annealing model over some datapoints, their mean log p(x) by `log_z` (None
            without log Z), and their number.
        pseudo_likelihood: ∑_i log p(x_i | all others) over discrete x, which is no bound on log p(x), estimated from
            ten entries of each datapoint.
        pseudo_likelihood_se: its standard error over datapoints and their entries.
        free_energy: mean F(x).
        datapoints: number of datapoints.
        chains: number of annealed chains.
        temperatures: number of annealing steps.
        classification_error: share of known labels that differ from the class of lowest F(x, y), for models with label
            units.
        each: log p(x) of each datapoint, (datapoints,), float64; and `row`, the number of its row in the data, int64.
    """

    split: str
    measure: str
    log_evidence: float | None
    log_evidence_se: float | None
    log_evidence_mcse: float | None
    bits_per_dimension: float | None
    log_z: float | None
    log_z_se: float | None
    log_z_method: str
    log_z_missing: str | None
    acceptance: float | None
    ais: list[float] | None
    reverse_ais: list[float] | None
    reverse_starts: str | None
    reverse_missing: str | None
    apart: float | None
    raised: list[float | None] | None
    pseudo_likelihood: float | None
    pseudo_likelihood_se: float | None
    free_energy: float
    datapoints: int
    chains: int | None
    temperatures: int | None
    classification_error: float | None = None
    each: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def rows(self) -> list[Line]:
        """One printed line per score."""
        if self.log_evidence is None:
            rows: list[Line] = [("log_evidence", "none", str(self.log_z_missing))]
        else:
            exact = self.log_z_method == "exact"
            errors = ["exact log Z" if exact else f"± {self.log_z_se:.2g} of log Z"]
            if not exact and self.apart is not None and self.apart > 0:
                errors.append(f"too high by up to {self.apart:.2g}, as reverse ais says: give more temperatures")
            by = "exact" if exact else f"± {self.log_z_se:.2g} by ais, too low if anything"
            rows = [*self.evidence_rows(errors), ("log_z", f"{self.log_z:.3f}", by)]
        if self.acceptance is not None:
            rows.append(("  acceptance", f"{self.acceptance:.2f}", "of the moves of the chains"))
        if self.ais and self.log_z_method != "ais":
            rows.append(("  by ais", f"{self.ais[0]:.3f}", f"± {self.ais[1]:.2g}"))
        if self.reverse_ais:
            value, error = self.reverse_ais
            remark = f"± {error:.2g}, started from {self.reverse_starts}"
            if self.apart is not None:
                too_low = "ais is too low" if self.apart > 0 else "these starts hold a part of the model alone"
                remark += f"; {abs(self.apart):.2g} apart from ais, more than their errors allow: {too_low}"
            rows.append(("  by reverse ais", f"{value:.3f}", remark))
        elif self.reverse_missing:
            rows.append(("  by reverse ais", "none", self.reverse_missing))
        if self.raised:
            bound, same, number = self.raised
            known = "unknown log_evidence" if same is None else f"log_evidence {same:.3f}"
            rows.append(("raise", f"{bound:.3f}", f"for {number:.0f} datapoints of {known}"))
        if self.pseudo_likelihood is not None:
            spread = "" if self.pseudo_likelihood_se is None else f"± {self.pseudo_likelihood_se:.2g}, "
            rows.append(("pseudo_likelihood", f"{self.pseudo_likelihood:.3f}", f"{spread}no bound"))
        rows.append(("free_energy", f"{self.free_energy:.3f}", ""))
        if self.classification_error is not None:
            rows.append(("classification_error", f"{self.classification_error:.2%}", ""))
        return rows


@torch.no_grad()
def evaluate_energy(
    model: UnnormalisedDensity,
    data: Data,
    *,
    split: str = "test",
    annealing: Annealing = Annealing(),
    seed: int = 0,
    on_step: OnStep | None = None,
) -> EnergyEvaluation:
    """Held-out log p(x), with log Z exact if it can be summed and otherwise by annealed importance sampling.

    Args:
        model: a fitted model.
        data: data in its support.
        split: "train", "validation" or "test".
        annealing: chains, steps and additional estimates.
        seed: seed of the chains.
        on_step: called with the current task, the number of steps done and the total.

    Raises:
        InputError: the data do not fit the model, or there is no such split.
    """
    same_event_shape(model, data)
    data.validate_support(model.support, type(model).__name__)
    data = data.to(*device_and_dtype(model))
    part = data.split(split)
    if model.levels is None:
        warn_if_constant(data.train.batch(slice(0, 10_000)).x)

    def report(what: str) -> Callable[[int], Any] | None:
        return (lambda done: on_step(what, done, annealing.temperatures)) if on_step else None

    with evaluating(model, seed):
        free_energy = torch.cat([model.free_energy(batch.x).double().cpu() for batch in part.batches(1000)])
        unfit = int((~torch.isfinite(free_energy)).sum())
        if unfit:
            raise InputError(
                f"F(x) of {type(model).__name__} is not finite for {unfit} of {len(free_energy)} datapoints; "
                "give nearly impossible values a large finite energy"
            )
        forward = reverse = bounds = None
        anneals = annealing.always or not model.tractable
        kernel = annealing.kernel
        if kernel is not None and not anneals and not annealing.raised:
            raise InputError(
                f"log Z of {type(model).__name__} is exact and takes no chains; leave the kernel out, or estimate it "
                "by chains too, --ais (always=True)"
            )
        if anneals or annealing.raised:
            kernel = adapted(model, kernel, annealing.temperatures)
        steps: dict[str, Any] = {"temperatures": annealing.temperatures, "kernel": kernel}
        if anneals:
            forward = ais(model, chains=annealing.chains, on_step=report("ais"), **steps)
        if forward and not forward.stuck:
            start, starts = model_states(model, data, annealing.chains, kernel=kernel)
            reverse = reverse_ais(model, start, starts, on_step=report("reverse ais"), **steps)
        log_z = exact_log_z(model) if model.tractable else forward
        assert log_z is not None
        if annealing.raised:
            some = part.batch(slice(0, annealing.raised)).x
            bounds = raise_log_prob(model, some, on_step=report("raise"), **steps)
        pseudo = [
            pseudo_likelihood(model, batch.x, entries=10).double().cpu()
            for batch in (part.batches(1000) if model.levels is not None else ())
        ]
        error = _classification_error(model, part)
    between = apart(forward, reverse) if forward and reverse and not reverse.stuck else None
    uncertain = max(log_z.error, between or 0.0) if log_z is forward else log_z.error
    log_p = None if log_z.stuck else -free_energy - log_z.value
    raised: list[float | None] | None = None
    if bounds is not None:
        same = None if log_p is None else log_p[: len(bounds)].mean().item()
        raised = [bounds.mean().item(), same, len(bounds)]
    unit, evidence = measure_of(model.measure, data.record), None if log_p is None else log_p.mean().item()
    label = {"exact samples": "exact samples, a bound"}
    return EnergyEvaluation(
        split=split,
        measure=unit,
        log_evidence=evidence,
        log_evidence_se=None if log_p is None else none_if_nan(standard_error(log_p)),
        log_evidence_mcse=None if log_z.stuck else uncertain,
        bits_per_dimension=data.bits_per_dimension(evidence, unit, model.support),
        log_z=None if log_z.stuck else log_z.value,
        log_z_se=None if log_z.stuck else log_z.error,
        log_z_method=log_z.method,
        log_z_missing=log_z.stuck,
        acceptance=forward.acceptance if forward else None,
        ais=_moving(forward),
        reverse_ais=_moving(reverse),
        reverse_starts=label.get(str(reverse.starts), f"{reverse.starts}, not a bound") if reverse else None,
        reverse_missing=reverse.stuck if reverse else None,
        apart=between,
        raised=raised,
        pseudo_likelihood=torch.cat(pseudo).mean().item() if pseudo else None,
        pseudo_likelihood_se=none_if_nan(standard_error(torch.cat(pseudo))) if pseudo else None,
        free_energy=free_energy.mean().item(),
        datapoints=len(free_energy),
        chains=annealing.chains if forward else None,
        temperatures=annealing.temperatures if forward or annealing.raised else None,
        classification_error=error,
        each={} if log_p is None else {"log_evidence": log_p, "row": part.row_numbers},
    )


class _Path(NamedTuple):
    """The annealing path of a model, with the kernel of its chains."""

    model: UnnormalisedDensity
    kernel: Any

    def log_ratio(self, state: Any, before: float, after: float) -> Tensor:
        return (self.model.log_density(state, after) - self.model.log_density(state, before)).double()

    def move(self, state: Any, beta: float) -> Any:
        return self.kernel(self.model, state, beta)


def _betas(temperatures: int) -> list[float]:
    return [step / temperatures for step in range(temperatures + 1)]


def _require_finite(model: UnnormalisedDensity, state: Any) -> None:
    log_p = model.log_density(state)
    unfit = int((~torch.isfinite(log_p)).sum())
    if unfit:
        raise InputError(
            f"the energy of {type(model).__name__} is not finite at {unfit} of {len(log_p)} states where chains begin; "
            "give nearly impossible values a large finite energy"
        )


def _log_z(
    path: _Path,
    state: Any,
    temperatures: int,
    on_step: Callable[[int], Any] | None,
    method: Literal["ais", "reverse ais"],
    starts: Starts | None = None,
) -> LogZ:
    """log Z by chains from the base or from states of the model."""
    backwards = method == "reverse ais"
    betas = _betas(temperatures)[:: -1 if backwards else 1]
    passed, kept = [betas[0]], []

    def keep(step: int, log_weights: Tensor) -> None:
        if step % math.ceil(temperatures / POINTS) == 0 or step == temperatures:
            passed.append(betas[step])
            kept.append(log_weights)
        if on_step:
            on_step(step)

    log_w, _ = anneal(path, state, betas, keep)
    along = torch.stack([torch.zeros_like(log_w), *kept])
    if backwards:  # weights accumulated from β = 1 down to a point belong to the path above it
        passed, along = passed[::-1], (along - log_w).flip(0)
    base = float(path.model.base_log_z())
    found = _estimate(log_w - base if backwards else log_w + base, path.kernel)
    return replace(
        found,
        value=-found.value if backwards else found.value,
        method=method,
        starts=starts,
        betas=torch.tensor(passed),
        log_weights=(base + along).cpu(),
    )


def _estimate(log_w: Tensor, move: Movement) -> LogZ:
    # Few weights do not show how large others can be. If log w is normal, n exp(-s²) chains are effective, where s is
    # its standard deviation above the median, the side that matters.
    variance = 2 * (log_w - log_w.median()).clamp(min=0).square().mean()
    value, error, ess = (number.item() for number in log_mean(log_w))
    effective = min(ess, len(log_w) * math.exp(-variance))
    few = None
    if effective < min(FEWEST, len(log_w) / 5):
        few = f"{effective:.2g} of {len(log_w)} chains carry all the weight; give more temperatures"
    return LogZ(value, error, "ais", acceptance=move.acceptance, stuck=move.stuck or few)


def apart(forward: LogZ, reverse: LogZ) -> float | None:
    """How far reverse annealing lies above forward annealing, nats, if by more than their errors a and b allow.

    By the delta method, forward annealing is a²/2 below log Z in expectation, and reverse annealing from exact samples
    b²/2 above it. With e² = a² + b² they may differ by e²/2 + 4 e, and by 0.05 nats in any case. The probability that
    forward annealing exceeds log Z by t nats is at most exp(-t) for any model (Markov's inequality). So if they are
    apart, forward annealing is too low or, if the difference is negative, the initial states of reverse annealing cover
    only a part of the model.
    """
    error, difference = math.hypot(forward.error, reverse.error), reverse.value - forward.value
    return difference if abs(difference) > max(SMALL, error**2 / 2 + ERRORS * error) else None


def _moving(estimate: LogZ | None) -> list[float] | None:
    """log Z and its error, if the chains moved."""
    return None if estimate is None or estimate.stuck else [estimate.value, estimate.error]


def _classification_error(model: UnnormalisedDensity, part: Any) -> float | None:
    if not model.label_dim or part.y is None or part.y.is_floating_point():
        return None
    wrong = [(model.classify(x).argmax(-1) != y)[y >= 0] for x, y, _ in part.batches(1000)]
    return torch.cat(wrong).double().mean().item()
