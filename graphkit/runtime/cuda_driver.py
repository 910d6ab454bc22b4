"""The driver library by ctypes, where cuda.bindings loses something. Imports no CUDA package.

Three calls. cuDriverGetVersion, because it must answer when cuda-bindings is missing or too new for
the driver. cuGraphExecUpdate_v2, because both modules of cuda.bindings drop the report of a refusal
(they return ``(910, None)``). cuLaunchHostFunc, because cuda.bindings wraps the callback in a block
of its own that it frees after the first run, and a captured host node runs once per launch.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Final

from graphkit.runtime.protocol import ExecUpdateResultInfo, ExecUpdateStatus, HostNodeParams

__all__ = [
    "LIBRARY_NAME",
    "NO_DRIVER",
    "driver_version",
    "exec_update",
    "install_command",
    "launch_host_func",
    "library",
]

LIBRARY_NAME: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# The reason and the fix of a RuntimeUnavailableError.
NO_DRIVER: Final = (
    f"no NVIDIA driver: {LIBRARY_NAME} cannot be loaded",
    "Install the driver, or in a container start it with the GPUs (docker run --gpus all)",
)


class _ExecUpdateResult(ctypes.Structure):
    """CUgraphExecUpdateResultInfo."""

    _fields_ = (
        ("result", ctypes.c_int),
        ("error_node", ctypes.c_void_p),
        ("error_from_node", ctypes.c_void_p),
    )


@cache
def library() -> ctypes.CDLL:
    """Load the driver library; OSError when no NVIDIA driver is installed.

    A CDLL, so that Python's lock is released meanwhile: host nodes may need it to finish.
    """
    return ctypes.CDLL(LIBRARY_NAME)


def driver_version() -> int | None:
    """cuDriverGetVersion: the newest CUDA version that the driver supports; None without driver."""
    version = ctypes.c_int()
    try:
        status = library().cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value if status == 0 else None


def install_command(supported: int | None) -> str:
    """Return what installs the packages for a driver, in a checkout: nothing is released."""
    if supported is None:
        return "pip install -e '.[cu13]' or '.[cu12]', whichever fits the driver, in the checkout"
    # An extra newer than the driver would install, and then find the driver too old.
    return f"pip install -e '.[cu{13 if supported >= 13000 else 12}]' in the checkout"


def exec_update(exec_: int, graph: int) -> tuple[int, ExecUpdateResultInfo]:
    """cuGraphExecUpdate_v2: return the status and what CUDA says about it."""
    info = _ExecUpdateResult()
    status: int = library().cuGraphExecUpdate_v2(
        ctypes.c_void_p(exec_), ctypes.c_void_p(graph), ctypes.byref(info)
    )
    return status, ExecUpdateResultInfo(
        ExecUpdateStatus(info.result), info.error_node or 0, info.error_from_node or 0
    )


def launch_host_func(stream: int, params: HostNodeParams) -> int:
    """cuLaunchHostFunc: return the status."""
    status: int = library().cuLaunchHostFunc(
        ctypes.c_void_p(stream), ctypes.c_void_p(params.fn), ctypes.c_void_p(params.user_data)
    )
    return status
