"""Graphs: add nodes and edges by hand, look at any graph, make it executable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, overload

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
from graphkit.conditional import Conditional, check_cases
from graphkit.conditional_handle import ConditionalHandle, check_default
from graphkit.conditional_nodes import add_conditional, place_of
from graphkit.derived_edges import DerivedEdges, check_edges
from graphkit.device_array import DeviceArray
from graphkit.graph_dot import dot_text
from graphkit.graph_exec import GraphExec, check_graph, check_kernel
from graphkit.graph_limits import (
    check_child,
    check_clone,
    check_close,
    check_edge_removal,
    check_groups,
    check_instantiate,
    check_memory,
    check_node_removal,
)
from graphkit.inner_graphs import child_of, inner_graphs, level_of
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
    edge_data,
    memcpy_params,
    memset_params,
    several_nodes,
)
from graphkit.node_groups import NodeGroup, NodeGroups, check_name
from graphkit.node_records import NodeRecords
from graphkit.params import Args
from graphkit.races import Race, find_races
from graphkit.readback import read_cluster, read_clusters, read_kernel, read_values
from graphkit.runtime import given_or_current
from graphkit.runtime.protocol import (
    ConditionalHandleFlags,
    ConditionalNodeType,
    Dim3,
    Edge,
    InstantiateFlags,
    KernelNodeParams,
    NodeType,
    Runtime,
)
from graphkit.stream import Event, HostCallback, event_handle, host_callback
from graphkit.touched import Copied, accesses_of

__all__ = ["Graph"]


class Graph:
    """A CUDA graph (cudaGraph_t): nodes and the edges between them.

    A graph built by hand starts empty (cudaGraphCreate); :func:`graphkit.capture` and
    :meth:`adopt` give graphs with nodes in them. It keeps alive what its nodes point at.

    With ``edges="derived"`` nodes wait for what they must and for nothing else: a node that reads
    bytes waits for the one that wrote them last, a node that writes them also for those that read
    them since, in the order of adding. What is behind a ``const T*`` is read, what is behind any
    other pointer is read and written, each array from its first to its last byte; a condition is
    written by a kernel that is given its handle, and read by its node. ``reads=`` and ``writes=``
    say it more precisely, and must say it where it cannot be known. ``deps=`` and
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
        runtime = given_or_current(runtime)
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
        self.records = NodeRecords(handle, clusters, derived)
        # The same objects, under the names that other rooms know.
        self.touched = self.records.touched
        self.operands = self.records.operands
        self.conditionals = self.records.conditionals
        self.memory_nodes = MemoryNodes(handle, known=clusters is not None)
        self.groups = NodeGroups()
        # The stream whose capture fills this graph, while that is live.
        self.captured_on: int | None = None
        # The child graph node or conditional node that this graph is inside of.
        self.holder: Node | None = None

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
        adopted = cls.of_handle(Handle(given_or_current(runtime), "graph", address, None))
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
        runtime, records = self.runtime, self.records
        # First, since a generator may add nodes of its own and pack their arguments.
        dependencies = records.dependencies(deps)
        graph = self.handle.value or self.ptr
        kernel_params, owners = kernel.pack(args)
        accesses = None
        if records.derived is not None or reads is not None or writes is not None:
            accesses = kernel_accesses(kernel.parameters, owners, reads, writes)
            records.owners.append((reads, writes))
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
        with records.turn:
            if records.derived is not None or records.execs:
                dependencies = records.order(self, dependencies, accesses)
            if cluster is not None:
                records.change_clusters()
            ptr = runtime.graph_add_kernel_node(graph, dependencies, params)
            if attributes:
                give_attributes(runtime, ptr, attributes)
            records.kernels.add(kernel)
            return records.keep(ptr, NodeType.KERNEL, owners, accesses)

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
        self.records.check(node)
        attributes = changed_attributes(node, cluster, cooperative, priority)
        with self.records.turn:
            if cluster is not None:
                self.records.change_clusters()
            set_attributes(node, attributes)

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
        before = self.records.dependencies(deps)
        accesses = None if self.records.derived is None else copy_accesses(params)
        add = self.runtime.graph_add_memcpy_node
        return self._add(NodeType.MEMCPY, before, (dst, src), add, params, accesses=accesses)

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
        before = self.records.dependencies(deps)
        accesses = None if self.records.derived is None else fill_accesses(params)
        add = self.runtime.graph_add_memset_node
        return self._add(NodeType.MEMSET, before, dst, add, params, accesses=accesses)

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
        before = self.records.dependencies(deps)
        accesses = self.records.declared(reads, writes)
        if accesses is None and self.records.derived is not None:
            raise ValueError(
                "reads, writes: expected the arrays that fn touches, since edges are derived from "
                "them, came neither; pass reads=() for none"
            )
        add, params = self.runtime.graph_add_host_node, callback.params
        return self._add(NodeType.HOST, before, callback, add, params, accesses=accesses)

    def add_event_record_node(self, event: Event, *, deps: Node | Iterable[Node] = ()) -> Node:
        """Add a node that records an event (cudaGraphAddEventRecordNode)."""
        self.conditionals.refuse_kind(NodeType.EVENT_RECORD)
        handle, before = event_handle(event), self.records.dependencies(deps)
        add = self.runtime.graph_add_event_record_node
        return self._add(NodeType.EVENT_RECORD, before, event, add, handle)

    def add_event_wait_node(self, event: Event, *, deps: Node | Iterable[Node] = ()) -> Node:
        """Add a node that waits for an event (cudaGraphAddEventWaitNode)."""
        self.conditionals.refuse_kind(NodeType.EVENT_WAIT)
        handle, before = event_handle(event), self.records.dependencies(deps)
        add = self.runtime.graph_add_event_wait_node
        return self._add(NodeType.EVENT_WAIT, before, event, add, handle)

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
        check_child(self, child)
        before = self.records.dependencies(deps)
        accesses = self.records.declared(reads, writes)
        declared = accesses is not None
        if not declared and self.records.derived is not None:
            accesses = accesses_of(child, "child")
        with self.records.turn:
            before = self.records.order(self, before, accesses)
            if child.clusters:
                self.records.change_clusters()
            ptr = self.runtime.graph_add_child_graph_node(self.ptr, before, child.ptr)
            owners = tuple(child.owners)
            node = self.records.keep(ptr, NodeType.GRAPH, owners, accesses, declared=declared)
            self.operands[ptr] = Copied(child)
            return node

    def add_empty_node(self, *, deps: Node | Iterable[Node] = ()) -> Node:
        """Add a node that does nothing (cudaGraphAddEmptyNode): a place where edges meet."""
        before = self.records.dependencies(deps)
        return self._add(NodeType.EMPTY, before, None, self.runtime.graph_add_empty_node)

    def _add(
        self,
        type_: NodeType,
        before: Sequence[int],
        owners: object,
        add: Callable[..., int],
        *params: object,
        accesses: Sequence[Access] | None = None,
    ) -> Node:
        """Add a node behind what it waits for, with the runtime's method for its kind."""
        records = self.records
        with records.turn:
            before = records.order(self, before, accesses)
            ptr = add(self.ptr, before, *params)
            return records.keep(ptr, type_, owners, accesses)

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
        before = self.records.dependencies(deps)
        check_memory(self, NodeType.MEM_ALLOC)
        with self.records.turn:
            self.ptr  # noqa: B018 - refuses a closed graph
            before = self.records.order(self, before)
            ptr, array = self.memory_nodes.allocate(before, shape, dtype)
            node = self.records.keep(ptr, NodeType.MEM_ALLOC, None)
            if self.records.derived is not None:
                # Its address is known only now.
                self.touched[ptr] = declared_accesses(None, (array,))
                self.records.derived.touch(self, ptr, self.touched[ptr])
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
        before = self.records.dependencies(deps)
        check_memory(self, NodeType.MEM_FREE)
        accesses = None if self.records.derived is None else freed_accesses(array)
        with self.records.turn:
            self.ptr  # noqa: B018 - refuses a closed graph
            before = self.records.order(self, before, accesses)
            ptr = self.memory_nodes.free(before, array)
            return self.records.keep(ptr, NodeType.MEM_FREE, array, accesses)

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
        made = self.runtime.graph_conditional_handle_create(place_of(self)[0], value, flags)
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
        return add_conditional(
            self, ConditionalNodeType.WHILE, flag, "flag", 1, deps, lambda bodies: bodies[0]
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
        return add_conditional(
            self,
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
        return add_conditional(
            self,
            ConditionalNodeType.SWITCH,
            index,
            "index",
            check_cases(n),
            deps,
            lambda bodies: bodies,
        )

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
        check_groups(self)
        members = several_nodes(nodes, "nodes")
        for node in members:
            self.records.check(node, "nodes")
        self.groups.add(name, members)
        return NodeGroup(self, name)

    def remove_node(self, node: Node) -> None:
        """Take a node and its edges out of the graph (cudaGraphDestroyNode).

        Execs made before keep it. What it pointed at stays alive as long as the graph.
        """
        with self.records.turn:
            self.records.check(node)
            self.ptr  # noqa: B018 - refuses one that is still captured: the capture may need it
            check_node_removal(self, node)
            self.records.keep_clusters()
            self.records.about_to_change()
            self.runtime.graph_destroy_node(node.ptr)
            self.groups.remove(node)
            self.records.drop(node)

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
        self.records.check(from_node, "from_node")
        self.records.check(to_node, "to_node")
        data = edge_data(from_node, to_node, programmatic, launch_completion)
        self.records.about_to_change()
        if self.records.derived is not None:
            with self.records.turn:
                self.records.derived.add_dependency(self, from_node, to_node, data)
            return
        self.runtime.graph_add_dependencies(self.ptr, [Edge(from_node.ptr, to_node.ptr, data)])

    def remove_dependency(self, from_node: Node, to_node: Node) -> None:
        """Take an edge away, whatever its kind (cudaGraphGetEdges, cudaGraphRemoveDependencies).

        Raises:
            ValueError: when there is no such edge.
        """
        self.records.check(from_node, "from_node")
        self.records.check(to_node, "to_node")
        wanted = (from_node.ptr, to_node.ptr)
        found = [edge for edge in self.runtime.graph_get_edges(self.ptr) if edge[:2] == wanted]
        if not found:
            raise ValueError(
                f"from_node: expected an edge from {from_node!r} to {to_node!r}, came none"
            )
        check_edge_removal(self)
        self.records.about_to_change()
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
        return self.records.node_of(ptr)

    def _settle(self) -> None:
        """Derive the edges of a conditional node at the end of the graph, if it is complete."""
        if self.records.derived is not None and self.records.derived.complete:
            with self.records.turn:
                self.records.derived.settle(self)

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
        self.records.check(node)
        return read_values(node)

    @property
    def kernels(self) -> list[KernelNodeValues]:
        """Name, grid, block and arguments of every kernel node, child graphs not included."""
        return [read_kernel(node) for node in self.nodes if node.type is NodeType.KERNEL]

    def child_graph(self, node: Node) -> Graph:
        """Return the graph inside of a child graph node (cudaGraphChildGraphNodeGetGraph).

        It belongs to the node: it can be looked at, and its nodes changed in an exec.
        """
        self.records.check(node)
        if node.type is not NodeType.GRAPH:
            raise TypeError(f"node: expected a child graph node, came {node!r}")
        child = self.records.children.get(node.ptr)
        if child is None:
            child = self.records.children[node.ptr] = child_of(self, node)
        return child

    @property
    def clusters(self) -> dict[tuple[int, ...], Dim3]:
        """Cluster extents of the kernel nodes that have any, by their place in the order.

        A place inside of a child graph is a path. Nothing is asked of CUDA where no node that was
        added here has a cluster; else cuGraphKernelNodeGetAttribute for each kernel node, once.
        """
        if self.records.clusters is None:
            self.records.clusters = read_clusters(self)
        return self.records.clusters

    def cluster_of(self, node: Node) -> Dim3 | None:
        """Return a kernel node's cluster extents; nothing is asked of CUDA where none has any."""
        return None if self.records.clusters == {} else read_cluster(node)

    def level_of(self, node: Node) -> Graph | None:
        """Return the graph that a node is a node of: this one, one inside of it, or None."""
        return level_of(self, node)

    def contains(self, node: Node) -> bool:
        """Return whether a node is in this graph, or in a child graph or body of it."""
        return self.level_of(node) is not None

    def clone(self) -> Graph:
        """Return an independent copy (cudaGraphClone); :meth:`in_clone` finds a node in it.

        cudaGraphNodeFindInClone for each node of a group, since the copy has the same groups.
        """
        check_clone(self)
        value = self.runtime.graph_clone(self.ptr)
        graph = Graph.of_handle(Handle(self.runtime, "graph", value, self.runtime.graph_destroy))
        Copied(self).give(graph)
        if self.records.derived is not None:
            graph.records.derived = self.records.derived.copy(self.runtime.graph_get_nodes(value))
        for name, members in self.groups.members.items():
            graph.groups.add(name, [self.in_clone(node, graph) for node in members])
        return graph

    def in_clone(self, node: Node, clone: Graph) -> Node:
        """Return the node of ``clone`` that ``node`` became (cudaGraphNodeFindInClone)."""
        self.records.check(node)
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
        check_instantiate(self)
        with self.records.turn:  # nothing is added between what the exec is made of and its note
            exe = GraphExec(self, flags, upload_stream)
            self.records.execs.add(exe)
        return exe

    def live_execs(self) -> list[GraphExec]:
        """Return the execs made from this graph that are not closed."""
        return [exe for exe in self.records.execs if not exe.closed]

    @property
    def owners(self) -> list[object]:
        """What must stay alive; execs and captures share the list."""
        return self.records.owners

    def disown(self) -> None:
        """Let go of what the nodes point at; execs still keep it. For graphkit itself."""
        self.records.owners = []
        self.operands.clear()

    def close(self) -> None:
        """Destroy the graph (cudaGraphDestroy); execs made from it still launch.

        Their single nodes can no longer be changed: CUDA needs the graph for that.

        Raises:
            ValueError: a child graph or a body, which ends with the graph around it; or a graph
                that a live capture fills, or a body in it.
        """
        check_close(self)
        self.end()

    def end(self) -> None:
        """Close the graph, whoever it belongs to. For graphkit itself."""
        if not self.handle.closed:
            self.records.keep_clusters()  # an update of theirs will want to know
        for exe in list(self.records.execs):
            exe.forget_nodes(self.contains)
        for inner in inner_graphs(self):
            inner.end()
        self.handle.close()
        self.records.clear()

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.handle.closed:
            return "<Graph closed>"
        return f"<Graph {self.handle.value:#x}>"
