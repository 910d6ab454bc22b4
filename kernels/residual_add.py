"""The sum of two arrays."""

from __future__ import annotations

from graphkit.kernel import Kernel, Launch, Pointer

from .launch import KernelLaunch, check, elementwise, size, source

__all__ = ["RESIDUAL_ADD", "residual_add"]


def twin(launch: Launch, x: Pointer, residual: Pointer, out: Pointer, n: int) -> None:
    """Do what residual_add does."""
    out.view(n)[...] = x.view(n) + residual.view(n)


RESIDUAL_ADD = Kernel(source("residual_add"), "residual_add", twin=twin)


def residual_add(x: object, residual: object, out: object) -> KernelLaunch:
    """Return the launch of ``out = x + residual``.

    Args:
        x: float32 of any shape.
        residual: float32, as ``x``.
        out: float32, as ``x``; may be ``x`` or ``residual``.

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    shape = check("x", x)
    check("residual", residual, shape)
    check("out", out, shape)
    return elementwise(RESIDUAL_ADD, (x, residual, out), size("x", shape))
