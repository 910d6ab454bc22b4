import numpy as np
import pytest
from graphkit.kernels.relevance import feature_entropy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import graphkit as gk


def find(run, poisoned, features):
    entropy = poisoned(len(features))
    run(feature_entropy(gk.asarray(features), entropy))
    return entropy.get()


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    patches=st.integers(1, 300),
    width=st.integers(1, 300),
    scale=st.sampled_from([0.0, 0.1, 3.0, 50.0]),
    seed=st.integers(0, 2**32 - 1),
)
@example(patches=1024, width=256, scale=1.0, seed=0)
@example(patches=133, width=258, scale=1.0, seed=1)
def test_matches_float64(run, poisoned, reference, patches, width, scale, seed):
    drawn = np.random.default_rng(seed).standard_normal((patches, width)) * scale
    features = drawn.astype(np.float32)
    found = find(run, poisoned, features)
    np.testing.assert_allclose(found, reference.entropy(features), rtol=2e-5, atol=2e-5)


def test_equal_features_are_the_most_even_and_one_alone_the_least(run, poisoned):
    features = np.zeros((3, 256), np.float32)
    features[1] = 7.5
    features[2, 9] = 200.0
    np.testing.assert_allclose(
        find(run, poisoned, features), [np.log(256), np.log(256), 0.0], rtol=1e-6, atol=1e-6
    )


def test_large_features_do_not_overflow(run, poisoned):
    features = np.array([[1e30, -1e30, 0, 1], [3e4, 3e4, -3e4, -3e4]], np.float32)
    np.testing.assert_allclose(find(run, poisoned, features), [0, np.log(2)], atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_makes_nan_of_its_patch_alone(run, poisoned, rng, bad):
    features = rng.standard_normal((5, 40)).astype(np.float32)
    features[2, 17] = bad
    np.testing.assert_array_equal(np.isnan(find(run, poisoned, features)), np.arange(5) == 2)


def test_an_array_off_the_grid_of_sixteen_bytes(run, poisoned, reference, rng):
    values = rng.standard_normal(1 + 7 * 64).astype(np.float32)
    entropy = poisoned(7)
    memory = gk.asarray(values)
    off = memory[1:]
    run(feature_entropy(_reshaped(off, (7, 64)), entropy))
    expected = reference.entropy(values[1:].reshape(7, 64))
    np.testing.assert_allclose(entropy.get(), expected, rtol=2e-5)


def _reshaped(array, shape):
    return array.view(shape, np.float32)


def test_any_grid_does(run, poisoned, reference, rng):
    features = rng.standard_normal((50, 33)).astype(np.float32)
    entropy = poisoned(50)
    launch = feature_entropy(gk.asarray(features), entropy)
    run(launch._replace(grid=(3, 1, 1), block=(64, 1, 1)))
    np.testing.assert_allclose(entropy.get(), reference.entropy(features), rtol=2e-5)


def test_arguments_are_checked(runtime):
    features = gk.zeros((6, 8))
    with pytest.raises(ValueError, match=r"^features: expected shape \(patches, width\), came"):
        feature_entropy(gk.zeros(6), gk.zeros(6))
    with pytest.raises(ValueError, match=r"^entropy: expected shape \(6\), came \(5,\)"):
        feature_entropy(features, gk.zeros(5))
    with pytest.raises(ValueError, match=r"^features: expected dtype float32, came float64"):
        feature_entropy(gk.zeros((6, 8), np.float64), gk.zeros(6))
    with pytest.raises(TypeError, match=r"^features: expected an array in device memory"):
        feature_entropy(np.zeros((6, 8), np.float32), gk.zeros(6))
