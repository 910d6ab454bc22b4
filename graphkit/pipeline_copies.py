"""The copies at both ends of a pipeline's graph, and the word that tells the host of the end."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Literal

from graphkit.device_array import DeviceArray
from graphkit.graph import Graph
from graphkit.kernel import Kernel, Launch, Pointer
from graphkit.node import Node

__all__ = ["FETCH_RESULT", "SEND_INPUT", "Copies", "add_fetch", "add_send", "choose_copies"]

Copies = Literal["kernel", "engine"]

_THREADS = 256  # of a block
_BYTES_PER_BLOCK = 16 * _THREADS  # one load of 16 bytes a thread
_MOST_BLOCKS = 128  # beyond this the loads of longer loops keep the bus as busy


def choose_copies(copies: str) -> Copies:
    """Return who copies: as asked for, the engine where that is ``"auto"``.

    Kernels read the host's memory over the bus load by load. Where that is fast they save the
    change between engine and multiprocessors and a call of CUDA's each; on a virtual machine with
    an H200 32 KB took them 60 us, the engine 3.

    Raises:
        ValueError: for another word.
    """
    if copies == "kernel":
        return "kernel"
    if copies in ("auto", "engine"):
        return "engine"
    raise ValueError(f"copies: expected 'auto', 'kernel' or 'engine', came {copies!r}")


def add_send(graph: Graph, source: int, to: DeviceArray) -> Node:
    """Add a node that copies to the device from where a word in pinned memory points.

    Args:
        graph: where to.
        source: address of the word.
        to: an array without gaps.
    """
    args = (source, to.ptr, to.nbytes)
    node = graph.add_kernel_node(SEND_INPUT, _blocks(to.nbytes), _THREADS, args)
    graph.owners.append(to)
    return node


def add_fetch(
    graph: Graph,
    from_: int,
    target: int,
    nbytes: int,
    deps: Iterable[Node],
    *,
    number: int = 0,
    signal: int = 0,
    arrived: int = 0,
) -> Node:
    """Add a node that copies to where a word in pinned memory points, and signals the end.

    Args:
        graph: where to; keeping the memory alive is the caller's.
        from_: device address.
        target: address of the word.
        nbytes: how much; with 0 the node only signals.
        deps: nodes it waits for.
        number: address of a device word that counts the launches.
        signal: address of a word in pinned memory that the count is copied to; 0 for none.
        arrived: a device word of 4 bytes that is 0, for this node alone.
    """
    args = (from_, target, nbytes, number, signal, arrived)
    return graph.add_kernel_node(
        FETCH_RESULT, _blocks(nbytes), _THREADS if nbytes else 1, args, deps=deps
    )


def _blocks(nbytes: int) -> int:
    return max(min(-(-nbytes // _BYTES_PER_BLOCK), _MOST_BLOCKS), 1)


# --- the twins -----------------------------------------------------------------------------------


def _send_input_twin(_launch: Launch, source: Pointer, to: Pointer, nbytes: int) -> None:
    address = int(source.view(1)[0])
    to.view(nbytes)[:] = source.view(nbytes, address - source.address, "u1")


def _fetch_result_twin(
    _launch: Launch,
    from_: Pointer,
    target: Pointer,
    nbytes: int,
    number: Pointer,
    signal: Pointer,
    arrived: Pointer,
) -> None:
    if nbytes:
        # Through a pointer that may be written; which one makes no difference to an address.
        address = int(target.view(1)[0])
        arrived.view(nbytes, address - arrived.address, "u1")[:] = from_.view(nbytes)
    if signal:
        arrived.view(1)[0] = 0
        number.view(1)[0] += 1
        signal.view(1)[0] = number.view(1)[0]


_SOURCE = (files(__package__) / "pipeline_copies.cu").read_text(encoding="utf-8")
_WORD = {"word": "<u8"}
SEND_INPUT = Kernel(_SOURCE, "send_input", twin=_send_input_twin, types=_WORD)
FETCH_RESULT = Kernel(_SOURCE, "fetch_result", twin=_fetch_result_twin, types=_WORD)
