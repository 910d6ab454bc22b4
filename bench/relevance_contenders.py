"""The contenders of bench/relevance.py: one graph, the same kernels one by one, and PyTorch.

Peers are written as their users would at their best: what can be made beforehand is. All launch on
one stream. graphkit's contenders write the same memory, which is wiped before each verification.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from exec_pool_setting import OWN, Setting, UnavailableError
from graphkit.kernels.relevance import RelevancePipeline, relevance_graph
from launch_setting import checked
from rebind_setting import Call
from relevance_reference import (
    INHIBITION,
    LEAST,
    MOST,
    PATCH,
    SATURATION,
    TOTAL,
    UNIT,
    Answer,
    K,
    Request,
)

import graphkit as gk
from graphkit.copying import host_copy
from graphkit.params import ArgumentBlock

Part = Literal["scoring", "allocation", "whole"]
PARTS: tuple[Part, ...] = ("scoring", "allocation", "whole")

GRAPH = f"{OWN} graph"
LINE = f"{OWN} graph, captured from one stream"
EAGER = f"{OWN} eager"
BINDINGS = "cuda.bindings eager"
CUPY = "CuPy eager"
TORCH = "torch eager"
TORCH_GRAPH = "torch graph"

_HOLD = r"""
extern "C" __global__ void hold(unsigned long long ns) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - start < ns);
}
"""


def _hold(launch: gk.Launch, ns: int) -> None:
    pass


HOLD = gk.Kernel(_HOLD, "hold", twin=_hold)


class RelevanceSetting(Setting):
    """The shared stream and libraries, with a clock for the device.

    Attributes:
        abandoned: graphs of PyTorch whose capture failed.
    """

    def __init__(self, runtime: str) -> None:
        super().__init__(runtime)
        self._events = [gk.Event(timing=True) for _ in range(2)]
        self.synchronize = self.stream.synchronize
        self.abandoned: list[object] = []

    def hold(self, nanoseconds: int) -> None:
        """Keep the stream busy while the host enqueues what is to be timed."""
        HOLD(1, 1, (nanoseconds,), stream=self.stream)

    def record(self, which: int) -> None:
        """Record the first or the second event."""
        self._events[which].record(self.stream)

    def elapsed_us(self) -> float:
        """Wait for the stream, and return the device's time between the two events."""
        self.synchronize()
        return self._events[0].elapsed_ms(self._events[1]) * 1000


@dataclass
class Entry:
    """A contender's call, and what raises when it did not do what is timed."""

    call: Call
    verify: Callable[[int], None]


Maker = tuple[str, Callable[[], Iterator[Entry]]]


class TorchRelevance:
    """The same mathematics as PyTorch's users write it, for one image size.

    What is a constant of the size lies on the device beforehand. Of equal balances any may come
    first, and what is not finite is not looked for: the requests here have neither.
    """

    def __init__(self, torch: Any, side: int) -> None:
        self.torch = torch
        self.side = side
        self.functional = torch.nn.functional
        ones = torch.ones(1, 1, side, side, device="cuda")
        self.count = self._mean(ones, padded=True) * 9
        self.others = self.count - 1
        self.luminance = torch.tensor([0.2126, 0.7152, 0.0722], device="cuda")
        self.steps = torch.arange(LEAST + 1, MOST + 1, device="cuda") * UNIT
        self.ranks = torch.arange(K, device="cuda")[:, None]

    def _mean(self, values: Any, *, padded: bool = False) -> Any:
        return self.functional.avg_pool2d(values, 3, 1, 1, count_include_pad=padded)

    def scoring(self, image: Any, features: Any, query: Any) -> Any:
        """Return the balance of each patch."""
        torch, functional, side = self.torch, self.functional, self.side
        logarithms = functional.log_softmax(features, 1)
        entropy = -(logarithms.exp() * logarithms).sum(1)
        similarity = functional.cosine_similarity(features, query[None], dim=1)
        pixels = torch.tensordot(self.luminance, image, 1).view(side, PATCH, side, PATCH)
        variance, mean = torch.var_mean(pixels, dim=(1, 3), correction=0)
        moments = self._mean(torch.stack((mean, variance + mean * mean))[None])[0]
        window = (moments[1] - moments[0] * moments[0]).clamp_(min=0)
        contrast = variance.sqrt() / (window.sqrt() + SATURATION)
        scores = torch.stack((entropy, contrast.view(-1), similarity))
        z = functional.layer_norm(scores, (side * side,), eps=1e-8)
        excitation = z.sum(0).view(1, 1, side, side)
        around = self._mean(excitation) * self.count - excitation
        return (excitation - INHIBITION * around / self.others).view(-1)

    def allocation(self, balance: Any) -> tuple[Any, Any]:
        """Return the selected patches and their tokens."""
        torch = self.torch
        selected, indices = torch.topk(balance, K)
        raised = selected.clamp(min=1e-3)
        units = (raised / raised[0] * UNIT).round().clamp(min=1).long()[:, None]
        keys = (self.steps + units - 1) // units * K + self.ranks
        last = keys.flatten().kthvalue(TOTAL - LEAST * K).values
        return indices, LEAST + (keys <= last).sum(1)

    def whole(self, image: Any, features: Any, query: Any) -> tuple[Any, Any]:
        """Return the selected patches and their tokens."""
        return self.allocation(self.scoring(image, features, query))


class RelevanceContenders:
    """Makes the contenders of one image size; the setting's cleanup ends what they hold."""

    def __init__(self, setting: RelevanceSetting, size: int) -> None:
        self.setting = setting
        self.requests = [Request.draw(size, seed) for seed in range(2)]
        self.answers = [Answer.of(request) for request in self.requests]
        self.side = self.requests[0].side
        self.pipeline = RelevancePipeline(k=K, total_tokens=TOTAL, stream=setting.stream)
        setting.cleanup.callback(self.pipeline.close)
        self.inputs = [self._arrays(OWN, request) for request in self.requests]
        self.buffers = self.pipeline.warm(**self.inputs[0]).buffers

    def _arrays(self, library: str, request: Request) -> dict[str, Any]:
        given = {"image": request.image, "features": request.features, "query": request.query}
        return {name: self.setting.array(library, host) for name, host in given.items()}

    def _launches(self, part: Part, which: int = 0) -> list[Any]:
        launches = self.pipeline.launches(**self.inputs[which])
        return [entry for entry in launches if part in (entry.stage, "whole")]

    # --- verification ----------------------------------------------------------------------------

    def _wipe(self, part: Part) -> None:
        """Make sure that what is found was written after this, and that allocation has balances."""
        made = self.buffers
        balance = np.full(made.grid.patches, np.nan, np.float32)
        made.balance.set(self.answers[0].balance if part == "allocation" else balance)
        for array in (made.indices, made.tokens):
            array.set(np.full(K, -1, np.int32))

    def _check(self, who: str, part: Part, which: int = 0) -> None:
        answer, made = self.answers[which], self.buffers
        if part == "scoring":
            answer.check_balance(who, made.balance.get())
        else:
            answer.check_selected(who, made.indices.get(), made.tokens.get())

    def _entry(self, part: Part, name: str, statement: str, names: Mapping[str, Any]) -> Entry:
        call = Call(name, statement, names)

        def verify(i: int) -> None:
            self._wipe(part)
            exec(statement, {**names, "i": i})
            self.setting.synchronize()
            self._check(name, part)

        return Entry(call, verify)

    # --- the same buffers each time --------------------------------------------------------------

    def makers(self, part: Part) -> Sequence[Maker]:
        """Return who takes part in a stage, and what makes their contenders."""
        return [
            (GRAPH, lambda: self.graph(part)),
            (LINE, lambda: self.captured(part)),
            (EAGER, lambda: self.eager(part)),
            (BINDINGS, lambda: self.bindings(part)),
            (CUPY, lambda: self.cupy(part)),
            (TORCH, lambda: self.torch(part)),
        ]

    def _launcher(self, graph: gk.Graph) -> Callable[[], None]:
        exe = graph.instantiate()
        exe.upload(self.setting.stream)
        self.setting.cleanup.callback(graph.close)
        self.setting.cleanup.callback(exe.close)
        return exe.launcher(self.setting.stream)

    def graph(self, part: Part) -> Iterator[Entry]:
        """A graph built by hand, the scorers side by side."""
        graph, _ = relevance_graph(self._launches(part))
        yield self._entry(part, GRAPH, "launch()", {"launch": self._launcher(graph)})

    def captured(self, part: Part) -> Iterator[Entry]:
        """The eager launches captured: one kernel after the other."""
        launches = self._launches(part)
        with gk.capture(self.setting.stream) as graph:
            for entry in launches:
                entry.launch.launch(self.setting.stream)
        yield self._entry(part, LINE, "launch()", {"launch": self._launcher(graph)})

    def _eager_calls(self, part: Part, which: int = 0) -> list[Callable[[], None]]:
        return [
            functools.partial(
                entry.launch.kernel,
                entry.launch.grid,
                entry.launch.block,
                entry.launch.args,
                stream=self.setting.stream,
                shared_mem=entry.launch.shared_mem,
            )
            for entry in self._launches(part, which)
        ]

    def eager(self, part: Part) -> Iterator[Entry]:
        """The kernels one by one, from graphkit."""
        names = {"calls": self._eager_calls(part)}
        yield self._entry(part, EAGER, "for call in calls: call()", names)

    def bindings(self, part: Part) -> Iterator[Entry]:
        """The kernels one by one by cuLaunchKernel, arguments packed beforehand."""
        if self.setting.simulated:
            raise UnavailableError("needs a device")
        from cuda.bindings import driver

        stream = driver.CUstream(self.setting.stream.ptr)
        calls, keep = [], []
        for entry in self._launches(part):
            launch = entry.launch
            block = ArgumentBlock(launch.kernel.parameters)
            keep.append((block, block.pack(launch.args)))
            function = driver.CUfunction(launch.kernel.function(self.setting.runtime))
            shape = (*launch.grid, *launch.block, launch.shared_mem)
            calls.append((function, *shape, stream, block.kernel_params, 0))
        checked(driver.cuLaunchKernel(*calls[0]))
        names = {"launch": driver.cuLaunchKernel, "calls": calls, "keep": keep}
        yield self._entry(part, BINDINGS, "for call in calls: launch(*call)", names)

    def cupy(self, part: Part) -> Iterator[Entry]:
        """The kernels one by one, as CuPy's RawKernels on its current stream."""
        cupy = self.setting.library("cupy")
        stream = cupy.cuda.ExternalStream(self.setting.stream.ptr)
        calls = []
        for entry in self._launches(part):
            launch = entry.launch
            kernel = cupy.RawKernel(launch.kernel.code, launch.kernel.name)
            pairs = zip(launch.kernel.parameters, launch.args, strict=True)
            args = tuple(
                cupy.asarray(value) if item.pointer else item.dtype.type(value)
                for item, value in pairs
                if item.dtype is not None
            )
            calls.append(
                functools.partial(
                    kernel, launch.grid, launch.block, args, shared_mem=launch.shared_mem
                )
            )
        # As users have it: one stream is current for all of them.
        statement = "with stream:\n    for call in calls: call()"
        yield self._entry(part, CUPY, statement, {"calls": calls, "stream": stream})

    def torch(self, part: Part) -> Iterator[Entry]:
        """PyTorch's operators, eager and as a torch.cuda.CUDAGraph."""
        torch = self.setting.library("torch")
        mathematics = TorchRelevance(torch, self.side)
        inputs = self._arrays("torch", self.requests[0])
        if part == "allocation":
            host = self.answers[0].balance.astype(np.float32)
            inputs = {"balance": self.setting.array("torch", host)}
        fn = getattr(mathematics, part)
        kept: list[Any] = [None]
        names = {"fn": fn, "args": tuple(inputs.values()), "kept": kept}
        eager = Call(TORCH, "kept[0] = fn(*args)", names)
        yield Entry(eager, lambda i: self._verify_torch(eager, part, kept))

        graph, result = self._torch_graph(torch, fn, tuple(inputs.values()))
        replay = Call(TORCH_GRAPH, "graph.replay()", {"graph": graph, "keep": inputs})
        yield Entry(replay, lambda i: self._verify_torch(replay, part, [result]))

    def _torch_graph(self, torch: Any, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        for _ in range(3):  # PyTorch wants it warm: libraries and their workspaces are made then
            fn(*args)
        self.setting.runtime.device_synchronize()
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()  # the one of all
        pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                result = fn(*args)
        except BaseException:
            # Else PyTorch's allocator takes the pool for that of a live capture from now on.
            with suppress(Exception):
                graph.capture_end()
            with suppress(Exception):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            self.setting.abandoned.append(graph)  # the allocator may ask it again
            raise
        self.setting.cleanup.callback(graph.reset)
        return graph, result

    def _verify_torch(self, call: Call, part: Part, kept: Sequence[Any], which: int = 0) -> None:
        results = kept[0] if isinstance(kept[0], tuple) else kept
        for result in results:
            if result is not None and call.name.startswith(TORCH_GRAPH):
                result.zero_()  # a graph writes where it did before
        exec(call.statement, {**call.names, "i": which})
        self.setting.synchronize()
        found = kept[0]
        if part == "scoring":
            self.answers[which].check_balance(call.name, host_copy(found))
        else:
            indices, tokens = map(host_copy, found)
            self.answers[which].check_selected(call.name, indices, tokens)

    # --- other arrays each time ------------------------------------------------------------------

    def moving_makers(self) -> Sequence[Maker]:
        """Return who takes part where every request lies elsewhere."""
        return [
            (f"{OWN} pipeline", lambda: self.moving_pipeline(OWN, "DeviceArray")),
            (f"{OWN} pipeline", lambda: self.moving_pipeline("torch", "torch")),
            (f"{OWN} ExecPool", self.moving_pool),
            (EAGER, self.moving_eager),
            (TORCH, self.moving_torch),
        ]

    def _moving(self, name: str, statement: str, names: Mapping[str, Any]) -> Entry:
        def verify(i: int) -> None:
            self._wipe("whole")
            exec(statement, {**names, "i": i})
            self.setting.synchronize()
            self._check(name, "whole", i & 1)

        return Entry(Call(name, statement, names), verify)

    def moving_pipeline(self, library: str, shown: str) -> Iterator[Entry]:
        """The pipeline: a node is set for each array that moved, and the graph is launched."""
        inputs = [self._arrays(library, request) for request in self.requests]
        names = {"pipeline": self.pipeline, "requests": inputs}
        yield self._moving(f"{OWN} pipeline, {shown}", "pipeline(**requests[i & 1])", names)

    def moving_pool(self) -> Iterator[Entry]:
        """An ExecPool of the eager launches: it copies what it is given."""
        pool = gk.ExecPool(self.pipeline.launch_eagerly, strict=True, stream=self.setting.stream)
        self.setting.cleanup.callback(pool.close)
        names = {"pool": pool, "requests": self.inputs}
        yield self._moving(f"{OWN} ExecPool, captured", "pool(**requests[i & 1])", names)

    def moving_eager(self) -> Iterator[Entry]:
        """The kernels one by one, with their arguments made beforehand."""
        names = {"calls": [self._eager_calls("whole", which) for which in range(2)]}
        yield self._moving(EAGER, "for call in calls[i & 1]: call()", names)

    def moving_torch(self) -> Iterator[Entry]:
        """PyTorch's operators, and a CUDAGraph behind three copies."""
        torch = self.setting.library("torch")
        mathematics = TorchRelevance(torch, self.side)
        inputs = [tuple(self._arrays("torch", request).values()) for request in self.requests]
        kept: list[Any] = [None]
        names = {"fn": mathematics.whole, "requests": inputs, "kept": kept}
        eager = Call(TORCH, "kept[0] = fn(*requests[i & 1])", names)
        yield Entry(eager, lambda i: self._verify_torch(eager, "whole", kept, i & 1))

        static = tuple(array.clone() for array in inputs[0])
        graph, result = self._torch_graph(torch, mathematics.whole, static)
        statement = "for to, array in zip(static, requests[i & 1]): to.copy_(array)\ngraph.replay()"
        names = {"static": static, "requests": inputs, "graph": graph}
        copied = Call(f"{TORCH_GRAPH}, copies", statement, names)
        yield Entry(copied, lambda i: self._verify_torch(copied, "whole", [result], i & 1))
