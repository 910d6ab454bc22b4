"""ExecPool: every request gets what eager gives, by the cheapest rung, and says why."""

from __future__ import annotations

import numpy as np
import pytest

import graphkit as gk
from graphkit.exec_pool import ExecPool
from graphkit.buckets import Buckets
from graphkit.pool_policy import Reason, Step
from sample_kernels import ADD_SCALAR, AXPY

BLOCK = 128


def add_three(x, y, stream):
    """y = x + 3 for float32 of any shape."""
    n = x.size
    ADD_SCALAR(-(-n // BLOCK), BLOCK, (x, y, 3.0, n), stream=stream)


def request(n, seed=0):
    values = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    return values, gk.asarray(values), gk.empty(n)


@pytest.fixture
def pool(runtime):
    size = Buckets([4, 8, 16])
    with ExecPool(add_three, {"x": size, "y": size}, outputs=["y"]) as made:
        yield made


def test_an_exact_and_a_padded_request_get_what_eager_gives(pool):
    for n in (4, 3, 8, 7, 16, 1, 4):
        values, x, y = request(n, n)
        pool(x=x, y=y)
        assert np.array_equal(y.get(), values + np.float32(3)), n


def test_each_rung_is_counted(pool):
    for n in (4, 3, 3, 8, 4):
        _, x, y = request(n)
        pool(x=x, y=y)
    stats = pool.stats()
    assert stats.requests == 5
    assert stats.captures == 2
    assert stats.instantiates == 1
    assert stats.steps[Step.RETARGET].count == 2
    assert stats.hits == 3
    assert not stats.fallbacks


def test_a_request_over_the_largest_bucket_runs_eagerly(pool):
    values, x, y = request(17)
    pool(x=x, y=y)
    assert np.array_equal(y.get(), values + np.float32(3))
    assert pool.stats().fallbacks == {Reason.OVER_MAX: 1}
