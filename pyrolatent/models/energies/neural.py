"""Networks and user-defined functions as energies."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from pyrolatent.declaration import Kind, build, component, registered
from pyrolatent.errors import InputError
from pyrolatent.models.components.scaling import warn_if_far
from pyrolatent.models.energies.density import (
    Beta,
    UnnormalisedDensity,
    deviations,
    in_real_numbers,
    warn_if_constant,
)

SMOOTH: Mapping[str, Any] = {"mlp": {"activation": "silu"}}
"""The default energy. It is smooth, whereas the score of rectifiers has a gradient of 0 almost everywhere."""


@component("energy", "model")
class EnergyModel(UnnormalisedDensity):
    """p(x) = exp(-f(x)) p_0(x) / Z for any function f, where p_0 is a normal density or 1.

    The energy is f(x) - log p_0(x). A network f need not grow with x, and exp(-f) then has no finite integral; a normal
    p_0 with the data's mean m and standard deviation s ensures one, and f models how the data differ from it. A network
    that is declared by name receives real x as (x - m) / s, so that nothing depends on the units of x.

    Args:
        event_shape: shape of one datapoint x.
        energy: f, a network or, in Python, a module or function from (batch, *event_shape) to (batch,) or (batch, 1),
            which receives x unscaled.
        support: "real", or "binary" for x in {0, 1}.
        reference: p_0 for real x: "normal", or "flat" for an energy that itself grows with x. Chains begin at the
            normal density in both cases. For binary x, p_0 is uniform.
    """

    loc: Tensor
    scale: Tensor
    input_loc: Tensor
    input_scale: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        energy: Annotated[Any, Kind("network")] = SMOOTH,
        support: Literal["real", "binary"] = "real",
        reference: Literal["normal", "flat"] = "normal",
    ) -> None:
        event_shape = tuple(event_shape)
        binary = support == "binary"
        width = torch.Size(event_shape).numel()
        levels = torch.full((width,), 2) if binary else None
        super().__init__(event_shape, levels)
        self.function = build("network", energy, input_shape=event_shape, output_shape=(1,))
        self.tilts = reference == "normal" and not binary
        name = next(iter(energy)) if isinstance(energy, Mapping) else energy
        self.standardises = isinstance(name, str) and name in registered("network")
        for part in ("", "input_"):
            self.register_buffer(f"{part}loc", torch.zeros(width))
            self.register_buffer(f"{part}scale", torch.ones(width))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in ("input_loc", "input_scale"):  # models were saved without them when networks received x unscaled
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def initialise(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Sets the base to the data's mean and standard deviation if x is real, unless it has been set before."""
        if self.levels is not None or self.loc.any() or (self.scale != 1).any():
            return
        warn_if_constant(x)
        self.loc.copy_(x.flatten(1).mean(0))
        self.scale.copy_(deviations(x))
        if self.standardises:
            self.input_loc.copy_(self.loc)
            self.input_scale.copy_(self.scale)

    def resume(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Warns if the data of continued training are far from the base, which does not change."""
        if self.levels is None:
            warn_if_far(x, self.loc, self.scale)

    @property
    def base_scale(self) -> Tensor:
        """Standard deviations of the base, (width,)."""
        return self.scale

    def free_energy(self, x: Any, y: Any = None) -> Tensor:
        """The energy f(x) - log p_0(x), (batch,), with p_0 unnormalised."""
        return self._energy(self.validated(x, y)[0])

    def _energy(self, x: Tensor) -> Tensor:
        flat = x.reshape(len(x), -1)
        seen = ((flat - self.input_loc) / self.input_scale).reshape(x.shape) if self.standardises else x
        energy = in_real_numbers(self.function(seen))
        if energy.numel() != len(x) or len(energy.shape) == 0:
            raise InputError(
                f"the energy gave {tuple(energy.shape)} for x {tuple(x.shape)}; let it give one number for each "
                f"datapoint, ({len(x)},) or ({len(x)}, 1)"
            )
        energy = energy.reshape(len(x))
        return energy + self._quadratic(flat) if self.tilts else energy

    def _quadratic(self, flat: Tensor) -> Tensor:
        return 0.5 * ((flat - self.loc) / self.scale).square().sum(-1)

    def log_density(self, state: Tensor, beta: Beta = 1.0) -> Tensor:
        """-β E(x) + (1 - β) log p_0(x), (chains,), with p_0 unnormalised."""
        energy = self._energy(self.visible(state))
        if isinstance(beta, float) and beta == 1.0:
            return -energy
        base = self._quadratic(state) if self.levels is None else torch.zeros_like(energy)
        return -(beta * energy[:, None] + (1 - beta) * base[:, None]).squeeze(-1)

    @torch.no_grad()
    def gibbs(self, state: Tensor, beta: Beta = 1.0) -> Tensor:
        """One sweep over the bits of x in random order, each drawn given all others; one energy evaluation per bit."""
        if self.levels is None:
            return super().gibbs(state, beta)
        x = state.clone()
        log_p = self.log_density(x, beta)
        for i in torch.randperm(x.shape[1]).tolist():
            flipped = x.clone()
            flipped[:, i] = 1 - flipped[:, i]
            other = self.log_density(flipped, beta)
            flips = torch.rand_like(log_p) < torch.sigmoid(other - log_p)
            x, log_p = torch.where(flips[:, None], flipped, x), torch.where(flips, other, log_p)
        return x

    def base(self, size: int) -> Tensor:
        """Independent draws (size, width) of p_0: normal with the data's moments, or uniform bits."""
        if self.levels is not None:
            return torch.full((size, len(self.loc)), 0.5).to(self.loc).bernoulli()
        return self.loc + self.scale * torch.randn(size, len(self.loc), device=self.loc.device, dtype=self.loc.dtype)

    def base_log_z(self) -> Tensor:
        """Log of the integral of the unnormalised p_0, ()."""
        if self.levels is not None:
            return self.loc.new_tensor(math.log(2)) * len(self.loc)
        return self.scale.log().sum() + 0.5 * math.log(2 * math.pi) * len(self.loc)

    def __str__(self) -> str:
        base = " N(x | m, s²)" if self.tilts else ""
        name = self.function if isinstance(self.function, nn.Module) else getattr(self.function, "__name__", "f")
        return f"{super().__str__()}\n  p(x) = exp(-f(x)){base} / Z\n  f = {name}"
