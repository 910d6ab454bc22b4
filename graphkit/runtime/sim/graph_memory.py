"""What alloc and free nodes allocate: whose it is, who frees it, and how much there is of it.

CUDA C Programming Guide, "Graph Memory Nodes". Whether an allocation is there is known twice: as
of the calls made so far, which decides what CUDA refuses, and as of the work done so far, which
decides what a kernel may touch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphkit.runtime.protocol import InstantiateFlags, NodeType
from graphkit.runtime.sim.memory import Allocation, MemoryTable
from graphkit.runtime.sim.refusal import Code, Refused

if TYPE_CHECKING:
    from graphkit.runtime.sim.model import ExecGraph, SimExec, SimGraph
    from graphkit.runtime.sim.work import Work

__all__ = ["GraphAllocation", "GraphMemory", "refuse_memory_nodes"]

MEMORY_NODES = (NodeType.MEM_ALLOC, NodeType.MEM_FREE)


@dataclass(eq=False)
class GraphAllocation:
    """What one alloc node allocates.

    ``freed_by`` are the graphs with a free node for it; ``held`` says whether a launch that was
    made allocates it and no call made since frees it.
    """

    allocation: Allocation
    graph: SimGraph
    freed_by: set[SimGraph] = field(default_factory=set)
    held: bool = False

    @property
    def nbytes(self) -> int:
        return self.allocation.nbytes


def refuse_memory_nodes(graph: SimGraph, what: str) -> None:
    """Refuse (801) what graphs with alloc or free nodes do not allow."""
    for node in graph.nodes.values():
        if node.type in MEMORY_NODES:
            raise Refused(Code.NOT_SUPPORTED, f"{what}, and it has a {node.describe()}")


class GraphMemory:
    """Every graph allocation by address, and the device memory set aside for all of them."""

    def __init__(self, memory: MemoryTable) -> None:
        self._memory = memory
        self._by_address: dict[int, GraphAllocation] = {}
        self.used = self.used_high = self.reserved = self.reserved_high = 0

    # --- nodes

    def add(self, nbytes: int, graph: SimGraph) -> GraphAllocation:
        """Give an alloc node its address."""
        if nbytes < 1:
            raise Refused(Code.INVALID_VALUE, f"an alloc node of {nbytes} bytes")
        made = GraphAllocation(self._memory.reserve(nbytes), graph)
        self._by_address[made.allocation.address] = made
        return made

    def to_free(self, address: int, graph: SimGraph) -> GraphAllocation:
        """Return what a free node in ``graph`` frees; refuse (1) what it must not."""
        found = self._by_address.get(address)
        if found is None:
            raise Refused(Code.INVALID_VALUE, f"{address:#x} is not the address of an alloc node")
        # Either the owning graph frees it, or others do, each of them once.
        if graph in found.freed_by or (graph is found.graph and found.freed_by):
            raise Refused(Code.INVALID_VALUE, f"{address:#x} has a free node already")
        if found.graph in found.freed_by:
            raise Refused(Code.INVALID_VALUE, f"{address:#x} is freed in the graph that owns it")
        return found

    def at(self, address: int) -> GraphAllocation | None:
        """Return the allocation that starts at an address, None when there is none."""
        return self._by_address.get(address)

    def forget_dead(self, alive: set[GraphAllocation]) -> None:
        """Give up the addresses that no node, no exec and no launch holds any more."""
        for address, found in list(self._by_address.items()):
            if not found.held and found not in alive:
                self._memory.forget(found.allocation)
                del self._by_address[address]

    def __bool__(self) -> bool:
        return bool(self._by_address)

    # --- launches

    def begin_launch(self, exec_: SimExec) -> list[GraphAllocation]:
        """Count what a launch allocates and frees; return what it frees before it starts.

        Raises:
            Refused: 1 when an allocation of an earlier launch was not freed, or is to be freed
                and is not there; 2 when device memory has run out. Nothing has changed then.
        """
        nodes = list(_memory_nodes(exec_.graph))
        if not nodes:
            return []
        allocated = [found for kind, found in nodes if kind is NodeType.MEM_ALLOC]
        freed = [found for kind, found in nodes if kind is NodeType.MEM_FREE]
        left = [found for found in allocated if found.held]
        if left and not exec_.flags & InstantiateFlags.AUTO_FREE_ON_LAUNCH:
            raise Refused(
                Code.INVALID_VALUE,
                f"{len(left)} allocations of an earlier launch were not freed, first the "
                f"{left[0].allocation.describe()}",
            )
        for found in freed:
            if not found.held and found not in allocated:
                raise Refused(
                    Code.INVALID_VALUE,
                    f"a free node of the {found.allocation.describe()}, which no launch allocated",
                )
        peak = self.used + sum(found.nbytes for found in allocated if not found.held)
        self._set_aside(peak)
        for found in {*allocated, *freed}:
            found.held = found not in freed
        self.used = sum(found.nbytes for found in self._by_address.values() if found.held)
        return left

    def _set_aside(self, nbytes: int) -> None:
        if nbytes > self.reserved:
            self._memory.take(nbytes - self.reserved)
            self.reserved = nbytes
        self.used_high = max(self.used_high, nbytes)
        self.reserved_high = max(self.reserved_high, self.reserved)

    def end(self, found: GraphAllocation) -> None:
        """Count a free from outside of any graph: cudaFree or cudaFreeAsync.

        Raises:
            Refused: 1 when it is not there, or its own graph frees it.
        """
        if not found.held:
            raise Refused(
                Code.INVALID_VALUE,
                f"the {found.allocation.describe()} was not allocated, or was freed already",
            )
        found.held = False
        self.used -= found.nbytes

    def trim(self) -> None:
        """Give back what was set aside and is not in use."""
        self._memory.give_back(self.reserved - self.used)
        self.reserved = self.used

    # --- what the work does

    def allocate(self, work: Work, found: GraphAllocation) -> None:
        """Run an alloc node: fresh memory, which races with whatever is not ordered behind it."""
        self._memory.map(found.allocation)
        self._touch(work, found.allocation)

    def free(self, work: Work, found: GraphAllocation) -> None:
        """Run a free node, or a free from outside."""
        self._touch(work, found.allocation)
        self._memory.unmap(found.allocation)

    def _touch(self, work: Work, allocation: Allocation) -> None:
        work.accesses.append((allocation.address, allocation.address + allocation.nbytes, True))


def _memory_nodes(graph: ExecGraph) -> Iterator[tuple[NodeType, GraphAllocation]]:
    for held in graph.nodes:
        if isinstance(held.values, GraphAllocation):
            yield held.source.type, held.values
