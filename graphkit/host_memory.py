"""Where this process may keep objects: what is left over in unset bytes often points there."""

from __future__ import annotations

from pathlib import Path

__all__ = ["upper_halves"]

_MAPPINGS = Path("/proc/self/maps")  # on Linux; elsewhere nobody says


def upper_halves() -> frozenset[int]:
    """Return the upper 32 bits of every address of memory that this process writes.

    A mapping of a driver's does not count, nor address space that is reserved only: CUDA reserves
    some at small multiples of 4 GB, whose upper halves are numbers like any other. Empty where the
    system does not tell.
    """
    try:
        mappings = _MAPPINGS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    found: set[int] = set()
    for mapping in mappings:
        addresses, access, _, _, _, *path = mapping.split(maxsplit=5)
        if access.startswith("rw") and not "".join(path).startswith("/dev/"):
            low, high = (int(address, 16) for address in addresses.split("-"))
            found.update(range(low >> 32, (high - 1 >> 32) + 1))
    return frozenset(found)
