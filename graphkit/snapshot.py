"""A captured graph as bytes: what is compared to find out which words of it moved."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from typing import NamedTuple

from graphkit.c_signature import Parameter
from graphkit.errors import CudaError, GraphkitError, RebindError
from graphkit.graph import Graph
from graphkit.node import Node
from graphkit.readback import kernel_values, read_kernel_block
from graphkit.runtime.protocol import (
    EdgeData,
    MemcpyKind,
    MemcpyNodeParams,
    MemoryType,
    NodeType,
    Runtime,
)

__all__ = ["NodeState", "Snapshot", "is_address", "snapshot"]

# Of a table that is copied from the host, so much is looked at.
_TABLE_LIMIT = 1 << 20
# What these hold, addresses among it, cannot be read back.
_CLOSED = (
    NodeType.CONDITIONAL,
    NodeType.BATCH_MEM_OP,
    NodeType.EXT_SEMAPHORE_SIGNAL,
    NodeType.EXT_SEMAPHORE_WAIT,
)


class NodeState(NamedTuple):
    """One node of a captured graph.

    Attributes:
        place: its place in the graph's order, a path where it is inside of a child graph.
        node: the node.
        kernel: the kernel's name, None for nodes of other kinds.
        parameters: what ``data`` is made of, with names.
        data: what may hold addresses: a kernel's parameter block, the ends of a copy.
        fixed: the rest of what it holds, by name; nothing of it follows a buffer.
        table: what a copy from pinned memory carries to the device.
    """

    place: tuple[int, ...]
    node: Node
    kernel: str | None
    parameters: tuple[Parameter, ...]
    data: bytes
    fixed: tuple[tuple[str, object], ...]
    table: bytes = b""

    def __str__(self) -> str:
        what = self.node.type.name.lower() if self.kernel is None else f"kernel {self.kernel}"
        return f"node {'.'.join(map(str, self.place))} ({what})"

    def parameter_at(self, offset: int) -> Parameter | None:
        """Return the parameter that holds a byte of ``data``, None where none is known."""
        for item in self.parameters:
            if item.offset <= offset < item.offset + item.size:
                return item
        return None

    def name_at(self, offset: int) -> str:
        """Return the name of the parameter that holds a byte of ``data``."""
        found = self.parameter_at(offset)
        return "extra" if found is None else found.name

    def error(self, message: str, offset: int | None = None) -> RebindError:
        """Return the error that something about this node is in the way."""
        if offset is None:
            return RebindError(f"{self}: {message}", self.place, self.kernel)
        name = self.name_at(offset)
        found = self.parameter_at(offset)
        inside = f" + {offset - found.offset}" if found and offset > found.offset else ""
        where = f"parameter {name}{inside}, byte {offset} of its block"
        return RebindError(f"{self}: {where}: {message}", self.place, self.kernel, name)


class Snapshot(NamedTuple):
    """A captured graph: its nodes, those of child graphs behind their holder, and its edges."""

    nodes: tuple[NodeState, ...]
    edges: frozenset[tuple[tuple[int, ...], tuple[int, ...], EdgeData]]


def is_address(runtime: Runtime, word: int) -> bool:
    """Return whether CUDA knows memory at an address (cudaPointerGetAttributes)."""
    try:
        found = runtime.pointer_get_attributes(word)
    except CudaError:
        return False
    return found.type is not MemoryType.UNREGISTERED


def snapshot(graph: Graph) -> Snapshot:
    """Read all nodes and edges of a graph, child graphs included.

    Raises:
        RebindError: when a node is of a kind whose contents cannot be read back.
    """
    edges: set[tuple[tuple[int, ...], tuple[int, ...], EdgeData]] = set()
    return Snapshot(tuple(_nodes(graph, (), edges)), frozenset(edges))


def _nodes(
    graph: Graph,
    path: tuple[int, ...],
    edges: set[tuple[tuple[int, ...], tuple[int, ...], EdgeData]],
) -> Iterator[NodeState]:
    places = {}
    for index, node in enumerate(graph.nodes):
        place = places[node] = (*path, index)
        yield _state(graph.runtime, place, node)
        if node.type is NodeType.GRAPH:
            yield from _nodes(graph.child_graph(node), place, edges)
    for edge in graph.edges:
        edges.add((places[edge.from_node], places[edge.to_node], edge.data))


def _words(*names: str) -> tuple[Parameter, ...]:
    return tuple(Parameter(name, 8 * index, 8) for index, name in enumerate(names))


_COPY = _words("dst", "src")
_FILL = _words("dst")
_HOST = _words("fn", "user_data")
_EVENT = _words("event")


def _state(runtime: Runtime, place: tuple[int, ...], node: Node) -> NodeState:
    if node.type in _CLOSED:
        kind = node.type.name.lower()
        raise RebindError(
            f"node {'.'.join(map(str, place))} ({kind}): what such a node points at cannot be "
            "read back, so that nobody can tell whether it is a buffer's",
            place,
        )
    fixed: tuple[tuple[str, object], ...]
    if node.type is NodeType.KERNEL:
        params, block = read_kernel_block(node)
        values = kernel_values(node, params, block)
        fixed = (
            ("function", params.function),
            ("grid", params.grid),
            ("block", params.block),
            ("shared_mem", params.shared_mem),
            ("attributes", values.attributes),
            ("arguments through extra", bool(params.extra)),
            ("bytes of arguments", len(block.view)),
        )
        return NodeState(place, node, values.name, block.parameters, bytes(block.view), fixed)
    if node.type is NodeType.MEMCPY:
        return _copy_state(runtime, place, node)
    if node.type is NodeType.MEMSET:
        fill = runtime.graph_memset_node_get_params(node.ptr)
        fixed = tuple(zip(fill._fields[1:], fill[1:], strict=True))
        return NodeState(place, node, None, _FILL, struct.pack("<Q", fill.dst), fixed)
    if node.type is NodeType.HOST:
        host = runtime.graph_host_node_get_params(node.ptr)
        return NodeState(place, node, None, _HOST, struct.pack("<QQ", *host), ())
    if node.type is NodeType.EVENT_RECORD:
        event = runtime.graph_event_record_node_get_event(node.ptr)
        return NodeState(place, node, None, _EVENT, struct.pack("<Q", event), ())
    if node.type is NodeType.EVENT_WAIT:
        event = runtime.graph_event_wait_node_get_event(node.ptr)
        return NodeState(place, node, None, _EVENT, struct.pack("<Q", event), ())
    return NodeState(place, node, None, (), b"", ())


def _copy_state(runtime: Runtime, place: tuple[int, ...], node: Node) -> NodeState:
    try:
        copy = runtime.graph_memcpy_node_get_params(node.ptr)
    except GraphkitError as error:
        where = ".".join(map(str, place))
        raise RebindError(f"node {where} (memcpy): {error}", place) from error
    kept = [name for name in copy._fields if name not in ("dst", "src")]
    fixed = tuple((name, getattr(copy, name)) for name in kept)
    data = struct.pack("<QQ", copy.dst, copy.src)
    return NodeState(place, node, None, _COPY, data, fixed, _table(runtime, copy))


def _table(runtime: Runtime, copy: MemcpyNodeParams) -> bytes:
    """Return what a 1-D copy from pinned memory would carry now; other memory may be gone."""
    if copy.kind not in (MemcpyKind.HOST_TO_DEVICE, MemcpyKind.DEFAULT):
        return b""
    if copy.height > 1 or copy.depth > 1 or copy.width > _TABLE_LIMIT:
        return b""
    if runtime.pointer_get_attributes(copy.src).type is not MemoryType.HOST:
        return b""
    return ctypes.string_at(copy.src, copy.width)
