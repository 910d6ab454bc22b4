"""What cannot be done with a graph: because CUDA does not do it, or because edges are derived."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphkit.conditional import check_body_graph
from graphkit.derived_edges import refuse_removal
from graphkit.inner_graphs import captured_inside
from graphkit.lifetime import Handle
from graphkit.node import Node
from graphkit.runtime.protocol import NodeType

if TYPE_CHECKING:
    from graphkit.graph import Graph

__all__ = [
    "check_capture",
    "check_child",
    "check_clone",
    "check_close",
    "check_edge_removal",
    "check_groups",
    "check_instantiate",
    "check_memory",
    "check_node_removal",
]


def check_child(graph: Graph, child: Graph) -> None:
    """Refuse a graph that cannot become a child of another."""
    around: object = graph.handle
    while isinstance(around, Handle):
        if around is child.handle:  # CUDA would end the process (seen on an H200)
            raise ValueError(
                f"child: expected a graph that this one is not inside of, came {child!r}; add a "
                "clone() of it"
            )
        around = around.owner
    child.conditionals.refuse_copy("child", "copies a child graph, and copies")
    if graph.conditionals.in_body:
        check_body_graph(child, "child")
    child.memory_nodes.refuse("child", "CUDA copies a child graph, and copies none of these")


def check_memory(graph: Graph, type_: NodeType) -> None:
    """Refuse an alloc or free node in a graph that is inside of another."""
    graph.conditionals.refuse_kind(type_)
    if graph.holder is not None:
        raise ValueError(
            f"graph: expected one that is in no other, came that of {graph.holder!r}: CUDA "
            "allows no alloc or free nodes there"
        )


def check_capture(graph: Graph) -> None:
    """Refuse to capture into what is no body, or where another capture is live."""
    holder = graph.holder
    if holder is None or holder.type is not NodeType.CONDITIONAL:
        came = "a graph of its own" if holder is None else f"that of {holder!r}"
        raise ValueError(
            f"into: expected the body of a conditional node, came {came}; without into, a capture "
            "makes a graph of its own"
        )
    if graph.conditionals.captured is not None:
        raise ValueError(
            "into: expected a body that no live capture is around, since CUDA crashes when "
            "the inner capture dies, came one; add its nodes by hand"
        )
    inside = captured_inside(graph)
    if inside is not None:
        came = "one into it" if inside is graph else f"one into the body of {inside.holder!r}"
        raise ValueError(f"into: expected a body without a live capture, came {came}")


def check_close(graph: Graph) -> None:
    """Refuse to close what belongs to a node, or what a live capture fills."""
    if graph.holder is not None and not graph.handle.closed:
        raise ValueError(
            f"graph: expected one that is in no other, came that of {graph.holder!r}, which ends "
            "with the graph around it"
        )
    inside = captured_inside(graph)
    if inside is not None:
        what = "it" if inside is graph else f"the body of {inside.holder!r}"
        raise ValueError(f"graph: expected one without a live capture, came one into {what}")


def check_groups(graph: Graph) -> None:
    """Refuse groups of a graph that is inside of another."""
    if graph.holder is not None:
        raise ValueError(f"graph: expected one that is in no other, came that of {graph.holder!r}")


def check_node_removal(graph: Graph, node: Node) -> None:
    """Refuse to take out a node that must stay."""
    if node.type is NodeType.CONDITIONAL:
        raise ValueError(
            "node: expected any but a conditional node, since CUDA has no call that "
            f"destroys its handle, came {node!r}"
        )
    if node.ptr in graph.conditionals.setters:
        raise ValueError(
            "node: expected any but the kernel that sets a condition to what its flag holds, since "
            f"nobody else does, came {node!r}"
        )
    graph.memory_nodes.refuse("node", "CUDA takes no node out of such a graph")
    if graph.records.derived is not None:
        refuse_removal("node")


def check_edge_removal(graph: Graph) -> None:
    """Refuse to take out an edge of a graph whose edges must stay."""
    graph.memory_nodes.refuse("graph", "CUDA takes no edge out of it")
    if graph.records.derived is not None:
        refuse_removal("graph")


def check_clone(graph: Graph) -> None:
    """Refuse a graph that cannot be cloned."""
    graph.ptr  # noqa: B018 - refuses a closed graph
    graph.conditionals.refuse_copy("graph", "clones")
    graph.memory_nodes.refuse("graph", "CUDA clones none; build or capture it once more")


def check_instantiate(graph: Graph) -> None:
    """Refuse a graph that is not complete, or that has one exec at a time and has it."""
    live = graph.live_execs()
    graph.conditionals.refuse_instantiate(live)
    if live:
        graph.memory_nodes.refuse(
            "graph", "it has one exec at a time, and an earlier one is not closed"
        )
