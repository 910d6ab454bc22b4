"""Launch attributes of kernel nodes: set all or none of them."""

from __future__ import annotations

from collections.abc import Sequence

from graphkit.launch_config import launch_attributes
from graphkit.lifetime import Handle
from graphkit.node import Node
from graphkit.runtime.protocol import (
    KernelNodeParams,
    LaunchAttribute,
    LaunchAttributeID,
    NodeType,
    Runtime,
)

__all__ = ["changed_attributes", "give_attributes", "set_attributes", "try_attributes"]


def try_attributes(
    runtime: Runtime, params: KernelNodeParams, attributes: Sequence[LaunchAttribute]
) -> None:
    """Let CUDA refuse attributes in a graph that a node can be taken out of again."""
    trial = Handle(runtime, "graph", runtime.graph_create(), runtime.graph_destroy)
    try:
        ptr = runtime.graph_add_kernel_node(trial.value, (), params)
        for attribute in attributes:
            runtime.graph_kernel_node_set_attribute(ptr, attribute)
    finally:
        trial.close()


def give_attributes(runtime: Runtime, ptr: int, attributes: Sequence[LaunchAttribute]) -> None:
    """Set attributes of a node that was just added; destroy it when CUDA refuses one."""
    try:
        for attribute in attributes:
            runtime.graph_kernel_node_set_attribute(ptr, attribute)
    except BaseException:
        runtime.graph_destroy_node(ptr)
        raise


def changed_attributes(
    node: Node,
    cluster: int | Sequence[int] | None,
    cooperative: bool | None,
    priority: int | None,
) -> list[LaunchAttribute]:
    """Return the attributes that a kernel node is to have, of those that are not None."""
    if node.type is not NodeType.KERNEL:
        raise TypeError(f"node: expected a kernel node, came {node!r}")
    grid = node.graph_handle.runtime.graph_kernel_node_get_params(node.ptr).grid
    attributes = list(launch_attributes(grid, cluster, bool(cooperative), priority))
    if cooperative is False:
        attributes.append(LaunchAttribute(LaunchAttributeID.COOPERATIVE, (0,)))
    # Last what CUDA may refuse, so that nothing but flags and numbers is ever put back.
    attributes.sort(key=lambda item: item.id is LaunchAttributeID.CLUSTER_DIMENSION)
    return attributes


def set_attributes(node: Node, attributes: Sequence[LaunchAttribute]) -> None:
    """Set attributes of a kernel node; put all back when CUDA refuses one."""
    runtime = node.graph_handle.runtime
    before = [
        runtime.graph_kernel_node_get_attribute(node.ptr, attribute.id) for attribute in attributes
    ]
    for done, attribute in enumerate(attributes):
        try:
            runtime.graph_kernel_node_set_attribute(node.ptr, attribute)
        except BaseException:
            for old in before[:done]:
                runtime.graph_kernel_node_set_attribute(node.ptr, old)
            raise
