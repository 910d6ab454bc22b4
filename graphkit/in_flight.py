"""What launches on one stream may still use, and which of them are done."""

from __future__ import annotations

from collections import deque

from graphkit.lifetime import Handle, capture_is_live, keep_until_done
from graphkit.runtime.protocol import EventFlags, Runtime

__all__ = ["InFlight"]

# Launches between two events, which cost as much as a launch; fewer where they keep much memory.
_BATCH = 64
_MOST_BYTES = 64 << 20


class InFlight:
    """Keeps what launches on one stream use until an event says that they are done.

    The hot path appends to ``pending`` itself, adds to ``load``, and calls :meth:`mark` when that
    is 1: events are recorded behind whole batches of launches, so a launch counts as in flight
    until its batch is done. Nothing here waits.

    Attributes:
        pending: (exec, owners) of the launches behind the last event.
        load: what they come to, as :meth:`load_of` says for each.
    """

    def __init__(self, runtime: Runtime, stream: int) -> None:
        self._runtime = runtime
        self._stream = stream
        self.pending: list[tuple[object, object]] = []
        self.load = 0.0
        self._marked: deque[tuple[Handle, list[tuple[object, object]]]] = deque()
        self._spare: list[Handle] = []

    @staticmethod
    def load_of(nbytes: int) -> float:
        """Return the share of a batch that a launch is which keeps so many bytes."""
        return 1 / _BATCH + nbytes / _MOST_BYTES

    def keep(self, owners: object, nbytes: int = 0) -> None:
        """Keep what launches so far may use, and of which so many bytes are theirs alone."""
        self.pending.append((None, owners))
        self.load += self.load_of(nbytes)
        if self.load >= 1:
            self.mark()

    def mark(self) -> None:
        """Record an event behind the launches so far (cudaEventRecord), and let go of done ones."""
        if capture_is_live():
            return  # an event recorded or asked now could end the capture
        if self.pending:
            event = self._spare.pop() if self._spare else self._new_event()
            self._runtime.event_record(event.value, self._stream)
            self._marked.append((event, list(self.pending)))
            self.pending.clear()
            self.load = 0.0
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
