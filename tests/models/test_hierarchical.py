"""Models with several layers of normals: their sites, and that both directions are the products that they state."""

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyrolatent import Data, InputError, fit, sample
from pyrolatent.inference.weights import weigh
from pyrolatent.models import HierarchicalVAE
from pyrolatent.models.hierarchical import joined

EVENT = (6,)
SMALL: Any = {"mlp": {"hidden": [8]}}
NETWORKS = {"encoder": SMALL, "decoder": SMALL, "between": SMALL}
X = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0], [0, 1, 0, 0, 1, 1.0]])
DIRECTIONS = pytest.mark.parametrize("inference", ["bottom_up", "top_down"])


def hierarchical(inference: Any, **options: Any) -> HierarchicalVAE:
    return HierarchicalVAE(EVENT, latent_dims=(3, 2, 2), inference=inference, width=8, **NETWORKS, **options)


@DIRECTIONS
@pytest.mark.parametrize(("particles", "batch"), [(1, 1), (5, 4)])
def test_sites_and_their_shapes(inference: str, particles: int, batch: int) -> None:
    model, x = hierarchical(inference), X[:batch]
    weights = weigh(model.generate, model.infer, x, particles=particles)
    shapes = {site: tuple(value.shape) for site, value in weights.latents.items()}
    assert shapes == {f"z{level}": (particles, batch, dim) for level, dim in ((1, 3), (2, 2), (3, 2))}
    assert weights.log_weights().shape == (particles, batch)
    assert {site: q.event_shape for site, q in model.encode(x).items()} == {"z1": (3,), "z2": (2,), "z3": (2,)}
    assert model.decode({site: value[0] for site, value in weights.latents.items()}).mean.shape == (batch, *EVENT)
    assert sample(model, 3).shape == (3, *EVENT)


@DIRECTIONS
def test_the_weights_are_the_product_of_the_layers(inference: str) -> None:
    """p(z3) p(z2 | z3) p(z1 | z2) p(x | z1), with each part of the model called by itself."""
    model = hierarchical(inference)
    weights = weigh(model.generate, model.infer, X, particles=3)
    z1, z2, z3 = (weights.latents[f"z{level}"] for level in (1, 2, 3))
    prior = model.prior().log_prob(z3) + model.layers[1](z3).log_prob(z2) + model.layers[0](z2).log_prob(z1)
    posterior = sum(
        weights.guide_trace.nodes[f"z{level}"]["fn"].log_prob(z) for level, z in ((1, z1), (2, z2), (3, z3))
    )
    torch.testing.assert_close(weights.log_weights(), prior + model.likelihood(z1).log_prob(X) - posterior)
    if inference == "bottom_up":
        q1, q2, q3 = model.upwards
        torch.testing.assert_close(q1(X).log_prob(z1) + q2(z1).log_prob(z2) + q3(z2).log_prob(z3), posterior)


def test_joined_is_the_normalised_product_of_two_normals() -> None:
    """N1 N2 differs from it by a constant; that of N(0, 1) N(3, 1 / 4) has the mean 12 / 5 and the variance 1 / 5."""
    z = torch.linspace(-3, 3, 50).double()
    first, second = dist.Normal(torch.tensor(0.0).double(), 1.0), dist.Normal(torch.tensor(3.0).double(), 0.5)
    product = joined(first, second)
    assert product.mean.item() == pytest.approx(12 / 5)
    assert product.stddev.item() == pytest.approx(5**-0.5)
    ratio = first.log_prob(z) + second.log_prob(z) - product.log_prob(z)
    torch.testing.assert_close(ratio, ratio[:1].expand(50))


def test_the_ladder_joins_its_proposals_with_the_prior() -> None:
    model: Any = hierarchical("top_down")
    guide: Any = poutine.trace(model.infer).get_trace(X)
    hidden, proposals = X, []
    for rung in model.posterior:
        hidden = torch.relu(rung.network(hidden))
        loc, scale = rung.head(hidden).chunk(2, -1)
        proposals.append(dist.Normal(loc, 1e-3 + torch.nn.functional.softplus(scale)))
    q3 = guide.nodes["z3"]["fn"].base_dist
    torch.testing.assert_close((q3.loc, q3.scale), (proposals[2].loc, proposals[2].scale))
    for level in (2, 1):
        q, above = guide.nodes[f"z{level}"]["fn"].base_dist, guide.nodes[f"z{level + 1}"]["value"]
        expected = joined(proposals[level - 1], model.layers[level - 1](above).base_dist)
        torch.testing.assert_close((q.loc, q.scale), (expected.loc, expected.scale))


@DIRECTIONS
def test_hierarchies_train(inference: str, binary_data: Data) -> None:
    model = hierarchical(inference)
    history = fit(
        model, binary_data, progress=False, epochs=30, optimizer={"Adam": {"lr": 0.02}}, batch_size=16
    ).history
    assert history[-1]["validation_elbo"] > history[0]["validation_elbo"] + 0.3


def test_a_ladder_below_a_prior_over_another_set_is_refused(binary_data: Data) -> None:
    with pytest.raises(
        InputError, match="prior of z3 is over positive numbers, but its posterior is over real numbers"
    ):
        fit(hierarchical("top_down", prior="exponential"), binary_data, progress=False, epochs=1)


@pytest.mark.parametrize("inference", ["bottom_up", "top_down"])
def test_the_analytic_bound_of_normal_layers_has_the_mean_of_the_bound(inference: str) -> None:
    """At the same draws, the mean difference within four standard errors of 4,000."""
    model = hierarchical(inference)
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape)
    weights = weigh(model.generate, model.infer, X, particles=4000)
    difference = sum(weights.kl.values()) - sum(weights.log_posterior[z] - weights.log_prior[z] for z in weights.kl)
    assert (difference.mean(0).abs() < 4 * difference.std(0) / 4000**0.5).all()
