"""Luminance of each patch: mean and variance over its pixels, which contrast is made of.

Luminance is that of ITU-R BT.709 for linear RGB: 0.2126 R + 0.7152 G + 0.0722 B.
"""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import KernelLaunch, check
from .patches import PatchGrid, per_warp, source

__all__ = ["PATCH_LUMINANCE", "patch_luminance"]

BT_709 = np.array([0.2126, 0.7152, 0.0722])


def twin(
    launch: Launch,
    image: Pointer,
    mean: Pointer,
    variance: Pointer,
    height: int,
    width: int,
    size: int,
) -> None:
    """Do what patch_luminance does."""
    pixels = image.view((3, height, width)).astype(np.float64)
    with np.errstate(invalid="ignore"):  # what is not finite becomes NaN
        luminance = np.einsum("c,chw->hw", BT_709, pixels)
        rows, columns = height // size, width // size
        patches = luminance.reshape(rows, size, columns, size).swapaxes(1, 2)
        patches = patches.reshape(rows * columns, size * size)
        differences = patches - patches[:, :1]
        shift = differences.mean(axis=1)
        spread = ((differences - shift[:, None]) ** 2).mean(axis=1)
        # The kernel's sum of squares is float32.
        finite = (differences**2).sum(axis=1) <= np.finfo(np.float32).max
        mean.view(rows * columns)[...] = np.where(finite, patches[:, 0] + shift, np.nan)
        variance.view(rows * columns)[...] = np.where(finite, spread, np.nan)


PATCH_LUMINANCE = Kernel(source("patch_luminance"), "patch_luminance", twin=twin)


def patch_luminance(image: object, mean: object, variance: object, patch: int) -> KernelLaunch:
    """Return the launch of the mean and the population variance of luminance in each patch.

    Both are NaN where a pixel is not finite, or so large that float32 does not hold the sum of the
    squares. The variance of a patch of one colour is exactly 0.

    Args:
        image: float32 [3, height, width], red, green and blue.
        mean: float32 [patches], numbered along the rows of patches.
        variance: float32 [patches].
        patch: pixels of a patch's side; height and width are multiples of it.

    Raises:
        TypeError: when ``patch`` is no int.
        ValueError: when shapes or dtypes do not agree.
    """
    grid = PatchGrid.of(image, patch)
    check("mean", mean, (grid.patches,))
    check("variance", variance, (grid.patches,))
    args = (image, mean, variance, grid.rows * patch, grid.columns * patch, patch)
    return per_warp(PATCH_LUMINANCE, args, grid.patches)
