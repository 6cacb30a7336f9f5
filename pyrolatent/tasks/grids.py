"""E[x | z] at latents that are varied one by one: over the quantiles of the prior, and over the classes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrolatent.errors import InputError, at_least_one
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.draws import labels_for, simulate
from pyrolatent.inference.rules import require_latents
from pyrolatent.models.arrays import as_labels, as_tensor
from pyrolatent.models.latent import LatentVariableModel

Quantiles = Callable[[int, list[int]], Tensor]
PRIOR_DRAWS = 100_000
"""Number of draws for prior quantiles without closed form."""


@torch.no_grad()
def latent_grid(
    model: LatentVariableModel, side: int, y: Any = None, *, dimensions: tuple[int, int] = (0, 1)
) -> tuple[Tensor, Tensor]:
    """E[x | z] over a grid of two latent dimensions, or of the only one, with the others at their prior mean.

    The grid consists of prior quantiles at (i + 1/2) / side, so that each cell has the same prior probability. They are
    exact if the prior has them in closed form, and otherwise those of 100,000 draws, the same in every call.

    Args:
        model: a fitted model with one latent vector z and possibly a latent label.
        side: number of points along each dimension.
        y: one label for the whole grid, a class or a vector (label_dim,), for models with labels; None is class 0.
        dimensions: the two dimensions, counted from 0.

    Returns:
        Means (side^d, *event_shape) over d = 1 or 2 dimensions, the first varying slowest, and the quantiles (d, side).

    Raises:
        InputError: the model has other latents, or a prior whose dimensions cannot be set separately; or the label does
            not fit the model, or is missing for a model of label vectors.
    """
    at_least_one(side=side)
    with _separate(model, y) as (label, centre, quantiles_of):
        chosen = dimensions[: len(centre)]
        wrong = len({*chosen}) < len(chosen) or not all(-1 < i < len(centre) for i in chosen)
        if wrong:
            raise InputError(f"dimensions were {chosen}; give two different ones from 0 to {len(centre) - 1}")
        quantiles = quantiles_of(side, [*chosen])
        codes = centre.repeat(side ** len(quantiles), 1)
        codes[:, [*chosen]] = torch.cartesian_prod(*quantiles).reshape(len(codes), -1)
        return _decoded(model, codes, label), quantiles


@torch.no_grad()
def traverse(model: LatentVariableModel, steps: int = 9, y: Any = None) -> tuple[Tensor, Tensor]:
    """E[x | z] as each latent dimension is varied over its prior's quantiles, with the others at their prior mean.

    Args:
        model: a fitted model with one latent vector z and possibly a latent label.
        steps: number of quantiles of each dimension, at (i + 1/2) / steps.
        y: one label, as in `latent_grid`.

    Returns:
        Means (latent_dim, steps, *event_shape), and the quantiles (latent_dim, steps).

    Raises:
        InputError: as in `latent_grid`.
    """
    at_least_one(steps=steps)
    with _separate(model, y) as (label, centre, quantiles_of):
        quantiles = quantiles_of(steps, [*range(len(centre))])
        codes = centre.repeat(len(centre), steps, 1)
        for i, values in enumerate(quantiles):
            codes[i, :, i] = values
        return _decoded(model, codes.flatten(0, 1), label).unflatten(0, (len(centre), steps)), quantiles


@torch.no_grad()
def label_grid(model: LatentVariableModel, rows: int) -> Tensor:
    """E[x | z, y] for each class with the same latent along each row, for models of class labels.

    Along a row the random numbers that z is drawn with are the same, and therefore z itself if p(z) does not depend on
    y.

    Returns:
        (rows * label_dim, *event_shape), the class varying fastest.

    Raises:
        InputError: the model has no classes.
    """
    at_least_one(rows=rows)
    require_latents(model)
    if not model.label_dim or model.vector_labels:
        has = "label vectors" if model.vector_labels else "no labels"
        raise InputError(f"a label grid varies the class, but {type(model).__name__} has {has}; use latent_grid")
    seed = int(torch.randint(2**31, ()))
    columns = []
    for label in range(model.label_dim):
        y = as_labels(model, [label] * rows, rows)
        with evaluating(model, seed):
            columns.append(model.decode(simulate(model, rows, y)[1], y).mean)
    return torch.stack(columns, 1).flatten(0, 1)


def _one(y: Any) -> Any:
    """One label as a batch of one."""
    return None if y is None else as_tensor(y, "y").unsqueeze(0)


@contextmanager
def _separate(model: LatentVariableModel, y: Any) -> Iterator[tuple[Tensor | None, Tensor, Quantiles]]:
    """The label, the prior mean (latent_dim,), and quantiles of some dimensions, (d, side), of a single latent vector.

    The model is in evaluation mode within this context.
    """
    require_latents(model)
    y = labels_for(model, 1, [0] if y is None and model.label_dim and not model.vector_labels else _one(y))
    with evaluating(model, 0), pyro.validation_enabled(False):
        prior = model.simulated(1, y)
        sites = [site for site in prior if site != model.observed_site]
        if len(sites) != 1 or len(prior[sites[0]]["fn"].event_shape) != 1:
            raise InputError(
                f"a latent grid is of one vector z, but {type(model).__name__} has the latents {', '.join(sites)}; "
                "decode values of your own with model.decode"
            )
        of_z = prior[sites[0]]["fn"]
        draws = of_z.sample(torch.Size([PRIOR_DRAWS]))[:, 0]
        try:
            centre = of_z.mean[0]
        except NotImplementedError:
            centre = draws.mean(0)

        def quantiles(side: int, dimensions: list[int]) -> Tensor:
            levels = ((torch.arange(side) + 0.5) / side).to(draws)
            try:
                elementwise = of_z.base_dist if isinstance(of_z, dist.Independent) else of_z
                found = elementwise.icdf(levels.reshape(-1, 1, 1))[:, 0, dimensions]
            except NotImplementedError:
                found = torch.quantile(draws[:, dimensions], levels, dim=0)
            at = centre.repeat(side, 1)
            at[:, dimensions] = found
            if of_z.support.is_discrete or not of_z.support.check(at).all():
                raise InputError(
                    f"a latent grid moves continuous dimensions one by one, but the prior is over {of_z.support}; "
                    "decode values of your own with model.decode"
                )
            return found.T

        yield y, centre, quantiles


def _decoded(model: LatentVariableModel, codes: Tensor, y: Tensor | None) -> Tensor:
    mean: Tensor = model.decode(codes, None if y is None else y.expand(len(codes), *y.shape[1:])).mean
    return mean
