"""Which host values a capture froze: found by capturing again with other values."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from graphkit.compared import Captures
from graphkit.differences import windows
from graphkit.rebind import check_arguments, check_scalars
from graphkit.recapture import capture_differently, keep_capture
from graphkit.runtime.protocol import NodeType, Runtime
from graphkit.scalar_codes import scalar_codes
from graphkit.snapshot import NodeState, Snapshot, is_address
from graphkit.stream import runtime_of
from graphkit.user_function import UserFunction

__all__ = ["Baked", "check_baked"]


@dataclass(frozen=True)
class Baked:
    """A host value that a capture froze: every launch of the graph will see the captured one.

    Attributes:
        name: the scalar that it follows; None for one that differs from call to call by itself,
            such as a seed or a counter.
        place: the node's place in the graph's order, a path where it is inside of a child graph;
            None when it is about the whole graph.
        kernel: the kernel's name, None for nodes of other kinds.
        what: the parameter, ``grid``, ``block`` or whatever else of the node differs.
        offset: the value's place in the parameter block in bytes, None for what is no argument.
        captured: what the graph holds, and what it held for another value of the scalar.
        rebindable: whether ``gk.bind(scalars=...)`` can change it.
    """

    name: str | None
    place: tuple[int, ...] | None
    kernel: str | None
    what: str
    offset: int | None
    captured: tuple[object, object]
    rebindable: bool = False

    def __str__(self) -> str:
        follows = "differs from call to call" if self.name is None else f"follows {self.name}"
        where = "the graph"
        if self.place is not None:
            kernel = "" if self.kernel is None else f" ({self.kernel})"
            where = f"node {'.'.join(map(str, self.place))}{kernel}"
        at = "" if self.offset is None else f" at {self.offset}"
        old, new = self.captured
        can = "; a scalar of bind() can change it" if self.rebindable else ""
        return f"{where}, {self.what}{at} {follows}: {old} or {new}{can}"


def check_baked(
    fn: Callable[..., Any],
    stream: object,
    *,
    scalars: Mapping[str, Sequence[object]] | None = None,
    **buffers: object,
) -> tuple[Baked, ...]:
    """Report every host value that a capture of a function would freeze.

    The function is captured several times, as by :func:`graphkit.bind`, and nothing of it runs.
    What differs between captures with different values of a scalar was made of that scalar; what
    differs between captures with the same arguments, and is no address, is a value that the
    function takes from elsewhere.

    Args:
        fn: called with the buffers and scalars by name, and with ``stream`` where it has a
            parameter of that name.
        stream: the stream to capture on.
        scalars: for each host value, of any type, two or more values of it.
        **buffers: the arrays of device memory that the function works on, by name.

    Returns:
        What was frozen, in the order of the nodes; empty when nothing was.

    Raises:
        TypeError, ValueError, CaptureError: as :func:`graphkit.bind`.
        RebindError: when a node's contents cannot be read back.
    """
    function = UserFunction(fn)
    given = check_scalars(scalars, buffers, numbers=False)
    check_arguments(function, stream, buffers, given)
    values = {name: several[0] for name, several in given.items()}
    first = keep_capture(function, stream, {**buffers, **values})
    try:
        # The same buffers each time: what follows them is none of the values asked for.
        captures, again = capture_differently(function, stream, first, buffers, {}, given)
        with closing(again):
            found = [*_of_itself(captures, runtime_of(stream))]
            if any([*_of_scalar(captures, name)] for name in given):
                captures = captures._replace(again=[*again(), *again()])
        for name in given:
            found += _of_scalar(captures, name)
    finally:
        first.close()
    # Several other values show the same thing.
    once = {(baked.name, baked.place, baked.what, baked.offset): baked for baked in reversed(found)}
    return tuple(sorted(once.values(), key=lambda baked: (baked.place or (), baked.offset or 0)))


def _of_itself(captures: Captures, runtime: Runtime) -> Iterator[Baked]:
    """Yield what differs with the same arguments and is no address."""
    first = captures.first.snapshot
    for repeat in captures.repeats:
        found = [*_launches(None, first, repeat)]
        yield from found
        if _comparable(first, repeat):
            for mine, theirs in zip(first.nodes, repeat.nodes, strict=True):
                if mine.node.type is not NodeType.KERNEL:
                    continue  # callbacks and events are new ones each time
                for start, end in _differing(mine, theirs):
                    raw = mine.data[start:end]
                    word = int.from_bytes(raw, "little")
                    if len(raw) < 8 or not is_address(runtime, word):
                        yield _word(None, mine, theirs, start, end, [])


def _of_scalar(captures: Captures, name: str) -> Iterator[Baked]:
    """Yield what differs with another value of a scalar."""
    first = captures.first.snapshot
    value, others = captures.scalars[name]
    same = [(first, repeat) for repeat in captures.repeats] + [*captures.again]
    same = [pair for pair in same if _comparable(*pair)]
    for other, snapshot in others:
        yield from _launches(name, first, snapshot)
        if not _comparable(first, snapshot):
            continue
        for number, (mine, theirs) in enumerate(zip(first.nodes, snapshot.nodes, strict=True)):
            differing = _differing(mine, theirs)
            # What differs with the same arguments follows nothing: addresses, unset bytes.
            own = {
                at
                for earlier, later in (same if differing else ())
                for start, end in _differing(earlier.nodes[number], later.nodes[number])
                for at in _halves(earlier.nodes[number], later.nodes[number], start, end)
            }
            for start, end in differing:
                pairs = [(value, mine.data), (other, theirs.data)]
                yield from _values(name, mine, theirs, start, end, pairs, own)


def _halves(mine: NodeState, theirs: NodeState, start: int, end: int) -> list[int]:
    """Return the places of the 4 bytes within 8 that differ."""
    return [at for at in range(start, end, 4) if mine.data[at : at + 4] != theirs.data[at : at + 4]]


def _values(
    name: str,
    mine: NodeState,
    theirs: NodeState,
    start: int,
    end: int,
    pairs: list[tuple[object, bytes]],
    own: set[int],
) -> Iterator[Baked]:
    """Yield the numbers in a piece of 8 bytes: one, or two of 4."""
    halves = _halves(mine, theirs, start, end)
    if own.isdisjoint(range(start, end)):
        whole = scalar_codes(pairs, start, 8) if end - start == 8 else []
        codes = {at: scalar_codes(pairs, at, 4) for at in halves if at + 4 <= end}
        if whole or not any(codes.values()):
            yield _word(name, mine, theirs, start, end, whole)
            return
    else:
        # One half of an address may be the same each time.
        word = int.from_bytes(mine.data[start:end], "little")
        if mine.kernel is None or is_address(mine.node.graph_handle.runtime, word):
            return
        halves = [at for at in halves if at not in own]
        codes = {at: scalar_codes(pairs, at, 4) for at in halves if at + 4 <= end}
    for at in halves:
        yield _word(name, mine, theirs, at, min(at + 4, end), codes.get(at, []))


def _word(
    name: str | None, mine: NodeState, theirs: NodeState, start: int, end: int, codes: list[str]
) -> Baked:
    old, new = (_shown(state, start, end, codes) for state in (mine, theirs))
    what = f"parameter {mine.name_at(start)}"
    return Baked(name, mine.place, mine.kernel, what, start, (old, new), bool(codes))


def _shown(state: NodeState, start: int, end: int, codes: list[str]) -> object:
    raw = state.data[start:end]
    if codes:
        value: object = struct.unpack(codes[0], raw)[0]
        return value
    return f"0x{int.from_bytes(raw, 'little'):x}"


def _launches(name: str | None, first: Snapshot, other: Snapshot) -> Iterator[Baked]:
    """Yield what differs about nodes as such."""
    if not _comparable(first, other):
        counts = len(first.nodes), len(other.nodes)
        yield Baked(name, None, None, "which nodes there are, and their order", None, counts)
        return
    for mine, theirs in zip(first.nodes, other.nodes, strict=True):
        for (what, old), (_, new) in zip(mine.fixed, theirs.fixed, strict=True):
            if old != new:
                captured = (mine.kernel, theirs.kernel) if what == "function" else (old, new)
                yield Baked(name, mine.place, mine.kernel, what, None, captured)


def _comparable(first: Snapshot, other: Snapshot) -> bool:
    """Return whether two captures have the same nodes and edges, whatever the nodes hold."""
    return first.edges == other.edges and (
        [(state.place, state.node.type) for state in first.nodes]
        == [(state.place, state.node.type) for state in other.nodes]
    )


def _differing(mine: NodeState, theirs: NodeState) -> list[tuple[int, int]]:
    """Return the pieces of a node's data that differ; none where the layouts do."""
    if mine.data == theirs.data or len(mine.data) != len(theirs.data):
        return []
    return [
        (start, end)
        for start, end in windows(mine)
        if mine.data[start:end] != theirs.data[start:end]
    ]
