"""CudaRuntime: the seam over cuda.bindings.

The runtime API by default. The driver API where the runtime has no call (functions, launches with
attributes) and for everything about kernel nodes, since a runtime older than 13.3 refuses a
``CUfunction`` there. Their status numbers are the same; an error names the call that was made.

Only imported when the CUDA runtime is chosen: everything else works without CUDA installed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from graphkit.errors import CudaError, RuntimeUnavailableError, explain, refuse_closed
from graphkit.runtime import cuda_bindings, cuda_driver, cuda_load, cuda_params, cuda_probe
from graphkit.runtime.cuda_bindings import driver, node_list, refuse
from graphkit.runtime.cuda_bindings import runtime as cudart
from graphkit.runtime.cuda_params import KernelBlock
from graphkit.runtime.protocol import (
    CaptureInfo,
    CaptureMode,
    CaptureStatus,
    ConditionalHandleFlags,
    ConditionalNodeParams,
    DeviceAttribute,
    Edge,
    EventFlags,
    ExecUpdateResultInfo,
    GraphMemAttribute,
    HandleCell,
    HostNodeParams,
    InstantiateFlags,
    KernelNodeParams,
    KernelSource,
    LaunchAttribute,
    LaunchAttributeID,
    LaunchConfig,
    LoadedFunction,
    MemAllocNodeParams,
    MemcpyKind,
    MemcpyNodeParams,
    MemFreeNodeParams,
    MemoryType,
    MemsetNodeParams,
    NodeType,
    PointerAttributes,
    StreamFlags,
    dotted_version,
)
from graphkit.statuses import StatusCode

__all__ = ["CudaRuntime"]

_HOST_ALLOC_PORTABLE: Final = 1
_DOT_VERBOSE: Final = 1
# What calls of the driver API return on a thread that has made no call of the runtime API yet.
_NO_CONTEXT: Final = (StatusCode.DEVICE_UNINITIALIZED, StatusCode.INITIALIZATION_ERROR)

# Prebound: a module attribute of cuda.bindings costs two dictionary look-ups per call.
_add_kernel_node: Callable[..., Any] = driver.cuGraphAddKernelNode
_exec_kernel_node_set_params: Callable[..., Any] = driver.cuGraphExecKernelNodeSetParams
_exec_memcpy_node_set_params_1d: Callable[..., Any] = cudart.cudaGraphExecMemcpyNodeSetParams1D

# Blocks nobody is using. A list, not one block per thread: the bindings let go of Python's lock
# during a call, and a finalizer may run between filling a block and using it; pop and append are
# atomic, and whoever holds a block holds it alone.
_blocks: list[KernelBlock] = []


@lru_cache(maxsize=1 << 16)
def _node_handle(node: int) -> Any:
    """Return a node as cuda.bindings takes it: one object, however many calls are bound to it."""
    return driver.CUgraphNode(node)


def _borrow_block() -> KernelBlock:
    try:
        return _blocks.pop()
    except IndexError:
        return KernelBlock()


def _require_device() -> None:
    """Raise RuntimeUnavailableError when there is no driver, too old a driver or no device."""
    status, count = cudart.cudaGetDeviceCount()
    if not status and count:
        return
    code = int(status) or StatusCode.NO_DEVICE
    cudart.cudaGetLastError()
    supported = cuda_driver.driver_version()
    fix = ""
    if supported is None:
        reason, fix = cuda_driver.NO_DRIVER
    elif code == StatusCode.INSUFFICIENT_DRIVER:
        wanted = dotted_version(int(cudart.cudaRuntimeGetVersion()[1]))
        reason = (
            f"the NVIDIA driver supports CUDA {dotted_version(supported)}, and the installed "
            f"cuda-bindings are for CUDA {wanted}"
        )
        fix = f"Update the driver, or {cuda_driver.install_command(supported)}"
    elif code == StatusCode.NO_DEVICE:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        reason = "the NVIDIA driver sees no device"
        if hidden is not None:
            reason += f" (CUDA_VISIBLE_DEVICES is {hidden!r})"
        fix = "nvidia-smi should list one"
    else:
        known = explain(code)
        reason = f"cudaGetDeviceCount returned {code} {known.name}: {known.meaning}"
    raise RuntimeUnavailableError(reason, fix)


_thread = threading.local()  # has `ready` once a context is current on this thread


def _ensure_context() -> None:
    """Make the device's primary context current on this thread, unless some context is.

    Every call of the runtime API does so by itself. Of the driver API most calls return 201 on a
    thread that has made no runtime call yet, and cuGraphExecKernelNodeSetParams crashes (driver
    580). A context that is current is left alone: it may be another library's own.
    """
    _thread.ready = True
    status, context = driver.cuCtxGetCurrent()
    if not status and int(context):
        return
    status, device = cudart.cudaGetDevice()
    if status:
        refuse("cudaGetDevice", status)
    (status,) = cudart.cudaSetDevice(device)
    if status:
        refuse("cudaSetDevice", status)


def _driver(call: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """Make a call of the driver API; once more, with a context, if the thread has none."""
    if not hasattr(_thread, "ready"):
        _ensure_context()
    result: tuple[Any, ...] = call(*arguments)
    if result[0]:
        if int(result[0]) in _NO_CONTEXT:  # somebody took the context away again
            _ensure_context()
            result = call(*arguments)
        if result[0]:
            refuse(call.__name__, result[0])
    return result


def _ctypes_call(name: str, call: Callable[[], int]) -> None:
    """The same for a status that comes from ctypes."""
    if not hasattr(_thread, "ready"):
        _ensure_context()
    status = call()
    if status in _NO_CONTEXT:
        _ensure_context()
        status = call()
    if status:
        refuse(name, status)


class _NeverRaised(Exception):  # noqa: N818 - says what it is
    """Stands where a library's own exception type is caught, when its calls are not in use."""


def _launch_by_bindings(exec_: int, stream: int) -> None:
    """cudaGraphLaunch of cuda.bindings."""
    (status,) = cudart.cudaGraphLaunch(exec_, stream)
    if status:
        refuse("cudaGraphLaunch", status)


class CudaRuntime:
    """:class:`graphkit.runtime.protocol.Runtime` on a device.

    Holds no state of CUDA's: every method is a call and the check of its status. A failure clears
    the calling thread's last CUDA error, since the exception carries it.

    Raises:
        RuntimeUnavailableError: no driver, a driver too old for the installed cuda-bindings, or no
            device.
    """

    def __init__(self) -> None:
        _require_device()
        # The way to launch is chosen by the first launch, since the choice imports CuPy.
        self._launch: Callable[[int, int], Any] | None = None
        self._launch_error: Any = _NeverRaised

    @property
    def name(self) -> str:
        return "cuda"

    def __repr__(self) -> str:
        return "CudaRuntime()"

    # --- devices ---------------------------------------------------------------------------------

    def runtime_get_version(self) -> int:
        status, version = cudart.cudaRuntimeGetVersion()
        if status:
            refuse("cudaRuntimeGetVersion", status)
        return int(version)

    def driver_get_version(self) -> int:
        status, version = cudart.cudaDriverGetVersion()
        if status:
            refuse("cudaDriverGetVersion", status)
        return int(version)

    def get_device_count(self) -> int:
        status, count = cudart.cudaGetDeviceCount()
        if status:
            refuse("cudaGetDeviceCount", status)
        return int(count)

    def get_device(self) -> int:
        status, device = cudart.cudaGetDevice()
        if status:
            refuse("cudaGetDevice", status)
        return int(device)

    def set_device(self, device: int) -> None:
        (status,) = cudart.cudaSetDevice(device)
        if status:
            refuse("cudaSetDevice", status)

    def device_get_attribute(self, attribute: int, device: int) -> int:
        status, value = cudart.cudaDeviceGetAttribute(cudart.cudaDeviceAttr(attribute), device)
        if status:
            refuse("cudaDeviceGetAttribute", status)
        return int(value)

    def get_device_name(self, device: int) -> str:
        _, handle = _driver(driver.cuDeviceGet, device)
        _, name = _driver(driver.cuDeviceGetName, 256, handle)
        return str(name.split(b"\0", 1)[0].decode(errors="replace"))

    def device_synchronize(self) -> None:
        (status,) = cudart.cudaDeviceSynchronize()
        if status:
            refuse("cudaDeviceSynchronize", status)

    def device_get_stream_priority_range(self) -> tuple[int, int]:
        status, least, greatest = cudart.cudaDeviceGetStreamPriorityRange()
        if status:
            refuse("cudaDeviceGetStreamPriorityRange", status)
        return int(least), int(greatest)

    def mem_get_info(self) -> tuple[int, int]:
        status, free, total = cudart.cudaMemGetInfo()
        if status:
            refuse("cudaMemGetInfo", status)
        return int(free), int(total)

    def feature_attempts(self) -> Mapping[str, Callable[[], None]]:
        return cuda_probe.attempts()

    def get_last_error(self) -> int:
        (status,) = cudart.cudaGetLastError()
        return int(status)

    # --- memory ----------------------------------------------------------------------------------

    def malloc(self, nbytes: int) -> int:
        status, address = cudart.cudaMalloc(nbytes)
        if status:
            refuse("cudaMalloc", status, f"{nbytes:,} bytes")
        return int(address)

    def free(self, address: int) -> None:
        (status,) = cudart.cudaFree(address)
        if status:
            refuse("cudaFree", status)

    def malloc_async(self, nbytes: int, stream: int) -> int:
        status, address = cudart.cudaMallocAsync(nbytes, stream)
        if status:
            refuse("cudaMallocAsync", status, f"{nbytes:,} bytes")
        return int(address)

    def free_async(self, address: int, stream: int) -> None:
        (status,) = cudart.cudaFreeAsync(address, stream)
        if status:
            refuse("cudaFreeAsync", status)

    def host_alloc(self, nbytes: int) -> int:
        status, address = cudart.cudaHostAlloc(nbytes, _HOST_ALLOC_PORTABLE)
        if status:
            refuse("cudaHostAlloc", status, f"{nbytes:,} bytes")
        return int(address)

    def free_host(self, address: int) -> None:
        (status,) = cudart.cudaFreeHost(address)
        if status:
            refuse("cudaFreeHost", status)

    def memcpy(self, dst: int, src: int, nbytes: int, kind: MemcpyKind) -> None:
        (status,) = cudart.cudaMemcpy(dst, src, nbytes, kind)
        if status:
            refuse("cudaMemcpy", status)

    def memcpy_async(self, dst: int, src: int, nbytes: int, kind: MemcpyKind, stream: int) -> None:
        (status,) = cudart.cudaMemcpyAsync(dst, src, nbytes, kind, stream)
        if status:
            refuse("cudaMemcpyAsync", status)

    def memcpy_3d_async(self, params: MemcpyNodeParams, stream: int) -> None:
        (status,) = cudart.cudaMemcpy3DAsync(cuda_params.memcpy_struct(params), stream)
        if status:
            refuse("cudaMemcpy3DAsync", status)

    def memset_async(self, address: int, value: int, nbytes: int, stream: int) -> None:
        (status,) = cudart.cudaMemsetAsync(address, value, nbytes, stream)
        if status:
            refuse("cudaMemsetAsync", status)

    def pointer_get_attributes(self, address: int) -> PointerAttributes:
        status, found = cudart.cudaPointerGetAttributes(address)
        if status:
            refuse("cudaPointerGetAttributes", status)
        return PointerAttributes(
            MemoryType(int(found.type)),
            int(found.device),
            int(found.devicePointer),
            int(found.hostPointer),
        )

    def device_get_graph_mem_attribute(self, device: int, attribute: GraphMemAttribute) -> int:
        status, value = cudart.cudaDeviceGetGraphMemAttribute(
            device, cudart.cudaGraphMemAttributeType(int(attribute))
        )
        if status:
            refuse("cudaDeviceGetGraphMemAttribute", status)
        return int(value)

    def device_graph_mem_trim(self, device: int) -> None:
        (status,) = cudart.cudaDeviceGraphMemTrim(device)
        if status:
            refuse("cudaDeviceGraphMemTrim", status)

    # --- streams ---------------------------------------------------------------------------------

    def stream_create_with_priority(self, flags: StreamFlags, priority: int) -> int:
        status, stream = cudart.cudaStreamCreateWithPriority(int(flags), priority)
        if status:
            refuse("cudaStreamCreateWithPriority", status)
        return int(stream)

    def stream_destroy(self, stream: int) -> None:
        (status,) = cudart.cudaStreamDestroy(stream)
        if status:
            refuse("cudaStreamDestroy", status)

    def stream_synchronize(self, stream: int) -> None:
        (status,) = cudart.cudaStreamSynchronize(stream)
        if status:
            refuse("cudaStreamSynchronize", status)

    def stream_query(self, stream: int) -> bool:
        (status,) = cudart.cudaStreamQuery(stream)
        if status:
            if int(status) != StatusCode.NOT_READY:
                refuse("cudaStreamQuery", status)
            cudart.cudaGetLastError()  # not ready counts as the last error, too
            return False
        return True

    def stream_wait_event(self, stream: int, event: int) -> None:
        (status,) = cudart.cudaStreamWaitEvent(stream, event, 0)
        if status:
            refuse("cudaStreamWaitEvent", status)

    def stream_get_priority(self, stream: int) -> int:
        status, priority = cudart.cudaStreamGetPriority(stream)
        if status:
            refuse("cudaStreamGetPriority", status)
        return int(priority)

    def stream_get_flags(self, stream: int) -> StreamFlags:
        status, flags = cudart.cudaStreamGetFlags(stream)
        if status:
            refuse("cudaStreamGetFlags", status)
        return StreamFlags(int(flags))

    def launch_host_func(self, stream: int, params: HostNodeParams) -> None:
        _ctypes_call("cuLaunchHostFunc", lambda: cuda_driver.launch_host_func(stream, params))

    # --- events ----------------------------------------------------------------------------------

    def event_create_with_flags(self, flags: EventFlags) -> int:
        status, event = cudart.cudaEventCreateWithFlags(int(flags))
        if status:
            refuse("cudaEventCreateWithFlags", status)
        return int(event)

    def event_destroy(self, event: int) -> None:
        (status,) = cudart.cudaEventDestroy(event)
        if status:
            refuse("cudaEventDestroy", status)

    def event_record(self, event: int, stream: int) -> None:
        (status,) = cudart.cudaEventRecord(event, stream)
        if status:
            refuse("cudaEventRecord", status)

    def event_query(self, event: int) -> bool:
        (status,) = cudart.cudaEventQuery(event)
        if status:
            if int(status) != StatusCode.NOT_READY:
                refuse("cudaEventQuery", status)
            cudart.cudaGetLastError()
            return False
        return True

    def event_synchronize(self, event: int) -> None:
        (status,) = cudart.cudaEventSynchronize(event)
        if status:
            refuse("cudaEventSynchronize", status)

    def event_elapsed_time(self, start: int, end: int) -> float:
        status, milliseconds = cudart.cudaEventElapsedTime(start, end)
        if status:
            refuse("cudaEventElapsedTime", status)
        return float(milliseconds)

    # --- capture ---------------------------------------------------------------------------------

    def stream_begin_capture(self, stream: int, mode: CaptureMode) -> None:
        (status,) = cudart.cudaStreamBeginCapture(stream, mode)
        if status:
            refuse("cudaStreamBeginCapture", status)

    def stream_begin_capture_to_graph(
        self, stream: int, graph: int, dependencies: Sequence[int], mode: CaptureMode
    ) -> None:
        (status,) = cudart.cudaStreamBeginCaptureToGraph(
            stream,
            graph,
            node_list(dependencies),
            None,
            len(dependencies),
            cudart.cudaStreamCaptureMode(int(mode)),
        )
        if status:
            refuse("cudaStreamBeginCaptureToGraph", status)

    def stream_end_capture(self, stream: int) -> int:
        status, graph = cudart.cudaStreamEndCapture(stream)
        if status:
            refuse("cudaStreamEndCapture", status)
        return int(graph)

    def stream_is_capturing(self, stream: int) -> CaptureStatus:
        status, state = cudart.cudaStreamIsCapturing(stream)
        if status:
            refuse("cudaStreamIsCapturing", status)
        return CaptureStatus(int(state))

    def stream_get_capture_info(self, stream: int) -> CaptureInfo:
        return cuda_bindings.capture_info(stream)

    def stream_update_capture_dependencies(self, stream: int, dependencies: Sequence[int]) -> None:
        cuda_bindings.set_capture_dependencies(stream, dependencies)

    def thread_exchange_stream_capture_mode(self, mode: CaptureMode) -> CaptureMode:
        status, previous = cudart.cudaThreadExchangeStreamCaptureMode(mode)
        if status:
            refuse("cudaThreadExchangeStreamCaptureMode", status)
        return CaptureMode(int(previous))

    # --- functions -------------------------------------------------------------------------------

    def function_load(self, source: KernelSource) -> LoadedFunction:
        """Compile with NVRTC and load with cuModuleLoadData, both through CuPy.

        Raises:
            RuntimeUnavailableError: CuPy or its NVRTC is missing.
            GraphkitError: the source does not compile (the compiler's log is in the message), or it
                has no kernel of that name.
        """
        cuda_load.cupy_cuda()  # before any CUDA call: say first what is missing
        _ensure_context()
        device = self.get_device()
        capability = (
            self.device_get_attribute(DeviceAttribute.COMPUTE_CAPABILITY_MAJOR, device),
            self.device_get_attribute(DeviceAttribute.COMPUTE_CAPABILITY_MINOR, device),
        )
        return cuda_load.load(source, capability)

    def func_get_param_info(self, function: int, index: int) -> tuple[int, int] | None:
        status, offset, size = driver.cuFuncGetParamInfo(function, index)
        if status:
            if int(status) == StatusCode.INVALID_VALUE:
                return None  # past the last parameter
            _, offset, size = _driver(driver.cuFuncGetParamInfo, function, index)
        return int(offset), int(size)

    def func_get_name(self, function: int) -> str:
        _, name = _driver(driver.cuFuncGetName, function)
        return str(name.decode(errors="replace"))

    def func_get_attribute(self, attribute: int, function: int) -> int:
        _, value = _driver(
            driver.cuFuncGetAttribute, driver.CUfunction_attribute(attribute), function
        )
        return int(value)

    def func_set_attribute(self, function: int, attribute: int, value: int) -> None:
        _driver(driver.cuFuncSetAttribute, function, driver.CUfunction_attribute(attribute), value)

    def launch_kernel_ex(self, config: LaunchConfig, function: int, kernel_params: int) -> None:
        _driver(
            driver.cuLaunchKernelEx, cuda_params.launch_config(config), function, kernel_params, 0
        )

    # --- graphs ----------------------------------------------------------------------------------

    def graph_create(self) -> int:
        status, graph = cudart.cudaGraphCreate(0)
        if status:
            refuse("cudaGraphCreate", status)
        return int(graph)

    def graph_destroy(self, graph: int) -> None:
        (status,) = cudart.cudaGraphDestroy(graph)
        if status:
            refuse("cudaGraphDestroy", status)

    def graph_clone(self, graph: int) -> int:
        status, clone = cudart.cudaGraphClone(graph)
        if status:
            refuse("cudaGraphClone", status)
        return int(clone)

    def graph_node_find_in_clone(self, node: int, clone: int) -> int:
        status, found = cudart.cudaGraphNodeFindInClone(node, clone)
        if status:
            refuse("cudaGraphNodeFindInClone", status)
        return int(found)

    def graph_add_empty_node(self, graph: int, dependencies: Sequence[int]) -> int:
        status, node = cudart.cudaGraphAddEmptyNode(
            graph, node_list(dependencies), len(dependencies)
        )
        if status:
            refuse("cudaGraphAddEmptyNode", status)
        return int(node)

    def graph_add_kernel_node(
        self, graph: int, dependencies: Sequence[int], params: KernelNodeParams
    ) -> int:
        block = _borrow_block()
        before, count, struct = node_list(dependencies), len(dependencies), block.fill(params)
        if not hasattr(_thread, "ready"):
            _ensure_context()
        status, node = _add_kernel_node(graph, before, count, struct)
        if status:  # again, with a context if that is missing, or to say why it fails
            node = _driver(_add_kernel_node, graph, before, count, struct)[1]
        _blocks.append(block)
        return int(node)

    def graph_add_memcpy_node(
        self, graph: int, dependencies: Sequence[int], params: MemcpyNodeParams
    ) -> int:
        before, count = node_list(dependencies), len(dependencies)
        if params.height == 1 and params.depth == 1:
            call = "cudaGraphAddMemcpyNode1D"
            status, node = cudart.cudaGraphAddMemcpyNode1D(
                graph,
                before,
                count,
                params.dst,
                params.src,
                params.width,
                params.kind,
            )
        else:
            call = "cudaGraphAddMemcpyNode"
            status, node = cudart.cudaGraphAddMemcpyNode(
                graph, before, count, cuda_params.memcpy_struct(params)
            )
        if status:
            refuse(call, status)
        return int(node)

    def graph_add_memset_node(
        self, graph: int, dependencies: Sequence[int], params: MemsetNodeParams
    ) -> int:
        status, node = cudart.cudaGraphAddMemsetNode(
            graph, node_list(dependencies), len(dependencies), cuda_params.memset_struct(params)
        )
        if status:
            refuse("cudaGraphAddMemsetNode", status)
        return int(node)

    def graph_add_host_node(
        self, graph: int, dependencies: Sequence[int], params: HostNodeParams
    ) -> int:
        status, node = cudart.cudaGraphAddHostNode(
            graph, node_list(dependencies), len(dependencies), cuda_params.host_struct(params)
        )
        if status:
            refuse("cudaGraphAddHostNode", status)
        return int(node)

    def graph_add_event_record_node(
        self, graph: int, dependencies: Sequence[int], event: int
    ) -> int:
        status, node = cudart.cudaGraphAddEventRecordNode(
            graph, node_list(dependencies), len(dependencies), event
        )
        if status:
            refuse("cudaGraphAddEventRecordNode", status)
        return int(node)

    def graph_add_event_wait_node(self, graph: int, dependencies: Sequence[int], event: int) -> int:
        status, node = cudart.cudaGraphAddEventWaitNode(
            graph, node_list(dependencies), len(dependencies), event
        )
        if status:
            refuse("cudaGraphAddEventWaitNode", status)
        return int(node)

    def graph_add_child_graph_node(
        self, graph: int, dependencies: Sequence[int], child: int
    ) -> int:
        status, node = cudart.cudaGraphAddChildGraphNode(
            graph, node_list(dependencies), len(dependencies), child
        )
        if status:
            refuse("cudaGraphAddChildGraphNode", status)
        return int(node)

    def graph_conditional_handle_create(
        self, graph: int, default: int, flags: ConditionalHandleFlags
    ) -> int:
        _, context = _driver(driver.cuCtxGetCurrent)
        _, handle = _driver(
            driver.cuGraphConditionalHandleCreate, graph, context, default, int(flags)
        )
        return int(handle)

    def graph_add_conditional_node(
        self, graph: int, dependencies: Sequence[int], params: ConditionalNodeParams
    ) -> tuple[int, tuple[int, ...]]:
        _, context = _driver(driver.cuCtxGetCurrent)
        block = cuda_params.conditional_struct(params, context)
        before = [driver.CUgraphNode(node) for node in dependencies]
        # Plain edges, spelled out: cuda-bindings 12.9 wants as much edge data as dependencies.
        data = [driver.CUgraphEdgeData()] * len(before)
        _, node = _driver(
            cuda_bindings.add_node, graph, before or None, data or None, len(before), block
        )
        return int(node), cuda_params.conditional_bodies(block, params.size)

    def graph_add_mem_alloc_node(
        self, graph: int, dependencies: Sequence[int], nbytes: int, device: int
    ) -> tuple[int, int]:
        params = cuda_params.mem_alloc_struct(nbytes, device)
        status, node = cudart.cudaGraphAddMemAllocNode(
            graph, node_list(dependencies), len(dependencies), params
        )
        if status:
            refuse("cudaGraphAddMemAllocNode", status, f"{nbytes:,} bytes")
        return int(node), int(params.dptr)

    def graph_add_mem_free_node(self, graph: int, dependencies: Sequence[int], address: int) -> int:
        status, node = cudart.cudaGraphAddMemFreeNode(
            graph, node_list(dependencies), len(dependencies), address
        )
        if status:
            refuse("cudaGraphAddMemFreeNode", status)
        return int(node)

    def graph_destroy_node(self, node: int) -> None:
        (status,) = cudart.cudaGraphDestroyNode(node)
        if status:
            refuse("cudaGraphDestroyNode", status)

    def graph_add_dependencies(self, graph: int, edges: Sequence[Edge]) -> None:
        cuda_bindings.connect(graph, edges)

    def graph_remove_dependencies(self, graph: int, edges: Sequence[Edge]) -> None:
        cuda_bindings.disconnect(graph, edges)

    def graph_get_nodes(self, graph: int) -> list[int]:
        # Once for the number, once for the nodes.
        status, _, count = cudart.cudaGraphGetNodes(graph)
        if not status and not count:
            return []
        if not status:
            status, nodes, _ = cudart.cudaGraphGetNodes(graph, count)
        if status:
            refuse("cudaGraphGetNodes", status)
        return [int(node) for node in nodes]

    def graph_get_edges(self, graph: int) -> list[Edge]:
        return cuda_bindings.edges_of(graph)

    def graph_node_get_type(self, node: int) -> NodeType:
        status, kind = cudart.cudaGraphNodeGetType(node)
        if status:
            refuse("cudaGraphNodeGetType", status)
        return NodeType(int(kind))

    def graph_kernel_node_get_params(self, node: int) -> KernelNodeParams:
        _, found = _driver(driver.cuGraphKernelNodeGetParams, node)
        function = int(found.func)
        if not function and int(found.kern):
            # Kernels of lazily loaded libraries come as a context-independent CUkernel.
            function = int(_driver(driver.cuKernelGetFunction, found.kern)[1])
        return KernelNodeParams(
            function=function,
            grid=(int(found.gridDimX), int(found.gridDimY), int(found.gridDimZ)),
            block=(int(found.blockDimX), int(found.blockDimY), int(found.blockDimZ)),
            shared_mem=int(found.sharedMemBytes),
            kernel_params=int(found.kernelParams or 0),
            extra=int(found.extra or 0),
        )

    def graph_kernel_node_set_params(self, node: int, params: KernelNodeParams) -> None:
        _driver(driver.cuGraphKernelNodeSetParams, node, KernelBlock().fill(params))

    def graph_kernel_node_get_attribute(
        self, node: int, attribute: LaunchAttributeID
    ) -> LaunchAttribute:
        attribute = LaunchAttributeID(attribute)
        _, value = _driver(
            driver.cuGraphKernelNodeGetAttribute, node, driver.CUkernelNodeAttrID(int(attribute))
        )
        return cuda_params.launch_attribute(attribute, value)

    def graph_kernel_node_set_attribute(self, node: int, attribute: LaunchAttribute) -> None:
        value = cuda_params.write_attribute(driver.CUkernelNodeAttrValue(), attribute)
        _driver(
            driver.cuGraphKernelNodeSetAttribute,
            node,
            driver.CUkernelNodeAttrID(int(attribute.id)),
            value,
        )

    def graph_memcpy_node_get_params(self, node: int) -> MemcpyNodeParams:
        status, found = cudart.cudaGraphMemcpyNodeGetParams(node)
        if status:
            refuse("cudaGraphMemcpyNodeGetParams", status)
        return cuda_params.read_memcpy(found)

    def graph_memset_node_get_params(self, node: int) -> MemsetNodeParams:
        status, found = cudart.cudaGraphMemsetNodeGetParams(node)
        if status:
            refuse("cudaGraphMemsetNodeGetParams", status)
        return cuda_params.read_memset(found)

    def graph_host_node_get_params(self, node: int) -> HostNodeParams:
        status, found = cudart.cudaGraphHostNodeGetParams(node)
        if status:
            refuse("cudaGraphHostNodeGetParams", status)
        return HostNodeParams(int(found.fn), int(found.userData or 0))

    def graph_mem_alloc_node_get_params(self, node: int) -> MemAllocNodeParams:
        status, found = cudart.cudaGraphMemAllocNodeGetParams(node)
        if status:
            refuse("cudaGraphMemAllocNodeGetParams", status)
        return MemAllocNodeParams(
            int(found.dptr), int(found.bytesize), int(found.poolProps.location.id)
        )

    def graph_mem_free_node_get_params(self, node: int) -> MemFreeNodeParams:
        status, address = cudart.cudaGraphMemFreeNodeGetParams(node)
        if status:
            refuse("cudaGraphMemFreeNodeGetParams", status)
        return MemFreeNodeParams(int(address))

    def graph_event_record_node_get_event(self, node: int) -> int:
        status, event = cudart.cudaGraphEventRecordNodeGetEvent(node)
        if status:
            refuse("cudaGraphEventRecordNodeGetEvent", status)
        return int(event)

    def graph_event_wait_node_get_event(self, node: int) -> int:
        status, event = cudart.cudaGraphEventWaitNodeGetEvent(node)
        if status:
            refuse("cudaGraphEventWaitNodeGetEvent", status)
        return int(event)

    def graph_child_graph_node_get_graph(self, node: int) -> int:
        status, graph = cudart.cudaGraphChildGraphNodeGetGraph(node)
        if status:
            refuse("cudaGraphChildGraphNodeGetGraph", status)
        return int(graph)

    def graph_debug_dot_print(self, graph: int, path: str, verbose: bool) -> None:
        (status,) = cudart.cudaGraphDebugDotPrint(
            graph, os.fsencode(path), _DOT_VERBOSE if verbose else 0
        )
        if status:
            refuse("cudaGraphDebugDotPrint", status, path)

    # --- executable graphs -----------------------------------------------------------------------

    def graph_instantiate_with_params(
        self, graph: int, flags: InstantiateFlags, upload_stream: int
    ) -> int:
        params = cudart.cudaGraphInstantiateParams()
        params.flags = int(flags)
        params.uploadStream = cudart.cudaStream_t(upload_stream)
        status, exec_ = cudart.cudaGraphInstantiateWithParams(graph, params)
        if status:
            detail = f"{params.result_out.name}"
            if int(params.errNode_out):
                detail += f" at node {int(params.errNode_out):#x}"
            refuse("cudaGraphInstantiateWithParams", status, detail)
        return int(exec_)

    def graph_exec_destroy(self, exec_: int) -> None:
        (status,) = cudart.cudaGraphExecDestroy(exec_)
        if status:
            refuse("cudaGraphExecDestroy", status)

    def graph_upload(self, exec_: int, stream: int) -> None:
        (status,) = cudart.cudaGraphUpload(exec_, stream)
        if status:
            refuse("cudaGraphUpload", status)

    def graph_launch(self, exec_: int, stream: int) -> None:
        launch = self._launch or self._choose_launch()
        try:
            launch(exec_, stream)
        except self._launch_error as error:
            raise CudaError("cudaGraphLaunch", error.status) from None

    def graph_exec_update(self, exec_: int, graph: int) -> ExecUpdateResultInfo:
        if not hasattr(_thread, "ready"):
            _ensure_context()
        status, info = cuda_driver.exec_update(exec_, graph)
        if status in _NO_CONTEXT:
            _ensure_context()
            status, info = cuda_driver.exec_update(exec_, graph)
        if status not in (0, StatusCode.GRAPH_EXEC_UPDATE_FAILURE):
            refuse("cuGraphExecUpdate", status)
        return info

    def graph_exec_kernel_node_set_params(
        self, exec_: int, node: int, params: KernelNodeParams
    ) -> None:
        block = _borrow_block()
        _driver(_exec_kernel_node_set_params, exec_, node, block.fill(params))
        _blocks.append(block)

    def graph_exec_memcpy_node_set_params(
        self, exec_: int, node: int, params: MemcpyNodeParams
    ) -> None:
        if params.height == 1 and params.depth == 1:
            call = "cudaGraphExecMemcpyNodeSetParams1D"
            (status,) = cudart.cudaGraphExecMemcpyNodeSetParams1D(
                exec_,
                node,
                params.dst,
                params.src,
                params.width,
                params.kind,
            )
        else:
            call = "cudaGraphExecMemcpyNodeSetParams"
            (status,) = cudart.cudaGraphExecMemcpyNodeSetParams(
                exec_, node, cuda_params.memcpy_struct(params)
            )
        if status:
            refuse(call, status)

    def graph_exec_memset_node_set_params(
        self, exec_: int, node: int, params: MemsetNodeParams
    ) -> None:
        (status,) = cudart.cudaGraphExecMemsetNodeSetParams(
            exec_, node, cuda_params.memset_struct(params)
        )
        if status:
            refuse("cudaGraphExecMemsetNodeSetParams", status)

    def graph_exec_host_node_set_params(
        self, exec_: int, node: int, params: HostNodeParams
    ) -> None:
        (status,) = cudart.cudaGraphExecHostNodeSetParams(
            exec_, node, cuda_params.host_struct(params)
        )
        if status:
            refuse("cudaGraphExecHostNodeSetParams", status)

    def graph_exec_event_record_node_set_event(self, exec_: int, node: int, event: int) -> None:
        (status,) = cudart.cudaGraphExecEventRecordNodeSetEvent(exec_, node, event)
        if status:
            refuse("cudaGraphExecEventRecordNodeSetEvent", status)

    def graph_exec_event_wait_node_set_event(self, exec_: int, node: int, event: int) -> None:
        (status,) = cudart.cudaGraphExecEventWaitNodeSetEvent(exec_, node, event)
        if status:
            refuse("cudaGraphExecEventWaitNodeSetEvent", status)

    def graph_exec_child_graph_node_set_params(self, exec_: int, node: int, child: int) -> None:
        (status,) = cudart.cudaGraphExecChildGraphNodeSetParams(exec_, node, child)
        if status:
            refuse("cudaGraphExecChildGraphNodeSetParams", status)

    def graph_node_set_enabled(self, exec_: int, node: int, enabled: bool) -> None:
        (status,) = cudart.cudaGraphNodeSetEnabled(exec_, node, int(enabled))
        if status:
            refuse("cudaGraphNodeSetEnabled", status)

    def graph_node_get_enabled(self, exec_: int, node: int) -> bool:
        status, enabled = cudart.cudaGraphNodeGetEnabled(exec_, node)
        if status:
            refuse("cudaGraphNodeGetEnabled", status)
        return bool(enabled)

    # --- hot calls -------------------------------------------------------------------------------
    #
    # Considered for a launch, least overhead first as far as known:
    #   cupy.cuda.runtime.graphLaunch(int, int): converts two ints, releases Python's lock, returns
    #     None; no object is built. Chosen where CuPy is installed.
    #   cuGraphLaunch by ctypes, arguments converted beforehand: builds a call frame by libffi.
    #   cuda.bindings with prebuilt handles: type checks, int() of each handle, a tuple. The
    #     fallback.
    #   ctypes.PyDLL: saves the release of Python's lock, and must not: a launch waits when the
    #     stream's queue is full, perhaps for a host node that needs the lock.
    # functools.partial in place of the closures is a little faster and would let CuPy's exception
    # out, or drop the status. A try block costs nothing until something is raised.

    def _choose_launch(self) -> Callable[[int, int], Any]:
        """Take CuPy's graphLaunch when CuPy can be imported, else that of cuda.bindings."""
        try:
            found = cuda_load.cupy_cuda().runtime
            launch, error = found.graphLaunch, found.CUDARuntimeError
        except (RuntimeUnavailableError, AttributeError):
            launch, error = _launch_by_bindings, _NeverRaised
        self._launch, self._launch_error = launch, error
        return launch  # type: ignore[no-any-return]

    def graph_launcher(self, exec_: HandleCell, stream: int | HandleCell) -> Callable[[], Any]:
        launch = self._launch or self._choose_launch()
        launch_error = self._launch_error
        if isinstance(stream, int):

            def go() -> None:
                try:
                    launch(exec_.value or refuse_closed("exec"), stream)
                except launch_error as error:
                    raise CudaError("cudaGraphLaunch", error.status) from None

            return go

        def go_on_cell() -> None:
            try:
                launch(
                    exec_.value or refuse_closed("exec"), stream.value or refuse_closed("stream")
                )
            except launch_error as error:
                raise CudaError("cudaGraphLaunch", error.status) from None

        return go_on_cell

    def kernel_node_setter(
        self, exec_: int, node: int, params: KernelNodeParams
    ) -> Callable[[], Any]:
        block = KernelBlock()  # its own: it keeps these values for good
        struct = block.fill(params)
        call = _exec_kernel_node_set_params
        exec_handle, node_handle = driver.CUgraphExec(exec_), driver.CUgraphNode(node)

        def set_params() -> None:
            try:
                _thread.ready  # noqa: B018 - costs a fifth of asking the driver
            except AttributeError:
                _ensure_context()
            if call(exec_handle, node_handle, struct)[0]:
                _driver(call, exec_handle, node_handle, struct)  # again, to say why it fails

        return set_params

    def memcpy_node_setter(
        self, exec_: int, node: int, params: MemcpyNodeParams, *, moves_dst: bool
    ) -> Callable[[int], Any]:
        call, name = _exec_memcpy_node_set_params_1d, "cudaGraphExecMemcpyNodeSetParams1D"
        exec_handle, node_handle = cudart.cudaGraphExec_t(exec_), cudart.cudaGraphNode_t(node)
        dst, src, nbytes = params.dst, params.src, params.width
        kind = cudart.cudaMemcpyKind(int(params.kind))

        def move_dst(address: int) -> None:
            status = call(exec_handle, node_handle, address, src, nbytes, kind)[0]
            if status:
                refuse(name, status)

        def move_src(address: int) -> None:
            status = call(exec_handle, node_handle, dst, address, nbytes, kind)[0]
            if status:
                refuse(name, status)

        return move_dst if moves_dst else move_src

    def kernel_node_struct(self, params: KernelNodeParams) -> Any:
        return KernelBlock().fill(params)

    def kernel_nodes_setter(
        self, exec_: int, nodes: Sequence[tuple[int, Any]]
    ) -> Callable[[], Any]:
        call, exec_handle = _exec_kernel_node_set_params, driver.CUgraphExec(exec_)
        line = [(_node_handle(node), struct) for node, struct in nodes]

        def set_params() -> None:
            try:
                _thread.ready  # noqa: B018 - costs a fifth of asking the driver
            except AttributeError:
                _ensure_context()
            for node, struct in line:
                if call(exec_handle, node, struct)[0]:
                    _driver(call, exec_handle, node, struct)  # again, to say why it fails

        return set_params
