"""What held-out scores of every kind of model have in common: what they are of, and how they are printed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Line = tuple[str, str, str]
"""Name, value and remark."""
OnStep = Callable[[str, int, int], Any]
"""Called with what is being done, how much of it is done, and of how much."""


class HeldOutScores:
    """Scores of held-out data, means over datapoints in nats.

    Attributes:
        split: which part of the data.
        measure: what the nats are of.
        datapoints: number of datapoints.
        log_evidence: log p(x), if there is one.
        log_evidence_se: its standard error over datapoints.
        bits_per_dimension: `Data.bits_per_dimension` of it.
        each: scores of each datapoint, (datapoints,), float64.
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
        """What the scores are of, to be printed above them."""
        return f"{self.split}, {self.datapoints} datapoints, nats of a {self.measure} per datapoint"

    def rows(self) -> list[Line]:
        """A line for each score, to be printed."""
        raise NotImplementedError

    def evidence_rows(self, errors: list[str], *more: Line) -> list[Line]:
        """Lines of log p(x): its value with its errors over datapoints and `errors`, what says more of it, its bits."""
        if self.log_evidence_se is not None:
            errors = [f"± {self.log_evidence_se:.2g} over datapoints", *errors]
        rows = [("log_evidence", f"{self.log_evidence:.3f}", ", ".join(errors)), *more]
        if self.bits_per_dimension is not None:
            rows.append(("  bits", f"{self.bits_per_dimension:.4f}", "a dimension, lower is better"))
        return rows
