"""The seam without anything above it: raw handles, made and destroyed by one fixture."""

from __future__ import annotations

import ctypes
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from graphkit.errors import CudaError
from graphkit.runtime.protocol import (
    CaptureMode,
    CaptureStatus,
    Edge,
    EdgeData,
    EventFlags,
    HostNodeParams,
    InstantiateFlags,
    KernelNodeParams,
    KernelSource,
    LaunchConfig,
    MemcpyKind,
    MemcpyNodeParams,
    MemsetNodeParams,
    Runtime,
    StreamFlags,
)
from graphkit.runtime.sim import SimOptions, SimRuntime

N = 64  # elements of the arrays in these tests

HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _fill(launch: Any) -> None:
    (y,), (value,), (n,) = (
        struct.unpack(f, a) for f, a in zip("Qfi", launch.arguments, strict=True)
    )
    launch.memory(y, 4 * n, write=True).view(np.float32)[:] = value


def _axpy(launch: Any) -> None:
    (y,), (x,), (a,), (n,) = (
        struct.unpack(f, raw) for f, raw in zip("QQfi", launch.arguments, strict=True)
    )
    launch.memory(y, 4 * n, write=True).view(np.float32)[:] += np.float32(a) * launch.memory(
        x, 4 * n, write=False
    ).view(np.float32)


def _shape(launch: Any) -> None:
    (y,) = struct.unpack("Q", launch.arguments[0])
    launch.memory(y, 24, write=True).view(np.int32)[:] = (*launch.grid, *launch.block)


def _nothing(launch: Any) -> None:
    assert launch.arguments == ()


_STRIDE = "for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)"

SOURCES = {
    "fill": KernelSource(
        'extern "C" __global__ void fill(float* y, float value, int n) {'
        f" {_STRIDE} y[i] = value; }}",
        "fill",
        (),
        ((0, 8), (8, 4), (12, 4)),
        _fill,
    ),
    "axpy": KernelSource(
        'extern "C" __global__ void axpy(float* y, const float* x, float a, int n) {'
        f" {_STRIDE} y[i] += a * x[i]; }}",
        "axpy",
        (),
        ((0, 8), (8, 8), (16, 4), (20, 4)),
        _axpy,
    ),
    "shape": KernelSource(
        """extern "C" __global__ void shape(int* y) {
            if (blockIdx.x + threadIdx.x) return;
            y[0] = gridDim.x; y[1] = gridDim.y; y[2] = gridDim.z;
            y[3] = blockDim.x; y[4] = blockDim.y; y[5] = blockDim.z; }""",
        "shape",
        (),
        ((0, 8),),
        _shape,
    ),
    "nothing": KernelSource('extern "C" __global__ void nothing() {}', "nothing", (), (), _nothing),
}

# Compiled once for a device; a simulator is new in every test.
_loaded: weakref.WeakKeyDictionary[Runtime, dict[str, Any]] = weakref.WeakKeyDictionary()
_launched: weakref.WeakSet[Runtime] = weakref.WeakSet()  # each of them


class Arguments:
    """Argument values and the ``void*[]`` that points at them."""

    def __init__(self, *values: Any) -> None:
        self.values = values
        pointers = [ctypes.addressof(value) for value in values]
        self.block = (ctypes.c_void_p * max(len(values), 1))(*pointers)
        self.address = ctypes.addressof(self.block) if values else 0


class Made:
    """Make handles for a test and destroy what it leaves."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._streams: list[int] = []
        self._destroy: dict[tuple[str, int], Callable[[int], None]] = {}
        self._keep: list[Any] = []
        self._gates: list[threading.Event] = []
        self._given_up: list[threading.Event] = []  # gates that waited in vain

    # --- handles

    def own(self, kind: str, handle: int, destroy: Callable[[int], None]) -> int:
        self._destroy[kind, handle] = destroy
        return handle

    def destroy(self, kind: str, handle: int) -> None:
        self._destroy[kind, handle](handle)
        del self._destroy[kind, handle]

    def stream(self, flags: StreamFlags = StreamFlags.NON_BLOCKING, priority: int = 0) -> int:
        made = self.runtime.stream_create_with_priority(flags, priority)
        self._streams.append(made)
        return self.own("stream", made, self.runtime.stream_destroy)

    def blocking_stream(self) -> int:
        return self.stream(StreamFlags.DEFAULT)

    def event(self, flags: EventFlags = EventFlags.DISABLE_TIMING) -> int:
        return self.own(
            "event", self.runtime.event_create_with_flags(flags), self.runtime.event_destroy
        )

    def graph(self, handle: int | None = None) -> int:
        made = self.runtime.graph_create() if handle is None else handle
        return self.own("graph", made, self.runtime.graph_destroy)

    def exec(self, graph: int, flags: InstantiateFlags = InstantiateFlags.NONE) -> int:
        made = self.runtime.graph_instantiate_with_params(graph, flags, 0)
        return self.own("exec", made, self.runtime.graph_exec_destroy)

    def device(self, values: Any = None, nbytes: int = 4 * N) -> int:
        """Allocate device memory, holding ``values`` (float32) if given."""
        data = None if values is None else np.full(N, values, np.float32)
        address = self.own("device", self.runtime.malloc(nbytes), self.runtime.free)
        if data is not None:
            self.runtime.memcpy(address, data.ctypes.data, data.nbytes, MemcpyKind.HOST_TO_DEVICE)
            self.runtime.device_synchronize()
        return address

    def pinned(self, nbytes: int = 4 * N) -> tuple[int, np.ndarray[Any, Any]]:
        """Allocate pinned host memory; return its address and a float32 view."""
        address = self.own("pinned", self.runtime.host_alloc(nbytes), self.runtime.free_host)
        view = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.float32)
        view[:] = 0
        return address, view

    def read(self, address: int, count: int = N, dtype: Any = np.float32) -> list[Any]:
        out = np.zeros(count, dtype)
        self.runtime.memcpy(out.ctypes.data, address, out.nbytes, MemcpyKind.DEVICE_TO_HOST)
        return list(out.tolist())

    def value(self, address: int) -> float:
        """Return the one value that an array of N floats holds."""
        values = set(self.read(address))
        assert len(values) == 1, values
        return float(values.pop())

    # --- parameters

    def function(self, name: str) -> int:
        loaded = _loaded.setdefault(self.runtime, {})
        if name not in loaded:
            loaded[name] = self.runtime.function_load(SOURCES[name])
        handle: int = loaded[name].handle
        return handle

    def arguments(self, *values: Any) -> Arguments:
        made = Arguments(*values)
        self._keep.append(made)
        return made

    def argument(self, params: KernelNodeParams, index: int) -> Any:
        """Return the ctypes value behind an argument of parameters made here."""
        (block,) = (
            kept
            for kept in self._keep
            if isinstance(kept, Arguments) and kept.address == params.kernel_params
        )
        return block.values[index]

    def fill(self, y: int, value: float, n: int = N, **changes: Any) -> KernelNodeParams:
        block = self.arguments(ctypes.c_uint64(y), ctypes.c_float(value), ctypes.c_int(n))
        return self._kernel("fill", block, **changes)

    def axpy(self, y: int, x: int, a: float = 1.0, **changes: Any) -> KernelNodeParams:
        block = self.arguments(
            ctypes.c_uint64(y), ctypes.c_uint64(x), ctypes.c_float(a), ctypes.c_int(N)
        )
        return self._kernel("axpy", block, **changes)

    def shape(self, y: int, **changes: Any) -> KernelNodeParams:
        return self._kernel("shape", self.arguments(ctypes.c_uint64(y)), **changes)

    def nothing(self, **changes: Any) -> KernelNodeParams:
        return self._kernel("nothing", self.arguments(), **changes)

    def _kernel(self, name: str, values: Arguments, **changes: Any) -> KernelNodeParams:
        params = KernelNodeParams(self.function(name), (1, 1, 1), (32, 1, 1), 0, values.address)
        return params._replace(**changes)

    def copy(
        self, dst: int, src: int, nbytes: int = 4 * N, kind: MemcpyKind = MemcpyKind.DEFAULT
    ) -> MemcpyNodeParams:
        return MemcpyNodeParams(dst, 0, 0, src, 0, 0, nbytes, 1, 1, kind)

    def memset(self, dst: int, value: int = 0, count: int = N) -> MemsetNodeParams:
        return MemsetNodeParams(dst, 0, value, 4, count, 1)

    def host(self, function: Callable[[], Any]) -> HostNodeParams:
        callback = HOST_FUNCTION(lambda _: function() and None)
        self._keep.append(callback)
        address = ctypes.cast(callback, ctypes.c_void_p).value
        assert address is not None
        return HostNodeParams(address, 0)

    # --- work

    def launch(self, params: KernelNodeParams, stream: int, attributes: Any = ()) -> None:
        config = LaunchConfig(
            params.grid, params.block, params.shared_mem, stream, tuple(attributes)
        )
        self.runtime.launch_kernel_ex(config, params.function, params.kernel_params)

    def run(self, exec_: int) -> None:
        """Launch once on a stream of its own and wait."""
        stream = self.stream()
        self.runtime.graph_launch(exec_, stream)
        self.runtime.stream_synchronize(stream)

    def begin(self, stream: int, mode: CaptureMode = CaptureMode.THREAD_LOCAL) -> None:
        self.runtime.stream_begin_capture(stream, mode)

    def end(self, stream: int) -> int:
        return self.graph(self.runtime.stream_end_capture(stream))

    def edges(self, graph: int) -> set[tuple[int, int]]:
        """Return the edges by the places of their nodes in the order of insertion."""
        place = {node: i for i, node in enumerate(self.runtime.graph_get_nodes(graph))}
        return {(place[e.from_node], place[e.to_node]) for e in self.runtime.graph_get_edges(graph)}

    def types(self, graph: int) -> list[str]:
        runtime = self.runtime
        return [runtime.graph_node_get_type(n).name for n in runtime.graph_get_nodes(graph)]

    def connect(self, graph: int, a: int, b: int, data: EdgeData = EdgeData()) -> None:
        self.runtime.graph_add_dependencies(graph, [Edge(a, b, data)])

    # --- outcomes

    def code(self, call: Callable[..., Any], *arguments: Any) -> int:
        """Make a call and return its status."""
        try:
            call(*arguments)
        except CudaError as error:
            assert self.runtime.get_last_error() == 0, "the exception carries the status"
            return error.code
        return 0

    def gate(self, stream: int) -> threading.Event:
        """Put work on a stream that is done once the event returned is set."""
        self._load_kernels()
        gate = threading.Event()
        self.runtime.launch_host_func(
            stream, self.host(lambda: gate.wait(5) or self._given_up.append(gate))
        )
        self._gates.append(gate)
        return gate

    def _load_kernels(self) -> None:
        """Launch each kernel, once: CUDA loads it then, and may wait for the device to do so."""
        if self.runtime not in _launched:
            _launched.add(self.runtime)
            y, stream = self.device(0.0), self.stream()
            for params in (self.nothing(), self.fill(y, 0.0), self.axpy(y, y), self.shape(y)):
                self.launch(params, stream)
            self.runtime.stream_synchronize(stream)

    # --- the end of a test

    def close(self) -> None:
        runtime = self.runtime
        for gate in self._gates:  # of a test that failed before it opened them
            gate.set()
        runtime.thread_exchange_stream_capture_mode(CaptureMode.GLOBAL)
        for stream in self._streams:
            if ("stream", stream) in self._destroy:
                with suppress(CudaError):
                    if runtime.stream_is_capturing(stream) is not CaptureStatus.NONE:
                        runtime.graph_destroy(runtime.stream_end_capture(stream))
        runtime.device_synchronize()
        for (_, handle), destroy in reversed(self._destroy.items()):
            destroy(handle)
        self._destroy.clear()
        live = getattr(runtime, "live_handles", dict)()
        assert live == {}, "the test left handles behind"
        assert not self._given_up, "a call waited for the device while a gate was closed"


@pytest.fixture
def made(runtime: Runtime) -> Iterator[Made]:
    """Handles and parameters for a test of the seam."""
    maker = Made(runtime)
    yield maker
    maker.close()


@pytest.fixture
def simulate() -> Iterator[Callable[..., Made]]:
    """Make simulators by their options, whatever runtime the other tests run on."""
    makers: list[Made] = []

    def make(**options: Any) -> Made:
        makers.append(Made(SimRuntime(SimOptions(**options))))
        return makers[-1]

    yield make
    for maker in makers:
        maker.close()
