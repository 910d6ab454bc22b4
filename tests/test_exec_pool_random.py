"""Pools of random options under random requests: always right, within bounds, counted, no leaks."""

from __future__ import annotations

import gc
import random
from contextlib import suppress

import numpy as np
import pytest
from sample_functions import BLOCK, blocks
from sample_kernels import ADD_SCALAR, AXPY

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.exec_pool import ExecPool
from graphkit.pool_policy import Step

pytestmark = pytest.mark.alone

FLAKY = 7.0


def random_pool(rng):
    """Return a pool of a function whose captures fail now and then, and the options."""

    def fn(x, y, rounds, a, stream):
        for _ in range(rounds):
            ADD_SCALAR(blocks(x.size), BLOCK, (x, y, float(a), x.size), stream=stream)
        captures = gk.current().stream_is_capturing(stream.ptr) is not gk.CaptureStatus.NONE
        if a == FLAKY and captures and rng.random() < 0.5:
            raise RuntimeError("flaky")
        return y

    sizes = sorted(rng.sample(range(1, 40), rng.randint(1, 5)))
    size = Buckets(sizes, max_padding_ratio=rng.choice([None, None, 0.3]))
    options = {
        "memory_budget": rng.choice([None, 3000, 10_000, 50_000]),
        "max_execs": rng.choice([None, 1, 2, 3]),
        "max_graphs": rng.choice([1, 2, 5, 1000]),
        "capture_after": rng.choice([0, 0, 1, 2]),
        "warmups": rng.choice([0, 1, 2]),
    }
    return ExecPool(fn, {"x": size, "y": size}, outputs=["y"], **options), options


def random_request(rng, seed):
    """Return the arguments of a request and what it must be answered."""
    n, offset = rng.randint(0, 45), rng.choice([0, 0, 1, 2])
    values = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    room = gk.zeros(n + offset)
    room[offset:].set(values)
    a, rounds = float(rng.randint(1, 7)), rng.randint(1, 4)
    arguments = {"x": room[offset:], "y": gk.empty(n + offset)[offset:], "rounds": rounds, "a": a}
    shuffled = dict(rng.sample(list(arguments.items()), len(arguments)))
    return shuffled, values + np.float32(a)


def count_of(stats, step):
    return stats.steps.get(step, gk.StepStats()).count


@pytest.mark.parametrize("seed", range(16))
def test_a_random_pool_keeps_its_promises(runtime, seed):
    rng = random.Random(seed)
    if runtime.name == "sim":
        bytes_per_node = rng.choice([0, 10, 500, 2400])
        gk.use("sim", gk.SimOptions(order_seed=seed, exec_bytes_per_node=bytes_per_node))
    pool, options = random_pool(rng)
    now = 0.0
    pool._ladder.policy._clock = lambda: now
    open_answers = []
    asked = 0
    for number in range(80):
        now += rng.random()
        if rng.random() < 0.03:
            pool.enabled = not pool.enabled
        arguments, wanted = random_request(rng, number)
        if rng.random() < 0.03 and wanted.size and arguments["a"] != FLAKY:
            pool.warm(arguments, validate=rng.random() < 0.5)
            arguments, wanted = random_request(rng, number)
        plan, before = pool.plan(**arguments), pool.stats()
        pool(**arguments)
        asked += 1
        after = pool.stats()
        open_answers.append((arguments["y"], wanted))
        # A capture may fail, and an exec turn out to be too large.
        if plan.step not in (Step.CAPTURE, Step.INSTANTIATE) and arguments["a"] != FLAKY:
            assert count_of(after, plan.step) == count_of(before, plan.step) + 1, (number, plan)
        budget = options["memory_budget"]
        assert budget is None or pool.memory().total <= budget
        execs = len(pool._ladder.execs)
        assert execs <= (options["max_execs"] or execs)
        assert len(pool._ladder.graphs) <= options["max_graphs"] + execs
        if rng.random() < 0.2:
            assert all(np.array_equal(y.get(), right) for y, right in open_answers)
            open_answers.clear()
        elif rng.random() < 0.2:
            pool.stream.synchronize()
    assert all(np.array_equal(y.get(), right) for y, right in open_answers)
    stats = pool.stats()
    assert stats.requests == asked == sum(key.hits + key.eager for key in stats.keys)
    if seed % 2:
        pool.close()
    gc.disable()
    try:
        del pool, arguments, open_answers
        gk.current().device_synchronize()
        assert gk.live_handles() == {}
    finally:
        gc.enable()


# --- inputs that are rebound ---------------------------------------------------------------------


def reading_pool(rng):
    """Return a pool of a function that reads two inputs, and captures as it likes.

    It launches otherwise now and then, fails, and returns what it was given.
    """
    fails, differs = rng.choice([0, 0, 0.05]), rng.choice([0, 0, 0.1])
    returns = rng.choice(["", "y", "x"])

    def fn(x, w, y, z, a, stream):
        """y = x + a; z += x, and 2 w at its front."""
        if rng.random() < fails:
            raise RuntimeError("flaky")
        for _ in range(1 + (rng.random() < differs)):
            ADD_SCALAR(blocks(x.size), BLOCK, (x, y, float(a), x.size), stream=stream)
        AXPY(1, BLOCK, (w, z, 2.0, min(w.size, z.size)), stream=stream)
        AXPY(blocks(x.size), BLOCK, (x, z, 1.0, x.size), stream=stream)
        return {"y": y, "x": x}.get(returns)

    sizes = sorted(rng.sample(range(4, 40), rng.randint(1, 4)))
    options = {
        "rebind": rng.choice([True, True, True, False]),
        "memory_budget": rng.choice([None, None, 6000, 50_000]),
        "max_execs": rng.choice([None, 1, 2, 3]),
        "max_graphs": rng.choice([1, 2, 1000]),
        "capture_after": rng.choice([0, 0, 1, 2, None]),
        "warmups": rng.choice([0, 1, 2]),
    }
    buckets = dict.fromkeys(("x", "y", "z"), Buckets(sizes))
    return ExecPool(fn, buckets, outputs=["y"], inouts=["z"], **options), sizes, returns, options


def reading_request(rng, n, seed):
    """Return the arguments in any order, at any alignment, and what they must become."""
    values = np.random.default_rng(seed)

    def array(count):
        offset = rng.choice([0, 0, 0, 1, 2, 4, 64])
        held = values.standard_normal(count).astype(np.float32)
        room = gk.zeros(count + offset)
        room[offset:].set(held)
        return held, room[offset:]

    (x, x_there), (w, w_there), (z, z_there) = array(n), array(4), array(n)
    if n == 4 and rng.random() < 0.3:
        w, w_there = x, x_there
    a = rng.randint(1, 3)
    arguments = {"x": x_there, "w": w_there, "y": gk.empty(n), "z": z_there, "a": a}
    wanted = {"x": x, "w": w, "y": x + np.float32(a), "z": z + x}
    wanted["z"][:4] += 2 * w[:n]
    return dict(rng.sample(list(arguments.items()), len(arguments))), wanted


@pytest.mark.parametrize("seed", range(24))
def test_a_random_pool_answers_alike_whatever_it_rebinds(runtime, seed):
    rng = random.Random(seed)
    if runtime.name == "sim":
        bytes_per_node = rng.choice([0, 10, 500, 2400])
        gk.use("sim", gk.SimOptions(order_seed=seed, exec_bytes_per_node=bytes_per_node))
    pool, sizes, returns, options = reading_pool(rng)
    now = 0.0
    pool._ladder.policy._clock = lambda: now
    open_answers = []

    def check():
        for arguments, wanted in open_answers:
            for name, right in wanted.items():
                assert np.allclose(arguments[name].get(), right, atol=1e-5), name
        open_answers.clear()

    for number in range(60):
        now += rng.random()
        if rng.random() < 0.04:
            pool.enabled = not pool.enabled
        n = rng.choice(sizes) if rng.random() < 0.6 else rng.randint(4, 41)
        arguments, wanted = reading_request(rng, n, number)
        before = pool.stats()
        with suppress(RuntimeError):
            if rng.random() < 0.04:
                example, _ = reading_request(rng, sizes[0], -number % 100)
                pool.warm(example, validate=rng.random() < 0.5, compare_speed=False)
        try:
            returned = pool(**arguments)
        except RuntimeError:  # eagerly it fails, too
            answered = False
        else:
            answered = True
            open_answers.append((arguments, wanted))
            if returned is not None:
                assert np.array_equal(returned.get(), wanted[returns])
        stats = pool.stats()
        assert stats.requests == number + 1 == sum(key.hits + key.eager for key in stats.keys)
        assert stats.rebound <= sum(key.hits for key in stats.keys)
        eager = sum(stats.fallbacks.values()) > sum(before.fallbacks.values())
        assert answered or eager
        assert stats.elements - before.elements == (0 if eager else 3 * n + 4)
        assert options["memory_budget"] is None or pool.memory().total <= options["memory_budget"]
        del arguments  # what nobody waits for is the pool's
        if rng.random() < 0.2:
            check()
        elif rng.random() < 0.2:
            pool.stream.synchronize()
        elif rng.random() < 0.1:
            open_answers.clear()
    if seed % 2:
        pool.close()
    check()
    if options["rebind"] is False:
        assert not stats.rebound
