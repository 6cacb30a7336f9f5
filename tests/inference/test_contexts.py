"""What surrounds a call: loaded parameter stores, types of a model's numbers, gradient modes, and Pyro's handlers."""

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from pyrolatent import (
    VAE,
    Data,
    InputError,
    annealed_evidence,
    evaluate,
    fit,
    impute,
    interpolate,
    load_data,
    reconstruct,
    sample,
    to_arviz,
)
from pyrolatent.checks.active_units import ActiveUnits
from pyrolatent.inference.objectives.bounds import ELBO
from pyrolatent.models import latent

Vector = Callable[[nn.Module], Tensor]


@pytest.fixture
def x(binary_data: Data) -> Tensor:
    return binary_data.train.batch(slice(None)).x


def train_by_pyro(model: VAE, x: Tensor) -> list[float]:
    """The losses of five steps of a new optimiser at a fixed seed."""
    torch.manual_seed(3)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    return [svi.step(x) for _ in range(5)]


@pytest.fixture
def new_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Gives a call that forgets the store and the models that ran, as a new process has none."""

    def forget() -> None:
        pyro.clear_param_store()
        monkeypatch.setattr(latent, "_names", WeakKeyDictionary())
        monkeypatch.setattr(latent, "_count", itertools.count())
        monkeypatch.setattr(latent, "_shared", WeakTensorKeyDictionary())

    forget()
    return forget


@pytest.fixture
def saved(vae: Callable[..., VAE], x: Tensor, tmp_path: Path, new_process: Callable[[], None]) -> tuple[str, VAE]:
    """A parameter store after some training, as a file that a new process finds, and the model that was trained."""
    path, trained = str(tmp_path / "store.pt"), vae()
    train_by_pyro(trained, x)
    pyro.get_param_store().save(path)
    return path, trained


def test_a_loaded_parameter_store_is_trained_on(
    saved: tuple[str, VAE], vae: Callable[..., VAE], x: Tensor, parameters: Vector, new_process: Callable[[], None]
) -> None:
    """Training goes on as without saving and loading, to the last digit; so it does after loading once more."""
    path, trained = saved
    at_saving = parameters(trained)
    losses = train_by_pyro(trained, x)
    new_process()
    loaded = vae(1)
    for _ in range(2):
        pyro.get_param_store().load(path)
        assert train_by_pyro(loaded, x) == losses
        assert torch.equal(parameters(loaded), parameters(trained))
    assert loaded.fitted
    assert not torch.equal(parameters(loaded), at_saving)


def test_frozen_parts_are_loaded_and_stay_frozen(
    saved: tuple[str, VAE], vae: Callable[..., VAE], x: Tensor, parameters: Vector, new_process: Callable[[], None]
) -> None:
    path, trained = saved
    decoder = parameters(trained.likelihood)
    new_process()
    loaded = vae(1)
    loaded.likelihood.requires_grad_(False)
    pyro.get_param_store().load(path)
    train_by_pyro(loaded, x)
    assert torch.equal(parameters(loaded.likelihood), decoder)
    assert not any(parameter.requires_grad for parameter in loaded.likelihood.parameters())


def test_a_part_that_is_put_in_after_training_keeps_its_values_and_learns(
    vae: Callable[..., VAE], x: Tensor, parameters: Vector
) -> None:
    model, other = vae(), vae(1)
    train_by_pyro(model, x)
    expected = vae(1)
    expected.posterior, expected.prior = model.posterior, model.prior
    expected = copy.deepcopy(expected)
    model.likelihood = other.likelihood
    assert train_by_pyro(model, x) == train_by_pyro(expected, x)
    assert torch.equal(parameters(model), parameters(expected))


def test_a_loaded_parameter_store_of_another_model_is_refused(
    saved: tuple[str, VAE], vae: Callable[..., VAE], x: Tensor, new_process: Callable[[], None]
) -> None:
    new_process()
    pyro.get_param_store().load(saved[0])
    with pytest.raises(InputError, match=r"the parameter store holds VAE_0\S+ of shape .* but VAE has it of shape"):
        train_by_pyro(vae(latent_dim=3), x)


def test_parameters_that_are_not_contiguous_learn(vae: Callable[..., VAE], x: Tensor, parameters: Vector) -> None:
    model, other = vae(), vae()
    for parameter in other.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()
    assert train_by_pyro(model, x) == train_by_pyro(other, x)
    assert torch.equal(parameters(model), parameters(other))


class Hearing(Messenger):
    """Keeps the name of every site that reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str | None] = []

    def _process_message(self, msg: Any) -> None:
        self.heard.append(msg["name"])


@contextmanager
def handlers() -> Iterator[Hearing]:
    """What a caller may have around a call: handlers that change every site, and plates where the package's are."""
    hearing = Hearing()
    with ExitStack() as stack:
        stack.enter_context(pyro.plate("data", 3))
        stack.enter_context(poutine.scale(scale=0.1))
        stack.enter_context(poutine.mask(mask=torch.tensor(False)))
        stack.enter_context(poutine.condition(data={"z": torch.zeros(2)}))
        stack.enter_context(poutine.trace())
        yield stack.enter_context(hearing)


def trained(model: VAE, data: Data) -> Tensor:
    fit(model, data, progress=False, epochs=1)
    return nn.utils.parameters_to_vector(model.parameters())


CALLS: dict[str, Callable[[VAE, Data, Tensor], Any]] = {
    "fit": lambda model, data, x: trained(model, data),
    "evaluate": lambda model, data, x: evaluate(model, data, particles=20).each["log_evidence"],
    "check": lambda model, data, x: ActiveUnits()(model, data, split="train", size=20).numbers,
    "impute": lambda model, data, x: impute(model, x, x > 0, particles=5, draws=1),
    "sample": lambda model, data, x: sample(model, 3),
    "reconstruct": lambda model, data, x: reconstruct(model, x),
    "interpolate": lambda model, data, x: interpolate(model, x, steps=2),
    "encode": lambda model, data, x: model.encode(x)["z"].mean,
    "decode": lambda model, data, x: model.decode(torch.zeros(2, 2)).mean,
    "to_arviz": lambda model, data, x: float(to_arviz(model, data, draws=8, predictive=4)["posterior"]["z"].sum()),
    "annealed": lambda model, data, x: (
        annealed_evidence(model, data, size=2, chains=2, steps=3, leapfrog=2).log_evidence
    ),
}


def called(name: str, model: VAE, data: Data, x: Tensor) -> Any:
    torch.manual_seed(7)
    return CALLS[name](model, data, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_handlers_of_the_caller_reach_no_call(name: str, vae: Callable[..., VAE], binary_data: Data, x: Tensor) -> None:
    expected = called(name, vae(), binary_data, x[:3])
    with handlers() as hearing:
        outside = pyro.poutine.runtime._PYRO_STACK[:]
        found = called(name, vae(), binary_data, x[:3])
        assert outside == pyro.poutine.runtime._PYRO_STACK
        assert not hearing.heard
    assert torch.equal(found, expected) if isinstance(found, Tensor) else found == expected


def test_programs_and_objectives_are_reached_by_handlers(vae: Callable[..., VAE], x: Tensor) -> None:
    with Hearing() as hearing:
        model = vae()
        model.guide(x)
        assert "z" in hearing.heard
        hearing.heard.clear()
        ELBO().loss(model.model, model.guide, x)
        assert {"z", "x"} <= {*hearing.heard}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradient_modes_of_the_caller_change_nothing(
    name: str, mode: Callable[[], Any], vae: Callable[..., VAE], binary_data: Data, x: Tensor
) -> None:
    expected, model = called(name, vae(), binary_data, x[:3]), vae()
    with mode():
        found = called(name, model, binary_data, x[:3])
    assert torch.equal(found, expected) if isinstance(found, Tensor) else found == expected


def test_data_of_inference_mode_train_and_models_are_refused(vae: Callable[..., VAE]) -> None:
    x = torch.eye(6).repeat(5, 1)
    expected = trained(vae(), load_data(x))
    with torch.inference_mode():
        data, model = load_data(x), vae()
    assert torch.equal(trained(vae(), data), expected)
    with pytest.raises(InputError, match=r"built under torch\.inference_mode"):
        trained(model, data)
