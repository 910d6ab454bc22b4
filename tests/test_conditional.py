"""Conditional nodes: loops and branches inside of a graph, nesting, and what is refused."""

from __future__ import annotations

import gc
import weakref
from typing import NamedTuple

import numpy as np
import pytest
from conditional_kernels import (
    DECREMENT,
    EUCLID,
    MIX,
    PUT,
    REMAINDER,
    SET_HANDLE,
    STEP,
    STEP_HANDLE,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_kernels import INCREMENT

import graphkit as gk
from graphkit.conditional import Conditional, ConditionalHandle
from graphkit.topology import topology_of

N = 8


@pytest.fixture
def graph(runtime):
    return gk.Graph()


@pytest.fixture
def counter(runtime):
    return gk.zeros(1, np.int32)


def integer(value, dtype=np.int32):
    return gk.asarray([value], dtype)


def read(array):
    return int(array.get()[0])


def add(graph, counter, by=1, **kwargs):
    return graph.add_kernel_node(INCREMENT, 1, 1, (counter, by), **kwargs)


def run(graph, stream, times=1):
    with graph.instantiate() as exe:
        for _ in range(times):
            exe.launch(stream)
        stream.synchronize()


# --- branches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (1, 1), (-1, 1), (7, 1)])
def test_if_runs_its_body_unless_the_flag_is_0(graph, counter, stream, value, expected, dtype):
    flag = gk.asarray(np.array([value], np.int32).view(dtype))
    with graph.if_(flag) as body:
        add(body, counter)
    run(graph, stream)
    assert read(counter) == expected


@pytest.mark.parametrize(("value", "expected"), [(0, 100), (1, 1), (2, 1)])
def test_else_runs_if_the_flag_is_0(graph, counter, stream, value, expected):
    with graph.if_(integer(value), else_=True) as (then, otherwise):
        add(then, counter, 1)
        add(otherwise, counter, 100)
    run(graph, stream)
    assert read(counter) == expected


@pytest.mark.parametrize("index", [0, 1, 2, 3, 17, -1])
def test_switch_runs_one_body_or_none(graph, counter, stream, index):
    with graph.switch(integer(index), 3) as bodies:
        for place, body in enumerate(bodies):
            add(body, counter, 10**place)
    run(graph, stream)
    assert read(counter) == {0: 1, 1: 10, 2: 100}.get(index, 0)


def test_a_switch_of_one_body_gives_a_tuple_all_the_same(graph, counter, stream):
    with graph.switch(integer(0), 1) as (body,):
        add(body, counter)
    run(graph, stream)
    assert read(counter) == 1


def test_bodies_may_be_filled_without_a_with_block(graph, counter, stream):
    choice = graph.if_(integer(0), else_=True)
    add(choice.bodies[1], counter, 5)
    run(graph, stream)
    assert read(counter) == 5


def test_an_empty_body_does_nothing(graph, counter, stream):
    with graph.if_(integer(1), else_=True) as (_, otherwise):
        add(otherwise, counter)
    run(graph, stream)
    assert read(counter) == 0


# --- loops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [0, 1, 2, 10])
def test_while_runs_its_body_as_long_as_the_flag_is_not_0(graph, counter, stream, times):
    flag = integer(times > 0)
    with graph.while_(flag) as body:
        body.add_kernel_node(STEP, 1, 1, (counter, flag, times))
    run(graph, stream)
    assert (read(counter), read(flag)) == (times, 0)


def test_the_flag_is_looked_at_behind_everything_in_the_body(graph, stream):
    left, flag = integer(0), integer(3, np.uint32)
    others = [integer(0) for _ in range(4)]
    with graph.while_(flag) as body:
        for other in others:  # side by side, so that each is a last node
            add(body, other)
        body.add_kernel_node(DECREMENT, 1, 1, (flag,), deps=add(body, left))
    sinks = {node.ptr for node in body.nodes} - {edge.from_node.ptr for edge in body.edges}
    assert sinks == {body.nodes[-1].ptr}
    assert len(body.edges) == 1 + 5
    run(graph, stream)
    assert [read(array) for array in (left, *others)] == [3] * 5


def test_a_loop_against_numpy(graph, stream):
    a = np.random.default_rng(0).integers(1, 10**9, 128).astype(np.int32)
    b = np.random.default_rng(1).integers(1, 10**9, 128).astype(np.int32)
    x, y, more = gk.asarray(a), gk.asarray(b), integer(1)
    with graph.while_(more) as body:
        body.add_kernel_node(EUCLID, 1, 128, (x, y, more))
    run(graph, stream)
    assert np.array_equal(x.get(), np.gcd(a, b))


def test_what_is_ahead_and_behind_keeps_its_place(graph, counter, stream):
    flag, copy = integer(0), gk.empty_pinned(1, np.int32)
    ahead = graph.add_kernel_node(STEP, 1, 1, (counter, flag, 4))
    loop = graph.while_(flag, deps=ahead)
    with loop as body:
        body.add_kernel_node(STEP, 1, 1, (counter, flag, 4))
    behind = add(graph, counter, 100, deps=loop.node)
    graph.add_memcpy_node(copy, counter, deps=behind)
    run(graph, stream)
    assert copy[0] == 104


def test_bodies_hold_copies_fills_and_child_graphs(graph, counter, stream):
    flag, x, y = integer(1), gk.zeros(N), gk.zeros(N)
    child = gk.Graph()
    inner = gk.Graph()
    add(inner, counter)
    child.add_child_graph_node(inner)
    with graph.while_(flag) as body:
        fill = body.add_memset_node(x, 2.0)
        copy = body.add_memcpy_node(y, x, deps=body.add_empty_node(deps=fill))
        held = body.add_child_graph_node(child, deps=copy)
        body.add_kernel_node(STEP, 1, 1, (counter, flag, 6), deps=held)
    run(graph, stream)
    assert read(counter) == 6
    assert np.array_equal(y.get(), np.full(N, 2.0, np.float32))


# --- nesting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 4), (5, 1)])
def test_a_loop_in_a_loop(graph, counter, stream, rows, columns):
    outer, inner = integer(rows, np.uint32), gk.zeros(1, np.uint32)
    with graph.while_(outer) as row:
        begin = row.add_kernel_node(PUT, 1, 1, (inner, columns))
        loop = row.while_(inner, deps=begin)
        with loop as column:
            column.add_kernel_node(DECREMENT, 1, 1, (inner,), deps=add(column, counter))
        row.add_kernel_node(DECREMENT, 1, 1, (outer,), deps=loop.node)
    run(graph, stream, times=1)
    assert read(counter) == rows * columns


def test_a_branch_in_a_loop(graph, stream):
    left, even, odd, bit = (integer(n, np.uint32) for n in (7, 0, 0, 9))
    with graph.while_(left) as body:
        asked = body.add_kernel_node(REMAINDER, 1, 1, (left, bit, 2))
        branch = body.if_(bit, else_=True, deps=asked)
        with branch as (then, otherwise):
            then.add_kernel_node(MIX, 1, 1, (left, odd, 0))
            otherwise.add_kernel_node(MIX, 1, 1, (left, even, 0))
        body.add_kernel_node(DECREMENT, 1, 1, (left,), deps=branch.node)
    run(graph, stream)
    expected = [0, 0]
    for n in range(7, 0, -1):
        expected[n % 2] = expected[n % 2] * 3 + n * 5
    assert [read(even), read(odd)] == expected


def test_a_switch_in_an_else_in_a_switch(graph, counter, stream):
    with graph.switch(integer(1), 2) as (_, second):
        choice = second.if_(integer(0), else_=True)
        with choice.bodies[1].switch(integer(2), 3) as bodies:
            add(bodies[2], counter, 42)
    run(graph, stream)
    assert read(counter) == 42


# --- launches and changes ------------------------------------------------------------------------


def test_one_exec_many_launches_with_other_flags(graph, counter, stream):
    flag = integer(0)
    with graph.if_(flag, else_=True) as (then, otherwise):
        add(then, counter, 1)
        add(otherwise, counter, 1000)
    exe = graph.instantiate()
    values = [0, 1, 1, 0, 5, 0, 0, 1]
    for value in values:
        PUT(1, 1, (flag.ptr, value), stream=stream)
        exe.launch(stream)
    stream.synchronize()
    assert read(counter) == sum(1 if value else 1000 for value in values)


def test_a_loop_launched_many_times(graph, counter, stream):
    flag, total = gk.zeros(1, np.int32), integer(0)
    begin = graph.add_memset_node(counter, 0)
    start = graph.add_memset_node(flag, 1)
    with graph.while_(flag, deps=(begin, start)) as body:
        body.add_kernel_node(STEP, 1, 1, (counter, flag, 3), deps=add(body, total))
    run(graph, stream, times=50)
    assert (read(counter), read(total)) == (3, 150)


def test_a_node_of_a_body_is_changed_in_the_exec(graph, counter, stream):
    flag, other = integer(1), gk.zeros(1, np.int32)
    with graph.while_(flag) as body:
        step = body.add_kernel_node(STEP, 1, 1, (counter, flag, 4))
    exe = graph.instantiate()
    exe.set_kernel_node_params(step, args={"limit": 6})
    exe.launch(stream)
    stream.synchronize()
    assert read(counter) == 6
    exe.set_kernel_node_params(step, args={"counter": other, "limit": 2})
    PUT(1, 1, (flag.ptr, 1), stream=stream)
    exe.launch(stream)
    stream.synchronize()
    assert (read(counter), read(other)) == (6, 2)


def test_a_node_of_a_nested_body_is_changed_in_the_exec(graph, stream):
    x, y = gk.zeros(1, np.int32), gk.zeros(1, np.int32)
    with graph.if_(integer(1)) as body, body.if_(integer(1)) as inner:
        node = add(inner, x, 3)
    exe = graph.instantiate()
    exe.set_kernel_node_params(node, args={"p": y, "by": 4})
    exe.launch(stream)
    stream.synchronize()
    assert (read(x), read(y)) == (0, 4)


def test_copies_and_fills_of_bodies_are_changed_in_the_exec(graph, stream):
    x, y, z = gk.zeros(N), gk.zeros(N), gk.zeros(N)
    with graph.if_(integer(1)) as body:
        fill = body.add_memset_node(x, 1.0)
        copy = body.add_memcpy_node(y, x, deps=fill)
    exe = graph.instantiate()
    exe.set_memset_node_params(fill, value=np.float32(2.0))
    exe.set_memcpy_node_params(copy, dst=z)
    exe.launch(stream)
    stream.synchronize()
    assert [array.get()[0] for array in (x, y, z)] == [2, 0, 2]


def test_nodes_of_bodies_are_switched_off(graph, counter, stream):
    with graph.if_(integer(1)) as body:
        node = add(body, counter)
        add(body, counter, 10, deps=node)
    exe = graph.instantiate()
    exe.set_node_enabled(node, False)
    assert not exe.node_enabled(node)
    exe.launch(stream)
    stream.synchronize()
    assert read(counter) == 10


def test_the_flag_is_another_array_from_now_on(graph, counter, stream):
    """The setter is a kernel node like any other."""
    with graph.if_(integer(0)) as body:
        add(body, counter)
    exe = graph.instantiate()
    exe.set_kernel_node_params(graph.nodes[0], args={"flag": integer(1)})
    exe.launch(stream)
    stream.synchronize()
    assert read(counter) == 1


# --- raw handles ---------------------------------------------------------------------------------


def test_a_loop_over_a_handle_that_the_users_kernel_sets(graph, counter, stream):
    handle = graph.conditional_handle(default=1)
    assert isinstance(handle, ConditionalHandle)
    with graph.while_(handle) as body:
        body.add_kernel_node(STEP_HANDLE, 1, 1, (counter, 5, handle))
    assert len(graph.nodes) == len(body.nodes) == 1  # nothing is added
    run(graph, stream, times=2)
    assert read(counter) == 6  # the default holds at the beginning of each launch


@pytest.mark.parametrize("value", [0, 1, 2, 3])
def test_a_switch_over_a_handle(graph, counter, stream, value):
    handle = graph.conditional_handle()
    ahead = graph.add_kernel_node(SET_HANDLE, 1, 1, (handle, value))
    with graph.switch(handle, 3, deps=ahead) as bodies:
        for place, body in enumerate(bodies):
            add(body, counter, 10**place)
    run(graph, stream)
    assert read(counter) == [1, 10, 100, 0][value]


def test_a_handle_of_the_graph_around_serves_in_a_body(graph, counter, stream):
    handle = graph.conditional_handle()
    with graph.if_(integer(1)) as body:
        ahead = body.add_kernel_node(SET_HANDLE, 1, 1, {"handle": handle, "value": 1})
        with body.if_(handle, deps=ahead) as inner:
            add(inner, counter)
    run(graph, stream)
    assert read(counter) == 1


def test_a_default_holds_once_a_launch_also_in_a_body(graph, counter, stream):
    """Not at each run of the body that the node is in."""
    outer = integer(3, np.uint32)
    with graph.while_(outer) as body:
        handle = body.conditional_handle(default=1)
        loop = body.while_(handle)
        with loop as inner:
            inner.add_kernel_node(STEP_HANDLE, 1, 1, (counter, 1, handle))
        body.add_kernel_node(DECREMENT, 1, 1, (outer,), deps=loop.node)
    run(graph, stream)
    assert read(counter) == 1


# --- captures ------------------------------------------------------------------------------------


def test_a_loop_in_a_capture(stream, counter):
    flag, before, behind = gk.zeros(1, np.int32), gk.zeros(1, np.int32), gk.zeros(1, np.int32)
    with gk.capture(stream) as graph:
        STEP(1, 1, (before, flag, 2), stream=stream)
        loop = graph.while_(flag)
        with loop as body:
            body.add_kernel_node(STEP, 1, 1, (counter, flag, 4))
        INCREMENT(1, 1, (behind, 7), stream=stream)
    kinds = [node.type.name for node in graph.nodes]
    assert kinds == ["KERNEL", "KERNEL", "CONDITIONAL", "KERNEL"]
    assert graph.nodes[2] is loop.node
    assert [(edge.from_node.type.name, edge.to_node.type.name) for edge in graph.edges].count(
        ("CONDITIONAL", "KERNEL")
    ) == 1
    assert len(graph.edges) == 3
    run(graph, stream)
    assert [read(array) for array in (before, counter, behind)] == [1, 4, 7]


def test_nested_branches_in_a_capture(stream, counter):
    flag = integer(1)
    with gk.capture(stream) as graph:
        handle = graph.conditional_handle()
        SET_HANDLE(1, 1, (handle, 1), stream=stream)
        with graph.switch(handle, 2) as bodies, bodies[1].if_(flag) as inner:
            add(inner, counter, 3)
    run(graph, stream, times=2)
    assert read(counter) == 6


def test_a_capture_says_what_comes_first(stream, counter):
    flag = integer(1)
    with gk.capture(stream) as graph:
        INCREMENT(1, 1, (counter, 1), stream=stream)
        outside = gk.Graph().add_empty_node()
        with pytest.raises(ValueError, match="deps: expected"):
            graph.if_(flag, deps=outside)
        with pytest.raises(TypeError, match="flag: expected an array in device memory"):
            graph.if_(np.ones(1, np.int32))
    assert len(graph.nodes) == 1
    run(graph, stream)
    assert read(counter) == 1


def test_a_capture_that_fails_takes_its_bodies_with_it(stream, counter):
    flag, bodies = integer(1), []

    def fail():
        with gk.capture(stream) as graph:
            with graph.while_(flag) as body:
                bodies.append(body)
                add(body, counter)
                with pytest.raises(gk.CudaError):
                    stream.synchronize()
                with pytest.raises(gk.CudaError, match="capture around this body has failed"):
                    add(body, counter)
            with pytest.raises(gk.CudaError, match="the capture has failed"):
                graph.if_(flag)

    with pytest.raises(gk.CaptureError):
        fail()
    with pytest.raises(ValueError, match="graph: expected a live graph"):
        bodies[0].nodes  # noqa: B018
    with gk.capture(stream) as graph, graph.if_(flag) as body:  # the stream works again
        add(body, counter)
    run(graph, stream)
    assert read(counter) == 1


def test_an_exception_in_a_captured_body_is_the_one_raised(stream, counter):
    flag = integer(1)

    def step():
        with gk.capture(stream) as graph, graph.while_(flag) as body:
            add(body, counter)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step()
    INCREMENT(1, 1, (counter, 1), stream=stream)
    stream.synchronize()
    assert read(counter) == 1


def test_a_body_is_captured(graph, stream, counter):
    flag, other = integer(1), gk.zeros(1, np.int32)
    with graph.while_(flag) as body:
        first = add(body, other)
        with gk.capture(stream, into=body, deps=first) as same:
            INCREMENT(1, 1, (other, 1), stream=stream)
            gk.memcpy_async(counter, other, stream)
            STEP(1, 1, (counter, flag, 6), stream=stream)
        assert same is body
        nodes = body.nodes
        assert nodes[0] is first
        assert [node.type.name for node in nodes] == ["KERNEL", "KERNEL", "MEMCPY", "KERNEL"]
        assert len(body.edges) == 3
    exe = graph.instantiate()
    exe.launch(stream)
    stream.synchronize()
    assert [read(array) for array in (other, counter)] == [6, 7]
    step = nodes[3]
    exe.set_kernel_node_params(step, args={"limit": 1})
    PUT(1, 1, (flag.ptr, 1), stream=stream)
    exe.launch(stream)
    stream.synchronize()
    assert [read(array) for array in (other, counter)] == [8, 9]


def test_operands_captured_into_a_body_live_on(graph, stream, counter):
    value = integer(5)
    held = weakref.ref(value)
    with graph.if_(integer(1)) as body, gk.capture(stream, into=body):
        gk.memcpy_async(counter, value, stream)
    del value
    gc.collect()
    assert held() is not None
    run(graph, stream)
    assert read(counter) == 5


def test_what_is_captured_into_is_a_body_outside_of_captures(graph, stream, counter):
    with pytest.raises(ValueError, match="into: expected the body of a conditional node"):
        gk.capture(stream, into=graph)
    with pytest.raises(TypeError, match="into: expected a Graph, came int"):
        gk.capture(stream, into=5)
    other, outside = gk.Stream(), graph.add_empty_node()
    body = graph.if_(integer(1)).bodies[0]
    with pytest.raises(ValueError, match="deps: expected a node of this graph"):
        gk.capture(stream, into=body, deps=outside).__enter__()
    flag = integer(1)
    refused = pytest.raises(ValueError, match="into: expected a body that no live capture is aro")
    with gk.capture(stream) as around, around.if_(flag) as inside, refused:
        gk.capture(other, into=inside)
    run(graph, stream)
    run(around, stream)
    other.close()


def test_a_failed_capture_into_a_body_leaves_a_graph_that_is_not_launched(graph, stream, counter):
    def fail():
        with graph.if_(integer(1)) as body, gk.capture(stream, into=body):
            INCREMENT(1, 1, (counter, 1), stream=stream)
            raise ZeroDivisionError

    def die():
        with body, gk.capture(stream, into=body.bodies[0]):
            stream.synchronize()

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(ValueError, match="its with block raised ZeroDivisionError"):
        graph.instantiate()
    other = gk.Graph()
    body = other.if_(integer(1))
    with pytest.raises(gk.CudaError):
        die()
    with pytest.raises(ValueError, match="graph: expected"):
        other.instantiate()
    INCREMENT(1, 1, (counter, 1), stream=stream)
    stream.synchronize()
    assert read(counter) == 1


def test_one_capture_at_a_time_into_a_body_and_what_is_inside(graph, stream, counter):
    flag, other = integer(1), gk.Stream()
    body = graph.if_(flag).bodies[0]
    older = body.if_(flag).bodies[0]

    def refused(into, message):
        with pytest.raises(ValueError, match=f"into: expected a body {message}"):
            gk.capture(other, into=into)

    with gk.capture(stream, into=body):
        newer = body.if_(flag).bodies[0]
        add(newer, counter)
        for inside in (older, newer):
            refused(inside, "that no live capture is around")
        refused(body, "without a live capture, came one into it")
    with gk.capture(stream, into=older):
        INCREMENT(1, 1, (counter, 10), stream=stream)
        refused(body, "without a live capture, came one into the body of <Node conditional")
    with gk.capture(other, into=newer, deps=newer.nodes[0]):  # the first one has ended
        INCREMENT(1, 1, (counter, 1), stream=other)
    other.close()


def test_what_a_failed_capture_leaves_of_a_body_is_not_touched(stream, counter):
    """CUDA took the body with the capture."""
    graph = gk.Graph()
    loop = graph.while_(integer(1))
    with loop as body:
        with pytest.raises(gk.CudaError), gk.capture(stream, into=body):
            stream.synchronize()
        for refused in (lambda: body.nodes, lambda: add(body, counter), lambda: body.if_(counter)):
            with pytest.raises(ValueError, match="graph: expected a live graph"):
                refused()
    with pytest.raises(ValueError, match="a capture into its body failed"):
        graph.instantiate()
    graph.close()


def test_a_body_of_a_captured_graph_dies_with_it(counter):
    stream, flag = gk.Stream(), integer(1)
    with gk.capture(stream) as graph:
        choice = graph.if_(flag)
        with choice as body:
            add(body, counter)
    graph.close()
    stream.close()
    with pytest.raises(ValueError, match="graph: expected a live graph"):
        add(body, counter)


def test_a_body_of_a_captured_graph_outlives_the_stream(counter):
    stream, flag = gk.Stream(), integer(1)
    with gk.capture(stream) as graph:
        choice = graph.if_(flag)
    stream.close()
    with choice as body:
        add(body, counter)
    other = gk.Stream()
    run(graph, other)
    other.close()
    assert read(counter) == 1


def test_nothing_is_closed_while_a_capture_fills_it(graph, stream, counter):
    flag = integer(1)
    with gk.capture(stream) as captured:
        INCREMENT(1, 1, (counter, 1), stream=stream)
        with pytest.raises(ValueError, match="graph: expected one without a live capture"):
            captured.close()
    with graph.if_(flag) as body, gk.capture(stream, into=body):
        INCREMENT(1, 1, (counter, 10), stream=stream)
        message = "expected one without a live capture, came one into the body of <Node cond"
        with pytest.raises(ValueError, match=message):
            graph.close()
    run(captured, stream)
    run(graph, stream)
    assert read(counter) == 11


def test_a_body_and_a_child_graph_end_with_the_graph_around_them(graph, stream, counter):
    child, flag = gk.Graph(), integer(1)
    add(child, counter)
    with graph.while_(flag) as body:
        held = body.add_child_graph_node(child)
        body.add_kernel_node(STEP, 1, 1, (counter, flag, 3), deps=held)
    for inside in (body, body.child_graph(held)):
        with pytest.raises(ValueError, match="graph: expected one that is in no other, came that"):
            inside.close()
    run(graph, stream)
    assert read(counter) == 4
    graph.close()
    body.close()  # is over already


def test_a_captured_node_stays_while_the_capture_is_live(stream, counter):
    with gk.capture(stream) as graph:
        INCREMENT(1, 1, (counter, 1), stream=stream)
        with graph.group("last"):
            INCREMENT(1, 1, (counter, 10), stream=stream)
        (node,) = graph.group("last").nodes
        with pytest.raises(ValueError, match="expected a live graph, came one closed or still cap"):
            graph.remove_node(node)
    graph.remove_node(node)
    run(graph, stream)
    assert read(counter) == 1


# --- looking -------------------------------------------------------------------------------------


def test_nodes_values_and_topology(graph, counter):
    flag = integer(0)
    loop = graph.while_(flag)
    with loop as body:
        step = body.add_kernel_node(STEP, 1, 1, (counter, flag, 1))
    assert isinstance(loop, Conditional)
    assert [node.type.name for node in graph.nodes] == ["KERNEL", "CONDITIONAL"]
    assert graph.nodes[1] is loop.node is body.holder
    assert graph.values(loop.node) is None
    assert [values.name for values in graph.kernels] == ["set_conditional"]
    assert body.nodes[0] is step
    assert [values.name for values in body.kernels] == ["step", "set_conditional"]
    assert body.values(step).args[2].value == 1
    assert graph.contains(step)
    assert loop.bodies == (body,)
    assert "conditional node" in topology_of(graph).unshareable
    assert repr(loop).startswith("<Conditional while ")


def test_dot_shows_bodies_as_clusters(graph, counter):
    with graph.if_(integer(1), else_=True) as (then, otherwise):
        add(then, counter)
        with otherwise.switch(integer(0), 2) as bodies:
            add(bodies[1], counter)
    text = graph.dot()
    assert text.count("subgraph cluster_") == 4
    for title in ("then", "else", "case 0", "case 1"):
        assert f'label="{title}";' in text
    assert 'label="if"' in text
    assert 'label="switch"' in text
    assert text.count("{") == text.count("}") == 5
    names = [line.split()[0] for line in text.splitlines() if "[label=" in line]
    assert len(names) == len(set(names)) == 2 + 1 + 2 + 1


def test_operands_of_bodies_live_as_long_as_the_exec(stream, counter):
    graph, flag = gk.Graph(), integer(1)
    with graph.while_(flag) as body:
        value = gk.zeros(1, np.int32)
        held = weakref.ref(value)
        body.add_kernel_node(STEP, 1, 1, (counter, flag, 2), deps=add(body, value))
    exe = graph.instantiate()
    graph.close()
    del value, body, flag
    gc.collect()
    assert held() is not None
    exe.launch(stream)
    stream.synchronize()
    assert read(counter) == 2
    exe.close()
    del exe, graph
    gc.collect()
    assert held() is None


# --- what is refused -----------------------------------------------------------------------------

ADDERS = [
    lambda graph, condition: graph.while_(condition),
    lambda graph, condition: graph.if_(condition, else_=True),
    lambda graph, condition: graph.switch(condition, 2),
]


class At:
    """What another library says is one int32 at some address."""

    def __init__(self, address):
        self.address = address

    @property
    def __cuda_array_interface__(self):
        data = self.address, False
        return {"version": 3, "shape": (1,), "typestr": "<i4", "data": data}


def off_by_one():
    return gk.zeros(8, np.uint8)[1:5].view(1, np.int32)


@pytest.mark.parametrize("adder", ADDERS)
@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (lambda: gk.zeros(1), TypeError, "expected an array of int32 or uint32, came float32"),
        (lambda: gk.zeros(1, np.int64), TypeError, "expected an array of int32 .* came int64"),
        (lambda: gk.zeros(1, np.bool_), TypeError, "expected an array of int32 .* came bool"),
        (lambda: gk.zeros(2, np.int32), ValueError, r"an array of one element, came shape \(2,\)"),
        (lambda: gk.zeros((0, 1), np.int32), ValueError, "expected an array of one element"),
        (lambda: np.ones(1, np.int32), TypeError, "array in device memory, came ndarray on the ho"),
        (lambda: gk.empty_pinned(1, np.int32), TypeError, "expected an array in device memory"),
        (lambda: off_by_one(), ValueError, "an address that 4 divides, came 0x[0-9a-f]+[159d]"),
        (lambda: At(0), ValueError, "expected an address that 4 divides, came 0x0"),
        (lambda: ConditionalHandle(5), ValueError, "expected a handle of this graph or one around"),
        (lambda: 1, TypeError, "expected a device array of one int32 or uint32.* came int"),
        (lambda: True, TypeError, "came bool"),
        (lambda: None, TypeError, "came NoneType"),
        (lambda: "flag", TypeError, "came str"),
    ],
)
def test_a_bad_flag_is_refused_and_nothing_is_added(graph, adder, condition, error, message):
    with pytest.raises(error, match=rf"^(flag|index): .*{message}"):
        adder(graph, condition())
    assert graph.nodes == []
    graph.instantiate().close()  # no handle is left without a node


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, r"n: expected 1 to 2\*\*32 - 1 bodies, came 0"),
        (-3, ValueError, r"n: expected 1 to 2\*\*32 - 1 bodies, came -3"),
        (2**32, ValueError, r"n: expected 1 to 2\*\*32 - 1 bodies, came 4294967296"),
        (1.0, TypeError, "n: expected an int, came float"),
        (True, TypeError, "n: expected an int, came bool"),
        (None, TypeError, "n: expected an int, came NoneType"),
    ],
)
def test_a_switch_needs_bodies(graph, n, error, message):
    with pytest.raises(error, match=message):
        graph.switch(integer(0), n)
    assert graph.nodes == []


@pytest.mark.parametrize(
    ("default", "error"), [(-1, ValueError), (2**32, ValueError), (0.5, TypeError)]
)
def test_a_default_is_an_unsigned_int(graph, default, error):
    with pytest.raises(error, match="default: expected"):
        graph.conditional_handle(default=default)
    graph.instantiate().close()


def test_a_freed_flag_is_refused(graph):
    flag = integer(1)
    flag.free()
    with pytest.raises(ValueError, match="freed"):
        graph.while_(flag)
    assert graph.nodes == []


@pytest.mark.parametrize("where", ["given", "derived", "memory", "capture"])
@pytest.mark.parametrize("refusing", ["graph_add_conditional_node", "graph_add_kernel_node"])
def test_a_node_that_cuda_refuses_does_not_spoil_the_graph(
    runtime, stream, counter, monkeypatch, where, refusing
):
    """As a driver older than 12.8 refuses an else."""
    wrong, flag = integer(0), integer(1)

    def refuse(*_):
        raise gk.CudaError("cuGraphAddNode", 801)

    def fill(graph):
        with monkeypatch.context() as patch:
            patch.setattr(runtime, refusing, refuse)
            with pytest.raises(gk.CudaError, match="cuGraphAddNode returned 801"):
                graph.if_(wrong, else_=True)
        message = "came a handle whose node CUDA refused; add another"
        if where != "capture":
            with pytest.raises(ValueError, match=message):
                graph.instantiate()
        with graph.if_(flag) as body:
            add(body, counter)

    if where == "capture":
        with gk.capture(stream) as graph:
            fill(graph)
    else:
        graph = gk.Graph(edges="derived" if where == "derived" else "given")
        if where == "memory":
            alloc, inner = graph.add_mem_alloc_node(1)
            graph.add_mem_free_node(inner, deps=alloc)
        fill(graph)
    run(graph, stream, times=2)
    assert read(counter) == 2


def test_a_handle_has_one_node_and_belongs_to_its_graph(graph, counter):
    handle, theirs = graph.conditional_handle(default=0), gk.Graph().conditional_handle()
    with graph.if_(handle) as body:
        own = body.conditional_handle(default=0)
    with pytest.raises(ValueError, match="flag: expected a handle without a node, came that of"):
        graph.if_(handle)
    with pytest.raises(ValueError, match="flag: expected a handle of this graph or one around it"):
        graph.while_(theirs)
    with pytest.raises(ValueError, match="index: expected a handle of this graph or one around it"):
        graph.switch(own, 2)  # a handle of the body does not serve around it
    assert len(graph.nodes) == 1
    with pytest.raises(ValueError, match="expected a conditional node for every handle"):
        graph.instantiate()
    body.if_(own)
    graph.instantiate().close()


def test_bodies_refuse_what_cuda_forbids_there(graph, counter):
    event, calls = gk.Event(), []
    nested = gk.Graph()
    nested.add_host_node(lambda: calls.append(1))
    middle = gk.Graph()
    middle.add_child_graph_node(nested)
    with graph.if_(integer(1)) as body, body.if_(integer(1)) as inner:
        for refused, kind in (
            (lambda g: g.add_host_node(lambda: calls.append(1)), "host"),
            (lambda g: g.add_event_record_node(event), "event_record"),
            (lambda g: g.add_event_wait_node(event), "event_wait"),
            (lambda g: g.add_child_graph_node(nested), "host"),
            (lambda g: g.add_child_graph_node(middle), "host"),
        ):
            for into in (body, inner):
                with pytest.raises(ValueError, match=rf"conditional node, came one of type {kind}"):
                    refused(into)
    assert len(body.nodes) == 2
    assert inner.nodes == []


def test_a_body_does_not_allocate(graph):
    with graph.if_(integer(1)) as body, pytest.raises(ValueError, match="alloc"):
        body.add_mem_alloc_node(4)
    assert body.nodes == []


def test_graphs_with_conditional_nodes_are_not_copied(graph, counter):
    with graph.if_(integer(1)) as body:
        add(body, counter)
    for refused in (
        lambda: graph.clone(),
        lambda: body.clone(),
        lambda: gk.Graph().add_child_graph_node(graph),
        lambda: gk.Graph().add_child_graph_node(body),
    ):
        with pytest.raises(ValueError, match="expected a graph without conditional nodes"):
            refused()


def test_child_graphs_hold_no_conditional_nodes(graph, stream, counter):
    child, flag = gk.Graph(), integer(1)
    add(child, counter)
    with graph.if_(flag) as body:
        held = body.add_child_graph_node(child)
    for inside in (
        body.child_graph(held),
        graph.child_graph(graph.add_child_graph_node(child, deps=graph.nodes[-1])),
    ):
        for refused in (lambda g: g.while_(flag), lambda g: g.conditional_handle()):
            with pytest.raises(ValueError, match="graph: expected one that is no child graph"):
                refused(inside)
        with pytest.raises(
            ValueError, match="into: expected the body of a conditional node, came that"
        ):
            gk.capture(stream, into=inside)
        assert len(inside.nodes) == 1
    run(graph, stream)
    assert read(counter) == 2


def test_one_exec_at_a_time(graph, counter, stream):
    with graph.if_(integer(1)) as body:
        add(body, counter)
    with graph.instantiate() as exe:
        with pytest.raises(ValueError, match=r"expected one without an exec, .* one at a time"):
            graph.instantiate()
        exe.launch(stream)
    run(graph, stream)
    assert read(counter) == 2


def test_a_body_has_no_exec_of_its_own(graph, counter):
    with graph.if_(integer(1)) as body:
        add(body, counter)
    with pytest.raises(ValueError, match="came the body of a conditional node"):
        body.instantiate()


def test_an_exec_takes_no_conditional_nodes_of_another_graph(stream, counter):
    graphs = [gk.Graph(), gk.Graph()]
    for amount, graph in zip((1, 10), graphs, strict=True):
        with graph.if_(integer(1)) as body:
            add(body, counter, amount)
    exe = graphs[0].instantiate()
    report = exe.update(graphs[1])
    assert report.result is gk.ExecUpdateStatus.NOT_SUPPORTED
    assert report.node is graphs[1].nodes[1]
    with pytest.raises(gk.GraphUpdateError):
        exe.update(graphs[1], strict=True)
    exe.launch(stream)
    stream.synchronize()
    assert read(counter) == 1


def test_a_loop_must_end_and_be_able_to(graph, counter):
    flag = integer(1)
    loop = graph.while_(flag)
    with pytest.raises(ValueError, match="its with block was not entered"):
        graph.instantiate()
    with loop as body:
        body.add_kernel_node(STEP, 1, 1, (counter, flag, 1))
        with pytest.raises(ValueError, match="its with block has not ended"):
            graph.instantiate()
    graph.instantiate().close()
    with pytest.raises(ValueError, match="behind its last node the condition is set already"):
        add(body, counter)
    with pytest.raises(ValueError, match="came one that was entered before"), loop:
        pass
    with pytest.raises(ValueError, match="node: expected any but the kernel that sets a condition"):
        body.remove_node(body.nodes[-1])  # the loop would never end
    assert len(body.nodes) == 2


def test_an_empty_loop_is_refused(graph):
    refused = pytest.raises(ValueError, match="expected nodes in the body, came none")
    with refused, graph.while_(integer(0)):
        pass
    with pytest.raises(ValueError, match="its body is empty"):
        graph.instantiate()


def test_an_empty_loop_over_a_handle_is_refused(graph):
    graph.while_(graph.conditional_handle(default=1))
    with pytest.raises(ValueError, match="its body is empty, and it would never end"):
        graph.instantiate()


def test_a_body_that_raised_is_not_launched(graph, counter):
    def fill():
        with graph.if_(integer(1)) as body, body.while_(integer(1)) as inner:
            add(inner, counter)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill()
    with pytest.raises(ValueError, match="its with block raised ZeroDivisionError"):
        graph.instantiate()


def test_nodes_of_bodies_and_around_them_do_not_mix(graph, counter):
    outside = add(graph, counter)
    branch = graph.if_(integer(1), else_=True, deps=outside)
    with branch as (then, otherwise):
        inside = add(then, counter)
        for refused in (
            lambda: add(then, counter, deps=outside),
            lambda: add(otherwise, counter, deps=inside),
            lambda: add(graph, counter, deps=inside),
            lambda: graph.while_(integer(1), deps=inside),
            lambda: then.while_(integer(1), deps=[inside, outside]),
            lambda: graph.add_dependency(inside, outside),
        ):
            with pytest.raises(ValueError, match=r"expected a node of this graph, came .* another"):
                refused()
    assert [len(g.nodes) for g in (graph, then, otherwise)] == [3, 1, 0]
    graph.instantiate().close()


def test_a_dependency_given_twice_is_refused(graph, counter):
    node = add(graph, counter)
    with pytest.raises(ValueError, match="deps: expected different nodes, came one twice"):
        graph.if_(integer(1), deps=[node, node])
    assert graph.nodes == [node]
    graph.instantiate().close()


def test_a_conditional_node_stays(graph, counter):
    with graph.if_(integer(1)) as body:
        node = add(body, counter)
    with pytest.raises(ValueError, match="node: expected any but a conditional node"):
        graph.remove_node(graph.nodes[1])
    with pytest.raises(ValueError, match="node: expected any but the kernel that sets a condition"):
        graph.remove_node(graph.nodes[0])
    body.remove_node(node)
    assert body.nodes == []


def test_a_body_dies_with_its_graph(graph, counter):
    with graph.if_(integer(1)) as body:
        add(body, counter)
        nested = body.if_(integer(1)).bodies[0]
    graph.close()
    for dead in (body, nested):
        for refused in (
            lambda dead=dead: dead.nodes,
            lambda dead=dead: add(dead, counter),
            lambda dead=dead: dead.while_(counter),
            lambda dead=dead: dead.conditional_handle(),
        ):
            with pytest.raises(ValueError, match="graph: expected a live graph"):
                refused()


def test_a_body_in_use_keeps_its_graph(graph, runtime, counter):
    def make():
        made = gk.Graph()
        return made.if_(integer(1)).bodies[0]

    body = make()
    gc.collect()
    add(body, counter)
    assert len(body.nodes) == 1


# --- what only the simulator says ----------------------------------------------------------------


def simulate(**options):
    return gk.use("sim", options=gk.SimOptions(**options))


def test_an_endless_loop_is_an_error_at_the_bound(sim):
    simulate(max_iterations=20)
    stream, graph, counter = gk.Stream(), gk.Graph(), gk.zeros(1, np.int32)
    with graph.while_(integer(1)) as body:
        add(body, counter)
    exe = graph.instantiate()
    exe.launch(stream)
    with pytest.raises(
        gk.SimulationError, match=r"endless loop: while node .* after 20 iterations"
    ):
        stream.synchronize()
    assert read(counter) == 20


def test_a_condition_that_nobody_set_is_an_error(sim):
    stream, graph = gk.Stream(), gk.Graph()
    graph.if_(graph.conditional_handle())
    graph.instantiate().launch(stream)
    with pytest.raises(gk.SimulationError, match="a condition that no kernel of this launch has"):
        stream.synchronize()


def test_a_condition_does_not_outlive_its_launch(sim):
    stream, graph = gk.Stream(), gk.Graph()
    handle, flag = graph.conditional_handle(), integer(1)
    first = graph.if_(flag)
    with first as body:
        body.add_kernel_node(SET_HANDLE, 1, 1, (handle, 1))
    graph.if_(handle, deps=first.node)
    exe = graph.instantiate()
    exe.launch(stream)
    stream.synchronize()
    PUT(1, 1, (flag.ptr, 0), stream=stream)
    exe.launch(stream)
    with pytest.raises(gk.SimulationError, match="no kernel of this launch has set"):
        stream.synchronize()


def test_setting_a_condition_outside_of_its_graph_is_an_error(sim):
    stream, graph, other = gk.Stream(), gk.Graph(), gk.Graph()
    handle = graph.conditional_handle(default=0)
    other.add_kernel_node(SET_HANDLE, 1, 1, (handle, 1))
    other.instantiate().launch(stream)
    with pytest.raises(
        gk.SimulationError, match="no conditional node of the graph that is running"
    ):
        stream.synchronize()
    SET_HANDLE(1, 1, (handle, 1), stream=stream)
    with pytest.raises(gk.SimulationError, match="outside of a graph with that handle"):
        stream.synchronize()
    with pytest.raises(gk.SimulationError, match="in a launch that no simulator runs"):
        gk.Launch((1, 1, 1), (1, 1, 1), 0).set_conditional(handle, 1)


@pytest.mark.parametrize("execution", ["on_wait", "at_once"])
def test_a_race_in_a_body_is_found(sim, execution):
    simulate(execution=execution)
    stream, graph, counter = gk.Stream(), gk.Graph(), gk.zeros(1, np.int32)
    with graph.if_(integer(1)) as body:
        add(body, counter)
        add(body, counter)
    graph.instantiate().launch(stream)
    with pytest.raises(gk.SimulationError, match="race: kernel node 'increment'"):
        stream.synchronize()


def test_iterations_are_ordered_and_bodies_race_with_what_is_beside_the_node(sim):
    stream, graph = gk.Stream(), gk.Graph()
    counter, flag = gk.zeros(1, np.int32), integer(1)
    loop = graph.while_(flag)
    with loop as body:
        body.add_kernel_node(STEP, 1, 1, (counter, flag, 5))
    add(graph, counter, deps=loop.node)
    exe = graph.instantiate()
    exe.launch(stream)
    stream.synchronize()
    assert read(counter) == 6
    exe.close()
    PUT(1, 1, (flag.ptr, 1), stream=stream)
    add(graph, counter)  # not ordered with the loop
    exe = graph.instantiate()
    exe.launch(stream)
    with pytest.raises(gk.SimulationError, match=r"race: .*(while node|increment).*"):
        stream.synchronize()


def test_a_condition_set_beside_its_node_is_a_race(sim):
    stream, graph = gk.Stream(), gk.Graph()
    handle = graph.conditional_handle(default=0)
    graph.add_kernel_node(SET_HANDLE, 1, 1, (handle, 1))
    graph.if_(handle)
    graph.instantiate().launch(stream)
    with pytest.raises(gk.SimulationError, match="race: "):
        stream.synchronize()


def test_unset_memory_in_a_body_shows(sim):
    stream, graph, x = gk.Stream(), gk.Graph(), gk.empty(1)
    y = gk.zeros(1)
    with graph.if_(integer(1)) as body:
        body.add_memcpy_node(y, x)
    graph.instantiate().launch(stream)
    stream.synchronize()
    assert np.isnan(y.get()[0])


def test_an_error_in_a_body_drops_what_is_behind(sim):
    counter = gk.zeros(1, np.int32)
    stream, graph = gk.Stream(), gk.Graph()
    gone = gk.zeros(1, np.int32)
    branch = graph.if_(integer(1))
    with branch as body:
        add(body, counter, deps=add(body, gone.ptr + (1 << 30)))
    add(graph, counter, deps=branch.node)
    graph.instantiate().launch(stream)
    with pytest.raises(gk.SimulationError) as caught:
        stream.synchronize()
    assert any("if node" in note for note in caught.value.__notes__)
    assert read(counter) == 0


# --- random programs -----------------------------------------------------------------------------

VARIABLES = 3


class Mix(NamedTuple):
    """``v[out] = v[out] * 3 + v[a] * 5 + k``."""

    a: int
    out: int
    k: int


class If(NamedTuple):
    """Decided by ``v[a] % 2``."""

    a: int
    then: tuple
    otherwise: tuple | None


class Loop(NamedTuple):
    """Repeated ``v[a] % 4`` times, asked at its beginning."""

    a: int
    body: tuple


class Choice(NamedTuple):
    """Decided by ``v[a] % 4``: past the last case nothing runs."""

    a: int
    cases: tuple


places = st.integers(0, VARIABLES - 1)
mixes = st.builds(Mix, places, places, st.integers(0, 99))


def _nest(inner):
    block = st.lists(inner, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        mixes,
        st.builds(If, places, block, st.none() | block),
        st.builds(Loop, places, block),
        st.builds(Choice, places, st.lists(block, min_size=1, max_size=3).map(tuple)),
    )


programs = st.lists(_nest(_nest(_nest(mixes))), min_size=1, max_size=4)


def interpret(program, v):
    for op in program:
        match op:
            case Mix(a, out, k):
                v[out] = (v[out] * 3 + v[a] * 5 + k) % 2**32
            case If(a, then, otherwise):
                interpret(then if v[a] % 2 else otherwise or (), v)
            case Loop(a, body):
                for _ in range(v[a] % 4):
                    interpret(body, v)
            case Choice(a, cases):
                if v[a] % 4 < len(cases):
                    interpret(cases[v[a] % 4], v)


def build(graph, program, v, prev=()):
    """Add a program to a graph, one operation behind the other."""
    for op in program:
        if isinstance(op, Mix):
            prev = graph.add_kernel_node(MIX, 1, 1, (v[op.a], v[op.out], op.k), deps=prev)
            continue
        by = 2 if isinstance(op, If) else 4
        flag = gk.empty(1, np.uint32)
        prev = graph.add_kernel_node(REMAINDER, 1, 1, (v[op.a], flag, by), deps=prev)
        match op:
            case If(_, then, None):
                added = graph.if_(flag, deps=prev)
                with added as body:
                    build(body, then, v)
            case If(_, then, otherwise):
                added = graph.if_(flag, else_=True, deps=prev)
                with added as bodies:
                    build(bodies[0], then, v)
                    build(bodies[1], otherwise, v)
            case Loop(_, inner):
                added = graph.while_(flag, deps=prev)
                with added as body:
                    last = build(body, inner, v)
                    body.add_kernel_node(DECREMENT, 1, 1, (flag,), deps=last)
            case Choice(_, cases):
                added = graph.switch(flag, len(cases), deps=prev)
                with added as bodies:
                    for body, inner in zip(bodies, cases, strict=True):
                        build(body, inner, v)
        prev = added.node
    return prev


@pytest.mark.untraced
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(program=programs, start=st.tuples(*[st.integers(0, 2**32 - 1)] * VARIABLES))
def test_random_programs_do_what_an_interpreter_does(runtime, stream, program, start):
    v = [integer(value, np.uint32) for value in start]
    with gk.Graph() as graph:
        build(graph, program, v)
        run(graph, stream, times=2)
    expected = list(start)
    for _ in range(2):
        interpret(program, expected)
    assert [read(array) for array in v] == expected
