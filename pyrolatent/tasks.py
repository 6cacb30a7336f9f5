"""What people do with a fitted model."""

import itertools
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrolatent.chains import SWEEPS, sample_energy
from pyrolatent.errors import InputError
from pyrolatent.inference.weights import weigh
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.unnormalised import UnnormalisedDensity


@torch.no_grad()
def sample(
    model: LatentVariableModel | UnnormalisedDensity,
    size: int,
    y: Tensor | None = None,
    *,
    mean: bool = False,
    sweeps: int = SWEEPS,
    kernel: Any = None,
) -> Tensor:
    """Draws z ~ p(z), x ~ p(x | z); of unnormalised densities, as `sample_energy` does.

    Args:
        model: a fitted model.
        size: number of draws.
        y: labels (size,) of conditional models, if None the classes in turn; of machines with label units, if None
            drawn with x.
        mean: whether to return E[x | z] instead of a draw of x, which for images is smoother to look at.
        sweeps: of the chains of unnormalised densities.
        kernel: what moves them, as in `sample_energy`.

    Returns:
        (size, *event_shape).
    """
    if isinstance(model, UnnormalisedDensity):
        return sample_energy(model, size, y, mean=mean, sweeps=sweeps, kernel=kernel)
    if kernel is not None:
        raise InputError(f"{type(model).__name__} is drawn from without chains; leave kernel out")
    if y is not None and model.label_dim and not y.is_floating_point() and not ((y >= 0) & (y < model.label_dim)).all():
        raise InputError(
            f"labels from {int(y.min())} to {int(y.max())} were given; they are 0 to {model.label_dim - 1}"
        )
    trace = _ancestral(model, size, y)
    return trace.nodes["x"]["fn"].mean if mean else trace.nodes["x"]["value"]


@torch.no_grad()
def means(
    model: LatentVariableModel, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """The posterior mean of each latent site, (batch, ...): the one vector that stands for a datapoint.

    Where it has no closed form, as that of a flow, it is the mean of 100 draws.

    Raises:
        InputError: the model has no posterior.
    """
    _require_posterior(model)
    return {site: _mean(posterior) for site, posterior in model.encode(x, y, mask).items()}


@torch.no_grad()
def reconstruct(model: LatentVariableModel, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """E[x | z] at the posterior mean of z, (batch, *event_shape)."""
    codes = means(model, x, y, mask)
    return model.decode(codes, y).mean


@torch.no_grad()
def latent_grid(model: LatentVariableModel, side: int, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """E[x | z] over a grid of the first two latent dimensions, the others at their prior mean.

    The grid stands at the prior's quantiles, so that each cell has the same prior probability.

    Args:
        model: a fitted model.
        side: points along each of the two dimensions.
        y: labels (side * side,) of conditional models; if None, the first class.

    Returns:
        Means (side * side, *event_shape), the first dimension varying slowest, and the quantiles (2, side).
    """
    draws = _ancestral(model, 10_000, None).nodes["z"]["value"]
    levels = (torch.arange(side, device=draws.device) + 0.5) / side
    quantiles = draws.new_zeros(2, side)
    dimensions = min(2, draws.shape[-1])
    quantiles[:dimensions] = torch.quantile(draws[:, :dimensions], levels, dim=0).T
    codes = draws.mean(0).repeat(side * side, 1)
    codes[:, :dimensions] = torch.cartesian_prod(*quantiles)[:, :dimensions]
    if y is None and model.conditional:
        y = torch.zeros(side * side, dtype=torch.int64, device=draws.device)
    return model.decode(codes, y).mean, quantiles


@torch.no_grad()
def label_grid(model: LatentVariableModel, rows: int) -> Tensor:
    """E[x | z, y] with the latent held along each row and the class varied, for models of class labels.

    Returns:
        (rows * label_dim, *event_shape), the class varying fastest.
    """
    classes = model.label_dim
    z = _ancestral(model, rows, None).nodes["z"]["value"].repeat_interleave(classes, 0)
    y = torch.arange(classes, device=z.device).repeat(rows)
    if model.conditional:
        return model.decode(z, y).mean
    return model.decode({"y": torch.nn.functional.one_hot(y, classes).to(z), "z": z}).mean


@torch.no_grad()
def interpolate(
    model: LatentVariableModel, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None, *, steps: int = 10
) -> Tensor:
    """E[x | z] along straight lines between the posterior means of consecutive datapoints.

    Args:
        model: a fitted model.
        x: data (batch, *event_shape), two or more.
        y: labels (batch,) of conditional models; a line is decoded with the label of its start.
        mask: True where x is observed.
        steps: points along each line, both ends among them.

    Returns:
        (batch - 1, steps, *event_shape).
    """
    weight = torch.linspace(0, 1, steps, device=x.device)
    latents = {}
    for site, mean in means(model, x, y, mask).items():
        at = weight.reshape(-1, *[1] * (mean.dim() - 1))
        lines = [torch.lerp(start, end, at) for start, end in itertools.pairwise(mean)]
        latents[site] = torch.cat(lines)
    labels = None if y is None else y[:-1].repeat_interleave(steps, 0)
    return model.decode(latents, labels).mean.reshape((len(x) - 1, steps, *model.event_shape))


@torch.no_grad()
def impute(
    model: LatentVariableModel,
    x: Tensor,
    mask: Tensor,
    y: Tensor | None = None,
    *,
    draws: int = 10,
    particles: int = 100,
) -> Tensor:
    """Draws of what is missing, x_missing ~ p(x_missing | x_observed), by sampling importance resampling.

    For each draw `particles` latents z_k ~ q(z | x_observed) are weighed by p(x_observed, z_k) / q(z_k | x_observed)
    and one of them, drawn by its weight, is decoded and sampled (Rubin 1988). Exact as particles grow.

    Args:
        model: a fitted model.
        x: data (batch, *event_shape); values where the mask is False are ignored.
        mask: True where x is observed, (batch, *event_shape).
        y: labels of conditional models.
        draws: number of draws for each datapoint.
        particles: number of latents that each draw is resampled from.

    Returns:
        (draws, batch, *event_shape), the observed values as they were.
    """
    _require_posterior(model)
    filled = []
    for _ in range(draws):
        weights = weigh(model.generate, model.infer, x, y, mask, particles=particles)
        if weights.log_enumerated is not None:
            raise InputError(f"impute draws latents, but {type(model).__name__} enumerates some; use a vae")
        chosen = dist.Categorical(logits=weights.log_weights().T).sample()
        batch = torch.arange(len(x), device=x.device)
        latents = {site: value[chosen, batch] for site, value in weights.latents.items()}
        filled.append(torch.where(mask, x, model.decode(latents, y).sample()))
    return torch.stack(filled)


def _require_posterior(model: Any) -> None:
    if isinstance(model, UnnormalisedDensity):
        raise InputError(f"{type(model).__name__} has no posterior of latents, from which this is made; fit a vae")


def _ancestral(model: LatentVariableModel, size: int, y: Tensor | None) -> Any:
    """The trace of `size` draws of everything."""
    _require_posterior(model)
    device = next(model.parameters()).device
    if y is None and model.conditional:
        y = torch.arange(size, device=device) % model.label_dim
    x = torch.zeros((), device=device).expand(size, *model.event_shape)
    return poutine.trace(poutine.uncondition(model.generate)).get_trace(x, y)


def _mean(posterior: TorchDistributionMixin) -> Tensor:
    try:
        return posterior.mean
    except NotImplementedError:
        return posterior.sample(torch.Size([100])).mean(0)
