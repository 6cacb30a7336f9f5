"""Units: densities, draws and errors are in the units of x, whatever networks see."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

import pyrolatent as pl
from pyrolatent import InputError
from pyrolatent.declaration import build, complete, validate
from pyrolatent.inference.evidence.importance import score
from pyrolatent.models.components.conditional import filled, masked
from pyrolatent.models.components.scaling import Affine

LOC, SCALE = torch.tensor([50.0, -3.0, 1e4, 0.2]), torch.tensor([20.0, 0.5, 3e3, 0.01])
SMALL: Any = {"encoder": {"mlp": {"hidden": [8]}}, "decoder": {"mlp": {"hidden": [8]}}}
MODELS: dict[str, dict[str, Any]] = {
    "vae": {"latent_dim": 2, **SMALL},
    "vae of vamp": {"latent_dim": 2, "prior": {"vamp": {"components": 3}}, **SMALL},
    "conditional_vae": {"latent_dim": 2, **SMALL},
    "semi_supervised_vae": {"latent_dim": 2, **SMALL},
    "hierarchical_vae": {"latent_dims": (3, 2), "width": 8, **SMALL},
    "hierarchical_vae bottom up": {"latent_dims": (3, 2), "inference": "bottom_up", **SMALL},
    "discrete_vae": {"latent_dims": (3,), "estimator": "enumerate", **SMALL},
    "discrete_vae by scores": {"latent_dims": (3,), **SMALL},
    "generative_network": {"latent_dim": 2, "decoder": SMALL["decoder"]},
}
LIKELIHOODS: dict[str, dict[str, Any]] = {
    "normal": {"min_scale": 0},
    "laplace": {"min_scale": 0},
    "student_t": {"min_scale": 0},
    "multivariate_normal": {"min_scale": 0},
    "low_rank_normal": {"min_scale": 1e-6},
    "Gumbel": {},
    "AsymmetricLaplace": {},
    "Stable": {},
}


def table(rows: int = 100, gaps: float = 0.0, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    u = generator.normal(size=(rows, 1))
    x = (u + generator.normal(size=(rows, 4))) * SCALE.numpy() + LOC.numpy()
    x[generator.random(x.shape) < gaps] = np.nan
    return x


def model_of(name: str, **options: Any) -> Any:
    declared = {name.split()[0]: {**MODELS[name], "likelihood": "normal", **options}}
    return build("model", declared, event_shape=(4,), label_dim=3)


def by_hand_and_ours(name: str, likelihood: Any = "normal") -> tuple[Any, Any, Tensor]:
    """A model of standardised data without scaling, one of the data with the same weights, and the data."""
    torch.manual_seed(0)
    x = torch.as_tensor(table())
    plain = model_of(name, likelihood=likelihood, scaling="none").double()
    torch.manual_seed(0)
    model = model_of(name, likelihood=likelihood).double()
    model.prepare(x)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("scaling")})
    return plain.eval(), model.eval(), x


@pytest.mark.parametrize("name", MODELS)
def test_log_p_is_that_of_standardised_data_and_the_jacobian(name: str) -> None:
    """Of every model, for the bound and the evidence at the same draws, with and without gaps."""
    plain, model, x = by_hand_and_ours(name, {"normal": {"min_scale": 0}})
    s, y = (x - x.mean(0)) / x.std(0, correction=0), torch.arange(100) % 3
    for mask in (None, torch.rand(x.shape) < 0.7):
        seen = torch.ones_like(s) if mask is None else mask
        labels = y if model.label_dim else None
        found = []
        for one, data in ((plain, s), (model, x)):
            torch.manual_seed(1)
            with torch.no_grad():
                found.append(score(one, data, labels, mask, particles=5))
        jacobian = (seen * x.std(0, correction=0).log()).sum(1)
        torch.testing.assert_close(found[1].elbo, found[0].elbo - jacobian, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found[1].log_evidence, found[0].log_evidence - jacobian, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_location_scale_families_stay_what_they_are(name: str) -> None:
    """Density, draws, mean and variance of loc + scale s, and no distribution around them."""
    plain, model, x = by_hand_and_ours("vae", {name: LIKELIHOODS[name]} if LIKELIHOODS[name] else name)
    loc, scale, z = x.mean(0), x.std(0, correction=0), torch.randn(100, 2)
    s, ours = plain.decode(z), model.decode(z)
    assert type(ours) is type(s)
    if name != "Stable":
        torch.testing.assert_close(
            ours.log_prob(x), s.log_prob((x - loc) / scale) - scale.log().sum(), rtol=1e-7, atol=1e-7
        )
        torch.testing.assert_close(ours.mean, loc + scale * s.mean)
        torch.testing.assert_close(ours.variance, scale.square() * s.variance, rtol=1e-5, atol=0)
    torch.manual_seed(1)
    drawn = s.sample()
    torch.manual_seed(1)
    torch.testing.assert_close(ours.sample(), loc + scale * drawn)


@pytest.mark.parametrize("name", ["gamma", "exponential", "Weibull", "HalfNormal", "InverseGamma", "log_normal"])
def test_positive_families_are_divided(name: str) -> None:
    torch.manual_seed(0)
    plain = model_of("vae", likelihood=name, scaling="none").double()
    model = model_of("vae", likelihood=name, scaling={"divide": 7}).double()
    model.load_state_dict(plain.state_dict())
    x, z = torch.rand(100, 4).double() * 10 + 1, torch.randn(100, 2)
    ours, s = model.decode(z), plain.decode(z)
    tolerance: Any = {"rtol": 1e-3, "atol": 1e-3} if name in ("gamma", "exponential") else {"rtol": 1e-7, "atol": 1e-7}
    torch.testing.assert_close(ours.log_prob(x), s.log_prob(x / 7) - 4 * math.log(7), **tolerance)  # ceilings move
    torch.testing.assert_close(ours.mean, 7 * s.mean, rtol=1e-2, atol=0)


def test_known_scales_and_floors_are_in_the_units_of_x() -> None:
    x = torch.as_tensor(table())
    known = model_of("vae", likelihood={"normal": {"scale": 2.5}}, scaling="standardise").double()
    floored = model_of("vae", likelihood={"normal": {"min_scale": 3.0}}).double()
    correlated = model_of("vae", likelihood={"multivariate_normal": {"min_scale": 3.0}}).double()
    rates = model_of(
        "vae", likelihood={"gamma": {"rate": 4.0, "max_concentration": 9.0}}, scaling={"divide": 10}
    ).double()
    for model in (known, floored, correlated, rates):
        model.prepare(x)
    z = torch.randn(5, 2)
    assert torch.equal(known.decode(z).base_dist.scale, torch.full((5, 4), 2.5).double())
    for model in (floored, correlated):
        model.likelihood.network.last.bias.data.fill_(-40.0)
        model.likelihood.network.last.weight.data.zero_()
    torch.testing.assert_close(floored.decode(z).base_dist.scale, torch.full((5, 4), 3.0).double())
    diagonal = correlated.decode(z).scale_tril.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(diagonal, torch.full((5, 4), 3.0).double())
    rates.likelihood.network.last.bias.data.fill_(1e9)
    assert torch.equal(rates.decode(z).base_dist.rate, torch.full((5, 4), 4.0).double())
    torch.testing.assert_close(
        rates.decode(z).base_dist.concentration, torch.full((5, 4), 9.0).double(), rtol=1e-6, atol=0
    )


def moments(distribution: Any, points: Tensor, weights: Tensor) -> Tensor:
    """Mass, mean and variance of (batch, 1) single numbers by a sum over points, (3, batch)."""
    p = distribution.log_prob(points[:, None, None])[..., 0].exp() * weights[:, None]
    mean = points @ p
    return torch.stack([p.sum(0), mean, points.square() @ p - mean.square()])


PUSHED: dict[str, tuple[Any, Any]] = {
    "bits": ("bernoulli", {"divide": 255}),
    "two numbers": ("bernoulli", "minmax"),
    "levels": ({"categorical": {"levels": 4}}, "minmax"),
    "rounded": ({"discretized_logistic": {"levels": 4}}, {"divide": 255}),
    "shares": ("beta", "minmax"),
    "continuous bits": ("continuous_bernoulli", {"divide": 255}),
    "with both ends": ("zero_one_inflated", "minmax"),
    "logarithms": ({"normal": {"scale": 0.4}}, "log1p"),
}


@pytest.mark.parametrize("name", PUSHED)
def test_what_is_not_a_location_and_a_scale_is_transformed(name: str) -> None:
    """It sums or integrates to one over what x can be, with the moments of its class and of its draws."""
    likelihood, scaling = PUSHED[name]
    torch.manual_seed(0)
    model = pl.VAE((1,), latent_dim=1, likelihood=likelihood, scaling=scaling, **SMALL).double()
    model.prepare(torch.tensor([[2.0], [5.0], [3.0]]).double())
    p = model.decode(torch.randn(6, 1)).base_dist
    low, high = (0.0, 255.0) if isinstance(scaling, dict) else (2.0, 5.0)
    levels = {"bits": 2, "two numbers": 2, "levels": 4, "rounded": 4}.get(name)
    t = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    if name == "logarithms":
        points, weights = torch.expm1(t), torch.exp(t) * 1e-3
    elif levels:
        points, weights = torch.linspace(low, high, levels).double(), torch.ones(levels).double()
    else:
        s = torch.sigmoid(t)  # close to either end, where densities may be infinite
        points, weights = low + (high - low) * s, (high - low) * s * (1 - s) * 1e-3
        if name == "with both ends":
            points = torch.cat([points, torch.tensor([low, high])])
            weights = torch.cat([weights, torch.ones(2)])
    found = moments(p, points, weights)
    variance = found[2] if name == "rounded" else p.variance[:, 0]  # its class has none
    expected = torch.stack([torch.ones(6).double(), p.mean[:, 0], variance])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    drawn = p.sample(torch.Size([20_000]))
    assert p.support.check(drawn).all()
    assert ((drawn.mean(0) - p.mean)[:, 0].abs() < 5 * (variance / 20_000).sqrt()).all()


@pytest.mark.parametrize("name", PUSHED)
def test_gaps_count_no_jacobian(name: str) -> None:
    """What is masked is filled by a value in the support, and log p is the sum over the rest."""
    likelihood, scaling = PUSHED[name]
    model = pl.VAE((3,), latent_dim=1, likelihood=likelihood, scaling=scaling, **SMALL).double()
    model.prepare(torch.tensor([[2.0, 1.0, 0.0], [5.0, 2.0, 9.0]]).double())
    p = model.decode(torch.randn(4, 1))
    x, mask = p.sample(), torch.tensor([[True, False, True], [False] * 3, [True] * 3, [False, True, True]])
    whole = filled(torch.where(mask, x, torch.nan), mask, p.support)
    assert p.base_dist.support.check(whole).all()
    each = p.base_dist.log_prob(x)
    torch.testing.assert_close(masked(p, mask).log_prob(whole), torch.where(mask, each, 0.0).sum(1))


COUNTS: dict[str, dict[str, Any]] = {"poisson": {}, "negative_binomial": {}, "one_hot_categorical": {}}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_stay_counts(name: str) -> None:
    """Only the encoder sees them otherwise."""
    torch.manual_seed(0)
    plain = model_of("vae", likelihood=name, scaling="none")
    model = model_of("vae", likelihood=name, scaling="log1p")
    x = torch.eye(4).repeat(3, 1) if name == "one_hot_categorical" else torch.randint(0, 1000, (12, 4)).float()
    model.prepare(x)
    model.load_state_dict({**model.state_dict(), **plain.state_dict()})
    z = torch.randn(12, 2)
    assert torch.equal(model.decode(z).log_prob(x), plain.decode(z).log_prob(x))
    s = (x.log1p() - x.log1p().mean(0)) / x.log1p().std(0, correction=0)
    torch.testing.assert_close(model.encode(x)["z"].mean, plain.encode(s)["z"].mean, rtol=1e-4, atol=1e-5)


def fitted_scaling(declaration: Any, x: np.ndarray, batch: int) -> Affine:
    scaling: Any = build("scaling", declaration, event_shape=x.shape[1:], family=None)
    rows = torch.as_tensor(x)
    scaling.fit((part, None, part.isfinite()) for part in rows.split(batch))
    return scaling.double()


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_scaling_is_fitted_to_what_is_observed(batch: int) -> None:
    """Batch by batch as at once; a constant entry keeps its unit, and one without any value is left as it is."""
    x = np.concatenate([table(200, gaps=0.4), np.full((200, 1), 7.5), np.full((200, 1), np.nan)], 1)
    with np.errstate(all="ignore"):
        for declaration, loc, scale in (
            ("standardise", np.nanmean(x[:, :5], 0), np.nanstd(x[:, :5], 0)),
            ("minmax", np.nanmin(x[:, :5], 0), np.ptp(np.nan_to_num(x[:, :5], nan=np.nan), 0)),
        ):
            found = fitted_scaling(declaration, x, batch)
            if declaration == "minmax":
                scale = np.nanmax(x[:, :5], 0) - loc
            scale = np.append(scale[:4], [1.0, 1.0])
            np.testing.assert_allclose(found.loc, np.append(loc, 0.0), rtol=1e-6)
            np.testing.assert_allclose(found.scale, scale, rtol=1e-5)
    positive = np.abs(x)
    found = fitted_scaling("log1p", positive, batch)
    np.testing.assert_allclose(found.loc[:4], np.nanmean(np.log1p(positive[:, :4]), 0), rtol=1e-5)
    np.testing.assert_allclose(found.scale[:4], np.nanstd(np.log1p(positive[:, :4]), 0), rtol=1e-5)


def test_training_on_raw_data_is_training_on_standardised_data() -> None:
    """The same weights, by the training part's own mean and deviation; the bound differs by the Jacobian."""
    x = table(200)
    raw = pl.load_data(x)
    part = raw.train.x.numpy()
    mean, deviation = part.mean(0), part.std(0)
    standard = pl.load_data((x - mean) / deviation)
    found = []
    for data, options in ((raw, {}), (standard, {"scaling": "none"})):
        torch.manual_seed(0)
        likelihood = {"normal": {"min_scale": 0.0}}
        model = pl.VAE((4,), latent_dim=2, likelihood=likelihood, start_at_data=True, **SMALL, **options).double()
        found.append(pl.fit(model, data, epochs=3, progress=False, device="cpu"))
    ours, theirs = (one.model.state_dict() for one in found)
    np.testing.assert_allclose(ours["scaling.loc"], mean, rtol=1e-5)
    np.testing.assert_allclose(ours["scaling.scale"], deviation, rtol=1e-5)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    bounds = [one.history[-1]["validation_elbo"] for one in found]
    assert bounds[0] == pytest.approx(bounds[1] - np.log(deviation).sum(), abs=1e-2)


def scaling_of(likelihood: Any, event_shape: tuple[int, ...] = (4,), **options: Any) -> str:
    return str(pl.VAE(event_shape, latent_dim=1, likelihood=likelihood, **SMALL, **options).scaling)


def test_tables_of_real_numbers_are_standardised_unless_their_noise_is_known() -> None:
    for likelihood in ("normal", "student_t", "laplace", {"normal": {"scale": "learned"}}, "multivariate_normal"):
        assert scaling_of(likelihood) == "x standardised"
    for likelihood in ({"normal": {"scale": 0.1}}, "bernoulli", "poisson", "log_normal", "VonMises", "beta"):
        assert scaling_of(likelihood) == "x "
    assert scaling_of("normal", (1, 2, 2)) == "x "
    linear = pl.models.LinearGaussian((4,), latent_dim=1)
    assert not linear.scaling.changes
    printed = str(pl.VAE((4,), latent_dim=1, likelihood="normal"))
    assert printed.endswith("networks see x standardised")
    assert "networks" not in str(pl.VAE((4,), latent_dim=1))


@pytest.mark.parametrize(
    ("likelihood", "scaling", "message"),
    [
        ("bernoulli", "standardise", r"standardise does not go with Bernoulli\(logits\), which is over \{0, 1\}"),
        ("beta", "log1p", "log1p does not go with Beta.*numbers in \\[0, 1\\]"),
        ("student_t", "log1p", "log1p does not go with StudentT"),
        ("gamma", "minmax", "minmax does not go with Gamma.*positive numbers"),
        ("VonMises", "standardise", "standardise does not go with VonMises"),
        ("Dirichlet", {"divide": 2}, "divide does not go with Dirichlet.*the simplex"),
    ],
)
def test_what_does_not_go_together_is_refused(likelihood: Any, scaling: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pl.VAE((4,), latent_dim=1, likelihood=likelihood, scaling=scaling)


def test_data_of_another_width_are_refused_before_they_are_scaled() -> None:
    with pytest.raises(InputError, match=r"the model is over events of shape \(3,\), but array holds \(4,\)"):
        pl.fit(pl.VAE((3,), latent_dim=1, likelihood="normal"), pl.load_data(table(50)), epochs=1, progress=False)


def test_declarations() -> None:
    """`{divide: 255}` takes its number in the place of options, here and in files, and comes back as it was."""
    assert validate("scaling", {"divide": "255"}) == {"divide": 255.0}
    model = pl.VAE((4,), latent_dim=1, scaling={"divide": 255}, likelihood="normal")
    assert complete("model", model.declaration)["vae"]["scaling"] == {"divide": 255.0}
    assert complete("scaling", "auto") == "auto"
    with pytest.raises(InputError, match=r"scaling\.divide was given -1: input should be greater than 0"):
        validate("scaling", {"divide": -1})
    with pytest.raises(InputError, match="needs the option 'by'"):
        validate("scaling", "divide")
    with pytest.raises(InputError, match=r"there is no scaling 'standardize'.*did you mean 'standardise'"):
        validate("scaling", "standardize")
    family = pl.models.named.Normal((4,))
    pl.VAE((4,), latent_dim=1, likelihood=family)
    with pytest.raises(InputError, match="is in the units of another model; build a family for each"):
        pl.VAE((4,), latent_dim=1, likelihood=family)


def test_runs_keep_their_units_and_older_ones_have_none(tmp_path: Path) -> None:
    """Bit for bit; weights that were saved without a scaling are those of a model that sees x as it is."""
    data = pl.load_data(table(200, gaps=0.2), mask="nan")
    fitted = pl.fit(pl.VAE((4,), latent_dim=1, likelihood="normal", **SMALL), data, epochs=2, progress=False)
    run = pl.Run.save(tmp_path / "run", fitted)
    loaded = pl.Run.load(run.path).model
    assert torch.equal(loaded.scaling.scale, fitted.model.scaling.scale)
    assert (loaded.scaling.loc != 0).all()
    first = pl.evaluate(fitted.model, data, particles=10, seed=1)
    assert pl.evaluate(loaded, data, particles=10, seed=1).log_evidence == first.log_evidence
    assert first.measure == "density (in the units of the data)"

    torch.manual_seed(0)
    older = pl.VAE((4,), latent_dim=1, likelihood="normal", scaling="none", **SMALL)
    newer = pl.VAE((4,), latent_dim=1, likelihood="normal", **SMALL)
    newer.prepare(data.train.batch(slice(None)).x)
    newer.load_state_dict(older.state_dict())
    one, other = (pl.evaluate(model, data, particles=10) for model in (older, newer))
    assert torch.equal(one.each["log_evidence"], other.each["log_evidence"])


def test_a_scaling_is_fitted_once_and_copied_with_its_model() -> None:
    data = pl.load_data(table(100))
    model = pl.VAE((4,), latent_dim=1, likelihood="normal", **SMALL)
    pl.fit(model, data, epochs=1, progress=False)
    before, other = model.scaling.loc.clone(), copy.deepcopy(model)
    other.scaling.loc.zero_()
    assert torch.equal(model.decode(torch.zeros(1, 1)).mean, model.decode(torch.zeros(1, 1)).mean)
    difference = model.decode(torch.zeros(1, 1)).mean - other.decode(torch.zeros(1, 1)).mean
    torch.testing.assert_close(difference[0], before, rtol=1e-3, atol=0.1)
    with pytest.warns(UserWarning, match="training goes on in the units of other data"):
        pl.fit(model, pl.load_data(table(100) * 100), epochs=1, progress=False)
    assert torch.equal(model.scaling.loc, before)


def test_unscaled_data_are_said_once(recwarn: Any) -> None:
    data = pl.load_data(table(100))
    with pytest.warns(
        UserWarning, match="the encoder receives x unscaled, with root mean squares.*scaling: standardise"
    ):
        pl.fit(pl.VAE((4,), latent_dim=1, likelihood="normal", scaling="none", **SMALL), data, epochs=1, progress=False)
    autoencoder = pl.models.Autoencoder((4,), latent_dim=1)
    with pytest.warns(UserWarning, match="so far from 1; standardise x"):
        pl.fit(autoencoder, data, epochs=1, progress=False, objective="squared_error")
    recwarn.clear()
    pl.fit(pl.VAE((4,), latent_dim=1, likelihood="normal", **SMALL), data, epochs=1, progress=False)
    pl.fit(pl.models.LinearGaussian((4,), latent_dim=1), data, progress=False, objective="closed_form")
    assert not [warning for warning in recwarn if "unscaled" in str(warning.message)]


def test_tasks_are_in_the_units_of_x() -> None:
    """Draws, reconstructions and imputed values have the moments of the data."""
    x = table(400)
    data = pl.load_data(x)
    torch.manual_seed(0)
    model = pl.VAE((4,), latent_dim=1, likelihood="normal", **SMALL)
    pl.fit(model, data, epochs=60, progress=False)
    drawn = pl.sample(model, 2000)
    mean, deviation = x.mean(0), x.std(0)
    assert (np.abs(drawn.mean(0).numpy() - mean) < 0.2 * deviation).all()
    assert (np.abs(drawn.std(0).numpy() / deviation - 1) < 0.2).all()
    test = data.test.batch(slice(None)).x
    error = (pl.reconstruct(model, test) - test).square().mean(0).sqrt().numpy()
    assert (error < 0.9 * deviation).all()
    mask = torch.rand(test.shape) < 0.5
    imputed = pl.impute(model, test, mask, draws=20).mean(0)
    missed = ((imputed - test).square() * ~mask).sum(0).sqrt() / (~mask).sum(0).sqrt()
    assert (missed.numpy() < 1.1 * deviation).all()


def test_pyro_trains_in_the_units_that_prepare_sets() -> None:
    x = torch.as_tensor(table(100), dtype=torch.float32)
    model = pl.VAE((4,), latent_dim=1, likelihood="normal", **SMALL)
    model.prepare(x)
    svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    losses = [svi.step(x) / len(x) for _ in range(20)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < SCALE.log().sum().item() + 12
