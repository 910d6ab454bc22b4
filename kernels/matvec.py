"""Matrix-vector product, and the product with the few rows of a small batch."""

from __future__ import annotations

import numpy as np

from graphkit.device_array import BFLOAT16
from graphkit.kernel import Kernel, Launch, Pointer

from .launch import WARP, KernelLaunch, check, choose, source

__all__ = ["MATVEC", "matvec"]

GROUP = 4  # rows of x that share one pass over weight, as in matvec.cu
WARPS = 4


def twin(
    launch: Launch, weight: Pointer, x: Pointer, y: Pointer, batch: int, m: int, k: int
) -> None:
    """Do what matvec_float32 and matvec_bfloat16 do."""
    factors = weight.view((m, k)).astype(np.float32, copy=False)
    # Row by row, as the kernel adds up: a row gives the same bits in any batch.
    for row, products in zip(x.view((batch, k)), y.view((batch, m)), strict=True):
        np.matmul(factors, row, out=products)


SOURCE = source("matvec")
MATVEC = {
    np.dtype(np.float32): Kernel(SOURCE, "matvec_float32", twin=twin),
    BFLOAT16: Kernel(SOURCE, "matvec_bfloat16", twin=twin),
}


def matvec(weight: object, x: object, y: object) -> KernelLaunch:
    """Return the launch of ``y[b, m] = sum over k of weight[m, k] * x[b, k]``.

    Args:
        weight: float32 or bfloat16 [m, k].
        x: float32 [batch, k]; further axes count into k.
        y: float32 [batch, m]; further axes count into m. Must not overlap ``x``.

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    dtype, kernel = choose("weight", MATVEC, weight)
    m, k = check("weight", weight, ("m", "k"), dtype)
    batch, _ = check("x", x, ("batch", k), merge=True)
    check("y", y, (batch, m), merge=True)
    grid = (-(-m // WARPS), min(-(-batch // GROUP), 65535), 1)
    return KernelLaunch(kernel, grid, (WARPS * WARP, 1, 1), (weight, x, y, batch, m, k))
