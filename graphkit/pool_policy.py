"""What an exec pool does with a request, and what it closes: decided here, without a runtime.

The pool tells what happened (:meth:`PoolPolicy.captured`, :meth:`PoolPolicy.instantiated`, ...)
and asks :meth:`PoolPolicy.decide` what to do next. Nothing in here calls CUDA or reads an array.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import nsmallest
from math import inf, log

__all__ = ["CostModel", "Decision", "KeyState", "Move", "PoolPolicy", "Reason", "Step"]

# The pool's requests after which what a key was asked for counts half, and how many may pass
# before that is seen to.
_HALF_LIFE, _AGEING = 10_000, 2_500
# What takes another's place must be worth more than so many times as much: of two that are asked
# for about equally often, neither drives the other out.
_MARGIN = 2
# Times that the dearer of two ways to move an exec is tried where they are close.
_TRIES = 3
# Keys without a graph that are remembered.
_REMEMBERED = 4096
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
class _Recent:
    """A count in which what is long ago counts less."""

    past: float = 0.0
    counted: int = 0

    def at(self, count: int) -> float:
        """Return what the count amounts to now."""
        return self.past + count - self.counted

    def age(self, count: int, kept: float, fresh: float) -> None:
        """Keep a share of what was there before, and another one of what came since."""
        self.past = self.past * kept + (count - self.counted) * fresh
        self.counted = count


@dataclass(slots=True, eq=False)
class KeyState:
    """What the policy knows of one key.

    Attributes:
        launches: requests that a graph answered; the pool counts them itself, on its hot path.
        eager: requests that were answered eagerly; likewise.
        exec_id: the exec that holds the key's graph now.
        moving_us: what moving an exec to this key has cost since it last had one of its own.
        failures: captures that failed in a row, or what was to follow them.
        retry_at: when the quarantine ends, on the policy's clock.
        ineligible: why no graph serves this key, empty when one may.
        family: who may share an exec with it; None while it has no graph.
    """

    launches: int = 0
    eager: int = 0
    exec_id: int | None = None
    moving_us: float = 0.0
    failures: int = 0
    retry_at: float = 0.0
    ineligible: str = ""
    family: _Family | None = field(default=None, repr=False)
    recent: _Recent = field(default_factory=_Recent, repr=False)

    @property
    def weight(self) -> float:
        """How much the key was asked for lately."""
        return self.recent.at(self.launches + self.eager)


@dataclass(slots=True, eq=False)
class _Family:
    """The keys whose graphs have one topology: an exec of any can be moved to any other."""

    topology: Hashable
    nodes: int
    keys: dict[Hashable, KeyState] = field(default_factory=dict)
    execs: dict[int, _Exec] = field(default_factory=dict)
    instantiate_us: float = inf  # the least that it took

    @property
    def weight(self) -> float:
        """How much its keys were asked for lately."""
        return sum(state.weight for state in self.keys.values())


@dataclass(slots=True, eq=False)
class _Exec:
    """An exec, and how often it was launched, under whichever key."""

    family: _Family
    key: Hashable
    state: KeyState
    recent: _Recent

    @property
    def hits(self) -> float:
        """How much it was launched lately."""
        return self.recent.at(self.state.launches)


@dataclass(slots=True)
class _Timed:
    us: float = inf
    count: int = 0


@dataclass(slots=True)
class CostModel:
    """Microseconds that it takes to move an exec to another graph, learnt from those it took.

    A move of a kind not yet timed for so many nodes is predicted: ``nodes`` by a rate for each
    node that differs, ``update`` by one for each node and one more for each that differs. The
    rates begin at what an H200 needed (driver 580) and follow what is measured.
    """

    set_node_us: float = 0.9
    update_node_us: float = 0.06
    update_changed_us: float = 0.25
    instantiate_node_us: float = 5.5
    _timed: dict[Hashable, dict[tuple[int, Move], _Timed]] = field(default_factory=dict)

    def observe(self, topology: Hashable, total: int, changed: int, move: Move, us: float) -> None:
        """Note what a move of ``changed`` of ``total`` nodes took."""
        timed = self._timed.setdefault(topology, {}).setdefault((changed, move), _Timed())
        timed.count += 1
        if timed.count <= _TRIES:
            # A disturbance makes a move slower, never faster; the first also makes what is kept.
            timed.us = min(timed.us, us)
        else:
            timed.us += _error(us, timed.us) / 4
        if timed.count > 1:
            self._learn(total, changed, move, us)

    def _learn(self, total: int, changed: int, move: Move, us: float) -> None:
        """Move the rates towards one measurement, each by its share in it."""
        error = _error(us, self._predict(total, changed, move)) / 4
        if move is Move.NODES:
            self.set_node_us += error / max(changed, 1)
            return
        error /= max(total**2 + changed**2, 1)
        self.update_node_us = max(self.update_node_us + error * total, 0.0)
        self.update_changed_us = max(self.update_changed_us + error * changed, 0.0)

    def observe_instantiate(self, nodes: int, us: float) -> None:
        """Note what an instantiation took."""
        each = us / max(nodes, 1)
        self.instantiate_node_us += _error(each, self.instantiate_node_us) / 4

    def forget(self, topology: Hashable) -> None:
        """Forget the moves between graphs of a topology."""
        self._timed.pop(topology, None)

    def _predict(self, total: int, changed: int, move: Move) -> float:
        if move is Move.NODES:
            return changed * self.set_node_us
        return total * self.update_node_us + changed * self.update_changed_us

    def _seen(self, topology: Hashable, changed: int, move: Move) -> _Timed:
        return self._timed.get(topology, {}).get((changed, move)) or _Timed()

    def cost(self, topology: Hashable, total: int, changed: int, move: Move) -> float:
        """Return the microseconds of a move: measured where it was, else predicted."""
        timed = self._seen(topology, changed, move)
        return timed.us if timed.count > 1 else self._predict(total, changed, move)

    def cheaper(self, topology: Hashable, total: int, changed: int) -> Move:
        """Choose how to move an exec.

        What seems to be the dearer way is tried a few times where it is predicted to take less
        than twice as long, and from then on as often as costs a thirtieth of all moves: neither a
        wrong prediction nor a disturbance is believed for ever.
        """
        costs = {move: self.cost(topology, total, changed, move) for move in Move}
        best, other = sorted(Move, key=costs.__getitem__)
        known = self._seen(topology, changed, best).count
        tried = self._seen(topology, changed, other).count
        ratio = costs[other] / max(costs[best], 0.01)
        allowed = (_TRIES if ratio < 2 else 0) + known / (30 * ratio)
        return other if known > 1 and tried + 1 <= allowed else best


def _error(came: float, expected: float) -> float:
    """Return by how much a time is off; by how much a disturbed one is says nothing."""
    return min(came - expected, expected)


class PoolPolicy:
    """Decides what an exec pool does. Not locked: the pool is.

    Args:
        memory_budget: device memory in bytes for arenas and execs; None for no limit.
        max_execs: most execs at a time; None for no limit.
        max_graphs: most captured graphs kept, in host memory, besides those that execs hold.
        capture_after: requests for a key that are answered eagerly before it is captured; None
            leaves captures to :meth:`ExecPool.warm`.
        clock: seconds, for quarantines.

    Attributes:
        arena_bytes: device memory that is not execs', kept up to date by the pool.
        requests: requests so far, counted by the pool.
        keys: what is known of each key: of all that have a graph, and of those asked for last.
        costs: what moves take.
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
        if max_execs is not None:
            _check_count("max_execs", max_execs, 1)
        _check_count("max_graphs", max_graphs, 1)
        if capture_after is not None:
            _check_count("capture_after", capture_after, 0)
        self.memory_budget = memory_budget
        self.max_execs = max_execs
        self.max_graphs = max_graphs
        self.capture_after = capture_after
        self.costs = CostModel()
        self.arena_bytes = 0
        self.requests = 0
        self.keys: dict[Hashable, KeyState] = {}
        self._graphless: dict[Hashable, None] = {}  # of the keys; the last asked for is last
        self._families: dict[Hashable, _Family] = {}  # by topology
        self._execs: dict[int, _Exec] = {}
        self._clock = clock
        self._aged_at = 0
        # What the live execs were measured to take, the nodes they have, and what follows of one.
        self._taken, self._nodes, self._node_bytes = 0.0, 0, 0.0
        self._most_nodes = 0  # the most that were there at a time since memory was given back

    # --- what happened ---------------------------------------------------------------------------

    def state(self, key: Hashable) -> KeyState:
        """Return the state of a key that is asked for, a fresh one at first sight.

        A function whose values vary without end has keys without end: of those without a graph,
        the last asked for are remembered.
        """
        self._age()
        state = self.keys.get(key)
        if state is None:
            state = self.keys[key] = KeyState()
        if state.family is None:
            self._graphless.pop(key, None)
            self._graphless[key] = None
            while len(self._graphless) > _REMEMBERED:
                oldest = next(iter(self._graphless))
                del self._graphless[oldest], self.keys[oldest]
        return state

    def _age(self) -> None:
        """Let what is long ago count less."""
        passed = self.requests - self._aged_at
        if passed < _AGEING:
            return
        kept: float = 0.5 ** (passed / _HALF_LIFE)
        # When each request came was not noted: as if they were spread evenly.
        fresh = (1 - kept) / (passed / _HALF_LIFE * log(2))
        for state in self.keys.values():
            state.recent.age(state.launches + state.eager, kept, fresh)
        for exec_ in self._execs.values():
            exec_.recent.age(exec_.state.launches, kept, fresh)
        self._aged_at = self.requests

    def captured(self, key: Hashable, topology: Hashable, nodes: int) -> None:
        """Note that a key has a graph now, and what it may share an exec with."""
        state = self.state(key)
        self._leave_family(key, state)
        state.family = self._families.setdefault(topology, _Family(topology, nodes))
        state.family.keys[key] = state
        self._graphless.pop(key, None)

    def _leave_family(self, key: Hashable, state: KeyState) -> None:
        family, state.family = state.family, None
        if family is None:
            return
        del family.keys[key]
        if not family.keys:
            del self._families[family.topology]
            self.costs.forget(family.topology)

    def failed(self, key: Hashable) -> float:
        """Quarantine a key whose capture failed, and return for how many seconds."""
        state = self.state(key)
        state.failures += 1
        doubled = _FIRST_BACKOFF * 2.0 ** min(state.failures - 1, 30)
        seconds = min(doubled, _LONGEST_BACKOFF)
        state.retry_at = self._clock() + seconds
        return seconds

    def instantiated(self, exec_id: int, key: Hashable, nbytes: int, us: float) -> None:
        """Note a new exec that holds a key's graph.

        Args:
            exec_id: what the pool calls it from now on.
            key: whose graph it holds.
            nbytes: by how much the device's free memory shrank. CUDA takes memory in pieces of
                megabytes, so that one exec shows as nothing and the next as too much: an exec
                counts as its share of what all take, by nodes.
            us: what instantiating and uploading took.
        """
        state = self.keys[key]
        family = _family_of(state)
        # Worth at once what it was made for, or the next request would drive it out.
        hits = state.weight if family.execs else family.weight
        exec_ = _Exec(family, key, state, _Recent(hits, state.launches))
        self._execs[exec_id] = family.execs[exec_id] = exec_
        family.instantiate_us = min(family.instantiate_us, us)
        self.costs.observe_instantiate(family.nodes, us)
        self._hold(exec_id, state)
        state.moving_us = 0.0
        self._nodes += family.nodes
        self._measure(max(nbytes, 0))

    def moved(self, exec_id: int, key: Hashable, us: float) -> None:
        """Note that an exec holds another key's graph now."""
        exec_ = self._execs[exec_id]
        exec_.state.exec_id = None
        state = self.keys[key]
        exec_.recent = _Recent(exec_.hits, state.launches)
        exec_.key, exec_.state = key, state
        self._hold(exec_id, state)
        state.moving_us += us

    def _hold(self, exec_id: int, state: KeyState) -> None:
        state.exec_id = exec_id
        state.failures, state.retry_at = 0, 0.0

    def closed(self, exec_id: int, nbytes: int | None = None) -> None:
        """Note that an exec is gone.

        Args:
            exec_id: which one.
            nbytes: by how much the device's free memory grew; None for all that the exec counted
                as. What CUDA keeps for the next exec is not missed when that one is measured.
        """
        exec_ = self._execs.pop(exec_id)
        exec_.state.exec_id = None
        family = exec_.family
        del family.execs[exec_id]
        self._nodes -= family.nodes
        self._measure(-self._bytes(family) if nbytes is None else -max(nbytes, 0))

    def _measure(self, nbytes: int) -> None:
        """Learn what a node takes from the bytes that execs took, or gave back."""
        self._taken += nbytes
        # An exec in memory that CUDA kept from closed ones teaches nothing.
        if nbytes or self._nodes > self._most_nodes:
            self._most_nodes = self._nodes
            if self._nodes:
                self._node_bytes = max(self._taken, 0.0) / self._nodes

    def forgotten(self, key: Hashable) -> None:
        """Note that a key's graph, which no exec holds, is gone; its counts stay."""
        self._leave_family(key, self.keys[key])
        self._graphless[key] = None

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
        if state.family is not None:
            return self._place(state, state.family, idle)
        if self.capture_after is None and not warm:
            return _eager(Reason.KEY_MISS, "warm() has not captured it")
        if self.capture_after is not None and state.eager < self.capture_after and not warm:
            why = f"captured after {self.capture_after} requests, this is number {state.eager + 1}"
            return _eager(Reason.KEY_MISS, why)
        instead = self.surplus(more=1)
        if instead and state.weight <= _MARGIN * self.keys[instead[-1]].weight:
            why = f"as many graphs as are kept, {self.max_graphs}, are asked for about as often"
            return _eager(Reason.KEY_MISS, why)
        close: tuple[int, ...] | None = ()
        if growth:
            nodes = growth / max(self._node_bytes, 1)  # of the execs that would take as much
            worth = state.weight * nodes * self.costs.instantiate_node_us
            close = self._make_room(worth, idle, nbytes=growth)
        if close is None:
            return _eager(Reason.BUDGET, f"its arenas need {growth} bytes more; {self._used()}")
        return Decision(Step.CAPTURE, close=close, why="no graph of this key yet")

    def _place(self, state: KeyState, family: _Family, idle: Callable[[int], bool]) -> Decision:
        """Choose an exec for a captured key."""
        if state.exec_id is not None:
            return Decision(Step.LAUNCH, state.exec_id, why="an exec holds its graph")
        nbytes = self._bytes(family)
        # An exec of its own, once moving those of others has cost as much: while it keeps that
        # one, the key pays at most twice what knowing the future would have.
        if not family.execs or state.moving_us >= self._instantiate_us(family):
            weight = state.weight if family.execs else family.weight
            worth = weight * self._rebuild_us(family, others=len(family.execs))
            close = self._make_room(worth, idle, nbytes=nbytes, execs=1, but=family)
            if close is not None:
                instead = f"in place of {len(close)} of less value" if close else "fit"
                return Decision(
                    Step.INSTANTIATE, close=close, why=f"{nbytes} bytes {instead}; {self._used()}"
                )
        if family.execs:
            # Changes affect later launches only: an exec in flight may be moved.
            exec_id = min(family.execs, key=lambda at: family.execs[at].state.weight)
            return Decision(Step.RETARGET, exec_id, why="an exec of the same topology is there")
        why = f"its exec needs {nbytes} bytes and none of less value is idle; {self._used()}"
        return _eager(Reason.BUDGET, why)

    def _make_room(
        self,
        worth: float,
        idle: Callable[[int], bool],
        *,
        nbytes: int,
        execs: int = 0,
        but: _Family | None = None,
    ) -> tuple[int, ...] | None:
        """Choose the execs to close so that so many bytes and execs fit, none if they do already.

        Args:
            worth: hits x rebuild time of what needs the room.
            idle: whether an exec, by its id, has no launch in flight.
            nbytes: that are needed.
            execs: that are to be made.
            but: the family whose execs stay.

        Returns:
            The execs, each worth less by what is scarce; None where those are not enough.
        """

        def enough(chosen: list[int]) -> bool:
            left = len(self._execs) - len(chosen)
            slots = self.max_execs is None or left + execs <= self.max_execs
            return slots and self._fits(nbytes - self._bytes_of(chosen))

        # Where only their number is limited, it says nothing how large they are.
        by_bytes = not self._fits(nbytes)
        chosen: list[int] = []
        for value, exec_id in () if enough([]) else self._cheapest(idle, but, by_bytes=by_bytes):
            if enough(chosen) or _MARGIN * value >= worth / (nbytes if by_bytes else 1):
                break
            chosen.append(exec_id)
        return _needed(chosen, enough) if enough(chosen) else None

    def over_budget(self, idle: Callable[[int], bool], keep: int | None = None) -> tuple[int, ...]:
        """Return which idle execs to close since measuring showed more bytes than the budget.

        Args:
            idle: whether an exec, by its id, has no launch in flight.
            keep: the newest exec, closed only when closing all others is not enough.
        """

        def enough(chosen: list[int]) -> bool:
            return self._fits(-self._bytes_of(chosen))

        if enough([]):
            return ()
        chosen: list[int] = []
        for _, exec_id in self._cheapest(lambda at: at != keep and idle(at), by_bytes=True):
            if enough(chosen):
                break
            chosen.append(exec_id)
        if keep is not None and not enough(chosen):
            chosen.append(keep)
        return _needed(chosen, enough) if enough(chosen) else tuple(chosen)

    def _cheapest(
        self, idle: Callable[[int], bool], but: _Family | None = None, *, by_bytes: bool
    ) -> Iterator[tuple[float, int]]:
        """Yield (value, exec id) of the idle execs, those of least value first."""
        left = {at: exec_ for at, exec_ in self._execs.items() if exec_.family is not but}
        gone: Counter[_Family] = Counter()

        def value(exec_id: int) -> float:
            exec_ = left[exec_id]
            others = len(exec_.family.execs) - gone[exec_.family] - 1
            size = max(self._bytes(exec_.family), 1) if by_bytes else 1
            return exec_.hits * self._rebuild_us(exec_.family, others=others) / size

        while left:
            exec_id = min(left, key=value)
            worth, family = value(exec_id), left.pop(exec_id).family
            if idle(exec_id):
                gone[family] += 1
                yield worth, exec_id

    def surplus(self, more: int = 0) -> list[Hashable]:
        """Return the keys whose graphs to forget, those of least weight beyond ``max_graphs``.

        Args:
            more: graphs that are about to come.
        """
        held = len(self._execs)
        excess = len(self.keys) - len(self._graphless) - held + more - self.max_graphs
        if excess <= 0:
            return []
        free = (
            key
            for key, state in self.keys.items()
            if state.family is not None and state.exec_id is None
        )
        return nsmallest(excess, free, key=lambda key: self.keys[key].weight)

    # --- figures ---------------------------------------------------------------------------------

    @property
    def exec_bytes(self) -> int:
        """Device memory of the execs."""
        return round(self._node_bytes * self._nodes)

    def held_bytes(self) -> dict[Hashable, int]:
        """Return the bytes of the execs by the keys whose graphs they hold."""
        return {exec_.key: self._bytes(exec_.family) for exec_ in self._execs.values()}

    def _bytes(self, family: _Family) -> int:
        """Return the bytes of an exec, by what those before it took a node.

        Before anything was measured that is 0: the first exec is made, and closed if it turns out
        to be too much. A guess could refuse it for ever.
        """
        return round(self._node_bytes * family.nodes)

    def _bytes_of(self, exec_ids: list[int]) -> int:
        return sum(self._bytes(self._execs[exec_id].family) for exec_id in exec_ids)

    def _fits(self, nbytes: int) -> bool:
        used = self.arena_bytes + self.exec_bytes
        return self.memory_budget is None or used + nbytes <= self.memory_budget

    def _used(self) -> str:
        budget = "no limit" if self.memory_budget is None else f"{self.memory_budget} allowed"
        execs = f"{len(self._execs)} execs {self.exec_bytes}"
        if self.max_execs is not None:
            execs = f"{len(self._execs)} of {self.max_execs} execs {self.exec_bytes}"
        return f"arenas have {self.arena_bytes} bytes, {execs}, {budget}"

    def _instantiate_us(self, family: _Family) -> float:
        """Return what an exec takes to make: measured where one was, else predicted."""
        if family.instantiate_us < inf:
            return family.instantiate_us
        return family.nodes * self.costs.instantiate_node_us

    def _rebuild_us(self, family: _Family, others: int) -> float:
        """Return what a request would wait without an exec: its making, or a move of another."""
        if not others:
            return self._instantiate_us(family)
        return self.costs.cost(family.topology, family.nodes, family.nodes, Move.UPDATE)


def _family_of(state: KeyState) -> _Family:
    assert state.family is not None, "only a captured key has an exec"
    return state.family


def _needed(chosen: list[int], enough: Callable[[list[int]], bool]) -> tuple[int, ...]:
    """Return the chosen execs without those that need not be closed, given the larger ones."""
    for exec_id in reversed(chosen[:-1]):
        others = [other for other in chosen if other != exec_id]
        if enough(others):
            chosen = others
    return tuple(chosen)


def _eager(reason: Reason, why: str) -> Decision:
    return Decision(Step.EAGER, reason=reason, why=why)


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int of {least} or more, came {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected an int of {least} or more, came {value}")
