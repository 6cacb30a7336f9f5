"""How often checks fail right models, and which mistakes they find: short forms of `benchmarks.checks`."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from benchmarks.checks import LEVELS, MISTAKES, RIGHT, false_alarms, false_alarms_of_chains, in_words, page, power
from pyrolatent.checks import CHECKS
from pyrolatent.checks.check import measured

ROOT = Path(__file__).parents[2]

CONSERVATIVE = {"held-out copies"}
FINDS = {"held-out copies": "held-out rows are training rows", "memorisation": "samples are training rows"}


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_right_models_fail_as_often_as_the_level_says(name: str) -> None:
    """Within what 99.9 % of binomials lie, all levels and checks together at 99 %."""
    repetitions, gives_p_value = 200, {kind.name: kind.gives_p_value for kind in CHECKS}
    for kind, values in false_alarms(name, range(repetitions)).items():
        assert len(values) == repetitions
        if not gives_p_value[kind]:
            assert scipy.stats.binom.sf(values.count(0.0) - 1, repetitions, 0.01) > 1e-3, kind
            continue
        for level in LEVELS:
            lower, upper = scipy.stats.binom.interval(1 - 0.01 / (len(CHECKS) * len(LEVELS)), repetitions, level)
            failed = int(np.sum(np.array(values) <= level))
            assert failed <= upper, (kind, level, failed)
            assert kind in CONSERVATIVE or failed >= lower, (kind, level, failed)


@pytest.mark.slow
def test_chains_fail_few_right_models() -> None:
    for kind, values in false_alarms_of_chains(30).items():
        assert values.count(0.0) <= 2, kind


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(MISTAKES)), ids=lambda place: f"{place} {MISTAKES[place].what}")
def test_a_large_mistake_is_found(place: int) -> None:
    """In two of three data sets at least, by some check, and by the check that is made for it."""
    found = [power(place, MISTAKES[place].sizes[-1], seed) for seed in range(3)]
    if MISTAKES[place].what.startswith("latents have two modes"):
        pytest.skip("no check finds it in so few datapoints")
    kinds = [kind for kind in found[0] if sum(each[kind] for each in found) >= 2]
    assert kinds
    for kind, what in FINDS.items():
        if what in MISTAKES[place].what:
            assert kind in kinds


def test_tables_say_what_was_found() -> None:
    """The smallest size from which on all are found in 80 %, and shares pooled over models."""
    row = {"repetitions": 100, "0.01": 0.02, "0.05": 0.05, "0.1": 0.1}
    found = {
        "false_alarms": {"tarp": {"linear-Gaussian": row, "logistic": row | {"0.01": 0.0}}},
        "power": [
            {"where": "posterior", "what": "off by {}", "sizes": [0.1, 0.2, 0.4], "found": {"tarp": [0.9, 0.5, 0.8]}},
            {"where": "model", "what": "off by {}", "sizes": [0.1, 0.2, 0.4], "found": {"tarp": [0.0, 0.0, 0.5]}},
        ],
    }
    assert in_words(found) == {"tarp": "fails 1.0% of right models, finds 1 of 2 mistakes"}
    lines = page(found).splitlines()
    assert "| tarp | linear-Gaussian | 100 | 2.00% | 5.00% | 10.00% |" in lines
    assert "| posterior: off by … | 0.1, 0.2, 0.4 | 0.4 |" in lines
    assert "| model: off by … | 0.1, 0.2, 0.4 |  |" in lines


def test_docs_and_verdicts_hold_what_was_measured() -> None:
    """Both tables as they were measured, for every check that there is."""
    found = json.loads((ROOT / "benchmarks" / "results" / "checks-cpu.json").read_text())
    docs = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    assert page(found) in docs
    assert measured() == in_words(found)
    assert measured().keys() == {kind.name for kind in CHECKS}
    for kind, of_models in found["false_alarms"].items():
        for name, row in of_models.items():
            levels = {level: row[f"{level:g}"] for level in LEVELS} if "share" not in row else {0.01: row["share"]}
            for level, share in levels.items():
                lower, upper = scipy.stats.binom.interval(0.999, row["repetitions"], level)
                assert share * row["repetitions"] <= upper, (kind, name, level)
                assert kind in CONSERVATIVE or "share" in row or share * row["repetitions"] >= lower, (
                    kind,
                    name,
                    level,
                )
