"""Restricted Boltzmann machines held against the list of all joint states of x and h, in float64."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrolatent import InputError, fit, load_data
from pyrolatent.models.energies.rbm import RestrictedBoltzmannMachine as RBM  # noqa: N817

SIZES = {"bernoulli": (5, "bernoulli"), "categorical": (3, {"categorical": {"levels": 3}})}


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def machine(kind: str = "bernoulli", hidden: int = 4, labels: int = 0, **options: Any) -> RBM:
    width, visible = SIZES.get(kind, (3, kind))
    model = RBM((width,), labels, hidden=hidden, visible=visible, labels=bool(labels), **options)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)
    model.base_bias.normal_()
    return model


def joint(model: RBM) -> tuple[Tensor, Tensor, Tensor]:
    """Every x, every h, and -E(x, h) written out: b·t + c·h + t W h, (xs, hs)."""
    assert model.levels is not None
    x = torch.tensor(list(itertools.product(*(range(int(k)) for k in model.levels))), dtype=torch.float64)
    t = x
    if int(model.levels[0]) > 2:
        t = torch.nn.functional.one_hot(x.long(), int(model.levels[0])).flatten(1).double()
    if model.label_dim:
        codes = torch.eye(model.label_dim)
        t = torch.cat([t.repeat_interleave(model.label_dim, 0), codes.repeat(len(t), 1)], -1)
        x = x.repeat_interleave(model.label_dim, 0)
    h = torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(model.hidden_bias))))
    energy = (
        -(t @ model.visible_bias)[:, None] - h @ model.hidden_bias - torch.einsum("nv,vj,mj->nm", t, model.weight, h)
    )
    return x, h, -energy


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("hidden", [2, 4, 9])
def test_log_z_free_energy_and_conditionals_are_the_enumerations(kind: str, labels: int, hidden: int) -> None:
    model = machine(kind, hidden, labels)
    x, h, log_p = joint(model)
    assert model.log_z().item() == pytest.approx(log_p.flatten().logsumexp(0).item(), abs=1e-9)
    y = torch.arange(labels).repeat(len(x) // labels) if labels else None
    torch.testing.assert_close(model.free_energy(x, y), -log_p.logsumexp(-1))
    each = torch.stack([model.energy(x, row.expand(len(x), -1), y) for row in h], 1)
    torch.testing.assert_close(each, -log_p)
    torch.testing.assert_close(model.encode(x, y), log_p.softmax(-1) @ h)
    torch.testing.assert_close(model.log_prob(x, y).exp().sum(), torch.tensor(1.0))
    if labels:
        table = (-model.free_energy(x, y)).reshape(-1, labels)
        torch.testing.assert_close(model.classify(x[::labels]), table.softmax(-1))
        torch.testing.assert_close(model.free_energy(x[::labels]), -table.logsumexp(-1))
        some = torch.full((len(table),), -1).index_fill(0, torch.tensor([0]), 2)
        assert model.free_energy(x[::labels], some)[0].item() == pytest.approx(-table[0, 2].item())
        torch.testing.assert_close(model.free_energy(x[::labels], some)[1:], -table[1:].logsumexp(-1))


def test_both_layers_give_the_same_log_z() -> None:
    """The machine with its layers swapped is the same density over the other layer."""
    model = machine("bernoulli", 7)
    swapped = RBM((7,), hidden=5)
    swapped.weight.data = model.weight.data.T.clone()
    swapped.visible_bias.data, swapped.hidden_bias.data = model.hidden_bias.data, model.visible_bias.data
    assert model._few_visible
    assert not swapped._few_visible
    assert model.log_z().item() == pytest.approx(swapped.log_z().item(), abs=1e-9)


def test_the_gaussian_machine_is_a_mixture_of_normals() -> None:
    """p(x) = ∑_h π_h N(x | σ (b + W h), σ²), π_h ∝ exp(c·h + |b + W h|² / 2), one term for each hidden state."""
    model = machine("normal", 4)
    h = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    eta = model.visible_bias + h @ model.weight.T
    sigma = model.units.sigma
    pi = (h @ model.hidden_bias + 0.5 * eta.square().sum(-1)).log_softmax(0)
    x = 3 * torch.randn(20, 3)
    each = torch.distributions.Normal(sigma * eta, sigma).log_prob(x[:, None]).sum(-1)
    torch.testing.assert_close(model.log_prob(x), (pi + each).logsumexp(-1))


@pytest.mark.parametrize("kind", ["bernoulli", "categorical", "normal"])
def test_the_gradient_of_the_exact_likelihood_is_the_contrast_with_all_states_weighed(kind: str) -> None:
    """The closed form of `contrast` against automatic differentiation of the difference of free energies."""
    model = machine(kind, 4, centred=False)
    x = (torch.rand(6, *model.event_shape) * 2).floor() if kind != "normal" else torch.randn(6, 3)
    other = (torch.rand(3, *model.event_shape) * 2).floor() if kind != "normal" else torch.randn(3, 3)
    wanted = torch.autograd.grad(
        model.free_energy(x).mean() - model.free_energy(other).mean(), list(model.parameters())
    )
    value = model.contrast(model.state(x), model.state(other))
    assert value.item() == pytest.approx((model.free_energy(x).mean() - model.free_energy(other).mean()).item())
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_centred_gradients_are_those_of_the_centred_energy() -> None:
    """The step that they take is the one that plain gradients take in b', c', W of -(x-μ)b' - (h-λ)c' - (x-μ)W(h-λ)."""
    model = machine()
    x, other = torch.rand(6, 5).round(), torch.rand(6, 5).round()
    mu, lam = model.mu.uniform_(), model.activity.uniform_()
    weight = model.weight.detach().clone().requires_grad_()
    b = (model.visible_bias + model.weight @ lam).detach().requires_grad_()
    c = (model.hidden_bias + mu @ model.weight).detach().requires_grad_()

    def free_energy(x: Tensor) -> Tensor:
        field = c + (x - mu) @ weight
        return -(x - mu) @ b + field @ lam - torch.nn.functional.softplus(field).sum(-1)

    g_w, g_b, g_c = torch.autograd.grad(free_energy(x).mean() - free_energy(other).mean(), [weight, b, c])
    new_w = weight - 1e-3 * g_w
    new_b = b - 1e-3 * g_b - new_w @ lam
    new_c = c - 1e-3 * g_c - mu @ new_w
    model.contrast(model.state(x), model.state(other))
    model.adjust_gradients()
    for parameter, new in zip(
        (model.weight, model.visible_bias, model.hidden_bias), (new_w, new_b, new_c), strict=True
    ):
        torch.testing.assert_close(parameter.data - 1e-3 * parameter.grad, new, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical", "normal"])
def test_exact_draws_and_block_gibbs_have_the_exact_means(kind: str) -> None:
    """The mean of t(x) over independent draws, and over chains, within four standard errors of its exact value.

    Chains start from exact draws, so that each ends at one: were the sweep not to leave p as it is, its means move.
    """
    model = machine(kind)
    with torch.no_grad():
        model.weight.mul_(0.5)
    hidden = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    eta = model.visible_bias + hidden @ model.weight.T
    pi = (hidden @ model.hidden_bias + torch.stack([model.units.log_partition(e) for e in eta])).softmax(0)
    wanted = (pi[:, None] * model.units.mean(eta)).sum(0)
    state = model.exact_sample(20_000)
    for sweeps in (0, 5):
        for _ in range(sweeps):
            state = model.gibbs(state)
        error = state.v.std(0) / math.sqrt(len(state.v))
        assert ((state.v.mean(0) - wanted).abs() < 4 * error).all()


def test_block_gibbs_reaches_the_exact_marginals_from_the_base() -> None:
    model = machine("bernoulli", 3)
    x, _, log_p = joint(model)
    wanted = log_p.logsumexp(-1).softmax(0) @ x
    state = model.base(20_000)
    for _ in range(200):
        state = model.gibbs(state)
    assert ((state.v.mean(0) - wanted).abs() < 4 * state.v.std(0) / math.sqrt(20_000)).all()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("labels", [0, 3])
def test_the_path_to_the_base_is_a_machine_at_every_point(beta: float, labels: int) -> None:
    """log ∑_x p_β against the machine whose parameters are β W, β c, β b + (1 - β) b_0; a sweep keeps its means."""
    model = machine("bernoulli", 3, labels)
    there = machine("bernoulli", 3, labels)
    there.weight.data, there.hidden_bias.data = beta * model.weight, beta * model.hidden_bias
    there.visible_bias.data = beta * model.visible_bias + (1 - beta) * model.base_bias
    state = there.exact_sample(20_000)
    mine = model._layers(state.v)
    torch.testing.assert_close(model.log_density(mine, beta), there.log_density(state))
    if beta == 0:
        assert model.base_log_z().item() == pytest.approx(there.log_z().item())
    each = torch.full((20_000, 1), beta)
    moved = model.gibbs(model.gibbs(mine, beta), each)
    error = state.v.std(0) / math.sqrt(20_000)
    assert ((moved.v.mean(0) - state.v.mean(0)).abs() < 4 * math.sqrt(2) * error).all()


def test_states_are_restored_from_what_chains_keep() -> None:
    for kind, labels in (("bernoulli", 3), ("categorical", 3), ("normal", 2)):
        model = machine(kind, 4, labels)
        state = model.base(7)
        again = model.restore(model.flat(state))
        torch.testing.assert_close(again.v, state.v)
        torch.testing.assert_close(again.field, state.field)
        assert model.visible(state).shape == (7, 3 if kind != "bernoulli" else 5)


def test_the_base_has_the_data_s_means() -> None:
    """Two pseudo-datapoints, one of each value, are added to the ten of the data."""
    model = RBM((2,), hidden=3)
    x = torch.tensor([[1.0, 0.0]] * 7 + [[0.0, 0.0]] * 3)
    model.initialise(x)
    torch.testing.assert_close(torch.sigmoid(model.base_bias), torch.tensor([8 / 12, 1 / 12]))
    assert torch.equal(model.visible_bias, model.base_bias)
    normal = RBM((2,), hidden=3, visible="normal")
    x = torch.randn(100, 2) * torch.tensor([1.0, 5.0]) + 2
    normal.initialise(x)
    torch.testing.assert_close(normal.units.value(normal.base_bias[None])[0], x.mean(0))


def test_unknown_labels_are_drawn_from_their_posterior() -> None:
    model = machine("bernoulli", 3, 3)
    x = torch.rand(1, 5).round().expand(20_000, -1)
    codes = model.state(x, torch.full((20_000,), -1)).v[:, 5:]
    wanted = model.classify(x[:1])[0]
    assert ((codes.mean(0) - wanted).abs() < 4 * (wanted * (1 - wanted) / 20_000).sqrt()).all()


def test_hidden_units_without_a_label_are_averaged_over_it() -> None:
    """p(h_j = 1 | x) from the list of all joint states, and p(h_j = 1 | x, y) where y is known."""
    model = machine("bernoulli", 4, labels=3)
    x, h, log_p = joint(model)
    weights = log_p.unflatten(0, (-1, 3)).exp()  # (xs, labels, hs)
    one = x.unflatten(0, (-1, 3))[:, 0]
    wanted = torch.einsum("xlh,hj->xj", weights, h) / weights.sum((1, 2))[:, None]
    torch.testing.assert_close(model.encode(one), wanted)
    y = torch.arange(len(one)) % 4 - 1
    given = torch.einsum("xlh,hj->xlj", weights, h) / weights.sum(2)[..., None]
    own = given[torch.arange(len(one)), y.clamp(min=0)]
    torch.testing.assert_close(model.encode(one, y), torch.where(y[:, None] < 0, wanted, own))


@pytest.mark.parametrize("centred", [False, True])
def test_units_of_the_data_do_not_matter_to_the_gaussian_machine(centred: bool) -> None:
    """Trained on 10 x + 300, log p is what it is of x less log 10 for each entry."""
    side = torch.randint(2, (300, 1)) * 2.0 - 1
    x = side * torch.tensor([1.0, -1.0]) + 0.3 * torch.randn(300, 2)
    found = []
    for data in (x, 10 * x + 300):
        torch.manual_seed(0)
        model = RBM((2,), hidden=3, visible="normal", centred=centred, spread=0.1).double()
        loaded = load_data(data.float().numpy())
        fit(
            model, loaded, objective="exact_likelihood", optimizer={"Adam": {"lr": 0.03}}, epochs=40, batch_size=60,
            progress=False,
        )  # fmt: skip
        found.append(model.log_prob(data).mean().item())
    assert found[1] == pytest.approx(found[0] - 2 * math.log(10), abs=1e-3)
    assert found[0] > torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x).mean()


def test_a_sparsity_target_is_reached_and_not_passed() -> None:
    """With a cost that outweighs the data, the mean activity over them is the target."""
    torch.set_default_dtype(torch.float32)
    x = (torch.rand(500, 20) < 0.3).byte().numpy()
    model = RBM((20,), hidden=6)
    objective = {"cd": {"sparsity_target": 0.1, "sparsity_cost": 5.0}}
    fit(
        model, load_data(x), objective=objective, optimizer={"SGD": {"lr": 0.05}}, epochs=40, batch_size=50,
        progress=False,
    )  # fmt: skip
    assert model.encode(torch.from_numpy(x).float()).mean().item() == pytest.approx(0.1, abs=0.03)


def test_it_prints_its_units() -> None:
    assert "t = 5 bernoulli units and 3 label units, h = 4 binary units" in str(machine("bernoulli", 4, labels=3))
    assert "t = 3 categorical units of 3 values, h" in str(machine("categorical"))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="log Z cannot be summed"):
        RBM((30,), hidden=21).log_z()
    with pytest.raises(InputError, match="a model of labels"):
        RBM((3,), hidden=2, labels=True)
    with pytest.raises(InputError, match="label units"):
        RBM((3,), hidden=2).classify(torch.zeros(1, 3))
    with pytest.raises(InputError, match="greater than 0"):
        RBM((3,), hidden=0)
    with pytest.raises(InputError, match="there is no units 'normla'"):
        RBM((3,), hidden=2, visible="normla")


@pytest.mark.parametrize("units", [(0.01, 0.01, 0.01), (1000.0, 1000.0, 1000.0), (1e-5, 50.0, 1e4)])
def test_gaussian_units_are_in_the_units_of_the_data(units: tuple[float, ...]) -> None:
    """A machine begins and learns the same density at any scale: log p(x) differs by the Jacobian."""
    x = torch.randn(200, 3) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]]) + 2.0
    found = []
    for scale in (torch.ones(3), torch.tensor(units)):
        torch.manual_seed(0)
        model = RBM((3,), hidden=4, visible="normal", spread=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        model.initialise(x * scale)
        torch.testing.assert_close(model.units.sigma, (x * scale).std(0))
        for _ in range(20):
            optimizer.zero_grad()
            model.log_prob(x * scale).mean().neg().backward()
            optimizer.step()
        found.append((model.log_prob(x * scale) + scale.log().sum(), model.units.sigma / scale))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("min_scale", [1e-3, 0.1])
def test_the_scale_of_gaussian_units_has_a_floor(min_scale: float) -> None:
    """An entry that is constant drives σ down to the declared share of where it begins."""
    torch.set_default_dtype(torch.float32)
    x = torch.randn(400, 2)
    x[:, 1] = 0.5
    data = load_data(x.numpy())
    model = RBM((2,), hidden=2, visible={"normal": {"min_scale": min_scale}})
    with pytest.warns(UserWarning, match="has reached its lower bound"):
        fit(model, data, progress=False, objective="exact_likelihood", epochs=200, batch_size=400,
            optimizer={"SGD": {"lr": 1.0}})  # fmt: skip
    sigma = model.units.sigma / model.units.floor * min_scale
    assert sigma[1].item() == pytest.approx(min_scale, rel=0.02)
    assert sigma[0].item() > 0.5
    with pytest.raises(InputError, match=r"scale 0\.001 of normal units is not above their min_scale 0\.001"):
        RBM((2,), hidden=2, visible={"normal": {"scale": 1e-3}})


def test_gaussian_units_saved_without_a_floor_are_read_as_they_were() -> None:
    model, other = machine("normal"), machine("normal")
    state = model.state_dict()
    state["units.log_sigma"] = torch.randn(3)
    del state["units.log_above"], state["units.floor"]
    other.load_state_dict(state)
    torch.testing.assert_close(other.units.sigma, state["units.log_sigma"].exp())


def test_a_second_training_keeps_the_units_of_the_first() -> None:
    """Data of mean 0 to the last bit leave visible biases at 0, by which a new machine is told from a trained one."""
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]])
    model = RBM((2,), hidden=2, visible="normal")
    model.initialise(x)
    model.visible_bias.data.zero_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.initialise(10 * x)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
