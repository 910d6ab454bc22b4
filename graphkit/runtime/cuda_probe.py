"""Features of the driver that graphkit has no call for at the seam, tried on small graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphkit.runtime.cuda_bindings import refuse
from graphkit.runtime.cuda_bindings import runtime as cudart

__all__ = ["attempts"]

_COND_ASSIGN_DEFAULT = 1


def _call(name: str, *arguments: Any) -> Any:
    """Make the call and check it; return what it returns beside its status."""
    call = getattr(cudart, name, None)
    if call is None:
        raise AttributeError(f"the installed cuda-bindings have no {name}")
    status, *found = call(*arguments)
    if status:
        refuse(name, status)
    return found[0] if found else None


def _on_a_graph(attempt: Callable[[Any], None]) -> Callable[[], None]:
    def run() -> None:
        graph = _call("cudaGraphCreate", 0)
        try:
            attempt(graph)
        finally:
            _call("cudaGraphDestroy", graph)

    return run


def _conditional_nodes(graph: Any) -> None:
    _call("cudaGraphConditionalHandleCreate", graph, 0, _COND_ASSIGN_DEFAULT)


def _node_ids(graph: Any) -> None:
    _call("cudaGraphNodeGetLocalId", _call("cudaGraphAddEmptyNode", graph, None, 0))


def _node_get_params(graph: Any) -> None:
    # A memset node, since an empty node has no parameters to get.
    params = cudart.cudaMemsetParams()
    address = _call("cudaMalloc", 64)
    try:
        params.dst, params.elementSize, params.width, params.height = address, 1, 64, 1
        node = _call("cudaGraphAddMemsetNode", graph, None, 0, params)
        _call("cudaGraphNodeGetParams", node)
    finally:
        _call("cudaFree", address)


def attempts() -> dict[str, Callable[[], None]]:
    """Return, by the name of the feature, a call that raises when it is absent."""
    return {
        "conditional_nodes": _on_a_graph(_conditional_nodes),
        "node_ids": _on_a_graph(_node_ids),
        "node_get_params": _on_a_graph(_node_get_params),
    }
