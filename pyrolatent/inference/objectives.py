"""Objectives: what training maximises, each a few lines on top of `weigh`.

Each is a `pyro.infer.ELBO`, so that `SVI(model, guide, optim, loss=ELBO())` and `ELBO()(model, guide)` work, and
returns what Pyro's own classes return: a loss summed over the minibatch, lower is better.
"""

import functools
import math
from abc import abstractmethod
from typing import Annotated, Any

import pyro.infer
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from pyrolatent.declaration import Component, component, register
from pyrolatent.inference.weights import Program, Weights, weigh

Inputs = tuple[Tensor, Tensor | None, Tensor | None]
"""x, y, mask."""


class Objective(pyro.infer.ELBO):
    """A bound on log p(x) for each datapoint, to be maximised.

    Args:
        particles: number of draws from the posterior for each datapoint.
        beta: factor of log p(z) - log q(z | x); other than 1 it makes a training target, not a bound.
    """

    pathwise: bool = True
    """Whether gradients go through the draws, so that every site must be reparameterised or enumerated."""

    def __init__(self, *, particles: int = 1, beta: float = 1.0) -> None:
        super().__init__(num_particles=particles, vectorize_particles=True)
        self.beta: float | Tensor = beta

    @abstractmethod
    def bound(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """The bound for each datapoint, (batch,), nats, higher is better."""

    def weigh(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Weights:
        """The draws and weights that this objective asks for."""
        return weigh(model, guide, *args, particles=self.num_particles, **kwargs)

    def accumulate(self, model: Any, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the gradient of the mean negative target of a minibatch to the parameters'.

        Args:
            model: the model.
            inputs: x, y, mask.
            warmup: factor of beta.

        Returns:
            The bound with beta = 1, summed over the minibatch.
        """
        weights = self.weigh(model.generate, model.infer, *inputs)
        target = self.bound(weights, self.beta * warmup)
        term = model.training_term(*inputs)
        (target if term is None else target + term).mean().neg().backward()
        return self.bound(weights).detach().sum()

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The negative target, summed over the minibatch, with gradients."""
        weights = self.weigh(model, guide, *args, **kwargs)
        return -(weights.scale * self.bound(weights, self.beta)).sum()

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


class PyroObjective:
    """One of Pyro's own objectives in the training loop.

    Args:
        loss: such as `pyro.infer.Trace_ELBO()`.
    """

    def __init__(self, loss: Any) -> None:
        self.elbo = loss
        self.pathwise = isinstance(loss, pyro.infer.TraceMeanField_ELBO)

    def accumulate(self, model: Any, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the gradient of Pyro's loss, a mean over the minibatch, and returns the bound, a sum over it."""
        loss = self.elbo.loss_and_grads(model.model, model.guide, *inputs)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= len(inputs[0])
        return torch.tensor(-loss)


@component("objective", "squared_error")
class SquaredError:
    """sum_i (x_i - decode(encode(x))_i)^2 over what is observed, of models without a density."""

    def loss(self, model: Any, inputs: Inputs) -> Tensor:
        """The squared error of each datapoint, (batch,), in the squared units of x; lower is better."""
        x, y, mask = inputs
        error = (model.reconstruct(x, y, mask) - x).square()
        return (error if mask is None else error * mask).flatten(1).sum(-1)

    def accumulate(self, model: Any, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the gradient of the mean squared error of a minibatch; returns its negative sum."""
        loss = self.loss(model, inputs)
        loss.mean().backward()
        return -loss.detach().sum()


@component("objective", "closed_form")
class ClosedForm:
    """The model's own maximum-likelihood or least-squares solution on all training data at once, in one epoch."""

    def update(self, model: Any, inputs: Inputs) -> None:
        """Sets the model's parameters to the solution."""
        model.solve(inputs[0])


@component("objective", "em")
class EM:
    """Expectation-maximisation with the exact posterior on all training data at once, a step an epoch."""

    def update(self, model: Any, inputs: Inputs) -> None:
        """One expectation and one maximisation step, which never lowers the evidence."""
        x, _, mask = inputs
        model.em_step(x, mask)


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
        """mean_k log p(x, z_k) - log q(z_k | x), (batch,)."""
        return weights.expect(weights.log_ratio(beta)).mean(0)


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
        kl = functools.reduce(torch.add, weights.kl.values())
        return weights.expect(weights.log_likelihood - beta * kl).mean(0)


@component("objective", "iwae")
class IWAE(Objective):
    """log (1/K) sum_k w_k, w = p(x, z) / q(z | x), for each datapoint (Burda et al. 2016, 1509.00519).

    Args:
        particles: number K of draws from the posterior for each datapoint.
        beta: factor of log p(z) - log q(z | x) in the training target.
    """

    def __init__(self, *, particles: Annotated[int, Gt(0)] = 50, beta: Annotated[float, Ge(0)] = 1.0) -> None:
        super().__init__(particles=particles, beta=beta)

    def bound(self, weights: Weights, beta: float | Tensor = 1.0) -> Tensor:
        """log (1/K) sum_k w_k, (batch,)."""
        log_weights = weights.log_weights(beta)
        return log_weights.logsumexp(0) - math.log(len(log_weights))


for _pyro in ("Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO", "TraceEnum_ELBO"):
    register("objective", _pyro, Component(getattr(pyro.infer, _pyro), ()))
