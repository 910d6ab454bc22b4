"""Race detection: who touched which bytes, and what orders them.

Happens-before is kept as one bit set per piece of work: its ancestors. Work that the host has seen
done comes before anything the host submits later, so the sets start anew whenever the host has
seen everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from graphkit.errors import SimulationError
from graphkit.runtime.sim.memory import MemoryTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphkit.runtime.sim.work import Work

__all__ = ["AccessLog"]

# Bounds the size of the ancestor sets of a program that never waits for everything.
_GENERATION_LIMIT = 8192


class _Access(NamedTuple):
    work: Work
    start: int
    end: int
    write: bool


class AccessLog:
    """What the work of the current generation touched.

    A generation ends when the host has seen all its work done, or when it grows past a limit; work
    of different generations counts as ordered.
    """

    def __init__(self, memory: MemoryTable) -> None:
        self._memory = memory
        self._generation = 0
        self._next_index = 0
        self._observed = 0
        self._accesses: dict[int, list[_Access]] = {}

    def reserve(self, count: int) -> None:
        """Start a new generation if ``count`` more pieces would outgrow this one."""
        if self._next_index and self._next_index + count > _GENERATION_LIMIT:
            self._new_generation()

    def register(self, work: Work) -> None:
        """Give ``work`` its place: after its dependencies and after what the host saw done."""
        self.reserve(1) if self._next_index >= 2 * _GENERATION_LIMIT else None
        ancestors = self._observed
        generation = self._generation
        for dep in work.deps:
            if dep.generation == generation:
                ancestors |= dep.ancestors | (1 << dep.index)
        work.ancestors = ancestors
        work.generation = generation
        work.index = self._next_index
        self._next_index += 1

    def observe(self, works: Sequence[Work]) -> None:
        """Note that the host saw ``works`` done."""
        for work in works:
            if work.generation == self._generation:
                self._observed |= work.ancestors | (1 << work.index)
        if self._observed == (1 << self._next_index) - 1:
            self._new_generation()

    def observe_all(self) -> None:
        """Note that the host saw all work done."""
        self._new_generation()

    def check(self, work: Work) -> None:
        """Compare what ``work`` touched with what unordered work touched before it.

        Raises:
            SimulationError: the same bytes, at least one write, and nothing that orders the two.
        """
        if work.generation != self._generation:
            return
        for start, end, write in _merge(work.accesses):
            allocation = self._memory.find(start)
            place = allocation.address if allocation is not None else 0
            known = self._accesses.setdefault(place, [])
            kept = []
            for other in known:
                ordered = other.work is work or (work.ancestors >> other.work.index) & 1
                overlaps = other.start < end and start < other.end
                if overlaps and not ordered and (write or other.write):
                    raise SimulationError(self._describe(other, work, start, end, write))
                # Later work that conflicts with an access covered here conflicts with this one too.
                covered = start <= other.start and other.end <= end and (write or not other.write)
                if not (ordered and covered):
                    kept.append(other)
            kept.append(_Access(work, start, end, write))
            self._accesses[place] = kept

    def _describe(self, other: _Access, work: Work, start: int, end: int, write: bool) -> str:
        low, high = max(start, other.start), min(end, other.end)
        where = self._memory.describe(low)
        first = "writes" if other.write else "reads"
        second = "writes" if write else "reads"
        return (
            f"race: {other.work.describe()} {first} and {work.describe()} {second} the same "
            f"{high - low} bytes [0x{low:x}, 0x{high:x}) ({where}), and nothing orders the two; "
            "add an edge, put them on one stream, or let one wait for an event of the other"
        )

    def _new_generation(self) -> None:
        self._generation += 1
        self._next_index = 0
        self._observed = 0
        self._accesses.clear()


def _merge(accesses: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    """Join the touching ranges of one piece of work, reads and writes apart."""
    if len(accesses) < 2:
        return accesses
    merged: list[tuple[int, int, bool]] = []
    for wanted in (False, True):
        for start, end, write in sorted(a for a in accesses if a[2] is wanted):
            if merged and merged[-1][2] is write and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end), write)
            else:
                merged.append((start, end, write))
    return merged
