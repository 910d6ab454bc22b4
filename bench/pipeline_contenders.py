"""The contenders of bench/pipeline.py: who sends requests through the network, and how.

PyTorch's are written as its users write them, after the tutorials; what can be made beforehand is.
Each statement sends a burst and waits for its end. Results go to the same kind of place: an array
of its own for every request, in pinned memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from measure import Contender, Maker, PythonCall
from pipeline_mlp import Network, Requests, Size

import graphkit as gk
from graphkit.pipeline import Pipeline

OWN = "graphkit"
SLOTS = 4
MAIN = f"{OWN} Pipeline, {SLOTS} slots"
BARE = f"by hand: {SLOTS} prebound launchers, nobody asks for results"
TORCH_EAGER = "torch: eager"
TORCH_GRAPHS = "torch: graphs on 4 streams"
TORCH_STAGED = "torch: graphs on 4 streams, copies captured"


class UnavailableError(Exception):
    """A contender cannot take part; the message says why."""


@dataclass
class Case:
    """One size with everything that its contenders share.

    Attributes:
        torch: the module, or None where it is not there.
        cleanup: closes what the contenders made.
    """

    size: Size
    network: Network
    requests: Requests
    torch: Any
    cleanup: ExitStack

    def burst(self) -> list[Maker[Contender]]:
        """Return who sends bursts."""
        return [
            (MAIN, lambda: self.pipeline(MAIN, SLOTS)),
            *(
                (name, lambda name=name, n=slots, way=way: self.pipeline(name, n, copies=way))
                for way in ("kernel", "engine")
                for slots in (1, 2, 4, 8)
                for name in [f"{OWN} Pipeline, {slots} slot{'s' * (slots > 1)}, copies by {way}"]
            ),
            (f"{MAIN}, staged, results copied", self.staged),
            (f"{MAIN} of torch's module", self.of_module),
            (BARE, self.bare),
            (TORCH_EAGER, lambda: self.eager(TORCH_EAGER, 1)),
            (f"{TORCH_EAGER} on 4 streams", lambda: self.eager(f"{TORCH_EAGER} on 4 streams", 4)),
            ("torch: graph on 1 stream", lambda: self.graphs("torch: graph on 1 stream", 1)),
            (TORCH_GRAPHS, lambda: self.graphs(TORCH_GRAPHS, 4)),
            (TORCH_STAGED, self.captured_copies),
        ]

    def single(self) -> list[Maker[Contender]]:
        """Return who sends one request and waits for it."""
        return [
            (OWN, self.one_pipeline),
            ("torch: eager, one request", self.one_eager),
            ("torch: graph, one request", self.one_graph),
        ]

    def submit(self) -> list[Maker[Contender]]:
        """Return what the host does for a request that nobody waits for, on an idle device."""
        return [
            (f"{OWN} submit(x=x, y=y)", lambda: self.only_submit("submit(x=x, y=y)")),
            (f"{OWN} submit(x=x)", lambda: self.only_submit("submit(x=x)")),
            (
                f"{OWN} slot, submit",
                lambda: self.only_submit("with slot() as held: r = held.submit()"),
            ),
            (f"{OWN} done()", self.only_done),
            ("by hand: a prebound launcher", self.only_launch),
        ]

    # --- graphkit --------------------------------------------------------------------------------

    def new_pipeline(self, slots: int, **options: Any) -> Pipeline:
        """Return a pipeline of the network."""
        spec = (self.size.shape, np.float32)
        pipeline = Pipeline(
            self.network,
            {"x": spec},
            {"y": spec},
            scratch={"first": spec, "second": spec},
            slots=slots,
            **options,
        )
        self.cleanup.callback(pipeline.close)
        return pipeline

    def _burst(
        self, name: str, statement: str, names: dict[str, Any], *, part: int = 1
    ) -> PythonCall:
        """Return a contender whose statement fills ``ys`` from ``xs``; each burst is checked.

        The slow ones take a ``part`` of the requests: a tenth where it is 10.
        """
        requests = self.requests
        count = max(self.size.burst // part, 1)
        return PythonCall(
            name,
            statement,
            {
                **names,
                "pairs": names.get("pairs", self._pairs())[:count],
                "check": requests.checker(name, requests.results[:count]),
            },
            after="check()",
            divide=count,
        )

    def _pairs(self) -> list[tuple[Any, Any]]:
        return list(zip(self.requests.xs, self.requests.ys, strict=True))

    def pipeline(self, name: str, slots: int, **options: Any) -> Contender:
        """Pinned arrays of the user's at both ends, which the exec is pointed at."""
        pipeline = self.new_pipeline(slots, **options)
        statement = "for x, y in pairs:\n    submit(x=x, y=y)\nsynchronize()"
        names = {"submit": pipeline.submit, "synchronize": pipeline.synchronize}
        return self._burst(name, statement, names)

    def staged(self) -> Contender:
        """Arrays of any memory: copied by the host on the way in, and out of the slot's view."""
        pipeline = self.new_pipeline(SLOTS, stage=True)
        statement = f"""
            for x, y in pairs:
                if len(waiting) == {SLOTS}:
                    out, request = waiting.popleft()
                    out[...] = request.result()
                waiting.append((y, submit(x=x)))
            while waiting:
                out, request = waiting.popleft()
                out[...] = request.result()
        """
        names = {"submit": pipeline.submit, "waiting": deque()}
        return self._burst(f"{MAIN}, staged, results copied", statement, names)

    def of_module(self) -> Contender:
        """PyTorch's own kernels in a pipeline."""
        torch = self._torch()
        module = self.network.module(torch)
        pipeline = Pipeline(
            lambda x: module(x), {"x": torch.empty(self.size.shape, device="cuda")}, slots=SLOTS
        )
        self.cleanup.callback(pipeline.close)
        statement = "for x, y in pairs:\n    submit(x=x, result=y)\nsynchronize()"
        names = {"submit": pipeline.submit, "synchronize": pipeline.synchronize}
        return self._burst(f"{MAIN} of torch's module", statement, names)

    def bare(self) -> Contender:
        """The launches of a burst and nothing else: what a pipeline adds to."""
        size, requests = self.size, self.requests
        launches, streams = [], []
        for place in range(SLOTS):
            stream, (x, y, first, second) = gk.Stream(), (gk.zeros(size.shape) for _ in range(4))
            with gk.capture(stream) as graph:
                gk.memcpy_async(x, requests.xs[place], stream)
                self.network(x, y, first, second, stream)
                gk.memcpy_async(requests.ys[place], y, stream)
            exe = graph.instantiate(upload_stream=stream)
            for closed in (graph, exe, stream):
                self.cleanup.callback(closed.close)
            launches.append(exe.launcher(stream))
            streams.append(stream)
        results = requests.results[:SLOTS]

        def check() -> None:
            requests.expect_close(BARE, results)
            results.fill(np.nan)

        rounds = -(-size.burst // SLOTS)
        names = {f"go{place}": launch for place, launch in enumerate(launches)}
        return PythonCall(
            BARE,
            f"for _ in range({rounds}):\n    {'; '.join(f'{name}()' for name in names)}\n"
            "for stream in streams:\n    stream.synchronize()",
            {**names, "streams": streams, "check": check},
            after="check()",
            divide=rounds * SLOTS,
        )

    def one_pipeline(self) -> Contender:
        """One request from start to end."""
        pipeline = self.new_pipeline(1)
        return self._single(OWN, "submit(x=x, y=y).result()", {"submit": pipeline.submit})

    def _single(self, name: str, statement: str, names: dict[str, Any]) -> PythonCall:
        requests = self.requests
        x, y = requests.xs[0], requests.ys[0]
        results = requests.results[:1]

        def check() -> None:
            requests.expect_close(name, results)
            results.fill(np.nan)

        return PythonCall(
            name, statement, {"x": x, "y": y, "check": check, **names}, after="check()"
        )

    def only_submit(self, statement: str) -> Contender:
        """A submit on an idle device."""
        pipeline = self.new_pipeline(SLOTS)
        names = {
            "submit": pipeline.submit,
            "slot": pipeline.slot,
            "synchronize": pipeline.synchronize,
            "x": self.requests.xs[0],
            "y": self.requests.ys[0],
        }
        name = f"{OWN} slot, submit" if statement.startswith("with") else f"{OWN} {statement}"
        return PythonCall(name, statement, names, before="synchronize()", after="synchronize()")

    def only_done(self) -> Contender:
        """A look at a request that is done."""
        pipeline = self.new_pipeline(1)
        request = pipeline.submit(x=self.requests.xs[0])
        request.wait()
        return PythonCall(f"{OWN} done()", "done()", {"done": request.done})

    def only_launch(self) -> Contender:
        """The launch of one exec with the same nodes, prebound."""
        pipeline = self.new_pipeline(1)
        pipeline.submit(x=self.requests.xs[0]).wait()
        (slot,) = pipeline._slots
        names = {"go": slot.launch, "synchronize": slot._stream.synchronize}
        return PythonCall(
            "by hand: a prebound launcher", "go()", names,
            before="synchronize()", after="synchronize()",
        )  # fmt: skip

    # --- PyTorch ---------------------------------------------------------------------------------

    def _torch(self) -> Any:
        if self.torch is None:
            raise UnavailableError("torch: needs a device and PyTorch")
        return self.torch

    def _torch_pairs(self) -> list[tuple[Any, Any]]:
        """Return the same pinned arrays as tensors."""
        torch = self._torch()
        pairs = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in self._pairs()]
        for tensor in pairs[0]:
            if not tensor.is_pinned():
                raise UnavailableError("torch: does not see that the arrays are pinned")
        return pairs

    def eager(self, name: str, streams: int) -> Contender:
        """to(), the module, copy_() for each request."""
        torch = self._torch()
        names = {
            "pairs": self._torch_pairs(),
            "module": self.network.module(torch),
            "synchronize": torch.cuda.synchronize,
            "streams": [torch.cuda.Stream() for _ in range(streams)],
            "use": torch.cuda.stream,
        }
        if streams == 1:
            statement = """
                for x, y in pairs:
                    y.copy_(module(x.to("cuda", non_blocking=True)), non_blocking=True)
                synchronize()
            """
        else:
            statement = f"""
                for i, (x, y) in enumerate(pairs):
                    with use(streams[i % {streams}]):
                        y.copy_(module(x.to("cuda", non_blocking=True)), non_blocking=True)
                synchronize()
            """
        return self._burst(name, statement, names, part=10)

    def _torch_slots(self, streams: int, *, copies: bool) -> list[tuple[Any, ...]]:
        """Capture the module once a stream: (graph, static input, static output, stream, event)."""
        torch = self._torch()
        module, slots = self.network.module(torch), []
        shape = self.size.shape
        for _ in range(streams):
            stream = torch.cuda.Stream()
            x = torch.zeros(shape, device="cuda")
            host_x, host_y = (torch.zeros(shape).pin_memory() for _ in range(2))
            with torch.cuda.stream(stream):
                for _ in range(3):
                    module(x)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                if copies:
                    x.copy_(host_x, non_blocking=True)
                y = module(x)
                if copies:
                    host_y.copy_(y, non_blocking=True)
            ends = (host_x, host_y) if copies else (x, y)
            slots.append((graph, *ends, stream, torch.cuda.Event(), x, y))
        torch.cuda.synchronize()
        return slots

    def graphs(self, name: str, streams: int) -> Contender:
        """Static tensors on the device, copies in front of and behind each replay()."""
        torch = self._torch()
        names = {
            "pairs": self._torch_pairs(),
            "slots": self._torch_slots(streams, copies=False),
            "synchronize": torch.cuda.synchronize,
            "use": torch.cuda.stream,
        }
        if streams == 1:
            statement = """
                graph, static_x, static_y, stream = slots[0][:4]
                with use(stream):
                    for x, y in pairs:
                        static_x.copy_(x, non_blocking=True)
                        graph.replay()
                        y.copy_(static_y, non_blocking=True)
                synchronize()
            """
        else:
            statement = f"""
                for i, (x, y) in enumerate(pairs):
                    graph, static_x, static_y, stream = slots[i % {streams}][:4]
                    with use(stream):
                        static_x.copy_(x, non_blocking=True)
                        graph.replay()
                        y.copy_(static_y, non_blocking=True)
                synchronize()
            """
        return self._burst(name, statement, names)

    def captured_copies(self) -> Contender:
        """Copies inside of the graph, from and to static pinned tensors that the host copies."""
        torch = self._torch()
        statement = """
            for i, (x, y) in enumerate(pairs):
                graph, static_x, static_y, stream, event = slots[i % 4][:5]
                if i >= 4:
                    event.synchronize()
                    pairs[i - 4][1].copy_(static_y)
                static_x.copy_(x)
                with use(stream):
                    graph.replay()
                event.record(stream)
            synchronize()
            for i in range(len(pairs) - 4, len(pairs)):
                pairs[i][1].copy_(slots[i % 4][2])
        """
        names = {
            "pairs": self._torch_pairs(),
            "slots": self._torch_slots(SLOTS, copies=True),
            "synchronize": torch.cuda.synchronize,
            "use": torch.cuda.stream,
        }
        return self._burst(TORCH_STAGED, statement, names)

    def one_eager(self) -> Contender:
        """One request, eagerly."""
        torch = self._torch()
        (x, y), *_ = self._torch_pairs()
        names = {
            "x": x,
            "y": y,
            "module": self.network.module(torch),
            "wait": torch.cuda.current_stream().synchronize,
        }
        statement = 'y.copy_(module(x.to("cuda", non_blocking=True)), non_blocking=True)\nwait()'
        return self._single("torch: eager, one request", statement, names)

    def one_graph(self) -> Contender:
        """One request with the module in a graph."""
        torch = self._torch()
        (x, y), *_ = self._torch_pairs()
        graph, static_x, static_y, stream, *_ = self._torch_slots(1, copies=False)[0]
        names = {
            "x": x,
            "y": y,
            "graph": graph,
            "static_x": static_x,
            "static_y": static_y,
            "wait": torch.cuda.current_stream().synchronize,
            "stream": stream,
        }
        statement = (
            "static_x.copy_(x, non_blocking=True)\ngraph.replay()\n"
            "y.copy_(static_y, non_blocking=True)\nwait()"
        )
        return self._single("torch: graph, one request", statement, names)


def make(makers: Sequence[Maker[Contender]], failures: list[str], what: str) -> Iterator[Contender]:
    """Make and try every contender; who fails is told and left out."""
    for name, maker in makers:
        try:
            contender = maker()
            contender.sample(0, 1)
            yield contender
        except UnavailableError:
            pass
        except Exception as error:
            failures.append(f"{what}: {name}: {type(error).__name__}: {error}")
