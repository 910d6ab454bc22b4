"""What this machine can do, found out by doing it.

That a function exists in the bindings, or even in the driver, does not mean that it answers.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from graphkit.errors import GraphkitError
from graphkit.runtime.protocol import (
    DependencyType,
    DeviceAttribute,
    Edge,
    EdgeData,
    ExecUpdateStatus,
    InstantiateFlags,
    KernelNodeParams,
    KernelNodePort,
    KernelSource,
    LaunchAttribute,
    LaunchAttributeID,
    LoadedFunction,
    Runtime,
    TwinLaunch,
    dotted_version,
)

__all__ = ["Capabilities", "Feature", "probe"]

_CUPY_DISTRIBUTIONS = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


@dataclass(frozen=True)
class Feature:
    """Whether something works here, and if not, why. True in a condition when it works."""

    present: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.present

    def __str__(self) -> str:
        return "yes" if self.present else f"no: {self.reason}"


@dataclass(frozen=True)
class Capabilities:
    """What a runtime is and what it can do.

    Attributes:
        runtime: ``"cuda"`` or ``"sim"``.
        driver_version: newest CUDA version that the driver supports, such as ``"13.0"``.
        runtime_version: CUDA version of the runtime API in use.
        bindings_version: version of the installed cuda-bindings, None without.
        cupy_version: version of the installed CuPy, None without.
        device_name: name of the current device.
        compute_capability: its (major, minor).
        programmatic_edges: programmatic dependent launch between kernel nodes (sm_90 on).
        cluster_launch: kernel nodes with cluster dimensions (sm_90 on).
        device_launch: graphs that a kernel may launch.
        exec_update_report: a refused update says which node was the reason.
        conditional_nodes: IF, WHILE and SWITCH nodes.
        memory_nodes: allocation and free nodes.
        node_ids: cudaGraphNodeGetLocalId.
        node_get_params: cudaGraphNodeGetParams.
    """

    runtime: str
    driver_version: str
    runtime_version: str
    bindings_version: str | None
    cupy_version: str | None
    device_name: str
    compute_capability: tuple[int, int]
    programmatic_edges: Feature
    cluster_launch: Feature
    device_launch: Feature
    exec_update_report: Feature
    conditional_nodes: Feature
    memory_nodes: Feature
    node_ids: Feature
    node_get_params: Feature

    def features(self) -> dict[str, Feature]:
        """Return what was tried, by name."""
        values = ((entry.name, getattr(self, entry.name)) for entry in fields(self))
        return {name: value for name, value in values if isinstance(value, Feature)}


def probe(runtime: Runtime) -> Capabilities:
    """Ask ``runtime`` for its versions and its device, and try each feature on a small graph."""
    device = runtime.get_device()
    function, why_not = _load(runtime)

    def with_kernel(attempt: Callable[[Runtime, int], None]) -> Feature:
        if function is None:
            return Feature(False, f"no kernel to try it with: {why_not}")
        return _attempt(lambda: attempt(runtime, function.handle))

    beyond_the_seam = {
        name: _attempt(attempt) for name, attempt in runtime.feature_attempts().items()
    }
    return Capabilities(
        runtime=runtime.name,
        driver_version=dotted_version(runtime.driver_get_version()),
        runtime_version=dotted_version(runtime.runtime_get_version()),
        bindings_version=_installed("cuda-bindings"),
        cupy_version=_installed(*_CUPY_DISTRIBUTIONS),
        device_name=runtime.get_device_name(device),
        compute_capability=(
            runtime.device_get_attribute(DeviceAttribute.COMPUTE_CAPABILITY_MAJOR, device),
            runtime.device_get_attribute(DeviceAttribute.COMPUTE_CAPABILITY_MINOR, device),
        ),
        programmatic_edges=with_kernel(_try_programmatic_edge),
        cluster_launch=with_kernel(_try_cluster),
        device_launch=with_kernel(_try_device_launch),
        exec_update_report=_attempt(lambda: _try_update_report(runtime)),
        memory_nodes=_attempt(lambda: _try_memory_nodes(runtime, device)),
        **beyond_the_seam,
    )


def _attempt(call: Callable[[], None]) -> Feature:
    """Make the call; any exception is the reason why the feature is absent."""
    try:
        call()
    except Exception as error:  # a missing symbol is a RuntimeError or an AttributeError
        lines = str(error).splitlines()
        return Feature(False, lines[0] if lines else type(error).__name__)
    return Feature(True)


def _installed(*distributions: str) -> str | None:
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _do_nothing(launch: TwinLaunch) -> None:
    """Twin of the kernel below."""


def _load(runtime: Runtime) -> tuple[LoadedFunction | None, str]:
    source = KernelSource(
        code='extern "C" __global__ void graphkit_probe() {}',
        name="graphkit_probe",
        options=("--std=c++17",),
        layout=(),
        twin=_do_nothing,
    )
    try:
        return runtime.function_load(source), ""
    except GraphkitError as error:
        return None, str(error).splitlines()[0]


@contextmanager
def _graph(runtime: Runtime) -> Iterator[int]:
    graph = runtime.graph_create()
    try:
        yield graph
    finally:
        runtime.graph_destroy(graph)


def _kernel_node(runtime: Runtime, graph: int, function: int, grid: int = 1) -> int:
    params = KernelNodeParams(function, (grid, 1, 1), (1, 1, 1), 0, 0)
    return runtime.graph_add_kernel_node(graph, (), params)


def _instantiate(runtime: Runtime, graph: int, flags: InstantiateFlags) -> None:
    runtime.graph_exec_destroy(runtime.graph_instantiate_with_params(graph, flags, 0))


def _try_programmatic_edge(runtime: Runtime, function: int) -> None:
    data = EdgeData(KernelNodePort.PROGRAMMATIC, 0, DependencyType.PROGRAMMATIC)
    with _graph(runtime) as graph:
        a = _kernel_node(runtime, graph, function)
        b = _kernel_node(runtime, graph, function)
        runtime.graph_add_dependencies(graph, [Edge(a, b, data)])
        _instantiate(runtime, graph, InstantiateFlags.NONE)


def _try_cluster(runtime: Runtime, function: int) -> None:
    attribute = LaunchAttribute(LaunchAttributeID.CLUSTER_DIMENSION, (2, 1, 1))
    with _graph(runtime) as graph:
        node = _kernel_node(runtime, graph, function, grid=2)
        runtime.graph_kernel_node_set_attribute(node, attribute)
        _instantiate(runtime, graph, InstantiateFlags.NONE)


def _try_device_launch(runtime: Runtime, function: int) -> None:
    with _graph(runtime) as graph:
        _kernel_node(runtime, graph, function)
        _instantiate(runtime, graph, InstantiateFlags.DEVICE_LAUNCH)


def _try_memory_nodes(runtime: Runtime, device: int) -> None:
    with _graph(runtime) as graph:
        node, address = runtime.graph_add_mem_alloc_node(graph, (), 64, device)
        runtime.graph_add_mem_free_node(graph, (node,), address)


def _try_update_report(runtime: Runtime) -> None:
    """Refuse an update on purpose: one node against two in a row."""
    with _graph(runtime) as graph, _graph(runtime) as longer:
        runtime.graph_add_empty_node(graph, ())
        runtime.graph_add_empty_node(longer, (runtime.graph_add_empty_node(longer, ()),))
        exec_ = runtime.graph_instantiate_with_params(graph, InstantiateFlags.NONE, 0)
        try:
            report = runtime.graph_exec_update(exec_, longer)
        finally:
            runtime.graph_exec_destroy(exec_)
    if report.result is not ExecUpdateStatus.TOPOLOGY_CHANGED:
        raise GraphkitError(f"an update to another topology reported {report.result.name}")
