"""Nodes: the geometry of copies and fills, and what differs between the values of two nodes."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import graphkit as gk
from graphkit.node import memcpy_params, memset_params, node_differences
from graphkit.runtime.protocol import LaunchAttribute, LaunchAttributeID, MemcpyKind


class OnDevice:
    """Describes device memory that is not there: geometry looks at addresses alone."""

    def __init__(self, shape, dtype=np.float32, strides=None, ptr=1 << 20):
        self.interface = {
            "version": 3,
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (ptr, False),
            "strides": strides,
        }

    @property
    def __cuda_array_interface__(self):
        return self.interface

    @classmethod
    def at(cls, array):
        """The memory of a NumPy array, as if it lay on the device."""
        return cls(array.shape, array.dtype, array.strides, array.ctypes.data)


def copy_by_hand(params):
    """Do what a memcpy node does."""
    for depth in range(params.depth):
        for row in range(params.height):
            ctypes.memmove(
                params.dst + (depth * params.dst_height + row) * params.dst_pitch,
                params.src + (depth * params.src_height + row) * params.src_pitch,
                params.width,
            )


def fill_by_hand(params):
    """Do what a memset node does."""
    raw = params.value.to_bytes(params.element_size, "little")
    for row in range(params.height):
        ctypes.memmove(params.dst + row * params.pitch, raw * params.width, len(raw) * params.width)


def extents(params):
    return params.width, params.height, params.depth


# --- copies --------------------------------------------------------------------------------------


def test_arrays_without_gaps_are_one_run_of_bytes():
    params = memcpy_params(OnDevice((4, 8), ptr=512), OnDevice((4, 8), ptr=4096))
    assert params == gk.MemcpyNodeParams(
        512, 128, 1, 4096, 128, 1, 128, 1, 1, MemcpyKind.DEVICE_TO_DEVICE
    )


def test_without_gaps_only_the_bytes_must_agree():
    params = memcpy_params(OnDevice((4, 8), np.float32), OnDevice((16,), np.int64))
    assert extents(params) == (128, 1, 1)


@pytest.mark.parametrize(
    ("dst", "src", "kind"),
    [
        ("device", "device", MemcpyKind.DEVICE_TO_DEVICE),
        ("device", "host", MemcpyKind.HOST_TO_DEVICE),
        ("host", "device", MemcpyKind.DEVICE_TO_HOST),
        ("host", "host", MemcpyKind.HOST_TO_HOST),
    ],
)
def test_the_kind_follows_the_arrays(dst, src, kind):
    arrays = {"device": OnDevice((4,)), "host": np.zeros(4, np.float32)}
    assert memcpy_params(arrays[dst], arrays[src]).kind is kind
    assert memcpy_params(arrays[dst], arrays[src], 8).kind is kind


def test_addresses_copy_bytes_of_whatever_kind():
    params = memcpy_params(512, OnDevice((4,)), 12)
    assert (params.dst, params.src, params.width) == (512, 1 << 20, 12)
    assert params.kind is MemcpyKind.DEFAULT
    assert memcpy_params(512, 1024, 4).kind is MemcpyKind.DEFAULT


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (np.s_[:, :, :], (4 * 6 * 8 * 4, 1, 1)),
        (np.s_[1:3], (2 * 6 * 8 * 4, 1, 1)),
        (np.s_[:, 1:3], (2 * 8 * 4, 4, 1)),
        (np.s_[:, :, 2:5], (3 * 4, 4 * 6, 1)),
        (np.s_[1:3, 2:4, 2:5], (3 * 4, 2, 2)),
        (np.s_[:, ::2], (8 * 4, 4 * 3, 1)),
        (np.s_[:, :, ::2], (4, 4 * 6 * 4, 1)),
        (np.s_[0, :, ::2], (4, 6 * 4, 1)),
        (np.s_[0, 0, 0:1], (4, 1, 1)),
        (np.s_[0:1, 2:3, 3:5], (2 * 4, 1, 1)),
    ],
)
def test_a_view_takes_the_fewest_dimensions(index, expected):
    a, b = np.zeros((4, 6, 8), np.float32)[index], np.zeros((4, 6, 8), np.float32)[index]
    assert extents(memcpy_params(OnDevice.at(a), OnDevice.at(b))) == expected


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_copy_moves_what_numpy_moves(data):
    ndim = data.draw(st.integers(1, 4))
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * ndim))
    dtype = data.draw(st.sampled_from([np.int8, np.int16, np.int64]))
    order = data.draw(st.permutations(range(ndim)))

    def view():
        whole, index = [], []
        for extent in shape:
            step = data.draw(st.integers(1, 2))
            start = data.draw(st.integers(0, 2))
            whole.append(start + extent * step + data.draw(st.integers(0, 1)))
            index.append(slice(start, start + (extent - 1) * step + 1, step))
        array = np.arange(np.prod(whole), dtype=np.int64).astype(dtype).reshape(whole)
        return array, array[tuple(index)].transpose(order)

    (dst_all, dst), (_, src) = view(), view()
    expected = dst_all.copy()
    first = (dst.ctypes.data - dst_all.ctypes.data) // dst.itemsize
    as_strided(expected.reshape(-1)[first:], dst.shape, dst.strides)[...] = src
    try:
        params = memcpy_params(dst, src)
    except ValueError:
        assert dst.ndim > 1  # one dimension can always be said
        return
    copy_by_hand(params)
    assert np.array_equal(dst_all, expected)


def test_transposed_arrays_of_one_layout_are_one_run():
    a, b = np.zeros((4, 8), order="F"), np.zeros((4, 8), order="F")
    assert extents(memcpy_params(a, b)) == (4 * 8 * 8, 1, 1)


@pytest.mark.parametrize(
    ("dst", "src", "nbytes", "error", "message"),
    [
        (OnDevice((4,)), OnDevice((5,)), None, ValueError, "src: expected 16 bytes .* came 20"),
        (
            OnDevice((2, 2), strides=(16, 4)),
            OnDevice((4,)),
            None,
            ValueError,
            r"src: expected shape \(2, 2\) as dst has, came \(4,\)",
        ),
        (
            OnDevice((4,), np.float32, (8,)),
            OnDevice((4,), np.int32, (8,)),
            None,
            TypeError,
            "src: expected dtype float32 as dst has, came int32",
        ),
        (OnDevice((0, 4)), OnDevice((0, 4)), None, ValueError, "dst: expected at least one"),
        (512, OnDevice((4,)), None, TypeError, "nbytes: expected a size"),
        (OnDevice((4,)), 512, None, TypeError, "nbytes: expected a size"),
        (512, 1024, 0, ValueError, "nbytes: expected at least 1, came 0"),
        (512, 1024, 4.0, TypeError, "nbytes: expected a size as an int, came 4.0"),
        (512, 1024, "4", TypeError, "nbytes: expected a size as an int, came '4'"),
        (512, -8, 4, ValueError, "src: expected an array or an address, came -8"),
        (2**64, 512, 4, ValueError, "dst: expected an array or an address"),
        (512, 1024, -4, ValueError, "nbytes: expected at least 1, came -4"),
        (OnDevice((4,)), 512, 17, ValueError, "dst: expected 17 bytes without gaps, came 16"),
        (512, OnDevice((4,), strides=(8,)), 4, ValueError, "src: expected 4 bytes without gaps"),
        (None, OnDevice((4,)), None, TypeError, "dst: expected an array, came NoneType"),
        (OnDevice((4,)), [1.0], None, TypeError, "src: expected an array, came list"),
        (OnDevice((4,)), "512", 4, TypeError, "src: expected an array, came str"),
        (
            OnDevice((2, 2, 2, 2), strides=(512, 128, 32, 8)),
            OnDevice((2, 2, 2, 2), strides=(512, 128, 32, 16)),
            None,
            ValueError,
            "dst: expected a copy of at most 3 dimensions",
        ),
        (
            OnDevice((2, 2, 2), strides=(40, 16, 4)),
            OnDevice((2, 2, 2)),
            None,
            ValueError,
            "expected slices a whole number of rows apart",
        ),
    ],
)
def test_copies_that_cannot_be(dst, src, nbytes, error, message):
    with pytest.raises(error, match=message):
        memcpy_params(dst, src, nbytes)


@pytest.mark.parametrize(
    "view",
    [
        np.zeros(8, np.float32)[::-1],
        np.broadcast_to(np.zeros(8, np.float32), (4, 8)),
        np.broadcast_to(np.zeros((8, 1), np.float32), (8, 4)),
        sliding_window_view(np.zeros((6, 8), np.float32), (4, 4)),
    ],
    ids=["backwards", "rows repeat", "columns repeat", "slices overlap"],
)
@pytest.mark.parametrize("role", ["dst", "src"])
def test_views_that_no_copy_can_walk(view, role):
    view = view[:, 0] if view.ndim == 4 else view
    whole = np.zeros(view.shape, np.float32)
    with pytest.raises(ValueError, match=f"{role}:|overlap"):
        memcpy_params(*((view, whole) if role == "dst" else (whole, view)))


def test_a_copy_of_a_freed_array_is_refused(runtime):
    gone, here = gk.zeros(4), gk.zeros(4)
    gone.free()
    for dst, src in ((gone, here), (here, gone)):
        with pytest.raises(ValueError, match="freed"):
            memcpy_params(dst, src)


# --- fills ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value", "pattern", "element_size"),
    [
        (np.uint8, 255, 0xFF, 1),
        (np.int8, -1, 0xFF, 1),
        (np.bool_, True, 1, 1),
        (np.int16, 0x1234, 0x1234, 2),
        (np.float16, 1.0, 0x3C00, 2),
        (np.int32, -2, 0xFFFFFFFE, 4),
        (np.float32, 1.0, 0x3F800000, 4),
        (np.float32, 1, 0x3F800000, 4),
        (np.float32, np.float64(0.5), 0x3F000000, 4),
        (np.float32, float("inf"), 0x7F800000, 4),
        (np.float64, 0.0, 0, 4),
        (np.int64, -1, 0xFFFFFFFF, 4),
        (np.int64, 0x0000000500000005, 5, 4),
        (np.complex64, 1 + 1j, 0x3F800000, 4),
    ],
)
def test_what_a_fill_repeats(dtype, value, pattern, element_size):
    memory = np.zeros(6, dtype)
    params = memset_params(OnDevice.at(memory), value)
    assert (params.value, params.element_size) == (pattern, element_size)
    assert (params.width, params.height) == (6 * memory.itemsize // element_size, 1)
    fill_by_hand(params)
    assert np.array_equal(memory, np.full(6, value, dtype))


def test_a_fill_of_bfloat16(runtime):
    params = memset_params(gk.zeros(6, ml_dtypes.bfloat16), 1.0)
    assert (params.value, params.element_size, params.width) == (0x3F80, 2, 6)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (np.s_[:, :], (32, 1)),
        (np.s_[1:3], (16, 1)),
        (np.s_[:, 2:5], (3, 4)),
        (np.s_[::2], (8, 2)),
        (np.s_[:, 0], (1, 4)),
        (np.s_[0, ::3], (1, 3)),
        (np.s_[1:2, 2:3], (1, 1)),
    ],
)
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_the_rows_of_a_fill(index, expected, dtype):
    memory, wanted = np.ones((4, 8), dtype), np.ones((4, 8), dtype)
    params = memset_params(OnDevice.at(memory[index]), 0)
    width, height = expected
    assert (params.width * params.element_size, params.height) == (width * memory.itemsize, height)
    fill_by_hand(params)
    wanted[index] = 0
    assert np.array_equal(memory, wanted)


def test_an_address_is_filled_with_bytes():
    assert memset_params(512, 255, 10) == gk.MemsetNodeParams(512, 10, 255, 1, 10, 1)


@pytest.mark.parametrize(
    ("dst", "value", "nbytes", "error", "message"),
    [
        (512, 0, None, TypeError, "nbytes: expected a size"),
        (512, 256, 4, ValueError, "value: expected a byte"),
        (512, -1, 4, ValueError, "value: expected a byte"),
        (512, 1.0, 4, ValueError, "value: expected a byte"),
        (512, 0, 0, ValueError, "nbytes: expected at least 1, came 0"),
        (512, 0, 4.0, TypeError, "nbytes: expected a size as an int, came 4.0"),
        (512, 0, True, TypeError, "nbytes: expected a size as an int, came True"),
        (2**64, 0, 4, ValueError, "dst: expected an array or an address"),
        (True, 0, 4, ValueError, "dst: expected an array or an address, came True"),
        (OnDevice((4,), np.float32), 0, 8, TypeError, "nbytes: expected none, since dst is an"),
        (OnDevice((4,), np.float32), 1j, None, TypeError, "value: expected a scalar for float32"),
        (np.zeros(4), 0, None, TypeError, "dst: expected an array in device memory"),
        (None, 0, None, TypeError, "dst: expected an array"),
        (OnDevice((0,)), 0, None, ValueError, "dst: expected at least one element"),
        (OnDevice((4,), np.float64), 1.0, None, ValueError, "value: expected one that repeats"),
        (OnDevice((4,), np.int64), 1, None, ValueError, "value: expected one that repeats"),
        (OnDevice((4,), np.uint8), 256, None, ValueError, "value: expected"),
        (OnDevice((4,), np.uint32), -1, None, ValueError, "value: expected"),
        (OnDevice((4,), np.int32), 1.5, None, ValueError, "value: expected"),
        (OnDevice((4,), np.int32), float("nan"), None, ValueError, "value: expected"),
        (OnDevice((4,), np.float32), "one", None, TypeError, "value: expected"),
        (OnDevice((4,), np.float32), None, None, TypeError, "value: expected"),
        (OnDevice((4,), np.int8), np.zeros(4, np.int8), None, TypeError, "value: expected"),
        (
            OnDevice((2, 2, 2), strides=(64, 16, 4)),
            0,
            None,
            ValueError,
            "dst: expected rows without gaps",
        ),
        (OnDevice((2, 2), strides=(16, 8)), 0, None, None, ""),
        (OnDevice((4,), strides=(-4,)), 0, None, ValueError, "dst: expected"),
        (OnDevice((4, 4), strides=(0, 4)), 0, None, ValueError, "dst: expected"),
    ],
)
def test_fills_that_cannot_be(dst, value, nbytes, error, message):
    if error is None:
        assert memset_params(dst, value, nbytes).height == 4
        return
    with pytest.raises(error, match=message):
        memset_params(dst, value, nbytes)


# --- differences ---------------------------------------------------------------------------------


def kernel_values(**changes):
    values = {
        "name": "k",
        "function": 1,
        "grid": (1, 1, 1),
        "block": (32, 1, 1),
        "shared_mem": 0,
        "args": (gk.Argument("x", 0, 8, 4096), gk.Argument("n", 8, 4, np.int32(5))),
    }
    return gk.KernelNodeValues(**{**values, **changes})


def whats(old, new):
    return [item.what for item in node_differences(old, new)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"grid": (2, 1, 1)}, ["grid"]),
        ({"block": (64, 1, 1), "shared_mem": 8}, ["block", "shared_mem"]),
        ({"name": "other", "function": 2}, ["name", "function"]),
        ({"args": ()}, ["arguments"]),
        ({"args": (gk.Argument("x", 0, 8, 8192), gk.Argument("n", 8, 4, np.int32(5)))}, ["x"]),
        ({"args": (gk.Argument("x", 0, 8, 1), gk.Argument("n", 8, 4, np.int32(6)))}, ["x", "n"]),
        (
            {"attributes": (LaunchAttribute(LaunchAttributeID.COOPERATIVE, (1,)),)},
            ["attributes"],
        ),
    ],
)
def test_differences_of_kernel_nodes(changes, expected):
    assert whats(kernel_values(), kernel_values(**changes)) == expected


def test_differences_of_other_kinds():
    copy = memcpy_params(OnDevice((4,)), OnDevice((4,)))
    assert whats(copy, copy) == []
    assert whats(copy, copy._replace(dst=512, width=8)) == ["dst", "width"]
    fill = memset_params(OnDevice((4,)), 0)
    assert whats(fill, fill._replace(value=1)) == ["value"]
    assert whats(None, None) == []
    assert whats(copy, fill) == ["type"]
    assert whats(None, kernel_values()) == ["type"]


def test_a_difference_reads_as_old_and_new():
    (found,) = node_differences(kernel_values(), kernel_values(grid=(2, 1, 1)))
    assert str(found) == "grid: (1, 1, 1) -> (2, 1, 1)"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(4096, "x=0x1000"), (np.float32(1.5), "x=1.5"), (b"\x01\x02", "x=0x0201")],
)
def test_an_argument_reads_as_name_and_value(value, expected):
    assert str(gk.Argument("x", 0, 8, value)) == expected


@pytest.mark.parametrize("nbytes", [None, 4])
def test_a_copy_does_not_write_what_is_read_only(nbytes):
    fixed = np.frombuffer(b"abcd", np.float32)
    with pytest.raises(ValueError, match="dst: expected an array that may be written"):
        memcpy_params(fixed, OnDevice((1,)), nbytes)
    assert memcpy_params(OnDevice((1,)), fixed, nbytes).width == 4
