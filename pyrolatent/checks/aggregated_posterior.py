"""The aggregated posterior q(z) = mean_n q(z | x_n): its information about x, and whether the prior fits it."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyrolatent.checks.c2st import paired_c2st
from pyrolatent.checks.check import Check, Verdict
from pyrolatent.checks.panels import COLOURS, MUTED, Arrays
from pyrolatent.checks.subject import Subject, flat_sites
from pyrolatent.errors import at_least
from pyrolatent.inference.draws import log_posterior_of, simulate


def aggregated_log_prob(log_posterior: Tensor) -> Tensor:
    """log q(z_i) = log mean_j q(z_i | x_j), (n,), nats.

    Args:
        log_posterior: log q(z_i | x_j), (n, n), where z_i was drawn from q(z | x_i).
    """
    return log_posterior.logsumexp(1) - math.log(log_posterior.shape[1])


def mutual_information(log_posterior: Tensor) -> Tensor:
    """log q(z_i | x_i) - log q(z_i), (n,), whose mean is I(x; z) under q, nats (Hoffman and Johnson 2016).

    Its mean is at most log n; near that value it shows only that n datapoints are distinguished.

    Args:
        log_posterior: as in `aggregated_log_prob`.
    """
    return log_posterior.diagonal() - aggregated_log_prob(log_posterior)


def marginal_kl(log_posterior: Tensor, log_prior: Tensor) -> Tensor:
    """log q(z_i) - log p(z_i), (n,), whose mean is KL(q(z) || p(z)), nats: the rate minus the mutual information.

    Args:
        log_posterior: as in `aggregated_log_prob`.
        log_prior: log p(z_i), (n,).
    """
    return aggregated_log_prob(log_posterior) - log_prior


@dataclass(frozen=True)
class AggregatedPosterior(Check):
    """Whether a classifier distinguishes posterior draws of held-out data from prior draws.

    Args:
        draws: draws from q(z | x) per datapoint, of which the first is used.
    """

    draws: int = 1000

    name: ClassVar[str] = "aggregated posterior"
    source: ClassVar[str] = "p at 1 %; Lopez-Paz and Oquab 2017, by exchanges"
    asks: ClassVar[str] = "whether a classifier tells posterior draws of held-out data from the prior: holes"

    def verdict(self, subject: Subject) -> Verdict:
        """The p-value of a classifier, with the mutual information and the marginal KL."""
        at_least(25, draws=self.draws)
        drawn, count = subject.drawn(self.draws), len(subject)
        own = {site: value[0] for site, value in drawn.latents.items()}
        latents = flat_sites(own)
        prior = flat_sites(simulate(subject.model, count, subject.labels(count))[1])
        p_value, accuracy, _ = paired_c2st(latents, prior, seed=subject.seed)
        numbers: dict[str, Any] = {"aggregated_accuracy": accuracy}
        skipped = {}
        if subject.scores_any_value:
            matrix = torch.cat([log_posterior_of(subject.model, x, own) for x in subject.batches()], 1).double()
            information, largest = mutual_information(matrix), math.log(count)
            numbers["mutual_information"] = information
            if subject.model.conditional:
                skipped["marginal_kl"] = "the model is one of x given y, whose prior may depend on y"
            elif information.mean() < largest - 0.5:
                numbers["marginal_kl"] = marginal_kl(matrix, drawn.log_prior[0].double())
            else:
                skipped["marginal_kl"] = (
                    f"{count} datapoints are told apart with {information.mean():.2f} of at most log {count} = "
                    f"{largest:.2f} nats, so that the mutual information is a lower bound and q(z) is not known"
                )
        else:
            skipped["mutual information"] = "the posterior cannot score draws of other datapoints"
        return self.judged(
            p_value,
            f"a classifier tells {accuracy:.0%} of posterior and prior draws apart: the prior has holes, so samples "
            f"are worse than reconstructions; declare {subject.richer_prior}",
            f"a classifier tells {accuracy:.0%} of posterior and prior draws apart, where chance is 50 %",
            numbers=numbers,
            arrays={"aggregated": latents, "prior": prior},
            skipped=skipped,
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """Draws from both in the two dimensions in which posterior draws vary most."""
        spread = arrays["aggregated"].var(0)
        chosen = np.sort(np.argsort(-spread)[:2])
        for name, colour, label in (("prior", MUTED, "prior"), ("aggregated", COLOURS[0], "posteriors")):
            drawn = arrays[name][:, chosen]
            if len(chosen) == 1:
                axes.hist(drawn[:, 0], bins=40, density=True, histtype="step", color=colour, label=label)
            else:
                axes.plot(*drawn.T, ".", markersize=2, color=colour, label=label)
        axes.legend(frameon=False, fontsize=7, markerscale=3)
        names = [f"dimension {place + 1}" for place in chosen]
        axes.set(
            title="Prior and aggregated posterior", xlabel=names[0], ylabel=names[1] if len(names) > 1 else "density"
        )
