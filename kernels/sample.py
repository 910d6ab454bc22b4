"""Draw one token per row of logits; twin and kernel draw the same one from the same state."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphkit.kernel import Kernel, Launch, Pointer

from .argmax import first_largest
from .launch import FLOAT32_MAX, KernelLaunch, check, integer, source, threads

__all__ = ["SAMPLE", "random_state", "sample"]

_WORD = 0xFFFFFFFF
_WEIGHT_BITS = 40
# 2**x on [0, 1), highest power first: the coefficients of sample.cu.
_EXP2 = np.array(
    [1.8775767e-3, 8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1],
    np.float32,
)


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the four words of Philox4x32-10 (Salmon et al., 2011) for a counter of four."""
    (a, b, c, d), (key0, key1) = counter, key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = (right >> 32) ^ b ^ key0, right & _WORD
        c, d = (left >> 32) ^ d ^ key1, left & _WORD
        key0, key1 = (key0 + 0x9E3779B9) & _WORD, (key1 + 0xBB67AE85) & _WORD
    return a, b, c, d


def random_bits(seed_low: int, seed_high: int, draws: int, stream: int) -> int:
    """Return the 64 random bits that belong to one row of the state."""
    high, low, *_ = philox((draws, 0, stream, 0), (seed_low, seed_high))
    return high << 32 | low


def keys(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return unsigned integers in the order of the values: 0 for NaN, -0 equal to +0."""
    bits = np.where(values == 0, np.float32(0), values).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return np.where(np.isnan(values), np.uint32(0), ordered)


def weights(
    values: NDArray[np.float32], largest: np.float32, temperature: np.float32
) -> NDArray[np.uint64]:
    """Return ``2**40 * exp((values - largest) / temperature)`` cut to integers.

    In float32 and in the order of sample.cu, every operation rounded by itself.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        per_unit = np.float32(1.44269504) / temperature
        power = (values - largest) * per_unit
    some = power > -_WEIGHT_BITS
    power = np.where(some, power, np.float32(0))
    whole = np.floor(power)
    part = power - whole
    mantissa = np.full_like(part, _EXP2[0])
    for coefficient in _EXP2[1:]:
        mantissa = mantissa * part + coefficient
    fixed = (mantissa * np.float32(2**23)).astype(np.uint64) << np.uint64(_WEIGHT_BITS - 23)
    fixed = np.where(some, fixed >> (-whole).astype(np.uint64), np.uint64(0))
    return np.where(values == largest, np.uint64(1 << _WEIGHT_BITS), fixed)


def _draw(
    logits: NDArray[np.float32],
    largest: np.float32,
    random: int,
    temperature: np.float32,
    top_k: int,
    top_p: np.float32,
) -> int:
    order = keys(logits)
    measure = np.where(order > 0, weights(logits, largest, temperature), np.uint64(0))
    if 0 < top_k < logits.size:
        least = np.partition(order, -top_k)[-top_k]
        measure[order < least] = 0
    if top_p < 1:
        target = max(int(float(top_p) * float(measure.sum())), 1)
        descending = np.argsort(order)[::-1]
        enough = np.searchsorted(np.cumsum(measure[descending]), np.uint64(target))
        measure[order < order[descending[enough]]] = 0
    upto = np.cumsum(measure)
    return int(np.searchsorted(upto, np.uint64(random * int(upto[-1]) >> 64), side="right"))


def twin(
    launch: Launch,
    logits: Pointer,
    state: Pointer,
    out: Pointer,
    batch: int,
    vocab: int,
    temperature: np.float32,
    top_k: int,
    top_p: np.float32,
) -> None:
    """Do what sample does."""
    rows, words, tokens = logits.view((batch, vocab)), state.view((batch, 4)), out.view(batch)
    tokens[...] = first_largest(rows)
    for row, (values, token) in enumerate(zip(rows, tokens, strict=True)):
        largest = values[token]
        if temperature > 0 and not np.isnan(largest):
            random = random_bits(*words[row].tolist())
            tokens[row] = _draw(values, largest, random, temperature, int(top_k), top_p)
    words[:, 2] += np.uint32(1)


SAMPLE = Kernel(source("sample"), "sample", twin=twin)


def random_state(seed: int, batch: int = 1) -> NDArray[np.uint32]:
    """Return the first state of :func:`sample` on the host, to be copied to the device.

    Each row is two words of the seed, the number of draws so far (0) and the stream, which is the
    row: rows draw independently of each other, and row b of any batch draws the same numbers.

    Args:
        seed: 0 to 2**64 - 1.
        batch: number of rows.

    Raises:
        TypeError, ValueError: when the seed is none, or the number of rows.
    """
    if not 0 <= integer("seed", seed) < 2**64:
        raise ValueError(f"seed: expected 0 to 2**64 - 1, came {seed}")
    batch = integer("batch", batch, (1, 2**31 - 1))
    state = np.zeros((batch, 4), np.uint32)
    state[:, 0], state[:, 1], state[:, 3] = seed & _WORD, seed >> 32, np.arange(batch)
    return state


def check_draw(temperature: float, top_k: int, top_p: float) -> None:
    """Check the numbers of :func:`sample`.

    Raises:
        TypeError: when one is no number.
        ValueError: when one is out of range.
    """
    for argument, value in (("temperature", temperature), ("top_p", top_p)):
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{argument}: expected a number, came {type(value).__name__}")
    if not 0 <= temperature <= FLOAT32_MAX:
        raise ValueError(f"temperature: expected 0 or more and finite, came {temperature}")
    if not 0 <= integer("top_k", top_k) < 2**31:
        raise ValueError(f"top_k: expected 0 (all) to 2**31 - 1, came {top_k}")
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p: expected 0 to 1, came {top_p}")


def sample(
    logits: object,
    state: object,
    out: object,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> KernelLaunch:
    """Return the launch that draws ``out[b]`` from ``softmax(logits[b] / temperature)``.

    Each launch adds one to the number of draws in the state of each row, so that the launches of
    one executable graph draw one after the other.

    Args:
        logits: float32 [batch, vocab].
        state: uint32 [batch, 4], at first :func:`random_state`.
        out: int32 [batch].
        temperature: divides the logits; 0 takes the largest.
        top_k: keep the logits that are at least the k-th largest; 0 keeps all.
        top_p: of those keep the largest whose probabilities reach this sum; 1 keeps all, 0 keeps
            the largest alone.

    Raises:
        ValueError: when shapes or dtypes do not agree, or a number is out of range.
    """
    batch, vocab = check("logits", logits, ("batch", "vocab"))
    check("state", state, (batch, 4), np.uint32)
    check("out", out, (batch,), np.int32)
    check_draw(temperature, top_k, top_p)
    if vocab > 2**23:
        # The sum of the weights, each at most 2**40, must stay below 2**64.
        raise ValueError(f"logits: expected vocab of at most 2**23, came {vocab}")
    args: tuple[Any, ...] = (logits, state, out, batch, vocab)
    numbers = (float(temperature), int(top_k), float(top_p))
    return KernelLaunch(SAMPLE, (batch, 1, 1), (threads(vocab), 1, 1), (*args, *numbers))
