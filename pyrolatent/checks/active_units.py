"""Active units: whether the posterior has collapsed to the prior."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pyrolatent.checks.check import Check, Verdict
from pyrolatent.checks.panels import COLOURS, Arrays
from pyrolatent.checks.subject import Subject, require_latents
from pyrolatent.errors import at_least
from pyrolatent.inference.draws import prior_variances
from pyrolatent.inference.evidence.importance import ACTIVE, active_units


@dataclass(frozen=True)
class ActiveUnits(Check):
    """The number of latent dimensions whose posterior mean varies over the data.

    Args:
        draws: draws from q(z | x) per datapoint, for means without closed form and for the rate.
    """

    draws: int = 100

    name: ClassVar[str] = "active units"
    source: ClassVar[str] = f"1 dimension of variance > {ACTIVE} of the prior's; Burda et al. 2016"
    asks: ClassVar[str] = "whether the posterior has collapsed to the prior"
    gives_p_value: ClassVar[bool] = False

    def verdict(self, subject: Subject) -> Verdict:
        """The number of active dimensions, with the bound, rate and distortion."""
        at_least(2, draws=self.draws)
        scores = subject.scored(self.draws)
        sites = [site for site in scores[0].means if site != subject.model.label_site]
        require_latents(sites)
        means, noise = (
            torch.cat([torch.cat([getattr(each, name)[site] for site in sites], -1) for each in scores])
            for name in ("means", "noise")
        )
        widths = {site: scores[0].means[site].shape[-1] for site in sites}
        prior = prior_variances(subject.model, widths, subject.part.y)
        active = active_units(means, noise, prior.to(means))
        rate, distortion = torch.cat([s.kl for s in scores]), -torch.cat([s.reconstruction for s in scores])
        arrays = {"mean_variance": means.var(0), "active": active, "rate": rate, "distortion": distortion}
        if all(each.kl_dimensions.keys() == each.means.keys() for each in scores):
            by_dimension = torch.cat([torch.cat([each.kl_dimensions[site] for site in sites], -1) for each in scores])
            arrays["kl_dimensions"] = by_dimension.mean(0)
        return self.judged(
            float(active.sum()),
            "posterior collapse: q(z | x) does not depend on x and the decoder ignores z; train with kl_warmup, a "
            "smaller beta, a weaker decoder or more training, or declare another likelihood",
            f"of {len(active)} dimensions; inactive ones carry no information",
            threshold=1.0,
            numbers={"elbo": -rate - distortion, "rate": rate, "distortion": distortion},
            arrays=arrays,
        )

    def panel(self, axes: Axes, arrays: Arrays) -> None:
        """The KL of each dimension or, if q does not factorise, the variance of each posterior mean."""
        by_kl = "kl_dimensions" in arrays
        values = arrays["kl_dimensions" if by_kl else "mean_variance"]
        order = np.argsort(-values)
        active = arrays["active"][order]
        axes.bar(range(1, len(values) + 1), values[order], color=[COLOURS[0] if each else "0.75" for each in active])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(
            title=f"{active.sum()} active of {len(values)} dimensions",
            xlabel="dimension, sorted",
            ylabel="KL [nats]" if by_kl else "variance of E[z | x] over data",
        )
