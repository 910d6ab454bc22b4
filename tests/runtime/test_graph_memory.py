"""Alloc and free nodes at the seam: what they allocate, and which status refuses what."""

from __future__ import annotations

import pytest

from graphkit.runtime.protocol import Edge, GraphMemAttribute, InstantiateFlags, MemcpyKind

N = 64
AUTO_FREE = InstantiateFlags.AUTO_FREE_ON_LAUNCH


@pytest.fixture
def graph(runtime, made):
    return made.graph()


def alloc(runtime, graph, deps=(), nbytes=4 * N):
    return runtime.graph_add_mem_alloc_node(graph, list(deps), nbytes, 0)


def filled(runtime, made, graph, y, value=3.0, *, free=True):
    """Fill memory of the graph, copy it to ``y``, and free it."""
    first, inner = alloc(runtime, graph)
    fill = runtime.graph_add_kernel_node(graph, [first], made.fill(inner, value))
    copy = runtime.graph_add_memcpy_node(graph, [fill], made.copy(y, inner))
    if free:
        runtime.graph_add_mem_free_node(graph, [copy], inner)
    return inner


def test_every_launch_allocates_and_frees(runtime, made, graph):
    y = made.device(0.0)
    inner = filled(runtime, made, graph, y)
    assert made.types(graph) == ["MEM_ALLOC", "KERNEL", "MEMCPY", "MEM_FREE"]
    first, *_, last = runtime.graph_get_nodes(graph)
    assert runtime.graph_mem_alloc_node_get_params(first) == (inner, 4 * N, 0)
    assert runtime.graph_mem_free_node_get_params(last) == (inner,)
    exe = made.exec(graph)
    made.run(exe)
    made.run(exe)
    assert made.value(y) == 3


def test_what_is_refused_of_such_a_graph(runtime, made, graph):
    y = made.device(0.0)
    filled(runtime, made, graph, y)
    a, b, *_ = runtime.graph_get_nodes(graph)
    codes = {
        "clone": made.code(runtime.graph_clone, graph),
        "child": made.code(runtime.graph_add_child_graph_node, made.graph(), [], graph),
        "node": made.code(runtime.graph_destroy_node, b),
        "edge": made.code(runtime.graph_remove_dependencies, graph, [Edge(a, b)]),
    }
    exe = made.exec(graph)
    codes["exec"] = made.code(runtime.graph_instantiate_with_params, graph, 0, 0)
    assert codes == dict.fromkeys(codes, 801)
    made.run(exe)
    assert made.value(y) == 3
    made.destroy("exec", exe)
    made.run(made.exec(graph))


def test_the_wrong_address_is_not_freed(runtime, made, graph):
    x = made.device(0.0)
    inner = filled(runtime, made, graph, x)
    other = made.graph()
    for address in (x, inner, inner + 64, 8):
        assert made.code(runtime.graph_add_mem_free_node, other, [], address) == 1
    assert made.code(runtime.graph_add_mem_free_node, graph, [], inner) == 1
    assert made.types(other) == []
    stream = made.stream()
    assert made.code(runtime.free_async, inner, stream) == 1
    assert made.code(runtime.free, inner) == 1


def test_no_memory_of_no_size(runtime, made, graph):
    assert made.code(alloc, runtime, graph, (), 0) == 1
    assert made.types(graph) == []


def test_unfreed_memory_stops_the_next_launch(runtime, made, graph):
    y, stream = made.device(0.0), made.stream()
    inner = filled(runtime, made, graph, y, free=False)
    exe = made.exec(graph)
    made.run(exe)
    assert made.value(inner) == 3
    assert made.code(runtime.graph_launch, exe, stream) == 1
    runtime.free_async(inner, stream)
    runtime.graph_launch(exe, stream)
    runtime.stream_synchronize(stream)
    runtime.free(inner)
    assert made.code(runtime.free, inner) == 1
    made.destroy("exec", exe)
    again = made.exec(graph, AUTO_FREE)
    made.run(again)
    made.run(again)
    runtime.free(inner)
    assert made.value(y) == 3


def test_the_device_says_how_much(runtime, made, graph):
    y = made.device(0.0)
    filled(runtime, made, graph, y)
    exe = made.exec(graph)
    made.run(exe)
    values = {a: runtime.device_get_graph_mem_attribute(0, a) for a in GraphMemAttribute}
    used, used_high, reserved, reserved_high = values.values()
    assert 0 <= used <= used_high
    assert 4 * N <= reserved <= reserved_high
    runtime.device_graph_mem_trim(0)
    assert runtime.device_get_graph_mem_attribute(0, GraphMemAttribute(2)) <= reserved
    made.run(exe)
    assert made.code(runtime.device_get_graph_mem_attribute, 99, GraphMemAttribute(0)) == 101


def test_captured_allocations(runtime, made):
    x, y, stream = made.device(2.0), made.device(0.0), made.stream()
    made.begin(stream)
    inner = runtime.malloc_async(4 * N, stream)
    runtime.memcpy_async(inner, x, 4 * N, MemcpyKind.DEFAULT, stream)
    runtime.memcpy_async(y, inner, 4 * N, MemcpyKind.DEFAULT, stream)
    runtime.free_async(inner, stream)
    graph = made.end(stream)
    assert made.types(graph) == ["MEM_ALLOC", "MEMCPY", "MEMCPY", "MEM_FREE"]
    assert made.edges(graph) == {(0, 1), (1, 2), (2, 3)}
    exe = made.exec(graph)
    made.run(exe)
    made.run(exe)
    assert made.value(y) == 2


def test_a_capture_frees_nothing_else(runtime, made):
    x, stream = made.device(0.0), made.stream()
    made.begin(stream)
    assert made.code(runtime.free_async, x, stream) == 1
    graph = runtime.stream_end_capture(stream)  # which lives on
    assert not runtime.graph_get_nodes(graph)
    runtime.graph_destroy(graph)
    runtime.stream_synchronize(stream)
    assert made.value(x) == 0
