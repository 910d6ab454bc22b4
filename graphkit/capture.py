"""Capture: turn what is launched on a stream into a graph, and leave the stream usable."""

from __future__ import annotations

from types import TracebackType
from typing import Literal

from graphkit.errors import CaptureError, CudaError
from graphkit.graph import Graph
from graphkit.lifetime import Handle, begin_capture, end_capture
from graphkit.runtime.protocol import CaptureMode, Runtime
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
        runtime: the runtime to use; the stream's, or the current one.

    Raises:
        CaptureError: when the capture could not begin, or died in the body. The stream works
            again. When the body raised, its exception passes on, with CUDA's as a note.
    """

    def __init__(
        self, stream: object, mode: Mode = "thread_local", *, runtime: Runtime | None = None
    ) -> None:
        modes = {item.name.lower(): item for item in CaptureMode}
        if mode not in tuple(modes):  # a dict would want what came to be hashable
            raise ValueError(f"mode: expected one of {sorted(modes)}, came {mode!r}")
        if runtime is None:
            runtime = runtime_of(stream)
        self._runtime = runtime
        self._mode = modes[mode]
        self._stream_owner = stream  # alive until the capture has ended
        self._stream = stream_handle(stream)
        self._graph: Graph | None = None

    def __enter__(self) -> Graph:
        if self._graph is not None:
            raise ValueError("capture: expected a fresh capture, came one that was entered before")
        runtime = self._runtime
        # Until the end there is no graph to own; the handle is filled in then.
        self._graph = Graph.of_handle(Handle(runtime, "graph", 0, None))
        # Noted before it begins: a finalizer may run in between.
        begin_capture(self, runtime, 0, self._graph.owners)
        try:
            runtime.stream_begin_capture(self._stream, self._mode)
            capture_id = runtime.stream_get_capture_info(self._stream).id
        except CudaError as error:
            end_capture(self)
            raise CaptureError(error.call, error.code, error.detail) from error
        begin_capture(self, runtime, capture_id, self._graph.owners)
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
        try:
            value = runtime.stream_end_capture(self._stream)
            self._graph.handle.fill(value, runtime.graph_destroy)
        except CudaError as error:
            failure = CaptureError(error.call, error.code, error.detail)
            failure.__cause__ = error
        finally:
            end_capture(self)
        if exc is not None or failure is not None:
            # A body that raised leaves a valid, partial graph. It is closed, not destroyed at
            # once: another capture may be live.
            self._graph.close()
            self._graph.owners.clear()
        if failure is not None:
            if exc is None:
                raise failure
            exc.add_note(f"The stream capture around this failed as well:\n{failure}")
