"""What the simulator keeps of graphs: nodes, edges, executable copies, and the rules of updates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from graphkit.runtime.protocol import (
    Dim3,
    EdgeData,
    ExecUpdateStatus,
    HostNodeParams,
    InstantiateFlags,
    LaunchAttributeID,
    MemcpyNodeParams,
    MemsetNodeParams,
    NodeType,
)
from graphkit.runtime.sim.conditions import ConditionalValues
from graphkit.runtime.sim.functions import ArgumentBlock, SimFunction
from graphkit.runtime.sim.graph_memory import GraphAllocation
from graphkit.runtime.sim.refusal import Code, Refused
from graphkit.runtime.sim.work import Work


@dataclass(frozen=True)
class KernelValues:
    """A kernel node's parameters, with the bytes of its arguments copied."""

    function: SimFunction
    grid: Dim3
    block: Dim3
    shared_mem: int
    arguments: tuple[bytes, ...]
    by_extra: bool


Values = (
    KernelValues
    | MemcpyNodeParams
    | MemsetNodeParams
    | HostNodeParams
    | GraphAllocation
    | ConditionalValues
    | int
    | None
)


@dataclass(eq=False)
class SimNode:
    """One node of a graph. ``values`` is an event handle for event nodes.

    ``bodies`` are the graphs of a conditional node.
    """

    handle: int
    type: NodeType
    graph: SimGraph
    values: Values
    child: SimGraph | None = None
    attributes: dict[LaunchAttributeID, tuple[int, ...]] = field(default_factory=dict)
    handed_out: list[ArgumentBlock] = field(default_factory=list)
    bodies: tuple[SimGraph, ...] = ()

    @property
    def inside(self) -> tuple[SimGraph, ...]:
        """The graphs that belong to the node."""
        return self.bodies if self.child is None else (self.child,)

    def describe(self) -> str:
        """Say what it is, for an error message."""
        if isinstance(self.values, KernelValues):
            return f"kernel node {self.values.function.name!r} ({self.handle:#x})"
        if isinstance(self.values, ConditionalValues):
            return f"{self.values.type.name.lower()} node ({self.handle:#x})"
        return f"{self.type.name.lower()} node ({self.handle:#x})"


@dataclass(eq=False)
class SimGraph:
    """A graph: nodes and edges in the order in which they were added.

    ``holder`` is the node that the graph belongs to, ``conditions`` the default of each
    conditional handle that was made for it.
    """

    handle: int
    nodes: dict[int, SimNode] = field(default_factory=dict)
    edges: dict[tuple[SimNode, SimNode], EdgeData] = field(default_factory=dict)
    origin: dict[int, int] = field(default_factory=dict)
    borrowed: bool = False
    holder: SimNode | None = None
    conditions: dict[int, int | None] = field(default_factory=dict)

    def in_body(self) -> bool:
        """Return whether this is the body of a conditional node, or a child graph in one."""
        holder = self.holder
        return holder is not None and (bool(holder.bodies) or holder.graph.in_body())

    def predecessors(self) -> dict[SimNode, list[SimNode]]:
        """Return the direct predecessors of every node."""
        found: dict[SimNode, list[SimNode]] = {node: [] for node in self.nodes.values()}
        for before, after in self.edges:
            found[after].append(before)
        return found

    def order(self) -> list[SimNode]:
        """Return the nodes so that every one follows its predecessors.

        Raises:
            Refused: 1 when there is a cycle.
        """
        before = self.predecessors()
        waiting = {node: len(nodes) for node, nodes in before.items()}
        followers: dict[SimNode, list[SimNode]] = {node: [] for node in before}
        for start, end in self.edges:
            followers[start].append(end)
        ready = [node for node, count in waiting.items() if not count]
        ordered = []
        while ready:
            node = ready.pop()
            ordered.append(node)
            for follower in followers[node]:
                waiting[follower] -= 1
                if not waiting[follower]:
                    ready.append(follower)
        if len(ordered) != len(self.nodes):
            raise Refused(Code.INVALID_VALUE, "the graph has a cycle")
        return ordered

    def all_nodes(self) -> Iterator[SimNode]:
        """Yield the nodes, those of child graphs and bodies included."""
        for node in self.nodes.values():
            yield node
            for graph in node.inside:
                yield from graph.all_nodes()

    def all_conditions(self) -> dict[int, int | None]:
        """Return the conditional handles with their defaults, those of bodies included."""
        found = dict(self.conditions)
        for node in self.nodes.values():
            for graph in node.inside:
                found |= graph.all_conditions()
        return found


@dataclass(eq=False)
class ExecNode:
    """What an executable graph holds for one node."""

    source: SimNode
    values: Values
    attributes: dict[LaunchAttributeID, tuple[int, ...]]
    enabled: bool = True
    children: ExecGraph | None = None
    bodies: tuple[ExecGraph, ...] = ()


@dataclass(eq=False)
class ExecGraph:
    """A snapshot of a graph: later changes of the graph do not reach it.

    ``nodes`` is in an order that respects the edges, ``inserted`` in that of insertion, and
    ``by_source`` knows the nodes of child graphs and bodies, too.
    """

    nodes: list[ExecNode]
    inserted: list[ExecNode]
    before: dict[SimNode, list[SimNode]]
    edges: dict[tuple[int, int], EdgeData]
    by_source: dict[SimNode, ExecNode]

    @classmethod
    def of(cls, graph: SimGraph) -> ExecGraph:
        """Snapshot a graph."""
        held = {
            node: ExecNode(
                node,
                node.values,
                dict(node.attributes),
                children=None if node.child is None else cls.of(node.child),
                bodies=tuple(cls.of(body) for body in node.bodies),
            )
            for node in graph.nodes.values()
        }
        ordered = [held[node] for node in graph.order()]
        by_source = dict(held)
        for node in held.values():
            for inside in node.bodies if node.children is None else (node.children,):
                by_source.update(inside.by_source)
        return cls(
            ordered, list(held.values()), graph.predecessors(), _edges_by_place(graph), by_source
        )

    def take(self, graph: SimGraph) -> None:
        """Take over the parameters of a graph that :func:`compare` found to fit."""
        for held, node in zip(self.inserted, graph.nodes.values(), strict=True):
            held.values = node.values
            if held.children is not None and node.child is not None:
                held.children.take(node.child)

    def find(self, node: SimNode) -> ExecNode | None:
        """Return what is held for a node of the source graph or of a child graph in it."""
        return self.by_source.get(node)


@dataclass(eq=False)
class SimExec:
    """An executable graph, and the device memory that it takes."""

    handle: int
    source: SimGraph
    flags: InstantiateFlags
    graph: ExecGraph
    nbytes: int
    conditions: dict[int, int | None] = field(default_factory=dict)
    last: tuple[Work, ...] = ()


_BODY_TYPES = {
    NodeType.KERNEL,
    NodeType.MEMCPY,
    NodeType.MEMSET,
    NodeType.GRAPH,
    NodeType.EMPTY,
    NodeType.CONDITIONAL,
}


def check_body(type_: NodeType) -> None:
    """Refuse a kind of node that no body of a conditional node may have."""
    if type_ not in _BODY_TYPES:
        raise Refused(
            Code.NOT_SUPPORTED,
            f"a node of type {type_.name.lower()} in the body of a conditional node",
        )


def refuse_conditional(graph: SimGraph, what: str) -> None:
    """Refuse what CUDA does not do with graphs that have conditional nodes."""
    if any(node.type is NodeType.CONDITIONAL for node in graph.all_nodes()):
        raise Refused(Code.NOT_SUPPORTED, f"{what} of a graph with a conditional node")


_DEVICE_LAUNCHABLE = {NodeType.KERNEL, NodeType.MEMCPY, NodeType.MEMSET, NodeType.GRAPH}


def check_device_launch(graph: SimGraph) -> None:
    """Refuse a graph that cannot be launched from the device."""
    for node in graph.all_nodes():
        if node.type not in _DEVICE_LAUNCHABLE:
            raise Refused(Code.INVALID_VALUE, f"{node.describe()} cannot be launched on the device")


def copy_changes(old: Values, new: Values) -> str | None:
    """Say what of a memcpy or memset an executable graph cannot change; None when it can."""
    if isinstance(old, MemcpyNodeParams) and isinstance(new, MemcpyNodeParams):
        if old.kind != new.kind:
            return f"a memcpy of kind {old.kind.name} cannot become {new.kind.name}"
        if old != new and not (old.height == old.depth == new.height == new.depth == 1):
            return "a memcpy of more than one dimension cannot change, nor can one become so"
    if (
        isinstance(old, MemsetNodeParams)
        and isinstance(new, MemsetNodeParams)
        and max(old.height, new.height) > 1
        and old[3:] != new[3:]
    ):
        return "a 2-D memset cannot change its extents or element size"
    return None


Difference = tuple[ExecUpdateStatus, SimNode | None, SimNode | None]


def compare(held: ExecGraph, new: SimGraph, by_priority: bool = False) -> Difference:
    """Say whether an exec can take the parameters of a graph, and which nodes are in the way.

    Nodes are paired by insertion. Of several differences CUDA names the one nearest to the end.
    ``by_priority`` says that the exec was instantiated to use the nodes' priorities.
    """
    success = ExecUpdateStatus.SUCCESS, None, None
    nodes = list(new.nodes.values())
    if len(held.inserted) != len(nodes):
        return ExecUpdateStatus.TOPOLOGY_CHANGED, None, None
    pairs = list(zip(held.inserted, nodes, strict=True))
    for node in nodes:
        if node.type is NodeType.CONDITIONAL:
            return ExecUpdateStatus.NOT_SUPPORTED, node, None
    for old, node in reversed(pairs):
        if old.source.type is not node.type:
            return ExecUpdateStatus.NODE_TYPE_CHANGED, node, None
    difference = _compare_edges(held.edges, new, nodes)
    if difference is not None:
        return difference
    for old, node in pairs:
        if old.children is not None and node.child is not None:
            inner = compare(old.children, node.child, by_priority)
            if inner[0] is not ExecUpdateStatus.SUCCESS:
                return inner
        if copy_changes(old.values, node.values):
            return ExecUpdateStatus.PARAMETERS_CHANGED, node, None
        fixed = (LaunchAttributeID.COOPERATIVE, LaunchAttributeID.PRIORITY)[: 1 + by_priority]
        if any(old.attributes.get(i, (0,)) != node.attributes.get(i, (0,)) for i in fixed):
            return ExecUpdateStatus.ATTRIBUTES_CHANGED, node, None
    return success


def _compare_edges(
    old: dict[tuple[int, int], EdgeData], new: SimGraph, nodes: list[SimNode]
) -> Difference | None:
    topology, edges = ExecUpdateStatus.TOPOLOGY_CHANGED, _edges_by_place(new)
    if old == edges:
        return None
    sinks, old_sinks = (set(range(len(nodes))) - {a for a, _ in e} for e in (edges, old))
    if sinks != old_sinks:
        return topology, nodes[max(sinks ^ old_sinks)], None
    different = (old.keys() ^ edges.keys()) or {e for e in old if old[e] != edges[e]}
    start, end = max(different, key=lambda edge: edge[1])
    if old.keys() != edges.keys():
        return topology, nodes[end], None
    return topology, nodes[end], nodes[start]


def _edges_by_place(graph: SimGraph) -> dict[tuple[int, int], EdgeData]:
    place = {node: index for index, node in enumerate(graph.nodes.values())}
    return {(place[a], place[b]): data for (a, b), data in graph.edges.items()}


def ancestors_of(graph: SimGraph, nodes: Iterable[SimNode]) -> set[SimNode]:
    """Return ``nodes`` and everything they depend on."""
    before = graph.predecessors()
    found: set[SimNode] = set()
    stack: list[Any] = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(before[node])
    return found
