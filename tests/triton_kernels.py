"""Triton kernels for tests on a device; here, since Triton reads a kernel's globals."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scaled_sum(x, y, out, scale, n, BLOCK: tl.constexpr):
    """Write scale * x + y."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value = scale * tl.load(x + at, mask=inside) + tl.load(y + at, mask=inside)
    tl.store(out + at, value, mask=inside)


@triton.jit
def row_softmax(x, out, columns, BLOCK: tl.constexpr):
    """Write the softmax of each row, a program each."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    value = tl.load(x + row * columns + at, mask=inside, other=-float("inf")).to(tl.float32)
    power = tl.exp(value - tl.max(value, axis=0))
    tl.store(out + row * columns + at, power / tl.sum(power, axis=0), mask=inside)
