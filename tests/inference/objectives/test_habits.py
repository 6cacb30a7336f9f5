"""What users of Pyro and NumPy do: masked rows with states, straight-through draws, automatic guides, SVI and `fit`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyrolatent import VAE, Data, InputError, SemiSupervisedVAE, fit, impute, load_data, sample
from pyrolatent.inference.objectives.bounds import (
    ELBO,
    IWAE,
    STL,
    VIMCO,
    AnalyticELBO,
    DReG,
    PartiallyIWAE,
    Renyi,
    ReweightedWakeSleep,
)

X = torch.tensor([-1.0, 0.0, 0.5, 2.0, 3.0], dtype=torch.float64)
SEEN = torch.tensor([True, True, False, True, False])
WEIGHTED = [IWAE(particles=3), STL(particles=2), DReG(particles=3), Renyi(particles=3), VIMCO(particles=3)]
Program = Callable[[Tensor], None]


def names(objective: Any) -> str:
    return type(objective).__name__


def states(log_mask: Callable[[Any], Any] = lambda fn: fn) -> tuple[Program, Program]:
    """s ~ Bernoulli(0.4), x ~ N(1.5 s, 1), the states summed out."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            s = pyro.sample("s", log_mask(dist.Bernoulli(x.new_tensor(0.4))))
            pyro.sample("x", log_mask(dist.Normal(1.5 * s, 1.0)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("s", log_mask(dist.Bernoulli(logits=0.3 * x)), infer={"enumerate": "parallel"})

    return model, guide


@pytest.mark.parametrize(
    "objective", [*WEIGHTED, PartiallyIWAE(groups=2, particles=2), ReweightedWakeSleep()], ids=names
)
@pytest.mark.parametrize("how", ["poutine", "distribution"])
def test_masked_rows_with_states_count_nothing(objective: Any, how: str) -> None:
    """The loss is -log p(x) of the rows that are not masked, which the sum over states makes exact."""
    pair = states() if how == "poutine" else states(lambda fn: fn.mask(SEEN))
    pair = tuple(poutine.mask(program, mask=SEEN) for program in pair) if how == "poutine" else pair
    terms = [dist.Normal(1.5 * s, 1.0).log_prob(X) + np.log(p) for s, p in ((0, 0.6), (1, 0.4))]
    truth = torch.stack(terms).logsumexp(0)[SEEN].sum().item()
    assert objective.loss(*pair, X) == pytest.approx(-truth)


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_a_scale_on_the_latents_alone_leaves_states_their_probabilities(scale: float) -> None:
    """As where a KL is annealed by poutine.scale: equal to TraceEnum_ELBO, which sums the states out exactly."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=scale):
                s = pyro.sample("s", dist.Bernoulli(x.new_tensor(0.4)))
            pyro.sample("x", dist.Normal(1.5 * s, 1.0), obs=x)

    guide = poutine.scale(states()[1], scale=scale)
    right = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, X)
    for objective in (ELBO(), AnalyticELBO()):
        assert objective.loss(model, guide, X) == pytest.approx(right)


@pytest.mark.parametrize("relaxed", [dist.RelaxedBernoulliStraightThrough, dist.RelaxedBernoulli])
def test_straight_through_draws_are_scored_as_pyro_scores_them(relaxed: Any) -> None:
    temperature, logits = torch.tensor(0.5).double(), torch.full((5,), 0.3).double().requires_grad_()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", relaxed(temperature, logits=torch.zeros(5).double()))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", relaxed(temperature, logits=logits * x))

    found = []
    for loss in (Trace_ELBO(), ELBO(), IWAE(particles=1)):
        torch.manual_seed(0)
        logits.grad = None
        value = loss.differentiable_loss(model, guide, X)
        value.backward()
        found.append((value.item(), *logits.grad.tolist()))
    assert found[1] == pytest.approx(found[0])
    assert found[2] == pytest.approx(found[0])


@pytest.mark.parametrize(
    "objective", [DReG(particles=3), PartiallyIWAE(groups=3, particles=2), STL(particles=3)], ids=names
)
def test_paths_through_auxiliary_sites_are_scaled_once(objective: Any) -> None:
    """The form of automatic guides, an auxiliary draw and a point at it, has the gradient of the plain guide."""
    x = X.repeat(20)
    gradients = []
    for auxiliary in (False, True):
        loc = torch.full_like(x, 0.2).requires_grad_()

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z + 0.3 * z**2, 1.0), obs=x)

        def guide(x: Tensor, loc: Tensor = loc, auxiliary: bool = auxiliary) -> None:
            with pyro.plate("data", len(x)):
                if auxiliary:
                    u = pyro.sample("u", dist.Normal(loc, 0.7), infer={"is_auxiliary": True})
                    pyro.sample("z", dist.Delta(u))
                else:
                    pyro.sample("z", dist.Normal(loc, 0.7))

        torch.manual_seed(0)
        objective.differentiable_loss(model, guide, x).backward()
        gradients.append(loc.grad)
    torch.testing.assert_close(*gradients)


def test_the_closed_form_of_a_point_is_not_taken_for_a_kl() -> None:
    """AutoNormal of a latent on (0, 1): its analytic bound is the sampled one, below log B(11, 3) / B(2, 2)."""

    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(x.new_tensor(2.0), x.new_tensor(2.0)))
        with pyro.plate("throws", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    x, guide = torch.tensor([1.0] * 9 + [0.0]), AutoNormal(model)
    guide(x)
    found = []
    for objective in (ELBO(particles=50), AnalyticELBO(particles=50)):
        torch.manual_seed(0)
        found.append(objective.loss(model, guide, x))
    assert found[1] == pytest.approx(found[0])
    assert found[0] > 4.96


@pytest.mark.parametrize("how", ["scale", "mask"])
def test_a_scale_or_mask_in_the_model_alone_is_no_closed_form(how: str) -> None:
    """The analytic bound is in the mean over draws that of Pyro's Trace_ELBO."""

    def model(x: Tensor) -> None:
        part = poutine.scale(scale=0.1) if how == "scale" else poutine.mask(mask=SEEN.repeat(4000))
        with pyro.plate("data", len(x)):
            with part:
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5))

    x = X.repeat(4000)
    losses = []
    for loss in (Trace_ELBO(), AnalyticELBO()):
        torch.manual_seed(0)
        losses.append(loss.loss(model, guide, x) / len(x))
    assert losses[1] == pytest.approx(losses[0])


def test_weights_of_rows_scale_rows_wherever_the_plate_is() -> None:
    """x_n ~ N(0, 1) weighed by w_n: -∑ w_n log p(x_n); weights within a datapoint are no part of a bound."""
    w = torch.arange(1.0, 6.0).double()
    z, x = torch.tensor(0.0).double(), X.unsqueeze(-1).expand(-1, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("rows", 5, dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pass

    each = dist.Normal(z, 1.0).log_prob(x)
    pair = tuple(poutine.scale(program, scale=w.unsqueeze(-1)) for program in (model, guide))
    for objective in (ELBO(), ELBO(plate="rows"), IWAE(particles=2, plate="rows"), STL(plate="rows")):
        assert objective.loss(*pair, x) == pytest.approx(-(w @ each.sum(1)).item())
    pair = tuple(poutine.scale(program, scale=torch.arange(1.0, 4.0).double()) for program in (model, guide))
    assert ELBO(plate="rows").loss(*pair, x) == pytest.approx(-(each.sum(0) @ torch.arange(1.0, 4.0).double()).item())
    with pytest.raises(InputError, match=r"scaled by numbers of the shape \(3,\), which vary within datapoints"):
        IWAE(particles=2, plate="rows").loss(*pair, x)


def plain_model(x: Tensor, *given: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("objective", [STL(), DReG(particles=2)], ids=names)
def test_a_guide_of_tensors_from_outside_is_refused_where_they_must_be_held(objective: Any) -> None:
    loc = torch.zeros(5).double().requires_grad_()

    def guide(x: Tensor, loc: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    with pytest.raises(InputError, match="depend on tensors that were computed outside of it"):
        objective.differentiable_loss(plain_model, guide, X, 2 * loc)
    torch.manual_seed(0)
    given = objective.differentiable_loss(plain_model, guide, X, loc)  # a leaf can be held
    assert torch.isfinite(given)


AGAIN = [STL(), DReG(particles=2), VIMCO(particles=2), ReweightedWakeSleep()]


@pytest.mark.parametrize("objective", AGAIN, ids=names)
def test_a_guide_that_is_another_when_run_again_is_refused(objective: Any) -> None:
    generator = np.random.default_rng(0)
    loc = torch.zeros(()).double().requires_grad_()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc * x + generator.normal(), 1.0))

    with pytest.raises(InputError, match="gives the draws of 'z' another probability when it is run again"):
        objective.differentiable_loss(plain_model, guide, X)


class ValuesRead(TorchDispatchMode):
    """Counts how often a value is read back to Python, for which a device is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.allclose.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", AGAIN, ids=names)
def test_a_step_reads_nothing_back_but_its_loss(objective: Any) -> None:
    """The first step holds the guide to its rerun, whatever was scored without gradients before."""
    loc = torch.zeros(()).double().requires_grad_()
    generator = np.random.default_rng(0)

    def guide(x: Tensor, noisy: bool = False) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc * x + (generator.normal() if noisy else 0.0), 1.0))

    def model(x: Tensor, noisy: bool = False) -> None:
        plain_model(x)

    with torch.no_grad():
        objective.loss(model, guide, X)
    with pyro.validation_enabled(False), ValuesRead() as first:
        objective.loss_and_grads(model, guide, X)
    assert first.count > 1
    with pyro.validation_enabled(False), ValuesRead() as later:
        objective.loss_and_grads(model, guide, X)
    assert later.count == 1
    with pytest.raises(InputError, match="when it is run again"):
        objective.loss_and_grads(model, guide, X, noisy=True)


def test_a_guide_that_draws_more_noise_when_run_again_is_refused() -> None:
    runs: list[int] = []
    loc = torch.zeros(()).double().requires_grad_()

    def guide(x: Tensor) -> None:
        runs.append(1)
        noise = sum(torch.rand(()).double() for _ in runs)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc * x + 0 * noise, 1.0))

    with pytest.raises(InputError, match="draws more noise when it is run again"):
        STL().differentiable_loss(plain_model, guide, X)


def labelled_data() -> Data:
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    return load_data(3 * np.eye(3)[labels] + 0.3 * generator.normal(size=(90, 3)), labels=labels)


def test_the_classifier_of_a_semi_supervised_model_trains_under_svi() -> None:
    """The loss has its term's gradient, and the value of the bound alone."""
    data = labelled_data()
    model = SemiSupervisedVAE((3,), 3, latent_dim=1, likelihood="normal")
    x, y, _ = data.train.batch(slice(0, 30))
    term = model.training_term(x, y).sum()
    right = torch.autograd.grad(term, model.classifier.network.last.weight)[0]
    torch.manual_seed(0)
    loss = ELBO().differentiable_loss(model.model, model.guide, x, y)
    loss.backward()
    torch.testing.assert_close(model.classifier.network.last.weight.grad, -right)
    torch.manual_seed(0)
    objective = ELBO()
    bound = objective.bound(objective.weigh(model.generate, model.infer, x, y)).sum()
    assert loss.item() == pytest.approx(-bound.item(), rel=1e-5)


@pytest.mark.parametrize(
    "options", [{"prior": {"vamp": {"components": 8}}}, {"start_at_data": True}], ids=["vamp", "bias"]
)
def test_fit_goes_on_from_what_svi_learnt(options: Any, vae: Callable[..., VAE], binary_data: Data) -> None:
    model = vae(**options)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.01}), loss=Trace_ELBO())
    for _ in range(3):
        svi.step(binary_data.train.x.float())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, binary_data, epochs=1, optimizer={"SGD": {"lr": 1e-12}}, progress=False)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_what_is_drawn_is_drawn_in_evaluation_mode() -> None:
    """Within `on_epoch` and of a new model too: no dropout noise, no statistics moved, and one row is enough."""
    network = {"mlp": {"hidden": [8], "norm": "batch", "dropout": 0.5}}
    model = VAE((4,), latent_dim=2, encoder=network, decoder=network).train()
    statistics = [value.clone() for value in model.buffers()]
    x, z = (torch.rand(1, 4) < 0.5).float(), torch.zeros(1, 2)
    first, second = model.decode(z).mean, model.decode(z).mean
    assert torch.equal(first, second)
    sample(model, 1)
    model.encode(x)
    impute(model, x, torch.tensor([[True, True, False, True]]), draws=2)
    assert all(torch.equal(before, after) for before, after in zip(statistics, model.buffers(), strict=True))
    assert all(module.training for module in model.modules())
    assert isinstance(model.likelihood, nn.Module)


def test_what_numpy_hides_and_what_no_likelihood_has_is_refused() -> None:
    model = VAE((3,), latent_dim=1, likelihood="poisson")
    x = np.ma.masked_array(np.ones((2, 3)), mask=np.eye(3)[:2].astype(bool))
    with pytest.raises(InputError, match=r"x is a masked array; give x.filled\(0\), and mask=~x.mask"):
        model.encode(x)
    mask = np.ones((1, 3), dtype=bool)
    for wrong in (1.5, -1.0):
        with pytest.raises(InputError, match="1 observed values of x lie outside the support of the likelihood"):
            impute(model, [[wrong, 2.0, 1.0]], mask)
    grey = VAE((3,), latent_dim=1)
    mask[0, 2] = False
    assert impute(grey, [[0.3, 0.7, 0.0]], mask, draws=2).shape == (2, 1, 3)


def test_labels_that_contradict_each_other_are_refused() -> None:
    model = SemiSupervisedVAE((3,), 3, latent_dim=1, likelihood="normal")
    with pytest.raises(InputError, match="latents of z, y were given, but SemiSupervisedVAE decodes z"):
        model.decode({"z": torch.zeros(1, 1), "y": torch.eye(3)[:1]}, [2])


def test_labels_that_are_unknown_are_not_counted_as_kept() -> None:
    x, labels = np.zeros((100, 2)), np.arange(100) % 4 - 1  # a quarter unknown
    data = load_data(x, labels=labels, labelled=20)
    assert int((data.train.y >= 0).sum()) == 20
    with pytest.raises(InputError, match=r"labelled was 80, but array has \d+ training labels"):
        load_data(x, labels=labels, labelled=80)
