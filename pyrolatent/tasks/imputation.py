"""Drawing what is missing in x from p(x_missing | x_observed)."""

import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import pyro
import torch
from torch import Tensor

from pyrolatent.errors import InputError, at_least, at_least_one, validate_options
from pyrolatent.inference.draws import MAX_ELEMENTS, decoded, repeated, resampled
from pyrolatent.inference.evidence.psis import khat, khat_threshold, too_large
from pyrolatent.inference.gibbs import RHAT, metropolis_within_gibbs, split_rhat
from pyrolatent.inference.monte_carlo import log_mean
from pyrolatent.inference.refine import refine
from pyrolatent.inference.rules import require_latents, require_support
from pyrolatent.models.arrays import as_inputs
from pyrolatent.models.isolation import evaluating_alone
from pyrolatent.models.latent import LatentVariableModel

Method = Literal["resampling", "gibbs"]
"""How latents are drawn given what is observed."""
SWEEPS = 500
"""Default number of sweeps of chains."""


@torch.no_grad()
def impute(
    model: LatentVariableModel,
    x: Any,
    mask: Any = None,
    y: Any = None,
    *,
    draws: int = 10,
    particles: int = 100,
    method: Method = "resampling",
    sweeps: int | None = None,
    refined: int = 0,
    mean: bool = False,
) -> Tensor:
    """Draws missing entries, x_missing ~ p(x_missing | x_observed).

    By resampling, `particles` latents are drawn for each draw and weighted given the observed entries, half of them
    from the prior if the encoder was not trained with missing entries (`inference.draws.resampled`). One of them is
    chosen by weight, and x is drawn from its likelihood. This is exact in the limit of many particles; a warning has
    the number of datapoints for which k-hat shows that there are too few.

    By Gibbs sampling, each draw so made is the start of a chain that draws x_missing given z and z given x in turn
    (`inference.gibbs`). This is exact in the limit of many sweeps; a warning has the number of datapoints whose chains
    have not mixed.

    Args:
        model: a fitted model.
        x: data (batch, *event_shape); NaN is missing, and values where the mask is False are ignored.
        mask: True where x is observed, (batch, *event_shape); None where x is not NaN.
        y: labels of conditional models.
        draws: number of draws per datapoint.
        particles: number of latents that each draw is resampled from.
        method: "resampling" or "gibbs".
        sweeps: number of sweeps of each chain of "gibbs"; None is 500.
        refined: number of steps by which the posterior of each datapoint given what is observed is refined, from which
            latents are then drawn instead; it helps where the prior and the encoder rarely hit, as in images.
        mean: whether to return E[x | z] at each draw of z instead of a draw of x.

    Returns:
        (draws, batch, *event_shape), with observed values unchanged.

    Raises:
        InputError: an argument does not fit the model, or nothing is missing.
    """
    at_least_one(draws=draws, particles=particles)
    at_least(4, sweeps=sweeps)
    at_least(0, refined=refined)
    if method not in get_args(Method):
        raise InputError(f"there is no method {method!r}; valid: {', '.join(get_args(Method))}")
    validate_options(f"impute by {method}", ["sweeps"] * (method == "gibbs"), {"sweeps": sweeps})
    require_latents(model)
    x, y, mask = as_inputs(model, x, y, mask)
    if mask is None:
        raise InputError("x is complete, but impute draws what is missing; put NaN there, or give a mask, False there")
    at_once = 1 if model.global_sites else max(1, MAX_ELEMENTS // (x.numel() * particles))
    filled, all_weights, all_chains = [], [], []
    with evaluating_alone(model), pyro.validation_enabled(False):
        require_support(model, (x, y, mask), grey=True)
        for start in range(0, draws, at_once):
            count = min(at_once, draws - start)
            values, observed = repeated(x, count), repeated(mask, count)
            labels = None if y is None else repeated(y, count)
            inputs = values, labels, observed
            with model.given(model.global_draw(inputs)):
                guide = refine(model, *inputs, steps=refined) if refined else None
                latents, log_weights = resampled(model, inputs, particles, guide=guide)
                if method == "gibbs":
                    first = {site: value[0] for site, value in latents.items()}
                    complete = _completion(values, observed)
                    chains = metropolis_within_gibbs(model, labels, first, complete, sweeps or SWEEPS)
                    latents = {site: value.unsqueeze(0) for site, value in chains.latents.items()}
                    all_chains.append(chains.kept.unflatten(1, (count, len(x))))
                likelihood = decoded(model, latents, labels, [1, len(values)])
                new = likelihood.mean if mean else model.complete(likelihood, latents)
                drawn = torch.where(observed, values, new[0])
            filled.append(drawn.unflatten(0, (count, len(x))))
            all_weights.append(log_weights.unflatten(1, (count, len(x))).flatten(0, 1))
    _warn(torch.cat(all_weights), torch.cat(all_chains, 1) if all_chains else None, particles, sweeps or SWEEPS)
    return torch.cat(filled)


def _completion(x: Tensor, mask: Tensor) -> Callable[[Any], Tensor]:
    """Draws x_missing ~ p(x_missing | z) beside the observed entries."""
    return lambda likelihood: torch.where(mask, x, likelihood.sample())


def _warn(log_weights: Tensor, chains: Tensor | None, particles: int, sweeps: int) -> None:
    """Warns of datapoints whose draws cannot be relied on."""
    if chains is not None:
        unmixed = int((split_rhat(chains) > RHAT).sum())
        said = f"the chains of {unmixed} of {chains.shape[2]} datapoints have not mixed (R-hat above {RHAT})"
        if unmixed:
            warnings.warn(f"{said}; give more sweeps than {sweeps}", stacklevel=3)
        return
    few = int(too_large(khat(log_weights), log_mean(log_weights)[2], len(log_weights)).sum())
    if few:
        warnings.warn(
            f"imputed values rest on few latents in {few} of {log_weights.shape[1]} datapoints, whose k-hat over "
            f"{len(log_weights)} draws is above {khat_threshold(len(log_weights)):.2f}; give more particles than "
            f"{particles}, or method gibbs",
            stacklevel=3,
        )
