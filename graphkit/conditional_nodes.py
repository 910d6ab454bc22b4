"""Adding a conditional node: by hand or in a capture, with the kernel that sets its condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from graphkit.accesses import condition_access
from graphkit.conditional import SET_CONDITIONAL, Conditional
from graphkit.conditional_handle import ConditionalHandle, check_condition
from graphkit.errors import CudaError
from graphkit.inner_graphs import body_of
from graphkit.node import Node
from graphkit.runtime.protocol import (
    CaptureStatus,
    ConditionalNodeParams,
    ConditionalNodeType,
    KernelNodeParams,
    NodeType,
)
from graphkit.statuses import StatusCode

if TYPE_CHECKING:
    from graphkit.graph import Graph

__all__ = ["add_conditional", "place_of"]


def place_of(graph: Graph) -> tuple[int, Sequence[int] | None]:
    """Return the cudaGraph_t and, in a capture, what its next node comes behind.

    Raises:
        ValueError: for a child graph.
    """
    if graph.holder is not None and graph.holder.type is NodeType.GRAPH:
        raise ValueError(
            "graph: expected one that is no child graph, since CUDA allows no conditional nodes "
            f"there, came that of {graph.holder!r}"
        )
    if graph.captured_on is None:
        return graph.ptr, None
    info = graph.runtime.stream_get_capture_info(graph.captured_on)
    if info.status is not CaptureStatus.ACTIVE:
        code = int(StatusCode.CAPTURE_INVALIDATED)
        raise CudaError("cudaStreamGetCaptureInfo", code, "the capture has failed")
    return info.graph, info.dependencies


def add_conditional(
    graph: Graph,
    type_: ConditionalNodeType,
    condition: object,
    argument: str,
    size: int,
    deps: Node | Iterable[Node],
    given: Callable[[tuple[Graph, ...]], Any],
) -> Conditional[Any]:
    """Add a conditional node and wrap its bodies (cuGraphAddNode).

    Args:
        graph: the graph to add it to.
        type_: whether it is an if, a while or a switch.
        condition: a handle, or a device integer that a further kernel node looks at.
        argument: what the caller calls that.
        size: how many bodies it has.
        deps: nodes it waits for.
        given: what its ``with`` block gives, of the bodies.
    """
    value, before = _behind(graph, deps)
    check_condition(condition, argument, graph.handle)
    if graph.records.derived is not None:
        graph.records.derived.check_open(graph)
    if isinstance(condition, ConditionalHandle):
        return _add(graph, value, before, type_, size, condition, None, given)
    # Compiled first, since nothing destroys a handle that nobody needs after all.
    SET_CONDITIONAL.function(graph.runtime)
    conditionals = graph.conditionals
    # Of a node that CUDA refused, if any: a graph with a handle too many is good for nothing.
    handle, setter = conditionals.spare.pop() if conditionals.spare else (None, None)
    if setter is not None:
        before = [*before, setter.ptr]
    handle = handle or graph.conditional_handle()
    try:
        setter = _add_setter(graph, value, before, handle, condition)
        added = _add(graph, value, (setter.ptr,), type_, size, handle, condition, given)
    except BaseException:
        if handle.node is None:
            conditionals.spare.append((handle, _take_out(graph, setter)))
        raise
    conditionals.setters.add(setter.ptr)
    return added


def _behind(graph: Graph, deps: Node | Iterable[Node]) -> tuple[int, Sequence[int]]:
    """Return the cudaGraph_t, and the nodes that the next one waits for."""
    before = graph.records.dependencies(deps)
    if len(set(before)) != len(before):
        raise ValueError("deps: expected different nodes, came one twice")
    value, captured = place_of(graph)
    if captured is None:
        return value, before
    if before:
        raise ValueError("deps: expected none, since a capture knows them, came some")
    return value, captured


def _add_setter(
    graph: Graph, value: int, before: Sequence[int], handle: ConditionalHandle, flag: object
) -> Node:
    """Add the kernel that sets a condition to what a flag holds, also in a capture."""
    records = graph.records
    if graph.captured_on is None:
        ahead = [records.nodes[ptr] for ptr in before]
        return graph.add_kernel_node(SET_CONDITIONAL, 1, 1, (handle, flag), deps=ahead)
    kernel_params, owners = SET_CONDITIONAL.pack((handle, flag))
    one = (1, 1, 1)
    params = KernelNodeParams(SET_CONDITIONAL.function(graph.runtime), one, one, 0, kernel_params)
    with records.turn:
        ptr = graph.runtime.graph_add_kernel_node(value, before, params)
        records.kernels.add(SET_CONDITIONAL)
        return records.keep(ptr, NodeType.KERNEL, owners)


def _take_out(graph: Graph, setter: Node | None) -> Node | None:
    """Destroy the kernel of a node that CUDA refused; return it where it has to stay."""
    if setter is not None and graph.records.derived is None:
        with suppress(CudaError):  # out of a graph with alloc or free nodes none is taken
            graph.runtime.graph_destroy_node(setter.ptr)
            graph.records.drop(setter)
            return None
    return setter


def _add(
    graph: Graph,
    value: int,
    before: Sequence[int],
    type_: ConditionalNodeType,
    size: int,
    handle: ConditionalHandle,
    flag: object | None,
    given: Callable[[tuple[Graph, ...]], Any],
) -> Conditional[Any]:
    """Add the node itself, and wrap its bodies."""
    records = graph.records
    reads = None
    if records.derived is not None:
        reads = (condition_access(int(handle), write=False),)
    with records.turn:
        before = records.order(graph, before, reads)
        params = ConditionalNodeParams(int(handle), type_, size)
        ptr, made = graph.runtime.graph_add_conditional_node(value, before, params)
        if graph.captured_on is not None:
            graph.runtime.stream_update_capture_dependencies(graph.captured_on, (ptr,))
        node = handle.node = records.keep(ptr, NodeType.CONDITIONAL, handle, reads, declared=False)
        bodies = tuple(body_of(graph, body, node) for body in made)
        records.owners.extend(body.owners for body in bodies)
        added = Conditional(type_, node, bodies, handle, flag, given(bodies))
        records.conditionals.nodes[ptr] = added
        if records.derived is not None:
            records.derived.open(added)
    return added
