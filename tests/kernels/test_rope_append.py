import numpy as np
import pytest
from graphkit.kernels import rope_append

import graphkit as gk


def tables(max_len, head_dim):
    angles = np.arange(max_len)[:, None] / 10000 ** (np.arange(0, head_dim, 2) / head_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotated(heads, cosines, sines):
    """Hugging Face's apply_rotary_pos_emb: x * cos + rotate_half(x) * sin, of doubled tables."""
    half = heads.shape[-1] // 2
    rotate_half = np.concatenate((-heads[..., half:], heads[..., :half]), axis=-1)
    doubled = [np.concatenate((table, table), axis=-1)[:, None, :] for table in (cosines, sines)]
    return heads.astype(np.float64) * doubled[0] + rotate_half * doubled[1]


def operands(rng, batch, heads, kv_heads, head_dim):
    shapes = (batch, heads, head_dim), (batch, kv_heads, head_dim), (batch, kv_heads, head_dim)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "head_dim", "max_len"),
    [(1, 1, 1, 2, 1), (1, 6, 2, 32, 9), (3, 4, 4, 10, 7), (2, 5, 1, 64, 33), (2, 3, 3, 258, 4)],
)
def test_rotates_and_appends_and_touches_nothing_else(
    run, rng, batch, heads, kv_heads, head_dim, max_len
):
    q, k, v = operands(rng, batch, heads, kv_heads, head_dim)
    cosines, sines = tables(max_len + 2, head_dim)
    old = rng.standard_normal((2, batch, kv_heads, max_len, head_dim)).astype(np.float32)
    position = rng.integers(0, max_len, batch).astype(np.int32)
    device_q, device_k, device_v = map(gk.asarray, (q, k, v))
    k_cache, v_cache = map(gk.asarray, old)
    run(
        rope_append(
            *(device_q, device_k, device_v, gk.asarray(cosines), gk.asarray(sines)),
            *(k_cache, v_cache, gk.asarray(position)),
        )
    )
    here = cosines[position], sines[position]
    expected_k, expected_v = old
    rows = np.arange(batch)
    expected_k[rows, :, position] = rotated(k, *here)
    expected_v[rows, :, position] = v
    np.testing.assert_allclose(device_q.get(), rotated(q, *here), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(device_k.get(), k)
    np.testing.assert_allclose(k_cache.get(), expected_k, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(v_cache.get(), expected_v)


@pytest.mark.parametrize("slots", [[2, 0], [4, 3, 1], [1], [3, -1, 0, 5, 4, 2, 1]])
def test_appends_to_the_slot_of_a_sequence(run, rng, slots):
    batch, count, max_len = len(slots), 5, 7
    q, k, v = operands(rng, batch, 4, 2, 8)
    cosines, sines = tables(max_len, 8)
    old = rng.standard_normal((2, count, 2, max_len, 8)).astype(np.float32)
    position = rng.integers(0, max_len, batch).astype(np.int32)
    device_q, k_cache, v_cache = gk.asarray(q), *map(gk.asarray, old)
    run(
        rope_append(
            *(device_q, *map(gk.asarray, (k, v, cosines, sines)), k_cache, v_cache),
            gk.asarray(position),
            slots=gk.asarray(np.array(slots, np.int32)),
        )
    )
    real = [b for b, slot in enumerate(slots) if 0 <= slot < count]
    at, rows = position[real], [slots[b] for b in real]
    expected_q, (expected_k, expected_v) = q.astype(np.float64), old
    expected_q[real] = rotated(q[real], cosines[at], sines[at])
    expected_k[rows, :, at] = rotated(k[real], cosines[at], sines[at])
    expected_v[rows, :, at] = v[real]
    np.testing.assert_allclose(device_q.get(), expected_q, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(k_cache.get(), expected_k, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(v_cache.get(), expected_v)


@pytest.mark.parametrize("outside", [-1, 4])
def test_a_position_outside_the_cache_changes_nothing(run, rng, outside):
    q, k, v = operands(rng, 1, 2, 1, 8)
    device_q = gk.asarray(q)
    k_cache, v_cache = gk.zeros((1, 1, 4, 8)), gk.zeros((1, 1, 4, 8))
    position = gk.asarray(np.array([outside], np.int32))
    run(
        rope_append(
            *(device_q, gk.asarray(k), gk.asarray(v), *map(gk.asarray, tables(4, 8))),
            *(k_cache, v_cache, position),
        )
    )
    np.testing.assert_array_equal(device_q.get(), q)
    assert not k_cache.get().any()
    assert not v_cache.get().any()


def test_arguments_are_checked(runtime):
    q, kv, cache = gk.zeros((1, 4, 8)), gk.zeros((1, 2, 8)), gk.zeros((1, 2, 16, 8))
    table, position = gk.zeros((16, 4)), gk.zeros(1, np.int32)
    good = dict(zip(("q", "k", "v"), (q, kv, kv), strict=True))
    good |= {"cos_table": table, "sin_table": table, "k_cache": cache, "v_cache": cache}
    good["position"] = position
    rope_append(**good)
    rope_append(**good, slots=position)
    for name, wrong, message in (
        ("q", gk.zeros((1, 4, 9)), r"q: expected whole heads of 8, came 36 elements a row"),
        ("k", q, r"k: expected shape \(1, 16\), came \(1, 4, 8\)"),
        ("v", gk.zeros((2, 2, 8)), r"v: expected shape \(1, 16\), came \(2, 2, 8\)"),
        ("cos_table", gk.zeros((15, 4)), r"cos_table: expected 16 rows or more, came 15"),
        ("sin_table", gk.zeros((16, 8)), r"sin_table: expected shape \(16, 4\), came \(16, 8\)"),
        ("k_cache", gk.zeros((1, 2, 16, 7)), r"k_cache: expected an even head_dim, came 7"),
        ("v_cache", gk.zeros((1, 2, 15, 8)), r"v_cache: expected shape \(1, 2, 16, 8\)"),
        ("position", gk.zeros(1, np.int64), r"position: expected dtype int32, came int64"),
        ("slots", gk.zeros(1), r"slots: expected dtype int32, came float32"),
        ("slots", gk.zeros(2, np.int32), r"q: expected shape \(2, heads \* head_dim\), came"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            rope_append(**(good | {name: wrong}))
