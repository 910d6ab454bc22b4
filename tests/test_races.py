"""check_races(): what it finds in graphs made by hand and in captures, and what it says."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conditional_kernels import SET_HANDLE
from sample_kernels import ADD_SCALAR, AXPY, INCREMENT

import graphkit as gk
from graphkit.fork import fork
from graphkit.runtime.protocol import KernelSource

N = 16


@pytest.fixture
def graph(runtime):
    return gk.Graph()


@pytest.fixture
def arrays(runtime):
    return [gk.zeros(N) for _ in range(5)]


def add(graph, x, y, **kwargs):
    """Add a kernel that reads ``x`` and writes ``y``."""
    return graph.add_kernel_node(ADD_SCALAR, 1, N, (x, y, 1.0, len(y)), **kwargs)


def found(graph):
    """Return the kind of each race, and the places of its nodes."""
    nodes = graph.nodes
    return [
        (race.kind, nodes.index(race.first), nodes.index(race.second))
        for race in graph.check_races()
    ]


# --- what is a race ------------------------------------------------------------------------------


def test_each_kind_of_race_is_found(graph, arrays):
    x, y, z, *_ = arrays
    add(graph, x, y)
    add(graph, y, z)
    add(graph, x, y)
    assert found(graph) == [("RAW", 0, 1), ("WAW", 0, 2), ("WAR", 1, 2)]


def test_ordered_nodes_do_not_race(graph, arrays):
    x, y, z, *_ = arrays
    first = add(graph, x, y)
    second = add(graph, y, z, deps=first)
    between = graph.add_empty_node(deps=second)
    add(graph, x, y, deps=between)
    assert found(graph) == []


def test_reads_do_not_race(graph, arrays):
    x, *others = arrays
    for y in others:
        add(graph, x, y)
    assert found(graph) == []


def test_an_edge_against_the_order_of_adding_orders_too(graph, arrays):
    x, y, z, *_ = arrays
    first = add(graph, x, y)
    second = add(graph, y, z)
    graph.add_dependency(second, first)
    assert found(graph) == []


def test_parts_of_an_array_do_not_race(graph, arrays):
    x, y, *_ = arrays
    add(graph, x[:8], y[:8])
    add(graph, x[8:], y[8:])
    graph.add_memset_node(y[6:10], 0)
    assert found(graph) == [("WAW", 0, 2), ("WAW", 1, 2)]
    race, _ = graph.check_races()
    assert (race.start, race.nbytes) == (y.ptr + 24, 8)


def test_copies_and_fills_race(graph, arrays):
    x, y, *_ = arrays
    pinned = gk.empty_pinned(N)
    graph.add_memcpy_node(x, pinned)
    graph.add_memcpy_node(y, x)
    graph.add_memset_node(y, 0)
    graph.add_memcpy_node(pinned, y)
    assert found(graph) == [
        ("RAW", 0, 1),
        ("WAR", 0, 3),
        ("WAW", 1, 2),
        ("RAW", 1, 3),
        ("RAW", 2, 3),
    ]


def test_a_declaration_says_more_precisely_what_is_touched(graph, arrays):
    x, y, *_ = arrays
    add(graph, x, y, writes=[y[:8]])
    add(graph, x, y, writes=[y[8:]])
    assert found(graph) == []
    add(graph, x, y)
    assert found(graph) == [("WAW", 0, 2), ("WAW", 1, 2)]


def test_a_host_node_races_when_it_declares(graph, arrays):
    pinned = gk.empty_pinned(N)
    graph.add_memcpy_node(pinned, arrays[0])
    graph.add_host_node(lambda: None)
    graph.add_host_node(lambda: None, reads=[pinned])
    assert found(graph) == [("RAW", 0, 2)]


def test_graph_memory_must_not_be_used_beside_its_alloc_and_free_nodes(graph, arrays):
    node, temporary = graph.add_mem_alloc_node(N)
    used = add(graph, arrays[0], temporary, deps=node)
    graph.add_mem_free_node(temporary, deps=node)
    assert found(graph) == [("WAW", 1, 2)]
    graph.add_dependency(used, graph.nodes[2])
    assert found(graph) == []


def test_a_view_of_another_extent_at_the_same_address(graph, arrays):
    x, y, *_ = arrays
    graph.add_memset_node(y[12:], 0)
    graph.add_kernel_node(ADD_SCALAR, 1, N, (x[:8], y[:8], 1.0, 8))
    assert found(graph) == []


def test_of_an_address_the_first_element_counts(graph, arrays):
    x, y, *_ = arrays
    graph.add_memset_node(y.ptr, 0, nbytes=y.nbytes)
    with pytest.raises(ValueError):
        gk.Graph(edges="derived").add_kernel_node(ADD_SCALAR, 1, N, (x, y.ptr + 60, 1.0, 1))
    graph.add_kernel_node(ADD_SCALAR, 1, N, (x, y.ptr + 60, 1.0, 1))
    assert found(graph) == [("WAW", 0, 1)]
    assert graph.check_races()[0].nbytes == 4


# --- graphs inside of graphs ---------------------------------------------------------------------


def test_races_inside_of_a_child_graph_and_with_it(graph, arrays):
    x, y, z, *_ = arrays
    child = gk.Graph()
    add(child, x, y[:8])
    child.add_memset_node(y[4:12], 0)
    graph.add_memset_node(y[:2], 0)
    node = graph.add_child_graph_node(child)
    graph.add_memcpy_node(z[:8], y[8:])
    races = graph.check_races()
    inside = graph.child_graph(node)
    assert [(race.kind, race.nbytes) for race in races] == [("WAW", 8), ("RAW", 16), ("WAW", 16)]
    assert races[0].second is races[1].first is node
    assert [races[2].first, races[2].second] == inside.nodes
    assert races[0].second_argument == "kernel add_scalar y"


def test_races_inside_of_a_body(graph, arrays):
    x, y, z, *_ = arrays
    flag = gk.asarray([1], np.int32)
    with graph.while_(flag) as body:
        add(body, x, y)
        add(body, y, z)
        body.add_kernel_node(INCREMENT, 1, 1, (flag, -1))
    graph.add_memset_node(z, 0)
    races = graph.check_races()
    assert [race.kind for race in races] == ["WAW", "RAW"]
    assert races[0].first.type is gk.NodeType.CONDITIONAL
    assert [races[1].first, races[1].second] == body.nodes[:2]


def test_a_condition_that_is_set_beside_the_node_that_asks_for_it(graph, stream):
    handle = graph.conditional_handle(default=0)
    first = graph.add_kernel_node(SET_HANDLE, 1, 1, (handle, 1))
    second = graph.add_kernel_node(SET_HANDLE, 1, 1, (int(handle), 0))
    asks = graph.if_(handle, deps=first).node
    assert found(graph) == [("WAW", 0, 1), ("RAW", 1, 2)]
    assert f"handle and conditional (node 2) reads, the same condition {int(handle):#x}, and" in (
        str(graph.check_races()[1])
    )
    graph.add_dependency(first, second)
    graph.add_dependency(second, asks)
    assert found(graph) == []


def test_a_condition_that_a_captured_kernel_sets(stream):
    with gk.capture(stream) as graph:
        first, second = graph.conditional_handle(), graph.conditional_handle()
        for handle in (first, second):
            SET_HANDLE(1, 1, (handle, 1), stream=stream)
        with graph.if_(first) as body:
            body.if_(second)
    assert found(graph) == []
    *_, setter, node = graph.nodes
    graph.remove_dependency(setter, node)
    assert found(graph) == [("RAW", 0, 2), ("RAW", 1, 2)]


def test_a_clone_races_as_its_original(graph, arrays):
    x, y, z, *_ = arrays
    add(graph, x, y, writes=[y[:4]])
    add(graph, y[2:], z[2:])
    assert found(graph.clone()) == found(graph) == [("RAW", 0, 1)]
    assert graph.clone().check_races()[0].nbytes == 8


# --- captures ------------------------------------------------------------------------------------


def test_a_captured_fork_that_shares_an_array(stream, arrays):
    x, y, z, u, _ = arrays
    with gk.capture(stream) as graph, fork(stream, 2) as (left, right):
        ADD_SCALAR(1, N, (x, y, 1.0, N), stream=left)
        ADD_SCALAR(1, N, (x, z, 1.0, N), stream=right)
        AXPY(1, N, (y, u, 1.0, N), stream=right)
    (race,) = graph.check_races()
    assert (race.kind, race.first_argument, race.second_argument) == ("RAW", "y", "x")
    assert (race.start, race.end) == (y.ptr, y.ptr + y.nbytes)


def test_a_capture_of_the_same_kernel_on_the_same_array(stream, arrays):
    x, y, *_ = arrays
    with gk.capture(stream) as graph:
        for _ in range(3):
            ADD_SCALAR(1, N, (x, y, 1.0, N), stream=stream)
    assert found(graph) == []
    graph.remove_dependency(*graph.nodes[1:])
    assert found(graph) == [("WAW", 0, 2), ("WAW", 1, 2)]


@pytest.mark.parametrize("ends", [(4, N), (N, 4)])
def test_captured_launches_of_one_kernel_from_the_same_addresses(stream, arrays, ends):
    x, y, z, *_ = arrays
    with gk.capture(stream) as graph, fork(stream, 2) as (left, right):
        for end in ends:
            ADD_SCALAR(1, end, (x[:end], y[:end], 1.0, end), stream=left)
        ADD_SCALAR(1, 4, (y[8:12], z[:4], 1.0, 4), stream=right)
    assert [(race.kind, race.nbytes) for race in graph.check_races()] == [("RAW", 16)]
    (race,) = graph.check_races()
    assert race.first is graph.nodes[ends.index(N)]


def test_captured_launches_that_differ_in_the_extent_of_their_arrays_alone(stream, arrays):
    x, y, z, *_ = arrays
    with gk.capture(stream) as graph, fork(stream, 2) as (left, right):
        ADD_SCALAR(1, 4, (x[:4], y[:4], 1.0, 4), stream=left)
        ADD_SCALAR(1, 4, (x, y, 1.0, 4), stream=left)
        ADD_SCALAR(1, 4, (y[8:12], z[:4], 1.0, 4), stream=right)
    (race,) = graph.check_races()
    assert race.first is graph.nodes[1]
    graph.remove_node(graph.nodes[0])
    (race,) = graph.check_races()
    assert race.first is graph.nodes[0]


def test_a_function_that_nobody_knows_is_left_out(graph, arrays, runtime):
    x, y, *_ = arrays
    layout = tuple((item.offset, item.size) for item in ADD_SCALAR.parameters)
    code = ADD_SCALAR.code + "// compiled anew: another function\n"
    source = KernelSource(code, ADD_SCALAR.name, (), layout, None)
    loaded = runtime.function_load(source)
    opaque = gk.Kernel.wrap(loaded.handle, runtime=runtime)
    graph.add_kernel_node(opaque, 1, N, (x.ptr, y.ptr, np.float32(1), np.int32(N)))
    graph.add_memset_node(y, 0)
    assert found(graph) == []
    # An array says how much it may touch, though not whether it only reads.
    graph.add_kernel_node(opaque, 1, N, (x, y.ptr, np.float32(1), np.int32(N)))
    graph.add_memcpy_node(y, x)
    assert found(graph) == [("WAW", 1, 3), ("RAW", 2, 3)]


def test_an_array_that_was_freed_in_between_is_no_error(graph, arrays):
    x, y, *_ = arrays
    temporary = gk.zeros(N)
    add(graph, x, temporary)
    add(graph, temporary, y)
    temporary.free()
    assert found(graph) == [("RAW", 0, 1)]


# --- execs ---------------------------------------------------------------------------------------


def test_an_exec_is_checked_with_the_arguments_it_has(runtime, arrays):
    x, y, z, u, v = arrays
    graph = gk.Graph(edges="derived")
    first = add(graph, x, y)
    second = add(graph, x, z)
    with graph.instantiate() as exe:
        assert exe.check_races() == ()
        exe.set_kernel_node_params(second, args={"x": y})
        (race,) = exe.check_races()
        assert (race.kind, race.first, race.second) == ("RAW", first, second)
        exe.set_kernel_node_params(first, args={"y": u})
        assert exe.check_races() == ()
        exe.set_kernel_node_params(second, args={"y": u[:4], "n": 4})
        assert [(race.kind, race.nbytes) for race in exe.check_races()] == [("WAW", 16)]
        exe.set_kernel_node_params(second, kernel=AXPY, args=(v, v, 1.0, N))
        assert exe.check_races() == ()
        assert graph.check_races() == ()


def test_what_was_declared_moves_with_its_argument(runtime, arrays):
    x, y, z, *_ = arrays
    graph = gk.Graph(edges="derived")
    first = add(graph, x, y, writes=[y[:8]])
    add(graph, x, y, writes=[y[8:]])
    third = add(graph, x, z, reads=["y"])
    with graph.instantiate() as exe:
        exe.set_kernel_node_params(first, args={"y": z})
        (race,) = exe.check_races()
        assert (race.kind, race.start, race.nbytes) == ("RAW", z.ptr, 32)
        exe.set_kernel_node_params(third, args={"y": y[10:]})
        assert [race.start for race in exe.check_races()] == [y.ptr + 40]


def test_what_was_declared_moves_with_each_argument_that_it_may_be_of(runtime, arrays):
    x, y, z, *_ = arrays
    graph = gk.Graph(edges="derived")
    first = graph.add_kernel_node(AXPY, 1, N, (x, x, 1.0, N), reads=[x[:8]], writes=[x[8:]])
    add(graph, y, z)
    with graph.instantiate() as exe:
        assert exe.check_races() == ()
        exe.set_kernel_node_params(first, args={"x": z})
        (race,) = exe.check_races()
        assert (race.kind, race.start, race.nbytes) == ("WAR", z.ptr, 32)
        exe.set_kernel_node_params(first, args={"x": x, "y": y})
        (race,) = exe.check_races()
        assert (race.kind, race.start, race.nbytes) == ("RAW", y.ptr + 32, 32)


def test_changes_inside_of_a_child_of_a_graph_with_derived_edges(runtime, arrays):
    x, y, z, *_ = arrays
    child, graph = gk.Graph(), gk.Graph(edges="derived")
    add(child, x, y)
    holder = graph.add_child_graph_node(child)
    other = add(graph, x, z)
    inside = graph.child_graph(holder)
    with graph.instantiate() as exe:
        assert exe.check_races() == ()
        exe.set_kernel_node_params(inside.nodes[0], args={"y": z})
        (race,) = exe.check_races()
        assert (race.kind, race.first, race.second) == ("WAW", holder, other)


def test_changes_inside_of_a_body_of_a_graph_with_derived_edges(runtime, arrays):
    x, y, z, *_ = arrays
    flag, graph = gk.zeros(1, np.int32), gk.Graph(edges="derived")
    choice = graph.if_(flag)
    with choice as body:
        inside = add(body, x, y)
    other = add(graph, x, z)
    with graph.instantiate() as exe:
        assert exe.check_races() == graph.check_races() == ()
        exe.set_kernel_node_params(inside, args={"y": z})
        (race,) = exe.check_races()
        assert (race.kind, race.first, race.second) == ("WAW", choice.node, other)


def test_an_exec_knows_nothing_of_what_its_graph_gained_or_lost_since(runtime, arrays):
    x, y, z, u, v = arrays
    graph = gk.Graph()
    first = add(graph, x, y)
    between = add(graph, x, u, deps=first)
    last = add(graph, y, z, deps=between)
    free = add(graph, x, v)
    with graph.instantiate() as exe:
        added = add(graph, x, y)
        assert len(graph.check_races()) == 2
        assert exe.check_races() == ()
        graph.remove_node(between)
        assert ("RAW", first, last) in [
            (race.kind, race.first, race.second) for race in graph.check_races()
        ]
        assert exe.check_races() == ()  # there the node between orders the two
        exe.set_kernel_node_params(free, args={"y": y})
        graph.add_dependency(first, free)
        assert {(race.first, race.second) for race in exe.check_races()} == {
            (first, free),
            (last, free),
        }
        assert added in {race.second for race in graph.check_races()}


def test_an_exec_whose_values_came_from_a_graph_that_has_changed(runtime, arrays):
    x, y, z, *_ = arrays
    graph, other = gk.Graph(), gk.Graph()
    add(graph, x, y)
    add(other, x, z)
    with graph.instantiate() as exe:
        assert exe.update(other)
        add(other, x, y)
        with pytest.raises(ValueError, match="exec: expected 1 node in the graph where"):
            exe.check_races()


def test_copies_and_fills_of_an_exec(runtime, arrays):
    x, y, z, u, _ = arrays
    graph = gk.Graph(edges="derived")
    copy = graph.add_memcpy_node(x, y)
    fill = graph.add_memset_node(z, 0)
    with graph.instantiate() as exe:
        exe.set_memset_node_params(fill, dst=y)
        assert [race.kind for race in exe.check_races()] == ["WAR"]
        exe.set_memcpy_node_params(copy, src=u)
        assert exe.check_races() == ()


def test_an_exec_that_was_updated(runtime, arrays):
    x, y, z, u, _ = arrays

    def line(*ends):
        child, graph = gk.Graph(), gk.Graph()
        for source, target in ends:
            add(child, source, target)
        graph.add_child_graph_node(child)
        add(graph, *ends[-1], deps=graph.nodes)
        return graph

    graph, other = line((x, y), (x, z)), line((x, y), (y, u))
    with graph.instantiate() as exe:
        assert exe.check_races() == ()
        assert exe.update(other)
        (race,) = exe.check_races()
        inside = graph.child_graph(graph.nodes[0])
        assert (race.kind, [race.first, race.second]) == ("RAW", inside.nodes)
        child = gk.Graph()
        add(child, x, y)
        add(child, x, u)
        exe.set_child_graph_node_params(graph.nodes[0], child)
        assert exe.check_races() == ()


# --- what it says --------------------------------------------------------------------------------


def test_a_race_is_one_clear_line(graph, arrays):
    x, y, z, *_ = arrays
    add(graph, x, y)
    graph.add_memcpy_node(z, y)
    text = str(graph.check_races()[0])
    assert re.fullmatch(
        r"RAW race: kernel add_scalar \(node 0\) writes y and memcpy \(node 1\) reads src, the "
        r"same 64 bytes \[0x[0-9a-f]+, 0x[0-9a-f]+\), and nothing orders the two; call "
        r"graph\.add_dependency\(race\.first, race\.second\), or build the graph with "
        r'edges="derived"',
        text,
    )
    assert text.count("\n") == 0


def test_the_fix_it_names_is_one(graph, arrays):
    x, y, z, *_ = arrays
    for ends in ((x, y), (y, z), (z, x), (x, z)):
        add(graph, *ends)
    while races := graph.check_races():
        graph.add_dependency(races[0].first, races[0].second)
    derived = gk.Graph(edges="derived")
    for ends in ((x, y), (y, z), (z, x), (x, z)):
        add(derived, *ends)
    assert derived.check_races() == ()
    assert len(derived.edges) == 3


def test_a_closed_graph_is_refused(graph):
    graph.close()
    with pytest.raises(ValueError, match="graph: expected a live graph"):
        graph.check_races()
