"""Streams and events of the seam: order, completion, and what the host can ask."""

import ctypes
import threading

import numpy as np
import pytest

from graphkit.errors import NotSimulated
from graphkit.runtime.protocol import EventFlags, HostNodeParams, MemcpyKind, StreamFlags

N = 64


def test_flags_and_priority(runtime, made):
    least, greatest = runtime.device_get_stream_priority_range()
    stream = made.stream(priority=greatest)
    assert runtime.stream_get_flags(stream) is StreamFlags.NON_BLOCKING
    assert runtime.stream_get_priority(stream) == greatest
    assert runtime.stream_get_flags(made.blocking_stream()) is StreamFlags.DEFAULT
    assert greatest < least == 0


def test_a_priority_out_of_range_is_clamped(runtime, made):
    _, greatest = runtime.device_get_stream_priority_range()
    priorities = [runtime.stream_get_priority(made.stream(priority=p)) for p in (-99, 99)]
    assert priorities == [greatest, 0]


def test_the_legacy_stream(runtime, made):
    assert runtime.stream_get_flags(0) is StreamFlags.DEFAULT
    assert runtime.stream_get_priority(0) == 0
    runtime.stream_synchronize(0)
    assert runtime.stream_query(0) is True


def test_the_legacy_stream_has_a_handle_too(runtime, made):
    x, legacy = made.device(0.0), 1  # cudaStreamLegacy
    made.launch(made.fill(x, 1.0), legacy)
    runtime.stream_synchronize(legacy)
    assert runtime.stream_query(legacy) is True
    assert made.value(x) == 1


def test_an_empty_stream_is_done(runtime, made):
    stream = made.stream()
    runtime.stream_synchronize(stream)
    assert runtime.stream_query(stream) is True


def test_a_query_does_not_wait(runtime, made):
    stream = made.stream()
    gate = made.gate(stream)
    assert runtime.stream_query(stream) is False
    gate.set()
    runtime.stream_synchronize(stream)
    assert runtime.stream_query(stream) is True


def test_who_asks_often_enough_sees_the_end(runtime, made):
    x, stream = made.device(0.0), made.stream()
    for _ in range(5):
        made.launch(made.axpy(x, x), stream)
    made.launch(made.fill(x, 1.0), stream)
    while not runtime.stream_query(stream):
        pass
    assert made.value(x) == 1


def test_an_event_query_does_not_wait(runtime, made):
    stream, event = made.stream(), made.event()
    gate = made.gate(stream)
    runtime.event_record(event, stream)
    assert runtime.event_query(event) is False
    gate.set()
    runtime.event_synchronize(event)
    assert runtime.event_query(event) is True


def test_who_asks_an_event_often_enough_sees_the_end(runtime, made):
    x, stream, event = made.device(0.0), made.stream(), made.event()
    made.launch(made.fill(x, 4.0), stream)
    runtime.event_record(event, stream)
    while not runtime.event_query(event):
        pass
    assert made.value(x) == 4


def test_an_event_that_was_never_recorded_is_done(runtime, made):
    event, stream = made.event(), made.stream()
    assert runtime.event_query(event) is True
    runtime.event_synchronize(event)
    runtime.stream_wait_event(stream, event)
    runtime.stream_synchronize(stream)


def test_an_event_marks_the_work_before_it(runtime, made):
    x, stream, event = made.device(0.0), made.stream(), made.event()
    made.launch(made.fill(x, 1.0), stream)
    runtime.event_record(event, stream)
    gate = made.gate(stream)
    runtime.event_synchronize(event)
    assert runtime.event_query(event) is True
    gate.set()
    runtime.stream_synchronize(stream)
    assert made.value(x) == 1


def test_an_event_is_as_of_its_last_record(runtime, made):
    stream, event = made.stream(), made.event()
    runtime.event_record(event, stream)
    gate = made.gate(stream)
    runtime.event_record(event, stream)
    assert runtime.event_query(event) is False
    gate.set()
    runtime.event_synchronize(event)


def test_a_wait_is_for_the_record_before_it(runtime, made):
    first, second, event = made.stream(), made.stream(), made.event()
    runtime.event_record(event, first)
    runtime.stream_wait_event(second, event)
    gate = made.gate(first)
    runtime.event_record(event, first)
    runtime.stream_synchronize(second)
    assert runtime.stream_query(first) is False
    gate.set()
    runtime.stream_synchronize(first)


def test_an_event_orders_two_streams(runtime, made):
    x, y = made.device(0.0), made.device(0.0)
    first, second, event = made.stream(), made.stream(), made.event()
    gate = made.gate(first)
    made.launch(made.fill(x, 3.0), first)
    runtime.event_record(event, first)
    runtime.stream_wait_event(second, event)
    made.launch(made.axpy(y, x), second)
    assert runtime.stream_query(second) is False
    gate.set()
    runtime.stream_synchronize(second)
    assert made.value(y) == 3


def test_a_chain_of_events_orders_three_streams(runtime, made):
    x = made.device(0.0)
    streams = [made.stream() for _ in range(3)]
    for i, stream in enumerate(streams):
        made.launch(made.fill(x, 1.0) if i == 0 else made.axpy(x, x), stream)
        if i + 1 < len(streams):
            event = made.event()
            runtime.event_record(event, stream)
            runtime.stream_wait_event(streams[i + 1], event)
    runtime.stream_synchronize(streams[-1])
    assert made.value(x) == 4


def test_the_legacy_stream_waits_for_blocking_streams(runtime, made):
    x, y = made.device(0.0), made.device(0.0)
    stream = made.blocking_stream()
    gate = made.gate(stream)
    made.launch(made.fill(x, 5.0), stream)
    runtime.memcpy_async(y, x, 4 * N, MemcpyKind.DEVICE_TO_DEVICE, 0)
    assert runtime.stream_query(0) is False
    gate.set()
    runtime.stream_synchronize(0)
    assert made.value(y) == 5


def test_blocking_streams_wait_for_the_legacy_stream(runtime, made):
    x, y = made.device(0.0), made.device(0.0)
    stream = made.blocking_stream()
    gate = made.gate(0)
    made.launch(made.fill(x, 5.0), 0)
    made.launch(made.axpy(y, x), stream)
    assert runtime.stream_query(stream) is False
    gate.set()
    runtime.stream_synchronize(stream)
    assert made.value(y) == 5


def test_non_blocking_streams_pass_the_legacy_stream(runtime, made):
    x, stream = made.device(0.0), made.stream()
    gate = made.gate(0)
    made.launch(made.fill(x, 5.0), stream)
    runtime.stream_synchronize(stream)
    assert runtime.stream_query(0) is False
    gate.set()
    runtime.stream_synchronize(0)


def test_two_streams_do_not_wait_for_each_other(runtime, made):
    first, second = made.blocking_stream(), made.blocking_stream()
    gate = made.gate(first)
    made.launch(made.nothing(), second)
    runtime.stream_synchronize(second)
    assert runtime.stream_query(first) is False
    gate.set()
    runtime.stream_synchronize(first)


def test_a_copy_waits(runtime, made):
    x, array = made.device(0.0), np.zeros(N, np.float32)
    made.launch(made.fill(x, 8.0), 0)
    runtime.memcpy(array.ctypes.data, x, 4 * N, MemcpyKind.DEVICE_TO_HOST)
    assert set(array) == {8.0}


def test_work_of_a_destroyed_stream_still_finishes(runtime, made):
    x, stream = made.device(0.0), made.stream()
    made.launch(made.fill(x, 2.0), stream)
    made.destroy("stream", stream)
    runtime.device_synchronize()
    assert made.value(x) == 2


def test_an_event_may_be_destroyed_while_somebody_waits_for_it(runtime, made):
    x, y = made.device(0.0), made.device(0.0)
    first, second, event = made.stream(), made.stream(), made.event()
    made.launch(made.fill(x, 1.0), first)
    runtime.event_record(event, first)
    runtime.stream_wait_event(second, event)
    made.destroy("event", event)
    made.launch(made.axpy(y, x), second)
    runtime.stream_synchronize(second)
    assert made.value(y) == 1


def test_host_functions_run_in_stream_order(runtime, made):
    seen, stream = [], made.stream()
    x = made.device(0.0)
    target, out = made.pinned()
    made.launch(made.fill(x, 2.0), stream)
    runtime.memcpy_async(target, x, 4 * N, MemcpyKind.DEVICE_TO_HOST, stream)
    runtime.launch_host_func(stream, made.host(lambda: seen.append(float(out[0]))))
    runtime.launch_host_func(stream, made.host(lambda: seen.append("second")))
    runtime.stream_synchronize(stream)
    assert seen == [2.0, "second"]


def test_a_host_function_gets_its_user_data(runtime, made):
    seen, stream = [], made.stream()
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: seen.append(data))
    address = ctypes.cast(callback, ctypes.c_void_p).value
    runtime.launch_host_func(stream, HostNodeParams(address, 1234))
    runtime.stream_synchronize(stream)
    assert seen == [1234]


def test_a_host_function_must_not_call_cuda(runtime, made):
    seen, stream, x = [], made.stream(), made.device(0.0)
    event = made.event()

    def call():
        for refused in (
            lambda: runtime.malloc(16),
            lambda: runtime.event_record(event, stream),
            lambda: made.launch(made.fill(x, 1.0), stream),
        ):
            seen.append(made.code(refused))

    runtime.launch_host_func(stream, made.host(call))
    runtime.stream_synchronize(stream)
    assert seen == [800, 800, 800]


def test_a_grid_or_block_out_of_range_is_refused(runtime, made):
    x, stream = made.device(0.0), made.stream()
    for changes in (
        {"grid": (0, 1, 1)},
        {"block": (0, 1, 1)},
        {"block": (1025, 1, 1)},
        {"block": (32, 64, 1)},
        {"grid": (1, 65536, 1)},
        {"shared_mem": 1 << 20},
    ):
        assert made.code(made.launch, made.fill(x, 1.0, **changes), stream) == 1, changes
    runtime.stream_synchronize(stream)
    assert made.value(x) == 0


def test_arguments_are_read_during_the_call(runtime, made):
    x, stream = made.device(0.0), made.stream()
    params = made.fill(x, 1.0)
    gate = made.gate(stream)
    made.launch(params, stream)
    made.argument(params, 1).value = 99.0
    gate.set()
    runtime.stream_synchronize(stream)
    assert made.value(x) == 1


def test_times_are_the_devices(runtime, made):
    stream = made.stream()
    start, end = (made.event(EventFlags.DEFAULT) for _ in range(2))
    runtime.event_record(start, stream)
    runtime.event_record(end, stream)
    runtime.event_synchronize(end)
    if runtime.name == "sim":
        with pytest.raises(NotSimulated):
            runtime.event_elapsed_time(start, end)
    else:
        assert runtime.event_elapsed_time(start, end) >= 0


def test_events_without_timing_have_no_time(runtime, made):
    stream = made.stream()
    start, end = made.event(), made.event()
    for event in (start, end):
        runtime.event_record(event, stream)
    runtime.stream_synchronize(stream)
    assert made.code(runtime.event_elapsed_time, start, end) == 400


def test_events_that_were_not_recorded_have_no_time(runtime, made):
    start, end = (made.event(EventFlags.DEFAULT) for _ in range(2))
    assert made.code(runtime.event_elapsed_time, start, end) == 400


def test_calls_from_many_threads(runtime, made):
    xs = [made.device(0.0) for _ in range(4)]
    streams = [made.stream() for _ in xs]
    params = [made.fill(x, float(i)) for i, x in enumerate(xs)]
    errors = []

    def work(i):
        try:
            for _ in range(10):
                made.launch(params[i], streams[i])
                runtime.stream_synchronize(streams[i])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [made.value(x) for x in xs] == [0, 1, 2, 3]
