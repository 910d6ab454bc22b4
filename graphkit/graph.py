"""Graphs: add nodes and edges by hand, look at any graph, make it executable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakSet

from graphkit.graph_exec import GraphExec, check_graph, check_kernel
from graphkit.kernel import Kernel
from graphkit.launch_config import check_shared_mem, dim3, launch_attributes
from graphkit.lifetime import Handle
from graphkit.node import (
    GraphEdge,
    KernelNodeValues,
    Node,
    NodeValues,
    memcpy_params,
    memset_params,
)
from graphkit.params import Args
from graphkit.readback import read_cluster, read_kernel, read_values
from graphkit.runtime import current
from graphkit.runtime.protocol import (
    DependencyType,
    Dim3,
    Edge,
    EdgeData,
    InstantiateFlags,
    KernelNodeParams,
    KernelNodePort,
    MemcpyNodeParams,
    MemsetNodeParams,
    NodeType,
    Runtime,
)
from graphkit.stream import Event, HostCallback, event_handle, host_callback
from graphkit.turn import Turn

__all__ = ["Graph"]

# What the two modules of cuda.bindings call a cudaGraph_t.
_GRAPH_HANDLES = ("CUgraph", "cudaGraph_t")


class Graph:
    """A CUDA graph (cudaGraph_t): nodes and the edges between them.

    A graph built by hand starts empty (cudaGraphCreate); :func:`graphkit.capture` and
    :meth:`adopt` give graphs with nodes in them. It keeps alive what its nodes point at.

    Args:
        runtime: the runtime to use; the current one by default.
    """

    def __init__(self, *, runtime: Runtime | None = None) -> None:
        runtime = runtime or current()
        self._setup(Handle(runtime, "graph", runtime.graph_create(), runtime.graph_destroy), {})

    def _setup(self, handle: Handle, clusters: dict[tuple[int, ...], Dim3] | None = None) -> None:
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
        # The child graph node that this graph is inside of.
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
        value = graph
        for attribute in ("graph_definition", "raw_cuda_graph", "graph", "handle"):
            found = getattr(value, attribute, None)
            if found is not None:
                value = found() if callable(found) else found
                if attribute != "graph_definition":
                    break
        try:
            address = int(value)  # type: ignore[call-overload]
        except (TypeError, ValueError, OverflowError):
            address = 0
        # Handles of cuda.bindings name their kind; CUDA takes any for a graph, and crashes.
        kind = type(value)
        other = kind.__module__.partition(".")[0] == "cuda" and kind.__name__ not in _GRAPH_HANDLES
        if other or isinstance(value, (bool, float)) or not 0 < address < 2**64:
            came = f"{graph!r}, which holds a {kind.__name__}" if other else repr(graph)
            raise TypeError(
                "graph: expected a PyTorch, CuPy or cuda.core graph or a cudaGraph_t as an int, "
                f"came {came}"
            )
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
        params = KernelNodeParams(
            kernel.function(runtime),
            dim3(grid, "grid"),
            dim3(block, "block"),
            check_shared_mem(shared_mem),
            kernel_params,
        )
        plain = cluster is None and priority is None and not cooperative
        attributes = () if plain else launch_attributes(grid, cluster, cooperative, priority)
        with self._turn:
            ptr = runtime.graph_add_kernel_node(graph, dependencies, params)
            for attribute in attributes:
                try:
                    runtime.graph_kernel_node_set_attribute(ptr, attribute)
                except BaseException:
                    runtime.graph_destroy_node(ptr)
                    raise
            if cluster is not None:
                self._clusters = None
            self._kernels.add(kernel)
            return self._keep(ptr, NodeType.KERNEL, owners)

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
        with self._turn:
            ptr = self.runtime.graph_add_memcpy_node(self.ptr, before, params)
            return self._keep(ptr, NodeType.MEMCPY, (dst, src))

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
        with self._turn:
            ptr = self.runtime.graph_add_memset_node(self.ptr, before, params)
            return self._keep(ptr, NodeType.MEMSET, dst)

    def add_host_node(
        self, fn: Callable[[], Any] | HostCallback, *, deps: Node | Iterable[Node] = ()
    ) -> Node:
        """Add a node that calls a Python function on the host (cudaGraphAddHostNode).

        Args:
            fn: called without arguments, on a thread of CUDA's; it must not make CUDA calls. As a
                :class:`graphkit.HostCallback` it can be asked later what it raised.
            deps: nodes this one waits for.
        """
        callback = host_callback(fn)
        before = self._dependencies(deps)
        with self._turn:
            ptr = self.runtime.graph_add_host_node(self.ptr, before, callback.params)
            return self._keep(ptr, NodeType.HOST, callback)

    def add_event_record_node(self, event: Event, *, deps: Node | Iterable[Node] = ()) -> Node:
        """Add a node that records an event (cudaGraphAddEventRecordNode)."""
        handle, before = event_handle(event), self._dependencies(deps)
        with self._turn:
            ptr = self.runtime.graph_add_event_record_node(self.ptr, before, handle)
            return self._keep(ptr, NodeType.EVENT_RECORD, event)

    def add_event_wait_node(self, event: Event, *, deps: Node | Iterable[Node] = ()) -> Node:
        """Add a node that waits for an event (cudaGraphAddEventWaitNode)."""
        handle, before = event_handle(event), self._dependencies(deps)
        with self._turn:
            ptr = self.runtime.graph_add_event_wait_node(self.ptr, before, handle)
            return self._keep(ptr, NodeType.EVENT_WAIT, event)

    def add_child_graph_node(self, child: Graph, *, deps: Node | Iterable[Node] = ()) -> Node:
        """Add a node that holds a copy of another graph (cudaGraphAddChildGraphNode).

        Later changes of ``child`` do not reach the copy; :meth:`child_graph` gives that.
        """
        check_graph(child, "child")
        before = self._dependencies(deps)
        with self._turn:
            ptr = self.runtime.graph_add_child_graph_node(self.ptr, before, child.ptr)
            if child.clusters:
                self._clusters = None
            return self._keep(ptr, NodeType.GRAPH, tuple(child.owners))

    def add_empty_node(self, *, deps: Node | Iterable[Node] = ()) -> Node:
        """Add a node that does nothing (cudaGraphAddEmptyNode): a place where edges meet."""
        before = self._dependencies(deps)
        with self._turn:
            ptr = self.runtime.graph_add_empty_node(self.ptr, before)
            return self._keep(ptr, NodeType.EMPTY, None)

    def remove_node(self, node: Node) -> None:
        """Take a node and its edges out of the graph (cudaGraphDestroyNode).

        Execs made before keep it. What it pointed at stays alive as long as the graph.
        """
        with self._turn:
            self._check(node)
            self.runtime.graph_destroy_node(node.ptr)
            child = self._children.pop(node.ptr, None)
            for exe in list(self._execs):
                exe.forget_nodes(lambda known: known is node)
                if child is not None:
                    exe.forget_nodes(child.contains)
            del self._nodes[node.ptr]
            if child is not None:
                child.close()
            if self._clusters:
                self._clusters = None

    def _keep(self, ptr: int, type_: NodeType, owners: object) -> Node:
        self.owners.append(owners)
        node = self._nodes[ptr] = Node(self.handle, ptr, type_)
        return node

    def _dependencies(self, deps: Node | Iterable[Node]) -> Sequence[int]:
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

        Raises:
            CudaError: when the edge is there already. A cycle is found by :meth:`instantiate`.
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
        self.runtime.graph_remove_dependencies(self.ptr, found)

    # --- looking ---------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        """The nodes, in the order in which they were added (cudaGraphGetNodes)."""
        return [self._node(ptr) for ptr in self.runtime.graph_get_nodes(self.ptr)]

    @property
    def edges(self) -> list[GraphEdge]:
        """The edges with their data (cudaGraphGetEdges)."""
        return [
            GraphEdge(self._node(edge.from_node), self._node(edge.to_node), edge.data)
            for edge in self.runtime.graph_get_edges(self.ptr)
        ]

    def _node(self, ptr: int) -> Node:
        node = self._nodes.get(ptr)
        if node is None:
            node = Node(self.handle, ptr, self.runtime.graph_node_get_type(ptr))
            self._nodes[ptr] = node
        return node

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

    def level_of(self, node: Node) -> Graph | None:
        """Return the graph that a node is a node of: this one, a child graph in it, or None."""
        if not isinstance(node, Node):
            raise TypeError(f"node: expected a Node, came {type(node).__name__}")
        if node.graph_handle is self.handle:
            return self if node.ptr in self._nodes else None
        for child in self._children.values():
            found = child.level_of(node)
            if found is not None:
                return found
        return None

    def child_level(self, node: Node) -> Graph | None:
        """Return the child graph of a node where somebody has looked at it, else None."""
        level = self.level_of(node)
        return None if level is None else level._children.get(node.ptr)

    def contains(self, node: Node) -> bool:
        """Return whether a node is in this graph or in a child graph of it."""
        return self.level_of(node) is not None

    def clone(self) -> Graph:
        """Return an independent copy (cudaGraphClone); :meth:`in_clone` finds a node in it."""
        value = self.runtime.graph_clone(self.ptr)
        graph = Graph.of_handle(Handle(self.runtime, "graph", value, self.runtime.graph_destroy))
        graph.owners.extend(self.owners)
        return graph

    def in_clone(self, node: Node, clone: Graph) -> Node:
        """Return the node of ``clone`` that ``node`` became (cudaGraphNodeFindInClone)."""
        self._check(node)
        check_graph(clone, "clone")
        return clone._node(self.runtime.graph_node_find_in_clone(node.ptr, clone.ptr))

    def dot(self) -> str:
        """Return the graph in the DOT language, for Graphviz: a box a node, labelled."""
        names = {node.ptr: f"n{index}" for index, node in enumerate(self.nodes)}
        lines = ["digraph graphkit {", "  node [shape=box, fontname=monospace];"]
        for node in self.nodes:
            lines.append(f'  {names[node.ptr]} [label="{self._label(node)}"];')
        for edge in self.edges:
            style = " [style=dashed, label=programmatic]" if edge.programmatic else ""
            lines.append(f"  {names[edge.from_node.ptr]} -> {names[edge.to_node.ptr]}{style};")
        return "\n".join([*lines, "}"]) + "\n"

    def _label(self, node: Node) -> str:
        values = self.values(node)
        if isinstance(values, KernelNodeValues):
            text = f"{values.name}\\n{values.grid} x {values.block}"
        elif isinstance(values, MemcpyNodeParams):
            sizes = (values.width, values.height, values.depth)
            extents = " x ".join(str(size) for size in sizes if size > 1)
            text = f"memcpy {values.kind.name.lower()}\\n{extents} bytes"
        elif isinstance(values, MemsetNodeParams):
            text = f"memset {values.value:#x}\\n{values.width} x {values.height}"
        else:
            text = node.type.name.lower()
        return text.replace('"', r"\"")

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
            CudaError: when CUDA refuses, a graph with a cycle for example; nothing was made.
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
        exe = GraphExec(self, flags, upload_stream)
        self._execs.add(exe)
        return exe

    def close(self) -> None:
        """Destroy the graph (cudaGraphDestroy); execs made from it still launch.

        Their single nodes can no longer be changed: CUDA needs the graph for that.
        """
        if self._execs and not self.handle.closed:
            self.clusters  # noqa: B018 - an update of theirs will want to know
        for exe in list(self._execs):
            exe.forget_nodes(self.contains)
        for child in self._children.values():
            child.close()
        self.handle.close()
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
