"""Conditional nodes: the condition values of one launch, and how bodies run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from graphkit.errors import SimulationError
from graphkit.runtime.protocol import ConditionalNodeType
from graphkit.runtime.sim.memory import MemoryTable
from graphkit.runtime.sim.races import AccessLog
from graphkit.runtime.sim.work import Submission, Work, WorkQueue

__all__ = ["Conditions", "ConditionalValues", "SubmitBody", "conditional_action"]

_VALUES = 2**32  # a condition is an unsigned int
# Conditions are no memory. For the detection of races each counts as these bytes at its handle,
# which is no address that any memory has.
_NBYTES = 4

#: Put all work of a body on a queue; return its end.
SubmitBody = Callable[[WorkQueue, Submission], Work]


class ConditionalValues(NamedTuple):
    """The parameters of a conditional node."""

    handle: int
    type: ConditionalNodeType


class Conditions:
    """The values behind the conditional handles of a graph during one launch.

    Args:
        defaults: the value of each handle at the launch; None is undefined.
        limit: how many iterations the while nodes of the launch may make together.
    """

    def __init__(self, defaults: Mapping[int, int | None], limit: int) -> None:
        self._values = dict(defaults)
        self._limit = limit
        self._iterations = 0

    def set(self, handle: int, value: int, work: Work, who: str) -> None:
        """Do what cudaGraphSetConditional does.

        Raises:
            SimulationError: when no conditional node of this launch has the handle.
        """
        if handle not in self._values:
            raise SimulationError(
                f"{who} sets the condition {handle:#x}, and no conditional node of the graph that "
                "is running has that handle"
            )
        work.accesses.append((handle, handle + _NBYTES, True))
        self._values[handle] = value % _VALUES

    def get(self, handle: int, work: Work, who: str) -> int:
        """Return a value for a conditional node.

        Raises:
            SimulationError: when nobody has set it and the handle has no default.
        """
        work.accesses.append((handle, handle + _NBYTES, False))
        value = self._values[handle]
        if value is None:
            raise SimulationError(
                f"{who} asks for a condition that no kernel of this launch has set; let a kernel "
                "ahead of the node set it, or give the handle a default"
            )
        return value

    def count(self, who: str) -> None:
        """Note one more iteration.

        Raises:
            SimulationError: at the limit.
        """
        self._iterations += 1
        if self._iterations > self._limit:
            raise SimulationError(
                f"endless loop: {who} goes on after {self._limit:,} iterations of this launch's "
                "while nodes; let its body set the condition to 0, or allow more with "
                "SimOptions(max_iterations=...)"
            )


class _BodyLog(AccessLog):
    """Tells races inside of a body, and collects what all of it touches.

    For the work around it a conditional node is one piece: it touches what its bodies touched.
    """

    def __init__(self, memory: MemoryTable) -> None:
        super().__init__(memory)
        self.touched: set[tuple[int, int, bool]] = set()

    def check(self, work: Work) -> None:
        super().check(work)
        self.touched.update(work.accesses)


def conditional_action(
    values: ConditionalValues,
    bodies: tuple[SubmitBody, ...],
    conditions: Conditions,
    log_memory: MemoryTable | None,
    next_seed: Callable[[], int],
    who: str,
) -> Callable[[Work], None]:
    """Run the bodies that the condition asks for.

    Args:
        values: the node's parameters.
        bodies: one for each body graph.
        conditions: the values of this launch.
        log_memory: the memory whose races are told, None for none.
        next_seed: gives the seed for the order of unordered work in the bodies.
        who: the node, for error messages.
    """

    def run(work: Work) -> None:
        log = None if log_memory is None else _BodyLog(log_memory)
        queue = WorkQueue(log, next_seed(), "on_wait")

        def run_body(index: int) -> None:
            queue.finish((bodies[index](queue, Submission()),))

        value = conditions.get(values.handle, work, who)
        if values.type is ConditionalNodeType.WHILE:
            while value:
                conditions.count(who)
                run_body(0)
                value = conditions.get(values.handle, work, who)
        else:
            # The second body of an IF is its else; past the last one nothing runs.
            is_if = values.type is ConditionalNodeType.IF
            index = int(not value) if is_if else value
            if index < len(bodies):
                run_body(index)
        if log is not None:
            work.accesses.extend(log.touched)

    return run
