"""Linear layer of a small batch, with bias and ReLU in the same kernel."""

from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from .launch import NULL, KernelLaunch, check, source

__all__ = ["LINEAR", "linear"]

TILE, THREADS, SPLIT = 32, 256, 8  # as in linear.cu


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
    """Do what linear_float32 does."""
    sums = y.view((batch, n))
    np.matmul(x.view((batch, k)), weight.view((n, k)).T, out=sums)
    if bias:
        sums += bias.view(n)
    if relu:
        sums[sums < 0] = 0  # a NaN stays one


LINEAR = Kernel(source("linear"), "linear_float32", twin=twin)


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
    rows = -(-batch // TILE)
    if rows > 65535:
        raise ValueError(f"x: expected at most {65535 * TILE} rows, came {batch}")
    args = (x, weight, NULL if bias is None else bias, y, batch, n, k, int(relu))
    return KernelLaunch(LINEAR, (-(-n // TILE), rows, SPLIT), (THREADS, 1, 1), args)
