"""What pyrolatent says when something cannot be done: one line with what was given, what was expected, what to do."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

SEEDS = 2**63
"""How many seeds there are."""


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
    except (TypeError, RuntimeError):
        return False
    return True


def at_least(least: int, **numbers: Any) -> None:
    """Refuses numbers, by their names, that are given and are no whole number from `least` upwards.

    Raises:
        InputError: one is not.
    """
    for name, number in numbers.items():
        if number is None:
            continue
        if not is_whole(number):
            raise InputError(f"{name} was {number!r}; a whole number is needed")
        if number < least:
            raise InputError(f"{name} was {number}; at least {least} {'is' if least == 1 else 'are'} needed")


def at_least_one(**numbers: Any) -> None:
    """Refuses numbers, by their names, that are given and are no whole number from 1 upwards.

    Raises:
        InputError: one is not.
    """
    at_least(1, **numbers)


def validate_seed(seed: Any) -> None:
    """Refuses a seed that is given and is no whole number from 0 to 2**63 - 1.

    Raises:
        InputError: it is not.
    """
    at_least(0, seed=seed)
    if seed is not None and seed >= SEEDS:
        raise InputError(f"seed was {seed}; give one below 2**63")


def validate_options(who: str, takes: Iterable[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given, neither None nor False, where some alone are taken.

    Args:
        who: takes them, in the words of the message.
        takes: names of those that are taken.
        options: all that a function or a command has, by name.

    Raises:
        InputError: another one is given.
    """
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    taken = [name for name in options if name in {*takes}]
    if unused := [name for name in given if name not in taken]:
        raise InputError(f"{who} takes {', '.join(taken) or 'no such option'}; leave {' and '.join(unused)} out")
    return given
