"""ExecPool: many shapes, few executable graphs, one memory budget, a reason for everything."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

from graphkit.arrays import is_array
from graphkit.bucket_capture import BucketCapture, refuse_pool_in_pool
from graphkit.bucket_graphs import BucketGraphs
from graphkit.buckets import Buckets
from graphkit.cost_model import Move
from graphkit.errors import FallbackError, refuse_closed
from graphkit.frameworks import FINGERPRINTS, fingerprint
from graphkit.in_flight import InFlight
from graphkit.lattice import Lattice
from graphkit.lifetime import live_captures, thread_captures
from graphkit.pool_exec import PoolExec
from graphkit.pool_execs import PoolExecs
from graphkit.pool_graph import Binding, alignment_of
from graphkit.pool_manifest import Manifest
from graphkit.pool_policy import Decision, PoolPolicy, Reason, Step
from graphkit.pool_request import Request, RequestReader, Roles
from graphkit.pool_stats import Counts, PoolMemory, PoolStats
from graphkit.pool_warm import WarmProgress, WarmReport, WarmRequest, WarmRow, requests_of
from graphkit.runtime import current
from graphkit.runtime.protocol import CaptureStatus, Runtime
from graphkit.signature import Signature, typed_value
from graphkit.stream import Stream, runtime_of, stream_handle
from graphkit.trial import Times, Tolerance, Trial, answers, first_difference
from graphkit.user_function import UserFunction

__all__ = ["ExecPool", "Failure", "Plan"]

# One launch in 64 of a shape is timed.
_SAMPLED = 63
# Shapes of requests that a pool remembers before it starts anew.
_REMEMBERED = 4096


@dataclass(frozen=True)
class Failure:
    """A capture that failed, as ``on_failure`` is told.

    Attributes:
        key: whose capture it was.
        error: what was raised.
        failures: how often in a row.
        retry_seconds: how long the key is answered eagerly from now.
    """

    key: Signature
    error: Exception
    failures: int
    retry_seconds: float


@dataclass(frozen=True)
class Plan:
    """What a pool would do with a request.

    Attributes:
        step: the rung it would take first.
        reason: why not by a graph, None otherwise.
        why: the decision in a sentence.
        key: the signature of the graph that would answer.
        sizes: the bucket's size of each dimension.
        padding_ratio: share of the padded arguments that would be padding.
        changed_nodes: nodes to be changed, for a retarget.
        move: how they would be.
    """

    step: Step
    reason: Reason | None
    why: str
    key: Signature
    sizes: tuple[int, ...] = ()
    padding_ratio: float = 0.0
    changed_nodes: int | None = None
    move: Move | None = None


class ExecPool:
    """Answers requests of many shapes with few executable graphs, under a memory budget.

    ``fn`` is captured once per bucket. A request's arrays are copied into staging memory in the
    bucket's shape and padded, and results are cut to the real size, by kernels of the same graph;
    so a request costs one parameter change for each of the two, and one launch. Execs are moved
    between buckets of one topology; what does not fit the budget is evicted, and what no graph
    can answer runs eagerly, with the reason counted.

    Args:
        fn: launches work on the current stream with the given arrays, called by name; it is given
            the stream too when it has a parameter ``stream``. It runs ``warmups`` times more for
            each bucket, and once more for each dimension when it returns arrays.
        buckets: by argument the sizes it is padded to, one :class:`Buckets` or several.
        outputs: arguments that ``fn`` writes without reading them.
        inouts: arguments that ``fn`` reads and writes.
        fill: by argument what its padding becomes; 0 by default.
        key: called with the arguments, returns what else the graphs depend on.
        memory_budget: device memory for arenas, graphs and execs, in bytes or as ``"256MiB"``.
        max_execs: most execs at a time.
        max_graphs: most captured graphs in host memory, besides those that execs hold.
        capture_after: requests of a bucket that are answered eagerly before it is captured; None
            leaves captures to :meth:`warm`.
        warmups: eager runs before a capture.
        strict: raise :class:`FallbackError` instead of answering eagerly.
        on_failure: called with a :class:`Failure` when a capture fails.
        stream: where launches go; a new one by default.

    What comes back are views of static memory, valid until the pool's next call. Calls may come
    from several threads; they are put on the one stream in some order.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        buckets: Mapping[str, Buckets | Sequence[Buckets]] | None = None,
        *,
        outputs: Iterable[str] = (),
        inouts: Iterable[str] = (),
        fill: Mapping[str, object] | None = None,
        key: Callable[..., Hashable] | None = None,
        memory_budget: int | str | None = None,
        max_execs: int | None = None,
        max_graphs: int = 1024,
        capture_after: int | None = 0,
        warmups: int = 2,
        strict: bool = False,
        on_failure: Callable[[Failure], None] | None = None,
        stream: object | None = None,
    ) -> None:
        # Whatever may be refused comes before the first handle.
        _check_callable("key", key)
        _check_callable("on_failure", on_failure)
        self._fn = UserFunction(fn)
        self._lattice = lattice = Lattice({} if buckets is None else buckets)
        self._roles = Roles(outputs, inouts, {} if fill is None else fill)
        self._reader = RequestReader(self._fn, lattice, self._roles, key)
        self._key = key
        self._strict = strict
        self._on_failure = on_failure
        self._policy = PoolPolicy[Signature](
            memory_budget=parse_bytes(memory_budget),
            max_execs=max_execs,
            max_graphs=max_graphs,
            capture_after=capture_after,
        )
        _check_warmups(warmups)
        self._counts = Counts()
        self.runtime: Runtime = current() if stream is None else runtime_of(stream)
        self.stream = Stream(runtime=self.runtime) if stream is None else stream
        self._in_flight = InFlight(self.runtime, stream_handle(self.stream))
        self._execs = PoolExecs(self._policy, self._counts, self._in_flight, self.stream)
        capture = BucketCapture(self._fn, lattice, self.runtime, self.stream, warmups)
        self._graphs = BucketGraphs(self.runtime, lattice, capture, self._roles)
        self._lock = RLock()
        self._closed = False
        self._enabled = os.environ.get("GRAPHKIT_DISABLE", "") in ("", "0")
        self._requests: dict[Hashable, Request] = {}
        self._bindings: dict[Hashable, Binding] = {}
        self._errors: dict[Signature, Exception] = {}
        # The shape of the last request: one that is the same needs no dictionary.
        self._last_seen: list[Hashable] = []
        self._last: Binding | None = None

    @property
    def enabled(self) -> bool:
        """Whether graphs are used; False at first where GRAPHKIT_DISABLE is set in the environment.

        While it is False every request runs eagerly.
        """
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        with self._lock:
            self._enabled = bool(enabled)
            self._forget_bindings()

    # --- a request -------------------------------------------------------------------------------

    def __call__(self, /, **arguments: Any) -> Any:
        """Answer a request: by a graph where one can, eagerly where none can.

        Args:
            arguments: the arrays and values that ``fn`` takes, by name.

        Returns:
            What ``fn`` returns, its arrays cut to the request's size.

        Raises:
            TypeError, ValueError: arguments that ``fn`` or the buckets do not take.
            FallbackError: no graph can answer, and the pool is ``strict``.
        """
        # Written out rather than called, as all that every request passes through.
        seen: list[Hashable] = [*arguments]
        addresses: list[int] = []
        for value in arguments.values():
            look = _LOOKS.get(type(value))
            if look is None:
                seen, addresses = _look(arguments)
                break
            address, shape = look(value, "arguments")
            addresses.append(address)
            seen.append(shape)
        if self._key is not None:  # asked each time: what it looks at may be no argument
            seen.append(typed_value(self._key(**arguments), "key"))
        with self._lock:
            binding = self._last if seen == self._last_seen else self._bindings.get(tuple(seen))
            if binding is not None and not live_captures:
                exec_ = binding.graph.exec
                if exec_ is not None:
                    sampled = not binding.launches & _SAMPLED
                    begin = time.perf_counter_ns() if sampled else 0
                    if exec_.put(binding, addresses):
                        exec_.launch()
                        self._last_seen, self._last = seen, binding
                        # The exec took the list over where an address in it was new.
                        moved = exec_.addresses is addresses
                        if sampled:
                            step = Step.SET if moved else Step.LAUNCH
                            self._counts.sample(step, time.perf_counter_ns() - begin)
                        self._launched(exec_, binding, moved, arguments)
                        return binding.result
        return self._answer(tuple(seen), addresses, arguments)

    def _launched(
        self, exec_: PoolExec, binding: Binding, moved: bool, arguments: Mapping[str, object]
    ) -> None:
        """Count a launch, and keep what it uses."""
        binding.launches += 1
        binding.sets += moved
        binding.state.launches += 1
        self._policy.requests += 1
        flight = self._in_flight
        flight.pending.append((exec_, arguments))
        flight.load += binding.load
        if flight.load >= 1:
            flight.mark()

    def _answer(self, seen: Hashable, addresses: list[int], arguments: Mapping[str, object]) -> Any:
        """Climb the ladder until a graph answers, or answer eagerly."""
        refuse_pool_in_pool()
        with self._lock:
            request = self._request(seen, arguments)
            missed = request.key not in self._graphs
            decision = self._climb(request, arguments)
            if decision.step is Step.LAUNCH:
                binding = self._bind(request, seen, addresses)
                exec_ = binding.graph.exec
                assert exec_ is not None
                exec_.put(binding, addresses)
                exec_.launch()
                self._counts.misses += missed
                self._launched(exec_, binding, True, arguments)
                return binding.result
            assert decision.reason is not None
            self._policy.requests += 1
            self._policy.state(request.key).eager += 1
            self._counts.fallbacks[decision.reason] += 1
        return self._run_eagerly(decision, request, arguments)

    def _climb(
        self, request: Request, arguments: Mapping[str, object], *, warm: bool = False
    ) -> Decision:
        """Take the rungs that a request needs, until an exec holds its graph or none may."""
        while True:
            decision = self._decide(request, warm=warm)
            if decision.step is Step.LAUNCH or decision.step is Step.EAGER:
                return decision
            if decision.close:
                for number in decision.close:
                    self._execs.evict(number)
                continue  # what that gave back is known only now
            begin = time.perf_counter_ns()
            try:
                self._take(decision, request, arguments)
            except Exception as error:
                self._failed(request.key, error)
            else:
                us = (time.perf_counter_ns() - begin) / 1e3
                self._counts.step(decision.step, request.key, us, warm=warm)
                if decision.step is not Step.CAPTURE and self._graphs[request.key].exec is not None:
                    return Decision(Step.LAUNCH)

    def _decide(self, request: Request, *, warm: bool = False) -> Decision:
        decision = self._refusal(request) or self._policy.decide(
            request.key, self._execs.idle, self._graphs.growth(request), warm=warm
        )
        if decision.step in (Step.CAPTURE, Step.INSTANTIATE) and thread_captures():
            # cudaMalloc and cudaGraphInstantiate would end that capture.
            why = "this thread captures another stream now, and no graph is ready"
            return Decision(Step.EAGER, reason=Reason.INELIGIBLE, why=why)
        return decision

    def _run_eagerly(
        self, decision: Decision, request: Request, arguments: Mapping[str, object]
    ) -> Any:
        if self._strict:
            assert decision.reason is not None
            # Not kept: its frames know the arrays of the request, and this pool.
            cause = self._errors.pop(request.key, None)
            raise FallbackError(decision.reason, decision.why, str(request.key)) from cause
        begin = time.perf_counter_ns()
        result = self._fn(arguments, self.stream)
        with self._lock:
            us = (time.perf_counter_ns() - begin) / 1e3
            self._counts.step(Step.EAGER, request.key, us)
            self._in_flight.keep(arguments, sum(info.nbytes for info in request.infos.values()))
        return result

    def _look(self, arguments: Mapping[str, object]) -> tuple[Hashable, list[int]]:
        """Return what a request is looked up by, and its addresses, as its call finds them."""
        seen, addresses = _look(arguments)
        if self._key is not None:
            seen.append(typed_value(self._key(**arguments), "key"))
        return tuple(seen), addresses

    def _request(self, seen: Hashable, arguments: Mapping[str, object]) -> Request:
        """Return what is known of a shape of request, looking at it the first time."""
        if self._closed:
            refuse_closed("pool")
        request = self._requests.get(seen)
        if request is None:
            if len(self._requests) >= _REMEMBERED:
                self._forget_shapes()
            request = self._requests[seen] = self._reader.read(arguments)
        return request

    def _refusal(self, request: Request) -> Decision | None:
        """Return why no graph may answer, as far as the request itself and the stream say."""
        if not self._enabled:
            return Decision(Step.EAGER, reason=Reason.DISABLED, why="graphs are turned off")
        if request.fit.reason is not None:
            return Decision(Step.EAGER, reason=Reason(request.fit.reason), why=request.fit.detail)
        status = self.runtime.stream_is_capturing(stream_handle(self.stream))
        if status is not CaptureStatus.NONE:
            why = "the stream is being captured: the function becomes a part of that graph"
            return Decision(Step.EAGER, reason=Reason.INELIGIBLE, why=why)
        return None

    def _take(self, decision: Decision, request: Request, arguments: Mapping[str, object]) -> None:
        """Take a rung of the ladder above a plain launch."""
        if decision.step is Step.CAPTURE:
            try:
                made = self._graphs.capture(request, arguments)
            finally:
                # A capture that fails leaves the arenas that it let grow.
                self._policy.arena_bytes = self._graphs.arena_bytes + self._graphs.private_bytes
            self._policy.captured(request.key, made.topology, made.nodes)
            for number in self._policy.over_budget(self._execs.idle):
                self._execs.evict(number)
            for key in self._policy.surplus():
                self._forget(key)
        elif decision.step is Step.INSTANTIATE:
            self._execs.instantiate(self._graphs[request.key])
        else:
            assert decision.exec_id is not None
            self._execs.move(decision.exec_id, self._graphs[request.key])

    def _bind(self, request: Request, seen: Hashable, addresses: Sequence[int]) -> Binding:
        """Return the binding of a shape of request to its bucket's graph."""
        alignment = alignment_of(addresses)
        binding = request.bindings.get(alignment)
        if binding is None:
            made, state = self._graphs[request.key], self._policy.state(request.key)
            binding = Binding(
                made, request.infos, request.names, request.fit.extents, alignment, state
            )
            request.bindings[alignment] = binding
        self._requests.setdefault(seen, request)  # its capture may have let go of all shapes
        self._bindings[seen] = binding
        return binding

    def _failed(self, key: Signature, error: Exception) -> None:
        """Quarantine a key, and tell whoever wants to know."""
        self._counts.note("failures", key)
        if self._strict:
            self._errors[key] = error
        seconds = self._policy.failed(key)
        if self._on_failure is not None:
            failures = self._policy.state(key).failures
            self._on_failure(Failure(key, error, failures, seconds))

    def _forget(self, key: Signature) -> None:
        """Give up a bucket's graph."""
        made = self._graphs[key]
        self._in_flight.keep(made.owners)
        self._graphs.forget(key)
        self._execs.forget(made)
        self._policy.forgotten(key)
        self._forget_shapes()

    def _forget_shapes(self) -> None:
        """Forget the shapes of requests, but not how often they came."""
        for request in self._requests.values():
            for binding in request.bindings.values():
                self._counts.forget(binding)
        self._requests.clear()
        self._counts.prune(self._policy.keys)
        self._forget_bindings()

    def _forget_bindings(self) -> None:
        """Let every shape of request be looked at again."""
        self._bindings.clear()
        self._last_seen, self._last = [], None

    # --- before the first request ----------------------------------------------------------------

    def warm(
        self,
        example: Mapping[str, object] | None = None,
        *,
        manifest: str | Path | None = None,
        seconds: float | None = None,
        progress: bool = False,
        validate: bool | Tolerance = False,
        compare_speed: bool = True,
    ) -> WarmReport:
        """Capture every bucket, the largest first, and make an exec for each topology.

        What the budget leaves room for beyond that is made for the buckets that are asked for.
        Each bucket is asked for once, with arrays of its size that begin with the example's
        elements and are filled up with the padding. Where both ways have a time, each is timed,
        and a bucket whose graph is slower than eager stays eager.

        Args:
            example: the arguments of a request; what is bucketed in them may have any size.
            manifest: a file of :meth:`save_manifest`; its keys are captured first, in the order of
                what they were worth, and are all that is captured when there is no example.
            seconds: stop before the next bucket once so much time has passed.
            progress: show a bar with size, milliseconds and free memory.
            validate: compare each graph with the eager run within a tolerance, at the bucket's
                size and for a request that is padded to it; one that differs is told of as a
                failure, and its bucket stays eager.
            compare_speed: time both ways.

        Returns:
            What became of each bucket.

        Raises:
            ValueError: without an example or a manifest, or for a file that is no manifest of this
                function's.
        """
        if self._closed:
            refuse_closed("pool")
        status = self.runtime.stream_is_capturing(stream_handle(self.stream))
        if thread_captures() or status is not CaptureStatus.NONE:
            raise ValueError("stream: expected no capture while a pool warms up, came a live one")
        begin = time.monotonic()
        tolerance = Tolerance() if validate is True else validate or None
        entries = [] if manifest is None else Manifest.load(manifest, self._fn.name).ordered()
        requests = requests_of(self._lattice, example, entries, self.runtime)
        rows: list[WarmRow] = []
        with WarmProgress(progress, len(requests)) as bar:
            for request in requests:
                if seconds is not None and time.monotonic() - begin >= seconds:
                    break
                rows.append(self._warm_bucket(request, tolerance, compare_speed))
                bar.show(rows[-1], self.runtime.mem_get_info()[0])
        return WarmReport(tuple(rows), len(requests) - len(rows), time.monotonic() - begin)

    def _warm_bucket(
        self, wanted: WarmRequest, tolerance: Tolerance | None, compare_speed: bool
    ) -> WarmRow:
        """Ask for one bucket, see whether its graph is right and pays, and keep it if so."""
        begin = time.perf_counter_ns()
        with self._lock:
            arguments = wanted.arguments(self._roles, self.runtime, self.stream)
            seen, addresses = self._look(arguments)
            request = self._request(seen, arguments)
            decision = self._climb(request, arguments, warm=True)
            times = None
            if decision.step is Step.LAUNCH:
                binding = self._bind(request, seen, addresses)
                exec_ = binding.graph.exec
                assert exec_ is not None

                def launch() -> None:
                    exec_.put(binding, addresses)
                    exec_.launch()

                trial = self._graphs.trial(request, arguments, launch, self.stream)
                wrong = ""
                if tolerance is not None:
                    wrong = trial.disagreement(tolerance) or self._minds_padding(
                        wanted, request, tolerance
                    )
                decision, times = self._try(request.key, trial, wrong, compare_speed)
            self._in_flight.keep(arguments)
        milliseconds = (time.perf_counter_ns() - begin) / 1e6
        return WarmRow(request.key, milliseconds, decision.reason, decision.why, times)

    def _try(
        self, key: Signature, trial: Trial, wrong: str, compare_speed: bool
    ) -> tuple[Decision, Times | None]:
        """Give a bucket's graph up again where it is wrong or does not pay."""
        if wrong:
            self._give_up(key)
            self._policy.state(key).ineligible = wrong  # a capture of it would be wrong again
            self._failed(key, ValueError(wrong))
            return Decision(Step.EAGER, reason=Reason.INELIGIBLE, why=wrong), None
        times = trial.times() if compare_speed else None
        if times is not None and times.graph_us > times.eager_us:
            why = f"its graph takes {times.graph_us:.1f} us, eager {times.eager_us:.1f}"
            self._give_up(key)
            self._policy.state(key).ineligible = why
            return Decision(Step.EAGER, reason=Reason.INELIGIBLE, why=why), times
        return Decision(Step.LAUNCH), times

    def _minds_padding(self, wanted: WarmRequest, request: Request, tolerance: Tolerance) -> str:
        """Return how a padded answer differs from the eager one, nothing when it does not."""
        smaller = wanted.smaller(self._lattice, request.fit.sizes)
        if smaller is None:
            return ""
        eager, padded = (
            smaller.arguments(self._roles, self.runtime, self.stream) for _ in range(2)
        )
        seen, addresses = self._look(padded)
        known = self._request(seen, padded)
        if known.key != request.key:
            return ""  # so much padding is not allowed, or it has a key of its own
        written = [name for name in known.infos if self._roles.writes(name)]
        try:
            returned = self._fn(eager, self.stream)
        except Exception as error:
            return f"fn raised {error!r} at {known.fit.extents}, where {known.fit.sizes} works"
        expected = answers({name: eager[name] for name in written}, returned, self.runtime)
        binding = self._bind(known, seen, addresses)
        exec_ = binding.graph.exec
        assert exec_ is not None
        exec_.put(binding, addresses)
        exec_.launch()
        found = answers({name: padded[name] for name in written}, binding.result, self.runtime)
        name = first_difference(expected, found, tolerance, other_kernels=True)
        return name and (
            f"{name}: padded from {known.fit.extents} to {known.fit.sizes}, the graph's result "
            "differs from the eager one: fn minds the padding"
        )

    def _give_up(self, key: Signature) -> None:
        """Close the exec that holds a bucket's graph, and forget the graph."""
        exec_ = self._graphs[key].exec
        if exec_ is not None:
            self._execs.evict(exec_.number)
        self._forget(key)

    def save_manifest(self, path: str | Path) -> None:
        """Write what the pool's keys were worth to a file, for :meth:`warm` of the next start-up.

        JSON: keys, hits, bytes, milliseconds, failures. Keys with values that JSON cannot hold are
        left out.

        Raises:
            OSError: when the file cannot be written.
        """
        Manifest.of(self._fn.name, self.stats()).save(path)

    # --- to be seen ------------------------------------------------------------------------------

    def plan(self, /, **arguments: Any) -> Plan:
        """Return what a request would lead to, without doing it.

        Raises:
            TypeError, ValueError: as the request would.
        """
        seen, addresses = self._look(arguments)
        with self._lock:
            request = self._request(seen, arguments)
            decision = self._decide(request)
            step, changed, move = decision.step, None, None
            if step is Step.LAUNCH:
                exec_ = self._graphs[request.key].exec
                known = exec_ is not None and exec_.binding is self._bindings.get(seen)
                if exec_ is None or not known or exec_.addresses != addresses:
                    step = Step.SET
            elif step is Step.RETARGET:
                assert decision.exec_id is not None
                made = self._graphs[request.key]
                changed = self._execs.changed_nodes(decision.exec_id, made)
                move = self._execs.way(decision.exec_id, made)
        return Plan(
            step,
            decision.reason,
            decision.why,
            request.key,
            request.fit.sizes,
            request.fit.padding_ratio,
            changed,
            move,
        )

    def memory(self) -> PoolMemory:
        """Return the device memory that the pool has, in bytes."""
        with self._lock:
            return PoolMemory(
                arenas=self._graphs.arena_bytes,
                execs=self._policy.exec_bytes,
                graphs=self._graphs.private_bytes,
                budget=self._policy.memory_budget,
            )

    def stats(self) -> PoolStats:
        """Return what the pool did so far."""
        with self._lock:
            bindings = [
                binding
                for request in self._requests.values()
                for binding in request.bindings.values()
            ]
            policy = self._policy
            return self._counts.stats(bindings, policy.keys, policy.held_bytes(), self.memory())

    def close(self) -> None:
        """Destroy the execs and graphs; launches in flight still finish. Closing twice is nothing.

        Later calls raise ValueError.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._forget_shapes()
            self._execs.close()
            self._in_flight.close(self._graphs.owners)
            self._graphs.close()

    def __del__(self) -> None:
        # A constructor that failed has no lock; at interpreter exit the driver may be gone.
        if hasattr(self, "_last") and not sys.is_finalizing():
            self.close()

    def __enter__(self) -> ExecPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed:
            return f"<ExecPool {self._fn.name} closed>"
        stats = self.stats()
        return (
            f"<ExecPool {self._fn.name}: {len(self._graphs)} graphs, {len(self._execs)} execs, "
            f"{stats.requests} requests, {stats.hit_rate:.1%} hits>"
        )


_Look = Callable[[Any, str], tuple[int, Hashable]]


def _look(arguments: Mapping[str, object]) -> tuple[list[Hashable], list[int]]:
    """Return what says that two requests have the same shape, and the arrays' addresses.

    Values that are no arrays have address 0, which no array has.
    """
    seen: list[Hashable] = [*arguments]
    addresses: list[int] = []
    for name, value in arguments.items():
        kind = type(value)
        look = _LOOKS.get(kind, fingerprint if is_array(value) else _look_at_value)
        address, shape = look(value, name)
        if kind in FINGERPRINTS:
            _LOOKS[kind] = FINGERPRINTS[kind]
        addresses.append(address)
        seen.append(shape)
    return seen, addresses


def _look_at_value(value: object, name: str) -> tuple[int, Hashable]:
    return 0, typed_value(value, name)


def _look_at_plain(value: Hashable, _name: str) -> tuple[int, Hashable]:
    return 0, (type(value), value)


# Types whose ``==`` is sameness, and arrays once they were seen.
_LOOKS: dict[type, _Look] = dict.fromkeys((bool, int, str, type(None)), _look_at_plain)

_UNITS = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "KB": 1000,
    "MB": 10**6,
    "GB": 10**9,
}


def _check_callable(argument: str, value: object) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{argument}: expected a function or None, came {type(value).__name__}")


def _check_warmups(warmups: object) -> None:
    if not isinstance(warmups, int) or isinstance(warmups, bool):
        raise TypeError(f"warmups: expected an int of 0 or more, came {warmups!r}")
    if warmups < 0:
        raise ValueError(f"warmups: expected an int of 0 or more, came {warmups}")


def parse_bytes(size: int | str | None, argument: str = "memory_budget") -> int | None:
    """Return a number of bytes, given as such or as text like ``"256MiB"``.

    Raises:
        TypeError, ValueError: anything else, and what is not positive.
    """
    if size is None:
        return None
    number: object = size
    if isinstance(size, str):
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]+)\s*", size)
        unit = _UNITS.get(found[2]) if found else None
        if found is None or unit is None:
            raise ValueError(f"{argument}: expected bytes such as '256MiB', came {size!r}")
        number = int(float(found[1]) * unit)
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{argument}: expected bytes as an int or text, came {size!r}")
    if number <= 0:
        raise ValueError(f"{argument}: expected a positive number of bytes, came {size!r}")
    return number
