"""When a row has ended: what row_ends.cuh does, for the twins, and the arrays that say so."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphkit.kernel import Pointer

from ..launch import NULL, check

__all__ = ["RowEnds", "row_ended"]


class RowEnds(NamedTuple):
    """What ends a row.

    Attributes:
        limits: int32 [batch], tokens of a row at most, its prompt included.
        ends: int32 [any number], tokens that end a row which chose them; None for none.
    """

    limits: object
    ends: object | None = None

    def args(self, batch: int) -> tuple[object, object, int]:
        """Check the arrays and return both addresses and how many tokens end a row.

        Raises:
            ValueError: when shapes or dtypes do not agree.
        """
        check("limits", self.limits, (batch,), np.int32)
        if self.ends is None:
            return self.limits, NULL, 0
        (count,) = check("ends", self.ends, ("count",), np.int32)
        return self.limits, self.ends, count


def row_ended(
    position: int, token: int, prompt_len: int, limit: int, max_len: int, ends: Pointer, count: int
) -> bool:
    """Do what row_ended of row_ends.cuh does. For the twins."""
    length = position + 1
    if length < 0 or length >= min(limit, max_len):
        return True
    if position < 0 or length <= prompt_len or not count:
        return False
    return token in ends.view(count)
