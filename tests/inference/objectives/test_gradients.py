"""The gradient of every objective against its exact value, for every kind of pair."""

import pytest
from gradient_table import CASES, OBJECTIVES, distances

from pyrolatent import InputError
from pyrolatent.models.model import Capability

PATHWISE = [name for name in OBJECTIVES if Capability.PATHWISE_DRAWS in OBJECTIVES[name].needs]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_the_derivative_of_the_target(name: str, case: str, beta: float) -> None:
    """By quadrature and enumeration, whether states are summed out before or after draws, or drawn themselves.

    `stl`, `partially_iwae` and `rws`, which climb something else than one bound, are held to what they climb.
    """
    if CASES[case].pathwise or name not in PATHWISE:
        assert max(distances(CASES[case], name, beta, 10_000).values()) < 4.5
    else:
        with pytest.raises(InputError, match=r"gradients through the draws of the site 'z', but its Bernoulli"):
            distances(CASES[case], name, beta, 10)
