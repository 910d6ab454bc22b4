"""Query, key and value projections of a batch, their rotation, and the append to the caches."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import cache

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import NULL, KernelLaunch, aligned, check, epsilon
from ..rope_append import rotated
from .batch_tiles import (
    MEASURED,
    Tiles,
    batch_of,
    chosen_tiles,
    enough_rows,
    factors,
    floats,
    launch_of,
    norm_scale,
    real_rows,
    shared_tiles,
)
from .cache_place import CacheLayout
from .sources import source

__all__ = ["batch_qkv", "qkv_kernel", "qkv_tiles"]


def qkv_tiles(hidden: int, heads: int, kv_heads: int, head_dim: int, batch: int) -> Tiles:
    """Return the tiles that :func:`batch_qkv` takes by default."""
    if hidden >= MEASURED:
        return Tiles(64, 4, 64, 6 if batch <= 32 else 5, 16, 1)
    return shared_tiles((heads + 2 * kv_heads) * head_dim, hidden, batch)


@cache
def qkv_kernel(
    batch: int, hidden: int, heads: int, kv_heads: int, head_dim: int, page: int, tiles: Tiles
) -> Kernel:
    """Return the kernel for these extents; ``page`` is 0 for caches without pages."""
    half = head_dim // 2

    def twin(
        launch: Launch,
        xg: Pointer,
        squares: Pointer,
        wq: Pointer,
        wk: Pointer,
        wv: Pointer,
        cos_table: Pointer,
        sin_table: Pointer,
        position: Pointer,
        block_table: Pointer,
        q: Pointer,
        k_cache: Pointer,
        v_cache: Pointer,
        parts: int,
        rows: int,
        max_len: int,
        slots: int,
        eps: float,
    ) -> None:
        """Do what batch_qkv does."""
        x = floats(xg.view((rows, hidden)))
        scale = norm_scale(squares, parts, rows, batch, hidden, eps)
        queries, keys, values = (
            (x @ factors(matrix.view((count * head_dim, hidden))).T * scale).reshape(
                int(rows), count, head_dim
            )
            for matrix, count in ((wq, heads), (wk, kv_heads), (wv, kv_heads))
        )
        layout = CacheLayout(int(slots), kv_heads, head_dim, int(max_len), page)
        for b, at in enumerate(position.view(rows).tolist()):
            if not 0 <= at < max_len:
                continue
            angles = [table.view(half, at * half) for table in (cos_table, sin_table)]
            q.view((heads, head_dim), b * heads * head_dim)[...] = rotated(queries[b], *angles)
            for head, line in enumerate(rotated(keys[b], *angles)):
                place = layout.place(block_table, b, head, at)
                if place >= 0:
                    k_cache.view(head_dim, place)[...] = line
                    v_cache.view(head_dim, place)[...] = values[b, head]

    extents = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "page": page}
    options = tiles.options(batch, hidden=hidden, **extents)
    return Kernel(source("batch_qkv"), "batch_qkv", twin=twin, options=options)


def batch_qkv(
    xg: object,
    squares: object,
    wq: object,
    wk: object,
    wv: object,
    cos_table: object,
    sin_table: object,
    position: object,
    q: object,
    k_cache: object,
    v_cache: object,
    *,
    eps: float,
    block_table: object | None = None,
    rows: int | None = None,
    tiles: Tiles | None = None,
) -> KernelLaunch:
    """Return the launch that makes q, and appends k and v to the caches at the position.

    ``n[b] = xg[b] / sqrt(sum(squares[:, b]) / hidden + eps)`` is the normalized stream; q, k and v
    are its products with the matrices. Element i of a head of q and k is paired with element
    ``i + head_dim / 2`` (Hugging Face's Llama), and both turn by the angle of row ``position[b]``
    of the tables. A position outside the caches writes nothing, a slot or page outside of them
    nothing to the caches. Products are of float16, to which the weights are converted, and summed
    in float32. It reads the weights before ``griddepcontrol.wait``.

    Args:
        xg: float16 [batch, hidden], the residual stream times the gain of the norm; the batch is
            8, 16, 32 or 64, hidden a multiple of 8.
        squares: float32 [parts, batch], sums of squares of the residual stream.
        wq: bfloat16 [heads * head_dim, hidden].
        wk: bfloat16 [kv_heads * head_dim, hidden].
        wv: bfloat16, as ``wk``.
        cos_table: float32 [max_len or more, head_dim / 2].
        sin_table: float32, as ``cos_table``.
        position: int32 [rows or more].
        q: float32 [rows or more, heads * head_dim].
        k_cache: bfloat16 [slots, kv_heads, max_len, head_dim], where row b has slot b; head_dim is
            a multiple of 16. With ``block_table`` it is [pages, kv_heads, page, head_dim].
        v_cache: bfloat16, as ``k_cache``.
        eps: epsilon of the norm; above 0.
        block_table: int32 [rows or more, pages of a row]: position p of row b lies in page
            ``block_table[b, p // page]``, at ``p % page``.
        rows: rows of the batch that are no padding; all by default. Others are neither read nor
            written.
        tiles: how to cut the product; :func:`qkv_tiles` by default.

    Raises:
        ValueError: when shapes, dtypes or addresses do not fit (matrices, inputs, tables, ``q`` and
            caches start on 16-byte boundaries), or the device has a compute capability before 9.0.
    """
    batch, hidden = batch_of("xg", xg, ("batch", "hidden"))
    real = real_rows(rows, batch)
    parts, _ = check("squares", squares, ("parts", batch))
    shape = aligned("k_cache", k_cache, ("slots", "kv_heads", "max_len", "head_dim"))
    slots, kv_heads, max_len, head_dim = shape
    if head_dim % 16:
        raise ValueError(f"k_cache: expected head_dim that is a multiple of 16, came {head_dim}")
    aligned("v_cache", v_cache, shape)
    width, _ = aligned("wq", wq, ("heads * head_dim", hidden))
    if width % head_dim or width // head_dim % kv_heads:
        raise ValueError(
            f"wq: expected a multiple of {kv_heads} heads of {head_dim} rows, came {width} rows"
        )
    for name, matrix in (("wk", wk), ("wv", wv)):
        aligned(name, matrix, (kv_heads * head_dim, hidden))
    page = 0
    if block_table is not None:
        there, pages = check("block_table", block_table, ("rows", "pages"), np.int32)
        enough_rows("block_table", there, real)
        page, max_len = max_len, max_len * pages
    table = aligned("cos_table", cos_table, ("max_len", head_dim // 2), np.float32)
    if table[0] < max_len:
        raise ValueError(f"cos_table: expected {max_len} rows or more, came {table[0]}")
    aligned("sin_table", sin_table, table, np.float32)
    enough_rows("position", check("position", position, ("rows",), np.int32)[0], real)
    enough_rows("q", aligned("q", q, ("rows", width), np.float32)[0], real)
    heads = width // head_dim
    tiles = chosen_tiles(tiles, qkv_tiles(hidden, heads, kv_heads, head_dim, batch), batch)
    kernel = qkv_kernel(batch, hidden, heads, kv_heads, head_dim, page, tiles)
    args = (
        *(xg, squares, wq, wk, wv, cos_table, sin_table, position),
        *(NULL if block_table is None else block_table, q, k_cache, v_cache),
        *(parts, real, max_len, slots, epsilon(eps)),
    )
    rows_of_all = (heads + 2 * kv_heads) * head_dim
    return launch_of(kernel, tiles, batch, tiles.count(rows_of_all) * tiles.split, args)
