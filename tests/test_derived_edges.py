"""Derived edges: what is ordered, what is not, what is refused; random programs against a model."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from conditional_kernels import SET_HANDLE, STEP_HANDLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_kernels import ADD_SCALAR, AXPY, INCREMENT

import graphkit as gk
from graphkit.accesses import Access
from graphkit.hazards import Hazards, members

N = 16


@pytest.fixture
def graph(runtime):
    return gk.Graph(edges="derived")


@pytest.fixture
def arrays(runtime):
    return [gk.zeros(N) for _ in range(5)]


def add(graph, x, y, **kwargs):
    """Add a kernel that reads ``x`` and writes ``y``."""
    return graph.add_kernel_node(ADD_SCALAR, 1, N, (x, y, 1.0, len(y)), **kwargs)


def pairs(graph):
    """Return the edges as pairs of places in the order of adding."""
    places = {node.ptr: place for place, node in enumerate(graph.nodes)}
    return {(places[edge.from_node.ptr], places[edge.to_node.ptr]) for edge in graph.edges}


def run(graph, stream):
    with graph.instantiate() as exe:
        exe.launch(stream)
        stream.synchronize()


# --- which edges there are -----------------------------------------------------------------------


def test_a_read_waits_for_the_write(graph, arrays):
    x, y, z, *_ = arrays
    add(graph, x, y)
    add(graph, y, z)
    assert pairs(graph) == {(0, 1)}


def test_a_write_waits_for_the_reads_and_the_write_before(graph, arrays):
    x, y, z, u, _ = arrays
    add(graph, u, x)
    add(graph, x, y)
    add(graph, x, z)
    add(graph, u, x)
    assert pairs(graph) == {(0, 1), (0, 2), (1, 3), (2, 3)}


def test_reads_of_the_same_bytes_are_not_ordered(graph, arrays):
    x, *others = arrays
    for y in others:
        add(graph, x, y)
    assert pairs(graph) == set()


def test_a_diamond_is_a_diamond(graph, arrays, stream):
    x, y, z, u, _ = arrays
    graph.add_memset_node(x, 1.5)
    add(graph, x, y)
    add(graph, x, z)
    graph.add_kernel_node(AXPY, 1, N, (y, z, 2.0, N))
    graph.add_memcpy_node(u, z)
    assert pairs(graph) == {(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)}
    run(graph, stream)
    assert u.get().tolist() == [7.5] * N


def test_what_others_imply_is_left_out(graph, arrays):
    x, y, z, *_ = arrays
    add(graph, x, y)
    add(graph, y, z)
    graph.add_kernel_node(AXPY, 1, N, (y, z, 1.0, N))  # reads what 0 wrote, after 1 did
    assert pairs(graph) == {(0, 1), (1, 2)}


def test_parts_of_an_array_that_do_not_overlap_are_not_ordered(graph, arrays):
    x, y, *_ = arrays
    add(graph, x[:8], y[:8])
    add(graph, x[8:], y[8:])
    add(graph, y[6:10], x[:4])
    assert pairs(graph) == {(0, 2), (1, 2)}


def test_a_view_with_gaps_spans_what_lies_between(graph, runtime):
    x, y = gk.zeros((4, 4)), gk.zeros(4)
    graph.add_memset_node(x[1:3, 1:2], 1.0)
    graph.add_memset_node(x[1, 2:3], 2.0)  # in a gap
    graph.add_memset_node(x[2, 2:], 2.0)  # behind the last element
    graph.add_memcpy_node(y[:1], x[1, 1:2])
    assert pairs(graph) == {(0, 1), (0, 3)}


def test_copies_and_fills_are_ordered_on_the_host_too(graph, arrays, stream):
    x, y, *_ = arrays
    pinned = gk.empty_pinned(N)
    pinned[:] = 3
    graph.add_memcpy_node(x, pinned)
    add(graph, x, y)
    graph.add_memcpy_node(pinned, y)
    seen = []
    graph.add_host_node(lambda: seen.append(float(pinned[0])), reads=[pinned])
    assert pairs(graph) == {(0, 1), (1, 2), (2, 3)}
    run(graph, stream)
    assert seen == [4.0]


def test_a_child_graph_touches_what_its_nodes_touch(graph, arrays, stream):
    x, y, z, u, v = arrays
    child = gk.Graph()
    child.add_kernel_node(AXPY, 1, N, (x, y, 1.0, N))
    child.add_memset_node(z, 2.0)
    graph.add_memset_node(x, 1.0)
    graph.add_child_graph_node(child)
    add(graph, y, u)
    add(graph, z, v)
    add(graph, v, x)
    assert pairs(graph) == {(0, 1), (1, 2), (1, 3), (3, 4)}
    run(graph, stream)
    assert (u.get()[0], v.get()[0], x.get()[0]) == (2.0, 3.0, 4.0)


def test_a_child_graph_that_was_captured(graph, arrays, stream):
    x, y, z, *_ = arrays
    with gk.capture(stream) as child:
        ADD_SCALAR(1, N, (x, y, 1.0, N), stream=stream)
    graph.add_memset_node(x, 1.0)
    graph.add_child_graph_node(child)
    add(graph, y, z)
    graph.add_memset_node(x, 0)
    assert pairs(graph) == {(0, 1), (1, 2), (1, 3)}


def test_event_and_empty_nodes_wait_for_what_they_are_told(graph, arrays, runtime):
    x, y, *_ = arrays
    event = gk.Event()
    first = add(graph, x, y)
    record = graph.add_event_record_node(event, deps=first)
    graph.add_empty_node()
    graph.add_event_wait_node(event, deps=[first, record])
    assert pairs(graph) == {(0, 1), (1, 3)}
    event.close()


def test_a_body_of_a_conditional_node_touches_what_its_nodes_touch(graph, arrays, stream):
    x, y, z, u, _ = arrays
    flag = gk.asarray([3], np.int32)
    graph.add_memset_node(x, 1.0)
    graph.add_memset_node(y, 0.0)
    with graph.while_(flag) as body:
        body.add_kernel_node(AXPY, 1, N, (x, y, 1.0, N))
        body.add_kernel_node(INCREMENT, 1, 1, (flag, -1))
        assert pairs(body) == set()
    add(graph, y, z)
    graph.add_memset_node(u, 2.0)
    # 2 sets the condition, 3 is the loop: it waits for 0 and 1, and nothing for the last node.
    assert pairs(graph) == {(0, 3), (1, 3), (2, 3), (3, 4)}
    run(graph, stream)
    assert z.get()[0] == 4.0


def test_a_loop_at_the_end_is_ordered_too(graph, arrays, stream):
    x, y, *_ = arrays
    flag = gk.asarray([2], np.int32)
    graph.add_memset_node(x, 1.0)
    with graph.while_(flag) as body:
        body.add_kernel_node(AXPY, 1, N, (x, y, 1.0, N))
        body.add_kernel_node(INCREMENT, 1, 1, (flag, -1))
    run(graph, stream)
    assert pairs(graph) == {(0, 2), (1, 2)}
    assert y.get()[0] == 2.0


def test_who_sets_a_condition_goes_ahead_of_the_node_that_asks_for_it(graph, stream):
    counter, more = gk.zeros(1, np.int32), gk.asarray([1], np.int32)
    first, second = graph.conditional_handle(), graph.conditional_handle(default=0)
    for handle, value in ((first, 0), (second, 1), (first, 1)):
        graph.add_kernel_node(SET_HANDLE, 1, 1, (handle, value))
    with graph.if_(first) as body, body.if_(more) as inner, inner.if_(second) as innermost:
        innermost.add_kernel_node(INCREMENT, 1, 1, (counter, 1))
    assert pairs(graph) == {(0, 2), (1, 3), (2, 3)}
    assert graph.check_races() == ()
    run(graph, stream)
    assert counter.get()[0] == 1


def test_in_a_body_too(graph, stream):
    counter, total, more = (gk.asarray([n], np.int32) for n in (0, 0, 2))
    with graph.while_(more) as body:
        handle = body.conditional_handle()
        body.add_kernel_node(INCREMENT, 1, 1, (more, -1))
        body.add_kernel_node(SET_HANDLE, 1, 1, (handle, 1))
        with body.while_(handle) as inner:
            inner.add_kernel_node(STEP_HANDLE, 1, 1, (counter, 3, handle))
            inner.add_kernel_node(INCREMENT, 1, 1, (total, 1))
    assert (1, 2) in pairs(body)
    run(graph, stream)
    assert (counter.get()[0], total.get()[0]) == (4, 4)


def test_bodies_must_be_full_before_the_next_node(graph, arrays):
    x, y, *_ = arrays
    flag = gk.asarray([1], np.int32)
    loop = graph.while_(flag)
    with pytest.raises(ValueError, match="expected complete bodies"):
        add(graph, x, y)
    with loop as body:
        body.add_kernel_node(INCREMENT, 1, 1, (flag, -1))
    add(graph, x, y)
    branch = graph.if_(flag)
    add(graph, x, y)
    with branch as body, pytest.raises(ValueError, match="whose graph has"):
        add(body, x, y)


def test_a_conditional_node_that_is_refused_leaves_nothing_behind(graph, arrays, stream):
    x, y, *_ = arrays
    flag = gk.asarray([1], np.int32)
    with graph.if_(flag) as body:
        for refused in (lambda: graph.while_(flag), lambda: graph.switch(flag, 2)):
            with pytest.raises(ValueError, match="expected complete bodies"):
                refused()
        add(body, x, y)
    run(graph, stream)
    assert y.get()[0] == 1


def test_a_body_of_which_too_little_is_known_is_refused_each_time(graph, arrays, runtime, stream):
    x, y, *_ = arrays
    opaque = gk.Kernel.wrap(ADD_SCALAR.function(runtime), runtime=runtime)
    with graph.if_(gk.asarray([1], np.int32)) as body, gk.capture(stream, into=body):
        opaque(1, N, (x.ptr, y.ptr, np.float32(1), np.int32(N)), stream=stream)
    for attempt in (graph.instantiate, lambda: add(graph, x, y)) * 2:
        with pytest.raises(ValueError, match="graph: expected nodes of which it is known"):
            attempt()
    assert len(graph.nodes) == 2


def test_memory_nodes_go_ahead_of_the_users_and_behind_them(graph, arrays, stream):
    x, y, *_ = arrays
    _, temporary = graph.add_mem_alloc_node(N)
    graph.add_memset_node(x, 1.0)
    add(graph, x, temporary)
    add(graph, temporary, y)
    graph.add_mem_free_node(temporary)
    add(graph, y, x)
    assert pairs(graph) == {(0, 2), (1, 2), (2, 3), (3, 4), (3, 5)}
    run(graph, stream)
    assert y.get()[0] == 3.0


def test_an_address_to_free_is_refused(graph, runtime):
    _, temporary = graph.add_mem_alloc_node(N)
    with pytest.raises(ValueError, match="array: expected the array itself"):
        graph.add_mem_free_node(temporary.ptr)


def test_the_edges_of_a_clone_are_derived_too(graph, arrays, stream):
    x, y, z, u, _ = arrays
    add(graph, x, y)
    clone = graph.clone()
    add(clone, y, z)
    add(clone, x, u)
    assert pairs(clone) == {(0, 1)}
    assert pairs(graph) == set()
    run(clone, stream)
    assert z.get()[0] == 2.0


# --- explicit edges ------------------------------------------------------------------------------


def test_explicit_edges_are_added_unless_they_are_implied(graph, arrays):
    x, y, z, u, v = arrays
    first = add(graph, x, y)
    second = add(graph, y, z)
    add(graph, u, v, deps=[first, second])
    assert pairs(graph) == {(0, 1), (1, 2)}


def test_derived_edges_are_left_out_where_explicit_ones_imply_them(graph, arrays):
    x, y, z, u, v = arrays
    first = add(graph, x, y)
    between = add(graph, u, v, deps=first)
    add(graph, y, z, deps=between)
    assert pairs(graph) == {(0, 1), (1, 2)}


def test_an_edge_added_later_makes_others_superfluous(graph, arrays):
    x, y, z, u, v = arrays
    first = add(graph, x, y)
    last = add(graph, y, z)
    between = add(graph, u, v)
    graph.add_dependency(first, between)
    assert pairs(graph) == {(0, 1), (0, 2)}
    graph.add_dependency(between, last)
    assert pairs(graph) == {(0, 2), (2, 1)}
    graph.add_dependency(first, last)
    assert pairs(graph) == {(0, 2), (2, 1)}


def test_an_edge_against_the_order_is_refused(graph, arrays):
    x, y, z, *_ = arrays
    first, second = add(graph, x, y), add(graph, y, z)
    for node in (first, second):
        with pytest.raises(ValueError, match="to_node: expected one that is not ordered before"):
            graph.add_dependency(second, node)
    assert pairs(graph) == {(0, 1)}


def test_a_programmatic_edge_takes_the_place_of_the_derived_one(graph, arrays):
    x, y, z, *_ = arrays
    first, second = add(graph, x, y), add(graph, y, z)
    graph.add_dependency(first, second, programmatic=True)
    assert [(edge.from_node, edge.programmatic) for edge in graph.edges] == [(first, True)]
    add(graph, y, arrays[3], deps=second)
    assert pairs(graph) == {(0, 1), (1, 2)}


def test_nothing_is_taken_out_of_a_graph_with_derived_edges(graph, arrays):
    x, y, z, *_ = arrays
    first, second = add(graph, x, y), add(graph, y, z)
    with pytest.raises(ValueError, match="graph: expected a graph with given edges"):
        graph.remove_dependency(first, second)
    with pytest.raises(ValueError, match="node: expected a graph with given edges"):
        graph.remove_node(first)
    assert pairs(graph) == {(0, 1)}


# --- declarations --------------------------------------------------------------------------------


def test_a_call_may_declare_less_than_its_signature_says(graph, arrays):
    x, y, z, *_ = arrays
    add(graph, x, y)
    add(graph, z, y, reads=["y"])  # does not write y after all
    add(graph, z, y, reads=["y"])
    assert pairs(graph) == {(0, 1), (0, 2)}


def test_a_part_of_an_argument_may_be_declared(graph, arrays):
    x, y, *_ = arrays
    add(graph, x, y, writes=[y[:8]])
    add(graph, x, y, writes=[y[8:]], reads=[y[:1]])
    add(graph, x, y, writes=[y[8:]])
    assert pairs(graph) == {(0, 1), (1, 2)}


def test_what_is_written_says_nothing_about_what_is_read(graph, arrays):
    x = arrays[0]
    graph.add_memset_node(x, 0)
    # The const argument lies around what is written, and is read all the same.
    add(graph, x, x[8:], writes=[x[8:]])
    graph.add_memset_node(x[:4], 1.0)
    assert pairs(graph) == {(0, 1), (1, 2)}


def test_what_is_read_says_nothing_about_what_another_argument_writes(graph, arrays):
    x = arrays[0]
    # What is read lies inside of what the other argument may write, all of it.
    add(graph, x[8:], x, reads=[x[8:]])
    graph.add_memcpy_node(arrays[1][:4], x[:4])
    add(graph, arrays[2], x, reads=[x[8:]])
    graph.add_memcpy_node(arrays[1][4:8], x[4:8])
    assert pairs(graph) == {(0, 1), (0, 2), (0, 3)}


def test_an_address_needs_a_declaration(graph, arrays):
    x, y, z, *_ = arrays
    with pytest.raises(ValueError, match=r"args: expected an array for `float32\* y`"):
        graph.add_kernel_node(ADD_SCALAR, 1, N, (x, y.ptr, 1.0, N))
    with pytest.raises(ValueError, match="writes: expected an array over what 'y' points at"):
        graph.add_kernel_node(ADD_SCALAR, 1, N, (x, y.ptr, 1.0, N), writes=["y"])
    assert graph.nodes == []
    graph.add_kernel_node(ADD_SCALAR, 1, N, (x, y.ptr, 1.0, N), writes=[y])
    add(graph, y, z)
    assert pairs(graph) == {(0, 1)}


def test_a_null_pointer_touches_nothing(graph, arrays):
    graph.add_kernel_node(ADD_SCALAR, 1, N, (0, arrays[0], 1.0, 0))
    add(graph, arrays[1], arrays[2])
    assert pairs(graph) == set()


def test_a_function_without_a_signature_writes_what_it_is_given(graph, arrays, runtime):
    x, y, z, *_ = arrays
    opaque = gk.Kernel.wrap(ADD_SCALAR.function(runtime), runtime=runtime)
    graph.add_kernel_node(opaque, 1, N, (x, y, np.float32(1), np.int32(N)))
    graph.add_kernel_node(opaque, 1, N, (x, z, np.float32(1), np.int32(N)))
    graph.add_kernel_node(opaque, 1, N, (x, z, np.float32(1), np.int32(N)), reads=["arg0"])
    assert pairs(graph) == {(0, 1), (1, 2)}
    with pytest.raises(ValueError, match="args: expected an array for `8 bytes arg1`"):
        graph.add_kernel_node(opaque, 1, N, (x, y.ptr, np.float32(1), np.int32(N)))


@pytest.mark.parametrize(
    ("declared", "error", "message"),
    [
        ({"reads": ["w"]}, TypeError, r"reads: expected arrays and names .* \['x', 'y'\]"),
        ({"writes": ["n"]}, TypeError, "writes: expected arrays and names"),
        ({"writes": [3]}, TypeError, "writes: expected arrays and names"),
        ({"writes": ["x"]}, ValueError, "writes: expected arguments that are not const"),
        ({"reads": "x"}, TypeError, "reads: expected a list or tuple .* came str"),
        ({"reads": 3}, TypeError, "reads: expected a list or tuple .* came int"),
    ],
)
def test_wrong_declarations_are_refused(graph, arrays, declared, error, message):
    with pytest.raises(error, match=message):
        add(graph, arrays[0], arrays[1], **declared)
    assert graph.nodes == []


def test_one_array_is_no_list_of_arrays(graph, arrays):
    with pytest.raises(TypeError, match="reads: expected a list or tuple"):
        add(graph, arrays[0], arrays[1], reads=arrays[0])


def test_a_view_of_negative_steps_spans_what_it_covers(graph, runtime):
    pinned = gk.empty_pinned(N)
    graph.add_host_node(lambda: None, writes=[pinned[8::-2]])
    for at in (0, 8):
        graph.add_host_node(lambda: None, reads=[pinned[at : at + 1]])
    graph.add_host_node(lambda: None, reads=[pinned[9:], pinned[:0]])
    assert pairs(graph) == {(0, 1), (0, 2)}


def test_what_is_declared_is_kept_alive(graph, arrays):
    x, y = arrays[0], gk.zeros(N)
    graph.add_kernel_node(ADD_SCALAR, 1, N, (x, y.ptr, 1.0, N), writes=[y])
    alive = weakref.ref(y)
    del y
    assert alive() is not None


def test_a_child_of_a_derived_graph_stays_what_it_is(graph, arrays):
    x, y, *_ = arrays
    child = gk.Graph()
    child.add_memset_node(x, 0)
    child.add_memset_node(x, 1.0)
    inside = graph.child_graph(graph.add_child_graph_node(child))
    for change in (
        lambda: inside.add_memset_node(y, 0),
        lambda: inside.add_dependency(*inside.nodes),
    ):
        with pytest.raises(ValueError, match="graph: expected one that no graph with derived"):
            change()


def test_a_body_may_be_captured_while_it_is_empty(graph, arrays, stream):
    x, y, z, *_ = arrays
    flag = gk.asarray([2], np.int32)
    graph.add_memset_node(x, 1.0)
    with graph.while_(flag) as body, gk.capture(stream, into=body):
        AXPY(1, N, (x, y, 1.0, N), stream=stream)
        INCREMENT(1, 1, (flag, -1), stream=stream)
    add(graph, y, z)
    assert pairs(graph) == {(0, 2), (1, 2), (2, 3)}
    with graph.if_(flag) as body:
        add(body, x, y)
        with (
            pytest.raises(ValueError, match="graph: expected an empty body"),
            gk.capture(stream, into=body),
        ):
            pass
        add(body, y, z)
        assert pairs(body) == {(0, 1)}
    run(graph, stream)
    assert z.get()[0] == 3.0


def test_host_nodes_must_declare(graph, arrays):
    with pytest.raises(ValueError, match="reads, writes: expected the arrays that fn touches"):
        graph.add_host_node(lambda: None)
    with pytest.raises(TypeError, match="reads: expected arrays, came 'x'"):
        graph.add_host_node(lambda: None, reads=["x"])
    graph.add_host_node(lambda: None, reads=())
    assert pairs(graph) == set()


def test_a_child_that_nobody_knows_must_be_declared(graph, arrays, runtime):
    x, y, z, *_ = arrays
    child = gk.Graph()
    child.add_host_node(lambda: None)
    with pytest.raises(ValueError, match="child: expected nodes of which it is known"):
        graph.add_child_graph_node(child)
    add(graph, x, y)
    graph.add_child_graph_node(child, reads=[y], writes=[z])
    add(graph, z, x)
    assert pairs(graph) == {(0, 1), (1, 2)}


def test_edges_are_given_or_derived(runtime):
    with pytest.raises(ValueError, match="edges: expected"):
        gk.Graph(edges="guessed")


def test_a_refused_node_changes_nothing(graph, arrays, runtime, monkeypatch):
    def refuse(*_):
        raise gk.CudaError("cuGraphAddKernelNode", 1)

    x, y, z, *_ = arrays
    add(graph, x, y)
    with monkeypatch.context() as patched:
        patched.setattr(runtime, "graph_add_kernel_node", refuse)
        with pytest.raises(gk.CudaError):
            add(graph, y, z)
    add(graph, x, z)
    add(graph, y, x)
    assert pairs(graph) == {(0, 2), (1, 2)}


def test_a_long_chain_costs_the_same_for_each_node(sim):
    x, y = gk.zeros(N), gk.zeros(N)
    weights = gk.zeros(N)
    graph = gk.Graph(edges="derived")
    events = Counter()

    def calls_of(links):
        """Add so many links, and return how many functions were called, C's among them."""
        events.clear()
        sys.setprofile(lambda _frame, event, _argument: events.update([event]))
        try:
            for _ in range(links):
                graph.add_kernel_node(AXPY, 1, N, (weights, x, 1.0, N))
                add(graph, x, y)
        finally:
            sys.setprofile(None)
        return events["call"] + events["c_call"]

    first, later = calls_of(100), calls_of(400)
    assert later < 4.4 * first
    assert len(graph.edges) == 999


# --- random ranges, without CUDA -----------------------------------------------------------------


def reduction(needs):
    """Return the edges of the transitive reduction, given what each node must come after (bits)."""
    before, edges = [], set()
    for place, need in enumerate(needs):
        implied = 0
        for other in members(need):
            implied |= before[other]
        edges |= {(other, place) for other in members(need & ~implied)}
        before.append(need | implied)
    return edges


@pytest.mark.untraced
@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 30), st.integers(1, 12), st.booleans()), min_size=1, max_size=4
        ),
        max_size=24,
    )
)
def test_random_ranges(program):
    hazards, edges, needs = Hazards(), set(), []
    for place, ranges in enumerate(program):
        accesses = [Access(start, start + size, write) for start, size, write in ranges]
        needed = hazards.needed(accesses)
        edges |= {(other, place) for other in members(needed)}
        assert hazards.add(accesses, needed) == place
        need = 0
        for other, earlier in enumerate(program[:place]):
            if any(
                (w or w2) and s < s2 + n2 and s2 < s + n
                for s, n, w in ranges
                for s2, n2, w2 in earlier
            ):
                need |= 1 << other
        needs.append(need)
    assert edges == reduction(needs)


# --- random programs -----------------------------------------------------------------------------

# Words of one device array, and behind them words of pinned host memory.
DEVICE, HOST = 24, 12

_MIX = r"""
extern "C" __global__ void mix_words(const unsigned* a, const unsigned* b, unsigned* out,
                                     unsigned k, int n) {
    int i = threadIdx.x;
    if (i < n) out[i] = a[i] * 3 + b[i] * 5 + k;
}
"""
_SHIFT = r"""
extern "C" __global__ void shift_words(unsigned* words, int from, int to, unsigned k, int n) {
    int i = threadIdx.x;
    if (i < n) words[to + i] = words[from + i] * 7 + k;
}
"""


def _mix(launch, a, b, out, k, n):
    out.view(n)[:] = a.view(n) * np.uint32(3) + b.view(n) * np.uint32(5) + k


def _shift(launch, words, from_, to, k, n):
    # One view is one access that writes: read through a copy of what lies before.
    source = gk.Pointer(words._launch, _READ_ONLY, words.address)
    words.view(n, offset=to)[:] = source.view(n, offset=from_) * np.uint32(7) + k


MIX_WORDS = gk.Kernel(_MIX, "mix_words", twin=_mix)
SHIFT_WORDS = gk.Kernel(_SHIFT, "shift_words", twin=_shift)
_READ_ONLY = gk.Kernel(_MIX, "mix_words").parameters[0]


class Op(NamedTuple):
    """One operation on ranges of words."""

    kind: str
    n: int = 1
    dst: int = 0
    a: int = 0
    b: int = 0
    value: int = 0
    inner: tuple[Op, ...] = ()

    @property
    def reads(self):
        n = self.n
        match self.kind:
            case "mix":
                return [(self.a, self.a + n), (self.b, self.b + n)]
            case "copy" | "shift" | "host":
                return [(self.a, self.a + n)]
            case "rows":
                return [(self.a, self.a + 2 * n - 1)]
            case "child" | "branch":
                return [item for op in self.inner for item in op.reads]
        return []

    @property
    def writes(self):
        match self.kind:
            case "empty":
                return []
            case "child" | "branch":
                return [item for op in self.inner for item in op.writes]
        return [(self.dst, self.dst + self.n)]


BODY_KINDS = ("mix", "copy", "fill", "shift", "rows")
KINDS = (*BODY_KINDS, "mix", "host", "mix", "child", "branch", "empty")


def overlap(first, second):
    return any(s < e2 and s2 < e for s, e in first for s2, e2 in second)


def decode(raw, kinds=KINDS):
    """Read an operation out of eight random bytes; what cannot be becomes a fill."""
    kind, n = kinds[raw[0] % len(kinds)], 1 + raw[4] % 6
    if kind in ("child", "branch"):
        rest = [bytes((byte * (3 + i) + i) & 255 for byte in raw) for i in range(1 + raw[7] % 3)]
        within = BODY_KINDS if kind == "branch" else kinds[:-3]
        return Op(kind, value=raw[5], inner=tuple(decode(part, within) for part in rest))
    if kind == "host":
        dst, a = DEVICE + raw[1] % (HOST - 6), DEVICE + raw[2] % (HOST - 6)
        return Op(kind, n, dst, a, value=raw[5])
    if kind == "copy":
        dst, a = raw[1] % (DEVICE + HOST - n + 1), raw[2] % (DEVICE + HOST - n + 1)
        device = [at + n <= DEVICE for at in (dst, a)]
        host = [at >= DEVICE for at in (dst, a)]
        fits = all(d or h for d, h in zip(device, host, strict=True)) and any(device)
    else:
        width = 2 * n - 1 if kind == "rows" else n
        dst, a = raw[1] % (DEVICE - n + 1), raw[2] % (DEVICE - width + 1)
        fits = True
    op = Op(kind, n, dst, a, raw[3] % (DEVICE - n + 1), raw[5])
    if not fits or overlap(op.reads, op.writes):
        return Op("fill", n, raw[1] % (DEVICE - n + 1), value=raw[5])
    return op


def conflicts(program):
    """Return for each operation the earlier ones that it must come after, as bits."""
    found = []
    for j, later in enumerate(program):
        bits = 0
        for i, earlier in enumerate(program[:j]):
            if overlap(earlier.writes, later.reads + later.writes) or overlap(
                earlier.reads, later.writes
            ):
                bits |= 1 << i
        found.append(bits)
    return found


def compute(op, words):
    """Do one operation in NumPy."""
    if op.kind != "branch" or op.value & 1:
        for inner in op.inner:
            compute(inner, words)
    n, value = op.n, np.uint32(op.value)
    target, a, b = (words[at : at + n] for at in (op.dst, op.a, op.b))
    match op.kind:
        case "mix":
            target[:] = a * np.uint32(3) + b * np.uint32(5) + value
        case "copy":
            target[:] = a
        case "fill":
            target[:] = op.value * 0x01010101
        case "shift":
            target[:] = a * np.uint32(7) + value
        case "host":
            target[:] = target * np.uint32(5) + a.sum(dtype=np.uint32) + value
        case "rows":
            target[:] = words[op.a : op.a + 2 * n : 2][:n]


class Machine:
    """The words, and what builds graphs over them."""

    def __init__(self):
        self.device = gk.empty(DEVICE, np.uint32)
        self.host = gk.empty_pinned(HOST, np.uint32)
        self.start = np.arange(DEVICE + HOST, dtype=np.uint32)
        self.stream = gk.Stream()
        self.flags = gk.asarray([0, 1], np.int32)

    def at(self, place, n):
        return self.device[place : place + n] if place < DEVICE else self.on_host(place, n)

    def on_host(self, place, n):
        return self.host[place - DEVICE : place - DEVICE + n]

    def add(self, graph, op, deps):
        n, value = op.n, op.value
        match op.kind:
            case "mix":
                args = (self.at(op.a, n), self.at(op.b, n), self.at(op.dst, n), value, n)
                return graph.add_kernel_node(MIX_WORDS, 1, 32, args, deps=deps)
            case "shift":
                return graph.add_kernel_node(
                    SHIFT_WORDS,
                    1,
                    32,
                    (self.device, op.a, op.dst, value, n),
                    deps=deps,
                    reads=[self.at(op.a, n)],
                    writes=[self.at(op.dst, n)],
                )
            case "copy":
                return graph.add_memcpy_node(self.at(op.dst, n), self.at(op.a, n), deps=deps)
            case "rows":
                rows = self.device[op.a : op.a + 2 * n - 1 : 2]
                return graph.add_memcpy_node(self.at(op.dst, n), rows, deps=deps)
            case "fill":
                target = self.at(op.dst, n)
                return graph.add_memset_node(target, value * 0x01010101, deps=deps)
            case "host":
                target, a = self.on_host(op.dst, n), self.on_host(op.a, n)

                def callback():
                    target[:] = target * np.uint32(5) + a.sum(dtype=np.uint32) + np.uint32(value)

                return graph.add_host_node(callback, deps=deps, reads=[a], writes=[target])
            case "child":
                child, _ = self.build(op.inner)
                return graph.add_child_graph_node(child, deps=deps)
            case "branch":
                branch = graph.if_(self.flags[value & 1 : (value & 1) + 1], deps=deps)
                with branch as body:
                    for inner in op.inner:
                        self.add(body, inner, ())
                return branch.node
        return graph.add_empty_node(deps=deps)

    def build(self, program, given=(), edges="derived"):
        """Return a graph and its nodes; ``given`` has for each operation what it waits for."""
        graph, nodes = gk.Graph(edges=edges), []
        for index, op in enumerate(program):
            deps = [nodes[i] for i in members(given[index])] if given else ()
            nodes.append(self.add(graph, op, deps))
        return graph, nodes

    def results(self, graph):
        self.device.set(self.start[:DEVICE])
        self.host[:] = self.start[DEVICE:]
        run(graph, self.stream)
        return np.concatenate([self.device.get(), self.host])

    def expected(self, program):
        words = self.start.copy()
        for op in program:
            compute(op, words)
        return words


EIGHT = st.binary(min_size=8, max_size=8)
RANDOM = settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.untraced
@RANDOM
@given(st.lists(EIGHT, min_size=1, max_size=16))
def test_random_programs_have_no_edge_too_many_and_none_too_few(runtime, ops):
    machine, program = Machine(), [decode(raw) for raw in ops]
    graph, nodes = machine.build(program)
    edges, needs = pairs_of(graph, nodes), conflicts(program)
    assert unordered(edges, needs) == set()
    for edge in edges:
        assert unordered(edges - {edge}, needs), f"{edge} orders nothing that others do not"
    assert np.array_equal(machine.results(graph), machine.expected(program))
    assert graph.check_races() == ()


def pairs_of(graph, nodes):
    """Return the edges between the operations' nodes; a branch has another, which sets it."""
    places = {node.ptr: place for place, node in enumerate(nodes)}
    return {
        (places[edge.from_node.ptr], places[edge.to_node.ptr])
        for edge in graph.edges
        if edge.from_node.ptr in places and edge.to_node.ptr in places
    }


def unordered(edges, needs):
    """Return the pairs that must be ordered and that no path of edges orders."""
    before = []
    for place in range(len(needs)):
        direct = [first for first, second in edges if second == place]
        before.append(0)
        for first in direct:
            before[place] |= before[first] | 1 << first
    return {
        (first, place)
        for place, need in enumerate(needs)
        for first in members(need & ~before[place])
    }


@settings(RANDOM, max_examples=300)
@given(st.lists(EIGHT, min_size=1, max_size=12), st.lists(EIGHT, max_size=4))
def test_random_programs_with_explicit_edges(runtime, ops, later):
    machine, program = Machine(), [decode(raw, KINDS[:-2]) for raw in ops]
    given = [raw[6] & raw[7] & ((1 << place) - 1) for place, raw in enumerate(ops)]
    graph, nodes = machine.build(program, given)
    needs = [need | more for need, more in zip(conflicts(program), given, strict=True)]
    assert pairs(graph) == reduction(needs)
    for raw in later:
        first, second = sorted((raw[0] % len(nodes), raw[1] % len(nodes)))
        if first != second:
            graph.add_dependency(nodes[first], nodes[second])
            needs[second] |= 1 << first
            assert pairs(graph) == reduction(needs)
    assert np.array_equal(machine.results(graph), machine.expected(program))
    assert gk.live_handles()["graph"] >= 1


@settings(RANDOM, max_examples=200)
@given(st.lists(EIGHT, min_size=2, max_size=10))
def test_races_are_what_derived_edges_would_order(runtime, ops):
    machine, program = Machine(), [decode(raw, KINDS[:-2]) for raw in ops]
    graph, nodes = machine.build(program, edges="given")
    found = {
        (nodes.index(race.first), nodes.index(race.second)) for race in graph.check_races()
        if race.first in nodes
    }  # fmt: skip
    wanted = {(first, place) for place, need in enumerate(conflicts(program))
              for first in members(need)}  # fmt: skip
    assert found == wanted
