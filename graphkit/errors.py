"""The exceptions of graphkit: one tree, and for every CUDA status what happened and what to do.

Misuse that Python can see before any CUDA call is a plain ``TypeError`` or ``ValueError``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from graphkit.statuses import STATUSES, Status

if TYPE_CHECKING:
    from graphkit.culprit import Culprit

__all__ = [
    "CaptureError",
    "CudaError",
    "FallbackError",
    "GraphUpdateError",
    "GraphkitError",
    "NotSimulated",
    "RebindError",
    "RuntimeUnavailableError",
    "SimulationError",
    "advice",
    "explain",
    "refuse_closed",
]


class GraphkitError(Exception):
    """Anything that graphkit itself reports, CUDA's refusals included."""


class RuntimeUnavailableError(GraphkitError):
    """No usable runtime: no driver, no device, or a Python package is missing.

    Attributes:
        reason: what is missing, in one clause without a full stop.
        fix: what to do about it.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        self.reason = reason
        self.fix = fix
        super().__init__(f"{reason}. {fix}" if fix else reason)

    def __reduce__(self) -> tuple[type[RuntimeUnavailableError], tuple[str, str]]:
        return type(self), (self.reason, self.fix)


class CudaError(GraphkitError):
    """A CUDA call returned a status other than success.

    Attributes:
        call: the CUDA function, such as ``"cudaGraphLaunch"``.
        code: its numeric status.
        name: the status as CUDA spells it, such as ``"cudaErrorInvalidValue"``.
    """

    def __init__(self, call: str, code: int, detail: str = "") -> None:
        status = explain(code)
        self.call = call
        self.code = int(code)
        self.name = status.name
        self.detail = detail
        super().__init__("\n".join([*self._head(), *advice(status.cause, status.fix)]))

    def _head(self) -> list[str]:
        """Return the first lines of the message, without cause and fix."""
        status = explain(self.code)
        lines = [f"{self.call} returned {self.code} {status.name}: {status.meaning}"]
        if self.detail:
            lines.append(f"  here:        {self.detail}")
        return lines

    def __reduce__(self) -> tuple[type[CudaError], tuple[Any, ...]]:
        return type(self), (self.call, self.code, self.detail)


class CaptureError(CudaError):
    """A stream capture died; the stream works again when this is raised.

    Attributes:
        culprit: the :class:`graphkit.Culprit`, that is, the line and the call that broke the
            capture; None when it is not known. ``gk.capture(stream, debug=True)`` finds it.
    """

    def __init__(
        self, call: str, code: int, detail: str = "", culprit: Culprit | None = None
    ) -> None:
        super().__init__(call, code, detail)
        self.culprit = culprit

    def __str__(self) -> str:
        if self.culprit is not None:  # it has a cause and a fix of its own
            return "\n".join([*self._head(), str(self.culprit)])
        text = super().__str__()
        if self.call == "cudaStreamEndCapture":
            text += "\n  which call:  graphkit.capture(stream, debug=True) finds out"
        return text

    def __reduce__(self) -> tuple[type[CudaError], tuple[Any, ...]]:
        return type(self), (self.call, self.code, self.detail, self.culprit)


class GraphUpdateError(CudaError):
    """An executable graph refused an update and still launches what it held before.

    Attributes:
        report: the :class:`graphkit.UpdateReport` of the refusal.
    """

    def __init__(self, call: str, code: int, report: Any) -> None:
        super().__init__(call, code, str(report))
        self.report = report


class RebindError(GraphkitError):
    """A captured graph cannot be rebound; the message says which part of it, and why.

    Attributes:
        node: place of the node in the graph's order, a path where it is inside of a child graph;
            None when it is about the whole.
        kernel: name of the node's kernel, None for nodes of other kinds.
        parameter: name of the kernel's parameter, or of a copy's end, None when it is about the
            whole node.
    """

    def __init__(
        self,
        message: str,
        node: tuple[int, ...] | None = None,
        kernel: str | None = None,
        parameter: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.node = node
        self.kernel = kernel
        self.parameter = parameter

    def __reduce__(self) -> tuple[type[RebindError], tuple[Any, ...]]:
        return type(self), (self.message, self.node, self.kernel, self.parameter)


class FallbackError(GraphkitError):
    """A strict exec pool had no graph for a request.

    Attributes:
        reason: why, as ``ExecPool.stats()`` counts it.
        why: the same in a sentence.
        key: the signature of the request's bucket, as text.
    """

    def __init__(self, reason: str, why: str, key: str) -> None:
        self.reason = reason
        self.why = why
        self.key = key
        super().__init__(f"no graph for {key}: {reason}, {why}")

    def __reduce__(self) -> tuple[type[FallbackError], tuple[str, str, str]]:
        return type(self), (self.reason, self.why, self.key)


class SimulationError(GraphkitError):
    """The simulator saw what CUDA leaves undefined: a race, or a touch out of bounds.

    What nobody wrote is no error: it reads as NaN, unless ``SimOptions`` says otherwise.
    On a device the same program may appear to work.
    """


class NotSimulated(GraphkitError):  # noqa: N818 - the name states a fact, as NotImplemented does
    """The simulator does not model this; run it on a device."""


def explain(code: int) -> Status:
    """Return what a CUDA status code means, its usual cause and the fix."""
    known = STATUSES.get(int(code))
    if known is not None:
        return known
    return Status(f"cudaError{int(code)}", "a status that this version of graphkit does not know")


def advice(cause: str, fix: str) -> list[str]:
    """Return the lines of a message about what usually leads to it and what helps."""
    lines = [f"  usual cause: {cause}"] if cause else []
    return [*lines, f"  fix:         {fix}"] if fix else lines


def refuse_closed(what: str) -> NoReturn:
    """Raise the ValueError of a handle that was closed."""
    raise ValueError(f"{what}: expected a live one, came a closed one")
