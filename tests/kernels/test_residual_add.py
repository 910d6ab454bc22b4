import numpy as np
import pytest
from graphkit.kernels import residual_add

import graphkit as gk


@pytest.mark.parametrize("shape", [(1,), (3, 5), (256,), (257,), (2, 3, 1001)], ids=str)
def test_adds(run, poisoned, rng, shape):
    x, residual = rng.standard_normal((2, *shape)).astype(np.float32)
    out = poisoned(shape)
    run(residual_add(gk.asarray(x), gk.asarray(residual), out))
    np.testing.assert_array_equal(out.get(), x + residual)


@pytest.mark.parametrize("onto", [0, 1])
def test_in_place_on_a_grid_of_one_block(run, rng, onto):
    values = rng.standard_normal((2, 1000)).astype(np.float32)
    device = [gk.asarray(value) for value in values]
    run(residual_add(*device, device[onto])._replace(grid=1))
    np.testing.assert_array_equal(device[onto].get(), values[0] + values[1])


def test_arguments_are_checked(runtime):
    x = gk.zeros((2, 8))
    with pytest.raises(ValueError, match=r"^residual: expected shape \(2, 8\), came \(16,\)"):
        residual_add(x, gk.zeros(16), x)
    with pytest.raises(TypeError, match=r"^x: expected an array, came float"):
        residual_add(1.0, x, x)
