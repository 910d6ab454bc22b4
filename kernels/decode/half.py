"""Rounding to float16: what half.cuh does, for the twins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["rounded"]


def rounded(values: NDArray[np.generic]) -> NDArray[np.float16]:
    """Return the nearest float16, ties to even; beyond 65504 infinity."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16)
