"""What says that two requests have the same shape, as cheaply as it can be told."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from graphkit.arrays import is_array
from graphkit.frameworks import FINGERPRINTS, fingerprint
from graphkit.signature import typed_value

__all__ = ["LOOKS", "look_at"]

Look = Callable[[Any, str], tuple[int, Hashable]]


def look_at(arguments: Mapping[str, object]) -> tuple[list[Hashable], list[int]]:
    """Return what says that two requests have the same shape, and the arrays' addresses.

    Values that are no arrays have address 0, which no array has.
    """
    seen: list[Hashable] = [*arguments]
    addresses: list[int] = []
    for name, value in arguments.items():
        kind = type(value)
        look = LOOKS.get(kind, fingerprint if is_array(value) else _look_at_value)
        address, shape = look(value, name)
        if kind in FINGERPRINTS:
            LOOKS[kind] = FINGERPRINTS[kind]
        addresses.append(address)
        seen.append(shape)
    return seen, addresses


def _look_at_value(value: object, name: str) -> tuple[int, Hashable]:
    return 0, typed_value(value, name)


def _look_at_plain(value: Hashable, _name: str) -> tuple[int, Hashable]:
    return 0, (type(value), value)


# Types whose ``==`` is sameness, and arrays once they were seen.
LOOKS: dict[type, Look] = dict.fromkeys((bool, int, str, type(None)), _look_at_plain)
