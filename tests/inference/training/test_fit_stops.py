"""What stops training: what cannot be right before it begins, and numbers that are not finite while it runs."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from pyrolatent import (
    VAE,
    Callback,
    Data,
    Fit,
    InputError,
    RestrictedBoltzmannMachine,
    Run,
    TrainingError,
    fit,
    load_data,
)
from pyrolatent.cli import app
from pyrolatent.inference.evidence.importance import evaluate

Build = Callable[..., VAE]
Vector = Callable[[nn.Module], Tensor]
GREY = np.random.default_rng(3).random((40, 6), dtype=np.float32)


def run(model: VAE, data: Data, **settings: Any) -> Any:
    return fit(model, data, progress=False, **({"epochs": 2, "batch_size": 16, "device": "cpu"} | settings))


class FailsAt(nn.Module):
    """A network whose output is NaN at its n-th call in training mode; how often it was called is part of its state."""

    def __init__(self, network: nn.Module, n: int) -> None:
        super().__init__()
        self.network, self.n = network, n
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, value: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.network(value) * torch.where(self.calls == self.n, torch.nan, 1.0)


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize(("part", "site"), [("posterior", r"log q\(z \| x\)"), ("likelihood", r"log p\(x \| z\)")])
def test_the_site_and_the_step_are_named_and_the_last_good_state_kept(
    part: str, site: str, step: int, vae: Build, binary_data: Data, parameters: Vector
) -> None:
    """Three batches an epoch, so that step 5 is the second of the second epoch."""

    def counting(model: VAE, n: int) -> FailsAt:
        conditional = getattr(model.eval(), part)  # what is run before training leaves the count alone
        conditional.network = FailsAt(conditional.network, n)
        return conditional.network

    model, whole = vae(), vae()
    counting(model, step)
    with pytest.raises(TrainingError, match=rf"^{site} was not finite for \d+ of \d+ datapoints") as stopped:
        run(model, binary_data)
    assert f"at step {step} (epoch {1 + (step - 1) // 3})" in str(stopped.value)
    # The weights are those with which this step begins where nothing fails.
    begun: list[Tensor] = []
    counting(whole, -1).register_forward_pre_hook(
        lambda *_: begun.append(parameters(whole)) if whole.training else None
    )
    run(whole, binary_data)
    assert torch.equal(parameters(model), begun[step - 1])


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("options", [{"objective": "elbo"}, {"objective": "TraceMeanField_ELBO"}])
def test_an_absurd_learning_rate_stops_training(options: dict[str, Any], vae: Build, parameters: Vector) -> None:
    model = vae(likelihood="normal")
    with pytest.raises(TrainingError, match=r"was not finite.* at step \d+ \(epoch \d+\).*lower the learning rate"):
        run(model, load_data(GREY), optimizer={"SGD": {"lr": 1e20}}, epochs=20, **options)
    assert torch.isfinite(parameters(model)).all()


def test_the_caller_s_state_is_untouched_by_a_failure(vae: Build) -> None:
    state = torch.get_rng_state()
    with pytest.raises(TrainingError):
        run(vae(likelihood="normal"), load_data(GREY), optimizer={"SGD": {"lr": 1e20}}, epochs=20)
    assert torch.equal(state, torch.get_rng_state())
    assert not list(pyro.get_param_store())


# Before training.


def test_grey_data_under_a_bernoulli_are_refused_with_what_to_declare(vae: Build, parameters: Vector) -> None:
    model = vae()
    before = parameters(model)
    with pytest.raises(InputError, match=r"not all 0 or 1.*binarize: dynamic, static or threshold, or relaxed"):
        run(model, load_data(GREY))
    assert torch.equal(before, parameters(model))


@pytest.mark.parametrize("binarize", ["relaxed", "dynamic", "static", "threshold"])
def test_what_is_declared_for_grey_data_trains(binarize: Any, vae: Build, parameters: Vector) -> None:
    model = vae()
    before = parameters(model)
    fitted = run(model, load_data(GREY, binarize=binarize), optimizer={"Adam": {"lr": 0.02}}, epochs=5)
    assert not torch.equal(before, parameters(model))
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]


def test_relaxed_data_go_with_a_bernoulli_alone(vae: Build) -> None:
    with pytest.raises(InputError, match="binarize: relaxed, which goes with the bernoulli likelihood alone"):
        run(vae(likelihood="normal"), load_data(GREY, binarize="relaxed"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "fit.epochs was given 0: input should be greater than 0"),
        ({"epochs": 1.5}, "fit.epochs was given 1.5: input should be a valid integer"),
        ({"batch_size": 0}, "fit.batch_size was given 0"),
        ({"clip_norm": 0.0}, "fit.clip_norm was given 0.0"),
        ({"kl_warmup": {"linear": {"epochs": -1}}}, "fit.kl_warmup.linear.epochs was given -1"),
        ({"patience": 0}, "fit.patience was given 0"),
        ({"seed": -1}, "fit.seed was given -1"),
        ({"device": "tpu"}, "fit.device was given 'tpu': input should be 'auto', 'cpu', 'cuda' or 'mps'"),
        ({"objective": "elob"}, r"there is no objective 'elob' \(fit.objective\); .*did you mean 'elbo'\?"),
        ({"optimizer": "Adm"}, r"there is no optimizer 'Adm' \(fit.optimizer\); .*did you mean 'Adam'\?"),
        ({"scheduler": "StepLr"}, r"there is no scheduler 'StepLr' \(fit.scheduler\); .*did you mean 'StepLR'\?"),
        ({"scheduler": "StepLR"}, "fit.scheduler.StepLR needs the option 'step_size', which was not given"),
        ({"objective": {"elbo": {"particles": 0}}}, "fit.objective.elbo.particles was given 0"),
        (
            {"objective": "Trace_ELBO", "kl_warmup": {"linear": {"epochs": 2}}},
            "kl_warmup scales the KL .*Trace_ELBO.* declare objective:? elbo",
        ),
    ],
)
def test_settings_that_cannot_be_right(
    settings: dict[str, Any], message: str, vae: Build, binary_data: Data, parameters: Vector
) -> None:
    model = vae()
    before = parameters(model)
    with pytest.raises(InputError, match=message):
        run(model, binary_data, **settings)
    assert torch.equal(before, parameters(model))


def test_a_device_that_is_not_there_is_refused(vae: Build, binary_data: Data) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(InputError, match="device was 'mps', but this machine has none; use auto or cpu"):
        run(vae(), binary_data, device="mps")


@pytest.mark.parametrize("optimizer", ["Muon", {"Adam": {"lr": -1}}])
def test_what_an_optimiser_refuses_is_refused_by_name(optimizer: Any, vae: Build, binary_data: Data) -> None:
    with pytest.raises(InputError, match=r"optimizer.*(Muon|Adam)"):
        run(vae(), binary_data, optimizer=optimizer)


def test_a_model_over_other_events_is_refused(binary_data: Data) -> None:
    with pytest.raises(InputError, match=r"over events of shape \(4,\), but array holds \(6,\)"):
        run(VAE((4,), latent_dim=2), binary_data)


def test_a_model_without_parameters_to_train_is_refused(vae: Build, binary_data: Data) -> None:
    with pytest.raises(InputError, match="no parameter to train"):
        run(vae().requires_grad_(False), binary_data)


def test_a_model_that_scores_the_batch_as_one_is_refused_by_site(binary_data: Data) -> None:
    """Weights are those of a datapoint, so a site outside of the plate cannot be one of them."""

    class Together(VAE):
        def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior(y))
            pyro.sample("x", self.likelihood(z, y).to_event(1), obs=x)

    with pytest.raises(
        InputError, match="site 'x' lies outside the plate 'data', so that datapoints would be weighed jointly"
    ):
        run(Together((6,), latent_dim=2), binary_data)


def test_frozen_parts_stay_and_the_rest_trains(vae: Build, binary_data: Data, parameters: Vector) -> None:
    model = vae()
    model.posterior.requires_grad_(False)
    frozen, free = parameters(model.posterior), parameters(model.likelihood)
    run(model, binary_data)
    assert torch.equal(frozen, parameters(model.posterior))
    assert not torch.equal(free, parameters(model.likelihood))
    assert evaluate(model, binary_data, particles=4).datapoints == 5


# Numbers beside the bound.


@pytest.mark.parametrize(
    "objective", ["cd", {"pcd": {"chains": 5}}, "exact_likelihood"], ids=["cd", "pcd", "exact_likelihood"]
)
def test_weights_that_overflow_stop_the_training_of_a_machine(
    objective: Any, binary_data: Data, parameters: Vector
) -> None:
    """Weights of 1e29 are finite, but not their length; the model, and the run on disk, hold what was before."""
    model = RestrictedBoltzmannMachine((6,), hidden=3)
    saved: list[Tensor] = []
    rows: list[Any] = []

    class Keeping(Callback):
        def on_epoch(self, fit: Fit) -> None:
            saved.append(parameters(model))
            rows.append(fit.history[-1])

    settings = {"optimizer": {"SGD": {"lr": 0.1}}, "scheduler": {"StepLR": {"step_size": 2, "gamma": 1e31}}}
    with pytest.raises(TrainingError, match=r"was not finite .*(before that|state before).*lower the learning rate"):
        fit(
            model,
            binary_data,
            callbacks=[Keeping()],
            progress=False,
            objective=objective,
            epochs=9,
            device="cpu",
            **settings,
        )
    assert len(saved) == 2
    assert torch.equal(saved[-1], parameters(model))
    assert all(math.isfinite(value) for row in rows for value in row.values() if value is not None)


def test_a_run_whose_training_overflows_is_a_failure_that_holds_the_last_good_state(
    binary_data: Data, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", binary_data.train.x.numpy().astype(np.uint8))
    declared = {
        "model": {"rbm": {"hidden": 3}}, "objective": "cd", "data": str(tmp_path / "x.npy"), "epochs": 9,
        "optimizer": {"SGD": {"lr": 0.1}}, "scheduler": {"StepLR": {"step_size": 2, "gamma": 1e31}},
    }  # fmt: skip
    (tmp_path / "e.yaml").write_text(json.dumps(declared))
    result = CliRunner().invoke(app, ["train", str(tmp_path / "e.yaml"), "--output", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "was not finite" in result.stderr
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert len(metrics.splitlines()) == 2
    assert "Infinity" not in metrics
    assert "NaN" not in metrics
    model = Run.load(tmp_path / "run").model
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


class Restless(VAE):
    """Its guide is another each time it is run."""

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        self.runs = getattr(self, "runs", 0) + 1
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.posterior(x).mean, float(self.runs)).to_event(1))


def test_a_model_whose_training_is_refused_stays_in_the_modes_that_it_had(binary_data: Data) -> None:
    model = Restless(binary_data.event_shape, latent_dim=2)
    for training in (False, True):
        model.train(training).likelihood.eval()
        modes = [part.training for part in model.modules()]
        model.divisor = 7.0
        with pytest.raises(InputError, match="when it is run again"):
            fit(model, binary_data, objective="stl", progress=False)
        assert [part.training for part in model.modules()] == modes
        assert model.divisor == 7.0


def test_a_model_whose_training_stopped_is_in_evaluation_mode(binary_data: Data) -> None:
    model = VAE(binary_data.event_shape, latent_dim=2)
    with pytest.raises(TrainingError):
        fit(model, binary_data, optimizer={"SGD": {"lr": 1e30}}, progress=False)
    assert not any(part.training for part in model.modules())
