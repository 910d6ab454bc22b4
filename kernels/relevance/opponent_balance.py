"""Opponent balance of the patches: what excites each, less what excites its competitors.

The three scores are made comparable by their z-scores over the image, and weighted into one
excitation. Subtracting what surrounds a place from what is at it is the centre-surround opponency
that Rodieck (1965) describes for the retina, and that Itti, Koch and Niebur (1998) brought to maps
of saliency.
"""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import KernelLaunch, check, number, threads
from .neighbourhood import window_sums
from .patches import PatchGrid, check_count, source

__all__ = ["OPPONENT_BALANCE", "opponent_balance"]

SMOOTHING = 1e-8  # added to a variance: scores that hardly differ are not blown up


def twin(
    launch: Launch,
    entropy: Pointer,
    contrast: Pointer,
    similarity: Pointer,
    balance: Pointer,
    rows: int,
    columns: int,
    radius: int,
    entropy_weight: float,
    contrast_weight: float,
    similarity_weight: float,
    inhibition: float,
) -> None:
    """Do what opponent_balance does."""
    shape = (rows, columns)
    scores = [pointer.view(shape).astype(np.float64) for pointer in (entropy, contrast, similarity)]
    weights = (entropy_weight, contrast_weight, similarity_weight)
    valid = np.logical_and.reduce([np.isfinite(score) for score in scores])
    excitation = np.zeros(shape)
    for weight, score in zip(weights, scores, strict=True):
        if valid.any():
            differences = np.where(valid, score, 0.0) - score[valid].mean()
            differences -= differences[valid].mean()  # what rounding left in the mean
            variance = (differences[valid] ** 2).mean()
            excitation += float(weight) * differences / np.sqrt(variance + SMOOTHING)
    excitation[~valid] = 0.0
    others = window_sums(excitation, radius) - excitation
    competitors = window_sums(valid, radius) - valid
    mean = others / np.maximum(competitors, 1)
    balance.view(shape)[...] = np.where(valid, excitation - float(inhibition) * mean, np.nan)


OPPONENT_BALANCE = Kernel(source("opponent_balance"), "opponent_balance", twin=twin)


def opponent_balance(
    entropy: object,
    contrast: object,
    similarity: object,
    balance: object,
    columns: int,
    *,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    radius: int = 1,
    inhibition: float = 0.5,
) -> KernelLaunch:
    """Return the launch of ``balance[p] = e[p] - inhibition * mean(e[q] for p's competitors q)``.

    ``e = sum(weights * z)``, where ``z = (score - mean) / sqrt(variance + 1e-8)`` over the image.
    Competitors are the other patches around it. A patch with a score that is not finite is left out
    of all of these, and its balance is NaN.

    Args:
        entropy: float32 [patches].
        contrast: float32 [patches].
        similarity: float32 [patches].
        balance: float32 [patches].
        columns: patches of a row.
        weights: of entropy, contrast and similarity.
        radius: how many rows and columns away a competitor may be.
        inhibition: weight of the competitors.

    Raises:
        TypeError: when a setting is not of its type.
        ValueError: when shapes or dtypes do not agree, or a setting is out of its bounds.
    """
    (patches,) = check("entropy", entropy, ("patches",))
    for name, array in (("contrast", contrast), ("similarity", similarity), ("balance", balance)):
        check(name, array, (patches,))
    grid = PatchGrid.of_count(patches, columns)
    check_count("radius", radius, 0, 2**15)
    numbers = (*check_weights(weights), number("inhibition", inhibition))
    args = (entropy, contrast, similarity, balance, grid.rows, grid.columns, radius, *numbers)
    block = (threads(patches), 1, 1)
    return KernelLaunch(OPPONENT_BALANCE, (1, 1, 1), block, args, shared_mem=4 * patches)


def check_weights(weights: object) -> tuple[float, ...]:
    """Return the three weights.

    Raises:
        TypeError: when they are no tuple or list of numbers.
        ValueError: when they are not three finite numbers.
    """
    if not isinstance(weights, (tuple, list)):
        raise TypeError(f"weights: expected three numbers, came {type(weights).__name__}")
    if len(weights) != 3:
        raise ValueError(f"weights: expected three numbers, came {len(weights)}")
    return tuple(number("weights", weight) for weight in weights)
