"""The sizes that an axis is padded to: given, ready-made, or learnt from what was asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Self

import numpy as np

__all__ = ["Buckets", "listed"]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Buckets:
    """The sizes that one axis of an input is padded to.

    Cannot be changed. Two of them are two dimensions, even with equal sizes; :meth:`along` gives
    the same dimension on another axis.

    Args:
        sizes: ints of 1 or more, strictly ascending.
        axis: axis of the input; a negative one counts from the end.
        max_padding_ratio: share of the padded size that may be padding, from 0 to 1; an extent
            that needs more does not fit. None accepts any.

    Attributes:
        dimension: what a Buckets and its relatives on other axes have in common, and no other has.

    Raises:
        TypeError: when a size or the axis is no int, or the ratio no number.
        ValueError: when there are no sizes, one is below 1, they do not ascend, or the ratio is
            outside 0 to 1.
    """

    sizes: tuple[int, ...]
    axis: int
    max_padding_ratio: float | None
    dimension: object

    def __init__(
        self, sizes: Iterable[int], axis: int = 0, *, max_padding_ratio: float | None = None
    ) -> None:
        values = {
            "sizes": _ascending(sizes),
            "axis": _int(axis, "axis"),
            "max_padding_ratio": _ratio(max_padding_ratio),
            "dimension": object(),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def powers_of_two(
        cls, largest: int, axis: int = 0, *, max_padding_ratio: float | None = None
    ) -> Self:
        """Return the powers of two up to ``largest``, and ``largest`` itself."""
        top = _positive(largest, "largest")
        sizes = {1 << bit for bit in range(top.bit_length())} | {top}
        return cls(sorted(sizes), axis, max_padding_ratio=max_padding_ratio)

    @classmethod
    def serving(
        cls, largest: int, axis: int = 0, *, max_padding_ratio: float | None = None
    ) -> Self:
        """Return the batch sizes that vLLM captures, up to ``largest``, and ``largest`` itself.

        They are 1, 2, 4, every 8th below 256, and every 16th from there: 51 sizes up to 512.
        """
        top = _positive(largest, "largest")
        sizes = {1, 2, 4, *range(8, 256, 8), *range(256, top + 1, 16)}
        held = {size for size in sizes if size <= top} | {top}
        return cls(sorted(held), axis, max_padding_ratio=max_padding_ratio)

    @classmethod
    def learn(
        cls,
        histogram: Mapping[int, int] | Iterable[int],
        k: int,
        axis: int = 0,
        *,
        max_padding_ratio: float | None = None,
    ) -> Self:
        """Return the k sizes that pad what was seen the least.

        Exact: no other k sizes that hold every extent add up to less padding. There are fewer than
        k where fewer different extents were seen, and the largest extent is always one of them.

        Args:
            histogram: how often each extent was seen, or the extents one by one. An extent with
                count 0 matters only as the largest, which must be held.
            k: how many sizes, 1 or more.
            axis: as for :class:`Buckets`.
            max_padding_ratio: as for :class:`Buckets`; the choice of the sizes ignores it.

        Raises:
            TypeError: when an extent, a count or k is no int.
            ValueError: when there is no extent, one is below 1, a count is below 0, or k below 1.
        """
        sizes = _least_padding(_counts(histogram), _positive(k, "k"))
        return cls(sizes, axis, max_padding_ratio=max_padding_ratio)

    def along(self, axis: int) -> Self:
        """Return the same dimension on another axis, of the same or of another input.

        A request must have one extent wherever the dimension appears: the batch of every input,
        or both axes of a square mask.
        """
        relative = copy(self)
        object.__setattr__(relative, "axis", _int(axis, "axis"))
        return relative

    def fit(self, extent: int) -> int | None:
        """Return the smallest size that holds an extent.

        Returns:
            The size; None when there is nothing to hold (an extent of 0), when no size is large
            enough, or when more than ``max_padding_ratio`` of it would be padding.
        """
        size = self.smallest(extent)
        if size is None or not extent:
            return None
        # Divided, not multiplied: the quotient is rounded just as a ratio typed in decimals is.
        limit = self.max_padding_ratio
        return size if limit is None or (size - extent) / size <= limit else None

    def smallest(self, extent: int) -> int | None:
        """Return the smallest size of at least ``extent``, however much padding; None if none."""
        place = bisect_left(self.sizes, extent)
        return self.sizes[place] if place < len(self.sizes) else None

    def __len__(self) -> int:
        return len(self.sizes)

    def __repr__(self) -> str:
        ratio = self.max_padding_ratio
        limit = "" if ratio is None else f", max_padding_ratio={ratio}"
        return f"Buckets([{listed(self.sizes)}], axis={self.axis}{limit})"


def listed(sizes: Sequence[int]) -> str:
    """Return sizes for a message of one line; of many only the first and the last few."""
    shown = [str(size) for size in sizes]
    if len(shown) > 10:
        shown[5:-3] = ["..."]
    return ", ".join(shown)


def _least_padding(counts: Mapping[int, int], k: int) -> list[int]:
    """Return at most k of the extents, the largest among them, that add up to least padding."""
    largest = max(counts)
    extents = sorted(extent for extent, count in counts.items() if count or extent == largest)
    # Sums over the first j extents, j from 0: of the counts, and of count times extent.
    seen = [0, *accumulate(counts[extent] for extent in extents)]
    total = [0, *accumulate(counts[extent] * extent for extent in extents)]
    # least[j] is the least padding of the first j extents: here with one size, the last of them.
    least = [0, *(extent * seen[j] - total[j] for j, extent in enumerate(extents, start=1))]
    rounds: list[list[int]] = []
    for _ in range(min(k, len(extents)) - 1):
        least, begins = _with_one_size_more(least, extents, seen, total)
        rounds.append(begins)
    sizes, end = [largest], len(extents)
    for begins in reversed(rounds):
        end = begins[end]
        if not end:  # fewer sizes do as well
            break
        sizes.append(extents[end - 1])
    return sizes[::-1]


def _with_one_size_more(
    least: Sequence[int], extents: Sequence[int], seen: Sequence[int], total: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the least padding of the first j extents, and where those of the last size begin.

    Extents i+1 to j, padded to e = extents[j-1], cost e * (seen[j] - seen[i]) - (total[j] -
    total[i]). The least over all i is therefore a minimum of lines in e, of slope -seen[i], through
    least[i] + total[i]. Slopes fall and e grows, so that a line enters the lower envelope once and
    leaves it once: one pass over the extents finds them all.
    """
    start = [padding + sum_ for padding, sum_ in zip(least, total, strict=True)]

    def is_hidden(left: int, line: int, right: int) -> bool:
        """Whether a line lies nowhere below both others; cross-multiplied to stay with ints."""
        by_right = (start[right] - start[left]) * (seen[line] - seen[left])
        return by_right <= (start[line] - start[left]) * (seen[right] - seen[left])

    envelope, fewer, begins = deque([0]), [0], [0]
    for j, e in enumerate(extents, start=1):
        padding = start[envelope[0]] - e * seen[envelope[0]]
        while len(envelope) > 1:
            following = start[envelope[1]] - e * seen[envelope[1]]
            if following > padding:
                break
            envelope.popleft()
            padding = following
        fewer.append(padding + e * seen[j] - total[j])
        begins.append(envelope[0])
        while len(envelope) > 1 and is_hidden(envelope[-2], envelope[-1], j):
            envelope.pop()
        envelope.append(j)
    return fewer, begins


def _counts(histogram: Mapping[int, int] | Iterable[int]) -> dict[int, int]:
    if isinstance(histogram, Mapping):
        counts = {
            _int(extent, "histogram", "ints"): _int(count, "histogram", "ints")
            for extent, count in histogram.items()
        }
    else:
        counts = Counter(
            _int(extent, "histogram", "ints") for extent in _items(histogram, "histogram")
        )
    if not counts:
        raise ValueError("histogram: expected one extent or more, came none")
    if min(counts) < 1:
        raise ValueError(f"histogram: expected extents of 1 or more, came {min(counts)}")
    if min(counts.values()) < 0:
        raise ValueError(f"histogram: expected counts of 0 or more, came {min(counts.values())}")
    return counts


def _ascending(sizes: object) -> tuple[int, ...]:
    given = tuple(_int(size, "sizes", "ints") for size in _items(sizes, "sizes"))
    if not given:
        raise ValueError("sizes: expected one size or more, came none")
    if given[0] < 1 or any(size >= after for size, after in pairwise(given)):
        raise ValueError(f"sizes: expected ascending ints of 1 or more, came {list(given)}")
    return given


def _ratio(ratio: object) -> float | None:
    if ratio is None:
        return None
    if not isinstance(ratio, (int, float, np.integer, np.floating)) or isinstance(ratio, bool):
        raise TypeError(f"max_padding_ratio: expected a number or None, came {ratio!r}")
    if not 0 <= ratio <= 1:
        raise ValueError(f"max_padding_ratio: expected 0 to 1, came {ratio}")
    return float(ratio)


def _items(values: object, argument: str) -> Iterable[Any]:
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise TypeError(f"{argument}: expected ints, came {values!r}")
    return values


def _int(value: object, argument: str, expected: str = "an int") -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{argument}: expected {expected}, came {value!r}")
    return int(value)


def _positive(value: object, argument: str) -> int:
    number = _int(value, argument)
    if number < 1:
        raise ValueError(f"{argument}: expected 1 or more, came {number}")
    return number
