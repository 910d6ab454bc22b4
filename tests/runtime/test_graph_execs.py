"""Executable graphs at the seam: snapshots, launches, changes of single nodes, whole updates."""

import pytest

from graphkit.errors import CudaError
from graphkit.runtime.protocol import (
    EdgeData,
    ExecUpdateStatus,
    InstantiateFlags,
    LaunchAttribute,
    LaunchAttributeID,
    MemcpyKind,
    MemcpyNodeParams,
    MemsetNodeParams,
)

N = 64


@pytest.fixture
def graph(made):
    return made.graph()


def line(runtime, made, x, values, graph=None):
    """Make a graph that fills x with one value after the other."""
    graph = made.graph() if graph is None else graph
    nodes = []
    for value in values:
        nodes.append(runtime.graph_add_kernel_node(graph, nodes[-1:], made.fill(x, value)))
    return graph, nodes


class Cell:
    def __init__(self, value):
        self.value = value


# --- launching


def test_an_exec_is_a_snapshot(runtime, made, graph):
    x = made.device(0.0)
    node = runtime.graph_add_kernel_node(graph, [], made.fill(x, 1.0))
    exe = made.exec(graph)
    runtime.graph_add_kernel_node(graph, [node], made.fill(x, 2.0))
    made.run(exe)
    assert made.value(x) == 1


def test_an_exec_outlives_its_graph(runtime, made):
    x = made.device(0.0)
    graph, _ = line(runtime, made, x, [1.0, 2.0])
    exe = made.exec(graph)
    made.destroy("graph", graph)
    made.run(exe)
    assert made.value(x) == 2


def test_an_empty_graph_launches(runtime, made, graph):
    made.run(made.exec(graph))


def test_launches_of_one_stream_run_in_order(runtime, made, graph):
    x, stream = made.device(1.0), made.stream()
    runtime.graph_add_kernel_node(graph, [], made.axpy(x, x))
    exe = made.exec(graph)
    for _ in range(5):
        runtime.graph_launch(exe, stream)
    runtime.stream_synchronize(stream)
    assert made.value(x) == 32


def test_launches_of_one_exec_never_overlap(runtime, made, graph):
    x = made.device(1.0)
    runtime.graph_add_kernel_node(graph, [], made.axpy(x, x))
    exe = made.exec(graph)
    streams = [made.stream() for _ in range(4)]
    for stream in streams:
        runtime.graph_launch(exe, stream)
    for stream in streams:
        runtime.stream_synchronize(stream)
    assert made.value(x) == 16


def test_an_exec_waits_on_another_stream_for_itself(runtime, made, graph):
    first, second = made.stream(), made.stream()
    runtime.graph_add_kernel_node(graph, [], made.nothing())
    exe = made.exec(graph)
    gate = made.gate(first)
    runtime.graph_launch(exe, first)
    runtime.graph_launch(exe, second)
    assert runtime.stream_query(second) is False
    gate.set()
    runtime.stream_synchronize(second)


def test_a_launch_is_ordered_with_its_stream(runtime, made, graph):
    x, y, stream = made.device(0.0), made.device(0.0), made.stream()
    runtime.graph_add_kernel_node(graph, [], made.axpy(y, x))
    exe = made.exec(graph)
    made.launch(made.fill(x, 1.0), stream)
    runtime.graph_launch(exe, stream)
    made.launch(made.axpy(y, y), stream)
    runtime.stream_synchronize(stream)
    assert made.value(y) == 2


def test_a_launch_on_the_legacy_stream(runtime, made):
    x = made.device(0.0)
    graph, _ = line(runtime, made, x, [1.0])
    runtime.graph_launch(made.exec(graph), 0)
    assert made.value(x) == 1


def test_a_diamond(runtime, made, graph):
    a, b, c = (made.device(0.0) for _ in range(3))
    top = runtime.graph_add_kernel_node(graph, [], made.fill(a, 2.0))
    left = runtime.graph_add_kernel_node(graph, [top], made.axpy(b, a))
    right = runtime.graph_add_kernel_node(graph, [top], made.axpy(c, a))
    runtime.graph_add_kernel_node(graph, [left, right], made.axpy(b, c))
    made.run(made.exec(graph))
    assert made.value(b) == 4


def test_edges_against_the_order_of_insertion(runtime, made, graph):
    x, y = made.device(0.0), made.device(0.0)
    last = runtime.graph_add_kernel_node(graph, [], made.axpy(y, x))
    first = runtime.graph_add_kernel_node(graph, [], made.fill(x, 1.0))
    made.connect(graph, first, last)
    made.run(made.exec(graph))
    assert made.value(y) == 1


def test_a_host_node(runtime, made, graph):
    seen, x = [], made.device(0.0)
    target, out = made.pinned()
    a = runtime.graph_add_kernel_node(graph, [], made.fill(x, 7.0))
    b = runtime.graph_add_memcpy_node(graph, [a], made.copy(target, x))
    runtime.graph_add_host_node(graph, [b], made.host(lambda: seen.append(float(out[3]))))
    exe = made.exec(graph)
    made.run(exe)
    made.run(exe)
    assert seen == [7.0, 7.0]


def test_an_event_record_node_releases_a_stream(runtime, made, graph):
    x, y, event = made.device(0.0), made.device(0.0), made.event()
    first, second = made.stream(), made.stream()
    a = runtime.graph_add_kernel_node(graph, [], made.fill(x, 1.0))
    runtime.graph_add_event_record_node(graph, [a], event)
    exe = made.exec(graph)
    runtime.graph_launch(exe, first)
    runtime.stream_wait_event(second, event)
    made.launch(made.axpy(y, x), second)
    runtime.stream_synchronize(second)
    assert made.value(y) == 1
    runtime.event_synchronize(event)


def test_an_event_wait_node_waits_for_a_stream(runtime, made, graph):
    x, y, event = made.device(0.0), made.device(0.0), made.event()
    first, second = made.stream(), made.stream()
    a = runtime.graph_add_event_wait_node(graph, [], event)
    runtime.graph_add_kernel_node(graph, [a], made.axpy(y, x))
    exe = made.exec(graph)
    gate = made.gate(first)
    made.launch(made.fill(x, 1.0), first)
    runtime.event_record(event, first)
    runtime.graph_launch(exe, second)
    assert runtime.stream_query(second) is False
    gate.set()
    runtime.stream_synchronize(second)
    assert made.value(y) == 1


def test_an_event_wait_node_whose_event_was_never_recorded(runtime, made, graph):
    runtime.graph_add_event_wait_node(graph, [], made.event())
    made.run(made.exec(graph))


def test_upload_and_the_flags_of_instantiate(runtime, made):
    x, stream = made.device(0.0), made.stream()
    graph, _ = line(runtime, made, x, [3.0])
    for flags in (
        InstantiateFlags.UPLOAD,
        InstantiateFlags.USE_NODE_PRIORITY,
        InstantiateFlags.AUTO_FREE_ON_LAUNCH,
    ):
        exe = runtime.graph_instantiate_with_params(graph, flags, stream)
        made.own("exec", exe, runtime.graph_exec_destroy)
        runtime.graph_upload(exe, stream)
        runtime.graph_launch(exe, stream)
        runtime.stream_synchronize(stream)
    assert made.value(x) == 3


def test_host_nodes_cannot_be_launched_from_the_device(runtime, made, graph):
    runtime.graph_add_host_node(graph, [], made.host(lambda: None))
    assert made.code(made.exec, graph, InstantiateFlags.DEVICE_LAUNCH) == 1


def test_the_launcher_is_a_launch(runtime, made, graph):
    x, stream = made.device(1.0), made.stream()
    runtime.graph_add_kernel_node(graph, [], made.axpy(x, x))
    cell = Cell(made.exec(graph))
    go = runtime.graph_launcher(cell, stream)
    go()
    go()
    runtime.stream_synchronize(stream)
    assert made.value(x) == 4
    cell.value = 0
    with pytest.raises(ValueError):
        go()


def test_an_exec_may_be_destroyed_after_its_launch(runtime, made):
    x, stream = made.device(0.0), made.stream()
    graph, _ = line(runtime, made, x, [1.0, 5.0])
    exe = made.exec(graph)
    runtime.graph_launch(exe, stream)
    made.destroy("exec", exe)
    runtime.stream_synchronize(stream)
    assert made.value(x) == 5


def test_a_graph_shape_reaches_its_kernel(runtime, made, graph):
    x = made.device(nbytes=24)
    runtime.graph_add_kernel_node(graph, [], made.shape(x, grid=(2, 3, 4), block=(8, 4, 2)))
    made.run(made.exec(graph))
    assert made.read(x, 6, "int32") == [2, 3, 4, 8, 4, 2]


# --- changing single nodes


def test_setting_the_parameters_of_a_kernel_node(runtime, made):
    x, y = made.device(0.0), made.device(0.0)
    graph, (node,) = line(runtime, made, x, [1.0])
    exe = made.exec(graph)
    runtime.graph_exec_kernel_node_set_params(exe, node, made.fill(y, 2.0))
    made.run(exe)
    assert (made.value(x), made.value(y)) == (0, 2)
    # The graph holds what it held.
    made.run(made.exec(graph))
    assert made.value(x) == 1


def test_a_change_reaches_later_launches_only(runtime, made):
    x, y, stream = made.device(0.0), made.device(0.0), made.stream()
    graph, (node,) = line(runtime, made, x, [1.0])
    exe = made.exec(graph)
    gate = made.gate(stream)
    runtime.graph_launch(exe, stream)
    runtime.graph_exec_kernel_node_set_params(exe, node, made.fill(y, 2.0))
    runtime.graph_launch(exe, stream)
    gate.set()
    runtime.stream_synchronize(stream)
    assert (made.value(x), made.value(y)) == (1, 2)


def test_grid_block_and_function_may_change(runtime, made):
    x = made.device(0.0)
    graph, (node,) = line(runtime, made, x, [1.0])
    exe = made.exec(graph)
    params = made.shape(x, grid=(5, 1, 1), block=(64, 2, 1), shared_mem=256)
    runtime.graph_exec_kernel_node_set_params(exe, node, params)
    made.run(exe)
    assert made.read(x, 6, "int32") == [5, 1, 1, 64, 2, 1]


def test_a_refused_change_changes_nothing(runtime, made):
    x = made.device(0.0)
    graph, (node,) = line(runtime, made, x, [1.0])
    exe = made.exec(graph)
    for bad in (
        {"grid": (0, 1, 1)},
        {"block": (2048, 1, 1)},
        {"shared_mem": 1 << 20},
        {"kernel_params": 0},
    ):
        params = made.fill(x, 2.0)._replace(**bad)
        assert made.code(runtime.graph_exec_kernel_node_set_params, exe, node, params) == 1, bad
    made.run(exe)
    assert made.value(x) == 1


def test_a_node_of_another_graph_is_refused(runtime, made):
    x = made.device(0.0)
    graph, _ = line(runtime, made, x, [1.0])
    _, (other,) = line(runtime, made, x, [1.0])
    exe = made.exec(graph)
    params = made.fill(x, 2.0)
    assert made.code(runtime.graph_exec_kernel_node_set_params, exe, other, params) == 1
    clone = made.graph(runtime.graph_clone(graph))
    (copy,) = runtime.graph_get_nodes(clone)
    assert made.code(runtime.graph_exec_kernel_node_set_params, exe, copy, params) == 1


def test_a_node_added_after_instantiate_is_refused(runtime, made):
    x = made.device(0.0)
    graph, _ = line(runtime, made, x, [1.0])
    exe = made.exec(graph)
    late = runtime.graph_add_kernel_node(graph, [], made.nothing())
    assert made.code(runtime.graph_exec_kernel_node_set_params, exe, late, made.nothing()) == 1


def test_two_execs_of_one_graph_change_apart(runtime, made):
    x = made.device(0.0)
    graph, (node,) = line(runtime, made, x, [1.0])
    first, second = made.exec(graph), made.exec(graph)
    runtime.graph_exec_kernel_node_set_params(first, node, made.fill(x, 2.0))
    made.run(second)
    assert made.value(x) == 1
    made.run(first)
    assert made.value(x) == 2


def test_the_kernel_node_setter_reads_the_values_afresh(runtime, made):
    x = made.device(0.0)
    graph, (node,) = line(runtime, made, x, [1.0])
    exe, params = made.exec(graph), made.fill(x, 2.0)
    setter = runtime.kernel_node_setter(exe, node, params)
    for value in (3.0, 4.0):
        made.argument(params, 1).value = value
        setter()
        made.run(exe)
        assert made.value(x) == value


def test_the_kernel_nodes_setter_sets_nodes_in_order_until_one_is_refused(runtime, made):
    x = made.device(0.0)
    graph, nodes = line(runtime, made, x, [1.0, 2.0])
    exe = made.exec(graph)
    structs = [runtime.kernel_node_struct(made.fill(x, value)) for value in (5.0, 7.0)]
    runtime.kernel_nodes_setter(exe, list(zip(nodes, structs, strict=True)))()
    made.run(exe)
    assert made.value(x) == 7
    empty = runtime.kernel_node_struct(made.fill(x, 9.0, grid=(0, 1, 1)))
    line_of = [(nodes[1], structs[0]), (nodes[0], empty)]
    with pytest.raises(CudaError):
        runtime.kernel_nodes_setter(exe, line_of)()
    made.run(exe)
    assert made.value(x) == 5


def test_setting_the_parameters_of_a_copy(runtime, made, graph):
    x, y, z = made.device(1.0), made.device(2.0), made.device(0.0)
    node = runtime.graph_add_memcpy_node(graph, [], made.copy(z, x))
    exe = made.exec(graph)
    runtime.graph_exec_memcpy_node_set_params(exe, node, made.copy(z, y, 4 * N - 4))
    made.run(exe)
    assert made.read(z) == [2.0] * (N - 1) + [0.0]


@pytest.mark.parametrize("moves_dst", [False, True])
def test_the_memcpy_node_setter_moves_one_end(runtime, made, graph, moves_dst):
    x, y, z = made.device(1.0), made.device(2.0), made.device(0.0)
    params = made.copy(z, x)
    node = runtime.graph_add_memcpy_node(graph, [], params)
    exe = made.exec(graph)
    setter = runtime.memcpy_node_setter(exe, node, params, moves_dst=moves_dst)
    setter(y)
    made.run(exe)
    assert (made.value(y), made.value(z)) == ((1, 0) if moves_dst else (2, 2))
    nothing = made.copy(z, x, 0)
    refused = runtime.memcpy_node_setter(exe, node, nothing, moves_dst=moves_dst)
    assert made.code(refused, z if moves_dst else x) == 1
    setter(z if moves_dst else x)
    made.run(exe)
    assert made.value(z) == 1


def test_what_a_copy_cannot_become(runtime, made, graph):
    x, y = made.device(1.0), made.device(2.0)
    pinned, _ = made.pinned()
    node = runtime.graph_add_memcpy_node(graph, [], made.copy(y, x))
    exe = made.exec(graph)
    changes = {
        "nothing": made.copy(y, x, 0),
        "to the host": made.copy(pinned, x, kind=MemcpyKind.DEVICE_TO_HOST),
        "2-D": MemcpyNodeParams(y, 16, 2, x, 16, 2, 8, 2, 1),
    }
    codes = {
        name: made.code(runtime.graph_exec_memcpy_node_set_params, exe, node, params)
        for name, params in changes.items()
    }
    assert codes == dict.fromkeys(changes, 1)
    made.run(exe)
    assert made.value(y) == 1


def test_a_copy_of_kind_default_may_go_elsewhere(runtime, made, graph):
    x, y = made.device(1.0), made.device(2.0)
    pinned, view = made.pinned()
    node = runtime.graph_add_memcpy_node(graph, [], made.copy(y, x))
    exe = made.exec(graph)
    runtime.graph_exec_memcpy_node_set_params(exe, node, made.copy(pinned, x))
    made.run(exe)
    assert set(view) == {1.0}
    assert made.value(y) == 2


def test_a_copy_of_more_dimensions_cannot_change(runtime, made, graph):
    x, y, z = made.device(1.0), made.device(2.0), made.device(0.0)
    params = MemcpyNodeParams(z, 16, 2, x, 16, 2, 8, 2, 1)
    node = runtime.graph_add_memcpy_node(graph, [], params)
    exe = made.exec(graph)
    set_params = runtime.graph_exec_memcpy_node_set_params
    set_params(exe, node, params)
    codes = [
        made.code(set_params, exe, node, params._replace(src=y)),
        made.code(set_params, exe, node, params._replace(src=y, height=3, src_height=3)),
        made.code(set_params, exe, node, made.copy(z, y)),
    ]
    assert codes == [1, 1, 1]


def test_setting_the_parameters_of_a_fill(runtime, made, graph):
    x, y = made.device(1.0), made.device(1.0)
    node = runtime.graph_add_memset_node(graph, [], made.memset(x, 0))
    exe = made.exec(graph)
    runtime.graph_exec_memset_node_set_params(exe, node, made.memset(y, 0x40000000, N - 1))
    made.run(exe)
    assert made.value(x) == 1
    assert made.read(y) == [2.0] * (N - 1) + [1.0]


def test_what_a_fill_cannot_become(runtime, made, graph):
    x = made.device(1.0)
    flat = runtime.graph_add_memset_node(graph, [], made.memset(x, 0))
    rows = runtime.graph_add_memset_node(graph, [flat], MemsetNodeParams(x, 16, 0, 4, 2, 2))
    exe = made.exec(graph)
    set_params = runtime.graph_exec_memset_node_set_params
    codes = [
        made.code(set_params, exe, flat, MemsetNodeParams(x, 16, 0, 4, 2, 2)),
        made.code(set_params, exe, flat, MemsetNodeParams(x, 0, 0, 1, 16, 1)),
        made.code(set_params, exe, rows, MemsetNodeParams(x, 16, 1, 4, 2, 2)),
        made.code(set_params, exe, rows, MemsetNodeParams(x, 16, 0, 4, 2, 3)),
        made.code(set_params, exe, rows, MemsetNodeParams(x, 16, 0, 4, 1, 2)),
        made.code(set_params, exe, rows, MemsetNodeParams(x, 16, 0, 2, 2, 2)),
    ]
    assert codes == [1, 0, 0, 1, 1, 1]


def test_setting_a_host_function(runtime, made, graph):
    seen = []
    node = runtime.graph_add_host_node(graph, [], made.host(lambda: seen.append("old")))
    exe = made.exec(graph)
    new = made.host(lambda: seen.append("new"))
    runtime.graph_exec_host_node_set_params(exe, node, new)
    made.run(exe)
    assert seen == ["new"]


def test_setting_the_events_of_event_nodes(runtime, made, graph):
    x, y = made.device(0.0), made.device(0.0)
    old, new, gate_event = made.event(), made.event(), made.event()
    first, second = made.stream(), made.stream()
    wait = runtime.graph_add_event_wait_node(graph, [], old)
    fill = runtime.graph_add_kernel_node(graph, [wait], made.axpy(y, x))
    record = runtime.graph_add_event_record_node(graph, [fill], old)
    exe = made.exec(graph)
    runtime.graph_exec_event_wait_node_set_event(exe, wait, gate_event)
    runtime.graph_exec_event_record_node_set_event(exe, record, new)
    gate = made.gate(first)
    made.launch(made.fill(x, 1.0), first)
    runtime.event_record(gate_event, first)
    runtime.graph_launch(exe, second)
    assert runtime.event_query(new) is False
    gate.set()
    runtime.event_synchronize(new)
    assert made.value(y) == 1
    assert runtime.event_query(old) is True


def test_setting_a_child_graph(runtime, made, graph):
    x = made.device(0.0)
    holder = runtime.graph_add_child_graph_node(graph, [], line(runtime, made, x, [1.0, 2.0])[0])
    exe = made.exec(graph)
    new, _ = line(runtime, made, x, [3.0, 4.0])
    runtime.graph_exec_child_graph_node_set_params(exe, holder, new)
    made.run(exe)
    assert made.value(x) == 4
    shorter, _ = line(runtime, made, x, [5.0])
    code = made.code(runtime.graph_exec_child_graph_node_set_params, exe, holder, shorter)
    assert code == 910
    made.run(exe)
    assert made.value(x) == 4


def test_setting_a_node_inside_of_a_child_graph(runtime, made, graph):
    x = made.device(0.0)
    child, _ = line(runtime, made, x, [1.0])
    holder = runtime.graph_add_child_graph_node(graph, [], child)
    (inner,) = runtime.graph_get_nodes(runtime.graph_child_graph_node_get_graph(holder))
    exe = made.exec(graph)
    code = made.code(runtime.graph_exec_kernel_node_set_params, exe, inner, made.fill(x, 8.0))
    made.run(exe)
    assert (code, made.value(x)) == (0, 8)


# --- switching nodes off


def test_a_disabled_node_does_not_run(runtime, made):
    x = made.device(0.0)
    graph, (_, second) = line(runtime, made, x, [1.0, 2.0])
    exe = made.exec(graph)
    assert runtime.graph_node_get_enabled(exe, second) is True
    runtime.graph_node_set_enabled(exe, second, False)
    assert runtime.graph_node_get_enabled(exe, second) is False
    made.run(exe)
    assert made.value(x) == 1
    runtime.graph_node_set_enabled(exe, second, True)
    made.run(exe)
    assert made.value(x) == 2


def test_a_disabled_node_still_orders(runtime, made, graph):
    x, y = made.device(0.0), made.device(0.0)
    a = runtime.graph_add_kernel_node(graph, [], made.fill(x, 1.0))
    b = runtime.graph_add_kernel_node(graph, [a], made.nothing())
    runtime.graph_add_kernel_node(graph, [b], made.axpy(y, x))
    exe = made.exec(graph)
    runtime.graph_node_set_enabled(exe, b, False)
    made.run(exe)
    assert made.value(y) == 1


def test_copies_and_fills_can_be_switched_off(runtime, made, graph):
    x, y = made.device(1.0), made.device(0.0)
    copy = runtime.graph_add_memcpy_node(graph, [], made.copy(y, x))
    fill = runtime.graph_add_memset_node(graph, [copy], made.memset(x))
    exe = made.exec(graph)
    for node in (copy, fill):
        runtime.graph_node_set_enabled(exe, node, False)
    made.run(exe)
    assert (made.value(x), made.value(y)) == (1, 0)


def test_other_nodes_cannot_be_switched_off(runtime, made, graph):
    nodes = [
        runtime.graph_add_empty_node(graph, []),
        runtime.graph_add_host_node(graph, [], made.host(lambda: None)),
        runtime.graph_add_event_record_node(graph, [], made.event()),
        runtime.graph_add_child_graph_node(graph, [], made.graph()),
    ]
    exe = made.exec(graph)
    codes = [made.code(runtime.graph_node_set_enabled, exe, node, False) for node in nodes]
    assert codes == [1, 1, 1, 1]


def test_setting_parameters_of_a_disabled_node(runtime, made):
    x = made.device(0.0)
    graph, (node,) = line(runtime, made, x, [1.0])
    exe = made.exec(graph)
    runtime.graph_node_set_enabled(exe, node, False)
    runtime.graph_exec_kernel_node_set_params(exe, node, made.fill(x, 2.0))
    made.run(exe)
    assert made.value(x) == 0
    runtime.graph_node_set_enabled(exe, node, True)
    made.run(exe)
    assert made.value(x) == 2


# --- whole updates


def test_an_update_takes_all_parameters(runtime, made):
    x = made.device(0.0)
    graph, _ = line(runtime, made, x, [1.0, 2.0])
    exe = made.exec(graph)
    other, _ = line(runtime, made, x, [3.0, 4.0])
    assert runtime.graph_exec_update(exe, other) == (ExecUpdateStatus.SUCCESS, 0, 0)
    made.run(exe)
    assert made.value(x) == 4


def test_an_update_wipes_changes_of_single_nodes(runtime, made):
    x = made.device(0.0)
    graph, (_, last) = line(runtime, made, x, [1.0, 2.0])
    exe = made.exec(graph)
    runtime.graph_exec_kernel_node_set_params(exe, last, made.fill(x, 9.0))
    runtime.graph_exec_update(exe, graph)
    made.run(exe)
    assert made.value(x) == 2


def test_an_update_leaves_what_is_switched_off(runtime, made):
    x = made.device(0.0)
    graph, (_, last) = line(runtime, made, x, [1.0, 2.0])
    exe = made.exec(graph)
    runtime.graph_node_set_enabled(exe, last, False)
    other, _ = line(runtime, made, x, [3.0, 4.0])
    runtime.graph_exec_update(exe, other)
    assert runtime.graph_node_get_enabled(exe, last) is False
    made.run(exe)
    assert made.value(x) == 3


def test_single_nodes_change_after_an_update(runtime, made):
    x = made.device(0.0)
    graph, (node,) = line(runtime, made, x, [1.0])
    exe = made.exec(graph)
    other, _ = line(runtime, made, x, [3.0])
    runtime.graph_exec_update(exe, other)
    runtime.graph_exec_kernel_node_set_params(exe, node, made.fill(x, 5.0))
    made.run(exe)
    assert made.value(x) == 5


def test_an_update_reaches_later_launches_only(runtime, made):
    x, y, stream = made.device(0.0), made.device(0.0), made.stream()
    graph, _ = line(runtime, made, x, [1.0])
    exe = made.exec(graph)
    gate = made.gate(stream)
    runtime.graph_launch(exe, stream)
    runtime.graph_exec_update(exe, line(runtime, made, y, [2.0])[0])
    runtime.graph_launch(exe, stream)
    gate.set()
    runtime.stream_synchronize(stream)
    assert (made.value(x), made.value(y)) == (1, 2)


def refusal(runtime, made, exe, other):
    """Update; return the result, and the places of the nodes it names in the new graph."""
    report = runtime.graph_exec_update(exe, other)
    assert runtime.get_last_error() == 0
    nodes = runtime.graph_get_nodes(other)
    place = lambda node: nodes.index(node) if node in nodes else None  # noqa: E731
    return report.result.name, place(report.error_node), place(report.error_from_node)


def test_updates_that_are_refused_change_nothing(runtime, made):
    x = made.device(0.0)
    graph, _ = line(runtime, made, x, [1.0, 2.0])
    exe = made.exec(graph)
    other, _ = line(runtime, made, x, [3.0, 4.0, 5.0])
    assert refusal(runtime, made, exe, other)[0] == "TOPOLOGY_CHANGED"
    made.run(exe)
    assert made.value(x) == 2


def test_an_update_by_a_graph_with_other_edges(runtime, made, graph):
    def make(edges):
        made_graph = made.graph()
        nodes = [runtime.graph_add_kernel_node(made_graph, [], made.nothing()) for _ in range(3)]
        for a, b in edges:
            made.connect(made_graph, nodes[a], nodes[b])
        return made_graph

    exe = made.exec(make([(0, 1), (1, 2)]))
    seen = [
        refusal(runtime, made, exe, make(edges))
        for edges in ([(0, 1)], [(0, 1), (0, 2)], [(0, 1), (1, 2), (0, 2)], [], [(1, 2), (0, 1)])
    ]
    changed = "TOPOLOGY_CHANGED"
    assert seen == [
        (changed, 1, None),
        (changed, 1, None),
        (changed, 2, None),
        (changed, 1, None),
        ("SUCCESS", None, None),
    ]


def test_an_update_pairs_nodes_by_insertion(runtime, made):
    x = made.device(0.0)

    def make(fill_first):
        g = made.graph()
        for fill in (fill_first, not fill_first):
            if fill:
                runtime.graph_add_memset_node(g, [], made.memset(x))
            else:
                runtime.graph_add_kernel_node(g, [], made.nothing())
        return g

    exe = made.exec(make(False))
    # Both differ; CUDA names the last.
    assert refusal(runtime, made, exe, make(True)) == ("NODE_TYPE_CHANGED", 1, None)


def test_an_update_with_another_order_of_dependencies(runtime, made):
    def make(order):
        g = made.graph()
        a = runtime.graph_add_kernel_node(g, [], made.nothing())
        b = runtime.graph_add_kernel_node(g, [], made.shape(x))
        runtime.graph_add_kernel_node(g, [a, b] if order else [b, a], made.nothing())
        return g

    x = made.device(0.0)
    exe = made.exec(make(True))
    assert refusal(runtime, made, exe, make(False)) == ("SUCCESS", None, None)


def test_an_update_by_nodes_of_another_type(runtime, made, graph):
    x = made.device(0.0)
    a = runtime.graph_add_kernel_node(graph, [], made.nothing())
    runtime.graph_add_kernel_node(graph, [a], made.nothing())
    exe = made.exec(graph)
    other = made.graph()
    a = runtime.graph_add_kernel_node(other, [], made.nothing())
    runtime.graph_add_memset_node(other, [a], made.memset(x))
    assert refusal(runtime, made, exe, other) == ("NODE_TYPE_CHANGED", 1, None)


def test_an_update_may_change_the_function(runtime, made):
    x = made.device(0.0)
    graph, _ = line(runtime, made, x, [1.0])
    exe, other = made.exec(graph), made.graph()
    runtime.graph_add_kernel_node(other, [], made.shape(x, grid=(7, 1, 1)))
    assert refusal(runtime, made, exe, other)[0] == "SUCCESS"
    made.run(exe)
    assert made.read(x, 1, "int32") == [7]


def test_an_update_by_copies_and_fills_that_cannot_change(runtime, made):
    x, y = made.device(0.0), made.device(0.0)
    pinned, _ = made.pinned()

    def copy(params):
        g = made.graph()
        runtime.graph_add_memcpy_node(g, [], params)
        return g

    def fill(params):
        g = made.graph()
        runtime.graph_add_memset_node(g, [], params)
        return g

    flat, flat_fill = made.exec(copy(made.copy(y, x))), made.exec(fill(made.memset(x)))
    rows = MemcpyNodeParams(y, 16, 2, x, 16, 2, 8, 2, 1)
    square = made.exec(copy(rows))
    seen = {
        "1-D": refusal(runtime, made, flat, copy(made.copy(x, y, 64)))[0],
        "to the host": refusal(runtime, made, flat, copy(made.copy(pinned, x)))[0],
        "fewer": refusal(runtime, made, flat_fill, fill(made.memset(y, 3, 5)))[0],
        "same": refusal(runtime, made, square, copy(rows))[0],
    }
    assert seen == dict.fromkeys(seen, "SUCCESS")
    seen = {
        "2-D": refusal(runtime, made, flat, copy(rows))[0],
        "pinned": refusal(runtime, made, square, copy(rows._replace(src=pinned)))[0],
        "moved": refusal(runtime, made, square, copy(rows._replace(src=x + 64)))[0],
        "rows": refusal(runtime, made, flat_fill, fill(MemsetNodeParams(x, 16, 0, 4, 2, 2)))[0],
    }
    assert seen == dict.fromkeys(seen, "PARAMETERS_CHANGED")


def test_an_update_by_another_cluster(runtime, made):
    cluster = LaunchAttribute(LaunchAttributeID.CLUSTER_DIMENSION, (2, 1, 1))

    def make(clustered):
        g = made.graph()
        node = runtime.graph_add_kernel_node(g, [], made.nothing(grid=(4, 1, 1)))
        if clustered:
            runtime.graph_kernel_node_set_attribute(node, cluster)
        return g

    # The exec keeps the cluster it was made with, and CUDA does not say so.
    for before in (False, True):
        report = refusal(runtime, made, made.exec(make(before)), make(not before))
        assert report == ("SUCCESS", None, None)


def test_an_update_by_another_priority(runtime, made):
    def make(priority):
        g = made.graph()
        node = runtime.graph_add_kernel_node(g, [], made.nothing())
        attribute = LaunchAttribute(LaunchAttributeID.PRIORITY, (priority,))
        runtime.graph_kernel_node_set_attribute(node, attribute)
        return g

    assert refusal(runtime, made, made.exec(make(0)), make(-2)) == ("SUCCESS", None, None)


def test_an_update_by_other_edge_data(runtime, made):
    def make(data):
        g = made.graph()
        a, b = (runtime.graph_add_kernel_node(g, [], made.nothing()) for _ in range(2))
        made.connect(g, a, b, data)
        return g

    exe = made.exec(make(EdgeData()))
    assert refusal(runtime, made, exe, make(EdgeData(1, 0, 1))) == ("TOPOLOGY_CHANGED", 1, 0)


def test_an_update_inside_of_a_child_graph(runtime, made):
    x = made.device(0.0)

    def make(values):
        g = made.graph()
        runtime.graph_add_child_graph_node(g, [], line(runtime, made, x, values)[0])
        return g

    exe = made.exec(make([1.0, 2.0]))
    assert refusal(runtime, made, exe, make([3.0, 4.0])) == ("SUCCESS", None, None)
    made.run(exe)
    assert made.value(x) == 4
    assert refusal(runtime, made, exe, make([3.0]))[0] == "TOPOLOGY_CHANGED"


def test_an_update_of_events_and_host_functions(runtime, made):
    seen, old, new = [], made.event(), made.event()

    def make(event, name):
        g = made.graph()
        a = runtime.graph_add_host_node(g, [], made.host(lambda: seen.append(name)))
        runtime.graph_add_event_record_node(g, [a], event)
        return g

    exe = made.exec(make(old, "old"))
    assert refusal(runtime, made, exe, make(new, "new"))[0] == "SUCCESS"
    made.run(exe)
    assert seen == ["new"]


def test_an_update_by_the_graph_of_the_next_capture(runtime, made):
    x, stream = made.device(0.0), made.stream()

    def capture(value):
        made.begin(stream)
        made.launch(made.fill(x, value), stream)
        made.launch(made.axpy(x, x), stream)
        return made.end(stream)

    exe = made.exec(capture(1.0))
    assert refusal(runtime, made, exe, capture(5.0))[0] == "SUCCESS"
    made.run(exe)
    assert made.value(x) == 10
