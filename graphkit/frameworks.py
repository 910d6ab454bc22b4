"""What CuPy and PyTorch must be told: the current stream, where memory comes from, our arrays.

Neither is imported here. What is not in ``sys.modules`` launches nothing and allocates nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any

import numpy as np

from graphkit.arrays import device_pointer
from graphkit.device_array import DeviceArray
from graphkit.errors import refuse_closed
from graphkit.lifetime import Handle
from graphkit.runtime import current, given_or_current
from graphkit.runtime.protocol import CaptureMode, Runtime
from graphkit.stream import runtime_of, stream_handle

__all__ = [
    "FINGERPRINTS",
    "PrivateMemory",
    "current_stream",
    "device_of",
    "draws_random_numbers",
    "fingerprint",
    "view_like",
]


def _imported(runtime: Runtime) -> tuple[Any, Any]:
    """Return CuPy and PyTorch, each None when it can have nothing to do with the runtime."""
    if runtime.name != "cuda":
        return None, None
    torch = sys.modules.get("torch")
    if torch is not None and not (torch.cuda.is_initialized() or torch.cuda.is_available()):
        torch = None
    return sys.modules.get("cupy"), torch


def _library(kind: type) -> str | None:
    """Return whose array a type is: ``"cupy"``, ``"torch"``, or None for anybody else's."""
    for package, name in (("cupy", "ndarray"), ("torch", "Tensor")):
        module = sys.modules.get(package)
        if module is not None and issubclass(kind, getattr(module, name)):
            return package
    return None


# --- the current stream --------------------------------------------------------------------------


class _StreamHandle:
    """A cudaStream_t for whoever takes streams by ``__cuda_stream__``."""

    __slots__ = ("handle",)

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def _cupy_stream(cupy: Any, handle: int) -> Any:
    take = getattr(cupy.cuda.Stream, "from_external", None)
    if take is None:  # before CuPy 14, which deprecates ExternalStream
        return cupy.cuda.ExternalStream(handle)
    return take(_StreamHandle(handle))


@contextmanager
def current_stream(stream: object) -> Iterator[None]:
    """Make a stream the current one of CuPy and PyTorch in this thread, and restore theirs.

    A library that is not imported yet is left alone, as are both on the simulator. The stream is
    one of the current device.

    Args:
        stream: anybody's stream, or its handle as an int.
    """
    cupy, torch = _imported(runtime_of(stream))
    handle = stream_handle(stream)
    with ExitStack() as stack:
        if cupy is not None:
            # Leaving a stream, CuPy returns to the one entered before, not to one chosen by use().
            stack.callback(cupy.cuda.get_current_stream().use)
            stack.enter_context(_cupy_stream(cupy, handle))
        if torch is not None:
            stack.enter_context(torch.cuda.stream(torch.cuda.ExternalStream(handle)))
        yield


# What PyTorch says, version by version, when a generator of its is asked for numbers in a capture
# that it did not begin: it could not move the generator on at each launch.
_GENERATOR_REFUSES = ("CUDA generator", "RNG op during graph capture", "philox_cuda_state")


def draws_random_numbers(error: BaseException) -> bool:
    """Return whether an error is PyTorch's refusal to draw random numbers inside of a capture."""
    if type(error) is not RuntimeError or "torch" not in sys.modules:
        return False
    message = str(error)
    return any(words in message for words in _GENERATOR_REFUSES)


# --- where memory comes from ---------------------------------------------------------------------

# Reentrant because a finalizer may close a PrivateMemory inside these functions.
_lock = RLock()
_routed: list[_Pools] = []  # what some thread's allocations go to now
_dropped: list[_Pools] = []  # closed meanwhile


class _Pools:
    """The memory pools behind one :class:`PrivateMemory`."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.segments: list[Any] = []  # what CuPy's pool got from cudaMalloc
        self._cupy: Any = None
        # A torch.cuda.MemPool belongs to one device. One is for what this thread allocates, another
        # for what other threads do on the captured stream: a pool is routed by one rule at a time.
        self.torch: dict[tuple[int, str], Any] = {}

    def cupy_allocator(self, cupy: Any) -> Callable[[int], Any]:
        """Return the function that CuPy's arrays get their memory from."""
        if self._cupy is None:
            self._cupy = cupy.cuda.MemoryPool(_segment_allocator(cupy, self.runtime, self.segments))
        pool, unowned, pointer_to = self._cupy, cupy.cuda.UnownedMemory, cupy.cuda.MemoryPointer

        def allocate(nbytes: int) -> Any:
            block = pool.malloc(nbytes)
            # A pool of CuPy's that dies frees its memory under the arrays in it: let them keep it.
            return pointer_to(unowned(block.ptr, nbytes, (pool, block), block.device_id), 0)

        return allocate

    def torch_pool(self, torch: Any, who: str) -> tuple[Any, int]:
        """Return PyTorch's pool for the current device and a routing rule, and the device."""
        device = torch.cuda.current_device()
        if (device, who) not in self.torch:
            self.torch[device, who] = torch.cuda.MemPool()
        return self.torch[device, who], device

    @contextmanager
    def routing(self, torch: Any, stream: object | None) -> Iterator[None]:
        """Route PyTorch's allocations: this thread's, and those of any thread on a stream."""
        pool, device = self.torch_pool(torch, "thread")
        with torch.cuda.use_mem_pool(pool, device):
            native = getattr(torch, "_C", None)
            begin = getattr(native, "_cuda_beginAllocateCurrentStreamToPool", None)
            if stream is None or native is None or begin is None:
                yield
                return
            pool, device = self.torch_pool(torch, "stream")
            with torch.cuda.stream(torch.cuda.ExternalStream(stream_handle(stream))):
                begin(device, pool.id)
            try:
                yield
            finally:
                native._cuda_endAllocateToPool(device, pool.id)
                native._cuda_releasePool(device, pool.id)

    def drop(self, _handle: int) -> None:
        """Give the memory back, unless some thread allocates from pools now: then afterwards.

        PyTorch frees a pool as its object dies, and ends the process when any pool is in use then,
        be it one of ours or that of a capture of its own.
        """
        with _lock:
            _dropped.append(self)
            if _routed or _torch_captures():
                return
            due = [*_dropped]
            _dropped.clear()
            for pools in due:
                if pools._cupy is not None:
                    # A pool of CuPy's that dies with a split block keeps the memory for good.
                    pools._cupy.free_all_blocks()
                pools._cupy = None
                pools.segments.clear()
                pools.torch.clear()


def _torch_bytes(pool: Any) -> int:
    """Return how many bytes of device memory a torch.cuda.MemPool holds.

    PyTorch's snapshot of one pool drops a reference to each number of the pool's id that it never
    took (PyTorch 2.11). Python shares the numbers up to 256; from the 257th pool of a process on,
    that frees memory twice. So what it dropped is taken again before anybody misses it.
    """
    numbers = pool.id
    _alive = [*numbers]  # a second reference to each: a dropped one must not be the last
    before = _references(numbers)
    segments = sys.modules["torch"].cuda.memory_snapshot(numbers)
    for place, count in enumerate(_references(numbers)):
        for _ in range(before[place] - count):
            _take_reference(numbers[place])
    return sum(int(segment["total_size"]) for segment in segments)


def _references(values: Sequence[object]) -> list[int]:
    return [sys.getrefcount(value) for value in values]


_take_reference = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_IncRef", ctypes.pythonapi))


def _torch_captures() -> bool:
    """Return whether PyTorch's current stream captures while pools of its wait to be freed."""
    torch = sys.modules.get("torch")
    if torch is None or not any(pools.torch for pools in _dropped):
        return False
    try:
        return bool(torch.cuda.is_current_stream_capturing())
    except RuntimeError:  # the default stream may not be asked while another one captures
        return True


def _segment_allocator(cupy: Any, runtime: Runtime, segments: list[Any]) -> Callable[[int], Any]:
    """Return what a pool of CuPy's calls for memory that it does not have."""

    def allocate(nbytes: int) -> Any:
        # A capture forbids cudaMalloc to its thread, but for a thread in relaxed mode: nothing
        # runs, and the address stays good. PyTorch's allocator does the same.
        mode = runtime.thread_exchange_stream_capture_mode(CaptureMode.RELAXED)
        try:
            segment = cupy.cuda.Memory(nbytes)
        finally:
            runtime.thread_exchange_stream_capture_mode(mode)
        # CuPy's pool gives its free blocks back when memory runs out, though graphs use them.
        segments.append(segment)
        return cupy.cuda.MemoryPointer(segment, 0)

    return allocate


def _leave(pools: _Pools) -> None:
    with _lock:
        _routed.remove(pools)
        due = [] if _routed else [*_dropped]
        if due:
            _dropped.clear()
    for dropped in due:
        Handle(dropped.runtime, "private memory", 1, dropped.drop).close()


class PrivateMemory:
    """Memory for what CuPy and PyTorch allocate during captures, which nobody else gets.

    A graph keeps the addresses of its temporaries, which their library takes for free once the
    capture is over. Here they stay reserved until :meth:`close`, or until this object is dropped.
    Captures of one object use the same temporaries: launch their graphs one after the other.

    Memory that a library keeps for good, such as a cuBLAS workspace, must not come from here: run
    the function once on the stream of the capture before. PyTorch 2.8 or newer is needed.

    Args:
        runtime: the runtime to use; the current one by default. There is nothing to route on the
            simulator.
    """

    def __init__(self, *, runtime: Runtime | None = None) -> None:
        self._runtime = given_or_current(runtime)
        self._pools = _Pools(self._runtime)
        self._handle = Handle(self._runtime, "private memory", 1, self._pools.drop)
        self._lock = RLock()

    @contextmanager
    def allocating(self, stream: object | None = None) -> Iterator[None]:
        """Let what this thread allocates in the body come from this memory.

        Around a capture, enter this before it begins and leave it after the end; inside goes
        :func:`current_stream`, since PyTorch asks its current stream whether it captures. Other
        threads wait for their turn with the same object, and their allocations are left alone.

        Args:
            stream: a stream that this thread is about to capture. What other threads allocate
                through PyTorch while it is their current one comes from this memory, too: the
                backward pass has threads of its own.

        Raises:
            ValueError: when the memory was closed.
        """
        with self._lock:
            if self._handle.closed:
                refuse_closed("memory")
            if self._pools in _routed:  # PyTorch refuses to enter a pool twice
                yield
                return
            cupy, torch = _imported(self._runtime)
            with ExitStack() as stack:
                with _lock:
                    _routed.append(self._pools)
                stack.callback(_leave, self._pools)
                if torch is not None:
                    stack.enter_context(self._pools.routing(torch, stream))
                if cupy is not None:
                    allocator = self._pools.cupy_allocator(cupy)
                    stack.enter_context(cupy.cuda.using_allocator(allocator))
                yield

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that are held."""
        pools = self._pools
        held = sum(int(segment.size) for segment in [*pools.segments])
        return held + sum(_torch_bytes(pool) for pool in [*pools.torch.values()])

    def close(self) -> None:
        """Give the memory back; graphs that were captured with it must not be launched any more.

        Put off while a capture is live, and while any thread allocates from such memory. Arrays
        that are still there keep theirs. Closing twice is nothing.

        Inside of a capture of PyTorch's own it is put off until a later close or capture. Only
        this thread's current stream tells: PyTorch ends the process when a pool of its own dies
        while another thread is in ``torch.cuda.graph``, while any is in
        ``torch.cuda.use_mem_pool``, and after its ``capture_begin`` or ``capture_end`` failed.

        Raises:
            ValueError: inside of this object's own :meth:`allocating`.
        """
        with self._lock:
            if self._pools in _routed:
                raise ValueError("memory: expected one that is not in use, came one in allocating")
            self._handle.close()


# --- arrays --------------------------------------------------------------------------------------


class _AsIntegers:
    """The memory of an array, offered as integers to a library that cannot be told its dtype."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        typestr = np.dtype(f"i{self.array.dtype.itemsize}").str
        return self.array.__cuda_array_interface__ | {"typestr": typestr}


def _torch_view(example: Any, array: DeviceArray) -> Any:
    torch = sys.modules["torch"]
    # Named, or a default device that somebody set would have the array copied there.
    device = example.device if example.is_cuda else "cuda"
    if array.dtype.isbuiltin == 1:
        return torch.as_tensor(array, device=device)
    dtype = getattr(torch, array.dtype.name, None)  # ml_dtypes and PyTorch use the same names
    if dtype is None:
        raise TypeError(f"array: expected a dtype that PyTorch has, came {array.dtype}")
    return torch.as_tensor(_AsIntegers(array), device=device).view(dtype)


def _cupy_view(example: Any, array: DeviceArray) -> Any:
    cupy = sys.modules["cupy"]
    steps = zip(array.shape, array.strides, strict=True)
    span = sum((n - 1) * step for n, step in steps) + array.dtype.itemsize if array.size else 0
    memory = cupy.cuda.UnownedMemory(array.ptr, span, array, example.data.device_id)
    pointer = cupy.cuda.MemoryPointer(memory, 0)
    return cupy.ndarray(array.shape, array.dtype, pointer, array.strides)


def view_like(example: object, array: DeviceArray) -> Any:
    """Return an array of the library of ``example`` over our memory, which it keeps alive.

    Args:
        example: an array of CuPy or PyTorch on the device of ``array``; any other array gives
            ``array`` itself, which offers ``__cuda_array_interface__``.
        array: the memory, with shape, strides and dtype of the result.

    Raises:
        TypeError: when the library has no such dtype.
    """
    library = _library(type(example))
    if library == "torch":
        return _torch_view(example, array)
    return _cupy_view(example, array) if library == "cupy" else array


def device_of(array: object, argument: str = "array") -> int:
    """Return the device that an array lies on (cudaPointerGetAttributes for those not told).

    Args:
        array: anybody's array.
        argument: what to call it in an error message.

    Raises:
        TypeError: when it is no array in device memory.
    """
    info = device_pointer(array, argument)
    owner: Any = array
    library = _library(type(array))
    if library == "torch":
        return int(owner.get_device())
    if library == "cupy":
        return int(owner.data.device_id)
    runtime = array.runtime if isinstance(array, DeviceArray) else current()
    device = runtime.pointer_get_attributes(info.ptr).device
    return device if device >= 0 else runtime.get_device()  # an empty array may have no address


def _fingerprint_own(array: DeviceArray, argument: str) -> tuple[int, Hashable]:
    # Not array.ptr: a property would cost as much as the rest.
    address = array.memory.value
    if not address:
        device_pointer(array, argument)  # refuses what was freed
    return address + array.offset, (array.shape, array.dtype, array.strides)


def _fingerprint_cupy(array: Any, _argument: str) -> tuple[int, Hashable]:
    data = array.data
    return data.ptr, (array.shape, array.dtype, array.strides, data.device_id)


def _fingerprint_torch(tensor: Any, argument: str) -> tuple[int, Hashable]:
    device = tensor.get_device()
    if device < 0:
        device_pointer(tensor, argument)  # says what is wrong with an array on the host
    strides = tensor.is_contiguous() or tensor.stride()
    return tensor.data_ptr(), (tensor.shape, tensor.dtype, strides, device)


def _fingerprint_any(array: Any, argument: str) -> tuple[int, Hashable]:
    info = device_pointer(array, argument)
    return info.ptr, (info.shape, info.dtype, info.strides)


_BY_LIBRARY = {"cupy": _fingerprint_cupy, "torch": _fingerprint_torch, None: _fingerprint_any}
# Found once a type; whoever is in a hurry looks here first.
FINGERPRINTS: dict[type, Callable[[Any, str], tuple[int, Hashable]]] = {
    DeviceArray: _fingerprint_own
}


def fingerprint(array: object, argument: str = "array") -> tuple[int, Hashable]:
    """Return the address of an array, and the rest of what it is as something to look up by.

    Arrays of one library with equal fingerprints have shape, dtype and strides in common. CuPy's
    and PyTorch's name their device, too; for others :func:`device_of` asks CUDA. Of everything
    that describes an array this is the cheapest: it is called on every request.

    Args:
        array: anybody's array in device memory.
        argument: what to call it in an error message.

    Raises:
        TypeError: when it is no array, or lies on the host.
        ValueError: when its memory was freed.
    """
    kind = type(array)
    take = FINGERPRINTS.get(kind)
    if take is None:
        take = _BY_LIBRARY[_library(kind)]
        result = take(array, argument)
        FINGERPRINTS[kind] = take  # not of what was refused
        return result
    return take(array, argument)
