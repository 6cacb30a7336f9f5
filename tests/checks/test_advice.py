"""Advice fits the cause: what is to be changed is what is wrong, and can be changed in this model."""

from typing import Any

import numpy as np
import pytest
import torch

from pyrolatent import VAE, DiscreteVAE, LinearGaussian, load_data
from pyrolatent.checks import HeldOutCopies, PredictiveIntervals, Subject

FLAT: dict[str, Any] = {"encoder": {"mlp": {"hidden": [4]}}, "decoder": {"mlp": {"hidden": [4]}}}


@pytest.mark.parametrize(
    ("model", "posterior", "prior"),
    [
        (VAE((3,), latent_dim=2, **FLAT), "posterior: multivariate_normal", "prior: mixture"),
        (VAE((3,), latent_dim=2, prior="gamma", posterior="gamma", **FLAT), "another posterior", "another prior"),
        (DiscreteVAE((3,), latent_dims=(2,), **FLAT), "a wider encoder or other latents", "a model with another"),
        (LinearGaussian((3,), latent_dim=2), "posterior: multivariate_normal", "a model with another prior"),
    ],
    ids=["real", "positive", "discrete", "without a declared prior"],
)
def test_what_is_advised_can_be_declared(model: Any, posterior: str, prior: str) -> None:
    subject = Subject(model, load_data(np.random.default_rng(0).integers(2, size=(300, 3))))
    assert subject.richer_posterior.startswith(posterior)
    assert subject.richer_prior.startswith(prior)


@pytest.mark.parametrize("values", ["real", "bits"])
def test_copies_that_were_made_are_told_from_rows_that_repeat(values: str) -> None:
    """Rows of real numbers do not repeat by chance; most rows of eight equal bits do, and of fair coins do not."""
    generator = np.random.default_rng(0)
    if values == "real":
        x = generator.normal(size=(400, 5))
        data, said = load_data(np.concatenate([x, x[:200]])), "the data had duplicates"
    else:
        x = (generator.random((600, 8)) < 0.05) ^ generator.integers(2, size=(600, 1))
        data, said = load_data(x.astype(np.uint8)), "rows repeat by chance"
    likelihood = "normal" if values == "real" else "bernoulli"
    verdict = HeldOutCopies()(VAE(data.event_shape, latent_dim=2, likelihood=likelihood, start_at_data=False), data)
    assert not verdict.passed
    assert said in verdict.advice


@pytest.mark.parametrize(
    ("spread", "shift", "said"),
    [(2.0, 0.0, "less spread than there is"), (0.5, 0.0, "more spread than there is"), (1.0, 0.5, "are off")],
)
def test_intervals_say_which_way_they_are_wrong(spread: float, shift: float, said: str) -> None:
    """A linear-Gaussian model whose data have another noise, or another mean in one entry."""
    torch.manual_seed(0)
    model = LinearGaussian((4,), latent_dim=1, noise=0.5)
    with torch.no_grad():
        mean = torch.randn(600, 1) @ model.likelihood.weight.T
    x = mean + 0.5 * spread * torch.randn(600, 4) + shift * torch.eye(4)[0]
    verdict = PredictiveIntervals()(model, load_data(x.numpy(), test=0.5))
    assert not verdict.passed
    assert said in verdict.advice
