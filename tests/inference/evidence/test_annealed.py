"""Annealed importance sampling against closed forms, quadrature and importance sampling.

Linear-Gaussian models have log p(x) in closed form, one latent of any support is integrated by the trapezoidal rule,
and for the rest importance sampling by `score` is the independent estimate.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

from pyrolatent import (
    VAE,
    Data,
    DiscreteVAE,
    GenerativeNetwork,
    HierarchicalVAE,
    InputError,
    LatentVariableModel,
    LinearGaussian,
    SemiSupervisedVAE,
    annealed_evidence,
    bidirectional_evidence,
    load_data,
)
from pyrolatent.inference.draws import simulate
from pyrolatent.inference.evidence.annealed import _betas, _Target
from pyrolatent.inference.evidence.importance import score
from pyrolatent.inference.monte_carlo import log_mean

D = 6
SMALL: dict[str, Any] = {"encoder": {"mlp": {"hidden": [8]}}, "decoder": {"mlp": {"hidden": [8]}}}


def linear(noise: float = 0.7, **options: Any) -> LinearGaussian:
    return LinearGaussian((D,), latent_dim=2, noise=noise, **options).double()


def anneal(
    model: LatentVariableModel, x: Tensor, mask: Tensor | None = None, chains: int = 100, steps: int = 30
) -> Any:
    """log p(x), its standard error and the effective sample size of each datapoint."""
    with pyro.validation_enabled(False):  # as the public functions do: a trajectory may leave the numbers
        return log_mean(_Target(model, (x, None, mask), chains).annealed(_betas(steps, "sigmoid"), 4)[0])


def agree(found: Tensor, truth: Tensor, error: Tensor) -> bool:
    """Whether the mean over independent datapoints is within four standard errors, to which the bias of a logarithm,
    half its squared error, is added."""
    allowed = 4 * error.square().sum().sqrt() / len(error) + error.square().mean()
    return bool((found - truth).mean().abs() < allowed)


@pytest.mark.parametrize(("precision", "with_mask"), [(1.0, False), (0.3, True)])
def test_a_linear_gaussian_model_s_evidence(precision: float, with_mask: bool) -> None:
    model = linear(precision=precision)
    x, _ = simulate(model, 40)
    mask = torch.rand(40, D) < 0.6 if with_mask else None
    found, error, ess = anneal(model, x, mask)
    assert agree(found, model.log_evidence(x, mask).detach(), error)
    assert ess.mean() > 10
    assert error.mean() < 0.2


@pytest.mark.parametrize("prior", ["exponential", "beta", {"mixture": {"components": 3}}])
def test_one_latent_of_any_support_against_quadrature(prior: Any) -> None:
    """The Jacobian of the unconstrained coordinate is what makes this right; the rule's own error is below 1e-5."""
    model = GenerativeNetwork((D,), latent_dim=1, prior=prior, decoder={"mlp": {"hidden": [8]}}).double()
    x = torch.bernoulli(torch.full((30, D), 0.5)).double()
    low, high = {"beta": (0.0, 1.0), "exponential": (0.0, 40.0)}.get(
        prior if isinstance(prior, str) else "", (-40.0, 40.0)
    )
    z = torch.linspace(low, high, 20_001, dtype=torch.float64).reshape(-1, 1, 1)
    with torch.no_grad():
        log_joint = model.prior().log_prob(z) + model.likelihood(z).log_prob(x)
    truth = torch.trapezoid(log_joint.exp(), z[:, 0, 0], dim=0).log()
    found, error, _ = anneal(model, x)
    assert agree(found, truth, error)


OTHERS: dict[str, Callable[[], LatentVariableModel]] = {
    "ladder": lambda: HierarchicalVAE((D,), latent_dims=(3, 2), **SMALL),
    "semi-supervised": lambda: SemiSupervisedVAE((D,), 3, latent_dim=2, **SMALL),
    "flow prior": lambda: VAE((D,), latent_dim=2, prior={"coupling": {"hidden": 8}}, **SMALL),
    "vamp": lambda: VAE((D,), latent_dim=2, prior={"vamp": {"components": 3}}, **SMALL),
}


@pytest.mark.parametrize(
    "name", ["semi-supervised", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS if name[0] != "s")]
)
def test_other_models_against_importance_sampling(name: str) -> None:
    model = OTHERS[name]()
    x = torch.bernoulli(torch.full((15, D), 0.5))
    found, error, _ = anneal(model, x)
    sampled = score(model, x, particles=2000)
    assert agree(found, sampled.log_evidence, torch.hypot(error, sampled.mcse))


def test_it_asks_nothing_of_the_encoder() -> None:
    """Whatever the encoder, the same draws give the same weights."""
    model = linear(posterior="normal")
    x, _ = simulate(model, 5)
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        weights.append(anneal(model, x, chains=3, steps=5)[0])
        torch.nn.init.normal_(next(model.posterior.parameters()))
    assert torch.equal(*weights)


def test_step_sizes_reach_the_acceptance_that_is_asked_for() -> None:
    model = linear()
    x, _ = simulate(model, 20)
    _, acceptance = _Target(model, (x, None, None), 20).annealed(_betas(60, "linear"), 4)
    assert (acceptance - 0.65).abs().max() < 0.1


# Brackets.


@pytest.mark.slow
def test_a_bracket_holds_the_truth_and_narrows() -> None:
    """In expectation lower <= log p(x) <= upper; with five steps both lie away from it by more than three errors."""
    model = linear()
    widths = []
    for steps in (5, 60):
        found = bidirectional_evidence(model, size=60, chains=10, steps=steps, leapfrog=5)
        assert found.exact is not None
        assert found.width_se is not None
        assert found.lower == pytest.approx(found.each["lower"].mean().item())
        assert found.upper == pytest.approx(found.each["upper"].mean().item())
        slack = 3 * found.width_se
        assert found.lower < found.exact + slack
        assert found.upper > found.exact - slack
        widths.append(found.width)
    assert widths[0] > 0.3
    assert abs(widths[1]) < widths[0] / 3


@pytest.mark.parametrize("backwards", [False, True])
def test_weights_have_the_mean_that_theory_gives_them(backwards: bool) -> None:
    """E[w] = p(x) of chains from the prior, E[1 / w] = 1 / p(x) from the exact posterior, whatever the moves."""
    model = linear(noise=1.5)
    x, latents = simulate(model, 3000)
    betas, sign = _betas(10, "sigmoid"), -1 if backwards else 1
    start = latents if backwards else None
    log_weights, _ = _Target(model, (x, None, None), 1).annealed(betas[::sign], 5, start=start)
    ratios = (log_weights[0] - sign * model.log_evidence(x).detach()).exp()
    error = ratios.std() / math.sqrt(len(ratios))
    assert error < 0.05
    assert ratios.log().std() > 0.1
    assert abs(ratios.mean() - 1) < 4 * error


# On data.


@pytest.fixture
def reals() -> Data:
    return load_data(np.random.default_rng(0).normal(size=(200, D)).astype(np.float32))


@pytest.mark.slow
def test_on_a_split(reals: Data) -> None:
    model = LinearGaussian((D,), latent_dim=2, noise=0.7)
    done: list[int] = []
    found = annealed_evidence(model, reals, split="train", size=30, chains=20, steps=15, on_batch=done.append)
    assert (found.datapoints, found.split, found.measure, done) == (
        30,
        "train",
        "density (in the units of the data)",
        [30],
    )
    assert found.log_evidence_mcse is not None
    assert found.exact is not None
    assert abs(found.log_evidence - found.exact) < 4 * found.log_evidence_mcse + found.log_evidence_mcse**2 * 30
    truth = model.log_evidence(reals.train.batch(slice(0, 30)).x)
    assert found.exact == pytest.approx(truth.mean().item(), rel=1e-5)
    assert found.log_evidence_se == pytest.approx(found.each["log_evidence"].std().item() / math.sqrt(30))
    assert 1 <= found.ess <= 20
    again = annealed_evidence(model, reals, split="train", size=30, chains=20, steps=15)
    assert again == found


def test_what_cannot_be_annealed_is_refused(reals: Data, binary_data: Data) -> None:
    grey = load_data(np.random.default_rng(0).random((50, D)).astype(np.float32), binarize="relaxed")
    model = VAE((D,), latent_dim=2, **SMALL)
    for refused, data, message in (
        (DiscreteVAE((D,), latent_dims=(3,)), binary_data, "z1 of DiscreteVAE is discrete and not enumerated"),
        (DiscreteVAE((D,), latent_dims=(3,), estimator="enumerate"), binary_data, "is summed out"),
        (model, grey, "a cross-entropy on grey values is no likelihood"),
        (model, reals, "not all 0 or 1|lie outside"),
    ):
        with pytest.raises(InputError, match=message):
            annealed_evidence(refused, data)
    for options, message in (
        ({"chains": 0}, "chains was 0"),
        ({"split": "tset"}, "no split 'tset'"),
        ({"schedule": "cubic"}, "no schedule 'cubic'; valid: sigmoid, linear"),
    ):
        with pytest.raises(InputError, match=message):
            annealed_evidence(model, binary_data, **options)
