"""Graphs and executable graphs: the simulated calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from graphkit.errors import NotSimulated, refuse_closed
from graphkit.runtime.protocol import (
    CaptureStatus,
    ConditionalHandleFlags,
    ConditionalNodeParams,
    ConditionalNodeType,
    Edge,
    EdgeData,
    ExecUpdateResultInfo,
    ExecUpdateStatus,
    HandleCell,
    HostNodeParams,
    InstantiateFlags,
    KernelNodeParams,
    LaunchAttribute,
    LaunchAttributeID,
    MemcpyNodeParams,
    MemsetNodeParams,
    NodeType,
)
from graphkit.runtime.sim.actions import (
    Action,
    copy_action,
    fill_action,
    host_action,
    kernel_action,
)
from graphkit.runtime.sim.conditions import (
    ConditionalValues,
    Conditions,
    SubmitBody,
    conditional_action,
)
from graphkit.runtime.sim.extents import check_copy, check_fill
from graphkit.runtime.sim.functions import ArgumentBlock, check_dimensions, read_arguments
from graphkit.runtime.sim.graph_memory import GraphAllocation, refuse_memory_nodes
from graphkit.runtime.sim.launch_limits import check_cluster, check_cooperative
from graphkit.runtime.sim.model import (
    ExecGraph,
    ExecNode,
    KernelValues,
    SimExec,
    SimGraph,
    SimNode,
    Values,
    check_body,
    check_device_launch,
    compare,
    copy_changes,
    refuse_conditional,
)
from graphkit.runtime.sim.refusal import Code, Refused
from graphkit.runtime.sim.state import SimEvent, SimStream, cuda_call
from graphkit.runtime.sim.stream_calls import StreamCalls
from graphkit.runtime.sim.work import Submission, Work, WorkQueue

_DEFAULT_ATTRIBUTES: dict[LaunchAttributeID, tuple[int, ...]] = {
    LaunchAttributeID.CLUSTER_DIMENSION: (0, 0, 0),
    LaunchAttributeID.COOPERATIVE: (0,),
    LaunchAttributeID.PRIORITY: (0,),
    LaunchAttributeID.PROGRAMMATIC_STREAM_SERIALIZATION: (0,),
}


def _check_cooperative(
    values: KernelValues, attributes: dict[LaunchAttributeID, tuple[int, ...]]
) -> None:
    check_cooperative(values.grid, values.block, values.shared_mem, attributes)


class GraphCalls(StreamCalls):
    """Graphs, nodes, edges and executable graphs."""

    # --- graphs

    @cuda_call("cudaGraphCreate")
    def graph_create(self) -> int:
        return self._add_graph(SimGraph(self.state.new_handle("graph")))

    def _add_graph(self, graph: SimGraph) -> int:
        self.state.graphs[graph.handle] = graph
        self.state.nodes.update(graph.nodes)
        return graph.handle

    @cuda_call("cudaGraphDestroy")
    def graph_destroy(self, graph: int) -> None:
        found = self.state.graph(graph)
        if found.borrowed:
            raise Refused(Code.INVALID_VALUE, "the graph belongs to a node of another one")
        if any(capture.graph is found for capture in self.state.captures):
            raise Refused(Code.INVALID_VALUE, "the graph is being captured")
        self._forget(found)
        self._forget_dead_allocations()

    def _forget_dead_allocations(self) -> None:
        """Give up what alloc nodes of graphs and execs that are gone allocated."""
        state = self.state
        if not state.graph_memory or not state.queue.idle:
            return
        alive = {
            node.values
            for graph in state.graphs.values()
            for node in graph.nodes.values()
            if isinstance(node.values, GraphAllocation)
        }
        for exec_ in state.execs.values():
            for held in exec_.graph.nodes:
                if isinstance(held.values, GraphAllocation):
                    alive.add(held.values)
        state.graph_memory.forget_dead(alive)

    @cuda_call("cudaGraphClone")
    def graph_clone(self, graph: int) -> int:
        found = self.state.graph(graph)
        refuse_conditional(found, "a clone")
        return self._clone(found).handle

    def _clone(self, graph: SimGraph, *, borrowed: bool = False) -> SimGraph:
        refuse_memory_nodes(graph, "a graph with memory nodes cannot be copied")
        clone = SimGraph(self.state.new_handle("graph"), borrowed=borrowed)
        copies: dict[SimNode, SimNode] = {}
        for node in graph.nodes.values():
            copy = SimNode(
                self.state.new_handle("node"),
                node.type,
                clone,
                node.values,
                None if node.child is None else self._clone(node.child, borrowed=True),
                dict(node.attributes),
            )
            copies[node] = copy
            clone.nodes[copy.handle] = copy
            clone.origin[node.handle] = copy.handle
            if copy.child is not None:
                copy.child.holder = copy
        clone.edges = {(copies[a], copies[b]): data for (a, b), data in graph.edges.items()}
        self._add_graph(clone)
        return clone

    @cuda_call("cudaGraphNodeFindInClone")
    def graph_node_find_in_clone(self, node: int, clone: int) -> int:
        found = self.state.graph(clone).origin.get(self.state.node(node).handle)
        if found is None:
            raise Refused(Code.INVALID_VALUE, "the node was not cloned into this graph")
        return found

    # --- nodes

    def _add_node(
        self,
        graph: int,
        dependencies: Sequence[int],
        type_: NodeType,
        values: Values = None,
        child: SimGraph | None = None,
    ) -> int:
        owner = self.state.graph(graph)
        if owner.in_body():
            check_body(type_)
        before = [self.state.node(handle) for handle in dependencies]
        if any(node.graph is not owner for node in before):
            raise Refused(Code.INVALID_VALUE, "a dependency is a node of another graph")
        if len(set(dependencies)) != len(dependencies):
            raise Refused(Code.INVALID_VALUE, "a dependency is given twice")
        node = SimNode(self.state.new_handle("node"), type_, owner, values, child)
        owner.nodes[node.handle] = node
        self.state.nodes[node.handle] = node
        for other in before:
            owner.edges[other, node] = EdgeData()
        return node.handle

    @cuda_call("cudaGraphAddEmptyNode")
    def graph_add_empty_node(self, graph: int, dependencies: Sequence[int]) -> int:
        return self._add_node(graph, dependencies, NodeType.EMPTY)

    @cuda_call("cudaGraphAddKernelNode")
    def graph_add_kernel_node(
        self, graph: int, dependencies: Sequence[int], params: KernelNodeParams
    ) -> int:
        return self._add_node(graph, dependencies, NodeType.KERNEL, self._kernel_values(params))

    def _kernel_values(self, params: KernelNodeParams) -> KernelValues:
        function = self.state.function(params.function)
        check_dimensions(function, params.grid, params.block, params.shared_mem, Code.INVALID_VALUE)
        arguments = read_arguments(function, params.kernel_params, params.extra)
        return KernelValues(
            function, params.grid, params.block, params.shared_mem, arguments, bool(params.extra)
        )

    @cuda_call("cudaGraphAddMemcpyNode")
    def graph_add_memcpy_node(
        self, graph: int, dependencies: Sequence[int], params: MemcpyNodeParams
    ) -> int:
        self._check_memcpy(params)
        return self._add_node(graph, dependencies, NodeType.MEMCPY, params)

    def _check_memcpy(self, params: MemcpyNodeParams) -> None:
        if min(params.width, params.height, params.depth) < 1:
            raise Refused(Code.INVALID_VALUE, "a copy of nothing")
        check_copy(self.state.memory, params)

    @cuda_call("cudaGraphAddMemsetNode")
    def graph_add_memset_node(
        self, graph: int, dependencies: Sequence[int], params: MemsetNodeParams
    ) -> int:
        self._check_memset(params)
        return self._add_node(graph, dependencies, NodeType.MEMSET, params)

    def _check_memset(self, params: MemsetNodeParams) -> None:
        if params.element_size not in (1, 2, 4) or min(params.width, params.height) < 1:
            raise Refused(Code.INVALID_VALUE, f"{params}")
        if params.dst % params.element_size:
            raise Refused(Code.INVALID_VALUE, f"{params.dst:#x} is not aligned to its elements")
        check_fill(self.state.memory, params)

    @cuda_call("cudaGraphAddHostNode")
    def graph_add_host_node(
        self, graph: int, dependencies: Sequence[int], params: HostNodeParams
    ) -> int:
        if not params.fn:
            raise Refused(Code.INVALID_VALUE, "the host function is a null pointer")
        return self._add_node(graph, dependencies, NodeType.HOST, params)

    @cuda_call("cudaGraphAddEventRecordNode")
    def graph_add_event_record_node(
        self, graph: int, dependencies: Sequence[int], event: int
    ) -> int:
        self.state.event(event)
        return self._add_node(graph, dependencies, NodeType.EVENT_RECORD, event)

    @cuda_call("cudaGraphAddEventWaitNode")
    def graph_add_event_wait_node(self, graph: int, dependencies: Sequence[int], event: int) -> int:
        self.state.event(event)
        return self._add_node(graph, dependencies, NodeType.EVENT_WAIT, event)

    @cuda_call("cudaGraphAddChildGraphNode")
    def graph_add_child_graph_node(
        self, graph: int, dependencies: Sequence[int], child: int
    ) -> int:
        found = self.state.graph(child)
        around: SimGraph | None = self.state.graph(graph)
        while around is not None:
            if found is around:
                raise Refused(Code.INVALID_VALUE, "a graph cannot be its own child")
            around = None if around.holder is None else around.holder.graph
        refuse_memory_nodes(found, "a graph with memory nodes cannot be copied into another")
        refuse_conditional(found, "a child graph node")
        if self.state.graph(graph).in_body():
            for inner in found.all_nodes():
                check_body(inner.type)
        node = self._add_node(graph, dependencies, NodeType.GRAPH)
        holder = self.state.node(node)
        holder.child = self._clone(found, borrowed=True)
        holder.child.holder = holder
        return node

    @cuda_call("cuGraphConditionalHandleCreate")
    def graph_conditional_handle_create(
        self, graph: int, default: int, flags: ConditionalHandleFlags
    ) -> int:
        found, flags = self.state.graph(graph), ConditionalHandleFlags(flags)
        handle = self.state.new_handle("condition")
        assigned = flags is ConditionalHandleFlags.ASSIGN_DEFAULT
        found.conditions[handle] = default if assigned else None
        return handle

    @cuda_call("cuGraphAddNode")
    def graph_add_conditional_node(
        self, graph: int, dependencies: Sequence[int], params: ConditionalNodeParams
    ) -> tuple[int, tuple[int, ...]]:
        owner = self.state.graph(graph)
        values = ConditionalValues(params.handle, ConditionalNodeType(params.type))
        most = {ConditionalNodeType.IF: 2, ConditionalNodeType.WHILE: 1}.get(values.type)
        if params.size < 1 or (most is not None and params.size > most):
            raise Refused(Code.INVALID_VALUE, f"bodies of type {values.type.name}: {params.size}")
        self._check_condition(owner, params.handle)
        node = self._add_node(graph, dependencies, NodeType.CONDITIONAL, values)
        found = self.state.node(node)
        found.bodies = tuple(
            SimGraph(self.state.new_handle("graph"), borrowed=True, holder=found)
            for _ in range(params.size)
        )
        for body in found.bodies:
            self._add_graph(body)
        return node, tuple(body.handle for body in found.bodies)

    def _check_condition(self, graph: SimGraph, handle: int) -> None:
        """Refuse a handle of another graph, or one that a node has already."""
        around = graph
        while handle not in around.conditions:
            if around.holder is None:
                raise Refused(Code.INVALID_VALUE, f"{handle:#x} is no conditional handle of it")
            around = around.holder.graph
        for node in around.all_nodes():
            if isinstance(node.values, ConditionalValues) and node.values.handle == handle:
                raise Refused(Code.INVALID_VALUE, f"{node.describe()} has that handle already")

    @cuda_call("cudaGraphDestroyNode")
    def graph_destroy_node(self, node: int) -> None:
        found = self.state.node(node)
        graph = found.graph
        refuse_memory_nodes(graph, "a graph with memory nodes keeps its nodes")
        del graph.nodes[node], self.state.nodes[node]
        graph.edges = {pair: data for pair, data in graph.edges.items() if found not in pair}
        for inside in found.inside:
            self._forget(inside)

    @cuda_call("cudaGraphAddDependencies")
    def graph_add_dependencies(self, graph: int, edges: Sequence[Edge]) -> None:
        owner = self.state.graph(graph)
        for edge in edges:  # one after the other: CUDA keeps what it added before a bad one
            pair = self._pair(owner, edge)
            if pair in owner.edges:
                raise Refused(Code.INVALID_VALUE, "the edge is there already")
            data = EdgeData(*edge.data)
            kernels = all(node.type is NodeType.KERNEL for node in pair)
            if data.type == 1 and not kernels:
                raise Refused(Code.INVALID_VALUE, "a programmatic edge joins two kernel nodes")
            if data.type not in (0, 1) or data.from_port not in (0, 1, 2) or data.to_port:
                raise Refused(Code.INVALID_VALUE, f"{data}")
            if (data.type == 1) is not (data.from_port != 0):
                raise Refused(Code.INVALID_VALUE, f"{data}: port and type do not fit")
            owner.edges[pair] = data

    def _pair(self, owner: SimGraph, edge: Edge) -> tuple[SimNode, SimNode]:
        before, after = self.state.node(edge.from_node), self.state.node(edge.to_node)
        if before.graph is not owner or after.graph is not owner:
            raise Refused(Code.INVALID_VALUE, "the edge has a node of another graph")
        if before is after:
            raise Refused(Code.INVALID_VALUE, "an edge from a node to itself")
        return before, after

    @cuda_call("cudaGraphRemoveDependencies")
    def graph_remove_dependencies(self, graph: int, edges: Sequence[Edge]) -> None:
        owner = self.state.graph(graph)
        refuse_memory_nodes(owner, "a graph with memory nodes keeps its edges")
        pairs = [self._pair(owner, edge) for edge in edges]
        if any(pair not in owner.edges for pair in pairs):
            raise Refused(Code.INVALID_VALUE, "there is no such edge")
        for pair in pairs:
            owner.edges.pop(pair, None)

    @cuda_call("cudaGraphGetNodes")
    def graph_get_nodes(self, graph: int) -> list[int]:
        return list(self.state.graph(graph).nodes)

    @cuda_call("cudaGraphGetEdges")
    def graph_get_edges(self, graph: int) -> list[Edge]:
        edges = self.state.graph(graph).edges
        return [Edge(a.handle, b.handle, data) for (a, b), data in edges.items()]

    @cuda_call("cudaGraphNodeGetType")
    def graph_node_get_type(self, node: int) -> NodeType:
        return self.state.node(node).type

    def _of_type(self, node: int, type_: NodeType) -> SimNode:
        found = self.state.node(node)
        if found.type is not type_:
            raise Refused(Code.INVALID_VALUE, f"{found.describe()} is no {type_.name} node")
        return found

    @cuda_call("cuGraphKernelNodeGetParams")
    def graph_kernel_node_get_params(self, node: int) -> KernelNodeParams:
        found = self._of_type(node, NodeType.KERNEL)
        values: Any = found.values
        block = ArgumentBlock(values.arguments, values.function.source.layout, values.by_extra)
        # CUDA's memory belongs to the node and dies with it; so does this.
        found.handed_out.append(block)
        return KernelNodeParams(
            values.function.handle,
            values.grid,
            values.block,
            values.shared_mem,
            block.kernel_params,
            block.extra,
        )

    @cuda_call("cudaGraphKernelNodeSetParams")
    def graph_kernel_node_set_params(self, node: int, params: KernelNodeParams) -> None:
        found = self._of_type(node, NodeType.KERNEL)
        found.values = self._kernel_values(params)

    @cuda_call("cuGraphKernelNodeGetAttribute")
    def graph_kernel_node_get_attribute(
        self, node: int, attribute: LaunchAttributeID
    ) -> LaunchAttribute:
        found = self._of_type(node, NodeType.KERNEL)
        value = found.attributes.get(attribute, _DEFAULT_ATTRIBUTES[attribute])
        return LaunchAttribute(attribute, value)

    @cuda_call("cuGraphKernelNodeSetAttribute")
    def graph_kernel_node_set_attribute(self, node: int, attribute: LaunchAttribute) -> None:
        found = self._of_type(node, NodeType.KERNEL)
        values: Any = found.values
        check_cluster(values.grid, {attribute.id: attribute.value})
        found.attributes[attribute.id] = attribute.value

    @cuda_call("cudaGraphMemcpyNodeGetParams")
    def graph_memcpy_node_get_params(self, node: int) -> MemcpyNodeParams:
        params: Any = self._of_type(node, NodeType.MEMCPY).values
        return params  # type: ignore[no-any-return]

    @cuda_call("cudaGraphMemsetNodeGetParams")
    def graph_memset_node_get_params(self, node: int) -> MemsetNodeParams:
        params: Any = self._of_type(node, NodeType.MEMSET).values
        return params  # type: ignore[no-any-return]

    @cuda_call("cudaGraphHostNodeGetParams")
    def graph_host_node_get_params(self, node: int) -> HostNodeParams:
        params: Any = self._of_type(node, NodeType.HOST).values
        return params  # type: ignore[no-any-return]

    @cuda_call("cudaGraphEventRecordNodeGetEvent")
    def graph_event_record_node_get_event(self, node: int) -> int:
        event: Any = self._of_type(node, NodeType.EVENT_RECORD).values
        return event  # type: ignore[no-any-return]

    @cuda_call("cudaGraphEventWaitNodeGetEvent")
    def graph_event_wait_node_get_event(self, node: int) -> int:
        event: Any = self._of_type(node, NodeType.EVENT_WAIT).values
        return event  # type: ignore[no-any-return]

    @cuda_call("cudaGraphChildGraphNodeGetGraph")
    def graph_child_graph_node_get_graph(self, node: int) -> int:
        child = self._of_type(node, NodeType.GRAPH).child
        assert child is not None
        return child.handle

    @cuda_call("cudaGraphDebugDotPrint")
    def graph_debug_dot_print(self, graph: int, path: str, verbose: bool) -> None:
        found = self.state.graph(graph)
        names = {node: f"n{index}" for index, node in enumerate(found.nodes.values())}
        lines = ["digraph dot {"]
        lines += [f'{name} [label="{node.describe()}"];' for node, name in names.items()]
        lines += [f"{names[a]} -> {names[b]};" for a, b in found.edges]
        try:
            Path(path).write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")
        except OSError as error:
            raise Refused(Code.OPERATING_SYSTEM, str(error)) from None

    # --- executable graphs

    @cuda_call("cudaGraphInstantiateWithParams")
    def graph_instantiate_with_params(
        self, graph: int, flags: InstantiateFlags, upload_stream: int
    ) -> int:
        self.state.refuse_if_unsafe("cudaGraphInstantiate")
        found = self.state.graph(graph)
        if any(capture.graph is found for capture in self.state.captures):
            raise Refused(Code.INVALID_VALUE, "the graph is being captured")
        self._check_conditional(found)
        flags = InstantiateFlags(flags)
        if flags & InstantiateFlags.DEVICE_LAUNCH:
            check_device_launch(found)
        if flags & InstantiateFlags.UPLOAD:
            self.state.stream(upload_stream)
        if any(exec_.source is found for exec_ in self.state.execs.values()):
            refuse_memory_nodes(found, "a graph with memory nodes has one exec at a time")
        for node in found.all_nodes():
            if isinstance(node.values, KernelValues):
                _check_cooperative(node.values, node.attributes)
        held = ExecGraph.of(found)
        nbytes = sum(1 for _ in found.all_nodes()) * self.state.options.exec_bytes_per_node
        self.state.memory.take(nbytes)  # the last that may refuse: nothing is made until here
        conditions = found.all_conditions()
        exec_ = SimExec(self.state.new_handle("exec"), found, flags, held, nbytes, conditions)
        self.state.execs[exec_.handle] = exec_
        return exec_.handle

    def _check_conditional(self, graph: SimGraph) -> None:
        """Refuse what CUDA cannot make executable because of conditional nodes and handles."""
        if graph.in_body():
            raise Refused(Code.INVALID_VALUE, "the body of a conditional node by itself")
        conditions = graph.all_conditions()
        if not conditions:
            return
        nodes = (node.values for node in graph.all_nodes())
        used = {values.handle for values in nodes if isinstance(values, ConditionalValues)}
        if used != conditions.keys():
            raise Refused(Code.INVALID_VALUE, "a conditional handle that no node has")
        if any(other.source is graph for other in self.state.execs.values()):
            raise Refused(Code.NOT_SUPPORTED, "a second executable graph with conditional nodes")

    @cuda_call("cudaGraphExecDestroy")
    def graph_exec_destroy(self, exec_: int) -> None:
        self.state.refuse_if_unsafe("cudaGraphExecDestroy")
        self.state.memory.give_back(self.state.exec(exec_).nbytes)
        del self.state.execs[exec_]
        self._forget_dead_allocations()

    @cuda_call("cudaGraphUpload")
    def graph_upload(self, exec_: int, stream: int) -> None:
        self.state.exec(exec_)
        self._refuse_on_capturing(self.state.stream(stream), "an upload")

    def _refuse_on_capturing(self, stream: SimStream, what: str) -> None:
        """Refuse what no capture can hold, and invalidate the capture."""
        if stream.capture is not None:
            stream.capture.status = CaptureStatus.INVALIDATED
            raise Refused(
                Code.CAPTURE_UNSUPPORTED,
                f"{what} of an executable graph on a stream that captures; add the graph as a "
                "child graph node instead",
            )

    @cuda_call("cudaGraphLaunch")
    def graph_launch(self, exec_: int, stream: int) -> None:
        found, on = self.state.exec(exec_), self.state.stream(stream)
        self._refuse_on_capturing(on, "a launch")
        self.state.refuse_implicit(on, "cudaGraphLaunch")
        # First everything that may be refused: a launch happens as a whole or not at all.
        actions: list[Action | SimEvent | None] = []
        conditions = Conditions(found.conditions, self.state.options.max_iterations)
        self._prepare(found.graph, actions, conditions)
        queue = self.state.queue
        left = self.state.graph_memory.begin_launch(found)
        queue.reserve(2 * len(actions) + 2)
        # Launches of one exec never overlap, whatever streams they are on.
        before = tuple(dict.fromkeys((*self._before(on), *found.last)))
        if left:
            before = (self._auto_free(left, before),)
        end = self._submit_graph(queue, found.graph, iter(actions), before, Submission())
        on.last = found.last = (end,)
        queue.settle(end)

    def _auto_free(self, left: list[GraphAllocation], before: tuple[Work, ...]) -> Work:
        def free(work: Work) -> None:
            for found in left:
                self.state.graph_memory.free(work, found)

        return self.state.queue.submit(before, free, lambda: "the auto-free", Submission())

    def _prepare(
        self, graph: ExecGraph, actions: list[Action | SimEvent | None], conditions: Conditions
    ) -> None:
        """List what each node will do, children in their places; an event stands for itself."""
        for held in graph.nodes:
            if held.children is not None:
                self._prepare(held.children, actions, conditions)
            elif isinstance(held.values, int):
                actions.append(self.state.event(held.values))
            else:
                actions.append(self._action(held, conditions) if held.enabled else None)

    def _body(self, graph: ExecGraph, conditions: Conditions) -> SubmitBody:
        """Prepare a body once; it may run any number of times."""
        actions: list[Action | SimEvent | None] = []
        self._prepare(graph, actions, conditions)
        return lambda queue, submission: self._submit_graph(
            queue, graph, iter(actions), (), submission
        )

    def _submit_graph(
        self,
        queue: WorkQueue,
        graph: ExecGraph,
        actions: Iterator[Action | SimEvent | None],
        before: tuple[Work, ...],
        submission: Submission,
    ) -> Work:
        works: dict[SimNode, Work] = {}
        for held in graph.nodes:
            node = held.source
            deps = tuple(works[other] for other in graph.before[node]) or before
            if held.children is not None:
                works[node] = self._submit_graph(queue, held.children, actions, deps, submission)
                continue
            action = next(actions)
            if not isinstance(action, SimEvent):
                # Alloc and free nodes run also when another node failed.
                alone = isinstance(held.values, GraphAllocation)
                part = Submission() if alone else submission
                works[node] = queue.submit(deps, action, node.describe, part)
            elif node.type is NodeType.EVENT_WAIT:
                works[node] = queue.submit((*deps, *action.work), None, node.describe, submission)
            else:
                works[node] = queue.submit(deps, None, node.describe, submission)
                action.work, action.capture, action.nodes = (works[node],), None, ()
                action.recorded = True
        return queue.submit(
            tuple(works.values()) or before, None, lambda: "the end of a graph", submission
        )

    def _action(self, held: ExecNode, conditions: Conditions) -> Action | None:
        values, memory = held.values, self.state.memory
        who = held.source.describe()
        if isinstance(values, KernelValues):
            return kernel_action(memory, values, f"kernel {values.function.name!r}", conditions)
        if isinstance(values, ConditionalValues):
            bodies = tuple(self._body(body, conditions) for body in held.bodies)
            logged = memory if self.state.options.detect_races else None
            seeds = self.state.queue.next_seed
            return conditional_action(values, bodies, conditions, logged, seeds, who)
        if isinstance(values, MemcpyNodeParams):
            return copy_action(memory, values, who)
        if isinstance(values, MemsetNodeParams):
            return fill_action(memory, values, who)
        if isinstance(values, HostNodeParams):
            return host_action(values)
        if isinstance(values, GraphAllocation):
            of_graph = self.state.graph_memory
            run = of_graph.allocate if held.source.type is NodeType.MEM_ALLOC else of_graph.free
            return lambda work: run(work, values)
        return None

    @cuda_call("cuGraphExecUpdate_v2")
    def graph_exec_update(self, exec_: int, graph: int) -> ExecUpdateResultInfo:
        found, new = self.state.exec(exec_), self.state.graph(graph)
        by_priority = bool(found.flags & InstantiateFlags.USE_NODE_PRIORITY)
        status, *nodes = compare(found.graph, new, by_priority)
        if status is not ExecUpdateStatus.SUCCESS:
            return ExecUpdateResultInfo(status, *(n.handle if n else 0 for n in nodes))
        if new is not found.source and any(
            isinstance(node.values, GraphAllocation) for node in new.nodes.values()
        ):
            raise NotSimulated("the simulator updates no exec from another graph's memory nodes")
        found.graph.take(new)
        return ExecUpdateResultInfo(status, 0, 0)

    def _held(self, exec_: int, node: int, type_: NodeType) -> ExecNode:
        found = self.state.exec(exec_)
        source = self._of_type(node, type_)
        held = found.graph.find(source)
        if held is None:
            raise Refused(Code.INVALID_VALUE, "the exec was made from another graph")
        return held

    @cuda_call("cudaGraphExecKernelNodeSetParams")
    def graph_exec_kernel_node_set_params(
        self, exec_: int, node: int, params: KernelNodeParams
    ) -> None:
        held = self._held(exec_, node, NodeType.KERNEL)
        values = self._kernel_values(params)
        check_cluster(values.grid, held.attributes)
        _check_cooperative(values, held.attributes)
        held.values = values

    @cuda_call("cudaGraphExecMemcpyNodeSetParams")
    def graph_exec_memcpy_node_set_params(
        self, exec_: int, node: int, params: MemcpyNodeParams
    ) -> None:
        held = self._held(exec_, node, NodeType.MEMCPY)
        self._check_memcpy(params)
        self._change(held, params)

    @cuda_call("cudaGraphExecMemsetNodeSetParams")
    def graph_exec_memset_node_set_params(
        self, exec_: int, node: int, params: MemsetNodeParams
    ) -> None:
        held = self._held(exec_, node, NodeType.MEMSET)
        self._check_memset(params)
        self._change(held, params)

    def _change(self, held: ExecNode, values: Values) -> None:
        reason = copy_changes(held.values, values)
        if reason:
            raise Refused(Code.INVALID_VALUE, reason)
        held.values = values

    @cuda_call("cudaGraphExecHostNodeSetParams")
    def graph_exec_host_node_set_params(
        self, exec_: int, node: int, params: HostNodeParams
    ) -> None:
        self._held(exec_, node, NodeType.HOST).values = params

    @cuda_call("cudaGraphExecEventRecordNodeSetEvent")
    def graph_exec_event_record_node_set_event(self, exec_: int, node: int, event: int) -> None:
        self.state.event(event)
        self._held(exec_, node, NodeType.EVENT_RECORD).values = event

    @cuda_call("cudaGraphExecEventWaitNodeSetEvent")
    def graph_exec_event_wait_node_set_event(self, exec_: int, node: int, event: int) -> None:
        self.state.event(event)
        self._held(exec_, node, NodeType.EVENT_WAIT).values = event

    @cuda_call("cudaGraphExecChildGraphNodeSetParams")
    def graph_exec_child_graph_node_set_params(self, exec_: int, node: int, child: int) -> None:
        held = self._held(exec_, node, NodeType.GRAPH)
        new = self.state.graph(child)
        assert held.children is not None
        status, *_ = compare(held.children, new)
        if status is not ExecUpdateStatus.SUCCESS:
            raise Refused(Code.GRAPH_EXEC_UPDATE_FAILURE, f"{status.name.lower()}")
        held.children.take(new)

    def _switchable(self, exec_: int, node: int) -> ExecNode:
        found, source = self.state.exec(exec_), self.state.node(node)
        if source.type not in (NodeType.KERNEL, NodeType.MEMCPY, NodeType.MEMSET):
            raise Refused(Code.INVALID_VALUE, f"{source.describe()} cannot be switched off")
        held = found.graph.find(source)
        if held is None:
            raise Refused(Code.INVALID_VALUE, "the exec was made from another graph")
        return held

    @cuda_call("cudaGraphNodeSetEnabled")
    def graph_node_set_enabled(self, exec_: int, node: int, enabled: bool) -> None:
        self._switchable(exec_, node).enabled = bool(enabled)

    @cuda_call("cudaGraphNodeGetEnabled")
    def graph_node_get_enabled(self, exec_: int, node: int) -> bool:
        return self._switchable(exec_, node).enabled

    # --- hot calls

    def graph_launcher(self, exec_: HandleCell, stream: int | HandleCell) -> Callable[[], Any]:
        def launch() -> None:
            handle = stream if isinstance(stream, int) else stream.value or refuse_closed("stream")
            self.graph_launch(exec_.value or refuse_closed("exec"), handle)

        return launch

    def kernel_node_setter(
        self, exec_: int, node: int, params: KernelNodeParams
    ) -> Callable[[], Any]:
        def set_params() -> None:
            self.graph_exec_kernel_node_set_params(exec_, node, params)

        return set_params

    def memcpy_node_setter(
        self, exec_: int, node: int, params: MemcpyNodeParams, *, moves_dst: bool
    ) -> Callable[[int], Any]:
        def set_address(address: int) -> None:
            moved = params._replace(dst=address) if moves_dst else params._replace(src=address)
            self.graph_exec_memcpy_node_set_params(exec_, node, moved)

        return set_address

    def kernel_node_struct(self, params: KernelNodeParams) -> KernelNodeParams:
        return params

    def kernel_nodes_setter(
        self, exec_: int, nodes: Sequence[tuple[int, KernelNodeParams]]
    ) -> Callable[[], Any]:
        line = tuple(nodes)

        def set_params() -> None:
            for node, params in line:
                self.graph_exec_kernel_node_set_params(exec_, node, params)

        return set_params
