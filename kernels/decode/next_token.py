"""The end of a decode step: choose, append, move on, and look up what comes next."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import cache

import numpy as np

from graphkit.device_array import BFLOAT16
from graphkit.kernel import Kernel, Launch, Pointer

from ..launch import NULL, KernelLaunch, check
from .sources import options, source

__all__ = ["next_token"]

THREADS = 256


@cache
def _kernel(k: int) -> Kernel:
    def twin(
        launch: Launch,
        best_value: Pointer,
        best_index: Pointer,
        chosen: Pointer,
        tokens: Pointer,
        prompt_len: Pointer,
        positions: Pointer,
        table: Pointer,
        x: Pointer,
        blocks: int,
        batch: int,
        max_len: int,
    ) -> None:
        picked, at_now = chosen.view(batch), positions.view(batch)
        prompts = prompt_len.view(batch)
        if blocks:
            values, indices = best_value.view((blocks, batch)), best_index.view((blocks, batch))
            order = np.lexsort((indices, -values), axis=0)[0]  # the largest, then the first place
            picked[...] = np.take_along_axis(indices, order[None], axis=0)[0]
        for b in range(batch):
            at, token = int(at_now[b]) + 1, int(picked[b])
            if 0 <= at < max_len:
                place = tokens.view(1, b * int(max_len) + at)
                if at >= prompts[b]:
                    place[0] = token
                token = int(place[0])
                at_now[b] = at
            x.view(k, b * k)[...] = table.view(k, token * k).astype(np.float32)

    flags = options(K=k, THREADS=THREADS)
    return Kernel(source("next_token"), "next_token", twin=twin, options=flags)


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
) -> KernelLaunch:
    """Return the launch that appends a token to each row and leaves its embedding in ``x``.

    The token is the one at the largest of ``best_value`` (the first of equals), and ``chosen`` is
    overwritten with it; without those it is what ``chosen`` holds. Inside the prompt (``position + 1 < prompt_len``) the buffer holds the next token
    already, and it stays. The position stops at ``max_len - 1``; nothing is written past it.

    Args:
        chosen: int32 [batch], tokens below ``vocab`` where they are read.
        tokens: int32 [batch, max_len], each row beginning with its prompt.
        prompt_len: int32 [batch].
        positions: int32 [batch].
        table: bfloat16 [vocab, hidden], the embedding of every token.
        x: float32 [batch, hidden], the embedding of the token that comes next.
        best_value: float32 [blocks, batch], as :func:`project_vocabulary` leaves them.
        best_index: int32 [blocks, batch].

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    batch, max_len = check("tokens", tokens, ("batch", "max_len"), np.int32)
    for name, array in (("chosen", chosen), ("prompt_len", prompt_len), ("positions", positions)):
        check(name, array, (batch,), np.int32)
    _, hidden = check("table", table, ("vocab", "hidden"), BFLOAT16)
    check("x", x, (batch, hidden))
    blocks = 0
    if best_value is not None or best_index is not None:
        blocks, _ = check("best_value", best_value, ("blocks", batch))
        check("best_index", best_index, (blocks, batch), np.int32)
    args = (
        *(NULL if best_value is None else best_value, NULL if best_index is None else best_index),
        *(chosen, tokens, prompt_len, positions, table, x, blocks, batch, max_len),
    )
    return KernelLaunch(_kernel(hidden), (batch, 1, 1), (THREADS, 1, 1), args)
