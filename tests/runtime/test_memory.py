"""Memory of the seam: allocations, what addresses are, copies and fills."""

import ctypes
import math

import numpy as np
import pytest

from graphkit.runtime.protocol import MemcpyKind, MemcpyNodeParams, MemoryType

N = 64


def host_array(value=0.0):
    return np.full(N, value, np.float32)


def test_a_device_address_is_known(runtime, made):
    x = made.device()
    found = runtime.pointer_get_attributes(x)
    assert found == (MemoryType.DEVICE, 0, x, 0)


def test_an_address_inside_of_an_allocation_is_known(runtime, made):
    x = made.device()
    assert runtime.pointer_get_attributes(x + 8)[:3] == (MemoryType.DEVICE, 0, x + 8)


def test_a_pinned_address_is_known(runtime, made):
    x, _ = made.pinned()
    assert runtime.pointer_get_attributes(x) == (MemoryType.HOST, 0, x, x)


def test_a_pageable_address_is_unregistered(runtime, made):
    array = host_array()
    found = runtime.pointer_get_attributes(array.ctypes.data)
    assert (found.type, found.device, found.device_pointer) == (MemoryType.UNREGISTERED, -2, 0)


def test_a_freed_address_is_unregistered(runtime, made):
    x = made.device(nbytes=64 << 20)
    made.destroy("device", x)
    assert runtime.pointer_get_attributes(x).type is MemoryType.UNREGISTERED


def test_allocations_are_aligned(runtime, made):
    assert [made.device(nbytes=n) % 256 for n in (1, 3, 100, 1000)] == [0, 0, 0, 0]


def test_memory_is_counted(runtime, made):
    before, total = runtime.mem_get_info()
    x = made.device(nbytes=64 << 20)
    during, _ = runtime.mem_get_info()
    made.destroy("device", x)
    after, _ = runtime.mem_get_info()
    assert before - during == 64 << 20
    assert (after, before <= total) == (before, True)


def test_executable_graphs_take_device_memory(runtime, made):
    graph, x = made.graph(), made.device()
    for _ in range(1_000):
        runtime.graph_add_kernel_node(graph, [], made.fill(x, 1.0))
    stream = made.stream()
    before, _ = runtime.mem_get_info()
    # Many at once, since a device takes and keeps memory for them by the block.
    for _ in range(16):
        runtime.graph_upload(made.exec(graph), stream)
    runtime.stream_synchronize(stream)
    assert runtime.mem_get_info()[0] < before


def test_too_much_memory_is_refused(runtime, made):
    assert made.code(runtime.malloc, 1 << 50) == 2


def test_allocating_nothing_gives_no_address(runtime, made):
    assert (runtime.malloc(0), runtime.host_alloc(0)) == (0, 0)
    runtime.free(0)
    runtime.free_host(0)


def test_freeing_what_is_no_allocation_is_refused(runtime, made):
    x, (pinned, _) = made.device(), made.pinned()
    array = host_array()
    assert made.code(runtime.free, array.ctypes.data) == 1
    assert made.code(runtime.free, x + 64) == 1
    assert made.code(runtime.free_host, array.ctypes.data) == 1
    assert made.code(runtime.free_host, x) == 1
    assert made.code(runtime.free, pinned) in (0, 1)


def test_a_round_trip(runtime, made):
    x = made.device(3.5)
    assert made.value(x) == 3.5


def test_a_copy_between_arrays_of_the_device(runtime, made):
    x, y = made.device(2.0), made.device(0.0)
    runtime.memcpy(y, x, 4 * N, MemcpyKind.DEVICE_TO_DEVICE)
    assert made.value(y) == 2


def test_the_kind_default_looks_at_the_addresses(runtime, made):
    x, out, array = made.device(), host_array(), host_array(4.0)
    runtime.memcpy(x, array.ctypes.data, 4 * N, MemcpyKind.DEFAULT)
    runtime.memcpy(out.ctypes.data, x, 4 * N, MemcpyKind.DEFAULT)
    assert set(out) == {4.0}


def test_a_copy_of_nothing_is_fine(runtime, made):
    x, stream = made.device(1.0), made.stream()
    runtime.memcpy(x, x, 0, MemcpyKind.DEFAULT)
    runtime.memcpy_async(x, x, 0, MemcpyKind.DEFAULT, stream)
    runtime.memset_async(x, 7, 0, stream)
    runtime.stream_synchronize(stream)
    assert made.value(x) == 1


@pytest.mark.parametrize(
    ("kind", "dst", "src"),
    [
        (MemcpyKind.HOST_TO_DEVICE, "pageable", "pageable"),
        (MemcpyKind.DEVICE_TO_HOST, "pageable", "pageable"),
        (MemcpyKind.DEVICE_TO_DEVICE, "device", "pageable"),
        (MemcpyKind.DEVICE_TO_DEVICE, "pageable", "device"),
    ],
)
def test_a_kind_that_does_not_fit_the_addresses_is_refused(runtime, made, kind, dst, src):
    first, second = host_array(), host_array()
    where = {
        "dst": {"device": made.device(), "pageable": first.ctypes.data},
        "src": {"device": made.device(), "pageable": second.ctypes.data},
    }
    assert made.code(runtime.memcpy, where["dst"][dst], where["src"][src], 4 * N, kind) == 1


@pytest.mark.parametrize("kind", [MemcpyKind.HOST_TO_DEVICE, MemcpyKind.DEVICE_TO_HOST])
def test_two_device_addresses_go_with_any_kind(runtime, made, kind):
    x, y = made.device(2.0), made.device(0.0)
    runtime.memcpy(y, x, 4 * N, kind)
    assert made.value(y) == 2


def test_a_copy_past_the_end_is_refused(runtime, made):
    size = 4 << 20
    x, y = made.device(nbytes=size), made.device(nbytes=2 * size)
    assert made.code(runtime.memcpy, x, y, 2 * size, MemcpyKind.DEVICE_TO_DEVICE) == 1
    assert made.code(runtime.memcpy, y, x, 2 * size, MemcpyKind.DEVICE_TO_DEVICE) == 1


def test_a_fill_past_the_end_is_refused(runtime, made):
    x, stream = made.device(nbytes=4 << 20), made.stream()
    assert made.code(runtime.memset_async, x, 0, 8 << 20, stream) == 1


def test_a_fill_of_pageable_memory_is_refused(runtime, made):
    array, stream = host_array(), made.stream()
    assert made.code(runtime.memset_async, array.ctypes.data, 0, 4 * N, stream) == 1


def test_a_fill_sets_bytes(runtime, made):
    x, stream = made.device(0.0), made.stream()
    runtime.memset_async(x, 0x3F, 4 * N, stream)
    runtime.stream_synchronize(stream)
    assert set(made.read(x, dtype=np.uint32)) == {0x3F3F3F3F}


def test_a_fill_takes_the_low_byte(runtime, made):
    x, stream = made.device(0.0), made.stream()
    runtime.memset_async(x, 0x1203, 4, stream)
    runtime.stream_synchronize(stream)
    assert made.read(x, 2, np.uint32) == [0x03030303, 0]


def test_copies_on_a_stream_run_in_order(runtime, made):
    x, stream = made.device(0.0), made.stream()
    source, view = made.pinned()
    target, out = made.pinned()
    view[:] = 7
    runtime.memcpy_async(x, source, 4 * N, MemcpyKind.HOST_TO_DEVICE, stream)
    made.launch(made.axpy(x, x), stream)
    runtime.memcpy_async(target, x, 4 * N, MemcpyKind.DEVICE_TO_HOST, stream)
    runtime.stream_synchronize(stream)
    assert set(out) == {14.0}


def test_a_pageable_source_may_change_after_the_call(runtime, made):
    # CUDA: pageable memory is staged before cudaMemcpyAsync returns.
    x, stream, array = made.device(0.0), made.stream(), host_array(5.0)
    runtime.memcpy_async(x, array.ctypes.data, 4 * N, MemcpyKind.HOST_TO_DEVICE, stream)
    array[:] = -1
    runtime.stream_synchronize(stream)
    assert made.value(x) == 5


def test_a_pitched_copy_leaves_the_gaps(runtime, made):
    x, y = made.device(1.0), made.device(0.0)
    stream = made.stream()
    # 2 slices of 3 rows of 2 floats; rows of y are 4 floats apart, slices 4 rows.
    params = MemcpyNodeParams(y, 16, 4, x, 8, 3, 8, 3, 2, MemcpyKind.DEFAULT)
    runtime.memcpy_3d_async(params, stream)
    runtime.stream_synchronize(stream)
    expected = np.zeros((2, 4, 4), np.float32)
    expected[:, :3, :2] = 1
    assert made.read(y, 32) == expected.ravel().tolist()


def test_stream_ordered_memory(runtime, made):
    stream = made.stream()
    x = runtime.malloc_async(4 * N, stream)
    assert runtime.pointer_get_attributes(x).type is MemoryType.DEVICE
    made.launch(made.fill(x, 6.0), stream)
    target, out = made.pinned()
    runtime.memcpy_async(target, x, 4 * N, MemcpyKind.DEVICE_TO_HOST, stream)
    runtime.free_async(x, stream)
    runtime.stream_synchronize(stream)
    assert set(out) == {6.0}


def test_freeing_waits_for_the_work_that_uses_it(runtime, made):
    x, stream = made.device(0.0), made.stream()
    target, out = made.pinned()
    made.launch(made.fill(x, 2.0), stream)
    runtime.memcpy_async(target, x, 4 * N, MemcpyKind.DEVICE_TO_HOST, stream)
    made.destroy("device", x)
    runtime.stream_synchronize(stream)
    assert set(out) == {2.0}


def test_kernels_reach_pinned_memory(runtime, made):
    address, view = made.pinned()
    stream = made.stream()
    made.launch(made.fill(address, 9.0), stream)
    runtime.stream_synchronize(stream)
    assert set(view) == {9.0}


def test_pinned_memory_is_the_hosts(runtime, made):
    address, view = made.pinned()
    view[:] = 3
    assert ctypes.c_float.from_address(address).value == 3
    assert not math.isnan(view.sum())
