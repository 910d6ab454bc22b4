"""Capture: turn what is launched on a stream into a graph, and leave the stream usable."""

from __future__ import annotations

from types import TracebackType
from typing import Literal

from graphkit.errors import CaptureError, CudaError
from graphkit.graph import Graph
from graphkit.lifetime import Handle, begin_capture, end_capture
from graphkit.runtime import current
from graphkit.runtime.protocol import CaptureMode, Runtime
from graphkit.stream import Stream, stream_handle

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
        if mode not in modes:
            raise ValueError(f"mode: expected one of {sorted(modes)}, came {mode!r}")
        if runtime is None:
            runtime = stream.runtime if isinstance(stream, Stream) else current()
        self._runtime = runtime
        self._mode = modes[mode]
        self._given_stream = stream
        self._stream = stream_handle(stream)
        self._graph: Graph | None = None
        self._id = 0

    def __enter__(self) -> Graph:
        if self._graph is not None:
            raise ValueError("capture: expected a fresh capture, came one that was entered before")
        runtime = self._runtime
        try:
            runtime.stream_begin_capture(self._stream, self._mode)
        except CudaError as error:
            raise CaptureError(error.call, error.code, error.detail) from error
        self._id = runtime.stream_get_capture_info(self._stream).id
        # Until the end there is no graph to own; the handle is filled in then.
        handle = Handle(runtime, "graph", 0, None)
        self._graph = Graph.of_handle(handle)
        begin_capture(runtime, self._id, self._graph.owners)
        return self._graph

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._graph is not None
        runtime = self._runtime
        failure: CaptureError | None = None
        value = 0
        try:
            value = runtime.stream_end_capture(self._stream)
        except CudaError as error:
            failure = CaptureError(error.call, error.code, error.detail)
            failure.__cause__ = error
        finally:
            end_capture(runtime, self._id)
        if value:
            self._graph.handle.fill(value, runtime.graph_destroy)
        if exc is not None or failure is not None:
            # A body that raised leaves a valid, partial graph. It is closed, not destroyed at
            # once: another capture may be live.
            self._graph.close()
            self._graph.owners.clear()
        if failure is not None:
            if exc is None:
                raise failure
            exc.add_note(f"The stream capture around this failed as well:\n{failure}")
