import numpy as np
import pytest
from batch_cases import BATCHES, BFLOAT16, EPS, HALVED, MODELS, Stream, bfloat16, close, product
from graphkit.kernels.decode.batch_gate_up import batch_gate_up
from graphkit.kernels.decode.batch_tiles import Tiles

import graphkit as gk


def reference(stream, gate, up):
    gates = product(stream.normalized, gate)
    return gates / (1 + np.exp(-gates)) * product(stream.normalized, up)


def operands(rng, batch, hidden, intermediate):
    gate, up = (bfloat16(rng, intermediate, hidden, scale=0.1) for _ in range(2))
    return Stream(rng, batch, hidden), gate, up


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", BATCHES)
def test_matches_float64(run, poisoned, rng, batch, model):
    hidden, intermediate = MODELS[model][:2]
    stream, gate, up = operands(rng, batch, hidden, intermediate)
    h = poisoned((batch, intermediate), np.float16)
    run(batch_gate_up(*stream.on_device(), gk.asarray(gate), gk.asarray(up), h, eps=EPS))
    close(h.get(), reference(stream, gate, up), **HALVED)


@pytest.mark.parametrize(
    "tiles",
    [
        Tiles(64, 1, 64, 2, 32, 1),
        Tiles(128, 8, 32, 3, 16, 2),
        Tiles(256, 2, 32, 5, 32, 1),
        Tiles(64, 4, 128, 2, 64, 4),
        Tiles(64, 1, 256, 2, 16, 2),
        Tiles(48, 2, 128, 3, 16, 1),
    ],
    ids=str,
)
def test_any_tiles_give_the_same(run, poisoned, rng, tiles):
    stream, gate, up = operands(rng, 16, 264, 200)
    h = poisoned((16, 200), np.float16)
    arrays = (*stream.on_device(), gk.asarray(gate), gk.asarray(up), h)
    run(batch_gate_up(*arrays, eps=EPS, tiles=tiles))
    close(h.get(), reference(stream, gate, up), **HALVED)


@pytest.mark.parametrize("rows", [1, 5, 7])
def test_padding_is_neither_read_nor_written(run, poisoned, rng, rows):
    stream, gate, up = operands(rng, 8, 264, 200)
    expected = reference(stream, gate, up)[:rows]
    stream.xg[rows:] = np.nan
    h = poisoned((8, 200), np.float16)
    arrays = (*stream.on_device(), gk.asarray(gate), gk.asarray(up), h)
    run(batch_gate_up(*arrays, eps=EPS, rows=rows))
    close(h.get()[:rows], expected, **HALVED)
    assert np.isnan(h.get()[rows:].astype(np.float32)).all()


def test_a_gate_far_below_zero_closes(run, poisoned, rng):
    stream, gate, up = operands(rng, 8, 192, 64)
    stream.xg[...] = 1.0
    gate[...] = -8.0  # silu of -1000 and less, whose exponential is infinite
    h = poisoned((8, 64), np.float16)
    run(batch_gate_up(*stream.on_device(), gk.asarray(gate), gk.asarray(up), h, eps=EPS))
    np.testing.assert_array_equal(h.get().astype(np.float32), 0.0)


def test_arguments_are_checked(runtime):
    xg, squares = gk.zeros((8, 64), np.float16), gk.zeros((2, 8))
    matrix, h = gk.zeros((32, 64), BFLOAT16), gk.zeros((8, 32), np.float16)
    with pytest.raises(ValueError, match=r"^xg: expected a batch of 8, 16, 32 or 64, came 4"):
        batch_gate_up(gk.zeros((4, 64), np.float16), squares, matrix, matrix, h, eps=EPS)
    with pytest.raises(ValueError, match=r"^xg: expected a width that is a multiple of 8, came 12"):
        batch_gate_up(gk.zeros((8, 12), np.float16), squares, matrix, matrix, h, eps=EPS)
    with pytest.raises(ValueError, match=r"^squares: expected shape \(parts, 8\), came \(2, 9\)"):
        batch_gate_up(xg, gk.zeros((2, 9)), matrix, matrix, h, eps=EPS)
    with pytest.raises(ValueError, match=r"^gate: expected dtype bfloat16, came float32"):
        batch_gate_up(xg, squares, gk.zeros((32, 64)), matrix, h, eps=EPS)
    with pytest.raises(ValueError, match=r"^up: expected shape \(32, 64\), came \(8, 32\)"):
        batch_gate_up(xg, squares, matrix, gk.zeros((8, 32), BFLOAT16), h, eps=EPS)
    with pytest.raises(ValueError, match=r"^xg: expected dtype float16, came bfloat16"):
        batch_gate_up(gk.zeros((8, 64), BFLOAT16), squares, matrix, matrix, h, eps=EPS)
    with pytest.raises(ValueError, match=r"^h: expected dtype float16, came bfloat16"):
        batch_gate_up(xg, squares, matrix, matrix, gk.zeros((8, 32), BFLOAT16), eps=EPS)
    with pytest.raises(ValueError, match=r"^rows: expected 1 to 8, came 9"):
        batch_gate_up(xg, squares, matrix, matrix, h, eps=EPS, rows=9)
    with pytest.raises(TypeError, match=r"^rows: expected an int, came float"):
        batch_gate_up(xg, squares, matrix, matrix, h, eps=EPS, rows=1.0)
    with pytest.raises(ValueError, match=r"^tiles: expected what fits a block, came Tiles\(rows=8"):
        batch_gate_up(xg, squares, matrix, matrix, h, eps=EPS, tiles=Tiles(8))
    with pytest.raises(ValueError, match=r"^tiles: expected what fits a block, .*rows=48"):
        batch_gate_up(xg, squares, matrix, matrix, h, eps=EPS, tiles=Tiles(48, 1, 256, 2, 16, 1))
    with pytest.raises(TypeError, match=r"^tiles: expected a Tiles, came tuple"):
        batch_gate_up(xg, squares, matrix, matrix, h, eps=EPS, tiles=(16, 1, 256, 2, 16, 1))
    shifted = gk.zeros(32 * 64 + 4, BFLOAT16)[4:].view((32, 64), BFLOAT16)
    with pytest.raises(ValueError, match=r"^gate: expected a 16-byte boundary, came address"):
        batch_gate_up(xg, squares, shifted, matrix, h, eps=EPS)


def test_a_device_without_clusters_is_refused(sim, monkeypatch):
    asked = sim.device_get_attribute

    def older(attribute, device):
        return 8 if "CAPABILITY" in attribute.name else asked(attribute, device)

    monkeypatch.setattr(sim, "device_get_attribute", older)
    xg, squares = gk.zeros((8, 64), np.float16), gk.zeros((2, 8))
    matrix, h = gk.zeros((32, 64), BFLOAT16), gk.zeros((8, 32), np.float16)
    with pytest.raises(ValueError, match=r"^batch_gate_up: expected .* 9\.0 or more.* came 8\.8"):
        batch_gate_up(xg, squares, matrix, matrix, h, eps=EPS)
