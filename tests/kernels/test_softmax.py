import numpy as np
import pytest
from graphkit.kernels import softmax

import graphkit as gk


def reference(x):
    x = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("rows", "width"), [(1, 1), (1, 31), (2, 33), (3, 256), (5, 257), (2, 1025), (1, 5003)]
)
def test_matches_float64(run, poisoned, rng, rows, width):
    x = (rng.standard_normal((rows, width)) * 5).astype(np.float32)
    out = poisoned((rows, width))
    run(softmax(gk.asarray(x), out))
    np.testing.assert_allclose(out.get(), reference(x), rtol=1e-5, atol=1e-9)


def test_large_values_and_masks_in_place(run):
    x = np.array([[1e30, -1e30, -np.inf], [1000, 1001, -np.inf], [-1e4, -1e4, -1e4]], np.float32)
    device = gk.asarray(x)
    run(softmax(device, device)._replace(grid=2))
    np.testing.assert_allclose(device.get(), reference(x), rtol=1e-5)


def test_arguments_are_checked(runtime):
    x = gk.zeros((2, 8))
    with pytest.raises(ValueError, match=r"^x: expected shape \(rows, width\), came \(2, 8, 1\)"):
        softmax(gk.zeros((2, 8, 1)), x)
    with pytest.raises(ValueError, match=r"^out: expected shape \(2, 8\), came \(2, 9\)"):
        softmax(x, gk.zeros((2, 9)))
