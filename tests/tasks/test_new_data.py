"""Tasks on new data against exact values: codes, scores, anomalies, classes, traversals, and gaps by Gibbs sampling."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from torch import Tensor

import pyrolatent as pl
from pyrolatent import (
    PCA,
    VAE,
    ConditionalVAE,
    InputError,
    LinearGaussian,
    RestrictedBoltzmannMachine,
    SemiSupervisedVAE,
    impute,
)
from pyrolatent.tasks import anomalies, classify, encode, erased, export, means, score, traverse


def linear(posterior: str | None = None) -> LinearGaussian:
    torch.manual_seed(3)
    model = LinearGaussian((4,), latent_dim=2, noise=0.5, posterior=posterior).double().eval()
    model.likelihood.weight.data.normal_()
    return model.requires_grad_(False)


def covariance(model: LinearGaussian) -> Tensor:
    return model.likelihood.weight @ model.likelihood.weight.T + 0.25 * torch.eye(4, dtype=torch.float64)


def test_gibbs_sampling_draws_what_is_missing_though_the_encoder_is_wrong() -> None:
    model = linear("normal")
    x = torch.tensor([[0.7, -0.4, math.nan, math.nan], [math.nan, 1.5, -1.0, 0.3]], dtype=torch.float64)
    model.posterior.network.last.weight.data.mul_(0.3)
    model.posterior.network.last.bias.data.copy_(torch.tensor([0.2, -0.2, 0.5, 0.5]))
    torch.manual_seed(0)
    chains = 1000
    draws = impute(model, x, draws=chains, particles=2, method="gibbs", sweeps=200)
    for row, values in enumerate(x):
        gap = torch.isnan(values)
        joint, of_observed = covariance(model), values[~gap] - model.likelihood.bias[~gap]
        gain = joint[gap][:, ~gap] @ torch.linalg.inv(joint[~gap][:, ~gap])
        mean = model.likelihood.bias[gap] + gain @ of_observed
        variance = (joint[gap][:, gap] - gain @ joint[~gap][:, gap]).diagonal()
        found = draws[:, row, gap]
        assert (found.mean(0) - mean).abs().lt(4 * (variance / chains).sqrt()).all()
        assert (found.var(0) / variance - 1).abs().lt(4 * math.sqrt(2 / chains)).all()
        assert torch.equal(draws[:, row, ~gap], values[~gap].expand(chains, -1))


def test_means_of_what_is_missing_vary_less_than_its_draws() -> None:
    model = linear()
    x = torch.tensor([[0.7, -0.4, math.nan, math.nan]], dtype=torch.float64)
    drawn, of_z = (impute(model, x, draws=500, mean=mean)[:, 0, 2:] for mean in (False, True))
    assert (of_z.var(0) < drawn.var(0) - 0.1).all()  # by the variance of x given z, 0.25
    assert (of_z.mean(0) - drawn.mean(0)).abs().lt(4 * (drawn.var(0) / 500).sqrt() * math.sqrt(2)).all()


def test_options_of_gibbs_sampling_go_with_it() -> None:
    with pytest.raises(InputError, match="impute by resampling takes no such option; leave sweeps out"):
        impute(linear(), [[math.nan] * 4], sweeps=10)
    with pytest.raises(InputError, match="there is no method 'nuts'; valid: resampling, gibbs"):
        impute(linear(), [[math.nan] * 4], method="nuts")  # type: ignore[arg-type]


def test_codes_are_means_draws_or_numbers_of_the_posterior() -> None:
    model = linear()
    x = torch.randn(5, 4, dtype=torch.float64)
    exact = model.encode(x)["z"]
    torch.testing.assert_close(encode(model, x)["z"], exact.mean)
    draws = encode(model, x, what="draws", draws=4000)["z"]
    assert draws.shape == (4000, 5, 2)
    assert (draws.mean(0) - exact.mean).abs().lt(4.5 * (exact.variance / 4000).sqrt()).all()
    found = encode(model, x, what="parameters")
    assert [*found] == ["z.loc", "z.scale_tril"] or "z.loc" in found
    torch.testing.assert_close(found["z.loc"], exact.mean)
    diagonal = encode(VAE((4,), latent_dim=3), torch.zeros(2, 4), what="parameters")
    assert {name: tuple(value.shape) for name, value in diagonal.items()} == {"z.loc": (2, 3), "z.scale": (2, 3)}
    hidden = encode(RestrictedBoltzmannMachine((4,), hidden=3), torch.ones(2, 4))["h"]
    assert hidden.shape == (2, 3)
    with pytest.raises(InputError, match="there are no 'modes' of codes"):
        encode(model, x, what="modes")  # type: ignore[arg-type]


def test_a_flow_has_draws_and_no_numbers() -> None:
    model = VAE((4,), latent_dim=2, posterior="iaf")
    assert encode(model, torch.zeros(3, 4), what="draws", draws=2)["z"].shape == (2, 3, 2)
    with pytest.raises(InputError, match="which no numbers describe; give what draws"):
        encode(model, torch.zeros(3, 4), what="parameters")


def test_scores_are_the_evidence_of_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear()
    x = torch.randn(20, 4, dtype=torch.float64)
    exact = dist.MultivariateNormal(model.likelihood.bias, covariance(model)).log_prob(x)
    found = score(model, x)
    torch.testing.assert_close(found.log_p, exact)
    assert found.khat is None
    assert found.error.eq(0).all()
    gap = x.clone()
    gap[:, 3] = math.nan
    of_three = dist.MultivariateNormal(model.likelihood.bias[:3], covariance(model)[:3, :3]).log_prob(x[:, :3])
    torch.testing.assert_close(score(model, gap).log_p, of_three)
    approximate = linear("normal")
    monkeypatch.setattr(approximate, "log_evidence", lambda *_: None)
    exact = dist.MultivariateNormal(approximate.likelihood.bias, covariance(approximate)).log_prob(x)
    sampled = score(approximate, x, particles=20_000)
    assert sampled.khat is not None
    reliable = sampled.khat < 0.5
    assert reliable.any()
    assert (sampled.log_p - exact)[reliable].abs().lt(5 * sampled.error[reliable]).all()


def test_posteriors_are_refined_where_the_encoder_never_saw_gaps() -> None:
    """An encoder that is far off with zeros in gaps, which importance sampling alone does not mend."""
    torch.manual_seed(3)
    model = VAE((4,), latent_dim=1, likelihood={"normal": {"scale": 0.1}}, decoder={"mlp": {"hidden": []}}).double()
    x = model.decode(torch.randn(12, 1)).sample()
    pl.fit(model, pl.load_data(x.numpy(), validation=x.numpy(), test=x.numpy()), epochs=1, progress=False)
    model.posterior.network.last.bias.data.copy_(torch.tensor([3.0, -3.0]))
    x[:, 2:] = math.nan
    mean, scale = model.decode(torch.zeros(1, 1)).mean[0], 0.1
    slope = model.decode(torch.ones(1, 1)).mean[0] - mean
    joint = slope[:2, None] * slope[None, :2] + scale**2 * torch.eye(2)
    exact = dist.MultivariateNormal(mean[:2], joint).log_prob(x[:, :2])
    found = score(model, x, particles=2000)
    assert (found.log_p - exact).abs().max() < 0.2
    assert (score(model, x, particles=2000, refined=0).log_p - exact).abs().max() > 1
    drawn = impute(model, x, draws=100, refined=200, particles=300)[..., 3]
    gain = slope[3] * slope[:2] @ torch.linalg.inv(joint)
    expected = mean[3] + (x[:, :2] - mean[:2]) @ gain
    variance = slope[3] ** 2 + scale**2 - slope[3] * gain @ slope[:2]
    assert (drawn.mean(0) - expected).abs().lt(4.5 * (variance / 100).sqrt()).all()


def test_scores_of_an_rbm_sum_to_one() -> None:
    rbm = RestrictedBoltzmannMachine((4,), hidden=2).double()
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    found = score(rbm, every)
    assert found.log_p.logsumexp(0).item() == pytest.approx(0, abs=1e-6)


def test_what_has_no_density_or_support_has_no_scores() -> None:
    with pytest.raises(InputError, match="no density of x"):
        score(PCA((4,), latent_dim=1), torch.zeros(2, 4))
    with pytest.raises(InputError, match="8 observed values of x lie outside the support"):
        score(VAE((4,), latent_dim=1), torch.full((2, 4), 0.5))


def test_thresholds_have_their_rate_of_false_alarms() -> None:
    generator = torch.Generator().manual_seed(0)
    alarms, trials = [], 400
    for _ in range(trials):
        reference, new = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (99, 200))
        found = anomalies(new, reference, 0.1)
        alarms.append([found.by_density.double().mean(), found.by_typicality.double().mean()])
    rates = torch.tensor(alarms)
    error = rates.std(0) / math.sqrt(trials)
    assert (rates.mean(0) - 0.1).abs().lt(4 * error + torch.tensor([0.0, 0.003])).all()  # the centre is estimated
    with pytest.raises(InputError, match=r"a share of 0.01 needs at least 99 reference datapoints, but there are 98"):
        anomalies(torch.zeros(1), torch.zeros(98), 0.01)


def test_what_is_too_probable_is_an_anomaly_by_typicality_alone() -> None:
    reference = torch.linspace(-110, -90, 199, dtype=torch.float64)
    found = anomalies(torch.tensor([-100.0, -60.0, -140.0], dtype=torch.float64), reference, 0.05)
    assert found.by_density.tolist() == [False, False, True]
    assert found.by_typicality.tolist() == [False, True, True]


def test_classes_of_a_conditional_model_follow_bayes_rule() -> None:
    torch.manual_seed(0)
    model = ConditionalVAE(
        (3,), 2, latent_dim=1, likelihood={"normal": {"scale": 0.7}}, decoder={"mlp": {"hidden": []}}
    )
    x = torch.randn(6, 3)
    grid = torch.linspace(-6, 6, 2001).reshape(-1, 1)
    log_prior = dist.Normal(0.0, 1.0).log_prob(grid[:, 0]) + math.log(12 / 2000)
    exact = []
    for label in (0, 1):
        likelihood = model.decode(grid, [label] * len(grid))
        exact.append((likelihood.log_prob(x[:, None].expand(6, 2001, 3)) + log_prior).logsumexp(-1))
    expected = torch.stack(exact, -1).softmax(-1)
    torch.testing.assert_close(classify(model, x, particles=20_000).float(), expected, atol=0.03, rtol=0)


def test_classes_of_the_other_models_are_their_own() -> None:
    x = torch.randint(2, (5, 4)).float()
    model = SemiSupervisedVAE((4,), 3, latent_dim=2).eval()
    torch.testing.assert_close(classify(model, x), means(model, x)["y"])
    rbm = RestrictedBoltzmannMachine((4,), 3, hidden=2, labels=True)
    torch.testing.assert_close(classify(rbm, x), rbm.classify(x))
    with pytest.raises(InputError, match="VAE has no labels and so no classes; encode"):
        classify(VAE((4,), latent_dim=2), x)


def test_a_traversal_moves_one_dimension_at_a_time() -> None:
    model = linear()
    decoded, quantiles = traverse(model, 5)
    assert decoded.shape == (2, 5, 4)
    torch.testing.assert_close(quantiles[0], dist.Normal(0.0, 1.0).icdf((torch.arange(5).double() + 0.5) / 5))
    for dimension in (0, 1):
        expected = model.likelihood.bias + quantiles[dimension][:, None] * model.likelihood.weight[:, dimension]
        torch.testing.assert_close(decoded[dimension], expected)


REGIONS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "bottom": ("bottom", (4, 6), 12),
    "left": ("left", (3, 4, 6), 36),
    "a rectangle": ("1,2,2,3", (4, 6), 6),
    "four numbers": ((1, 2, 2, 3), (1, 4, 6), 6),
    "centre": ("centre", (4, 6), 6),
}


@pytest.mark.parametrize("name", REGIONS)
def test_regions_are_erased(name: str) -> None:
    region, shape, count = REGIONS[name]
    mask = erased(region, shape)
    assert mask.shape == shape
    assert int((~mask).sum()) == count


def test_a_region_is_read_from_an_image(tmp_path: Path) -> None:
    pixels = np.full((4, 6), 255, np.uint8)
    pixels[1, 2:4] = 0
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert torch.equal(erased(tmp_path / "mask.png", (1, 4, 6))[0], torch.from_numpy(pixels > 0))
    with pytest.raises(InputError, match="has 4 x 6 pixels, but the images 5 x 5"):
        erased(str(tmp_path / "mask.png"), (5, 5))
    with pytest.raises(InputError, match="cannot be read as an image"):
        erased(tmp_path / "none.png", (5, 5))


@pytest.mark.parametrize(
    ("region", "shape", "said"),
    [("botom", (4, 6), "did you mean 'bottom'"), ("1,2,9,9", (4, 6), "does not lie in images of 4 x 6"),
     ("bottom", (4,), "erased from images")],
)  # fmt: skip
def test_regions_that_are_none_are_refused(region: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        erased(region, shape)


EXPORTED: dict[str, Any] = {
    "vae": lambda: VAE((1, 4, 4), latent_dim=2, likelihood={"normal": {"scale": "learned"}}),
    "conditional": lambda: ConditionalVAE((3,), 4, latent_dim=2),
    "exact posterior": lambda: LinearGaussian((4,), latent_dim=2),
    "autoencoder": lambda: PCA((4,), latent_dim=2),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_parts_do_as_the_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EXPORTED[name]().eval()
    y = [torch.tensor([1, 0, 3])] if model.conditional else []
    z, x = torch.randn(3, 2), torch.randn(3, *model.event_shape)
    program = torch.export.load(export(model, "decoder", tmp_path / "decoder.pt2")).module()
    torch.testing.assert_close(program(z, *y), model.decode(z, *y).mean)
    if name == "exact posterior":
        with pytest.raises(InputError, match="has no encoder to export, since its posterior is no network"):
            export(model, "encoder", tmp_path / "encoder.pt2")
        return
    program = torch.export.load(export(model, "encoder", tmp_path / "encoder.pt2")).module()
    code = model.encode(x, *y)["z"]
    found = program(x, *y)
    if name == "autoencoder":
        torch.testing.assert_close(found, code.mean)
    else:
        torch.testing.assert_close(found, (code.mean, code.stddev))


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SemiSupervisedVAE is not of one latent vector z"):
        export(SemiSupervisedVAE((4,), 3, latent_dim=2), "decoder", tmp_path / "x.pt2")
    with pytest.raises(InputError, match=r"is written to a file that ends in \.pt2"):
        export(VAE((4,), latent_dim=2), "decoder", tmp_path / "x.onnx")
    with pytest.raises(InputError, match="there is no part 'prior' to export"):
        export(VAE((4,), latent_dim=2), "prior", tmp_path / "x.pt2")  # type: ignore[arg-type]


def test_any_covariance_is_scored_with_gaps_in_closed_form() -> None:
    torch.manual_seed(0)
    model = LinearGaussian((3,), latent_dim=1, noise="full").double()
    x = torch.tensor([[2.0, 1.0, math.nan]], dtype=torch.float64)
    exact = model.log_evidence(torch.tensor([[2.0, 1.0, 0.0]]).double(), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(score(model, x).log_p, exact.detach())
    with pytest.raises(InputError, match="does not factorise over its elements"):
        impute(model, x)


def test_chains_refuse_a_guide_with_auxiliary_sites() -> None:
    """Its density of z is an integral over them, which the acceptance would need."""

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(2)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(shift + pyro.param("loc", torch.zeros(())), 1.0))

    model = pl.from_pyro(program, guide)
    pl.fit(model, pl.load_data(torch.randn(40, 2).numpy()), epochs=1, progress=False, objective="elbo")
    with pytest.raises(InputError, match="scores only its own draws, so that Gibbs sampling cannot use it"):
        impute(model, [[0.5, math.nan]], draws=2, method="gibbs", sweeps=4)
