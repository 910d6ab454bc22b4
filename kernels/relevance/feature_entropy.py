"""Entropy of each patch's features: how evenly the softmax over them is spread.

Shannon's entropy (1948) of the distribution that the softmax makes of a patch's features. It is
0 where one feature outweighs all others, and ln(width) where all are equal.
"""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import KernelLaunch, check
from .patches import per_warp, source

__all__ = ["FEATURE_ENTROPY", "feature_entropy"]


def twin(launch: Launch, features: Pointer, entropy: Pointer, patches: int, width: int) -> None:
    """Do what feature_entropy does."""
    values = features.view((patches, width)).astype(np.float64)
    with np.errstate(invalid="ignore"):  # what is not finite becomes NaN
        values -= values.max(axis=1, keepdims=True)
        exponentials = np.exp(values)
        sums = exponentials.sum(axis=1)
        entropy.view(patches)[...] = np.log(sums) - (values * exponentials).sum(axis=1) / sums


FEATURE_ENTROPY = Kernel(source("feature_entropy"), "feature_entropy", twin=twin)


def feature_entropy(features: object, entropy: object) -> KernelLaunch:
    """Return the launch of ``entropy[p] = -sum(s * ln(s)), s = softmax(features[p])``, in nats.

    It is NaN where a feature is not finite.

    Args:
        features: float32 [patches, width].
        entropy: float32 [patches].

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    patches, width = check("features", features, ("patches", "width"))
    check("entropy", entropy, (patches,))
    return per_warp(FEATURE_ENTROPY, (features, entropy, patches, width), patches)
