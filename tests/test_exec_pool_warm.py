"""warm(): what is captured beforehand, in which order, and what is found to be wrong then."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sample_functions import BLOCK, add, add_size, add_three, blocks, floats, row_sums
from sample_kernels import ADD_SCALAR

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.exec_pool import ExecPool
from graphkit.pool_policy import Reason, Step

pytestmark = pytest.mark.alone

SIZE = Buckets([4, 8, 16])
BUCKETS = {"x": SIZE, "y": SIZE}


def example(n=5, **values):
    _, x, y = floats(n)
    return {"x": x, "y": y, **values}


def sizes(report, name="x"):
    return [row.key.shapes[name] for row in report.rows]


def ask(pool, n, **values):
    host, x, y = floats(n)
    pool(x=x, y=y, **values)
    assert np.array_equal(y.get(), host + np.float32(values.get("a", 3))), n


# --- what is captured ----------------------------------------------------------------------------


def test_every_bucket_is_captured_the_largest_first(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], strict=True) as pool:
        report = pool.warm(example())
        assert sizes(report) == [(16,), (8,), (4,)]
        assert (report.captured, report.left) == (3, 0)
        assert all(row.reason is None and row.why == "" for row in report.rows)
        assert str(report).startswith("3 of 3 buckets in ")
        for n in (16, 5, 4):
            ask(pool, n)
        stats = pool.stats()
        assert (stats.requests, stats.hits, stats.captures) == (3, 3, 0)
        assert stats.warm[Step.CAPTURE].count == 3


def test_every_point_of_the_lattice_is_captured(runtime):
    batch, length = Buckets([1, 4]), Buckets([8, 32, 64], axis=1)
    buckets = {"x": (batch, length), "sums": batch}
    with ExecPool(row_sums, buckets, outputs=["sums"], strict=True) as pool:
        report = pool.warm({"x": gk.zeros((2, 3)), "sums": gk.zeros(2)}, validate=True)
        wanted = [(4, 64), (4, 32), (1, 64), (4, 8), (1, 32), (1, 8)]
        assert sizes(report) == wanted
        assert report.captured == 6


@pytest.mark.parametrize("n", [1, 4, 16, 40])
def test_the_examples_extents_do_not_matter(runtime, n):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        assert pool.warm(example(n)).captured == 3


def test_the_example_is_left_as_it_was(runtime):
    values, x, _ = floats(5)

    def fn(x, stream):
        add_three(x, x, stream)

    with ExecPool(fn, {"x": SIZE}, inouts=["x"]) as pool:
        assert pool.warm({"x": x}, validate=True).captured == 3
        assert np.array_equal(x.get(), values)


def test_a_pool_without_buckets_warms_up_for_the_example(runtime):
    with ExecPool(add_three, outputs=["y"], strict=True) as pool:
        assert sizes(pool.warm(example(5))) == [(5,)]
        ask(pool, 5)


def test_to_warm_up_twice_captures_nothing_anew(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], max_execs=1) as pool:
        pool.warm(example())
        assert pool.warm(example(), validate=True).captured == 3
        stats = pool.stats()
        assert stats.warm[Step.CAPTURE].count == 3
        assert stats.requests == 0
        assert stats.captures == 0
        ask(pool, 7)


def test_requests_and_warming_up_are_counted_apart(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        ask(pool, 7)
        before = pool.stats()
        pool.warm(example())
        after = pool.stats()
        assert after.steps.keys() == before.steps.keys()
        assert all(after.steps[step].count == before.steps[step].count for step in before.steps)
        assert (after.requests, after.hits, after.elements) == (1, 0, before.elements)
        assert after.warm[Step.CAPTURE].count == 2


def test_no_time_is_time_for_nothing(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        report = pool.warm(example(), seconds=0)
        assert (report.rows, report.left, report.captured) == ((), 3, 0)
        assert pool.warm(example(), seconds=1e6).left == 0


def test_what_stays_eager_is_told(runtime):
    def fn(x, y, stream):
        add_three(x, y, stream)
        if x.size == 8:
            stream.synchronize()

    with ExecPool(fn, BUCKETS, outputs=["y"]) as pool:
        report = pool.warm(example())
        assert [row.reason for row in report.rows] == [None, Reason.QUARANTINED, None]
        assert report.captured == 2
        assert "x float32[8], y float32[8]: quarantined, " in str(report)
        for n in (16, 8, 4):
            ask(pool, n)
        assert pool.stats().fallbacks == {Reason.QUARANTINED: 1}


def test_warming_up_stays_within_the_budget(runtime):
    def fn(x, y, rounds, stream):
        for _ in range(x.size):  # no two buckets share an exec
            ADD_SCALAR(blocks(x.size), BLOCK, (x, y, 3.0, x.size), stream=stream)

    budget = 2 * 16 * 4 + 2400 * (16 + 2)
    with ExecPool(fn, BUCKETS, outputs=["y"], memory_budget=budget) as pool:
        report = pool.warm(example(rounds=1))
        assert pool.memory().total <= budget
        assert len(report.rows) == 3
        assert {row.reason for row in report.rows} <= {None, Reason.BUDGET}


def test_a_disabled_pool_warms_nothing_up(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        pool.enabled = False
        report = pool.warm(example())
        assert [row.reason for row in report.rows] == [Reason.DISABLED] * 3
        assert pool.memory().total == 0


def test_values_of_the_example_are_what_is_captured(runtime):
    with ExecPool(add, BUCKETS, outputs=["y"], capture_after=None) as pool:
        pool.warm(example(a=2.0))
        ask(pool, 5, a=2.0)
        assert not pool.stats().fallbacks
        ask(pool, 5, a=1.0)
        assert pool.stats().fallbacks == {Reason.KEY_MISS: 1}


def test_warm_needs_an_example_or_a_manifest(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        with pytest.raises(ValueError, match="example: expected"):
            pool.warm()
        with pytest.raises(ValueError, match="buckets: expected names of inputs"):
            pool.warm({"x": gk.zeros(4)})
        with pytest.raises(TypeError, match="arguments"):
            pool.warm({**example(), "z": 1})
        ask(pool, 4)


def test_the_bar_says_size_time_and_free_memory(runtime, capsys):
    pytest.importorskip("rich")
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        assert pool.warm(example(), progress=True).captured == 3
    shown = capsys.readouterr().out
    assert "warming up" in shown
    assert "3/3" in shown


# --- whether graphs are right --------------------------------------------------------------------


def test_a_right_function_is_valid(runtime):
    def fn(x, y, z, stream):
        add_three(x, y, stream)
        add_three(z, z, stream)
        return y, z

    failures = []
    arrays = {**example(), "z": gk.asarray(np.arange(5, dtype=np.float32))}
    options = {"outputs": ["y"], "inouts": ["z"], "on_failure": failures.append}
    with ExecPool(fn, dict.fromkeys("xyz", SIZE), **options) as pool:
        assert pool.warm(arrays, validate=True).captured == 3
        assert not failures


def test_an_undeclared_write_is_found(runtime):
    failures = []

    def fn(x, y, stream):
        add_three(x, y, stream)
        add_three(x, x, stream)

    with ExecPool(fn, BUCKETS, outputs=["y"], on_failure=failures.append) as pool:
        report = pool.warm(example(), validate=True)
        assert [row.reason for row in report.rows] == [Reason.INELIGIBLE] * 3
        assert "fn writes x, which is neither in outputs nor in inouts" in report.rows[0].why
        assert len(failures) == 3
        ask(pool, 5)
        assert pool.stats().fallbacks == {Reason.INELIGIBLE: 1}
        assert pool.stats().failures == 3
        assert "0 graphs, 0 execs" in repr(pool)


def test_a_function_that_does_another_thing_under_capture_is_found(runtime):
    def fn(x, y, stream):
        captures = runtime.stream_is_capturing(stream.ptr) is not gk.CaptureStatus.NONE
        add(x, y, 4.0 if captures and x.size == 8 else 3.0, stream)

    with ExecPool(fn, BUCKETS, outputs=["y"]) as pool:
        report = pool.warm(example(), validate=True)
        assert [row.reason for row in report.rows] == [None, Reason.INELIGIBLE, None]
        assert "y: the graph's result differs" in report.rows[1].why
        for n in (16, 8, 4):
            ask(pool, n)


def test_an_output_that_is_read_is_found(runtime):
    def fn(x, y, stream):
        add_three(y, y, stream)

    with ExecPool(fn, BUCKETS, outputs=["x"]) as pool:
        report = pool.warm({"x": gk.zeros(5), "y": gk.zeros(5)}, validate=True)
        assert report.captured == 0


def test_a_function_that_minds_the_padding_is_found(runtime):
    failures = []
    with ExecPool(add_size, BUCKETS, outputs=["y"], on_failure=failures.append) as pool:
        report = pool.warm(example(), validate=True)
        assert report.captured == 0
        assert report.rows[0].why.startswith("y: padded from (15,) to (16,), the graph's result")
        assert len(failures) == 3
        values, x, y = floats(7)
        pool(x=x, y=y)
        assert np.array_equal(y.get(), values + np.float32(7))
    with ExecPool(add_size, BUCKETS, outputs=["y"]) as pool:
        assert pool.warm(example()).captured == 3  # nobody asked


def test_returned_arrays_that_mind_the_padding_are_found(runtime):
    room = gk.empty(1)

    def fn(x, stream):
        row_sums(x.view((1, x.size), np.float32), room, stream)
        return room

    for fill, captured in ((0, 3), (1, 0)):
        with ExecPool(fn, {"x": SIZE}, fill={"x": fill}) as pool:
            report = pool.warm({"x": gk.zeros(5)}, validate=True)
            assert report.captured == captured
            assert captured or report.rows[0].why.startswith("returned[0]: padded")


def test_a_bucket_of_one_size_alone_cannot_be_padded(runtime):
    size = Buckets([1, 2, 3])
    with ExecPool(add_size, {"x": size, "y": size}, outputs=["y"]) as pool:
        assert pool.warm(example(2), validate=True).captured == 3


def test_padding_over_the_limit_is_not_tried(runtime):
    size = Buckets([4, 8], max_padding_ratio=0)
    with ExecPool(add_size, {"x": size, "y": size}, outputs=["y"]) as pool:
        assert pool.warm(example(4), validate=True).captured == 2


def test_a_function_that_takes_only_the_buckets_size_is_found(runtime):
    def fn(x, y, stream):
        if x.size not in SIZE.sizes:
            raise ValueError("not my size")
        add_three(x, y, stream)

    with ExecPool(fn, BUCKETS, outputs=["y"]) as pool:
        report = pool.warm(example(), validate=True)
        assert report.captured == 0
        assert "fn raised ValueError('not my size') at (15,), where (16,) works" in str(report)


def test_differences_within_the_tolerance_are_none(runtime):
    def fn(x, y, stream):
        captures = runtime.stream_is_capturing(stream.ptr) is not gk.CaptureStatus.NONE
        add(x, y, 3.001 if captures else 3.0, stream)

    with ExecPool(fn, BUCKETS, outputs=["y"]) as pool:
        assert pool.warm(example(), validate=gk.Tolerance(atol=1e-2)).captured == 3
    with ExecPool(fn, BUCKETS, outputs=["y"]) as pool:
        assert pool.warm(example(), validate=True).captured == 0


def test_the_simulator_reports_no_times(sim):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        assert all(row.times is None for row in pool.warm(example()).rows)


def test_a_bucket_whose_graph_is_slower_stays_eager(runtime, monkeypatch):
    times = iter([gk.Times(10.0, 5.0), gk.Times(10.0, 12.0), gk.Times(7.0, 7.0)])
    monkeypatch.setattr("graphkit.trial.Trial.times", lambda _: next(times))
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        report = pool.warm(example())
        assert [row.reason for row in report.rows] == [None, Reason.INELIGIBLE, None]
        assert "12.0 us, eager 10.0" in report.rows[1].why
        for n in (16, 8, 5, 4):
            ask(pool, n)
        assert pool.stats().fallbacks == {Reason.INELIGIBLE: 2}
        assert pool.stats().failures == 0


def test_speeds_need_not_be_compared(runtime, monkeypatch):
    monkeypatch.setattr("graphkit.trial.Trial.times", None)
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        assert pool.warm(example(), compare_speed=False).captured == 3


# --- the manifest --------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pool.json"


def saved(path):
    """Save what two buckets were asked for; one of them was asked for with two values."""
    with ExecPool(add, BUCKETS, outputs=["y"]) as pool:
        for n, times in ((3, 2), (7, 5)):
            for _ in range(times):
                ask(pool, n, a=1.5)
        ask(pool, 7, a=2.5)
        pool.save_manifest(path)
    return {
        "x float32[4], y float32[4], a=1.5",
        "x float32[8], y float32[8], a=1.5",
        "x float32[8], y float32[8], a=2.5",
    }


def test_a_manifest_warms_the_next_pool_up(runtime, path):
    keys = saved(path)
    with ExecPool(add, BUCKETS, outputs=["y"], capture_after=None, strict=True) as pool:
        report = pool.warm(manifest=path, validate=True)
        assert report.captured == 3
        assert {str(row.key) for row in report.rows} == keys
        ask(pool, 6, a=1.5)
        ask(pool, 8, a=2.5)
        with pytest.raises(gk.FallbackError, match="key_miss"):
            ask(pool, 3, a=2.5)


def test_a_manifests_keys_come_before_the_other_buckets_of_the_example(runtime, path):
    keys = saved(path)
    with ExecPool(add, BUCKETS, outputs=["y"]) as pool:
        report = pool.warm(example(a=1.5), manifest=path)
        assert {str(row.key) for row in report.rows[:3]} == keys
        assert [str(row.key) for row in report.rows[3:]] == ["x float32[16], y float32[16], a=1.5"]
        assert report.captured == 4


def test_a_manifests_order_is_what_the_keys_were_worth(runtime, path):
    saved(path)
    data = json.loads(path.read_text())
    for entry, milliseconds in zip(data["entries"], (1.0, 50.0, 3.0), strict=True):
        entry["hits"], entry["milliseconds"] = 1, milliseconds
    wanted = [entry["key"] for entry in data["entries"]]
    path.write_text(json.dumps(data))
    with ExecPool(add, BUCKETS, outputs=["y"]) as pool:
        report = pool.warm(manifest=path, seconds=1e6)
        assert [row.key.to_json() for row in report.rows] == [wanted[place] for place in (1, 2, 0)]


def test_integers_of_a_manifest_are_zeros_where_there_is_no_example(runtime, path):
    seen = []

    def fn(index, stream):
        seen.append(index)

    with ExecPool(fn, {"index": SIZE}) as pool:
        pool(index=gk.zeros(8, np.int64))
        pool.save_manifest(path)
    with ExecPool(fn, {"index": SIZE}) as pool:
        del seen[:]
        assert pool.warm(manifest=path).captured == 1
        assert not seen[0].get().any()
        del seen[:]


@pytest.mark.parametrize(
    "scales", [(1.0, 2.0), (float("inf"),), (-0.0, True, None, "a", ())], ids=str
)
@pytest.mark.parametrize("with_example", [False, True])
def test_values_of_a_manifest_are_what_they_were(runtime, path, scales, with_example):
    seen = []

    def fn(x, y, scales, stream):
        seen.append(repr(scales))
        add_three(x, y, stream)

    with ExecPool(fn, BUCKETS, outputs=["y"]) as pool:
        ask(pool, 5, scales=scales)
        pool.save_manifest(path)
    with ExecPool(fn, {"x": Buckets([8])}, outputs=["y"], capture_after=None, strict=True) as pool:
        pool.warm(example(8, scales=scales) if with_example else None, manifest=path)
        ask(pool, 8, scales=scales)
        assert len(pool.stats().keys) == 1
    assert set(seen) == {repr(scales)}


def test_a_manifest_of_what_no_bucket_holds_is_told(runtime, path):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        ask(pool, 40)
        ask(pool, 4)
        pool.save_manifest(path)
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        report = pool.warm(manifest=path)
        assert report.captured == 1
        assert {row.reason for row in report.rows} == {None, Reason.OVER_MAX}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty file"),
        ('{"format": "graphkit pool manifest", "ver', "whole"),
        ("[1, 2]", "format: expected"),
        ('{"format": "vllm"}', "format: expected"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_refused(runtime, path, content, message):
    path.write_text(content)
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        with pytest.raises(ValueError, match=message) as info:
            pool.warm(example(), manifest=path)
        assert str(path) in str(info.value)
        assert pool.stats().warm == {}
        ask(pool, 4)


def test_a_manifest_of_another_function_is_refused(runtime, path):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        ask(pool, 4)
        pool.save_manifest(path)
    with ExecPool(add_size, BUCKETS, outputs=["y"]) as pool:
        with pytest.raises(ValueError, match="function: expected a manifest of 'add_size'"):
            pool.warm(manifest=path)
        with pytest.raises(FileNotFoundError):
            pool.warm(manifest=path.with_name("missing.json"))


def test_an_empty_manifest_needs_an_example(runtime, path):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        pool.save_manifest(path)
    assert json.loads(path.read_text())["entries"] == []
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        with pytest.raises(ValueError, match=r"example: expected .* or a manifest with keys"):
            pool.warm(manifest=path)
        assert pool.warm(example(), manifest=path, compare_speed=False).captured == 3
