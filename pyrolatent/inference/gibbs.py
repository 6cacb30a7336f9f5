"""Metropolis-within-Gibbs: draws of the latents and of what was not seen of x, with the encoder as proposal.

    x ~ p(x | z, seen),     z' ~ q(z | x), accepted with probability min(1, w(z') / w(z)),  w(z) = p(x, z) / q(z | x)

Both moves leave p(x, z | seen) invariant, whatever the encoder, which decides only how fast the chains move (Mattei and
Frellsen 2018, 1802.04826). What was seen is x with gaps, or x behind a noise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrolatent.errors import InputError
from pyrolatent.inference.draws import decoded, draw, log_weights_at
from pyrolatent.inference.weights import Inputs
from pyrolatent.models.latent import LatentVariableModel

RHAT = 1.1
"""The split R-hat above which chains have not mixed (Gelman et al. 2013)."""


@dataclass(frozen=True)
class Chains:
    """The last states of chains, one for each row of a batch, and the trace by which they are judged.

    Attributes:
        x: x given the latents and what was seen, (chains, *event_shape).
        latents: by site, (chains, ...).
        kept: log p(x, z) after each sweep of the second half, (sweeps, chains), nats.
    """

    x: Tensor
    latents: dict[str, Tensor]
    kept: Tensor


@torch.no_grad()
def metropolis_within_gibbs(
    model: LatentVariableModel,
    y: Tensor | None,
    latents: dict[str, Tensor],
    complete: Callable[[object], Tensor],
    sweeps: int,
    on_kept: Callable[[object, Tensor], None] | None = None,
) -> Chains:
    """Runs chains whose stationary distribution is p(x, z | seen).

    Args:
        model: a model whose posterior can score values that it did not draw.
        y: labels of the chains, of conditional models.
        latents: where the chains start, by site, (chains, ...).
        complete: draws x ~ p(x | z, seen), (chains, *event_shape), from the likelihood p(x | z).
        sweeps: number of sweeps, of which the first half is not kept.
        on_kept: called with the likelihood and with x in each sweep that is kept.

    Raises:
        InputError: the posterior can score only its own draws, or is of what is missing too.
    """
    if not model.scores_any_value or model.missingness is not None:
        why = "draws missing values as a latent" if model.missingness is not None else "scores only its own draws"
        raise InputError(
            f"the posterior of {type(model).__name__} {why}, so that Gibbs sampling cannot use it; resample"
        )
    kept: list[Tensor] = []
    x = torch.zeros(())
    for sweep in range(sweeps + 1):
        likelihood = decoded(model, latents, y, [len(next(iter(latents.values())))])
        x = complete(likelihood)
        if sweep > sweeps // 2 and on_kept:
            on_kept(likelihood, x)
        if sweep == sweeps:
            break
        inputs: Inputs = x, y, None
        now, log_joint = log_weights_at(model, inputs, latents)
        proposed = draw(model, inputs, 1)
        new = proposed.log_weights_of_states[0]
        taken = torch.rand_like(now).log() < new - now
        latents = {
            site: torch.where(_like(taken, value), proposed.latents[site][0], value) for site, value in latents.items()
        }
        if sweep >= sweeps // 2:
            kept.append(torch.where(taken, (proposed.log_likelihood + proposed.log_prior)[0], log_joint))
    return Chains(x, latents, torch.stack(kept))


def _like(rows: Tensor, values: Tensor) -> Tensor:
    """Rows, (batch,), with as many dimensions as the values, (batch, ...)."""
    return rows.reshape(-1, *[1] * (values.dim() - 1))


def split_rhat(chains: Tensor) -> Tensor:
    """The split R-hat of chains, (sweeps, chains, ...): how much wider they are together than each half alone.

        R² = (n - 1) / n + B / W

    n is half the number of sweeps, B the variance of the means of the halves, and W the mean of their variances (Gelman
    et al. 2013). It is 1 for chains that have mixed.
    """
    half = len(chains) // 2
    halves = torch.cat([chains[:half], chains[half : 2 * half]], 1)
    within, between = halves.var(0).mean(0), halves.mean(0).var(0)
    return torch.where(within > 0, ((half - 1) / half + between / within.clamp(min=1e-30)).sqrt(), 1.0)
