"""What users have, of any type and in any container, is what float32 tensors are, or is refused naming both sides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrolatent import (
    PCA,
    VAE,
    Autoencoder,
    ConditionalVAE,
    Data,
    DiscreteVAE,
    HierarchicalVAE,
    InputError,
    LinearGaussian,
    LogisticBernoulli,
    RestrictedBoltzmannMachine,
    Run,
    SemiSupervisedVAE,
    annealed_evidence,
    check,
    evaluate,
    fit,
    impute,
    interpolate,
    load_data,
    reconstruct,
    sample,
    tasks,
    to_arviz,
)
from pyrolatent.inference.evidence.energies import evaluate_energy

SMALL: dict[str, Any] = {"encoder": {"mlp": {"hidden": [8]}}, "decoder": {"mlp": {"hidden": [8]}}}
MODELS: dict[str, Callable[[], Any]] = {
    "vae": lambda: VAE((4,), latent_dim=2, **SMALL),
    "in float64": lambda: LinearGaussian((4,), latent_dim=2).double(),
    "conditional": lambda: ConditionalVAE((4,), 3, latent_dim=2, **SMALL),
    "semi-supervised": lambda: SemiSupervisedVAE((4,), 3, latent_dim=2, **SMALL),
    "hierarchical": lambda: HierarchicalVAE((4,), latent_dims=(3, 2), **SMALL),
    "discrete": lambda: DiscreteVAE((4,), latent_dims=(3,), **SMALL),
    "autoencoder": lambda: Autoencoder((4,), latent_dim=2, **SMALL),
}
X = np.random.default_rng(0).integers(2, size=(5, 4))
Y = np.array([0, 2, 1, 0, 1])
MASK = np.random.default_rng(1).random((5, 4)) < 0.7
FORMS: dict[str, Callable[[Any], Any]] = {
    "float64 array": lambda values: values.astype(np.float64),
    "float16 array": lambda values: values.astype(np.float16),
    "integers": lambda values: values.astype(np.int32),
    "bytes": lambda values: values.astype(np.uint8),
    "float64 tensor": lambda values: torch.from_numpy(values).double(),
    "lists": lambda values: values.tolist(),
    "strided": lambda values: np.repeat(values, 2, axis=0)[::-2],
    "other bytes first": lambda values: values.astype(">f8"),
    "list of tensors": lambda values: [*torch.from_numpy(values)],
}


def labels_of(model: Any) -> Any:
    return Y if model.conditional else None


TASKS: dict[str, Callable[..., Any]] = {
    "means": lambda model, x, y=None, mask=None: torch.cat([*tasks.means(model, x, y, mask).values()], -1),
    "reconstruct": reconstruct,
    "interpolate": interpolate,
    "encode": lambda model, x, y=None, mask=None: next(iter(model.encode(x, y, mask).values())).mean,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_every_form_is_the_tensor_that_it_stands_for(name: str, form: str) -> None:
    model = MODELS[name]()
    x = torch.from_numpy(X).to(next(model.parameters()))
    turned = X[::-1].copy() if form == "strided" else X  # as it is read from the last row to the first
    y, mask = labels_of(model), torch.from_numpy(MASK)
    for task in TASKS.values():
        found = []
        for values, labels, observed in (
            (x, None if y is None else torch.from_numpy(y), mask),
            (FORMS[form](turned), None if y is None else y.tolist(), MASK.astype(int)),
        ):
            torch.manual_seed(0)
            found.append(task(model, values, labels, observed))
        assert torch.equal(*found)
        assert found[0].dtype == x.dtype


SPARSE = {"coo": torch.Tensor.to_sparse, "csr": torch.Tensor.to_sparse_csr, "csc": torch.Tensor.to_sparse_csc}


@pytest.mark.parametrize("layout", SPARSE)
def test_sparse_tensors_are_what_they_hold(layout: str) -> None:
    model, x = MODELS["vae"](), torch.from_numpy(X).float()
    assert torch.equal(reconstruct(model, SPARSE[layout](x)), reconstruct(model, x))
    assert torch.equal(
        load_data(SPARSE[layout](x), validation=0.2, test=0.2).train.x, load_data(x, validation=0.2, test=0.2).train.x
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.bool])
def test_whole_numbers_of_every_type_are_classes(dtype: torch.dtype) -> None:
    """Classes 0 and 1 of a conditional model, and numbers x."""
    model, y = MODELS["conditional"](), torch.tensor([0, 1, 1, 0, 1])
    assert torch.equal(reconstruct(model, X, y.to(dtype)), reconstruct(model, X, y))
    assert torch.equal(reconstruct(model, torch.from_numpy(X).to(dtype), y), reconstruct(model, X, y))


def test_counts_of_every_type_are_counts() -> None:
    model = MODELS["vae"]()
    for size in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        assert sample(model, size).shape == (3, 4)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("autoencoder", "semi-supervised")])
def test_what_is_imputed_keeps_what_is_observed(name: str) -> None:
    model = MODELS[name]()
    drawn = impute(model, X.astype(np.float64), MASK, labels_of(model), draws=2, particles=3)
    assert (drawn[:, MASK] == torch.from_numpy(X[MASK])).all()


@pytest.mark.parametrize("name", MODELS)
def test_latents_are_decoded_in_every_form(name: str) -> None:
    model = MODELS[name]()
    codes = {site: q.mean.round().detach() for site, q in model.encode(X, labels_of(model)).items()}
    given = {site: value.double().numpy() for site, value in codes.items()}
    assert torch.equal(model.decode(codes, labels_of(model)).mean, model.decode(given, labels_of(model)).mean)


@pytest.mark.parametrize("task", [*TASKS, "impute"])
def test_nan_is_missing_as_behind_a_mask(task: str) -> None:
    model, call = MODELS["vae"](), TASKS.get(task, impute)
    found = []
    for x, mask in ((X, MASK), (np.where(MASK, X, np.nan), None), (np.where(MASK, X, np.nan), MASK | True)):
        torch.manual_seed(0)
        found.append(call(model, x, mask=mask))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], equal_nan=True)


NESTED = torch.nested.as_nested_tensor([torch.ones(4)], layout=torch.jagged)
REFUSED: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "columns": ("vae", lambda m: reconstruct(m, torch.zeros(4, 5)), r"shape \(4, 5\), but VAE is over .* \(4,\)"),
    "as many numbers": ("vae", lambda m: reconstruct(m, torch.zeros(6, 2)), r"shape \(6, 2\), but VAE"),
    "one datapoint": ("vae", lambda m: m.encode(X[0]), r"give \(batch, 4\)"),
    "words": ("vae", lambda m: m.encode([["a"] * 4]), "x is a list of no real numbers"),
    "ragged": ("vae", lambda m: m.encode([[1.0], [1.0, 2.0]]), "x is a list of no real numbers"),
    "complex": ("vae", lambda m: m.encode(torch.zeros(2, 4, dtype=torch.complex64)), "no real numbers"),
    "nothing": ("vae", lambda m: m.encode(None), "x is a NoneType"),
    "infinite": ("vae", lambda m: m.encode(np.full((2, 4), np.inf)), "8 observed values of x are infinite"),
    "mask's shape": ("vae", lambda m: m.encode(X, mask=MASK[:2]), r"mask, of shape \(2, 4\), .* x, of shape \(5, 4\)"),
    "mask's values": ("vae", lambda m: m.encode(X, mask=2 * X - 1), "True or False"),
    "labels of none": ("vae", lambda m: m.encode(X, Y), "VAE takes no labels"),
    "labels of none, ignored": ("in float64", lambda m: reconstruct(m, X, Y), "LinearGaussian takes no labels"),
    "labels of a code": ("autoencoder", lambda m: m.encode(X, Y), "Autoencoder takes no labels"),
    "no such class": ("conditional", lambda m: m.encode(X, Y + 1), "labels from 1 to 3 were given; they are 0 to 2"),
    "unknown class": ("conditional", lambda m: m.encode(X, Y - 1), "labels from -1 to 1"),
    "fewer labels": ("conditional", lambda m: m.encode(X, Y[:2]), r"int64 of shape \(2,\), but .* \(5,\)"),
    "numbers as classes": ("conditional", lambda m: m.encode(X, Y / 2), r"float64 of shape \(5,\), but .* \(5, 3\)"),
    "as many numbers as classes": ("conditional", lambda m: m.encode(X[:3], Y[:3] / 2), r"float64 of shape \(3,\)"),
    "vectors as classes": ("semi-supervised", lambda m: m.encode(X, np.eye(3)[Y]), "takes whole numbers from 0 to 2"),
    "no labels": ("conditional", lambda m: m.encode(X), "none were given"),
    "several latents": ("hierarchical", lambda m: m.decode(np.zeros((2, 3))), "several latents; .* z2, z1"),
    "a missing latent": ("hierarchical", lambda m: m.decode({"z2": np.zeros((2, 2))}), "latents of z2 were given, but"),
    "another latent": ("vae", lambda m: m.decode({"w": np.zeros((2, 2))}), "latents of w were given, but"),
    "latent's width": ("vae", lambda m: m.decode(np.zeros((2, 3))), r"z has shape \(2, 3\), but VAE takes .*\(2,\)"),
    "latents of several sizes": (
        "hierarchical", lambda m: m.decode({"z1": np.zeros((2, 3)), "z2": np.zeros((4, 2))}), "equally many"
    ),
    "labels of several sizes": ("conditional", lambda m: m.decode(np.zeros((2, 2)), Y), r"\(5,\), but .* \(2,\)"),
    "one end": ("vae", lambda m: interpolate(m, X[:1]), "x holds 1 datapoints; a line needs two"),
    "no steps": ("vae", lambda m: interpolate(m, X, steps=0), "steps was 0"),
    "no draws": ("vae", lambda m: sample(m, 0), "size was 0"),
    "labels at sampling": ("vae", lambda m: sample(m, 5, Y), "VAE takes no labels"),
    "no datapoints": ("vae", lambda m: m.encode(X[:0]), r"x holds no datapoints: its shape is \(0, 4\)"),
    "no codes": ("vae", lambda m: m.decode(np.zeros((0, 2))), "latents of no datapoints"),
    "a nested tensor": ("vae", lambda m: m.encode(NESTED), "no real numbers"),
    "nothing missing": ("vae", lambda m: impute(m, X), "x is complete, but impute draws what is missing; put NaN"),
    "a word as label": ("conditional", lambda m: tasks.latent_grid(m, 2, y="2"), "y is a str of no real numbers"),
    "too large a label": ("semi-supervised", lambda m: m.encode(X, np.full(5, 2**64 - 1, np.uint64)), "int64 cannot"),
    "half a draw": ("vae", lambda m: impute(m, X, MASK, draws=2.5), "draws was 2.5; a whole number is needed"),
    "a count of type float": ("vae", lambda m: sample(m, 2.0), "size was 2.0; a whole number"),
    "a count of type float32": ("vae", lambda m: tasks.latent_grid(m, torch.tensor(2.0)), "a whole number"),
    "an array of counts": ("vae", lambda m: interpolate(m, X, steps=np.array([2, 3])), "a whole number"),
    "a word as count": ("vae", lambda m: impute(m, X, MASK, particles="3"), "particles was '3'; a whole number"),
    "vectors at sampling": ("semi-supervised", lambda m: sample(m, 5, np.eye(3)[Y]), "takes whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case: str) -> None:
    name, call, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as refusal:
        call(MODELS[name]())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("form", ["float64 array", "float64 tensor", "lists"])
@pytest.mark.parametrize("call", [fit, evaluate, check, to_arviz, annealed_evidence])
def test_an_array_is_no_data(call: Callable[..., Any], form: str) -> None:
    kind = type(FORMS[form](X)).__name__
    with pytest.raises(InputError, match=rf"data is a {kind}; give pl.load_data\(x\)"):
        call(MODELS["vae"](), FORMS[form](X))


def test_an_array_is_no_data_of_an_energy() -> None:
    machine: Any = RestrictedBoltzmannMachine((4,), hidden=2)
    for call in (fit, evaluate, evaluate_energy):
        with pytest.raises(InputError, match=r"data is a ndarray; give pl.load_data\(x\)"):
            call(machine, X)


def labelled(labels: Any) -> Data:
    return load_data(np.random.default_rng(0).integers(2, size=(200, 4)), labels=labels)


@pytest.mark.parametrize("call", [evaluate, check, to_arviz, annealed_evidence])
def test_data_of_other_labels_are_refused(call: Callable[..., Any]) -> None:
    """A class that the model does not have would be scored as one that is none of its own, which is no error in it."""
    model = MODELS["conditional"]()
    for labels, message in (
        (None, "has no labels"),
        (np.arange(200) % 5, "they are 0 to 2"),
        (np.arange(200) % 4 - 1, "labels from -1"),
        (np.arange(200) + 0.5, r"float32 of shape"),
    ):
        with pytest.raises(InputError, match=message):
            call(model, labelled(labels))
    with pytest.raises(InputError, match="takes whole numbers from 0 to 2"):
        call(MODELS["semi-supervised"](), labelled(np.eye(3)[np.arange(200) % 3]))


IMAGES = np.random.default_rng(2).integers(256, size=(40, 3, 3)).astype(np.uint8)
DIVIDED: dict[str, tuple[dict[str, Any], float]] = {
    "grey": ({}, 255),
    "dequantized": ({"dequantize": "uniform"}, 256),
    "dynamic": ({"binarize": "dynamic"}, 255),
    "threshold": ({"binarize": "threshold"}, 255),
}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("kind", DIVIDED)
def test_integers_are_not_given_back_as_they_were_before_they_were_divided(
    kind: str, loaded: bool, tmp_path: Path
) -> None:
    options, divisor = DIVIDED[kind]
    data = load_data(IMAGES, **options)
    likelihood = "bernoulli" if data.binarize else "normal"
    model = VAE(data.event_shape, latent_dim=2, likelihood=likelihood, **SMALL)
    run = Run.save(tmp_path / "run", fit(model, data, epochs=1, progress=False))
    if loaded:
        model = Run.load(run.path, model=VAE(data.event_shape, latent_dim=2, likelihood=likelihood, **SMALL)).model
    assert model.divisor == divisor
    raw = IMAGES[:, None]
    for task in (*TASKS.values(), impute):
        resized = (raw.astype(np.float64) + np.roll(raw, 1, -1)) / 2
        for given in (resized, *(FORMS[form](raw) for form in ("bytes", "integers", "float64 array", "lists"))):
            with pytest.raises(InputError, match=f"trained on x divided by {divisor}, .*; give x / {divisor}"):
                task(model, given, mask=np.ones(raw.shape, bool))
    with pytest.raises(InputError, match=f"give x / {divisor}"):
        evaluate(model, load_data(raw.astype(np.float32)), particles=1)
    binary = (raw > 127).astype(np.uint8)
    assert torch.equal(reconstruct(model, binary), reconstruct(model, binary.astype(np.float32)))
    noisy = raw / divisor + np.random.default_rng(3).normal(size=raw.shape)
    assert reconstruct(model, noisy).shape == raw.shape


def test_models_of_known_truth_convert_and_refuse_as_others_do() -> None:
    """Their own methods too: bytes are refused, arrays of any type are the tensors that they hold."""
    data = load_data(IMAGES)
    linear, components = LinearGaussian(data.event_shape, latent_dim=2), PCA(data.event_shape, latent_dim=2)
    fit(linear, data, objective="em", epochs=1, progress=False)
    fit(components, data, objective="closed_form", progress=False)
    logistic = LogisticBernoulli((4,), latent_dim=1)
    raw = IMAGES[:5, None]
    grey = torch.from_numpy(raw / 255).float()
    for method in (
        linear.log_evidence,
        lambda x: linear.exact_posterior(x).mean,
        components.reconstruct,
        lambda x: components.encode(x)["z"].mean,
    ):
        for form in ("float64 array", "lists", "float64 tensor"):
            torch.testing.assert_close(method(FORMS[form](raw / 255)), method(grey))
        for given in (raw, raw.astype(np.float32)):
            with pytest.raises(InputError, match="give x / 255"):
                method(given)
        with pytest.raises(InputError, match="over events of shape"):
            method(grey.flatten(1))
    for form in ("float64 array", "bytes", "lists"):
        found, wanted = (logistic.quadrature(x)[2] for x in (FORMS[form](X), torch.from_numpy(X).float()))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5])
def test_a_seed_is_a_whole_number_that_torch_can_take(seed: Any) -> None:
    data = load_data(X.repeat(40, 0))
    model = MODELS["vae"]()
    for call in (
        lambda: fit(model, data, epochs=1, seed=seed, progress=False),
        lambda: evaluate(model, data, particles=1, seed=seed),
        lambda: check(model, data, seed=seed),
        lambda: load_data(X.repeat(40, 0), seed=seed),
    ):
        with pytest.raises(InputError, match="seed was"):
            call()


def test_counts_that_were_not_divided_are_taken_as_they_are() -> None:
    data = load_data(IMAGES.reshape(40, 9))
    model = VAE((9,), latent_dim=2, likelihood="normal", **SMALL)
    fit(model, data, epochs=1, progress=False)
    assert torch.isfinite(reconstruct(model, IMAGES.reshape(40, 9))).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, torch.bfloat16])
def test_classes_of_type_float_are_no_vectors(dtype: Any) -> None:
    labels = torch.tensor([0.0, 2.0, 1.0, 0.0] * 10)
    given = labels.to(dtype) if isinstance(dtype, torch.dtype) else labels.numpy().astype(dtype)
    with pytest.raises(InputError, match=r"all whole numbers; give integers if they are classes, or shape \(N, 1\)"):
        load_data(IMAGES, labels=given)
    assert load_data(IMAGES, labels=given.reshape(-1, 1)).test.y.shape == (4, 1)
    assert load_data(IMAGES, labels=given + 0.5).label_dim == 1
