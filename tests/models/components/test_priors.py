"""Priors: their densities integrate to one, their draws follow them, and they are the formulas they state."""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrolatent import VAE, InputError, fit, load_data
from pyrolatent.declaration import build, registered
from pyrolatent.inference.weights import weigh
from pyrolatent.models import ConditionalVAE

DIM, CLASSES = 2, 3
SMALL: dict[str, dict[str, Any]] = {
    "vamp": {"components": 4}, "mixture": {"components": 4}, "coupling": {"hidden": 8}, "spline": {"hidden": 8}
}  # fmt: skip
# Where the latents lie, if it is not the plane.
POSITIVE, UNIT = {"exponential", "gamma"}, {"beta", "relaxed_bernoulli"}
DISCRETE: dict[str, Tensor] = {
    "bernoulli": torch.cartesian_prod(*[torch.arange(2.0)] * DIM),
    "categorical": torch.eye(DIM),
}
PRIORS = sorted(registered("prior"))
CONTINUOUS = sorted({*PRIORS} - {*DISCRETE})


def prior(name: str, latent_dim: int = DIM, **options: Any) -> Any:
    """Built by a model, as a user does it, in float64 and with its parameters moved."""
    declared = {name: SMALL.get(name, {}) | options}
    network = {"mlp": {"hidden": [8]}}
    if name == "label_normal":
        model: Any = ConditionalVAE((4,), CLASSES, latent_dim=latent_dim, prior=declared, encoder=network)
    else:
        model = VAE((4,), latent_dim=latent_dim, prior=declared, encoder=network)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    model.double().eval()
    model.prior.model = (model,)  # keeps the posterior that vamp shares alive
    return model.prior


def distribution(name: str, built: Any, label: int = 1) -> Any:
    """p(z), or p(z | y) of one label."""
    given = built(torch.eye(CLASSES).double()[[label]]) if name == "label_normal" else built()
    assert given.event_shape == (DIM,)
    assert given.batch_shape == ((1,) if name == "label_normal" else ())
    return given


def plane(name: str) -> tuple[Tensor, Tensor]:
    """Points over the whole support (points, DIM), and the log area of each: midpoints of a grid, mapped onto it."""
    n = 400
    u = (torch.arange(n).double() + 0.5) / n
    if name in UNIT:  # most of a concrete's mass is near the edges, so the grid is finer there
        line, slope = torch.sigmoid(60 * (u - 0.5)), 60 * torch.sigmoid(60 * (u - 0.5)) * torch.sigmoid(60 * (0.5 - u))
    elif name in POSITIVE:
        line, slope = torch.exp(30 * u - 20), 30 * torch.exp(30 * u - 20)
    else:
        line, slope = 4 * torch.sinh(5 * (u - 0.5)), 20 * torch.cosh(5 * (u - 0.5))
    points, areas = torch.cartesian_prod(line, line), torch.cartesian_prod(slope, slope).prod(-1) / n**2
    return points, areas.log()


@pytest.mark.parametrize("name", PRIORS)
def test_own_draws_have_finite_densities_and_gradients(name: str) -> None:
    built = prior(name)
    p = distribution(name, built)
    z = p.sample((7,)).clone()  # as a posterior's draw, which a flow has not in its cache
    log_prob = p.log_prob(z)
    assert log_prob.shape == (7, *p.batch_shape)
    assert torch.isfinite(log_prob).all()
    for parameter in built.parameters():
        (gradient,) = torch.autograd.grad(log_prob.sum(), parameter, retain_graph=True, allow_unused=True)
        assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_density_integrates_to_one(name: str) -> None:
    """By the midpoint rule over the plane, to 5e-3 for the kinks of a spline: a wrong constant shows at once."""
    points, log_areas = plane(name)
    with torch.no_grad():
        log_prob = distribution(name, prior(name)).log_prob(points)
    assert (log_prob + log_areas).logsumexp(0).exp().item() == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("name", DISCRETE)
def test_a_mass_sums_to_one(name: str) -> None:
    p = distribution(name, prior(name, **({"probability": 0.3} if name == "bernoulli" else {})))
    mass = p.log_prob(DISCRETE[name].double()).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-6)
    count = 20_000
    drawn = (p.sample((count,)).unsqueeze(1) == DISCRETE[name]).all(-1).double().mean(0)
    assert ((drawn - mass).abs() < 4 * (mass * (1 - mass) / count).sqrt()).all()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_sampler_follows_the_density(name: str) -> None:
    """E[f] under draws and under the density by the grid, within four standard errors, for f that are bounded."""
    points, log_areas = plane(name)
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda z: torch.tanh(z[..., 0]), lambda z: torch.tanh(z[..., 1]), lambda z: torch.tanh(z.prod(-1)),
        lambda z: torch.sigmoid(3 * (z[..., 0] - z[..., 1])), lambda z: torch.cos(3 * z.sum(-1)),
    ]  # fmt: skip
    with torch.no_grad():
        p = distribution(name, prior(name))
        mass = (p.log_prob(points) + log_areas).exp()
        draws = p.sample((20_000,)).reshape(-1, DIM)
        assert draws.std(0).min() > 0.05
        for function in functions:
            values = function(draws)
            truth, error = (function(points) * mass).sum(), values.std() / math.sqrt(len(draws))
            assert (values.mean() - truth).abs() < 4 * error + 1e-3


@pytest.mark.parametrize("alpha", [0.25, 4.0])
def test_normal_precision(alpha: float) -> None:
    z = torch.randn(6, 3).double()
    truth = -0.5 * alpha * z.square().sum(-1) + 1.5 * math.log(alpha / (2 * math.pi))
    built = build("prior", {"normal": {"precision": alpha}}, latent_dim=3).double()
    torch.testing.assert_close(built().log_prob(z), truth)
    assert not [*built.parameters()]
    learned = build("prior", {"normal": {"precision": "learned"}}, latent_dim=3).double()
    torch.testing.assert_close(learned().log_prob(z), build("prior", "normal", latent_dim=3).double()().log_prob(z))
    learned.log_precision.data.fill_(math.log(alpha))
    torch.testing.assert_close(learned().log_prob(z), truth)


def test_a_learned_precision_reaches_that_of_the_data() -> None:
    """log p(z) of N(0, 1 / 4) draws is greatest where 1 / alpha is their mean square."""
    built = build("prior", {"normal": {"precision": "learned"}}, latent_dim=2)
    z = 0.5 * torch.randn(400, 2)
    optimizer = torch.optim.LBFGS(built.parameters(), max_iter=50)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -built().log_prob(z).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert built.log_precision.exp().item() == pytest.approx(1 / z.square().mean().item(), rel=1e-3)


# Vamp: the average of the posterior at pseudo-inputs.


@pytest.mark.parametrize("posterior", ["normal", {"iaf": {"hidden": 8}}])
def test_vamp_is_the_average_of_the_posterior(posterior: Any) -> None:
    model: Any = VAE((4,), latent_dim=DIM, prior={"vamp": {"components": 3}}, posterior=posterior)
    model.prior.logits.data = torch.tensor([0.5, -1.0, 0.2])
    z = torch.randn(5, 6, DIM)
    terms = torch.stack(
        [model.posterior(u.unsqueeze(0)).log_prob(z.unsqueeze(2)).squeeze(2) for u in model.prior.pseudo_inputs]
    )
    weights = model.prior.logits.softmax(0)[:, None, None]
    torch.testing.assert_close(model.prior().log_prob(z), (weights * terms.exp()).sum(0).log())
    gradients = torch.autograd.grad(
        model.prior().log_prob(z).sum(), [*model.prior.parameters(), *model.posterior.parameters()]
    )
    assert all(gradient.ne(0).any() for gradient in gradients)


def test_the_posterior_that_vamp_shares_is_saved_once() -> None:
    model = VAE((4,), latent_dim=DIM, prior={"vamp": {"components": 3}})
    assert {key for key in model.state_dict() if key.startswith("prior")} == {"prior.pseudo_inputs", "prior.logits"}
    assert len([*model.parameters()]) == len({*model.parameters()})
    assert {key for key, _ in model.named_parameters()} == {*model.state_dict()}


@pytest.mark.parametrize("components", [5, 200])
@pytest.mark.parametrize("start", ["data", "random"])
def test_vamp_starts_at_datapoints(start: Any, components: int) -> None:
    """Different ones where there are enough; the 48 training datapoints are told apart by their first element."""
    x = torch.randn(60, 4) + 10
    prior = {"vamp": {"components": components, "start": start}}
    model: Any = VAE((4,), latent_dim=DIM, prior=prior, likelihood="normal", scaling={"divide": 2})
    fit(model, load_data(x.numpy()), progress=False, epochs=1, optimizer={"SGD": {"lr": 1e-12}})
    distances = torch.cdist(model.prior.pseudo_inputs.detach(), x / 2)
    if start == "random":
        assert model.prior.pseudo_inputs.min() >= 0
        assert distances.min() > 1
    else:
        assert distances.min(1).values.max() < 0.02  # cdist's rounding
        assert len(distances.argmin(1).unique()) > (4 if components == 5 else 30)


def test_label_normal_is_one_normal_for_each_label() -> None:
    built = prior("label_normal")
    y = torch.eye(CLASSES).double()[[2, 0, 2]]
    p = built(y)
    assert p.batch_shape == (3,)
    torch.testing.assert_close(p.mean[0], p.mean[2])
    assert (p.mean[0] - p.mean[1]).abs().min() > 1e-3
    loc, scale = built.conditional.network(y).chunk(2, -1)
    expected = dist.Normal(loc, 1e-3 + torch.nn.functional.softplus(scale)).to_event(1)
    z = torch.randn(3, DIM).double()
    torch.testing.assert_close(p.log_prob(z), expected.log_prob(z))
    with pytest.raises(InputError, match="no labels were given"):
        built()
    with pytest.raises(InputError, match="declare conditional_vae"):
        VAE((4,), latent_dim=DIM, prior="label_normal")


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_describes_itself(name: str) -> None:
    assert "object at" not in str(prior(name))
    assert "Module" not in str(prior(name)).splitlines()[0]


def test_priors_broadcast_over_particles() -> None:
    """As the model scores them: draws (particles, batch, latent_dim) of the posterior."""
    for name in sorted({*PRIORS} - {*DISCRETE} - POSITIVE - UNIT - {"label_normal"}):
        model = VAE((4,), latent_dim=DIM, prior={name: SMALL.get(name, {})})
        weights = weigh(model.generate, model.infer, torch.rand(3, 4).round(), particles=5)
        assert weights.log_prior["z"].shape == (5, 3)
        torch.testing.assert_close(weights.log_prior["z"][2, 1], model.prior().log_prob(weights.latents["z"][2, 1]))
