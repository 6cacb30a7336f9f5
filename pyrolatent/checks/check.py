"""The base class of checks, and the verdict that a check returns."""

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
"""Level of every test: the probability with which a correct model fails it."""


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        by: the check.
        value: value of the statistic.
        threshold: the threshold that it is compared with.
        passed: whether the model passes.
        advice: what to change if the model fails, else the meaning of the value.
        numbers: further numbers by name; nats per datapoint for log-probabilities.
        arrays: the arrays that the verdict was computed from, by name.
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
        """The relation between value and threshold that passes."""
        return self.by.relation

    @property
    def source(self) -> str:
        """The threshold and its reference."""
        return self.by.source

    @property
    def p_value(self) -> float | None:
        """The value, if it is a p-value."""
        return self.value if self.by.gives_p_value else None

    @property
    def measured(self) -> str:
        """Measured rates of false alarms and detection; empty for user-defined checks."""
        return measured().get(self.check, "")

    def json(self) -> dict[str, Any]:
        """The result in JSON types."""
        return {name: getattr(self, name) for name in ("check", "value", "threshold", "passed", "advice", "measured")}

    def figure(self) -> Figure:
        """A figure with the panel of the check."""
        fig = Figure(figsize=(4.2, 3.3), dpi=130, layout="constrained")
        self.by.panel(fig.add_subplot(), self.arrays)
        return fig

    def __str__(self) -> str:
        mark = "passed" if self.passed else "FAILED"
        rates = f" ({self.measured})" if self.measured else ""
        return f"{mark}  {self.check}: {self.value:.3g} {self.relation} {self.threshold:.3g}; {self.advice}{rates}"


class Check(abc.ABC):
    """A check of a fitted model: `Tarp()(model, data)` returns its verdict.

    A subclass is a frozen dataclass with the options of the check.

    Attributes:
        name: name of the check.
        relation: relation between value and threshold that passes.
        source: the threshold and its reference.
        asks: the question of the check in one phrase.
        gives_p_value: whether the value is a p-value, to be compared with `LEVEL`.
        of_likelihoods: whether the check is meaningless for a cross-entropy.
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
        """Checks a fitted model.

        Args:
            model: a fitted model.
            data: data with the event shape and in the support of the model's likelihood.
            split: the part of the data to compare the model with: "train", "validation" or "test".
            size: number of its datapoints, drawn at the seed.
            seed: seed of all draws.

        Raises:
            InputError: the check does not apply to the model or the data; the message has the reason.
        """
        return self.asked(Subject(model, data, split=split, size=size, seed=seed))

    def asked(self, subject: Subject) -> Verdict:
        """The verdict on a subject, whose draws are shared by other checks.

        Raises:
            InputError: the check does not apply to the subject; the message has the reason.
        """
        if self.of_likelihoods and subject.cross_entropy:
            raise InputError("grey values under a Bernoulli are no draws of it; binarize the data")
        with subject.drawing(self.name):
            return self.verdict(subject)

    @abc.abstractmethod
    def verdict(self, subject: Subject) -> Verdict:
        """Computes the value and compares it with the threshold."""

    @abc.abstractmethod
    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """Plots the result."""

    def figures(self, arrays: Arrays) -> dict[str, Figure]:
        """Further figures by name."""
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
        """Builds the verdict.

        Args:
            value: value of the statistic.
            advice: what to change if the model fails.
            otherwise: the meaning of the value if it passes.
            threshold: the threshold that the value is compared with.
            numbers: further numbers; tensors are reported by their means.
            arrays: the arrays that the value was computed from.
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
    """The measured rates of each check, in words; docs/checks.md has the tables."""
    text = (files("pyrolatent.checks") / "measured.json").read_text(encoding="utf-8")
    found: dict[str, str] = json.loads(text)
    return found
