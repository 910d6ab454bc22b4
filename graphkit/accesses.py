"""What a node reads and writes, as ranges of bytes: from signatures, parameters, declarations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from graphkit.arrays import describe, is_array
from graphkit.c_signature import Parameter
from graphkit.conditional_handle import ConditionalHandle
from graphkit.runtime.protocol import MemcpyNodeParams, MemsetNodeParams

__all__ = [
    "Access",
    "Declared",
    "array_span",
    "condition_access",
    "condition_at",
    "condition_of",
    "copy_accesses",
    "declared_accesses",
    "fill_accesses",
    "freed_accesses",
    "kernel_accesses",
]

# What a call declares: argument names and arrays.
Declared = Sequence[object] | None

_WORD = 8  # bytes of an address
# Conditions are no memory: each counts as a byte behind all addresses, at its handle.
_CONDITIONS = 1 << 64


class Access(NamedTuple):
    """Bytes that a node touches, from the first to the last.

    Attributes:
        start: address of the first byte.
        end: address behind the last byte.
        write: whether they are written; what a kernel may write, it may read as well.
        what: the argument, such as ``"x"`` or ``"dst"``; empty for an array that was declared.
    """

    start: int
    end: int
    write: bool
    what: str = ""


def array_span(array: object, argument: str) -> tuple[int, int]:
    """Return the address of an array's first byte and that behind its last.

    A view spans what lies between its elements as well; an array without elements spans nothing.
    """
    info = describe(array, argument)
    first = last = info.ptr
    if not info.nbytes:
        return first, last
    for extent, step in zip(info.shape, info.strides, strict=True):
        if step < 0:
            first += (extent - 1) * step
        else:
            last += (extent - 1) * step
    return first, last + info.dtype.itemsize


def condition_access(handle: int, *, write: bool, what: str = "") -> Access:
    """Return what it is to set a condition, or to be a node that asks for it."""
    start = _CONDITIONS + handle
    return Access(start, start + 1, write, what)


def condition_at(start: int) -> int | None:
    """Return the handle of the condition that an access is of; None where it is of memory."""
    return start - _CONDITIONS if start >= _CONDITIONS else None


def condition_of(parameter: Parameter, value: object) -> int | None:
    """Return the handle of the condition that a kernel sets by an argument; None for any other."""
    if isinstance(value, ConditionalHandle):
        return int(value)
    if parameter.condition and isinstance(value, (int, np.integer)):
        return int(value)
    return None


def copy_accesses(params: MemcpyNodeParams) -> tuple[Access, ...]:
    """Return what a memcpy node touches: it reads its source and writes its destination."""
    return (
        Access(params.src, params.src + params.src_span, False, "src"),
        Access(params.dst, params.dst + params.dst_span, True, "dst"),
    )


def fill_accesses(params: MemsetNodeParams) -> tuple[Access, ...]:
    """Return what a memset node writes."""
    return (Access(params.dst, params.dst + params.span, True, "dst"),)


def freed_accesses(array: object) -> tuple[Access, ...]:
    """Return what a free node touches: whoever uses the memory goes before.

    Raises:
        ValueError: an address, since its extent is not known.
    """
    if not is_array(array):
        raise ValueError(
            "array: expected the array itself, since edges are derived from its bytes, came "
            f"{array!r}"
        )
    return _not_empty([Access(*array_span(array, "array"), True, "array")])


def declared_accesses(reads: Declared, writes: Declared) -> tuple[Access, ...]:
    """Return what a call declares where there are no arguments: arrays only.

    Raises:
        TypeError: anything but arrays in a list or tuple.
    """
    found = []
    for declared, argument in ((reads, "reads"), (writes, "writes")):
        for item in _items(declared, argument):
            if not is_array(item):
                raise TypeError(f"{argument}: expected arrays, came {item!r}")
            start, end = array_span(item, argument)
            found.append(Access(start, end, argument == "writes"))
    return _not_empty(found)


def kernel_accesses(
    parameters: Sequence[Parameter],
    values: Sequence[object],
    reads: Declared = None,
    writes: Declared = None,
) -> tuple[Access, ...]:
    """Return what a kernel touches, given its arguments.

    An array behind a ``const T*`` is read, one behind any other pointer read and written, all of
    it. What is declared takes the place of that: an argument that is named is touched as declared;
    an array says the same of the argument that it lies inside of, or that points into it; of a
    const one where it is read and lies inside of both, since the other may be written all the
    same. What structs point at, passed by value, is known from declarations only. A condition
    whose handle is passed is written.

    A word of eight bytes whose type is not known (a wrapped function without a signature) needs a
    declaration unless an array was passed for it.

    Raises:
        TypeError: a declaration of anything but arrays and names of pointer arguments.
        ValueError: a bare address that no declared array covers: its extent is not known; or a
            const argument that is declared to be written.
    """
    named: dict[str, list[bool]] = {}
    arrays: list[tuple[tuple[int, int], bool]] = []
    if reads is not None or writes is not None:
        named, arrays = _declarations(parameters, values, reads, writes)
    found = [Access(*span, write) for span, write in arrays]
    replaced = _replaced(parameters, values, arrays) if arrays else ()
    for parameter, value in zip(parameters, values, strict=True):
        name = parameter.name
        if (handle := condition_of(parameter, value)) is not None:
            found.append(condition_access(handle, write=True, what=name))
            continue
        if parameter.pointer is False:
            continue
        if name in named:
            span = array_span(value, name)
            found += [Access(*span, write, name) for write in named[name]]
        elif is_array(value):
            if name not in replaced:
                found.append(Access(*array_span(value, name), not parameter.const, name))
        elif address := _address(parameter, value):
            covered = any(start <= address < end for (start, end), _ in arrays)
            # Eight bytes of a type that is not known may be a size as well: then any declaration
            # is taken to be complete.
            declared = parameter.pointer is None and (reads is not None or writes is not None)
            if not covered and not declared:
                raise ValueError(
                    f"args: expected an array for `{parameter}`, since the bytes that it touches "
                    f"order the node, came {value!r}; or declare an array over them in reads= or "
                    "writes="
                )
    return _not_empty(found)


def _declarations(
    parameters: Sequence[Parameter], values: Sequence[object], reads: Declared, writes: Declared
) -> tuple[dict[str, list[bool]], list[tuple[tuple[int, int], bool]]]:
    """Return how each named argument is touched, and the spans of the arrays, with whether written.

    Reads come first.
    """
    named: dict[str, list[bool]] = {}
    arrays: list[tuple[tuple[int, int], bool]] = []
    names = {item.name: (item, value) for item, value in zip(parameters, values, strict=True)}
    for declared, argument in ((reads, "reads"), (writes, "writes")):
        write = argument == "writes"
        for item in _items(declared, argument):
            if is_array(item):
                arrays.append((array_span(item, argument), write))
                continue
            parameter, value = names.get(item, (None, None)) if isinstance(item, str) else _NONE
            if parameter is None or parameter.pointer is False:
                pointers = [
                    name for name, (known, _) in names.items() if known.pointer is not False
                ]
                raise TypeError(
                    f"{argument}: expected arrays and names of pointer arguments, of {pointers}, "
                    f"came {item!r}"
                )
            if write and parameter.const:
                raise ValueError(f"writes: expected arguments that are not const, came {item!r}")
            if is_array(value):
                named.setdefault(parameter.name, []).append(write)
            elif _address(parameter, value):
                raise ValueError(
                    f"{argument}: expected an array over what {item!r} points at, since its "
                    "argument is an address without a size, came the name"
                )
    return named, arrays


_NONE = (None, None)


def _items(declared: Declared, argument: str) -> Iterable[object]:
    if declared is None:
        return ()
    # No iterable at large: an array is one, and a str as well.
    if not isinstance(declared, (list, tuple)):
        raise TypeError(
            f"{argument}: expected a list or tuple of arrays and names, came "
            f"{type(declared).__name__}"
        )
    return tuple(declared)


def _replaced(
    parameters: Sequence[Parameter],
    values: Sequence[object],
    arrays: Iterable[tuple[tuple[int, int], bool]],
) -> set[str]:
    """Return the arguments of which declared arrays say what is touched."""
    spans = [
        (parameter, array_span(value, parameter.name))
        for parameter, value in zip(parameters, values, strict=True)
        if parameter.pointer is not False and is_array(value)
    ]
    replaced: set[str] = set()
    for (start, end), write in arrays:
        around = [item for item, (first, last) in spans if first <= start and end <= last]
        constant = [item for item in around if item.const]
        # What is written through one pointer says nothing about what is read through a const one,
        # and what a const one reads says nothing about what another one may write.
        said = [item for item in around if not item.const] if write else constant or around
        replaced.update(item.name for item in said)
    return replaced


def _address(parameter: Parameter, value: object) -> int:
    """Return the address that a value may be for this parameter; 0 for null and for none."""
    if parameter.pointer is False or (parameter.pointer is None and parameter.size < _WORD):
        return 0
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (bytes, bytearray, memoryview)):  # of a type that is not known
        return int.from_bytes(bytes(value[:_WORD]), "little")
    return 0


def _not_empty(accesses: Iterable[Access]) -> tuple[Access, ...]:
    return tuple(item for item in accesses if item.start < item.end)
