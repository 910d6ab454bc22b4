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
from graphkit.conditional import Conditional
from graphkit.conditional_handle import ConditionalHandle
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
from graphkit.fork import Branch, fork
from graphkit.graph import Graph
from graphkit.graph_exec import GraphExec
from graphkit.kernel import Kernel, Launch, Pointer
from graphkit.ladder import Failure
from graphkit.lifetime import live_handles
from graphkit.memory_nodes import GraphAllocation, GraphMemory, free_async, trim_graph_memory
from graphkit.node import Argument, Difference, GraphEdge, KernelNodeValues, Node
from graphkit.node_groups import NodeGroup
from graphkit.pipeline import Pipeline, RequestSlot
from graphkit.pipeline_request import Request
from graphkit.pool_metrics import PoolCollector
from graphkit.pool_policy import Reason, Step
from graphkit.pool_stats import KeyStats, PoolMemory, PoolStats, StepStats
from graphkit.races import Race
from graphkit.rebind import BoundGraph, Slot, bind
from graphkit.runtime import current, probe, use
from graphkit.runtime.protocol import (
    CaptureStatus,
    ConditionalNodeType,
    EdgeData,
    ExecUpdateStatus,
    InstantiateFlags,
    LaunchAttribute,
    LaunchAttributeID,
    MemAllocNodeParams,
    MemcpyKind,
    MemcpyNodeParams,
    MemFreeNodeParams,
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
    "Branch",
    "Buckets",
    "CaptureError",
    "CaptureStatus",
    "Conditional",
    "ConditionalHandle",
    "ConditionalNodeType",
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
    "GraphAllocation",
    "GraphEdge",
    "GraphExec",
    "GraphMemory",
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
    "MemAllocNodeParams",
    "MemFreeNodeParams",
    "MemcpyKind",
    "MemcpyNodeParams",
    "MemsetNodeParams",
    "Move",
    "Node",
    "NodeGroup",
    "NodeType",
    "NotSimulated",
    "Parameter",
    "Pipeline",
    "Plan",
    "Pointer",
    "PoolCollector",
    "PoolMemory",
    "PoolStats",
    "Race",
    "Reason",
    "RebindError",
    "Request",
    "RequestSlot",
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
    "fork",
    "free_async",
    "live_handles",
    "memcpy_async",
    "memset_async",
    "probe",
    "stream_handle",
    "trim_graph_memory",
    "use",
    "zeros",
]
