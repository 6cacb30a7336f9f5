"""Objectives for unnormalised densities whose gradient contrasts the mean of F over data with that over samples.

-d log p(x) = d F(x) - E_p[d F]; the objectives differ in how p is sampled.
"""

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from pyrolatent.declaration import Kind, PositiveInt, build, component
from pyrolatent.inference.objectives.base import Objective
from pyrolatent.inference.sampling.kernels import Tempering, kernel_of
from pyrolatent.inference.weights import Inputs
from pyrolatent.models.energies.density import UnnormalisedDensity
from pyrolatent.models.model import Capability


class EnergyObjective(Objective):
    """Base class of objectives for unnormalised densities, to which `precision` does not apply."""

    needs = frozenset({Capability.ENERGY})
    unused = ("kl_warmup", "precision")
    distributes = False  # chains belong to a single process


@component("exact_likelihood", "objective")
class ExactLikelihood(EnergyObjective):
    """log p(x) = -F(x) - log Z with its exact gradient, for models whose log Z can be summed."""

    needs = EnergyObjective.needs | {Capability.LOG_Z}

    def accumulate(self, model: UnnormalisedDensity, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the gradient of the mean negative log-likelihood; returns the sum of log p(x)."""
        x, y, _ = inputs
        with torch.no_grad():
            model.observe(model.state(x, y if model.label_dim else None))
        log_p = model.log_prob(x, y if model.label_dim else None)
        log_p.mean().neg().backward()
        model.adjust_gradients()
        return log_p.detach().sum()


class Contrastive(EnergyObjective):
    """Base class of objectives whose negative samples come from Markov chains.

    Args:
        steps: number of moves of the chains per optimiser step.
        kernel: kernel of the chains; null is the model's Gibbs sampler, or HMC if it has none.
        weight_decay: weight decay of the weights of an RBM, but not of its biases, unlike that of torch's optimisers.
        sparsity_target: target of the mean activity of each hidden unit of an RBM.
        sparsity_cost: strength of the sparsity target.
    """

    steps: PositiveInt = 1
    kernel: Annotated[Any, Kind("kernel")] = None
    weight_decay: Annotated[float, Ge(0)] = 0.0
    sparsity_target: Annotated[float, Interval(ge=0, le=1)] | None = None
    sparsity_cost: Annotated[float, Ge(0)] = 0.1

    def __post_init__(self) -> None:
        if self.kernel is not None:
            self.kernel = build("kernel", self.kernel)

    def negatives(self, model: UnnormalisedDensity, positive: Any) -> Any:
        """The states of the chains after they have been moved."""
        raise NotImplementedError

    def move(self, model: UnnormalisedDensity, state: Any) -> Any:
        """The chains after `steps` moves."""
        kernel = kernel_of(model, self.kernel)
        for _ in range(self.steps):
            state = kernel(model, state)
        return state

    def accumulate(self, model: UnnormalisedDensity, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the gradient of mean F(data) - mean F(samples); returns its negative times the size of the minibatch.

        The difference is not a likelihood and does not measure the quality of the model.
        """
        x, y, _ = inputs
        self.prepare(model)
        with torch.no_grad():
            positive = model.state(x, y if model.label_dim else None)
            negative = self.negatives(model, positive)
        difference = model.contrast(positive, negative)
        model.observe(positive)
        model.adjust_gradients()
        if self.weight_decay or self.sparsity_target is not None:
            model.penalise(positive, self.weight_decay, self.sparsity_target, self.sparsity_cost)
        return -difference * len(x)


@component("cd", "objective")
class CD(Contrastive):
    """Contrastive divergence: chains begin at the data (Hinton 2002). Its bias decreases with the number of steps."""

    def negatives(self, model: UnnormalisedDensity, positive: Any) -> Any:
        """The chains after `steps` moves from the data."""
        return self.move(model, positive)


@component("pcd", "objective")
class PCD(Contrastive):
    """Persistent contrastive divergence: chains continue from step to step (Younes 1989; Tieleman 2008).

    They are stored in the model, as `model.chains`, and therefore in its run.

    Args:
        chains: number of chains.
        restarts: share of the chains that restart from the base at each step.
    """

    chains: PositiveInt = 100
    restarts: Annotated[float, Interval(ge=0, le=1)] = 0.0

    @torch.no_grad()
    def prepare(self, model: UnnormalisedDensity) -> None:
        """Initialises persistent chains from the base, unless they exist in this number."""
        if len(model.chains) != self.chains:
            model.chains = model.flat(model.base(self.chains))

    def negatives(self, model: UnnormalisedDensity, positive: Any) -> Any:
        """The persistent chains after `steps` moves."""
        flat = model.chains
        if self.restarts:
            anew = torch.rand(self.chains, 1, device=flat.device) < self.restarts
            flat = torch.where(anew, model.flat(model.base(self.chains)), flat)
        state = self.move(model, model.restore(flat))
        model.chains.copy_(model.flat(state))
        return state


@component("tempered_pcd", "objective")
class TemperedPCD(Contrastive):
    """Persistent chains at several β from 1 to 0 that exchange states (Desjardins et al. 2010; Cho et al. 2010).

    For densities with several modes, between which chains at β = 1 do not move.

    Args:
        chains: number of chains at each β; those at 1 are the negative samples.
        levels: number of evenly spaced β; after each move neighbours may exchange states.
    """

    chains: PositiveInt = 100
    levels: Annotated[int, Gt(1)] = 10

    @torch.no_grad()
    def prepare(self, model: UnnormalisedDensity) -> None:
        """Initialises persistent chains from the base, unless they exist in this number."""
        if (len(model.chains), len(model.tempered_chains)) != (self.chains, self.chains * (self.levels - 1)):
            flat = model.flat(model.base(self.chains * self.levels))
            model.chains, model.tempered_chains = flat[: self.chains].clone(), flat[self.chains :].clone()

    def negatives(self, model: UnnormalisedDensity, positive: Any) -> Any:
        """The chains at β = 1 after all have moved and exchanged states."""
        tempering = Tempering(self.levels, kernel_of(model, self.kernel))
        state = model.restore(torch.cat([model.chains, model.tempered_chains]))
        for _ in range(self.steps):
            state = tempering(model, state)
        flat = model.flat(state)
        model.chains.copy_(flat[: self.chains])
        model.tempered_chains.copy_(flat[self.chains :])
        return model.restore(flat[: self.chains])
