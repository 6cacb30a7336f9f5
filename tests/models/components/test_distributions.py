"""The package's own distributions: exact against mpmath's quadrature and sums, their draws against their densities."""

import functools
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor

from pyrolatent.models.components import distributions as ours
from pyrolatent.models.components.distributions import (
    CategoricalLevels,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Levels,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
    ZeroOneInflatedBeta,
)

mpmath.mp.dps = 40
LEVEL = 1e-3  # of the tests of draws, which are seeded
N = 20_000
POSITIVE = [1e-8, 1e-4, 1e-2, 0.04999, 0.05001, 0.3, 0.4999, 0.5001, 1, 3, 10, 40]
LOGITS = [-u for u in reversed(POSITIVE)] + [0.0] + POSITIVE


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Continuous Bernoulli: all truths by quadrature of exp(u x) in 40 digits.


def integral(u: float, function: Callable[[Any], Any], upper: float = 1) -> Any:
    return mpmath.quad(lambda x: function(x) * mpmath.exp(mpmath.mpf(u) * x), mpmath.linspace(0, upper, 5))


@functools.cache
def power(u: float, order: int) -> Any:
    return integral(u, lambda x: x**order)


def moment(u: float, order: int) -> Any:
    return power(u, order) / power(u, 0)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_continuous_bernoulli_is_exact_in_value_and_gradient(dtype: torch.dtype, rtol: float) -> None:
    x = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=dtype)
    u = torch.tensor(LOGITS, dtype=dtype).unsqueeze(-1).expand(-1, 4).clone().requires_grad_()
    log_prob = ContinuousBernoulli(u).log_prob(x)
    (gradient,) = torch.autograd.grad(log_prob.sum(), u)
    exact = u.detach().double()[:, 0].tolist()
    values = [[float(v * p - mpmath.log(power(v, 0))) for p in x.tolist()] for v in exact]
    slopes = [[float(p - moment(v, 1)) for p in x.tolist()] for v in exact]
    np.testing.assert_allclose(log_prob.detach().double().numpy(), values, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(gradient.double().numpy(), slopes, rtol=rtol, atol=rtol)


def test_continuous_bernoulli_moments() -> None:
    u = tensor(*LOGITS).requires_grad_()
    given = ContinuousBernoulli(u)
    mean = np.array([float(moment(v, 1)) for v in LOGITS])
    variance = np.array([float(moment(v, 2) - moment(v, 1) ** 2) for v in LOGITS])
    np.testing.assert_allclose(given.mean.detach().numpy(), mean, rtol=1e-13)
    np.testing.assert_allclose(given.variance.detach().numpy(), variance, rtol=1e-12)
    (gradient,) = torch.autograd.grad(given.mean.sum(), u)  # of an exponential family: the variance
    np.testing.assert_allclose(gradient.numpy(), variance, rtol=1e-11)


def test_continuous_bernoulli_distribution_function_its_inverse_and_the_path_of_a_draw() -> None:
    """Along a draw F(x; u) = v is constant, so dx/du = -(dF/du) / p(x)."""
    x = [0.0, 0.01, 0.5, 0.99, 1.0]
    for u in [-40, -3, -0.051, -0.011, -1e-4, 0, 1e-8, 0.009, 0.049, 0.6, 40]:
        given = ContinuousBernoulli(tensor(u))
        expected = [float(integral(u, lambda _: 1, p) / power(u, 0)) for p in x]
        np.testing.assert_allclose(given.cdf(tensor(*x)).numpy(), expected, rtol=1e-10, atol=1e-300)
        logit = tensor(u).expand(3).clone().requires_grad_()
        draw = ContinuousBernoulli(logit).icdf(tensor(0.05, 0.4, 0.9))
        torch.testing.assert_close(given.cdf(draw.detach()), tensor(0.05, 0.4, 0.9), rtol=1e-9, atol=1e-9)
        (path,) = torch.autograd.grad(draw.sum(), logit)
        for value, slope in zip(draw.tolist(), path.tolist(), strict=True):
            normaliser, part = power(u, 0), integral(u, lambda _: 1, value)
            change = integral(u, lambda p: p, value) / normaliser - part * moment(u, 1) / normaliser
            truth = -change * normaliser / mpmath.exp(mpmath.mpf(u) * value)
            assert slope == pytest.approx(float(truth), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_continuous_bernoulli_has_no_nan_anywhere(dtype: torch.dtype) -> None:
    u = torch.tensor([-1e6, -1e3, -90, -1e-30, 0.0, 1e-38, 1e-12, 90, 1e3, 1e6], dtype=dtype)
    p = torch.tensor([[0.0], [1e-6], [0.5], [1.0]], dtype=dtype)
    for name in ("log_prob", "cdf", "icdf", "mean", "variance"):
        logits = u.clone().requires_grad_()
        value = getattr(ContinuousBernoulli(logits), name)
        value = value(p) if callable(value) else value
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert torch.isfinite(value).all(), name
        assert torch.isfinite(gradient).all(), name


@pytest.mark.parametrize("u", [-15.0, -0.02, 0.0, 0.3, 8.0])
def test_continuous_bernoulli_draws(u: float) -> None:
    given = ContinuousBernoulli(tensor(u))
    draws = given.sample(torch.Size([N]))
    assert scipy.stats.kstest(draws[:, 0].numpy(), lambda x: given.cdf(torch.tensor(x)).numpy()).pvalue > LEVEL


# Masses at 0 and 1 and a density between.

LOGITS_3 = (0.5, -0.7, 1.1)


@pytest.mark.parametrize("shape", [(1.0, 1.0), (0.4, 0.7), (3.0, 1.5)])
def test_zero_one_inflated(shape: tuple[float, float]) -> None:
    pi = np.exp(LOGITS_3) / np.exp(LOGITS_3).sum()
    beta = scipy.stats.beta(*shape)
    given = ZeroOneInflatedBeta(tensor(*LOGITS_3), tensor(shape[0])[0], tensor(shape[1])[0])
    assert given.batch_shape == ()
    x = np.array([0.0, 1e-9, 0.2, 0.9, 1.0])
    expected = [np.log(pi[0]), *(np.log(pi[2]) + beta.logpdf(x[1:4])), np.log(pi[1])]
    np.testing.assert_allclose(given.log_prob(torch.tensor(x)).numpy(), expected, rtol=1e-10)

    def density(t: float, power: int) -> float:
        return t**power * given.log_prob(torch.tensor(t, dtype=torch.float64)).exp().item()

    between = [scipy.integrate.quad(density, 0, 1, args=(power,))[0] for power in range(3)]
    masses = given.log_prob(tensor(0.0, 1.0)).exp()
    assert between[0] + masses.sum().item() == pytest.approx(1, abs=1e-6)
    assert given.mean.item() == pytest.approx(between[1] + masses[1].item(), abs=1e-6)
    assert given.variance.item() == pytest.approx(between[2] + masses[1].item() - given.mean.item() ** 2, abs=1e-6)
    draws = given.sample(torch.Size([N])).numpy()
    inside = draws[(draws > 0) & (draws < 1)]
    counts = [(draws == 0).sum(), (draws == 1).sum(), len(inside)]
    assert scipy.stats.chisquare(counts, N * pi).pvalue > LEVEL
    assert scipy.stats.kstest(inside, beta.cdf).pvalue > LEVEL


def test_zero_one_inflated_gradients_are_finite_at_the_masses() -> None:
    """The beta density is infinite or zero there, and is not looked at."""
    parameters = [torch.zeros(4, 3), torch.tensor([0.1, 1.0, 5.0, 1e3]), torch.tensor([0.1, 1.0, 5.0, 1e-6])]
    logits, one, zero = (p.requires_grad_() for p in parameters)
    for value in (0.0, 1.0, 1e-30, 0.5):
        log_prob = ZeroOneInflatedBeta(logits, one, zero).log_prob(torch.full((4,), value))
        gradients = torch.autograd.grad(log_prob.sum(), [logits, one, zero])
        assert all(torch.isfinite(part).all() for part in (log_prob, *gradients))


# Masses on levels and on counts.


def test_levels_are_said_in_words_and_checked_with_a_tolerance() -> None:
    support = Levels(17)
    assert str(support) == "the 17 levels 0, 1/16, ..., 1 (option `levels`)"
    assert support.is_discrete
    assert support.check(torch.arange(17) / 16).all()
    assert Levels(256).check(torch.arange(256) / 255).all()
    assert not support.check(torch.tensor([0.03, -1 / 16, 17 / 16, torch.nan])).any()
    with pytest.raises(ValueError, match="17 levels"):
        CategoricalLevels(torch.zeros(17), validate_args=True).log_prob(torch.tensor(0.03))


def test_categorical_levels() -> None:
    logits = torch.randn(3, 17, dtype=torch.float64)
    given, p = CategoricalLevels(logits), logits.softmax(-1)
    grid = torch.arange(17) / 16
    torch.testing.assert_close(given.log_prob(grid.unsqueeze(-1)).exp(), p.T)
    torch.testing.assert_close(given.mean, (p * grid).sum(-1))
    torch.testing.assert_close(given.variance, (p * grid**2).sum(-1) - given.mean**2)
    draws = given.sample(torch.Size([N]))
    assert given.support.check(draws).all()
    for column, expected in zip((draws * 16).round().long().T, p, strict=True):
        assert scipy.stats.chisquare(column.bincount(minlength=17), N * expected).pvalue > LEVEL


CASES = [
    (17, [0.3], [0.05], [0.0]),
    (256, [0.31], [1e-4], [0.0]),
    (256, [-2.0], [0.02], [0.0]),
    (256, [0.5], [20.0], [0.0]),
    (17, [0.1, 0.9, 0.5], [0.02, 0.1, 3.0], [0.3, -1.0, 2.0]),
    (2, [0.4, 1.5], [0.3, 0.2], [0.0, 0.1]),
]


@pytest.mark.parametrize(("levels", "loc", "scale", "logits"), CASES)
def test_discretized_logistic_against_the_difference_of_sigmoids(
    levels: int, loc: list[float], scale: list[float], logits: list[float]
) -> None:
    given = DiscretizedLogistic(tensor(*loc), tensor(*scale), tensor(*logits), levels=levels)
    grid = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    log_prob = given.log_prob(grid)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert given.mean.item() == pytest.approx((log_prob.exp() * grid).sum().item(), abs=1e-12)
    total = mpmath.fsum(mpmath.exp(w) for w in logits)

    def below(edge: Any) -> Any:
        parts = zip(loc, scale, logits, strict=True)
        return mpmath.fsum(mpmath.exp(w) / total / (1 + mpmath.exp(-(edge - c) / s)) for c, s, w in parts)

    with mpmath.workdps(3000 if min(scale) < 1e-3 else 400):  # the mass of a far level is small
        for k in {0, 1, levels // 3, levels // 2, levels - 2, levels - 1}:
            step = mpmath.mpf(1) / (levels - 1)
            upper = below((k + mpmath.mpf("0.5")) * step) if k < levels - 1 else 1
            lower = below((k - mpmath.mpf("0.5")) * step) if k > 0 else 0
            assert log_prob[k].item() == pytest.approx(float(mpmath.log(upper - lower)), rel=1e-9, abs=1e-9)


def test_discretized_logistic_draws_and_gradients() -> None:
    levels, loc, scale, logits = CASES[4]
    given = DiscretizedLogistic(tensor(*loc), tensor(*scale), tensor(*logits), levels=levels)
    draws = given.sample(torch.Size([N]))
    assert draws.shape == (N,)
    assert given.support.check(draws).all()
    counts = (draws * 16).round().long().bincount(minlength=17)
    expected = N * given.log_prob(torch.arange(17) / 16).exp()
    assert scipy.stats.chisquare(counts, expected * N / expected.sum()).pvalue > LEVEL
    parameters = [
        p.requires_grad_() for p in (torch.tensor([[-30.0], [30.0], [0.5]]), torch.tensor([[1e-4], [30.0], [1e-4]]))
    ]
    log_prob = DiscretizedLogistic(*parameters, levels=256).log_prob(
        torch.tensor([[0.0], [128 / 255], [1.0]]) * torch.ones(3)
    )
    for gradient in (log_prob, *torch.autograd.grad(log_prob.sum(), parameters)):
        assert torch.isfinite(gradient).all()


ZERO_INFLATED = [
    (ZeroInflatedPoisson(tensor(2.5), tensor(-0.4)), scipy.stats.poisson(2.5)),
    (
        ZeroInflatedNegativeBinomial(tensor(1.7), tensor(0.3), tensor(-0.4)),
        scipy.stats.nbinom(1.7, 1 / (1 + np.exp(0.3))),
    ),
]


@pytest.mark.parametrize(("given", "base"), ZERO_INFLATED)
def test_zero_inflated_counts(given: Any, base: Any) -> None:
    gate, x = 1 / (1 + np.exp(0.4)), np.arange(200)
    expected = (1 - gate) * base.pmf(x) + gate * (x == 0)
    mass = given.log_prob(torch.tensor(x, dtype=torch.float64)).exp().numpy()
    np.testing.assert_allclose(mass, expected, rtol=1e-9)
    assert mass.sum() == pytest.approx(1, abs=1e-12)
    assert given.mean.item() == pytest.approx((mass * x).sum())
    assert given.variance.item() == pytest.approx((mass * x**2).sum() - (mass * x).sum() ** 2)
    counts = given.sample(torch.Size([N])).long()[:, 0].clamp(max=10).bincount(minlength=11)
    expected = np.append(mass[:10], mass[10:].sum())
    assert scipy.stats.chisquare(counts, N * expected / expected.sum()).pvalue > LEVEL


# What relaxed variables are on average, by their own draws; the quadratures' own errors are stated where they are made.


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_means_of_relaxed_variables(temperature: float) -> None:
    logits = tensor(0.5, -2.0, 0.0, 1.0)
    for given, own in (
        (RelaxedBernoulli(torch.tensor(temperature), logits=logits), 2e-3),
        (RelaxedOneHotCategorical(torch.tensor(temperature), logits=logits), 1e-2),
    ):
        draws = given.sample(torch.Size([N]))
        assert ((draws.mean(0) - given.mean).abs() < 4 * draws.std(0) / N**0.5 + own).all()


@pytest.mark.parametrize(
    "given",
    [
        ContinuousBernoulli(torch.randn(3)),
        ZeroOneInflatedBeta(torch.randn(3, 3), torch.ones(3), torch.ones(())),
        CategoricalLevels(torch.randn(3, 5)),
        DiscretizedLogistic(torch.randn(3, 2), torch.ones(3, 2), levels=5),
        ZeroInflatedPoisson(torch.ones(3), torch.zeros(())),
    ],
    ids=lambda given: type(given).__name__,
)
def test_expanding_and_events(given: dist.TorchDistribution) -> None:
    wide = given.expand(torch.Size([4, 3])).to_event(1)
    draws = wide.sample(torch.Size([6]))
    assert draws.shape == (6, 4, 3)
    torch.testing.assert_close(wide.log_prob(draws), given.log_prob(draws).sum(-1))
    assert wide.mean.shape == (4, 3)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_bernoulli_is_pyro_s_with_its_gradient(value: float) -> None:
    """Values to 1e-7 an element, gradients x - sigmoid(u) also at u = 0, where max and |.| have none."""
    u = torch.tensor([-90.0, -20.0, -1.0, 0.0, 1e-4, 3.0, 15.0, 90.0], requires_grad=True)
    x = torch.full_like(u, value).requires_grad_()
    found = ours.Bernoulli(logits=u, validate_args=False).log_prob(x)
    exact = dist.Bernoulli(logits=u.double(), validate_args=False).log_prob(x.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1.2e-7)
    by_u, by_x = torch.autograd.grad(found.sum(), (u, x))
    torch.testing.assert_close(by_u, x.detach() - torch.sigmoid(u.detach()))
    assert torch.equal(by_x, u.detach())


def test_bernoulli_broadcasts_and_expands() -> None:
    u, x = torch.randn(3, 1, 4, requires_grad=True), (torch.rand(2, 4) < 0.5).float()
    found = ours.Bernoulli(logits=u).expand((3, 2, 4)).log_prob(x)
    expected = dist.Bernoulli(logits=u).log_prob(x)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value.sum(), u)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_low_rank_normal_with_a_large_factor() -> None:
    """W' diag(d)^-1 W about 1e8, beside which float32 has no 1: as the dense normal in float64."""
    w, d = torch.full((3, 2), 30.0) + torch.randn(3, 2), torch.full((3,), 1e-4)
    x = torch.randn(5, 3)
    found = ours.LowRankMultivariateNormal(torch.zeros(3), w, d).expand((5,)).log_prob(x)
    covariance = w.double() @ w.double().T + d.double().diag()
    exact = dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=0)


# Mass beyond the numbers of a type.

FAR = (-1000.0, -100.0, -40.0, -15.0, -3.0, 0.0, 5.0, 12.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
"""Logits of a relaxed variable, or means of a logarithm."""


def representable(kind: str, place: Tensor) -> Any:
    """A distribution around `place`, of temperature 1/2 or of scale 2."""
    if kind == "relaxed":
        return RelaxedBernoulli(torch.tensor(0.5).to(place), logits=place)
    return ours.LogNormal(place, torch.full_like(place, 2.0))


def log_density(kind: str, place: float, x: float) -> float:
    """Of the density over all real numbers, in 40 digits."""
    y = mpmath.mpf(x)
    if kind == "relaxed":
        far = (mpmath.log(y) - mpmath.log1p(-y)) / 2 - place
        logistic = -abs(far) - 2 * mpmath.log1p(mpmath.exp(-abs(far)))
        return float(logistic - mpmath.log(2) - mpmath.log(y) - mpmath.log1p(-y))
    return float(mpmath.log(mpmath.npdf(mpmath.log(y), place, 2)) - mpmath.log(y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["relaxed", "log normal"])
def test_densities_within_the_numbers_of_a_type_are_exact(kind: str, dtype: torch.dtype) -> None:
    """At any place, to the rounding of the logarithm of x, by which the density of relaxed ones near 1 moves most."""
    values = [1e-30, 1e-5, 0.2, 0.5, 0.99] + ([] if kind == "relaxed" else [7.0, 1e20])
    for place in FAR:
        x = torch.tensor(values, dtype=dtype)
        found = representable(kind, torch.tensor(place, dtype=dtype)).log_prob(x)
        exact = [log_density(kind, place, value) for value in x.tolist()]
        np.testing.assert_allclose(
            found.double().numpy(), exact, rtol=40 * torch.finfo(dtype).eps, atol=40 * torch.finfo(dtype).eps
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["relaxed", "log normal"])
def test_draws_and_densities_agree_where_mass_lies_beyond_the_numbers(kind: str, dtype: torch.dtype) -> None:
    """Draws are in the support; those at an end are as many as its mass says; and all is finite, gradients too."""
    for place in (*FAR, -86.0, 86.0, 700.0):
        at = torch.tensor(place, dtype=dtype).expand(N).clone().requires_grad_()
        given = representable(kind, at)
        x = given.rsample()
        low, high, width = given._ends()
        log_p = given.log_prob(x)
        (gradient,) = torch.autograd.grad((log_p + x.log()).sum(), at)
        assert torch.isfinite(log_p).all()
        assert torch.isfinite(gradient).all()
        for end, of in ((low, low), (high, width)):
            mass = min(1.0, given.log_prob(torch.full_like(x, end)).detach().double()[0].exp().item() * of)
            share = (x == end).double().mean().item()
            assert abs(share - mass) < 4.5 * (mass * (1 - mass) / N) ** 0.5 + 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "from_", "to"),
    [("relaxed", 6.0, 8.0), ("relaxed", 10.0, 12.0), ("relaxed", -40.0, -42.0), ("log normal", 84.0, 86.0),
     ("log normal", -86.0, -88.0)],
)  # fmt: skip
def test_weights_of_one_far_density_under_draws_of_another_have_the_mean_one(
    kind: str, from_: float, to: float, dtype: torch.dtype
) -> None:
    """E_q[p / q] = 1, within 4.5 standard errors of draws of which float32 rounds a good part to an end."""
    q, p = (representable(kind, torch.tensor(place, dtype=dtype).expand(N)) for place in (from_, to))
    x = q.sample()
    w = (p.log_prob(x) - q.log_prob(x)).double().exp()
    assert abs(w.mean().item() - 1) < 4.5 * w.std().item() / N**0.5 + 1e-5


@pytest.mark.parametrize("logits", [-12.0, -3.0, 0.5, 12.0, 30.0, 200.0])
def test_the_divergence_of_far_relaxed_variables(logits: float) -> None:
    """KL(q | p) of float32 draws against the sum over the two ends and 20,000 cells between, all in float64.

    Its gradient is held against the sum's where next to no draw crosses an end.
    """
    at = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    low, high, _ = RelaxedBernoulli(torch.tensor(0.5), logits=torch.zeros(()))._ends()
    first, last = (float(mpmath.log(end) - mpmath.log1p(-end)) for end in (low, high))
    edges = torch.linspace(first, last, 20_001, dtype=torch.float64)

    def log_masses(place: Tensor) -> Tensor:
        below, above = (torch.nn.functional.logsigmoid(sign * (0.5 * edges - place)) for sign in (1, -1))
        # log [sigmoid(b) - sigmoid(a)] = log sigmoid(b) + log sigmoid(-a) + log(1 - exp(a - b))
        inner = below[1:] + above[:-1] + torch.log(-torch.expm1(0.5 * (edges[:-1] - edges[1:])))
        return torch.cat([below[:1], inner, above[-1:]])

    own, other = log_masses(at), log_masses(torch.zeros_like(at))
    exact = (own.exp() * (own - other)).sum()
    (slope,) = torch.autograd.grad(exact, at)
    place = torch.full((200_000,), logits, requires_grad=True)
    q, p = representable("relaxed", place), representable("relaxed", torch.zeros(()))
    x = q.rsample()
    each = q.log_prob(x) - p.log_prob(x)
    (gradient,) = torch.autograd.grad(each.sum(), place)
    assert torch.isfinite(gradient).all()
    for found, truth in ((each.detach(), exact), *([(gradient, slope)] if logits < 3 else [])):
        error = found.double().std().item() / len(found) ** 0.5
        assert abs(found.double().mean().item() - truth.item()) < 4.5 * error + 1e-3 * (1 + abs(truth.item()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [1e3, 1e9, 1e12, 1e13, 1e17, 1e20, 1e30])
def test_counts_of_any_size_are_drawn(mean: float, dtype: torch.dtype) -> None:
    """Poisson by its normal limit, (x - rate) / sqrt(rate); the negative binomial by that of x / mean, a gamma."""
    rate = torch.tensor(mean, dtype=dtype).expand(N)
    drawn = ours.Poisson(rate).sample().double()
    assert (drawn >= 0).all()
    assert torch.equal(drawn, drawn.round())
    # A number of its type is rounded by at most half of its last digit.
    deviation = max(mean**0.5, 2 * mean * torch.finfo(dtype).eps)
    assert (
        abs(drawn.mean().item() / rate[0].double().item() - 1)
        < 4.5 * deviation / mean / N**0.5 + torch.finfo(dtype).eps
    )
    assert drawn.std().item() < 1.1 * deviation
    for given in (
        ours.NegativeBinomial(torch.tensor(2.0, dtype=dtype), logits=(rate / 2).log()),
        ZeroInflatedNegativeBinomial(
            torch.tensor(2.0, dtype=dtype), (rate / 2).log(), torch.tensor(-50.0, dtype=dtype)
        ).expand(torch.Size([N])),
    ):
        counts = given.sample().double()
        assert (counts >= 0).all()
        assert scipy.stats.kstest((counts / (mean / 2)).numpy(), scipy.stats.gamma(2).cdf).pvalue > LEVEL


def test_counts_beyond_the_largest_number_are_the_largest_numbers() -> None:
    assert torch.isfinite(ours.NegativeBinomial(torch.ones(100), logits=torch.full((100,), 200.0)).sample()).all()
    assert torch.isfinite(ours.Poisson(torch.full((100,), 3e38)).sample()).all()
    assert torch.isfinite(ZeroInflatedPoisson(torch.full((100,), 3e38), torch.zeros(100)).sample()).all()
