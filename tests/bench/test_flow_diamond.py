"""bench/flow_diamond.py without a device: its contenders do what is to be timed."""

from __future__ import annotations

import flow_diamond
import numpy as np
import pytest
from flow_diamond import BY_HAND, DERIVED, FORK, GIVEN, LINE, Adding, Diamonds
from flow_setting import FlowSetting, WrongResultError, made


@pytest.fixture
def setting(sim):
    made = FlowSetting("sim")
    yield made
    made.close()


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("name", [DERIVED, BY_HAND, FORK, LINE])
def test_diamonds_add_up_what_their_rows_hold(setting, name, k):
    diamonds = Diamonds(setting, k, rounds=9)
    call = dict(diamonds.makers())[name]()
    assert call.name == name
    call.verify(lambda: call.once(setting))
    with pytest.raises(WrongResultError, match="expected the sums"):
        call.verify(lambda: None)


def test_many_rounds_are_what_single_ones_are():
    value = 12345
    for _ in range(100):
        value = (value * 1664525 + 77) & 0xFFFFFFFF
    scale, shift = flow_diamond._power(1664525, 77, 100)
    assert (12345 * scale + shift) & 0xFFFFFFFF == value


def test_the_rows_differ(setting):
    sums = [Diamonds(setting, k, rounds=9).expected() for k in (1, 2, 3)]
    assert not np.array_equal(sums[1] - sums[0], sums[2] - sums[1])


@pytest.mark.parametrize("name", [GIVEN, DERIVED])
def test_lines_are_added(setting, name):
    call = dict(Adding(setting, 20).makers())[name]()
    call.verify(lambda: call.once(setting))
    assert call.divide == 20


def test_every_case_can_be_made(setting):
    for case in flow_diamond.CASES:
        failures = []
        names = [call.name for call in made(case, setting, failures)]
        assert failures == []
        assert case.baseline in names
