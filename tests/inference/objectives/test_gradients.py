"""The gradient of every objective against its exact value, for every kind of pair."""

import itertools

import pytest
from gradient_table import BETAS, CASES, OBJECTIVES, distances

from pyrolatent import InputError
from pyrolatent.models.model import Capability

PATHWISE = [name for name in OBJECTIVES if Capability.PATHWISE_DRAWS in OBJECTIVES[name].needs]
# Every objective meets every kind of pair at two betas, 0 and 1 or 0.5 and 2; the others are slow.
CELLS = [
    pytest.param(name, case, beta, marks=pytest.mark.slow if (i + j + k) % 2 else [])
    for (i, name), (j, case), (k, beta) in itertools.product(*map(enumerate, (OBJECTIVES, CASES, BETAS)))
]


@pytest.mark.parametrize(("name", "case", "beta"), CELLS)
def test_the_gradient_is_the_derivative_of_the_target(name: str, case: str, beta: float) -> None:
    """By quadrature and enumeration, whether states are summed out before or after draws, or drawn themselves.

    `stl`, `partially_iwae` and `rws`, which climb something else than one bound, are held to what they climb.
    """
    if CASES[case].pathwise or name not in PATHWISE:
        assert max(distances(CASES[case], name, beta, 10_000).values()) < 4.5
    else:
        with pytest.raises(InputError, match=r"gradients through the draws of the site 'z', but its Bernoulli"):
            distances(CASES[case], name, beta, 10)
