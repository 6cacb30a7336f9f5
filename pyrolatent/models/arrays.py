"""Converting users' arrays to tensors of a model's type and device, with validation."""

from typing import Any

import numpy as np
import torch
from narwhals.stable.v2.dependencies import is_into_dataframe
from torch import Tensor

from pyrolatent.errors import InputError


def as_inputs(model: Any, x: Any, y: Any = None, mask: Any = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Converts datapoints, labels and mask to tensors for a model, in the units of its training data.

    Args:
        model: the model, whose event shape, labels, type and device apply.
        x: data (batch, *event_shape), numbers of any type in a tensor, an array or nested lists; NaN is missing.
        y: labels, as in `as_labels`; -1 is an unknown class where the model infers the label.
        mask: True, or 1, where x is observed unless it is NaN, (batch, *event_shape).

    Returns:
        x, 0 where it is NaN, the labels and the mask; None for a mask if x is complete and none was given.

    Raises:
        InputError: the shapes do not fit, there are no datapoints, values are not numbers, observed values are not
            finite, x was not divided as `load_data` divided the training data, or holds codes of no category.
    """
    if model.of_training_rows:
        raise InputError(
            f"{type(model).__name__} takes the numbers of the rows of its training data, and x of other rows has none; "
            "evaluate it on split='train', or let the guide compute its distributions from x"
        )
    x = as_numbers(model, x, "x")
    if not model.met and x.dim() and len(x):
        labels = as_labels(model, y, len(x), known=False) if y is not None and model.label_dim else None
        model.meet(torch.nan_to_num(x, 0.0), labels)  # missing values are masked below
    if not x.dim() or x.shape[1:] != model.event_shape:
        raise InputError(
            f"x has shape {tuple(x.shape)}, but {type(model).__name__} is over events of shape "
            f"{tuple(model.event_shape)}; give (batch, {', '.join(map(str, model.event_shape))})"
        )
    if not len(x):
        raise InputError(f"x holds no datapoints: its shape is {tuple(x.shape)}; give at least one")
    if mask is not None:
        given = as_numbers(model, mask, "mask")
        if given.shape != x.shape or not ((given == 0) | (given == 1)).all():
            raise InputError(
                f"the mask, of shape {tuple(given.shape)}, must be True or False for each entry of x, of shape "
                f"{tuple(x.shape)}; True is observed"
            )
        mask = given.bool()
    gaps = torch.isnan(x)
    if gaps.any():
        x, mask = x.masked_fill(gaps, 0), ~gaps if mask is None else mask & ~gaps
    observed = x if mask is None else x[mask]
    infinite = int(torch.isinf(observed).sum())
    if infinite:
        raise InputError(f"{infinite} observed values of x are infinite; put NaN in the place of what is missing")
    validate_divisor(model, observed)
    model.validate_codes(x, mask)
    return x, None if y is None else as_labels(model, y, len(x), known=model.conditional), mask


def validate_divisor(model: Any, x: Tensor) -> None:
    """Refuses values that were not divided as `load_data` divided the training data; only 0 and 1 count as binary.

    Raises:
        InputError: the values were not divided; the message has the divisor.
    """
    if model.divisor != 1 and (x > 1).any() and (x.mean() > 1 or (x == x.round()).all()):
        raise InputError(
            f"x holds values up to {x.max():g}, but {type(model).__name__} was trained on x divided by "
            f"{model.divisor:g}, as load_data divides it; give x / {model.divisor:g}"
        )


def as_labels(model: Any, y: Any, size: int, *, known: bool = True) -> Tensor:
    """Converts labels for a model: classes (size,), int64, or vectors (size, label_dim) in the model's type.

    Real numbers are always vectors; (size,) real numbers are vectors of width 1. Integers, (size,) or (size, 1), are
    classes, except for a model of label vectors, whose labels are vectors whatever their type.

    Args:
        model: the model, whose labels, type and device apply.
        y: labels in a tensor, an array or nested lists.
        size: required number of labels.
        known: whether to refuse -1, which stands for an unknown class.

    Raises:
        InputError: the model takes no labels, or these do not fit it.
    """
    name, label_dim = type(model).__name__, model.label_dim
    if not label_dim:
        raise InputError(f"{name} takes no labels, but y was given; leave y out, or declare a model of labels")
    labels = as_tensor(y, "y")
    vectors = model.vector_labels or labels.is_floating_point()
    if vectors and model.conditional:
        values = as_numbers(model, labels.unsqueeze(-1) if labels.dim() == label_dim == 1 else labels, "y")
        if values.shape == (size, label_dim) and torch.isfinite(values).all():
            return values
    elif not vectors and labels.shape in ((size,), (size, 1)):
        labels = labels.reshape(size)
        least, most = (int(labels.min()), int(labels.max())) if size else (0, 0)
        if least >= (0 if known else -1) and most < label_dim:
            return labels.to(device_and_dtype(model)[0], torch.int64)
        instead = f"; -1 is unknown, which {name} does not take: declare semi_supervised_vae" * (known and least == -1)
        takes = f"0 to {label_dim - 1}{'' if known else ', or -1'}"
        raise InputError(f"labels from {least} to {most} were given; they are {takes}{instead}")
    classes = f"whole numbers from 0 to {label_dim - 1} of shape ({size},)"
    of_vectors = f"finite vectors of shape ({size}, {label_dim})"
    takes = of_vectors if model.vector_labels else f"{classes}, or {of_vectors}" if model.conditional else classes
    kind = str(labels.dtype).removeprefix("torch.")
    raise InputError(f"labels are {kind} of shape {tuple(labels.shape)}, but {name} takes {takes}")


def as_numbers(model: Any, values: Any, name: str) -> Tensor:
    """Converts numbers to a tensor of a model's type on its device.

    Raises:
        InputError: the values are not numbers.
    """
    return as_tensor(values, name).to(*device_and_dtype(model))


def as_tensor(values: Any, name: str) -> Tensor:
    """Converts numbers in a tensor, an array or nested lists to a dense tensor, keeping their type.

    Unsigned integers other than uint8, which torch hardly supports, become int64.

    Raises:
        InputError: the values are not numbers, or are a masked array.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise InputError(f"{name} is a masked array; give {name}.filled(0), and mask=~x.mask, True where x is observed")
    if hasattr(values, "toarray"):  # a sparse matrix
        values = values.toarray()
    if isinstance(values, Tensor) and not values.is_nested:
        values = values if values.layout is torch.strided else values.to_dense()
        if values.dtype in (torch.uint16, torch.uint32, torch.uint64):
            values = values.cpu().numpy()
        elif not values.is_complex():
            return values
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # lists of different lengths, tensors on another device
        array = np.empty(0, object)
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float64))
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise InputError(f"{name} holds whole numbers up to {array.max()}, which int64 cannot hold; give smaller ones")
    if array.dtype.kind in "bui":
        return torch.from_numpy(array.astype(np.int64))
    instead = "give a tensor, an array or nested lists"
    if is_into_dataframe(values):
        instead = f"give load_rows({name}, data).batch(slice(None)).x, which has the codes of its words"
    raise InputError(f"{name} is a {type(values).__name__} of no real numbers; {instead}")


def device_and_dtype(model: Any) -> tuple[torch.device, torch.dtype]:
    """The device and floating type of a model's parameters and buffers; torch's defaults if it has none.

    Raises:
        InputError: the model has several types, or half precision, in which sums of log-probabilities are inaccurate.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    floating = {name: tensor for name, tensor in named if tensor.is_floating_point()}
    types = {tensor.dtype: name for name, tensor in floating.items() if tensor.numel()}  # chains may not have begun
    if len(types) > 1:
        listed = " and ".join(f"{name} in {str(dtype).removeprefix('torch.')}" for dtype, name in types.items())
        raise InputError(f"{type(model).__name__} holds {listed}; call model.float() or model.double()")
    tensor = next((floating[name] for name in types.values()), next(iter(floating.values()), torch.empty(0)))
    if tensor.dtype in (torch.float16, torch.bfloat16):
        raise InputError(
            f"{type(model).__name__} is in {str(tensor.dtype).removeprefix('torch.')}, in which sums of "
            "log-probabilities are lost; call model.float(), and give fit precision: bf16 for networks"
        )
    return tensor.device, tensor.dtype
