"""Encoders and decoders as programs of torch alone, which run without this package, in Python and in C++."""

from pathlib import Path
from typing import Any, Literal, get_args

import pyro
import torch
from torch import Tensor, nn
from torch.export import Dim

from pyrolatent.declaration import choices
from pyrolatent.errors import InputError
from pyrolatent.models.arrays import device_and_dtype
from pyrolatent.models.autoencoder import DeterministicModel
from pyrolatent.models.components.conditional import given_gaps
from pyrolatent.models.isolation import evaluating_alone
from pyrolatent.models.latent import LatentVariableModel

Part = Literal["encoder", "decoder"]


def export(model: Any, part: Part, path: str | Path) -> Path:
    """Writes a part of a fitted model as a program of `torch.export`.

        program = torch.export.load("decoder.pt2").module()
        x = program(z)

    A decoder takes z, (batch, latent_dim), and in conditional models labels y, and returns E[x | z] in the units of the
    data. An encoder takes x, (batch, *event_shape), and returns the mean and the standard deviation of q(z | x), or the
    code of an autoencoder. Batches may be of any size.

    Args:
        model: a fitted model of one latent vector.
        part: "encoder" or "decoder".
        path: the file to write, .pt2.

    Raises:
        InputError: the model has no such part, or torch cannot export it.
    """
    if part not in get_args(Part):
        raise InputError(f"there is no part {part!r} to export; {choices(part, get_args(Part))}")
    if Path(path).suffix != ".pt2":
        raise InputError(f"{path}: a program of torch.export is written to a file that ends in .pt2")
    module = (_Encoder if part == "encoder" else _Decoder)(model)
    inputs = _inputs(model, part)
    batch = Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in inputs)
    try:
        with evaluating_alone(model), torch.no_grad(), pyro.validation_enabled(False):
            program = torch.export.export(module, inputs, dynamic_shapes={"values": shapes})
            torch.export.save(program, str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    except Exception as error:  # whatever a network does that cannot be captured
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"the {part} of {type(model).__name__} cannot be exported: {reason}") from error
    return Path(path)


def _inputs(model: Any, part: str) -> tuple[Tensor, ...]:
    """Example inputs of two datapoints."""
    where: dict[str, Any] = dict(zip(("device", "dtype"), device_and_dtype(model), strict=True))
    if part == "encoder":
        first = torch.zeros(2, *model.event_shape, **where)
    elif isinstance(model, DeterministicModel):
        first = model.encode(torch.zeros(2, *model.event_shape, **where))["z"].mean
    else:
        first = model.simulated(2, _labels(model, where))["z"]["value"]
    labels = _labels(model, where)
    return (first,) if labels is None else (first, labels)


def _labels(model: Any, where: dict[str, Any]) -> Tensor | None:
    if not model.conditional:
        return None
    if model.vector_labels:
        return torch.zeros(2, model.label_dim, **where)
    return torch.zeros(2, dtype=torch.int64, device=where["device"])


class _Part(nn.Module):
    """A part of a model as a function of tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        of_one = isinstance(model, LatentVariableModel) and type(model).generate is LatentVariableModel.generate
        if not of_one and not isinstance(model, DeterministicModel):
            raise InputError(
                f"{type(model).__name__} is not of one latent vector z with a likelihood of x given z, so that it "
                "has no encoder and decoder to export; export networks of your own with torch.export"
            )
        self.model = model


class _Encoder(_Part):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        if not isinstance(model, DeterministicModel) and not hasattr(model.posterior, "network"):
            raise InputError(f"{type(model).__name__} has no encoder to export, since its posterior is no network")

    def forward(self, *values: Tensor) -> Any:
        x, y = values[0], values[1] if len(values) > 1 else None
        if isinstance(self.model, DeterministicModel):
            return self.model._code(x, None)
        posterior = given_gaps(self.model.posterior, self.model.scaling, x, y, None)
        return posterior.mean, posterior.stddev


class _Decoder(_Part):
    def forward(self, *values: Tensor) -> Tensor:
        z, y = values[0], values[1] if len(values) > 1 else None
        if isinstance(self.model, DeterministicModel):
            return self.model.decode(z).mean
        mean: Tensor = self.model.likelihood(z, y).mean
        return mean
