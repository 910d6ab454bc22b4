"""Anybody's array, described the same way: address, shape, dtype, strides, bytes, owner."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from math import prod
from operator import index
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphkit.device_array import BFLOAT16, DeviceArray, contiguous_strides

__all__ = ["ArrayInfo", "describe", "device_pointer", "dtype_of", "is_array", "pointer_and_dtype"]


class ArrayInfo(NamedTuple):
    """What an array is, whoever made it.

    Attributes:
        ptr: address of the first element.
        shape: extent of each axis in elements.
        dtype: NumPy dtype; bfloat16 is ml_dtypes.bfloat16.
        strides: distance of two elements of each axis in bytes.
        nbytes: bytes of the elements (product of shape times itemsize).
        on_host: True for memory that only the host owns, such as a NumPy array.
        owner: the object that keeps the memory alive.
    """

    ptr: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...]
    nbytes: int
    on_host: bool
    owner: object

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in C order without gaps."""
        expected = contiguous_strides(self.shape, self.dtype.itemsize)
        # An axis of one element has no next one: whatever its stride says is never used.
        steps = zip(self.shape, self.strides, expected, strict=True)
        return all(extent <= 1 or step == wanted for extent, step, wanted in steps)


class _DLDevice(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    """DLTensor of dlpack.h, the first member of DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_DL_HOST = {1, 3}  # kDLCPU, kDLCUDAHost
_DL_DEVICE = {2, 13}  # kDLCUDA, kDLCUDAManaged
_DL_KIND = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}


def _describe_dlpack(array: Any, argument: str) -> ArrayInfo:
    # stream=-1 asks the producer not to synchronize: describing an array orders nothing.
    device_type, _ = array.__dlpack_device__()
    capsule = array.__dlpack__(stream=-1) if device_type in _DL_DEVICE else array.__dlpack__()
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(get(capsule, b"dltensor"))
    if device_type not in _DL_HOST | _DL_DEVICE:
        raise TypeError(f"{argument}: expected CUDA memory, came DLPack device type {device_type}")
    bits = tensor.dtype.bits * tensor.dtype.lanes
    if tensor.dtype.code == 4:
        dtype = BFLOAT16
    elif tensor.dtype.code in _DL_KIND:
        kind = _DL_KIND[tensor.dtype.code]
        dtype = np.dtype(np.bool_) if kind == "b" else np.dtype(f"{kind}{bits // 8}")
    else:
        raise TypeError(f"{argument}: expected a known dtype, came DLPack code {tensor.dtype.code}")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = (
        tuple(tensor.strides[axis] * dtype.itemsize for axis in range(tensor.ndim))
        if tensor.strides
        else contiguous_strides(shape, dtype.itemsize)
    )
    ptr = (tensor.data or 0) + tensor.byte_offset
    nbytes = prod(shape) * dtype.itemsize
    # The capsule is dropped unconsumed, so the array itself stays the owner.
    return ArrayInfo(ptr, shape, dtype, strides, nbytes, device_type in _DL_HOST, array)


def _describe_interface(array: Any, argument: str) -> ArrayInfo:
    interface = array.__cuda_array_interface__
    try:
        shape = tuple(map(index, interface["shape"]))
        dtype = np.dtype(interface["typestr"])
        strides = tuple(interface.get("strides") or contiguous_strides(shape, dtype.itemsize))
        address = index(interface["data"][0] or 0)  # an empty array may have none
        masked = interface.get("mask") is not None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TypeError(
            f"{argument}: expected a __cuda_array_interface__ with shape, typestr and data, came "
            f"{interface!r}"
        ) from error
    if masked:
        raise TypeError(f"{argument}: expected one without a mask, came a masked one")
    return ArrayInfo(address, shape, dtype, strides, prod(shape) * dtype.itemsize, False, array)


def _describe_own(array: DeviceArray, argument: str) -> ArrayInfo:
    address = array.memory.value
    if not address:
        raise ValueError(f"{argument}: expected live device memory, came a freed DeviceArray")
    address += array.offset
    return ArrayInfo(address, array.shape, array.dtype, array.strides, array.nbytes, False, array)


def _describe_numpy(array: NDArray[Any], _: str) -> ArrayInfo:
    return ArrayInfo(
        array.ctypes.data, array.shape, array.dtype, array.strides, array.nbytes, True, array
    )


def _describe_cupy(array: Any, _: str) -> ArrayInfo:
    return ArrayInfo(
        array.data.ptr, array.shape, array.dtype, array.strides, array.nbytes, False, array
    )


def _describe_torch(tensor: Any, _: str) -> ArrayInfo:
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = BFLOAT16 if name == "bfloat16" else np.dtype(name)
    strides = tuple(step * dtype.itemsize for step in tensor.stride())
    shape = tuple(tensor.shape)
    nbytes = prod(shape) * dtype.itemsize
    on_host = tensor.device.type != "cuda"
    return ArrayInfo(tensor.data_ptr(), shape, dtype, strides, nbytes, on_host, tensor)


# Given the array and what to call it in an error message.
_Describer = Callable[[Any, str], ArrayInfo]

# Asking a protocol builds a dictionary or a capsule each time, which costs many times what an
# attribute does, hence a path per type. Types are found by name: nobody's package is imported.
_DESCRIBE: dict[type, _Describer] = {
    DeviceArray: _describe_own,
    np.ndarray: _describe_numpy,
}
_BY_NAME: dict[tuple[str, str], _Describer] = {
    ("cupy", "ndarray"): _describe_cupy,
    ("torch", "Tensor"): _describe_torch,
}


def _describer(kind: type) -> _Describer | None:
    for (package, name), describer in _BY_NAME.items():
        module = sys.modules.get(package)
        if module is not None and issubclass(kind, getattr(module, name)):
            return describer
    if issubclass(kind, np.ndarray):
        return _describe_numpy
    if hasattr(kind, "__cuda_array_interface__"):
        return _describe_interface
    if hasattr(kind, "__dlpack__"):
        return _describe_dlpack
    return None


def _fast_cupy(array: Any) -> tuple[int, np.dtype[Any]]:
    return array.data.ptr, array.dtype


# What a parameter write needs, without building an ArrayInfo.
_FAST: dict[type, Callable[[Any], tuple[int, np.dtype[Any]]]] = {}


def pointer_and_dtype(array: object, argument: str) -> tuple[int, np.dtype[Any]]:
    """Return address and dtype of an array in device memory; the hot half of :func:`describe`.

    Raises:
        TypeError: when the value is not an array, or lies on the host.
        ValueError: when its memory was freed.
    """
    kind = type(array)
    fast = _FAST.get(kind)
    if fast is not None:
        return fast(array)
    info = device_pointer(array, argument)
    if kind.__module__.partition(".")[0] == "cupy":
        _FAST[kind] = _fast_cupy
    return info.ptr, info.dtype


def is_array(value: object) -> bool:
    """Return whether :func:`describe` takes the value."""
    return type(value) in _DESCRIBE or _describer(type(value)) is not None


def dtype_of(value: object) -> np.dtype[Any] | None:
    """Return the dtype of an array, a freed one of ours too; None for anything else."""
    if isinstance(value, DeviceArray):
        return value.dtype
    if not is_array(value):
        return None
    try:
        return describe(value).dtype
    except (TypeError, ValueError):
        return None


def describe(array: object, argument: str = "array") -> ArrayInfo:
    """Return address, shape, dtype, strides, bytes and owner of any array.

    Args:
        array: a :class:`DeviceArray`, NumPy, CuPy or PyTorch array, or anything with
            ``__cuda_array_interface__`` or ``__dlpack__``.
        argument: what to call it in an error message.

    Raises:
        TypeError: when it is not an array, or one of a device that is not CUDA's.
        ValueError: when its memory was freed.
    """
    kind = type(array)
    describer = _DESCRIBE.get(kind)
    if describer is None:
        describer = _describer(kind)
        if describer is None:
            raise TypeError(f"{argument}: expected an array, came {kind.__name__}")
        _DESCRIBE[kind] = describer
    return describer(array, argument)


def device_pointer(array: object, argument: str = "array") -> ArrayInfo:
    """Describe an array that must lie in device memory.

    Raises:
        TypeError: when the array lies on the host; the message says how to move it.
    """
    info = describe(array, argument)
    if info.on_host:
        raise TypeError(
            f"{argument}: expected an array in device memory, came {type(array).__name__} on the "
            "host; copy it with graphkit.asarray() or your array library"
        )
    return info
