"""What broke a capture: the line, the call and its stack, read from frames and from exceptions."""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import takewhile
from types import FrameType
from typing import NamedTuple

from graphkit.errors import CudaError, advice, explain
from graphkit.statuses import STATUSES, StatusCode

__all__ = [
    "Culprit",
    "Place",
    "StackFrame",
    "body_of",
    "caller_culprit",
    "describe_culprit",
    "exception_culprit",
    "inside",
    "is_compiled",
    "is_own",
    "is_python",
    "own_place",
    "places_of",
    "refusal_in",
    "traceback_places",
]


class Place(NamedTuple):
    """Where a frame stood at some time; the frame itself goes on."""

    frame: FrameType
    line: int


@dataclass(frozen=True)
class StackFrame:
    """One line of a stack; of a library, all that are one after the other.

    Attributes:
        file: the source file.
        line: the line that was executed.
        function: the function, as ``Class.method`` where it is one.
        library: the library's name; None for code of one's own.
        count: how many frames of the library these are. File, line and function are those of the
            innermost.
    """

    file: str
    line: int
    function: str
    library: str | None = None
    count: int = 1

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}, in {self.function}"
        if self.library is not None:
            frames = "1 frame" if self.count == 1 else f"{self.count} frames"
            return f"{frames} of {self.library}, at {where}"
        text = linecache.getline(self.file, self.line).strip()
        return f"{where}: {text}" if text else where


@dataclass(frozen=True)
class Culprit:
    """The call that broke a stream capture.

    Attributes:
        file: the file of the innermost line of one's own code, rather than a library's.
        line: that line. For a fork that was not joined, the one where the fork was made.
        function: the function it is in.
        call: what was called and broke the capture, such as ``"Stream.synchronize"``; None when
            it was no call: an operator, say, or something that another thread did.
        code: the CUDA status of that call; None when nobody told.
        stack: from the innermost frame outwards to the one that began the capture.
        cause: what usually leads to it.
        fix: what to do about it.
    """

    file: str
    line: int
    function: str
    call: str | None
    code: int | None
    stack: tuple[StackFrame, ...]
    cause: str
    fix: str

    def __str__(self) -> str:
        name = "" if self.code is None else f": {self.code} {explain(self.code).name}"
        lines = [f"  broken by:   {self.call or 'nothing that this line calls'}{name}"]
        own = [n for n, frame in enumerate(self.stack) if frame.library is None]
        first = own[0] if own else 0
        heads = ["at:", *["called from:"] * len(self.stack)]
        for head, frame in zip(heads, self.stack[first:], strict=False):
            lines.append(f"  {head:<12} {frame}")
        lines += [f"  {'inside:':<12} {frame}" for frame in reversed(self.stack[:first])]
        return "\n".join([*lines, *advice(self.cause, self.fix)])


# --- frames --------------------------------------------------------------------------------------

_STDLIB = tuple(str(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib"))
_INSTALLED = re.compile(r"[\\/](?:site|dist)-packages[\\/]")
_OURS, _SEAM = "graphkit", "graphkit.runtime."


def _module_file(frame: FrameType) -> str:
    return str(frame.f_globals.get("__file__"))


def is_compiled(frame: FrameType) -> bool:
    """Return whether a frame is one of compiled code, of Cython's say, which CuPy is made of.

    Such code never runs in a frame. It makes one up for a traceback when an exception leaves it,
    with a source file that is not there and no caller.
    """
    return _module_file(frame).endswith(tuple(EXTENSION_SUFFIXES))


def _library_of(frame: FrameType) -> str | None:
    """Return the library that a frame's code belongs to, None for anything else."""
    # Compiled code tells a path below the root of its sources, wherever that was.
    file = _module_file(frame) if is_compiled(frame) else frame.f_code.co_filename
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    if package == _OURS:
        return _OURS
    if _INSTALLED.search(file):
        return package
    # Python's own code is the standard library's, or frozen into the interpreter.
    return "Python" if file.startswith(("<frozen ", *_STDLIB)) else None


def is_own(frame: FrameType) -> bool:
    """Return whether a frame's code is no library's."""
    return _library_of(frame) is None


def is_python(frame: FrameType) -> bool:
    """Return whether a frame's code is Python's own."""
    return _library_of(frame) == "Python"


def body_of(frame: FrameType) -> FrameType:
    """Return the frame that began a capture: the first that is not graphkit's or Python's."""
    found: FrameType | None = frame
    while found is not None and _library_of(found) in (_OURS, "Python"):
        found = found.f_back
    return frame if found is None else found


def places_of(frame: FrameType, line: int, body: FrameType | None) -> list[Place]:
    """Return where a frame and its callers are, innermost first, as far as ``body``."""
    places = [Place(frame, line)]
    caller = frame.f_back
    while frame is not body and caller is not None:
        places.append(Place(caller, caller.f_lineno))
        frame, caller = caller, caller.f_back
    return places


def _own(places: Sequence[Place]) -> list[bool]:
    """Return which places are the user's own code.

    An installed package that itself captures counts as one's own: its author will want its lines.
    """
    home = {_library_of(places[-1].frame), None} - {_OURS, "Python"}
    own = [_library_of(place.frame) in home for place in places]
    return own if any(own) else [_library_of(place.frame) != _OURS for place in places]


def own_place(places: Sequence[Place]) -> Place:
    """Return the innermost place in the user's own code, the innermost of all if there is none."""
    own = _own(places)
    return places[own.index(True) if True in own else 0]


def _folded(places: Sequence[Place], own: Sequence[bool]) -> Iterator[StackFrame]:
    """Yield the stack, a library's frames in one."""
    number = 0
    while number < len(places):
        frame, line = places[number]
        library = None if own[number] else _library_of(frame)
        count = 1
        while library is not None and number + count < len(places):
            other = places[number + count].frame
            if own[number + count] or _library_of(other) != library:
                break
            count += 1
        code = frame.f_code
        yield StackFrame(code.co_filename, line, code.co_qualname, library, count)
        number += count


# --- what was called -----------------------------------------------------------------------------


def _call_of(
    places: Sequence[Place], own: Sequence[bool], c_call: str | None, cuda_call: str | None
) -> str | None:
    """Return the name of what was called: the function of graphkit's, else the innermost one."""
    if own[0]:
        return c_call
    library = _library_of(places[0].frame)
    if library != _OURS:
        if c_call is not None:
            return c_call
        # Of compiled code, the function that Python called: the innermost one checks a status.
        compiled = list(takewhile(lambda place: is_compiled(place.frame), places))
        frame = (compiled or places)[-1 if compiled else 0].frame
        return frame.f_code.co_qualname.removeprefix(f"{frame.f_globals.get('__name__')}.")
    # Which function of graphkit was entered says more than what it consists of.
    ours = list(takewhile(lambda place: _library_of(place.frame) == _OURS, places))
    if str(ours[-1].frame.f_globals.get("__name__")).startswith(_SEAM):
        # A call of the seam is one of CUDA's, which both runtimes name alike.
        ours = [place for place in ours if "<locals>" not in place.frame.f_code.co_qualname]
        if cuda_call is not None or not ours:
            return cuda_call
    return ours[-1].frame.f_code.co_qualname


def _finalizer(places: Sequence[Place]) -> int | None:
    """Return which place is that of a finalizer, None when there is none."""
    for number, place in enumerate(places):
        code = place.frame.f_code
        if code.co_name == "__del__" or code.co_qualname == "finalize.__call__":
            return number
    return None


class _Usual(NamedTuple):
    """What usually leads there, by the names on the stack: they tell more than the status does."""

    names: tuple[str, ...]
    cause: str
    fix: str


_USUAL = (
    _Usual(
        ("_str", "_tensor_str", "__repr__", "__str__", "__format__"),
        cause="printing an array copies it to the host, which would have to wait for the stream",
        fix="print after a launch and a synchronization, or print the shape alone",
    ),
    _Usual(
        (
            *("item", "tolist", "numpy", "cpu", "get", "asnumpy", "nonzero", "masked_select"),
            *("unique", "allclose", "equal", "__bool__", "__float__", "__int__", "__index__"),
        ),
        cause="a value of the device is wanted on the host, which would have to wait for the "
        "stream",
        fix="keep it on the device (a mask in place of an index, torch.where with three arguments "
        "in place of an if), and read it after the launch",
    ),
    _Usual(
        ("elapsed_time", "elapsed_ms", "cudaEventElapsedTime"),
        cause="an event that was recorded in a capture has no time",
        fix="measure around the launches of the graph",
    ),
    _Usual(
        ("malloc", "cudaMalloc", "host_alloc", "cudaHostAlloc"),
        cause="memory is allocated, which waits for the device",
        fix="allocate before the capture; what a library allocates at its first call, by calling "
        "it once before",
    ),
    _Usual(
        ("free", "cudaFree", "free_host", "cudaFreeHost"),
        cause="memory is freed, which waits for the device",
        fix="free before the capture or after it; graphkit's own objects wait by themselves",
    ),
    _Usual(
        ("instantiate", "cudaGraphInstantiate", "graph_instantiate_with_params"),
        cause="another graph is instantiated, which allocates memory",
        fix="instantiate before the capture or after it",
    ),
)


def _usual(names: Iterable[str], code: int | None) -> tuple[str, str]:
    """Return the usual cause and the fix."""
    code = StatusCode.CAPTURE_UNSUPPORTED if code is None else code
    if code in (StatusCode.CAPTURE_UNSUPPORTED, StatusCode.CAPTURED_EVENT):
        short = {name.rpartition(".")[2] for name in names}
        for usual in _USUAL:
            if short.intersection(usual.names):
                return usual.cause, usual.fix
    status = explain(code)
    return status.cause, status.fix


def describe_culprit(
    places: Sequence[Place],
    c_call: str | None = None,
    code: int | None = None,
    *,
    refusal: BaseException | None = None,
    cause: str = "",
    fix: str = "",
    blameless: bool = False,
) -> Culprit:
    """Describe what broke a capture.

    Args:
        places: the stack, innermost first.
        c_call: what the innermost place called, where that has no frame of its own.
        code: the status of the call.
        refusal: the exception that told the status.
        cause: what led to it, in place of what usually does.
        fix: what to do, likewise.
        blameless: whether it was no call of this stack's.
    """
    own = _own(places)
    innermost = own.index(True) if True in own else 0
    frame, line = places[innermost]
    cuda_call = refusal.call if isinstance(refusal, CudaError) else None
    call = None if blameless else _call_of(places, own, c_call, cuda_call)
    finalizer = _finalizer(places)
    if finalizer is not None and not cause:
        call = places[finalizer].frame.f_code.co_qualname
        ran = next((place for place in places[finalizer + 1 :]), places[finalizer])
        cause = (
            f"a finalizer, which ran at {ran.frame.f_code.co_filename}:{ran.line} because that "
            "was where the last reference went, or where Python collected garbage"
        )
        fix = (
            "keep the object alive until the capture has ended, or close it before; graphkit's own "
            "objects wait by themselves"
        )
    elif not cause:
        names = [place.frame.f_code.co_qualname for place in places[: innermost or None]]
        told = [c_call or "", cuda_call or "", *(names if innermost else ())]
        cause, fix = _usual(told, code)
    return Culprit(
        frame.f_code.co_filename,
        line,
        frame.f_code.co_qualname,
        call,
        code,
        tuple(_folded(places, own)),
        cause,
        fix,
    )


def caller_culprit(frame: FrameType, call: str, code: int) -> Culprit:
    """Describe a culprit that is the caller of graphkit.

    Args:
        frame: the frame that calls.
        call: what it calls.
        code: the status.
    """
    return describe_culprit(places_of(frame, frame.f_lineno, body_of(frame)), call, code)


# --- exceptions ----------------------------------------------------------------------------------

_CODES = {status.name.lower(): code for code, status in STATUSES.items()}
_NAME = re.compile(r"\bcuda_?error_?\w+", re.IGNORECASE)
_BREAKING = frozenset(
    range(StatusCode.CAPTURE_UNSUPPORTED, StatusCode.CAPTURE_WRONG_THREAD + 1)
) - {StatusCode.CAPTURE_INVALIDATED}  # which only says that something else was the culprit


def _code_of(error: BaseException) -> int | None:
    """Return the CUDA status that an exception of any library tells, None where it tells none."""
    if isinstance(error, CudaError):
        return error.code
    status = getattr(error, "status", None)  # CuPy's; those of cuBLAS and others have their own
    if isinstance(status, int) and type(error).__module__.startswith("cupy_backends.cuda.api."):
        return int(status)
    for name in _NAME.findall(str(error)):  # PyTorch's, and those of the driver API
        code = _CODES.get(name.replace("_", "").lower())
        if code is not None:
            return code
    return None


def refusal_in(
    error: BaseException | None, old: int = 0, *, broken: bool = False
) -> tuple[BaseException, int] | tuple[None, None]:
    """Return the exception in a chain, and its status, that says that a call broke a capture.

    Args:
        error: the newest exception of the chain.
        old: the id of an exception that was there before; it and what is behind it do not count.
        broken: whether it is known that one did, so that any status of CUDA's may tell of it.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen and id(error) != old:
        seen.add(id(error))
        code = _code_of(error)
        if code in _BREAKING or (broken and code not in (None, StatusCode.CAPTURE_INVALIDATED)):
            assert code is not None
            return error, code
        error = error.__cause__ or error.__context__
    return None, None


def exception_culprit(error: BaseException | None, old: int) -> Culprit | None:
    """Describe what broke a capture by the exception that left its body, None where it says not.

    Args:
        error: the exception that left the body.
        old: the id of the exception that was being handled when the body began.
    """
    refusal, code = refusal_in(error, old)
    if refusal is None:
        return None
    places = traceback_places(refusal)
    return describe_culprit(places, None, code, refusal=refusal) if places else None


def traceback_places(error: BaseException) -> list[Place]:
    """Return the places of a traceback, innermost first."""
    places = []
    entry = error.__traceback__
    while entry is not None:
        places.append(Place(entry.tb_frame, entry.tb_lineno))
        entry = entry.tb_next
    return places[::-1]


def inside(error: BaseException, frame: FrameType) -> list[Place]:
    """Return where compiled code was that ``frame`` called and an exception came from."""
    places = traceback_places(error)
    compiled = list(takewhile(lambda place: is_compiled(place.frame), places))
    caller = places[len(compiled) : len(compiled) + 1]
    return compiled if caller and caller[0].frame is frame else []
