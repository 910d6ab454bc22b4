"""The contenders of bench/rebind.py: another buffer for a graph, as each library's users give it.

Peers get the best their users can write: handles made beforehand, argument blocks packed once, no
check of the returned status in a timed call. graphkit checks every status all the same.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from launch_contenders import Bindings, compile_floor
from launch_setting import FLOOR, SharedStream, UnavailableError, checked
from measure import NativeCall, percentile
from rebind_setting import SOURCE, Call, Line, PackedTouch, RebindSetting

COPY_FLOOR = "C copy + launch"
TORCH_COPY = "torch copy_ + replay"
CUPY_COPY = "CuPy copy + launch"
OWN = "graphkit bound(x=array)"
OWN_TORCH = "graphkit bound(x=tensor)"
OWN_CUPY = "graphkit bound(x=CuPy array)"

ENQUEUE = 0  # one of C's modes


class Peer:
    """One library's side of every case."""

    name = ""

    def __init__(self, setting: RebindSetting) -> None:
        self.setting = setting

    def rebinds(self, line: Line) -> list[Call]:
        """Give every node of an exec buffer ``i & 1``, and launch nothing."""
        return []

    def calls(self, line: Line) -> list[Call]:
        """Launch a line on buffer ``i & 1``."""
        return []


# --- C and cuda.bindings --------------------------------------------------------------------------


class CFloor(Peer):
    """The runtime's calls from C, in a shared library that times itself (rebind.cu)."""

    name = FLOOR

    def __init__(self, setting: RebindSetting) -> None:
        super().__init__(setting)
        self.bindings = Bindings(setting)
        self.library = ctypes.CDLL(str(compile_floor(setting.arch, "rebind")))
        samples = (ctypes.c_int64 * 5000)()
        self._checked(self.library.floor_clock(5000, samples))
        self.overhead_ns = percentile(list(samples), 50)

    def _checked(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(f"CUDA answered C {status}")

    def _line(self, line: Line) -> tuple[Any, Any, Any]:
        """Return an exec, its nodes, and the addresses, as C wants them."""
        graph, nodes = ctypes.c_void_p(), (ctypes.c_void_p * line.nodes)()
        xs = (ctypes.c_void_p * 2)(*line.addresses)
        static, seen = ctypes.c_void_p(line.static.ptr), ctypes.c_void_p(self.setting.counters[0])
        made = ctypes.byref(graph)
        self._checked(
            self.library.floor_line(static, seen, line.n, line.step, line.nodes, nodes, made)
        )
        handle = self.setting.runtime.cudaGraph_t(graph.value)
        self.setting.cleanup.callback(self.setting.runtime.cudaGraphDestroy, handle)
        return self.bindings.exec_of(handle), nodes, xs

    def _call(self, name: str, function: str, *fixed: Any, launch: Any = None) -> Call:
        """Return the call of a C function that ends in mode, first, count and samples."""
        call = getattr(self.library, function)

        def native(mode: int) -> NativeCall:
            modes = () if function == "floor_rebind" else (mode,)

            def loop(first: int, count: int) -> list[int]:
                samples = (ctypes.c_int64 * count)()
                self._checked(call(*fixed, *modes, first, count, samples))
                return list(samples)

            return NativeCall(name, loop, self.overhead_ns)

        names = {"call": native(ENQUEUE).loop}
        return Call(name, "call(i, 1)", names, native=native, launch=launch)

    def rebinds(self, line: Line) -> list[Call]:
        """cudaGraphExecKernelNodeSetParams for every node."""
        exe, nodes, xs = self._line(line)
        fixed = (ctypes.c_void_p(int(exe)), nodes, line.nodes, xs)
        seen = ctypes.c_void_p(self.setting.counters[0])
        launch = self.bindings._launcher(exe)
        return [self._call(FLOOR, "floor_rebind", *fixed, seen, line.n, line.step, launch=launch)]

    def calls(self, line: Line) -> list[Call]:
        """The setters and cudaGraphLaunch; cudaMemcpyAsync and cudaGraphLaunch."""
        exe, nodes, xs = self._line(line)
        seen = ctypes.c_void_p(self.setting.counters[0])
        stream = ctypes.c_void_p(self.setting.stream)
        touched = (nodes, line.nodes, xs, seen, line.n, line.step)
        rebind = self._call(
            FLOOR, "floor_rebind_launch", ctypes.c_void_p(int(exe)), *touched, stream
        )
        copied, _, _ = self._line(line)
        static, nbytes = ctypes.c_void_p(line.static.ptr), ctypes.c_size_t(line.nbytes)
        fixed = (ctypes.c_void_p(int(copied)), static, xs, nbytes, stream)
        return [rebind, self._call(COPY_FLOOR, "floor_copy_launch", *fixed)]


class RawBindings(Peer):
    """cuda.bindings: prebound calls on prebuilt structs, one word of packed memory rewritten."""

    name = "cuda.bindings"

    def __init__(self, setting: RebindSetting) -> None:
        super().__init__(setting)
        self.bindings = Bindings(setting)

    def _line(self, line: Line) -> tuple[Any, list[Any], PackedTouch]:
        runtime = self.setting.runtime
        packed = PackedTouch(line.static.ptr, self.setting.counters[0], line.n, line.step)
        params = self.bindings.runtime_params(packed)  # type: ignore[arg-type]
        graph = checked(runtime.cudaGraphCreate(0))
        self.setting.cleanup.callback(runtime.cudaGraphDestroy, graph)
        made: list[Any] = []
        for _ in range(line.nodes):
            before = made[-1:]
            made.append(checked(runtime.cudaGraphAddKernelNode(graph, before, len(before), params)))
        return self.bindings.exec_of(graph), made, packed

    def _sets(self, line: Line) -> list[tuple[str, Any, dict[str, Any]]]:
        """Return the two modules' prebound setters: (name, exec, names)."""
        runtime, driver = self.setting.runtime, self.setting.driver
        found = []
        for name, to_exec, to_node, setter, launch, stream, make_params in (
            (
                "cuda.bindings runtime",
                runtime.cudaGraphExec_t,
                runtime.cudaGraphNode_t,
                runtime.cudaGraphExecKernelNodeSetParams,
                runtime.cudaGraphLaunch,
                self.setting.stream_handle,
                self.bindings.runtime_params,
            ),
            (
                "cuda.bindings driver",
                driver.CUgraphExec,
                driver.CUgraphNode,
                driver.cuGraphExecKernelNodeSetParams,
                driver.cuGraphLaunch,
                driver.CUstream(self.setting.stream),
                self.bindings.driver_params,
            ),
        ):
            exe, nodes, packed = self._line(line)
            names = {
                "pointers": packed.pointer,
                "addresses": line.addresses,
                "set_params": setter,
                "exe": to_exec(int(exe)),
                "nodes": [to_node(int(node)) for node in nodes],
                "params": make_params(packed),  # type: ignore[arg-type]
                "launch": launch,
                "stream": stream,
                "keep": packed,
            }
            found.append((name, exe, names))
        return found

    def rebinds(self, line: Line) -> list[Call]:
        """The exec setter of either module, a loop over the nodes."""
        statement = (
            "pointers[0] = addresses[i & 1]\nfor node in nodes: set_params(exe, node, params)"
        )
        return [
            Call(name, statement, names, launch=self.bindings._launcher(exe))
            for name, exe, names in self._sets(line)
        ]

    def calls(self, line: Line) -> list[Call]:
        """The same, and the launch."""
        statement = (
            "pointers[0] = addresses[i & 1]\n"
            "for node in nodes: set_params(exe, node, params)\n"
            "launch(exe, stream)"
        )
        return [Call(name, statement, names) for name, _, names in self._sets(line)]


# --- cuda.core ------------------------------------------------------------------------------------


class CudaCore(Peer):
    """cuda.core: a GraphDefinition, and the update of each node of its executable graph."""

    name = "cuda.core"

    def __init__(self, setting: RebindSetting) -> None:
        super().__init__(setting)
        core = importlib.import_module("cuda.core")
        graphs = importlib.import_module("cuda.core.graph")
        core.Device().set_current()
        if not hasattr(graphs, "GraphDefinition") or not hasattr(graphs.Graph, "__getitem__"):
            raise UnavailableError("this cuda.core cannot change the nodes of an executable graph")
        self.definition = graphs.GraphDefinition
        self.stream = core.Stream.from_handle(setting.stream)
        self.kernel = core.ObjectCode.from_cubin(setting.cubin).get_kernel("touch")
        self.config = core.LaunchConfig(grid=1, block=1)

    def _names(self, line: Line) -> dict[str, Any]:
        definition = self.definition()
        numbers = (ctypes.c_int(line.n), ctypes.c_int(line.step))
        seen = self.setting.counters[0]
        node, made = definition, []
        for _ in range(line.nodes):
            node = node.launch(self.config, self.kernel, line.static.ptr, seen, *numbers)
            made.append(node)
        graph = definition.instantiate()
        return {
            "graph": graph,
            "views": [graph[node] for node in made],
            "config": self.config,
            "kernel": self.kernel,
            "addresses": line.addresses,
            "more": (seen, *numbers),
            "stream": self.stream,
            "keep": definition,
        }

    _STATEMENT = (
        "args = (addresses[i & 1], *more)\n"
        "for view in views: view.update(config=config, kernel=kernel, args=args)\n"
    )

    def rebinds(self, line: Line) -> list[Call]:
        """ExecutableKernelNode.update of each node, which takes all arguments or none."""
        names = self._names(line)
        graph = names["graph"]
        return [Call(self.name, self._STATEMENT, names, launch=lambda: graph.launch(self.stream))]

    def calls(self, line: Line) -> list[Call]:
        """The same, and Graph.launch."""
        statement = self._STATEMENT + "graph.launch(stream)"
        return [Call("cuda.core update + launch", statement, self._names(line))]


# --- PyTorch and CuPy -----------------------------------------------------------------------------


class Torch(Peer):
    """PyTorch: copy_ into the buffer of the capture and replay; capture anew and replay."""

    name = "torch"

    def __init__(self, setting: RebindSetting) -> None:
        super().__init__(setting)
        self.torch = importlib.import_module("torch")
        if not self.torch.cuda.is_available():
            raise UnavailableError("this PyTorch sees no CUDA device")
        self.torch.cuda.init()
        # replay() launches on the current stream: the one that everybody here uses.
        self.stream = self.torch.cuda.ExternalStream(setting.stream)
        self.torch.cuda.set_stream(self.stream)
        self._abandoned: list[Any] = []

    def abandon(self, graph: Any, pool: Any) -> None:
        """End a capture that failed, for the allocator too.

        When capture_begin or capture_end raises, PyTorch's allocator goes on taking the pool for
        that of a live capture, and ends the process as soon as anybody's MemPool dies.
        """
        self._abandoned.append(graph)  # the allocators may ask it again whether it captures
        with suppress(Exception):
            graph.capture_end()
        with suppress(Exception):  # refused when the line before did all
            self.torch._C._cuda_endAllocateToPool(self.torch.cuda.current_device(), pool)

    def tensors(self, line: Line) -> list[Any]:
        """Return the two buffers as tensors."""
        return [self.torch.as_tensor(x, device="cuda") for x in line.xs]

    def calls(self, line: Line) -> list[Call]:
        """Tensor.copy_ and CUDAGraph.replay; CUDAGraph.capture_begin to replay."""
        driver, setting = self.setting.driver, self.setting
        packed = PackedTouch(line.static.ptr, setting.counters[0], line.n, line.step)
        function, stream = driver.CUfunction(setting.function), driver.CUstream(setting.stream)

        def launches(address: int) -> None:
            packed.pointer[0] = address
            for _ in range(line.nodes):
                driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, packed.address, 0)

        graph, pool = self.torch.cuda.CUDAGraph(), self.torch.cuda.graph_pool_handle()
        try:
            with self.torch.cuda.graph(graph, pool=pool, stream=self.stream):
                launches(line.static.ptr)
        except BaseException:
            self.abandon(graph, pool)
            raise
        xs, static = self.tensors(line), self.torch.as_tensor(line.static, device="cuda")
        copied = Call(
            TORCH_COPY,
            "static.copy_(xs[i & 1]); graph.replay()",
            {"static": static, "xs": xs, "graph": graph},
        )
        again = Call(
            "torch capture + replay",
            "graph, pool = new_graph(), new_pool()\n"
            "try:\n"
            "    graph.capture_begin(pool=pool, capture_error_mode='thread_local')\n"
            "    launches(addresses[i & 1])\n"
            "    graph.capture_end()\n"
            "except BaseException:\n"
            "    abandon(graph, pool)\n"
            "    raise\n"
            "graph.replay()",
            {
                "new_graph": self.torch.cuda.CUDAGraph,
                # A pool of its own: the allocator of pinned memory refuses one whose graphs are
                # all gone, even where a MemPool holds it, and leaves the other one capturing.
                "new_pool": self.torch.cuda.graph_pool_handle,
                "abandon": self.abandon,
                "launches": launches,
                "addresses": line.addresses,
            },
            after="previous = graph",  # destroyed outside of the sample
            every=4,
        )
        return [copied, again]


class CuPy(Peer):
    """CuPy: a device-to-device copy into the buffer of the capture and launch; capture anew."""

    name = "CuPy"

    def __init__(self, setting: RebindSetting) -> None:
        super().__init__(setting)
        self.cupy = importlib.import_module("cupy")
        self.kernel = self.cupy.RawModule(code=SOURCE).get_function("touch")
        self.stream = self.cupy.cuda.Stream.from_external(SharedStream(setting.stream))

    def arrays(self, line: Line) -> list[Any]:
        """Return the two buffers as CuPy arrays."""
        return [self.cupy.asarray(x) for x in line.xs]

    def calls(self, line: Line) -> list[Call]:
        """MemoryPointer.copy_from_device_async and Graph.launch; begin_capture to launch."""
        cupy, kernel, stream = self.cupy, self.kernel, self.stream
        memory = cupy.cuda.UnownedMemory(self.setting.counters[0], 4, self.setting)
        seen = cupy.ndarray((1,), cupy.int32, cupy.cuda.MemoryPointer(memory, 0))
        xs, static = self.arrays(line), cupy.asarray(line.static)
        n, step = cupy.int32(line.n), cupy.int32(line.step)

        def launches(x: Any) -> None:
            with stream:
                for _ in range(line.nodes):
                    kernel((1,), (1,), (x, seen, n, step))

        launches(xs[0])  # loads the kernel
        stream.begin_capture()
        launches(static)
        graph = stream.end_capture()
        copied = Call(
            CUPY_COPY,
            "copy(xs[i & 1].data, nbytes, stream); graph.launch(stream)",
            {
                "copy": static.data.copy_from_device_async,
                "xs": xs,
                "nbytes": line.nbytes,
                "graph": graph,
                "stream": stream,
                "keep": static,
            },
        )
        again = Call(
            "CuPy capture + launch",
            "stream.begin_capture()\n"
            "launches(xs[i & 1])\n"
            "graph = stream.end_capture()\n"
            "graph.launch(stream)",
            {"stream": stream, "launches": launches, "xs": xs},
            after="previous = graph",
            every=4,
        )
        return [copied, again]


# --- graphkit -------------------------------------------------------------------------------------


class Graphkit(Peer):
    """graphkit: a bound graph, given its own arrays, CuPy's and PyTorch's."""

    name = "graphkit"

    def __init__(self, setting: RebindSetting) -> None:
        super().__init__(setting)
        self.gk = setting.graphkit
        self.kernel = self.gk.Kernel(SOURCE, "touch")
        self.stream = setting.own_stream
        self.kinds: list[tuple[str, Callable[[Line], list[Any]]]] = [
            ("array", lambda line: list(line.xs))
        ]
        for label, peer in (("tensor", Torch), ("CuPy array", CuPy)):
            try:
                made = peer(setting)
            except (ImportError, UnavailableError):
                continue
            self.kinds.append((label, made.tensors if isinstance(made, Torch) else made.arrays))

    def _function(self, line: Line) -> Callable[..., None]:
        kernel, seen, one = self.kernel, self.setting.own_arrays[0], (1, 1, 1)

        def fn(x: Any, stream: Any) -> None:
            for _ in range(line.nodes):
                kernel(one, one, (x, seen, line.n, line.step), stream=stream)

        return fn

    def _bound(self, line: Line) -> list[tuple[str, Any, list[Any]]]:
        """Return (whose array, bound graph, two arrays) for each library that is there."""
        fn = self._function(line)
        found = []
        for label, arrays in self.kinds:
            xs = arrays(line)
            found.append((label, self.gk.bind(fn, self.stream, x=xs[0]), xs))
        return found

    def rebinds(self, line: Line) -> list[Call]:
        """BoundGraph.rebind."""
        return [
            Call(
                f"graphkit rebind(x={label})",
                "rebind(x=xs[i & 1])",
                {"rebind": bound.rebind, "xs": xs, "keep": bound},
                launch=bound.launch,
            )
            for label, bound, xs in self._bound(line)
        ]

    def calls(self, line: Line) -> list[Call]:
        """BoundGraph.__call__; a copy and a launch; a capture, an update and a launch."""
        calls = [
            Call(f"graphkit bound(x={label})", "bound(x=xs[i & 1])", {"bound": bound, "xs": xs})
            for label, bound, xs in self._bound(line)
        ]
        fn = self._function(line)
        with self.gk.capture(self.stream) as graph:
            fn(line.static, self.stream)
        common = {"xs": line.xs, "stream": self.stream, "gk": self.gk, "fn": fn}
        copied, updated = graph.instantiate(), graph.instantiate()
        calls.append(
            Call(
                "graphkit memcpy_async + launch",
                "gk.memcpy_async(static, xs[i & 1], stream); exe.launch(stream)",
                {**common, "static": line.static, "exe": copied},
            )
        )
        calls.append(
            Call(
                "graphkit capture + update + launch",
                "with gk.capture(stream) as graph:\n"
                "    fn(xs[i & 1], stream)\n"
                "exe.update(graph)\n"
                "exe.launch(stream)",
                {**common, "exe": updated, "keep": graph},
                after="previous = graph",
                every=4,
            )
        )
        return calls


PEERS: tuple[type[Peer], ...] = (CFloor, RawBindings, CudaCore, Torch, CuPy, Graphkit)
