"""Arrays: our own small one, and everybody else's described the same way."""

from __future__ import annotations

import gc
import sys
import weakref
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import graphkit as gk
from graphkit.arrays import device_pointer, is_array, pointer_and_dtype

BF16 = np.dtype(ml_dtypes.bfloat16)


def numbers(shape, dtype=np.float32):
    return np.arange(np.prod(shape), dtype=np.float64).astype(dtype).reshape(shape)


# --- our own -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, BF16, np.int8, np.uint64, np.bool_, np.complex64]
)
def test_values_go_to_the_device_and_come_back(runtime, dtype):
    values = numbers((3, 5), dtype)
    array = gk.asarray(values)
    assert (array.shape, array.dtype, array.nbytes) == ((3, 5), values.dtype, values.nbytes)
    assert np.array_equal(array.get(), values)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 4), (0,), (3, 0, 2)])
def test_any_shape(runtime, shape):
    array = gk.asarray(numbers(shape))
    assert array.shape == array.get().shape == shape
    assert array.size == np.prod(shape, dtype=int)
    assert np.array_equal(array.get(), numbers(shape))


def test_asarray_converts(runtime):
    assert gk.asarray([1, 2, 3], np.float32).get().tolist() == [1.0, 2.0, 3.0]
    assert gk.asarray(5).shape == ()
    assert gk.asarray([[1, 2]]).dtype == np.int64


def test_zeros_are_zero_and_an_int_is_a_shape(runtime):
    array = gk.zeros(np.int64(5), np.int32)
    assert array.shape == (5,)
    assert not array.get().any()


def test_get_is_a_copy(runtime):
    array = gk.zeros(3)
    array.get()[:] = 1
    assert not array.get().any()


def test_set_converts_to_the_dtype_but_not_to_the_shape(runtime):
    array = gk.zeros((2, 3), np.int32)
    array.set([[1, 2, 3], [4, 5, 6]])
    for wrong in (0, [1, 2, 3], np.zeros((3, 2))):
        with pytest.raises(ValueError, match=r"values: expected shape \(2, 3\), came"):
            array.set(wrong)
    assert array.get().tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("make", [gk.empty, gk.empty_pinned])
@pytest.mark.parametrize("shape", [2**61, 2**70, (2**40, 2**40)])
def test_more_than_any_address_space_holds_is_refused(runtime, make, shape):
    with pytest.raises(ValueError, match=r"shape: expected fewer than 2\*\*63 bytes, came"):
        make(shape)


@pytest.mark.parametrize("shape", [-1, (2, -3)])
def test_negative_extents_are_refused(runtime, shape):
    with pytest.raises(ValueError, match="shape: expected extents of 0 or more"):
        gk.empty(shape)


def test_what_does_not_fit_is_refused_and_nothing_is_lost(runtime):
    before = gk.live_handles()
    with pytest.raises(gk.CudaError) as caught:
        gk.empty(1 << 50, np.uint8)
    assert (caught.value.name, caught.value.call) == ("cudaErrorMemoryAllocation", "cudaMalloc")
    assert gk.live_handles() == before
    assert runtime.get_last_error() == 0
    assert gk.asarray([1, 2]).get().tolist() == [1, 2]


@pytest.mark.parametrize(
    "index",
    [
        np.s_[1],
        np.s_[-1],
        np.s_[1:3],
        np.s_[:, 2],
        np.s_[..., 1],
        np.s_[1, ..., 2],
        np.s_[::2, 1:, ::3],
        np.s_[1, 2, 3],
        np.s_[2:2],
        np.s_[np.int64(1)],
        np.s_[:],
    ],
)
def test_views_are_those_of_numpy(runtime, index):
    values = numbers((4, 5, 6))
    view = gk.asarray(values)[index]
    assert view.shape == values[index].shape
    if view.size > 1:
        assert view.strides == values[index].strides
    assert np.array_equal(view.get(), values[index])


def test_views_of_views(runtime):
    values = numbers((4, 5, 6))
    view = gk.asarray(values)[1:, ::2][1][..., 3]
    assert np.array_equal(view.get(), values[1:, ::2][1][..., 3])


def test_setting_a_view_leaves_the_gaps_alone(runtime):
    values = numbers((4, 6))
    array = gk.asarray(values)
    array[1:3, ::2].set(np.full((2, 3), -1))
    array[3, 5].set(-2)
    values[1:3, ::2], values[3, 5] = -1, -2
    assert np.array_equal(array.get(), values)


@pytest.mark.parametrize(
    "index", [np.s_[::-1], [0, 1], np.array([0]), None, "a", 1.0, True is None]
)
def test_indices_that_give_no_view(runtime, index):
    with pytest.raises(ValueError, match="index: expected"):
        gk.zeros((2, 2))[None if index is False else index]


@pytest.mark.parametrize("index", [2, -3, (0, 0, 0)])
def test_indices_out_of_range(runtime, index):
    with pytest.raises(IndexError):
        gk.zeros((2, 2))[index]


def test_a_view_keeps_the_memory(runtime):
    view = gk.asarray(numbers((4, 4)))[2]
    assert gk.live_handles() == {"device memory": 1}
    assert view.get().tolist() == [8, 9, 10, 11]
    del view
    assert gk.live_handles() == {}


def test_a_freed_array_and_its_views_are_refused(runtime):
    array = gk.zeros((2, 4))
    view = array[1]
    assert "freed" not in repr(array)
    array.free()
    array.free()
    for use in (
        lambda: array.ptr,
        array.get,
        lambda: array.set(np.zeros((2, 4))),
        view.get,
        lambda: view.ptr,
        lambda: array.__cuda_array_interface__,
        lambda: gk.describe(view),
    ):
        with pytest.raises(ValueError, match="came a freed DeviceArray"):
            use()
    assert "freed" in repr(view)
    assert gk.live_handles() == {}


def test_empty_arrays_are_not_freed_arrays(runtime):
    one, other = gk.empty(0), gk.empty(0)
    assert one.ptr
    assert one.ptr != other.ptr
    one.free()
    with pytest.raises(ValueError, match="freed"):
        one.get()


def test_len(runtime):
    assert len(gk.zeros((3, 2))) == 3
    with pytest.raises(TypeError):
        len(gk.zeros(()))


def test_the_interface_for_other_libraries(runtime):
    array = gk.zeros((4, 6), np.int16)
    interface = array[1:, ::2].__cuda_array_interface__
    assert interface["shape"] == (3, 3)
    assert interface["strides"] == (12, 4)
    assert interface["typestr"] == "<i2"
    assert interface["data"] == (array.ptr + 12, False)
    # Nothing to wait for: whoever takes the array would synchronize the stream named here.
    assert interface["stream"] is None
    # NumPy has no name for bfloat16; two opaque bytes are what CuPy and PyTorch can reinterpret.
    assert gk.zeros(2, BF16).__cuda_array_interface__["typestr"] == "<V2"


def test_pinned_memory_lives_as_long_as_any_view(runtime):
    array = gk.empty_pinned((2, 3), np.int32)
    assert (array.shape, array.dtype) == ((2, 3), np.int32)
    array[:] = 7
    view = array[1, ::2]
    del array
    gc.collect()
    assert gk.live_handles() == {"pinned memory": 1}
    assert view.tolist() == [7, 7]
    del view
    assert gk.live_handles() == {}


@pytest.mark.parametrize("shape", [0, (), (2, 0)])
def test_pinned_memory_of_any_shape(runtime, shape):
    assert gk.empty_pinned(shape, BF16).shape == np.empty(shape).shape


def test_a_copy_between_pinned_and_device_memory_in_stream_order(runtime, stream):
    host, back = gk.empty_pinned(8, np.int32), gk.empty_pinned(8, np.int32)
    host[:] = np.arange(8)
    array = gk.zeros(8, np.int32)
    size = array.nbytes
    kinds = gk.MemcpyKind
    runtime.memcpy_async(array.ptr, host.ctypes.data, size, kinds.HOST_TO_DEVICE, stream.ptr)
    runtime.memcpy_async(back.ctypes.data, array.ptr, size, kinds.DEVICE_TO_HOST, stream.ptr)
    stream.synchronize()
    assert back.tolist() == list(range(8))


# --- everybody else's ----------------------------------------------------------------------------


class ByInterface:
    """An array that another library keeps on the device."""

    def __init__(self, array, **changes):
        self.array = array
        self.changes = changes

    @property
    def __cuda_array_interface__(self):
        return self.array.__cuda_array_interface__ | self.changes


class ByDlpack:
    """The same, offered through DLPack."""

    def __init__(self, array, device=(1, 0)):
        self.array = array
        self.device = device
        self.asked = None

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        self.asked = stream
        return self.array.__dlpack__()


def test_describe_our_own(runtime):
    array = gk.zeros((4, 6), np.int16)
    info = gk.describe(array[1:])
    assert info[:5] == (array.ptr + 12, (3, 6), np.dtype(np.int16), (12, 2), 36)
    assert not info.on_host
    assert info.contiguous
    assert not gk.describe(array[:, ::2]).contiguous


def test_describe_numpy():
    values = numbers((4, 6))
    info = gk.describe(values[:, 1:])
    assert (info.ptr, info.strides, info.on_host) == (values.ctypes.data + 4, (24, 4), True)
    assert gk.describe(values).owner is values


def test_describe_a_subclass_of_numpy():
    assert gk.describe(np.ma.masked_array([1.0, 2.0])).on_host


def test_describe_by_interface(runtime):
    array = gk.asarray(numbers((4, 6)))
    other = ByInterface(array)
    info = gk.describe(other)
    assert info[:5] == gk.describe(array)[:5]
    assert info.owner is other
    assert gk.describe(ByInterface(array, strides=None)).contiguous


def test_describe_by_dlpack():
    values = numbers((4, 6), np.int16)
    info = gk.describe(ByDlpack(values[1:, ::2]))
    assert info[:5] == (values.ctypes.data + 12, (3, 3), np.dtype(np.int16), (12, 4), 18)
    assert info.on_host


def test_dlpack_of_the_device_is_not_asked_to_synchronize():
    array = ByDlpack(numbers(4), device=(2, 0))
    assert not gk.describe(array).on_host
    assert array.asked == -1


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.float16, np.float64, np.complex64])
def test_dlpack_names_dtypes(dtype):
    assert gk.describe(ByDlpack(numbers(4, dtype))).dtype == dtype


def test_dlpack_of_another_kind_of_device_is_refused():
    with pytest.raises(TypeError, match="expected CUDA memory, came DLPack device type 10"):
        gk.describe(ByDlpack(numbers(4), device=(10, 0)))


def test_describing_leaves_no_reference():
    array = ByDlpack(numbers(4))
    seen = weakref.ref(array)
    gk.describe(array)
    del array
    assert seen() is None


def test_describe_pytorch_by_its_attributes(monkeypatch):
    class Tensor:
        shape = (2, 3)
        dtype = "torch.bfloat16"
        device = SimpleNamespace(type="cuda")

        def data_ptr(self):
            return 4096

        def stride(self):
            return (3, 1)

    module = ModuleType("torch")
    module.Tensor = Tensor
    monkeypatch.setitem(sys.modules, "torch", module)
    tensor = Tensor()
    assert gk.describe(tensor) == (4096, (2, 3), BF16, (6, 2), 12, False, tensor)
    tensor.device = SimpleNamespace(type="cpu")
    assert gk.describe(tensor).on_host


def test_describe_cupy_by_its_attributes(monkeypatch):
    array = numbers((2, 3))

    class ndarray:  # noqa: N801 - CuPy's name
        shape, dtype, strides, nbytes = array.shape, array.dtype, array.strides, array.nbytes
        data = SimpleNamespace(ptr=4096)

    ndarray.__module__ = "cupy"
    module = ModuleType("cupy")
    module.ndarray = ndarray
    monkeypatch.setitem(sys.modules, "cupy", module)
    value = ndarray()
    assert gk.describe(value) == (4096, (2, 3), np.float32, (12, 4), 24, False, value)
    for _ in range(2):  # the second time by the short way
        assert pointer_and_dtype(value, "x") == (4096, np.float32)


@pytest.mark.parametrize("value", [None, 5, [1.0], "x", b"bytes", object()])
def test_what_is_no_array(value):
    assert not is_array(value)
    with pytest.raises(TypeError, match=f"x: expected an array, came {type(value).__name__}"):
        gk.describe(value, "x")


def test_an_array_on_the_host_is_no_device_array(runtime):
    for host in (np.zeros(3), gk.empty_pinned(3)):
        assert is_array(host)
        with pytest.raises(TypeError, match=r"x: expected an array in device memory.*asarray"):
            device_pointer(host, "x")
    assert device_pointer(gk.zeros(3)).nbytes == 12


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gk.empty(2.0), TypeError, "shape: expected an int or several, came 2.0"),
        (lambda: gk.empty("2"), TypeError, "shape: expected an int or several, came '2'"),
        (lambda: gk.empty((2, None)), TypeError, "shape: expected an int or several"),
        (lambda: gk.empty(2, object), TypeError, "dtype: expected elements of plain bytes"),
        (lambda: gk.empty_pinned(2, object), TypeError, "dtype: expected elements of plain bytes"),
        (lambda: gk.empty(2, "V0"), TypeError, "dtype: expected elements of plain bytes"),
        (lambda: gk.empty(2, (np.float32, 3)), TypeError, "dtype: expected elements of plain"),
        (lambda: gk.empty(2, "no dtype"), TypeError, "dtype: expected a NumPy dtype, came"),
        (lambda: gk.asarray(None), TypeError, "values: expected numbers, came None"),
        (lambda: gk.asarray([object()]), TypeError, "values: expected numbers"),
    ],
)
def test_arrays_that_cannot_be(runtime, make, error, message):
    with pytest.raises(error, match=message):
        make()
    assert gk.live_handles() == {}


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.int32, [2**40]),
        (np.int32, np.array([2**40])),
        (np.uint8, [-1]),
        (np.uint8, np.array([300])),
        (np.uint8, np.array([1.0, np.nan])),
        (np.int32, [np.inf]),
        (np.int64, [2.0**63]),
        (np.int64, [2**64]),
        (np.uint8, np.array([300], ml_dtypes.bfloat16)),
        (np.float16, [1e6]),
        (np.float32, np.array([1e300])),
        (np.float32, [10**400]),
        (np.float32, ["many"]),
    ],
)
def test_values_that_the_dtype_does_not_hold(runtime, dtype, values):
    array = gk.zeros(len(values), dtype)
    for put in (array.set, lambda given: gk.asarray(given, dtype)):
        with pytest.raises(ValueError, match=f"^values: expected numbers that {np.dtype(dtype)} h"):
            put(values)
    assert not array.get().any()


@pytest.mark.parametrize("values", [["1"], [None, 1], [1j], [b"1"]])
def test_values_that_are_no_numbers(runtime, values):
    for put in (gk.zeros(len(values), np.int32).set, lambda given: gk.asarray(given, np.int32)):
        with pytest.raises(TypeError, match=r"^values: expected numbers that int32 holds, came"):
            put(values)


@pytest.mark.parametrize(
    "values", [[1j], np.array([1j]), np.complex64(1j), [np.complex64(1j)], [{}]]
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_values_that_are_no_real_numbers(runtime, dtype, values):
    with pytest.raises(TypeError, match=r"^values: expected numbers that b?float\d\d holds, came"):
        gk.asarray(values, dtype)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.int64, [-(2**63), 2**63 - 1]),
        (np.uint64, [0, 2**64 - 1]),
        (np.uint8, np.array([0.0, 255.0])),
        (np.int8, [True, False]),
        (np.int32, []),
        (np.uint8, np.array([7], ml_dtypes.bfloat16)),
        (np.float32, [np.inf, np.nan]),
    ],
)
def test_values_that_the_dtype_just_holds(runtime, dtype, values):
    np.testing.assert_array_equal(gk.asarray(values, dtype).get(), np.asarray(values, dtype))


@pytest.mark.parametrize("index", [True, (False,), (0, True)])
def test_a_bool_is_no_index(runtime, index):
    # NumPy copies for a mask: the view would have had the address of that copy.
    with pytest.raises(ValueError, match="index: expected ints and slices"):
        gk.zeros((2, 2))[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": None}, "expected a __cuda_array_interface__ with shape, typestr and data"),
        ({"shape": (2.0,)}, "expected a __cuda_array_interface__ with shape, typestr and data"),
        ({"typestr": "zz"}, "expected a __cuda_array_interface__ with shape, typestr and data"),
        ({"data": None}, "expected a __cuda_array_interface__ with shape, typestr and data"),
        ({"mask": object()}, "expected one without a mask"),
    ],
)
def test_interfaces_that_say_too_little_or_too_much(change, message):
    class Broken:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": (2,), "typestr": "<f4", "data": (512, False), "version": 3, **change,
        }  # fmt: skip

    with pytest.raises(TypeError, match=message):
        gk.describe(Broken())


def test_an_array_that_is_none_is_called_by_its_argument(runtime):
    class Told:
        def __init__(self, **interface):
            self.interface = interface

        @property
        def __cuda_array_interface__(self):
            return self.interface

    good = {"shape": (1,), "typestr": "<f4", "data": (16, False), "version": 3}
    freed = gk.zeros(1, np.int32)
    freed.free()
    with pytest.raises(ValueError, match=r"^flag: expected live device memory"):
        gk.describe(freed, "flag")
    for array in (Told(**good, mask=object()), Told(shape=(1,)), 3):
        with pytest.raises(TypeError, match=r"^flag: expected"):
            gk.describe(array, "flag")
    assert gk.describe(Told(**good), "flag").ptr == 16
