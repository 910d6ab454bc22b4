"""bench/flow.py without a device: its contenders do what is to be timed."""

from __future__ import annotations

import flow
import pytest
from flow_setting import FlowSetting, WrongResultError, made
from flow_while import BY_FLAG, BY_HANDLE, COPY_BEHIND, COPY_INSIDE, Loops


@pytest.fixture
def setting(sim):
    made = FlowSetting("sim")
    yield made
    made.close()


@pytest.mark.parametrize("kernels", [1, 3])
@pytest.mark.parametrize("name", [BY_FLAG, BY_HANDLE, COPY_INSIDE, COPY_BEHIND])
def test_loops_make_their_iterations(setting, name, kernels):
    loops = Loops(setting, kernels, iterations=4)
    call = dict(loops.makers())[name]()
    assert call.name == name
    assert call.divide == 4
    call.verify(lambda: call.once(setting))
    with pytest.raises(WrongResultError, match="expected"):
        call.verify(lambda: None)


def test_who_fails_is_told_and_left_out(setting):
    (case,) = flow.cases(only=": 10 kernels")
    failures = []
    names = [call.name for call in made(case, setting, failures)]
    assert {BY_FLAG, BY_HANDLE, COPY_INSIDE, COPY_BEHIND} == set(names)
    assert len(failures) == 2  # what calls CUDA itself
    assert all("cuda.bindings" in failure for failure in failures)


def test_cases_are_chosen_by_name():
    every = flow.cases()
    assert len(every) == len({case.name for case in every}) >= 3
    quick = flow.cases(quick=True)
    assert all(case.rounds < full.rounds for case, full in zip(quick, every, strict=True))
    assert flow.cases(only="no such case") == []
