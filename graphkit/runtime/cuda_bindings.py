"""cuda.bindings, whichever major is installed: the calls whose shape differs between 12.9 and 13.

CUDA 12 added edge data under names that end in ``_v2`` or ``_v3``; CUDA 13 gave these functions the
plain names and dropped the rest. Which one is installed is decided here, once, by what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from cuda.bindings import driver, runtime

from graphkit.errors import CudaError, GraphkitError
from graphkit.runtime.protocol import CaptureInfo, CaptureStatus, Edge, EdgeData
from graphkit.statuses import StatusCode

__all__ = [
    "add_node",
    "capture_info",
    "connect",
    "disconnect",
    "driver",
    "edges_of",
    "node_list",
    "refuse",
    "runtime",
    "set_capture_dependencies",
]

_SET_CAPTURE_DEPENDENCIES = 1  # cudaStreamUpdateCaptureDependenciesFlags
_Node: Any = runtime.cudaGraphNode_t


def _newest(*names: str, module: Any = runtime) -> Callable[..., Any]:
    """Return the first of ``names`` that this version of cuda.bindings has."""
    for name in names:
        found: Callable[..., Any] | None = getattr(module, name, None)
        if found is not None:
            return found
    raise GraphkitError(f"this version of cuda-bindings has none of {', '.join(names)}")


# The newest name first: where a `_v2` exists, the plain name is the one without edge data.
_add_dependencies = _newest("cudaGraphAddDependencies_v2", "cudaGraphAddDependencies")
_remove_dependencies = _newest("cudaGraphRemoveDependencies_v2", "cudaGraphRemoveDependencies")
_get_edges = _newest("cudaGraphGetEdges_v2", "cudaGraphGetEdges")
#: (graph, dependencies, edge data, count, CUgraphNodeParams) -> (status, node)
add_node = _newest("cuGraphAddNode_v2", "cuGraphAddNode", module=driver)
_update_capture_dependencies = _newest(
    "cudaStreamUpdateCaptureDependencies_v2", "cudaStreamUpdateCaptureDependencies"
)
_get_capture_info = _newest("cudaStreamGetCaptureInfo_v3", "cudaStreamGetCaptureInfo")


def refuse(call: str, status: Any, detail: str = "") -> NoReturn:
    """Raise the CudaError of a call, and clear CUDA's last error on this thread.

    CUDA keeps the last error until somebody reads it. Whoever calls us has it as an exception now;
    left in place it would surface as the failure of somebody else's later, innocent check.
    """
    runtime.cudaGetLastError()
    raise CudaError(call, int(status), detail)


def node_list(handles: Sequence[int]) -> list[Any] | None:
    """Return ``handles`` as cuda.bindings takes dependencies; None is none.

    Stream and graph arguments may be plain ints, but lists are checked element by element.
    """
    if not handles:
        return None
    if len(handles) == 1:  # most nodes; a comprehension costs as much again as the handle
        return [_Node(handles[0])]
    return [_Node(handle) for handle in handles]


def _edge_calls(
    edges: Sequence[Edge],
) -> Iterator[tuple[list[Any], list[Any], list[Any] | None, int]]:
    """Yield the arguments of one call for each kind of edge data.

    One call for all was tried on the device (driver 580, cuda-bindings 13.3.1): every edge got
    the data of the first.
    """
    for data in dict.fromkeys(edge.data for edge in edges):
        same = [edge for edge in edges if edge.data == data]
        annotations = None
        if any(data):
            entry = runtime.cudaGraphEdgeData()
            entry.from_port, entry.to_port, entry.type = data
            annotations = [entry] * len(same)
        froms = [_Node(edge.from_node) for edge in same]
        yield froms, [_Node(edge.to_node) for edge in same], annotations, len(same)


def connect(graph: int, edges: Sequence[Edge]) -> None:
    """cudaGraphAddDependencies with edge data; a call for each kind of it."""
    for arguments in _edge_calls(edges):
        (status,) = _add_dependencies(graph, *arguments)
        if status:
            refuse("cudaGraphAddDependencies", status)


def disconnect(graph: int, edges: Sequence[Edge]) -> None:
    """cudaGraphRemoveDependencies with edge data; a call for each kind of it."""
    for arguments in _edge_calls(edges):
        (status,) = _remove_dependencies(graph, *arguments)
        if status:
            refuse("cudaGraphRemoveDependencies", status)


def edges_of(graph: int) -> list[Edge]:
    """cudaGraphGetEdges with edge data, called once for the number and once for the edges."""
    status, _, _, _, count = _get_edges(graph)
    if status and int(status) == StatusCode.LOSSY_QUERY:
        # The query for the number alone has no room for edge data; ask again with room.
        runtime.cudaGetLastError()
        room = 64
        status, _, _, _, count = _get_edges(graph, room)
        while not status and count == room:
            room *= 2
            status, _, _, _, count = _get_edges(graph, room)
    if status:
        refuse("cudaGraphGetEdges", status)
    if not count:
        return []
    status, froms, tos, data, _ = _get_edges(graph, count)
    if status:
        refuse("cudaGraphGetEdges", status)
    return [
        Edge(int(a), int(b), EdgeData(int(d.from_port), int(d.to_port), int(d.type)))
        for a, b, d in zip(froms, tos, data, strict=True)
    ]


def capture_info(stream: int) -> CaptureInfo:
    """cudaStreamGetCaptureInfo with edge data, so that a programmatic edge is no lossy query."""
    status, state, capture_id, graph, nodes, *_ = _get_capture_info(stream)
    if status:
        refuse("cudaStreamGetCaptureInfo", status)
    state = CaptureStatus(int(state))
    if state is not CaptureStatus.ACTIVE:
        # CUDA leaves the other outputs as they were.
        return CaptureInfo(state, 0, 0, ())
    return CaptureInfo(state, int(capture_id), int(graph), tuple(map(int, nodes or ())))


def set_capture_dependencies(stream: int, dependencies: Sequence[int]) -> None:
    """cudaStreamUpdateCaptureDependencies with cudaStreamSetCaptureDependencies."""
    (status,) = _update_capture_dependencies(
        stream, node_list(dependencies), None, len(dependencies), _SET_CAPTURE_DEPENDENCIES
    )
    if status:
        refuse("cudaStreamUpdateCaptureDependencies", status)
