"""Which words of a captured graph belong to which buffer or scalar: found by comparing captures.

The same function is captured on its buffers, on them again, and on other buffers of the same
shapes; with a scalar also with other values of that. A word that moved exactly as a buffer moved,
each time, belongs to that buffer. What differs between captures on the same buffers is the
function's own: its temporaries, and bytes that nobody ever set. Whatever else moved cannot be
rebound, and is refused; but not before each capture was made several times more, since unset bytes
may be the same by chance.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from graphkit.compared import Again, Captures, check_same_launches
from graphkit.errors import RebindError
from graphkit.host_memory import upper_halves
from graphkit.runtime.protocol import NodeType
from graphkit.scalar_codes import encode, known_code, scalar_codes
from graphkit.snapshot import NodeState, is_address

__all__ = ["BufferWord", "ScalarWord", "find_words", "windows"]


_LEAST_HALF = 1 << 12  # of addresses of objects: systems put them high


class BufferWord(NamedTuple):
    """A word of the node ``number`` that holds a buffer's address, ``distance`` bytes further."""

    buffer: str
    number: int
    offset: int
    distance: int


class ScalarWord(NamedTuple):
    """A word that holds a scalar: ``codes`` are the types (of struct) that it may have."""

    scalar: str
    number: int
    offset: int
    codes: tuple[str, ...]


def windows(state: NodeState) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the pieces of a node's data: at most 8 bytes, of one parameter."""
    total = len(state.data)
    ends = sorted(
        {item.offset for item in state.parameters}
        | {item.offset + item.size for item in state.parameters}
        | {total}
    )
    start, at = 0, 0
    while start < total:
        while ends[at] <= start:
            at += 1
        end = min(start - start % 8 + 8, ends[at])
        yield start, end
        start = end


def _cells(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the pieces of at most 4 bytes of a window."""
    for at in range(start, end, 4):
        yield at, min(at + 4, end)


def _word(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


class _UnexplainedError(Exception):
    """Something differs that may yet turn out to differ by itself."""

    def __init__(self, error: RebindError) -> None:
        super().__init__(error)
        self.error = error


def find_words(
    captures: Captures, capture_again: Callable[[], Sequence[Again]], rounds: int = 4
) -> tuple[list[BufferWord], list[ScalarWord]]:
    """Find every word that follows a buffer or a scalar.

    Args:
        captures: all that there are.
        capture_again: makes each of them once more, for as long as something is unexplained.
        rounds: how often it may be called.

    Raises:
        RebindError: when a word moved as nothing explains, when a buffer or scalar has no word, or
            when the function launched differently on one of the captures.
        CaptureError, Exception: as ``capture_again``.
    """
    for left in reversed(range(rounds + 1)):
        try:
            return _find_words(captures)
        except _UnexplainedError as unexplained:
            if not left:
                raise unexplained.error from None
        captures = captures._replace(again=[*captures.again, *capture_again()])
    raise AssertionError("the last round raises or returns")


def _find_words(captures: Captures) -> tuple[list[BufferWord], list[ScalarWord]]:
    first = captures.first.snapshot
    for repeat in captures.repeats:
        check_same_launches(
            first, repeat, "fn is not deterministic: captured on the same buffers again,"
        )
    for moved in captures.moved:
        check_same_launches(first, moved.snapshot, "captured on other buffers of the same shapes,")
    for name, (_, others) in captures.scalars.items():
        for value, snapshot in others:
            check_same_launches(first, snapshot, f"captured with {name} = {value!r},")
    if captures.together is not None:
        check_same_launches(
            first, captures.together.snapshot, "captured with everything changed at once,"
        )
    for earlier, later in captures.again:
        check_same_launches(
            earlier, later, "fn is not deterministic: captured on the same buffers again,"
        )
    buffers: list[BufferWord] = []
    scalars: list[ScalarWord] = []
    for index in range(len(first.nodes)):
        search = _NodeSearch(captures, index)
        mine, theirs = [*search.buffer_words()], [*search.scalar_words()]
        search.check_together(mine, theirs)
        buffers += mine
        scalars += theirs
    _check_all_used(captures, buffers, scalars)
    return buffers, scalars


def _check_all_used(
    captures: Captures, buffers: Sequence[BufferWord], scalars: Sequence[ScalarWord]
) -> None:
    used = {word.buffer for word in buffers} | {word.scalar for word in scalars}
    for name in captures.first.addresses:
        if name not in used:
            raise RebindError(
                f"{name}: never used: no node follows this buffer. fn does not touch it, or keeps "
                "a reference to another one that it uses instead, or touches it on another stream "
                "or outside of CUDA"
            )
    for name in captures.scalars:
        if name not in used:
            raise RebindError(f"{name}: never used: no word of a node follows this scalar")


class _NodeSearch:
    """The same node in all captures."""

    def __init__(self, captures: Captures, index: int) -> None:
        self.captures = captures
        self.index = index
        self.state = captures.first.snapshot.nodes[index]
        self.data = self.state.data
        self.repeats = [repeat.nodes[index].data for repeat in captures.repeats]
        self.moved = [moved.snapshot.nodes[index].data for moved in captures.moved]
        self.by_scalar = {
            name: [snapshot.nodes[index].data for _, snapshot in others]
            for name, (_, others) in captures.scalars.items()
        }
        self._check_table()
        self.windows = [] if self._all_equal() else list(windows(self.state))
        self.own = self._own_cells()
        self.own_words = list(self._own_words())

    def _all_equal(self) -> bool:
        others = [*self.repeats, *self.moved, *chain.from_iterable(self.by_scalar.values())]
        if self.captures.together is not None:
            others.append(self.captures.together.snapshot.nodes[self.index].data)
        return all(data == self.data for data in others)

    def _own_cells(self) -> frozenset[int]:
        """Return the cells of 4 bytes that differ with the same arguments: the function's own."""
        pairs = [(self.data, data) for data in self.repeats]
        for earlier, later in self.captures.again:
            pairs.append((earlier.nodes[self.index].data, later.nodes[self.index].data))
        own = {
            at
            for start, end in self.windows
            for at, stop in _cells(start, end)
            if any(one[at:stop] != other[at:stop] for one, other in pairs)
        }
        for start, end in self.windows:
            # Of the address of a temporary, of a callback or an event, one half may be the same.
            if end - start == 8 and own & {start, start + 4}:
                whole = _word(self.data, start)
                handle = self.state.node.type is not NodeType.KERNEL
                temporary = self.captures.first.place_of(whole) is None
                if (
                    handle
                    or (temporary and is_address(self.captures.runtime, whole))
                    or (start in own and self._of_objects(start))
                ):
                    own |= {start, start + 4}
        return frozenset(own)

    def _of_objects(self, start: int) -> bool:
        """Return whether a word may be the address of an object on the host, each time.

        Of objects that a function makes, in bytes that nobody sets, the lower half differs from
        call to call, and the upper one only where memory of the process crosses 4 GB. What is
        known to be a number is none, nor what is small enough for a count, nor what moves with a
        scalar.
        """
        parameter = self.state.parameter_at(start)
        if parameter is not None and parameter.pointer is not None:
            return False
        halves = {_word(data, start) >> 32 for data in (self.data, *self.moved)}
        same = {_word(data, start) >> 32 for data in chain.from_iterable(self.by_scalar.values())}
        return (
            len(halves) > 1
            and min(halves) >= _LEAST_HALF
            and same <= {_word(self.data, start) >> 32}
            and halves <= upper_halves()
        )

    def _is_own(self, start: int, end: int) -> bool:
        """Return whether a byte between two places differs with the same arguments."""
        return any(at < end and start < at + 4 for at in self.own)

    def _check_table(self) -> None:
        """Refuse a copy of host memory that carries a buffer's address to the device."""
        state, captures = self.state, self.captures
        tables = [moved.snapshot.nodes[self.index].table for moved in captures.moved]
        if not state.table or not tables or len(set(map(len, [state.table, *tables]))) > 1:
            return
        for offset in range(0, len(state.table) - 7, 8):
            old = _word(state.table, offset)
            if all(_word(table, offset) == old for table in tables):
                continue
            if name := self._follows(old, [_word(table, offset) for table in tables]):
                raise state.error(
                    f"the host memory that it copies holds the address of {name} ({offset} bytes "
                    "in): a table of pointers, which no change of this node reaches"
                )

    def _own_words(self) -> Iterator[BufferWord]:
        """Yield the function's own words that point into a buffer.

        Nobody but the graph of the first capture is launched: what points into a buffer there is
        right when it goes on to, or was left over from something and is not read. Refused is a
        function that passes on a buffer at one time and other memory at another.
        """
        first = self.captures.first
        seen = [(data, first) for data in self.repeats]
        seen += zip(self.moved, self.captures.moved, strict=True)
        for start, end in self.windows:
            if end - start < 8 or not self._is_own(start, end):
                continue
            word = _word(self.data, start)
            mine = first.place_of(word)
            for data, there in seen:
                other = _word(data, start)
                theirs = there.place_of(other)
                if mine == theirs:
                    continue
                elsewhere = other if mine else word
                if (mine and theirs) or is_address(self.captures.runtime, elsewhere):
                    name, _ = mine or theirs or ("a buffer", 0)
                    raise self.state.error(
                        f"points into {name} on one capture and elsewhere on another one of the "
                        "same buffers: fn is not deterministic in its launches",
                        start,
                    )
            if mine:
                yield BufferWord(mine[0], self.index, start, mine[1])

    def _follows(self, old: int, new: Sequence[int]) -> str | None:
        """Return the buffer that moved as a word did, on each of the other captures."""
        for name, address in self.captures.first.addresses.items():
            if all(
                (word - old) % 2**64 == (moved.addresses[name] - address) % 2**64
                for word, moved in zip(new, self.captures.moved, strict=True)
            ):
                return name
        return None

    def buffer_words(self) -> Iterator[BufferWord]:
        """Yield the words that follow a buffer; refuse one that nothing explains."""
        explained: set[int] = set()
        for word in self.own_words:
            explained.update(range(word.offset, word.offset + 8))
            yield word
        moved = [
            (start, end)
            for start, end in self.windows
            if any(
                at not in self.own and data[at:stop] != self.data[at:stop]
                for at, stop in _cells(start, end)
                for data in self.moved
            )
        ]
        # Aligned words first; then those of packed structs, which straddle two of them.
        places = [start for start, _ in moved]
        straddling = [at for start in places for at in (start - 4, start + 4)]
        for offset in [*places, *straddling]:
            if explained.intersection(range(offset, offset + 8)) or not self._whole(offset):
                continue
            old = _word(self.data, offset)
            if all(_word(data, offset) == old for data in self.moved):
                continue
            name = self._follows(old, [_word(data, offset) for data in self.moved])
            if name is None:
                continue
            self._check_by_scalars(name, offset)
            explained.update(range(offset, offset + 8))
            distance = old - self.captures.first.addresses[name]
            yield BufferWord(name, self.index, offset, distance)
        for start, end in moved:
            for data in self.moved:
                for at in range(start, end):
                    cell = at - (at - start) % 4
                    if data[at] == self.data[at] or at in explained or cell in self.own:
                        continue
                    if not self._upper_half(cell, end):
                        raise _UnexplainedError(self._unexplained(start, end, data))
        self._check_kept(explained)

    def _upper_half(self, at: int, end: int) -> bool:
        """Return whether a cell is the upper half of a buffer's address, each time.

        No kernel can use that alone, and the lower half is not before it, or this would be a word
        that follows the buffer: it is left over from something, in bytes that nobody sets.
        """
        if end - at < 4:
            return False
        captures = [(self.data, self.captures.first)]
        captures += zip(self.moved, self.captures.moved, strict=True)
        halves = [(int.from_bytes(data[at : at + 4], "little"), there) for data, there in captures]
        return any(
            all(
                there.spans[name].low >> 32 <= half <= there.spans[name].high >> 32
                for half, there in halves
            )
            for name in self.captures.first.spans
        )

    def _whole(self, offset: int) -> bool:
        """Return whether 8 bytes at an offset are one parameter's and nobody's temporary."""
        if offset < 0 or offset + 8 > len(self.data):
            return False
        if self._is_own(offset, offset + 8):
            return False
        return self.state.parameter_at(offset) == self.state.parameter_at(offset + 7)

    def _check_by_scalars(self, name: str, offset: int) -> None:
        for scalar, datas in self.by_scalar.items():
            if any(data[offset : offset + 8] != self.data[offset : offset + 8] for data in datas):
                raise self.state.error(
                    f"an address of {name} that {scalar} moves, too: pass what {scalar} selects "
                    "as a buffer of its own",
                    offset,
                )

    def _unexplained(self, start: int, end: int, data: bytes) -> RebindError:
        names = ", ".join(self.captures.first.addresses)
        old, new = (int.from_bytes(item[start:end], "little") for item in (self.data, data))
        return self.state.error(
            f"{old:#x} became {new:#x} when the buffers were others, which is as none of {names} "
            "moved: fn passes on something that it made of an address, or memory of its own that "
            "depends on one",
            start,
        )

    def _check_kept(self, explained: set[int]) -> None:
        """Refuse a word that points into a first buffer and stayed when that was another one."""
        if not self.captures.moved or not self.captures.first.spans:
            return
        spans = self.captures.first.spans
        lowest = min(span.low for span in spans.values())
        highest = max(span.high for span in spans.values())
        for offset in range(0, len(self.data) - 7, 8):
            word = _word(self.data, offset)
            if not lowest <= word < highest or offset in explained:
                continue
            parameter = self.state.parameter_at(offset)
            if parameter is not None and parameter.pointer is False:
                continue  # a number, known to be none
            for name, span in spans.items():
                if span.holds(word):
                    raise self.state.error(
                        f"points into the first {name} also when fn is given another one: fn keeps "
                        "a reference of its own to it",
                        offset,
                    )

    # --- scalars ---------------------------------------------------------------------------------

    def scalar_words(self) -> Iterator[ScalarWord]:
        """Yield the words that follow a scalar; refuse one that changes in another way."""
        cells = {
            name: {
                at
                for start, end in self.windows
                for at, stop in _cells(start, end)
                if at not in self.own and any(data[at:stop] != self.data[at:stop] for data in datas)
            }
            for name, datas in self.by_scalar.items()
        }
        for name, changed in cells.items():
            others = set().union(*(cells[other] for other in cells if other != name))
            left = set(changed)
            while left:
                at = min(left)
                word = self._scalar_word(name, at, others)
                if word is None:
                    raise _UnexplainedError(self._not_the_scalar(name, at))
                size = max(struct.calcsize(code) for code in word.codes)
                left -= set(range(word.offset, word.offset + size))
                yield word

    def _scalar_word(self, name: str, at: int, others: set[int]) -> ScalarWord | None:
        first, rest = self.captures.scalars[name]
        pairs = [(first, self.data)]
        pairs += [(value, snap.nodes[self.index].data) for value, snap in rest]
        parameter = self.state.parameter_at(at)
        for offset in dict.fromkeys((at - at % 8, at)):
            codes = []
            for size in (4, 8):
                aligned = offset % size == 0 and offset <= at < offset + size
                if not aligned or others & {offset, offset + size - 4}:
                    continue
                if self._is_own(offset, offset + size):
                    continue
                if self.state.parameter_at(offset + size - 1) != parameter:
                    continue
                known = known_code(parameter, offset)
                codes += [
                    code
                    for code in scalar_codes(pairs, offset, size)
                    if known is None or code == known
                ]
            if codes:
                return ScalarWord(name, self.index, offset, tuple(codes))
        return None

    def check_together(self, buffers: Sequence[BufferWord], scalars: Sequence[ScalarWord]) -> None:
        """Refuse a word that is not what its buffers and scalars say when all of them change.

        One at a time, the product of two scalars looks like one of them when the other is 1.
        """
        together = self.captures.together
        if together is None:
            return
        data = together.snapshot.nodes[self.index].data
        expected = bytearray(self.data)
        for word in buffers:
            address = together.addresses[word.buffer] + word.distance
            expected[word.offset : word.offset + 8] = address.to_bytes(8, "little")
        for scalar in scalars:
            _, others = self.captures.scalars[scalar.scalar]
            raw = encode(scalar.codes[0], others[-1][0])
            assert raw is not None  # it was found with this value, too
            expected[scalar.offset : scalar.offset + len(raw)] = raw
        for start, end in windows(self.state) if bytes(expected) != data else ():
            if any(
                at not in self.own and expected[at:stop] != data[at:stop]
                for at, stop in _cells(start, end)
            ):
                raise _UnexplainedError(
                    self.state.error(
                        "when all buffers and scalars change at once, this is not what each of "
                        "them makes of it alone: fn computes it of several",
                        start,
                    )
                )

    def _not_the_scalar(self, name: str, at: int) -> RebindError:
        value, others = self.captures.scalars[name]
        for other, snap in others:
            data = snap.nodes[self.index].data
            if data[at : at + 4] != self.data[at : at + 4]:
                old, new = (int.from_bytes(d[at : at + 4], "little") for d in (self.data, data))
                return self.state.error(
                    f"{old:#x} became {new:#x} when {name} went from {value!r} to {other!r}, and "
                    f"is not {name} itself as a 4- or 8-byte integer or float: fn computes it on "
                    "the host; pass that as the scalar, or let the kernel compute it",
                    at,
                )
        raise AssertionError("a cell that changed differs in some capture")
