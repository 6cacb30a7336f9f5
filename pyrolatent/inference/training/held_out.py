"""The score of each type of model on held-out data after each epoch: one number, higher is better."""

import math
from collections.abc import Callable
from functools import partial, singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrolatent.data.splits import Data
from pyrolatent.inference.evidence.pseudo_likelihood import pseudo_likelihood
from pyrolatent.inference.objectives.base import Objective
from pyrolatent.inference.objectives.bounds import IWAE, AnalyticELBO, Bound
from pyrolatent.inference.objectives.exact import SquaredError
from pyrolatent.inference.objectives.score_matching import sliced_score_matching
from pyrolatent.inference.weights import Inputs
from pyrolatent.models.autoencoder import DeterministicModel
from pyrolatent.models.energies.density import UnnormalisedDensity
from pyrolatent.models.vae import GenerativeNetwork

DRAWS = 100
"""Least number of draws from the posterior that a bound on held-out data rests on; few rows have several each."""


class HeldOut(NamedTuple):
    """A held-out score.

    Attributes:
        name: name in the history; if it ends in `loss`, the history has the negative score.
        score: sum over a minibatch x, y, mask; higher is better.
        monitor: further numbers, computed from the data.
    """

    name: str
    score: Callable[[Inputs], Tensor]
    monitor: Callable[[Data], dict[str, float]]


@singledispatch
def held_out(model: Any, objective: Objective, rows: int) -> HeldOut:
    """The held-out score of a model.

    It is a bound for models with a posterior and squared error for models without a density. Unnormalised densities
    have the pseudo-likelihood for discrete x and sliced score matching for real x, which need no normaliser. If the
    prior replaces the posterior, the bound has as many draws as the objective, since one draw would be uninformative.
    Otherwise it has as many draws of each datapoint as there must be for `DRAWS` of all: epochs are compared by it.
    States that the generative function alone has are summed out by the objective, which is then the score.

    Args:
        model: the model.
        objective: what is maximised.
        rows: number of held-out datapoints.
    """
    if model.own_states:
        return HeldOut("validation_elbo", partial(_of_pyro, objective, model), _nothing)
    bound = AnalyticELBO(particles=math.ceil(DRAWS / rows) if model.vectorises else 1)
    return HeldOut("validation_elbo", partial(_bound, bound, model), _nothing)


@held_out.register
def _(model: GenerativeNetwork, objective: Objective, rows: int) -> HeldOut:
    return HeldOut("validation_bound", partial(_bound, IWAE(particles=objective.num_particles), model), _nothing)


@held_out.register
def _(model: DeterministicModel, objective: Objective, rows: int) -> HeldOut:
    return HeldOut("validation_loss", lambda inputs: -SquaredError().loss(model, inputs).sum(), _nothing)


@held_out.register
def _(model: UnnormalisedDensity, objective: Objective, rows: int) -> HeldOut:
    if model.levels is None:
        return HeldOut(
            "validation_loss",
            lambda inputs: -sliced_score_matching(model, inputs[0]).detach().sum(),
            partial(monitor, model),
        )
    return HeldOut(
        "validation_pseudo_likelihood",
        lambda inputs: pseudo_likelihood(model, inputs[0], entries=1).sum(),
        partial(monitor, model),
    )


def _bound(bound: Bound, model: Any, inputs: Inputs) -> Tensor:
    with model.given(model.global_draw(inputs)):
        weights = bound.weigh(model.generate, model.infer, *inputs, jointly=bound.jointly)
    return bound.bound(weights).sum()  # in nats, whatever scale the program has


def _of_pyro(objective: Any, model: Any, inputs: Inputs) -> Tensor:
    return torch.tensor(-objective.elbo.loss(model.model, model.guide, *inputs))


def _nothing(data: Data) -> dict[str, float]:
    return {}


@torch.no_grad()
def monitor(model: UnnormalisedDensity, data: Data) -> dict[str, float]:
    """The model's own diagnostics, and mean F(validation) - mean F(training), which grows as a model overfits.

    Equally many training and validation datapoints are used, at most 1,000 (Hinton 2010, section 6).
    """
    size = min(1000, len(data.validation), len(data.train))
    train, validation = (split.batch(slice(0, size)) for split in (data.train, data.validation))
    gap = model.free_energy(validation.x).mean() - model.free_energy(train.x).mean()
    y = train.y if model.label_dim else None
    return {"free_energy_gap": gap.item(), **model.monitor(train.x, y)}
