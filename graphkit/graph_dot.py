"""A graph in the DOT language, for Graphviz."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphkit.node import KernelNodeValues, Node
from graphkit.runtime.protocol import MemcpyNodeParams, MemsetNodeParams

if TYPE_CHECKING:
    from graphkit.graph import Graph

__all__ = ["dot_text"]


def dot_text(graph: Graph) -> str:
    """Return a graph as a box a node; bodies of conditional nodes are clusters."""
    lines = ["digraph graphkit {", "  node [shape=box, fontname=monospace];"]
    return "\n".join([*lines, *_lines(graph, "n", "  "), "}"]) + "\n"


def _lines(graph: Graph, prefix: str, indent: str) -> Iterator[str]:
    nodes = graph.nodes
    names = {node.ptr: f"{prefix}{index}" for index, node in enumerate(nodes)}
    for node in nodes:
        yield f'{indent}{names[node.ptr]} [label="{_label(graph, node)}"];'
    for edge in graph.edges:
        style = " [style=dashed, label=programmatic]" if edge.programmatic else ""
        yield f"{indent}{names[edge.from_node.ptr]} -> {names[edge.to_node.ptr]}{style};"
    for ptr, conditional in graph.conditionals.nodes.items():
        for index, body in enumerate(conditional.bodies):
            name = f"{names[ptr]}_{index}_"
            yield f"{indent}subgraph cluster_{name} {{"
            yield f'{indent}  label="{conditional.body_name(index)}";'
            yield from _lines(body, name, indent + "  ")
            yield f"{indent}}}"
            if body.nodes:
                yield f"{indent}{names[ptr]} -> {name}0 [style=dotted, arrowhead=none];"


def _label(graph: Graph, node: Node) -> str:
    if node.ptr in graph.conditionals.nodes:
        return graph.conditionals.nodes[node.ptr].type.name.lower()
    values = graph.values(node)
    if isinstance(values, KernelNodeValues):
        text = f"{values.name}\\n{values.grid} x {values.block}"
    elif isinstance(values, MemcpyNodeParams):
        sizes = (values.width, values.height, values.depth)
        extents = " x ".join(str(size) for size in sizes if size > 1)
        text = f"memcpy {values.kind.name.lower()}\\n{extents} bytes"
    elif isinstance(values, MemsetNodeParams):
        text = f"memset {values.value:#x}\\n{values.width} x {values.height}"
    else:
        text = node.type.name.lower()
    return text.replace('"', r"\"")
