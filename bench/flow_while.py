"""Loops of bench/flow.py: a while node beside launching the body and looking at its flag.

The body is a line of one-thread kernels, the last of which counts and says whether to go on. All
contenders make ITERATIONS iterations; a sample is one iteration's share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flow_setting import OWN, Case, FlowCall, FlowSetting, Maker, WrongResultError

ITERATIONS = 100
KERNELS = (1, 10, 100)

WHAT = "an iteration of a loop"
BY_FLAG = f"{OWN} while_(flag)"
BY_HANDLE = f"{OWN} while_(handle)"
BY_HAND = "cuda.bindings while node"
COPY_INSIDE = f"{OWN} launch with the copy in it, wait, look"
COPY_BEHIND = f"{OWN} launch, copy, wait, look"
LOOK = "cuda.bindings launch, copy, wait, look"

_SOURCE = r"""
extern "C" __device__ __cudart_builtin__ void cudaGraphSetConditional(
    cudaGraphConditionalHandle handle, unsigned int value);

extern "C" __global__ void visit(int* seen) {
    *seen += 1;
}

extern "C" __global__ void step(int* counter, int* flag, int iterations) {
    *counter += 1;
    *flag = *counter % iterations != 0;
}

extern "C" __global__ void step_handle(
    int* counter, cudaGraphConditionalHandle handle, int iterations) {
    *counter += 1;
    cudaGraphSetConditional(handle, *counter % iterations != 0);
}

extern "C" __global__ void begin(int* flag) {
    *flag = 1;
}
"""


def _visit(launch: Any, seen: Any) -> None:
    seen.view(1)[0] += 1


def _step(launch: Any, counter: Any, flag: Any, iterations: Any) -> None:
    counter.view(1)[0] += 1
    flag.view(1)[0] = counter.view(1)[0] % iterations != 0


def _step_handle(launch: Any, counter: Any, handle: Any, iterations: Any) -> None:
    counter.view(1)[0] += 1
    launch.set_conditional(handle, counter.view(1)[0] % iterations != 0)


def _begin(launch: Any, flag: Any) -> None:
    flag.view(1)[0] = 1


class Loops:
    """The contenders of one case: bodies of so many kernels."""

    def __init__(self, setting: FlowSetting, kernels: int, iterations: int = ITERATIONS) -> None:
        self.setting = setting
        self.kernels = kernels
        self.iterations = iterations
        gk = self.gk = setting.gk
        self.visit = gk.Kernel(_SOURCE, "visit", twin=_visit)
        self.step = gk.Kernel(_SOURCE, "step", twin=_step)
        self.step_handle = gk.Kernel(_SOURCE, "step_handle", twin=_step_handle)
        self.begin = gk.Kernel(_SOURCE, "begin", twin=_begin)
        self.seen, self.counter, self.flag = (gk.zeros(1, np.int32) for _ in range(3))
        self.host = gk.empty_pinned(1, np.int32)

    def makers(self) -> Sequence[Maker]:
        """Return how to make each contender."""
        return (
            (BY_FLAG, self.by_flag),
            (BY_HANDLE, self.by_handle),
            (BY_HAND, self.by_hand),
            (COPY_INSIDE, self.copy_inside),
            (COPY_BEHIND, self.copy_behind),
            (LOOK, self.look),
        )

    def _verify(self, once: Callable[[], None]) -> None:
        before = [int(array.get()[0]) for array in (self.counter, self.seen)]
        once()
        once()
        after = [int(array.get()[0]) for array in (self.counter, self.seen)]
        came = tuple(b - a for a, b in zip(before, after, strict=True))
        expected = (2 * self.iterations, 2 * self.iterations * (self.kernels - 1))
        if came != expected:
            raise WrongResultError(f"expected {expected} counted by two loops, came {came}")

    def _call(self, name: str, statement: str, **names: Any) -> FlowCall:
        return FlowCall(name, statement, names, self._verify, self.iterations)

    def _fill(self, body: Any, last: Any, args: tuple[Any, ...]) -> Any:
        """Add the kernels of the body, each behind the one before; return the last node."""
        node: Any = ()
        for _ in range(self.kernels - 1):
            node = body.add_kernel_node(self.visit, 1, 1, (self.seen,), deps=node)
        return body.add_kernel_node(last, 1, 1, args, deps=node)

    def _instantiate(self, graph: Any) -> Any:
        exe = graph.instantiate()
        self.setting.cleanup.callback(graph.close)
        self.setting.cleanup.callback(exe.close)
        return exe

    # --- while nodes

    def by_flag(self) -> FlowCall:
        """The shipped kernel looks at a device integer."""
        graph = self.gk.Graph()
        ahead = graph.add_kernel_node(self.begin, 1, 1, (self.flag,))
        with graph.while_(self.flag, deps=ahead) as body:
            self._fill(body, self.step, (self.counter, self.flag, self.iterations))
        exe = self._instantiate(graph)
        return self._call(BY_FLAG, "go()", go=exe.launcher(self.setting.stream))

    def by_handle(self) -> FlowCall:
        """The body's last kernel sets the condition itself."""
        graph = self.gk.Graph()
        handle = graph.conditional_handle(default=1)
        with graph.while_(handle) as body:
            self._fill(body, self.step_handle, (self.counter, handle, self.iterations))
        exe = self._instantiate(graph)
        return self._call(BY_HANDLE, "go()", go=exe.launcher(self.setting.stream))

    def by_hand(self) -> FlowCall:
        """The same as `by_handle` by calls of the driver API."""
        driver, checked = self.setting.bindings("driver"), _checked
        graph, context = checked(driver.cuGraphCreate(0)), checked(driver.cuCtxGetCurrent())
        self.setting.cleanup.callback(driver.cuGraphDestroy, graph)
        handle = checked(driver.cuGraphConditionalHandleCreate(graph, context, 1, 1))
        params = driver.CUgraphNodeParams()
        params.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
        conditional = params.conditional
        conditional.handle, conditional.size, conditional.ctx = handle, 1, context
        conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_WHILE
        add_node = getattr(driver, "cuGraphAddNode_v2", driver.cuGraphAddNode)
        checked(add_node(graph, None, None, 0, params))
        body = params.conditional.phGraph_out[0]
        before: list[Any] = []
        lines: list[tuple[Any, tuple[Any, ...]]] = [(self.visit, (self.seen,))] * (self.kernels - 1)
        lines.append((self.step_handle, (self.counter, int(handle), self.iterations)))
        for kernel, args in lines:
            kernel_params = driver.CUDA_KERNEL_NODE_PARAMS()
            kernel_params.func = driver.CUfunction(kernel.function())
            for axis in "XYZ":
                setattr(kernel_params, f"gridDim{axis}", 1)
                setattr(kernel_params, f"blockDim{axis}", 1)
            kernel_params.kernelParams = kernel.pack(args)[0]
            added = driver.cuGraphAddKernelNode(body, before or None, len(before), kernel_params)
            before = [checked(added)]
        exe = checked(driver.cuGraphInstantiate(graph, 0))
        self.setting.cleanup.callback(driver.cuGraphExecDestroy, exe)
        stream = driver.CUstream(self.setting.stream.ptr)
        return self._call(
            BY_HAND, "launch(exe, stream)", launch=driver.cuGraphLaunch, exe=exe, stream=stream
        )

    # --- launching the body, and looking

    def _body(self, *, copy: bool) -> Any:
        graph = self.gk.Graph()
        last = self._fill(graph, self.step, (self.counter, self.flag, self.iterations))
        if copy:
            graph.add_memcpy_node(self.host, self.flag, deps=last)
        return self._instantiate(graph)

    def copy_inside(self) -> FlowCall:
        """The graph of the body ends in the copy of the flag."""
        exe = self._body(copy=True)
        return self._call(
            COPY_INSIDE,
            "while True:\n    go()\n    wait()\n    if not host[0]:\n        break",
            go=exe.launcher(self.setting.stream),
            wait=self.setting.stream.synchronize,
            host=memoryview(self.host),
        )

    def copy_behind(self) -> FlowCall:
        """The flag is copied behind each launch."""
        exe = self._body(copy=False)
        return self._call(
            COPY_BEHIND,
            "while True:\n    go()\n    copy(pinned, flag, stream)\n    wait()\n"
            "    if not host[0]:\n        break",
            go=exe.launcher(self.setting.stream),
            copy=self.gk.memcpy_async,
            pinned=self.host,
            flag=self.flag,
            stream=self.setting.stream,
            wait=self.setting.stream.synchronize,
            host=memoryview(self.host),
        )

    def look(self) -> FlowCall:
        """The same by calls of the runtime API."""
        runtime = self.setting.bindings("runtime")
        exe = self._body(copy=False)
        return self._call(
            LOOK,
            "while True:\n    launch(exe, stream)\n    copy(pinned, flag, 4, kind, stream)\n"
            "    wait(stream)\n    if not host[0]:\n        break",
            launch=runtime.cudaGraphLaunch,
            exe=runtime.cudaGraphExec_t(exe.ptr),
            stream=runtime.cudaStream_t(self.setting.stream.ptr),
            copy=runtime.cudaMemcpyAsync,
            pinned=self.host.ctypes.data,
            flag=self.flag.ptr,
            kind=runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost,
            wait=runtime.cudaStreamSynchronize,
            host=memoryview(self.host),
        )


def _checked(answer: tuple[Any, ...]) -> Any:
    if int(answer[0]) != 0:
        raise RuntimeError(f"CUDA answered {answer[0]!r}")
    return answer[1] if len(answer) == 2 else answer[1:] or None


def _case(kernels: int) -> Case:
    size = f"{kernels} kernel{'s' if kernels > 1 else ''}"
    return Case(WHAT, size, lambda setting: Loops(setting, kernels).makers(), baseline=LOOK)


CASES = tuple(map(_case, KERNELS))
