"""A posterior of its own for each datapoint, refined from the encoder's or from the prior.

Amortized inference gives the numbers of q(z | x_n) by a network; local inference makes them free parameters of each
datapoint. The difference of their bounds is the price of amortization (Cremer et al. 2018, 1801.03558). Training the
generative parameters on the local bound is variational expectation-maximisation, with an encoder to start from
semi-amortized (Kim et al. 2018, 1802.02550).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrolatent.errors import InputError
from pyrolatent.inference.weights import Inputs, Score, Weights, total, weigh
from pyrolatent.models.components.conditional import Conditional
from pyrolatent.models.latent import LatentVariableModel

Start = Literal["encoder", "prior"]
PRIOR_STEPS = 200
"""Steps of Adam from all numbers 0 to the member of the family that is nearest to the prior."""
FOLLOWING = 10
"""Steps after those that follow a prior whose parameters are trained."""
NEGLIGIBLE = 1e-3
"""Gradients of a bound, in nats a unit, far below which steps shrink to nothing: there they are noise or rounding."""


@dataclass(frozen=True)
class LocalPosterior:
    """q_n(z) = family(u_n) of the datapoints that it was made for: a guide for `weigh`.

    Attributes:
        model: whose guide it stands for.
        numbers: u_n for each part of the guide, (batch, *unconstrained_shape), or (..., 1, batch, *unconstrained_shape)
            where a part is given another site; ... are its states if that is enumerated.
        added: parts whose network is given draws of another site; u_n is added to what the network gives.
    """

    model: LatentVariableModel
    numbers: dict[Conditional, Tensor]
    added: frozenset[Conditional]

    def __call__(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Runs the guide with these numbers; arguments as in `LatentVariableModel.infer`."""
        with ExitStack() as stack:
            for part, numbers in self.numbers.items():
                stack.enter_context(_giving(part, numbers, part in self.added))
            self.model.infer(x, y, mask)


def refine(
    model: LatentVariableModel,
    x: Tensor,
    y: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    steps: int = 200,
    particles: int = 1,
    start: Start = "encoder",
    lr: float = 0.1,
) -> LocalPosterior:
    """Maximises the ELBO of each datapoint over the numbers of its own posterior, the model held.

    max over u_n of E_q_n[log p(x_n, z) - log q_n(z)], by Adam with a rate that falls to 0. The gradient leaves out the
    score of q_n where it can, so that it has no noise where q_n is the exact posterior (Roeder
    et al. 2017, 1703.09194).

    Args:
        model: a model each of whose posteriors is a network and a family.
        x: data (batch, *event_shape).
        y: labels of conditional models.
        mask: True where x is observed.
        steps: number of steps; 0 gives the start.
        particles: draws in each step.
        start: at what the encoder gives, or at the member of the family that is nearest to the prior.
        lr: rate of the first step, in units of the unconstrained numbers.

    Raises:
        InputError: a posterior that is no network and family, or whose draws have no pathwise gradient.
    """
    inputs = (x, y, mask)
    posterior = encoded(model, inputs)
    if start == "prior":
        posterior = nearest_to_prior(posterior, inputs)
    return optimise(posterior, inputs, steps=steps, particles=particles, lr=lr)


def encoded(model: LatentVariableModel, inputs: Inputs) -> LocalPosterior:
    """The encoder's posterior as free numbers, with which `refine` starts.

    Raises:
        InputError: as `refine`.
    """
    given: dict[Conditional, Tensor] = {}

    def recording(*args: Any) -> None:
        with ExitStack() as stack:
            for part in model.modules():
                if isinstance(part, Conditional):
                    hook = part.family.register_forward_pre_hook(
                        lambda _, args, part=part: given.update({part: args[0]})
                    )
                    stack.callback(hook.remove)
            model.infer(*args)

    # With two particles the shape of numbers tells whether they depend on draws.
    with torch.no_grad():
        trace = weigh(model.generate, recording, *inputs, particles=2).guide_trace
    sites = trace.stochastic_nodes
    if len(given) != len(sites):
        raise InputError(
            f"{type(model).__name__} has no network and family of its own for the posterior of each of "
            f"{', '.join(sites)}, so there are no numbers that could be made free for each datapoint"
        )
    for site in sites:
        if not trace.nodes[site]["fn"].has_rsample and "_enumerate_dim" not in trace.nodes[site]["infer"]:
            raise InputError(
                f"the posterior of {site} has draws without a gradient, by which its numbers could be refined; "
                "declare a reparameterised posterior, or one that is enumerated"
            )
    numbers, added = {}, set()
    for part, value in given.items():
        own = part.family.unconstrained_shape
        *states, particles, _ = value.shape[: value.dim() - len(own)] if value.dim() > len(own) + 1 else (0, 0)
        if particles > 1:
            added.add(part)
            value = torch.zeros_like(value.narrow(len(states), 0, 1))
        lead = (*states, 1, len(inputs[0])) if particles else (len(inputs[0]),)
        numbers[part] = value.expand(*lead, *own)
    return LocalPosterior(model, numbers, frozenset(added))


def nearest_to_prior(
    posterior: LocalPosterior, inputs: Inputs, *, start: LocalPosterior | None = None, steps: int = PRIOR_STEPS
) -> LocalPosterior:
    """The members of the families that minimise KL(q || p(z)), with no part given the draws of another site.

    Args:
        posterior: whose families; its numbers do not matter.
        inputs: x, y, mask of its datapoints.
        start: what this gave before, for other datapoints; None starts where all numbers are 0.
        steps: number of steps.
    """
    model, (x, y, _) = posterior.model, inputs
    # Without labels all datapoints have one prior, and one of them stands for all.
    few = (x, y, None) if model.conditional else (x[:1], None, None)
    zeros = {part: torch.zeros_like(value) for part, value in posterior.numbers.items()}
    begin = replace(posterior, numbers=start.numbers if start else zeros, added=frozenset())
    nearest = optimise(_for_datapoints(begin, len(few[0])), few, steps=steps, target=_closeness_to_prior)
    return _for_datapoints(nearest, len(x))


def optimise(
    posterior: LocalPosterior,
    inputs: Inputs,
    *,
    steps: int,
    particles: int = 1,
    lr: float = 0.1,
    target: Callable[[Weights], Tensor] | None = None,
) -> LocalPosterior:
    """Maximises a target of each datapoint, (batch,), over its numbers; None is the ELBO."""
    model = posterior.model
    if target is None:
        again = all(getattr(part.family, "scores_any_value", True) for part in posterior.numbers)
        target = functools.partial(_elbo, score="frozen" if again else "full")
    numbers = {part: value.detach().clone().requires_grad_() for part, value in posterior.numbers.items()}
    free = [*numbers.values()]
    optimizer = torch.optim.Adam(free, lr=lr, eps=NEGLIGIBLE)
    guide = replace(posterior, numbers=numbers)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            weights = weigh(model.generate, guide, *inputs, particles=particles)
            gradients = torch.autograd.grad(target(weights).sum().neg(), free)
            for value, gradient in zip(free, gradients, strict=True):
                value.grad = gradient
            optimizer.step()
    return replace(posterior, numbers={part: value.detach() for part, value in numbers.items()})


def _elbo(weights: Weights, score: Score) -> Tensor:
    return weights.expect(weights.log_ratio(score=score)).mean(0)


def _closeness_to_prior(weights: Weights) -> Tensor:
    return -weights.expect(total(weights.kl.values())).mean(0)


def _for_datapoints(posterior: LocalPosterior, count: int) -> LocalPosterior:
    """The numbers of the first datapoint for `count` of them, if that is another count."""
    numbers = {}
    for part, value in posterior.numbers.items():
        own = len(part.family.unconstrained_shape)
        batch = value.dim() - own - 1
        numbers[part] = (
            value if value.shape[batch] == count else value.narrow(batch, 0, 1).repeat_interleave(count, batch)
        )
    return replace(posterior, numbers=numbers)


@contextmanager
def _giving(part: Conditional, numbers: Tensor, added: bool) -> Iterator[None]:
    """Within this context the family is given free numbers, on top of what the network gives or in its place."""
    network, own = part.network, len(part.family.unconstrained_shape)

    def plus(family: nn.Module, given: tuple[Tensor]) -> Tensor:
        # One particle has no dimension of its own.
        return given[0] + (numbers.squeeze(-2 - own) if given[0].dim() < numbers.dim() else numbers)

    hook = part.family.register_forward_pre_hook(plus)
    if not added:
        part.network = _Zeros(part.family.unconstrained_shape)
    try:
        yield
    finally:
        hook.remove()
        part.network = network


class _Zeros(nn.Module):
    """Stands for a network and gives nothing."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, value: Tensor, *label: Tensor) -> Tensor:
        return value.new_zeros((len(value), *self.shape))
