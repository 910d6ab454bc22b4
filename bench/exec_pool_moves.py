"""The contenders of bench/exec_pool.py for a retarget: one exec, two buckets, in turn.

Of a chain's kernels only the first few depend on the bucket, in grid and in one argument; the rest
work on memory of their own. Buckets share every address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from exec_pool_setting import (
    OWN,
    THREADS,
    Entry,
    NodeSetter,
    Setting,
    WrongResultError,
    add_one,
    check,
    host_inputs,
    new_pool,
)
from measure import PythonCall

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.exec_pool import ExecPool
from graphkit.pool_policy import Step

SIZES = (THREADS, 2 * THREADS)  # floats of an input: one block of threads, and two

BY_NODES = "by hand: set changed nodes"
BY_UPDATE = "by hand: update"
POOL_MOVE = f"{OWN} ExecPool"


@dataclass(frozen=True)
class Retarget:
    """A move between two graphs of ``nodes``, ``changed`` of which differ."""

    nodes: int
    changed: int

    @property
    def size(self) -> str:
        """The column of the tables."""
        return f"{self.nodes:,} nodes, {100 * self.changed // self.nodes}%"

    @property
    def whole(self) -> str:
        """The case of whole calls: the move, the input, the launch."""
        return f"retarget and launch: {self.size}"

    @property
    def alone(self) -> str:
        """The case of the move without a launch."""
        return f"retarget, the move alone: {self.size}"


RETARGETS = tuple(
    Retarget(nodes, nodes * percent // 100) for nodes in (100, 1000) for percent in (1, 10, 100)
)


class PartlyChanged:
    """A function of ``x`` that returns ``x + changed``, by ``nodes`` kernels."""

    def __init__(self, nodes: int, changed: int) -> None:
        self.nodes, self.changed = nodes, changed
        self.memory = gk.empty(SIZES[-1])
        self.aside = gk.zeros(1)

    def __call__(self, x: Any, stream: object) -> gk.DeviceArray:
        """Launch the kernels on a stream."""
        y = self.memory.view(x.shape, np.float32)
        source = x
        for _ in range(self.changed):
            add_one(source, y, stream)
            source = y
        for _ in range(self.nodes - self.changed):
            add_one(self.aside, self.aside, stream)
        return y


class PoolMove:
    """A pool that is moved with every call; samples are what its stats say the move took."""

    def __init__(self, name: str, pool: ExecPool, xs: Sequence[Any], stream: gk.Stream) -> None:
        self.name = name
        self.result: Any = None
        self._pool, self._xs, self._stream = pool, xs, stream

    def _moves(self) -> tuple[int, float]:
        step = self._pool.stats().steps.get(Step.RETARGET)
        return (step.count, step.milliseconds) if step else (0, 0.0)

    def updates(self) -> dict[str, int]:
        """Return how often the exec was moved so far, by how."""
        return {str(way): count for way, count in self._pool.stats().updates.items()}

    def sample(self, first: int, count: int) -> list[float]:
        """Return host microseconds of moves; 0 for a call that needed none."""
        samples = []
        for i in range(first, first + count):
            self._stream.synchronize()
            moves, milliseconds = self._moves()
            self.result = self._pool(x=self._xs[i % len(self._xs)])
            moves_after, milliseconds_after = self._moves()
            if moves_after > moves + 1:
                raise WrongResultError(f"{self.name}: expected one move, came more")
            samples.append((milliseconds_after - milliseconds) * 1e3)
        return samples


class RetargetContenders:
    """Makes the contenders of a case: those of whole calls, and those of the move alone."""

    def __init__(self, setting: Setting, case: Retarget) -> None:
        self.setting = setting
        self.case = case
        self.stream = setting.stream
        self.hosts = [host.reshape(-1) for host in host_inputs(SIZES, 1)]
        self.xs = [gk.asarray(host) for host in self.hosts]
        self.fn = PartlyChanged(case.nodes, case.changed)
        self.arena = gk.zeros(SIZES[-1])
        self.statics = [self.arena.view(size, np.float32) for size in SIZES]
        self.graphs: list[gk.Graph] = []
        self.results: list[gk.DeviceArray] = []
        for static in self.statics:
            with gk.capture(self.stream) as graph:
                self.results.append(self.fn(static, self.stream))
            setting.cleanup.callback(graph.close)
            self.graphs.append(graph)

    # --- whole calls -----------------------------------------------------------------------------

    def whole(self) -> Sequence[tuple[str, Callable[[], Iterator[Entry]]]]:
        """Return who takes part, and what makes their contenders."""
        return [
            (POOL_MOVE, self.pool),
            ("one exec, updated", self.whole_update),
            ("every node set", self.every_node),
            ("by hand", self.by_hand),
            ("instantiate", self.instantiate),
        ]

    def _entry(
        self,
        name: str,
        statement: str,
        names: dict[str, Any],
        before: str = "",
        after: str = "",
        also: Callable[[], None] = lambda: None,
    ) -> Entry:
        """Return a contender whose statement answers ``x`` with ``y``, at another size each time.

        What answers when only a move is timed stands in ``after``.
        """
        kept: list[Any] = [None]
        shared = {
            "synchronize": self.stream.synchronize,
            "xs": self.xs,
            "kept": kept,
            "copy": gk.memcpy_async,
            "stream": self.stream,
        }
        call = PythonCall(
            name,
            statement,
            {**shared, **names},
            before=f"synchronize()\nx = xs[i & 1]\n{before}",
            after=f"kept[0] = y\n{after}",
        )

        def verify() -> None:
            for place in range(4):
                call.sample(place, 1)
                check(name, kept[0], self.hosts[place & 1] + np.float32(self.case.changed))
            also()

        return Entry(call, verify)

    def _new_pool(self) -> ExecPool:
        pool = new_pool(self.setting, self.fn, Buckets(SIZES), max_execs=1)
        self.setting.cleanup.callback(pool.close)
        for place in range(16):  # both ways of moving are tried first
            pool(x=self.xs[place & 1])
            self.stream.synchronize()
        return pool

    def _check_moves(self, name: str, pool: ExecPool) -> None:
        if Step.RETARGET not in pool.stats().steps:
            raise WrongResultError(f"{name}: expected the exec to be moved, came {pool!r}")

    def pool(self) -> Iterator[Entry]:
        """ExecPool with a single exec, for two buckets."""
        pool = self._new_pool()
        yield self._entry(
            POOL_MOVE,
            "y = pool(x=x)",
            {"pool": pool},
            also=lambda: self._check_moves(POOL_MOVE, pool),
        )

    def _exec(self) -> gk.GraphExec:
        exe = self.graphs[0].instantiate(upload_stream=self.stream)
        self.setting.cleanup.callback(exe.close)
        return exe

    def _setters(self, exe: gk.GraphExec, places: Sequence[int]) -> list[list[NodeSetter]]:
        """Return for each bucket what sets the nodes at some places of the chain."""
        nodes = self.graphs[0].nodes
        setters = []
        for static, result in zip(self.statics, self.results, strict=True):
            of_bucket = []
            for place in places:
                if place < self.case.changed:
                    source = result if place else static
                    of_bucket.append(NodeSetter(exe, nodes[place], source, result, result.size))
                else:
                    aside = self.fn.aside
                    of_bucket.append(NodeSetter(exe, nodes[place], aside, aside, 1))
            setters.append(of_bucket)
        return setters

    def whole_update(self) -> Iterator[Entry]:
        """One exec for all graphs, brought in line by a whole update, as SGLang does it."""
        exe = self._exec()
        table = zip(SIZES, self.statics, self.graphs, self.results, strict=True)
        names = {"exe": exe, "graphs": {(size,): rest for size, *rest in table}}
        statement = (
            "static, graph, y = graphs[x.shape]\n"
            "copy(static, x, stream)\nexe.update(graph)\nexe.launch(stream)"
        )
        yield self._entry("one exec: memcpy_async, GraphExec.update, launch", statement, names)

    def _setting_nodes(self, name: str, places: Sequence[int]) -> Entry:
        exe = self._exec()
        setters = self._setters(exe, places)
        commits = [[setter.commit for setter in of_bucket] for of_bucket in setters]
        table = zip(SIZES, self.statics, commits, self.results, strict=True)
        names = {
            "buckets": {(size,): rest for size, *rest in table},
            "go": exe.launcher(self.stream),
            "keep": setters,
        }
        statement = (
            "static, commits, y = buckets[x.shape]\n"
            "copy(static, x, stream)\nfor commit in commits: commit()\ngo()"
        )
        return self._entry(name, statement, names)

    def every_node(self) -> Iterator[Entry]:
        """One exec, every node set whether it differs or not."""
        name = "one exec: memcpy_async, every node set, launch"
        yield self._setting_nodes(name, range(self.case.nodes))

    def by_hand(self) -> Iterator[Entry]:
        """One exec, the nodes that differ set by prebound calls."""
        yield self._setting_nodes(f"{BY_NODES}, memcpy_async, launch", range(self.case.changed))

    def instantiate(self) -> Iterator[Entry]:
        """A fresh exec for every request."""
        table = zip(SIZES, self.statics, self.graphs, self.results, strict=True)
        names = {"graphs": {(size,): rest for size, *rest in table}}
        statement = (
            "static, graph, y = graphs[x.shape]\n"
            "copy(static, x, stream)\nexe = graph.instantiate()\nexe.launch(stream)"
        )
        name = "instantiate, memcpy_async, launch"
        yield self._entry(name, statement, names, after="synchronize()\nexe.close()")

    # --- the move alone --------------------------------------------------------------------------

    def alone(self) -> Sequence[tuple[str, Callable[[], Iterator[Entry]]]]:
        """Return who takes part in the case without launches."""
        return [(POOL_MOVE, self.pool_move), (BY_NODES, self.nodes_alone),
                (BY_UPDATE, self.update_alone)]  # fmt: skip

    def pool_move(self) -> Iterator[Entry]:
        """ExecPool's move as its stats have it."""
        pool = self._new_pool()
        move = PoolMove(POOL_MOVE, pool, self.xs, self.stream)

        def verify() -> None:
            for place in range(4):
                move.sample(place, 1)
                expected = self.hosts[place & 1] + np.float32(self.case.changed)
                check(POOL_MOVE, move.result, expected)
            self._check_moves(POOL_MOVE, pool)

        yield Entry(move, verify)

    def _alone(self, name: str, statement: str, names: dict[str, Any], exe: gk.GraphExec) -> Entry:
        launching = {
            "results": self.results,
            "statics": self.statics,
            "go": exe.launcher(self.stream),
        }
        return self._entry(
            name,
            statement,
            {**launching, **names},
            before="y = results[i & 1]",
            after="copy(statics[i & 1], x, stream)\ngo()",
        )

    def nodes_alone(self) -> Iterator[Entry]:
        """A loop of prebound calls over the nodes that differ."""
        exe = self._exec()
        setters = self._setters(exe, range(self.case.changed))
        commits = [[setter.commit for setter in of_bucket] for of_bucket in setters]
        names = {"buckets": commits, "keep": setters}
        yield self._alone(BY_NODES, "for commit in buckets[i & 1]: commit()", names, exe)

    def update_alone(self) -> Iterator[Entry]:
        """The call of a whole update (cuGraphExecUpdate_v2)."""
        exe = self._exec()
        names = {
            "update": self.setting.runtime.graph_exec_update,
            "exe": exe.ptr,
            "graphs": [graph.ptr for graph in self.graphs],
        }
        yield self._alone(BY_UPDATE, "update(exe, graphs[i & 1])", names, exe)
