"""The function of a pipeline: makes the graph between the copies, by capture or by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from graphkit.arrays import describe, is_array
from graphkit.device_array import DeviceArray
from graphkit.forensics import capture_call
from graphkit.frameworks import PrivateMemory, current_stream, view_like
from graphkit.graph import Graph
from graphkit.host_port import HostPort, check_port_name
from graphkit.runtime.protocol import Runtime
from graphkit.stream import Stream
from graphkit.user_function import UserFunction

__all__ = ["PipelineFunction"]

RESULT = "result"  # the name of the one array that a function returns

Fetched = dict[str, tuple[HostPort, int]]


class PipelineFunction:
    """What the requests of a pipeline do between the copies.

    Args:
        fn: launches work on the current stream, which is captured; with a parameter ``graph`` it
            adds nodes to that graph instead.
        ports: the inputs, the outputs where they are named, and what it works in.
        outputs_named: whether outputs are among the ports; else the function returns them.
        warmups: eager runs before a capture.
        runtime: the pipeline's runtime.

    Raises:
        TypeError: when the function does not take these arrays.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        ports: Mapping[str, HostPort],
        *,
        outputs_named: bool,
        warmups: int,
        runtime: Runtime,
    ) -> None:
        self._function = UserFunction(fn)
        self._ports = ports
        self._outputs_named = outputs_named
        self._warmups = warmups
        self._runtime = runtime
        self._adds_nodes = "graph" in _parameters(fn)
        given: dict[str, object] = dict.fromkeys(ports)
        self._function.check(given | {"graph": None} if self._adds_nodes else given)

    def graph(
        self, arrays: Mapping[str, DeviceArray], stream: Stream, memory: PrivateMemory
    ) -> tuple[Graph, Fetched | None]:
        """Make the graph of one slot.

        Args:
            arrays: the slot's device memory by port.
            stream: the slot's stream, for warm-ups and the capture.
            memory: where CuPy and PyTorch allocate meanwhile.

        Returns:
            The graph, and the outputs that the function returned: port and device address by name;
            None where they are named.

        Raises:
            CaptureError: when the capture died.
            Exception: whatever the function raised.
        """
        given = {
            name: array if port.example is None else view_like(port.example, array)
            for (name, port), array in zip(self._ports.items(), arrays.values(), strict=True)
        }
        if self._adds_nodes:
            graph = Graph(runtime=self._runtime)
            try:
                value = self._function({**given, "graph": graph}, stream)
                return graph, self._fetched(graph, value)
            except BaseException:
                graph.close()
                raise
        for number in range(self._warmups):
            # What libraries keep for good, made by the first run, belongs to no graph.
            with memory.allocating() if number else nullcontext():
                self._function(given, stream)
            stream.synchronize()
        with memory.allocating(stream), current_stream(stream):
            graph, value = capture_call(lambda: self._function(given, stream), stream)
        try:
            return graph, self._fetched(graph, value)
        except BaseException:
            graph.close()
            raise

    def _fetched(self, graph: Graph, value: Any) -> Fetched | None:
        if self._outputs_named:
            return None
        named = {RESULT: value} if is_array(value) else value
        if not isinstance(named, dict) or not named:
            raise TypeError(
                "fn: expected it to return an array or a dict of arrays, since no outputs are "
                f"named, came {type(value).__name__}"
            )
        fetched: Fetched = {}
        for name, array in named.items():
            check_port_name("fn", name)
            if name in self._ports:
                raise ValueError(f"fn: expected outputs of names of their own, came {name!r} twice")
            info = describe(array, name)
            if info.on_host or not info.contiguous:
                where = "on the host" if info.on_host else f"with strides {info.strides}"
                raise TypeError(
                    f"{name}: expected a device array without gaps from fn, came one {where}"
                )
            port = HostPort(name, info.shape, info.dtype, self._runtime, is_input=False)
            fetched[port.name] = port, info.ptr
        graph.owners.append(value)
        return fetched


def _parameters(fn: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(fn).parameters
    except (TypeError, ValueError):  # no function, or one of C that does not say
        return {}
