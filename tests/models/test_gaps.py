"""Encoders of models that are trained with gaps are told which entries are missing; others are as they were."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyrolatent import VAE, Data, DiscreteVAE, InputError, Run, evaluate, fit, impute, load_data
from pyrolatent.declaration import build
from pyrolatent.models.components.networks import Network

MODELS: dict[str, dict[str, Any]] = {
    "vae": {"latent_dim": 2},
    "vae of no hidden layer": {"latent_dim": 2, "encoder": {"mlp": {"hidden": ()}}},
    "conditional_vae": {"latent_dim": 2},
    "semi_supervised_vae": {"latent_dim": 2},
    "hierarchical_vae": {"latent_dims": (3, 2), "width": 8},
    "hierarchical_vae bottom up": {"latent_dims": (3, 2), "inference": "bottom_up"},
    "discrete_vae": {"latent_dims": (3,), "estimator": "enumerate"},
    "linear_gaussian": {"latent_dim": 2, "posterior": "normal"},
    "logistic_bernoulli": {"latent_dim": 1},
    "autoencoder": {"latent_dim": 2},
}


def table(gaps: bool, rows: int = 60) -> Data:
    generator = np.random.default_rng(0)
    x = (generator.random((rows, 6)) < 0.5).astype(float)
    if gaps:
        x[generator.random(x.shape) < 0.3] = np.nan
    return load_data(x, labels=np.arange(rows) % 3, mask="nan" if gaps else None)


def model_of(name: str, **options: Any) -> Any:
    declared = {name.split()[0]: {**MODELS[name], **options}}
    return build("model", declared, event_shape=(6,), label_dim=3)


def trained(model: Any, data: Data, **options: Any) -> Any:
    objective = "squared_error" if type(model).__name__ == "Autoencoder" else "elbo"
    fit(model, data, objective=objective, epochs=2, progress=False, **options)
    return model


def mask_weights(model: nn.Module) -> list[Tensor]:
    return [value for name, value in model.named_parameters() if "missing" in name]


@pytest.mark.parametrize("name", MODELS)
def test_gaps_in_training_give_the_encoder_the_mask(name: str) -> None:
    """As an input that starts without effect and is trained; what the encoder gives then depends on the mask."""
    model = model_of(name)
    x, y, mask = table(True).train.batch(slice(0, 20))
    y = y if model.conditional else None

    def codes(mask: Tensor) -> Tensor:
        torch.manual_seed(0)
        return torch.cat([q.mean.flatten(1) for q in model.encode(torch.zeros_like(x), y, mask).values()], 1)

    before = codes(mask)
    model.prepare(x, mask)
    assert mask_weights(model)
    torch.testing.assert_close(codes(mask), before, rtol=0, atol=0)
    trained(model, table(True))
    assert all(weight.abs().max() > 0 for weight in mask_weights(model))
    model.eval()
    assert (codes(mask) - codes(torch.ones_like(mask))).abs().max() > 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_without_gaps_nothing_is_added(name: str) -> None:
    """Unless it is declared; and with `never` gaps add nothing either."""
    assert not mask_weights(trained(model_of(name), table(False)))
    assert mask_weights(trained(model_of(name, mask_input="always"), table(False)))
    assert not mask_weights(trained(model_of(name, mask_input="never"), table(True)))


@pytest.mark.parametrize("network", ["conv", "residual_conv"])
def test_convolutions_see_the_mask_as_an_image(network: str) -> None:
    built: Any = build("network", network, input_shape=(2, 8, 8), output_shape=(5,), label_dim=3)
    assert isinstance(built, Network)
    built.take_mask()
    x, y, mask = torch.randn(4, 2, 8, 8), torch.eye(3)[[0, 1, 2, 0]], torch.rand(4, 2, 8, 8) < 0.5
    torch.testing.assert_close(built(x, y, mask), built(x, y))
    nn.init.normal_(built.missing.weight)
    assert (built(x, y, mask) - built(x, y)).abs().max() > 1e-3
    torch.testing.assert_close(built(x, y, torch.ones_like(mask)), built(x, y))


def test_a_run_keeps_the_mask_input(tmp_path: Any) -> None:
    """Bit for bit, and a run that was trained without one loads as it was."""
    data = table(True)
    for path, options in (("with", {}), ("without", {"mask_input": "never"})):
        model = VAE((6,), latent_dim=2, **options)
        run = Run.save(tmp_path / path, fit(model, data, epochs=2, progress=False))
        loaded = Run.load(run.path).model
        for (name, one), (other_name, other) in zip(
            model.state_dict().items(), loaded.state_dict().items(), strict=True
        ):
            assert name == other_name
            assert torch.equal(one, other)


def test_an_encoder_that_takes_no_mask_is_refused_where_one_is_demanded() -> None:
    encoder = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(InputError, match="mask_input was always, but the encoder Sequential takes no mask"):
        trained(VAE((6,), latent_dim=2, encoder=encoder, mask_input="always"), table(True))
    with pytest.warns(UserWarning, match="the encoder Sequential does not receive the mask"):
        trained(VAE((6,), latent_dim=2, encoder=encoder), table(True))


@pytest.mark.slow
def test_nothing_observed_gives_the_prior() -> None:
    """Half of the rows of yes/no answers are unanswered: log p(nothing) = 0, and the bound can reach it.

    Eight observed "no" stand for another posterior though the encoder sees the same zeros.
    """
    generator = np.random.default_rng(0)
    group = generator.random((3000, 1)) < 0.5
    x = (np.where(group, 0.97, 0.03) > generator.random((3000, 8))).astype(float)
    x[generator.random(3000) < 0.5] = np.nan
    data = load_data(x, mask="nan")
    torch.manual_seed(0)
    model = VAE(data.event_shape, latent_dim=1)
    fit(model, data, epochs=150, progress=False, optimizer={"Adam": {"lr": 3e-3}})
    zero = torch.zeros(1, 8)
    nothing = model.encode(zero, None, torch.zeros(1, 8, dtype=torch.bool))["z"]
    all_no = model.encode(zero, None, torch.ones(1, 8, dtype=torch.bool))["z"]
    assert nothing.mean.abs().item() < 0.2
    assert 0.85 < nothing.stddev.item() < 1.15
    assert all_no.stddev.item() < 0.7
    found = evaluate(model, data, particles=500)
    unanswered = ~data.test.mask.any(1)
    assert found.each["elbo"][unanswered].abs().max() < 0.05


def test_what_is_missing_is_drawn_where_states_are_summed_out() -> None:
    """p(x_missing | x_observed) by enumeration of the eight states, to five standard errors of 1,000 draws.

    The 0.01 is for what resampling from 200 leaves. What is observed matters: without it one is off by a third.
    """
    torch.manual_seed(0)
    small: Any = {"encoder": {"mlp": {"hidden": [8]}}, "decoder": {"mlp": {"hidden": [8]}}}
    model = DiscreteVAE((6,), latent_dims=(3,), estimator="enumerate", **small).double()
    with torch.no_grad():
        for parameter in model.likelihood.parameters():
            parameter.mul_(15)
        states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
        probability = model.decode({"z1": states}).base_dist.probs
        x = torch.tensor([[1.0, 0, 1, 0, 0, 0], [0.0, 0, 1, 1, 0, 0]], dtype=torch.float64)
        mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
        seen = torch.where(x[:, None, :4] == 1, probability[:, :4], 1 - probability[:, :4]).prod(-1)
        exact = (seen / seen.sum(1, keepdim=True)) @ probability[:, 4:]
        found = impute(model, x, mask, draws=1000, particles=200).mean(0)[:, 4:]
    assert ((found - exact).abs() < 5 * (exact * (1 - exact) / 1000).sqrt() + 0.01).all()
    assert (probability[:, 4:].mean(0) - exact).abs().max() > 0.3
