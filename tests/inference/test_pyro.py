"""A model's pair of programs in Pyro's own hands: what it trains must move, and the bound must rise."""

import copy
from collections.abc import Callable, Iterator

import pyro
import pytest
import torch
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyrolatent import VAE, Data

Vector = Callable[[nn.Module], Tensor]
LOSSES = [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO]


@pytest.fixture
def x(binary_data: Data) -> Tensor:
    return binary_data.train.batch(slice(None)).x


@pytest.fixture(params=[True, False], ids=["validated", "not validated"])
def validated(request: pytest.FixtureRequest) -> Iterator[None]:
    with pyro.validation_enabled(request.param):
        yield


def bound(model: VAE, x: Tensor) -> float:
    """The ELBO a datapoint from 200 draws by Pyro, at one seed: its Monte Carlo error is far below 0.1 nats."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        loss = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
        return -loss.loss(model.model, model.guide, x) / len(x)


def train(model: VAE, x: Tensor, loss: ELBO, steps: int = 40) -> None:
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), loss=loss)
    for _ in range(steps):
        svi.step(x)


def all_moved(before: Tensor, after: Tensor) -> bool:
    """Whether most parameters moved; a unit of a rectifier that is off for all data has no gradient."""
    return (before != after).float().mean().item() > 0.5


@pytest.mark.usefixtures("validated")
@pytest.mark.parametrize("loss", LOSSES)
def test_svi_trains(loss: type[ELBO], x: Tensor, vae: Callable[..., VAE], parameters: Vector) -> None:
    model = vae()
    start, before = bound(model, x), parameters(model)
    train(model, x, loss())
    assert all_moved(before, parameters(model))
    assert bound(model, x) > start + 0.3


@pytest.mark.usefixtures("validated")
@pytest.mark.parametrize("loss", LOSSES[:2])
def test_the_module_form_trains_with_an_optimiser_of_torch(
    loss: type[ELBO], x: Tensor, vae: Callable[..., VAE], parameters: Vector
) -> None:
    model = vae()
    start, before = bound(model, x), parameters(model)
    target = loss()(model.model, model.guide)
    # The model's own parameters and nothing else, each once.
    assert {id(p) for p in target.parameters()} == {id(p) for p in model.parameters()}
    optimiser = torch.optim.Adam(target.parameters(), lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        target(x).backward()
        optimiser.step()
    assert all_moved(before, parameters(model))
    assert bound(model, x) > start + 0.3


def test_two_models_and_a_copy_train_in_one_process(x: Tensor, vae: Callable[..., VAE], parameters: Vector) -> None:
    """Under one name in the parameter store, the second model would be given the first one's parameters."""
    first, second = vae(seed=1), vae(seed=2)
    for model, other in ((first, second), (second, first)):
        start, before, rest = bound(model, x), parameters(model), parameters(other)
        train(model, x, Trace_ELBO())
        assert all_moved(before, parameters(model))
        assert bound(model, x) > start + 0.3
        assert torch.equal(rest, parameters(other))

    twin, trained = copy.deepcopy(first), parameters(first)
    assert torch.equal(parameters(twin), trained)
    train(twin, x, Trace_ELBO(), steps=5)
    assert all_moved(trained, parameters(twin))
    assert torch.equal(parameters(first), trained)


def test_training_goes_on_where_it_stopped(x: Tensor, vae: Callable[..., VAE], parameters: Vector) -> None:
    """A second SVI object takes the model as it is, not as the parameter store first saw it."""
    model = vae()
    train(model, x, Trace_ELBO(), steps=5)
    with torch.no_grad():
        for parameter in model.likelihood.parameters():
            parameter += 0.5
    changed = parameters(model)
    train(model, x, Trace_ELBO(), steps=1)
    assert (parameters(model) - changed).abs().max() < 0.03  # one step of Adam is at most the learning rate


def test_the_store_holds_the_model_s_own_parameters(x: Tensor, vae: Callable[..., VAE]) -> None:
    model = vae()
    train(model, x, Trace_ELBO(), steps=1)
    stored = {id(value.unconstrained()) for value in pyro.get_param_store().values()}
    assert stored == {id(parameter) for parameter in model.parameters()}


def test_predictive_draws_from_the_model(x: Tensor, vae: Callable[..., VAE]) -> None:
    model = vae()
    with torch.no_grad():
        drawn = pyro.infer.Predictive(model.model, guide=model.guide, num_samples=3, return_sites=("z",))(x)
    assert drawn["z"].shape == (3, len(x), 2)


@pytest.mark.parametrize("size", [1, 2])
def test_masks_and_small_batches(size: int, x: Tensor, vae: Callable[..., VAE], parameters: Vector) -> None:
    model = vae()
    before = parameters(model)
    mask = torch.rand(size, x.shape[1]) < 0.5
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), loss=TraceMeanField_ELBO())
    assert torch.isfinite(torch.tensor(svi.step(torch.where(mask, x[:size], torch.nan), None, mask)))
    assert (before != parameters(model)).any()
