"""Captures that break: which line and which call did it.

Each way to break a capture is a function, with a comment on the line that must be reported.
"""

from __future__ import annotations

import asyncio
import gc
import operator
import pickle
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sample_kernels import INCREMENT

import graphkit as gk
from graphkit.errors import CaptureError
from graphkit.forensics import capture_call

DEAD = gk.CaptureStatus.INVALIDATED
LINES = Path(__file__).read_text(encoding="utf-8").splitlines()


def line_of(name):
    """Return the line of this file that is marked with a name."""
    (line,) = [n for n, text in enumerate(LINES, 1) if text.endswith(f"# breaks: {name}")]
    return line


class Scene:
    """What the bodies below need."""

    def __init__(self, runtime, stream):
        self.runtime = runtime
        self.stream = stream
        self.other = gk.Stream()
        self.outside = self.other.record()
        self.graph = gk.Graph()
        self.event = gk.Event()
        self.counter = gk.zeros(1, np.int32)
        self.host = np.zeros(1, np.int32)
        self.raw = []

    def launch(self, stream=None):
        INCREMENT(1, 1, (self.counter, 1), stream=self.stream if stream is None else stream)

    def allocate(self):
        """Return memory that is given back by nobody but :meth:`free` and the end of the test."""
        address = self.runtime.malloc(16)
        self.raw.append(address)
        return address

    def free(self, address):
        """Call cudaFree; where that is refused the memory stays."""
        self.runtime.free(address)  # breaks: finalizer
        self.raw.remove(address)

    def close(self):
        for address in self.raw:
            with suppress(gk.CudaError):  # it was freed, then
                self.runtime.free(address)


@pytest.fixture
def scene(runtime, request):
    callspec = getattr(request.node, "callspec", None)
    what = callspec and callspec.params.get("what")
    made = Scene(runtime, gk.Stream(non_blocking=what not in BLOCKING))
    yield made
    made.close()


CASES = {}


def case(code, call):
    """Register a way to break a capture, with the status and the name of what is called."""

    def register(provoke):
        CASES[provoke.__name__] = provoke, code, call
        return provoke

    return register


@case(900, "Stream.synchronize")
def synchronize(scene):
    scene.launch()
    scene.stream.synchronize()  # breaks: synchronize
    scene.launch()


@case(900, "Stream.synchronize")
def three_deep(scene):
    def inner():
        scene.launch()
        return (
            scene.counter,
            scene.stream.synchronize(),  # breaks: three_deep
        )

    def middle():
        return [inner() for _ in range(2)]

    middle()


@case(900, "Stream.query")
def query(scene):
    while not scene.stream.query():  # breaks: query
        pass


@case(907, "Event.query")
def event_query(scene):
    scene.stream.record(scene.event)
    scene.event.query()  # breaks: event_query


@case(907, "Event.synchronize")
def event_synchronize(scene):
    scene.stream.record(scene.event).synchronize()  # breaks: event_synchronize


@case(900, "cudaDeviceSynchronize")
def device_synchronize(scene):
    scene.runtime.device_synchronize()  # breaks: device_synchronize


@case(900, "empty")
def allocate(scene):
    scene.launch()
    scratch = gk.empty(4)  # breaks: allocate
    scratch.free()


@case(900, "empty_pinned")
def allocate_pinned(scene):
    gk.empty_pinned(4)  # breaks: allocate_pinned


@case(900, "cudaFree")
def free(scene):
    scene.runtime.free(scene.raw[0])  # breaks: free


@case(900, "Graph.instantiate")
def instantiate(scene):
    scene.graph.instantiate()  # breaks: instantiate


@case(902, "Stream.wait_event")
def merge(scene):
    with gk.capture(scene.other):
        scene.event.record(scene.other)
        scene.stream.wait_event(scene.event)  # breaks: merge


@case(903, "cudaStreamEndCapture")
def end_on_the_fork(scene):
    scene.other.wait_event(scene.stream.record(scene.event))
    scene.runtime.stream_end_capture(scene.other.ptr)  # breaks: end_on_the_fork


@case(905, "Stream.wait_event")
def wait_for_what_is_outside(scene):
    scene.stream.wait_event(scene.outside)  # breaks: wait_for_what_is_outside


@case(906, "Kernel.__call__")
def legacy_launch(scene):
    scene.launch()
    INCREMENT(1, 1, (scene.counter, 1), stream=0)  # breaks: legacy_launch


@case(906, "cudaMemcpy")
def copy_that_waits(scene):
    to, kind = scene.host.ctypes.data, gk.MemcpyKind.DEVICE_TO_HOST
    scene.runtime.memcpy(to, scene.counter.ptr, 4, kind)  # breaks: copy_that_waits


@case(906, "Event.record")
def legacy_event(scene):
    scene.event.record(0)  # breaks: legacy_event


@case(900, "Stream.query")
def attribute(scene):
    class Lazy:
        @property
        def value(self):
            return scene.stream.query()  # breaks: attribute

    return Lazy().value


@case(900, "Stream.synchronize")
def generator(scene):
    def steps():
        scene.launch()
        yield 1
        scene.stream.synchronize()  # breaks: generator
        yield 2

    for _ in steps():
        scene.launch()


@case(900, "Stream.synchronize")
def while_another_error_is_handled(scene):
    try:
        raise KeyError("mine")
    except KeyError:
        scene.stream.synchronize()  # breaks: while_another_error_is_handled


BLOCKING = {"legacy_launch", "copy_that_waits", "legacy_event"}


def check(culprit, name, code, call, function=None):
    """Check that a culprit is the marked line."""
    assert culprit is not None
    assert culprit.file == __file__
    assert culprit.line == line_of(name), str(culprit)
    assert culprit.code == code
    assert culprit.call is not None
    assert culprit.call.rpartition(".")[2] == call.rpartition(".")[2]
    if "." in call:
        assert culprit.call == call
    assert culprit.cause
    assert culprit.fix
    # Whoever reads the message finds line, status, cause and fix in it.
    text = str(culprit)
    assert f"{__file__}:{culprit.line}, in " in text
    assert f"{code} cudaError" in text
    assert culprit.cause in text
    assert culprit.fix in text
    own = [frame for frame in culprit.stack if frame.library is None]
    assert (own[0].file, own[0].line, own[0].function) == (
        culprit.file,
        culprit.line,
        culprit.function,
    )
    for frame, after in zip(culprit.stack, culprit.stack[1:], strict=False):
        assert frame.library is None or frame.library != after.library, "not folded"
    assert pickle.loads(pickle.dumps(culprit)) == culprit


def works(scene):
    """Check that the stream is as good as new, and that nobody watches any more."""
    stream = scene.stream
    assert stream.capture_status is gk.CaptureStatus.NONE
    with gk.capture(stream) as graph:
        scene.launch()
    graph.close()
    assert sys.gettrace() is BEFORE[0]
    assert sys.getprofile() is BEFORE[1]


@pytest.fixture(autouse=True)
def hooks():
    """What hooks there were."""
    BEFORE[:] = sys.gettrace(), sys.getprofile()


BEFORE = [None, None]


# --- the ways, each by each ----------------------------------------------------------------------


@pytest.mark.parametrize("what", CASES)
def test_under_watch(scene, what):
    provoke, code, call = CASES[what]
    scene.allocate()
    capture = gk.capture(scene.stream, debug=True)

    def body():
        with capture:
            scene.launch()
            provoke(scene)

    with pytest.raises(gk.CudaError) as caught:
        body()
    assert caught.value.code == code
    assert capture.failure.code == 901
    check(capture.failure.culprit, what, code, call)
    assert capture.failure.culprit.stack[-1].function.endswith("body")
    assert str(capture.failure.culprit) in caught.value.__notes__[-1]
    works(scene)


@pytest.mark.parametrize("what", CASES)
def test_under_watch_when_the_body_swallows_it(scene, what):
    provoke, code, call = CASES[what]
    scene.allocate()

    def body():
        with gk.capture(scene.stream, debug=True):
            with suppress(gk.CudaError):
                provoke(scene)
            with suppress(gk.CudaError):
                scene.stream.query()

    with pytest.raises(CaptureError) as caught:
        body()
    error = caught.value
    assert (error.code, error.call) == (901, "cudaStreamEndCapture")
    check(error.culprit, what, code, call)
    assert str(error.culprit) in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert copy.culprit == error.culprit
    assert str(copy) == str(error)
    works(scene)


@pytest.mark.parametrize("what", CASES)
def test_without_a_watch_the_exception_tells(scene, what):
    provoke, code, call = CASES[what]
    scene.allocate()
    capture = gk.capture(scene.stream)

    def body():
        with capture:
            scene.launch()
            provoke(scene)

    with pytest.raises(gk.CudaError):
        body()
    check(capture.failure.culprit, what, code, call)
    works(scene)


@pytest.mark.parametrize("what", CASES)
def test_a_function_is_captured_once_more_to_find_out(scene, what):
    provoke, code, call = CASES[what]
    scene.allocate()
    runs = []

    def fn():
        runs.append(1)
        scene.launch()
        with suppress(gk.CudaError):
            provoke(scene)

    with pytest.raises(CaptureError) as caught:
        capture_call(fn, scene.stream)
    check(caught.value.culprit, what, code, call)
    assert len(runs) == 2
    works(scene)


@pytest.mark.parametrize("what", CASES)
def test_a_function_explained(scene, what):
    provoke, code, call = CASES[what]
    scene.allocate()

    def fn(scene, stream):
        scene.launch(stream)
        provoke(scene)

    check(gk.explain_capture(fn, scene.stream, scene=scene), what, code, call)
    works(scene)


# --- what ends itself, or is nobody's call -------------------------------------------------------


def forks(scene, joined=()):
    """Fork three times; join some."""
    side = [gk.Stream() for _ in range(3)]
    scene.launch()
    side[0].wait_event(scene.stream.record())
    scene.launch(side[0])
    side[1].wait_event(scene.stream.record())  # breaks: unjoined
    scene.launch(side[1])
    scene.stream.wait_event(side[0].record())
    side[2].wait_event(scene.stream.record())
    scene.launch(side[2])
    scene.stream.wait_event(side[2].record())
    for number in joined:
        scene.stream.wait_event(side[number].record())


def test_a_fork_that_is_not_joined(scene):
    def body():
        with gk.capture(scene.stream, debug=True):
            forks(scene)

    with pytest.raises(CaptureError) as caught:
        body()
    check(caught.value.culprit, "unjoined", 904, "Stream.wait_event")
    assert "stream.wait_event(event)" in caught.value.culprit.fix
    works(scene)


def test_a_stream_that_forks_again(scene):
    side = gk.Stream()

    def body():
        with gk.capture(scene.stream, debug=True):
            scene.launch()
            side.wait_event(scene.stream.record())
            scene.launch(side)
            scene.stream.wait_event(side.record())
            scene.launch()
            side.wait_event(scene.stream.record())  # breaks: again
            scene.launch(side)

    with pytest.raises(CaptureError) as caught:
        body()
    check(caught.value.culprit, "again", 904, "Stream.wait_event")


def test_a_fork_of_a_function(scene):
    def fn(stream):
        forks(scene)

    check(gk.explain_capture(fn, scene.stream), "unjoined", 904, "Stream.wait_event")
    with pytest.raises(CaptureError) as caught:
        capture_call(lambda: forks(scene), scene.stream)
    check(caught.value.culprit, "unjoined", 904, "Stream.wait_event")


def test_a_fork_that_is_joined_is_none(scene):
    with gk.capture(scene.stream, debug=True) as graph:
        forks(scene, joined=[1])
    assert len(graph.nodes) == 4
    works(scene)


def test_the_end_on_another_thread(scene):
    capture = gk.capture(scene.stream)

    def leave():
        capture.__exit__(None, None, None)  # breaks: thread

    for debug in (False, True):
        capture = gk.capture(scene.stream, debug=debug)
        capture.__enter__()
        with ThreadPoolExecutor(1) as thread, pytest.raises(CaptureError) as caught:
            thread.submit(leave).result()
        assert caught.value.code == 908
        check(caught.value.culprit, "thread", 908, "capture.__exit__")
        works(scene)


class Holder:
    """Frees memory behind graphkit's back when it dies."""

    def __init__(self, scene):
        self.scene = scene
        self.address = scene.allocate()

    def __del__(self):
        self.scene.free(self.address)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["reference count", "garbage collection"])
def test_a_finalizer(scene, how):
    def body(holders):
        if how == "garbage collection":
            holders[0].itself = holders[0]
        with gk.capture(scene.stream, debug=True):
            scene.launch()
            if how == "garbage collection":
                holders.clear()
                scene.launch()
                gc.collect()  # breaks: garbage collection
            else:
                holders.clear()  # breaks: reference count
            with suppress(gk.CudaError):
                scene.launch()

    with pytest.raises(CaptureError) as caught:
        body([Holder(scene)])
    culprit = caught.value.culprit
    check(culprit, "finalizer", 900, "Holder.__del__")
    assert f"{__file__}:{line_of(how)}" in culprit.cause
    functions = [frame.function.rpartition(".")[2] for frame in culprit.stack]
    assert functions[-3:] == ["free", "__del__", "body"]
    works(scene)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_weak_reference(scene):
    class Thing:
        pass

    thing = Thing()
    weakref.finalize(thing, scene.free, scene.allocate())

    def body(things):
        with gk.capture(scene.stream, debug=True):
            things.clear()  # breaks: weak reference

    things = [thing]
    del thing
    with pytest.raises(CaptureError) as caught:
        body(things)
    check(caught.value.culprit, "finalizer", 900, "finalize.__call__")
    assert f"{__file__}:{line_of('weak reference')}" in caught.value.culprit.cause


def test_another_thread_that_says_so(scene):
    def work():
        scene.stream.query()  # breaks: worker

    def body():
        with gk.capture(scene.stream, debug=True) as graph, ThreadPoolExecutor(1) as threads:
            scene.launch()
            threads.submit(work).result()  # breaks: waits
        return graph

    with pytest.raises(gk.CudaError) as caught:
        body()
    (note,) = caught.value.__notes__
    assert f"{__file__}:{line_of('worker')}, in " in note
    assert "another thread made this call" in note
    assert f"while the capture's own was at {__file__}:{line_of('waits')}" in note
    works(scene)


def test_another_thread_that_does_not(scene):
    def work():
        with suppress(gk.CudaError):
            scene.stream.query()

    def body():
        with gk.capture(scene.stream, debug=True):
            scene.launch()
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()  # breaks: join

    with pytest.raises(CaptureError) as caught:
        body()
    culprit = caught.value.culprit
    # As soon as the thread has started, it may be done.
    assert culprit.line in (line_of("join"), line_of("join") - 1)
    assert culprit.call is None
    assert "another thread did it while this one waited here" in culprit.cause
    works(scene)


def test_a_body_that_ends_the_capture_itself(scene):
    def body():
        with gk.capture(scene.stream, debug=True):
            scene.launch()
            made = scene.runtime.stream_end_capture(scene.stream.ptr)  # breaks: ended
            scene.runtime.graph_destroy(made)

    with pytest.raises(CaptureError) as caught:
        body()
    assert caught.value.name == "cudaErrorIllegalState"
    culprit = caught.value.culprit
    assert (culprit.line, culprit.code) == (line_of("ended"), None)
    assert culprit.call.endswith("stream_end_capture")


def test_a_call_into_c(sim):
    """Only that a C function was called can be seen, and what it was called with."""
    stream = gk.Stream()

    def body():
        with gk.capture(stream, debug=True):
            (capture,) = sim.state.captures
            dead = gk.CaptureStatus.INVALIDATED
            one, two = len("one"), [setattr(capture, "status", dead), 2]  # breaks: setattr
            del one, two

    with pytest.raises(CaptureError) as caught:
        body()
    culprit = caught.value.culprit
    assert (culprit.line, culprit.call, culprit.code) == (line_of("setattr"), "setattr", None)


def test_between_two_lines(sim):
    """What is written in C, and is no call, leaves no trace but the lines before and after."""
    stream = gk.Stream()

    def body():
        with gk.capture(stream, debug=True):
            (capture,) = sim.state.captures
            dead = gk.CaptureStatus.INVALIDATED
            capture.status = dead  # breaks: operator
            dead = None

    with pytest.raises(CaptureError) as caught:
        body()
    culprit = caught.value.culprit
    assert (culprit.line, culprit.call, culprit.code) == (line_of("operator"), None, None)
    assert f"no call was made between line {culprit.line} and the next one" in culprit.cause
    assert "broken by:   nothing that this line calls" in str(culprit)


def test_the_last_line_of_a_body(sim):
    stream = gk.Stream()

    def body():
        with gk.capture(stream, debug=True):
            (capture,) = sim.state.captures
            capture.status = gk.CaptureStatus.INVALIDATED  # breaks: last

    with pytest.raises(CaptureError) as caught:
        body()
    assert caught.value.culprit.line == line_of("last")


LIBRARY = """
def outer(capture, dead, callback=None):
    return inner(capture, dead, callback)

def inner(capture, dead, callback):
    if callback is not None:
        return callback()
    capture.status = dead
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\\n"
        "Search for `cudaErrorStreamCaptureUnsupported' in https://docs.nvidia.com")
"""


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("through", [False, True])
def test_frames_of_a_library(sim, debug, through):
    """What a library calls, and says, is reported at the line that called the library."""
    stream = gk.Stream()
    library = {"__name__": "torch.nn"}
    exec(compile(LIBRARY, "/usr/lib/site-packages/torch/nn.py", "exec"), library)
    capture = gk.capture(stream, debug=debug)

    def body():
        with capture:
            (live,) = sim.state.captures
            dead = gk.CaptureStatus.INVALIDATED
            if through:
                library["outer"](0, 0, lambda: library["outer"](live, dead))  # breaks: through
            library["outer"](live, dead)  # breaks: library

    with pytest.raises(RuntimeError, match="not permitted"):
        body()
    culprit = capture.failure.culprit
    assert (culprit.file, culprit.line) == (__file__, line_of("through" if through else "library"))
    assert (culprit.call, culprit.code) == ("inner", 900)
    shown = [(frame.library, frame.count) for frame in culprit.stack]
    assert shown == [("torch", 2), (None, 1), *([("torch", 2), (None, 1)] if through else [])]
    assert "inside:      2 frames of torch, at /usr/lib/site-packages/torch/nn.py:" in str(culprit)


class CUDARuntimeError(RuntimeError):
    """An exception with a status, of CuPy's runtime or of a library of CUDA's."""

    def __init__(self, status):
        super().__init__("operation not permitted when stream is capturing")
        self.status = status


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("handled", [False, True])
@pytest.mark.parametrize(
    ("module", "status", "code"),
    [("cupy_backends.cuda.api.runtime", 900, 900), ("cupy_backends.cuda.libs.cublas", 1, None)],
)
def test_an_extension_module(sim, debug, handled, module, status, code, monkeypatch):
    """Cython's frames are in the exception only, their files are not there: the caller's line."""
    monkeypatch.setattr(CUDARuntimeError, "__module__", module)
    stream = gk.Stream()
    capture = gk.capture(stream, debug=debug)
    cython = np.random.RandomState(0)
    loop = asyncio.new_event_loop()
    answer = asyncio.Future(loop=loop)
    answer.set_exception(CUDARuntimeError(status))

    def body():
        with capture, suppress(CUDARuntimeError) if handled else nullcontext():
            kill = partial(setattr, sim.state.captures[0], "status", DEAD)
            # Nothing but C between Cython, which wants an integer, and what it gets.
            steps = partial(any, map(operator.call, (kill, answer.result)))
            number = type("Number", (), {"__int__": staticmethod(steps)})()
            cython.bytes(number)  # breaks: extension

    with pytest.raises(gk.CaptureError if handled else CUDARuntimeError):
        body()
    answer.exception()
    loop.close()
    culprit = capture.failure.culprit
    if not debug and (handled or code is None):
        assert culprit is None
        return
    assert (culprit.file, culprit.line) == (__file__, line_of("extension")), str(culprit)
    assert culprit.code == code
    assert culprit.call == "RandomState.bytes"
    assert "another thread" not in str(culprit)
    assert [(frame.library, frame.count) for frame in culprit.stack][:2] == [
        ("numpy", 1),
        (None, 1),
    ]
    assert "inside:      1 frame of numpy, at " in str(culprit)


def test_an_extension_module_on_another_thread(sim):
    """What another thread called is told apart from compiled code that this one called."""
    stream = gk.Stream()
    capture = gk.capture(stream, debug=True)
    cython = np.random.RandomState(0)

    def work():
        kill = partial(setattr, sim.state.captures[0], "status", DEAD)
        steps = partial(any, map(operator.call, (kill, answer.result)))
        cython.bytes(type("Number", (), {"__int__": staticmethod(steps)})())  # breaks: theirs

    loop = asyncio.new_event_loop()
    answer = asyncio.Future(loop=loop)
    answer.set_exception(gk.CudaError("cudaMalloc", 900))

    def body():
        with capture, ThreadPoolExecutor(1) as threads:
            threads.submit(work).result()

    with pytest.raises(gk.CudaError):
        body()
    loop.close()
    culprit = capture.failure.culprit
    assert (culprit.file, culprit.line) == (__file__, line_of("theirs")), str(culprit)
    assert "another thread made this call" in culprit.cause


@pytest.mark.parametrize("method", ["get", "set"])
def test_what_would_break_it_and_is_refused_breaks_nothing(scene, method):
    capture = gk.capture(scene.stream, debug=True)
    with capture as graph:
        scene.launch()
        with pytest.raises(ValueError, match="expected no live capture"):
            scene.counter.get() if method == "get" else scene.counter.set([1])
        scene.launch()
    assert capture.failure is None
    assert len(graph.nodes) == 2


# --- the watch and the exceptions ----------------------------------------------------------------


def test_a_capture_that_lives_is_none_the_worse_for_a_watch(scene):
    capture = gk.capture(scene.stream, debug=True)
    with capture as graph:
        for _ in range(3):
            scene.launch()
    assert capture.failure is None
    assert len(graph.nodes) == 3
    works(scene)


def test_an_exception_of_the_body_has_no_culprit(scene):
    capture = gk.capture(scene.stream, debug=True)

    def body():
        with capture:
            scene.launch()
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        body()
    assert not hasattr(caught.value, "__notes__")
    assert capture.failure is None
    works(scene)


def test_an_exception_after_the_capture_broke_has_it_as_a_note(scene):
    def body():
        with gk.capture(scene.stream, debug=True):
            with suppress(gk.CudaError):
                scene.stream.synchronize()  # breaks: before
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        body()
    (note,) = caught.value.__notes__
    assert f"{__file__}:{line_of('before')}, in " in note
    works(scene)


def test_an_error_that_was_there_before_is_not_taken_for_the_culprit(scene):
    def body():
        with gk.capture(scene.stream):
            with suppress(gk.CudaError):
                scene.stream.synchronize()
            raise KeyError("mine")

    try:
        with gk.capture(scene.other):
            scene.other.query()
    except gk.CudaError:
        with pytest.raises(KeyError) as caught:
            body()
    assert (
        "which call:  graphkit.capture(stream, debug=True) finds out" in caught.value.__notes__[0]
    )


def test_without_a_watch_the_error_says_how_to_find_out(scene):
    def body():
        with gk.capture(scene.stream), suppress(gk.CudaError):
            scene.stream.query()

    with pytest.raises(CaptureError) as caught:
        body()
    assert caught.value.culprit is None
    assert str(caught.value).endswith("graphkit.capture(stream, debug=True) finds out")


def test_a_watch_inside_of_a_watch(scene):
    def body():
        with gk.capture(scene.stream, debug=True):
            with gk.capture(scene.other, debug=True) as inner:
                scene.launch(scene.other)
            assert len(inner.nodes) == 1
            scene.stream.query()  # breaks: outer

    with pytest.raises(gk.CudaError) as caught:
        body()
    assert f"{__file__}:{line_of('outer')}, in " in caught.value.__notes__[0]
    works(scene)


def test_the_watch_leaves_other_hooks_in_place(scene):
    seen = []

    def trace(frame, event, argument):
        seen.append(event)
        return trace

    before = sys.gettrace(), sys.getprofile()
    sys.settrace(trace)
    sys.setprofile(lambda *_: None)
    own = sys.getprofile()
    try:
        with gk.capture(scene.stream, debug=True):
            scene.launch()
        assert sys.gettrace() is trace
        assert sys.getprofile() is own
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    assert "call" in seen


def test_a_watch_keeps_no_frames(scene):
    array = gk.zeros(1, np.int32)
    seen = weakref.ref(array)

    def body(array):
        with gk.capture(scene.stream, debug=True):
            INCREMENT(1, 1, (array, 1), stream=scene.stream)
            with suppress(gk.CudaError):
                scene.stream.query()

    with pytest.raises(CaptureError) as caught:
        body(array)
    error = pickle.loads(pickle.dumps(caught.value))
    del array, caught
    gc.collect()
    assert error.culprit is not None
    assert seen() is None


# --- functions at hand ---------------------------------------------------------------------------


def test_what_is_broken_once_only_calls_for_a_warm_up(scene):
    first = []

    def fn():
        scene.launch()
        if not first:
            first.append(1)
            with suppress(gk.CudaError):
                gk.empty(4)

    with pytest.raises(CaptureError) as caught:
        capture_call(fn, scene.stream)
    assert caught.value.culprit is None
    assert "Call the function once before the capture" in caught.value.__notes__[0]
    graph, result = capture_call(fn, scene.stream)
    assert (len(graph.nodes), result) == (1, None)


def test_bind_says_which_line_broke_its_capture(scene):
    def fn(x, stream):
        INCREMENT(1, 1, (x, 1), stream=stream)
        with suppress(gk.CudaError):
            stream.synchronize()  # breaks: bound

    with pytest.raises(CaptureError) as caught:
        gk.bind(fn, scene.stream, x=scene.counter)
    check(caught.value.culprit, "bound", 900, "Stream.synchronize")


def test_bind_notes_it_on_what_the_function_raised(scene):
    def fn(x, stream):
        INCREMENT(1, 1, (x, 1), stream=stream)
        with suppress(gk.CudaError):
            stream.query()  # breaks: noted
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        gk.bind(fn, scene.stream, x=scene.counter)
    assert f"{__file__}:{line_of('noted')}, in " in caught.value.__notes__[-1]


def test_an_explanation_of_what_works(scene):
    assert gk.explain_capture(lambda stream: scene.launch(stream), scene.stream) is None
    assert "graph" not in {key for key in gk.live_handles() if key != "graph"}
    works(scene)


def test_an_explanation_of_what_raises(scene):
    def fn():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        gk.explain_capture(fn, scene.stream)
    with pytest.raises(TypeError, match="arguments: expected those of"):
        gk.explain_capture(fn, scene.stream, x=1)
    with pytest.raises(CaptureError):
        gk.explain_capture(lambda: None, 0)
    works(scene)
