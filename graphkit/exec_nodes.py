"""What an executable graph holds for each of its nodes: CUDA has no getter for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from graphkit.arrays import dtype_of
from graphkit.node import Node, NodeValues, check_paired
from graphkit.params import ArgumentBlock
from graphkit.readback import kernel_values, read_kernel_block, read_values
from graphkit.runtime.protocol import Dim3, KernelNodeParams, MemcpyNodeParams, MemsetNodeParams

if TYPE_CHECKING:
    from graphkit.graph import Graph
    from graphkit.node_records import NodeRecords, Shape

__all__ = ["ExecNodes", "KernelSlot"]


class KernelSlot:
    """What an exec holds for one of its kernel nodes, ready to be changed.

    ``write`` checks and writes any value, ``cells`` takes plain numbers as they are, and ``place``
    is the argument's in ``owners``; all three by name and by position.
    """

    __slots__ = ("block", "cells", "commit", "owners", "params", "place", "view", "write")

    def __init__(self, params: KernelNodeParams, block: ArgumentBlock) -> None:
        self.params = params._replace(kernel_params=block.kernel_params, extra=block.extra)
        self.block = block
        self.view = block.view
        self.commit: Callable[[], Any] = _unbound
        keys = [*block.names, *range(len(block.parameters))]
        self.write: dict[object, Callable[[object], None]] = dict(
            zip(keys, block.writers * 2, strict=True)
        )
        self.cells: dict[object, Any] = dict(zip(keys, block.cells * 2, strict=True))
        self.place: dict[object, int] = {key: block.index(key) for key in keys}
        self.owners: list[object] = [None] * len(block.parameters)


def _unbound() -> NoReturn:
    raise AssertionError("a kernel slot is bound by the exec that opens it")


class ExecNodes:
    """The values of an exec's nodes: those of the graph they came from, and the changes since.

    Not locked: the exec that owns it has the turn.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        # Where the values came from: the graph itself or one passed to update(), and for child
        # graph nodes one that was set since.
        self.taken_from = graph
        self._children: dict[Node, Graph] = {}
        self.slots: dict[Node, KernelSlot] = {}
        self.copies: dict[Node, MemcpyNodeParams] = {}
        self.fills: dict[Node, MemsetNodeParams] = {}
        self.dtypes: dict[Node, np.dtype[Any] | None] = {}  # of the arrays that these fill
        self._clusters: dict[tuple[int, ...], Dim3] | None = None
        self._shapes: dict[NodeRecords, Shape] = {}

    @property
    def clusters(self) -> dict[tuple[int, ...], Dim3]:
        """Cluster extents that the exec was made with, as :attr:`Graph.clusters`: they stay.

        Asked for when they are first needed, or the graph is about to change.
        """
        if self._clusters is None:
            self._clusters = self._graph.clusters
        return self._clusters

    def cluster_of(self, node: Node) -> Dim3 | None:
        """Return the cluster extents that the exec was made with, of a kernel node."""
        level = self._graph.level_of(node)
        assert level is not None
        # In a body no update changes those; and where none were noted, the graph has the exec's.
        if level.conditionals.in_body or self._clusters is None:
            return level.cluster_of(node)
        if not self._clusters:
            return None
        path: list[int] = []
        while True:
            nodes = self.shape(level.records).nodes
            if node not in nodes:  # it was added since: CUDA says that the exec has it not
                return None
            path.insert(0, nodes.index(node))
            if level.holder is None:
                return self._clusters.get(tuple(path))
            node = level.holder
            level = self._graph.level_of(node)
            assert level is not None

    def keep_shape(self, records: NodeRecords) -> None:
        """Note the nodes and edges that a graph had when the exec was made, before they change."""
        if not self.has_shape(records):
            self._shapes[records] = records.shape()

    def has_shape(self, records: NodeRecords) -> bool:
        """Return whether those of a graph were noted."""
        return records in self._shapes

    def shape(self, records: NodeRecords) -> Shape:
        """Return the nodes and edges that the exec was made of, of its graph or one inside."""
        return self._shapes.get(records) or records.shape()

    def open(self, node: Node) -> KernelSlot:
        """Read what the exec holds for a kernel node that was not changed yet."""
        return KernelSlot(*read_kernel_block(self._source(node)))

    def copy(self, node: Node) -> MemcpyNodeParams:
        """Return the parameters held for a memcpy node."""
        held = self.copies.get(node)
        runtime = self._graph.runtime
        return held or runtime.graph_memcpy_node_get_params(self._source(node).ptr)

    def fill(self, node: Node) -> MemsetNodeParams:
        """Return the parameters held for a memset node."""
        held = self.fills.get(node)
        runtime = self._graph.runtime
        return held or runtime.graph_memset_node_get_params(self._source(node).ptr)

    def dtype(self, node: Node) -> np.dtype[Any] | None:
        """Return the dtype of the last array that a memset node was given; None is not known."""
        level = self._graph.level_of(node)
        if node in self.dtypes or level is None:
            return self.dtypes.get(node)
        if level.holder is None:
            return dtype_of(self.taken_from.operands.get(self._source(node).ptr))
        as_made = self.taken_from is self._graph and not self._children
        return dtype_of(level.operands.get(node.ptr)) if as_made else None

    def values(self, node: Node) -> NodeValues:
        """Return the values held for a node of any kind."""
        slot = self.slots.get(node)
        if slot is not None:
            return kernel_values(node, slot.params, slot.block)
        return self.copies.get(node) or self.fills.get(node) or read_values(self._source(node))

    def _source(self, node: Node) -> Node:
        """Return the node whose values the exec took for ``node``: nodes are paired by order."""
        level = self._graph.level_of(node)
        assert level is not None
        runtime = self._graph.runtime
        if level.holder is None:
            if self.taken_from is self._graph:
                return node
            given, owner = self.taken_from.handle.value, self.taken_from.handle
        elif level.holder in self._children:
            child = self._children[level.holder]
            given, owner = child.handle.value, child.handle
        else:
            holder = self._source(level.holder)
            if holder is level.holder:
                return node
            given = runtime.graph_child_graph_node_get_graph(holder.ptr)
            owner = holder.graph_handle
        if not given:
            raise ValueError(
                "node: expected the graph that the exec was updated from to be live, since this "
                "node's values are its, came a closed one; close it after the last single change"
            )
        mine, theirs = runtime.graph_get_nodes(level.ptr), runtime.graph_get_nodes(given)
        check_paired("node", len(mine), len(theirs))
        return Node(owner, theirs[mine.index(node.ptr)], node.type)

    def take(self, graph: Graph) -> None:
        """Note that every value is ``graph``'s now."""
        self.taken_from = graph
        self._children = {}

    def take_child(self, node: Node, child: Graph) -> None:
        """Note that the values inside of a child graph node are ``child``'s now."""
        level = self._graph.level_of(node)
        inside = None if level is None else level.records.children.get(node.ptr)
        self._children = {
            known: graph
            for known, graph in self._children.items()
            if inside is None or inside.level_of(known) is None
        }
        self._children[node] = child

    def child_taken_from(self, node: Node) -> Graph | None:
        """Return the graph that was set for a child graph node, None where none was."""
        return self._children.get(node)

    def forget(self, gone: Callable[[Node], bool]) -> Iterator[object]:
        """Drop the changes of some nodes, and yield what they kept alive."""
        for node in [node for node in self.slots if gone(node)]:
            yield self.slots.pop(node).owners
        for changes in (self.copies, self.fills, self.dtypes):
            for node in [node for node in changes if gone(node)]:
                del changes[node]
