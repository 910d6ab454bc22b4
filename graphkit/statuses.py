"""Every CUDA status: what happened, the usual cause, the fix."""

from __future__ import annotations

from typing import NamedTuple


class Status(NamedTuple):
    """One CUDA status, explained."""

    name: str
    meaning: str
    cause: str = ""
    fix: str = ""


STATUSES: dict[int, Status] = {
    0: Status("cudaSuccess", "no error"),
    1: Status("cudaErrorInvalidValue", "an argument is out of its acceptable range"),
}
