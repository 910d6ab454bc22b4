"""Alloc and free nodes: memory that a graph allocates, and the rules that come with it.

CUDA C Programming Guide, "Graph Memory Nodes": an address is fixed when its alloc node is added;
memory is behind it from the alloc node to the free node of every launch. A graph with such nodes
has one exec at a time, is not copied, and keeps its nodes and edges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from numpy.typing import DTypeLike

from graphkit.device_array import DeviceArray, array_over, check_elements
from graphkit.errors import CudaError
from graphkit.lifetime import Handle, capture_is_live
from graphkit.node import Node, check_address
from graphkit.runtime import given_or_current
from graphkit.runtime.protocol import (
    GraphMemAttribute,
    InstantiateFlags,
    MemAllocNodeParams,
    NodeType,
    Runtime,
)
from graphkit.statuses import StatusCode
from graphkit.stream import stream_handle

__all__ = [
    "GraphAllocation",
    "GraphMemory",
    "MemoryNodes",
    "explained",
    "free_async",
    "trim_graph_memory",
]

_KINDS = (NodeType.MEM_ALLOC, NodeType.MEM_FREE)


@dataclass(frozen=True)
class GraphAllocation:
    """What one alloc node allocates.

    Attributes:
        node: the alloc node.
        ptr: the address, the same in every launch.
        nbytes: its size in bytes.
        freed: whether the same graph frees it.
    """

    node: Node
    ptr: int
    nbytes: int
    freed: bool


@dataclass(frozen=True)
class GraphMemory:
    """What a graph allocates, and what alloc nodes take of the device.

    The device's numbers are for the alloc nodes of all graphs together.

    Attributes:
        allocations: what the alloc nodes of this graph allocate, in the order of the nodes.
        used: bytes that graphs use now (cudaGraphMemAttrUsedMemCurrent).
        used_high: the most that they ever used.
        reserved: bytes that CUDA has set aside for graphs (cudaGraphMemAttrReservedMemCurrent);
            :func:`graphkit.trim_graph_memory` gives back what is not in use.
        reserved_high: the most that was ever set aside.
    """

    allocations: tuple[GraphAllocation, ...]
    used: int
    used_high: int
    reserved: int
    reserved_high: int

    @property
    def nbytes(self) -> int:
        """Bytes that the graph's alloc nodes ask for."""
        return sum(item.nbytes for item in self.allocations)

    @property
    def unfreed(self) -> tuple[GraphAllocation, ...]:
        """What no free node of the graph frees: it stays allocated after a launch."""
        return tuple(item for item in self.allocations if not item.freed)


class AllocatedMemory(Handle):
    """An address that an alloc node allocates; there is nothing to destroy.

    Attributes:
        freed_in: the graphs made here that have a free node for it.
    """

    __slots__ = ("freed_in",)

    def __init__(self, graph: Handle, address: int) -> None:
        super().__init__(graph.runtime, "graph memory", address, None, owner=graph)
        self.freed_in: WeakSet[Handle] = WeakSet()

    def close(self) -> None:
        """Free what a launch left allocated (cudaFree); the next launch allocates it again.

        Raises:
            ValueError: when a free node does that, or while a capture is live.
            CudaError: when it is not allocated now.
        """
        self.check_free()
        if capture_is_live():
            raise ValueError(
                "free: expected no live capture, came one that cudaFree would kill; use "
                "graphkit.free_async(array, stream)"
            )
        self.runtime.free(self.value)

    def check_free(self) -> None:
        """Refuse to free from outside what the graph's own free node frees."""
        if self.owner in self.freed_in:
            raise ValueError(
                "array: expected graph memory that no free node of its own graph frees, came "
                f"{self.value:#x}, which one frees in every launch"
            )

    def __del__(self) -> None:
        """Do nothing: what a launch leaves allocated outlives graph, exec and array."""


def free_async(array: DeviceArray, stream: object) -> None:
    """Free in stream order what a launch left allocated (cudaFreeAsync).

    On a stream that captures this becomes a free node of the captured graph. The array keeps its
    address: the next launch of the graph with the alloc node allocates it again.

    Args:
        array: from :meth:`graphkit.Graph.add_mem_alloc_node`, of a graph with no free node for it.
        stream: any framework's stream.

    Raises:
        TypeError: when it is no array of an alloc node.
        ValueError: when a free node of its own graph frees it.
        CudaError: when it is not allocated, or was freed already.
    """
    memory = memory_of(array)
    memory.check_free()
    memory.runtime.free_async(memory.value, stream_handle(stream))


def trim_graph_memory(*, runtime: Runtime | None = None) -> None:
    """Give back what CUDA set aside for graphs and none uses now (cudaDeviceGraphMemTrim).

    For the current device; :meth:`graphkit.Graph.memory` says how much it is.
    """
    runtime = given_or_current(runtime)
    runtime.device_graph_mem_trim(runtime.get_device())


def memory_of(array: object) -> AllocatedMemory:
    """Return the memory behind an array of an alloc node; refuse any other."""
    memory = array.memory if isinstance(array, DeviceArray) else None
    if not isinstance(memory, AllocatedMemory):
        raise TypeError(
            "array: expected an array that add_mem_alloc_node() gave, came "
            f"{array if isinstance(array, DeviceArray) else type(array).__name__}"
        )
    assert isinstance(array, DeviceArray)
    if array.offset:
        raise ValueError(
            f"array: expected the array that add_mem_alloc_node() gave, came a view {array.offset} "
            "bytes into it"
        )
    return memory


class MemoryNodes:
    """The alloc and free nodes of one graph, and what they forbid.

    Args:
        graph: the graph's handle.
        known: whether all nodes are added through graphkit, so that none need be looked for.
    """

    def __init__(self, graph: Handle, *, known: bool) -> None:
        self._graph = graph
        self._present: bool | None = False if known else None

    # --- adding

    def allocate(
        self, dependencies: Sequence[int], shape: int | Sequence[int], dtype: DTypeLike
    ) -> tuple[int, DeviceArray]:
        """Add an alloc node; return it and the array that it allocates."""
        extents, kind, nbytes = check_elements(shape, dtype)
        if not nbytes:
            raise ValueError(f"shape: expected at least one element to allocate, came {shape!r}")
        runtime = self._graph.runtime
        ptr, address = runtime.graph_add_mem_alloc_node(
            self._graph.value, dependencies, nbytes, runtime.get_device()
        )
        self._present = True
        return ptr, array_over(AllocatedMemory(self._graph, address), extents, kind)

    def free(self, dependencies: Sequence[int], array: DeviceArray | int) -> int:
        """Add a free node and return it."""
        memory = None
        if isinstance(array, int):
            address = check_address(array, "array")
        else:
            memory = memory_of(array)
            address = memory.value
            self._check_free(memory)
        runtime = self._graph.runtime
        ptr = runtime.graph_add_mem_free_node(self._graph.value, dependencies, address)
        self._present = True
        if memory is not None:
            memory.freed_in.add(self._graph)
        return ptr

    def _check_free(self, memory: AllocatedMemory) -> None:
        if self._graph in memory.freed_in:
            raise ValueError(
                f"array: expected memory without a free node in this graph, came {memory.value:#x},"
                " which has one: an allocation is freed once"
            )
        if memory.owner in memory.freed_in:
            raise ValueError(
                f"array: expected memory that its own graph does not free, came {memory.value:#x}, "
                "which a free node of its own graph frees"
            )
        if memory.owner is self._graph and memory.freed_in:
            raise ValueError(
                f"array: expected memory that no other graph frees, came {memory.value:#x}, which "
                "a free node of another graph frees"
            )

    # --- looking

    @property
    def present(self) -> bool:
        """Whether there are any; graphs that others made are searched once.

        cudaGraphGetNodes and cudaGraphNodeGetType for each node.
        """
        if self._present is None:
            runtime = self._graph.runtime
            self._present = any(
                runtime.graph_node_get_type(node) in _KINDS
                for node in runtime.graph_get_nodes(self._graph.value)
            )
        return self._present

    @property
    def certain(self) -> bool:
        """Whether there are any as far as is known without a call."""
        return bool(self._present)

    def _allocated(self) -> list[tuple[int, MemAllocNodeParams, bool]]:
        """Return each alloc node, its parameters, and whether the graph frees it, too."""
        if not self.present:
            return []
        runtime = self._graph.runtime
        nodes = runtime.graph_get_nodes(self._graph.value)
        kinds = {node: runtime.graph_node_get_type(node) for node in nodes}
        freed = {
            runtime.graph_mem_free_node_get_params(node).address
            for node in nodes
            if kinds[node] is NodeType.MEM_FREE
        }
        found = []
        for node in nodes:
            if kinds[node] is NodeType.MEM_ALLOC:
                params = runtime.graph_mem_alloc_node_get_params(node)
                found.append((node, params, params.address in freed))
        return found

    def report(self, node_of: Callable[[int], Node]) -> GraphMemory:
        """Return what the graph allocates and what graphs take of the device."""
        runtime = self._graph.runtime
        device = runtime.get_device()
        used, used_high, reserved, reserved_high = (
            runtime.device_get_graph_mem_attribute(device, attribute)
            for attribute in GraphMemAttribute
        )
        allocations = tuple(
            GraphAllocation(node_of(ptr), params.address, params.nbytes, freed)
            for ptr, params, freed in self._allocated()
        )
        return GraphMemory(allocations, used, used_high, reserved, reserved_high)

    # --- refusing

    def refuse(self, argument: str, what: str) -> None:
        """Refuse what CUDA does not do with a graph that allocates or frees memory."""
        # A closed graph is refused for that, by whoever asks for its handle next.
        if not self._graph.closed and self.present:
            raise ValueError(
                f"{argument}: expected a graph without alloc or free nodes, came one with: {what}"
            )

    def explain(self, error: CudaError, flags: InstantiateFlags) -> CudaError:
        """Return the error of a launch with what CUDA does not say; the same if that is nothing."""
        auto_free = flags & InstantiateFlags.AUTO_FREE_ON_LAUNCH
        if error.code != StatusCode.INVALID_VALUE or self._graph.closed or not self.present:
            return error
        left = [] if auto_free else [item for _, item, freed in self._allocated() if not freed]
        if left:
            total = sum(item.nbytes for item in left)
            detail = (
                f"no free node of the graph frees {len(left)} of its allocations ({total:,} bytes, "
                f"first {left[0].address:#x}), and while those of an earlier launch are not freed "
                "it cannot be launched again; instantiate(auto_free_on_launch=True), add free "
                "nodes, or graphkit.free_async(array, stream) before the next launch"
            )
        else:
            detail = "a free node must find its memory allocated: launch the graph that does first"
        return CudaError(error.call, error.code, detail)


def explained(
    launch: Callable[[], Any], explain: Callable[[CudaError], CudaError]
) -> Callable[[], Any]:
    """Return a callable that launches, and says more when CUDA refuses."""

    def go() -> None:
        try:
            launch()
        except CudaError as error:
            raise explain(error) from None

    return go
