"""The index of the largest value of each row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphkit.kernel import Kernel, Launch, Pointer

from .launch import KernelLaunch, check, source, threads

__all__ = ["ARGMAX", "argmax"]


def first_largest(rows: NDArray[np.float32]) -> NDArray[Any]:
    """Return the lowest index of the largest value of each row; NaN is less than anything."""
    largest = np.where(np.isnan(rows), -np.inf, rows).max(axis=1, keepdims=True)
    found: NDArray[Any] = np.argmax(rows == largest, axis=1)
    return found


def twin(launch: Launch, x: Pointer, out: Pointer, rows: int, width: int) -> None:
    """Do what argmax does."""
    out.view(rows)[...] = first_largest(x.view((rows, width)))


ARGMAX = Kernel(source("argmax"), "argmax", twin=twin)


def argmax(x: object, out: object) -> KernelLaunch:
    """Return the launch of ``out[r] = index of the largest value of x[r]``.

    The lowest index where several are largest; NaN is less than anything.

    Args:
        x: float32 [rows, width].
        out: int32 [rows].

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    rows, width = check("x", x, ("rows", "width"))
    check("out", out, (rows,), np.int32)
    return KernelLaunch(ARGMAX, (rows, 1, 1), (threads(width), 1, 1), (x, out, rows, width))
