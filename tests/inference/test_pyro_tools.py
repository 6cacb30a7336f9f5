"""Pyro's other tools on a model of this package, held against the closed form of a linear Gaussian model."""

from typing import Any

import pyro
import pyro.infer as infer
import pytest
import torch
from pyro.infer.inspect import get_model_relations
from torch import Tensor

from pyrolatent import InputError, LinearGaussian, SemiSupervisedVAE

LATENT_DIM = 2


@pytest.fixture(autouse=True)
def store() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture
def model() -> LinearGaussian:
    torch.manual_seed(0)
    found = LinearGaussian((3,), latent_dim=LATENT_DIM, noise=0.7)
    with torch.no_grad():
        found.likelihood.weight.normal_()
        found.likelihood.bias.normal_()
    return found


@pytest.fixture
def x() -> Tensor:
    return torch.tensor([[0.4, -1.0, 0.8]])


def exact(model: LinearGaussian, x: Tensor) -> Any:
    return model.encode(x)["z"]


def log_evidence(model: LinearGaussian, x: Tensor) -> float:
    found = model.log_evidence(x)
    assert found is not None
    return found.sum().item()


def test_predictive_without_x_draws_from_the_model(model: LinearGaussian) -> None:
    draws = infer.Predictive(model.model, num_samples=2000)()
    assert draws["z"].shape == (2000, 1, LATENT_DIM)
    x = draws["x"][:, 0]
    covariance = model.likelihood.weight @ model.likelihood.weight.T + 0.7**2 * torch.eye(3)
    error = 5 * (covariance.diagonal() / 2000).sqrt()
    assert ((x.mean(0) - model.likelihood.bias).abs() < error).all()
    assert torch.allclose(x.T.cov(), covariance, atol=5 * covariance.max().item() * (2 / 2000) ** 0.5)


def test_predictive_without_x_draws_the_classes_that_are_asked_for() -> None:
    model = SemiSupervisedVAE((3,), 4, latent_dim=2, encoder={"mlp": {"hidden": (4,)}})
    y = torch.tensor([2, 0, 3])
    drawn = infer.Predictive(model.model, num_samples=20, return_sites=("y", "x"))(None, y)
    assert drawn["x"].shape == (20, 3, 3)
    assert (drawn["y"].argmax(-1) == y).all()


def test_the_guide_is_not_run_without_x(model: LinearGaussian) -> None:
    with pytest.raises(InputError, match="without x"):
        model.guide()


def test_importance_sampling_gives_the_evidence(model: LinearGaussian, x: Tensor) -> None:
    """Every weight is the evidence, since the guide is the exact posterior."""
    found = infer.Importance(model.model, guide=model.guide, num_samples=3).run(x).get_log_normalizer()
    assert found.item() == pytest.approx(log_evidence(model, x), abs=1e-5)


def test_nuts_draws_from_the_posterior_of_one_datapoint(model: LinearGaussian, x: Tensor) -> None:
    chain = infer.MCMC(infer.NUTS(model.model), num_samples=300, warmup_steps=100, disable_progbar=True)
    chain.run(x)
    draws, posterior = chain.get_samples()["z"][:, 0], exact(model, x)
    independent = 60  # far fewer than NUTS usually gives of 300
    assert ((draws.mean(0) - posterior.mean[0]).abs() < 5 * (posterior.variance[0] / independent).sqrt()).all()
    assert ((draws.var(0) / posterior.variance[0] - 1).abs() < 5 * (2 / independent) ** 0.5).all()


@pytest.mark.parametrize("name", ["Trace_ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO", "TraceGraph_ELBO"])
def test_losses_that_pyro_compiles_are_those_that_it_does_not(name: str, model: LinearGaussian, x: Tensor) -> None:
    losses = []
    for kind in (f"Jit{name}", name):
        pyro.set_rng_seed(1)
        losses.append(getattr(infer, kind)(max_plate_nesting=1).loss(model.model, model.guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_tensor_monte_carlo_gives_the_evidence(model: LinearGaussian, x: Tensor) -> None:
    programs = [
        infer.config_enumerate(program, default="parallel", num_samples=4, expand=False)
        for program in (model.model, model.guide)
    ]
    found = infer.TraceTMC_ELBO(max_plate_nesting=1).loss(*programs, x)
    assert -found == pytest.approx(log_evidence(model, x), abs=1e-4)


def moved(model: LinearGaussian, x: Tensor, loss: Any) -> bool:
    before = model.likelihood.weight.detach().clone()
    infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.1}), loss).step(x)
    return not torch.equal(before, model.likelihood.weight)


def test_the_tail_adaptive_loss_trains(model: LinearGaussian, x: Tensor) -> None:
    assert moved(model, x, infer.TraceTailAdaptive_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1))


def test_energy_distance_trains(model: LinearGaussian, x: Tensor) -> None:
    assert moved(model, x, infer.EnergyDistance(num_particles=2))


def test_csis_trains_the_guide_alone(x: Tensor) -> None:
    pair = LinearGaussian((3,), latent_dim=LATENT_DIM, noise=0.7, posterior="normal", encoder={"mlp": {"hidden": (4,)}})

    def generate(observations: dict[str, Tensor]) -> None:
        pair.model(observations["x"])

    def guide(observations: dict[str, Tensor]) -> None:
        pair.guide(observations["x"])

    inference = infer.CSIS(
        lambda observations={"x": x}: generate(observations),
        lambda observations={"x": x}: guide(observations),
        pyro.optim.Adam({"lr": 0.01}),
        num_inference_samples=20,
    )
    before = [parameter.detach().clone() for parameter in pair.posterior.parameters()]
    assert inference.step() > 0
    assert any(not torch.equal(*both) for both in zip(before, pair.posterior.parameters(), strict=True))


def test_svgd_finds_the_posterior_mean_of_one_datapoint(model: LinearGaussian, x: Tensor) -> None:
    """The particles surround the mean of the exact posterior, whose standard deviation is far above the tolerance."""
    inference = infer.SVGD(
        model.model, infer.RBFSteinKernel(), pyro.optim.Adam({"lr": 0.1}), num_particles=20, max_plate_nesting=1
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for _ in range(300):
        inference.step(x)
    particles = inference.get_named_particles()["z"].reshape(20, LATENT_DIM)
    posterior = exact(model, x)
    assert ((particles.mean(0) - posterior.mean[0]).abs() < posterior.stddev[0] / 3).all()


def test_the_module_form_trains_as_lightning_calls_it(model: LinearGaussian, x: Tensor) -> None:
    loss = infer.Trace_ELBO()(model.model, model.guide)
    loss(x)
    optimizer, before = torch.optim.Adam(loss.parameters(), lr=0.1), model.likelihood.weight.detach().clone()
    loss(x).backward()
    optimizer.step()
    assert not torch.equal(before, model.likelihood.weight)


def test_relations_for_render_model(model: LinearGaussian, x: Tensor) -> None:
    found = get_model_relations(model.model, (x,))
    assert found["sample_sample"] == {"z": [], "x": ["z"]}
    assert found["plate_sample"] == {"data": ["z", "x"]}
    assert found["observed"] == ["x"]
