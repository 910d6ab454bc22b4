"""What the contenders of bench/launch_overhead.py share: one device, stream, kernel, two counters.

Every library makes lines of one-thread kernel nodes, each node after the one before. The kernel
adds ``step`` to a counter; timed graphs have ``step`` 0 and touch nothing, verified ones count.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from measure import Contender, PythonCall

SOURCE = """
extern "C" __global__ void visit(int* seen, int step) {
    if (step) {
        seen[0] += step;
    }
}
"""
NAME = "visit"
BURST = 50

FLOOR = "C"
OWN = "graphkit"


class UnavailableError(Exception):
    """A contender cannot take part; the message says why."""


@dataclass
class Entry:
    """A contender and, where its call launches nothing itself, what launches the graph it changed.

    ``launch`` is for verification only.
    """

    contender: Contender
    launch: Callable[[], object] | None = None


def checked(answer: tuple[Any, ...]) -> Any:
    """Return the value of a cuda.bindings answer, raise when its status is not 0."""
    if int(answer[0]) != 0:
        raise RuntimeError(f"CUDA answered {answer[0]!r}")
    return answer[1] if len(answer) == 2 else answer[1:] or None


class PackedArguments:
    """The kernel's two arguments and the ``void*[]`` over them, in memory that can be rewritten."""

    def __init__(self, pointer: int, step: int) -> None:
        self._pointer = (ctypes.c_uint64 * 1)(pointer)
        self._step = (ctypes.c_int32 * 1)(step)
        self._table = (ctypes.c_void_p * 2)(
            ctypes.addressof(self._pointer), ctypes.addressof(self._step)
        )
        # ctypes calls its formats '<Q' and '<i', which a memoryview will not assign to.
        self.pointer = memoryview(self._pointer).cast("B").cast("Q")
        self.step = memoryview(self._step).cast("B").cast("i")
        self.address = ctypes.addressof(self._table)


@dataclass(frozen=True)
class SharedStream:
    """The stream that all contenders launch on, for those who ask by protocol."""

    ptr: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr


class Setting:
    """What all contenders share: the device, the stream, two counters, the compiled kernel.

    ``graphkit`` is the module, or None with ``graphkit_absent`` saying why.

    Args:
        source: CUDA C, compiled into ``module``.
        name: the kernel in it that is ``function``.
    """

    def __init__(self, source: str = SOURCE, name: str = NAME) -> None:
        try:
            self.runtime = importlib.import_module("cuda.bindings.runtime")
            self.driver = importlib.import_module("cuda.bindings.driver")
            # The first call that needs a device makes the primary context that all share.
            checked(self.runtime.cudaFree(0))
        except (ImportError, RuntimeError) as error:
            raise UnavailableError(f"cuda.bindings and a CUDA device: {error}") from error
        device = checked(self.runtime.cudaGetDevice())
        self.properties = checked(self.runtime.cudaGetDeviceProperties(device))
        self.arch = f"sm_{self.properties.major}{self.properties.minor}"
        self.cubin = self._compile(source)
        image = np.frombuffer(self.cubin, np.uint8)
        self.module = checked(self.driver.cuModuleLoadData(image.ctypes.data))
        self.function = int(checked(self.driver.cuModuleGetFunction(self.module, name.encode())))
        self.cleanup = ExitStack()
        self.graphkit: Any = None
        self.graphkit_absent = ""
        try:
            self.graphkit = importlib.import_module("graphkit")
            self.graphkit.use("cuda")
            self.own_stream = self.graphkit.Stream()
            self.own_arrays = [self.graphkit.zeros((1,), np.int32) for _ in range(2)]
            self.stream = int(self.own_stream.ptr)
            self.counters = [int(array.ptr) for array in self.own_arrays]
        except Exception as error:
            self.graphkit, self.graphkit_absent = None, f"{type(error).__name__}: {error}"
            non_blocking = self.runtime.cudaStreamNonBlocking
            self.stream = int(checked(self.runtime.cudaStreamCreateWithFlags(non_blocking)))
            self.counters = [int(checked(self.runtime.cudaMalloc(4))) for _ in range(2)]
        self.stream_handle = self.runtime.cudaStream_t(self.stream)

    def _compile(self, source: str) -> bytes:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        program = checked(nvrtc.nvrtcCreateProgram(source.encode(), b"bench.cu", 0, [], []))
        options = [f"--gpu-architecture={self.arch}".encode()]
        checked(nvrtc.nvrtcCompileProgram(program, len(options), options))
        image = bytes(checked(nvrtc.nvrtcGetCUBINSize(program)))
        checked(nvrtc.nvrtcGetCUBIN(program, image))
        return image

    def synchronize(self) -> None:
        """Wait for the stream, and raise what went wrong on it."""
        checked(self.runtime.cudaStreamSynchronize(self.stream_handle))

    def zero(self) -> None:
        """Set both counters to 0."""
        for counter in self.counters:
            checked(self.runtime.cudaMemset(counter, 0, 4))
        # A memset may return before it is done, and the stream does not wait for the null stream.
        checked(self.runtime.cudaDeviceSynchronize())

    def read(self) -> tuple[int, int]:
        """Return both counters, after all work on the stream."""
        self.synchronize()
        seen = np.empty(2, np.int32)
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for index, counter in enumerate(self.counters):
            target = seen[index:].ctypes.data
            checked(self.runtime.cudaMemcpy(target, counter, 4, kind))
        return int(seen[0]), int(seen[1])

    def python_call(
        self, name: str, statement: str, names: dict[str, Any], *, burst: int = 1
    ) -> PythonCall:
        """Return a launch call: synchronize untimed, then the statement ``burst`` times."""
        sync = {
            "synchronize": self.runtime.cudaStreamSynchronize,
            "timed_stream": self.stream_handle,
        }
        if burst > 1:
            statement = f"for _ in range({burst}): {statement}"
        return PythonCall(
            name,
            statement,
            {**names, **sync},
            before="synchronize(timed_stream)",
            divide=burst,
        )


class Library:
    """One library's side of every case; a case it has no call for stays empty.

    Attributes:
        name: as the tables and the list of the absent show it.
    """

    name = ""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def launches(self, nodes: int, step: int, burst: int) -> list[Entry]:
        """Launch an executable graph of ``nodes``."""
        return []

    def builds(self, nodes: int, kept: bool) -> list[Entry]:
        """Add ``nodes`` kernel nodes to an empty graph; a sample is one node's share.

        ``kept`` graphs stay alive, so that the next one needs fresh memory; the others are
        destroyed, untimed, and the next one is built in what they leave.
        """
        return []

    def instantiates(self, nodes: int, step: int) -> list[Entry]:
        """Instantiate a graph of ``nodes``."""
        return []

    def uploads(self, nodes: int, step: int) -> list[Entry]:
        """Upload a fresh executable graph, launched once afterwards."""
        return []

    def first_launches(self, nodes: int, step: int) -> list[Entry]:
        """Launch a fresh executable graph that nobody uploaded."""
        return []

    def scalar_sets(self, nodes: int) -> list[Entry]:
        """Set ``step`` of node ``i % nodes`` to ``i``, in a line with step 0."""
        return []

    def array_sets(self, nodes: int) -> list[Entry]:
        """Set ``seen`` of node ``i % nodes`` to counter ``i & 1``, in a line with step 1."""
        return []

    def updates(self, nodes: int, steps: tuple[int, int]) -> list[Entry]:
        """Update an exec to a line with the first of the steps (even ``i``) or the second (odd)."""
        return []
