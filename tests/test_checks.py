"""Diagnostics as functions of tensors, against closed forms, other implementations and what theory says of them."""

import math
from typing import Any

import arviz
import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pyrolatent import VAE, DiscreteVAE, HierarchicalVAE, LinearGaussian, SemiSupervisedVAE, checks, sample
from pyrolatent.inference.evidence import score
from pyrolatent.inference.weights import weigh

D, L, NOISE = 6, 2, 0.7
SMALL: dict[str, Any] = {"encoder": {"mlp": {"hidden": [8]}}, "decoder": {"mlp": {"hidden": [8]}}}


def linear(**options: Any) -> LinearGaussian:
    return LinearGaussian((D,), latent_dim=L, noise=NOISE, **options).double()


# k-hat.


@pytest.mark.parametrize("draws", [100, 1000, 4000])
def test_khat_is_arviz_s(draws: int) -> None:
    """The same algorithm in another implementation, to float64 rounding."""
    log_weights = torch.distributions.StudentT(3.0).sample((draws, 7)).double() * torch.linspace(0.1, 3, 7)
    _, expected = arviz.psislw(log_weights.T.numpy())
    np.testing.assert_allclose(checks.khat(log_weights).numpy(), np.asarray(expected), rtol=1e-6)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_khat_is_the_shape_of_pareto_weights(k: float) -> None:
    """Pareto weights u^-k have the shape k; the estimate of 190 tail values has a standard error near (1 + k) / 14,
    and the prior pulls it towards 1/2 by one part in 20."""
    log_weights = -k * torch.rand(4000, 50, dtype=torch.float64).log()
    found = checks.khat(log_weights)
    expected = (190 * k + 10 * 0.5) / 200
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(50) + 0.03
    assert found.std() == pytest.approx((1 + k) / math.sqrt(190), rel=0.4)


def test_equal_weights_have_no_tail() -> None:
    """The exact posterior's are equal up to rounding, in float32 as in float64, at any size."""
    model = linear()
    x = sample(model, 5)
    for each in (model, model.float()):
        weights = weigh(each.generate, each.infer, x.to(each.likelihood.bias), particles=500).log_weights()
        assert (checks.khat(weights.detach()) == -math.inf).all()
    assert (checks.khat(torch.full((500, 3), -1e5)) == -math.inf).all()
    assert torch.isnan(checks.khat(torch.randn(10, 3))).all()
    assert checks.khat_threshold(100) == pytest.approx(0.5)
    assert checks.khat_threshold(10_000) == pytest.approx(0.7)


# Ranks and bands.


def test_fractional_ranks_of_one_more_draw_are_uniform() -> None:
    """Also where nearly all values tie."""
    for values in (torch.randn(31, 2000), torch.bernoulli(torch.full((31, 2000), 0.1))):
        ranks = checks.fractional_ranks(values[0], values[1:])
        assert scipy.stats.kstest(ranks.numpy(), "uniform").pvalue > 1e-3
    ranks = checks.fractional_ranks(torch.tensor([5.0, -5.0]), torch.zeros(9, 2))
    assert (ranks * 10).floor().tolist() == [9.0, 0.0]


def test_uniformity_holds_its_level_and_sees_what_is_not_uniform() -> None:
    """Of 400 sets of uniform values a share of 10 % +- 1.5 % has p below 10 %: the binomial's four errors are 6 %."""
    random = np.random.default_rng(0)
    p = [checks.uniformity(torch.from_numpy(random.random(200))) for _ in range(400)]
    for level in (0.1, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 400))
    for wrong in (random.beta(1.5, 1.5, 500), random.beta(1, 1.4, 500), 0.5 * random.random(500)):
        assert checks.uniformity(torch.from_numpy(wrong)) < 0.01
    # Half of (0, 1) alone: the chance that 500 values all lie there is 2^-500, far below what could be simulated.
    assert checks.uniformity(torch.from_numpy(0.5 * random.random(500))) < 1e-100


def test_the_band_holds_uniform_ecdfs_as_often_as_it_says() -> None:
    points, lower, upper = checks.ecdf_band(100, 0.9)
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(1000):
        share = np.searchsorted(np.sort(random.random(100)), points, side="right") / 100
        inside += bool(((lower <= share) & (share <= upper)).all())
    # Counts are whole numbers, so that the band holds a little more than it must.
    assert inside / 1000 == pytest.approx(0.9, abs=4 * math.sqrt(0.9 * 0.1 / 1000) + 0.02)


def test_coverage_of_a_normal_that_is_too_narrow() -> None:
    """With q = N(0, s^2) of z ~ N(0, 1) the region of credibility c holds 2 Phi(s Phi^-1((1 + c) / 2)) - 1."""
    z, n = torch.randn(4000, dtype=torch.float64), 4000
    for scale in (0.5, 1.0, 2.0):
        q = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), scale)
        ranks = checks.fractional_ranks(q.log_prob(z), q.log_prob(q.sample((999, n))))
        levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        expected = 2 * scipy.stats.norm.cdf(scale * scipy.stats.norm.ppf((1 + levels.numpy()) / 2)) - 1
        np.testing.assert_allclose(checks.coverage(ranks, levels).numpy(), expected, atol=4 * 0.5 / math.sqrt(n) + 1e-3)


def test_tarp_sees_a_prior_as_posterior_only_by_references_that_depend_on_x() -> None:
    """z ~ N(0, I), x = z + e: q = p(z) passes with references of their own and fails with those from x."""
    z, other = torch.randn(2, 1000, 2)
    x, draws = z + 0.3 * torch.randn(1000, 2), torch.randn(100, 1000, 2)
    assert checks.uniformity(checks.tarp(z, draws, torch.randn(1000, 2))) > 0.01
    references = checks.references_from_data(other + 0.3 * torch.randn(1000, 2), other, x)
    assert checks.uniformity(checks.tarp(z, draws, references)) < 0.01
    exact = x / 1.09 + math.sqrt(0.09 / 1.09) * torch.randn(100, 1000, 2)
    assert checks.uniformity(checks.tarp(z, exact, references)) > 0.01


def test_references_from_data_are_the_regression() -> None:
    """Of more datapoints than dimensions the ridge nearly vanishes beside the Gram matrix."""
    x = torch.randn(3000, 3, dtype=torch.float64)
    weight = torch.randn(3, 2, dtype=torch.float64)
    found = checks.references_from_data(x, x @ weight + 1, x[:50])
    torch.testing.assert_close(found, x[:50] @ weight + 1, rtol=0, atol=5e-3)


# The aggregated posterior.


def test_aggregated_posterior_of_the_exact_one_is_the_prior() -> None:
    """On the model's own data q(z) = p(z) and I(x; z) = log det(I + W'W / s^2) / 2.

    The mean over 3,000 datapoints stands for the integral over x; its error is that of the mean.
    """
    model = linear()
    with torch.no_grad():
        model.likelihood.weight.mul_(0.5)
        x = sample(model, 3000)
        own = {"z": model.exact_posterior(x).sample()}
        matrix = checks.log_posterior_of(model, (x, None, None), own)
        information = checks.mutual_information(matrix)
        gram = model.likelihood.weight.T @ model.likelihood.weight / NOISE**2
        truth = 0.5 * torch.logdet(torch.eye(L, dtype=torch.float64) + gram)
        kl = checks.marginal_kl(matrix, model.prior().log_prob(own["z"]))
    # A mixture of n narrow components is closer to its own draws than the integral, by about its variance / n.
    assert abs(information.mean() - truth) < 4 * information.std() / math.sqrt(3000) + 0.02
    assert abs(kl.mean()) < 4 * kl.std() / math.sqrt(3000) + 0.02


def test_log_posterior_of_scores_every_pair() -> None:
    for model in (VAE((D,), latent_dim=2, **SMALL), HierarchicalVAE((D,), latent_dims=(3, 2), **SMALL)):
        x = torch.bernoulli(torch.full((5, D), 0.5))
        own = {site: value[0] for site, value in checks.draw(model, (x, None, None), 1).latents.items()}
        with torch.no_grad():
            found = checks.log_posterior_of(model, (x, None, None), own, floats=1)
            for j in range(5):
                one = {site: value[j : j + 1] for site, value in own.items()}
                alone = checks.log_posterior_of(
                    model, (x[j : j + 1], None, None), {s: v.unsqueeze(1) for s, v in one.items()}
                )
                torch.testing.assert_close(found[j, j], alone[0, 0])
        assert found.shape == (5, 5)


def test_the_classifier_tells_what_differs_alone() -> None:
    """The threshold is where the accuracy on one distribution lies with 99 %."""
    accuracy, threshold = checks.classifier_two_sample(torch.randn(600, 3), torch.randn(600, 3))
    assert accuracy <= threshold
    assert threshold == pytest.approx(0.5 + 2.326 / (2 * math.sqrt(1200)), abs=1e-3)
    shifted, _ = checks.classifier_two_sample(torch.randn(600, 3), torch.randn(600, 3) + 1)
    # The best rule between N(0, I) and N(1, I) in three dimensions has the accuracy Phi(sqrt(3) / 2) = 0.807.
    assert 0.75 < shifted < 0.85


def test_active_units() -> None:
    means = torch.stack([torch.linspace(-1, 1, 100), torch.full((100,), 3.0), 0.05 * torch.randn(100)], 1)
    assert checks.active_units(means).tolist() == [True, False, False]


# Draws.


def test_draws_are_scored_as_weigh_scores_them() -> None:
    """In chunks of any size; weights are the difference of their parts, and agree with `score`."""
    model = VAE((D,), latent_dim=2, **SMALL)
    x = torch.bernoulli(torch.full((7, D), 0.5))
    drawn = checks.draw(model, (x, None, None), 500, keep=3, floats=7 * D * 60)
    assert drawn.log_weights.shape == (500, 7)
    assert drawn.latents["z"].shape == (3, 7, 2)
    expected = drawn.log_likelihood + drawn.log_prior - drawn.log_posterior
    torch.testing.assert_close(drawn.log_weights, expected)
    first = model.decode({"z": drawn.latents["z"]}).log_prob(x)
    torch.testing.assert_close(drawn.log_likelihood[:3], first)
    sampled = score(model, x, particles=5000)
    error = drawn.log_weights.std(0) / math.sqrt(500)
    assert ((drawn.log_weights.mean(0) - sampled.elbo).abs() < 5 * error).all()


def test_states_of_enumerated_sites_are_drawn_from_q() -> None:
    """Their frequencies are those of q(y | x), and weights sum them out."""
    model = SemiSupervisedVAE((D,), 3, latent_dim=2, **SMALL)
    x = torch.bernoulli(torch.full((4, D), 0.5))
    with torch.no_grad():
        drawn = checks.draw(model, (x, None, None), 4000)
        q = model.classifier(x).logits.softmax(-1)
        frequencies = drawn.latents["y"].mean(0)
        assert ((frequencies - q).abs() < 5 * (q * (1 - q) / 4000).sqrt()).all()
        likelihood = model.decode(drawn.latents).log_prob(x)
    torch.testing.assert_close(drawn.log_likelihood, likelihood)
    enumerated = DiscreteVAE((D,), latent_dims=(3,), estimator="enumerate", **SMALL)
    exact = checks.draw(enumerated, (x, None, None), 30)
    assert (exact.log_weights - exact.log_weights[0]).abs().max() < 1e-5
    assert exact.latents["z1"].shape == (30, 4, 3)


# Gaps.


def test_gaps_of_a_diagonal_family() -> None:
    """The family's is (sum_i log P_ii - log det P) / 2, P = I + W'W / s^2; the rest of KL(q || p) is the encoder's."""
    model = linear(posterior="normal")
    x = sample(model, 20)
    found = checks.gaps(model, (x, None, None), steps=500, particles=8, draws=4000)
    with torch.no_grad():
        exact = model.exact_posterior(x)
        precision = torch.linalg.inv(exact.covariance_matrix)
        best = 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - precision.logdet())
        q: Any = model.posterior(x).base_dist
        full = dist.MultivariateNormal(q.loc, scale_tril=torch.diag_embed(q.scale))
        whole = torch.distributions.kl_divergence(full, exact)
    assert found.approximation is not None
    assert found.amortization is not None
    # 5e-3: what the refinement leaves.
    assert ((found.approximation - best).abs() < 5 * found.error[1] + 5e-3).all()
    assert ((found.inference - whole).abs() < 5 * found.error[2]).all()
    torch.testing.assert_close(found.approximation + found.amortization, found.inference)


def test_gaps_of_the_exact_posterior_are_zero() -> None:
    model = linear()
    found = checks.gaps(model, (sample(model, 20), None, None))
    for gap in (found.approximation, found.amortization, found.inference):
        assert gap is not None
        assert gap.abs().max() < 1e-10


def test_gaps_without_a_closed_form() -> None:
    """log p(x) then comes from importance sampling with the refined guide, and lies above both bounds."""
    model = VAE((D,), latent_dim=2, **SMALL)
    x = torch.bernoulli(torch.full((10, D), 0.5))
    found = checks.gaps(model, (x, None, None), steps=100)
    sampled = score(model, x, particles=5000)
    error = torch.hypot(found.error[0], sampled.mcse.double())
    assert ((found.log_evidence - sampled.log_evidence).abs() < 5 * error + 1e-4).all()
    assert found.inference.mean() > 0
    ladder = checks.gaps(HierarchicalVAE((D,), latent_dims=(3, 2), **SMALL), (x, None, None))
    assert ladder.local is None
    assert ladder.amortization is None


# Predictions.


def test_predictive_p_values_of_one_more_replicate_are_uniform_and_of_others_small() -> None:
    """Numbers as well as vectors, over 200 repetitions; and a data set that is shifted by four errors is seen."""
    p: dict[str, list[float]] = {"number": [], "vector": []}
    for _ in range(200):
        sets = torch.randn(41, 30, 5, dtype=torch.float64)
        found, _ = checks.predictive_p_values(
            {"number": sets[0].mean().reshape(1), "vector": sets[0].mean(0)},
            {"number": sets[1:].mean((1, 2)).unsqueeze(-1), "vector": sets[1:].mean(1)},
        )
        for name, value in found.items():
            p[name].append(value)
    assert scipy.stats.kstest(p["number"], "uniform").pvalue > 1e-3
    # A distance is skewed, so that its p-values are uniform in their first half but not in the tails: none below 1e-4.
    assert 0.3 < np.mean(np.array(p["vector"]) < 0.5) < 0.7
    assert min(p["vector"]) > 1e-4
    sets = torch.randn(41, 30, 5, dtype=torch.float64)
    shifted, compared = checks.predictive_p_values({"v": sets[0].mean(0) + 1}, {"v": sets[1:].mean(1)})
    assert shifted["v"] < 1e-3
    assert compared["v"][0] > compared["v"][1].max()


def test_statistics() -> None:
    x = torch.tensor([[[0.0, 1.0]], [[2.0, 1.0]], [[4.0, 2.0]]])
    found = {name: function(x) for name, function in checks.STATISTICS.items()}
    assert found["mean"].item() == pytest.approx(10 / 6)
    assert found["share of zeros"].item() == pytest.approx(1 / 6)
    assert found["means of entries"].tolist() == pytest.approx([2, 4 / 3])
    assert found["variances of entries"].tolist() == pytest.approx([4, 1 / 3])
    assert found["correlations of entries"].tolist() == pytest.approx([np.corrcoef([0, 2, 4], [1, 1, 2])[0, 1]])


def test_conditional_draws_are_those_of_the_joint_normal() -> None:
    """x_d | the others is normal, with mean and variance by conditioning N(b, W W' + s^2 I)."""
    model = linear()
    x = sample(model, 40)
    with torch.no_grad():
        weight = model.likelihood.weight
        covariance = weight @ weight.T + NOISE**2 * torch.eye(D, dtype=torch.float64)
    drawn = checks.conditional_draws(model, (x, None, None), 2, draws=2000, particles=50)
    others = [0, 1, 3, 4, 5]
    gain = covariance[2, others] @ torch.linalg.inv(covariance[others][:, others])
    mean, variance = x[:, others] @ gain, covariance[2, 2] - gain @ covariance[others, 2]
    # The exact posterior's weights are equal, so that 50 particles resampled are 50 independent ones.
    error = variance.sqrt() * math.sqrt(1 / 2000 + 1 / 50)
    assert ((drawn.mean(0) - mean).abs() < 5 * error).all()
    assert drawn.var(0).mean() == pytest.approx(variance.item(), rel=0.1)


def test_nearest_distances_and_who_is_nearer() -> None:
    points, among = torch.randn(20, 1, 3), torch.randn(50, 1, 3)
    distances, index = checks.nearest_distances(points, among, floats=100)
    table = scipy.spatial.distance.cdist(points.flatten(1), among.flatten(1))
    np.testing.assert_allclose(distances, table.min(1), rtol=1e-4)
    assert index.tolist() == table.argmin(1).tolist()
    share, p = checks.nearer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5]))
    assert share == pytest.approx(0.5)
    assert p > 0.3
    copied, p = checks.nearer(torch.zeros(50) + 0.01 * torch.rand(50), torch.rand(50))
    assert copied > 0.9
    assert p < 1e-6


def test_replicates_of_both_kinds() -> None:
    """Those given x have its mean where the posterior is narrow, the others the model's."""
    model = linear()
    with torch.no_grad():
        model.likelihood.weight.copy_(10 * torch.eye(D, L))
    x = sample(model, 400)
    given, alone = (checks.replicate(model, (x, None, None), posterior=posterior) for posterior in (True, False))
    assert given.shape == alone.shape == x.shape
    # The posterior standard deviation of x_1 given itself is below sqrt(2) s, and its marginal one is 10.
    assert (given - x)[:, 0].std() < 1.2
    assert (alone - x)[:, 0].std() > 10
