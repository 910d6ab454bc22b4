"""What two graphs must have in common for one executable graph to serve both."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass

from graphkit.graph import Graph
from graphkit.node import Node
from graphkit.readback import read_kernel
from graphkit.runtime.protocol import (
    Dim3,
    LaunchAttributeID,
    MemcpyKind,
    MemoryType,
    NodeType,
    Runtime,
)

__all__ = ["Topology", "topology_of"]

# The kinds that an exec can be moved over. Of what is missing graphkit cannot read the parameters.
_MOVABLE = {
    NodeType.KERNEL,
    NodeType.MEMCPY,
    NodeType.MEMSET,
    NodeType.HOST,
    NodeType.GRAPH,
    NodeType.EMPTY,
    NodeType.EVENT_WAIT,
    NodeType.EVENT_RECORD,
}

_ONE_EXEC_ONLY = {
    NodeType.MEM_ALLOC: "allocates memory",
    NodeType.MEM_FREE: "frees memory",
    NodeType.CONDITIONAL: "is a conditional node",
}

# Clusters are read by Graph.clusters, which an update asks again.
_ATTRIBUTES = (LaunchAttributeID.COOPERATIVE, LaunchAttributeID.PRIORITY)


@dataclass(frozen=True)
class Topology:
    """What an exec cannot change about its graph.

    Attributes:
        key: equal for graphs that may share an exec: kinds of nodes, functions, blocks, shared
            memory, attributes, kinds of copies, the extents of copies and fills in more than one
            dimension, and edges with their data. Grids, arguments and names are left out. Small
            and quickly compared, whatever the graph's size; good within this process only.
        nodes: how many nodes there are, those inside of child graphs included.
        unshareable: why no exec may be shared whatever the key, None where one may.
    """

    key: Hashable
    nodes: int
    unshareable: str | None


def topology_of(graph: Graph) -> Topology:
    """Read the topology of a graph.

    Calls cudaGraphGetNodes, cudaGraphGetEdges, and for each node a getter of its parameters; for
    each kernel node cuGraphKernelNodeGetAttribute three times, and for each copy that leaves its
    kind to the addresses cudaPointerGetAttributes twice.
    """
    nodes = graph.nodes
    clusters = graph.clusters
    count, unshareable = len(nodes), None
    kinds: list[object] = []
    for place, node in enumerate(nodes):
        if node.type is NodeType.GRAPH:
            inside = topology_of(graph.child_graph(node))
            kinds.append((int(node.type), inside.key))
            count += inside.nodes
            why = inside.unshareable and f"in its child graph {inside.unshareable}"
        else:
            cluster = clusters.get((place,))
            kinds.append(_fixed(node, cluster))
            why = _why_unshareable(node, cluster)
        if why and unshareable is None:
            unshareable = f"node {place}: {why}"
    places = {node.ptr: place for place, node in enumerate(nodes)}
    edges = [
        (places[end], places[start], tuple(data))
        for start, end, data in graph.runtime.graph_get_edges(graph.ptr)
    ]
    # CUDA pairs nodes by the order of the edges into each of them: that order stays.
    edges.sort(key=lambda edge: edge[0])
    text = repr((kinds, edges)).encode()
    return Topology(hashlib.blake2b(text, digest_size=32).digest(), count, unshareable)


def _fixed(node: Node, cluster: Dim3 | None) -> object:
    """Return what an exec cannot change about a node, as plain numbers."""
    runtime, ptr, kind = node.graph_handle.runtime, node.ptr, int(node.type)
    if node.type is NodeType.KERNEL:
        function, _, block, shared_mem, *_ = runtime.graph_kernel_node_get_params(ptr)
        attributes = [
            runtime.graph_kernel_node_get_attribute(ptr, id_).value for id_ in _ATTRIBUTES
        ]
        return kind, function, block, shared_mem, cluster, attributes
    if node.type is NodeType.MEMCPY:
        copy = runtime.graph_memcpy_node_get_params(ptr)
        flat = copy.height == copy.depth == 1
        ends = None
        if copy.kind is MemcpyKind.DEFAULT:
            # Then the addresses say what is copied where, and CUDA holds on to that as well.
            ends = [_on_host(runtime, address) for address in (copy.dst, copy.src)]
        # Of a copy in more dimensions CUDA changes nothing at all, its addresses neither.
        return kind, int(copy.kind), ends, None if flat else tuple(map(int, copy))
    if node.type is NodeType.MEMSET:
        fill = runtime.graph_memset_node_get_params(ptr)
        extents = (fill.pitch, fill.element_size, fill.width, fill.height)
        return kind, None if fill.height == 1 else extents
    return kind


def _on_host(runtime: Runtime, address: int) -> bool:
    memory = runtime.pointer_get_attributes(address).type
    return memory in (MemoryType.HOST, MemoryType.UNREGISTERED)


def _why_unshareable(node: Node, cluster: Dim3 | None) -> str | None:
    if cluster is not None:
        extents = " x ".join(map(str, cluster))
        return (
            f"kernel {read_kernel(node).name} is launched in clusters of {extents} blocks, and "
            "CUDA reports success for updates that keep an exec's old clusters (sglang#37657)"
        )
    if node.type in _ONE_EXEC_ONLY:
        return (
            f"it {_ONE_EXEC_ONLY[node.type]}, and CUDA lets a graph with such a node have one exec "
            "that stays its own"
        )
    if node.type not in _MOVABLE:
        kind = node.type.name.lower()
        return f"it is a node of type {kind}, whose parameters graphkit does not read"
    return None
