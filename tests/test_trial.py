"""A bucket run both ways: how results are compared. (How a pool asks: test_exec_pool_warm.py.)"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import graphkit as gk
from graphkit.trial import Tolerance, answers, first_difference

pytestmark = pytest.mark.alone

TIGHT = Tolerance()


def arrays(*values, dtype=np.float32):
    return {f"a{place}": np.asarray(value, dtype) for place, value in enumerate(values)}


def test_what_is_equal_has_no_difference():
    assert first_difference({}, {}, TIGHT) == ""
    assert first_difference(arrays([1, 2], 3), arrays([1, 2], 3), TIGHT) == ""


def test_the_first_that_differs_is_named():
    assert first_difference(arrays([1, 2], 3, 4), arrays([1, 2], 5, 6), TIGHT) == "a1"


def test_arrays_of_other_shapes_differ():
    # NumPy would compare each element with the one.
    assert first_difference(arrays([1, 1]), arrays([1]), TIGHT) == "a0"
    assert first_difference(arrays([1, 1]), arrays([[1], [1]]), TIGHT) == "a0"


def test_what_only_one_side_has_is_a_difference():
    assert first_difference(arrays(1, 2), arrays(1), TIGHT) == "a1"
    assert first_difference(arrays(1), arrays(1, 2), TIGHT) == "a1"


def test_nan_equals_nan_and_infinity_itself():
    odd = [np.nan, np.inf, -np.inf]
    assert first_difference(arrays(odd), arrays(odd), TIGHT) == ""
    assert first_difference(arrays(odd), arrays([np.nan, np.inf, np.inf]), TIGHT) == "a0"
    assert first_difference(arrays(odd), arrays([0, np.inf, -np.inf]), TIGHT) == "a0"
    for array in (arrays(odd), arrays([np.nan])):
        assert first_difference(array, array, TIGHT, other_kernels=True) == ""


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.int8, np.uint64, np.float16, ml_dtypes.bfloat16, np.complex64]
)
def test_every_dtype_can_be_compared(dtype):
    one, other = arrays([1, 0, 1], dtype=dtype), arrays([1, 1, 1], dtype=dtype)
    for other_kernels in (False, True):
        assert first_difference(one, one, TIGHT, other_kernels=other_kernels) == ""
        assert first_difference(one, other, TIGHT, other_kernels=other_kernels) == "a0"


@pytest.mark.parametrize("big", [100_000, 2**62])
def test_integers_are_compared_exactly_whatever_their_size(big):
    one, other = (arrays([value], dtype=np.int64) for value in (big, big + 1))
    assert first_difference(one, other, TIGHT) == "a0"
    assert first_difference(one, other, TIGHT, other_kernels=True) == "a0"


def test_the_tolerance_is_numpys():
    one, other = arrays([1000.0, 0.0]), arrays([1001.0, 0.0])
    assert first_difference(one, other, TIGHT) == "a0"
    assert first_difference(one, other, Tolerance(rtol=1e-2)) == ""
    assert first_difference(one, other, Tolerance(atol=2)) == ""


@pytest.mark.parametrize(
    ("dtype", "near", "far"),
    [(np.float64, 1e-9, 1e-4), (np.float32, 1e-4, 1e-2), (ml_dtypes.bfloat16, 0.03, 0.5)],
)
def test_other_kernels_may_round_otherwise(dtype, near, far):
    one = arrays([100, 1, 0], dtype=dtype)
    for share, wanted in ((near, ""), (far, "a0")):
        # What cancels out to 0 is as far off as what it came from.
        other = arrays([100 * (1 + share), 1, 100 * share], dtype=dtype)
        assert first_difference(one, other, TIGHT, other_kernels=True) == wanted


def test_answers_are_copies_of_arguments_and_results(runtime):
    x, y = gk.asarray([1.0, 2.0]), gk.asarray([3])
    found = answers({"x": x}, {"y": (y, None), "x": x}, runtime)
    assert {name: array.tolist() for name, array in found.items()} == {
        "x": [1.0, 2.0],
        "returned[0]": [3],
        "returned[1]": [1.0, 2.0],
    }
    x.set([5.0, 6.0])
    assert found["x"].tolist() == [1.0, 2.0]
