"""A decode step whose batch grows and shrinks: every sequence has a slot, every token a row."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from ..argmax import argmax
from ..launch import check, integer
from .checkpoint import Checkpoint
from .model import Llama

__all__ = ["BatchedDecoder"]


class BatchedDecoder:
    """A Llama that takes a token of each sequence at hand, however many those are this time.

    Its state is the KV cache alone, a slot for each sequence. Which sequences take part in a step
    is said by the arrays of that step: row b of them is one token of one sequence, its position
    and its slot. A sequence may stand in another row at every step, but keeps its slot. A slot
    needs no clearing: whoever gets it next begins at position 0 and reads only what it wrote.

    A row chooses the same token in any batch, bit for bit. A row of :attr:`padding` writes no
    cache, and what it chooses means nothing. A step that is launched again with the same arrays
    changes nothing more, so that it can be warmed up, captured and compared on a real request.

    Args:
        checkpoint: configuration and tensors. Matrices in device memory (float32 or bfloat16,
            C-ordered) are used where they lie; arrays on the host are copied.
        max_batch: most rows of a step, padding included, and the number of slots.
        max_len: places of a slot in tokens; at most the model's ``max_position_embeddings``,
            which is the default.

    Attributes:
        llama: its weights, which another decoder may share, its activations and its caches.
        padding: what the arrays of a step hold in a row that is nobody's.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of range, before anything is allocated.
    """

    padding: ClassVar[Mapping[str, int]] = MappingProxyType(
        {"tokens": 0, "positions": 0, "slots": -1}
    )

    def __init__(
        self, checkpoint: Checkpoint, *, max_batch: int, max_len: int | None = None
    ) -> None:
        max_batch = integer("max_batch", max_batch)
        if max_batch < 1:
            raise ValueError(f"max_batch: expected 1 row or more, came {max_batch}")
        self.llama = Llama(checkpoint, rows=max_batch, max_len=max_len)
        self.config = checkpoint.config
        self.max_batch = max_batch
        self.max_len = self.llama.max_len

    def step(
        self,
        tokens: object,
        positions: object,
        slots: object,
        next_tokens: object,
        *,
        stream: object,
    ) -> None:
        """Enqueue one decode step: a token of each row in, the likeliest next one out.

        Launches kernels and nothing else: it allocates nothing, waits for nothing and keeps
        nothing on the host, so it can be captured. Steps share their activations: they must run
        one after the other.

        Args:
            tokens: int32 [rows], at most ``max_batch``.
            positions: int32 [rows], how many tokens of its sequence came before each.
            slots: int32 [rows], 0 to ``max_batch - 1`` and all different; -1 for a row of padding.
            next_tokens: int32 [rows], which is overwritten.
            stream: any framework's stream.

        Raises:
            ValueError: when shapes or dtypes do not agree; nothing was launched.
        """
        rows = check_step(self.max_batch, tokens, positions, slots, next_tokens)
        launches = [entry.launch for entry in self.llama.launches(tokens, positions, slots)]
        for launch in (*launches, argmax(self.llama.logits[:rows], next_tokens)):
            launch.launch(stream)


def check_step(
    max_batch: int, tokens: object, positions: object, slots: object, next_tokens: object
) -> int:
    """Check the arrays of a step, and return the rows that it has.

    Raises:
        ValueError: when shapes or dtypes do not agree, or there are more rows than ``max_batch``.
    """
    (rows,) = check("tokens", tokens, ("rows",), np.int32)
    if rows > max_batch:
        raise ValueError(f"tokens: expected at most {max_batch} rows, came {rows}")
    for name, array in (("positions", positions), ("slots", slots), ("next_tokens", next_tokens)):
        check(name, array, (rows,), np.int32)
    return rows
