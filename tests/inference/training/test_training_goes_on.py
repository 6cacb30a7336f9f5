"""Training that begins again, ends too early, or reaches minibatches of one datapoint."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pyrolatent import VAE, Data, GenerativeNetwork, InputError, Run, evaluate, fit, load_data
from pyrolatent.declaration import build
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.objectives.bounds import IWAE, AnalyticELBO
from pyrolatent.inference.training.diagnosis import still_rising

Build = Callable[..., VAE]
SMALL: Any = {"encoder": {"mlp": {"hidden": [8]}}, "decoder": {"mlp": {"hidden": [8]}}}
STARTED = {"vamp": {"prior": {"vamp": {"components": 8}}}, "bias": {"start_at_data": True}}


def quiet(model: Any, data: Data, **options: Any) -> Any:
    return fit(model, data, progress=False, **({"epochs": 3, "batch_size": 16} | options))


@pytest.mark.parametrize("name", STARTED)
@pytest.mark.parametrize("how", ["fitted", "loaded", "state"])
def test_a_second_fit_goes_on_from_what_was_learnt(
    name: str, how: str, vae: Build, binary_data: Data, tmp_path: Any
) -> None:
    """Also of a loaded run or state: parts that start at the data start there once."""
    first = quiet(vae(**STARTED[name]), binary_data)
    model = first.model
    if how == "loaded":
        Run.save(tmp_path / "run", first)
        model = Run.load(tmp_path / "run").model
    elif how == "state":
        model = vae(seed=1, **STARTED[name])
        model.load_state_dict(first.model.state_dict())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    quiet(model, binary_data, optimizer={"SGD": {"lr": 1e-12}}, epochs=1)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key])


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_batch_normalisation_never_meets_a_single_datapoint(kind: str) -> None:
    """Of 41 training datapoints in minibatches of 20 one is left over, which joins the others."""
    data = load_data((np.random.default_rng(0).random((50, 1, 4, 4)) < 0.5).astype(float))
    assert len(data.train) == 41
    network = {kind: {"norm": "batch"} | ({"channels": (4, 8)} if kind == "conv" else {})}
    model = VAE(data.event_shape, latent_dim=2, encoder=network, decoder=network)
    seen: list[int] = []
    model.posterior.register_forward_hook(lambda module, given, result: seen.append(len(given[0])))
    quiet(model, data, epochs=1, batch_size=20)
    assert [size for size in seen if size >= 20][-2:] == [20, 21]
    with pytest.raises(InputError, match="batch normalisation needs minibatches of two or more datapoints"):
        quiet(model, data, batch_size=1)


@pytest.mark.parametrize("objective", ["TraceGraph_ELBO", "vimco", "rws"])
def test_a_discrete_model_trains_in_minibatches_of_one(objective: str, binary_data: Data) -> None:
    model = build("model", {"discrete_vae": {"latent_dims": (3, 2)}}, event_shape=(6,), label_dim=0)
    history = quiet(model, binary_data, objective=objective, batch_size=1, epochs=1).history
    assert math.isfinite(history[-1]["train_loss"])


def test_prior_vamp_is_the_same_in_training_and_evaluation(vae: Build) -> None:
    """No dropout noise, and no running statistics that move by pseudo-inputs."""
    network = {"mlp": {"hidden": [8], "norm": "batch", "dropout": 0.5}}
    model = vae(prior={"vamp": {"components": 8}}, encoder=network).train()
    z = torch.randn(5, 2)
    statistics = [value.clone() for name, value in model.named_buffers() if "running" in name]
    density = model.prior().log_prob(z)
    assert all(module.training for module in model.modules())
    for before, after in zip(statistics, (v for n, v in model.named_buffers() if "running" in n), strict=True):
        assert torch.equal(before, after)
    torch.testing.assert_close(model.eval().prior().log_prob(z), density)


def test_patience_begins_when_the_warm_up_has_ended(vae: Build, binary_data: Data) -> None:
    """The bound falls while the factor of the KL rises from 0, which is no reason to stop."""
    warm = quiet(vae(), binary_data, kl_warmup={"linear": {"epochs": 12}}, patience=2, epochs=20)
    assert warm.best_epoch >= 12
    assert len(warm.history) >= 14


def test_a_warm_up_of_one_s_own_need_not_say_when_it_ends(vae: Build, binary_data: Data) -> None:
    fitted = quiet(vae(), binary_data, kl_warmup=lambda t: min(1.0, t / 2), patience=5)
    assert fitted.best_epoch is not None


@pytest.mark.parametrize("steepness", [0.1, 10.0, 1e6])
def test_the_sigmoid_warm_up_rises_from_0_to_1(steepness: float) -> None:
    warmup = build("warmup", {"sigmoid": {"epochs": 8, "steepness": steepness}})
    values = [warmup(t / 2) for t in range(20)]
    assert values[0] == pytest.approx(0, abs=1e-9)
    assert values[8] == pytest.approx(0.5)
    assert values[16:] == pytest.approx([1.0] * 4)
    assert values == sorted(values)
    if steepness == 10:
        logistic = [1 / (1 + math.exp(-10 * (t / 16 - 0.5))) for t in (0, 3, 16)]
        assert values[3] == pytest.approx((logistic[1] - logistic[0]) / (logistic[2] - logistic[0]))


def test_a_generative_network_is_validated_by_as_many_draws_as_it_is_trained_with(binary_data: Data) -> None:
    """So that patience keeps the best bound on log p(x), of which one draw from the prior says nothing."""
    model = GenerativeNetwork((6,), latent_dim=2, decoder={"mlp": {"hidden": [8]}})
    fitted = quiet(model, binary_data, objective={"iwae": {"particles": 200}}, epochs=15, patience=15)
    found = [row["validation_bound"] for row in fitted.history]
    assert fitted.best_epoch == 1 + int(np.argmax(found))
    bound = IWAE(particles=2000)
    x = binary_data.validation.x
    truth = bound.bound(bound.weigh(model.generate, model.infer, x)).mean().item()
    assert max(found) == pytest.approx(truth, abs=0.3)
    assert evaluate(model, binary_data, split="validation", particles=2000).log_evidence == pytest.approx(
        truth, abs=0.2
    )


def test_what_still_rises_is_told_from_what_has_converged() -> None:
    """False alarms on 400 curves that have converged, and curves that rise, with noise of 0.05 of what was gained."""
    generator = np.random.default_rng(0)
    epochs = np.arange(100)
    converged = [still_rising(list(-np.exp(-epochs / 8) + 0.05 * generator.normal(size=100)), 0.01) for _ in range(400)]
    assert sum(slope is not None for slope in converged) <= 8
    rising = [still_rising(list(epochs / 100 + 0.05 * generator.normal(size=100)), 0.1) for _ in range(100)]
    assert sum(slope is not None for slope in rising) == 100
    assert np.mean([slope for slope in rising if slope]) == pytest.approx(0.01, rel=0.1)
    assert still_rising([1.0, 2.0, 3.0], 0.0) is None
    assert still_rising(list(epochs / 1000), 0.1) is None


def test_training_that_has_not_converged_says_so(vae: Build, binary_data: Data) -> None:
    """Means of 50 are far for a decoder that starts at 0; and an optimiser that stands still has converged."""
    far = load_data(50 + np.random.default_rng(0).normal(size=(60, 6)))
    with pytest.warns(UserWarning, match=r"not converged: validation_elbo was still rising, by .* set epochs: 40"):
        quiet(vae(likelihood="normal"), far, epochs=20, optimizer={"Adam": {"lr": 3e-3}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(vae(), binary_data, epochs=20, optimizer={"SGD": {"lr": 1e-9}})


@pytest.mark.parametrize("alpha", [1 + 1e-6, 1 - 1e-6, 1 + 1e-12, 0.999, 0.5, 0.0, -3.0, 4.0, math.inf, -math.inf])
def test_renyi_keeps_its_digits_at_every_order(alpha: float) -> None:
    """Against float64 by the definition, and near 1 by the mean of log weights; the gradient too."""

    class Given:
        def __init__(self, values: torch.Tensor) -> None:
            self.values = values

        def log_weights(self, beta: float) -> torch.Tensor:
            return self.values

    bound = build("objective", {"renyi": {"alpha": alpha, "particles": 50}}).bound
    single = (100 * torch.randn(50, 6) - 500).requires_grad_()
    double = single.detach().double().requires_grad_()
    if math.isinf(alpha):
        truth = double.min(0).values if alpha > 0 else double.max(0).values
    elif abs(alpha - 1) < 1e-5:
        truth = double.mean(0) + (1 - alpha) / 2 * double.var(0, correction=0)
    else:
        truth = (((1 - alpha) * double).logsumexp(0) - math.log(50)) / (1 - alpha)
    found = bound(Given(single))
    torch.testing.assert_close(found.double(), truth, rtol=2e-6, atol=0)
    found.sum().backward()
    truth.sum().backward()
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-3, atol=1e-5)


def test_active_units_count_no_labels_and_no_noise() -> None:
    """A posterior without closed-form mean that is the same for all data has none; class probabilities never do."""
    data = load_data((np.random.default_rng(0).random((200, 4)) < 0.5).astype(float), labels=np.arange(200) % 3)
    model = build("model", {"vae": {"latent_dim": 2, "posterior": "iaf"}}, event_shape=(4,), label_dim=0)
    for parameter in model.posterior.parameters():
        nn.init.zeros_(parameter)
    assert evaluate(model, data, particles=10).active_units == 0
    assert evaluate(model, data, particles=1).active_units is None
    labelled = build("model", {"semi_supervised_vae": {"latent_dim": 2}}, event_shape=(4,), label_dim=3)
    for parameter in labelled.posterior.parameters():
        nn.init.zeros_(parameter)
    nn.init.normal_(labelled.classifier.network.last.weight, std=20)
    assert evaluate(labelled, data, particles=10).active_units == 0


def test_without_known_labels_there_is_no_classification_error() -> None:
    x = (np.random.default_rng(0).random((60, 4)) < 0.5).astype(float)
    labels = np.arange(60) % 3
    model = build("model", {"semi_supervised_vae": {"latent_dim": 2}}, event_shape=(4,), label_dim=3)
    known = load_data(x, labels=labels)
    assert 0 <= evaluate(model, known, particles=5).classification_error <= 1
    known.test.y.fill_(-1)
    assert evaluate(model, known, particles=5).classification_error is None


@pytest.mark.parametrize(("rows", "draws"), [(7, 15), (100, 1), (2000, 1)])
def test_a_bound_on_few_validation_rows_rests_on_many_draws(rows: int, draws: int) -> None:
    """Which one draw of each would leave to chance; the score is that of as many draws at the seed."""
    random = np.random.default_rng(0)
    data = load_data(random.normal(size=(rows + 40, 3)), validation=[*range(rows)])
    torch.manual_seed(0)
    model = VAE(data.event_shape, latent_dim=2, likelihood="normal", **SMALL)
    fitted = quiet(model, data, epochs=1, seed=3)
    x = data.validation.batch(slice(None)).x
    with torch.no_grad(), evaluating(model, 3):
        bound = AnalyticELBO(particles=draws)
        expected = torch.cat([bound.bound(bound.weigh(model.generate, model.infer, part)) for part in x.split(1000)])
    assert fitted.history[0]["validation_elbo"] == pytest.approx(expected.mean().item(), rel=1e-5)
