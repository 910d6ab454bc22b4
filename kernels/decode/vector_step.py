"""A decode step of one or two rows: float32 activations, and kernels that stream the weights."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from graphkit.device_array import DeviceArray

from ..launch import KernelLaunch
from .gate_up_silu import gate_up_silu
from .next_token import Scaled
from .project_residual import project_residual
from .project_vocabulary import candidates, project_vocabulary
from .qkv_rope_append import qkv_rope_append
from .split_attention import found_shape, split_attention
from .step import Caches, LlamaConfig, Shapes, StepModel
from .weight_stream import MOST_VECTORS, WeightStream

__all__ = ["VectorStep"]


class VectorStep:
    """The launches of a step, and the activations that they hand on.

    Args:
        model: the weights.
        arrays: zeros of the :meth:`shapes`.
    """

    most_rows: ClassVar[int] = MOST_VECTORS

    def __init__(self, model: StepModel, arrays: Mapping[str, DeviceArray]) -> None:
        self.model, self.arrays = model, arrays
        self.x, self.logits = arrays["x"], arrays["logits"]
        self.best = arrays["best_value"], arrays["best_index"]
        self.scaled: Scaled | None = None

    @staticmethod
    def check(config: LlamaConfig, rows: int) -> None:
        """Refuse extents that these kernels do not take.

        Raises:
            ValueError: rows of a matrix of which too few fit the shared memory of a block.
        """
        width = config.num_attention_heads * config.head_dim
        for name, k in (
            ("hidden_size", config.hidden_size),
            ("num_attention_heads", width),
            ("intermediate_size", config.intermediate_size),
        ):
            WeightStream.of(name, k, 1, rows)

    @staticmethod
    def shapes(config: LlamaConfig, rows: int, max_len: int) -> Shapes:
        """Return shape and dtype of each array."""
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        width = heads * config.head_dim
        best = candidates(config.vocab_size), rows
        return {
            "x": ((rows, config.hidden_size), "float32"),
            "q": ((rows, width), "float32"),
            "found": (found_shape(rows, heads, kv_heads, config.head_dim, max_len), "float32"),
            "arrived": ((rows * kv_heads,), "int32"),
            "attended": ((rows, width), "float32"),
            "inner": ((rows, config.intermediate_size), "float32"),
            "logits": ((rows, config.vocab_size), "float32"),
            "best_value": (best, "float32"),
            "best_index": (best, "int32"),
        }

    def launches(self, positions: object, caches: Caches) -> Iterator[tuple[str, KernelLaunch]]:
        """Yield the launches of a step from ``x`` to the logits, with their names."""
        model, arrays, eps = self.model, self.arrays, self.model.config.rms_norm_eps
        x, q, attended, inner = (arrays[name] for name in ("x", "q", "attended", "inner"))
        found, arrived, table = arrays["found"], arrays["arrived"], caches.block_table
        for number in range(model.config.num_hidden_layers):
            at, layer = f"layers.{number}.", model.layer(number)
            cache = caches.keys[number], caches.values[number]
            mlp = layer.gate, layer.up
            projections = layer.q, layer.k, layer.v, x, layer.attention_gain
            append = *model.rotary, q, *cache, positions
            qkv = qkv_rope_append(*projections, *append, eps, block_table=table)
            yield at + "qkv", qkv
            attend = *cache, positions, found, arrived, attended
            yield at + "attention", split_attention(q, *attend, block_table=table)
            yield at + "o", project_residual(layer.o, attended, x)
            yield at + "gate_up", gate_up_silu(*mlp, x, layer.mlp_gain, inner, eps)
            yield at + "down", project_residual(layer.down, inner, x)
        last = model.last_gain, self.logits, *self.best
        yield "vocabulary", project_vocabulary(model.head, x, *last, eps)
