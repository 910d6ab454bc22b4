import numpy as np
import pytest
from graphkit.kernels import attention

import graphkit as gk


def operands(rng, batch, heads, kv_heads, head_dim, max_len):
    q = rng.standard_normal((batch, heads, head_dim)).astype(np.float32)
    caches = rng.standard_normal((2, batch, kv_heads, max_len, head_dim)).astype(np.float32)
    return q, *caches


def reference(q, k_cache, v_cache, position, scale):
    out = np.zeros(q.shape)
    group = q.shape[1] // k_cache.shape[1]
    for b, at in enumerate(position):
        for head in range(q.shape[1]):
            keys, values = (
                cache[b, head // group, : at + 1].astype(np.float64) for cache in (k_cache, v_cache)
            )
            scores = np.exp(scale * (keys @ q[b, head]))
            out[b, head] = scores / scores.sum() @ values
    return out


@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "head_dim", "max_len", "position"),
    [
        (1, 1, 1, 1, 1, [0]),
        (1, 6, 2, 32, 40, [0]),
        (1, 6, 2, 32, 40, [6]),  # fewer positions than warps
        (1, 6, 2, 32, 40, [39]),
        (2, 4, 4, 33, 19, [18, 3]),
        (3, 8, 1, 64, 70, [64, 0, 31]),
        (1, 2, 1, 255, 12, [9]),
        (2, 3, 3, 256, 300, [255, 299]),
    ],
)
def test_matches_float64(run, poisoned, rng, batch, heads, kv_heads, head_dim, max_len, position):
    q, k_cache, v_cache = operands(rng, batch, heads, kv_heads, head_dim, max_len)
    for b, at in enumerate(position):  # what lies behind the position must not be read
        k_cache[b, :, at + 1 :] = v_cache[b, :, at + 1 :] = np.nan
    out = poisoned(q.shape)
    device = (*map(gk.asarray, (q, k_cache, v_cache, np.array(position, np.int32))), out)
    run(attention(*device))
    expected = reference(q, k_cache, v_cache, position, head_dim**-0.5)
    np.testing.assert_allclose(out.get(), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("slots", [[2, 0], [6, 5, 1], [3], [4, 1, 0, 6, 2, 5, 3, -1, 7]])
def test_a_sequence_attends_to_its_slot(run, poisoned, rng, slots):
    batch, position = len(slots), rng.integers(0, 9, len(slots)).astype(np.int32)
    q, *_ = operands(rng, batch, 4, 2, 6, 9)
    _, k_cache, v_cache = operands(rng, 7, 4, 2, 6, 9)
    for slot in set(range(7)) - set(slots):  # nobody's slot must not be read
        k_cache[slot] = v_cache[slot] = np.nan
    out = poisoned(q.shape)
    device = (*map(gk.asarray, (q, k_cache, v_cache, position)), out)
    run(attention(*device, slots=gk.asarray(np.array(slots, np.int32))))
    real = [b for b, slot in enumerate(slots) if 0 <= slot < 7]
    gathered = (cache[[slots[b] for b in real]] for cache in (k_cache, v_cache))
    expected = np.zeros(q.shape)  # outside of the caches: nothing to attend to
    expected[real] = reference(q[real], *gathered, position[real], 6**-0.5)
    np.testing.assert_allclose(out.get(), expected, rtol=2e-5, atol=1e-5)


def test_large_scores_stay_finite(run, poisoned, rng):
    q, k_cache, v_cache = operands(rng, 1, 4, 2, 16, 50)
    out = poisoned(q.shape)
    device = (*map(gk.asarray, (q, k_cache, v_cache, np.array([49], np.int32))), out)
    run(attention(*device, scale=1e4))
    best = np.einsum("hgd,htd->hgt", q[0].reshape(2, 2, 16), k_cache[0]).argmax(axis=2)
    expected = v_cache[0][np.arange(2)[:, None], best].reshape(1, 4, 16)
    np.testing.assert_allclose(out.get(), expected, rtol=1e-4, atol=1e-4)


def test_nan_in_the_cache_shows(run, poisoned, rng):
    q, k_cache, v_cache = operands(rng, 1, 2, 2, 8, 20)
    k_cache[0, 1, 13] = np.nan
    out = poisoned(q.shape)
    run(attention(*map(gk.asarray, (q, k_cache, v_cache, np.array([19], np.int32))), out))
    assert np.isfinite(out.get()[0, 0]).all()
    assert np.isnan(out.get()[0, 1]).all()


def test_positions_outside_the_cache(run, poisoned, rng):
    q, k_cache, v_cache = operands(rng, 2, 2, 1, 24, 5)
    out = poisoned(q.shape)
    run(attention(*map(gk.asarray, (q, k_cache, v_cache, np.array([-1, 99], np.int32))), out))
    np.testing.assert_array_equal(out.get()[0], 0)
    expected = reference(q, k_cache, v_cache, [0, 4], 24**-0.5)[1]
    np.testing.assert_allclose(out.get()[1], expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("warps", [1, 3])
def test_any_number_of_warps(run, poisoned, rng, warps):
    q, k_cache, v_cache = operands(rng, 1, 3, 1, 40, 30)
    out = poisoned(q.shape)
    device = (*map(gk.asarray, (q, k_cache, v_cache, np.array([28], np.int32))), out)
    run(attention(*device)._replace(block=32 * warps, grid=1))
    expected = reference(q, k_cache, v_cache, [28], 40**-0.5)
    np.testing.assert_allclose(out.get(), expected, rtol=2e-5, atol=1e-5)


def test_arguments_are_checked(runtime):
    q, cache, position = gk.zeros((1, 4, 8)), gk.zeros((1, 2, 16, 8)), gk.zeros(1, np.int32)
    attention(q, cache, cache, position, q)
    with pytest.raises(ValueError, match=r"^q: expected a multiple of 2 heads of 8, came 24"):
        attention(gk.zeros((1, 3, 8)), cache, cache, position, q)
    with pytest.raises(ValueError, match=r"^k_cache: expected head_dim of at most 256, came 257"):
        attention(q, gk.zeros((1, 1, 2, 257)), cache, position, q)
    with pytest.raises(ValueError, match=r"^v_cache: expected shape \(1, 2, 16, 8\), came"):
        attention(q, cache, gk.zeros((1, 2, 17, 8)), position, q)
    with pytest.raises(ValueError, match=r"^position: expected shape \(1\), came \(2,\)"):
        attention(q, cache, cache, gk.zeros(2, np.int32), q)
    with pytest.raises(ValueError, match=r"^out: expected shape \(1, 32\), came \(1, 2, 16, 8\)"):
        attention(q, cache, cache, position, cache)
    with pytest.raises(ValueError, match=r"^slots: expected shape \(batch\), came \(1, 1\)"):
        attention(q, cache, cache, position, q, slots=gk.zeros((1, 1), np.int32))
    with pytest.raises(ValueError, match=r"^q: expected shape \(3, heads \* head_dim\), came"):
        attention(q, cache, cache, position, q, slots=gk.zeros(3, np.int32))
    with pytest.raises(ValueError, match=r"^scale: expected a finite number in float32, came nan"):
        attention(q, cache, cache, position, q, float("nan"))
    for scale in ("1", True, [1.0]):
        with pytest.raises(TypeError, match=r"^scale: expected a number, came"):
            attention(q, cache, cache, position, q, scale)
    for scale in (float("nan"), float("inf"), 1e300, 10**400):
        with pytest.raises(ValueError, match=r"^scale: expected a finite number in float32, came"):
            attention(q, cache, cache, position, q, scale)
    attention(q, cache, cache, position, q, 0)  # the mean of the values
