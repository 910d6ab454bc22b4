"""Priorities, clusters, cooperative launches and launch-completion edges."""

from __future__ import annotations

import numpy as np
import pytest
from sample_kernels import BLOCKS, INCREMENT

import graphkit as gk

IDS = gk.LaunchAttributeID


@pytest.fixture
def graph(runtime):
    return gk.Graph()


@pytest.fixture
def seen(runtime):
    return gk.zeros(8, np.int32)


def launch(exe, stream):
    exe.launch(stream)
    stream.synchronize()


def check(graph, seen, stream, grid=4, **flags):
    """Launch the graph, whose kernels write gridDim * 1000 + blockDim to each block's place."""
    seen.set(np.zeros(8, np.int32))
    with graph.instantiate(**flags) as exe:
        launch(exe, stream)
    assert seen.get()[:grid].tolist() == [grid * 1000 + 32] * grid


# --- kept, and read back -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "cluster", "cooperative", "priority"),
    [
        ({}, None, False, 0),
        ({"cluster": 2}, (2, 1, 1), False, 0),
        ({"cluster": (4, 1)}, (4, 1, 1), False, 0),
        ({"cluster": 1}, None, False, 0),
        ({"cooperative": True}, None, True, 0),
        ({"priority": -2}, None, False, -2),
        ({"cluster": 2, "cooperative": True, "priority": -1}, (2, 1, 1), True, -1),
    ],
)
def test_attributes_are_read_back(graph, seen, stream, given, cluster, cooperative, priority):
    node = graph.add_kernel_node(BLOCKS, 4, 32, (seen,), **given)
    for found in (graph.values(node), graph.kernels[0]):
        assert (found.cluster, found.cooperative, found.priority) == (
            cluster,
            cooperative,
            priority,
        )
    check(graph, seen, stream, use_node_priority=True)


@pytest.mark.parametrize("given", [{"cluster": 2}, {"cooperative": True}, {"priority": -1}])
def test_attributes_of_captured_launches(seen, stream, given):
    with gk.capture(stream) as graph:
        BLOCKS(4, 32, (seen,), stream=stream, **given)
    (found,) = graph.kernels
    assert found.cluster == ((2, 1, 1) if "cluster" in given else None)
    assert found.cooperative is given.get("cooperative", False)
    assert found.priority == given.get("priority", 0)
    check(graph, seen, stream)


def test_a_captured_kernel_has_the_priority_of_its_stream(runtime, seen):
    least, greatest = runtime.device_get_stream_priority_range()
    assert greatest < least
    main, urgent = gk.Stream(priority=least), gk.Stream(priority=greatest)
    with gk.capture(main) as graph:
        BLOCKS(4, 32, (seen,), stream=main)
        urgent.wait_event(main.record())
        BLOCKS(4, 32, (seen,), stream=urgent)
        main.wait_event(urgent.record())
    assert [found.priority for found in graph.kernels] == [least, greatest]
    check(graph, seen, main, use_node_priority=True)


def test_attributes_of_a_captured_node_change(seen, stream):
    with gk.capture(stream) as graph:
        BLOCKS(4, 32, (seen,), stream=stream)
    (node,) = graph.nodes
    graph.set_kernel_node_attributes(node, cluster=2, priority=-1, cooperative=True)
    found = graph.values(node)
    assert (found.cluster, found.cooperative, found.priority) == ((2, 1, 1), True, -1)
    assert graph.clusters == {(0,): (2, 1, 1)}
    check(graph, seen, stream, use_node_priority=True)
    graph.set_kernel_node_attributes(node, cooperative=False)
    graph.set_kernel_node_attributes(node, priority=0)
    found = graph.values(node)
    assert (found.cluster, found.cooperative, found.priority) == ((2, 1, 1), False, 0)
    graph.set_kernel_node_attributes(node)
    assert graph.values(node) == found
    check(graph, seen, stream)


def test_an_exec_keeps_the_attributes_it_was_made_with(graph, seen, stream):
    node = graph.add_kernel_node(BLOCKS, 4, 32, (seen,))
    with graph.instantiate() as exe:
        graph.set_kernel_node_attributes(node, cooperative=True)
        report = exe.update(graph)
        assert not report
        assert report.result is gk.ExecUpdateStatus.ATTRIBUTES_CHANGED
        launch(exe, stream)
        graph.set_kernel_node_attributes(node, cooperative=False)
        assert exe.update(graph)
        launch(exe, stream)
    assert seen.get()[0] == 4032


def test_an_exec_keeps_its_clusters_whatever_becomes_of_its_graph(graph, seen, stream):
    """CUDA reports success for some such updates, and keeps the old ones."""

    def fill(graph):
        first = graph.add_kernel_node(BLOCKS, 4, 32, (seen,), cluster=2)
        graph.add_kernel_node(INCREMENT, 4, 32, (seen, 1), deps=first)
        return first

    first, twin, plain = fill(graph), gk.Graph(), gk.Graph()
    fill(twin)
    node = plain.add_kernel_node(BLOCKS, 4, 32, (seen,))
    changed = gk.ExecUpdateStatus.ATTRIBUTES_CHANGED
    with graph.instantiate() as exe, plain.instantiate() as without:
        graph.set_kernel_node_attributes(first, cluster=4)
        assert exe.update(graph).result is changed
        plain.set_kernel_node_attributes(node, cluster=4)
        assert without.update(plain).result is changed
        assert exe.update(twin)
        graph.remove_node(first)
        assert exe.update(twin)
        graph.add_kernel_node(BLOCKS, 4, 32, (seen,), cluster=4, deps=graph.nodes)
        assert exe.update(twin)
        launch(exe, stream)
        launch(without, stream)
    assert seen.get()[0] == 4032


def test_priorities_that_an_exec_uses_are_fixed(graph, seen, stream):
    node = graph.add_kernel_node(BLOCKS, 4, 32, (seen,), priority=-1)
    with graph.instantiate(use_node_priority=True) as using, graph.instantiate() as other:
        graph.set_kernel_node_attributes(node, priority=-2)
        assert using.update(graph).result is gk.ExecUpdateStatus.ATTRIBUTES_CHANGED
        assert other.update(graph)
        launch(using, stream)
        launch(other, stream)


# --- launch-completion edges ---------------------------------------------------------------------


def test_launch_completion_edges(graph, stream):
    counters = [gk.zeros(1, np.int32) for _ in range(3)]
    first, second, third = (graph.add_kernel_node(INCREMENT, 1, 1, (c, 1)) for c in counters)
    graph.add_dependency(first, second, launch_completion=True)
    graph.add_dependency(second, third, programmatic=True)
    early, plain = sorted(graph.edges, key=lambda edge: edge.from_node is second)
    assert (early.programmatic, early.launch_completion) == (True, True)
    assert (plain.programmatic, plain.launch_completion) == (True, False)
    assert early.data == (2, 0, 1)
    with graph.instantiate() as exe:
        launch(exe, stream)
    assert [int(c.get()[0]) for c in counters] == [1, 1, 1]
    clone = graph.clone()
    assert [edge.data for edge in clone.edges] == [edge.data for edge in graph.edges]


def test_a_launch_completion_edge_needs_two_kernels(graph, seen):
    node, empty = graph.add_kernel_node(BLOCKS, 4, 32, (seen,)), graph.add_empty_node()
    for a, b, argument in ((node, empty, "to_node"), (empty, node, "from_node")):
        with pytest.raises(TypeError, match=f"{argument}: expected a kernel node"):
            graph.add_dependency(a, b, launch_completion=True)
    assert graph.edges == []


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"cluster": 3}, ValueError, r"cluster: expected extents that divide grid \(64, 1, 1\)"),
        ({"cluster": (2, 2)}, ValueError, "cluster: expected extents that divide grid"),
        ({"cluster": 32}, ValueError, "cluster: expected at most 16 blocks, came"),
        ({"cluster": 0}, ValueError, "cluster: expected extents of 1"),
        ({"cluster": "2"}, TypeError, "cluster: expected"),
        ({"cluster": 2.0}, TypeError, "cluster: expected"),
        ({"priority": 2**31}, ValueError, "priority: expected a number of 32 bits"),
        ({"priority": "high"}, TypeError, "priority: expected an int"),
        ({"priority": True}, TypeError, "priority: expected an int"),
    ],
)
def test_refused_before_a_call(graph, seen, stream, given, error, message):
    with pytest.raises(error, match=message):
        graph.add_kernel_node(BLOCKS, 64, 32, (seen,), **given)
    assert graph.nodes == []
    with pytest.raises(error, match=message):
        BLOCKS(64, 32, (seen,), stream=stream, **given)
    node = graph.add_kernel_node(INCREMENT, 64, 32, (seen, 1))
    held = graph.values(node)
    with pytest.raises(error, match=message):
        graph.set_kernel_node_attributes(node, **given)
    assert graph.values(node) == held
    with graph.instantiate() as exe:
        launch(exe, stream)


def test_a_cluster_that_the_kernel_does_not_allow(graph, seen, stream):
    # Until the launch somewhere: which call says so is CUDA's to choose.
    def everything(add):
        node = add()
        with graph.instantiate() as exe:
            launch(exe, stream)
        return node

    with pytest.raises(gk.CudaError) as caught:
        everything(lambda: graph.add_kernel_node(INCREMENT, 16, 32, (seen, 1), cluster=16))
    assert caught.value.code == 912
    assert "keep to 8 blocks a cluster" in str(caught.value)
    with pytest.raises(gk.CudaError) as caught:
        INCREMENT(16, 32, (seen, 1), stream=stream, cluster=16)
    assert caught.value.code == 912
    INCREMENT(16, 32, (seen, 1), stream=stream, cluster=8)
    stream.synchronize()
    assert seen.get()[0] == 1


def test_a_grid_that_the_cluster_does_not_divide_any_more(graph, seen, stream):
    node = graph.add_kernel_node(BLOCKS, 4, 32, (seen,), cluster=2)
    with graph.instantiate() as exe:
        with pytest.raises(ValueError, match=r"grid: expected a multiple of the cluster \(2, 1, 1"):
            exe.set_kernel_node_params(node, grid=5)
        launch(exe, stream)
        assert seen.get().tolist() == [4032] * 4 + [0] * 4
        exe.set_kernel_node_params(node, grid=6)
        launch(exe, stream)
        assert seen.get().tolist() == [6032] * 6 + [0] * 2


def test_a_grid_is_for_the_cluster_of_the_exec_and_not_of_its_graph(graph, seen, stream):
    graph.add_empty_node()
    node = graph.add_kernel_node(BLOCKS, 4, 32, (seen,), cluster=2)
    with graph.instantiate() as exe:
        graph.set_kernel_node_attributes(node, cluster=4)
        graph.add_kernel_node(BLOCKS, 4, 32, (seen,), deps=node)
        exe.set_kernel_node_params(node, grid=6)
        launch(exe, stream)
        assert seen.get().tolist() == [6032] * 6 + [0] * 2
        with pytest.raises(ValueError, match=r"grid: expected a multiple of the cluster \(2, 1, 1"):
            exe.set_kernel_node_params(node, grid=5)
        with pytest.raises(gk.CudaError):
            exe.set_kernel_node_params(graph.nodes[-1], grid=6)  # which the exec has not


def test_a_cooperative_grid_that_is_too_large(graph, seen, stream):
    grid = 1 << 20
    with pytest.raises(gk.CudaError) as caught:
        INCREMENT(grid, 1024, (seen, 1), stream=stream, cooperative=True)
    assert caught.value.name == "cudaErrorCooperativeLaunchTooLarge"
    assert "shrink the grid" in str(caught.value)

    def everything():
        graph.add_kernel_node(INCREMENT, grid, 1024, (seen, 1), cooperative=True)
        with graph.instantiate() as exe:
            launch(exe, stream)

    with pytest.raises(gk.CudaError) as caught:
        everything()
    assert caught.value.code == 720
    INCREMENT(2, 32, (seen, 1), stream=stream, cooperative=True)
    stream.synchronize()
    assert seen.get()[0] == 1


def test_only_kernel_nodes_have_attributes(graph, seen, stream):
    node = graph.add_memset_node(seen, 0)
    with pytest.raises(TypeError, match="node: expected a kernel node, came <Node memset"):
        graph.set_kernel_node_attributes(node, priority=-1)
    other = gk.Graph()
    kernel = other.add_kernel_node(BLOCKS, 4, 32, (seen,))
    with pytest.raises(ValueError, match="node: expected a node of this graph"):
        graph.set_kernel_node_attributes(kernel, priority=-1)
    with pytest.raises(TypeError, match="node: expected a Node"):
        graph.set_kernel_node_attributes(5, priority=-1)


def test_a_refused_change_leaves_the_node_as_it_was(graph, seen, stream, monkeypatch):
    node = graph.add_kernel_node(BLOCKS, 4, 32, (seen,), cluster=2)
    held = graph.values(node)
    real = graph.runtime.graph_kernel_node_set_attribute

    def refuse_priorities(ptr, attribute):
        if attribute.id is IDS.PRIORITY:
            raise gk.CudaError("cuGraphKernelNodeSetAttribute", 801)
        real(ptr, attribute)

    monkeypatch.setattr(graph.runtime, "graph_kernel_node_set_attribute", refuse_priorities)
    with pytest.raises(gk.CudaError, match="801"):
        graph.set_kernel_node_attributes(node, cluster=4, cooperative=True, priority=-1)
    assert graph.values(node) == held
    check(graph, seen, stream)


def test_refused_attributes_where_a_node_cannot_be_taken_out(graph, seen, stream, monkeypatch):
    alloc, inner = graph.add_mem_alloc_node(1, np.int32)
    graph.add_mem_free_node(inner, deps=alloc)

    def refuse(ptr, attribute):
        raise gk.CudaError("cuGraphKernelNodeSetAttribute", 801)

    with monkeypatch.context() as patch:
        patch.setattr(graph.runtime, "graph_kernel_node_set_attribute", refuse)
        with pytest.raises(gk.CudaError, match="801"):
            graph.add_kernel_node(BLOCKS, 4, 32, (seen,), cooperative=True)
    assert len(graph.nodes) == 2
    graph.add_kernel_node(BLOCKS, 4, 32, (seen,), cooperative=True)
    check(graph, seen, stream)
