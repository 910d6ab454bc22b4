"""Softmax of each row."""

from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from .launch import KernelLaunch, check, source, threads

__all__ = ["SOFTMAX", "softmax"]


def twin(launch: Launch, x: Pointer, out: Pointer, rows: int, width: int) -> None:
    """Do what softmax does."""
    values = x.view((rows, width)).astype(np.float64)
    values = np.exp(values - values.max(axis=1, keepdims=True))
    out.view((rows, width))[...] = values / values.sum(axis=1, keepdims=True)


SOFTMAX = Kernel(source("softmax"), "softmax", twin=twin)


def softmax(x: object, out: object) -> KernelLaunch:
    """Return the launch of ``out[r] = exp(x[r] - max(x[r])) / sum(exp(x[r] - max(x[r])))``.

    Args:
        x: float32 [rows, width].
        out: float32 [rows, width]; may be ``x``.

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    rows, width = check("x", x, ("rows", "width"))
    check("out", out, (rows, width))
    return KernelLaunch(SOFTMAX, (rows, 1, 1), (threads(width), 1, 1), (x, out, rows, width))
