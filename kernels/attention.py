"""Attention of one new token to the cache, with grouped heads."""

from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from .launch import NULL, WARP, KernelLaunch, batch_of, check, score_factor, source

__all__ = ["ATTENTION", "attention"]

MAX_HEAD_DIM = 256  # as in attention.cu
MAX_WARPS = 8


def twin(
    launch: Launch,
    q: Pointer,
    k_cache: Pointer,
    v_cache: Pointer,
    position: Pointer,
    slots: Pointer,
    out: Pointer,
    batch: int,
    slot_count: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    max_len: int,
    scale: float,
) -> None:
    """Do what attention does."""
    kv_heads, head_dim, max_len = int(kv_heads), int(head_dim), int(max_len)
    group = int(heads) // kv_heads
    rows = slots.view(batch).tolist() if slots else range(int(batch))
    for b, (at, slot) in enumerate(zip(position.view(batch).tolist(), rows, strict=True)):
        length = max(0, min(at + 1, max_len)) if 0 <= slot < slot_count else 0
        for head in range(kv_heads):
            here = (group, head_dim), (b * kv_heads + head) * group * head_dim
            if not length:
                out.view(*here)[...] = 0
                continue
            cached = (length, head_dim), (slot * kv_heads + head) * max_len * head_dim
            scores = (q.view(*here) * scale) @ k_cache.view(*cached).T
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
            out.view(*here)[...] = scores @ v_cache.view(*cached)


ATTENTION = Kernel(source("attention"), "attention", twin=twin)


def attention(
    q: object,
    k_cache: object,
    v_cache: object,
    position: object,
    out: object,
    scale: float | None = None,
    *,
    slots: object | None = None,
) -> KernelLaunch:
    """Return the launch of attention for one token per sequence.

    ``out[b, h] = softmax(scale * q[b, h] . k_cache[b, g, :n]) . v_cache[b, g, :n]`` with
    ``n = position[b] + 1`` and ``g = h // (heads / kv_heads)``.

    Args:
        q: float32 [batch, heads, head_dim], head_dim at most 256.
        k_cache: float32 [batch, kv_heads, max_len, head_dim]; with ``slots`` its first axis is
            that of the slots.
        v_cache: float32, as ``k_cache``.
        position: int32 [batch], the index of the newest row of the cache.
        out: float32 [batch, heads, head_dim].
        scale: factor of the scores; ``1 / sqrt(head_dim)`` by default.
        slots: int32 [batch], the row of the caches that a sequence has, of which there may then
            be more or fewer than sequences; without it sequence b has row b. A slot outside the
            caches attends to nothing and gives zeros.

    The axes of q and out after the first may be merged into one.

    Raises:
        TypeError: when ``scale`` is no number.
        ValueError: when shapes or dtypes do not agree, or ``scale`` is not finite.
    """
    cache = check("k_cache", k_cache, ("slots", "kv_heads", "max_len", "head_dim"))
    slot_count, kv_heads, max_len, head_dim = cache
    batch = batch_of(slots, slot_count)
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"k_cache: expected head_dim of at most {MAX_HEAD_DIM}, came {head_dim}")
    check("v_cache", v_cache, cache)
    _, width = check("q", q, (batch, "heads * head_dim"), merge=True)
    if width % (kv_heads * head_dim):
        raise ValueError(
            f"q: expected a multiple of {kv_heads} heads of {head_dim}, came {width} elements a row"
        )
    check("out", out, (batch, width), merge=True)
    check("position", position, (batch,), np.int32)
    factor = score_factor(scale, head_dim)
    heads = width // head_dim
    return KernelLaunch(
        ATTENTION,
        (heads, min(batch, 65535), 1),
        (MAX_WARPS * WARP, 1, 1),
        (
            *(q, k_cache, v_cache, position, NULL if slots is None else slots, out),
            *(batch, slot_count, heads, kv_heads, head_dim, max_len, factor),
        ),
    )
