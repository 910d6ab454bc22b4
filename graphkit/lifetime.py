"""Who owns a handle, and when it may be destroyed.

Destroying a graph, an event or memory while a stream captures can invalidate that capture, even
from a finalizer on the same thread. So nothing here is destroyed while a capture made through
graphkit is live: the destruction waits in a queue and runs when the last such capture ends. What
ends inside of a host function waits too, for the next call outside: CUDA allows no call in there,
and the garbage collector may run anywhere.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import RLock, get_ident, local

from graphkit.errors import CudaError
from graphkit.runtime.protocol import CaptureStatus, EventFlags, Runtime

__all__ = [
    "NOT_PERMITTED",
    "Handle",
    "begin_capture",
    "capture_is_live",
    "drop_later",
    "end_capture",
    "host_function",
    "in_host_function",
    "keep_for_capture",
    "keep_until_done",
    "live_captures",
    "live_handles",
    "release_done",
    "thread_captures",
]

NOT_PERMITTED = 800  # cudaErrorNotPermitted

# Reentrant because a finalizer may run at any bytecode, also inside these functions.
_lock = RLock()
_live: Counter[str] = Counter()
_queue: deque[Callable[[], None]] = deque()
# Live captures by a token of their own: runtime, CUDA's id once it is known, what it keeps.
live_captures: dict[object, tuple[Runtime, int, list[object]]] = {}
_capturing: dict[object, int] = {}  # the threads that began them, by the same tokens
_thread = local()  # has `host_function` while this thread runs one for CUDA
# What launches in flight may still use, with the events that tell when they are done, by a token.
_waiting: dict[object, tuple[list[Handle], object]] = {}


class Handle:
    """Own one CUDA handle; destroy it once, on :meth:`close` or when nothing refers to it.

    Args:
        runtime: the runtime that made the handle, and alone can destroy it.
        kind: a word for :func:`live_handles`, such as ``"graph"``.
        value: the handle as an int.
        destroy: the runtime method that ends it; None borrows the handle from ``owner``.
        owner: kept alive as long as this object.
    """

    __slots__ = ("__weakref__", "_destroy", "kind", "owner", "runtime", "value")

    def __init__(
        self,
        runtime: Runtime,
        kind: str,
        value: int,
        destroy: Callable[[int], None] | None,
        owner: object = None,
    ) -> None:
        self.runtime = runtime
        self.kind = kind
        self.value = value
        self.owner = owner
        self._destroy: Callable[[int], None] | None = None
        if destroy is not None:
            self.fill(value, destroy)

    def fill(self, value: int, destroy: Callable[[int], None]) -> None:
        """Take over a handle that did not exist yet when this object was made."""
        self.value = value
        self._destroy = destroy
        with _lock:
            _live[self.kind] += 1

    @property
    def closed(self) -> bool:
        """Whether the handle was given back."""
        return not self.value

    def close(self) -> None:
        """Destroy the handle, or queue that while a capture is live. Closing twice is nothing."""
        value, self.value = self.value, 0
        destroy, self._destroy = self._destroy, None
        self.owner = None
        if not value or destroy is None:
            return

        def finish() -> None:
            try:
                destroy(value)
            except BaseException as error:
                if isinstance(error, CudaError) and error.code == NOT_PERMITTED:
                    _queue.append(finish)  # a host function that began where we do not see it
                    return
                with _lock:
                    _live[kind] -= 1
                raise
            with _lock:
                _live[kind] -= 1

        kind = self.kind
        with _lock:
            if _put_off():
                _queue.append(finish)
                return
        if _queue:
            _drain()
        finish()

    def abandon(self) -> None:
        """Let go of the handle, or of the one it is borrowed from, and never destroy it."""
        if isinstance(self.owner, Handle):
            self.owner.abandon()
            return
        destroy, self._destroy = self._destroy, None
        if destroy is not None and self.value:
            with _lock:
                _live[self.kind] -= 1

    def __del__(self) -> None:
        # At interpreter exit the driver may be gone already; the process frees everything anyway.
        if sys.is_finalizing():
            return
        self.close()


def _put_off() -> bool:
    """Return whether nothing may be destroyed now."""
    return bool(live_captures) or in_host_function()


def _drain() -> None:
    """Run what was put off, unless it must wait on.

    Whoever happens to be here is not to blame for what fails: an error becomes a warning, and the
    rest is destroyed all the same.
    """
    # One at a time, so that an interrupt in between loses none. What they put off anew waits on.
    for _ in range(len(_queue)):
        with _lock:
            if _put_off() or not _queue:
                return
            finish = _queue.popleft()
        try:
            finish()
        except Exception as error:
            warnings.warn(f"a destruction that was put off failed: {error}", stacklevel=2)


def drop_later(owner: object) -> None:
    """Hold on to ``owner`` while nothing may be destroyed, since dropping it may call CUDA."""
    with _lock:
        if _put_off():
            _queue.append(lambda: _drop(owner))


def _drop(_owner: object) -> None:
    """Do nothing: what is passed dies when the caller lets go of it."""


@contextmanager
def host_function() -> Iterator[None]:
    """Put off every destruction of this thread while it runs a host function for CUDA."""
    _thread.host_function = True
    try:
        yield
    finally:
        del _thread.host_function


def in_host_function() -> bool:
    """Return whether this thread runs a host function for CUDA now."""
    return hasattr(_thread, "host_function")


def live_handles() -> dict[str, int]:
    """Count the handles that graphkit owns now, by kind; kinds with none are left out."""
    release_done()
    with _lock:
        return {kind: count for kind, count in sorted(_live.items()) if count}


def capture_is_live() -> bool:
    """Return whether any thread captures through graphkit now."""
    return bool(live_captures)


def thread_captures() -> bool:
    """Return whether this thread captures through graphkit now: much is forbidden to it."""
    return get_ident() in _capturing.values()


def begin_capture(token: object, runtime: Runtime, capture_id: int, owners: list[object]) -> None:
    """Note a live capture; what its launches use is appended to ``owners``.

    Called before the capture begins, with an id of 0, and again when CUDA has told the id.
    """
    with _lock:
        live_captures[token] = (runtime, capture_id, owners)
        _capturing[token] = get_ident()


def end_capture(token: object) -> None:
    """Forget a capture and, when it was the last, run the queued destructions."""
    with _lock:
        live_captures.pop(token, None)
        _capturing.pop(token, None)
    _drain()


def keep_for_capture(runtime: Runtime, stream: int, owners: Iterable[object]) -> None:
    """Let the graph that ``stream`` is capturing keep ``owners`` alive; nothing otherwise."""
    if not live_captures:
        return
    info = runtime.stream_get_capture_info(stream)
    if info.status is not CaptureStatus.ACTIVE:
        return
    with _lock:
        for captured_by, capture_id, kept in live_captures.values():
            if captured_by is runtime and capture_id == info.id:
                kept.extend(owners)


def keep_until_done(runtime: Runtime, streams: Iterable[int | None], owners: object) -> None:
    """Keep ``owners`` alive until the work that is on ``streams`` now is done.

    Records one event a stream (cudaEventRecord); nobody waits, but for a stream that takes none,
    such as another device's (cudaStreamSynchronize). While a capture is live this
    is put off, since an event recorded then could become a part of the capture.

    Args:
        runtime: the runtime of the streams.
        streams: their handles; None is a stream that its owner closed. No event can tell when its
            work is done, so the whole device is waited for (cudaDeviceSynchronize).
        owners: what to keep.
    """
    handles = list(streams)
    with _lock:
        if _put_off():
            _queue.append(lambda: keep_until_done(runtime, handles, owners))
            return
    events = []
    for stream in handles:
        if stream is None:
            _wait_for(runtime, None)
            continue
        try:
            event = runtime.event_create_with_flags(EventFlags.DISABLE_TIMING)
            events.append(Handle(runtime, "event", event, runtime.event_destroy))
            runtime.event_record(event, stream)
        except CudaError:
            _wait_for(runtime, stream)
    with _lock:
        _waiting[object()] = events, owners
    release_done()


def _wait_for(runtime: Runtime, stream: int | None) -> None:
    """Wait for the work of a stream that takes no event: it is gone, or of another device."""
    with suppress(CudaError):
        if stream is not None:
            runtime.stream_synchronize(stream)
            return
    # Only the whole device can tell. Where that fails too, it is lost, and with it whatever ran.
    with suppress(CudaError):
        runtime.device_synchronize()


def release_done() -> None:
    """Let go of what launches have finished with (cudaEventQuery); wait for nothing."""
    if not _waiting and not _queue:
        return
    _drain()
    with _lock:
        if _put_off():
            return
        waiting = list(_waiting.items())
    for token, (events, _) in waiting:
        if _done(events):
            _waiting.pop(token, None)  # only now: an interrupt before it loses nothing


def _done(events: list[Handle]) -> bool:
    try:
        return all(event.runtime.event_query(event.value) for event in events)
    except CudaError:  # no answer; whoever makes the next call of his own is told
        return False
