"""Alloc and free nodes: the simulated calls."""

from __future__ import annotations

from collections.abc import Sequence

from graphkit.runtime.protocol import (
    GraphMemAttribute,
    MemAllocNodeParams,
    MemFreeNodeParams,
    NodeType,
)
from graphkit.runtime.sim.graph_calls import GraphCalls
from graphkit.runtime.sim.graph_memory import GraphAllocation
from graphkit.runtime.sim.refusal import Code, Refused
from graphkit.runtime.sim.state import cuda_call

__all__ = ["MemoryNodeCalls"]


class MemoryNodeCalls(GraphCalls):
    """Alloc and free nodes, and the memory that they take."""

    @cuda_call("cudaGraphAddMemAllocNode")
    def graph_add_mem_alloc_node(
        self, graph: int, dependencies: Sequence[int], nbytes: int, device: int
    ) -> tuple[int, int]:
        if device != 0:
            raise Refused(Code.INVALID_VALUE, f"device {device}; there is only device 0")
        owner = self.state.graph(graph)
        found = self.state.graph_memory.add(nbytes, owner)
        try:
            node = self._add_node(graph, dependencies, NodeType.MEM_ALLOC, found)
        except Refused:
            self._forget_dead_allocations()
            raise
        return node, found.allocation.address

    @cuda_call("cudaGraphAddMemFreeNode")
    def graph_add_mem_free_node(self, graph: int, dependencies: Sequence[int], address: int) -> int:
        owner = self.state.graph(graph)
        found = self.state.graph_memory.to_free(address, owner)
        node = self._add_node(graph, dependencies, NodeType.MEM_FREE, found)
        found.freed_by.add(owner)
        return node

    @cuda_call("cudaGraphMemAllocNodeGetParams")
    def graph_mem_alloc_node_get_params(self, node: int) -> MemAllocNodeParams:
        found = self._of_type(node, NodeType.MEM_ALLOC).values
        assert isinstance(found, GraphAllocation)
        return MemAllocNodeParams(found.allocation.address, found.nbytes, 0)

    @cuda_call("cudaGraphMemFreeNodeGetParams")
    def graph_mem_free_node_get_params(self, node: int) -> MemFreeNodeParams:
        found = self._of_type(node, NodeType.MEM_FREE).values
        assert isinstance(found, GraphAllocation)
        return MemFreeNodeParams(found.allocation.address)

    @cuda_call("cudaDeviceGetGraphMemAttribute")
    def device_get_graph_mem_attribute(self, device: int, attribute: GraphMemAttribute) -> int:
        self._check_device(device)
        memory = self.state.graph_memory
        return {
            GraphMemAttribute.USED_MEM_CURRENT: memory.used,
            GraphMemAttribute.USED_MEM_HIGH: memory.used_high,
            GraphMemAttribute.RESERVED_MEM_CURRENT: memory.reserved,
            GraphMemAttribute.RESERVED_MEM_HIGH: memory.reserved_high,
        }[GraphMemAttribute(attribute)]

    @cuda_call("cudaDeviceGraphMemTrim")
    def device_graph_mem_trim(self, device: int) -> None:
        self._check_device(device)
        self.state.graph_memory.trim()

    def _check_device(self, device: int) -> None:
        if device != 0:
            raise Refused(Code.INVALID_DEVICE, f"device {device}; there is only device 0")
