"""Kernel parameters: names and types from the CUDA C signature, values packed and read back."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from graphkit.arrays import BFLOAT16, DeviceArray, device_pointer, is_array, pointer_and_dtype
from graphkit.runtime.protocol import Dim3, KernelNodeParams, Runtime

__all__ = [
    "ArgumentBlock",
    "Difference",
    "Parameter",
    "dim3",
    "opaque_parameters",
    "parse_signature",
]

# By position, or by name; where single ones are changed also by position in a dict.
Args = Sequence[object] | Mapping[Any, object]

_SCALARS: dict[str, Any] = {
    "bool": np.bool_,
    "char": np.int8,
    "signed char": np.int8,
    "unsigned char": np.uint8,
    "int8_t": np.int8,
    "uint8_t": np.uint8,
    "short": np.int16,
    "unsigned short": np.uint16,
    "int16_t": np.int16,
    "uint16_t": np.uint16,
    "int": np.int32,
    "signed": np.int32,
    "unsigned": np.uint32,
    "unsigned int": np.uint32,
    "int32_t": np.int32,
    "uint32_t": np.uint32,
    "long": np.int64,
    "unsigned long": np.uint64,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    "int64_t": np.int64,
    "uint64_t": np.uint64,
    "size_t": np.uint64,
    "ptrdiff_t": np.int64,
    "float": np.float32,
    "double": np.float64,
    "__half": np.float16,
    "half": np.float16,
    "__nv_bfloat16": BFLOAT16,
    "nv_bfloat16": BFLOAT16,
    "intptr_t": np.int64,
    "uintptr_t": np.uint64,
    "cudaGraphConditionalHandle": np.uint64,
    "cudaSurfaceObject_t": np.uint64,
    "cudaTextureObject_t": np.uint64,
}

POINTER = np.dtype(np.uint64)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes:
        name: its name in the CUDA C signature, or ``arg<index>`` where none is known.
        offset: its place in the parameter block, in bytes.
        size: its size in bytes.
        dtype: NumPy dtype of a scalar or of what a pointer points at; None when unknown.
        pointer: True for a pointer, False for a value, None when unknown.
        const: whether a pointer's target is const, that is only read.
    """

    name: str
    offset: int
    size: int
    dtype: np.dtype[Any] | None = None
    pointer: bool | None = None
    const: bool = False

    def __str__(self) -> str:
        kind = self.dtype.name if self.dtype is not None else f"{self.size} bytes"
        star = "*" if self.pointer else ""
        return f"{'const ' if self.const else ''}{kind}{star} {self.name}"


# --- the CUDA C signature ------------------------------------------------------------------------

# Literals first: what looks like a comment in one is none.
_COMMENT = re.compile(r"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])')|//[^\n]*|/\*.*?\*/""", re.DOTALL)
_QUALIFIER = re.compile(
    r"\[\[.*?\]\]|\b(?:__restrict__|__restrict|restrict|__grid_constant__|volatile|struct|enum|"
    r"register)\b|\b(?:cuda::)?std::"
)
# The words that C spells integers with, in any order.
_INTEGER_WORDS = {"signed", "unsigned", "char", "short", "int", "long"}


def parse_signature(
    code: str, name: str | None = None, types: Mapping[str, Any] | None = None
) -> tuple[Parameter, ...]:
    """Read the parameters of a kernel from its CUDA C text.

    Args:
        code: a source file that defines ``__global__ ... name(...)``; without ``name`` just the
            text between the parentheses, such as ``"const float* x, int n"``.
        name: the kernel to look for.
        types: NumPy dtypes of structs that are passed by value, by their C name.

    Returns:
        The parameters with the offsets CUDA gives them: natural alignment, in order.

    Raises:
        ValueError: when there is no such kernel, or a type's size cannot be known.
    """
    text = _COMMENT.sub(lambda match: match[1] or " ", code)
    if name is not None:
        text = _parameter_list(text, name)
    where = name or "signature"
    declared = [part.strip() for part in _split(text)]
    if declared in ([""], ["void"]):
        return ()
    parameters: list[Parameter] = []
    end = 0
    for index, declaration in enumerate(declared):
        parameter = _parse_parameter(declaration, index, where, types or {})
        align = 8 if parameter.dtype is None or parameter.pointer else _alignment(parameter.dtype)
        offset = -(-end // align) * align
        end = offset + parameter.size
        parameters.append(
            Parameter(
                parameter.name,
                offset,
                parameter.size,
                parameter.dtype,
                parameter.pointer,
                parameter.const,
            )
        )
    names = [parameter.name for parameter in parameters]
    twice = {item for item in names if names.count(item) > 1}
    if twice:
        raise ValueError(f"{where}: expected distinct parameter names, came {sorted(twice)} twice")
    return tuple(parameters)


def _parameter_list(text: str, name: str) -> str:
    match = re.search(rf"__global__[^;{{]*?\b{re.escape(name)}\s*\(", text)
    if match is None:
        raise ValueError(f"code: expected a definition of `__global__ void {name}(...)`, came none")
    depth, start = 1, match.end()
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    raise ValueError(f"code: expected a closing parenthesis after `{name}(`, came the end")


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        depth += (char in "(<[") - (char in ")>]")
        if char == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return parts


def _parse_parameter(
    declaration: str, index: int, where: str, types: Mapping[str, Any]
) -> Parameter:
    text = _QUALIFIER.sub(" ", declaration).partition("=")[0]
    text, bracket, _ = re.sub("[()]", " ", text).partition("[")
    before, *after = text.split("*")
    pointer = bool(after) or bool(bracket)
    # Const is what the parameter itself points at: with `const T**` that is a pointer, not const.
    const = pointer and "const" in (after[-2] if len(after) > 1 else before).split()
    words = [word for word in before.split() if word != "const"]
    names = [word for word in after[-1].split() if word != "const"] if after else []
    if not after and len(words) > 1 and words[-1] not in _INTEGER_WORDS:
        names = [words.pop()]
    name = names[-1] if names else f"arg{index}"
    type_name = _spelling(words)
    declared = types.get(type_name, _SCALARS.get(type_name))
    if pointer:
        # A pointer to pointers, to void or to a struct: what it points at stays unchecked.
        opaque = declared is None or len(after) > 1
        return Parameter(name, 0, 8, None if opaque else np.dtype(declared), True, const)
    if declared is None:
        raise ValueError(
            f"{where}: cannot know the size of parameter {index} `{declaration.strip()}`; pass "
            f'types={{"{type_name}": <NumPy dtype>}}'
        )
    dtype = np.dtype(declared)
    return Parameter(name, 0, dtype.itemsize, dtype, False)


def _spelling(words: list[str]) -> str:
    """Return one spelling of a type: `long unsigned int` is `unsigned long`."""
    if len(words) < 2 or not _INTEGER_WORDS.issuperset(words):
        return " ".join(words)
    sign = ["unsigned"] if "unsigned" in words else []
    size = [word for word in words if word not in ("signed", "unsigned", "int")]
    return " ".join(sign + size) if size else " ".join([*sign, "int"])


def _alignment(dtype: np.dtype[Any]) -> int:
    """Return the alignment that C gives the type; a packed NumPy struct says 1."""
    if dtype.subdtype is not None:
        return _alignment(dtype.subdtype[0])
    if dtype.fields is None:
        return dtype.alignment
    return max((_alignment(field[0]) for field in dtype.fields.values()), default=1)


def opaque_parameters(runtime: Runtime, function: int) -> tuple[Parameter, ...]:
    """Return what the driver knows of a function's parameters: offsets and sizes.

    Calls cuFuncGetParamInfo once a parameter and once more for the end.
    """
    parameters: list[Parameter] = []
    while (info := runtime.func_get_param_info(function, len(parameters))) is not None:
        parameters.append(Parameter(f"arg{len(parameters)}", *info))
    return tuple(parameters)


# --- values --------------------------------------------------------------------------------------


def dim3(value: object, argument: str) -> Dim3:
    """Return grid or block extents as (x, y, z).

    Raises:
        TypeError: when it is neither an int nor a sequence of one to three.
        ValueError: when an extent is below 1, or more than CUDA allows.
    """
    if type(value) is int and 0 < value <= 1024:  # the usual case, first
        return value, 1, 1
    if isinstance(value, (int, np.integer)):
        extents: tuple[Any, ...] = (value,)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        extents = tuple(value)
    else:
        raise TypeError(f"{argument}: expected an int or 1 to 3 ints, came {value!r}")
    if not 1 <= len(extents) <= 3:
        raise ValueError(f"{argument}: expected 1 to 3 extents, came {value!r}")
    if not all(isinstance(extent, (int, np.integer)) for extent in extents):
        raise TypeError(f"{argument}: expected ints, came {value!r}")
    x, y, z = (*(int(extent) for extent in extents), 1, 1)[:3]
    # CUDA C Programming Guide, technical specifications: limits since compute capability 3.0.
    limits = (1024, 1024, 64) if argument == "block" else (2**31 - 1, 65535, 65535)
    if min(x, y, z) < 1 or x > limits[0] or y > limits[1] or z > limits[2]:
        raise ValueError(f"{argument}: expected extents of 1 to {limits}, came {value!r}")
    if argument == "block" and x * y * z > 1024:
        raise ValueError(f"block: expected at most 1024 threads, came {x * y * z} ({value!r})")
    return x, y, z


class Difference(NamedTuple):
    """One value that differs between two nodes."""

    what: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.what}: {self.old} -> {self.new}"


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

    def write(value: object) -> None:
        kind = type(value)
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
            raise TypeError(f"{name}: expected a {dtype} scalar, came {item.dtype} {value!r}")
        if not sized and not np.can_cast(item.dtype, dtype, "same_kind"):
            raise TypeError(f"{name}: expected a {dtype} scalar, came {kind.__name__} {value!r}")
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
                detail = f"unknown {unknown}" if unknown else f"missing {missing}"
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
