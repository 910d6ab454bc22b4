"""The norm ahead of attention, q, k and v, their rotary embedding, and the append to the cache."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from graphkit.device_array import BFLOAT16
from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import NULL, KernelLaunch, aligned, check, epsilon
from ..rope_append import rotated
from .cache_place import CacheLayout
from .sources import options, source
from .weight_stream import WeightStream, normed

__all__ = ["qkv_rope_append"]


@cache
def _kernel(stream: WeightStream, heads: int, layout: CacheLayout) -> Kernel:
    kv_heads, head_dim = layout.kv_heads, layout.head_dim

    def twin(
        launch: Launch,
        weight_q: Pointer,
        weight_k: Pointer,
        weight_v: Pointer,
        x: Pointer,
        gain: Pointer,
        cosines: Pointer,
        sines: Pointer,
        q: Pointer,
        k_cache: Pointer,
        v_cache: Pointer,
        block_table: Pointer,
        positions: Pointer,
        batch: int,
        max_len: int,
        slots: int,
        eps: np.float32,
    ) -> None:
        rows = normed(x, gain, batch, stream.k, eps)

        def project(weight: Pointer, count: int) -> NDArray[np.float32]:
            matrix = weight.view((count * head_dim, stream.k)).astype(np.float32)
            product: NDArray[np.float32] = (rows @ matrix.T).reshape(-1, count, head_dim)
            return product

        queries = project(weight_q, heads)
        keys, values = project(weight_k, kv_heads), project(weight_v, kv_heads)
        half = head_dim // 2
        for b, at in enumerate(positions.view(batch).tolist()):
            there = 0 <= at < max_len
            turn = half, (at if there else 0) * half
            angles = cosines.view(*turn), sines.view(*turn)
            q.view((heads, head_dim), b * heads * head_dim)[...] = rotated(queries[b], *angles)
            if there:
                for head, key in enumerate(rotated(keys[b], *angles)):
                    place = layout.place(block_table, b, head, at)
                    if place >= 0:
                        k_cache.view(head_dim, place)[...] = key.astype(BFLOAT16)
                        v_cache.view(head_dim, place)[...] = values[b, head].astype(BFLOAT16)

    extents = options(
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        PAGE=layout.page,
    )
    code = source("qkv_rope_append")
    return Kernel(code, "qkv_rope_append", twin=twin, options=(*stream.options, *extents))


def qkv_rope_append(
    weight_q: object,
    weight_k: object,
    weight_v: object,
    x: object,
    gain: object,
    cosines: object,
    sines: object,
    q: object,
    k_cache: object,
    v_cache: object,
    positions: object,
    eps: float,
    *,
    block_table: object | None = None,
) -> KernelLaunch:
    """Return the launch of q, k and v of one token a row, rotated, and of the append to the cache.

    ``q[b] = rotate(weight_q . norm(x[b]))``, likewise k and v (which is not rotated), rounded to
    bfloat16 on their way to the cache. ``norm(x) = x / sqrt(mean(x * x) + eps) * gain``; rotate
    pairs element i of a head with element ``i + head_dim / 2`` (Hugging Face's Llama). A position
    or a page outside the cache leaves the cache alone.

    Args:
        weight_q: bfloat16 [heads * head_dim, hidden], hidden a multiple of 8.
        weight_k: bfloat16 [kv_heads * head_dim, hidden].
        weight_v: bfloat16, as ``weight_k``.
        x: float32 [batch, hidden], at most 2 rows.
        gain: float32 [hidden].
        cosines: float32 [max_len or more, head_dim / 2].
        sines: float32, as ``cosines``.
        q: float32 [batch, heads * head_dim].
        k_cache: bfloat16 [batch or more, kv_heads, max_len, head_dim]; with a block table
            [pages, kv_heads, page, head_dim].
        v_cache: bfloat16, as ``k_cache``.
        positions: int32 [batch].
        eps: of the norm; above 0.
        block_table: int32 [batch, max_len / page], the pages of each sequence in their order.

    Raises:
        ValueError: when shapes or dtypes do not agree, or inputs, matrices or caches are not on
            16-byte boundaries.
    """
    (batch,) = check("positions", positions, ("batch",), np.int32)
    layout = CacheLayout.of(k_cache, v_cache, block_table, batch)
    _, hidden = aligned("x", x, (batch, "hidden"), np.float32)
    aligned("gain", gain, (hidden,), np.float32)
    width, _ = aligned("weight_q", weight_q, ("heads * head_dim", hidden))
    if width % (layout.kv_heads * layout.head_dim):
        raise ValueError(
            f"weight_q: expected a multiple of {layout.kv_heads} heads of {layout.head_dim} rows, "
            f"came {width}"
        )
    for name, weight in (("weight_k", weight_k), ("weight_v", weight_v)):
        aligned(name, weight, (layout.kv_heads * layout.head_dim, hidden))
    check("q", q, (batch, width), merge=True)
    table = check("cosines", cosines, ("max_len", layout.head_dim // 2))
    check("sines", sines, table)
    if table[0] < layout.max_len:
        raise ValueError(f"cosines: expected {layout.max_len} rows or more, came {table[0]}")
    pairs = (width + 2 * layout.kv_heads * layout.head_dim) // 2
    stream = WeightStream.of("weight_q", hidden, pairs, batch)
    args = (
        *(weight_q, weight_k, weight_v, x, gain, cosines, sines, q, k_cache, v_cache),
        *(NULL if block_table is None else block_table, positions),
        *(batch, layout.max_len, layout.slots, epsilon(eps)),
    )
    return stream.launch(_kernel(stream, width // layout.head_dim, layout), args)
