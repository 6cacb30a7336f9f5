"""Denoising draws from p(x | noisy x), which small models have in closed form, by enumeration or by quadrature."""

import itertools
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrolatent import VAE, InputError, LatentVariableModel, LinearGaussian, LogisticBernoulli
from pyrolatent.declaration import build
from pyrolatent.tasks import denoise

Z = torch.linspace(-6, 6, 601, dtype=torch.float64).reshape(-1, 1)
"""A grid over one latent, (601, 1)."""


class OneNormal(nn.Module):
    """z ~ N(0, 1) as a prior, and a posterior that is far from exact, which the acceptance must correct."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.tensor(width, dtype=torch.float64))

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Any:
        loc = torch.zeros(1, dtype=torch.float64) if x is None else 0.3 * x.sum(-1, keepdim=True)
        return dist.Normal(loc, self.width.expand(loc.shape)).to_event(1)


class Of(nn.Module):
    """A likelihood from a function of z."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.of = of

    def forward(self, z: Tensor, y: Tensor | None = None) -> Any:
        return self.of(z).to_event(1)


SLOPES = torch.tensor([1.0, -2.0, 1.5], dtype=torch.float64)
LIKELIHOODS = {
    "normal": lambda z: dist.Normal(z * SLOPES, torch.tensor(0.5, dtype=torch.float64)),
    "bernoulli": lambda z: dist.Bernoulli(logits=z * SLOPES),
    "beta": lambda z: dist.Beta(1.5 + (z * SLOPES).exp(), 1.5 + (-z * SLOPES).exp()),
    "laplace": lambda z: dist.Laplace(z * SLOPES, torch.tensor(0.5, dtype=torch.float64)),
    "exponential": lambda z: dist.Exponential((z * SLOPES).exp()),
}


def of(likelihood: str) -> LatentVariableModel:
    return LatentVariableModel((3,), OneNormal(), Of(LIKELIHOODS[likelihood]), OneNormal(1.3)).eval()


def by_quadrature(likelihood: str, log_noise: Any, noisy: Tensor, nodes: Tensor, cell: float) -> tuple[Tensor, Tensor]:
    """E[x | noisy] and Var[x | noisy] with z and every entry of x on grids, (3,) each."""
    entries = LIKELIHOODS[likelihood](Z)
    log_x = entries.log_prob(nodes.reshape(-1, 1, 1)) + log_noise(nodes.reshape(-1, 1, 1), noisy) + math.log(cell)
    per_z = log_x.logsumexp(0)  # log p(noisy_i | z), (z, 3)
    of_z = (dist.Normal(0.0, 1.0).log_prob(Z[:, 0]) + per_z.sum(-1)).softmax(0)
    share = (log_x - per_z).exp()
    first, second = ((share * nodes.reshape(-1, 1, 1) ** power).sum(0) for power in (1, 2))
    mean = (of_z[:, None] * first).sum(0)
    return mean, (of_z[:, None] * second).sum(0) - mean**2


GAUSSIAN = {"gaussian_noise": {"scale": 0.4}}


def log_gaussian(x: Tensor, noisy: Tensor) -> Tensor:
    return dist.Normal(x, 0.4).log_prob(noisy)


def log_flips(x: Tensor, noisy: Tensor) -> Tensor:
    return torch.where(x == noisy, math.log(0.8), math.log(0.2))


def log_salt(x: Tensor, noisy: Tensor) -> Tensor:
    return (0.7 * (x == noisy) + 0.15).log()


CASES: dict[str, tuple[str, Any, Any, Tensor, Tensor, float]] = {
    "normal": (
        "normal", GAUSSIAN, log_gaussian, torch.tensor([1.0, -0.5, 2.0]), torch.linspace(-8, 8, 1601), 0.01,
    ),
    "laplace": (
        "laplace", GAUSSIAN, log_gaussian, torch.tensor([1.0, -0.5, 2.0]), torch.linspace(-8, 8, 1601), 0.01,
    ),
    "beta": (
        "beta", GAUSSIAN, log_gaussian, torch.tensor([0.9, -0.2, 1.1]), torch.linspace(0.0005, 0.9995, 1000), 0.001,
    ),
    "exponential": (
        "exponential", GAUSSIAN, log_gaussian, torch.tensor([0.5, 1.5, 0.9]), torch.linspace(0.005, 9.995, 1000), 0.01,
    ),
    "bernoulli and Gaussian noise": (
        "bernoulli", GAUSSIAN, log_gaussian, torch.tensor([0.4, 1.2, -0.3]), torch.tensor([0.0, 1.0]), 1.0,
    ),
    "bernoulli and flips": (
        "bernoulli", {"flips": {"rate": 0.2}}, log_flips, torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0]), 1.0,
    ),
    "bernoulli and salt and pepper": (
        "bernoulli", {"salt_and_pepper": {"rate": 0.3}}, log_salt, torch.tensor([1.0, 1.0, 0.0]),
        torch.tensor([0.0, 1.0]), 1.0,
    ),
}  # fmt: skip


FAST = {("normal", 0), ("beta", 0), ("bernoulli and flips", 60)}
MOMENTS = [(name, sweeps) for name in CASES for sweeps in (0, 60)]


@pytest.mark.parametrize(
    ("name", "sweeps"), [pytest.param(*case, marks=[pytest.mark.slow] * (case not in FAST)) for case in MOMENTS]
)
def test_clean_data_have_the_moments_of_their_posterior(name: str, sweeps: int) -> None:
    likelihood, corruption, log_noise, noisy, nodes, cell = CASES[name]
    mean, variance = by_quadrature(likelihood, log_noise, noisy.double(), nodes.double(), cell)
    torch.manual_seed(0)
    chains = 1000
    found = denoise(of(likelihood), noisy[None], corruption, draws=chains, particles=20_000, sweeps=sweeps)
    error = (variance / chains).sqrt()  # of one draw of each chain; that of the mean over sweeps is smaller
    assert (found.draws[:, 0].mean(0) - mean).abs().lt(4 * error).all()
    assert (found.mean[0] - mean).abs().lt(4 * error).all()
    spread = found.draws[:, 0].var(0) / variance - 1
    assert likelihood == "bernoulli" or spread.abs().lt(4 * math.sqrt(2 / chains)).all()
    assert found.number_sd is None


def test_linear_gaussian_models_are_denoised_as_in_closed_form() -> None:
    torch.manual_seed(0)
    model = LinearGaussian((6,), latent_dim=2, noise=0.3).double().eval()
    model.likelihood.weight.data.normal_()
    model.requires_grad_(False)
    covariance = model.likelihood.weight @ model.likelihood.weight.T + 0.09 * torch.eye(6)
    clean = dist.MultivariateNormal(model.likelihood.bias, covariance).sample((200,))
    noisy = clean + 0.5 * torch.randn_like(clean)
    gain = covariance @ torch.linalg.inv(covariance + 0.25 * torch.eye(6))
    exact = model.likelihood.bias + (noisy - model.likelihood.bias) @ gain.T
    found = denoise(model, noisy, {"gaussian_noise": {"scale": 0.5}}, draws=20, sweeps=200)
    deviation = (covariance - gain @ covariance).diagonal().sqrt()
    standardised = (found.draws.mean(0) - exact) / deviation * math.sqrt(20)
    assert abs(standardised.mean()) < 4 / math.sqrt(1200)
    assert standardised.std() == pytest.approx(1, abs=4 / math.sqrt(2 * 1200))


@pytest.mark.slow
def test_an_unknown_scale_is_drawn_from_its_posterior() -> None:
    torch.manual_seed(0)
    model = LinearGaussian((6,), latent_dim=2, noise=0.3).double().eval()
    model.likelihood.weight.data.normal_()
    model.requires_grad_(False)
    covariance = model.likelihood.weight @ model.likelihood.weight.T + 0.09 * torch.eye(6)
    clean = dist.MultivariateNormal(model.likelihood.bias, covariance).sample((200,))
    noisy = clean + 0.5 * torch.randn_like(clean)
    scales = torch.linspace(0.4, 0.6, 401, dtype=torch.float64)
    log_p = torch.stack(
        [
            dist.MultivariateNormal(model.likelihood.bias, covariance + s**2 * torch.eye(6)).log_prob(noisy).sum()
            - s.log()
            for s in scales
        ]
    ).softmax(0)
    mean = (log_p * scales).sum()
    deviation = ((log_p * scales**2).sum() - mean**2).sqrt()
    found = denoise(model, noisy, "gaussian_noise", draws=1, sweeps=400)
    assert found.number == pytest.approx(mean.item(), abs=deviation.item())  # of 200 correlated draws
    assert found.number_sd == pytest.approx(deviation.item(), rel=0.4)


@pytest.mark.slow
def test_an_unknown_rate_of_flips_is_found() -> None:
    torch.manual_seed(0)
    model = LogisticBernoulli((30,), latent_dim=1).double().eval()
    with torch.no_grad():
        for parameter in model.likelihood.parameters():
            parameter.copy_(4 * torch.randn_like(parameter))
    clean = model.decode(torch.randn(100, 1)).sample()
    flip = torch.rand_like(clean) < 0.15
    found = denoise(model, torch.where(flip, 1 - clean, clean), "flips", draws=2, sweeps=300)
    assert found.number == pytest.approx(flip.double().mean().item(), abs=0.02)
    assert (found.mean.round() != clean).double().mean() < 0.6 * flip.double().mean()


@pytest.mark.slow
def test_a_blur_is_removed_as_in_closed_form() -> None:
    torch.manual_seed(0)
    model = LinearGaussian((5, 5), latent_dim=2, noise=0.3).double().eval()
    model.likelihood.weight.data.normal_()
    model.requires_grad_(False)
    blur = build("corruption", {"blur": {"width": 0.8, "scale": 0.2}})
    matrix = blur.blurred(torch.eye(25, dtype=torch.float64).reshape(25, 5, 5)).reshape(25, 25).T
    covariance = model.likelihood.weight @ model.likelihood.weight.T + 0.09 * torch.eye(25)
    clean = dist.MultivariateNormal(model.likelihood.bias, covariance).sample((60,))
    noisy = clean @ matrix.T + 0.2 * torch.randn_like(clean)
    gain = covariance @ matrix.T @ torch.linalg.inv(matrix @ covariance @ matrix.T + 0.04 * torch.eye(25))
    exact = model.likelihood.bias + (noisy - model.likelihood.bias @ matrix.T) @ gain.T
    deviation = (covariance - gain @ matrix @ covariance).diagonal().sqrt()
    found = denoise(model, noisy.reshape(60, 5, 5), blur, draws=20, sweeps=100)
    standardised = (found.draws.mean(0).reshape(60, 25) - exact) / deviation * math.sqrt(20)
    assert standardised.square().mean() == pytest.approx(1, abs=4 * math.sqrt(2 / 120))


@pytest.mark.parametrize("declared", [{"flips": {"rate": 0.2}}, {"salt_and_pepper": {"rate": 0.3}},
                                      {"masking": {"rate": 0.3}}, GAUSSIAN, {"blur": {"scale": 0.1}}])  # fmt: skip
def test_corruptions_do_what_they_say(declared: Any) -> None:
    torch.manual_seed(0)
    name = next(iter(declared))
    x = torch.bernoulli(torch.full((4000, 3, 3), 0.5))
    noise = build("corruption", declared)
    noisy = noise(x)
    changed = (noisy != x).double().mean()
    shares = {"flips": 0.2, "salt_and_pepper": 0.15, "masking": 0.15}
    if name in shares:
        assert changed == pytest.approx(shares[name], abs=4 * math.sqrt(0.25 / x.numel()))
    elif name == "gaussian_noise":
        assert (noisy - x).std() == pytest.approx(0.4, rel=4 / math.sqrt(2 * x.numel()))
    else:
        assert (noisy - noise.blurred(x)).std() == pytest.approx(0.1, rel=4 / math.sqrt(2 * x.numel()))


def test_flips_of_two_entries_by_enumeration() -> None:
    """The generic quadrature of these tests against a sum over all x."""
    noisy = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    total, mean = 0.0, torch.zeros(3, dtype=torch.float64)
    for bits in itertools.product((0.0, 1.0), repeat=3):
        x = torch.tensor(bits, dtype=torch.float64)
        log_x = LIKELIHOODS["bernoulli"](Z).log_prob(x).sum(-1) + dist.Normal(0.0, 1.0).log_prob(Z[:, 0])
        weight = (log_x.logsumexp(0) + log_flips(x, noisy).sum()).exp()
        total, mean = total + weight, mean + weight * x
    found, _ = by_quadrature("bernoulli", log_flips, noisy, torch.tensor([0.0, 1.0]).double(), 1.0)
    torch.testing.assert_close(mean / total, found)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "flips of real numbers": ("normal", {"flips": {"rate": 0.1}}, "flips are of values 0 and 1"),
    "flips of grey values": ("bernoulli", {"flips": {"rate": 0.1}}, "threshold them"),
    "a blur of bits": ("bernoulli", {"blur": {}}, "removed from normal likelihoods"),
    "an unknown name": ("normal", "rain", "gaussian_noise"),
    "a rate of 1": ("bernoulli", {"flips": {"rate": 1.0}}, "rate"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_denoised_is_refused(name: str) -> None:
    likelihood, corruption, said = REFUSED[name]
    with pytest.raises(InputError, match=said):
        denoise(of(likelihood), [[0.5, 0.2, 0.1]], corruption, draws=1)


def test_an_encoder_trained_under_noise_sees_it_in_training_alone() -> None:
    torch.manual_seed(0)
    model = VAE((3,), latent_dim=1, likelihood="normal", corrupt={"gaussian_noise": {"scale": 2.0}})
    x = torch.zeros(500, 3)
    assert torch.equal(model.eval().seen(x), x)
    assert model.train().seen(x).std() == pytest.approx(2, rel=0.1)
    with pytest.raises(InputError, match="give corrupt its rate or scale"):
        VAE((3,), latent_dim=1, corrupt="flips")


def test_an_instance_learns_anew_each_time() -> None:
    noise = build("corruption", "flips")
    before = noise.number.clone()
    denoise(of("bernoulli"), [[1.0, 0.0, 1.0]], noise, draws=1, sweeps=4)
    assert noise.learned
    assert torch.equal(noise.number, before)


def test_densities_are_not_scored_at_values_that_replace_them() -> None:
    """A beta density at 0 is 0 or infinite, which its gradient must not see."""
    torch.manual_seed(0)
    model = VAE((3,), latent_dim=1, likelihood="beta")
    noise = build("corruption", {"salt_and_pepper": {"rate": 0.2}})
    z = torch.zeros(1, 1, requires_grad=True)
    model.requires_grad_(False)
    noise.given(model.decode(z), torch.tensor([[0.0, 0.3, 1.0]])).log_evidence.sum().backward()
    assert torch.isfinite(z.grad).all()
    with pytest.raises(InputError, match="1 noisy values are neither"):
        denoise(model, [[0.0, 1.5, 1.0]], noise, draws=1)
