"""The same calls on a CUDA device; run with `pytest -m gpu`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pyrolatent import LinearGaussian, Run, check, evaluate, fit, impute, load_data, pictures, sample
from pyrolatent.declaration import build
from pyrolatent.inference.evidence.energies import Annealing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]

MODELS: list[tuple[Any, Any]] = [
    ({"vae": {"latent_dim": 4}}, "elbo"),
    ({"vae": {"latent_dim": 4, "prior": "vamp", "posterior": "coupling"}}, {"iwae": {"particles": 5}}),
    ({"vae": {"latent_dim": 4, "prior": "mixture", "encoder": "conv", "decoder": "residual_conv"}}, "dreg"),
    ({"vae": {"latent_dim": 4, "posterior": "iaf", "prior": "spline"}}, "analytic_elbo"),
    ({"conditional_vae": {"latent_dim": 4, "prior": "label_normal"}}, "elbo"),
    ({"semi_supervised_vae": {"latent_dim": 4}}, "elbo"),
    ({"hierarchical_vae": {"latent_dims": [6, 3]}}, "stl"),
    ({"discrete_vae": {"latent_dims": [6], "estimator": "enumerate"}}, "elbo"),
    ({"discrete_vae": {"latent_dims": [6, 3]}}, "vimco"),
]


@pytest.mark.parametrize(("declaration", "objective"), MODELS)
def test_a_model_trains_evaluates_and_comes_back(declaration: Any, objective: Any, tmp_path: Path) -> None:
    data = load_data("digits", labelled=200)
    model = build("model", declaration, event_shape=data.event_shape, label_dim=data.label_dim)
    if "conditional_vae" in declaration:
        data = load_data("digits")
    fitted = fit(model, data, objective=objective, epochs=3, device="cuda", progress=False)
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]
    on_device = evaluate(model, data, particles=200)
    Run.save(tmp_path / "run", fitted)
    loaded = Run.load(tmp_path / "run").model
    assert next(loaded.parameters()).device.type == "cpu"
    # The same estimate from other draws, to four of its Monte Carlo errors each.
    on_cpu = evaluate(loaded, data, particles=200)
    assert on_device.log_evidence_mcse is not None
    assert on_cpu.log_evidence_mcse is not None
    assert abs(on_device.log_evidence - on_cpu.log_evidence) < 4 * (  # type: ignore[operator]
        on_device.log_evidence_mcse + on_cpu.log_evidence_mcse
    )
    assert pictures.plot(model, data, fitted.history)


def test_what_is_missing_is_filled_on_the_device() -> None:
    data = load_data("digits")
    model = build("model", {"vae": {"latent_dim": 2}}, event_shape=data.event_shape).cuda()
    x = data.test.to("cuda").batch(slice(0, 5)).x
    mask = torch.rand_like(x) < 0.5
    assert torch.equal(impute(model, x, mask, draws=2)[0][mask], x[mask])


@pytest.mark.parametrize(("declaration", "objective"), [
    ({"rbm": {"hidden": 8}}, {"pcd": {"chains": 50}}),
    ({"rbm": {"hidden": 8, "labels": True}}, {"tempered_pcd": {"chains": 20}}),
    ({"markov_network": {"cliques": [[i, i + 1] for i in range(1, 64)]}}, "exact_likelihood"),
])  # fmt: skip
def test_an_energy_trains_evaluates_and_comes_back(declaration: Any, objective: Any, tmp_path: Path) -> None:
    """log Z is exact on either device, so that log p(x) must agree to float32."""
    data = load_data("digits", binarize="threshold")
    model = build("model", declaration, event_shape=data.event_shape, label_dim=data.label_dim)
    fitted = fit(model, data, objective=objective, epochs=3, device="cuda", progress=False)
    short = Annealing(temperatures=50, always=True)
    on_device = evaluate(model, data, annealing=short)
    Run.save(tmp_path / "run", fitted)
    on_cpu = evaluate(Run.load(tmp_path / "run").model, data, annealing=short)
    assert on_device.log_evidence == pytest.approx(on_cpu.log_evidence, abs=1e-3)
    assert abs(on_device.ais[0] - on_device.log_z) < 6 * on_device.ais[1]
    assert pictures.plot(model, data, fitted.history)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("objective", ["elbo", {"dreg": {"particles": 5}}])
def test_a_compiled_training_learns_what_an_uncompiled_one_does(objective: Any, precision: Any) -> None:
    """CUDA graphs draw other noise, so that the losses agree to the noise of an epoch, a few per cent."""
    data = load_data("digits")
    losses = []
    for how in ("never", "always"):
        torch.manual_seed(0)
        model = build("model", {"vae": {"latent_dim": 4}}, event_shape=data.event_shape)
        history = fit(
            model, data, objective=objective, epochs=10, device="cuda", compile=how, precision=precision, progress=False
        ).history
        losses.append(history[-1]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    found = [evaluate(model, data, particles=200, compile=how).log_evidence for how in ("never", "always")]
    assert found[0] == pytest.approx(found[1], abs=0.1)


def test_checks_on_the_device() -> None:
    """The exact posterior passes there too, and annealing on the device agrees with the closed form."""
    model = LinearGaussian((6,), latent_dim=2, noise=0.7).cuda()
    data = load_data(sample(model, 600).cpu().numpy(), test=0.4)
    found = check(model, data, size=200, draws=200, simulations=200, annealed=10)
    verdicts = {verdict.check: verdict.passed for verdict in found.verdicts}
    assert all(verdicts[name] for name in ("k-hat", "inference gap", "annealed evidence", "evidence bracket"))
    assert found.to_arviz(size=3)["posterior"]["z"].shape[-1] == 2


def test_local_posteriors_on_the_device() -> None:
    data = load_data("digits")
    model = build("model", {"vae": {"latent_dim": 4}}, event_shape=data.event_shape, label_dim=0)
    fitted = fit(model, data, objective={"local": {"start": "prior"}}, epochs=2, device="cuda", progress=False)
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]
