"""What became of a pool's warm-up: bucket by bucket while it runs, and all of it in the end."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

from graphkit.pool_policy import Reason
from graphkit.signature import Signature
from graphkit.trial import Times

__all__ = ["WarmProgress", "WarmReport", "WarmRow"]


@dataclass(frozen=True)
class WarmRow:
    """What became of one bucket.

    Attributes:
        key: the signature of its graph.
        milliseconds: host time that it took.
        reason: why it stays eager, None when a graph is there.
        why: the same in a sentence.
        times: how long both ways take on the device, where that was measured.
    """

    key: Signature
    milliseconds: float
    reason: Reason | None
    why: str
    times: Times | None


@dataclass(frozen=True)
class WarmReport:
    """What became of :meth:`ExecPool.warm`.

    Attributes:
        rows: one for each bucket that was reached, in that order.
        left: buckets that were not, since the time was up.
        seconds: all of it.
    """

    rows: tuple[WarmRow, ...]
    left: int
    seconds: float

    @property
    def captured(self) -> int:
        """How many buckets have a graph."""
        return sum(row.reason is None for row in self.rows)

    def __str__(self) -> str:
        text = f"{self.captured} of {len(self.rows) + self.left} buckets in {self.seconds:.2f} s"
        for row in self.rows:
            if row.reason is not None:
                text += f"\n  {row.key}: {row.reason}, {row.why}"
        return text


class WarmProgress:
    """A bar over the buckets, with milliseconds and free memory; nothing when it is off."""

    def __init__(self, shown: bool, total: int) -> None:
        self._bar: Any = None
        if shown:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("warming up"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[last]}"),
            )
            self._task = self._bar.add_task("", total=total, last="")

    def show(self, row: WarmRow, free: int) -> None:
        """Count a bucket and say what it took."""
        if self._bar is not None:
            last = f"{row.key}  {row.milliseconds:.1f} ms  {free / (1 << 30):.1f} GiB free"
            self._bar.update(self._task, advance=1, last=last)

    def __enter__(self) -> WarmProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
