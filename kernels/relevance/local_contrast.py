"""Local contrast of each patch: its deviation of luminance, relative to its neighbourhood's.

The standard deviation of luminance is the RMS contrast of Peli (1990); dividing it by that of the
neighbourhood and a constant is the divisive normalisation of Heeger (1992). The constant keeps the
noise of a flat neighbourhood from counting as contrast.
"""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import KernelLaunch, check, number
from .neighbourhood import window_sums
from .patches import PatchGrid, check_count, source

__all__ = ["LOCAL_CONTRAST", "local_contrast"]


def twin(
    launch: Launch,
    mean: Pointer,
    variance: Pointer,
    contrast: Pointer,
    rows: int,
    columns: int,
    radius: int,
    saturation: float,
) -> None:
    """Do what local_contrast does."""
    means = mean.view((rows, columns)).astype(np.float64)
    variances = variance.view((rows, columns)).astype(np.float64)
    valid = np.isfinite(means) & np.isfinite(variances)
    # Less what is common to all: the squares of small differences do not cancel.
    means = np.where(valid, means - (means[valid].mean() if valid.any() else 0.0), 0.0)
    spreads = np.where(valid, variances, 0.0)
    count = np.maximum(window_sums(valid, radius), 1)
    shift = window_sums(means, radius) / count
    window = window_sums(spreads + means**2, radius) / count - shift**2
    ratio = np.sqrt(spreads) / (np.sqrt(np.maximum(window, 0.0)) + saturation)
    contrast.view((rows, columns))[...] = np.where(valid, ratio, np.nan)


LOCAL_CONTRAST = Kernel(source("local_contrast"), "local_contrast", twin=twin)


def local_contrast(
    mean: object,
    variance: object,
    contrast: object,
    columns: int,
    *,
    radius: int = 1,
    saturation: float = 0.01,
) -> KernelLaunch:
    """Return the launch of ``contrast[p] = deviation(p) / (deviation(window) + saturation)``.

    Both are standard deviations of luminance: of the patch's pixels, and of all pixels of the
    patches around it, itself included. It is NaN where the patch has no finite moments, and such
    patches count in no window.

    Args:
        mean: float32 [patches], of ``patch_luminance``.
        variance: float32 [patches], of ``patch_luminance``.
        contrast: float32 [patches].
        columns: patches of a row.
        radius: how many rows and columns the window reaches to each side; it ends at the border.
        saturation: in units of luminance; above 0.

    Raises:
        TypeError: when a setting is not of its type.
        ValueError: when shapes or dtypes do not agree, or a setting is out of its bounds.
    """
    (patches,) = check("mean", mean, ("patches",))
    check("variance", variance, (patches,))
    check("contrast", contrast, (patches,))
    grid = PatchGrid.of_count(patches, columns)
    check_count("radius", radius, 0, 2**15)
    bound = number("saturation", saturation, above=0.0)
    args = (mean, variance, contrast, grid.rows, grid.columns, radius, bound)
    # Small blocks: a few hundred threads are to spread over many multiprocessors.
    return KernelLaunch(LOCAL_CONTRAST, (-(-patches // 32), 1, 1), (32, 1, 1), args)
