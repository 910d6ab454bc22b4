"""Graphs that may share an exec have one topology key; those that may not say why."""

from __future__ import annotations

import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, AXPY, BLOCKS, INCREMENT

import graphkit as gk
from graphkit.runtime.protocol import NodeType
from graphkit.topology import topology_of

N = 64


class Setting:
    """Arrays, and a graph with a node of each kind, which tests change one thing of."""

    def __init__(self):
        self.x, self.y = gk.zeros((N, 4)), gk.zeros((N, 4))
        self.other = gk.zeros((N, 4))
        self.pinned = gk.empty_pinned((N, 4), np.float32)

    def graph(
        self,
        *,
        kernel=ADD_SCALAR,
        grid=2,
        block=32,
        a=1.0,
        launch=None,
        dst=None,
        src=None,
        copied=np.s_[:],
        filled=np.s_[:],
        value=0,
        child=INCREMENT,
        by=1,
        edge=True,
        programmatic=False,
        extra=False,
    ):
        x, y = self.x, self.y if dst is None else dst
        graph = gk.Graph()
        first = graph.add_kernel_node(kernel, grid, block, (x, self.y, a, N), **(launch or {}))
        second = graph.add_kernel_node(ADD_SCALAR, 2, 32, (x, self.other, a, N))
        if edge:
            graph.add_dependency(first, second, programmatic=programmatic)
        copy = graph.add_memcpy_node(y[copied], (x if src is None else src)[copied], deps=second)
        fill = graph.add_memset_node(self.y[filled], value, deps=second)
        host = graph.add_host_node(lambda: None, deps=[copy, fill])
        event = gk.Event()
        record = graph.add_event_record_node(event, deps=host)
        wait = graph.add_event_wait_node(event, deps=record)
        inner = gk.Graph()
        counter = gk.zeros(1, np.int32)
        inner.add_kernel_node(child, 1, 1, (counter, by) if child is INCREMENT else (counter,))
        last = graph.add_child_graph_node(inner, deps=wait)
        if extra:
            graph.add_empty_node(deps=last)
        return graph

    def topology(self, **changes):
        return topology_of(self.graph(**changes))


@pytest.fixture
def setting(runtime):
    return Setting()


def test_graphs_built_alike_have_one_key(setting):
    topology = setting.topology()
    assert topology == setting.topology()
    assert topology.unshareable is None
    assert topology.nodes == 9, "the node inside of the child graph counts"


def test_an_empty_graph_has_a_topology(runtime):
    assert topology_of(gk.Graph()) == topology_of(gk.Graph())
    assert topology_of(gk.Graph()).nodes == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": (1, 2)},
        {"a": 2.0},
        {"by": 3},
        {"copied": np.s_[1:]},
        {"filled": np.s_[1:]},
        {"value": 7.0},
    ],
    ids=str,
)
def test_what_an_exec_can_change_is_left_out(setting, changes):
    assert setting.topology(**changes) == setting.topology()


def test_addresses_are_left_out(setting):
    assert setting.topology(dst=setting.other) == setting.topology()


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel": AXPY},
        {"block": 64},
        {"launch": {"shared_mem": 256}},
        {"launch": {"cooperative": True}},
        {"launch": {"priority": -1}},
        {"launch": {"cluster": 2}},
        {"copied": np.s_[:, 1:]},
        {"filled": np.s_[:, 1:]},
        {"child": BLOCKS},
        {"edge": False},
        {"programmatic": True},
        {"extra": True},
    ],
    ids=str,
)
def test_what_an_exec_cannot_change_makes_another_key(setting, changes):
    assert setting.topology(**changes).key != setting.topology().key


def test_a_copy_of_another_kind_makes_another_key(setting):
    assert setting.topology(src=setting.pinned).key != setting.topology().key


def test_a_copy_that_leaves_its_kind_to_the_addresses_has_that_of_the_addresses(setting):
    def topology(dst, src):
        graph = gk.Graph()
        graph.add_memcpy_node(dst, src, nbytes=16)
        return topology_of(graph)

    x, y, pinned = setting.x.ptr, setting.y.ptr, setting.pinned.ctypes.data
    assert topology(y, x) == topology(x, y)
    assert topology(y, pinned) == topology(x, pinned)
    assert len({topology(*ends).key for ends in ((y, x), (y, pinned), (pinned, x))}) == 3


def test_copies_in_more_dimensions_must_be_the_same(setting):
    part = {"copied": np.s_[:, 1:]}
    assert setting.topology(**part) == setting.topology(**part)
    assert setting.topology(**part, dst=setting.other).key != setting.topology(**part).key


def test_captures_of_one_function_have_one_key(setting, stream):
    side = gk.Stream()
    event, done = gk.Event(), gk.Event()

    def capture(a):
        with gk.capture(stream) as graph:
            ADD_SCALAR(2, 32, (setting.x, setting.y, a, N), stream=stream)
            event.record(stream)
            side.wait_event(event)
            ADD_SCALAR(2, 32, (setting.y, setting.x, a, N), stream=side)
            done.record(side)
            ADD_SCALAR(4, 32, (setting.y, setting.other, a, N), stream=stream)
            stream.wait_event(done)
            AXPY(2, 32, (setting.x, setting.y, a, N), stream=stream)
        return graph

    first, second = topology_of(capture(1.0)), topology_of(capture(2.0))
    assert first == second
    assert first.nodes == 4


def test_the_order_of_nodes_counts(setting):
    def graph(kernels):
        made = gk.Graph()
        for kernel in kernels:
            made.add_kernel_node(kernel, 2, 32, (setting.x, setting.y, 1.0, N))
        return made

    first, second = graph([ADD_SCALAR, AXPY]), graph([AXPY, ADD_SCALAR])
    assert topology_of(first).key != topology_of(second).key


def test_clusters_are_not_shared(setting):
    why = setting.topology(launch={"cluster": 2}).unshareable
    assert why.startswith("node 0: kernel add_scalar is launched in clusters of 2 x 1 x 1 blocks")
    assert "sglang#37657" in why


def test_clusters_inside_of_a_child_graph_are_not_shared(runtime):
    inner = gk.Graph()
    inner.add_kernel_node(BLOCKS, 4, 32, (gk.zeros(4, np.int32),), cluster=2)
    graph = gk.Graph()
    graph.add_empty_node()
    graph.add_child_graph_node(inner)
    why = topology_of(graph).unshareable
    assert why.startswith("node 1: in its child graph node 0: kernel blocks is launched in cluster")


@pytest.mark.parametrize(
    ("type_", "said"),
    [
        (NodeType.MEM_ALLOC, "node 1: it allocates memory, and CUDA lets"),
        (NodeType.MEM_FREE, "node 1: it frees memory, and CUDA lets"),
        (NodeType.CONDITIONAL, "node 1: it is a conditional node, and CUDA lets"),
        (
            NodeType.BATCH_MEM_OP,
            "node 1: it is a node of type batch_mem_op, whose parameters",
        ),
    ],
)
def test_nodes_that_tie_a_graph_to_its_exec_are_not_shared(runtime, type_, said):
    graph = gk.Graph()
    first = graph.add_empty_node()
    # The kind alone decides.
    graph.add_empty_node(deps=first).type = type_
    assert topology_of(graph).unshareable.startswith(said)


def test_captured_allocations_are_not_shared(runtime, stream):
    with gk.capture(stream) as graph:
        address = runtime.malloc_async(64, stream.ptr)
        runtime.free_async(address, stream.ptr)
    topology = topology_of(graph)
    assert topology.nodes == 2
    assert topology.unshareable.startswith("node 0: it allocates memory")
