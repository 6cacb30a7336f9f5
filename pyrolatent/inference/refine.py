"""Local variational inference: a separate posterior for each datapoint, refined from the encoder's or from the prior.

Amortized inference computes the variational parameters of q(z | x_n) by a network; local inference optimises them for
each datapoint. The difference of the bounds is the amortization gap (Cremer et al. 2018, 1801.03558). Training the
generative parameters on the local bound is variational expectation-maximisation; initialised by an encoder it is
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
"""Steps of Adam from parameters 0 to the member of the family that is closest to the prior."""
FOLLOWING = 10
"""Steps of later searches, which follow a prior whose parameters are trained."""
NEGLIGIBLE = 1e-3
"""Gradient of a bound, in nats per unit, well below which steps vanish: there it is noise or rounding."""


@dataclass(frozen=True)
class LocalPosterior:
    """q_n(z) = family(u_n) for a fixed batch of datapoints, as a guide for `weigh`.

    Attributes:
        model: the model whose guide it replaces.
        numbers: u_n for each part of the guide, (batch, *unconstrained_shape), or (..., 1, batch, *unconstrained_shape)
            if the part is conditioned on another site, where ... are the states of an enumerated one.
        added: parts whose network is conditioned on draws of another site; u_n is added to the output of the network.
    """

    model: LatentVariableModel
    numbers: dict[Conditional, Tensor]
    added: frozenset[Conditional]

    def __call__(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Runs the guide with these parameters; arguments as in `LatentVariableModel.infer`."""
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
    """Maximises the ELBO of each datapoint over the parameters of its own posterior, with the model fixed.

    Maximises E_q_n[log p(x_n, z) - log q_n(z)] over u_n by Adam with a learning rate that decays to 0. If possible the
    gradient omits the score of q_n, so that it has no noise where q_n is the exact posterior (Roeder et al. 2017,
    1703.09194).

    Args:
        model: a model whose posteriors each consist of a network and a family.
        x: data (batch, *event_shape).
        y: labels of conditional models.
        mask: True where x is observed.
        steps: number of steps; 0 returns the initial posterior.
        particles: number of draws per step.
        start: the initial posterior: the encoder's, or the member of the family that is closest to the prior.
        lr: initial learning rate, in units of the unconstrained parameters.

    Raises:
        InputError: a posterior is not a network and a family, or its draws have no pathwise gradient.
    """
    inputs = (x, y, mask)
    posterior = encoded(model, inputs)
    if start == "prior":
        posterior = nearest_to_prior(posterior, inputs)
    return optimise(posterior, inputs, steps=steps, particles=particles, lr=lr)


def encoded(model: LatentVariableModel, inputs: Inputs) -> LocalPosterior:
    """The encoder's posterior with free parameters, from which `refine` starts.

    Raises:
        InputError: as in `refine`.
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

    # With two particles the shape of the parameters shows whether they depend on draws.
    with torch.no_grad():
        trace = weigh(model.generate, recording, *inputs, particles=2).guide_trace
    sites = trace.stochastic_nodes
    if not sites:
        raise InputError(f"{type(model).__name__} has no latent of each datapoint, whose posterior could be refined")
    if len(given) != len(sites):
        raise InputError(
            f"{type(model).__name__} has no network and family of its own for the posterior of each of "
            f"{', '.join(sites)}, so there are no numbers that could be made free for each datapoint"
        )
    for site in sites:
        if not trace.nodes[site]["fn"].has_rsample and "_enumerate_dim" not in trace.nodes[site]["infer"]:
            raise InputError(
                f"the posterior of {site} has draws without a gradient, so its parameters cannot be refined; "
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


def refinable(model: LatentVariableModel, inputs: Inputs) -> bool:
    """Whether `refine` takes the posteriors of a model, tried on the first of these datapoints."""
    x, y, mask = (None if field is None else field[:1] for field in inputs)
    assert x is not None
    try:
        encoded(model, (x, y, mask))
    except InputError:
        return False
    return True


def nearest_to_prior(
    posterior: LocalPosterior, inputs: Inputs, *, start: LocalPosterior | None = None, steps: int = PRIOR_STEPS
) -> LocalPosterior:
    """The members of the families that minimise KL(q || p(z)), where no part is conditioned on another site.

    Args:
        posterior: a posterior with these families; its parameters do not matter.
        inputs: x, y, mask of its datapoints.
        start: an earlier result, for other datapoints; None starts from parameters 0.
        steps: number of steps.
    """
    model, (x, y, _) = posterior.model, inputs
    # Without labels all datapoints have the same prior, so a single one is enough.
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
    """Maximises a target, (batch,), over the parameters of each datapoint; None is the ELBO."""
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
    """Repeats the parameters of the first datapoint `count` times, unless there are as many datapoints."""
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
    """Replaces the output of a part's network by free parameters, or adds them to it, within this context."""
    network, own = part.network, len(part.family.unconstrained_shape)

    def plus(family: nn.Module, given: tuple[Tensor]) -> Tensor:
        # A single particle has no dimension.
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
    """Placeholder for a network, which returns zeros."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, value: Tensor, *label: Tensor) -> Tensor:
        return value.new_zeros((len(value), *self.shape))
