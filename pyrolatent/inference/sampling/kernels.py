"""Markov kernels that leave a model's density as it is: what chains are made of.

Each is called as kernel(model, state, beta) and moves every chain once; β = 1 is the model, β < 1 a point of its path
to the base, one number or one for each chain, (chains, 1).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyrolatent.declaration import Options, PositiveFloat, PositiveInt, build, component
from pyrolatent.errors import InputError
from pyrolatent.models.energies.density import Beta, UnnormalisedDensity

S = TypeVar("S")
Size = float | Tensor
LogDensity = Callable[[Tensor], tuple[Tensor, ...]]
"""Gives log p(x) up to a constant, (...), of x (..., width), and what else is to be kept of it, each (...)."""
FIXED_STEP = 0.1
"""Step of kernels in training, and at which adaptation begins, in standard deviations of the base."""
PILOTS = 32
"""Chains that steps are adapted on."""
POINTS_ADAPTED = 100
"""Of a path at which a step is adapted, at most."""
LOWEST_ACCEPTANCE, LOWEST_DISTANCE = 0.01, 0.1
"""Of chains that can be said to have moved."""
NEAR, FAR = 1e3, 1e6
"""Distances from the base, in its standard deviations, between which the tails of a density are looked at."""
EARLY, LATE, GROWTH = 16, 256, 1.8
"""Moves of chains from the base, and by how much they are farther away after the latter if there is no normaliser.

A random walk goes four times as far; of a density the ratio of two medians of 200 chains is 1 within 0.12.
"""


@component("gibbs", "kernel")
class Gibbs:
    """One sweep of the model's own Gibbs sampler, block by block."""

    def __call__(self, model: UnnormalisedDensity, state: Any, beta: Beta = 1.0) -> Any:
        """The chains one sweep later."""
        return model.gibbs(state, beta)


class Point(NamedTuple):
    """Where chains stand, with what is known of their density there.

    Attributes:
        x: (..., width).
        log_p: log of the density, (...).
        gradient: ∂ log p / ∂x, (..., width).
        terms: what else the density gave, each (...).
    """

    x: Tensor
    log_p: Tensor
    gradient: Tensor
    terms: tuple[Tensor, ...] = ()

    @classmethod
    def at(cls, x: Tensor, log_density: LogDensity) -> "Point":
        """The density and its gradient at x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_p, *terms = log_density(x)
            gradient = gradient_in(x, log_p)
        return cls(x.detach(), log_p.detach(), gradient, tuple(term.detach() for term in terms))

    def where(self, accepted: Tensor, other: "Point") -> "Point":
        """This point of the chains that are accepted, the other of the rest."""
        return Point(
            torch.where(accepted[..., None], self.x, other.x),
            torch.where(accepted, self.log_p, other.log_p),
            torch.where(accepted[..., None], self.gradient, other.gradient),
            tuple(torch.where(accepted, *each) for each in zip(self.terms, other.terms, strict=True)),
        )


class GradientKernel(Options):
    """Moves along ∇log p over real x, each coordinate in standard deviations of the model's base.

    Args:
        step: in standard deviations of the base. None: evaluation, sampling and watching adapt it in pilot chains
            that are no part of what follows, so that p is left as it is; training goes by 0.1.
    """

    target: ClassVar[float]
    """The mean acceptance that steps are adapted to."""

    step: PositiveFloat | None = None

    @property
    def exact(self) -> bool:
        """Whether moves are accepted as Metropolis and Hastings do, so that they leave p invariant."""
        return True

    def __call__(self, model: UnnormalisedDensity, state: Any, beta: Beta = 1.0) -> Any:
        """The chains a move later, or where they were if it is not accepted."""
        return self.moved(model, state, beta)[0]

    def moved(
        self, model: UnnormalisedDensity, state: Any, beta: Beta, step: float | None = None
    ) -> tuple[Any, Tensor]:
        """The chains a move later, and the probability with which each was accepted, (chains,)."""

        def log_density(x: Tensor) -> tuple[Tensor]:
            return (model.log_density(model.restore(x), beta),)

        size = step or self.step or FIXED_STEP
        point, probability = self.move(log_density, _real(model, state), size, model.base_scale)
        return model.restore(point.x), probability

    def move(self, log_density: LogDensity, x: Tensor, step: Size, scale: Size = 1.0) -> tuple[Point, Tensor]:
        """One move of each chain.

        Args:
            log_density: what the move leaves invariant.
            x: where the chains stand, (..., width).
            step: a number, or what broadcasts to (...), in units of `scale`.
            scale: units of the coordinates, (width,) or one for all.

        Returns:
            Where they stand afterwards, and the probability with which each was accepted, (...).
        """
        raise NotImplementedError


@component("langevin", "kernel")
class Langevin(GradientKernel):
    """x' = x + (s σ)²/2 ∇log p(x) + s σ e, e ~ N(0, I), σ those of the base (Roberts and Tweedie 1996).

    Args:
        adjusted: whether proposals are accepted as Metropolis and Hastings do, so that p is left as it is exactly.
        steps: moves in one call, whose mean probability of acceptance is given.
    """

    target = 0.574  # Roberts and Rosenthal (1998)

    adjusted: bool = True
    steps: PositiveInt = 1

    @property
    def exact(self) -> bool:
        """Whether moves are accepted as Metropolis and Hastings do, so that they leave p invariant."""
        return self.adjusted

    def move(self, log_density: LogDensity, x: Tensor, step: Size, scale: Size = 1.0) -> tuple[Point, Tensor]:
        """Arguments as in `GradientKernel.move`."""
        size = torch.as_tensor(step).to(x)[..., None] * scale
        point = Point.at(x, log_density)
        total = torch.zeros_like(point.log_p)
        for _ in range(self.steps):
            noise = torch.randn_like(x)
            new = Point.at(point.x + 0.5 * size**2 * point.gradient + size * noise, log_density)
            if self.adjusted:
                back = (point.x - new.x - 0.5 * size**2 * new.gradient) / size
                accepted, probability = accept(new.log_p - point.log_p - 0.5 * (back**2 - noise**2).sum(-1))
                new = new.where(accepted, point)
            point, total = new, total + (probability if self.adjusted else 1.0) / self.steps
        return point, total


@component("hmc", "kernel")
class HMC(GradientKernel):
    """Hamiltonian Monte Carlo over real x, with momenta drawn anew in each call (Duane et al. 1987; Neal 2011).

    Steps vary by a fifth from chain to chain, which keeps trajectories from closing on themselves.

    Args:
        leapfrogs: steps of a trajectory.
    """

    target = 0.65  # Beskos et al. (2013)

    leapfrogs: PositiveInt = 10

    def move(self, log_density: LogDensity, x: Tensor, step: Size, scale: Size = 1.0) -> tuple[Point, Tensor]:
        """Arguments as in `GradientKernel.move`."""
        start = point = Point.at(x, log_density)
        size = (step * (0.8 + 0.4 * torch.rand_like(start.log_p)))[..., None] * scale
        momentum = torch.randn_like(x)
        energy = 0.5 * momentum.square().sum(-1) - start.log_p
        for _ in range(self.leapfrogs):
            momentum = momentum + 0.5 * size * point.gradient
            point = Point.at(point.x + size * momentum, log_density)
            momentum = momentum + 0.5 * size * point.gradient
        accepted, probability = accept(energy - 0.5 * momentum.square().sum(-1) + point.log_p)
        return point.where(accepted, start), probability


@dataclass(frozen=True)
class Adapted:
    """A kernel with a fixed step for each β, found by `adapted`.

    Attributes:
        kernel: the kernel.
        betas: β, rising ...
        log_steps: ... and the logarithm of the step there; between them it is linear in β.
    """

    kernel: GradientKernel
    betas: Sequence[float]
    log_steps: Sequence[float]

    def __call__(self, model: UnnormalisedDensity, state: Any, beta: Beta = 1.0) -> Any:
        """The chains a move later, β being one number."""
        return self.moved(model, state, beta)[0]

    def moved(self, model: UnnormalisedDensity, state: Any, beta: Beta) -> tuple[Any, Tensor]:
        """The chains a move later, and the probability with which each was accepted, (chains,)."""
        return self.kernel.moved(model, state, beta, math.exp(np.interp(float(beta), self.betas, self.log_steps)))


def adapted_steps(
    move: Callable[[S, float, Any], tuple[S, Any]],
    state: S,
    betas: Sequence[float],
    log_step: Any,
    target: float,
    *,
    first: int,
    each: int,
    averaged: int,
) -> list[Any]:
    """Steps with which pilot chains meet a target of acceptance, β by β (Robbins and Monro 1951).

    After each move the logarithm of the step rises by half of what the acceptance exceeds the target by. Within the
    chains that are weighed the steps would depend on these, and weights would be biased.

    Args:
        move: takes a state, β and the logarithm of the step, and gives the next state and the mean acceptance.
        state: where the pilot chains begin.
        betas: points of the path, in their order.
        log_step: to begin with, a number or one for each datapoint, as the acceptance is.
        target: the mean acceptance.
        first: number of moves at the first β ...
        each: ... and at each later one.
        averaged: last moves at a β whose logarithms are averaged.

    Returns:
        The logarithm of the step at each β.
    """
    log_steps = []
    for place, beta in enumerate(betas):
        found = []
        for _ in range(each if place else first):
            state, acceptance = move(state, beta, log_step)
            log_step = log_step + 0.5 * (acceptance - target)
            found.append(log_step)
        log_steps.append(sum(found[-averaged:]) / len(found[-averaged:]))
    return log_steps


@torch.no_grad()
def adapted(model: UnnormalisedDensity, declared: Any = None, temperatures: int = 0, start: Any = None) -> Any:
    """The declared kernel, its steps adapted where it moves along a gradient and none was declared.

    Pilot chains go up the path, and the step rises and falls until the kernel's target of acceptance is met. They are
    no part of what is estimated afterwards, whose kernel therefore depends on β alone.

    Args:
        model: an unnormalised density.
        declared: a kernel, or None for the model's own.
        temperatures: of the path along which the kernel is to be used; 0: at β = 1 alone.
        start: states at which the pilot chains begin; None: draws of the base.

    Raises:
        InputError: the kernel does not leave the density as it is, or does not go with the model.
    """
    kernel = kernel_of(model, declared)
    if not isinstance(kernel, GradientKernel):
        return kernel
    if not kernel.exact:
        raise InputError(
            "langevin with adjusted: false draws from another density than the model's, by which nothing is estimated "
            "or sampled; declare adjusted: true"
        )
    if kernel.step is not None:
        return kernel
    x = _real(model, model.base(PILOTS) if start is None else start)
    x = x[torch.arange(PILOTS, device=x.device) % len(x)]
    number = min(temperatures, POINTS_ADAPTED)
    betas = [round(temperatures * (place + 1) / number) / temperatures for place in range(number)] or [1.0]

    def move(x: Tensor, beta: float, log_step: float) -> tuple[Tensor, float]:
        x, probability = kernel.moved(model, x, beta, math.exp(log_step))
        return x, probability.mean().item()

    log_steps = adapted_steps(move, x, betas, math.log(FIXED_STEP), kernel.target, first=100, each=5, averaged=20)
    return Adapted(kernel, betas, log_steps)


class Movement:
    """A kernel that keeps account of what it does to chains over real numbers.

    Attributes:
        accepted: mean acceptance of each move.
        distance: sum over moves of the mean squared distance of each coordinate over twice its variance over chains,
            which of independent states is 1, (width,).
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.accepted: list[Tensor] = []
        self.distance = torch.zeros(())

    def __call__(self, model: UnnormalisedDensity, state: Any, beta: Beta = 1.0) -> Any:
        """The chains a move later."""
        if model.levels is not None or not isinstance(state, Tensor):
            return self.kernel(model, state, beta)
        if isinstance(self.kernel, GradientKernel | Adapted):
            new, probability = self.kernel.moved(model, state, beta)
        else:
            new = self.kernel(model, state, beta)
            probability = (new != state).any(-1).to(new)
        self.accepted.append(probability.mean())
        if len(new) > 1:
            variance = new.var(0).clamp(min=torch.finfo(new.dtype).tiny)
            self.distance = self.distance.to(new) + (new - state).square().mean(0) / (2 * variance)
        else:
            self.distance = torch.tensor(math.inf)  # of one chain nothing is known
        return new

    @property
    def acceptance(self) -> float | None:
        """Mean acceptance; None where no move can be rejected, or none was made."""
        return torch.stack(self.accepted).mean().item() if self.accepted else None

    @property
    def stuck(self) -> str | None:
        """Why the chains cannot be said to have moved, if so: rejected over a tenth of their moves, or too close."""
        if not self.accepted:
            return None
        parts = torch.stack(self.accepted).tensor_split(10)
        lowest, distance = min(part.mean().item() for part in parts if len(part)), self.distance.min().item()
        if lowest >= LOWEST_ACCEPTANCE and distance >= LOWEST_DISTANCE:
            return None
        said = (
            f"{lowest:.1%} of their moves were accepted in a tenth of them"
            if lowest < LOWEST_ACCEPTANCE
            else f"all moves of a coordinate together are {distance:.2g} of the distance between independent states"
        )
        return (
            f"the chains did not move: {said}; leave the kernel's step out, by which it is adapted, or give the base "
            "the units of x (model.initialise)"
        )


@torch.no_grad()
def no_normaliser(model: UnnormalisedDensity, kernel: Any, size: int = 200) -> str | None:
    """Why exp(-F) over real x seems to have no finite integral; None where nothing speaks for it.

    Along a ray the mass between r and r + dr is r^(D - 1) exp(-F(r)) dr, so that log p + D log r must fall in the end:
    it is looked at along rays from the base, far out. A valley that no ray follows is found by chains from the base: of
    a density their distances settle, while without one they grow with the root of the number of moves or faster. The
    median over chains is compared, coordinate by coordinate, which heavy tails do not move.

    Args:
        model: an unnormalised density.
        kernel: what moves the chains, as `adapted` gives it.
        size: number of rays, and of chains.
    """
    if model.levels is not None or model.has_conditionals:
        return None  # finitely many x, or conditionals that are normal
    start = state = _real(model, model.base(size))
    centre = start.mean(0)
    near, far = (model.log_density(model.restore(centre + r * (start - centre))).double() for r in (NEAR, FAR))
    rising = int((far - near + start.shape[1] * math.log(FAR / NEAR) > 0).sum())
    if rising:
        found = f"far out p(x) falls more slowly than |x|^-{start.shape[1]} in {rising} of {size} directions"
    else:
        distances = []
        for moves in range(1, LATE + 1):
            state = kernel(model, state)
            if moves in (EARLY, LATE):
                distances.append((_real(model, state) - centre).abs().median(0).values)
        ratio = (distances[1] / distances[0]).max().item()
        if not ratio > GROWTH:
            return None
        found = f"chains go on spreading, {ratio:.3g} times as far after {LATE} moves as after {EARLY}"
    return (
        f"exp(-F) of {type(model).__name__} has no finite integral: {found}; let the energy grow with x in all "
        "directions, as reference: normal does"
    )


def accept(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Which proposals are accepted, and the probability min(1, r) of it, 0 where a trajectory diverged and r is NaN."""
    probability = log_ratio.clamp(max=0).exp().nan_to_num(0.0)
    return torch.rand_like(probability) < probability, probability


class Tempering:
    """Parallel tempering: chains at several β that exchange their states with their neighbours.

    A swap of the states at β and β' is accepted with probability min(1, p_β(x') p_β'(x) / (p_β(x) p_β'(x'))), so that
    the chains at β = 1 visit every mode that those at β = 0 do (Swendsen and Wang 1986; Desjardins et al. 2010).

    Args:
        levels: number of β, evenly spaced from 1 to 0.
        kernel: what moves the chains between swaps.
    """

    def __init__(self, levels: int, kernel: Any) -> None:
        self.levels, self.kernel = levels, kernel

    def betas(self, chains: int, like: Tensor) -> Tensor:
        """β of each of `chains` chains a level, (levels * chains, 1), the first being 1."""
        levels = torch.linspace(1, 0, self.levels, dtype=like.dtype, device=like.device)
        return levels.repeat_interleave(chains)[:, None]

    @torch.no_grad()
    def __call__(self, model: UnnormalisedDensity, state: Any) -> Any:
        """Moves (levels * chains) chains, level by level, and swaps neighbouring levels: even pairs, then odd ones."""
        flat = model.flat(state)
        chains = len(flat) // self.levels
        beta = self.betas(chains, flat)
        flat = model.flat(self.kernel(model, state, beta))
        for first in (0, 1):
            state = model.restore(flat)
            own, at_next, at_previous = (
                model.log_density(state, b).reshape(-1, chains)
                for b in (beta, _shifted(beta, chains, 1), _shifted(beta, chains, -1))
            )
            order = torch.arange(self.levels, device=flat.device)[:, None].repeat(1, chains)
            pairs = torch.arange(first, self.levels - 1, 2, device=flat.device)
            ratio = at_next[pairs] + at_previous[pairs + 1] - own[pairs] - own[pairs + 1]
            swap = torch.rand_like(ratio).log() < ratio
            order[pairs] += swap.long()
            order[pairs + 1] -= swap.long()
            flat = flat.reshape(self.levels, chains, -1).gather(0, order[..., None].expand(-1, -1, flat.shape[-1]))
            flat = flat.reshape(self.levels * chains, -1)
        return model.restore(flat)


def run(model: UnnormalisedDensity, state: Any, sweeps: int, kernel: Any = None) -> Iterator[Any]:
    """The states of chains after each of so many moves, to be watched.

    Args:
        model: an unnormalised density.
        state: where the chains begin.
        sweeps: number of moves.
        kernel: what moves them; None is the model's Gibbs sampler, or adapted HMC where x is real and it has none.
    """
    kernel = adapted(model, kernel, start=state)
    for _ in range(sweeps):
        state = kernel(model, state)
        yield state


def kernel_of(model: UnnormalisedDensity, declared: Any = None) -> Any:
    """The declared kernel; None: the Gibbs sampler of a model that has one, else HMC."""
    if declared is None:
        return Gibbs() if model.has_conditionals else HMC()
    return build("kernel", declared)


def _real(model: UnnormalisedDensity, state: Any) -> Tensor:
    if model.levels is not None or not isinstance(state, Tensor):
        raise InputError(
            f"{type(model).__name__} of {model.support} is sampled by kernel: gibbs; langevin and hmc follow the "
            "gradient of an energy over real numbers"
        )
    return state.detach()


def gradient_in(x: Tensor, log_p: Tensor, *, create_graph: bool = False) -> Tensor:
    """∂ log p(x) / ∂x for each datapoint.

    Raises:
        InputError: log p was not computed from x, or not by what torch can differentiate.
    """
    gradient = None
    if log_p.requires_grad:
        (gradient,) = torch.autograd.grad(log_p.sum(), x, create_graph=create_graph, allow_unused=True)
    if gradient is None:
        raise InputError(
            "the energy does not depend on x, or was computed outside of torch's graph; let it be a function of x that "
            "torch can differentiate, without detach, no_grad or NumPy"
        )
    return gradient


def _shifted(beta: Tensor, chains: int, by: int) -> Tensor:
    """β of the next (1) or previous (-1) level of each chain's; its own at the end."""
    levels = beta.reshape(-1, chains)
    index = (torch.arange(len(levels), device=beta.device) + by).clamp(0, len(levels) - 1)
    return levels[index].reshape(-1, 1)
