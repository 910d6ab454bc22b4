"""A decode step of the fused kernels whose batch grows and shrinks: a slot for each sequence."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

import graphkit as gk
from graphkit.arrays import ArrayInfo, device_pointer
from graphkit.device_array import BFLOAT16, DeviceArray

from ..argmax import argmax
from ..launch import instance, integer
from ..llama.batching import check_step
from ..llama.checkpoint import Checkpoint
from ..llama.model import check_extent, on_device
from .model import cache_shape, check_fit, check_memory, family_of
from .next_token import embed_token
from .step import Caches, Step, StepModel, array_bytes, begins_early
from .tensor_step import TensorStep

__all__ = ["FusedBatchedDecoder"]


class FusedBatchedDecoder:
    """A Llama that takes a token of each sequence at hand through the fused kernels.

    It has the steps of a :class:`~graphkit.kernels.llama.BatchedDecoder`, but another padding: row
    b of their arrays is one token of one sequence, its position and its slot. A slot is a page of
    the caches that holds a whole sequence, so the slots of a step are its block table. One or two
    rows go through the kernels for vectors and more through those for matrices, which round to
    float16: a row's logits differ by that much from batch to batch.

    A :class:`graphkit.ExecPool` of :meth:`step` keeps a graph for each number of rows. Captured or
    not, its kernels start while the one ahead of them is still at work (PDL); the first and the
    last of a step do not, so that steps and what is around them keep their order.

    Args:
        checkpoint: configuration and tensors; the matrices are bfloat16. Those in device memory
            are used where they lie, arrays on the host are copied.
        max_batch: most rows of a step, padding included, and the number of slots; 1 to 64.
        max_len: places of a slot in tokens; at most the model's ``max_position_embeddings``,
            which is the default.

    Attributes:
        checkpoint: the configuration, and the tensors as they lie in device memory.
        padding: what the arrays of a step hold in a row that is nobody's: it reads no cache and
            writes none.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of range, extents or a dtype that the kernels do not take, or
            more memory than is free; before anything is allocated.
    """

    padding: ClassVar[Mapping[str, int]] = MappingProxyType(
        {"tokens": 0, "positions": -1, "slots": 0}
    )

    def __init__(
        self, checkpoint: Checkpoint, *, max_batch: int, max_len: int | None = None
    ) -> None:
        config = instance("checkpoint", checkpoint, Checkpoint).config
        max_batch = integer("max_batch", max_batch, (1, TensorStep.most_rows))
        max_len = check_extent(config, max_len)
        check_fit(checkpoint, max_batch)
        for rows in range(1, max_batch):
            family_of(rows).check(config, rows)
        # Steps run one after the other: those of all numbers of rows share their activations.
        shapes = [family_of(rows).shapes(config, rows, max_len) for rows in range(1, max_batch + 1)]
        nbytes: dict[str, int] = {}
        for each in shapes:
            for name, array in each.items():
                nbytes[name] = max(nbytes.get(name, 0), array_bytes(*array))
        cache = cache_shape(config, max_batch, max_len)
        check_memory(checkpoint, sum(nbytes.values()), cache, max_len)

        self.config = config
        self.max_batch = max_batch
        self.max_len = max_len
        self.checkpoint = on_device(checkpoint)
        cosines, sines = map(gk.asarray, config.rotary_tables(max_len))
        self._model = StepModel(self.checkpoint, (cosines, sines))
        memory = {name: gk.zeros(size, np.uint8) for name, size in nbytes.items()}
        self._steps: list[Step] = [
            family_of(rows)(
                self._model,
                {
                    name: memory[name][: array_bytes(shape, dtype)].view(shape, dtype)
                    for name, (shape, dtype) in each.items()
                },
            )
            for rows, each in enumerate(shapes, 1)
        ]
        self._first_place = gk.zeros(max_batch, np.int32)
        layers = range(config.num_hidden_layers)
        self.k_cache = [gk.zeros(cache, BFLOAT16) for _ in layers]
        self.v_cache = [gk.zeros(cache, BFLOAT16) for _ in layers]

    def logits(self, rows: int) -> DeviceArray:
        """Return where a step of so many rows leaves its logits, float32 [rows, vocab_size].

        Raises:
            TypeError, ValueError: another number than a step may have.
        """
        return self._steps[integer("rows", rows, (1, self.max_batch)) - 1].logits

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

        As :meth:`graphkit.kernels.llama.BatchedDecoder.step` it can be captured, and steps must run
        one after the other. Padding alone is said otherwise.

        Args:
            tokens: int32 [rows], at most ``max_batch``.
            positions: int32 [rows], how many tokens of its sequence came before each; -1 for a row
                of padding.
            slots: int32 [rows], 0 to ``max_batch - 1``; all different but for padding.
            next_tokens: int32 [rows], which is overwritten.
            stream: any framework's stream.

        Raises:
            ValueError: when shapes or dtypes do not agree; nothing was launched.
        """
        rows = check_step(self.max_batch, tokens, positions, slots, next_tokens)
        step = self._steps[rows - 1]
        # A token is the first and only one of its row, as a slot is of a row of the block table.
        source = _Column(device_pointer(tokens)), self._first_place[:rows]
        caches = Caches(self.k_cache, self.v_cache, _Column(device_pointer(slots)))
        chain = list(step.launches(positions, caches))
        embed = embed_token(*source, self._model.table, step.x, scaled=step.scaled)
        choose = argmax(step.logits, next_tokens)
        # Attention looks at positions and slots before it waits, while two kernels ahead of it may
        # be at work: whoever writes those must have ended before the first of the three begins.
        places = rows * self.max_len
        embed.launch(stream)
        for name, launch in chain:
            launch.launch(stream, programmatic=begins_early(name, places))
        choose.launch(stream)


class _Column:
    """An array of one dimension as one of a single column."""

    def __init__(self, array: ArrayInfo) -> None:
        self._array = array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (*self._array.shape, 1),
            "typestr": self._array.dtype.str,
            "data": (self._array.ptr, False),
            "version": 3,
        }
