"""Capture a function several times: on its buffers, on them again, and on others like them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from graphkit.buffers import ALIGNMENT, Buffer
from graphkit.compared import Again, Captures, Moved
from graphkit.device_array import DeviceArray
from graphkit.errors import RebindError
from graphkit.forensics import capture_call
from graphkit.frameworks import PrivateMemory, draws_random_numbers, view_like
from graphkit.graph import Graph
from graphkit.snapshot import Snapshot, snapshot
from graphkit.stream import runtime_of
from graphkit.unset_bytes import with_other_unset_bytes
from graphkit.user_function import UserFunction

__all__ = ["CaptureAgain", "Captured", "capture_differently", "keep_capture", "scratch_places"]


class Captured(NamedTuple):
    """One capture: the graph, what the function returned, and the memory that it allocated."""

    graph: Graph
    result: Any
    memory: PrivateMemory

    def close(self) -> None:
        """Destroy the graph and give the memory back."""
        self.graph.close()
        self.memory.close()


def keep_capture(
    fn: UserFunction, stream: object, arguments: Mapping[str, object], *, seed: int = 0
) -> Captured:
    """Capture a function, with private memory for what it allocates.

    A capture that dies is made once more, to find out what broke it.

    Args:
        fn: the function.
        stream: the stream to capture on.
        arguments: its buffers and scalars by name.
        seed: unless 0, decides on what it finds where nobody sets any bytes.

    Raises:
        RebindError: when the function asks a generator of PyTorch's for random numbers.
        CaptureError: when the capture died.
        Exception: whatever the function raised.
    """
    memory = PrivateMemory(runtime=runtime_of(stream))
    try:
        with memory.allocating(stream):
            call = partial(fn, arguments, stream)
            if seed:
                call = partial(with_other_unset_bytes, call, seed)
            graph, result = capture_call(call, stream)
    except BaseException as error:
        memory.close()
        if draws_random_numbers(error):
            raise RebindError(
                f"{fn.name} draws random numbers from a CUDA generator of PyTorch's, which moves "
                "on in graphs that PyTorch itself launches only: draw them before, and pass them "
                "as a buffer"
            ) from error
        raise
    return Captured(graph, result, memory)


@contextmanager
def _while(what: str) -> Iterator[None]:
    """Add to whatever is raised what was going on."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This was raised while fn was captured {what}.")
        raise


def _look(
    fn: UserFunction, stream: object, arguments: Mapping[str, object], what: str, seed: int = 0
) -> Snapshot:
    """Capture a function once more, and keep nothing but the bytes."""
    with _while(what):
        captured = keep_capture(fn, stream, arguments, seed=seed)
    # What the first capture allocated is still held, so this one's must lie elsewhere; given back
    # at once, no more than two captures' memory is held at a time.
    try:
        return snapshot(captured.graph)
    finally:
        captured.close()


# The arguments of a capture, what is special about them, and what it was.
_Made = tuple[Mapping[str, object], str, Snapshot]


class CaptureAgain:
    """Makes captures once more, with other bytes where nobody sets any.

    It holds the other buffers until it is closed.
    """

    def __init__(self, fn: UserFunction, stream: object, made: list[_Made]) -> None:
        self._fn = fn
        self._stream = stream
        self._made = made
        self._seeds = count(1)

    def __call__(self) -> list[Again]:
        """Return each capture with another one of the same arguments."""
        return [
            Again(earlier, _look(self._fn, self._stream, arguments, what, next(self._seeds)))
            for arguments, what, earlier in self._made
        ]

    def close(self) -> None:
        """Let go of the buffers, although an error that was raised may keep this object."""
        self._made.clear()


def capture_differently(
    fn: UserFunction,
    stream: object,
    first: Captured,
    arrays: Mapping[str, object],
    buffers: Mapping[str, Buffer],
    scalars: Mapping[str, Sequence[object]],
) -> tuple[Captures, CaptureAgain]:
    """Capture a function again in every way that tells its words apart.

    Twice more on the same buffers, the second time at the very end, so that what changes from call
    to call shows; twice on other buffers, each moved by another distance; once for each further
    value of each scalar; and once with all of that changed.

    Args:
        fn: the function.
        stream: the stream to capture on.
        first: its first capture, on ``arrays`` and the first value of each scalar.
        arrays: the buffers by name.
        buffers: their layouts.
        scalars: the values of each scalar by name, two or more.

    Returns:
        The captures, and what makes all of them again; to be closed.

    Raises:
        RebindError: when a node's contents cannot be read back.
        CaptureError: when a capture died.
        Exception: whatever the function raised.
    """
    values = {name: given[0] for name, given in scalars.items()}
    addresses = {name: buffer.address for name, buffer in buffers.items()}
    origin = _moved(snapshot(first.graph), buffers, addresses)
    same = "a second time on the same buffers"
    made: list[_Made] = [({**arrays, **values}, same, origin.snapshot)]

    def look(arguments: Mapping[str, object], what: str) -> Snapshot:
        seen = _look(fn, stream, arguments, what)
        made.append((arguments, what, seen))
        return seen

    repeats = [_look(fn, stream, {**arrays, **values}, same)]
    moved = []
    others = dict(arrays)
    there: dict[str, int] = {}
    if buffers:
        # Other objects for the same memory: what is special about them must not be taken for what
        # is special about other memory.
        twins = {
            name: view_like(arrays[name], buffer.borrow(arrays[name]))
            for name, buffer in buffers.items()
        }
        made.append(({**twins, **values}, same, origin.snapshot))
        memory, places = scratch_places(buffers)
        for there in places:
            others = {
                name: view_like(arrays[name], buffer.over(memory, there[name]))
                for name, buffer in buffers.items()
            }
            what = "on other buffers of the same shapes"
            moved.append(_moved(look({**others, **values}, what), buffers, there))
    by_scalar: dict[str, tuple[object, list[tuple[object, Snapshot]]]] = {}
    for name, given in scalars.items():
        by_scalar[name] = given[0], []
        for value in given[1:]:
            seen_so = look({**arrays, **values, name: value}, f"with {name} = {value!r}")
            by_scalar[name][1].append((value, seen_so))
    together = None
    if len(scalars) + bool(buffers) > 1:
        last = {name: given[-1] for name, given in scalars.items()}
        what = "with other buffers and scalars at once"
        together = _moved(look({**others, **last}, what), buffers, there)
    repeats.append(_look(fn, stream, {**arrays, **values}, same))
    captures = Captures(first.graph.runtime, origin, repeats, moved, by_scalar, together)
    return captures, CaptureAgain(fn, stream, made)


def _moved(seen: Snapshot, buffers: Mapping[str, Buffer], addresses: Mapping[str, int]) -> Moved:
    spans = {name: buffer.span(addresses[name]) for name, buffer in buffers.items()}
    return Moved(seen, addresses, spans)


def scratch_places(buffers: Mapping[str, Buffer]) -> tuple[DeviceArray, list[dict[str, int]]]:
    """Return memory, and two places in it for each buffer, as well aligned as the buffer is.

    No two buffers move by the same distance, to neither place. The first place has the buffer's
    own remainder by 512, the second one is aligned no better than the buffer must be: a kernel
    that was chosen for more would differ. Nothing runs on this memory, so the two may overlap.
    """
    runtime = next(iter(buffers.values())).runtime
    layout = _lay_out(0, buffers)
    room = max(there[name] + buffer.high for there in layout for name, buffer in buffers.items())
    # The distances depend on where the memory is: its address is known when it is there.
    spare = 2 * ALIGNMENT * (2 + 4 * len(buffers) ** 2)
    memory = DeviceArray(room + spare, np.uint8, runtime=runtime)
    return memory, _lay_out(memory.ptr, buffers)


def _lay_out(base: int, buffers: Mapping[str, Buffer]) -> list[dict[str, int]]:
    step = 2 * ALIGNMENT
    first: dict[str, int] = {}
    second: dict[str, int] = {}
    distances: tuple[set[int], set[int]] = set(), set()
    end = base
    for number, (name, buffer) in enumerate(buffers.items()):
        address = end - buffer.low
        address += (buffer.address - address) % step
        # By twice its alignment, an address keeps that and changes what it is modulo more.
        shift = 2 * buffer.alignment if buffer.alignment < ALIGNMENT else 0
        if buffer.alignment == ALIGNMENT and not address % step:
            shift = ALIGNMENT
        there = address + shift + step * (number + 1)
        while address - buffer.address in distances[0] or there - buffer.address in distances[1]:
            address, there = address + step, there + step
        first[name], second[name] = address, there
        distances[0].add(address - buffer.address)
        distances[1].add(there - buffer.address)
        end = there + buffer.high
    return [first, second]
