"""Tasks: draws have the model's moments, reconstructions are its own decodings, and randomness stays where it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
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
    RestrictedBoltzmannMachine,
    SemiSupervisedVAE,
    bidirectional_evidence,
    check,
    fit,
    impute,
    interpolate,
    load_data,
    pictures,
    reconstruct,
    sample,
    tasks,
    to_arviz,
)
from pyrolatent.figures.latent import Figure
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.draws import labels_for, simulate
from pyrolatent.models.components.conditional import one_hot
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
    decoded, quantiles = tasks.latent_grid(shifted(), 5)
    exact = dist.Normal(0.0, 1.0).icdf((torch.arange(5) + 0.5) / 5)
    torch.testing.assert_close(quantiles, exact.expand(2, 5))
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


# The class asked for is the class drawn.


class OfLabel(nn.Module):
    """x ~ N(y, 0.1^2), whatever z: y one-hot, or a vector."""

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.TorchDistribution:
        mean = one_hot(y, 3).to(z) + 0 * z.sum(-1, keepdim=True)
        return dist.Normal(mean, 0.1).to_event(1)


OF_LABELS: Any = {"conditional": ConditionalVAE, "semi-supervised": SemiSupervisedVAE}


def of_labels(name: str, **options: Any) -> Any:
    model = OF_LABELS[name]((3,), 3, latent_dim=2, likelihood="normal", **options)
    model.likelihood = OfLabel()
    return model


@pytest.mark.parametrize("name", OF_LABELS)
def test_the_class_asked_for_is_the_class_drawn(name: str) -> None:
    """x is the code of its class, with noise of 0.1, of which six standard deviations are allowed."""
    model, y = of_labels(name), [2, 0, 1, 1]
    codes = torch.eye(3)[y]
    assert (tasks.sample(model, 4, y) - codes).abs().max() < 0.6
    assert torch.equal(tasks.sample(model, 4, np.array(y), mean=True), codes)
    assert torch.equal(simulate(model, 4, torch.tensor(y))[0].round(), codes)
    assert torch.equal(model.decode({"z": torch.zeros(4, 2)}, y).mean, codes)
    assert torch.equal(model.decode(torch.zeros(4, 2), y).mean, codes)
    assert torch.equal(tasks.label_grid(model, 2), torch.eye(3).repeat(2, 1))
    for label in range(3):
        assert torch.equal(tasks.latent_grid(model, 2, label)[0], torch.eye(3)[[label] * 4])
    assert torch.equal(tasks.latent_grid(model, 2)[0], torch.eye(3)[[0] * 4])
    for bad, message in (([0, 3], "labels from 0 to 3"), ([-1, 0], "labels from -1"), ([0], r"shape \(1,\)")):
        with pytest.raises(InputError, match=message):
            tasks.sample(model, 2, bad)


def test_a_label_that_is_not_asked_for_is_drawn_or_comes_in_turn() -> None:
    """Drawn uniformly: counts of 300 classes within five standard errors of 100."""
    assert torch.equal(tasks.sample(of_labels("conditional"), 7, mean=True), torch.eye(3)[torch.arange(7) % 3])
    counts = tasks.sample(of_labels("semi-supervised"), 300, mean=True).sum(0)
    assert ((counts - 100).abs() < 5 * (300 * 2 / 9) ** 0.5).all()


@pytest.mark.parametrize("name", OF_LABELS)
def test_the_bracket_is_of_the_class_asked_for(name: str) -> None:
    """x does not depend on z, so that all weights are equal and both bounds are log p(x, y), or log p(x | y)."""
    model, y = of_labels(name), torch.arange(9) % 3
    found = bidirectional_evidence(model, size=9, y=y, chains=2, steps=5, seed=1)
    with evaluating(model, 1):
        x, _ = simulate(model, 9, y)
    truth = (
        dist.Normal(torch.eye(3)[y], 0.1).to_event(1).log_prob(x) - (name != "conditional") * torch.tensor(3.0).log()
    )
    for bound in found.each.values():
        torch.testing.assert_close(bound.float(), truth, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def aged() -> tuple[Any, Any]:
    """A model of x given an age, and its data, x being (age, -age) / 20."""
    random = np.random.default_rng(0)
    age = random.uniform(20, 80, 400)
    data = load_data(np.stack([age, -age], 1) / 20 + 0.1 * random.normal(size=(400, 2)), labels=age)
    model = ConditionalVAE((2,), 1, latent_dim=1, likelihood="normal")
    fit(model, data, progress=False, epochs=1)
    return model, data


def seen_by(model: Any, call: Callable[[], Any]) -> Tensor:
    """Every label that the model was run with, (n, 1); fixed zeros that only shapes are asked of are none."""
    seen, generate = [], model.generate

    def spy(x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        assert y is not None
        seen.append(y)
        generate(x, y, mask)

    model.generate = spy
    try:
        call()
    finally:
        del model.generate
    labels = torch.cat(seen)
    assert labels.is_floating_point()
    return labels[labels != 0]


ASKING: dict[str, Callable[[Any], Any]] = {
    "sample": lambda model: sample(model, 5),
    "sample_means": lambda model: sample(model, 5, mean=True),
    "latent_grid": lambda model: tasks.latent_grid(model, 2),
    "bidirectional_evidence": lambda model: bidirectional_evidence(model, size=5, chains=2, steps=3),
}


@pytest.mark.parametrize("name", ASKING)
def test_labels_that_are_vectors_are_demanded(aged: Any, name: str) -> None:
    model, _ = aged
    with pytest.raises(InputError, match=r"was trained on label vectors, .* give labels y of shape"):
        ASKING[name](model)
    with pytest.raises(InputError, match="a label grid varies the class, but ConditionalVAE has label vectors"):
        tasks.label_grid(model, 2)


def test_labels_that_are_vectors_are_drawn_at(aged: Any) -> None:
    model, _ = aged
    for given in ([30, 50], [30.0, 50.0], [[30], [50]], torch.tensor([[30.0], [50.0]]).double()):
        assert torch.equal(seen_by(model, lambda given=given: sample(model, 2, given)), torch.tensor([30.0, 50.0]))
    assert (seen_by(model, lambda: tasks.latent_grid(model, 2, 40)) == 40).all()
    for bad in ([30], [[30, 40], [50, 60]], [float("nan"), 3.0]):
        with pytest.raises(InputError, match=r"takes finite vectors of shape \(2, 1\)"):
            sample(model, 2, bad)


DATA_AT_HAND: dict[str, Callable[[Any, Any], Any]] = {
    "pictures": lambda model, data: pictures.plot(model, data, []),
    "check": lambda model, data: check(model, data, size=20, draws=25, simulations=50, annealed=2),
    "to_arviz": lambda model, data: to_arviz(model, data, size=3, draws=8, predictive=4),
}


@pytest.mark.usefixtures("few_cells")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "check" else []) for name in DATA_AT_HAND]
)
def test_where_data_are_at_hand_their_labels_are_drawn_at(aged: Any, name: str) -> None:
    model, data = aged
    labels = seen_by(model, lambda: DATA_AT_HAND[name](model, data))
    assert torch.isin(labels, data.test.y).all()
    assert len(labels.unique()) > 1


def test_unknown_labels_of_data_are_not_drawn_at() -> None:
    known = labels_for(of_labels("conditional"), 5, of_data=torch.tensor([2, -1, 1]))
    assert known is not None
    assert known.tolist() == [2, 1, 2, 1, 2]
    unknown = labels_for(of_labels("conditional"), 5, of_data=torch.tensor([-1, -1]))
    assert unknown is not None
    assert unknown.tolist() == [0, 1, 2, 0, 1]


@pytest.mark.usefixtures("few_cells")
@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_report_draws_every_figure_and_leaves_the_random_state(latent_dim: int) -> None:
    data = load_data("digits")
    model = VAE(data.event_shape, latent_dim=latent_dim)
    before = torch.get_rng_state()
    drawn = pictures.plot(model, data, [])
    assert [*drawn] == ["reconstructions", "samples", "sample_means", "latent_grid", "embedding"]
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


@pytest.mark.parametrize("gaps", [False, True])
def test_what_is_missing_is_drawn_right_though_the_encoder_never_saw_gaps(gaps: bool) -> None:
    """Of a linear-Gaussian model with an encoder that is far off and sure of it, which k-hat alone would not mend.

    Without the mask as an input half of the latents come from the prior; with it they are the encoder's, and a warning
    says that these are too few.
    """
    model = LinearGaussian((3,), latent_dim=1, noise=0.5, posterior="normal").double()
    if gaps:
        model.posterior.network.take_mask()
    nn.init.zeros_(model.posterior.network.last.weight)
    model.posterior.network.last.bias.data.copy_(torch.tensor([4.0, -3.0]))
    x, mask = torch.tensor([[0.7, -0.4, 0.0]]).double(), torch.tensor([[True, True, False]])
    weight, bias, scale = (value.detach() for value in model.likelihood.parameters_flat())
    covariance = weight @ weight.T + torch.diag(scale**2)
    gain = covariance[2, :2] @ torch.linalg.inv(covariance[:2, :2])
    mean = bias[2] + gain @ (x[0, :2] - bias[:2])
    variance = covariance[2, 2] - gain @ covariance[:2, 2]
    if gaps:
        with pytest.warns(UserWarning, match="imputed values rest on few latents in 1 of 1 datapoints"):
            impute(model, x, mask, draws=20, particles=100)
        return
    draws = impute(model, x, mask, draws=2000, particles=300)[:, 0, 2]
    assert abs(draws.mean() - mean) < 4 * (variance / 2000).sqrt()
    assert abs(draws.var() / variance - 1) < 4 * (2 / 2000) ** 0.5


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


class Itself(nn.Module):
    """x = z, with noise."""

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Normal(z, 1.0).to_event(1)


def of_itself(prior: Any, latent_dim: int) -> Any:
    model = ConditionalVAE((latent_dim,), 3, latent_dim=latent_dim, prior=prior, likelihood="normal")
    model.likelihood = Itself()
    return model


def test_a_label_grid_holds_what_z_is_drawn_with_where_its_prior_depends_on_the_class() -> None:
    model = of_itself("label_normal", 2)
    for parameter in model.parameters():
        parameter.data.normal_()
    prior = model.prior(torch.arange(3))
    noise = (tasks.label_grid(model, 4).unflatten(0, (4, 3)) - prior.mean) / prior.stddev
    torch.testing.assert_close(noise, noise[:, :1].expand(4, 3, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("label", range(3))
def test_a_latent_grid_stands_at_the_quantiles_of_its_class(label: int) -> None:
    model = of_itself("label_normal", 3)
    for parameter in model.parameters():
        parameter.data.normal_()
    prior = model.prior(torch.tensor([label]))
    decoded, quantiles = tasks.latent_grid(model, 4, label)
    levels = ((torch.arange(4) + 0.5) / 4).reshape(4, 1, 1)
    torch.testing.assert_close(quantiles, prior.base_dist.icdf(levels)[:, 0, :2].T)
    assert torch.equal(decoded[:, 2], prior.mean[0, 2].expand(16))


@pytest.mark.parametrize("prior", ["gamma", "beta", {"mixture": {"components": 3}}])
def test_quantiles_without_a_closed_form_are_those_of_draws(prior: Any) -> None:
    """The share of other draws below each is its level, within five standard errors of both numbers of draws."""
    model = of_itself(prior, 2)
    _, quantiles = tasks.latent_grid(model, 5)
    assert torch.equal(quantiles, tasks.latent_grid(model, 5)[1])
    draws = model.prior().sample((100_000,))
    levels = (torch.arange(5) + 0.5) / 5
    below = (draws.unsqueeze(-1) < quantiles).float().mean(0)
    assert ((below - levels).abs() < 5 * (2 * levels * (1 - levels) / 100_000).sqrt()).all()


def test_a_latent_grid_of_one_dimension_is_a_line() -> None:
    model = VAE((4,), latent_dim=1)
    decoded, quantiles = tasks.latent_grid(model, 5)
    assert quantiles.shape == (1, 5)
    torch.testing.assert_close(decoded, model.decode(quantiles.T).mean)


GRIDLESS: dict[str, Any] = {
    "hierarchical": (lambda: HierarchicalVAE((4,), latent_dims=(3, 2)), "one vector z, .* z2, z1", "no labels"),
    "discrete": (
        lambda: DiscreteVAE((4,), latent_dims=(3,)),
        "one by one, but the prior is over .*Boolean",
        "no labels",
    ),
    "bits": (lambda: VAE((4,), latent_dim=2, prior="bernoulli"), "moves continuous dimensions", "no labels"),
    "one-hot": (lambda: VAE((4,), latent_dim=2, prior="categorical"), "moves continuous dimensions", "no labels"),
    "machine": (lambda: RestrictedBoltzmannMachine((4,), hidden=2), "no latent codes", "no latent codes"),
    "autoencoder": (lambda: Autoencoder((4,), latent_dim=2), "no density, evidence or samples", "no labels"),
}


@pytest.mark.parametrize("name", GRIDLESS)
def test_what_has_no_grid_is_refused(name: str) -> None:
    build, of_latents, of_labels = GRIDLESS[name]
    with pytest.raises(InputError, match=of_latents):
        tasks.latent_grid(build(), 3)
    with pytest.raises(InputError, match=of_labels):
        tasks.label_grid(build(), 3)


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
    model, x = of_labels("semi-supervised"), torch.randn(6, 3)
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
