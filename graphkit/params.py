"""The arguments of a kernel: values checked, packed, and read back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphkit.arrays import device_pointer, is_array, pointer_and_dtype
from graphkit.c_signature import Parameter, opaque_parameters
from graphkit.device_array import BFLOAT16, DeviceArray
from graphkit.runtime.protocol import KernelNodeParams, Runtime

__all__ = ["Args", "ArgumentBlock"]

# By position, or by name; where single ones are changed also by position in a dict.
Args = Sequence[object] | Mapping[Any, object]


def _pointer_writer(parameter: Parameter, words: memoryview) -> Callable[[object], None]:
    expected = parameter.dtype
    name = parameter.name

    def write(value: Any) -> None:
        kind = type(value)
        if kind is DeviceArray:  # looked into here: a property would cost as much as the rest
            address = value.memory.value
            if address and (value.dtype is expected or value.dtype == expected or not expected):
                words[0] = address + value.offset
                return
            if not address:
                raise ValueError(f"{name}: expected live device memory, came a freed DeviceArray")
        if kind is int or isinstance(value, np.integer):
            try:
                words[0] = int(value)
            except ValueError:
                raise ValueError(
                    f"{name}: expected an address of 0 to 2**64 - 1, came {value!r}"
                ) from None
        else:
            address, dtype = pointer_and_dtype(value, name)
            if expected is not None and dtype != expected:
                raise TypeError(f"{name}: expected an array of {expected}, came {dtype}")
            words[0] = address

    return write


# memoryview formats of dtypes that Python can pack itself.
_FORMATS = {"?", "b", "B", "h", "H", "i", "I", "q", "Q", "f", "d"}


def _scalar_writer(parameter: Parameter, view: memoryview, cell: Any) -> Callable[[object], None]:
    dtype, name = parameter.dtype, parameter.name
    assert dtype is not None
    plain = {"f": (int, float), "b": (bool,)}.get(dtype.kind, (int,))
    exact = dtype.type

    def write(value: object) -> None:
        kind = type(value)
        if kind is exact and cell is not None:
            cell[0] = value
            return
        if cell is not None and kind in plain:
            try:
                cell[0] = value
            except (ValueError, OverflowError, TypeError):
                raise ValueError(
                    f"{name}: expected a value in the range of {dtype}, came {value!r}"
                ) from None
            return
        if is_array(value) and not (isinstance(value, np.ndarray) and value.shape == ()):
            raise TypeError(f"{name}: expected a scalar for `{parameter}`, came an array")
        item = np.asarray(value)
        sized = isinstance(value, (np.generic, np.ndarray))
        if item.shape != () or (sized and item.dtype != dtype):
            raise TypeError(f"{name}: expected a scalar of {dtype}, came {item.dtype} {value!r}")
        # NumPy would cast anything to bfloat16, also what has an imaginary part.
        castable = np.can_cast(item.dtype, np.float32 if dtype == BFLOAT16 else dtype, "same_kind")
        if not sized and not castable:
            raise TypeError(f"{name}: expected a scalar of {dtype}, came {kind.__name__} {value!r}")
        with np.errstate(over="ignore"):  # past the range lies infinity, as in C
            view[:] = item.astype(dtype).tobytes()

    return write


def _opaque_writer(parameter: Parameter, view: memoryview) -> Callable[[object], None]:
    name, size = parameter.name, parameter.size

    def write(value: object) -> None:
        if isinstance(value, (bytes, bytearray, memoryview)):
            raw = bytes(value)
        elif isinstance(value, np.generic):
            raw = value.tobytes()
        elif isinstance(value, int):
            try:
                raw = value.to_bytes(size, "little", signed=value < 0)
            except OverflowError:
                raise ValueError(f"{name}: expected {size} bytes, came {value!r}") from None
        elif is_array(value):
            raw = device_pointer(value, name).ptr.to_bytes(8, "little")
        else:
            raise TypeError(
                f"{name}: expected {size} bytes as bytes, int, NumPy scalar or device array, came "
                f"{type(value).__name__}; the type of this parameter is not known"
            )
        if len(raw) != size:
            raise ValueError(f"{name}: expected {size} bytes, came {len(raw)}")
        view[:] = raw

    return write


class _CheckedCell:
    """Stands in for a memoryview where Python cannot store a number of this type itself."""

    __slots__ = ("_write",)

    def __init__(self, write: Callable[[object], None]) -> None:
        self._write = write

    def __setitem__(self, index: int, value: object) -> None:
        self._write(value)


class ArgumentBlock:
    """The packed arguments of one kernel, in memory whose address never changes.

    ``kernel_params`` is the address of the ``void*[]`` that CUDA wants; each entry points into one
    buffer, so that changing an argument is one write.
    """

    __slots__ = (
        "_buffer", "_extra", "_size", "_table", "cells", "extra", "kernel_params", "names",
        "parameters", "view", "writers",
    )  # fmt: skip

    def __init__(self, parameters: Sequence[Parameter], *, nbytes: int = 0) -> None:
        """Lay the block out; with ``nbytes`` it is passed as one piece through ``extra``."""
        self.parameters = tuple(parameters)
        end = max((item.offset + item.size for item in self.parameters), default=0)
        # ctypes gives 16-byte alignment only for large blocks; c_uint64 gives the 8 that count.
        self._buffer = (ctypes.c_uint64 * (-(-max(end, nbytes, 8) // 8)))()
        base = ctypes.addressof(self._buffer)
        self.view = memoryview(self._buffer).cast("B")[: max(end, nbytes)]
        self._table = (ctypes.c_uint64 * max(len(self.parameters), 1))(
            *(base + item.offset for item in self.parameters)
        )
        self._size = ctypes.c_size_t(nbytes)
        # CU_LAUNCH_PARAM_BUFFER_POINTER = 1, CU_LAUNCH_PARAM_BUFFER_SIZE = 2, end = 0 (cuda.h).
        self._extra = (ctypes.c_uint64 * 5)(1, base, 2, ctypes.addressof(self._size), 0)
        self.kernel_params = 0 if nbytes else ctypes.addressof(self._table)
        self.extra = ctypes.addressof(self._extra) if nbytes else 0
        self.names = {item.name: index for index, item in enumerate(self.parameters)}
        # For each argument: a place that takes a plain int or float, and what checks and writes
        # any value.
        pairs = [self._cell_and_writer(item) for item in self.parameters]
        self.cells = [cell for cell, _ in pairs]
        self.writers = [write for _, write in pairs]

    def _cell_and_writer(self, parameter: Parameter) -> tuple[Any, Callable[[object], None]]:
        view = self.view[parameter.offset : parameter.offset + parameter.size]
        if parameter.pointer:
            words = view.cast("Q")
            return words, _pointer_writer(parameter, words)
        if parameter.dtype is None:
            write = _opaque_writer(parameter, view)
            return _CheckedCell(write), write
        code = {"l": "q", "L": "Q"}.get(parameter.dtype.char, parameter.dtype.char)
        if code in _FORMATS:
            numbers = view.cast(code)  # type: ignore[call-overload]
            write = _scalar_writer(parameter, view, numbers)
            # Anything that is true or false would pass into a bool unchecked.
            return (_CheckedCell(write) if code == "?" else numbers), write
        write = _scalar_writer(parameter, view, None)
        return _CheckedCell(write), write

    @classmethod
    def read(
        cls, runtime: Runtime, params: KernelNodeParams, parameters: Sequence[Parameter] | None
    ) -> ArgumentBlock:
        """Copy the arguments out of a node's parameters (cuFuncGetParamInfo once a parameter).

        The memory that cuGraphKernelNodeGetParams returns belongs to the node and may change, so
        it is copied at once.
        """
        if parameters is None:
            parameters = opaque_parameters(runtime, params.function)
        if params.kernel_params:
            block = cls(parameters)
            table = (ctypes.c_uint64 * len(parameters)).from_address(params.kernel_params)
            for item, address in zip(parameters, table, strict=True):
                raw = ctypes.string_at(address, item.size)
                block.view[item.offset : item.offset + item.size] = raw
            return block
        if params.extra:
            entries = (ctypes.c_uint64 * 5).from_address(params.extra)
            found = {entries[i]: entries[i + 1] for i in range(0, 4, 2) if entries[i]}
            nbytes = ctypes.c_size_t.from_address(found[2]).value
            fitting = [item for item in parameters if item.offset + item.size <= nbytes]
            block = cls(fitting, nbytes=nbytes)
            block.view[:] = ctypes.string_at(found[1], nbytes)
            return block
        return cls(())

    def pack(self, args: Args) -> Sequence[object]:
        """Write every argument, and return them in order.

        Raises:
            TypeError: when an argument is missing, too many, unknown or of the wrong type.
            ValueError: when a value does not fit.
        """
        writers = self.writers
        # A tuple of the right length, the usual case, is told without an abstract base class.
        usual = type(args) is tuple and len(args) == len(writers)
        values: Sequence[object] = args if usual else self.complete(args)  # type: ignore[assignment]
        for write, value in zip(writers, values, strict=False):  # complete() saw to the length
            write(value)
        return values

    def complete(self, args: Args) -> Sequence[object]:
        """Return all arguments in order, however they were given.

        Raises:
            TypeError: when one is missing, too many or unknown; the message lists the names.
        """
        names = ", ".join(self.names)
        count = len(self.parameters)
        if isinstance(args, Mapping):
            unknown = [str(name) for name in args if name not in self.names]
            missing = [name for name in self.names if name not in args]
            if unknown or missing:
                detail = f"unknown {unknown}" if unknown else f"all but {missing}"
                raise TypeError(f"args: expected {count} arguments ({names}), came {detail}")
            return [args[name] for name in self.names]
        if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
            raise TypeError(
                f"args: expected a tuple or a dict of {count} arguments ({names}), came "
                f"{type(args).__name__}"
            )
        if len(args) != count:
            raise TypeError(f"args: expected {count} arguments ({names}), came {len(args)}")
        return args

    def index(self, key: object) -> int:
        """Return the position of a parameter given by name or position."""
        if isinstance(key, str):
            if key in self.names:
                return self.names[key]
        elif isinstance(key, (int, np.integer)) and 0 <= key < len(self.names):
            return int(key)
        raise TypeError(
            f"args: expected a parameter of {list(self.names)} or its position, came {key!r}"
        )

    def value(self, index: int) -> object:
        """Read one argument: int address, NumPy scalar, or bytes where the type is unknown."""
        item = self.parameters[index]
        raw = bytes(self.view[item.offset : item.offset + item.size])
        if item.pointer:
            return int.from_bytes(raw, "little")
        if item.dtype is None:
            return raw
        scalar: object = np.frombuffer(raw, item.dtype)[0]
        return scalar

    def copy(self) -> ArgumentBlock:
        """Return an independent block with the same bytes."""
        block = ArgumentBlock(self.parameters, nbytes=len(self.view) if self.extra else 0)
        block.view[:] = self.view
        return block
