"""Moving an executable graph to another graph of its topology: what differs, and two ways."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

from graphkit.c_signature import opaque_parameters
from graphkit.graph import Graph
from graphkit.graph_exec import GraphExec
from graphkit.node import Node
from graphkit.runtime.protocol import (
    KernelNodeParams,
    MemcpyNodeParams,
    MemsetNodeParams,
    NodeType,
    Runtime,
)
from graphkit.update_report import UpdateReport

__all__ = ["Changes", "ExecTarget", "GraphValues", "compare"]

# (offset, size) of each parameter.
_Layout = tuple[tuple[int, int], ...]


class _KernelValues(NamedTuple):
    """What an exec can change about a kernel node: equal where nothing is to be changed."""

    function: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_mem: int
    arguments: bytes


class GraphValues:
    """What every node of a graph holds, read once.

    Args:
        graph: the graph. It must stay alive and unchanged as long as anybody is moved to it: the
            arguments are read again from where CUDA keeps them for its nodes.

    Attributes:
        graph: the same.
        nodes: its nodes in order.
        held: what each of them holds, to be compared.
        kernels: the parameters of its kernel nodes by place, for the calls that set them.
    """

    __slots__ = ("__weakref__", "graph", "held", "kernels", "nodes")

    def __init__(self, graph: Graph) -> None:
        runtime = graph.runtime
        self.graph = graph
        self.nodes = graph.nodes
        self.kernels: dict[int, KernelNodeParams] = {}
        layouts: dict[int, _Layout] = {}
        self.held: list[object] = []
        for place, node in enumerate(self.nodes):
            if node.type is NodeType.KERNEL:
                params = runtime.graph_kernel_node_get_params(node.ptr)
                self.kernels[place] = params
                self.held.append(_KernelValues(*params[:4], _arguments(runtime, params, layouts)))
            else:
                self.held.append(_held(graph, node))


def _arguments(runtime: Runtime, params: KernelNodeParams, layouts: dict[int, _Layout]) -> bytes:
    """Return the bytes of a kernel node's arguments, whichever way they are passed."""
    if params.extra:
        # CU_LAUNCH_PARAM_BUFFER_POINTER = 1, CU_LAUNCH_PARAM_BUFFER_SIZE = 2 (cuda.h).
        entries = (ctypes.c_uint64 * 4).from_address(params.extra)
        found = {entries[0]: entries[1], entries[2]: entries[3]}
        return ctypes.string_at(found[1], ctypes.c_size_t.from_address(found[2]).value)
    layout = layouts.get(params.function)
    if layout is None:
        parameters = opaque_parameters(runtime, params.function)
        layout = layouts[params.function] = tuple((item.offset, item.size) for item in parameters)
    if not layout:
        return b""
    table = (ctypes.c_uint64 * len(layout)).from_address(params.kernel_params)
    return b"".join(
        ctypes.string_at(address, size) for address, (_, size) in zip(table, layout, strict=True)
    )


def _held(graph: Graph, node: Node) -> object:
    runtime = graph.runtime
    readers: dict[NodeType, Callable[[int], object]] = {
        NodeType.MEMCPY: runtime.graph_memcpy_node_get_params,
        NodeType.MEMSET: runtime.graph_memset_node_get_params,
        NodeType.HOST: runtime.graph_host_node_get_params,
        NodeType.EVENT_RECORD: runtime.graph_event_record_node_get_event,
        NodeType.EVENT_WAIT: runtime.graph_event_wait_node_get_event,
    }
    if node.type is NodeType.GRAPH:
        return GraphValues(graph.child_graph(node)).held
    reader = readers.get(node.type)
    return None if reader is None else reader(node.ptr)


class Changes(NamedTuple):
    """What must change for an exec that holds one graph to hold another.

    Attributes:
        places: the nodes that differ, by their place in the order.
        settable: whether CUDA can change each of them by itself. It can not for child graphs, for
            copies in more than one dimension, and for fills of other extents.
    """

    places: tuple[int, ...]
    settable: bool


def compare(old: GraphValues, new: GraphValues, skip: Collection[int] = ()) -> Changes:
    """Compare two graphs of one topology, node by node.

    Args:
        old: what the exec holds.
        new: what it shall hold.
        skip: places that somebody else sets.
    """
    places = tuple(
        place
        for place, (mine, theirs) in enumerate(zip(old.held, new.held, strict=True))
        if mine != theirs and place not in skip
    )
    settable = all(_settable(old.held[place], new.held[place]) for place in places)
    return Changes(places, settable)


def _settable(old: object, new: object) -> bool:
    if isinstance(old, MemcpyNodeParams) and isinstance(new, MemcpyNodeParams):
        flat = old.height == old.depth == new.height == new.depth == 1
        return flat and old.kind == new.kind
    if isinstance(old, MemsetNodeParams) and isinstance(new, MemsetNodeParams):
        return old[3:] == new[3:]  # element size, width, height
    return not isinstance(new, list)  # the nodes of a child graph


class ExecTarget:
    """Moves one exec between graphs of one topology.

    The exec's own setters know nothing of it: whoever moves an exec changes it in no other way.

    Args:
        exec_: the exec.
    """

    def __init__(self, exec_: GraphExec) -> None:
        self._exec = exec_
        # CUDA finds an exec's nodes by those of the graph that it was made from.
        self._nodes = exec_.graph.nodes
        self._commits: dict[GraphValues, dict[int, Callable[[], Any]]] = {}

    def set_nodes(self, values: GraphValues, places: Collection[int]) -> None:
        """Set single nodes to what another graph holds, with one call of CUDA's each.

        An error leaves the exec with some nodes set: update or close it.

        Args:
            values: of the other graph.
            places: the nodes to set, as :func:`compare` found them.
        """
        commits = self._commits.setdefault(values, {})
        for place in places:
            commit = commits.get(place)
            if commit is None:
                commit = commits[place] = self._commit(values, place)
            commit()

    def _commit(self, values: GraphValues, place: int) -> Callable[[], Any]:
        """Return the call that sets one node, with everything bound beforehand."""
        runtime, exec_, node = self._exec.runtime, self._exec.ptr, self._nodes[place].ptr
        params = values.kernels.get(place)
        if params is not None:
            return runtime.kernel_node_setter(exec_, node, params)
        setters: dict[NodeType, Callable[[int, int, Any], None]] = {
            NodeType.MEMCPY: runtime.graph_exec_memcpy_node_set_params,
            NodeType.MEMSET: runtime.graph_exec_memset_node_set_params,
            NodeType.HOST: runtime.graph_exec_host_node_set_params,
            NodeType.EVENT_RECORD: runtime.graph_exec_event_record_node_set_event,
            NodeType.EVENT_WAIT: runtime.graph_exec_event_wait_node_set_event,
        }
        return partial(setters[values.nodes[place].type], exec_, node, values.held[place])

    def update(self, graph: Graph) -> UpdateReport:
        """Bring every node in line with another graph (:meth:`GraphExec.update`)."""
        return self._exec.update(graph)

    def forget(self, values: GraphValues) -> None:
        """Drop the calls that set nodes to a graph which is given up."""
        self._commits.pop(values, None)
