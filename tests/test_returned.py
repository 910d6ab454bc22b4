"""What a function returned: which axes to cut, and to what."""

from __future__ import annotations

from collections import namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphkit as gk
from graphkit.returned import CutAxis, Returned

Pair = namedtuple("Pair", "a b")


class Shaped:
    """An array of which only the shape matters: it is cut like NumPy's, and nothing is read."""

    def __init__(self, *shape):
        self.shape = shape

    @property
    def __cuda_array_interface__(self):
        return {"version": 3, "shape": self.shape, "typestr": "<f4", "data": (256, False)}

    def __getitem__(self, slices):
        return Shaped(*(part.stop for part in slices))


def compared(mine, theirs, size, other_size, dimension=0):
    returned = Returned(mine)
    returned.compare(Returned(theirs), dimension, size, other_size)
    return returned


def test_an_axis_that_follows_the_size_is_cut():
    returned = compared(Shaped(8, 3), Shaped(4, 3), 8, 4)
    assert returned.axes == [[CutAxis(0, 0, 8, 8)]]
    assert returned.cut((5,)).shape == (5, 3)


def test_whole_arrays_are_the_arrays_themselves():
    array, table = Shaped(8, 3), Shaped(8)
    returned = compared((array, table), (Shaped(4, 3), Shaped(8)), 8, 4)
    whole, same = returned.cut((8,))
    assert whole is array
    assert same is table
    assert returned.cut((2,))[1] is table


def test_an_axis_that_follows_two_dimensions_cannot_be_cut():
    returned = Returned(Shaped(8 * 16))
    returned.compare(Returned(Shaped(4 * 16)), 0, 8, 4)
    with pytest.raises(ValueError, match=r"axis 0 .* follow one dimension, came one of 128"):
        returned.compare(Returned(Shaped(8 * 8)), 1, 16, 8)


def test_without_an_array_nothing_is_changed():
    value = {"a": [1, "b", (None,)], "c": Pair(1, 2)}
    returned = Returned(value)
    assert returned.arrays == []
    cut = returned.cut((3,))
    assert cut == value
    assert type(cut["c"]) is Pair


def test_host_arrays_are_cut_like_others(runtime):
    array = gk.zeros((8, 2))
    returned = compared([array, None], [array[:4], None], 8, 4)
    part, nothing = returned.cut((3,))
    assert nothing is None
    assert (part.shape, part.ptr) == ((3, 2), array.ptr)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (Shaped(8), Shaped(4, 1)),
        (Shaped(8), (Shaped(4), Shaped(4))),
        (Shaped(8), None),
        ((Shaped(8), Shaped(2, 2)), (Shaped(2, 2), Shaped(8))),
    ],
)
def test_another_number_of_axes_cannot_be_compared(mine, theirs):
    with pytest.raises(ValueError, match="fn: expected arrays of as many axes at size 4 as at 8"):
        compared(mine, theirs, 8, 4)


def test_an_extent_that_is_no_multiple_cannot_be_cut():
    with pytest.raises(ValueError, match=r"axis 1 .* came 9 at 8 and 5 at 4"):
        compared(Shaped(2, 9), Shaped(2, 5), 8, 4)


@given(st.data())
def test_what_is_cut_has_the_shape_that_eager_gives(data):
    sizes = data.draw(st.lists(st.integers(2, 9), min_size=1, max_size=3))
    # Each axis is fixed, or a multiple of some dimension.
    axes = data.draw(
        st.lists(st.tuples(st.integers(-1, len(sizes) - 1), st.integers(1, 4)), max_size=4)
    )

    def eager(extents):
        return Shaped(*(times * (1 if at < 0 else extents[at]) for at, times in axes))

    returned = Returned({"x": eager(sizes)})
    for dimension, size in enumerate(sizes):
        smaller = data.draw(st.integers(1, size - 1))
        at = [*sizes[:dimension], smaller, *sizes[dimension + 1 :]]
        returned.compare(Returned({"x": eager(at)}), dimension, size, smaller)
    extents = [data.draw(st.integers(1, size)) for size in sizes]
    assert returned.cut(extents)["x"].shape == eager(extents).shape
