"""CUDA Graphs for Python pipelines that change.

>>> import graphkit as gk
>>> with gk.capture(stream) as graph:
...     kernel(grid, block, (x, y), stream=stream)
>>> exe = graph.instantiate()
>>> exe.launch(stream)
"""

from graphkit.arrays import ArrayInfo, describe
from graphkit.baked import Baked, check_baked
from graphkit.c_signature import Parameter
from graphkit.capture import capture
from graphkit.copying import memcpy_async, memset_async
from graphkit.culprit import Culprit, StackFrame
from graphkit.device_array import DeviceArray, asarray, empty, empty_pinned, zeros
from graphkit.errors import (
    CaptureError,
    CudaError,
    GraphkitError,
    GraphUpdateError,
    NotSimulated,
    RebindError,
    RuntimeUnavailableError,
    SimulationError,
)
from graphkit.forensics import explain_capture
from graphkit.graph import Graph
from graphkit.graph_exec import GraphExec
from graphkit.kernel import Kernel, Launch, Pointer
from graphkit.lifetime import live_handles
from graphkit.node import Argument, Difference, GraphEdge, KernelNodeValues, Node
from graphkit.rebind import BoundGraph, Slot, bind
from graphkit.runtime import current, probe, use
from graphkit.runtime.protocol import (
    CaptureStatus,
    EdgeData,
    ExecUpdateStatus,
    InstantiateFlags,
    LaunchAttribute,
    LaunchAttributeID,
    MemcpyKind,
    MemcpyNodeParams,
    MemsetNodeParams,
    NodeType,
)
from graphkit.runtime.sim.options import SimOptions
from graphkit.stream import Event, HostCallback, Stream, stream_handle
from graphkit.update_report import UpdateReport

__version__ = "0.1.0"

__all__ = [
    "Argument",
    "ArrayInfo",
    "Baked",
    "BoundGraph",
    "CaptureError",
    "CaptureStatus",
    "CudaError",
    "Culprit",
    "DeviceArray",
    "Difference",
    "EdgeData",
    "Event",
    "ExecUpdateStatus",
    "Graph",
    "GraphEdge",
    "GraphExec",
    "GraphUpdateError",
    "GraphkitError",
    "HostCallback",
    "InstantiateFlags",
    "Kernel",
    "KernelNodeValues",
    "Launch",
    "LaunchAttribute",
    "LaunchAttributeID",
    "MemcpyKind",
    "MemcpyNodeParams",
    "MemsetNodeParams",
    "Node",
    "NodeType",
    "NotSimulated",
    "Parameter",
    "Pointer",
    "RebindError",
    "RuntimeUnavailableError",
    "SimOptions",
    "SimulationError",
    "Slot",
    "StackFrame",
    "Stream",
    "UpdateReport",
    "asarray",
    "bind",
    "capture",
    "check_baked",
    "current",
    "describe",
    "empty",
    "empty_pinned",
    "explain_capture",
    "live_handles",
    "memcpy_async",
    "memset_async",
    "probe",
    "stream_handle",
    "use",
    "zeros",
]
