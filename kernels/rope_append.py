"""Rotary embedding of q and k, and the append of k and v to the cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphkit.kernel import Kernel, Launch, Pointer

from .launch import NULL, KernelLaunch, batch_of, check, source, threads

__all__ = ["ROPE_APPEND", "rope_append", "rotated"]


def rotated(
    rows: NDArray[np.float32], cosines: NDArray[np.float32], sines: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return heads with each element turned against the one half a head behind it."""
    low, high = np.split(rows, 2, axis=-1)
    return np.concatenate((low * cosines - high * sines, high * cosines + low * sines), axis=-1)


def twin(
    launch: Launch,
    q: Pointer,
    k: Pointer,
    v: Pointer,
    cos_table: Pointer,
    sin_table: Pointer,
    k_cache: Pointer,
    v_cache: Pointer,
    position: Pointer,
    slots: Pointer,
    batch: int,
    slot_count: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    max_len: int,
) -> None:
    """Do what rope_append does."""
    heads, kv_heads, head_dim, max_len = int(heads), int(kv_heads), int(head_dim), int(max_len)
    half = head_dim // 2
    rows = slots.view(batch).tolist() if slots else range(int(batch))
    for b, (at, slot) in enumerate(zip(position.view(batch).tolist(), rows, strict=True)):
        if not (0 <= at < max_len and 0 <= slot < slot_count):
            continue
        cosines, sines = (table.view(half, offset=at * half) for table in (cos_table, sin_table))
        queries = q.view((heads, head_dim), offset=b * heads * head_dim)
        queries[...] = rotated(queries, cosines, sines)
        new = (kv_heads, head_dim), b * kv_heads * head_dim
        keys, values = rotated(k.view(*new), cosines, sines), v.view(*new)
        for head in range(kv_heads):
            row = ((slot * kv_heads + head) * max_len + at) * head_dim
            k_cache.view(head_dim, offset=row)[...] = keys[head]
            v_cache.view(head_dim, offset=row)[...] = values[head]


ROPE_APPEND = Kernel(source("rope_append"), "rope_append", twin=twin)


def rope_append(
    q: object,
    k: object,
    v: object,
    cos_table: object,
    sin_table: object,
    k_cache: object,
    v_cache: object,
    position: object,
    *,
    slots: object | None = None,
) -> KernelLaunch:
    """Return the launch that rotates q and k and appends k and v to the cache at the position.

    Element i of a head is paired with element ``i + head_dim / 2`` (Hugging Face's Llama), and
    both turn by the angle of ``cos_table[position, i]``, ``sin_table[position, i]``. q is rotated
    in place; k is rotated on its way to the cache and stays as it is. A position or a slot outside
    the cache changes nothing.

    Args:
        q: float32 [batch, heads, head_dim].
        k: float32 [batch, kv_heads, head_dim].
        v: float32 [batch, kv_heads, head_dim].
        cos_table: float32 [max_len or more, head_dim / 2].
        sin_table: float32, as ``cos_table``.
        k_cache: float32 [batch, kv_heads, max_len, head_dim]; with ``slots`` its first axis is
            that of the slots.
        v_cache: float32, as ``k_cache``.
        position: int32 [batch].
        slots: int32 [batch], the row of the caches that a sequence has, of which there may then
            be more or fewer than sequences; without it sequence b has row b. No two sequences may
            have the same.

    The axes of q, k and v after the first may be merged into one.

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    cache = check("k_cache", k_cache, ("slots", "kv_heads", "max_len", "head_dim"))
    slot_count, kv_heads, max_len, head_dim = cache
    batch = batch_of(slots, slot_count)
    if head_dim % 2:
        raise ValueError(f"k_cache: expected an even head_dim, came {head_dim}")
    check("v_cache", v_cache, cache)
    _, width = check("q", q, (batch, "heads * head_dim"), merge=True)
    if width % head_dim:
        raise ValueError(f"q: expected whole heads of {head_dim}, came {width} elements a row")
    for name, array in (("k", k), ("v", v)):
        check(name, array, (batch, kv_heads * head_dim), merge=True)
    table = check("cos_table", cos_table, ("max_len", head_dim // 2))
    if table[0] < max_len:
        raise ValueError(f"cos_table: expected {max_len} rows or more, came {table[0]}")
    check("sin_table", sin_table, table)
    check("position", position, (batch,), np.int32)
    heads = width // head_dim
    return KernelLaunch(
        ROPE_APPEND,
        (heads + kv_heads, min(batch, 65535), 1),
        (threads(head_dim, 128), 1, 1),
        (
            *(q, k, v, cos_table, sin_table, k_cache, v_cache),
            *(position, NULL if slots is None else slots),
            *(batch, slot_count, heads, kv_heads, head_dim, max_len),
        ),
    )
