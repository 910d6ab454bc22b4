"""What two graphs must have in common for one executable graph to serve both."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from graphkit.graph import Graph
from graphkit.node import KernelNodeValues, Node
from graphkit.runtime.protocol import (
    LaunchAttributeID,
    MemcpyNodeParams,
    MemsetNodeParams,
    NodeType,
)

__all__ = ["Topology", "topology_of"]

# Nodes that tie a graph to one exec, by what CUDA says of them.
_UNSHAREABLE = {
    NodeType.MEM_ALLOC: "a graph that allocates memory can have one exec only",
    NodeType.MEM_FREE: "a graph that frees memory can have one exec only",
    NodeType.CONDITIONAL: "a graph with conditional nodes can have one exec only",
}


@dataclass(frozen=True)
class Topology:
    """What an exec cannot change about its graph.

    Attributes:
        key: equal for graphs that may share an exec: kinds of nodes, functions, blocks, shared
            memory, attributes, kinds of copies, and edges with their data, by the order in which
            nodes were added. Grids, arguments, addresses and names are left out.
        nodes: how many nodes there are, those inside of child graphs included.
        unshareable: why no exec may be shared whatever the key, None where one may.
    """

    key: Hashable
    nodes: int
    unshareable: str | None


def topology_of(graph: Graph) -> Topology:
    """Read the topology of a graph.

    Calls cudaGraphGetNodes and cudaGraphGetEdges, and for each node what :meth:`Graph.values`
    calls.
    """
    nodes = graph.nodes
    place = {node: index for index, node in enumerate(nodes)}
    kinds: list[Hashable] = []
    count = len(nodes)
    unshareable: str | None = None
    for index, node in enumerate(nodes):
        if node.type is NodeType.GRAPH:
            inside = topology_of(graph.child_graph(node))
            kinds.append((node.type, inside.key))
            count += inside.nodes
            why = inside.unshareable
        else:
            kind, why = _kind(graph, node)
            kinds.append(kind)
            why = why and f"node {index}: {why}"
        unshareable = unshareable or why
    edges = sorted((place[edge.from_node], place[edge.to_node], edge.data) for edge in graph.edges)
    return Topology((tuple(kinds), tuple(edges)), count, unshareable)


def _kind(graph: Graph, node: Node) -> tuple[Hashable, str | None]:
    """Return what an exec cannot change about a node, and why it cannot be shared at all."""
    values = graph.values(node)
    if isinstance(values, KernelNodeValues):
        cluster = [
            attribute.value
            for attribute in values.attributes
            if attribute.id is LaunchAttributeID.CLUSTER_DIMENSION
        ]
        why = None
        if cluster:
            why = (
                f"{values.name} has clusters of {cluster[0]}, and an update may report success "
                "and keep the old ones"
            )
        attributes = tuple(sorted(values.attributes))
        return (node.type, values.function, values.block, values.shared_mem, attributes), why
    if isinstance(values, MemcpyNodeParams):
        return (node.type, values.kind, values.height > 1, values.depth > 1), None
    if isinstance(values, MemsetNodeParams):
        return (node.type, values.element_size, values.height > 1), None
    return (node.type,), _UNSHAREABLE.get(node.type)
