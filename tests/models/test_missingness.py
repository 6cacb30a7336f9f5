"""Values that are missing by their own size: log p of x and the mask against quadrature."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyrolatent as pl
from pyrolatent import InputError
from pyrolatent.declaration import build
from pyrolatent.inference.evidence.importance import score
from pyrolatent.models.components.missingness import from_noise
from pyrolatent.models.latent import NOISE

SMALL: Any = {"encoder": {"mlp": {"hidden": [8]}}, "decoder": {"mlp": {"hidden": [8]}}}
X = torch.tensor([[12.0, 0.0], [9.0, 0.0], [0.0, 4.0], [11.0, 6.0], [0.0, 0.0]]).double()
MASK = torch.tensor([[True, False], [True, False], [False, True], [True, True], [False, False]])


def table(rows: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Four columns of one factor; in the first two, high values are often missing."""
    random = np.random.default_rng(0)
    u = random.normal(size=(rows, 1))
    full = 5 + 2 * u + 0.5 * random.normal(size=(rows, 4))
    x = full.copy()
    x[:, :2][random.random((rows, 2)) < 1 / (1 + np.exp(5 - full[:, :2]))] = np.nan
    return full, x


def model_of(likelihood: Any = "normal", **options: Any) -> Any:
    torch.manual_seed(1)
    options = {"missingness": "self_masking", **options}
    model = pl.VAE((2,), latent_dim=1, likelihood=likelihood, **SMALL, **options).double()
    model.fit_scaling([(torch.tensor([[8.0, 3.0], [12.0, 7.0]]).double(), None, None)])
    if model.missingness is None:
        return model.eval()
    with torch.no_grad():
        model.missingness.intercept.copy_(torch.tensor([0.3, -0.5]))
        model.missingness.slope.copy_(torch.tensor([-1.5, 2.0]))
    return model.eval()


def cell(model: Any, d: int, z: Tensor, x: Tensor) -> Tensor:
    """log p(x_d | z) + log P(observed | x_d) of values (grid, values) at z (grid, 1)."""
    p = model.likelihood(z).base_dist
    loc, scale = p.loc[:, d : d + 1], p.scale[:, d : d + 1]
    s = (x - model.scaling.loc[d]) / model.scaling.scale[d]
    logits = model.missingness.intercept[d] + model.missingness.slopes[d] * s
    return torch.distributions.Normal(loc, scale).log_prob(x), logits


def joint(model: Any, x: Tensor, mask: Tensor) -> Tensor:
    """log p(z_i) p(x_observed | z_i) p(mask | ...) dz over a grid of z, missing cells integrated out, (grid,)."""
    z = torch.linspace(-7, 7, 701, dtype=torch.float64).unsqueeze(-1)
    total = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 0]) + math.log(14 / 700)
    t = torch.linspace(-8, 8, 801, dtype=torch.float64)
    for d in range(2):
        if mask[d]:
            density, logits = cell(model, d, z, x[d].reshape(1, 1))
            total = total + (density + torch.nn.functional.logsigmoid(logits))[:, 0]
        else:
            p = model.likelihood(z).base_dist
            values = p.loc[:, d : d + 1] + p.scale[:, d : d + 1] * t
            density, logits = cell(model, d, z, values)
            width = p.scale[:, d].log() + math.log(16 / 800)
            total = total + (density + torch.nn.functional.logsigmoid(-logits)).logsumexp(1) + width
    return total


def test_log_p_of_x_and_the_mask_is_that_of_quadrature() -> None:
    """By importance sampling with 20,000 particles, to five of its standard errors; complete rows need no mask."""
    model = model_of()
    truth = torch.stack([joint(model, x, mask).logsumexp(0) for x, mask in zip(X, MASK, strict=True)]).detach()
    torch.manual_seed(0)
    found = score(model, X, None, MASK, particles=20_000)
    assert ((found.log_evidence - truth).abs() < 5 * found.mcse + 1e-6).all()
    complete = score(model, X[3:4], None, None, particles=20_000)
    assert (complete.log_evidence - truth[3:4]).abs() < 5 * complete.mcse + 1e-6
    assert set(found.means) == set(found.kl_dimensions) == {"z"}


@pytest.mark.parametrize("objective", ["iwae", "dreg"])
def test_gradients_are_those_of_quadrature(objective: str) -> None:
    """Of the decoder, the slopes and intercepts, with many particles: to a fiftieth of their size."""
    model = model_of()
    parts = [*model.likelihood.parameters(), *model.missingness.parameters()]
    truth = torch.stack([joint(model, x, mask).logsumexp(0) for x, mask in zip(X, MASK, strict=True)]).sum()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(truth, parts)])
    built = build("objective", {objective: {"particles": 4000}})
    torch.manual_seed(0)
    several = []
    for _ in range(20):
        loss = built.differentiable_loss(model.generate, model.infer, X, None, MASK)
        several.append(-torch.cat([g.flatten() for g in torch.autograd.grad(loss, parts)]))
    found, error = torch.stack(several).mean(0), torch.stack(several).std(0) / 20**0.5
    assert ((found - exact).abs() < 5 * error + 0.02 * exact.norm() / len(exact) ** 0.5).all()


def test_missing_cells_are_drawn_given_that_they_are_missing() -> None:
    """The mean of 2,000 draws within five standard errors of quadrature, and away from what ignores the mask."""
    model = model_of()
    x, mask = X[:2], MASK[:2]
    torch.manual_seed(0)
    drawn = pl.impute(model, x, mask, draws=2000, particles=500)[..., 1]
    plain = model_of(missingness=None)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("missingness")})
    ignoring = pl.impute(plain, x, mask, draws=2000, particles=500)[..., 1]
    for row in range(2):
        z = torch.linspace(-7, 7, 701, dtype=torch.float64).unsqueeze(-1)
        p = model.likelihood(z).base_dist
        t = torch.linspace(-8, 8, 801, dtype=torch.float64)
        values = p.loc[:, 1:] + p.scale[:, 1:] * t
        density, logits = cell(model, 1, z, values)
        of_first, logits_of_first = cell(model, 0, z, x[row, :1].reshape(1, 1))
        log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z) + of_first
        log_p = log_p + density + torch.nn.functional.logsigmoid(-logits) + p.scale[:, 1:].log()
        weight = log_p.flatten().softmax(0)
        mean = (weight * values.flatten()).sum()
        error = drawn[:, row].std() / 2000**0.5
        assert (drawn[:, row].mean() - mean).abs() < 5 * error + 0.02 * drawn[:, row].std()
        assert (ignoring[:, row].mean() - mean).abs() > 10 * error
        assert logits_of_first.isfinite().all()


def test_draws_from_noise_are_quantiles() -> None:
    noise = torch.randn(50, 2).double()
    for likelihood, options in (
        ("normal", {}),
        ("laplace", {}),
        ("Gumbel", {}),
        ("normal", {"scaling": "log1p"}),
        ({"columns": {"0": "laplace", "1": {"normal": {"scaling": "log"}}}}, {}),
    ):
        p = model_of(likelihood, **options).decode(torch.randn(50, 1)).base_dist
        drawn = from_noise(p, noise)
        assert drawn.requires_grad
        one = p.expand((50, 2))
        found = torch.stack([(one.sample(torch.Size([2000])) <= drawn).double().mean(0)])
        assert (found - torch.special.ndtr(noise)).abs().max() < 5 * 0.5 / 2000**0.5


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson", "student_t", "gamma", "multivariate_normal"])
def test_cells_without_pathwise_draws_are_refused(likelihood: Any) -> None:
    with pytest.raises(InputError, match=r"missingness draws missing cells with gradients.*leave missingness out"):
        pl.VAE((2,), latent_dim=1, likelihood=likelihood, missingness="self_masking")


def test_other_refusals() -> None:
    columns = {"columns": {"0": "normal", "1": {"categorical": {"levels": 3}}}}
    with pytest.raises(InputError, match="missingness draws missing cells with gradients"):
        pl.VAE((2,), latent_dim=1, likelihood=columns, missingness="self_masking")
    data = pl.load_data(table(100)[0])
    model = pl.VAE((4,), latent_dim=1, likelihood="normal", missingness="self_masking", **SMALL)
    with pytest.raises(InputError, match=r"missingness is learned from missing cells, of which .* has none; leave"):
        pl.fit(model, data, epochs=1, progress=False)
    gaps = pl.load_data(table(200)[1])
    with pytest.raises(InputError, match="observes 'mask' beside it"):
        pl.check(pl.fit(model, gaps, epochs=1, progress=False).model, gaps)


@pytest.mark.slow
def test_imputation_is_better_where_high_values_are_missing(tmp_path: Path) -> None:
    """The error of imputed values, their bias and the intervals of 90 %, with missingness against without it."""
    full, x = table()
    data = pl.load_data(x)
    gaps = np.isnan(x)[:200]
    found = {}
    for missingness in (None, "self_masking", {"self_masking": {"which": "high"}}):
        torch.manual_seed(0)
        model = pl.VAE(
            (4,), latent_dim=1, likelihood={"normal": {"scale": "learned_each"}}, missingness=missingness,
            encoder={"mlp": {"hidden": [20]}}, decoder={"mlp": {"hidden": []}},
        )  # fmt: skip
        adam = {"Adam": {"lr": 0.01}}
        fit = pl.fit(model, data, epochs=40, progress=False, objective={"iwae": {"particles": 5}}, optimizer=adam)
        drawn = pl.impute(model, x[:200], ~gaps, draws=40, particles=50).numpy()[:, gaps]
        error = drawn.mean(0) - full[:200][gaps]
        low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
        held = ((full[:200][gaps] > low) & (full[:200][gaps] < high)).mean()
        found[str(missingness)] = error.mean(), np.sqrt(np.square(error).mean()), held
    ignored, free, declared = found.values()
    for bias, rmse, held in (free, declared):
        assert abs(bias) < 0.2 < -ignored[0]
        assert rmse < 0.92 * ignored[1]
        assert held > 0.82 > ignored[2]  # of 40 draws, whose quantiles are 0.86 apart
    assert (model.missingness.slopes < 0).all()

    run = pl.Run.save(tmp_path / "run", fit)
    loaded = pl.Run.load(run.path).model
    first = pl.evaluate(model, data, particles=50)
    assert pl.evaluate(loaded, data, particles=50).log_evidence == first.log_evidence
    assert first.measure == "mass of the mask and density (in the units of the data)"
    assert first.kl_per_dimension is not None
    assert len(first.kl_per_dimension) == 1
    batch = data.test.batch(slice(None))
    assert model.encode(batch.x, mask=batch.mask).keys() == {"z"}
    assert NOISE not in pl.inference.draws.simulate(model, 3)[1]
    assert pl.reconstruct(model, batch.x, mask=batch.mask).shape == batch.x.shape
    assert "p(mask | x) = Bernoulli, high values missing more" in str(model)


@pytest.mark.parametrize("objective", ["elbo", "analytic_elbo", "iwae", "dreg", "stl", "rws"])
@pytest.mark.parametrize("model", ["vae", "conditional_vae", "semi_supervised_vae"])
def test_every_objective_trains(model: str, objective: str) -> None:
    data = pl.load_data(table(200)[1], labels=np.arange(200) % 2)
    options = {"latent_dim": 1, "likelihood": "normal", "missingness": "self_masking", **SMALL}
    built = build("model", {model: options}, event_shape=(4,), label_dim=2)
    fit = pl.fit(built, data, epochs=2, progress=False, objective=objective)
    assert math.isfinite(fit.history[-1]["validation_elbo"])
