"""Objectives for energies over real numbers that match ∇log p, and so need neither log Z nor samples."""

import torch
from torch import Tensor

from pyrolatent.declaration import PositiveFloat, PositiveInt, component
from pyrolatent.inference.objectives.contrastive import EnergyObjective
from pyrolatent.inference.sampling.kernels import gradient_in
from pyrolatent.inference.weights import Inputs
from pyrolatent.models.energies.density import UnnormalisedDensity
from pyrolatent.models.model import Capability


def score(model: UnnormalisedDensity, x: Tensor) -> Tensor:
    """σ ∇ log p(x) = -σ ∇F(x), (batch, width), differentiable in the parameters; x requires a gradient.

    The gradient is with respect to x in standard deviations σ of the model's base, so it does not depend on the units
    of x.
    """
    return gradient_in(x, -model.free_energy(x), create_graph=True).flatten(1) * model.base_scale


def sliced_score_matching(model: UnnormalisedDensity, x: Tensor, projections: int = 1) -> Tensor:
    """E_v[v·∇(v·s) + |s|² / 2], s = ∇log p, v ~ N(0, I), for each datapoint, (batch,) (Song et al. 2019).

    Up to a constant of the data it is half the Fisher divergence E|∇log p_data - s|²; lower is better. Gradients are
    with respect to x in standard deviations of the model's base.

    Args:
        model: an energy over real numbers.
        x: data (batch, *event_shape).
        projections: number of directions v per datapoint.
    """
    with torch.enable_grad():
        x = x.repeat(projections, *[1] * (x.dim() - 1)).detach().requires_grad_()
        s = score(model, x)
        v = torch.randn_like(s)
        (curvature,) = torch.autograd.grad((v * s).sum(), x, create_graph=True)
        each = (v * model.base_scale * curvature.flatten(1)).sum(-1) + 0.5 * s.square().sum(-1)
    return each.unflatten(0, (projections, -1)).mean(0)


def denoising_score_matching(model: UnnormalisedDensity, x: Tensor, noise: float) -> Tensor:
    """|σ ∇log p(x + σ e) + e|² / 2 for each datapoint, (batch,), e ~ N(0, I) (Vincent 2011).

    It is minimised by the density of the data with noise added.

    Args:
        model: an energy over real numbers.
        x: data (batch, *event_shape).
        noise: σ, in standard deviations of the model's base.
    """
    with torch.enable_grad():
        e = torch.randn_like(x).flatten(1)
        s = score(model, (x + (noise * model.base_scale * e).reshape(x.shape)).detach().requires_grad_())
        return 0.5 * (noise * s + e).square().sum(-1)


class ScoreMatching(EnergyObjective):
    """Base class of objectives whose loss depends on the gradient of log p in x."""

    needs = EnergyObjective.needs | {Capability.GRADIENT_IN_X}

    def loss(self, model: UnnormalisedDensity, x: Tensor) -> Tensor:
        """The loss, (batch,); lower is better."""
        raise NotImplementedError

    def accumulate(self, model: UnnormalisedDensity, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the gradient of the mean loss; returns its negative, summed over the minibatch."""
        loss = self.loss(model, inputs[0])
        loss.mean().backward()
        return -loss.detach().sum()


@component("sliced_score_matching", "objective")
class SlicedScoreMatching(ScoreMatching):
    """-E_v[v·∇(v·s) + |s|² / 2], s = ∇log p(x): score matching along random directions (Song et al. 2019, 1905.07088).

    Gradients are with respect to x in standard deviations of the model's base.

    Args:
        projections: number of directions per datapoint.
    """

    projections: PositiveInt = 1

    def loss(self, model: UnnormalisedDensity, x: Tensor) -> Tensor:
        """The loss of each datapoint, (batch,)."""
        return sliced_score_matching(model, x, self.projections)


@component("denoising_score_matching", "objective")
class DenoisingScoreMatching(ScoreMatching):
    """-|σ s(x + σ e) + e|² / 2, s = ∇log p: score matching on noisy data (Vincent 2011).

    Args:
        noise: σ, in standard deviations of the model's base.
    """

    noise: PositiveFloat = 0.1

    def loss(self, model: UnnormalisedDensity, x: Tensor) -> Tensor:
        """The loss of each datapoint, (batch,)."""
        return denoising_score_matching(model, x, self.noise)
