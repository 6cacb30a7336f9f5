"""Evidence by importance sampling, held against a linear-Gaussian model whose log p(x) and posterior are closed forms.

z ~ N(0, I)    x | z ~ N(W z + b, s^2 I)    log p(x) = log N(x; b, W W' + s^2 I)
z | x ~ N(S W' (x - b) / s^2, S)    S = (I + W' W / s^2)^-1
"""

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from benchmarks import coverage
from pyrolatent import LatentVariableModel
from pyrolatent.inference.evidence.importance import draws_at_once, draws_interval, score
from pyrolatent.inference.evidence.psis import khat
from pyrolatent.inference.weights import weigh

D, L, N = 4, 2, 6
NOISE = 0.7
GENERATOR = torch.Generator().manual_seed(7)
W = torch.randn(D, L, generator=GENERATOR, dtype=torch.float64)
B = torch.randn(D, generator=GENERATOR, dtype=torch.float64)
X = (
    B
    + torch.randn(N, L, generator=GENERATOR, dtype=torch.float64) @ W.T
    + NOISE * torch.randn(N, D, generator=GENERATOR, dtype=torch.float64)
)


class Prior(nn.Module):
    def forward(self, y: Tensor | None = None) -> Any:
        return dist.Normal(torch.zeros(L, dtype=torch.float64), 1.0).to_event(1)


class Likelihood(nn.Module):
    def forward(self, z: Tensor, y: Tensor | None = None) -> Any:
        return dist.Normal(z @ W.T + B, NOISE).to_event(1)


class Exact(nn.Module):
    """The exact posterior given the observed elements."""

    def __init__(self, observed: Tensor | None = None) -> None:
        super().__init__()
        self.observed = torch.ones(D, dtype=torch.bool) if observed is None else observed

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        seen = W[self.observed]
        covariance = torch.linalg.inv(torch.eye(L, dtype=torch.float64) + seen.T @ seen / NOISE**2)
        loc = (x - B)[..., self.observed] @ seen @ covariance / NOISE**2
        return dist.MultivariateNormal(loc, covariance)


class Wrong(nn.Module):
    """Independent, shifted, and wide enough that the weights have a finite variance."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        exact = Exact()(x)
        return dist.Normal(exact.mean + 0.2, 1.2 * exact.stddev).to_event(1)


def linear_gaussian(posterior: nn.Module) -> LatentVariableModel:
    return LatentVariableModel((D,), Prior(), Likelihood(), posterior)


def exact_evidence(x: Tensor, observed: Tensor | None = None) -> Tensor:
    """log p of the observed elements, by SciPy."""
    seen = torch.ones(D, dtype=torch.bool) if observed is None else observed
    covariance = (W @ W.T + NOISE**2 * torch.eye(D, dtype=torch.float64))[seen][:, seen]
    gaussian = scipy.stats.multivariate_normal(B[seen].numpy(), covariance.numpy())
    return torch.from_numpy(np.atleast_1d(gaussian.logpdf(x[:, seen].numpy())))


def repeated(model: LatentVariableModel, repeats: int, particles: int, max_elements: int = 2**21) -> dict[str, Tensor]:
    """Independent scores, (repeats, N) each, of the datapoints once for each repeat."""
    scores = score(model, X.repeat(repeats, 1), particles=particles, max_elements=repeats * max_elements)
    return {name: getattr(scores, name).unflatten(0, (repeats, N)) for name in ("elbo", "log_evidence", "mcse", "ess")}


# The exact posterior: every weight is p(x), so nothing is left to chance.


@pytest.mark.parametrize("max_elements", [1, 7 * X.numel(), 2**21], ids=["one by one", "sevens", "at once"])
def test_with_the_exact_posterior_there_is_no_error(max_elements: int) -> None:
    """100 draws in chunks of 1, of 7 with 2 left over, and at once: they are divided by the number really made."""
    model = linear_gaussian(Exact())
    truth = exact_evidence(X)
    weights = weigh(model.generate, model.infer, X, particles=50).log_weights()
    torch.testing.assert_close(weights, truth.expand(50, N), rtol=0, atol=1e-10)
    scores = score(model, X, particles=100, max_elements=max_elements)
    torch.testing.assert_close(scores.log_evidence, truth, rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.ess, torch.full((N,), 100.0).double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(scores.mcse, torch.zeros(N).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.means["z"], Exact()(X).mean)
    # No closed form joins a full Gaussian and a product, so both are estimates, and no KL belongs to a dimension.
    torch.testing.assert_close(scores.elbo, truth, rtol=0, atol=1e-9)
    assert scores.kl_dimensions == {}


def test_one_draw_has_no_error_bar() -> None:
    scores = score(linear_gaussian(Wrong()), X, particles=1)
    assert scores.mcse.isnan().all()
    torch.testing.assert_close(scores.ess, torch.ones(N).double())
    assert torch.isfinite(scores.log_evidence).all()


# Another posterior: the estimate has the error that it says it has.


def test_the_estimate_agrees_with_the_truth_within_its_error() -> None:
    scores = score(linear_gaussian(Wrong()), X, particles=20_000)
    error = scores.log_evidence - exact_evidence(X)
    assert (scores.mcse < 0.02).all()
    assert (scores.ess < 0.98 * 20_000).all()  # the proposal is not the posterior
    # Errors of independent draws in units of the stated ones are standard normal; their mean has the error 1/sqrt(N).
    standard = error / scores.mcse
    assert standard.abs().max() < 4
    assert standard.mean().abs() < 4 / math.sqrt(N)


@pytest.mark.parametrize("max_elements", [67 * X.numel(), 2**21], ids=["three chunks", "at once"])
def test_the_stated_error_is_the_spread_of_repetitions(max_elements: int) -> None:
    repeats, particles = 300, 200
    runs = repeated(linear_gaussian(Wrong()), repeats, particles=particles, max_elements=max_elements)
    # A standard deviation from R repeats has the relative error 1 / sqrt(2 R); 1.5 covers weights with heavier tails.
    ratio = runs["mcse"].mean(0) / runs["log_evidence"].std(0)
    assert (ratio - 1).abs().max() < 4 * 1.5 / math.sqrt(2 * repeats)
    # In chunks or at once, the mean is the truth less the bias of a logarithm, mcse^2 / 2 to first order.
    error = runs["log_evidence"].mean(0) - exact_evidence(X) + runs["mcse"].square().mean(0) / 2
    assert (error / (runs["log_evidence"].std(0) / math.sqrt(repeats))).abs().max() < 4


@pytest.mark.parametrize("max_elements", [1, 67 * X.numel(), 2**21], ids=["one by one", "three chunks", "at once"])
@pytest.mark.parametrize("particles", [20, 200])
def test_khat_is_that_of_all_weights_however_they_are_cut(max_elements: int, particles: int) -> None:
    """Exactly `khat` of the weights at the same random numbers; NaN of 20, which are too few to tell."""
    model = linear_gaussian(Wrong())
    at_once = draws_at_once(model, X, particles, max_elements)
    torch.manual_seed(0)
    parts = [
        weigh(model.generate, model.infer, X, particles=min(at_once, particles - start)).log_weights()
        for start in range(0, particles, at_once)
    ]
    torch.manual_seed(0)
    found = score(model, X, particles=particles, max_elements=max_elements).khat
    assert torch.equal(found.nan_to_num(7.0), khat(torch.cat(parts)).nan_to_num(7.0))
    assert found.isnan().all() == (particles == 20)


def test_the_interval_of_the_draws_and_the_bias_are_their_formulas() -> None:
    evidence, mcse = torch.tensor([[-3.0, -5.0], [1.0, 2.0]]), torch.tensor([[0.3, 0.4], [0.0, 0.2]])
    error, bias, low, high = draws_interval(evidence.double(), mcse.double())
    torch.testing.assert_close(error, torch.tensor([0.25, 0.1]).double())
    torch.testing.assert_close(bias, torch.tensor([0.0625, 0.01]).double())
    torch.testing.assert_close(low, torch.tensor([-4.0 - 0.49, 1.5 - 0.196]).double())
    torch.testing.assert_close(high, torch.tensor([-4.0 + 0.0625 + 0.49, 1.5 + 0.01 + 0.196]).double())


def test_the_stated_bias_is_what_log_evidence_lacks() -> None:
    """Ten draws, so that it is not small: the mean over repetitions of truth less estimate, and of b."""
    model, truth = linear_gaussian(Wrong()), exact_evidence(X).mean()
    runs = repeated(model, 3000, particles=10)
    _, bias, _, _ = draws_interval(runs["log_evidence"], runs["mcse"])
    lacking = truth - runs["log_evidence"].mean(-1)
    difference = (lacking - bias).mean()
    # Of the second order remains the square of the bias of a datapoint, times a number of order one.
    assert difference.abs() < 4 * (lacking - bias).std() / math.sqrt(3000) + 2 * bias.mean() ** 2
    assert lacking.mean() > 10 * lacking.std() / math.sqrt(3000)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(4), ids=["normal", "correlations", "student", "logistic"])
def test_the_interval_covers_at_least_nominally_where_khat_is_small(case: int) -> None:
    """The mildest guide of each kind, and a bad one, whose k-hat says so where the interval does not cover."""
    made, scales = list(coverage.CASES.values())[case]
    repetitions = 400
    found = coverage.coverage(made(scales[0]), datapoints=50, particles=200, repetitions=repetitions)
    assert found["khat_share"] < 0.05
    assert found["coverage"] > 0.95 - 4 * math.sqrt(0.95 * 0.05 / repetitions)
    if case in (0, 3):
        bad = coverage.coverage(made(scales[-1]), datapoints=50, particles=200, repetitions=100)
        assert bad["khat_share"] > 0.5
        assert bad["without_bias"] <= bad["coverage"] < 0.8


def test_the_effective_sample_size_is_the_one_of_the_weights() -> None:
    """Kish: (sum w)^2 / sum w^2, and its limit K / E_q[(w / p(x))^2], here by a million draws of NumPy's."""
    runs = repeated(linear_gaussian(Wrong()), 100, particles=1000)
    random, exact, q = np.random.default_rng(0), Exact()(X[:1]), Wrong()(X[:1])
    loc, scale = q.base_dist.loc[0].numpy(), q.base_dist.scale[0].numpy()
    draws = loc + scale * random.normal(size=(1_000_000, L))
    posterior = scipy.stats.multivariate_normal(exact.mean[0].numpy(), exact.covariance_matrix[0].numpy())
    ratio = np.exp(posterior.logpdf(draws) - scipy.stats.norm(loc, scale).logpdf(draws).sum(1))
    expected = 1000 / np.mean(ratio**2)
    given = runs["ess"][:, 0]
    # 100 repeats, and the bias of a ratio of sums of 1000 draws, below 1%.
    assert abs(given.mean().item() - expected) < 4 * given.std().item() / 10 + 0.01 * expected


def test_elbo_is_the_evidence_less_the_kl_to_the_posterior() -> None:
    model, repeats = linear_gaussian(Wrong()), 60
    runs = repeated(model, repeats, particles=400)
    q, exact = Wrong()(X), Exact()(X)
    full = torch.distributions.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    truth = exact_evidence(X) - kl_divergence(
        full, torch.distributions.MultivariateNormal(exact.mean, exact.covariance_matrix)
    )
    error = runs["elbo"].mean(0) - truth
    assert (error / (runs["elbo"].std(0) / math.sqrt(repeats))).abs().max() < 4
    assert (truth < exact_evidence(X) - 0.01).all()


@pytest.mark.parametrize("max_elements", [1, 7 * X.numel(), 2**21], ids=["one by one", "sevens", "at once"])
def test_chunks_do_not_change_what_is_no_estimate(max_elements: int) -> None:
    """The KL to the prior, its dimensions and the posterior's mean are closed forms: the same however it is cut."""
    scores = score(linear_gaussian(Wrong()), X, particles=100, max_elements=max_elements)
    q = Wrong()(X)
    each = kl_divergence(q.base_dist, dist.Normal(torch.zeros(N, L).double(), 1.0))
    torch.testing.assert_close(scores.kl_dimensions["z"], each, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scores.kl, each.sum(-1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scores.means["z"], q.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scores.elbo, scores.reconstruction - scores.kl)


def test_extreme_weights_stay_in_log_space() -> None:
    """Data far out: p(x) itself is below the smallest float64, log p(x) is not."""
    far = X + 200
    truth = exact_evidence(far)
    assert (truth < -800).all()
    scores = score(linear_gaussian(Exact()), far, particles=50, max_elements=7 * X.numel())
    torch.testing.assert_close(scores.log_evidence, truth, rtol=1e-9, atol=0)
    torch.testing.assert_close(scores.ess, torch.full((N,), 50.0).double(), rtol=1e-6, atol=0)


# Masks: log p of what is observed is the marginal Gaussian's.


@pytest.mark.parametrize("observed", [[True, True, False, True], [False, True, False, False], [True] * 4, [False] * 4])
def test_masks_give_the_evidence_of_the_observed_part(observed: list[bool]) -> None:
    seen = torch.tensor(observed)
    mask = seen.expand(N, D)
    truth = exact_evidence(X, seen) if seen.any() else torch.zeros(N).double()
    hidden = torch.where(mask, X, torch.nan)
    exact = score(linear_gaussian(Exact(seen)), hidden, None, mask, particles=20)
    torch.testing.assert_close(exact.log_evidence, truth, rtol=0, atol=1e-9)
    # The posterior of the fully observed model sees 0 where nothing is: a bad proposal, and the same truth.
    wide = Exact(torch.zeros(D, dtype=torch.bool))
    scores = score(linear_gaussian(wide), hidden, None, mask, particles=50_000)
    assert ((scores.log_evidence - truth).abs() < 5 * scores.mcse + 1e-9).all()


def test_each_datapoint_has_a_mask_of_its_own() -> None:
    """The prior as proposal; the truth is the marginal Gaussian's, datapoint by datapoint."""
    mask = torch.rand(N, D) < 0.6
    truth = torch.cat(
        [exact_evidence(x[None], seen) if seen.any() else torch.zeros(1) for x, seen in zip(X, mask, strict=True)]
    )
    scores = score(linear_gaussian(Exact(torch.zeros(D, dtype=torch.bool))), X, None, mask, particles=50_000)
    assert ((scores.log_evidence - truth).abs() < 5 * scores.mcse + 1e-9).all()
    assert (scores.mcse < 0.1).all()
