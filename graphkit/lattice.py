"""The bucket lattice: which bucket a request falls into, over any number of dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Literal, NamedTuple, NoReturn

from graphkit.buckets import Buckets, listed

__all__ = ["Fit", "Lattice"]

Shape = tuple[int, ...]
_Reason = Literal["ineligible", "over_max", "padding_limit"]


@dataclass(frozen=True, slots=True)
class Fit:
    """The bucket of a request, or why it has none.

    A request without a bucket stays as it is: its shapes and sizes are then its own.

    Attributes:
        shapes: for each input its shape in the bucket; without Buckets, its own.
        sizes: for each dimension of the lattice, the bucket's size.
        extents: for each dimension, the request's.
        reason: None when there is a bucket; else ``"ineligible"`` (an input without elements),
            ``"over_max"`` (larger than every bucket) or ``"padding_limit"`` (more padding than
            ``max_padding_ratio``), the first that applies.
        detail: the same in a sentence, with names and numbers.
        elements: elements of all inputs together.
        padded_elements: elements of all inputs together in the bucket.
    """

    shapes: dict[str, Shape]
    sizes: tuple[int, ...]
    extents: tuple[int, ...]
    reason: _Reason | None
    detail: str
    elements: int
    padded_elements: int

    @property
    def padding_ratio(self) -> float:
        """Share of the padded inputs that is padding."""
        return (self.padded_elements - self.elements) / max(self.padded_elements, 1)

    def refused(self, own: dict[str, Shape], reason: _Reason, detail: str) -> Fit:
        """Return the fit of the same request without a bucket.

        Args:
            own: the shapes of its inputs as they came.
            reason: why it has none.
            detail: the same in a sentence.
        """
        return Fit(own, self.extents, self.extents, reason, detail, self.elements, self.elements)


class _Place(NamedTuple):
    """Where a dimension appears."""

    name: str
    axis: int
    dimension: int

    def __str__(self) -> str:
        return f"{self.name} axis {self.axis}"


class Lattice:
    """All the buckets of a function's inputs: one point for each choice of sizes.

    Cannot be changed; any number of threads may use it.

    Args:
        buckets: for each input that is padded, its Buckets, one for each padded axis. The same
            Buckets, or one made from it by :meth:`Buckets.along`, is one dimension wherever it
            appears.

    Attributes:
        dimensions: the Buckets of each dimension, in order of first appearance.

    Raises:
        TypeError: when they are no mapping from names to one or more Buckets.
        ValueError: when an input has two Buckets for one axis.
    """

    __slots__ = ("_axes", "_both_ends", "_firsts", "_places", "dimensions")

    def __init__(self, buckets: Mapping[str, Buckets | Sequence[Buckets]]) -> None:
        if not isinstance(buckets, Mapping):
            raise TypeError(f"buckets: expected Buckets by name of the input, came {buckets!r}")
        indexes: dict[object, int] = {}
        dimensions: list[Buckets] = []
        places: list[_Place] = []
        axes: dict[str, dict[int, int]] = {}
        for name, given in buckets.items():
            axes[name] = {}
            for one in _several(name, given):
                if one.axis in axes[name]:
                    raise _twice(name, one.axis)
                index = indexes.setdefault(one.dimension, len(dimensions))
                if index == len(dimensions):
                    dimensions.append(one)
                axes[name][one.axis] = index
                places.append(_Place(name, one.axis, index))
        self.dimensions = tuple(dimensions)
        self._axes = {name: tuple(of_input.items()) for name, of_input in axes.items()}
        self._places = tuple(places)
        # Written from the last, so that the first place of a dimension is what stays.
        firsts = {place.dimension: place for place in reversed(places)}
        self._firsts = tuple(firsts[index] for index in range(len(dimensions)))
        # Counted from both ends, two axes may turn out to be one once there is a shape.
        self._both_ends = tuple(
            name for name, of_input in axes.items() if min(of_input) < 0 <= max(of_input)
        )

    def axes_of(self, name: str) -> tuple[tuple[int, int], ...]:
        """Return the padded axes of an input, each with the index of its dimension."""
        return self._axes.get(name, ())

    def fit(self, shapes: Mapping[str, Shape]) -> Fit:
        """Return the smallest bucket that holds all inputs, or why there is none.

        Args:
            shapes: the shape of every input, those without Buckets too.

        Raises:
            ValueError: when an input with Buckets is missing or lacks the axis, or when a
                dimension has different extents in two places.
        """
        extents = self._extents(shapes)
        counts = [prod(shape) for shape in shapes.values()]
        elements = sum(counts)
        sizes: list[int] = []
        for buckets, extent in zip(self.dimensions, extents, strict=True):
            size = buckets.fit(extent)
            if size is None:
                break
            sizes.append(size)
        if len(sizes) < len(extents) or 0 in counts:
            own = tuple(extents)
            return Fit(dict(shapes), own, own, *self._refusal(shapes, own), elements, elements)
        if sizes == extents:
            padded, padded_elements = dict(shapes), elements
            detail = "every extent is the size of a bucket"
        else:
            padded = self.shapes_at(sizes, shapes)
            padded_elements = sum(map(prod, padded.values()))
            detail = self._padding(sizes, extents)
        return Fit(padded, tuple(sizes), tuple(extents), None, detail, elements, padded_elements)

    def points(self) -> Iterator[tuple[int, ...]]:
        """Yield the sizes of every bucket, one for each dimension; the largest product first."""
        every = product(*(buckets.sizes for buckets in self.dimensions))
        yield from sorted(every, key=lambda sizes: (prod(sizes), sizes), reverse=True)

    def shapes_at(self, sizes: Sequence[int], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return the shapes of all inputs at some sizes of the dimensions.

        Args:
            sizes: for each dimension the size; it may be one that no bucket has.
            shapes: the shape of every input; extents along the dimensions do not matter.

        Raises:
            ValueError: when there are more or fewer sizes than dimensions, or an input with
                Buckets is missing or lacks the axis.
        """
        if len(sizes) != len(self.dimensions):
            raise ValueError(
                f"sizes: expected one for each of {len(self.dimensions)} dimensions, came "
                f"{tuple(sizes)}"
            )
        placed = dict(shapes)
        for name, axes in self._axes.items():
            try:
                shape = list(shapes[name])
                for axis, dimension in axes:
                    shape[axis] = sizes[dimension]
            except (KeyError, IndexError):
                self._misfit(shapes)
            placed[name] = tuple(shape)
        return placed

    def _extents(self, shapes: Mapping[str, Shape]) -> list[int]:
        """Return the extent of each dimension, the same wherever it appears."""
        extents = [-1] * len(self.dimensions)
        try:
            for name, axis, dimension in self._places:
                extent = shapes[name][axis]
                if extents[dimension] == -1:
                    extents[dimension] = extent
                elif extents[dimension] != extent:
                    self._disagreement(shapes, dimension)
        except (KeyError, IndexError):
            self._misfit(shapes)
        for name in self._both_ends:
            ndim = len(shapes[name])
            seen = Counter(axis % ndim for axis, _ in self._axes[name])
            axis, count = seen.most_common(1)[0]
            if count > 1:
                raise _twice(name, axis)
        return extents

    def _misfit(self, shapes: Mapping[str, Shape]) -> NoReturn:
        missing = sorted(self._axes.keys() - shapes.keys())
        if missing:
            raise ValueError(
                f"buckets: expected names of inputs ({', '.join(shapes) or 'there are none'}), "
                f"came {', '.join(missing)}"
            )
        place = next(
            place
            for place in self._places
            if not -len(shapes[place.name]) <= place.axis < len(shapes[place.name])
        )
        raise ValueError(
            f"{place.name}: expected an axis {place.axis} for its buckets, came shape "
            f"{shapes[place.name]}"
        )

    def _disagreement(self, shapes: Mapping[str, Shape], dimension: int) -> NoReturn:
        first, *others = (place for place in self._places if place.dimension == dimension)
        extent = shapes[first.name][first.axis]
        other = next(place for place in others if shapes[place.name][place.axis] != extent)
        raise ValueError(
            f"{other.name}: expected {extent} along axis {other.axis}, as {first} has the same "
            f"dimension, came {shapes[other.name][other.axis]}"
        )

    def _refusal(self, shapes: Mapping[str, Shape], extents: Shape) -> tuple[_Reason, str]:
        for name, shape in shapes.items():
            if 0 in shape:
                return "ineligible", f"{name} has no elements: its shape is {shape}"
        over_limit = ""
        for place, buckets, extent in zip(self._firsts, self.dimensions, extents, strict=True):
            size = buckets.smallest(extent)
            if size is None:
                largest = buckets.sizes[-1]
                return "over_max", f"{place} has {extent}, more than the largest bucket, {largest}"
            if buckets.fit(extent) is None and not over_limit:
                over_limit = (
                    f"{place} has {extent}: {size - extent} of {size} would be padding, and "
                    f"max_padding_ratio is {buckets.max_padding_ratio}"
                )
        return "padding_limit", over_limit

    def _padding(self, sizes: Sequence[int], extents: Sequence[int]) -> str:
        return ", ".join(
            f"{place} padded from {extent} to {size}"
            for place, size, extent in zip(self._firsts, sizes, extents, strict=True)
            if size != extent
        )

    def __repr__(self) -> str:
        parts = []
        for dimension, buckets in enumerate(self.dimensions):
            places = [str(place) for place in self._places if place.dimension == dimension]
            parts.append(f"{', '.join(places)}: {listed(buckets.sizes)}")
        return f"<Lattice {'; '.join(parts)}>"


def _several(name: object, given: object) -> tuple[Buckets, ...]:
    if not isinstance(name, str):
        raise TypeError(f"buckets: expected names of inputs, came {name!r}")
    several = (given,) if isinstance(given, Buckets) else given
    if (
        not isinstance(several, Sequence)
        or not several
        or not all(isinstance(one, Buckets) for one in several)
    ):
        raise TypeError(f"buckets: expected one or more Buckets for {name}, came {given!r}")
    return tuple(several)


def _twice(name: str, axis: int) -> ValueError:
    return ValueError(f"buckets: expected one Buckets an axis, came two for {name} axis {axis}")
