"""What a graph knows of its nodes beyond CUDA: which they are, what they touch, what they need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

from graphkit.accesses import Access, Declared, declared_accesses
from graphkit.conditional import Conditionals
from graphkit.derived_edges import DerivedEdges
from graphkit.kernel import Kernel
from graphkit.lifetime import Handle
from graphkit.node import Node, several_nodes
from graphkit.runtime.protocol import Dim3, Edge, NodeType
from graphkit.turn import Turn

if TYPE_CHECKING:
    from graphkit.graph import Graph
    from graphkit.graph_exec import GraphExec

__all__ = ["NodeRecords", "Shape"]


class Shape(NamedTuple):
    """The nodes of one graph in the order in which they were added, and what joins them."""

    nodes: Sequence[Node]
    edges: Sequence[Edge]


class NodeRecords:
    """The records of one graph. Whoever adds or removes a node has the turn.

    Args:
        handle: the graph's.
        clusters: as below.
        derived: as below.

    Attributes:
        turn: for one thread at a time.
        nodes: the nodes that are known, by cudaGraphNode_t.
        children: the graphs inside of child graph nodes that somebody looked at, likewise.
        conditionals: the conditional nodes.
        derived: the order of the nodes; None where edges are given.
        kernels: the kernels that nodes launch.
        owners: what must stay alive, in a list that execs and captures share: closing the graph
            takes nothing from them.
        touched: what nodes touch, where it was declared or edges are derived from it, by
            cudaGraphNode_t.
        operands: what nodes were given, likewise.
        clusters: see :attr:`Graph.clusters`; None is not known: what others put into the graph
            must be asked for.
        execs: made from the graph; they must forget the nodes that are destroyed here.
        removed: whether any node was.
    """

    __slots__ = (
        "_handle",
        "children",
        "clusters",
        "conditionals",
        "derived",
        "execs",
        "kernels",
        "nodes",
        "operands",
        "owners",
        "removed",
        "touched",
        "turn",
    )

    def __init__(
        self,
        handle: Handle,
        clusters: dict[tuple[int, ...], Dim3] | None,
        derived: DerivedEdges | None,
    ) -> None:
        self._handle = handle
        self.turn = Turn()
        self.nodes: dict[int, Node] = {}
        self.children: dict[int, Graph] = {}
        self.conditionals = Conditionals()
        self.derived = derived
        self.kernels: set[Kernel] = set()
        self.owners: list[object] = [self.kernels]
        self.touched: dict[int, Sequence[Access]] = {}
        self.operands: dict[int, object] = {}
        self.clusters = clusters
        self.execs: WeakSet[GraphExec] = WeakSet()
        self.removed = False

    def node_of(self, ptr: int) -> Node:
        """Return the node of a cudaGraphNode_t (cudaGraphNodeGetType)."""
        node = self.nodes.get(ptr)
        if node is None:
            node = Node(self._handle, ptr, self._handle.runtime.graph_node_get_type(ptr))
            node = self.nodes.setdefault(ptr, node)  # another thread may have been first
        return node

    def check(self, node: object, argument: str = "node") -> None:
        """Refuse what is no node of the graph."""
        if not isinstance(node, Node):
            raise TypeError(f"{argument}: expected a Node, came {type(node).__name__}")
        if node.graph_handle is not self._handle:
            raise ValueError(f"{argument}: expected a node of this graph, came {node!r} of another")
        if not self.has(node):
            raise ValueError(f"{argument}: expected a node of this graph, came a removed one")

    def has(self, node: Node) -> bool:
        """Return whether a node is one of the graph, and was not removed."""
        return self.nodes.get(node.ptr) is node  # another may be where a removed one was

    # --- adding a node

    def dependencies(self, deps: Node | Iterable[Node]) -> Sequence[int]:
        """Return the nodes that one to be added waits for; refuse any but the graph's."""
        conditionals = self.conditionals
        if conditionals.ended or conditionals.captured is not None:
            conditionals.refuse_add()
        if isinstance(deps, Node):
            if self.nodes.get(deps.ptr) is not deps:
                self.check(deps, "deps")
            return (deps.ptr,)
        nodes = several_nodes(deps, "deps")
        for node in nodes:
            self.check(node, "deps")
        return [node.ptr for node in nodes]

    def declared(self, reads: Declared, writes: Declared) -> Sequence[Access] | None:
        """Return what a call declares; None when it declares nothing."""
        if reads is None and writes is None:
            return None
        accesses = declared_accesses(reads, writes)
        self.owners.append((reads, writes))
        return accesses

    def order(
        self, graph: Graph, before: Sequence[int], accesses: Sequence[Access] | None = None
    ) -> Sequence[int]:
        """Return what the next node waits for: what was given, or what its accesses ask for too."""
        self.about_to_change()
        if self.derived is None:
            return before
        return self.derived.dependencies(graph, before, accesses or ())

    def keep(
        self,
        ptr: int,
        type_: NodeType,
        owners: object,
        accesses: Sequence[Access] | None = None,
        *,
        declared: bool = True,
    ) -> Node:
        """Note a node that CUDA has added, and keep alive what it points at.

        Args:
            ptr: the node's cudaGraphNode_t.
            type_: its kind.
            owners: what it points at.
            accesses: what it touches, where that is known now.
            declared: whether that holds whatever the exec has inside of the node.
        """
        self.owners.append(owners)
        self.operands[ptr] = owners
        if accesses is not None and declared:
            self.touched[ptr] = accesses
        if self.derived is not None:
            self.derived.added(ptr, accesses or ())
        node = self.nodes[ptr] = Node(self._handle, ptr, type_)
        return node

    # --- what execs were made of

    def about_to_change(self) -> None:
        """Let execs note the nodes and edges that they were made of."""
        if self.execs:
            for exe in list(self.execs):
                exe.keep_shape(self)

    def shape(self) -> Shape:
        """Return the nodes and edges of now (cudaGraphGetNodes, cudaGraphGetEdges)."""
        runtime, graph = self._handle.runtime, self._handle.value
        nodes = tuple(self.node_of(ptr) for ptr in runtime.graph_get_nodes(graph))
        return Shape(nodes, runtime.graph_get_edges(graph))

    def keep_clusters(self) -> None:
        """Let execs note which clusters they have, before the graph changes."""
        for exe in list(self.execs):
            exe.keep_clusters()

    def change_clusters(self) -> None:
        """Note that CUDA must be asked for the clusters; execs keep those that they have."""
        self.keep_clusters()
        self.clusters = None

    # --- removing

    def drop(self, node: Node) -> None:
        """Forget a node that CUDA has destroyed, what is inside of it, and let execs forget it."""
        self.removed = True
        child = self.children.pop(node.ptr, None)
        for exe in list(self.execs):
            exe.forget_nodes(lambda known: known is node)
            if child is not None:
                exe.forget_nodes(child.contains)
        del self.nodes[node.ptr]
        self.touched.pop(node.ptr, None)
        self.operands.pop(node.ptr, None)
        if child is not None:
            child.end()
        if self.clusters:
            self.clusters = None

    def clear(self) -> None:
        """Forget all nodes. What they point at stays, for execs."""
        self.operands.clear()
        self.nodes.clear()
        self.children.clear()
