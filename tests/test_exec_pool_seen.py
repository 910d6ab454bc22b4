"""What an exec pool shows: its figures, its one line, its manifest."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from sample_functions import add, add_three, floats

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.exec_pool import ExecPool
from graphkit.pool_policy import Reason, Step

pytestmark = pytest.mark.alone

SIZE = Buckets([4, 8, 16])
BUCKETS = {"x": SIZE, "y": SIZE}


def ask(pool, n, **values):
    _, x, y = floats(n)
    pool(x=x, y=y, **values)


def test_a_fresh_pool_has_done_nothing(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        stats = pool.stats()
        assert repr(pool) == "<ExecPool add_three: 0 graphs, 0 execs, 0 requests, 0.0% hits>"
        assert (stats.requests, stats.hits, stats.hit_rate, stats.padding_ratio) == (0, 0, 0, 0)
        assert (stats.steps, stats.fallbacks, stats.updates, stats.warm) == ({}, {}, {}, {})
        assert stats.keys == ()


def test_its_line_says_what_there_is(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], max_execs=1) as pool:
        for n in (4, 4, 8, 20):
            ask(pool, n)
        assert repr(pool) == "<ExecPool add_three: 2 graphs, 1 exec, 4 requests, 25.0% hits>"
    assert repr(pool) == "<ExecPool add_three closed>"


def test_elements_are_counted_as_they_came_and_as_graphs_saw_them(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        for n in (3, 3, 16, 20):  # the last is nothing that a graph saw
            ask(pool, n)
        stats = pool.stats()
        assert stats.elements == 2 * (3 + 3 + 16)
        assert stats.padded_elements == 2 * (4 + 4 + 16)
        assert stats.padding_ratio == pytest.approx(2 / 24)


def test_each_key_has_its_share(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], max_execs=1, capture_after=1) as pool:
        for n in (8, 4, 8, 8, 4, 8, 7, 40):
            ask(pool, n)
        stats = pool.stats()
        shown = {str(key.key): key for key in stats.keys}
        eight, four, over = (shown[f"x float32[{n}], y float32[{n}]"] for n in (8, 4, 40))
        assert [eight.key, four.key] == [key.key for key in stats.keys[:2]]
        assert (eight.hits, eight.eager, eight.captures) == (4, 1, 1)
        assert (four.hits, four.eager, four.captures) == (1, 1, 1)
        assert (over.hits, over.eager, over.captures, over.nbytes) == (0, 1, 0, 0)
        assert eight.instantiates + four.instantiates == 1
        assert (four.moves, eight.moves) == (1, 1)
        assert eight.milliseconds > 0
        assert eight.failures == eight.evictions == 0
        for what in ("captures", "instantiates", "evictions", "failures"):
            assert getattr(stats, what) == sum(getattr(key, what) for key in stats.keys)
        assert stats.hits == 3  # two of the five launches had to be captured for first
        assert sum(key.hits for key in stats.keys) == 5
        assert stats.requests == sum(key.hits + key.eager for key in stats.keys)
        if runtime.name == "sim":
            assert (eight.nbytes, four.nbytes) == (3 * 2400, 0)


def test_plain_launches_are_counted_and_sampled(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        _, x, y = floats(5)
        for _ in range(300):
            pool(x=x, y=y)
        steps = pool.stats().steps
        assert steps[Step.LAUNCH].count == 299
        assert steps[Step.SET].count == 1
        assert steps[Step.LAUNCH].milliseconds > 0


def test_the_steps_of_a_request_add_up(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], max_execs=1) as pool:
        rng = np.random.default_rng(1)
        for n in rng.integers(1, 24, 100).tolist():
            ask(pool, n)
        stats = pool.stats()
        steps = {step: stats.steps.get(step, gk.StepStats()).count for step in Step}
        assert steps[Step.LAUNCH] + steps[Step.SET] + steps[Step.EAGER] == stats.requests == 100
        assert steps[Step.EAGER] == stats.fallbacks[Reason.OVER_MAX]
        assert steps[Step.CAPTURE] == 3
        assert steps[Step.RETARGET] == sum(stats.updates.values())


def test_figures_are_of_one_moment(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        ask(pool, 5)
        stats = pool.stats()
        ask(pool, 5)
        ask(pool, 50)
        assert (stats.requests, stats.fallbacks) == (1, {})
        with pytest.raises(FrozenInstanceError):
            stats.requests = 7


def test_a_launch_that_failed_is_no_hit(runtime, monkeypatch):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        _, x, y = floats(5)
        pool(x=x, y=y)
        exec_ = next(iter(pool._ladder.execs._execs.values()))

        def refuse():
            raise gk.CudaError("cudaGraphLaunch", 999)

        with monkeypatch.context() as patch:
            patch.setattr(exec_, "launch", refuse)
            with pytest.raises(gk.CudaError, match="cudaGraphLaunch returned 999"):
                pool(x=x, y=y)
        assert pool.stats().requests == 1
        pool(x=x, y=y)
        assert pool.stats().hits == 1


def test_a_set_that_failed_is_made_good_by_the_next_request(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        ask(pool, 5)
        exec_ = next(iter(pool._ladder.execs._execs.values()))

        def refuse():
            raise gk.CudaError("cuGraphExecKernelNodeSetParams", 999)

        values, x, y = floats(5, 1)
        *rest, _ = exec_._moving[1]
        exec_._moving[1] = (*rest, refuse)  # the way in is set, that out is not
        with pytest.raises(gk.CudaError, match="SetParams returned 999"):
            pool(x=x, y=y)
        pool(x=x, y=y)
        assert np.array_equal(y.get(), values + np.float32(3))


def test_the_manifest_has_what_the_keys_were_worth(runtime, tmp_path):
    path = tmp_path / "pool.json"
    with ExecPool(add, BUCKETS, outputs=["y"]) as pool:
        for n in (8, 7, 4):
            ask(pool, n, a=1.5)
        ask(pool, 4, a=np.float32(2))  # JSON has no such thing
        pool.save_manifest(path)
        stats = pool.stats()
    data = json.loads(path.read_text())
    assert data["function"] == "add"
    shown = {str(gk.Signature.from_json(entry["key"])): entry for entry in data["entries"]}
    for key in stats.keys:
        entry = shown[str(key.key)]
        assert (entry["hits"], entry["bytes"]) == (key.hits, key.nbytes)
        assert (entry["milliseconds"], entry["failures"]) == (key.milliseconds, key.failures)


def test_a_manifest_that_cannot_be_written_is_the_systems_error(runtime, tmp_path):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool, pytest.raises(OSError):
        pool.save_manifest(tmp_path / "missing" / "pool.json")
