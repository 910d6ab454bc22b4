import numpy as np
import pytest
from graphkit.kernels import linear

import graphkit as gk


def operands(rng, batch, n, k):
    x, weight = rng.standard_normal((batch, k)), rng.standard_normal((n, k)) / k**0.5
    return (value.astype(np.float32) for value in (x, weight, rng.standard_normal(n)))


def reference(x, weight, bias=None, relu=False):
    y = x.astype(np.float64) @ weight.astype(np.float64).T
    if bias is not None:
        y += bias
    return np.maximum(y, 0) if relu else y


SIZES = [
    (1, 1, 1),
    (3, 5, 7),  # rows that are not whole 16-byte words
    (32, 256, 256),
    (32, 32, 4),  # less of k than blocks of a cluster
    (33, 31, 36),
    (128, 64, 1024),
    (31, 65, 1300),  # more of k than fits into shared memory at once
    (7, 40, 2111),
    (128, 512, 256),  # large tiles from here on
    (65, 1000, 132),
    (70, 1030, 9),
]


@pytest.mark.parametrize("relu", [0.5, None, "x", float("inf"), 1])
def test_relu_is_true_or_false(runtime, relu):
    x, y = gk.zeros((1, 8)), gk.zeros((1, 8))
    with pytest.raises(TypeError, match=r"^relu: expected "):
        linear(x, gk.zeros((8, 8)), None, y, relu=relu)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("batch", "n", "k"), SIZES)
def test_matches_float64(run, poisoned, rng, batch, n, k, relu):
    x, weight, bias = operands(rng, batch, n, k)
    y = poisoned((batch, n))
    run(linear(gk.asarray(x), gk.asarray(weight), gk.asarray(bias), y, relu=relu))
    np.testing.assert_allclose(y.get(), reference(x, weight, bias, relu), rtol=1e-5, atol=1e-5)


def test_without_bias(run, poisoned, rng):
    x, weight, _ = operands(rng, 6, 10, 20)
    y = poisoned((6, 10))
    run(linear(gk.asarray(x), gk.asarray(weight), None, y))
    np.testing.assert_allclose(y.get(), reference(x, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["x", "weight", "bias"])
def test_pointers_need_no_more_alignment_than_an_element(run, poisoned, rng, name):
    values = dict(zip(("x", "weight", "bias"), operands(rng, 5, 36, 64), strict=True))
    expected = reference(*values.values())
    arrays = {key: gk.asarray(value) for key, value in values.items()}
    y = poisoned((5, 36))
    launch = linear(*arrays.values(), y)
    shifted = gk.asarray(np.concatenate((np.zeros(1, np.float32), values[name].ravel())))
    index = list(arrays).index(name)
    run(launch._replace(args=(*launch.args[:index], shifted[1:], *launch.args[index + 1 :])))
    np.testing.assert_allclose(y.get(), expected, rtol=1e-5, atol=1e-5)


def test_a_row_of_x_that_is_nan_spoils_no_other(run, poisoned, rng):
    x, weight, bias = operands(rng, 40, 8, 32)
    x[1] = np.nan
    y = poisoned((40, 8))
    run(linear(gk.asarray(x), gk.asarray(weight), gk.asarray(bias), y, relu=True))
    assert np.isnan(y.get()[1]).all()
    others = [0, *range(2, 40)]
    expected = reference(x, weight, bias, relu=True)[others]
    np.testing.assert_allclose(y.get()[others], expected, rtol=1e-5, atol=1e-5)


def test_nothing_beside_the_result_is_written(run, poisoned, rng):
    x, weight, bias = operands(rng, 33, 33, 12)
    whole = poisoned(33 * 33 + 64)
    y = whole[32:-32].view((33, 33), np.float32)
    run(linear(gk.asarray(x), gk.asarray(weight), gk.asarray(bias), y))
    found = whole.get()
    assert np.isnan(found[:32]).all()
    assert np.isnan(found[-32:]).all()
    assert not np.isnan(found[32:-32]).any()


def test_the_same_bits_every_time(run, poisoned, rng):
    arrays = [gk.asarray(value) for value in operands(rng, 32, 256, 256)]
    first, second = poisoned((32, 256)), poisoned((32, 256))
    for y in (first, second):
        run(linear(*arrays, y))
    np.testing.assert_array_equal(first.get(), second.get())


def test_axes_after_the_first_count_as_one(run, poisoned, rng):
    x, weight, bias = operands(rng, 2, 12, 30)
    y = poisoned((2, 4, 3))
    run(linear(gk.asarray(x.reshape(2, 5, 6)), gk.asarray(weight), gk.asarray(bias), y))
    expected = reference(x, weight, bias).reshape(2, 4, 3)
    np.testing.assert_allclose(y.get(), expected, rtol=1e-5, atol=1e-5)


def test_arguments_are_checked(runtime):
    x, weight, bias, y = gk.zeros((2, 5)), gk.zeros((6, 5)), gk.zeros(6), gk.zeros((2, 6))
    with pytest.raises(ValueError, match=r"^weight: expected dtype float32, came float16"):
        linear(x, gk.zeros((6, 5), np.float16), bias, y)
    with pytest.raises(ValueError, match=r"^weight: expected shape \(n, k\), came \(6,\)"):
        linear(x, gk.zeros(6), bias, y)
    with pytest.raises(ValueError, match=r"^x: expected shape \(batch, 5\), came \(2, 6\)"):
        linear(y, weight, bias, y)
    with pytest.raises(ValueError, match=r"^bias: expected shape \(6\), came \(5,\)"):
        linear(x, weight, gk.zeros(5), y)
    with pytest.raises(ValueError, match=r"^y: expected shape \(2, 6\), came \(2, 5\)"):
        linear(x, weight, bias, x)
