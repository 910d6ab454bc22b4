"""Copies into and out of staging memory: many arrays, each cut or padded, in one launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import accumulate
from math import gcd, prod
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from graphkit.errors import SimulationError
from graphkit.kernel import Kernel
from graphkit.lifetime import host_function
from graphkit.runtime.protocol import Dim3, TwinLaunch

__all__ = ["COPY_PADDED", "MOST_COPIES", "CopyTemplate", "PaddedCopy", "launch", "templates"]

MOST_COPIES = 16

_THREADS = 256  # of a block; staging.cu was compiled for no more
_MOST_AXES = 4
_WIDEST = 16  # bytes of the widest load
# A block begins with one load of 16 bytes a thread: the most parallel, so the soonest done. From
# 8 MiB on the blocks do not get more but longer, several times what an H200 holds at once.
_BYTES_PER_BLOCK = _THREADS * _WIDEST
_MOST_BLOCKS = 2048
_MOST_RUNS = 1024  # pieces of memory that the simulator is told apart

# struct Entry of staging.cu.
_ENTRY = Struct("<QQ16sQ4Q4Q4q4q4I4I4I")
_ENTRY_DTYPE = np.dtype(
    [
        ("src", "<u8"),
        ("dst", "<u8"),
        ("fill", "<u8", 2),
        ("count", "<u8"),
        ("extents", "<u8", _MOST_AXES),
        ("valid", "<u8", _MOST_AXES),
        ("src_strides", "<i8", _MOST_AXES),
        ("dst_strides", "<i8", _MOST_AXES),
        ("magic", "<u4", _MOST_AXES),
        ("shift", "<u4", _MOST_AXES),
        ("axes", "<u4"),
        ("unit", "<u4"),
        ("first_block", "<u4"),
        ("blocks", "<u4"),
    ]
)


class PaddedCopy(NamedTuple):
    """A copy from one strided array to another of the same or a larger shape.

    Attributes:
        extents: shape of the target; all of it is written.
        valid: the part of it, from index 0 of each axis, that is read from the source. What lies
            beyond is filled. With a 0 in it nothing is read.
        src_strides: distance of two elements of each axis of the source in bytes; 0 repeats it.
        dst_strides: the same of the target.
        itemsize: bytes of an element.
        fill: the bytes of the element that the rest is filled with.
        alignment: a power of two that both addresses are promised to be multiples of.
    """

    extents: tuple[int, ...]
    valid: tuple[int, ...]
    src_strides: tuple[int, ...]
    dst_strides: tuple[int, ...]
    itemsize: int
    fill: bytes
    alignment: int = _WIDEST


class _Axis(NamedTuple):
    extent: int
    valid: int
    src_stride: int
    dst_stride: int


class _Layout(NamedTuple):
    """A copy as the kernel does it: in units, the innermost axis first."""

    unit: int
    axes: list[_Axis]
    fill: bytes


def _check(copy: PaddedCopy, name: str) -> None:
    axes = len(copy.extents)
    for field in ("valid", "src_strides", "dst_strides"):
        found = getattr(copy, field)
        if len(found) != axes:
            raise ValueError(f"{name}.{field}: expected {axes} axes, came {found}")
        if min(found, default=0) < 0:
            raise ValueError(f"{name}.{field}: expected 0 or more on each axis, came {found}")
    if min(copy.extents, default=1) < 1:
        raise ValueError(f"{name}.extents: expected 1 or more on each axis, came {copy.extents}")
    if any(valid > extent for valid, extent in zip(copy.valid, copy.extents, strict=True)):
        raise ValueError(f"{name}.valid: expected at most {copy.extents}, came {copy.valid}")
    if copy.itemsize < 1:
        raise ValueError(f"{name}.itemsize: expected 1 or more bytes, came {copy.itemsize}")
    if len(copy.fill) != copy.itemsize:
        raise ValueError(f"{name}.fill: expected {copy.itemsize} bytes, came {copy.fill!r}")
    if copy.alignment < 1 or copy.alignment & (copy.alignment - 1):
        raise ValueError(f"{name}.alignment: expected a power of two, came {copy.alignment}")


def _merged(copy: PaddedCopy, name: str) -> list[_Axis]:
    """Return the axes in bytes, innermost in the target first, with as few axes as it takes."""
    byte = _Axis(copy.itemsize, copy.itemsize, 1, 1)
    axes = [
        # A stride that no index is multiplied with may be any: one that lets axes merge.
        _Axis(extent, valid, dst_stride if valid < 2 else src_stride, dst_stride)
        for extent, valid, src_stride, dst_stride in zip(*copy[:4], strict=True)
        if extent > 1
    ]
    axes.sort(key=lambda axis: axis.dst_stride)
    axes.insert(0, byte)
    if 0 in copy.valid:
        axes = [_Axis(axis.extent, 0, axis.dst_stride, axis.dst_stride) for axis in axes]
    merged = [axes[0]]
    span = copy.itemsize
    for outer in axes[1:]:
        if outer.dst_stride < span:
            raise ValueError(
                f"{name}.dst_strides: expected elements of their own memory each, came "
                f"{copy.dst_strides} for extents {copy.extents}"
            )
        span += (outer.extent - 1) * outer.dst_stride
        inner = merged[-1]
        extent = inner.extent
        full = inner.valid == extent and outer.src_stride == extent * inner.src_stride
        if outer.dst_stride == extent * inner.dst_stride and (full or outer.valid < 2):
            valid = inner.valid if outer.valid == 1 else outer.valid * extent
            merged[-1] = _Axis(outer.extent * extent, valid, *inner[2:])
        else:
            merged.append(outer)
    return merged


def _repeats(fill: bytes, unit: int) -> bool:
    """Return whether every unit of a run of the same elements is the same."""
    whole = fill * (unit // gcd(unit, len(fill)))
    return whole == whole[:unit] * (len(whole) // unit)


def _layout(copy: PaddedCopy, name: str) -> _Layout:
    _check(copy, name)
    inner, *outers = _merged(copy, name)
    bits = _WIDEST | copy.alignment | inner.extent | inner.valid
    for axis in outers:
        bits |= axis.src_stride | axis.dst_stride
    unit = bits & -bits
    padded = inner.valid < inner.extent or any(axis.valid < axis.extent for axis in outers)
    if padded and not _repeats(copy.fill, unit):
        raise ValueError(
            f"{name}.fill: expected a pattern that repeats every {unit} bytes, the most that this "
            f"alignment and these strides let move at once, came {copy.fill!r}"
        )
    axes = [_Axis(axis.extent, axis.valid, axis[2] // unit, axis[3] // unit) for axis in outers]
    if inner.extent > unit or not axes:
        axes.insert(0, _Axis(inner.extent // unit, inner.valid // unit, 1, 1))
    if len(axes) > _MOST_AXES:
        raise ValueError(
            f"{name}: expected an array that needs at most {_MOST_AXES} axes where merged, came "
            f"{len(axes)}: extents {copy.extents}, valid {copy.valid}, src_strides "
            f"{copy.src_strides}, dst_strides {copy.dst_strides}"
        )
    pattern = (copy.fill * _WIDEST)[:unit] * (_WIDEST // unit)
    return _Layout(unit, axes, pattern)


def _divisor(extent: int) -> tuple[int, int]:
    """Return magic and shift: n // extent = ((n * magic >> 32) + n) >> shift for n < 2**31.

    Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994.
    """
    shift = (extent - 1).bit_length()
    return (((1 << shift) - extent) << 32) // extent + 1, shift


def _entry(layout: _Layout, first_block: int, blocks: int) -> bytes:
    axes = layout.axes
    count = prod(axis.extent for axis in axes)
    padding = [_Axis(1, 1, 0, 0)] * (_MOST_AXES - len(axes))
    extents, valid, src_strides, dst_strides = zip(*axes, *padding, strict=True)
    divisors = [_divisor(axis.extent) for axis in axes[:-1]] if count < 1 << 31 else []
    divisors += [(0, 31)] * (_MOST_AXES - len(divisors))  # 0 for any n of the outermost axis
    magic, shift = zip(*divisors, strict=True)
    return _ENTRY.pack(
        0, 0, layout.fill, count, *extents, *valid, *src_strides, *dst_strides, *magic, *shift,
        len(axes), layout.unit, first_block, blocks,
    )  # fmt: skip


class CopyTemplate:
    """The arguments of one launch of copies, complete but for the addresses.

    Args:
        copies: up to 16 of them.
        first: the place of the first one in a longer list, for messages.

    Attributes:
        bytes: the packed argument block of ``kernel``, with zeros for the addresses.
        count: how many copies there are.
        kernel: what to launch with it, one of :data:`COPY_PADDED`.
        grid: blocks along x, y, z. They follow from extents and element sizes alone; any other
            grid copies the same.
        block: threads of a block along x, y, z.

    Raises:
        ValueError: when a copy is not one that the kernel does, such as one with a negative
            stride, with elements of the target on top of each other, or with more than four axes
            left when those without gaps are merged.
    """

    __slots__ = ("_units", "block", "bytes", "count", "grid", "kernel")

    def __init__(self, copies: Sequence[PaddedCopy], first: int = 0) -> None:
        self.count = len(copies)
        if not 1 <= self.count <= MOST_COPIES:
            raise ValueError(f"copies: expected 1 to {MOST_COPIES}, came {self.count}")
        layouts = [_layout(copy, f"copies[{first + i}]") for i, copy in enumerate(copies)]
        blocks = [
            min(-(-prod(copy.extents) * copy.itemsize // _BYTES_PER_BLOCK), _MOST_BLOCKS)
            for copy in copies
        ]
        ends = list(accumulate(blocks))
        capacity = next(size for size in COPY_PADDED if size >= self.count)
        packed = bytearray(np.array(ends + ends[-1:] * (capacity - self.count), "<u4").tobytes())
        for layout, end, share in zip(layouts, ends, blocks, strict=True):
            packed += _entry(layout, end - share, share)
        packed += bytes((capacity - self.count) * _ENTRY.size)
        self.bytes = bytes(packed)
        self.kernel = COPY_PADDED[capacity]
        self.grid: Dim3 = (ends[-1], 1, 1)
        self.block: Dim3 = (_THREADS, 1, 1)
        self._units = [layout.unit for layout in layouts]

    def offsets(self, index: int) -> tuple[int, int]:
        """Return where in ``bytes`` the addresses of source and target of a copy go, 8 each."""
        if not 0 <= index < self.count:
            raise IndexError(f"index: expected 0 to {self.count - 1}, came {index}")
        capacity = len(self.bytes) // (_ENTRY.size + 4)
        source = 4 * capacity + index * _ENTRY.size
        return source, source + 8

    def alignment(self, index: int) -> int:
        """Return what both addresses of a copy must be multiples of: the bytes moved at once."""
        return self._units[index]

    def __repr__(self) -> str:
        return f"<CopyTemplate {self.count} copies in {self.grid[0]} blocks, units {self._units}>"


def templates(copies: Sequence[PaddedCopy]) -> list[CopyTemplate]:
    """Return the launches that do any number of copies: one for each 16 of them, in order."""
    return [
        CopyTemplate(copies[first : first + MOST_COPIES], first)
        for first in range(0, len(copies), MOST_COPIES)
    ]


def launch(template: CopyTemplate, addresses: Sequence[tuple[int, int]], stream: object) -> None:
    """Launch copies on a stream (cuLaunchKernelEx); keeping the memory alive is the caller's.

    Args:
        template: what to copy.
        addresses: (source, target) of each copy.
        stream: any framework's stream, which may capture.

    Raises:
        ValueError: when addresses are missing, or less aligned than the copies were promised.
    """
    if len(addresses) != template.count:
        raise ValueError(f"addresses: expected {template.count} pairs, came {len(addresses)}")
    packed = bytearray(template.bytes)
    for index, pair in enumerate(addresses):
        unit = template.alignment(index)
        for address, offset in zip(pair, template.offsets(index), strict=True):
            if address % unit:
                raise ValueError(
                    f"addresses[{index}]: expected multiples of {unit}, came {address:#x}"
                )
            packed[offset : offset + 8] = address.to_bytes(8, "little")
    (parameter,) = template.kernel.parameters
    copies = np.frombuffer(packed, parameter.dtype)[0]
    template.kernel(template.grid, template.block, (copies,), stream=stream)


# --- the kernel and its twin ---------------------------------------------------------------------

# What moves as one piece, whatever it means: a copy between arrays of one dtype keeps every bit.
_UNITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


def twin(launch: TwinLaunch, copies: np.void) -> None:
    """Do what copy_padded does."""
    for entry in copies["entries"]:
        if not entry["blocks"]:
            break  # the rest is empty
        _copy(launch, entry)


def _copy(launch: TwinLaunch, entry: np.void) -> None:
    axes, unit = int(entry["axes"]), int(entry["unit"])
    extents, valid = (entry[field][axes - 1 :: -1].tolist() for field in ("extents", "valid"))
    target = _strided(launch, entry, "dst", extents, write=True)
    if valid != extents:
        target[...] = entry["fill"].view(_UNITS[unit])[:1]
    if all(valid):
        source = _strided(launch, entry, "src", valid, write=False)
        target[tuple(map(slice, valid))] = source


def _strided(
    launch: TwinLaunch, entry: np.void, field: str, shape: list[int], *, write: bool
) -> NDArray[Any]:
    """View an array of the given shape in units, and note which memory it touches."""
    address, unit = int(entry[field]), int(entry["unit"])
    if address % unit:
        raise SimulationError(
            f"copy_padded moves {unit} bytes at once: expected {field} at a multiple of {unit}, "
            f"came {address:#x}"
        )
    steps = (entry[f"{field}_strides"][len(shape) - 1 :: -1] * unit).tolist()
    run, offsets = unit, [0]
    for extent, step in sorted(zip(shape, steps, strict=True), key=lambda axis: axis[1]):
        if step == run:
            run *= extent
        elif step and extent > 1 and len(offsets) * extent <= _MOST_RUNS:
            offsets = [offset + i * step for offset in offsets for i in range(extent)]
        elif step:
            # Too many pieces: what lies between them counts as touched, too.
            run += (extent - 1) * step
    runs = [launch.memory(address + offset, run, write=write) for offset in offsets]
    first: NDArray[Any] = runs[0][:unit].view(_UNITS[unit])
    return as_strided(first, shape, steps, writeable=write)


class _CopyKernel(Kernel):
    """A kernel that finds its addresses in a struct, where no Pointer can stand for them."""

    def _run_twin(self, launch: TwinLaunch) -> None:
        (raw,) = launch.arguments
        with host_function():
            twin(launch, np.frombuffer(raw, self.parameters[0].dtype)[0])


def _kernel(capacity: int) -> Kernel:
    copies = np.dtype([("ends", "<u4", capacity), ("entries", _ENTRY_DTYPE, capacity)])
    return _CopyKernel(
        _SOURCE,
        "copy_padded",
        twin=twin,
        options=(f"-DCOPIES={capacity}",),
        types={"Copies": copies},
    )


_SOURCE = (files(__package__) / "staging.cu").read_text(encoding="utf-8")

#: The kernel, by how many copies its arguments have room for: CUDA moves the whole argument block
#: at every launch and every change, so that few copies should not take the room of many.
COPY_PADDED: Mapping[int, Kernel] = {size: _kernel(size) for size in (2, 4, 8, MOST_COPIES)}
