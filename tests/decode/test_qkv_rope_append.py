"""q, k and v of one and two rows against float64."""

from types import MappingProxyType

import numpy as np
import pytest
from batch_cases import ROUNDED, close, product
from decode_cases import (
    BFLOAT16,
    EPS,
    MODELS,
    NO_PAGES,
    SUMS,
    Cache,
    Fenced,
    bfloat16,
    floats,
    normalized,
    off_boundary,
    tables,
)
from decode_cases import turned as turned_at
from graphkit.kernels.decode import qkv_rope_append

import graphkit as gk

MAX_LEN = 12


class Case:
    def __init__(self, rng, batch, extents, page=0):
        hidden, _, self.heads, self.kv_heads, self.head_dim, _ = extents
        counts = self.heads, self.kv_heads, self.kv_heads
        self.weights = [bfloat16(rng, n * self.head_dim, hidden, scale=0.1) for n in counts]
        self.x, self.gain = floats(rng, batch, hidden), floats(rng, hidden)
        self.position = np.array([0, MAX_LEN - 1][:batch], np.int32)
        nothing = np.full((batch, self.kv_heads, MAX_LEN, self.head_dim), np.nan, BFLOAT16)
        self.cache = Cache(nothing, page)
        self.q = gk.asarray(np.full((batch, self.heads * self.head_dim), np.nan, np.float32))
        self.fenced = [Fenced(self.cache.array) for _ in "kv"]
        self.k_cache, self.v_cache = (cache.array for cache in self.fenced)

    def launch(self, displaced=MappingProxyType({}), **changes):
        table = None if self.cache.table is None else gk.asarray(self.cache.table)
        arrays = {
            "weight_q": self.weights[0],
            "weight_k": self.weights[1],
            "weight_v": self.weights[2],
            "x": self.x,
            "gain": self.gain,
            "cosines": tables(MAX_LEN, self.head_dim)[0],
            "sines": tables(MAX_LEN, self.head_dim)[1],
            "positions": self.position,
        }
        given = {name: gk.asarray(array) for name, array in (arrays | changes).items()}
        written = {"q": self.q, "k_cache": self.k_cache, "v_cache": self.v_cache}
        return qkv_rope_append(**(given | written | displaced), eps=EPS, block_table=table)

    def check(self, cached=(0, 1)):
        n = normalized(self.x, self.gain)
        found = [
            self.cache.whole(cache.get()).astype(np.float64)
            for cache in (self.k_cache, self.v_cache)
        ]
        for b, at in enumerate(self.position):
            q, k, v = (product(n[b : b + 1], w).reshape(-1, self.head_dim) for w in self.weights)
            if 0 <= at < MAX_LEN:
                close(self.q.get()[b], turned_at(q, at, MAX_LEN).ravel(), **SUMS)
                if b not in cached:
                    continue
                close(found[0][b, :, at], turned_at(k, at, MAX_LEN), **ROUNDED)
                close(found[1][b, :, at], v, **ROUNDED)
                found[0][b, :, at] = found[1][b, :, at] = np.nan
        assert np.isnan(found).all()  # and nothing else was written
        for cache in self.fenced:
            cache.check()


@pytest.mark.parametrize("page", [0, 4])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", [1, 2])
def test_matches_float64_and_touches_nothing_else(run, rng, batch, model, page):
    case = Case(rng, batch, MODELS[model], page)
    run(case.launch())
    case.check()


@pytest.mark.parametrize("position", [1, 5, MAX_LEN - 1, MAX_LEN, -1, 2**31 - 1])
@pytest.mark.parametrize("page", [0, 4])
def test_positions_inside_and_outside_of_the_cache(run, rng, page, position):
    case = Case(rng, 1, MODELS["odd"], page)
    case.position[0] = position
    run(case.launch())
    case.check()


@pytest.mark.parametrize("number", NO_PAGES.values(), ids=NO_PAGES)
@pytest.mark.parametrize("row", [0, 1])
def test_a_page_that_is_none_is_not_written(run, rng, row, number):
    case = Case(rng, 2, MODELS["odd"], page=4)
    page = case.cache.table[row, case.position[row] // 4 :][:1]
    there, page[0] = page[0], number(len(case.cache.array))
    run(case.launch())
    page[0] = there  # where nothing may have been written
    case.check(cached=[1 - row])


@pytest.mark.parametrize(
    "name", ["weight_q", "weight_k", "weight_v", "x", "gain", "k_cache", "v_cache"]
)
def test_what_is_loaded_by_sixteen_bytes_lies_on_their_boundary(run, rng, name):
    case = Case(rng, 1, MODELS["odd"])
    arrays = dict(zip(("weight_q", "weight_k", "weight_v"), case.weights, strict=True))
    arrays |= {"x": case.x, "gain": case.gain}
    array = arrays.get(name, case.cache.array)
    with pytest.raises(ValueError, match=rf"^{name}: expected a 16-byte boundary, came address"):
        case.launch(displaced={name: off_boundary(array)})


def test_bad_input(run, rng):
    case = Case(rng, 1, MODELS["odd"])
    hidden = MODELS["odd"].hidden
    for changes, says in (
        ({"x": floats(rng, 1, hidden + 8)}, r"^x: expected shape \(1, hidden\)|^gain: expected"),
        ({"gain": bfloat16(rng, hidden)}, "^gain: expected dtype float32, came bfloat16"),
        ({"weight_k": case.weights[0]}, r"^weight_k: expected shape \(48, 264\)"),
        ({"weight_q": case.weights[0][:50]}, "^weight_q: expected a multiple of 1 heads of 48"),
        ({"cosines": tables(4, 48)[0], "sines": tables(4, 48)[1]}, "^cosines: expected 12 rows"),
    ):
        with pytest.raises(ValueError, match=says):
            case.launch(**changes)
    many = Case(rng, 2, MODELS["odd"])
    many.position = np.zeros(3, np.int32)
    with pytest.raises(ValueError, match="expected 3 slots or more"):
        many.launch()
