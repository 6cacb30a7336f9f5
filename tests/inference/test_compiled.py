"""Compiled steps: the same numbers as the uncompiled ones on the same noise, for whatever can be captured."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

from pyrolatent import VAE, Data, evaluate, fit, load_data
from pyrolatent.declaration import build
from pyrolatent.inference.compiled import CaptureError, compiled
from pyrolatent.inference.evidence.importance import compiled_chunk, draws_at_once, score
from pyrolatent.inference.objectives.contrastive import EnergyObjective
from pyrolatent.inference.weights import training_arguments

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="this machine has no C++ compiler")
SMALL = {"mlp": {"hidden": [8]}}
FLAT = {"encoder": SMALL, "decoder": SMALL}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Nothing that one test compiled is left for the next."""
    with pyro.validation_enabled(False):
        yield
    torch.compiler.reset()


@pytest.fixture
def uncompiled_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded graph is run as it is, which takes no compiler: what is captured is what is tested."""
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)


CAPTURED: list[Any] = [
    ({"vae": {"latent_dim": 3, **FLAT}}, "elbo"),
    ({"conditional_vae": {"latent_dim": 3, **FLAT}}, {"analytic_elbo": {"free_bits": 1.0}}),
    ({"vae": {"latent_dim": 3, "prior": {"vamp": {"components": 4}}, **FLAT}}, {"iwae": {"particles": 5}}),
    ({"vae": {"latent_dim": 3, "posterior": "gamma", "prior": "gamma", **FLAT}}, {"stl": {"particles": 2}}),
    ({"vae": {"latent_dim": 3, **FLAT}}, {"dreg": {"particles": 5}}),
    pytest.param({"vae": {"latent_dim": 3, **FLAT}}, {"combination_iwae": {"particles": 5}}, marks=pytest.mark.slow),
    pytest.param(
        {"vae": {"latent_dim": 3, **FLAT}}, {"multiply_iwae": {"groups": 2, "particles": 3}}, marks=pytest.mark.slow
    ),
    (
        {"vae": {"latent_dim": 3, "encoder": {"mlp": {"hidden": [8], "norm": "batch"}}, "decoder": SMALL}},
        {"partially_iwae": {"groups": 2, "particles": 3}},
    ),
    (
        {"vae": {"latent_dim": 3, "encoder": {"mlp": {"hidden": [8], "dropout": 0.3}}, "decoder": SMALL}},
        {"renyi": {"particles": 5}},
    ),
    ({"vae": {"latent_dim": 3, "posterior": "iaf", "prior": "mixture", **FLAT}}, "elbo"),
    pytest.param({"vae": {"latent_dim": 3, "posterior": "coupling", **FLAT}}, "dreg", marks=pytest.mark.slow),
    pytest.param(
        {"vae": {"latent_dim": 3, "posterior": "log_normal", "prior": "gamma", **FLAT}}, "elbo", marks=pytest.mark.slow
    ),
    ({"vae": {"latent_dim": 3, "posterior": "relaxed_bernoulli", "prior": "relaxed_bernoulli", **FLAT}}, "dreg"),
    ({"semi_supervised_vae": {"latent_dim": 3, "classifier": SMALL, **FLAT}}, "elbo"),
    ({"hierarchical_vae": {"latent_dims": (3, 2), **FLAT}}, "dreg"),
    ({"discrete_vae": {"latent_dims": (3, 2), **FLAT}}, {"vimco": {"particles": 4}}),
    ({"discrete_vae": {"latent_dims": (3, 2), **FLAT}}, {"rws": {"particles": 4}}),
    ({"discrete_vae": {"latent_dims": (3,), "estimator": "enumerate", **FLAT}}, "elbo"),
    ({"autoencoder": {"latent_dim": 3, **FLAT}}, "squared_error"),
]


ENERGIES: list[tuple[dict[str, Any], Any]] = [
    ({"rbm": {"hidden": 6}}, {"cd": {"steps": 2, "weight_decay": 0.1, "sparsity_target": 0.1}}),
    ({"rbm": {"hidden": 6, "centred": False}}, {"pcd": {"chains": 7, "restarts": 0.1}}),
    ({"rbm": {"hidden": 6}}, {"tempered_pcd": {"chains": 4, "levels": 3}}),
    ({"rbm": {"hidden": 6}}, "exact_likelihood"),
    ({"rbm": {"hidden": 6, "visible": {"categorical": {"levels": 2}}}}, {"pcd": {"chains": 7}}),
    ({"rbm": {"hidden": 6, "visible": "normal"}}, {"pcd": {"chains": 7}}),
    ({"energy": {}}, {"pcd": {"chains": 7, "kernel": {"hmc": {"leapfrogs": 3}}}}),
    ({"energy": {}}, {"cd": {"kernel": "langevin"}}),
    ({"energy": {}}, "sliced_score_matching"),
    ({"energy": {}}, {"denoising_score_matching": {"noise": 0.3}}),
]


def gradient_of(model: nn.Module, objective: Any, data: Data) -> Callable[..., Any]:
    """What `fit` compiles: the bound and the gradient of each parameter."""

    def gradient(index: Tensor, factor: Tensor) -> tuple[Any, ...]:
        model.zero_grad()
        inputs = training_arguments(model, data.train.batch(index))
        bound = objective.accumulate(model, inputs, factor)
        return bound, *(parameter.grad for parameter in model.parameters())

    return gradient


@pytest.mark.usefixtures("uncompiled_graphs")
@pytest.mark.parametrize(("declaration", "objective"), CAPTURED + ENERGIES)
def test_the_record_of_a_step_is_the_step(declaration: Any, objective: Any) -> None:
    """Bit for bit, at new datapoints, factor of the KL and noise; buffers and the random state stay as they were."""
    data = load_data("digits", binarize="dynamic")
    torch.manual_seed(0)
    model = build("model", declaration, event_shape=data.event_shape, label_dim=data.label_dim).train()
    made = build("objective", objective)
    if isinstance(made, EnergyObjective):
        made.prepare(model)
    gradient = gradient_of(model, made, data)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    program = compiled(gradient, (torch.arange(10), torch.tensor(0.5)), model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    def at(function: Callable[..., Any]) -> tuple[list[Tensor | None], list[Tensor]]:
        torch.manual_seed(7)
        model.load_state_dict(state)
        found = function(torch.arange(50, 60), torch.tensor(0.25))
        return [None if value is None else value.detach().clone() for value in found], [
            buffer.clone() for buffer in model.buffers()
        ]

    (expected, after), (found, after_too) = at(gradient), at(program)
    assert [value is None for value in found] == [value is None for value in expected]
    for one, other in zip(expected, found, strict=True):
        assert one is None or torch.equal(one, other)  # type: ignore[arg-type]
    assert all(map(torch.equal, after, after_too))


@needs_compiler
def test_a_compiled_training_is_the_uncompiled_one(vae: Callable[..., VAE], binary_data: Data) -> None:
    """To rounding after 36 steps on the same noise, with a warm-up, clipping, a scheduler, and a smaller last batch."""
    settings = {
        "objective": {"dreg": {"particles": 3}}, "epochs": 12, "batch_size": 16, "clip_norm": 2.0,
        "kl_warmup": {"cyclical": {"epochs": 6}}, "scheduler": {"StepLR": {"step_size": 4}},
        "optimizer": {"Adam": {"lr": 0.01}},
    }  # fmt: skip
    found = []
    for how in ("never", "always"):
        model = vae()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            history = fit(model, binary_data, compile=how, progress=False, **settings).history
        found.append((history, model))
    (plain, first), (quick, second) = found
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert [row["train_loss"] for row in quick] == pytest.approx([row["train_loss"] for row in plain], rel=1e-4)
    assert [row["learning_rate"] for row in quick] == [row["learning_rate"] for row in plain]


@needs_compiler
def test_compiled_chains_go_on_where_uncompiled_ones_do(binary_data: Data) -> None:
    """The same bits after 36 steps of PCD: a graph moves the chains of the model in place."""
    found = []
    for how in ("never", "always"):
        torch.manual_seed(0)
        model = build("model", {"rbm": {"hidden": 5}}, event_shape=binary_data.event_shape)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            fit(
                model, binary_data, objective={"pcd": {"chains": 20}}, epochs=12, batch_size=16, compile=how,
                optimizer={"SGD": {"lr": 0.1, "momentum": 0.5}}, progress=False,
            )  # fmt: skip
        found.append(model)
    plain, quick = found
    assert torch.equal(plain.chains, quick.chains)
    for one, other in zip(plain.parameters(), quick.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_compiled_evidence_is_the_uncompiled_one(vae: Callable[..., VAE], binary_data: Data) -> None:
    """Each datapoint to rounding at the same draws, by `score` and by `evaluate`; a smaller batch runs uncompiled."""
    model = vae().eval()
    x = binary_data.train.batch(slice(0, 8)).x
    max_elements = 20 * x.numel()
    scorer = compiled_chunk(model, draws_at_once(model, x, 50, max_elements), (x, None, None))
    for part in (x, x[:3]):
        found = []
        for used in (None, scorer):
            torch.manual_seed(1)
            limit = max_elements if len(part) == 8 else 20 * part.numel()
            found.append(score(model, part, particles=50, max_elements=limit, scorer=used))
        torch.testing.assert_close(found[0].log_evidence, found[1].log_evidence, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[0].means["z"], found[1].means["z"])
        torch.testing.assert_close(found[0].khat, found[1].khat, rtol=1e-3, atol=1e-3)
    results = [evaluate(model, binary_data, particles=30, compile=how).log_evidence for how in ("never", "always")]
    assert results[0] == pytest.approx(results[1], abs=1e-5)


def test_bf16_is_of_the_networks_alone(vae: Callable[..., VAE], binary_data: Data) -> None:
    """Parameters stay in float32; bounds agree to the eight bits of a bfloat16's fraction."""
    losses = []
    for precision in ("float32", "bf16"):
        model = vae()
        history = fit(model, binary_data, epochs=3, precision=precision, progress=False).history
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        losses.append([row["train_loss"] for row in history])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=2**-8)


def test_what_looks_at_values_is_trained_uncompiled_and_says_so(vae: Callable[..., VAE], binary_data: Data) -> None:
    with pytest.warns(UserWarning, match="training goes on uncompiled: its Python code depends on values of tensors"):
        history = fit(vae(), binary_data, objective="Trace_ELBO", epochs=2, compile="always", progress=False).history
    assert len(history) == 2


def test_without_a_compiler_training_goes_on(
    vae: Callable[..., VAE], binary_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(graph: Any, **options: Any) -> Any:
        def call(*arguments: Any) -> Any:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

        return call

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.warns(UserWarning, match="training goes on uncompiled: RuntimeError: InvalidCxxCompiler"):
        fit(vae(), binary_data, epochs=2, compile="always", progress=False)


def test_an_objective_that_remembers_is_not_compiled(binary_data: Data, vae: Callable[..., VAE]) -> None:
    with pytest.warns(UserWarning, match="uncompiled: local keeps state"):
        fit(vae(), binary_data, objective={"local": {"steps": 1}}, epochs=1, compile="always", progress=False)


@pytest.mark.usefixtures("uncompiled_graphs")
def test_a_graph_that_disagrees_is_refused() -> None:
    """A function of a Python counter, which a record does not see."""
    weight = nn.Linear(2, 1)
    calls = []

    def counting(x: Tensor) -> tuple[Tensor]:
        calls.append(None)
        return (weight(x) * len(calls),)

    with pytest.raises(CaptureError, match="differs from the uncompiled one by"):
        compiled(counting, (torch.ones(3, 2),), weight)


@pytest.mark.usefixtures("uncompiled_graphs")
def test_a_graph_that_differs_at_one_draw_alone_is_taken() -> None:
    """As where rounding turns a discrete draw: here the function differs from itself in its first call."""
    weight = nn.Linear(2, 1)
    calls = []

    def turning(x: Tensor) -> tuple[Tensor]:
        calls.append(None)
        return (weight(x) * (2 if len(calls) == 1 else 1),)

    program = compiled(turning, (torch.ones(3, 2),), weight)
    assert torch.equal(program(torch.zeros(3, 2))[0], weight(torch.zeros(3, 2)))


def test_short_runs_are_not_compiled(
    vae: Callable[..., VAE], binary_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "auto" leaves a run of a second alone, and compiles where more time than the threshold is ahead."""
    asked: list[int] = []

    def refuse(*arguments: Any) -> Any:
        asked.append(1)
        raise CaptureError("asked")

    monkeypatch.setattr("pyrolatent.inference.training.gradient.compiled", refuse)
    fit(vae(), binary_data, epochs=20, batch_size=10, progress=False)
    assert not asked
    monkeypatch.setattr("pyrolatent.inference.training.gradient.WORTH_COMPILING", 0.0)
    with pytest.warns(UserWarning, match="uncompiled: asked"):
        fit(vae(), binary_data, epochs=20, batch_size=10, progress=False)
    assert len(asked) == 1


def test_the_cache_outlives_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled lies in the user's cache, unless torch's own variable names another place."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    compiled(lambda x: (x + 1,), (torch.ones(2),), nn.Identity())
    import os

    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).name == "inductor"
