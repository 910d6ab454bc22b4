"""The projections of one and two rows against float64."""

import numpy as np
import pytest
from batch_cases import close, product
from decode_cases import (
    EPS,
    EXPONENTS,
    MODELS,
    SUMS,
    bfloat16,
    first_largest,
    floats,
    normalized,
    off_boundary,
)
from graphkit.kernels import argmax
from graphkit.kernels.decode import gate_up_silu, project_residual, project_vocabulary
from graphkit.kernels.decode.project_vocabulary import candidates

import graphkit as gk

BATCHES = [1, 2]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", BATCHES)
def test_project_residual_adds_to_the_stream(run, rng, batch, model):
    hidden, inner, heads, _, head_dim, _ = MODELS[model]
    for width in (heads * head_dim, inner):
        weight, x = bfloat16(rng, hidden, width, scale=0.1), floats(rng, batch, hidden)
        given, stream = floats(rng, batch, width), gk.asarray(x)
        run(project_residual(gk.asarray(weight), gk.asarray(given), stream))
        close(stream.get(), x + product(given, weight), **SUMS)


def test_project_residual_of_an_odd_number_of_rows(run, rng):
    weight, given = bfloat16(rng, 33, 64), floats(rng, 2, 64)
    stream = gk.zeros((2, 33))
    run(project_residual(gk.asarray(weight), gk.asarray(given), stream))
    close(stream.get(), product(given, weight), **SUMS)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", BATCHES)
def test_gate_up_silu(run, rng, poisoned, batch, model):
    hidden, inner, *_ = MODELS[model]
    gate, up = (bfloat16(rng, inner, hidden, scale=0.1) for _ in range(2))
    gate[0] = 8  # SiLU of a large number, and of a small one
    gate[1] = -8
    x, gain, out = np.abs(floats(rng, batch, hidden)), floats(rng, hidden), poisoned((batch, inner))
    arrays = map(gk.asarray, (gate, up, x, np.abs(gain)))
    run(gate_up_silu(*arrays, out, EPS))
    n = normalized(x, np.abs(gain))
    gates, ups = product(n, gate), product(n, up)
    with np.errstate(over="ignore"):
        expected = gates / (1 + np.exp(-gates)) * ups
    close(out.get(), expected, **EXPONENTS)


class Vocabulary:
    def __init__(self, run, rng, poisoned, batch, extents):
        self.run = run
        self.batch, self.count = batch, extents.vocabulary
        self.x, self.gain = floats(rng, batch, extents.hidden), floats(rng, extents.hidden)
        self.weight = bfloat16(rng, self.count, extents.hidden, scale=0.1)
        blocks = candidates(self.count)
        self.logits = poisoned((batch, self.count))
        self.value = poisoned((blocks, batch))
        self.index = poisoned((blocks, batch), np.int32)

    def launch(self):
        given = map(gk.asarray, (self.weight, self.x, self.gain))
        return project_vocabulary(*given, self.logits, self.value, self.index, EPS)

    def check(self):
        """Check the logits, and that the candidates are logits, one of them the first largest."""
        logits = self.logits.get()
        close(logits, product(normalized(self.x, self.gain), self.weight), **SUMS)
        value, index = self.value.get(), self.index.get()
        assert len(np.unique(index[:, 0])) == len(index)
        for b in range(self.batch):
            np.testing.assert_array_equal(value[:, b], logits[b, index[:, b]])
            best = first_largest(value[:, b], index[:, b])
            assert best == first_largest(logits[b], np.arange(self.count))
        chosen = gk.zeros(self.batch, np.int32)
        self.run(argmax(self.logits, chosen))
        best = [first_largest(row, np.arange(self.count)) for row in logits]
        np.testing.assert_array_equal(chosen.get(), best)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", BATCHES)
def test_project_vocabulary(run, rng, poisoned, batch, model):
    case = Vocabulary(run, rng, poisoned, batch, MODELS[model])
    run(case.launch())
    case.check()


@pytest.mark.parametrize("which", ["some", "all", "all but one", "minus infinity", "equal"])
def test_nan_and_equal_logits(run, rng, poisoned, which):
    case = Vocabulary(run, rng, poisoned, 2, MODELS["odd"])
    if which == "equal":
        case.weight[:] = case.weight[0]
    elif which == "some":
        case.weight[::3] = np.nan
    else:
        case.weight[:] = np.nan
        if which == "all but one":
            case.weight[520] = 1
        elif which == "minus infinity":  # in a block of its own, and beside NaN
            case.weight[[1, 300, 301, 520]] = -np.inf
            case.x, case.gain = np.abs(case.x), np.abs(case.gain)
    with np.errstate(invalid="ignore"):  # NumPy warns of what is asked for
        run(case.launch())
        case.check()
    if which == "minus infinity":
        assert np.isneginf(case.logits.get()[:, [1, 300, 301, 520]]).all()


def test_what_is_loaded_by_sixteen_bytes_lies_on_their_boundary(run, rng):
    matrix, x, gain = bfloat16(rng, 8, 64), floats(rng, 1, 64), floats(rng, 64)
    out, best = gk.zeros((1, 8)), (gk.zeros((1, 1)), gk.zeros((1, 1), np.int32))
    for make, arrays in (
        (lambda *given: project_residual(*given, out), {"weight": matrix, "input": x}),
        (
            lambda *given: gate_up_silu(*given, out, EPS),
            {"gate": matrix, "up": matrix, "x": x, "gain": gain},
        ),
        (
            lambda *given: project_vocabulary(*given, out, *best, EPS),
            {"weight": matrix, "x": x, "gain": gain},
        ),
    ):
        good = {name: gk.asarray(array) for name, array in arrays.items()}
        make(*good.values())
        for name, array in arrays.items():
            displaced = good | {name: off_boundary(array)}
            with pytest.raises(ValueError, match=rf"^{name}: expected a 16-byte boundary, came"):
                make(*displaced.values())


def test_bad_input(run, rng):
    hidden = 64
    weight, x, gain = gk.zeros((8, hidden), "bfloat16"), gk.zeros((1, hidden)), gk.zeros(hidden)
    with pytest.raises(ValueError, match=r"^batch: expected at most 2 vectors, came 3"):
        project_residual(weight, gk.zeros((3, hidden)), gk.zeros((3, 8)))
    with pytest.raises(ValueError, match=r"^weight: expected rows of a multiple of 8 elements"):
        project_residual(gk.zeros((8, 12), "bfloat16"), gk.zeros((1, 12)), gk.zeros((1, 8)))
    with pytest.raises(ValueError, match=r"^weight: expected rows of which four fit the"):
        project_residual(gk.zeros((2, 2**15), "bfloat16"), gk.zeros((1, 2**15)), gk.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"^gate: expected dtype bfloat16, came float32"):
        gate_up_silu(gk.zeros((8, hidden)), weight, x, gain, gk.zeros((1, 8)), EPS)
    best = gk.zeros((3, 1)), gk.zeros((3, 1), np.int32)
    with pytest.raises(ValueError, match=r"^best_value: expected 1 rows, came 3"):
        project_vocabulary(weight, x, gain, gk.zeros((1, 8)), *best, EPS)
