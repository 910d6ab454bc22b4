"""What a function returns, and how it is cut to the size of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from graphkit.arrays import describe, is_array

__all__ = ["CutAxis", "Returned"]


class CutAxis(NamedTuple):
    """An axis of a returned array that grows with a dimension of the buckets.

    Attributes:
        axis: of the array.
        dimension: index of the dimension.
        extent: of the array at the bucket's size.
        size: of the bucket.
    """

    axis: int
    dimension: int
    extent: int
    size: int


class Returned:
    """The value that a function returned: arrays in tuples, lists and dicts, or None.

    Args:
        value: what came back; leaves that are no arrays are handed on as they are.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self.arrays = list(_arrays(value))
        self.shapes = [describe(array).shape for array in self.arrays]
        # Which axes to cut is not known until the function has run at another size.
        self.axes: list[list[CutAxis]] = [[] for _ in self.arrays]

    def compare(self, other: Returned, dimension: int, size: int, other_size: int) -> None:
        """Learn which axes follow a dimension, from what came back at another size of it.

        Raises:
            ValueError: when another number of arrays or axes came back, or an extent that is no
                fixed multiple of the size, or one of two dimensions: no cut would be right.
        """
        if [len(shape) for shape in self.shapes] != [len(shape) for shape in other.shapes]:
            raise ValueError(
                f"fn: expected arrays of as many axes at size {other_size} as at {size}, came "
                f"shapes {other.shapes} and {self.shapes}"
            )
        for axes, mine, theirs in zip(self.axes, self.shapes, other.shapes, strict=True):
            for axis, (extent, other_extent) in enumerate(zip(mine, theirs, strict=True)):
                if extent == other_extent:
                    continue
                if extent * other_size != other_extent * size:
                    raise ValueError(
                        f"fn: expected axis {axis} of what it returns to be a multiple of the "
                        f"bucket's size, came {extent} at {size} and {other_extent} at {other_size}"
                    )
                if any(known.axis == axis for known in axes):
                    raise ValueError(
                        f"fn: expected axis {axis} of what it returns to follow one dimension, "
                        f"came one of {extent} that follows two: the padding lies in between"
                    )
                axes.append(CutAxis(axis, dimension, extent, size))

    def cut(self, extents: Sequence[int]) -> Any:
        """Return the value with its arrays cut to a request's extents, as views."""
        views = iter(
            [
                _cut(array, shape, axes, extents)
                for array, shape, axes in zip(self.arrays, self.shapes, self.axes, strict=True)
            ]
        )
        return _replace(self.value, lambda _array: next(views))


def _arrays(value: Any) -> Iterator[Any]:
    """Yield the arrays of a value in the order in which :func:`_replace` meets them."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _arrays(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _arrays(item)
    elif is_array(value):
        yield value


def _replace(value: Any, replaced: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _replace(item, replaced) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(_replace(item, replaced) for item in value)
    if isinstance(value, (tuple, list)):
        return type(value)(_replace(item, replaced) for item in value)
    return replaced(value) if is_array(value) else value


def _cut(
    array: Any, shape: tuple[int, ...], axes: Sequence[CutAxis], extents: Sequence[int]
) -> Any:
    wanted = list(shape)
    for axis in axes:
        wanted[axis.axis] = axis.extent * extents[axis.dimension] // axis.size
    if tuple(wanted) == shape:
        return array
    return array[tuple(slice(0, extent) for extent in wanted)]
