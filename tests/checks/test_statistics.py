"""Diagnostics as functions of tensors, against closed forms, other implementations and what theory says of them."""

import math
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pyrolatent import (
    VAE,
    DiscreteVAE,
    HierarchicalVAE,
    InputError,
    LinearGaussian,
    SemiSupervisedVAE,
    checks,
    load_data,
    sample,
)
from pyrolatent.inference.draws import draw, simulate
from pyrolatent.inference.evidence.importance import active_units, score
from pyrolatent.inference.evidence.psis import too_large
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


def test_a_factor_of_the_guide_is_no_part_of_the_weights_of_draws() -> None:
    """It is no density that was drawn from. Nothing is enumerated, so that the weights of states are all weights."""

    class Penalised(VAE):
        def infer(self, x: torch.Tensor, y: Any = None, mask: Any = None) -> None:
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", self.posterior(x))
                pyro.factor("penalty", -z.square().sum(-1), has_rsample=True)

    drawn = draw(Penalised((6,), latent_dim=2), (torch.zeros(3, 6), None, None), 5)
    assert torch.allclose(drawn.log_weights_of_states, drawn.log_weights, atol=1e-5)


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


def binomial_999(n: int, level: float) -> tuple[float, float]:
    """Shares of n trials between which 99.9 % lie."""
    lower, upper = scipy.stats.binom.interval(0.999, n, level)
    return lower / n, upper / n


@pytest.mark.parametrize("kind", ["independent", "dependent", "tied"])
def test_the_rank_test_holds_its_level_and_sees_what_is_not_uniform(kind: str) -> None:
    """Over 500 repetitions of 50 truths and 25 draws in three dimensions, dependent on each other or not."""
    torch.manual_seed(0)
    p = []
    for _ in range(500):
        values = torch.randn(26, 50, 3)
        values = {"independent": values, "dependent": values[..., :1] + 0.1 * values, "tied": values.round()}[kind]
        p.append(checks.rank_test(values[0], values[1:], exchanges=199).p_value)
    for level in (0.01, 0.05, 0.1):
        lower, upper = binomial_999(500, level)
        assert lower <= np.mean(np.array(p) <= level) <= upper
    draws = torch.randn(200, 500, 3)
    for wrong in (0.8 * torch.randn(500, 3), 0.25 + torch.randn(500, 3)):
        assert checks.rank_test(wrong, draws).p_value < 0.01
    one = torch.randn(500, 3)
    one[:, 1] *= 0.5
    found = checks.rank_test(one, draws)
    assert found.worst == 1
    assert found.ranks.shape == (500, 3)
    # Ranks that are all in one half of (0, 1) have a chance of 2^-500, far below what exchanges could show.
    assert checks.rank_test(torch.randn(500).abs(), torch.randn(200, 500)).p_value < 1e-100


def test_the_other_exchanges_hold_their_levels_and_see_differences() -> None:
    """500 repetitions at the smallest sizes; pairs with skewed scores, samples of two columns that are one."""
    torch.manual_seed(0)
    p: dict[str, list[float]] = {"sign flips": [], "ecdf": [], "replicates": []}
    for _ in range(500):
        p["sign flips"].append(checks.sign_flip_test(torch.randn(20).exp() - torch.randn(20).exp(), 199))
        one, other = torch.rand(2, 30, 1).expand(2, 30, 2)
        p["ecdf"].append(checks.paired_ecdf_test(one, other, 199)[0])
        sets = torch.randn(100, 20, 5).exp()
        statistics = {"mean": sets.mean((1, 2)).unsqueeze(-1), "means": sets.mean(1), "largest": sets.amax(1)}
        p["replicates"].append(checks.replicate_test(statistics)[0])
    for name, values in p.items():
        for level in (0.01, 0.05, 0.1):
            lower, upper = binomial_999(500, level)
            assert lower <= np.mean(np.array(values) <= level) <= upper, (name, level)
    assert checks.sign_flip_test(torch.randn(100) + 1) < 0.01
    assert checks.sign_flip_test(torch.randn(100) - 1) > 0.9
    p_value, worst = checks.paired_ecdf_test(torch.rand(200, 3) ** torch.tensor([1, 1, 2]), torch.rand(200, 3))
    assert p_value < 0.01
    assert worst == 2
    nothing = torch.full((50, 2), math.nan)
    assert checks.paired_ecdf_test(nothing, nothing)[0] == 1
    sets = torch.randn(200, 30, 5, dtype=torch.float64)
    sets[0] += 1
    p_value, each, compared = checks.replicate_test({"v": sets.mean(1), "constant": torch.ones(200, 3)})
    assert p_value == 1 / 200
    assert each == {"v": 1 / 200, "constant": 1.0}
    assert compared["v"][0] > compared["v"][1:].max()


def test_holm_is_the_step_down_of_bonferroni() -> None:
    assert checks.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert checks.holm([0.5, 0.9]) == [1.0, 1.0]
    assert checks.holm([]) == []


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
    torch.manual_seed(0)
    z, other = torch.randn(2, 1000, 2)
    x, draws, scale = z + 0.3 * torch.randn(1000, 2), torch.randn(100, 1000, 2), torch.ones(2)

    def p_value(draws: torch.Tensor, references: torch.Tensor) -> float:
        return checks.rank_test(*(checks.distances(each, references, scale) for each in (z, draws))).p_value

    assert p_value(draws, torch.randn(1000, 2)) > 0.01
    references = checks.references_from_data(other + 0.3 * torch.randn(1000, 2), other, x)
    assert p_value(draws, references) < 0.01
    exact = x / 1.09 + math.sqrt(0.09 / 1.09) * torch.randn(100, 1000, 2)
    assert p_value(exact, references) > 0.01


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
            found = checks.log_posterior_of(model, (x, None, None), own, max_elements=1)
            for j in range(5):
                one = {site: value[j : j + 1] for site, value in own.items()}
                alone = checks.log_posterior_of(
                    model, (x[j : j + 1], None, None), {s: v.unsqueeze(1) for s, v in one.items()}
                )
                torch.testing.assert_close(found[j, j], alone[0, 0])
        assert found.shape == (5, 5)


def test_the_classifier_tells_what_differs_alone() -> None:
    torch.manual_seed(0)
    p_value, accuracy, _ = checks.paired_c2st(torch.randn(600, 3), torch.randn(600, 3))
    assert p_value > 0.01
    assert abs(accuracy - 0.5) < 4 * 0.5 / math.sqrt(600)
    p_value, accuracy, _ = checks.paired_c2st(torch.randn(600, 3), torch.randn(600, 3) + 1)
    assert p_value == 1 / 2000
    # The best rule between N(0, I) and N(1, I) in three dimensions has the accuracy Phi(sqrt(3) / 2) = 0.807.
    assert 0.75 < accuracy < 0.85


def test_active_units() -> None:
    """A mean that varies by its own Monte Carlo noise alone is not active."""
    noisy = 0.3 * torch.randn(100)
    means = torch.stack([torch.linspace(-1, 1, 100), torch.full((100,), 3.0), 0.05 * torch.randn(100), noisy], 1)
    noise = torch.zeros_like(means)
    assert active_units(means, noise).tolist() == [True, False, False, True]
    noise[:, 3] = noisy.var()
    assert active_units(means, noise).tolist() == [True, False, False, False]
    prior = torch.tensor([1.0, 1.0, 0.01, 1.0])  # of which 0.05 squared is a quarter
    assert active_units(means, noise, prior).tolist() == [True, False, True, False]


# Draws.


def test_draws_are_scored_as_weigh_scores_them() -> None:
    """In chunks of any size; weights are the difference of their parts, and agree with `score`."""
    model = VAE((D,), latent_dim=2, **SMALL)
    x = torch.bernoulli(torch.full((7, D), 0.5))
    drawn = checks.draw(model, (x, None, None), 500, keep=3, max_elements=7 * D * 60)
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
    found = checks.gaps(model, (x, None, None), steps=200, particles=20, draws=4000)
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


def test_statistics() -> None:
    x = torch.tensor([[[0.0, 1.0]], [[2.0, 1.0]], [[4.0, 2.0]]])
    found = {name: function(x) for name, function in checks.STATISTICS.items()}
    assert found["mean"].item() == pytest.approx(10 / 6)
    assert found["share of zeros"].item() == pytest.approx(1 / 6)
    assert found["means of entries"].tolist() == pytest.approx([2, 4 / 3])
    assert found["variances of entries"].tolist() == pytest.approx([4, 1 / 3])
    assert found["skewness of entries"].tolist() == pytest.approx(scipy.stats.skew(x.flatten(1).numpy()).tolist())
    tails = scipy.stats.kurtosis(x.flatten(1).numpy(), fisher=False)
    assert found["tails of entries"].tolist() == pytest.approx(tails.tolist())
    assert found["correlations of entries"].tolist() == pytest.approx([np.corrcoef([0, 2, 4], [1, 1, 2])[0, 1]])
    assert checks.STATISTICS["tails of entries"](torch.ones(5, 2)).tolist() == [0, 0]


def test_conditional_draws_are_those_of_the_joint_normal() -> None:
    """x_d | the others is normal, with mean and variance by conditioning N(b, W W' + s^2 I)."""
    model = linear()
    x = sample(model, 40)
    with torch.no_grad():
        weight = model.likelihood.weight
        covariance = weight @ weight.T + NOISE**2 * torch.eye(D, dtype=torch.float64)
    drawn = checks.conditional_draws(model, (x, None, None), [0, 2], draws=2000, particles=50)[..., 1]
    others = [0, 1, 3, 4, 5]
    gain = covariance[2, others] @ torch.linalg.inv(covariance[others][:, others])
    mean, variance = x[:, others] @ gain, covariance[2, 2] - gain @ covariance[others, 2]
    # The exact posterior's weights are equal, so that 50 particles resampled are 50 independent ones.
    error = variance.sqrt() * math.sqrt(1 / 2000 + 1 / 50)
    assert ((drawn.mean(0) - mean).abs() < 5 * error).all()
    assert drawn.var(0).mean() == pytest.approx(variance.item(), rel=0.1)


def test_nearest_distances_and_who_is_nearer() -> None:
    points, among = torch.randn(20, 1, 3), torch.randn(50, 1, 3)
    distances, index = checks.nearest_distances(points, among, max_elements=100)
    table = scipy.spatial.distance.cdist(points.flatten(1), among.flatten(1))
    np.testing.assert_allclose(distances, table.min(1), rtol=1e-4)
    assert index.tolist() == table.argmin(1).tolist()
    share, p = checks.nearer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5]))
    assert share == pytest.approx(0.5)
    assert p > 0.3
    copied, p = checks.nearer(torch.zeros(50) + 0.01 * torch.rand(50), torch.rand(50))
    assert copied > 0.9
    assert p < 1e-6


def test_draws_of_summed_out_sites_weighted_are_the_posterior_s() -> None:
    """Weighted by the weight of the drawn state they have the posterior's mean, unweighted q's."""
    model = DiscreteVAE((D,), latent_dims=(3,), estimator="enumerate", **SMALL).double()
    torch.manual_seed(3)
    with torch.no_grad():
        x, _ = simulate(model, 4)
        drawn = checks.draw(model, (x, None, None), 20_000)
        states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
        log_joint = torch.stack([model.decode({"z1": states}).log_prob(row.expand(8, D)) for row in x], 1)
    exact = log_joint.softmax(0).T @ states  # under a prior that is uniform over states
    weights = drawn.log_weights_of_states.softmax(0)
    found = (weights.unsqueeze(-1) * drawn.latents["z1"]).sum(0)
    error = 0.5 * weights.square().sum(0).sqrt()
    assert ((found - exact).abs() < 5 * error.unsqueeze(-1)).all()


def test_bounds_of_summed_out_states_are_bounds() -> None:
    """With q(z) = p(z) the gap is log p(x) less the mean of log p(x | z) over the eight states."""
    model = DiscreteVAE((D,), latent_dims=(3,), estimator="enumerate", **SMALL).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.likelihood.parameters():
            parameter.mul_(4)
        for parameter in model.posterior.parameters():
            parameter.zero_()
        x, _ = simulate(model, 20)
        states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
        likelihood = torch.stack([model.decode({"z1": states}).log_prob(row.expand(8, D)) for row in x], 1)
        exact = likelihood.logsumexp(0) - math.log(8) - likelihood.mean(0)
    found = checks.gaps(model, (x, None, None), steps=1, draws=2000)
    assert ((found.inference - exact).abs() < 5 * found.error[2] + 1e-6).all()
    assert exact.mean() > 0.1


def test_weights_that_are_alike_or_bounded_are_not_called_heavy() -> None:
    torch.manual_seed(0)
    few = torch.tensor([0.8, 2.0]).log()[torch.bernoulli(torch.full((1000, 50), 0.02)).long()]
    ess = (2 * few.logsumexp(0) - (2 * few).logsumexp(0)).exp()
    assert not too_large(checks.khat(few), ess, 1000).any()
    half = torch.rand(2000, 50).log().clamp(min=-0.3)  # a bound that most of the weights reach
    bounded = torch.where(torch.rand(2000, 50) < 0.5, torch.tensor(0.7), half)
    assert (checks.khat(bounded) == -math.inf).all()
    heavy = 3 * torch.distributions.StudentT(3.0).sample((1000, 50))
    ess = (2 * heavy.logsumexp(0) - (2 * heavy).logsumexp(0)).exp()
    assert too_large(checks.khat(heavy), ess, 1000).double().mean() > 0.9


def test_statistics_that_are_not_finite_are_extreme_or_refused() -> None:
    sets = torch.rand(200, 1, dtype=torch.float64)
    sets[0] = -math.inf
    assert checks.replicate_test({"log": sets})[0] == 1 / 200
    sets[3] = math.nan
    with pytest.raises(InputError, match="'log' is not a number"):
        checks.replicate_test({"log": sets})


def test_a_statistic_cannot_change_the_data() -> None:
    model = linear().float()
    data = load_data(sample(model, 200).numpy(), test=0.5)
    before = data.test.x.clone()

    def centred(x: torch.Tensor) -> float:
        array = x.numpy()
        array -= array.mean(0)
        return float(array.max())

    checks.PriorPredictive(statistics={"largest": centred}, replicates=99)(model, data)
    assert torch.equal(data.test.x, before)
