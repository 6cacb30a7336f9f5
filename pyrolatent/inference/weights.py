"""The one place where a Pyro pair is run and scored: particles, importance weights and KL terms per datapoint."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence

from pyrolatent.errors import InputError

Program = Callable[..., Any]


@dataclass(frozen=True)
class Weights:
    """Draws from a guide, scored under the model when asked, never summed over datapoints.

    Attributes:
        model_trace: the model replayed on the guide's draws.
        guide_trace: the guide's draws.
    """

    model_trace: Any
    guide_trace: Any

    @cached_property
    def latents(self) -> dict[str, Tensor]:
        """Draws by latent site, (particles, batch, ...)."""
        return {site: self.guide_trace.nodes[site]["value"] for site in self.guide_trace.stochastic_nodes}

    @cached_property
    def log_prior(self) -> dict[str, Tensor]:
        """log p(z) by latent site, (particles, batch), nats."""
        return {site: _log_prob(self.model_trace.nodes[site]) for site in self.latents}

    @cached_property
    def log_posterior(self) -> dict[str, Tensor]:
        """log q(z | x) by latent site, (particles, batch), nats."""
        return {site: _log_prob(self.guide_trace.nodes[site]) for site in self.latents}

    @cached_property
    def log_likelihood(self) -> Tensor:
        """log p(x | z) over all observed sites, (particles, batch), nats."""
        return torch.stack([_log_prob(self.model_trace.nodes[x]) for x in self.model_trace.observation_nodes]).sum(0)

    @property
    def log_joint(self) -> Tensor:
        """log p(x, z), (particles, batch)."""
        return torch.stack([self.log_likelihood, *self.log_prior.values()]).sum(0)

    @property
    def log_guide(self) -> Tensor:
        """log q(z | x), (particles, batch)."""
        return torch.stack([*self.log_posterior.values()]).sum(0)

    def log_weights(self, beta: float | Tensor = 1.0) -> Tensor:
        """log w = log p(x | z) + beta (log p(z) - log q(z | x)), (particles, batch); beta = 1 makes a bound."""
        ratios = [self.log_prior[site] - self.log_posterior[site] for site in self.latents]
        return self.log_likelihood + beta * torch.stack(ratios).sum(0)

    @cached_property
    def kl(self) -> dict[str, Tensor]:
        """KL(q(z | x) || p(z)) by latent site, (particles, batch), nats.

        Closed form where one is known, else its estimate log q(z | x) - log p(z).
        """
        return {site: self._kl(site) for site in self.latents}

    def _kl(self, site: str) -> Tensor:
        prior, posterior = self.model_trace.nodes[site], self.guide_trace.nodes[site]
        try:
            closed = kl_divergence(posterior["fn"], prior["fn"])
        except NotImplementedError:
            return self.log_posterior[site] - self.log_prior[site]
        return scale_and_mask(closed, posterior["scale"], posterior["mask"])


def weigh(model: Program, guide: Program, *args: Any, particles: int = 1, **kwargs: Any) -> Weights:
    """Draws every latent from the guide and scores the draws under the guide and the model.

    Args:
        model: generative function whose sites all lie in one plate over datapoints, at dim -1.
        guide: function with the same arguments that samples the model's latent sites, in the same plate.
        *args: arguments of both: x, y, mask for the models of this package.
        particles: number K of draws for each datapoint, in one vectorised pass.
        **kwargs: keyword arguments of both.

    Raises:
        InputError: a latent site that only one of the two has.
    """
    guide_trace = _trace(guide, particles, args, kwargs)
    model_trace = _trace(poutine.replay(model, trace=guide_trace), particles, args, kwargs)
    latents = {"guide": {*guide_trace.stochastic_nodes}, "model": {*model_trace.stochastic_nodes}}
    for one, other in (("guide", "model"), ("model", "guide")):
        for site in latents[one] - latents[other]:
            raise InputError(f"the {one} samples the latent site {site!r}, but the {other} does not")
    return Weights(model_trace, guide_trace)


def _trace(program: Program, particles: int, args: Any, kwargs: Any) -> Any:
    with pyro.plate("particles", particles, dim=-2):
        return prune_subsample_sites(poutine.trace(program).get_trace(*args, **kwargs))


def _log_prob(site: Any) -> Tensor:
    return scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])


def arguments(
    model: Any, batch: tuple[Tensor, Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What a model is called with: a minibatch (x, y, mask), without the labels if the model has no use for them."""
    x, y, mask = batch
    return x, y if model.label_dim else None, mask
