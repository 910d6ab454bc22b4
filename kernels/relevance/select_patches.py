"""The k patches of the highest balance."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import KernelLaunch, check
from .patches import per_warp, source

__all__ = ["SELECT_PATCHES", "select_patches"]


def twin(
    launch: Launch, balance: Pointer, indices: Pointer, selected: Pointer, patches: int, k: int
) -> None:
    """Do what select_patches does."""
    values = balance.view(patches)
    # NumPy sorts NaN to the end, and a stable sort keeps equal values in the order of their index.
    order = np.argsort(-values, kind="stable")[:k]
    chosen = values[order]
    indices.view(k)[...] = np.where(np.isnan(chosen), -1, order)
    selected.view(k)[...] = chosen


SELECT_PATCHES = Kernel(source("select_patches"), "select_patches", twin=twin)


def select_patches(balance: object, indices: object, selected: object) -> KernelLaunch:
    """Return the launch that selects the k patches of the highest balance, highest first.

    Of equal balances the patch with the lower index comes first. A patch whose balance is NaN is
    never selected: where fewer than k are left, the last places hold -1 and NaN.

    Args:
        balance: float32 [patches].
        indices: int32 [k], k at most patches.
        selected: float32 [k], the balances of the selected.

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    (patches,) = check("balance", balance, ("patches",))
    (k,) = check("indices", indices, ("k",), np.int32)
    if k > patches:
        raise ValueError(f"indices: expected k of at most {patches}, the patches, came {k}")
    check("selected", selected, (k,))
    return per_warp(SELECT_PATCHES, (balance, indices, selected, patches, k), patches)
