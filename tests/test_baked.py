"""check_baked: which host values a capture froze."""

from __future__ import annotations

import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, BLOCKS, INCREMENT, NOTE

import graphkit as gk

N = 8


@pytest.fixture
def seen(runtime):
    return gk.zeros(N, np.int32)


def test_a_value_that_reaches_a_kernel(seen, stream):
    def fn(seen, pos, other):
        NOTE(1, 32, (seen, pos, pos + 1), stream=stream)
        NOTE(1, 32, (seen, 7, other), stream=stream)

    found = gk.check_baked(fn, stream, seen=seen, scalars={"pos": (3, 5), "other": (1, 2)})
    assert [(b.name, b.place, b.kernel, b.what, b.offset, b.captured) for b in found] == [
        ("pos", (0,), "note", "parameter first", 8, (3, 5)),
        ("pos", (0,), "note", "parameter second", 12, ("0x4", "0x6")),
        ("other", (1,), "note", "parameter second", 12, (1, 2)),
    ]
    assert [baked.rebindable for baked in found] == [True, False, True]
    assert str(found[0]) == (
        "node 0 (note), parameter first at 8 follows pos: 3 or 5; a scalar of bind() can change it"
    )


def test_a_float(runtime, stream):
    x, y = gk.zeros(N), gk.zeros(N)

    def fn(x, y, scale):
        ADD_SCALAR(1, 32, (x, y, scale, N), stream=stream)

    (found,) = gk.check_baked(fn, stream, x=x, y=y, scalars={"scale": (0.5, 1.5)})
    assert (found.what, found.captured, found.rebindable) == ("parameter a", (0.5, 1.5), True)


def test_a_value_of_any_type_that_changes_what_is_launched(seen, stream):
    def fn(seen, mode):
        if mode == "wide":
            BLOCKS(2, 32, (seen,), stream=stream)
        elif mode == "counted":
            INCREMENT(1, 32, (seen, 1), stream=stream)
        else:
            BLOCKS(1, 32, (seen,), stream=stream)
            BLOCKS(1, 32, (seen,), stream=stream)

    def check(*modes):
        return gk.check_baked(fn, stream, seen=seen, scalars={"mode": modes})

    found = {baked.what: baked.captured for baked in check("wide", "counted")}
    assert found["function"] == ("blocks", "increment")
    (count,) = check("wide", "twice")
    assert (count.what, count.captured) == ("which nodes there are, and their order", (1, 2))
    assert str(count) == "the graph, which nodes there are, and their order follows mode: 1 or 2"


def test_a_value_that_makes_the_grid(seen, stream):
    def fn(seen, blocks):
        BLOCKS(blocks, 32, (seen,), stream=stream)

    (found,) = gk.check_baked(fn, stream, seen=seen, scalars={"blocks": (1, 3)})
    assert (found.what, found.captured) == ("grid", ((1, 1, 1), (3, 1, 1)))


def test_a_value_that_differs_from_call_to_call(seen, stream):
    calls = []

    def fn(seen):
        calls.append(1)
        NOTE(1, 32, (seen, len(calls), 7), stream=stream)

    found = gk.check_baked(fn, stream, seen=seen)
    assert {(baked.name, baked.what) for baked in found} == {(None, "parameter first")}
    assert "differs from call to call: 0x1 or 0x2" in str(found[0])


def test_temporaries_and_callbacks_are_no_values(seen, stream):
    temporaries = [gk.zeros(N, np.int32) for _ in range(8)]

    def fn(seen, by):
        INCREMENT(1, 32, (temporaries.pop(), 1), stream=stream)
        INCREMENT(1, 32, (seen, by), stream=stream)
        stream.launch_host_func(lambda: None)

    (found,) = gk.check_baked(fn, stream, seen=seen, scalars={"by": (1, 2)})
    assert (found.place, found.what) == ((1,), "parameter by")


def test_nothing_is_found_where_nothing_is_frozen(seen, stream):
    def fn(seen, unused):
        BLOCKS(1, 32, (seen,), stream=stream)

    assert gk.check_baked(fn, stream, seen=seen, scalars={"unused": (1, 2)}) == ()
    assert gk.check_baked(fn, stream, seen=seen, unused=gk.zeros(1)) == ()


def test_arguments_are_checked(seen, stream):
    def fn(seen, mode):
        BLOCKS(1, 32, (seen,), stream=stream)

    with pytest.raises(TypeError, match="missing a required argument: 'mode'"):
        gk.check_baked(fn, stream, seen=seen)
    with pytest.raises(ValueError, match="mode: expected two or more different values"):
        gk.check_baked(fn, stream, seen=seen, scalars={"mode": ["a"]})
    with pytest.raises(TypeError, match="seen: expected an array in device memory"):
        gk.check_baked(fn, stream, seen=np.zeros(N), scalars={"mode": (1, 2)})
