"""Capture at the seam: what becomes a node, what is forbidden, and how a capture dies."""

import threading

import numpy as np
import pytest

from graphkit.runtime.protocol import (
    CaptureMode,
    CaptureStatus,
    EdgeData,
    LaunchAttribute,
    LaunchAttributeID,
    MemcpyKind,
)

N = 64
STRICT = [CaptureMode.GLOBAL, CaptureMode.THREAD_LOCAL]
MODES = [*STRICT, CaptureMode.RELAXED]


def in_thread(function, *arguments):
    """Call a function on another thread; return what it returns."""
    result = []
    thread = threading.Thread(target=lambda: result.append(function(*arguments)))
    thread.start()
    thread.join()
    return result[0]


# --- what is captured


@pytest.mark.parametrize("mode", MODES)
def test_captured_work_does_not_run(runtime, made, mode):
    x, stream = made.device(0.0), made.stream()
    made.begin(stream, mode)
    assert runtime.stream_is_capturing(stream) is CaptureStatus.ACTIVE
    made.launch(made.fill(x, 1.0), stream)
    graph = made.end(stream)
    assert runtime.stream_is_capturing(stream) is CaptureStatus.NONE
    assert made.value(x) == 0
    made.run(made.exec(graph))
    assert made.value(x) == 1


def test_every_kind_of_work_becomes_a_node(runtime, made):
    x, y = made.device(1.0), made.device(0.0)
    source, _ = made.pinned()
    stream = made.stream()
    made.begin(stream)
    runtime.memcpy_async(x, source, 4 * N, MemcpyKind.HOST_TO_DEVICE, stream)
    runtime.memset_async(x, 0, 4 * N, stream)
    made.launch(made.axpy(y, x), stream)
    runtime.launch_host_func(stream, made.host(lambda: None))
    runtime.memcpy_3d_async(made.copy(y, x), stream)
    graph = made.end(stream)
    assert made.types(graph) == ["MEMCPY", "MEMSET", "KERNEL", "HOST", "MEMCPY"]
    assert made.edges(graph) == {(0, 1), (1, 2), (2, 3), (3, 4)}


def test_a_capture_of_nothing_is_an_empty_graph(runtime, made):
    stream = made.stream()
    made.begin(stream)
    assert runtime.graph_get_nodes(made.end(stream)) == []


def test_capture_info(runtime, made):
    x, stream = made.device(0.0), made.stream()
    assert runtime.stream_get_capture_info(stream).status is CaptureStatus.NONE
    made.begin(stream)
    made.launch(made.fill(x, 1.0), stream)
    info = runtime.stream_get_capture_info(stream)
    assert info.status is CaptureStatus.ACTIVE
    assert info.id != 0
    assert list(info.dependencies) == runtime.graph_get_nodes(info.graph)
    graph = made.end(stream)
    assert graph == info.graph


def test_captures_have_different_ids(runtime, made):
    first, second = made.stream(), made.stream()
    made.begin(first)
    made.begin(second)
    ids = {runtime.stream_get_capture_info(s).id for s in (first, second)}
    made.end(first)
    made.end(second)
    assert len(ids) == 2


def test_the_argument_values_are_captured(runtime, made):
    x, stream = made.device(0.0), made.stream()
    params = made.fill(x, 1.0)
    made.begin(stream)
    made.launch(params, stream)
    made.argument(params, 1).value = 2.0
    graph = made.end(stream)
    made.run(made.exec(graph))
    assert made.value(x) == 1


def test_host_addresses_are_captured_not_what_they_hold(runtime, made):
    x, stream = made.device(0.0), made.stream()
    source, view = made.pinned()
    view[:] = 1
    made.begin(stream)
    runtime.memcpy_async(x, source, 4 * N, MemcpyKind.HOST_TO_DEVICE, stream)
    exe = made.exec(made.end(stream))
    view[:] = 2
    made.run(exe)
    assert made.value(x) == 2


def test_a_fork_and_a_join(runtime, made):
    x, y, z = (made.device(0.0) for _ in range(3))
    main, side = made.stream(), made.stream()
    forked, joined = made.event(), made.event()
    made.begin(main)
    made.launch(made.fill(x, 1.0), main)
    runtime.event_record(forked, main)
    runtime.stream_wait_event(side, forked)
    assert runtime.stream_is_capturing(side) is CaptureStatus.ACTIVE
    made.launch(made.axpy(y, x), side)
    made.launch(made.axpy(z, x), main)
    runtime.event_record(joined, side)
    runtime.stream_wait_event(main, joined)
    made.launch(made.axpy(y, z), main)
    graph = made.end(main)
    assert made.edges(graph) == {(0, 1), (0, 2), (1, 3), (2, 3)}
    assert runtime.stream_is_capturing(side) is CaptureStatus.NONE
    made.run(made.exec(graph))
    assert made.value(y) == 2


def test_a_fork_at_the_start(runtime, made):
    x, y = made.device(0.0), made.device(0.0)
    main, side = made.stream(), made.stream()
    forked, joined = made.event(), made.event()
    made.begin(main)
    runtime.event_record(forked, main)
    runtime.stream_wait_event(side, forked)
    made.launch(made.fill(x, 1.0), side)
    made.launch(made.fill(y, 1.0), main)
    runtime.event_record(joined, side)
    runtime.stream_wait_event(main, joined)
    graph = made.end(main)
    assert len(runtime.graph_get_nodes(graph)) == 2
    assert made.edges(graph) == set()


def test_a_fork_without_work_needs_no_join(runtime, made):
    x = made.device(0.0)
    main, side, event = made.stream(), made.stream(), made.event()
    made.begin(main)
    made.launch(made.fill(x, 1.0), main)
    runtime.event_record(event, main)
    runtime.stream_wait_event(side, event)
    made.launch(made.axpy(x, x), main)
    graph = made.end(main)
    assert len(runtime.graph_get_nodes(graph)) == 2
    assert runtime.stream_is_capturing(side) is CaptureStatus.NONE


def test_work_before_a_fork_is_not_ordered_after_it(runtime, made):
    # A stream that joins a capture brings none of its earlier work along.
    x = made.device(0.0)
    main, side, event, joined = made.stream(), made.stream(), made.event(), made.event()
    made.launch(made.nothing(), side)
    made.begin(main)
    runtime.event_record(event, main)
    runtime.stream_wait_event(side, event)
    made.launch(made.fill(x, 1.0), side)
    runtime.event_record(joined, side)
    runtime.stream_wait_event(main, joined)
    assert made.types(made.end(main)) == ["KERNEL"]
    runtime.stream_synchronize(side)


def test_programmatic_serialization_becomes_a_programmatic_edge(runtime, made):
    x, stream = made.device(0.0), made.stream()
    attribute = LaunchAttribute(LaunchAttributeID.PROGRAMMATIC_STREAM_SERIALIZATION, (1,))
    made.begin(stream)
    made.launch(made.nothing(), stream)
    made.launch(made.fill(x, 1.0), stream, [attribute])
    runtime.memset_async(x, 0, 4 * N, stream)
    made.launch(made.nothing(), stream, [attribute])
    graph = made.end(stream)
    nodes = runtime.graph_get_nodes(graph)
    data = {nodes.index(e.to_node): e.data for e in runtime.graph_get_edges(graph)}
    assert data == {1: EdgeData(1, 0, 1), 2: EdgeData(), 3: EdgeData()}


def test_the_priority_of_a_stream_becomes_the_nodes(runtime, made):
    _, greatest = runtime.device_get_stream_priority_range()
    stream = made.stream(priority=greatest)
    made.begin(stream)
    made.launch(made.nothing(), stream)
    graph = made.end(stream)
    (node,) = runtime.graph_get_nodes(graph)
    found = runtime.graph_kernel_node_get_attribute(node, LaunchAttributeID.PRIORITY)
    assert found.value == (greatest,)


def test_attributes_of_a_launch_become_the_nodes(runtime, made):
    stream = made.stream()
    made.begin(stream)
    cluster = LaunchAttribute(LaunchAttributeID.CLUSTER_DIMENSION, (2, 1, 1))
    made.launch(made.nothing(grid=(4, 1, 1)), stream, [cluster])
    graph = made.end(stream)
    (node,) = runtime.graph_get_nodes(graph)
    found = runtime.graph_kernel_node_get_attribute(node, LaunchAttributeID.CLUSTER_DIMENSION)
    assert found == cluster


def test_captures_of_two_streams_are_apart(runtime, made):
    x, y = made.device(0.0), made.device(0.0)
    first, second = made.stream(), made.stream()
    made.begin(first)
    made.begin(second)
    made.launch(made.fill(x, 1.0), first)
    made.launch(made.fill(y, 2.0), second)
    made.launch(made.nothing(), second)
    graphs = made.end(first), made.end(second)
    assert [len(runtime.graph_get_nodes(g)) for g in graphs] == [1, 2]


def test_other_streams_work_during_a_capture(runtime, made):
    x, capturing, other = made.device(0.0), made.stream(), made.stream()
    made.begin(capturing)
    made.launch(made.fill(x, 3.0), other)
    made.end(capturing)
    runtime.stream_synchronize(other)
    assert made.value(x) == 3


def test_a_stream_works_after_its_capture(runtime, made):
    x, stream = made.device(0.0), made.stream()
    made.begin(stream)
    made.end(stream)
    made.launch(made.fill(x, 3.0), stream)
    runtime.stream_synchronize(stream)
    assert made.value(x) == 3


# --- what a capture forbids


def unsafe(runtime, made):
    """Return calls that CUDA names potentially unsafe, by name, with arguments made before."""
    graph, idle = made.graph(), made.stream()
    done, held = made.event(), made.device()
    runtime.event_record(done, idle)
    runtime.stream_synchronize(idle)
    array = made.device(nbytes=4 * N)
    host, _ = made.pinned()
    exe, doomed = made.exec(graph), made.exec(graph)
    doomed_graph, doomed_event, doomed_stream = made.graph(), made.event(), made.stream()
    return {
        "memcpy": lambda: runtime.memcpy(array, host, 4 * N, MemcpyKind.HOST_TO_DEVICE),
        "free": lambda: made.destroy("device", array),
        "free_host": lambda: made.destroy("pinned", host),
        "malloc_of_nothing": lambda: runtime.malloc(0),
        "malloc_async": lambda: made.own("device", runtime.malloc_async(16, idle), runtime.free),
        "graph_destroy": lambda: made.destroy("graph", doomed_graph),
        "event_destroy": lambda: made.destroy("event", doomed_event),
        "stream_destroy": lambda: made.destroy("stream", doomed_stream),
        "malloc": lambda: made.own("device", runtime.malloc(16), runtime.free),
        "host_alloc": lambda: made.own("pinned", runtime.host_alloc(16), runtime.free_host),
        "instantiate": lambda: made.exec(graph),
        "event_query": lambda: runtime.event_query(done),
        "event_synchronize": lambda: runtime.event_synchronize(done),
        "stream_query": lambda: runtime.stream_query(idle),
        "stream_synchronize": lambda: runtime.stream_synchronize(idle),
        "device_synchronize": runtime.device_synchronize,
        "mem_get_info": runtime.mem_get_info,
        "pointer_get_attributes": lambda: runtime.pointer_get_attributes(held),
        "event_create": made.event,
        "stream_create": made.stream,
        "graph_create": made.graph,
        "event_record": lambda: runtime.event_record(done, idle),
        "upload": lambda: runtime.graph_upload(exe, idle),
        "launch": lambda: runtime.graph_launch(exe, idle),
        "graph_exec_destroy": lambda: made.destroy("exec", doomed),
    }


# What strict captures forbid; everything else that unsafe() lists is allowed in every mode.
WAITS = {"event_query", "event_synchronize", "stream_query", "stream_synchronize"}
MEMORY = {"malloc", "host_alloc", "malloc_async", "free", "free_host"}
FORBIDDEN = WAITS | MEMORY | {"instantiate", "graph_exec_destroy"}
ALWAYS_FORBIDDEN = {"device_synchronize"}


def outcomes(runtime, made, mode, call):
    """Make one call inside of a capture; return its status and that of the capture's end."""
    stream = made.stream()
    made.begin(stream, mode)
    return call(), made.code(made.end, stream)


@pytest.mark.parametrize("mode", MODES)
def test_what_a_capture_forbids_to_its_thread(runtime, made, mode):
    calls = unsafe(runtime, made)
    seen = {
        name: outcomes(runtime, made, mode, lambda call=call: made.code(call))
        for name, call in calls.items()
    }
    forbidden = ALWAYS_FORBIDDEN | (set() if mode is CaptureMode.RELAXED else FORBIDDEN)
    assert seen == {name: (900, 901) if name in forbidden else (0, 0) for name in calls}


@pytest.mark.parametrize("mode", MODES)
def test_what_a_capture_forbids_to_other_threads(runtime, made, mode):
    calls = unsafe(runtime, made)
    seen = {
        name: outcomes(runtime, made, mode, lambda call=call: in_thread(made.code, call))
        for name, call in calls.items()
    }
    forbidden = ALWAYS_FORBIDDEN | (FORBIDDEN if mode is CaptureMode.GLOBAL else set())
    assert seen == {name: (900, 901) if name in forbidden else (0, 0) for name in calls}


def test_a_thread_can_relax_itself(runtime, made):
    stream = made.stream()
    made.begin(stream, CaptureMode.GLOBAL)
    assert runtime.thread_exchange_stream_capture_mode(CaptureMode.RELAXED) is CaptureMode.GLOBAL
    x = made.device()
    assert runtime.thread_exchange_stream_capture_mode(CaptureMode.GLOBAL) is CaptureMode.RELAXED
    made.end(stream)
    assert x


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", ["stream_synchronize", "stream_query"])
def test_waiting_for_the_capturing_stream_kills_the_capture(runtime, made, mode, call):
    x, stream = made.device(0.0), made.stream()
    made.begin(stream, mode)
    made.launch(made.fill(x, 1.0), stream)
    assert made.code(getattr(runtime, call), stream) == 900
    assert runtime.stream_is_capturing(stream) is CaptureStatus.INVALIDATED
    assert runtime.stream_get_capture_info(stream).status is CaptureStatus.INVALIDATED
    assert made.code(made.launch, made.fill(x, 1.0), stream) == 901
    assert made.code(runtime.stream_end_capture, stream) == 901
    # The stream works again at once.
    assert runtime.stream_is_capturing(stream) is CaptureStatus.NONE
    made.launch(made.fill(x, 2.0), stream)
    runtime.stream_synchronize(stream)
    assert made.value(x) == 2


def test_calls_on_an_invalidated_stream(runtime, made):
    x, stream, event = made.device(0.0), made.stream(), made.event()
    made.begin(stream)
    assert made.code(runtime.stream_synchronize, stream) == 900
    codes = [
        made.code(made.launch, made.fill(x, 1.0), stream),
        made.code(runtime.memset_async, x, 0, 4, stream),
        made.code(runtime.memcpy_async, x, x, 4, MemcpyKind.DEVICE_TO_DEVICE, stream),
        made.code(runtime.launch_host_func, stream, made.host(lambda: None)),
        made.code(runtime.event_record, event, stream),
        made.code(runtime.stream_wait_event, stream, event),
    ]
    again = [
        made.code(runtime.stream_synchronize, stream),
        made.code(runtime.stream_query, stream),
        made.code(made.begin, stream),
    ]
    assert made.code(runtime.stream_end_capture, stream) == 901
    assert (codes, again) == ([901] * 6, [900, 900, 401])


def test_a_capture_cannot_begin_twice(runtime, made):
    x, stream = made.device(0.0), made.stream()
    made.begin(stream)
    assert made.code(made.begin, stream) == 401
    made.launch(made.fill(x, 1.0), stream)
    assert made.types(made.end(stream)) == ["KERNEL"]


def test_a_capture_that_never_began_cannot_end(runtime, made):
    stream = made.stream()
    assert made.code(runtime.stream_end_capture, stream) == 401
    made.begin(stream)
    made.end(stream)
    assert made.code(runtime.stream_end_capture, stream) == 401


def test_the_legacy_stream_cannot_capture(runtime, made):
    assert made.code(made.begin, 0) == 900
    assert made.code(runtime.stream_end_capture, 0) == 401
    assert runtime.stream_is_capturing(0) is CaptureStatus.NONE


def test_joining_two_captures(runtime, made):
    first, second, event = made.stream(), made.stream(), made.event()
    made.begin(first)
    made.begin(second)
    made.launch(made.nothing(), first)
    runtime.event_record(event, first)
    assert made.code(runtime.stream_wait_event, second, event) == 902
    status = [runtime.stream_is_capturing(s) for s in (first, second)]
    ends = [made.code(made.end, s) for s in (first, second)]
    assert (status, ends) == ([CaptureStatus.INVALIDATED] * 2, [901, 901])


def test_a_capture_ends_on_the_stream_it_began_on(runtime, made):
    main, side, event = made.stream(), made.stream(), made.event()
    made.begin(main)
    made.launch(made.nothing(), main)
    runtime.event_record(event, main)
    runtime.stream_wait_event(side, event)
    assert made.code(runtime.stream_end_capture, side) == 903
    assert made.code(made.end, main) == 901
    assert runtime.stream_is_capturing(side) is CaptureStatus.NONE


def test_a_fork_that_is_not_joined(runtime, made):
    x, main, side, event = made.device(0.0), made.stream(), made.stream(), made.event()
    made.begin(main)
    made.launch(made.nothing(), main)
    runtime.event_record(event, main)
    runtime.stream_wait_event(side, event)
    made.launch(made.fill(x, 1.0), side)
    assert made.code(runtime.stream_end_capture, main) == 904
    for stream in (main, side):
        assert runtime.stream_is_capturing(stream) is CaptureStatus.NONE
        made.launch(made.fill(x, 2.0), stream)
        runtime.stream_synchronize(stream)
    assert made.value(x) == 2


def test_work_after_the_join_needs_another_join(runtime, made):
    main, side, forked, joined = made.stream(), made.stream(), made.event(), made.event()
    made.begin(main)
    runtime.event_record(forked, main)
    runtime.stream_wait_event(side, forked)
    made.launch(made.nothing(), side)
    runtime.event_record(joined, side)
    made.launch(made.nothing(), side)
    runtime.stream_wait_event(main, joined)
    assert made.code(made.end, main) == 904


def test_waiting_for_work_outside_of_the_capture(runtime, made):
    capturing, outside, event = made.stream(), made.stream(), made.event()
    runtime.event_record(event, outside)
    made.begin(capturing)
    assert made.code(runtime.stream_wait_event, capturing, event) == 905
    assert made.code(made.end, capturing) == 901


def test_a_captured_wait_for_an_event_that_was_never_recorded_is_nothing(runtime, made):
    capturing, event = made.stream(), made.event()
    made.begin(capturing)
    runtime.stream_wait_event(capturing, event)
    assert made.types(made.end(capturing)) == []


@pytest.mark.parametrize("call", ["event_query", "event_synchronize"])
def test_asking_for_a_captured_event_kills_the_capture(runtime, made, call):
    stream, event = made.stream(), made.event()
    made.begin(stream)
    runtime.event_record(event, stream)
    assert made.code(getattr(runtime, call), event) == 907
    assert made.code(made.end, stream) == 901


def test_a_captured_event_after_the_capture(runtime, made):
    stream, other, event = made.stream(), made.stream(), made.event()
    made.begin(stream)
    made.launch(made.nothing(), stream)
    runtime.event_record(event, stream)
    made.end(stream)
    codes = [
        made.code(runtime.event_query, event),
        made.code(runtime.event_synchronize, event),
        made.code(runtime.stream_wait_event, other, event),
    ]
    made.begin(other)
    wait = made.code(runtime.stream_wait_event, other, event)
    end = made.code(made.end, other)
    runtime.event_record(event, stream)
    runtime.event_synchronize(event)
    assert (codes, wait, end) == ([1, 1, 1], 1, 901)
    assert runtime.event_query(event) is True


def test_the_legacy_stream_while_a_blocking_stream_captures(runtime, made):
    x, stream, event = made.device(0.0), made.blocking_stream(), made.event()
    seen = {}
    for name, call in {
        "launch": lambda: made.launch(made.nothing(), 0),
        "memset": lambda: runtime.memset_async(x, 0, 4, 0),
        "memcpy_async": lambda: runtime.memcpy_async(x, x, 4, MemcpyKind.DEVICE_TO_DEVICE, 0),
        "memcpy": lambda: runtime.memcpy(x, x, 4, MemcpyKind.DEVICE_TO_DEVICE),
        "synchronize": lambda: runtime.stream_synchronize(0),
        "query": lambda: runtime.stream_query(0),
        "record": lambda: runtime.event_record(event, 0),
        "wait": lambda: runtime.stream_wait_event(0, event),
        "host": lambda: runtime.launch_host_func(0, made.host(lambda: None)),
    }.items():
        seen[name] = []
        for mode in MODES:
            made.begin(stream, mode)
            seen[name] += [made.code(call), made.code(made.end, stream)]
    assert seen == dict.fromkeys(seen, [906, 901] * 3)


def test_the_legacy_stream_while_a_non_blocking_stream_captures(runtime, made):
    x, stream = made.device(0.0), made.stream()
    made.begin(stream)
    made.launch(made.fill(x, 1.0), 0)
    made.end(stream)
    runtime.stream_synchronize(0)
    assert made.value(x) == 1


def test_asking_whether_the_legacy_stream_captures_is_harmless(runtime, made):
    stream = made.blocking_stream()
    made.begin(stream)
    codes = [
        made.code(runtime.stream_is_capturing, 0),
        made.code(runtime.stream_get_capture_info, 0),
    ]
    assert (codes, made.code(made.end, stream)) == ([906, 906], 0)


@pytest.mark.parametrize("mode", STRICT)
def test_a_capture_ends_on_the_thread_it_began_on(runtime, made, mode):
    stream = made.stream()
    made.begin(stream, mode)
    made.launch(made.nothing(), stream)
    assert in_thread(made.code, runtime.stream_end_capture, stream) == 908
    # That was the end of the capture all the same.
    assert runtime.stream_is_capturing(stream) is CaptureStatus.NONE
    assert made.code(made.end, stream) == 401
    runtime.stream_synchronize(stream)


def test_a_relaxed_capture_ends_on_any_thread(runtime, made):
    stream = made.stream()
    made.begin(stream, CaptureMode.RELAXED)
    graph = in_thread(made.end, stream)
    assert runtime.graph_get_nodes(graph) == []


def test_any_thread_may_add_work_to_a_capture(runtime, made):
    stream = made.stream()
    params = made.nothing()
    made.begin(stream, CaptureMode.THREAD_LOCAL)
    assert in_thread(made.code, made.launch, params, stream) == 0
    assert made.types(made.end(stream)) == ["KERNEL"]


def test_a_bad_launch_kills_a_capture(runtime, made):
    stream = made.stream()
    made.begin(stream)
    assert made.code(made.launch, made.nothing(grid=(0, 1, 1)), stream) == 1
    assert made.code(made.launch, made.nothing(), stream) == 901
    assert made.code(made.end, stream) == 901


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", ["graph_launch", "graph_upload"])
def test_an_exec_cannot_be_launched_into_a_capture(runtime, made, mode, call):
    stream = made.stream()
    exe = made.exec(made.graph())
    made.run(exe)
    made.begin(stream, mode)
    assert made.code(getattr(runtime, call), exe, stream) == 900
    assert made.code(made.end, stream) == 901


def test_a_bad_copy_does_not_kill_a_capture(runtime, made):
    stream, array = made.stream(), np.zeros(N, np.float32)
    made.begin(stream)
    at = array.ctypes.data
    assert made.code(runtime.memcpy_async, at, at, 4, MemcpyKind.DEVICE_TO_DEVICE, stream) == 1
    made.launch(made.nothing(), stream)
    assert made.types(made.end(stream)) == ["KERNEL"]


def test_the_legacy_stream_cannot_join_a_capture(runtime, made):
    stream, event = made.stream(), made.event()
    made.begin(stream)
    runtime.event_record(event, stream)
    assert made.code(runtime.stream_wait_event, 0, event) == 906
    assert made.code(made.end, stream) == 901


def test_destroying_the_stream_that_began(runtime, made):
    stream, other = made.stream(), made.stream()
    made.begin(stream)
    made.launch(made.nothing(), stream)
    made.destroy("stream", stream)
    assert runtime.stream_query(other) is True  # nothing captures any more


def test_destroying_a_capturing_stream(runtime, made):
    main, side, event = made.stream(), made.stream(), made.event()
    made.begin(main)
    runtime.event_record(event, main)
    runtime.stream_wait_event(side, event)
    made.launch(made.nothing(), side)
    codes = [made.code(made.destroy, "stream", side), made.code(made.end, main)]
    assert codes == [0, 904]


def test_destroying_the_event_of_a_fork(runtime, made):
    main, side = made.stream(), made.stream()
    made.begin(main)
    for a, b in ((main, side), (side, main)):
        event = made.event()
        runtime.event_record(event, a)
        runtime.stream_wait_event(b, event)
        made.destroy("event", event)
        made.launch(made.nothing(), b)
    assert made.edges(made.end(main)) == {(0, 1)}


def test_a_graph_made_by_hand_during_a_capture(runtime, made):
    stream, graph = made.stream(), made.graph()
    made.begin(stream)
    runtime.graph_add_kernel_node(graph, [], made.nothing())
    clone = made.graph(runtime.graph_clone(graph))
    made.destroy("graph", clone)
    assert made.types(made.end(stream)) == []
