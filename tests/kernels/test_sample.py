import numpy as np
import pytest
from graphkit.kernels import random_state, sample
from graphkit.kernels.sample import philox, random_bits

import graphkit as gk


def draw(run, poisoned, logits, state, **numbers):
    """Draw once for each row; return the tokens and the state afterwards."""
    device_state, out = gk.asarray(state), poisoned(len(logits), np.int32)
    run(sample(gk.asarray(logits), device_state, out, **numbers))
    return out.get(), device_state.get()


def many(run, poisoned, logits, count, **numbers):
    """Draw `count` times from one row, by as many rows with a stream each."""
    rows = np.tile(np.asarray(logits, np.float32), (count, 1))
    return draw(run, poisoned, rows, random_state(11, count), **numbers)[0]


def probabilities(logits, temperature=1.0):
    weights = np.exp((logits - np.max(logits)) / temperature)
    return weights / weights.sum()


def assert_drawn_from(tokens, expected):
    """Pearson's chi-squared, at six sigma of its normal approximation."""
    counts = np.bincount(tokens, minlength=len(expected))
    assert not counts[expected == 0].any()
    mean = expected[expected > 0] * len(tokens)
    statistic = ((counts[expected > 0] - mean) ** 2 / mean).sum()
    freedom = len(mean) - 1
    assert statistic < freedom + 6 * np.sqrt(2 * freedom) + 1e-9


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_known_answers_of_philox(counter, key, expected):
    """The answers that Random123 ships for philox4x32-10."""
    words = [[int(word, 16) for word in text.split()] for text in (counter, key, expected)]
    assert list(philox(*words[:2])) == words[2]


def test_the_random_bits_are_those_of_the_state(run, poisoned, rng):
    """Of 2**16 equal logits the token is the upper 16 bits of the random number."""
    state = rng.integers(0, 2**32, (6, 4), np.uint64).astype(np.uint32)
    tokens, _ = draw(run, poisoned, np.zeros((6, 2**16), np.float32), state)
    assert tokens.tolist() == [random_bits(*words) >> 48 for words in state.tolist()]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(run, poisoned, rng, temperature):
    logits = rng.standard_normal(13).astype(np.float32) * 2
    tokens = many(run, poisoned, logits, 4000, temperature=temperature)
    assert_drawn_from(tokens, probabilities(logits, temperature))


@pytest.mark.parametrize("top_k", [1, 2, 5, 13, 100])
def test_top_k_keeps_the_largest(run, poisoned, rng, top_k):
    logits = rng.standard_normal(13).astype(np.float32)
    tokens = many(run, poisoned, logits, 2000, top_k=top_k)
    order = np.argsort(-logits)
    kept = np.full(13, -np.inf)
    kept[order[:top_k]] = logits[order[:top_k]]
    assert_drawn_from(tokens, probabilities(kept))


def test_top_k_keeps_equals_of_the_last(run, poisoned):
    tokens = many(run, poisoned, [1, 3, 1, 2, 1, 0], 1500, top_k=3)
    assert_drawn_from(tokens, probabilities(np.array([1, 3, 1, 2, 1, -np.inf])))


@pytest.mark.parametrize(("top_p", "kept"), [(0.0, 1), (0.35, 1), (0.45, 2), (0.75, 3), (0.9, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(run, poisoned, top_p, kept):
    share = np.array([0.1, 0.4, 0.05, 0.25, 0.2])
    tokens = many(run, poisoned, np.log(share), 2000, top_p=top_p)
    expected = np.where(share >= np.sort(share)[-kept], share, 0)
    assert_drawn_from(tokens, expected / expected.sum())


def test_top_p_counts_what_top_k_left(run, poisoned):
    share = np.array([0.1, 0.4, 0.05, 0.25, 0.2])
    # Of 0.4, 0.25 and 0.2 the first two have 0.76 of the probability.
    tokens = many(run, poisoned, np.log(share), 2000, top_k=3, top_p=0.7)
    assert_drawn_from(tokens, np.array([0, 0.4, 0, 0.25, 0]) / 0.65)


@pytest.mark.parametrize("vocab", [1, 31, 33, 257, 1025, 5003])
@pytest.mark.parametrize("numbers", [{}, {"top_k": 7}, {"top_p": 0.9}], ids=str)
def test_any_size_draws_the_token_of_the_running_sum(run, poisoned, rng, vocab, numbers):
    """The token is where the running sum of the kept probabilities passes the random number."""
    logits = rng.standard_normal((3, vocab)).astype(np.float32) * 3
    state = random_state(5, 3)
    tokens, _ = draw(run, poisoned, logits, state, temperature=0.8, **numbers)
    for row, (values, words) in enumerate(zip(logits, state, strict=True)):
        share = probabilities(values.astype(np.float64), 0.8)
        order = np.argsort(-share)
        if "top_k" in numbers:
            share[order[numbers["top_k"] :]] = 0
        if "top_p" in numbers:
            reached = np.searchsorted(np.cumsum(share[order]), numbers["top_p"])
            share[order[reached + 1 :]] = 0
        upto = np.cumsum(share) / share.sum()
        uniform = random_bits(*words.tolist()) / 2**64
        token = tokens[row]
        assert share[token] > 0
        assert (upto[token - 1] if token else 0) - 1e-6 <= uniform <= upto[token] + 1e-6


def test_the_state_decides_and_advances(run, poisoned, rng):
    logits = rng.standard_normal((4, 500)).astype(np.float32)
    state = random_state(2**40 + 3, 4)
    first, after = draw(run, poisoned, logits, state)
    again, _ = draw(run, poisoned, logits, state)
    second, last = draw(run, poisoned, logits, after)
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    np.testing.assert_array_equal(after[:, 2], 1)
    np.testing.assert_array_equal(last[:, 2], 2)
    np.testing.assert_array_equal(last[:, [0, 1, 3]], state[:, [0, 1, 3]])


def test_a_row_does_not_depend_on_the_batch(run, poisoned, rng):
    logits = rng.standard_normal((4, 500)).astype(np.float32)
    state = random_state(8, 4)
    together, _ = draw(run, poisoned, logits, state)
    alone = [draw(run, poisoned, logits[b : b + 1], state[b : b + 1])[0][0] for b in range(4)]
    np.testing.assert_array_equal(together, alone)


def test_launches_of_one_sequence_follow_the_softmax(run, poisoned):
    share = np.array([0.1, 0.5, 0.4])
    logits, state = gk.asarray(np.log(share)[None].astype(np.float32)), gk.asarray(random_state(4))
    out = poisoned(1, np.int32)
    launch = sample(logits, state, out)
    tokens = []
    for _ in range(300):
        run(launch)
        tokens.append(int(out.get()[0]))
    assert_drawn_from(np.array(tokens), share)


def test_temperature_zero_takes_the_largest_and_advances(run, poisoned, rng):
    logits = rng.integers(-3, 4, (5, 999)).astype(np.float32)
    tokens, after = draw(run, poisoned, logits, random_state(1, 5), temperature=0.0, top_k=3)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))
    np.testing.assert_array_equal(after[:, 2], 1)


def test_a_tiny_temperature_takes_the_largest(run, poisoned, rng):
    logits = rng.standard_normal((3, 100)).astype(np.float32)
    tokens, _ = draw(run, poisoned, logits, random_state(1, 3), temperature=1e-40)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))


@pytest.mark.parametrize("numbers", [{}, {"top_k": 2}, {"top_p": 0.5}], ids=str)
def test_infinities_and_nan(run, poisoned, numbers):
    nan, inf = np.nan, np.inf
    rows = np.array(
        [[nan, -inf, 0, -inf], [0, inf, 1, nan], [nan, -inf, nan, nan], [nan] * 4], np.float32
    )
    tokens, _ = draw(run, poisoned, rows, random_state(3, 4), **numbers)
    np.testing.assert_array_equal(tokens, [2, 1, 1, 0])


def test_arguments_are_checked(runtime):
    logits, state, out = gk.zeros((2, 9)), gk.zeros((2, 4), np.uint32), gk.zeros(2, np.int32)
    with pytest.raises(ValueError, match=r"^state: expected dtype uint32, came int32"):
        sample(logits, gk.zeros((2, 4), np.int32), out)
    with pytest.raises(ValueError, match=r"^state: expected shape \(2, 4\), came \(1, 4\)"):
        sample(logits, gk.zeros((1, 4), np.uint32), out)
    with pytest.raises(ValueError, match=r"^temperature: expected 0 or more and finite, came -1"):
        sample(logits, state, out, temperature=-1)
    with pytest.raises(ValueError, match=r"^top_k: expected 0 \(all\) to"):
        sample(logits, state, out, top_k=-1)
    with pytest.raises(ValueError, match=r"^top_p: expected 0 to 1, came nan"):
        sample(logits, state, out, top_p=float("nan"))
    with pytest.raises(ValueError, match=r"^seed: expected 0 to"):
        random_state(2**64)


@pytest.mark.parametrize(
    ("batch", "error"), [("2", TypeError), (True, TypeError), (-1, ValueError)]
)
def test_a_random_state_of_no_rows(batch, error):
    with pytest.raises(error, match=r"^batch: expected"):
        random_state(0, batch)
