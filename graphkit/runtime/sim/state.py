"""What all simulated calls share: handles, streams, captures, memory, the queue, the last error."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar

from graphkit.errors import CudaError, NotSimulated
from graphkit.runtime.protocol import CaptureMode, CaptureStatus, EventFlags, StreamFlags
from graphkit.runtime.sim.functions import SimFunction
from graphkit.runtime.sim.graph_memory import GraphMemory
from graphkit.runtime.sim.memory import MemoryTable
from graphkit.runtime.sim.model import SimExec, SimGraph, SimNode
from graphkit.runtime.sim.options import SimOptions
from graphkit.runtime.sim.races import AccessLog
from graphkit.runtime.sim.refusal import Code, Refused
from graphkit.runtime.sim.work import Work, WorkQueue

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(eq=False)
class Capture:
    """One live capture: the graph it makes and the streams that are in it.

    ``into`` says that the graph was there before, and stays whatever happens.
    """

    id: int
    graph: SimGraph
    mode: CaptureMode
    origin: SimStream
    thread: int
    status: CaptureStatus = CaptureStatus.ACTIVE
    frontier: dict[SimStream, list[SimNode]] = field(default_factory=dict)
    into: bool = False


@dataclass(eq=False)
class SimStream:
    """A stream: the last work on it, and the capture it is in."""

    handle: int
    flags: StreamFlags
    priority: int
    last: tuple[Work, ...] = ()
    capture: Capture | None = None
    asked: tuple[Work, ...] = ()  # what the last query was about

    @property
    def blocking(self) -> bool:
        """Whether it is ordered with the legacy null stream."""
        return not self.flags & StreamFlags.NON_BLOCKING


@dataclass(eq=False)
class SimEvent:
    """An event: what it was last recorded behind."""

    handle: int
    flags: EventFlags
    recorded: bool = False
    work: tuple[Work, ...] = ()
    capture: Capture | None = None
    nodes: tuple[SimNode, ...] = ()
    asked: tuple[Work, ...] = ()  # what the last query was about


_STREAM_LEGACY, _STREAM_PER_THREAD = 1, 2  # the handles that driver_types.h gives them
# Every kind of handle has its own range, so that one cannot be taken for another.
# That of conditions lies where no memory can: race detection takes them for bytes.
_RANGES = {
    "stream": 1,
    "event": 2,
    "graph": 3,
    "node": 4,
    "exec": 5,
    "function": 6,
    "condition": 8,
}
# All simulators of this process share the numbers: one does not take another's handle for its own.
_numbers = {kind: itertools.count(1) for kind in _RANGES}


class State:
    """Everything a simulated process holds."""

    def __init__(self, options: SimOptions) -> None:
        self.options = options
        self.lock = threading.RLock()
        self.thread = threading.local()
        self.memory = MemoryTable(options.total_memory, options.uninitialized, options.quarantine)
        self.graph_memory = GraphMemory(self.memory)
        log = AccessLog(self.memory) if options.detect_races else None
        self.queue = WorkQueue(log, options.order_seed, options.execution)
        self.streams: dict[int, SimStream] = {0: SimStream(0, StreamFlags.DEFAULT, 0)}
        self.events: dict[int, SimEvent] = {}
        self.graphs: dict[int, SimGraph] = {}
        self.nodes: dict[int, SimNode] = {}
        self.execs: dict[int, SimExec] = {}
        self.functions: dict[int, SimFunction] = {}
        self.captures: list[Capture] = []

    def new_handle(self, kind: str) -> int:
        """Return a handle that was never given out."""
        return (_RANGES[kind] << 44) + (next(_numbers[kind]) << 4)

    def stream(self, handle: int) -> SimStream:
        """Return a live stream, or refuse with 400; cudaStreamLegacy is the stream 0."""
        if handle == _STREAM_PER_THREAD:
            raise NotSimulated("the simulator has no per-thread default stream")
        if handle == _STREAM_LEGACY:
            handle = 0
        return _look_up(self.streams, handle, "stream", Code.INVALID_RESOURCE_HANDLE)

    def event(self, handle: int) -> SimEvent:
        """Return a live event, or refuse with 400."""
        return _look_up(self.events, handle, "event", Code.INVALID_RESOURCE_HANDLE)

    def graph(self, handle: int) -> SimGraph:
        """Return a live graph, or refuse with 1."""
        return _look_up(self.graphs, handle, "graph", Code.INVALID_VALUE)

    def node(self, handle: int) -> SimNode:
        """Return a live node, or refuse with 1."""
        return _look_up(self.nodes, handle, "node", Code.INVALID_VALUE)

    def exec(self, handle: int) -> SimExec:
        """Return a live executable graph, or refuse with 1."""
        return _look_up(self.execs, handle, "executable graph", Code.INVALID_VALUE)

    def function(self, handle: int) -> SimFunction:
        """Return a loaded function, or refuse with 98."""
        return _look_up(self.functions, handle, "function", Code.INVALID_DEVICE_FUNCTION)

    # --- captures

    @property
    def thread_mode(self) -> CaptureMode:
        """The calling thread's mode, as cudaThreadExchangeStreamCaptureMode left it."""
        return getattr(self.thread, "mode", CaptureMode.GLOBAL)

    def refuse_if_unsafe(self, what: str) -> None:
        """Refuse a call that a live capture forbids to this thread, and invalidate that capture.

        CUDA C Programming Guide, "Prohibited and Unhandled Operations", and the description of
        cudaThreadExchangeStreamCaptureMode.
        """
        mode, me = self.thread_mode, threading.get_ident()
        if mode is CaptureMode.RELAXED:
            return
        hit = [
            capture
            for capture in self.captures
            if capture.status is CaptureStatus.ACTIVE
            and (
                (capture.thread == me and capture.mode is not CaptureMode.RELAXED)
                or (capture.mode is CaptureMode.GLOBAL and mode is CaptureMode.GLOBAL)
            )
        ]
        self._invalidate(hit, what)

    def refuse_any_capture(self, what: str) -> None:
        """Refuse a wait for the whole device while any stream captures, in whatever mode."""
        self._invalidate([c for c in self.captures if c.status is CaptureStatus.ACTIVE], what)

    def _invalidate(self, captures: list[Capture], what: str) -> None:
        for capture in captures:
            capture.status = CaptureStatus.INVALIDATED
        if captures:
            raise Refused(
                Code.CAPTURE_UNSUPPORTED,
                f"{what} while a capture in mode {captures[0].mode.name} is live",
            )

    def refuse_wait(self, stream: SimStream, what: str) -> None:
        """Refuse to wait for or ask a stream, as a capture forbids it; invalidate the capture."""
        if stream.capture is not None:
            stream.capture.status = CaptureStatus.INVALIDATED
            raise Refused(Code.CAPTURE_UNSUPPORTED, f"{what} of a stream that captures")
        self.refuse_implicit(stream, what)
        self.refuse_if_unsafe(what)

    def refuse_implicit(self, stream: SimStream, what: str, *, kill: bool = True) -> None:
        """Refuse the legacy stream while a blocking stream captures; ``kill`` the capture, too."""
        if stream.handle != 0:
            return
        for other in self.streams.values():
            if other.blocking and other.capture is not None:
                if kill:
                    other.capture.status = CaptureStatus.INVALIDATED
                raise Refused(
                    Code.CAPTURE_IMPLICIT,
                    f"{what} on the legacy stream while a blocking stream captures",
                )


def _look_up(table: dict[int, T], handle: int, what: str, code: Code) -> T:
    found = table.get(handle)
    if found is None:
        raise Refused(code, f"{handle:#x} is no live {what}")
    return found


class Calls:
    """Base of the groups of calls: they share one state."""

    state: State


C = TypeVar("C", bound=Calls)


def cuda_call(
    name: str,
) -> Callable[[Callable[Concatenate[C, P], R]], Callable[Concatenate[C, P], R]]:
    """Make a method the simulated CUDA call of that name: one at a time, refusals as CudaError."""

    def wrap(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
        def call(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
            state = self.state
            try:
                with state.lock:
                    if state.queue.runs_in_this_thread():
                        raise Refused(Code.NOT_PERMITTED, "a host function must not call CUDA")
                    return method(self, *args, **kwargs)
            except Refused as refused:
                # The exception carries the status; CUDA's last error stays clear, as on a device.
                raise CudaError(name, int(refused.code), refused.detail) from None

        return functools.update_wrapper(call, method)

    return wrap
