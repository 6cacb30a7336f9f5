"""The rules of what goes with what, each broken once, and the page that lists them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

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
    from_pyro,
    load_data,
)
from pyrolatent.declaration import build
from pyrolatent.inference import rules
from pyrolatent.inference.objectives.base import as_objective
from pyrolatent.models.model import Capability
from pyrolatent.models.programs.pair import PyroPair

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
    refused(
        Autoencoder((4,), latent_dim=2),
        data,
        ["Autoencoder", "no density of x", "squared_error"],
        objective="elbo",
    )
    refused(LinearGaussian((4,), latent_dim=2), data, ["squared_error", "elbo"], objective="squared_error")
    refused(VAE((4,), latent_dim=2, likelihood="normal"), data, ["VAE", "em"], objective="em")


MASKED = {"mask": np.random.default_rng(0).random((30, 4)) < 0.8}
MACHINE: Any = {"hidden": 3}
WORDS = np.array(["x", "y", "z"])[np.arange(30) % 3]


class Loose(VAE):
    def generate(self, x: Any, y: Any = None, mask: Any = None) -> None:
        pyro.param("loose", torch.zeros(()))
        super().generate(x, y, mask)


class Unnamed(VAE):
    def generate(self, x: Any, y: Any = None, mask: Any = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("of_mine", self.likelihood(pyro.sample("z", self.prior())), obs=x)


BROKEN: dict[str, tuple[Any, Any, Any]] = {
    "closed_form on data with": (lambda: LinearGaussian((4,), latent_dim=2), MASKED, "closed_form"),
    "an objective that needs what": (lambda: VAE((4,), latent_dim=2), {}, "em"),
    "an energy over data outside": (lambda: RestrictedBoltzmannMachine((4,), **MACHINE), MASKED, "pcd"),
    "an energy of rectifiers": (lambda: EnergyModel((4,), energy="mlp"), {"x": GREY}, "sliced_score_matching"),
    "a model of labels on": (lambda: ConditionalVAE((4,), 5, latent_dim=2), {"labels": LABELS}, "elbo"),
    "a model of classes": (
        lambda: RestrictedBoltzmannMachine((4,), 2, labels=True, **MACHINE), {"labels": GREY[:, :2]}, "pcd"
    ),
    "a model of x given y": (
        lambda: ConditionalVAE((4,), 3, latent_dim=2), {"labels": LABELS - (LABELS == 0), "classes": 3}, "elbo"
    ),
    "data outside the likelihood": (lambda: VAE((4,), latent_dim=2), {"x": GREY}, "elbo"),
    "missingness without missing": (
        lambda: VAE((4,), latent_dim=2, likelihood="normal", missingness="self_masking"), {"x": GREY}, "elbo"
    ),
    "columns of words under": (
        lambda: VAE((2,), latent_dim=2, likelihood="normal"), {"x": pd.DataFrame({"a": LABELS, "b": WORDS})}, "elbo"
    ),
    "a model whose functions use pyro.param": (lambda: Loose((4,), latent_dim=2), {}, "elbo"),
    "a model without an observed site": (lambda: Unnamed((4,), latent_dim=2), {}, "elbo"),
    "a prior and a posterior over": (lambda: VAE((4,), latent_dim=2, prior="gamma"), {}, "elbo"),
    "an objective that needs gradients": (lambda: DiscreteVAE((4,), latent_dims=(2,)), {}, "elbo"),
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
        as_objective(build("objective", objective)),
    )  # fmt: skip
    assert first_broken(case).refuses.startswith(begins)


def first_broken(case: rules.Case) -> rules.Rule:
    for rule in rules.RULES:
        if rule.of is not None and rule.of not in case.model.offers:
            continue
        try:
            broken = rule.broken(case)
        except InputError:
            return rule
        if broken:
            return rule
    raise AssertionError("no rule is broken")


def test_every_rule_is_broken_above() -> None:
    assert all(sum(rule.refuses.startswith(begins) for begins in BROKEN) == 1 for rule in rules.RULES)


def with_a_global() -> PyroPair:
    """A Pyro pair with a latent outside the plate over datapoints."""
    pyro.clear_param_store()

    def model(x: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=u.expand(4)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("u", dist.Normal(pyro.param("loc", x.new_zeros(())), 1.0))

    pair = from_pyro(model, guide)
    pair.meet(torch.as_tensor(BITS[:3]))
    return pair


LACKING: dict[Capability, tuple[Any, str]] = {
    Capability.DENSITY: (lambda: Autoencoder((4,), latent_dim=2), "elbo"),
    Capability.POSTERIOR: (lambda: RestrictedBoltzmannMachine((4,), **MACHINE), "elbo"),
    Capability.CODES: (lambda: VAE((4,), latent_dim=2), "squared_error"),
    Capability.ENERGY: (lambda: VAE((4,), latent_dim=2), "denoising_score_matching"),
    Capability.LOG_Z: (lambda: RestrictedBoltzmannMachine((24,), hidden=30), "exact_likelihood"),
    Capability.GRADIENT_IN_X: (lambda: RestrictedBoltzmannMachine((4,), **MACHINE), "sliced_score_matching"),
    Capability.SOLUTION: (lambda: VAE((4,), latent_dim=2), "closed_form"),
    Capability.EM: (lambda: VAE((4,), latent_dim=2), "em"),
    Capability.PATHWISE_DRAWS: (lambda: DiscreteVAE((4,), latent_dims=(2,)), "elbo"),
    Capability.ANY_DRAW_SCORED: (lambda: VAE((4,), latent_dim=2, posterior="planar"), "dreg"),
    Capability.OWN_LATENTS: (with_a_global, "vimco"),
}


@pytest.mark.parametrize("capability", LACKING)
def test_what_a_model_does_not_offer_is_named_with_what_it_can_be_trained_by(capability: Capability) -> None:
    made, objective = LACKING[capability]
    model = made()
    data = load_data(np.tile(BITS, (1, model.event_shape.numel() // 4)))
    refused(model, data, [type(model).__name__, f"no {capability}", objective], objective=objective)
    with pytest.raises(InputError) as error:
        fit(model, data, objective=objective, progress=False)
    advised = str(error.value).partition("declare objective: ")[2].partition(", or ")[0].removesuffix(", ...")
    for name in advised.split(", "):
        fit(made(), data, objective=name, progress=False, **({} if name == "closed_form" else {"epochs": 1}))


def test_every_need_of_an_objective_is_lacked_above() -> None:
    assert {need for needs in rules.needs_by_objective().values() for need in needs} == {*LACKING}


def test_the_page_is_what_the_rules_write() -> None:
    page = Path(__file__).parents[2] / "docs" / "rules.md"
    assert rules.page() == page.read_text(encoding="utf-8")
