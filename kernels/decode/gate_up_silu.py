"""The norm ahead of the MLP, its gate and its up projection, and SiLU of one times the other."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import cache

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import KernelLaunch, aligned, check, epsilon
from .sources import options, source
from .weight_stream import WeightStream, normed

__all__ = ["gate_up_silu"]


@cache
def _kernel(stream: WeightStream, m: int) -> Kernel:
    def twin(
        launch: Launch,
        gate: Pointer,
        up: Pointer,
        x: Pointer,
        gain: Pointer,
        out: Pointer,
        batch: int,
        eps: np.float32,
    ) -> None:
        rows = normed(x, gain, batch, stream.k, eps)
        gates, ups = (rows @ w.view((m, stream.k)).astype(np.float32).T for w in (gate, up))
        with np.errstate(over="ignore"):  # exp of a large number: the quotient is 0, as it should
            out.view((batch, m))[...] = gates / (1 + np.exp(-gates)) * ups

    code = source("gate_up_silu")
    return Kernel(code, "gate_up_silu", twin=twin, options=(*stream.options, *options(M=m)))


def gate_up_silu(
    gate: object, up: object, x: object, gain: object, out: object, eps: float
) -> KernelLaunch:
    """Return the launch of ``out = silu(gate . norm(x)) * (up . norm(x))``, row by row.

    ``norm(x) = x / sqrt(mean(x * x) + eps) * gain``.

    Args:
        gate: bfloat16 [m, k], k a multiple of 8.
        up: bfloat16 [m, k].
        x: float32 [batch, k], at most 2 rows.
        gain: float32 [k].
        out: float32 [batch, m].
        eps: of the norm; above 0.

    Raises:
        ValueError: when shapes or dtypes do not agree, or inputs or matrices are not on
            16-byte boundaries.
    """
    m, k = aligned("gate", gate, ("m", "k"))
    aligned("up", up, (m, k))
    batch, _ = aligned("x", x, ("batch", k), np.float32)
    aligned("gain", gain, (k,), np.float32)
    check("out", out, (batch, m))
    stream = WeightStream.of("gate", k, m, batch)
    return stream.launch(_kernel(stream, m), (gate, up, x, gain, out, batch, epsilon(eps)))
