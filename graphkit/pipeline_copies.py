"""The copies at both ends of a pipeline's graph, and the word that tells the host of the end."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Literal

from graphkit.device_array import DeviceArray
from graphkit.graph import Graph
from graphkit.kernel import Kernel, Launch, Pointer
from graphkit.node import Node

__all__ = [
    "FETCH_RESULT",
    "SEND_INPUT",
    "Copies",
    "add_fetch",
    "add_send",
    "by_kernel",
    "check_copies",
]

Copies = Literal["auto", "kernel", "engine"]

_THREADS = 1024  # of a block at most
_LEAST_THREADS = 64  # the second warp has work of its own
_UNIT = 16  # bytes of a load
_MOST_BLOCKS = 16  # beyond this the loads of longer loops keep the bus as busy
# On an H200 with four slots kernels win at 32 KB each way (8.2 us a request in place of 11.6), and
# the engine at 128 KB (18.4 in place of 20.5); between the two nobody has looked.
_MOST_BYTES_BY_KERNEL = 64 << 10


def check_copies(copies: object) -> Copies:
    """Return who copies, as asked for.

    Raises:
        ValueError: for another word.
    """
    if copies == "kernel":
        return "kernel"
    if copies == "engine":
        return "engine"
    if copies == "auto":
        return "auto"
    raise ValueError(f"copies: expected 'auto', 'kernel' or 'engine', came {copies!r}")


def by_kernel(copies: Copies, nbytes: int) -> bool:
    """Return whether a kernel copies an array of this size.

    A memcpy node in front of kernels or behind them takes a change between engine and
    multiprocessors, which costs more than a small copy; the engine is what moves much.
    """
    return copies == "kernel" or (copies == "auto" and nbytes <= _MOST_BYTES_BY_KERNEL)


def add_send(
    graph: Graph, source: int, to: DeviceArray, *, targets: int = 0, kept: int = 0, count: int = 0
) -> Node:
    """Add a node that copies to the device from where a word in pinned memory points.

    Args:
        graph: where to.
        source: address of the word.
        to: an array without gaps.
        targets: address of words in pinned memory that the node copies to the device as well.
        kept: where to.
        count: how many.
    """
    args = (source, to.ptr, to.nbytes, targets, kept, count)
    node = graph.add_kernel_node(SEND_INPUT, *_launch_shape(to.nbytes), args)
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
    """Add a node that copies to where a word points, and signals the end.

    Args:
        graph: where to; keeping the memory alive is the caller's.
        from_: device address.
        target: address of the word, on the device or in pinned memory.
        nbytes: how much; with 0 the node only signals.
        deps: nodes it waits for.
        number: address of a device word that counts the launches.
        signal: address of a word in pinned memory that the count is copied to; 0 for none.
        arrived: a device word of 4 bytes that is 0, for this node alone.
    """
    args = (from_, target, nbytes, number, signal, arrived)
    grid, block = _launch_shape(nbytes) if nbytes else (1, 1)
    return graph.add_kernel_node(FETCH_RESULT, grid, block, args, deps=deps)


def _launch_shape(nbytes: int) -> tuple[int, int]:
    """Return blocks and threads of a block: a load a thread, in as few blocks as that takes."""
    units = -(-nbytes // _UNIT)
    threads = min(max(-(-units // 32) * 32, _LEAST_THREADS), _THREADS)
    return min(-(-units // threads), _MOST_BLOCKS), threads


# --- the twins -----------------------------------------------------------------------------------


def _send_input_twin(
    _launch: Launch,
    source: Pointer,
    to: Pointer,
    nbytes: int,
    targets: Pointer,
    kept: Pointer,
    count: int,
) -> None:
    if count:
        kept.view(count)[:] = targets.view(count)
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
