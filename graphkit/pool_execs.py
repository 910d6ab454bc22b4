"""The execs of a pool: made, measured, moved between buckets, closed."""

from __future__ import annotations

import time

from graphkit.cost_model import Move
from graphkit.in_flight import InFlight
from graphkit.pool_exec import PoolExec
from graphkit.pool_graph import PoolGraph
from graphkit.pool_policy import PoolPolicy
from graphkit.pool_stats import Counts
from graphkit.retarget import Changes, compare
from graphkit.signature import Signature

__all__ = ["PoolExecs"]

# Moves between two buckets after which the way is asked for only so often.
_ASKED = 16
# Pairs of buckets whose differences are kept.
_REMEMBERED = 4096


class _Route:
    """From one bucket to another: what differs, the way that is taken, and how often it was.

    Attributes:
        changes: what differs.
        way: the way that is taken.
        moves: how often it was.
    """

    __slots__ = ("changes", "moves", "way")

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.way = Move.UPDATE
        self.moves = 0


class PoolExecs:
    """Does what the policy decided with executable graphs, and tells it what that took.

    Args:
        policy: is told of every exec that comes, moves and goes.
        counts: where moves and evictions are counted.
        in_flight: knows which execs have launches in flight.
        stream: where they are launched.
    """

    def __init__(
        self, policy: PoolPolicy[Signature], counts: Counts, in_flight: InFlight, stream: object
    ) -> None:
        self._policy = policy
        self._counts = counts
        self._in_flight = in_flight
        self._stream = stream
        self._execs: dict[int, PoolExec] = {}
        self._made = 0
        self._routes: dict[tuple[PoolGraph, PoolGraph], _Route] = {}

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
            if number == exec_.number:
                self._policy.refused()

    def changed_nodes(self, number: int, made: PoolGraph) -> int:
        """Return how many nodes of an exec would change for it to hold a bucket's graph."""
        return len(self._route(self._execs[number].holds, made).changes.places)

    def way(self, number: int, made: PoolGraph) -> Move:
        """Return how an exec would be moved to a bucket."""
        return self._choose(self._route(self._execs[number].holds, made), made)

    def _route(self, held: PoolGraph, made: PoolGraph) -> _Route:
        """Return the route between two buckets; compared the first time."""
        route = self._routes.get((held, made))
        if route is None:
            if len(self._routes) >= _REMEMBERED:
                self._routes.clear()
            changes = compare(held.values, made.values, skip=made.places)
            route = self._routes[held, made] = _Route(changes)
        return route

    def _choose(self, route: _Route, made: PoolGraph) -> Move:
        if not route.changes.settable:
            return Move.UPDATE
        costs, changed = self._policy.costs, len(route.changes.places)
        return costs.cheaper(made.topology, made.nodes, changed)

    def move(self, number: int, made: PoolGraph) -> None:
        """Move an exec to another bucket of its topology, the cheaper way."""
        exec_ = self._execs[number]
        route = self._route(exec_.holds, made)
        # What was asked often enough is asked now and then only: asking costs as much as setting
        # a few nodes.
        ask = route.moves < _ASKED or not route.moves % _ASKED
        if ask:
            route.way = self._choose(route, made)
        route.moves += 1
        by_nodes = route.way is Move.NODES
        setters = exec_.setters(made, route.changes.places) if by_nodes else ()
        begin = time.perf_counter_ns()
        try:
            if by_nodes:
                exec_.set_nodes(made, setters)
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
        if ask:
            changed = len(route.changes.places)
            self._policy.costs.observe(made.topology, made.nodes, changed, route.way, us)
        self._policy.moved(number, made.key, us)
        self._counts.updates[route.way] += 1

    def evict(self, number: int) -> None:
        """Close an exec; launches in flight still finish."""
        self._counts.note("evictions", self._execs[number].holds.key)
        self._close(number)

    def _close(self, number: int) -> None:
        exec_ = self._execs.pop(number)
        runtime = exec_.exec.runtime
        free = runtime.mem_get_info()[0]
        exec_.close()
        self._policy.closed(number, runtime.mem_get_info()[0] - free)

    def forget(self, made: PoolGraph) -> None:
        """Forget what is known of a bucket's graph that is given up."""
        for exec_ in self._execs.values():
            exec_.forget(made)
        self._routes = {pair: route for pair, route in self._routes.items() if made not in pair}

    def close(self) -> None:
        """Close all execs."""
        for number in list(self._execs):
            self._close(number)
        self._routes.clear()
