"""Moving an executable graph to another graph of its topology: what differs, and two ways."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, NamedTuple

from graphkit.c_signature import opaque_parameters
from graphkit.graph import Graph
from graphkit.graph_exec import GraphExec
from graphkit.kernel import kernel_of
from graphkit.node import Node
from graphkit.runtime.protocol import (
    Dim3,
    ExecUpdateStatus,
    KernelNodeParams,
    MemcpyNodeParams,
    MemsetNodeParams,
    NodeType,
    Runtime,
)
from graphkit.update_report import UpdateReport

__all__ = ["Changes", "ExecTarget", "GraphValues", "compare"]


class _Kernel(NamedTuple):
    """What a kernel node holds beside its arguments, and how those are passed."""

    function: int
    grid: Dim3
    block: Dim3
    shared_mem: int
    nbytes: int
    by_extra: bool


class _Arguments(NamedTuple):
    """The arguments of one kernel node as they were read."""

    raw: bytes
    offsets: tuple[int, ...] | None  # of each parameter; None where they pass through `extra`


_NO_ARGUMENTS = _Arguments(b"", ())

# (offset, size) of each parameter.
_Layout = tuple[tuple[int, int], ...]

# CU_LAUNCH_PARAM_BUFFER_POINTER and CU_LAUNCH_PARAM_BUFFER_SIZE, in cuda.h. The list ends with 0.
_BUFFER_POINTER, _BUFFER_SIZE = 1, 2
_EXTRA_WORDS = 6  # pointer, size and end, and then the size that is pointed at


class GraphValues:
    """What every node of a graph holds, read once; later changes of the graph do not reach it.

    The arguments of kernels are copied. CUDA's own memory of them would do while the graph lives
    and nobody changes a node of it, but the calls that set nodes read the arguments each time
    they are made: after that they would read what is freed. The copies of all nodes lie in one
    piece of memory beside the pointers to them that CUDA wants.

    Args:
        graph: the graph. What its nodes point at is kept alive; the graph itself may be closed.

    Attributes:
        owners: what its nodes point at.
        kinds: the kind of each node, in the order in which they were added.
        held: what each of them holds; of a kernel node all but its arguments, of a child graph
            node the values inside.
    """

    __slots__ = (
        "_arguments", "_memory", "_nbytes", "_runtime", "_structs", "_tables", "held", "kinds",
        "owners",
    )  # fmt: skip

    def __init__(self, graph: Graph) -> None:
        runtime, nodes = graph.runtime, graph.nodes
        self._runtime = runtime
        self._structs: dict[int, Any] = {}
        self.owners: list[object] = graph.owners
        self.kinds: tuple[NodeType, ...] = tuple(node.type for node in nodes)
        layouts: dict[int, _Layout] = {}
        # Few nodes are launched in a manner of their own: those alike share one object.
        shared: dict[_Kernel, _Kernel] = {}
        arguments: list[_Arguments] = []
        held: list[object] = []
        for node in nodes:
            if node.type is NodeType.KERNEL:
                params = runtime.graph_kernel_node_get_params(node.ptr)
                found = _read_arguments(runtime, params, layouts)
                kernel = _Kernel(*params[:4], len(found.raw), found.offsets is None)
                held.append(shared.setdefault(kernel, kernel))
                arguments.append(found)
            else:
                held.append(_read(graph, node))
                arguments.append(_NO_ARGUMENTS)
        self.held = tuple(held)
        self._keep(arguments)

    def _keep(self, arguments: list[_Arguments]) -> None:
        """Lay out the memory: all arguments, then for each kernel node the pointers to its own."""
        self._nbytes = sum(_padded(len(item.raw)) for item in arguments)
        words = sum(
            _EXTRA_WORDS if item.offsets is None else len(item.offsets) for item in arguments
        )
        self._memory = (ctypes.c_uint64 * max(self._nbytes // 8 + words, 1))()
        view = memoryview(self._memory).cast("B")
        pointers = view.cast("Q")
        base = ctypes.addressof(self._memory)
        # Where the arguments and the pointers of each node begin: an offset and a word.
        self._arguments, self._tables = array("Q"), array("Q")
        begin, word = 0, self._nbytes // 8
        for raw, offsets in arguments:
            self._arguments.append(begin)
            self._tables.append(word)
            view[begin : begin + len(raw)] = raw
            if offsets is None:
                size = base + 8 * (word + _EXTRA_WORDS - 1)
                table = [_BUFFER_POINTER, base + begin, _BUFFER_SIZE, size, 0, len(raw)]
            else:
                table = [base + begin + offset for offset in offsets]
            pointers[word : word + len(table)] = array("Q", table)
            begin, word = begin + _padded(len(raw)), word + len(table)

    def function(self, place: int) -> int:
        """Return the function of a kernel node, 0 for any other."""
        held = self.held[place]
        return held.function if isinstance(held, _Kernel) else 0

    def launch(self, place: int) -> KernelNodeParams:
        """Return the parameters of a kernel node without its arguments."""
        held = self.held[place]
        assert isinstance(held, _Kernel)
        return KernelNodeParams(*held[:4], kernel_params=0)

    def params(self, place: int) -> object:
        """Return the parameters of a node; arguments are in memory that lives with this object."""
        held = self.held[place]
        if not isinstance(held, _Kernel):
            return held
        table = ctypes.addressof(self._memory) + 8 * self._tables[place]
        return KernelNodeParams(
            *held[:4],
            kernel_params=table if held.nbytes and not held.by_extra else 0,
            extra=table if held.by_extra else 0,
        )

    def struct(self, place: int) -> Any:
        """Return the parameters of a kernel node as the runtime takes them, made once."""
        found = self._structs.get(place)
        if found is None:
            params: Any = self.params(place)
            found = self._structs[place] = self._runtime.kernel_node_struct(params)
        return found

    def differing(self, other: GraphValues) -> Iterable[int]:
        """Yield the places of nodes that hold something else in another graph."""
        mine, theirs = bytes(self._raw), bytes(other._raw)
        rows = zip(self.held, other.held, self._arguments, other._arguments, strict=True)
        for place, (old, new, here, there) in enumerate(rows):
            if type(old) is _Kernel:
                nbytes = old.nbytes
                if old != new or mine[here : here + nbytes] != theirs[there : there + nbytes]:
                    yield place
            elif type(old) is GraphValues and type(new) is GraphValues:
                same = old.kinds == new.kinds and not any(True for _ in old.differing(new))
                if not same:
                    yield place
            elif old != new:
                yield place

    @property
    def _raw(self) -> memoryview:
        return memoryview(self._memory).cast("B")[: self._nbytes]


def _padded(nbytes: int) -> int:
    return -(-nbytes // 8) * 8


def _read_arguments(
    runtime: Runtime, params: KernelNodeParams, layouts: dict[int, _Layout]
) -> _Arguments:
    """Copy a kernel node's arguments, whichever way they are passed."""
    if params.extra:
        entries = (ctypes.c_uint64 * 4).from_address(params.extra)
        found = {entries[0]: entries[1], entries[2]: entries[3]}
        nbytes = ctypes.c_size_t.from_address(found[_BUFFER_SIZE]).value
        return _Arguments(ctypes.string_at(found[_BUFFER_POINTER], nbytes), None)
    layout = layouts.get(params.function)
    if layout is None:
        kernel = kernel_of(runtime, params.function)
        parameters = (
            opaque_parameters(runtime, params.function) if kernel is None else kernel.parameters
        )
        layout = layouts[params.function] = tuple((item.offset, item.size) for item in parameters)
    if not layout or not params.kernel_params:
        return _NO_ARGUMENTS
    block = bytearray(max(offset + size for offset, size in layout))
    table = (ctypes.c_uint64 * len(layout)).from_address(params.kernel_params)
    for (offset, size), address in zip(layout, table, strict=True):
        block[offset : offset + size] = ctypes.string_at(address, size)
    return _Arguments(bytes(block), tuple(offset for offset, _ in layout))


def _read(graph: Graph, node: Node) -> object:
    """Return what a node holds that is no kernel node."""
    runtime = graph.runtime
    match node.type:
        case NodeType.MEMCPY:
            return runtime.graph_memcpy_node_get_params(node.ptr)
        case NodeType.MEMSET:
            return runtime.graph_memset_node_get_params(node.ptr)
        case NodeType.HOST:
            return runtime.graph_host_node_get_params(node.ptr)
        case NodeType.EVENT_RECORD:
            return runtime.graph_event_record_node_get_event(node.ptr)
        case NodeType.EVENT_WAIT:
            return runtime.graph_event_wait_node_get_event(node.ptr)
        case NodeType.GRAPH:
            return GraphValues(graph.child_graph(node))
        case NodeType.EMPTY:
            return None
    return object()  # not readable: equal to nothing


class Changes(NamedTuple):
    """What must change for an exec that holds one graph to hold another.

    Attributes:
        places: the nodes that differ, by their place in the order.
        settable: whether CUDA can set each of them by itself. It cannot where they are child
            graphs, copies in more than one dimension or of another kind, or fills of other rows.
    """

    places: tuple[int, ...]
    settable: bool


def compare(old: GraphValues, new: GraphValues, skip: Collection[int] = ()) -> Changes:
    """Compare two graphs of one topology, node by node.

    Args:
        old: what the exec holds.
        new: what it shall hold.
        skip: places that the caller sets itself.

    Raises:
        ValueError: when the graphs have other kinds of nodes, and so are not of one topology.
    """
    if old.kinds != new.kinds:
        raise ValueError(
            f"new: expected a graph of the same topology, {len(old.kinds)} nodes, came one of "
            f"{len(new.kinds)} nodes or of other kinds"
        )
    places = _shared(tuple(place for place in old.differing(new) if place not in skip))
    return Changes(places, all(_settable(old.held[place], new.held[place]) for place in places))


@lru_cache(maxsize=64)
def _shared(places: tuple[int, ...]) -> tuple[int, ...]:
    """Return one object for equal places: of N graphs, most of N * N pairs differ in the same."""
    return places


def _settable(old: object, new: object) -> bool:
    if isinstance(old, MemcpyNodeParams) and isinstance(new, MemcpyNodeParams):
        flat = old.height == old.depth == new.height == new.depth == 1
        return flat and old.kind == new.kind
    if isinstance(old, MemsetNodeParams) and isinstance(new, MemsetNodeParams):
        # Measured: of a fill of one row also extent and element size may change.
        return old.height == new.height == 1 or old[3:] == new[3:]
    return isinstance(new, tuple | int)


# Nodes whose calls an exec keeps bound.
_MOST_BOUND = 1 << 14

_UPDATED = UpdateReport(ExecUpdateStatus.SUCCESS)


class ExecTarget:
    """Moves one exec between graphs of one topology.

    The exec's own setters know nothing of it: whoever moves an exec changes it in no other way.
    It is not locked, as little as :meth:`GraphExec.launcher` is.

    Args:
        exec_: the exec. The graph that it was made from must stay open: CUDA finds an exec's
            nodes by those of that graph.
    """

    __slots__ = ("_bound", "_exec", "_lines", "_nodes")

    def __init__(self, exec_: GraphExec) -> None:
        self._exec = exec_
        self._nodes = [node.ptr for node in exec_.graph.nodes]
        self._lines: dict[GraphValues, dict[tuple[int, ...], list[Callable[[], Any]]]] = {}
        self._bound = 0  # nodes in all lines

    def set_nodes(self, values: GraphValues, places: Collection[int]) -> None:
        """Set single nodes to what another graph holds, with one call of CUDA's each.

        Arguments are those of :meth:`setters`.

        Raises:
            ValueError: as :meth:`setters` does.
            CudaError: when CUDA refuses a node. Those before it are set and those behind it are
                not: update the exec whole, or close it.
        """
        for commit in self.setters(values, places):
            commit()

    def setters(self, values: GraphValues, places: Collection[int]) -> list[Callable[[], Any]]:
        """Return the calls that set single nodes to what another graph holds.

        They are bound the first time and kept, with what the graph's nodes point at, until
        :meth:`forget` or until too many are bound: whoever has the exec hold a graph keeps that
        graph's operands.

        Args:
            values: of the other graph.
            places: the nodes to set, as :func:`compare` found them.

        Raises:
            ValueError: when exec or source graph is closed, or a node cannot be set by itself.
        """
        exec_, places = self._exec, tuple(places)
        exec_.ptr  # noqa: B018 - refuses a closed exec, whose handle is bound in the calls
        exec_.graph.ptr  # noqa: B018 - likewise for the handles of the nodes
        line = self._lines.get(values, {}).get(places)
        return self._bind(values, places) if line is None else line

    def _bind(self, values: GraphValues, places: tuple[int, ...]) -> list[Callable[[], Any]]:
        count = len(self._nodes)
        if len(values.kinds) != count:
            raise ValueError(
                f"values: expected those of a graph of {count} nodes, came {len(values.kinds)}"
            )
        if places and not 0 <= min(places) <= max(places) < count:
            raise ValueError(
                f"places: expected 0 to {count - 1}, came {min(places)}, {max(places)}"
            )
        if self._bound + len(places) > _MOST_BOUND:
            self._lines.clear()
            self._bound = 0
        line: list[Callable[[], Any]] = []
        # Kernel nodes in a row are set by one call of the seam.
        for kind, run in groupby(places, key=values.kinds.__getitem__):
            if kind is NodeType.KERNEL:
                nodes = [(self._nodes[place], values.struct(place)) for place in run]
                line.append(self._exec.runtime.kernel_nodes_setter(self._exec.ptr, nodes))
            else:
                line += [self._setter(values, place) for place in run]
        self._lines.setdefault(values, {})[places] = line
        self._bound += len(places)
        return line

    def _setter(self, values: GraphValues, place: int) -> Callable[[], Any]:
        """Return the call that sets one node that is no kernel node."""
        runtime, exec_, node = self._exec.runtime, self._exec.ptr, self._nodes[place]
        params: Any = values.params(place)
        match values.kinds[place]:
            case NodeType.MEMCPY if params.height == params.depth == 1:
                return partial(runtime.graph_exec_memcpy_node_set_params, exec_, node, params)
            case NodeType.MEMSET:
                return partial(runtime.graph_exec_memset_node_set_params, exec_, node, params)
            case NodeType.HOST:
                return partial(runtime.graph_exec_host_node_set_params, exec_, node, params)
            case NodeType.EVENT_RECORD:
                return partial(runtime.graph_exec_event_record_node_set_event, exec_, node, params)
            case NodeType.EVENT_WAIT:
                return partial(runtime.graph_exec_event_wait_node_set_event, exec_, node, params)
            case kind:
                raise ValueError(
                    "places: expected nodes that CUDA sets one by one, came "
                    f"{kind.name.lower()} node {place}; update() changes it"
                )

    def update(self, graph: Graph) -> UpdateReport:
        """Bring every node in line with another graph (cuGraphExecUpdate_v2).

        Less than :meth:`GraphExec.update`: keeping alive what the graph's nodes point at is the
        caller's, and so is to know that neither graph has clusters.
        """
        exec_ = self._exec
        info = exec_.runtime.graph_exec_update(exec_.ptr, graph.ptr)
        if info.result is ExecUpdateStatus.SUCCESS:
            return _UPDATED
        return exec_.update(graph)  # refused again, and says what was in the way

    def forget(self, values: GraphValues) -> None:
        """Drop the calls that set nodes to a graph which is given up.

        With them goes what keeps that graph's operands alive: not while the exec holds it.
        """
        lines = self._lines.pop(values, {})
        self._bound -= sum(map(len, lines))
