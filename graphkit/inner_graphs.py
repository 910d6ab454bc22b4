"""Graphs inside of a node of another: child graphs, and the bodies of conditional nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphkit.derived_edges import DerivedEdges
from graphkit.lifetime import Handle
from graphkit.node import Node
from graphkit.touched import Copied

if TYPE_CHECKING:
    from graphkit.graph import Graph

__all__ = ["body_of", "captured_inside", "child_of", "inner_graphs", "level_of"]


def child_of(graph: Graph, node: Node) -> Graph:
    """Wrap the graph inside of a child graph node (cudaGraphChildGraphNodeGetGraph)."""
    value = graph.runtime.graph_child_graph_node_get_graph(node.ptr)
    child = graph.of_handle(Handle(graph.runtime, "graph", value, None, graph.handle))
    child.holder = node
    child.conditionals.in_body = graph.conditionals.in_body
    copied = graph.operands.get(node.ptr)
    if isinstance(copied, Copied):
        copied.give(child)
    if graph.records.derived is not None:
        child.records.derived = DerivedEdges(
            "graph: expected one that no graph with derived edges holds, came a child of "
            "one, whose edges follow from what was in the child when it was added"
        )
    return child


def body_of(graph: Graph, value: int, node: Node) -> Graph:
    """Wrap a graph that CUDA made for a conditional node, and destroys with it."""
    body = graph.of_handle(Handle(graph.runtime, "graph", value, None, graph.handle))
    body.holder = node
    body.conditionals.in_body = True
    body.conditionals.captured = graph.conditionals.captured
    if graph.captured_on is not None:
        body.conditionals.captured = graph.runtime, graph.captured_on
    body.records.clusters = {}
    body.records.execs = graph.records.execs  # an exec of this graph is one of its bodies, too
    if graph.records.derived is not None:
        body.records.derived = DerivedEdges()
    return body


def inner_graphs(graph: Graph) -> tuple[Graph, ...]:
    """Return the bodies, and the child graphs that somebody looked at."""
    return (*graph.records.children.values(), *graph.conditionals.bodies())


def captured_inside(graph: Graph) -> Graph | None:
    """Return what a live capture fills: the graph itself, or a body in it; None without one."""
    for inside in (graph, *graph.conditionals.all_bodies()):
        if inside.captured_on is not None:
            return inside
    return None


def level_of(graph: Graph, node: Node) -> Graph | None:
    """Return the graph that a node is a node of: this one, one inside of it, or None."""
    if not isinstance(node, Node):
        raise TypeError(f"node: expected a Node, came {type(node).__name__}")
    if node.graph_handle is graph.handle:
        return graph if graph.records.has(node) else None
    for inner in inner_graphs(graph):
        found = level_of(inner, node)
        if found is not None:
            return found
    return None
