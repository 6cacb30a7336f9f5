"""Every combination of components is built, trained, saved and loaded, or refused by a message that names both sides.

What goes together is decided here by draws: a prior and a posterior do if the values that they draw are of one kind.
"""

import functools
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrolatent import VAE, Data, InputError, Run, fit, load_data, sample
from pyrolatent.declaration import registered
from pyrolatent.inference.evidence.importance import score
from pyrolatent.inference.objectives.bounds import ELBO
from pyrolatent.inference.rules import validate_combination
from pyrolatent.inference.weights import training_arguments, weigh
from pyrolatent.models import ConditionalVAE

EVENT, DIM, CLASSES = (4,), 2, 3
SMALL: dict[str, Any] = {"encoder": {"mlp": {"hidden": [8]}}, "decoder": {"mlp": {"hidden": [8]}}}
FLOWS = {"hidden": 8, "layers": 2}
AXES = {
    "LowRankMultivariateNormal": {"cov_factor": 1},
    "Categorical": {"logits": 3},
    "OrderedLogistic": {"cutpoints": 3},
}
PRIORS: dict[str, Any] = {
    name: {"vamp": {"components": 3}, "mixture": {"components": 3}, "coupling": FLOWS, "spline": FLOWS}.get(name, {})
    for name in registered("prior")
}
MATRICES = {"LKJ", "LKJCholesky"}


def options(kind: str, name: str) -> dict[str, Any]:
    """What a component cannot do without, or what keeps it small."""
    entry = registered(kind)[name]
    given: dict[str, Any] = {"axes": AXES[name]} if name in AXES else {}
    given |= {"hidden": 8, "layers": 2, "context_dim": 3} if "context_dim" in entry.options else {}
    given |= {"levels": 5} if "levels" in entry.options else {}
    several = itertools.cycle(["poisson", "bernoulli", {"categorical": {"levels": 3}}, {"normal": {"scaling": "log"}}])
    columns = dict(zip(map(str, range(*EVENT)), several, strict=False))
    values = {"temperature": 0.5, "total_count": 3, "dim": 3, "onto": "positive", "columns": columns}
    needed = [key for key, option in entry.options.items() if option.default is option.empty]
    return given | {key: values[key] for key in needed}


POSTERIORS: dict[str, Any] = {name: {name: options("posterior", name)} for name in registered("posterior")}
POSTERIORS["mapped to (0, 1)"] = {"mapped": {"onto": "unit_interval", "family": "laplace"}}
POSTERIORS["mapped flow"] = {"mapped": {"onto": "positive", "family": {"iaf": {"hidden": 8}}}}
LIKELIHOODS: dict[str, Any] = {
    name: entry.declared(name, options("likelihood", name)) for name, entry in registered("likelihood").items()
}


def of_pyro(name: str) -> bool:
    """Whether a family is declared by the name of Pyro's class."""
    return name[0].isupper()


def values_of(draws: Tensor) -> str:
    """What kind of numbers vectors (draws, dimensions) are made of."""
    to_one = (draws.sum(-1) - 1).abs().max() < 1e-4
    if ((draws == 0) | (draws == 1)).all():
        return "one-hot" if to_one else "binary"
    if (draws.square().sum(-1) - 1).abs().max() < 1e-4:
        return "the sphere"
    if draws.min() >= 0 and draws.max() <= 1:
        return "the simplex" if to_one else "the unit interval"
    return "positive" if draws.min() >= 0 else "real"


@functools.cache
def of_prior(name: str) -> str:
    if name in ("vamp", "label_normal"):
        return "the posterior's" if name == "vamp" else "real"
    torch.manual_seed(0)
    return values_of(VAE(EVENT, latent_dim=DIM, prior={name: PRIORS[name]}).prior().sample((2000,)))


@functools.cache
def of_posterior(name: str) -> str:
    """As training draws them; what rounds its draws but scores them unrounded fits no prior."""
    if name.startswith("Relaxed") and name.endswith("StraightThrough"):
        return "rounded"
    torch.manual_seed(0)
    q = VAE(EVENT, latent_dim=DIM, posterior=POSTERIORS[name], **SMALL).posterior(torch.rand(2, *EVENT))
    return values_of((q.rsample if q.has_rsample else q.sample)((2000,)).detach().flatten(0, 1))


def model_of(prior: str = "normal", posterior: str = "normal", likelihood: str = "bernoulli") -> Any:
    parts = {"prior": {prior: PRIORS[prior]}, "posterior": POSTERIORS[posterior], "likelihood": LIKELIHOODS[likelihood]}
    event = (3, 3) if likelihood in MATRICES else EVENT
    if prior == "label_normal":
        return ConditionalVAE(event, CLASSES, latent_dim=DIM, **parts, **SMALL)
    return VAE(event, latent_dim=DIM, **parts, **SMALL)


def drawn(likelihood: str) -> Data:
    """Sixteen datapoints of the kind that the likelihood draws, the tails of the heaviest cut off."""
    model = model_of(likelihood=likelihood)
    with torch.no_grad():
        x = model.decode(torch.randn(16, DIM)).sample().clamp(-20, 20)
    return load_data(x.numpy(), labels=(torch.arange(16) % CLASSES).numpy())


def trains_and_survives(model: Any, data: Data, path: Path) -> None:
    """Finite bound and gradients, two epochs, the same model from disk, finite log p(x), draws in the right shape."""
    batch = data.train.batch(slice(None))
    inputs = training_arguments(model, batch)
    pathwise = model.encode(*inputs)["z"].has_rsample
    bound = ELBO(particles=2).bound(weigh(model.generate, model.infer, *inputs, particles=2))
    assert torch.isfinite(bound).all()
    bound.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(bool(gradient.ne(0).any()) for gradient in gradients) > 0.5 * len(gradients)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = fit(
        model, data, progress=False, objective="elbo" if pathwise else "TraceGraph_ELBO", epochs=2, batch_size=8
    )
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    Run.save(path, fitted)
    loaded = Run.load(path).model
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    scores = []
    for each in (model, loaded):
        torch.manual_seed(1)
        scores.append(score(each, *inputs, particles=5))
    assert torch.equal(scores[0].log_evidence, scores[1].log_evidence)
    assert torch.isfinite(scores[0].log_evidence).all()
    assert torch.isfinite(scores[0].elbo).all()
    x = sample(model, 3)
    assert x.shape == (3, *data.event_shape)
    assert model.decode(torch.zeros(3, DIM), torch.arange(3) if model.conditional else None).log_prob(x).shape == (3,)


# Families by the name of Pyro's class differ in nothing but their distribution, so one prior of a kind is enough.
SOME = ("normal", "exponential", "beta", "bernoulli", "categorical")
PAIRS = [(prior, posterior) for posterior in POSTERIORS for prior in (SOME if of_pyro(posterior) else PRIORS)]
ALLOWED = [
    pair for pair in PAIRS
    if of_prior(pair[0]) in (of_posterior(pair[1]), "the posterior's") and pair != ("vamp", "planar")
]  # fmt: skip
REFUSED = [pair for pair in PAIRS if pair not in ALLOWED]


def quick(prior: str, posterior: str) -> bool:
    """Whether one side is the plainest of its kind, or both are flows; pairs of two others are slow."""
    return prior in SOME or posterior == "normal" or (prior, posterior) == ("coupling", "iaf")


def marked(pairs: list[tuple[str, str]]) -> list[Any]:
    return [pytest.param(*pair, marks=[] if quick(*pair) else pytest.mark.slow) for pair in pairs]


def test_there_is_something_on_both_sides() -> None:
    assert len(ALLOWED) > 100
    assert len(REFUSED) > 100
    assert {prior for prior, _ in ALLOWED} == {*PRIORS}
    assert {of_posterior(name) for name in POSTERIORS} >= {"real", "positive", "the unit interval", "binary", "one-hot"}


@pytest.mark.parametrize(("prior", "posterior"), marked(ALLOWED))
def test_a_prior_and_a_posterior_that_go_together(prior: str, posterior: str, tmp_path: Path) -> None:
    trains_and_survives(model_of(prior, posterior), drawn("bernoulli"), tmp_path / "run")


@pytest.mark.parametrize(("prior", "posterior"), marked(REFUSED))
def test_a_prior_and_a_posterior_over_different_sets(prior: str, posterior: str) -> None:
    with pytest.raises(InputError) as refusal:
        fit(model_of(prior, posterior), drawn("bernoulli"), progress=False, epochs=1, objective="TraceGraph_ELBO")
    sides = re.search(r"prior of z is over (.+), but its posterior is over (.+); declare", str(refusal.value))
    if prior == "vamp":
        assert (
            f"prior vamp scores values that it did not draw, which the posterior {posterior}"
            in str(refusal.value).lower()
        )
    else:
        assert sides
        assert sides[1] != sides[2]


WITH = [
    (likelihood, posterior)
    for likelihood in LIKELIHOODS
    for posterior in (("normal",) if of_pyro(likelihood) else ("normal", "multivariate_normal", "planar"))
]


@pytest.mark.parametrize(("likelihood", "posterior"), WITH)
def test_a_likelihood_and_a_posterior(likelihood: str, posterior: str, tmp_path: Path) -> None:
    trains_and_survives(model_of("normal", posterior, likelihood), drawn(likelihood), tmp_path / "run")


@functools.cache
def takes_anything(likelihood: str) -> bool:
    """Whether it draws numbers below those of any sphere or interval that there is, or angles of any size."""
    if likelihood == "VonMises":
        return True
    torch.manual_seed(0)
    family = model_of(likelihood=likelihood).likelihood.family
    with torch.no_grad():
        return bool(family(2 * torch.randn(2000, *family.unconstrained_shape)).sample().min() < -4)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_data_that_a_likelihood_cannot_draw_are_refused(likelihood: str) -> None:
    model = model_of(likelihood=likelihood)
    data = load_data(torch.full((16, *model.event_shape), -7.5).numpy())
    if takes_anything(likelihood):
        validate_combination(model, data, ELBO())
        return
    message = rf"array(, column 0,)? holds values in \[-7.5, -7.5\].* the {likelihood} likelihood is defined on"
    with pytest.raises(InputError, match=message):
        validate_combination(model, data, ELBO())
