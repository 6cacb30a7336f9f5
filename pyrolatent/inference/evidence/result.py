"""The base class of held-out scores: their measure, and how they are printed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Line = tuple[str, str, str]
"""Name, value and remark."""
OnStep = Callable[[str, int, int], Any]
"""Called with the current task, the amount done and the total."""


class HeldOutScores:
    """Scores of held-out data, means over datapoints in nats.

    Attributes:
        split: the part of the data.
        measure: the measure of the scores.
        datapoints: number of datapoints.
        log_evidence: log p(x), if defined.
        log_evidence_se: its standard error over datapoints.
        bits_per_dimension: `Data.bits_per_dimension` of it.
        each: scores of each datapoint, (datapoints,), float64, and `row`, the number of its row in the data, int64.
    """

    split: str
    measure: str
    datapoints: int
    log_evidence: float | None
    log_evidence_se: float | None
    bits_per_dimension: float | None
    each: dict[str, Tensor]

    @property
    def title(self) -> str:
        """Title of the printed scores."""
        return f"{self.split}, {self.datapoints} datapoints, nats of a {self.measure} per datapoint"

    def rows(self) -> list[Line]:
        """One printed line per score."""
        raise NotImplementedError

    def evidence_rows(self, errors: list[str], *more: Line) -> list[Line]:
        """Lines of log p(x): its value with the error over datapoints and `errors`, further lines, and its bits."""
        if self.log_evidence_se is not None:
            errors = [f"± {self.log_evidence_se:.2g} over datapoints", *errors]
        rows = [("log_evidence", f"{self.log_evidence:.3f}", ", ".join(errors)), *more]
        if self.bits_per_dimension is not None:
            rows.append(("  bits", f"{self.bits_per_dimension:.4f}", "per dimension, lower is better"))
        return rows
