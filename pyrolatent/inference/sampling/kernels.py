"""MCMC kernels that leave a model's density invariant.

Each is called as kernel(model, state, beta) and moves every chain once; β = 1 is the model, β < 1 a point of its path
to the base, one number or one per chain, (chains, 1).
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
"""Maps x (..., width) to log p(x) up to a constant, (...), and further terms to keep, each (...)."""
FIXED_STEP = 0.1
"""Step size in training, and initial one of adaptation, in standard deviations of the base."""
PILOTS = 32
"""Number of pilot chains on which steps are adapted."""
POINTS_ADAPTED = 100
"""Largest number of points of a path at which a step is adapted."""
LOWEST_ACCEPTANCE, LOWEST_DISTANCE = 0.01, 0.1
"""Smallest acceptance rate and relative distance of chains that count as having moved."""
NEAR, FAR = 1e3, 1e6
"""Distances from the base, in its standard deviations, between which the tails of a density are examined."""
EARLY, LATE, GROWTH = 16, 256, 1.8
"""Two numbers of moves from the base, and the ratio of distances after them above which there is no normaliser.

A random walk has a ratio of four; for a density the ratio of two medians of 200 chains is 1 within 0.12.
"""


@component("gibbs", "kernel")
class Gibbs:
    """One sweep of the model's own Gibbs sampler, block by block."""

    def __call__(self, model: UnnormalisedDensity, state: Any, beta: Beta = 1.0) -> Any:
        """The chains after one sweep."""
        return model.gibbs(state, beta)


class Point(NamedTuple):
    """The positions of chains with their density.

    Attributes:
        x: positions, (..., width).
        log_p: log density, (...).
        gradient: ∂ log p / ∂x, (..., width).
        terms: further terms that the density returned, each (...).
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
        """This point for accepted chains, the other one for the rest."""
        return Point(
            torch.where(accepted[..., None], self.x, other.x),
            torch.where(accepted, self.log_p, other.log_p),
            torch.where(accepted[..., None], self.gradient, other.gradient),
            tuple(torch.where(accepted, *each) for each in zip(self.terms, other.terms, strict=True)),
        )


class GradientKernel(Options):
    """Moves along ∇log p over real x, each coordinate in standard deviations of the model's base.

    Args:
        step: step size in standard deviations of the base. None: evaluation, sampling and `watch` adapt it in separate
            pilot chains, so that p remains invariant; training uses 0.1.
    """

    target: ClassVar[float]
    """The target of the mean acceptance in adaptation."""

    step: PositiveFloat | None = None

    @property
    def exact(self) -> bool:
        """Whether moves leave p invariant, by Metropolis-Hastings acceptance."""
        return True

    def __call__(self, model: UnnormalisedDensity, state: Any, beta: Beta = 1.0) -> Any:
        """The chains after one move, which may be rejected."""
        return self.moved(model, state, beta)[0]

    def moved(
        self, model: UnnormalisedDensity, state: Any, beta: Beta, step: float | None = None
    ) -> tuple[Any, Tensor]:
        """The chains after one move, and their acceptance probabilities, (chains,)."""

        def log_density(x: Tensor) -> tuple[Tensor]:
            return (model.log_density(model.restore(x), beta),)

        size = step or self.step or FIXED_STEP
        point, probability = self.move(log_density, _real(model, state), size, model.base_scale)
        return model.restore(point.x), probability

    def move(self, log_density: LogDensity, x: Tensor, step: Size, scale: Size = 1.0) -> tuple[Point, Tensor]:
        """Moves each chain once.

        Args:
            log_density: log of the density that the move leaves invariant.
            x: positions of the chains, (..., width).
            step: step size in units of `scale`, a number or broadcastable to (...).
            scale: units of the coordinates, (width,) or one for all.

        Returns:
            The new positions, and the acceptance probabilities, (...).
        """
        raise NotImplementedError


@component("langevin", "kernel")
class Langevin(GradientKernel):
    """x' = x + (s σ)²/2 ∇log p(x) + s σ e, e ~ N(0, I), σ those of the base (Roberts and Tweedie 1996).

    Args:
        adjusted: whether moves are accepted or rejected by Metropolis-Hastings, which leaves p invariant exactly.
        steps: number of moves per call; their mean acceptance probability is returned.
    """

    target = 0.574  # Roberts and Rosenthal (1998)

    adjusted: bool = True
    steps: PositiveInt = 1

    @property
    def exact(self) -> bool:
        """Whether moves leave p invariant, by Metropolis-Hastings acceptance."""
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
    """Hamiltonian Monte Carlo over real x, with new momenta in each call (Duane et al. 1987; Neal 2011).

    Step sizes vary by a fifth between chains, which avoids periodic trajectories.

    Args:
        leapfrogs: number of leapfrog steps per trajectory.
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
        betas: ascending β.
        log_steps: log step sizes at these β, interpolated linearly between them.
    """

    kernel: GradientKernel
    betas: Sequence[float]
    log_steps: Sequence[float]

    def __call__(self, model: UnnormalisedDensity, state: Any, beta: Beta = 1.0) -> Any:
        """The chains after one move at a single β."""
        return self.moved(model, state, beta)[0]

    def moved(self, model: UnnormalisedDensity, state: Any, beta: Beta) -> tuple[Any, Tensor]:
        """The chains after one move, and their acceptance probabilities, (chains,)."""
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
    """Adapts step sizes to a target acceptance on pilot chains, β by β (Robbins and Monro 1951).

    After each move the log step size increases by half the excess of the acceptance over the target. Pilot chains are
    separate because weights of chains whose step sizes depend on them would be biased.

    Args:
        move: maps a state, β and the log step size to the next state and the mean acceptance.
        state: initial states of the pilot chains.
        betas: points of the path, in order.
        log_step: initial log step size, a number or one per datapoint, like the acceptance.
        target: target of the mean acceptance.
        first: number of moves at the first β.
        each: number of moves at each later β.
        averaged: number of last moves at each β over which log step sizes are averaged.

    Returns:
        The log step size at each β.
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
    """The declared kernel, with steps adapted if it uses gradients and declares none.

    Separate pilot chains move along the path while the step is adapted to the kernel's target acceptance. The kernel of
    the estimates that follow therefore depends only on β.

    Args:
        model: an unnormalised density.
        declared: a kernel, or None for the model's default.
        temperatures: number of steps of the path along which the kernel will be used; 0 for β = 1 only.
        start: initial states of the pilot chains; None draws from the base.

    Raises:
        InputError: the kernel does not leave the density invariant, or does not fit the model.
    """
    kernel = kernel_of(model, declared)
    if not isinstance(kernel, GradientKernel):
        return kernel
    if not kernel.exact:
        raise InputError(
            "langevin with adjusted: false does not draw from the model's density, so it can neither estimate nor "
            "sample; declare adjusted: true"
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
    """Wrapper of a kernel that records how far it moves chains over real numbers.

    Attributes:
        accepted: mean acceptance of each move.
        distance: sum over moves of the mean squared distance of each coordinate, divided by twice its variance over
            chains, (width,); it is 1 for independent states.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.accepted: list[Tensor] = []
        self.distance = torch.zeros(())

    def __call__(self, model: UnnormalisedDensity, state: Any, beta: Beta = 1.0) -> Any:
        """The chains after one move."""
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
            self.distance = torch.tensor(math.inf)  # unknown for a single chain
        return new

    @property
    def acceptance(self) -> float | None:
        """Mean acceptance; None if moves cannot be rejected or none was made."""
        return torch.stack(self.accepted).mean().item() if self.accepted else None

    @property
    def stuck(self) -> str | None:
        """Why the chains did not move, if so: a tenth of the moves were all rejected, or distances are too small."""
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
            f"the chains did not move: {said}; leave out the kernel's step, so that it is adapted, or give the base "
            "the units of x (model.initialise)"
        )


@torch.no_grad()
def no_normaliser(model: UnnormalisedDensity, kernel: Any, size: int = 200) -> str | None:
    """Why exp(-F) over real x seems to have no finite integral; None if there is no indication.

    Along a ray the mass between r and r + dr is r^(D - 1) exp(-F(r)) dr, so log p + D log r must eventually decrease,
    which is examined along rays from the base, far out. Valleys that no ray follows are found by chains from the base:
    for a density their distances settle, whereas without a normaliser they grow at least with the square root of the
    number of moves. Distances are compared by coordinate and by their median over chains, which is robust to heavy
    tails.

    Args:
        model: an unnormalised density.
        kernel: kernel of the chains, as returned by `adapted`.
        size: number of rays, and of chains.
    """
    if model.levels is not None or model.has_conditionals:
        return None  # finitely many x, or normal conditionals
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
        found = f"chains keep spreading, {ratio:.3g} times as far after {LATE} moves as after {EARLY}"
    return (
        f"exp(-F) of {type(model).__name__} has no finite integral: {found}; let the energy grow with x in all "
        "directions, as reference: normal does"
    )


def accept(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Which proposals are accepted, and their probabilities min(1, r), 0 where a trajectory diverged and r is NaN."""
    probability = log_ratio.clamp(max=0).exp().nan_to_num(0.0)
    return torch.rand_like(probability) < probability, probability


class Tempering:
    """Parallel tempering: chains at several β that exchange states with their neighbours.

    A swap of the states at β and β' is accepted with probability min(1, p_β(x') p_β'(x) / (p_β(x) p_β'(x'))), so that
    the chains at β = 1 visit every mode that those at β = 0 do (Swendsen and Wang 1986; Desjardins et al. 2010).

    Args:
        levels: number of β, evenly spaced from 1 to 0.
        kernel: kernel that moves the chains between swaps.
    """

    def __init__(self, levels: int, kernel: Any) -> None:
        self.levels, self.kernel = levels, kernel

    def betas(self, chains: int, like: Tensor) -> Tensor:
        """β of `chains` chains per level, (levels * chains, 1), from 1 down to 0."""
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
    """Yields the states of chains after each of a number of moves.

    Args:
        model: an unnormalised density.
        state: initial states of the chains.
        sweeps: number of moves.
        kernel: kernel of the chains; None is the model's Gibbs sampler, or adapted HMC if it has none.
    """
    kernel = adapted(model, kernel, start=state)
    for _ in range(sweeps):
        state = kernel(model, state)
        yield state


def kernel_of(model: UnnormalisedDensity, declared: Any = None) -> Any:
    """The declared kernel; None is the model's Gibbs sampler, or HMC if it has none."""
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
        InputError: log p was not computed from x, or not by differentiable operations of torch.
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
    """β of the next (1) or previous (-1) level for each chain; its own β at the ends."""
    levels = beta.reshape(-1, chains)
    index = (torch.arange(len(levels), device=beta.device) + by).clamp(0, len(levels) - 1)
    return levels[index].reshape(-1, 1)
