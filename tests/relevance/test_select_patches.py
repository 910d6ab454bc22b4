import numpy as np
import pytest
from graphkit.kernels.relevance import select_patches
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import graphkit as gk


def find(run, poisoned, balance, k):
    indices, selected = poisoned(k, np.int32), poisoned(k)
    run(select_patches(gk.asarray(balance), indices, selected))
    return indices.get(), selected.get()


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    patches=st.integers(1, 1100),
    share=st.floats(0, 1),
    values=st.sampled_from([2, 9, 10**6]),
    missing=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@example(patches=1024, share=1.0, values=10**6, missing=0.0, seed=0)
@example(patches=1024, share=1.0, values=1, missing=0.5, seed=0)
def test_matches_a_full_sort(run, poisoned, reference, patches, share, values, missing, seed):
    k = max(1, round(share * patches))
    rng = np.random.default_rng(seed)
    balance = rng.integers(-values, values, patches).astype(np.float32)  # many are equal
    balance[rng.random(patches) < missing] = np.nan
    indices, selected = find(run, poisoned, balance, k)
    expected = reference.select(balance, k)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(selected, np.where(expected < 0, np.nan, balance[expected]))


def test_of_equal_balances_the_lower_index_comes_first(run, poisoned):
    balance = np.zeros(100, np.float32)
    balance[::2] = -0.0  # equals +0
    balance[70] = 1.0
    indices, _ = find(run, poisoned, balance, 100)
    assert indices.tolist() == [70, *range(70), *range(71, 100)]


def test_infinities_are_values_and_nan_is_none(run, poisoned):
    balance = np.array([np.nan, 1, -np.inf, np.inf, np.nan, -3], np.float32)
    indices, selected = find(run, poisoned, balance, 6)
    assert indices.tolist() == [3, 1, 5, 2, -1, -1]
    np.testing.assert_array_equal(selected, [np.inf, 1, -3, -np.inf, np.nan, np.nan])


def test_any_grid_does(run, poisoned, rng):
    balance = rng.standard_normal(333).astype(np.float32)
    indices, selected = poisoned(333, np.int32), poisoned(333)
    launch = select_patches(gk.asarray(balance), indices, selected)
    run(launch._replace(grid=(2, 1, 1), block=(96, 1, 1)))
    np.testing.assert_array_equal(selected.get(), np.sort(balance)[::-1])


def test_arguments_are_checked(runtime):
    balance = gk.zeros(8)
    with pytest.raises(ValueError, match=r"^indices: expected k of at most 8, the patches, came 9"):
        select_patches(balance, gk.zeros(9, np.int32), gk.zeros(9))
    with pytest.raises(ValueError, match=r"^indices: expected dtype int32, came int64"):
        select_patches(balance, gk.zeros(3, np.int64), gk.zeros(3))
    with pytest.raises(ValueError, match=r"^selected: expected shape \(3\), came \(4,\)"):
        select_patches(balance, gk.zeros(3, np.int32), gk.zeros(4))
