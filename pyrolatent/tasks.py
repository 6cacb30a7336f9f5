"""Tasks of a fitted model. Data, labels, masks and latents may be tensors, arrays or lists of any type."""

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
from pyrolatent.inference.draws import MAX_ELEMENTS, decoded, labels_for, posterior_means, repeated, resampled, simulate
from pyrolatent.inference.evidence.psis import khat, khat_threshold, too_large
from pyrolatent.inference.monte_carlo import log_mean
from pyrolatent.inference.rules import require_latents
from pyrolatent.inference.sampling.chains import sample_energy
from pyrolatent.models.arrays import as_inputs, as_labels, as_tensor
from pyrolatent.models.energies.density import UnnormalisedDensity
from pyrolatent.models.isolation import evaluating_alone
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.model import Capability

DRAWS = 100
"""Number of draws for posterior means without closed form; their error is a tenth of the standard deviation."""
PRIOR_DRAWS = 100_000
"""Number of draws for prior quantiles without closed form."""


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
    """Draws z ~ p(z), x ~ p(x | z), or x from an unnormalised density as `sample_energy` does.

    Args:
        model: a fitted model.
        size: number of draws.
        y: labels (size,) or vectors (size, label_dim) to draw at, for conditional models, models that infer the label
            and RBMs with label units. None takes the classes in turn for conditional models and draws labels for the
            others.
        mean: whether to return E[x | z] instead of a draw of x, which looks smoother for images.
        sweeps: number of sweeps of chains, for unnormalised densities without exact draws; None is 1,000.
        kernel: kernel of the chains, as in `sample_energy`.

    Returns:
        (size, *event_shape).

    Raises:
        InputError: labels do not fit the model, or are missing for a model of label vectors; or options of chains were
            given but none are run.
    """
    at_least_one(size=size)
    at_least(0, sweeps=sweeps)
    return _sample(model, size, y, mean, {"sweeps": sweeps, "kernel": kernel})


@functools.singledispatch
def _sample(model: Any, size: int, y: Any, mean: bool, options: dict[str, Any]) -> Tensor:
    validate_options(f"{type(model).__name__}, which is drawn from without chains,", (), options)
    y = labels_for(model, size, y)
    return model.expected(size, y) if mean else simulate(model, size, y)[0]


@_sample.register
def _(model: UnnormalisedDensity, size: int, y: Any, mean: bool, options: dict[str, Any]) -> Tensor:
    exact, name = model.tractable and y is None and options["kernel"] is None, type(model).__name__
    given = validate_options(
        f"an exact draw of {name}" if exact else name, ("kernel", *["sweeps"] * (not exact)), options
    )
    return sample_energy(model, size, None if y is None else as_labels(model, y, size), mean=mean, **given)


@functools.singledispatch
def sample_title(model: Any, mean: bool) -> str:
    """The title of a figure of the result of `sample`."""
    y = "" if not model.label_dim else ", y"
    return f"E[x | z{y}] at draws of z ~ p(z)" if mean else f"draws of x ~ p(x | z{y})"


@sample_title.register
def _(model: UnnormalisedDensity, mean: bool) -> str:
    means = mean and Capability.HIDDEN_UNITS in model.offers
    return "E[x | h] at draws of the hidden units" if means else "draws of x"


@torch.no_grad()
def means(model: LatentVariableModel, x: Any, y: Any = None, mask: Any = None) -> dict[str, Tensor]:
    """The posterior mean of each latent site, (batch, ...), which represents a datapoint.

    E[z_l | x] = E[E[z_l | x, the sites that the guide draws before it]]. The inner mean is exact if it has a closed
    form, the outer one if the site depends on no draw or on states that are summed out. Otherwise they are means of 100
    draws, with an error of at most a tenth of the posterior's standard deviation. The draws are the same in every call.

    Raises:
        InputError: the model has no posterior, no datapoint has latents of its own, or an argument does not fit it.
    """
    require_latents(model)
    inputs = as_inputs(model, x, y, mask)
    if not model.encodes_datapoints:
        raise InputError(
            f"no datapoint has latents of its own, beside {', '.join(model.global_sites)} outside the plate over "
            "datapoints"
            + "; sample draws x, and decode({}) is p(x) at the mean of what lies outside"
            * model.observes_x
        )
    with evaluating(model, 0), pyro.validation_enabled(False):
        if Capability.POSTERIOR not in model.offers:
            return {site: code.mean for site, code in model.encode(*inputs).items()}
        return posterior_means(model, inputs, DRAWS)


@torch.no_grad()
def reconstruct(model: LatentVariableModel, x: Any, y: Any = None, mask: Any = None) -> Tensor:
    """E[x | z] at the posterior means of all latent sites, (batch, *event_shape)."""
    return _decoded(model, means(model, x, y, mask), y)


@torch.no_grad()
def latent_grid(model: LatentVariableModel, side: int, y: Any = None) -> tuple[Tensor, Tensor]:
    """E[x | z] over a grid of the first two latent dimensions, or of the only one, with the others at their prior mean.

    The grid consists of prior quantiles at (i + 1/2) / side, so that each cell has the same prior probability. They are
    exact if the prior has them in closed form, and otherwise those of 100,000 draws, the same in every call.

    Args:
        model: a fitted model with one latent vector z and possibly a latent label.
        side: number of points along each dimension.
        y: one label for the whole grid, a class or a vector (label_dim,), for models with labels; None is class 0.

    Returns:
        Means (side^d, *event_shape) over d = 1 or 2 dimensions, the first varying slowest, and the quantiles (d, side).

    Raises:
        InputError: the model has other latents, or a prior whose dimensions cannot be set separately; or the label does
            not fit the model, or is missing for a model of label vectors.
    """
    at_least_one(side=side)
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
        centre, quantiles = _quantiles(of_z, side)
        codes = centre.repeat(side ** len(quantiles), 1)
        codes[:, : len(quantiles)] = torch.cartesian_prod(*quantiles).reshape(len(codes), -1)
        if of_z.support.is_discrete or not of_z.support.check(codes).all():
            raise InputError(
                "a latent grid moves continuous dimensions one by one, but the prior is over "
                f"{of_z.support}; decode values of your own with model.decode"
            )
        return model.decode(codes, None if y is None else y.expand(len(codes), *y.shape[1:])).mean, quantiles


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


@torch.no_grad()
def interpolate(model: LatentVariableModel, x: Any, y: Any = None, mask: Any = None, *, steps: int = 10) -> Tensor:
    """E[x | z] along straight lines between the posterior means of consecutive datapoints.

    Args:
        model: a fitted model.
        x: data (batch, *event_shape), two or more.
        y: labels, for models with labels; a line is decoded with the label of its first end.
        mask: True where x is observed.
        steps: number of points along each line, including both ends.

    Returns:
        (batch - 1, steps, *event_shape).

    Raises:
        InputError: an argument does not fit the model, or there are fewer than two datapoints.
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
    mask: Any = None,
    y: Any = None,
    *,
    draws: int = 10,
    particles: int = 100,
) -> Tensor:
    """Draws missing entries, x_missing ~ p(x_missing | x_observed), by sampling importance resampling.

    For each draw, `particles` latents are drawn and weighted given the observed entries, half of them from the prior if
    the encoder was not trained with missing entries (`inference.draws.resampled`). One of them is chosen by weight, and
    x is drawn from its likelihood. This is exact in the limit of many particles; a warning has the number of datapoints
    for which k-hat shows that there are too few.

    Args:
        model: a fitted model.
        x: data (batch, *event_shape); NaN is missing, and values where the mask is False are ignored.
        mask: True where x is observed, (batch, *event_shape); None where x is not NaN.
        y: labels of conditional models.
        draws: number of draws per datapoint.
        particles: number of latents that each draw is resampled from.

    Returns:
        (draws, batch, *event_shape), with observed values unchanged.

    Raises:
        InputError: an argument does not fit the model, or nothing is missing.
    """
    at_least_one(draws=draws, particles=particles)
    require_latents(model)
    x, y, mask = as_inputs(model, x, y, mask)
    if mask is None:
        raise InputError("x is complete, but impute draws what is missing; put NaN there, or give a mask, False there")
    at_once = 1 if model.global_sites else max(1, MAX_ELEMENTS // (x.numel() * particles))
    filled, all_weights = [], []
    with evaluating_alone(model), pyro.validation_enabled(False):
        _require_support(model, x, y, mask)
        for start in range(0, draws, at_once):
            count = min(at_once, draws - start)
            values, observed = repeated(x, count), repeated(mask, count)
            labels = None if y is None else repeated(y, count)
            inputs = values, labels, observed
            with model.given(model.global_draw(inputs)):
                latents, log_weights = resampled(model, inputs, particles)
                likelihood = decoded(model, latents, labels, [1, len(values)])
                drawn = torch.where(observed, values, model.complete(likelihood, latents)[0])
            filled.append(drawn.unflatten(0, (count, len(x))))
            all_weights.append(log_weights.unflatten(1, (count, len(x))).flatten(0, 1))
    pooled = torch.cat(all_weights)
    few = int(too_large(khat(pooled), log_mean(pooled)[2], len(pooled)).sum())
    if few:
        warnings.warn(
            f"imputed values rest on few latents in {few} of {len(x)} datapoints, whose k-hat over {len(pooled)} "
            f"draws is above {khat_threshold(len(pooled)):.2f}; give more particles than {particles}",
            stacklevel=2,
        )
    return torch.cat(filled)


def _require_support(model: LatentVariableModel, x: Tensor, y: Tensor | None, mask: Tensor) -> None:
    """Refuses observed values outside the support of the likelihood; grey values under a Bernoulli are allowed."""
    support: Any = model.observation(poutine.trace(model.generate).get_trace(x, y, mask))["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    allowed = constraints.unit_interval if support is constraints.boolean else support
    outside = 0 if allowed.event_dim else int((~allowed.check(x) & mask).sum())
    if outside:
        raise InputError(f"{outside} observed values of x lie outside the support of the likelihood, {allowed}")


def _decoded(model: LatentVariableModel, codes: dict[str, Tensor], y: Any) -> Tensor:
    """E[x | z] at codes of every site, including a latent label."""
    with evaluating(model):
        return model.decode(codes, y if model.conditional else None).mean


def _one(y: Any) -> Any:
    """One label as a batch of one."""
    return None if y is None else as_tensor(y, "y").unsqueeze(0)


def _quantiles(prior: TorchDistributionMixin, side: int) -> tuple[Tensor, Tensor]:
    """The prior mean (latent_dim,), and quantiles of the first two dimensions or of the only one, (d, side)."""
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
