"""An array in device memory of our own, the same on both runtimes, and pinned host memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from graphkit.lifetime import Handle, capture_is_live
from graphkit.runtime import current, given_or_current
from graphkit.runtime.protocol import MemcpyKind, Runtime

__all__ = [
    "DeviceArray",
    "array_over",
    "asarray",
    "check_elements",
    "contiguous_strides",
    "empty",
    "empty_pinned",
    "zeros",
]

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)


def contiguous_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the distance in bytes of two elements of each axis, in C order without gaps."""
    strides = []
    step = itemsize
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


class DeviceArray:
    """An array in device memory (cudaMalloc), the same on both runtimes.

    Enough to hold operands where no array library is at hand, and no more: basic slicing gives
    views, there is no arithmetic. It offers ``__cuda_array_interface__``, so CuPy, PyTorch and
    Numba take it without a copy.

    Args:
        shape: extent of each axis in elements.
        dtype: NumPy dtype of the elements.
        runtime: the runtime to use; the current one by default.

    Attributes:
        strides: distance of two elements of each axis in bytes.
        memory: the handle of the allocation, shared by all views of it.
        offset: bytes between the start of the allocation and the first element.
    """

    __slots__ = ("__weakref__", "dtype", "memory", "offset", "runtime", "shape", "strides")

    def __init__(
        self,
        shape: int | Sequence[int],
        dtype: DTypeLike = np.float32,
        *,
        runtime: Runtime | None = None,
    ) -> None:
        self.runtime = given_or_current(runtime)
        self.shape, self.dtype, nbytes = check_elements(shape, dtype)
        self.strides = contiguous_strides(self.shape, self.dtype.itemsize)
        self.offset = 0
        # cudaMalloc(0) gives no address; one byte keeps empty arrays apart from missing ones.
        address = self.runtime.malloc(max(nbytes, 1))
        self.memory = Handle(self.runtime, "device memory", address, self.runtime.free)

    @property
    def ptr(self) -> int:
        """Address of the first element.

        Raises:
            ValueError: when the memory was freed.
        """
        address = self.memory.value
        if not address:
            raise ValueError("array: expected live device memory, came a freed DeviceArray")
        return address + self.offset

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The protocol's version 3, with no stream to wait for.

        What a stream still does to the array is the caller's to order, as between two kernels. A
        stream named here would be synchronized by whoever takes the array, which kills a capture.
        """
        typestr = "<V2" if self.dtype == BFLOAT16 else self.dtype.str
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": typestr,
            "data": (self.ptr, False),
            "strides": self.strides,
            "stream": None,
        }

    def __getitem__(self, index: object) -> DeviceArray:
        """Return a view of the same memory: ints and slices with a positive step.

        Raises:
            IndexError: when the index does not fit the shape.
            ValueError: for anything but ints and slices, and for negative steps.
        """
        items = index if isinstance(index, tuple) else (index,)
        if not all(
            isinstance(item, (int, np.integer, slice, type(...))) and not isinstance(item, bool)
            for item in items
        ):
            raise ValueError(f"index: expected ints and slices, came {index!r}")
        # NumPy knows the rules of slicing: let it slice an array of this layout over no memory.
        # The ellipsis makes the result a view even when it is one element; nothing is read.
        layout: NDArray[np.uint8] = np.lib.stride_tricks.as_strided(
            np.empty(1, np.uint8), self.shape, self.strides
        )
        part: NDArray[np.uint8] = layout[items if ... in items else (*items, ...)]
        if min(part.strides, default=0) < 0:
            raise ValueError(f"index: expected slices with positive steps, came {index!r}")
        base = layout.__array_interface__["data"][0]
        view = object.__new__(DeviceArray)
        view.runtime, view.memory, view.dtype = self.runtime, self.memory, self.dtype
        view.shape, view.strides = part.shape, part.strides
        view.offset = self.offset + part.__array_interface__["data"][0] - base
        return view

    def view(self, shape: int | Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """Return an array of another shape and dtype over the first bytes of this one.

        Raises:
            ValueError: when this array has gaps, or fewer bytes.
        """
        view = object.__new__(DeviceArray)
        view.runtime, view.memory, view.offset = self.runtime, self.memory, self.offset
        view.shape, view.dtype = _extents(shape), _plain_dtype(dtype)
        view.strides = contiguous_strides(view.shape, view.dtype.itemsize)
        if self.strides != contiguous_strides(self.shape, self.dtype.itemsize):
            raise ValueError(f"view: expected an array without gaps, came strides {self.strides}")
        if view.nbytes > self.nbytes:
            raise ValueError(f"shape: expected at most {self.nbytes} bytes, came {view.nbytes}")
        return view

    def get(self) -> NDArray[Any]:
        """Wait for the device, then return a copy of the array on the host (cudaMemcpy).

        Raises:
            ValueError: when the memory was freed, or while any thread captures: waiting for the
                device (cudaDeviceSynchronize) would kill the capture.
                :func:`graphkit.memcpy_async` copies in stream order.
        """
        self._wait("get")
        span = self._fetch_span()
        return self._strided(span).copy()

    def set(self, values: object) -> None:
        """Wait for the device, then overwrite the array from the host (cudaMemcpy).

        Args:
            values: an array-like of exactly this shape; it is converted to this dtype.

        Raises:
            TypeError: when they are no numbers.
            ValueError: when the shape is another, or the dtype does not hold a value; else as
                :meth:`get`.
        """
        host = _on_host(values, self.dtype)
        if host.shape != self.shape:
            raise ValueError(f"values: expected shape {self.shape}, came {host.shape}")
        if not self.nbytes:
            return
        self._wait("set")
        gaps = self.strides != contiguous_strides(self.shape, self.dtype.itemsize)
        # What lies between the elements of a view belongs to others: read it, write it back.
        span = self._fetch_span() if gaps else np.empty(self.nbytes, np.uint8)
        self._strided(span)[...] = host
        self._store(span)

    def _wait(self, method: str) -> None:
        if capture_is_live():
            raise ValueError(
                f"{method}: expected no live capture, came one that waiting for the device would "
                "kill; copy in stream order with graphkit.memcpy_async(), or wait for the end of "
                "the capture"
            )
        self.runtime.device_synchronize()

    def _store(self, span: NDArray[Any]) -> None:
        self.runtime.memcpy(self.ptr, span.ctypes.data, span.nbytes, MemcpyKind.HOST_TO_DEVICE)
        # From pageable memory cudaMemcpy returns when the bytes are staged, and a stream that does
        # not wait for the legacy one would still find the old ones.
        self.runtime.stream_synchronize(0)

    def _fetch_span(self) -> NDArray[np.uint8]:
        address = self.ptr
        if not self.nbytes:
            return np.empty(0, np.uint8)
        steps = zip(self.shape, self.strides, strict=True)
        nbytes = sum((n - 1) * step for n, step in steps) + self.dtype.itemsize
        span = np.empty(nbytes, np.uint8)
        self.runtime.memcpy(span.ctypes.data, address, nbytes, MemcpyKind.DEVICE_TO_HOST)
        return span

    def _strided(self, span: NDArray[np.uint8]) -> NDArray[Any]:
        return np.ndarray(self.shape, self.dtype, span.data, 0, self.strides)

    def free(self) -> None:
        """Give the memory back now (cudaFree); later uses of it and its views are refused."""
        self.memory.close()

    def __array__(self, *_: object, **__: object) -> NoReturn:
        # NumPy would take it for a sequence of sequences, and go through it element by element.
        raise TypeError("expected values on the host, came a DeviceArray; its get() copies them")

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a DeviceArray without axes")
        return self.shape[0]

    def __repr__(self) -> str:
        state = "freed" if self.memory.closed else hex(self.ptr)
        return f"<DeviceArray {self.shape} {self.dtype} {state}>"


def array_over(memory: Handle, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
    """Return an array over memory that is there already. For graphkit itself."""
    array = object.__new__(DeviceArray)
    array.runtime, array.memory, array.offset = memory.runtime, memory, 0
    array.shape, array.dtype = shape, dtype
    array.strides = contiguous_strides(shape, dtype.itemsize)
    return array


def check_elements(
    shape: int | Sequence[int], dtype: DTypeLike
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape and dtype of an array to be, checked, and its bytes."""
    extents, kind = _extents(shape), _plain_dtype(dtype)
    nbytes = prod(extents) * kind.itemsize
    if nbytes >= 2**63:
        raise ValueError(f"shape: expected fewer than 2**63 bytes, came {nbytes} for {shape!r}")
    return extents, kind, nbytes


def _extents(shape: object) -> tuple[int, ...]:
    extents: tuple[Any, ...] = (shape,)
    if isinstance(shape, Iterable) and not isinstance(shape, (str, bytes)):
        extents = tuple(shape)
    if not all(isinstance(extent, (int, np.integer)) for extent in extents):
        raise TypeError(f"shape: expected an int or several, came {shape!r}")
    if any(extent < 0 for extent in extents):
        raise ValueError(f"shape: expected extents of 0 or more, came {shape}")
    return tuple(int(extent) for extent in extents)


def _plain_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        kind: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(f"dtype: expected a NumPy dtype, came {dtype!r}: {error}") from None
    # The bytes of a Python object are an address: on the device it means nothing.
    if kind.hasobject or kind.subdtype is not None or not kind.itemsize:
        raise TypeError(f"dtype: expected elements of plain bytes, came {kind}")
    return kind


def empty(shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> DeviceArray:
    """Return an uninitialized :class:`DeviceArray` (cudaMalloc)."""
    return DeviceArray(shape, dtype)


def zeros(shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> DeviceArray:
    """Return a :class:`DeviceArray` of zeros.

    Calls cudaMalloc, cudaMemsetAsync on the legacy stream, and cudaStreamSynchronize for that: a
    stream that does not wait for the legacy one would otherwise find the old bytes.
    """
    array = DeviceArray(shape, dtype)
    if array.nbytes:  # no work can know the array yet, so that there is none to wait for
        array.runtime.memset_async(array.ptr, 0, array.nbytes, 0)
        array.runtime.stream_synchronize(0)
    return array


def asarray(values: object, dtype: DTypeLike | None = None) -> DeviceArray:
    """Return a new :class:`DeviceArray` with a copy of host values (cudaMalloc, cudaMemcpy).

    Args:
        values: anything NumPy turns into an array.
        dtype: dtype of the result; that of ``values`` by default.

    Raises:
        TypeError: when they are no numbers.
        ValueError: when a value is out of the dtype's range; fractions are cut for integers.
    """
    host = _on_host(values, None if dtype is None else _plain_dtype(dtype))
    if host.dtype.hasobject:
        raise TypeError(f"values: expected numbers, came {values!r}")
    array = DeviceArray(host.shape, host.dtype)
    if array.nbytes:  # no work can know the array yet, so that there is none to wait for
        array._store(np.ascontiguousarray(host))
    return array


def _on_host(values: object, dtype: np.dtype[Any] | None) -> NDArray[Any]:
    """Return values as an array of a dtype, None for their own, that holds each of them."""
    try:
        host = np.asarray(values)
        if dtype is None or host.dtype == dtype:
            return host
        if host.dtype.kind == "c" and dtype.kind != "c":
            raise TypeError("complex numbers")
        with np.errstate(over="raise"):  # a finite number would become infinite
            if dtype.kind in "iu" and not np.can_cast(host.dtype, dtype):
                if host.dtype.kind == "f" and not isinstance(values, np.ndarray):
                    host = np.asarray(values, object)  # [0, 2**64 - 1] was rounded
                _check_bounds(host, dtype)
            return host.astype(dtype)
    except (TypeError, ValueError, ArithmeticError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        wanted = "numbers of one shape" if dtype is None else f"numbers that {dtype} holds"
        raise kind(f"values: expected {wanted}, came others: {error}") from None


def _check_bounds(host: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Refuse numbers that NumPy would wrap around to make integers of them."""
    if host.dtype == BFLOAT16:
        host = host.astype(np.float32)
    if host.dtype.kind not in "biufO":
        raise TypeError(f"{host.dtype}")
    # Python's numbers: NumPy would round the bounds to the dtype of the values.
    ends = (host.min(), host.max()) if host.size and host.dtype.kind != "O" else host.flat
    bounds = np.iinfo(dtype)
    for value in ends:
        number = value.item() if isinstance(value, np.generic) else value
        if not isinstance(number, (int, float)):
            raise TypeError(f"{number!r}")
        if not bounds.min <= number <= bounds.max:
            raise ValueError(f"{number} is not in {bounds.min} to {bounds.max}")


def empty_pinned(shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return an uninitialized NumPy array in pinned host memory (cudaHostAlloc).

    A graph that copies to or from the host must use such memory: it keeps the address. The
    memory lives as long as the array or any view of it.
    """
    runtime = current()
    extents, kind, nbytes = check_elements(shape, dtype)
    address = runtime.host_alloc(max(nbytes, 1))
    buffer = (ctypes.c_ubyte * max(nbytes, 1)).from_address(address)
    # NumPy keeps the buffer as the base of every view, and the buffer keeps the handle.
    buffer.handle = Handle(runtime, "pinned memory", address, runtime.free_host)  # type: ignore[attr-defined]
    flat: NDArray[Any] = np.ctypeslib.as_array(buffer)[:nbytes].view(kind)
    return flat.reshape(extents)
