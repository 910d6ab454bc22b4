"""Streams and events: what counts as a stream, order across streams, host functions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, INCREMENT

import graphkit as gk
from graphkit.runtime.protocol import StreamFlags

N = 8


class Protocol:
    def __cuda_stream__(self):
        return 0, 77


class ExternalStream(SimpleNamespace):
    """As other libraries call theirs."""


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (0, 0),
        (77, 77),
        (Protocol(), 77),
        (SimpleNamespace(__cuda_stream__=(0, 77)), 77),
        (ExternalStream(ptr=77), 77),
        (SimpleNamespace(cuda_stream=77), 77),
        (ExternalStream(handle=77), 77),
        (ExternalStream(handle=SimpleNamespace(value=77)), 77),
        (ExternalStream(handle=SimpleNamespace(value=None)), 0),
    ],
)
def test_what_counts_as_a_stream(stream, handle):
    assert gk.stream_handle(stream) == handle


@pytest.mark.parametrize(
    "stream", [None, True, "0", 1.5, object(), SimpleNamespace(), SimpleNamespace(ptr=77)]
)
def test_what_is_no_stream(stream):
    with pytest.raises(TypeError, match=rf"stream: expected .* came {type(stream).__name__}"):
        gk.stream_handle(stream)


@pytest.mark.parametrize(
    "stream",
    [
        ExternalStream(ptr="x"),
        ExternalStream(ptr=-1),
        ExternalStream(handle=2**64),
        SimpleNamespace(cuda_stream=[1]),
        SimpleNamespace(__cuda_stream__=77),
        SimpleNamespace(__cuda_stream__=(0, None)),
        SimpleNamespace(__cuda_stream__=lambda: (0, 1, 2)),
    ],
)
def test_a_stream_without_a_handle(stream):
    with pytest.raises(TypeError, match=rf"stream: expected .* of {type(stream).__name__}"):
        gk.stream_handle(stream)


def test_what_has_an_address_is_no_stream(runtime, stream):
    graph, x = gk.Graph(), gk.zeros(1)
    node = graph.add_memset_node(x)
    with graph.instantiate() as exe:
        for other in (graph, exe, node, x, gk.Event()):
            with pytest.raises(TypeError, match="stream: expected a graphkit"):
                exe.launch(other)
        exe.launch(stream)
        stream.synchronize()


def test_our_own_stream_is_one_for_others(stream):
    assert stream.__cuda_stream__() == (0, stream.ptr)
    assert gk.stream_handle(stream) == stream.ptr


def test_flags_and_priority(runtime):
    least, greatest = runtime.device_get_stream_priority_range()
    assert gk.Stream(priority=greatest).priority == greatest
    assert gk.Stream(priority=greatest - 100).priority == greatest
    assert gk.Stream(priority=least + 100).priority == least
    assert runtime.stream_get_flags(gk.Stream().ptr) == StreamFlags.NON_BLOCKING
    assert runtime.stream_get_flags(gk.Stream(non_blocking=False).ptr) == StreamFlags.DEFAULT


def test_a_closed_stream_is_refused(runtime):
    stream = gk.Stream()
    assert "closed" not in repr(stream)
    stream.close()
    stream.close()
    for use in (
        lambda: stream.ptr,
        stream.synchronize,
        stream.query,
        stream.record,
        stream.__cuda_stream__,
        lambda: gk.stream_handle(stream),
        lambda: gk.capture(stream),
    ):
        with pytest.raises(ValueError, match="stream: expected a live one, came a closed one"):
            use()
    assert repr(stream) == "<Stream closed>"
    assert gk.live_handles() == {}


def test_a_closed_event_is_refused(stream):
    event = stream.record()
    event.close()
    event.close()
    for use in (event.query, event.synchronize, lambda: stream.wait_event(event)):
        with pytest.raises(ValueError, match="event: expected a live one, came a closed one"):
            use()
    assert repr(event) == "<Event closed>"


def test_work_of_a_closed_stream_still_finishes(runtime):
    counter = gk.zeros(1, np.int32)
    stream = gk.Stream()
    INCREMENT(1, 1, (counter, 5), stream=stream)
    stream.close()
    assert counter.get() == [5]


def test_synchronize_and_query(stream):
    counter = gk.zeros(1, np.int32)
    assert stream.query()
    for _ in range(10):
        INCREMENT(1, 1, (counter, 1), stream=stream)
    while not stream.query():
        pass
    stream.synchronize()
    assert counter.get() == [10]


def test_events_tell_when_work_is_done(stream):
    event = gk.Event(blocking_sync=True)
    assert event.query()  # never recorded: nothing to wait for
    counter = gk.zeros(1, np.int32)
    INCREMENT(1, 1, (counter, 1), stream=stream)
    assert stream.record(event) is event
    while not event.query():
        pass
    event.synchronize()
    stream.synchronize()
    assert counter.get() == [1]


def test_an_event_orders_two_streams(runtime, stream):
    other = gk.Stream()
    x = gk.asarray(np.arange(N, dtype=np.float32))
    y, z = gk.zeros(N), gk.zeros(N)
    ADD_SCALAR(1, 32, (x, y, 1.0, N), stream=stream)
    other.wait_event(stream.record())
    ADD_SCALAR(1, 32, (y, z, 1.0, N), stream=other)
    stream.wait_event(other.record())
    ADD_SCALAR(1, 32, (z, x, 1.0, N), stream=stream)
    stream.synchronize()
    assert np.array_equal(x.get(), np.arange(N) + 3)


def test_an_event_forgets_its_earlier_record(runtime, stream):
    event, counter = gk.Event(), gk.zeros(1, np.int32)
    for _ in range(3):
        INCREMENT(1, 1, (counter, 1), stream=stream)
        event.record(stream)
    event.synchronize()
    other = gk.Stream()
    other.wait_event(event)
    INCREMENT(1, 1, (counter, 1), stream=other)
    other.synchronize()
    assert counter.get() == [4]


def test_elapsed_time_is_a_number_on_a_device_and_refused_by_the_simulator(runtime, stream):
    start, end = gk.Event(timing=True), gk.Event(timing=True)
    start.record(stream)
    end.record(stream)
    stream.synchronize()
    if runtime.name == "sim":
        with pytest.raises(gk.NotSimulated):
            start.elapsed_ms(end)
    else:
        assert start.elapsed_ms(end) >= 0


def test_elapsed_time_of_events_without_timing_is_refused(runtime, stream):
    start, end = stream.record(), stream.record()
    stream.synchronize()
    with pytest.raises(gk.GraphkitError):
        start.elapsed_ms(end)
    stream.synchronize()


@pytest.mark.parametrize("event", [None, 5, "event"])
def test_wait_event_takes_events(stream, event):
    with pytest.raises(TypeError, match="event: expected an Event"):
        stream.wait_event(event)


def test_host_functions_run_in_stream_order(stream):
    host = gk.empty_pinned(1, np.int32)
    counter = gk.zeros(1, np.int32)
    seen = []
    kept = []
    for _ in range(3):
        INCREMENT(1, 1, (counter, 1), stream=stream)
        stream.runtime.memcpy_async(
            host.ctypes.data, counter.ptr, 4, gk.MemcpyKind.DEVICE_TO_HOST, stream.ptr
        )
        kept.append(stream.launch_host_func(lambda: seen.append(int(host[0]))))
    stream.synchronize()
    assert seen == [1, 2, 3]


def test_what_a_host_function_raises_is_kept(stream):
    callback = stream.launch_host_func(lambda: 1 / 0)
    after = []
    second = stream.launch_host_func(lambda: after.append(1))
    stream.synchronize()
    assert isinstance(callback.error, ZeroDivisionError)
    assert second.error is None
    assert after == [1]


def test_a_host_function_must_be_callable(stream):
    with pytest.raises(TypeError, match="fn: expected a callable without arguments, came int"):
        stream.launch_host_func(5)
    assert stream.query()


def test_the_capture_status(stream):
    assert stream.capture_status is gk.CaptureStatus.NONE
    with gk.capture(stream):
        assert stream.capture_status is gk.CaptureStatus.ACTIVE
    assert stream.capture_status is gk.CaptureStatus.NONE
