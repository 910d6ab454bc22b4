"""The contenders of bench/exec_pool.py for a miss: the first request of a size.

Each sample is a size that nobody has seen, the largest first; two eager warm-ups are part of the
answer for everybody, since two are what serving engines make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from exec_pool_setting import OWN, Entry, Setting, WrongResultError, check, new_pool
from measure import PythonCall

from graphkit.buckets import Buckets
from graphkit.exec_pool import ExecPool

LARGEST = 1024  # floats of an input, and how many sizes there are
WARMUPS = 2


@dataclass(frozen=True)
class Miss:
    """The first request of a size, to a chain of ``nodes`` kernels."""

    nodes: int

    @property
    def name(self) -> str:
        """The case's name in the rows."""
        return f"miss: {self.nodes:,} nodes"


MISSES = (Miss(10), Miss(1000))


class MissContenders:
    """Makes the contenders of a case."""

    def __init__(self, setting: Setting, case: Miss) -> None:
        self.setting = setting
        self.case = case
        self.host = np.arange(LARGEST, dtype=np.float32)

    def makers(self) -> Sequence[tuple[str, Callable[[], Iterator[Entry]]]]:
        """Return who takes part, and what makes their contenders."""
        return [
            (f"{OWN} ExecPool", lambda: self.retarget(OWN)),
            (f"{OWN} ExecPool, its first request", self.first),
            (f"{OWN} ExecPool on torch", lambda: self.retarget("torch")),
            ("torch.cuda.graph", lambda: self.torch_graph(tidy=True)),
            ("torch capture_begin", lambda: self.torch_graph(tidy=False)),
            ("eager", lambda: self.eager(OWN)),
            ("eager, torch", lambda: self.eager("torch")),
        ]

    def _entry(
        self,
        name: str,
        library: str,
        statement: str,
        names: dict[str, Any],
        *,
        before: str = "",
        after: str = "",
        also: Callable[[], None] = lambda: None,
    ) -> Entry:
        """Return a contender whose statement answers ``x``, of a size not seen yet, with ``y``."""
        verifying: list[bool] = []

        def seen(x: Any, y: Any) -> None:
            if verifying:
                check(name, y, self.host[: x.shape[0]] + np.float32(self.case.nodes))

        shared = {
            "synchronize": self.setting.runtime.device_synchronize,
            "fresh": self._fresh(library),
            "seen": seen,
        }
        call = PythonCall(
            name,
            statement,
            {**shared, **names},
            before=f"{before}\nsynchronize()\nx = next(fresh)",
            after=f"seen(x, y)\n{after}",
        )

        def verify() -> None:
            verifying.append(True)
            call.sample(0, 3)
            verifying.clear()
            also()

        return Entry(call, verify)

    def _fresh(self, library: str) -> Iterator[Any]:
        whole = self.setting.array(library, self.host)
        for size in range(LARGEST, 0, -1):
            yield whole[:size]

    def _new_pool(self, library: str, max_execs: int | None = None) -> ExecPool:
        chain = self.setting.chain(library, self.case.nodes, LARGEST)
        sizes = Buckets(range(1, LARGEST + 1))
        return new_pool(self.setting, chain, sizes, max_execs=max_execs, warmups=WARMUPS)

    def retarget(self, library: str) -> Iterator[Entry]:
        """ExecPool with one exec: warm-ups, a capture, and the exec moved to it."""
        pool = self._new_pool(library, 1)
        self.setting.cleanup.callback(pool.close)
        where = "" if library == OWN else f", {library}"
        name = f"{OWN} ExecPool{where}: capture, retarget"

        def one_exec() -> None:
            if pool.stats().instantiates != 1:
                raise WrongResultError(f"{name}: expected one exec for all sizes, came {pool!r}")

        yield self._entry(name, library, "y = pool(x=x)", {"pool": pool}, also=one_exec)

    def first(self) -> Iterator[Entry]:
        """ExecPool without an exec: warm-ups, arenas, a capture, an instantiation."""
        yield self._entry(
            f"{OWN} ExecPool: arenas, capture, instantiate",
            OWN,
            "y = pool(x=x)",
            {"new_pool": lambda: self._new_pool(OWN)},
            before="pool = new_pool()",
            after="synchronize()\npool.close()",
        )

    def torch_graph(self, *, tidy: bool) -> Iterator[Entry]:
        """A CUDAGraph of its own for the size, its memory from one pool for all.

        With ``tidy`` by ``torch.cuda.graph``, which empties PyTorch's cache before each capture;
        else by the two calls inside of it.
        """
        torch = self.setting.library("torch")
        chain = self.setting.chain("torch", self.case.nodes, 0)
        arena = torch.zeros(LARGEST, device="cuda")
        side = torch.cuda.Stream()
        pool = torch.cuda.graph_pool_handle()

        def first_request(x: Any) -> tuple[Any, Any]:
            static = arena[: x.shape[0]]
            static.copy_(x)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARMUPS):
                    chain(static)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            if tidy:
                with torch.cuda.graph(graph, pool=pool, stream=side):
                    y = chain(static)
            else:
                with torch.cuda.stream(side):
                    graph.capture_begin(pool=pool)
                    y = chain(static)
                    graph.capture_end()
            graph.replay()
            return graph, y

        call = "torch.cuda.graph" if tidy else "capture_begin, capture_end"
        # The first one stays: the memory pool would go with its last graph.
        names = {"first_request": first_request, "keep": first_request(arena.clone())}
        statement = "graph, y = first_request(x)"
        yield self._entry(
            f"torch: {call}", "torch", statement, names, after="synchronize()\ndel graph, y"
        )

    def eager(self, library: str) -> Iterator[Entry]:
        """The function itself, once: what a warm-up takes."""
        chain = self.setting.chain(library, self.case.nodes, LARGEST)
        stream = ", stream" if library == OWN else ""
        names = {"chain": chain, "stream": self.setting.stream}
        name = f"eager, once ({library}'s kernels)"
        yield self._entry(name, library, f"y = chain(x{stream})", names)
