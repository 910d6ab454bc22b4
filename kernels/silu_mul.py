"""SwiGLU's product: silu(gate) times up."""

from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from .launch import KernelLaunch, check, elementwise, size, source

__all__ = ["SILU_MUL", "silu_mul"]


def twin(launch: Launch, gate: Pointer, up: Pointer, out: Pointer, n: int) -> None:
    """Do what silu_mul does."""
    values = gate.view(n)
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the quotient 0
        out.view(n)[...] = values / (1 + np.exp(-values)) * up.view(n)


SILU_MUL = Kernel(source("silu_mul"), "silu_mul", twin=twin)


def silu_mul(gate: object, up: object, out: object) -> KernelLaunch:
    """Return the launch of ``out = gate / (1 + exp(-gate)) * up``.

    Args:
        gate: float32 of any shape.
        up: float32, as ``gate``.
        out: float32, as ``gate``; may be ``gate`` or ``up``.

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    shape = check("gate", gate)
    check("up", up, shape)
    check("out", out, shape)
    return elementwise(SILU_MUL, (gate, up, out), size("gate", shape))
