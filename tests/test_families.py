"""Families: which of Pyro's distributions can be built from unconstrained numbers, and that they are the right ones."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from pyrolatent import Family, InputError
from pyrolatent.models.families import Bernoulli, Normal, named_by_class

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
    "RelaxedBernoulliStraightThrough": 1, "SkewLogistic": 3, "SoftAsymmetricLaplace": 4, "SoftLaplace": 2, "Stable": 4,
    "StableWithLogProb": 4, "StudentT": 3, "VonMises": 2, "Weibull": 2, "ZeroInflatedNegativeBinomial": 2,
    "ZeroInflatedPoisson": 2,
}  # fmt: skip
# ... and with all of its numbers, for those that score the event (3,), or the matrix (3, 3), as a whole.
JOINT = {
    "Dirichlet": 3, "DirichletMultinomial": 3, "LKJ": 1, "LKJCholesky": 1, "LowRankMultivariateNormal": 12,
    "Multinomial": 3, "MultivariateNormal": 12, "MultivariateStudentT": 13, "NanMaskedMultivariateNormal": 12,
    "OneHotCategorical": 3, "OneHotCategoricalStraightThrough": 3, "ProjectedNormal": 3, "RelaxedOneHotCategorical": 3,
    "RelaxedOneHotCategoricalStraightThrough": 3,
}  # fmt: skip
MATRICES = {"LKJ", "LKJCholesky"}
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
    assert Bernoulli((3,)).distribution is dist.Bernoulli
    named = named_by_class("RelaxedBernoulli").target((3,), temperature=0.25)
    torch.testing.assert_close(named(torch.zeros(3)).temperature, torch.tensor(0.25))
    assert str(named) == "RelaxedBernoulli(logits, temperature=0.25)"
