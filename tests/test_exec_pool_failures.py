"""Captures that fail: quarantine, alerts, recovery; the request itself is still answered."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from sample_functions import add_three, floats

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.exec_pool import ExecPool
from graphkit.pool_policy import Reason, Step

pytestmark = pytest.mark.alone

SIZE = Buckets([4, 8, 16])
BUCKETS = {"x": SIZE, "y": SIZE}


class UserError(Exception):
    pass


class Clock:
    """The pool's clock, moved by hand."""

    def __init__(self, pool):
        self.now = 1000.0
        pool._ladder.policy._clock = lambda: self.now


def ask(pool, n, seed=0):
    values, x, y = floats(n, seed)
    pool(x=x, y=y)
    assert np.array_equal(y.get(), values + np.float32(3)), n


def capturing(stream):
    return gk.current().stream_is_capturing(stream.ptr) is not gk.CaptureStatus.NONE


def fails_under_capture(error=UserError):
    """Return a function that raises while it is captured, as long as its ``broken`` is True."""

    def fn(x, y, stream):
        add_three(x, y, stream)
        if fn.broken and capturing(stream):
            raise error("not under capture")

    fn.broken = True
    return fn


# --- what functions do wrong ---------------------------------------------------------------------


def test_a_function_that_synchronizes_is_answered_eagerly(runtime):
    failures = []

    def fn(x, y, stream):
        add_three(x, y, stream)
        if x.size >= 8:
            stream.synchronize()

    with ExecPool(fn, BUCKETS, outputs=["y"], on_failure=failures.append) as pool:
        for n in (4, 8, 3, 7, 4):
            ask(pool, n)
        assert pool.stats().fallbacks == {Reason.QUARANTINED: 2}
        (failure,) = failures
        assert isinstance(failure.error, gk.CudaError)
        assert "cudaStreamSynchronize" in str(failure.error)


def test_a_function_that_allocates_its_result_is_answered(runtime):
    def fn(x, stream):
        y = gk.empty(x.shape)
        add_three(x, y, stream)
        return y

    failures = []
    with ExecPool(fn, {"x": SIZE}, on_failure=failures.append) as pool:
        for n in (4, 7, 7):
            values, x, _ = floats(n)
            y = pool(x=x)
            pool.stream.synchronize()
            assert np.array_equal(y.get(), values + np.float32(3))
    assert len(failures) == 2
    assert "cudaMalloc" in str(failures[0].error)


def test_a_function_that_raises_on_the_third_bucket_serves_the_others(runtime):
    def fn(x, y, stream):
        if x.size == 16 and capturing(stream):
            raise UserError
        add_three(x, y, stream)

    with ExecPool(fn, BUCKETS, outputs=["y"]) as pool:
        for n in (3, 7, 16, 4, 8, 12, 16, 1):
            ask(pool, n)
        stats = pool.stats()
        assert stats.fallbacks == {Reason.QUARANTINED: 3}
        assert stats.failures == 1
        assert stats.captures == 2


@pytest.mark.parametrize("strict", [False, True])
def test_a_function_that_always_raises_raises_its_own_error(runtime, strict):
    def fn(x, y, stream):
        raise UserError("always")

    with ExecPool(fn, BUCKETS, outputs=["y"], strict=strict) as pool:
        for _ in range(3):
            _, x, y = floats(5)
            with pytest.raises(gk.FallbackError if strict else UserError) as info:
                pool(x=x, y=y)
            if strict:
                assert info.value.reason is Reason.QUARANTINED
        stats = pool.stats()
        assert stats.failures == 1
        assert stats.requests == 3
        assert stats.fallbacks == {Reason.QUARANTINED: 3}


def test_a_strict_pool_says_what_the_function_raised(runtime):
    with ExecPool(fails_under_capture(), BUCKETS, outputs=["y"], strict=True) as pool:
        _, x, y = floats(5)
        with pytest.raises(gk.FallbackError, match="quarantined") as info:
            pool(x=x, y=y)
        assert isinstance(info.value.__cause__, UserError)


def test_the_inouts_of_a_request_whose_capture_failed_are_changed_once(runtime):
    def fn(x, stream):
        add_three(x, x, stream)
        if capturing(stream):
            raise UserError

    with ExecPool(fn, {"x": SIZE}, inouts=["x"]) as pool:
        values, x, _ = floats(5)
        for times in (1, 2):
            pool(x=x)
            wanted = values
            for _ in range(times):
                wanted = wanted + np.float32(3)
            assert np.array_equal(x.get(), wanted)


def test_results_of_another_number_of_axes_are_refused(runtime):
    def fn(x, y, stream):
        add_three(x, y, stream)
        return y if x.size == 8 else (y, x)

    failures = []
    with ExecPool(fn, BUCKETS, outputs=["y"], on_failure=failures.append) as pool:
        ask(pool, 7)
        assert "as many axes" in str(failures[0].error)
        assert pool.stats().fallbacks == {Reason.QUARANTINED: 1}


def test_results_that_are_no_multiple_of_the_size_are_refused(runtime):
    room = gk.zeros(64)

    def fn(x, y, stream):
        add_three(x, y, stream)
        return room[: x.size + 1]

    failures = []
    with ExecPool(fn, BUCKETS, outputs=["y"], on_failure=failures.append) as pool:
        ask(pool, 7)
        assert "multiple of the bucket's size, came 9 at 8 and 5 at 4" in str(failures[0].error)


# --- quarantine ----------------------------------------------------------------------------------


def test_a_key_is_tried_again_later_and_later(runtime):
    failures = []
    fn = fails_under_capture()
    with ExecPool(fn, BUCKETS, outputs=["y"], on_failure=failures.append) as pool:
        clock = Clock(pool)
        ask(pool, 5)
        ask(pool, 4)  # other keys fail by themselves
        assert [failure.retry_seconds for failure in failures] == [1, 1]
        assert str(failures[0].key) == "x float32[8], y float32[8]"
        for wait in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600):
            clock.now += wait - 0.5
            ask(pool, 5)
            seen = len(failures)
            clock.now += 0.6
            ask(pool, 5)
            assert len(failures) == seen + 1
        assert [failure.failures for failure in failures[2:]] == list(range(2, 14))
        assert failures[-1].retry_seconds == 600
        _, x, y = floats(5)
        plan = pool.plan(x=x, y=y)
        assert (plan.step, plan.reason) == (Step.EAGER, Reason.QUARANTINED)
        assert "13 times" in plan.why


def test_a_key_recovers(runtime):
    fn = fails_under_capture()
    failures = []
    with ExecPool(fn, BUCKETS, outputs=["y"], on_failure=failures.append) as pool:
        clock = Clock(pool)
        ask(pool, 5)
        fn.broken = False
        ask(pool, 5)
        clock.now += 1.5
        for _ in range(3):
            ask(pool, 5)
        stats = pool.stats()
        assert stats.fallbacks == {Reason.QUARANTINED: 2}
        assert (stats.captures, stats.failures) == (1, 1)


def test_what_on_failure_raises_comes_out_and_the_pool_goes_on(runtime):
    fn = fails_under_capture()

    def on_failure(failure):
        raise UserError("told")

    with ExecPool(fn, BUCKETS, outputs=["y"], on_failure=on_failure) as pool:
        _, x, y = floats(5)
        with pytest.raises(UserError, match="told"):
            pool(x=x, y=y)
        ask(pool, 5)
        fn.broken = False
        ask(pool, 4)
        assert pool.stats().captures == 1


def test_on_failure_may_ask_the_pool(runtime):
    told = []
    fn = fails_under_capture()

    def on_failure(failure):
        told.append((pool.plan(x=x, y=y).reason, pool.stats().failures))
        ask(pool, 5)

    _, x, y = floats(5)
    with ExecPool(fn, BUCKETS, outputs=["y"], on_failure=on_failure) as pool:
        ask(pool, 5)
        assert told == [(Reason.QUARANTINED, 1)]


def test_an_exec_that_cannot_be_made_is_a_failure_like_a_capture(runtime, monkeypatch):
    failures = []
    with ExecPool(add_three, BUCKETS, outputs=["y"], on_failure=failures.append) as pool:
        clock = Clock(pool)

        def refuse(*_, **__):
            raise gk.CudaError("cudaGraphInstantiate", 2)

        with monkeypatch.context() as patch:
            patch.setattr(gk.Graph, "instantiate", refuse)
            ask(pool, 5)
        assert pool.stats().fallbacks == {Reason.QUARANTINED: 1}
        assert "cudaErrorMemoryAllocation" in str(failures[0].error)
        clock.now += 2
        ask(pool, 5)
        assert pool.stats().fallbacks == {Reason.QUARANTINED: 1}


@pytest.mark.parametrize("how", ["nodes", "update"])
def test_an_exec_that_cannot_be_moved_is_closed_and_made_anew(runtime, monkeypatch, how):
    with ExecPool(add_three, BUCKETS, outputs=["y"], max_execs=1) as pool:
        clock = Clock(pool)
        monkeypatch.setattr(type(pool._ladder.policy.costs), "cheaper", lambda *_: gk.Move(how))
        ask(pool, 8)

        def refuse(*_, **__):
            raise gk.CudaError("cudaGraphExecUpdate", 999)

        with monkeypatch.context() as patch:
            if how == "nodes":
                patch.setattr("graphkit.retarget.ExecTarget.setters", lambda *_: [refuse])
            else:
                patch.setattr("graphkit.retarget.ExecTarget.update", refuse)
            ask(pool, 4)
        assert pool.stats().fallbacks == {Reason.QUARANTINED: 1}
        ask(pool, 8)
        clock.now += 2
        ask(pool, 4)
        stats = pool.stats()
        assert stats.fallbacks == {Reason.QUARANTINED: 1}
        assert stats.evictions == 1
        assert stats.instantiates == 2


def test_an_update_that_cuda_refuses_ends_the_sharing(runtime, monkeypatch):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        monkeypatch.setattr(type(pool._ladder.policy.costs), "cheaper", lambda *_: gk.Move.UPDATE)
        ask(pool, 8)
        with monkeypatch.context() as patch:
            patch.setattr("graphkit.pool_exec.PoolExec.update", lambda *_: False)
            ask(pool, 4)
        for n in (8, 4, 7, 3):
            ask(pool, n)
        stats = pool.stats()
        assert stats.updates == {"refused": 1}
        assert stats.instantiates == 2
        assert not stats.fallbacks


# --- what a failure keeps ------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_a_failure_keeps_no_arrays_and_no_pool(runtime, strict):
    def fn(x, y, stream):
        if capturing(stream):
            raise UserError
        add_three(x, y, stream)

    pool = ExecPool(fn, BUCKETS, outputs=["y"], strict=strict)
    _, x, y = floats(5)
    gone = weakref.ref(x)
    if strict:
        with pytest.raises(gk.FallbackError):
            pool(x=x, y=y)
        gc.collect()  # what the exception's frames held
    else:
        pool(x=x, y=y)
    runtime.device_synchronize()
    pool._ladder.in_flight.mark()
    gc.disable()
    try:
        del x, y
        pool._ladder.in_flight.mark()
        assert gone() is None or strict
        dropped = weakref.ref(pool)
        del pool
        assert dropped() is None or strict
    finally:
        gc.enable()
