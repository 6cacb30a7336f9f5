"""Masks: what is not observed is left out of the likelihood, whatever stands in its place."""

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrolatent import VAE, Family, InputError
from pyrolatent.inference.objectives.bounds import ELBO, AnalyticELBO
from pyrolatent.inference.weights import weigh
from pyrolatent.models.components.conditional import filled, masked

MASK = torch.tensor([[True, False, True, True], [False, False, True, False], [True] * 4, [False] * 4])
LIKELIHOODS: dict[str, dict[str, Any]] = {
    "Bernoulli": {},
    "Normal": {},
    "Gamma": {},
    "Beta": {},
    "Poisson": {},
    "Geometric": {},
    "VonMises": {},
    "Categorical": {"axes": {"logits": 3}},
    "Binomial": {"constants": {"total_count": 3}},
}


def family(name: str) -> Family:
    return Family((4,), getattr(dist, name), **LIKELIHOODS[name])


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_masked_is_the_sum_over_what_is_observed(name: str) -> None:
    built = family(name)
    elementwise = built(torch.randn(4, *built.unconstrained_shape))
    x = elementwise.sample()
    part = masked(elementwise.to_event(1), MASK)
    terms = elementwise.log_prob(x)
    torch.testing.assert_close(
        part.log_prob(x), torch.stack([row[m].sum() for row, m in zip(terms, MASK, strict=True)])
    )
    assert (part.batch_shape, part.event_shape) == ((4,), (4,))


def test_no_mask_leaves_the_distribution_and_the_data_as_they_are() -> None:
    distribution, x = dist.Normal(torch.zeros(4, 4), 1.0).to_event(1), torch.randn(4, 4)
    assert masked(distribution, None) is distribution
    assert filled(x, None, distribution.support) is x


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_what_fills_the_gaps_is_in_the_support(name: str) -> None:
    built = family(name)
    elementwise = built(torch.randn(4, *built.unconstrained_shape))
    x = elementwise.sample()
    whole = filled(torch.where(MASK, x, torch.nan), MASK, elementwise.to_event(1).support)
    assert elementwise.support.check(whole).all()
    assert torch.equal(whole[MASK], x[MASK])


@pytest.mark.parametrize(
    ("event_shape", "distribution"),
    [
        ((4,), dist.MultivariateNormal),
        ((4,), dist.Dirichlet),
        ((2, 2), dist.OneHotCategorical),
    ],
)
def test_a_likelihood_that_does_not_factorise_refuses_a_mask(
    event_shape: tuple[int, ...], distribution: type[dist.TorchDistribution]
) -> None:
    model = VAE(event_shape, latent_dim=2, likelihood=Family(event_shape, distribution))
    x = model.decode(torch.zeros(3, 2)).sample()
    mask = torch.ones_like(x, dtype=torch.bool)
    weigh(model.generate, model.infer, x)
    with pytest.raises(InputError, match=f"{distribution.__name__} does not factorise over its elements"):
        weigh(model.generate, model.infer, x, None, mask)


def bound_and_gradient(
    model: VAE, objective: ELBO | AnalyticELBO, x: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    bound = objective.bound(objective.weigh(model.generate, model.infer, x, None, mask))
    gradients = torch.autograd.grad(bound.sum(), [*model.parameters()])
    return bound.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("objective", [ELBO(particles=3), AnalyticELBO(particles=3)])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_what_stands_behind_a_mask_does_not_matter(name: str, objective: ELBO | AnalyticELBO) -> None:
    """NaN there changes neither the bound nor any gradient, bit for bit."""
    model = VAE((4,), latent_dim=2, likelihood=family(name))
    x = model.decode(torch.zeros(4, 2)).sample()
    bound, gradient = bound_and_gradient(model, objective, x, MASK)
    assert torch.isfinite(bound).all()
    assert torch.isfinite(gradient).all()
    assert gradient.ne(0).any()
    for filling in (torch.nan, torch.inf, -7.5):
        other = bound_and_gradient(model, objective, torch.where(MASK, x, filling), MASK)
        assert torch.equal(bound, other[0])
        assert torch.equal(gradient, other[1])


def test_a_full_mask_is_no_mask_and_an_empty_one_leaves_the_prior() -> None:
    model = VAE((4,), latent_dim=2, likelihood="normal")
    x = torch.randn(4, 4)
    everything, nothing = torch.ones_like(MASK), torch.zeros_like(MASK)
    objective = AnalyticELBO(particles=3)
    for one, other in zip(
        bound_and_gradient(model, objective, x, None), bound_and_gradient(model, objective, x, everything), strict=True
    ):
        torch.testing.assert_close(one, other)
    weights = weigh(model.generate, model.infer, x, None, nothing, particles=3)
    assert torch.equal(weights.log_likelihood, torch.zeros(3, 4))
