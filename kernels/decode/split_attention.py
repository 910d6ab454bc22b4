"""Attention of one token a row to the bfloat16 cache, split over its positions."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from graphkit.arrays import device_pointer
from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import NULL, WARP, KernelLaunch, aligned, check, score_factor
from .cache_place import CacheLayout
from .device import multiprocessors
from .half import rounded
from .sources import options, source

__all__ = ["found_shape", "split_attention"]

MAX_HEAD_DIM = 256
MAX_GROUP = 8
_LONG = 512  # places of many sequences, from which on reading the cache is what costs
_WARPS = 4  # of a block


class _Tiling(NamedTuple):
    """How the blocks take the cache.

    Attributes:
        split: blocks that share a key head, at most.
        depth: tiles of 16 positions that a warp has there or on their way.
        late: whether the next kernel is let in when the cache has been read, not before.
    """

    split: int
    depth: int
    late: bool = False

    def registers(self, head_dim: int) -> int:
        """Return the registers of a thread."""
        if head_dim > 128:
            return 255
        # A quarter of a multiprocessor has 16,384 registers and may have six warps of the kernels
        # ahead and behind, of 56 registers a thread: what is left is for one warp of attention.
        # Where it has the multiprocessor to itself, four blocks read more at once.
        return 120 if self.late and head_dim <= 64 else 176

    @classmethod
    def of(cls, batch: int, kv_heads: int, head_dim: int, max_len: int) -> _Tiling:
        depth = 2 if head_dim <= 64 else 1
        count, blocks = batch * kv_heads, multiprocessors()
        if batch == 1:  # beside the other kernels there is room for one block a multiprocessor
            return cls(max(1, blocks // count), depth)
        late = count >= 2 * blocks and max_len >= _LONG
        return cls(max(1, 2 * blocks // count), 1 if late else depth, late)


@cache
def _kernel(layout: CacheLayout, group: int, tiling: _Tiling, half: bool) -> Kernel:
    def twin(
        launch: Launch,
        q: Pointer,
        k_cache: Pointer,
        v_cache: Pointer,
        block_table: Pointer,
        positions: Pointer,
        found: Pointer,
        arrived: Pointer,
        out: Pointer,
        max_len: int,
        slots: int,
        scale: np.float32,
    ) -> None:
        batch = launch.grid[0] // (tiling.split * layout.kv_heads)
        for b, at in enumerate(positions.view(batch).tolist()):
            length = max(0, min(at + 1, int(max_len)))
            for head in range(layout.kv_heads):
                first = (b * layout.kv_heads + head) * group * layout.head_dim
                rows = out.view((group, layout.head_dim), first)
                if not length:
                    rows[...] = 0
                    continue
                keys = layout.rows(k_cache, block_table, b, head, length)
                scores = (q.view((group, layout.head_dim), first) * scale) @ keys.T
                scores = np.exp(scores - scores.max(axis=1, keepdims=True))
                scores /= scores.sum(axis=1, keepdims=True)
                found_rows = scores @ layout.rows(v_cache, block_table, b, head, length)
                rows[...] = rounded(found_rows) if half else found_rows

    flags = options(
        GROUP=group,
        KV_HEADS=layout.kv_heads,
        HEAD_DIM=layout.head_dim,
        PAGE=layout.page,
        ONE_PAGE=int(layout.page == layout.max_len),
        SPLIT=tiling.split,
        WARPS=_WARPS,
        DEPTH=tiling.depth,
        LATE=int(tiling.late),
        REGISTERS=tiling.registers(layout.head_dim),
    )
    name = "split_attention_half" if half else "split_attention"
    return Kernel(source("split_attention"), name, twin=twin, options=flags)


def split_attention(
    q: object,
    k_cache: object,
    v_cache: object,
    positions: object,
    found: object,
    arrived: object,
    out: object,
    *,
    scale: float | None = None,
    block_table: object | None = None,
) -> KernelLaunch:
    """Return the launch of attention for one token a row.

    ``out[b, h] = softmax(scale * q[b, h] . k[b, g, :n]) . v[b, g, :n]`` with
    ``n = positions[b] + 1`` and ``g = h // (heads / kv_heads)``; zeros where n is 0 or less.
    Pages outside the cache hold zeros.

    Args:
        q: float32 [batch, heads * head_dim].
        k_cache: bfloat16 [batch or more, kv_heads, max_len, head_dim], head_dim a multiple of 8
            and at most 256; with a block table [pages, kv_heads, page, head_dim].
        v_cache: bfloat16, as ``k_cache``.
        positions: int32 [batch], the index of the newest row of the cache.
        found: float32 of :func:`found_shape`, what blocks that share a head tell each other.
        arrived: int32 [batch * kv_heads], zeros at first; a launch leaves zeros.
        out: float32 or float16 [batch, heads * head_dim].
        scale: factor of the scores; ``1 / sqrt(head_dim)`` by default.
        block_table: int32 [batch, max_len / page], the pages of each sequence in their order.

    Raises:
        TypeError: when ``scale`` is no number.
        ValueError: when shapes or dtypes do not agree, ``q`` or the caches are not on 16-byte
            boundaries, or ``scale`` is not finite.
    """
    (batch,) = check("positions", positions, ("batch",), np.int32)
    layout = CacheLayout.of(k_cache, v_cache, block_table, batch)
    head_dim, kv_heads = layout.head_dim, layout.kv_heads
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"k_cache: expected head_dim of at most {MAX_HEAD_DIM}, came {head_dim}")
    _, width = aligned("q", q, (batch, "heads * head_dim"), np.float32, merge=True)
    if width % (kv_heads * head_dim) or width > MAX_GROUP * kv_heads * head_dim:
        raise ValueError(
            f"q: expected 1 to {MAX_GROUP} times {kv_heads} heads of {head_dim}, "
            f"came {width} elements a row"
        )
    half = device_pointer(out, "out").dtype == np.float16
    check("out", out, (batch, width), np.float16 if half else np.float32, merge=True)
    factor = score_factor(scale, head_dim)
    heads = width // head_dim
    check("found", found, found_shape(batch, heads, kv_heads, head_dim, layout.max_len))
    check("arrived", arrived, (batch * kv_heads,), np.int32)
    tiling = _Tiling.of(batch, kv_heads, head_dim, layout.max_len)
    kernel = _kernel(layout, heads // kv_heads, tiling, half)
    blocks = batch * kv_heads * tiling.split
    args = (
        *(q, k_cache, v_cache, NULL if block_table is None else block_table, positions),
        *(found, arrived, out, layout.max_len, layout.slots, factor),
    )
    return KernelLaunch(kernel, (blocks, 1, 1), (_WARPS * WARP, 1, 1), args)


def found_shape(
    batch: int, heads: int, kv_heads: int, head_dim: int, max_len: int
) -> tuple[int, int, int, int]:
    """Return the shape of what the blocks of :func:`split_attention` tell each other.

    A row of values for each head of each block, and then the largest score and the sum.
    """
    tiling = _Tiling.of(batch, kv_heads, head_dim, max_len)
    return batch * kv_heads, tiling.split, heads // kv_heads, head_dim + 2
