"""The host's end of one input or output of a pipeline: which arrays may stand there, and where."""

from __future__ import annotations

from math import prod
from typing import Any
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from graphkit.arrays import ArrayInfo, describe, is_array
from graphkit.device_array import contiguous_strides, empty_pinned
from graphkit.runtime.protocol import MemoryType, Runtime

__all__ = ["HostPort", "check_port_name", "port_of"]

_MOST_KNOWN = 1024
# Kinds of NumPy's dtypes: each takes the numbers of those that are not above it.
_KINDS = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


class HostPort:
    """One input or output of a pipeline as the host sees it.

    Attributes:
        name: of the input or output.
        shape: of its arrays.
        dtype: of its arrays.
        nbytes: of an array.
        is_input: whether requests read it; an output is written.
        example: an array of the library whose arrays the function is given, or None.
        known: by id the arrays that were looked at: a weak reference and the address. What is
            found here needs no further look: an ndarray cannot leave memory that is not its own.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        runtime: Runtime,
        *,
        is_input: bool,
        example: object = None,
    ) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.is_input = is_input
        self.example = example
        self.nbytes = prod(shape) * dtype.itemsize
        if not self.nbytes:
            raise ValueError(f"{name}: expected at least one element, came shape {shape}")
        if self.nbytes >= 2**63:
            raise ValueError(f"{name}: expected fewer than 2**63 bytes, came shape {shape}")
        self.known: dict[int, tuple[ref[Any], int]] = {}
        self._runtime = runtime

    def empty(self) -> np.ndarray[Any, Any]:
        """Return a new array for it in pinned memory (cudaHostAlloc)."""
        return empty_pinned(self.shape, self.dtype)

    def address(self, array: object) -> int:
        """Return the address of an array that a request may copy from or to.

        One call the first time that an array is seen (cudaPointerGetAttributes).

        Raises:
            TypeError: when it is no array, or lies on the device.
            ValueError: when dtype, shape or layout are others, its memory is not pinned, or it may
                not be written.
        """
        known = self.known.get(id(array))
        if known is not None and known[0]() is array:
            return known[1]
        info = self.check(array)
        if not self._pinned(info):
            where = "from" if self.is_input else "to"
            raise ValueError(
                f"{self.name}: expected pinned host memory, since a graph copies {where} it when "
                f"the host is elsewhere, came pageable memory; allocate it with "
                f"graphkit.empty_pinned(), write into a slot's own buffer "
                f"(`with pipeline.slot() as slot: slot[{self.name!r}][...] = ...`)"
                + (", or let Pipeline(stage=True) copy it there" if self.is_input else "")
            )
        # Others' arrays may be given other memory, and so may one that owns what it has.
        if type(array) is np.ndarray and not array.flags.owndata:
            if len(self.known) >= _MOST_KNOWN:
                self._forget()
            self.known[id(array)] = ref(array), info.ptr
        return info.ptr

    def _forget(self) -> None:
        """Forget the arrays that are gone; all of them where too many are not."""
        for key, entry in [*self.known.items()]:  # a copy: other threads add to it meanwhile
            if entry[0]() is None:
                self.known.pop(key, None)
        if len(self.known) >= _MOST_KNOWN:
            self.known.clear()

    def stage(self, array: object, buffer: np.ndarray[Any, Any]) -> None:
        """Copy values into a buffer of this port, by the host.

        Raises:
            TypeError: when they lie on the device, or are no numbers.
            ValueError: when dtype or shape are others.
        """
        if type(array) is not np.ndarray:
            if is_array(array):
                if not describe(array, self.name).on_host:
                    self.check(array)  # says what is wrong with it
                array = np.asarray(array)
            else:
                array = self._numbers(array)
        if array.dtype != self.dtype:
            raise ValueError(f"{self.name}: expected dtype {self.dtype}, came {array.dtype}")
        if array.shape != self.shape:
            raise ValueError(f"{self.name}: expected shape {self.shape}, came {array.shape}")
        buffer[...] = array

    def _numbers(self, values: object) -> NDArray[Any]:
        """Return an array of Python's numbers, which have no dtype of their own, but a kind."""
        try:
            given = np.asarray(values)
            most = _KINDS.get(self.dtype.kind)
            if most is None or _KINDS.get(given.dtype.kind, most + 1) <= most:
                return np.asarray(values, self.dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.name}: expected numbers of {self.dtype}: {error}") from None
        raise TypeError(f"{self.name}: expected numbers of {self.dtype}, came {given.dtype}")

    def check(self, array: object) -> ArrayInfo:
        """Describe an array of the host; refuse it unless it is of this dtype, shape and layout."""
        info = describe(array, self.name)
        if not info.on_host:
            raise TypeError(
                f"{self.name}: expected an array on the host, came {type(array).__name__} on the "
                "device; a pipeline copies both ways by itself"
            )
        if info.dtype != self.dtype:
            raise ValueError(f"{self.name}: expected dtype {self.dtype}, came {info.dtype}")
        if info.shape != self.shape:
            raise ValueError(f"{self.name}: expected shape {self.shape}, came {info.shape}")
        if not info.contiguous:
            expected = contiguous_strides(self.shape, self.dtype.itemsize)
            raise ValueError(
                f"{self.name}: expected an array without gaps, strides {expected}, came "
                f"{info.strides}"
            )
        if not self.is_input and isinstance(array, np.ndarray) and not array.flags.writeable:
            raise ValueError(f"{self.name}: expected an array that may be written, came another")
        return info

    def _pinned(self, info: ArrayInfo) -> bool:
        # The first and the last byte: pinned memory may end inside of an array.
        ends = info.ptr, info.ptr + info.nbytes - 1
        found = (self._runtime.pointer_get_attributes(address).type for address in ends)
        return all(kind is MemoryType.HOST for kind in found)


def check_port_name(argument: str, name: object) -> None:
    """Refuse a name that no parameter can have.

    Raises:
        TypeError: when it is none.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise TypeError(f"{argument}: expected names of parameters, came {name!r}")


def port_of(name: str, wanted: object, runtime: Runtime, *, is_input: bool) -> HostPort:
    """Return the port that an entry of ``inputs`` or ``outputs`` asks for.

    Args:
        name: the entry's key.
        wanted: (shape, dtype), or an array whose shape, dtype and library are taken.
        runtime: the pipeline's runtime.
        is_input: whether it is an input.

    Raises:
        TypeError: when it is neither, or the name is no name of a parameter.
    """
    check_port_name("name", name)
    if is_array(wanted):
        info = describe(wanted, name)
        example = None if info.on_host else wanted
        return HostPort(name, info.shape, info.dtype, runtime, is_input=is_input, example=example)
    if not isinstance(wanted, tuple) or len(wanted) != 2:
        raise TypeError(f"{name}: expected (shape, dtype) or an array, came {wanted!r}")
    shape, dtype = wanted
    extents = (shape,) if isinstance(shape, (int, np.integer)) else shape
    if not isinstance(extents, (tuple, list)) or not all(
        isinstance(extent, (int, np.integer)) and not isinstance(extent, bool) for extent in extents
    ):
        raise TypeError(f"{name}: expected a shape of ints, came {shape!r}")
    if any(extent < 0 for extent in extents):
        raise ValueError(f"{name}: expected extents of 1 or more, came {shape}")
    try:
        kind: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{name}: expected a NumPy dtype, came {dtype!r}") from None
    if kind.hasobject:
        raise TypeError(f"{name}: expected elements of plain bytes, came {kind}")
    return HostPort(name, tuple(map(int, extents)), kind, runtime, is_input=is_input)
