"""The captures of one function that are compared, and whether they launched the same nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from graphkit.counts import counted
from graphkit.errors import RebindError
from graphkit.runtime.protocol import Runtime
from graphkit.snapshot import Snapshot

__all__ = ["Again", "Captures", "Moved", "Span", "check_same_launches"]


class Span(NamedTuple):
    """The bytes of a buffer.

    Attributes:
        low: the first byte.
        high: behind the last byte.
        axes: (distance in bytes, elements) of each axis, the widest first; empty for a buffer
            without gaps, or of axes that are not nested, which counts as all of its span.
        itemsize: bytes of an element.
    """

    low: int
    high: int
    axes: tuple[tuple[int, int], ...] = ()
    itemsize: int = 1

    def holds(self, address: int) -> bool:
        """Return whether an address is that of a byte of an element, not of a gap."""
        if not self.low <= address < self.high:
            return False
        rest = address - self.low
        for step, extent in self.axes:
            rest -= min(rest // step, extent - 1) * step
        return not self.axes or rest < self.itemsize


class Moved(NamedTuple):
    """A capture on other buffers: where each lay."""

    snapshot: Snapshot
    addresses: Mapping[str, int]
    spans: Mapping[str, Span]

    def place_of(self, word: int) -> tuple[str, int] | None:
        """Return the buffer that a word points into, and how far from its address."""
        for name, span in self.spans.items():
            if span.holds(word):
                return name, word - self.addresses[name]
        return None


class Again(NamedTuple):
    """A capture with the arguments of an earlier one, and that."""

    earlier: Snapshot
    later: Snapshot


class Captures(NamedTuple):
    """All captures of one function.

    Attributes:
        runtime: the runtime of all of them.
        first: the one that will be rebound.
        repeats: on the same buffers, with the same scalars.
        moved: on other buffers.
        scalars: for each scalar, its value in ``first``, and others with their captures.
        together: on other buffers and with the last value of each scalar; None where there are
            not two things to change.
        again: captures made again, whichever it was, with other bytes where nobody sets any.
    """

    runtime: Runtime
    first: Moved
    repeats: Sequence[Snapshot]
    moved: Sequence[Moved]
    scalars: Mapping[str, tuple[object, Sequence[tuple[object, Snapshot]]]]
    together: Moved | None = None
    again: Sequence[Again] = ()


def check_same_launches(first: Snapshot, other: Snapshot, when: str) -> None:
    """Refuse a capture whose nodes or edges are others than those of the first one.

    Args:
        first: the capture that will be rebound.
        other: another capture of the same function.
        when: what was different about it, for the message.

    Raises:
        RebindError: naming the first node that differs.
    """
    for mine, theirs in zip(first.nodes, other.nodes, strict=False):
        if mine.place != theirs.place or mine.node.type is not theirs.node.type:
            raise mine.error(f"{when} it is {theirs}, so that no node can be rebound")
        changed = [
            f"{name} {old} became {new}"
            for (name, old), (_, new) in zip(mine.fixed, theirs.fixed, strict=True)
            if old != new
        ]
        if changed:
            kernel = "" if mine.kernel == theirs.kernel else f", kernel {theirs.kernel}"
            raise mine.error(f"{when} {', '.join(changed)}{kernel}, which cannot be rebound")
    if len(first.nodes) != len(other.nodes):
        raise RebindError(
            f"fn was captured as {counted(len(first.nodes), 'node')}, and {when} as "
            f"{len(other.nodes)}"
        )
    if first.edges != other.edges:
        place = max(edge[1] for edge in first.edges ^ other.edges)
        node = next(node for node in first.nodes if node.place == place)
        raise node.error(f"{when} it waits for other nodes")
