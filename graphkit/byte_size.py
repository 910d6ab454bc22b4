"""Sizes of memory as people write them."""

from __future__ import annotations

import re

__all__ = ["parse_bytes"]

_UNITS = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "KB": 1000,
    "MB": 10**6,
    "GB": 10**9,
}


def parse_bytes(size: int | str | None, argument: str = "memory_budget") -> int | None:
    """Return a number of bytes, given as such or as text like ``"256MiB"``.

    Raises:
        TypeError, ValueError: anything else, and what is not positive.
    """
    if size is None:
        return None
    number: object = size
    if isinstance(size, str):
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]+)\s*", size)
        unit = _UNITS.get(found[2]) if found else None
        if found is None or unit is None:
            raise ValueError(f"{argument}: expected bytes such as '256MiB', came {size!r}")
        number = int(float(found[1]) * unit)
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{argument}: expected bytes as an int or text, came {size!r}")
    if number <= 0:
        raise ValueError(f"{argument}: expected a positive number of bytes, came {size!r}")
    return number
