"""Embedding: the row of a table that belongs to a token, or to the one at the position."""

from __future__ import annotations

import numpy as np

from graphkit.device_array import BFLOAT16
from graphkit.kernel import Kernel, Launch, Pointer

from .launch import NULL, KernelLaunch, check, choose, source, threads

__all__ = ["EMBEDDING", "embedding"]


def twin(
    launch: Launch,
    tokens: Pointer,
    position: Pointer,
    table: Pointer,
    out: Pointer,
    batch: int,
    max_len: int,
    vocab: int,
    width: int,
) -> None:
    """Do what embedding_float32 and embedding_bfloat16 do."""
    rows = out.view((batch, width))
    places = position.view(batch).tolist() if position else [0] * int(batch)
    for row, at in enumerate(places):
        rows[row] = np.nan
        if 0 <= at < max_len:
            token = int(tokens.view(1, offset=row * int(max_len) + at)[0])
            if 0 <= token < vocab:
                rows[row] = table.view(width, offset=token * int(width)).astype(np.float32)


SOURCE = source("embedding")
EMBEDDING = {
    np.dtype(np.float32): Kernel(SOURCE, "embedding_float32", twin=twin),
    BFLOAT16: Kernel(SOURCE, "embedding_bfloat16", twin=twin),
}


def embedding(tokens: object, position: object | None, table: object, out: object) -> KernelLaunch:
    """Return the launch of ``out[b] = table[tokens[b, position[b]]]``, or ``table[tokens[b]]``.

    A token outside the vocabulary, or a position outside the buffer, gives a row of NaN.

    Args:
        tokens: int32 [batch, max_len]; without positions [batch].
        position: int32 [batch], or None.
        table: float32 or bfloat16 [vocab, width].
        out: float32 [batch, width].

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    dtype, kernel = choose("table", EMBEDDING, table)
    if position is None:
        (batch,), max_len = check("tokens", tokens, ("batch",), np.int32), 1
    else:
        batch, max_len = check("tokens", tokens, ("batch", "max_len"), np.int32)
        check("position", position, (batch,), np.int32)
    vocab, width = check("table", table, ("vocab", "width"), dtype)
    check("out", out, (batch, width), merge=True)
    at = NULL if position is None else position
    args = (tokens, at, table, out, batch, max_len, vocab, width)
    return KernelLaunch(kernel, (batch, 1, 1), (threads(width, 256), 1, 1), args)
