"""Comparing the data with replicated data sets, drawn from the prior or given x."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrolatent.checks.check import Check, Verdict
from pyrolatent.checks.columns import Histograms
from pyrolatent.checks.columns import figure as columns_figure
from pyrolatent.checks.exchangeability import EXCHANGES, replicate_test
from pyrolatent.checks.panels import COLOURS, Arrays
from pyrolatent.checks.subject import LEAST, Subject
from pyrolatent.errors import InputError, at_least
from pyrolatent.inference.draws import MAX_ELEMENTS, decoded, draw, repeated, simulate
from pyrolatent.inference.weights import Inputs, arguments
from pyrolatent.models.latent import LatentVariableModel

Statistic = Callable[[Tensor], Any]
CORRELATED = 50
"""Number of entries whose pairwise correlations are computed."""
NUMBERS = 2**18
"""Largest number of elements in a replicate."""
FARTHEST = 1000.0
"""Limits of a panel, in standard deviations."""
STATED = 12
"""Largest number of statistics in a panel."""


def _standardised(x: Tensor) -> Tensor:
    """Standardised entries (n, entries), float64; 0 for constant entries."""
    flat = x.flatten(1).double()
    centred = flat - flat.mean(0)
    return centred / centred.square().mean(0).sqrt().clamp(min=1e-12)


def _skewness(x: Tensor) -> Tensor:
    standard = _standardised(x)
    return (standard.square() * standard).mean(0)


def _correlations(x: Tensor) -> Tensor:
    """Pairwise correlations of evenly spaced entries, (pairs,); 0 for constant entries."""
    flat = x.flatten(1)
    chosen = torch.linspace(0, flat.shape[1] - 1, min(flat.shape[1], CORRELATED)).round().long().to(x.device)
    unit = _standardised(flat[:, chosen])
    above = torch.triu_indices(len(chosen), len(chosen), 1)
    return (unit.T @ unit / len(unit))[above[0], above[1]]


STATISTICS: dict[str, Statistic] = {
    "mean": lambda x: x.double().mean(),
    "spread": lambda x: x.double().std(),
    "share of zeros": lambda x: (x == 0).double().mean(),
    "means of entries": lambda x: x.flatten(1).double().mean(0),
    "variances of entries": lambda x: x.flatten(1).double().var(0),
    "skewness of entries": _skewness,
    "tails of entries": lambda x: _standardised(x).square().square().mean(0),
    "correlations of entries": _correlations,
}
"""Statistics of a data set as networks see it, (n, ...), each a number or a vector."""
OF_X = ("share of zeros",)
"""Those of the data set itself, (n, *event_shape)."""


def _of_sets(function: Statistic, sets: Tensor) -> Tensor:
    """A statistic of data sets (sets, n, *event_shape), (sets, k)."""
    values: Tensor = torch.vmap(function)(sets)
    return values.reshape(len(sets), -1).cpu()


def _of_sets_one_by_one(function: Statistic, sets: Tensor, name: str) -> Tensor:
    """The same for a user's statistic, isolated so that it changes neither the data nor the random state.

    Raises:
        InputError: the statistic fails, or does not return equally many real numbers for each set.
    """
    try:
        with torch.random.fork_rng(devices=[sets.device] if sets.is_cuda else []):
            found = [torch.as_tensor(function(each.clone())) for each in sets]
        if all(each.numel() and not each.is_complex() for each in found):
            return torch.stack([each.double().reshape(-1).cpu() for each in found])
        reason = "it gave no number, or complex ones"
    except Exception as error:  # a user's function may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    raise InputError(f"the statistic {name!r} must give one number, or as many for each data set: {reason}")


def _deviation(values: Any) -> float:
    """The first of some numbers in standard deviations of the others; infinite if it alone differs."""
    number, *others = np.asarray(values, dtype=np.float64)
    away, spread = number - np.mean(others), np.std(others)
    return float(away / spread) if spread else math.copysign(math.inf, away) if away else 0.0


@dataclass(frozen=True)
class _Replicates(Check):
    """Base class of checks that compare statistics of the data with those of replicated data sets.

    Args:
        statistics: further functions of a data set (n, *event_shape), by name.
        replicates: number of replicated data sets.
        datapoints: largest number of datapoints per set; wide data have fewer, but at least 100, so that a set has at
            most 2^18 elements.
    """

    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    replicates: int = EXCHANGES
    datapoints: int = 500

    of_likelihoods: ClassVar[bool] = True

    def inputs(self, subject: Subject) -> Inputs:
        """The datapoints that are compared.

        Raises:
            InputError: some entries are missing.
        """
        at_least(99, replicates=self.replicates)
        at_least(LEAST, datapoints=self.datapoints)
        fitting = max(100, NUMBERS // subject.model.event_shape.numel())
        batch = subject.part.batch(slice(0, min(self.datapoints, fitting, len(subject))))
        if batch.mask is not None:
            raise InputError("replicates are complete, but the data has a mask")
        return arguments(subject.model, batch)

    def compared(
        self,
        model: LatentVariableModel,
        x: Tensor,
        draw_sets: Callable[[int], Tensor],
        how: str,
        advice: str,
        more: Mapping[str, Statistic] = {},
    ) -> Verdict:
        """The verdict on data x (n, *event_shape) and its replicates, of which `draw_sets` draws a given number."""
        if not isinstance(self.statistics, Mapping) or (STATISTICS | dict(more)).keys() & self.statistics.keys():
            raise InputError(
                f"statistics were given as {self.statistics!r}; give functions by names of their own, other than "
                f"{', '.join([*STATISTICS, *more])}"
            )
        functions = STATISTICS | dict(more)
        found: dict[str, list[Tensor]] = {name: [] for name in [*functions, *self.statistics]}
        histograms = Histograms(model, x)
        at_once = max(1, MAX_ELEMENTS // (8 * len(x) * model.scaling.output_shape.numel()))
        counts = [min(at_once, self.replicates - start) for start in range(0, self.replicates, at_once)]
        for sets in itertools.chain([x.unsqueeze(0)], map(draw_sets, counts)):
            histograms.add(sets)
            seen = model.scaling.compared(sets)
            for name, function in functions.items():
                found[name].append(_of_sets(function, sets if name in (*OF_X, *more) else seen))
            for name, function in self.statistics.items():
                found[name].append(_of_sets_one_by_one(function, sets, name))
        p_value, p, compared = replicate_test({name: torch.cat(values) for name, values in found.items()})
        worst = min(p, key=lambda name: (p[name], -abs(_deviation(compared[name]))))
        return self.judged(
            p_value,
            f"data drawn {how} differ from the data, most in: {worst}; {advice}",
            f"data drawn {how} do not differ from the data in {len(p)} statistics",
            arrays={f"{self.name}: {name}": values for name, values in compared.items()} | histograms.arrays,
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """Each statistic of the data in standard deviations of the replicates."""
        names = [name for name in arrays if name.startswith(f"{self.name}: ")][:STATED]
        scores = np.clip([_deviation(arrays[name]) for name in names], -FARTHEST, FARTHEST)
        axes.plot(scores, np.arange(len(names)), "o", markersize=4, color=COLOURS[0])
        axes.axvspan(-2, 2, color="0.92", zorder=0)
        axes.set_yticks(range(len(names)), [name.partition(": ")[2] for name in names], fontsize=7)
        axes.invert_yaxis()
        if max(map(abs, scores)) > 20:
            axes.set_xscale("symlog", linthresh=2)
        axes.set(title=self.name.capitalize(), xlabel="data, in standard deviations of replicates")

    def figures(self, arrays: Arrays) -> dict[str, Figure]:
        """The columns of a table, a panel for each."""
        drawn = columns_figure(arrays)
        return {} if drawn is None else {f"columns_{self.name.replace(' ', '_')}": drawn}


@dataclass(frozen=True)
class PriorPredictive(_Replicates):
    """Data sets drawn from the model, z ~ p(z), x ~ p(x | z)."""

    name: ClassVar[str] = "prior predictive"
    source: ClassVar[str] = "p at 1 %; Box 1980"
    asks: ClassVar[str] = (
        "data sets drawn from the model against the data: mean, spread, share of zeros; means, variances, skewness, "
        "tails and correlations of entries; any function of yours"
    )

    def verdict(self, subject: Subject) -> Verdict:
        """The p-value over all statistics."""
        x, y, _ = self.inputs(subject)

        def draw_sets(count: int) -> Tensor:
            labels = None if y is None else repeated(y, count)
            return simulate(subject.model, count * len(x), labels)[0].unflatten(0, (count, len(x)))

        return self.compared(subject.model, x, draw_sets, "without x", "declare another prior, likelihood or decoder")


@dataclass(frozen=True)
class PosteriorPredictive(_Replicates):
    """Data sets drawn at one draw z_n ~ q(z | x_n) for each datapoint, x ~ p(x | z_n).

    If q is the exact posterior, x_n and its replicates are independent draws from the same p(x | z_n), so that p is
    exact; with another draw of z_n for each replicate it would be too large (Johnson 2007; Gelman et al. 1996).
    """

    name: ClassVar[str] = "posterior predictive"
    source: ClassVar[str] = "p at 1 %; Johnson 2007"
    asks: ClassVar[str] = (
        "the same for data sets drawn at a posterior draw of each datapoint's latents, and log p(x | z) of both"
    )

    def verdict(self, subject: Subject) -> Verdict:
        """The p-value over all statistics."""
        x, y, mask = self.inputs(subject)
        latents = {site: value[0] for site, value in draw(subject.model, (x, y, mask), 1).latents.items()}
        likelihood = decoded(subject.model, latents, y, [len(x)])
        more: dict[str, Statistic] = {
            "log p(x | z)": lambda x: likelihood.log_prob(x).double().mean(),
            "spread of log p(x | z)": lambda x: likelihood.log_prob(x).double().std(),
        }

        def draw_sets(count: int) -> Tensor:
            return likelihood.sample(torch.Size([count]))

        advice = "declare another likelihood or a larger decoder, or another posterior if the checks of q fail too"
        return self.compared(subject.model, x, draw_sets, "given x", advice, more)
