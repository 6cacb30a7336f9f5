"""Programs as Pyro's users write them: each is right under our objectives, or refused by the name of what to change."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyrolatent import VAE, InputError, LatentVariableModel, check, evaluate, fit, load_data
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
from pyrolatent.inference.weights import weigh

Program = Callable[..., None]
ALL = [
    ELBO(),
    AnalyticELBO(),
    IWAE(particles=3),
    STL(particles=2),
    DReG(particles=3),
    Renyi(alpha=0.4, particles=3),
    PartiallyIWAE(groups=2, particles=2),
    VIMCO(particles=3),
    ReweightedWakeSleep(particles=3),
]


def names(objective: Any) -> str:
    return type(objective).__name__


@pytest.fixture
def x() -> Tensor:
    return 5 * torch.randn(40, dtype=torch.float64) + torch.randn(40, dtype=torch.float64)


def evidence(x: Tensor) -> Tensor:
    return dist.Normal(0.0, 26**0.5).log_prob(x)


def exact(x: Tensor) -> dist.Normal:
    return dist.Normal(x * 25 / 26, (25 / 26) ** 0.5)


def subsampling(rows: list[list[int]]) -> tuple[Program, Program]:
    """z_n ~ N(0, 25), x_n ~ N(z_n, 1) with the exact posterior; keeps the rows that each function sees."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as index:
            rows.append(index.tolist())
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 5.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as index:
            rows.append(index.tolist())
            pyro.sample("z", exact(x[index]))

    return model, guide


@pytest.mark.parametrize("objective", ALL, ids=names)
def test_a_plate_that_subsamples_is_drawn_once(objective: Any, x: Tensor) -> None:
    """In every run both functions see the same rows, and with the exact posterior the loss is these rows' evidence."""
    rows: list[list[int]] = []
    pair = subsampling(rows)
    objective.beta = 1.0
    for _ in range(5):
        del rows[:]
        loss = objective.differentiable_loss(*pair, x).item()
        last = rows[-1]
        assert sum(row == last for row in rows) >= 2
        if not isinstance(objective, AnalyticELBO):
            assert loss == pytest.approx(-10 * evidence(x[last]).sum().item())
    if isinstance(objective, AnalyticELBO):  # right in the mean over draws, of which 0.5 (x - z)^2 varies
        losses = torch.tensor([objective.loss(*pair, x) for _ in range(400)])
        assert abs(losses.mean() + evidence(x).sum()) < 4.5 * losses.std() / 20


def test_running_the_guide_again_keeps_the_rows(x: Tensor) -> None:
    """At the same draws the guide scores them as before."""
    for _ in range(5):
        weights = weigh(*subsampling([]), x, particles=3)
        again = weights.rerun({"z": weights.guide_trace.nodes["z"]["value"]})
        torch.testing.assert_close(again.nodes["z"]["fn"].loc.expand(3, 4), weights.guide_trace.nodes["z"]["fn"].loc)


def factored(
    log_factor: Callable[[Tensor, Tensor, Tensor], Tensor], has_rsample: bool = True
) -> tuple[Program, Program]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(0.5, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(a * x, 1.0))
            pyro.factor("penalty", log_factor(a, x, z), has_rsample=has_rsample)

    return model, guide


def gradients(loss: Any, pair: tuple[Program, Program], x: Tensor) -> tuple[float, float]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    value = loss.differentiable_loss(*pair, x)
    value.backward()
    return value.item(), pyro.param("a").grad.item()


@pytest.mark.parametrize(
    "log_factor", [lambda a, x, z: -3 * (a * x) ** 2, lambda a, x, z: a * z.sin(), lambda a, x, z: -(z**2) / 4]
)
def test_a_factor_in_the_guide_is_counted_as_pyro_counts_it(log_factor: Any, x: Tensor) -> None:
    """Value and gradient at the same draws, whether the factor depends on parameters, draws or both."""
    pair = factored(log_factor)
    for ours, pyros in ((ELBO(), Trace_ELBO()), (AnalyticELBO(), TraceMeanField_ELBO())):
        assert gradients(ours, pair, x) == pytest.approx(gradients(pyros, pair, x))


def test_a_factor_in_the_guide_is_part_of_every_objective(x: Tensor) -> None:
    """With the draws held and a constant factor c, every loss rises by c a datapoint; the wake of rws refuses it."""
    pair, plain = factored(lambda a, x, z: 0.3 + 0 * z), factored(lambda a, x, z: 0 * z)
    for objective in ALL:
        objective.beta = 1.0
        if isinstance(objective, ReweightedWakeSleep):
            with pytest.raises(InputError, match=r"rws .* no place for 'penalty'"):
                gradients(objective, pair, x)
            continue
        assert gradients(objective, pair, x)[0] == pytest.approx(gradients(objective, plain, x)[0] + 0.3 * len(x))


def test_the_gradient_of_dreg_has_the_factor_s(x: Tensor) -> None:
    """Its mean over 4,000 datapoints is that of iwae, by the standard error of their difference."""
    x = x.repeat(1000)[:4000] / 5
    found = []
    for objective in (IWAE(particles=2), DReG(particles=2)):
        a = torch.full((len(x),), 0.5, dtype=torch.float64, requires_grad=True)

        def guide(x: Tensor, a: Tensor = a) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(a * x, 1.0))
                pyro.factor("penalty", a * z.sin(), has_rsample=True)

        objective.differentiable_loss(factored(lambda a, x, z: z)[0], guide, x).backward()
        found.append(a.grad)
    difference = found[0] - found[1]
    assert abs(difference.mean()) < 4.5 * difference.std() / len(x) ** 0.5


def test_a_factor_without_a_path_is_refused_by_name(x: Tensor) -> None:
    pair = factored(lambda a, x, z: -3 * (a * x) ** 2, has_rsample=False)
    for objective in (ELBO(), IWAE(particles=2), VIMCO(particles=2)):
        with pytest.raises(InputError, match=r"guide observes 'penalty'.*give pyro.factor has_rsample=True"):
            gradients(objective, pair, x)


def test_a_factor_in_the_guide_is_no_part_of_the_proposal(x: Tensor) -> None:
    """Evidence by importance sampling is that of the draws alone."""
    pyro.clear_param_store()
    _, guide = factored(lambda a, x, z: -3 * z**2)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    log_weights = weigh(model, guide, x / 5, particles=20_000).log_weights()
    error = (log_weights - log_weights.logsumexp(0)).exp().square().sum(0).sqrt()
    found = log_weights.logsumexp(0) - math.log(20_000)
    assert ((found - dist.Normal(0.0, 2**0.5).log_prob(x / 5)).abs() < 5 * error).all()


class WithFactor(VAE):
    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))
            pyro.factor("penalty", x.sum(-1), has_rsample=True)


def test_evaluate_says_which_training_terms_it_left_out() -> None:
    model, data = WithFactor((4,), latent_dim=1), load_data((torch.rand(60, 4) < 0.5).float().numpy())
    found = evaluate(model, data, particles=10)
    assert found.left_out == ["penalty"]
    assert evaluate(VAE((4,), latent_dim=1), data, particles=10).left_out == []


class Norms(nn.Module):
    """A network that normalises over the batch of exactly (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).double()

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, scale = self.net(x).unbind(-1)
            pyro.sample("z", dist.Normal(loc, scale.exp()))


def three(x: Tensor) -> Tensor:
    return torch.stack([x, x**2, x.sin()], -1)


def norm_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 3]).to_event(1), obs=x)


@pytest.mark.parametrize("objective", [ELBO(), STL(), IWAE(particles=1)], ids=names)
def test_one_particle_adds_no_plate(objective: Any, x: Tensor) -> None:
    """Programs that do not broadcast over particles work, and the loss is Pyro's at the same draws."""
    norms, x = Norms(), three(x / 5)
    objective.beta = 1.0
    torch.manual_seed(0)
    pyros = Trace_ELBO().loss(norm_model, norms.guide, x)
    torch.manual_seed(0)
    weights = objective.weigh(norm_model, norms.guide, x)
    assert weights.log_weights().shape == weights.log_prior["z"].shape == (1, len(x))
    assert weights.latents["z"].shape == (1, len(x))
    assert -objective.bound(weights).sum().item() == pytest.approx(pyros)


@pytest.mark.parametrize(
    "objective", [ELBO(), STL(), DReG(particles=3), VIMCO(particles=3), ReweightedWakeSleep(particles=3)], ids=names
)
def test_running_statistics_move_once_a_step(objective: Any, x: Tensor) -> None:
    """As a run of the guide alone moves them, though the guide is run again to score its draws."""
    norms, once, x = Norms(), Norms(), three(x / 5)
    once.load_state_dict(norms.state_dict())
    once.guide(x)
    objective.beta = 1.0
    objective.differentiable_loss(norm_model, norms.guide, x).backward()
    for name, value in once.net[1].named_buffers():
        torch.testing.assert_close(norms.net[1].get_buffer(name), value)


def test_a_plate_of_the_user_s_may_be_called_particles(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("particles", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 5.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("particles", len(x)):
            pyro.sample("z", exact(x))

    for objective in (ELBO(particles=2), IWAE(particles=3)):
        assert objective.loss(model, guide, x) == pytest.approx(-evidence(x).sum().item())


def test_without_latents_every_bound_is_the_likelihood(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 26**0.5), obs=x)

    for objective in ALL:
        assert objective.loss(model, lambda x: None, x) == pytest.approx(-evidence(x).sum().item())


def test_what_is_only_recorded_is_not_scored(x: Tensor) -> None:
    """A deterministic site outside the plate is no site outside the plate."""

    def model(x: Tensor) -> None:
        pyro.deterministic("mean", x.mean())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 5.0))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.deterministic("count", torch.tensor(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", exact(x))

    for objective in (ELBO(), IWAE(particles=3), DReG(particles=2)):
        objective.beta = 1.0
        assert objective.loss(model, guide, x) == pytest.approx(-evidence(x).sum().item())


def one_by_one(draw: Callable[[Any, Tensor], None]) -> Program:
    def program(x: Tensor) -> None:
        for n in pyro.plate("data", len(x)):
            draw(n, x)

    return program


def test_a_sequential_plate_is_right_where_it_can_be_and_else_refused(x: Tensor) -> None:
    def draw(n: Any, x: Tensor) -> None:
        z = pyro.sample(f"z{n}", dist.Normal(x.new_zeros(()), 5.0))
        pyro.sample(f"x{n}", dist.Normal(z, 1.0), obs=x[n])

    pair = one_by_one(draw), one_by_one(lambda n, x: pyro.sample(f"z{n}", exact(x[n])))
    x = x[:5]
    assert ELBO(particles=3).loss(*pair, x) == pytest.approx(-evidence(x).sum().item())
    with pytest.raises(InputError, match=r"plate 'data' runs over its datapoints one by one.*with pyro.plate"):
        IWAE(particles=3).loss(*pair, x)


def test_a_program_without_a_plate_is_one_datapoint(x: Tensor) -> None:
    """All rows depend on one latent: the evidence is that of N(0, I + 11')."""
    x = x[:6] / 5

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 6]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x.sum() / 7, (1 / 7) ** 0.5))

    truth = dist.MultivariateNormal(torch.zeros(6).double(), torch.eye(6).double() + 1).log_prob(x).item()
    for objective in (ELBO(particles=2), IWAE(particles=3), DReG(particles=3), VIMCO(particles=3)):
        objective.beta = 1.0
        assert objective.bound(objective.weigh(model, guide, x)).shape == (1,)
        assert objective.loss(model, guide, x) == pytest.approx(-truth)


def shared_latent(x: Tensor, guide: bool) -> None:
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", 80, subsample=torch.arange(len(x))):
        if guide:
            pyro.sample("z", dist.Normal(x / 2, 1.0))
        else:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z * weight, 1.0), obs=x)


def test_the_elbo_sums_sites_of_several_scales_as_pyro_does(x: Tensor) -> None:
    """A latent outside the plate, and a plate that subsamples: equal to Trace_ELBO at the same draws."""
    pair = (lambda x: shared_latent(x, False)), (lambda x: shared_latent(x, True))
    for particles in (1, 4):
        torch.manual_seed(0)
        pyros = Trace_ELBO(particles, max_plate_nesting=1, vectorize_particles=True).loss(*pair, x)
        torch.manual_seed(0)
        assert ELBO(particles=particles).loss(*pair, x) == pytest.approx(pyros)
    with pytest.raises(InputError, match="'weight' lies outside the plate 'data'"):
        IWAE(particles=3).loss(*pair, x)


def test_num_samples_is_no_exact_sum(x: Tensor) -> None:
    """n draws of a site side by side are averaged: K n weights, and the ELBO's mean is the evidence."""
    model, _ = factored(lambda a, x, z: z)
    x = x / 5

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0), infer={"enumerate": "parallel", "num_samples": 500})

    def plain(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    inside, outside = ELBO(particles=2), ELBO(particles=1000)
    each = weigh(model, plain, x, particles=1000).log_weights()
    error = (each.var(0) / 1000).sum().sqrt().item()
    assert abs(inside.loss(model, guide, x) - outside.loss(model, plain, x)) < 4.5 * 2**0.5 * error
    truth = dist.Normal(0.0, 2**0.5).log_prob(x)
    assert abs(IWAE(particles=2).loss(model, guide, x) + truth.sum().item()) < 0.5
    for objective in (STL(), DReG(particles=2), VIMCO(particles=2), ReweightedWakeSleep(particles=2)):
        with pytest.raises(InputError, match=r"'z' is drawn num_samples times at once.*give particles"):
            objective.loss_and_grads(model, guide, x)


def test_states_in_an_inner_plate_are_refused(x: Tensor) -> None:
    def program(x: Tensor, guide: bool) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 3, dim=-1):
            s = pyro.sample("s", dist.Bernoulli(0.4), infer={"enumerate": "parallel"} if guide else {})
            if not guide:
                pyro.sample("x", dist.Normal(s.double(), 1.0), obs=x.unsqueeze(-1).expand(-1, 3))

    pair = (lambda x: program(x, False)), (lambda x: program(x, True))
    with pytest.raises(InputError, match=r"'s' is to be summed out, but it lies in the plate 'parts'.*TraceEnum_ELBO"):
        IWAE(particles=2, plate="data").loss(*pair, x)


class Shared(VAE):
    """Draws one scale for all datapoints."""

    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        pyro.sample("shared", dist.Normal(0.0, 1.0))
        super().generate(x, y, mask)

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        pyro.sample("shared", dist.Normal(0.0, 1.0))
        super().infer(x, y, mask)


class Nested(LatentVariableModel):
    """Elements of x in a plate of their own."""

    def __init__(self) -> None:
        super().__init__((3,), nn.Identity(), nn.Identity(), nn.Identity())
        self.loc = nn.Parameter(torch.zeros(()))

    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("columns", 3, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.sum(-1, keepdim=True) / 4 + self.loc, 0.5))


class Parameter(VAE):
    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        pyro.param("forgotten", torch.zeros(()))
        super().generate(x, y, mask)


class OtherName(VAE):
    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("data_of_mine", self.likelihood(pyro.sample("z", self.prior(y)), y), obs=x)


def test_subclasses_are_asked_by_their_traces() -> None:
    """What a subclass does in its functions is right, or refused before training by the name of the site."""
    data = load_data((torch.rand(60, 4) < 0.5).float().numpy())
    for kind, message in (
        (Shared, "'shared' lies outside the plate 'data'"),
        (Parameter, r"pyro.param\('forgotten'\).*torch.nn.Parameter"),
        (OtherName, "sites .'z', 'data_of_mine'.; name it x"),
    ):
        with pytest.raises(InputError, match=message):
            fit(kind((4,), latent_dim=1), data, epochs=1, progress=False)
    for kind in (Shared, OtherName):
        with pytest.raises(InputError):
            evaluate(kind((4,), latent_dim=1), data, particles=5)


def test_nested_plates_of_a_subclass_do_not_collide() -> None:
    """With the exact posterior every weight is the evidence of N(0, I + 11')."""
    model, x = Nested(), torch.randn(20, 3)
    truth = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(x)
    for particles in (1, 5):
        weights = weigh(model.generate, model.infer, x, particles=particles).log_weights()
        torch.testing.assert_close(weights, truth.expand(particles, -1))


class Two(VAE):
    """Observes how many entries are 1 beside the entries."""

    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(y))
            pyro.sample("x", self.likelihood(z, y), obs=x)
            pyro.sample("count", dist.Poisson(z.exp().sum(-1)), obs=x.sum(-1))


def test_a_second_observed_site_is_scored_or_refused() -> None:
    """It is part of log p(x, count); a check, which simulates x alone, refuses it by name."""
    data = load_data((torch.rand(60, 4) < 0.5).float().numpy())
    model = Two((4,), latent_dim=1)
    x = data.test.x.float()
    weights = weigh(model.generate, model.infer, x, particles=3)
    z = weights.latents["z"]
    both = model.likelihood(z).log_prob(x) + dist.Poisson(z.exp().sum(-1)).log_prob(x.sum(-1))
    torch.testing.assert_close(weights.log_likelihood, both)
    assert evaluate(model, data, particles=5).log_evidence < 0
    with pytest.raises(InputError, match="is checked by simulating x, but Two observes 'count' beside it"):
        check(model, data, split="train")


def sometimes(deeper: Callable[..., Any]) -> tuple[Callable[..., None], Callable[..., None]]:
    """z ~ N(0, 1), x ~ N(z, 1) and, in a plate that is only there in some calls, three e ~ N(z, 1) of value 0."""

    def model(x: Tensor, y: Tensor | None = None, flag: bool = False) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            if deeper(x, y, flag):
                with pyro.plate("inner", 3, dim=-2):
                    pyro.sample("e", dist.Normal(z, 1.0), obs=x.new_zeros(3, len(x)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, y: Tensor | None = None, flag: bool = False) -> None:
        precision = 5.0 if deeper(x, y, flag) else 2.0
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / precision, precision**-0.5))

    return model, guide


@pytest.mark.parametrize("how", ["an argument that is None", "a flag", "a flag by name"])
@pytest.mark.parametrize("particles", [1, 3])
def test_a_plate_that_is_only_in_some_calls(how: str, particles: int, x: Tensor) -> None:
    """The guide is the exact posterior, so that the bound is log p(x, e) whatever is drawn."""
    many, few = {
        "an argument that is None": (((x, x), {}), ((x,), {})),
        "a flag": (((x, None, True), {}), ((x, None, False), {})),
        "a flag by name": (((x,), {"flag": True}), ((x,), {})),
    }[how]
    pair = sometimes(lambda x, y, flag: flag or y is not None)
    alone = dist.Normal(0.0, 2**0.5).log_prob(x).sum()
    both = torch.stack([x, *x.new_zeros(3, len(x))], -1)
    together = dist.MultivariateNormal(x.new_zeros(4), torch.eye(4).to(x) + 1).log_prob(both).sum()
    for objective in (IWAE(particles=particles), ELBO(particles=particles)):
        for (args, kwargs), truth in ((few, alone), (many, together), (few, alone)):
            assert objective.loss(*pair, *args, **kwargs) == pytest.approx(-truth.item(), rel=1e-5)


def test_a_plate_that_depends_on_values_is_refused_by_name(x: Tensor) -> None:
    objective, pair = IWAE(particles=3), sometimes(lambda x, y, flag: x.sum() > 100)
    objective.loss(*pair, x)
    with pytest.raises(InputError, match=r"more than 1 nested plates, but there was room for 1; .*max_plate_nesting"):
        objective.loss(*pair, x + 100)
    objective = IWAE(particles=3)
    objective.max_plate_nesting = 2
    assert math.isfinite(objective.loss(*pair, x))
    assert math.isfinite(objective.loss(*pair, x + 100))
