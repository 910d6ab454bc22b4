"""Inputs that an exec pool rebinds instead of copying: the same answers, and told apart."""

from __future__ import annotations

import numpy as np
import pytest
from sample_functions import Strided, add_three, add_twice_x, floats, row_sums
from sample_kernels import ADD_SCALAR

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.cost_model import CostModel
from graphkit.exec_pool import ExecPool
from graphkit.pool_manifest import Manifest
from graphkit.pool_policy import Step

pytestmark = pytest.mark.alone

SIZES = Buckets([4, 8, 16])
EIGHT = Buckets([8])
LARGE = 4 << 20  # elements of 4 bytes: to copy them takes longer than to set a node


def pool_of(fn, **options):
    options = {"outputs": ["y"], "strict": True, **options}
    return ExecPool(fn, {"x": SIZES, "y": SIZES}, **options)


def check(pool, n, seed=0, by=3):
    values, x, y = floats(n, seed)
    y.set(np.full(n, np.nan, np.float32))
    pool(x=x, y=y)
    assert np.array_equal(y.get(), values + np.float32(by)), n


def rebound_hits(pool):
    return {key.key.rebound: key.hits for key in pool.stats().keys if key.hits}


# --- the same answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("rebind", [True, False, None])
def test_exact_and_padded_requests_in_any_order(runtime, rebind):
    rng = np.random.default_rng(5)
    with pool_of(add_three, rebind=rebind, max_execs=2) as pool:
        for seed, n in enumerate(rng.integers(1, 17, 80)):
            check(pool, int(n), seed)
        stats = pool.stats()
    exact = sum(int(n) in (4, 8, 16) for n in np.random.default_rng(5).integers(1, 17, 80))
    assert stats.requests == 80
    assert stats.rebound == (exact if rebind else 0)


def test_rebound_and_copied_answers_are_equal_bit_for_bit(runtime):
    def chain(x, weights, y, stream):
        """Sums of rows, then y += 2 x: each input in a node of its own."""
        row_sums(x, y, stream)
        add_twice_x(weights, y, stream)

    rng = np.random.default_rng(1)
    answers = []
    for rebind in (True, False):
        rng = np.random.default_rng(1)
        with ExecPool(chain, {"x": SIZES, "weights": SIZES, "y": SIZES}, outputs=["y"],
                      rebind=rebind, strict=True) as pool:  # fmt: skip
            for n in (8, 5, 8, 16, 3, 8, 16):
                x = rng.standard_normal((n, 5)).astype(np.float32)
                weights = rng.standard_normal(n).astype(np.float32)
                y = gk.asarray(np.full(n, np.nan, np.float32))
                pool(x=gk.asarray(x), weights=gk.asarray(weights), y=y)
                answers.append((rebind, y.get().tobytes()))
            assert set(rebound_hits(pool)) == ({(), ("weights", "x")} if rebind else {()})
    count = len(answers) // 2
    assert [answer for _, answer in answers[:count]] == [answer for _, answer in answers[count:]]


def test_two_execs_go_round_buckets_rebound_and_not(runtime):
    with pool_of(add_three, rebind=True, max_execs=2) as pool:
        for seed in range(12):
            for n in (8, 7, 4, 16, 15, 3):
                check(pool, n, seed)
        stats = pool.stats()
    assert stats.rebound == 36
    assert stats.hits == 72 - 6


def test_an_input_beside_a_padded_one_is_rebound(runtime):
    """Weights have no bucket: they fit whatever the batch."""

    def fn(x, w, y, stream):
        row_sums(w, y, stream)
        add_twice_x(x, y, stream)

    weights = np.arange(16, dtype=np.float32).reshape(4, 4)
    with ExecPool(fn, {"x": Buckets([4])}, outputs=["y"], rebind=True, strict=True) as pool:
        for n in (3, 4, 2):
            values, x, _ = floats(n)
            y = gk.zeros(4)
            pool(x=x, w=gk.asarray(weights + n), y=y)
            expected = (weights + n).sum(axis=1)
            expected[:n] += 2 * values
            assert np.allclose(y.get(), expected)
        assert set(rebound_hits(pool)) == {("w",), ("w", "x")}


def test_the_order_of_arguments_makes_no_other_graph(runtime):
    def fn(x, w, y, stream):
        add_three(x, y, stream)
        add_twice_x(w, y, stream)

    values, x, y = floats(8)
    others, w, _ = floats(8, 1)
    with ExecPool(fn, outputs=["y"], rebind=True, strict=True) as pool:
        for arguments in ({"x": x, "w": w, "y": y}, {"w": w, "y": y, "x": x}):
            pool(**arguments)
            assert np.allclose(y.get(), values + 3 + 2 * others)
        assert pool.stats().captures == 1


def test_many_launches_that_nobody_waits_for(runtime):
    answers = []
    with pool_of(add_three, rebind=True) as pool:
        for seed in range(300):
            values, x, y = floats(16, seed)
            pool(x=x, y=y)
            answers.append((values, y))
            del x  # the pool keeps it until its launch is done
        for values, y in answers:
            assert np.array_equal(y.get(), values + np.float32(3))


# --- what is not rebound -------------------------------------------------------------------------


def test_arguments_that_are_written_are_copied(runtime):
    with ExecPool(add_twice_x, {"x": EIGHT, "y": EIGHT}, inouts=["y"], rebind=True) as pool:
        values, x, y = floats(8)
        y.set(values)
        pool(x=x, y=y)
        assert np.array_equal(y.get(), values + 2 * values)
        assert set(rebound_hits(pool)) == {("x",)}


def test_what_lies_otherwise_is_copied_and_right(runtime):
    values = np.arange(64, dtype=np.float32)
    memory = gk.asarray(values)
    y = gk.empty(8)
    with pool_of(add_three, rebind=True) as pool:
        for _ in range(3):
            pool(x=memory.view(8, np.float32), y=y)  # aligned as cudaMalloc's
            assert np.array_equal(y.get(), values[:8] + 3)
            pool(x=Strided(memory, (8,), None, offset=4), y=y)
            assert np.array_equal(y.get(), values[1:9] + 3)
            pool(x=Strided(memory, (8,), (8,)), y=y)
            assert np.array_equal(y.get(), values[:16:2] + 3)
        assert set(rebound_hits(pool)) == {(), ("x",)}


def test_small_inputs_are_copied_and_large_ones_rebound(runtime):
    with ExecPool(add_three, outputs=["y"]) as pool:
        for n, rebound in ((1000, ()), (LARGE, ("x",)), (1000, ())):
            x, y = gk.asarray(np.full(n, 2, np.float32)), gk.empty(n)
            assert pool.plan(x=x, y=y).key.rebound == rebound
            pool(x=x, y=y)
            assert (y.get() == 5).all()
        assert rebound_hits(pool) == {(): 2, ("x",): 1}


def test_an_input_of_many_nodes_is_copied(runtime):
    def fn(x, y, stream):
        for value in range(40):
            ADD_SCALAR(1, 32, (x, y, float(value), 32), stream=stream)

    with ExecPool(fn, outputs=["y"]) as pool:
        for _ in range(3):
            x, y = gk.asarray(np.ones(LARGE, np.float32)), gk.zeros(LARGE)
            pool(x=x, y=y)
            assert y.get()[:32].tolist() == [40.0] * 32
        (key,) = (key for key in pool.stats().keys if key.refusal)
        assert key.key.rebound == ()
        assert "x is in 40 nodes: to set them takes longer than to copy" in key.refusal


def test_a_function_that_cannot_be_rebound_is_copied(runtime):
    def fn(x, y, stream):
        """Launches differently from memory to memory."""
        grid = 1 + x.ptr // 256 % 7
        ADD_SCALAR(grid, 32, (x, y, 3.0, x.size), stream=stream)

    with pool_of(fn, rebind=True) as pool:
        for seed in range(3):
            check(pool, 8, seed)
        (refusal,) = {key.refusal for key in pool.stats().keys if key.refusal}
        assert "grid" in refusal
        assert pool.stats().failures == 0


def test_an_input_that_is_returned_is_copied(runtime):
    """What comes back must be the request's, not that of the request which was captured."""

    def fn(x, w, y, stream):
        add_three(x, y, stream)
        add_twice_x(w, y, stream)
        return {"tail": x[4:], "y": y}

    with ExecPool(fn, outputs=["y"], rebind=True, strict=True) as pool:
        for seed in range(3):
            values, x, y = floats(8, seed)
            others, w, _ = floats(8, seed + 9)
            answer = pool(x=x, w=w, y=y)
            assert np.array_equal(answer["tail"].get(), values[4:])
            assert np.allclose(answer["y"].get(), values + 3 + 2 * others)
        stats = pool.stats()
    assert stats.rebound == 3
    assert {key.key.rebound for key in stats.keys if key.hits} == {("w",)}
    assert any("fn returns the memory of x" in key.refusal for key in stats.keys)


def test_one_array_for_two_inputs(runtime):
    def fn(x, w, y, stream):
        add_three(x, y, stream)
        add_twice_x(w, y, stream)

    with ExecPool(fn, {"x": EIGHT, "w": EIGHT, "y": EIGHT}, outputs=["y"], rebind=True) as pool:
        for _ in range(2):
            values, x, y = floats(8)
            pool(x=x, w=x, y=y)
            assert np.allclose(y.get(), values + 3 + 2 * values)
        others, w, _ = floats(8, 9)
        pool(x=x, w=w, y=y)
        assert np.allclose(y.get(), values + 3 + 2 * others)


def test_an_output_in_an_inputs_memory(runtime):
    with pool_of(add_three, rebind=True) as pool:
        for seed in range(3):
            values, x, _ = floats(8, seed)
            pool(x=x, y=x)
            assert np.array_equal(x.get(), values + 3)


def test_no_room_to_find_out_what_follows_an_input(runtime):
    """The captures that find it out need other arrays of the same size for a moment."""
    nbytes = LARGE * 4
    with ExecPool(add_three, outputs=["y"], memory_budget=2 * nbytes + (32 << 20)) as pool:
        pool(x=gk.zeros(1000), y=gk.empty(1000))
        x, y = gk.asarray(np.ones(3 * LARGE // 2, np.float32)), gk.empty(3 * LARGE // 2)
        pool(x=x, y=y)
        assert (y.get() == 4).all()
        assert pool.stats().rebound == 0


# --- before the first request, and after the last ------------------------------------------------


def test_a_warm_pool_has_both_graphs(runtime):
    _, x, y = floats(8)
    with pool_of(add_three, rebind=True) as pool:
        report = pool.warm({"x": x, "y": y}, validate=True, compare_speed=False)
        assert [row.reason for row in report.rows] == [None] * 3
        for n in (16, 15, 8, 7, 4, 3):
            check(pool, n, n)
        stats = pool.stats()
    assert (stats.captures, stats.rebound, stats.hits) == (0, 3, 6)


def test_a_manifest_has_a_bucket_once(runtime, tmp_path):
    path = tmp_path / "pool.json"
    with pool_of(add_three, rebind=True) as pool:
        for n in (8, 8, 7):
            check(pool, n)
        pool.save_manifest(path)
    with pool_of(add_three, rebind=True) as pool:
        assert len(pool.warm(manifest=path, compare_speed=False).rows) == 1
        check(pool, 8)
        check(pool, 7)
        assert pool.stats().captures == 0


def test_a_manifest_adds_up_what_a_bucket_was_asked_for(runtime):
    with pool_of(add_three, rebind=True) as pool:
        for n in (15, 15, 15, 8, 8, 7, 7):
            check(pool, n)
        entries = Manifest.of("add_three", pool.stats()).entries
    assert [(entry.key.shapes["x"], entry.hits) for entry in entries] == [((8,), 4), ((16,), 3)]


@pytest.mark.parametrize("after", [0, 2])
def test_exact_requests_wait_for_their_own_capture(runtime, after):
    with ExecPool(
        add_three, {"x": SIZES, "y": SIZES}, outputs=["y"], rebind=True, capture_after=after
    ) as pool:
        for n in (8, 8, 8, 7, 7, 7, 8):
            check(pool, n)
        stats = pool.stats()
    assert sum(stats.fallbacks.values()) == 2 * after
    assert (stats.rebound, stats.hits + stats.captures) == (4 - after, 7 - 2 * after)


def test_exact_requests_to_a_bucket_that_has_waited(runtime):
    """A copying graph is there: no request is answered eagerly that could be waited for."""
    with pool_of(add_three, rebind=True, capture_after=2, strict=False) as pool:
        for n in (7, 7, 7, 8, 8):
            check(pool, n)
        stats = pool.stats()
    assert (sum(stats.fallbacks.values()), stats.rebound) == (2, 2)


def test_what_only_warm_may_capture(runtime):
    _, x, y = floats(8)
    with pool_of(add_three, rebind=True, capture_after=None) as pool:
        pool.warm({"x": x, "y": y}, compare_speed=False)
        check(pool, 8)
        check(pool, 7)
        assert (pool.stats().rebound, pool.stats().hits) == (1, 2)


def test_a_plan_says_what_will_be_rebound(runtime):
    _, x, y = floats(8)
    with pool_of(add_three, rebind=True) as pool:
        plan = pool.plan(x=x, y=y)
        assert (plan.step, plan.key.rebound) == (Step.CAPTURE, ("x",))
        assert str(plan.key).endswith("rebound: x")
        pool(x=x, y=y)
        assert pool.plan(x=x, y=y).step is Step.LAUNCH
        _, other, _ = floats(8)
        assert pool.plan(x=other, y=y).step is Step.SET


def test_a_failed_capture_is_eager_once_and_told_once(runtime):
    told = []

    def fn(x, y, stream):
        raise ZeroDivisionError

    with ExecPool(fn, {"x": EIGHT}, outputs=["y"], rebind=True, on_failure=told.append) as pool:
        _, x, y = floats(8)
        with pytest.raises(ZeroDivisionError):
            pool(x=x, y=y)
    assert {type(failure.error) for failure in told} == {ZeroDivisionError}


@pytest.mark.parametrize("value", [1, "auto", 0.5])
def test_rebind_is_true_false_or_none(runtime, value):
    with pytest.raises(TypeError, match="rebind: expected True, False or None"):
        ExecPool(add_three, outputs=["y"], rebind=value)


def test_only_what_is_copied_in_is_timed(runtime, monkeypatch):
    timed = []
    monkeypatch.setattr(gk.Event, "elapsed_ms", lambda _start, _end: 1.0)
    monkeypatch.setattr(CostModel, "observe_copy", lambda _self, nbytes, _us: timed.append(nbytes))
    with pool_of(add_three, rebind=True, warmups=2) as pool:
        check(pool, 8)
    assert timed == [32, 32]
