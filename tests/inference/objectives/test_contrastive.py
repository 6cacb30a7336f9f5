"""Kernels and objectives of unnormalised densities held against enumeration and closed forms, in float64."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrolatent import EnergyModel, InputError, MarkovNetwork
from pyrolatent import RestrictedBoltzmannMachine as RBM  # noqa: N817
from pyrolatent.declaration import build
from pyrolatent.inference.evidence.pseudo_likelihood import pseudo_likelihood
from pyrolatent.inference.objectives.score_matching import denoising_score_matching, sliced_score_matching
from pyrolatent.inference.sampling.kernels import HMC, Gibbs, Langevin, Tempering, run
from pyrolatent.models import UnnormalisedDensity


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def states(width: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=width)))


def machine(width: int = 4, hidden: int = 3, spread: float = 1.0, **options: Any) -> RBM:
    model = RBM((width,), hidden=hidden, centred=False, **options)
    for parameter in model.parameters():
        parameter.data = spread * torch.randn_like(parameter)
    return model


def gradients(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


class Quadratic(nn.Module):
    """f(x) = (x - m)' A (x - m) / 2: the energy of N(m, A^-1)."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([1.0, -0.5]))
        self.root = nn.Parameter(torch.tensor([[1.5, 0.0], [0.7, 0.8]]))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x - self.mean) @ self.root).square().sum(-1)

    def covariance(self) -> Tensor:
        return (self.root @ self.root.T).inverse().detach()


def test_cd_k_has_its_expected_gradient_which_goes_to_the_exact_one() -> None:
    """The distribution of chains after k sweeps is d T^k, with T(x' | x) = ∑_h p(x' | h) p(h | x) written out."""
    model = machine(spread=0.7)
    x, h = states(4), states(3)
    data = torch.tensor([0, 3, 3, 9, 14])
    d = torch.bincount(data, minlength=16) / 5.0
    p_h = torch.exp(-torch.nn.functional.binary_cross_entropy_with_logits(
        model.state(x).field[:, None].expand(-1, 8, -1), h.expand(16, 8, 3), reduction="none").sum(-1))  # fmt: skip
    logits = (model.visible_bias + h @ model.weight.T)[:, None]
    p_x = torch.exp(-torch.nn.functional.binary_cross_entropy_with_logits(
        logits.expand(-1, 16, -1), x.expand(8, 16, 4), reduction="none").sum(-1))  # fmt: skip
    transition = (p_h @ p_x).detach()
    each = torch.stack([
        torch.cat([g.flatten() for g in torch.autograd.grad(model.free_energy(s[None])[0], list(model.parameters()))])
        for s in x
    ])  # fmt: skip
    exact = (d - model.log_prob(x).exp().detach()) @ each
    distances = []
    for k in (1, 3, 10, 50):
        expected = (d - d @ transition.matrix_power(k)) @ each
        distances.append((expected - exact).norm().item())
        repeats = 4000
        build("objective", {"cd": {"steps": k}}).accumulate(model, (x[data].repeat(repeats, 1), None, None))
        p = d @ transition.matrix_power(k)
        error = ((p @ each.square() - (p @ each).square()) / (5 * repeats)).clamp(min=0).sqrt()
        assert ((gradients(model) - expected).abs() < 4.5 * error + 1e-12).all()
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.01 * distances[0]


@pytest.mark.parametrize("objective", ["pcd", "tempered_pcd"])
def test_persistent_chains_follow_the_model_and_give_the_exact_gradient(objective: str) -> None:
    """The mean gradient over many steps with the parameters held, within 4.5 standard errors (chains are many)."""
    model = machine(spread=0.7)
    x = states(4)[[0, 3, 9]]
    wanted = torch.autograd.grad(-model.log_prob(x).mean(), list(model.parameters()))
    options = {"chains": 5000} | ({"levels": 4} if objective == "tempered_pcd" else {})
    made = build("objective", {objective: options})
    for _ in range(60):
        made.accumulate(model, (x, None, None))
        found = gradients(model)
    p = model.log_prob(states(4)).exp().detach()
    each = torch.stack([
        torch.cat([g.flatten() for g in torch.autograd.grad(model.free_energy(s[None])[0], list(model.parameters()))])
        for s in states(4)
    ])  # fmt: skip
    error = ((p @ each.square() - (p @ each).square()) / 5000).sqrt()
    assert ((found - torch.cat([w.flatten() for w in wanted])).abs() < 4.5 * error).all()
    assert model.chains.shape == (5000, 4)
    assert len(model.tempered_chains) == 5000 * (options.get("levels", 1) - 1)


def test_restarted_chains_begin_at_the_base() -> None:
    model = machine()
    model.visible_bias.data.fill_(30.0)  # chains of the model are all ones ...
    model.base_bias.fill_(-30.0)  # ... and those of the base all zeros
    model.weight.data.zero_()
    made = build("objective", {"pcd": {"chains": 2000, "restarts": 0.25, "steps": 1}})
    seen = []
    made.move = lambda model, state: seen.append(state) or state
    model.chains = torch.ones(2000, 4)
    made.negatives(model, None)
    share = 1 - seen[0].v.mean().item()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)


@pytest.mark.parametrize("made", [
    machine(4, 3), MarkovNetwork((4,), cliques=[[1, 2], [2, 3, 4]], spread=1.0),
    RBM((4,), hidden=3, visible={"categorical": {"levels": 2}}),
])  # fmt: skip
def test_exact_likelihood_is_the_enumeration_and_learns_to_the_optimum(made: UnnormalisedDensity) -> None:
    """Its value and gradient; a network of one clique of all variables then learns the frequencies exactly."""
    made = made.double()
    x = states(4)[[0, 3, 3, 9]]
    value = build("objective", "exact_likelihood").accumulate(made, (x, None, None))
    mine = gradients(made)
    log_p = -made.free_energy(states(4))
    wanted = (-made.free_energy(x) - log_p.logsumexp(0)).sum()
    assert value.item() == pytest.approx(wanted.item())
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(-wanted / 4, list(made.parameters()))])
    if not (isinstance(made, RBM) and made.centred):
        torch.testing.assert_close(mine, theirs)


def test_a_saturated_network_learns_the_frequencies() -> None:
    """With one clique of all variables the maximum-likelihood p(x) are the frequencies of the data."""
    model = MarkovNetwork((2,), cliques=[[1, 2]])
    x = torch.tensor([[0.0, 0.0]] * 5 + [[0.0, 1.0]] * 2 + [[1.0, 1.0]] * 3 + [[1.0, 0.0]] * 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    objective = build("objective", "exact_likelihood")
    for _ in range(500):
        optimizer.zero_grad()
        objective.accumulate(model, (x, None, None))
        optimizer.step()
    torch.testing.assert_close(
        model.marginal(1, 2).detach(), torch.tensor([[0.25, 0.1], [0.5, 0.15]]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("kernel", [HMC(step=0.4, leapfrogs=5), Langevin(step=0.5), Langevin(step=0.3, steps=4)])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_kernels_over_real_numbers_leave_a_normal_as_it_is(kernel: Any, beta: float) -> None:
    """From exact draws the mean and covariance stay; p_β ∝ N(0, I)^(1-β) N(m, S)^β is normal of precision
    (1 - β) I + β S^-1. From far away chains come to it.
    """
    f = Quadratic()
    model = EnergyModel((2,), energy=f, reference="flat")
    precision = (1 - beta) * torch.eye(2) + beta * f.covariance().inverse()
    covariance = precision.inverse()
    mean = covariance @ (beta * f.covariance().inverse() @ f.mean.detach())
    n = 5000
    exact = torch.distributions.MultivariateNormal(mean, covariance).sample((n,))
    far = torch.full((n, 2), 3.0)
    for state, moves in ((exact, 5), (far, 100)):
        for _ in range(moves):
            state = kernel(model, state, beta)
        assert ((state.mean(0) - mean).abs() < 4.5 * covariance.diagonal().sqrt() / math.sqrt(n)).all()
        square = (state - mean).square()
        assert ((square.mean(0) - covariance.diagonal()).abs() < 4.5 * square.std(0) / math.sqrt(n)).all()


def test_langevin_without_acceptance_is_biased_as_its_step_says() -> None:
    """For N(0, 1) the chain x' = (1 - s²/2) x + s e has the variance 1 / (1 - s²/4)."""
    model = EnergyModel((1,), energy=lambda x: 0.5 * x.square(), reference="flat")
    kernel = Langevin(step=1.0, adjusted=False, steps=50)
    x = kernel(model, torch.randn(40_000, 1))
    assert abs(x.var().item() - 4 / 3) < 4.5 * 4 / 3 * math.sqrt(2 / 40_000)


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_bits_of_any_energy_are_drawn_with_the_frequencies_of_the_enumeration(beta: float) -> None:
    """An energy of all three bits at once: exact draws stay exact after a sweep."""
    table = torch.randn(8)
    model = EnergyModel((3,), energy=lambda x: table[(x @ torch.tensor([4.0, 2.0, 1.0])).long()], support="binary")
    p = (-beta * table).softmax(0)
    index = torch.multinomial(p, 20_000, replacement=True)
    moved = Gibbs()(model, states(3)[index], beta)
    frequency = torch.bincount((moved @ torch.tensor([4.0, 2.0, 1.0])).long(), minlength=8) / 20_000
    assert ((frequency - p).abs() < 4.5 * (p * (1 - p) / 20_000).sqrt()).all()


def test_tempering_finds_both_modes_where_gibbs_stays_in_one() -> None:
    """Two modes, all ones and all zeros, that no sweep joins; the share of ones is known by enumeration."""
    model = RBM((8,), hidden=1)
    model.weight.data.fill_(6.0)
    model.hidden_bias.data.fill_(-24.0)
    model.visible_bias.data.fill_(-3.0)
    p = (-model.free_energy(states(8))).softmax(0)
    ones = (p[states(8).mean(-1) > 0.5]).sum().item()
    chains, levels = 500, 12
    state = model.restore(torch.zeros(levels * chains, 8))
    tempering = Tempering(levels, Gibbs())
    for _ in range(150):
        state = tempering(model, state)
    share = (state.v[:chains].mean(-1) > 0.5).double().mean().item()
    assert abs(share - ones) < 4.5 * math.sqrt(ones * (1 - ones) / chains)
    *_, stuck = run(model, model.restore(torch.zeros(chains, 8)), 150)
    assert (stuck.v.mean(-1) > 0.5).double().mean().item() < 0.1 * ones


def test_a_sweep_of_tempering_leaves_all_its_levels_as_they_are() -> None:
    """Exact draws at every β have the exact means after moves and swaps."""
    model = machine(spread=0.8)
    model.base_bias.normal_()
    levels, chains = 3, 20_000
    x = states(4)
    p = [model.log_density(model.state(x), beta).softmax(0) for beta in (1.0, 0.5, 0.0)]
    start = torch.cat([x[torch.multinomial(each, chains, replacement=True)] for each in p])
    state = model.restore(start)
    for _ in range(3):
        state = Tempering(levels, Gibbs())(model, state)
    for level, each in enumerate(p):
        found = state.v[level * chains : (level + 1) * chains]
        assert ((found.mean(0) - each @ x).abs() < 4.5 * found.std(0) / math.sqrt(chains)).all()


def test_score_matching_is_what_its_formula_says_for_a_normal() -> None:
    """For N(m, A^-1): s = -A (x - m), so sliced score matching has the mean |A (x - m)|² / 2 - tr A over directions."""
    f = Quadratic()
    model = EnergyModel((2,), energy=f, reference="flat")
    precision = f.covariance().inverse()
    x = torch.randn(3, 2)
    wanted = 0.5 * ((x - f.mean) @ precision).square().sum(-1) - precision.trace()
    found = sliced_score_matching(model, x, projections=20_000)
    # E[(v' A v)²] - (tr A)² = 2 tr A², and E[|s|²] has no noise: it does not depend on v.
    assert ((found - wanted).abs() < 4.5 * math.sqrt(2 * (precision @ precision).trace() / 20_000)).all()
    copies = x[:1].expand(40_000, -1)
    each = denoising_score_matching(model, copies, 0.5).detach()
    m = (x[0] - f.mean.detach()) @ precision
    b = torch.eye(2) - 0.25 * precision  # σ s + e = -σ A (x - m) + (I - σ² A) e
    assert abs(each.mean().item() - 0.5 * (0.25 * m @ m + (b @ b).trace()).item()) < 4.5 * each.std().item() / 200


@pytest.mark.parametrize("objective", [
    "sliced_score_matching", {"denoising_score_matching": {"noise": 0.3}},
    *(pytest.param(each, marks=pytest.mark.slow) for each in (
        {"pcd": {"chains": 4000, "kernel": {"hmc": {"step": 0.4}}}},
        {"cd": {"steps": 5, "kernel": {"langevin": {"step": 0.6}}}},
    )),
])  # fmt: skip
def test_objectives_over_real_numbers_fit_a_normal(objective: Any) -> None:
    """The optimum is known: the sample's mean, and its covariance with σ² I added by denoising."""
    f = Quadratic()
    model = EnergyModel((2,), energy=f, reference="flat")
    x = torch.randn(4000, 2) @ torch.tensor([[1.0, 0.0], [0.6, 0.7]]) + torch.tensor([0.6, 0.2])
    made = build("objective", objective)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    for _ in range(300):
        optimizer.zero_grad()
        made.accumulate(model, (x, None, None))
        optimizer.step()
        scheduler.step()
    added = 0.09 if "denoising" in str(objective) else 0.0
    torch.testing.assert_close(f.mean.detach(), x.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(f.covariance(), x.T.cov() + added * torch.eye(2), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", ["machine", "network", "labels"])
def test_pseudo_likelihood_is_the_sum_of_conditionals_of_the_enumeration(kind: str) -> None:
    if kind == "network":
        model: Any = MarkovNetwork((3,), cliques=[[1, 2], [2, 3]], cardinality=[2, 3, 2], spread=1.0)
    else:
        model = RBM((3,), 2, hidden=3, labels=kind == "labels").double()
        model.weight.data.normal_()
    sizes = [int(k) for k in model.levels]
    x = torch.tensor(list(itertools.product(*map(range, sizes)))).double()
    p = (-model.free_energy(x)).softmax(0).reshape(sizes).detach()
    wanted = torch.stack([(p / p.sum(i, keepdim=True)).log() for i in range(3)]).sum(0).flatten()
    torch.testing.assert_close(pseudo_likelihood(model, x), wanted)
    many = pseudo_likelihood(model, x.repeat(4000, 1), entries=1).reshape(4000, -1)
    assert ((many.mean(0) - wanted).abs() < 4.5 * many.std(0) / math.sqrt(4000) + 1e-9).all()


def test_weight_decay_and_sparsity_add_their_gradients() -> None:
    """(1/2) λ |W|² and a pull on the mean activity q of (q - target) in the units' inputs."""
    model = machine()
    state = model.state(torch.rand(9, *model.event_shape).round())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.penalise(state, 0.3, None, 0.1)
    torch.testing.assert_close(model.weight.grad, 0.3 * model.weight.detach())
    model.zero_grad(set_to_none=False)
    model.penalise(state, 0.0, 0.2, 0.1)
    pull = 0.1 * (torch.sigmoid(state.field).mean(0) - 0.2)
    torch.testing.assert_close(model.hidden_bias.grad, pull)
    torch.testing.assert_close(model.weight.grad, torch.outer(state.v.mean(0), pull))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="is sampled by kernel: gibbs"):
        HMC()(machine(), machine().base(2))
    with pytest.raises(InputError, match="declare kernel: hmc or langevin"):
        Gibbs()(EnergyModel((2,)), torch.zeros(1, 2))
    network = MarkovNetwork((4,), cliques=[[1, 2]])
    with pytest.raises(InputError, match="no hidden units"):
        build("objective", {"cd": {"weight_decay": 0.1}}).accumulate(network, (states(4), None, None))
