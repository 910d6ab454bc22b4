"""Graphs by hand: every kind of node and edge, looking at them, copies, and what is refused."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, AXPY, BLOCKS, INCREMENT

import graphkit as gk

N = 8

# Waits as PDL wants it; without a programmatic edge the instruction does nothing.
_CHAIN = r"""
extern "C" __global__ void chain(const int* from, int* to, int by) {
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
    if (threadIdx.x == 0 && blockIdx.x == 0) *to = *from + by;
}
"""


def _chain(launch, from_, to, by):
    to.view(1)[0] = from_.view(1)[0] + by


CHAIN = gk.Kernel(_CHAIN, "chain", twin=_chain)


@pytest.fixture
def x(runtime):
    return gk.asarray(np.arange(N, dtype=np.float32))


@pytest.fixture
def y(runtime):
    return gk.zeros(N)


@pytest.fixture
def graph(runtime):
    return gk.Graph()


def run(graph, stream, **flags):
    with graph.instantiate(**flags) as exe:
        exe.launch(stream)
        stream.synchronize()


def add(graph, counter, by=1, **kwargs):
    return graph.add_kernel_node(INCREMENT, 1, 1, (counter, by), **kwargs)


def pairs(graph):
    index = {node.ptr: i for i, node in enumerate(graph.nodes)}
    return sorted((index[e.from_node.ptr], index[e.to_node.ptr]) for e in graph.edges)


# --- nodes ---------------------------------------------------------------------------------------


def test_an_empty_graph_runs(graph, stream):
    assert graph.nodes == graph.edges == graph.kernels == []
    run(graph, stream)


def test_one_node_of_every_kind(graph, x, y, stream):
    z, host = gk.zeros(N), gk.empty_pinned(N)
    calls = []
    event = gk.Event()
    child = gk.Graph()
    child.add_kernel_node(ADD_SCALAR, 1, 32, (z, y, 10.0, N))
    nodes = [graph.add_memset_node(y, 1.0)]
    nodes.append(graph.add_kernel_node(AXPY, 1, 32, (x, y, 2.0, N), deps=nodes[-1]))
    nodes.append(graph.add_event_record_node(event, deps=nodes[-1:]))
    nodes.append(graph.add_memcpy_node(z, y, deps=nodes[-1]))
    nodes.append(graph.add_child_graph_node(child, deps=nodes[-1]))
    nodes.append(graph.add_memcpy_node(host, y, deps=nodes[-1]))
    nodes.append(graph.add_empty_node(deps=(nodes[-1], nodes[0])))
    nodes.append(graph.add_host_node(lambda: calls.append(host.copy()), deps=nodes[-1]))
    nodes.append(graph.add_event_wait_node(event, deps=nodes[-1]))
    assert graph.nodes == nodes
    assert [node.type.name for node in nodes] == [
        "MEMSET",
        "KERNEL",
        "EVENT_RECORD",
        "MEMCPY",
        "GRAPH",
        "MEMCPY",
        "EMPTY",
        "HOST",
        "EVENT_WAIT",
    ]
    assert pairs(graph) == sorted([(0, 6)] + [(i, i + 1) for i in range(8)])
    run(graph, stream)
    assert np.array_equal(calls[0], 2 * np.arange(N) + 11)
    assert event.query()


def test_dependencies_order_nodes(graph, stream):
    values = [gk.asarray([1], np.int32) for _ in range(6)]
    node = ()
    for source, target in pairwise(values):
        node = graph.add_kernel_node(CHAIN, 1, 32, (source, target, 1), deps=node)
    run(graph, stream)
    assert [int(value.get()[0]) for value in values] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("index", [np.s_[1:3], np.s_[:, 2:5], np.s_[1:3, 2:4, 1:3]])
@pytest.mark.parametrize("where", ["device", "to host", "from host"])
def test_copies_of_one_two_and_three_dimensions(graph, stream, index, where):
    values = np.arange(4 * 6 * 8, dtype=np.int32).reshape(4, 6, 8)
    device, other = gk.asarray(values), gk.zeros((4, 6, 8), np.int32)
    host = gk.empty_pinned((4, 6, 8), np.int32)
    host[:] = values if where == "from host" else 0
    dst, src = {
        "device": (other, device),
        "to host": (host, device),
        "from host": (other, host),
    }[where]
    graph.add_memcpy_node(dst[index], src[index])
    run(graph, stream)
    expected = np.zeros_like(values)
    expected[index] = values[index]
    assert np.array_equal(dst if where == "to host" else dst.get(), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.int64])
@pytest.mark.parametrize("index", [np.s_[:], np.s_[:, 2:5], np.s_[:, 0]])
def test_fills(graph, stream, dtype, index):
    array = gk.zeros((4, 8), dtype)
    value = -1 if dtype is np.int64 else 7
    graph.add_memset_node(array[index], value)
    run(graph, stream)
    expected = np.zeros((4, 8), dtype)
    expected[index] = value
    assert np.array_equal(array.get(), expected)


def test_copies_and_fills_of_addresses(graph, stream):
    a, b = gk.zeros(N, np.uint8), gk.zeros(N, np.uint8)
    fill = graph.add_memset_node(a.ptr, 9, nbytes=4)
    graph.add_memcpy_node(b.ptr + 2, a.ptr, nbytes=4, deps=fill)
    run(graph, stream)
    assert b.get().tolist() == [0, 0, 9, 9, 9, 9, 0, 0]


def test_attributes_of_a_node(graph, stream):
    seen = [gk.zeros(4, np.int32) for _ in range(3)]
    graph.add_kernel_node(BLOCKS, 4, 32, (seen[0],), cluster=2)
    graph.add_kernel_node(BLOCKS, 4, 32, (seen[1],), cooperative=True)
    graph.add_kernel_node(BLOCKS, 4, 32, (seen[2],), priority=-1, shared_mem=128)
    run(graph, stream, use_node_priority=True)
    assert all(array.get().tolist() == [4032] * 4 for array in seen)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel": "increment"}, TypeError, "kernel: expected a Kernel, came str"),
        ({"grid": 0}, ValueError, "grid: expected"),
        ({"block": 2048}, ValueError, "block: expected"),
        ({"args": (1,)}, TypeError, r"args: expected 2 arguments \(p, by\), came 1"),
        ({"args": (1, 2, 3)}, TypeError, r"args: expected 2 arguments \(p, by\), came 3"),
        ({"args": (np.zeros(1, np.int32), 1)}, TypeError, "p: expected an array in device memory"),
        ({"args": (0, 1.5)}, TypeError, "by: expected a scalar of int32"),
        ({"args": (0, np.int64(1))}, TypeError, "by: expected a scalar of int32, came int64"),
        ({"shared_mem": -1}, ValueError, "shared_mem: expected"),
        ({"cluster": 2}, ValueError, "cluster: expected extents that divide"),
        ({"deps": 5}, TypeError, "deps: expected a Node or several, came int"),
        ({"deps": [5]}, TypeError, "deps: expected a Node, came int"),
        ({"deps": [None]}, TypeError, "deps: expected a Node, came NoneType"),
    ],
)
def test_a_refused_kernel_node_is_not_there(graph, change, error, message):
    good = {"kernel": INCREMENT, "grid": 1, "block": 1, "args": (0, 1)}
    with pytest.raises(error, match=message):
        graph.add_kernel_node(**(good | change))
    assert graph.nodes == []


def test_a_refused_attribute_takes_its_node_with_it(graph, monkeypatch):
    def refuse(node, attribute):
        raise gk.CudaError("cuGraphKernelNodeSetAttribute", 801)

    monkeypatch.setattr(graph.runtime, "graph_kernel_node_set_attribute", refuse)
    with pytest.raises(gk.CudaError, match="cuGraphKernelNodeSetAttribute"):
        add(graph, 0, priority=-1)
    assert graph.nodes == []


@pytest.mark.parametrize("value", [None, 5, "f"])
def test_a_host_node_needs_a_function(graph, value):
    with pytest.raises(TypeError, match="fn: expected a callable"):
        graph.add_host_node(value)
    assert graph.nodes == []


def test_event_and_child_nodes_need_events_and_graphs(graph):
    for refused in (
        lambda: graph.add_event_record_node(5),
        lambda: graph.add_event_wait_node(None),
        lambda: graph.add_child_graph_node(5),
    ):
        with pytest.raises(TypeError, match=r"(event: expected an Event|child: expected a Graph)"):
            refused()
    closed = gk.Graph()
    closed.close()
    with pytest.raises(ValueError, match="graph: expected a live graph"):
        graph.add_child_graph_node(closed)
    assert graph.nodes == []


# --- edges ---------------------------------------------------------------------------------------


def test_edges_come_and_go(graph):
    a, b, c = (graph.add_empty_node() for _ in range(3))
    graph.add_dependency(a, b)
    graph.add_dependency(a, c)
    assert pairs(graph) == [(0, 1), (0, 2)]
    assert not any(edge.programmatic for edge in graph.edges)
    graph.remove_dependency(a, b)
    assert pairs(graph) == [(0, 2)]
    with pytest.raises(ValueError, match=r"from_node: expected an edge from .* came none"):
        graph.remove_dependency(a, b)
    with pytest.raises(ValueError, match="came none"):
        graph.remove_dependency(c, a)


def test_an_edge_that_is_there_already_is_refused(graph):
    a, b = graph.add_empty_node(), graph.add_empty_node()
    graph.add_dependency(a, b)
    with pytest.raises(gk.CudaError) as caught:
        graph.add_dependency(a, b)
    assert caught.value.name == "cudaErrorInvalidValue"
    assert pairs(graph) == [(0, 1)]


def test_a_cycle_is_refused(graph, stream):
    counter = gk.zeros(1, np.int32)
    a = add(graph, counter)
    b = add(graph, counter, deps=a)
    c = add(graph, counter, deps=b)
    before = gk.live_handles()
    graph.add_dependency(c, a)  # CUDA looks for cycles when it instantiates
    with pytest.raises(gk.CudaError) as caught:
        graph.instantiate()
    assert caught.value.name == "cudaErrorInvalidValue"
    assert gk.live_handles() == before
    graph.remove_dependency(c, a)
    run(graph, stream)
    assert counter.get() == [3]


def test_a_node_cannot_wait_for_itself(graph):
    node = graph.add_empty_node()
    with pytest.raises(gk.CudaError) as caught:
        graph.add_dependency(node, node)
    assert caught.value.name == "cudaErrorInvalidValue"
    assert graph.edges == []


@pytest.mark.parametrize(
    ("kind", "port"), [({"programmatic": True}, 1), ({"launch_completion": True}, 2)]
)
def test_programmatic_edges(graph, stream, kind, port):
    values = [gk.asarray([1], np.int32) for _ in range(4)]
    nodes = [
        graph.add_kernel_node(CHAIN, 1, 32, (source, target, 1))
        for source, target in pairwise(values)
    ]
    for first, second in pairwise(nodes):
        graph.add_dependency(first, second, **kind)
    assert pairs(graph) == [(0, 1), (1, 2)]
    for edge in graph.edges:
        assert edge.programmatic
        assert edge.data == (port, 0, 1)
    run(graph, stream)
    assert [int(value.get()[0]) for value in values] == [1, 2, 3, 4]
    graph.remove_dependency(nodes[0], nodes[1])
    assert pairs(graph) == [(1, 2)]


def test_a_programmatic_edge_needs_two_kernels(graph):
    counter = gk.zeros(1, np.int32)
    kernel, empty = add(graph, counter), graph.add_empty_node()
    with pytest.raises(TypeError, match="to_node: expected a kernel node"):
        graph.add_dependency(kernel, empty, programmatic=True)
    with pytest.raises(TypeError, match="from_node: expected a kernel node"):
        graph.add_dependency(empty, kernel, launch_completion=True)
    assert graph.edges == []


def test_a_node_of_another_graph_is_refused_everywhere(graph):
    mine, theirs = graph.add_empty_node(), gk.Graph().add_empty_node()
    for refused in (
        lambda: graph.add_empty_node(deps=theirs),
        lambda: graph.add_empty_node(deps=[mine, theirs]),
        lambda: graph.add_dependency(mine, theirs),
        lambda: graph.add_dependency(theirs, mine),
        lambda: graph.remove_dependency(mine, theirs),
        lambda: graph.remove_node(theirs),
        lambda: graph.values(theirs),
        lambda: graph.child_graph(theirs),
        lambda: graph.in_clone(theirs, graph),
    ):
        with pytest.raises(ValueError, match=r"expected a node of this graph, came .* of another"):
            refused()
    assert graph.nodes == [mine]


# --- removing ------------------------------------------------------------------------------------


def test_a_node_is_removed_with_its_edges(graph, stream):
    counter = gk.zeros(1, np.int32)
    a = add(graph, counter, 1)
    b = add(graph, counter, 10, deps=a)
    c = add(graph, counter, 100, deps=b)
    exe = graph.instantiate()
    graph.remove_node(b)
    assert graph.nodes == [a, c]
    assert graph.edges == []
    graph.add_dependency(a, c)
    run(graph, stream)
    assert counter.get() == [101]
    exe.launch(stream)  # made before: it keeps the node
    stream.synchronize()
    assert counter.get() == [212]


def test_a_removed_node_is_refused(graph):
    a, b = graph.add_empty_node(), graph.add_empty_node()
    graph.remove_node(a)
    for refused in (
        lambda: graph.remove_node(a),
        lambda: graph.add_empty_node(deps=a),
        lambda: graph.add_dependency(a, b),
        lambda: graph.values(a),
    ):
        with pytest.raises(ValueError, match="came a removed one"):
            refused()
    assert graph.nodes == [b]


def test_the_child_of_a_removed_node_is_gone(graph):
    child = gk.Graph()
    child.add_empty_node()
    node = graph.add_child_graph_node(child)
    inner = graph.child_graph(node)
    assert graph.contains(inner.nodes[0])
    held = inner.nodes[0]
    graph.remove_node(node)
    assert not graph.contains(held)
    with pytest.raises(ValueError, match="expected a live graph"):
        inner.nodes  # noqa: B018


# --- children and clones -------------------------------------------------------------------------


def test_a_child_graph_is_a_copy(graph, stream):
    counter = gk.zeros(1, np.int32)
    child = gk.Graph()
    first = add(child, counter, 1)
    node = graph.add_child_graph_node(child)
    add(child, counter, 10, deps=first)
    inner = graph.child_graph(node)
    assert len(inner.nodes) == 1
    assert len(child.nodes) == 2
    assert graph.child_graph(node) is inner
    assert inner.kernels[0].args[1].value == 1
    child.close()
    run(graph, stream)
    assert counter.get() == [1]
    with pytest.raises(TypeError, match="node: expected a child graph node"):
        graph.child_graph(graph.add_empty_node())


def test_children_of_children(graph, stream):
    counter = gk.zeros(1, np.int32)
    inner, middle = gk.Graph(), gk.Graph()
    add(inner, counter, 1)
    middle.add_child_graph_node(inner)
    node = graph.add_child_graph_node(middle)
    found = graph.child_graph(node)
    deepest = found.child_graph(found.nodes[0])
    assert graph.contains(deepest.nodes[0])
    assert not inner.contains(deepest.nodes[0])
    exe = graph.instantiate()
    exe.set_kernel_node_params(deepest.nodes[0], args={"by": 5})
    exe.launch(stream)
    stream.synchronize()
    assert counter.get() == [5]


def test_a_child_graph_keeps_its_parent(runtime):
    parent, child = gk.Graph(), gk.Graph()
    child.add_empty_node()
    inner = parent.child_graph(parent.add_child_graph_node(child))
    del parent, child
    gc.collect()
    assert gk.live_handles() == {"graph": 1}
    assert len(inner.nodes) == 1


def test_a_clone_is_independent(graph, stream):
    counter = gk.zeros(1, np.int32)
    a = add(graph, counter, 1)
    b = add(graph, counter, 10, deps=a)
    clone = graph.clone()
    graph.remove_node(b)
    assert pairs(clone) == [(0, 1)]
    assert clone.in_clone is not None
    assert graph.in_clone(a, clone) is clone.nodes[0]
    clone.remove_node(clone.nodes[1])
    graph.close()
    run(clone, stream)
    assert counter.get() == [1]


def test_a_clone_keeps_what_its_nodes_point_at(graph, stream):
    target = gk.zeros(N)
    graph.add_memcpy_node(target, gk.asarray(np.full(N, 5, np.float32)))
    clone = graph.clone()
    graph.close()
    del graph
    gc.collect()
    assert gk.live_handles()["device memory"] == 2
    run(clone, stream)
    assert target.get().tolist() == [5.0] * N


def test_a_node_is_not_found_in_what_is_no_clone(graph):
    node = graph.add_empty_node()
    with pytest.raises(gk.CudaError):
        graph.in_clone(node, gk.Graph())


# --- other people's ------------------------------------------------------------------------------


def owned(graph, how):
    """A graph as other libraries hold one."""
    members = {
        "raw_cuda_graph": lambda self: graph.ptr,
        "graph": graph.ptr,
        "handle": graph.ptr,
    }
    return type("Owner", (), {how: members[how]})()


@pytest.mark.parametrize("how", ["int", "raw_cuda_graph", "graph", "handle"])
def test_adopt(graph, stream, how):
    counter = gk.zeros(1, np.int32)
    add(graph, counter, 5)
    adopted = gk.Graph.adopt(graph.ptr if how == "int" else owned(graph, how), owner=graph)
    assert adopted.ptr == graph.ptr
    assert [values.name for values in adopted.kernels] == ["increment"]
    exe = adopted.instantiate()
    exe.set_kernel_node_params(adopted.nodes[0], args={"by": 7})
    exe.launch(stream)
    stream.synchronize()
    assert counter.get() == [7]
    adopted.close()
    assert len(graph.nodes) == 1  # still its owner's


def test_an_adopted_graph_keeps_its_owner(runtime):
    graph = gk.Graph()
    seen = weakref.ref(graph)
    adopted = gk.Graph.adopt(graph.ptr, owner=graph)
    del graph
    assert adopted.nodes == []
    assert seen() is not None
    del adopted
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("value", [None, 0, -1, True, "graph", object(), 1.5j])
def test_what_cannot_be_adopted(runtime, value):
    with pytest.raises(TypeError, match=r"graph: expected a PyTorch, CuPy or cuda\.core graph"):
        gk.Graph.adopt(value)


def of_bindings(kind, address):
    """A handle as cuda.bindings makes them: an int inside of a type that says what it is of."""
    members = {"__module__": "cuda.bindings.driver", "__int__": lambda self: address}
    return type(kind, (), members)()


@pytest.mark.parametrize("kind", ["CUgraph", "cudaGraph_t"])
def test_adopt_the_definition_behind_a_builder(graph, kind):
    graph.add_empty_node()
    definition = type("GraphDefinition", (), {"handle": of_bindings(kind, graph.ptr)})()
    builder = type("GraphBuilder", (), {"graph_definition": definition})()
    for given in (builder, definition, definition.handle):
        adopted = gk.Graph.adopt(given, owner=graph)
        assert [node.type.name for node in adopted.nodes] == ["EMPTY"]


@pytest.mark.parametrize("kind", ["CUgraphExec", "cudaGraphExec_t", "CUstream"])
def test_handles_of_other_things_are_not_adopted(graph, kind):
    """CUDA would take them for a graph, and crash."""
    exe = type("Graph", (), {"handle": of_bindings(kind, graph.ptr)})()
    for given in (exe, exe.handle):
        with pytest.raises(TypeError, match=rf"a cudaGraph_t as an int, came .*holds a {kind}"):
            gk.Graph.adopt(given)


# --- looking -------------------------------------------------------------------------------------


def test_kernels_lists_what_would_run(graph, x, y):
    graph.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 1.0, N))
    graph.add_empty_node()
    graph.add_kernel_node(AXPY, 2, 64, (x, y, 2.0, N))
    assert [(k.name, k.grid, k.block) for k in graph.kernels] == [
        ("add_scalar", (1, 1, 1), (32, 1, 1)),
        ("axpy", (2, 1, 1), (64, 1, 1)),
    ]


def test_dot(graph, x, y):
    first = graph.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 1.0, N))
    second = graph.add_kernel_node(AXPY, 2, 64, (x, y, 1.0, N))
    third = graph.add_memcpy_node(y, x, deps=second)
    graph.add_memset_node(y, 1.0, deps=third)
    graph.add_dependency(first, second, programmatic=True)
    lines = graph.dot().splitlines()
    boxes, edges = lines[:6], lines[6:]
    assert "\n".join([*boxes, ""]) == (
        "digraph graphkit {\n"
        "  node [shape=box, fontname=monospace];\n"
        '  n0 [label="add_scalar\\n(1, 1, 1) x (32, 1, 1)"];\n'
        '  n1 [label="axpy\\n(2, 1, 1) x (64, 1, 1)"];\n'
        '  n2 [label="memcpy device_to_device\\n32 bytes"];\n'
        '  n3 [label="memset 0x3f800000\\n8 x 1"];\n'
    )
    assert sorted(edges) == [
        "  n0 -> n1 [style=dashed, label=programmatic];",
        "  n1 -> n2;",
        "  n2 -> n3;",
        "}",
    ]


def test_dot_names_other_kinds(graph):
    event = gk.Event()
    graph.add_host_node(lambda: None)
    graph.add_event_record_node(event)
    graph.add_child_graph_node(gk.Graph())
    for label in ('"host"', '"event_record"', '"graph"'):
        assert f"[label={label}]" in graph.dot()


def test_repr(graph):
    node = graph.add_empty_node()
    assert repr(graph) == f"<Graph {graph.ptr:#x}>"
    assert repr(node) == f"<Node empty {node.ptr:#x}>"
    graph.close()
    assert repr(graph) == "<Graph closed>"


# --- executing and closing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"auto_free_on_launch": True},
        {"use_node_priority": True},
        {"device_launch": True},
    ],
)
def test_instantiate_flags(graph, x, y, stream, flags):
    graph.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 1.0, N))
    run(graph, stream, **flags)
    assert np.array_equal(y.get(), x.get() + 1)


def test_flags_are_kept(graph, stream):
    flags = gk.InstantiateFlags
    assert graph.instantiate().flags == flags.NONE
    exe = graph.instantiate(upload_stream=stream, use_node_priority=True)
    assert exe.flags == flags.UPLOAD | flags.USE_NODE_PRIORITY


def test_a_graph_gives_any_number_of_execs(graph, stream):
    counter = gk.zeros(1, np.int32)
    node = add(graph, counter, 1)
    execs = [graph.instantiate() for _ in range(3)]
    for by, exe in enumerate(execs):
        exe.set_kernel_node_params(node, args={"by": 10**by})
    for exe in execs:
        exe.launch(stream)
    stream.synchronize()
    assert counter.get() == [111]


def test_a_closed_graph_is_refused(graph):
    node = graph.add_empty_node()
    other = gk.Graph()
    with graph:
        pass
    graph.close()
    for refused in (
        lambda: graph.ptr,
        graph.add_empty_node,
        lambda: add(graph, 0),
        lambda: graph.nodes,
        lambda: graph.edges,
        graph.clone,
        graph.dot,
        graph.instantiate,
        lambda: other.add_child_graph_node(graph),
        lambda: other.instantiate().update(graph),
        lambda: graph.remove_node(node),
    ):
        with pytest.raises(ValueError, match=r"graph: expected a live graph|came a removed one"):
            refused()


def test_a_child_of_a_closed_graph_is_refused(graph):
    child = gk.Graph()
    child.add_empty_node()
    inner = graph.child_graph(graph.add_child_graph_node(child))
    graph.close()
    with pytest.raises(ValueError, match="expected a live graph"):
        inner.nodes  # noqa: B018
    assert len(child.nodes) == 1


def test_a_graph_is_not_inside_of_itself(graph, stream):
    child = gk.Graph()
    child.add_empty_node()
    inner = graph.child_graph(graph.add_child_graph_node(child))
    for around in (graph, inner):
        with pytest.raises(ValueError, match="child: expected a graph that this one is not inside"):
            around.add_child_graph_node(graph)
    again = inner.child_graph(inner.add_child_graph_node(graph.clone()))
    assert [node.type.name for node in again.nodes] == ["GRAPH"]
    run(graph, stream)


def test_a_graph_keeps_what_its_nodes_point_at(graph, stream):
    target, calls = gk.zeros(N), []
    first = graph.add_memcpy_node(target, gk.asarray(np.full(N, 5, np.float32)))
    child = gk.Graph()
    child.add_kernel_node(AXPY, 1, 32, (gk.asarray(np.ones(N, np.float32)), target, 2.0, N))
    second = graph.add_child_graph_node(child, deps=first)
    del child
    third = graph.add_event_record_node(gk.Event(), deps=second)
    graph.add_host_node(lambda: calls.append(1), deps=third)
    gc.collect()
    gk.asarray(np.full(N, -1, np.float32))
    run(graph, stream)
    assert target.get().tolist() == [7.0] * N
    assert calls == [1]
    graph.close()
    del graph


def test_what_a_graph_pointed_at_goes_with_it(runtime):
    graph = gk.Graph()
    array = gk.zeros(N)
    seen = weakref.ref(array)
    graph.add_memset_node(array, 0)
    del array
    assert seen() is not None
    exe = graph.instantiate()
    graph.close()
    del graph
    assert seen() is not None
    exe.close()
    del exe
    gc.collect()
    assert seen() is None
    assert gk.live_handles() == {}
