"""An exec moved to another graph, by nodes or whole, does what one made of that graph does."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, AXPY, INCREMENT

import graphkit as gk
from graphkit.c_signature import parse_signature
from graphkit.params import ArgumentBlock
from graphkit.retarget import Changes, ExecTarget, GraphValues, compare
from graphkit.runtime.protocol import KernelNodeParams, KernelSource
from graphkit.topology import topology_of

N = 64


class Setting:
    """Arrays, and a line of nodes of several kinds that tests change one thing of."""

    def __init__(self):
        self.x = gk.asarray(np.arange(N, dtype=np.float32))
        self.y, self.copied, self.filled = gk.zeros(N), gk.zeros(N), gk.zeros((4, 16))
        self.counter = gk.zeros(1, np.int32)
        self.called = []

    def graph(
        self,
        *,
        kernel=ADD_SCALAR,
        grid=2,
        shared_mem=0,
        x=None,
        a=1.0,
        nbytes=4 * N,
        rows=np.s_[:],
        value=0,
        call=None,
        event=None,
        by=1,
    ):
        call = call or self.called.clear
        event = event or self.event
        inner = gk.Graph()
        inner.add_kernel_node(INCREMENT, 1, 1, (self.counter, by))
        graph = gk.Graph()
        args = (self.x if x is None else x, self.y, a, N)
        last = graph.add_kernel_node(kernel, grid, 32, args, shared_mem=shared_mem)
        last = graph.add_memcpy_node(self.copied.ptr, self.y.ptr, nbytes=nbytes, deps=last)
        last = graph.add_memset_node(self.filled[rows], value, deps=last)
        last = graph.add_host_node(call, deps=last)
        last = graph.add_event_record_node(event, deps=last)
        graph.add_child_graph_node(inner, deps=last)
        return graph

    def state(self):
        arrays = self.y, self.copied, self.filled, self.counter
        return [array.get().tolist() for array in arrays]

    def run(self, exe, stream):
        for array in (self.y, self.copied, self.filled, self.counter):
            array.set(np.zeros(array.shape, array.dtype))
        exe.launch(stream)
        stream.synchronize()
        return self.state()


@pytest.fixture
def setting(runtime):
    made = Setting()
    made.event = gk.Event()
    # One function for all graphs, or each would call another.
    call = gk.HostCallback(made.called.clear)
    graph = made.graph
    made.graph = lambda **changes: graph(**{"call": call, **changes})
    return made


def changes_of(setting, old=None, **new):
    before = GraphValues(setting.graph(**(old or {})))
    return compare(before, GraphValues(setting.graph(**new)))


# --- what differs --------------------------------------------------------------------------------


def test_graphs_built_alike_do_not_differ(setting):
    graph = setting.graph()
    assert compare(GraphValues(graph), GraphValues(graph)) == Changes((), True)
    assert changes_of(setting) == Changes((), True)


@pytest.mark.parametrize(
    ("new", "place"),
    [
        ({"grid": 1}, 0),
        ({"shared_mem": 256}, 0),
        ({"a": 2.0}, 0),
        ({"kernel": AXPY}, 0),
        ({"nbytes": 16}, 1),
        ({"value": 7.0}, 2),
        ({"rows": np.s_[1:]}, 2),
        ({"call": lambda: None}, 3),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_what_differs_and_can_be_set(setting, new, place):
    assert changes_of(setting, **new) == Changes((place,), True)


def test_pointers_and_events_differ(setting):
    assert changes_of(setting, x=setting.copied) == Changes((0,), True)
    assert changes_of(setting, event=gk.Event()) == Changes((4,), True)


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ({}, {"by": 2}, 5),
        ({"rows": np.s_[:, 1:3]}, {"rows": np.s_[:, 1:4]}, 2),
        ({}, {"rows": np.s_[:, 1:3]}, 2),
    ],
    ids=str,
)
def test_what_differs_and_cannot_be_set(setting, old, new, place):
    assert changes_of(setting, old, **new) == Changes((place,), False)


def test_the_rows_of_a_fill_may_lie_elsewhere(setting):
    changes = changes_of(setting, {"rows": np.s_[:, 1:3]}, rows=np.s_[:, 2:4])
    assert changes == Changes((2,), True)


def test_copies_of_rows_cannot_be_set(runtime):
    array = gk.zeros((4, 8))

    def values(part):
        graph = gk.Graph()
        graph.add_memcpy_node(array[part], array[:, 6:8])
        return GraphValues(graph)

    first = values(np.s_[:, 0:2])
    assert compare(first, values(np.s_[:, 0:2])) == Changes((), True)
    assert compare(first, values(np.s_[:, 2:4])) == Changes((0,), False)


def test_copies_of_another_kind_cannot_be_set(setting):
    pinned = gk.empty_pinned(N, np.float32)
    graphs = gk.Graph(), gk.Graph()
    for graph, source in zip(graphs, (setting.x, pinned), strict=True):
        graph.add_memcpy_node(setting.y, source)
    assert compare(*map(GraphValues, graphs)) == Changes((0,), False)


def test_several_differ_in_order_and_some_are_skipped(setting):
    new = {"a": 2.0, "nbytes": 16, "value": 7.0, "by": 2}
    assert changes_of(setting, **new) == Changes((0, 1, 2, 5), False)
    old, other = GraphValues(setting.graph()), GraphValues(setting.graph(**new))
    assert compare(old, other, skip=(5, 0)) == Changes((1, 2), True)


def test_equal_changes_share_one_tuple(setting):
    first, second = (changes_of(setting, a=a, nbytes=16) for a in (2.0, 3.0))
    assert first.places is second.places


def test_graphs_of_other_topologies_are_not_compared(setting):
    empty = GraphValues(gk.Graph())
    with pytest.raises(ValueError, match=r"new: expected a graph of the same topology, 6 nodes"):
        compare(GraphValues(setting.graph()), empty)


def test_child_graphs_of_other_topologies_differ(runtime):
    inner = gk.Graph(), gk.Graph()
    inner[1].add_empty_node()
    graphs = gk.Graph(), gk.Graph()
    for graph, child in zip(graphs, inner, strict=True):
        graph.add_child_graph_node(child)
    assert compare(*map(GraphValues, graphs)) == Changes((0,), False)


# --- moving --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "new",
    [
        {"grid": 1},
        {"shared_mem": 256},
        {"a": 2.0},
        {"kernel": AXPY, "a": 3.0},
        {"nbytes": 16},
        {"value": 7.0},
        {"rows": np.s_[1:3], "value": 5.0},
        {"a": 4.0, "nbytes": 8, "value": 1.0},
    ],
    ids=str,
)
def test_an_exec_is_moved_by_nodes_and_back(setting, stream, new):
    graphs = setting.graph(), setting.graph(**new)
    assert topology_of(graphs[0]).unshareable is None
    first, second = map(GraphValues, graphs)
    expected = [setting.run(graph.instantiate(), stream) for graph in graphs]
    exe = graphs[0].instantiate()
    target = ExecTarget(exe)
    for _ in range(2):
        target.set_nodes(second, compare(first, second).places)
        assert setting.run(exe, stream) == expected[1]
        target.set_nodes(first, compare(second, first).places)
        assert setting.run(exe, stream) == expected[0]


def test_pointers_are_moved(setting, stream):
    graphs = setting.graph(), setting.graph(x=gk.asarray(np.full(N, 9, np.float32)))
    first, second = map(GraphValues, graphs)
    exe = graphs[0].instantiate()
    ExecTarget(exe).set_nodes(second, compare(first, second).places)
    assert setting.run(exe, stream)[0] == [10.0] * N


def test_host_functions_are_moved(setting, stream):
    seen = []
    graphs = setting.graph(), setting.graph(call=lambda: seen.append(1))
    first, second = map(GraphValues, graphs)
    exe = graphs[0].instantiate()
    setting.run(exe, stream)
    assert not seen
    ExecTarget(exe).set_nodes(second, compare(first, second).places)
    setting.run(exe, stream)
    assert seen == [1]


def test_events_to_record_are_moved(runtime, stream):
    gate, events, graphs = threading.Event(), [gk.Event(), gk.Event()], [gk.Graph(), gk.Graph()]
    wait = gk.HostCallback(lambda: gate.wait(30))
    for graph, event in zip(graphs, events, strict=True):
        graph.add_event_record_node(event, deps=graph.add_host_node(wait))
    first, second = map(GraphValues, graphs)
    assert compare(first, second) == Changes((1,), True)
    exe = graphs[0].instantiate()
    ExecTarget(exe).set_nodes(second, (1,))
    exe.launch(stream)
    try:
        assert [event.query() for event in events] == [True, False]
    finally:
        gate.set()
    stream.synchronize()
    assert events[1].query()


def test_events_to_wait_for_are_moved(runtime, stream):
    gate, order = threading.Event(), []
    events, graphs = [gk.Event(), gk.Event()], [gk.Graph(), gk.Graph()]
    launched = gk.HostCallback(lambda: order.append("launch"))
    for graph, event in zip(graphs, events, strict=True):
        graph.add_host_node(launched, deps=graph.add_event_wait_node(event))
    first, second = map(GraphValues, graphs)
    assert compare(first, second) == Changes((0,), True)
    exe = graphs[0].instantiate()
    ExecTarget(exe).set_nodes(second, (0,))
    side = gk.Stream()
    side.launch_host_func(lambda: (gate.wait(30), order.append("event")))
    events[1].record(side)
    exe.launch(stream)
    gate.set()
    stream.synchronize()
    side.synchronize()
    assert order == ["event", "launch"]


def test_nodes_are_paired_as_an_update_pairs_them(runtime, stream):
    """Two nodes that only their places tell apart: a whole update, then one of them by itself."""
    x, y = gk.zeros(N), gk.zeros((2, N))

    def graph(a, b):
        made = gk.Graph()
        first = made.add_kernel_node(ADD_SCALAR, 2, 32, (x, y[0], a, N))
        second = made.add_kernel_node(ADD_SCALAR, 2, 32, (x, y[1], b, N))
        made.add_empty_node(deps=[first, second])
        return made

    graphs = graph(1.0, 2.0), graph(3.0, 4.0), graph(5.0, 4.0)
    assert len({topology_of(made).key for made in graphs}) == 1
    values = list(map(GraphValues, graphs))
    exe = graphs[0].instantiate()
    target = ExecTarget(exe)
    assert target.update(graphs[1])
    changes = compare(values[1], values[2])
    assert changes == Changes((0,), True)
    target.set_nodes(values[2], changes.places)
    exe.launch(stream)
    stream.synchronize()
    assert y.get()[:, 0].tolist() == [5, 4]


def test_moves_do_not_disturb_launches_before_them(runtime, stream):
    x, rows = gk.zeros(N), gk.zeros((8, N))
    graphs = []
    for row in range(8):
        graphs.append(gk.Graph())
        graphs[-1].add_kernel_node(ADD_SCALAR, 2, 32, (x, rows[row], row + 1.0, N))
    values = list(map(GraphValues, graphs))
    exe = graphs[0].instantiate()
    target = ExecTarget(exe)
    gate = threading.Event()
    stream.launch_host_func(lambda: gate.wait(30))
    for row in (0, 3, 1, 2, 7, 6, 5, 4):
        target.set_nodes(values[row], (0,))
        exe.launch(stream)
    gate.set()
    stream.synchronize()
    assert rows.get()[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_an_exec_is_moved_whole_and_then_by_nodes(setting, stream):
    variants = [{}, {"by": 5, "a": 2.0}, {"by": 5, "a": 3.0, "nbytes": 8}]
    graphs = [setting.graph(**variant) for variant in variants]
    values = list(map(GraphValues, graphs))
    exe = graphs[0].instantiate()
    target = ExecTarget(exe)
    assert target.update(graphs[1])
    changes = compare(values[1], values[2])
    assert changes == Changes((0, 1), True)
    target.set_nodes(values[2], changes.places)
    assert setting.run(exe, stream) == setting.run(graphs[2].instantiate(), stream)


@pytest.mark.parametrize("way", ["kernel_params", "extra"])
def test_kernels_of_somebody_else_are_moved(runtime, setting, stream, way):
    layout = tuple((item.offset, item.size) for item in ADD_SCALAR.parameters)

    def twin(launch):
        x, y, a, n = launch.arguments
        count = int.from_bytes(n, "little")
        source = launch.memory(int.from_bytes(x, "little"), 4 * count, write=False)
        target = launch.memory(int.from_bytes(y, "little"), 4 * count, write=True)
        target.view(np.float32)[:] = source.view(np.float32) + np.frombuffer(a, np.float32)

    loaded = runtime.function_load(KernelSource(ADD_SCALAR.code, "add_scalar", (), layout, twin))

    def graph(a):
        signature = parse_signature("float* x, float* y, float a, int n")
        block = ArgumentBlock(signature, nbytes=24 if way == "extra" else 0)
        block.pack((setting.x, setting.y, a, N))
        made = gk.Graph()
        params = KernelNodeParams(
            loaded.handle, (2, 1, 1), (32, 1, 1), 0, block.kernel_params, block.extra
        )
        runtime.graph_add_kernel_node(made.ptr, [], params)
        return made

    graphs = [graph(a) for a in (1.0, 2.0, 1.0)]
    first, second, third = map(GraphValues, graphs)
    assert compare(first, third) == Changes((), True)
    assert compare(first, second) == Changes((0,), True)
    exe = graphs[0].instantiate()
    target = ExecTarget(exe)
    for values, a in ((second, 2), (first, 1)):
        target.set_nodes(values, (0,))
        exe.launch(stream)
        stream.synchronize()
        assert np.array_equal(setting.y.get(), setting.x.get() + a)


def test_a_kernel_without_parameters_is_moved(runtime, stream):
    nothing = gk.Kernel('extern "C" __global__ void nothing() {}', "nothing", twin=lambda _: None)
    graphs = gk.Graph(), gk.Graph()
    for grid, graph in enumerate(graphs, 1):
        graph.add_kernel_node(nothing, grid, 32, ())
    first, second = map(GraphValues, graphs)
    assert compare(first, second) == Changes((0,), True)
    exe = graphs[0].instantiate()
    ExecTarget(exe).set_nodes(second, (0,))
    exe.launch(stream)
    stream.synchronize()


def test_values_outlive_their_graph(setting, stream):
    source = setting.graph()
    graph = setting.graph(x=gk.asarray(np.full(N, 9, np.float32)), a=2.0)
    first, second = GraphValues(source), GraphValues(graph)
    exe = source.instantiate()
    target = ExecTarget(exe)
    places = compare(first, second).places
    graph.close()
    del graph
    gc.collect()
    for _ in range(2):
        target.set_nodes(second, places)
        assert setting.run(exe, stream)[0] == [11.0] * N


def test_values_are_those_of_the_time_of_reading(setting, stream):
    source, graph = setting.graph(), setting.graph(a=2.0)
    values = GraphValues(graph)
    other = setting.graph(a=9.0)
    params = graph.runtime.graph_kernel_node_get_params(other.nodes[0].ptr)
    graph.runtime.graph_kernel_node_set_params(graph.nodes[0].ptr, params)
    exe = source.instantiate()
    ExecTarget(exe).set_nodes(values, (0,))
    assert np.array_equal(setting.run(exe, stream)[0], setting.x.get() + 2)


def test_what_was_set_is_kept_until_it_is_forgotten(setting, stream):
    source = setting.graph()
    exe = source.instantiate()
    target = ExecTarget(exe)
    array = gk.asarray(np.full(N, 9, np.float32))
    kept = weakref.ref(array)
    values = GraphValues(setting.graph(x=array))
    del array
    target.set_nodes(values, (0,))
    again = values
    del values
    gc.collect()
    assert kept() is not None
    assert setting.run(exe, stream)[0] == [10.0] * N
    target.set_nodes(GraphValues(source), (0,))
    target.forget(again)
    target.forget(again)
    del again
    gc.collect()
    assert kept() is None


def test_calls_are_bound_once(setting, stream, monkeypatch):
    source = setting.graph()
    first, second = GraphValues(source), GraphValues(setting.graph(a=2.0))
    target = ExecTarget(source.instantiate())
    bound = []
    setter = source.runtime.kernel_nodes_setter

    def spy(*args):
        bound.append(args)
        return setter(*args)

    monkeypatch.setattr(source.runtime, "kernel_nodes_setter", spy)
    for _ in range(3):
        target.set_nodes(second, [0])
        target.set_nodes(first, (0, 1))
        target.set_nodes(first, (0, 2))
    assert len(bound) == 3


# --- what goes wrong -----------------------------------------------------------------------------


def test_an_error_in_the_middle_stops_and_an_update_heals(runtime, stream):
    arrays = [gk.zeros(N) for _ in range(3)]
    x = gk.zeros(N)
    pinned = gk.empty_pinned(N, np.float32)

    def graph(a, source):
        made = gk.Graph()
        last = made.add_kernel_node(ADD_SCALAR, 2, 32, (x, arrays[0], a, N))
        last = made.add_memcpy_node(arrays[1], source, deps=last)
        made.add_kernel_node(ADD_SCALAR, 2, 32, (x, arrays[2], a, N), deps=last)
        return made

    pinned[:] = 5
    old, new = graph(1.0, x), graph(2.0, pinned)
    exe = old.instantiate()
    target = ExecTarget(exe)

    def results():
        exe.launch(stream)
        stream.synchronize()
        return [array.get()[0] for array in arrays]

    with pytest.raises(gk.CudaError):
        target.set_nodes(GraphValues(new), (0, 1, 2))
    runtime.get_last_error()
    assert results() == [2, 0, 1]
    assert target.update(old)
    assert results() == [1, 0, 1]


@pytest.mark.parametrize("place", [1, 5])
def test_nodes_that_cannot_be_set_are_refused_before_any_is(setting, stream, place):
    source = setting.graph()
    exe = source.instantiate()
    other = gk.Graph()
    part = gk.zeros((4, 8))
    if place == 5:
        other = setting.graph(a=2.0, by=2)
    else:
        other.add_kernel_node(ADD_SCALAR, 2, 32, (setting.x, setting.y, 2.0, N))
        other.add_memcpy_node(part[:, :2], part[:, 2:4])
        for _ in range(4):
            other.add_empty_node()
    with pytest.raises(ValueError, match=r"places: expected nodes that CUDA sets one by one, came"):
        ExecTarget(exe).set_nodes(GraphValues(other), (0, place))
    assert np.array_equal(setting.run(exe, stream)[0], setting.x.get() + 1)


def test_values_and_places_must_fit(setting):
    source = setting.graph()
    target = ExecTarget(source.instantiate())
    with pytest.raises(ValueError, match=r"values: expected those of a graph of 6 nodes, came 0"):
        target.set_nodes(GraphValues(gk.Graph()), ())
    for places in ((-1,), (0, 6)):
        with pytest.raises(ValueError, match=r"places: expected 0 to 5, came"):
            target.set_nodes(GraphValues(source), places)


def test_no_places_are_nothing(setting, stream):
    source = setting.graph()
    exe = source.instantiate()
    ExecTarget(exe).set_nodes(GraphValues(setting.graph(a=2.0)), ())
    assert np.array_equal(setting.run(exe, stream)[0], setting.x.get() + 1)


def test_a_closed_exec_or_source_is_refused(setting):
    source = setting.graph()
    values = GraphValues(setting.graph(a=2.0))
    closed, left = source.instantiate(), source.instantiate()
    targets = [ExecTarget(closed), ExecTarget(left)]
    for target in targets:
        target.set_nodes(values, (0,))
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        targets[0].set_nodes(values, (0,))
    source.close()
    with pytest.raises(ValueError, match="closed"):
        targets[1].set_nodes(values, (0,))
