"""ExecPool: every request gets what eager gives, whatever its shape, layout, dtype and values."""

from __future__ import annotations

from collections import namedtuple

import ml_dtypes
import numpy as np
import pytest
from sample_functions import (
    Strided,
    add,
    add_three,
    add_twice_x,
    flip,
    flipped,
    floats,
    row_sums,
)

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.exec_pool import ExecPool

pytestmark = pytest.mark.alone

Pair = namedtuple("Pair", "first second")


@pytest.fixture
def pool(runtime):
    size = Buckets([4, 8, 16])
    with ExecPool(add_three, {"x": size, "y": size}, outputs=["y"], strict=True) as made:
        yield made


def integers(shape, seed):
    """Return whole numbers as floats: their sum is the same in any order."""
    return np.random.default_rng(seed).integers(-50, 50, shape).astype(np.float32)


# --- shapes --------------------------------------------------------------------------------------


def test_an_exact_and_a_padded_request_get_what_eager_gives(pool):
    for n in (4, 3, 8, 7, 16, 1, 4):
        values, x, y = floats(n, n)
        pool(x=x, y=y)
        assert np.array_equal(y.get(), values + np.float32(3)), n


def test_a_row_of_random_sizes_gets_what_eager_gives(pool):
    rng = np.random.default_rng(7)
    answers = []
    for seed, n in enumerate(rng.integers(1, 17, 60)):
        values, x, y = floats(int(n), seed)
        pool(x=x, y=y)
        answers.append((values, y))
    for values, y in answers:  # not waited for in between
        assert np.array_equal(y.get(), values + np.float32(3))


def test_the_same_arrays_are_answered_anew_each_time(pool):
    values, x, y = floats(7)
    pool(x=x, y=y)
    x.set(values * 2)
    pool(x=x, y=y)
    assert np.array_equal(y.get(), values * 2 + np.float32(3))


def test_two_dimensions_are_padded_each_by_itself(runtime):
    batch, length = Buckets([1, 4, 8]), Buckets([5, 16], axis=1)
    shapes = {"x": (batch, length), "y": (batch, length)}
    rng = np.random.default_rng(3)
    with ExecPool(flip, shapes, outputs=["y"], strict=True, max_execs=2) as pool:
        for _ in range(40):
            shape = int(rng.integers(1, 9)), int(rng.integers(1, 17)), 3
            values = rng.integers(0, 255, shape, dtype=np.uint8)
            y = gk.empty(shape, np.uint8)
            pool(x=gk.asarray(values), y=y)
            assert y.get().tobytes() == flipped(values), shape
        assert len(pool.stats().keys) == 6


def test_a_function_that_takes_padding_into_account_sums_rows_of_any_length(runtime):
    batch, length = Buckets([2, 8]), Buckets([4, 32], axis=1)
    buckets = {"x": (batch, length), "sums": batch}
    with ExecPool(row_sums, buckets, outputs=["sums"], strict=True) as pool:
        for seed, shape in enumerate([(8, 32), (3, 7), (1, 1), (2, 4), (5, 31), (3, 7)]):
            values = integers(shape, seed)
            sums = gk.empty(shape[0])
            pool(x=gk.asarray(values), sums=sums)
            assert np.array_equal(sums.get(), values.sum(axis=1)), shape


def test_the_fill_is_what_the_padding_becomes_on_every_call(runtime):
    length = Buckets([8], axis=1)
    with ExecPool(row_sums, {"x": length}, outputs=["sums"], fill={"x": 0.5}, strict=True) as pool:
        for columns in (8, 3, 5):  # the second finds what the first left there
            values = integers((2, columns), columns)
            sums = gk.empty(2)
            pool(x=gk.asarray(values), sums=sums)
            assert np.array_equal(sums.get(), values.sum(axis=1) + 0.5 * (8 - columns))


def test_what_has_no_buckets_is_a_part_of_the_key(runtime):
    with ExecPool(flip, outputs=["y"], strict=True) as pool:
        for shape in [(3,), (4,), (2, 2), (), (3,)]:
            values = np.full(shape, 7, np.int32)
            y = gk.empty(shape, np.int32)
            pool(x=gk.asarray(values), y=y)
            assert y.get().tobytes() == flipped(values)
        assert pool.stats().captures == 4


# --- layouts and dtypes --------------------------------------------------------------------------


def test_inputs_of_any_layout_are_one_key(pool):
    values = np.arange(64, dtype=np.float32)
    x, y = gk.asarray(values), gk.empty(7)
    wanted = {
        "contiguous": (x[:7], values[:7]),
        "misaligned": (x[1:8], values[1:8]),
        "two apart": (x[1:15:2], values[1:15:2]),
        "nine apart": (x[::9][:7], values[::9][:7]),
        "one repeated": (Strided(x, (7,), (0,), 12), np.full(7, 3, np.float32)),
    }
    for _ in range(2):
        for layout, (given, host) in wanted.items():
            pool(x=given, y=y)
            assert np.array_equal(y.get(), host + np.float32(3)), layout
    assert pool.stats().captures == 1


def test_fortran_order_is_read_and_written_as_it_lies(runtime):
    batch, length = Buckets([4]), Buckets([8], axis=1)
    both = (batch, length)
    values = np.arange(15, dtype=np.float32).reshape(3, 5)
    memory, target = gk.asarray(values.T.copy()), gk.zeros(15)
    with ExecPool(flip, {"x": both, "y": both}, outputs=["y"], strict=True) as pool:
        pool(x=Strided(memory, (3, 5), (4, 12)), y=Strided(target, (3, 5), (4, 12)))
        pool.stream.synchronize()
    assert target.get().tobytes() == flipped(values.T)


def test_an_output_with_gaps_leaves_what_lies_between_alone(pool):
    values, x, _ = floats(5)
    room = gk.zeros(16)
    pool(x=x, y=room[1:11:2])
    wanted = np.zeros(16, np.float32)
    wanted[1:11:2] = values + np.float32(3)
    assert np.array_equal(room.get(), wanted)


def test_an_output_is_cut_to_the_request(pool):
    values, x, _ = floats(5)
    room = gk.zeros(16)
    pool(x=x, y=room[:5])
    assert np.array_equal(room.get()[:5], values + np.float32(3))
    assert not room.get()[5:].any()


@pytest.mark.parametrize(
    "dtype",
    [np.int8, np.bool_, np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.complex128],
)
def test_every_dtype_keeps_its_bits(runtime, dtype):
    size = Buckets([2, 9, 33])
    with ExecPool(flip, {"x": size, "y": size}, outputs=["y"], strict=True) as pool:
        for n in (1, 9, 20, 33):
            values = np.random.default_rng(n).integers(0, 2, n).astype(dtype)
            y = gk.empty(n, dtype)
            pool(x=gk.asarray(values), y=y)
            assert y.get().tobytes() == flipped(values)
        # One element further: addresses of no more than the element's own alignment.
        room, target = gk.asarray(values), gk.empty(33, dtype)
        pool(x=room[1:], y=target[1:])
        assert target[1:].get().tobytes() == flipped(values[1:])


def test_requests_of_two_dtypes_take_two_graphs(runtime):
    size = Buckets([8])
    with ExecPool(flip, {"x": size, "y": size}, outputs=["y"], strict=True) as pool:
        for dtype in (np.float32, np.float64, np.int8, np.float32):
            values = np.arange(5).astype(dtype)
            y = gk.empty(5, dtype)
            pool(x=gk.asarray(values), y=y)
            assert y.get().tobytes() == flipped(values)
        assert pool.stats().captures == 3


# --- arguments -----------------------------------------------------------------------------------


def test_more_arrays_than_one_staging_kernel_takes(runtime):
    count = 19

    def fn(stream, **arrays):
        for place in range(count):
            flip(arrays[f"x{place}"], arrays[f"y{place}"], stream)

    size = Buckets([8])
    names = [f"{letter}{place}" for letter in "xy" for place in range(count)]
    outputs = [name for name in names if name.startswith("y")]
    with ExecPool(fn, dict.fromkeys(names, size), outputs=outputs, strict=True) as pool:
        for n in (8, 5):
            values = [floats(n, place)[0] for place in range(count)]
            arrays = {f"x{place}": gk.asarray(values[place]) for place in range(count)}
            arrays |= {name: gk.empty(n) for name in outputs}
            pool(**arrays)
            for place in range(count):
                assert arrays[f"y{place}"].get().tobytes() == flipped(values[place])


@pytest.mark.parametrize("warmups", [0, 1, 3])
def test_each_request_changes_an_inout_once(runtime, warmups):
    size = Buckets([4, 8])
    buckets = {"x": size, "y": size}
    with ExecPool(add_twice_x, buckets, inouts=["y"], warmups=warmups, strict=True) as pool:
        for n in (8, 3, 4):
            x, y = np.arange(n, dtype=np.float32), np.ones(n, np.float32)
            on_device, result = gk.asarray(x), gk.asarray(y)
            for times in range(1, 4):
                pool(x=on_device, y=result)
                assert np.array_equal(result.get(), y + 2 * times * x)


def test_an_inout_keeps_what_lies_outside_of_the_request(runtime):
    with ExecPool(add_twice_x, dict.fromkeys("xy", Buckets([8])), inouts=["y"]) as pool:
        room = gk.asarray(np.ones(16, np.float32))
        pool(x=gk.asarray(np.ones(5, np.float32)), y=room[3:8])
        assert np.array_equal(room.get(), [1, 1, 1, 3, 3, 3, 3, 3] + [1] * 8)


def test_one_array_may_be_input_and_output(pool):
    values, x, _ = floats(6)
    pool(x=x, y=x)
    assert np.array_equal(x.get(), values + np.float32(3))


def test_arguments_may_come_in_any_order(pool):
    for seed in range(3):
        values, x, y = floats(5, seed)
        pool(x=x, y=y)
        assert np.array_equal(y.get(), values + np.float32(3))
        values, x, y = floats(5, seed + 10)
        pool(y=y, x=x)
        assert np.array_equal(y.get(), values + np.float32(3))
    stats = pool.stats()
    assert stats.captures == 1
    assert stats.requests == 6


def test_requests_that_take_turns_at_two_alignments_are_both_right(pool):
    room = gk.asarray(np.arange(32, dtype=np.float32))
    for first in (0, 1, 4, 2, 0, 3, 8):
        y = gk.empty(24)[first % 3 :][:7]
        pool(x=room[first : first + 7], y=y)
        assert np.array_equal(y.get(), np.arange(first, first + 7) + 3)
    assert pool.stats().captures == 1


def test_values_are_a_part_of_the_key_with_their_types(runtime):
    seen = []

    def fn(x, y, mode, stream):
        seen.append((type(mode).__name__, mode))
        add(x, y, len(str(mode)), stream)

    size = Buckets([8])
    modes = [True, 1, 1.0, "1", (1,), (1.0,), (True, ("a", None)), None, np.float32(1), 2]
    with ExecPool(fn, dict.fromkeys("xy", size), outputs=["y"], warmups=0, strict=True) as pool:
        for _ in range(2):
            for mode in modes:
                values, x, y = floats(5)
                pool(x=x, y=y, mode=mode)
                assert np.array_equal(y.get(), values + np.float32(len(str(mode)))), mode
        assert pool.stats().captures == len(modes)
    assert len(set(map(str, seen))) == len(modes)


def test_zero_and_minus_zero_are_two_keys(runtime):
    size = Buckets([8])
    with ExecPool(add, dict.fromkeys("xy", size), outputs=["y"], strict=True) as pool:
        for a in (0.0, -0.0, float("nan"), 0.0, float("nan")):
            _, x, y = floats(8)
            pool(x=x, y=y, a=a)
        assert pool.stats().captures == 3


def test_key_adds_what_the_graphs_depend_on_besides(runtime):
    model = {"a": 1.0}

    def fn(x, y, stream):
        add(x, y, model["a"], stream)

    def key(x, y):
        return model["a"]

    with ExecPool(fn, dict.fromkeys("xy", Buckets([8])), outputs=["y"], key=key) as pool:
        for a in (1.0, 2.0, 1.0, 2.0):
            model["a"] = a
            values, x, y = floats(5)
            pool(x=x, y=y)
            assert np.array_equal(y.get(), values + np.float32(a))
        assert pool.stats().captures == 2


def test_the_users_key_is_asked_once_a_request(runtime):
    keys = iter(["first", "second"])  # as a key does that looks at what another thread changes
    buckets = dict.fromkeys("xy", Buckets([8]))
    with ExecPool(add_three, buckets, outputs=["y"], key=lambda x, y: next(keys)) as pool:
        assert pool.plan(x=gk.zeros(8), y=gk.zeros(8)).key.extra == ("str", "first")
        assert pool.plan(x=gk.zeros(8), y=gk.zeros(8)).key.extra == ("str", "second")


def test_a_function_with_defaults_need_not_be_told_all(runtime):
    def fn(x, y, stream, a=5.0):
        add(x, y, a, stream)

    with ExecPool(fn, dict.fromkeys("xy", Buckets([8])), outputs=["y"], strict=True) as pool:
        for given in ({}, {"a": 6.0}, {}):
            values, x, y = floats(5)
            pool(x=x, y=y, **given)
            assert np.array_equal(y.get(), values + np.float32(given.get("a", 5.0)))


def test_an_argument_may_be_called_self(runtime):
    def fn(self, stream):
        flip(self, self, stream)

    with ExecPool(fn, inouts=["self"], strict=True) as pool:
        values = np.arange(4, dtype=np.int32)
        x = gk.asarray(values)
        assert pool.plan(self=x).reason is None
        pool(self=x)
        assert x.get().tobytes() == flipped(values)


# --- what a function returns ---------------------------------------------------------------------


def returning(runtime, shape_result, n, largest=8, **options):
    """Return what a pool gives back for a request of n, and the host values of y."""

    def fn(x, y, stream):
        add_three(x, y, stream)
        return shape_result(x, y)

    size = Buckets([4, largest])
    with ExecPool(fn, dict.fromkeys("xy", size), outputs=["y"], strict=True, **options) as pool:
        values, x, y = floats(n)
        result = pool(x=x, y=y)
        pool.stream.synchronize()
        return result, values + np.float32(3)


@pytest.mark.parametrize("n", [1, 3, 4, 6, 8])
def test_a_returned_array_is_cut_to_the_request(runtime, n):
    result, wanted = returning(runtime, lambda _, y: y, n)
    assert result.shape == (n,)
    assert np.array_equal(result.get(), wanted)


def test_tuples_dicts_and_named_tuples_keep_their_form(runtime):
    result, wanted = returning(
        runtime,
        lambda x, y: (y, {"x": x, "both": Pair(y, [x, "text", None, 7])}, ()),
        6,
    )
    first, mapping, nothing = result
    assert nothing == ()
    assert isinstance(mapping["both"], Pair)
    deep, *others = mapping["both"].second
    assert others == ["text", None, 7]
    for array in (first, mapping["both"].first):
        assert np.array_equal(array.get(), wanted)
    for array in (mapping["x"], deep):
        assert np.array_equal(array.get(), wanted - np.float32(3)) or array.shape == (6,)


def test_none_comes_back_as_none(pool):
    _, x, y = floats(3)
    assert pool(x=x, y=y) is None
    assert pool(x=x, y=y) is None


def test_an_axis_of_the_buckets_size_that_does_not_follow_it_is_left_alone(runtime):
    table = gk.zeros((8, 4))
    result, _ = returning(runtime, lambda _, y: (table, y), 5)
    assert result[0].shape == (8, 4)
    assert result[1].shape == (5,)


def test_an_axis_of_twice_the_size_is_cut_to_twice_the_request(runtime):
    room = gk.zeros(64)

    def shaped(x, y):
        return room[: 2 * x.size], room.view((3, x.size), np.float32)

    result, _ = returning(runtime, shaped, 5)
    assert result[0].shape == (10,)
    assert result[1].shape == (3, 5)


def test_returned_axes_follow_their_own_dimension(runtime):
    batch, length = Buckets([4, 8]), Buckets([4, 8], axis=1)

    def fn(x, y, stream):
        flip(x, y, stream)
        return y, y[:, 0], y[0]

    both = (batch, length)
    with ExecPool(fn, {"x": both, "y": both}, outputs=["y"], strict=True) as pool:
        for shape in [(7, 3), (3, 7), (8, 8), (5, 6)]:
            values = integers(shape, 1)
            result = pool(x=gk.asarray(values), y=gk.empty(shape))
            pool.stream.synchronize()
            wanted = np.frombuffer(flipped(values), np.float32).reshape(shape)
            assert [part.shape for part in result] == [shape, shape[:1], shape[1:]]
            assert result[0].get().tobytes() == wanted.tobytes()
            assert result[1].get().tobytes() == wanted[:, 0].tobytes()
            assert result[2].get().tobytes() == wanted[0].tobytes()


def test_a_function_may_return_what_is_no_array(runtime):
    result, _ = returning(runtime, lambda _, __: ("done", 3), 5)
    assert result == ("done", 3)
