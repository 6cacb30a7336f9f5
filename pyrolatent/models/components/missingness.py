"""Missing not at random: the distribution of the mask given x."""

import math
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrolatent.declaration import component
from pyrolatent.errors import InputError
from pyrolatent.models.components.distributions import Columns, Transformed
from pyrolatent.models.components.scaling import Scaling

SMALL = 0.1
"""Initial size of a slope whose sign is declared."""


@component("self_masking", "missingness")
class SelfMasking(nn.Module):
    """P(x_d is observed | x) = sigmoid(a_d + b_d s_d), s the scaled x: whether a cell is missing depends on its value.

    Ipsen, Mattei and Frellsen 2021, 2006.12871.

    Args:
        event_shape: shape of x.
        scaling: how x is scaled.
        which: the values that go missing: "any" leaves the sign of b to the data, which may not determine it, "high"
            values are missing more often, or "low" ones.
    """

    def __init__(
        self, event_shape: tuple[int, ...], scaling: Scaling, *, which: Literal["any", "high", "low"] = "any"
    ) -> None:
        super().__init__()
        self.which, self._scaling = which, (scaling,)
        self.intercept = nn.Parameter(torch.zeros(event_shape))
        start = 0.0 if which == "any" else math.log(math.expm1(SMALL))
        self.slope = nn.Parameter(torch.full(tuple(event_shape), start))

    @torch.no_grad()
    def initialise(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Sets the intercepts to the log-odds of the shares that are observed."""
        if mask is not None:
            self.intercept.copy_(((mask.sum(0) + 1) / ((~mask).sum(0) + 1)).log())

    @property
    def slopes(self) -> Tensor:
        """b, (*event_shape), per unit of s."""
        return {"any": self.slope, "high": -softplus(self.slope), "low": softplus(self.slope)}[self.which]

    def forward(self, x: Tensor) -> Any:
        """The distribution of the mask, True where observed, given complete x (..., *event_shape)."""
        logits = self.intercept + self.slopes * self._scaling[0].entries(x)
        return dist.Bernoulli(logits=logits).to_event(self.intercept.dim())

    def __str__(self) -> str:
        return f"Bernoulli, {'by the value' if self.which == 'any' else f'{self.which} values missing more'}"


def require_pathwise(family: Any) -> None:
    """Requires a family whose draws are functions of standard normal noise.

    Raises:
        InputError: it has no quantiles that gradients pass through.
    """
    try:
        distribution = family(torch.zeros(1, *family.unconstrained_shape))
        from_noise(distribution.to_event(family.event_dims), torch.zeros(1, *family.event_shape))
    except (NotImplementedError, AttributeError) as error:
        raise InputError(
            f"missingness draws missing cells with gradients, by quantiles, which {family} has not in closed form; "
            "declare a likelihood such as normal or laplace, or leave missingness out"
        ) from error


def from_noise(distribution: Any, noise: Tensor) -> Tensor:
    """Draws of independent entries at their quantiles of standard normal noise, with gradients.

    Raises:
        NotImplementedError: an entry has no such quantiles.
    """
    if isinstance(distribution, dist.Independent):
        return from_noise(distribution.base_dist, noise)
    if isinstance(distribution, Columns):
        parts = [
            from_noise(part, noise[..., at]) for part, at in zip(distribution.parts, distribution.index, strict=True)
        ]
        return torch.cat(parts, -1)[..., distribution.order]
    if isinstance(distribution, Transformed):
        return distribution.transform(from_noise(distribution.base, noise))
    if isinstance(distribution, dist.Normal):
        return distribution.loc + distribution.scale * noise
    if not distribution.has_rsample or distribution.event_shape:
        raise NotImplementedError
    edge = torch.finfo(noise.dtype).eps
    found: Tensor = distribution.icdf(torch.special.ndtr(noise).clamp(edge, 1 - edge))
    return found
