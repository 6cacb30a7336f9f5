"""`fit`, and the settings of training that can be declared."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated, Any, Literal

import pyro
import torch
from annotated_types import Ge, Lt
from torch import nn

from pyrolatent.data.splits import CHUNK, Data
from pyrolatent.declaration import Component, Kind, PositiveFloat, PositiveInt, build
from pyrolatent.errors import SEEDS, InputError
from pyrolatent.inference.devices import choose_device
from pyrolatent.inference.objectives.base import as_objective
from pyrolatent.inference.rules import require_data, same_event_shape, validate_combination
from pyrolatent.inference.training.callbacks import Callback, EarlyStopping, ProgressBar, validated
from pyrolatent.inference.training.fitted import Fit
from pyrolatent.inference.training.loop import Trainer
from pyrolatent.inference.training.validation import (
    validate_first_batch,
    validate_precision,
    validate_settings,
    warn_if_below_floor,
    warn_if_unscaled,
)
from pyrolatent.models.arrays import device_and_dtype
from pyrolatent.models.isolation import alone
from pyrolatent.models.model import Model


def fit(
    model: Model,
    data: Data,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    *,
    objective: Annotated[Any, Kind("objective")] = "analytic_elbo",
    epochs: PositiveInt = 300,
    batch_size: PositiveInt = 128,
    optimizer: Annotated[Any, Kind("optimizer")] = {"Adam": {"lr": 3e-3}},  # noqa: B006 (only read)
    scheduler: Annotated[Any, Kind("scheduler")] = None,
    clip_norm: PositiveFloat | None = None,
    kl_warmup: Annotated[Any, Kind("warmup")] = None,
    patience: PositiveInt | None = None,
    seed: Annotated[int, Ge(0), Lt(SEEDS)] = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    compile: Literal["auto", "always", "never"] = "auto",
    precision: Literal["float32", "bf16"] = "float32",
) -> Fit:
    """Trains a model by stochastic variational inference.

    If torch.distributed has a process group, as under torchrun, the processes share each minibatch.

    Args:
        model: the model; it is trained in place.
        data: the data to train on.
        progress: whether to show a progress bar.
        callbacks: instances of `Callback`, called in their order after the steps, after the epochs, ...
        objective: what to maximise, one of this package's objectives or of Pyro's.
        epochs: largest number of passes over the training data.
        batch_size: number of datapoints per minibatch; the last one of an epoch may be smaller, and a single remaining
            datapoint joins the minibatch before it.
        optimizer: a class of `torch.optim`.
        scheduler: a class of `torch.optim.lr_scheduler`, stepped after each epoch.
        clip_norm: bound on the norm of the gradient of the loss per datapoint.
        kl_warmup: schedule by which the factor of log p(z) - log q(z | x) in the target rises to 1.
        patience: number of epochs without an improvement of the validation bound after which training stops and keeps
            the best weights; counted from the end of a kl_warmup.
        seed: seed of everything random in training; the caller's random state is left unchanged.
        device: where to train; "auto" is an accelerator if there is one.
        compile: whether to compile the gradient; "auto" does if a minute or more of training remains. Compiled and
            uncompiled steps draw the same numbers and agree up to rounding. What cannot be compiled is trained
            uncompiled, with a warning.
        precision: precision of the products in networks: "bf16" is faster on CPUs and GPUs that support it. Parameters
            and all probabilities stay in float32. A model in float64 trains in float64.

    Raises:
        InputError: a declaration is invalid or the data do not fit the model; raised before training.
        TrainingError: a number is not finite; the model then holds the state before that step.
    """
    given = locals()
    called = validated(callbacks)
    require_data(data)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"fit was given a {type(model).__name__} as its model; build one, as pl.VAE(data.event_shape, ...)"
        )
    settings = training_settings().validate({name: given[name] for name in training_settings().options}, "fit")
    target, (_, dtype) = choose_device(device), device_and_dtype(model)
    validate_precision(model, target, precision)
    devices = [target] if target.type == "cuda" else []
    with ExitStack() as within:
        for context in (alone(), torch.enable_grad(), torch.random.fork_rng(devices=devices)):
            within.enter_context(context)
        torch.manual_seed(seed)
        same_event_shape(model, data)
        within.enter_context(pyro.get_param_store().scope())
        torch.manual_seed(seed)
        maximised = as_objective(build("objective", settings["objective"]))
        run = Fit(model.to(target), data, {name: value for name, value in settings.items() if value is not None})
        there = data.to(target, dtype)
        defaults = {name: option.default for name, option in training_settings().options.items()}
        with torch.no_grad():
            model.fit_scaling(there.train.batches(CHUNK))
        validate_combination(model, there, maximised)
        validate_settings(model, there, maximised, settings, defaults)
        several = there.train.batch(torch.randperm(len(there.train))[:1000].to(target))
        with pyro.validation_enabled(False):
            model.prepare(several.x, several.mask)
        warn_if_unscaled(model, several.x, several.mask)
        warn_if_below_floor(model)
        model.warn_of_size(len(there.train))
        trainer = Trainer(run, there, maximised)
        validate_first_batch(model, there, maximised, batch_size)
        if progress:
            called.append(within.enter_context(ProgressBar()))
        if patience is not None:
            warm = getattr(trainer.warmup, "epochs", 0)  # which a user's function has not
            called.insert(0, EarlyStopping(patience, min(warm, trainer.epochs)))
        try:
            with pyro.validation_enabled(False):
                trainer.train(called)
        finally:
            model.eval()
    return run


def training_settings() -> Component:
    """The settings of training that can be declared, from the signature of `fit`."""
    return Component(fit, ("model", "data", "progress", "callbacks"))
