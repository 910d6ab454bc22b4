import numpy as np
import pytest
from graphkit.kernels import top_k

import graphkit as gk


def find(run, poisoned, x, k):
    values, indices = poisoned((len(x), k)), poisoned((len(x), k), np.int32)
    run(top_k(gk.asarray(x), values, indices))
    return values.get(), indices.get()


@pytest.mark.parametrize(
    ("rows", "width", "k"),
    [(1, 1, 1), (2, 33, 33), (3, 100, 1), (4, 257, 10), (2, 1500, 64), (1, 5000, 50)],
)
def test_matches_a_full_sort(run, poisoned, rng, rows, width, k):
    x = rng.standard_normal((rows, width)).astype(np.float32)
    values, indices = find(run, poisoned, x, k)
    expected = np.flip(np.argsort(x, axis=1), axis=1)[:, :k]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, axis=1))


def test_equal_values_come_in_the_order_of_their_index(run, poisoned, rng):
    x = rng.integers(-2, 3, (3, 700)).astype(np.float32)
    x[x == 0] *= rng.choice([-1.0, 1.0], np.count_nonzero(x == 0))  # -0 equals +0
    _, indices = find(run, poisoned, x, 650)
    expected = [sorted(range(700), key=lambda i, row=row: (-row[i], i))[:650] for row in x]
    np.testing.assert_array_equal(indices, expected)


def test_nan_comes_last_and_infinities_at_the_ends(run, poisoned):
    x = np.array([[np.nan, 1, -np.inf, np.inf, np.nan, -3]], np.float32)
    values, indices = find(run, poisoned, x, 6)
    np.testing.assert_array_equal(indices, [[3, 1, 5, 2, 0, 4]])
    np.testing.assert_array_equal(values, x[:, indices[0]])


def test_arguments_are_checked(runtime):
    x, values = gk.zeros((2, 8)), gk.zeros((2, 3))
    with pytest.raises(
        ValueError, match=r"^values: expected k of at most 8, the width of x, came 9"
    ):
        top_k(x, gk.zeros((2, 9)), values)
    with pytest.raises(ValueError, match=r"^values: expected shape \(2, k\), came \(1, 3\)"):
        top_k(x, gk.zeros((1, 3)), values)
    with pytest.raises(ValueError, match=r"^indices: expected dtype int32, came float32"):
        top_k(x, values, values)
