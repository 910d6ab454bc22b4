"""Executable graphs: launch, change single nodes, or bring all in line with another graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from graphkit.arrays import describe, dtype_of
from graphkit.errors import CudaError, GraphUpdateError, refuse_closed
from graphkit.exec_nodes import ExecNodes, KernelSlot
from graphkit.fork import Branch
from graphkit.kernel import Kernel
from graphkit.launch_config import check_cluster, check_shared_mem, dim3
from graphkit.lifetime import Handle, in_host_function, keep_until_done
from graphkit.memory_nodes import explained
from graphkit.node import (
    KernelNodeValues,
    Node,
    NodeValues,
    check_address,
    memcpy_params,
    memset_params,
    memset_pattern,
    node_differences,
)
from graphkit.node_groups import SWITCHABLE, EnabledNodes, check_state
from graphkit.params import Args, ArgumentBlock
from graphkit.races import Race, find_races
from graphkit.readback import read_values
from graphkit.runtime.protocol import (
    ExecUpdateStatus,
    InstantiateFlags,
    MemcpyKind,
    MemcpyNodeParams,
    MemsetNodeParams,
    NodeType,
    Runtime,
)
from graphkit.statuses import StatusCode
from graphkit.stream import (
    Event,
    HostCallback,
    event_handle,
    host_callback,
    stream_cell,
    stream_handle,
)
from graphkit.turn import Turn
from graphkit.update_report import UpdateReport

if TYPE_CHECKING:
    from graphkit.graph import Graph
    from graphkit.node_records import NodeRecords

__all__ = ["GraphExec", "check_graph", "check_kernel"]

# How many replaced operands an exec holds before it has an event say when they are free.
_REPLACED_LIMIT = 32


def _not_bound() -> NoReturn:
    raise AssertionError("nobody launches on the stream that stands for none")


# No stream is this function, so whatever comes first is bound.
_NOT_BOUND: tuple[object, Callable[[], Any]] = (_not_bound, _not_bound)


class GraphExec:
    """An executable graph (cudaGraphExec_t), made by :meth:`graphkit.Graph.instantiate`.

    It keeps every operand of its graph alive. Changes affect later launches only, so they may
    follow a launch at once; what they replace is kept until the launches that may use it are
    done. Launches of one exec never overlap, not even on two streams.

    Methods may be called from several threads.
    """

    def __init__(
        self, graph: Graph, flags: InstantiateFlags, upload_stream: object | None = None
    ) -> None:
        self.graph = graph
        self.flags = flags
        self.runtime: Runtime = graph.runtime
        stream = 0 if upload_stream is None else stream_handle(upload_stream)
        value = self.runtime.graph_instantiate_with_params(graph.ptr, flags, stream)
        destroy = self.runtime.graph_exec_destroy
        self._handle = Handle(self.runtime, "executable graph", value, destroy)
        self._turn = Turn()
        # The stream of the last launch and the call bound to it, read and replaced as one.
        self._bound: tuple[object, Callable[[], Any]] = _NOT_BOUND
        self._streams: dict[int, object] = {}
        self._nodes = ExecNodes(graph)
        self._enabled = EnabledNodes(graph.groups)
        self._owners: dict[object, object] = {"graph": graph.owners}
        self._replaced: list[object] = []

    @property
    def ptr(self) -> int:
        """The cudaGraphExec_t.

        Raises:
            ValueError: when the exec is closed.
        """
        if self._handle.closed:
            refuse_closed("exec")
        return self._handle.value

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._handle.closed

    # --- launching -------------------------------------------------------------------------------

    def upload(self, stream: object) -> None:
        """Move the exec's resources to the device without running it (cudaGraphUpload)."""
        handle = stream_handle(stream)
        with self._turn:
            self.runtime.graph_upload(self.ptr, handle)

    def launch(self, stream: object) -> None:
        """Launch on a stream (cudaGraphLaunch).

        Args:
            stream: any framework's stream, or a cudaStream_t as an int.

        Raises:
            ValueError: when the exec is closed.
        """
        bound = self._bound
        if bound[0] is not stream:
            bound = self._bind(stream)
        turn = self._turn
        try:
            turn.pop()
        except IndexError:
            turn.wait()
        except BaseException:
            turn.append(None)
            raise
        try:
            bound[1]()
        except CudaError as error:
            raise self._explain(error) from None
        finally:
            turn.append(None)

    def launcher(self, stream: object) -> Callable[[], None]:
        """Return a callable that launches on ``stream`` (cudaGraphLaunch): the hot loop.

        Everything is bound beforehand and nothing is locked: call it from one thread at a time,
        and not while another thread changes the exec. It keeps the exec alive; once that is
        closed it raises ValueError.
        """
        launch = self._launch_on(stream)
        if self.graph.memory_nodes.certain:
            launch = explained(launch, self._explain)
        # Not the call that launch() keeps: through that one the exec would refer to itself.
        launch.exec = self  # type: ignore[attr-defined]
        return launch

    def _bind(self, stream: object) -> tuple[object, Callable[[], Any]]:
        bound = stream, self._launch_on(stream)
        self._bound = bound
        return bound

    def _explain(self, error: CudaError) -> CudaError:
        return self.graph.memory_nodes.explain(error, self.flags)

    def _launch_on(self, stream: object) -> Callable[[], Any]:
        handle = stream_handle(stream)
        with self._turn:
            self.ptr  # noqa: B018 - refuses a closed exec
            # The stream behind a branch lives on when the branch is refused.
            self._streams[handle] = handle if type(stream) is Branch else stream
        return self.runtime.graph_launcher(self._handle, stream_cell(stream))

    # --- changing one node -----------------------------------------------------------------------

    def set_kernel_node_params(
        self,
        node: Node,
        *,
        args: Args | None = None,
        grid: int | Sequence[int] | None = None,
        block: int | Sequence[int] | None = None,
        shared_mem: int | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        """Change a kernel node for later launches (cuGraphExecKernelNodeSetParams).

        What is not named stays as the exec has it.

        Args:
            node: a kernel node of the graph this exec was instantiated from.
            args: arguments to change, a dict by name or position; a tuple changes all of them.
            grid: blocks, an int or up to three.
            block: threads of a block, an int or up to three.
            shared_mem: dynamic shared memory of a block in bytes.
            kernel: another kernel of the same device; ``args`` must then be complete.

        Raises:
            TypeError, ValueError: an unknown or unfitting argument; the exec is what it was.
            CudaError: what CUDA refuses, such as another cluster size; likewise.
        """
        if kernel is not None:
            check_kernel(kernel)
            kernel.function(self.runtime)  # compiling takes long: before other threads must wait
        turn = self._turn
        try:
            turn.pop()
        except IndexError:
            turn.wait()
        except BaseException:
            turn.append(None)
            raise
        try:
            slot = self._nodes.slots.get(node) if type(node) is Node else None
            if slot is None:
                slot = self._open(node)
            if (
                type(args) is not dict
                or grid is not None
                or block is not None
                or shared_mem is not None
                or kernel is not None
            ):
                self._reconfigure(node, slot, args, grid, block, shared_mem, kernel)
                return
            view, arrays = slot.view, False
            before = view.tobytes()
            try:
                for key, value in args.items():
                    kind = type(value)
                    if kind is float or kind is int:
                        slot.cells[key][0] = value
                    else:
                        slot.write[key](value)
                        arrays = True
                slot.commit()
            except BaseException:
                view[:] = before
                # The fast stores say little: let the writers say what is wrong.
                for key, value in args.items():
                    slot.write[slot.block.index(key)](value)
                view[:] = before
                raise
            if arrays:
                # The new ones are kept, and the old ones until the launches in flight are done.
                owners, replaced = slot.owners, self._replaced
                for key in args:
                    place = slot.place[key]
                    replaced.append(owners[place])
                    owners[place] = args[key]
                if len(replaced) > _REPLACED_LIMIT:
                    self._let_go()
        finally:
            turn.append(None)

    def _open(self, node: Node) -> KernelSlot:
        """Start to keep track of a kernel node."""
        self._check(node, NodeType.KERNEL)
        return self._adopt(node, self._nodes.open(node))

    def _adopt(self, node: Node, slot: KernelSlot) -> KernelSlot:
        slot.commit = self.runtime.kernel_node_setter(self.ptr, node.ptr, slot.params)
        self._nodes.slots[node] = slot
        return slot

    def _reconfigure(
        self,
        node: Node,
        slot: KernelSlot,
        args: Args | None,
        grid: object,
        block: object,
        shared_mem: int | None,
        kernel: Kernel | None,
    ) -> None:
        params = slot.params._replace(
            grid=slot.params.grid if grid is None else dim3(grid, "grid"),
            block=slot.params.block if block is None else dim3(block, "block"),
            shared_mem=(
                slot.params.shared_mem if shared_mem is None else check_shared_mem(shared_mem)
            ),
        )
        if grid is not None and (cluster := self._nodes.cluster_of(node)):
            check_cluster(cluster, params.grid, "grid")
        if kernel is None:
            changed = KernelSlot(params, slot.block.copy())
            changed.owners[:] = slot.owners
        else:
            params = params._replace(function=kernel.function(self.runtime))
            changed = KernelSlot(params, ArgumentBlock(kernel.parameters))
            args = changed.block.complete(() if args is None else args)
        if args is None:
            values: dict[Any, object] = {}
        elif isinstance(args, Mapping):
            values = dict(args)
        else:
            values = dict(enumerate(changed.block.complete(args)))
        for key, value in values.items():
            place = changed.block.index(key)
            changed.write[place](value)
            changed.owners[place] = value
        self.runtime.graph_exec_kernel_node_set_params(self.ptr, node.ptr, changed.params)
        self._replaced.append(slot.owners)
        self._replace_owner(node, kernel)
        self._adopt(node, changed)

    def set_memcpy_node_params(
        self,
        node: Node,
        *,
        dst: object | None = None,
        src: object | None = None,
        nbytes: int | None = None,
    ) -> None:
        """Change a 1-D memcpy node for later launches (cudaGraphExecMemcpyNodeSetParams1D).

        Args:
            node: a memcpy node of the graph this exec was instantiated from.
            dst: array or address to copy to; it stays when None.
            src: array or address to copy from; it stays when None.
            nbytes: how much to copy; it stays when None, and arrays must have that many or more.

        Raises:
            ValueError: when the node copies in more than one dimension: CUDA changes 1-D only.
            TypeError: when the direction (host, device) would change: CUDA refuses that.
        """
        with self._turn:
            self._check(node, NodeType.MEMCPY)
            new = _changed_copy(self._nodes.copy(node), dst, src, nbytes)
            self.runtime.graph_exec_memcpy_node_set_params(self.ptr, node.ptr, new)
            self._nodes.copies[node] = new
            self._replace_owner((node, "dst"), dst)
            self._replace_owner((node, "src"), src)

    def set_memset_node_params(
        self, node: Node, *, dst: object | None = None, value: object | None = None
    ) -> None:
        """Change a memset node for later launches (cudaGraphExecMemsetNodeSetParams).

        Args:
            node: a memset node of the graph this exec was instantiated from.
            dst: array or address to fill, of the same extents; it stays when None.
            value: what each element becomes, in the dtype of the last array that the node was
                given; it stays when None. Of a node that was captured, or was given addresses
                only, no dtype is known: then a NumPy scalar of the elements' size, or an int for
                their bytes.
        """
        with self._turn:
            self._check(node, NodeType.MEMSET)
            dtype = dtype_of(dst) or self._nodes.dtype(node)
            new = _changed_fill(self._nodes.fill(node), dst, value, dtype)
            self.runtime.graph_exec_memset_node_set_params(self.ptr, node.ptr, new)
            self._nodes.fills[node] = new
            self._nodes.dtypes[node] = dtype
            self._replace_owner((node, "dst"), dst)

    def set_host_node_params(
        self, node: Node, fn: Callable[[], Any] | HostCallback
    ) -> HostCallback:
        """Let a host node call another function (cudaGraphExecHostNodeSetParams)."""
        callback = host_callback(fn)
        with self._turn:
            self._check(node, NodeType.HOST)
            self.runtime.graph_exec_host_node_set_params(self.ptr, node.ptr, callback.params)
            self._replace_owner(node, callback)
        return callback

    def set_event_record_node_event(self, node: Node, event: Event) -> None:
        """Let a node record another event (cudaGraphExecEventRecordNodeSetEvent)."""
        handle = event_handle(event)
        with self._turn:
            self._check(node, NodeType.EVENT_RECORD)
            self.runtime.graph_exec_event_record_node_set_event(self.ptr, node.ptr, handle)
            self._replace_owner(node, event)

    def set_event_wait_node_event(self, node: Node, event: Event) -> None:
        """Let a node wait for another event (cudaGraphExecEventWaitNodeSetEvent)."""
        handle = event_handle(event)
        with self._turn:
            self._check(node, NodeType.EVENT_WAIT)
            self.runtime.graph_exec_event_wait_node_set_event(self.ptr, node.ptr, handle)
            self._replace_owner(node, event)

    def set_child_graph_node_params(self, node: Node, child: Graph) -> None:
        """Bring a child graph node in line with ``child`` (cudaGraphExecChildGraphNodeSetParams).

        The topology must be that of the graph it holds.
        """
        check_graph(child, "child")
        with self._turn:
            self._check(node, NodeType.GRAPH)
            level = self.graph.level_of(node)
            assert level is not None  # or the check had refused it
            inside = level.child_graph(node)
            self.runtime.graph_exec_child_graph_node_set_params(self.ptr, node.ptr, child.ptr)
            self._replace_owner(node, (child, child.owners))
            # The nodes inside were rewritten: what was known of them no longer holds.
            self._replaced.extend(self._nodes.forget(inside.contains))
            self._nodes.take_child(node, child)

    def set_node_enabled(self, node: Node, enabled: bool) -> None:
        """Switch a kernel, memcpy or memset node on or off (cudaGraphNodeSetEnabled).

        A node that is off does nothing, and its dependents still wait for its dependencies. It
        costs about a third of an enabled one.
        """
        on = check_state(enabled, "enabled")
        with self._turn:
            self._check(node, *SWITCHABLE)
            self.runtime.graph_node_set_enabled(self.ptr, node.ptr, on)
            self._enabled.note(node, on)

    def node_enabled(self, node: Node) -> bool:
        """Return whether a node is on (cudaGraphNodeGetEnabled)."""
        with self._turn:
            self._check(node, *SWITCHABLE)
            return self.runtime.graph_node_get_enabled(self.ptr, node.ptr)

    def set_enabled(self, /, **groups: bool) -> None:
        """Switch groups of nodes on or off: ``exe.set_enabled(adapter=False)``.

        cudaGraphNodeSetEnabled for each node whose state changes, and for no other. A node is on
        while all of its groups are; what :meth:`set_node_enabled` did to a node of a group named
        here is overridden. An update keeps the states; a new exec of the graph begins with all
        groups on.

        Args:
            groups: names of :meth:`graphkit.Graph.group`, and whether each is to be on.

        Raises:
            ValueError: an unknown group; the message lists those of the graph.
            CudaError: for a node that was added after the exec was made. No state has changed.
        """
        with self._turn:
            exec_ = self.ptr
            self.graph.ptr  # noqa: B018 - CUDA needs the source graph to find the nodes

            def set_node(node: Node, on: bool) -> None:
                self.runtime.graph_node_set_enabled(exec_, node.ptr, on)

            self._enabled.change(groups, set_node)

    @property
    def enabled(self) -> dict[str, bool]:
        """Whether each group of the graph is on; :meth:`set_enabled` changes it."""
        with self._turn:
            self.ptr  # noqa: B018 - refuses a closed exec
            return self._enabled.states

    # --- changing all of it ----------------------------------------------------------------------

    def update(self, graph: Graph, *, strict: bool = False) -> UpdateReport:
        """Bring every node in line with ``graph`` (cuGraphExecUpdate_v2).

        CUDA pairs the nodes by the order in which nodes and edges were added. Every node's
        parameters become those of ``graph``, also where an exec setter had changed them; what was
        switched off stays off. Kernel nodes with other cluster extents are refused here: CUDA
        reports success for some of those and keeps the old ones (sglang#37657).

        Args:
            graph: a graph of the same topology.
            strict: raise on refusal instead of returning the report.

        Returns:
            The report, which is false when the exec was left as it was.

        Raises:
            ValueError: a graph with alloc or free nodes that another exec was made from.
            GraphUpdateError: on refusal, with ``strict``; the report is its ``report``.
        """
        check_graph(graph, "graph")
        if graph is not self.graph and graph.live_execs():
            graph.memory_nodes.refuse("graph", "it is another exec's, and has one at a time")
        with self._turn:
            exec_ = self.ptr
            report = self._conditional_refusal(graph)
            if report is None:  # a report of a refusal is false
                report = self._cluster_refusal(graph)
            if report is None:
                info = self.runtime.graph_exec_update(exec_, graph.ptr)
                if info.result is ExecUpdateStatus.SUCCESS:
                    self._replaced.append((self._owners, self._nodes.taken_from))
                    self._owners = {"graph": self._owners["graph"], "update": graph.owners}
                    self._replaced.extend(self._nodes.forget(lambda _node: True))
                    self._nodes.take(graph)
                    if len(self._replaced) > _REPLACED_LIMIT:
                        self._let_go()
                    return UpdateReport(ExecUpdateStatus.SUCCESS)
                report = self._refusal(graph, info.result, info.error_node, info.error_from_node)
        if strict:
            code = int(StatusCode.GRAPH_EXEC_UPDATE_FAILURE)
            raise GraphUpdateError("cuGraphExecUpdate_v2", code, report)
        return report

    def _conditional_refusal(self, graph: Graph) -> UpdateReport | None:
        """Refuse conditional nodes: the kernels of the other graph set its own handles."""
        for node in graph.conditionals.nodes:
            return self._refusal(graph, ExecUpdateStatus.NOT_SUPPORTED, node, 0)
        return None

    def _cluster_refusal(self, graph: Graph) -> UpdateReport | None:
        held, wanted = self._nodes.clusters, graph.clusters
        if held == wanted:
            return None
        nodes = graph.nodes
        place = min(
            path for path in held.keys() | wanted.keys() if held.get(path) != wanted.get(path)
        )
        if place[0] >= len(nodes):
            return None  # another topology, which CUDA says better
        return self._refusal(graph, ExecUpdateStatus.ATTRIBUTES_CHANGED, nodes[place[0]].ptr, 0)

    def _refusal(
        self, graph: Graph, result: ExecUpdateStatus, error_node: int, error_from_node: int
    ) -> UpdateReport:
        nodes = graph.nodes
        places = {node.ptr: index for index, node in enumerate(nodes)}
        place, from_place = places.get(error_node), places.get(error_from_node)
        from_node = None if from_place is None else nodes[from_place]
        if place is None:
            return UpdateReport(result, None, from_node)
        values = read_values(nodes[place])
        kernel = values.name if isinstance(values, KernelNodeValues) else None
        ours = [] if self.graph.handle.closed else self.graph.nodes
        held: NodeValues = None
        # The graph that the held values came from may be closed, or not what it was.
        with suppress(ValueError):
            held = self._nodes.values(ours[place]) if place < len(ours) else None
        differences = [] if held is None else node_differences(held, values)
        return UpdateReport(result, nodes[place], from_node, kernel, tuple(differences))

    def check_races(self) -> tuple[Race, ...]:
        """Find unordered nodes that touch the same bytes, with the arguments that the exec has now.

        Edges stay what they were when arguments are set, derived ones too: an array that takes the
        place of another may be one that an unordered node uses. See :meth:`Graph.check_races`.
        """
        with self._turn:
            self.ptr  # noqa: B018 - refuses a closed exec
            return find_races(self.graph, self._nodes)

    # --- what it keeps ---------------------------------------------------------------------------

    def _check(self, node: Node, *types: NodeType) -> None:
        if not isinstance(node, Node):
            raise TypeError(f"node: expected a Node, came {type(node).__name__}")
        self.ptr  # noqa: B018 - refuses a closed exec before anything else is looked at
        self.graph.ptr  # noqa: B018 - CUDA needs the source graph to find the node in the exec
        if not self.graph.contains(node):
            raise ValueError(
                f"node: expected a node of the graph this exec was made from, came {node!r} of "
                "another graph, or a removed one"
            )
        if node.type not in types:
            expected = " or ".join(item.name.lower() for item in types)
            raise TypeError(f"node: expected one of type {expected}, came {node!r}")

    def _replace_owner(self, key: object, owner: object | None) -> None:
        if owner is not None:
            self._replaced.append(self._owners.get(key))
            self._owners[key] = owner
        if len(self._replaced) > _REPLACED_LIMIT:
            self._let_go()

    def forget_nodes(self, gone: Callable[[Node], bool]) -> None:
        """Drop what is known of nodes that the graph destroys. For :class:`Graph` to call."""
        with self._turn:
            self._replaced.extend(self._nodes.forget(gone))
            self._enabled.forget(gone)

    def keep_shape(self, records: NodeRecords) -> None:
        """Note nodes and edges of its graph before those change. For :class:`Graph` to call."""
        if self.closed or self._nodes.has_shape(records):
            return
        with self._turn:
            self._nodes.keep_shape(records)

    def keep_clusters(self) -> None:
        """Note the clusters of its graph before those change. For :class:`Graph` to call."""
        with self._turn:
            self._nodes.clusters  # noqa: B018 - is noted when it is asked for

    def release(self, owners: list[object]) -> None:
        """Let go of operands once the launches so far are done. For graphkit itself."""
        if self._streams:
            self._keep(owners)

    def _let_go(self) -> None:
        """Hand replaced operands over to the events that say when launches are done with them."""
        replaced, self._replaced = self._replaced, []
        if self._streams and any(item is not None for item in replaced):
            self._keep(replaced)

    def _keep(self, owners: object) -> None:
        streams: list[int | None] = []
        for handle, stream in list(self._streams.items()):
            try:
                streams.append(handle if type(stream) is int else stream_handle(stream))
            except ValueError:  # its owner closed it: waited for once, and never again
                streams.append(None)
                self._streams.pop(handle, None)  # another thread may have been first
        keep_until_done(self.runtime, streams, owners)

    def close(self) -> None:
        """Destroy the exec (cudaGraphExecDestroy); launches in flight still finish.

        What they use is kept until then. Closing twice is nothing.
        """
        if self._handle.closed:
            return
        # A host function may interrupt the very thread that has the turn; all it ends waits.
        with nullcontext() if in_host_function() else self._turn:
            if self._handle.closed:  # another thread was first
                return
            slots = list(self._nodes.forget(lambda _node: True))
            if self._streams:
                self._keep((self._owners, self._replaced, slots))
            self._handle.close()
            self._bound, self._streams = _NOT_BOUND, {}
            self._owners, self._replaced = {}, []

    def __del__(self) -> None:
        # A constructor that failed has no handle; at interpreter exit the driver may be gone.
        if hasattr(self, "_replaced") and not sys.is_finalizing():
            self.close()

    def __enter__(self) -> GraphExec:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._handle.closed else hex(self._handle.value)
        return f"<GraphExec {state} of {self.graph!r}>"


def check_kernel(kernel: object) -> None:
    """Refuse what is no Kernel."""
    if type(kernel) is not Kernel:
        raise TypeError(f"kernel: expected a Kernel, came {type(kernel).__name__}")


def check_graph(graph: object, argument: str) -> None:
    """Refuse what is no Graph; told by its handle, since that class is made of this module."""
    handle = getattr(graph, "handle", None)
    if not isinstance(handle, Handle) or handle.kind != "graph":
        raise TypeError(f"{argument}: expected a Graph, came {type(graph).__name__}")


def _changed_copy(
    held: MemcpyNodeParams, dst: object | None, src: object | None, nbytes: int | None
) -> MemcpyNodeParams:
    if held.height > 1 or held.depth > 1:
        raise ValueError(
            f"node: expected a 1-D memcpy node, came {held.width} bytes x {held.height} x "
            f"{held.depth}; update() changes it"
        )
    for value, argument, wanted in (
        (dst, "dst", (MemcpyKind.HOST_TO_DEVICE, MemcpyKind.DEVICE_TO_DEVICE)),
        (src, "src", (MemcpyKind.DEVICE_TO_HOST, MemcpyKind.DEVICE_TO_DEVICE)),
    ):
        if value is None or isinstance(value, int) or held.kind is MemcpyKind.DEFAULT:
            continue
        if describe(value, argument).on_host is (held.kind in wanted):
            raise TypeError(
                f"{argument}: expected {'device' if held.kind in wanted else 'host'} memory, "
                f"since the node copies {held.kind.name.lower()}, came {type(value).__name__}"
            )
    new = memcpy_params(
        held.dst if dst is None else dst,
        held.src if src is None else src,
        held.width if nbytes is None else nbytes,
    )
    return new._replace(kind=held.kind)


def _changed_fill(
    held: MemsetNodeParams,
    dst: object | None,
    value: object | None,
    dtype: np.dtype[Any] | None,
) -> MemsetNodeParams:
    """Return a fill that differs in what is given.

    Args:
        held: the fill as it is.
        dst: array or address to fill.
        value: what each element is to become.
        dtype: of the array that is filled; None where nobody knows.
    """
    if dst is None or isinstance(dst, int):
        new = held if dst is None else held._replace(dst=check_address(dst, "dst"))
        if value is None:
            return new
        if dtype is None:
            return new._replace(value=_pattern(value, held.element_size))
        return new._replace(value=memset_pattern(value, dtype)[0])
    new = memset_params(dst, 0 if value is None else value)
    fills, filled = new[3:], held[3:]  # element size, width, height
    if fills != filled:
        raise ValueError(
            f"dst: expected {held.width} x {held.height} elements of {held.element_size} bytes as "
            f"the node fills, came {new.width} x {new.height} of {new.element_size}"
        )
    return new._replace(value=held.value) if value is None else new


def _pattern(value: object, element_size: int) -> int:
    """Return a memset value of ``element_size`` bytes."""
    item = np.asarray(value)
    if isinstance(value, (np.generic, np.ndarray)) and item.dtype.itemsize == element_size:
        return int.from_bytes(item.tobytes(), "little")
    if isinstance(value, (int, np.integer)) and 0 <= value < 256**element_size:
        return int(value)
    raise ValueError(
        f"value: expected an int of {element_size} bytes or a NumPy scalar of that size, came "
        f"{value!r}"
    )
