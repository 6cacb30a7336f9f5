"""What people do with a fitted model. Data, labels, masks and latents may be tensors, arrays or lists of any type."""

import functools
import itertools
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrolatent.errors import InputError, at_least, at_least_one, validate_options
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.draws import MAX_ELEMENTS, labels_for, posterior_means, repeated, resampled, simulate
from pyrolatent.inference.evidence.psis import khat, khat_threshold, too_large
from pyrolatent.inference.monte_carlo import log_mean
from pyrolatent.inference.rules import require_latents
from pyrolatent.inference.sampling.chains import sample_energy
from pyrolatent.models.arrays import as_inputs, as_labels, as_tensor
from pyrolatent.models.energies.density import UnnormalisedDensity
from pyrolatent.models.isolation import evaluating_alone
from pyrolatent.models.latent import LatentVariableModel, observed_node
from pyrolatent.models.model import Capability

DRAWS = 100
"""From a posterior whose mean has no closed form: the error of the mean is a tenth of its standard deviation."""
PRIOR_DRAWS = 100_000
"""From a prior whose quantiles have no closed form."""


@torch.no_grad()
def sample(
    model: LatentVariableModel | UnnormalisedDensity,
    size: int,
    y: Any = None,
    *,
    mean: bool = False,
    sweeps: int | None = None,
    kernel: Any = None,
) -> Tensor:
    """Draws z ~ p(z), x ~ p(x | z); of unnormalised densities, as `sample_energy` does.

    Args:
        model: a fitted model.
        size: number of draws.
        y: labels (size,) or vectors (size, label_dim) to draw at, of conditional models, of models that infer the
            label and of machines with label units; if None, the classes in turn of the first, and draws of the label
            of the others.
        mean: whether to return E[x | z] instead of a draw of x, which for images is smoother to look at.
        sweeps: of the chains of unnormalised densities that are not drawn from exactly; None is 1,000.
        kernel: what moves them, as in `sample_energy`.

    Returns:
        (size, *event_shape).

    Raises:
        InputError: labels that do not fit the model, or none for a model that was trained on label vectors; options of
            chains where none are run.
    """
    at_least_one(size=size)
    at_least(0, sweeps=sweeps)
    return _sample(model, size, y, mean, {"sweeps": sweeps, "kernel": kernel})


@functools.singledispatch
def _sample(model: Any, size: int, y: Any, mean: bool, options: dict[str, Any]) -> Tensor:
    validate_options(f"{type(model).__name__}, which is drawn from without chains,", (), options)
    y = labels_for(model, size, y)
    x, latents = simulate(model, size, y)
    return model.decode(latents, y).mean if mean else x


@_sample.register
def _(model: UnnormalisedDensity, size: int, y: Any, mean: bool, options: dict[str, Any]) -> Tensor:
    exact, name = model.tractable and y is None and options["kernel"] is None, type(model).__name__
    given = validate_options(
        f"an exact draw of {name}" if exact else name, ("kernel", *["sweeps"] * (not exact)), options
    )
    return sample_energy(model, size, None if y is None else as_labels(model, y, size), mean=mean, **given)


@functools.singledispatch
def sample_title(model: Any, mean: bool) -> str:
    """What `sample` gives, in the words of a figure's title."""
    y = "" if not model.label_dim else ", y"
    return f"E[x | z{y}] at draws of z ~ p(z)" if mean else f"draws of x ~ p(x | z{y})"


@sample_title.register
def _(model: UnnormalisedDensity, mean: bool) -> str:
    means = mean and Capability.HIDDEN_UNITS in model.offers
    return "E[x | h] at draws of the hidden units" if means else "draws of x"


@torch.no_grad()
def means(model: LatentVariableModel, x: Any, y: Any = None, mask: Any = None) -> dict[str, Tensor]:
    """The posterior mean of each latent site, (batch, ...): the one vector that stands for a datapoint.

    E[z_l | x] = E[E[z_l | x, the sites that the guide draws before it]]: the inner mean is exact where it has a closed
    form, the outer one where a site depends on no draw or its states are summed out, and else they are means of 100
    draws, whose error is at most a tenth of the posterior's standard deviation. The draws are the same in every call.

    Raises:
        InputError: the model has no posterior, or arguments do not fit it.
    """
    require_latents(model)
    inputs = as_inputs(model, x, y, mask)
    with evaluating(model, 0), pyro.validation_enabled(False):
        if Capability.POSTERIOR not in model.offers:
            return {site: code.mean for site, code in model.encode(*inputs).items()}
        return posterior_means(model, inputs, DRAWS)


@torch.no_grad()
def reconstruct(model: LatentVariableModel, x: Any, y: Any = None, mask: Any = None) -> Tensor:
    """E[x | z] at the posterior mean of each latent site, as `means` gives it, (batch, *event_shape)."""
    return _decoded(model, means(model, x, y, mask), y)


@torch.no_grad()
def latent_grid(model: LatentVariableModel, side: int, y: Any = None) -> tuple[Tensor, Tensor]:
    """E[x | z] over a grid of the first two latent dimensions, or of the only one, the others at their prior mean.

    The grid stands at the prior's quantiles, (i + 1/2) / side, so that each cell has the same prior probability. They
    are exact where the prior has them in closed form, and else those of 100,000 draws, the same in every call.

    Args:
        model: a fitted model with one latent vector z, beside a latent label.
        side: points along each dimension.
        y: one label of the whole grid, a class or a vector (label_dim,), of models that know labels; if None, class 0.

    Returns:
        Means (side^d, *event_shape) over d = 1 or 2 dimensions, the first varying slowest, and the quantiles (d, side).

    Raises:
        InputError: a model with other latents, a prior whose dimensions cannot be set one by one, a label that does not
            fit the model, or none for one that was trained on label vectors.
    """
    at_least_one(side=side)
    require_latents(model)
    y = labels_for(model, 1, [0] if y is None and model.label_dim and not model.vector_labels else _one(y))
    with evaluating(model, 0), pyro.validation_enabled(False):
        prior = model.simulated(1, y)
        if {*prior} != {"z", "x"} or len(prior["z"]["fn"].event_shape) != 1:
            found = ", ".join(site for site in prior if site != "x")
            raise InputError(
                f"a latent grid is of one vector z, but {type(model).__name__} has the latents {found}; decode values "
                "of your own with model.decode"
            )
        centre, quantiles = _quantiles(prior["z"]["fn"], side)
        codes = centre.repeat(side ** len(quantiles), 1)
        codes[:, : len(quantiles)] = torch.cartesian_prod(*quantiles).reshape(len(codes), -1)
        if prior["z"]["fn"].support.is_discrete or not prior["z"]["fn"].support.check(codes).all():
            raise InputError(
                "a latent grid moves continuous dimensions one by one, but the prior is over "
                f"{prior['z']['fn'].support}; decode values of your own with model.decode"
            )
        return model.decode(codes, None if y is None else y.expand(len(codes), *y.shape[1:])).mean, quantiles


@torch.no_grad()
def label_grid(model: LatentVariableModel, rows: int) -> Tensor:
    """E[x | z, y] with the latent held along each row and the class varied, for models of class labels.

    What is held are the random numbers that z is drawn with, which is z itself where p(z) does not depend on y.

    Returns:
        (rows * label_dim, *event_shape), the class varying fastest.

    Raises:
        InputError: the model knows no classes.
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


@torch.no_grad()
def interpolate(model: LatentVariableModel, x: Any, y: Any = None, mask: Any = None, *, steps: int = 10) -> Tensor:
    """E[x | z] along straight lines between the posterior means of consecutive datapoints, as `means` gives them.

    Args:
        model: a fitted model.
        x: data (batch, *event_shape), two or more.
        y: labels of models that know any; a line is decoded with the label of its start.
        mask: True where x is observed.
        steps: points along each line, both ends among them.

    Returns:
        (batch - 1, steps, *event_shape).

    Raises:
        InputError: arguments that do not fit the model, or fewer than two datapoints.
    """
    at_least_one(steps=steps)
    ends = means(model, x, y, mask)
    lines = len(next(iter(ends.values()))) - 1
    if lines < 1:
        raise InputError(f"x holds {lines + 1} datapoints; a line needs two")
    latents = {}
    for site, mean in ends.items():
        weight = torch.linspace(0, 1, steps, dtype=mean.dtype, device=mean.device)
        at = weight.reshape(-1, *[1] * (mean.dim() - 1))
        latents[site] = torch.cat([torch.lerp(start, end, at) for start, end in itertools.pairwise(mean)])
    labels = None if y is None else as_labels(model, y, lines + 1, known=False)[:-1].repeat_interleave(steps, 0)
    return _decoded(model, latents, labels).unflatten(0, (lines, steps))


@torch.no_grad()
def impute(
    model: LatentVariableModel,
    x: Any,
    mask: Any,
    y: Any = None,
    *,
    draws: int = 10,
    particles: int = 100,
) -> Tensor:
    """Draws of what is missing, x_missing ~ p(x_missing | x_observed), by sampling importance resampling.

    For each draw `particles` latents are drawn and weighed given what is observed, half of them from the prior if the
    encoder was not trained with gaps (`inference.draws.resampled`), and one of them, drawn by its weight, is decoded
    and sampled. Exact as particles grow; where k-hat says that there are too few, a warning says for how many
    datapoints.

    Args:
        model: a fitted model.
        x: data (batch, *event_shape); values where the mask is False are ignored.
        mask: True where x is observed, (batch, *event_shape).
        y: labels of conditional models.
        draws: number of draws for each datapoint.
        particles: number of latents that each draw is resampled from.

    Returns:
        (draws, batch, *event_shape), the observed values as they were.

    Raises:
        InputError: arguments that do not fit the model.
    """
    at_least_one(draws=draws, particles=particles)
    require_latents(model)
    if mask is None:
        raise InputError("mask was None, but what is False in it is what impute draws; give True where x is observed")
    x, y, mask = as_inputs(model, x, y, mask)
    at_once = max(1, MAX_ELEMENTS // (x.numel() * particles))
    filled, all_weights = [], []
    with evaluating_alone(model), pyro.validation_enabled(False):
        _require_support(model, x, y, mask)
        for start in range(0, draws, at_once):
            count = min(at_once, draws - start)
            values, observed = repeated(x, count), repeated(mask, count)
            labels = None if y is None else repeated(y, count)
            latents, log_weights = resampled(model, (values, labels, observed), particles)
            drawn = torch.where(observed, values, model.decode(latents, labels).sample()[0])
            filled.append(drawn.unflatten(0, (count, len(x))))
            all_weights.append(log_weights.unflatten(1, (count, len(x))).flatten(0, 1))
    pooled = torch.cat(all_weights)
    few = int(too_large(khat(pooled), log_mean(pooled)[2], len(pooled)).sum())
    if few:
        warnings.warn(
            f"what is missing rests on a few latents in {few} of {len(x)} datapoints, whose k-hat over {len(pooled)} "
            f"draws is above {khat_threshold(len(pooled)):.2f}; give more particles than {particles}",
            stacklevel=2,
        )
    return torch.cat(filled)


def _require_support(model: LatentVariableModel, x: Tensor, y: Tensor | None, mask: Tensor) -> None:
    """Refuses observed numbers to which the likelihood gives no probability; grey values of a Bernoulli are allowed."""
    support: Any = observed_node(poutine.trace(model.generate).get_trace(x, y, mask))["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    allowed = constraints.unit_interval if support is constraints.boolean else support
    outside = 0 if allowed.event_dim else int((~allowed.check(x) & mask).sum())
    if outside:
        raise InputError(f"{outside} observed values of x lie outside the support of the likelihood, {allowed}")


def _decoded(model: LatentVariableModel, codes: dict[str, Tensor], y: Any) -> Tensor:
    """E[x | z] of codes of every site; a latent label is one of them."""
    with evaluating(model):
        return model.decode(codes, y if model.conditional else None).mean


def _one(y: Any) -> Any:
    """One label as a batch of one."""
    return None if y is None else as_tensor(y, "y").unsqueeze(0)


def _quantiles(prior: TorchDistributionMixin, side: int) -> tuple[Tensor, Tensor]:
    """The prior's mean (latent_dim,), and quantiles of its first two dimensions or of its only one, (d, side)."""
    draws = prior.sample(torch.Size([PRIOR_DRAWS]))[:, 0]
    levels = ((torch.arange(side) + 0.5) / side).to(draws)
    try:
        elementwise = prior.base_dist if isinstance(prior, dist.Independent) else prior
        quantiles = elementwise.icdf(levels.reshape(-1, 1, 1))[:, 0, :2]
    except NotImplementedError:
        quantiles = torch.quantile(draws[:, :2], levels, dim=0)
    try:
        centre = prior.mean[0]
    except NotImplementedError:
        centre = draws.mean(0)
    return centre, quantiles.T
