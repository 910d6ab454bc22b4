"""Watch a capture: ask after each call and line whether it lives, and blame what came before."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import FrameType
from typing import Any, NamedTuple

from graphkit.call_hooks import Hook, install
from graphkit.culprit import (
    Culprit,
    Place,
    body_of,
    describe_culprit,
    inside,
    is_compiled,
    is_own,
    is_python,
    own_place,
    places_of,
    refusal_in,
    traceback_places,
)
from graphkit.errors import CudaError
from graphkit.runtime.protocol import CaptureStatus, Runtime
from graphkit.statuses import StatusCode
from graphkit.stream import stream_handle

__all__ = ["Watch"]

# Functions that let a stream wait for an event, or for another stream: of graphkit, CuPy, PyTorch,
# Numba, and CUDA's own.
_JOINS = frozenset(
    {
        "cuStreamWaitEvent",
        "cudaStreamWaitEvent",
        "streamWaitEvent",
        "stream_wait_event",
        "wait",
        "wait_event",
        "wait_stream",
    }
)
# Modules whose functions wait for other threads or for the system, and call no CUDA.
_WAITING = frozenset(("_thread", "_queue", "select", "_socket", "_ssl", "_io", "posix", "nt"))


class _Point(NamedTuple):
    """The place where the capture was last seen alive."""

    frame: FrameType
    line: int
    call: Any  # the C function that was about to be called there, None for anything else


class _Fork(NamedTuple):
    """A stream that joined a capture by waiting for an event of it."""

    places: list[Place]
    call: str
    owner: object  # keeps the stream alive, which is asked about later


class Watch:
    """Finds out which line and which call of this thread broke a capture.

    From :meth:`begin` to :meth:`finish` every line, call and return of the thread asks the
    stream's capture status (cudaStreamIsCapturing, which is legal on a stream that captures). The
    place where it was last seen alive is the one that broke it.

    Args:
        runtime: the runtime of the stream.
        stream: the stream that captures.
        caller: the frame that begins the capture.
    """

    def __init__(self, runtime: Runtime, stream: int, caller: FrameType) -> None:
        self._runtime = runtime
        self._stream = stream
        self._caller: FrameType | None = caller
        self._body: FrameType | None = body_of(caller)
        self._point: _Point | None = _Point(caller, caller.f_lineno, None)
        self._hook: Hook | None = None
        self._handled = id(sys.exception())
        self.over = False  # whether nobody watches any more
        self.fork: Culprit | None = None  # after the watch: a fork that is not joined
        # What is known of the culprit, once there is one.
        self._places: list[Place] = []
        self._call: Any = None
        self._code: int | None = None
        self._refusal: BaseException | None = None
        self._theirs: list[Place] = []  # where another thread was
        self._raised: BaseException | None = None  # the first exception that came from there
        # While this frame, given by its id, is at this line, exceptions tell the status.
        self._listening: int | None = None
        self._line = 0
        # Streams that joined, by handle, and those of them that are not known to be joined again.
        self._forks: dict[int, _Fork] = {}
        self._open: set[int] = set()

    def begin(self) -> None:
        """Begin to watch this thread."""
        assert self._caller is not None
        self._hook = install(self, self._caller)
        self._caller = None

    def finish(self) -> Culprit | None:
        """End the watch, and return what broke the capture; None when it lives."""
        self.over = True
        if self._hook is not None:
            self._hook.remove()
        try:
            if not self._places and not self._alive():
                self._blame()
            if self._places:
                return self._culprit()
            self.fork = self._unjoined()
            return None
        finally:  # let go of all frames
            self._body = self._point = self._hook = None
            self._places, self._theirs, self._call = [], [], None
            self._refusal = self._raised = None
            self._forks.clear()

    # --- what the hook tells -------------------------------------------------------------------

    def step(self, frame: FrameType, line: int, call: Any = None) -> None:
        """Note that a frame is at a line, and about to call ``call``."""
        if self._places:
            if id(frame) == self._listening and line != self._line:
                self._listening = None  # it went on: what is raised from here on is another matter
        elif self._alive():
            self._point = _Point(frame, line, call)
        else:
            self._blame()

    def returned(self, frame: FrameType, call: Any, argument: object) -> None:
        """Note that a C function returned, or raised, to ``frame``."""
        if not self._places and (name := _name_of(call)).rpartition(".")[2] in _JOINS:
            owner = getattr(call, "__self__", None)
            self._joined([argument, owner], frame, frame.f_lineno, name)
        self.step(frame, frame.f_lineno)

    def left(self, frame: FrameType) -> None:
        """Note that a Python function returns or is left by an exception."""
        code = frame.f_code
        if not self._places:
            if code.co_name in _JOINS:
                names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
                found = frame.f_locals
                values = [found.get(name) for name in names]
                # An int may be an event's handle, too, except where its name says what it is.
                values = [
                    value
                    for name, value in zip(names, values, strict=True)
                    if name == "stream" or not _is_int(value)
                ]
                caller = frame.f_back or frame
                self._joined(values, caller, caller.f_lineno, code.co_qualname)
            if not self._alive():
                self._blame()
            elif frame.f_back is not None:
                self._point = _Point(frame.f_back, frame.f_back.f_lineno, None)
        elif id(frame) == self._listening:
            self._listening = None

    def raised(self, frame: FrameType, error: BaseException) -> None:
        """Note an exception on its way through ``frame``."""
        if not self._places:
            self.step(frame, frame.f_lineno)
        if self._places and self._listening is not None:
            if self._raised is None:
                self._raised = error
            refusal, code = refusal_in(error, self._handled, broken=True)
            if refusal is not None:
                self._refusal, self._code = refusal, code
                self._listening = None
                # Raised again from another thread, it has frames that are none of this one's.
                # Those of compiled code are nobody's.
                mine = {place.frame for place in places_of(frame, 0, None)}
                theirs = [place for place in traceback_places(refusal) if place.frame not in mine]
                if not all(is_compiled(place.frame) for place in theirs):
                    self._theirs = theirs

    # --- what broke it -------------------------------------------------------------------------

    def _alive(self) -> bool:
        try:
            return self._runtime.stream_is_capturing(self._stream) is CaptureStatus.ACTIVE
        except CudaError:  # somebody destroyed the stream
            return False

    def _blame(self) -> None:
        """Take the point where the capture was last alive for the one that broke it."""
        assert self._point is not None
        frame, line, self._call = self._point
        self._places = places_of(frame, line, self._body)
        own, self._line = own_place(self._places)
        self._listening = id(own)
        self._point = None

    def _culprit(self) -> Culprit:
        places = self._places
        name = None if self._call is None else _name_of(self._call)
        silent = name is None and self._raised is None
        if self._theirs or (silent and is_python(places[0].frame)) or _waits(self._call):
            return self._other_thread(name)
        if silent and places[0] is own_place(places):
            return describe_culprit(
                places,
                cause=f"no call was made between line {places[0].line} and the next one: an "
                "operator did it, something that was freed there, or another thread meanwhile",
                fix="look at the objects of that line and at other threads; warm up before the "
                "capture, and capture in thread_local mode, not global",
                blameless=True,
            )
        error = self._raised if self._refusal is None else self._refusal
        if error is not None:
            places = [*inside(error, places[0].frame), *places]
        return describe_culprit(places, name, self._code, refusal=self._refusal)

    def _other_thread(self, name: str | None) -> Culprit:
        """Describe what was done while this thread waited for another, perhaps in ``name``."""
        places, theirs = self._places, self._theirs
        fix = (
            "let other threads wait for the end of the capture, or capture in thread_local mode; "
            "no thread may synchronize or query the stream that captures"
        )
        if theirs and is_own(own_place(theirs).frame):
            at = own_place(places)
            cause = (
                "another thread made this call while the capture's own was at "
                f"{at.frame.f_code.co_filename}:{at.line}"
            )
            return describe_culprit(
                theirs, None, self._code, refusal=self._refusal, cause=cause, fix=fix
            )
        waiting = name or places[0].frame.f_code.co_qualname
        cause = f"another thread did it while this one waited here, in {waiting}"
        return describe_culprit(places, None, self._code, cause=cause, fix=fix, blameless=True)

    # --- forks ---------------------------------------------------------------------------------

    def _joined(self, values: list[object], frame: FrameType, line: int, call: str) -> None:
        """Look at what streams a call let wait, and note those that are in the capture now."""
        runtime = self._runtime
        streams = {}
        for value in values:
            if _is_int(value) or "stream" in type(value).__name__.lower():
                with suppress(Exception):  # whatever it is, it is no stream
                    streams[stream_handle(value)] = value
        if not streams:
            return
        try:
            ours = runtime.stream_get_capture_info(self._stream)
            if ours.status is not CaptureStatus.ACTIVE:
                return
            for handle, owner in streams.items():
                if handle in self._open and _is_int(self._forks[handle].owner):
                    self._forks[handle] = self._forks[handle]._replace(owner=owner)
                if handle in (0, self._stream) or handle in self._open:
                    continue
                if runtime.stream_get_capture_info(handle).id == ours.id:
                    places = places_of(frame, line, self._body)
                    self._forks[handle] = _Fork(places, call, owner)
                    self._open.add(handle)
            # A join, perhaps: what is joined now and forks again later, forks there.
            closed = self._open - streams.keys() - set(self._unjoined_streams())
            self._open -= closed
        except CudaError:
            return

    def _unjoined_streams(self) -> list[int]:
        """Return the streams whose work the capturing stream does not come after."""
        runtime = self._runtime
        ours = runtime.stream_get_capture_info(self._stream)
        before: dict[int, list[int]] = {}
        for edge in runtime.graph_get_edges(ours.graph):
            before.setdefault(edge.to_node, []).append(edge.from_node)
        joined: set[int] = set()
        due = list(ours.dependencies)
        while due:
            node = due.pop()
            if node not in joined:
                joined.add(node)
                due += before.get(node, ())
        found = []
        for handle, fork in self._forks.items():
            if _is_int(fork.owner):
                continue  # nobody keeps it alive: it may be gone
            theirs = runtime.stream_get_capture_info(handle)
            if theirs.id == ours.id and not joined.issuperset(theirs.dependencies):
                found.append(handle)
        return found

    def _unjoined(self) -> Culprit | None:
        """Describe the fork that the end of the capture will miss."""
        if not self._forks:
            return None
        try:
            streams = self._unjoined_streams()
        except CudaError:
            return None
        if not streams:  # those that cannot be asked about
            streams = [handle for handle, fork in self._forks.items() if _is_int(fork.owner)]
        if not streams:
            return None
        fork = self._forks[streams[0]]
        return describe_culprit(fork.places, fork.call, StatusCode.CAPTURE_UNJOINED)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _waits(call: Any) -> bool:
    """Return whether a C function waits for something else than CUDA."""
    if _name_of(call) == "sleep":
        return True
    owners = getattr(call, "__objclass__", None), type(getattr(call, "__self__", None)), call
    return any(getattr(owner, "__module__", None) in _WAITING for owner in owners)


def _name_of(call: Any) -> str:
    """Return the name of whatever is called."""
    name = None
    with suppress(Exception):  # somebody's __getattr__ may raise anything
        name = getattr(call, "__qualname__", None) or getattr(call, "__name__", None)
    return name if isinstance(name, str) else type(call).__qualname__
