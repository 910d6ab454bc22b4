import ml_dtypes
import numpy as np
import pytest
from graphkit.kernels import embedding

import graphkit as gk


def arrays(rng, batch, max_len, vocab, width, dtype):
    tokens = rng.integers(0, vocab, (batch, max_len)).astype(np.int32)
    position = rng.integers(0, max_len, batch).astype(np.int32)
    table = rng.standard_normal((vocab, width)).astype(dtype)
    return tokens, position, table


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("batch", "max_len", "vocab", "width"),
    [(1, 1, 1, 1), (1, 7, 11, 33), (3, 5, 13, 192), (2, 4, 300, 257)],
)
def test_takes_the_row_of_the_token_at_the_position(
    run, poisoned, rng, batch, max_len, vocab, width, dtype
):
    tokens, position, table = arrays(rng, batch, max_len, vocab, width, dtype)
    out = poisoned((batch, width))
    run(embedding(*map(gk.asarray, (tokens, position, table)), out))
    expected = table[tokens[np.arange(batch), position]].astype(np.float32)
    np.testing.assert_array_equal(out.get(), expected)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_without_positions_there_is_one_token_a_row(run, poisoned, rng, dtype):
    table = rng.standard_normal((11, 35)).astype(dtype)
    tokens = np.array([4, 0, 10, 4, 11, -1], np.int32)
    out = poisoned((6, 35))
    run(embedding(gk.asarray(tokens), None, gk.asarray(table), out))
    np.testing.assert_array_equal(out.get()[:4], table[tokens[:4]].astype(np.float32))
    assert np.isnan(out.get()[4:]).all()


def test_what_lies_outside_gives_nan(run, rng):
    tokens, position, table = arrays(rng, 5, 4, 9, 35, np.float32)
    tokens[0], tokens[1] = 9, -1
    position[2:4] = 4, -1
    out = gk.zeros((5, 35))
    run(embedding(*map(gk.asarray, (tokens, position, table)), out))
    assert np.isnan(out.get()[:4]).all()
    np.testing.assert_array_equal(out.get()[4], table[tokens[4, position[4]]])


def test_arguments_are_checked(runtime):
    tokens, position = gk.zeros((2, 8), np.int32), gk.zeros(2, np.int32)
    table, out = gk.zeros((5, 3)), gk.zeros((2, 3))
    with pytest.raises(ValueError, match=r"^table: expected dtype float32 or bfloat16, came int32"):
        embedding(tokens, position, tokens, out)
    with pytest.raises(ValueError, match=r"^tokens: expected dtype int32, came float32"):
        embedding(out, position, table, out)
    with pytest.raises(ValueError, match=r"^position: expected shape \(2\), came \(3,\)"):
        embedding(tokens, gk.zeros(3, np.int32), table, out)
    with pytest.raises(ValueError, match=r"^tokens: expected shape \(batch\), came \(2, 8\)"):
        embedding(tokens, None, table, out)
    with pytest.raises(ValueError, match=r"^out: expected shape \(2, 3\), came \(5, 3\)"):
        embedding(tokens, position, table, table)
    with pytest.raises(TypeError, match=r"^table: .* on the host"):
        embedding(tokens, position, np.zeros((5, 3), np.float32), out)
