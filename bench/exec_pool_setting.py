"""What bench/exec_pool.py's contenders share: the runtime, one stream, the functions they capture.

Every function is a chain of elementwise kernels that each add 1, so that the result says how many
ran. graphkit's own is of a kernel with a twin, which lets the simulator verify what will be timed;
CuPy's and PyTorch's are of their in-place additions. Each has as many kernel nodes as asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from measure import Contender
from numpy.typing import NDArray

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.copying import host_copy
from graphkit.exec_pool import ExecPool
from graphkit.frameworks import PrivateMemory, current_stream
from graphkit.params import ArgumentBlock
from graphkit.runtime.protocol import KernelNodeParams
from graphkit.user_function import UserFunction

OWN = "graphkit"
COLUMNS = 256  # floats of a row
THREADS = 256  # of a block

_ADD_ONE = r"""
extern "C" __global__ void add_one(const float* x, float* y, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        y[i] = x[i] + 1.0f;
    }
}
"""


def _add_one(launch: gk.Launch, x: gk.Pointer, y: gk.Pointer, n: int) -> None:
    y.view(n)[:] = x.view(n) + np.float32(1)


ADD_ONE = gk.Kernel(_ADD_ONE, "add_one", twin=_add_one)


class UnavailableError(Exception):
    """A contender cannot take part; the message says why."""


class WrongResultError(Exception):
    """A contender did something else than what is to be timed."""


@dataclass
class Entry:
    """A contender, and what raises :class:`WrongResultError` when it does not do as it should."""

    contender: Contender
    verify: Callable[[], None]


class Setting:
    """The runtime, the stream that all launch on, and the array libraries that are there.

    PyTorch is imported before CuPy: behind CuPy and NVRTC it cannot parse its own operators'
    schemas any more (PyTorch 2.11, CuPy 14.2).

    Args:
        runtime: ``"cuda"``, or ``"sim"`` to verify without timing.
        libraries: which of ``"torch"`` and ``"cupy"`` to import.

    Attributes:
        modules: the libraries by name.
        absent: why a library is not among them.
        cleanup: closes what a case made.
    """

    def __init__(self, runtime: str, libraries: Sequence[str] = ("torch", "cupy")) -> None:
        self.modules: dict[str, Any] = {}
        self.absent: dict[str, str] = {}
        self.cleanup = ExitStack()
        if runtime == "cuda":
            for name in libraries:
                self._import(name)
        try:
            self.runtime = gk.use(runtime)
        except gk.RuntimeUnavailableError as error:
            raise UnavailableError(str(error)) from error
        self.simulated = runtime == "sim"
        self.stream = gk.Stream()
        torch = self.modules.get("torch")
        if torch is not None:
            # replay() launches on the current stream: the one that everybody here uses.
            torch.cuda.set_stream(torch.cuda.ExternalStream(self.stream.ptr))
            torch.set_grad_enabled(False)

    def _import(self, name: str) -> None:
        try:
            module = importlib.import_module(name)
            if name == "torch":
                module.cuda.init()
        except Exception as error:
            self.absent[name] = f"{type(error).__name__}: {error}"
        else:
            self.modules[name] = module

    def library(self, name: str) -> Any:
        """Return the module ``torch`` or ``cupy``.

        Raises:
            UnavailableError: when it is not there.
        """
        if name not in self.modules:
            raise UnavailableError(self.absent.get(name, "needs a device"))
        return self.modules[name]

    def array(self, library: str, host: NDArray[np.float32]) -> Any:
        """Return a library's array with a copy of values on the host."""
        if library == OWN:
            return gk.asarray(host)
        module = self.library(library)
        array = module.asarray(host) if library == "cupy" else module.from_numpy(host).cuda()
        self.runtime.device_synchronize()  # it may have come on another stream than ours
        return array

    def chain(self, library: str, nodes: int, most: int) -> Callable[..., Any]:
        """Return a library's chain: a function of ``x`` that returns ``x + nodes``.

        Args:
            library: ``"graphkit"``, ``"cupy"`` or ``"torch"``.
            nodes: kernels that it launches.
            most: floats of the largest ``x``; only graphkit's allocates its memory beforehand.
        """
        if library == OWN:
            return Chain(nodes, most)
        self.library(library)

        # Both libraries round a Python float to the array's dtype, and add in place by `+=`.
        def chain(x: Any) -> Any:
            y = x + 1.0
            for _ in range(nodes - 1):
                y += 1.0
            return y

        return chain

    def nodes_of(self, chain: Callable[..., Any], x: Any) -> int:
        """Return how many nodes a chain is when a pool captures it."""
        fn, memory = UserFunction(chain), PrivateMemory()
        fn({"x": x}, self.stream)  # libraries compile and keep things at first
        with memory.allocating(), current_stream(self.stream), gk.capture(self.stream) as graph:
            fn({"x": x}, self.stream)
        try:
            return len(graph.nodes)
        finally:
            graph.close()
            memory.close()

    def free_bytes(self) -> int:
        """Return the device memory that is free once all work is done (cudaMemGetInfo)."""
        self.runtime.device_synchronize()
        return self.runtime.mem_get_info()[0]


class Chain:
    """A line of kernels of graphkit's own: returns ``x + nodes`` in memory that it keeps."""

    def __init__(self, nodes: int, most: int) -> None:
        self.nodes = nodes
        self.memory = gk.empty(most)

    def __call__(self, x: Any, stream: object) -> gk.DeviceArray:
        """Launch the kernels on a stream."""
        y = self.memory.view(x.shape, np.float32)
        source = x
        for _ in range(self.nodes):
            add_one(source, y, stream)
            source = y
        return y


def add_one(x: Any, y: gk.DeviceArray, stream: object) -> None:
    """Launch one kernel: y = x + 1."""
    ADD_ONE(-(-y.size // THREADS), THREADS, (x, y, y.size), stream=stream)


class NodeSetter:
    """One :data:`ADD_ONE` node of an exec, set to arguments that it keeps packed.

    Attributes:
        commit: sets the node (cuGraphExecKernelNodeSetParams), prebound.
        word: where the address of ``x`` stands; written before ``commit``.
    """

    def __init__(self, exe: gk.GraphExec, node: gk.Node, x: Any, y: gk.DeviceArray, n: int) -> None:
        self._block = ArgumentBlock(ADD_ONE.parameters)
        self._owners = self._block.pack((x, y, n)), exe
        self.word = self._block.cells[0]
        function, grid = ADD_ONE.function(exe.runtime), (-(-n // THREADS), 1, 1)
        table = self._block.kernel_params
        params = KernelNodeParams(function, grid, (THREADS, 1, 1), 0, table)
        self.commit = exe.runtime.kernel_node_setter(exe.ptr, node.ptr, params)


def new_pool(setting: Setting, fn: Callable[..., Any], sizes: Buckets, **options: Any) -> ExecPool:
    """Return a pool for a function of ``x``, on the stream of all, that never answers eagerly."""
    return ExecPool(fn, {"x": sizes}, strict=True, stream=setting.stream, **options)


def host_inputs(extents: Sequence[int], columns: int = COLUMNS) -> Iterator[NDArray[np.float32]]:
    """Yield arrays of whole numbers, which additions of 1 keep exact, all of them different."""
    random = np.random.default_rng(0)
    for extent in extents:
        yield random.integers(0, 1000, (extent, columns)).astype(np.float32)


def check(name: str, result: object, expected: NDArray[Any]) -> None:
    """Compare anybody's array with what it must be, after all work on the device.

    Raises:
        WrongResultError: when shape or values differ.
    """
    found = host_copy(result)
    if found.shape != expected.shape:
        raise WrongResultError(f"{name}: expected shape {expected.shape}, came {found.shape}")
    wrong = int(np.count_nonzero(found != expected))
    if wrong:
        raise WrongResultError(f"{name}: {wrong} of {expected.size} values are wrong")
