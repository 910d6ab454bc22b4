"""A projection whose result is added to the residual stream."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import cache

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import KernelLaunch, aligned, check
from .sources import options, source
from .weight_stream import WeightStream

__all__ = ["project_residual"]


@cache
def _kernel(stream: WeightStream, m: int) -> Kernel:
    def twin(launch: Launch, weight: Pointer, input: Pointer, x: Pointer, batch: int) -> None:  # noqa: A002 - the kernel's name for it
        rows = input.view((batch, stream.k))
        x.view((batch, m))[...] += rows @ weight.view((m, stream.k)).astype(np.float32).T

    code = source("project_residual")
    return Kernel(code, "project_residual", twin=twin, options=(*stream.options, *options(M=m)))


def project_residual(weight: object, input: object, x: object) -> KernelLaunch:  # noqa: A002 - as in the kernel
    """Return the launch of ``x[b, m] += weight[m] . input[b]``.

    Args:
        weight: bfloat16 [m, k], k a multiple of 8.
        input: float32 [batch, k], at most 2 rows; further axes count into k.
        x: float32 [batch, m]. Must not overlap ``input``.

    Raises:
        ValueError: when shapes or dtypes do not agree, or ``weight`` or ``input`` is not on
            16-byte boundaries.
    """
    m, k = aligned("weight", weight, ("m", "k"))
    batch, _ = aligned("input", input, ("batch", k), np.float32, merge=True)
    check("x", x, (batch, m))
    stream = WeightStream.of("weight", k, -(-m // 2), batch)
    return stream.launch(_kernel(stream, m), (weight, input, x, batch))
