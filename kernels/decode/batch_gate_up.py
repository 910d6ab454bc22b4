"""Gate and up projection of the MLP for a batch, with the norm ahead and the activation behind."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import cache

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import KernelLaunch, aligned, check, epsilon
from .batch_tiles import (
    MEASURED,
    Tiles,
    batch_of,
    chosen_tiles,
    eights,
    factors,
    floats,
    launch_of,
    norm_scale,
    real_rows,
    shared_tiles,
)
from .half import rounded
from .sources import source

__all__ = ["batch_gate_up", "gate_up_kernel", "gate_up_tiles"]


def gate_up_tiles(hidden: int, intermediate: int, batch: int) -> Tiles:
    """Return the tiles that :func:`batch_gate_up` takes by default."""
    if hidden >= MEASURED and batch >= 16:
        return Tiles(64, 1, 128, {16: 5, 32: 4, 64: 3}[batch], 32, 4)
    return shared_tiles(2 * intermediate, hidden, batch, (128,))


@cache
def gate_up_kernel(batch: int, hidden: int, intermediate: int, tiles: Tiles) -> Kernel:
    """Return the kernel for these extents."""

    def twin(
        launch: Launch,
        xg: Pointer,
        squares: Pointer,
        gate: Pointer,
        up: Pointer,
        h: Pointer,
        parts: int,
        rows: int,
        eps: float,
    ) -> None:
        """Do what batch_gate_up does."""
        x = floats(xg.view((rows, hidden)))
        scale = norm_scale(squares, parts, rows, batch, hidden, eps)
        gates, ups = (x @ factors(w.view((intermediate, hidden))).T * scale for w in (gate, up))
        with np.errstate(over="ignore"):  # exp(-x) may be infinite: x / (1 + inf) is 0
            products = gates / (1.0 + np.exp(-gates)) * ups
        h.view((rows, intermediate))[...] = rounded(products)

    options = tiles.options(batch, hidden=hidden, intermediate=intermediate)
    return Kernel(source("batch_gate_up"), "batch_gate_up", twin=twin, options=options)


def batch_gate_up(
    xg: object,
    squares: object,
    gate: object,
    up: object,
    h: object,
    *,
    eps: float,
    rows: int | None = None,
    tiles: Tiles | None = None,
) -> KernelLaunch:
    """Return the launch of ``h[b] = silu(gate @ n[b]) * (up @ n[b])``, n the normalized stream.

    ``n[b] = xg[b] / sqrt(sum(squares[:, b]) / hidden + eps)``. Products are of float16, to which
    the weights are converted, and summed in float32. It reads the weights before
    ``griddepcontrol.wait``.

    Args:
        xg: float16 [batch, hidden], the residual stream times the gain of the norm; the batch is
            8, 16, 32 or 64, hidden a multiple of 8.
        squares: float32 [parts, batch], sums of squares of the residual stream.
        gate: bfloat16 [intermediate, hidden]; intermediate is a multiple of 8.
        up: bfloat16, as ``gate``.
        h: float16 [batch, intermediate].
        eps: epsilon of the norm; above 0.
        rows: rows of the batch that are no padding; all by default. Others are not written.
        tiles: how to cut the product; :func:`gate_up_tiles` by default.

    Raises:
        ValueError: when shapes, dtypes or addresses do not fit (matrices and inputs start on
            16-byte boundaries), or the device has a compute capability before 9.0.
    """
    batch, hidden = batch_of("xg", xg, ("batch", "hidden"))
    parts, _ = check("squares", squares, ("parts", batch))
    intermediate, _ = aligned("gate", gate, ("intermediate", hidden))
    eights("gate", "an intermediate width", intermediate)
    aligned("up", up, (intermediate, hidden))
    aligned("h", h, (batch, intermediate), np.float16)
    tiles = chosen_tiles(tiles, gate_up_tiles(hidden, intermediate, batch), batch)
    kernel = gate_up_kernel(batch, hidden, intermediate, tiles)
    args = (xg, squares, gate, up, h, parts, real_rows(rows, batch), epsilon(eps))
    return launch_of(kernel, tiles, batch, tiles.count(2 * intermediate) * tiles.split, args)
