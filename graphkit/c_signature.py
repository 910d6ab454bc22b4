"""The parameters of a kernel: names, types and places, read from its CUDA C signature."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphkit.device_array import BFLOAT16
from graphkit.runtime.protocol import Runtime

__all__ = ["Parameter", "opaque_parameters", "parse_signature"]

_CONDITION = "cudaGraphConditionalHandle"

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
    _CONDITION: np.uint64,
    "cudaSurfaceObject_t": np.uint64,
    "cudaTextureObject_t": np.uint64,
}


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
        condition: whether it is a condition that the kernel sets, a cudaGraphConditionalHandle.
    """

    name: str
    offset: int
    size: int
    dtype: np.dtype[Any] | None = None
    pointer: bool | None = None
    const: bool = False
    condition: bool = False

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
        parameters.append(replace(parameter, offset=offset))
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
    return Parameter(name, 0, dtype.itemsize, dtype, False, condition=type_name == _CONDITION)


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
