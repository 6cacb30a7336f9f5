"""Models with layers of discrete latents, against sums over all states written out in NumPy."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO
from scipy.special import expit, logsumexp
from torch import Tensor

from pyrolatent import Data, InputError, fit, reconstruct
from pyrolatent.inference.evidence.importance import score
from pyrolatent.inference.objectives.bounds import ELBO, AnalyticELBO
from pyrolatent.inference.weights import weigh
from pyrolatent.models import DiscreteVAE

EVENT = (6,)
SMALL: Any = {"mlp": {"hidden": [8]}}
STRAIGHT: Any = {"mlp": {"hidden": []}}
NETWORKS = {"encoder": SMALL, "decoder": SMALL, "between": SMALL}
X = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0], [0, 1, 0, 0, 1, 1.0]])


def discrete(estimator: Any, dims: tuple[int, ...], classes: int, encoder: Any = SMALL) -> DiscreteVAE:
    options: Any = {"encoder": encoder, "decoder": STRAIGHT, "between": STRAIGHT}
    model = DiscreteVAE(EVENT, latent_dims=dims, classes=classes, estimator=estimator, **options)
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape)
    return model


def states(dim: int, classes: int) -> np.ndarray:
    """All values of one layer, flat, (states, numbers)."""
    if classes == 2:
        return np.array([*itertools.product([0.0, 1.0], repeat=dim)])
    return np.array([np.concatenate(row) for row in itertools.product(np.eye(classes), repeat=dim)])


def enumerated(model: Any, classes: int, dims: tuple[int, ...]) -> np.ndarray:
    """log p(x) of X: from the top layer, which is uniform, down to x, each layer by matrix products."""

    def numbers(conditional: Any, z: np.ndarray) -> np.ndarray:
        last = conditional.network.last
        return z @ last.weight.detach().double().numpy().T + last.bias.detach().double().numpy()

    z = states(dims[-1], classes)
    log_p = np.full(len(z), -np.log(len(z)))
    for level in range(len(dims) - 2, -1, -1):
        below, logits = states(dims[level], classes), numbers(model.layers[level], z)
        if classes == 2:
            terms = np.log(expit(logits)) @ below.T + np.log(expit(-logits)) @ (1 - below).T
        else:
            by_variable = logits.reshape(len(z), dims[level], classes)
            terms = (by_variable - logsumexp(by_variable, -1, keepdims=True)).reshape(len(z), -1) @ below.T
        z, log_p = below, logsumexp(log_p[:, None] + terms, 0)
    logits, x = numbers(model.likelihood, z), X.double().numpy()
    return logsumexp(log_p[:, None] + np.log(expit(logits)) @ x.T + np.log(expit(-logits)) @ (1 - x).T, 0)


LAYERS = pytest.mark.parametrize(("dims", "classes"), [((4,), 2), ((2,), 3), ((3, 2), 2), ((2, 2), 3)], ids=str)


@LAYERS
@pytest.mark.parametrize("particles", [1, 7])
def test_evidence_is_the_sum_over_all_states(dims: tuple[int, ...], classes: int, particles: int) -> None:
    """Whatever the number of particles: nothing is drawn."""
    model = discrete("enumerate", dims, classes)
    scores = score(model, X, particles=particles)
    np.testing.assert_allclose(scores.log_evidence, enumerated(model, classes, dims), rtol=1e-5, atol=1e-5)


@LAYERS
def test_the_reported_bound_does_not_depend_on_the_particles(dims: tuple[int, ...], classes: int) -> None:
    model = discrete("enumerate", dims, classes)
    torch.testing.assert_close(score(model, X, particles=7).elbo, score(model, X, particles=1).elbo)


@LAYERS
def test_the_bound_is_the_sum_over_all_states(dims: tuple[int, ...], classes: int) -> None:
    """ELBO = log p(x) - KL(q(z | x) || p(z | x)), so below log p(x) and equal to Pyro's by its own enumeration."""
    model = discrete("enumerate", dims, classes)
    bound = ELBO().bound(weigh(model.generate, model.infer, X))
    assert (bound < score(model, X, particles=1).log_evidence).all()
    pyros = -TraceEnum_ELBO(max_plate_nesting=1).loss(model.generate, model.infer, X)
    assert bound.sum().item() == pytest.approx(pyros, rel=1e-5)


@pytest.mark.parametrize(("dims", "classes"), [((4,), 2), ((3, 2), 2), ((2, 2), 3)])
def test_the_analytic_bound_of_discrete_layers_is_the_bound(dims: tuple[int, ...], classes: int) -> None:
    """With all states summed out both are the same number."""
    model = discrete("enumerate", dims, classes)
    weights = weigh(model.generate, model.infer, X)
    torch.testing.assert_close(AnalyticELBO().bound(weights), ELBO().bound(weights))


@LAYERS
def test_evidence_by_draws_agrees_within_its_error(dims: tuple[int, ...], classes: int) -> None:
    model = discrete("score", dims, classes)
    scores = score(model, X, particles=4000)
    assert scores.mcse.max() < 0.2
    error = np.abs(scores.log_evidence.numpy() - enumerated(model, classes, dims))
    np.testing.assert_array_less(error, 4 * scores.mcse.numpy() + 1e-5)


def test_score_gradients_have_the_mean_of_the_exact_ones() -> None:
    """Within four and a half standard errors of 60 repetitions with 100 copies of a datapoint, for all parameters."""
    model, exact = discrete("score", (2, 2), 2, STRAIGHT), discrete("enumerate", (2, 2), 2, STRAIGHT)
    exact.load_state_dict({key: value for key, value in model.state_dict().items() if "baseline" not in key})
    (-ELBO().bound(weigh(exact.generate, exact.infer, X[:1])).sum()).backward()
    truth = {name: parameter.grad for name, parameter in exact.named_parameters()}
    draws: dict[str, list[Tensor]] = {name: [] for name in truth}
    copies = X[:1].expand(100, -1)
    for _ in range(60):
        model.zero_grad()
        TraceGraph_ELBO().loss_and_grads(model.generate, model.infer, copies)
        for name in draws:
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            draws[name].append(gradient / 100)
    for name, values in draws.items():
        found, expected = torch.stack(values), truth[name]
        assert expected is not None
        assert expected.ne(0).any()
        assert ((found.mean(0) - expected).abs() < 4.5 * found.std(0) / 60**0.5 + 1e-6).all(), name


@pytest.mark.parametrize(
    ("estimator", "objective"),
    [pytest.param("score", "TraceGraph_ELBO", marks=pytest.mark.slow), ("enumerate", "elbo")],
)
def test_discrete_layers_train(
    estimator: str, objective: str, binary_data: Data, parameters: Callable[[torch.nn.Module], Tensor]
) -> None:
    """41 datapoints in batches of 16: the last has 9. Every network learns, the baselines too."""
    model: Any = DiscreteVAE(EVENT, latent_dims=(3,), estimator=estimator, **NETWORKS)
    x = binary_data.train.batch(slice(None)).x
    before = {
        name: parameters(module) for name, module in model.named_modules() if name.endswith(("network", "baselines"))
    }
    evidence = score(model, x, particles=200).log_evidence.mean()
    settings: Any = {"objective": objective, "epochs": 100, "batch_size": 16, "optimizer": {"Adam": {"lr": 0.03}}}
    fit(model, binary_data, progress=False, **settings)
    assert score(model, x, particles=200).log_evidence.mean() > evidence + 0.5
    assert ("baselines" in before) == (estimator == "score")
    for name, values in before.items():
        assert not torch.equal(values, parameters(model.get_submodule(name))), name


def test_pathwise_objectives_are_refused_where_nothing_is_summed_out(binary_data: Data) -> None:
    model = DiscreteVAE(EVENT, latent_dims=(3,), **NETWORKS)
    for objective in ("elbo", "analytic_elbo", "iwae", "TraceMeanField_ELBO"):
        with pytest.raises(InputError, match=f"no gradients through the draws .*of z1: .* which {objective} needs"):
            fit(model, binary_data, progress=False, objective=objective)


def test_too_many_states_are_refused() -> None:
    DiscreteVAE(EVENT, latent_dims=(6, 4), estimator="enumerate")
    with pytest.raises(InputError, match=r"11 variables of 2 classes have 2.05e\+03 states"):
        DiscreteVAE(EVENT, latent_dims=(6, 5), estimator="enumerate")
    DiscreteVAE(EVENT, latent_dims=(11,), estimator="score")


def test_one_hot_layers_decode_and_reconstruct() -> None:
    """A site of several one-hot variables has two dimensions of its own."""
    model = DiscreteVAE(EVENT, latent_dims=(3,), classes=4, **NETWORKS)
    z = model.prior().sample((5,))
    assert z.shape == (5, 3, 4)
    torch.testing.assert_close(model.decode({"z1": z}).mean, model.likelihood(z).mean)
    assert reconstruct(model, X).shape == X.shape
