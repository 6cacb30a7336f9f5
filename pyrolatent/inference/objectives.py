"""Objectives: what training maximises, each a few lines on top of `weigh`.

Each is a `pyro.infer.ELBO`, so that `SVI(model, guide, optim, loss=ELBO())` and `ELBO()(model, guide)` work, and
returns what Pyro's own classes return: a loss summed over the minibatch, lower is better.
"""

from abc import abstractmethod
from typing import Annotated, Any

import pyro.infer
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from pyrolatent.declaration import Component, component, register
from pyrolatent.inference.weights import Program, Weights, weigh


class Objective(pyro.infer.ELBO):
    """A bound on log p(x) for each datapoint, to be maximised.

    Args:
        particles: number of draws from the posterior for each datapoint.
        beta: factor of log p(z) - log q(z | x); other than 1 it makes a training target, not a bound.
    """

    def __init__(self, *, particles: int = 1, beta: float = 1.0) -> None:
        super().__init__(num_particles=particles, vectorize_particles=True)
        self.beta: float | Tensor = beta

    @abstractmethod
    def bound(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """The bound for each datapoint, (batch,), nats, higher is better."""

    def weigh(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Weights:
        """The draws and weights that this objective asks for."""
        return weigh(model, guide, *args, particles=self.num_particles, **kwargs)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The negative target, summed over the minibatch, with gradients."""
        return -self.bound(self.weigh(model, guide, *args, **kwargs), self.beta).sum()

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The negative target, summed over the minibatch."""
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The negative target, its gradients added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} scores by `weigh`, not by traces of its own")


@component("objective", "elbo")
class ELBO(Objective):
    """E_q[log p(x, z) - log q(z | x)], all of it by Monte Carlo (Kingma and Welling 2014, 1312.6114).

    Args:
        particles: number of draws from the posterior for each datapoint.
        beta: factor of log p(z) - log q(z | x) in the training target (Higgins et al. 2017).
    """

    def __init__(self, *, particles: Annotated[int, Gt(0)] = 1, beta: Annotated[float, Ge(0)] = 1.0) -> None:
        super().__init__(particles=particles, beta=beta)

    def bound(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """mean_k log w_k, (batch,)."""
        return weights.log_weights(beta).mean(0)


@component("objective", "analytic_elbo")
class AnalyticELBO(Objective):
    """E_q[log p(x | z)] - KL(q(z | x) || p(z)), the KL in closed form for each site where one is known.

    Args:
        particles: number of draws from the posterior for each datapoint.
        beta: factor of the KL in the training target (Higgins et al. 2017).
    """

    def __init__(self, *, particles: Annotated[int, Gt(0)] = 1, beta: Annotated[float, Ge(0)] = 1.0) -> None:
        super().__init__(particles=particles, beta=beta)

    def bound(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """mean_k log p(x | z_k) - beta KL, (batch,)."""
        return (weights.log_likelihood - beta * torch.stack([*weights.kl.values()]).sum(0)).mean(0)


for _pyro in ("Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO"):
    register("objective", _pyro, Component(getattr(pyro.infer, _pyro), ()))
