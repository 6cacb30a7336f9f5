"""The rules of what goes with what, each broken once, and the page that lists them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrolatent import (
    VAE,
    Autoencoder,
    ConditionalVAE,
    DiscreteVAE,
    InputError,
    LinearGaussian,
    SemiSupervisedVAE,
    fit,
    load_data,
)
from pyrolatent.inference import rules

BITS = (np.random.default_rng(0).random((30, 4)) < 0.5).astype(np.float32)
LABELS = np.arange(30) % 3
GREY = np.random.default_rng(0).random((30, 4)).astype(np.float32)


def refused(model: Any, data: Any, words: list[str], **settings: Any) -> None:
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(InputError) as error:
        fit(model, data, progress=False, epochs=1, **settings)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("prior", "posterior", "words"),
    [
        ("gamma", "normal", ["positive numbers", "real numbers", "mapped"]),
        ("normal", "bernoulli", ["real numbers", "{0, 1}"]),
        ("beta", "normal", ["numbers in [0, 1]", "real numbers"]),
        ("categorical", "normal", ["one-hot vectors", "real numbers"]),
    ],
)
def test_supports_that_differ(prior: str, posterior: str, words: list[str]) -> None:
    refused(VAE((4,), latent_dim=2, prior=prior, posterior=posterior), load_data(BITS), words)


def test_data_outside_the_support() -> None:
    refused(VAE((4,), latent_dim=2), load_data(GREY), ["bernoulli", "binarize: dynamic, static", "relaxed"])
    relaxed = load_data(GREY, binarize="relaxed")
    refused(VAE((4,), latent_dim=2, likelihood="normal"), relaxed, ["relaxed", "bernoulli likelihood alone", "normal"])


def test_another_event_shape() -> None:
    refused(VAE((5,), latent_dim=2), load_data(BITS), ["(5,)", "(4,)"])


@pytest.mark.parametrize("objective", ["elbo", "analytic_elbo", "iwae", "TraceMeanField_ELBO"])
def test_a_posterior_without_pathwise_gradients(objective: str) -> None:
    model = VAE((4,), latent_dim=2, prior="bernoulli", posterior="bernoulli")
    refused(model, load_data(BITS), [objective, "z", "TraceGraph_ELBO"], objective=objective)
    refused(DiscreteVAE((4,), latent_dims=(2,)), load_data(BITS), [objective, "z1"], objective=objective)


def test_labels_of_another_number_or_unknown() -> None:
    data = load_data(BITS, labels=LABELS)
    refused(ConditionalVAE((4,), 5, latent_dim=2), data, ["5", "3"])
    few = load_data(BITS, labels=np.where(np.arange(30) < 6, LABELS, -1))
    refused(ConditionalVAE((4,), 3, latent_dim=2), few, ["unknown", "semi_supervised_vae"])


def test_a_training_term_under_an_objective_of_pyro() -> None:
    data = load_data(BITS, labels=LABELS)
    refused(SemiSupervisedVAE((4,), 3, latent_dim=2), data, ["SemiSupervisedVAE", "Trace_ELBO"], objective="Trace_ELBO")


def test_a_model_without_labels_on_labelled_data_is_given_none() -> None:
    """Most named data have labels; they then colour pictures and nothing else."""
    fit(VAE((4,), latent_dim=2), load_data(BITS, labels=LABELS), progress=False, epochs=1)
    with pytest.raises(InputError, match="unconditional"):
        VAE((4,), latent_dim=2).generate(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))


def test_density_and_squared_error() -> None:
    data = load_data(GREY)
    refused(Autoencoder((4,), latent_dim=2), data, ["Autoencoder", "no density", "squared_error"], objective="elbo")
    refused(LinearGaussian((4,), latent_dim=2), data, ["squared_error", "elbo"], objective="squared_error")
    refused(VAE((4,), latent_dim=2, likelihood="normal"), data, ["VAE", "em"], objective="em")


def test_the_page_is_the_table() -> None:
    page = Path(__file__).parent.parent / "docs" / "rules.md"
    assert rules.table() in page.read_text(encoding="utf-8")
