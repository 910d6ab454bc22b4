"""The simulated runtime: devices and functions, and all other calls by inheritance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

from graphkit.errors import NotSimulated
from graphkit.runtime.protocol import (
    ConditionalHandleFlags,
    DeviceAttribute,
    KernelSource,
    LoadedFunction,
    MemoryType,
)
from graphkit.runtime.sim.functions import (
    DEFAULT_SHARED_MEMORY,
    MAX_SHARED_MEMORY,
    MAX_THREADS,
    SimFunction,
)
from graphkit.runtime.sim.launch_limits import MULTIPROCESSORS
from graphkit.runtime.sim.memory_node_calls import MemoryNodeCalls
from graphkit.runtime.sim.options import SimOptions
from graphkit.runtime.sim.refusal import Code, Refused
from graphkit.runtime.sim.state import State, cuda_call

__all__ = ["SimRuntime"]

_CUDA_VERSION = 13000
# cudaDeviceAttr: what programs ask in order to choose a launch configuration.
_DEVICE_ATTRIBUTES = {
    1: MAX_THREADS,  # cudaDevAttrMaxThreadsPerBlock
    2: 1024,  # cudaDevAttrMaxBlockDimX
    3: 1024,
    4: 64,
    5: 2**31 - 1,  # cudaDevAttrMaxGridDimX
    6: 65535,
    7: 65535,
    8: DEFAULT_SHARED_MEMORY,  # cudaDevAttrMaxSharedMemoryPerBlock
    10: 32,  # cudaDevAttrWarpSize
    16: MULTIPROCESSORS,  # cudaDevAttrMultiProcessorCount
    DeviceAttribute.COMPUTE_CAPABILITY_MAJOR: 9,
    DeviceAttribute.COMPUTE_CAPABILITY_MINOR: 0,
    97: MAX_SHARED_MEMORY,  # cudaDevAttrMaxSharedMemoryPerBlockOptin
}
_MAX_THREADS_PER_BLOCK, _MAX_DYNAMIC_SHARED = 0, 8  # CUfunction_attribute
_ABSENT_FEATURES = ("node_ids", "node_get_params")


def _not_modelled() -> NoReturn:
    raise NotSimulated("the simulator does not model it")


class SimRuntime(MemoryNodeCalls):
    """:class:`graphkit.runtime.protocol.Runtime` on the host, with NumPy."""

    def __init__(self, options: SimOptions | None = None) -> None:
        self.options = options or SimOptions()
        self.state = State(self.options)

    @property
    def name(self) -> str:
        return "sim"

    def __repr__(self) -> str:
        return f"SimRuntime({self.options})"

    def live_handles(self) -> dict[str, int]:
        """Count what was made and not destroyed, by kind."""
        state = self.state
        counts = {
            "stream": len(state.streams) - 1,
            "event": len(state.events),
            "graph": sum(not graph.borrowed for graph in state.graphs.values()),
            "executable graph": len(state.execs),
            "device memory": state.memory.live(MemoryType.DEVICE),
            "pinned memory": state.memory.live(MemoryType.HOST),
        }
        return {kind: count for kind, count in counts.items() if count}

    # --- devices

    def runtime_get_version(self) -> int:
        return _CUDA_VERSION

    def driver_get_version(self) -> int:
        return _CUDA_VERSION

    def get_device_count(self) -> int:
        return 1

    def get_device(self) -> int:
        return 0

    @cuda_call("cudaSetDevice")
    def set_device(self, device: int) -> None:
        if device != 0:
            raise Refused(Code.INVALID_DEVICE, f"device {device}; there is only device 0")

    @cuda_call("cudaDeviceGetAttribute")
    def device_get_attribute(self, attribute: int, device: int) -> int:
        if device != 0:
            raise Refused(Code.INVALID_DEVICE, f"device {device}; there is only device 0")
        if attribute not in _DEVICE_ATTRIBUTES:
            raise NotSimulated(f"the simulated device has no value for attribute {attribute}")
        return _DEVICE_ATTRIBUTES[attribute]

    def get_device_name(self, device: int) -> str:
        return "graphkit simulator"

    def device_get_stream_priority_range(self) -> tuple[int, int]:
        return 0, -5

    def feature_attempts(self) -> Mapping[str, Callable[[], None]]:
        absent = dict.fromkeys(_ABSENT_FEATURES, _not_modelled)
        return {"conditional_nodes": self._try_conditional_nodes} | absent

    def _try_conditional_nodes(self) -> None:
        graph = self.graph_create()
        try:
            self.graph_conditional_handle_create(graph, 0, ConditionalHandleFlags.ASSIGN_DEFAULT)
        finally:
            self.graph_destroy(graph)

    def get_last_error(self) -> int:
        return 0  # a failing call raises, and leaves nothing behind

    # --- functions

    @cuda_call("cuModuleLoadData")
    def function_load(self, source: KernelSource) -> LoadedFunction:
        function = SimFunction(self.state.new_handle("function"), source)
        self.state.functions[function.handle] = function
        return LoadedFunction(function.handle, function)

    @cuda_call("cuFuncGetParamInfo")
    def func_get_param_info(self, function: int, index: int) -> tuple[int, int] | None:
        layout = self.state.function(function).source.layout
        return layout[index] if 0 <= index < len(layout) else None

    @cuda_call("cuFuncGetName")
    def func_get_name(self, function: int) -> str:
        return self.state.function(function).name

    @cuda_call("cuFuncGetAttribute")
    def func_get_attribute(self, attribute: int, function: int) -> int:
        found = self.state.function(function)
        if attribute == _MAX_DYNAMIC_SHARED:
            return found.max_dynamic_shared
        if attribute == _MAX_THREADS_PER_BLOCK:
            return MAX_THREADS
        raise NotSimulated(f"the simulator has no value for function attribute {attribute}")

    @cuda_call("cuFuncSetAttribute")
    def func_set_attribute(self, function: int, attribute: int, value: int) -> None:
        found = self.state.function(function)
        if attribute != _MAX_DYNAMIC_SHARED:
            raise NotSimulated(f"the simulator sets no function attribute {attribute}")
        if not 0 <= value <= MAX_SHARED_MEMORY:
            raise Refused(Code.INVALID_VALUE, f"{value} bytes; 0 to {MAX_SHARED_MEMORY}")
        found.max_dynamic_shared = value
