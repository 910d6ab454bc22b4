"""Capture: what becomes of a stream's work; whatever goes wrong leaves a working stream."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, BLOCKS, INCREMENT

import graphkit as gk

N = 8


@pytest.fixture
def counter(runtime):
    return gk.zeros(1, np.int32)


@pytest.fixture
def other(runtime):
    """Another stream."""
    return gk.Stream()


def increment(counter, stream, by=1):
    INCREMENT(1, 1, (counter, by), stream=stream)


def run(graph, stream):
    with graph.instantiate() as exe:
        exe.launch(stream)
        stream.synchronize()


def edges(graph):
    index = {node.ptr: i for i, node in enumerate(graph.nodes)}
    return sorted((index[e.from_node.ptr], index[e.to_node.ptr]) for e in graph.edges)


def works(stream):
    """Check that a stream launches, waits and captures."""
    assert stream.capture_status is gk.CaptureStatus.NONE
    assert stream.runtime.get_last_error() == 0
    fresh = gk.zeros(1, np.int32)
    increment(fresh, stream)
    stream.synchronize()
    with gk.capture(stream) as graph:
        increment(fresh, stream, 10)
    run(graph, stream)
    return fresh.get().tolist() == [11]


# --- what is captured ----------------------------------------------------------------------------


def test_a_capture_runs_nothing_until_it_is_launched(counter, stream):
    with gk.capture(stream) as graph:
        increment(counter, stream)
        increment(counter, stream, 10)
    assert counter.get() == [0]
    assert edges(graph) == [(0, 1)]
    for _ in range(3):
        run(graph, stream)
    assert counter.get() == [33]


@pytest.mark.parametrize("mode", ["thread_local", "global", "relaxed"])
def test_every_mode_captures(counter, stream, mode):
    with gk.capture(stream, mode=mode) as graph:
        increment(counter, stream)
    run(graph, stream)
    assert counter.get() == [1]


def test_an_empty_capture(stream):
    with gk.capture(stream) as graph:
        pass
    assert graph.nodes == []
    run(graph, stream)


def test_a_blocking_stream_captures(counter, runtime):
    stream = gk.Stream(non_blocking=False)
    with gk.capture(stream) as graph:
        increment(counter, stream)
    run(graph, stream)
    assert counter.get() == [1]


def test_a_stream_given_as_an_int(counter, stream):
    with gk.capture(stream.ptr) as graph:
        increment(counter, stream.ptr)
    run(graph, stream)
    assert counter.get() == [1]


def test_copies_fills_and_host_functions_are_captured(runtime, stream):
    host, back = gk.empty_pinned(N, np.uint8), gk.empty_pinned(N, np.uint8)
    host[:] = np.arange(N)
    a, b = gk.zeros(N, np.uint8), gk.zeros(N, np.uint8)
    calls = []
    kinds = gk.MemcpyKind
    with gk.capture(stream) as graph:
        runtime.memset_async(b.ptr, 7, N, stream.ptr)
        runtime.memcpy_async(a.ptr, host.ctypes.data, N, kinds.HOST_TO_DEVICE, stream.ptr)
        runtime.memcpy_async(b.ptr + 2, a.ptr + 2, 4, kinds.DEVICE_TO_DEVICE, stream.ptr)
        runtime.memcpy_async(back.ctypes.data, b.ptr, N, kinds.DEVICE_TO_HOST, stream.ptr)
        stream.launch_host_func(lambda: calls.append(back.tolist()))
    assert [node.type.name for node in graph.nodes] == [
        "MEMSET",
        "MEMCPY",
        "MEMCPY",
        "MEMCPY",
        "HOST",
    ]
    run(graph, stream)
    host[:] = 9
    run(graph, stream)
    assert calls == [[7, 7, 2, 3, 4, 5, 7, 7], [7, 7, 9, 9, 9, 9, 7, 7]]


def test_a_copy_of_two_dimensions_is_captured(runtime, stream):
    values = np.arange(24, dtype=np.int32).reshape(4, 6)
    a, b = gk.asarray(values), gk.zeros((4, 6), np.int32)
    hand = gk.Graph()
    params = hand.values(hand.add_memcpy_node(b[:, 1:3], a[:, 1:3]))
    with gk.capture(stream) as graph:
        runtime.memcpy_3d_async(params, stream.ptr)
    run(graph, stream)
    assert b.get()[:, 1:3].tolist() == values[:, 1:3].tolist()
    assert not b.get()[:, 3:].any()


def test_a_fork_that_joins(runtime, stream, other):
    counters = [gk.zeros(1, np.int32) for _ in range(2)]
    with gk.capture(stream) as graph:
        increment(counters[0], stream)
        other.wait_event(stream.record())
        assert other.capture_status is gk.CaptureStatus.ACTIVE
        increment(counters[1], other)
        increment(counters[0], stream)
        stream.wait_event(other.record())
        increment(counters[1], stream)
    assert other.capture_status is gk.CaptureStatus.NONE
    kernels = [values.args[0].value == counters[1].ptr for values in graph.kernels]
    assert sorted(kernels) == [False, False, True, True]
    assert len(edges(graph)) == 4
    run(graph, stream)
    assert [counter.get()[0] for counter in counters] == [2, 2]
    assert works(other)


def test_a_programmatic_launch_becomes_a_programmatic_edge(runtime, stream):
    seen, also = gk.zeros(4, np.int32), gk.zeros(4, np.int32)
    with gk.capture(stream) as graph:
        BLOCKS(4, 32, (seen,), stream=stream)
        BLOCKS(4, 32, (also,), stream=stream, programmatic=True)
    (edge,) = graph.edges
    assert edge.programmatic
    run(graph, stream)
    assert seen.get().tolist() == also.get().tolist() == [4032] * 4


def test_a_captured_graph_is_a_graph_like_any_other(counter, stream):
    with gk.capture(stream) as graph:
        increment(counter, stream)
    graph.add_kernel_node(INCREMENT, 1, 1, (counter, 10), deps=graph.nodes)
    exe = graph.instantiate()
    exe.set_kernel_node_params(graph.nodes[0], args={"by": 100})
    exe.launch(stream)
    stream.synchronize()
    assert counter.get() == [110]


def test_the_graph_keeps_what_its_launches_use(counter, stream, other):
    target = gk.zeros(N)
    source = gk.asarray(np.full(N, 5, np.float32))
    middle = gk.zeros(N)
    seen = weakref.ref(source), weakref.ref(middle)
    calls = []
    with gk.capture(stream) as graph:
        other.wait_event(stream.record())
        ADD_SCALAR(1, 32, (source, middle, 1.0, N), stream=other)
        stream.wait_event(other.record())
        ADD_SCALAR(1, 32, {"x": middle, "y": target, "a": 1.0, "n": N}, stream=stream)
        stream.launch_host_func(lambda: calls.append(1))
        del source, middle
    gc.collect()
    gk.asarray(np.full(N, -1, np.float32))
    run(graph, stream)
    assert target.get().tolist() == [7.0] * N
    assert calls == [1]
    assert seen[0]() is not None
    graph.close()
    del graph
    gc.collect()
    assert seen[0]() is None
    assert seen[1]() is None


def test_what_runs_outside_of_the_body_is_not_kept(counter, stream):
    array = gk.zeros(1, np.int32)
    seen = weakref.ref(array)
    increment(array, stream)
    with gk.capture(stream):
        pass
    increment(array, stream)
    stream.synchronize()
    del array
    assert seen() is None


# --- use of the graph and of the context manager -------------------------------------------------


def test_the_graph_is_there_after_the_body_only(counter, stream):
    with gk.capture(stream) as graph:
        increment(counter, stream)
        for use in (lambda: graph.nodes, graph.instantiate, graph.add_empty_node, graph.clone):
            with pytest.raises(ValueError, match="came one closed or still captured"):
                use()
    assert len(graph.nodes) == 1


def test_a_capture_is_entered_once(stream):
    capture = gk.capture(stream)
    with capture:
        pass
    with pytest.raises(ValueError, match="expected a fresh capture"):
        capture.__enter__()
    assert works(stream)


@pytest.mark.parametrize("mode", ["local", "THREAD_LOCAL", None, 1])
def test_modes_that_are_none(stream, mode):
    with pytest.raises(ValueError, match=r"mode: expected one of \['global', 'relaxed'"):
        gk.capture(stream, mode=mode)


@pytest.mark.parametrize("kind", ["node", "nodes", "int", "None", "array"])
def test_a_graph_of_its_own_has_no_nodes_to_wait_for(counter, stream, kind):
    node = gk.Graph().add_empty_node()
    deps = {"node": node, "nodes": [node], "int": 5, "None": None, "array": np.arange(2)}[kind]
    with pytest.raises((TypeError, ValueError), match=r"^deps: expected (none|a Node)"):
        gk.capture(stream, deps=deps)
    for none in ([], (), set(), iter(())):
        with gk.capture(stream, deps=none) as graph:
            increment(counter, stream)
        assert len(graph.nodes) == 1


@pytest.mark.parametrize("stream", [None, "stream", True])
def test_streams_that_are_none(runtime, stream):
    with pytest.raises(TypeError, match="stream: expected"):
        gk.capture(stream)


def test_the_legacy_stream_cannot_capture(runtime):
    with pytest.raises(gk.CaptureError) as caught:
        gk.capture(0).__enter__()
    assert (caught.value.code, caught.value.call) == (900, "cudaStreamBeginCapture")
    assert runtime.get_last_error() == 0
    assert gk.live_handles() == {}


def test_a_stream_that_captures_cannot_begin_again(counter, stream):
    with gk.capture(stream) as graph:
        increment(counter, stream)
        with pytest.raises(gk.CaptureError) as caught:
            gk.capture(stream).__enter__()
        assert caught.value.name == "cudaErrorIllegalState"
        increment(counter, stream)
    run(graph, stream)
    assert counter.get() == [2]


def test_a_capture_inside_of_a_capture_on_another_stream(runtime, stream, other):
    counters = [gk.zeros(1, np.int32) for _ in range(2)]
    with gk.capture(stream) as outer:
        increment(counters[0], stream)
        with gk.capture(other) as inner:
            increment(counters[1], other)
        increment(counters[0], stream)
        assert len(inner.nodes) == 1
    assert len(outer.nodes) == 2
    run(inner, stream)
    run(outer, other)
    assert [int(counter.get()[0]) for counter in counters] == [2, 1]


# --- failures ------------------------------------------------------------------------------------


class Scene:
    """What the failing bodies below need."""

    def __init__(self, runtime, stream):
        self.runtime = runtime
        self.stream = stream
        self.other = gk.Stream()
        self.outside = self.other.record()
        self.graph = gk.Graph()
        self.event = gk.Event()


def captured_elsewhere(scene):
    """Let two captures meet."""
    with gk.capture(scene.other):
        scene.event.record(scene.other)
        scene.stream.wait_event(scene.event)


def end_on_the_fork(scene):
    scene.other.wait_event(scene.stream.record(scene.event))
    scene.runtime.stream_end_capture(scene.other.ptr)


FAILURES = {
    "synchronize": (900, lambda scene: scene.stream.synchronize()),
    "query": (900, lambda scene: scene.stream.query()),
    "synchronize the device": (900, lambda scene: scene.runtime.device_synchronize()),
    "allocate": (900, lambda scene: gk.empty(4)),
    "instantiate": (900, lambda scene: scene.graph.instantiate()),
    "merge": (902, captured_elsewhere),
    "end on a fork": (903, end_on_the_fork),
    "wait for what is outside": (905, lambda scene: scene.stream.wait_event(scene.outside)),
    "query a captured event": (907, lambda scene: scene.stream.record(scene.event).query()),
    "wait for a captured event": (
        907,
        lambda scene: scene.stream.record(scene.event).synchronize(),
    ),
}


def test_waiting_for_the_device_kills_a_relaxed_capture_and_the_message_says_so(runtime, stream):
    def body():
        with gk.capture(stream, mode="relaxed"):
            runtime.device_synchronize()

    with pytest.raises(gk.CudaError, match="usual cause: waiting for the device") as caught:
        body()
    assert caught.value.code == 900
    assert works(stream)


@pytest.mark.parametrize("what", FAILURES)
def test_a_call_that_kills_the_capture(runtime, counter, stream, what):
    code, provoke = FAILURES[what]
    scene = Scene(runtime, stream)
    capture = gk.capture(stream)
    increment(counter, stream)

    def body():
        with capture:
            increment(counter, stream, 10)
            provoke(scene)

    with pytest.raises(gk.CudaError) as caught:
        body()
    assert caught.value.code == code
    notes = "".join(getattr(caught.value, "__notes__", ()))
    assert "The stream capture around this failed as well" in notes
    assert "cudaErrorStreamCaptureInvalidated" in notes
    assert works(stream)
    assert works(scene.other)
    assert counter.get() == [1]


@pytest.mark.parametrize("what", FAILURES)
def test_a_failure_that_the_body_swallows_is_still_raised(runtime, counter, stream, what):
    code, provoke = FAILURES[what]
    scene = Scene(runtime, stream)

    def body():
        with gk.capture(stream):
            increment(counter, stream)
            with pytest.raises(gk.CudaError) as first:
                provoke(scene)
            assert first.value.code == code
            if stream.capture_status is gk.CaptureStatus.INVALIDATED:
                with pytest.raises(gk.CudaError) as second:
                    increment(counter, stream)
                assert second.value.code == 901

    with pytest.raises(gk.CaptureError) as caught:
        body()
    assert caught.value.code == 901
    assert caught.value.call == "cudaStreamEndCapture"
    assert works(stream)
    assert works(scene.other)
    assert counter.get() == [0]


def test_a_fork_that_is_not_joined(counter, stream, other):
    def body():
        with gk.capture(stream):
            increment(counter, stream)
            other.wait_event(stream.record())
            increment(counter, other)

    with pytest.raises(gk.CaptureError) as caught:
        body()
    assert caught.value.code == 904
    assert works(stream)
    assert works(other)
    assert counter.get() == [0]


def test_the_legacy_stream_beside_a_blocking_stream_that_captures(runtime, counter):
    stream = gk.Stream(non_blocking=False)

    def body():
        with gk.capture(stream):
            increment(counter, stream)
            increment(counter, 0)

    with pytest.raises(gk.CudaError) as caught:
        body()
    assert caught.value.code == 906
    assert works(stream)
    assert counter.get() == [0]


def test_the_legacy_stream_beside_a_non_blocking_one(counter, stream):
    legacy = gk.zeros(1, np.int32)
    with gk.capture(stream) as graph:
        increment(counter, stream)
        increment(legacy, 0)
    assert len(graph.nodes) == 1
    assert legacy.get() == [1]
    run(graph, stream)
    assert counter.get() == [1]


def test_a_capture_that_ends_on_another_thread(counter, stream):
    capture = gk.capture(stream)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(capture.__enter__).result()
        increment(counter, stream)
        with pytest.raises(gk.CaptureError) as caught:
            capture.__exit__(None, None, None)
        assert caught.value.code == 908
    assert works(stream)
    assert counter.get() == [0]


def test_an_exception_on_another_thread_is_raised_too(stream):
    capture = gk.capture(stream)
    error = OwnError("why")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(capture.__enter__).result()
        assert capture.__exit__(OwnError, error, None) is None  # that is: raise it
        assert "908" in error.__notes__[0]
    assert works(stream)


def test_a_relaxed_capture_ends_on_any_thread(counter, stream):
    capture = gk.capture(stream, mode="relaxed")
    with ThreadPoolExecutor(1) as thread:
        graph = thread.submit(capture.__enter__).result()
    increment(counter, stream)
    capture.__exit__(None, None, None)
    run(graph, stream)
    assert counter.get() == [1]


class OwnError(Exception):
    """The user's own exception."""


@pytest.mark.parametrize("error", [OwnError("why"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_in_the_body_is_the_one_raised(counter, stream, error):
    array = gk.zeros(1, np.int32)
    seen = weakref.ref(array)
    before = gk.live_handles()

    def body(array):
        with gk.capture(stream) as graph:
            increment(array, stream)
            graphs.append(graph)
            raise error

    graphs = []
    with pytest.raises(type(error)) as caught:
        body(array)
    assert caught.value is error
    assert not getattr(error, "__notes__", ())
    assert gk.live_handles() == before  # the partial graph is gone
    with pytest.raises(ValueError, match="expected a live graph"):
        graphs[0].nodes  # noqa: B018
    assert works(stream)
    error.__traceback__ = None
    del array, caught
    gc.collect()
    assert seen() is None


def test_an_exception_after_the_capture_died_carries_a_note(counter, stream):
    def body():
        with gk.capture(stream):
            increment(counter, stream)
            with pytest.raises(gk.CudaError):
                stream.synchronize()
            raise OwnError("why")

    with pytest.raises(OwnError) as caught:
        body()
    (note,) = caught.value.__notes__
    assert note.startswith("The stream capture around this failed as well:\n")
    assert "cudaStreamEndCapture returned 901" in note
    assert works(stream)


def test_a_failed_capture_keeps_nothing(stream, counter):
    array = gk.zeros(1, np.int32)
    seen = weakref.ref(array)

    def body(array):
        with gk.capture(stream):
            increment(array, stream)
            with pytest.raises(gk.CudaError):
                stream.query()

    with pytest.raises(gk.CaptureError):
        body(array)
    del array
    gc.collect()
    assert seen() is None
    assert "graph" not in gk.live_handles()


# --- modes and threads ---------------------------------------------------------------------------


def test_a_relaxed_capture_allows_what_others_forbid(counter, stream):
    with gk.capture(stream, mode="relaxed") as graph:
        array = gk.empty(4, np.int32)
        with gk.Graph() as empty:
            empty.instantiate().close()
        increment(counter, stream)
    assert array.ptr
    run(graph, stream)
    assert counter.get() == [1]


def test_another_thread_kills_a_global_capture(counter, stream):
    def body():
        with gk.capture(stream, mode="global"), ThreadPoolExecutor(1) as thread:
            increment(counter, stream)
            with pytest.raises(gk.CudaError) as caught:
                thread.submit(gk.empty, 4).result()
            assert caught.value.code == 900

    with pytest.raises(gk.CaptureError) as caught:
        body()
    assert caught.value.code == 901
    assert works(stream)


def test_another_thread_may_do_anything_beside_a_thread_local_capture(counter, stream):
    def work():
        host = gk.empty_pinned(1, np.int32)
        fresh = gk.zeros(1, np.int32)
        mine = gk.Stream()
        increment(fresh, mine)
        copy = host.ctypes.data, fresh.ptr, 4, gk.MemcpyKind.DEVICE_TO_HOST, mine.ptr
        mine.runtime.memcpy_async(*copy)
        mine.synchronize()
        gk.Graph().instantiate()
        return int(host[0])

    with gk.capture(stream) as graph, ThreadPoolExecutor(1) as thread:
        increment(counter, stream)
        assert thread.submit(work).result() == 1
        increment(counter, stream)
    run(graph, stream)
    assert counter.get() == [2]


@pytest.mark.parametrize("where", ["here", "another thread"])
def test_waiting_for_the_device_is_refused_before_it_kills_a_capture(counter, stream, where):
    with gk.capture(stream) as graph, ThreadPoolExecutor(1) as thread:
        increment(counter, stream)
        for use in (counter.get, lambda: counter.set([1])):
            with pytest.raises(ValueError, match="expected no live capture"):
                use() if where == "here" else thread.submit(use).result()
        increment(counter, stream)
    run(graph, stream)
    assert counter.get() == [2]


def test_threads_capture_at_once(runtime):
    count, rounds = 3, 8
    barrier = threading.Barrier(count)
    inside = []

    def work(index):
        stream = gk.Stream(runtime=runtime)
        counter = gk.zeros(1, np.int32)
        for round_ in range(rounds):
            barrier.wait()
            temporary = gk.zeros(1, np.int32)
            with gk.capture(stream) as graph:
                increment(counter, stream, index)
                increment(temporary, stream)
                del temporary
                if round_ == 0:
                    barrier.wait()
                    inside.append(index)
                    barrier.wait()
            run(graph, stream)
            graph.close()
        return counter  # to read it is to wait for the device, which others' captures forbid

    with ThreadPoolExecutor(count) as pool:
        counters = list(pool.map(work, range(count)))
    assert [int(counter.get()[0]) for counter in counters] == [i * rounds for i in range(count)]
    assert sorted(inside) == list(range(count))


@pytest.mark.parametrize("how", ["close", "drop"])
def test_whatever_ends_in_the_body_leaves_the_capture_alone(counter, stream, how):
    graph = gk.Graph()
    graph.add_kernel_node(INCREMENT, 1, 1, (counter, 1))
    exe = graph.instantiate()
    other = gk.Stream()
    exe.launch(other)
    things = [exe, graph, gk.Event(), gk.Stream(), other.record(), other]
    arrays = [gk.zeros(4), gk.zeros(4)[1:], gk.empty_pinned(4)]
    del graph, exe, other
    other_count = gk.live_handles()["device memory"]
    with gk.capture(stream) as captured:
        increment(counter, stream, 10)
        if how == "close":
            for thing in things:
                thing.close()
            arrays[0].free()
        things.clear()
        arrays.clear()
        gc.collect()
        assert gk.live_handles()["device memory"] == other_count
        assert stream.capture_status is gk.CaptureStatus.ACTIVE
        increment(counter, stream, 100)
    gc.collect()
    assert gk.live_handles() == {"device memory": 1, "graph": 1, "stream": 1}
    assert counter.get() == [1]
    run(captured, stream)
    assert counter.get() == [111]


def test_an_exec_changes_inside_of_a_capture(counter, stream, other):
    """What a change replaces is kept, and asked about only after the capture."""
    target = gk.zeros(N)
    graph = gk.Graph()
    node = graph.add_kernel_node(ADD_SCALAR, 1, 32, (gk.zeros(N), target, 1.0, N))
    exe = graph.instantiate()
    exe.launch(other)
    fresh = [gk.asarray(np.full(N, value, np.float32)) for value in range(50)]
    with gk.capture(stream) as captured:
        increment(counter, stream)
        while fresh:
            exe.set_kernel_node_params(node, args={"x": fresh.pop()})
            exe.launch(other)
        increment(counter, stream)
    other.synchronize()
    assert target.get().tolist() == [1.0] * N
    run(captured, stream)
    assert counter.get() == [2]


def test_a_capture_that_was_not_entered_cannot_be_left(runtime, stream):
    with pytest.raises(ValueError, match="capture: expected one that was entered"):
        gk.capture(stream).__exit__(None, None, None)
