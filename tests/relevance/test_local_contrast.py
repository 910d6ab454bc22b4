import numpy as np
import pytest
from graphkit.kernels.relevance import local_contrast, patch_luminance
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import graphkit as gk


def find(run, poisoned, image, size, **options):
    columns = image.shape[2] // size
    patches = image.shape[1] // size * columns
    mean, variance, contrast = poisoned(patches), poisoned(patches), poisoned(patches)
    run(patch_luminance(gk.asarray(image), mean, variance, size))
    run(local_contrast(mean, variance, contrast, columns, **options))
    return contrast.get()


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    radius=st.sampled_from([0, 1, 2, 5, 100]),
    saturation=st.sampled_from([1e-3, 0.01, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@example(rows=32, columns=32, radius=1, saturation=0.01, seed=0)
def test_matches_the_deviations_of_the_pixels(
    run, poisoned, reference, rows, columns, radius, saturation, seed
):
    rng = np.random.default_rng(seed)
    image = rng.random((3, rows * 4, columns * 4)) * rng.choice(
        [0.01, 0.1, 1.0], (1, 1, columns * 4)
    )
    image = image.astype(np.float32)
    found = find(run, poisoned, image, 4, radius=radius, saturation=saturation)
    expected = reference.contrast(image, 4, radius, saturation)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_a_flat_image_has_no_contrast(run, poisoned):
    image = np.full((3, 48, 48), 0.3, np.float32)
    np.testing.assert_allclose(find(run, poisoned, image, 16), np.zeros(9), atol=1e-12)


def test_a_patch_stands_out_from_a_flat_neighbourhood(run, poisoned, rng):
    image = np.full((3, 80, 80), 0.5, np.float32)
    image[:, 32:48, 32:48] += rng.standard_normal((1, 16, 16)).astype(np.float32) * 0.1
    contrast = find(run, poisoned, image, 16)
    assert np.argmax(contrast) == 12
    assert np.count_nonzero(contrast > 1e-6) == 1


def test_patches_that_are_not_finite_count_in_no_window(run, poisoned, reference, rng):
    image = rng.random((3, 64, 48)).astype(np.float32)
    image[0, 20, 20], image[1, 63, 47] = np.nan, np.inf
    found = find(run, poisoned, image, 16)
    np.testing.assert_allclose(found, reference.contrast(image, 16), rtol=1e-3)
    np.testing.assert_array_equal(np.isnan(found), np.isin(np.arange(12), [4, 11]))
    image[...] = np.nan
    assert np.isnan(find(run, poisoned, image, 16)).all()


def test_arguments_are_checked(runtime):
    mean, variance, contrast = gk.zeros(12), gk.zeros(12), gk.zeros(12)
    with pytest.raises(ValueError, match=r"^columns: expected a divisor of 12 patches, came 5"):
        local_contrast(mean, variance, contrast, 5)
    with pytest.raises(ValueError, match=r"^variance: expected shape \(12\), came \(11,\)"):
        local_contrast(mean, gk.zeros(11), contrast, 4)
    with pytest.raises(ValueError, match=r"^radius: expected 0 to 32768, came -1"):
        local_contrast(mean, variance, contrast, 4, radius=-1)
    for value in (0.0, -1, float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match=r"^saturation: expected a finite number above 0 in float32, came"
        ):
            local_contrast(mean, variance, contrast, 4, saturation=value)
    with pytest.raises(TypeError, match=r"^saturation: expected a number, came str"):
        local_contrast(mean, variance, contrast, 4, saturation="0.1")
