"""Memory, streams, events and captures: the simulated calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from graphkit.errors import NotSimulated
from graphkit.runtime.protocol import (
    CaptureInfo,
    CaptureMode,
    CaptureStatus,
    EdgeData,
    EventFlags,
    HostNodeParams,
    LaunchAttributeID,
    LaunchConfig,
    MemcpyKind,
    MemcpyNodeParams,
    MemoryType,
    MemsetNodeParams,
    NodeType,
    PointerAttributes,
    StreamFlags,
)
from graphkit.runtime.sim.actions import copy_action, fill_action, host_action, kernel_action
from graphkit.runtime.sim.extents import check_copy, check_fill
from graphkit.runtime.sim.functions import check_dimensions, read_arguments
from graphkit.runtime.sim.launch_limits import check_cluster, check_cooperative
from graphkit.runtime.sim.memory import host_bytes
from graphkit.runtime.sim.model import (
    KernelValues,
    SimGraph,
    SimNode,
    Values,
    ancestors_of,
    check_body,
)
from graphkit.runtime.sim.refusal import Code, Refused
from graphkit.runtime.sim.state import Calls, Capture, SimEvent, SimStream, cuda_call
from graphkit.runtime.sim.work import Submission, Work


class StreamCalls(Calls):
    """Memory, streams, events and captures."""

    # --- memory

    @cuda_call("cudaMalloc")
    def malloc(self, nbytes: int) -> int:
        return self._allocate(nbytes, MemoryType.DEVICE, "cudaMalloc")

    @cuda_call("cudaHostAlloc")
    def host_alloc(self, nbytes: int) -> int:
        return self._allocate(nbytes, MemoryType.HOST, "cudaHostAlloc")

    def _allocate(self, nbytes: int, kind: MemoryType, call: str) -> int:
        if nbytes < 0:
            raise Refused(Code.INVALID_VALUE, f"{nbytes} bytes")
        if nbytes == 0:
            return 0
        self.state.refuse_if_unsafe(call)
        return self.state.memory.allocate(nbytes, kind).address

    @cuda_call("cudaFree")
    def free(self, address: int) -> None:
        self.state.refuse_if_unsafe("cudaFree")
        if not address:
            return
        of_graph = self.state.graph_memory.at(address)
        if of_graph is not None:
            self.state.graph_memory.end(of_graph)
            self.state.queue.run_all()
            self.state.memory.unmap(of_graph.allocation)
            return
        allocation = self.state.memory.exact(address, MemoryType.DEVICE)
        self.state.queue.run_all()
        self.state.memory.free(allocation)

    @cuda_call("cudaFreeHost")
    def free_host(self, address: int) -> None:
        self.state.refuse_if_unsafe("cudaFreeHost")
        if not address:
            return
        allocation = self.state.memory.exact(address, MemoryType.HOST)
        self.state.queue.run_all()
        self.state.memory.free(allocation)

    @cuda_call("cudaMallocAsync")
    def malloc_async(self, nbytes: int, stream: int) -> int:
        on = self.state.stream(stream)
        if on.capture is None:
            return self._allocate(nbytes, MemoryType.DEVICE, "cudaMallocAsync")
        self._refuse_invalidated(on.capture)
        found = self.state.graph_memory.add(nbytes, on.capture.graph)
        self._capture(on, NodeType.MEM_ALLOC, found)
        return found.allocation.address

    @cuda_call("cudaFreeAsync")
    def free_async(self, address: int, stream: int) -> None:
        found, memory = self.state.stream(stream), self.state.memory
        if found.capture is not None:
            self._capture_free(found, found.capture, address)
            return
        of_graph = self.state.graph_memory.at(address)
        if of_graph is not None:
            self.state.refuse_implicit(found, "work")
            self.state.graph_memory.end(of_graph)
            free = self.state.graph_memory.free
            self._submit(found, lambda work: free(work, of_graph), lambda: "cudaFreeAsync")
            return
        allocation = memory.exact(address, MemoryType.DEVICE)
        allocation.freeing = True
        self._submit(found, lambda _: memory.free(allocation), lambda: "cudaFreeAsync")

    def _capture_free(self, stream: SimStream, capture: Capture, address: int) -> None:
        self._refuse_invalidated(capture)
        # Only what an alloc node allocates can be freed in a graph; a refusal breaks no capture.
        freed = self.state.graph_memory.to_free(address, capture.graph)
        self._capture(stream, NodeType.MEM_FREE, freed)
        freed.freed_by.add(capture.graph)

    def _refuse_invalidated(self, capture: Capture) -> None:
        if capture.status is CaptureStatus.INVALIDATED:
            raise Refused(Code.CAPTURE_INVALIDATED, "an earlier error ended this capture")

    @cuda_call("cudaMemcpy")
    def memcpy(self, dst: int, src: int, nbytes: int, kind: MemcpyKind) -> None:
        legacy = self.state.stream(0)
        self.state.refuse_implicit(legacy, "cudaMemcpy")
        params = MemcpyNodeParams(dst, 0, 0, src, 0, 0, nbytes, 1, 1, kind)
        self._copy(legacy, params, stage=False)
        self.state.queue.finish(legacy.last)

    @cuda_call("cudaMemcpyAsync")
    def memcpy_async(self, dst: int, src: int, nbytes: int, kind: MemcpyKind, stream: int) -> None:
        params = MemcpyNodeParams(dst, 0, 0, src, 0, 0, nbytes, 1, 1, kind)
        self._copy(self.state.stream(stream), params)

    @cuda_call("cudaMemcpy3DAsync")
    def memcpy_3d_async(self, params: MemcpyNodeParams, stream: int) -> None:
        self._copy(self.state.stream(stream), params)

    def _copy(self, stream: SimStream, params: MemcpyNodeParams, *, stage: bool = True) -> None:
        if params.width:
            check_copy(self.state.memory, params)
        if self._capture(stream, NodeType.MEMCPY, params) is None and params.width:
            memory = self.state.memory
            # CUDA lets go of pageable sources before cudaMemcpyAsync returns: they may change.
            pageable = stage and memory.find(params.src) is None
            staged = host_bytes(params.src, params.src_span).copy() if pageable else None
            action = copy_action(memory, params, "cudaMemcpyAsync", staged)
            self._submit(stream, action, lambda: "a memcpy")

    @cuda_call("cudaMemsetAsync")
    def memset_async(self, address: int, value: int, nbytes: int, stream: int) -> None:
        params = MemsetNodeParams(address, 0, value & 0xFF, 1, nbytes, 1)
        found = self.state.stream(stream)
        if nbytes and found.capture is None:
            check_fill(self.state.memory, params)
        if self._capture(found, NodeType.MEMSET, params) is None and nbytes:
            action = fill_action(self.state.memory, params, "cudaMemsetAsync")
            self._submit(found, action, lambda: "a memset")

    @cuda_call("cudaPointerGetAttributes")
    def pointer_get_attributes(self, address: int) -> PointerAttributes:
        found = self.state.memory.live_at(address)
        if found is None:
            return PointerAttributes(MemoryType.UNREGISTERED, -2, 0, address)
        if found.type is MemoryType.HOST:
            return PointerAttributes(MemoryType.HOST, 0, address, address)
        return PointerAttributes(MemoryType.DEVICE, 0, address, 0)

    @cuda_call("cudaMemGetInfo")
    def mem_get_info(self) -> tuple[int, int]:
        memory = self.state.memory
        return memory.total - memory.used, memory.total

    # --- streams

    @cuda_call("cudaStreamCreateWithPriority")
    def stream_create_with_priority(self, flags: StreamFlags, priority: int) -> int:
        clamped = max(-5, min(priority, 0))
        stream = SimStream(self.state.new_handle("stream"), StreamFlags(flags), clamped)
        self.state.streams[stream.handle] = stream
        return stream.handle

    @cuda_call("cudaStreamDestroy")
    def stream_destroy(self, stream: int) -> None:
        found = self.state.stream(stream)
        if found.handle == 0:
            raise Refused(Code.INVALID_RESOURCE_HANDLE, "the legacy stream cannot be destroyed")
        capture = found.capture
        if capture is not None and capture.origin is found:
            self._leave(capture)
            self._drop(capture)
        del self.state.streams[stream]

    @cuda_call("cudaStreamSynchronize")
    def stream_synchronize(self, stream: int) -> None:
        found = self.state.stream(stream)
        self.state.refuse_wait(found, "cudaStreamSynchronize")
        self.state.queue.finish(self._waited_for(found))

    @cuda_call("cudaStreamQuery")
    def stream_query(self, stream: int) -> bool:
        found = self.state.stream(stream)
        self.state.refuse_wait(found, "cudaStreamQuery")
        return self._query(found, self._waited_for(found))

    def _waited_for(self, stream: SimStream) -> tuple[Work, ...]:
        """Return the work that a host which waits for a stream waits for."""
        return stream.last if stream.handle else self._before(stream)

    def _query(self, asked: SimStream | SimEvent, works: tuple[Work, ...]) -> bool:
        queue = self.state.queue
        if not all(work.done for work in works):
            # The first question finds the device busy; a program that goes on asking sees the end.
            if asked.asked == works:
                queue.advance(works)
            asked.asked = works
        done = all(work.done for work in works)
        if done:
            queue.observe(works)
        queue.raise_errors()
        return done

    @cuda_call("cudaDeviceSynchronize")
    def device_synchronize(self) -> None:
        self.state.refuse_any_capture("cudaDeviceSynchronize")
        self.state.queue.finish_all()

    @cuda_call("cudaStreamGetPriority")
    def stream_get_priority(self, stream: int) -> int:
        return self.state.stream(stream).priority

    @cuda_call("cudaStreamGetFlags")
    def stream_get_flags(self, stream: int) -> StreamFlags:
        return self.state.stream(stream).flags

    @cuda_call("cudaLaunchHostFunc")
    def launch_host_func(self, stream: int, params: HostNodeParams) -> None:
        found = self.state.stream(stream)
        if self._capture(found, NodeType.HOST, params) is None:
            self._submit(found, host_action(params), lambda: "a host function")

    @cuda_call("cuLaunchKernelEx")
    def launch_kernel_ex(self, config: LaunchConfig, function: int, kernel_params: int) -> None:
        loaded = self.state.function(function)
        found = self.state.stream(config.stream)
        attributes = {item.id: item.value for item in config.attributes}
        try:
            check_dimensions(
                loaded, config.grid, config.block, config.shared_mem, Code.INVALID_VALUE
            )
            check_cluster(config.grid, attributes)
            check_cooperative(config.grid, config.block, config.shared_mem, attributes)
            arguments = read_arguments(loaded, kernel_params, 0)
        except Refused:
            if found.capture is not None:
                found.capture.status = CaptureStatus.INVALIDATED
            raise
        values = KernelValues(
            loaded, config.grid, config.block, config.shared_mem, arguments, False
        )
        node = self._capture(found, NodeType.KERNEL, values, attributes)
        if node is None:
            name = loaded.name
            action = kernel_action(self.state.memory, values, f"kernel {name!r}")
            self._submit(found, action, lambda: f"kernel {name!r}")

    # --- work on a stream

    def _before(self, stream: SimStream) -> tuple[Work, ...]:
        """Return what new work on a stream comes after.

        Work that is done is among it: it orders accesses that the host has not waited for.
        """
        works = list(stream.last)
        if stream.handle == 0:
            for other in self.state.streams.values():
                if other.blocking:
                    works.extend(other.last)
        elif stream.blocking:
            works.extend(self.state.streams[0].last)
        return tuple(dict.fromkeys(works))

    def _submit(
        self, stream: SimStream, action: Callable[[Work], None], describe: Callable[[], str]
    ) -> None:
        self.state.refuse_implicit(stream, "work")
        queue = self.state.queue
        work = queue.submit(self._before(stream), action, describe, Submission())
        stream.last = (work,)
        queue.settle(work)

    def _capture(
        self,
        stream: SimStream,
        type_: NodeType,
        values: Values,
        attributes: dict[LaunchAttributeID, tuple[int, ...]] | None = None,
    ) -> SimNode | None:
        """Add a node for work on a stream that captures; None when it does not."""
        capture = stream.capture
        if capture is None:
            return None
        self._refuse_invalidated(capture)
        if capture.graph.in_body():
            try:
                check_body(type_)
            except Refused:
                capture.status = CaptureStatus.INVALIDATED
                raise
        attributes = dict(attributes or {})
        serialization = LaunchAttributeID.PROGRAMMATIC_STREAM_SERIALIZATION
        programmatic = bool(attributes.pop(serialization, (0,))[0])
        if type_ is NodeType.KERNEL and stream.priority:
            attributes.setdefault(LaunchAttributeID.PRIORITY, (stream.priority,))
        graph = capture.graph
        node = SimNode(self.state.new_handle("node"), type_, graph, values, None, attributes)
        graph.nodes[node.handle] = node
        self.state.nodes[node.handle] = node
        for before in capture.frontier.get(stream, []):
            plain = not programmatic or before.type is not NodeType.KERNEL
            graph.edges[before, node] = EdgeData() if plain else EdgeData(1, 0, 1)
        capture.frontier[stream] = [node]
        return node

    # --- events

    @cuda_call("cudaEventCreateWithFlags")
    def event_create_with_flags(self, flags: EventFlags) -> int:
        event = SimEvent(self.state.new_handle("event"), EventFlags(flags))
        self.state.events[event.handle] = event
        return event.handle

    @cuda_call("cudaEventDestroy")
    def event_destroy(self, event: int) -> None:
        self.state.event(event)
        del self.state.events[event]

    @cuda_call("cudaEventRecord")
    def event_record(self, event: int, stream: int) -> None:
        found, on = self.state.event(event), self.state.stream(stream)
        self.state.refuse_implicit(on, "cudaEventRecord")
        capture = on.capture
        found.recorded = True
        if capture is not None:
            if capture.status is CaptureStatus.INVALIDATED:
                raise Refused(Code.CAPTURE_INVALIDATED, "an earlier error ended this capture")
            found.capture, found.nodes = capture, tuple(capture.frontier.get(on, ()))
            return
        found.capture, found.nodes = None, ()
        found.work = self._before(on)

    def _refuse_captured(self, event: SimEvent, what: str) -> None:
        if event.capture is None:
            return
        if event.capture not in self.state.captures:
            raise Refused(Code.INVALID_VALUE, f"{what} of an event recorded in an ended capture")
        event.capture.status = CaptureStatus.INVALIDATED
        raise Refused(Code.CAPTURED_EVENT, f"{what} of an event that was recorded in a capture")

    @cuda_call("cudaEventQuery")
    def event_query(self, event: int) -> bool:
        found = self.state.event(event)
        self._refuse_captured(found, "cudaEventQuery")
        self.state.refuse_if_unsafe("cudaEventQuery")
        return self._query(found, found.work)

    @cuda_call("cudaEventSynchronize")
    def event_synchronize(self, event: int) -> None:
        found = self.state.event(event)
        self._refuse_captured(found, "cudaEventSynchronize")
        self.state.refuse_if_unsafe("cudaEventSynchronize")
        self.state.queue.finish(found.work)

    @cuda_call("cudaEventElapsedTime")
    def event_elapsed_time(self, start: int, end: int) -> float:
        for handle in (start, end):
            found = self.state.event(handle)
            if found.flags & EventFlags.DISABLE_TIMING:
                raise Refused(Code.INVALID_RESOURCE_HANDLE, "the event was made without timing")
            if not found.recorded:
                raise Refused(Code.INVALID_RESOURCE_HANDLE, "the event was never recorded")
        raise NotSimulated("the simulator never reports a time: measure on a device")

    @cuda_call("cudaStreamWaitEvent")
    def stream_wait_event(self, stream: int, event: int) -> None:
        on, found = self.state.stream(stream), self.state.event(event)
        self.state.refuse_implicit(on, "cudaStreamWaitEvent")
        theirs, ours = found.capture, on.capture
        if ours is not None and ours.status is CaptureStatus.INVALIDATED:
            raise Refused(Code.CAPTURE_INVALIDATED, "an earlier error ended this capture")
        if theirs is not None and theirs in self.state.captures:
            self._join(on, found, theirs)
            return
        if not found.recorded:
            return
        if ours is not None:
            ours.status = CaptureStatus.INVALIDATED
        if theirs is not None:
            raise Refused(Code.INVALID_VALUE, "the event was recorded in a capture that has ended")
        if ours is not None:
            raise Refused(
                Code.CAPTURE_ISOLATION,
                "a capturing stream cannot wait for an event recorded outside of its capture",
            )
        before = (*self._before(on), *found.work)
        if before:
            queue = self.state.queue
            work = queue.submit(before, None, lambda: "a wait for an event", Submission())
            on.last = (work,)
            queue.settle(work)

    def _join(self, stream: SimStream, event: SimEvent, capture: Capture) -> None:
        if stream.capture is not None and stream.capture is not capture:
            capture.status = stream.capture.status = CaptureStatus.INVALIDATED
            raise Refused(Code.CAPTURE_MERGE, "the event belongs to another capture")
        if stream.handle == 0:
            capture.status = CaptureStatus.INVALIDATED
            raise Refused(Code.CAPTURE_IMPLICIT, "the legacy stream cannot join a capture")
        if capture.status is CaptureStatus.INVALIDATED:
            raise Refused(Code.CAPTURE_INVALIDATED, "an earlier error ended this capture")
        stream.capture = capture
        frontier = capture.frontier.setdefault(stream, [])
        frontier.extend(node for node in event.nodes if node not in frontier)

    # --- capture

    @cuda_call("cudaStreamBeginCapture")
    def stream_begin_capture(self, stream: int, mode: CaptureMode) -> None:
        on = self._fit_to_capture(stream)
        graph = SimGraph(self.state.new_handle("graph"))
        self.state.graphs[graph.handle] = graph
        self._begin_capture(on, graph, [], mode, into=False)

    @cuda_call("cudaStreamBeginCaptureToGraph")
    def stream_begin_capture_to_graph(
        self, stream: int, graph: int, dependencies: Sequence[int], mode: CaptureMode
    ) -> None:
        on, found = self._fit_to_capture(stream), self.state.graph(graph)
        nodes = [self.state.node(handle) for handle in dependencies]
        if any(node.graph is not found for node in nodes):
            raise Refused(Code.INVALID_VALUE, "a dependency is a node of another graph")
        self._begin_capture(on, found, nodes, mode, into=True)

    def _fit_to_capture(self, stream: int) -> SimStream:
        on = self.state.stream(stream)
        if on.handle == 0:
            raise Refused(Code.CAPTURE_UNSUPPORTED, "the legacy stream cannot capture")
        if on.capture is not None:
            raise Refused(Code.ILLEGAL_STATE, "the stream captures already")
        return on

    def _begin_capture(
        self, on: SimStream, graph: SimGraph, nodes: list[SimNode], mode: CaptureMode, *, into: bool
    ) -> None:
        number = self.state.new_handle("graph")
        me = threading.get_ident()
        on.capture = Capture(
            number, graph, CaptureMode(mode), on, me, frontier={on: nodes}, into=into
        )
        self.state.captures.append(on.capture)

    @cuda_call("cudaStreamEndCapture")
    def stream_end_capture(self, stream: int) -> int:
        on = self.state.stream(stream)
        capture = on.capture
        if capture is None:
            raise Refused(Code.ILLEGAL_STATE, "the stream does not capture")
        if capture.origin is not on:
            capture.status = CaptureStatus.INVALIDATED
            raise Refused(Code.CAPTURE_UNMATCHED, "the capture was begun on another stream")
        if capture.mode is not CaptureMode.RELAXED and capture.thread != threading.get_ident():
            self._leave(capture)
            self._drop(capture)
            raise Refused(Code.CAPTURE_WRONG_THREAD, "the capture was begun on another thread")
        self._leave(capture)
        failure = None
        if capture.status is CaptureStatus.INVALIDATED:
            failure = Refused(Code.CAPTURE_INVALIDATED, "an earlier error ended this capture")
        elif open_ends := self._unjoined(capture, on):
            kinds = ", ".join(node.describe() for node in open_ends)
            failure = Refused(Code.CAPTURE_UNJOINED, f"not joined: {kinds}")
        if failure is not None:
            self._drop(capture)
            raise failure
        return capture.graph.handle

    def _drop(self, capture: Capture) -> None:
        """Destroy the graph that a capture which failed has made."""
        if not capture.into:
            self._forget(capture.graph)

    def _forget(self, graph: SimGraph) -> None:
        """Forget a graph with its nodes, and what is inside of those."""
        del self.state.graphs[graph.handle]
        for node in graph.nodes.values():
            del self.state.nodes[node.handle]
            for inside in node.inside:
                self._forget(inside)

    def _unjoined(self, capture: Capture, origin: SimStream) -> list[SimNode]:
        joined = ancestors_of(capture.graph, capture.frontier[origin])
        return [
            node
            for stream, frontier in capture.frontier.items()
            if stream is not origin
            for node in frontier
            if node not in joined
        ]

    def _leave(self, capture: Capture) -> None:
        self.state.captures.remove(capture)
        for stream in self.state.streams.values():
            if stream.capture is capture:
                stream.capture = None

    @cuda_call("cudaStreamIsCapturing")
    def stream_is_capturing(self, stream: int) -> CaptureStatus:
        on = self.state.stream(stream)
        self.state.refuse_implicit(on, "cudaStreamIsCapturing", kill=False)
        return CaptureStatus.NONE if on.capture is None else on.capture.status

    @cuda_call("cudaStreamGetCaptureInfo")
    def stream_get_capture_info(self, stream: int) -> CaptureInfo:
        on = self.state.stream(stream)
        self.state.refuse_implicit(on, "cudaStreamGetCaptureInfo", kill=False)
        capture = on.capture
        if capture is None:
            return CaptureInfo(CaptureStatus.NONE, 0, 0, ())
        if capture.status is not CaptureStatus.ACTIVE:
            return CaptureInfo(capture.status, 0, 0, ())
        nodes = tuple(node.handle for node in capture.frontier.get(on, ()))
        return CaptureInfo(capture.status, capture.id, capture.graph.handle, nodes)

    @cuda_call("cudaStreamUpdateCaptureDependencies")
    def stream_update_capture_dependencies(self, stream: int, dependencies: Sequence[int]) -> None:
        on = self.state.stream(stream)
        capture = on.capture
        if capture is None or capture.status is not CaptureStatus.ACTIVE:
            raise Refused(Code.ILLEGAL_STATE, "the stream does not capture")
        nodes = [self.state.node(handle) for handle in dependencies]
        if any(node.graph is not capture.graph for node in nodes):
            raise Refused(Code.INVALID_VALUE, "a dependency is no node of the captured graph")
        capture.frontier[on] = nodes

    @cuda_call("cudaThreadExchangeStreamCaptureMode")
    def thread_exchange_stream_capture_mode(self, mode: CaptureMode) -> CaptureMode:
        before = self.state.thread_mode
        self.state.thread.mode = CaptureMode(mode)
        return before
