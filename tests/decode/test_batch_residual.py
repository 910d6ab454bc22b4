import numpy as np
import pytest
from batch_cases import BATCHES, BFLOAT16, HALVED, MODELS, SUMS, bfloat16, close, float16, product
from graphkit.kernels.decode.batch_residual import batch_residual, residual_parts
from graphkit.kernels.decode.batch_tiles import Tiles

import graphkit as gk


class Case:
    """Operands of one projection."""

    def __init__(self, rng, poisoned, batch, hidden, width, tiles=None):
        self.input = float16(rng, batch, width)
        self.weight = bfloat16(rng, hidden, width, scale=0.1)
        self.gain = rng.standard_normal(hidden).astype(np.float32)
        self.x = rng.standard_normal((batch, hidden)).astype(np.float32)
        self.parts = residual_parts(hidden, width, batch, tiles)
        self.tiles = tiles
        self.new_xg = poisoned((batch, hidden), np.float16)
        self.squares = poisoned((self.parts, batch))
        self.new_x = gk.asarray(self.x)
        self.expected = self.x + product(self.input, self.weight)

    def launch(self, **options):
        arrays = map(gk.asarray, (self.input, self.weight, self.gain))
        outputs = (self.new_x, self.new_xg, self.squares)
        return batch_residual(*arrays, *outputs, tiles=self.tiles, **options)

    def check(self, rows):
        real = self.expected[:rows]
        close(self.new_x.get()[:rows], real, **SUMS)
        close(self.new_xg.get()[:rows], real * self.gain.astype(np.float64), **HALVED)
        sums = self.squares.get()[:, :rows].astype(np.float64).sum(axis=0)
        np.testing.assert_allclose(sums, (real * real).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("of", ["attended", "h"])
def test_matches_float64(run, poisoned, rng, batch, model, of):
    hidden, intermediate, heads, _, head_dim, _ = MODELS[model]
    width = heads * head_dim if of == "attended" else intermediate
    case = Case(rng, poisoned, batch, hidden, width)
    run(case.launch())
    case.check(batch)


@pytest.mark.parametrize(
    "tiles",
    [
        Tiles(16, 1, 128, 3, 16, 4),
        Tiles(32, 2, 64, 2, 16, 1),
        Tiles(64, 8, 32, 4, 16, 1),
        Tiles(128, 1, 64, 2, 64, 4),
        Tiles(128, 4, 128, 2, 32, 2),
        Tiles(32, 2, 512, 2, 16, 4),
    ],
    ids=str,
)
def test_any_tiles_give_the_same(run, poisoned, rng, tiles):
    case = Case(rng, poisoned, 32, 264, 712, tiles)
    run(case.launch())
    case.check(32)


@pytest.mark.parametrize("rows", [1, 9, 15])
def test_padding_is_neither_read_nor_written(run, poisoned, rng, rows):
    case = Case(rng, poisoned, 16, 264, 240)
    case.input[rows:] = np.nan
    run(case.launch(rows=rows))
    case.check(rows)
    np.testing.assert_array_equal(case.new_x.get()[rows:], case.x[rows:])
    assert np.isnan(case.new_xg.get()[rows:].astype(np.float32)).all()
    assert np.isnan(case.squares.get()[:, rows:]).all()


def test_gives_the_same_bits_every_time(run, poisoned, rng):
    case = Case(rng, poisoned, 64, 264, 712)
    run(case.launch())
    first = case.new_x.get(), case.squares.get()
    case.new_x.set(case.x)
    run(case.launch())
    np.testing.assert_array_equal(case.new_x.get(), first[0])
    np.testing.assert_array_equal(case.squares.get(), first[1])


def test_a_row_that_is_nan_spoils_no_other(run, poisoned, rng):
    case = Case(rng, poisoned, 8, 192, 480)
    case.input[3] = np.nan
    run(case.launch())
    others = [0, 1, 2, 4, 5, 6, 7]
    assert np.isnan(case.new_x.get()[3]).all()
    close(case.new_x.get()[others], case.expected[others], **SUMS)


def test_weights_keep_their_bits_down_to_subnormal_numbers(run, poisoned, rng):
    """All of them from 2**-17 on; below, float16 has a multiple of 2**-24 for each."""
    case = Case(rng, poisoned, 8, 192, 480)
    case.input[...] = np.eye(8, 480)
    case.new_x.set(np.zeros_like(case.x))
    case.weight = (rng.choice([-1, 1], (192, 480)) * rng.uniform(1, 2, (192, 480))).astype(BFLOAT16)
    case.weight *= np.ldexp(1.0, rng.integers(-20, -12, (192, 480))).astype(BFLOAT16)
    run(case.launch())
    found, weight = case.new_x.get().T, case.weight[:, :8].astype(np.float64)
    exact = np.abs(weight) >= 2.0**-17
    assert 0 < exact.sum() < exact.size
    np.testing.assert_array_equal(found[exact], weight[exact])
    np.testing.assert_array_equal(found[~exact], np.rint(weight[~exact] * 2.0**24) * 2.0**-24)


def test_beyond_65504_there_is_infinity(run, poisoned, rng):
    case = Case(rng, poisoned, 8, 192, 480)
    case.gain[:4] = 1e5, -1e5, 6e4, -6e4
    case.x[...] = 1.0
    case.new_x.set(case.x)
    case.input[...] = 0.0
    run(case.launch())
    expected = np.broadcast_to(np.array([np.inf, -np.inf, 6e4, -6e4]), (8, 4))
    np.testing.assert_array_equal(case.new_xg.get()[:, :4], expected)


def test_arguments_are_checked(runtime):
    wide, weight = gk.zeros((8, 32), np.float16), gk.zeros((64, 32), BFLOAT16)
    gain, x, xg, squares = (
        gk.zeros(64),
        gk.zeros((8, 64)),
        gk.zeros((8, 64), np.float16),
        gk.zeros((1, 8)),
    )
    batch_residual(wide, weight, gain, x, xg, squares, tiles=Tiles(64))
    with pytest.raises(ValueError, match=r"^weight: expected shape \(hidden, 32\), came \(8, 64\)"):
        batch_residual(wide, gk.zeros((8, 64), BFLOAT16), gain, x, xg, squares)
    with pytest.raises(ValueError, match=r"^x: expected dtype float32, came float16"):
        batch_residual(wide, weight, gain, xg, xg, squares)
    with pytest.raises(ValueError, match=r"^gain: expected dtype float32, came bfloat16"):
        batch_residual(wide, weight, gk.zeros(64, BFLOAT16), x, xg, squares)
    with pytest.raises(ValueError, match=r"^input: expected dtype float16, came bfloat16"):
        batch_residual(gk.zeros((8, 32), BFLOAT16), weight, gain, x, xg, squares)
    with pytest.raises(ValueError, match=r"^squares: expected shape \(2, 8\), came \(1, 8\)"):
        batch_residual(wide, weight, gain, x, xg, squares, tiles=Tiles(32))
    with pytest.raises(ValueError, match=r"^tiles: expected 16, 32, 64 or 128 rows, came 96"):
        batch_residual(wide, weight, gain, x, xg, squares, tiles=Tiles(96))
    with pytest.raises(ValueError, match=r"^tiles: expected what fits a block"):
        batch_residual(wide, weight, gain, x, xg, squares, tiles=Tiles(64, split=3))
