"""Numbers far from 1: data far from 0, small noise, large counts, narrow posteriors, and what float32 cannot hold."""

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.integrate import quad
from sklearn import decomposition

from pyrolatent import PCA, VAE, InputError, LinearGaussian, LogisticBernoulli, fit, load_data
from pyrolatent.models.components.distributions import NegativeBinomial, Poisson

GENERATOR = np.random.default_rng(0)
SIGNAL = GENERATOR.normal(size=(600, 2)) @ GENERATOR.normal(size=(2, 5)) + 0.3 * GENERATOR.normal(size=(600, 5))


@pytest.mark.parametrize("offset", [0.0, 300.0, 1e4, 1e5])
def test_principal_components_of_data_far_from_zero(offset: float) -> None:
    """scikit-learn's of the centred data, to what float32 rounds x by."""
    data = load_data(SIGNAL + offset)
    model = PCA((5,), latent_dim=2)
    fit(model, data, objective="closed_form", progress=False)
    x = data.train.x.double()
    centred = (x - x.mean(0)).numpy()
    expected = decomposition.PCA(2, svd_solver="full").fit(centred)
    error = np.square(centred - expected.inverse_transform(expected.transform(centred))).sum(1).mean()
    with torch.no_grad():
        found = (model.reconstruct(x).double() - x).square().sum(1).mean().item()
    assert found == pytest.approx(error, rel=1e-3 + 1e-6 * offset)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
@pytest.mark.parametrize("offset", [300.0, 1e4])
def test_em_far_from_zero_is_em_near_zero(offset: float, noise: Any) -> None:
    """No step lowers the evidence, and the end is that of the same data without the offset."""
    ends = []
    for shift in (0.0, offset):
        torch.manual_seed(0)
        model = LinearGaussian((5,), latent_dim=2, noise=noise)
        x = torch.as_tensor(SIGNAL + shift).float()
        model.likelihood.initialise(x)
        path = []
        for _ in range(40):
            path.append(model.log_evidence(x).mean().item())
            model.em_step(x)
        assert np.diff(path).min() > -1e-5 - 1e-7 * offset
        ends.append(path[-1])
    assert ends[1] == pytest.approx(ends[0], abs=1e-5 * (1 + offset / 100))


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 0.1), (100.0, 0.01), (1000.0, 0.1)])
def test_exact_evidence_where_the_noise_is_small(signal: float, noise: float) -> None:
    """SciPy's multivariate normal at the same parameters, in double precision."""
    torch.manual_seed(0)
    model = LinearGaussian((5,), latent_dim=2, noise=noise)
    with torch.no_grad():
        model.likelihood.weight.mul_(signal)
        x = torch.randn(50, 2) @ model.likelihood.weight.T + noise * torch.randn(50, 5)
        weight, bias = model.likelihood.weight.double().numpy(), model.likelihood.bias.double().numpy()
        scale = model.likelihood.parameters_flat()[2].double().numpy()
    expected = scipy.stats.multivariate_normal(bias, weight @ weight.T + np.diag(scale**2)).logpdf(x.double().numpy())
    np.testing.assert_allclose(model.log_evidence(x).detach().numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("width", [5, 2000])
def test_quadrature_of_a_narrow_posterior(width: int) -> None:
    """SciPy's adaptive quadrature around the largest value on a fine grid."""
    torch.manual_seed(0)
    model = LogisticBernoulli((width,), latent_dim=1)
    x = torch.bernoulli(torch.sigmoid(torch.randn(3, 1) @ torch.randn(1, width)))
    mean, sd, evidence = model.quadrature(x)
    with torch.no_grad():
        bias, weight = (model.likelihood(torch.tensor([[z]])).base_dist.logits.double().numpy()[0] for z in (0.0, 1.0))
    weight = weight - bias
    for row, found in enumerate(zip(mean[:, 0], sd[:, 0], evidence, strict=True)):
        values = x[row].double().numpy()

        def log_joint(z: float, values: Any = values) -> float:
            logits = z * weight + bias
            return float((values * logits - np.logaddexp(0, logits)).sum() + scipy.stats.norm.logpdf(z))

        grid = np.linspace(-6, 6, 4801)
        heights = [log_joint(z) for z in grid]
        top, at = max(heights), grid[int(np.argmax(heights))]
        ends = (at - 3, at + 3) if width > 5 else (-12, 12)
        moments = [
            quad(
                lambda z, k=k, top=top: z**k * np.exp(log_joint(z) - top), *ends, points=[at], epsabs=1e-12, limit=500
            )[0]
            for k in range(3)
        ]
        first, second = moments[1] / moments[0], moments[2] / moments[0]
        expected = [first, np.sqrt(second - first**2), np.log(moments[0]) + top]
        np.testing.assert_allclose([value.item() for value in found], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("mean", [1.0, 1e4, 1e7])
def test_counts_of_any_size_are_scored_as_by_scipy(mean: float) -> None:
    """log P to what float32 holds of it, and its gradient, (x - rate) / rate."""
    x = torch.tensor([0.5, 0.9, 1.0, 1.1]).mul(mean).round()
    rate = torch.tensor(mean, requires_grad=True)
    scored = Poisson(rate).log_prob(x)
    np.testing.assert_allclose(scored.detach(), scipy.stats.poisson(mean).logpmf(x.double()), rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(scored.sum(), rate)
    assert gradient.item() == pytest.approx((x.double() / mean - 1).sum().item(), rel=1e-5, abs=1e-6)
    logits = torch.tensor(mean / 3.0).log()  # mean = count exp(logits)
    found = NegativeBinomial(torch.tensor(3.0), logits=logits).log_prob(x)
    expected = scipy.stats.nbinom(3.0, 1 / (1 + float(logits.double().exp()))).logpmf(x.double())
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_what_float32_cannot_hold_is_refused() -> None:
    """Seconds since 1970 within an hour, also where gaps are 0; not what float64 itself rounds, or a constant."""
    near = 1.7e9 + 3600 * GENERATOR.random((100, 2))
    mask = np.ones(near.shape, bool)
    mask[::3] = False
    for options in ({}, {"mask": mask}):
        with pytest.raises(InputError, match=r"2 entries of x are lost to rounding, the first at index \(0,\)"):
            load_data(near, **options)
    for fine in (
        near - near.mean(0),
        300 + GENERATOR.random((100, 2)),
        (1 + 1e-15 * mask) / 3,
        np.full((100, 2), 1.7e9),
    ):
        load_data(fine)


def test_entries_that_are_never_observed_are_named_and_keep_their_noise() -> None:
    mask = np.ones(SIGNAL.shape, bool)
    mask[:, 3] = False
    with pytest.warns(UserWarning, match=r"1 entries of x \(from 0: 3\) are observed in no training datapoint"):
        data = load_data(SIGNAL, mask=mask)
    model = LinearGaussian((5,), latent_dim=2, noise="diagonal")
    before = model.likelihood.parameters_flat()[2][3].item()
    fit(model, data, objective="em", epochs=5, progress=False)
    assert model.likelihood.parameters_flat()[2][3].item() == pytest.approx(before, rel=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(SIGNAL, mask=~mask | (GENERATOR.random(mask.shape) < 0.5))


def test_a_learned_noise_at_its_floor_is_said() -> None:
    data = load_data(1e-5 * SIGNAL)
    with pytest.warns(UserWarning, match="has reached its lower bound"):
        fit(LinearGaussian((5,), latent_dim=2), data, objective="closed_form", progress=False)


@pytest.mark.parametrize("large", [10**9, 2**63 + 1])
def test_classes_of_large_numbers_keep_them(large: int) -> None:
    data = load_data(SIGNAL[:100], labels=np.array([0, large] * 50, np.uint64))
    assert data.classes == ("0", str(large))


@pytest.mark.parametrize("likelihood", ["normal", "laplace", "multivariate_normal", {"columns": "auto"}])
@pytest.mark.parametrize(("size", "warned"), [(1.0, False), (1e-2, False), (1e-5, True)])
def test_entries_that_vary_less_than_the_least_scale_are_warned_of(likelihood: Any, size: float, warned: bool) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2)) * [1, size]
    data = load_data(np.column_stack([x, np.full(60, 3.5)]))  # a constant has no unit that could be too small
    model = VAE(data.event_shape, latent_dim=1, likelihood=likelihood)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, data, epochs=1, progress=False)
    assert any("1 entries of x vary less than min_scale" in str(each.message) for each in caught) == warned
