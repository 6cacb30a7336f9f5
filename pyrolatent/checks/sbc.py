"""Simulation-based calibration: ranks of simulated latents among draws from the posterior."""

from dataclasses import dataclass
from typing import ClassVar

from matplotlib.axes import Axes

from pyrolatent.checks.check import Check, Verdict
from pyrolatent.checks.exchangeability import rank_test
from pyrolatent.checks.panels import Arrays
from pyrolatent.checks.ranks import ecdf_panel
from pyrolatent.checks.subject import Simulated, Subject, flat_sites
from pyrolatent.errors import at_least


@dataclass(frozen=True)
class OfSimulations(Check):
    """Base class of checks of the posterior on data simulated from the model.

    Args:
        simulations: number of simulated datapoints.
        draws: number of draws from q(z | x) per datapoint.
    """

    simulations: int = 500
    draws: int = 200

    def simulated(self, subject: Subject) -> Simulated:
        """The simulations, shared by all checks of this type."""
        at_least(50, simulations=self.simulations)
        at_least(25, draws=self.draws)
        return subject.simulated(self.simulations, self.draws)


@dataclass(frozen=True)
class SbcLatents(OfSimulations):
    """Ranks of each latent dimension."""

    name: ClassVar[str] = "sbc latents"
    source: ClassVar[str] = "p at 1 %; Talts et al. 2018, Sailynoja et al. 2022"
    asks: ClassVar[str] = "ranks of each latent dimension among draws from q"

    def verdict(self, subject: Subject) -> Verdict:
        """The p-value over all dimensions."""
        simulated = self.simulated(subject)
        truth, draws = flat_sites(simulated.truth), flat_sites(simulated.draws.latents, 2)
        found = rank_test(truth, draws)
        return self.judged(
            found.p_value,
            f"latents that the model draws are not where q says, worst in dimension {found.worst + 1} of "
            f"{truth.shape[1]}: declare another posterior, a wider encoder, train longer, or objective: local",
            f"latents that the model draws are where q says, in {truth.shape[1]} dimensions",
            arrays={"sbc_latents": found.ranks},
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """The ECDF of the ranks of each dimension."""
        ecdf_panel(axes, arrays["sbc_latents"], "Ranks of latents")


@dataclass(frozen=True)
class SbcLogLikelihood(OfSimulations):
    """Ranks of log p(x | z), which depends on the data."""

    name: ClassVar[str] = "sbc log p(x | z)"
    source: ClassVar[str] = "p at 1 %; Modrak et al. 2023"
    asks: ClassVar[str] = "ranks of a quantity that depends on the data"

    def verdict(self, subject: Subject) -> Verdict:
        """The p-value, with the direction in which ranks deviate."""
        simulated = self.simulated(subject)
        found = rank_test(simulated.log_likelihood, simulated.draws.log_likelihood)
        low = found.ranks.median() > 0.5
        return self.judged(
            found.p_value,
            f"draws from q explain x {'worse' if low else 'better'} than the z it came from: q is "
            f"{'too wide, off, or ignores x' if low else 'too narrow'}; declare another posterior or a wider encoder",
            "draws from q explain x as well as the z it came from",
            arrays={"sbc_log_likelihood": found.ranks},
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """The ECDF of the ranks."""
        ecdf_panel(axes, arrays["sbc_log_likelihood"], "Ranks of log p(x | z)")
