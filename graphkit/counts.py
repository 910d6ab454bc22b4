"""Numbers of things: as arguments, and in words."""

from __future__ import annotations

import numpy as np

__all__ = ["check_count", "counted"]


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


def counted(count: int, what: str) -> str:
    """Return the number and the noun, in the plural but for one."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
