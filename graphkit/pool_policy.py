"""What an exec pool does with a request, and what it closes: decided here, without a runtime.

The pool tells what happened (:meth:`PoolPolicy.captured`, :meth:`PoolPolicy.instantiated`, ...)
and asks :meth:`PoolPolicy.decide` what to do next. Nothing in here calls CUDA or reads an array.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["CostModel", "Decision", "KeyState", "Move", "PoolPolicy", "Reason", "Step"]

# The pool's requests after which what a key was asked for counts half.
_HALF_LIFE = 10_000
# Seconds that a key stays away from captures after its first failure; doubled each time.
_FIRST_BACKOFF, _LONGEST_BACKOFF = 1.0, 600.0


class Step(StrEnum):
    """The rungs of the ladder, the cheapest first."""

    LAUNCH = "launch"
    SET = "set"
    RETARGET = "retarget"
    INSTANTIATE = "instantiate"
    CAPTURE = "capture"
    EAGER = "eager"


class Reason(StrEnum):
    """Why a request was answered without a graph."""

    DISABLED = "disabled"
    INELIGIBLE = "ineligible"
    KEY_MISS = "key_miss"
    OVER_MAX = "over_max"
    PADDING_LIMIT = "padding_limit"
    QUARANTINED = "quarantined"
    BUDGET = "budget"


class Move(StrEnum):
    """How an exec is moved to another graph of its topology."""

    NODES = "nodes"
    UPDATE = "update"


@dataclass(frozen=True)
class Decision:
    """What to do with a request.

    Attributes:
        step: the rung. CAPTURE means to capture the key and ask again.
        exec_id: the exec to launch (LAUNCH) or to move (RETARGET).
        close: the execs to close first, none of them in flight.
        reason: why not by a graph, for EAGER.
        why: the decision in a sentence.
    """

    step: Step
    exec_id: int | None = None
    close: tuple[int, ...] = ()
    reason: Reason | None = None
    why: str = ""


@dataclass(slots=True)
class KeyState:
    """What the policy knows of one key.

    Attributes:
        launches: requests that a graph answered; the pool counts them itself, on its hot path.
        eager: requests that were answered eagerly; likewise.
        topology: what its graph may share an exec with; None until it is captured.
        nodes: nodes of its graph.
        moving_us: what moving an exec to this key has cost since it last had one of its own.
        exec_id: the exec that holds the key's graph now.
        failures: captures that failed in a row.
        retry_at: when the quarantine ends, on the policy's clock.
        ineligible: why no graph serves this key, empty when one may.
    """

    launches: int = 0
    eager: int = 0
    topology: Hashable = None
    nodes: int = 0
    moving_us: float = 0.0
    exec_id: int | None = None
    failures: int = 0
    retry_at: float = 0.0
    ineligible: str = ""
    weight: float = 0.0
    weighed_at: int = 0
    weighed: int = 0


@dataclass(slots=True)
class _ExecState:
    key: Hashable
    topology: Hashable
    nodes: int
    nbytes: int
    instantiate_us: float


@dataclass(slots=True)
class CostModel:
    """Microseconds that it takes to move an exec to another graph, learnt from those it took.

    A move and the launch behind it are timed together, since a launch uploads what was changed.
    A move of a kind not yet timed for so many nodes is predicted: ``nodes`` by a rate for each
    node that differs, ``update`` by one for each node and one more for each that differs. The
    rates begin at what an H200 needed (driver 580) and follow what is measured.
    """

    set_node_us: float = 0.9
    update_node_us: float = 0.06
    update_changed_us: float = 0.25
    instantiate_node_us: float = 5.5
    _measured: dict[tuple[Hashable, int, Move], tuple[float, int]] = field(default_factory=dict)

    def observe(self, topology: Hashable, total: int, changed: int, move: Move, us: float) -> None:
        """Note what a move of ``changed`` of ``total`` nodes took."""
        place = (topology, changed, move)
        before, count = self._measured.get(place, (us, 0))
        # A disturbance makes a move slower, never faster; the first one also makes what is kept.
        best = us if count <= 1 else min(before, us)
        self._measured[place] = best, count + 1
        if count == 0:
            return
        if move is Move.NODES and changed:
            self.set_node_us += (us / changed - self.set_node_us) / 8
        elif move is Move.UPDATE:
            error = us - self._predict(total, changed, move)
            self.update_node_us = max(self.update_node_us + error / total / 8, 0.01)

    def observe_instantiate(self, nodes: int, us: float) -> None:
        """Note what an instantiation took."""
        self.instantiate_node_us += (us / max(nodes, 1) - self.instantiate_node_us) / 8

    def _predict(self, total: int, changed: int, move: Move) -> float:
        if move is Move.NODES:
            return changed * self.set_node_us
        return total * self.update_node_us + changed * self.update_changed_us

    def cost(self, topology: Hashable, total: int, changed: int, move: Move) -> float:
        """Return the microseconds of a move: measured where it was, else predicted."""
        best, count = self._measured.get((topology, changed, move), (0.0, 0))
        return best if count > 1 else self._predict(total, changed, move)

    def cheaper(self, topology: Hashable, total: int, changed: int) -> Move:
        """Choose how to move an exec.

        A way that was not timed yet, and is predicted to take less than twice what the other
        takes, is tried: two times, the first of which makes what is kept.
        """
        costs = {move: self.cost(topology, total, changed, move) for move in Move}
        best = min(Move, key=costs.__getitem__)
        other = Move.UPDATE if best is Move.NODES else Move.NODES
        _, tried = self._measured.get((topology, changed, other), (0.0, 0))
        _, known = self._measured.get((topology, changed, best), (0.0, 0))
        if known > 1 and tried <= 1 and costs[other] < 2 * costs[best]:
            return other
        return best


class PoolPolicy:
    """Decides what an exec pool does. Not locked: the pool is.

    Args:
        memory_budget: device memory in bytes for arenas and execs; None for no limit.
        max_execs: most execs at a time; None for no limit.
        max_graphs: most captured graphs kept, in host memory.
        capture_after: requests for a key that are answered eagerly before it is captured; None
            leaves captures to :meth:`ExecPool.warm`.
        clock: seconds, for quarantines.
    """

    def __init__(
        self,
        *,
        memory_budget: int | None = None,
        max_execs: int | None = None,
        max_graphs: int = 1024,
        capture_after: int | None = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.memory_budget = memory_budget
        self.max_execs = max_execs
        self.max_graphs = max_graphs
        self.capture_after = capture_after
        self.costs = CostModel()
        self.arena_bytes = 0
        self.exec_bytes = 0
        self.requests = 0  # counted by the pool
        self.keys: dict[Hashable, KeyState] = {}
        self._execs: dict[int, _ExecState] = {}
        self._clock = clock
        # Over all execs that were ever made: what a node takes.
        self._measured_bytes, self._measured_nodes = 0, 0

    # --- what happened ---------------------------------------------------------------------------

    def state(self, key: Hashable) -> KeyState:
        """Return a key's state, a fresh one at first sight."""
        state = self.keys.get(key)
        if state is None:
            state = self.keys[key] = KeyState()
        return state

    def captured(self, key: Hashable, topology: Hashable, nodes: int) -> None:
        """Note that a key has a graph now, and what it may share an exec with."""
        state = self.state(key)
        state.topology, state.nodes = topology, nodes
        state.failures, state.retry_at = 0, 0.0

    def failed(self, key: Hashable) -> float:
        """Quarantine a key whose capture failed, and return for how many seconds."""
        state = self.state(key)
        state.failures += 1
        seconds = min(_FIRST_BACKOFF * 2 ** min(state.failures - 1, 30), _LONGEST_BACKOFF)
        state.retry_at = self._clock() + seconds
        return seconds

    def instantiated(self, exec_id: int, key: Hashable, nbytes: int, us: float) -> None:
        """Note a new exec that holds a key's graph.

        Args:
            exec_id: what the pool calls it from now on.
            key: whose graph it holds.
            nbytes: by how much the device's free memory shrank. CUDA takes memory in pieces of
                megabytes, so that one exec shows as nothing and the next as too much: an exec
                counts as its share of all that were measured, by nodes.
            us: what instantiating and uploading took.
        """
        state = self.keys[key]
        self._measured_bytes += max(nbytes, 0)
        self._measured_nodes += state.nodes
        self.costs.observe_instantiate(state.nodes, us)
        self._execs[exec_id] = _ExecState(key, state.topology, state.nodes, 0, us)
        state.exec_id, state.moving_us = exec_id, 0.0
        self._charge()

    def _charge(self) -> None:
        rate = self._measured_bytes / max(self._measured_nodes, 1)
        for exec_ in self._execs.values():
            exec_.nbytes = round(rate * exec_.nodes)
        self.exec_bytes = sum(exec_.nbytes for exec_ in self._execs.values())

    def moved(self, exec_id: int, key: Hashable, us: float) -> None:
        """Note that an exec holds another key's graph now."""
        exec_ = self._execs[exec_id]
        self.keys[exec_.key].exec_id = None
        exec_.key = key
        state = self.keys[key]
        state.exec_id = exec_id
        state.moving_us += us

    def closed(self, exec_id: int) -> None:
        """Note that an exec is gone."""
        exec_ = self._execs.pop(exec_id)
        self.keys[exec_.key].exec_id = None
        self.exec_bytes -= exec_.nbytes

    def forgotten(self, key: Hashable) -> None:
        """Note that a key's graph is gone; its counts stay."""
        self.keys[key].topology = None

    # --- what to do ------------------------------------------------------------------------------

    def decide(
        self,
        key: Hashable,
        idle: Callable[[int], bool],
        growth: int = 0,
        *,
        warm: bool = False,
    ) -> Decision:
        """Choose the cheapest rung that is correct for a key. Changes nothing.

        Args:
            key: the key of the request.
            idle: whether an exec, by its id, has no launch in flight.
            growth: bytes by which arenas would have to grow first.
            warm: whether to capture without waiting for requests.
        """
        state = self.keys.get(key) or KeyState()
        if state.ineligible:
            return _eager(Reason.INELIGIBLE, state.ineligible)
        wait = state.retry_at - self._clock()
        if wait > 0:
            why = f"its capture failed {state.failures} times; the next try is in {wait:.1f} s"
            return _eager(Reason.QUARANTINED, why)
        if state.topology is not None:
            return self._place(key, state, idle)
        if self.capture_after is None and not warm:
            return _eager(Reason.KEY_MISS, "warm() has not captured it")
        if self.capture_after is not None and state.eager < self.capture_after and not warm:
            why = f"captured after {self.capture_after} requests, this is number {state.eager + 1}"
            return _eager(Reason.KEY_MISS, why)
        if growth and not self._fits(growth):
            return _eager(Reason.BUDGET, f"its arenas need {growth} bytes more; {self._used()}")
        return Decision(Step.CAPTURE, why="no graph of this key yet")

    def _place(self, key: Hashable, state: KeyState, idle: Callable[[int], bool]) -> Decision:
        """Choose an exec for a captured key."""
        if state.exec_id is not None:
            return Decision(Step.LAUNCH, state.exec_id, why="an exec holds its graph")
        siblings = [
            (self._weigh(self.keys[exec_.key]), exec_id)
            for exec_id, exec_ in self._execs.items()
            if exec_.topology == state.topology
        ]
        nbytes = self._estimate(state)
        room = self._fits(nbytes) and (self.max_execs is None or len(self._execs) < self.max_execs)
        instantiate_us = state.nodes * self.costs.instantiate_node_us
        # An exec of its own, once moving those of others has cost as much: whatever comes, the
        # key never pays more than twice what knowing the future would have.
        if room and (not siblings or state.moving_us >= instantiate_us):
            return Decision(Step.INSTANTIATE, why=f"{nbytes} bytes fit; {self._used()}")
        if siblings:
            # Changes affect later launches only: an exec in flight may be moved.
            exec_id = min(siblings)[1]
            return Decision(Step.RETARGET, exec_id, why="an exec of the same topology is there")
        close = self._evict(nbytes, self._value(self._weigh(state), instantiate_us, nbytes), idle)
        if close is None:
            why = f"its exec needs {nbytes} bytes and none of less value is idle; {self._used()}"
            return _eager(Reason.BUDGET, why)
        return Decision(
            Step.INSTANTIATE, close=close, why=f"in place of {len(close)} of less value"
        )

    def _evict(
        self, nbytes: int, value: float, idle: Callable[[int], bool]
    ) -> tuple[int, ...] | None:
        """Choose the execs of least value whose place ``nbytes`` would fit, None without any."""
        by_value = sorted(
            (
                self._value(self._weigh(self.keys[item.key]), item.instantiate_us, item.nbytes),
                exec_id,
            )
            for exec_id, item in self._execs.items()
        )
        chosen: list[int] = []
        freed = 0
        for worth, exec_id in by_value:
            if worth >= value:
                break
            if not idle(exec_id):
                continue
            chosen.append(exec_id)
            freed += self._execs[exec_id].nbytes
            within = self.max_execs is None or len(self._execs) - len(chosen) < self.max_execs
            if within and self._fits(nbytes - freed):
                return tuple(chosen)
        return None

    def over_budget(self, idle: Callable[[int], bool], keep: int) -> tuple[int, ...]:
        """Return which idle execs to close since measuring showed more bytes than the budget.

        Args:
            idle: whether an exec, by its id, has no launch in flight.
            keep: the newest exec, closed only when closing all others is not enough.
        """
        if self._fits(0):
            return ()
        by_value = sorted(
            self._execs, key=lambda at: (at == keep, self._weigh(self.keys[self._execs[at].key]))
        )
        chosen: list[int] = []
        freed = 0
        for exec_id in by_value:
            if exec_id == keep or idle(exec_id):
                chosen.append(exec_id)
                freed += self._execs[exec_id].nbytes
            if self._fits(-freed):
                break
        return tuple(chosen)

    def surplus(self) -> list[Hashable]:
        """Return the keys whose graphs to forget: those of least weight beyond ``max_graphs``."""
        captured = [key for key, state in self.keys.items() if state.topology is not None]
        excess = len(captured) - self.max_graphs
        if excess <= 0:
            return []
        free = [key for key in captured if self.keys[key].exec_id is None]
        return sorted(free, key=lambda key: self._weigh(self.keys[key]))[:excess]

    # --- figures ---------------------------------------------------------------------------------

    def _estimate(self, state: KeyState) -> int:
        """Return the bytes an exec of a key will take, by what those before it took a node."""
        if not self._measured_nodes:
            return 0  # nothing measured: the first one is made, and closed if it is too much
        return round(self._measured_bytes / self._measured_nodes * state.nodes)

    def _fits(self, nbytes: int) -> bool:
        used = self.arena_bytes + self.exec_bytes
        return self.memory_budget is None or used + nbytes <= self.memory_budget

    def _used(self) -> str:
        budget = "no limit" if self.memory_budget is None else f"{self.memory_budget} allowed"
        return f"arenas have {self.arena_bytes} bytes, execs {self.exec_bytes}, {budget}"

    def _weigh(self, state: KeyState) -> float:
        """Return how much a key is asked for, where what is long ago counts less."""
        age = self.requests - state.weighed_at
        asked = state.launches + state.eager
        state.weight = state.weight * 0.5 ** (age / _HALF_LIFE) + asked - state.weighed
        state.weighed_at, state.weighed = self.requests, asked
        return state.weight

    @staticmethod
    def _value(weight: float, rebuild_us: float, nbytes: int) -> float:
        return weight * rebuild_us / max(nbytes, 1)

    def held_bytes(self) -> dict[Hashable, int]:
        """Return the bytes of the execs by the keys whose graphs they hold."""
        return {exec_.key: exec_.nbytes for exec_ in self._execs.values()}


def _eager(reason: Reason, why: str) -> Decision:
    return Decision(Step.EAGER, reason=reason, why=why)
