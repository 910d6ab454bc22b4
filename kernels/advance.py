"""Append the next token of each sequence and move its position on."""

from __future__ import annotations

import numpy as np

from graphkit.kernel import Kernel, Launch, Pointer

from .launch import KernelLaunch, check, source, threads

__all__ = ["ADVANCE", "advance"]


def twin(
    launch: Launch,
    tokens: Pointer,
    next_token: Pointer,
    prompt_len: Pointer,
    position: Pointer,
    batch: int,
    max_len: int,
) -> None:
    """Do what advance does."""
    appended, prompts, positions = (
        next_token.view(batch),
        prompt_len.view(batch),
        position.view(batch),
    )
    for row in range(batch):
        at = int(positions[row]) + 1
        if not 0 <= at < max_len:
            continue
        if at >= prompts[row]:
            tokens.view(1, offset=row * int(max_len) + at)[0] = appended[row]
        positions[row] = at


ADVANCE = Kernel(source("advance"), "advance", twin=twin)


def advance(
    tokens: object, next_token: object, prompt_len: object, position: object
) -> KernelLaunch:
    """Return the launch that appends the next token and adds one to the position.

    Inside the prompt (``position + 1 < prompt_len``) the buffer holds the next token already, and
    it stays. The position stops at ``max_len - 1``, and nothing is written past it.

    Args:
        tokens: int32 [batch, max_len], each row beginning with its prompt.
        next_token: int32 [batch].
        prompt_len: int32 [batch].
        position: int32 [batch].

    Raises:
        ValueError: when shapes or dtypes do not agree.
    """
    batch, max_len = check("tokens", tokens, ("batch", "max_len"), np.int32)
    for name, array in (
        ("next_token", next_token),
        ("prompt_len", prompt_len),
        ("position", position),
    ):
        check(name, array, (batch,), np.int32)
    block = threads(batch, 256)
    args = (tokens, next_token, prompt_len, position, batch, max_len)
    return KernelLaunch(ADVANCE, (-(-batch // block), 1, 1), (block, 1, 1), args)
