from functools import partial

import numpy as np
import pytest
from batch_cases import BATCHES, BFLOAT16, EPS, MODELS, SUMS, Stream, bfloat16, close, product
from graphkit.kernels.decode.batch_tiles import Tiles
from graphkit.kernels.decode.batch_vocabulary import batch_vocabulary, vocabulary_blocks

import graphkit as gk
from graphkit.runtime.protocol import DeviceAttribute


def outputs(poisoned, batch, vocabulary, tiles=None):
    blocks = vocabulary_blocks(vocabulary, batch, tiles)
    shapes = ((batch, vocabulary), np.float32), ((blocks, batch), np.float32)
    return [poisoned(*item) for item in (*shapes, ((blocks, batch), np.int32))]


def best_of(best, index):
    """Return the lowest index of the largest of the candidates; NaN is less than anything."""
    values = np.where(np.isnan(best), -np.inf, best)
    largest = values == values.max(axis=0)
    return np.where(largest, index, np.iinfo(np.int32).max).min(axis=0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", BATCHES)
def test_matches_float64(run, poisoned, rng, batch, model):
    extents = MODELS[model]
    stream = Stream(rng, batch, extents.hidden)
    weight = bfloat16(rng, extents.vocabulary, extents.hidden, scale=0.1)
    logits, best, index = outputs(poisoned, batch, extents.vocabulary)
    run(batch_vocabulary(*stream.on_device(), gk.asarray(weight), logits, best, index, eps=EPS))
    close(logits.get(), product(stream.normalized, weight), **SUMS)
    found = best_of(best.get(), index.get())
    np.testing.assert_array_equal(found, logits.get().argmax(axis=1))
    rows = np.arange(batch)
    np.testing.assert_array_equal(best.get().max(axis=0), logits.get()[rows, found])


@pytest.mark.parametrize(
    ("tiles", "grid"),
    [
        (Tiles(64, 1, 64, 2, 16), None),
        (Tiles(64, 1, 128, 3, 32), 2),
        (Tiles(256, 1, 32, 4, 64), 3),
        (Tiles(128, 1, 64, 5, 16), 1),  # one block does tile after tile
    ],
    ids=str,
)
def test_any_tiles_and_any_grid_give_the_same(run, poisoned, rng, tiles, grid):
    stream, weight = Stream(rng, 16, 264), bfloat16(rng, 712, 264, scale=0.1)
    logits, best, index = outputs(poisoned, 16, 712, tiles)
    launch = batch_vocabulary(
        *stream.on_device(), gk.asarray(weight), logits, best, index, eps=EPS, tiles=tiles
    )
    blocks = grid or launch.grid[0]
    run(launch._replace(grid=(blocks, 1, 1)))
    close(logits.get(), product(stream.normalized, weight), **SUMS)
    found = best_of(best.get()[:blocks], index.get()[:blocks])
    np.testing.assert_array_equal(found, logits.get().argmax(axis=1))


def test_the_first_of_equals_wins_and_nan_is_less_than_anything(run, poisoned, rng):
    stream, weight = Stream(rng, 8, 64), bfloat16(rng, 520, 64, scale=0.01)
    stream.xg[...] = 1.0
    stream.squares[...] = 64.0
    weight[[9, 17, 300, 519]] = 1.0  # as large as one another
    weight[[3, 18, 301]] = np.nan
    logits, best, index = outputs(poisoned, 8, 520)
    arrays = (*stream.on_device(), gk.asarray(weight), logits, best, index)
    run(batch_vocabulary(*arrays, eps=EPS))
    np.testing.assert_array_equal(best_of(best.get(), index.get()), 9)
    assert np.isnan(logits.get()[:, [3, 18, 301]]).all()


def test_a_row_of_nothing_but_nan_gives_nan_and_its_first_token(run, poisoned, rng):
    stream, weight = Stream(rng, 8, 64), bfloat16(rng, 200, 64)
    stream.xg[5] = np.nan
    logits, best, index = outputs(poisoned, 8, 200)
    arrays = (*stream.on_device(), gk.asarray(weight), logits, best, index)
    run(batch_vocabulary(*arrays, eps=EPS))
    assert np.isnan(best.get()[:, 5]).all()
    assert best_of(best.get(), index.get())[5] == 0
    others = [0, 1, 2, 3, 4, 6, 7]
    assert np.isfinite(logits.get()[others]).all()


def test_candidates_come_without_logits_too_and_padding_gets_none(run, poisoned, rng):
    stream, weight = Stream(rng, 16, 264), bfloat16(rng, 520, 264, scale=0.1)
    expected = product(stream.normalized, weight).argmax(axis=1)
    stream.xg[11:] = np.nan
    logits, best, index = outputs(poisoned, 16, 520)
    arrays = (*stream.on_device(), gk.asarray(weight))
    run(batch_vocabulary(*arrays, None, best, index, eps=EPS, rows=11))
    np.testing.assert_array_equal(best_of(best.get(), index.get())[:11], expected[:11])
    assert np.isnan(best.get()[:, 11:]).all()
    run(batch_vocabulary(*arrays, logits, best, index, eps=EPS, rows=11))
    assert np.isfinite(logits.get()[:11]).all()
    assert np.isnan(logits.get()[11:]).all()


def test_tiles_that_the_device_has_too_little_shared_memory_for(runtime, monkeypatch):
    ask, which = runtime.device_get_attribute, DeviceAttribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    monkeypatch.setattr(
        runtime,
        "device_get_attribute",
        lambda attribute, device: 99 << 10 if attribute is which else ask(attribute, device),
    )
    xg, squares, weight = (
        gk.zeros((8, 64), np.float16),
        gk.zeros((2, 8)),
        gk.zeros((40, 64), BFLOAT16),
    )
    best, index = gk.zeros((1, 8)), gk.zeros((1, 8), np.int32)
    launch = partial(batch_vocabulary, xg, squares, weight, None, best, index, eps=EPS)
    with pytest.raises(ValueError, match=r"^tiles: expected what fits a block, came Tiles"):
        launch()
    launch(tiles=Tiles(64, 1, 128, 2, 16))


def test_arguments_are_checked(runtime):
    xg, squares = gk.zeros((8, 64), np.float16), gk.zeros((2, 8))
    weight = gk.zeros((40, 64), BFLOAT16)
    best, index = gk.zeros((1, 8)), gk.zeros((1, 8), np.int32)
    with pytest.raises(ValueError, match=r"^logits: expected shape \(rows, 40\), came \(8, 64\)"):
        batch_vocabulary(xg, squares, weight, gk.zeros((8, 64)), best, index, eps=EPS)
    with pytest.raises(ValueError, match=r"^best_index: expected dtype int32, came float32"):
        batch_vocabulary(xg, squares, weight, None, best, best, eps=EPS)
    with pytest.raises(ValueError, match=r"^best: expected shape \(1, 8\), came \(2, 8\)"):
        batch_vocabulary(xg, squares, weight, None, gk.zeros((2, 8)), index, eps=EPS)
    with pytest.raises(ValueError, match=r"^tiles: expected no split of k"):
        batch_vocabulary(xg, squares, weight, None, best, index, eps=EPS, tiles=Tiles(split=2))
    with pytest.raises(ValueError, match=r"^weight: expected a vocabulary that is a multiple of 8"):
        batch_vocabulary(xg, squares, gk.zeros((41, 64), BFLOAT16), None, best, index, eps=EPS)
