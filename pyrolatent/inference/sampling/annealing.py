"""Annealed importance sampling along any path of densities, used by every estimate that anneals."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

S = TypeVar("S")


class Path(Protocol[S]):
    """Unnormalised densities f_b of the states of chains, and moves that leave each of them invariant."""

    def log_ratio(self, state: S, before: float, after: float) -> Tensor:
        """log f_after(x) - log f_before(x) of each chain."""
        ...

    def move(self, state: S, beta: float) -> S:
        """The chains after one move, which leaves f_beta invariant."""
        ...


def anneal(
    path: Path[S], state: S, betas: Sequence[float], on_step: Callable[[int, Tensor], Any] | None = None
) -> tuple[Tensor, S]:
    """Moves chains along a path and weights them (Neal 2001).

        log w = ∑_t log f_t(x_{t-1}) - log f_{t-1}(x_{t-1}),   x_t from a move at b_t, t < T

    With x_0 ~ f_0 / Z_0 the mean of w is Z_T / Z_0, whatever the moves. A path from the base to the model gives a lower
    bound on log Z in expectation. Exact draws of the model, moved in the opposite order, have the mean weight Z_0 / Z_T
    and so give an upper bound.

    Args:
        path: the densities and the moves.
        state: initial states of the chains, drawn from the density at b_0.
        betas: the inverse temperatures b_0 ... b_T, in the order of the moves.
        on_step: called with the number of steps done and the log-weights so far.

    Returns:
        The log-weight of each chain, and the final states.
    """
    log_weights: Any = 0.0
    for step, (before, after) in enumerate(itertools.pairwise(betas), 1):
        log_weights = log_weights + path.log_ratio(state, before, after)
        if step < len(betas) - 1:
            state = path.move(state, after)
        if on_step:
            on_step(step, log_weights)
    return log_weights, state
