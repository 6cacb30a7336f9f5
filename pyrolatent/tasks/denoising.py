"""Removing noise as inference: draws of z given noisy data, and the clean data given both."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrolatent.declaration import build
from pyrolatent.errors import InputError, at_least, at_least_one
from pyrolatent.inference.draws import MAX_ELEMENTS, decoded, repeated, resampled
from pyrolatent.inference.evidence.psis import khat, too_large
from pyrolatent.inference.gibbs import RHAT, metropolis_within_gibbs, split_rhat
from pyrolatent.inference.monte_carlo import log_mean
from pyrolatent.inference.refine import refinable, refine
from pyrolatent.inference.rules import require_latents
from pyrolatent.inference.weights import Inputs
from pyrolatent.models.arrays import as_inputs, as_numbers
from pyrolatent.models.components.corruption import Behind, Corruption
from pyrolatent.models.isolation import evaluating_alone
from pyrolatent.models.latent import LatentVariableModel

SWEEPS = 200
"""Default number of sweeps where the rate or scale is learned."""
ROUNDS = 5
"""Number of times that posteriors are refined before a rate or scale is learned by chains."""


@dataclass(frozen=True)
class Denoised:
    """Clean data given noisy ones.

    Attributes:
        mean: E[x | x̃], (batch, *event_shape): the mean over draws of z of E[x | z, x̃].
        draws: draws of x ~ p(x | x̃), one of each chain, (draws, batch, *event_shape).
        number: the rate or scale of the corruption: the declared one, or the mean of its draws if it was learned.
        number_sd: the standard deviation of its draws; None if it was declared.
        khat: k-hat of the weights that draws of z were resampled by, (batch,), above 0.7 where they are too few.
        rhat: split R-hat of log p(x, z) over chains, (batch,), above 1.1 where they have not mixed; None without.
    """

    mean: Tensor
    draws: Tensor
    number: float
    number_sd: float | None
    khat: Tensor
    rhat: Tensor | None


@torch.no_grad()
def denoise(
    model: LatentVariableModel,
    x: Any,
    corruption: Any,
    y: Any = None,
    *,
    draws: int = 10,
    particles: int = 100,
    refined: int = 200,
    sweeps: int | None = None,
) -> Denoised:
    """Draws clean data x ~ p(x | x̃) for noisy data x̃.

        p(x, z | x̃) = p(z | x̃) p(x | z, x̃),   p(z | x̃) ∝ p(z) ∫ p(x̃ | x) p(x | z) dx

    An encoder that was trained on clean data takes noise for data, and its reconstruction keeps it. Here the posterior
    of each datapoint is refined under p(x̃ | z), and z is resampled from its draws by weight, which is exact in the
    limit of many particles; a warning has the number of datapoints for which k-hat shows that there are too few. With
    `sweeps` the draws are the starts of chains (`inference.gibbs`), which are exact in the limit of many sweeps.

    Args:
        model: a fitted model.
        x: noisy data (batch, *event_shape).
        corruption: p(x̃ | x): flips, gaussian_noise, salt_and_pepper, masking or blur, by name, by name with its
            options as in `{"flips": {"rate": 0.1}}`, or an instance. A rate or scale that is not given is drawn from
            its posterior given all noisy data, under a flat prior, by chains.
        y: labels of conditional models.
        draws: number of draws, and of chains, for each datapoint.
        particles: number of latents that the draws are resampled from.
        refined: number of steps by which posteriors are refined; without, or where they cannot be refined, half of
            the particles come from the prior.
        sweeps: number of sweeps of the chains; None is 200 if a rate or scale is learned, and else 0.

    Raises:
        InputError: an argument does not fit the model, or the corruption cannot be removed from its likelihood.
    """
    at_least_one(draws=draws, particles=particles)
    at_least(0, refined=refined)
    require_latents(model)
    if not model.encodes_datapoints or model.global_sites or model.missingness is not None:
        raise InputError("denoise is for models whose latents all belong to a datapoint and none to what is missing")
    noise: Corruption = copy.deepcopy(build("corruption", corruption))  # it learns, and an instance is the caller's
    noise.number = as_numbers(model, noise.number, "corruption")
    count = (SWEEPS if noise.learned else 0) if sweeps is None else sweeps
    if (count and count < 4) or (noise.learned and not count):
        raise InputError(f"sweeps were {sweeps}; chains need at least 4, and learn a rate or scale that is not given")
    noisy, labels, mask = as_inputs(model, x, y)
    if mask is not None:
        raise InputError("x has missing values, which denoise does not take; impute fills them")
    at_once = max(1, MAX_ELEMENTS // (draws * model.event_shape.numel()))
    found: list[Denoised] = []
    unsure: list[Tensor] = []
    with evaluating_alone(model), pyro.validation_enabled(False):
        for start in range(0, len(noisy), at_once):
            rows = slice(start, start + at_once)
            inputs = noisy[rows], None if labels is None else labels[rows], None
            part, log_weights = _denoised(model, inputs, noise, draws, particles, refined, count)
            found.append(part)
            unsure.append(too_large(part.khat, log_mean(log_weights)[2].to(part.khat), len(log_weights)))
            if noise.learned:  # all data have one number, which the first of them determine
                noise.learned = False
                noise.number.fill_(found[0].number)
    khats = torch.cat([part.khat for part in found])
    rhats = [part.rhat for part in found if part.rhat is not None]
    rhat = torch.cat(rhats) if rhats else None
    few = int(torch.cat(unsure).sum()) if rhat is None else int((rhat > RHAT).sum())
    if few:
        said = (
            f"rest on few draws of z in {few} of {len(noisy)} datapoints, whose k-hat is too large; give more particles"
        )
        if rhat is not None:
            said = f"rest on chains that have not mixed in {few} of {len(noisy)} datapoints; give more sweeps"
        warnings.warn(f"denoised values {said}", stacklevel=2)
    return Denoised(
        torch.cat([part.mean for part in found]),
        torch.cat([part.draws for part in found], 1),
        found[0].number,
        found[0].number_sd,
        khats,
        rhat,
    )


def _denoised(
    model: LatentVariableModel, inputs: Inputs, noise: Corruption, draws: int, particles: int, refined: int, sweeps: int
) -> tuple[Denoised, Tensor]:
    """The result for a batch, and the log-weights that z was resampled by, (particles, batch)."""
    x, y, _ = inputs
    noisy, labels = repeated(x, draws), None if y is None else repeated(y, draws)
    for _ in range(ROUNDS if noise.learned else 1):
        latents, log_weights = _posterior(model, inputs, noise, draws, particles, refined)
        clean: Any = noise.given(decoded(model, latents, labels, [len(noisy)]), noisy)
        drawn = clean.sample()
        if noise.learned:
            noise.learn(clean, drawn, noisy)
    mean, numbers, rhat = clean.mean, [noise.number.clone()], None
    if sweeps:
        sums, numbers = torch.zeros_like(noisy), []

        def complete(likelihood: Any) -> Tensor:
            nonlocal clean
            clean = noise.given(likelihood, noisy)
            completed: Tensor = clean.sample()
            if noise.learned:
                noise.learn(clean, completed, noisy)
            return completed

        def on_kept(likelihood: Any, completed: Tensor) -> None:
            sums.add_(clean.mean)
            numbers.append(noise.number.clone())

        chains = metropolis_within_gibbs(model, labels, latents, complete, sweeps, on_kept)
        mean, drawn = sums / len(numbers), chains.x
        rhat = split_rhat(chains.kept.unflatten(1, (draws, len(x))))
    of_number = torch.stack(numbers).double()
    found = Denoised(
        mean.unflatten(0, (draws, len(x))).mean(0),
        drawn.unflatten(0, (draws, len(x))),
        of_number.mean().item(),
        of_number.std().item() if noise.learned else None,
        khat(log_weights),
        rhat,
    )
    return found, log_weights


def _posterior(
    model: LatentVariableModel, inputs: Inputs, noise: Corruption, draws: int, particles: int, refined: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Draws of z given noisy data by site, (draws * batch, ...), and the log-weights that they were resampled by."""
    with Behind(noise, model.observed_site):
        guide = refine(model, *inputs, steps=refined) if refined and refinable(model, inputs) else None
        latents, log_weights = resampled(model, inputs, particles, draws, guide)
    return {site: value.flatten(0, 1) for site, value in latents.items()}, log_weights
