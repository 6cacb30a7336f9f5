"""The semi-supervised VAE against its bound written out: sum_y q(y | x) (L(x, y) - log q(y | x)), or L(x, y)."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrolatent import InputError, evaluate, fit, load_data, reconstruct, sample
from pyrolatent.inference.evidence.importance import score
from pyrolatent.inference.objectives.bounds import ELBO, AnalyticELBO
from pyrolatent.inference.weights import Weights, weigh
from pyrolatent.models import ConditionalVAE, SemiSupervisedVAE

EVENT, CLASSES = (6,), 3
SMALL = {"mlp": {"hidden": [8]}}
X = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0], [0, 1, 0, 0, 1, 1.0]])
Y = {
    "unknown": torch.tensor([-1, -1, -1, -1]),
    "known": torch.tensor([2, 0, 1, 1]),
    "mixed": torch.tensor([2, -1, -1, 0]),
}
LABELS = pytest.mark.parametrize("labels", Y)


def semi_supervised(latent_dim: int = 2, **options: Any) -> SemiSupervisedVAE:
    networks = {"encoder": SMALL, "decoder": SMALL, "classifier": SMALL}
    model = SemiSupervisedVAE(EVENT, CLASSES, latent_dim=latent_dim, **networks, **options)
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape)
    return model


def written_out(model: Any, weights: Weights, y: Tensor, x: Tensor = X) -> Tensor:
    """The bound at the draws of z for each class, (classes, particles, batch, latent_dim), (batch,)."""
    z = weights.latents["z"]
    z = z.expand(CLASSES, -1, -1, -1)
    terms = []
    for c in range(CLASSES):
        one_hot = torch.eye(CLASSES)[c].expand(len(x), CLASSES)
        log_joint = model.prior().log_prob(z[c]) + model.likelihood(z[c], one_hot.expand(len(z[c]), -1, -1)).log_prob(x)
        terms.append(log_joint - np.log(CLASSES) - model.posterior(x, one_hot).log_prob(z[c]))
    bounds = torch.stack(terms).mean(1)  # L(x, y), (classes, batch)
    log_q = model.classifier(x).logits.log_softmax(-1).T
    summed = (log_q.exp() * (bounds - log_q)).sum(0)
    return torch.where(y < 0, summed, bounds[y.clamp(min=0), torch.arange(len(x))])


@LABELS
@pytest.mark.parametrize("particles", [1, 5])
def test_the_bound_is_the_sum_over_labels_written_out(labels: str, particles: int) -> None:
    """At the same draws of z, one for each class: what is known is the label's own term, what is not their sum."""
    model, y = semi_supervised(), Y[labels]
    objective = ELBO(particles=particles)
    weights = objective.weigh(model.generate, model.infer, X, y)
    assert weights.latents["z"].shape == (CLASSES, particles, len(X), 2)
    expected = written_out(model, weights, y)
    torch.testing.assert_close(objective.bound(weights), expected, rtol=1e-5, atol=1e-4)
    parameters = [p for name, p in model.named_parameters() if labels != "known" or "classifier" not in name]
    for found, true in zip(
        torch.autograd.grad(objective.bound(weights).sum(), parameters, retain_graph=True),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-4)


def test_a_mixed_batch_is_its_two_parts() -> None:
    """The draws are the same at the same seed, because whether a label is known changes none of them."""
    model, bounds = semi_supervised(), {}
    for labels, y in Y.items():
        torch.manual_seed(3)
        bounds[labels] = ELBO(particles=3).bound(ELBO(particles=3).weigh(model.generate, model.infer, X, y))
    y = Y["mixed"]
    parts = torch.stack([bounds["known"], bounds["unknown"]])
    torch.testing.assert_close(bounds["mixed"][:3], parts[(y < 0).long(), torch.arange(4)][:3])
    weights = weigh(model.generate, model.infer, X[3:], y[3:])  # whose label is another in the two batches
    torch.testing.assert_close(ELBO().bound(weights), written_out(model, weights, y[3:], X[3:]), rtol=1e-5, atol=1e-4)


def test_no_labels_are_unknown_labels() -> None:
    model, bounds = semi_supervised(), []
    for y in (None, Y["unknown"]):
        torch.manual_seed(3)
        bounds.append(ELBO().bound(weigh(model.generate, model.infer, X, y)))
    assert torch.equal(*bounds)


@LABELS
def test_the_analytic_bound_has_the_mean_of_the_bound(labels: str) -> None:
    """Paired at the same draws, within four standard errors of 4,000, whose terms of 1e9 cancel to 1e-3."""
    model = semi_supervised()
    weights = weigh(model.generate, model.infer, X, Y[labels], particles=4000)
    exact = weights.expect(weights.log_likelihood - sum(weights.kl.values()))
    difference = exact - weights.expect(weights.log_ratio())
    assert (difference.mean(0).abs() < 4 * difference.std(0) / 4000**0.5 + 1e-3).all()
    torch.testing.assert_close(AnalyticELBO(particles=4000).bound(weights), exact.mean(0))


def test_evidence_without_labels_is_quadrature() -> None:
    """log sum_y p(y) int p(z) p(x | z, y) dz on a grid over the one latent dimension, within four mcse."""
    model: Any = semi_supervised(1)
    z = torch.linspace(-8, 8, 4001)
    log_terms = []
    with torch.no_grad():
        for c in range(CLASSES):
            label = torch.eye(CLASSES)[c].expand(len(z), 1, CLASSES)
            joint = model.likelihood(z[:, None, None], label).log_prob(X) + model.prior().log_prob(z[:, None])[:, None]
            log_terms.append(joint.logsumexp(0) + np.log(16 / 4000) - np.log(CLASSES))
    truth = torch.stack(log_terms).logsumexp(0)
    scores = score(model, X, particles=4000)
    assert scores.mcse.max() < 0.1
    np.testing.assert_array_less((scores.log_evidence - truth).abs(), 4 * scores.mcse + 1e-4)
    assert (scores.elbo < truth + 0.05).all()


def test_evidence_of_known_labels_is_that_of_the_pair() -> None:
    """log p(x, y) by the same quadrature of one class, within four mcse."""
    model: Any = semi_supervised(1)
    z = torch.linspace(-8, 8, 4001)
    label = torch.eye(CLASSES)[Y["known"]].expand(len(z), len(X), CLASSES)
    with torch.no_grad():
        joint = model.likelihood(z[:, None, None], label).log_prob(X) + model.prior().log_prob(z[:, None])[:, None]
    truth = joint.logsumexp(0) + np.log(16 / 4000) - np.log(CLASSES)
    scores = score(model, X, Y["known"], particles=4000)
    np.testing.assert_array_less((scores.log_evidence - truth).abs(), 4 * scores.mcse + 1e-4)


def test_masks_leave_out_what_is_not_observed() -> None:
    """NaN there changes nothing, and without any element there is no likelihood."""
    model = semi_supervised()
    mask = torch.rand(X.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    bounds = []
    for x in (X, torch.where(mask, X, torch.nan)):
        torch.manual_seed(3)
        bounds.append(ELBO().bound(weigh(model.generate, model.infer, x, Y["mixed"], mask)))
    assert torch.equal(*bounds)
    weights = weigh(model.generate, model.infer, X, None, torch.zeros_like(mask))
    assert not weights.log_likelihood.any()


def test_the_training_term_is_that_of_known_labels() -> None:
    model = semi_supervised(classifier_weight=7.0)
    term = model.training_term(X, Y["mixed"])
    assert term is not None
    log_q = model.classifier(X).logits.log_softmax(-1)
    expected = torch.stack([7 * log_q[0, 2], torch.zeros(()), torch.zeros(()), 7 * log_q[3, 0]])
    torch.testing.assert_close(term, expected)
    assert not model.training_term(X).any()  # type: ignore[union-attr]


def test_what_people_do_with_it() -> None:
    model = semi_supervised()
    encoded = model.encode(X)
    assert {site: q.event_shape for site, q in encoded.items()} == {"y": (CLASSES,), "z": (2,)}
    torch.testing.assert_close(encoded["y"].mean, model.classifier(X).mean)
    known = model.encode(X, Y["known"])["y"].mean
    torch.testing.assert_close(known, torch.eye(CLASSES)[Y["known"]])
    assert model.decode({"y": known, "z": torch.zeros(4, 2)}).mean.shape == X.shape
    assert sample(model, 5).shape == (5, *EVENT)
    assert reconstruct(model, X).shape == X.shape


def test_few_labels_classify_digits() -> None:
    """100 of 1,455; by chance a tenth of the 180 test digits are right, with a standard error of 0.02."""
    data = load_data("digits", labelled=100)
    known = data.train.y
    assert known is not None
    assert int((known >= 0).sum()) == 100
    network = {"mlp": {"hidden": [64]}}
    options: Any = {"encoder": network, "decoder": network, "classifier": network}
    model = SemiSupervisedVAE(data.event_shape, data.label_dim, latent_dim=5, **options)
    settings: Any = {"objective": "analytic_elbo", "epochs": 10, "optimizer": {"Adam": {"lr": 3e-3}}}
    history = fit(model, data, progress=False, **settings).history
    assert history[-1]["validation_elbo"] > history[0]["validation_elbo"] + 2
    test = data.test.batch(slice(None))
    right = model.encode(test.x)["y"].mean.argmax(-1) == test.y
    assert right.float().mean() > 0.6
    assert evaluate(model, data, particles=5).elbo > -35


def test_unknown_labels_are_refused_by_a_model_of_x_given_y() -> None:
    data = load_data("digits", labelled=100)
    model = ConditionalVAE(data.event_shape, data.label_dim, latent_dim=2)
    with pytest.raises(InputError, match=r"1,355 training labels are unknown; declare semi_supervised_vae"):
        fit(model, data, progress=False, epochs=1)


@pytest.mark.parametrize("objective", ["Trace_ELBO", "TraceEnum_ELBO"])
def test_pyro_s_objectives_would_leave_the_term_out(objective: str) -> None:
    data = load_data(X.repeat(5, 1).numpy(), labels=Y["known"].repeat(5).numpy())
    with pytest.raises(InputError, match=f"adds a term to the bound, which Pyro's {objective} leaves out"):
        fit(semi_supervised(), data, progress=False, epochs=1, objective=objective)


def test_there_must_be_labels() -> None:
    with pytest.raises(InputError, match="semi_supervised_vae is a model of labels, but the data has none"):
        SemiSupervisedVAE(EVENT, 0, latent_dim=2)
    with pytest.raises(InputError, match="built for labels of 3, but array has 0"):
        fit(semi_supervised(), load_data(X.repeat(5, 1).numpy()), progress=False, epochs=1)


def test_label_vectors_are_refused() -> None:
    data = load_data(X.repeat(5, 1).numpy(), labels=torch.rand(20, CLASSES).numpy())
    with pytest.raises(InputError, match="classes"):
        fit(semi_supervised(), data, progress=False, epochs=1)
