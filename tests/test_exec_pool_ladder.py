"""The rungs of an exec pool: which one answers, what it is counted as, and what plan() says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sample_functions import BLOCK, add, add_three, blocks, flip, flipped, floats
from sample_kernels import ADD_SCALAR

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.cost_model import Move
from graphkit.exec_pool import ExecPool
from graphkit.pool_policy import Reason, Step
from graphkit.runtime.protocol import CaptureMode

pytestmark = pytest.mark.alone

SIZE = Buckets([4, 8, 16])
BUCKETS = {"x": SIZE, "y": SIZE}


def counts(pool):
    return {step: taken.count for step, taken in pool.stats().steps.items()}


def ask(pool, n, seed=0, **values):
    """Make a request whose answer is x + 3, see that it is right, and return its arrays."""
    host, x, y = floats(n, seed)
    pool(x=x, y=y, **values)
    assert np.array_equal(y.get(), host + np.float32(3)), n
    return x, y


def planned(pool, n, **values):
    _, x, y = floats(n)
    plan = pool.plan(x=x, y=y, **values)
    return plan.step, plan.reason


# --- graphs --------------------------------------------------------------------------------------


def test_each_rung_is_counted(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], max_execs=1) as pool:
        x, y = ask(pool, 4)
        assert counts(pool) == {Step.SET: 1, Step.INSTANTIATE: 1, Step.CAPTURE: 1}
        pool(x=x, y=y)
        assert counts(pool)[Step.LAUNCH] == 1
        ask(pool, 4, seed=1)  # other arrays
        assert counts(pool)[Step.SET] == 2
        ask(pool, 8)  # another bucket
        assert counts(pool) == {
            Step.LAUNCH: 1,
            Step.SET: 3,
            Step.RETARGET: 1,
            Step.INSTANTIATE: 1,
            Step.CAPTURE: 2,
        }
        ask(pool, 4)
        ask(pool, 17)
        assert counts(pool)[Step.RETARGET] == 2
        assert counts(pool)[Step.EAGER] == 1
        stats = pool.stats()
        assert stats.requests == 6
        assert stats.hits == 3
        assert stats.hit_rate == 3 / 6
        assert stats.fallbacks == {Reason.OVER_MAX: 1}
        assert sum(stats.updates.values()) == 2


@pytest.mark.parametrize("move", list(Move))
def test_an_exec_is_moved_right_either_way(runtime, monkeypatch, move):
    with ExecPool(add_three, BUCKETS, outputs=["y"], max_execs=1, strict=True) as pool:
        monkeypatch.setattr(type(pool._ladder.policy.costs), "cheaper", lambda *_: move)
        for seed, n in enumerate([4, 8, 16, 3, 5, 9, 16, 1, 4]):
            ask(pool, n, seed)
        stats = pool.stats()
        assert dict(stats.updates) == {move: stats.steps[Step.RETARGET].count}
        assert stats.instantiates == 1


@pytest.mark.parametrize("move", list(Move))
def test_copies_and_fills_are_moved_too(runtime, monkeypatch, move):
    def fn(x, y, stream):
        room = y.nbytes
        gk.memset_async(y.ptr, 0xAA, stream, nbytes=room)
        gk.memcpy_async(y.ptr, x.ptr, stream, nbytes=room // 2)
        flip(y, y, stream)

    with ExecPool(fn, BUCKETS, outputs=["y"], max_execs=1, strict=True) as pool:
        monkeypatch.setattr(type(pool._ladder.policy.costs), "cheaper", lambda *_: move)
        for n in (16, 4, 8, 16, 4):
            values, x, y = floats(n, n)
            pool(x=x, y=y)
            wanted = values.tobytes()[: 2 * n] + bytes([0xAA]) * (2 * n)
            assert y.get().tobytes() == flipped(np.frombuffer(wanted, np.uint8))
        assert sum(pool.stats().updates.values()) == 4


def test_graphs_of_other_topologies_do_not_share_an_exec(runtime):
    def fn(x, y, stream):
        rounds = 1 if x.size == 4 else 3
        for _ in range(rounds):
            ADD_SCALAR(blocks(x.size), BLOCK, (x, y, 3.0, x.size), stream=stream)

    with ExecPool(fn, BUCKETS, outputs=["y"], strict=True) as pool:
        for n in (4, 8, 16, 4, 16, 8):
            ask(pool, n)
        assert pool.stats().instantiates == 2


def test_one_exec_serves_all_topologies_in_turn_where_only_one_may_be(runtime):
    def fn(x, y, stream):
        for _ in range(1 if x.size == 4 else 3):
            ADD_SCALAR(blocks(x.size), BLOCK, (x, y, 3.0, x.size), stream=stream)

    with ExecPool(fn, BUCKETS, outputs=["y"], max_execs=1) as pool:
        for n in (4, 16, 4, 16, 8, 8, 8, 8, 8, 8):
            ask(pool, n)
            runtime.device_synchronize()
        stats = pool.stats()
        assert stats.instantiates <= 1 + stats.evictions
        assert set(stats.fallbacks) <= {Reason.BUDGET}


def test_a_function_without_launches_is_a_graph_too(runtime):
    with ExecPool(lambda x, y: None, BUCKETS, outputs=["y"], strict=True) as pool:
        for n in (4, 8, 3):
            _, x, y = floats(n)
            pool(x=x, y=y)
        pool.stream.synchronize()


def test_a_request_without_arrays_is_answered_by_a_graph(runtime):
    _, x, y = floats(5)

    def fn(a, stream):
        add(x, y, a, stream)

    with ExecPool(fn, strict=True) as pool:
        for a in (1.0, 2.0, 1.0):
            pool(a=a)
            assert np.array_equal(y.get(), x.get() + np.float32(a))
        assert pool.stats().captures == 2


# --- eagerly, with a reason ----------------------------------------------------------------------


def fallback(pool):
    (reason,) = pool.stats().fallbacks
    return reason


@pytest.mark.parametrize(("value", "enabled"), [("1", False), ("0", True), ("", True)])
def test_the_environment_turns_graphs_off(runtime, monkeypatch, value, enabled):
    monkeypatch.setenv("GRAPHKIT_DISABLE", value)
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        assert pool.enabled is enabled
        ask(pool, 5)
        assert (pool.stats().fallbacks == {Reason.DISABLED: 1}) is not enabled


def test_graphs_may_be_turned_off_and_on(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        ask(pool, 5)
        pool.enabled = False
        assert planned(pool, 5) == (Step.EAGER, Reason.DISABLED)
        ask(pool, 5)
        pool.enabled = True
        ask(pool, 5)
        stats = pool.stats()
        assert stats.fallbacks == {Reason.DISABLED: 1}
        assert stats.captures == 1
        assert stats.requests == 3


def test_an_array_without_elements_is_ineligible(runtime):
    seen = []

    def fn(x, y, stream):
        seen.append(x.shape)

    with ExecPool(fn, BUCKETS, outputs=["y"]) as pool:
        _, x, y = floats(0)
        assert pool.plan(x=x, y=y).reason is Reason.INELIGIBLE
        pool(x=x, y=y)
        assert seen == [(0,)]
        assert fallback(pool) is Reason.INELIGIBLE


def test_over_the_largest_bucket_is_over_max(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        assert planned(pool, 17) == (Step.EAGER, Reason.OVER_MAX)
        ask(pool, 17)
        assert fallback(pool) is Reason.OVER_MAX


def test_too_much_padding_is_over_the_limit(runtime):
    size = Buckets([4, 16], max_padding_ratio=0.25)
    with ExecPool(add_three, {"x": size, "y": size}, outputs=["y"]) as pool:
        ask(pool, 12)
        ask(pool, 3)
        assert not pool.stats().fallbacks
        assert planned(pool, 11) == (Step.EAGER, Reason.PADDING_LIMIT)
        ask(pool, 11)
        ask(pool, 2)
        assert pool.stats().fallbacks == {Reason.PADDING_LIMIT: 2}


def test_a_key_is_captured_after_as_many_requests_as_it_is_told(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], capture_after=2) as pool:
        for n in (4, 8, 4):
            assert planned(pool, n) == (Step.EAGER, Reason.KEY_MISS)
            ask(pool, n)
        assert planned(pool, 4) == (Step.CAPTURE, None)
        assert planned(pool, 8) == (Step.EAGER, Reason.KEY_MISS)
        ask(pool, 3)
        stats = pool.stats()
        assert stats.captures == 1
        assert stats.fallbacks == {Reason.KEY_MISS: 3}


def test_captures_may_be_left_to_warm(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], capture_after=None) as pool:
        for _ in range(3):
            ask(pool, 4)
        assert pool.stats().fallbacks == {Reason.KEY_MISS: 3}
        _, x, y = floats(4)
        pool.warm({"x": x, "y": y})
        ask(pool, 4)
        assert pool.stats().fallbacks == {Reason.KEY_MISS: 3}


def test_a_budget_smaller_than_one_exec_is_answered_eagerly(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], memory_budget="1B") as pool:
        assert planned(pool, 4) == (Step.EAGER, Reason.BUDGET)
        for n in (4, 8, 4):
            ask(pool, n)
        assert pool.stats().fallbacks == {Reason.BUDGET: 3}
        assert pool.memory().total == 0


# --- a stream that is being captured -------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True], ids=["at first", "with a graph"])
def test_under_capture_the_function_becomes_a_part_of_that_graph(runtime, stream, known):
    values, x, y = floats(5)
    with ExecPool(add_three, BUCKETS, outputs=["y"], stream=stream) as pool:
        if known:
            pool(x=x, y=y)
        before = counts(pool)
        y.set(np.zeros(5, np.float32))
        with gk.capture(stream) as graph:
            plan = pool.plan(x=x, y=y)
            pool(x=x, y=y)
        assert (plan.step, plan.reason) == (Step.EAGER, Reason.INELIGIBLE)
        assert pool.stats().fallbacks == {Reason.INELIGIBLE: 1}
        assert counts(pool) == before | {Step.EAGER: 1}
        assert not y.get().any()
        assert [node.type for node in graph.nodes] == [gk.NodeType.KERNEL]
        with graph.instantiate() as exec_:
            exec_.launch(stream)
            stream.synchronize()
        graph.close()
        assert np.array_equal(y.get(), values + np.float32(3))
        ask(pool, 5)
        assert pool.stats().fallbacks == {Reason.INELIGIBLE: 1}


def test_a_capture_that_graphkit_does_not_know_is_seen_at_first(runtime, stream):
    values, x, y = floats(5)
    with ExecPool(add_three, BUCKETS, outputs=["y"], stream=stream) as pool:
        runtime.stream_begin_capture(stream.ptr, CaptureMode.THREAD_LOCAL)
        pool(x=x, y=y)
        graph = runtime.stream_end_capture(stream.ptr)
        assert pool.stats().fallbacks == {Reason.INELIGIBLE: 1}
        with gk.Graph.adopt(graph).instantiate() as exec_:
            exec_.launch(stream)
            stream.synchronize()
        runtime.graph_destroy(graph)
        assert np.array_equal(y.get(), values + np.float32(3))


def test_a_launch_into_a_capture_that_graphkit_does_not_know_is_cudas_error(runtime, stream):
    with ExecPool(add_three, BUCKETS, outputs=["y"], stream=stream) as pool:
        x, y = ask(pool, 5)
        runtime.stream_begin_capture(stream.ptr, CaptureMode.THREAD_LOCAL)
        with pytest.raises(gk.CudaError, match="cudaGraphLaunch returned 900"):
            pool(x=x, y=y)
        with pytest.raises(gk.CudaError, match="cudaStreamEndCapture returned 901"):
            runtime.stream_end_capture(stream.ptr)
        ask(pool, 5)
        pool(x=x, y=y)
        assert np.array_equal(y.get(), x.get() + np.float32(3))


def test_a_capture_of_another_stream_lives_through_a_request(runtime, stream):
    values, x, y = floats(5)
    _, a, b = floats(3)
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        for fallbacks in ({Reason.INELIGIBLE: 1}, {Reason.INELIGIBLE: 1}):
            with gk.capture(stream) as graph:
                add_three(a, b, stream)
                pool(x=x, y=y)  # at first there is no graph, and none can be made now
                add_three(a, b, stream)
            assert len(graph.nodes) == 2
            graph.close()
            assert pool.stats().fallbacks == fallbacks
            assert np.array_equal(y.get(), values + np.float32(3))
            ask(pool, 5)


def test_a_capture_of_another_thread_does_not_keep_a_pool_from_capturing(runtime, stream):
    _, a, b = floats(3)
    values, x, y = floats(5)
    with ExecPool(add_three, BUCKETS, outputs=["y"], strict=True) as pool:
        with ThreadPoolExecutor(1) as thread, gk.capture(stream) as graph:
            add_three(a, b, stream)
            thread.submit(pool, x=x, y=y).result()
        assert len(graph.nodes) == 1
        graph.close()
        assert np.array_equal(y.get(), values + np.float32(3))


# --- strict --------------------------------------------------------------------------------------


def test_a_strict_pool_raises_with_the_reason_instead(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], strict=True) as pool:
        _, x, y = floats(17)
        with pytest.raises(gk.FallbackError, match="over_max") as info:
            pool(x=x, y=y)
        assert info.value.reason is Reason.OVER_MAX
        assert "17" in info.value.why
        assert "x float32[17]" in info.value.key
        pool.enabled = False
        _, x, y = floats(4)
        with pytest.raises(gk.FallbackError) as info:
            pool(x=x, y=y)
        assert info.value.reason is Reason.DISABLED
        pool.enabled = True
        ask(pool, 4)
        assert pool.stats().fallbacks == {Reason.OVER_MAX: 1, Reason.DISABLED: 1}
        assert pool.stats().requests == 3


def test_a_strict_pool_counts_what_is_to_be_captured_later(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], strict=True, capture_after=1) as pool:
        _, x, y = floats(4)
        with pytest.raises(gk.FallbackError, match="key_miss"):
            pool(x=x, y=y)
        ask(pool, 4)


# --- plan() --------------------------------------------------------------------------------------


def test_plan_says_what_the_request_then_does_and_does_nothing(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], max_execs=1, capture_after=1) as pool:
        rng = np.random.default_rng(5)
        x = y = None
        for n in rng.integers(1, 20, 60).tolist():
            if x is None or x.shape != (n,) or rng.integers(2):
                _, x, y = floats(n)
            before = pool.stats()
            plan = pool.plan(x=x, y=y)
            assert pool.plan(x=x, y=y) == plan
            assert pool.stats() == before
            pool(x=x, y=y)
            after = pool.stats()
            taken = {
                step: stats.count - before.steps.get(step, gk.StepStats()).count
                for step, stats in after.steps.items()
            }
            assert taken[plan.step] == 1, (n, plan, taken)
            if plan.step is Step.EAGER:
                assert after.fallbacks[plan.reason] == before.fallbacks.get(plan.reason, 0) + 1
            else:
                assert plan.reason is None
            if plan.step is Step.RETARGET:
                assert plan.changed_nodes == 1
                assert after.updates[plan.move] == before.updates.get(plan.move, 0) + 1


def test_plan_says_the_bucket_and_its_padding(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        _, x, y = floats(6)
        plan = pool.plan(x=x, y=y)
        assert plan.sizes == (8,)
        assert plan.padding_ratio == 2 / 8
        assert str(plan.key) == "x float32[8], y float32[8]"
        assert plan.why
        assert plan.step is Step.CAPTURE
        assert (plan.changed_nodes, plan.move) == (None, None)


def test_plan_refuses_what_the_request_would(runtime):
    pool = ExecPool(add_three, BUCKETS, outputs=["y"])
    with pytest.raises(TypeError, match="arguments"):
        pool.plan(x=gk.zeros(3))
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        pool.plan(x=gk.zeros(3), y=gk.zeros(3))
