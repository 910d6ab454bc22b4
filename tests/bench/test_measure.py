"""What the benchmarks share, without a device: samples, rows, tables and verdicts."""

import json

import launch_contenders
import measure
import provenance
import pytest
from launch_overhead import BUDGETS, cases, main
from measure import Budget, NativeCall, PythonCall, Row, Summary

SOURCE = {
    "device": "NVIDIA H200",
    "driver": "580.159",
    "cuda": "13.0",
    "python": "3.12.3",
    "packages": {"numpy": "2.5.2"},
    "date": "2026-11-21T10:00:00+00:00",
    "digest": "d",
}


def row(metric, value, case="launch: 10 nodes", **more):
    return Row(case, metric, value, measure.HOST_US, value, value, 5, **more)


class Scripted:
    """A contender with given samples, which notes when it was asked."""

    def __init__(self, name, log, values=(1.0,)):
        self.name, self.log, self.values = name, log, values

    def sample(self, first, count):
        self.log.append((self.name, first))
        return [self.values[(first + k) % len(self.values)] for k in range(count)]


def test_a_summary_is_the_median_and_the_spread_whatever_the_order():
    assert measure.summarize([5, 1, 4, 2, 3, 6]) == Summary(3.5, 2.0, 5.0, 6)
    assert measure.summarize([7.0]) == Summary(7.0, 7.0, 7.0, 1)
    with pytest.raises(ValueError, match="at least one"):
        measure.summarize([])


def test_a_timed_loop_times_the_statement_alone(monkeypatch):
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr(measure.time, "perf_counter_ns", lambda: next(ticks))
    log = []
    loop = measure.timed_loop(
        "log.append(('timed', i))\nlog.append('still')",
        {"log": log},
        before="log.append('before')",
        after="log.append('after')",
    )
    assert loop(7, 2) == [10, 10]
    assert log == [
        *("before", ("timed", 7), "still", "after"),
        *("before", ("timed", 8), "still", "after"),
    ]


def test_a_python_call_divides_a_burst_and_never_falls_below_zero(monkeypatch):
    now = [0]

    def passes(ns):
        now[0] += ns
        return now[0]

    monkeypatch.setattr(measure.time, "perf_counter_ns", lambda: passes(20))
    monkeypatch.setattr(measure, "clock_overhead_ns", measure.clock_overhead_ns.__wrapped__)
    burst = PythonCall("a burst", "passes(5000)", {"passes": passes}, divide=100)
    assert burst.sample(0, 2) == [0.05, 0.05]
    assert PythonCall("nothing", "pass", {}).sample(0, 3) == [0, 0, 0]
    backwards = PythonCall("a clock that is set back", "passes(-1)", {"passes": passes})
    assert backwards.sample(0, 1) == [0]


def test_a_native_call_takes_its_own_clock_off():
    call = NativeCall("C", lambda first, count: [1020, 20, 5][:count], overhead_ns=20)
    assert call.sample(0, 3) == [1.0, 0.0, 0.0]


def test_contenders_take_turns_in_rotating_order_and_lose_the_head_of_each_block():
    log, advanced = [], []
    a = Scripted("a", log, values=[100.0, 1.0, 2.0, 3.0])
    found = measure.interleave(
        [a, Scripted("b", log)],
        samples=6,
        block=4,
        discard=1,
        advance=lambda: advanced.append(1),
    )
    assert log == [("a", 0), ("b", 0), ("b", 4), ("a", 4)]
    assert found["a"].value == 2.0
    assert found["a"].n == 6
    assert len(advanced) == measure.rounds(6, 4, 1) == 2


def test_two_contenders_of_one_name_and_a_block_without_samples_are_refused():
    with pytest.raises(ValueError, match="different names"):
        measure.interleave([Scripted("a", []), Scripted("a", [])], samples=1)
    with pytest.raises(ValueError, match="discard"):
        measure.rounds(10, block=2, discard=2)


def test_rows_carry_a_ratio_only_where_the_baseline_took_part():
    summaries = {"C": Summary(2.0, 1, 3, 9), "x": Summary(3.00004, 2, 4, 9)}
    c, x = measure.make_rows("launch: 1 node", summaries, baseline="C")
    assert (c.ratio, x.ratio, x.baseline, x.value) == (1.0, 1.5, "C", 3.0)
    (alone,) = measure.make_rows("launch: 1 node", {"x": summaries["x"]}, baseline="C")
    assert (alone.ratio, alone.baseline) == (None, None)


def test_a_results_file_has_the_agreed_form_and_reads_back(tmp_path):
    rows = [row("C", 2.0), row("graphkit", 3.0, baseline="C", ratio=1.5)]
    path = measure.write_results("launch", SOURCE, rows, folder=tmp_path)
    assert path == tmp_path / "nvidia-h200" / "launch.json"
    document = json.loads(path.read_text())
    assert set(document) == {"provenance", "rows"}
    keys = ["case", "metric", "value", "unit", "p20", "p80", "n", "baseline", "ratio"]
    assert list(document["rows"][0]) == keys
    assert measure.read_results(path) == (SOURCE, rows)


def test_host_and_device_time_never_share_a_table(tmp_path):
    rows = [row("C", 2.0), Row("launch: 10 nodes", "C", 9.0, measure.DEVICE_US, 9, 9, 5)]
    assert [pivot.unit for pivot in measure.pivots(rows)] == ["host us", "device us"]


def test_markdown_has_a_line_a_metric_and_a_column_a_size(tmp_path):
    rows = [
        row("C", 2.0, "launch: 1 node", baseline="C", ratio=1.0),
        row("C", 4.0, "launch: 10 nodes", baseline="C", ratio=1.0),
        row("graphkit", 5.0, "launch: 10 nodes", baseline="C", ratio=1.25),
    ]
    absent = {"absent": {"torch": "not installed"}}
    path = measure.write_results("launch", SOURCE | absent, rows, folder=tmp_path)
    assert measure.markdown(path) == (
        "**launch** (host us, median, in brackets the ratio to C)\n\n"
        "|  | 1 node | 10 nodes |\n"
        "| --- | ---: | ---: |\n"
        "| C | 2 (1.00x) | 4 (1.00x) |\n"
        "| graphkit |  | 5 (1.25x) |\n\n"
        "NVIDIA H200, driver 580.159, CUDA 13.0, Python 3.12.3, numpy 2.5.2; 2026-11-21."
        " Absent: torch: not installed.\n"
    )


@pytest.mark.parametrize(
    ("rows", "met"),
    [
        ([row("C", 2.0), row("peer", 2.3), row("graphkit", 2.2)], True),
        ([row("C", 2.0), row("peer", 2.3), row("graphkit", 2.21)], False),
        ([row("C", 2.0), row("peer", 2.1), row("graphkit", 2.2)], False),
        ([row("C", 2.0), row("graphkit", 2.1)], None),
        ([row("peer", 2.3), row("graphkit", 2.2)], None),
        ([row("C", 2.0), row("peer", 2.3)], None),
    ],
    ids=["met", "over the limit", "behind a peer", "no peer", "no floor", "not measured"],
)
def test_a_budget_is_met_missed_or_not_judged(rows, met):
    budget = Budget("launch", "launch: 10 nodes", "graphkit", 1.1, ahead_of_peers=True)
    (verdict,) = measure.judge(rows, [budget], floor="C", own="graphkit")
    assert verdict.met is met


def test_our_other_contenders_are_no_peers():
    rows = [row("C", 2.0), row("graphkit launcher()", 2.1), row("graphkit launch(stream)", 2.4)]
    budget = Budget("launch", "launch: 10 nodes", "graphkit launch(stream)", 1.25)
    (verdict,) = measure.judge(rows, [budget], floor="C", own="graphkit")
    assert (verdict.met, verdict.peer, verdict.ratio) == (True, None, 1.2)


@pytest.mark.parametrize("quick", [False, True])
def test_every_budget_has_a_case(quick):
    names = [case.name for case in cases(quick=quick)]
    assert {budget.case for budget in BUDGETS} <= set(names)
    assert len(names) == len(set(names))


def test_without_a_device_the_benchmark_says_so_and_writes_nothing(tmp_path, capsys, monkeypatch):
    def no_device(*_):
        raise RuntimeError("no driver")

    monkeypatch.setattr("launch_setting.importlib.import_module", no_device)
    assert main(["--out", str(tmp_path)]) == 2
    assert "no driver" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_without_nvcc_the_floor_is_missing_and_says_why(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(launch_contenders.UnavailableError, match="no nvcc"):
        launch_contenders.find_nvcc()


def test_a_device_has_a_folder_name():
    assert provenance.device_slug("NVIDIA H200") == "nvidia-h200"
    assert provenance.device_slug("NVIDIA GeForce RTX 4090 (Laptop)") == (
        "nvidia-geforce-rtx-4090-laptop"
    )
