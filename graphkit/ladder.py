"""The ladder of an exec pool: what a request needs until an exec holds its graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from graphkit.bucket_capture import BucketCapture
from graphkit.bucket_graphs import BucketGraphs
from graphkit.in_flight import InFlight
from graphkit.lattice import Lattice
from graphkit.lifetime import thread_captures
from graphkit.pool_exec import PoolExec
from graphkit.pool_execs import PoolExecs
from graphkit.pool_graph import Binding, alignment_of
from graphkit.pool_policy import Decision, PoolPolicy, Reason, Step
from graphkit.pool_request import Request, RequestReader, Roles, Seen
from graphkit.pool_stats import Counts
from graphkit.rebound_inputs import CopiedError, ReboundInputs
from graphkit.runtime.protocol import CaptureStatus, Runtime
from graphkit.signature import Signature
from graphkit.stream import stream_handle
from graphkit.user_function import UserFunction

__all__ = ["Failure", "Ladder"]

# Shapes of requests that are remembered before all are looked at anew.
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


class Ladder:
    """Does what the policy decides, one rung after the other. Not locked: the pool is.

    Args:
        fn: the pool's function.
        lattice: its buckets.
        roles: what its arguments are for.
        key: called with the arguments, returns what else the graphs depend on.
        policy: decides.
        runtime: the pool's runtime.
        stream: where its launches go.
        warmups: eager runs before a capture.
        on_failure: called when a capture fails.
        rebind: whether inputs are rebound instead of copied, None for what takes less.
        keep_errors: whether to keep what a capture failed with, for whoever is refused.

    Attributes:
        reader: looks at requests.
        policy: decides.
        counts: what was done.
        in_flight: what launches may still use.
        rebound: which inputs are rebound, and which copied.
        execs: the execs.
        graphs: the captured buckets.
        enabled: whether graphs are used at all.
        requests: shapes of requests that were looked at.
        bindings: of those, the ones that a graph has answered.
        last_seen: the last shape that a graph answered, and
        last: its binding: a request like the one before needs no dictionary.
        errors: what captures failed with, by key.
    """

    def __init__(
        self,
        fn: UserFunction,
        lattice: Lattice,
        roles: Roles,
        key: Callable[..., Hashable] | None,
        policy: PoolPolicy[Signature],
        runtime: Runtime,
        stream: object,
        warmups: int,
        on_failure: Callable[[Failure], None] | None,
        *,
        rebind: bool | None,
        keep_errors: bool,
    ) -> None:
        self._runtime = runtime
        self._stream = stream
        self._on_failure = on_failure
        self._keep_errors = keep_errors
        self.reader = RequestReader(fn, lattice, roles, key)
        self.policy = policy
        self.counts = Counts()
        self.in_flight = InFlight(runtime, stream_handle(stream))
        self.execs = PoolExecs(policy, self.counts, self.in_flight, stream)
        self.rebound = ReboundInputs(roles, policy.costs, rebind)
        capture = BucketCapture(fn, lattice, runtime, stream, warmups, self.rebound)
        self.graphs = BucketGraphs(runtime, lattice, capture, roles)
        self.enabled = True
        self.requests: dict[Seen, Request] = {}
        self.bindings: dict[Seen, Binding] = {}
        self.last_seen: list[Hashable] = []
        self.last: Binding | None = None
        self.errors: dict[Signature, Exception] = {}

    def climb(
        self, request: Request, arguments: Mapping[str, object], *, warm: bool = False
    ) -> Decision:
        """Take the rungs that a request needs, until an exec holds its graph or none may."""
        while True:
            decision = self.decide(request, warm=warm)
            if decision.step is Step.LAUNCH or decision.step is Step.EAGER:
                return decision
            if decision.close:
                for number in decision.close:
                    self.execs.evict(number)
                continue  # what that gave back is known only now
            begin = time.perf_counter_ns()
            try:
                self._take(decision, request, arguments)
            except CopiedError as error:
                return Decision(Step.EAGER, reason=Reason.INELIGIBLE, why=str(error))
            except Exception as error:
                self.failed(request.key, error)
            else:
                us = (time.perf_counter_ns() - begin) / 1e3
                self.counts.step(decision.step, request.key, us, warm=warm)
                if decision.step is not Step.CAPTURE and self.graphs[request.key].exec is not None:
                    return Decision(Step.LAUNCH)

    def climb_somehow(
        self,
        staged: Request,
        addresses: Sequence[int],
        arguments: Mapping[str, object],
        *,
        warm: bool = False,
    ) -> tuple[Request, Decision]:
        """Take the rungs that a request needs, with inputs rebound where that is worth it.

        Returns:
            The request, or the variant of it, that was answered for, and what was decided.
        """
        tried = None
        request = self.rebound.choose(staged, addresses)
        while request is not staged and request is not tried:
            decision = self.climb(request, arguments, warm=warm)
            waits = decision.reason is Reason.KEY_MISS and staged.key not in self.graphs
            if decision.step is Step.LAUNCH or waits:  # not that each waits for the other's sake
                return request, decision
            tried, request = request, self.rebound.choose(staged, addresses)
        return staged, self.climb(staged, arguments, warm=warm)

    def decide(self, request: Request, *, warm: bool = False) -> Decision:
        """Return what a request would take next, and do nothing."""
        decision = self._refusal(request) or self.policy.decide(
            request.key,
            self.execs.idle,
            self.graphs.growth(request),
            warm=warm or self._waited(request),
        )
        if decision.step in (Step.CAPTURE, Step.INSTANTIATE) and thread_captures():
            # cudaMalloc and cudaGraphInstantiate would end that capture.
            why = "this thread captures another stream now, and no graph is ready"
            return Decision(Step.EAGER, reason=Reason.INELIGIBLE, why=why)
        return decision

    def _waited(self, request: Request) -> bool:
        """Return whether a variant's bucket has waited: no request is answered eagerly any more."""
        base = request.base
        return (
            base is not None and base.key in self.graphs and self.policy.capture_after is not None
        )

    def request(self, seen: Seen, arguments: Mapping[str, object]) -> Request:
        """Return what is known of a shape of request, looking at it the first time."""
        request = self.requests.get(seen)
        if request is None:
            if len(self.requests) >= _REMEMBERED:
                self.forget_shapes()
            request = self.requests[seen] = self.reader.read(seen, arguments)
        return request

    def _refusal(self, request: Request) -> Decision | None:
        """Return why no graph may answer, as far as the request itself and the stream say."""
        if not self.enabled:
            return Decision(Step.EAGER, reason=Reason.DISABLED, why="graphs are turned off")
        if request.fit.reason is not None:
            return Decision(Step.EAGER, reason=Reason(request.fit.reason), why=request.fit.detail)
        status = self._runtime.stream_is_capturing(stream_handle(self._stream))
        if status is not CaptureStatus.NONE:
            why = "the stream is being captured: the function becomes a part of that graph"
            return Decision(Step.EAGER, reason=Reason.INELIGIBLE, why=why)
        return None

    def _take(self, decision: Decision, request: Request, arguments: Mapping[str, object]) -> None:
        """Take a rung of the ladder above a plain launch."""
        if decision.step is Step.CAPTURE:
            try:
                made = self.graphs.capture(request, arguments)
            finally:
                # A capture that fails leaves the arenas that it let grow.
                self.policy.arena_bytes = self.graphs.arena_bytes + self.graphs.private_bytes
            self.policy.captured(request.key, made.topology, made.nodes)
            for number in self.policy.over_budget(self.execs.idle):
                self.execs.evict(number)
            for key in self.policy.surplus():
                self.forget(key)
        elif decision.step is Step.INSTANTIATE:
            self.execs.instantiate(self.graphs[request.key])
        else:
            assert decision.exec_id is not None
            self.execs.move(decision.exec_id, self.graphs[request.key])

    def bind(self, request: Request, seen: Seen, addresses: Sequence[int]) -> Binding:
        """Return the binding of a shape of request to its bucket's graph."""
        alignment = alignment_of(addresses)
        binding = request.bindings.get(alignment)
        if binding is None:
            made, state = self.graphs[request.key], self.policy.state(request.key)
            binding = Binding(
                made, request.infos, request.names, request.fit.extents, alignment, state
            )
            request.bindings[alignment] = binding
        self.requests.setdefault(seen, request.base or request)  # forgotten by its own capture
        self.bindings[seen] = binding
        return binding

    def launch(self, binding: Binding, addresses: list[int]) -> PoolExec:
        """Launch the exec that holds a binding's graph for some arrays, and return it."""
        exec_ = binding.graph.exec
        assert exec_ is not None, "climb() has led to LAUNCH"
        exec_.put(binding, addresses)
        exec_.launch()
        return exec_

    def failed(self, key: Signature, error: Exception) -> None:
        """Quarantine a key, and tell whoever wants to know."""
        self.counts.note("failures", key)
        if self._keep_errors:
            self.errors[key] = error
        seconds = self.policy.failed(key)
        if self._on_failure is not None:
            failures = self.policy.state(key).failures
            self._on_failure(Failure(key, error, failures, seconds))

    def forget(self, key: Signature) -> None:
        """Give up a bucket's graph."""
        made = self.graphs[key]
        self.in_flight.keep(made.owners)
        self.graphs.forget(key)
        self.execs.forget(made)
        self.policy.forgotten(key)
        self.forget_shapes()

    def forget_shapes(self) -> None:
        """Forget the shapes of requests, but not how often they came."""
        for request in self.requests.values():
            for binding in request.all_bindings():
                self.counts.forget(binding)
            request.forget_bindings()  # whoever is being answered now goes on with it
        self.requests.clear()
        self.counts.prune(self.policy.keys)
        self.forget_bindings()

    def forget_bindings(self) -> None:
        """Let every shape of request be looked at again."""
        self.bindings.clear()
        self.last_seen, self.last = [], None

    def give_up(self, key: Signature) -> None:
        """Close the exec that holds a bucket's graph, and forget the graph."""
        exec_ = self.graphs[key].exec
        if exec_ is not None:
            self.execs.evict(exec_.number)
        self.forget(key)

    def live_bindings(self) -> list[Binding]:
        """Return the bindings of all shapes that are remembered."""
        return [binding for request in self.requests.values() for binding in request.all_bindings()]

    def close(self) -> None:
        """Destroy the execs and graphs; launches in flight still finish."""
        self.forget_shapes()
        self.execs.close()
        self.in_flight.close(self.graphs.owners)
        self.graphs.close()
