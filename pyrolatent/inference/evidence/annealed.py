"""log p(x) by annealing from the prior, which does not use the encoder, and brackets of it on simulated data.

    f_b(z) = p(z)^(1 - b) p(x, z)^b,  0 = b_0 < b_1 < ... < b_T = 1

Annealed importance sampling draws z ~ p(z) and moves it by Hamiltonian Monte Carlo along the densities f_b. The mean of
its weight prod_t (p(x, z_t) / p(z_t))^(b_t+1 - b_t) is p(x), whatever the moves (Neal 2001). All continuous sites are
moved jointly, in unconstrained coordinates u with the Jacobian of z(u); enumerated sites are summed out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import MixtureSameFamilyConstraint

from pyrolatent.data.splits import Data
from pyrolatent.errors import InputError, at_least_one
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.draws import labels_for, repeated, simulate
from pyrolatent.inference.evidence.importance import measure, observation_support
from pyrolatent.inference.evidence.result import HeldOutScores, Line
from pyrolatent.inference.monte_carlo import log_mean, none_if_nan, standard_error
from pyrolatent.inference.rules import require_latents, split_for
from pyrolatent.inference.sampling.annealing import anneal
from pyrolatent.inference.sampling.kernels import HMC, adapted_steps
from pyrolatent.inference.weights import Inputs, arguments, weigh
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.plates import Unweighted

Schedule = Literal["sigmoid", "linear"]
MAX_ELEMENTS = 2**22
"""Elements per decoded chunk of chains and datapoints, for which gradients are stored."""
PILOTS = 8
"""Number of pilot chains on which step sizes are adapted."""


@dataclass(frozen=True)
class AnnealedEvidence(HeldOutScores):
    """log p(x) by annealed importance sampling, means over datapoints in nats.

    Attributes:
        split: the part of the data.
        measure: the measure of the scores, as in `Evaluation`.
        log_evidence: log (1/K) sum_k w_k, a lower bound in expectation.
        log_evidence_se: its standard error over datapoints.
        log_evidence_mcse: its Monte Carlo standard error over chains, by the delta method.
        bits_per_dimension: `Data.bits_per_dimension` of log p(x), for images of discrete or dequantized levels.
        ess: mean effective sample size of the chains.
        acceptance: mean acceptance probability of the moves.
        exact: the exact log p(x) of the same datapoints, if it has a closed form.
        datapoints: number of datapoints.
        chains: number K of chains per datapoint.
        steps: number T of annealing steps.
        each: log p(x) and effective sample size of each datapoint, (datapoints,), float64; and `row`, the number of its
            row in the data, int64.
    """

    split: str
    measure: str
    log_evidence: float
    log_evidence_se: float | None
    log_evidence_mcse: float | None
    bits_per_dimension: float | None
    ess: float
    acceptance: float
    exact: float | None
    datapoints: int
    chains: int
    steps: int
    each: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def title(self) -> str:
        """Title of the printed scores."""
        return f"{super().title}, {self.chains} chains of {self.steps} steps"

    def rows(self) -> list[Line]:
        """One printed line per score."""
        mcse = self.log_evidence_mcse
        rows = self.evidence_rows([] if mcse is None else [f"± {mcse:.2g} of the draws"])
        if self.exact is not None:
            rows.append(("exact", f"{self.exact:.3f}", "in closed form"))
        rows.append(("ess", f"{self.ess:.1f}", f"of {self.chains} chains"))
        rows.append(("acceptance", f"{self.acceptance:.2f}", ""))
        return rows


@dataclass(frozen=True)
class Bracket:
    """Bounds on log p(x) of data simulated from the model, means over datapoints in nats.

    Attributes:
        lower: log (1/K) sum_k w_k of chains from the prior; below log p(x) in expectation.
        upper: -log (1/K) sum_k 1 / w_k of chains from the latents that x was simulated with; above it in expectation.
        width: upper - lower, which bounds the error of either.
        width_se: its standard error over datapoints.
        exact: the exact log p(x), if it has a closed form.
        ess: mean effective sample size of the forward chains.
        acceptance: mean acceptance probability of the moves.
        datapoints: number of simulated datapoints.
        chains: number K of chains in each direction.
        steps: number T of annealing steps.
        each: lower and upper bound of each datapoint, (datapoints,), float64.
    """

    lower: float
    upper: float
    width: float
    width_se: float | None
    exact: float | None
    ess: float
    acceptance: float
    datapoints: int
    chains: int
    steps: int
    each: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def rows(self) -> list[Line]:
        """Lines printed below those of `AnnealedEvidence`."""
        return [
            ("bracket", f"{self.lower:.3f}", f"to {self.upper:.3f} on simulated data"),
            ("width", f"{self.width:.3f}", "bounds the error where data are like the simulated"),
        ]


def annealed_evidence(
    model: LatentVariableModel,
    data: Data,
    *,
    split: str = "test",
    size: int | None = 100,
    chains: int = 16,
    steps: int = 500,
    leapfrog: int = 10,
    schedule: Schedule = "sigmoid",
    seed: int = 0,
    on_batch: Callable[[int], Any] | None = None,
) -> AnnealedEvidence:
    """Held-out log p(x) by annealed importance sampling (Neal 2001; for decoders: Wu et al. 2017, 1611.04273).

    Args:
        model: a fitted model.
        data: data with the event shape and in the support of the model's likelihood.
        split: "train", "validation" or "test".
        size: number of datapoints, from the first; None for all.
        chains: number of chains per datapoint.
        steps: number of annealing steps.
        leapfrog: number of leapfrog steps per move.
        schedule: schedule of b: "linear", or "sigmoid", which is slower at both ends.
        seed: seed of the draws.
        on_batch: called with the number of datapoints done.

    Raises:
        InputError: the data do not fit the model, or a latent is discrete and not enumerated.
    """
    at_least_one(size=size, chains=chains, steps=steps, leapfrog=leapfrog)
    part = split_for(model, data, split)
    support = observation_support(model, part.batch(slice(0, 1)), data)
    unit = measure(model, data, support)
    if unit == "cross-entropy":
        raise InputError("a cross-entropy on grey values is no likelihood, so it has no evidence; binarize the data")
    count = len(part) if size is None else min(size, len(part))
    batch_size = _batch_size(model, chains)
    summaries, acceptance, exact = [], [], []
    betas = _betas(steps, schedule)
    with pyro.validation_enabled(False), evaluating(model, seed):
        for start in range(0, count, batch_size):
            batch = arguments(model, part.batch(slice(start, min(start + batch_size, count))))
            target = _Target(model, batch, chains)
            log_weights, accepted = target.annealed(betas, leapfrog)
            summaries.append(torch.stack(log_mean(log_weights)))
            acceptance.append(accepted)
            exact.append(_exact(model, batch))
            if on_batch:
                on_batch(start + len(batch[0]))
    evidence, mcse, ess = torch.cat(summaries, -1).double().cpu()
    return AnnealedEvidence(
        split=split,
        measure=unit,
        bits_per_dimension=data.bits_per_dimension(
            evidence.mean().item(), unit, support, None if part.mask is None else part.mask[:count]
        ),
        log_evidence=evidence.mean().item(),
        log_evidence_se=none_if_nan(standard_error(evidence)),
        log_evidence_mcse=mcse.square().sum().sqrt().item() / count if chains > 1 else None,
        ess=ess.mean().item(),
        acceptance=torch.cat(acceptance).mean().item(),
        exact=_mean(exact),
        datapoints=count,
        chains=chains,
        steps=steps,
        each={"log_evidence": evidence, "ess": ess, "row": part.row_numbers[:count]},
    )


def bidirectional_evidence(
    model: LatentVariableModel,
    *,
    size: int = 100,
    y: Tensor | None = None,
    chains: int = 16,
    steps: int = 500,
    leapfrog: int = 10,
    schedule: Schedule = "sigmoid",
    seed: int = 0,
    on_batch: Callable[[int], Any] | None = None,
) -> Bracket:
    """Bidirectional Monte Carlo on data simulated from the model (Grosse et al. 2015, 1511.02543).

    For (z, x) ~ p(z, x), z is an exact draw from p(z | x), from which chains run back to the prior; the mean of their
    1 / w is 1 / p(x). A wide bracket means that these steps and chains do not suffice for this decoder.

    Args:
        model: a fitted model.
        size: number of datapoints to simulate.
        y: labels of conditional models, (size,) or (size, label_dim); None takes the classes in turn. For a model that
            infers the label, the classes to simulate; the bracket is then of log p(x, y).
        chains: number of chains per datapoint in each direction.
        steps: number of annealing steps.
        leapfrog: number of leapfrog steps per move.
        schedule: as in `annealed_evidence`.
        seed: seed of the simulation and of the chains.
        on_batch: called with the number of datapoints done.

    Raises:
        InputError: a latent is discrete and not enumerated, or labels do not fit the model.
    """
    at_least_one(size=size, chains=chains, steps=steps, leapfrog=leapfrog)
    require_latents(model)
    batch_size = _batch_size(model, chains)
    y = labels_for(model, size, y)
    lower, upper, ess, acceptance, exact = [], [], [], [], []
    betas = _betas(steps, schedule)
    with pyro.validation_enabled(False), evaluating(model, seed):
        for start in range(0, size, batch_size):
            labels = None if y is None else y[start : start + batch_size]
            x, latents = simulate(model, min(batch_size, size - start), labels)
            target = _Target(model, (x, labels, None), chains)
            log_steps = target.log_steps(betas, leapfrog)
            log_weights, accepted = target.annealed(betas, leapfrog, log_steps)
            back, _ = target.annealed(betas[::-1], leapfrog, log_steps, start=latents)
            found, _, effective = log_mean(log_weights)
            lower.append(found)
            upper.append(-log_mean(back)[0])
            ess.append(effective)
            acceptance.append(accepted)
            exact.append(_exact(model, (x, labels, None)))
            if on_batch:
                on_batch(start + len(x))
    below, above = (torch.cat(part).double().cpu() for part in (lower, upper))
    return Bracket(
        lower=below.mean().item(),
        upper=above.mean().item(),
        width=(above - below).mean().item(),
        width_se=none_if_nan(standard_error(above - below)),
        exact=_mean(exact),
        ess=torch.cat(ess).mean().item(),
        acceptance=torch.cat(acceptance).mean().item(),
        datapoints=size,
        chains=chains,
        steps=steps,
        each={"lower": below, "upper": above},
    )


class _Target:
    """log p(z) and log p(x, z) of the continuous latents of a batch, in unconstrained coordinates.

    Args:
        model: the model.
        inputs: x, y, mask.
        chains: number of chains.

    Raises:
        InputError: a discrete site is not enumerated, or there is no continuous one.
    """

    def __init__(self, model: LatentVariableModel, inputs: Inputs, chains: int) -> None:
        self.model, self.inputs, self.chains = model, inputs, chains
        with torch.no_grad():
            probe = weigh(model.generate, model.infer, *inputs)
        self.plate = probe.plate.name or "data"
        self.enumerated, self.transforms, self.event_dims, self.shapes = {}, {}, {}, {}
        for site in probe.latents:
            guide, prior = (trace.nodes[site] for trace in (probe.guide_trace, probe.model_trace))
            if "_enumerate_dim" in guide["infer"]:
                self.enumerated[site] = guide["fn"]
            elif prior["fn"].support.is_discrete:
                raise InputError(
                    f"annealing moves continuous latents, but {site} of {type(model).__name__} is discrete and not "
                    "enumerated; declare estimator: enumerate, a relaxed posterior, or use importance sampling"
                )
            else:
                self.transforms[site] = biject_to(_of_components(prior["fn"].support))
                self.event_dims[site] = prior["fn"].event_dim
                self.shapes[site] = self.transforms[site].inverse_shape(prior["fn"].event_shape)
        if not self.transforms:
            raise InputError(
                f"every latent of each datapoint of {type(model).__name__} is summed out, so that nothing is left to "
                "anneal: its evidence by importance sampling is exact"
            )

    def coordinates(self, latents: dict[str, Tensor]) -> Tensor:
        """Latents by site, (..., batch, *event), as one vector of coordinates, (..., batch, dimensions)."""
        parts = [transform.inv(latents[site]) for site, transform in self.transforms.items()]
        return torch.cat(
            [u.reshape(*u.shape[: u.dim() - len(s)], -1) for u, s in zip(parts, self.shapes.values(), strict=True)], -1
        )

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z(u)) and log p(x, z(u)) with the Jacobian |dz / du|, (chains, batch), enumerated sites summed out."""
        values, jacobian = {}, u.new_zeros(u.shape[:-1])
        flat = u.split([shape.numel() for shape in self.shapes.values()], -1)
        for (site, transform), part in zip(self.transforms.items(), flat, strict=True):
            own = part.reshape(*part.shape[:-1], *self.shapes[site])
            values[site] = transform(own)
            jacobian = jacobian + transform.log_abs_det_jacobian(own, values[site])

        def guide(x: Tensor, y: Tensor | None, mask: Tensor | None) -> None:
            with pyro.plate(self.plate, len(x), dim=-1):
                for site, fn in self.enumerated.items():
                    pyro.sample(site, fn, infer={"enumerate": "parallel"})
                for site, value in values.items():
                    at = value.squeeze(0) if len(u) == 1 else value  # a single particle has no dimension
                    pyro.sample(site, dist.Delta(at, event_dim=self.event_dims[site]))

        with Unweighted():
            weights = weigh(self.model.generate, guide, *self.inputs, particles=len(u))
        prior, joint = weights.log_prior_of_all, weights.log_joint
        return self._summed(prior) + jacobian, self._summed(joint) + jacobian

    def annealed(
        self,
        betas: list[float],
        leapfrog: int,
        log_steps: dict[float, Tensor] | None = None,
        start: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-weights, (chains, batch), and mean acceptance, (batch,), of chains along a path.

        Args:
            betas: exponents, rising from 0 to 1 from the prior to the posterior, or falling from 1 to 0.
            leapfrog: number of leapfrog steps per move.
            log_steps: `log_steps` of the path; None computes them.
            start: exact draws of the latents given x, (batch, ...), for falling exponents.
        """
        path = _Path(self, HMC(leapfrogs=leapfrog), self.log_steps(betas, leapfrog) if log_steps is None else log_steps)
        u = self.prior() if start is None else self.coordinates(start).expand(self.chains, -1, -1)
        log_weights, _ = anneal(path, self.state(u), betas)
        return log_weights, torch.stack(path.accepted).mean(0) if path.accepted else log_weights.new_zeros(u.shape[1])

    def log_steps(self, betas: list[float], leapfrog: int) -> dict[float, Tensor]:
        """Log step sizes of each datapoint, (batch,), by exponent, adapted on separate pilot chains."""
        state, between = self.state(self.prior()[:PILOTS]), betas[1:-1]
        path = _Path(self, HMC(leapfrogs=leapfrog), {})

        def move(state: _State, beta: float, log_step: Tensor) -> tuple[_State, Tensor]:
            path.log_steps[beta] = log_step
            state = path.move(state, beta)
            return state, path.accepted[-1]

        begin = state.log_likelihood.new_full(state.log_likelihood.shape[1:], math.log(0.5))
        found = adapted_steps(move, state, between, begin, HMC.target, first=15, each=1, averaged=1)
        return dict(zip(between, found, strict=True))

    def prior(self) -> Tensor:
        """Coordinates of draws from the prior, (chains, batch, dimensions)."""
        x, y, _ = self.inputs
        labels = None if y is None else repeated(y, self.chains)
        _, latents = simulate(self.model, self.chains * len(x), labels)
        return self.coordinates(latents).unflatten(0, (self.chains, len(x)))

    @torch.no_grad()
    def state(self, u: Tensor) -> "_State":
        """The state of chains at these coordinates."""
        log_prior, log_joint = self.log_densities(u)
        return _State(u, log_joint - log_prior)

    def _summed(self, values: Tensor) -> Tensor:
        return values.flatten(0, -3).logsumexp(0) if self.enumerated else values


class _State(NamedTuple):
    """Coordinates of chains, (chains, batch, dimensions), and log p(x | z) there, (chains, batch)."""

    u: Tensor
    log_likelihood: Tensor


class _Path:
    """The densities f_b of a target, and moves with a step size per exponent and datapoint.

    Attributes:
        accepted: mean acceptance of each move, (batch,).
    """

    def __init__(self, target: _Target, kernel: HMC, log_steps: dict[float, Tensor]) -> None:
        self.target, self.kernel, self.log_steps = target, kernel, log_steps
        self.accepted: list[Tensor] = []

    def log_ratio(self, state: _State, before: float, after: float) -> Tensor:
        return (after - before) * state.log_likelihood

    def move(self, state: _State, beta: float) -> _State:
        def log_density(u: Tensor) -> tuple[Tensor, Tensor]:
            log_prior, log_joint = self.target.log_densities(u)
            return torch.lerp(log_prior, log_joint, beta), log_joint - log_prior

        point, probability = self.kernel.move(log_density, state.u, self.log_steps[beta].exp())
        self.accepted.append(probability.mean(0))
        return _State(point.x, *point.terms)


def _betas(steps: int, schedule: Schedule) -> list[float]:
    """b_0 = 0, ..., b_T = 1; for "sigmoid" sigma(4 (2 t / T - 1)), scaled to [0, 1] (Grosse et al. 2015)."""
    line = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if schedule == "linear":
        return line.tolist()
    if schedule != "sigmoid":
        raise InputError(f"there is no schedule {schedule!r}; valid: sigmoid, linear")
    curve = torch.sigmoid(4 * (2 * line - 1))
    return ((curve - curve[0]) / (curve[-1] - curve[0])).tolist()


def _of_components(support: Any) -> Any:
    """The support of the components, for that of a mixture."""
    return support.base_constraint if isinstance(support, MixtureSameFamilyConstraint) else support


def _batch_size(model: LatentVariableModel, chains: int) -> int:
    return max(1, MAX_ELEMENTS // (chains * model.event_shape.numel()))


def _exact(model: LatentVariableModel, inputs: Inputs) -> Tensor | None:
    """log p(x), (batch,), if it has a closed form."""
    x, _, mask = inputs
    with torch.no_grad():
        return model.log_evidence(x, mask)


def _mean(parts: list[Tensor | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known).double().mean().item() if known else None
