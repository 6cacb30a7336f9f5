"""Conditional distributions: a likelihood p(x | z) and a posterior q(z | x) are a network and a family."""

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import transform_to
from torch.distributions.constraints import Constraint

from pyrolatent.errors import InputError
from pyrolatent.models.families import Family


class Conditional(nn.Module):
    """p(v | c) = family(network(c)): the network gives unconstrained numbers, the family a distribution.

    Args:
        network: maps (batch, *input_shape) to (batch, *family.unconstrained_shape).
        family: maps unconstrained numbers to the elementwise distribution.
        input_shape: shape of one c.
    """

    def __init__(self, network: nn.Module, family: Family, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.family = family
        self.input_shape = torch.Size(input_shape)

    def forward(self, value: Tensor, y: Tensor | None = None) -> TorchDistributionMixin:
        """The distribution of v given `value` (..., *input_shape), with batch shape (...).

        Leading dimensions are flattened for the network, so that it sees one batch dimension whatever the number
        of particles.

        Raises:
            InputError: the network's output does not have the shape that the family needs.
        """
        if y is not None:
            raise InputError("labels were given to an unconditional model; leave them out or declare a conditional one")
        lead = value.shape[: value.dim() - len(self.input_shape)]
        numbers = self.network(value.reshape((-1, *self.input_shape)))
        if numbers.shape[1:] != self.family.unconstrained_shape:
            raise InputError(
                f"the network gives {tuple(numbers.shape[1:])} for each input, but {self.family} over "
                f"{tuple(self.family.event_shape)} needs {tuple(self.family.unconstrained_shape)}"
            )
        elementwise = self.family(numbers.reshape((*lead, *self.family.unconstrained_shape)))
        return elementwise.to_event(self.family.event_dims)

    def __str__(self) -> str:
        name = self.network if type(self.network).__str__ is not object.__str__ else type(self.network).__name__
        return f"{self.family} of {name}"


def masked(distribution: TorchDistributionMixin, mask: Tensor | None) -> TorchDistributionMixin:
    """The distribution scored only where `mask` (batch, *event_shape) is True.

    Raises:
        InputError: its elements are not independent, so that a part of them cannot be scored alone.
    """
    if mask is None:
        return distribution
    factorises = isinstance(distribution, dist.Independent) and not distribution.base_dist.event_shape
    if not factorises:
        raise InputError(
            f"{type(distribution).__name__} does not factorise over its elements, so it takes no mask; "
            "declare a likelihood whose elements are independent"
        )
    return distribution.base_dist.mask(mask).to_event(distribution.reinterpreted_batch_ndims)


def filled(x: Tensor, mask: Tensor | None, support: Constraint) -> Tensor:
    """`x` with a value in the support where it is not observed: NaN behind a mask still gives NaN gradients."""
    return x if mask is None else torch.where(mask, x, value_in(support).to(x))


def value_in(support: Constraint) -> Tensor:
    """A value in the support of one element."""
    while isinstance(support, torch.distributions.constraints.independent):
        support = support.base_constraint
    zero = torch.zeros(())
    if support.is_discrete:
        return torch.as_tensor(getattr(support, "lower_bound", zero), dtype=zero.dtype)
    return transform_to(support)(zero)
