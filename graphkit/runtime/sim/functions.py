"""Kernels: what was loaded, the argument values of one launch, and what a twin sees of it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphkit.errors import SimulationError
from graphkit.runtime.protocol import Dim3, KernelSource
from graphkit.runtime.sim.conditions import Conditions
from graphkit.runtime.sim.memory import MemoryTable
from graphkit.runtime.sim.refusal import Code, Refused
from graphkit.runtime.sim.work import Work

__all__ = [
    "DEFAULT_SHARED_MEMORY",
    "MAX_SHARED_MEMORY",
    "MAX_THREADS",
    "ArgumentBlock",
    "SimFunction",
    "SimLaunch",
    "check_dimensions",
    "read_arguments",
]

MAX_THREADS = 1024
DEFAULT_SHARED_MEMORY = 48 << 10
MAX_SHARED_MEMORY = 227 << 10
_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_BLOCK = (1024, 1024, 64)

# CU_LAUNCH_PARAM_*: the tags of an ``extra`` list.
_EXTRA_END = 0
_EXTRA_POINTER = 1
_EXTRA_SIZE = 2


class SimFunction:
    """A loaded kernel."""

    __slots__ = ("handle", "max_dynamic_shared", "source")

    def __init__(self, handle: int, source: KernelSource) -> None:
        self.handle = handle
        self.source = source
        self.max_dynamic_shared = DEFAULT_SHARED_MEMORY

    @property
    def name(self) -> str:
        return self.source.name


def check_dimensions(
    function: SimFunction, grid: Dim3, block: Dim3, shared_mem: int, code: Code
) -> None:
    """Refuse a grid or block that the device cannot take (``code``), or too much shared memory."""
    for what, dims, limits in (("grid", grid, _MAX_GRID), ("block", block, _MAX_BLOCK)):
        if any(not 1 <= d <= limit for d, limit in zip(dims, limits, strict=True)):
            raise Refused(code, f"{what} {tuple(dims)} of {function.name!r}: 1 to {limits}")
    threads = block[0] * block[1] * block[2]
    if threads > MAX_THREADS:
        raise Refused(
            code, f"block {tuple(block)} of {function.name!r}: {threads} threads, at most 1024"
        )
    if not 0 <= shared_mem <= function.max_dynamic_shared:
        raise Refused(
            Code.INVALID_VALUE,
            f"{shared_mem} bytes of dynamic shared memory for {function.name!r}, which allows "
            f"{function.max_dynamic_shared}",
        )


def read_arguments(function: SimFunction, kernel_params: int, extra: int) -> tuple[bytes, ...]:
    """Copy the argument values out of a ``void*[]`` or an ``extra`` list.

    Raises:
        Refused: 1 when the kernel has parameters and neither is given, or both are.
    """
    layout = function.source.layout
    if kernel_params and extra:
        raise Refused(Code.INVALID_VALUE, "both kernel_params and extra are given")
    if kernel_params:
        pointers = (ctypes.c_void_p * len(layout)).from_address(kernel_params)
        for index, pointer in enumerate(pointers):
            if not pointer:
                raise Refused(
                    Code.INVALID_VALUE,
                    f"kernel_params[{index}] of {function.name!r} is a null pointer",
                )
        return tuple(
            ctypes.string_at(pointer, size)
            for pointer, (_, size) in zip(pointers, layout, strict=True)
            if pointer
        )
    if extra:
        block = _read_extra(extra)
        need = max((offset + size for offset, size in layout), default=0)
        if len(block) < need:
            raise Refused(
                Code.INVALID_VALUE,
                f"extra holds {len(block)} bytes, {function.name!r} needs {need}",
            )
        return tuple(block[offset : offset + size] for offset, size in layout)
    if layout:
        raise Refused(
            Code.INVALID_VALUE,
            f"{function.name!r} has {len(layout)} parameters; kernel_params and extra are null",
        )
    return ()


def _read_extra(address: int) -> bytes:
    word = ctypes.sizeof(ctypes.c_void_p)
    pointer = size_at = 0
    while True:
        tag = ctypes.c_void_p.from_address(address).value or 0
        if tag == _EXTRA_END:
            break
        value = ctypes.c_void_p.from_address(address + word).value or 0
        if tag == _EXTRA_POINTER:
            pointer = value
        elif tag == _EXTRA_SIZE:
            size_at = value
        else:
            raise Refused(Code.INVALID_VALUE, f"extra holds the unknown tag {tag}")
        address += 2 * word
    if not pointer or not size_at:
        raise Refused(Code.INVALID_VALUE, "extra names no buffer or no size")
    return ctypes.string_at(pointer, ctypes.c_size_t.from_address(size_at).value)


class ArgumentBlock:
    """Memory that a node owns and hands out when somebody asks for its parameters."""

    __slots__ = ("_keep", "extra", "kernel_params")

    def __init__(
        self, values: Sequence[bytes], layout: Sequence[tuple[int, int]], extra: bool
    ) -> None:
        need = max((offset + size for offset, size in layout), default=0)
        block = ctypes.create_string_buffer(max(need, 1))
        for value, (offset, size) in zip(values, layout, strict=True):
            ctypes.memmove(ctypes.addressof(block) + offset, value, size)
        self.kernel_params = self.extra = 0
        if extra:
            size_word = ctypes.c_size_t(need)
            entries = (
                _EXTRA_POINTER, ctypes.addressof(block), _EXTRA_SIZE, ctypes.addressof(size_word),
                _EXTRA_END,
            )  # fmt: skip
            pointers = (ctypes.c_void_p * len(entries))(*entries)
            self.extra = ctypes.addressof(pointers)
            self._keep: object = (block, size_word, pointers)
        else:
            addresses = [ctypes.addressof(block) + offset for offset, _ in layout]
            pointers = (ctypes.c_void_p * max(len(addresses), 1))(*addresses)
            self.kernel_params = ctypes.addressof(pointers) if addresses else 0
            self._keep = (block, pointers)


class SimLaunch:
    """One launch as its twin sees it; every view is an access that race detection knows."""

    __slots__ = (
        "_conditions", "_memory", "_who", "_work", "arguments", "block", "grid", "shared_mem",
    )  # fmt: skip

    def __init__(
        self,
        grid: Dim3,
        block: Dim3,
        shared_mem: int,
        arguments: tuple[bytes, ...],
        memory: MemoryTable,
        work: Work,
        who: str,
        conditions: Conditions | None = None,
    ) -> None:
        self.grid = grid
        self.block = block
        self.shared_mem = shared_mem
        self.arguments = arguments
        self._memory = memory
        self._work = work
        self._who = who
        self._conditions = conditions

    def memory(self, address: int, nbytes: int, *, write: bool) -> NDArray[np.uint8]:
        """View ``nbytes`` of device memory at ``address``; read-only unless ``write``.

        Raises:
            SimulationError: the bytes are freed, unknown, pageable, or out of bounds.
        """
        if nbytes < 0:
            raise ValueError(f"nbytes: expected at least 0, came {nbytes}")
        if nbytes == 0:
            return np.empty(0, dtype=np.uint8)
        view = self._memory.device_view(address, nbytes, self._who)
        if not write:
            view = view.view()
            view.flags.writeable = False
        self._work.accesses.append((address, address + nbytes, write))
        return view

    def set_conditional(self, handle: int, value: int) -> None:
        """Do what cudaGraphSetConditional does.

        Raises:
            SimulationError: the handle belongs to no conditional node of the graph that runs.
        """
        if self._conditions is None:
            raise SimulationError(
                f"{self._who} sets the condition {handle:#x} outside of a graph with that handle"
            )
        self._conditions.set(handle, value, self._work, self._who)
