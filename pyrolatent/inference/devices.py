"""The device that a model runs on, and evaluation that changes neither the model nor the random state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pyrolatent.declaration import choices
from pyrolatent.errors import InputError, validate_seed
from pyrolatent.models.arrays import device_and_dtype
from pyrolatent.models.isolation import evaluating_alone


@contextmanager
def evaluating(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Runs a model in evaluation mode, isolated from the caller's handlers and random state, within this context.

    Args:
        model: the model; its modules return to their previous modes afterwards.
        seed: seed of the draws within; None continues from the caller's random state.

    Raises:
        InputError: the seed is not an integer from 0 to 2**63 - 1, or `device_and_dtype` refuses the model.
    """
    validate_seed(seed)
    device, _ = device_and_dtype(model)
    devices = [device] if device.type == "cuda" else []
    with evaluating_alone(model), torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed keeps a traceback where CUDA has not begun
            if devices:
                torch.cuda.manual_seed_all(seed)
        yield


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is an accelerator if there is one.

    Raises:
        InputError: the machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name not in (*available, "auto"):
        raise InputError(f"there is no device {name!r}; {choices(name, ['auto', *available])}")
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        raise InputError(f"device was {name!r}, but this machine has none; use auto or cpu")
    return torch.device(name)
