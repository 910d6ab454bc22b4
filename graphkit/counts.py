"""How many of something: the check of every argument that is a number of things."""

from __future__ import annotations

import numpy as np

__all__ = ["check_count"]


def check_count(argument: str, value: object, least: int) -> int:
    """Return a count, of NumPy's too, as Python's int.

    Raises:
        TypeError: when it is no int; True and False are not.
        ValueError: when it is less than ``least``.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{argument}: expected an int of {least} or more, came {value!r}")
    if value < least:
        raise ValueError(f"{argument}: expected an int of {least} or more, came {value}")
    return int(value)
