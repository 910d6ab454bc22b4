"""Bad input to an exec pool: a clear error or the documented fallback, and it goes on serving."""

from __future__ import annotations

import numpy as np
import pytest
from sample_functions import Strided, add_three, flip, flipped, floats

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.exec_pool import ExecPool
from graphkit.pool_policy import Reason, Step

pytestmark = pytest.mark.alone

SIZE = Buckets([4, 8, 16])
BUCKETS = {"x": SIZE, "y": SIZE}


@pytest.fixture
def pool(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"]) as made:
        yield made


def serves(pool, n=5):
    """See that a pool answers by a graph."""
    before = pool.stats()
    values, x, y = floats(n)
    pool(x=x, y=y)
    assert np.array_equal(y.get(), values + np.float32(3))
    assert pool.stats().fallbacks == before.fallbacks


# --- what a pool is made from --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"buckets": ["x"]}, TypeError, "buckets: expected"),
        ({"buckets": {"x": [4, 8]}}, TypeError, "buckets: expected"),
        ({"buckets": []}, TypeError, "buckets: expected"),
        ({"buckets": {"x": ()}}, TypeError, "buckets: expected"),
        ({"buckets": {1: SIZE}}, TypeError, "buckets: expected"),
        ({"buckets": {"x": (SIZE, SIZE)}}, ValueError, "buckets: expected one"),
        ({"memory_budget": 0}, ValueError, "memory_budget: expected"),
        ({"memory_budget": -5}, ValueError, "memory_budget: expected"),
        ({"memory_budget": 1.5}, TypeError, "memory_budget: expected"),
        ({"memory_budget": True}, TypeError, "memory_budget: expected"),
        ({"memory_budget": "much"}, ValueError, "memory_budget: expected"),
        ({"memory_budget": "1.2.3MiB"}, ValueError, "memory_budget: expected"),
        ({"memory_budget": "5 furlongs"}, ValueError, "memory_budget: expected"),
        ({"memory_budget": "0B"}, ValueError, "memory_budget: expected"),
        ({"max_execs": 0}, ValueError, "max_execs: expected"),
        ({"max_execs": 1.0}, TypeError, "max_execs: expected"),
        ({"max_graphs": 0}, ValueError, "max_graphs: expected"),
        ({"max_graphs": None}, TypeError, "max_graphs: expected"),
        ({"capture_after": -1}, ValueError, "capture_after: expected"),
        ({"capture_after": "1"}, TypeError, "capture_after: expected"),
        ({"warmups": -1}, ValueError, "warmups: expected"),
        ({"warmups": 1.0}, TypeError, "warmups: expected"),
        ({"key": "mode"}, TypeError, "key: expected"),
        ({"on_failure": "log"}, TypeError, "on_failure: expected"),
        ({"stream": "0"}, TypeError, "stream: expected"),
        ({"outputs": 7}, TypeError, "outputs: expected"),
        ({"outputs": "y"}, TypeError, "outputs: expected"),
        ({"inouts": "xy"}, TypeError, "inouts: expected"),
        ({"outputs": ["y"], "inouts": ["y"]}, ValueError, "inouts: expected"),
        ({"fill": [1]}, TypeError, "fill: expected"),
        ({"fill": {"x": "much"}}, TypeError, "fill: expected"),
        ({"fill": {"x": [1, 2]}}, ValueError, "fill: expected"),
    ],
    ids=str,
)
def test_a_pool_is_not_made_from(runtime, options, error, message):
    with pytest.raises(error, match=message):
        ExecPool(add_three, **options)
    assert gk.live_handles() == {}


def test_a_pool_needs_a_function(runtime):
    with pytest.raises(TypeError, match="fn: expected a function"):
        ExecPool("add_three")
    assert gk.live_handles() == {}


@pytest.mark.parametrize("sizes", [[], [8, 4], [4, 4], [-1, 4], [0, 4]])
def test_buckets_are_refused_before_there_is_a_pool(runtime, sizes):
    with pytest.raises(ValueError, match="sizes: expected"):
        Buckets(sizes)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_padding_ratio_outside_of_0_to_1_is_refused(ratio):
    with pytest.raises(ValueError, match="max_padding_ratio: expected"):
        Buckets([4], max_padding_ratio=ratio)


@pytest.mark.parametrize("size", [4096, "4 KiB", "4KiB", "0.004096MB", " 4.096 KB"])
def test_a_budget_may_be_said_in_units(runtime, size):
    with ExecPool(add_three, memory_budget=size) as pool:
        assert pool.memory().budget == 4096


# --- names and arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": {"z": SIZE}}, "buckets: expected names of inputs .*came z"),
        ({"outputs": ["z"]}, "outputs: expected names .*came"),
        ({"inouts": ["z"]}, "inouts: expected names .*came"),
        ({"fill": {"z": 1}}, "fill: expected names .*came"),
    ],
    ids=str,
)
def test_names_that_no_request_has_are_refused(runtime, options, message):
    with ExecPool(add_three, **options) as pool:
        _, x, y = floats(4)
        for ask in (pool, pool.plan, lambda **a: pool.warm(a)):
            with pytest.raises(ValueError, match=message):
                ask(x=x, y=y)
        assert pool.stats().requests == 0


def test_arguments_that_the_function_does_not_take_are_refused(pool):
    _, x, y = floats(4)
    for given in ({}, {"x": x}, {"x": x, "y": y, "z": y}, {"a": x, "y": y}):
        with pytest.raises(TypeError, match="arguments: expected those of add_three"):
            pool(**given)
    assert pool.stats().requests == 0
    serves(pool)


def test_the_stream_is_the_pools_to_give(pool, stream):
    _, x, y = floats(4)
    with pytest.raises(TypeError, match="stream"):
        pool(x=x, y=y, stream=stream)
    assert pool.stats().failures == 0
    serves(pool)


def test_host_arrays_are_refused(pool):
    values, x, y = floats(4)
    for given in ({"x": values, "y": y}, {"x": x, "y": values}):
        with pytest.raises(TypeError, match=r"[xy]: expected"):
            pool(**given)
    serves(pool)


def test_freed_arrays_are_refused_also_when_the_shape_is_known(pool):
    for _ in range(2):
        _, x, y = floats(4)
        x.free()
        with pytest.raises(ValueError, match="freed"):
            pool(x=x, y=y)
        serves(pool, 4)


@pytest.mark.parametrize("value", [[1], {}, {1}, np.zeros(2), ([],)], ids=str)
def test_values_that_cannot_be_a_part_of_the_key_are_refused(runtime, value):
    def fn(x, y, mode, stream):
        add_three(x, y, stream)

    with ExecPool(fn, BUCKETS, outputs=["y"]) as pool:
        _, x, y = floats(4)
        with pytest.raises(TypeError, match=r"mode|arguments"):
            pool(x=x, y=y, mode=value)
        pool(x=x, y=y, mode=1)
        assert pool.stats().captures == 1


def test_a_key_that_cannot_be_one_is_refused(runtime):
    with ExecPool(add_three, BUCKETS, outputs=["y"], key=lambda x, y: [1]) as pool:
        _, x, y = floats(4)
        with pytest.raises(TypeError, match="key: expected"):
            pool(x=x, y=y)


def test_a_key_that_raises_is_the_users_error(runtime):
    class OopsError(Exception):
        pass

    def key(x, y):
        if x.size == 4:
            raise OopsError

    with ExecPool(add_three, BUCKETS, outputs=["y"], key=key) as pool:
        _, x, y = floats(4)
        with pytest.raises(OopsError):
            pool(x=x, y=y)
        serves(pool)


def test_extents_that_disagree_are_refused(pool):
    _, x, _ = floats(4)
    with pytest.raises(ValueError, match="y: expected 4 along axis 0"):
        pool(x=x, y=gk.empty(5))
    serves(pool)


def test_an_axis_that_is_not_there_is_refused(runtime):
    with ExecPool(add_three, {"x": Buckets([4], axis=1)}, outputs=["y"]) as pool:
        _, x, y = floats(4)
        with pytest.raises(ValueError, match="x: expected an axis 1"):
            pool(x=x, y=y)


def test_a_fill_that_the_dtype_cannot_hold_is_refused(runtime):
    with ExecPool(flip, BUCKETS, outputs=["y"], fill={"x": float("nan")}) as pool:
        x, y = gk.zeros(5, np.int32), gk.zeros(5, np.int32)
        with pytest.raises((TypeError, ValueError), match="fill"):
            pool(x=x, y=y)
        pool(x=gk.zeros(5), y=gk.zeros(5))
        assert pool.stats().captures == 1
        assert pool.stats().failures == 0


# --- arrays that cannot be staged ----------------------------------------------------------------


def scattered(memory, dtype=np.float32):
    """Return an array of six axes with gaps everywhere, and what it holds."""
    values = np.arange(2**12, dtype=dtype).reshape((4,) * 6)
    memory.set(values.ravel())
    part = values[(slice(0, None, 2),) * 6]
    return Strided(memory, part.shape, part.strides), part


@pytest.mark.parametrize("layout", ["backwards", "scattered"])
@pytest.mark.parametrize("known", [False, True], ids=["at first", "with a graph"])
def test_arrays_that_no_kernel_stages_are_ineligible(runtime, layout, known):
    seen = []

    def fn(x, y, stream):
        seen.append(x)
        if type(x) is gk.DeviceArray:
            flip(x, y, stream)

    with ExecPool(fn, outputs=["y"]) as pool:
        memory = gk.zeros(2**12)
        if layout == "backwards":
            x, shape = Strided(memory, (4,), (-4,), 12), (4,)
        else:
            x, values = scattered(memory)
            shape = values.shape
        y = gk.empty(shape)
        if known:
            pool(x=gk.zeros(shape), y=y)
        plan = pool.plan(x=x, y=y)
        pool(x=x, y=y)
        assert seen[-1] is x
        assert (plan.step, plan.reason) == (Step.EAGER, Reason.INELIGIBLE)
        assert pool.stats().fallbacks == {Reason.INELIGIBLE: 1}
        assert pool.stats().failures == 0
        # The bucket itself is not to blame.
        host = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        pool(x=gk.asarray(host), y=y)
        assert y.get().tobytes() == flipped(host)
        assert pool.stats().fallbacks == {Reason.INELIGIBLE: 1}


# --- the life of a pool --------------------------------------------------------------------------


def test_a_closed_pool_refuses_requests_and_still_tells(runtime):
    pool = ExecPool(add_three, BUCKETS, outputs=["y"])
    serves(pool)
    pool.close()
    pool.close()
    _, x, y = floats(5)
    for ask in (pool, pool.plan):
        with pytest.raises(ValueError, match="pool: expected a live one, came a closed one"):
            ask(x=x, y=y)
    with pytest.raises(ValueError, match="closed"):
        pool.warm({"x": x, "y": y})
    assert pool.stats().requests == 1
    assert pool.memory().total == 0
    assert repr(pool) == "<ExecPool add_three closed>"


def test_warm_refuses_a_stream_that_captures(runtime, stream):
    _values, x, y = floats(5)
    with ExecPool(add_three, BUCKETS, outputs=["y"], stream=stream) as pool:
        with gk.capture(stream) as graph, pytest.raises(ValueError, match="stream: expected"):
            pool.warm({"x": x, "y": y})
        assert graph.nodes == []
        graph.close()
        serves(pool)


def test_a_pool_inside_of_a_pools_function_is_never_captured(runtime, stream):
    inner = ExecPool(add_three, BUCKETS, outputs=["y"], stream=stream)
    failures = []

    def fn(x, y, stream):
        inner(x=x, y=y)

    options = {"outputs": ["y"], "stream": stream, "on_failure": failures.append}
    with inner, ExecPool(fn, BUCKETS, **options) as outer:
        for n in (4, 3, 4):
            values, x, y = floats(n)
            outer(x=x, y=y)
            assert np.array_equal(y.get(), values + np.float32(3))
        assert outer.stats().fallbacks == {Reason.QUARANTINED: 3}
        assert "without an exec pool of its own" in str(failures[0].error)
        serves(inner)
