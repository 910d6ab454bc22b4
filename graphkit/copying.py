"""Copies and fills in stream order: what a memcpy or memset node does, put on a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphkit.arrays import describe
from graphkit.lifetime import keep_for_capture, keep_until_done
from graphkit.node import memcpy_params, memset_params
from graphkit.runtime import given_or_current
from graphkit.runtime.protocol import CaptureStatus, MemcpyKind, Runtime
from graphkit.stream import runtime_of, stream_handle

__all__ = ["host_copy", "memcpy_async", "memset_async"]

_TO_HOST = (MemcpyKind.HOST_TO_HOST, MemcpyKind.DEVICE_TO_HOST)


def memcpy_async(dst: object, src: object, stream: object, *, nbytes: int | None = None) -> None:
    """Copy when the stream gets there (cudaMemcpyAsync; cudaMemcpy3DAsync for views with gaps).

    Returns without waiting: on the host, read ``dst`` only after ``stream.synchronize()``, and
    leave a ``src`` in pinned memory alone until then. From and to memory that is not pinned
    (:func:`graphkit.empty_pinned`) CUDA may wait inside of the call. A captured copy keeps both
    addresses, and the graph keeps both arrays alive.

    Args:
        dst: array to copy to, or an address.
        src: array to copy from, of the same shape and dtype (or, without gaps, of as many bytes),
            or an address.
        stream: any framework's stream.
        nbytes: how much to copy; needed when either is an address.

    Raises:
        TypeError: when dtypes differ, or an address comes without ``nbytes``.
        ValueError: when sizes differ, nothing is to be copied, more than three dimensions would
            be needed, or an array was freed.
    """
    runtime, handle = runtime_of(stream), stream_handle(stream)
    params = memcpy_params(dst, src, nbytes)
    if params.height == params.depth == 1:
        runtime.memcpy_async(params.dst, params.src, params.width, params.kind, handle)
    else:
        runtime.memcpy_3d_async(params, handle)
    keep_for_capture(runtime, handle, (dst, src))
    # Memory of the host may be gone at once, where that of the device waits to be freed. Sources
    # need no care: CUDA has staged a pageable one by now, and pinned memory waits as well.
    if params.kind in _TO_HOST and runtime.stream_is_capturing(handle) is CaptureStatus.NONE:
        keep_until_done(runtime, (handle,), dst)


def memset_async(dst: object, value: object, stream: object, *, nbytes: int | None = None) -> None:
    """Fill when the stream gets there (cudaMemsetAsync). Returns without waiting.

    CUDA fills with one byte here. So a value whose bytes differ, such as 1.0, is refused, and so
    is a view with gaps; :meth:`graphkit.Graph.add_memset_node` takes both.

    Args:
        dst: device array without gaps, or an address.
        value: what each element becomes, in the array's dtype; a byte for an address.
        stream: any framework's stream; when it captures, the graph keeps ``dst`` alive.
        nbytes: how much to fill; needed when ``dst`` is an address.

    Raises:
        TypeError: when an address comes without ``nbytes``.
        ValueError: when the array is empty, freed or has gaps, or the bytes of ``value`` differ.
    """
    runtime, handle = runtime_of(stream), stream_handle(stream)
    params = memset_params(dst, value, nbytes)
    if params.height > 1:
        raise ValueError(
            f"dst: expected an array without gaps, came rows {params.pitch} bytes apart; a memset "
            "node fills such a view"
        )
    element = params.value.to_bytes(params.element_size, "little")
    if len(set(element)) > 1:
        raise ValueError(
            f"value: expected one whose bytes are all the same, came {value!r}, which is "
            f"0x{params.value:0{2 * params.element_size}x}; a memset node fills with that"
        )
    runtime.memset_async(params.dst, element[0], params.width * params.element_size, handle)
    keep_for_capture(runtime, handle, (dst,))


def host_copy(array: object, runtime: Runtime | None = None) -> NDArray[Any]:
    """Wait for the device, then return anybody's array as a new one on the host (cudaMemcpy).

    Args:
        array: an array of any library, on the device or the host.
        runtime: the runtime to use; the current one by default.

    Raises:
        ValueError: for negative strides.
    """
    info = describe(array)
    steps = [(n - 1) * step for n, step in zip(info.shape, info.strides, strict=True)]
    if min(steps, default=0) < 0 and 0 not in info.shape:
        raise ValueError(f"array: expected positive strides, came {info.strides}")
    if 0 in info.shape:
        return np.empty(info.shape, info.dtype)
    span = np.empty(sum(steps) + info.dtype.itemsize, np.uint8)
    runtime = given_or_current(runtime)
    runtime.device_synchronize()
    kind = MemcpyKind.HOST_TO_HOST if info.on_host else MemcpyKind.DEVICE_TO_HOST
    runtime.memcpy(span.ctypes.data, info.ptr, span.nbytes, kind)
    return np.ndarray(info.shape, info.dtype, span.data, 0, info.strides).copy()
