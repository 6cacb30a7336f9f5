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
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

Function = Callable[..., Any]

WORTH_COMPILING = 60.0
"""Seconds of uncompiled work ahead from which "auto" compiles, which takes from 3 to 25 of them."""

AGREEMENT = {"float32": 1e-3, "bf16": 5e-2}
"""Largest norm of the difference between a recorded result and the function's, relative to the latter's."""

AGAIN = (1, 2)
"""Seeds at which a record that differs has another chance: rounding can turn a discrete draw, though rarely."""


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
    release = tuple(map(int, torch.__version__.split(".")[:2]))
    if release < (2, 13):  # which reorders operations that draw random numbers
        options |= {"reorder_for_peak_memory": False, "reorder_for_locality": False}
    # torch's own default is a directory that a restart of the machine empties.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_path("pyrolatent") / "inductor"))
    with _kept(state, [inputs[0].device] if cuda else []) as at, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own code
        expected = at(0, function, inputs)
        try:
            graph = at(0, make_fx(lambda *arguments: function(*arguments)), inputs)
            program = torch.no_grad()(torch.compile(graph, fullgraph=True, dynamic=False, options=options))
            found = at(0, program, inputs)
        except Exception as error:  # torch raises whatever went wrong in its many parts
            raise CaptureError(_reason(error)) from error
        difference = _difference(expected, found, AGREEMENT[precision])
        for seed in AGAIN:
            if difference:
                difference = _difference(at(seed, function, inputs), at(seed, program, inputs), AGREEMENT[precision])
        if difference:
            raise CaptureError(difference)

    def run(*arguments: Any) -> Any:
        if cuda:
            torch.compiler.cudagraph_mark_step_begin()
        return program(*arguments)

    return run


def _difference(expected: tuple[Any, ...], found: tuple[Any, ...], relative: float) -> str | None:
    for place, (one, other) in enumerate(zip(expected, found, strict=True)):
        if one is None:
            continue
        difference, size = (other - one).detach().double().norm().item(), one.detach().double().norm().item()
        if not difference <= relative * size + 1e-6 * one.numel() ** 0.5:
            return f"its result {place} differs from the uncompiled one by {difference:.2g}, of a norm of {size:.2g}"
    return None


@contextmanager
def _kept(state: nn.Module, devices: list[torch.device]) -> Iterator[Callable[[int, Function, tuple[Any, ...]], Any]]:
    """Gives what calls a function at a seed and the buffers as they are now; in the end sets all of that back."""
    buffers = [(buffer, buffer.clone()) for buffer in state.buffers()]

    def back() -> None:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)

    def at(seed: int, function: Function, inputs: tuple[Any, ...]) -> Any:
        torch.manual_seed(seed)
        back()
        return function(*inputs)

    with torch.random.fork_rng(devices=devices):
        try:
            yield at
        finally:
            back()


def _reason(error: BaseException) -> str:
    if "value out of a tracing tensor" in str(error):
        return "Python decides by the values of tensors on the way, which no graph records"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
