"""Markov kernels that leave a model's density as it is: what chains are made of.

Each is called as kernel(model, state, beta) and moves every chain once; β = 1 is the model, β < 1 a point of its path
to the base, one number or one for each chain, (chains, 1).
"""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor

from pyrolatent.declaration import build, component
from pyrolatent.errors import InputError
from pyrolatent.models.unnormalised import Beta, UnnormalisedDensity


@component("kernel", "gibbs")
class Gibbs:
    """One sweep of the model's own Gibbs sampler, block by block."""

    def __call__(self, model: UnnormalisedDensity, state: Any, beta: Beta = 1.0) -> Any:
        """The chains one sweep later."""
        return model.gibbs(state, beta)


@component("kernel", "langevin")
class Langevin:
    """x' = x + s²/2 ∇log p(x) + s e, e ~ N(0, I), over real x (Roberts and Tweedie 1996).

    Args:
        step: s, in the units of x.
        adjusted: whether proposals are accepted as Metropolis and Hastings do, so that p is left as it is exactly.
        steps: moves in one call.
    """

    def __init__(self, *, step: Annotated[float, Gt(0)] = 0.1, adjusted: bool = True, steps: Annotated[int, Gt(0)] = 1):
        self.step, self.adjusted, self.steps = step, adjusted, steps

    def __call__(self, model: UnnormalisedDensity, state: Any, beta: Beta = 1.0) -> Any:
        """The chains some steps later."""
        x = _real(model, state)
        log_p, gradient = _scored(model, x, beta)
        for _ in range(self.steps):
            noise = torch.randn_like(x)
            new = x + 0.5 * self.step**2 * gradient + self.step * noise
            new_log_p, new_gradient = _scored(model, new, beta)
            accepted = torch.ones_like(log_p, dtype=torch.bool)
            if self.adjusted:
                back = (x - new - 0.5 * self.step**2 * new_gradient) / self.step
                ratio = new_log_p - log_p - 0.5 * (back.square() - noise.square()).sum(-1)
                accepted = torch.rand_like(ratio).log() < ratio
            x = torch.where(accepted[:, None], new, x)
            gradient = torch.where(accepted[:, None], new_gradient, gradient)
            log_p = torch.where(accepted, new_log_p, log_p)
        return model.restore(x)


@component("kernel", "hmc")
class HMC:
    """Hamiltonian Monte Carlo over real x, with momenta drawn anew in each call (Duane et al. 1987; Neal 2011).

    Args:
        step: of the leapfrog, in the units of x.
        leapfrogs: steps of a trajectory.
    """

    def __init__(self, *, step: Annotated[float, Gt(0)] = 0.1, leapfrogs: Annotated[int, Gt(0)] = 10) -> None:
        self.step, self.leapfrogs = step, leapfrogs

    def __call__(self, model: UnnormalisedDensity, state: Any, beta: Beta = 1.0) -> Any:
        """The chains a trajectory later, or where they were if it is not accepted."""
        x = _real(model, state)
        log_p, gradient = _scored(model, x, beta)
        momentum = torch.randn_like(x)
        kinetic = 0.5 * momentum.square().sum(-1)
        new, new_log_p = x, log_p
        for _ in range(self.leapfrogs):
            momentum = momentum + 0.5 * self.step * gradient
            new = new + self.step * momentum
            new_log_p, gradient = _scored(model, new, beta)
            momentum = momentum + 0.5 * self.step * gradient
        ratio = new_log_p - log_p + kinetic - 0.5 * momentum.square().sum(-1)
        # A trajectory that diverged has a ratio of NaN, and is not accepted.
        accepted = torch.rand_like(ratio).log() < ratio
        return model.restore(torch.where(accepted[:, None], new, x))


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
        kernel: what moves them; None is the model's Gibbs sampler, or HMC where x is real and it has none.
    """
    kernel = kernel_of(model, kernel)
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


def _scored(model: UnnormalisedDensity, x: Tensor, beta: Beta) -> tuple[Tensor, Tensor]:
    """log of the density of the path and its gradient in x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        log_p = model.log_density(model.restore(x), beta)
        (gradient,) = torch.autograd.grad(log_p.sum(), x)
    return log_p.detach(), gradient


def _shifted(beta: Tensor, chains: int, by: int) -> Tensor:
    """β of the next (1) or previous (-1) level of each chain's; its own at the end."""
    levels = beta.reshape(-1, chains)
    index = (torch.arange(len(levels), device=beta.device) + by).clamp(0, len(levels) - 1)
    return levels[index].reshape(-1, 1)
