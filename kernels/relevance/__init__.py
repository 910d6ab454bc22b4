"""Relevance of an image's patches to a query: three scorers, their balance, a budget of tokens.

A ``.cu`` and a ``.py`` of the same stem for each kernel, and a pipeline that launches all of them
as one graph, built by hand::

    from graphkit.kernels.relevance import RelevancePipeline

    pipeline = RelevancePipeline(k=32, total_tokens=4096)
    answer = pipeline(image=image, features=features, query=query)

Three scorers see every patch p of the image, side by side:

- entropy: ``-sum(s * ln(s))`` of ``s = softmax(features[p])``, in nats;
- contrast: the standard deviation of the patch's luminance, over that of its neighbourhood;
- similarity: the cosine between ``features[p]`` and the query.

Their z-scores over the image add up to an excitation, and the balance is a patch's own less a part
of the mean of its competitors around. The k patches of the highest balance share the tokens.
"""

from .feature_entropy import FEATURE_ENTROPY, feature_entropy
from .local_contrast import LOCAL_CONTRAST, local_contrast
from .opponent_balance import OPPONENT_BALANCE, opponent_balance
from .patch_luminance import PATCH_LUMINANCE, patch_luminance
from .patches import PatchGrid
from .pipeline import Relevance, RelevanceExec, RelevancePipeline
from .query_similarity import QUERY_SIMILARITY, query_similarity
from .select_patches import SELECT_PATCHES, select_patches
from .stages import (
    RelevanceBuffers,
    RelevanceLaunch,
    RelevanceSettings,
    relevance_graph,
    relevance_launches,
)
from .token_budget import TOKEN_BUDGET, token_budget

__all__ = [
    "FEATURE_ENTROPY", "feature_entropy",
    "LOCAL_CONTRAST", "local_contrast",
    "OPPONENT_BALANCE", "opponent_balance",
    "PATCH_LUMINANCE", "patch_luminance",
    "QUERY_SIMILARITY", "query_similarity",
    "SELECT_PATCHES", "select_patches",
    "TOKEN_BUDGET", "token_budget",
    "PatchGrid",
    "Relevance",
    "RelevanceBuffers",
    "RelevanceExec",
    "RelevanceLaunch",
    "RelevancePipeline",
    "RelevanceSettings",
    "relevance_graph",
    "relevance_launches",
]  # fmt: skip
