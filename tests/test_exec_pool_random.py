"""Pools of random options under random requests: always right, within bounds, counted, no leaks."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest
from sample_functions import BLOCK, blocks
from sample_kernels import ADD_SCALAR

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.exec_pool import ExecPool
from graphkit.pool_policy import Step

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
