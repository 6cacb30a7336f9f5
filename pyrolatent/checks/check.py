"""What a check is: one question about a fitted model, and its verdict."""

import abc
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrolatent.checks.panels import Arrays
from pyrolatent.checks.subject import Subject
from pyrolatent.data.splits import Data
from pyrolatent.errors import InputError
from pyrolatent.models.latent import LatentVariableModel

Array = npt.NDArray[Any]
LEVEL = 0.01
"""Probability with which a model that is right fails one check of a hypothesis."""


@dataclass(frozen=True)
class Verdict:
    """One question and its answer.

    Attributes:
        by: the check.
        value: the number found.
        threshold: the number that it is held against.
        passed: whether the model passes.
        advice: what to change if it does not; else what the number says.
        numbers: found beside it, by name; nats per datapoint where they are of a density.
        arrays: what the verdict was computed from, by name.
        skipped: parts that do not apply, with the reason.
    """

    by: "Check" = field(repr=False)
    value: float
    threshold: float
    passed: bool
    advice: str
    numbers: dict[str, float] = field(default_factory=dict, repr=False)
    arrays: dict[str, Array] = field(default_factory=dict, repr=False, compare=False)
    skipped: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def check(self) -> str:
        """The name of the check."""
        return self.by.name

    @property
    def relation(self) -> str:
        """How the value must stand to the threshold."""
        return self.by.relation

    @property
    def source(self) -> str:
        """What the threshold is and where it comes from."""
        return self.by.source

    @property
    def p_value(self) -> float | None:
        """The value, if it is a p-value."""
        return self.value if self.by.gives_p_value else None

    @property
    def measured(self) -> str:
        """How often the check fails right models and what it finds, as measured; nothing of checks of one's own."""
        return measured().get(self.check, "")

    def json(self) -> dict[str, Any]:
        """What was found in JSON's types."""
        return {name: getattr(self, name) for name in ("check", "value", "threshold", "passed", "advice", "measured")}

    def figure(self) -> Figure:
        """The panel of the check alone."""
        fig = Figure(figsize=(4.2, 3.3), dpi=130, layout="constrained")
        self.by.panel(fig.add_subplot(), self.arrays)
        return fig

    def __str__(self) -> str:
        mark = "passed" if self.passed else "FAILED"
        rates = f" ({self.measured})" if self.measured else ""
        return f"{mark}  {self.check}: {self.value:.3g} {self.relation} {self.threshold:.3g}; {self.advice}{rates}"


class Check(abc.ABC):
    """One question about a fitted model: `Tarp()(model, data)` gives its verdict.

    A subclass is a frozen dataclass with the options of the check.

    Attributes:
        name: of the check.
        relation: how the value must stand to the threshold.
        source: what the threshold is and where it comes from.
        asks: what is asked, in one phrase.
        gives_p_value: whether the value is a p-value, held against `LEVEL`.
        of_likelihoods: whether it has no meaning for a cross-entropy.
    """

    name: ClassVar[str]
    relation: ClassVar[Literal["≤", "≥"]] = "≥"
    source: ClassVar[str]
    asks: ClassVar[str]
    gives_p_value: ClassVar[bool] = True
    of_likelihoods: ClassVar[bool] = False

    def __call__(
        self, model: LatentVariableModel, data: Data, *, split: str = "test", size: int = 1000, seed: int = 0
    ) -> Verdict:
        """Asks the question of a fitted model.

        Args:
            model: a fitted model.
            data: data with the event shape and in the support of the model's likelihood.
            split: the part of the data that is held against the model: "train", "validation" or "test".
            size: number of its datapoints, drawn at the seed.
            seed: of all draws.

        Raises:
            InputError: the check does not apply to the model or the data, with the reason.
        """
        return self.asked(Subject(model, data, split=split, size=size, seed=seed))

    def asked(self, subject: Subject) -> Verdict:
        """The verdict on a subject, whose draws other checks share.

        Raises:
            InputError: the check does not apply to it, with the reason.
        """
        if self.of_likelihoods and subject.cross_entropy:
            raise InputError("grey values under a Bernoulli are no draws of it; binarize the data")
        with subject.drawing(self.name):
            return self.verdict(subject)

    @abc.abstractmethod
    def verdict(self, subject: Subject) -> Verdict:
        """Computes the value and holds it against its threshold."""

    @abc.abstractmethod
    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """Draws what was found."""

    def figures(self, arrays: Arrays) -> dict[str, Figure]:
        """Pictures beside the panel, by name."""
        return {}

    def judged(
        self,
        value: float,
        advice: str,
        otherwise: str,
        *,
        threshold: float = LEVEL,
        numbers: Mapping[str, Tensor | float] = {},
        arrays: Mapping[str, Tensor | Array] = {},
        skipped: Mapping[str, str] = {},
    ) -> Verdict:
        """A verdict.

        Args:
            value: the number found.
            advice: what to change if the model fails.
            otherwise: what the number says if it passes.
            threshold: what the value is held against.
            numbers: found beside it; means are reported of tensors.
            arrays: what was computed on the way.
            skipped: parts that do not apply, with the reason.
        """
        passed = value >= threshold if self.relation == "≥" else value <= threshold
        return Verdict(
            self,
            value,
            threshold,
            bool(passed),
            otherwise if passed else advice,
            {name: float(x.double().mean()) if isinstance(x, Tensor) else x for name, x in numbers.items()},
            {name: x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x) for name, x in arrays.items()},
            dict(skipped),
        )


@functools.cache
def measured() -> dict[str, str]:
    """What was measured of each check, in words; docs/checks.md has the tables."""
    text = (files("pyrolatent.checks") / "measured.json").read_text(encoding="utf-8")
    found: dict[str, str] = json.loads(text)
    return found
