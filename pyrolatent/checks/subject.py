"""A fitted model with the data that it is compared with, and the draws that checks share."""

import inspect
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrolatent.data.splits import Data, Split
from pyrolatent.errors import InputError, at_least
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.draws import Draws, draw, joined, labels_for, log_posterior_of, simulate
from pyrolatent.inference.evidence.importance import Scores, measure, observation_support, score
from pyrolatent.inference.rules import require_one_observed_site, split_for
from pyrolatent.inference.weights import Inputs, arguments
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.model import Capability

T = TypeVar("T")
BATCH = 100
LEAST = 20
"""Smallest number of datapoints."""


@dataclass(frozen=True)
class Simulated:
    """Data simulated from the model, with draws from q for each datapoint.

    Attributes:
        x: data (n, *event_shape).
        y: labels of conditional models, (n,) or (n, label_dim).
        truth: the latents that x was simulated with, by site, (n, ...).
        draws: draws from q(z | x), (L, n).
        log_likelihood: log p(x | z) of the truth, (n,).
    """

    x: Tensor
    y: Tensor | None
    truth: dict[str, Tensor]
    draws: Draws
    log_likelihood: Tensor

    @property
    def batches(self) -> Iterator[tuple[dict[str, Tensor], Inputs]]:
        """Iterates over the truth and the inputs in batches."""
        for start in range(0, len(self.x), BATCH):
            at = slice(start, start + BATCH)
            yield _at(self.truth, at), (self.x[at], None if self.y is None else self.y[at], None)


class Subject:
    """A model and data to check. Draws are made on first use, each type at a seed of its own.

    Args:
        model: a fitted model.
        data: data with the event shape and in the support of the model's likelihood.
        split: the part of the data to compare the model with: "train", "validation" or "test".
        size: number of its datapoints, drawn at the seed because data are often ordered.
        seed: seed of all draws.

    Attributes:
        rows: indices of the datapoints in the split, (size,).
        model: the model.
        data: the data, with the split restricted to these datapoints.
        split: the name of the split.
        part: the datapoints.
        outside: one draw of the latents outside the plate over datapoints, which every check is given, by site.
        cross_entropy: whether the data are grey values under a Bernoulli likelihood, and so not draws of it.

    Raises:
        InputError: the model has no posterior, the data do not fit it, or there is no such split.
    """

    def __init__(
        self, model: LatentVariableModel, data: Data, *, split: str = "test", size: int = 1000, seed: int = 0
    ) -> None:
        model.require(Capability.POSTERIOR, "fit a vae")
        if model.of_training_rows:
            raise InputError(
                f"checks simulate datapoints, and the guide of {type(model).__name__} has parameters of the training "
                "data alone; evaluate it on split='train'"
            )
        part = split_for(model, data, split)
        at_least(LEAST, size=size)
        if len(part) < LEAST:
            raise InputError(
                f"the {split} split of {data.name} has {len(part)} datapoints; at least {LEAST} are needed"
            )
        support = observation_support(model, part.batch(slice(0, 1)), data)
        require_one_observed_site(model, part.batch(slice(0, 1)))
        with evaluating(model, seed):
            # Noise that is drawn anew for each batch is drawn once, so that all checks use the same datapoints.
            self.rows = torch.randperm(len(part))[:size]
            batch = part.batch(self.rows.to(part.x.device))
            self.part = Split(*batch, dtype=part.dtype, rows=part.row_numbers[self.rows])
            self.outside = model.global_draw(arguments(model, self.part.batch(slice(0, 1))))
        self.model, self.split, self.seed = model, split, seed
        chosen: Any = {split: self.part}
        self.data = replace(data, **chosen)
        self.cross_entropy = measure(model, data, support) == "cross-entropy"
        self._kept: dict[tuple[str, int], Any] = {}

    def __len__(self) -> int:
        return len(self.part)

    @contextmanager
    def drawing(self, what: str) -> Iterator[None]:
        """Puts the model in evaluation mode and sets the seed of the draws named `what`, within this context."""
        seed = zlib.crc32(f"{self.seed} {what}".encode())
        with (
            torch.no_grad(),
            pyro.validation_enabled(False),
            evaluating(self.model, seed),
            self.model.given(self.outside),
        ):
            yield

    def batches(self, size: int | None = None) -> Iterator[Inputs]:
        """Iterates over the inputs of the first `size` datapoints in batches."""
        size = len(self) if size is None else min(size, len(self))
        for start in range(0, size, BATCH):
            yield arguments(self.model, self.part.batch(slice(start, min(start + BATCH, size))))

    def labels(self, count: int) -> Tensor | None:
        """Labels for conditional models, repeating those of the split."""
        return labels_for(self.model, count, of_data=self.part.y)

    @cached_property
    def scores_any_value(self) -> bool:
        """Whether every posterior can score values that it did not draw."""
        return all(getattr(module, "scores_any_value", True) for module in self.model.modules())

    @cached_property
    def richer_posterior(self) -> str:
        """What to declare if the family of q is too restricted, for this model."""
        if not self._declares("posterior"):
            return "a wider encoder or other latents"
        return "posterior: multivariate_normal, student_t or a flow" if self._real else "another posterior"

    @cached_property
    def richer_prior(self) -> str:
        """What to declare if the prior does not fit, for this model."""
        if not self._declares("prior"):
            return "a model with another prior"
        return "prior: mixture, vamp, coupling or spline" if self._real else "another prior"

    def _declares(self, part: str) -> bool:
        return part in inspect.signature(type(self.model)).parameters

    @cached_property
    def _real(self) -> bool:
        """Whether all latents are real numbers."""
        with self.drawing("supports"):
            drawn = self.model.encode(*arguments(self.model, self.part.batch(slice(0, 1))))
        supports = [q.support for site, q in drawn.items() if site != self.model.label_site]
        return all(support in (constraints.real, constraints.real_vector) for support in map(_base, supports))

    def drawn(self, draws: int) -> Draws:
        """Draws from q(z | x) for every datapoint, with the latents of the first draw."""
        return self._once(
            "drawn", draws, lambda: joined([draw(self.model, inputs, draws, keep=1) for inputs in self.batches()])
        )

    def scored(self, draws: int) -> list[Scores]:
        """Importance-sampling scores of every batch of datapoints."""
        return self._once(
            "scored", draws, lambda: [score(self.model, *inputs, particles=draws) for inputs in self.batches()]
        )

    def simulated(self, count: int, draws: int) -> Simulated:
        """Data simulated from the model, with draws from q for each datapoint."""

        def made() -> Simulated:
            y = self.labels(count)
            x, truth = simulate(self.model, count, y)
            require_latents(truth)
            found = Simulated(x, y, truth, _none(), torch.empty(0))
            parts = [draw(self.model, inputs, draws) for _, inputs in found.batches]
            scored = [self.model.decode(z, inputs[1]).log_prob(inputs[0]) for z, inputs in found.batches]
            return replace(found, draws=joined(parts), log_likelihood=torch.cat(scored))

        return self._once("simulated", (count << 32) + draws, made)

    def log_posterior(self, simulated: Simulated) -> Tensor:
        """log q(z* | x) of the true latents, (n,)."""
        return torch.cat(
            [
                log_posterior_of(self.model, inputs, {site: value.unsqueeze(0) for site, value in z.items()})[0]
                for z, inputs in simulated.batches
            ]
        )

    def _once(self, what: str, settings: int, make: Callable[[], T]) -> T:
        if (what, settings) not in self._kept:
            with self.drawing(what):
                self._kept[what, settings] = make()
        kept: T = self._kept[what, settings]
        return kept


def require_latents(latents: Collection[str]) -> None:
    """Requires latents of each datapoint.

    Args:
        latents: their sites.

    Raises:
        InputError: there are none.
    """
    if not latents:
        raise InputError("the check is of the latents of each datapoint, beside a label, of which the model has none")


def flat_sites(latents: Mapping[str, Tensor], lead: int = 1) -> Tensor:
    """Flattens and concatenates the sites of (draws, datapoints, ...) or (datapoints, ...).

    Raises:
        InputError: there are none.
    """
    require_latents(latents)
    return torch.cat(
        [value.flatten(lead) if value.dim() > lead else value.unsqueeze(-1) for value in latents.values()], -1
    )


def _base(support: constraints.Constraint) -> constraints.Constraint:
    return _base(support.base_constraint) if isinstance(support, constraints.independent) else support


def _at(latents: Mapping[str, Tensor], index: Any) -> dict[str, Tensor]:
    return {site: value[index] for site, value in latents.items()}


def _none() -> Draws:
    empty = torch.empty(0)
    return Draws(empty, empty, empty, empty, {})
