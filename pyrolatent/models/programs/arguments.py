"""What a program of the user's is called with: x, y, mask and row numbers of a minibatch as its own arguments."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrolatent.errors import InputError

NAMES = {
    "mask": ("mask", "obs_mask", "x_mask"),
    "y": ("y", "ys", "label", "labels", "target", "targets"),
    "rows": ("rows", "row", "index", "indices", "idx", "ind", "subsample"),
}
"""By which names a parameter of a program is taken to be the mask, the labels or row numbers; the first is x."""
INSTEAD = "give arguments=lambda x, y, mask: (...), what both programs are called with"


class Call(NamedTuple):
    """What a program is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Arguments:
    """What both programs are called with for a minibatch.

    Attributes:
        made: function of x, y, mask and rows, the last the indices of the minibatch in the training data, (batch,).
        takes_rows: whether it uses the last.
    """

    made: Callable[[Tensor, Tensor | None, Tensor | None, Tensor], Call]
    takes_rows: bool = False

    def __call__(self, x: Tensor, y: Tensor | None, mask: Tensor | None, rows: Tensor | None = None) -> Call:
        """The arguments; x is of the first rows of the training data where they are not given."""
        return self.made(x, y, mask, torch.arange(len(x), device=x.device) if rows is None else rows)


def by_function(function: Callable[..., Any]) -> Arguments:
    """What a function of x, y, mask and, if it takes four, rows gives: one argument, a tuple, or a mapping of names.

    Raises:
        InputError: it is no function.
    """
    if not callable(function):
        raise InputError(f"arguments was {function!r}; give a function of x, y and mask, such as lambda x, y, mask: x")

    takes_rows = _positional(function) > 3

    def arguments(x: Tensor, y: Tensor | None, mask: Tensor | None, rows: Tensor) -> Call:
        try:
            given = function(x, y, mask, *[rows] * takes_rows)
        except Exception as error:  # of the user's own code
            without = [name for name, value in (("y", y), ("mask", mask)) if value is None]
            of = f"x of shape {tuple(x.shape)}" + f" and without {' and '.join(without)}" * bool(without)
            reason = " ".join(str(error).split())
            raise InputError(f"arguments fails for {of}: {type(error).__name__}: {reason}") from error
        if isinstance(given, Mapping):
            return Call((), dict(given))
        return Call(given if isinstance(given, tuple) else (given,), {})

    return Arguments(arguments, takes_rows)


def _positional(function: Callable[..., Any]) -> int:
    """Number of positional parameters of a function; 0 if it does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a built-in function
        return 0
    return sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)


def by_signature(program: Callable[..., Any]) -> Arguments:
    """x to the first parameter, labels, mask and rows to those of a usual name, the others at their defaults.

    Raises:
        InputError: a parameter without a default that is none of these.
    """
    parameters = inspect.signature(program.forward if isinstance(program, nn.Module) else program).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [one for one in parameters if one.kind not in variadic]
    first, others = next(iter(named), None), named[1:]
    roles: dict[str, inspect.Parameter] = {}
    for parameter in others:
        role = next((role for role, names in NAMES.items() if parameter.name in names and role not in roles), None)
        if role is not None:
            roles[role] = parameter
        elif parameter.default is parameter.empty:
            raise InputError(f"the program takes {parameter.name!r}, which is none of x, y, mask and rows; {INSTEAD}")
    if first is not None and first.kind is first.KEYWORD_ONLY:
        raise InputError(f"the program takes {first.name!r} by its name alone; {INSTEAD}")
    follows = [parameter.name for parameter in others]

    def arguments(x: Tensor, y: Tensor | None, mask: Tensor | None, rows: Tensor) -> Call:
        args: list[Any] = [x]
        kwargs: dict[str, Any] = {}
        for role, value in (("y", y), ("mask", mask), ("rows", rows)):
            parameter = roles.get(role)
            if parameter is None or (value is None and parameter.default is not parameter.empty):
                continue
            if value is None:
                lacking = "are no labels" if role == "y" else "is no mask"
                raise InputError(
                    f"the program needs {parameter.name!r}, but there {lacking}; give data with them, or give the "
                    "parameter a default"
                )
            in_turn = len(args) <= len(follows) and follows[len(args) - 1] == parameter.name
            if in_turn and parameter.kind is not parameter.KEYWORD_ONLY:
                args.append(value)  # by its place, since the guide may call it otherwise
            else:
                kwargs[parameter.name] = value
        return Call(tuple(args), kwargs)

    return Arguments(arguments, "rows" in roles)


def differ(one: Call, other: Call) -> bool:
    """Whether two calls give a program other tensors or other numbers of arguments."""
    if len(one.args) != len(other.args) or one.kwargs.keys() != other.kwargs.keys():
        return True
    pairs = [*zip(one.args, other.args, strict=True), *((one.kwargs[name], other.kwargs[name]) for name in one.kwargs)]
    return any(_differ(*pair) for pair in pairs)


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape != other.shape or not bool((one == other).all())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) != len(other) or any(map(_differ, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() != other.keys() or any(_differ(one[key], other[key]) for key in one)
    return (one is not other and type(one) is not type(other)) or (not isinstance(one, Tensor) and bool(one != other))
