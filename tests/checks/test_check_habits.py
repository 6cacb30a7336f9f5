"""What users give to checks: data far from 0, statistics of their own, and models of x given y."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.checks import _Memorising, drawn_data, linear
from pyrolatent import ConditionalVAE, InputError, LinearGaussian, evaluate, fit, load_data
from pyrolatent.checks import ActiveUnits, AggregatedPosterior, Memorisation, PriorPredictive, nearest_distances
from pyrolatent.checks.predictive import _deviation


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_nearest_distances_far_from_zero(offset: float) -> None:
    """Distances in double precision of the same numbers, and a neighbour at that distance."""
    x = (torch.randn(400, 6) + offset).float()
    points, among = x[:100], x[100:]
    distances, nearest = nearest_distances(points, among)
    exact = (points.double()[:, None] - among.double()).norm(dim=-1)
    torch.testing.assert_close(distances.double(), exact.min(1).values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(exact.gather(1, nearest[:, None])[:, 0], exact.min(1).values, rtol=1e-5, atol=1e-6)


def test_samples_that_are_training_rows_are_found_wherever_they_lie() -> None:
    torch.manual_seed(0)
    model = linear()
    with torch.no_grad():
        model.likelihood.bias += 10_000
    data = drawn_data(model, 300, 300)
    model.__class__ = _Memorising
    model.rows, model.share = data.train.x, 1.0
    assert not Memorisation()(model, data, size=300).passed


def test_a_statistic_that_sets_the_seed_changes_no_draw() -> None:
    """With it as without it the replicates are the same, of which p of the other statistics is made."""

    def projected(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return (x @ torch.randn(6, 3)).std(0)

    torch.manual_seed(1)
    model = linear()
    data = drawn_data(model, 100, 100)
    found = [
        PriorPredictive(statistics=statistics, replicates=99)(model, data).arrays["prior predictive: mean"]
        for statistics in ({}, {"projected": projected})
    ]
    assert np.array_equal(*found)


STATISTICS: dict[str, tuple[Any, str]] = {
    "several lengths": ({"own": lambda x: x[x > 2]}, "'own' must give one number, or as many for each data set"),
    "a mapping": ({"own": lambda x: {"a": 1}}, "'own' must give one number"),
    "nothing": ({"own": lambda x: None}, "'own' must give one number"),
    "an error": ({"own": lambda x: 1 / 0}, "ZeroDivisionError: division by zero"),
    "complex": ({"own": lambda x: torch.fft.fft(x)}, "it gave no number, or complex ones"),
    "empty": ({"own": lambda x: x[:0]}, "it gave no number"),
    "a name that is taken": ({"mean": lambda x: x.sum()}, "give functions by names of their own, other than mean"),
    "a list": ([lambda x: x.sum()], "give functions by names of their own"),
}


@pytest.mark.parametrize("kind", STATISTICS)
def test_statistics_of_one_s_own_are_refused_by_name(kind: str) -> None:
    statistics, said = STATISTICS[kind]
    model = linear()
    with pytest.raises(InputError, match=said):
        PriorPredictive(statistics=statistics, replicates=99)(model, drawn_data(model, 30, 100))


@pytest.mark.parametrize(
    ("values", "deviation"), [([1, 0, 0], np.inf), ([-1, 0, 0], -np.inf), ([0, 0, 0], 0.0), ([3, 1, -1], 3.0)]
)
def test_what_replicates_never_have_is_far_away(values: list[float], deviation: float) -> None:
    assert _deviation(values) == deviation


def test_the_marginal_of_a_model_given_y_is_not_held_against_one_prior() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(3, size=300)
    data = load_data(4.0 * y[:, None] + generator.normal(size=(300, 2)), labels=y)
    model = ConditionalVAE((2,), 3, latent_dim=1, prior="label_normal", likelihood="normal")
    verdict = AggregatedPosterior(draws=25)(model, data, size=30)
    assert "marginal_kl" not in verdict.numbers
    assert "the model is one of x given y" in verdict.skipped["marginal_kl"]


@pytest.mark.parametrize("model", [{"vae": {"latent_dim": 2}}, "vae", None])
def test_what_is_no_model_is_refused(model: Any, binary_data: Any) -> None:
    call: Callable[..., Any] = fit
    with pytest.raises(InputError, match="as its model; build one"):
        call(model, binary_data, epochs=1)


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_the_units_of_a_latent_do_not_decide_whether_it_is_active(scale: float) -> None:
    """Two of a linear-Gaussian model with its exact posterior, whose latents are of another scale, and prior."""
    torch.manual_seed(0)
    model = LinearGaussian((6,), latent_dim=2, noise=0.7, precision=scale**-2)
    with torch.no_grad():
        model.likelihood.weight.copy_(torch.randn(6, 2) / scale)
    data = drawn_data(model, 100, 300)
    assert evaluate(model, data, particles=4).active_units == 2
    assert ActiveUnits(draws=4)(model, data).value == 2
