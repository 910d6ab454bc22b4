"""Sums over the window around each patch, for the twins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["window_sums"]


def window_sums(values: NDArray[np.generic], radius: int) -> NDArray[np.float64]:
    """Return for each element the sum over rows and columns at most ``radius`` away.

    Args:
        values: [rows, columns].
        radius: reach to each side; the window ends at the border.
    """
    rows, columns = values.shape
    # A wider window than the array is the array: no need to pad by more.
    down, across = min(radius, rows - 1), min(radius, columns - 1)
    padded = np.pad(values.astype(np.float64), ((down, down), (across, across)))
    window = (2 * down + 1, 2 * across + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)
    sums: NDArray[np.float64] = windows.sum(axis=(2, 3))
    return sums
