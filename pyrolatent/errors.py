"""What pyrolatent says when something cannot be done: one line with what was given, what was expected, what to do."""

import operator
from typing import Any


class InputError(Exception):
    """A declaration, a file or an argument that cannot be right; the message is one line.

    It is no ValueError, since Pyro writes the shapes of all sites under every ValueError raised inside a model.
    """


class TrustError(InputError):
    """A run asks for code from outside the package and the user has not said to trust it."""


class TrainingError(RuntimeError):
    """Training stopped because a number was not finite; the model holds the last good state."""


def is_whole(number: Any) -> bool:
    """Whether a number is an integer of any type."""
    try:
        operator.index(number)
    except TypeError:
        return False
    return True


def at_least_one(**numbers: int | None) -> None:
    """Refuses numbers, by their names, that are given and no whole numbers from 1.

    Raises:
        InputError: one is.
    """
    for name, number in numbers.items():
        if number is not None and not is_whole(number):
            raise InputError(f"{name} was {number!r}; a whole number from 1 is needed")
        if number is not None and number < 1:
            raise InputError(f"{name} was {number}; at least 1 is needed")
