import numpy as np
import pytest
from graphkit.kernels.relevance import opponent_balance
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import graphkit as gk


def find(run, poisoned, scores, columns, **options):
    balance = poisoned(len(scores[0]))
    run(opponent_balance(*map(gk.asarray, scores), balance, columns, **options))
    return balance.get()


def drawn(rng, patches):
    """Scores of the sizes that the scorers give."""
    entropy = 5 + 0.1 * rng.standard_normal(patches)
    contrast, similarity = rng.random(patches), rng.uniform(-1, 1, patches)
    return [score.astype(np.float32) for score in (entropy, contrast, similarity)]


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 36),
    columns=st.integers(1, 36),
    radius=st.sampled_from([0, 1, 2, 3, 99]),
    weights=st.sampled_from([(1.0, 1.0, 1.0), (0.5, -2.0, 3.0), (0, 0, 1)]),
    inhibition=st.sampled_from([0.0, 0.5, 1.0]),
    missing=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@example(32, 32, 1, (1.0, 1.0, 1.0), 0.5, 0.0, 0)
@example(14, 14, 1, (1.0, 1.0, 1.0), 0.5, 0.0, 0)
@example(40, 33, 1, (1.0, 1.0, 1.0), 0.5, 0.1, 0)  # more patches than threads
@example(1, 1, 1, (1.0, 1.0, 1.0), 0.5, 0.0, 0)
def test_matches_float64(
    run, poisoned, reference, rows, columns, radius, weights, inhibition, missing, seed
):
    radius = min(radius, 3) if rows * columns > 400 else radius  # the reference is slow
    rng = np.random.default_rng(seed)
    scores = drawn(rng, rows * columns)
    for score in scores:
        score[rng.random(rows * columns) < missing / 3] = rng.choice([np.nan, np.inf, -np.inf])
    options = {"weights": weights, "radius": radius, "inhibition": inhibition}
    found = find(run, poisoned, scores, columns, **options)
    expected = reference.balance(scores, columns, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


def test_the_most_patches_there_may_be(run, poisoned, reference, rng):
    """Their shared memory, the static part included, is what a launch may have unasked."""
    scores = drawn(rng, 11968)
    found = find(run, poisoned, scores, 88, radius=0)
    expected = reference.balance(scores, 88, weights=(1.0, 1.0, 1.0), radius=0, inhibition=0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


def test_equal_scores_are_in_balance(run, poisoned):
    scores = [np.full(60, value, np.float32) for value in (5.545177, 0.3, -0.7)]
    np.testing.assert_allclose(find(run, poisoned, scores, 10), np.zeros(60), atol=1e-6)


def test_scores_that_differ_by_rounding_hardly_count(run, poisoned, rng):
    scores = drawn(rng, 100)
    scores[0] = np.nextafter(np.float32(5.5), rng.choice([0, 9], 100).astype(np.float32))
    with_them = find(run, poisoned, scores, 10)
    without = find(run, poisoned, scores, 10, weights=(0.0, 1.0, 1.0))
    np.testing.assert_allclose(with_them, without, atol=0.02)


def test_a_patch_among_strong_competitors_is_worth_less(run, poisoned):
    crowd, alone = np.zeros((9, 9), np.float32), np.zeros((9, 9), np.float32)
    crowd[1:4, 1:4] = alone[2, 2] = crowd[7, 7] = 1.0
    nothing = np.zeros(81, np.float32)
    balance = find(run, poisoned, [nothing, crowd.ravel(), nothing], 9).reshape(9, 9)
    assert balance[7, 7] > balance[1, 1] > balance[2, 2]


def test_patches_without_scores_change_nothing_for_others(run, poisoned, rng):
    scores = drawn(rng, 63)
    scores[1][30] = np.nan
    before = find(run, poisoned, scores, 9)
    scores[0][30], scores[2][30] = 1e30, -1e30
    np.testing.assert_array_equal(find(run, poisoned, scores, 9), before)
    assert np.isnan(before[30])
    assert np.isfinite(np.delete(before, 30)).all()


def test_any_block_of_whole_warps_does(run, poisoned, reference, rng):
    scores = drawn(rng, 300)
    balance = poisoned(300)
    launch = opponent_balance(*map(gk.asarray, scores), balance, 20)
    run(launch._replace(block=(64, 1, 1)))
    np.testing.assert_allclose(balance.get(), reference.balance(scores, 20), atol=2e-4)


def test_arguments_are_checked(runtime):
    scores = [gk.zeros(12) for _ in range(4)]
    with pytest.raises(ValueError, match=r"^contrast: expected shape \(12\), came \(11,\)"):
        opponent_balance(scores[0], gk.zeros(11), *scores[2:], 4)
    with pytest.raises(ValueError, match=r"^columns: expected a divisor of 12 patches, came 7"):
        opponent_balance(*scores, 7)
    with pytest.raises(ValueError, match=r"^weights: expected three numbers, came 2"):
        opponent_balance(*scores, 4, weights=(1.0, 2.0))
    with pytest.raises(TypeError, match=r"^weights: expected three numbers, came float"):
        opponent_balance(*scores, 4, weights=1.0)
    with pytest.raises(
        ValueError, match=r"^weights: expected a finite number in float32, came nan"
    ):
        opponent_balance(*scores, 4, weights=(1.0, float("nan"), 1.0))
    with pytest.raises(
        ValueError, match=r"^inhibition: expected a finite number in float32, came inf"
    ):
        opponent_balance(*scores, 4, inhibition=float("inf"))
    with pytest.raises(TypeError, match=r"^radius: expected an int, came bool"):
        opponent_balance(*scores, 4, radius=True)
    many = [gk.zeros(12300) for _ in range(4)]
    with pytest.raises(
        ValueError, match=r"^columns: expected at most 11,968 patches in all, came 12,300"
    ):
        opponent_balance(*many, 100)
