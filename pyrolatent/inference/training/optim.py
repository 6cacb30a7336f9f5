"""The optimisers and schedulers of torch as components."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from pyrolatent.declaration import Component, build, register
from pyrolatent.errors import InputError


def build_optimizer(settings: Mapping[str, Any], parameters: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Any]:
    """Builds the declared optimiser, and the declared scheduler or None.

    Raises:
        InputError: torch refuses them, or the scheduler's mode is for a score instead of a loss.
    """
    declared = settings.get("scheduler")
    try:
        optimizer = _in_one_kernel(settings["optimizer"], parameters)
        scheduler = build("scheduler", declared, optimizer=optimizer) if declared else None
    except (TypeError, ValueError) as error:
        given = {name: settings[name] for name in ("optimizer", "scheduler") if settings.get(name)}
        raise InputError(f"{given} cannot be built: {' '.join(str(error).split())}") from error
    if getattr(scheduler, "mode", None) == "max":
        raise InputError("scheduler mode max is for a score, but the validation loss is what it sees; declare min")
    return optimizer, scheduler


def take_step(scheduler: Any, validation_loss: float) -> None:
    """Steps a scheduler after an epoch, with the validation loss if it takes one."""
    looks = "metrics" in inspect.signature(scheduler.step).parameters
    scheduler.step(*[validation_loss] * looks)


def _in_one_kernel(declaration: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The declared optimiser, with a fused update if it has one and the declaration does not say otherwise."""
    if isinstance(declaration, str):
        declaration = {declaration: {}}
    if isinstance(declaration, Mapping):
        ((name, options),) = declaration.items()
        fused = "fused" in inspect.signature(getattr(torch.optim, name, object)).parameters
        if fused and not {"fused", "foreach", "differentiable"} & {*options}:
            with suppress(RuntimeError):
                return build("optimizer", {name: {**options, "fused": True}}, params=parameters)
    return build("optimizer", declaration, params=parameters)


for _name, _class in vars(torch.optim).items():
    # LBFGS re-evaluates the loss, SparseAdam needs sparse gradients, and Muon takes only matrices.
    if isinstance(_class, type) and _name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon"):
        register("optimizer", _name, Component(_class, ("params",)))
for _name, _class in vars(torch.optim.lr_scheduler).items():
    # The others take functions or schedulers, which cannot be declared.
    others = ("LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")
    if not isinstance(_class, type) or _name[0] == "_" or _name in others:
        continue
    if issubclass(_class, torch.optim.lr_scheduler.LRScheduler):
        register("scheduler", _name, Component(_class, ("optimizer",)))
