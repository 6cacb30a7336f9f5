"""Objectives on Pyro pairs that are no models of this package, and where Pyro's own objectives differ from them.

The pairs are linear-Gaussian: z_n ~ N(0, 1), x_nj ~ N(w_j z_n, 1), so that the evidence of each datapoint is that of
N(0, I + w w') and the exact posterior is N(s w'x, s) with s = 1 / (1 + w'w).
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, ReweightedWakeSleep
from pyro.infer.importance import psis_diagnostic, vectorized_importance_weights
from torch import Tensor

from pyrolatent import VAE, Data, InputError, fit
from pyrolatent.inference.objectives import bounds as objectives
from pyrolatent.inference.objectives.bounds import ELBO, IWAE, STL, VIMCO, AnalyticELBO, DReG
from pyrolatent.inference.weights import log_mean_exp, weigh

W = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
Pair = tuple[Callable[..., Any], Callable[..., Any]]


@pytest.fixture
def x() -> Tensor:
    return 2 * torch.randn(7, 3, dtype=torch.float64)


def evidence(x: Tensor) -> Tensor:
    covariance = torch.eye(3, dtype=torch.float64) + torch.outer(W, W)
    return dist.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(x)


def posterior(x: Tensor) -> tuple[Tensor, Tensor]:
    variance = 1 / (1 + W @ W)
    return variance * (x @ W), variance.sqrt().expand(len(x))


def events(q: Callable[[Tensor], tuple[Tensor, Tensor]] = posterior) -> Pair:
    """One plate; the elements of x are an event."""
    zero, one = W.new_zeros(()), W.new_ones(())

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(zero, one))
            pyro.sample("x", dist.Normal(W * z.unsqueeze(-1), one).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(*q(x)))

    return model, guide


def plates(q: Callable[[Tensor], tuple[Tensor, Tensor]] = posterior) -> Pair:
    """Two plates, the datapoints' at dim -2; the elements of x lie in the inner one."""
    zero, one = W.new_zeros(()), W.new_ones(())

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(zero, one))
            with pyro.plate("columns", 3, dim=-1):
                pyro.sample("x", dist.Normal(W * z, one), obs=x)

    def guide(x: Tensor) -> None:
        loc, scale = q(x)
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("z", dist.Normal(loc.unsqueeze(-1), scale.unsqueeze(-1)))

    return model, guide


@pytest.mark.parametrize("pair", [events, plates])
@pytest.mark.parametrize("objective", [ELBO(particles=2), IWAE(particles=3), AnalyticELBO(particles=2)])
def test_with_the_exact_posterior_every_bound_is_the_evidence(pair: Any, objective: Any, x: Tensor) -> None:
    """Exactly, for each datapoint; the analytic bound on the mean over many draws, since its KL is not the draws'."""
    bound = objective.bound(objective.weigh(*pair(), x))
    if isinstance(objective, AnalyticELBO):
        many = AnalyticELBO(particles=20_000)
        values = many.weigh(*pair(), x)
        error = values.log_likelihood.std(0) / len(values.log_likelihood) ** 0.5
        assert ((many.bound(values) - evidence(x)).abs() < 4.5 * error).all()
    else:
        torch.testing.assert_close(bound, evidence(x))


def test_nested_plates_have_the_gradients_of_an_event(x: Tensor) -> None:
    """Of dreg too, which scales the gradients of each datapoint's draws."""
    found = []
    for pair in (events, plates):
        shift = torch.zeros(7, dtype=torch.float64, requires_grad=True)

        def q(x: Tensor, shift: Tensor = shift) -> tuple[Tensor, Tensor]:
            loc, scale = posterior(x)
            return loc + 0.5 + shift, 1.5 * scale

        torch.manual_seed(1)
        DReG(particles=4).differentiable_loss(*pair(q), x).backward()
        found.append(shift.grad)
    torch.testing.assert_close(*found)


def test_a_pair_trains_under_svi(x: Tensor) -> None:
    """To the exact posterior, where this objective has no noise and its bound is the evidence."""
    model, _ = events()

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.zeros(3, dtype=torch.float64))
        scale = pyro.param("scale", W.new_tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x @ slope, scale))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=STL(particles=2))
    for _ in range(1000):
        svi.step(x)
    torch.testing.assert_close(pyro.param("slope").detach(), W / (1 + W @ W), atol=1e-3, rtol=0)
    assert svi.evaluate_loss(x) == pytest.approx(-evidence(x).sum().item(), abs=1e-3)


def test_a_site_outside_the_plate_asks_for_its_name(x: Tensor) -> None:
    """Where the plate is named, a site outside with q = p leaves the bound at the exact posterior at the evidence."""
    model, guide = events()

    def outside(x: Tensor) -> None:
        pyro.sample("shared", dist.Normal(0.0, 1.0))
        model(x)

    def guide_outside(x: Tensor) -> None:
        pyro.sample("shared", dist.Normal(0.0, 1.0))
        guide(x)

    with pytest.raises(InputError, match=r"'shared' lies outside the plate 'rows'.*jointly.*plate='rows'"):
        IWAE(particles=2).loss(outside, guide_outside, x)
    named = IWAE(particles=2, plate="rows").loss(outside, guide_outside, x)
    assert named == pytest.approx(-evidence(x).sum().item(), abs=1e-6)
    with pytest.raises(InputError, match="weighs the draws of each datapoint alone, but 'shared' lies outside"):
        VIMCO(particles=2, plate="rows").loss(outside, guide_outside, x)


def test_several_common_plates_are_told_apart_by_name() -> None:
    """z_nm ~ N(0, 1) with the exact posterior: log p(x) of each row, or of each column."""
    x = torch.randn(4, 3, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(W.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("z", dist.Normal(x / 2, W.new_tensor(0.5).sqrt()))

    each = dist.Normal(W.new_zeros(()), W.new_tensor(2.0).sqrt()).log_prob(x)
    for name, dim in (("rows", 1), ("columns", 0)):
        objective = IWAE(particles=3, plate=name)
        torch.testing.assert_close(objective.bound(objective.weigh(model, guide, x)), each.sum(dim))
    with pytest.raises(InputError, match="cannot be told: all sites lie in 'columns', 'rows'"):
        weigh(model, guide, x)
    with pytest.raises(InputError, match=r"no plate 'row' .* are \['columns', 'rows'\]"):
        IWAE(plate="row").loss(model, guide, x)


def wrong(x: Tensor) -> tuple[Tensor, Tensor]:
    loc, scale = posterior(x)
    return loc + 0.3, 1.5 * scale


def test_renyi_of_pyro_agrees_where_it_is_right(x: Tensor) -> None:
    """One plate, no scale: equal at the same draws."""
    model, guide = events(wrong)
    torch.manual_seed(0)
    pyros = RenyiELBO(0.0, 5, max_plate_nesting=1, vectorize_particles=True).loss(model, guide, x)
    torch.manual_seed(0)
    assert IWAE(particles=5).loss(model, guide, x) == pytest.approx(pyros, rel=1e-6)


def test_renyi_of_pyro_weighs_jointly_where_a_site_lies_outside(x: Tensor) -> None:
    """With an irrelevant site outside the plate Pyro's bound falls to that of joint weights; ours refuses."""
    model, guide = events(wrong)

    def with_site(program: Any) -> Any:
        def wrapped(x: Tensor) -> None:
            pyro.sample("irrelevant", dist.Normal(0.0, 1.0))
            program(x)

        return wrapped

    many = x.repeat(30, 1)

    def loss(model: Any, guide: Any) -> float:
        return RenyiELBO(0.0, 5, max_plate_nesting=1, vectorize_particles=True).loss(model, guide, many)

    assert loss(with_site(model), with_site(guide)) > loss(model, guide) + 10
    with pytest.raises(InputError, match="'irrelevant' lies outside"):
        IWAE().loss(with_site(model), with_site(guide), many)


def test_weights_of_pyro_are_of_all_datapoints_together(x: Tensor) -> None:
    """For 210 datapoints and a guide whose own weights are bounded, so that k-hat is below one half for each."""
    model, guide = events(wrong)
    many = x.repeat(30, 1)
    joint, _, _ = vectorized_importance_weights(model, guide, many, num_samples=500, max_plate_nesting=1)
    assert joint.shape == (500,)
    each = weigh(model, guide, many, particles=500).log_weights()
    assert each.shape == (500, 210)
    truth = evidence(many).sum()
    assert (log_mean_exp(each).sum() - truth).abs() < 1
    assert log_mean_exp(joint) < truth - 10
    assert psis_diagnostic(model, guide, many, num_particles=500, max_plate_nesting=1) > 0.7


def test_wake_sleep_of_pyro_weighs_jointly(x: Tensor) -> None:
    """Its loss is that of joint weights, far above that of weights for each datapoint."""
    model, guide = events(wrong)
    many = x.repeat(30, 1)
    pyros = ReweightedWakeSleep(num_particles=5, max_plate_nesting=1, vectorize_particles=True)
    joint, _ = pyros.loss(model, guide, many)
    assert joint > objectives.ReweightedWakeSleep(particles=5).loss(model, guide, many) + 10


def test_renyi_of_pyro_scales_inside_the_logarithm(x: Tensor) -> None:
    """A scale of 10 on all sites multiplies the bound; Pyro takes log mean w^10 instead."""
    model, guide = events(wrong)
    scaled = [poutine.scale(program, scale=10.0) for program in (model, guide)]
    torch.manual_seed(0)
    once = IWAE(particles=50).loss(model, guide, x)
    torch.manual_seed(0)
    assert IWAE(particles=50).loss(*scaled, x) == pytest.approx(10 * once)
    torch.manual_seed(0)
    pyros = RenyiELBO(0.0, 50, max_plate_nesting=1, vectorize_particles=True).loss(*scaled, x)
    assert pyros < 10 * -evidence(x).sum().item() - 1  # above ten times the evidence: no bound


def test_renyi_of_pyro_has_no_gradient_for_scores_at_alpha_zero() -> None:
    """A discrete guide gets a gradient of zero from it; ours refuses to be pathwise there, and vimco is for it."""
    logit = torch.zeros(5, requires_grad=True)
    x = torch.ones(5)

    def model(x: Tensor) -> None:
        with pyro.plate("rows", 5):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", 5):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    RenyiELBO(0.0, 5, max_plate_nesting=1, vectorize_particles=True).loss_and_grads(model, guide, x)
    assert logit.grad is None or not logit.grad.any()
    for objective in (IWAE(), ELBO(), AnalyticELBO(), DReG()):
        with pytest.raises(InputError, match="needs gradients through the draws of the site 'z', but its Bernoulli"):
            objective.loss_and_grads(model, guide, x)
    logit.grad = None
    VIMCO(particles=5).loss_and_grads(model, guide, x)
    assert logit.grad is not None
    assert logit.grad.abs().max() > 0.01


def test_free_bits_are_not_counted(vae: Callable[..., VAE], binary_data: Data) -> None:
    """Below the threshold the target has no gradient of the KL; above it, all of it. The reported bound has it all."""
    model = vae()
    x = binary_data.train.batch(slice(0, 20)).x
    kl = weigh(model.generate, model.infer, x).kl["z"].mean().item()

    def target(free_bits: float, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        objective = AnalyticELBO(free_bits=free_bits)
        torch.manual_seed(0)
        weights = objective.weigh(model.generate, model.infer, x)
        value = objective.target(weights, beta)
        assert torch.equal(objective.bound(weights), AnalyticELBO().bound(weights))
        (gradient,) = torch.autograd.grad(value.mean(), model.posterior.network.last.weight)
        return value.detach(), gradient

    (free, free_gradient), (none, none_gradient) = target(kl * 1.01), target(0.0, beta=0.0)
    torch.testing.assert_close(free, none - kl * 1.01)
    torch.testing.assert_close(free_gradient, none_gradient)
    (counted, gradient), (full, full_gradient) = target(kl * 0.99), target(0.0)
    torch.testing.assert_close(counted, full)
    torch.testing.assert_close(gradient, full_gradient)


def test_renyi_of_pyro_trains_by_name(vae: Callable[..., VAE], binary_data: Data) -> None:
    declared = {"RenyiELBO": {"alpha": 0.5, "num_particles": 3}}
    history = fit(vae(), binary_data, objective=declared, epochs=3, progress=False).history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
