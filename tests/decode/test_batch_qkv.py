import numpy as np
import pytest
from batch_cases import (
    BATCHES,
    BFLOAT16,
    EPS,
    MODELS,
    ROUNDED,
    SUMS,
    Stream,
    bfloat16,
    close,
    product,
)
from decode_cases import NO_PAGES, Fenced
from graphkit.kernels.decode.batch_qkv import batch_qkv
from graphkit.kernels.decode.batch_tiles import Tiles

import graphkit as gk

MAX_LEN = 12


def tables(head_dim):
    angles = np.arange(MAX_LEN)[:, None] / 100 ** (np.arange(0, head_dim, 2) / head_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotated(heads, cosines, sines):
    """Hugging Face's apply_rotary_pos_emb: x * cos + rotate_half(x) * sin, of doubled tables."""
    half = heads.shape[-1] // 2
    rotate_half = np.concatenate((-heads[..., half:], heads[..., :half]), axis=-1)
    doubled = [np.concatenate((table, table), axis=-1)[:, None, :] for table in (cosines, sines)]
    return heads * doubled[0] + rotate_half * doubled[1]


class Case:
    """Operands of one step."""

    def __init__(self, rng, poisoned, batch, extents, cache_shape=None):
        self.batch, self.extents = batch, extents
        hidden, _, heads, kv_heads, head_dim, _ = extents
        self.stream = Stream(rng, batch, hidden)
        self.matrices = [
            bfloat16(rng, count * head_dim, hidden, scale=0.1)
            for count in (heads, kv_heads, kv_heads)
        ]
        self.tables = tables(head_dim)
        self.position = rng.integers(0, MAX_LEN, batch).astype(np.int32)
        self.q = poisoned((batch, heads * head_dim))
        shape = cache_shape or (batch, kv_heads, MAX_LEN, head_dim)
        self.fenced = [Fenced(np.full(shape, np.nan, BFLOAT16)) for _ in "kv"]
        self.caches = [cache.array for cache in self.fenced]

    def launch(self, **options):
        arrays = map(gk.asarray, (*self.matrices, *self.tables, self.position))
        return batch_qkv(
            *self.stream.on_device(), *arrays, self.q, *self.caches, eps=EPS, **options
        )

    def expected(self):
        """Return q, k and v of every row, [batch, heads, head_dim]."""
        head_dim = self.extents.head_dim
        q, k, v = (
            product(self.stream.normalized, matrix).reshape(self.batch, -1, head_dim)
            for matrix in self.matrices
        )
        # A row whose position is none has any angles: it is not looked at.
        here = [table[np.clip(self.position, 0, MAX_LEN - 1)] for table in self.tables]
        return rotated(q, *here), rotated(k, *here), v

    def check(self, rows, cached, slot_of, offset_of):
        """Check q of rows, the cache of rows ``cached``, and that nothing else was written."""
        q, k, v = self.expected()
        close(self.q.get()[rows], q[rows].reshape(len(rows), -1), **SUMS)
        others = np.setdiff1d(np.arange(self.batch), rows)
        assert np.isnan(self.q.get()[others]).all()
        for cache, expected in zip(self.caches, (k, v), strict=True):
            found = cache.get().astype(np.float64)
            for b in cached:
                close(found[slot_of(b), :, offset_of(b)], expected[b], **ROUNDED)
                found[slot_of(b), :, offset_of(b)] = np.nan
            assert np.isnan(found).all()
        for cache in self.fenced:
            cache.check()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", BATCHES)
def test_matches_float64_and_touches_nothing_else(run, poisoned, rng, batch, model):
    case = Case(rng, poisoned, batch, MODELS[model])
    case.position[:2] = 0, MAX_LEN - 1
    run(case.launch())
    rows = np.arange(batch)
    case.check(rows, rows, lambda b: b, lambda b: case.position[b])


@pytest.mark.parametrize(
    "tiles",
    [
        Tiles(48, 2, 64, 3, 16, 1),
        Tiles(96, 8, 32, 2, 32, 2),
        Tiles(192, 8, 64, 2, 64, 2),
        Tiles(128, 1, 128, 2, 32, 4),
    ],
    ids=str,
)
def test_any_tiles_give_the_same(run, poisoned, rng, tiles):
    case = Case(rng, poisoned, 16, MODELS["odd"])
    run(case.launch(tiles=tiles))
    rows = np.arange(16)
    case.check(rows, rows, lambda b: b, lambda b: case.position[b])


@pytest.mark.parametrize("model", MODELS)
def test_pages_are_found_in_the_block_table(run, poisoned, rng, model):
    extents, page, pages = MODELS[model], 4, MAX_LEN // 4
    case = Case(rng, poisoned, 8, extents, (30, extents.kv_heads, page, extents.head_dim))
    block_table = rng.permutation(30)[: 8 * pages].reshape(8, pages).astype(np.int32)
    case.position[:2] = 0, MAX_LEN - 1
    for b, number in enumerate(NO_PAGES.values(), 2):
        block_table[b, case.position[b] // page] = number(30)
    run(case.launch(block_table=gk.asarray(block_table)))
    case.check(
        np.arange(8),
        [0, 1, 6, 7],
        lambda b: block_table[b, case.position[b] // page],
        lambda b: case.position[b] % page,
    )


def test_a_position_outside_of_the_cache_writes_nothing(run, poisoned, rng):
    case = Case(rng, poisoned, 8, MODELS["bundled"])
    case.position[[2, 5, 6]] = MAX_LEN, -1, 2**31 - 1
    run(case.launch())
    rows = np.array([0, 1, 3, 4, 7])
    case.check(rows, rows, lambda b: b, lambda b: case.position[b])


@pytest.mark.parametrize("rows", [1, 6])
def test_padding_is_neither_read_nor_written(run, poisoned, rng, rows):
    case = Case(rng, poisoned, 8, MODELS["odd"])
    case.stream.xg[rows:] = np.nan
    run(case.launch(rows=rows))
    real = np.arange(rows)
    case.check(real, real, lambda b: b, lambda b: case.position[b])


def test_rows_without_a_slot_are_not_cached(run, poisoned, rng):
    extents = MODELS["bundled"]
    shape = (5, extents.kv_heads, MAX_LEN, extents.head_dim)
    case = Case(rng, poisoned, 8, extents, shape)
    run(case.launch())
    case.check(np.arange(8), np.arange(5), lambda b: b, lambda b: case.position[b])


def test_arguments_are_checked(runtime):
    xg, squares = gk.zeros((8, 64), np.float16), gk.zeros((2, 8))
    wq, wk = gk.zeros((64, 64), BFLOAT16), gk.zeros((32, 64), BFLOAT16)
    table, position = gk.zeros((4, 8)), gk.zeros(8, np.int32)
    q, cache = gk.zeros((8, 64)), gk.zeros((8, 2, 4, 16), BFLOAT16)
    good = (xg, squares, wq, wk, wk, table, table, position, q, cache, cache)
    batch_qkv(*good, eps=EPS)

    def bad(index, value, **options):
        return batch_qkv(*good[:index], value, *good[index + 1 :], eps=EPS, **options)

    with pytest.raises(ValueError, match=r"^wk: expected shape \(32, 64\), came \(64, 64\)"):
        bad(3, wq)
    with pytest.raises(ValueError, match=r"^wq: expected a multiple of 2 heads of 16 rows"):
        bad(2, gk.zeros((48, 64), BFLOAT16))
    with pytest.raises(ValueError, match=r"^cos_table: expected 4 rows or more, came 3"):
        bad(5, gk.zeros((3, 8)))
    with pytest.raises(ValueError, match=r"^position: expected dtype int32, came float32"):
        bad(7, gk.zeros(8))
    with pytest.raises(ValueError, match=r"^k_cache: expected head_dim that is a multiple of 16"):
        bad(9, gk.zeros((8, 2, 4, 24), BFLOAT16))
    with pytest.raises(ValueError, match=r"^v_cache: expected shape \(8, 2, 4, 16\), came"):
        bad(10, gk.zeros((8, 2, 5, 16), BFLOAT16))
    with pytest.raises(ValueError, match=r"^cos_table: expected 12 rows or more, came 4"):
        batch_qkv(*good, eps=EPS, block_table=gk.zeros((8, 3), np.int32))
