import numpy as np
import pytest
from graphkit.kernels import argmax

import graphkit as gk


def find(run, poisoned, x):
    out = poisoned(len(x), np.int32)
    run(argmax(gk.asarray(x), out))
    return out.get()


@pytest.mark.parametrize(
    ("rows", "width"), [(1, 1), (2, 31), (3, 33), (4, 257), (7, 1024), (2, 1025), (1, 50001)]
)
def test_finds_the_largest(run, poisoned, rng, rows, width):
    x = (rng.standard_normal((rows, width)) - 5).astype(np.float32)
    np.testing.assert_array_equal(find(run, poisoned, x), x.argmax(axis=1))


def test_the_lowest_index_wins(run, poisoned, rng):
    x = rng.integers(-3, 4, (5, 999)).astype(np.float32)
    np.testing.assert_array_equal(find(run, poisoned, x), x.argmax(axis=1))
    zeros = np.array([[-1, -0.0, 0.0], [-1, 0.0, -0.0]], np.float32)
    np.testing.assert_array_equal(find(run, poisoned, zeros), [1, 1])


def test_nan_is_less_than_anything(run, poisoned):
    nan, inf = np.nan, np.inf
    x = np.array([[nan, -inf, nan], [nan, 1, 0], [nan, nan, nan], [-nan, 2, inf]], np.float32)
    np.testing.assert_array_equal(find(run, poisoned, x), [1, 1, 0, 2])


def test_arguments_are_checked(runtime):
    with pytest.raises(ValueError, match=r"^out: expected dtype int32, came int64"):
        argmax(gk.zeros((2, 8)), gk.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"^x: expected dtype float32, came int32"):
        argmax(gk.zeros((2, 8), np.int32), gk.zeros(2, np.int32))
