"""Errors. The message of each is one line: what was given, what was expected, what to do."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

SEEDS = 2**63
"""Seeds are integers from 0 to this, exclusive."""


class InputError(Exception):
    """An invalid declaration, file or argument; the message is one line.

    It does not extend ValueError, because Pyro appends the shapes of all sites to every ValueError in a model.
    """


class TrustError(InputError):
    """A run needs code from outside the package that the user has not agreed to trust."""


class TrainingError(RuntimeError):
    """Training stopped because a number was not finite; the model holds the last good state."""


def is_whole(number: Any) -> bool:
    """Whether a number is an integer of any type."""
    try:
        operator.index(number)
    except (TypeError, RuntimeError):
        return False
    return True


def at_least(least: int, **numbers: Any) -> None:
    """Requires every number that is not None to be an integer of at least `least`.

    Raises:
        InputError: one is not; the message has its name.
    """
    for name, number in numbers.items():
        if number is None:
            continue
        if not is_whole(number):
            raise InputError(f"{name} was {number!r}; a whole number is needed")
        if number < least:
            raise InputError(f"{name} was {number}; at least {least} {'is' if least == 1 else 'are'} needed")


def at_least_one(**numbers: Any) -> None:
    """Requires every number that is not None to be a positive integer.

    Raises:
        InputError: one is not; the message has its name.
    """
    at_least(1, **numbers)


def validate_seed(seed: Any) -> None:
    """Requires a seed that is not None to be an integer from 0 to 2**63 - 1.

    Raises:
        InputError: it is not.
    """
    at_least(0, seed=seed)
    if seed is not None and seed >= SEEDS:
        raise InputError(f"seed was {seed}; give one below 2**63")


def validate_options(who: str, takes: Iterable[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that were given, which are those that are neither None nor False.

    Args:
        who: what takes the options, as the subject of the message.
        takes: names of the options that it takes.
        options: all options of the function or command, by name.

    Raises:
        InputError: an option was given that is not taken.
    """
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    taken = [name for name in options if name in {*takes}]
    if unused := [name for name in given if name not in taken]:
        raise InputError(f"{who} takes {', '.join(taken) or 'no such option'}; leave {' and '.join(unused)} out")
    return given
