"""What a piece of work does when it runs: copies, fills, host functions and twins."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from graphkit.errors import NotSimulated
from graphkit.runtime.protocol import HostNodeParams, MemcpyNodeParams, MemsetNodeParams
from graphkit.runtime.sim.conditions import Conditions
from graphkit.runtime.sim.functions import SimLaunch
from graphkit.runtime.sim.memory import MemoryTable
from graphkit.runtime.sim.model import KernelValues
from graphkit.runtime.sim.work import Work

__all__ = ["Action", "copy_action", "fill_action", "host_action", "kernel_action"]

Action = Callable[[Work], None]

_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def copy_action(
    memory: MemoryTable,
    params: MemcpyNodeParams,
    who: str,
    staged: NDArray[np.uint8] | None = None,
) -> Action:
    """Copy rows of bytes; what a pitch leaves out is not touched.

    With ``staged``, the source is that copy of what was at ``params.src``.
    """

    def run(work: Work) -> None:
        width = params.width
        for slice_ in range(params.depth):
            for row in range(params.height):
                src = params.src + (slice_ * params.src_height + row) * params.src_pitch
                dst = params.dst + (slice_ * params.dst_height + row) * params.dst_pitch
                target = memory.any_view(dst, width, who)
                if staged is None:
                    source = memory.any_view(src, width, who)
                    work.accesses.append((src, src + width, False))
                else:
                    source = staged[src - params.src : src - params.src + width]
                work.accesses.append((dst, dst + width, True))
                target[:] = source

    return run


def fill_action(memory: MemoryTable, params: MemsetNodeParams, who: str) -> Action:
    """Repeat a value of 1, 2 or 4 bytes."""
    dtype = {1: np.uint8, 2: np.uint16, 4: np.uint32}[params.element_size]

    def run(work: Work) -> None:
        width = params.width * params.element_size
        for row in range(params.height):
            start = params.dst + row * params.pitch
            view = memory.device_view(start, width, who)
            work.accesses.append((start, start + width, True))
            view.view(dtype)[:] = params.value & (256**params.element_size - 1)

    return run


def host_action(params: HostNodeParams) -> Action:
    """Call a C function on the host."""

    def run(_work: Work) -> None:
        _HOST_FUNCTION(params.fn)(params.user_data)

    return run


def kernel_action(
    memory: MemoryTable, values: KernelValues, who: str, conditions: Conditions | None = None
) -> Action:
    """Run a kernel's twin; inside of a graph it may set ``conditions``."""
    twin = values.function.source.twin
    if twin is None:
        raise NotSimulated(
            f"kernel {values.function.name!r} has no twin: give graphkit.Kernel one, or run it on "
            "a device"
        )

    def run(work: Work) -> None:
        twin(
            SimLaunch(
                values.grid,
                values.block,
                values.shared_mem,
                values.arguments,
                memory,
                work,
                who,
                conditions,
            )
        )

    return run
