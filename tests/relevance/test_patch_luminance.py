import numpy as np
import pytest
from graphkit.kernels.relevance import patch_luminance
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import graphkit as gk


def find(run, poisoned, image, size):
    patches = image.shape[1] // size * (image.shape[2] // size)
    mean, variance = poisoned(patches), poisoned(patches)
    run(patch_luminance(gk.asarray(image), mean, variance, size))
    return mean.get(), variance.get()


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    size=st.sampled_from([1, 2, 3, 4, 7, 8, 12, 14, 16, 20]),
    offset=st.sampled_from([0.0, -3.0, 40.0]),
    seed=st.integers(0, 2**32 - 1),
)
@example(rows=32, columns=32, size=16, offset=0.0, seed=0)
@example(rows=14, columns=24, size=16, offset=0.0, seed=1)
@example(rows=3, columns=2, size=32, offset=0.0, seed=2)
def test_matches_float64(run, poisoned, reference, rows, columns, size, offset, seed):
    drawn = np.random.default_rng(seed).random((3, rows * size, columns * size)) + offset
    image = drawn.astype(np.float32)
    mean, variance = find(run, poisoned, image, size)
    patches, *_ = reference.patches_of(image, size)
    np.testing.assert_allclose(mean, [np.mean(patch) for patch in patches], rtol=1e-5, atol=1e-6)
    # A pixel of 40 has a luminance that is rounded to 4e-6.
    expected = [np.var(patch) for patch in patches]
    np.testing.assert_allclose(variance, expected, rtol=3e-4, atol=1e-9)


def test_one_bright_pixel_in_the_first_place(run, poisoned, reference):
    image = np.full((3, 16, 16), 0.25, np.float32)
    image[:, 0, 0] = 1000.0
    _, variance = find(run, poisoned, image, 16)
    (patch,), *_ = reference.patches_of(image, 16)
    np.testing.assert_allclose(variance, [np.var(patch)], rtol=3e-4)


@pytest.mark.parametrize("size", [16, 15])
def test_a_flat_image_has_no_variance_at_all(run, poisoned, size):
    colour = np.float32([0.1, 0.7, 0.3])
    image = np.broadcast_to(colour[:, None, None], (3, 2 * size, 3 * size)).copy()
    mean, variance = find(run, poisoned, image, size)
    np.testing.assert_allclose(mean, np.full(6, colour @ [0.2126, 0.7152, 0.0722]), rtol=1e-6)
    assert variance.max() < 1e-30


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 16, 16), (2, 31, 20)])
def test_a_pixel_that_is_not_finite_makes_nan_of_its_patch_alone(run, poisoned, rng, bad, place):
    image = rng.random((3, 48, 48)).astype(np.float32)
    image[place] = bad
    for moment in find(run, poisoned, image, 16):
        np.testing.assert_array_equal(np.isnan(moment), np.arange(9) == 4)


def test_pixels_too_large_to_be_squared_make_nan_of_their_patch(run, poisoned, rng):
    image = rng.standard_normal((3, 48, 48)).astype(np.float32)
    image[:, 16:32, 16:32] *= np.float32(1e25)
    image[:, 32:, 32:] = np.float32(1e25)  # one colour: nothing is squared but 0
    mean, variance = find(run, poisoned, image, 16)
    for moment in (mean, variance):
        np.testing.assert_array_equal(np.isnan(moment), np.arange(9) == 4)
    assert variance[8] == 0


def test_an_image_off_the_grid_of_sixteen_bytes(run, poisoned, reference, rng):
    values = rng.random(3 + 3 * 32 * 48).astype(np.float32)
    memory = gk.asarray(values)
    mean, variance = poisoned(6), poisoned(6)
    run(patch_luminance(memory[3:].view((3, 32, 48), np.float32), mean, variance, 16))
    patches, *_ = reference.patches_of(values[3:].reshape(3, 32, 48), 16)
    np.testing.assert_allclose(mean.get(), [np.mean(patch) for patch in patches], rtol=1e-5)
    np.testing.assert_allclose(variance.get(), [np.var(patch) for patch in patches], rtol=3e-4)


def test_arguments_are_checked(runtime):
    mean, variance = gk.zeros(4), gk.zeros(4)
    with pytest.raises(
        ValueError,
        match=r"^image: expected height and width that are multiples of the patch, 16 pixels, "
        r"came 32 x 33$",
    ):
        patch_luminance(gk.zeros((3, 32, 33)), mean, variance, 16)
    with pytest.raises(ValueError, match=r"^image: expected shape \(3, height, width\), came"):
        patch_luminance(gk.zeros((32, 32, 3)), mean, variance, 16)
    with pytest.raises(ValueError, match=r"^image: expected dtype float32, came uint8"):
        patch_luminance(gk.zeros((3, 32, 32), np.uint8), mean, variance, 16)
    with pytest.raises(ValueError, match=r"^mean: expected shape \(4\), came \(5,\)"):
        patch_luminance(gk.zeros((3, 32, 32)), gk.zeros(5), variance, 16)
    with pytest.raises(TypeError, match=r"^patch: expected an int, came float"):
        patch_luminance(gk.zeros((3, 32, 32)), mean, variance, 16.0)
    with pytest.raises(ValueError, match=r"^patch: expected 1 to 46340, came 0"):
        patch_luminance(gk.zeros((3, 32, 32)), mean, variance, 0)
    with pytest.raises(ValueError, match=r"^patch: expected 1 to 46340, came 46341"):
        patch_luminance(gk.zeros((3, 32, 32)), mean, variance, 46341)  # squared, 2**31 and more
    with pytest.raises(ValueError, match=r"^image: expected at most 11,968 patches, came 12,544"):
        patch_luminance(gk.zeros((3, 112, 112)), gk.zeros(12544), gk.zeros(12544), 1)
