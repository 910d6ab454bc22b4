"""The contenders of bench/launch_overhead.py: the same graphs, as each library's users write them.

Peers get the best their users can write: handles made beforehand, argument blocks packed once, no
check of the returned status in a timed call. graphkit checks every status all the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from launch_setting import (
    FLOOR,
    NAME,
    OWN,
    SOURCE,
    Entry,
    Library,
    PackedArguments,
    Setting,
    SharedStream,
    UnavailableError,
    checked,
)
from measure import NativeCall, PythonCall, percentile

# --- cuda.bindings --------------------------------------------------------------------------------


def _bindings_line(
    add: Callable[..., Any], graph: Any, params: Any, steps: Any, step: int, nodes: int
) -> list[Any]:
    """Add a line of nodes by either module of cuda.bindings."""
    made: list[Any] = []
    previous: list[Any] = []
    for _ in range(nodes):
        steps[0] = step
        error, node = add(graph, previous, len(previous), params)
        if error:
            raise RuntimeError(f"CUDA answered {error!r}")
        made.append(node)
        previous = [node]
    return made


def _destroy_all(destroy: Callable[[Any], Any], graphs: list[Any]) -> None:
    for graph in graphs:
        checked(destroy(graph))


class Bindings(Library):
    """cuda.bindings: the runtime module, and the driver module where that is the usual choice."""

    name = "cuda.bindings"

    def runtime_params(self, packed: PackedArguments) -> Any:
        """Return a cudaKernelNodeParams over packed arguments, made once and used again."""
        runtime = self.setting.runtime
        one = runtime.dim3()
        one.x = one.y = one.z = 1
        params = runtime.cudaKernelNodeParams()
        params.func = self.setting.function
        params.gridDim = params.blockDim = one
        params.sharedMemBytes = 0
        params.kernelParams = packed.address
        return params

    def driver_params(self, packed: PackedArguments) -> Any:
        """Return the same for the driver module."""
        driver = self.setting.driver
        params = driver.CUDA_KERNEL_NODE_PARAMS()
        params.func = driver.CUfunction(self.setting.function)
        params.gridDimX = params.gridDimY = params.gridDimZ = 1
        params.blockDimX = params.blockDimY = params.blockDimZ = 1
        params.sharedMemBytes = 0
        params.kernelParams = packed.address
        return params

    def line(self, nodes: int, step: int) -> tuple[Any, list[Any]]:
        """Return a graph of the runtime module and its nodes; the setting cleans it up."""
        runtime = self.setting.runtime
        graph = checked(runtime.cudaGraphCreate(0))
        self.setting.cleanup.callback(runtime.cudaGraphDestroy, graph)
        packed = PackedArguments(self.setting.counters[0], step)
        params = self.runtime_params(packed)
        add = runtime.cudaGraphAddKernelNode
        return graph, _bindings_line(add, graph, params, packed.step, step, nodes)

    def exec_of(self, graph: Any) -> Any:
        """Return a cudaGraphExec_t; the setting cleans it up."""
        runtime = self.setting.runtime
        exe = checked(runtime.cudaGraphInstantiate(graph, 0))
        self.setting.cleanup.callback(runtime.cudaGraphExecDestroy, exe)
        return exe

    def launches(self, nodes: int, step: int, burst: int) -> list[Entry]:
        """cudaGraphLaunch and cuGraphLaunch with handle objects made beforehand."""
        runtime, driver = self.setting.runtime, self.setting.driver
        exe = self.exec_of(self.line(nodes, step)[0])
        calls = (
            (
                "cuda.bindings runtime",
                {
                    "launch": runtime.cudaGraphLaunch,
                    "exe": exe,
                    "stream": self.setting.stream_handle,
                },
            ),
            (
                "cuda.bindings driver",
                {
                    "launch": driver.cuGraphLaunch,
                    "exe": driver.CUgraphExec(int(exe)),
                    "stream": driver.CUstream(self.setting.stream),
                },
            ),
        )
        return [
            Entry(self.setting.python_call(name, "launch(exe, stream)", names, burst=burst))
            for name, names in calls
        ]

    def builds(self, nodes: int, kept: bool) -> list[Entry]:
        """cudaGraphAddKernelNode and cuGraphAddKernelNode with one parameter struct."""
        entries = []
        for name, module, create, destroy, add, make_params in (
            (
                "cuda.bindings runtime",
                self.setting.runtime,
                "cudaGraphCreate",
                "cudaGraphDestroy",
                "cudaGraphAddKernelNode",
                self.runtime_params,
            ),
            (
                "cuda.bindings driver",
                self.setting.driver,
                "cuGraphCreate",
                "cuGraphDestroy",
                "cuGraphAddKernelNode",
                self.driver_params,
            ),
        ):
            packed = PackedArguments(self.setting.counters[0], 0)
            graphs: list[Any] = []
            if kept:
                self.setting.cleanup.callback(_destroy_all, getattr(module, destroy), graphs)
            names = {
                "line": _bindings_line,
                "graphs": graphs,
                "create": getattr(module, create),
                "destroy": getattr(module, destroy),
                "add": getattr(module, add),
                "params": make_params(packed),
                "steps": packed.step,
                "nodes": nodes,
                "keep": packed,
            }
            call = PythonCall(
                name,
                "line(add, graph, params, steps, 0, nodes)",
                names,
                before="_, graph = create(0)",
                after="graphs.append(graph)" if kept else "destroy(graph)",
                divide=nodes,
            )
            entries.append(Entry(call))
        return entries

    def _fresh(self, nodes: int, step: int) -> dict[str, Any]:
        runtime = self.setting.runtime
        return {
            "graph": self.line(nodes, step)[0],
            "stream": self.setting.stream_handle,
            "instantiate": runtime.cudaGraphInstantiate,
            "upload": runtime.cudaGraphUpload,
            "launch": runtime.cudaGraphLaunch,
            "synchronize": runtime.cudaStreamSynchronize,
            "destroy": runtime.cudaGraphExecDestroy,
        }

    def instantiates(self, nodes: int, step: int) -> list[Entry]:
        """cudaGraphInstantiate."""
        names = self._fresh(nodes, step)
        statement = "_, exe = instantiate(graph, 0)"
        return [Entry(PythonCall("cuda.bindings runtime", statement, names, after="destroy(exe)"))]

    def uploads(self, nodes: int, step: int) -> list[Entry]:
        """cudaGraphUpload."""
        call = PythonCall(
            "cuda.bindings runtime",
            "upload(exe, stream)",
            self._fresh(nodes, step),
            before="_, exe = instantiate(graph, 0)",
            after="launch(exe, stream); synchronize(stream); destroy(exe)",
        )
        return [Entry(call)]

    def first_launches(self, nodes: int, step: int) -> list[Entry]:
        """cudaGraphLaunch, once."""
        call = PythonCall(
            "cuda.bindings runtime",
            "launch(exe, stream)",
            self._fresh(nodes, step),
            before="_, exe = instantiate(graph, 0)",
            after="synchronize(stream); destroy(exe)",
        )
        return [Entry(call)]

    def _sets(self, nodes: int, step: int, statement: str) -> list[Entry]:
        runtime, driver = self.setting.runtime, self.setting.driver
        entries = []
        for name, to_exec, to_node, setter, make_params in (
            (
                "cuda.bindings runtime",
                runtime.cudaGraphExec_t,
                runtime.cudaGraphNode_t,
                runtime.cudaGraphExecKernelNodeSetParams,
                self.runtime_params,
            ),
            (
                "cuda.bindings driver",
                driver.CUgraphExec,
                driver.CUgraphNode,
                driver.cuGraphExecKernelNodeSetParams,
                self.driver_params,
            ),
        ):
            graph, line = self.line(nodes, step)
            exe = self.exec_of(graph)
            packed = PackedArguments(self.setting.counters[0], step)
            names = {
                "steps": packed.step,
                "pointers": packed.pointer,
                "counters": self.setting.counters,
                "set_params": setter,
                "exe": to_exec(int(exe)),
                "line": [to_node(int(node)) for node in line],
                "nodes": nodes,
                "params": make_params(packed),
                "keep": packed,
            }
            call = PythonCall(name, statement, names, before="node = line[i % nodes]")
            entries.append(Entry(call, self._launcher(exe)))
        return entries

    def _launcher(self, exe: Any) -> Callable[[], object]:
        def launch() -> None:
            runtime = self.setting.runtime
            checked(runtime.cudaGraphLaunch(exe, self.setting.stream_handle))

        return launch

    def scalar_sets(self, nodes: int) -> list[Entry]:
        """The exec setter on a prebuilt struct, one word of packed memory rewritten."""
        return self._sets(nodes, 0, "steps[0] = i; set_params(exe, node, params)")

    def array_sets(self, nodes: int) -> list[Entry]:
        """The same for the pointer, whose address the user already holds as an int."""
        return self._sets(nodes, 1, "pointers[0] = counters[i & 1]; set_params(exe, node, params)")

    def updates(self, nodes: int, steps: tuple[int, int]) -> list[Entry]:
        """cudaGraphExecUpdate."""
        exe = self.exec_of(self.line(nodes, 0)[0])
        names = {
            "update": self.setting.runtime.cudaGraphExecUpdate,
            "exe": exe,
            "graphs": [self.line(nodes, step)[0] for step in steps],
        }
        call = PythonCall("cuda.bindings runtime", "update(exe, graphs[i & 1])", names)
        return [Entry(call, self._launcher(exe))]


# --- C --------------------------------------------------------------------------------------------


class CFloor(Library):
    """The same calls from C, in a shared library that times itself (launch_overhead.cu)."""

    name = FLOOR

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.bindings = Bindings(setting)
        self.library = ctypes.CDLL(str(compile_floor(setting.arch)))
        self.overhead_ns = percentile(self._loop("floor_clock")(0, 5000), 50)

    def _loop(self, function: str, *fixed: Any, takes_first: bool = False) -> Any:
        call = getattr(self.library, function)

        def loop(first: int, count: int, *more: Any) -> list[int]:
            samples = (ctypes.c_int64 * count)()
            position = (ctypes.c_int(first),) if takes_first else ()
            status = call(*fixed, *position, ctypes.c_int(count), samples, *more)
            if status != 0:
                raise RuntimeError(f"{function}: CUDA answered {status}")
            return list(samples)

        return loop

    def _entry(
        self,
        function: str,
        *fixed: Any,
        takes_first: bool = False,
        divide: int = 1,
        launch: Callable[[], object] | None = None,
    ) -> list[Entry]:
        loop = self._loop(function, *fixed, takes_first=takes_first)
        return [Entry(NativeCall(FLOOR, loop, self.overhead_ns, divide), launch)]

    @property
    def _stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.setting.stream)

    def _counter(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.setting.counters[0])

    def _graph(self, nodes: int, step: int) -> tuple[ctypes.c_void_p, Any]:
        """Return a graph that C built, and its nodes; the setting cleans it up."""
        graph, line = ctypes.c_void_p(), (ctypes.c_void_p * nodes)()
        status = self.library.floor_graph(self._counter(), step, nodes, line, ctypes.byref(graph))
        if status != 0:
            raise RuntimeError(f"floor_graph: CUDA answered {status}")
        runtime = self.setting.runtime
        handle = runtime.cudaGraph_t(graph.value)
        self.setting.cleanup.callback(runtime.cudaGraphDestroy, handle)
        return graph, line

    def _exec_of(self, graph: ctypes.c_void_p) -> tuple[ctypes.c_void_p, Callable[[], object]]:
        exe = self.bindings.exec_of(self.setting.runtime.cudaGraph_t(graph.value))
        return ctypes.c_void_p(int(exe)), self.bindings._launcher(exe)

    def launches(self, nodes: int, step: int, burst: int) -> list[Entry]:
        """cudaGraphLaunch."""
        exe, _ = self._exec_of(self._graph(nodes, step)[0])
        return self._entry("floor_launch", exe, self._stream, burst, divide=burst)

    def builds(self, nodes: int, kept: bool) -> list[Entry]:
        """cudaGraphAddKernelNode."""
        line, graphs = (ctypes.c_void_p * nodes)(), list[Any]()
        call = self._loop("floor_build", self._counter(), 0, nodes, line)
        destroy = self.setting.runtime.cudaGraphDestroy
        self.setting.cleanup.callback(_destroy_all, destroy, graphs)

        def loop(first: int, count: int) -> list[int]:
            made = (ctypes.c_void_p * count)()
            samples: list[int] = call(first, count, made if kept else None)
            if kept:
                graphs.extend(self.setting.runtime.cudaGraph_t(graph) for graph in made)
            return samples

        return [Entry(NativeCall(FLOOR, loop, self.overhead_ns, nodes))]

    def instantiates(self, nodes: int, step: int) -> list[Entry]:
        """cudaGraphInstantiate."""
        return self._entry("floor_instantiate", self._graph(nodes, step)[0])

    def uploads(self, nodes: int, step: int) -> list[Entry]:
        """cudaGraphUpload."""
        return self._entry("floor_upload", self._graph(nodes, step)[0], self._stream)

    def first_launches(self, nodes: int, step: int) -> list[Entry]:
        """cudaGraphLaunch, once."""
        return self._entry("floor_first_launch", self._graph(nodes, step)[0], self._stream)

    def scalar_sets(self, nodes: int) -> list[Entry]:
        """cudaGraphExecKernelNodeSetParams."""
        graph, line = self._graph(nodes, 0)
        exe, launch = self._exec_of(graph)
        fixed = (exe, line, nodes, self._counter())
        return self._entry("floor_set_scalar", *fixed, takes_first=True, launch=launch)

    def array_sets(self, nodes: int) -> list[Entry]:
        """cudaGraphExecKernelNodeSetParams."""
        graph, line = self._graph(nodes, 1)
        exe, launch = self._exec_of(graph)
        arrays = (ctypes.c_void_p * 2)(*self.setting.counters)
        fixed = (exe, line, nodes, arrays, 1)
        return self._entry("floor_set_array", *fixed, takes_first=True, launch=launch)

    def updates(self, nodes: int, steps: tuple[int, int]) -> list[Entry]:
        """cudaGraphExecUpdate."""
        exe, launch = self._exec_of(self._graph(nodes, 0)[0])
        graphs = (ctypes.c_void_p * 2)(*(self._graph(nodes, step)[0].value for step in steps))
        return self._entry("floor_update", exe, graphs, takes_first=True, launch=launch)


def find_nvcc() -> str:
    """Return the path of nvcc.

    Raises:
        UnavailableError: when neither the PATH nor the usual folder has one.
    """
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise UnavailableError("no nvcc on the PATH: the rows come without the C floor")
    return nvcc


def compile_floor(arch: str, stem: str = "launch_overhead") -> Path:
    """Compile <stem>.cu into bench/build/, unless this very source is there already."""
    source = Path(__file__).with_name(f"{stem}.cu")
    nvcc = find_nvcc()
    key = hashlib.sha256(f"{nvcc} {arch}\n".encode() + source.read_bytes()).hexdigest()[:16]
    library = source.parent / "build" / f"{stem}-{key}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        # Its own copy of the CUDA runtime: whichever version the wheels bring stays theirs.
        command = [nvcc, f"-arch={arch}", "-O3", "-shared", "-Xcompiler", "-fPIC"]
        command += ["-cudart", "static", str(source), "-o", str(library)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise UnavailableError(f"nvcc failed: {answer.stderr.strip()[-500:]}")
    return library


# --- CuPy -----------------------------------------------------------------------------------------


class CuPy(Library):
    """CuPy: RawKernel launches captured on a stream. It instantiates inside ``end_capture``."""

    name = "CuPy"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.cupy = importlib.import_module("cupy")
        self.kernel = self.cupy.RawKernel(SOURCE, NAME)
        self.kernel.compile()
        self.stream = self.cupy.cuda.Stream.from_external(SharedStream(setting.stream))
        self.array = foreign_arrays(self.cupy, setting)[0]

    def launches(self, nodes: int, step: int, burst: int) -> list[Entry]:
        """Graph.launch, and the undocumented ``cupy.cuda.runtime.graphLaunch`` with two ints."""
        value = np.int32(step)
        self.stream.begin_capture()
        with self.stream:
            for _ in range(nodes):
                self.kernel((1,), (1,), (self.array, value))
        graph = self.stream.end_capture()
        by_graph = {"graph": graph, "stream": self.stream}
        calls = [("CuPy Graph.launch", "graph.launch(stream)", by_graph)]
        if hasattr(graph, "graphExec"):
            by_int = {
                "launch": self.cupy.cuda.runtime.graphLaunch,
                "exe": int(graph.graphExec),
                "stream": self.setting.stream,
                "keep": graph,
            }
            calls.append(("CuPy runtime.graphLaunch", "launch(exe, stream)", by_int))
        return [
            Entry(self.setting.python_call(name, statement, names, burst=burst))
            for name, statement, names in calls
        ]


def foreign_arrays(cupy: Any, setting: Setting) -> list[Any]:
    """Return both counters as CuPy arrays over the memory that all contenders share."""
    arrays = []
    for counter in setting.counters:
        memory = cupy.cuda.UnownedMemory(counter, 4, setting)
        arrays.append(cupy.ndarray((1,), cupy.int32, cupy.cuda.MemoryPointer(memory, 0)))
    return arrays


# --- cuda.core ------------------------------------------------------------------------------------


def _core_line(node: Any, config: Any, kernel: Any, pointer: int, step: int, nodes: int) -> Any:
    """Add a line to a GraphDefinition: each node's own ``launch`` adds the next."""
    made = []
    for _ in range(nodes):
        node = node.launch(config, kernel, pointer, ctypes.c_int(step))
        made.append(node)
    return made


class CudaCore(Library):
    """cuda.core: explicit GraphDefinitions where it has them, else captures by GraphBuilder."""

    name = "cuda.core"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        core = importlib.import_module("cuda.core")
        if not hasattr(core, "Device"):
            core = importlib.import_module("cuda.core.experimental")
        self.core = core
        self.device = core.Device()
        self.device.set_current()
        self.stream = core.Stream.from_handle(setting.stream)
        self.kernel = core.ObjectCode.from_cubin(setting.cubin).get_kernel(NAME)
        self.config = core.LaunchConfig(grid=1, block=1)
        try:
            self.definition = importlib.import_module("cuda.core.graph").GraphDefinition
        except (ImportError, AttributeError):
            self.definition = None

    def _line(self, nodes: int, step: int) -> tuple[Any, list[Any]]:
        definition = self.definition()
        pointer = self.setting.counters[0]
        return definition, _core_line(definition, self.config, self.kernel, pointer, step, nodes)

    def launches(self, nodes: int, step: int, burst: int) -> list[Entry]:
        """Graph.launch."""
        if self.definition is not None:
            graph = self._line(nodes, step)[0].instantiate()
        else:
            builder = self.device.create_graph_builder().begin_building()
            for _ in range(nodes):
                arguments = (self.setting.counters[0], ctypes.c_int(step))
                self.core.launch(builder, self.config, self.kernel, *arguments)
            graph = builder.end_building().complete()
        names = {"graph": graph, "stream": self.stream}
        call = self.setting.python_call(
            "cuda.core Graph.launch", "graph.launch(stream)", names, burst=burst
        )
        return [Entry(call)]

    def builds(self, nodes: int, kept: bool) -> list[Entry]:
        """GraphNode.launch."""
        if self.definition is None:
            return []
        names = {
            "line": _core_line,
            "definition": self.definition,
            "config": self.config,
            "kernel": self.kernel,
            "pointer": self.setting.counters[0],
            "nodes": nodes,
            "graphs": [],
        }
        call = PythonCall(
            "cuda.core",
            "line(graph, config, kernel, pointer, 0, nodes)",
            names,
            before="graph = definition()",
            after="graphs.append(graph)" if kept else "del graph",
            divide=nodes,
        )
        return [Entry(call)]

    def _fresh(self, nodes: int, step: int) -> dict[str, Any]:
        return {
            "definition": self._line(nodes, step)[0],
            "stream": self.stream,
            "synchronize": self.setting.synchronize,
        }

    def instantiates(self, nodes: int, step: int) -> list[Entry]:
        """GraphDefinition.instantiate."""
        if self.definition is None:
            return []
        names = self._fresh(nodes, step)
        statement = "exe = definition.instantiate()"
        return [Entry(PythonCall("cuda.core", statement, names, after="exe.close()"))]

    def uploads(self, nodes: int, step: int) -> list[Entry]:
        """Graph.upload."""
        if self.definition is None:
            return []
        call = PythonCall(
            "cuda.core",
            "exe.upload(stream)",
            self._fresh(nodes, step),
            before="exe = definition.instantiate()",
            after="exe.launch(stream); synchronize(); exe.close()",
        )
        return [Entry(call)]

    def first_launches(self, nodes: int, step: int) -> list[Entry]:
        """Graph.launch, once."""
        if self.definition is None:
            return []
        call = PythonCall(
            "cuda.core",
            "exe.launch(stream)",
            self._fresh(nodes, step),
            before="exe = definition.instantiate()",
            after="synchronize(); exe.close()",
        )
        return [Entry(call)]

    def _sets(self, nodes: int, step: int, arguments: str) -> list[Entry]:
        if self.definition is None:
            return []
        definition, line = self._line(nodes, step)
        graph = definition.instantiate()
        if not hasattr(type(graph), "__getitem__"):
            return []
        names = {
            "views": [graph[node] for node in line],
            "config": self.config,
            "kernel": self.kernel,
            "counters": self.setting.counters,
            "c_int": ctypes.c_int,
            "nodes": nodes,
            "keep": (graph, definition),
        }
        statement = f"view.update(config=config, kernel=kernel, args={arguments})"
        call = PythonCall("cuda.core", statement, names, before="view = views[i % nodes]")
        return [Entry(call, lambda: graph.launch(self.stream))]

    def scalar_sets(self, nodes: int) -> list[Entry]:
        """ExecutableKernelNode.update, which takes all arguments or none."""
        return self._sets(nodes, 0, "(counters[0], c_int(i))")

    def array_sets(self, nodes: int) -> list[Entry]:
        """ExecutableKernelNode.update, the pointer as an int."""
        return self._sets(nodes, 1, "(counters[i & 1], c_int(1))")

    def updates(self, nodes: int, steps: tuple[int, int]) -> list[Entry]:
        """Graph.update."""
        if self.definition is None:
            return []
        graph = self._line(nodes, 0)[0].instantiate()
        names = {"graph": graph, "sources": [self._line(nodes, step)[0] for step in steps]}
        call = PythonCall("cuda.core", "graph.update(sources[i & 1])", names)
        return [Entry(call, lambda: graph.launch(self.stream))]


# --- PyTorch --------------------------------------------------------------------------------------


class Torch(Library):
    """PyTorch: ``CUDAGraph.replay``. The same kernel, captured on its current stream."""

    name = "torch"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.torch = importlib.import_module("torch")
        if not self.torch.cuda.is_available():
            raise UnavailableError("this PyTorch sees no CUDA device")
        self.torch.cuda.init()
        # replay() launches on the current stream: the one that everybody here uses.
        self.stream = self.torch.cuda.ExternalStream(setting.stream)
        self.torch.cuda.set_stream(self.stream)

    def launches(self, nodes: int, step: int, burst: int) -> list[Entry]:
        """CUDAGraph.replay."""
        driver = self.setting.driver
        packed = PackedArguments(self.setting.counters[0], step)
        function, stream = driver.CUfunction(self.setting.function), self.setting.stream
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, stream=self.stream):
            for _ in range(nodes):
                one = (1, 1, 1)
                answer = driver.cuLaunchKernel(
                    function, *one, *one, 0, driver.CUstream(stream), packed.address, 0
                )
                checked(answer)
        names = {"graph": graph}
        call = self.setting.python_call(
            "torch CUDAGraph.replay", "graph.replay()", names, burst=burst
        )
        return [Entry(call)]


# --- graphkit -------------------------------------------------------------------------------------


def _own_line(graph: Any, kernel: Any, array: Any, step: int, nodes: int) -> list[Any]:
    """Add a line to a gk.Graph."""
    made = []
    one = (1, 1, 1)
    previous: Any = ()
    for _ in range(nodes):
        previous = graph.add_kernel_node(kernel, one, one, (array, step), deps=previous)
        made.append(previous)
    return made


class Graphkit(Library):
    """graphkit, by its public objects."""

    name = OWN

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if setting.graphkit is None:
            raise UnavailableError(setting.graphkit_absent)
        self.gk = setting.graphkit
        self.kernel = self.gk.Kernel(SOURCE, NAME)
        self.stream = setting.own_stream
        self.arrays = setting.own_arrays

    def _line(self, nodes: int, step: int) -> tuple[Any, list[Any]]:
        graph = self.gk.Graph()
        return graph, _own_line(graph, self.kernel, self.arrays[0], step, nodes)

    def launches(self, nodes: int, step: int, burst: int) -> list[Entry]:
        """GraphExec.launch and GraphExec.launcher."""
        exe = self._line(nodes, step)[0].instantiate()
        calls = (
            ("graphkit launch(stream)", "exe.launch(stream)", {"exe": exe, "stream": self.stream}),
            ("graphkit launcher()", "go()", {"go": exe.launcher(self.stream), "keep": exe}),
        )
        return [
            Entry(self.setting.python_call(name, statement, names, burst=burst))
            for name, statement, names in calls
        ]

    def builds(self, nodes: int, kept: bool) -> list[Entry]:
        """Graph.add_kernel_node."""
        names = {
            "line": _own_line,
            "new_graph": self.gk.Graph,
            "kernel": self.kernel,
            "array": self.arrays[0],
            "nodes": nodes,
            "graphs": [],
        }
        call = PythonCall(
            "graphkit",
            "line(graph, kernel, array, 0, nodes)",
            names,
            before="graph = new_graph()",
            after="graphs.append(graph)" if kept else "del graph",
            divide=nodes,
        )
        return [Entry(call)]

    def _fresh(self, nodes: int, step: int) -> dict[str, Any]:
        return {"graph": self._line(nodes, step)[0], "stream": self.stream}

    def instantiates(self, nodes: int, step: int) -> list[Entry]:
        """Graph.instantiate."""
        names = self._fresh(nodes, step)
        statement = "exe = graph.instantiate()"
        return [Entry(PythonCall("graphkit", statement, names, after="exe.close()"))]

    def uploads(self, nodes: int, step: int) -> list[Entry]:
        """GraphExec.upload."""
        call = PythonCall(
            "graphkit",
            "exe.upload(stream)",
            self._fresh(nodes, step),
            before="exe = graph.instantiate()",
            after="exe.launch(stream); stream.synchronize(); exe.close()",
        )
        return [Entry(call)]

    def first_launches(self, nodes: int, step: int) -> list[Entry]:
        """GraphExec.launch, once."""
        call = PythonCall(
            "graphkit",
            "exe.launch(stream)",
            self._fresh(nodes, step),
            before="exe = graph.instantiate()",
            after="stream.synchronize(); exe.close()",
        )
        return [Entry(call)]

    def _set(self, name: str, nodes: int, step: int, arguments: str, arrays: list[Any]) -> Entry:
        graph, line = self._line(nodes, step)
        exe = graph.instantiate()
        names = {"exe": exe, "line": line, "nodes": nodes, "arrays": arrays}
        statement = f"exe.set_kernel_node_params(node, args={arguments})"
        call = PythonCall(name, statement, names, before="node = line[i % nodes]")
        return Entry(call, lambda: exe.launch(self.stream))

    def scalar_sets(self, nodes: int) -> list[Entry]:
        """GraphExec.set_kernel_node_params."""
        return [self._set("graphkit", nodes, 0, '{"step": i}', self.arrays)]

    def array_sets(self, nodes: int) -> list[Entry]:
        """GraphExec.set_kernel_node_params, with graphkit's own arrays and with CuPy's."""
        arguments = '{"seen": arrays[i & 1]}'
        entries = [self._set("graphkit", nodes, 1, arguments, self.arrays)]
        try:
            arrays = foreign_arrays(importlib.import_module("cupy"), self.setting)
        except ImportError:
            return entries
        return [*entries, self._set("graphkit, CuPy array", nodes, 1, arguments, arrays)]

    def updates(self, nodes: int, steps: tuple[int, int]) -> list[Entry]:
        """GraphExec.update."""
        exe = self._line(nodes, 0)[0].instantiate()
        names = {"exe": exe, "graphs": [self._line(nodes, step)[0] for step in steps]}
        call = PythonCall("graphkit", "exe.update(graphs[i & 1])", names)
        return [Entry(call, lambda: exe.launch(self.stream))]


LIBRARIES: tuple[type[Library], ...] = (CFloor, Bindings, CuPy, CudaCore, Torch, Graphkit)
