"""Similarity of each patch to a query: the cosine of the angle between the two."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import KernelLaunch, check
from .patches import per_warp, source

__all__ = ["QUERY_SIMILARITY", "query_similarity"]


def twin(
    launch: Launch,
    features: Pointer,
    query: Pointer,
    similarity: Pointer,
    patches: int,
    width: int,
) -> None:
    """Do what query_similarity does."""
    values = features.view((patches, width)).astype(np.float64)
    asked = query.view(width).astype(np.float64)
    with np.errstate(invalid="ignore"):  # what is not finite becomes NaN
        norms = np.sqrt((values * values).sum(axis=1)) * np.sqrt((asked * asked).sum())
        similarity.view(patches)[...] = (values * asked).sum(axis=1) / np.maximum(norms, 1e-8)


QUERY_SIMILARITY = Kernel(source("query_similarity"), "query_similarity", twin=twin)


def query_similarity(features: object, query: object, similarity: object) -> KernelLaunch:
    """Return the launch of ``similarity[p] = f @ query / max(|f| |query|, 1e-8), f = features[p]``.

    It is NaN where a feature or the query is not finite. Squares are summed in float32: vectors
    longer than 1e19 are too long.

    Args:
        features: float32 [patches, width].
        query: float32 [width].
        similarity: float32 [patches].

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    patches, width = check("features", features, ("patches", "width"))
    check("query", query, (width,))
    check("similarity", similarity, (patches,))
    args = (features, query, similarity, patches, width)
    return per_warp(QUERY_SIMILARITY, args, patches)
