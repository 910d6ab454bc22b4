"""The last norm, the logits of all tokens, and the largest that each block saw."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import cache

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from ..argmax import first_largest
from ..launch import KernelLaunch, aligned, check, epsilon
from .device import multiprocessors
from .sources import options, source
from .weight_stream import WeightStream, normed

__all__ = ["candidates", "project_vocabulary"]


@cache
def _kernel(stream: WeightStream, m: int) -> Kernel:
    def twin(
        launch: Launch,
        weight: Pointer,
        x: Pointer,
        gain: Pointer,
        logits: Pointer,
        best_value: Pointer,
        best_index: Pointer,
        batch: int,
        eps: np.float32,
    ) -> None:
        rows = normed(x, gain, batch, stream.k, eps)
        out = logits.view((batch, m))
        out[...] = rows @ weight.view((m, stream.k)).astype(np.float32).T
        blocks = launch.grid[0]
        values, indices = best_value.view((blocks, batch)), best_index.view((blocks, batch))
        for block in range(blocks):
            first, last = (stream.first_pair(i) * 2 for i in (block, block + 1))
            indices[block] = first + first_largest(out[:, first:last])
            values[block] = out[np.arange(batch), indices[block]]

    code = source("project_vocabulary")
    return Kernel(code, "project_vocabulary", twin=twin, options=(*stream.options, *options(M=m)))


def candidates(vocab: int) -> int:
    """Return how many rows ``best_value`` and ``best_index`` have: one for each block."""
    return min(-(-vocab // 8), multiprocessors())


def project_vocabulary(
    weight: object,
    x: object,
    gain: object,
    logits: object,
    best_value: object,
    best_index: object,
    eps: float,
) -> KernelLaunch:
    """Return the launch of ``logits[b, v] = weight[v] . norm(x[b])``.

    Block i of its grid writes the largest of its own logits to ``best_value[i]`` and where those
    stand to ``best_index[i]``; of equals the first, and NaN, which is less than anything, where
    there is nothing else.

    Args:
        weight: bfloat16 [vocab, k], k a multiple of 8.
        x: float32 [batch, k], at most 2 rows.
        gain: float32 [k].
        logits: float32 [batch, vocab].
        best_value: float32 [blocks, batch], ``blocks`` as :func:`candidates` says.
        best_index: int32 [blocks, batch].
        eps: of the norm; above 0.

    Raises:
        ValueError: when shapes or dtypes do not agree, or inputs or the matrix are not on
            16-byte boundaries.
    """
    vocab, k = aligned("weight", weight, ("vocab", "k"))
    batch, _ = aligned("x", x, ("batch", k), np.float32)
    aligned("gain", gain, (k,), np.float32)
    check("logits", logits, (batch, vocab))
    blocks, _ = check("best_value", best_value, ("blocks", batch))
    check("best_index", best_index, (blocks, batch), np.int32)
    if blocks != candidates(vocab):
        raise ValueError(f"best_value: expected {candidates(vocab)} rows, came {blocks}")
    stream = WeightStream.of("weight", k, -(-vocab // 2), batch, blocks)
    args = (weight, x, gain, logits, best_value, best_index, batch, epsilon(eps))
    return stream.launch(_kernel(stream, vocab), args)
