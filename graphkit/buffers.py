"""What may stand in for a buffer that a graph was captured with."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from graphkit.arrays import ArrayInfo, device_pointer
from graphkit.compared import Span
from graphkit.device_array import DeviceArray
from graphkit.frameworks import fingerprint
from graphkit.lifetime import Handle
from graphkit.runtime.protocol import MemoryType, Runtime

__all__ = ["ALIGNMENT", "Buffer", "alignment_of", "check_no_overlap"]

# Libraries choose kernels by how well an address is aligned, up to this many bytes; what cudaMalloc
# returns is a multiple of it.
ALIGNMENT = 256
# Work that numpy.shares_memory may spend on telling two interleaved views apart.
_MAX_WORK: Any = 100_000  # NumPy's stubs know of two values only


def alignment_of(address: int) -> int:
    """Return the greatest power of two, up to 256, that an address is a multiple of."""
    return min(address & -address, ALIGNMENT)


def names_device(kind: type) -> bool:
    """Return whether the fingerprint of an array of this type says which device it lies on."""
    return any(base.__module__.partition(".")[0] in ("cupy", "torch") for base in kind.__mro__)


class Buffer:
    """A buffer that a graph was captured with: its layout, which every later one must have.

    Args:
        name: what the function calls it.
        array: the array it was captured with.
        runtime: the runtime of the capture.

    Raises:
        TypeError: for what is no array, or one on the host.
        ValueError: for a freed or empty array, or one of another device.
    """

    def __init__(self, name: str, array: object, runtime: Runtime) -> None:
        self.name = name
        self.runtime = runtime
        self.device = runtime.get_device()
        # Without the owner: this outlives the array.
        self.info = self._describe(array)._replace(owner=None)
        if not self.info.nbytes:
            raise ValueError(f"{name}: expected at least one element, came {self.info.shape}")
        self.address = self.info.ptr
        self.alignment = alignment_of(self.address)
        steps = [
            (extent - 1) * step
            for extent, step in zip(self.info.shape, self.info.strides, strict=True)
        ]
        # From the first element to the first byte, and behind the last.
        self.low = sum(min(step, 0) for step in steps)
        self.high = sum(max(step, 0) for step in steps) + self.info.dtype.itemsize
        self._axes = _nested_axes(self.info)
        # For each type of CuPy's and PyTorch's a fingerprint that passed. They name the device;
        # for arrays of others CUDA is asked each time.
        self.layouts: dict[type, Hashable] = {}

    def span(self, address: int) -> Span:
        """Return the bytes of a buffer of this layout at an address."""
        itemsize = self.info.dtype.itemsize
        return Span(address + self.low, address + self.high, self._axes, itemsize)

    def over(self, memory: DeviceArray, address: int) -> DeviceArray:
        """Return an array of this layout at an address inside of ``memory``."""
        return self._view(memory.memory, address)

    def borrow(self, array: object) -> DeviceArray:
        """Return an array of ours over the memory of the first one."""
        return self._view(Handle(self.runtime, "borrowed", self.address, None, array), self.address)

    def _view(self, memory: Handle, address: int) -> DeviceArray:
        array = object.__new__(DeviceArray)
        array.runtime, array.memory, array.dtype = self.runtime, memory, self.info.dtype
        array.shape, array.strides = self.info.shape, self.info.strides
        array.offset = address - memory.value
        return array

    def _describe(self, value: object) -> ArrayInfo:
        """Describe an array, and ask CUDA where it lies (cudaPointerGetAttributes)."""
        name = self.name
        info = device_pointer(value, name)
        found = self.runtime.pointer_get_attributes(info.ptr)
        if found.type is MemoryType.HOST:
            raise TypeError(f"{name}: expected an array in device memory, came pinned host memory")
        if found.type is MemoryType.UNREGISTERED:
            raise ValueError(
                f"{name}: expected live device memory, came {info.ptr:#x}, which CUDA does not "
                "know: freed, or ordinary host memory"
            )
        if found.device != self.device:
            raise ValueError(
                f"{name}: expected an array of device {self.device}, came one of {found.device}"
            )
        return info

    def check(self, value: object) -> int:
        """Return the address of an array that may be bound in place of the first.

        Raises:
            TypeError: when it is no array, lies on the host, or has another dtype.
            ValueError: when it was freed, lies on another device, or has another shape, other
                strides, or an address less well aligned than the first.
        """
        info, wanted, name = self._describe(value), self.info, self.name
        if info.dtype != wanted.dtype:
            raise TypeError(f"{name}: expected an array of {wanted.dtype}, came {info.dtype}")
        if info.shape != wanted.shape:
            raise ValueError(f"{name}: expected shape {wanted.shape}, came {info.shape}")
        steps = zip(wanted.shape, wanted.strides, info.strides, strict=True)
        # An axis of one element has no next one: whatever its stride says is never used.
        if any(extent > 1 and step != mine for extent, step, mine in steps):
            raise ValueError(
                f"{name}: expected strides of {wanted.strides} bytes, came {info.strides}"
            )
        if info.ptr % self.alignment:
            raise ValueError(
                f"{name}: expected an address that is a multiple of {self.alignment}, as the one "
                f"was that the kernels were chosen for, came {info.ptr:#x}"
            )
        kind = type(value)
        if kind is not DeviceArray and names_device(kind):
            self.layouts[kind] = fingerprint(value, name)[1]
        return info.ptr


def _nested_axes(info: ArrayInfo) -> tuple[tuple[int, int], ...]:
    """Return (distance, elements) of the axes, widest first; none where they are not nested."""
    axes = sorted(
        (abs(step), extent)
        for extent, step in zip(info.shape, info.strides, strict=True)
        if extent > 1
    )
    inside = info.dtype.itemsize
    for step, extent in axes:
        if step < inside:
            return ()
        inside = (extent - 1) * step + inside
    return () if inside == info.nbytes else tuple(reversed(axes))


def check_no_overlap(buffers: Mapping[str, Buffer], addresses: Mapping[str, int]) -> None:
    """Refuse buffers that share an element: what one kernel writes another would read.

    Raises:
        ValueError: naming two of them.
    """
    for (name, buffer), (other_name, other) in combinations(buffers.items(), 2):
        mine, theirs = buffer.span(addresses[name]), other.span(addresses[other_name])
        if mine.low >= theirs.high or theirs.low >= mine.high:
            continue
        if not _share(buffer, addresses[name], other, addresses[other_name]):
            continue
        raise ValueError(
            f"{other_name}: expected a buffer that does not overlap {name}, came bytes "
            f"{theirs.low:#x} to {theirs.high:#x} and for {name} {mine.low:#x} to {mine.high:#x}"
        )


class _Layout:
    """An array's layout at an address, for NumPy, which never reads it here."""

    def __init__(self, buffer: Buffer, address: int) -> None:
        info = buffer.info
        self.__array_interface__ = {
            "version": 3,
            "shape": (*info.shape, info.dtype.itemsize),
            "typestr": "|u1",
            "data": (address, True),
            "strides": (*info.strides, 1),
        }


def _share(a: Buffer, a_address: int, b: Buffer, b_address: int) -> bool:
    """Return whether two arrays have a byte in common; True where that is too hard to tell."""
    try:
        return bool(
            np.shares_memory(
                np.asarray(_Layout(a, a_address)), np.asarray(_Layout(b, b_address)), _MAX_WORK
            )
        )
    except np.exceptions.TooHardError:
        return True
