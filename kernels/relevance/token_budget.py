"""Tokens of each selected patch: in proportion to its balance, within bounds, to an exact total.

Whole numbers in proportion to weights are the apportionment problem; this is Jefferson's divisor
method, bounded. Divisor methods are the monotone ones (Balinski and Young, 1982): more weight never
gets less, and a larger total takes from nobody. Largest remainders, which sum up as well, do not
have the second property.
"""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import KernelLaunch, check
from .patches import MOST_PATCHES, check_count, source

__all__ = ["TOKEN_BUDGET", "check_budget", "token_budget"]

LEAST_WEIGHT = np.float32(1e-3)
UNIT_BITS = 20
MOST_TOKENS = 2**15 - 1
THREADS = 1024


def shares(weights: NDArray[np.int64], level: int, least: int, most: int) -> NDArray[np.int64]:
    """Return the tokens of each weight at a level."""
    tokens: NDArray[np.int64] = np.clip(level * weights >> UNIT_BITS, least, most)
    return tokens


def apportion(weights: NDArray[np.int64], total: int, least: int, most: int) -> NDArray[np.int64]:
    """Return the tokens of each weight, all of them above 0."""
    available = min(total, weights.size * most)
    low, high = 0, (most << UNIT_BITS) + 1
    while high - low > 1:
        level = (low + high) // 2
        fits = int(shares(weights, level, least, most).sum()) <= available
        low, high = (level, high) if fits else (low, level)
    tokens = shares(weights, low, least, most)
    rising = np.flatnonzero(shares(weights, low + 1, least, most) > tokens)
    tokens[rising[: available - int(tokens.sum())]] += 1
    return tokens


def twin(
    launch: Launch, selected: Pointer, tokens: Pointer, k: int, total: int, least: int, most: int
) -> None:
    """Do what token_budget does, to the bit."""
    balances = selected.view(k)
    valid = np.isfinite(balances)
    raised = np.maximum(balances[valid], LEAST_WEIGHT)
    largest = raised.max(initial=LEAST_WEIGHT)
    units = np.rint(raised / largest * np.float32(2**UNIT_BITS)).astype(np.int64)
    given = np.zeros(k, np.int64)
    given[valid] = apportion(np.maximum(units, 1), int(total), int(least), int(most))
    tokens.view(k)[...] = given


TOKEN_BUDGET = Kernel(source("token_budget"), "token_budget", twin=twin)


def check_budget(
    k: int, total: object, least: object, most: object, *, suffix: str = ""
) -> tuple[int, int, int]:
    """Return the total and the bounds of a budget.

    Args:
        k: patches.
        total: tokens of all of them.
        least: tokens of one, at least.
        most: tokens of one, at most.
        suffix: what the caller's names for these have behind them.

    Raises:
        TypeError: when one of them is no int.
        ValueError: when a bound is out of its own bounds, or no budget of k patches has the total.
    """
    high = check_count(f"most{suffix}", most, 1, min(MOST_TOKENS, (2**31 - 1) // k))
    low = check_count(f"least{suffix}", least, 0, high)
    if not isinstance(total, int) or isinstance(total, bool):
        raise TypeError(f"total{suffix}: expected an int, came {type(total).__name__}")
    if not k * low <= total <= k * high:
        raise ValueError(
            f"total{suffix}: expected {k * low} to {k * high} tokens, for {k} patches of {low} to "
            f"{high}, came {total}"
        )
    return total, low, high


def token_budget(
    selected: object, tokens: object, total: int, *, least: int = 64, most: int = 400
) -> KernelLaunch:
    """Return the launch that divides a budget of tokens among the selected patches.

    ``tokens = clamp(floor(level * weight), least, most)`` with ``weight = max(balance, 1e-3)``, at
    the highest level whose sum is not above the total. What is missing goes, one token each, to
    the first of those that the next level would raise. A patch whose balance is not finite gets
    none; then the sum is the total or, where that is more, ``most`` for each of the others.

    Args:
        selected: float32 [k], balances; highest first, so that no lower one is favoured.
        tokens: int32 [k].
        total: tokens of all patches; k times ``least`` to k times ``most``.
        least: tokens of a patch, at least.
        most: tokens of a patch, at most; below 2**15.

    Raises:
        TypeError: when the total or a bound is no int.
        ValueError: when shapes or dtypes do not agree, or no budget has the total.
    """
    (k,) = check("selected", selected, ("k",))
    if k > MOST_PATCHES:
        raise ValueError(f"selected: expected at most {MOST_PATCHES:,} patches, came {k:,}")
    check("tokens", tokens, (k,), np.int32)
    args = (selected, tokens, k, *check_budget(k, total, least, most))
    return KernelLaunch(TOKEN_BUDGET, (1, 1, 1), (THREADS, 1, 1), args, shared_mem=4 * k)
