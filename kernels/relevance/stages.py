"""The kernel launches of the relevance pipeline, and what each of them waits for."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

import graphkit as gk

from ..launch import KernelLaunch, check, instance, number
from .feature_entropy import feature_entropy
from .local_contrast import local_contrast
from .opponent_balance import check_weights, opponent_balance
from .patch_luminance import patch_luminance
from .patches import MOST_PATCHES, MOST_SIDE, PatchGrid, check_count
from .query_similarity import query_similarity
from .select_patches import select_patches
from .token_budget import check_budget, token_budget

__all__ = [
    "RelevanceBuffers",
    "RelevanceLaunch",
    "RelevanceSettings",
    "Stage",
    "relevance_graph",
    "relevance_launches",
]

Stage = Literal["scoring", "allocation"]


@dataclass(frozen=True)
class RelevanceSettings:
    """What a relevance pipeline computes.

    Attributes:
        k: patches to select.
        total_tokens: tokens of all selected patches together.
        patch: pixels of a patch's side.
        weights: of entropy, contrast and similarity in a patch's excitation.
        inhibition: how much of its competitors' mean excitation is taken off.
        radius: how many rows and columns of patches a neighbourhood reaches to each side.
        saturation: deviation of luminance that counts as flat, in units of luminance.
        least_tokens: tokens of a selected patch, at least.
        most_tokens: tokens of a selected patch, at most.

    Raises:
        TypeError: when one is not of its type.
        ValueError: when one is out of its bounds, or no budget has the total.
    """

    k: int
    total_tokens: int
    patch: int = 16
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    inhibition: float = 0.5
    radius: int = 1
    saturation: float = 0.01
    least_tokens: int = 64
    most_tokens: int = 400

    def __post_init__(self) -> None:
        check_count("k", self.k, 1, MOST_PATCHES)
        check_count("patch", self.patch, 1, MOST_SIDE)
        check_weights(self.weights)
        number("inhibition", self.inhibition)
        check_count("radius", self.radius, 0, 2**15)
        number("saturation", self.saturation, above=0.0)
        budget = self.total_tokens, self.least_tokens, self.most_tokens
        check_budget(self.k, *budget, suffix="_tokens")


@dataclass(frozen=True)
class RelevanceBuffers:
    """What the launches of one image size write, in device memory.

    Attributes:
        grid: the patches of the image.
        k: patches to select.
        mean: of each patch's luminance, float32 [patches], as are the scores.
        variance: of each patch's luminance.
        entropy: of each patch's features, in nats.
        contrast: of each patch, relative to its neighbourhood.
        similarity: of each patch to the query.
        balance: of each patch.
        indices: the selected patches, int32 [k].
        selected: their balances, float32 [k].
        tokens: their tokens, int32 [k].

    Raises:
        TypeError: when the grid is none, or ``k`` no int.
        ValueError: when one is out of its bounds.
    """

    grid: PatchGrid
    k: int
    mean: gk.DeviceArray = field(init=False)
    variance: gk.DeviceArray = field(init=False)
    entropy: gk.DeviceArray = field(init=False)
    contrast: gk.DeviceArray = field(init=False)
    similarity: gk.DeviceArray = field(init=False)
    balance: gk.DeviceArray = field(init=False)
    indices: gk.DeviceArray = field(init=False)
    selected: gk.DeviceArray = field(init=False)
    tokens: gk.DeviceArray = field(init=False)

    def __post_init__(self) -> None:
        instance("grid", self.grid, PatchGrid)
        for axis, extent in self.grid._asdict().items():
            check_count(f"grid.{axis}", extent, 1, MOST_PATCHES)
        check_count("k", self.k, 1, MOST_PATCHES)
        for name in ("mean", "variance", "entropy", "contrast", "similarity", "balance"):
            object.__setattr__(self, name, gk.empty(self.grid.patches))
        object.__setattr__(self, "indices", gk.empty(self.k, np.int32))
        object.__setattr__(self, "selected", gk.empty(self.k))
        object.__setattr__(self, "tokens", gk.empty(self.k, np.int32))


@dataclass(frozen=True)
class RelevanceLaunch:
    """One kernel launch of the pipeline.

    Attributes:
        name: that of its kernel.
        stage: ``"scoring"`` ends with the balance, ``"allocation"`` selects and gives tokens.
        launch: kernel, launch configuration and arguments.
        after: names of the launches that it waits for.
    """

    name: str
    stage: Stage
    launch: KernelLaunch
    after: tuple[str, ...] = ()


def check_inputs(image: object, features: object, query: object, k: int, patch: int) -> PatchGrid:
    """Check what a request gives, and return the patches of its image.

    Raises:
        TypeError: when one is no array in device memory.
        ValueError: when shapes or dtypes do not agree, or there are fewer than k patches.
    """
    grid = PatchGrid.of(image, patch)
    if k > grid.patches:
        raise ValueError(f"k: expected at most {grid.patches}, the patches of the image, came {k}")
    _, width = check("features", features, (grid.patches, "width"))
    check("query", query, (width,))
    return grid


def relevance_launches(
    settings: RelevanceSettings,
    image: object,
    features: object,
    query: object,
    buffers: RelevanceBuffers,
) -> tuple[RelevanceLaunch, ...]:
    """Return the launches for one request, in an order that is good for one stream.

    Raises:
        TypeError: when one is no array in device memory.
        ValueError: when shapes or dtypes do not agree.
    """
    instance("settings", settings, RelevanceSettings)
    to, columns = instance("buffers", buffers, RelevanceBuffers), buffers.grid.columns
    if settings.k != buffers.k:
        raise ValueError(f"buffers: expected those of k {settings.k}, came {buffers.k}")
    balance = opponent_balance(
        to.entropy,
        to.contrast,
        to.similarity,
        to.balance,
        columns,
        weights=settings.weights,
        radius=settings.radius,
        inhibition=settings.inhibition,
    )
    contrast = local_contrast(
        to.mean,
        to.variance,
        to.contrast,
        columns,
        radius=settings.radius,
        saturation=settings.saturation,
    )
    budget = token_budget(
        to.selected,
        to.tokens,
        settings.total_tokens,
        least=settings.least_tokens,
        most=settings.most_tokens,
    )
    luminance = patch_luminance(image, to.mean, to.variance, settings.patch)
    similarity = query_similarity(features, query, to.similarity)
    scores = ("feature_entropy", "local_contrast", "query_similarity")
    return (
        # The only scorer of two kernels goes first: the others run beside it.
        RelevanceLaunch("patch_luminance", "scoring", luminance),
        RelevanceLaunch("feature_entropy", "scoring", feature_entropy(features, to.entropy)),
        RelevanceLaunch("query_similarity", "scoring", similarity),
        RelevanceLaunch("local_contrast", "scoring", contrast, ("patch_luminance",)),
        RelevanceLaunch("opponent_balance", "scoring", balance, scores),
        RelevanceLaunch(
            "select_patches",
            "allocation",
            select_patches(to.balance, to.indices, to.selected),
            ("opponent_balance",),
        ),
        RelevanceLaunch("token_budget", "allocation", budget, ("select_patches",)),
    )


def relevance_graph(launches: Sequence[RelevanceLaunch]) -> tuple[gk.Graph, dict[str, gk.Node]]:
    """Make a kernel node of each launch, behind those of its ``after`` that are among them.

    Returns:
        The graph, and its nodes by name.

    Raises:
        TypeError: when they are no launches of the pipeline.
    """
    for entry in instance("launches", launches, Sequence):
        instance("launches", entry, RelevanceLaunch)
    graph = gk.Graph()
    nodes: dict[str, gk.Node] = {}
    for entry in launches:
        deps = [nodes[name] for name in entry.after if name in nodes]
        nodes[entry.name] = entry.launch.add_to(graph, deps)
    return graph, nodes
