"""Contexts that run modules without changing them, isolated from the caller's contexts."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.runtime import _DIM_ALLOCATOR, _ENUM_ALLOCATOR, _PYRO_STACK
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def alone() -> Iterator[None]:
    """Disables the caller's effect handlers, plates and inference mode within this context.

    The package's results are therefore the same inside a caller's `poutine.scale`, `pyro.plate` or
    `torch.inference_mode` as outside of it. Whether gradients are recorded does not change.
    """
    outside = _PYRO_STACK[:], _DIM_ALLOCATOR._stack[:], vars(_ENUM_ALLOCATOR).copy()
    _PYRO_STACK.clear()
    _DIM_ALLOCATOR._stack.clear()
    recorded = torch.is_grad_enabled()
    try:
        with torch.inference_mode(False), torch.set_grad_enabled(recorded):
            yield
    finally:
        _PYRO_STACK[:], _DIM_ALLOCATOR._stack[:] = outside[:2]
        vars(_ENUM_ALLOCATOR).clear()
        vars(_ENUM_ALLOCATOR).update(outside[2])


@contextmanager
def evaluating_alone(*modules: nn.Module) -> Iterator[None]:
    """Puts modules in evaluation mode and runs them `alone` within this context."""
    with alone(), evaluation_mode(*modules):
        yield


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Puts modules in evaluation mode within this context; their sub-modules return to their own modes afterwards."""
    with _mode(False, modules):
        yield


@contextmanager
def training_mode(*modules: nn.Module) -> Iterator[None]:
    """Puts modules in training mode within this context; their sub-modules return to their own modes afterwards."""
    with _mode(True, modules):
        yield


@contextmanager
def _mode(training: bool, modules: tuple[nn.Module, ...]) -> Iterator[None]:
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.train(training)
    try:
        yield
    finally:
        for part, had in modes:
            part.training = had


@contextmanager
def statistics_held() -> Iterator[None]:
    """Keeps running statistics of normalisation layers in training mode unchanged within this context.

    The layers update copies of them instead, also in compiled programs.
    """
    kept: list[tuple[nn.Module, dict[str, Any]]] = []

    def before(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, _NormBase):
            own = {name: value for name in STATISTICS if (value := module._buffers.get(name)) is not None}
            kept.append((module, own))
            module._buffers.update({name: value.clone() for name, value in own.items()})

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, _NormBase):
            _, own = kept.pop()
            module._buffers.update(own)

    handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def own_parameters(state: Mapping[str, dict[str, Any]] | None = None) -> Iterator[Any]:
    """Gives Pyro's parameter store, which within this context holds these parameters and none of the caller's.

    The store's own `scope` does the same, but takes from every parameter what Pyro's optimisers find it by.

    Args:
        state: `params`, unconstrained, and `constraints`, each by name; None: none.
    """
    store: Any = pyro.get_param_store()
    outside = {name: vars(store)[name] for name in ("_params", "_param_to_name", "_constraints")}
    store.clear()  # which gives it other dictionaries
    try:
        if state is not None:
            store.set_state(state)
        yield store
    finally:
        vars(store).update(outside)


@contextmanager
def held_parameters_expected() -> Iterator[None]:
    """Keeps Pyro from warning of parameters without a gradient, which an objective holds for a while."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was not registered in the param store")
        yield
