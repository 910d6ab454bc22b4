"""bench/exec_pool.py without a device: what it verifies, its rows, its budgets."""

import exec_pool as bench
import exec_pool_bytes as memory
import numpy as np
import pytest
from exec_pool_hits import HITS
from exec_pool_moves import BY_NODES, BY_UPDATE, POOL_MOVE, Retarget
from exec_pool_setting import Setting, WrongResultError, check
from measure import HOST_US, Row, Summary

import graphkit as gk


def summary(value):
    return Summary(value, value, value, 5)


def test_every_budget_names_a_case_that_is_measured():
    timed = {part.name for part in bench.parts()}
    remembered = {f"{memory.CASE}: {nodes:,} nodes" for nodes in memory.NODES}
    for budgets in bench.BUDGETS.values():
        assert {budget.case for budget in budgets} <= timed | remembered


@pytest.mark.parametrize("only", ["exact hit: 10", "padded hit, back", "miss: 10"])
def test_contenders_of_our_own_are_verified_on_the_simulator(only):
    (part,) = bench.parts(quick=True, only=only)
    failures = []
    setting = Setting("sim")
    names = [entry.contender.name for entry in bench.make_entries(part, setting, failures)]
    setting.cleanup.close()
    assert not failures
    assert any(name.startswith("graphkit ExecPool") for name in names)


@pytest.mark.parametrize("alone", [False, True])
def test_moves_are_verified_on_the_simulator(alone):
    part = bench._retarget(Retarget(10, 3), alone=alone)
    failures = []
    setting = Setting("sim")
    entries = bench.make_entries(part, setting, failures)
    updates = [bench._updates(entry) for entry in entries if bench._updates(entry)]
    setting.cleanup.close()
    assert not failures
    assert len(entries) == (3 if alone else 5)
    assert bool(updates) is alone
    assert all(sum(counts.values()) > 3 for counts in updates)


def test_budgets_name_the_contenders_of_our_own():
    setting = Setting("sim")
    failures = []
    (part,) = bench.parts(only=HITS[0].name)
    names = {entry.contender.name for entry in bench.make_entries(part, setting, failures)}
    setting.cleanup.close()
    assert {budget.metric for budget in bench.BUDGETS[bench.BUDGET]} & names


def test_a_wrong_result_is_told_apart_from_a_wrong_shape():
    gk.use("sim")
    right = np.arange(6, dtype=np.float32).reshape(2, 3)
    array = gk.asarray(right)
    check("x", array, right)
    with pytest.raises(WrongResultError, match="x: 1 of 6 values are wrong"):
        check("x", array, np.array([[0, 1, 2], [3, 4, 6]], np.float32))
    with pytest.raises(WrongResultError, match=r"expected shape \(3, 2\)"):
        check("x", array, right.T)


def test_a_contender_that_cannot_take_part_is_left_out_and_one_that_fails_is_told():
    def unavailable():
        raise bench.UnavailableError("no device")

    def fails():
        raise WrongResultError("3 of 4 values are wrong")

    part = bench.Part("case", lambda _: [("a", unavailable), ("b", fails)], 1, 2, 1, "a")
    failures = []
    assert bench.make_entries(part, None, failures) == []
    assert failures == ["case: b: WrongResultError: 3 of 4 values are wrong"]


def test_what_is_measured_stands_beside_what_it_is_held_against():
    found = bench.with_floor("padded hit: 10 nodes", {"x": summary(5.0)})
    assert found == {"budget": Summary(6.0, 6.0, 6.0, 0), "x": summary(5.0)}
    ways = {BY_NODES: summary(70.0), BY_UPDATE: summary(53.0)}
    found = bench.with_floor("retarget, the move alone: 1,000 nodes, 10%", ways)
    assert found[bench.CHEAPER] == summary(53.0)
    assert bench.with_floor("miss: 10 nodes", ways) == ways
    assert bench.with_floor("retarget, the move alone: 1,000 nodes, 10%", {}) == {}


def test_moves_are_counted_from_when_the_timing_began():
    rows = bench.move_rows("retarget, the move alone: 9", {"nodes": 2}, {"nodes": 5, "update": 1})
    assert [(row.case, row.metric, row.value) for row in rows] == [
        ("retarget, how: 9", "by nodes", 3),
        ("retarget, how: 9", "by update", 1),
    ]


def test_memory_is_judged_by_what_one_exec_a_size_takes():
    taken = {
        memory.ONE_A_SIZE: memory.Taken(100 << 20, None, 1 << 20, 51),
        memory.TORCH: memory.Taken(120 << 20, None, 1 << 20, 51),
        memory.pool_name(1): memory.Taken(2 << 20, 1 << 20, 0, 1),
        memory.pool_name(4): memory.Taken(12 << 20, 9 << 20, 0, 4),
    }
    rows = bench.memory_rows(1000, taken)
    by_metric = {row.metric: row for row in rows if row.unit == bench.DEVICE_MIB}
    assert by_metric[memory.pool_name(4)].ratio == 0.12
    assert by_metric[f"{memory.pool_name(4)}, by its own account"].value == 9
    judged = bench.verdicts(rows)[memory.ONE_A_SIZE]
    met = {
        verdict.budget.metric: verdict.met for verdict in judged if "1,000" in verdict.budget.case
    }
    assert met == {memory.pool_name(1): True, memory.pool_name(4): False}


def test_budgets_of_time_are_judged_against_their_floors():
    case = "retarget, the move alone: 1,000 nodes, 10%"
    rows = [
        Row(case, bench.CHEAPER, 50.0, HOST_US, 50, 50, 5),
        Row(case, POOL_MOVE, 54.0, HOST_US, 54, 54, 5),
    ]
    met = {verdict.budget.case: verdict.met for verdict in bench.verdicts(rows)[bench.CHEAPER]}
    assert met[case] is True
    assert set(met.values()) == {True, None}


def test_the_memory_of_a_pool_is_taken_and_told_on_the_simulator():
    taken = memory.take(memory.pool_name(1), 3, "sim", (2, 4, 8))
    assert taken.execs == 1
    assert taken.device == taken.told
    every = memory.take(memory.ONE_A_SIZE, 3, "sim", (2, 4, 8))
    assert every.execs == 3
    assert every.device > taken.device


def test_a_run_without_a_device_ends_with_status_2(capsys, monkeypatch):
    def unavailable(*_):
        raise bench.UnavailableError("no device here")

    monkeypatch.setattr(bench, "Setting", unavailable)
    assert bench.main([]) == 2
    assert "never simulated" in capsys.readouterr().out
