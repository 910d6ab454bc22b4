"""Graphs at the seam: nodes, edges, clones, child graphs, and what each refuses."""

import ctypes

import pytest

from graphkit.runtime.protocol import (
    Edge,
    EdgeData,
    KernelNodePort,
    LaunchAttribute,
    LaunchAttributeID,
    MemcpyKind,
    MemcpyNodeParams,
    MemsetNodeParams,
    NodeType,
)

N = 64
PROGRAMMATIC = EdgeData(KernelNodePort.PROGRAMMATIC, 0, 1)


@pytest.fixture
def graph(made):
    return made.graph()


def empty(runtime, graph, count):
    return [runtime.graph_add_empty_node(graph, []) for _ in range(count)]


def kernels(runtime, made, graph, count):
    return [runtime.graph_add_kernel_node(graph, [], made.nothing()) for _ in range(count)]


# --- nodes


def test_nodes_come_in_the_order_of_insertion(runtime, made, graph):
    nodes = empty(runtime, graph, 5)
    assert runtime.graph_get_nodes(graph) == nodes
    assert len(set(nodes)) == 5


def test_every_type_of_node(runtime, made, graph):
    x, y, event = made.device(0.0), made.device(0.0), made.event()
    child = made.graph()
    nodes = [
        runtime.graph_add_empty_node(graph, []),
        runtime.graph_add_kernel_node(graph, [], made.nothing()),
        runtime.graph_add_memcpy_node(graph, [], made.copy(x, y)),
        runtime.graph_add_memset_node(graph, [], made.memset(x)),
        runtime.graph_add_host_node(graph, [], made.host(lambda: None)),
        runtime.graph_add_event_record_node(graph, [], event),
        runtime.graph_add_event_wait_node(graph, [], event),
        runtime.graph_add_child_graph_node(graph, [], child),
    ]
    assert [runtime.graph_node_get_type(node) for node in nodes] == [
        NodeType.EMPTY, NodeType.KERNEL, NodeType.MEMCPY, NodeType.MEMSET, NodeType.HOST,
        NodeType.EVENT_RECORD, NodeType.EVENT_WAIT, NodeType.GRAPH,
    ]  # fmt: skip


def test_the_parameters_of_a_kernel_node(runtime, made, graph):
    x = made.device(0.0)
    params = made.fill(x, 3.0, grid=(2, 3, 4), block=(8, 2, 1), shared_mem=128)
    node = runtime.graph_add_kernel_node(graph, [], params)
    found = runtime.graph_kernel_node_get_params(node)
    assert found[:4] == params[:4]
    pointers = (ctypes.c_void_p * 3).from_address(found.kernel_params)
    assert ctypes.c_uint64.from_address(pointers[0]).value == x
    assert ctypes.c_float.from_address(pointers[1]).value == 3
    assert ctypes.c_int.from_address(pointers[2]).value == N


def test_a_kernel_node_copies_its_arguments(runtime, made, graph):
    x = made.device(0.0)
    params = made.fill(x, 3.0)
    runtime.graph_add_kernel_node(graph, [], params)
    made.argument(params, 1).value = 99.0
    made.run(made.exec(graph))
    assert made.value(x) == 3


def test_arguments_in_one_buffer(runtime, made, graph):
    x = made.device(0.0)
    buffer = bytearray(16)
    buffer[:8] = x.to_bytes(8, "little")
    buffer[8:12] = bytes(ctypes.c_float(5.0))
    buffer[12:] = N.to_bytes(4, "little")
    raw = (ctypes.c_char * 16).from_buffer(buffer)
    size = ctypes.c_size_t(16)
    extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(raw), 2, ctypes.addressof(size), 0)
    params = made.fill(x, 0.0)._replace(kernel_params=0, extra=ctypes.addressof(extra))
    node = runtime.graph_add_kernel_node(graph, [], params)
    raw[:] = bytes(16)
    made.run(made.exec(graph))
    assert made.value(x) == 5
    found = runtime.graph_kernel_node_get_params(node)
    assert bool(found.kernel_params) is not bool(found.extra)


def test_the_arguments_are_missing(runtime, made, graph):
    params = made.fill(0, 0.0)._replace(kernel_params=0)
    assert made.code(runtime.graph_add_kernel_node, graph, [], params) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": (0, 1, 1)},
        {"grid": (1, 65536, 1)},
        {"block": (0, 1, 1)},
        {"block": (1025, 1, 1)},
        {"block": (32, 33, 1)},
        {"block": (1, 1, 65)},
        {"shared_mem": 1 << 20},
        {"shared_mem": 49 << 10},
    ],
    ids=str,
)
def test_a_launch_that_no_device_takes_is_refused(runtime, made, graph, changes):
    assert made.code(runtime.graph_add_kernel_node, graph, [], made.nothing(**changes)) == 1
    assert runtime.graph_get_nodes(graph) == []


def test_more_shared_memory_after_asking_for_it(runtime, made, graph):
    from graphkit.runtime.protocol import KernelSource

    code = 'extern "C" __global__ void hungry() {}'
    loaded = runtime.function_load(KernelSource(code, "hungry", (), (), lambda launch: None))
    runtime.func_set_attribute(loaded.handle, 8, 100 << 10)
    assert runtime.func_get_attribute(8, loaded.handle) == 100 << 10
    params = made.nothing(function=loaded.handle, shared_mem=100 << 10)
    runtime.graph_add_kernel_node(graph, [], params)
    made.run(made.exec(graph))
    assert made.code(runtime.func_set_attribute, loaded.handle, 8, 1 << 20) == 1


def test_the_layout_of_a_kernels_parameters(runtime, made):
    function = made.function("axpy")
    found = [runtime.func_get_param_info(function, i) for i in range(5)]
    assert found == [(0, 8), (8, 8), (16, 4), (20, 4), None]
    assert runtime.func_get_name(function) == "axpy"


def test_changing_the_parameters_of_a_node(runtime, made, graph):
    x = made.device(0.0)
    node = runtime.graph_add_kernel_node(graph, [], made.fill(x, 1.0))
    before = made.exec(graph)
    runtime.graph_kernel_node_set_params(node, made.fill(x, 2.0, grid=(2, 1, 1)))
    assert runtime.graph_kernel_node_get_params(node).grid == (2, 1, 1)
    after = made.exec(graph)
    made.run(after)
    assert made.value(x) == 2
    made.run(before)  # a snapshot
    assert made.value(x) == 1


def test_the_parameters_of_other_nodes(runtime, made, graph):
    x, y, event = made.device(0.0), made.device(0.0), made.event()
    copy, fill, host = made.copy(x, y), made.memset(x, 7), made.host(lambda: None)
    node = runtime.graph_add_memcpy_node(graph, [], copy)
    found = runtime.graph_memcpy_node_get_params(node)
    assert (found.dst, found.src, found[6:9]) == (x, y, (4 * N, 1, 1))
    node = runtime.graph_add_memset_node(graph, [], fill)
    found = runtime.graph_memset_node_get_params(node)
    assert found._replace(pitch=0) == fill
    node = runtime.graph_add_host_node(graph, [], host)
    assert runtime.graph_host_node_get_params(node) == host
    node = runtime.graph_add_event_record_node(graph, [], event)
    assert runtime.graph_event_record_node_get_event(node) == event
    node = runtime.graph_add_event_wait_node(graph, [], event)
    assert runtime.graph_event_wait_node_get_event(node) == event


def test_reading_a_node_as_another_type_is_refused(runtime, made, graph):
    (node,) = empty(runtime, graph, 1)
    for read in (
        runtime.graph_memcpy_node_get_params, runtime.graph_memset_node_get_params,
        runtime.graph_host_node_get_params, runtime.graph_kernel_node_get_params,
        runtime.graph_event_record_node_get_event, runtime.graph_child_graph_node_get_graph,
    ):  # fmt: skip
        assert made.code(read, node) == 1, read


def test_a_memset_of_elements(runtime, made, graph):
    x = made.device(0.0)
    bits = 0x40400000  # 3.0
    runtime.graph_add_memset_node(graph, [], MemsetNodeParams(x, 0, bits, 4, N, 1))
    made.run(made.exec(graph))
    assert made.value(x) == 3


def test_a_memset_of_rows(runtime, made, graph):
    x = made.device(1.0)
    # 3 rows of 2 floats, 4 floats apart.
    runtime.graph_add_memset_node(graph, [], MemsetNodeParams(x, 16, 0, 4, 2, 3))
    made.run(made.exec(graph))
    assert made.read(x, 14) == [0, 0, 1, 1] * 3 + [1, 1]


@pytest.mark.parametrize(
    "changes", [{"element_size": 3}, {"width": 0}, {"height": 0}, {"dst": 0}], ids=str
)
def test_a_memset_that_makes_no_sense_is_refused(runtime, made, graph, changes):
    params = made.memset(made.device(0.0))._replace(**changes)
    assert made.code(runtime.graph_add_memset_node, graph, [], params) == 1


def test_a_memset_of_host_memory_is_refused(runtime, made, graph):
    block = ctypes.create_string_buffer(4 * N)
    params = made.memset(ctypes.addressof(block))
    assert made.code(runtime.graph_add_memset_node, graph, [], params) == 1


def test_a_copy_or_fill_of_freed_memory_or_past_the_end_is_refused(runtime, made, graph):
    x, freed = made.device(nbytes=4 << 20), made.device(nbytes=64 << 20)
    made.destroy("device", freed)
    codes = [
        made.code(runtime.graph_add_memcpy_node, graph, [], made.copy(x, x, 8 << 20)),
        made.code(runtime.graph_add_memcpy_node, graph, [], made.copy(0, x, 8)),
        made.code(
            runtime.graph_add_memcpy_node,
            graph,
            [],
            made.copy(freed, x, 8, MemcpyKind.DEVICE_TO_DEVICE),
        ),
        made.code(runtime.graph_add_memset_node, graph, [], made.memset(x, 0, 2 << 20)),
        made.code(runtime.graph_add_memset_node, graph, [], made.memset(freed)),
    ]
    assert codes == [1] * 5


def test_a_pitched_copy(runtime, made, graph):
    x, y = made.device(1.0), made.device(0.0)
    params = MemcpyNodeParams(y, 16, 4, x, 8, 3, 8, 3, 2, MemcpyKind.DEVICE_TO_DEVICE)
    runtime.graph_add_memcpy_node(graph, [], params)
    made.run(made.exec(graph))
    expected = ([1, 1, 0, 0] * 3 + [0] * 4) * 2
    assert made.read(y, 32) == expected


def test_a_copy_of_nothing_is_refused(runtime, made, graph):
    x, y = made.device(0.0), made.device(0.0)
    assert made.code(runtime.graph_add_memcpy_node, graph, [], made.copy(x, y, 0)) == 1


def test_destroying_a_node_takes_its_edges(runtime, made, graph):
    a, b, c = empty(runtime, graph, 3)
    made.connect(graph, a, b)
    made.connect(graph, b, c)
    runtime.graph_destroy_node(b)
    assert runtime.graph_get_nodes(graph) == [a, c]
    assert runtime.graph_get_edges(graph) == []


# --- edges


def test_dependencies_given_with_a_node(runtime, made, graph):
    a, b = empty(runtime, graph, 2)
    c = runtime.graph_add_empty_node(graph, [a, b])
    assert set(runtime.graph_get_edges(graph)) == {Edge(a, c), Edge(b, c)}


def test_edges_are_added_and_removed(runtime, made, graph):
    a, b, c = empty(runtime, graph, 3)
    runtime.graph_add_dependencies(graph, [Edge(a, b), Edge(b, c)])
    runtime.graph_remove_dependencies(graph, [Edge(a, b)])
    assert runtime.graph_get_edges(graph) == [Edge(b, c)]
    runtime.graph_add_dependencies(graph, [])
    runtime.graph_remove_dependencies(graph, [])


def test_an_edge_that_is_there_already_is_refused(runtime, made, graph):
    a, b = empty(runtime, graph, 2)
    made.connect(graph, a, b)
    assert made.code(made.connect, graph, a, b) == 1
    assert runtime.graph_get_edges(graph) == [Edge(a, b)]


def test_an_edge_that_is_not_there_cannot_be_removed(runtime, made, graph):
    a, b = empty(runtime, graph, 2)
    assert made.code(runtime.graph_remove_dependencies, graph, [Edge(a, b)]) == 1


def test_an_edge_to_itself_is_refused(runtime, made, graph):
    (a,) = empty(runtime, graph, 1)
    assert made.code(made.connect, graph, a, a) == 1


def test_a_cycle_cannot_be_instantiated(runtime, made, graph):
    a, b, c = empty(runtime, graph, 3)
    runtime.graph_add_dependencies(graph, [Edge(a, b), Edge(b, c), Edge(c, a)])
    assert made.code(made.exec, graph) == 1


def test_nodes_of_two_graphs_are_not_connected(runtime, made, graph):
    (a,), (b,) = empty(runtime, graph, 1), empty(runtime, made.graph(), 1)
    assert made.code(made.connect, graph, a, b) == 1
    assert made.code(runtime.graph_add_empty_node, graph, [b]) == 1
    assert runtime.graph_get_nodes(graph) == [a]


def test_a_dependency_given_twice_is_refused(runtime, made, graph):
    (a,) = empty(runtime, graph, 1)
    assert made.code(runtime.graph_add_empty_node, graph, [a, a]) == 1


def test_edges_before_a_bad_one_stay(runtime, made, graph):
    a, b, c = empty(runtime, graph, 3)
    made.connect(graph, b, c)
    edges = [Edge(a, b), Edge(b, c), Edge(a, c)]
    assert made.code(runtime.graph_add_dependencies, graph, edges) == 1
    assert set(runtime.graph_get_edges(graph)) == {Edge(a, b), Edge(b, c)}


def test_programmatic_edges_join_kernels(runtime, made, graph):
    a, b, c = kernels(runtime, made, graph, 3)
    made.connect(graph, a, b, PROGRAMMATIC)
    made.connect(graph, b, c, EdgeData(KernelNodePort.LAUNCH_COMPLETION, 0, 1))
    data = {(e.from_node, e.to_node): e.data for e in runtime.graph_get_edges(graph)}
    assert data == {(a, b): (1, 0, 1), (b, c): (2, 0, 1)}
    made.run(made.exec(graph))


def test_programmatic_edges_join_nothing_else(runtime, made, graph):
    kernel, (other,) = kernels(runtime, made, graph, 1)[0], empty(runtime, graph, 1)
    codes = [
        made.code(made.connect, graph, kernel, other, PROGRAMMATIC),
        made.code(made.connect, graph, other, kernel, PROGRAMMATIC),
    ]
    assert codes == [1, 1]


@pytest.mark.parametrize("data", [(0, 0, 1), (1, 0, 0), (3, 0, 1), (1, 1, 1), (0, 0, 2)], ids=str)
def test_edge_data_that_does_not_fit_is_refused(runtime, made, graph, data):
    a, b = kernels(runtime, made, graph, 2)
    assert made.code(made.connect, graph, a, b, EdgeData(*data)) == 1


# --- attributes


def test_attributes_of_a_kernel_node(runtime, made, graph):
    node = runtime.graph_add_kernel_node(graph, [], made.nothing(grid=(4, 1, 1)))
    attributes = [
        LaunchAttribute(LaunchAttributeID.CLUSTER_DIMENSION, (2, 1, 1)),
        LaunchAttribute(LaunchAttributeID.PRIORITY, (-3,)),
        LaunchAttribute(LaunchAttributeID.COOPERATIVE, (1,)),
    ]
    for attribute in attributes:
        found = runtime.graph_kernel_node_get_attribute(node, attribute.id)
        assert not any(found.value)
        runtime.graph_kernel_node_set_attribute(node, attribute)
        assert runtime.graph_kernel_node_get_attribute(node, attribute.id) == attribute


def test_a_cluster_that_does_not_divide_the_grid(runtime, made, graph):
    node = runtime.graph_add_kernel_node(graph, [], made.nothing(grid=(3, 1, 1)))
    cluster = LaunchAttribute(LaunchAttributeID.CLUSTER_DIMENSION, (2, 1, 1))
    assert made.code(runtime.graph_kernel_node_set_attribute, node, cluster) == 912
    made.exec(graph)


# --- clones and children


def test_a_clone_is_a_graph_of_its_own(runtime, made, graph):
    x = made.device(0.0)
    a = runtime.graph_add_kernel_node(graph, [], made.fill(x, 1.0))
    b = runtime.graph_add_kernel_node(graph, [a], made.axpy(x, x))
    clone = made.graph(runtime.graph_clone(graph))
    assert made.types(clone) == ["KERNEL", "KERNEL"]
    assert made.edges(clone) == {(0, 1)}
    assert not set(runtime.graph_get_nodes(clone)) & {a, b}
    runtime.graph_kernel_node_set_params(a, made.fill(x, 5.0))
    made.run(made.exec(clone))
    assert made.value(x) == 2


def test_a_node_is_found_in_the_clone(runtime, made, graph):
    a, b = empty(runtime, graph, 2)
    clone = made.graph(runtime.graph_clone(graph))
    found = [runtime.graph_node_find_in_clone(node, clone) for node in (a, b)]
    assert found == runtime.graph_get_nodes(clone)
    assert made.code(runtime.graph_node_find_in_clone, a, graph) == 1
    (stranger,) = empty(runtime, made.graph(), 1)
    assert made.code(runtime.graph_node_find_in_clone, stranger, clone) == 1


def test_a_clone_keeps_edge_data_and_attributes(runtime, made, graph):
    a, b = kernels(runtime, made, graph, 2)
    made.connect(graph, a, b, PROGRAMMATIC)
    priority = LaunchAttribute(LaunchAttributeID.PRIORITY, (-2,))
    runtime.graph_kernel_node_set_attribute(b, priority)
    clone = made.graph(runtime.graph_clone(graph))
    assert [e.data for e in runtime.graph_get_edges(clone)] == [PROGRAMMATIC]
    copy = runtime.graph_node_find_in_clone(b, clone)
    assert runtime.graph_kernel_node_get_attribute(copy, priority.id) == priority


def test_a_clone_outlives_its_original(runtime, made, graph):
    x, original = made.device(0.0), made.graph()
    runtime.graph_add_kernel_node(original, [], made.fill(x, 4.0))
    clone = made.graph(runtime.graph_clone(original))
    made.destroy("graph", original)
    made.run(made.exec(clone))
    assert made.value(x) == 4


def test_a_child_graph_node_holds_a_clone(runtime, made, graph):
    x, child = made.device(0.0), made.graph()
    node = runtime.graph_add_kernel_node(child, [], made.fill(x, 1.0))
    holder = runtime.graph_add_child_graph_node(graph, [], child)
    runtime.graph_kernel_node_set_params(node, made.fill(x, 9.0))
    inner = runtime.graph_child_graph_node_get_graph(holder)
    assert inner != child
    assert made.types(inner) == ["KERNEL"]
    made.destroy("graph", child)
    made.run(made.exec(graph))
    assert made.value(x) == 1


def test_changing_the_graph_inside_of_a_child_graph_node(runtime, made, graph):
    x, child = made.device(0.0), made.graph()
    runtime.graph_add_kernel_node(child, [], made.fill(x, 1.0))
    holder = runtime.graph_add_child_graph_node(graph, [], child)
    (inner,) = runtime.graph_get_nodes(runtime.graph_child_graph_node_get_graph(holder))
    runtime.graph_kernel_node_set_params(inner, made.fill(x, 6.0))
    made.run(made.exec(graph))
    assert made.value(x) == 6


def test_children_run_in_the_order_of_the_edges(runtime, made, graph):
    x, child = made.device(0.0), made.graph()
    runtime.graph_add_kernel_node(child, [], made.axpy(x, x))
    first = runtime.graph_add_kernel_node(graph, [], made.fill(x, 1.0))
    second = runtime.graph_add_child_graph_node(graph, [first], child)
    third = runtime.graph_add_child_graph_node(graph, [second], child)
    y = made.device(0.0)
    runtime.graph_add_kernel_node(graph, [third], made.axpy(y, x))
    made.run(made.exec(graph))
    assert made.value(y) == 4


def test_an_empty_child_still_orders(runtime, made, graph):
    x, y = made.device(0.0), made.device(0.0)
    first = runtime.graph_add_kernel_node(graph, [], made.fill(x, 1.0))
    middle = runtime.graph_add_child_graph_node(graph, [first], made.graph())
    runtime.graph_add_kernel_node(graph, [middle], made.axpy(y, x))
    made.run(made.exec(graph))
    assert made.value(y) == 1


def test_a_child_in_a_child(runtime, made, graph):
    x, inner, outer = made.device(0.0), made.graph(), made.graph()
    runtime.graph_add_kernel_node(inner, [], made.fill(x, 3.0))
    runtime.graph_add_child_graph_node(outer, [], inner)
    runtime.graph_add_child_graph_node(graph, [], outer)
    made.run(made.exec(graph))
    assert made.value(x) == 3


def test_a_graph_is_written_as_dot(runtime, made, graph, tmp_path):
    x = made.device(0.0)
    a = runtime.graph_add_kernel_node(graph, [], made.fill(x, 1.0))
    runtime.graph_add_memset_node(graph, [a], made.memset(x))
    path = tmp_path / "graph.dot"
    runtime.graph_debug_dot_print(graph, str(path), True)
    text = path.read_text()
    assert text.startswith("digraph")
    assert "fill" in text
    assert "->" in text
    missing = tmp_path / "no" / "graph.dot"
    assert made.code(runtime.graph_debug_dot_print, graph, str(missing), False) == 304
