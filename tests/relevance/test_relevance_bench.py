"""bench/relevance.py without a device: what it verifies, and what it would not let pass."""

import numpy as np
import pytest
import relevance as bench
from relevance_contenders import EAGER, GRAPH, HOLD, LINE, RelevanceContenders, RelevanceSetting
from relevance_reference import TOTAL, Answer, K, Request, WrongAnswerError, tokens_of


@pytest.mark.parametrize("what", ["scoring", "allocation", "whole", "other arrays"])
def test_contenders_of_our_own_are_verified_on_the_simulator(what):
    (case,) = bench.cases(f"{what}: 224")
    setting, failures, absent = RelevanceSetting("sim"), [], {}
    contenders = RelevanceContenders(setting, case.size)
    entries = bench.make_entries(case, contenders, failures, absent)
    names = {entry.call.name for entry in entries}
    setting.cleanup.close()
    assert not failures
    assert names >= ({EAGER} if what == "other arrays" else {GRAPH, LINE, EAGER})


def test_every_budget_names_a_case_that_is_measured():
    timed = {case.name(how) for case in bench.cases() for how in (bench.HOST, bench.DONE)}
    assert {budget.case for budget in bench.BUDGETS} <= timed


def test_the_reference_is_that_of_the_tests(reference):
    request = Request.draw(224, 0)
    scores = (
        reference.entropy(request.features),
        reference.contrast(request.image, 16),
        reference.similarity(request.features, request.query),
    )
    answer = Answer.of(request)
    np.testing.assert_allclose(answer.balance, reference.balance(scores, 14), rtol=1e-9, atol=1e-9)
    best = answer.balance[answer.order[:K]].astype(np.float32)
    np.testing.assert_array_equal(tokens_of(best), reference.tokens(best, TOTAL))


def test_a_wrong_answer_is_not_timed():
    answer = Answer.of(Request.draw(224, 0))
    indices = answer.order[:K].copy()
    tokens = tokens_of(answer.balance[indices])
    answer.check_balance("right", answer.balance)
    answer.check_selected("right", indices, tokens)
    with pytest.raises(WrongAnswerError, match="a balance is off"):
        answer.check_balance("wrong", answer.balance + 0.01)
    with pytest.raises(WrongAnswerError, match="a balance is off"):
        answer.check_balance("unwritten", answer.balance * np.nan)
    with pytest.raises(WrongAnswerError, match="different patches"):
        answer.check_selected("wrong", np.full(K, -1), tokens)
    with pytest.raises(WrongAnswerError, match="selected balance is off"):
        answer.check_selected("wrong", answer.order[-K:], tokens)
    with pytest.raises(WrongAnswerError, match="expected about"):
        answer.check_selected("wrong", indices, tokens + 1)


def test_the_stream_can_be_held(runtime, stream):
    HOLD(1, 1, (1000,), stream=stream)
    stream.synchronize()
