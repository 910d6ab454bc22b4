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
from heapq import heapify, heappop, heappush, nsmallest
from math import inf, log
from typing import Any, Generic, TypeVar

from graphkit.cost_model import CostModel, Move
from graphkit.counts import check_count, counted
from graphkit.exec_memory import ExecMemory

__all__ = ["Decision", "KeyState", "PoolPolicy", "Reason", "Step"]

Key = TypeVar("Key", bound=Hashable)

# The pool's requests after which what a key was asked for counts half, and how many may pass
# before that is seen to.
_HALF_LIFE, _AGEING = 2_000, 500
# What takes another's place must be worth more than so many times as much: of two that are asked
# for about equally often, neither drives the other out.
_MARGIN = 2
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
    key: Any
    state: KeyState
    recent: _Recent

    @property
    def hits(self) -> float:
        """How much it was launched lately."""
        return self.recent.at(self.state.launches)


class PoolPolicy(Generic[Key]):
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
            max_execs = check_count("max_execs", max_execs, 1)
        max_graphs = check_count("max_graphs", max_graphs, 1)
        if capture_after is not None:
            capture_after = check_count("capture_after", capture_after, 0)
        self.memory_budget = memory_budget
        self.max_execs = max_execs
        self.max_graphs = max_graphs
        self.capture_after = capture_after
        self.costs = CostModel()
        self.arena_bytes = 0
        self.requests = 0
        self.keys: dict[Key, KeyState] = {}
        self._graphless: dict[Key, None] = {}  # of the keys; the last asked for is last
        self._families: dict[Hashable, _Family] = {}  # by topology
        self._execs: dict[int, _Exec] = {}
        self._clock = clock
        self._aged_at = 0
        self._memory = ExecMemory()

    # --- what happened ---------------------------------------------------------------------------

    def state(self, key: Key) -> KeyState:
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

    def captured(self, key: Key, topology: Hashable, nodes: int) -> None:
        """Note that a key has a graph now, and what it may share an exec with."""
        state = self.state(key)
        self._leave_family(key, state)
        state.family = self._families.setdefault(topology, _Family(topology, nodes))
        state.family.keys[key] = state
        self._graphless.pop(key, None)

    def _leave_family(self, key: Key, state: KeyState) -> None:
        family, state.family = state.family, None
        if family is None:
            return
        del family.keys[key]
        if not family.keys:
            del self._families[family.topology]
            self.costs.forget(family.topology)

    def failed(self, key: Key) -> float:
        """Quarantine a key whose capture failed, and return for how many seconds."""
        state = self.state(key)
        state.failures += 1
        doubled = _FIRST_BACKOFF * 2.0 ** min(state.failures - 1, 30)
        seconds = min(doubled, _LONGEST_BACKOFF)
        state.retry_at = self._clock() + seconds
        return seconds

    def instantiated(self, exec_id: int, key: Key, nbytes: int, us: float) -> None:
        """Note a new exec that holds a key's graph.

        Args:
            exec_id: what the pool calls it from now on.
            key: whose graph it holds.
            nbytes: by how much the device's free memory shrank.
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
        self._memory.made(family.nodes, nbytes)

    def moved(self, exec_id: int, key: Key, us: float) -> None:
        """Note that an exec holds another key's graph now."""
        exec_ = self._execs[exec_id]
        exec_.state.exec_id = None
        state = self.keys[key]
        exec_.recent = _Recent(exec_.hits, state.launches)
        exec_.key, exec_.state = key, state
        self._hold(exec_id, state)
        # One that was to have an exec of its own and found no room asks again in as much time.
        enough = state.moving_us >= self._instantiate_us(exec_.family)
        state.moving_us = us if enough else state.moving_us + us

    def _hold(self, exec_id: int, state: KeyState) -> None:
        state.exec_id = exec_id
        state.failures, state.retry_at = 0, 0.0

    def closed(self, exec_id: int, nbytes: int) -> None:
        """Note that an exec is gone, and by how much the device's free memory grew."""
        exec_ = self._execs.pop(exec_id)
        exec_.state.exec_id = None
        family = exec_.family
        del family.execs[exec_id]
        self._memory.closed(family.nodes, nbytes)

    def forgotten(self, key: Key) -> None:
        """Note that a key's graph, which no exec holds, is gone; its counts stay."""
        self._leave_family(key, self.keys[key])
        self._graphless[key] = None

    # --- what to do ------------------------------------------------------------------------------

    def decide(
        self,
        key: Key,
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
            failed = counted(state.failures, "time")
            why = f"its capture failed {failed}; the next try is in {wait:.1f} s"
            return _eager(Reason.QUARANTINED, why)
        if state.family is not None:
            return self._place(state, state.family, idle)
        if self.capture_after is None and not warm:
            return _eager(Reason.KEY_MISS, "warm() has not captured it")
        if self.capture_after is not None and state.eager < self.capture_after and not warm:
            after = counted(self.capture_after, "request")
            why = f"captured after {after}, this is number {state.eager + 1}"
            return _eager(Reason.KEY_MISS, why)
        instead = self.surplus(more=1)
        if instead and state.weight <= _MARGIN * self.keys[instead[-1]].weight:
            why = f"as many graphs as are kept, {self.max_graphs}, are asked for about as often"
            return _eager(Reason.KEY_MISS, why)
        close: tuple[int, ...] | None = ()
        if growth:
            nodes = growth / max(self._memory.node_bytes, 1)  # of the execs that take as much
            worth = state.weight * nodes * self.costs.instantiate_node_us
            close = self._make_room(worth, idle, nbytes=growth)
        if close is None:
            return _eager(Reason.BUDGET, f"its arenas need {growth} bytes more; {self._used()}")
        return Decision(Step.CAPTURE, close=close, why="no graph of this key yet")

    def _place(self, state: KeyState, family: _Family, idle: Callable[[int], bool]) -> Decision:
        """Choose an exec for a captured key."""
        if state.exec_id is not None:
            return Decision(Step.LAUNCH, state.exec_id, why="an exec holds its graph")
        # An exec of its own, once moving those of others has cost as much: while it keeps that
        # one, the key pays at most twice what knowing the future would have.
        if not family.execs or state.moving_us >= self._instantiate_us(family):
            weight = state.weight if family.execs else family.weight
            worth = weight * self._rebuild_us(family, others=len(family.execs))
            close = self._make_room(worth, idle, but=family)
            if close is not None:
                instead = f"in place of {len(close)} of less value" if close else "there is room"
                return Decision(Step.INSTANTIATE, close=close, why=f"{instead}; {self._used()}")
        if family.execs:
            # Changes affect later launches only: an exec in flight may be moved.
            exec_id = min(family.execs, key=lambda at: family.execs[at].state.weight)
            return Decision(Step.RETARGET, exec_id, why="an exec of the same topology is there")
        why = f"no room for its exec, and none of less value is idle; {self._used()}"
        return _eager(Reason.BUDGET, why)

    def _make_room(
        self,
        worth: float,
        idle: Callable[[int], bool],
        *,
        nbytes: int = 0,
        but: _Family | None = None,
    ) -> tuple[int, ...] | None:
        """Choose the execs to close so that there is room, none if there is already.

        Args:
            worth: hits x rebuild time of what needs the room.
            idle: whether an exec, by its id, has no launch in flight.
            nbytes: for arenas.
            but: the family that a new exec is for, and whose execs stay.

        Returns:
            The execs, each worth less by what is scarce; None where those are not enough.
        """
        nodes = 0 if but is None else but.nodes

        def enough(chosen: list[int]) -> bool:
            left = len(self._execs) - len(chosen)
            slots = but is None or self.max_execs is None or left < self.max_execs
            return slots and self._fits(nbytes, nodes, chosen)

        if enough([]):
            return ()
        # Where only their number is limited, it does not matter how large they are.
        by_size = not self._fits(nbytes, nodes)
        size = nodes or nbytes / max(self._memory.node_bytes, 1)
        limit = worth / size if by_size else worth
        chosen: list[int] = []
        for value, exec_id in self._cheapest(idle, but, by_size=by_size):
            if _MARGIN * value >= limit:
                return None
            chosen.append(exec_id)
            if enough(chosen):
                return _needed(chosen, enough)
        return None

    def over_budget(self, idle: Callable[[int], bool], keep: int | None = None) -> tuple[int, ...]:
        """Return which idle execs to close since measuring showed more bytes than the budget.

        Where closing an exec gives nothing back, only ``keep`` is: it stops what took too much.

        Args:
            idle: whether an exec, by its id, has no launch in flight.
            keep: the newest exec, closed only when closing all others is not enough.
        """

        def enough(chosen: list[int]) -> bool:
            return self._within(self._memory.change(0, self._nodes_of(chosen)))

        if enough([]):
            return ()
        chosen: list[int] = []
        for _, exec_id in self._cheapest(lambda at: at != keep and idle(at), by_size=True):
            chosen.append(exec_id)
            if enough(chosen):
                return _needed(chosen, enough)
        last = [] if keep is None else [keep]
        if self._memory.gives_back is False:
            return tuple(last)
        chosen += last
        return _needed(chosen, enough) if enough(chosen) else tuple(chosen)

    def refused(self) -> None:
        """Note that the exec that was closed last had taken more than the budget."""
        self._memory.refused()

    def _cheapest(
        self, idle: Callable[[int], bool], but: _Family | None = None, *, by_size: bool
    ) -> Iterator[tuple[float, int]]:
        """Yield (value, exec id) of the idle execs, those of least value first."""
        gone: Counter[_Family] = Counter()

        def value(exec_id: int) -> float:
            exec_ = self._execs[exec_id]
            others = len(exec_.family.execs) - gone[exec_.family] - 1
            size = max(exec_.family.nodes, 1) if by_size else 1
            return exec_.hits * self._rebuild_us(exec_.family, others=others) / size

        heap = [(value(at), at) for at, exec_ in self._execs.items() if exec_.family is not but]
        heapify(heap)
        while heap:
            worth, exec_id = heappop(heap)
            if value(exec_id) > worth:  # the only one of its family by now
                heappush(heap, (value(exec_id), exec_id))
            elif idle(exec_id):
                gone[self._execs[exec_id].family] += 1
                yield worth, exec_id

    def surplus(self, more: int = 0) -> list[Key]:
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
        """Device memory that was taken for execs."""
        return self._memory.taken

    def held_bytes(self) -> dict[Key, int]:
        """Return the bytes of the execs by the keys whose graphs they hold."""
        share = self._memory.share
        return {exec_.key: share(exec_.family.nodes) for exec_ in self._execs.values()}

    def _nodes_of(self, exec_ids: list[int]) -> int:
        return sum(self._execs[exec_id].family.nodes for exec_id in exec_ids)

    def _fits(self, nbytes: int, nodes: int, without: list[int] | None = None) -> bool:
        """Return whether arenas and an exec of so many nodes fit, without some other execs."""
        closed = without or []
        change = self._memory.change(nodes, self._nodes_of(closed), len(closed))
        # What CUDA keeps anyway may be used again.
        return (not nbytes and change <= 0) or self._within(nbytes + change)

    def _within(self, more: int) -> bool:
        used = self.arena_bytes + self.exec_bytes + more
        return self.memory_budget is None or used <= self.memory_budget

    def _used(self) -> str:
        budget = "no limit" if self.memory_budget is None else f"{self.memory_budget} allowed"
        execs = f"{counted(len(self._execs), 'exec')} {self.exec_bytes}"
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
