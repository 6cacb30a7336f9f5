"""Imputed cells of a table beside those of scikit-learn's imputers."""

import pytest

from benchmarks.imputation import IMPUTERS, error, hidden, mixed


@pytest.mark.slow
def test_imputation_beats_the_mean_and_the_most_frequent_word() -> None:
    table = mixed(300)
    gaps = hidden(table, 0.2, 0)
    ours, mean = (error(IMPUTERS[name](table.mask(gaps), 0), table, gaps) for name in ("pyrolatent", "mean"))
    assert ours[0] < 0.9 * mean[0]
    assert ours[1] < 0.9 * mean[1]
