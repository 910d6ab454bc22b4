"""Conditions: what a conditional node looks at, as CUDA's handle or as an integer on the device."""

from __future__ import annotations

from math import prod

import numpy as np

from graphkit.arrays import device_pointer, is_array
from graphkit.lifetime import Handle
from graphkit.node import Node

__all__ = ["ConditionalHandle", "check_condition", "check_default"]

_FLAG_DTYPES = (np.dtype(np.int32), np.dtype(np.uint32))


class ConditionalHandle(np.uint64):
    """A condition (cudaGraphConditionalHandle), made by :meth:`graphkit.Graph.conditional_handle`.

    Pass it to the kernel that sets it with cudaGraphSetConditional, and to
    :meth:`~graphkit.Graph.while_`, :meth:`~graphkit.Graph.if_` or
    :meth:`~graphkit.Graph.switch`, once.

    Attributes:
        node: the conditional node that asks for it; None until that is added.
    """

    graph_handle: Handle | None = None
    node: Node | None = None

    @classmethod
    def of(cls, value: int, graph_handle: Handle) -> ConditionalHandle:
        """Wrap a handle of CUDA's. For graphkit itself."""
        handle = cls(value)
        handle.graph_handle = graph_handle
        return handle


def check_condition(condition: object, argument: str, graph_handle: Handle) -> None:
    """Refuse what is neither one integer in device memory nor a fresh handle of the graph.

    Raises:
        TypeError: no array, one on the host, or one of another dtype than int32 and uint32.
        ValueError: more or fewer elements than one, a freed array, an address that no int32 has, a
            handle of another graph or one that a node has already.
    """
    if isinstance(condition, ConditionalHandle):
        _check_handle(condition, argument, graph_handle)
        return
    if not is_array(condition):
        raise TypeError(
            f"{argument}: expected a device array of one int32 or uint32, or what "
            f"conditional_handle() returned, came {type(condition).__name__}"
        )
    info = device_pointer(condition, argument)
    if info.dtype not in _FLAG_DTYPES:
        raise TypeError(f"{argument}: expected an array of int32 or uint32, came {info.dtype}")
    if prod(info.shape) != 1:
        raise ValueError(f"{argument}: expected an array of one element, came shape {info.shape}")
    if not info.ptr or info.ptr % 4:
        raise ValueError(f"{argument}: expected an address that 4 divides, came {info.ptr:#x}")


def _check_handle(handle: ConditionalHandle, argument: str, graph_handle: Handle) -> None:
    if handle.node is not None:
        raise ValueError(
            f"{argument}: expected a handle without a node, came that of {handle.node}"
        )
    around: object = graph_handle
    while isinstance(around, Handle) and around is not handle.graph_handle:
        around = around.owner
    if not isinstance(around, Handle):
        raise ValueError(
            f"{argument}: expected a handle of this graph or one around it, came another's"
        )


def check_default(default: object) -> int:
    """Return the default of a handle."""
    if not isinstance(default, (int, np.integer)):
        raise TypeError(f"default: expected an int or None, came {type(default).__name__}")
    if not 0 <= default < 2**32:
        raise ValueError(f"default: expected 0 to 2**32 - 1, came {default}")
    return int(default)
