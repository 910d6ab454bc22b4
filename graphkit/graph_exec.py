"""Executable graphs: launch, change single nodes, or bring all in line with another graph."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from graphkit.arrays import describe
from graphkit.errors import CudaError, GraphUpdateError, refuse_closed
from graphkit.kernel import Kernel
from graphkit.launch_config import check_shared_mem, dim3
from graphkit.lifetime import (
    NOT_PERMITTED,
    Handle,
    in_host_function,
    keep_until_done,
)
from graphkit.node import (
    Difference,
    KernelNodeValues,
    Node,
    check_address,
    memcpy_params,
    memset_params,
    node_differences,
)
from graphkit.params import Args, ArgumentBlock
from graphkit.readback import read_kernel_block, read_values
from graphkit.runtime.protocol import (
    ExecUpdateStatus,
    InstantiateFlags,
    KernelNodeParams,
    MemcpyKind,
    MemcpyNodeParams,
    MemsetNodeParams,
    NodeType,
    Runtime,
)
from graphkit.stream import Event, HostCallback, event_handle, stream_handle

if TYPE_CHECKING:
    from graphkit.graph import Graph

__all__ = ["GraphExec", "UpdateReport", "check_graph"]

_UPDATE_FAILURE = 910  # cudaErrorGraphExecUpdateFailure
# How many replaced operands an exec holds before it has an event say when they are free.
_REPLACED_LIMIT = 32


@dataclass(frozen=True)
class UpdateReport:
    """What became of :meth:`GraphExec.update`. True when the exec was updated.

    Attributes:
        result: CUDA's verdict (cudaGraphExecUpdateResult).
        node: the offending node of the graph that was passed, where CUDA names one.
        from_node: the far end of the offending edge, when the topology differs.
        kernel: the name of the offending node's kernel, if it is a kernel node.
        differences: what differs between that node and the one the exec has in its place.
    """

    result: ExecUpdateStatus
    node: Node | None = None
    from_node: Node | None = None
    kernel: str | None = None
    differences: tuple[Difference, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the exec was updated; otherwise it is what it was."""
        return self.result is ExecUpdateStatus.SUCCESS

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        text = f"update: {self.result.name.lower()}"
        if self.node is not None:
            text += f" at {self.node!r}"
        if self.kernel is not None:
            text += f" ({self.kernel})"
        if self.from_node is not None:
            text += f", edge from {self.from_node!r}"
        if self.differences:
            text += "; " + "; ".join(map(str, self.differences))
        return text


class _KernelSlot:
    """What an exec holds for one of its kernel nodes: CUDA has no getter for it."""

    __slots__ = ("block", "cells", "commit", "owners", "params", "place", "view", "write")

    def __init__(self, params: KernelNodeParams, block: ArgumentBlock) -> None:
        self.params = params._replace(kernel_params=block.kernel_params, extra=block.extra)
        self.block = block
        self.view = block.view
        self.commit: Callable[[], Any] = _unbound
        # By name and by position: what checks and writes a value, where a plain number may be
        # stored at once, and the place of its owner.
        keys = [*block.names, *range(len(block.parameters))]
        self.write: dict[object, Callable[[object], None]] = dict(
            zip(keys, block.writers * 2, strict=True)
        )
        self.cells: dict[object, Any] = dict(zip(keys, block.cells * 2, strict=True))
        self.place: dict[object, int] = {key: block.index(key) for key in keys}
        self.owners: list[object] = [None] * len(block.parameters)


def _unbound() -> NoReturn:
    raise AssertionError("a kernel slot is bound when it is opened")


class _Retired(Exception):  # noqa: N818 - it never leaves this module
    """Another thread replaced a slot between the look-up and the turn of this one."""


def _retired() -> NoReturn:
    raise _Retired


class _Turn(list[None]):
    """A lock for calls of a microsecond: whoever pops its one element has the turn.

    list.pop and list.append are atomic. On the hot paths they are written out, and then cost a
    fifth of a threading.Lock; a thread that finds the list empty lets others run and tries again.
    An interrupt (KeyboardInterrupt) comes out of pop when that is done: the turn is given back.
    """

    def wait(self) -> None:
        """Take the turn as soon as another thread gives it back.

        Raises:
            CudaError: inside of a host function (800): this thread itself may have the turn.
        """
        if in_host_function():
            raise CudaError("GraphExec", NOT_PERMITTED, "a host function must not call CUDA")
        while True:
            time.sleep(0)
            try:
                self.pop()
            except IndexError:
                continue
            except BaseException:
                self.append(None)
                raise
            return

    def __enter__(self) -> None:
        try:
            self.pop()
        except IndexError:
            self.wait()
        except BaseException:
            self.append(None)
            raise

    def __exit__(self, *_: object) -> None:
        self.append(None)


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
        self._turn = _Turn([None])
        # The stream of the last launch and the call bound to it, read and replaced as one.
        self._bound: tuple[object, Callable[[], Any]] = (_unbound, _unbound)
        self._streams: dict[int, object] = {}
        self._slots: dict[Node, _KernelSlot] = {}
        self._copies: dict[Node, MemcpyNodeParams] = {}
        self._fills: dict[Node, MemsetNodeParams] = {}
        # After an update, the nodes' values are those of this graph.
        self._updated_from = graph
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
        finally:
            turn.append(None)

    def launcher(self, stream: object) -> Callable[[], None]:
        """Return a callable that launches on ``stream`` (cudaGraphLaunch): the hot loop.

        Everything is bound beforehand and nothing is locked: call it from one thread at a time,
        and not while another thread changes the exec. It keeps the exec alive; once that is
        closed it raises ValueError.
        """
        launch = self._bind(stream)[1]
        launch.exec = self  # type: ignore[attr-defined]
        return launch

    def _bind(self, stream: object) -> tuple[object, Callable[[], Any]]:
        handle = stream_handle(stream)
        self.ptr  # noqa: B018 - refuses a closed exec
        bound = stream, self.runtime.graph_launcher(self._handle, handle)
        with self._turn:
            self._streams[handle] = stream
            self._bound = bound
        return bound

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
        """Change a kernel node for later launches (cudaGraphExecKernelNodeSetParams).

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
        try:
            slot = self._slots[node]
        except (KeyError, TypeError):  # not looked at before, or no node at all
            slot = None
        slot = slot or self._open(node)
        if (
            type(args) is not dict
            or grid is not None
            or block is not None
            or shared_mem is not None
            or kernel is not None
        ):
            self._reconfigure(node, args, grid, block, shared_mem, kernel)
            return
        cells, view, turn, arrays = slot.cells, slot.view, self._turn, False
        try:
            turn.pop()
        except IndexError:
            turn.wait()
        except BaseException:
            turn.append(None)
            raise
        try:
            before = view.tobytes()
            try:
                for key, value in args.items():
                    kind = type(value)
                    if kind is float or kind is int:
                        cells[key][0] = value
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
            return
        except _Retired:
            pass
        finally:
            turn.append(None)
        self.set_kernel_node_params(node, args=args)

    def _keyed(self, block: ArgumentBlock, args: Args | None) -> dict[Any, object]:
        if args is None:
            return {}
        if isinstance(args, Mapping):
            return dict(args)
        return dict(enumerate(block.complete(args)))

    def _open(self, node: Node) -> _KernelSlot:
        self._check(node, NodeType.KERNEL)
        with self._turn:
            return self._slot(node)

    def _slot(self, node: Node) -> _KernelSlot:
        """Return what is known of a kernel node; at first, read what the exec holds for it."""
        slot = self._slots.get(node)
        if slot is None:
            self._check(node, NodeType.KERNEL)  # again: it may be gone since this thread has a turn
            slot = _KernelSlot(*read_kernel_block(self._source(node)))
            self._adopt(node, slot)
        return slot

    def _adopt(self, node: Node, slot: _KernelSlot) -> None:
        slot.commit = self.runtime.kernel_node_setter(self.ptr, node.ptr, slot.params)
        before = self._slots.get(node)
        if before is not None:
            before.commit = _retired
        self._slots[node] = slot

    def _reconfigure(
        self,
        node: Node,
        args: Args | None,
        grid: object,
        block: object,
        shared_mem: int | None,
        kernel: Kernel | None,
    ) -> None:
        if kernel is not None:
            if not isinstance(kernel, Kernel):
                raise TypeError(f"kernel: expected a Kernel, came {type(kernel).__name__}")
            kernel.function(self.runtime)  # compiling takes long: before other threads must wait
        with self._turn:
            slot = self._slot(node)
            params = slot.params._replace(
                grid=slot.params.grid if grid is None else dim3(grid, "grid"),
                block=slot.params.block if block is None else dim3(block, "block"),
                shared_mem=(
                    slot.params.shared_mem if shared_mem is None else check_shared_mem(shared_mem)
                ),
            )
            if kernel is None:
                changed = _KernelSlot(params, slot.block.copy())
                values = self._keyed(changed.block, args)
                changed.owners[:] = slot.owners
            else:
                params = params._replace(function=kernel.function(self.runtime))
                changed = _KernelSlot(params, ArgumentBlock(kernel.parameters))
                values = self._keyed(changed.block, changed.block.complete(args or ()))
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
            nbytes: how much to copy; it stays when None, and arrays must have just that many.

        Raises:
            ValueError: when the node copies in more than one dimension: CUDA changes 1-D only.
            TypeError: when the direction (host, device) would change: CUDA refuses that.
        """
        self._check(node, NodeType.MEMCPY)
        held = self._copies.get(node)
        if held is None:
            held = self.runtime.graph_memcpy_node_get_params(self._source(node).ptr)
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
        new = new._replace(kind=held.kind)
        with self._turn:
            self.runtime.graph_exec_memcpy_node_set_params(self.ptr, node.ptr, new)
            self._copies[node] = new
            self._replace_owner((node, "dst"), dst)
            self._replace_owner((node, "src"), src)

    def set_memset_node_params(
        self, node: Node, *, dst: object | None = None, value: object | None = None
    ) -> None:
        """Change a memset node for later launches (cudaGraphExecMemsetNodeSetParams).

        Args:
            node: a memset node of the graph this exec was instantiated from.
            dst: array or address to fill, of the same extents; it stays when None.
            value: what each element becomes; it stays when None.
        """
        self._check(node, NodeType.MEMSET)
        held = self._fills.get(node)
        if held is None:
            held = self.runtime.graph_memset_node_get_params(self._source(node).ptr)
        new = held
        if dst is not None:
            if isinstance(dst, int):
                new = held._replace(dst=check_address(dst, "dst"))
            else:
                new = memset_params(dst, 0 if value is None else value)
            if (new.width, new.height) != (held.width, held.height):
                raise ValueError(
                    f"dst: expected {held.width} x {held.height} elements as the node fills, came "
                    f"{new.width} x {new.height}"
                )
            if value is None:
                new = new._replace(value=held.value)
        if value is not None and (dst is None or isinstance(dst, int)):
            new = new._replace(value=_pattern(value, held.element_size))
        with self._turn:
            self.runtime.graph_exec_memset_node_set_params(self.ptr, node.ptr, new)
            self._fills[node] = new
            self._replace_owner((node, "dst"), dst)

    def set_host_node_params(self, node: Node, fn: Callable[[], Any]) -> HostCallback:
        """Let a host node call another function (cudaGraphExecHostNodeSetParams)."""
        self._check(node, NodeType.HOST)
        callback = HostCallback(fn)
        with self._turn:
            self.runtime.graph_exec_host_node_set_params(self.ptr, node.ptr, callback.params)
            self._replace_owner(node, callback)
        return callback

    def set_event_record_node_event(self, node: Node, event: Event) -> None:
        """Let a node record another event (cudaGraphExecEventRecordNodeSetEvent)."""
        self._check(node, NodeType.EVENT_RECORD)
        handle = event_handle(event)
        with self._turn:
            self.runtime.graph_exec_event_record_node_set_event(self.ptr, node.ptr, handle)
            self._replace_owner(node, event)

    def set_event_wait_node_event(self, node: Node, event: Event) -> None:
        """Let a node wait for another event (cudaGraphExecEventWaitNodeSetEvent)."""
        self._check(node, NodeType.EVENT_WAIT)
        handle = event_handle(event)
        with self._turn:
            self.runtime.graph_exec_event_wait_node_set_event(self.ptr, node.ptr, handle)
            self._replace_owner(node, event)

    def set_child_graph_node_params(self, node: Node, child: Graph) -> None:
        """Bring a child graph node in line with ``child`` (cudaGraphExecChildGraphNodeSetParams).

        The topology must be that of the graph it holds.
        """
        self._check(node, NodeType.GRAPH)
        check_graph(child, "child")
        with self._turn:
            self.runtime.graph_exec_child_graph_node_set_params(self.ptr, node.ptr, child.ptr)
            self._replace_owner(node, (child, child.owners))
            # The nodes inside were rewritten: what was known of them no longer holds.
            self._forget(inside=True)

    def set_node_enabled(self, node: Node, enabled: bool) -> None:
        """Switch a kernel, memcpy or memset node on or off (cudaGraphNodeSetEnabled).

        A node that is off does nothing, and its dependents still wait for its dependencies. It
        costs about a third of an enabled one.
        """
        self._check(node, NodeType.KERNEL, NodeType.MEMCPY, NodeType.MEMSET)
        with self._turn:
            self.runtime.graph_node_set_enabled(self.ptr, node.ptr, bool(enabled))

    def node_enabled(self, node: Node) -> bool:
        """Return whether a node is on (cudaGraphNodeGetEnabled)."""
        self._check(node, NodeType.KERNEL, NodeType.MEMCPY, NodeType.MEMSET)
        with self._turn:
            return self.runtime.graph_node_get_enabled(self.ptr, node.ptr)

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
            GraphUpdateError: on refusal, with ``strict``; the report is its ``report``.
        """
        check_graph(graph, "graph")
        with self._turn:
            exec_ = self.ptr
            report = self._cluster_refusal(graph)
            if report is None:
                info = self.runtime.graph_exec_update(exec_, graph.ptr)
                if info.result is ExecUpdateStatus.SUCCESS:
                    self._replaced.append((self._owners, self._updated_from))
                    self._owners = {"graph": self._owners["graph"], "update": graph.owners}
                    self._updated_from = graph
                    self._forget()
                    return UpdateReport(ExecUpdateStatus.SUCCESS)
                report = self._refusal(graph, info.result, info.error_node, info.error_from_node)
        if strict:
            raise GraphUpdateError("cuGraphExecUpdate_v2", _UPDATE_FAILURE, report)
        return report

    def _cluster_refusal(self, graph: Graph) -> UpdateReport | None:
        held, wanted = self._updated_from.clusters, graph.clusters
        if held == wanted:
            return None
        nodes = graph.nodes
        index = next(i for i in range(len(nodes)) if held.get(i) != wanted.get(i))
        return self._refusal(graph, ExecUpdateStatus.ATTRIBUTES_CHANGED, nodes[index].ptr, 0)

    def _refusal(
        self, graph: Graph, result: ExecUpdateStatus, error_node: int, error_from_node: int
    ) -> UpdateReport:
        nodes = graph.nodes
        by_ptr = {node.ptr: index for index, node in enumerate(nodes)}
        index = by_ptr.get(error_node)
        from_index = by_ptr.get(error_from_node)
        from_node = None if from_index is None else nodes[from_index]
        if index is None:
            return UpdateReport(result, None, from_node)
        values = read_values(nodes[index])
        kernel = values.name if isinstance(values, KernelNodeValues) else None
        source = self._updated_from
        ours = [] if source.handle.closed else source.nodes
        differences = (
            node_differences(read_values(ours[index]), values) if index < len(ours) else []
        )
        return UpdateReport(result, nodes[index], from_node, kernel, tuple(differences))

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
            raise TypeError(f"node: expected a {expected} node, came {node!r}")

    def _source(self, node: Node) -> Node:
        """Return the node whose values the exec took for ``node``."""
        if self._updated_from is self.graph:
            return node
        return self._updated_from.counterpart(self.graph, node)

    def _replace_owner(self, key: object, owner: object | None) -> None:
        if owner is not None:
            self._replaced.append(self._owners.get(key))
            self._owners[key] = owner
        if len(self._replaced) > _REPLACED_LIMIT:
            self._let_go()

    def _forget(self, *, inside: bool = False) -> None:
        """Drop what is known of the nodes' values, or only of those inside of child graphs."""
        for known in (self._slots, self._copies, self._fills):
            gone = [
                node for node in known if not inside or node.graph_handle is not self.graph.handle
            ]
            for node in gone:
                self._retire(known.pop(node))

    def forget_nodes(self, gone: Callable[[Node], bool]) -> None:
        """Drop what is known of nodes that the graph destroys. For :class:`Graph` to call."""
        with self._turn:
            for known in (self._slots, self._copies, self._fills):
                for node in [node for node in known if gone(node)]:
                    self._retire(known.pop(node))

    def _retire(self, entry: object) -> None:
        if isinstance(entry, _KernelSlot):
            entry.commit = _retired
            self._replaced.append(entry.owners)

    def _let_go(self) -> None:
        """Hand replaced operands over to the events that say when launches are done with them."""
        replaced, self._replaced = self._replaced, []
        if self._streams and any(item is not None for item in replaced):
            self._keep(replaced)

    def _keep(self, owners: object) -> None:
        streams: list[int | None] = []
        for handle, stream in self._streams.items():
            try:
                streams.append(handle if type(stream) is int else stream_handle(stream))
            except ValueError:  # its owner closed it
                streams.append(None)
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
            owners = (self._owners, self._replaced, list(self._slots.values()))
            if self._streams:
                self._keep(owners)
            self._handle.close()
            self._bound, self._streams = (_unbound, _unbound), {}
            for slot in self._slots.values():
                slot.commit = _retired
            self._slots, self._owners, self._replaced = {}, {}, []

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


def check_graph(graph: object, argument: str) -> None:
    """Refuse what is no Graph; told by its handle, since that class is made of this module."""
    handle = getattr(graph, "handle", None)
    if not isinstance(handle, Handle) or handle.kind != "graph":
        raise TypeError(f"{argument}: expected a Graph, came {type(graph).__name__}")


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
