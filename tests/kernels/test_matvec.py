import ml_dtypes
import numpy as np
import pytest
from graphkit.kernels import matvec

import graphkit as gk

DTYPES = pytest.mark.parametrize(
    "dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"]
)


def operands(rng, batch, m, k, dtype):
    weight = rng.standard_normal((m, k)).astype(dtype)
    return weight, rng.standard_normal((batch, k)).astype(np.float32)


def reference(weight, x):
    return x.astype(np.float64) @ weight.astype(np.float64).T


@DTYPES
@pytest.mark.parametrize(
    ("batch", "m", "k"),
    [
        (1, 1, 1),
        (1, 5, 7),
        (1, 192, 192),  # rows of whole 16-byte words
        (1, 67, 516),  # whole words of float32, not of bfloat16
        (1, 33, 1023),
        (2, 9, 64),
        (4, 17, 40),
        (5, 31, 129),  # more than one group of rows of x
        (9, 6, 256),
    ],
)
def test_matches_float64(run, poisoned, rng, batch, m, k, dtype):
    weight, x = operands(rng, batch, m, k, dtype)
    y = poisoned((batch, m))
    run(matvec(gk.asarray(weight), gk.asarray(x), y))
    np.testing.assert_allclose(y.get(), reference(weight, x), rtol=1e-5, atol=1e-5 * k**0.5)


@DTYPES
def test_pointers_need_no_more_alignment_than_an_element(run, poisoned, rng, dtype):
    weight, x = operands(rng, 3, 20, 64, dtype)
    for name in ("weight", "x"):
        values = weight if name == "weight" else x
        shifted = gk.empty(values.size + 1, values.dtype)
        shifted.set(np.concatenate((np.zeros(1, values.dtype), values.ravel())))
        y = poisoned((3, 20))
        launch = matvec(gk.asarray(weight), gk.asarray(x), y)
        index = launch.kernel.parameters.index(
            next(item for item in launch.kernel.parameters if item.name == name)
        )
        args = (*launch.args[:index], shifted[1:], *launch.args[index + 1 :])
        run(launch._replace(args=args))
        np.testing.assert_allclose(y.get(), reference(weight, x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("grid", [1, (2, 3)])
def test_any_grid_covers_everything(run, poisoned, rng, grid):
    weight, x = operands(rng, 9, 37, 50, np.float32)
    y = poisoned((9, 37))
    run(matvec(gk.asarray(weight), gk.asarray(x), y)._replace(grid=grid))
    np.testing.assert_allclose(y.get(), reference(weight, x), rtol=1e-5, atol=1e-4)


def test_axes_after_the_first_count_as_one(run, poisoned, rng):
    weight, x = operands(rng, 2, 12, 30, np.float32)
    y = poisoned((2, 4, 3))
    run(matvec(gk.asarray(weight), gk.asarray(x.reshape(2, 5, 6)), y))
    expected = reference(weight, x).reshape(2, 4, 3)
    np.testing.assert_allclose(y.get(), expected, rtol=1e-5, atol=1e-4)


def test_a_row_of_x_that_is_nan_spoils_no_other(run, poisoned, rng):
    weight, x = operands(rng, 4, 8, 32, np.float32)
    x[1] = np.nan
    y = poisoned((4, 8))
    run(matvec(gk.asarray(weight), gk.asarray(x), y))
    assert np.isnan(y.get()[1]).all()
    others = [0, 2, 3]
    np.testing.assert_allclose(y.get()[others], reference(weight, x)[others], rtol=1e-5, atol=1e-4)


@DTYPES
@pytest.mark.parametrize(("m", "k"), [(24, 6), (37, 50), (192, 192), (61, 515)])
def test_a_row_gives_the_same_bits_in_any_batch(run, poisoned, rng, m, k, dtype):
    weight, x = operands(rng, 11, m, k, dtype)
    device_weight, whole = gk.asarray(weight), poisoned((11, m))
    run(matvec(device_weight, gk.asarray(x), whole))
    for first, last in ((0, 1), (7, 8), (10, 11), (3, 5), (2, 9)):
        part = poisoned((last - first, m))
        run(matvec(device_weight, gk.asarray(x[first:last]), part))
        np.testing.assert_array_equal(part.get(), whole.get()[first:last])


def test_arguments_are_checked(runtime):
    weight, x, y = gk.zeros((6, 5)), gk.zeros((2, 5)), gk.zeros((2, 6))
    with pytest.raises(
        ValueError, match=r"^weight: expected dtype float32 or bfloat16, came float16"
    ):
        matvec(gk.zeros((6, 5), np.float16), x, y)
    with pytest.raises(ValueError, match=r"^weight: expected shape \(m, k\), came \(6,\)"):
        matvec(gk.zeros(6), x, y)
    with pytest.raises(ValueError, match=r"^x: expected shape \(batch, 5\), came \(2, 6\)"):
        matvec(weight, y, y)
    with pytest.raises(ValueError, match=r"^y: expected shape \(2, 6\), came \(2, 5\)"):
        matvec(weight, x, x)
