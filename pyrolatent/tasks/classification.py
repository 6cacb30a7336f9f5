"""Classes of datapoints: p(y | x) under a model of x and y."""

import functools
from typing import Any

import torch
from torch import Tensor

from pyrolatent.errors import InputError
from pyrolatent.models.arrays import as_inputs
from pyrolatent.models.energies.rbm import RestrictedBoltzmannMachine
from pyrolatent.tasks.codes import means
from pyrolatent.tasks.scoring import score

PARTICLES = 1000
"""Default number of draws for log p(x | y)."""


@torch.no_grad()
def classify(model: Any, x: Any, mask: Any = None, *, particles: int = PARTICLES, seed: int = 0) -> Tensor:
    """p(y | x) over the classes, (batch, label_dim).

    A semi-supervised model has a classifier q(y | x). A conditional one has p(y | x) ∝ p(x | y), with log p(x | y) of
    each class by importance sampling and equally frequent classes; a restricted Boltzmann machine with label units has
    p(y | x) in closed form.

    Args:
        model: a fitted model of class labels.
        x: data (batch, *event_shape).
        mask: True where x is observed.
        particles: number of draws for each class, in conditional models.
        seed: seed of the draws.

    Raises:
        InputError: the model has no classes, or an argument does not fit it.
    """
    if not model.label_dim or model.vector_labels:
        has = "label vectors" if model.vector_labels else "no labels"
        raise InputError(
            f"{type(model).__name__} has {has} and so no classes; encode, and train a classifier on the codes"
        )
    return _classify(model, x, mask, particles, seed)


@functools.singledispatch
def _classify(model: Any, x: Any, mask: Any, particles: int, seed: int) -> Tensor:
    if model.label_site is not None:
        return means(model, x, None, mask)[model.label_site]
    if not model.conditional:
        raise InputError(f"{type(model).__name__} does not model its labels; declare semi_supervised_vae")
    x, _, mask = as_inputs(model, x, None, mask)
    log_p = [
        score(model, x, [label] * len(x), mask, particles=particles, seed=seed).log_p
        for label in range(model.label_dim)
    ]
    return torch.stack(log_p, -1).softmax(-1)


@_classify.register
def _(model: RestrictedBoltzmannMachine, x: Any, mask: Any, particles: int, seed: int) -> Tensor:
    if mask is not None:
        raise InputError(f"{type(model).__name__} classifies complete data; leave the mask out")
    return model.classify(x)
