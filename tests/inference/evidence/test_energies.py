"""Estimates of log Z and of log p(x) held against their exact values in float64."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrolatent import Data, EnergyModel, InputError, MarkovNetwork, evaluate, load_data
from pyrolatent import RestrictedBoltzmannMachine as RBM  # noqa: N817
from pyrolatent.inference.evidence.energies import Annealing, ais, exact_log_z, raise_log_prob, reverse_ais
from pyrolatent.inference.sampling.kernels import HMC, Gibbs, Langevin


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def machine(visible: Any = "bernoulli", labels: int = 0) -> RBM:
    model = RBM((5,), labels, hidden=6, visible=visible, labels=bool(labels))
    for parameter in (model.weight, model.visible_bias, model.hidden_bias):
        parameter.data.normal_()
    model.base_bias.normal_()
    return model


def network() -> MarkovNetwork:
    cliques = [[1, 2], [1, 3], [3, 4], [3, 5, 6], [5, 6, 7]]
    return MarkovNetwork((7,), cliques=cliques, cardinality=[2, 3, 2, 2, 3, 2, 2], spread=1.5)


MADE = {
    "bits": machine,
    "real numbers": lambda: machine("normal"),
    "whole numbers": lambda: machine({"categorical": {"levels": 3}}),
    "labels": lambda: machine(labels=3),
    "network": network,
}


@pytest.mark.parametrize("name", MADE)
def test_annealing_from_both_ends_brackets_the_exact_value(name: str) -> None:
    """Within 4.5 standard errors of log Z each; the means of several short runs lie on its two sides."""
    model: Any = MADE[name]()
    exact = exact_log_z(model).value
    forward = ais(model, chains=400, temperatures=100)
    backward = reverse_ais(model, model.exact_sample(400), "exact samples", temperatures=100)
    assert abs(forward.value - exact) < 4.5 * forward.error + 1e-9
    assert abs(backward.value - exact) < 4.5 * backward.error + 1e-9
    few = [ais(model, chains=2, temperatures=5).value for _ in range(100)]
    many = [reverse_ais(model, model.exact_sample(2), "exact samples", temperatures=5).value for _ in range(100)]
    low, high = torch.tensor(few), torch.tensor(many)
    assert low.mean() - 3 * low.std() / 10 < exact
    assert high.mean() + 3 * high.std() / 10 > exact
    assert low.mean() < exact + 3 * low.std() / 10
    assert low.mean() < high.mean()


def test_the_path_of_the_weights_begins_at_the_base_and_ends_at_the_estimate() -> None:
    """At every kept β the mean weight is log of the sum over all x of p̃_β."""
    model = machine()
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)))
    found = ais(model, chains=2000, temperatures=400)
    assert found.betas[0] == 0
    assert found.betas[-1] == 1
    for beta, log_w in zip(found.betas[::20].tolist(), found.log_weights[::20], strict=True):
        exact = model.log_density(model.state(x), beta).logsumexp(0).item()
        error = (log_w - log_w.max()).exp().std() / (log_w - log_w.max()).exp().mean() / math.sqrt(2000)
        assert abs(log_w.logsumexp(0).item() - math.log(2000) - exact) < 4.5 * error + 1e-9
    assert found.log_weights[-1].logsumexp(0).item() - math.log(2000) == pytest.approx(found.value)
    back = reverse_ais(model, model.exact_sample(100), "exact samples", temperatures=400)
    assert back.betas[0] == 0
    assert back.betas[-1] == 1
    torch.testing.assert_close(back.log_weights[0], model.base_log_z().detach().expand(100))
    assert math.log(100) - (-back.log_weights[-1]).logsumexp(0).item() == pytest.approx(back.value)


def test_a_path_of_one_step_is_plain_importance_sampling() -> None:
    """With one temperature w = p̃(x) / p̃_0(x), x ~ p_0."""
    model = machine()
    torch.manual_seed(3)
    x = model.base(1000)
    wanted = (model.log_density(x) - model.log_density(x, 0.0) + model.base_log_z()).logsumexp(0) - math.log(1000)
    torch.manual_seed(3)
    assert ais(model, chains=1000, temperatures=1).value == pytest.approx(wanted.item())


@pytest.mark.parametrize("name", ["bits", "network"])
@pytest.mark.parametrize("temperatures", [1, 3])
def test_raise_is_unbiased_for_the_annealing_model_and_below_it_in_expectation(name: str, temperatures: int) -> None:
    """p_ann(x) = p_0 T_1 ... T_K with the transition matrices of all states, estimated for the machine from T's law.

    For the machine T_β(x' | x) = ∑_h p_β(x' | h) p_β(h | x) is written out; for the network with single-variable sweeps
    the expectation over the chains of the weights is compared through ∑_x p_ann(x) = 1 instead.
    """
    if name == "network":
        model: Any = MarkovNetwork((3,), cliques=[[1, 2], [2, 3]], spread=1.0)
        x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
        w = raise_log_prob(model, x.repeat(20_000, 1), temperatures=temperatures).exp().reshape(-1, 8).sum(-1)
        assert abs(w.mean().item() - 1) < 4.5 * w.std().item() / math.sqrt(20_000)
        return
    model = machine()
    with torch.no_grad():  # weights of light tails, of which a standard error says something
        for parameter in model.parameters():
            parameter.mul_(0.5)
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)))
    h = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)))
    p = model.log_density(model.state(x), 0.0).softmax(0)
    for k in range(1, temperatures + 1):
        beta = k / temperatures
        field = beta * model.state(x).field
        p_h = (h @ field.T - torch.nn.functional.softplus(field).sum(-1)).T.exp()
        eta = beta * (model.visible_bias + h @ model.weight.T) + (1 - beta) * model.base_bias
        p_x = ((x @ eta.T) - torch.nn.functional.softplus(eta).sum(-1)).T.exp()
        p = p @ p_h @ p_x
    one = raise_log_prob(model, x.repeat(4000, 1), temperatures=temperatures).reshape(4000, -1)
    assert (one.mean(0) < p.log() + 4 * one.std(0) / math.sqrt(4000)).all()
    w = one.exp()
    assert ((w.mean(0) - p).abs() < 4.5 * w.std(0) / math.sqrt(4000)).all()


def test_raise_becomes_log_p_as_steps_grow() -> None:
    model = machine()
    x = model.visible(model.exact_sample(200))
    found = raise_log_prob(model, x, temperatures=2000)
    gap = model.log_prob(x) - found
    assert gap.mean().item() < 0.1
    assert gap.mean().item() > -4 * gap.std().item() / math.sqrt(200)


def test_annealing_of_energies_over_real_numbers() -> None:
    """A normal of known log Z, beside a base that is not it; and bits of any energy by single flips."""
    model = EnergyModel((2,), energy=lambda x: 2 * (x - 1).square().sum(-1), reference="normal")
    # exp(-2 |x - 1|² - |x|² / 2) = exp(-2.5 |x - 0.8|² - 0.4 · 2), the integral 2π / 5.
    exact = math.log(2 * math.pi / 5) - 0.8
    found = ais(model, chains=500, temperatures=200, kernel=HMC(step=0.3, leapfrogs=4))
    assert abs(found.value - exact) < 4.5 * found.error
    table = torch.randn(8)
    bits = EnergyModel((3,), energy=lambda x: table[(x @ torch.tensor([4.0, 2.0, 1.0])).long()], support="binary")
    found = ais(bits, chains=500, temperatures=50, kernel=Gibbs())
    assert abs(found.value - (-table).logsumexp(0).item()) < 4.5 * found.error


@pytest.fixture
def bits() -> Data:
    torch.set_default_dtype(torch.float32)
    return load_data(torch.rand(60, 5).round().numpy().astype("uint8"), labels=torch.arange(60).numpy() % 3)


def test_evaluate_gives_exact_log_p_with_what_annealing_says_beside(bits: Data) -> None:
    model = machine().float()
    x = bits.test.batch(slice(None)).x
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)))
    log_p = -model.free_energy(x) - (-model.free_energy(every)).logsumexp(0)
    found = evaluate(model, bits, annealing=Annealing(chains=200, temperatures=200, always=True, raised=3))
    assert found.log_evidence == pytest.approx(log_p.mean().item(), abs=1e-4)
    torch.testing.assert_close(found.each["log_evidence"], log_p.double(), atol=1e-4, rtol=0)
    assert found.log_z_method == "exact"
    assert found.measure == "mass"
    for estimate in (found.ais, found.reverse_ais):
        assert abs(estimate[0] - found.log_z) < 5 * estimate[1]
    assert found.reverse_starts == "exact samples, a bound"
    assert found.raised[1] == pytest.approx(found.each["log_evidence"][:3].mean().item())
    assert found.raised[2] == 3
    plain = evaluate(model, bits)
    assert plain.ais is None
    assert plain.chains is None


def test_evaluate_says_when_the_reverse_estimate_is_no_bound(bits: Data) -> None:
    model = RBM((5,), hidden=3).float()
    tractable = RBM.tractable
    try:
        RBM.tractable = property(lambda self: False)
        small = Annealing(chains=10, temperatures=5)
        found = evaluate(model, bits, annealing=small)
        assert found.log_z_method == "ais"
        assert found.reverse_starts == "chains begun at training data, not a bound"
        model.chains = torch.zeros(10, 5)
        assert evaluate(model, bits, annealing=small).reverse_starts == "persistent chains, not a bound"
    finally:
        RBM.tractable = tractable


def test_label_units_are_evaluated_as_a_classifier_and_as_a_density_of_x(bits: Data) -> None:
    model = machine(labels=3).float()
    found = evaluate(model, bits)
    x, y, _ = bits.test.batch(slice(None))
    table = torch.stack([-model.free_energy(x, torch.full_like(y, c)) for c in range(3)], -1)
    assert found.classification_error == pytest.approx((table.argmax(-1) != y).double().mean().item())
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)))
    assert (-model.free_energy(every) - found.log_z).exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_what_cannot_be_is_refused(bits: Data) -> None:
    with pytest.raises(InputError, match="chains was 0"):
        Annealing(chains=0)
    with pytest.raises(InputError, match="no split"):
        evaluate(machine().float(), bits, split="tset")
    with pytest.raises(InputError, match="events of shape"):
        evaluate(RBM((4,), hidden=2), bits)


def test_free_energies_are_of_the_data(bits: Data) -> None:
    model = machine().float()
    x: Tensor = bits.validation.batch(slice(None)).x
    found = evaluate(model, bits, split="validation")
    assert found.free_energy == pytest.approx(model.free_energy(x).mean().item(), abs=1e-5)


def test_annealing_takes_kernels_by_name_and_at_least_one_step() -> None:
    model = EnergyModel((2,))
    found = []
    for kernel in ("langevin", Langevin()):
        torch.manual_seed(0)
        found.append(ais(model, chains=4, temperatures=5, kernel=kernel).value)
    assert found[0] == found[1]
    for options in ({"temperatures": 0}, {"chains": 0}):
        with pytest.raises(InputError, match="was 0; at least 1 is needed"):
            ais(model, **options)
