"""An exec pool that many threads ask at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sample_functions import add, add_three, floats

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.exec_pool import ExecPool
from graphkit.pool_policy import Reason

pytestmark = pytest.mark.alone

SIZE = Buckets([4, 8, 16])
BUCKETS = {"x": SIZE, "y": SIZE}
THREADS = 4


def requests(count, seed=0, largest=16):
    """Return requests of random sizes, made beforehand: to wait for one could end a capture."""
    rng = np.random.default_rng(seed)
    return [floats(int(n), seed + i) for i, n in enumerate(rng.integers(1, largest + 1, count))]


def all_at_once(jobs):
    """Run each job on a thread of its own, begun together, and return what they return."""
    begin = threading.Barrier(len(jobs))

    def run(job):
        begin.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as threads:
        return [future.result() for future in [threads.submit(run, job) for job in jobs]]


def right(answers, a=3.0):
    return all(np.array_equal(y.get(), values + np.float32(a)) for values, _, y in answers)


@pytest.mark.parametrize("options", [{}, {"max_execs": 1}, {"max_graphs": 1, "max_execs": 1}])
def test_threads_get_each_their_own_answers(runtime, options):
    work = [requests(40, seed) for seed in range(THREADS)]
    with ExecPool(add_three, BUCKETS, outputs=["y"], **options) as pool:

        def job(mine):
            for _, x, y in mine:
                pool(x=x, y=y)

        all_at_once([lambda mine=mine: job(mine) for mine in work])
        assert all(right(mine) for mine in work)
        stats = pool.stats()
        assert stats.requests == 40 * THREADS
        assert stats.hits + stats.captures + sum(stats.fallbacks.values()) == 40 * THREADS
        assert set(stats.fallbacks) <= {Reason.KEY_MISS, Reason.BUDGET}


def test_eager_answers_and_graphs_beside_each_other(runtime):
    work = [requests(30, seed, largest=24) for seed in range(THREADS)]
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:

        def job(mine):
            for _, x, y in mine:
                pool(x=x, y=y)
                pool.plan(x=x, y=y)
                pool.stats()
                repr(pool)

        all_at_once([lambda mine=mine: job(mine) for mine in work])
        assert all(right(mine) for mine in work)
        eager = sum(len(values) > 16 for mine in work for values, _, _ in mine)
        assert pool.stats().fallbacks == {Reason.OVER_MAX: eager}


def test_a_pool_may_be_asked_while_it_warms_up(runtime):
    work = [requests(30, seed) for seed in range(THREADS - 1)]
    _, x, y = floats(16)
    with ExecPool(add, BUCKETS, outputs=["y"]) as pool:

        def job(mine):
            for _, x, y in mine:
                pool(x=x, y=y, a=3.0)

        jobs = [lambda mine=mine: job(mine) for mine in work]
        report, *_ = all_at_once([lambda: pool.warm({"x": x, "y": y, "a": 3.0}), *jobs])
        assert report.captured == 3
        assert all(right(mine) for mine in work)
        assert not pool.stats().fallbacks


def test_a_pool_may_be_closed_while_others_ask(runtime):
    work = [requests(200, seed) for seed in range(THREADS)]
    pool = ExecPool(add_three, BUCKETS, outputs=["y"])
    answered = threading.Event()
    refusals = set()

    def job(mine):
        done = []
        for request in mine:
            try:
                pool(x=request[1], y=request[2])
            except ValueError as error:
                refusals.add(str(error))
                break
            done.append(request)
            if len(done) == 20:
                answered.set()
        return done

    def close():
        answered.wait(60)
        pool.close()

    *answers, _ = all_at_once([*(lambda mine=mine: job(mine) for mine in work), close])
    assert all(right(mine) for mine in answers)
    assert pool.stats().requests == sum(map(len, answers))
    assert any(len(mine) >= 20 for mine in answers)
    assert refusals <= {"pool: expected a live one, came a closed one"}


def test_a_pool_may_be_dropped_by_another_thread(runtime):
    values, x, y = floats(5)
    pools = [ExecPool(add_three, BUCKETS, outputs=["y"])]

    def job():
        pools[0](x=x, y=y)
        pools.pop()

    all_at_once([job])
    assert np.array_equal(y.get(), values + np.float32(3))


def test_pools_of_several_threads_capture_beside_each_other(runtime):
    work = [requests(20, seed) for seed in range(THREADS)]

    def job(mine):
        with ExecPool(add_three, BUCKETS, outputs=["y"], strict=True) as pool:
            for _, x, y in mine:
                pool(x=x, y=y)
            return pool.stats().captures

    captures = all_at_once([lambda mine=mine: job(mine) for mine in work])
    assert all(right(mine) for mine in work)
    assert captures == [3] * THREADS


def test_a_function_may_take_long_without_others_waiting_for_it(runtime):
    inside, go_on = threading.Event(), threading.Event()

    def fn(x, y, stream):
        if x.size > 16:  # eagerly, so outside of the pool's lock
            inside.set()
            assert go_on.wait(60)
        add_three(x, y, stream)

    with ExecPool(fn, BUCKETS, outputs=["y"]) as pool:
        (long,), short = [floats(20)], requests(5)

        def quick():
            assert inside.wait(60)
            for _, x, y in short:
                pool(x=x, y=y)
            go_on.set()

        all_at_once([lambda: pool(x=long[1], y=long[2]), quick])
        assert right([long, *short])


def test_each_thread_may_have_a_pool_on_its_own_stream(runtime):
    streams = [gk.Stream() for _ in range(2)]
    pools = [ExecPool(add_three, BUCKETS, outputs=["y"], stream=stream) for stream in streams]
    work = [requests(30, seed) for seed in range(2)]

    def job(pool, mine):
        for _, x, y in mine:
            pool(x=x, y=y)

    pairs = zip(pools, work, strict=True)
    all_at_once([lambda pool=pool, mine=mine: job(pool, mine) for pool, mine in pairs])
    assert all(right(mine) for mine in work)
    for pool, stream in zip(pools, streams, strict=True):
        assert pool.stream is stream
        pool.close()
        assert stream.query()  # its owner's
        stream.close()
