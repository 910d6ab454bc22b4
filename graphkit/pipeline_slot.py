"""One slot of a pipeline: buffers, a stream, and the exec that a request is one launch of."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Container, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphkit.device_array import DeviceArray, empty_pinned, zeros
from graphkit.errors import CudaError, GraphkitError
from graphkit.frameworks import PrivateMemory
from graphkit.host_port import HostPort
from graphkit.lifetime import thread_captures
from graphkit.pipeline_copies import Copies, add_fetch, add_send, by_kernel
from graphkit.pipeline_function import PipelineFunction
from graphkit.runtime.protocol import MemcpyKind, MemcpyNodeParams, Runtime
from graphkit.stream import Stream

__all__ = ["PipelineSlot", "check_timeout", "values_of"]

# Looks at the signal before the thread sleeps in CUDA, where it wakes later but lets others run.
_LOOKS = 200
_LOOKS_PER_QUERY = 1000
_NAP_SECONDS = 20e-6
_LINE = 16  # words of 8 bytes: what host and device write shall not share a cache line
# There a load is never done before an earlier one, so that a result is seen behind its signal.
_ORDERED_LOADS = platform.machine().lower() in ("x86_64", "amd64")


class PipelineSlot:
    """One of a pipeline's slots; whoever took it from the ring has it alone until it is back.

    Args:
        function: what the requests do.
        ports: all arrays that the function is given, by name.
        copied: which of them are inputs, or outputs that are known beforehand.
        copies: who copies.
        runtime: the pipeline's runtime.

    Attributes:
        inputs: pinned buffers of the inputs by name.
        outputs: pinned buffers of the outputs by name.
        ports: inputs and outputs by name.
        fetched: of each output by name the port and the address on the device.
        number: of the last request, from 1 on.
        launched: of the last request that was launched: what others may wait for.
        signal: the number of the last request that is done is its first word, as the device wrote
            it.
        held: by place among the ports where the exec copies from or to, 0 for the slot's own
            buffer; None while that changes.
        move: likewise what moves it to an address.
        own: likewise the address of the slot's own buffer.
        by_signal: whether the signal says it all: not on the simulator, where work goes on only
            when somebody asks, nor where a result might be read before its signal.
        launch: launches the exec on the slot's stream (cudaGraphLaunch).
        errors: what requests failed of, by their numbers: of the last one at least. Each request
            keeps the dict that was there when it began.
        kept: arrays of the request under way.
        writer: the thread that fills the buffers now, 0 for none.
    """

    def __init__(
        self,
        function: PipelineFunction,
        ports: Mapping[str, HostPort],
        copied: Container[str],
        copies: Copies,
        runtime: Runtime,
    ) -> None:
        self.number = self.launched = 0
        self.errors: dict[int, BaseException] = {}
        self.kept: object = None
        self.writer = 0
        self.held: list[int | None] = []
        self.move: list[Callable[[int], object]] = []
        self.own: list[int] = []
        self._runtime = runtime
        # The stream must not be destroyed while another thread asks about it.
        self._asking = threading.Condition()
        self._askers, self._closed = 0, False
        self._cleanup = ExitStack()
        with ExitStack() as unfinished:
            unfinished.push(self._cleanup.__exit__)
            self._stream = Stream(runtime=runtime)
            self._cleanup.callback(self._stream.close)
            self._memory = PrivateMemory(runtime=runtime)
            self._cleanup.callback(self._memory.close)
            arrays = {name: _device_array(port, runtime) for name, port in ports.items()}
            self._graph, returned = function.graph(arrays, self._stream, self._memory)
            self._cleanup.callback(self._graph.close)
            self.ports = {name: port for name, port in ports.items() if name in copied}
            self.fetched = returned or {
                name: (port, arrays[name].ptr)
                for name, port in self.ports.items()
                if not port.is_input
            }
            self.ports.update({name: port for name, (port, _) in self.fetched.items()})
            self.inputs = {p.name: p.empty() for p in self.ports.values() if p.is_input}
            self.outputs = {p.name: p.empty() for p in self.ports.values() if not p.is_input}
            self._control = empty_pinned(_LINE * (2 + len(self.ports) // _LINE + 1), np.uint64)
            self._control[:] = 0
            self._dropped = empty_pinned(1, np.uint64)
            self._arrived, self._count = zeros(1, np.uint32), zeros(1, np.uint64)
            self._targets = zeros(len(self.fetched), np.uint64)
            moving = self._add_copies(arrays, copies)
            self._exec = self._graph.instantiate(upload_stream=self._stream)
            self._cleanup.callback(self._exec.close)
            self._bind(moving)
            self.launch = self._exec.launcher(self._stream)
            self._stream.synchronize()
            unfinished.pop_all()
        self.signal = self._control.data[:1]
        self._handle = self._stream.ptr
        self._looks = 0
        self.by_signal = runtime.name == "cuda" and _ORDERED_LOADS

    # --- the graph -------------------------------------------------------------------------------

    def _word(self, place: int) -> int:
        """Return the address of a word that the host writes: where a port is moved to."""
        return int(self._control.ctypes.data) + 8 * (_LINE + place)

    def _add_copies(
        self,
        arrays: dict[str, DeviceArray],
        copies: Copies,
    ) -> list[tuple[str, Any, MemcpyNodeParams]]:
        """Add the copies around what the graph holds; return the memcpy nodes to be moved."""
        graph = self._graph
        nodes, edges = graph.nodes, graph.edges
        waiting, ahead = (
            {edge.to_node.ptr for edge in edges},
            {edge.from_node.ptr for edge in edges},
        )
        heads = [node for node in nodes if node.ptr not in waiting]
        tails = [node for node in nodes if node.ptr not in ahead]
        moving: list[tuple[str, Any, MemcpyNodeParams]] = []
        sent, last = [], []
        places = {name: place for place, name in enumerate(self.ports)}
        first = len(self.inputs)  # the results' places are behind those of the inputs
        wanted = any(by_kernel(copies, port.nbytes) for port, _ in self.fetched.values())
        brought: dict[str, int] = {}  # the words that the first send brings to the device
        if wanted:
            brought = {
                "targets": self._word(first),
                "kept": self._targets.ptr,
                "count": len(self.fetched),
            }
        on_device = False
        for name, buffer in self.inputs.items():
            to = arrays[name]
            if by_kernel(copies, to.nbytes):
                sent.append(add_send(graph, self._word(places[name]), to, **brought))
                on_device, brought = on_device or wanted, {}
            else:
                params = _copy(to.ptr, buffer.ctypes.data, to.nbytes, MemcpyKind.HOST_TO_DEVICE)
                sent.append(graph.add_memcpy_node(to, buffer))
                moving.append((name, sent[-1], params))
        for node in sent:
            for head in heads:
                graph.add_dependency(node, head)
        before = tails or sent
        alone = len(self.fetched) == 1
        end = {
            "number": self._count.ptr,
            "signal": int(self._control.ctypes.data),
            "arrived": self._arrived.ptr,
        }
        told = False
        for name, (port, address) in self.fetched.items():
            if by_kernel(copies, port.nbytes):
                word = self._word(places[name])
                if on_device:
                    word = self._targets.ptr + 8 * (places[name] - first)
                told = alone
                signal = end if alone else {"arrived": self._arrived.ptr}
                last.append(add_fetch(graph, address, word, port.nbytes, before, **signal))
            else:
                host = int(self.outputs[name].ctypes.data)
                params = _copy(host, address, port.nbytes, MemcpyKind.DEFAULT)
                last.append(graph.add_memcpy_node(host, address, nbytes=port.nbytes, deps=before))
                moving.append((name, last[-1], params))
        if not told:
            add_fetch(graph, 0, 0, 0, last, **end)
        words = self._control, self._arrived, self._count, self._targets
        graph.owners.extend((*words, arrays, self.inputs, self.outputs))
        return moving

    def _bind(self, moving: list[tuple[str, Any, MemcpyNodeParams]]) -> None:
        """Find for each port what moves it: a store, or a call (...MemcpyNodeSetParams1D)."""
        make, exe = self._runtime.memcpy_node_setter, self._exec.ptr
        setters = {
            name: make(exe, node.ptr, params, moves_dst=not self.ports[name].is_input)
            for name, node, params in moving
        }
        store = self._control.data.__setitem__
        buffers = {**self.inputs, **self.outputs}
        for place, name in enumerate(self.ports):
            own = int(buffers[name].ctypes.data)
            if name not in setters:
                store(_LINE + place, own)
            self.move.append(setters.get(name) or partial(store, _LINE + place))
            self.own.append(own)
            self.held.append(0)

    # --- requests --------------------------------------------------------------------------------

    def begin(self, addresses: list[int], kept: object) -> int:
        """Launch the exec for a request, and return its number.

        Args:
            addresses: by place where to copy from or to, 0 for the slot's own buffers.
            kept: what must stay alive until the request is done.
        """
        if addresses != self.held:
            self._move(addresses)
        number = self.number + 1
        earlier = self.kept
        if self.errors:
            self.errors = {}
        # Before the launch: who copies an earlier result meanwhile sees that it may be overwritten.
        self.number, self.kept = number, kept
        try:
            self.launch()
        except Exception:
            # Not for an interrupt, which may come out of a launch that was made.
            self.number, self.kept = number - 1, earlier
            raise
        self.launched = number
        return number

    def _move(self, addresses: list[int]) -> None:
        held = self.held
        for place, address in enumerate(addresses):
            if held[place] != address:
                held[place] = None  # whatever breaks this off, the next request does it again
                self.move[place](address or self.own[place])
                held[place] = address

    def done(self, number: int) -> bool:
        """Return whether a request is done, be it with an error."""
        if self.by_signal:
            if self.signal[0] >= number:
                return True
            self._looks += 1
            if self._looks % _LOOKS_PER_QUERY:
                return number in self.errors
        if not thread_captures():
            self._query(number)
        return self.signal[0] >= number or number in self.errors

    def _query(self, number: int) -> bool:
        """Ask CUDA whether a request is done (cudaStreamQuery), and note what it failed of.

        The simulator gets on by this alone, and a device that is lost will signal nothing.
        """
        return self._ask(self._runtime.stream_query, number)

    def _ask(self, call: Callable[[int], bool | None], number: int) -> bool:
        """Ask CUDA about the stream, unless it is closed: then every request is done."""
        with self._asking:
            if self._closed:
                return True
            self._askers += 1
        try:
            if call(self._handle) is False:
                return False
            self._expect_signal(number)
        except Exception as error:
            self._note(error)
        finally:
            with self._asking:
                self._askers -= 1
                self._asking.notify_all()
        return True

    def _expect_signal(self, number: int) -> None:
        """Note an error where a request is over and has not signalled its end."""
        if self.signal[0] < number and number not in self.errors:
            self._note(GraphkitError("the request was dropped: its launch failed"))

    def _note(self, error: Exception) -> None:
        """Note what the last request failed of: whoever came before it is done."""
        # Without this frame, which refers to the slot: no cycle.
        traceback = error.__traceback__
        number = self.number
        self.errors[number] = error.with_traceback(traceback.tb_next if traceback else None)
        # What was dropped counted nothing: the next request is to signal the number behind it. On
        # this stream alone, since others may capture, or have failed requests of their own.
        self._dropped[0] = number
        source, to_device = int(self._dropped.ctypes.data), MemcpyKind.HOST_TO_DEVICE
        with suppress(CudaError):  # where the device is lost, nothing is counted any more
            self._runtime.memcpy_async(self._count.ptr, source, 8, to_device, self._handle)

    def wait(self, number: int, timeout: float | None) -> bool:
        """Wait until a request is done; return False when the time is over before.

        Looks at the signal for some microseconds, then lets CUDA wait (cudaStreamSynchronize), or
        with a timeout sleeps and asks it in between (cudaStreamQuery).

        Raises:
            ValueError: while this thread captures, when it is not done yet.
        """
        signal = self.signal
        if self.by_signal:
            for _ in range(_LOOKS):
                if signal[0] >= number:
                    return True
        if number in self.errors:
            return True
        if thread_captures():
            raise ValueError(
                "pipeline: expected no live capture of this thread, came one that waiting for a "
                "request would kill"
            )
        if timeout is not None:
            return self._wait_until(number, time.monotonic() + timeout)
        return self._ask(self._runtime.stream_synchronize, number)

    def _wait_until(self, number: int, deadline: float) -> bool:
        while not self._query(number):
            if time.monotonic() >= deadline:
                return False
            if self.by_signal:
                time.sleep(_NAP_SECONDS)
        return True

    def close(self) -> None:
        """Give everything back but what the last request has left; the requests must be done."""
        self.kept = None
        self.inputs = {}
        self.move.clear()
        self.launch = _refuse_launch
        # What is asked of it from now on: every request is done.
        self.by_signal = True
        self.signal = np.array((self.number,), np.uint64).data
        with self._asking:
            self._closed = True
            self._asking.wait_for(lambda: not self._askers)
        self._cleanup.close()
        del self._graph, self._exec, self._memory, self._arrived, self._count
        del self._control, self._targets, self._dropped


def _refuse_launch() -> None:
    raise ValueError("pipeline: expected an open one, came a closed one")


def _device_array(port: HostPort, runtime: Runtime) -> DeviceArray:
    array = DeviceArray(port.shape, port.dtype, runtime=runtime)
    # The warm-ups and what they choose by values shall not depend on what was there.
    runtime.memset_async(array.ptr, 0, array.nbytes, 0)
    runtime.stream_synchronize(0)
    return array


def _copy(dst: int, src: int, nbytes: int, kind: MemcpyKind) -> MemcpyNodeParams:
    return MemcpyNodeParams(dst, nbytes, 1, src, nbytes, 1, nbytes, 1, 1, kind)


def check_timeout(timeout: object) -> None:
    """Refuse what is no time to wait for at most.

    Raises:
        TypeError, ValueError: unless it is None or 0 seconds or more.
    """
    if timeout is None:
        return
    if not isinstance(timeout, (int, float, np.integer, np.floating)) or isinstance(timeout, bool):
        raise TypeError(f"timeout: expected seconds or None, came {type(timeout).__name__}")
    if not timeout >= 0:
        raise ValueError(f"timeout: expected 0 seconds or more, came {timeout}")
    try:
        float(timeout)
    except OverflowError:
        raise ValueError("timeout: expected what a float can hold, or None, came more") from None


def values_of(buffers: dict[str, NDArray[Any]]) -> Any:
    """Return a request's results as users get them: the array where there is one, else a dict."""
    if len(buffers) == 1:
        return next(iter(buffers.values()))
    return dict(buffers)
