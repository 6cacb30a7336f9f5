"""Validation before training, of settings and of a first minibatch."""

import warnings
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pyrolatent.data.splits import Batch, Data
from pyrolatent.declaration import Component
from pyrolatent.errors import InputError, validate_options
from pyrolatent.inference import distributed
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.objectives.base import Objective
from pyrolatent.inference.weights import training_arguments, weigh
from pyrolatent.models.arrays import device_and_dtype
from pyrolatent.models.components.family import Family
from pyrolatent.models.components.scaling import FAR, Unscaled
from pyrolatent.models.isolation import statistics_held, training_mode
from pyrolatent.models.model import Capability, Model


def validate_settings(
    model: Model, data: Data, objective: Objective, settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Refuses settings of `fit` that do not apply to the objective, the model or the number of processes.

    Args:
        model: the model, on the device of training.
        data: the data.
        objective: what is maximised.
        settings: all settings of `fit`.
        defaults: their defaults.

    Raises:
        InputError: a setting does not apply; the message says what to declare.
    """
    name, processes = type(model).__name__, distributed.size()
    if settings["kl_warmup"] is not None and "kl_warmup" in objective.unused:
        raise InputError(
            f"kl_warmup scales the KL inside a bound of this package, but the objective is {objective.name}; declare "
            "objective: elbo or analytic_elbo, or leave kl_warmup out"
        )
    takes = [one for one in objective.settings or defaults if one not in objective.unused]
    changed = {one: settings[one] if settings[one] != defaults[one] else None for one in defaults}
    validate_options(f"training {name} by {objective.name}", takes, changed)
    if objective.by_gradient and not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("the model has no parameter to train: none requires a gradient")
    if processes > 1 and not objective.distributes:
        raise InputError(
            f"{name} keeps chains, which processes do not share, but there are {processes}; train it in one"
        )
    if processes > settings["batch_size"]:
        raise InputError(
            f"a batch of {settings['batch_size']} datapoints cannot be shared by {processes} processes; declare a "
            "larger batch_size, or start fewer"
        )
    smallest = min(len(data.train), settings["batch_size"]) // processes
    if smallest < 2 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise InputError(
            f"batch normalisation needs minibatches of two or more datapoints, but they have {smallest}; declare a "
            "larger batch_size, or norm: layer"
        )


def validate_precision(model: Model, device: torch.device, precision: str) -> None:
    """Refuses a model in double precision for a device or precision that does not support it, or of inference mode.

    Raises:
        InputError: the model is in double precision, or has no gradients; the message says what to declare.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise InputError("a model that was built under torch.inference_mode cannot be trained; build it outside")
    if device_and_dtype(model)[1] == torch.float64 and (precision == "bf16" or device.type == "mps"):
        what = "device: mps" if device.type == "mps" else "precision: bf16"
        instead = "device: cpu" if device.type == "mps" else "precision: float32, which leaves the type as it is"
        raise InputError(
            f"{what} is for models in float32, but {type(model).__name__} is in float64; call model.float(), or "
            f"declare {instead}"
        )


def warn_if_unscaled(model: Any, x: Tensor, mask: Tensor | None) -> None:
    """Warns of data far from the unit 1, on which networks train badly, if encoders receive them so.

    Args:
        model: the model, prepared for training.
        x: some training data.
        mask: True where they are observed.
    """
    if not model.encoders or Capability.SOLUTION in model.offers or getattr(model, "scaling", Unscaled(())).changes:
        return
    squares = torch.where(torch.ones_like(x, dtype=torch.bool) if mask is None else mask, x, torch.nan).square()
    size = squares.nanmean(0).nan_to_num(0.0).max().sqrt().item()
    if size > FAR or 0 < size < 1 / FAR**2:
        declares = "scaling" in Component(type(model)).options
        instead = "declare scaling: standardise, or log1p for counts" if declares else "standardise x"
        warnings.warn(
            f"the encoder receives x unscaled, with root mean squares of its entries up to {size:.3g}, and networks "
            f"train badly on numbers so far from 1; {instead}",
            stacklevel=3,
        )


def warn_if_below_floor(model: Model) -> None:
    """Warns of entries of x that vary less than the lower bound of the scale of their likelihood."""
    for family in model.modules():
        if isinstance(family, Family) and (count := family.below_floor()):
            warnings.warn(
                f"{count} entries of x vary less than min_scale, which is in the units of x, so that {family} cannot "
                "describe them; give x in larger units, or a smaller min_scale",
                stacklevel=3,
            )


def validate_first_batch(model: Any, data: Data, objective: Any, size: int) -> None:
    """Sets the model's record of labels and units from the data, and validates it on a first minibatch.

    Raises:
        InputError: log-probabilities are not finite or have no batch dimension; the model is then unchanged.
    """
    first, known, y = data.train.batch(slice(0, size)), (model.vector_labels, model.divisor), data.train.y
    model.vector_labels = model.conditional and y is not None and y.is_floating_point()
    model.divisor = data.divisor
    try:
        objective.prepare(model)
        if Capability.POSTERIOR in model.offers and not model.own_states:
            _run(model, first, objective, validate=data.binarize != "relaxed")
    except BaseException:
        model.vector_labels, model.divisor = known
        raise


def _run(model: Any, first: Batch, objective: Any, *, validate: bool) -> None:
    if Capability.ANY_DRAW_SCORED in objective.needs:
        devices = [first.x.device] if first.x.is_cuda else []
        with training_mode(model), torch.random.fork_rng(devices=devices), statistics_held():
            objective.differentiable_loss(model.generate, model.infer, *training_arguments(model, first))
    with torch.no_grad(), evaluating(model), pyro.validation_enabled(validate):
        inputs, named = training_arguments(model, first), model.plate is not None
        weights = weigh(model.generate, model.infer, *inputs, outside=True, jointly=named)
    bad = int((~torch.isfinite(weights.log_likelihood)).flatten(0, -2).any(0).sum())
    if bad:
        raise InputError(
            f"log p(x | z) is not finite for {bad} of the first {len(first.x)} datapoints before any training: the "
            f"{model.likelihood_name} likelihood has no finite density there; declare another one"
        )
    for site, value in {"x": weights.log_likelihood, **weights.log_prior, **weights.log_posterior}.items():
        if site not in weights.outside and value.shape[-2:] != (1, len(first.x)):
            raise InputError(
                f"the log-probability of the site {site!r} has the shape {tuple(value.shape)} for "
                f"{len(first.x)} datapoints; give its distribution the batch shape of the data with to_event"
            )
