"""Ownership: each handle ends once, never inside of a capture, and keeps what it points at."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref

import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, INCREMENT

import graphkit as gk
from graphkit.lifetime import (
    Handle,
    begin_capture,
    end_capture,
    keep_for_capture,
    keep_until_done,
    release_done,
)

N = 8


class Thing:
    """Something to keep alive."""


def handle(destroyed, value=5, kind="thing", owner=None):
    return Handle(None, kind, value, destroyed.append, owner)


def live(kind="thing"):
    return gk.live_handles().get(kind, 0)


def test_a_handle_ends_once():
    destroyed = []
    item = handle(destroyed)
    assert (live(), item.closed) == (1, False)
    item.close()
    item.close()
    del item
    assert destroyed == [5]
    assert live() == 0


def test_a_dropped_handle_ends():
    destroyed = []
    handle(destroyed)
    assert destroyed == [5]
    assert live() == 0


def test_a_borrowed_handle_keeps_its_owner_and_is_never_destroyed():
    owner = Thing()
    seen = weakref.ref(owner)
    item = Handle(None, "thing", 5, None, owner)
    del owner
    assert seen() is not None
    assert live() == 0
    item.close()
    assert item.closed
    assert seen() is None


def test_a_handle_that_is_filled_later():
    destroyed = []
    item = Handle(None, "thing", 0, None)
    assert item.closed
    assert live() == 0
    item.fill(9, destroyed.append)
    assert (live(), item.closed) == (1, False)
    item.close()
    assert destroyed == [9]


def test_a_handle_that_was_never_filled_destroys_nothing():
    Handle(None, "thing", 0, None).close()
    assert live() == 0


def test_destructions_wait_for_the_last_capture_in_order():
    destroyed = []
    begin_capture("1", None, 1, [])
    begin_capture("2", None, 2, [])
    handle(destroyed, 5)
    item = handle(destroyed, 6)
    item.close()
    assert item.closed
    assert live() == 2
    end_capture("1")
    assert destroyed == []
    end_capture("2")
    assert destroyed == [5, 6]
    assert live() == 0


def test_one_destruction_that_fails_does_not_lose_the_others():
    destroyed = []

    def fail(_):
        raise RuntimeError("no")

    begin_capture("1", None, 1, [])
    Handle(None, "thing", 4, fail).close()
    handle(destroyed, 5)
    with pytest.warns(UserWarning, match="put off failed: no"):
        end_capture("1")
    assert destroyed == [5]
    assert live() == 0


def test_a_destruction_may_destroy_more():
    destroyed = []
    inner = handle(destroyed, 2)
    begin_capture("1", None, 1, [])
    outer = Handle(None, "thing", 1, lambda value: (destroyed.append(value), inner.close()))
    outer.close()
    end_capture("1")
    assert destroyed == [1, 2]


def test_destructions_of_another_thread_wait_too():
    destroyed = []
    begin_capture("1", None, 1, [])
    thread = threading.Thread(target=lambda: handle(destroyed))
    thread.start()
    thread.join()
    assert destroyed == []
    end_capture("1")
    assert destroyed == [5]


def test_destructions_inside_of_a_host_function_wait():
    destroyed, during = [], []
    item = handle(destroyed)

    def call():
        item.close()
        during.extend(destroyed)

    callback = gk.HostCallback(call)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(callback.params.fn)(None)
    assert during == []
    assert live() == 0
    assert destroyed == [5]


def test_a_destruction_that_is_not_permitted_now_is_done_later():
    destroyed = []

    def destroy(value):
        if not destroyed:
            destroyed.append("refused")
            raise gk.CudaError("cudaFree", 800)
        destroyed.append(value)

    Handle(None, "thing", 5, destroy).close()
    assert destroyed == ["refused"]
    assert live() == 0
    assert destroyed == ["refused", 5]


def test_a_host_function_ends_with_the_last_reference(runtime, stream):
    def use():
        host = gk.empty_pinned(1, np.int32)
        graph = gk.Graph()
        graph.add_host_node(lambda: host.fill(1))

    gc.disable()
    try:
        use()
        assert gk.live_handles() == {"stream": 1}
    finally:
        gc.enable()


def test_garbage_is_collected_inside_of_a_host_function(runtime, stream):
    class Cycle:
        def __init__(self):
            self.array, self.me = gk.zeros(4), self

    def collect():
        found.append(gc.collect())

    found = []
    graph = gk.Graph()
    graph.add_host_node(collect)
    exe = graph.instantiate()
    gc.disable()  # or the collector may be there before the host function is
    try:
        Cycle()
        exe.launch(stream)
        stream.synchronize()
    finally:
        gc.enable()
    assert found[0] >= 1
    assert "device memory" not in gk.live_handles()


def test_everything_made_is_counted(runtime):
    assert gk.live_handles() == {}
    made = [gk.Stream(), gk.Event(), gk.zeros(3), gk.empty_pinned(3), gk.Graph()]
    made.append(made[-1].instantiate())
    assert gk.live_handles() == {
        "device memory": 1,
        "event": 1,
        "executable graph": 1,
        "graph": 1,
        "pinned memory": 1,
        "stream": 1,
    }
    made.clear()
    assert gk.live_handles() == {}


def test_a_capture_keeps_what_is_given_to_its_stream(runtime, stream):
    inside, outside = Thing(), Thing()
    seen = weakref.ref(inside), weakref.ref(outside)
    other = gk.Stream()
    keep_for_capture(runtime, stream.ptr, [outside])
    with gk.capture(stream) as graph:
        keep_for_capture(runtime, stream.ptr, [inside])
        keep_for_capture(runtime, other.ptr, [outside])
    del inside, outside
    assert seen[0]() is not None
    assert seen[1]() is None
    graph.close()
    del graph
    assert seen[0]() is None


def slow(stream, counter):
    """Put work on a stream that is not done when this returns."""
    gate = threading.Event()
    # The simulator works only while somebody waits or asks: then the gate opens by itself.
    kept = stream.launch_host_func(lambda: gate.wait(0.2))
    for _ in range(5):
        INCREMENT(1, 1, (counter, 1), stream=stream)
    return gate, kept


def test_owners_are_kept_until_work_is_done(runtime, stream):
    counter, owner = gk.zeros(1, np.int32), Thing()
    seen = weakref.ref(owner)
    gate, _kept = slow(stream, counter)
    keep_until_done(runtime, [stream.ptr], owner)
    del owner
    assert seen() is not None
    gate.set()
    stream.synchronize()
    release_done()
    assert seen() is None


def test_owners_are_kept_until_all_streams_are_done(runtime, stream):
    counter, owner = gk.zeros(1, np.int32), Thing()
    seen = weakref.ref(owner)
    idle = gk.Stream()
    gate, _kept = slow(stream, counter)
    keep_until_done(runtime, [idle.ptr, stream.ptr], owner)
    del owner
    idle.synchronize()
    assert seen() is not None
    gate.set()
    stream.synchronize()
    assert gk.live_handles()  # asks for what is done
    assert seen() is None


def test_a_stream_that_takes_no_event_is_waited_for(runtime, stream, monkeypatch):
    def refuse(event, of):
        raise gk.CudaError("cudaEventRecord", 400)  # as for a stream of another device

    counter, owner = gk.zeros(1, np.int32), Thing()
    seen = weakref.ref(owner)
    _gate, _kept = slow(stream, counter)
    monkeypatch.setattr(runtime, "event_record", refuse)
    monkeypatch.setattr(runtime, "device_synchronize", lambda: None)  # it is of another device
    keep_until_done(runtime, [stream.ptr], owner)
    assert stream.query()
    del owner
    assert seen() is None


def test_without_streams_owners_go_at_once(runtime):
    owner = Thing()
    seen = weakref.ref(owner)
    keep_until_done(runtime, [], owner)
    del owner
    assert seen() is None


def test_keeping_until_done_waits_for_the_end_of_a_capture(runtime, stream):
    owner = Thing()
    seen = weakref.ref(owner)
    with gk.capture(stream) as graph:
        keep_until_done(runtime, [stream.ptr], owner)
        del owner
        assert seen() is not None
    assert graph.nodes == []
    stream.synchronize()
    release_done()
    assert seen() is None


def test_a_dropped_exec_keeps_its_operands_until_the_launch_is_done(runtime, stream):
    counter = gk.zeros(1, np.int32)
    target = gk.zeros(N)

    def launch():
        source = gk.asarray(np.full(N, 5, np.float32))
        graph = gk.Graph()
        graph.add_kernel_node(ADD_SCALAR, 1, 32, (source, target, 1.0, N))
        graph.instantiate().launch(stream)

    gate, _kept = slow(stream, counter)
    launch()
    scribble = [gk.asarray(np.full(N, -1, np.float32)) for _ in range(4)]
    gate.set()
    stream.synchronize()
    assert np.array_equal(target.get(), np.full(N, 6))
    del scribble


@pytest.mark.parametrize("end", ["close", "drop"])
def test_an_exec_whose_stream_was_closed_ends_inside_of_a_capture(runtime, stream, end):
    graph = gk.Graph()
    counter = gk.zeros(1, np.int32)
    graph.add_kernel_node(INCREMENT, 1, 1, (counter, 1))
    exe = graph.instantiate()
    other = gk.Stream()
    exe.launch(other)
    other.close()
    with gk.capture(stream) as captured:
        INCREMENT(1, 1, (counter, 10), stream=stream)
        if end == "close":
            exe.close()
        else:
            del exe
        INCREMENT(1, 1, (counter, 100), stream=stream)
    assert len(captured.nodes) == 2
    assert counter.get() == [1]
    again = captured.instantiate()
    again.launch(stream)
    stream.synchronize()
    assert counter.get() == [111]
