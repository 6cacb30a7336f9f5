"""Objectives on importance weights: values by quadrature, gradients against exact ones or those at equal draws."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor

from pyrolatent import VAE, DiscreteVAE, HierarchicalVAE, InputError, LinearGaussian, fit, load_data
from pyrolatent.declaration import build
from pyrolatent.inference.objectives.bounds import (
    ELBO,
    IWAE,
    STL,
    VIMCO,
    CombinationIWAE,
    DReG,
    MultiplyIWAE,
    PartiallyIWAE,
    Renyi,
    ReweightedWakeSleep,
)
from pyrolatent.inference.weights import log_mean_exp, weigh

TINY = {"mlp": {"hidden": (3,)}}


@pytest.fixture
def gaussian() -> LinearGaussian:
    """One latent dimension, an approximate posterior that is wrong."""
    return LinearGaussian((3,), latent_dim=1, noise=0.7, posterior="normal").double()


def values(model: Any, objective: Any, x: Tensor) -> Tensor:
    return objective.bound(objective.weigh(model.generate, model.infer, x)).detach()


def gradients(model: Any, objective: Any, x: Tensor, seed: int) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    objective.differentiable_loss(model.generate, model.infer, x).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_quadrature(model: LinearGaussian, x: Tensor, particles: int) -> float:
    """E log mean_k w_k over z_1 ... z_K ~ q, by a product of Gauss-Hermite rules."""
    nodes, mass = (torch.as_tensor(array) for array in np.polynomial.hermite_e.hermegauss(60))
    q = model.posterior(x)
    loc, scale = q.mean[0], q.stddev[0]
    z = loc + scale * nodes[:, None]
    log_w = model.likelihood(z).log_prob(x) + model.prior().log_prob(z) - q.log_prob(z)
    mass = mass / mass.sum()
    total = 0.0
    for index in itertools.product(range(60), repeat=particles):
        chosen = list(index)
        total += mass[chosen].prod().item() * log_mean_exp(log_w[chosen]).item()
    return total


@pytest.mark.parametrize("particles", [1, 2])
def test_the_bound_is_its_expectation_by_quadrature(gaussian: LinearGaussian, particles: int) -> None:
    """The mean of 20,000 draws of the bound within four standard errors."""
    x = torch.tensor([[0.3, -1.0, 0.8]]).double()
    drawn = values(gaussian, IWAE(particles=particles), x.expand(20_000, 3))
    expected = by_quadrature(gaussian, x, particles)
    assert abs(drawn.mean().item() - expected) < 4 * drawn.std().item() / math.sqrt(20_000) + 1e-9


def test_bounds_rise_with_particles_to_the_evidence(gaussian: LinearGaussian) -> None:
    """ELBO <= IWAE(5) <= IWAE(50) <= log p(x): no step down by four standard errors, and the first ones clearly up."""
    x = torch.randn(1, 3).double().expand(4000, 3)
    steps = [values(gaussian, o, x) for o in (ELBO(), IWAE(particles=5), IWAE(particles=50))]
    steps.append(gaussian.log_evidence(x).detach())
    for lower, higher in itertools.pairwise(steps):
        error = math.sqrt((lower.var() + higher.var()).item() / 4000)
        assert higher.mean() - lower.mean() > -4 * error
    assert steps[1].mean() - steps[0].mean() > 4 * math.sqrt((steps[0].var() + steps[1].var()).item() / 4000)
    assert steps[3].mean() - steps[1].mean() > 4 * math.sqrt(steps[1].var().item() / 4000)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (IWAE(particles=1), ELBO(particles=1)),
        (Renyi(alpha=0.0, particles=6), IWAE(particles=6)),
        (Renyi(alpha=1.0, particles=6), ELBO(particles=6)),
        (MultiplyIWAE(groups=1, particles=6), IWAE(particles=6)),
        (MultiplyIWAE(groups=6, particles=1), ELBO(particles=6)),
        (CombinationIWAE(share=0.0, particles=6), IWAE(particles=6)),
        (CombinationIWAE(share=1.0, particles=6), ELBO(particles=6)),
        (PartiallyIWAE(groups=1, particles=6), IWAE(particles=6)),
    ],
)
def test_limits_are_other_objectives(one: Any, other: Any, gaussian: LinearGaussian) -> None:
    """The same values and gradients at the same draws."""
    x = torch.randn(5, 3).double()
    found, expected = gradients(gaussian, one, x, 1), gradients(gaussian, other, x, 1)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    torch.manual_seed(2)
    value = values(gaussian, one, x)
    torch.manual_seed(2)
    torch.testing.assert_close(value, values(gaussian, other, x))


def test_the_largest_weight_is_the_limit_of_renyi(gaussian: LinearGaussian) -> None:
    x = torch.randn(5, 3).double()
    weights = weigh(gaussian.generate, gaussian.infer, x, particles=8)
    largest = Renyi(alpha=-math.inf, particles=8).bound(weights)
    torch.testing.assert_close(largest, weights.log_weights().max(0).values)
    near = Renyi(alpha=-500.0, particles=8).bound(weights)
    # log mean_k exp(501 a_k) / 501 lies below the largest a by at most log(8) / 501.
    assert ((largest - near) >= 0).all()
    assert ((largest - near) <= math.log(8) / 501 + 1e-9).all()


def test_partially_weighted_gradients_are_those_of_their_two_bounds(gaussian: LinearGaussian) -> None:
    """At the same draws: the model's of one IWAE over all draws, the guide's of the mean over groups."""
    x = torch.randn(5, 3).double()
    found = gradients(gaussian, PartiallyIWAE(groups=3, particles=4), x, 1)
    of_model = gradients(gaussian, IWAE(particles=12), x, 1)
    of_guide = gradients(gaussian, MultiplyIWAE(groups=3, particles=4), x, 1)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, (of_guide if name.startswith("posterior") else of_model)[name])


def two_layers() -> HierarchicalVAE:
    return HierarchicalVAE(
        (3,), latent_dims=(1, 1), inference="bottom_up", likelihood={"normal": {"scale": 0.5}},
        encoder=TINY, decoder=TINY, between={"mlp": {"hidden": ()}},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("estimator", "of"), [(DReG(particles=4), IWAE(particles=4)), (STL(particles=1), ELBO(particles=1))]
)
@pytest.mark.parametrize("make", [lambda: VAE((3,), latent_dim=2, likelihood={"normal": {"scale": 0.5}}), two_layers])
def test_gradients_without_the_score_are_unbiased(estimator: Any, of: Any, make: Callable[[], Any]) -> None:
    """The mean of 40 repetitions with 300 copies of a datapoint, each of up to 1,300 numbers within 4.5 errors."""
    model = make()
    x = torch.randn(1, 3).expand(300, 3)
    means, variances = [], []
    for objective in (estimator, of):
        runs = [gradients(model, objective, x, seed) for seed in range(40)]
        flat = torch.stack([torch.cat([g.flatten() for g in run.values()]) for run in runs]) / 300
        means.append(flat.mean(0))
        variances.append(flat.var(0) / 40)
    error = (variances[0] + variances[1]).sqrt()
    assert ((means[0] - means[1]).abs() <= 4.5 * error + 1e-6).all()


def test_sticking_the_landing_has_no_noise_at_the_exact_posterior() -> None:
    """With q the exact posterior every gradient of the guide is zero to rounding, and the plain ELBO's is not."""
    model = LinearGaussian((2,), latent_dim=1, noise=1.0, posterior="normal", encoder={"mlp": {"hidden": ()}}).double()
    weight, _, _ = model.likelihood.parameters_flat()
    weight = weight.detach()
    variance = 1 / (1 + weight.square().sum())
    last = model.posterior.network.last
    with torch.no_grad():
        last.weight.zero_()
        last.weight[0] = variance * weight[:, 0]
        last.bias[0] = 0.0
        above = variance.sqrt() - 1e-3
        last.bias[1] = above + torch.log(-torch.expm1(-above))
    x = torch.randn(6, 2).double()
    for objective, zero in ((STL(particles=1), True), (DReG(particles=5), True), (ELBO(), False)):
        found = gradients(model, objective, x, 3)
        size = max(g.abs().max().item() for name, g in found.items() if name.startswith("posterior"))
        assert (size < 1e-10) == zero


def tuples(model: DiscreteVAE, x: Tensor, particles: int) -> tuple[Tensor, Tensor, Tensor]:
    """log q (tuples, K), log w (tuples, K) and the probability of each K-tuple of states."""
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)))
    log_q = model.posterior[0](x).log_prob(states)
    log_w = model.prior().log_prob(states) + model.likelihood(states).log_prob(x) - log_q
    index = torch.tensor(list(itertools.product(range(len(states)), repeat=particles)))
    return log_q[index], log_w[index], log_q[index].sum(-1).exp()


@pytest.mark.parametrize("objective", [VIMCO(particles=2), ReweightedWakeSleep(particles=2)])
def test_gradients_of_discrete_posteriors_against_enumeration(objective: Any) -> None:
    """VIMCO: of E log mean_k w_k over all pairs of states. Wake-sleep: E sum_k v_k d(log p + log q), v held."""
    model = DiscreteVAE((3,), latent_dims=(2,), encoder=TINY, decoder=TINY)
    x = torch.tensor([[1.0, 0.0, 1.0]])
    log_q, log_w, mass = tuples(model, x, 2)
    if isinstance(objective, ReweightedWakeSleep):
        v = log_w.detach().softmax(-1)
        exact = (mass.detach() * (v * (log_w + 2 * log_q)).sum(-1)).sum()
    else:
        exact = (mass * log_mean_exp(log_w, -1)).sum()
    model.zero_grad()
    (-exact).backward()
    truth = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    runs = [gradients(model, objective, x.expand(500, 3), seed) for seed in range(40)]
    for name, expected in truth.items():
        drawn = torch.stack([run[name] for run in runs]) / 500
        error = drawn.std(0) / math.sqrt(40)
        assert ((drawn.mean(0) - expected).abs() <= 4.5 * error + 1e-6).all(), name


@pytest.mark.parametrize("objective", ["iwae", "stl", "dreg", "renyi", "multiply_iwae", "partially_iwae"])
def test_every_objective_trains_under_fit_and_under_svi(objective: str) -> None:
    data = load_data((torch.rand(60, 4) < torch.tensor([0.9, 0.1, 0.8, 0.2])).float())
    model = VAE((4,), latent_dim=2)
    history = fit(model, data, objective=objective, epochs=15, optimizer={"Adam": {"lr": 0.01}}, progress=False).history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    model = VAE((4,), latent_dim=2)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.01}), loss=build("objective", objective))
    x = data.train.batch(slice(None)).x
    losses = [svi.step(x) for _ in range(60)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.parametrize("objective", ["stl", "dreg"])
def test_a_flow_that_cannot_score_again_is_refused(objective: str) -> None:
    data = load_data((torch.rand(30, 4) < 0.5).float())
    with pytest.raises(
        InputError, match=f"no posterior that scores values it did not draw itself, which {objective} needs"
    ):
        fit(VAE((4,), latent_dim=2, posterior="planar"), data, objective=objective, progress=False)


def test_a_scale_of_the_plate_stands_outside_the_logarithm() -> None:
    """A plate that subsamples 4 of 40 datapoints scales by 10, and the loss is ten times that of the four."""
    model = VAE((3,), latent_dim=2)
    x = (torch.rand(4, 3) < 0.5).float()

    def scaled(function: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        return pyro.poutine.scale(function, scale=10.0)

    losses = []
    for pair in ((model.generate, model.infer), (scaled(model.generate), scaled(model.infer))):
        torch.manual_seed(0)
        losses.append(IWAE(particles=5).loss(*pair, x))
    assert losses[1] == pytest.approx(10 * losses[0], rel=1e-6)
    with pytest.raises(InputError, match=r"scaled by 10 and .* by 1,"):
        weigh(scaled(model.generate), model.infer, x)
