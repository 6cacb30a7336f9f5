"""Discrete latents that are summed out, held against sums written out: p(s) = pi_s, x | s ~ N(m_s, 1)."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrolatent.inference.objectives.bounds import ELBO, AnalyticELBO
from pyrolatent.inference.weights import weigh

PI = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
X = torch.tensor([-0.7, 0.1, 1.3, 2.5], dtype=torch.float64)
Q_Z = dist.Normal(torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64))
LOGITS = torch.tensor([[0.1, 0.4, -0.3], [0.0, 1.0, 0.2], [0.5, 0.1, 0.9], [-1.0, 0.0, 1.0]], dtype=torch.float64)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.Categorical(PI))
        pyro.sample("x", dist.Normal(MEANS[s], 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("s", dist.Categorical(logits=LOGITS), infer={"enumerate": "parallel"})


def layered(model: bool) -> Callable[[Tensor], None]:
    """The same with z ~ N(0, 1) added to the mean: x | s, z ~ N(m_s + z, 1), q(z) = N(0.3, 0.8^2)."""

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if model:
                s = pyro.sample("s", dist.Categorical(PI))
                z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
                pyro.sample("x", dist.Normal(MEANS[s] + z, 1.0), obs=x)
            else:
                pyro.sample("s", dist.Categorical(logits=LOGITS), infer={"enumerate": "parallel"})
                pyro.sample("z", Q_Z)

    return program


Q = LOGITS.softmax(-1)
JOINT = PI.log() + dist.Normal(MEANS, 1.0).log_prob(X[:, None])


@pytest.mark.parametrize("particles", [1, 4])
def test_weights_are_the_evidence_itself(particles: int) -> None:
    """With every latent summed out nothing is drawn: each weight is p(x) = sum_s p(s) p(x | s), whatever q is."""
    weights = weigh(model, guide, X, particles=particles)
    torch.testing.assert_close(weights.log_weights().expand(particles, 4), JOINT.logsumexp(-1).expand(particles, 4))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_bound_is_the_mean_over_all_states(beta: float) -> None:
    weights = weigh(model, guide, X)
    log_likelihood = dist.Normal(MEANS, 1.0).log_prob(X[:, None])
    expected = (Q * (log_likelihood + beta * (PI.log() - Q.log()))).sum(-1)
    for objective in (ELBO(), AnalyticELBO()):
        torch.testing.assert_close(objective.bound(weights, beta), expected)


def test_what_is_drawn_and_what_is_summed_out_go_together() -> None:
    """log w_k = log sum_s p(s) p(x | s, z_k) + log p(z_k) - log q(z_k), written out at the draws."""
    weights = weigh(layered(True), layered(False), X, particles=5)
    z = weights.latents["z"]
    assert z.shape == (5, 4)
    log_likelihood = dist.Normal(MEANS + z[..., None], 1.0).log_prob(X[:, None])
    ratio = dist.Normal(0.0, 1.0).log_prob(z) - Q_Z.log_prob(z)
    torch.testing.assert_close(weights.log_weights(), (PI.log() + log_likelihood).logsumexp(-1) + ratio)
    bound = (Q * (log_likelihood + PI.log() - Q.log())).sum(-1) + ratio
    torch.testing.assert_close(ELBO(particles=5).bound(weights), bound.mean(0))
