"""ExecPool: many shapes, few executable graphs, one memory budget, a reason for everything."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

from graphkit.bucket_capture import refuse_pool_in_pool
from graphkit.buckets import Buckets
from graphkit.byte_size import parse_bytes
from graphkit.cost_model import Move
from graphkit.counts import check_count, counted
from graphkit.errors import FallbackError, refuse_closed
from graphkit.ladder import Failure, Ladder
from graphkit.lattice import Lattice
from graphkit.lifetime import live_captures, thread_captures
from graphkit.pool_exec import PoolExec
from graphkit.pool_graph import Binding
from graphkit.pool_manifest import Manifest
from graphkit.pool_policy import Decision, PoolPolicy, Reason, Step
from graphkit.pool_request import Request, Roles, Seen
from graphkit.pool_stats import PoolMemory, PoolStats
from graphkit.request_shape import LOOKS, look_at
from graphkit.runtime import current
from graphkit.runtime.protocol import CaptureStatus, Runtime
from graphkit.signature import Signature, typed_value
from graphkit.stream import Stream, runtime_of, stream_handle
from graphkit.trial import Tolerance
from graphkit.user_function import UserFunction
from graphkit.warm_report import WarmProgress, WarmReport, WarmRow
from graphkit.warm_requests import requests_of
from graphkit.warm_up import WarmUp

__all__ = ["ExecPool", "Plan"]

# One launch in 64 of a shape is timed.
_SAMPLED = 63


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
    so a request costs one parameter change for each of the two, and one launch. Large inputs of
    just the bucket's shape are rebound instead, in a graph of their own: that bucket is captured
    several times, as by :func:`graphkit.bind`. Execs are moved
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
        rebind: whether inputs that have just a bucket's shape are read where they are instead of
            copied: True wherever they can be, False never, None where setting the nodes that they
            touch costs less than the copy. ``fn`` must not write them, as it must no input.
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
        rebind: bool | None = None,
        on_failure: Callable[[Failure], None] | None = None,
        stream: object | None = None,
    ) -> None:
        # Whatever may be refused comes before the first handle.
        _check_callable("key", key)
        if rebind is not None and not isinstance(rebind, bool):
            raise TypeError(f"rebind: expected True, False or None, came {rebind!r}")
        _check_callable("on_failure", on_failure)
        warmups = check_count("warmups", warmups, 0)
        self._fn = UserFunction(fn)
        self._lattice = Lattice({} if buckets is None else buckets)
        self._roles = Roles(outputs, inouts, {} if fill is None else fill)
        self._key = key
        self._strict = strict
        policy = PoolPolicy[Signature](
            memory_budget=parse_bytes(memory_budget),
            max_execs=max_execs,
            max_graphs=max_graphs,
            capture_after=capture_after,
        )
        self._lock = RLock()
        self._closed = False
        self.runtime: Runtime = current() if stream is None else runtime_of(stream)
        self.stream = Stream(runtime=self.runtime) if stream is None else stream
        self._ladder = Ladder(
            self._fn,
            self._lattice,
            self._roles,
            key,
            policy,
            self.runtime,
            self.stream,
            warmups,
            on_failure,
            rebind=rebind,
            keep_errors=strict,
        )
        self._ladder.enabled = os.environ.get("GRAPHKIT_DISABLE", "") in ("", "0")

    @property
    def enabled(self) -> bool:
        """Whether graphs are used; False at first where GRAPHKIT_DISABLE is set in the environment.

        While it is False every request runs eagerly.
        """
        return self._ladder.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        with self._lock:
            self._ladder.enabled = bool(enabled)
            self._ladder.forget_bindings()

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
        # What RequestReader.look() does, written out, as all that every request passes through.
        seen: list[Hashable] = [*arguments]
        addresses: list[int] = []
        for value in arguments.values():
            look = LOOKS.get(type(value))
            if look is None:
                seen, addresses = look_at(arguments)
                break
            address, shape = look(value, "arguments")
            addresses.append(address)
            seen.append(shape)
        if self._key is not None:  # asked each time: what it looks at may be no argument
            seen.append(typed_value(self._key(**arguments), "key"))
        ladder = self._ladder
        with self._lock:
            same = seen == ladder.last_seen
            binding = ladder.last if same else ladder.bindings.get(tuple(seen))
            if binding is not None and not live_captures:
                exec_ = binding.graph.exec
                if exec_ is not None:
                    sampled = not binding.launches & _SAMPLED
                    begin = time.perf_counter_ns() if sampled else 0
                    if exec_.put(binding, addresses):
                        exec_.launch()
                        ladder.last_seen, ladder.last = seen, binding
                        # The exec took the list over where an address in it was new.
                        moved = exec_.addresses is addresses
                        if sampled:
                            step = Step.SET if moved else Step.LAUNCH
                            ladder.counts.sample(step, time.perf_counter_ns() - begin)
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
        ladder = self._ladder
        ladder.policy.requests += 1
        flight = ladder.in_flight
        flight.pending.append((exec_, arguments))
        flight.load += binding.load
        if flight.load >= 1:
            flight.mark()

    def _answer(self, seen: Seen, addresses: list[int], arguments: Mapping[str, object]) -> Any:
        """Climb the ladder until a graph answers, or answer eagerly."""
        refuse_pool_in_pool()
        ladder = self._ladder
        with self._lock:
            request = self._request(seen, arguments)
            captures = ladder.counts.captures
            request, decision = ladder.climb_somehow(request, addresses, arguments)
            if decision.step is Step.LAUNCH:
                binding = ladder.bind(request, seen, addresses)
                exec_ = ladder.launch(binding, addresses)
                ladder.counts.misses += ladder.counts.captures > captures
                self._launched(exec_, binding, True, arguments)
                return binding.result
            assert decision.reason is not None
            ladder.policy.requests += 1
            ladder.policy.state(request.key).eager += 1
            ladder.counts.fallbacks[decision.reason] += 1
        return self._run_eagerly(decision, request, arguments)

    def _run_eagerly(
        self, decision: Decision, request: Request, arguments: Mapping[str, object]
    ) -> Any:
        if self._strict:
            assert decision.reason is not None
            # Not kept: its frames know the arrays of the request, and this pool.
            cause = self._ladder.errors.pop(request.key, None)
            raise FallbackError(decision.reason, decision.why, str(request.key)) from cause
        begin = time.perf_counter_ns()
        result = self._fn(arguments, self.stream)
        with self._lock:
            us = (time.perf_counter_ns() - begin) / 1e3
            self._ladder.counts.step(Step.EAGER, request.key, us)
            nbytes = sum(info.nbytes for info in request.infos.values())
            self._ladder.in_flight.keep(arguments, nbytes)
        return result

    def _request(self, seen: Seen, arguments: Mapping[str, object]) -> Request:
        if self._closed:
            refuse_closed("pool")
        return self._ladder.request(seen, arguments)

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
        warm_up = WarmUp(
            self._ladder,
            self._fn,
            self._lattice,
            self._roles,
            self.runtime,
            self.stream,
        )
        rows: list[WarmRow] = []
        with WarmProgress(progress, len(requests)) as bar:
            for request in requests:
                if seconds is not None and time.monotonic() - begin >= seconds:
                    break
                with self._lock:
                    rows.append(warm_up.bucket(request, tolerance, compare_speed))
                bar.show(rows[-1], self.runtime.mem_get_info()[0])
        return WarmReport(tuple(rows), len(requests) - len(rows), time.monotonic() - begin)

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
        ladder = self._ladder
        seen, addresses = ladder.reader.look(arguments)
        with self._lock:
            request = ladder.rebound.choose(self._request(seen, arguments), addresses)
            decision = ladder.decide(request)
            if decision.step is Step.EAGER and request.base is not None:
                request = request.base
                decision = ladder.decide(request)
            step, changed, move = decision.step, None, None
            if step is Step.LAUNCH:
                exec_, binding = ladder.graphs[request.key].exec, ladder.bindings.get(seen)
                assert exec_ is not None
                bound = binding is not None and exec_.binding is binding
                if not bound or exec_.addresses != addresses:
                    step = Step.SET
            elif step is Step.RETARGET:
                assert decision.exec_id is not None
                made = ladder.graphs[request.key]
                changed = ladder.execs.changed_nodes(decision.exec_id, made)
                move = ladder.execs.way(decision.exec_id, made)
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
                arenas=self._ladder.graphs.arena_bytes,
                execs=self._ladder.policy.exec_bytes,
                graphs=self._ladder.graphs.private_bytes,
                budget=self._ladder.policy.memory_budget,
            )

    def stats(self) -> PoolStats:
        """Return what the pool did so far."""
        with self._lock:
            ladder, policy = self._ladder, self._ladder.policy
            return ladder.counts.stats(
                ladder.live_bindings(),
                policy.keys,
                policy.held_bytes(),
                ladder.rebound.refusals,
                self.memory(),
            )

    def close(self) -> None:
        """Destroy the execs and graphs; launches in flight still finish. Closing twice is nothing.

        Later calls raise ValueError.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._ladder.close()

    def __del__(self) -> None:
        # A constructor that failed has no lock; at interpreter exit the driver may be gone.
        if hasattr(self, "_ladder") and not sys.is_finalizing():
            self.close()

    def __enter__(self) -> ExecPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed:
            return f"<ExecPool {self._fn.name} closed>"
        ladder, stats = self._ladder, self.stats()
        return (
            f"<ExecPool {self._fn.name}: {counted(len(ladder.graphs), 'graph')}, "
            f"{counted(len(ladder.execs), 'exec')}, {counted(stats.requests, 'request')}, "
            f"{stats.hit_rate:.1%} hits>"
        )


def _check_callable(argument: str, value: object) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{argument}: expected a function or None, came {type(value).__name__}")
