"""Whether samples, or held-out datapoints, are copies of training data."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrolatent.checks.check import Check, Verdict
from pyrolatent.checks.panels import COLOURS, MUTED, Arrays
from pyrolatent.checks.subject import LEAST, Subject
from pyrolatent.data.splits import Split
from pyrolatent.errors import InputError, at_least
from pyrolatent.figures import latent as figures
from pyrolatent.inference.draws import simulate

NEIGHBOURS = 50
"""Number of copies for which to determine whether similar rows repeat by chance."""


def nearest_distances(points: Tensor, among: Tensor, max_elements: int = 2**26) -> tuple[Tensor, Tensor]:
    """Euclidean distance of each point to the nearest of other points, (n,), and the index of that one, (n,).

    The nearest point is found by matrix products of centred points, since the products cancel far from 0; its distance
    is then computed directly.

    Args:
        points: (n, *event_shape).
        among: (m, *event_shape).
        max_elements: largest number of distances in memory at a time.
    """
    points, among = points.flatten(1), among.flatten(1)
    centre = among.double().mean(0)
    others = (among - centre).to(among)
    rows = (points - centre).to(among).split(max(1, max_elements // len(among)))
    nearest = torch.cat([torch.cdist(each, others).argmin(1) for each in rows])
    return (points - among[nearest]).norm(dim=1), nearest


def nearer(distances: Tensor, usual: Tensor) -> tuple[float, float]:
    """How often one of the first distances is below one of the second, and the p-value of the Mann-Whitney test.

    For distances of samples and of held-out datapoints to the nearest training datapoint, this is the test for data
    copying of Meehan et al. 2020 (2004.05675).

    Args:
        distances: (n,).
        usual: (m,).
    """
    one, other = (values.double().cpu().numpy() for values in (distances, usual))
    statistic, p_value = scipy.stats.mannwhitneyu(one, other, alternative="less")
    return 1 - float(statistic) / (len(one) * len(other)), float(p_value)


@dataclass(frozen=True)
class _OfTraining(Check):
    """Base class of checks that compare samples and held-out datapoints with the training data.

    Args:
        datapoints: largest number of samples and of held-out datapoints.
    """

    datapoints: int = 500

    of_likelihoods: ClassVar[bool] = True

    def compared(self, subject: Subject) -> tuple[Split, Tensor, Tensor]:
        """The training data, samples, and held-out datapoints.

        Raises:
            InputError: there are no complete held-out datapoints.
        """
        at_least(LEAST, datapoints=self.datapoints)
        train = subject.data.train.to(subject.part.x.device, subject.part.dtype)
        if train.mask is not None:
            raise InputError("distances are between complete datapoints, but the data has a mask")
        if subject.split == "train":
            raise InputError("samples are compared with held-out datapoints; give split: validation or test")
        count = min(self.datapoints, len(subject))
        samples = simulate(subject.model, count, subject.labels(count))[0]
        return train, samples, subject.part.batch(slice(0, count)).x


@dataclass(frozen=True)
class Memorisation(_OfTraining):
    """Whether samples lie nearer to training datapoints than held-out datapoints do, as networks see them."""

    name: ClassVar[str] = "memorisation"
    source: ClassVar[str] = "p at 1 %; Meehan et al. 2020"
    asks: ClassVar[str] = "whether samples lie nearer to training data than held-out data do"

    def verdict(self, subject: Subject) -> Verdict:
        """The p-value of the distances, advising whether samples are too close to all data or to training data."""
        train, samples, held_out = self.compared(subject)
        seen, nearest = subject.model.scaling.compared, torch.cat([samples, held_out])
        both = seen(nearest)
        distances = torch.full((len(both),), math.inf, device=both.device)
        for batch in train.batches(10_000):
            found, place = nearest_distances(both, seen(batch.x))
            closer = found < distances
            nearest[closer] = batch.x[place[closer]]
            distances = torch.minimum(found, distances)
        distances, usual = distances.split([len(samples), len(held_out)])
        share, p_value = nearer(distances, usual)
        half = len(held_out) // 2
        others = seen(held_out[half:])
        near_any, _ = nearer(
            nearest_distances(seen(samples), others)[0], nearest_distances(seen(held_out[:half]), others)[0]
        )
        said = f"samples lie nearer to training datapoints than held-out ones do in {share:.0%} of pairs"
        order = distances.argsort()[:10]
        return self.judged(
            p_value,
            f"{said}, and nearer to held-out ones in {near_any:.0%}: "
            + (
                "samples are too near to all data, so that the likelihood is too sharp or the decoder blurs; declare "
                "a learned scale, another likelihood or a larger decoder"
                if near_any - 0.5 > (share - 0.5) / 2
                else "the model copies training data; look at them, then declare a smaller decoder or patience"
            ),
            said,
            numbers={"nearer_share": share, "nearer_to_held_out": near_any},
            arrays={
                "sample_distances": distances,
                "held_out_distances": usual,
                "nearest_samples": samples[order],
                "nearest_training": nearest[: len(samples)][order],
            },
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """The ECDFs of both sets of distances."""
        for name, colour, label in (
            ("held_out_distances", MUTED, "held out"),
            ("sample_distances", COLOURS[0], "samples"),
        ):
            axes.ecdf(arrays[name], color=colour, label=label)
        axes.legend(frameon=False, fontsize=7)
        axes.set(title="Nearest training datapoint", xlabel="Euclidean distance", ylabel="share below")

    def figures(self, arrays: Arrays) -> dict[str, Figure]:
        """The samples that are nearest to a training datapoint, each above that datapoint."""
        shown = figures.reconstructions(arrays["nearest_samples"], arrays["nearest_training"], ("sample", "nearest"))
        shown.suptitle("the samples nearest to training datapoints", fontsize=8)
        return {"nearest_training": shown}


@dataclass(frozen=True)
class HeldOutCopies(_OfTraining):
    """Whether held-out datapoints are copies of training datapoints more often than samples of the model are."""

    name: ClassVar[str] = "held-out copies"
    source: ClassVar[str] = "p at 1 %; Fisher 1935"
    asks: ClassVar[str] = "whether held-out datapoints are copies of training datapoints: the data had duplicates"

    def verdict(self, subject: Subject) -> Verdict:
        """The p-value of Fisher's exact test, which is conservative: with few copies p is 1."""
        train, samples, held_out = self.compared(subject)
        asked = [[row.tobytes() for row in _rows(values)] for values in (held_out, samples)]
        every = {*asked[0], *asked[1]}
        known = {row for batch in train.batches(10_000) for each in _rows(batch.x) if (row := each.tobytes()) in every}
        copied = [np.array([row in known for row in rows]) for rows in asked]
        copies = [int(each.sum()) for each in copied]
        table = [[count, len(samples) - count] for count in copies]
        p_value = float(scipy.stats.fisher_exact(table, alternative="greater").pvalue)
        shares = [count / len(samples) for count in copies]
        said = (
            f"{shares[0]:.1%} of held-out datapoints are copies of training datapoints, and {shares[1]:.1%} of samples"
        )
        return self.judged(
            p_value,
            f"{said}: "
            + (
                "rows that differ in a single entry are common too, so that rows repeat by chance, but the model's do "
                "so too rarely; declare a likelihood of such values, or a larger decoder"
                if _have_neighbours(held_out[torch.from_numpy(copied[0])], train)
                else "the data had duplicates, which inflate held-out scores; drop them before the split"
            ),
            said,
            numbers={"held_out_copies": shares[0], "sample_copies": shares[1]},
            arrays={"copies": np.asarray(shares)},
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """The shares of copies among held-out datapoints and samples."""
        axes.bar(["held out", "samples"], arrays["copies"], color=[MUTED, COLOURS[0]], width=0.5)
        axes.set(
            title="Copies of training datapoints", ylabel="share", ylim=(0, max(0.05, 1.1 * arrays["copies"].max()))
        )


def _have_neighbours(copies: Tensor, train: Split) -> bool:
    """Whether most copied rows also have a neighbour in the training data that differs in a single entry."""
    rows, among = copies[:NEIGHBOURS].flatten(1), train.batch(slice(0, 10_000)).x.flatten(1)
    found = [bool(((among != row).sum(1) == 1).any()) for row in rows]
    return sum(found) > len(found) / 2


def _rows(x: Tensor) -> npt.NDArray[np.float64]:
    """Data as rows that can be compared bitwise; -0 becomes 0."""
    rows: npt.NDArray[np.float64] = x.flatten(1).cpu().numpy() + 0.0
    return rows
