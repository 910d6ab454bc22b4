"""Capture what a function launches; where that fails, capture it once more to find out why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from graphkit.capture import capture
from graphkit.culprit import Culprit
from graphkit.errors import CaptureError
from graphkit.frameworks import PrivateMemory
from graphkit.graph import Graph
from graphkit.stream import runtime_of
from graphkit.user_function import UserFunction

__all__ = ["capture_call", "explain_capture"]

T = TypeVar("T")


def capture_call(body: Callable[[], T], stream: object) -> tuple[Graph, T]:
    """Capture what a call launches; return the graph and what it returned.

    When the capture dies and nobody told of what, the body is called once more under a watch that
    finds out, as with ``capture(stream, debug=True)``. Costs nothing as long as nothing fails.

    Args:
        body: called without arguments, twice when the capture fails.
        stream: the stream to capture on.

    Raises:
        CaptureError: when the capture died; with the culprit.
        Exception: whatever the body raised, with the culprit as a note when the capture died, too.
    """
    attempt = capture(stream)
    try:
        with attempt as graph:
            result = body()
    except Exception as error:
        if attempt.failure is not None and attempt.failure.culprit is None:
            _find_culprit(error, attempt.failure, body, stream)
        raise
    return graph, result


def _find_culprit(
    error: Exception, failure: CaptureError, body: Callable[[], object], stream: object
) -> None:
    """Capture once more under a watch, and tell by ``error`` what it finds."""
    culprit = _watched(body, stream)[0]
    if culprit is None:
        error.add_note(
            "Captured a second time, to find the call, it did not break: whatever broke it happens "
            "at the first call only. Call the function once before the capture."
        )
    elif error is failure:
        failure.culprit = culprit
    else:
        error.add_note(f"What broke the capture, when it was made once more:\n{culprit}")


def _watched(
    body: Callable[[], object], stream: object
) -> tuple[Culprit | None, CaptureError | None, Exception | None]:
    """Capture under a watch; return the culprit, the capture's failure and the body's."""
    attempt = capture(stream, debug=True)
    raised = None
    try:
        with attempt as graph:
            body()
        graph.close()
    except Exception as error:
        raised = error
    failure = attempt.failure
    return None if failure is None else failure.culprit, failure, raised


def explain_capture(fn: Callable[..., Any], stream: object, **arguments: object) -> Culprit | None:
    """Capture a function to find out which line and which call of it breaks the capture.

    After each line, call and return that it makes the stream is asked whether it still captures
    (cudaStreamIsCapturing). Nothing of it runs, and the graph is destroyed.

    Args:
        fn: called with the arguments by name, and with ``stream`` where it has a parameter of that
            name. The stream is current for CuPy and PyTorch, and what they allocate is private.
        stream: the stream to capture on.
        **arguments: what ``fn`` takes, by name.

    Returns:
        What breaks the capture; None when nothing does.

    Raises:
        TypeError: when ``fn`` does not take these arguments.
        CaptureError: when the capture cannot begin, or fails for no reason that can be found.
        Exception: what ``fn`` raised, when that did not break the capture.
    """
    function = UserFunction(fn)
    function.check(arguments)
    memory = PrivateMemory(runtime=runtime_of(stream))
    try:
        with memory.allocating(stream):
            culprit, failure, raised = _watched(lambda: function(arguments, stream), stream)
    finally:
        memory.close()
    error = raised or failure
    if culprit is None and error is not None:
        raise error
    return culprit
