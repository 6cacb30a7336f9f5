"""Removing noise as inference: draws of z given noisy data, and the clean data given both."""

import warnings
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrolatent.declaration import build
from pyrolatent.errors import InputError, at_least, at_least_one
from pyrolatent.inference.draws import MAX_ELEMENTS, repeated, simulate
from pyrolatent.inference.gibbs import RHAT, Chains, metropolis_within_gibbs, split_rhat
from pyrolatent.inference.rules import require_latents
from pyrolatent.models.arrays import as_inputs, as_numbers
from pyrolatent.models.components.corruption import Corruption
from pyrolatent.models.isolation import evaluating_alone
from pyrolatent.models.latent import LatentVariableModel

SWEEPS = 200
"""Default number of sweeps of the chains."""


@dataclass(frozen=True)
class Denoised:
    """Clean data given noisy ones.

    Attributes:
        mean: E[x | x̃], (batch, *event_shape): the mean over draws of z of E[x | z, x̃].
        draws: draws of x ~ p(x | x̃), one of each chain, (draws, batch, *event_shape).
        number: the rate or scale of the corruption: the declared one, or the mean of its draws if it was learned.
        number_sd: the standard deviation of its draws; None if it was declared.
        rhat: split R-hat of log p(x, z) of each datapoint over the chains, (batch,); above 1.1 they have not mixed.
        accepted: share of the proposals that were accepted, (batch,).
    """

    mean: Tensor
    draws: Tensor
    number: float
    number_sd: float | None
    rhat: Tensor
    accepted: Tensor


@torch.no_grad()
def denoise(
    model: LatentVariableModel,
    x: Any,
    corruption: Any,
    y: Any = None,
    *,
    draws: int = 10,
    sweeps: int = SWEEPS,
) -> Denoised:
    """Draws clean data x ~ p(x | x̃) for noisy data x̃ by Metropolis-within-Gibbs.

        p(x, z | x̃) ∝ p(x̃ | x) p(x | z) p(z)

    An encoder that was trained on clean data takes noise for data, and its reconstruction keeps it. Here it only
    proposes z given draws of the clean data, and the draws are exact in the limit of many sweeps.

    Args:
        model: a fitted model, whose posterior can score values that it did not draw.
        x: noisy data (batch, *event_shape).
        corruption: p(x̃ | x): flips, gaussian_noise, salt_and_pepper, masking or blur, by name, by name with its
            options as in `{"flips": {"rate": 0.1}}`, or an instance. A rate or scale that is not given is drawn from
            its posterior given all noisy data, under a flat prior.
        y: labels of conditional models.
        draws: number of chains, and of draws, for each datapoint.
        sweeps: number of sweeps of each chain; the mean is over the second half.

    Raises:
        InputError: an argument does not fit the model, or the corruption cannot be removed from its likelihood.
    """
    at_least_one(draws=draws)
    at_least(4, sweeps=sweeps)
    require_latents(model)
    if not model.encodes_datapoints or model.global_sites:
        raise InputError("denoise is for models whose latents all belong to a datapoint; impute takes the others")
    noise: Corruption = build("corruption", corruption)
    noise.number = as_numbers(model, noise.number, "corruption")
    noisy, labels, mask = as_inputs(model, x, y)
    if mask is not None:
        raise InputError("x has missing values, which denoise does not take; impute fills them")
    at_once = max(1, MAX_ELEMENTS // (draws * model.event_shape.numel()))
    parts = [slice(start, start + at_once) for start in range(0, len(noisy), at_once)]
    found: list[Denoised] = []
    with evaluating_alone(model), pyro.validation_enabled(False):
        for part in parts:
            found.append(_denoised(model, noisy[part], None if labels is None else labels[part], noise, draws, sweeps))
            if noise.learned:  # all data have one number, which the first of them determine
                noise.learned = False
                noise.number.fill_(found[0].number)
    rhat = torch.cat([part.rhat for part in found])
    few = int((rhat > RHAT).sum())
    if few:
        warnings.warn(
            f"the chains of {few} of {len(noisy)} datapoints have not mixed (R-hat above {RHAT}); give more sweeps "
            f"than {sweeps}",
            stacklevel=2,
        )
    return Denoised(
        torch.cat([part.mean for part in found]),
        torch.cat([part.draws for part in found], 1),
        found[0].number,
        found[0].number_sd,
        rhat,
        torch.cat([part.accepted for part in found]),
    )


def _denoised(
    model: LatentVariableModel, x: Tensor, y: Tensor | None, noise: Corruption, draws: int, sweeps: int
) -> Denoised:
    noisy, labels = repeated(x, draws), None if y is None else repeated(y, draws)
    sums = torch.zeros_like(noisy)
    numbers: list[Tensor] = []
    clean: Any = None

    def complete(likelihood: Any) -> Tensor:
        nonlocal clean
        clean = noise.given(likelihood, noisy)
        drawn: Tensor = clean.sample()
        if noise.learned:
            noise.learn(clean, drawn, noisy)
        return drawn

    def on_kept(likelihood: Any, drawn: Tensor) -> None:
        sums.add_(clean.mean)
        numbers.append(noise.number.clone())

    _, latents = simulate(model, len(noisy), labels)
    chains: Chains = metropolis_within_gibbs(model, labels, latents, complete, sweeps, on_kept)
    kept, of_number = chains.kept.unflatten(1, (draws, len(x))), torch.stack(numbers).double()
    return Denoised(
        (sums / len(numbers)).unflatten(0, (draws, len(x))).mean(0),
        chains.x.unflatten(0, (draws, len(x))),
        of_number.mean().item(),
        of_number.std().item() if noise.learned else None,
        split_rhat(kept),
        chains.accepted.unflatten(0, (draws, len(x))).mean(0),
    )
