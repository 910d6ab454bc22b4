"""Submitted work and the order in which it runs: anything that no dependency orders is shuffled."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from graphkit.runtime.sim.races import AccessLog

__all__ = ["Submission", "Work", "WorkQueue"]


class Submission:
    """One launch: when a part of it fails, its remaining parts are dropped."""

    __slots__ = ("failed",)

    def __init__(self) -> None:
        self.failed = False


class Work:
    """One piece of submitted work: a kernel, copy, callback, or a marker without an action.

    ``index``, ``ancestors`` and ``generation`` belong to :class:`AccessLog`: bit i of ``ancestors``
    says that work i of the same generation is ordered before this.
    """

    __slots__ = (
        "accesses", "action", "ancestors", "deps", "describe", "done", "generation", "index",
        "submission",
    )  # fmt: skip

    def __init__(
        self,
        deps: Sequence[Work],
        action: Callable[[Work], None] | None,
        describe: Callable[[], str],
        submission: Submission,
    ) -> None:
        self.deps: Sequence[Work] = deps
        self.action = action
        self.describe = describe
        self.submission = submission
        self.done = False
        self.accesses: list[tuple[int, int, bool]] = []
        self.index = -1
        self.ancestors = 0
        self.generation = -1


class WorkQueue:
    """All work that was submitted and has not run yet."""

    def __init__(
        self, log: AccessLog | None, order_seed: int, execution: Literal["on_wait", "at_once"]
    ) -> None:
        self._log = log
        self._random = random.Random(order_seed)
        self._at_once = execution == "at_once"
        self._pending: dict[Work, None] = {}
        self._errors: list[Exception] = []
        self._running_thread: int | None = None

    def runs_in_this_thread(self) -> bool:
        """Say whether the caller is a host function or twin that this queue is running."""
        return self._running_thread == threading.get_ident()

    @property
    def idle(self) -> bool:
        """Whether everything submitted has run."""
        return not self._pending

    def next_seed(self) -> int:
        """Return a seed for a queue of its own."""
        return self._random.getrandbits(32)

    def reserve(self, count: int) -> None:
        """Announce ``count`` submissions whose races must be told apart from each other."""
        if self._log is not None:
            self._log.reserve(count)

    def submit(
        self,
        deps: Sequence[Work],
        action: Callable[[Work], None] | None,
        describe: Callable[[], str],
        submission: Submission,
    ) -> Work:
        """Add work that runs after ``deps``; with ``at_once``, :meth:`settle` runs it."""
        work = Work(deps, action, describe, submission)
        if self._log is not None:
            self._log.register(work)
        self._pending[work] = None
        return work

    def settle(self, work: Work) -> None:
        """Run ``work`` now if this queue runs work at once; errors wait for the next wait."""
        if self._at_once:
            self._run((work,))

    def finish(self, works: Iterable[Work]) -> None:
        """Run ``works`` and what they depend on, as a host that waits for them; raise errors."""
        works = tuple(works)
        self._run(works)
        if self._log is not None:
            self._log.observe(works)
        self.raise_errors()

    def finish_all(self) -> None:
        """Run everything; raise errors."""
        self.run_all()
        self.raise_errors()

    def run_all(self) -> None:
        """Run everything; errors wait for the next wait, as where a finalizer would lose them."""
        self._run(tuple(self._pending))
        if self._log is not None:
            self._log.observe_all()

    def raise_errors(self) -> None:
        """Raise the first error of the work that ran since the last call, as CUDA does late."""
        if not self._errors:
            return
        first, *others = self._errors
        self._errors.clear()
        for other in others:
            first.add_note(f"a later error of the same wait: {type(other).__name__}: {other}")
        raise first

    def advance(self, works: Iterable[Work]) -> None:
        """Run one piece of what ``works`` wait for, chosen as :meth:`finish` would."""
        self._run(tuple(works), limit=1)

    def observe(self, works: Iterable[Work]) -> None:
        """Note that the host saw ``works`` done: what it submits next comes after them."""
        if self._log is not None:
            self._log.observe(tuple(works))

    def _run(self, targets: Sequence[Work], limit: int | None = None) -> None:
        waits_for: dict[Work, int] = {}
        followers: dict[Work, list[Work]] = {}
        ready: list[Work] = []
        stack = [work for work in targets if not work.done]
        while stack:
            work = stack.pop()
            if work in waits_for:
                continue
            deps = [dep for dep in work.deps if not dep.done]
            waits_for[work] = len(deps)
            if deps:
                stack.extend(deps)
                for dep in deps:
                    followers.setdefault(dep, []).append(work)
            else:
                ready.append(work)
        # The stack walks backwards; the seed alone decides, not where the walk began.
        while ready and limit != 0:
            chosen = int(self._random.random() * len(ready)) if len(ready) > 1 else 0
            ready[chosen], ready[-1] = ready[-1], ready[chosen]
            work = ready.pop()
            self._execute(work)
            if limit is not None:
                limit -= 1
            for follower in followers.get(work, ()):
                waits_for[follower] -= 1
                if not waits_for[follower]:
                    ready.append(follower)

    def _execute(self, work: Work) -> None:
        action = work.action
        if action is not None and not work.submission.failed:
            outer, self._running_thread = self._running_thread, threading.get_ident()
            try:
                action(work)
                if self._log is not None and work.accesses:
                    self._log.check(work)
            except BaseException as error:
                work.submission.failed = True
                error.add_note(f"raised while the simulator ran {work.describe()}")
                if not isinstance(error, Exception):  # an interrupt does not wait for its turn
                    raise
                self._errors.append(error)
            finally:
                self._running_thread = outer
                self._settled(work)
        else:
            self._settled(work)

    def _settled(self, work: Work) -> None:
        work.done = True
        work.deps = ()
        work.action = None
        work.accesses = []
        del self._pending[work]
