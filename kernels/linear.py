"""Linear layer of a small batch, with bias and ReLU in the same kernel."""

from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer
from graphkit.node_groups import check_state

from .launch import NULL, KernelLaunch, check, source

__all__ = ["LINEAR", "linear"]

THREADS, SPLIT = 256, 8  # as in linear.cu
ENOUGH_TILES = 16  # of the large kind, 8 blocks each, to have work for a whole device


def twin(
    launch: Launch,
    x: Pointer,
    weight: Pointer,
    bias: Pointer,
    y: Pointer,
    batch: int,
    n: int,
    k: int,
    relu: int,
) -> None:
    """Do what linear_float32 and linear_float32_wide do."""
    sums = y.view((batch, n))
    np.matmul(x.view((batch, k)), weight.view((n, k)).T, out=sums)
    if bias:
        sums += bias.view(n)
    if relu:
        sums[sums < 0] = 0  # a NaN stays one


SOURCE = source("linear")
# By the rows and columns of y that a cluster of blocks sums.
LINEAR = {
    32: Kernel(SOURCE, "linear_float32", twin=twin),
    64: Kernel(SOURCE, "linear_float32_wide", twin=twin),
}


def linear(
    x: object, weight: object, bias: object | None, y: object, *, relu: bool = False
) -> KernelLaunch:
    """Return the launch of ``y[b, n] = sum over k of x[b, k] * weight[n, k] + bias[n]``.

    Args:
        x: float32 [batch, k]; further axes count into k.
        weight: float32 [n, k], as ``torch.nn.Linear`` has it.
        bias: float32 [n], or None.
        y: float32 [batch, n]; further axes count into n. Must not overlap ``x``.
        relu: whether what is below zero becomes zero.

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    n, k = check("weight", weight, ("n", "k"))
    batch, _ = check("x", x, ("batch", k), merge=True)
    check("y", y, (batch, n), merge=True)
    if bias is not None:
        check("bias", bias, (n,))
    tile = 64 if -(-batch // 64) * -(-n // 64) >= ENOUGH_TILES and batch > 32 else 32
    rows = -(-batch // tile)
    if rows > 65535:
        raise ValueError(f"x: expected at most {65535 * tile} rows, came {batch}")
    args = (
        x,
        weight,
        NULL if bias is None else bias,
        y,
        batch,
        n,
        k,
        int(check_state(relu, "relu")),
    )
    return KernelLaunch(LINEAR[tile], (-(-n // tile), rows, SPLIT), (THREADS, 1, 1), args)
