"""Be told of every line, call and return of this thread: by sys.monitoring, or by tracing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import get_ident
from types import CodeType, FrameType
from typing import Any, Protocol

__all__ = ["Hook", "Listener", "install"]


class Listener(Protocol):
    """What is told."""

    over: bool  # whether it wants to know nothing more

    def step(self, frame: FrameType, line: int, call: Any = None) -> None:
        """A frame is at a line, about to call ``call`` if there is one."""
        ...

    def returned(self, frame: FrameType, call: Any, argument: object) -> None:
        """A C function, called with ``argument`` first, returned or raised."""
        ...

    def left(self, frame: FrameType) -> None:
        """A Python function returns, yields, or is left by an exception."""
        ...

    def raised(self, frame: FrameType, error: BaseException) -> None:
        """An exception is on its way through a frame."""
        ...


class Hook(Protocol):
    """What calls a listener."""

    def remove(self) -> None:
        """Call it no more."""
        ...


def install(listener: Listener, caller: FrameType) -> Hook:
    """Call a listener on every line, call and return of this thread from here on.

    By sys.monitoring where it is there (Python 3.12): that alone tells of calls into Cython, of
    which CuPy and cuda.bindings are made, and it leaves debuggers, profilers and coverage alone.
    Elsewhere by sys.settrace and sys.setprofile, which belong to others again after the end.

    Args:
        listener: what is told.
        caller: the innermost frame of those that are there already and go on.
    """
    if sys.version_info >= (3, 12):
        for tool in (4, 3, 2, 1, 0, 5):  # the ones that no kind of tool claims first
            if sys.monitoring.get_tool(tool) is None:
                return _Monitoring(listener, tool)
    return _Tracing(listener, caller)


class _Tracing:
    """Tells a listener by sys.settrace (lines, exceptions) and sys.setprofile (C functions)."""

    def __init__(self, listener: Listener, caller: FrameType) -> None:
        self._listener = listener
        self._thread = get_ident()
        self._before = sys.gettrace(), sys.getprofile()
        self._frames: list[tuple[FrameType, Any]] = []
        self._removed = False
        frame: FrameType | None = caller
        while frame is not None:
            self._frames.append((frame, frame.f_trace))
            frame.f_trace = self._trace
            frame = frame.f_back
        # A profiler written in C cannot be put back from here: then it stays.
        self._profiles = self._before[1] is None or callable(self._before[1])
        if self._profiles:
            sys.setprofile(self._profile)
        sys.settrace(self._trace)

    def remove(self) -> None:
        if get_ident() != self._thread or self._removed:
            return  # its own thread does so, on the next event
        self._removed = True
        sys.settrace(self._before[0])
        if self._profiles:
            sys.setprofile(self._before[1])
        for frame, trace in self._frames:
            frame.f_trace = trace
        self._frames.clear()

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        listener = self._listener
        if listener.over:
            self.remove()
            return None
        if event == "return":
            listener.left(frame)
        elif event == "exception":
            listener.raised(frame, argument[1])
        else:  # "call" or "line"
            listener.step(frame, frame.f_lineno)
        return self._trace

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        listener = self._listener
        if listener.over:
            self.remove()
        elif event == "c_call":
            listener.step(frame, frame.f_lineno, argument)
        elif event in ("c_return", "c_exception"):
            listener.returned(frame, argument, None)


if sys.version_info >= (3, 12):

    class _Monitoring:
        """Tells a listener by sys.monitoring, which tells of every thread."""

        def __init__(self, listener: Listener, tool: int) -> None:
            self._listener = listener
            self._tool = tool
            self._thread = get_ident()
            events = sys.monitoring.events
            self._callbacks: dict[int, Callable[..., Any]] = {
                events.LINE: self._line,
                events.CALL: self._call,
                events.C_RETURN: self._c_return,
                events.C_RAISE: self._c_return,
                events.PY_START: self._start,
                events.PY_RESUME: self._start,
                events.PY_THROW: self._start,
                events.PY_RETURN: self._leave,
                events.PY_YIELD: self._leave,
                events.PY_UNWIND: self._leave,
                events.RAISE: self._raise,
            }
            sys.monitoring.use_tool_id(tool, "graphkit")
            for event, callback in self._callbacks.items():
                sys.monitoring.register_callback(tool, event, callback)
            # C_RETURN and C_RAISE come with CALL.
            wanted = self._callbacks.keys() - {events.C_RETURN, events.C_RAISE}
            sys.monitoring.set_events(tool, sum(wanted))

        def remove(self) -> None:
            sys.monitoring.set_events(self._tool, 0)
            for event in self._callbacks:
                sys.monitoring.register_callback(self._tool, event, None)
            sys.monitoring.free_tool_id(self._tool)
            self._callbacks = {}

        def _line(self, _code: CodeType, line: int) -> None:
            if get_ident() == self._thread:
                self._listener.step(sys._getframe(1), line)

        def _call(self, _code: CodeType, _offset: int, call: Any, _argument: object) -> None:
            if get_ident() == self._thread:
                frame = sys._getframe(1)
                self._listener.step(frame, frame.f_lineno, call)

        def _c_return(self, _code: CodeType, _offset: int, call: Any, argument: object) -> None:
            if get_ident() == self._thread:
                self._listener.returned(sys._getframe(1), call, argument)

        def _start(self, _code: CodeType, _offset: int, *_: object) -> None:
            if get_ident() == self._thread:
                frame = sys._getframe(1)
                self._listener.step(frame, frame.f_lineno)

        def _leave(self, _code: CodeType, _offset: int, _value: object) -> None:
            if get_ident() == self._thread:
                self._listener.left(sys._getframe(1))

        def _raise(self, _code: CodeType, _offset: int, error: BaseException) -> None:
            if get_ident() == self._thread:
                self._listener.raised(sys._getframe(1), error)
