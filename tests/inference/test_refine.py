"""Local posteriors against the linear-Gaussian model, whose evidence and best diagonal normal are closed forms.

With precision P = I + W'W / s^2 of the exact posterior, the diagonal normal of the largest ELBO has its mean and the
variances 1 / P_ii, and lacks KL = (sum_i log P_ii - log det P) / 2 of log p(x).
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor

from pyrolatent import (
    VAE,
    ConditionalVAE,
    Data,
    DiscreteVAE,
    GenerativeNetwork,
    HierarchicalVAE,
    InputError,
    LatentVariableModel,
    LinearGaussian,
    SemiSupervisedVAE,
    fit,
    sample,
)
from pyrolatent.inference.objectives.per_datapoint import Local
from pyrolatent.inference.refine import refine
from pyrolatent.inference.weights import weigh

D, L, NOISE = 6, 2, 0.7
SMALL: dict[str, Any] = {"encoder": {"mlp": {"hidden": [8]}}, "decoder": {"mlp": {"hidden": [8]}}}


def linear(correlated: bool, **options: Any) -> LinearGaussian:
    """In float64, its exact posterior diagonal unless correlated."""
    model = LinearGaussian((D,), latent_dim=L, noise=NOISE, **({"posterior": "normal"} | options)).double()
    columns = torch.linalg.qr(torch.randn(D, L, dtype=torch.float64))[0] * torch.tensor([1.5, 0.8])
    with torch.no_grad():
        model.likelihood.weight.copy_(
            columns @ torch.tensor([[1.0, 0.7], [0.0, 1.0]]).double() if correlated else columns
        )
    return model


def bounds(model: LatentVariableModel, guide: Any, *inputs: Any, particles: int = 200) -> Tensor:
    """The ELBO of each draw and datapoint, (particles, batch)."""
    with torch.no_grad():
        weights = weigh(model.generate, guide, *inputs, particles=particles)
        return weights.expect(weights.log_ratio())


@pytest.mark.parametrize("start", ["encoder", pytest.param("prior", marks=pytest.mark.slow)])
def test_a_diagonal_posterior_is_found_exactly(start: Any) -> None:
    """Every weight is then p(x). Log weights fall off with the square of what the numbers miss, here about 1e-3."""
    model = linear(correlated=False)
    x = sample(model, 10)
    found = bounds(model, refine(model, x, steps=400, start=start), x)
    torch.testing.assert_close(found, model.log_evidence(x).detach().expand_as(found), rtol=0, atol=2e-4)
    assert bounds(model, model.infer, x).mean() < found.mean() - 1


@pytest.mark.parametrize("with_mask", [False, True])
def test_the_best_diagonal_normal_lacks_what_its_closed_form_says(with_mask: bool) -> None:
    model = linear(correlated=True)
    x = sample(model, 10)
    mask = torch.rand(10, D) < 0.7 if with_mask else None
    precision = torch.linalg.inv(model.exact_posterior(x, mask).covariance_matrix)
    missing = 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - precision.logdet())
    assert missing.mean() > 0.1
    draws = bounds(model, refine(model, x, None, mask, steps=200, particles=20), x, None, mask, particles=4000)
    error = draws.std(0) / math.sqrt(len(draws))
    truth = (model.log_evidence(x, mask) - missing).detach()
    # Four standard errors of the draws; 5e-3 is the square of what noise leaves in the numbers, always below the truth.
    assert ((draws.mean(0) - truth) < 4 * error).all()
    assert ((truth - draws.mean(0)) < 4 * error + 5e-3).all()


@pytest.mark.slow
def test_the_full_family_finds_the_correlated_posterior() -> None:
    model = linear(correlated=True, posterior="multivariate_normal")
    x = sample(model, 10)
    found = bounds(model, refine(model, x, steps=800), x)
    torch.testing.assert_close(found, model.log_evidence(x).detach().expand_as(found), rtol=0, atol=2e-3)


def test_no_steps_give_the_encoder_s_posterior() -> None:
    model = linear(correlated=True)
    x = sample(model, 10)
    draws = []
    for guide in (model.infer, refine(model, x, steps=0)):
        torch.manual_seed(1)
        draws.append(bounds(model, guide, x))
    torch.testing.assert_close(*draws)


MODELS: dict[str, Callable[[], LatentVariableModel]] = {
    "normal": lambda: VAE((D,), latent_dim=2, **SMALL),
    "convolution": lambda: VAE((1, 8, 8), latent_dim=2, encoder={"conv": {"channels": [4]}}, decoder="mlp"),
    "flow": lambda: VAE((D,), latent_dim=2, posterior={"iaf": {"hidden": 8}}, **SMALL),
    "planar": lambda: VAE((D,), latent_dim=2, posterior="planar", **SMALL),
    "mapped": lambda: VAE((D,), latent_dim=2, prior="exponential", posterior={"mapped": {"onto": "positive"}}, **SMALL),
    "gamma": lambda: VAE((D,), latent_dim=2, prior="gamma", posterior="gamma", **SMALL),
    "vamp": lambda: VAE((D,), latent_dim=2, prior={"vamp": {"components": 3}}, **SMALL),
    "conditional": lambda: ConditionalVAE((D,), 3, latent_dim=2, prior="label_normal", **SMALL),
    "hierarchical": lambda: HierarchicalVAE((D,), latent_dims=(3, 2), inference="bottom_up", between="mlp", **SMALL),
    "semi-supervised": lambda: SemiSupervisedVAE((D,), 3, latent_dim=2, **SMALL),
    "enumerated": lambda: DiscreteVAE((D,), latent_dims=(3,), estimator="enumerate", **SMALL),
    "two enumerated layers": lambda: DiscreteVAE((D,), latent_dims=(3, 2), estimator="enumerate", **SMALL),
}


STARTS = [(name, "encoder") for name in MODELS] + [
    pytest.param(name, "prior", marks=[] if name in ("normal", "two enumerated layers") else pytest.mark.slow)
    for name in MODELS
]


@pytest.mark.parametrize(("name", "start"), STARTS)
def test_refinement_raises_the_bound_of_every_model(name: str, start: Any) -> None:
    """By more than three standard errors of the mean difference over draws."""
    model = MODELS[name]()
    x = torch.bernoulli(torch.full((7, *model.event_shape), 0.5))
    y = torch.arange(7) % 3 if model.conditional else None
    guide = refine(model, x, y, steps=30, start=start)
    before, after = (bounds(model, each, x, y, particles=4000).mean(1) for each in (model.infer, guide))
    error = (before.var() / len(before) + after.var() / len(after)).sqrt()
    assert after.mean() - before.mean() > 3 * error


@pytest.mark.parametrize(("name", "start"), STARTS)
def test_local_moves_every_parameter(name: str, start: Any) -> None:
    model = MODELS[name]()
    x = torch.bernoulli(torch.full((7, *model.event_shape), 0.5))
    y = torch.arange(7) % 3 if model.conditional else None
    Local(steps=2, start=start).accumulate(model, (x, y, None))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_nearest_to_the_prior_is_the_prior_where_the_family_holds_it() -> None:
    model = VAE((D,), latent_dim=2, prior={"normal": {"precision": 0.25}}, **SMALL)
    x = torch.zeros(3, D)
    with torch.no_grad():
        q = weigh(model.generate, refine(model, x, start="prior", steps=0), x).guide_trace.nodes["z"]["fn"].base_dist
    torch.testing.assert_close(q.loc, torch.zeros(3, 2), rtol=0, atol=0.01)
    torch.testing.assert_close(q.scale, torch.full((3, 2), 2.0), rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: LinearGaussian((D,), latent_dim=2), "LinearGaussian has no network and family of its own"),
        (lambda: GenerativeNetwork((D,), latent_dim=2), "GenerativeNetwork has no network and family of its own"),
        (lambda: HierarchicalVAE((D,), latent_dims=(3, 2)), "posterior of each of z2, z1"),
        (lambda: DiscreteVAE((D,), latent_dims=(3,)), "the posterior of z1 has draws without a gradient"),
    ],
)
def test_what_has_no_numbers_to_refine_is_refused(model: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        refine(model(), torch.zeros(2, D))


# The objective.


def gradients(model: LinearGaussian, x: Tensor, repeats: int, **options: Any) -> dict[str, Tensor]:
    """Independent gradients of the mean bound, (repeats, ...) by parameter."""
    found: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for _ in range(repeats):
        model.zero_grad()
        Local(**options).accumulate(model, (x, None, None))
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            found[name].append(-parameter.grad)
    return {name: torch.stack(values) for name, values in found.items()}


@pytest.mark.slow
def test_the_model_climbs_the_evidence_and_the_encoder_its_own_bound() -> None:
    """Where q_n is the exact posterior, E_q[d log p(x, z)] = d log p(x); the encoder's ELBO is a closed form:

    E_q[log p(x | z)] = log N(x; W m + b, s^2) - sum_i |W_i|^2 v_i / (2 s^2), and KL(N(m, v) || N(0, I)).
    """
    model = linear(correlated=False)
    x = sample(model, 10)
    q: Any = model.posterior(x).base_dist
    weight, bias, scale = model.likelihood.parameters_flat()
    own = torch.distributions.Normal(q.loc @ weight.T + bias, scale).log_prob(x).sum(-1)
    own = own - (q.scale.square() * weight.square().sum(0) / (2 * NOISE**2)).sum(-1)
    own = own - 0.5 * (q.loc.square() + q.scale.square() - 2 * q.scale.log() - 1).sum(-1)
    truth = {}
    for value, part in ((own, "posterior"), (model.log_evidence(x), "likelihood")):
        names = [
            name for name, parameter in model.named_parameters() if name.startswith(part) and parameter.requires_grad
        ]
        grads = torch.autograd.grad(value.mean(), [model.get_parameter(name) for name in names])
        truth |= dict(zip(names, grads, strict=True))
    # Each datapoint stands there ten times, so that eight gradients are of eighty draws of the refinement.
    found = gradients(model, x.repeat(10, 1), 8, steps=60, particles=20)
    assert found.keys() == truth.keys()
    for name, values in found.items():
        error = values.std(0) / math.sqrt(len(values))
        # Of 34 numbers none lies seven standard errors of eight values away but by a chance of 1 %, and these are
        # small; 1e-3 is left by the refinement.
        assert ((values.mean(0) - truth[name]).abs() < 7 * error + 1e-3).all(), name


def test_both_bounds_are_reported_and_the_refined_one_is_the_better(vae: Callable[..., VAE], binary_data: Data) -> None:
    settings = {"optimizer": {"Adam": {"lr": 0.02}}, "batch_size": 16, "device": "cpu"}
    fitted = fit(vae(), binary_data, objective={"local": {"particles": 10}}, epochs=15, progress=False, **settings)
    first, last = fitted.history[0], fitted.history[-1]
    gains = torch.tensor([row["train_loss_amortized"] - row["train_loss"] for row in fitted.history])
    assert gains.mean() > 3 * gains.std() / math.sqrt(len(gains))
    assert last["train_loss"] < first["train_loss"] - 0.1
    assert last["train_loss_amortized"] < first["train_loss_amortized"] - 0.1


def test_under_svi(vae: Callable[..., VAE], binary_data: Data) -> None:
    model, x = vae(), binary_data.train.batch(slice(None)).x
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), loss=Local(steps=3))
    losses = [svi.step(x) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5]) - 5
    with pytest.raises(InputError, match=r"give its model\.model and model\.guide"):
        Local().loss(model.generate, lambda x: model.infer(x), x)


def test_the_loss_is_the_refined_bound_s_with_the_gradient_of_accumulate(vae: Callable[..., VAE]) -> None:
    model, x = vae().double(), torch.bernoulli(torch.full((5, 6), 0.5)).double()
    torch.manual_seed(2)
    loss = Local().loss_and_grads(model.model, model.guide, x)
    summed = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.manual_seed(2)
    bound = Local().accumulate(model, (x, None, None))
    assert loss == pytest.approx(-bound.item(), rel=1e-12)
    for one, other in zip(summed, [p.grad for p in model.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(one, 5 * other)


def test_fit_refuses_what_cannot_be_refined(binary_data: Data) -> None:
    model = HierarchicalVAE((6,), latent_dims=(3, 2))
    with pytest.raises(
        InputError, match="no numbers that could be made free for each datapoint; declare objective: elbo"
    ):
        fit(model, binary_data, objective="local", progress=False)
