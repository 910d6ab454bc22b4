"""What the nodes of any graph touch: as declared, derived, or read back from their parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

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

__all__ = ["Copied", "Touched", "accesses_of"]


class Touched:
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
                inside = Touched(self._graph.child_graph(node))
                self.unknown += inside.unknown
                return name, inside.all()
            case NodeType.CONDITIONAL if node.ptr in self._graph.conditionals.nodes:
                bodies = self._graph.conditionals.nodes[node.ptr].bodies
                return name, [item for body in bodies for item in Touched(body).all()]
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


def accesses_of(graph: Graph, argument: str) -> list[Access]:
    """Return what all nodes of a graph touch together.

    Raises:
        ValueError: nodes of which that is not known.
    """
    touched = Touched(graph)
    if touched.unknown:
        raise ValueError(
            f"{argument}: expected nodes of which it is known what they touch, since edges are "
            f"derived from that, came {touched.unknown[0]}; declare it with reads= and writes="
        )
    return touched.all()


class Copied:
    """What is known of a graph's nodes, for a copy of it: CUDA keeps the order of the nodes."""

    __slots__ = ("operands", "owners", "touched")

    def __init__(self, graph: Graph) -> None:
        self.owners = tuple(graph.owners)
        places: dict[int, int] = {}
        if graph.touched or graph.operands:
            nodes = graph.runtime.graph_get_nodes(graph.ptr)
            places = {ptr: place for place, ptr in enumerate(nodes)}
        self.touched = {places[ptr]: item for ptr, item in graph.touched.items()}
        self.operands = {places[ptr]: item for ptr, item in graph.operands.items()}

    def give(self, graph: Graph) -> None:
        """Let the copy know it, and keep alive what its nodes point at."""
        graph.owners.extend(self.owners)
        if self.touched or self.operands:
            nodes = graph.runtime.graph_get_nodes(graph.ptr)
            graph.touched.update((nodes[place], item) for place, item in self.touched.items())
            graph.operands.update((nodes[place], item) for place, item in self.operands.items())
