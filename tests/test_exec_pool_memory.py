"""An exec pool's memory: the budget, what is evicted for it, and what is kept for how long."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from sample_functions import BLOCK, add, add_three, blocks, flip, flipped, floats
from sample_kernels import ADD_SCALAR

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.exec_pool import ExecPool
from graphkit.pool_policy import Reason, Step

pytestmark = pytest.mark.alone

SIZE = Buckets([4, 8, 16])
BUCKETS = {"x": SIZE, "y": SIZE}
ARENAS = 2 * 16 * 4


def ask(pool, n, seed=0, **values):
    host, x, y = floats(n, seed)
    pool(x=x, y=y, **values)
    assert np.array_equal(y.get(), host + np.float32(values.get("a", 3))), n


def chain(x, y, rounds, stream):
    """y = x + 3, with as many nodes as it is told: each number is a topology of its own."""
    for _ in range(rounds):
        ADD_SCALAR(blocks(x.size), BLOCK, (x, y, 3.0, x.size), stream=stream)


def used(runtime):
    return -runtime.mem_get_info()[0]


# --- the budget ----------------------------------------------------------------------------------


def test_arenas_have_the_size_of_the_largest_bucket_from_the_first(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        assert pool.memory() == gk.PoolMemory(arenas=0, execs=0, graphs=0, budget=None)
        for n in (1, 16, 8):
            ask(pool, n)
            assert pool.memory().arenas == ARENAS
        memory = pool.memory()
        assert memory.total == memory.arenas + memory.execs + memory.graphs
        assert pool.stats().memory == memory


def test_what_a_pool_says_it_has_is_what_the_simulator_gave(sim):
    before = used(sim)
    with ExecPool(chain, BUCKETS, outputs=["y"]) as pool:
        held = []  # the requests' arrays, not the pool's
        for rounds in (1, 5, 2):
            for n in (3, 16):
                _, x, y = floats(n)
                pool(x=x, y=y, rounds=rounds)
                held.append((x, y))
        sim.device_synchronize()
        theirs = sum(x.nbytes + y.nbytes for x, y in held)
        assert pool.memory().execs == 2400 * ((1 + 2) + (5 + 2) + (2 + 2))
        assert used(sim) - before == pool.memory().total + theirs
        del held, x, y
    assert used(sim) == before


@pytest.mark.parametrize("room", [0, 1, 3, 10])
def test_the_memory_is_within_the_budget_after_every_request(runtime, room):
    if runtime.name == "sim":
        gk.use("sim", gk.SimOptions(exec_bytes_per_node=100))
    budget = ARENAS + 2 * 16 + 700 * room
    with ExecPool(chain, BUCKETS, outputs=["y"], memory_budget=budget) as pool:
        rng = np.random.default_rng(room)
        for seed in range(150):
            n, rounds = int(rng.integers(1, 18)), int(rng.zipf(1.6)) % 12 + 1
            values, x, y = floats(n, seed)
            pool(x=x, y=y, rounds=rounds)
            assert np.array_equal(y.get(), values + np.float32(3))
            assert pool.memory().total <= budget
        stats = pool.stats()
        assert set(stats.fallbacks) <= {Reason.BUDGET, Reason.OVER_MAX}
        assert stats.hits or not room


def test_what_is_asked_for_more_takes_the_place_of_what_was(sim):
    budget = ARENAS + 2400 * 5
    with ExecPool(chain, BUCKETS, outputs=["y"], memory_budget=budget) as pool:
        # 4 and 5 nodes: one of the two fits. What they are worth goes by hits and by measured time.
        for rounds in (2, 2, *[3] * 5000):
            values, x, y = floats(5)
            pool(x=x, y=y, rounds=rounds)
            assert np.array_equal(y.get(), values + np.float32(3))
            assert pool.memory().total <= budget
            if pool.stats().evictions:
                break
        stats = pool.stats()
        assert stats.evictions == 1
        assert stats.instantiates == 2
        assert pool.plan(x=x, y=y, rounds=3).step is Step.LAUNCH
        assert pool.plan(x=x, y=y, rounds=2).step is not Step.LAUNCH
        # The one that went is neither counted nor there.
        assert pool.memory().execs == 2400 * 5


def test_an_exec_in_flight_is_not_evicted(sim, monkeypatch):
    budget = ARENAS + 2400 * 5
    with ExecPool(chain, BUCKETS, outputs=["y"], memory_budget=budget) as pool:
        _, x, y = floats(5)
        pool(x=x, y=y, rounds=2)
        with monkeypatch.context() as patch:
            patch.setattr("graphkit.in_flight.InFlight.holds", lambda *_: True)
            for _ in range(500):
                pool(x=x, y=y, rounds=3)
            assert pool.stats().evictions == 0
            assert pool.stats().fallbacks == {Reason.BUDGET: 500}
            assert "idle" in pool.plan(x=x, y=y, rounds=3).why
        for _ in range(5000):
            pool.stream.synchronize()
            pool(x=x, y=y, rounds=3)
            if pool.stats().evictions:
                break
        assert pool.stats().evictions == 1
        pool.stream.synchronize()


def test_arenas_larger_than_the_budget_are_not_made(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], memory_budget=ARENAS - 1) as pool:
        for n in (4, 16):
            ask(pool, n)
        assert pool.memory().total == 0
        assert pool.stats().fallbacks == {Reason.BUDGET: 2}
        _, x, y = floats(4)
        assert f"need {ARENAS} bytes" in pool.plan(x=x, y=y).why


def test_an_exec_larger_than_the_budget_is_given_up_again(sim):
    with ExecPool(add_three, BUCKETS, outputs=["y"], memory_budget=ARENAS + 2400) as pool:
        for n in (4, 16, 4):
            ask(pool, n)
            assert pool.memory().total <= ARENAS + 2400
        assert pool.stats().fallbacks == {Reason.BUDGET: 3}
        assert pool.stats().instantiates <= 1


def test_a_device_without_memory_for_execs_is_answered_eagerly(sim):
    gk.use("sim", gk.SimOptions(total_memory=1 << 16, exec_bytes_per_node=1 << 15))
    failures = []
    with ExecPool(add_three, BUCKETS, outputs=["y"], on_failure=failures.append) as pool:
        for n in (4, 4, 7):
            ask(pool, n)
        assert pool.stats().fallbacks == {Reason.QUARANTINED: 3}
        assert all(failure.error.code == 2 for failure in failures)
        assert len(failures) == 2


def test_an_arena_that_grows_is_counted_with_the_one_that_older_graphs_know(runtime):
    with ExecPool(flip, outputs=["y"], max_execs=4) as pool:
        arrays = []
        for n in (16, 64, 32, 16):
            values = np.arange(n, dtype=np.float32)
            x, y = gk.asarray(values), gk.empty(n)
            for _ in range(2):
                pool(x=x, y=y)
                assert y.get().tobytes() == flipped(values)
            arrays.append((x, y))
        assert pool.memory().arenas == 2 * 4 * (16 + 64)
        assert not pool.stats().fallbacks


def test_a_budget_holds_for_arenas_that_grow(runtime):
    budget = 2 * 4 * (16 + 64) + (1 << 24)
    with ExecPool(flip, outputs=["y"], memory_budget=budget) as pool:
        for n in (16, 64, 1 << 22, 32, 16):
            values = np.arange(n, dtype=np.float32)
            y = gk.empty(n)
            pool(x=gk.asarray(values), y=y)
            assert y.get().tobytes() == flipped(values)
            assert pool.memory().total <= budget
        assert pool.stats().fallbacks == {Reason.BUDGET: 1}


def test_a_failed_captures_arenas_are_counted(runtime):
    def fn(x, y, stream):
        add_three(x, y, stream)
        stream.synchronize()

    with ExecPool(fn, BUCKETS, outputs=["y"], memory_budget=2 * ARENAS) as pool:
        ask(pool, 4)
        assert pool.memory().arenas == ARENAS
        # Nothing is left for these.
        x, y = gk.zeros(16, np.float64), gk.zeros(16, np.float64)
        assert pool.plan(x=x, y=y).reason is Reason.BUDGET


# --- how many ------------------------------------------------------------------------------------


def test_there_are_never_more_execs_than_allowed(runtime):
    with ExecPool(chain, BUCKETS, outputs=["y"], max_execs=2) as pool:
        rng = np.random.default_rng(0)
        for seed in range(80):
            values, x, y = floats(int(rng.integers(1, 17)), seed)
            pool(x=x, y=y, rounds=int(rng.integers(1, 6)))
            assert np.array_equal(y.get(), values + np.float32(3))
            assert repr(pool).split(", ")[1] in ("0 execs", "1 exec", "2 execs")
        assert set(pool.stats().fallbacks) <= {Reason.BUDGET}


def test_graphs_stay_as_many_as_allowed_however_many_keys_come(runtime):
    with ExecPool(add, BUCKETS, outputs=["y"], max_graphs=3, max_execs=2) as pool:
        for number in range(40):
            ask(pool, 5, number, a=float(number))
            ask(pool, 5, number, a=float(number % 5))
            assert len(pool._ladder.graphs) <= 3 + 2  # those that execs hold come on top
        stats = pool.stats()
        assert stats.requests == 80
        assert stats.hits + stats.captures + sum(stats.fallbacks.values()) == 80
        assert set(stats.fallbacks) <= {Reason.KEY_MISS, Reason.BUDGET}


def test_an_exec_outlives_the_graph_that_it_was_made_from(runtime):
    with ExecPool(add, BUCKETS, outputs=["y"], max_graphs=1, max_execs=1) as pool:
        for a in (1.0, 2.0):  # the exec is made for the first, and moved to the second
            for _ in range(30):
                ask(pool, 5, a=a)
        assert pool.stats().instantiates == 1
        for number in range(3, 8):  # which drives the first one's graph out
            for _ in range(100):
                ask(pool, 5, number, a=float(number))
        assert len(pool._ladder.graphs) <= 2
        assert all(key.values != (("a", ("float", 1.0)),) for key in pool._ladder.graphs._graphs)


def test_a_key_that_comes_again_and_again_gets_a_graph_though_all_are_taken(runtime):
    with ExecPool(add, BUCKETS, outputs=["y"], max_graphs=2) as pool:
        for a in (1.0, 2.0):
            ask(pool, 5, a=a)
        for _ in range(12):
            ask(pool, 5, a=3.0)
        assert pool.plan(x=gk.zeros(5), y=gk.zeros(5), a=3.0).step in (Step.LAUNCH, Step.SET)


def test_the_host_forgets_shapes_beyond_some_thousands(runtime, monkeypatch):
    monkeypatch.setattr("graphkit.ladder._REMEMBERED", 5)
    size = Buckets([32])
    with ExecPool(add_three, {"x": size, "y": size}, outputs=["y"]) as pool:
        for turn in range(2):
            for n in range(1, 24):
                ask(pool, n, turn)
                assert len(pool._ladder.requests) <= 5
                assert len(pool._ladder.bindings) <= 5
        stats = pool.stats()
        assert (stats.requests, stats.hits, stats.captures) == (46, 45, 1)
        assert stats.elements == 2 * 2 * sum(range(1, 24))
        assert stats.padded_elements == 2 * 46 * 32


# --- what lives how long -------------------------------------------------------------------------


def test_what_launches_use_lives_until_they_are_done(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        ask(pool, 5)
        _, x, y = floats(5)
        gone = weakref.ref(x)
        pool(x=x, y=y)
        del x
        gc.collect()
        assert gone() is not None
        runtime.device_synchronize()
        for seed in range(200):  # they are let go in batches
            ask(pool, 5, seed)
        assert gone() is None


def test_arrays_of_requests_are_let_go_in_the_end(runtime):
    held = []
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as pool:
        for n in [*range(1, 18)] * 4:
            _, x, y = floats(n)
            held += [weakref.ref(x), weakref.ref(y)]
            pool(x=x, y=y)
        del x, y
        pool.stream.synchronize()
        pool._ladder.in_flight.mark()
        pool.stream.synchronize()
        pool._ladder.in_flight.mark()
        assert sum(array() is not None for array in held) == 0


@pytest.mark.parametrize("closed", [True, False])
def test_a_pool_may_go_while_launches_are_in_flight(runtime, closed):
    answers = []
    pool = ExecPool(chain, BUCKETS, outputs=["y"])
    for n in (4, 16, 7):
        values, x, y = floats(n)
        pool(x=x, y=y, rounds=n)
        answers.append((values, y))
    del x
    if closed:
        pool.close()
    gc.disable()
    try:
        gone = weakref.ref(pool)
        del pool
        assert gone() is None, "a cycle"
    finally:
        gc.enable()
    for values, y in answers:
        assert np.array_equal(y.get(), values + np.float32(3))
    del y, answers
    assert gk.live_handles() == {}, "a cycle"


def test_a_pool_that_captured_with_values_returned_goes_at_once(runtime):
    def fn(x, y, stream):
        add_three(x, y, stream)
        return {"y": y}

    gc.disable()
    try:
        pool = ExecPool(fn, BUCKETS, outputs=["y"], memory_budget="1GiB", max_execs=1)
        for n in (4, 16, 7, 17):
            result = pool(**dict(zip("xy", floats(n)[1:], strict=True)))
        pool.plan(x=gk.zeros(5), y=gk.zeros(5))
        example = {"x": gk.zeros(16), "y": gk.zeros(16)}
        pool.warm(example, validate=True)
        pool.stats()
        repr(pool)
        runtime.device_synchronize()
        del pool, result, example
        runtime.device_synchronize()
        assert gk.live_handles() == {}
    finally:
        gc.enable()


def test_what_came_back_outlives_the_pool(runtime):
    def fn(x, y, stream):
        add_three(x, y, stream)
        return y

    pool = ExecPool(fn, BUCKETS, outputs=["y"])
    values, x, y = floats(5)
    result = pool(x=x, y=y)
    pool.close()
    del pool
    assert np.array_equal(result.get(), values + np.float32(3))


def test_close_gives_all_memory_back_though_the_pool_is_still_there(runtime):
    pool = ExecPool(add_three, BUCKETS, outputs=["y"])
    ask(pool, 5)
    runtime.device_synchronize()
    pool.close()
    runtime.device_synchronize()
    handles = gk.live_handles()
    handles.pop("stream", None)  # its own: whoever asks for it may still want to wait for it
    assert handles == {}
    assert pool.stream.query()


def test_a_strict_pool_may_close_right_after_a_failed_capture(runtime):
    def fn(x, y, stream):
        add_three(x, y, stream)
        if x.size == 8 and runtime.stream_is_capturing(stream.ptr) is not gk.CaptureStatus.NONE:
            raise ValueError("not this one")

    pool = ExecPool(fn, BUCKETS, outputs=["y"], strict=True)
    _, x, y = floats(5)
    with pytest.raises(gk.FallbackError):
        pool(x=x, y=y)
    pool.close()
    del x, y
    runtime.device_synchronize()


def test_two_pools_of_one_function_on_two_streams_do_not_know_of_each_other(runtime):
    first, second = (ExecPool(add_three, BUCKETS, outputs=["y"], strict=True) for _ in range(2))
    answers = []
    with first, second:
        for seed, n in enumerate([4, 7, 16, 3, 8, 12]):
            for pool in (first, second):
                values, x, y = floats(n, seed)
                pool(x=x, y=y)
                answers.append((values, y))
        for values, y in answers:
            assert np.array_equal(y.get(), values + np.float32(3))
