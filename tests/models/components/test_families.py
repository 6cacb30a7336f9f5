"""Families: which of Pyro's distributions can be built from unconstrained numbers, and that they are the right ones."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from pyrolatent import Family, InputError
from pyrolatent.declaration import build, registered
from pyrolatent.models.components.families import BY_CLASS, Bernoulli, Normal, named_by_class

CONSTANTS = {"temperature": 0.5, "total_count": 3, "dim": 3}
AXES = {
    "Categorical": {"logits": 4},
    "LowRankMultivariateNormal": {"cov_factor": 2},
    "OrderedLogistic": {"cutpoints": 4},
}

# The name of each distribution that can be built, with its numbers an element, for those that score each element alone.
ELEMENTWISE = {
    "AsymmetricLaplace": 3, "Bernoulli": 1, "Beta": 2, "BetaBinomial": 2, "Binomial": 1, "Categorical": 4, "Cauchy": 2,
    "Chi2": 1, "ContinuousBernoulli": 1, "Exponential": 1, "ExtendedBetaBinomial": 2, "ExtendedBinomial": 1,
    "FisherSnedecor": 2, "Gamma": 2, "GammaPoisson": 2, "Geometric": 1, "Gumbel": 2, "HalfCauchy": 1, "HalfNormal": 1,
    "InverseGamma": 2, "Kumaraswamy": 2, "Laplace": 2, "LogNormal": 2, "Logistic": 2, "NanMaskedNormal": 2,
    "NegativeBinomial": 1, "Normal": 2, "OrderedLogistic": 5, "Poisson": 1, "RelaxedBernoulli": 1,
    "RelaxedBernoulliStraightThrough": 1, "SkewLogistic": 3, "SoftLaplace": 2, "Stable": 4,
    "StableWithLogProb": 4, "StudentT": 3, "VonMises": 2, "Weibull": 2, "ZeroInflatedNegativeBinomial": 2,
    "ZeroInflatedPoisson": 2,
}  # fmt: skip
# ... and with all of its numbers, for those that score the event (3,), or the matrix (3, 3), as a whole.
JOINT = {
    "Dirichlet": 3, "DirichletMultinomial": 3, "LKJCholesky": 1, "LowRankMultivariateNormal": 12,
    "Multinomial": 3, "MultivariateNormal": 12, "MultivariateStudentT": 13, "NanMaskedMultivariateNormal": 12,
    "OneHotCategorical": 3, "OneHotCategoricalStraightThrough": 3, "ProjectedNormal": 3, "RelaxedOneHotCategorical": 3,
    "RelaxedOneHotCategoricalStraightThrough": 3,
}  # fmt: skip
MATRICES = {"LKJCholesky"}
REFUSED = {
    "does not state the dimension of its support": {
        "AffineBeta", "CoalescentTimes", "CoalescentTimesWithRate", "Delta", "Distribution", "ExpandedDistribution",
        "ExponentialFamily", "GaussianScaleMixture", "ImproperUniform", "Independent", "MaskedDistribution",
        "MaskedMixture", "MixtureSameFamily", "OneOneMatching", "OneTwoMatching", "Rejector", "TorchDistribution",
        "TransformedDistribution", "ZeroInflatedDistribution",
    },
    "cannot come from a network and was not given as a constant": {
        "DiscreteHMM", "Empirical", "FoldedDistribution", "GammaGaussianHMM", "GaussianHMM", "GaussianMRF",
        "GroupedNormalNormal", "IndependentHMM", "LKJCorrCholesky", "LinearHMM", "SineSkewed", "TruncatedPolyaGamma",
    },
    "cannot be built, drawn and scored": {
        "LKJ", "SoftAsymmetricLaplace",
        "LogNormalNegativeBinomial", "MixtureOfDiagNormals", "MixtureOfDiagNormalsSharedCovariance", "SpanningTree",
        "VonMises3D",
    },
    "has no map from unconstrained numbers": {"AVFMultivariateNormal", "OMTMultivariateNormal"},
    "does not state its parameters' shapes": {"LogisticNormal", "SineBivariateVonMises", "Unit"},
    "support moves with its parameters": {"GeneralizedPareto", "Pareto"},
    "the constraints of its parameters depend on each other": {"Uniform", "Wishart"},
}  # fmt: skip
PRESENT = {
    name
    for name, item in vars(dist).items()
    if inspect.isclass(item) and issubclass(item, dist.Distribution | torch.distributions.Distribution)
}
BUILT = sorted(PRESENT & {*ELEMENTWISE, *JOINT})


def family(name: str, *shape: int) -> Family:
    cls = getattr(dist, name)
    taken = inspect.signature(cls).parameters
    constants = {key: value for key, value in CONSTANTS.items() if key in taken}
    return Family(shape, cls, constants=constants, axes=AXES.get(name))


def refusal(name: str) -> str:
    """Why a distribution is refused over a vector, or a matrix where a vector has too few dimensions; '' if built."""
    for shape in ((3,), (3, 3)):
        try:
            family(name, *shape)
        except InputError as error:
            reason = str(error)
        else:
            return ""
        if "its events have 2 dimensions" not in reason:
            break
    return reason


def test_every_distribution_of_pyro_is_built_or_refused_by_name() -> None:
    """A new version of Pyro shows up here; a name that the installed one does not have is left out."""
    reasons = {name: refusal(name) for name in PRESENT}
    assert {name for name, reason in reasons.items() if not reason} == PRESENT & {*ELEMENTWISE, *JOINT}
    for why, names in REFUSED.items():
        assert {name for name, reason in reasons.items() if why in reason} == PRESENT & names
    assert {*ELEMENTWISE, *JOINT}.union(*REFUSED.values()) >= PRESENT
    for name, reason in reasons.items():
        assert not reason or reason.startswith(f"{name} cannot be a family over (3")


@pytest.mark.parametrize("name", BUILT)
def test_own_draws_have_finite_densities_and_gradients(name: str) -> None:
    built = family(name, 3, 3) if name in MATRICES else family(name, 3)
    u = (0.5 * torch.randn(2, 5, *built.unconstrained_shape)).requires_grad_()
    distribution = built(u).to_event(built.event_dims)
    assert distribution.batch_shape == (2, 5)
    assert distribution.event_shape == built.event_shape
    value = distribution.sample().detach()
    assert value.shape == (2, 5, *built.event_shape)
    log_prob = distribution.log_prob(value)
    assert log_prob.shape == (2, 5)
    assert torch.isfinite(log_prob).all()
    (gradient,) = torch.autograd.grad(log_prob.sum(), u)
    assert torch.isfinite(gradient).all()
    # Each parameter's numbers lie next to each other in u, in the order of `shapes`.
    parts = gradient.flatten(2).split([shape.numel() for shape in built.shapes.values()], dim=-1)
    assert all(part.ne(0).any() for part in parts)


@pytest.mark.parametrize("name", sorted(PRESENT & ELEMENTWISE.keys()))
def test_elementwise_an_image_stays_an_image(name: str) -> None:
    built = family(name, 2, 4, 3)
    assert built.unconstrained_shape == (2 * ELEMENTWISE[name], 4, 3)
    assert built.event_dims == 3
    # Whatever belongs to one element of the image belongs to no other: changing its numbers moves its density alone.
    u = torch.zeros(built.unconstrained_shape)
    value = built(u).sample()
    moved = u.reshape(-1, 2, 4, 3).clone()
    moved[:, 1, 2, 0] += torch.linspace(0.1, 0.4, ELEMENTWISE[name])  # uneven, as a softmax sees no common shift
    change = built(moved.reshape(u.shape)).log_prob(value) - built(u).log_prob(value)
    assert change.shape == (2, 4, 3)
    assert change[1, 2, 0] != 0
    assert change.count_nonzero() == 1


@pytest.mark.parametrize("name", sorted(PRESENT & JOINT.keys()))
def test_joint_numbers_are_one_flat_axis(name: str) -> None:
    built = family(name, 3, 3) if name in MATRICES else family(name, 3)
    assert built.unconstrained_shape == (JOINT[name],)
    assert built.event_dims == 0


def test_a_joint_distribution_repeats_over_leading_axes_of_the_event() -> None:
    built = Family((4, 3), dist.Dirichlet)
    assert (built.unconstrained_shape, built.event_dims) == ((12,), 1)
    u = torch.randn(12)
    value = torch.full((4, 3), 1 / 3)
    rows = torch.stack([dist.Dirichlet(torch.nn.functional.softplus(row)).log_prob(value[0]) for row in u.view(4, 3)])
    torch.testing.assert_close(built(u).log_prob(value), rows)


# The densities are the ones of the textbook.

SCIPY: dict[str, Callable[..., Any]] = {
    "Bernoulli": lambda u: scipy.stats.bernoulli(scipy.special.expit(u[0])),
    "Poisson": lambda u: scipy.stats.poisson(np.logaddexp(0, u[0])),
    "Gamma": lambda u: scipy.stats.gamma(np.logaddexp(0, u[0]), scale=1 / np.logaddexp(0, u[1])),
    "Beta": lambda u: scipy.stats.beta(np.logaddexp(0, u[0]), np.logaddexp(0, u[1])),
    "Laplace": lambda u: scipy.stats.laplace(u[0], np.logaddexp(0, u[1])),
    "Normal": lambda u: scipy.stats.norm(u[0], np.logaddexp(0, u[1])),
}


def scored(value: np.ndarray, frozen: Any) -> np.ndarray:
    return frozen.logpmf(value) if hasattr(frozen.dist, "logpmf") else frozen.logpdf(value)


@pytest.mark.parametrize("name", SCIPY)
def test_densities_agree_with_scipy(name: str) -> None:
    built = Family((3,), getattr(dist, name))
    u = torch.randn(5, *built.unconstrained_shape)
    value = built(u).sample()
    expected = scored(value.numpy(), SCIPY[name](u.double().view(5, -1, 3).numpy().swapaxes(0, 1)))
    np.testing.assert_allclose(built(u).log_prob(value).numpy(), expected, rtol=1e-5, atol=1e-5)


def softplus(u: Tensor | float) -> np.ndarray:
    return np.logaddexp(0, np.asarray(u, dtype=float))


@pytest.mark.parametrize(
    ("scale", "numbers", "learned"),
    [("predicted", 6, None), ("learned", 3, ()), ("learned_each", 3, (3,)), (0.25, 3, None)],
)
def test_normal_scales(scale: Any, numbers: int, learned: tuple[int, ...] | None) -> None:
    built = Normal((3,), scale=scale, min_scale=0.1)
    assert built.unconstrained_shape == (numbers,)
    trained = [*built.parameters()]
    assert [tuple(parameter.shape) for parameter in trained] == ([] if learned is None else [learned])
    with torch.no_grad():
        for parameter in trained:
            parameter.copy_(torch.linspace(-1, 1, max(1, parameter.numel())).view(parameter.shape))
    u, value = torch.randn(7, numbers), torch.randn(7, 3)
    deviation = {
        "predicted": 0.1 + softplus(u[:, -3:]),
        "learned": 0.1 + softplus(-1.0),
        "learned_each": 0.1 + softplus([-1.0, 0.0, 1.0]),
    }.get(scale, 0.25)
    expected = scipy.stats.norm(u[:, :3].numpy(), deviation).logpdf(value.numpy())
    log_prob = built(u).log_prob(value)
    np.testing.assert_allclose(log_prob.detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    for parameter in trained:
        (gradient,) = torch.autograd.grad(log_prob.sum(), parameter)
        assert gradient.ne(0).all()


@pytest.mark.parametrize("scale", ["predicted", "learned", "learned_each"])
def test_min_scale_is_a_hard_floor(scale: Any) -> None:
    built = Normal((3,), scale=scale, min_scale=0.1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.fill_(-1e4)
    deviation = built(torch.full(built.unconstrained_shape, -1e4)).stddev
    assert (deviation >= 0.1).all()
    torch.testing.assert_close(deviation, torch.full_like(deviation, 0.1))


def test_components_are_pyro_s_distributions() -> None:
    assert issubclass(Bernoulli((3,)).distribution, dist.Bernoulli)
    named = named_by_class("RelaxedBernoulli").target((3,), temperature=0.25)
    torch.testing.assert_close(named(torch.zeros(3)).temperature, torch.tensor(0.25))
    assert str(named) == "RelaxedBernoulli(logits, temperature=0.25)"


# The catalogue by name. Each family over one element, from the numbers u (float64), as SciPy or a closed form has it.

LEVEL = 1e-3  # of the tests of draws, which are seeded
N = 20_000
SIGMOID, LOGIT = scipy.special.expit, scipy.special.logit


def bounded(u: float, ceiling: float = 1e3, floor: float = 1e-6) -> Any:
    return floor + softplus(u) / (1 + softplus(u) / ceiling)


@dataclass
class Mapped:
    """x = into(y), y ~ base, `out` its inverse and `slope` log |out'(x)|."""

    base: Any
    into: Callable[[Any], Any]
    out: Callable[[Any], Any]
    slope: Callable[[Any], Any]

    def logpdf(self, x: Any) -> Any:
        return self.base.logpdf(self.out(x)) + self.slope(x)

    def cdf(self, x: Any) -> Any:
        return self.base.cdf(self.out(x))

    def moment(self, order: int) -> float:
        return scipy.integrate.quad(lambda y: self.into(y) ** order * self.base.pdf(y), -40, 40, limit=500)[0]


@dataclass
class ZeroInflated:
    base: Any
    gate: float

    def logpmf(self, x: Any) -> Any:
        zero = np.where(x == 0, np.log(self.gate), -np.inf)
        return np.logaddexp(np.log1p(-self.gate) + self.base.logpmf(x), zero)


@dataclass
class Bernoullis:
    """The continuous Bernoulli far from u = 0."""

    u: float

    def logpdf(self, x: Any) -> Any:
        return self.u * x + np.log(self.u / np.expm1(self.u))

    def cdf(self, x: Any) -> Any:
        return np.expm1(self.u * x) / np.expm1(self.u)

    def moment(self, order: int) -> float:
        return scipy.integrate.quad(lambda x: x**order * np.exp(self.logpdf(x)), 0, 1)[0]


@dataclass
class Case:
    """A named family over one element: its options, the numbers u, the truth, and the ends of its support."""

    options: dict[str, Any]
    u: list[float]
    truth: Callable[..., Any]
    ends: tuple[float, float] = (-math.inf, math.inf)


def relaxed(u: float) -> Mapped:
    return Mapped(scipy.stats.logistic(u / 0.7, 1 / 0.7), SIGMOID, LOGIT, lambda x: -np.log(x) - np.log1p(-x))


def positive(u: float, v: float) -> Mapped:
    out: Callable[[Any], Any] = lambda x: np.log(np.expm1(x))  # noqa: E731
    return Mapped(scipy.stats.norm(u, 1e-3 + softplus(v)), softplus, out, lambda x: -np.log(-np.expm1(-x)))


def interval(u: float, v: float) -> Mapped:
    laplace = scipy.stats.laplace(u, 1e-3 + softplus(v))
    return Mapped(laplace, SIGMOID, LOGIT, lambda x: -np.log(x) - np.log1p(-x))


HALF, UNIT = (0, math.inf), (0, 1)
CONTINUOUS = {
    "continuous_bernoulli": Case({}, [1.3], Bernoullis, UNIT),
    "normal": Case({}, [0.4, -0.3], lambda u, v: scipy.stats.norm(u, 1e-3 + softplus(v))),
    "laplace": Case({}, [0.4, -0.3], lambda u, v: scipy.stats.laplace(u, 1e-3 + softplus(v))),
    "laplace known": Case({"scale": 0.3}, [0.4], lambda u: scipy.stats.laplace(u, 0.3)),
    "student_t": Case(
        {"min_df": 6.0}, [0.9, 0.4, -0.3], lambda d, u, v: scipy.stats.t(6 + softplus(d), u, 1e-3 + softplus(v))
    ),
    "student_t known": Case({"df": 5.0}, [0.4, -0.3], lambda u, v: scipy.stats.t(5, u, 1e-3 + softplus(v))),
    "log_normal": Case({}, [0.2, -1.0], lambda u, v: scipy.stats.lognorm(s=1e-3 + softplus(v), scale=np.exp(u)), HALF),
    "exponential": Case({"max_rate": 5.0}, [0.7], lambda u: scipy.stats.expon(scale=1 / bounded(u, 5)), HALF),
    "gamma": Case(
        {"max_concentration": 5.0},
        [2.0, 0.3],
        lambda c, r: scipy.stats.gamma(bounded(c, 5), scale=1 / (softplus(r) + 1e-6)),
        HALF,
    ),
    "gamma known": Case(
        {"concentration": 2.5}, [0.3], lambda r: scipy.stats.gamma(2.5, scale=1 / (softplus(r) + 1e-6)), HALF
    ),
    "beta": Case({}, [2.0, 1.3], lambda a, b: scipy.stats.beta(bounded(a), bounded(b)), UNIT),
    "relaxed_bernoulli": Case({"temperature": 0.7}, [0.6], relaxed, UNIT),
    "mapped": Case({"onto": "positive"}, [0.4, -0.3], positive, HALF),
    "mapped laplace": Case({"onto": "unit_interval", "family": "laplace"}, [0.4, -0.3], interval, UNIT),
    "Gumbel": Case({}, [0.4, -0.3], lambda u, v: scipy.stats.gumbel_r(u, softplus(v))),
}
COUNTS = {
    "bernoulli": Case({}, [0.4], lambda u: scipy.stats.bernoulli(SIGMOID(u))),
    "poisson": Case({}, [1.4], lambda u: scipy.stats.poisson(softplus(u) + 1e-6)),
    "negative_binomial": Case({}, [1.4, 0.3], lambda r, u: scipy.stats.nbinom(softplus(r) + 1e-6, SIGMOID(-u))),
    "negative_binomial known": Case({"total_count": 2.5}, [0.3], lambda u: scipy.stats.nbinom(2.5, SIGMOID(-u))),
    "zero_inflated_poisson": Case(
        {}, [1.4, -0.3], lambda u, g: ZeroInflated(scipy.stats.poisson(softplus(u) + 1e-6), SIGMOID(g))
    ),
    "zero_inflated_negative_binomial": Case(
        {},
        [1.4, 0.3, -0.3],
        lambda r, u, g: ZeroInflated(scipy.stats.nbinom(softplus(r) + 1e-6, SIGMOID(-u)), SIGMOID(g)),
    ),
}
LEVELLED = {"categorical": {"levels": 5}, "discretized_logistic": {"levels": 5, "components": 3}}
VECTORS: dict[str, dict[str, Any]] = {
    "one_hot_categorical": {}, "relaxed_one_hot_categorical": {"temperature": 0.7},
    "multivariate_normal": {}, "low_rank_normal": {"rank": 2},
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {"zero_one_inflated": {}}
OPTIONS: dict[str, dict[str, Any]] = {
    **{key: case.options for key, case in (CONTINUOUS | COUNTS).items() if key.islower() and " " not in key},
    **LEVELLED, **VECTORS, **OTHERS,
}  # fmt: skip
FLOWS = {"iaf", "coupling", "spline", "planar"}


def named(name: str, *shape: int, **options: Any) -> Family:
    """A family by its name, from where it is registered."""
    kind = "likelihood" if name in registered("likelihood") else "posterior"
    options = options or OPTIONS.get(name, {})
    return build(kind, {name: options} if options else name, event_shape=shape, label_dim=0)


def one(key: str) -> tuple[Family, Case]:
    case = (CONTINUOUS | COUNTS)[key]
    return named(key.partition(" ")[0], 1, **case.options), case


def u_of(case: Case) -> Tensor:
    return torch.tensor(case.u, dtype=torch.float64)


def test_every_named_family_is_tested_here() -> None:
    for kind in ("likelihood", "posterior"):
        assert {name for name in registered(kind) if name.islower()} - {"columns"} <= OPTIONS.keys() | FLOWS


@pytest.mark.parametrize("key", CONTINUOUS)
def test_a_density_is_the_textbook_s_and_its_draws_follow_it(key: str) -> None:
    built, case = one(key)
    truth, distribution = case.truth(*case.u), built(u_of(case))
    draws = distribution.sample(torch.Size([N]))
    expected = truth.logpdf(draws.numpy())
    np.testing.assert_allclose(built(u_of(case)).log_prob(draws).numpy(), expected, rtol=1e-6, atol=1e-6)
    assert scipy.stats.kstest(draws[:, 0].numpy(), truth.cdf).pvalue > LEVEL
    assert built.measure == "density"

    def density(x: float) -> float:
        return built(u_of(case)).log_prob(torch.tensor([x], dtype=torch.float64)).exp().item()

    middle = draws.median().item()
    halves = [scipy.integrate.quad(density, *ends) for ends in ((case.ends[0], middle), (middle, case.ends[1]))]
    assert sum(value for value, _ in halves) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("key", COUNTS)
def test_a_mass_is_the_textbook_s_and_its_draws_follow_it(key: str) -> None:
    built, case = one(key)
    x = np.arange(2 if key == "bernoulli" else 400)
    mass = built(u_of(case)).log_prob(torch.tensor(x, dtype=torch.float64).unsqueeze(-1))[:, 0].numpy()
    np.testing.assert_allclose(mass, case.truth(*case.u).logpmf(x), rtol=1e-6, atol=1e-6)
    assert np.exp(mass).sum() == pytest.approx(1, abs=1e-6)
    assert built(u_of(case)).mean.item() == pytest.approx((np.exp(mass) * x).sum(), rel=1e-5)
    top = min(8, len(x) - 1)
    counts = built(u_of(case)).sample(torch.Size([N]))[:, 0].long().clamp(max=top).bincount(minlength=top + 1)
    expected = np.append(np.exp(mass)[:top], np.exp(mass)[top:].sum())
    assert scipy.stats.chisquare(counts, N * expected / expected.sum()).pvalue > LEVEL
    assert built.measure == "mass"


def slopes(function: Callable[[np.ndarray], float], u: list[float], step: float = 1e-4) -> list[float]:
    """Central differences."""
    ahead, behind = np.array(u) + step * np.eye(len(u)), np.array(u) - step * np.eye(len(u))
    return [(function(a) - function(b)) / (2 * step) for a, b in zip(ahead, behind, strict=True)]


def follows(draws: Callable[[Tensor], Tensor], truth: Callable[[np.ndarray], float], u: list[float]) -> None:
    """The mean over draws of the gradients along their paths is that of the true expectation, within 4.5 errors."""
    numbers = torch.tensor(u, dtype=torch.float64).expand(N, -1).clone().requires_grad_()
    (paths,) = torch.autograd.grad(draws(numbers).sum(), numbers)
    error = paths.std(0) / N**0.5
    assert ((paths.mean(0) - torch.tensor(slopes(truth, u))).abs() < 4.5 * error + 1e-6).all()


@pytest.mark.parametrize("key", CONTINUOUS)
@pytest.mark.parametrize("order", [1, 2])
def test_pathwise_gradients_of_moments(key: str, order: int) -> None:
    built, case = one(key)
    assert built(u_of(case)).has_rsample

    def moment(u: np.ndarray) -> float:
        truth = case.truth(*u)
        return float(truth.moment(order))

    follows(lambda u: built(u).rsample() ** order, moment, case.u)


def covariance(name: str, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance over (3,)."""
    loc, rest = u[:3], u[3:]
    if name == "multivariate_normal":
        square = rest.reshape(3, 3)
        tril = np.tril(square, -1) + np.diag(softplus(np.diag(square)) + 1e-3)
        return loc, tril @ tril.T
    factor = rest[:6].reshape(3, 2)
    return loc, factor @ factor.T + np.diag(softplus(rest[6:]) + 1e-4)


@pytest.mark.parametrize("name", ["multivariate_normal", "low_rank_normal"])
def test_joint_normals(name: str) -> None:
    built = named(name, 3)
    u = torch.randn(*built.unconstrained_shape, dtype=torch.float64)
    loc, cov = covariance(name, u.numpy())
    draws = built(u).sample(torch.Size([N]))
    truth = scipy.stats.multivariate_normal(loc, cov)
    np.testing.assert_allclose(built(u).log_prob(draws).numpy(), truth.logpdf(draws.numpy()), rtol=1e-6, atol=1e-6)
    # Whitened draws have squared lengths of a chi-square with three degrees of freedom.
    lengths = ((draws.numpy() - loc) @ np.linalg.inv(cov) * (draws.numpy() - loc)).sum(-1)
    assert scipy.stats.kstest(lengths, scipy.stats.chi2(3).cdf).pvalue > LEVEL
    assert (abs(draws.numpy().mean(0) - loc) < 4.5 * np.sqrt(np.diag(cov) / N)).all()
    a = np.array([1.0, -0.5, 2.0])

    def moment(u: np.ndarray) -> float:
        loc, cov = covariance(name, u)
        return a @ cov @ a + (a @ loc) ** 2

    follows(lambda u: (built(u).rsample() @ torch.tensor(a)) ** 2, moment, u.tolist())


def test_relaxed_one_hot_density_and_paths() -> None:
    """Gamma(K) T^(K-1) prod_k (a_k x_k^(-T-1)) / (sum_k a_k x_k^-T)^K; over two classes it is relaxed_bernoulli."""
    built, u = named("relaxed_one_hot_categorical", 3), torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    x, t = built(u).sample(torch.Size([50])).numpy(), 0.7
    weights = np.exp(u.numpy()) * x**-t
    expected = np.log(2) + 2 * np.log(t) + (np.log(weights) - np.log(x)).sum(-1) - 3 * np.log(weights.sum(-1))
    np.testing.assert_allclose(built(u).log_prob(torch.tensor(x)).numpy(), expected, rtol=1e-6, atol=1e-6)
    pair = named("relaxed_one_hot_categorical", 2)
    draws = pair(torch.tensor([0.6, 0.0])).sample(torch.Size([N]))[:, 0].numpy()
    assert scipy.stats.kstest(draws, relaxed(0.6).cdf).pvalue > LEVEL
    follows(lambda u: pair(u).rsample()[:, 0] ** 2, lambda u: relaxed(u[0] - u[1]).moment(2), [0.6, 0.0])


@pytest.mark.parametrize("name", LEVELLED)
def test_levels_sum_to_one(name: str) -> None:
    built = named(name, 2, 3)
    assert built.unconstrained_shape == ({"categorical": 5, "discretized_logistic": 9}[name] * 2, 3)
    distribution = built(torch.randn(built.unconstrained_shape, dtype=torch.float64))
    total = sum(distribution.log_prob(torch.full((2, 3), k / 4, dtype=torch.float64)).exp() for k in range(5))
    torch.testing.assert_close(total, torch.ones(2, 3, dtype=torch.float64))
    assert built.measure == "mass"


def test_one_logistic_has_no_weight_among_its_numbers() -> None:
    assert named("discretized_logistic", 4, levels=17).unconstrained_shape == (8,)
    assert str(named("discretized_logistic", 4, levels=17)) == "DiscretizedLogistic(loc, scale, levels=17)"


def test_zero_one_inflated_numbers_and_measure() -> None:
    assert named("zero_one_inflated", 4).unconstrained_shape == (20,)
    uniform = named("zero_one_inflated", 4, between="uniform")
    assert uniform.unconstrained_shape == (12,)
    assert uniform.measure == "mixed (mass at 0 and 1, density between)"
    value = torch.tensor([0.0, 0.3, 0.9, 1.0])
    torch.testing.assert_close(uniform(torch.zeros(12)).log_prob(value), torch.full((4,), -math.log(3)))


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_leading_dimensions_and_extreme_numbers(name: str) -> None:
    built = named(name, 3)
    zeros = torch.zeros(2, 5, *built.unconstrained_shape)
    distribution = built(zeros).to_event(built.event_dims)
    value = distribution.sample()
    assert value.shape == (2, 5, 3)
    assert distribution.log_prob(value).shape == (2, 5)
    assert "mass" in built.measure or not distribution.support.is_discrete
    if name in registered("likelihood"):
        assert distribution.mean.shape == (2, 5, 3)
        assert torch.isfinite(distribution.mean).all()
    mixed = torch.where(torch.rand(zeros.shape) < 0.5, -30.0, 30.0)
    for extreme in (zeros - 30, zeros - 10, zeros + 10, zeros + 30, mixed):
        u = extreme.clone().requires_grad_()
        log_prob = built(u).log_prob(value)
        (gradient,) = torch.autograd.grad(log_prob.sum(), u)
        assert torch.isfinite(log_prob).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("onto", ["positive", "unit_interval"])
def test_mapped_keeps_events_and_scores_draws_that_round(onto: str) -> None:
    whole = build("posterior", {"mapped": {"onto": onto, "family": "multivariate_normal"}}, event_shape=(3,))
    assert (whole.event_dims, whole.unconstrained_shape) == (0, (12,))
    draws = whole(torch.randn(2, 5, 12)).rsample()
    assert whole(torch.randn(2, 5, 12)).log_prob(draws).shape == (2, 5)
    elementwise = build("posterior", {"mapped": {"onto": onto}}, event_shape=(3,))
    for far in (-300.0, 300.0):
        distribution = elementwise(torch.full((6,), far))
        value = distribution.rsample()
        assert distribution.support.check(value).all()
        assert torch.isfinite(elementwise(torch.full((6,), far)).log_prob(value)).all()
    assert not build("posterior", {"mapped": {"onto": onto, "family": "planar"}}, event_shape=(3,)).scores_any_value
    with pytest.raises(InputError, match="mapped takes a family over real numbers, but Gamma"):
        build("posterior", {"mapped": {"onto": onto, "family": "gamma"}}, event_shape=(3,))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("laplace", {"scale": -1.0}, "laplace.scale was given -1.0"),
        ("student_t", {"df": 0.5}, "student_t.df was given 0.5: .*greater than 1"),
        ("zero_one_inflated", {"between": "normal"}, "zero_one_inflated.between was given 'normal'"),
        ("categorical", {"levels": 1}, "categorical.levels was given 1"),
        ("low_rank_normal", {"rank": 0}, "low_rank_normal.rank was given 0"),
        ("gamma", {"concentration": "learned", "rate": 2.0}, "Gamma cannot be .* none comes from the network"),
        ("RelaxedBernoulli", {}, "needs the option 'temperature'"),
        ("Gumbel", {"scal": 1.0}, "Gumbel has no option 'scal'.*did you mean 'scale'"),
        ("Gumbel", {"scale": -1.0}, r"Gumbel cannot be a family over \(3,\): .*GreaterThan"),
        ("Categorical", {}, "declare the size of the last axis of 'logits' with axes: {logits: SIZE}"),
    ],
)
def test_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("likelihood", {name: options}, event_shape=(3,))


@pytest.mark.parametrize("name", ["normal", "laplace", "log_normal"])
def test_a_learned_scale_says_when_it_has_reached_its_floor(name: str) -> None:
    built = named(name, 3, scale="learned_each", min_scale=0.1)
    assert not built.at_floor()
    with torch.no_grad():
        built.learned["scale"][1] = math.log(math.expm1(0.0009))
    assert built.at_floor()
    with torch.no_grad():
        built.learned["scale"][1] = math.log(math.expm1(0.0011))
    assert not built.at_floor()
    assert not named(name, 3).at_floor()


def test_measures_and_what_can_be_scored() -> None:
    alone = {name for name in registered("likelihood") if name.islower() and name != "columns"}
    masses = {name for name in alone if named(name, 3).measure == "mass"}
    assert masses == {*COUNTS, *LEVELLED, "one_hot_categorical"} - {"negative_binomial known"}
    assert Family.scores_any_value
    assert not registered("posterior")["planar"].target.scores_any_value  # type: ignore[attr-defined]


# The catalogue by the names of Pyro's classes.

# Without a mean in Pyro, or without one at all; Stable has one where its stability is above 1.
NO_MEAN = {
    "Categorical", "Cauchy", "HalfCauchy", "LKJCholesky", "OrderedLogistic", "RelaxedBernoulli",
    "RelaxedBernoulliStraightThrough", "RelaxedOneHotCategorical", "RelaxedOneHotCategoricalStraightThrough",
    "SkewLogistic",
}  # fmt: skip


def test_what_is_declared_by_class_is_what_can_be_built() -> None:
    assert sorted(BY_CLASS) == sorted({*ELEMENTWISE, *JOINT})
    assert {name for name in registered("likelihood") if not name.islower()} == PRESENT & {*BY_CLASS}
    pathwise = {name for name in PRESENT & {*BY_CLASS} if getattr(dist, name).has_rsample is True}
    # What rounds its draws but scores them unrounded is no density of a latent.
    pathwise -= {"RelaxedBernoulliStraightThrough", "RelaxedOneHotCategoricalStraightThrough"}
    assert {name for name in registered("posterior") if not name.islower()} == pathwise


@pytest.mark.parametrize("name", BUILT)
def test_by_class(name: str) -> None:
    """Its options are Pyro's parameters; its mean is finite, unless Pyro gives nan, infinity or NotImplementedError."""
    entry = registered("likelihood")[name]
    shape = (3, 3) if name in MATRICES else (3,)
    options: dict[str, Any] = {key: CONSTANTS[key] for key in entry.options if key in CONSTANTS}
    if name in AXES:
        options["axes"] = AXES[name]
    built = build("likelihood", {name: options}, event_shape=shape)
    assert entry.options.keys() <= {"axes", *inspect.signature(getattr(dist, name)).parameters}
    assert built.declaration == ({name: options} if options else name)
    u = torch.full(built.unconstrained_shape, 3.0)  # enough degrees of freedom for those that need some
    try:
        finite = bool(torch.isfinite(built(u + 0.1 * torch.rand(u.shape)).mean).all())
    except NotImplementedError:
        finite = False
    assert finite == (name not in NO_MEAN)


def test_by_class_takes_numbers_and_lists() -> None:
    built = build("likelihood", {"Gumbel": {"scale": [0.5, 1.0, 2.0]}}, event_shape=(3,))
    assert built.unconstrained_shape == (3,)
    torch.testing.assert_close(built(torch.zeros(2, 3)).scale[0], torch.tensor([0.5, 1.0, 2.0]))


@pytest.mark.parametrize(
    ("options", "scale"),
    [({}, math.log1p(math.exp(0.8))), ({"scale_by": "log_scale"}, math.exp(0.8)),
     ({"scale_by": "log_variance"}, math.exp(0.4)), ({"precision": "predicted"}, math.log1p(math.exp(0.8)) ** -0.5),
     ({"precision": 4.0}, 0.5)],
)  # fmt: skip
def test_scales_of_normals_are_declared_by_what_their_number_is(options: dict[str, Any], scale: float) -> None:
    built = Normal((2,), min_scale=0.1, **options)
    found = built(torch.full((1, *built.unconstrained_shape), 0.8)).scale
    floor = 0.0 if options == {"precision": 4.0} else 0.1
    torch.testing.assert_close(found, torch.full((1, 2), scale + floor), rtol=1e-5, atol=0)
    if options.get("scale_by"):
        learned = Normal((2,), scale="learned", **options)
        torch.testing.assert_close(learned(torch.zeros(1, 2)).scale, torch.full((1, 2), 1.001))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"precision": 1.0, "scale": 2.0}, "has a scale or a precision"),
     ({"precision": "learned", "scale_by": "log_scale"}, "has a scale or a precision"),
     ({"scale_by": "log_variance", "scale": 2.0}, "but the scale is known, 2")],
)  # fmt: skip
def test_scales_that_are_declared_twice_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Normal((2,), **options)
