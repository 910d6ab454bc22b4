"""Bad input gets a clear error, and nothing is lost: one look at each line of that promise.

What belongs to one object is tested with it, failed captures in test_capture.py, the want of a
driver in test_runtime_selection.py, checkpoints and prompts in llama/. Here each mistake is made
against a program that works, and the program must work on.
"""

from __future__ import annotations

import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, AXPY

import graphkit as gk
from graphkit.device_array import DeviceArray
from graphkit.frameworks import PrivateMemory

N = 8


class Program:
    """A graph, its exec, and what they work on."""

    def __init__(self, stream):
        self.stream = stream
        self.x = gk.asarray(np.arange(N, dtype=np.float32))
        self.y = gk.zeros(N)
        self.freed = gk.zeros(N)
        self.freed.free()
        self.graph = gk.Graph()
        self.node = self.graph.add_kernel_node(ADD_SCALAR, 1, 32, (self.x, self.y, 1.0, N))
        self.exe = self.graph.instantiate()
        self.closed = self.graph.instantiate()
        self.closed.close()
        self.other = gk.Graph()
        self.theirs = self.other.add_kernel_node(AXPY, 1, 32, (self.x, self.y, 1.0, N))
        self.other.add_kernel_node(AXPY, 1, 32, (self.x, self.y, 1.0, N), deps=self.theirs)

    def add(self, *args, grid=1, **kwargs):
        self.graph.add_kernel_node(ADD_SCALAR, grid, 32, args, **kwargs)

    def works(self):
        self.y.set(np.zeros(N))
        self.exe.launch(self.stream)
        self.stream.synchronize()
        assert np.array_equal(self.y.get(), np.arange(N) + 1)
        assert self.stream.runtime.get_last_error() == 0
        return len(self.graph.nodes) == 1


def close_a_cycle(p):
    second = p.other.nodes[1]
    try:
        p.other.add_dependency(second, p.theirs)
        p.other.instantiate()
    finally:
        if len(p.other.edges) == 2:
            p.other.remove_dependency(second, p.theirs)


MISTAKES = {
    "launch a closed exec": (
        lambda p: p.closed.launch(p.stream),
        ValueError,
        "exec: expected a live one, came a closed one",
    ),
    "change a node of another graph": (
        lambda p: p.exe.set_kernel_node_params(p.theirs, args={"a": 1.0}),
        ValueError,
        "node: expected a node of the graph this exec was made from",
    ),
    "wait for a node of another graph": (
        lambda p: p.add(p.x, p.y, 1.0, N, deps=p.theirs),
        ValueError,
        "deps: expected a node of this graph",
    ),
    "an argument too many": (
        lambda p: p.add(p.x, p.y, 1.0, N, 0),
        TypeError,
        r"args: expected 4 arguments \(x, y, a, n\), came 5",
    ),
    "an argument too few": (
        lambda p: p.add(p.x, p.y, 1.0),
        TypeError,
        r"args: expected 4 arguments \(x, y, a, n\), came 3",
    ),
    "an argument of the wrong size": (
        lambda p: p.add(p.x, p.y, np.float64(1), N),
        TypeError,
        "a: expected a scalar of float32, came float64",
    ),
    "an array of the wrong dtype": (
        lambda p: p.add(gk.zeros(N, np.float64), p.y, 1.0, N),
        TypeError,
        "x: expected an array of float32, came float64",
    ),
    "a grid of zero": (
        lambda p: p.add(p.x, p.y, 1.0, N, grid=0),
        ValueError,
        "grid: expected extents of 1 to",
    ),
    "a grid of zero, later": (
        lambda p: p.exe.set_kernel_node_params(p.node, grid=(1, 0)),
        ValueError,
        "grid: expected extents of 1 to",
    ),
    "a host array for a device array": (
        lambda p: p.add(np.zeros(N, np.float32), p.y, 1.0, N),
        TypeError,
        r"x: expected an array in device memory, came ndarray on the host; copy it with",
    ),
    "a host array to fill": (
        lambda p: p.graph.add_memset_node(np.zeros(N), 0),
        TypeError,
        "dst: expected an array in device memory, came ndarray on the host",
    ),
    "a device array for a number": (
        lambda p: p.add(p.x, p.y, p.x, N),
        TypeError,
        "a: expected a scalar for `float32 a`, came an array",
    ),
    "a device array for values": (
        lambda p: p.y.set(p.x),
        TypeError,
        r"expected values on the host, came a DeviceArray; its get\(\) copies them",
    ),
    "a device array to copy to the device": (
        lambda p: gk.asarray(p.x),
        TypeError,
        "expected values on the host, came a DeviceArray",
    ),
    "a freed array as an argument": (
        lambda p: p.add(p.freed, p.y, 1.0, N),
        ValueError,
        "expected live device memory, came a freed DeviceArray",
    ),
    "a freed array to copy": (
        lambda p: p.graph.add_memcpy_node(p.y, p.freed),
        ValueError,
        "came a freed DeviceArray",
    ),
    "a freed array to launch on": (
        lambda p: ADD_SCALAR(1, 32, (p.x, p.freed, 1.0, N), stream=p.stream),
        ValueError,
        "came a freed DeviceArray",
    ),
    "a freed array, later": (
        lambda p: p.exe.set_kernel_node_params(p.node, args={"y": p.freed}),
        ValueError,
        "came a freed DeviceArray",
    ),
    "a cycle": (close_a_cycle, gk.CudaError, "cudaErrorInvalidValue"),
    "a launch on no stream": (
        lambda p: p.exe.launch(None),
        TypeError,
        "stream: expected a graphkit, CuPy",
    ),
    "a launch on an impossible stream": (
        lambda p: p.exe.launch(-1),
        ValueError,
        "stream: expected a cudaStream_t, came -1",
    ),
    "a list of nodes for a node": (
        lambda p: p.exe.set_kernel_node_params(p.graph.nodes, args={"a": 1.0}),
        TypeError,
        "node: expected a Node, came list",
    ),
    "the name of a kernel for a kernel": (
        lambda p: p.exe.set_kernel_node_params(p.node, kernel="axpy", args=(p.x, p.y, 1.0, N)),
        TypeError,
        "kernel: expected a Kernel, came str",
    ),
    "an update with an exec": (
        lambda p: p.exe.update(p.exe),
        TypeError,
        "graph: expected a Graph, came GraphExec",
    ),
    "no shared memory at all": (
        lambda p: p.add(p.x, p.y, 1.0, N, shared_mem=None),
        TypeError,
        "shared_mem: expected bytes as an int, came NoneType",
    ),
    "more shared memory than 32 bits count": (
        lambda p: p.add(p.x, p.y, 1.0, N, shared_mem=2**32),
        ValueError,
        "shared_mem: expected 0 or more bytes",
    ),
    "a priority that is none": (
        lambda p: p.add(p.x, p.y, 1.0, N, priority=float("nan")),
        TypeError,
        "priority: expected an int, came nan",
    ),
    "a priority out of range": (
        lambda p: gk.Stream(priority=2**31),
        ValueError,
        "priority: expected a number of 32 bits",
    ),
    "an event that is a stream": (
        lambda p: p.stream.record(p.stream),
        TypeError,
        "event: expected an Event, came Stream",
    ),
    "another topology": (
        lambda p: p.exe.update(p.other, strict=True),
        gk.GraphUpdateError,
        "topology_changed",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_and_costs_nothing(runtime, stream, mistake):
    make, error, message = MISTAKES[mistake]
    program = Program(stream)
    before = gk.live_handles()
    with pytest.raises(error, match=message):
        make(program)
    assert gk.live_handles() == before
    assert program.works()


def test_errors_of_cuda_say_what_happened_why_and_what_to_do(stream):
    with pytest.raises(gk.CudaError) as caught:
        close_a_cycle(Program(stream))
    text = str(caught.value)
    assert text.startswith(f"{caught.value.call} returned 1 cudaErrorInvalidValue: ")
    assert "usual cause:" in text
    assert "fix:" in text


def test_a_constructor_that_fails_creates_nothing(runtime, stream):
    for make in (
        lambda: gk.empty(1 << 50, np.uint8),
        lambda: gk.Graph.adopt(None),
        lambda: gk.capture(0).__enter__(),
        lambda: gk.Kernel("", "absent"),
        lambda: gk.HostCallback(None),
    ):
        before = gk.live_handles()
        with pytest.raises((TypeError, ValueError, gk.CudaError)):
            make()
        assert gk.live_handles() == before


@pytest.mark.parametrize("given", ["sim", 5, True, type])
def test_an_argument_that_is_no_runtime(runtime, given):
    kernel = gk.Kernel('extern "C" __global__ void k() {}', "k", twin=lambda launch: None)
    for make in (
        lambda: gk.probe(given),
        lambda: DeviceArray(1, runtime=given),
        lambda: PrivateMemory(runtime=given),
        lambda: gk.capture(0, runtime=given),
        lambda: kernel.function(given),
        lambda: gk.Kernel.wrap(kernel.function(), runtime=given),
        lambda: gk.Stream(runtime=given),
        lambda: gk.Event(runtime=given),
        lambda: gk.Graph(runtime=given),
        lambda: gk.Graph.adopt(1, runtime=given),
        lambda: gk.fork(0, 1, runtime=given),
        lambda: gk.trim_graph_memory(runtime=given),
    ):
        with pytest.raises(TypeError, match=r"^runtime: expected what graphkit\.use\(\) returned"):
            make()
    assert kernel.function(runtime) == kernel.function()
