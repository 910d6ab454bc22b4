import numpy as np
import pytest
from graphkit.kernels.relevance import token_budget
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import graphkit as gk


def find(run, poisoned, selected, total, **bounds):
    tokens = poisoned(len(selected), np.int32)
    run(token_budget(gk.asarray(np.asarray(selected, np.float32)), tokens, total, **bounds))
    return tokens.get()


def drawn(rng, k, kind):
    values = rng.standard_normal(k) * 3 + 2
    if kind == "few values":
        values = np.round(values)
    if kind == "far apart":
        values = 10.0 ** rng.uniform(-6, 6, k)
    if kind == "below zero":
        values = -np.abs(values)
    return np.sort(values)[::-1].astype(np.float32)


BUDGETS = given(
    k=st.integers(1, 200),
    share=st.floats(0, 1),
    bounds=st.sampled_from([(64, 400), (0, 32767), (1, 7), (64, 64), (0, 1)]),
    kind=st.sampled_from(["any", "few values", "far apart", "below zero"]),
    seed=st.integers(0, 2**32 - 1),
)
SOME = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SOME
@BUDGETS
@example(k=32, share=0.2, bounds=(64, 400), kind="any", seed=0)
@example(k=1024, share=0.3, bounds=(64, 400), kind="any", seed=0)
@example(k=1100, share=0.5, bounds=(0, 20), kind="few values", seed=0)  # more than threads
@example(k=1, share=1.0, bounds=(64, 400), kind="any", seed=0)
def test_sums_to_the_total_within_bounds_as_if_given_one_by_one(
    run, poisoned, reference, k, share, bounds, kind, seed
):
    least, most = bounds
    total = k * least + round(share * min(k * (most - least), 5000))  # the reference is slow
    selected = drawn(np.random.default_rng(seed), k, kind)
    tokens = find(run, poisoned, selected, total, least=least, most=most)
    assert tokens.sum() == total
    assert tokens.min() >= least
    assert tokens.max() <= most
    assert (np.diff(tokens) <= 0).all(), "a higher balance got fewer tokens"
    np.testing.assert_array_equal(tokens, reference.tokens(selected, total, least, most))


@SOME
@BUDGETS
def test_a_higher_total_takes_from_nobody(run, poisoned, k, share, bounds, kind, seed):
    least, most = bounds
    total = k * least + round(share * k * (most - least))
    selected = drawn(np.random.default_rng(seed), k, kind)
    tokens = find(run, poisoned, selected, total, least=least, most=most)
    more = find(run, poisoned, selected, min(total + 3, k * most), least=least, most=most)
    assert (more >= tokens).all()


def test_is_proportional_between_the_bounds(run, poisoned):
    selected = np.float32([8, 4, 2, 1])
    assert find(run, poisoned, selected, 1500, least=0, most=2000).tolist() == [800, 400, 200, 100]
    tokens = find(run, poisoned, selected, 700)
    assert tokens[-1] == 64
    np.testing.assert_allclose(tokens[:3] / tokens[0], [1, 0.5, 0.25], atol=0.01)


def test_equal_balances_differ_by_one_token_at_most_and_the_first_get_it(run, poisoned):
    tokens = find(run, poisoned, np.full(7, 2.5), 1000)
    assert tokens.tolist() == [143] * 6 + [142]


def test_balances_of_zero_and_below_share_alike(run, poisoned):
    tokens = find(run, poisoned, [3.0, 0.0, -1.0, -50.0], 64 * 3 + 300)
    assert tokens.tolist() == [300, 64, 64, 64]
    assert find(run, poisoned, [-1.0, -2.0, -3.0], 999).tolist() == [333] * 3
    assert find(run, poisoned, [3.0, 0.0, -1.0], 400 + 2 * 300).tolist() == [400, 300, 300]


def test_who_has_no_balance_gets_no_tokens_and_others_what_they_can_hold(run, poisoned, reference):
    selected = np.float32([5, 2, np.nan, np.nan])
    assert find(run, poisoned, selected, 600).tolist() == [400, 200, 0, 0]
    assert find(run, poisoned, selected, 1200).tolist() == [400, 400, 0, 0]
    assert find(run, poisoned, selected * np.nan, 600).tolist() == [0] * 4
    np.testing.assert_array_equal(
        find(run, poisoned, selected, 600), reference.tokens(selected, 600)
    )


def test_the_most_patches_there_may_be(run, poisoned, rng):
    """Their shared memory, the static part included, is what a launch may have unasked."""
    tokens = find(run, poisoned, drawn(rng, 11968, "any"), 11968 * 100)
    assert tokens.sum() == 11968 * 100
    assert tokens.min() >= 64


def test_arguments_are_checked(runtime):
    selected, tokens = gk.zeros(10), gk.zeros(10, np.int32)
    for total in (639, 4001):
        with pytest.raises(
            ValueError,
            match=r"^total: expected 640 to 4000 tokens, for 10 patches of 64 to 400, came "
            rf"{total}$",
        ):
            token_budget(selected, tokens, total)
    with pytest.raises(TypeError, match=r"^total: expected an int, came float"):
        token_budget(selected, tokens, 1000.0)
    with pytest.raises(ValueError, match=r"^least: expected 0 to 400, came 401"):
        token_budget(selected, tokens, 4000, least=401)
    with pytest.raises(ValueError, match=r"^most: expected 1 to 32767, came 32768"):
        token_budget(selected, tokens, 4000, most=32768)
    with pytest.raises(ValueError, match=r"^tokens: expected dtype int32, came float32"):
        token_budget(selected, gk.zeros(10), 1000)
    with pytest.raises(
        ValueError, match=r"^selected: expected at most 11,968 patches, came 13,000"
    ):
        token_budget(gk.zeros(13000), gk.zeros(13000, np.int32), 13000 * 100)
