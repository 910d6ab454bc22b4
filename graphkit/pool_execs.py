"""The execs of a pool: made, measured, moved between buckets, closed."""

from __future__ import annotations

import time

from graphkit.in_flight import InFlight
from graphkit.pool_exec import PoolExec
from graphkit.pool_graph import PoolGraph
from graphkit.pool_policy import Move, PoolPolicy
from graphkit.pool_stats import Counts
from graphkit.retarget import Changes, compare

__all__ = ["PoolExecs"]


class PoolExecs:
    """Does what the policy decided with executable graphs, and tells it what that took.

    Args:
        policy: is told of every exec that comes, moves and goes.
        counts: where moves and evictions are counted.
        in_flight: knows which execs have launches in flight.
        stream: where they are launched.
    """

    def __init__(
        self, policy: PoolPolicy, counts: Counts, in_flight: InFlight, stream: object
    ) -> None:
        self._policy = policy
        self._counts = counts
        self._in_flight = in_flight
        self._stream = stream
        self._execs: dict[int, PoolExec] = {}
        self._made = 0
        self._changes: dict[tuple[PoolGraph, PoolGraph], Changes] = {}

    def __len__(self) -> int:
        return len(self._execs)

    def idle(self, number: int) -> bool:
        """Return whether an exec has no launch in flight."""
        return not self._in_flight.holds(self._execs[number])

    def instantiate(self, made: PoolGraph) -> None:
        """Make an exec for a bucket, and measure the device memory that it takes."""
        runtime = made.graph.runtime
        free = runtime.mem_get_info()[0]
        begin = time.perf_counter_ns()
        self._made += 1
        exec_ = PoolExec(self._made, made, self._stream)
        us = (time.perf_counter_ns() - begin) / 1e3
        nbytes = free - runtime.mem_get_info()[0]
        self._execs[exec_.number] = exec_
        self._policy.instantiated(exec_.number, made.key, nbytes, us)
        for number in self._policy.over_budget(self.idle, exec_.number):
            self.evict(number)

    def changes(self, number: int, made: PoolGraph) -> Changes:
        """Return what must change for an exec to hold a bucket's graph; compared once a pair."""
        pair = self._execs[number].holds, made
        changes = self._changes.get(pair)
        if changes is None:
            changes = compare(pair[0].values, made.values, skip=made.places)
            self._changes[pair] = changes
        return changes

    def cheaper(self, number: int, made: PoolGraph) -> Move:
        """Return the cheaper way to move an exec to a bucket."""
        changes = self.changes(number, made)
        if not changes.settable:
            return Move.UPDATE
        return self._policy.costs.cheaper(made.topology, made.nodes, len(changes.places))

    def move(self, number: int, made: PoolGraph) -> None:
        """Move an exec to another bucket of its topology, the cheaper way."""
        exec_, changes = self._execs[number], self.changes(number, made)
        move = self.cheaper(number, made)
        begin = time.perf_counter_ns()
        try:
            if move is Move.NODES:
                exec_.set_nodes(made, changes.places)
            elif not exec_.update(made):
                # CUDA knows more than a topology says: this bucket shares with none from now on.
                self._counts.updates["refused"] += 1
                made.topology = object()
                self._policy.captured(made.key, made.topology, made.nodes)
                return
        except BaseException:
            self.evict(number)  # what it holds now is neither the one nor the other
            raise
        us = (time.perf_counter_ns() - begin) / 1e3
        self._policy.costs.observe(made.topology, made.nodes, len(changes.places), move, us)
        self._policy.moved(number, made.key, us)
        self._counts.updates[move] += 1

    def evict(self, number: int) -> None:
        """Close an exec; launches in flight still finish."""
        exec_ = self._execs.pop(number)
        self._counts.note("evictions", exec_.holds.key)
        exec_.close()
        self._policy.closed(number)

    def forget(self, made: PoolGraph) -> None:
        """Forget what is known of a bucket's graph that is given up."""
        for exec_ in self._execs.values():
            exec_.forget(made)
        self._changes = {pair: known for pair, known in self._changes.items() if made not in pair}

    def close(self) -> None:
        """Close all execs."""
        for number, exec_ in self._execs.items():
            exec_.close()
            self._policy.closed(number)
        self._execs.clear()
        self._changes.clear()
