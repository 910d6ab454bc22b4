"""What launches on one stream may still use, and which of them are done."""

from __future__ import annotations

from collections import deque

from graphkit.lifetime import Handle, capture_is_live, keep_until_done
from graphkit.runtime.protocol import EventFlags, Runtime

__all__ = ["InFlight"]

# Launches between two events: an event for each would cost half as much as the launch.
_BATCH = 16


class InFlight:
    """Keeps what launches on one stream use until an event says that they are done.

    The hot path appends to ``pending`` and calls :meth:`mark` when ``full`` many are there; the
    events are recorded behind whole batches of launches, so a launch counts as in flight until its
    batch is done. Nothing here waits.

    Attributes:
        pending: (exec, owners) of the launches behind the last event.
    """

    full = _BATCH

    def __init__(self, runtime: Runtime, stream: int) -> None:
        self._runtime = runtime
        self._stream = stream
        self.pending: list[tuple[object, object]] = []
        self._marked: deque[tuple[Handle, list[tuple[object, object]]]] = deque()
        self._spare: list[Handle] = []

    def keep(self, owners: object) -> None:
        """Keep what launches so far may use."""
        self.pending.append((None, owners))

    def mark(self) -> None:
        """Record an event behind the launches so far (cudaEventRecord), and let go of done ones."""
        if capture_is_live():
            return  # an event recorded or asked now could end the capture
        if self.pending:
            event = self._spare.pop() if self._spare else self._new_event()
            self._runtime.event_record(event.value, self._stream)
            self._marked.append((event, list(self.pending)))
            self.pending.clear()
        while self._marked and self._runtime.event_query(self._marked[0][0].value):
            self._spare.append(self._marked.popleft()[0])

    def _new_event(self) -> Handle:
        value = self._runtime.event_create_with_flags(EventFlags.DISABLE_TIMING)
        return Handle(self._runtime, "event", value, self._runtime.event_destroy)

    def holds(self, exec_: object) -> bool:
        """Return whether an exec may have a launch in flight (cudaEventRecord, cudaEventQuery)."""
        self.mark()
        batches = (self.pending, *(batch for _, batch in self._marked))
        return any(launched is exec_ for batch in batches for launched, _ in batch)

    def close(self, owners: object) -> None:
        """Hand what is left, and ``owners``, over to an event that says when it is done."""
        left = [self.pending, *(batch for _, batch in self._marked)]
        if any(left):
            keep_until_done(self._runtime, (self._stream,), (left, owners))
        self.pending = []
        self._marked.clear()
        self._spare.clear()
