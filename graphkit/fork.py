"""Fork and join: streams that start behind another one's work and are joined to it at the end."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from types import TracebackType
from weakref import WeakKeyDictionary

from graphkit.counts import check_count
from graphkit.lifetime import Handle
from graphkit.runtime import given_or_current
from graphkit.runtime.protocol import (
    CaptureInfo,
    CaptureMode,
    CaptureStatus,
    EventFlags,
    Runtime,
    StreamFlags,
)
from graphkit.stream import Stream, runtime_of, stream_handle

__all__ = ["Branch", "fork"]


class Branch(Stream):
    """A stream inside of a :class:`fork`. Forks make these; there is nothing to construct.

    It can be used like any other stream until the fork's ``with`` block ends, and is refused then.
    """

    def __init__(self, runtime: Runtime, handle: int) -> None:
        self.runtime = runtime
        self.cell = Handle(runtime, "stream", handle, None)

    @property
    def ptr(self) -> int:
        """The cudaStream_t.

        Raises:
            ValueError: when the fork's ``with`` block has ended, or the branch was closed.
        """
        if self.cell.closed:
            raise ValueError(
                "stream: expected a branch inside of its fork's with block, came one whose block "
                "has ended; its work is joined, so go on with the stream that was forked"
            )
        return self.cell.value

    def close(self) -> None:
        """Let later uses be refused; the fork joins what the branch did all the same."""
        self.cell.close()


class fork:  # noqa: N801 - a context manager reads as a verb
    """Run work side by side: on branches behind a stream's work so far, and ahead of the rest.

    ::

        with gk.capture(stream) as graph:
            load(x, stream=stream)
            with gk.fork(stream, 2) as (left, right):
                score(x, y, stream=left)
                score(x, z, stream=right)
            merge(y, z, stream=stream)  # waits for both

    Calls cudaEventRecord on the stream and cudaStreamWaitEvent on each branch on entry, and
    cudaEventRecord on each branch and cudaStreamWaitEvent on the stream on exit, whether the body
    raised or not. In a capture the branches are captured too, and the graph branches, without an
    edge that others imply (cudaStreamUpdateCaptureDependencies); anywhere else their work may run
    at the same time. A branch may be forked in turn. CuPy and PyTorch launch on
    one inside of ``with gk.frameworks.current_stream(branch):``.

    Branches are streams of the same priority that do not wait for the legacy null stream. They are
    kept for later forks, as is the event.

    Args:
        stream: any framework's stream, of the current device.
        n: how many branches.
        runtime: the runtime to use; the stream's, or the current one.

    Raises:
        TypeError, ValueError: an ``n`` that is no int of 1 or more.
        CudaError: what CUDA refuses; then no branch is left.
    """

    def __init__(self, stream: object, n: int, *, runtime: Runtime | None = None) -> None:
        self._n = check_count("n", n, 1)
        self._runtime = runtime_of(stream) if runtime is None else given_or_current(runtime)
        self._stream_owner = stream  # alive until the branches are joined
        self._stream = stream_handle(stream)
        self._entered = False
        self._lent: _Lent | None = None  # between entry and exit
        self._branches: tuple[Branch, ...] = ()
        self._open = 0  # how many branches wait to be joined
        self._info = CaptureInfo(CaptureStatus.NONE, 0, 0, ())  # of the stream as it was forked

    def __enter__(self) -> tuple[Stream, ...]:
        if self._entered:
            raise ValueError("fork: expected a fresh fork, came one that was entered before")
        runtime = self._runtime
        self._info = info = runtime.stream_get_capture_info(self._stream)
        self._lent = lent = _Lent(runtime, self._stream, self._n, info)
        self._entered = True
        try:
            runtime.event_record(lent.event, self._stream)
            for handle in lent.streams:
                runtime.stream_wait_event(handle, lent.event)
                self._open += 1
                if handle in lent.captured:
                    # What it did earlier in the same capture is joined: nothing waits for it here.
                    runtime.stream_update_capture_dependencies(handle, info.dependencies)
        except BaseException as error:
            for failure in self._join():
                error.add_note(f"Joining the branches failed as well: {failure}")
            raise
        self._branches = tuple(Branch(runtime, handle) for handle in lent.streams)
        return self._branches

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lent is None:
            came = "whose block has ended" if self._entered else "that was not entered"
            raise ValueError(f"fork: expected one inside of its with block, came one {came}")
        failures = self._join()
        if not failures:
            return
        if exc is None:
            raise failures[0]
        exc.add_note(f"Joining the branches failed as well: {failures[0]}")

    def _join(self) -> list[BaseException]:
        """Join every branch, come what may, and give the streams back; return what failed."""
        lent, runtime, failures = self._lent, self._runtime, list[BaseException]()
        assert lent is not None
        self._lent = None
        for branch in self._branches:
            branch.cell.close()
        opened, self._open = lent.streams[: self._open], 0
        moved = False
        try:
            # A capture that has failed ends all its branches itself, and its end says why.
            if runtime.stream_is_capturing(self._stream) is CaptureStatus.INVALIDATED:
                opened = []
            moved = self._moved((self._stream, *opened))
        except BaseException as error:  # an interrupt leaves no branch behind either
            failures.append(error)
        for handle in opened:
            for _ in range(2):  # once more for what an interrupt broke off
                try:
                    runtime.event_record(lent.event, handle)
                    runtime.stream_wait_event(self._stream, lent.event)
                    break
                except BaseException as error:
                    failures.append(error)
        if moved and not failures:
            self._drop_implied()
        lent.give_back()
        return failures

    def _moved(self, streams: Iterable[int]) -> bool:
        """Return whether one of the streams has captured work since the fork."""
        if not self._info.dependencies:
            return False
        infos = [self._runtime.stream_get_capture_info(stream) for stream in streams]
        return any(
            info.id == self._info.id and not {*info.dependencies} & {*self._info.dependencies}
            for info in infos
        )

    def _drop_implied(self) -> None:
        """Let what is captured next come behind the branches' work only, not behind the fork too.

        The work implies that, and a wait leaves in place what was to come before.
        """
        info = self._runtime.stream_get_capture_info(self._stream)
        left = [node for node in info.dependencies if node not in self._info.dependencies]
        if len(left) < len(info.dependencies):
            self._runtime.stream_update_capture_dependencies(self._stream, left)


# --- streams and events to lend ------------------------------------------------------------------


class _Stock:
    """What no fork uses now: streams by device and priority, and events by device.

    They live as long as the process or the simulator: a stream that is destroyed could take a
    capture with it. So :func:`graphkit.live_handles` does not count them.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.streams: dict[tuple[int, int], list[int]] = {}
        self.events: dict[int, list[int]] = {}


_stocks: WeakKeyDictionary[Runtime, _Stock] = WeakKeyDictionary()
_stocks_lock = Lock()


def _stock(runtime: Runtime) -> _Stock:
    with _stocks_lock:
        return _stocks.setdefault(runtime, _Stock())


class _Lent:
    """Streams and an event, taken out of the stock for one fork.

    Attributes:
        streams: the cudaStream_t of each branch.
        captured: those that are in the same capture as the stream to be forked already.
        event: the cudaEvent_t.
    """

    def __init__(self, runtime: Runtime, stream: int, n: int, info: CaptureInfo) -> None:
        self.streams: list[int] = []
        self.captured: set[int] = set()
        self._stock = stock = _stock(runtime)
        self._kind = runtime.get_device(), runtime.stream_get_priority(stream)
        with stock.lock:
            free = stock.streams.setdefault(self._kind, [])
            for handle in reversed(free):
                if len(self.streams) == n:
                    break
                theirs = runtime.stream_get_capture_info(handle)
                if theirs.status is CaptureStatus.NONE:
                    pass
                elif theirs.status is info.status and theirs.id == info.id:
                    self.captured.add(handle)
                else:
                    continue  # joined in a capture that has not ended
                self.streams.append(handle)
            # Only now, when nothing can fail any more.
            stock.streams[self._kind] = [it for it in free if it not in self.streams]
            events = stock.events.get(self._kind[0])
            event = events.pop() if events else 0
        try:
            self._make(runtime, n)
            self.event = event or runtime.event_create_with_flags(EventFlags.DISABLE_TIMING)
        except BaseException:
            self.event = event
            self.give_back()
            raise

    def _make(self, runtime: Runtime, n: int) -> None:
        """Make the streams that the stock has not."""
        if len(self.streams) == n:
            return
        # Nothing that is made here has to do with what any thread captures.
        mode = runtime.thread_exchange_stream_capture_mode(CaptureMode.RELAXED)
        try:
            while len(self.streams) < n:
                made = runtime.stream_create_with_priority(StreamFlags.NON_BLOCKING, self._kind[1])
                self.streams.append(made)
        finally:
            runtime.thread_exchange_stream_capture_mode(mode)

    def give_back(self) -> None:
        """Put all back into the stock."""
        with self._stock.lock:
            self._stock.streams[self._kind] += reversed(self.streams)
            if self.event:
                self._stock.events.setdefault(self._kind[0], []).append(self.event)
