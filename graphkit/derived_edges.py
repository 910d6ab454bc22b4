"""Derived edges: a graph's dependencies, found from what each of its nodes reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from graphkit.accesses import Access
from graphkit.hazards import Hazards, members
from graphkit.node import Node
from graphkit.runtime.protocol import Edge, EdgeData
from graphkit.touched import accesses_of

if TYPE_CHECKING:
    from graphkit.conditional import Conditional
    from graphkit.graph import Graph

__all__ = ["DerivedEdges", "check_edges", "refuse_removal"]


_BODY_SEALED = (
    "graph: expected a body whose graph has no further nodes yet, came one whose graph has: their "
    "edges follow from what was in the body"
)


def check_edges(edges: object) -> bool:
    """Return whether edges are to be derived."""
    if edges not in ("given", "derived"):
        raise ValueError(f'edges: expected "given" or "derived", came {edges!r}')
    return edges == "derived"


class DerivedEdges:
    """The order of one graph's nodes, by their cudaGraphNode_t.

    Before a node is added, :meth:`dependencies` says what it must wait for; :meth:`added` notes it
    when CUDA has made it.

    Args:
        sealed: why nothing can be added to the graph; empty where it can.
    """

    __slots__ = ("_hazards", "_needed", "_open", "_places", "_ptrs", "_sealed")

    def __init__(self, sealed: str = "") -> None:
        self._hazards = Hazards()
        self._ptrs: list[int] = []
        self._places: dict[int, int] = {}
        self._needed = 0
        # A conditional node whose bodies may still grow.
        self._open: Conditional[object] | None = None
        self._sealed = sealed

    def copy(self, ptrs: Sequence[int]) -> DerivedEdges:
        """Return the same for a copy of the graph, whose nodes these are in the same order."""
        copy = DerivedEdges()
        copy._hazards = self._hazards.copy()
        copy._ptrs = list(ptrs)
        copy._places = {ptr: place for place, ptr in enumerate(ptrs)}
        return copy

    # --- adding nodes

    def dependencies(
        self, graph: Graph, given: Iterable[int], accesses: Sequence[Access]
    ) -> list[int]:
        """Return the nodes that the next one needs edges from, in the order they were added.

        Args:
            graph: the graph itself.
            given: nodes that it waits for in any case.
            accesses: what it touches.
        """
        self.check_open(graph)
        bits = 0
        for ptr in given:
            bits |= 1 << self._places[ptr]
        self._needed = self._hazards.needed(accesses, bits)
        return [self._ptrs[place] for place in members(self._needed)]

    def check_open(self, graph: Graph) -> None:
        """Refuse where nothing can be added now, before anything is made for it.

        Raises:
            ValueError: a sealed graph, or what :meth:`settle` refuses.
        """
        if self._sealed:
            raise ValueError(self._sealed)
        self.settle(graph)

    def added(self, ptr: int, accesses: Sequence[Access]) -> None:
        """Note the node that :meth:`dependencies` was asked for."""
        self._places[ptr] = self._hazards.add(accesses, self._needed)
        self._ptrs.append(ptr)

    def touch(self, graph: Graph, ptr: int, accesses: Sequence[Access]) -> None:
        """Note what the node added last touches besides, and add the edges which that asks for."""
        place = self._places[ptr]
        for other in members(self._hazards.needed(accesses) & ~(1 << place)):
            if not self._hazards.is_before(other, place):
                self._connect(graph, other, place, EdgeData())
        self._hazards.touch(place, accesses)

    # --- conditional nodes

    def open(self, conditional: Conditional[object]) -> None:
        """Note a conditional node, whose bodies are filled after it was added."""
        self._open = conditional

    @property
    def complete(self) -> bool:
        """Whether the bodies of the last conditional node are filled."""
        return self._open is None or not self._open.missing()

    def settle(self, graph: Graph) -> None:
        """Add the edges of a conditional node, by what its bodies touch, now that they are full.

        Raises:
            ValueError: when they are not.
        """
        conditional = self._open
        if conditional is None:
            return
        missing = conditional.missing()
        if missing:
            raise ValueError(
                "graph: expected complete bodies before anything follows a conditional node, whose "
                f"edges are derived from them, came {conditional!r}: {missing}"
            )
        found: list[Access] = []
        for body in conditional.bodies:
            inside = body.records.derived
            if inside is not None:
                inside.settle(body)
                inside._sealed = _BODY_SEALED
            found += accesses_of(body, "graph")
        self._open = None  # only now: bodies of which too little is known refuse every attempt
        self.touch(graph, conditional.node.ptr, found)

    def refuse_capture(self) -> None:
        """Refuse a capture into a body that has nodes: it would not wait for them by itself."""
        if self._ptrs or self._sealed:
            raise ValueError(
                "graph: expected an empty body, since it has derived edges and a capture gives its "
                f"own, came one of {len(self._ptrs)} nodes"
            )

    # --- explicit edges

    def add_dependency(self, graph: Graph, from_node: Node, to_node: Node, data: EdgeData) -> None:
        """Add an edge that was asked for (cudaGraphAddDependencies), unless it is implied.

        A programmatic edge is always added, and takes the place of the plain one. Edges that become
        superfluous are removed (cudaGraphRemoveDependencies).

        Raises:
            ValueError: when the nodes are ordered the other way round.
        """
        self.check_open(graph)
        first, second = self._places[from_node.ptr], self._places[to_node.ptr]
        if first == second or self._hazards.is_before(second, first):
            raise ValueError(
                f"to_node: expected one that is not ordered before {from_node!r} already, came "
                f"{to_node!r}"
            )
        if not self._hazards.is_before(first, second):
            self._connect(graph, first, second, data)
        elif data != EdgeData():
            self._convert(graph, first, second, data)

    def _connect(self, graph: Graph, first: int, second: int, data: EdgeData) -> None:
        graph.runtime.graph_add_dependencies(graph.ptr, [self._edge(first, second, data)])
        superfluous = self._hazards.order(first, second, edge=data == EdgeData())
        # CUDA takes no edge out of a graph with alloc or free nodes; there it does no harm either.
        if superfluous and not graph.memory_nodes.present:
            edges = [self._edge(*pair, EdgeData()) for pair in superfluous]
            graph.runtime.graph_remove_dependencies(graph.ptr, edges)

    def _convert(self, graph: Graph, first: int, second: int, data: EdgeData) -> None:
        runtime, plain = graph.runtime, self._edge(first, second, EdgeData())
        is_edge = self._hazards.direct[second] >> first & 1
        if is_edge:
            runtime.graph_remove_dependencies(graph.ptr, [plain])
        try:
            runtime.graph_add_dependencies(graph.ptr, [self._edge(first, second, data)])
        except BaseException:
            if is_edge:
                runtime.graph_add_dependencies(graph.ptr, [plain])
            raise
        self._hazards.direct[second] &= ~(1 << first)

    def _edge(self, first: int, second: int, data: EdgeData) -> Edge:
        return Edge(self._ptrs[first], self._ptrs[second], data)


def refuse_removal(what: str) -> NoReturn:
    """Refuse to take nodes or edges out of a graph whose order hangs together."""
    raise ValueError(
        f"{what}: expected a graph with given edges, came one with derived edges: each of them may "
        "order further nodes; declare reads= and writes= more precisely where one is too many"
    )
