"""What an exec pool did: counted at one place, read as one frozen value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from graphkit.pool_graph import Binding
from graphkit.pool_policy import KeyState, Reason, Step
from graphkit.signature import Signature

__all__ = ["Counts", "KeyStats", "PoolMemory", "PoolStats", "StepStats"]


@dataclass(frozen=True)
class StepStats:
    """How often a rung of the ladder was taken, and the host time it took in all.

    Plain launches are too short to be timed each: theirs is estimated from one in 64.
    """

    count: int = 0
    milliseconds: float = 0.0


@dataclass(frozen=True)
class PoolMemory:
    """Device memory of a pool in bytes.

    Attributes:
        arenas: staging memory of the arguments.
        execs: executable graphs, measured while they were made and shared out by nodes.
        graphs: memory that the captured functions allocated for themselves.
        budget: what all of it may be; None for no limit.
    """

    arenas: int
    execs: int
    graphs: int
    budget: int | None

    @property
    def total(self) -> int:
        """All of it."""
        return self.arenas + self.execs + self.graphs


@dataclass(frozen=True)
class KeyStats:
    """What one key was asked for and what it took.

    Attributes:
        key: the signature of its graph; its ``rebound`` names the inputs that are not copied.
        refusal: why inputs are copied that could have been rebound; empty where none is.
        hits: requests that a graph answered.
        eager: requests that were answered eagerly.
        captures: captures, those of warm-ups included.
        moves: times that an exec was moved to this key.
        instantiates: execs made for it.
        evictions: execs closed while they held it.
        failures: captures that failed.
        milliseconds: host time of its captures, instantiations and moves.
        nbytes: device memory of the exec that holds it now; 0 when none does.
    """

    key: Signature
    hits: int
    eager: int
    captures: int
    moves: int
    instantiates: int
    evictions: int
    failures: int
    milliseconds: float
    nbytes: int
    refusal: str = ""


@dataclass(frozen=True)
class PoolStats:
    """What a pool did since it was made, warm-up apart.

    Attributes:
        requests: requests, however answered.
        hits: those answered by a graph that was there: no capture, no eager run.
        steps: by rung; a request that needed several rungs counts at each.
        fallbacks: eager answers by reason.
        updates: how execs were moved: ``"nodes"``, ``"update"``, and ``"refused"``.
        elements: elements of the arguments as they came, over requests that graphs answered.
        padded_elements: the same as the graphs saw them.
        captures, instantiates, evictions, failures: as for a key, over all keys.
        warm: captures and instantiations made by ``warm()``, as steps.
        keys: each key's share, the most asked for first.
        memory: what the pool has now.
    """

    requests: int
    hits: int
    steps: Mapping[Step, StepStats]
    fallbacks: Mapping[Reason, int]
    updates: Mapping[str, int]
    elements: int
    padded_elements: int
    captures: int
    instantiates: int
    evictions: int
    failures: int
    warm: Mapping[Step, StepStats]
    keys: tuple[KeyStats, ...]
    memory: PoolMemory

    @property
    def hit_rate(self) -> float:
        """Share of the requests that a graph answered which was there."""
        return self.hits / self.requests if self.requests else 0.0

    @property
    def rebound(self) -> int:
        """Requests answered by graphs that read inputs where they are."""
        return sum(stats.hits for stats in self.keys if stats.key.rebound)

    @property
    def padding_ratio(self) -> float:
        """Share of what the graphs worked on that was padding."""
        if not self.padded_elements:
            return 0.0
        return (self.padded_elements - self.elements) / self.padded_elements


@dataclass(slots=True)
class _KeyCounts:
    counts: Counter[str] = field(default_factory=Counter)
    microseconds: float = 0.0


class Counts:
    """The one place where a pool counts: rungs and fallbacks here, plain launches by bindings.

    Attributes:
        fallbacks: eager answers by reason.
        updates: moves of execs by how.
        misses: requests that a graph answered which had to be captured first.
    """

    def __init__(self) -> None:
        self.fallbacks: Counter[Reason] = Counter()
        self.updates: Counter[str] = Counter()
        self.misses = 0
        self._samples: dict[Step, list[int]] = {Step.LAUNCH: [0, 0], Step.SET: [0, 0]}
        self._steps: dict[Step, list[float]] = {step: [0, 0.0] for step in Step}
        self._warm: dict[Step, list[float]] = {step: [0, 0.0] for step in Step}
        self._keys: dict[Signature, _KeyCounts] = {}
        self._gone: Counter[str] = Counter()  # of keys that were forgotten
        # Of bindings that were forgotten.
        self._launches = self._sets = self._elements = self._padded_elements = 0

    def step(self, step: Step, key: Signature, us: float, *, warm: bool = False) -> None:
        """Count a rung that a request, or ``warm()``, took."""
        totals = (self._warm if warm else self._steps)[step]
        totals[0] += 1
        totals[1] += us
        of_key = self._of(key)
        of_key.counts[step] += 1
        if step is not Step.EAGER:  # which no graph had saved
            of_key.microseconds += us

    @property
    def captures(self) -> int:
        """Captures so far that gave a graph."""
        return int(self._steps[Step.CAPTURE][0])

    def _of(self, key: Signature) -> _KeyCounts:
        found = self._keys.get(key)
        if found is None:
            found = self._keys[key] = _KeyCounts()
        return found

    def sample(self, step: Step, nanoseconds: int) -> None:
        """Note what a single launch took, or a launch and the changes before it."""
        totals = self._samples[step]
        totals[0] += 1
        totals[1] += nanoseconds

    def note(self, what: str, key: Signature) -> None:
        """Count something else that happened to a key, such as ``"evictions"``."""
        self._of(key).counts[what] += 1

    def prune(self, keys: Container[Signature]) -> None:
        """Forget what single keys did that nobody remembers; it still counts in all."""
        gone = [key for key in self._keys if key not in keys]
        for key in gone:
            self._gone.update(self._keys.pop(key).counts)

    def forget(self, binding: Binding) -> None:
        """Take over what a binding counted, before it is dropped."""
        self._launches += binding.launches
        self._sets += binding.sets
        self._elements += binding.launches * binding.elements
        self._padded_elements += binding.launches * binding.padded_elements

    def stats(
        self,
        bindings: Iterable[Binding],
        states: Mapping[Signature, KeyState],
        exec_bytes: Mapping[Signature, int],
        refusals: Mapping[Signature, str],
        memory: PoolMemory,
    ) -> PoolStats:
        """Put all counts together.

        Args:
            bindings: those that were not forgotten.
            states: what the policy knows, by key.
            exec_bytes: of the execs that hold a key's graph now.
            refusals: why inputs of a key are copied that could have been rebound.
            memory: what the pool has.
        """
        live = list(bindings)
        launches = self._launches + sum(binding.launches for binding in live)
        sets = self._sets + sum(binding.sets for binding in live)
        steps = _by_step(self._steps)
        for step, count in ((Step.LAUNCH, launches - sets), (Step.SET, sets)):
            if count:
                timed, nanoseconds = self._samples[step]
                steps[step] = StepStats(count, count * nanoseconds / max(timed, 1) / 1e6)
        keys = [
            self._of_key(key, state, exec_bytes.get(key, 0), refusals.get(key.staged(), ""))
            for key, state in states.items()
        ]
        return PoolStats(
            requests=launches + sum(self.fallbacks.values()),
            hits=launches - self.misses,
            steps={step: steps[step] for step in Step if step in steps},
            fallbacks=dict(self.fallbacks),
            updates=dict(self.updates),
            elements=self._elements + sum(b.launches * b.elements for b in live),
            padded_elements=self._padded_elements
            + sum(b.launches * b.padded_elements for b in live),
            captures=steps.get(Step.CAPTURE, StepStats()).count,
            instantiates=steps.get(Step.INSTANTIATE, StepStats()).count,
            evictions=self._total("evictions"),
            failures=self._total("failures"),
            warm=_by_step(self._warm),
            keys=tuple(sorted(keys, key=lambda stats: -stats.hits - stats.eager)),
            memory=memory,
        )

    def _of_key(self, key: Signature, state: KeyState, nbytes: int, refusal: str) -> KeyStats:
        found = self._keys.get(key) or _KeyCounts()
        return KeyStats(
            key=key,
            hits=state.launches,
            eager=state.eager,
            captures=found.counts[Step.CAPTURE],
            moves=found.counts[Step.RETARGET],
            instantiates=found.counts[Step.INSTANTIATE],
            evictions=found.counts["evictions"],
            failures=found.counts["failures"],
            milliseconds=found.microseconds / 1e3,
            nbytes=nbytes,
            refusal=refusal,
        )

    def _total(self, what: str) -> int:
        return self._gone[what] + sum(of_key.counts[what] for of_key in self._keys.values())


def _by_step(totals: Mapping[Step, list[float]]) -> dict[Step, StepStats]:
    return {
        step: StepStats(int(totals[step][0]), totals[step][1] / 1e3)
        for step in Step
        if totals[step][0]
    }
