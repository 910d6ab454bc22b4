"""What a node holds is read back from CUDA, whoever made the graph."""

from __future__ import annotations

import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, BLOCKS

import graphkit as gk
from graphkit.c_signature import parse_signature
from graphkit.node import memcpy_params
from graphkit.params import ArgumentBlock
from graphkit.readback import read_cluster, read_values
from graphkit.runtime.protocol import KernelNodeParams, KernelSource, MemcpyKind

N = 8


@pytest.fixture
def x(runtime):
    return gk.asarray(np.arange(N, dtype=np.float32))


@pytest.fixture
def y(runtime):
    return gk.zeros(N)


def by_hand(x, y, stream):
    graph = gk.Graph()
    graph.add_kernel_node(ADD_SCALAR, (2, 3), (32, 2), (x, y, 1.5, N), shared_mem=256)
    return graph


def by_capture(x, y, stream):
    with gk.capture(stream) as graph:
        ADD_SCALAR((2, 3), (32, 2), (x, y, 1.5, N), stream=stream, shared_mem=256)
    return graph


@pytest.mark.parametrize("make", [by_hand, by_capture])
def test_a_kernel_node_of_ours(x, y, stream, make):
    graph = make(x, y, stream)
    (values,) = graph.kernels
    assert values.name == "add_scalar"
    assert values.function == ADD_SCALAR.function()
    assert (values.grid, values.block, values.shared_mem) == ((2, 3, 1), (32, 2, 1), 256)
    assert values.attributes == ()
    assert values.args == (
        gk.Argument("x", 0, 8, x.ptr),
        gk.Argument("y", 8, 8, y.ptr),
        gk.Argument("a", 16, 4, np.float32(1.5)),
        gk.Argument("n", 20, 4, np.int32(N)),
    )
    assert values.args[2].value.dtype == np.float32
    assert graph.values(graph.nodes[0]) == values


def foreign(runtime):
    """A function that graphkit knows nothing about, as another library's is."""
    layout = tuple((item.offset, item.size) for item in ADD_SCALAR.parameters)

    def twin(launch):
        x, y, a, n = launch.arguments
        count = int.from_bytes(n, "little")
        source = launch.memory(int.from_bytes(x, "little"), 4 * count, write=False)
        target = launch.memory(int.from_bytes(y, "little"), 4 * count, write=True)
        target.view(np.float32)[:] = source.view(np.float32) + np.frombuffer(a, np.float32)

    return runtime.function_load(KernelSource(ADD_SCALAR.code, "add_scalar", (), layout, twin))


@pytest.mark.parametrize("way", ["kernel_params", "extra"])
def test_a_kernel_node_of_somebody_else(runtime, x, y, stream, way):
    signature = parse_signature("float* x, float* y, float a, int n")
    block = ArgumentBlock(signature, nbytes=24 if way == "extra" else 0)
    block.pack((x, y, 1.5, N))
    loaded = foreign(runtime)
    graph = gk.Graph()
    params = KernelNodeParams(
        loaded.handle, (1, 1, 1), (32, 1, 1), 0, block.kernel_params, block.extra
    )
    runtime.graph_add_kernel_node(graph.ptr, [], params)
    (values,) = graph.kernels
    assert values.name == "add_scalar"
    assert values.args == (
        gk.Argument("arg0", 0, 8, x.ptr.to_bytes(8, "little")),
        gk.Argument("arg1", 8, 8, y.ptr.to_bytes(8, "little")),
        gk.Argument("arg2", 16, 4, np.float32(1.5).tobytes()),
        gk.Argument("arg3", 20, 4, np.int32(N).tobytes()),
    )
    exe = graph.instantiate()
    exe.set_kernel_node_params(graph.nodes[0], args={2: np.float32(3)})
    exe.launch(stream)
    stream.synchronize()
    assert np.array_equal(y.get(), x.get() + 3)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({}, {}),
        ({"cluster": 2}, {gk.LaunchAttributeID.CLUSTER_DIMENSION: (2, 1, 1)}),
        ({"cooperative": True}, {gk.LaunchAttributeID.COOPERATIVE: (1,)}),
        ({"priority": -1}, {gk.LaunchAttributeID.PRIORITY: (-1,)}),
        (
            {"cluster": (1, 2), "priority": -1},
            {
                gk.LaunchAttributeID.CLUSTER_DIMENSION: (1, 2, 1),
                gk.LaunchAttributeID.PRIORITY: (-1,),
            },
        ),
    ],
)
def test_attributes_are_read(runtime, stream, given, read):
    seen = gk.zeros(4, np.int32)
    graph = gk.Graph()
    graph.add_kernel_node(BLOCKS, (2, 2), 32, (seen,), **given)
    with gk.capture(stream) as captured:
        BLOCKS((2, 2), 32, (seen,), stream=stream, **given)
    # A captured kernel has its stream's priority where it has none of its own.
    for one in (graph, captured):
        assert dict(one.kernels[0].attributes) == read


def test_a_cluster_of_one_is_none(runtime):
    graph = gk.Graph()
    node = graph.add_kernel_node(BLOCKS, 4, 32, (gk.zeros(4, np.int32),), cluster=1)
    assert read_cluster(node) is None
    assert graph.kernels[0].attributes == ()
    assert graph.clusters == {}


def test_clusters_are_known_by_the_place_of_their_node(runtime):
    graph = gk.Graph()
    seen = gk.zeros(4, np.int32)
    graph.add_empty_node()
    graph.add_kernel_node(BLOCKS, 4, 32, (seen,), cluster=2)
    graph.add_kernel_node(BLOCKS, 4, 32, (seen,))
    assert graph.clusters == {(1,): (2, 1, 1)}
    graph.add_kernel_node(BLOCKS, 4, 32, (seen,), cluster=4)
    assert graph.clusters == {(1,): (2, 1, 1), (3,): (4, 1, 1)}


def test_memcpy_nodes_are_read(x, y):
    graph = gk.Graph()
    values = graph.values(graph.add_memcpy_node(y, x))
    assert (values.dst, values.src, values.width) == (y.ptr, x.ptr, 4 * N)
    assert (values.height, values.depth, values.kind) == (1, 1, MemcpyKind.DEVICE_TO_DEVICE)


@pytest.mark.parametrize("index", [np.s_[:, 2:4], np.s_[1:3, 2:4, 1:5]])
def test_memcpy_nodes_of_more_dimensions_are_read(runtime, index):
    a, b = gk.zeros((4, 6, 8)), gk.zeros((4, 6, 8))
    graph = gk.Graph()
    values = graph.values(graph.add_memcpy_node(a[index], b[index]))
    wanted = memcpy_params(a[index], b[index])
    assert (values.dst, values.dst_pitch) == (wanted.dst, wanted.dst_pitch)
    assert (values.src, values.src_pitch) == (wanted.src, wanted.src_pitch)
    assert values[6:9] == wanted[6:9]


def test_memset_nodes_are_read(runtime):
    array = gk.zeros((4, 8), np.int16)
    graph = gk.Graph()
    whole, part = graph.add_memset_node(array, 0x1234), graph.add_memset_node(array[:, 2:5], 7)
    first, second = graph.values(whole), graph.values(part)
    assert (first.dst, first.value, first.element_size) == (array.ptr, 0x1234, 2)
    assert (first.width, first.height) == (32, 1)
    assert second == gk.MemsetNodeParams(array.ptr + 4, 16, 7, 2, 3, 4)


def test_other_nodes_have_no_values(runtime):
    graph = gk.Graph()
    event = gk.Event()
    for node in (
        graph.add_empty_node(),
        graph.add_host_node(lambda: None),
        graph.add_event_record_node(event),
        graph.add_event_wait_node(event),
        graph.add_child_graph_node(gk.Graph()),
    ):
        assert read_values(node) is None
