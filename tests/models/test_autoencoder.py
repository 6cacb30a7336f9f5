"""The baselines without a density: principal components against scikit-learn, and a plain autoencoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from sklearn import decomposition
from torch import Tensor

from pyrolatent import VAE, Data, InputError, Run, compare, evaluate, fit, load_data, reconstruct, sample
from pyrolatent.experiments.compare import curve
from pyrolatent.experiments.sweep import numeric, sweep
from pyrolatent.inference.objectives.bounds import ELBO
from pyrolatent.inference.objectives.exact import SquaredError
from pyrolatent.models import PCA, Autoencoder
from pyrolatent.tasks import means

EVENT = (2, 3)
STRAIGHT: Any = {"mlp": {"hidden": []}}
SMALL: Any = {"mlp": {"hidden": [8]}}


@pytest.fixture
def data() -> Data:
    """Correlated data of unequal variances, off the origin."""
    random = np.random.default_rng(5)
    x = random.normal(size=(300, 6)) @ random.normal(size=(6, 6)) * np.linspace(0.5, 1.5, 6) + np.arange(6)
    return load_data(x.reshape(-1, *EVENT).astype(np.float32))


def error(model: Any, data: Data) -> float:
    """Mean squared error of the training data, summed over the event."""
    x = data.train.batch(slice(None)).x
    with torch.no_grad():
        return (model.reconstruct(x) - x).square().sum((1, 2)).mean().item()


def solved(data: Data, latent_dim: int) -> PCA:
    model = PCA(EVENT, latent_dim=latent_dim)
    fit(model, data, progress=False, objective="closed_form")
    return model


@pytest.mark.parametrize("latent_dim", [1, 3, 6])
def test_pca_is_scikit_learn_s(data: Data, latent_dim: int) -> None:
    """Codes up to their signs, reconstructions of training and of held-out data, to the rounding of float32."""
    model = solved(data, latent_dim)
    train, test = (split.batch(slice(None)).x for split in (data.train, data.test))
    truth = decomposition.PCA(latent_dim).fit(train.flatten(1).numpy())
    with torch.no_grad():
        for x in (train, test):
            codes = truth.transform(x.flatten(1).numpy())
            np.testing.assert_allclose(model.encode(x)["z"].mean.abs(), np.abs(codes), rtol=1e-3, atol=1e-4)
            expected = truth.inverse_transform(codes).reshape(x.shape)
            np.testing.assert_allclose(model.reconstruct(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("latent_dim", [1, 3])
def test_pca_is_the_best_linear_code(data: Data, latent_dim: int) -> None:
    """Its error is the sum of the other eigenvalues, and linear autoencoders come down to it and no lower."""
    best = error(solved(data, latent_dim), data)
    x = data.train.batch(slice(None)).x.flatten(1).double().numpy()
    assert best == pytest.approx(np.linalg.eigvalsh(np.cov(x.T, bias=True))[:-latent_dim].sum(), rel=1e-4)
    model = Autoencoder(EVENT, latent_dim=latent_dim, encoder=STRAIGHT, decoder=STRAIGHT)
    before = error(model, data)
    settings: Any = {"optimizer": {"Adam": {"lr": 0.03}}, "scheduler": {"ExponentialLR": {"gamma": 0.97}}}
    fit(model, data, progress=False, objective="squared_error", epochs=150, batch_size=64, **settings)
    assert best - 1e-4 * best < error(model, data) < best + 0.05 * (before - best)


def test_pca_trained_by_gradients_is_no_better(data: Data) -> None:
    model = PCA(EVENT, latent_dim=2)
    history = fit(model, data, progress=False, objective="squared_error", epochs=20).history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert error(model, data) > error(solved(data, 2), data) * (1 - 1e-4)


def test_an_autoencoder_beats_pca_on_a_curve() -> None:
    """Points on a parabola: one number says where, but no line passes through them."""
    t = np.random.default_rng(0).uniform(-1, 1, size=(400, 1)).astype(np.float32)
    data = load_data(np.concatenate([t, t**2], 1)[:, None, :])
    best = PCA((1, 2), latent_dim=1)
    fit(best, data, progress=False, objective="closed_form")
    model = Autoencoder((1, 2), latent_dim=1, encoder=SMALL, decoder=SMALL)
    settings: Any = {"optimizer": {"Adam": {"lr": 0.02}}, "epochs": 60, "batch_size": 64}
    history = fit(model, data, progress=False, objective="squared_error", **settings).history
    assert error(model, data) < 0.3 * error(best, data)
    assert history[-1]["validation_elbo"] is None
    # What is reported is the squared error of the epoch's last state.
    x = data.validation.batch(slice(None)).x
    with torch.no_grad():
        expected = (model.reconstruct(x) - x).square().sum((1, 2)).mean().item()
    assert history[-1]["validation_loss"] == pytest.approx(expected, rel=1e-5)


def test_what_is_not_observed_is_left_out_of_the_error() -> None:
    x, mask = torch.randn(3, *EVENT), torch.tensor([[[True, False, True]] * 2] * 3)
    model = Autoencoder(EVENT, latent_dim=2, encoder=SMALL, decoder=SMALL)
    given = torch.where(mask, x, 0.0)
    loss = SquaredError().loss(model, (given, None, mask))
    expected = ((model.decoder(model.encoder(given)) - x).square() * mask).sum((1, 2))
    torch.testing.assert_close(loss, expected)


MODELS: dict[str, Callable[[], Any]] = {
    "Autoencoder": lambda: Autoencoder(EVENT, latent_dim=2, encoder=SMALL, decoder=SMALL),
    "PCA": lambda: PCA(EVENT, latent_dim=2),
}
EVERY = pytest.mark.parametrize("name", MODELS)
DOORS: dict[str, Callable[[Any, Data], Any]] = {
    "sample": lambda model, data: sample(model, 3),
    "model": lambda model, data: model.model(data.train.batch(slice(3)).x),
    "guide": lambda model, data: model.guide(data.train.batch(slice(3)).x),
    "svi": lambda model, data: SVI(model.model, model.guide, Adam({}), ELBO()).step(data.train.batch(slice(3)).x),
    "fit": lambda model, data: fit(model, data, progress=False, epochs=1, objective="elbo"),
    "Pyro's": lambda model, data: fit(model, data, progress=False, epochs=1, objective="Trace_ELBO"),
}


@EVERY
@pytest.mark.parametrize("door", DOORS)
def test_a_density_is_refused_at_every_door(name: str, door: str, data: Data) -> None:
    with pytest.raises(InputError, match=f"{name} .*no density"):
        DOORS[door](MODELS[name](), data)


@EVERY
def test_codes_and_reconstructions_as_of_other_models(name: str, data: Data) -> None:
    model, x = MODELS[name](), data.train.batch(slice(5)).x
    code = model.encode(x)["z"]
    assert (code.batch_shape, code.event_shape) == ((5,), (2,))
    assert torch.equal(code.mean, code.sample())
    torch.testing.assert_close(means(model, x)["z"], code.mean)
    torch.testing.assert_close(reconstruct(model, x), model.reconstruct(x))
    decoded = model.decode(torch.randn(3, 5, 2))
    assert (decoded.batch_shape, decoded.event_shape) == ((3, 5), EVENT)
    mask = torch.rand(x.shape) < 0.5
    hidden = [model.encode(torch.where(mask, x, filling), None, mask)["z"].mean for filling in (0.0, torch.nan)]
    assert torch.equal(*hidden)


@EVERY
def test_saved_and_loaded_bit_for_bit(
    name: str, data: Data, tmp_path: Path, parameters: Callable[[torch.nn.Module], Tensor]
) -> None:
    fitted = fit(MODELS[name](), data, progress=False, objective="squared_error", epochs=1)
    Run.save(tmp_path / "run", fitted)
    assert torch.equal(parameters(Run.load(tmp_path / "run").model), parameters(fitted.model))


def test_what_does_not_go_together_is_refused(data: Data) -> None:
    with pytest.raises(InputError, match="at most as many components as x has dimensions, 6, but latent_dim is 7"):
        PCA(EVENT, latent_dim=7)
    with pytest.raises(InputError, match="pca of 3 components needs at least as many datapoints, but there are 2"):
        PCA(EVENT, latent_dim=3).solve(torch.randn(2, *EVENT))
    with pytest.raises(InputError, match="VAE has no codes without a distribution, which squared_error needs"):
        fit(VAE(EVENT, latent_dim=2, likelihood="normal"), data, progress=False, objective="squared_error")
    with pytest.raises(InputError, match="Autoencoder has no solution in closed form"):
        fit(MODELS["Autoencoder"](), data, progress=False, objective="closed_form")


def test_principal_components_refuse_missing_values(data: Data) -> None:
    x = data.train.x.numpy()
    masked = load_data(x, mask=np.random.default_rng(0).random(x.shape) < 0.7)
    with pytest.raises(InputError, match=r"mask|missing|observed"):
        fit(PCA(EVENT, latent_dim=2), masked, progress=False, objective="closed_form")


def test_the_test_error_is_that_of_scikit_learn() -> None:
    data = load_data("digits", binarize="none")
    model = PCA(data.event_shape, latent_dim=3)
    fit(model, data, progress=False, objective="closed_form")
    found = evaluate(model, data)
    train, test = (split.batch(slice(None)).x.flatten(1).double().numpy() for split in (data.train, data.test))
    reference = decomposition.PCA(3).fit(train)
    error = ((reference.inverse_transform(reference.transform(test)) - test) ** 2).sum(1)
    assert found.squared_error == pytest.approx(error.mean(), rel=1e-4)
    np.testing.assert_allclose(found.each["squared_error"], error, rtol=1e-3)
    assert found.squared_error_se == pytest.approx(error.std(ddof=1) / len(test) ** 0.5, rel=1e-4)
    assert found.per_entry == pytest.approx(error.mean() / 64, rel=1e-4)
    assert found.explained == pytest.approx(1 - error.sum() / ((test - test.mean(0)) ** 2).sum(), rel=1e-4)
    with pytest.raises(InputError, match="PCA, whose error takes no draws, takes no such option; leave particles out"):
        evaluate(model, data, particles=5)


def test_models_without_a_density_are_compared_by_their_error(tmp_path: Path) -> None:
    fields = {"data": "digits", "model": {"pca": {"latent_dim": 1}}, "objective": "closed_form"}
    runs = sweep(fields, {"model.pca.latent_dim": [1, 4]}, tmp_path / "sweep", jobs=1)
    (group,) = compare(runs)
    assert (group.measure, group.score, group.unit) == ("squared error", "squared_error", "squared error")
    assert [row.name for row in group.rows] == ["latent_dim: 4", "latent_dim: 1"]
    best, other = group.rows
    assert best.score is not None
    assert other.score is not None
    assert other.difference == pytest.approx(other.score - best.score)
    assert other.score > best.score
    values = numeric({"model.pca.latent_dim": [1, 4]}, runs)
    (axes,) = curve([group], "model.pca.latent_dim", values["model.pca.latent_dim"]).axes
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [1, 4])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [other.score, best.score])
