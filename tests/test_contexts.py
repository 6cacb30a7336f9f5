"""What surrounds a call: loaded parameter stores, types of a model's numbers, gradient modes, and Pyro's handlers."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from weakref import WeakKeyDictionary

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from pyrolatent import VAE, Data, InputError
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
    assert loaded.fitted and not torch.equal(parameters(loaded), at_saving)


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
