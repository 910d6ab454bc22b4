"""The bucket lattice: the smallest bucket that holds a request, or the reason why none does."""

from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphkit.buckets import Buckets
from graphkit.lattice import Fit, Lattice

BATCH = Buckets([1, 2, 4, 8])
LENGTH = Buckets([16, 64], axis=1, max_padding_ratio=0.5)

SERVED = Lattice({"x": [BATCH, LENGTH], "mask": (LENGTH.along(-1), LENGTH.along(-2)), "n": BATCH})


def served(batch, length):
    return {"x": (batch, length, 32), "mask": (length, length), "n": (batch,), "w": (32, 32)}


# --- what it is made of --------------------------------------------------------------------------


def test_dimensions_come_in_order_of_first_appearance():
    assert SERVED.dimensions == (BATCH, LENGTH)
    assert SERVED.axes_of("x") == ((0, 0), (1, 1))
    assert SERVED.axes_of("mask") == ((-1, 1), (-2, 1))
    assert SERVED.axes_of("n") == ((0, 0),)
    assert SERVED.axes_of("w") == ()


def test_equal_sizes_are_not_one_dimension():
    lattice = Lattice({"x": Buckets([1, 2]), "y": Buckets([1, 2])})
    assert len(lattice.dimensions) == 2
    assert lattice.fit({"x": (1,), "y": (2,)}).sizes == (1, 2)


def test_its_repr_is_one_line():
    assert repr(SERVED) == (
        "<Lattice x axis 0, n axis 0: 1, 2, 4, 8; x axis 1, mask axis -1, mask axis -2: 16, 64>"
    )


@pytest.mark.parametrize("buckets", [BATCH, [BATCH], None, "x"])
def test_buckets_come_by_name(buckets):
    with pytest.raises(TypeError, match=r"^buckets: expected Buckets by name of the input, came"):
        Lattice(buckets)


@pytest.mark.parametrize("given", [[1, 2, 4], None, 4, [], [BATCH, 4], {0: BATCH}, "abc"])
def test_what_is_no_buckets_is_refused(given):
    with pytest.raises(TypeError, match=r"^buckets: expected one or more Buckets for x, came"):
        Lattice({"x": given})


def test_names_are_text():
    with pytest.raises(TypeError, match=r"^buckets: expected names of inputs, came 0"):
        Lattice({0: BATCH})


def test_an_axis_has_one_buckets():
    with pytest.raises(ValueError, match=r"^buckets: expected one Buckets an axis, .* x axis 0"):
        Lattice({"x": [BATCH, Buckets([4])]})


def test_an_axis_counted_from_both_ends_has_one_buckets():
    lattice = Lattice({"x": [BATCH, LENGTH.along(-1)]})
    assert lattice.fit({"x": (3, 16)}).sizes == (4, 16)
    with pytest.raises(ValueError, match=r"^buckets: expected one Buckets an axis, .* x axis 0"):
        lattice.fit({"x": (3,)})


# --- a bucket ------------------------------------------------------------------------------------


def test_a_request_is_padded_along_every_dimension_wherever_it_appears():
    assert SERVED.fit(served(3, 40)) == Fit(
        shapes=served(4, 64),
        sizes=(4, 64),
        extents=(3, 40),
        reason=None,
        detail="x axis 0 padded from 3 to 4, x axis 1 padded from 40 to 64",
        elements=3 * 40 * 32 + 40 * 40 + 3 + 32 * 32,
        padded_elements=4 * 64 * 32 + 64 * 64 + 4 + 32 * 32,
    )


def test_a_request_of_exact_size_is_its_own_bucket():
    fit = SERVED.fit(served(8, 16))
    assert (fit.shapes, fit.sizes, fit.extents, fit.reason) == (
        served(8, 16),
        (8, 16),
        (8, 16),
        None,
    )
    assert fit.detail == "every extent is the size of a bucket"
    assert fit.padded_elements == fit.elements


def test_only_what_is_padded_is_told():
    assert SERVED.fit(served(3, 64)).detail == "x axis 0 padded from 3 to 4"


def test_a_lattice_without_dimensions_takes_anything_as_it_is():
    lattice = Lattice({})
    fit = lattice.fit({"x": (3, 5)})
    assert (fit.shapes, fit.sizes, fit.extents, fit.reason) == ({"x": (3, 5)}, (), (), None)
    assert list(lattice.points()) == [()]
    assert lattice.shapes_at((), {"x": (3, 5)}) == {"x": (3, 5)}


def test_what_was_asked_stays_as_it_is():
    shapes = served(3, 40)
    SERVED.fit(shapes).shapes["x"] = ()
    SERVED.fit(served(3, 16)).shapes.clear()
    assert shapes == served(3, 40)


@st.composite
def lattices(draw):
    """Draw a lattice of up to three dimensions over up to three inputs, and shapes for it."""
    sizes = st.sets(st.integers(1, 40), min_size=1, max_size=6).map(sorted)
    dimensions = [Buckets(draw(sizes)) for _ in range(draw(st.integers(1, 3)))]
    extents = [draw(st.integers(0, 45)) for _ in dimensions]
    buckets, shapes = {}, {}
    for name in ("x", "y", "z")[: draw(st.integers(1, 3))]:
        ndim = draw(st.integers(0, 4))
        shape = [draw(st.integers(0, 5)) for _ in range(ndim)]
        padded = []
        for axis in draw(st.sets(st.integers(0, ndim - 1))) if ndim else ():
            index = draw(st.integers(0, len(dimensions) - 1))
            padded.append(dimensions[index].along(axis - ndim * draw(st.booleans())))
            shape[axis] = extents[index]
        if padded:
            buckets[name] = padded
        shapes[name] = tuple(shape)
    return Lattice(buckets), shapes


@given(lattices())
def test_a_bucket_holds_the_request_and_no_smaller_one_does(drawn):
    lattice, shapes = drawn
    fit = lattice.fit(shapes)
    assert fit.elements == sum(map(prod, shapes.values()))
    assert fit.padded_elements == sum(map(prod, fit.shapes.values()))
    if any(0 in shape for shape in shapes.values()):
        assert fit.reason == "ineligible"
    holding = [
        point
        for point in lattice.points()
        if all(size >= extent for size, extent in zip(point, fit.extents, strict=True))
    ]
    if fit.reason is None:
        assert fit.sizes == holding[-1]  # the product grows with every size
        assert fit.shapes == lattice.shapes_at(fit.sizes, shapes)
        assert lattice.fit(fit.shapes).sizes == fit.sizes
        for name, shape in shapes.items():
            axes = {axis % len(shape) for axis, _ in lattice.axes_of(name)}
            for axis, (padded, own) in enumerate(zip(fit.shapes[name], shape, strict=True)):
                assert padded >= own if axis in axes else padded == own
    else:
        assert fit.reason == "ineligible" or (fit.reason == "over_max" and not holding)
        assert (fit.shapes, fit.sizes) == (shapes, fit.extents)


# --- no bucket -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "length", "reason", "detail"),
    [
        (9, 16, "over_max", "x axis 0 has 9, more than the largest bucket, 8"),
        (9, 65, "over_max", "x axis 0 has 9, more than the largest bucket, 8"),
        (3, 65, "over_max", "x axis 1 has 65, more than the largest bucket, 64"),
        (
            3,
            31,
            "padding_limit",
            "x axis 1 has 31: 33 of 64 would be padding, and max_padding_ratio is 0.5",
        ),
        (0, 16, "ineligible", "x has no elements: its shape is (0, 16, 32)"),
        (3, 0, "ineligible", "x has no elements: its shape is (3, 0, 32)"),
        # The first that applies, whichever the dimension.
        (9, 31, "over_max", "x axis 0 has 9, more than the largest bucket, 8"),
        (9, 0, "ineligible", "x has no elements: its shape is (9, 0, 32)"),
    ],
)
def test_a_request_without_a_bucket_stays_as_it_is_and_says_why(batch, length, reason, detail):
    shapes = served(batch, length)
    elements = sum(map(prod, shapes.values()))
    own = (batch, length)
    assert SERVED.fit(shapes) == Fit(shapes, own, own, reason, detail, elements, elements)


def test_the_limit_on_padding_does_not_hide_a_dimension_that_is_too_large():
    lattice = Lattice({"x": [Buckets([8], max_padding_ratio=0), Buckets([8], 1)]})
    assert lattice.fit({"x": (1, 9)}).reason == "over_max"


def test_half_the_bucket_may_be_padding_where_the_limit_is_half():
    assert SERVED.fit(served(3, 32)).sizes == (4, 64)


def test_an_input_without_elements_is_ineligible_whether_it_has_buckets_or_not():
    fit = SERVED.fit({**served(3, 16), "w": (32, 0)})
    assert (fit.reason, fit.detail) == ("ineligible", "w has no elements: its shape is (32, 0)")


# --- bad input -----------------------------------------------------------------------------------


def test_unknown_names_are_refused_and_the_known_ones_told():
    lattice = Lattice({"y": BATCH, "x": BATCH, "z": BATCH})
    for refusing in (lattice.fit, lambda shapes: lattice.shapes_at([4], shapes)):
        with pytest.raises(ValueError, match=r"^buckets: .*inputs \(x, w\), came y, z$"):
            refusing({"x": (3,), "w": (3,)})
    with pytest.raises(ValueError, match=r"\(there are none\), came x, y, z$"):
        lattice.fit({})


@pytest.mark.parametrize(("axis", "shape"), [(1, (3,)), (-2, (3,)), (0, ()), (2, (3, 4))])
def test_an_axis_that_an_input_lacks_is_refused(axis, shape):
    lattice = Lattice({"x": BATCH.along(axis)})
    for refusing in (lattice.fit, lambda shapes: lattice.shapes_at([4], shapes)):
        with pytest.raises(ValueError, match=f"^x: expected an axis {axis} for its buckets, came"):
            refusing({"x": shape})


def test_a_dimension_has_one_extent_and_both_inputs_are_named():
    with pytest.raises(
        ValueError,
        match=r"^n: expected 3 along axis 0, as x axis 0 has the same dimension, came 5$",
    ):
        SERVED.fit({**served(3, 16), "n": (5,)})


def test_a_dimension_has_one_extent_within_an_input_too():
    with pytest.raises(ValueError, match=r"^mask: expected 16 along axis -2, .* came 17$"):
        SERVED.fit({**served(3, 16), "mask": (17, 16)})


# --- points --------------------------------------------------------------------------------------


def test_points_are_all_choices_of_sizes_the_largest_first():
    lattice = Lattice({"x": [Buckets([1, 4]), Buckets([2, 3, 8], axis=1)]})
    assert list(lattice.points()) == [(4, 8), (4, 3), (4, 2), (1, 8), (1, 3), (1, 2)]


@given(lattices())
def test_every_bucket_is_a_point_once(drawn):
    lattice, _ = drawn
    points = list(lattice.points())
    assert sorted(points) == sorted(product(*(one.sizes for one in lattice.dimensions)))
    products = [prod(point) for point in points]
    assert products == sorted(products, reverse=True)


def test_shapes_at_takes_any_sizes_and_changes_nothing_else():
    assert SERVED.shapes_at((7, 5), served(1, 1)) == served(7, 5)


@pytest.mark.parametrize("sizes", [(), (1,), (1, 2, 3)])
def test_there_is_a_size_for_each_dimension(sizes):
    with pytest.raises(ValueError, match=r"^sizes: expected one for each of 2 dimensions, came"):
        SERVED.shapes_at(sizes, served(1, 1))
