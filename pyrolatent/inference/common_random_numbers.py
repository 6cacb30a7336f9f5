"""Common random numbers: draws of a datapoint that do not depend on the others in its batch."""

import math
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrolatent.inference.weights import PARTICLES


class CommonRandomNumbers(Messenger):
    """Draws each site at the same random numbers for all datapoints, on the CPU, within this context.

    At one seed a datapoint has the same draws in every batch. Draws outside of sites are left as they are.

    Args:
        plate: the plate over datapoints; None: the one that a site lies in.
    """

    def __init__(self, plate: str | None = None) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or site_is_subsample(msg):
            return
        for frame in msg["cond_indep_stack"]:
            if frame.vectorized and frame.name != PARTICLES and self.plate in (None, frame.name):
                shape = tuple(msg["fn"].batch_shape)
                with _RowByRow(shape, len(shape) + frame.dim):
                    msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
                msg["done"] = True
                return


class _RowByRow(TorchDispatchMode):
    """Runs random operations for each row from one state of the generator, and once if the rows do not differ.

    Args:
        shape: the first dimensions of what operations take and return, which some flatten.
        dim: the one that the rows are along.
    """

    def __init__(self, shape: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.shape, self.one = shape, (*shape[:dim], 1, *shape[dim + 1 :])
        self.dim, self.rows = dim, shape[dim]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **(kwargs or {}))
        in_place, drawn = function._schema.is_mutable, []
        seed, generator = int(torch.randint(2**62, ())), torch.default_generator
        state = generator.get_state()
        for row in range(1 if all(map(self._alike, args[in_place:])) else self.rows):
            generator.manual_seed(seed)
            drawn.append(function(*(self._row(value, row) for value in args), **(kwargs or {})))
        generator.set_state(state)  # of which rejection samplers use more or less
        flat = any(map(self._flat, args))
        each = [value.unflatten(0, self.one) if flat else value for value in drawn]
        joined = torch.cat(each * (self.rows // len(each)), self.dim)
        joined = joined.flatten(0, len(self.one) - 1) if flat else joined
        return args[0].copy_(joined) if in_place else joined

    def _row(self, value: Any, row: int) -> Any:
        """An argument for one row; what does not have the dimensions is for all."""
        lead = len(self.shape)
        if self._flat(value):
            return value.unflatten(0, self.shape).narrow(self.dim, row, 1).flatten(0, lead - 1)
        if isinstance(value, Tensor):
            return value.narrow(self.dim, row, 1).contiguous() if value.shape[:lead] == self.shape else value
        return [*self.one, *value[lead:]] if isinstance(value, list) and tuple(value[:lead]) == self.shape else value

    def _flat(self, value: Any) -> bool:
        """Whether an argument has the dimensions, flattened."""
        tensor = isinstance(value, Tensor) and value.dim() and value.shape[: len(self.shape)] != self.shape
        return bool(tensor and len(value) == math.prod(self.shape))

    def _alike(self, value: Any) -> bool:
        """Whether an argument is the same for all rows."""
        if not isinstance(value, Tensor):
            return True
        whole = value.unflatten(0, self.shape) if self._flat(value) else value
        return whole.shape[: len(self.shape)] != self.shape or bool((whole == whole.narrow(self.dim, 0, 1)).all())
