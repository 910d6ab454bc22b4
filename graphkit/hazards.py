"""Which earlier nodes a node must wait for: hazards by byte ranges, without CUDA.

A read waits for the last write of any of its bytes, a write also for the reads since. That much is
remembered of each range and no more, so that adding a node costs what it touches, not how many
nodes there are. Sets of nodes are kept as the bits of an int.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from graphkit.accesses import Access

__all__ = ["Hazards", "members"]


class _Segment:
    """Who touched a range of bytes last: the writer, and the readers since."""

    __slots__ = ("end", "readers", "writer")

    def __init__(self, end: int, writer: int, readers: int) -> None:
        self.end = end
        self.writer = writer
        self.readers = readers


class Hazards:
    """The order of a graph's nodes, as far as hazards and explicit edges ask for it.

    Nodes are numbered from 0 as they are added.

    Attributes:
        before: for each node all that are ordered before it, as bits.
        direct: for each node those among them that an edge leads from, as bits.
    """

    __slots__ = ("_segments", "_starts", "before", "direct")

    def __init__(self) -> None:
        self.before: list[int] = []
        self.direct: list[int] = []
        # Disjoint segments by ascending address.
        self._starts: list[int] = []
        self._segments: list[_Segment] = []

    def copy(self) -> Hazards:
        """Return an independent copy."""
        copy = Hazards()
        copy.before, copy.direct = [*self.before], [*self.direct]
        copy._starts = [*self._starts]
        copy._segments = [_Segment(it.end, it.writer, it.readers) for it in self._segments]
        return copy

    def needed(self, accesses: Iterable[Access], given: int = 0) -> int:
        """Return which nodes the next one needs edges from, as bits.

        Args:
            accesses: what it touches.
            given: nodes that it waits for in any case, as bits.

        No node is among them that another one waits for: the transitive reduction.
        """
        wanted = given
        for start, end, write, _ in accesses:
            for place in self._overlapping(start, end):
                segment = self._segments[place]
                wanted |= segment.writer
                if write:
                    wanted |= segment.readers
        return self.reduced(wanted)

    def reduced(self, wanted: int) -> int:
        """Return the nodes of a set that no other of the set is ordered behind, as bits."""
        left, kept, implied = wanted, 0, 0
        # Later nodes first: most often they imply all that is left.
        while left:
            last = left.bit_length() - 1
            kept |= 1 << last
            implied |= self.before[last]
            left &= ~(implied | kept)
        return kept & ~implied

    def add(self, accesses: Iterable[Access], needed: int) -> int:
        """Add a node, behind what :meth:`needed` returned for it; return its number."""
        index = len(self.before)
        before = needed
        for other in members(needed):
            before |= self.before[other]
        self.before.append(before)
        self.direct.append(needed)
        self.touch(index, accesses)
        return index

    def touch(self, index: int, accesses: Iterable[Access]) -> None:
        """Note what a node touches, which is ordered behind all it must wait for."""
        bit, unordered = 1 << index, ~self.before[index]
        for start, end, write, _ in accesses:
            if write:
                self._replace(start, end, bit)
                continue
            for place in self._cut(start, end):
                segment = self._segments[place]
                # Who waits for this reader waits for the readers ahead of it.
                segment.readers = segment.readers & unordered | bit

    def is_before(self, first: int, second: int) -> bool:
        """Return whether a node is ordered before another."""
        return bool(self.before[second] >> first & 1)

    def order(self, first: int, second: int, *, edge: bool = True) -> list[tuple[int, int]]:
        """Order two nodes that nothing orders yet; return the edges that this makes superfluous.

        Args:
            first: the node ahead.
            second: the node that waits.
            edge: whether the edge itself is one that may become superfluous later.
        """
        gained = self.before[first] | 1 << first
        behind = [second]
        behind += [index for index, before in enumerate(self.before) if before >> second & 1]
        superfluous = []
        for index in behind:
            self.before[index] |= gained
            superfluous += [(other, index) for other in members(self.direct[index] & gained)]
            self.direct[index] &= ~gained
        if edge:
            self.direct[second] |= 1 << first
        return superfluous

    # --- the segments

    def _overlapping(self, start: int, end: int) -> range:
        """Return the places of the segments that share a byte with the range."""
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._segments[first].end <= start:
            first += 1
        return range(first, bisect_left(self._starts, end, first))

    def _replace(self, start: int, end: int, writer: int) -> None:
        """Make the range one segment with this writer and no readers."""
        places = self._overlapping(start, end)
        starts, segments = [start], [_Segment(end, writer, 0)]
        if places:
            first, last = self._segments[places[0]], self._segments[places[-1]]
            if self._starts[places[0]] < start:
                starts.insert(0, self._starts[places[0]])
                segments.insert(0, _Segment(start, first.writer, first.readers))
            if last.end > end:
                starts.append(end)
                segments.append(_Segment(last.end, last.writer, last.readers))
        self._starts[places.start : places.stop] = starts
        self._segments[places.start : places.stop] = segments

    def _cut(self, start: int, end: int) -> Sequence[int]:
        """Let segments begin and end where the range does, and fill its gaps; return their places.

        A gap is what nobody touched yet.
        """
        places = self._overlapping(start, end)
        if len(places) == 1:  # the usual case: a buffer is read as it was written
            only = self._segments[places.start]
            if self._starts[places.start] == start and only.end == end:
                return places
        starts: list[int] = []
        segments: list[_Segment] = []
        inside: list[int] = []

        def put(at: int, until: int, of: _Segment | None) -> None:
            if at >= until:
                return
            if at >= start and until <= end:
                inside.append(places.start + len(starts))
            starts.append(at)
            segments.append(_Segment(until, of.writer if of else 0, of.readers if of else 0))

        reached = start
        for place in places:
            at, segment = self._starts[place], self._segments[place]
            put(reached, at, None)
            put(at, min(start, segment.end), segment)
            put(max(at, start), min(end, segment.end), segment)
            put(max(at, end), segment.end, segment)
            reached = min(end, segment.end)
        put(reached, end, None)
        self._starts[places.start : places.stop] = starts
        self._segments[places.start : places.stop] = segments
        return inside


def members(bits: int) -> Iterator[int]:
    """Yield the numbers in a set of bits, in ascending order."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
