"""CUDA Graphs for Python pipelines that change.

>>> import graphkit as gk
>>> with gk.capture(stream) as graph:
...     kernel(grid, block, (x, y), stream=stream)
>>> exe = graph.instantiate()
>>> exe.launch(stream)
"""

from graphkit.arrays import ArrayInfo, describe
from graphkit.baked import Baked, check_baked
from graphkit.buckets import Buckets
from graphkit.c_signature import Parameter
from graphkit.capture import capture
from graphkit.copying import memcpy_async, memset_async
from graphkit.cost_model import Move
from graphkit.culprit import Culprit, StackFrame
from graphkit.device_array import DeviceArray, asarray, empty, empty_pinned, zeros
from graphkit.errors import (
    CaptureError,
    CudaError,
    FallbackError,
    GraphkitError,
    GraphUpdateError,
    NotSimulated,
    RebindError,
    RuntimeUnavailableError,
    SimulationError,
)
from graphkit.exec_pool import ExecPool, Plan
from graphkit.forensics import explain_capture
from graphkit.graph import Graph
from graphkit.graph_exec import GraphExec
from graphkit.kernel import Kernel, Launch, Pointer
from graphkit.ladder import Failure
from graphkit.lifetime import live_handles
from graphkit.node import Argument, Difference, GraphEdge, KernelNodeValues, Node
from graphkit.pool_metrics import PoolCollector
from graphkit.pool_policy import Reason, Step
from graphkit.pool_stats import KeyStats, PoolMemory, PoolStats, StepStats
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
from graphkit.signature import ArraySignature, Signature
from graphkit.stream import Event, HostCallback, Stream, stream_handle
from graphkit.trial import Times, Tolerance
from graphkit.update_report import UpdateReport
from graphkit.warm_report import WarmReport, WarmRow

__version__ = "0.1.0"

__all__ = [
    "Argument",
    "ArrayInfo",
    "ArraySignature",
    "Baked",
    "BoundGraph",
    "Buckets",
    "CaptureError",
    "CaptureStatus",
    "CudaError",
    "Culprit",
    "DeviceArray",
    "Difference",
    "EdgeData",
    "Event",
    "ExecPool",
    "ExecUpdateStatus",
    "Failure",
    "FallbackError",
    "Graph",
    "GraphEdge",
    "GraphExec",
    "GraphUpdateError",
    "GraphkitError",
    "HostCallback",
    "InstantiateFlags",
    "Kernel",
    "KernelNodeValues",
    "KeyStats",
    "Launch",
    "LaunchAttribute",
    "LaunchAttributeID",
    "MemcpyKind",
    "MemcpyNodeParams",
    "MemsetNodeParams",
    "Move",
    "Node",
    "NodeType",
    "NotSimulated",
    "Parameter",
    "Plan",
    "Pointer",
    "PoolCollector",
    "PoolMemory",
    "PoolStats",
    "Reason",
    "RebindError",
    "RuntimeUnavailableError",
    "Signature",
    "SimOptions",
    "SimulationError",
    "Slot",
    "StackFrame",
    "Step",
    "StepStats",
    "Stream",
    "Times",
    "Tolerance",
    "UpdateReport",
    "WarmReport",
    "WarmRow",
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
