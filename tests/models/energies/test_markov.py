"""Markov networks held against the list of all joint states, in float64; the seven-variable example and others."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyrolatent import InputError
from pyrolatent.models.energies import markov
from pyrolatent.models.energies.markov import MarkovNetwork

SEVEN = [[1, 2], [1, 3], [3, 4], [3, 5, 6], [5, 6, 7]]
NETWORKS: dict[str, tuple[list[list[int]], list[int]]] = {
    "seven": (SEVEN, [2] * 7),
    "seven of several values": (SEVEN, [2, 3, 2, 4, 3, 2, 2]),
    "a loop": ([[1, 2], [2, 3], [3, 4], [4, 1]], [3, 2, 3, 2]),
    "one clique": ([[3, 1, 2]], [2, 3, 4]),
    "single variables, two parts, and one in no clique": ([[1], [1, 2], [3, 4]], [2, 3, 2, 2, 3]),
}


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(name: str = "seven", **options: Any) -> MarkovNetwork:
    cliques, sizes = NETWORKS[name]
    return MarkovNetwork((len(sizes),), cliques=cliques, cardinality=sizes, spread=1.5, **options)


def listed(model: MarkovNetwork) -> tuple[Tensor, Tensor]:
    """Every x and its -E(x), each energy looked up by hand."""
    assert model.levels is not None
    states = list(itertools.product(*(range(int(k)) for k in model.levels)))
    tables = model.tables()
    energy = [
        sum(table[tuple(s[i - 1] for i in clique)] for table, clique in zip(tables, model.cliques, strict=True))
        for s in states
    ]
    return torch.tensor(states), -torch.stack([torch.as_tensor(e) for e in energy])


@pytest.mark.parametrize("name", NETWORKS)
def test_log_z_marginals_conditionals_and_mode_are_the_enumerations(name: str) -> None:
    model = network(name)
    x, log_p = listed(model)
    p = log_p.softmax(0)
    torch.testing.assert_close(model.free_energy(x), -log_p)
    assert model.log_z().item() == pytest.approx(log_p.logsumexp(0).item(), abs=1e-9)
    for i, j in itertools.permutations(range(1, x.shape[1] + 1), 2):
        wanted = torch.zeros(model._size(i), model._size(j)).index_put((x[:, i - 1], x[:, j - 1]), p, accumulate=True)
        torch.testing.assert_close(model.marginal(i, j), wanted)
        torch.testing.assert_close(model.marginal(i), wanted.sum(1))
        values = torch.arange(model._size(j))
        torch.testing.assert_close(model.marginal(i, given={j: values}), (wanted / wanted.sum(0)).T)
        torch.testing.assert_close(model.marginal(i, given={j: 0}), wanted[:, 0] / wanted[:, 0].sum())
    best = model.mode()
    assert model.free_energy(best[None]).item() == pytest.approx(-log_p.max().item())
    held = model.mode({1: torch.tensor([0, 1])})
    for value in (0, 1):
        assert held[value, 0] == value
        assert -model.free_energy(held)[value].item() == pytest.approx(log_p[x[:, 0] == value].max().item())
        partial = log_p[x[:, 0] == value].logsumexp(0)
        assert model.log_z({1: torch.tensor([0, 1])})[value].item() == pytest.approx(partial.item())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_of_log_z_is_the_marginals(name: str) -> None:
    """d log Z / d E_C(x_C) = -p(x_C), and the gradient of a likelihood is that of the enumeration."""
    model = network(name)
    x, _ = listed(model)
    gradients = torch.autograd.grad(model.log_z(), list(model.parameters()))
    for clique, gradient in zip(model.cliques, gradients, strict=True):
        torch.testing.assert_close(-gradient, model.marginal(*clique).detach())
    data = x[torch.randint(len(x), (20,))]
    mine = torch.autograd.grad(model.log_prob(data).mean(), list(model.parameters()))
    _, log_p = listed(model)
    row = (data @ (10 ** torch.arange(data.shape[1])))[:, None] == x @ (10 ** torch.arange(data.shape[1]))
    theirs = torch.autograd.grad(log_p.log_softmax(0)[row.long().argmax(1)].mean(), list(model.parameters()))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_draws_and_block_gibbs_have_the_exact_frequencies(name: str) -> None:
    """Frequencies of all joint states within four standard errors, of independent draws and of chains after a sweep."""
    model = network(name)
    x, log_p = listed(model)
    p = log_p.softmax(0)
    code = 10 ** torch.arange(x.shape[1])
    n = 20_000
    drawn = model.exact_sample(n)
    for state in (drawn, model.gibbs(drawn)):
        frequency = ((state.long() @ code)[:, None] == x @ code).double().mean(0)
        assert ((frequency - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt() + 1 / n).all()


def test_block_gibbs_reaches_the_exact_marginals_from_uniform_states() -> None:
    model = network("seven")
    state, n = model.base(20_000), 20_000
    for _ in range(100):
        state = model.gibbs(state)
    for i in range(1, 8):
        p = model.marginal(i)[1].item()
        assert abs(state[:, i - 1].mean().item() - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_draws_given_some_variables() -> None:
    model = network("seven")
    drawn = model.exact_sample(20_000, given={1: 1, 6: 0})
    assert (drawn[:, 0] == 1).all()
    assert (drawn[:, 5] == 0).all()
    p = model.marginal(5, given={1: 1, 6: 0})[1].item()
    assert abs(drawn[:, 4].mean().item() - p) < 4 * math.sqrt(p * (1 - p) / 20_000)


def test_the_blocks_of_the_sampler_hold_no_neighbours() -> None:
    model = network("seven")
    assert sorted(i for block in model.blocks for i in block) == list(range(1, 8))
    for block, clique in itertools.product(model.blocks, model.cliques):
        assert len({*block} & {*clique}) <= 1


def test_a_chain_of_a_hundred_variables_is_exact_by_matrix_products() -> None:
    """2^100 states: the transfer matrices' product is the truth; so is it for the probability of equal ends."""
    cliques = [[i, i + 1] for i in range(1, 100)]
    model = MarkovNetwork((100,), cliques=cliques, spread=1.0)
    product = torch.eye(2)
    for table in model.tables():
        product = product @ table.neg().exp()
    assert model.log_z().item() == pytest.approx(product.sum().log().item(), abs=1e-6)
    torch.testing.assert_close(model.marginal(1, 100), (product / product.sum()).detach(), check_dtype=False)
    assert "4 numbers" in str(model)
    assert model.exact_sample(3).shape == (3, 100)


def test_what_is_too_large_is_refused_and_still_sampled() -> None:
    cliques = [[i, j] for i in range(1, 31) for j in range(i + 1, 31)]
    model = MarkovNetwork((30,), cliques=cliques)
    assert not model.tractable
    assert "largest table of the elimination: at least 1,073,741,824 numbers" in str(model)
    for exact in (model.log_z, lambda: model.marginal(1), model.mode, lambda: model.exact_sample(1)):
        with pytest.raises(InputError, match="use chains"):
            exact()
    assert model.gibbs(model.base(4)).shape == (4, 30)


def test_energies_may_be_functions_modules_and_fixed_tables() -> None:
    """An Ising pair of energy -J s1 s2 has log Z = log(2 e^J + 2 e^-J)."""

    class Coupling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.strength = nn.Parameter(torch.tensor(0.7))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return -self.strength * (2 * a - 1) * (2 * b - 1)

    wanted = math.log(2 * math.exp(0.7) + 2 * math.exp(-0.7))
    table = torch.tensor([[-0.7, 0.7], [0.7, -0.7]])
    module = Coupling()
    for energy in (module, table, lambda a, b: -0.7 * (2 * a - 1) * (2 * b - 1)):
        model = MarkovNetwork((2,), cliques=[[1, 2]], energies=[energy])
        assert model.log_z().item() == pytest.approx(wanted)
    learned = MarkovNetwork((2,), cliques=[[1, 2]], energies=[module])
    learned.log_z().backward()
    assert module.strength.grad is not None
    assert module.strength.grad.item() == pytest.approx(math.tanh(0.7))


def test_a_network_is_a_factor_of_a_pyro_program() -> None:
    """With every variable enumerated under a uniform prior the evidence is log Z - ∑ log k_i."""
    model = network("seven of several values")

    def program() -> None:
        assert model.levels is not None
        values = [
            pyro.sample(f"X{i + 1}", dist.Categorical(torch.ones(int(k)) / int(k)), infer={"enumerate": "parallel"})
            for i, k in enumerate(model.levels)
        ]
        pyro.factor("network", -model.energy(*values))

    loss = TraceEnum_ELBO(max_plate_nesting=0).loss(program, lambda: None)
    assert -loss == pytest.approx((model.log_z() - model.base_log_z()).item(), abs=1e-6)


def test_it_prints_its_factorisation() -> None:
    assert "p(X1, ..., X7) = φ(X1, X2) φ(X1, X3) φ(X3, X4) φ(X3, X5, X6) φ(X5, X6, X7) / Z" in str(network())


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(InputError, match="at least one clique"):
        MarkovNetwork((3,), cliques=[])
    for clique in ([1, 1], [0, 1], [3, 4]):
        with pytest.raises(InputError, match="is no clique"):
            MarkovNetwork((3,), cliques=[clique])
    with pytest.raises(InputError, match="lists 2 variables, but x has 3"):
        MarkovNetwork((3,), cliques=[[1, 2]], cardinality=[2, 2])
    with pytest.raises(InputError, match="have the shape"):
        MarkovNetwork((2,), cliques=[[1, 2]], energies=[torch.zeros(2, 3)])
    with pytest.raises(InputError, match="there is no X8"):
        network().marginal(8)
    with pytest.raises(InputError, match="names a variable twice"):
        network().marginal(1, given={1: 0})


def test_what_is_given_is_held_to_the_values_of_its_variable() -> None:
    network = MarkovNetwork(
        (3,), cliques=[[1, 2], [2, 3]], cardinality=[2, 3, 2], energies=[[[0, 1, 2]] * 2, [[0, 1]] * 3]
    )
    for given, said in (
        ({2: -1}, "X2 was given as -1, but its values are the whole numbers from 0 to 2"),
        ({2: 3}, "from 0 to 2"),
        ({1: 0.5}, "X1 was given as 0.5"),
        ({2: torch.tensor([0, 5])}, "from 0 to 2"),
        ({4: 0}, "there is no X4"),
    ):
        for ask in (network.log_z, network.mode, lambda given: network.marginal(3, given=given)):
            with pytest.raises(InputError, match=said):
                ask(given)
    with pytest.raises(InputError, match="a marginal of no variable"):
        network.marginal()
    assert "largest table of the elimination: 6 numbers" in str(network)


# Limits.


class Largest(TorchDispatchMode):
    """Records the numbers in the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.untyped_storage().nbytes() // made.element_size())
        return made


@pytest.mark.slow
def test_many_draws_of_a_large_table_take_one_elimination() -> None:
    """2,000 draws from one clique of 14 variables: no tensor much larger than the table and the draws."""
    model = MarkovNetwork((14,), cliques=[[*range(1, 15)]], spread=2.0)
    with Largest() as largest:
        drawn = model.exact_sample(2000)
    assert largest.numbers <= max(2**14, 2000 * 14)
    for i in range(1, 15):
        p = model.marginal(i)[1].item()
        assert abs(drawn[:, i - 1].mean().item() - p) < 4.5 * math.sqrt(p * (1 - p) / 2000)
    with Largest() as largest:
        model.marginal(1, given={14: torch.zeros(10_000)})
    assert largest.numbers <= markov.LARGEST


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_given_of_many_datapoints_is_done_a_few_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One datapoint at a time the same numbers, and draws whose frequencies are the conditionals."""
    model = network(name)
    given = {2: torch.arange(7) % model._size(2)}
    wanted = [model.log_z(given), model.marginal(3, 1, given=given), model.mode(given)]
    large = markov.LARGEST
    monkeypatch.setattr(MarkovNetwork, "_feasible", lambda self, *asked: self._plan(*asked)._replace(total=large))
    found = [model.log_z(given), model.marginal(3, 1, given=given), model.mode(given)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    many = {2: torch.arange(4000) % model._size(2)}
    monkeypatch.undo()
    drawn = model.exact_sample(4000, many)
    assert torch.equal(drawn[:, 1], many[2].double())
    p = model.marginal(1, given=given)
    for value in range(model._size(2)):
        rows = drawn[many[2] == value, 0]
        frequency = torch.bincount(rows.long(), minlength=model._size(1)) / len(rows)
        error = (p[value] * (1 - p[value]) / len(rows)).sqrt()
        assert ((frequency - p[value]).abs() < 4.5 * error + 1 / len(rows)).all()


def test_a_network_that_is_too_large_is_exact_where_enough_is_given() -> None:
    """Thirty variables, each two of which are joined: given 26, four are left and are enumerated."""
    cliques = [[i, j] for i in range(1, 31) for j in range(i + 1, 31)]
    model = MarkovNetwork((30,), cliques=cliques, spread=1.0)
    given = {i: i % 2 for i in range(5, 31)}
    x = torch.tensor([[*first, *given.values()] for first in itertools.product([0, 1], repeat=4)])
    log_p = -model.free_energy(x)
    assert model.log_z(given).item() == pytest.approx(log_p.logsumexp(0).item())
    torch.testing.assert_close(model.mode(given), x[log_p.argmax()])
    torch.testing.assert_close(model.marginal(1, 2, 3, 4, given=given).flatten(), log_p.softmax(0))


def test_the_limits_of_exact_methods_are_said() -> None:
    chain = MarkovNetwork((30,), cliques=[[i, i + 1] for i in range(1, 30)])
    seven = network()
    for ask, said in (
        (lambda: chain.marginal(*range(1, 26)), "marginal of 25 variables is a table of 33,554,432 numbers"),
        (
            lambda: chain.marginal(*range(1, 21), given={30: torch.zeros(100)}),
            "1,048,576 numbers, for each of 100 datapoints, more than 16,777,216 in all; ask for fewer",
        ),
        (lambda: seven.exact_sample(5, {1: torch.zeros(4)}), "4 datapoints are given, but 5 draws were asked for"),
        (lambda: seven.exact_sample(0), "size was 0"),
        (lambda: seven.log_z({1: torch.zeros(4), 2: torch.zeros(3)}), "4 of X1, 3 of X2; give as many of each"),
        (lambda: seven.log_z({1: torch.zeros(4, 1)}), r"X1 was given with the shape \(4, 1\); give one value"),
        (lambda: seven.mode({1: torch.zeros(0)}), r"X1 was given with the shape \(0,\)"),
        (lambda: seven.mode({1: torch.nan}), "X1 was given as nan"),
        (lambda: MarkovNetwork((25,), cliques=[[*range(1, 26)]]), "has 33,554,432 joint values.*smaller cliques"),
        (
            lambda: MarkovNetwork((1,), cliques=[[1]], energies=[[0.0, math.inf]]),
            r"clique \(1,\) are not finite, which makes some evidence impossible; give nearly impossible values a",
        ),
        (lambda: MarkovNetwork((1,), cliques=[[1]], energies=[lambda a: (a / 0).log()]), "are not finite"),
    ):
        with pytest.raises(InputError, match=said):
            ask()


def test_energies_of_values_of_any_type() -> None:
    """Bits of any type are values and no masks, tables may be of whole numbers, and other values are refused."""
    model = MarkovNetwork((2,), cliques=[[1, 2]], energies=[torch.tensor([[0, 1], [2, 3]])])
    for kind in (torch.bool, torch.uint8, torch.int64, torch.float32):
        x = torch.tensor([[1, 0], [0, 1]]).to(kind)
        assert model.energy(*x.T).tolist() == [2, 1]
    assert model.exact_sample(5).shape == (5, 2)
    with pytest.raises(InputError, match="X1 has values from 0 to 1"):
        model.energy(torch.tensor([-1]), torch.tensor([0]))
    with pytest.raises(InputError, match="1 values were given, but there are 2 variables"):
        model.energy(torch.tensor([1]))
    with pytest.raises(InputError, match="name the variables"):
        model.exact_sample(2, [0, 1])  # type: ignore[arg-type]
