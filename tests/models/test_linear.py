"""Linear-Gaussian models against conditioning in NumPy and densities of SciPy.

With x | z ~ N(W z + b, S), z ~ N(0, I / alpha), x and z are jointly normal: cov(x) = W W' / alpha + S = C and
cov(z, x) = W' / alpha, so that z | x ~ N(W' C^-1 (x - b) / alpha, I / alpha - W' C^-1 W / alpha^2), C and W having the
observed rows alone.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from pyrolatent import VAE, Data, InputError, evaluate, fit, load_data, sample
from pyrolatent.inference.objectives.bounds import ELBO, IWAE
from pyrolatent.models import LinearGaussian

D, L, N = 6, 2, 120
SETTINGS: list[dict[str, Any]] = [
    {"noise": "isotropic"},
    {"noise": "diagonal", "precision": 2.5},
    {"noise": 0.75, "precision": 0.4},
    {"noise": [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]},
    {"noise": "full", "precision": 1.5},
    {"noise": (0.3 * np.ones((D, D)) + 0.5 * np.eye(D)).tolist()},
]
MASKED = pytest.mark.parametrize("with_mask", [False, True], ids=["whole", "masked"])
EVERY = pytest.mark.parametrize(
    "settings", SETTINGS, ids=["isotropic", "diagonal", "known", "known each", "full", "known full"]
)


def linear(**options: Any) -> LinearGaussian:
    """In float64, all parameters drawn."""
    model = LinearGaussian((D,), latent_dim=L, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return model


def observed(with_mask: bool) -> tuple[Tensor, Tensor | None]:
    """Correlated data of uneven scales, and a mask that leaves at least one element of each datapoint."""
    random = np.random.default_rng(3)
    x = random.normal(size=(N, L)) @ random.normal(size=(L, D)) + 0.6 * random.normal(size=(N, D))
    x = torch.from_numpy(x) * torch.linspace(0.7, 1.3, D) + torch.arange(D)
    mask = torch.from_numpy(random.random((N, D)) < 0.7)
    mask[:, 0] |= ~mask.any(1)
    return x, mask if with_mask else None


def conditioned(model: LinearGaussian, x: Tensor, mask: Tensor | None) -> list[tuple[Any, ...]]:
    """Mean and covariance of z | x and log p(x) of each datapoint, by conditioning the joint normal in NumPy."""
    weight, bias, scale = (value.detach().numpy() for value in model.likelihood.parameters_flat())
    sigma = np.diag(scale**2) if scale.ndim == 1 else scale @ scale.T
    whole = weight @ weight.T / model.precision + sigma
    rows = []
    seen_of_each = (torch.ones(N, D, dtype=torch.bool) if mask is None else mask).numpy()
    for datapoint, seen in zip(x.numpy(), seen_of_each, strict=True):
        covariance, across = whole[np.ix_(seen, seen)], weight[seen].T / model.precision
        gain = across @ np.linalg.inv(covariance)
        mean = gain @ (datapoint - bias)[seen]
        evidence = scipy.stats.multivariate_normal(bias[seen], covariance).logpdf(datapoint[seen])
        rows.append((mean, np.eye(L) / model.precision - gain @ across.T, evidence))
    return [*zip(*rows, strict=True)]


@MASKED
@EVERY
def test_posterior_and_evidence_are_those_of_the_joint_normal(settings: dict[str, Any], with_mask: bool) -> None:
    model, (x, mask) = linear(**settings), observed(with_mask)
    means, covariances, evidences = conditioned(model, x, mask)
    posterior = model.exact_posterior(x, mask)
    assert (posterior.batch_shape, posterior.event_shape) == ((N,), (L,))
    close = {"rtol": 1e-7, "atol": 1e-7}
    np.testing.assert_allclose(posterior.mean.detach(), np.stack(means), **close)
    np.testing.assert_allclose(posterior.covariance_matrix.detach(), np.stack(covariances), **close)
    np.testing.assert_allclose(model.log_evidence(x, mask).detach(), np.stack(evidences), **close)


@MASKED
@EVERY
@pytest.mark.parametrize("objective", [ELBO(particles=3), IWAE(particles=3)])
def test_with_the_exact_posterior_every_bound_is_the_evidence(
    objective: Any, settings: dict[str, Any], with_mask: bool
) -> None:
    """Every weight is p(x) whatever was drawn, and so is its gradient that of log p(x)."""
    model, (x, mask) = linear(**settings), observed(with_mask)
    if with_mask and not model.likelihood.independent:
        with pytest.raises(InputError, match="does not factorise over its elements"):
            objective.weigh(model.generate, model.infer, x, None, mask)
        return
    weights = objective.weigh(model.generate, model.infer, x, None, mask)
    evidence = model.log_evidence(x, mask)
    torch.testing.assert_close(weights.log_weights(), evidence.expand(3, N))
    parameters = [*model.parameters()]
    truth = torch.autograd.grad(evidence.sum(), parameters)
    torch.testing.assert_close(objective.bound(weights), evidence)
    for found, true in zip(torch.autograd.grad(objective.bound(weights).sum(), parameters), truth, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-8, atol=1e-8)


def gradient(model: LinearGaussian, x: Tensor, mask: Tensor | None) -> float:
    """The largest derivative of the mean log p(x)."""
    gradients = torch.autograd.grad(model.log_evidence(x, mask).mean(), [*model.parameters()])
    return max(part.abs().max().item() for part in gradients)


def by_em(model: LinearGaussian, x: Tensor, mask: Tensor | None) -> list[float]:
    """The evidence before each step, until the steps no longer change it."""
    evidences = [-np.inf]
    while len(evidences) < 4000:
        evidences.append(model.log_evidence(x, mask).mean().item())
        if abs(evidences[-1] - evidences[-2]) < 1e-13:
            break
        model.em_step(x, mask)
    return evidences[1:]


@pytest.mark.parametrize(
    ("settings", "with_mask"),
    [
        pytest.param(settings, with_mask, marks=[pytest.mark.slow] * (settings["noise"] == "diagonal" and with_mask))
        for settings in SETTINGS[:3]
        for with_mask in (False, True)
    ],
)
def test_em_never_lowers_the_evidence_and_ends_where_its_gradient_is_zero(
    settings: dict[str, Any], with_mask: bool
) -> None:
    """1e-12 is the rounding of a mean of 120 numbers near 10; the gradient is autograd's, of the exact evidence."""
    model, (x, mask) = linear(**settings), observed(with_mask)
    assert gradient(model, x, mask) > 1e-2
    evidences = by_em(model, x, mask)
    assert min(after - before for before, after in itertools.pairwise(evidences)) > -1e-12
    assert evidences[-1] > evidences[0] + 1
    assert gradient(model, x, mask) < 1e-6


def test_em_with_any_covariance_ends_at_that_of_the_data() -> None:
    model, (x, mask) = linear(noise="full"), observed(True)
    model.likelihood.weight.data *= 0.1  # with most of the variance in Sigma, which converges soon
    model.likelihood.unconstrained_scale.data = 2 * torch.eye(D, dtype=torch.float64)
    evidences = by_em(model, x, None)
    assert min(after - before for before, after in itertools.pairwise(evidences)) > -1e-9
    assert gradient(model, x, None) < 1e-5
    weight, bias, factor = model.likelihood.parameters_flat()
    covariance = np.cov(x.numpy().T, bias=True)
    np.testing.assert_allclose((weight @ weight.T + factor @ factor.T).detach(), covariance, atol=1e-6)
    np.testing.assert_allclose(bias.detach(), x.mean(0), atol=1e-6)
    with pytest.raises(InputError, match="em takes missing entries where Sigma is diagonal"):
        model.em_step(x, mask)


def test_any_covariance_is_declared_trained_and_evaluated() -> None:
    sigma = [[1.0, 0.5], [0.5, 2.0]]
    model = LinearGaussian((2,), latent_dim=1, noise=sigma, posterior={"normal": {"precision": "learned"}})
    data = load_data(sample(model, 300))
    fit(model, data, objective="elbo", epochs=2, progress=False)
    found = evaluate(model, data, particles=200)
    exact = model.log_evidence(data.test.x).mean().item()
    assert found.log_evidence == pytest.approx(exact, abs=0.1)
    assert "known covariance" in str(model)


@pytest.mark.parametrize(
    ("noise", "said"),
    [([1.0, 2.0], "6 of them, or a matrix of 6 x 6"), (np.ones((D, D)).tolist(), "which is no covariance"),
     ([[1.0], [1.0, 2.0]], "6 of them, or a matrix of 6 x 6")],
)  # fmt: skip
def test_what_is_no_covariance_is_refused(noise: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        LinearGaussian((D,), latent_dim=1, noise=noise)
    with pytest.raises(InputError, match="is of vectors, but x has shape"):
        LinearGaussian((2, 3), latent_dim=1, noise="full")


@pytest.mark.parametrize("precision", [1.0, 3.0])
def test_the_closed_form_is_a_maximum_that_em_reaches(precision: float) -> None:
    x, _ = observed(False)
    solved, stepped = linear(precision=precision), linear(precision=precision)
    solved.solve(x)
    assert gradient(solved, x, None) < 1e-9
    assert by_em(stepped, x, None)[-1] == pytest.approx(solved.log_evidence(x).mean().item(), abs=1e-8)
    # Tipping and Bishop: the covariance keeps the leading eigenvalues, and the mean of the others replaces them.
    weight, _, scale = solved.likelihood.parameters_flat()
    values = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))
    expected = np.r_[np.full(D - L, values[:-L].mean()), values[-L:]]
    found = np.linalg.eigvalsh((weight @ weight.T / precision + scale.diag() ** 2).detach().numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-9)


FULL_BATCH: dict[str, Any] = {
    "optimizer": {"Adam": {"lr": 0.3}}, "scheduler": {"ExponentialLR": {"gamma": 0.98}},
    "batch_size": 1000, "epochs": 300,
}  # fmt: skip


def sampled(size: int) -> tuple[LinearGaussian, Data]:
    """A known model and float32 data drawn from it."""
    truth = linear(noise=0.5)
    z = torch.randn(size, L).double()
    with torch.no_grad():
        return truth, load_data(truth.likelihood(z).sample().float().numpy())


@pytest.mark.parametrize(
    ("objective", "settings"),
    [("closed_form", {}), ("em", {"epochs": 100}), pytest.param("elbo", FULL_BATCH, marks=pytest.mark.slow)],
)
def test_fit_by_every_objective_reaches_the_maximum(objective: str, settings: dict[str, Any]) -> None:
    """Of float32 data by the usual interface, to 0.001 nats for float32 and gradient steps of a noise-free gradient."""
    _, data = sampled(400)
    x = data.train.batch(slice(None)).x
    best = linear()
    best.solve(x.double())
    fitted = fit(LinearGaussian((D,), latent_dim=L), data, progress=False, objective=objective, **settings)
    model = fitted.model
    assert isinstance(model, LinearGaussian)
    assert model.log_evidence(x).mean().item() == pytest.approx(best.log_evidence(x.double()).mean().item(), abs=1e-3)
    assert len(fitted.history) == settings.get("epochs", 1)
    held_out = model.log_evidence(data.validation.batch(slice(None)).x).mean().item()
    assert fitted.history[-1]["validation_elbo"] == pytest.approx(held_out, abs=1e-4)


def test_a_closed_form_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="isotropic alone; declare objective: em"):
        linear(noise="diagonal").solve(observed(False)[0])
    with pytest.raises(InputError, match="VAE has no steps of expectation-maximisation, which em needs"):
        fit(VAE((D,), latent_dim=2, likelihood="normal"), sampled(50)[1], progress=False, objective="em")


def test_a_linear_vae_reaches_the_exact_evidence() -> None:
    """On held-out data, to 0.1 nats, where the data come from a linear-Gaussian model; the posterior is a diagonal
    normal, which is exact once the columns of the decoder are orthogonal."""
    truth, data = sampled(2500)
    straight = {"mlp": {"hidden": []}}
    noise = {"normal": {"scale": "learned"}}  # one scale for all entries, in the units of x
    model = VAE((D,), latent_dim=L, likelihood=noise, encoder=straight, decoder=straight, scaling="none")
    settings = {"optimizer": {"Adam": {"lr": 0.03}}, "scheduler": {"ExponentialLR": {"gamma": 0.9}}, "epochs": 30}
    fit(model, data, progress=False, objective="analytic_elbo", **settings)
    evidence = truth.log_evidence(data.test.batch(slice(None)).x.double()).mean().item()
    evaluation = evaluate(model, data, particles=50)
    assert evaluation.elbo == pytest.approx(evidence, abs=0.1)
    assert evaluation.log_evidence == pytest.approx(evidence, abs=0.1)


def test_a_closed_form_refuses_missing_values() -> None:
    x, mask = observed(True)
    data = load_data(x.float().numpy(), mask=mask.numpy())
    with pytest.raises(InputError, match=r"mask|missing|observed"):
        fit(LinearGaussian((D,), latent_dim=L), data, progress=False, objective="closed_form")


def test_em_survives_an_element_that_is_never_observed() -> None:
    """It says nothing, so that the evidence and the other elements' parameters are those without it."""
    x, mask = observed(True)
    mask[:, 3] = False
    model = linear()
    assert by_em(model, x, mask)[-1] > -100
