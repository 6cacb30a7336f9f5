"""Logistic models, which have no closed form, against SciPy's adaptive integration."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from pyrolatent import InputError, fit, load_data
from pyrolatent.inference.evidence.importance import score
from pyrolatent.models import LogisticBernoulli


def logistic(latent_dim: int, precision: float) -> tuple[LogisticBernoulli, Tensor]:
    """A model of four binary elements with large weights, in float64, and three datapoints."""
    model = LogisticBernoulli((4,), latent_dim=latent_dim, precision=precision).double()
    with torch.no_grad():
        for parameter in model.likelihood.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape))
    return model, torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).double()


def integrated(model: LogisticBernoulli, x: Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """Posterior mean, standard deviation and log p(x) of one datapoint by SciPy's adaptive integration."""
    last = model.likelihood.network.last
    weight, bias, sign = last.weight.detach().numpy(), last.bias.detach().numpy(), 2 * x.numpy() - 1
    axes, deviation = range(model.latent_dim), model.precision**-0.5
    constant = (2 * np.pi * deviation**2) ** (-model.latent_dim / 2)

    def joint(*z: float) -> float:
        prior = constant * np.exp(-0.5 * np.dot(z, z) / deviation**2)
        return prior / np.prod(1 + np.exp(-sign * (weight @ np.array(z) + bias)))

    def expect(function: Callable[..., float]) -> float:
        options = {"epsabs": 1e-7, "epsrel": 1e-6}
        ranges = [(-8 * deviation, 8 * deviation)] * model.latent_dim
        return scipy.integrate.nquad(lambda *z: function(*z) * joint(*z), ranges, opts=options)[0]

    evidence = expect(lambda *z: 1.0)
    mean = np.array([expect(lambda *z, i=i: z[i]) / evidence for i in axes])
    square = np.array([expect(lambda *z, i=i: z[i] ** 2) / evidence for i in axes])
    return mean, np.sqrt(square - mean**2), np.log(evidence)


@pytest.mark.parametrize(("latent_dim", "precision", "datapoints"), [(1, 1.0, 3), (1, 0.5, 3), (2, 2.0, 1)])
def test_quadrature_agrees_with_scipy(latent_dim: int, precision: float, datapoints: int) -> None:
    model, x = logistic(latent_dim, precision)
    for row in range(datapoints):
        for found, true in zip(model.quadrature(x[row : row + 1]), integrated(model, x[row]), strict=True):
            np.testing.assert_allclose(found[0].numpy(), true, rtol=1e-5, atol=1e-5)


def test_an_amortized_normal_comes_close_to_the_posterior() -> None:
    """To 0.05 in mean and standard deviation, which are of the order of 0.5: the posterior is no exact normal."""
    model, _ = logistic(1, 1.0)
    model = model.float()
    for parameter in model.likelihood.parameters():
        parameter.requires_grad_(False)
    x = torch.tensor([*itertools.product([0.0, 1.0], repeat=4)])
    mean, deviation, evidence = model.quadrature(x)
    with torch.no_grad():
        assert (model.encode(x)["z"].mean - mean).abs().max() > 0.3
    settings = {"objective": {"analytic_elbo": {"particles": 10}}, "epochs": 60, "optimizer": {"Adam": {"lr": 0.01}}}
    data = load_data(x.repeat(40, 1).numpy())
    fit(model, data, progress=False, scheduler={"ExponentialLR": {"gamma": 0.93}}, **settings)
    posterior = model.encode(x)["z"]
    assert (posterior.mean - mean).abs().max() < 0.05
    assert (posterior.stddev - deviation).abs().max() < 0.05
    scores = score(model, x, particles=2000)
    np.testing.assert_array_less((scores.log_evidence - evidence).abs(), 4 * scores.mcse + 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("latent_dim", "draws"), [(1, 100), (2, 1000)], ids=["one", "two"])
def test_nuts_has_the_moments_of_quadrature(latent_dim: int, draws: int) -> None:
    """Within four standard errors of its autocorrelated draws, of the mean and of the second moment."""
    model, x = logistic(latent_dim, 1.0)
    z = model.nuts(x, draws=draws, warmup=100)
    assert z.shape == (draws, 3, latent_dim)
    assert all(parameter.requires_grad for parameter in model.parameters())
    mean, deviation, _ = model.quadrature(x)
    for values, truth in ((z, mean), (z**2, mean**2 + deviation**2)):
        size = effective_sample_size(values.unsqueeze(0))
        assert (size > draws / 10).all()
        assert ((values.mean(0) - truth).abs() < 4 * values.std(0) / size.sqrt()).all()


def test_quadrature_in_three_dimensions_is_refused() -> None:
    with pytest.raises(InputError, match="there are 3; use nuts"):
        LogisticBernoulli((4,), latent_dim=3).quadrature(torch.zeros(1, 4))
