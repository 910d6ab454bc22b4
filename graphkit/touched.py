"""What the nodes of any graph touch: as declared, derived, or read back from their parameters."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import TYPE_CHECKING

from graphkit.accesses import (
    Access,
    array_span,
    condition_access,
    condition_of,
    copy_accesses,
    fill_accesses,
)
from graphkit.arrays import is_array
from graphkit.c_signature import Parameter
from graphkit.kernel import Kernel, kernel_of
from graphkit.node import Node, NodeValues, check_paired
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
    from graphkit.exec_nodes import ExecNodes
    from graphkit.graph import Graph
    from graphkit.node_records import Shape

__all__ = ["Copied", "Touched", "accesses_of"]


class Touched:
    """What the nodes of one graph touch, as far as it is known.

    Args:
        graph: the graph.
        held: what an exec of it holds, where that is asked for.
        source: the graph that its values come from otherwise; the graph itself by default.

    Attributes:
        nodes: the nodes of the graph; of an exec, those of them that it was made of.
        before: for each node all that edges order before it, as bits.
        names: what each is called in a message.
        accesses: what each touches.
        inside: the same for the graphs inside of its nodes.
        unknown: what is not known, in words.
    """

    def __init__(
        self, graph: Graph, held: ExecNodes | None = None, source: Graph | None = None
    ) -> None:
        self.graph = graph
        graph.ptr  # noqa: B018 - refuses a closed one
        shape = graph.records.shape() if held is None else held.shape(graph.records)
        self.nodes = [node for node in shape.nodes if graph.records.has(node)]
        self.before = _ancestors(shape, self.nodes)
        self.names: list[str] = []
        self.accesses: list[Sequence[Access]] = []
        self.inside: list[Touched] = []
        self.unknown: list[str] = []
        self._held = held
        self._source = graph if source is None else source
        self._arrays: dict[int, int] | None = None
        self._launches: dict[object, deque[Sequence[object]]] | None = None
        known = self.nodes if source is None else source.nodes
        check_paired("exec", len(self.nodes), len(known))
        self._allocated = _allocated(known)
        for place, (node, at) in enumerate(zip(self.nodes, known, strict=True)):
            name, accesses = self._of(node, at)
            self.names.append(f"{name} (node {place})")
            self.accesses.append(accesses)

    def all(self) -> list[Access]:
        """Return what all nodes together touch; arguments by the kernel's name, too."""
        return [
            access._replace(what=f"{name.partition(' (')[0]} {access.what}".strip())
            for name, accesses in zip(self.names, self.accesses, strict=True)
            for access in accesses
        ]

    def _of(self, node: Node, at: Node) -> tuple[str, Sequence[Access]]:
        """Return what a node is called, and what it touches.

        Args:
            node: the node of the graph.
            at: that of the source.
        """
        name = node.type.name.lower().replace("_", " ")
        if node.type is NodeType.KERNEL:
            function, accesses = self._of_kernel(node, at)
            return f"kernel {function}", accesses
        values = self._held_values(node)
        declared = self._source.touched.get(at.ptr)
        inside = self._inside(node, at)
        if declared is not None and values is None:
            return name, declared
        if inside:
            self.unknown += [item for touched in inside for item in touched.unknown]
            found = [item for touched in inside for item in touched.all()]
            if node.type is NodeType.CONDITIONAL:
                handle = self.graph.conditionals.nodes[node.ptr].handle
                found.append(condition_access(int(handle), write=False))
            return name, found
        if node.type is NodeType.HOST:
            self.unknown.append("a host node")
        values = values or read_values(at)
        if isinstance(values, MemcpyNodeParams):
            return name, copy_accesses(values)
        if isinstance(values, MemsetNodeParams):
            return name, fill_accesses(values)
        if isinstance(values, (MemAllocNodeParams, MemFreeNodeParams)):
            nbytes = self._allocated.get(values.address, 1)
            return name, (Access(values.address, values.address + nbytes, True),)
        return name, ()

    def _held_values(self, node: Node) -> NodeValues:
        if self._held is None:
            return None
        return self._held.copies.get(node) or self._held.fills.get(node)

    def _inside(self, node: Node, at: Node) -> list[Touched]:
        """Look into a child graph node or a conditional node."""
        held, found = self._held, list[Touched]()
        if node.type is NodeType.GRAPH:
            child = self.graph.child_graph(node)
            source = None if held is None else held.child_taken_from(node)
            if source is None and self._source is not self.graph:
                source = self._source.child_graph(at)
            found = [Touched(child, held, source)]
        elif node.ptr in self.graph.conditionals.nodes:
            bodies = self.graph.conditionals.nodes[node.ptr].bodies
            found = [Touched(body, held) for body in bodies]
        self.inside += found
        return found

    # --- kernels

    def _of_kernel(self, node: Node, at: Node) -> tuple[str, Sequence[Access]]:
        runtime = node.graph_handle.runtime
        params, block = read_kernel_block(at)
        given = self._source.operands.get(at.ptr)
        if not isinstance(given, (tuple, list)):
            given = self._launched(params.function, block)
        slot = None if self._held is None else self._held.slots.get(node)
        function = params.function if slot is None else slot.params.function
        kernel = kernel_of(runtime, function)
        name = kernel.name if kernel else runtime.func_get_name(function)
        declared = self._source.touched.get(at.ptr)
        if slot is None:
            if declared is not None:
                return name, declared
            return name, self._signed(name, block, given)
        if function != params.function:
            return name, self._signed(name, slot.block, slot.owners)
        now = [new if new is not None else old for new, old in zip_longest(slot.owners, given)]
        signed = self._signed(name, slot.block, now)
        if declared is None:
            return name, signed
        return name, [
            moved for item in declared for moved in _moved(item, block, slot.block, signed)
        ]

    def _signed(self, name: str, block: ArgumentBlock, given: Sequence[object]) -> list[Access]:
        """Return what a kernel touches by its signature, with these arguments in its block.

        Args:
            name: the kernel's name.
            block: the arguments.
            given: what they were made of, or nothing.
        """
        found: list[Access] = []
        for index, parameter in enumerate(block.parameters):
            value = given[index] if given else None
            passed = block.value(index) if parameter.condition else value
            if (handle := condition_of(parameter, passed)) is not None:
                found.append(condition_access(handle, write=True, what=parameter.name))
                continue
            if parameter.pointer is False:
                continue
            if parameter.pointer is None and not is_array(value):
                self.unknown.append(f"kernel {name}, whose signature is not known")
                continue
            if address := _address(block, index):
                span = self._span(address, value, parameter)
                found.append(Access(*span, not parameter.const, parameter.name))
        return found

    def _span(self, address: int, value: object, parameter: Parameter) -> tuple[int, int]:
        """Return the bytes behind a pointer: those of its array, or else its first element."""
        span = _span_of(value)
        if span is None or not span[0] <= address <= span[1]:
            if self._arrays is None:
                self._arrays = _arrays_in(self._source.owners)
            end = self._arrays.get(address)
            if end is None:
                self.unknown.append(f"`{parameter}`, an address without an array")
                end = address + (parameter.dtype.itemsize if parameter.dtype else 1)
            span = address, end
        return span

    def _launched(self, function: int, block: ArgumentBlock) -> Sequence[object]:
        """Return the arguments of the captured launch that became this node, where we made it."""
        if self._launches is None:
            self._launches = _launches_in(self._source.owners, self.graph.runtime)
        alike = self._launches.get((function, block.view.tobytes()))
        if not alike:
            return ()
        if len(alike) == 1:
            return alike[0]
        # Those that differ in the extent of their arrays alone are in the order of the nodes. Where
        # some of these are gone, the largest extents are what any of the others may have.
        if self._source.records.removed:
            return max(alike, key=_extent)
        return alike.popleft()


def _ancestors(shape: Shape, nodes: Sequence[Node]) -> list[int]:
    """Return for each node all that edges order before it, as bits.

    Nodes of the shape that were removed since order others still: in an exec they are there.
    """
    kept = set(nodes)
    ordered = [*nodes, *(node for node in shape.nodes if node not in kept)]
    places = {node.ptr: place for place, node in enumerate(ordered)}
    followers: list[list[int]] = [[] for _ in ordered]
    missing = [0] * len(ordered)
    for edge in shape.edges:
        followers[places[edge.from_node]].append(places[edge.to_node])
        missing[places[edge.to_node]] += 1
    before = [0] * len(ordered)
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


def _allocated(nodes: Iterable[Node]) -> dict[int, int]:
    """Return the size of what each alloc node allocates, by its address."""
    found: dict[int, int] = {}
    for node in nodes:
        if node.type is NodeType.MEM_ALLOC:
            values = node.graph_handle.runtime.graph_mem_alloc_node_get_params(node.ptr)
            found[values.address] = values.nbytes
    return found


def _moved(
    access: Access, old: ArgumentBlock, new: ArgumentBlock, signed: Iterable[Access]
) -> list[Access]:
    """Return what was declared of a kernel node, for the arguments that an exec gave it since."""
    for item in signed:
        if access.what == item.what:  # the argument was named: all of what it is now
            return [item._replace(write=access.write)]
    # An array lies behind the pointer that is the next below it, and moves along with it; with each
    # of them where there are several, in so far as it may be of either.
    below: dict[int, list[int]] = {}
    for index, parameter in enumerate(old.parameters):
        if parameter.pointer is not False and (address := _address(old, index)) <= access.start:
            below.setdefault(address, []).append(index)
    if not (address := max(below, default=0)):
        return [access]
    alike = below[address]
    constant = [index for index in alike if old.parameters[index].const]
    fitting = [index for index in alike if index not in constant] if access.write else constant
    moves = {_address(new, index) - address for index in fitting or alike}
    return [access._replace(start=access.start + by, end=access.end + by) for by in sorted(moves)]


def _address(block: ArgumentBlock, index: int) -> int:
    value = block.value(index)
    if isinstance(value, bytes):
        return int.from_bytes(value[:8], "little")
    return int(value)  # type: ignore[call-overload, no-any-return]


def _launches_in(
    owners: Sequence[object], runtime: Runtime
) -> dict[object, deque[Sequence[object]]]:
    """Find launches in what a capture keeps: each Kernel, followed by its arguments.

    Returns:
        The arguments by function and by their bytes, in the order of the launches.
    """
    found: dict[object, deque[Sequence[object]]] = {}
    for place, kernel in enumerate(owners):
        if not isinstance(kernel, Kernel):
            continue
        values = tuple(owners[place + 1 : place + 1 + len(kernel.parameters)])
        block = ArgumentBlock(kernel.parameters)
        # An array may have been freed since; then nothing is known of the launch.
        with suppress(TypeError, ValueError):
            block.pack(values)
            key = kernel.function(runtime), block.view.tobytes()
            found.setdefault(key, deque()).append(values)
    return found


def _extent(values: Iterable[object]) -> int:
    """Return the bytes of all arrays among the arguments of a launch."""
    spans = (_span_of(value) for value in values)
    return sum(span[1] - span[0] for span in spans if span is not None)


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
