"""The seam: every CUDA call that graphkit makes, as one method each.

Two classes implement :class:`Runtime`: ``CudaRuntime`` over cuda.bindings and ``SimRuntime`` on the
host. A method is named after its CUDA call (``cudaGraphLaunch`` -> ``graph_launch``), takes and
returns plain integers for handles and addresses, and does nothing but the call and the check of its
status. Anything cleverer belongs above the seam.

Every method raises :class:`graphkit.errors.CudaError` when the call does not return 0, unless its
docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Dim3 = tuple[int, int, int]


def dotted_version(number: int) -> str:
    """Return a CUDA version as people write it: 12090 is 12.9."""
    return f"{number // 1000}.{number % 1000 // 10}"


# --- enumerations: NVIDIA's names and values -----------------------------------------------------


class MemcpyKind(IntEnum):
    """cudaMemcpyKind."""

    HOST_TO_HOST = 0
    HOST_TO_DEVICE = 1
    DEVICE_TO_HOST = 2
    DEVICE_TO_DEVICE = 3
    DEFAULT = 4


class MemoryType(IntEnum):
    """cudaMemoryType: what an address is, as cudaPointerGetAttributes sees it."""

    UNREGISTERED = 0
    HOST = 1
    DEVICE = 2
    MANAGED = 3


class DeviceAttribute(IntEnum):
    """cudaDeviceAttr, as far as graphkit asks for it."""

    MULTIPROCESSOR_COUNT = 16
    COMPUTE_CAPABILITY_MAJOR = 75
    COMPUTE_CAPABILITY_MINOR = 76
    MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97


class CaptureMode(IntEnum):
    """cudaStreamCaptureMode: which threads may make which potentially unsafe calls meanwhile."""

    GLOBAL = 0
    THREAD_LOCAL = 1
    RELAXED = 2


class CaptureStatus(IntEnum):
    """cudaStreamCaptureStatus."""

    NONE = 0
    ACTIVE = 1
    INVALIDATED = 2


class StreamFlags(IntFlag):
    """Flags of cudaStreamCreateWithPriority."""

    DEFAULT = 0
    NON_BLOCKING = 1


class EventFlags(IntFlag):
    """Flags of cudaEventCreateWithFlags."""

    DEFAULT = 0
    BLOCKING_SYNC = 1
    DISABLE_TIMING = 2
    INTERPROCESS = 4


class NodeType(IntEnum):
    """cudaGraphNodeType."""

    KERNEL = 0
    MEMCPY = 1
    MEMSET = 2
    HOST = 3
    GRAPH = 4
    EMPTY = 5
    EVENT_WAIT = 6
    EVENT_RECORD = 7
    EXT_SEMAPHORE_SIGNAL = 8
    EXT_SEMAPHORE_WAIT = 9
    MEM_ALLOC = 10
    MEM_FREE = 11
    BATCH_MEM_OP = 12
    CONDITIONAL = 13


class DependencyType(IntEnum):
    """cudaGraphDependencyType."""

    DEFAULT = 0
    PROGRAMMATIC = 1


class KernelNodePort(IntEnum):
    """cudaGraphKernelNodePort*: which moment of the upstream kernel an edge waits for."""

    DEFAULT = 0
    PROGRAMMATIC = 1
    LAUNCH_COMPLETION = 2


class ConditionalNodeType(IntEnum):
    """cudaGraphConditionalNodeType."""

    IF = 0
    WHILE = 1
    SWITCH = 2


class ConditionalHandleFlags(IntFlag):
    """cudaGraphConditionalHandleFlags."""

    NONE = 0
    ASSIGN_DEFAULT = 1


class InstantiateFlags(IntFlag):
    """cudaGraphInstantiateFlags."""

    NONE = 0
    AUTO_FREE_ON_LAUNCH = 1
    UPLOAD = 2
    DEVICE_LAUNCH = 4
    USE_NODE_PRIORITY = 8


class ExecUpdateStatus(IntEnum):
    """cudaGraphExecUpdateResult."""

    SUCCESS = 0
    ERROR = 1
    TOPOLOGY_CHANGED = 2
    NODE_TYPE_CHANGED = 3
    FUNCTION_CHANGED = 4
    PARAMETERS_CHANGED = 5
    NOT_SUPPORTED = 6
    UNSUPPORTED_FUNCTION_CHANGE = 7
    ATTRIBUTES_CHANGED = 8


class GraphMemAttribute(IntEnum):
    """cudaGraphMemAttributeType: bytes of alloc nodes on a device, now and at most."""

    USED_MEM_CURRENT = 0
    USED_MEM_HIGH = 1
    RESERVED_MEM_CURRENT = 2
    RESERVED_MEM_HIGH = 3


class LaunchAttributeID(IntEnum):
    """cudaLaunchAttributeID, as far as kernel nodes and launches use it here."""

    COOPERATIVE = 2
    CLUSTER_DIMENSION = 4
    PROGRAMMATIC_STREAM_SERIALIZATION = 6
    PRIORITY = 8


# --- parameter blocks ----------------------------------------------------------------------------


class EdgeData(NamedTuple):
    """cudaGraphEdgeData: the annotation of one edge. All zero is a plain, full dependency."""

    from_port: int = 0
    to_port: int = 0
    type: int = 0


class Edge(NamedTuple):
    """One edge between two node handles."""

    from_node: int
    to_node: int
    data: EdgeData = EdgeData()


class LaunchAttribute(NamedTuple):
    """cudaLaunchAttribute: ``value`` holds (x, y, z) for clusters and (value,) otherwise."""

    id: LaunchAttributeID
    value: tuple[int, ...]


class KernelNodeParams(NamedTuple):
    """cudaKernelNodeParams.

    ``kernel_params`` is the address of a ``void*[]``, one pointer per argument; ``extra`` the
    address of a ``CU_LAUNCH_PARAM_*`` list. Exactly one is nonzero for a kernel with parameters.
    CUDA copies the values during the call, never later.
    """

    function: int
    grid: Dim3
    block: Dim3
    shared_mem: int
    kernel_params: int
    extra: int = 0


class MemcpyNodeParams(NamedTuple):
    """cudaMemcpy3DParms between two linear allocations.

    ``width`` is in bytes, ``height`` in rows, ``depth`` in slices; a 1-D copy has height and depth
    1. A pitch is the distance of two rows in bytes, ``dst_height``/``src_height`` the rows of a
    slice as allocated.
    """

    dst: int
    dst_pitch: int
    dst_height: int
    src: int
    src_pitch: int
    src_height: int
    width: int
    height: int
    depth: int
    kind: MemcpyKind = MemcpyKind.DEFAULT

    @property
    def dst_span(self) -> int:
        """Bytes from the first to behind the last one that is written."""
        return ((self.depth - 1) * self.dst_height + self.height - 1) * self.dst_pitch + self.width

    @property
    def src_span(self) -> int:
        """Bytes from the first to behind the last one that is read."""
        return ((self.depth - 1) * self.src_height + self.height - 1) * self.src_pitch + self.width


class MemsetNodeParams(NamedTuple):
    """cudaMemsetParams: ``width`` counts elements of ``element_size`` (1, 2 or 4) bytes."""

    dst: int
    pitch: int
    value: int
    element_size: int
    width: int
    height: int

    @property
    def span(self) -> int:
        """Bytes from the first to behind the last one that is written."""
        return (self.height - 1) * self.pitch + self.width * self.element_size


class HostNodeParams(NamedTuple):
    """cudaHostNodeParams: address of a C function ``void (*)(void*)`` and its argument."""

    fn: int
    user_data: int


class ConditionalNodeParams(NamedTuple):
    """cudaConditionalNodeParams: ``size`` is the number of bodies that CUDA makes."""

    handle: int
    type: ConditionalNodeType
    size: int


class MemAllocNodeParams(NamedTuple):
    """cudaMemAllocNodeParams of memory on one device: the address is CUDA's, and fixed."""

    address: int
    nbytes: int
    device: int


class MemFreeNodeParams(NamedTuple):
    """What a free node frees: an alloc node's address."""

    address: int


class LaunchConfig(NamedTuple):
    """CUlaunchConfig with its attributes."""

    grid: Dim3
    block: Dim3
    shared_mem: int
    stream: int
    attributes: tuple[LaunchAttribute, ...] = ()


class CaptureInfo(NamedTuple):
    """cudaStreamGetCaptureInfo. Without an active capture only ``status`` means anything."""

    status: CaptureStatus
    id: int
    graph: int
    dependencies: tuple[int, ...]


class ExecUpdateResultInfo(NamedTuple):
    """cudaGraphExecUpdateResultInfo: node handles are 0 when CUDA names none.

    ``error_node`` belongs to the graph that was passed, ``error_from_node`` is the far end of the
    offending edge when the topology differs.
    """

    result: ExecUpdateStatus
    error_node: int
    error_from_node: int


class PointerAttributes(NamedTuple):
    """cudaPointerAttributes."""

    type: MemoryType
    device: int
    device_pointer: int
    host_pointer: int


class TwinLaunch(Protocol):
    """One launch as a twin sees it. Built by the simulator, read by :mod:`graphkit.kernel`."""

    @property
    def grid(self) -> Dim3: ...
    @property
    def block(self) -> Dim3: ...
    @property
    def shared_mem(self) -> int: ...
    @property
    def arguments(self) -> tuple[bytes, ...]:
        """The raw bytes of each parameter, in order."""
        ...

    def memory(self, address: int, nbytes: int, *, write: bool) -> NDArray[np.uint8]:
        """View device memory; ``write`` says whether the kernel may change it."""
        ...

    def set_conditional(self, handle: int, value: int) -> None:
        """Do what cudaGraphSetConditional does on the device."""
        ...


class KernelSource(NamedTuple):
    """What :meth:`Runtime.function_load` needs: ``code`` for CUDA, ``twin`` for the simulator.

    ``layout`` holds (offset, size) of each parameter, as cuFuncGetParamInfo would report them.
    """

    code: str
    name: str
    options: tuple[str, ...]
    layout: tuple[tuple[int, int], ...]
    twin: Callable[[TwinLaunch], None] | None


class LoadedFunction(NamedTuple):
    """A CUfunction and whatever must stay alive for it to stay valid."""

    handle: int
    owner: object


class HandleCell(Protocol):
    """Where a handle is now: 0 once it was destroyed."""

    value: int


# --- the calls -----------------------------------------------------------------------------------


class Runtime(Protocol):
    """Every CUDA call graphkit makes. Handles, addresses and streams are ints; 0 is none."""

    @property
    def name(self) -> str:
        """``"cuda"`` or ``"sim"``."""
        ...

    # devices
    def runtime_get_version(self) -> int: ...
    def driver_get_version(self) -> int: ...
    def get_device_count(self) -> int: ...
    def get_device(self) -> int: ...
    def set_device(self, device: int) -> None: ...
    def device_get_attribute(self, attribute: int, device: int) -> int: ...
    def get_device_name(self, device: int) -> str:
        """cuDeviceGetName."""
        ...

    def device_synchronize(self) -> None: ...
    def device_get_stream_priority_range(self) -> tuple[int, int]:
        """Return (least, greatest); the greatest priority is the smaller number."""
        ...

    def mem_get_info(self) -> tuple[int, int]:
        """Return (free, total) bytes."""
        ...

    def feature_attempts(self) -> Mapping[str, Callable[[], None]]:
        """Return a call for each feature that has no method here; it raises where that is absent.

        Not a call of CUDA's but several each, for :func:`graphkit.probe` alone.
        """
        ...

    def get_last_error(self) -> int:
        """Return and clear the calling thread's last error code; never raises."""
        ...

    # memory
    def malloc(self, nbytes: int) -> int: ...
    def free(self, address: int) -> None: ...
    def malloc_async(self, nbytes: int, stream: int) -> int: ...
    def free_async(self, address: int, stream: int) -> None: ...
    def host_alloc(self, nbytes: int) -> int:
        """cudaHostAlloc, portable: pinned host memory."""
        ...

    def free_host(self, address: int) -> None: ...
    def memcpy(self, dst: int, src: int, nbytes: int, kind: MemcpyKind) -> None: ...
    def memcpy_async(
        self, dst: int, src: int, nbytes: int, kind: MemcpyKind, stream: int
    ) -> None: ...
    def memcpy_3d_async(self, params: MemcpyNodeParams, stream: int) -> None: ...
    def memset_async(self, address: int, value: int, nbytes: int, stream: int) -> None: ...
    def pointer_get_attributes(self, address: int) -> PointerAttributes: ...
    def device_get_graph_mem_attribute(self, device: int, attribute: GraphMemAttribute) -> int: ...
    def device_graph_mem_trim(self, device: int) -> None: ...

    # streams
    def stream_create_with_priority(self, flags: StreamFlags, priority: int) -> int: ...
    def stream_destroy(self, stream: int) -> None: ...
    def stream_synchronize(self, stream: int) -> None: ...
    def stream_query(self, stream: int) -> bool:
        """Return True when all work is done; cudaErrorNotReady is False, not an error."""
        ...

    def stream_wait_event(self, stream: int, event: int) -> None: ...
    def stream_get_priority(self, stream: int) -> int: ...
    def stream_get_flags(self, stream: int) -> StreamFlags: ...
    def launch_host_func(self, stream: int, params: HostNodeParams) -> None: ...

    # events
    def event_create_with_flags(self, flags: EventFlags) -> int: ...
    def event_destroy(self, event: int) -> None: ...
    def event_record(self, event: int, stream: int) -> None: ...
    def event_query(self, event: int) -> bool:
        """Return True when the event is done; cudaErrorNotReady is False, not an error."""
        ...

    def event_synchronize(self, event: int) -> None: ...
    def event_elapsed_time(self, start: int, end: int) -> float:
        """Return milliseconds. The simulator raises NotSimulated: it never reports a time."""
        ...

    # capture
    def stream_begin_capture(self, stream: int, mode: CaptureMode) -> None: ...
    def stream_begin_capture_to_graph(
        self, stream: int, graph: int, dependencies: Sequence[int], mode: CaptureMode
    ) -> None: ...
    def stream_end_capture(self, stream: int) -> int:
        """Return the captured graph."""
        ...

    def stream_is_capturing(self, stream: int) -> CaptureStatus: ...
    def stream_get_capture_info(self, stream: int) -> CaptureInfo: ...
    def stream_update_capture_dependencies(self, stream: int, dependencies: Sequence[int]) -> None:
        """Let the next captured node come behind these alone (cudaStreamSetCaptureDependencies)."""
        ...

    def thread_exchange_stream_capture_mode(self, mode: CaptureMode) -> CaptureMode:
        """Set the calling thread's mode, return the previous one."""
        ...

    # functions
    def function_load(self, source: KernelSource) -> LoadedFunction:
        """Load a kernel: CuPy compiles and loads the code (NVRTC, cuModuleLoadData), or the twin.

        The one method that is more than a call: two runtimes share no image format.
        """
        ...

    def func_get_param_info(self, function: int, index: int) -> tuple[int, int] | None:
        """Return (offset, size) of a parameter, None past the last one (cuFuncGetParamInfo)."""
        ...

    def func_get_name(self, function: int) -> str: ...
    def func_get_attribute(self, attribute: int, function: int) -> int: ...
    def func_set_attribute(self, function: int, attribute: int, value: int) -> None: ...
    def launch_kernel_ex(self, config: LaunchConfig, function: int, kernel_params: int) -> None: ...

    # graphs
    def graph_create(self) -> int: ...
    def graph_destroy(self, graph: int) -> None: ...
    def graph_clone(self, graph: int) -> int: ...
    def graph_node_find_in_clone(self, node: int, clone: int) -> int: ...
    def graph_add_empty_node(self, graph: int, dependencies: Sequence[int]) -> int: ...
    def graph_add_kernel_node(
        self, graph: int, dependencies: Sequence[int], params: KernelNodeParams
    ) -> int: ...
    def graph_add_memcpy_node(
        self, graph: int, dependencies: Sequence[int], params: MemcpyNodeParams
    ) -> int: ...
    def graph_add_memset_node(
        self, graph: int, dependencies: Sequence[int], params: MemsetNodeParams
    ) -> int: ...
    def graph_add_host_node(
        self, graph: int, dependencies: Sequence[int], params: HostNodeParams
    ) -> int: ...
    def graph_add_event_record_node(
        self, graph: int, dependencies: Sequence[int], event: int
    ) -> int: ...
    def graph_add_event_wait_node(
        self, graph: int, dependencies: Sequence[int], event: int
    ) -> int: ...
    def graph_add_child_graph_node(
        self, graph: int, dependencies: Sequence[int], child: int
    ) -> int: ...
    def graph_conditional_handle_create(
        self, graph: int, default: int, flags: ConditionalHandleFlags
    ) -> int:
        """cuGraphConditionalHandleCreate; there is no call that destroys a handle."""
        ...

    def graph_add_conditional_node(
        self, graph: int, dependencies: Sequence[int], params: ConditionalNodeParams
    ) -> tuple[int, tuple[int, ...]]:
        """cuGraphAddNode: return the node, and its bodies, which belong to it."""
        ...

    def graph_add_mem_alloc_node(
        self, graph: int, dependencies: Sequence[int], nbytes: int, device: int
    ) -> tuple[int, int]:
        """Return the node and the address that it allocates."""
        ...

    def graph_add_mem_free_node(
        self, graph: int, dependencies: Sequence[int], address: int
    ) -> int: ...
    def graph_destroy_node(self, node: int) -> None: ...
    def graph_add_dependencies(self, graph: int, edges: Sequence[Edge]) -> None: ...
    def graph_remove_dependencies(self, graph: int, edges: Sequence[Edge]) -> None: ...
    def graph_get_nodes(self, graph: int) -> list[int]: ...
    def graph_get_edges(self, graph: int) -> list[Edge]: ...
    def graph_node_get_type(self, node: int) -> NodeType: ...
    def graph_kernel_node_get_params(self, node: int) -> KernelNodeParams:
        """cuGraphKernelNodeGetParams: the memory it points at belongs to the node. Copy it."""
        ...

    def graph_kernel_node_set_params(self, node: int, params: KernelNodeParams) -> None: ...
    def graph_kernel_node_get_attribute(
        self, node: int, attribute: LaunchAttributeID
    ) -> LaunchAttribute: ...
    def graph_kernel_node_set_attribute(self, node: int, attribute: LaunchAttribute) -> None: ...
    def graph_memcpy_node_get_params(self, node: int) -> MemcpyNodeParams: ...
    def graph_memset_node_get_params(self, node: int) -> MemsetNodeParams: ...
    def graph_host_node_get_params(self, node: int) -> HostNodeParams: ...
    def graph_mem_alloc_node_get_params(self, node: int) -> MemAllocNodeParams: ...
    def graph_mem_free_node_get_params(self, node: int) -> MemFreeNodeParams: ...
    def graph_event_record_node_get_event(self, node: int) -> int: ...
    def graph_event_wait_node_get_event(self, node: int) -> int: ...
    def graph_child_graph_node_get_graph(self, node: int) -> int:
        """Return the node's own copy of the child; it belongs to the node."""
        ...

    def graph_debug_dot_print(self, graph: int, path: str, verbose: bool) -> None: ...

    # executable graphs
    def graph_instantiate_with_params(
        self, graph: int, flags: InstantiateFlags, upload_stream: int
    ) -> int: ...
    def graph_exec_destroy(self, exec_: int) -> None: ...
    def graph_upload(self, exec_: int, stream: int) -> None: ...
    def graph_launch(self, exec_: int, stream: int) -> None: ...
    def graph_exec_update(self, exec_: int, graph: int) -> ExecUpdateResultInfo:
        """cuGraphExecUpdate_v2: a refusal (910) is a result, not an exception."""
        ...

    def graph_exec_kernel_node_set_params(
        self, exec_: int, node: int, params: KernelNodeParams
    ) -> None: ...
    def graph_exec_memcpy_node_set_params(
        self, exec_: int, node: int, params: MemcpyNodeParams
    ) -> None: ...
    def graph_exec_memset_node_set_params(
        self, exec_: int, node: int, params: MemsetNodeParams
    ) -> None: ...
    def graph_exec_host_node_set_params(
        self, exec_: int, node: int, params: HostNodeParams
    ) -> None: ...
    def graph_exec_event_record_node_set_event(self, exec_: int, node: int, event: int) -> None: ...
    def graph_exec_event_wait_node_set_event(self, exec_: int, node: int, event: int) -> None: ...
    def graph_exec_child_graph_node_set_params(self, exec_: int, node: int, child: int) -> None: ...
    def graph_node_set_enabled(self, exec_: int, node: int, enabled: bool) -> None: ...
    def graph_node_get_enabled(self, exec_: int, node: int) -> bool: ...

    # hot calls, prebound: the fastest installed way to make one call again and again
    def graph_launcher(self, exec_: HandleCell, stream: int | HandleCell) -> Callable[[], Any]:
        """Return a callable that is ``graph_launch(exec_.value, stream)``, all else prebound.

        It raises ValueError once a cell is empty: checking a cell costs less than a second
        function around this one would.
        """
        ...

    def kernel_node_setter(
        self, exec_: int, node: int, params: KernelNodeParams
    ) -> Callable[[], Any]:
        """Return ``graph_exec_kernel_node_set_params`` prebound to ``params``.

        Each call reads the argument values afresh from the memory that ``params.kernel_params``
        (or ``extra``) points at; grid, block, shared memory and function stay as given.
        """
        ...

    def memcpy_node_setter(
        self, exec_: int, node: int, params: MemcpyNodeParams, *, moves_dst: bool
    ) -> Callable[[int], Any]:
        """Return ``graph_exec_memcpy_node_set_params`` prebound to all but one address.

        Args:
            exec_: the exec.
            node: the node.
            params: a copy in one dimension.
            moves_dst: whether the address is that of the destination; else it is the source's.
        """
        ...

    def kernel_node_struct(self, params: KernelNodeParams) -> Any:
        """Return ``params`` as :meth:`kernel_nodes_setter` takes them, for any exec and node."""
        ...

    def kernel_nodes_setter(
        self, exec_: int, nodes: Sequence[tuple[int, Any]]
    ) -> Callable[[], Any]:
        """Return ``graph_exec_kernel_node_set_params`` for several nodes, one call each, prebound.

        Args:
            exec_: the exec.
            nodes: (node, :meth:`kernel_node_struct`) of each. When one is refused, those before
                it are set and those behind it are not.
        """
        ...
