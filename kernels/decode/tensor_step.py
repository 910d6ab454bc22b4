"""A decode step of 3 to 64 rows: activations in float16, and products on the tensor cores."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from graphkit.device_array import DeviceArray

from ..launch import KernelLaunch
from .batch_gate_up import batch_gate_up, gate_up_tiles
from .batch_qkv import batch_qkv, qkv_tiles
from .batch_residual import batch_residual, residual_parts, residual_tiles
from .batch_tiles import BATCHES, most_shared
from .batch_vocabulary import batch_vocabulary, vocabulary_blocks, vocabulary_tiles
from .next_token import Scaled
from .split_attention import found_shape, split_attention
from .step import Caches, LlamaConfig, Shapes, StepModel

__all__ = ["TensorStep"]


def batch_for(rows: int) -> int:
    """Return the batch that the kernels take so many rows as."""
    return next(batch for batch in BATCHES if batch >= rows)


class TensorStep:
    """The launches of a step, and the activations that they hand on.

    The kernels are for batches of 8, 16, 32 and 64; rows beyond those that there are, are padding
    that nobody reads or writes.

    Products are of float16 and summed in float32; the residual stream and the gains stay float32.
    The activations that are multiplied are rounded: the stream times a norm's gain, what attention
    gives, and what the down projection takes. The matrices are bfloat16 in memory, and each
    element is converted when it is multiplied. float16 is IEEE 754's binary16, with subnormal
    numbers, and rounding is to nearest:

    - An activation changes by 2**-11 of its value at most, below 2**-14 by 2**-25. Beyond 65504
      it becomes infinite.
    - An element of a matrix does not change from 2**-17 to 65504, since bfloat16 has 8 bits.
      A smaller one changes by 2**-25 at most, a larger one becomes infinite.

    Args:
        model: the weights.
        arrays: zeros of the :meth:`shapes`.
    """

    most_rows: ClassVar[int] = BATCHES[-1]

    def __init__(self, model: StepModel, arrays: Mapping[str, DeviceArray]) -> None:
        self.model, self.arrays = model, arrays
        self.logits = arrays["logits"]
        self.rows = self.logits.shape[0]
        self.x = arrays["x"][: self.rows]
        self.best = arrays["best_value"], arrays["best_index"]
        layers = range(model.config.num_hidden_layers)
        # Of each norm but the first it is the projection ahead of it that multiplies by the gain.
        first, *later = (model.layer(number).attention_gain for number in layers)
        self._gains_behind = [*later, model.last_gain]
        self.scaled = Scaled(first, arrays["xg"], arrays["first_squares"])

    @staticmethod
    def check(config: LlamaConfig, rows: int) -> None:
        """Refuse extents that these kernels do not take, and a device that they do not fit."""
        for name, divisor in (("head_dim", 16), ("vocab_size", 8)):
            came = getattr(config, name)
            if came % divisor:
                raise ValueError(
                    f"{name}: expected a multiple of {divisor} with 3 rows or more, came {came}"
                )
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        hidden, inner, width = config.hidden_size, config.intermediate_size, heads * config.head_dim
        batch = batch_for(rows)
        tiles = (
            qkv_tiles(hidden, heads, kv_heads, config.head_dim, batch),
            residual_tiles(hidden, width, batch),
            residual_tiles(hidden, inner, batch),
            gate_up_tiles(hidden, inner, batch),
            vocabulary_tiles(batch),
        )
        needed, there = max(each.shared_mem(batch) for each in tiles), most_shared()
        if needed > there:
            raise ValueError(
                f"device: expected {needed} bytes of dynamic shared memory for a block, which "
                f"{rows} rows take, came {there}"
            )

    @staticmethod
    def shapes(config: LlamaConfig, rows: int, max_len: int) -> Shapes:
        """Return shape and dtype of each array."""
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        hidden, inner, width = config.hidden_size, config.intermediate_size, heads * config.head_dim
        batch = batch_for(rows)
        best = vocabulary_blocks(config.vocab_size, batch), batch
        return {
            "x": ((batch, hidden), "float32"),
            "xg": ((batch, hidden), "float16"),
            "first_squares": ((1, batch), "float32"),
            "squares_o": ((residual_parts(hidden, width, batch), batch), "float32"),
            "squares_down": ((residual_parts(hidden, inner, batch), batch), "float32"),
            "q": ((rows, width), "float32"),
            "found": (found_shape(rows, heads, kv_heads, config.head_dim, max_len), "float32"),
            "arrived": ((rows * kv_heads,), "int32"),
            "attended": ((batch, width), "float16"),
            "inner": ((batch, inner), "float16"),
            "logits": ((rows, config.vocab_size), "float32"),
            "best_value": (best, "float32"),
            "best_index": (best, "int32"),
        }

    def launches(self, positions: object, caches: Caches) -> Iterator[tuple[str, KernelLaunch]]:
        """Yield the launches of a step from ``scaled`` to the logits, with their names."""
        model, arrays, rows = self.model, self.arrays, self.rows
        eps = model.config.rms_norm_eps
        x, xg, q, attended, inner = (arrays[name] for name in ("x", "xg", "q", "attended", "inner"))
        found, arrived, table = arrays["found"], arrays["arrived"], caches.block_table
        squares = arrays["first_squares"]
        for number in range(model.config.num_hidden_layers):
            at, layer = f"layers.{number}.", model.layer(number)
            cache = caches.keys[number], caches.values[number]
            append = *model.rotary, positions, q, *cache
            projections = xg, squares, layer.q, layer.k, layer.v
            qkv = batch_qkv(*projections, *append, eps=eps, block_table=table, rows=rows)
            yield at + "qkv", qkv
            attend = *cache, positions, found, arrived, attended[:rows]
            yield at + "attention", split_attention(q, *attend, block_table=table)
            squares = arrays["squares_o"]
            stream = layer.mlp_gain, x, xg, squares
            yield at + "o", batch_residual(attended, layer.o, *stream, rows=rows)
            mlp = layer.gate, layer.up, inner
            yield at + "gate_up", batch_gate_up(xg, squares, *mlp, eps=eps, rows=rows)
            squares = arrays["squares_down"]
            stream = self._gains_behind[number], x, xg, squares
            yield at + "down", batch_residual(inner, layer.down, *stream, rows=rows)
        last = model.head, self.logits, *self.best
        yield "vocabulary", batch_vocabulary(xg, squares, *last, eps=eps, rows=rows)
