"""Tasks: draws have the model's moments, reconstructions are its own decodings, and randomness stays where it is."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrolatent import (
    VAE,
    Autoencoder,
    ConditionalVAE,
    DiscreteVAE,
    HierarchicalVAE,
    InputError,
    LatentVariableModel,
    LinearGaussian,
    SemiSupervisedVAE,
    impute,
    interpolate,
    load_data,
    reconstruct,
    report,
    tasks,
)
from pyrolatent.figures import Figure
from pyrolatent.models.hierarchical import LayeredModel


class Shift(nn.Module):
    """x ~ N(z + shift, 1), whichever the labels."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.TorchDistribution:
        shift = self.shift if y is None else self.shift + y[:, None]
        return dist.Normal(z + shift, 1.0).to_event(1)


class Standard(nn.Module):
    def forward(self, y: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)


class Flow(nn.Module):
    """A posterior whose mean has no closed form: z = exp(e), e ~ N(x, 0.01^2)."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.TorchDistribution:
        base = dist.Normal(x, 0.01).to_event(1)
        return dist.TransformedDistribution(base, [dist.transforms.ExpTransform()])


def shifted(posterior: nn.Module | None = None) -> LatentVariableModel:
    return LatentVariableModel((2,), Standard(), Shift(3.0), posterior or Shift(-3.0))


def test_samples_have_the_moments_of_the_model() -> None:
    torch.manual_seed(0)
    x = tasks.sample(shifted(), 20_000)
    assert x.shape == (20_000, 2)
    # x ~ N(3, 2): five standard errors of the mean and of the variance
    assert torch.allclose(x.mean(0), torch.full((2,), 3.0), atol=5 * (2 / 20_000) ** 0.5)
    assert torch.allclose(x.var(0), torch.full((2,), 2.0), atol=5 * 2 * (2 / 20_000) ** 0.5)
    means = tasks.sample(shifted(), 20_000, mean=True)
    assert torch.allclose(means.var(0), torch.ones(2), atol=5 * (2 / 20_000) ** 0.5)


def test_reconstruction_decodes_the_posterior_mean() -> None:
    x = torch.randn(4, 2)
    assert torch.allclose(tasks.means(shifted(), x)["z"], x - 3)
    assert torch.allclose(tasks.reconstruct(shifted(), x), x, atol=1e-6)


def test_a_mean_without_a_closed_form_is_estimated() -> None:
    x = torch.randn(4, 2).abs()
    assert torch.allclose(tasks.means(shifted(Flow()), x)["z"], (x + 0.01**2 / 2).exp(), rtol=5 * 0.01 / 10)


def test_latent_grid_stands_at_the_quantiles_of_the_prior() -> None:
    torch.manual_seed(0)
    decoded, quantiles = tasks.latent_grid(shifted(), 5)
    exact = dist.Normal(0.0, 1.0).icdf((torch.arange(5) + 0.5) / 5)
    assert torch.allclose(quantiles, exact.expand(2, 5), atol=0.1)  # five standard errors at the outer quantiles
    expected = torch.cartesian_prod(*quantiles) + 3
    assert torch.allclose(decoded, expected, atol=1e-6)


def test_conditional_models_are_drawn_for_each_class() -> None:
    model = shifted()
    model.conditional, model.label_dim = True, 3
    assert torch.allclose(
        tasks.sample(model, 3000, mean=True).unflatten(0, (-1, 3)).mean((0, 2)), 3 + torch.arange(3.0), atol=0.12
    )
    with pytest.raises(InputError, match="labels from 1 to 3 were given; they are 0 to 2"):
        tasks.sample(model, 2, y=torch.tensor([1, 3]))
    assert tasks.latent_grid(model, 3)[0].shape == (9, 2)
    model.label_dim = 101
    assert tasks.sample(model, 4, y=torch.tensor([100, 100, 100, 100])).min() > 90


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_report_draws_every_figure_and_leaves_the_random_state(latent_dim: int) -> None:
    data = load_data("digits")
    model = VAE(data.event_shape, latent_dim=latent_dim)
    before = torch.get_rng_state()
    drawn = report.draw(model, data, [])
    assert [*drawn] == ["reconstructions", "samples", "latent_grid", "embedding"]
    assert all(isinstance(figure, Figure) for figure in drawn.values())
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_missing_is_drawn_from_its_conditional() -> None:
    """The truth is the conditional of the joint normal N(b, W W' + Sigma) of a linear-Gaussian model."""
    model = LinearGaussian((3,), latent_dim=1, noise=0.5).double()
    x = torch.tensor([[0.7, -0.4, float("nan")]]).double()
    mask = torch.tensor([[True, True, False]])
    draws = impute(model, x, mask, draws=2000, particles=20)[:, 0]
    weight, bias, scale = (value.detach() for value in model.likelihood.parameters_flat())
    covariance = weight @ weight.T + torch.diag(scale**2)
    gain = covariance[2, :2] @ torch.linalg.inv(covariance[:2, :2])
    mean = bias[2] + gain @ (x[0, :2] - bias[:2])
    variance = covariance[2, 2] - gain @ covariance[:2, 2]
    assert torch.equal(draws[:, :2], x[0, :2].expand(2000, 2))
    assert abs(draws[:, 2].mean() - mean) < 4 * (variance / 2000).sqrt()
    assert abs(draws[:, 2].var() / variance - 1) < 4 * (2 / 2000) ** 0.5


def test_interpolation_goes_from_one_reconstruction_to_the_next() -> None:
    model = VAE((1, 4, 4), latent_dim=3)
    x = (torch.rand(3, 1, 4, 4) < 0.5).float()
    lines = interpolate(model, x, steps=5)
    ends = reconstruct(model, x)
    assert lines.shape == (2, 5, 1, 4, 4)
    torch.testing.assert_close(lines[:, 0], ends[:-1])
    torch.testing.assert_close(lines[:, -1], ends[1:])
    z = tasks.means(model, x)["z"]
    torch.testing.assert_close(lines[0, 2], model.decode((z[:1] + z[1:2]) / 2).mean[0])


def test_a_label_grid_holds_the_latent_and_varies_the_class() -> None:
    model = ConditionalVAE((4,), 3, latent_dim=2)
    torch.manual_seed(1)
    values = tasks.label_grid(model, 2).reshape(2, 3, 4)
    assert not torch.allclose(values[0, 0], values[0, 1])
    torch.manual_seed(1)
    torch.testing.assert_close(values, tasks.label_grid(model, 2).reshape(2, 3, 4))


# Posterior means.


class Steps(nn.Module):
    """z1 ~ N(x, 1) below z2 ~ N(2 z1, 0.1^2), or exp of it: a guide whose means are known."""

    def forward(self, value: Tensor, y: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Normal(value, 1.0).to_event(1)


class Doubled(nn.Module):
    def forward(self, value: Tensor, y: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Normal(2 * value, 0.1).to_event(1)


def of_two_sites() -> LayeredModel:
    return LayeredModel((2,), Standard(), [Doubled()], Doubled(), [Steps(), Doubled()])


def test_the_mean_of_a_site_is_over_the_draws_of_those_before_it() -> None:
    """E[z2 | x] = 2 x, with the error of 100 means of standard deviation 2; its own noise adds nothing to that."""
    x = torch.randn(50, 2)
    found = tasks.means(of_two_sites(), x)
    torch.testing.assert_close(found["z1"], x)
    error = found["z2"] - 2 * x
    assert error.abs().max() < 5 * 2 / 100**0.5
    assert 0.5 < error.std() / (2 / 100**0.5) < 1.5


def test_the_mean_where_a_label_is_summed_out_is_exact() -> None:
    """E[z | x] = sum_y q(y | x) E[z | x, y]."""
    model: Any = SemiSupervisedVAE((3,), 3, latent_dim=2, likelihood="normal")
    x = torch.randn(6, 3)
    q = model.classifier(x).mean.detach()
    truth = sum(q[:, c, None] * model.posterior(x, torch.eye(3)[[c] * 6]).mean for c in range(3))
    found = tasks.means(model, x)
    torch.testing.assert_close(found["z"], truth)
    torch.testing.assert_close(found["y"], q)


SEVERAL: dict[str, Callable[[], Any]] = {
    "two sites": of_two_sites,
    "a flow": lambda: VAE((2,), latent_dim=2, posterior="iaf", likelihood="normal"),
    "hierarchical": lambda: HierarchicalVAE((2,), latent_dims=(3, 2), likelihood="normal"),
    "bottom up": lambda: HierarchicalVAE((2,), latent_dims=(3, 2), inference="bottom_up", likelihood="normal"),
    "discrete": lambda: DiscreteVAE((2,), latent_dims=(3, 2), likelihood="normal"),
    "summed out": lambda: DiscreteVAE((2,), latent_dims=(3,), estimator="enumerate", likelihood="normal"),
    "dropout": lambda: VAE((2,), latent_dim=2, likelihood="normal", encoder={"mlp": {"dropout": 0.5}}),
    "semi-supervised": lambda: SemiSupervisedVAE((2,), 3, latent_dim=2, likelihood="normal"),
    "autoencoder": lambda: Autoencoder((2,), latent_dim=2),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_two_calls_agree_exactly_and_leave_the_random_state(name: str) -> None:
    model, x = SEVERAL[name]().train(), torch.randn(3, 2)
    for task in (tasks.reconstruct, tasks.interpolate, lambda *args: torch.cat([*tasks.means(*args).values()], -1)):
        before = torch.get_rng_state()
        first = task(model, x)
        assert torch.equal(before, torch.get_rng_state())
        torch.manual_seed(5)
        assert torch.equal(first, task(model, x))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["two sites", "semi-supervised"])
def test_many_datapoints_are_taken_some_at_a_time(name: str) -> None:
    x = torch.randn(2500, 2)
    found = tasks.means(SEVERAL[name](), x)
    assert all(len(mean) == 2500 for mean in found.values())
    if name == "two sites":
        torch.testing.assert_close(found["z1"], x)
