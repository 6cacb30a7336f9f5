"""Models in double precision do what models in single precision do, up to its rounding; half precision is refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import pyrolatent as pl
from pyrolatent.checks.active_units import ActiveUnits
from pyrolatent.checks.importance import KHat
from pyrolatent.checks.predictive import PriorPredictive
from pyrolatent.inference.evidence.energies import ais
from pyrolatent.pictures import plot

EVENT = (6,)
NETWORK = {"mlp": {"hidden": [8]}}
PARTS = {"latent_dim": 2, "encoder": NETWORK, "decoder": NETWORK}
CHAIN = [[i, i + 1] for i in range(1, 6)]
TOLERANCE = 256 * torch.finfo(torch.float32).eps
"""Of what float32 rounds in two epochs, 256 operations that all round by as much as they can, of numbers near 1."""


class SameDraws(TorchDispatchMode):
    """Random numbers are drawn in float32 and then converted, so that they are the same in every type."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        wide = kwargs.get("dtype", torch.get_default_dtype()) == torch.float64 and func._schema.name in FACTORIES

        def narrow(value: Any) -> Any:
            nonlocal wide
            double = isinstance(value, Tensor) and value.dtype == torch.float64
            wide |= double
            return value.float() if double else value

        def widened(value: Any) -> Any:
            return value.double() if wide and isinstance(value, Tensor) and value.is_floating_point() else value

        narrowed = tree_map(narrow, args)
        drawn = func(*narrowed, **kwargs | ({"dtype": torch.float32} if func._schema.name in FACTORIES else {}))
        return args[0].copy_(drawn) if func._schema.name.endswith("_") else tree_map(widened, drawn)


FACTORIES = ("aten::rand", "aten::randn")


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Within this context new tensors are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Own(pl.LatentVariableModel):
    """A generative function and a guide that are written out: z ~ N(0, I), x ~ N(W z, 1), q(z | x) = N(V x, s)."""

    def __init__(self) -> None:
        super().__init__(EVENT, nn.Identity(), nn.Identity(), nn.Identity())
        self.w, self.v = nn.Linear(2, 6), nn.Linear(6, 2)
        self.log_s = nn.Parameter(torch.zeros(2))

    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.w(z), 1.0).to_event(1), obs=x)

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.v(x), self.log_s.exp()).to_event(1))


def of_data(kind: str) -> pl.Data:
    random = np.random.default_rng(0)
    classes = random.integers(2, size=60)
    likely = np.array([[0.9, 0.9, 0.9, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.9, 0.9, 0.9]])[classes]
    binary, real = (random.random((60, 6)) < likely).astype(np.uint8), random.normal(likely, size=(60, 6))
    match kind:
        case "binary":
            return pl.load_data(binary)
        case "labelled":
            return pl.load_data(binary, labels=classes, labelled=12)
        case "classes":
            return pl.load_data(binary, labels=classes)
        case "vectors":
            return pl.load_data(binary, labels=random.normal(size=(60, 2)))
        case "gaps":
            return pl.load_data(real, mask=random.random((60, 6)) < 0.8)
        case "grey":
            return pl.load_data(random.integers(256, size=(60, 1, 2, 3)).astype(np.uint8), dequantize="uniform")
        case _:
            return pl.load_data(real)


KINDS: dict[str, tuple[Callable[[], Any], str, Any]] = {
    "vae": (lambda: pl.VAE(EVENT, **PARTS), "binary", "analytic_elbo"),
    "vae with gaps": (lambda: pl.VAE(EVENT, likelihood="normal", start_at_data=True, **PARTS), "gaps", "elbo"),
    "vae of images": (lambda: pl.VAE((1, 2, 3), likelihood="normal", **PARTS), "grey", "elbo"),
    "conditional": (lambda: pl.ConditionalVAE(EVENT, 2, prior="label_normal", **PARTS), "classes", "elbo"),
    "conditional on vectors": (lambda: pl.ConditionalVAE(EVENT, 2, **PARTS), "vectors", "elbo"),
    "semi-supervised": (lambda: pl.SemiSupervisedVAE(EVENT, 2, classifier=NETWORK, **PARTS), "labelled", "elbo"),
    "hierarchical": (
        lambda: pl.HierarchicalVAE(
            EVENT, latent_dims=(3, 2), encoder=NETWORK, decoder=NETWORK, between=NETWORK, width=8
        ),
        "binary",
        "elbo",
    ),
    "discrete": (
        lambda: pl.DiscreteVAE(EVENT, latent_dims=(3, 2), encoder=NETWORK, decoder=NETWORK),
        "binary",
        {"vimco": {"particles": 3}},
    ),
    "generative network": (
        lambda: pl.GenerativeNetwork(EVENT, latent_dim=2, decoder=NETWORK),
        "binary",
        {"iwae": {"particles": 5}},
    ),
    "linear": (lambda: pl.LinearGaussian(EVENT, latent_dim=2), "real", "em"),
    "linear with gaps": (lambda: pl.LinearGaussian(EVENT, latent_dim=2), "gaps", "em"),
    "logistic": (lambda: pl.LogisticBernoulli(EVENT, latent_dim=1), "binary", "elbo"),
    "pca": (lambda: pl.PCA(EVENT, latent_dim=2), "real", "closed_form"),
    "autoencoder": (lambda: pl.Autoencoder(EVENT, **PARTS), "binary", "squared_error"),
    "own": (Own, "real", "elbo"),
    "machine": (lambda: pl.RestrictedBoltzmannMachine(EVENT, hidden=3), "binary", "pcd"),
    "machine of real x": (lambda: pl.RestrictedBoltzmannMachine(EVENT, hidden=3, visible="normal"), "real", "cd"),
    "machine with labels": (lambda: pl.RestrictedBoltzmannMachine(EVENT, 2, hidden=3), "classes", "cd"),
    "network": (lambda: pl.MarkovNetwork(EVENT, cliques=CHAIN), "binary", "exact_likelihood"),
    "network by chains": (lambda: pl.MarkovNetwork(EVENT, cliques=CHAIN), "binary", "pcd"),
    "energy": (lambda: pl.EnergyModel(EVENT, support="binary"), "binary", "cd"),
    "energy of real x": (lambda: pl.EnergyModel(EVENT, support="real"), "real", "sliced_score_matching"),
}


def trained(kind: str, double: str = "", epochs: int = 2) -> pl.Fit:
    """A fit of this kind in float32, of a model that was converted to float64, or of one that was built in it."""
    build, data, objective = KINDS[kind]
    with default_type(torch.float64 if double == "built" else torch.float32):
        torch.manual_seed(0)
        model = build().double() if double == "converted" else build()
        settings: dict[str, Any] = {} if objective == "closed_form" else {"epochs": epochs}
        if objective not in ("closed_form", "em"):
            settings["optimizer"] = {"SGD": {"lr": 0.01}}  # Adam makes much of what was rounded off small gradients
        return pl.fit(model, of_data(data), progress=False, objective=objective, **settings)


def score(fit: pl.Fit) -> Tensor:
    """What the last row of its history says, as float32."""
    row = {name: value for name, value in fit.history[-1].items() if name != "seconds" and value is not None}
    return torch.tensor([*row.values()], dtype=torch.float32)


def answers(fit: pl.Fit) -> dict[str, Tensor]:
    """What is asked of a trained model of any kind."""
    model, data = fit.model, fit.data
    torch.manual_seed(1)
    x, y, mask = data.train.batch(slice(0, 8))
    found: dict[str, Any] = {}
    if isinstance(model, pl.UnnormalisedDensity):
        kernel = None if model.has_conditionals else {"langevin": {"step": 1.0}}
        if model.tractable:
            found["evidence"] = pl.evaluate(model, data).each["log_evidence"]
            found["sample"] = pl.sample(model, 8)
        elif model.has_conditionals:
            found["annealed"] = ais(model, chains=10, temperatures=10).log_weights
            found["sample"] = pl.sample(model, 8, sweeps=3)
        found["free energy"] = model.free_energy(x)
        found["from data"] = pl.watch(model, 8, [0, 1], start=x, kernel=kernel)
        found["from the base"] = pl.watch(model, 8, [0, 1], kernel=kernel)
        return {name: value.detach() for name, value in found.items()}
    given = {"y": y} if model.conditional else {}
    found["reconstructed"] = pl.reconstruct(model, x, mask=mask, **given)
    found["interpolated"] = pl.interpolate(model, x[:2], steps=3, **{name: value[:2] for name, value in given.items()})
    if isinstance(model, pl.LatentVariableModel):
        found["evidence"] = pl.evaluate(model, data, particles=20).each["log_evidence"]
        found["sample"] = pl.sample(model, 8, **given)
        found["imputed"] = pl.impute(model, x, torch.arange(6).reshape(model.event_shape).expand_as(x) > 1, **given)
    return {name: value.detach() for name, value in found.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_double_is_single_up_to_rounding(kind: str) -> None:
    with SameDraws():
        fits = {how: trained(kind, how) for how in ("", "converted", "built")}
        single, double = answers(fits[""]), answers(fits["converted"])
    for how in ("converted", "built"):
        assert {parameter.dtype for parameter in fits[how].model.parameters()} == {torch.float64}
        torch.testing.assert_close(score(fits[how]), score(fits[""]), rtol=TOLERANCE, atol=TOLERANCE)
    assert {name: value.dtype for name, value in double.items()} == dict.fromkeys(single, torch.float64)
    for name, value in single.items():
        torch.testing.assert_close(double[name].float(), value.float(), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(kind: str, dtype: torch.dtype) -> None:
    build, data, objective = KINDS[kind]
    model, data = build().to(dtype), of_data(data)
    x, y, _ = data.train.batch(slice(0, 2))
    calls = [lambda: pl.fit(model, data, objective=objective, progress=False)]
    if isinstance(model, pl.UnnormalisedDensity):
        calls += [lambda: pl.sample(model, 2), lambda: pl.watch(model, 2, [0]), lambda: model.free_energy(x)]
    else:
        calls += [lambda: pl.reconstruct(model, x, y if model.conditional else None)]
    if isinstance(model, pl.UnnormalisedDensity | pl.LatentVariableModel):
        calls += [lambda: pl.evaluate(model, data), lambda: pl.sample(model, 2)]
    for call in calls:
        with pytest.raises(pl.InputError, match=rf"is in {str(dtype).removeprefix('torch.')}.*model.float\(\)"):
            call()


def test_a_device_without_double_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    build, data, objective = KINDS["vae"]
    with pytest.raises(pl.InputError, match=r"device: mps is for models in float32.*declare device: cpu"):
        pl.fit(build().double(), of_data(data), objective=objective, progress=False)


def test_precision_of_products_is_of_single_precision() -> None:
    build, data, objective = KINDS["vae"]
    with pytest.raises(pl.InputError, match="precision: bf16 is for models in float32, but VAE is in float64"):
        pl.fit(build().double(), of_data(data), objective=objective, precision="bf16", progress=False)


@pytest.mark.parametrize("part", ["posterior", "buffer"])
def test_a_model_of_two_types_is_refused_by_name(part: str) -> None:
    model, data = KINDS["vae"][0](), of_data("binary")
    if part == "buffer":
        model.register_buffer("shift", torch.zeros(6, dtype=torch.float64))
    else:
        model.posterior.double()
    for call in (
        lambda: pl.fit(model, data, progress=False),
        lambda: pl.evaluate(model, data),
        lambda: pl.sample(model, 2),
    ):
        with pytest.raises(pl.InputError, match=r"VAE holds .* in float32 and .* in float64; call model.float\(\)"):
            call()


@pytest.mark.parametrize("kind", ["vae", "linear", "machine", "network by chains"])
def test_a_run_keeps_the_type(kind: str, tmp_path: Path) -> None:
    for double, other in (("", torch.float64), ("converted", torch.float32)):
        fit = trained(kind, double, epochs=1)
        run = pl.Run.save(tmp_path / f"run{double}", fit)
        with default_type(other):
            loaded = pl.Run.load(run.path).model
        for name, value in fit.model.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
        assert [value.dtype for value in loaded.buffers()] == [value.dtype for value in fit.model.buffers()]


@pytest.mark.parametrize("kind", ["vae", "linear", "machine", "network by chains"])
def test_a_state_of_another_type_is_converted(kind: str) -> None:
    double, single = trained(kind, "converted", epochs=1), KINDS[kind][0]()
    single.load_state_dict(double.model.state_dict())
    assert {parameter.dtype for parameter in single.parameters()} == {torch.float32}
    x = double.data.train.batch(slice(0, 8)).x
    found, expected = (
        model.free_energy(x) if isinstance(model, pl.UnnormalisedDensity) else pl.reconstruct(model, x)
        for model in (single, double.model)
    )
    torch.testing.assert_close(found, expected.float(), rtol=TOLERANCE, atol=TOLERANCE)


def test_double_is_not_single_in_disguise() -> None:
    """log p(x) of x = W z + b + e, that of N(b, W W' + s^2 I), and F(v) of a machine, both in float64 of NumPy."""
    fit = trained("linear", "converted")
    x = fit.data.to("cpu", torch.float64).train.batch(slice(None)).x
    weight, bias, scale = (value.detach().numpy() for value in fit.model.likelihood.parameters_flat())
    exact = stats.multivariate_normal(bias, weight @ weight.T + np.diag(scale**2 + 0 * bias)).logpdf(x.numpy())
    np.testing.assert_allclose(fit.model.log_evidence(x).detach().numpy(), exact, rtol=1e-12)
    assert fit.history[-1]["train_loss"] == pytest.approx(-exact.mean(), rel=1e-12)

    fit = trained("machine", "converted")
    v = fit.data.train.batch(slice(None)).x.double().numpy()
    a, b, w = (getattr(fit.model, name).detach().numpy() for name in ("visible_bias", "hidden_bias", "weight"))
    np.testing.assert_allclose(
        fit.model.free_energy(v).detach().numpy(), -v @ a - np.logaddexp(0, v @ w + b).sum(-1), rtol=1e-12, atol=1e-12
    )


def test_single_precision_copies_nothing() -> None:
    data = of_data("real")
    split = data.to("cpu", torch.float32).train
    assert split.x is data.train.x
    assert split.batch(slice(0, 8)).x.data_ptr() == data.train.x.data_ptr()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["vae", "conditional", "own"])
def test_checks_take_double_precision(kind: str) -> None:
    with SameDraws():
        single, double = (trained(kind, how) for how in ("", "converted"))
        for check in (ActiveUnits(draws=10), KHat(draws=100), PriorPredictive()):
            one, other = (check(fit.model, fit.data, split="train", size=20) for fit in (single, double))
            assert other.numbers == pytest.approx(one.numbers, rel=1e-3, abs=1e-3), check


@pytest.mark.usefixtures("few_cells")
@pytest.mark.filterwarnings("ignore")
def test_figures_and_arviz_take_double_precision() -> None:
    fit = trained("machine", "converted", epochs=1)
    assert plot(fit.model, fit.data, fit.history)
    assert pl.to_arviz(trained("vae", "converted", epochs=1).model, of_data("binary"), draws=100)
