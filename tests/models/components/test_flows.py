"""Flows as posteriors and priors: they are densities, of their own draws, and gradients pass through them.

For z = f(e), e ~ N(loc, scale^2): log q(z) = log N(e; loc, scale^2) - log |det df/de|.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrolatent import VAE, InputError
from pyrolatent.declaration import build, registered
from pyrolatent.inference.objectives.bounds import ELBO
from pyrolatent.inference.weights import weigh
from pyrolatent.models.components.flows import FlowFamily, FlowPrior

DIM = 2


def of_class(kind: str, cls: type) -> list[str]:
    targets = {name: entry.target for name, entry in registered(kind).items()}
    return sorted(name for name, target in targets.items() if isinstance(target, type) and issubclass(target, cls))


POSTERIORS, PRIORS = of_class("posterior", FlowFamily), of_class("prior", FlowPrior)
REVERSIBLE = [name for name in POSTERIORS if registered("posterior")[name].target.scores_any_value]  # type: ignore[attr-defined]
ONLY_OWN_DRAWS = sorted({*POSTERIORS} - {*REVERSIBLE})


def family(name: str, dim: int = DIM, **options: Any) -> Any:
    """In float64 with its parameters moved, so that no transform is near the identity by its start."""
    built = build("posterior", {name: {"hidden": 8, "context_dim": 3} | options}, event_shape=(dim,)).double()
    for parameter in built.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return built


def amortized(name: str, dim: int = DIM, batch: int = 1, **options: Any) -> Any:
    """q(z | x) of a few datapoints, at drawn outputs of the encoder."""
    built = family(name, dim, **options)
    return built(torch.randn(batch, *built.unconstrained_shape).double())


def test_the_flows_are_there() -> None:
    assert {*POSTERIORS} >= {"iaf", "coupling", "spline", "planar"}
    assert {*PRIORS} >= {"coupling", "spline"}
    assert "planar" in ONLY_OWN_DRAWS


@pytest.mark.parametrize("name", REVERSIBLE)
@pytest.mark.parametrize("layers", [1, 2])
def test_a_density_integrates_to_one_over_the_plane(name: str, layers: int) -> None:
    """By the midpoint rule, to 1e-3, whatever kinks a spline has; a wrong Jacobian shows at once."""
    line = torch.linspace(-8, 8, 401).double()
    points, area = torch.cartesian_prod(line, line), (line[1] - line[0]) ** 2
    with torch.no_grad():
        density = amortized(name, layers=layers).log_prob(points).exp()
    assert (density.sum() * area).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ONLY_OWN_DRAWS)
@pytest.mark.parametrize("dim", [1, 2])
def test_a_density_of_own_draws_alone_integrates_to_one(name: str, dim: int) -> None:
    """E_q[g / q] = 1 for a density g inside of q, within four standard errors."""
    q = amortized(name, dim)
    with torch.no_grad():
        z = q.rsample((40_000,))
        g = torch.distributions.Normal(z.mean(0), 0.4 * z.std(0))
        ratio = (g.log_prob(z).sum(-1) - q.log_prob(z)).exp()
    error = ratio.std().item() / len(z) ** 0.5
    assert error < 0.05
    assert ratio.mean().item() == pytest.approx(1, abs=4 * error)


@pytest.mark.parametrize("name", POSTERIORS)
def test_the_density_is_the_change_of_variables(name: str) -> None:
    """The Jacobian of e -> z is autograd's."""
    q = amortized(name)

    def transformed(e: Tensor) -> Tensor:
        for transform in q.transforms:
            e = transform(e)
        return e

    torch.manual_seed(1)
    z = q.rsample()
    found = q.log_prob(z)
    torch.manual_seed(1)
    e = q.base_dist.rsample()
    torch.testing.assert_close(transformed(e), z)
    jacobian: Any = torch.autograd.functional.jacobian(transformed, e)
    expected = q.base_dist.log_prob(e) - jacobian[0, :, 0].det().abs().log()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", REVERSIBLE)
def test_own_draws_score_the_same_at_a_copy(name: str) -> None:
    """A copy is not in the cache of the transforms, so it is inverted; in float64 to 1e-6."""
    q = amortized(name, 3, batch=4)
    z = q.rsample((5,))
    assert z.shape == (5, 4, 3)
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.detach().clone()), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(q.log_prob(z[0, 0].detach())[0], q.log_prob(z)[0, 0])


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_scores_a_draw_with_its_present_parameters(name: str) -> None:
    prior = build("prior", name, latent_dim=DIM)
    with torch.no_grad():
        z = prior().sample((3,))
        for parameter in prior.parameters():
            parameter += 0.1
        torch.testing.assert_close(prior().log_prob(z), prior().log_prob(z.clone()))


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_scores_its_draws_as_their_copies(name: str) -> None:
    prior = build("prior", name, latent_dim=DIM).double()
    z = prior().rsample((50,))
    torch.testing.assert_close(prior().log_prob(z), prior().log_prob(z.detach().clone()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", POSTERIORS)
def test_gradients_reach_the_encoder_and_the_flow(name: str) -> None:
    network = {"mlp": {"hidden": [8], "activation": "tanh"}}
    model: Any = VAE((4,), latent_dim=DIM, posterior=name, encoder=network, decoder=network)
    x = torch.rand(6, 4).round()
    weights = weigh(model.generate, model.infer, x, particles=3)
    assert weights.latents["z"].shape == (3, 6, DIM)
    assert weights.log_posterior["z"].shape == (3, 6)
    ELBO(particles=3).bound(weights).sum().backward()
    for part in (model.posterior.network, model.posterior.family):
        gradients = [p.grad for p in part.parameters()]
        assert gradients
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
        assert sum(bool(gradient.ne(0).any()) for gradient in gradients) >= 0.9 * len(gradients)


@pytest.mark.parametrize("name", POSTERIORS)
def test_the_context_of_a_datapoint_makes_its_flow(name: str) -> None:
    """The same loc and scale with another context is another density."""
    built = family(name)
    u = torch.zeros(2, *built.unconstrained_shape).double()
    u[1, 2 * DIM :] = 2.0
    torch.manual_seed(1)
    one = built(u[:1]).rsample()
    torch.manual_seed(1)
    assert (built(u[1:]).rsample() - one).abs().max() > 1e-3


@pytest.mark.parametrize("name", ONLY_OWN_DRAWS)
def test_what_scores_its_own_draws_alone_is_refused_by_vamp(name: str) -> None:
    with pytest.raises(
        InputError, match=r"prior vamp scores values that it did not draw.* flow .*posterior normal, iaf"
    ):
        VAE((4,), latent_dim=DIM, prior="vamp", posterior=name)


@pytest.mark.parametrize("name", REVERSIBLE)
def test_one_latent_dimension_is_refused_by_a_posterior(name: str) -> None:
    cls: Any = registered("posterior")[name].target
    with pytest.raises(InputError, match=f"{cls.__name__} .*latent_dim is 1; declare posterior: planar or normal"):
        VAE((4,), latent_dim=1, posterior=name)


@pytest.mark.parametrize("name", PRIORS)
def test_one_latent_dimension_is_refused_by_a_prior(name: str) -> None:
    cls: Any = registered("prior")[name].target
    with pytest.raises(InputError, match=f"{cls.__name__} .*latent_dim is 1; declare prior: mixture or normal"):
        VAE((4,), latent_dim=1, prior=name)


def test_a_flow_over_a_matrix_is_refused() -> None:
    with pytest.raises(InputError, match=r"is over vectors, but the event has the shape \(2, 3\)"):
        build("posterior", "iaf", event_shape=(2, 3))
