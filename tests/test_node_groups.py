"""Named groups of nodes: variants of one graph that share an exec."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_kernels import INCREMENT

import graphkit as gk


@pytest.fixture
def graph(runtime):
    return gk.Graph()


@pytest.fixture
def counter(runtime):
    return gk.zeros(1, np.int32)


@pytest.fixture
def calls(runtime, monkeypatch):
    """What cudaGraphNodeSetEnabled was called with, by node."""
    made = []
    real = runtime.graph_node_set_enabled

    def note(exec_, node, enabled):
        made.append((node, enabled))
        real(exec_, node, enabled)

    monkeypatch.setattr(runtime, "graph_node_set_enabled", note)
    return made


def add(graph, counter, by, deps=()):
    return graph.add_kernel_node(INCREMENT, 1, 1, (counter, by), deps=deps)


def line(graph, counter):
    """Add 1, in group a 10, in groups a and b 100, in group b 1,000."""
    nodes = [add(graph, counter, 1)]
    for by in (10, 100, 1000):
        nodes.append(add(graph, counter, by, deps=nodes[-1]))
    graph.group("a", nodes[1:3])
    graph.group("b", nodes[2:])
    return nodes


def value(exe, stream, counter):
    before = int(counter.get()[0])
    exe.launch(stream)
    stream.synchronize()
    return int(counter.get()[0]) - before


# --- switching -----------------------------------------------------------------------------------


def test_groups_switch_nodes(graph, counter, stream):
    line(graph, counter)
    with graph.instantiate() as exe:
        assert exe.enabled == {"a": True, "b": True}
        assert value(exe, stream, counter) == 1111
        exe.set_enabled(a=False)
        assert exe.enabled == {"a": False, "b": True}
        assert value(exe, stream, counter) == 1001
        exe.set_enabled(a=True, b=False)
        assert exe.enabled == {"a": True, "b": False}
        assert value(exe, stream, counter) == 11
        exe.set_enabled(b=True)
        assert value(exe, stream, counter) == 1111


def test_a_node_is_on_while_all_of_its_groups_are(graph, counter, stream):
    nodes = line(graph, counter)
    with graph.instantiate() as exe:
        exe.set_enabled(a=False, b=False)
        assert value(exe, stream, counter) == 1
        exe.set_enabled(a=True)
        assert value(exe, stream, counter) == 11
        assert not exe.node_enabled(nodes[2])
        exe.set_enabled(b=True)
        assert exe.node_enabled(nodes[2])
        assert value(exe, stream, counter) == 1111


def test_only_nodes_whose_state_differs_are_set(graph, counter, calls):
    _, a, both, b = (node.ptr for node in line(graph, counter))
    with graph.instantiate() as exe:
        exe.set_enabled(a=True, b=True)
        assert calls == []
        exe.set_enabled(a=False)
        assert calls == [(a, False), (both, False)]
        exe.set_enabled(a=False)
        exe.set_enabled(a=False, b=False)
        assert calls[2:] == [(b, False)]
        exe.set_enabled(a=True)
        assert calls[3:] == [(a, True)]
        exe.set_enabled()
        assert len(calls) == 4


def test_single_nodes_and_groups_know_of_each_other(graph, counter, stream):
    _, only_a, _, _ = line(graph, counter)
    with graph.instantiate() as exe:
        exe.set_node_enabled(only_a, False)
        assert exe.enabled == {"a": True, "b": True}
        assert value(exe, stream, counter) == 1101
        exe.set_enabled(a=True)
        assert value(exe, stream, counter) == 1111


def test_execs_of_one_graph_are_apart(graph, counter, stream):
    line(graph, counter)
    with graph.instantiate() as one:
        one.set_enabled(a=False)
        with graph.instantiate() as two:
            assert two.enabled == {"a": True, "b": True}
            assert value(two, stream, counter) == 1111
        assert value(one, stream, counter) == 1001


def test_an_update_keeps_the_states(graph, counter, stream):
    line(graph, counter)
    other = gk.Graph()
    line(other, counter)
    with graph.instantiate() as exe:
        exe.set_enabled(b=False)
        assert exe.update(other)
        assert exe.enabled == {"a": True, "b": False}
        assert value(exe, stream, counter) == 11
        exe.set_enabled(b=True)
        assert value(exe, stream, counter) == 1111


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    members=st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=4),
    changes=st.lists(st.dictionaries(st.integers(0, 3), st.booleans(), max_size=3), max_size=6),
)
def test_random_switching(runtime, members, changes):
    graph, stream, counter = gk.Graph(), gk.Stream(), gk.zeros(1, np.int32)
    nodes = [add(graph, counter, 1)]
    for place in range(1, 6):
        nodes.append(add(graph, counter, 10**place, deps=nodes[-1]))
    groups = {f"g{i}": sorted(places) for i, places in enumerate(members) if places}
    for name, places in groups.items():
        graph.group(name, [nodes[place] for place in places])
    states = dict.fromkeys(groups, True)
    with graph.instantiate() as exe:
        for change in changes:
            wanted = {f"g{i}": on for i, on in change.items() if f"g{i}" in groups}
            exe.set_enabled(**wanted)
            states |= wanted
            assert exe.enabled == states
            off = {place for name, on in states.items() if not on for place in groups[name]}
            expected = sum(10**place for place in range(6) if place not in off)
            assert value(exe, stream, counter) == expected
    graph.close()
    stream.close()
    counter.free()


# --- making groups -------------------------------------------------------------------------------


def test_a_with_block_takes_what_is_added_in_it(graph, counter, stream):
    buffer = gk.zeros(4)
    first = add(graph, counter, 1)
    with graph.group("adapter") as adapter:
        filled = graph.add_memset_node(buffer, 2.0)
        last = add(graph, counter, 10, deps=first)
    after = add(graph, counter, 100, deps=last)
    assert adapter.nodes == (filled, last)
    with graph.group("adapter"):
        more = add(graph, counter, 1000, deps=after)
    assert graph.group("adapter").nodes == (filled, last, more)
    with graph.instantiate() as exe:
        exe.set_enabled(adapter=False)
        assert value(exe, stream, counter) == 101
        assert not buffer.get().any()
        exe.set_enabled(adapter=True)
        assert value(exe, stream, counter) == 1111
        assert buffer.get().all()


def test_a_node_at_the_place_of_one_that_was_removed_in_the_block(graph, counter, stream):
    old = [add(graph, counter, 10) for _ in range(20)]
    with graph.group("outer") as outer, graph.group("inner") as inner:
        for node in old:
            graph.remove_node(node)
        new = [add(graph, counter, 1)]
        for _ in range(19):
            new.append(add(graph, counter, 1, deps=new[-1]))
    assert set(outer.nodes) == set(inner.nodes) == set(new)
    with graph.instantiate() as exe:
        exe.set_enabled(outer=False)
        assert value(exe, stream, counter) == 0


def test_a_block_that_was_not_entered_cannot_be_left(graph, counter):
    group = graph.group("a")
    with pytest.raises(ValueError, match=r"^group 'a': expected one inside of its with block"):
        group.__exit__(None, None, None)
    with group:
        node = add(graph, counter, 1)
    assert group.nodes == (node,)


def test_blocks_nest(graph, counter):
    with graph.group("outer") as outer:
        one = add(graph, counter, 1)
        with graph.group("inner") as inner:
            two = add(graph, counter, 1, deps=one)
    assert outer.nodes == (one, two)
    assert inner.nodes == (two,)


def test_in_a_capture(counter, stream):
    with gk.capture(stream) as graph:
        INCREMENT(1, 1, (counter, 1), stream=stream)
        with graph.group("adapter"):
            INCREMENT(1, 1, (counter, 10), stream=stream)
            with graph.group("inner"):
                INCREMENT(1, 1, (counter, 100), stream=stream)
        INCREMENT(1, 1, (counter, 1000), stream=stream)
    assert graph.group("adapter").nodes == tuple(graph.nodes[1:3])
    with graph.instantiate() as exe:
        assert value(exe, stream, counter) == 1111
        exe.set_enabled(adapter=False)
        assert value(exe, stream, counter) == 1001
        exe.set_enabled(adapter=True, inner=False)
        assert value(exe, stream, counter) == 1011


def test_a_capture_that_dies_in_a_group_says_so_itself(counter, stream):
    def body():
        with gk.capture(stream) as graph, graph.group("adapter"):
            INCREMENT(1, 1, (counter, 10), stream=stream)
            with pytest.raises(gk.CudaError):
                stream.synchronize()

    with pytest.raises(gk.CudaError) as caught:
        body()
    assert caught.value.name == "cudaErrorStreamCaptureInvalidated"
    INCREMENT(1, 1, (counter, 1), stream=stream)
    stream.synchronize()
    assert counter.get() == [1]


def test_a_block_that_raises_makes_no_group(graph, counter, stream):
    def body():
        with graph.group("adapter"):
            add(graph, counter, 1)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        body()
    assert graph.group("adapter").nodes == ()
    with graph.instantiate() as exe:
        assert exe.enabled == {}
        assert value(exe, stream, counter) == 1


def test_a_clone_has_the_same_groups(graph, counter, stream):
    line(graph, counter)
    clone = graph.clone()
    assert [graph.in_clone(node, clone) for node in graph.group("a").nodes] == list(
        clone.group("a").nodes
    )
    with clone.instantiate() as exe:
        exe.set_enabled(a=False)
        assert value(exe, stream, counter) == 1001


def test_a_removed_node_leaves_its_groups(graph, counter, stream):
    _, only_a, both, last = line(graph, counter)
    graph.remove_node(both)
    graph.add_dependency(only_a, last)
    assert graph.group("a").nodes == (only_a,)
    with graph.instantiate() as exe:
        exe.set_enabled(a=False)
        assert value(exe, stream, counter) == 1001
        graph.remove_node(only_a)
        assert exe.enabled == {"b": True}
        with pytest.raises(ValueError, match=r"a: expected a group of the graph \(b\)"):
            exe.set_enabled(a=True)


def test_a_group_may_come_after_the_exec(graph, counter, stream):
    node = add(graph, counter, 1)
    with graph.instantiate() as exe:
        graph.group("late", node)
        exe.set_enabled(late=False)
        assert value(exe, stream, counter) == 0


# --- bad input -----------------------------------------------------------------------------------


def test_an_unknown_group_names_those_there_are(graph, counter, stream):
    line(graph, counter)
    with graph.instantiate() as exe:
        with pytest.raises(
            ValueError, match=r"c: expected a group of the graph \(a, b\), came 'c'"
        ):
            exe.set_enabled(a=False, c=True)
        assert exe.enabled == {"a": True, "b": True}
        assert value(exe, stream, counter) == 1111
    empty = gk.Graph()
    with empty.instantiate() as exe, pytest.raises(ValueError, match=r"\(none\)"):
        exe.set_enabled(a=False)


@pytest.mark.parametrize("state", [0, 1, None, "off", [True]])
def test_a_state_is_true_or_false(graph, counter, state):
    line(graph, counter)
    with graph.instantiate() as exe:
        with pytest.raises(TypeError, match="b: expected True or False, came"):
            exe.set_enabled(a=False, b=state)
        assert exe.enabled == {"a": True, "b": True}
        with pytest.raises(TypeError, match="enabled: expected True or False, came"):
            exe.set_node_enabled(graph.nodes[0], state)
        assert exe.node_enabled(graph.nodes[0])
        exe.set_enabled(a=np.bool_(False))
        assert exe.enabled == {"a": False, "b": True}


@pytest.mark.parametrize("kind", ["empty", "host", "event_record", "event_wait", "graph"])
def test_kinds_that_cuda_cannot_switch(graph, counter, stream, kind):
    node = add(graph, counter, 1)
    event, child = gk.Event(), gk.Graph()
    other = {
        "empty": graph.add_empty_node,
        "host": lambda: graph.add_host_node(lambda: None),
        "event_record": lambda: graph.add_event_record_node(event),
        "event_wait": lambda: graph.add_event_wait_node(event),
        "graph": lambda: graph.add_child_graph_node(child),
    }[kind]
    message = f"group 'mixed': expected kernel, memcpy and memset nodes.*<Node {kind} "
    with pytest.raises(ValueError, match=message), graph.group("mixed"):
        other()
    assert graph.group("mixed").nodes == ()
    with pytest.raises(ValueError, match=message):
        graph.group("mixed", [node, graph.nodes[-1]])
    assert graph.group("mixed").nodes == ()
    with graph.instantiate() as exe:
        assert value(exe, stream, counter) == 1


@pytest.mark.parametrize(
    ("name", "nodes", "error", "message"),
    [
        ("", (), ValueError, "name: expected at least one character"),
        (5, (), TypeError, "name: expected a str, came int"),
        ("a", 5, TypeError, "nodes: expected a Node or several, came int"),
        ("a", [5], TypeError, "nodes: expected a Node, came int"),
        ("a", None, TypeError, "nodes: expected a Node or several, came NoneType"),
    ],
)
def test_refused_groups(graph, name, nodes, error, message):
    with pytest.raises(error, match=message):
        graph.group(name, nodes)


def test_nodes_of_other_graphs(graph, counter):
    other = gk.Graph()
    theirs = add(other, counter, 1)
    node = graph.add_child_graph_node(other)
    inside = graph.child_graph(node)
    for foreign in (theirs, inside.nodes[0]):
        with pytest.raises(ValueError, match="nodes: expected a node of this graph"):
            graph.group("a", foreign)
    with pytest.raises(ValueError, match="graph: expected one that is in no other"):
        inside.group("a", inside.nodes)


def test_a_node_that_came_after_the_exec_changes_nothing(graph, counter, stream):
    line(graph, counter)
    with graph.instantiate() as exe:
        graph.group("a", add(graph, counter, 5))
        with pytest.raises(gk.CudaError) as caught:
            exe.set_enabled(a=False)
        assert caught.value.call == "cudaGraphNodeSetEnabled"
        assert exe.enabled == {"a": True, "b": True}
        assert value(exe, stream, counter) == 1111
        exe.set_enabled(b=False)
        assert value(exe, stream, counter) == 11


def test_closed_graphs_and_execs(graph, counter, stream):
    line(graph, counter)
    exe = graph.instantiate()
    exe.set_enabled(a=False)
    graph.close()
    with pytest.raises(ValueError, match="graph: expected a live graph"):
        exe.set_enabled(a=True)
    with pytest.raises(ValueError, match="graph: expected a live graph"), graph.group("c"):
        pass
    assert exe.enabled == {"a": False, "b": True}
    assert value(exe, stream, counter) == 1001
    exe.close()
    for refused in (lambda: exe.set_enabled(a=True), lambda: exe.enabled):
        with pytest.raises(ValueError, match="exec: expected a live one"):
            refused()
