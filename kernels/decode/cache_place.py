"""The KV cache of the fused kernels: bfloat16, a slot for each sequence or pages and a table."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphkit.kernel import Pointer

from ..launch import aligned, check

__all__ = ["CacheLayout"]

MOST_PLACES = 2**30  # of a sequence: the kernels count a little further, in 32 bits


class CacheLayout(NamedTuple):
    """Where the rows of a cache lie.

    Attributes:
        slots: sequences that it has room for, or pages.
        kv_heads: key heads.
        head_dim: elements of a row, a multiple of 8.
        max_len: places of a sequence.
        page: places of a page; 0 for a cache without pages.
    """

    slots: int
    kv_heads: int
    head_dim: int
    max_len: int
    page: int

    @classmethod
    def of(
        cls, k_cache: object, v_cache: object, block_table: object | None, batch: int
    ) -> CacheLayout:
        """Check the arrays of a cache and return its layout.

        Args:
            k_cache: bfloat16 [batch or more, kv_heads, max_len, head_dim]; with a table
                [pages, kv_heads, page, head_dim].
            v_cache: bfloat16, as ``k_cache``.
            block_table: int32 [batch, pages of a sequence], or None.
            batch: sequences.

        Raises:
            ValueError: when shapes or dtypes do not agree, or a cache is not on a 16-byte boundary.
        """
        shape = aligned("k_cache", k_cache, ("slots", "kv_heads", "places", "head_dim"))
        aligned("v_cache", v_cache, shape)
        slots, kv_heads, places, head_dim = shape
        if head_dim % 8:
            raise ValueError(f"k_cache: expected head_dim a multiple of 8, came {head_dim}")
        if block_table is None:
            if slots < batch:
                raise ValueError(f"k_cache: expected {batch} slots or more, came {slots}")
            return cls(slots, kv_heads, head_dim, places, 0)
        _, pages = check("block_table", block_table, (batch, "pages"), np.int32)
        if pages * places > MOST_PLACES:
            raise ValueError(
                f"block_table: expected pages of at most {MOST_PLACES} places, came {pages} "
                f"pages of {places}"
            )
        return cls(slots, kv_heads, head_dim, pages * places, places)

    def place(self, table: Pointer, b: int, kv_head: int, position: int) -> int:
        """Return where a row begins, in elements; -1 in a block that is none. For the twins."""
        block, row, places = b, position, self.max_len
        if self.page:
            at = b * (self.max_len // self.page) + position // self.page
            block, row, places = int(table.view(1, at)[0]), position % self.page, self.page
        if not 0 <= block < self.slots:
            return -1
        return ((block * self.kv_heads + kv_head) * places + row) * self.head_dim

    def rows(
        self, cache: Pointer, table: Pointer, b: int, kv_head: int, length: int
    ) -> NDArray[np.float32]:
        """Return the first ``length`` rows of a head as [length, head_dim]. For the twins.

        Rows that have no place are zeros.
        """
        step = self.page or length
        rows = np.zeros((length, self.head_dim), np.float32)
        for first in range(0, length, step):
            part = rows[first : first + step]
            place = self.place(table, b, kv_head, first)
            if place >= 0:
                part[...] = cache.view(part.shape, place)
        return rows
