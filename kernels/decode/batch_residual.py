"""Projection of a batch back into the residual stream, and what the next norm needs of it."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import cache

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import KernelLaunch, aligned, check
from .batch_tiles import (
    MEASURED,
    Tiles,
    batch_of,
    chosen_tiles,
    eights,
    factors,
    floats,
    launch_of,
    real_rows,
    shared_tiles,
)
from .half import rounded
from .sources import source

__all__ = ["batch_residual", "residual_kernel", "residual_parts", "residual_tiles"]


def residual_tiles(hidden: int, width: int, batch: int) -> Tiles:
    """Return the tiles that :func:`batch_residual` takes by default."""
    if width < MEASURED:
        return shared_tiles(hidden, width, batch, (128, 64))
    if width <= hidden:
        return Tiles(32, 2, 128, {8: 6, 16: 6, 32: 4, 64: 5}[batch], 16, 4)
    return {
        8: Tiles(32, 2, 512, 3, 16, 4),
        16: Tiles(32, 2, 256, 4, 16, 4),
        32: Tiles(64, 4, 128, 4, 16, 2),
        64: Tiles(64, 4, 128, 3, 16, 2),
    }[batch]


def residual_parts(hidden: int, width: int, batch: int, tiles: Tiles | None = None) -> int:
    """Return the first extent of ``squares`` that :func:`batch_residual` writes."""
    return (tiles or residual_tiles(hidden, width, batch)).count(hidden)


@cache
def residual_kernel(batch: int, hidden: int, width: int, tiles: Tiles) -> Kernel:
    """Return the kernel for these extents."""

    def twin(
        launch: Launch,
        input: Pointer,  # noqa: A002 - the kernel's word
        weight: Pointer,
        gain: Pointer,
        x: Pointer,
        xg: Pointer,
        squares: Pointer,
        rows: int,
    ) -> None:
        """Do what batch_residual does."""
        stream = x.view((rows, hidden))
        stream += floats(input.view((rows, width))) @ factors(weight.view((hidden, width))).T
        xg.view((rows, hidden))[...] = rounded(stream * gain.view(hidden))
        for part in range(tiles.count(hidden)):
            columns = stream[:, part * tiles.rows : (part + 1) * tiles.rows]
            squares.view(rows, part * batch)[...] = (columns * columns).sum(axis=1)

    options = tiles.options(batch, hidden=hidden, width=width)
    return Kernel(source("batch_residual"), "batch_residual", twin=twin, options=options)


def batch_residual(
    input: object,  # noqa: A002 - the kernel's word
    weight: object,
    gain: object,
    x: object,
    xg: object,
    squares: object,
    *,
    rows: int | None = None,
    tiles: Tiles | None = None,
) -> KernelLaunch:
    """Return the launch of ``x[b] += weight @ input[b]; xg[b] = x[b] * gain``.

    ``squares[p, b]`` is the sum of squares of the new ``x[b]`` over the p-th of equal parts of the
    columns. Products are of float16, to which the weights are converted, and summed in float32. It
    reads the weights before ``griddepcontrol.wait``.

    Args:
        input: float16 [batch, width]; the batch is 8, 16, 32 or 64, width a multiple of 8.
        weight: bfloat16 [hidden, width]; hidden is a multiple of 8.
        gain: float32 [hidden], the weight of the next RMSNorm.
        x: float32 [batch, hidden], the residual stream; changed in place.
        xg: float16 [batch, hidden].
        squares: float32 [parts, batch]; :func:`residual_parts` says how many parts.
        rows: rows of the batch that are no padding; all by default. Others are not written.
        tiles: how to cut the product; :func:`residual_tiles` by default.

    Raises:
        ValueError: when shapes, dtypes or addresses do not fit (all arrays but ``squares`` start
            on 16-byte boundaries), or the device has a compute capability before 9.0.
    """
    batch, width = batch_of("input", input, ("batch", "width"))
    hidden, _ = aligned("weight", weight, ("hidden", width))
    eights("weight", "a hidden width", hidden)
    aligned("gain", gain, (hidden,), np.float32)
    aligned("x", x, (batch, hidden), np.float32)
    aligned("xg", xg, (batch, hidden), np.float16)
    tiles = chosen_tiles(tiles, residual_tiles(hidden, width, batch), batch)
    if tiles.rows not in (16, 32, 64, 128):
        raise ValueError(f"tiles: expected 16, 32, 64 or 128 rows, came {tiles.rows}")
    check("squares", squares, (tiles.count(hidden), batch))
    kernel = residual_kernel(batch, hidden, width, tiles)
    args = (input, weight, gain, x, xg, squares, real_rows(rows, batch))
    return launch_of(kernel, tiles, batch, tiles.count(hidden) * tiles.split, args)
