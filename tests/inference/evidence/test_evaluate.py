"""Evaluation of a model on data: what is reported is the mean of the scores, with its measure and its errors."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrolatent import VAE, Data, Family, InputError, LatentVariableModel, evaluate, load_data
from pyrolatent.data.splits import measure_of
from pyrolatent.inference.evidence.importance import score
from pyrolatent.inference.evidence.psis import khat_threshold
from pyrolatent.models.components.priors import NormalPrior

PARTICLES = 64


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_evaluation_is_the_mean_of_the_scores(split: str, vae: Callable[..., VAE], binary_data: Data) -> None:
    """In batches of 3, so that the last one is smaller; the draws are those of the seed."""
    model = vae()
    done: list[int] = []
    given = evaluate(model, binary_data, split=split, particles=PARTICLES, batch_size=3, seed=11, on_batch=done.append)
    part = getattr(binary_data, split)
    torch.manual_seed(11)
    scores = [score(model, batch.x, particles=PARTICLES) for batch in part.batches(3)]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(one, name) for one in scores]).double()

    evidence, n = joined("log_evidence"), len(part)
    assert (given.split, given.datapoints, given.particles, done[-1]) == (split, n, PARTICLES, n)
    expected = {
        "elbo": joined("elbo").mean(),
        "reconstruction": joined("reconstruction").mean(),
        "kl": joined("kl").mean(),
        "log_evidence": evidence.mean(),
        "log_evidence_se": evidence.std() / math.sqrt(n),
        "log_evidence_mcse": (joined("mcse") ** 2).sum().sqrt() / n,
        "log_evidence_bias": (joined("mcse") ** 2).mean() / 2,
        "ess": joined("ess").mean(),
        "khat_share": (joined("khat") > khat_threshold(PARTICLES)).double().mean(),
    }
    for name, value in expected.items():
        assert getattr(given, name) == pytest.approx(value.item(), rel=1e-6), name
    assert given.log_evidence_interval == pytest.approx(
        [
            given.log_evidence - 1.96 * given.log_evidence_mcse,
            given.log_evidence + given.log_evidence_bias + 1.96 * given.log_evidence_mcse,
        ]
    )
    by_dimension = torch.cat([one.kl_dimensions["z"] for one in scores]).mean(0).tolist()
    assert given.kl_per_dimension == pytest.approx(by_dimension, rel=1e-5)
    assert sum(given.kl_per_dimension) == pytest.approx(given.kl, rel=1e-5)
    assert given.elbo == pytest.approx(given.reconstruction - given.kl, rel=1e-6)


def test_the_seed_decides_and_the_caller_is_left_alone(vae: Callable[..., VAE], binary_data: Data) -> None:
    model = vae().train()
    state = torch.get_rng_state()
    first, again, other = (evaluate(model, binary_data, particles=8, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.log_evidence != other.log_evidence
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_model_is_evaluated_in_evaluation_mode(vae: Callable[..., VAE], binary_data: Data) -> None:
    model = vae()
    sure = evaluate(model, binary_data, particles=8)
    model.posterior.network = nn.Sequential(nn.Dropout(0.9), model.posterior.network)
    assert evaluate(model.train(), binary_data, particles=8) == sure


# The measure.

GREY = np.random.default_rng(3).random((40, 6), dtype=np.float32)
COUNTS = np.random.default_rng(3).integers(0, 5, size=(40, 6))


@pytest.mark.parametrize(
    ("x", "options", "likelihood", "expected"),
    [
        (COUNTS % 2, {}, "bernoulli", "mass"),
        (GREY, {"binarize": "dynamic"}, "bernoulli", "mass"),
        (COUNTS, {}, Family((6,), dist.Poisson), "mass"),
        (GREY, {}, "normal", "density (in the units of the data)"),
        (COUNTS, {"dequantize": "uniform"}, "normal", "density (of [0, 1], dequantized over 5 levels)"),
        (GREY, {"binarize": "relaxed"}, "bernoulli", "cross-entropy"),
    ],
)
def test_the_measure_of_the_nats(
    x: Any, options: dict[str, Any], likelihood: Any, expected: str, vae: Callable[..., VAE]
) -> None:
    data, model = load_data(x, **options), vae(likelihood=likelihood)
    given = evaluate(model, data, particles=25)
    assert given.measure == expected
    bounds = [given.elbo, given.reconstruction, given.kl]
    assert all(math.isfinite(value) for value in bounds)
    # A cross-entropy is no likelihood, so no evidence is given for it.
    names = (
        "log_evidence",
        "log_evidence_se",
        "log_evidence_mcse",
        "log_evidence_bias",
        "log_evidence_interval",
        "ess",
    )
    evidences = [getattr(given, name) for name in (*names, "khat_share")]
    assert all((value is None) == (expected == "cross-entropy") for value in evidences)


class Flat(LatentVariableModel):
    """p(x) is uniform over values: a density of [0, 1], or a mass of levels k / (levels - 1)."""

    def __init__(self, event_shape: tuple[int, ...], levels: int | None) -> None:
        super().__init__(event_shape, NormalPrior(1), nn.Identity(), nn.Identity())
        self.levels = levels

    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        flat = dist.Uniform(0.0, 1.0) if self.levels is None else DiscretizedUniform(self.levels)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            each = flat.expand((len(x), *self.event_shape))
            each = each if mask is None else each.mask(mask)
            pyro.sample("x", each.to_event(len(self.event_shape)), obs=x)

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))


class DiscretizedUniform(dist.Uniform):
    """The same mass at each of `levels` values between 0 and 1."""

    support = constraints.integer_interval(0, 255)

    def __init__(self, levels: int) -> None:
        self.levels = levels
        super().__init__(0.0, 255.0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        found = super().expand(batch_shape, self._get_checked_instance(DiscretizedUniform, _instance))
        found.levels = self.levels
        return found

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.full_like(value, -math.log(self.levels))


BYTES = np.random.default_rng(3).integers(0, 256, size=(40, 3, 2, 4))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("event_shape", [(3, 2, 4), (8, 3)])
def test_a_uniform_distribution_over_levels_has_the_bits_of_the_levels(
    event_shape: tuple[int, ...], masked: bool
) -> None:
    """log2(256) = 8 for each observed entry, by its density of dequantized images and by its mass."""
    mask = np.random.default_rng(5).random((40, *event_shape)) < 0.6 if masked else None
    x = BYTES.reshape(40, *event_shape)
    for levels, options in ((None, {"dequantize": "uniform"}), (256, {})):
        data = load_data(x.astype(np.uint8) if levels is None else x, mask=mask, **options)
        given = evaluate(Flat(data.event_shape, levels), data, particles=2)
        assert given.measure == ("mass" if levels else "density (of [0, 1], dequantized over 256 levels)")
        assert given.bits_per_dimension == pytest.approx(8, rel=1e-6)


def test_bits_are_those_of_the_rate_of_a_density() -> None:
    """Twice the density on each entry is one bit less; a density of x in [0, 1] has none, nor has a vector."""
    images = load_data(BYTES.astype(np.uint8), dequantize="uniform")
    measure, real = measure_of("density", images.record), constraints.real
    assert images.bits_per_dimension(24 * math.log(2), measure, real) == pytest.approx(7)
    assert images.bits_per_dimension(None, measure, real) is None
    grey = load_data(BYTES.astype(np.uint8))
    assert measure_of("density", grey.record) == "density (of [0, 1])"
    assert grey.bits_per_dimension(1.0, measure_of("density", grey.record), real) is None
    assert grey.bits_per_dimension(-24.0, "cross-entropy", real) is None
    assert grey.bits_per_dimension(-24 * math.log(2), "mass", constraints.boolean) == pytest.approx(1)
    assert grey.bits_per_dimension(-24 * math.log(2), "mass", constraints.one_hot) is None
    assert load_data(COUNTS).bits_per_dimension(-1.0, "mass", constraints.boolean) is None


def test_one_draw_or_one_datapoint_has_no_error(vae: Callable[..., VAE], binary_data: Data) -> None:
    one = evaluate(vae(), binary_data, particles=1)
    assert [one.log_evidence_mcse, one.log_evidence_bias, one.log_evidence_interval, one.khat_share] == [None] * 4
    assert evaluate(vae(), binary_data, particles=20).khat_share is None
    assert evaluate(vae(), binary_data, particles=21).khat_share is not None
    alone = evaluate(vae(), load_data(COUNTS[:10] % 2), particles=8)
    assert alone.datapoints == 1
    assert alone.log_evidence_se is None
    assert alone.log_evidence is not None


# Units.


class Partly(nn.Module):
    """q(z | x) that uses the first feature alone: z_1 ~ N(2 x_1, 0.1^2), z_2 ~ N(0.5, 0.1^2)."""

    def __init__(self, joint: bool = False) -> None:
        super().__init__()
        self.joint = joint
        self.factor = nn.Parameter(torch.tensor([2.0, 0.0]))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        loc = x[:, :1] * self.factor + torch.tensor([0.0, 0.5])
        if self.joint:
            return dist.MultivariateNormal(loc, 0.01 * torch.eye(2))
        return dist.Normal(loc, 0.1).to_event(1)


def ignoring(vae: Callable[..., VAE], posterior: nn.Module) -> LatentVariableModel:
    return LatentVariableModel((6,), NormalPrior(2), vae().likelihood, posterior)


def test_a_unit_is_active_if_its_posterior_mean_varies(vae: Callable[..., VAE], binary_data: Data) -> None:
    given = evaluate(ignoring(vae, Partly()), binary_data, split="train", particles=8)
    assert given.active_units == 1
    # KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s, averaged over the data.
    loc = 2 * binary_data.train.batch(slice(None)).x[:, 0]
    constant = (0.01 - 1) / 2 - math.log(0.1)
    expected = [loc.square().mean().item() / 2 + constant, 0.5**2 / 2 + constant]
    assert given.kl_per_dimension == pytest.approx(expected, rel=1e-5)


def test_a_posterior_that_does_not_factorise_has_no_kl_of_a_dimension(
    vae: Callable[..., VAE], binary_data: Data
) -> None:
    given = evaluate(ignoring(vae, Partly(joint=True)), binary_data, split="train", particles=8)
    assert given.kl_per_dimension is None
    assert given.active_units == 1
    # The same distribution as the factorised one; its KL is an estimate from 8 draws of 41 datapoints of two
    # dimensions, each with the variance 1/2 of a chi-square over 2, and little more from the prior.
    apart = evaluate(ignoring(vae, Partly()), binary_data, split="train", particles=8)
    assert given.kl == pytest.approx(apart.kl, abs=4 * math.sqrt(2 * 0.6 / (8 * 41)))


# Refusals.


def test_a_model_over_other_events_is_refused_with_both_shapes(binary_data: Data) -> None:
    with pytest.raises(InputError, match=r"over events of shape \(4,\), but array holds \(6,\)"):
        evaluate(VAE((4,), latent_dim=2), binary_data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "there is no split 'tset'; valid: train, validation, test"),
        ({"particles": 0}, "particles was 0; at least 1 is needed"),
        ({"batch_size": 0}, "batch_size was 0; at least 1 is needed"),
    ],
)
def test_arguments_out_of_range(
    options: dict[str, Any], message: str, vae: Callable[..., VAE], binary_data: Data
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(vae(), binary_data, **options)


def test_data_outside_the_support_is_refused(vae: Callable[..., VAE]) -> None:
    with pytest.raises(InputError, match="binarize: dynamic, static or threshold, or relaxed"):
        evaluate(vae(), load_data(GREY), particles=2)


def test_observed_parts_are_scored_alone(vae: Callable[..., VAE]) -> None:
    """The mask of the data reaches the likelihood: what is not observed has no part in any score."""
    mask = np.random.default_rng(5).random((40, 6)) < 0.6
    one, other = (load_data(np.where(mask, COUNTS % 2, hidden), mask=mask) for hidden in (0, 1))
    model = vae()
    assert evaluate(model, one, particles=8) == evaluate(model, other, particles=8)
    nothing = evaluate(model, load_data(COUNTS % 2, mask=np.zeros_like(mask)), particles=8)
    assert nothing.reconstruction == 0


class Number(LatentVariableModel):
    """One number z a datapoint, with no dimension of its own: z ~ N(0, 1), x_i ~ N(z, 1)."""

    def __init__(self) -> None:
        super().__init__((6,), nn.Identity(), nn.Identity(), nn.Linear(1, 1))

    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 6), 1.0).to_event(1), obs=x)

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(6 / 7 * x.mean(-1), 7**-0.5))


def test_a_site_may_be_a_number() -> None:
    """The guide is the exact posterior; log p(x) = log N(x; 0, I + 1 1')."""
    x = torch.randn(4, 6)
    truth = torch.distributions.MultivariateNormal(torch.zeros(6), torch.eye(6) + 1).log_prob(x)
    torch.testing.assert_close(score(Number(), x, particles=3).log_evidence, truth)
