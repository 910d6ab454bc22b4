"""Rebinding: what moves is found, what is bound is launched on, and the rest is refused."""

from __future__ import annotations

import gc
import struct
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_kernels import ADD_SCALAR, AXPY, BLOCKS, INCREMENT, NOTE

import graphkit as gk
from graphkit.buffers import Buffer, alignment_of
from graphkit.host_memory import upper_halves
from graphkit.params import ArgumentBlock
from graphkit.recapture import scratch_places
from graphkit.runtime.protocol import (
    KernelNodeParams,
    KernelSource,
    LaunchConfig,
    PointerAttributes,
)

N = 8


def numbers(start=0):
    return gk.asarray(np.arange(start, start + N, dtype=np.float32))


@pytest.fixture
def x(runtime):
    return numbers()


@pytest.fixture
def y(runtime):
    return gk.zeros(N)


def add(x, y, stream):
    ADD_SCALAR(1, 32, (x, y, 1.0, N), stream=stream)


def launched(bound, **buffers):
    """Rebind, launch and wait."""
    bound.rebind(**buffers)
    bound.launch()
    bound.stream.synchronize()


# --- kernels of somebody else: structs by value, and blocks passed through extra -----------------


class Foreign:
    """A function that graphkit knows nothing about but the layout of its arguments."""

    def __init__(self, runtime, code, name, layout, twin):
        self.runtime = runtime
        self.layout = layout
        self.loaded = runtime.function_load(KernelSource(code, name, (), layout, twin))

    def block(self, *raws, extra=False):
        parameters = [
            gk.Parameter(f"arg{i}", offset, size) for i, (offset, size) in enumerate(self.layout)
        ]
        end = max(offset + size for offset, size in self.layout)
        block = ArgumentBlock(parameters, nbytes=end if extra else 0)
        block.pack(raws)
        return block

    def __call__(self, *raws, stream):
        block = self.block(*raws)
        config = LaunchConfig((1, 1, 1), (32, 1, 1), 0, stream.ptr)
        self.runtime.launch_kernel_ex(config, self.loaded.handle, block.kernel_params)

    def params(self, *raws, extra=False):
        """Return node parameters, and what must live until CUDA has copied them."""
        block = self.block(*raws, extra=extra)
        shape = (1, 1, 1), (32, 1, 1), 0
        addresses = block.kernel_params, block.extra
        return KernelNodeParams(self.loaded.handle, *shape, *addresses), block


def twice(launch, source, target, count):
    """What the foreign kernels do, given addresses."""
    values = launch.memory(source, 4 * count, write=False).view(np.float32)
    launch.memory(target, 4 * count, write=True).view(np.float32)[:] = 2 * values


# Two buffers in one struct, with a count before and behind them.
_IN_STRUCT = r"""
struct Work { int first; const float* in; float* out; int n; };
extern "C" __global__ void in_struct(Work work) {
    int i = threadIdx.x;
    if (i < work.n) work.out[i] = 2 * work.in[i];
}
"""
# Eight bytes that the kernel never reads.
_WITH_SPARE = r"""
struct Work { const float* in; float* out; long long spare; int n; };
extern "C" __global__ void with_spare(Work work) {
    int i = threadIdx.x;
    if (i < work.n) work.out[i] = 2 * work.in[i];
}
"""
# Without padding: the pointers are at offsets 4 and 12.
_PACKED = r"""
struct __attribute__((packed)) Work { int n; const float* in; float* out; };
extern "C" __global__ void packed(Work work) {
    int i = threadIdx.x;
    if (i < work.n) work.out[i] = 2 * work.in[i];
}
"""


@pytest.fixture
def in_struct(runtime):
    def twin(launch):
        (raw,) = launch.arguments
        _, source, target, n = struct.unpack("<iQQi", raw[:4] + raw[8:28])
        twice(launch, source, target, n)

    return Foreign(runtime, _IN_STRUCT, "in_struct", ((0, 32),), twin)


@pytest.fixture
def with_spare(runtime):
    def twin(launch):
        (raw,) = launch.arguments
        source, target, n = struct.unpack("<QQ8xi4x", raw)
        twice(launch, source, target, n)

    return Foreign(runtime, _WITH_SPARE, "with_spare", ((0, 32),), twin)


@pytest.fixture
def packed(runtime):
    def twin(launch):
        n, source, target = struct.unpack("<iQQ", launch.arguments[0])
        twice(launch, source, target, n)

    return Foreign(runtime, _PACKED, "packed", ((0, 20),), twin)


def work(x, y, n=N):
    return struct.pack("<i4xQQi4x", 7, x.ptr, y.ptr, n)


# --- what is found -------------------------------------------------------------------------------


def test_slots_tell_node_kernel_parameter_offset_and_buffer(x, y, stream):
    def fn(x, y, stream):
        add(x, y, stream)
        ADD_SCALAR(1, 32, (x[2:], y[3:], 1.0, N - 3), stream=stream)

    bound = gk.bind(fn, stream, x=x, y=y)
    found = [
        (slot.buffer, slot.place, slot.kernel, slot.parameter, slot.offset, slot.distance)
        for slot in bound.slots
    ]
    assert sorted(found) == [
        ("x", (0,), "add_scalar", "x", 0, 0),
        ("x", (1,), "add_scalar", "x", 0, 8),
        ("y", (0,), "add_scalar", "y", 8, 0),
        ("y", (1,), "add_scalar", "y", 8, 12),
    ]
    assert [slot.node for slot in bound.slots if slot.place == (0,)] == [bound.graph.nodes[0]] * 2
    assert str(bound.slots[0]) == "x -> node 0 (add_scalar), x at 0"
    assert repr(bound) == f"<BoundGraph of {fn.__qualname__} (x, y), 4 slots in 2 nodes>"


def test_what_is_not_named_stays_and_launches_before_are_not_disturbed(x, y, stream):
    bound = gk.bind(add, stream, x=x, y=y)
    first, second = gk.zeros(N), gk.zeros(N)
    bound.rebind(y=first)
    bound.launch()
    bound.rebind(x=numbers(100), y=second)
    bound.launch()
    stream.synchronize()
    assert np.array_equal(first.get(), x.get() + 1)
    assert np.array_equal(second.get(), np.arange(101, 101 + N))
    assert not y.get().any()


def test_a_call_binds_what_differs_launches_and_returns_the_result(x, y, stream):
    def fn(x, y):
        ADD_SCALAR(1, 32, (x, y, 1.0, N), stream=stream)
        return y

    bound = gk.bind(fn, stream, x=x, y=y)
    assert bound.result is y
    assert bound() is y
    target = gk.zeros(N)
    assert bound(y=target) is y
    bound(x=numbers(10), y=target)
    stream.synchronize()
    assert np.array_equal(y.get(), x.get() + 1)
    assert np.array_equal(target.get(), np.arange(11, 11 + N))


def test_a_launch_takes_another_stream(x, y, stream):
    bound = gk.bind(add, stream, x=x, y=y)
    other = gk.Stream()
    bound.launch(other)
    other.synchronize()
    assert np.array_equal(y.get(), x.get() + 1)
    bound(x=numbers(5))  # on the stream it was bound on
    stream.synchronize()
    assert np.array_equal(y.get(), np.arange(6, 6 + N))
    other.close()


def test_in_place(x, stream):
    def fn(x, stream):
        ADD_SCALAR(1, 32, (x, x, 1.0, N), stream=stream)

    bound = gk.bind(fn, stream, x=x)
    target = numbers(50)
    launched(bound, x=target)
    assert np.array_equal(target.get(), np.arange(51, 51 + N))
    assert np.array_equal(x.get(), np.arange(N))


def test_copies_and_fills(x, y, stream):
    def fn(x, y, stream):
        gk.memcpy_async(y[1:], x[:-1], stream)
        gk.memset_async(y[:1], 0, stream)

    bound = gk.bind(fn, stream, x=x, y=y)
    assert {(slot.parameter, slot.kernel) for slot in bound.slots} == {("dst", None), ("src", None)}
    target = gk.zeros(N)
    launched(bound, x=numbers(10), y=target)
    assert target.get().tolist() == [0, *range(10, 10 + N - 1)]
    launched(bound, y=y)
    assert y.get().tolist() == target.get().tolist()


def test_two_buffers_in_one_struct(in_struct, x, y, stream):
    def fn(x, y, stream):
        in_struct(work(x, y), stream=stream)

    bound = gk.bind(fn, stream, x=x, y=y)
    assert [(slot.buffer, slot.offset) for slot in bound.slots] == [("x", 8), ("y", 16)]
    target = gk.zeros(N)
    launched(bound, y=target)
    launched(bound, x=numbers(10))
    assert np.array_equal(target.get(), 2 * np.arange(10, 10 + N))


def test_a_struct_without_padding(packed, x, y, stream):
    def fn(x, y, stream):
        packed(struct.pack("<iQQ", N, x.ptr, y[1:].ptr), stream=stream)

    y = gk.zeros(N + 1)
    bound = gk.bind(fn, stream, x=x, y=y)
    assert [(slot.buffer, slot.offset, slot.distance) for slot in bound.slots] == [
        ("x", 4, 0),
        ("y", 12, 4),
    ]
    target = gk.zeros(N + 1)
    launched(bound, x=numbers(10), y=target)
    assert target.get().tolist() == [0, *range(20, 20 + 2 * N, 2)]


def test_arguments_passed_through_extra(runtime, in_struct, x, y, stream):
    def fn(x, y, stream):
        params, block = in_struct.params(work(x, y), extra=True)
        info = runtime.stream_get_capture_info(stream.ptr)
        runtime.graph_add_kernel_node(info.graph, info.dependencies, params)
        del block

    bound = gk.bind(fn, stream, x=x, y=y)
    assert [(slot.buffer, slot.offset) for slot in bound.slots] == [("x", 8), ("y", 16)]
    target = gk.zeros(N)
    launched(bound, x=numbers(10), y=target)
    assert np.array_equal(target.get(), 2 * np.arange(10, 10 + N))


def test_child_graphs_within_child_graphs(runtime, x, y, stream):
    def fn(x, y, stream):
        inner, outer = gk.Graph(), gk.Graph()
        inner.add_kernel_node(ADD_SCALAR, 1, 32, (x, y, 1.0, N))
        filled = outer.add_memset_node(y, 0.0)
        outer.add_child_graph_node(inner, deps=filled)
        info = runtime.stream_get_capture_info(stream.ptr)
        runtime.graph_add_child_graph_node(info.graph, info.dependencies, outer.ptr)

    bound = gk.bind(fn, stream, x=x, y=y)
    assert [(slot.buffer, slot.place) for slot in bound.slots] == [
        ("y", (0, 0)),
        ("x", (0, 1, 0)),
        ("y", (0, 1, 0)),
    ]
    target = gk.zeros(N)
    launched(bound, x=numbers(10), y=target)
    assert np.array_equal(target.get(), np.arange(11, 11 + N))


def test_interleaved_views_of_one_allocation_are_told_apart(runtime, stream):
    half = 64  # elements, whose bytes are as well aligned as memory of its own
    rows = np.arange(4 * 2 * half, dtype=np.float32).reshape(4, 2 * half)
    source, other, target = gk.asarray(rows), gk.asarray(rows + 1000), gk.zeros((4, 2 * half))

    def fn(left, right, out):
        gk.memcpy_async(out[0, :half], left[1], stream)
        gk.memcpy_async(out[0, half:], right[2], stream)

    bound = gk.bind(fn, stream, left=source[:, :half], right=source[:, half:], out=target)
    launched(bound, right=other[:, half:])
    assert np.array_equal(target.get()[0], [*rows[1, :half], *(rows[2, half:] + 1000)])
    launched(bound, left=other[:, half:], right=other[:, :half])
    assert np.array_equal(target.get()[0], [*(rows[1, half:] + 1000), *(rows[2, :half] + 1000)])
    with pytest.raises(ValueError, match="right: expected a buffer that does not overlap left"):
        bound.rebind(right=other[:, half:])


def test_a_buffer_used_by_many_nodes(x, stream):
    targets = [gk.zeros(N) for _ in range(40)]

    def fn(x, stream):
        for number, target in enumerate(targets):
            ADD_SCALAR(1, 32, (x, target, float(number), N), stream=stream)

    bound = gk.bind(fn, stream, x=x)
    assert len(bound.slots) == 40
    launched(bound, x=numbers(10))
    for number, target in enumerate(targets):
        assert np.array_equal(target.get(), np.arange(10, 10 + N) + number)


class Temporaries:
    """Memory that a function takes anew at every call, as from an allocator."""

    def __init__(self, count=12):
        self.arrays = [gk.zeros(N) for _ in range(count)]
        self.taken = 0

    def take(self):
        self.taken += 1
        return self.arrays[self.taken - 1]


def test_a_functions_own_temporaries_stay_where_they_are(x, y, stream):
    temporaries = Temporaries()

    def fn(x, y, stream):
        between = temporaries.take()
        AXPY(1, 32, (x, between, 0.0, N), stream=stream)
        ADD_SCALAR(1, 32, (x, between, 1.0, N), stream=stream)
        ADD_SCALAR(1, 32, (between, y, 1.0, N), stream=stream)

    bound = gk.bind(fn, stream, x=x, y=y)
    assert {slot.buffer for slot in bound.slots} == {"x", "y"}
    target = gk.zeros(N)
    launched(bound, x=numbers(10), y=target)
    assert np.array_equal(target.get(), np.arange(12, 12 + N))
    assert np.array_equal(temporaries.arrays[0].get(), np.arange(11, 11 + N))


def test_a_fork_that_is_joined(x, y, stream):
    side = gk.Stream()
    z = gk.zeros(N)

    def fn(x, y, z, stream):
        add(x, y, stream)
        side.wait_event(stream.record())
        ADD_SCALAR(1, 32, (y, z, 1.0, N), stream=side)
        stream.wait_event(side.record())

    bound = gk.bind(fn, stream, x=x, y=y, z=z)
    target = gk.zeros(N)
    launched(bound, x=numbers(10), z=target)
    assert np.array_equal(target.get(), np.arange(12, 12 + N))
    side.close()


def test_host_nodes_stay_what_they_are(x, y, stream):
    calls = []

    def fn(x, y, stream):
        add(x, y, stream)
        stream.launch_host_func(lambda: calls.append(len(calls)))

    bound = gk.bind(fn, stream, x=x, y=y)
    launched(bound, x=numbers(10))
    launched(bound, x=x)
    assert calls == [0, 1]


def test_event_nodes_stay_what_they_are(runtime, x, y, stream):
    event = gk.Event()

    def fn(x, y, stream):
        info = runtime.stream_get_capture_info(stream.ptr)
        recorded = runtime.graph_add_event_record_node(info.graph, (), event.ptr)
        runtime.graph_add_event_wait_node(info.graph, (recorded,), event.ptr)
        add(x, y, stream)

    bound = gk.bind(fn, stream, x=x, y=y)
    launched(bound, x=numbers(10))
    assert event.query()
    assert np.array_equal(y.get(), np.arange(11, 11 + N))


def test_the_function_does_not_run_while_it_is_bound(x, y, stream):
    gk.bind(add, stream, x=x, y=y)
    stream.synchronize()
    assert not y.get().any()


# --- scalars -------------------------------------------------------------------------------------


def test_scalars_follow_by_value(x, y, stream):
    def fn(x, y, a, n, stream):
        ADD_SCALAR(1, 32, (x, y, a, n), stream=stream)
        AXPY(1, 32, (x, y, a, N), stream=stream)

    bound = gk.bind(fn, stream, x=x, y=y, scalars={"a": (1.0, 2.5), "n": (4, 5)})
    assert [(slot.buffer, slot.place, slot.parameter, slot.types) for slot in bound.slots[4:]] == [
        ("a", (0,), "a", ("float32",)),
        ("n", (0,), "n", ("int32",)),
        ("a", (1,), "a", ("float32",)),
    ]
    target = gk.zeros(N)
    launched(bound, a=3.0, y=target)
    half = np.where(np.arange(N) < 4, x.get() + 3, 0)
    assert np.array_equal(target.get(), half + 3 * x.get())
    launched(bound, n=N, a=np.float32(0.5))
    assert np.array_equal(target.get(), x.get() + 0.5 + x.get() / 2)
    bound(n=2, a=-1)
    stream.synchronize()
    kept = np.where(np.arange(N) < 2, x.get() - 1, x.get() + 0.5 + x.get() / 2)
    assert np.array_equal(target.get(), kept - x.get())


def test_scalars_alone(runtime, stream):
    seen = gk.zeros(3, np.int32)

    def fn(first, second):
        NOTE(1, 32, (seen, first, second), stream=stream)

    bound = gk.bind(fn, stream, scalars={"first": (1, 2), "second": (3, 4)})
    launched(bound)
    assert seen.get().tolist() == [1, 3, 1]
    launched(bound, second=-9)
    assert seen.get().tolist() == [1, -9, 1]
    launched(bound, first=2**31 - 1, second=0)
    assert seen.get().tolist() == [2**31 - 1, 0, 1]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1.5, TypeError, "first: expected an integer, came 1.5"),
        ("1", TypeError, "first: expected a number, came str"),
        (None, TypeError, "first: expected a number, came NoneType"),
        (np.arange(3), TypeError, "first: expected a number, came ndarray"),
        (2**31, ValueError, "first: expected a number that is the same as int32"),
    ],
)
def test_a_scalar_that_does_not_fit_is_refused(runtime, stream, value, error, message):
    seen = gk.zeros(3, np.int32)

    def fn(first, second):
        NOTE(1, 32, (seen, first, second), stream=stream)

    bound = gk.bind(fn, stream, scalars={"first": (1, 2), "second": (3, 4)})
    with pytest.raises(error, match=message):
        bound.rebind(second=7, first=value)
    launched(bound)
    assert seen.get().tolist() == [1, 3, 1]


def test_a_scalar_whose_width_is_open_takes_what_is_right_as_either(in_struct, x, y, stream):
    """Of an unknown struct nobody knows whether 8 bytes are one number or two."""

    def fn(x, y, n, stream):
        in_struct(work(x, y, n), stream=stream)

    bound = gk.bind(fn, stream, x=x, y=y, scalars={"n": (3, 4)})
    (slot,) = [slot for slot in bound.slots if slot.buffer == "n"]
    assert slot.types == ("int32", "uint32", "int64", "uint64")
    launched(bound, n=5)
    assert y.get().tolist() == [0, 2, 4, 6, 8, 0, 0, 0]
    for value in (-1, 2**32):
        with pytest.raises(ValueError, match="n: expected a number that is the same as int32 and"):
            bound.rebind(n=value)
    negative = gk.bind(fn, stream, x=x, y=y, scalars={"n": (3, 4, -1)})
    (slot,) = [slot for slot in negative.slots if slot.buffer == "n"]
    assert slot.types == ("int32",)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x, n: BLOCKS(n, 32, (x,), stream=x.stream), r"n = 2, grid \(1, 1, 1\) became"),
        (
            lambda x, n: NOTE(1, 32, (x, n * n + 1, 0), stream=x.stream),
            "0x2 became 0x5 when n went from 1 to 2, and is not n itself",
        ),
        (
            lambda x, n: NOTE(1, 32, (x[n:], 0, 0), stream=x.stream),
            "an address of x that n moves, too",
        ),
        (lambda x, n: NOTE(1, 32, (x, 0, 0), stream=x.stream), "n: never used"),
        (
            lambda x, n: [NOTE(1, 32, (x, 0, 0), stream=x.stream) for _ in range(n)],
            "captured as 1 node, and captured with n = 2, as 2",
        ),
    ],
)
def test_what_follows_a_scalar_otherwise_cannot_be_rebound(runtime, stream, fn, message):
    def called(x, n):
        return fn(Streamed(x, stream), n)

    with pytest.raises(gk.RebindError, match=message):
        gk.bind(called, stream, x=gk.zeros(6, np.int32), scalars={"n": (1, 2)})


def test_a_product_of_two_scalars_is_told_from_one_of_them(runtime, stream):
    seen = gk.zeros(3, np.int32)

    def fn(pos, scale):
        NOTE(1, 32, (seen, pos * scale, pos), stream=stream)

    with pytest.raises(gk.RebindError, match=r"parameter first.*fn computes it of several"):
        gk.bind(fn, stream, scalars={"pos": (1, 2), "scale": (0, 5)})


class Streamed:
    """An array that knows the test's stream."""

    def __init__(self, array, stream):
        self.array, self.stream = array, stream

    def __getitem__(self, index):
        return self.array[index]

    @property
    def __cuda_array_interface__(self):
        return self.array.__cuda_array_interface__


@pytest.mark.parametrize(
    ("scalars", "error", "message"),
    [
        ({"a": (1.0,)}, ValueError, "a: expected two or more different values"),
        ({"a": (1.0, 1)}, ValueError, "a: expected two or more different values"),
        ({"a": 1.0}, TypeError, "a: expected two or more values, came 1.0"),
        ({"a": "ab"}, TypeError, "a: expected two or more values, came 'ab'"),
        ({"a": (1, "b")}, TypeError, "a: expected numbers"),
        ({"x": (1, 2)}, TypeError, "x: expected a buffer or a scalar, came both"),
        ([1, 2], TypeError, "scalars: expected a dict of values, came list"),
        ({"stream": (1, 2)}, TypeError, "stream: expected another name"),
    ],
)
def test_scalars_are_checked_before_anything_is_captured(x, y, stream, scalars, error, message):
    def fn(x, y, a=0, stream=None):
        raise AssertionError("not called")

    with pytest.raises(error, match=message):
        gk.bind(fn, stream, x=x, y=y, scalars=scalars)


def test_scalars_in_a_struct_of_a_known_type(runtime, stream):
    seen = gk.zeros(3, np.int32)

    def twin(launch, sizes, seen):
        seen.view(3)[:] = sizes["rows"], sizes["columns"], sizes["more"][1]

    code = """
    struct Sizes { long long rows; int columns; int more[3]; };
    extern "C" __global__ void note_sizes(Sizes sizes, int* seen) {
        if (threadIdx.x == 0) {
            seen[0] = sizes.rows;
            seen[1] = sizes.columns;
            seen[2] = sizes.more[1];
        }
    }
    """
    sizes = np.dtype([("rows", "<i8"), ("columns", "<i4"), ("more", "<i4", 3)])
    kernel = gk.Kernel(code, "note_sizes", twin=twin, types={"Sizes": sizes})

    def fn(rows, columns, more, seen):
        value = np.array((rows, columns, (0, more, 0)), sizes)[()]
        kernel(1, 32, (value, seen), stream=stream)

    scalars = {"rows": (1, 2), "columns": (3, 4), "more": (5, 6)}
    bound = gk.bind(fn, stream, seen=seen, scalars=scalars)
    assert [(slot.buffer, slot.offset, slot.types) for slot in bound.slots] == [
        ("seen", 24, ()),
        ("rows", 0, ("int64",)),
        ("columns", 8, ("int32",)),
        ("more", 16, ("int32",)),
    ]
    launched(bound, rows=-1, columns=-2, more=-3)
    assert seen.get().tolist() == [-1, -2, -3]


def test_a_scalar_that_is_no_kernels_cannot_be_rebound(runtime, stream):
    x = gk.zeros(64)

    def fn(at):
        gk.memset_async(at, 0, stream, nbytes=4)

    with pytest.raises(gk.RebindError, match=r"memset.*follows at, and holds no number"):
        gk.bind(fn, stream, scalars={"at": (x.ptr, x.ptr + 4)})


# --- functions that cannot be bound --------------------------------------------------------------


def test_another_number_of_launches_each_time(x, y, stream):
    calls = []

    def fn(x, y, stream):
        calls.append(1)
        for _ in calls:
            add(x, y, stream)

    with pytest.raises(
        gk.RebindError, match=r"captured as 1 node, and fn is not deterministic.*again, as 2"
    ):
        gk.bind(fn, stream, x=x, y=y)


def test_another_grid_each_time(x, stream):
    grids = iter(range(1, 100))

    def fn(x, stream):
        BLOCKS(next(grids), 32, (x,), stream=stream)

    with pytest.raises(gk.RebindError, match=r"fn is not deterministic.*grid") as caught:
        gk.bind(fn, stream, x=gk.zeros(N, np.int32))
    assert (caught.value.node, caught.value.kernel) == ((0,), "blocks")


def test_another_launch_on_other_buffers(x, y, stream):
    first = x.ptr

    def fn(x, y, stream):
        kernel = ADD_SCALAR if x.ptr == first else AXPY
        kernel(1, 32, (x, y, 1.0, N), stream=stream)

    with pytest.raises(
        gk.RebindError, match=r"node 0 \(kernel add_scalar\): captured on other buffers.*axpy"
    ):
        gk.bind(fn, stream, x=x, y=y)


def test_another_order_on_other_buffers(x, y, stream):
    first, side = x.ptr, gk.Stream()

    def fn(x, y, stream):
        on = stream if x.ptr == first else side
        forked = stream.record()
        side.wait_event(forked)
        gk.memset_async(y[:1], 0, stream)
        gk.memset_async(y[1:2], 0, side)
        gk.memcpy_async(y[2:3], x[2:3], on)
        stream.wait_event(side.record())

    with pytest.raises(gk.RebindError, match=r"node 2 \(memcpy\): .*waits for other nodes"):
        gk.bind(fn, stream, x=x, y=y)
    side.close()


def test_a_reference_of_its_own_to_a_first_buffer(x, y, stream):
    def fn(x, y, stream):
        add(x, y, stream)
        kept = x if x.ptr == first.ptr else first
        ADD_SCALAR(1, 32, (kept, y, 1.0, N), stream=stream)

    first = x
    with pytest.raises(gk.RebindError, match=r"node 1 .*parameter x.*keeps a reference") as caught:
        gk.bind(fn, stream, x=x, y=y)
    assert (caught.value.node, caught.value.kernel, caught.value.parameter) == (
        (1,),
        "add_scalar",
        "x",
    )


def test_another_part_of_an_allocation_is_no_reference_to_a_buffer(runtime, stream):
    rows = gk.asarray(np.arange(4 * N, dtype=np.float32).reshape(4, N))
    weights, y = rows[:, N // 2 :], gk.zeros(N)

    def fn(x, y):
        ADD_SCALAR(1, 32, (x, y, 0.0, N // 2), stream=stream)
        AXPY(1, 32, (weights[1], y, 1.0, N // 2), stream=stream)

    bound = gk.bind(fn, stream, x=rows[:, : N // 2], y=y)
    other = gk.asarray(np.full((4, N), 100, np.float32))
    launched(bound, x=other[:, : N // 2])
    assert y.get().tolist()[: N // 2] == [100 + N + N // 2 + i for i in range(N // 2)]


def test_a_buffer_that_is_never_used(x, y, stream):
    def fn(x, y, unused, stream):
        add(x, y, stream)

    with pytest.raises(gk.RebindError, match="unused: never used"):
        gk.bind(fn, stream, x=x, y=y, unused=gk.zeros(N))


def test_a_function_that_uses_other_buffers_than_it_is_given(x, y, stream):
    mine = gk.zeros(N)

    def fn(x, y, stream):
        add(mine, y, stream)

    with pytest.raises(gk.RebindError, match=r"x: never used.*keeps a reference to another"):
        gk.bind(fn, stream, x=x, y=y)


def test_a_number_made_of_an_address(runtime, stream):
    def fn(x):
        NOTE(1, 32, (x, x.ptr >> 9 & 0x7FFFFFFF, 0), stream=stream)

    with pytest.raises(
        gk.RebindError, match=r"node 0 \(kernel note\): parameter first.*as none of x moved"
    ) as caught:
        gk.bind(fn, stream, x=gk.zeros(3, np.int32))
    assert caught.value.parameter == "first"


def test_a_distance_between_two_buffers(in_struct, x, y, stream):
    def fn(x, y, stream):
        between = (y.ptr - x.ptr) % 2**64
        in_struct(struct.pack("<i4xQQi4x", 0, x.ptr, between, 0), stream=stream)

    with pytest.raises(gk.RebindError, match=r"byte 16 of its block.*none of x, y moved"):
        gk.bind(fn, stream, x=x, y=y)


def test_buffers_that_swap_places_each_time(x, y, stream):
    """As a pipeline does that writes to one of two buffers and reads from the other, in turn."""
    mine, calls = gk.zeros(N), []

    def fn(x, y, stream):
        calls.append(1)
        add(*((x, mine) if len(calls) % 2 else (mine, x)), stream)
        add(x, y, stream)

    with pytest.raises(gk.RebindError, match="points into x on one capture and elsewhere"):
        gk.bind(fn, stream, x=x, y=y)


# --- bytes that nobody sets ----------------------------------------------------------------------


def test_padding_that_differs_for_other_objects_follows_nothing(in_struct, x, y, stream):
    """As C++ leaves on its stack what it knows of the objects: the same for the same ones."""

    def fn(x, y, stream):
        left_over = id(x) & 0xFFFFFFFF
        in_struct(struct.pack("<iIQQiI", 7, left_over, x.ptr, y.ptr, N, left_over), stream=stream)

    bound = gk.bind(fn, stream, x=x, y=y)
    assert [(slot.buffer, slot.offset) for slot in bound.slots] == [("x", 8), ("y", 16)]
    launched(bound, x=numbers(5))
    assert np.array_equal(y.get(), 2 * np.arange(5, 5 + N))


def test_a_scalar_beside_such_padding(in_struct, x, y, stream):
    def fn(x, y, n, stream):
        left_over = id(x) & 0xFFFFFFFF
        in_struct(struct.pack("<iIQQiI", 7, 0, x.ptr, y.ptr, n, left_over), stream=stream)

    bound = gk.bind(fn, stream, scalars={"n": (N, N - 3)}, x=x, y=y)
    assert [(slot.buffer, slot.offset) for slot in bound.slots][-1] == ("n", 24)
    launched(bound, x=numbers(5), n=2)
    assert y.get().tolist() == [10, 12, *[0] * (N - 2)]


def test_the_upper_half_of_an_address_alone_is_left_over(in_struct, x, y, stream, monkeypatch):
    def far_away(buffers):
        """Places that are 4 GB apart; nothing runs there."""
        memory, places = scratch_places(buffers)
        for far, place in enumerate(places, 1):
            place["x"] += far << 32
        return memory, places

    monkeypatch.setattr("graphkit.recapture.scratch_places", far_away)

    def fn(x, y, stream):
        upper = x.ptr >> 32
        in_struct(struct.pack("<iIQQiI", 7, upper, x.ptr, y.ptr, N, upper), stream=stream)

    bound = gk.bind(fn, stream, x=x, y=y)
    assert [(slot.buffer, slot.offset) for slot in bound.slots] == [("x", 8), ("y", 16)]


def test_addresses_of_objects_are_left_over_on_both_sides_of_4_gb(with_spare, x, y, stream):
    """As where the heap of a large process crosses 4 GB: the upper half differs now and then."""
    heap, stack = id(x) >> 32, max(upper_halves())
    assert heap != stack
    calls, first = [], x.ptr

    def fn(x, y, stream):
        calls.append(1)
        left_over = (heap if x.ptr == first else stack) << 32 | 16 * len(calls)
        with_spare(struct.pack("<QQQi4x", x.ptr, y.ptr, left_over, N), stream=stream)

    bound = gk.bind(fn, stream, x=x, y=y)
    assert [(slot.buffer, slot.offset) for slot in bound.slots] == [("x", 0), ("y", 8)]
    launched(bound, x=numbers(5))
    assert np.array_equal(y.get(), 2 * np.arange(5, 5 + N))


def test_a_number_behind_unset_bytes_is_no_half_of_an_address(with_spare, x, y, stream):
    calls, first = [], x.ptr

    def fn(x, y, stream):
        calls.append(1)
        beside = (5 if x.ptr == first else 9) << 32 | len(calls)
        with_spare(struct.pack("<QQQi4x", x.ptr, y.ptr, beside, N), stream=stream)

    with pytest.raises(gk.RebindError, match=r"byte 16 of its block.*none of x, y moved"):
        gk.bind(fn, stream, x=x, y=y)


def test_a_scalar_behind_unset_bytes_is_no_half_of_an_address(with_spare, x, y, stream):
    heap, stack = id(x) >> 32, max(upper_halves())
    calls = []

    def fn(x, y, n, stream):
        calls.append(1)
        with_spare(struct.pack("<QQQi4x", x.ptr, y.ptr, n << 32 | len(calls), N), stream=stream)

    bound = gk.bind(fn, stream, scalars={"n": (heap, stack)}, x=x, y=y)
    assert [(slot.buffer, slot.offset) for slot in bound.slots][-1] == ("n", 20)


def test_a_known_number_is_no_address_of_an_object(x, stream):
    source = 'extern "C" __global__ void wide(float* x, unsigned long long seed) {}'
    wide = gk.Kernel(source, "wide", twin=lambda launch, x, seed: None)
    heap, stack = id(x) >> 32, max(upper_halves())
    calls, first = [], x.ptr

    def fn(x, stream):
        calls.append(1)
        upper = heap if x.ptr == first else stack
        wide(1, 1, (x, upper << 32 | len(calls)), stream=stream)

    with pytest.raises(gk.RebindError, match=r"parameter seed.*none of x moved"):
        gk.bind(fn, stream, x=x)


def test_what_is_left_over_of_a_buffer_does_no_harm(in_struct, x, y, stream):
    first = id(x)

    def fn(x, y, stream):
        left_over = x.ptr if id(x) == first else id(x)
        words = x.ptr, y.ptr, N, left_over
        in_struct(struct.pack("<i4xQQi4x", 7, *words[:3]), stream=stream)
        NOTE(1, 32, (notes, left_over & 0x7FFFFFFF, 0), stream=stream)

    notes = gk.zeros(3, np.int32)
    bound = gk.bind(fn, stream, x=x, y=y)
    launched(bound, x=numbers(5))
    assert np.array_equal(y.get(), 2 * np.arange(5, 5 + N))


def test_what_depends_on_an_address_is_not_taken_for_unset(in_struct, x, y, stream):
    calls = []

    def fn(x, y, stream):
        calls.append(1)
        hashed = x.ptr * 2654435761 >> 9 & 0xFFFFFFFF
        in_struct(struct.pack("<iIQQiI", 7, hashed, x.ptr, y.ptr, N, id(x) & 0xFF), stream=stream)

    with pytest.raises(gk.RebindError, match=r"byte 0 of its block.*none of x, y moved"):
        gk.bind(fn, stream, x=x, y=y)
    assert len(calls) > 10  # each capture was made again, several times
    gc.collect()
    assert set(gk.live_handles()) == {"device memory", "stream"}


def test_a_copy_of_more_dimensions(runtime, stream):
    x, y = gk.zeros((4, N)), gk.zeros((4, N))

    def fn(x, y):
        gk.memcpy_async(y[:, 1:3], x[:, :2], stream)

    with pytest.raises(gk.RebindError, match=r"\(memcpy\): parameter .*1-D copies only"):
        gk.bind(fn, stream, x=x, y=y)


def test_a_table_of_addresses_in_host_memory(x, y, stream):
    table, pinned = gk.zeros(4, np.uint64), gk.empty_pinned(4, np.uint64)

    def fn(x, y, stream):
        pinned[:] = 1, 2, x.ptr, 3
        gk.memcpy_async(table, pinned, stream)
        add(x, y, stream)

    with pytest.raises(gk.RebindError, match=r"holds the address of x .16 bytes in.: a table"):
        gk.bind(fn, stream, x=x, y=y)


def test_what_the_function_raises_comes_out_and_the_stream_works(x, y, stream):
    calls = []

    def fn(x, y, stream):
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("mine")
        add(x, y, stream)

    with pytest.raises(KeyError, match="mine") as caught:
        gk.bind(fn, stream, x=x, y=y)
    assert "captured on other buffers of the same shapes" in caught.value.__notes__[-1]
    bound = gk.bind(add, stream, x=x, y=y)
    launched(bound)
    assert np.array_equal(y.get(), x.get() + 1)


def test_a_capture_that_dies_is_a_capture_error(x, y, stream):
    def fn(x, y, stream):
        add(x, y, stream)
        stream.synchronize()

    with pytest.raises(gk.CudaError):
        gk.bind(fn, stream, x=x, y=y)
    assert gk.live_handles().keys() == {"device memory", "stream"}


# --- buffers that cannot be bound ----------------------------------------------------------------


class TestBadBuffers:
    """Refused when binding, and when rebinding; then the exec launches what it held."""

    @contextmanager
    def refused(self, bound, error, message, y):
        with pytest.raises(error, match=message):
            yield
        launched(bound)
        assert np.array_equal(y.get(), np.arange(1, N + 1))

    @pytest.fixture
    def bound(self, x, y, stream):
        bound = gk.bind(add, stream, x=x, y=y)
        launched(bound)
        return bound

    def test_a_freed_array(self, bound, y):
        gone = gk.zeros(N)
        gone.free()
        with self.refused(bound, ValueError, "x: expected live device memory, came a freed", y):
            bound.rebind(x=gone)
        with pytest.raises(ValueError, match="x: expected live device memory"):
            gk.bind(add, bound.stream, x=gone, y=y)

    def test_an_address_that_nobody_knows(self, bound, y):
        gone = gk.zeros(N)
        late = Streamed(gone, None)
        interface = gone.__cuda_array_interface__
        interface["data"] = (np.zeros(1).ctypes.data, False)
        late = type("Late", (), {"__cuda_array_interface__": interface})()
        with self.refused(bound, ValueError, "x: expected live device memory.*not know", y):
            bound.rebind(x=late)

    def test_host_memory(self, bound, y):
        with self.refused(bound, TypeError, "x: expected an array in device memory, came nda", y):
            bound.rebind(x=np.zeros(N, np.float32))
        with self.refused(bound, TypeError, "x: expected an array in device memory, came nda", y):
            bound.rebind(x=gk.empty_pinned(N))
        with pytest.raises(TypeError, match="y: expected an array in device memory"):
            gk.bind(add, bound.stream, x=gk.zeros(N), y=np.zeros(N, np.float32))

    def test_pinned_memory_in_the_disguise_of_an_array(self, bound, y):
        pinned = gk.empty_pinned(N)
        interface = gk.zeros(N).__cuda_array_interface__
        interface["data"] = (pinned.ctypes.data, False)
        disguised = type("Disguised", (), {"__cuda_array_interface__": interface})()
        with self.refused(bound, TypeError, "x: expected an array in device memory.*pinned", y):
            bound.rebind(x=disguised)

    @pytest.mark.parametrize("other", [None, 5, "x", object()])
    def test_what_is_no_array(self, bound, y, other):
        with self.refused(bound, TypeError, "x: expected an array, came", y):
            bound.rebind(x=other)

    def test_another_device(self, bound, y, runtime, monkeypatch):
        elsewhere = Streamed(gk.zeros(N), None)
        asked = runtime.pointer_get_attributes

        def answer(address):
            found = asked(address)
            if address != elsewhere.array.ptr:
                return found
            return PointerAttributes(found.type, found.device + 1, address, 0)

        monkeypatch.setattr(runtime, "pointer_get_attributes", answer)
        with self.refused(bound, ValueError, "x: expected an array of device 0, came one of 1", y):
            bound.rebind(x=elsewhere)

    def test_another_shape(self, bound, y):
        with self.refused(bound, ValueError, r"x: expected shape \(8,\), came \(9,\)", y):
            bound.rebind(x=gk.zeros(N + 1))

    def test_another_dtype(self, bound, y):
        with self.refused(bound, TypeError, "x: expected an array of float32, came int32", y):
            bound.rebind(x=gk.zeros(N, np.int32))

    def test_other_strides(self, bound, y):
        with self.refused(bound, ValueError, r"x: expected strides of \(4,\) bytes, came \(8,", y):
            bound.rebind(x=gk.zeros(2 * N)[::2])

    def test_a_lesser_alignment(self, bound, y):
        large = gk.zeros(2 * N)
        with self.refused(bound, ValueError, "x: expected an address that is a multiple of 256", y):
            bound.rebind(x=large[4 : 4 + N])

    def test_one_bad_buffer_keeps_all_the_others_out(self, bound, y):
        with self.refused(bound, ValueError, "y: expected shape", y):
            bound.rebind(x=numbers(10), y=gk.zeros(N + 1))
        with self.refused(bound, TypeError, "z: expected one of x, y, came an unknown name", y):
            bound(x=numbers(10), z=y)

    def test_buffers_that_overlap(self, bound, x, y):
        with self.refused(bound, ValueError, "y: expected a buffer that does not overlap x", y):
            bound.rebind(x=y)
        large = gk.zeros(1000)
        with self.refused(bound, ValueError, "y: expected a buffer that does not overlap x", y):
            bound.rebind(x=large[:N], y=large[:N])
        with pytest.raises(ValueError, match="y: expected a buffer that does not overlap x"):
            gk.bind(add, bound.stream, x=large[:N], y=large[N - 1 : 2 * N - 1])
        launched(bound, x=y, y=x)  # the two change places: nothing overlaps
        assert np.array_equal(x.get(), np.arange(2, N + 2))

    def test_while_the_stream_captures(self, bound, y):
        other = numbers(10)
        with (
            self.refused(bound, ValueError, "stream: expected one that does not capture", y),
            gk.capture(bound.stream),
        ):
            bound.rebind(x=other)
        with (
            self.refused(bound, ValueError, "stream: expected one that does not capture", y),
            gk.capture(bound.stream),
        ):
            bound.launch()
        with gk.capture(bound.stream) as graph:
            with pytest.raises(ValueError, match="does not capture"):
                bound(x=other)
            with pytest.raises(ValueError, match="stream: expected one that does not capture"):
                gk.bind(add, bound.stream, x=other, y=y)
        assert graph.nodes == []

    def test_rebinding_while_another_stream_captures(self, bound, y):
        other, x, target = gk.Stream(), numbers(10), gk.zeros(N)
        with gk.capture(other) as graph:
            bound(x=x, y=target)
        assert graph.nodes == []
        bound.stream.synchronize()
        assert np.array_equal(target.get(), np.arange(11, 11 + N))
        other.close()

    def test_a_closed_bound_graph(self, bound):
        bound.close()
        bound.close()
        for call in (bound, bound.launch, lambda: bound.rebind(x=numbers())):
            with pytest.raises(ValueError, match="exec: expected a live one, came a closed one"):
                call()
        assert repr(bound).startswith("<BoundGraph of add (closed)")


def test_a_buffer_may_be_aligned_better_than_the_first_one(runtime, stream):
    large, y = gk.zeros(3 * N), gk.zeros(N)
    x = large[2 : 2 + N]  # 8 bytes past what cudaMalloc gave
    bound = gk.bind(add, stream, x=x, y=y)
    launched(bound, x=numbers(10))
    assert np.array_equal(y.get(), np.arange(11, 11 + N))
    launched(bound, x=large[4 : 4 + N])
    with pytest.raises(ValueError, match="a multiple of 8,"):
        bound.rebind(x=large[1 : 1 + N])


def test_a_choice_by_alignment_is_seen(runtime, stream):
    """The second scratch buffers are aligned no better than the first ones must be."""
    x, y = gk.zeros(N), gk.zeros(N)

    def fn(x, y):
        ADD_SCALAR(1, 64 if x.ptr % 512 == 0 else 32, (x, y, 1.0, N), stream=stream)

    with pytest.raises(gk.RebindError, match="block"):
        gk.bind(fn, stream, x=x, y=y)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 600)), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_scratch_buffers_move_by_distances_of_their_own(runtime, shapes):
    memory = gk.empty(1 << 15, np.uint8)
    buffers, at = {}, 0
    for number, (rows, gap) in enumerate(shapes):
        array = memory[at : at + 3 * rows : 3]
        buffers[f"b{number}"] = Buffer(f"b{number}", array, runtime)
        at += 3 * rows + gap
    taken, places = scratch_places(buffers)
    for there in places:
        distances = {there[name] - buffer.address for name, buffer in buffers.items()}
        assert len(distances) == len(buffers)
        end = taken.ptr
        for name, buffer in buffers.items():
            assert alignment_of(there[name]) == buffer.alignment
            assert there[name] + buffer.low >= end
            end = there[name] + buffer.high
        assert end <= taken.ptr + taken.nbytes
    for name, buffer in buffers.items():
        assert (places[0][name] - buffer.address) % 512 == 0
        assert places[1][name] != places[0][name]


@pytest.mark.parametrize("library", ["torch", "cupy", "numba"])
def test_cuda_is_not_asked_again_about_arrays_that_name_their_device(
    x, y, stream, runtime, monkeypatch, library
):
    """Arrays of CuPy and PyTorch, as far as they are told by their type."""

    class Theirs:
        __module__ = f"{library}.arrays"

        def __init__(self, array):
            self.array = array

        @property
        def __cuda_array_interface__(self):
            return self.array.__cuda_array_interface__

    asked = []
    ask = runtime.pointer_get_attributes
    monkeypatch.setattr(
        runtime, "pointer_get_attributes", lambda address: [asked.append(address), ask(address)][1]
    )
    bound = gk.bind(add, stream, x=x, y=y)
    asked.clear()
    for start in (10, 20, 30):
        launched(bound, x=Theirs(numbers(start)))
        assert np.array_equal(y.get(), np.arange(start + 1, start + 1 + N))
    assert len(asked) == (3 if library == "numba" else 1)
    with pytest.raises(ValueError, match="x: expected shape"):
        bound.rebind(x=Theirs(gk.zeros(N + 1)))
    with pytest.raises(ValueError, match="x: expected an address that is a multiple of 256"):
        bound.rebind(x=Theirs(gk.zeros(2 * N)[4 : 4 + N]))


def test_an_empty_buffer_is_refused(y, stream):
    with pytest.raises(ValueError, match=r"x: expected at least one element, came \(0,\)"):
        gk.bind(add, stream, x=gk.zeros(0), y=y)


def test_arguments_that_the_function_does_not_take(x, y, stream):
    with pytest.raises(TypeError, match="missing a required argument: 'y'"):
        gk.bind(add, stream, x=x)
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        gk.bind(add, stream, x=x, y=y, z=y)
    with pytest.raises(TypeError, match="expected at least one buffer or scalar, came none"):
        gk.bind(lambda: None, stream)
    with pytest.raises(TypeError, match="stream: expected another name"):
        gk.check_baked(add, stream, x=x, y=y, scalars={"stream": (1, 2)})
    with pytest.raises(TypeError, match="fn: expected a function"):
        gk.bind(5, stream, x=x)
    with pytest.raises(TypeError, match="stream: expected a graphkit"):
        gk.bind(lambda x: None, None, x=x)


# --- when CUDA refuses ---------------------------------------------------------------------------


@pytest.fixture
def failing(runtime, monkeypatch):
    """Let the n-th setting of a kernel node from now on fail, once or for good."""
    plan = {"at": 0, "for": 1}
    make = runtime.kernel_node_setter

    def kernel_node_setter(exec_, node, params):
        commit = make(exec_, node, params)

        def guarded():
            plan["at"] -= 1
            if plan["at"] in range(0, -plan["for"], -1):
                raise gk.CudaError("cuGraphExecKernelNodeSetParams", 1)
            commit()

        return guarded

    monkeypatch.setattr(runtime, "kernel_node_setter", kernel_node_setter)
    return plan


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("names", ["x", "xy"])
def test_a_change_that_fails_half_way_is_undone(x, y, stream, failing, at, names):
    def fn(x, y, stream):
        for _ in range(3):
            AXPY(1, 32, (x, y, 1.0, N), stream=stream)

    bound = gk.bind(fn, stream, x=x, y=y)
    others = {"x": numbers(10), "y": gk.zeros(N)}
    failing["at"] = at
    with pytest.raises(gk.CudaError, match="cuGraphExecKernelNodeSetParams"):
        bound.rebind(**{name: others[name] for name in names})
    launched(bound)
    assert np.array_equal(y.get(), 3 * x.get())
    assert not others["y"].get().any()
    launched(bound, **others)
    assert np.array_equal(others["y"].get(), 3 * np.arange(10, 10 + N))


@pytest.mark.parametrize("names", ["x", "xy"])
def test_what_cannot_be_undone_closes_the_bound_graph(x, y, stream, failing, names):
    bound = gk.bind(add, stream, x=x, y=y)
    others = {"x": numbers(10), "y": gk.zeros(N)}
    failing.update({"at": 1, "for": 5})
    with pytest.raises(gk.RebindError, match="and so did undoing it"):
        bound.rebind(**{name: others[name] for name in names})
    with pytest.raises(ValueError, match="came a closed one"):
        bound.launch()


# --- what is kept, and what is let go ------------------------------------------------------------


def count():
    gc.collect()
    return gk.live_handles().get("device memory", 0)


def test_what_is_bound_is_kept_and_what_was_is_let_go(stream, runtime):
    bound = gk.bind(add, stream, x=numbers(), y=gk.zeros(N))
    assert count() == 2
    for start in range(300):
        bound(x=numbers(start))
    stream.synchronize()
    assert count() < 2 + 130  # held in batches
    target = gk.zeros(N)
    launched(bound, y=target)
    assert np.array_equal(target.get(), np.arange(300, 300 + N))
    bound.close()
    stream.synchronize()
    assert count() == 1


@pytest.mark.parametrize(("held", "kept"), [(0, 3), (2, 5)])
def test_large_buffers_are_let_go_soon(stream, runtime, monkeypatch, held, kept):
    """A replaced buffer waits for its event; so many more are held before there is one."""
    monkeypatch.setattr("graphkit.bound._REPLACED_BYTES", held << 20)
    x = gk.empty(1 << 18)

    def fn(x, y, stream):
        gk.memcpy_async(y, x[:1], stream)

    bound = gk.bind(fn, stream, x=x, y=gk.zeros(1))
    del x
    for _ in range(10):
        launched(bound, x=gk.empty(1 << 18))
        assert count() <= kept


def test_back_and_forth_between_two_buffers_needs_no_event(stream, runtime, monkeypatch):
    recorded = []
    monkeypatch.setattr(type(runtime), "event_record", lambda *_: recorded.append(1))
    ours = [numbers(), numbers(5)]
    bound = gk.bind(add, stream, x=ours[0], y=gk.zeros(N))
    for turn in range(1000):
        bound.rebind(x=ours[turn % 2])
    assert not recorded


def test_launches_in_flight_keep_what_they_use(stream, runtime):
    target = gk.zeros(N)
    bound = gk.bind(add, stream, x=numbers(), y=target)
    go_on = threading.Event()
    kept = stream.launch_host_func(lambda: go_on.wait(1))
    bound(x=numbers(10))
    del bound
    held = count()
    go_on.set()
    assert held >= 2
    stream.synchronize()
    del kept
    assert np.array_equal(target.get(), np.arange(11, 11 + N))
    assert count() == 1


def test_nothing_is_left_of_a_binding_that_failed(x, y, stream):
    before = gk.live_handles()

    def fn(x, y, stream):
        NOTE(1, 32, (x, x.ptr & 0x7FFFFFFF, 0), stream=stream)

    with pytest.raises(gk.RebindError):
        gk.bind(fn, stream, x=gk.zeros(3, np.int32), y=y)
    gc.collect()
    assert gk.live_handles() == before


def test_a_bound_graph_as_a_context_manager(x, y, stream):
    with gk.bind(add, stream, x=x, y=y) as bound:
        launched(bound)
    assert np.array_equal(y.get(), x.get() + 1)
    with pytest.raises(ValueError, match="came a closed one"):
        bound.launch()


def test_a_rebind_error_survives_a_pickle():
    import pickle

    error = pickle.loads(pickle.dumps(gk.RebindError("what", (1, 2), "kernel", "x")))
    assert (str(error), error.node, error.kernel, error.parameter) == (
        "what",
        (1, 2),
        "kernel",
        "x",
    )


def test_many_threads_call_one_bound_graph(runtime, stream):
    """Each call's buffers belong together: what one thread binds, no other launches."""
    xs = [gk.asarray(np.full(N, value, np.float32)) for value in range(4)]
    ys = [gk.zeros(N) for _ in range(4)]
    bound = gk.bind(add, stream, x=numbers(), y=gk.zeros(N))
    errors = []

    def call(number):
        try:
            for _ in range(50):
                bound(x=xs[number], y=ys[number])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stream.synchronize()
    assert errors == []
    for number, target in enumerate(ys):
        assert np.array_equal(target.get(), np.full(N, number + 1))


# --- at random -----------------------------------------------------------------------------------

_MIX = r"""
extern "C" __global__ void mix(const unsigned* a, const unsigned* b, unsigned* out, unsigned k) {
    int i = threadIdx.x;
    out[i] = a[i] * 3 + b[i] * 5 + k;
}
"""


def _mix(launch, a, b, out, k):
    n = launch.block[0]
    out.view(n)[:] = a.view(n) * np.uint32(3) + b.view(n) * np.uint32(5) + k


MIX = gk.Kernel(_MIX, "mix", twin=_mix)
NAMES = ("a", "b", "out", "rest")
EXAMPLES, STEPS = 500, 20


class Machine:
    """A bound graph, the buffers it may be given, and what they should hold."""

    def __init__(self):
        self.stream = gk.Stream()
        # Two buffers of each name in one allocation, and two alone.
        self.pools = {}
        for seed, name in enumerate(NAMES):
            values = np.random.default_rng(seed).integers(0, 2**32, (4, 64), np.uint32)
            pair = gk.asarray(values[:2])
            self.pools[name] = [pair[0], pair[1], gk.asarray(values[2]), gk.asarray(values[3])]
        self.host = {name: [array.get() for array in arrays] for name, arrays in self.pools.items()}
        self.held = dict.fromkeys(NAMES, 0)
        self.k = 1
        self.bound = gk.bind(
            self.fn,
            self.stream,
            scalars={"k": (1, 2**31 + 7)},
            **{name: arrays[0] for name, arrays in self.pools.items()},
        )

    def fn(self, a, b, out, rest, k, stream):
        MIX(1, 32, (a, b, out, k), stream=stream)
        MIX(1, 16, (out[8:], a[4:], rest[16:], k), stream=stream)
        gk.memcpy_async(out[32:40], b[1:9], stream)
        gk.memset_async(rest[:8], 0x07070707, stream)
        MIX(1, 8, (rest, out[32:], b[40:], 9), stream=stream)

    def expect(self):
        a, b, out, rest = (self.host[name][self.held[name]] for name in NAMES)
        k = np.uint32(self.k)
        three, five = np.uint32(3), np.uint32(5)
        out[:32] = a[:32] * three + b[:32] * five + k
        rest[16:32] = out[8:24] * three + a[4:20] * five + k
        out[32:40] = b[1:9]
        rest[:8] = 0x07070707
        b[40:48] = rest[:8] * three + out[32:40] * five + np.uint32(9)

    def step(self, subset, choices, k, call):
        chosen = {
            name: choices >> 2 * place & 3
            for place, name in enumerate(NAMES)
            if subset >> place & 1
        }
        self.held.update(chosen)
        arguments = {name: self.pools[name][number] for name, number in chosen.items()}
        if subset >> 4 & 1:
            self.k = arguments["k"] = k * 0x01010101
        if call:
            self.bound(**arguments)
        else:
            self.bound.rebind(**arguments)
            self.bound.launch()
        self.expect()

    def check(self):
        self.stream.synchronize()
        for name, arrays in self.pools.items():
            for array, expected in zip(arrays, self.host[name], strict=True):
                assert np.array_equal(array.get(), expected), name


@pytest.mark.untraced
def test_random_rebinds_of_random_subsets(runtime):
    machine = Machine()
    machine.check()
    machine.bound.launch()
    machine.expect()
    machine.check()
    handles, memory = gk.live_handles(), runtime.mem_get_info()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.binary(min_size=4 * STEPS, max_size=4 * STEPS))
    def steps(raw):
        for at in range(0, len(raw), 4):
            machine.step(raw[at] & 31, raw[at + 1], raw[at + 2], raw[at + 3] & 1)
        machine.check()

    steps()
    # Events of batches that the last wait has finished.
    assert gk.live_handles() == handles
    if runtime.name == "sim":
        assert runtime.mem_get_info() == memory
    machine.bound.close()
    machine.stream.close()


def test_increments_count_every_launch(runtime, stream):
    counters = [gk.zeros(1, np.int32) for _ in range(3)]

    def fn(counter, stream):
        INCREMENT(1, 1, (counter, 1), stream=stream)

    bound = gk.bind(fn, stream, counter=counters[0])
    for turn in range(60):
        bound(counter=counters[turn % 3])
    stream.synchronize()
    assert [counter.get()[0] for counter in counters] == [20, 20, 20]
