"""The restricted Boltzmann machine."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrolatent.declaration import Kind, PositiveFloat, PositiveInt, build, component
from pyrolatent.errors import InputError
from pyrolatent.models.components.conditional import one_hot
from pyrolatent.models.energies.density import Beta, UnnormalisedDensity
from pyrolatent.models.energies.visible_units import LabelledUnits, Units, bernoulli, softplus
from pyrolatent.models.latent import require_labels
from pyrolatent.models.model import Capability

EXACT = 20
"""Largest number of binary units in the smaller layer for which log Z is summed over its states."""
CHUNK = 2**11
"""States per chunk of that sum, small enough for a processor's cache."""
DECAY = 0.99
"""Decay of the running means of the units over the data."""


class Layers(NamedTuple):
    """The state of chains.

    Attributes:
        v: statistics of the visible units, (chains, visible).
        field: c + v W, the log-odds of the hidden units, (chains, hidden).
    """

    v: Tensor
    field: Tensor


@component("rbm", "model")
class RestrictedBoltzmannMachine(UnnormalisedDensity):
    """E(x, h) = -t(x)·b - h·c - t(x) W h over binary h; F(x) = -t(x)·b - ∑_j softplus(c_j + (t(x) W)_j).

    t(x) is x itself for bits, (x - m) / σ for real numbers, and a one-hot code for integers; with label units the code
    of y is appended to that of x (Smolensky 1986; Hinton 2002). The base has independent units with the data's means,
    by biases b_0, and E_β = -t·(β b + (1 - β) b_0) - β (h·c + t W h) on the path (Salakhutdinov and Murray 2008).

    Args:
        event_shape: shape of one datapoint x.
        label_dim: number of classes in the data.
        hidden: number of hidden units.
        visible: the visible units.
        labels: whether to model p(x, y), with one unit per class.
        centred: whether gradients are those of the energy in x - E[x], h - E[h], the means being over the data, which
            learns faster and reaches a better likelihood (Melchior, Fischer and Wiskott 2016, 1311.1354); the model is
            the same.
        spread: standard deviation of the initial weights; small RBMs benefit from a larger one.
    """

    always_offers = UnnormalisedDensity.always_offers | {Capability.HIDDEN_UNITS}

    mu: Tensor
    activity: Tensor
    base_bias: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        label_dim: int = 0,
        *,
        hidden: PositiveInt,
        visible: Annotated[Any, Kind("units")] = "bernoulli",
        labels: bool = False,
        centred: bool = True,
        spread: PositiveFloat = 0.01,
    ) -> None:
        event_shape = tuple(event_shape)
        units = build("units", visible, event_shape=event_shape)
        super().__init__(event_shape, units.levels)
        if labels:
            require_labels(label_dim, "rbm with labels: true")
            self.label_dim = label_dim
            units = LabelledUnits(units, label_dim)
        self.units: Units = units
        self.centred = centred
        self._visible_sizes: list[int] | None = None  # Python integers, which can be traced
        if units.levels is not None:
            self._visible_sizes = [*units.levels.tolist(), *([label_dim] if labels else [])]
        self.weight = nn.Parameter(spread * torch.randn(units.width, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(units.width))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("base_bias", torch.zeros(units.width))
        self.register_buffer("mu", units.mean(torch.zeros(units.width)))
        self.register_buffer("activity", torch.full((hidden,), 0.5))

    @torch.no_grad()
    def initialise(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Sets visible biases and base to the data's means, with one datapoint of each value added (Hinton 2010).

        Biases other than 0 belong to a trained RBM and are kept.
        """
        units = self.units.of_x
        if self.visible_bias.any() or not units.begin_at(x):
            return
        seen = units.statistic(x)
        prior = units.mean(torch.zeros_like(seen[0]))
        mean = (seen.sum(0) + 2 * prior) / (len(x) + 2) if self.levels is not None else seen.mean(0)
        self.mu[: units.width] = mean
        self.base_bias[: units.width] = units.natural(mean)
        self.visible_bias.copy_(self.base_bias)

    def resume(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Warns if the data of continued training are far from the units of real x, which do not change."""
        self.units.of_x.warn_if_far(x)

    # Chains.

    def state(self, x: Any, y: Any = None) -> Layers:
        """Chains at data (batch, *event_shape), and at labels (batch,) if the model has label units.

        A label that is missing or -1 is drawn from p(y | x).
        """
        x, y = self.validated(x, y)
        flat = x.reshape(len(x), -1)
        if self.label_dim:
            labels = torch.full((len(x),), -1, device=x.device) if y is None else y
            if (labels < 0).any():
                drawn = torch.multinomial(self.classify(x).detach(), 1).squeeze(-1)
                labels = torch.where(labels < 0, drawn, labels)
            flat = torch.cat([flat, functional.one_hot(labels, self.label_dim).to(flat)], -1)
        return self.restore(flat)

    def restore(self, flat: Tensor) -> Layers:
        """The state of entries of x (chains, width), followed by the code of y if there are label units."""
        return self._layers(self.units.statistic(flat))

    def flat(self, state: Layers) -> Tensor:
        """The entries of x, followed by the code of y if there are label units, (chains, width)."""
        return self.units.value(state.v)

    def _layers(self, v: Tensor) -> Layers:
        return Layers(v, v @ self.weight + self.hidden_bias)

    def visible(self, state: Layers) -> Tensor:
        """x of a state, (chains, *event_shape)."""
        return self.flat(state)[:, : self.event_shape.numel()].reshape(-1, *self.event_shape)

    def log_density(self, state: Layers, beta: Beta = 1.0) -> Tensor:
        """log ∑_h exp(-E_β(x, h)), (chains,)."""
        v, field = state
        hidden = softplus(_times(beta, field)).sum(-1)
        bias = self._visible_bias(beta)
        return hidden + (v @ bias if bias.dim() == 1 else (v * bias).sum(-1)) + self.units.log_base(v)

    def _visible_bias(self, beta: Beta) -> Tensor:
        if _is_one(beta):
            return self.visible_bias
        return beta * self.visible_bias + (1 - beta) * self.base_bias

    @torch.no_grad()
    def gibbs(self, state: Layers, beta: Beta = 1.0) -> Layers:
        """Draws h ~ p_β(h | x), then x ~ p_β(x | h), by two matrix products and two layers of draws."""
        h = bernoulli(_times(beta, state.field))
        eta = _times(beta, h @ self.weight.T) + self._visible_bias(beta)
        return self._layers(self.units.sample(eta))

    @torch.no_grad()
    def mean_visible(self, state: Layers) -> Tensor:
        """E[x | h] at one draw of h, (chains, *event_shape), which looks smoother than x."""
        eta = torch.addmm(self.visible_bias, bernoulli(state.field), self.weight.T)
        return self.visible(Layers(self.units.mean(eta), state.field))

    @torch.no_grad()
    def base(self, size: int) -> Layers:
        """Independent draws of the visible units from the base."""
        return self._layers(self.units.sample(self.base_bias.expand(size, -1)))

    def base_log_z(self) -> Tensor:
        """A(b_0) + hidden log 2, ()."""
        return self.units.log_partition(self.base_bias) + len(self.hidden_bias) * math.log(2)

    # Energies and inference.

    def free_energy(self, x: Any, y: Any = None) -> Tensor:
        """F(x), (batch,); with label units F(x, y), or F(x) = -log ∑_y exp(-F(x, y)) where y is missing or -1."""
        if not self.label_dim:
            return -self.log_density(self.state(x, y))
        x, y = self.validated(x, y)
        joint = self._of_classes(x)[0]
        total = -joint.neg().logsumexp(-1)
        if y is None:
            return total
        return torch.where(y < 0, total, joint.gather(-1, y.clamp(min=0)[:, None]).squeeze(-1))

    def energy(self, x: Any, h: Any, y: Any = None) -> Tensor:
        """E(x, h), (batch,), with label units E(x, y, h), whose free energy is F = -log ∑_h exp(-E).

        Args:
            x: data (batch, *event_shape).
            h: states of the hidden units in {0, 1}, (batch, hidden).
            y: labels (batch,), which a model with label units needs.
        """
        if self.label_dim and (y is None or bool((torch.as_tensor(y) < 0).any())):
            raise InputError("the energy of x and h is also of y; give the label of every row")
        v, field = self.state(x, y)
        h = torch.as_tensor(h).to(field)
        if h.shape != field.shape:
            raise InputError(f"h has shape {tuple(h.shape)}; expected a state for each row, {tuple(field.shape)}")
        return -(v @ self.visible_bias) - self.units.log_base(v) - (h * field).sum(-1)

    def class_energies(self, x: Any) -> Tensor:
        """F(x, y) of every class, (batch, label_dim)."""
        if not self.label_dim:
            raise InputError("the RBM has no label units; declare rbm with labels: true")
        return self._of_classes(self.validated(x)[0])[0]

    def _of_classes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """F(x, y) of every class, (batch, label_dim), and its fields of hidden units, (batch, label_dim, hidden)."""
        v, field = self.restore(functional.pad(x.reshape(len(x), -1), (0, self.label_dim)))
        fields = field[:, None] + self.weight[-self.label_dim :]
        of_x = (v * self.visible_bias).sum(-1) + self.units.log_base(v)
        of_y = self.visible_bias[-self.label_dim :] + softplus(fields).sum(-1)
        return -(of_x[:, None] + of_y), fields

    def classify(self, x: Any) -> Tensor:
        """p(y | x) ∝ exp(-F(x, y)), (batch, label_dim) (Larochelle and Bengio 2008)."""
        return self.class_energies(x).neg().softmax(-1)

    def encode(self, x: Any, y: Any = None) -> Tensor:
        """p(h_j = 1 | x), (batch, hidden); with label units p(h_j = 1 | x, y) where y is given and not -1."""
        if not self.label_dim:
            return torch.sigmoid(self.state(x, y).field)
        x, y = self.validated(x, y)
        energies, fields = self._of_classes(x)
        likely = energies.neg().softmax(-1)
        if y is not None:
            likely = torch.where(y[:, None] < 0, likely, one_hot(y, self.label_dim))
        return (likely[..., None] * torch.sigmoid(fields)).sum(1)

    @property
    def has_conditionals(self) -> bool:
        """Always true: the units of each layer are independent given the other."""
        return True

    @property
    def tractable(self) -> bool:
        """Whether the hidden or the visible layer has at most 2^20 states."""
        return len(self.hidden_bias) <= EXACT or self._few_visible

    @property
    def _few_visible(self) -> bool:
        bits = math.inf if self._visible_sizes is None else sum(map(math.log2, self._visible_sizes))
        return bits <= EXACT and bits < len(self.hidden_bias)

    def log_z(self) -> Tensor:
        """log Z, (), summed over the states of the smaller layer in chunks.

        Raises:
            InputError: both layers are too large.
        """
        if not self.tractable:
            raise InputError(
                f"both layers have more than 2^{EXACT} states, so log Z cannot be summed; estimate it with ais"
            )
        return torch.stack([chunk.logsumexp(0) for _, chunk in self._scored()]).logsumexp(0)

    def _scored(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The states of the smaller layer in chunks, with their log-weights; the weights add up to Z."""
        if self._few_visible:
            for v in self._visible_states():
                yield v, self.log_density(self._layers(v))
        else:
            for h in _bits(len(self.hidden_bias), self.weight):
                eta = h @ self.weight.T + self.visible_bias
                yield h, h @ self.hidden_bias + self.units.log_partition(eta)

    def _visible_states(self) -> Iterator[Tensor]:
        assert self._visible_sizes is not None
        total = math.prod(self._visible_sizes)
        for start in range(0, total, CHUNK):
            index = torch.arange(start, min(start + CHUNK, total), device=self.weight.device)
            values = []
            for size in reversed(self._visible_sizes):
                values.append(index % size)
                index = index // size
            x = torch.stack(values[::-1], -1).to(self.weight)
            if self.label_dim:
                x = torch.cat([x[:, :-1], functional.one_hot(x[:, -1].long(), self.label_dim).to(x)], -1)
            yield self.units.statistic(x)

    @torch.no_grad()
    def exact_sample(self, size: int) -> Layers:
        """Independent draws of the smaller layer from its marginal, then of the other layer given it."""
        chunks = list(self._scored()) if self.tractable else [(self.weight, self.log_z())]
        log_weights = torch.cat([weights for _, weights in chunks]).double()
        # By inversion of the distribution function, since torch.multinomial is limited to 2^24 states.
        cumulative = log_weights.softmax(0).cumsum(0)
        u = torch.rand(size, dtype=torch.float64, device=cumulative.device) * cumulative[-1]
        chosen = torch.searchsorted(cumulative, u, right=True).clamp(max=len(cumulative) - 1)
        states = torch.cat([states for states, _ in chunks])[chosen]
        if self._few_visible:
            return self._layers(states)
        return self._layers(self.units.sample(torch.addmm(self.visible_bias, states, self.weight.T)))

    # Training.

    def contrast(self, positive: Layers, negative: Layers) -> Tensor:
        """As in the base class; in closed form, by two products, if the visible units have no parameters."""
        if any(p.requires_grad for p in self.units.parameters()):
            return super().contrast(positive, negative)
        with torch.no_grad():
            h, g = torch.sigmoid(positive.field) / -len(positive.v), torch.sigmoid(negative.field) / len(negative.v)
            gradients = {
                self.weight: (positive.v.T @ h).addmm_(negative.v.T, g),
                self.visible_bias: negative.v.mean(0) - positive.v.mean(0),
                self.hidden_bias: g.sum(0) + h.sum(0),
            }
            for parameter, gradient in gradients.items():
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            return self.log_density(negative).mean() - self.log_density(positive).mean()

    @torch.no_grad()
    def observe(self, state: Layers) -> None:
        """Updates the running means of the units over the data."""
        self.mu.lerp_(state.v.mean(0), 1 - DECAY)
        self.activity.lerp_(torch.sigmoid(state.field).mean(0), 1 - DECAY)

    @torch.no_grad()
    def monitor(self, x: Tensor, y: Tensor | None = None) -> dict[str, float]:
        """Diagnostics of training from Hinton's practical guide (2010).

        `reconstruction_error` is the mean square of x - E[x | h ~ p(h | x)], which training does not minimise; `dead`
        is the share of hidden units that are off, or on, for more than 99% of the data; `weight_norm` is the root mean
        square over hidden units of the norms of their weights.
        """
        state = self.state(x, y)
        activity = torch.sigmoid(state.field).mean(0)
        return {
            "reconstruction_error": (self.mean_visible(state) - self.visible(state)).square().mean().item(),
            "dead": ((activity < 0.01) | (activity > 0.99)).double().mean().item(),
            "weight_norm": self.weight.square().sum(0).mean().sqrt().item(),
        }

    @torch.no_grad()
    def adjust_gradients(self) -> None:
        """Centres gradients: they become those in the parameters of -(t - μ)·b' - (h - λ)·c' - (t - μ) W (h - λ).

        From the plain gradients g_W, g_b, g_c these are G_W = g_W - μ g_c - g_b λ, G_b = g_b - G_W λ and
        G_c = g_c - μ G_W, which vanish where the plain ones do; μ and λ are the means of the units over the data.
        """
        w, b, c = self.weight.grad, self.visible_bias.grad, self.hidden_bias.grad
        if not self.centred or w is None or b is None or c is None:
            return
        w.addmm_(torch.stack([self.mu, b], 1), torch.stack([c, self.activity]), alpha=-1)
        b.addmv_(w, self.activity, alpha=-1)
        c.addmv_(w.T, self.mu, alpha=-1)

    @torch.no_grad()
    def penalise(self, state: Layers, weight_decay: float, sparsity_target: float | None, sparsity_cost: float) -> None:
        """Adds the gradients of weight decay and of a sparsity target to the parameters' (Hinton 2010, sections 10-11).

        The activity q is the mean over the batch: a running mean would lag behind, and training overshoot the target.

        Args:
            state: the states of the batch.
            weight_decay: factor of half the sum of squared weights; biases are not decayed.
            sparsity_target: target of the mean activity q of each hidden unit, in a cross-entropy.
            sparsity_cost: factor of the derivative q - target.
        """
        assert self.weight.grad is not None
        assert self.hidden_bias.grad is not None
        if weight_decay:
            self.weight.grad.add_(self.weight, alpha=weight_decay)
        if sparsity_target is not None:
            excess = sparsity_cost * (torch.sigmoid(state.field).mean(0) - sparsity_target)
            self.hidden_bias.grad.add_(excess)
            self.weight.grad.addr_(state.v.mean(0), excess)

    def __str__(self) -> str:
        units = self.units.of_x
        kind = type(units).__name__.removesuffix("Units").lower()
        label = f" and {self.label_dim} label units" if self.label_dim else ""
        entries = self.event_shape.numel()
        return "\n".join(
            [
                super().__str__(),
                f"  p(x{', y' if label else ''}, h) = exp(b·t + c·h + t W h) / Z",
                f"  t = {entries} {kind} units{units.values}{label}, h = {len(self.hidden_bias)} binary units",
                f"  log Z {'by enumeration' if self.tractable else 'by annealed importance sampling'}",
            ]
        )


def _is_one(beta: Beta) -> bool:
    return isinstance(beta, float) and beta == 1.0


def _times(beta: Beta, value: Tensor) -> Tensor:
    return value if _is_one(beta) else beta * value


def _bits(width: int, like: Tensor) -> Iterator[Tensor]:
    """All 2^width binary vectors in chunks (states, width), with the type and device of `like`."""
    powers = 2 ** torch.arange(width, device=like.device)
    for start in range(0, 2**width, CHUNK):
        index = torch.arange(start, min(start + CHUNK, 2**width), device=like.device)
        yield (index[:, None] // powers % 2).to(like)
