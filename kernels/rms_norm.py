"""RMSNorm: each row divided by the root of its mean square, times a weight per column."""

from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from .launch import KernelLaunch, check, epsilon, source, threads

__all__ = ["RMS_NORM", "rms_norm"]


def twin(
    launch: Launch,
    x: Pointer,
    weight: Pointer,
    out: Pointer,
    rows: int,
    width: int,
    eps: float,
) -> None:
    """Do what rms_norm does."""
    values = x.view((rows, width)).astype(np.float64)
    squares = np.einsum("rw,rw->r", values, values)
    values *= (1 / np.sqrt(squares / width + eps))[:, None]
    out.view((rows, width))[...] = values * weight.view(width)


RMS_NORM = Kernel(source("rms_norm"), "rms_norm", twin=twin)


def rms_norm(x: object, weight: object, out: object, eps: float) -> KernelLaunch:
    """Return the launch of ``out[r] = x[r] / sqrt(mean(x[r]**2) + eps) * weight``.

    Args:
        x: float32 [rows, width].
        weight: float32 [width].
        out: float32 [rows, width]; may be ``x``.
        eps: added to the mean square; above 0.

    Raises:
        TypeError: when ``eps`` is no number.
        ValueError: when shapes or dtypes do not agree, or ``eps`` is out of range.
    """
    rows, width = check("x", x, ("rows", "width"))
    check("weight", weight, (width,))
    check("out", out, (rows, width))
    args = (x, weight, out, rows, width, epsilon(eps))
    return KernelLaunch(RMS_NORM, (rows, 1, 1), (threads(width), 1, 1), args)
