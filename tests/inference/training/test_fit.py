"""Training: the bound rises, the same seed gives the same numbers, and each setting does what it says."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

from pyrolatent import VAE, Callback, Data, Fit, InputError, fit
from pyrolatent.declaration import registered
from pyrolatent.inference.objectives.bounds import AnalyticELBO, Bound
from pyrolatent.inference.training.held_out import DRAWS
from pyrolatent.inference.weights import weigh

Build = Callable[..., VAE]
Vector = Callable[[nn.Module], Tensor]
FROZEN = {"SGD": {"lr": 1e-30}}
FAST = {"Adam": {"lr": 0.02}}


def run(model: VAE, data: Data, **settings: Any) -> Fit:
    return fit(model, data, progress=False, **({"epochs": 2, "batch_size": 16, "device": "cpu"} | settings))


def column(fitted: Fit, name: str) -> list[float]:
    return [row[name] for row in fitted.history]


@pytest.mark.parametrize("objective", ["elbo", "analytic_elbo", {"elbo": {"particles": 4}}])
def test_the_bound_rises(objective: Any, vae: Build, binary_data: Data) -> None:
    fitted = run(vae(), binary_data, objective=objective, optimizer=FAST, epochs=30)
    assert column(fitted, "epoch") == list(range(1, 31))
    # Six binary features in two clusters: from 6 log 2 = 4.2 nats to below log 2 + 6 H(0.9) + what is left to learn.
    assert column(fitted, "train_loss")[-1] < column(fitted, "train_loss")[0] - 0.5
    assert column(fitted, "validation_elbo")[-1] > column(fitted, "validation_elbo")[0] + 0.2
    assert not fitted.model.training


def test_the_same_seed_gives_the_same_numbers(vae: Build, binary_data: Data, parameters: Vector) -> None:
    """Bit for bit, whatever the caller's random state."""
    runs = []
    for caller, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(caller)
        runs.append(run(vae(), binary_data, seed=seed))
    (first, again, other), names = runs, ("train_loss", "validation_elbo")
    assert [column(first, name) for name in names] == [column(again, name) for name in names]
    assert torch.equal(parameters(first.model), parameters(again.model))
    assert not set(column(first, "train_loss")) & set(column(other, "train_loss"))
    assert not torch.equal(parameters(first.model), parameters(other.model))


@pytest.mark.parametrize("objective", ["elbo", "Trace_ELBO"])
def test_the_caller_s_state_is_untouched(objective: str, vae: Build, binary_data: Data) -> None:
    mine = pyro.param("mine", torch.tensor(3.0))
    state = torch.get_rng_state()
    run(vae(), binary_data, objective=objective)
    assert torch.equal(state, torch.get_rng_state())
    assert list(pyro.get_param_store()) == ["mine"]
    assert pyro.param("mine") is mine


@pytest.mark.parametrize("batch_size", [1, 16, 40, 1000])
def test_batches_of_every_size(batch_size: int, vae: Build, binary_data: Data, parameters: Vector) -> None:
    """41 datapoints: one at a time, a last batch of 9 and of one, and one batch smaller than asked for."""
    model = vae()
    before = parameters(model)
    fitted = run(model, binary_data, batch_size=batch_size, epochs=1)
    assert not torch.equal(before, parameters(model))
    assert column(fitted, "train_loss")[0] < 10


# Muon takes matrices alone, and networks have biases.
@pytest.mark.parametrize("name", sorted(registered("optimizer").keys() - {"Muon"}))
def test_every_optimiser_of_torch_by_name(name: str, vae: Build, binary_data: Data, parameters: Vector) -> None:
    model = vae()
    before = parameters(model)
    run(model, binary_data, optimizer={name: {"lr": 1e-3}}, epochs=1)
    moved = (before != parameters(model)).float().mean().item()
    assert moved > 0.5
    assert torch.isfinite(parameters(model)).all()


@pytest.mark.parametrize(
    "objective",
    ["Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO", {"Trace_ELBO": {"num_particles": 3}}],
)
def test_objectives_of_pyro_by_name(objective: Any, vae: Build, binary_data: Data) -> None:
    fitted = run(vae(), binary_data, objective=objective, optimizer=FAST, epochs=20)
    assert column(fitted, "validation_elbo")[-1] > column(fitted, "validation_elbo")[0] + 0.2
    assert column(fitted, "train_loss")[-1] < column(fitted, "train_loss")[0] - 0.3


@pytest.mark.parametrize(("ours", "pyros"), [("elbo", "Trace_ELBO"), ("analytic_elbo", "TraceMeanField_ELBO")])
def test_ours_and_pyro_s_train_alike(ours: str, pyros: str, vae: Build, binary_data: Data, parameters: Vector) -> None:
    """At the same seed one draw is the same draw, so two epochs differ by rounding alone."""
    one, other = vae(), vae()
    settings = {"optimizer": {"SGD": {"lr": 0.05}}, "clip_norm": 1.0}
    first = run(one, binary_data, objective=ours, **settings)
    options = {"vectorize_particles": True, "max_plate_nesting": 1}
    second = run(other, binary_data, objective={pyros: options}, **settings)
    assert column(first, "train_loss") == pytest.approx(column(second, "train_loss"), rel=1e-5)
    torch.testing.assert_close(parameters(one), parameters(other), rtol=1e-4, atol=1e-5)


# What is reported.


@pytest.mark.parametrize("objective", ["elbo", "analytic_elbo"])
def test_train_loss_is_the_negative_bound_whatever_beta_is_trained(
    objective: str, vae: Build, binary_data: Data
) -> None:
    """With steps too small to move a weight the running mean is an estimate of the bound, whose error is known."""
    plain, heavy = (
        run(vae(), binary_data, objective={objective: {"beta": beta}}, optimizer=FROZEN, epochs=1) for beta in (1, 4)
    )
    assert column(plain, "train_loss") == column(heavy, "train_loss")
    model, x = plain.model, binary_data.train.batch(slice(None)).x
    weights = weigh(model.generate, model.infer, x, particles=2000)
    ratios = weights.log_likelihood - weights.kl["z"] if objective == "analytic_elbo" else weights.log_weights()
    error = ratios.var(0).sum().sqrt().item() / len(x)  # of one draw for each datapoint
    assert -column(plain, "train_loss")[0] == pytest.approx(ratios.mean().item(), abs=4 * error)


def test_the_validation_bound_has_the_same_noise_at_each_epoch(vae: Build, binary_data: Data) -> None:
    fitted = run(vae(), binary_data, optimizer=FROZEN, seed=9, objective={"elbo": {"beta": 4}})
    first, second = column(fitted, "validation_elbo")
    assert first == second
    torch.manual_seed(9)
    x = binary_data.validation.batch(slice(None)).x
    bound = AnalyticELBO(particles=math.ceil(DRAWS / len(x)))
    weights = bound.weigh(fitted.model.generate, fitted.model.infer, x)
    assert first == pytest.approx(bound.bound(weights).mean().item(), rel=1e-6)


class Watching(Callback):
    """Keeps what each method was called with."""

    def __init__(self, of_model: Vector) -> None:
        self.of_model = of_model
        self.calls: list[str] = []
        self.epochs: list[tuple[int, bool, Tensor]] = []
        self.steps: dict[int, float] = {}

    def on_start(self, fit: Fit) -> None:
        self.calls.append("start")
        assert fit.history == []

    def on_step(self, fit: Fit, step: int, value: Callable[[], float]) -> None:
        self.steps[step] = value()

    def on_epoch(self, fit: Fit) -> None:
        self.calls.append("epoch")
        self.epochs.append((len(fit.history), fit.model.training, self.of_model(fit.model)))

    def on_end(self, fit: Fit) -> None:
        self.calls.append("end")


@pytest.mark.parametrize("compile", ["never", "always"])
def test_callbacks_see_every_step_and_epoch_and_change_nothing(
    vae: Build, binary_data: Data, parameters: Vector, compile: Any
) -> None:
    watching = Watching(parameters)
    settings: Any = {"epochs": 3, "compile": compile, "batch_size": 16}
    fitted = run(vae(), binary_data, callbacks=[watching], **settings)
    assert watching.calls == ["start", "epoch", "epoch", "epoch", "end"]
    assert [(count, training) for count, training, _ in watching.epochs] == [(1, False), (2, False), (3, False)]
    assert not torch.equal(watching.epochs[0][2], watching.epochs[1][2])
    assert torch.equal(watching.epochs[2][2], parameters(fitted.model))
    assert [*watching.steps] == [*range(1, fitted.total_steps + 1)]
    sizes = [len(part) for part in torch.arange(len(binary_data.train)).split(16)]
    for epoch, row in enumerate(fitted.history):
        values = [watching.steps[epoch * len(sizes) + i + 1] for i in range(len(sizes))]
        mean = sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
        assert mean == pytest.approx(-row["train_loss"], rel=1e-5)
    alone = run(vae(), binary_data, **settings)
    assert torch.equal(parameters(alone.model), parameters(fitted.model))


def test_a_callback_stops_training(vae: Build, binary_data: Data) -> None:
    class Stopping(Callback):
        def on_epoch(self, fit: Fit) -> None:
            fit.stop = len(fit.history) == 2

    assert len(run(vae(), binary_data, epochs=5, callbacks=[Stopping()]).history) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([Callback], "a callback was the class, not an instance; give instances of a subclass"),
        ([print], "a callback was a builtin_function_or_method"),
        (Callback(), "callbacks were a Callback; give a list"),
    ],
)
def test_what_is_no_callback_is_refused(vae: Build, binary_data: Data, given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(vae(), binary_data, callbacks=given)


# Settings.


def test_patience_keeps_the_weights_of_the_best_epoch(vae: Build, binary_data: Data, parameters: Vector) -> None:
    watching = Watching(parameters)
    fitted = fit(
        vae(),
        binary_data,
        callbacks=[watching],
        progress=False,
        epochs=200,
        batch_size=8,
        patience=4,
        optimizer={"Adam": {"lr": 0.1}},
        device="cpu",
    )
    bounds = column(fitted, "validation_elbo")
    best = int(np.argmax(bounds)) + 1
    assert fitted.best_epoch == best
    assert len(bounds) == best + 4 < 200
    assert torch.equal(parameters(fitted.model), watching.epochs[best - 1][2])
    assert not torch.equal(parameters(fitted.model), watching.epochs[-1][2])
    torch.manual_seed(0)
    x = binary_data.validation.batch(slice(None)).x
    bound = AnalyticELBO(particles=math.ceil(DRAWS / len(x)))
    kept = bound.weigh(fitted.model.generate, fitted.model.infer, x)
    assert bound.bound(kept).mean().item() == pytest.approx(max(bounds), rel=1e-6)


class Recording(Bound):
    """The analytic bound, remembering each factor that it was asked for with gradients."""

    def __init__(self, beta: float) -> None:
        super().__init__(beta=beta)
        self.factors: list[float] = []

    def bound(self, weights: Any, beta: float | Tensor = 1.0) -> Tensor:
        self.factors.append(float(beta))
        return AnalyticELBO().bound(weights, beta)


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_kl_warmup_rises_linearly_from_zero(beta: float, vae: Build, binary_data: Data) -> None:
    """Three batches an epoch over two epochs of warm-up: beta 0, 1/6, ..., 5/6, then beta for good."""
    recording = Recording(beta)
    run(vae(), binary_data, objective=recording, kl_warmup={"linear": {"epochs": 2}}, epochs=3)
    targets = [
        float(factor) for factor in recording.factors[::2]
    ]  # each step asks for its target, then for the bound that is reported
    assert targets == pytest.approx([beta * min(1, step / 6) for step in range(9)])
    assert recording.factors[1::2] == [1.0] * 9


def test_the_first_step_of_a_warmup_is_a_step_with_beta_zero(vae: Build, binary_data: Data, parameters: Vector) -> None:
    warm, none, full = vae(), vae(), vae()
    settings = {"epochs": 1, "batch_size": 1000, "optimizer": {"SGD": {"lr": 0.1}}}
    run(warm, binary_data, objective="analytic_elbo", kl_warmup={"linear": {"epochs": 5}}, **settings)
    run(none, binary_data, objective={"analytic_elbo": {"beta": 0}}, **settings)
    run(full, binary_data, objective="analytic_elbo", **settings)
    assert torch.equal(parameters(warm), parameters(none))
    assert not torch.equal(parameters(warm), parameters(full))


def test_clip_norm_bounds_the_gradient_of_the_loss_a_datapoint(
    vae: Build, binary_data: Data, parameters: Vector
) -> None:
    """One step of plain gradient descent with rate 1 is the gradient itself."""

    def step(**settings: Any) -> Tensor:
        model = vae()
        before = parameters(model).double()
        run(model, binary_data, epochs=1, batch_size=1000, optimizer={"SGD": {"lr": 1.0}}, **settings)
        return parameters(model).double() - before

    free, clipped, loose = step(), step(clip_norm=0.01), step(clip_norm=100.0)
    assert free.norm() > 0.05
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert (nn.functional.cosine_similarity(free, clipped, dim=0)).item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(free, loose)


@pytest.mark.parametrize(
    ("scheduler", "optimizer", "expected"),
    [
        (None, {"Adam": {"lr": 0.01}}, [0.01] * 4),
        ({"StepLR": {"step_size": 2, "gamma": 0.1}}, {"Adam": {"lr": 0.01}}, [0.01, 0.01, 0.001, 0.001]),
        ({"ExponentialLR": {"gamma": 0.5}}, {"Adam": {"lr": 0.01}}, [0.01, 0.005, 0.0025, 0.00125]),
        # The bound does not rise under a rate too small to move a weight, so each epoch after the first lowers it.
        (
            {"ReduceLROnPlateau": {"factor": 0.5, "patience": 0, "eps": 0}},
            FROZEN,
            [1e-30, 1e-30, 0.5e-30, 0.25e-30],
        ),
        # It rises well above a threshold of 1e-4 at first, so the rate stays.
        ({"ReduceLROnPlateau": {"factor": 0.5, "patience": 0}}, {"Adam": {"lr": 0.005}}, [0.005] * 4),
    ],
)
def test_a_scheduler_changes_the_learning_rate(
    scheduler: Any, optimizer: Any, expected: list[float], vae: Build, binary_data: Data
) -> None:
    fitted = run(vae(), binary_data, scheduler=scheduler, optimizer=optimizer, epochs=4)
    assert column(fitted, "learning_rate") == pytest.approx(expected, rel=1e-6, abs=0)
