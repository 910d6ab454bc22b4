"""Capture: turn what is launched on a stream into a graph, and leave the stream usable."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Literal

from graphkit.capture_watch import Watch
from graphkit.culprit import Culprit, caller_culprit, exception_culprit
from graphkit.errors import CaptureError, CudaError
from graphkit.graph import Graph
from graphkit.graph_exec import check_graph
from graphkit.graph_limits import check_capture
from graphkit.lifetime import Handle, begin_capture, end_capture
from graphkit.node import Node, several_nodes
from graphkit.runtime import given_or_current
from graphkit.runtime.protocol import CaptureMode, Runtime
from graphkit.statuses import StatusCode
from graphkit.stream import runtime_of, stream_handle

__all__ = ["capture"]

Mode = Literal["thread_local", "global", "relaxed"]


class capture:  # noqa: N801 - a context manager reads as a verb
    """Capture what is launched on ``stream`` in the body into a :class:`graphkit.Graph`.

    Calls cudaStreamBeginCapture and cudaStreamGetCaptureInfo on entry, cudaStreamEndCapture on
    exit. The graph can be used once the body has ended::

        with gk.capture(stream) as graph:
            kernel(grid, block, (x, y), stream=stream)
        exe = graph.instantiate()

    Args:
        stream: any framework's stream, but not the legacy null stream, which cannot capture.
        mode: which calls of which threads kill the capture: ``"thread_local"`` forbids unsafe
            calls, such as cudaMalloc, to this thread; ``"global"`` to every thread;
            ``"relaxed"`` to none.
        debug: whether to ask, after each line and call of the body, if the capture still lives
            (cudaStreamIsCapturing), so that the error names the one that broke it. The body is
            slower by far; debuggers and profilers of this thread pause on Python 3.11.
        runtime: the runtime to use; the stream's, or the current one.
        into: the body of a conditional node to capture into, instead of a graph of its own
            (cudaStreamBeginCaptureToGraph). The graph around it must not be captured at that time.
        deps: nodes of ``into`` that what is captured waits for; none without it.

    Attributes:
        failure: the CaptureError of the end, also where the body's own exception was raised in its
            place; None when the capture did not fail.

    Raises:
        CaptureError: when the capture could not begin, or died in the body. The stream works
            again. When the body raised, its exception passes on, with CUDA's as a note.
    """

    def __init__(
        self,
        stream: object,
        mode: Mode = "thread_local",
        *,
        debug: bool = False,
        runtime: Runtime | None = None,
        into: Graph | None = None,
        deps: Node | Iterable[Node] = (),
    ) -> None:
        if into is not None:
            check_graph(into, "into")
            check_capture(into)
        elif several_nodes(deps, "deps"):  # a graph of its own has no nodes to wait for
            raise ValueError(f"deps: expected none without into, came {deps!r}")
        modes = {item.name.lower(): item for item in CaptureMode}
        if mode not in tuple(modes):  # a dict would want what came to be hashable
            raise ValueError(f"mode: expected one of {sorted(modes)}, came {mode!r}")
        self._runtime = runtime_of(stream) if runtime is None else given_or_current(runtime)
        self._mode = modes[mode]
        self._stream_owner = stream  # alive until the capture has ended
        self._stream = stream_handle(stream)
        self._graph: Graph | None = None
        self._into, self._deps = into, deps
        self._debug = debug
        self._watch: Watch | None = None
        self._handled = 0  # id of the exception that was being handled when the body began
        self.failure: CaptureError | None = None

    def __enter__(self) -> Graph:
        if self._graph is not None:
            raise ValueError("capture: expected a fresh capture, came one that was entered before")
        runtime = self._runtime
        # Until the end there is no graph to own; the handle is filled in then.
        made = Graph.of_handle(Handle(runtime, "graph", 0, None))
        self._graph = made if self._into is None else self._into
        # Noted before it begins: a finalizer may run in between.
        begin_capture(self, runtime, 0, self._graph.owners)
        try:
            if self._into is None:
                runtime.stream_begin_capture(self._stream, self._mode)
            else:
                _begin_into(self._into, self._stream, self._mode, self._deps)
            capture_id = runtime.stream_get_capture_info(self._stream).id
        except CudaError as error:
            end_capture(self)
            raise CaptureError(error.call, error.code, error.detail) from error
        except BaseException:  # what is refused before CUDA is called
            end_capture(self)
            raise
        _note(self._graph, self._stream)
        begin_capture(self, runtime, capture_id, self._graph.owners)
        self._handled = id(sys.exception())
        if self._debug:
            self._watch = Watch(runtime, self._stream, sys._getframe(1))
            self._watch.begin()
        return self._graph

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._graph is None:
            raise ValueError("capture: expected one that was entered, came a fresh one")
        runtime = self._runtime
        failure: CaptureError | None = None
        culprit = None if self._watch is None else self._watch.finish()
        try:
            value = runtime.stream_end_capture(self._stream)
            if self._into is None:
                self._graph.handle.fill(value, runtime.graph_destroy)
        except CudaError as error:
            if culprit is None:
                culprit = self._culprit(error.code, exc)
            failure = CaptureError(error.call, error.code, error.detail, culprit)
            failure.__cause__ = error.with_traceback(None)
            self.failure = failure
        finally:
            _note(self._graph, None)
            end_capture(self)
        if self._into is not None:
            self._into.conditionals.failed |= exc is not None or failure is not None
            if failure is not None:
                # CUDA took the body with the dead capture: to destroy the graph around it ends the
                # process (driver 580).
                self._into.handle.abandon()
                self._into.end()
        elif exc is not None or failure is not None:
            # A body that raised leaves a valid, partial graph. It is closed, not destroyed at
            # once: another capture may be live.
            self._graph.close()
            self._graph.owners.clear()
        if failure is not None:
            if exc is None:
                raise failure
            exc.add_note(f"The stream capture around this failed as well:\n{failure}")

    def _culprit(self, code: int, exc: BaseException | None) -> Culprit | None:
        """Return what is to blame where nobody watched, or the end itself failed."""
        if code == StatusCode.CAPTURE_WRONG_THREAD:
            return caller_culprit(sys._getframe(2), "capture.__exit__", code)
        if code == StatusCode.CAPTURE_UNJOINED:
            return None if self._watch is None else self._watch.fork
        return exception_culprit(exc, self._handled)


def _begin_into(body: Graph, stream: int, mode: CaptureMode, deps: Node | Iterable[Node]) -> None:
    """Let a stream capture into a body (cudaStreamBeginCaptureToGraph)."""
    check_capture(body)
    records = body.records
    if records.derived is not None:
        records.derived.refuse_capture()
    before = records.dependencies(deps)
    records.about_to_change()
    body.runtime.stream_begin_capture_to_graph(stream, body.ptr, before, mode)
    records.derived = None  # the capture gives the edges
    records.clusters = None  # what is captured may have some


def _note(graph: Graph, stream: int | None) -> None:
    """Let a graph and the bodies in it know the stream that fills it from now on; None for none."""
    graph.captured_on = stream
    graph.conditionals.note_capture(None if stream is None else (graph.runtime, stream))
