"""Objectives and the weights beneath them: held against Pyro's own losses and against formulas written out."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrolatent import VAE, InputError
from pyrolatent.inference.objectives.bounds import ELBO, VIMCO, AnalyticELBO, Bound
from pyrolatent.inference.weights import weigh

PAIRS = [(ELBO, Trace_ELBO), (AnalyticELBO, TraceMeanField_ELBO)]
BATCH = 5


@pytest.fixture
def model(vae: Callable[..., VAE]) -> VAE:
    """In float64, so that what differs is not rounding."""
    return vae().double()


@pytest.fixture
def x() -> Tensor:
    return torch.bernoulli(torch.full((BATCH, 6), 0.5, dtype=torch.float64))


def seeded(function: Callable[..., Any], *args: Any) -> Any:
    torch.manual_seed(3)
    return function(*args)


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    gradients = torch.autograd.grad(loss, [*module.parameters()], retain_graph=True)
    return torch.cat([part.flatten() for part in gradients])


# Against Pyro.


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize(("ours", "pyros"), PAIRS)
def test_equal_to_pyro_at_the_same_seed(
    ours: type[Bound], pyros: type[pyro.infer.ELBO], particles: int, with_mask: bool, model: VAE, x: Tensor
) -> None:
    mask = torch.rand(x.shape) < 0.6 if with_mask else None
    args = (model.model, model.guide, x, None, mask)
    reference = pyros(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    expected = seeded(reference.differentiable_loss, *args)
    loss = seeded(ours(particles=particles).differentiable_loss, *args)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(loss, model), gradient(expected, model), rtol=1e-9, atol=1e-12)
    assert seeded(ours(particles=particles).loss, *args) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("objective", [ELBO, AnalyticELBO])
def test_loss_and_grads_adds_the_gradients_of_the_loss(objective: type[Bound], model: VAE, x: Tensor) -> None:
    target = objective(particles=2, beta=0.5)
    loss = seeded(target.differentiable_loss, model.model, model.guide, x)
    expected = gradient(loss, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert seeded(target.loss_and_grads, model.model, model.guide, x) == pytest.approx(loss.item(), rel=1e-12)
    added = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(added, 1 + expected)


@pytest.mark.parametrize("objective", [ELBO, AnalyticELBO])
def test_under_svi_and_as_a_module(objective: type[Bound], model: VAE, x: Tensor) -> None:
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), loss=objective(particles=3))
    before = seeded(svi.evaluate_loss, x)
    for _ in range(30):
        svi.step(x)
    # 30 steps of Adam on five datapoints gain more than a nat in all, at the same noise.
    assert seeded(svi.evaluate_loss, x) < before - 1
    assert seeded(objective(particles=3)(model.model, model.guide), x).item() == seeded(svi.evaluate_loss, x)


# Against formulas written out.


def by_hand(model: VAE, x: Tensor, particles: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p(x | z), log p(z), log q(z | x), (particles, batch), at the seed of `seeded`, and KL(q || p), (batch,)."""
    posterior = model.posterior(x)
    torch.manual_seed(3)
    z = posterior.expand((particles, len(x))).rsample()
    logits = model.likelihood.network(z.flatten(0, 1)).view(particles, len(x), -1)
    log_likelihood = -nn.functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    prior = dist.Normal(torch.zeros_like(z), 1.0).to_event(1)
    loc, scale = posterior.base_dist.loc, posterior.base_dist.scale
    kl = 0.5 * (loc**2 + scale**2 - 1) - scale.log()
    return log_likelihood.sum(-1), prior.log_prob(z), posterior.log_prob(z), kl.sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("particles", [1, 4])
def test_beta_scales_the_kl_once(beta: float, particles: int, model: VAE, x: Tensor) -> None:
    log_likelihood, log_prior, log_posterior, kl = by_hand(model, x, particles)
    expected = {
        ELBO: -(log_likelihood + beta * (log_prior - log_posterior)).mean(0).sum(),
        AnalyticELBO: -(log_likelihood.mean(0) - beta * kl).sum(),
    }
    for objective, loss in expected.items():
        args = (model.model, model.guide, x)
        given = seeded(objective(particles=particles, beta=beta).differentiable_loss, *args)
        torch.testing.assert_close(given, loss, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient(given, model), gradient(loss, model), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("objective", [ELBO, AnalyticELBO])
def test_a_reported_bound_has_beta_one_whatever_is_trained(objective: type[Bound], model: VAE, x: Tensor) -> None:
    weights = weigh(model.generate, model.infer, x, particles=3)
    assert torch.equal(objective(particles=3, beta=4.0).bound(weights), objective(particles=3).bound(weights))


@pytest.mark.parametrize("particles", [1, 4])
def test_weights_are_the_formula(particles: int, model: VAE, x: Tensor) -> None:
    log_likelihood, log_prior, log_posterior, kl = by_hand(model, x, particles)
    torch.manual_seed(3)
    weights = weigh(model.generate, model.infer, x, particles=particles)
    for given, expected in (
        (weights.log_likelihood, log_likelihood),
        (weights.log_prior["z"], log_prior),
        (weights.log_posterior["z"], log_posterior),
        (weights.log_weights(), log_likelihood + log_prior - log_posterior),
        (weights.log_weights(torch.tensor(0.5)), log_likelihood + 0.5 * (log_prior - log_posterior)),
        (weights.kl["z"], kl.expand(particles, -1)),
    ):
        torch.testing.assert_close(given.expand_as(expected), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("particles", [1, 4])
def test_shapes(particles: int, batch: int, model: VAE, x: Tensor) -> None:
    weights = weigh(model.generate, model.infer, x[:batch], particles=particles)
    assert weights.latents["z"].shape == (particles, batch, 2)
    each = [weights.log_likelihood, *weights.log_prior.values(), *weights.log_posterior.values(), *weights.kl.values()]
    for value in [*each, weights.log_weights()]:
        assert value.shape == (particles, batch)
    for objective in (ELBO(particles=particles), AnalyticELBO(particles=particles)):
        assert objective.bound(weights).shape == (batch,)


def test_datapoints_are_weighed_apart(model: VAE, x: Tensor) -> None:
    """What one datapoint is changes no other's weights, at the same noise."""
    other = x.clone()
    other[0] = 1 - other[0]
    first, second = (seeded(weigh, model.generate, model.infer, data).log_weights() for data in (x, other))
    assert first[0, 0] != second[0, 0]
    assert torch.equal(first[:, 1:], second[:, 1:])


# The KL of other pairs.


def programs(prior: Any, posterior: Any) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    return model, guide


NORMAL = dist.Normal(torch.zeros(3), 1.0).to_event(1)


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [
        (NORMAL, lambda x: dist.Normal(x, 0.5).to_event(1)),
        (dist.Laplace(torch.zeros(3), 1.0).to_event(1), lambda x: dist.Laplace(x, 0.5).to_event(1)),
        (
            dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
            lambda x: dist.MultivariateNormal(x, scale_tril=(torch.eye(3) + 0.5).tril()),
        ),
    ],
)
def test_a_kl_in_closed_form_is_torch_s(prior: Any, posterior: Any) -> None:
    x = torch.randn(BATCH, 3)
    weights = weigh(*programs(prior, posterior), x, particles=2)
    expected = kl_divergence(posterior(x), prior.expand((BATCH,)))
    torch.testing.assert_close(weights.kl["z"].expand(2, BATCH), expected.expand(2, BATCH))


def test_a_kl_without_a_closed_form_is_estimated_at_the_draws() -> None:
    x = torch.randn(BATCH, 3)
    model, guide = programs(NORMAL, lambda x: dist.StudentT(4.0, x, 0.5).to_event(1))
    weights = weigh(model, guide, x, particles=2)
    torch.testing.assert_close(weights.kl["z"], weights.log_posterior["z"] - weights.log_prior["z"])
    torch.testing.assert_close(AnalyticELBO().bound(weights), ELBO().bound(weights))


# Refusals.


@pytest.mark.parametrize("missing", ["guide", "model"])
def test_a_site_that_only_one_side_has_is_refused_by_name(missing: str, x: Tensor) -> None:
    def program(x: Tensor, *, extra: bool, observe: bool) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(6).double(), 1.0).to_event(1))
            if extra:
                pyro.sample("u", dist.Normal(0.0, 1.0))
            if observe:
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    present = {"guide": "model", "model": "guide"}[missing]
    with pytest.raises(InputError, match=f"the {present} samples the latent site 'u', but the {missing} does not"):
        weigh(
            lambda x: program(x, extra=present == "model", observe=True),
            lambda x: program(x, extra=present == "guide", observe=False),
            x,
        )


@pytest.mark.parametrize("options", [{"particles": 0}, {"particles": 1.5}, {"beta": -0.1}, {"beta": "x"}, {"K": 3}])
@pytest.mark.parametrize("objective", [ELBO, AnalyticELBO])
def test_options_out_of_range_are_refused(objective: type[Bound], options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        objective(**options)


def test_the_model_is_scored_at_the_guide_s_draws(model: VAE, x: Tensor) -> None:
    weights = weigh(model.generate, model.infer, x)
    assert torch.equal(weights.model_trace.nodes["z"]["value"], weights.latents["z"][0])
    assert torch.equal(weights.model_trace.nodes["x"]["value"], x)


def test_vimco_of_draws_without_weight() -> None:
    """A draw that the model forbids has weight 0: the loss is the bound's, and it and its gradient are finite."""
    torch.manual_seed(0)
    logit = torch.zeros(2, requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.5))
            b = pyro.sample("b", dist.Bernoulli(0.5))
            pyro.factor("either", torch.where(a + b > 0, 0.0, -torch.inf))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Bernoulli(logits=logit[0]))
            pyro.sample("b", dist.Bernoulli(logits=logit[1]))

    objective = VIMCO(particles=8)
    for _ in range(50):
        loss = objective.differentiable_loss(model, guide, torch.zeros(3))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logit.grad).all()
