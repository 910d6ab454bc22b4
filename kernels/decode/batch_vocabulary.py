"""Logits of a batch, and candidates for the most likely token of each row."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import cache

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..argmax import first_largest
from ..launch import MULTIPROCESSORS, NULL, KernelLaunch, aligned, check, epsilon
from .batch_tiles import (
    Tiles,
    batch_of,
    chosen_tiles,
    eights,
    enough_rows,
    factors,
    floats,
    launch_of,
    norm_scale,
    real_rows,
)
from .sources import source

__all__ = ["batch_vocabulary", "vocabulary_blocks", "vocabulary_kernel", "vocabulary_tiles"]


def vocabulary_tiles(batch: int) -> Tiles:
    """Return the tiles that :func:`batch_vocabulary` takes by default."""
    # Stages as long as shared memory allows, since no other block comes in beside this one. With
    # the largest batch the inputs are read from the L2 as often as there are tiles: taller ones.
    if batch == 64:
        return Tiles(256, 1, 128, 2, 32)
    return Tiles(128, 1, 256, 2 if batch == 32 else 3)


def vocabulary_blocks(vocabulary: int, batch: int, tiles: Tiles | None = None) -> int:
    """Return the blocks of :func:`batch_vocabulary`, which is how many candidates a row gets."""
    return min((tiles or vocabulary_tiles(batch)).count(vocabulary), MULTIPROCESSORS)


@cache
def vocabulary_kernel(batch: int, hidden: int, vocabulary: int, tiles: Tiles) -> Kernel:
    """Return the kernel for these extents."""

    def twin(
        launch: Launch,
        xg: Pointer,
        squares: Pointer,
        weight: Pointer,
        logits: Pointer,
        best: Pointer,
        best_index: Pointer,
        parts: int,
        rows: int,
        eps: float,
    ) -> None:
        """Do what batch_vocabulary does."""
        x = floats(xg.view((rows, hidden)))
        scale = norm_scale(squares, parts, rows, batch, hidden, eps)
        values = x @ factors(weight.view((vocabulary, hidden))).T * scale
        if logits:
            logits.view((rows, vocabulary))[...] = values
        tile_of = np.arange(vocabulary) // height
        for block in range(launch.grid[0]):
            tokens = np.flatnonzero(tile_of % launch.grid[0] == block)
            found = first_largest(values[:, tokens])
            best_index.view(rows, block * batch)[...] = tokens[found]
            # + 0.0: the kernel's order of values knows one zero, the positive.
            best.view(rows, block * batch)[...] = values[np.arange(rows), tokens[found]] + 0.0

    height = tiles.rows
    options = tiles.options(batch, hidden=hidden, vocabulary=vocabulary)
    return Kernel(source("batch_vocabulary"), "batch_vocabulary", twin=twin, options=options)


def batch_vocabulary(
    xg: object,
    squares: object,
    weight: object,
    logits: object | None,
    best: object,
    best_index: object,
    *,
    eps: float,
    rows: int | None = None,
    tiles: Tiles | None = None,
) -> KernelLaunch:
    """Return the launch of ``logits[b] = weight @ n[b]``, n the normalized residual stream.

    ``n[b] = xg[b] / sqrt(sum(squares[:, b]) / hidden + eps)``. Products are of float16, to which
    the weights are converted, and summed in float32. Every block gives, for each row, the largest
    of the logits that it made and their lowest index of that value; NaN is less than anything, and
    is given where there is nothing else. It reads the weights before ``griddepcontrol.wait``.

    Args:
        xg: float16 [batch, hidden], the residual stream times the gain of the norm; the batch is
            8, 16, 32 or 64, hidden a multiple of 8.
        squares: float32 [parts, batch], sums of squares of the residual stream.
        weight: bfloat16 [vocabulary, hidden]; the vocabulary is a multiple of 8.
        logits: float32 [rows or more, vocabulary], or None when the candidates are enough.
        best: float32 [blocks, batch]; :func:`vocabulary_blocks` says how many blocks.
        best_index: int32 [blocks, batch].
        eps: epsilon of the norm; above 0.
        rows: rows of the batch that are no padding; all by default. Others are not written.
        tiles: how to cut the product, without a split; :func:`vocabulary_tiles` by default.

    Raises:
        ValueError: when shapes, dtypes or addresses do not fit (matrix and input start on 16-byte
            boundaries), or the device has a compute capability before 9.0.
    """
    batch, hidden = batch_of("xg", xg, ("batch", "hidden"))
    real = real_rows(rows, batch)
    parts, _ = check("squares", squares, ("parts", batch))
    vocabulary, _ = aligned("weight", weight, ("vocabulary", hidden))
    eights("weight", "a vocabulary", vocabulary)
    if logits is not None:
        enough_rows("logits", check("logits", logits, ("rows", vocabulary))[0], real)
    tiles = chosen_tiles(tiles, vocabulary_tiles(batch), batch)
    if tiles.split > 1 or tiles.warp_split > 1:
        raise ValueError(f"tiles: expected no split of k, came {tiles}")
    blocks = vocabulary_blocks(vocabulary, batch, tiles)
    check("best", best, (blocks, batch))
    check("best_index", best_index, (blocks, batch), np.int32)
    kernel = vocabulary_kernel(batch, hidden, vocabulary, tiles)
    args = (
        *(xg, squares, weight, NULL if logits is None else logits, best, best_index),
        *(parts, real, epsilon(eps)),
    )
    return launch_of(kernel, tiles, batch, blocks, args)
