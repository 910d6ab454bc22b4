"""The end of a step: choice, append, the position, and the embedding of what comes next."""

import numpy as np
import pytest
from decode_cases import bfloat16, first_largest, floats
from graphkit.kernels.decode import RowEnds, Scaled, embed_token, next_token

import graphkit as gk

HIDDEN, VOCAB, MAX_LEN = 264, 521, 8


class Case:
    """Rows in every state: inside the prompt, at its end, behind it, at the end of the buffer."""

    def __init__(self, rng, batch, *, blocks=5, columns=None, scaled=False):
        self.batch, self.blocks = batch, blocks
        self.table = bfloat16(rng, VOCAB, HIDDEN)
        self.tokens = rng.integers(0, VOCAB, (batch, MAX_LEN)).astype(np.int32)
        self.prompt_len = rng.integers(1, MAX_LEN, batch).astype(np.int32)
        self.positions = rng.integers(0, MAX_LEN, batch).astype(np.int32)
        self.chosen = rng.integers(0, VOCAB, batch).astype(np.int32)
        columns = columns or batch
        self.value = floats(rng, blocks, columns)
        self.index = rng.permutation(VOCAB)[: blocks * columns].astype(np.int32)
        self.index = self.index.reshape(blocks, columns)
        self.gain = floats(rng, HIDDEN)
        self.x = gk.asarray(np.full((batch, HIDDEN), np.nan, np.float32))
        self.scaled = None
        if scaled:
            xg = gk.asarray(np.full((columns, HIDDEN), np.nan, np.float16))
            squares = gk.asarray(np.full((1, columns), np.nan, np.float32))
            self.scaled = Scaled(gk.asarray(self.gain), xg, squares)

    def put(self):
        names = "chosen", "tokens", "prompt_len", "positions"
        self.state = [gk.asarray(getattr(self, name)) for name in names]

    def launch(self, *, best=True, row_ends=None):
        self.put()
        given = {}
        if best:
            given = {"best_value": gk.asarray(self.value), "best_index": gk.asarray(self.index)}
        return next_token(
            *self.state,
            gk.asarray(self.table),
            self.x,
            scaled=self.scaled,
            row_ends=row_ends,
            **given,
        )

    def check(self, *, best=True, ended=()):
        chosen, tokens = self.chosen.copy(), self.tokens.copy()
        positions = self.positions.copy()
        for b in range(self.batch):
            at = positions[b] + 1
            if b in ended:
                chosen[b] = tokens[b, at - 1]
                continue
            if best:
                chosen[b] = first_largest(self.value[:, b], self.index[:, b])
            if at < MAX_LEN:
                if at >= self.prompt_len[b]:
                    tokens[b, at] = chosen[b]
                positions[b] = at
        for found, expected in zip(
            self.state, (chosen, tokens, self.prompt_len, positions), strict=True
        ):
            np.testing.assert_array_equal(found.get(), expected)
        self.check_stream(tokens[np.arange(self.batch), positions])

    def check_stream(self, tokens):
        known = (tokens >= 0) & (tokens < VOCAB)
        x = self.table[np.where(known, tokens, 0)].astype(np.float32)
        x[~known] = np.nan
        np.testing.assert_array_equal(self.x.get(), x)
        if self.scaled is not None:
            xg, squares = self.scaled.xg.get(), self.scaled.squares.get()[0]
            expected = (x * self.gain).astype(np.float16)
            np.testing.assert_array_equal(xg[: self.batch], expected)
            np.testing.assert_allclose(
                squares[: self.batch], (x.astype(np.float64) ** 2).sum(axis=1), rtol=1e-5
            )
            assert np.isnan(xg[self.batch :]).all()
            assert np.isnan(squares[self.batch :]).all()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 33])
@pytest.mark.parametrize("best", [False, True])
def test_appends_and_looks_up(run, rng, batch, best, scaled):
    case = Case(rng, batch, scaled=scaled, columns=64 if scaled else None)
    case.positions[0] = MAX_LEN - 1  # stays, and so does its token
    run(case.launch(best=best))
    case.check(best=best)


def test_more_blocks_than_threads(run, rng):
    case = Case(rng, 1, blocks=400)
    run(case.launch())
    case.check()


def test_nan_is_less_than_anything_and_of_equals_the_first_wins(run, rng):
    case = Case(rng, 4)
    case.value[:, 0] = np.nan
    case.value[[0, 2, 4], 1] = np.nan
    case.value[:, 2] = 1.5
    case.value[:, 3] = [np.nan, -np.inf, np.nan, -np.inf, np.nan]
    case.index[:, 3] = [5, 7, 4, 6, 3]
    run(case.launch())
    case.check()


@pytest.mark.parametrize("token", [VOCAB, -1, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_token_outside_of_the_vocabulary_has_no_embedding(run, rng, token, scaled):
    case = Case(rng, 5, scaled=scaled, columns=8)
    case.prompt_len[:] = 3, 3, 3, 5, 3
    case.positions[:] = 4, 1, MAX_LEN - 1, 4, 2
    case.chosen[[0, 3]] = token  # appended, right behind the prompt too
    case.tokens[1, 2] = token  # the prompt's next one
    case.tokens[2, -1] = token  # where the position stays
    run(case.launch(best=False))
    case.check(best=False)
    assert np.isnan(case.x.get()).all(axis=1).tolist() == [True, True, True, True, False]


def test_rows_that_have_ended_stay_as_they_are(run, rng):
    case = Case(rng, 8)
    end = 77
    case.tokens[case.tokens == end] = 78
    case.prompt_len[:] = 3
    case.positions[:] = [2, 3, 4, 1, 5, 6, 7, 3]
    case.tokens[0, 2] = case.tokens[3, 1] = end  # in the prompt: not looked at
    case.tokens[1, 3] = case.tokens[7, 3] = end
    limits = np.array([8, 8, 8, 8, 6, 8, 99, 0], np.int32)
    # Row 4 has 6 tokens and row 6 all that there are; row 5 goes on to its last one.
    ends = RowEnds(gk.asarray(limits), gk.asarray([300, end], np.int32))
    run(case.launch(row_ends=ends))
    case.check(ended={1, 4, 6, 7})


def test_no_token_ends_a_row(run, rng):
    case = Case(rng, 2)
    case.positions[:] = 5
    run(case.launch(row_ends=RowEnds(gk.asarray([6, 7], np.int32))))
    case.check(ended={0})


@pytest.mark.parametrize("scaled", [False, True])
def test_embed_token(run, rng, scaled):
    case = Case(rng, 5, scaled=scaled, columns=8)
    case.put()
    launch = embed_token(
        case.state[1], case.state[3], gk.asarray(case.table), case.x, scaled=case.scaled
    )
    run(launch)
    case.check_stream(case.tokens[np.arange(5), case.positions])
    case.state[1].set(np.array([[-1], [VOCAB], [0], [1], [2]], np.int32).repeat(MAX_LEN, axis=1))
    case.state[3].set([0, 1, MAX_LEN, -1, 3])
    run(launch)
    found = case.x.get()
    assert np.isnan(found[:4]).all()
    np.testing.assert_array_equal(found[4], case.table[2].astype(np.float32))


def test_bad_input(run, rng):
    case = Case(rng, 3, columns=2)
    with pytest.raises(ValueError, match=r"^best_value: expected 3 columns or more, came 2"):
        case.launch()
    case = Case(rng, 3)
    with pytest.raises(ValueError, match=r"^limits: expected shape \(3\), came \(2,\)"):
        case.launch(row_ends=RowEnds(gk.zeros(2, np.int32)))
    with pytest.raises(ValueError, match=r"^ends: expected dtype int32, came int64"):
        case.launch(row_ends=RowEnds(gk.zeros(3, np.int32), gk.zeros(1, np.int64)))
    gain, xg = gk.zeros(HIDDEN), gk.zeros((8, HIDDEN), np.float16)
    case.scaled = Scaled(gk.zeros(HIDDEN, "bfloat16"), xg, gk.zeros((1, 8)))
    with pytest.raises(ValueError, match=r"^gain: expected dtype float32, came bfloat16"):
        case.launch()
    case.scaled = Scaled(gain, gk.zeros((8, HIDDEN), "bfloat16"), gk.zeros((1, 8)))
    with pytest.raises(ValueError, match=r"^xg: expected dtype float16, came bfloat16"):
        case.launch()
    case.scaled = Scaled(gain, gk.zeros((2, HIDDEN), np.float16), gk.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"^xg: expected 3 rows or more, came 2"):
        case.launch()
    case.scaled = gain, xg, gk.zeros((1, 8))
    with pytest.raises(TypeError, match=r"^scaled: expected a Scaled, came tuple"):
        case.launch()
    with pytest.raises(TypeError, match=r"^row_ends: expected a RowEnds, came DeviceArray"):
        Case(rng, 3).launch(row_ends=gk.zeros(3, np.int32))
