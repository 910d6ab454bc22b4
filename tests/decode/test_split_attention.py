"""Attention of one token a row to the bfloat16 cache against float64."""

import numpy as np
import pytest
from batch_cases import HALVED, close
from compiled import log_of
from decode_cases import (
    BFLOAT16,
    EXPONENTS,
    MODELS,
    NO_PAGES,
    Cache,
    Extents,
    Fenced,
    bfloat16,
    floats,
    off_boundary,
)
from graphkit.kernels.decode.split_attention import found_shape, split_attention

import graphkit as gk

pytestmark = pytest.mark.untraced

WIDE = Extents(0, 0, 8, 1, 128, 0)  # the largest group
SMALL = Extents(0, 0, 4, 2, 8, 0)
ODD = Extents(0, 0, 3, 1, 80, 0)  # neither of 32 nor of 64 elements
LONGEST = Extents(0, 0, 8, 2, 256, 0)
LLAMA = Extents(0, 0, 8, 2, 64, 0)
EXTENTS = MODELS | {"wide": WIDE, "small": SMALL, "odd heads": ODD, "longest": LONGEST}


class Case:
    def __init__(self, rng, batch, extents, max_len, page=0, dtype=np.float32):
        _, _, self.heads, self.kv_heads, self.head_dim, _ = extents
        self.batch, self.max_len = batch, max_len
        shape = batch, self.kv_heads, max_len, self.head_dim
        self.k, self.v = (Cache(bfloat16(rng, *shape), page) for _ in "kv")
        self.q = floats(rng, batch, self.heads * self.head_dim)
        self.out = gk.asarray(np.full(self.q.shape, np.nan, dtype))
        shape = found_shape(batch, self.heads, self.kv_heads, self.head_dim, max_len)
        self.found = gk.asarray(np.full(shape, np.nan, np.float32))
        self.arrived = gk.zeros(batch * self.kv_heads, np.int32)
        self.fenced = [Fenced(cache.array) for cache in (self.k, self.v)]
        self.on_device = gk.asarray(self.q), *(cache.array for cache in self.fenced)
        self.positions = gk.zeros(batch, np.int32)

    def launch(self, **options):
        table = None if self.k.table is None else gk.asarray(self.k.table)
        scratch = self.positions, self.found, self.arrived, self.out
        return split_attention(*self.on_device, *scratch, block_table=table, **options)

    def expected(self, positions, scale=None):
        group = self.heads // self.kv_heads
        out = np.zeros((self.batch, self.heads, self.head_dim))
        for b, at in enumerate(positions):
            length = max(0, min(at + 1, self.max_len))
            for h in range(self.heads if length else 0):
                k, v = (c.rows[b, h // group, :length].astype(np.float64) for c in (self.k, self.v))
                q = self.q[b].reshape(self.heads, -1)[h].astype(np.float64)
                score = k @ q * (scale or self.head_dim**-0.5)
                odds = np.exp(score - score.max())
                out[b, h] = odds @ v / odds.sum()
        return out.reshape(self.batch, -1)


@pytest.mark.parametrize("page", [0, 5, 60])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("extents", EXTENTS.values(), ids=EXTENTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_matches_float64(run, rng, batch, extents, dtype, page):
    case = Case(rng, batch, extents, 60, page, dtype)
    launch = case.launch()
    for positions in ([0, 59], [1, 30], [59, 60], [-1, 31], [2**31 - 2, -5]):
        case.positions.set(positions[:batch])
        case.out.set(np.full(case.q.shape, np.nan, dtype))
        run(launch)
        tolerance = EXPONENTS if dtype == np.float32 else HALVED
        close(case.out.get(), case.expected(positions[:batch]), **tolerance)
    assert not case.arrived.get().any()


@pytest.mark.parametrize("max_len", [600, 3000])
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_contexts_over_several_blocks(run, rng, batch, max_len):
    case = Case(rng, batch, SMALL, max_len, page=100)
    launch = case.launch()
    for at in (max_len // 3, max_len - 1):
        positions = [max(0, at - 211 * b) for b in range(batch)]
        case.positions.set(positions)
        run(launch)
        close(case.out.get(), case.expected(positions), **EXPONENTS)
    assert not case.arrived.get().any()


@pytest.mark.parametrize("page", [0, 16, 640])
def test_many_long_sequences(run, rng, page):
    """So many that attention has a multiprocessor to itself."""
    case = Case(rng, 144, LLAMA, 640, page)
    launch = case.launch()
    positions = [(97 * b) % 640 for b in range(144)]
    case.positions.set(positions)
    run(launch)
    close(case.out.get(), case.expected(positions), **EXPONENTS)


@pytest.mark.parametrize("number", NO_PAGES.values(), ids=NO_PAGES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("model", ["bundled", "odd"])
def test_pages_that_are_none_hold_zeros(run, rng, model, dtype, number):
    """The first page of a row, one in the middle and the newest; of another row all of them."""
    case = Case(rng, 5, MODELS[model], 60, 5, dtype)
    positions = [59, 59, 44, 59, 59]
    for b, page in ((0, 0), (1, 7), (2, 8), *((3, page) for page in range(12))):
        case.k.table[b, page] = number(len(case.k.array))
        case.k.rows[b, :, page * 5 : page * 5 + 5] = 0
        case.v.rows[b, :, page * 5 : page * 5 + 5] = 0
    case.positions.set(positions)
    run(case.launch())
    tolerance = EXPONENTS if dtype == np.float32 else HALVED
    close(case.out.get(), case.expected(positions), **tolerance)
    assert not case.out.get()[3].any()


@pytest.mark.parametrize("number", NO_PAGES.values(), ids=NO_PAGES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_row_whose_only_page_is_none_finds_zeros(run, rng, batch, number):
    """As the rows of a batch that name their slots."""
    case = Case(rng, batch, SMALL, 60, page=60)
    case.k.table[0, 0] = number(len(case.k.array))
    for rows in (case.k.rows, case.v.rows):
        rows[0] = 0
    case.positions.set([59, 12, 30][:batch])
    case.out.set(np.full(case.q.shape, np.nan, np.float32))
    run(case.launch())
    close(case.out.get(), case.expected([59, 12, 30][:batch]), **EXPONENTS)
    assert not case.out.get()[0].any()


def test_every_other_page_of_a_long_context_is_none(run, rng):
    """Over several blocks, with more tiles than a warp has there at once."""
    case = Case(rng, 1, SMALL, 3000, page=100)
    case.k.table[:, ::2] = -1
    for rows in (case.k.rows, case.v.rows):
        rows.reshape(1, 2, 30, 100, 8)[:, :, ::2] = 0
    case.positions.set([2999])
    run(case.launch())
    close(case.out.get(), case.expected([2999]), **EXPONENTS)


def test_a_scale_of_ones_own_and_scores_that_differ_widely(run, rng):
    case = Case(rng, 1, SMALL, 200)
    case.positions.set([199])
    run(case.launch(scale=40.0))
    close(case.out.get(), case.expected([199], scale=40.0), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("batch", "max_len"), [(1, 64), (8, 64), (40, 512)])
def test_heads_of_64_elements_stay_in_registers(sim, rng, batch, max_len):
    case = Case(rng, batch, Extents(0, 0, 32, 8, 64, 0), max_len)
    log = log_of(case.launch().kernel, "sm_90", "--ptxas-options=-v")
    assert log.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == 2


@pytest.mark.parametrize(("at", "name"), [*enumerate(["q", "k_cache", "v_cache"])])
def test_what_is_loaded_by_sixteen_bytes_lies_on_their_boundary(run, rng, at, name):
    case = Case(rng, 1, SMALL, 20)
    arrays = list(case.on_device)
    arrays[at] = off_boundary(arrays[at].get())
    case.on_device = arrays
    with pytest.raises(ValueError, match=rf"^{name}: expected a 16-byte boundary, came address"):
        case.launch()


def test_a_table_for_more_places_than_are_counted_is_refused(run, rng):
    case = Case(rng, 1, SMALL, 20)
    caches = (gk.zeros((1, 2, 1 << 16, 8), BFLOAT16) for _ in "kv")
    scratch = case.positions, case.found, case.arrived, case.out
    table = gk.zeros((1, (1 << 14) + 1), np.int32)
    with pytest.raises(ValueError, match=r"^block_table: .*at most 1073741824 places, came 16385"):
        split_attention(case.on_device[0], *caches, *scratch, block_table=table)


def test_bad_input(run, rng):
    with pytest.raises(ValueError, match=r"^out: expected dtype float32, came bfloat16"):
        Case(rng, 1, SMALL, 20, dtype=BFLOAT16).launch()
    case = Case(rng, 1, SMALL, 20)
    with pytest.raises(ValueError, match=r"^scale: expected a finite number"):
        case.launch(scale=float("nan"))
    case.q = floats(rng, 1, 9 * 2 * 8)
    case.on_device = gk.asarray(case.q), *case.on_device[1:]
    with pytest.raises(ValueError, match=r"^q: expected 1 to 8 times 2 heads of 8, came 144"):
        case.launch()
    narrow = Case(rng, 1, Extents(0, 0, 2, 1, 8, 0), 20)
    narrow.on_device = narrow.on_device[0], *(gk.zeros((1, 1, 20, 12), BFLOAT16) for _ in "kv")
    with pytest.raises(ValueError, match=r"^k_cache: expected head_dim a multiple of 8, came 12"):
        narrow.launch()
    narrow.on_device = narrow.on_device[0], *(gk.zeros((1, 1, 20, 264), BFLOAT16) for _ in "kv")
    with pytest.raises(ValueError, match=r"^k_cache: expected head_dim of at most 256, came 264"):
        narrow.launch()
