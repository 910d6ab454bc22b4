"""The end of a decode step: choose, append, move on, and look up what comes next."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphkit.device_array import BFLOAT16
from graphkit.kernel import Kernel, Launch, Pointer

from ..argmax import first_largest
from ..launch import NULL, KernelLaunch, check, instance
from .half import rounded
from .row_ends import RowEnds, row_ended
from .sources import options, source

__all__ = ["Scaled", "embed_token", "next_token"]

THREADS = 256


class Scaled(NamedTuple):
    """What the kernels for batches need of the residual stream beside itself.

    Attributes:
        gain: float32 [hidden], the weight of the first layer's norm.
        xg: float16 [batch or more, hidden], the stream times the gain.
        squares: float32 [1, batch or more], the sum of squares of each row of the stream.
    """

    gain: object
    xg: object
    squares: object


def _embedding(table: Pointer, token: int, vocab: int, k: int) -> NDArray[np.float32]:
    """Return the embedding of a token; NaN where it is none."""
    if not 0 <= token < vocab:
        return np.full(k, np.nan, np.float32)
    return table.view(k, token * k).astype(np.float32)


def _look_up(
    row: NDArray[np.float32], b: int, k: int, gain: Pointer, x: Pointer, xg: Pointer, sums: Pointer
) -> None:
    x.view(k, b * k)[...] = row
    if xg:
        xg.view(k, b * k)[...] = rounded(row * gain.view(k))
        sums.view(1, b)[0] = np.dot(row, row)


@cache
def _next(k: int) -> Kernel:
    def twin(
        launch: Launch,
        best_value: Pointer,
        best_index: Pointer,
        chosen: Pointer,
        tokens: Pointer,
        prompt_len: Pointer,
        positions: Pointer,
        limits: Pointer,
        ends: Pointer,
        table: Pointer,
        gain: Pointer,
        x: Pointer,
        xg: Pointer,
        squares: Pointer,
        blocks: int,
        columns: int,
        end_count: int,
        max_len: int,
        vocab: int,
    ) -> None:
        batch = launch.grid[0]
        picked, at_now = chosen.view(batch), positions.view(batch)
        prompts = prompt_len.view(batch)
        if blocks:
            shape = int(blocks), int(columns)
            best = _largest(best_value.view(shape), best_index.view(shape))
        for b in range(batch):
            now, prompt = int(at_now[b]), int(prompts[b])
            here = tokens.view(1, b * int(max_len) + now) if 0 <= now < max_len else None
            held = -1 if here is None else int(here[0])
            ended = bool(limits) and row_ended(
                now, held, prompt, int(limits.view(1, b)[0]), int(max_len), ends, int(end_count)
            )
            if ended and held >= 0:
                picked[b] = held
            elif blocks:
                picked[b] = best[b]
            token = int(picked[b]) if here is None else held
            if 0 <= now + 1 < max_len and not ended:
                place = tokens.view(1, b * int(max_len) + now + 1)
                if now + 1 >= prompt:
                    place[0] = picked[b]
                token = int(place[0])
                at_now[b] = now + 1
            _look_up(_embedding(table, token, vocab, k), b, k, gain, x, xg, squares)

    flags = options(K=k, THREADS=THREADS)
    return Kernel(source("next_token"), "next_token", twin=twin, options=flags)


def _largest(values: NDArray[np.float32], indices: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the index of the largest candidate of each column; of equals the lowest."""
    order = np.argsort(indices, axis=0)
    best = first_largest(np.take_along_axis(values, order, axis=0).T)
    found: NDArray[np.int32] = np.take_along_axis(indices, order, axis=0)[best, range(len(best))]
    return found


@cache
def _embed(k: int) -> Kernel:
    def twin(
        launch: Launch,
        tokens: Pointer,
        positions: Pointer,
        table: Pointer,
        gain: Pointer,
        x: Pointer,
        xg: Pointer,
        squares: Pointer,
        max_len: int,
        vocab: int,
    ) -> None:
        batch = launch.grid[0]
        for b, at in enumerate(positions.view(batch).tolist()):
            token = int(tokens.view(1, b * int(max_len) + at)[0]) if 0 <= at < max_len else -1
            _look_up(_embedding(table, token, vocab, k), b, k, gain, x, xg, squares)

    flags = options(K=k, THREADS=THREADS)
    return Kernel(source("next_token"), "embed_token", twin=twin, options=flags)


def next_token(
    chosen: object,
    tokens: object,
    prompt_len: object,
    positions: object,
    table: object,
    x: object,
    *,
    best_value: object | None = None,
    best_index: object | None = None,
    scaled: Scaled | None = None,
    row_ends: RowEnds | None = None,
) -> KernelLaunch:
    """Return the launch that appends a token to each row and leaves its embedding in ``x``.

    The token is the one at the largest of ``best_value`` (the first of equals; NaN is less than
    anything), and ``chosen`` is overwritten with it; without those it is what ``chosen`` holds.
    Inside the prompt (``position + 1 < prompt_len``) the buffer holds the next token already, and
    it stays. The position stops at ``max_len - 1``; nothing is written past it, and the embedding
    is that of the token there: NaN where it is none of the vocabulary. A row that has ended keeps
    its tokens and its position, and ``chosen`` holds its last token.

    Args:
        chosen: int32 [batch].
        tokens: int32 [batch, max_len], each row beginning with its prompt.
        prompt_len: int32 [batch].
        positions: int32 [batch].
        table: bfloat16 [vocab, hidden], the embedding of every token.
        x: float32 [batch, hidden], the embedding of the token at the new position.
        best_value: float32 [blocks, batch or more], as :func:`project_vocabulary` and
            :func:`batch_vocabulary` leave them.
        best_index: int32, as ``best_value``.
        scaled: what the kernels for batches read beside ``x``; it is written as well.
        row_ends: what ends a row; None: nothing does.

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    batch, max_len = check("tokens", tokens, ("batch", "max_len"), np.int32)
    for name, array in (("chosen", chosen), ("prompt_len", prompt_len), ("positions", positions)):
        check(name, array, (batch,), np.int32)
    vocab, hidden, stream = _stream_args(batch, table, x, scaled)
    blocks = columns = 0
    if best_value is not None or best_index is not None:
        blocks, columns = check("best_value", best_value, ("blocks", "batch"))
        check("best_index", best_index, (blocks, columns), np.int32)
        if columns < batch:
            raise ValueError(f"best_value: expected {batch} columns or more, came {columns}")
    limits, ends, end_count = (
        (NULL, NULL, 0) if row_ends is None else instance("row_ends", row_ends, RowEnds).args(batch)
    )
    args = (
        *(NULL if best_value is None else best_value, NULL if best_index is None else best_index),
        *(chosen, tokens, prompt_len, positions, limits, ends),
        *(*stream, blocks, columns, end_count, max_len, vocab),
    )
    return KernelLaunch(_next(hidden), (batch, 1, 1), (THREADS, 1, 1), args)


def embed_token(
    tokens: object, positions: object, table: object, x: object, *, scaled: Scaled | None = None
) -> KernelLaunch:
    """Return the launch that leaves the embedding of each row's token at its position in ``x``.

    A token outside the vocabulary, or a position outside the buffer, gives a row of NaN.

    Args:
        tokens: int32 [batch, max_len].
        positions: int32 [batch].
        table: bfloat16 [vocab, hidden].
        x: float32 [batch, hidden].
        scaled: as for :func:`next_token`.

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    batch, max_len = check("tokens", tokens, ("batch", "max_len"), np.int32)
    check("positions", positions, (batch,), np.int32)
    vocab, hidden, stream = _stream_args(batch, table, x, scaled)
    args = (tokens, positions, *stream, max_len, vocab)
    return KernelLaunch(_embed(hidden), (batch, 1, 1), (THREADS, 1, 1), args)


def _stream_args(
    batch: int, table: object, x: object, scaled: Scaled | None
) -> tuple[int, int, tuple[object, ...]]:
    """Check what an embedding is read from and written to."""
    vocab, hidden = check("table", table, ("vocab", "hidden"), BFLOAT16)
    check("x", x, (batch, hidden))
    if scaled is None:
        return vocab, hidden, (table, NULL, x, NULL, NULL)
    instance("scaled", scaled, Scaled)
    check("gain", scaled.gain, (hidden,))
    rows, _ = check("xg", scaled.xg, ("batch", hidden), np.float16)
    if rows < batch:
        raise ValueError(f"xg: expected {batch} rows or more, came {rows}")
    check("squares", scaled.squares, (1, rows))
    return vocab, hidden, (table, scaled.gain, x, scaled.xg, scaled.squares)
