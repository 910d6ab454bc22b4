"""What the kernels of this folder have in common on the host: their source, checks, launches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from math import inf, prod, sqrt
from numbers import Real
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from graphkit.arrays import device_pointer
from graphkit.device_array import BFLOAT16
from graphkit.graph import Graph
from graphkit.kernel import Kernel
from graphkit.node import Node
from graphkit.runtime.protocol import Dim3

__all__ = ["KernelLaunch"]

WARP = 32
NULL = 0  # the address of an array that is left out
FLOAT32_MAX = float(np.finfo(np.float32).max)
# An H200's; on another device a launch has a few blocks more or fewer for each multiprocessor.
MULTIPROCESSORS = 132
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"\n', re.MULTILINE)

_T = TypeVar("_T")


class KernelLaunch(NamedTuple):
    """A kernel with everything that a launch or a kernel node of it needs.

    Attributes:
        kernel: the kernel.
        grid: blocks along x, y, z.
        block: threads of a block along x, y, z.
        args: the arguments by position.
        shared_mem: dynamic shared memory of a block in bytes.
        cluster: blocks of a cluster along x, y, z; None for none.
    """

    kernel: Kernel
    grid: Dim3
    block: Dim3
    args: tuple[object, ...]
    shared_mem: int = 0
    cluster: Dim3 | None = None

    def launch(self, stream: object, *, programmatic: bool = False) -> None:
        """Launch the kernel on a stream, which may capture (cuLaunchKernelEx).

        Args:
            stream: any framework's stream.
            programmatic: whether a kernel that waits for itself may start before the one ahead of
                it has ended; a capture makes a programmatic edge of that.
        """
        self.kernel(
            self.grid,
            self.block,
            self.args,
            stream=stream,
            shared_mem=self.shared_mem,
            cluster=self.cluster,
            programmatic=programmatic,
        )

    def add_to(self, graph: Graph, deps: Node | Iterable[Node] = ()) -> Node:
        """Add a kernel node to a graph, behind ``deps`` (cudaGraphAddKernelNode)."""
        return graph.add_kernel_node(
            self.kernel,
            self.grid,
            self.block,
            self.args,
            deps=deps,
            shared_mem=self.shared_mem,
            cluster=self.cluster,
        )


@cache
def source(stem: str, package: str = __package__) -> str:
    """Return the CUDA C++ source of a kernel, each header of its folder in it once.

    NVRTC is given one text and no include path.

    Args:
        stem: its file's name, less ``.cu``.
        package: the folder; this one by default.
    """
    seen: set[str] = set()

    def text(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        written = (files(package) / name).read_text(encoding="utf-8")
        return _INCLUDE.sub(lambda include: text(include[1]), written)

    return text(f"{stem}.cu")


def check(
    argument: str,
    array: object,
    expected: Sequence[int | str] | None = None,
    dtype: DTypeLike = np.float32,
    *,
    merge: bool = False,
) -> tuple[int, ...]:
    """Check an array in device memory and return its shape.

    Args:
        argument: what to call the array in an error message.
        array: an array of any library.
        expected: its shape. A name stands for any extent of 1 or more; None for any shape.
        dtype: its element type.
        merge: whether axes beyond those of ``expected`` are counted into the last one, so that
            ``[batch, heads, head_dim]`` serves as ``[batch, width]``.

    Raises:
        TypeError: when it is no array, or one on the host.
        ValueError: when shape, dtype or layout are not as expected.
    """
    info = device_pointer(array, argument)
    if info.dtype != np.dtype(dtype):
        raise ValueError(f"{argument}: expected dtype {np.dtype(dtype)}, came {info.dtype}")
    shape = info.shape
    if expected is not None:
        if merge and len(shape) > len(expected):
            last = len(expected) - 1
            shape = (*shape[:last], prod(shape[last:]))
        if len(shape) != len(expected) or any(
            extent != wanted
            for extent, wanted in zip(shape, expected, strict=True)
            if not isinstance(wanted, str)
        ):
            wanted = ", ".join(map(str, expected))
            raise ValueError(f"{argument}: expected shape ({wanted}), came {info.shape}")
    if not all(0 < extent < 2**31 for extent in shape):
        raise ValueError(f"{argument}: expected extents of 1 to 2**31 - 1, came {info.shape}")
    if not info.contiguous:
        raise ValueError(f"{argument}: expected C order without gaps, came strides {info.strides}")
    if info.ptr % info.dtype.itemsize:
        raise ValueError(
            f"{argument}: expected an address that is a multiple of {info.dtype.itemsize}, came "
            f"{info.ptr:#x}"
        )
    return shape


def aligned(
    argument: str,
    array: object,
    expected: Sequence[int | str] | None = None,
    dtype: DTypeLike = BFLOAT16,
    *,
    merge: bool = False,
) -> tuple[int, ...]:
    """Check an array as :func:`check` does, and that it starts on a 16-byte boundary.

    Raises:
        TypeError: when it is no array, or one on the host.
        ValueError: when shape, dtype, layout or address are not as expected.
    """
    shape = check(argument, array, expected, dtype, merge=merge)
    address = device_pointer(array, argument).ptr
    if address % 16:
        raise ValueError(f"{argument}: expected a 16-byte boundary, came address {address:#x}")
    return shape


def integer(argument: str, value: object, within: tuple[int, int] | None = None) -> int:
    """Return an int, NumPy's among them, as Python's.

    Args:
        argument: what to call it in an error message.
        value: the value.
        within: the least and the most that it may be; None for any.

    Raises:
        TypeError: when it is none; True and False are not.
        ValueError: when it is out of bounds.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{argument}: expected an int, came {type(value).__name__}")
    if within is not None and not within[0] <= value <= within[1]:
        raise ValueError(f"{argument}: expected {within[0]} to {within[1]}, came {value}")
    return int(value)


def number(argument: str, value: object, *, above: float | None = None) -> float:
    """Return a number that float32 can hold, NumPy's among them, as Python's.

    Args:
        argument: what to call it in an error message.
        value: the value.
        above: what it must be greater than, in float32; None for any.

    Raises:
        TypeError: when it is none; True and False are not.
        ValueError: when it is not finite, or not above ``above``.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{argument}: expected a number, came {type(value).__name__}")
    try:
        wide = float(value)
    except OverflowError:  # an int of hundreds of digits
        wide = inf
    finite = abs(wide) <= FLOAT32_MAX
    if not finite or (above is not None and not np.float32(wide) > above):
        wanted = "a finite number" if above is None else f"a finite number above {above:g}"
        raise ValueError(f"{argument}: expected {wanted} in float32, came {value}")
    return wide


def epsilon(eps: object) -> float:
    """Return what a norm adds to a mean square: without it a row of zeros is divided by zero.

    Raises:
        TypeError: when it is no number.
        ValueError: when float32 holds it as 0, or not at all.
    """
    return number("eps", eps, above=0.0)


def score_factor(scale: object | None, head_dim: int) -> float:
    """Return the factor of attention's scores; ``1 / sqrt(head_dim)`` by default.

    Raises:
        TypeError: when it is no number.
        ValueError: when it is not finite.
    """
    return 1 / sqrt(head_dim) if scale is None else number("scale", scale)


def instance(argument: str, value: _T, kind: type) -> _T:
    """Return a value that must be of a type.

    Raises:
        TypeError: when it is not.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOaeio" else "a"
        raise TypeError(
            f"{argument}: expected {article} {kind.__name__}, came {type(value).__name__}"
        )
    return value


def batch_of(slots: object | None, slot_count: int) -> int:
    """Return the number of sequences: of ``slots``, or one for each row of the caches."""
    return slot_count if slots is None else check("slots", slots, ("batch",), np.int32)[0]


def size(argument: str, shape: Sequence[int]) -> int:
    """Return the number of elements, which a kernel takes as an int."""
    elements = prod(shape)
    if elements >= 2**31:
        raise ValueError(f"{argument}: expected fewer than 2**31 elements, came {elements}")
    return elements


def choose(argument: str, kernels: dict[Any, Kernel], array: object) -> tuple[Any, Kernel]:
    """Return the dtype of an array, and the kernel that is for it."""
    dtype = device_pointer(array, argument).dtype
    if dtype not in kernels:
        names = " or ".join(map(str, kernels))
        raise ValueError(f"{argument}: expected dtype {names}, came {dtype}")
    return dtype, kernels[dtype]


def threads(width: int, most: int = 1024) -> int:
    """Return threads of a block for one row: whole warps, no more than the row can use."""
    return min(-(-width // WARP) * WARP, most)


def elementwise(kernel: Kernel, args: tuple[object, ...], elements: int) -> KernelLaunch:
    """Return the launch of a kernel that has one thread an element."""
    return KernelLaunch(kernel, (-(-elements // 256), 1, 1), (256, 1, 1), (*args, elements))
