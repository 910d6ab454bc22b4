"""Streams and events, and the handle of anybody else's stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from graphkit.errors import refuse_closed
from graphkit.launch_config import check_priority
from graphkit.lifetime import (
    Handle,
    host_function,
    keep_for_capture,
    keep_until_done,
    release_done,
)
from graphkit.runtime import current, given_or_current
from graphkit.runtime.protocol import (
    CaptureStatus,
    EventFlags,
    HandleCell,
    HostNodeParams,
    Runtime,
    StreamFlags,
)

__all__ = [
    "Event",
    "HostCallback",
    "Stream",
    "event_handle",
    "host_callback",
    "runtime_of",
    "stream_cell",
    "stream_handle",
]

_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class HostCallback:
    """A Python function as the C function pointer that CUDA calls from a thread of its own.

    What the function raises cannot travel through CUDA: it is kept in ``error`` and the stream
    goes on. The function must not make CUDA calls.
    """

    __slots__ = ("_errors", "_thunk", "fn")

    def __init__(self, fn: Callable[[], Any]) -> None:
        if not callable(fn):
            raise TypeError(f"fn: expected a callable without arguments, came {type(fn).__name__}")
        self.fn = fn
        # The thunk must not refer to this object: the cycle would outlive its graph.
        self._errors: list[BaseException] = []
        errors = self._errors

        def thunk(_user_data: int | None) -> None:
            with host_function():
                try:
                    fn()
                except BaseException as error:
                    # Without this frame, which refers to the list: no cycle.
                    traceback = error.__traceback__
                    errors[:] = [error.with_traceback(traceback.tb_next if traceback else None)]

        self._thunk = _HOST_FUNCTION(thunk)

    @property
    def error(self) -> BaseException | None:
        """The last exception that the function raised, None when it never did."""
        return self._errors[0] if self._errors else None

    @property
    def params(self) -> HostNodeParams:
        """The C function's address, as cudaHostNodeParams wants it."""
        # Not ctypes.cast: it would let the thunk refer to itself.
        return HostNodeParams(ctypes.c_void_p.from_buffer(self._thunk).value or 0, 0)


class Event:
    """A CUDA event (cudaEventCreateWithFlags).

    Args:
        timing: whether :meth:`elapsed_ms` may be asked of it; costs a little on every record.
        blocking_sync: whether :meth:`synchronize` sleeps instead of spinning.
        runtime: the runtime to use; the current one by default.
    """

    def __init__(
        self,
        *,
        timing: bool = False,
        blocking_sync: bool = False,
        runtime: Runtime | None = None,
    ) -> None:
        self.runtime = given_or_current(runtime)
        flags = EventFlags.DEFAULT if timing else EventFlags.DISABLE_TIMING
        if blocking_sync:
            flags |= EventFlags.BLOCKING_SYNC
        handle = self.runtime.event_create_with_flags(flags)
        self._handle = Handle(self.runtime, "event", handle, self.runtime.event_destroy)

    @property
    def ptr(self) -> int:
        """The cudaEvent_t."""
        if self._handle.closed:
            refuse_closed("event")
        return self._handle.value

    def record(self, stream: object) -> None:
        """Record the event on a stream (cudaEventRecord)."""
        self.runtime.event_record(self.ptr, stream_handle(stream))

    def query(self) -> bool:
        """Return whether the work before the last record is done (cudaEventQuery)."""
        return self.runtime.event_query(self.ptr)

    def synchronize(self) -> None:
        """Wait for the work before the last record (cudaEventSynchronize)."""
        self.runtime.event_synchronize(self.ptr)
        release_done()

    def elapsed_ms(self, end: Event) -> float:
        """Return the milliseconds from this event to ``end`` (cudaEventElapsedTime).

        Raises:
            NotSimulated: on the simulator, which never reports a time.
        """
        return self.runtime.event_elapsed_time(self.ptr, event_handle(end, "end"))

    def close(self) -> None:
        """Destroy the event (cudaEventDestroy)."""
        self._handle.close()

    def __repr__(self) -> str:
        return f"<Event {'closed' if self._handle.closed else hex(self._handle.value)}>"


class Stream:
    """A CUDA stream (cudaStreamCreateWithPriority).

    Args:
        non_blocking: whether the stream ignores the legacy null stream. Captures want that: work
            on the null stream would otherwise kill them.
        priority: smaller is more urgent; CUDA clamps it to what the device offers.
        runtime: the runtime to use; the current one by default.
    """

    def __init__(
        self,
        *,
        non_blocking: bool = True,
        priority: int = 0,
        runtime: Runtime | None = None,
    ) -> None:
        self.runtime = given_or_current(runtime)
        flags = StreamFlags.NON_BLOCKING if non_blocking else StreamFlags.DEFAULT
        handle = self.runtime.stream_create_with_priority(flags, check_priority(priority))
        self.cell = Handle(self.runtime, "stream", handle, self.runtime.stream_destroy)

    @property
    def ptr(self) -> int:
        """The cudaStream_t."""
        if self.cell.closed:
            refuse_closed("stream")
        return self.cell.value

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return (protocol version, cudaStream_t), as other libraries ask for it."""
        return 0, self.ptr

    @property
    def priority(self) -> int:
        """The priority CUDA gave it (cudaStreamGetPriority)."""
        return self.runtime.stream_get_priority(self.ptr)

    @property
    def capture_status(self) -> CaptureStatus:
        """Whether the stream captures now (cudaStreamIsCapturing)."""
        return self.runtime.stream_is_capturing(self.ptr)

    def synchronize(self) -> None:
        """Wait for all work on the stream (cudaStreamSynchronize)."""
        self.runtime.stream_synchronize(self.ptr)
        release_done()

    def query(self) -> bool:
        """Return whether all work on the stream is done (cudaStreamQuery)."""
        return self.runtime.stream_query(self.ptr)

    def record(self, event: Event | None = None) -> Event:
        """Record ``event``, or a new one, on the stream (cudaEventRecord), and return it."""
        if event is None:
            event = Event(runtime=self.runtime)
        self.runtime.event_record(event_handle(event), self.ptr)
        return event

    def wait_event(self, event: Event) -> None:
        """Let later work on the stream wait for ``event`` (cudaStreamWaitEvent)."""
        self.runtime.stream_wait_event(self.ptr, event_handle(event))

    def launch_host_func(self, fn: Callable[[], Any]) -> HostCallback:
        """Call a Python function when the stream gets there (cudaLaunchHostFunc).

        The callback is kept until it has run; during a capture the graph keeps it.
        """
        callback = host_callback(fn)
        self.runtime.launch_host_func(self.ptr, callback.params)
        if self.capture_status is CaptureStatus.NONE:
            keep_until_done(self.runtime, (self.ptr,), callback)
        else:
            keep_for_capture(self.runtime, self.ptr, (callback,))
        return callback

    def close(self) -> None:
        """Destroy the stream (cudaStreamDestroy); work on it still finishes."""
        self.cell.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self.cell.closed else hex(self.cell.value)}>"


def event_handle(event: object, argument: str = "event") -> int:
    """Return the cudaEvent_t of an :class:`Event`; of nothing else."""
    if not isinstance(event, Event):
        raise TypeError(f"{argument}: expected an Event, came {type(event).__name__}")
    return event.ptr


def stream_handle(stream: object) -> int:
    """Return the cudaStream_t of anything that is a stream.

    Args:
        stream: a :class:`Stream`, anything with ``__cuda_stream__`` or ``.cuda_stream``
            (PyTorch), anything of a class with "stream" in its name and ``.ptr`` (CuPy) or
            ``.handle`` (Numba, cuda.core), or the handle as an int.

    Raises:
        TypeError: when it is none of those; None is refused too, since the legacy null stream
            can neither capture nor overlap. Pass 0 to mean it.
    """
    if type(stream) is Stream:
        return stream.ptr
    if isinstance(stream, int) and not isinstance(stream, bool):
        if not 0 <= stream < 2**64:
            raise ValueError(f"stream: expected a cudaStream_t, came {stream}")
        return stream
    kind = type(stream)
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        pair = protocol() if callable(protocol) else protocol
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                f"stream: expected (version, handle) of __cuda_stream__, came {pair!r} of "
                f"{kind.__name__}"
            )
        return _handle(pair[1], kind)
    value = getattr(stream, "cuda_stream", None)
    if value is not None:
        return _handle(value, kind)
    # Graphs, events, arrays and functions, ours and others', have an address or a handle as well.
    if any("stream" in each.__name__.lower() for each in kind.__mro__):
        for attribute in ("ptr", "handle"):
            value = getattr(stream, attribute, None)
            if value is not None:
                return _handle(getattr(value, "value", value) or 0, kind)
    raise TypeError(
        "stream: expected a graphkit, CuPy, PyTorch, Numba or cuda.core stream or its handle as "
        f"an int (0 for the legacy null stream), came {kind.__name__}"
    )


def _handle(value: object, kind: type) -> int:
    """Return the cudaStream_t that an object of somebody else's gave."""
    try:
        handle: int = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        handle = -1
    if not 0 <= handle < 2**64:
        raise TypeError(f"stream: expected a cudaStream_t, came {value!r} of {kind.__name__}")
    return handle


def stream_cell(stream: object) -> int | HandleCell:
    """Return where the handle of a stream stands: for ours a cell, which is empty once closed."""
    return stream.cell if isinstance(stream, Stream) else stream_handle(stream)


def runtime_of(stream: object) -> Runtime:
    """Return the runtime of a stream: of ours its own, of anybody else's the current one."""
    return stream.runtime if isinstance(stream, Stream) else current()


def host_callback(fn: Callable[[], Any] | HostCallback) -> HostCallback:
    """Return a callback for a function; one that is a callback already stays itself."""
    return fn if isinstance(fn, HostCallback) else HostCallback(fn)
