import numpy as np
import pytest
from graphkit.kernels import silu_mul

import graphkit as gk


def reference(gate, up):
    gate = gate.astype(np.float64)
    return gate / (1 + np.exp(-gate)) * up


@pytest.mark.parametrize("shape", [(1,), (3, 5), (255,), (257,), (2, 3, 7), (4, 1001)], ids=str)
def test_matches_float64(run, poisoned, rng, shape):
    gate, up = rng.standard_normal((2, *shape)).astype(np.float32) * 4
    out = poisoned(shape)
    run(silu_mul(gk.asarray(gate), gk.asarray(up), out))
    np.testing.assert_allclose(out.get(), reference(gate, up), rtol=2e-6, atol=1e-6)


def test_in_place_on_a_grid_of_one_block(run, rng):
    gate, up = rng.standard_normal((2, 1000)).astype(np.float32)
    device = gk.asarray(gate)
    run(silu_mul(device, gk.asarray(up), device)._replace(grid=1))
    np.testing.assert_allclose(device.get(), reference(gate, up), rtol=2e-6, atol=1e-6)


def test_large_values_stay_finite(run, poisoned):
    gate = np.array([-1e30, -1000, -88.8, 0, 88.8, 1000], np.float32)
    out = poisoned(6)
    run(silu_mul(gk.asarray(gate), gk.asarray(np.ones(6, np.float32)), out))
    np.testing.assert_allclose(out.get(), np.maximum(gate, 0), rtol=1e-6, atol=1e-30)


def test_arguments_are_checked(runtime):
    x = gk.zeros((2, 8))
    with pytest.raises(ValueError, match=r"^up: expected shape \(2, 8\), came \(8, 2\)"):
        silu_mul(x, gk.zeros((8, 2)), x)
    with pytest.raises(ValueError, match=r"^out: expected dtype float32, came float64"):
        silu_mul(x, x, gk.zeros((2, 8), np.float64))
