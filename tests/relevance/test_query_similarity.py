import numpy as np
import pytest
from graphkit.kernels.relevance import query_similarity
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import graphkit as gk


def find(run, poisoned, features, query):
    similarity = poisoned(len(features))
    run(query_similarity(gk.asarray(features), gk.asarray(query), similarity))
    return similarity.get()


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    patches=st.integers(1, 300),
    width=st.integers(1, 300),
    scale=st.sampled_from([1e-3, 1.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
@example(patches=1024, width=256, scale=1.0, seed=0)
@example(patches=265, width=254, scale=1.0, seed=1)
def test_matches_float64(run, poisoned, reference, patches, width, scale, seed):
    rng = np.random.default_rng(seed)
    features = (rng.standard_normal((patches, width)) * scale).astype(np.float32)
    query = rng.standard_normal(width).astype(np.float32)
    found = find(run, poisoned, features, query)
    np.testing.assert_allclose(found, reference.similarity(features, query), rtol=0, atol=2e-6)


def test_the_same_the_opposite_across_and_nothing(run, poisoned):
    query = np.array([1, 2, 3, 4, 5], np.float32)
    features = np.stack([query * 7, -query / 3, np.float32([2, -1, 0, 0, 0]), query * 0])
    expected = [1, -1, 0, 0]
    np.testing.assert_allclose(find(run, poisoned, features, query), expected, atol=1e-6)
    np.testing.assert_array_equal(find(run, poisoned, features, query * 0), np.zeros(4))


def test_what_is_not_finite_makes_nan(run, poisoned, rng):
    features = rng.standard_normal((6, 36)).astype(np.float32)
    query = rng.standard_normal(36).astype(np.float32)
    features[1, 3], features[4, 35] = np.nan, np.inf
    found = find(run, poisoned, features, query)
    np.testing.assert_array_equal(np.isnan(found), np.isin(np.arange(6), [1, 4]))
    query[7] = np.nan
    assert np.isnan(find(run, poisoned, features, query)).all()


def test_arrays_off_the_grid_of_sixteen_bytes(run, poisoned, reference, rng):
    values = rng.standard_normal(1 + 7 * 64).astype(np.float32)
    query = rng.standard_normal(66).astype(np.float32)
    expected = reference.similarity(values[1:].reshape(7, 64), query[2:])
    memory, asked = gk.asarray(values), gk.asarray(query)
    similarity = poisoned(7)
    run(query_similarity(memory[1:].view((7, 64), np.float32), asked[2:], similarity))
    np.testing.assert_allclose(similarity.get(), expected, atol=2e-6)


def test_arguments_are_checked(runtime):
    features = gk.zeros((6, 8))
    with pytest.raises(ValueError, match=r"^query: expected shape \(8\), came \(9,\)"):
        query_similarity(features, gk.zeros(9), gk.zeros(6))
    with pytest.raises(ValueError, match=r"^similarity: expected dtype float32, came int32"):
        query_similarity(features, gk.zeros(8), gk.zeros(6, np.int32))
