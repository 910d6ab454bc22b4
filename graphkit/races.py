"""Races: nodes of a graph that touch the same bytes, and that no edge orders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graphkit.accesses import Access, array_span, copy_accesses, fill_accesses
from graphkit.arrays import is_array
from graphkit.c_signature import Parameter
from graphkit.kernel import Kernel, kernel_of
from graphkit.node import Node
from graphkit.params import ArgumentBlock
from graphkit.readback import read_kernel_block, read_values
from graphkit.runtime.protocol import (
    MemAllocNodeParams,
    MemcpyNodeParams,
    MemFreeNodeParams,
    MemsetNodeParams,
    NodeType,
    Runtime,
)

if TYPE_CHECKING:
    from graphkit.graph import Graph

__all__ = ["Race", "accesses_of", "find_races"]


@dataclass(frozen=True)
class Race:
    """Two nodes that touch the same bytes, at least one writing, with nothing to order them.

    ``str(race)`` is one line that says so, and how to mend it.

    Attributes:
        first: the node that was added first.
        second: the other one.
        first_name: what it is, such as ``"kernel axpy"`` or ``"memcpy"``, with its place.
        second_name: the same of the other.
        first_argument: the argument through which it touches the bytes; empty where none is known.
        second_argument: the same of the other.
        kind: what the order would protect, were the first ahead: ``"RAW"``, a read after a write,
            ``"WAR"``, a write after a read, or ``"WAW"``, a write after a write.
        start: address of the first byte that both touch.
        end: address behind the last.
    """

    first: Node
    second: Node
    first_name: str
    second_name: str
    first_argument: str
    second_argument: str
    kind: Literal["RAW", "WAR", "WAW"]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """How many bytes both touch."""
        return self.end - self.start

    def __str__(self) -> str:
        does = {"R": "reads", "W": "writes"}
        first, second = does[self.kind[2]], does[self.kind[0]]
        of_first = f" {self.first_argument}" if self.first_argument else ""
        of_second = f" {self.second_argument}" if self.second_argument else ""
        return (
            f"{self.kind} race: {self.first_name} {first}{of_first} and {self.second_name} "
            f"{second}{of_second}, the same {self.nbytes} bytes [{self.start:#x}, {self.end:#x}), "
            "and nothing orders the two; call graph.add_dependency(race.first, race.second), or "
            'build the graph with edges="derived"'
        )


class _Touched:
    """What the nodes of one graph touch, as far as it is known."""

    def __init__(self, graph: Graph) -> None:
        self.unknown: list[str] = []
        self.nodes = graph.nodes
        self.names: list[str] = []
        self.accesses: list[Sequence[Access]] = []
        self._graph = graph
        self._arrays: dict[int, int] | None = None
        self._launches: dict[object, Sequence[object]] | None = None
        allocated = {
            values.address: values.nbytes
            for values in (read_values(node) for node in self._memory_nodes())
            if isinstance(values, MemAllocNodeParams)
        }
        for place, node in enumerate(self.nodes):
            name, accesses = self._of(node, allocated)
            self.names.append(f"{name} (node {place})")
            self.accesses.append(accesses)

    def _memory_nodes(self) -> list[Node]:
        return [node for node in self.nodes if node.type is NodeType.MEM_ALLOC]

    def _of(self, node: Node, allocated: Mapping[int, int]) -> tuple[str, Sequence[Access]]:
        """Return what a node is called, and what it touches."""
        name = node.type.name.lower().replace("_", " ")
        declared = self._graph.touched.get(node.ptr)
        if node.type is NodeType.KERNEL:
            function, accesses = self._of_kernel(node, declared)
            return f"kernel {function}", accesses
        if declared is not None:
            return name, declared
        match node.type:
            case NodeType.GRAPH:
                inside = _Touched(self._graph.child_graph(node))
                self.unknown += inside.unknown
                return name, inside.all()
            case NodeType.CONDITIONAL if node.ptr in self._graph.conditionals.nodes:
                bodies = self._graph.conditionals.nodes[node.ptr].bodies
                return name, [item for body in bodies for item in _Touched(body).all()]
            case NodeType.HOST:
                self.unknown.append("a host node")
        values = read_values(node)
        if isinstance(values, MemcpyNodeParams):
            return name, copy_accesses(values)
        if isinstance(values, MemsetNodeParams):
            return name, fill_accesses(values)
        if isinstance(values, (MemAllocNodeParams, MemFreeNodeParams)):
            nbytes = allocated.get(values.address, 1)
            return name, (Access(values.address, values.address + nbytes, True),)
        return name, ()

    def all(self) -> list[Access]:
        """Return what all nodes together touch; arguments by the kernel's name, too."""
        return [
            access._replace(what=f"{name.partition(' (')[0]} {access.what}".strip())
            for name, accesses in zip(self.names, self.accesses, strict=True)
            for access in accesses
        ]

    # --- kernels

    def _of_kernel(
        self, node: Node, declared: Sequence[Access] | None
    ) -> tuple[str, Sequence[Access]]:
        runtime = node.graph_handle.runtime
        params, block = read_kernel_block(node)
        kernel = kernel_of(runtime, params.function)
        name = kernel.name if kernel else runtime.func_get_name(params.function)
        if declared is not None:
            return name, declared
        given = self._graph.operands.get(node.ptr)
        if not isinstance(given, (tuple, list)):
            given = self._launched(params.function, block)
        found: list[Access] = []
        for index, parameter in enumerate(block.parameters):
            if parameter.pointer is False:
                continue
            value = given[index] if given else None
            if parameter.pointer is None and not is_array(value):
                self.unknown.append(f"kernel {name}, whose signature is not known")
                continue
            address = block.value(index)
            if isinstance(address, bytes):
                address = int.from_bytes(address[:8], "little")
            assert isinstance(address, int)
            if address:
                span = self._span(address, value, parameter)
                found.append(Access(*span, not parameter.const, parameter.name))
        return name, found

    def _span(self, address: int, value: object, parameter: Parameter) -> tuple[int, int]:
        """Return the bytes behind a pointer: those of its array, or else its first element."""
        span = _span_of(value)
        if span is None or not span[0] <= address <= span[1]:
            if self._arrays is None:
                self._arrays = _arrays_in(self._graph.owners)
            end = self._arrays.get(address)
            if end is None:
                self.unknown.append(f"`{parameter}`, an address without an array")
                end = address + (parameter.dtype.itemsize if parameter.dtype else 1)
            span = address, end
        return span

    def _launched(self, function: int, block: ArgumentBlock) -> Sequence[object]:
        """Return the arguments of the captured launch that became this node, where we made it."""
        if self._launches is None:
            self._launches = _launches_in(self._graph.owners, self._graph.runtime)
        return self._launches.get((function, *_addresses(block)), ())


def _addresses(block: ArgumentBlock) -> Iterator[object]:
    return (
        block.value(index) for index, parameter in enumerate(block.parameters) if parameter.pointer
    )


def _launches_in(owners: Sequence[object], runtime: Runtime) -> dict[object, Sequence[object]]:
    """Find launches in what a capture keeps: each Kernel, followed by its arguments."""
    found: dict[object, Sequence[object]] = {}
    for place, kernel in enumerate(owners):
        if not isinstance(kernel, Kernel):
            continue
        values = owners[place + 1 : place + 1 + len(kernel.parameters)]
        addresses: list[object] = []
        for parameter, value in zip(kernel.parameters, values, strict=False):
            if parameter.pointer:
                span = _span_of(value)
                addresses.append(span[0] if span else value)
        found[(kernel.function(runtime), *addresses)] = values
    return found


def _arrays_in(owners: Iterable[object], depth: int = 3) -> dict[int, int]:
    """Return the end of each array among what a graph keeps, by its address."""
    found: dict[int, int] = {}
    for owner in owners:
        inside: dict[int, int] = {}
        if isinstance(owner, (tuple, list)) and depth:
            inside = _arrays_in(owner, depth - 1)
        elif span := _span_of(owner):
            inside = {span[0]: span[1]}
        for start, end in inside.items():
            found[start] = max(end, found.get(start, end))
    return found


def _span_of(value: object) -> tuple[int, int] | None:
    """Return the bytes of an array; None for anything else, also for one that was freed."""
    if not is_array(value):
        return None
    try:
        return array_span(value, "array")
    except (TypeError, ValueError):
        return None


# --- what is asked of them -----------------------------------------------------------------------


def accesses_of(graph: Graph, argument: str) -> list[Access]:
    """Return what all nodes of a graph touch together.

    Raises:
        ValueError: nodes of which that is not known.
    """
    touched = _Touched(graph)
    if touched.unknown:
        raise ValueError(
            f"{argument}: expected nodes of which it is known what they touch, since edges are "
            f"derived from that, came {touched.unknown[0]}; declare it with reads= and writes="
        )
    return touched.all()


def find_races(graph: Graph) -> tuple[Race, ...]:
    """Find unordered nodes that touch the same bytes, in a graph and in those inside of it."""
    touched = _Touched(graph)
    nodes, before = touched.nodes, _ancestors(graph, touched.nodes)
    worst: dict[tuple[int, int], Race] = {}
    for first, second, one, other in _overlaps(touched.accesses):
        if before[second] >> first & 1 or before[first] >> second & 1:
            continue
        race = Race(
            nodes[first],
            nodes[second],
            touched.names[first],
            touched.names[second],
            one.what,
            other.what,
            "WAW" if one.write and other.write else "RAW" if one.write else "WAR",
            max(one.start, other.start),
            min(one.end, other.end),
        )
        # One line for two nodes says it: the widest overlap.
        known = worst.get((first, second))
        if known is None or known.nbytes < race.nbytes:
            worst[first, second] = race
    found = [worst[pair] for pair in sorted(worst)]
    for node in nodes:
        if node.type is NodeType.GRAPH:
            found += find_races(graph.child_graph(node))
        elif node.ptr in graph.conditionals.nodes:
            for body in graph.conditionals.nodes[node.ptr].bodies:
                found += find_races(body)
    return tuple(found)


def _ancestors(graph: Graph, nodes: Sequence[Node]) -> list[int]:
    """Return for each node all that edges order before it, as bits."""
    places = {node.ptr: place for place, node in enumerate(nodes)}
    followers: list[list[int]] = [[] for _ in nodes]
    missing = [0] * len(nodes)
    for edge in graph.runtime.graph_get_edges(graph.ptr):
        followers[places[edge.from_node]].append(places[edge.to_node])
        missing[places[edge.to_node]] += 1
    before = [0] * len(nodes)
    ready = [place for place, count in enumerate(missing) if not count]
    while ready:
        place = ready.pop()
        passed = before[place] | 1 << place
        for follower in followers[place]:
            before[follower] |= passed
            missing[follower] -= 1
            if not missing[follower]:
                ready.append(follower)
    return before


def _overlaps(
    accesses: Sequence[Sequence[Access]],
) -> Iterator[tuple[int, int, Access, Access]]:
    """Yield each two accesses of different nodes that share bytes, at least one a write.

    The node that was added first comes first.
    """
    ordered = sorted(
        (item.start, place, item) for place, items in enumerate(accesses) for item in items
    )
    reads: list[tuple[int, Access]] = []
    writes: list[tuple[int, Access]] = []
    for start, place, item in ordered:
        reads = [entry for entry in reads if entry[1].end > start]
        writes = [entry for entry in writes if entry[1].end > start]
        for other, known in (*writes, *reads) if item.write else writes:
            if other < place:
                yield other, place, known, item
            elif other > place:
                yield place, other, item, known
        (writes if item.write else reads).append((place, item))
