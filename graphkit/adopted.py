"""Graphs of others: the cudaGraph_t behind whatever object holds it."""

from __future__ import annotations

__all__ = ["graph_address"]

# What the two modules of cuda.bindings call a cudaGraph_t.
_GRAPH_HANDLES = ("CUgraph", "cudaGraph_t")


def graph_address(graph: object) -> int:
    """Return the cudaGraph_t of a PyTorch, CuPy or cuda.core graph, or of an int.

    Raises:
        TypeError: what holds none.
    """
    value = _held(graph)
    try:
        address = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        address = 0
    # Handles of cuda.bindings name their kind; CUDA takes any for a graph, and crashes.
    kind = type(value)
    other = kind.__module__.partition(".")[0] == "cuda" and kind.__name__ not in _GRAPH_HANDLES
    if other or isinstance(value, (bool, float)) or not 0 < address < 2**64:
        came = f"{graph!r}, which holds a {kind.__name__}" if other else repr(graph)
        raise TypeError(
            "graph: expected a PyTorch, CuPy or cuda.core graph or a cudaGraph_t as an int, "
            f"came {came}"
        )
    return int(address)


def _held(graph: object) -> object:
    """Return the handle that an object of somebody else's holds."""
    value = graph
    for attribute in ("graph_definition", "raw_cuda_graph", "graph", "handle"):
        found = getattr(value, attribute, None)
        if found is not None:
            value = found() if callable(found) else found
            if attribute != "graph_definition":
                break
    return value
