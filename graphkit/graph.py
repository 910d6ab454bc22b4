"""Graphs: add nodes and edges by hand, look at any graph, make it executable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, overload
from weakref import WeakSet

import numpy as np
from numpy.typing import DTypeLike

from graphkit.accesses import (
    Access,
    Declared,
    copy_accesses,
    declared_accesses,
    fill_accesses,
    freed_accesses,
    kernel_accesses,
)
from graphkit.adopted import graph_address
from graphkit.conditional import (
    SET_CONDITIONAL,
    Conditional,
    ConditionalHandle,
    Conditionals,
    check_body_graph,
    check_cases,
    check_condition,
    check_default,
)
from graphkit.derived_edges import DerivedEdges, check_edges, refuse_removal
from graphkit.device_array import DeviceArray
from graphkit.errors import CudaError
from graphkit.graph_dot import dot_text
from graphkit.graph_exec import GraphExec, check_graph, check_kernel
from graphkit.kernel import Kernel
from graphkit.kernel_attributes import (
    changed_attributes,
    give_attributes,
    set_attributes,
    try_attributes,
)
from graphkit.launch_config import check_shared_mem, dim3, launch_attributes
from graphkit.lifetime import Handle
from graphkit.memory_nodes import GraphMemory, MemoryNodes
from graphkit.node import (
    GraphEdge,
    KernelNodeValues,
    Node,
    NodeValues,
    memcpy_params,
    memset_params,
)
from graphkit.node_groups import NodeGroup, NodeGroups, check_name
from graphkit.params import Args
from graphkit.races import Race, find_races
from graphkit.readback import read_cluster, read_kernel, read_values
from graphkit.runtime import current
from graphkit.runtime.protocol import (
    CaptureMode,
    CaptureStatus,
    ConditionalHandleFlags,
    ConditionalNodeParams,
    ConditionalNodeType,
    DependencyType,
    Dim3,
    Edge,
    EdgeData,
    InstantiateFlags,
    KernelNodeParams,
    KernelNodePort,
    NodeType,
    Runtime,
)
from graphkit.statuses import StatusCode
from graphkit.stream import Event, HostCallback, event_handle, host_callback
from graphkit.touched import Copied, accesses_of
from graphkit.turn import Turn

__all__ = ["Graph"]


class Graph:
    """A CUDA graph (cudaGraph_t): nodes and the edges between them.

    A graph built by hand starts empty (cudaGraphCreate); :func:`graphkit.capture` and
    :meth:`adopt` give graphs with nodes in them. It keeps alive what its nodes point at.

    With ``edges="derived"`` nodes wait for what they must and for nothing else: a node that reads
    bytes waits for the one that wrote them last, a node that writes them also for those that read
    them since, in the order of adding. What is behind a ``const T*`` is read, what is behind any
    other pointer is read and written, each array from its first to its last byte; ``reads=`` and
    ``writes=`` say it more precisely, and must say it where it cannot be known. ``deps=`` and
    :meth:`add_dependency` order further nodes. No edge is added that others imply; programmatic
    edges come from :meth:`add_dependency` alone, and take the place of derived ones. Empty nodes
    and event nodes touch nothing. Edges stay what they are when an exec is given other arguments:
    :meth:`GraphExec.check_races` looks whether they still suffice.

    Args:
        edges: ``"given"`` for the edges that are asked for, ``"derived"`` for those that follow
            from what each node reads and writes.
        runtime: the runtime to use; the current one by default.
    """

    def __init__(
        self,
        *,
        edges: Literal["given", "derived"] = "given",
        runtime: Runtime | None = None,
    ) -> None:
        derived = check_edges(edges)
        runtime = runtime or current()
        handle = Handle(runtime, "graph", runtime.graph_create(), runtime.graph_destroy)
        self._setup(handle, {}, DerivedEdges() if derived else None)

    def _setup(
        self,
        handle: Handle,
        clusters: dict[tuple[int, ...], Dim3] | None = None,
        derived: DerivedEdges | None = None,
    ) -> None:
        self.runtime: Runtime = handle.runtime
        self.handle = handle
        # A list that execs and captures share: closing the graph takes nothing from them.
        self._kernels: set[Kernel] = set()
        self.owners: list[object] = [self._kernels]
        self._nodes: dict[int, Node] = {}
        self._children: dict[int, Graph] = {}
        # They must forget the nodes that are destroyed here.
        self._execs: WeakSet[GraphExec] = WeakSet()
        # None is not known: what others put into the graph must be asked for.
        self._clusters = clusters
        self.memory_nodes = MemoryNodes(handle, known=clusters is not None)
        self.groups = NodeGroups()
        # The stream whose capture fills this graph, while that is live.
        self.captured_on: int | None = None
        self.conditionals = Conditionals()
        # None where edges are given.
        self.derived = derived
        # What nodes touch, where it was declared or edges are derived from it, and what they were
        # given; by cudaGraphNode_t.
        self.touched: dict[int, Sequence[Access]] = {}
        self.operands: dict[int, object] = {}
        # The child graph node or conditional node that this graph is inside of.
        self.holder: Node | None = None
        self._turn = Turn()

    @classmethod
    def of_handle(cls, handle: Handle) -> Graph:
        """Wrap a handle that already has an owner. For graphkit itself; users adopt."""
        graph = cls.__new__(cls)
        graph._setup(handle)
        return graph

    @classmethod
    def adopt(
        cls, graph: object, *, owner: object | None = None, runtime: Runtime | None = None
    ) -> Graph:
        """Look at, change and instantiate a graph that somebody else captured.

        Args:
            graph: PyTorch's ``CUDAGraph(keep_graph=True)``, CuPy's ``Graph``, cuda.core's
                ``GraphDefinition`` or finished ``GraphBuilder``, or a cudaGraph_t as an int.
            owner: what must stay alive for the graph to stay valid; ``graph`` itself by default.
            runtime: the runtime to use; the current one by default.

        The graph stays its owner's: it is never destroyed here.
        """
        address = graph_address(graph)
        adopted = cls.of_handle(Handle(runtime or current(), "graph", address, None))
        adopted.owners.append((owner, graph))
        return adopted

    @property
    def ptr(self) -> int:
        """The cudaGraph_t.

        Raises:
            ValueError: when the graph is closed, or its capture is still live.
        """
        if self.handle.closed:
            raise ValueError("graph: expected a live graph, came one closed or still captured")
        return self.handle.value

    # --- adding nodes ----------------------------------------------------------------------------

    def add_kernel_node(
        self,
        kernel: Kernel,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Args,
        *,
        deps: Node | Iterable[Node] = (),
        shared_mem: int = 0,
        cluster: int | Sequence[int] | None = None,
        cooperative: bool = False,
        priority: int | None = None,
        reads: Declared = None,
        writes: Declared = None,
    ) -> Node:
        """Add a kernel node (cuGraphAddKernelNode).

        One further call for each attribute given (cuGraphKernelNodeSetAttribute).

        Args:
            kernel: the kernel.
            grid: blocks, an int or up to three.
            block: threads of a block, an int or up to three.
            args: the arguments by position or by name; CUDA copies their values now.
            deps: nodes this one waits for.
            shared_mem: dynamic shared memory of a block in bytes.
            cluster: blocks of a cluster; they must divide the grid.
            cooperative: whether all blocks must run at once, for a grid-wide barrier.
            priority: priority of the node, for ``instantiate(use_node_priority=True)``; smaller
                is more urgent.
            reads: what it only reads, names of arguments and arrays; for derived edges and
                :meth:`check_races`, in place of what the signature says of these arguments.
            writes: what it writes, likewise; an array may be the part of an argument.

        Raises:
            TypeError: an argument too many, too few, or of the wrong type or size.
            ValueError: an extent of zero, a freed array, a node of another graph.
        """
        check_kernel(kernel)
        runtime = self.runtime
        # First, since a generator may add nodes of its own and pack their arguments.
        dependencies = self._dependencies(deps)
        graph = self.handle.value or self.ptr
        kernel_params, owners = kernel.pack(args)
        accesses = None
        if self.derived is not None or reads is not None or writes is not None:
            accesses = kernel_accesses(kernel.parameters, owners, reads, writes)
            self.owners.append((reads, writes))
        params = KernelNodeParams(
            kernel.function(runtime),
            dim3(grid, "grid"),
            dim3(block, "block"),
            check_shared_mem(shared_mem),
            kernel_params,
        )
        plain = cluster is None and priority is None and not cooperative
        attributes = () if plain else launch_attributes(grid, cluster, cooperative, priority)
        if attributes and self.memory_nodes.present:
            try_attributes(runtime, params, attributes)
        with self._turn:
            if self.derived is not None:
                dependencies = self._order(dependencies, accesses)
            ptr = runtime.graph_add_kernel_node(graph, dependencies, params)
            if attributes:
                give_attributes(runtime, ptr, attributes)
            if cluster is not None:
                self._clusters = None
            self._kernels.add(kernel)
            return self._keep(ptr, NodeType.KERNEL, owners, accesses)

    def set_kernel_node_attributes(
        self,
        node: Node,
        *,
        cluster: int | Sequence[int] | None = None,
        cooperative: bool | None = None,
        priority: int | None = None,
    ) -> None:
        """Change launch attributes of a kernel node, such as one that was captured.

        cuGraphKernelNodeSetAttribute for each attribute given; what is None stays. Execs that were
        made before keep theirs, and an update from this graph refuses another cluster,
        ``cooperative``, or priority that the exec uses.

        Args:
            node: a kernel node of this graph.
            cluster: blocks of a cluster; they must divide the grid.
            cooperative: whether all blocks must run at once, for a grid-wide barrier.
            priority: for ``instantiate(use_node_priority=True)``; smaller is more urgent.

        Raises:
            CudaError: what CUDA refuses, such as a cluster of more than 8 blocks that the kernel
                does not allow; the node is what it was.
        """
        self._check(node)
        attributes = changed_attributes(node, cluster, cooperative, priority)
        with self._turn:
            set_attributes(node, attributes)
            if cluster is not None:
                self._clusters = None

    def add_memcpy_node(
        self,
        dst: object,
        src: object,
        *,
        nbytes: int | None = None,
        deps: Node | Iterable[Node] = (),
    ) -> Node:
        """Add a memcpy node (cudaGraphAddMemcpyNode, or cudaGraphAddMemcpyNode1D).

        Arrays without gaps are copied as one run of bytes, views as rows (2-D) or slices of rows
        (3-D). A host array must stay where it is: the graph records its address and keeps it
        alive. Prefer pinned memory (:func:`graphkit.empty_pinned`).

        Args:
            dst: array to copy to, or an address.
            src: array to copy from, of the same shape and dtype, or an address.
            nbytes: how much to copy; needed when either is an address.
            deps: nodes this one waits for.
        """
        params = memcpy_params(dst, src, nbytes)
        before = self._dependencies(deps)
        accesses = None if self.derived is None else copy_accesses(params)
        with self._turn:
            before = self._order(before, accesses)
            ptr = self.runtime.graph_add_memcpy_node(self.ptr, before, params)
            return self._keep(ptr, NodeType.MEMCPY, (dst, src), accesses)

    def add_memset_node(
        self,
        dst: object,
        value: object = 0,
        *,
        nbytes: int | None = None,
        deps: Node | Iterable[Node] = (),
    ) -> Node:
        """Add a memset node (cudaGraphAddMemsetNode).

        Args:
            dst: device array to fill, without gaps inside of its rows, or an address.
            value: what each element becomes, in the array's dtype; a byte for an address.
            nbytes: how much to fill; needed when ``dst`` is an address.
            deps: nodes this one waits for.
        """
        params = memset_params(dst, value, nbytes)
        before = self._dependencies(deps)
        accesses = None if self.derived is None else fill_accesses(params)
        with self._turn:
            before = self._order(before, accesses)
            ptr = self.runtime.graph_add_memset_node(self.ptr, before, params)
            return self._keep(ptr, NodeType.MEMSET, dst, accesses)

    def add_host_node(
        self,
        fn: Callable[[], Any] | HostCallback,
        *,
        deps: Node | Iterable[Node] = (),
        reads: Declared = None,
        writes: Declared = None,
    ) -> Node:
        """Add a node that calls a Python function on the host (cudaGraphAddHostNode).

        Args:
            fn: called without arguments, on a thread of CUDA's; it must not make CUDA calls. As a
                :class:`graphkit.HostCallback` it can be asked later what it raised.
            deps: nodes this one waits for.
            reads: arrays that it reads, for derived edges, which need this or ``writes``, and for
                :meth:`check_races`; ``()`` says that it reads none.
            writes: arrays that it writes, likewise.

        Raises:
            ValueError: neither ``reads`` nor ``writes`` in a graph with derived edges.
        """
        self.conditionals.refuse_kind(NodeType.HOST)
        callback = host_callback(fn)
        before = self._dependencies(deps)
        accesses = self._declared(reads, writes)
        if accesses is None and self.derived is not None:
            raise ValueError(
                "reads, writes: expected the arrays that fn touches, since edges are derived from "
                "them, came neither; pass reads=() for none"
            )
        with self._turn:
            before = self._order(before, accesses)
            ptr = self.runtime.graph_add_host_node(self.ptr, before, callback.params)
            return self._keep(ptr, NodeType.HOST, callback, accesses)

    def add_event_record_node(self, event: Event, *, deps: Node | Iterable[Node] = ()) -> Node:
        """Add a node that records an event (cudaGraphAddEventRecordNode)."""
        self.conditionals.refuse_kind(NodeType.EVENT_RECORD)
        handle, before = event_handle(event), self._dependencies(deps)
        with self._turn:
            before = self._order(before)
            ptr = self.runtime.graph_add_event_record_node(self.ptr, before, handle)
            return self._keep(ptr, NodeType.EVENT_RECORD, event)

    def add_event_wait_node(self, event: Event, *, deps: Node | Iterable[Node] = ()) -> Node:
        """Add a node that waits for an event (cudaGraphAddEventWaitNode)."""
        self.conditionals.refuse_kind(NodeType.EVENT_WAIT)
        handle, before = event_handle(event), self._dependencies(deps)
        with self._turn:
            before = self._order(before)
            ptr = self.runtime.graph_add_event_wait_node(self.ptr, before, handle)
            return self._keep(ptr, NodeType.EVENT_WAIT, event)

    def add_child_graph_node(
        self,
        child: Graph,
        *,
        deps: Node | Iterable[Node] = (),
        reads: Declared = None,
        writes: Declared = None,
    ) -> Node:
        """Add a node that holds a copy of another graph (cudaGraphAddChildGraphNode).

        Later changes of ``child`` do not reach the copy; :meth:`child_graph` gives that.

        Args:
            child: the graph to copy.
            deps: nodes this one waits for.
            reads: arrays that the child's nodes read, in place of what is known of each node.
            writes: arrays that they write, likewise; with one of the two given, both are all.

        Raises:
            ValueError: in a graph with derived edges, nodes of which it is not known what they
                touch, unless it is declared.
        """
        check_graph(child, "child")
        child.conditionals.refuse_copy("child", "copies a child graph, and copies")
        if self.conditionals.in_body:
            check_body_graph(child, "child")
        child.memory_nodes.refuse("child", "CUDA copies a child graph, and copies none of these")
        before = self._dependencies(deps)
        accesses = self._declared(reads, writes)
        if accesses is None and self.derived is not None:
            accesses = accesses_of(child, "child")
        with self._turn:
            before = self._order(before, accesses)
            ptr = self.runtime.graph_add_child_graph_node(self.ptr, before, child.ptr)
            if child.clusters:
                self._clusters = None
            node = self._keep(ptr, NodeType.GRAPH, tuple(child.owners), accesses)
            self.operands[ptr] = Copied(child)
            return node

    def add_empty_node(self, *, deps: Node | Iterable[Node] = ()) -> Node:
        """Add a node that does nothing (cudaGraphAddEmptyNode): a place where edges meet."""
        before = self._dependencies(deps)
        with self._turn:
            before = self._order(before)
            ptr = self.runtime.graph_add_empty_node(self.ptr, before)
            return self._keep(ptr, NodeType.EMPTY, None)

    def add_mem_alloc_node(
        self,
        shape: int | Sequence[int],
        dtype: DTypeLike = np.float32,
        *,
        deps: Node | Iterable[Node] = (),
    ) -> tuple[Node, DeviceArray]:
        """Add a node that allocates memory on the current device (cudaGraphAddMemAllocNode).

        The array's address holds for every launch; memory is behind it from this node until it is
        freed, by :meth:`add_mem_free_node` or else after the launch: by the array's ``free()``, by
        :func:`graphkit.free_async`, by another graph's free node, or by the next launch, with
        ``instantiate(auto_free_on_launch=True)``. Nothing else frees it, not even closing graph
        and exec. What it holds at first is undefined, in every launch.

        With such a node the graph has one exec at a time, cannot be cloned or become a child, and
        keeps its nodes and edges for good.

        Args:
            shape: extent of each axis in elements; for bytes pass ``dtype=np.uint8``.
            dtype: NumPy dtype of the elements.
            deps: nodes this one waits for.

        Returns:
            The node, and the array for nodes ordered after it.
        """
        before = self._dependencies(deps)
        self._refuse_memory_inside(NodeType.MEM_ALLOC)
        with self._turn:
            self.ptr  # noqa: B018 - refuses a closed graph
            before = self._order(before)
            ptr, array = self.memory_nodes.allocate(before, shape, dtype)
            node = self._keep(ptr, NodeType.MEM_ALLOC, None)
            if self.derived is not None:
                # Its address is known only now.
                self.touched[ptr] = declared_accesses(None, (array,))
                self.derived.touch(self, ptr, self.touched[ptr])
            return node, array

    def add_mem_free_node(
        self, array: DeviceArray | int, *, deps: Node | Iterable[Node] = ()
    ) -> Node:
        """Add a node that frees what an alloc node allocates (cudaGraphAddMemFreeNode).

        Args:
            array: what :meth:`add_mem_alloc_node` gave, of this graph or of another that does not
                free it itself; or the address of an alloc node that somebody else captured.
            deps: nodes this one waits for: all that use the memory.

        Raises:
            TypeError: when the array is no alloc node's.
            ValueError: when it has a free node already.
        """
        before = self._dependencies(deps)
        self._refuse_memory_inside(NodeType.MEM_FREE)
        accesses = None if self.derived is None else freed_accesses(array)
        with self._turn:
            self.ptr  # noqa: B018 - refuses a closed graph
            before = self._order(before, accesses)
            ptr = self.memory_nodes.free(before, array)
            return self._keep(ptr, NodeType.MEM_FREE, array, accesses)

    def _refuse_memory_inside(self, type_: NodeType) -> None:
        self.conditionals.refuse_kind(type_)
        if self.holder is not None:
            raise ValueError(
                f"graph: expected one that is in no other, came that of {self.holder!r}: CUDA "
                "allows no alloc or free nodes there"
            )

    def memory(self) -> GraphMemory:
        """Return what the graph's alloc nodes allocate, and what all graphs take of the device.

        cudaDeviceGetGraphMemAttribute four times, and a getter for each alloc and free node.
        """
        self.ptr  # noqa: B018 - refuses a closed graph
        return self.memory_nodes.report(self.node_of)

    def conditional_handle(self, *, default: int | None = None) -> ConditionalHandle:
        """Make a condition that kernels of yours set (cudaGraphConditionalHandleCreate).

        Pass it as an argument to a kernel that calls cudaGraphSetConditional (in its twin
        ``launch.set_conditional(handle, value)``), and to one of :meth:`while_`, :meth:`if_` and
        :meth:`switch`, on this graph or a body in it.

        Args:
            default: what the condition is at the beginning of each launch. None leaves it
                undefined: a kernel must set it before the node is reached.

        Raises:
            TypeError, ValueError: a default that is no unsigned int of 32 bits.
        """
        value = 0 if default is None else check_default(default)
        flags = ConditionalHandleFlags(default is not None)
        made = self.runtime.graph_conditional_handle_create(self._place()[0], value, flags)
        handle = ConditionalHandle.of(made, self.handle)
        self.conditionals.handles.append(handle)
        return handle

    def while_(self, flag: object, *, deps: Node | Iterable[Node] = ()) -> Conditional[Graph]:
        """Add a loop: its body runs as long as ``flag`` is not 0, also not once (cuGraphAddNode).

        A ``with`` block gives the body, a :class:`Graph` for kernel, memcpy, memset, empty, child
        graph and conditional nodes::

            loop = graph.while_(flag, deps=start)
            with loop as body:
                body.add_kernel_node(step, grid, block, (x, flag))
            graph.add_memcpy_node(result, x, deps=loop.node)

        For a flag in device memory two kernel nodes of one thread are added as well, which set the
        condition to what the flag holds: one ahead of the loop, one behind all that is in the
        body (cudaGraphConditionalHandleCreate, cuGraphAddKernelNode twice).

        Args:
            flag: a device array of one int32 or uint32, which the body changes; or a handle from
                :meth:`conditional_handle`, which a kernel in the body sets, and nothing is added.
            deps: nodes this one waits for; in a capture none, since the stream's order says it.

        Raises:
            TypeError: a host array, another dtype, or no array.
            ValueError: several elements, or a handle that another node has.
        """
        return self._add_conditional(
            ConditionalNodeType.WHILE, flag, "flag", 1, deps, lambda bodies: bodies[0]
        )

    @overload
    def if_(
        self, flag: object, *, else_: Literal[False] = ..., deps: Node | Iterable[Node] = ...
    ) -> Conditional[Graph]: ...
    @overload
    def if_(
        self, flag: object, *, else_: Literal[True], deps: Node | Iterable[Node] = ...
    ) -> Conditional[tuple[Graph, ...]]: ...
    def if_(
        self, flag: object, *, else_: bool = False, deps: Node | Iterable[Node] = ()
    ) -> Conditional[Any]:
        """Add a branch: its body runs once if ``flag`` is not 0 (cuGraphAddNode).

        ::

            with graph.if_(flag, else_=True) as (then, otherwise):
                then.add_kernel_node(double, grid, block, (x,))
                otherwise.add_memset_node(x, 0)

        Args:
            flag: as for :meth:`while_`; it is looked at once, when the node is reached.
            else_: whether to make a second body, which runs if ``flag`` is 0 (CUDA 12.8).
            deps: nodes this one waits for.
        """
        return self._add_conditional(
            ConditionalNodeType.IF,
            flag,
            "flag",
            2 if else_ else 1,
            deps,
            lambda bodies: bodies if else_ else bodies[0],
        )

    def switch(
        self, index: object, n: int, *, deps: Node | Iterable[Node] = ()
    ) -> Conditional[tuple[Graph, ...]]:
        """Add a choice: of ``n`` bodies that with the number ``index`` runs (cuGraphAddNode).

        ::

            with graph.switch(index, 3) as bodies:
                for kernel, body in zip(kernels, bodies):
                    body.add_kernel_node(kernel, grid, block, (x,))

        Args:
            index: as ``flag`` for :meth:`while_`. Below 0 or from ``n`` on nothing runs.
            n: how many bodies to make (CUDA 12.8).
            deps: nodes this one waits for.
        """
        return self._add_conditional(
            ConditionalNodeType.SWITCH, index, "index", check_cases(n), deps, lambda bodies: bodies
        )

    def _add_conditional(
        self,
        type_: ConditionalNodeType,
        condition: object,
        argument: str,
        size: int,
        deps: Node | Iterable[Node],
        given: Callable[[tuple[Graph, ...]], Any],
    ) -> Conditional[Any]:
        before = self._dependencies(deps)
        if len(set(before)) != len(before):
            raise ValueError("deps: expected different nodes, came one twice")
        graph, captured = self._place()
        if captured is not None:
            if before:
                raise ValueError("deps: expected none, since a capture knows them, came some")
            before = captured
        check_condition(condition, argument, self.handle)
        setter, flag = None, None
        if isinstance(condition, ConditionalHandle):
            handle = condition
        else:
            # Compiled first, since nothing destroys a handle that nobody needs after all.
            SET_CONDITIONAL.function(self.runtime)
            handle, flag = self.conditional_handle(), condition
            setter = self._add_setter(graph, before, handle, flag)
            before = (setter.ptr,)
        params = ConditionalNodeParams(int(handle), type_, size)
        with self._turn:
            before = self._order(before)
            try:
                ptr, made = self.runtime.graph_add_conditional_node(graph, before, params)
            except BaseException:
                if setter is not None and self.derived is None:
                    self.runtime.graph_destroy_node(setter.ptr)
                    del self._nodes[setter.ptr]
                raise
            if self.captured_on is not None:
                self.runtime.stream_update_capture_dependencies(self.captured_on, (ptr,))
            node = handle.node = self._keep(ptr, NodeType.CONDITIONAL, handle)
            bodies = tuple(self._body(value, node) for value in made)
            self.owners.extend(body.owners for body in bodies)
            added = Conditional(type_, node, bodies, handle, flag, given(bodies))
            self.conditionals.nodes[ptr] = added
            if self.derived is not None:
                self.derived.open(added)
        return added

    def _place(self) -> tuple[int, Sequence[int] | None]:
        """Return the cudaGraph_t and, in a capture, what its next node comes behind."""
        if self.captured_on is None:
            return self.ptr, None
        info = self.runtime.stream_get_capture_info(self.captured_on)
        if info.status is not CaptureStatus.ACTIVE:
            code = int(StatusCode.CAPTURE_INVALIDATED)
            raise CudaError("cudaStreamGetCaptureInfo", code, "the capture has failed")
        return info.graph, info.dependencies

    def begin_capture(self, stream: int, mode: CaptureMode, deps: Node | Iterable[Node]) -> None:
        """Let a stream capture into this body (cudaStreamBeginCaptureToGraph). For a capture."""
        self.conditionals.refuse_capture()
        if self.derived is not None:
            self.derived.refuse_capture()
        before = self._dependencies(deps)
        self.runtime.stream_begin_capture_to_graph(stream, self.ptr, before, mode)
        self.derived = None  # the capture gives the edges
        self._clusters = None  # what is captured may have some

    def _add_setter(
        self, graph: int, before: Sequence[int], handle: ConditionalHandle, flag: object
    ) -> Node:
        """Add the kernel that sets a condition to what a flag holds, also in a capture."""
        if self.captured_on is None:
            ahead = [self._nodes[ptr] for ptr in before]
            return self.add_kernel_node(SET_CONDITIONAL, 1, 1, (handle, flag), deps=ahead)
        kernel_params, owners = SET_CONDITIONAL.pack((handle, flag))
        one = (1, 1, 1)
        params = KernelNodeParams(
            SET_CONDITIONAL.function(self.runtime), one, one, 0, kernel_params
        )
        with self._turn:
            ptr = self.runtime.graph_add_kernel_node(graph, before, params)
            self._kernels.add(SET_CONDITIONAL)
            return self._keep(ptr, NodeType.KERNEL, owners)

    def _body(self, value: int, node: Node) -> Graph:
        """Wrap a graph that CUDA made for a conditional node, and destroys with it."""
        body = Graph.of_handle(Handle(self.runtime, "graph", value, None, self.handle))
        body.holder = node
        body.conditionals.in_body = True
        if self.captured_on is not None:
            body.conditionals.captured = (self.handle, self.captured_on)
        else:
            body.conditionals.captured = self.conditionals.captured
        body._clusters = {}
        body._execs = self._execs  # an exec of this graph is one of its bodies, too
        if self.derived is not None:
            body.derived = DerivedEdges()
        return body

    def group(self, name: str, nodes: Node | Iterable[Node] = ()) -> NodeGroup:
        """Name kernel, memcpy and memset nodes that :meth:`GraphExec.set_enabled` switches.

        With ``nodes`` those are put into the group; a ``with`` block around it puts every node in
        that is added in the block, also by a capture. A node may be in several groups, and is on
        while all of them are. A clone has the same groups. No call of CUDA's is made but
        cudaGraphGetNodes, and cudaStreamGetCaptureInfo in a capture.

        Args:
            name: the group; it is made when the first nodes are put in.
            nodes: nodes of this graph.

        Raises:
            ValueError: a node of another graph, or of a kind that CUDA cannot switch off; at the
                end of a ``with`` block for nodes that were added in it. None is in the group then.
        """
        check_name(name)
        if self.holder is not None:
            raise ValueError(
                f"graph: expected one that is in no other, came that of {self.holder!r}"
            )
        try:
            members = (nodes,) if isinstance(nodes, Node) else tuple(nodes)
        except TypeError:
            kind = type(nodes).__name__
            raise TypeError(f"nodes: expected a Node or several, came {kind}") from None
        for node in members:
            self._check(node, "nodes")
        self.groups.add(name, members)
        return NodeGroup(self, name)

    def remove_node(self, node: Node) -> None:
        """Take a node and its edges out of the graph (cudaGraphDestroyNode).

        Execs made before keep it. What it pointed at stays alive as long as the graph.
        """
        with self._turn:
            self._check(node)
            if node.type is NodeType.CONDITIONAL:
                raise ValueError(
                    "node: expected any but a conditional node, since CUDA has no call that "
                    f"destroys its handle, came {node!r}"
                )
            self.memory_nodes.refuse("node", "CUDA takes no node out of such a graph")
            if self.derived is not None:
                refuse_removal("node")
            self.runtime.graph_destroy_node(node.ptr)
            child = self._children.pop(node.ptr, None)
            for exe in list(self._execs):
                exe.forget_nodes(lambda known: known is node)
                if child is not None:
                    exe.forget_nodes(child.contains)
            del self._nodes[node.ptr]
            self.touched.pop(node.ptr, None)
            self.operands.pop(node.ptr, None)
            self.groups.remove(node)
            if child is not None:
                child.close()
            if self._clusters:
                self._clusters = None

    def _declared(self, reads: Declared, writes: Declared) -> Sequence[Access] | None:
        """Return what a call declares; None when it declares nothing."""
        if reads is None and writes is None:
            return None
        accesses = declared_accesses(reads, writes)
        self.owners.append((reads, writes))
        return accesses

    def _order(
        self, before: Sequence[int], accesses: Sequence[Access] | None = None
    ) -> Sequence[int]:
        """Return what the next node waits for: what was given, or what its accesses ask for too."""
        if self.derived is None:
            return before
        return self.derived.dependencies(self, before, accesses or ())

    def _keep(
        self,
        ptr: int,
        type_: NodeType,
        owners: object,
        accesses: Sequence[Access] | None = None,
    ) -> Node:
        self.owners.append(owners)
        self.operands[ptr] = owners
        if accesses is not None:
            self.touched[ptr] = accesses
        if self.derived is not None:
            self.derived.added(ptr, accesses or ())
        node = self._nodes[ptr] = Node(self.handle, ptr, type_)
        return node

    def _dependencies(self, deps: Node | Iterable[Node]) -> Sequence[int]:
        if self.conditionals.guarded:
            self.conditionals.refuse_add()
        if isinstance(deps, Node):
            if deps.graph_handle is not self.handle or deps.ptr not in self._nodes:
                self._check(deps, "deps")
            return (deps.ptr,)
        try:
            nodes = tuple(deps)
        except TypeError:
            kind = type(deps).__name__
            raise TypeError(f"deps: expected a Node or several, came {kind}") from None
        for node in nodes:
            self._check(node, "deps")
        return [node.ptr for node in nodes]

    def _check(self, node: object, argument: str = "node") -> None:
        if not isinstance(node, Node):
            raise TypeError(f"{argument}: expected a Node, came {type(node).__name__}")
        if node.graph_handle is not self.handle:
            raise ValueError(f"{argument}: expected a node of this graph, came {node!r} of another")
        if node.ptr not in self._nodes:
            raise ValueError(f"{argument}: expected a node of this graph, came a removed one")

    # --- edges -----------------------------------------------------------------------------------

    def add_dependency(
        self,
        from_node: Node,
        to_node: Node,
        *,
        programmatic: bool = False,
        launch_completion: bool = False,
    ) -> None:
        """Let ``to_node`` wait for ``from_node`` (cudaGraphAddDependencies).

        Args:
            from_node: the node ahead.
            to_node: the node that waits.
            programmatic: between two kernel nodes, let the second start when all blocks of the
                first have executed ``griddepcontrol.launch_dependents`` or ended; it must execute
                ``griddepcontrol.wait`` before it touches what the first writes (PDL, sm_90).
            launch_completion: let it start once all blocks of the first have started.

        Where edges are derived, a plain edge that others imply is not added, and what it makes
        superfluous is removed (cudaGraphRemoveDependencies); a programmatic edge is always added,
        and takes the place of the plain one.

        Raises:
            CudaError: when the edge is there already. A cycle is found by :meth:`instantiate`.
            ValueError: where edges are derived, when the nodes are ordered the other way round.
        """
        self._check(from_node, "from_node")
        self._check(to_node, "to_node")
        data = EdgeData()
        if programmatic or launch_completion:
            for node, argument in ((from_node, "from_node"), (to_node, "to_node")):
                if node.type is not NodeType.KERNEL:
                    raise TypeError(
                        f"{argument}: expected a kernel node for a programmatic edge, came {node!r}"
                    )
            port = KernelNodePort.PROGRAMMATIC
            if launch_completion:
                port = KernelNodePort.LAUNCH_COMPLETION
            data = EdgeData(int(port), 0, int(DependencyType.PROGRAMMATIC))
        if self.derived is not None:
            with self._turn:
                self.derived.add_dependency(self, from_node, to_node, data)
            return
        self.runtime.graph_add_dependencies(self.ptr, [Edge(from_node.ptr, to_node.ptr, data)])

    def remove_dependency(self, from_node: Node, to_node: Node) -> None:
        """Take an edge away, whatever its kind (cudaGraphGetEdges, cudaGraphRemoveDependencies).

        Raises:
            ValueError: when there is no such edge.
        """
        self._check(from_node, "from_node")
        self._check(to_node, "to_node")
        wanted = (from_node.ptr, to_node.ptr)
        found = [edge for edge in self.runtime.graph_get_edges(self.ptr) if edge[:2] == wanted]
        if not found:
            raise ValueError(
                f"from_node: expected an edge from {from_node!r} to {to_node!r}, came none"
            )
        self.memory_nodes.refuse("graph", "CUDA takes no edge out of it")
        if self.derived is not None:
            refuse_removal("graph")
        self.runtime.graph_remove_dependencies(self.ptr, found)

    # --- looking ---------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        """The nodes, in the order in which they were added (cudaGraphGetNodes)."""
        return [self.node_of(ptr) for ptr in self.runtime.graph_get_nodes(self.ptr)]

    @property
    def edges(self) -> list[GraphEdge]:
        """The edges with their data (cudaGraphGetEdges)."""
        self._settle()
        return [
            GraphEdge(self.node_of(edge.from_node), self.node_of(edge.to_node), edge.data)
            for edge in self.runtime.graph_get_edges(self.ptr)
        ]

    def node_of(self, ptr: int) -> Node:
        """Return the node of a cudaGraphNode_t (cudaGraphNodeGetType). For graphkit itself."""
        node = self._nodes.get(ptr)
        if node is None:
            node = Node(self.handle, ptr, self.runtime.graph_node_get_type(ptr))
            self._nodes[ptr] = node
        return node

    def _settle(self) -> None:
        """Derive the edges of a conditional node at the end of the graph, if it is complete."""
        if self.derived is not None and self.derived.complete:
            with self._turn:
                self.derived.settle(self)

    def check_races(self) -> tuple[Race, ...]:
        """Find nodes that touch the same bytes, at least one writing them, and that no edge orders.

        For graphs built by hand, captured or adopted, child graphs and bodies included. What kernel
        nodes touch is known from ``reads=`` and ``writes=``, or else from their signatures and
        arrays; of an address whose array is not known only the first element counts, of a function
        without a signature and of a host function nothing. Arrays count whole: where nodes share
        one and touch different parts, declare the parts.

        Programmatic edges order, since who is behind one must execute ``griddepcontrol.wait``.

        Reads every node's parameters (see :meth:`values`), and cudaGraphGetEdges.
        """
        self._settle()
        return find_races(self)

    def values(self, node: Node) -> NodeValues:
        """Return the parameters a node has in this graph, kernel arguments included.

        One getter of CUDA's for the node's kind; for kernel nodes also one call a parameter and
        one an attribute. None for kinds without parameters.
        """
        self._check(node)
        return read_values(node)

    @property
    def kernels(self) -> list[KernelNodeValues]:
        """Name, grid, block and arguments of every kernel node, child graphs not included."""
        return [read_kernel(node) for node in self.nodes if node.type is NodeType.KERNEL]

    def child_graph(self, node: Node) -> Graph:
        """Return the graph inside of a child graph node (cudaGraphChildGraphNodeGetGraph).

        It belongs to the node: it can be looked at, and its nodes changed in an exec.
        """
        self._check(node)
        if node.type is not NodeType.GRAPH:
            raise TypeError(f"node: expected a child graph node, came {node!r}")
        child = self._children.get(node.ptr)
        if child is None:
            value = self.runtime.graph_child_graph_node_get_graph(node.ptr)
            child = Graph.of_handle(Handle(self.runtime, "graph", value, None, self.handle))
            child.holder = node
            child.conditionals.in_body = self.conditionals.in_body
            copied = self.operands.get(node.ptr)
            if isinstance(copied, Copied):
                copied.give(child)
            if self.derived is not None:
                child.derived = DerivedEdges(
                    "graph: expected one that no graph with derived edges holds, came a child of "
                    "one, whose edges follow from what was in the child when it was added"
                )
            self._children[node.ptr] = child
        return child

    @property
    def clusters(self) -> dict[tuple[int, ...], Dim3]:
        """Cluster extents of the kernel nodes that have any, by their place in the order.

        A place inside of a child graph is a path. Nothing is asked of CUDA where no node that was
        added here has a cluster; else cuGraphKernelNodeGetAttribute for each kernel node, once.
        """
        if self._clusters is None:
            found: dict[tuple[int, ...], Dim3] = {}
            for place, node in enumerate(self.nodes):
                if node.type is NodeType.GRAPH:
                    inside = self.child_graph(node).clusters.items()
                    found.update({(place, *path): extents for path, extents in inside})
                elif node.type is NodeType.KERNEL and (extents := read_cluster(node)):
                    found[(place,)] = extents
            self._clusters = found
        return self._clusters

    def cluster_of(self, node: Node) -> Dim3 | None:
        """Return a kernel node's cluster extents; nothing is asked of CUDA where none has any."""
        return None if self._clusters == {} else read_cluster(node)

    def level_of(self, node: Node) -> Graph | None:
        """Return the graph that a node is a node of: this one, one inside of it, or None."""
        if not isinstance(node, Node):
            raise TypeError(f"node: expected a Node, came {type(node).__name__}")
        if node.graph_handle is self.handle:
            return self if node.ptr in self._nodes else None
        for child in (*self._children.values(), *self.conditionals.bodies()):
            found = child.level_of(node)
            if found is not None:
                return found
        return None

    def child_level(self, node: Node) -> Graph | None:
        """Return the child graph of a node where somebody has looked at it, else None."""
        level = self.level_of(node)
        return None if level is None else level._children.get(node.ptr)

    def contains(self, node: Node) -> bool:
        """Return whether a node is in this graph, or in a child graph or body of it."""
        return self.level_of(node) is not None

    def clone(self) -> Graph:
        """Return an independent copy (cudaGraphClone); :meth:`in_clone` finds a node in it.

        cudaGraphNodeFindInClone for each node of a group, since the copy has the same groups.
        """
        self.ptr  # noqa: B018 - refuses a closed graph
        self.conditionals.refuse_copy("graph", "clones")
        self.memory_nodes.refuse("graph", "CUDA clones none; build or capture it once more")
        value = self.runtime.graph_clone(self.ptr)
        graph = Graph.of_handle(Handle(self.runtime, "graph", value, self.runtime.graph_destroy))
        Copied(self).give(graph)
        if self.derived is not None:
            graph.derived = self.derived.copy(self.runtime.graph_get_nodes(value))
        for name, members in self.groups.members.items():
            graph.groups.add(name, [self.in_clone(node, graph) for node in members])
        return graph

    def in_clone(self, node: Node, clone: Graph) -> Node:
        """Return the node of ``clone`` that ``node`` became (cudaGraphNodeFindInClone)."""
        self._check(node)
        check_graph(clone, "clone")
        return clone.node_of(self.runtime.graph_node_find_in_clone(node.ptr, clone.ptr))

    def dot(self) -> str:
        """Return the graph in the DOT language, for Graphviz: a box a node, labelled.

        The bodies of a conditional node are clusters, and a dotted line joins it to each.
        """
        return dot_text(self)

    # --- making it executable --------------------------------------------------------------------

    def instantiate(
        self,
        *,
        auto_free_on_launch: bool = False,
        upload_stream: object | None = None,
        device_launch: bool = False,
        use_node_priority: bool = False,
    ) -> GraphExec:
        """Return an executable graph (cudaGraphInstantiateWithParams).

        Args:
            auto_free_on_launch: free what alloc nodes still hold when it is launched again.
            upload_stream: upload it on this stream at once.
            device_launch: allow it to be launched from the device; kernel, memcpy, memset and
                child graph nodes only.
            use_node_priority: let nodes run at their own priority instead of the stream's.

        Raises:
            ValueError: a second exec of a graph with alloc, free or conditional nodes.
            CudaError: when CUDA refuses, a graph with a cycle for example, or with a cooperative
                grid that cannot run all at once; nothing was made.
        """
        flags = InstantiateFlags.NONE
        if auto_free_on_launch:
            flags |= InstantiateFlags.AUTO_FREE_ON_LAUNCH
        if upload_stream is not None:
            flags |= InstantiateFlags.UPLOAD
        if device_launch:
            flags |= InstantiateFlags.DEVICE_LAUNCH
        if use_node_priority:
            flags |= InstantiateFlags.USE_NODE_PRIORITY
        self._settle()
        self.conditionals.refuse_instantiate(self.live_execs())
        if self.live_execs():
            self.memory_nodes.refuse(
                "graph", "it has one exec at a time, and an earlier one is not closed"
            )
        exe = GraphExec(self, flags, upload_stream)
        self._execs.add(exe)
        return exe

    def live_execs(self) -> list[GraphExec]:
        """Return the execs made from this graph that are not closed."""
        return [exe for exe in self._execs if not exe.closed]

    def close(self) -> None:
        """Destroy the graph (cudaGraphDestroy); execs made from it still launch.

        Their single nodes can no longer be changed: CUDA needs the graph for that.
        """
        if self._execs and not self.handle.closed:
            self.clusters  # noqa: B018 - an update of theirs will want to know
        for exe in list(self._execs):
            exe.forget_nodes(self.contains)
        for child in (*self._children.values(), *self.conditionals.bodies()):
            child.close()
        self.handle.close()
        self.operands.clear()
        self._nodes.clear()
        self._children.clear()

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.handle.closed:
            return "<Graph closed>"
        return f"<Graph {self.handle.value:#x}>"
