"""Races: nodes of a graph that touch the same bytes, and that no edge orders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graphkit.accesses import Access, condition_at
from graphkit.node import Node
from graphkit.touched import Touched

if TYPE_CHECKING:
    from graphkit.exec_nodes import ExecNodes
    from graphkit.graph import Graph

__all__ = ["Race", "find_races"]


@dataclass(frozen=True)
class Race:
    """Two nodes that touch the same bytes, at least one writing, with nothing to order them.

    ``str(race)`` is one line that says so, and how to mend it.

    Attributes:
        first: the node that was added first.
        second: the other one.
        first_name: what it is, such as ``"kernel axpy"`` or ``"memcpy"``, with its place.
        second_name: the same of the other.
        first_argument: the argument through which it touches the bytes; empty where none is known.
        second_argument: the same of the other.
        kind: what the order would protect, were the first ahead: ``"RAW"``, a read after a write,
            ``"WAR"``, a write after a read, or ``"WAW"``, a write after a write.
        start: address of the first byte that both touch. A condition counts as one byte at 2**64
            plus its handle, where no memory is.
        end: address behind the last.
    """

    first: Node
    second: Node
    first_name: str
    second_name: str
    first_argument: str
    second_argument: str
    kind: Literal["RAW", "WAR", "WAW"]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """How many bytes both touch."""
        return self.end - self.start

    def __str__(self) -> str:
        does = {"R": "reads", "W": "writes"}
        first, second = does[self.kind[2]], does[self.kind[0]]
        of_first = f" {self.first_argument}" if self.first_argument else ""
        of_second = f" {self.second_argument}" if self.second_argument else ""
        condition = condition_at(self.start)
        same = f"{self.nbytes} bytes [{self.start:#x}, {self.end:#x})"
        if condition is not None:
            same = f"condition {condition:#x}"
        return (
            f"{self.kind} race: {self.first_name} {first}{of_first} and {self.second_name} "
            f"{second}{of_second}, the same {same}, "
            "and nothing orders the two; call graph.add_dependency(race.first, race.second), or "
            'build the graph with edges="derived"'
        )


def find_races(graph: Graph, held: ExecNodes | None = None) -> tuple[Race, ...]:
    """Find unordered nodes that touch the same bytes, in a graph and in those inside of it.

    Args:
        graph: the graph.
        held: what an exec of it holds, to look at its arguments instead.
    """
    if held is None or held.taken_from is graph:
        return tuple(_races(Touched(graph, held)))
    return tuple(_races(Touched(graph, held, held.taken_from)))


def _races(touched: Touched) -> list[Race]:
    nodes, before = touched.nodes, touched.before
    widest: dict[tuple[int, int], Race] = {}
    for first, second, one, other in _overlaps(touched.accesses):
        if before[second] >> first & 1 or before[first] >> second & 1:
            continue
        race = Race(
            nodes[first],
            nodes[second],
            touched.names[first],
            touched.names[second],
            one.what,
            other.what,
            "WAW" if one.write and other.write else "RAW" if one.write else "WAR",
            max(one.start, other.start),
            min(one.end, other.end),
        )
        # One line says it for two nodes: that of the widest overlap.
        known = widest.get((first, second))
        if known is None or known.nbytes < race.nbytes:
            widest[first, second] = race
    found = [widest[pair] for pair in sorted(widest)]
    for inside in touched.inside:
        found += _races(inside)
    return found


def _overlaps(
    accesses: Sequence[Sequence[Access]],
) -> Iterator[tuple[int, int, Access, Access]]:
    """Yield each two accesses of different nodes that share bytes, at least one a write.

    The node that was added first comes first.
    """
    ordered = sorted(
        (item.start, place, item) for place, items in enumerate(accesses) for item in items
    )
    reads: list[tuple[int, Access]] = []
    writes: list[tuple[int, Access]] = []
    for start, place, item in ordered:
        reads = [entry for entry in reads if entry[1].end > start]
        writes = [entry for entry in writes if entry[1].end > start]
        for other, known in (*writes, *reads) if item.write else writes:
            if other < place:
                yield other, place, known, item
            elif other > place:
                yield place, other, item, known
        (writes if item.write else reads).append((place, item))
