"""Checks of single values that a caller or a file gives: numbers, sizes and words. Imports no torch."""

import math
from numbers import Integral, Real
from typing import Any, get_args

from eca_hub.errors import InvalidConfig

MAX_OPTION = 4096
"""Largest number that an option of an attention method may be: no map or kernel that a network has is larger."""


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number, of Python or of numpy."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def is_number(value: object) -> bool:
    """Return whether a value is a finite real number, of Python or of numpy, that a float can hold."""
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:
        return False


def check_count(name: str, value: Any, most: int | None = None) -> None:
    """Check an option that is a number of things.

    Raises:
        InvalidConfig: it is not a whole number from 1 on, or above `most`.
    """
    if not is_whole(value) or value < 1 or (most is not None and value > most):
        allowed = "1 or more" if most is None else f"1 to {most}"
        raise InvalidConfig(f"{name} is {value!r}; it must be a whole number, {allowed}.")


def check_kernel_size(name: str, size: Any) -> None:
    """Check the size of a kernel that has a center.

    Raises:
        InvalidConfig: it is no odd number from 1 to `MAX_OPTION`.
    """
    if not is_whole(size) or not 1 <= size <= MAX_OPTION or size % 2 == 0:
        raise InvalidConfig(
            f"{name} is {size!r}; a kernel with a center needs an odd size: 1, 3, 5, 7, ... up to {MAX_OPTION - 1}."
        )


def check_choice(name: str, value: object, choices: Any) -> None:
    """Check an option that is one of a few words.

    Args:
        name: Name of the option.
        value: The word.
        choices: The `Literal` of the allowed words.

    Raises:
        InvalidConfig: it is none of them.
    """
    if value not in get_args(choices):
        raise InvalidConfig(f"{name} is {value!r}; it must be one of {', '.join(get_args(choices))}.")
