"""Drawing new data from a fitted model."""

import functools
from typing import Any

import torch
from torch import Tensor

from pyrolatent.errors import at_least, at_least_one, validate_options
from pyrolatent.inference.draws import labels_for, simulate
from pyrolatent.inference.sampling.chains import sample_energy
from pyrolatent.models.arrays import as_labels
from pyrolatent.models.energies.density import UnnormalisedDensity
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.model import Capability


@torch.no_grad()
def sample(
    model: LatentVariableModel | UnnormalisedDensity,
    size: int,
    y: Any = None,
    *,
    mean: bool = False,
    sweeps: int | None = None,
    kernel: Any = None,
) -> Tensor:
    """Draws z ~ p(z), x ~ p(x | z), or x from an unnormalised density as `sample_energy` does.

    Args:
        model: a fitted model.
        size: number of draws.
        y: labels (size,) or vectors (size, label_dim) to draw at, for conditional models, models that infer the label
            and RBMs with label units. None takes the classes in turn for conditional models and draws labels for the
            others.
        mean: whether to return E[x | z] instead of a draw of x, which looks smoother for images.
        sweeps: number of sweeps of chains, for unnormalised densities without exact draws; None is 1,000.
        kernel: kernel of the chains, as in `sample_energy`.

    Returns:
        (size, *event_shape).

    Raises:
        InputError: labels do not fit the model, or are missing for a model of label vectors; or options of chains were
            given but none are run.
    """
    at_least_one(size=size)
    at_least(0, sweeps=sweeps)
    return _sample(model, size, y, mean, {"sweeps": sweeps, "kernel": kernel})


@functools.singledispatch
def _sample(model: Any, size: int, y: Any, mean: bool, options: dict[str, Any]) -> Tensor:
    validate_options(f"{type(model).__name__}, which is drawn from without chains,", (), options)
    y = labels_for(model, size, y)
    return model.expected(size, y) if mean else simulate(model, size, y)[0]


@_sample.register
def _(model: UnnormalisedDensity, size: int, y: Any, mean: bool, options: dict[str, Any]) -> Tensor:
    exact, name = model.tractable and y is None and options["kernel"] is None, type(model).__name__
    given = validate_options(
        f"an exact draw of {name}" if exact else name, ("kernel", *["sweeps"] * (not exact)), options
    )
    return sample_energy(model, size, None if y is None else as_labels(model, y, size), mean=mean, **given)


@functools.singledispatch
def sample_title(model: Any, mean: bool) -> str:
    """The title of a figure of the result of `sample`."""
    y = "" if not model.label_dim else ", y"
    return f"E[x | z{y}] at draws of z ~ p(z)" if mean else f"draws of x ~ p(x | z{y})"


@sample_title.register
def _(model: UnnormalisedDensity, mean: bool) -> str:
    means = mean and Capability.HIDDEN_UNITS in model.offers
    return "E[x | h] at draws of the hidden units" if means else "draws of x"
