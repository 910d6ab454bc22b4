"""Numbers in the parameters of nodes: which types their bytes may have, and their bytes."""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence

from graphkit.c_signature import Parameter

__all__ = ["encode", "known_code", "scalar_codes"]

_INTEGERS = {4: ("<i", "<I"), 8: ("<q", "<Q")}
_FLOATS = {4: ("<f",), 8: ("<d",)}
# The code of a parameter whose type is known.
_CODES = {
    ("i", 4): "<i",
    ("u", 4): "<I",
    ("i", 8): "<q",
    ("u", 8): "<Q",
    ("f", 4): "<f",
    ("f", 8): "<d",
}


def known_code(parameter: Parameter | None, offset: int) -> str | None:
    """Return the struct code of a number whose type a kernel's signature says, else None."""
    if parameter is None or parameter.dtype is None:
        return None
    if parameter.pointer:
        return "<Q"
    kind, inside = parameter.dtype, offset - parameter.offset
    while kind.subdtype is not None or kind.fields is not None:
        if kind.subdtype is not None:
            kind = kind.subdtype[0]
            inside %= kind.itemsize
            continue
        assert kind.fields is not None
        for field, start, *_ in kind.fields.values():
            if start <= inside < start + field.itemsize:
                kind, inside = field, inside - start
                break
        else:
            return ""  # between two fields: no number of any type
    return _CODES.get((kind.kind, kind.itemsize), "")


def encode(code: str, value: object) -> bytes | None:
    """Return a number as the type of a struct code, None when that cannot hold it."""
    try:
        if code[1] in "fd":
            return struct.pack(code, float(value))  # type: ignore[arg-type]
        return struct.pack(code, operator.index(value))  # type: ignore[arg-type]
    except (struct.error, TypeError, ValueError, OverflowError):
        return None


def scalar_codes(pairs: Sequence[tuple[object, bytes]], offset: int, size: int) -> list[str]:
    """Return the types of ``size`` bytes in which data at an offset is the value, each time."""
    return [
        code
        for code in (*_INTEGERS[size], *_FLOATS[size])
        if all(encode(code, value) == data[offset : offset + size] for value, data in pairs)
    ]
