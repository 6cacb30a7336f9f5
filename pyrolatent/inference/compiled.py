"""Compiling a function of tensors to a graph, so that a Pyro pair runs in Python only once.

`torch.fx.experimental.proxy_tensor.make_fx` traces the operations of one call, including its backward pass, so that the
Python of Pyro, objectives and hooks runs once; `torch.compile` compiles the trace. The result is valid for the shapes
of that call, and draws the same random numbers as the function.
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
"""Seconds of remaining uncompiled work from which "auto" compiles, which itself takes 3 to 25 seconds."""

AGREEMENT = {"float32": 1e-3, "bf16": 5e-2}
"""Largest norm of the difference between the results of graph and function, relative to that of the latter."""

RETRY_SEEDS = (1, 2)
"""Number of further seeds for a graph that differs: rounding may, rarely, change a discrete draw."""


class CaptureError(Exception):
    """A function cannot be compiled; the message is one line."""


def compiled(function: Function, inputs: tuple[Any, ...], state: nn.Module, precision: str = "float32") -> Function:
    """Compiles a function, and compares the result with the function at the same random numbers.

    Args:
        function: a function from tensors and None to a tuple of tensors and None; it may call `backward` and change
            buffers of `state`.
        inputs: example arguments, tensors (the first) and None; the graph takes only these shapes.
        state: the module whose parameters and buffers the function uses; its buffers are restored afterwards.
        precision: precision of its networks, which limits the agreement of the two.

    Returns:
        A function of the same arguments that uses the same parameters and buffers, not copies.

    Raises:
        CaptureError: the function depends on values in Python, there is no compiler, or the results differ.
    """
    cuda = inputs[0].is_cuda
    options: dict[str, Any] = {"fallback_random": True}
    if cuda:
        options["triton.cudagraphs"] = True
    release = tuple(map(int, torch.__version__.split(".")[:2]))
    if release < (2, 13):  # older torch reorders operations that draw random numbers
        options |= {"reorder_for_peak_memory": False, "reorder_for_locality": False}
    # torch's default directory is emptied when the computer restarts.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_path("pyrolatent") / "inductor"))
    with _frozen(state, [inputs[0].device] if cuda else []) as call, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own code
        expected = call(0, function, inputs)
        try:
            graph = call(0, make_fx(lambda *arguments: function(*arguments)), inputs)
            program = torch.no_grad()(torch.compile(graph, fullgraph=True, dynamic=False, options=options))
            found = call(0, program, inputs)
        except Exception as error:  # the parts of torch raise errors of many types
            raise CaptureError(_reason(error)) from error
        difference = _difference(expected, found, AGREEMENT[precision])
        for seed in RETRY_SEEDS:
            if difference:
                difference = _difference(
                    call(seed, function, inputs), call(seed, program, inputs), AGREEMENT[precision]
                )
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
def _frozen(state: nn.Module, devices: list[torch.device]) -> Iterator[Callable[[int, Function, tuple[Any, ...]], Any]]:
    """Yields `call(seed, function, inputs)`; restores buffers and random state before each call and on exit."""
    buffers = [(buffer, buffer.clone()) for buffer in state.buffers()]

    def restore() -> None:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)

    def call(seed: int, function: Function, inputs: tuple[Any, ...]) -> Any:
        torch.manual_seed(seed)
        restore()
        return function(*inputs)

    with torch.random.fork_rng(devices=devices):
        try:
            yield call
        finally:
            restore()


def _reason(error: BaseException) -> str:
    if "value out of a tracing tensor" in str(error):
        return "its Python code depends on values of tensors, which no graph records"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
