"""Common random numbers: a datapoint's draws do not depend on its batch, and have their distribution."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from pyrolatent.inference.common_random_numbers import CommonRandomNumbers

ROWS = torch.tensor([0.5, 1.0, 2.0, 5.0])
OF_ROWS = {
    "normal": lambda a: dist.Normal(a, a),
    "laplace": lambda a: dist.Laplace(a, a),
    "gamma": lambda a: dist.Gamma(a, 1.0),
    "beta": lambda a: dist.Beta(a, 2.0),
    "student_t": lambda a: dist.StudentT(3.0, a, a),
    "exponential": lambda a: dist.Exponential(a),
    "poisson": lambda a: dist.Poisson(a),
    "bernoulli": lambda a: dist.Bernoulli(a / 10),
    "categorical": lambda a: dist.OneHotCategorical(logits=torch.stack([a, -a, 0 * a], -1)),
    "vector": lambda a: dist.MultivariateNormal(torch.stack([a, -a], -1), torch.eye(2)),
}


def draws(family: str, rows: Tensor, particles: int = 2) -> Tensor:
    """Draws of a site in a plate of rows within one of particles, (particles, rows, ...)."""
    torch.manual_seed(0)
    with CommonRandomNumbers("data"), pyro.plate("particles", particles, dim=-2), pyro.plate("data", len(rows), dim=-1):
        first = pyro.sample("first", OF_ROWS[family](rows))
        second = pyro.sample("second", OF_ROWS[family](rows))
    assert (first != second).any()
    return second


@pytest.mark.parametrize("family", OF_ROWS)
def test_draws_of_a_row_do_not_depend_on_the_others(family: str) -> None:
    whole = draws(family, ROWS, 50)
    for rows in ([3, 0, 2, 1], [2], [1, 1, 3]):
        torch.testing.assert_close(draws(family, ROWS[rows], 50), whole[:, rows], rtol=0, atol=0)


@pytest.mark.parametrize("family", ["normal", "gamma"])
def test_draws_have_their_distribution(family: str) -> None:
    values = draws(family, ROWS, 2000)
    for row, a in enumerate(ROWS):
        assert kstest(values[:, row], lambda x, a=a: OF_ROWS[family](a).cdf(torch.as_tensor(x)).numpy()).pvalue > 1e-3


def test_sites_outside_the_plate_are_drawn_as_they_are() -> None:
    def program() -> Tensor:
        with pyro.plate("others", 5):
            return pyro.sample("u", dist.Normal(0.0, 1.0))

    torch.manual_seed(0)
    plain = program()
    torch.manual_seed(0)
    with CommonRandomNumbers("data"):
        torch.testing.assert_close(program(), plain, rtol=0, atol=0)
