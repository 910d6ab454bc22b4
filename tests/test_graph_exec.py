"""Executable graphs: launch, change one node, update the whole, and what a refusal leaves."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, AXPY, BLOCKS, INCREMENT, NOTE

import graphkit as gk

N = 8


@pytest.fixture
def x(runtime):
    return gk.asarray(np.arange(N, dtype=np.float32))


@pytest.fixture
def y(runtime):
    return gk.zeros(N)


@pytest.fixture
def graph(x, y):
    graph = gk.Graph()
    graph.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 1.0, N))
    return graph


def run(exe, stream):
    exe.launch(stream)
    stream.synchronize()


def test_launch_runs_the_graph(graph, x, y, stream):
    run(graph.instantiate(), stream)
    assert np.array_equal(y.get(), x.get() + 1)


def test_launcher_launches_every_time_it_is_called(runtime, stream):
    counter = gk.zeros(1, np.int32)
    graph = gk.Graph()
    graph.add_kernel_node(INCREMENT, 1, 1, (counter, 1))
    go = graph.instantiate().launcher(stream)
    for _ in range(5):
        go()
    stream.synchronize()
    assert counter.get() == [5]


def test_launch_takes_a_stream_as_an_int(graph, x, y, stream):
    run_on = graph.instantiate()
    run_on.launch(stream.ptr)
    run_on.launch(stream.ptr)
    stream.synchronize()
    assert np.array_equal(y.get(), x.get() + 1)


def test_upload_and_upload_at_instantiation(graph, x, y, stream):
    graph.instantiate().upload(stream)
    run(graph.instantiate(upload_stream=stream), stream)
    assert np.array_equal(y.get(), x.get() + 1)


@pytest.mark.parametrize("key", ["a", 2])
def test_one_argument_changes_by_name_or_position(graph, x, y, stream, key):
    exe = graph.instantiate()
    exe.set_kernel_node_params(graph.nodes[0], args={key: 5.0})
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 5)


def test_an_array_argument_changes_and_the_rest_stays(graph, x, y, stream):
    exe = graph.instantiate()
    other = gk.asarray(np.full(N, 100, np.float32))
    exe.set_kernel_node_params(graph.nodes[0], args={"x": other})
    run(exe, stream)
    assert np.array_equal(y.get(), np.full(N, 101))


def test_a_tuple_changes_all_arguments(graph, x, stream):
    exe = graph.instantiate()
    target = gk.zeros(N)
    exe.set_kernel_node_params(graph.nodes[0], args=(x, target, 2.0, N))
    run(exe, stream)
    assert np.array_equal(target.get(), x.get() + 2)


def test_changes_add_up(graph, x, y, stream):
    exe = graph.instantiate()
    node = graph.nodes[0]
    target = gk.zeros(N)
    exe.set_kernel_node_params(node, args={"y": target})
    exe.set_kernel_node_params(node, args={"a": 3.0})
    run(exe, stream)
    assert np.array_equal(target.get(), x.get() + 3)
    assert not y.get().any()


def test_grid_and_block_change(runtime, stream):
    seen = gk.zeros(8, np.int32)
    graph = gk.Graph()
    node = graph.add_kernel_node(BLOCKS, 2, 32, (seen,))
    exe = graph.instantiate()
    exe.set_kernel_node_params(node, grid=4, block=(64, 1, 1))
    run(exe, stream)
    assert seen.get().tolist() == [4064] * 4 + [0] * 4
    exe.set_kernel_node_params(node, grid=1)
    run(exe, stream)
    assert seen.get().tolist() == [1064] + [4064] * 3 + [0] * 4


def test_arguments_survive_a_change_of_the_grid(graph, x, y, stream):
    exe = graph.instantiate()
    node = graph.nodes[0]
    exe.set_kernel_node_params(node, args={"a": 7.0})
    exe.set_kernel_node_params(node, grid=2, block=4)
    exe.set_kernel_node_params(node, args={"x": gk.zeros(N)})
    run(exe, stream)
    assert np.array_equal(y.get(), np.full(N, 7))


def test_the_function_changes(graph, x, y, stream):
    exe = graph.instantiate()
    exe.set_kernel_node_params(graph.nodes[0], kernel=AXPY, args=(x, y, 3.0, N))
    run(exe, stream)
    run(exe, stream)
    assert np.array_equal(y.get(), 6 * x.get())


def test_a_change_does_not_disturb_a_launch_before_it(graph, x, y, stream):
    exe = graph.instantiate()
    target = gk.zeros(N)
    exe.launch(stream)
    exe.set_kernel_node_params(graph.nodes[0], args={"y": target, "a": 9.0})
    exe.launch(stream)
    stream.synchronize()
    assert np.array_equal(y.get(), x.get() + 1)
    assert np.array_equal(target.get(), x.get() + 9)


def test_what_a_change_replaced_lives_until_the_launch_is_done(graph, y, stream):
    exe = graph.instantiate()
    node = graph.nodes[0]
    for value in range(100):
        exe.set_kernel_node_params(node, args={"x": gk.asarray(np.full(N, value, np.float32))})
        exe.launch(stream)
    stream.synchronize()
    assert np.array_equal(y.get(), np.full(N, 100))
    # Not all hundred arrays are still there.
    assert gk.live_handles()["device memory"] < 60


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"args": {"z": 1.0}}, TypeError, "expected a parameter of"),
        ({"args": {9: 1.0}}, TypeError, "came 9"),
        ({"args": (1.0,)}, TypeError, "expected 4 arguments"),
        ({"args": {"a": "one"}}, TypeError, "a: expected a scalar of float32"),
        ({"args": {"n": 1.5}}, TypeError, "n: expected a scalar of int32"),
        ({"args": {"n": 2**40}}, ValueError, "n: expected a value in the range"),
        (
            {"args": {"a": np.float64(1)}},
            TypeError,
            "a: expected a scalar of float32, came",
        ),
        ({"args": {"x": np.zeros(N, np.float32)}}, TypeError, "x: expected an array in device"),
        ({"args": {"x": 1.5}}, TypeError, "x: expected"),
        ({"args": {"a": 5.0, "x": None}}, TypeError, "x: expected"),
        ({"grid": 0}, ValueError, "grid: expected"),
        ({"block": 2048}, ValueError, "block: expected"),
        ({"block": (32, 64)}, ValueError, "at most 1024 threads"),
        ({"grid": "many"}, TypeError, "grid: expected"),
        ({"shared_mem": -1}, ValueError, "shared_mem: expected"),
        ({"kernel": BLOCKS}, TypeError, "expected 1 arguments"),
    ],
)
def test_a_refused_change_leaves_the_exec_as_it_was(graph, x, y, stream, change, error, message):
    exe = graph.instantiate()
    exe.set_kernel_node_params(graph.nodes[0], args={"a": 4.0})
    with pytest.raises(error, match=message):
        exe.set_kernel_node_params(graph.nodes[0], **change)
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 4)
    exe.set_kernel_node_params(graph.nodes[0], args={"a": 6.0})
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 6)


def test_an_array_of_another_dtype_is_refused(graph, x, y, stream):
    exe = graph.instantiate()
    with pytest.raises(TypeError, match="x: expected an array of float32, came int32"):
        exe.set_kernel_node_params(graph.nodes[0], args={"x": gk.zeros(N, np.int32)})
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 1)


def test_a_freed_array_is_refused(graph, x, y, stream):
    exe = graph.instantiate()
    gone = gk.zeros(N)
    gone.free()
    with pytest.raises(ValueError, match="came a freed DeviceArray"):
        exe.set_kernel_node_params(graph.nodes[0], args={"x": gone})
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 1)


def test_a_node_of_another_graph_is_refused(graph, x, y):
    other = gk.Graph()
    node = other.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 1.0, N))
    with pytest.raises(ValueError, match="another graph"):
        graph.instantiate().set_kernel_node_params(node, args={"a": 1.0})


def test_a_node_of_another_kind_is_refused(runtime):
    graph = gk.Graph()
    node = graph.add_empty_node()
    with pytest.raises(TypeError, match="expected one of type kernel"):
        graph.instantiate().set_kernel_node_params(node, args={"a": 1.0})
    with pytest.raises(TypeError, match="expected one of type event_record"):
        graph.instantiate().set_event_record_node_event(node, gk.Event())
    with pytest.raises(TypeError, match="expected a Node"):
        graph.instantiate().set_kernel_node_params("a", args={"a": 1.0})


def test_memcpy_nodes_change(x, y, stream):
    graph = gk.Graph()
    node = graph.add_memcpy_node(y, x)
    exe = graph.instantiate()
    source = gk.asarray(np.full(N, 3, np.float32))
    exe.set_memcpy_node_params(node, src=source)
    run(exe, stream)
    assert np.array_equal(y.get(), np.full(N, 3))
    target = gk.zeros(N)
    exe.set_memcpy_node_params(node, dst=target)
    run(exe, stream)
    assert np.array_equal(target.get(), np.full(N, 3))


def test_memcpy_refuses_another_direction(x, y):
    graph = gk.Graph()
    node = graph.add_memcpy_node(y, x)
    exe = graph.instantiate()
    with pytest.raises(TypeError, match="src: expected device memory"):
        exe.set_memcpy_node_params(node, src=np.zeros(N, np.float32))


def test_memcpy_of_two_dimensions_cannot_change(runtime):
    graph = gk.Graph()
    a, b = gk.zeros((4, 8)), gk.zeros((4, 8))
    node = graph.add_memcpy_node(a[:, 2:4], b[:, :2])
    with pytest.raises(ValueError, match="expected a 1-D memcpy node"):
        graph.instantiate().set_memcpy_node_params(node, src=b)


def test_memset_nodes_change(runtime, stream):
    a, b = gk.zeros(N, np.int32), gk.zeros(N, np.int32)
    graph = gk.Graph()
    node = graph.add_memset_node(a, 1)
    exe = graph.instantiate()
    exe.set_memset_node_params(node, dst=b)
    run(exe, stream)
    exe.set_memset_node_params(node, value=7)
    run(exe, stream)
    exe.set_memset_node_params(node, dst=a, value=9)
    run(exe, stream)
    assert a.get().tolist() == [9] * N
    assert b.get().tolist() == [7] * N


@pytest.mark.parametrize("value", [3, 3.0, np.float64(3), np.uint32(3)])
def test_a_memset_value_is_one_of_the_arrays_dtype(runtime, stream, value):
    a, b = gk.zeros(N, np.float32), gk.zeros(N, np.int32)
    inner, graph, other = gk.Graph(), gk.Graph(), gk.Graph()
    inner.add_memset_node(a, 1)
    holder = graph.add_child_graph_node(inner)
    node = graph.add_memset_node(a, 1, deps=holder)
    (inside,) = graph.child_graph(holder).nodes
    with inner.instantiate() as exe:
        exe.set_memset_node_params(inner.nodes[0], value=value)
        run(exe, stream)
        assert a.get().tolist() == [3.0] * N
        other.add_memset_node(b, 1)
        assert exe.update(other)
        exe.set_memset_node_params(inner.nodes[0], value=value)
        run(exe, stream)
        assert b.get().tolist() == [3] * N
    with graph.instantiate() as exe:
        exe.set_memset_node_params(inside, dst=b, value=value)
        exe.set_memset_node_params(inside, dst=b.ptr, value=value)
        exe.set_memset_node_params(node, dst=a.ptr, value=value)
        with pytest.raises(ValueError, match=r"value: expected one that int32 can hold, came 0\.5"):
            exe.set_memset_node_params(inside, value=0.5)
        b.set(np.zeros(N))
        run(exe, stream)
        assert (a.get().tolist(), b.get().tolist()) == ([3.0] * N, [3] * N)


def test_the_dtype_of_an_array_that_was_freed_is_known_still(runtime, stream):
    freed, a = gk.zeros(N, np.float32), gk.zeros(N, np.float32)
    graph = gk.Graph()
    node = graph.add_memset_node(freed, 1)
    with graph.instantiate() as exe:
        freed.free()
        exe.set_memset_node_params(node, dst=a.ptr, value=3)
        run(exe, stream)
        assert a.get().tolist() == [3.0] * N


def test_of_a_captured_memset_node_no_dtype_is_known(runtime, stream):
    a = gk.zeros(N, np.float32)
    with gk.capture(stream) as graph:
        runtime.memset_async(a.ptr, 0, a.nbytes, stream.ptr)
    (node,) = graph.nodes
    size = graph.values(node).element_size
    with graph.instantiate() as exe:
        exe.set_memset_node_params(node, value=0x3F)
        if size == 1:
            run(exe, stream)
            assert a.get().view(np.uint8).tolist() == [0x3F] * a.nbytes
        with pytest.raises(ValueError, match=f"value: expected an int of {size} bytes or a NumPy"):
            exe.set_memset_node_params(node, value=0.5)


def test_memset_refuses_other_extents(runtime):
    graph = gk.Graph()
    node = graph.add_memset_node(gk.zeros(N, np.int32), 1)
    with pytest.raises(ValueError, match="expected 8 x 1 elements"):
        graph.instantiate().set_memset_node_params(node, dst=gk.zeros(2 * N, np.int32))


def test_host_nodes_change(runtime, stream):
    calls = []
    graph = gk.Graph()
    node = graph.add_host_node(lambda: calls.append("first"))
    exe = graph.instantiate()
    run(exe, stream)
    exe.set_host_node_params(node, lambda: calls.append("second"))
    run(exe, stream)
    assert calls == ["first", "second"]


def test_event_nodes_change(runtime, stream):
    first, second = gk.Event(), gk.Event()
    graph = gk.Graph()
    record = graph.add_event_record_node(first)
    wait = graph.add_event_wait_node(first)
    exe = graph.instantiate()
    exe.set_event_record_node_event(record, second)
    exe.set_event_wait_node_event(wait, second)
    run(exe, stream)
    second.synchronize()
    assert second.query()


def test_child_graph_nodes_change(x, y, stream):
    child = gk.Graph()
    child.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 1.0, N))
    graph = gk.Graph()
    node = graph.add_child_graph_node(child)
    exe = graph.instantiate()
    other = gk.Graph()
    other.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 8.0, N))
    exe.set_child_graph_node_params(node, other)
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 8)


def test_a_node_inside_of_a_child_graph_changes(x, y, stream):
    child = gk.Graph()
    child.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 1.0, N))
    graph = gk.Graph()
    node = graph.add_child_graph_node(child)
    exe = graph.instantiate()
    inner = graph.child_graph(node).nodes[0]
    exe.set_kernel_node_params(inner, args={"a": 12.0})
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 12)


def test_nodes_are_switched_off_and_on(graph, x, y, stream):
    exe = graph.instantiate()
    node = graph.nodes[0]
    assert exe.node_enabled(node)
    exe.set_node_enabled(node, False)
    run(exe, stream)
    assert not y.get().any()
    assert not exe.node_enabled(node)
    exe.set_node_enabled(node, True)
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 1)


def test_only_some_kinds_are_switched(runtime):
    graph = gk.Graph()
    node = graph.add_empty_node()
    with pytest.raises(TypeError, match="expected one of type kernel or memcpy or memset"):
        graph.instantiate().set_node_enabled(node, False)


def test_update_brings_every_node_in_line(graph, x, y, stream):
    exe = graph.instantiate()
    exe.set_kernel_node_params(graph.nodes[0], args={"a": 50.0})
    other = gk.Graph()
    target = gk.zeros(N)
    other.add_kernel_node(ADD_SCALAR, 1, 32, (x, target, 2.0, N))
    report = exe.update(other)
    assert report
    assert report.result is gk.ExecUpdateStatus.SUCCESS
    run(exe, stream)
    assert np.array_equal(target.get(), x.get() + 2)
    assert not y.get().any()


def test_single_changes_after_an_update_start_from_the_update(graph, x, y, stream):
    exe = graph.instantiate()
    other = gk.Graph()
    target = gk.zeros(N)
    other.add_kernel_node(ADD_SCALAR, 1, 32, (x, target, 2.0, N))
    assert exe.update(other)
    exe.set_kernel_node_params(graph.nodes[0], args={"a": 3.0})
    run(exe, stream)
    assert np.array_equal(target.get(), x.get() + 3)


def test_an_update_with_another_topology_is_refused(graph, x, y, stream):
    exe = graph.instantiate()
    other = gk.Graph()
    first = other.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 2.0, N))
    other.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 3.0, N), deps=first)
    report = exe.update(other)
    assert not report
    assert report.result is gk.ExecUpdateStatus.TOPOLOGY_CHANGED
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 1)
    assert runtime_is_clean(exe.runtime)


def test_an_update_with_another_kind_of_node_names_it(graph, x, y):
    exe = graph.instantiate()
    other = gk.Graph()
    node = other.add_memcpy_node(y, x)
    report = exe.update(other)
    assert report.result is gk.ExecUpdateStatus.NODE_TYPE_CHANGED
    assert report.node is node
    assert report.kernel is None
    assert "KernelNodeValues" in str(report)


@pytest.mark.parametrize("change", [lambda other: other.close(), lambda other: add_one(other)])
def test_an_update_is_refused_after_one_from_a_graph_that_has_changed(graph, x, y, stream, change):
    other, wrong = graph.clone(), gk.Graph()
    wrong.add_memset_node(y, 0)
    with graph.instantiate() as exe:
        assert exe.update(other)
        change(other)
        report = exe.update(wrong)
        assert (bool(report), report.differences) == (False, ())
        assert report.result is not gk.ExecUpdateStatus.SUCCESS
        run(exe, stream)


def add_one(graph):
    graph.add_empty_node()


def test_a_refused_update_raises_when_it_should(graph, x, y, stream):
    exe = graph.instantiate()
    other = gk.Graph()
    other.add_memcpy_node(y, x)
    with pytest.raises(gk.GraphUpdateError) as caught:
        exe.update(other, strict=True)
    assert caught.value.report.result is gk.ExecUpdateStatus.NODE_TYPE_CHANGED
    assert caught.value.code == 910
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 1)


def test_an_update_that_changes_the_copy_kind_says_what_differs(x, y):
    graph = gk.Graph()
    graph.add_memcpy_node(y, x)
    exe = graph.instantiate()
    host = gk.empty_pinned(N)
    other = gk.Graph()
    node = other.add_memcpy_node(host, x)
    report = exe.update(other)
    if not report:  # newer drivers take it
        assert report.node is node
        assert {d.what for d in report.differences} >= {"kind"}


def runtime_is_clean(runtime) -> bool:
    return runtime.get_last_error() == 0


def test_a_closed_exec_refuses_everything(graph, stream):
    exe = graph.instantiate()
    go = exe.launcher(stream)
    exe.launch(stream)
    exe.close()
    exe.close()
    node = graph.nodes[0]
    for use in (
        lambda: exe.launch(stream),
        lambda: exe.launch(stream.ptr),
        go,
        lambda: exe.upload(stream),
        lambda: exe.set_kernel_node_params(node, args={"a": 1.0}),
        lambda: exe.set_node_enabled(node, False),
        lambda: exe.update(graph),
    ):
        with pytest.raises(ValueError, match="came a closed one"):
            use()
    assert repr(exe).startswith("<GraphExec closed")


def test_an_exec_outlives_its_graph_and_its_arrays(runtime, stream):
    counter = gk.zeros(1, np.int32)

    def make():
        source = gk.asarray(np.full(N, 5, np.float32))
        target = gk.zeros(N)
        graph = gk.Graph()
        node = graph.add_kernel_node(ADD_SCALAR, 1, 32, (source, target, 1.0, N))
        graph.add_kernel_node(INCREMENT, 1, 1, (counter, 1), deps=node)
        exe = graph.instantiate()
        graph.close()
        return exe, target

    exe, target = make()
    run(exe, stream)
    assert np.array_equal(target.get(), np.full(N, 6))
    assert counter.get() == [1]


def test_a_node_cannot_change_once_the_graph_is_closed(graph, y, stream):
    exe = graph.instantiate()
    node = graph.nodes[0]
    graph.close()
    with pytest.raises(ValueError, match="expected a live graph"):
        exe.set_kernel_node_params(node, args={"a": 1.0})
    run(exe, stream)
    assert y.get()[0] == 1


def test_instantiate_refuses_what_cannot_run_from_the_device(runtime):
    graph = gk.Graph()
    graph.add_host_node(lambda: None)
    before = gk.live_handles()
    with pytest.raises(gk.CudaError) as caught:
        graph.instantiate(device_launch=True)
    assert "Instantiate" in caught.value.call
    assert gk.live_handles() == before
    graph.instantiate()


def test_launches_of_two_threads_all_happen(runtime):
    import threading

    counters = [gk.zeros(1, np.int32) for _ in range(2)]
    graph = gk.Graph()
    for counter in counters:
        graph.add_kernel_node(INCREMENT, 1, 1, (counter, 1))
    exe = graph.instantiate()
    streams = [gk.Stream(), gk.Stream()]

    def work(stream):
        for _ in range(50):
            exe.launch(stream)
        stream.synchronize()

    threads = [threading.Thread(target=work, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(counter.get()[0]) for counter in counters] == [100, 100]


def test_what_a_reconfigured_node_points_at_stays(graph, y, stream):
    exe = graph.instantiate()
    node = graph.nodes[0]
    exe.set_kernel_node_params(node, grid=1, args={"x": gk.asarray(np.full(N, 5, np.float32))})
    for grid in range(1, 100):
        exe.set_kernel_node_params(node, grid=grid)
        run(exe, stream)
    gk.asarray(np.full(N, -1, np.float32))  # would take the memory, were it free
    run(exe, stream)
    assert np.array_equal(y.get(), np.full(N, 6))


def test_a_node_that_was_changed_cannot_change_once_it_is_gone(graph, x, y, stream):
    exe = graph.instantiate()
    first = graph.nodes[0]
    second = graph.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 7.0, N), deps=first)
    other = graph.instantiate()
    for one in (exe, other):
        one.set_kernel_node_params(first, args={"a": 2.0})
    graph.remove_node(first)
    for one in (exe, other):
        with pytest.raises(ValueError, match="or a removed one"):
            one.set_kernel_node_params(first, args={"a": 3.0})
    other.set_kernel_node_params(second, args={"a": 4.0})
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 2)
    graph.close()
    with pytest.raises(ValueError, match="expected a live graph"):
        other.set_kernel_node_params(second, args={"a": 5.0})
    run(other, stream)
    assert np.array_equal(y.get(), x.get() + 4)


def test_an_exec_is_updated_after_its_graph_is_closed(graph, x, y, stream):
    exe = graph.instantiate()
    graph.close()
    other = gk.Graph()
    other.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 2.0, N))
    assert exe.update(other)
    other.close()
    last = gk.Graph()
    last.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 3.0, N))
    assert exe.update(last)
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 3)
    copy = gk.Graph()
    copy.add_memcpy_node(y, x)
    assert exe.update(copy).result is gk.ExecUpdateStatus.NODE_TYPE_CHANGED


def test_an_address_takes_the_place_of_a_memset_array(runtime, stream):
    a, b = gk.zeros(N, np.int32), gk.zeros(N, np.int32)
    graph = gk.Graph()
    node = graph.add_memset_node(a, 1)
    exe = graph.instantiate()
    exe.set_memset_node_params(node, dst=b.ptr, value=100_000)
    run(exe, stream)
    assert b.get().tolist() == [100_000] * N
    assert not a.get().any()


def test_updating_with_another_cluster_is_refused(runtime, stream):
    seen = gk.zeros(4, np.int32)

    def make(cluster):
        graph = gk.Graph()
        graph.add_kernel_node(BLOCKS, 4, 32, (seen,), cluster=cluster)
        return graph

    first = make(2)
    exe = first.instantiate()
    report = exe.update(make(4))
    assert report.result is gk.ExecUpdateStatus.ATTRIBUTES_CHANGED
    assert report.kernel == "blocks"
    assert [item.what for item in report.differences] == ["attributes"]
    assert exe.update(make(2))
    run(exe, stream)
    assert seen.get().tolist() == [4032] * 4


def test_changes_of_two_threads_to_one_node_are_all_there(runtime, stream):
    seen, n = gk.zeros(64, np.int32), 300
    graph = gk.Graph()
    node = graph.add_kernel_node(NOTE, 1, 1, (seen, 0, 0))
    exe = graph.instantiate()

    def change(**what):
        for value in range(1, n + 1):
            exe.set_kernel_node_params(node, **{key: of(value) for key, of in what.items()})

    threads = [
        threading.Thread(target=change, kwargs={"args": lambda v: {"first": v}}),
        threading.Thread(target=change, kwargs={"args": lambda v: {"second": v}}),
        threading.Thread(target=change, kwargs={"grid": lambda v: 1 + v % 2}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(exe, stream)
    assert seen.get()[:3].tolist() == [n, n, 1]


def test_an_exec_that_another_thread_closes_is_refused_from_then_on(runtime, stream):
    counter = gk.zeros(1, np.int32)
    graph = gk.Graph()
    node = graph.add_kernel_node(INCREMENT, 1, 1, (counter, 1))
    exe = graph.instantiate()
    launched, refused = threading.Event(), []

    def use():
        for _ in range(100_000):
            try:
                exe.set_kernel_node_params(node, args={"by": 1})
                exe.launch(stream)
                stream.synchronize()
            except ValueError as error:
                refused.append(str(error))
                return
            launched.set()

    thread = threading.Thread(target=use)
    thread.start()
    assert launched.wait(timeout=20)
    exe.close()
    thread.join()
    assert refused == ["exec: expected a live one, came a closed one"]
    assert counter.get()[0] >= 1


def test_arguments_inside_of_a_child_graph_stay_those_that_were_set(x, y, stream):
    child = gk.Graph()
    child.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 1.0, N))
    graph = gk.Graph()
    holder = graph.add_child_graph_node(child)
    exe = graph.instantiate()
    inner = graph.child_graph(holder).nodes[0]
    target = gk.zeros(N)
    other = gk.Graph()
    other.add_kernel_node(ADD_SCALAR, 1, 32, (x, target, 8.0, N))
    exe.set_child_graph_node_params(holder, other)
    exe.set_kernel_node_params(inner, args={"a": 5.0})
    run(exe, stream)
    assert np.array_equal(target.get(), x.get() + 5)
    assert not y.get().any()


def test_a_child_graph_inside_of_a_child_graph_changes(x, y, stream):
    graph, middle, child, other = (gk.Graph() for _ in range(4))
    child.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 1.0, N))
    other.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 8.0, N))
    middle.add_child_graph_node(child)
    inside = graph.child_graph(graph.add_child_graph_node(middle))
    (holder,) = inside.nodes
    (kernel,) = inside.child_graph(holder).nodes
    exe = graph.instantiate()
    exe.set_kernel_node_params(kernel, args={"a": 3.0})
    exe.set_child_graph_node_params(holder, other)
    run(exe, stream)
    assert np.array_equal(y.get(), x.get() + 8)
    target = gk.zeros(N)
    exe.set_kernel_node_params(kernel, args={"y": target})  # the rest stays as other had it
    run(exe, stream)
    assert np.array_equal(target.get(), x.get() + 8)


def test_a_launcher_is_no_cycle(graph, stream):
    exe = graph.instantiate()
    go = exe.launcher(stream)
    exe.launch(stream)
    go()
    stream.synchronize()
    gc.disable()
    try:
        del exe, go
        assert "executable graph" not in gk.live_handles()
    finally:
        gc.enable()


def test_a_closed_stream_is_refused_also_when_it_was_launched_on(graph):
    stream = gk.Stream()
    exe = graph.instantiate()
    go = exe.launcher(stream)
    exe.launch(stream)
    stream.synchronize()
    stream.close()
    for launch in (go, lambda: exe.launch(stream)):
        with pytest.raises(ValueError, match="stream: expected a live one"):
            launch()


def test_an_update_by_a_shorter_graph_with_clusters_is_another_topology(runtime):
    seen = gk.zeros(8, np.int32)
    graph = gk.Graph()
    first = graph.add_kernel_node(BLOCKS, 4, 32, (seen,))
    graph.add_kernel_node(BLOCKS, 4, 32, (seen,), cluster=2, deps=first)
    exe = graph.instantiate()
    other = gk.Graph()
    other.add_kernel_node(BLOCKS, 4, 32, (seen,))
    assert exe.update(other).result is gk.ExecUpdateStatus.TOPOLOGY_CHANGED


def test_other_clusters_inside_of_a_child_graph_are_refused(runtime):
    seen = gk.zeros(8, np.int32)

    def outer(cluster):
        child = gk.Graph()
        child.add_kernel_node(BLOCKS, 4, 32, (seen,), cluster=cluster)
        graph = gk.Graph()
        graph.add_child_graph_node(child)
        return graph

    report = outer(2).instantiate().update(outer(4))
    assert report.result is gk.ExecUpdateStatus.ATTRIBUTES_CHANGED


def test_a_report_compares_with_what_the_exec_holds(runtime):
    seen = gk.zeros(8, np.int32)
    graph = gk.Graph()
    node = graph.add_kernel_node(BLOCKS, 4, 32, (seen,), cluster=2)
    exe = graph.instantiate()
    exe.set_kernel_node_params(node, block=64)
    other = gk.Graph()
    other.add_kernel_node(BLOCKS, 4, 32, (seen,), cluster=4)
    report = exe.update(other)
    changed = {item.what: (item.old, item.new) for item in report.differences}
    assert changed["block"] == ((64, 1, 1), (32, 1, 1))


def test_elements_of_another_size_are_refused_for_a_fill(runtime):
    graph = gk.Graph()
    node = graph.add_memset_node(gk.zeros(4), 1.0)
    with pytest.raises(ValueError, match="elements of 4 bytes"):
        graph.instantiate().set_memset_node_params(node, dst=gk.zeros(4, np.uint8))


def test_a_host_node_tells_what_it_raised(runtime, stream):
    def fail():
        raise RuntimeError("no")

    callback = gk.HostCallback(fail)
    graph = gk.Graph()
    graph.add_host_node(callback)
    run(graph.instantiate(), stream)
    assert str(callback.error) == "no"


def test_dependencies_may_add_nodes_of_their_own(x, y, stream):
    graph = gk.Graph()
    target = gk.zeros(N)
    graph.add_kernel_node(
        ADD_SCALAR,
        1,
        32,
        (x, target, 2.0, N),
        deps=(graph.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 1.0, N)) for _ in range(1)),
    )
    run(graph.instantiate(), stream)
    assert np.array_equal(y.get(), x.get() + 1)
    assert np.array_equal(target.get(), x.get() + 2)


def test_values_are_not_read_from_a_graph_that_has_lost_nodes(runtime, stream):
    graph = gk.Graph()
    x = gk.zeros(8)
    node = graph.add_kernel_node(ADD_SCALAR, 1, 32, (x, x, 1.0, 8))
    graph.add_kernel_node(ADD_SCALAR, 1, 32, (x, x, 2.0, 8), deps=node)
    exe, other = graph.instantiate(), graph.clone()
    exe.update(other)
    other.remove_node(other.nodes[0])
    with pytest.raises(ValueError, match=r"expected 2 nodes in the graph where .*, came 1 node"):
        exe.set_kernel_node_params(node, args={"a": 3.0})
