import numpy as np
import pytest
from graphkit.kernels import rms_norm

import graphkit as gk


def reference(x, weight, eps):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) * weight


@pytest.mark.parametrize(
    ("rows", "width"), [(1, 1), (1, 31), (2, 33), (3, 192), (5, 257), (2, 1025), (1, 4100)]
)
def test_matches_float64(run, poisoned, rng, rows, width):
    x = rng.standard_normal((rows, width)).astype(np.float32)
    weight = rng.standard_normal(width).astype(np.float32)
    out = poisoned((rows, width))
    run(rms_norm(gk.asarray(x), gk.asarray(weight), out, 1e-5))
    np.testing.assert_allclose(out.get(), reference(x, weight, 1e-5), rtol=2e-5, atol=1e-6)


def test_in_place(run, rng):
    x = rng.standard_normal((3, 77)).astype(np.float32)
    weight = np.ones(77, np.float32)
    device = gk.asarray(x)
    run(rms_norm(device, gk.asarray(weight), device, 1e-6))
    np.testing.assert_allclose(device.get(), reference(x, weight, 1e-6), rtol=2e-5, atol=1e-6)


def test_eps_keeps_a_row_of_zeros_finite(run, poisoned):
    out = poisoned((1, 40))
    run(rms_norm(gk.zeros((1, 40)), gk.asarray(np.ones(40, np.float32)), out, 1e-5))
    np.testing.assert_array_equal(out.get(), 0)


def test_arguments_are_checked(runtime):
    x = gk.zeros((2, 8))
    with pytest.raises(ValueError, match=r"^weight: expected shape \(8\), came \(7,\)"):
        rms_norm(x, gk.zeros(7), x, 1e-5)
    with pytest.raises(ValueError, match=r"^out: expected dtype float32, came int32"):
        rms_norm(x, gk.zeros(8), gk.zeros((2, 8), np.int32), 1e-5)
    with pytest.raises(ValueError, match=r"^x: expected C order without gaps"):
        rms_norm(gk.zeros((2, 16))[:, ::2], gk.zeros(8), x, 1e-5)
    with pytest.raises(ValueError, match=r"^x: expected extents of 1"):
        rms_norm(gk.zeros((0, 8)), gk.zeros(8), x, 1e-5)
    beside = gk.zeros(68, np.uint8)[1:65].view((2, 8), np.float32)
    with pytest.raises(ValueError, match=r"^x: expected an address that is a multiple of 4, came"):
        rms_norm(beside, gk.zeros(8), x, 1e-5)


@pytest.mark.parametrize("eps", ["1e-5", None, True, [1e-5]])
def test_eps_of_another_type(runtime, eps):
    x = gk.zeros((2, 8))
    with pytest.raises(TypeError, match=f"^eps: expected a number, came {type(eps).__name__}$"):
        rms_norm(x, gk.zeros(8), x, eps)


@pytest.mark.parametrize("eps", [0, -1e-5, 1e-60, float("nan"), float("inf"), 1e300, 10**400])
def test_eps_that_float32_holds_as_no_number_above_zero(runtime, eps):
    x = gk.zeros((2, 8))
    with pytest.raises(
        ValueError, match=r"^eps: expected a finite number above 0 in float32, came"
    ):
        rms_norm(x, gk.zeros(8), x, eps)


def test_eps_may_be_a_number_of_numpys(runtime):
    x = gk.zeros((2, 8))
    assert rms_norm(x, gk.zeros(8), x, np.float32(0.5)).args[-1] == 0.5
