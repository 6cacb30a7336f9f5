"""Plates around Pyro programs, and their latents outside the plate over datapoints."""

from collections.abc import Collection, Mapping
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor


class ParticlePlate(pyro.plate):
    """A plate of particles around a program, in which only the sites of each datapoint lie.

    Args:
        name: name of the plate.
        particles: number K of particles.
        dim: dimension of the plate.
        within: name of the plate over datapoints; None if all sites lie in it.
    """

    def __init__(self, name: str, particles: int, dim: int, within: str | None) -> None:
        super().__init__(name, particles, dim=dim)
        self.within = within

    def _process_message(self, msg: Any) -> None:
        if self.within is None or lies_in(self.within, msg):
            super()._process_message(msg)


class Counted(Messenger):
    """Multiplies the log-probabilities of some sites by a factor.

    Args:
        sites: names of the sites.
        factor: the factor.
    """

    def __init__(self, sites: Collection[str], factor: float) -> None:
        super().__init__()
        self.sites = sites
        self.factor = factor

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            msg["scale"] = msg["scale"] * self.factor


class Unweighted(Messenger):
    """Sets aside how often sites count: what `poutine.scale` and plates that declare a full size multiply them by."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


class Given(Messenger):
    """Gives sites their values, and hides them from what is around the program: it is the program given these values.

    Args:
        values: value by site.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"], msg["stop"] = self.values[msg["name"]], True, True


def lies_in(plate: str, node: Any) -> bool:
    """Whether a site lies in the plate of this name."""
    return any(frame.name == plate for frame in node["cond_indep_stack"])
