"""A function of tensors as a compiled graph: a Pyro pair is run once, and from then on without Python.

`torch.fx.experimental.proxy_tensor.make_fx` records the operations that one call performs, those of its backward pass
among them, so that whatever Pyro, an objective or a hook does in Python is done once; `torch.compile` makes a program
of the record. It holds for the shapes that it was recorded with, and draws the same random numbers as the function.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

Function = Callable[..., Any]

WORTH_COMPILING = 60.0
"""Seconds of uncompiled work ahead from which "auto" compiles, which takes from 3 to 25 of them."""

AGREEMENT = {"float32": 1e-3, "bf16": 5e-2}
"""Largest norm of the difference between a recorded result and the function's, relative to the latter's."""


class CaptureError(Exception):
    """A function cannot be compiled; says why in one line."""


def compiled(function: Function, inputs: tuple[Any, ...], state: nn.Module, precision: str = "float32") -> Function:
    """The function as a compiled graph, held to the function itself at the same random numbers.

    Args:
        function: of tensors and None, to a tuple of tensors and None; it may call `backward`, and may change buffers
            of `state`.
        inputs: an example of its arguments, tensors (the first) and None; the graph takes only these shapes.
        state: the module whose parameters and buffers the function uses. Buffers are as before afterwards.
        precision: of its networks, which bounds how well the two agree.

    Returns:
        A function of the same arguments; parameters and buffers are the same tensors, not copies.

    Raises:
        CaptureError: it depends on values in Python, there is no compiler, or the results differ.
    """
    cuda = inputs[0].is_cuda
    options: dict[str, Any] = {"fallback_random": True}
    if cuda:
        options["triton.cudagraphs"] = True
    # torch's own default is a directory that a restart of the machine empties.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_path("pyrolatent") / "inductor"))
    with _kept(state, [inputs[0].device] if cuda else []) as again, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own code
        expected = function(*inputs)
        again()
        try:
            graph = make_fx(lambda *arguments: function(*arguments))(*inputs)
            program = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
            again()
            with torch.no_grad():
                found = program(*inputs)
        except Exception as error:  # torch raises whatever went wrong in its many parts
            raise CaptureError(_reason(error)) from error
        for place, (one, other) in enumerate(zip(expected, found, strict=True)):
            if one is not None:
                _agree(place, one.detach(), other, AGREEMENT[precision])

    def run(*arguments: Any) -> Any:
        if cuda:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            return program(*arguments)

    return run


def _agree(place: int, expected: Tensor, found: Tensor, relative: float) -> None:
    difference, size = (found - expected).double().norm().item(), expected.double().norm().item()
    if not difference <= relative * size + 1e-6 * expected.numel() ** 0.5:
        raise CaptureError(
            f"its result {place} differs from the uncompiled one by {difference:.2g}, of a norm of {size:.2g}"
        )


@contextmanager
def _kept(state: nn.Module, devices: list[torch.device]) -> Iterator[Callable[[], None]]:
    """Gives a function that sets buffers and random numbers back, and calls it in the end."""
    buffers = [(buffer, buffer.clone()) for buffer in state.buffers()]
    with torch.random.fork_rng(devices=devices):
        cpu, others = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]

        def again() -> None:
            torch.set_rng_state(cpu)
            for device, other in zip(devices, others, strict=True):
                torch.cuda.set_rng_state(other, device)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)

        try:
            yield again
        finally:
            again()


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
