"""Whether a loop makes another decode step: what sets the condition of its while node."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import cache

import numpy as np

from graphkit.conditional_handle import ConditionalHandle
from graphkit.kernel import Kernel, Launch, Pointer
from graphkit.node_groups import check_state

from ..launch import KernelLaunch, check, instance, integer
from .row_ends import RowEnds, row_ended
from .sources import options, source

__all__ = ["loop_on"]

THREADS = 64
_UNCOUNTED = 2**31 - 1


@cache
def _kernel() -> Kernel:
    def twin(
        launch: Launch,
        handle: np.uint64,
        tokens: Pointer,
        prompt_len: Pointer,
        positions: Pointer,
        limits: Pointer,
        ends: Pointer,
        left: Pointer,
        begins: int,
        steps: int,
        end_count: int,
        batch: int,
        max_len: int,
    ) -> None:
        goes_on = False
        rows = (array.view(batch).tolist() for array in (positions, prompt_len, limits))
        for b, (at, prompt, limit) in enumerate(zip(*rows, strict=True)):
            inside = 0 <= at < max_len
            token = int(tokens.view(1, b * int(max_len) + at)[0]) if inside else -1
            ended = row_ended(at, token, prompt, limit, int(max_len), ends, int(end_count))
            goes_on = goes_on or not ended
        count = left.view(1)
        count[0] = steps if begins else count[0] - 1
        launch.set_conditional(int(handle), int(goes_on and count[0] > 0))

    return Kernel(source("loop_on"), "loop_on", twin=twin, options=options(THREADS=THREADS))


def loop_on(
    handle: ConditionalHandle,
    tokens: object,
    prompt_len: object,
    positions: object,
    left: object,
    row_ends: RowEnds,
    *,
    begins: bool = False,
    steps: int | None = None,
) -> KernelLaunch:
    """Return the launch that sets a while node's condition (cudaGraphSetConditional).

    It goes on while any row has not ended and steps are left: the body's last kernel counts one,
    the one ahead of the node (``begins``) begins to count.

    Args:
        handle: of the graph that the node is in.
        tokens: int32 [batch, max_len].
        prompt_len: int32 [batch].
        positions: int32 [batch].
        left: int32 [1], the steps that are left.
        row_ends: what ends a row.
        begins: whether it stands ahead of the node.
        steps: how many there are at most, from 1 on; None: no more than the rows need.

    Raises:
        TypeError: the handle or ``row_ends`` is none, ``begins`` no bool, or ``steps`` no int.
        ValueError: when shapes or dtypes do not agree, or a number is out of range.
    """
    if not isinstance(handle, ConditionalHandle):
        raise TypeError(
            f"handle: expected what conditional_handle() returned, came {type(handle).__name__}"
        )
    batch, max_len = check("tokens", tokens, ("batch", "max_len"), np.int32)
    for name, array in (("prompt_len", prompt_len), ("positions", positions)):
        check(name, array, (batch,), np.int32)
    check("left", left, (1,), np.int32)
    limits, ends, end_count = instance("row_ends", row_ends, RowEnds).args(batch)
    count = _UNCOUNTED if steps is None else check_steps(steps)
    args = (
        *(handle, tokens, prompt_len, positions, limits, ends, left),
        *(int(check_state(begins, "begins")), count, end_count, batch, max_len),
    )
    return KernelLaunch(_kernel(), (1, 1, 1), (THREADS, 1, 1), args)


def check_steps(steps: object) -> int:
    """Return how many steps a loop makes at most.

    Raises:
        TypeError: when it is no int.
        ValueError: when it is out of range.
    """
    return integer("steps", steps, (1, _UNCOUNTED - 1))
