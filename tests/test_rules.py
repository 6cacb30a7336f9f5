"""The rules of what goes with what, each broken once, and the page that lists them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch

from pyrolatent import (
    VAE,
    Autoencoder,
    ConditionalVAE,
    DiscreteVAE,
    EnergyModel,
    InputError,
    LinearGaussian,
    RestrictedBoltzmannMachine,
    SemiSupervisedVAE,
    fit,
    load_data,
)
from pyrolatent.declaration import build, registered
from pyrolatent.inference import rules
from pyrolatent.inference.contrastive import EnergyObjective
from pyrolatent.inference.objectives import Objective

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


MASKED = {"mask": np.random.default_rng(0).random((30, 4)) < 0.8}
MACHINE: Any = {"hidden": 3}


class Loose(VAE):
    def generate(self, x: Any, y: Any = None, mask: Any = None) -> None:
        pyro.param("loose", torch.zeros(()))
        super().generate(x, y, mask)


class Unnamed(VAE):
    def generate(self, x: Any, y: Any = None, mask: Any = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("of_mine", self.likelihood(pyro.sample("z", self.prior())), obs=x)


BROKEN: dict[str, tuple[Any, Any, Any]] = {
    "closed_form or em for": (lambda: VAE((4,), latent_dim=2), {}, "em"),
    "closed_form on data with": (lambda: LinearGaussian((4,), latent_dim=2), MASKED, "closed_form"),
    "a bound on log p(x)": (lambda: Autoencoder((4,), latent_dim=2), {}, "elbo"),
    "squared_error for": (lambda: VAE((4,), latent_dim=2), {}, "squared_error"),
    "an objective of energies": (lambda: VAE((4,), latent_dim=2), {}, "denoising_score_matching"),
    "an energy over data outside": (lambda: RestrictedBoltzmannMachine((4,), **MACHINE), MASKED, "pcd"),
    "exact_likelihood where": (
        lambda: RestrictedBoltzmannMachine((24,), hidden=30), {"x": np.tile(BITS, (1, 6))}, "exact_likelihood"
    ),
    "score matching over": (lambda: RestrictedBoltzmannMachine((4,), **MACHINE), {}, "sliced_score_matching"),
    "an energy of rectifiers": (lambda: EnergyModel((4,), energy="mlp"), {"x": GREY}, "sliced_score_matching"),
    "a model of labels on": (lambda: ConditionalVAE((4,), 5, latent_dim=2), {"labels": LABELS}, "elbo"),
    "a model of classes": (
        lambda: RestrictedBoltzmannMachine((4,), 2, labels=True, **MACHINE), {"labels": GREY[:, :2]}, "pcd"
    ),
    "a model of x given y": (lambda: ConditionalVAE((4,), 3, latent_dim=2), {"labels": LABELS - (LABELS == 0)}, "elbo"),
    "data outside the likelihood": (lambda: VAE((4,), latent_dim=2), {"x": GREY}, "elbo"),
    "a model whose functions use pyro.param": (lambda: Loose((4,), latent_dim=2), {}, "elbo"),
    "a model without an observed site": (lambda: Unnamed((4,), latent_dim=2), {}, "elbo"),
    "a prior and a posterior over": (lambda: VAE((4,), latent_dim=2, prior="gamma"), {}, "elbo"),
    "an objective that needs pathwise": (lambda: DiscreteVAE((4,), latent_dims=(2,)), {}, "elbo"),
    "an objective that scores draws again": (lambda: VAE((4,), latent_dim=2, posterior="planar"), {}, "dreg"),
    "local with": (lambda: LinearGaussian((4,), latent_dim=2), {}, "local"),
    "a model with a training term": (
        lambda: SemiSupervisedVAE((4,), 3, latent_dim=2), {"labels": LABELS}, "Trace_ELBO"
    ),
}  # fmt: skip


@pytest.mark.parametrize("begins", BROKEN)
def test_each_rule_refuses_what_it_says(begins: str) -> None:
    """The first rule that is broken is the one that is meant."""
    model, options, objective = BROKEN[begins]
    case = rules.Case(
        model(), load_data(**({"source": options.get("x", BITS)} | {k: v for k, v in options.items() if k != "x"})),
        build("objective", objective),
    )  # fmt: skip
    assert first_broken(case).refuses.startswith(begins)


def first_broken(case: rules.Case) -> rules.Rule:
    for rule in rules.RULES:
        try:
            broken = rule.broken(case)
        except InputError:
            return rule
        if broken:
            return rule
    raise AssertionError("no rule is broken")


def test_every_rule_is_broken_above() -> None:
    assert all(sum(rule.refuses.startswith(begins) for begins in BROKEN) == 1 for rule in rules.RULES)


def test_what_is_declared_instead_names_every_objective_of_its_kind() -> None:
    """An objective of a kind that a rule speaks of stands in that rule, whichever are added."""
    kinds = {
        "an objective of energies": lambda target: issubclass(target, EnergyObjective),
        "an objective that needs pathwise": lambda target: issubclass(target, Objective) and not target.pathwise,
        "an objective that scores draws again": lambda target: issubclass(target, Objective) and target.scores_again,
    }
    for begins, belongs in kinds.items():
        (rule,) = (rule for rule in rules.RULES if rule.refuses.startswith(begins))
        names = [name for name, entry in registered("objective").items() if belongs(entry.target)]
        assert len(names) > 1
        assert all(name in rule.refuses + rule.instead for name in names)


def test_the_page_is_what_the_rules_write() -> None:
    page = Path(__file__).parent.parent / "docs" / "rules.md"
    assert rules.page() == page.read_text(encoding="utf-8")
