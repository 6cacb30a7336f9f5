"""What people do with a fitted model."""

from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrolatent.models.latent import LatentVariableModel


@torch.no_grad()
def sample(model: LatentVariableModel, size: int, y: Tensor | None = None, *, mean: bool = False) -> Tensor:
    """Draws z ~ p(z), x ~ p(x | z).

    Args:
        model: a fitted model.
        size: number of draws.
        y: labels (size,) of conditional models; if None, the classes in turn.
        mean: whether to return E[x | z] instead of a draw of x, which for images is smoother to look at.

    Returns:
        (size, *event_shape).
    """
    trace = _ancestral(model, size, y)
    return trace.nodes["x"]["fn"].mean if mean else trace.nodes["x"]["value"]


@torch.no_grad()
def means(
    model: LatentVariableModel, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """The posterior mean of each latent site, (batch, ...): the one vector that stands for a datapoint.

    Where it has no closed form, as that of a flow, it is the mean of 100 draws.
    """
    return {site: _mean(posterior) for site, posterior in model.encode(x, y, mask).items()}


@torch.no_grad()
def reconstruct(model: LatentVariableModel, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """E[x | z] at the posterior mean of z, (batch, *event_shape)."""
    return model.decode(means(model, x, y, mask), y).mean


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


def _ancestral(model: LatentVariableModel, size: int, y: Tensor | None) -> Any:
    """The trace of `size` draws of everything."""
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
