"""The k largest values of each row, and where they are."""

from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from .launch import KernelLaunch, check, source, threads

__all__ = ["TOP_K", "top_k"]


def twin(
    launch: Launch,
    x: Pointer,
    values: Pointer,
    indices: Pointer,
    rows: int,
    width: int,
    k: int,
) -> None:
    """Do what top_k does."""
    from_rows = x.view((rows, width))
    # NumPy sorts NaN to the end, and a stable sort keeps equal values in the order of their index.
    order = np.argsort(-from_rows, axis=1, kind="stable")[:, :k]
    indices.view((rows, k))[...] = order
    values.view((rows, k))[...] = np.take_along_axis(from_rows, order, axis=1)


TOP_K = Kernel(source("top_k"), "top_k", twin=twin)


def top_k(x: object, values: object, indices: object) -> KernelLaunch:
    """Return the launch that finds the k largest values of each row, largest first.

    Of equal values the one with the lower index comes first; NaN is less than anything.

    Args:
        x: float32 [rows, width].
        values: float32 [rows, k], k at most width.
        indices: int32 [rows, k].

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    rows, width = check("x", x, ("rows", "width"))
    _, k = check("values", values, (rows, "k"))
    if k > width:
        raise ValueError(f"values: expected k of at most {width}, the width of x, came {k}")
    check("indices", indices, (rows, k), np.int32)
    args = (x, values, indices, rows, width, k)
    return KernelLaunch(TOP_K, (rows, 1, 1), (threads(width), 1, 1), args)
