import numpy as np
import pytest
from graphkit.kernels import advance

import graphkit as gk


def make(values):
    return gk.asarray(np.array(values, np.int32))


def test_appends_behind_the_prompt_only_and_stops_at_the_end(run):
    before = np.full((5, 6), -7, np.int32)
    tokens, position = make(before), make([0, 1, 2, 4, 5])
    #   in the prompt, its last token, behind it, last place, at the end
    run(advance(tokens, make([10, 11, 12, 13, 14]), make([3, 2, 2, 1, 1]), position))
    expected = before.copy()
    expected[[1, 2, 3], [2, 3, 5]] = 11, 12, 13
    np.testing.assert_array_equal(tokens.get(), expected)
    np.testing.assert_array_equal(position.get(), [1, 2, 3, 5, 5])


@pytest.mark.parametrize("batch", [1, 33, 257, 300])
def test_many_launches_fill_the_buffer(run, rng, batch):
    prompt_len = rng.integers(1, 5, batch).astype(np.int32)
    before = rng.integers(100, 200, (batch, 8)).astype(np.int32)
    tokens, position, next_token = make(before), make([0] * batch), make([0] * batch)
    launch = advance(tokens, next_token, make(prompt_len), position)
    for value in range(9):
        next_token.set(np.full(batch, value))
        run(launch)
    column = np.arange(8)
    expected = np.where(column < prompt_len[:, None], before, column - 1)
    np.testing.assert_array_equal(tokens.get(), expected)
    np.testing.assert_array_equal(position.get(), 7)


def test_arguments_are_checked(runtime):
    tokens, row = gk.zeros((2, 8), np.int32), gk.zeros(2, np.int32)
    with pytest.raises(ValueError, match=r"^next_token: expected shape \(2\), came \(2, 8\)"):
        advance(tokens, tokens, row, row)
    with pytest.raises(ValueError, match=r"^prompt_len: expected dtype int32, came float32"):
        advance(tokens, row, gk.zeros(2), row)
    with pytest.raises(ValueError, match=r"^position: expected shape \(2\), came \(3,\)"):
        advance(tokens, row, row, gk.zeros(3, np.int32))
