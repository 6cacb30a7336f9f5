"""Conditional distributions: a likelihood p(x | z) or a posterior q(z | x) is a network and a family."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint

from pyrolatent.declaration import build
from pyrolatent.errors import InputError
from pyrolatent.models.components.distributions import Image, SideBySide
from pyrolatent.models.components.family import Family

if TYPE_CHECKING:
    from pyrolatent.models.components.scaling import Scaling

_precision: ContextVar[torch.dtype] = ContextVar("precision", default=torch.float32)


@contextmanager
def networks_in(precision: torch.dtype) -> Iterator[None]:
    """Networks compute in this type within this context; their outputs and all log-probabilities keep their own."""
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


def apply_network(network: nn.Module, *inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    """The output of a network in the type of its input, computed in the precision of `networks_in`.

    Args:
        network: the network; it receives `mask` if it takes masks.
        *inputs: the value that is conditioned on, and labels.
        mask: True where the first input is observed, of its shape.
    """
    precision = _precision.get()
    masks = {} if mask is None or getattr(network, "missing", None) is None else {"mask": mask}
    with torch.autocast(inputs[0].device.type, precision, enabled=precision != torch.float32):
        given = network(*inputs, **masks)
    return given.to(inputs[0].dtype)


class Conditional(nn.Module):
    """p(v | c, y) = family(network(c, y)): the network returns unconstrained numbers, the family a distribution.

    Args:
        network: maps (batch, *input_shape), and (batch, label_dim) if there are labels, to
            (batch, *family.unconstrained_shape).
        family: maps unconstrained numbers to the elementwise distribution.
        input_shape: shape of one c.
        label_dim: number of classes or width of y, 0 for none.
        start_at_data: whether the network's last bias is initialised where the family fits the data best without c; a
            family may ask for it itself, as `columns` does.

    Raises:
        InputError: the network does not take such an input, or its output does not fit the family.
    """

    def __init__(
        self,
        network: nn.Module,
        family: Family,
        input_shape: tuple[int, ...],
        label_dim: int = 0,
        *,
        start_at_data: bool = False,
    ) -> None:
        super().__init__()
        if start_at_data and not hasattr(network, "set_output"):
            raise InputError(
                f"{_described(network)} has no set_output, which the bias from the data needs; leave it out"
            )
        self.start_at_data = start_at_data or (family.starts_at_data and hasattr(network, "set_output"))
        self.network = network
        self.family = family
        self.input_shape = torch.Size(input_shape)
        self.label_dim = label_dim
        self._probe()

    def forward(self, value: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> TorchDistributionMixin:
        """The distribution of v given `value` (..., *input_shape) and y, with batch shape (...).

        Leading dimensions of `value` and y broadcast and are flattened for the network, so that it has one batch
        dimension for any number of particles.

        Args:
            value: the value that is conditioned on, (..., *input_shape).
            y: class labels (...) or label vectors (..., label_dim).
            mask: True where `value` is observed, of its shape; for networks that take it.

        Raises:
            InputError: labels are missing, or were given to a model without labels.
        """
        lead = value.shape[: value.dim() - len(self.input_shape)]
        if y is None and not self.label_dim:
            flat = None if mask is None else mask.expand(value.shape).reshape((-1, *self.input_shape))
            numbers = apply_network(self.network, value.reshape((-1, *self.input_shape)), mask=flat)
        else:
            label = one_hot(y, self.label_dim).to(value.dtype)
            lead = torch.broadcast_shapes(lead, label.shape[:-1])
            value = value.expand((*lead, *self.input_shape)).reshape((-1, *self.input_shape))
            flat = None if mask is None else mask.expand((*lead, *self.input_shape)).reshape(value.shape)
            label = label.expand((*lead, self.label_dim)).reshape(-1, self.label_dim)
            numbers = apply_network(self.network, value, label, mask=flat)
        elementwise = self.family(numbers.reshape((*lead, *self.family.unconstrained_shape)))
        return elementwise.to_event(self.family.event_dims)

    def initialise(self, batch: Tensor, mask: Tensor | None = None) -> None:
        """Sets the last bias to the constant u that maximises log p(batch; u), found by 200 steps of Adam from 0."""
        if not self.start_at_data:
            return
        constant = batch.new_zeros(self.family.unconstrained_shape, requires_grad=True)
        optimizer = torch.optim.Adam([constant], lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            fitted = self.family(constant.unsqueeze(0)).to_event(self.family.event_dims)
            observed = masked(fitted, mask)
            observed.log_prob(filled(batch, mask, fitted.support)).mean().neg().backward()
            optimizer.step()
        set_output: Any = self.network.set_output
        set_output(constant.detach())

    def __str__(self) -> str:
        return f"{self.family} of {_described(self.network)}"

    @torch.no_grad()
    def _probe(self) -> None:
        parameter = next(self.network.parameters(), torch.empty(0))
        inputs = [parameter.new_zeros((2, *shape)) for shape in (self.input_shape, (self.label_dim,)) if shape != (0,)]
        needed = f"{self.family} over {tuple(self.family.event_shape)} needs {tuple(self.family.unconstrained_shape)}"
        labels = inputs[-1].requires_grad_() if self.label_dim else None
        if labels is not None:
            labels.data[0, 0], labels.data[1, -1] = float(self.label_dim > 1), 1.0  # two that differ
        training = self.network.training
        self.network.eval()
        try:
            with torch.enable_grad():
                given = self.network(*inputs)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            given_shapes = " and labels ".join(str(tuple(value.shape[1:])) for value in inputs)
            raise InputError(
                f"the network {_described(self.network)} does not take inputs of the shape {given_shapes}, from which "
                f"{needed}: {reason}"
            ) from error
        self.network.train(training)
        if given.shape != (2, *self.family.unconstrained_shape):
            raise InputError(
                f"the network {_described(self.network)} gives {tuple(given.shape[1:])} for each input of the shape "
                f"{tuple(self.input_shape)}, but {needed}"
            )
        if labels is not None and not _sees(given, labels):
            raise InputError(
                f"the network {_described(self.network)} gives the same for every label, of which there are "
                f"{self.label_dim}; let its constructor take label_dim: int = 0, and give an instance label_dim"
            )


def _sees(given: Tensor, labels: Tensor) -> bool:
    """Whether the output of a network for the same input depends on labels (2, label_dim), in value or gradient."""
    if not torch.equal(given[0], given[1]):
        return True
    if not given.requires_grad:
        return False
    return torch.autograd.grad(given, labels, torch.ones_like(given), allow_unused=True)[0] is not None


def given_gaps(part: nn.Module, scaling: "Scaling", x: Tensor, y: Tensor | None, mask: Tensor | None) -> Any:
    """Calls a posterior or network on x with missing entries, which are set to 0, and with the mask if it takes one.

    Args:
        part: the posterior or network.
        scaling: how x is scaled for it.
        x: data (batch, *event_shape).
        y: labels; None if there are none.
        mask: True where x is observed; None if all of it is.
    """
    seen = scaling(x, mask)
    if mask is None or not isinstance(part, Conditional):
        return part(seen, y)
    return part(seen, y, scaling.seen(mask))


def one_hot(y: Tensor | None, label_dim: int) -> Tensor:
    """Labels as vectors (..., label_dim): class labels (...) one-hot, vectors as they are.

    Raises:
        InputError: labels are missing, were given to a model without labels, or have another width.
    """
    if not label_dim:
        raise InputError("labels were given to an unconditional model; leave them out, or declare conditional_vae")
    if y is None:
        raise InputError(
            f"the model is conditional on labels of {label_dim} classes or dimensions, but none were given"
        )
    if y.is_floating_point():
        if y.shape[-1] != label_dim:
            raise InputError(f"labels have {y.shape[-1]} dimensions, but the model was built for {label_dim}")
        return y
    return (y.unsqueeze(-1) == torch.arange(label_dim, device=y.device)).to(torch.get_default_dtype())


def _described(module: nn.Module) -> str:
    return str(module) if type(module).__str__ is not object.__str__ else type(module).__name__


def conditional(
    kind: str,
    family: Any,
    network: Any,
    input_shape: tuple[int, ...],
    event_shape: tuple[int, ...],
    label_dim: int = 0,
    *,
    start_at_data: bool = False,
    **supplied: Any,
) -> nn.Module:
    """Builds a likelihood or posterior from the declarations of its family and its network.

    Args:
        kind: "likelihood" or "posterior".
        family: declaration of the family; a component that is not a `Family` is itself the conditional distribution.
        network: declaration of the network.
        input_shape: shape of the value that is conditioned on.
        event_shape: shape of one value of the distribution.
        label_dim: number of classes or width of the labels, 0 for none.
        start_at_data: whether the network's last bias is initialised from the data.
        **supplied: what else the model can supply to the family.
    """
    built = build(kind, family, event_shape=event_shape, label_dim=label_dim, **supplied)
    if not isinstance(built, Family):
        return built
    shapes = {"input_shape": tuple(input_shape), "output_shape": tuple(built.unconstrained_shape)}
    network = build("network", network, **shapes, label_dim=label_dim)
    return Conditional(network, built, input_shape, label_dim, start_at_data=start_at_data)


def masked(distribution: TorchDistributionMixin, mask: Tensor | None) -> TorchDistributionMixin:
    """The distribution scored only where `mask` (batch, *event_shape) is True.

    Raises:
        InputError: its elements are not independent, so some of them cannot be scored without the others.
    """
    if mask is None:
        return distribution
    elementwise = distribution.base_dist if isinstance(distribution, dist.Independent) else distribution
    if elementwise.event_shape:
        raise InputError(
            f"{type(elementwise).__name__} does not factorise over its elements, so it takes no mask; "
            "declare a likelihood whose elements are independent"
        )
    return elementwise.mask(mask).to_event(distribution.event_dim)


def filled(x: Tensor, mask: Tensor | None, support: Constraint = constraints.real) -> Tensor:
    """`x` with unobserved entries replaced by a value in the support, which is 0 for real numbers.

    Otherwise a NaN behind a mask would give NaN gradients.
    """
    return x if mask is None else torch.where(mask, x, value_in(support).to(x))


def value_in(support: Constraint) -> Tensor:
    """A value in the support of one element; one for each entry of x, (*event_shape), where they have units."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, Image):
        return support.transform(value_in(support.base))
    if isinstance(support, SideBySide):
        each = zip(support.parts, support.index, strict=True)
        return torch.cat([value_in(part).to(index.device).expand(len(index)) for part, index in each])[support.order]
    zero = torch.zeros(())
    if support.is_discrete:
        return torch.as_tensor(getattr(support, "lower_bound", zero), dtype=zero.dtype)
    return transform_to(support)(zero)
