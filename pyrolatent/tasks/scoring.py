"""log p(x) of each datapoint, and what it says of anomalies."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrolatent.errors import InputError, at_least, at_least_one, validate_options
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.draws import draw
from pyrolatent.inference.evidence import importance
from pyrolatent.inference.evidence.energies import ais, exact_log_z
from pyrolatent.inference.evidence.psis import khat
from pyrolatent.inference.monte_carlo import log_mean
from pyrolatent.inference.refine import refinable, refine
from pyrolatent.inference.rules import require_support
from pyrolatent.inference.weights import Inputs
from pyrolatent.models.arrays import as_inputs
from pyrolatent.models.energies.density import UnnormalisedDensity
from pyrolatent.models.model import Capability

AT_ONCE = 100
"""Number of datapoints that are scored at a time."""
STEPS = 200
"""Number of steps by which posteriors are refined where that is the default."""


@dataclass(frozen=True)
class RowScores:
    """log p(x) of each datapoint, or log p(x | y) in conditional models, in nats; higher is more probable.

    Attributes:
        log_p: log p(x), (batch,), float64.
        error: its Monte Carlo standard error, (batch,); 0 where it is exact.
        khat: k-hat of the importance weights, (batch,); above `khat_threshold` of their number, 0.7 for 2,200 or more,
            the error cannot be relied on. None where there are none.
    """

    log_p: Tensor
    error: Tensor
    khat: Tensor | None


@torch.no_grad()
def score(
    model: Any,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    particles: int = 5000,
    refined: int | None = None,
    seed: int = 0,
) -> RowScores:
    """log p(x) of each datapoint: exact where it has a closed form, else by importance sampling.

    The proposal is q(z | x), or with `refined` a posterior of the same family for each datapoint, optimised from the
    encoder's. It helps where the encoder is wrong, as with gaps that it was not trained with: there it is the default,
    because log p(x) of half an image may otherwise be tens of nats too low.

    The scores of an unnormalised density are -F(x) - log Z; where log Z is estimated by annealing, all rows share its
    error.

    Args:
        model: a fitted model with a density.
        x: data (batch, *event_shape); NaN is missing and integrated out.
        y: labels of conditional models.
        mask: True where x is observed.
        particles: number of draws per datapoint, where there is no closed form.
        refined: number of steps by which the posterior of each datapoint is refined first (`inference.refine`); None is
            200 where x has gaps, the encoder was not trained with any, and its posterior can be refined; else 0.
        seed: seed of the draws.

    Raises:
        InputError: the model has no density of x, or an argument does not fit it.
    """
    at_least_one(particles=particles)
    at_least(0, refined=refined)
    return _score(model, x, y, mask, particles, refined, seed)


@functools.singledispatch
def _score(model: Any, x: Any, y: Any, mask: Any, particles: int, refined: int | None, seed: int) -> RowScores:
    model.require(Capability.DENSITY, "reconstruct shows how far x is from its reconstruction")
    if not model.observes_x:
        raise InputError(f"{type(model).__name__} observes no x as it is, so that it has no log p(x)")
    inputs = as_inputs(model, x, y if model.conditional else None, mask)
    with evaluating(model, seed), pyro.validation_enabled(False):
        require_support(model, inputs)
        exact = model.log_evidence(inputs[0], inputs[2])
        if exact is not None:
            return RowScores(exact.double().cpu(), torch.zeros(len(exact), dtype=torch.float64), None)
        parts = []
        steps = default_steps(model, inputs) if refined is None else refined
        for start in range(0, len(inputs[0]), AT_ONCE):
            x, y, seen = (None if field is None else field[start : start + AT_ONCE] for field in inputs)
            assert x is not None
            parts.append(_of_batch(model, (x, y, seen), particles, steps))
    return RowScores(*(torch.cat(each).double().cpu() for each in zip(*parts, strict=True)))


def default_steps(model: Any, inputs: Inputs) -> int:
    """How long to refine posteriors: not at all, unless x has gaps that the encoder was not trained with."""
    unseen = inputs[2] is not None and not model.sees_gaps and not bool(inputs[2].all())
    return STEPS if unseen and refinable(model, inputs) else 0


def _of_batch(model: Any, inputs: Inputs, particles: int, refined: int) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x), its error and k-hat of a batch."""
    if refined:
        posterior = refine(model, *inputs, steps=refined)
        log_weights = draw(model, inputs, particles, keep=0, guide=posterior).log_weights
        log_p, error, _ = log_mean(log_weights)
        return log_p, error, khat(log_weights.cpu())
    found = importance.score(model, *inputs, particles=particles)
    return found.log_evidence, found.mcse, found.khat


@_score.register
def _(
    model: UnnormalisedDensity, x: Any, y: Any, mask: Any, particles: int, refined: int | None, seed: int
) -> RowScores:
    validate_options(f"the score of {type(model).__name__}", (), {"mask": mask, "refined": refined})
    values, _ = model.validated(x)
    with evaluating(model, seed):
        if model.tractable:
            log_z, error = exact_log_z(model).value, 0.0
        else:
            estimate = ais(model)
            log_z, error = estimate.value, estimate.error
        log_p = -model.free_energy(values).double().cpu() - log_z
    return RowScores(log_p, torch.full_like(log_p, error), None)


@dataclass(frozen=True)
class Anomalies:
    """Which datapoints are unlike those of a reference, at a rate of false alarms.

    Attributes:
        by_density: whether log p(x) lies below that of all but a share `alarms` of the reference, (batch,), bool.
        by_typicality: whether |log p(x) - centre| exceeds that of all but a share `alarms` of the reference.
        lowest: the threshold of log p(x).
        centre: mean log p(x) of the reference.
        distance: the threshold of |log p(x) - centre|.
    """

    by_density: Tensor
    by_typicality: Tensor
    lowest: float
    centre: float
    distance: float


def anomalies(log_p: Tensor, reference: Tensor, alarms: float = 0.05) -> Anomalies:
    """Compares log p(x) with that of data that are known to be ordinary, such as the validation data.

    Thresholds are conformal: of exchangeable data at most a share `alarms` is called an anomaly. A density alone can
    rank outliers above the data that it was trained on (Nalisnick et al. 2019, 1810.09136), such as plain images among
    rich ones; typicality asks for a log p(x) that is neither too low nor too high (Nalisnick et al. 2019, 1906.02994).

    Args:
        log_p: log p(x) of the datapoints in question, (batch,).
        reference: log p(x) of ordinary datapoints that were not trained on, (datapoints,).
        alarms: largest share of ordinary datapoints that are called anomalies.

    Raises:
        InputError: there are too few of the reference for so small a share.
    """
    if not 0 < alarms < 1:
        raise InputError(f"alarms was {alarms}; give a share between 0 and 1")
    lowest = -_conformal(-reference, alarms)
    centre = reference.mean()
    distance = _conformal((reference - centre).abs(), alarms)
    return Anomalies(log_p < lowest, (log_p - centre).abs() > distance, lowest.item(), centre.item(), distance.item())


def _conformal(scores: Tensor, alarms: float) -> Tensor:
    """The value that an exchangeable score exceeds with probability at most `alarms`."""
    count = len(scores)
    rank = math.ceil((1 - alarms) * (count + 1))
    if rank > count:
        raise InputError(
            f"a share of {alarms:g} needs at least {math.ceil(1 / alarms - 1)} reference datapoints, but there "
            f"are {count}"
        )
    return scores.sort().values[rank - 1]
