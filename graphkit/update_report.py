"""What became of a whole update: CUDA's verdict, and what was in the way."""

from __future__ import annotations

from dataclasses import dataclass

from graphkit.node import Difference, Node
from graphkit.runtime.protocol import ExecUpdateStatus

__all__ = ["UpdateReport"]


@dataclass(frozen=True)
class UpdateReport:
    """What became of :meth:`GraphExec.update`. True when the exec was updated.

    Attributes:
        result: CUDA's verdict (cudaGraphExecUpdateResult).
        node: the offending node of the graph that was passed, where CUDA names one.
        from_node: the far end of the offending edge, when the topology differs.
        kernel: the name of the offending node's kernel, if it is a kernel node.
        differences: what differs between that node and the one the exec has in its place.
    """

    result: ExecUpdateStatus
    node: Node | None = None
    from_node: Node | None = None
    kernel: str | None = None
    differences: tuple[Difference, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the exec was updated; otherwise it is what it was."""
        return self.result is ExecUpdateStatus.SUCCESS

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        text = f"update: {self.result.name.lower()}"
        if self.node is not None:
            text += f" at {self.node!r}"
        if self.kernel is not None:
            text += f" ({self.kernel})"
        if self.from_node is not None:
            text += f", edge from {self.from_node!r}"
        if self.differences:
            text += "; " + "; ".join(map(str, self.differences))
        return text
