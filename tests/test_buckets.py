"""Buckets: the sizes that an axis is padded to, given, ready-made or learnt."""

from collections import Counter
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphkit.buckets import Buckets

size_lists = st.sets(st.integers(1, 300), min_size=1, max_size=20).map(sorted)


# --- sizes ---------------------------------------------------------------------------------------


def test_it_holds_what_it_was_given():
    buckets = Buckets(np.array([1, 2, 8]), axis=-1, max_padding_ratio=0.5)
    assert (buckets.sizes, buckets.axis, buckets.max_padding_ratio) == ((1, 2, 8), -1, 0.5)
    assert all(type(size) is int for size in buckets.sizes)
    assert len(buckets) == 3


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        Buckets([1, 2]).axis = 1


@pytest.mark.parametrize(
    ("buckets", "text"),
    [
        (Buckets([1, 2, 4]), "Buckets([1, 2, 4], axis=0)"),
        (Buckets([3], 1, max_padding_ratio=0.5), "Buckets([3], axis=1, max_padding_ratio=0.5)"),
        (Buckets.serving(512, -1), "Buckets([1, 2, 4, 8, 16, ..., 480, 496, 512], axis=-1)"),
    ],
)
def test_its_repr_is_one_line(buckets, text):
    assert repr(buckets) == text


@pytest.mark.parametrize(
    ("sizes", "came"),
    [
        ([], "expected one size or more, came none"),
        ([2, 1], r"expected ascending ints of 1 or more, came \[2, 1\]"),
        ([1, 2, 2], "expected ascending ints of 1 or more"),
        ([0, 1], "expected ascending ints of 1 or more"),
        ([-4, 8], "expected ascending ints of 1 or more"),
    ],
)
def test_sizes_that_are_none_or_unsorted_or_below_one_are_refused(sizes, came):
    with pytest.raises(ValueError, match=f"^sizes: {came}"):
        Buckets(sizes)


@pytest.mark.parametrize("sizes", [4, None, "124", b"124", [1.0, 2.0], [True, 2], ["1"], [None]])
def test_sizes_that_are_no_ints_are_refused(sizes):
    with pytest.raises(TypeError, match=r"^sizes: expected ints, came"):
        Buckets(sizes)


@pytest.mark.parametrize("axis", [0.0, None, True, "0", (0, 1)])
def test_an_axis_that_is_no_int_is_refused(axis):
    with pytest.raises(TypeError, match=r"^axis: expected an int, came"):
        Buckets([1], axis)
    with pytest.raises(TypeError, match=r"^axis: expected an int, came"):
        Buckets([1]).along(axis)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), float("inf"), 2])
def test_a_ratio_outside_0_to_1_is_refused(ratio):
    with pytest.raises(ValueError, match=r"^max_padding_ratio: expected 0 to 1, came"):
        Buckets([1], max_padding_ratio=ratio)


@pytest.mark.parametrize("ratio", ["0.5", True, [0.5], 1j])
def test_a_ratio_that_is_no_number_is_refused(ratio):
    with pytest.raises(TypeError, match=r"^max_padding_ratio: expected a number or None, came"):
        Buckets([1], max_padding_ratio=ratio)


@pytest.mark.parametrize("ratio", [0, 1, 0.25, np.float32(0.5), np.int64(1)])
def test_a_ratio_may_be_any_number(ratio):
    assert Buckets([1], max_padding_ratio=ratio).max_padding_ratio == ratio


# --- fitting -------------------------------------------------------------------------------------


@given(size_lists, st.integers(1, 310))
def test_it_fits_into_the_smallest_size_that_holds_it(sizes, extent):
    holding = [size for size in sizes if size >= extent]
    assert Buckets(sizes).fit(extent) == (min(holding) if holding else None)


@given(size_lists, st.integers(1, 310), st.integers(0, 100))
def test_the_ratio_is_the_share_of_the_size_that_is_padding(sizes, extent, hundredths):
    fitted = Buckets(sizes, max_padding_ratio=hundredths / 100).fit(extent)
    size = Buckets(sizes).fit(extent)
    allowed = size is not None and Fraction(size - extent, size) <= Fraction(hundredths, 100)
    assert fitted == (size if allowed else None)


def test_nothing_fits_nowhere():
    assert Buckets([1, 2]).fit(0) is None


# --- dimensions ----------------------------------------------------------------------------------


def test_along_is_the_same_dimension_on_another_axis():
    batch = Buckets([1, 2], max_padding_ratio=0.5)
    other = batch.along(-2)
    assert (other.axis, other.sizes, other.max_padding_ratio) == (-2, (1, 2), 0.5)
    assert other.dimension == batch.dimension == other.along(3).dimension
    assert batch.axis == 0


def test_two_buckets_are_two_dimensions():
    assert Buckets([1, 2]).dimension != Buckets([1, 2]).dimension
    assert len({Buckets([1, 2]).dimension, Buckets([1, 2]).dimension}) == 2


# --- ready-made ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (8, (1, 2, 4, 8)),
        (9, (1, 2, 4, 8, 9)),
        (np.int64(15), (1, 2, 4, 8, 15)),
    ],
)
def test_powers_of_two(largest, sizes):
    assert Buckets.powers_of_two(largest).sizes == sizes


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (4, (1, 2, 4)),
        (20, (1, 2, 4, 8, 16, 20)),
        (255, (1, 2, 4, *range(8, 256, 8), 255)),
        (256, (1, 2, 4, *range(8, 256, 8), 256)),
        (300, (1, 2, 4, *range(8, 256, 8), 256, 272, 288, 300)),
        (512, (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))),
    ],
)
def test_serving(largest, sizes):
    assert Buckets.serving(largest).sizes == sizes


def test_serving_up_to_512_is_vllms_51_sizes():
    assert len(Buckets.serving(512)) == 51


@pytest.mark.parametrize("make", [Buckets.powers_of_two, Buckets.serving])
def test_ready_made_ones_take_axis_and_ratio_and_an_int_from_1(make):
    buckets = make(4, -1, max_padding_ratio=0.5)
    assert (buckets.axis, buckets.max_padding_ratio) == (-1, 0.5)
    with pytest.raises(ValueError, match=r"^largest: expected 1 or more, came 0"):
        make(0)
    with pytest.raises(TypeError, match=r"^largest: expected an int, came 8\.0"):
        make(8.0)


# --- learnt --------------------------------------------------------------------------------------


def padding(counts, sizes):
    """Return what the sizes add to all that was seen."""
    return sum(
        count * (min(size for size in sizes if size >= extent) - extent)
        for extent, count in counts.items()
    )


def least_padding(counts, k):
    """Return the least padding that k sizes leave, by trying all."""
    largest = max(counts)
    others = [extent for extent in counts if extent != largest]
    return min(
        padding(counts, (*chosen, largest))
        for chosen in combinations(others, min(k, len(counts)) - 1)
    )


@given(
    st.dictionaries(st.integers(1, 60), st.integers(0, 9), min_size=1, max_size=9),
    st.integers(1, 10),
)
def test_no_other_sizes_pad_less(counts, k):
    sizes = Buckets.learn(counts, k).sizes
    assert len(sizes) <= k
    assert set(sizes) <= set(counts)
    assert sizes[-1] == max(counts)
    assert padding(counts, sizes) == least_padding(counts, k)


def by_quadratic_search(counts, k):
    """Return the least padding by the plain recurrence over all beginnings of the last size."""
    extents = sorted(counts)
    least = {0: 0}
    for _ in range(k):
        least = {
            j: min(
                padding_before + sum(counts[e] * (extents[j - 1] - e) for e in extents[i:j])
                for i, padding_before in least.items()
                if i <= j
            )
            for j in range(1, len(extents) + 1)
        } | {0: 0}
    return least[len(extents)]


@given(
    st.dictionaries(st.integers(1, 10**6), st.integers(1, 10**12), min_size=20, max_size=30),
    st.integers(2, 12),
)
def test_no_other_sizes_pad_less_of_many_extents_and_large_counts(counts, k):
    assert padding(counts, Buckets.learn(counts, k).sizes) == by_quadratic_search(counts, k)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 6))
def test_extents_one_by_one_are_their_histogram(extents, k):
    learnt = Buckets.learn(iter(extents), k)
    assert learnt.sizes == Buckets.learn(Counter(extents), k).sizes
    assert learnt.sizes == Buckets.learn(np.array(extents), k).sizes


def test_where_fewer_extents_were_seen_there_are_fewer_sizes():
    assert Buckets.learn({7: 3, 2: 5}, 9, axis=1, max_padding_ratio=0.5).sizes == (2, 7)


def test_an_extent_that_was_not_seen_counts_only_as_the_largest():
    assert Buckets.learn({2: 5, 3: 0, 9: 0}, 3).sizes == (2, 9)
    assert Buckets.learn({2: 0, 9: 0}, 3).sizes == (9,)


def test_it_learns_from_thousands_of_extents():
    counts = {extent: 1 + extent * 7919 % 1000 for extent in range(1, 4097)}
    learnt = Buckets.learn(counts, 64)
    even = range(64, 4097, 64)
    assert len(learnt) == 64
    assert padding(counts, learnt.sizes) <= padding(counts, even)


def test_learnt_ones_take_axis_and_ratio():
    buckets = Buckets.learn([1, 5], 2, -1, max_padding_ratio=0.25)
    assert (buckets.axis, buckets.max_padding_ratio) == (-1, 0.25)


@pytest.mark.parametrize(
    ("histogram", "came"),
    [
        ({}, "expected one extent or more, came none"),
        ([], "expected one extent or more, came none"),
        ({0: 3, 4: 1}, "expected extents of 1 or more, came 0"),
        ([-2], "expected extents of 1 or more, came -2"),
        ({4: -1}, "expected counts of 0 or more, came -1"),
    ],
)
def test_a_histogram_of_nothing_is_refused(histogram, came):
    with pytest.raises(ValueError, match=f"^histogram: {came}"):
        Buckets.learn(histogram, 2)


@pytest.mark.parametrize("histogram", [5, "55", [1.5], {2: 0.5}, {"2": 1}, [[1, 2]], None])
def test_a_histogram_of_anything_but_ints_is_refused(histogram):
    with pytest.raises(TypeError, match=r"^histogram: expected ints, came"):
        Buckets.learn(histogram, 2)


def test_k_must_be_an_int_from_1():
    with pytest.raises(ValueError, match=r"^k: expected 1 or more, came 0"):
        Buckets.learn([1], 0)
    with pytest.raises(TypeError, match=r"^k: expected an int, came 2\.0"):
        Buckets.learn([1], 2.0)
