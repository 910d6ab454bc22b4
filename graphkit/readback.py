"""What a node of any graph holds, read back from CUDA: also of graphs that others captured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphkit.kernel import kernel_of
from graphkit.node import Argument, KernelNodeValues, Node, NodeValues
from graphkit.params import ArgumentBlock
from graphkit.runtime.protocol import Dim3, KernelNodeParams, LaunchAttributeID, NodeType

if TYPE_CHECKING:
    from graphkit.graph import Graph

__all__ = [
    "kernel_values",
    "read_cluster",
    "read_clusters",
    "read_kernel",
    "read_kernel_block",
    "read_values",
]

# The attributes that are read back, and the values that say the same as none.
_ATTRIBUTES = {
    LaunchAttributeID.CLUSTER_DIMENSION: ((0, 0, 0), (1, 1, 1)),
    LaunchAttributeID.COOPERATIVE: ((0,),),
    LaunchAttributeID.PRIORITY: ((0,),),
}


def read_values(node: Node) -> NodeValues:
    """Return the parameters of a node; None for kinds without."""
    runtime = node.graph_handle.runtime
    if node.type is NodeType.KERNEL:
        return read_kernel(node)
    if node.type is NodeType.MEMCPY:
        return runtime.graph_memcpy_node_get_params(node.ptr)
    if node.type is NodeType.MEMSET:
        return runtime.graph_memset_node_get_params(node.ptr)
    if node.type is NodeType.MEM_ALLOC:
        return runtime.graph_mem_alloc_node_get_params(node.ptr)
    if node.type is NodeType.MEM_FREE:
        return runtime.graph_mem_free_node_get_params(node.ptr)
    return None


def read_kernel(node: Node) -> KernelNodeValues:
    """Return a kernel node's parameters with its arguments and attributes."""
    return kernel_values(node, *read_kernel_block(node))


def kernel_values(node: Node, params: KernelNodeParams, block: ArgumentBlock) -> KernelNodeValues:
    """Return parameters and arguments as values, with the attributes of a kernel node."""
    runtime = node.graph_handle.runtime
    args = tuple(
        Argument(item.name, item.offset, item.size, block.value(index))
        for index, item in enumerate(block.parameters)
    )
    if params.extra and not args:
        args = (Argument("extra", 0, len(block.view), bytes(block.view)),)
    attributes = [runtime.graph_kernel_node_get_attribute(node.ptr, id_) for id_ in _ATTRIBUTES]
    kernel = kernel_of(runtime, params.function)
    return KernelNodeValues(
        kernel.name if kernel else runtime.func_get_name(params.function),
        params.function,
        params.grid,
        params.block,
        params.shared_mem,
        args,
        tuple(item for item in attributes if item.value not in _ATTRIBUTES[item.id]),
    )


def read_kernel_block(node: Node) -> tuple[KernelNodeParams, ArgumentBlock]:
    """Return a kernel node's parameters and a copy of its arguments.

    cuGraphKernelNodeGetParams; where graphkit does not know the function's signature also
    cuFuncGetParamInfo for each parameter.
    """
    runtime = node.graph_handle.runtime
    params = runtime.graph_kernel_node_get_params(node.ptr)
    kernel = kernel_of(runtime, params.function)
    parameters = None if kernel is None else kernel.parameters
    return params, ArgumentBlock.read(runtime, params, parameters)


def read_cluster(node: Node) -> Dim3 | None:
    """Return a kernel node's cluster extents, None without a cluster."""
    id_ = LaunchAttributeID.CLUSTER_DIMENSION
    value = node.graph_handle.runtime.graph_kernel_node_get_attribute(node.ptr, id_).value
    if value in _ATTRIBUTES[id_]:
        return None
    x, y, z = value
    return x, y, z


def read_clusters(graph: Graph) -> dict[tuple[int, ...], Dim3]:
    """Return the cluster extents of all kernel nodes that have any, by their path."""
    found: dict[tuple[int, ...], Dim3] = {}
    for place, node in enumerate(graph.nodes):
        if node.type is NodeType.GRAPH:
            inside = graph.child_graph(node).clusters.items()
            found.update({(place, *path): extents for path, extents in inside})
        elif node.type is NodeType.KERNEL and (extents := read_cluster(node)):
            found[(place,)] = extents
    return found
