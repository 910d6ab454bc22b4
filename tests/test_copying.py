"""Copies and fills in stream order, captured too."""

from __future__ import annotations

import gc
import weakref

import ml_dtypes
import numpy as np
import pytest

import graphkit as gk

BF16 = np.dtype(ml_dtypes.bfloat16)


def numbers(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).astype(dtype).reshape(shape)


def pinned(values):
    array = gk.empty_pinned(values.shape, values.dtype)
    array[...] = values
    return array


@pytest.mark.parametrize("dtype", [np.float32, np.int8, BF16, np.complex128])
def test_there_and_back_through_the_device(runtime, stream, dtype):
    values = numbers(4, 6, dtype=dtype)
    host, back = pinned(values), gk.empty_pinned(values.shape, dtype)
    first, second = gk.empty(values.shape, dtype), gk.empty(values.shape, dtype)
    gk.memcpy_async(first, host, stream)
    gk.memcpy_async(second, first, stream)
    gk.memcpy_async(back, second, stream)
    stream.synchronize()
    assert np.array_equal(back, values)


@pytest.mark.parametrize(
    "index", [np.s_[1:3], np.s_[:, 2:5], np.s_[::2, :, 1:4], np.s_[1:, 2, ::3], np.s_[1, 1, 1]]
)
def test_a_view_of_any_three_dimensions(runtime, stream, index):
    values = numbers(4, 5, 6)
    source, target = gk.asarray(values), gk.zeros((4, 5, 6))
    gk.memcpy_async(target[index], source[index], stream)
    stream.synchronize()
    expected = np.zeros_like(values)
    expected[index] = values[index]
    assert np.array_equal(target.get(), expected)


def test_a_view_to_the_host(runtime, stream):
    values = numbers(4, 6)
    back = gk.empty_pinned((4, 3))
    gk.memcpy_async(back, gk.asarray(values)[:, ::2], stream)
    stream.synchronize()
    assert np.array_equal(back, values[:, ::2])


def test_addresses_with_a_size(runtime, stream):
    source, target = gk.asarray(numbers(8)), gk.zeros(8)
    gk.memcpy_async(target.ptr + 4, source.ptr, stream, nbytes=12)
    gk.memcpy_async(target, source.ptr + 28, stream, nbytes=4)
    stream.synchronize()
    assert target.get().tolist() == [7, 0, 1, 2, 0, 0, 0, 0]


def test_the_stream_gives_the_order(runtime, stream):
    x, y = gk.asarray(numbers(64)), gk.zeros(64)
    gk.memcpy_async(y, x, stream)
    gk.memset_async(x, 0, stream)
    gk.memcpy_async(x, y, stream)
    stream.synchronize()
    assert np.array_equal(x.get(), numbers(64))


def test_a_target_on_the_host_lives_until_the_copy_is_done(runtime, stream):
    x = gk.asarray(numbers(64))

    class Host(np.ndarray):
        """An array that can tell whether it is alive."""

    back = np.empty(64, np.float32).view(Host)
    alive = weakref.ref(back)
    gk.memcpy_async(back, x, stream)
    del back
    gc.collect()
    if not runtime.stream_query(stream.ptr):
        assert alive() is not None
    stream.synchronize()
    gk.live_handles()  # lets go of what is done
    assert alive() is None


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.float32, 0),
        (np.float64, 0.0),
        (np.int64, -1),
        (np.int16, 0x0707),
        (np.uint8, 200),
        (np.bool_, True),
        (BF16, 0),
    ],
)
def test_fill(runtime, stream, dtype, value):
    array = gk.asarray(numbers(5, 7, dtype=dtype))
    gk.memset_async(array[1:4], value, stream)
    stream.synchronize()
    expected = numbers(5, 7, dtype=dtype)
    expected[1:4] = value
    assert np.array_equal(array.get(), expected)


def test_fill_an_address_with_a_byte(runtime, stream):
    array = gk.zeros(4, np.uint16)
    gk.memset_async(array.ptr + 2, 7, stream, nbytes=3)
    stream.synchronize()
    assert array.get().tolist() == [0, 0x0707, 0x0007, 0]


def test_captured_copies_and_fills_are_nodes(runtime, stream):
    values = numbers(4, 6)
    host, back = pinned(values), gk.empty_pinned((4, 3))
    x, y = gk.empty((4, 6)), gk.empty((4, 6))
    with gk.capture(stream) as graph:
        gk.memcpy_async(x, host, stream)
        gk.memset_async(y, 0, stream)
        gk.memcpy_async(y[1:3, 1:4], x[1:3, 1:4], stream)
        gk.memcpy_async(back, y[:, ::2], stream)
    kinds = [node.type for node in graph.nodes]
    memcpy, memset = gk.NodeType.MEMCPY, gk.NodeType.MEMSET
    assert sorted(kinds) == [memcpy, memcpy, memcpy, memset]
    exe = graph.instantiate()
    for factor in (1, 2):
        host[...] = values * factor
        exe.launch(stream)
        stream.synchronize()
        expected = np.zeros_like(values)
        expected[1:3, 1:4] = values[1:3, 1:4] * factor
        assert np.array_equal(back, expected[:, ::2])


def test_a_graph_keeps_what_its_copies_point_at(runtime, stream):
    x, y = gk.asarray(numbers(8)), gk.zeros(8)
    temporary = pinned(np.full(8, 3, np.float32))
    with gk.capture(stream) as graph:
        gk.memcpy_async(x, temporary, stream)
        gk.memcpy_async(y, x, stream)
    del temporary, x
    gc.collect()
    counts = gk.live_handles()
    assert (counts["device memory"], counts["pinned memory"]) == (2, 1)
    graph.instantiate().launch(stream)
    stream.synchronize()
    assert y.get().tolist() == [3] * 8


def test_a_plain_integer_is_a_stream_too(runtime, stream):
    x, y = gk.asarray(numbers(8)), gk.zeros(8)
    gk.memcpy_async(y, x, stream.ptr)
    gk.memset_async(x, 0, stream.ptr)
    stream.synchronize()
    assert np.array_equal(y.get(), numbers(8))
    assert not x.get().any()


def test_what_no_fill_can_do_is_refused(runtime, stream):
    array = gk.zeros((4, 6))
    with pytest.raises(ValueError, match=r"value: .* bytes are all the same, came 1\.0.*0x3f80"):
        gk.memset_async(array, 1.0, stream)
    with pytest.raises(ValueError, match="dst: expected an array without gaps, came rows 24"):
        gk.memset_async(array[:, :2], 0, stream)
    with pytest.raises(TypeError, match=r"dst: .*on the host"):
        gk.memset_async(np.zeros(3), 0, stream)
    with pytest.raises(TypeError, match="nbytes: expected a size"):
        gk.memset_async(array.ptr, 0, stream)
    assert not array.get().any()


def test_what_no_copy_can_do_is_refused(runtime, stream):
    x, y = gk.zeros(4), gk.zeros(5)
    with pytest.raises(ValueError, match="src: expected 16 bytes as dst has, came 20"):
        gk.memcpy_async(x, y, stream)
    with pytest.raises(TypeError, match="nbytes: expected a size"):
        gk.memcpy_async(x, y.ptr, stream)
    with pytest.raises(TypeError, match="stream"):
        gk.memcpy_async(x, x, "not a stream")
    y.free()
    with pytest.raises(ValueError, match="freed"):
        gk.memcpy_async(x, y[:4], stream)


def test_a_big_array_of_zeros_needs_no_memory_on_the_host(runtime, monkeypatch):
    # The zeros come from a fill on the device, not from a copy of zeros.
    def refuse(*_):
        raise AssertionError("copied from the host")

    monkeypatch.setattr(type(runtime), "memcpy", refuse)
    array = gk.zeros((3, 5), np.complex64)
    monkeypatch.undo()
    assert not array.get().any()
