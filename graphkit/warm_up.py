"""Warming up one bucket after the other: is its graph right, and does it pay."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from graphkit.ladder import Ladder
from graphkit.lattice import Lattice
from graphkit.pool_policy import Decision, Reason, Step
from graphkit.pool_request import Request, Roles, Seen
from graphkit.runtime.protocol import Runtime
from graphkit.signature import Signature
from graphkit.trial import Times, Tolerance, Trial, answers, first_difference
from graphkit.user_function import UserFunction
from graphkit.warm_report import WarmRow
from graphkit.warm_requests import WarmRequest

__all__ = ["WarmUp"]


class WarmUp:
    """Asks a ladder for buckets before anybody else does. Not locked: the pool is.

    Args:
        ladder: the pool's ladder.
        fn: the pool's function.
        lattice: its buckets.
        roles: what its arguments are for.
        runtime: the pool's runtime.
        stream: where its launches go.
    """

    def __init__(
        self,
        ladder: Ladder,
        fn: UserFunction,
        lattice: Lattice,
        roles: Roles,
        runtime: Runtime,
        stream: object,
    ) -> None:
        self._ladder = ladder
        self._fn = fn
        self._lattice = lattice
        self._roles = roles
        self._runtime = runtime
        self._stream = stream

    def bucket(
        self, wanted: WarmRequest, tolerance: Tolerance | None, compare_speed: bool
    ) -> WarmRow:
        """Ask for one bucket, see whether its graph is right and pays, and keep it if so."""
        begin = time.perf_counter_ns()
        ladder = self._ladder
        arguments = wanted.arguments(self._roles, self._runtime, self._stream)
        seen, addresses = ladder.reader.look(arguments)
        request = ladder.request(seen, arguments)
        decision = ladder.climb(request, arguments, warm=True)
        times = None
        if decision.step is Step.LAUNCH:
            binding = ladder.bind(request, seen, addresses)
            launch = partial(ladder.launch, binding, addresses)
            trial = ladder.graphs.trial(request, arguments, launch, self._stream)
            wrong = ""
            if tolerance is not None:
                wrong = trial.disagreement(tolerance)
                wrong = wrong or self._minds_padding(wanted, request, tolerance)
            decision, times = self._try(request.key, trial, wrong, compare_speed)
        if decision.step is Step.LAUNCH:
            self._rebind(request, seen, addresses, arguments, tolerance)
        ladder.in_flight.keep(arguments)
        milliseconds = (time.perf_counter_ns() - begin) / 1e6
        return WarmRow(request.key, milliseconds, decision.reason, decision.why, times)

    def _rebind(
        self,
        request: Request,
        seen: Seen,
        addresses: list[int],
        arguments: Mapping[str, object],
        tolerance: Tolerance | None,
    ) -> None:
        """Ask for the graph that reads inputs where they are, where that is worth it."""
        ladder = self._ladder
        variant, decision = ladder.climb_somehow(request, addresses, arguments, warm=True)
        if variant is request or decision.step is not Step.LAUNCH:
            return
        binding = ladder.bind(variant, seen, addresses)
        if tolerance is None:
            return
        launch = partial(ladder.launch, binding, addresses)
        trial = ladder.graphs.trial(variant, arguments, launch, self._stream)
        wrong = trial.disagreement(tolerance)
        if wrong:
            ladder.give_up(variant.key)
            ladder.rebound.copy(variant.key, variant.key.rebound, wrong)

    def _try(
        self, key: Signature, trial: Trial, wrong: str, compare_speed: bool
    ) -> tuple[Decision, Times | None]:
        """Give a bucket's graph up again where it is wrong or does not pay."""
        if wrong:
            decision = self._keep_eager(key, wrong)
            self._ladder.failed(key, ValueError(wrong))
            return decision, None
        times = trial.times() if compare_speed else None
        if times is not None and times.graph_us > times.eager_us:
            why = f"its graph takes {times.graph_us:.1f} us, eager {times.eager_us:.1f}"
            return self._keep_eager(key, why), times
        return Decision(Step.LAUNCH), times

    def _keep_eager(self, key: Signature, why: str) -> Decision:
        """Give a bucket's graph up for good: another capture would give the same one."""
        self._ladder.give_up(key)
        self._ladder.policy.state(key).ineligible = why
        return Decision(Step.EAGER, reason=Reason.INELIGIBLE, why=why)

    def _minds_padding(self, wanted: WarmRequest, request: Request, tolerance: Tolerance) -> str:
        """Return how a padded answer differs from the eager one, nothing when it does not."""
        smaller = wanted.smaller(self._lattice, request.fit.sizes)
        if smaller is None:
            return ""
        eager, padded = (
            smaller.arguments(self._roles, self._runtime, self._stream) for _ in range(2)
        )
        seen, addresses = self._ladder.reader.look(padded)
        known = self._ladder.request(seen, padded)
        if known.key != request.key:
            return ""  # so much padding is not allowed, or it has a key of its own
        written = [name for name in known.infos if self._roles.writes(name)]
        try:
            returned = self._fn(eager, self._stream)
        except Exception as error:
            return f"fn raised {error!r} at {known.fit.extents}, where {known.fit.sizes} works"
        expected = answers({name: eager[name] for name in written}, returned, self._runtime)
        binding = self._ladder.bind(known, seen, addresses)
        self._ladder.launch(binding, addresses)
        found = answers({name: padded[name] for name in written}, binding.result, self._runtime)
        name = first_difference(expected, found, tolerance, other_kernels=True)
        return name and (
            f"{name}: padded from {known.fit.extents} to {known.fit.sizes}, the graph's result "
            "differs from the eager one: fn minds the padding"
        )
