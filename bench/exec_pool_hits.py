"""The contenders of bench/exec_pool.py for a hit: a graph of the request's size is there.

Peers are written as their users write them, as the source that is timed, without a function around
it; whatever can be made beforehand is. All launch on one stream.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from exec_pool_setting import (
    COLUMNS,
    OWN,
    Entry,
    NodeSetter,
    Setting,
    check,
    host_inputs,
    new_pool,
)
from measure import PythonCall

import graphkit as gk
from graphkit.buckets import Buckets

NODES = 10
LARGEST = 512
BURST = 20  # requests of a burst: far fewer launches than CUDA's queue holds
LIBRARIES = {OWN: "DeviceArray", "cupy": "CuPy", "torch": "torch"}


@dataclass(frozen=True)
class Hit:
    """Requests of one bucket, each with an input buffer of its own, in turn.

    Attributes:
        name: the case's name in the rows.
        extents: rows of the inputs.
        bucket: rows of the bucket that they fall into.
        burst: requests without a wait between them; the stream is drained before each burst.
    """

    name: str
    extents: tuple[int, ...]
    bucket: int
    burst: int = 1

    @property
    def padded(self) -> bool:
        """Whether requests are smaller than the bucket."""
        return any(extent < self.bucket for extent in self.extents)


EXACT, PADDED = (16, 16, 16, 16), (9, 11, 13, 15)
HITS = (
    Hit(f"exact hit: {NODES} nodes", EXACT, 16),
    Hit(f"padded hit: {NODES} nodes", PADDED, 16),
    Hit(f"exact hit, back to back: {NODES} nodes", EXACT, 16, BURST),
    Hit(f"padded hit, back to back: {NODES} nodes", PADDED, 16, BURST),
)


class HitContenders:
    """Makes the contenders of a case; a closed setting's cleanup ends what they hold."""

    def __init__(self, setting: Setting, case: Hit) -> None:
        self.setting = setting
        self.case = case
        self.hosts = list(host_inputs(case.extents))

    def makers(self) -> Sequence[tuple[str, Callable[[], Iterator[Entry]]]]:
        """Return who takes part, and what makes their contenders."""
        pools = [
            (f"{OWN} ExecPool, {shown}", lambda library=library: self.pool(library))
            for library, shown in LIBRARIES.items()
        ]
        return [
            *pools,
            ("one exec a size", self.exec_a_size),
            ("torch: dict", self.torch_dict),
            ("torch: make_graphed_callables", self.graphed_callables),
            ("by hand", self.by_hand),
        ]

    def _entry(
        self,
        name: str,
        statement: str,
        names: dict[str, Any],
        xs: Sequence[Any],
    ) -> Entry:
        """Return a contender whose statement answers the request ``x`` with ``y``."""
        kept: list[Any] = [None]
        burst = self.case.burst
        shared = {"synchronize": self.setting.stream.synchronize, "xs": xs, "kept": kept}
        before = f"synchronize()\nx = xs[i % {len(xs)}]"
        if burst > 1:
            shared["xs"] = [xs[place % len(xs)] for place in range(burst)]
            statement = "for x in xs:\n" + textwrap.indent(statement, " " * 4)
            before = "synchronize()"
        # The result is kept until the next one, as a server would.
        call = PythonCall(
            name, statement, {**names, **shared}, before=before, after="kept[0] = y", divide=burst
        )

        def verify() -> None:
            for place in range(len(xs) if burst == 1 else 1):
                call.sample(place, 1)
                host = self.hosts[place if burst == 1 else (burst - 1) % len(xs)]
                check(name, kept[0], host + np.float32(NODES))

        return Entry(call, verify)

    def _inputs(self, library: str) -> list[Any]:
        return [self.setting.array(library, host) for host in self.hosts]

    def _shapes(self) -> tuple[int, int]:
        return self.case.bucket, COLUMNS

    def pool(self, library: str) -> Iterator[Entry]:
        """ExecPool: one line for every size there is."""
        chain = self.setting.chain(library, NODES, LARGEST * COLUMNS)
        pool = new_pool(self.setting, chain, Buckets.serving(LARGEST))
        self.setting.cleanup.callback(pool.close)
        xs = self._inputs(library)
        nodes = self.setting.nodes_of(chain, xs[0])
        name = f"{OWN} ExecPool, {LIBRARIES[library]} (1 + {nodes} nodes)"
        yield self._entry(name, "y = pool(x=x)", {"pool": pool}, xs)

    def exec_a_size(self) -> Iterator[Entry]:
        """A dict of execs, as a user of graphkit without a pool writes it; views made before."""
        setting, stream, shape = self.setting, self.setting.stream, self._shapes()
        chain = setting.chain(OWN, NODES, LARGEST * COLUMNS)
        static = gk.zeros(shape)
        with gk.capture(stream) as graph:
            result = chain(static, stream)
        setting.cleanup.callback(graph.close)
        exe = graph.instantiate(upload_stream=stream)
        setting.cleanup.callback(exe.close)
        go = exe.launcher(stream)
        execs: dict[Any, Any] = {}
        for extent in self.case.extents:
            if self.case.padded:
                execs[extent, COLUMNS] = static[:extent], static[extent:], go, result[:extent]
            else:
                execs[extent, COLUMNS] = static, go, result
        statement = "into, go, y = execs[x.shape]\ncopy(into, x, stream)\ngo()"
        if self.case.padded:
            statement = (
                "into, rest, go, y = execs[x.shape]\n"
                "copy(into, x, stream)\nfill(rest, 0, stream)\ngo()"
            )
        calls = "memcpy_async, memset_async" if self.case.padded else "memcpy_async"
        names = {"execs": execs, "copy": gk.memcpy_async, "fill": gk.memset_async, "stream": stream}
        name = f"one exec a size: {calls}, launch ({NODES} nodes)"
        yield self._entry(name, statement, names, self._inputs(OWN))

    def _sizes(self) -> list[int]:
        """Return the bucket of every number of rows: a look-up where others search."""
        fit = Buckets.serving(LARGEST).smallest
        return [fit(extent) or 0 for extent in range(LARGEST + 1)]

    def torch_dict(self) -> Iterator[Entry]:
        """A dict of CUDAGraphs with static inputs."""
        torch = self.setting.library("torch")
        chain = self.setting.chain("torch", NODES, 0)
        static = torch.zeros(self._shapes(), device="cuda")
        for _ in range(2):
            chain(static)
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            result = chain(static)
        nodes = len(gk.Graph.adopt(graph.raw_cuda_graph(), owner=graph).nodes)
        graph.instantiate()
        xs = self._inputs("torch")
        if self.case.padded:
            statement = (
                "n = x.shape[0]\n"
                "graph, static, y = graphs[sizes[n]]\n"
                "static[:n].copy_(x)\nstatic[n:].zero_()\ngraph.replay()\ny = y[:n]"
            )
            graphs: dict[Any, Any] = {self.case.bucket: (graph, static, result)}
        else:
            statement = "graph, static, y = graphs[x.shape]\nstatic.copy_(x)\ngraph.replay()"
            graphs = {xs[0].shape: (graph, static, result)}
        calls = "copy_, zero_, replay" if self.case.padded else "copy_, replay"
        names = {"graphs": graphs, "sizes": self._sizes()}
        yield self._entry(f"torch: dict, {calls} ({nodes} nodes)", statement, names, xs)

    def graphed_callables(self) -> Iterator[Entry]:
        """torch.cuda.make_graphed_callables, which copies what is not its static input."""
        torch = self.setting.library("torch")
        static = torch.zeros(self._shapes(), device="cuda")
        chain = self.setting.chain("torch", NODES, 0)
        call = torch.cuda.make_graphed_callables(chain, (static,))
        xs = self._inputs("torch")
        if self.case.padded:
            statement = (
                "n = x.shape[0]\n"
                "graphed, static = callables[sizes[n]]\n"
                "static[:n].copy_(x)\nstatic[n:].zero_()\ny = graphed(static)[:n]"
            )
            callables: dict[Any, Any] = {self.case.bucket: (call, static)}
        else:
            statement = "y = callables[x.shape](x)"
            callables = {xs[0].shape: call}
        names = {"callables": callables, "sizes": self._sizes()}
        name = f"torch: make_graphed_callables ({NODES} nodes)"
        yield self._entry(name, statement, names, xs)

    def by_hand(self) -> Iterator[Entry]:
        """The two CUDA calls of an exact hit, prebound, and nothing else: what a pool adds to."""
        if self.case.padded:
            return  # it takes a kernel that pads; what it costs the host is the same
        setting, stream = self.setting, self.setting.stream
        chain = setting.chain(OWN, NODES, LARGEST * COLUMNS)
        xs = self._inputs(OWN)
        with gk.capture(stream) as graph:
            result = chain(xs[0], stream)
        setting.cleanup.callback(graph.close)
        exe = graph.instantiate(upload_stream=stream)
        setting.cleanup.callback(exe.close)
        setter = NodeSetter(exe, graph.nodes[0], xs[0], result, result.size)
        names = {
            "word": setter.word,
            "commit": setter.commit,
            "go": exe.launcher(stream),
            "y": result,
            "keep": (setter, graph),
        }
        name = f"{OWN} by hand: set one node, launch ({NODES} nodes)"
        yield self._entry(name, "word[0] = x.ptr\ncommit()\ngo()", names, xs)
