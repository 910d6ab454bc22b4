"""What the two ways of making a decode step have in common: the weights by name, and the caches."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from graphkit.device_array import DeviceArray

from ..launch import KernelLaunch
from ..llama.checkpoint import Checkpoint, LlamaConfig
from .next_token import Scaled

__all__ = ["Caches", "Layer", "LlamaConfig", "Shapes", "Step", "StepModel", "begins_early"]

# Places of all rows from which on attention has the memory to itself: docs/decode.md.
_MANY_PLACES = 16_384

Shapes = dict[str, tuple[tuple[int, ...], str]]


def array_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes of an array."""
    return prod(shape) * np.dtype(dtype).itemsize


def begins_early(name: str, places: int) -> bool:
    """Return whether a launch of a step is to begin while the one ahead of it is at work.

    All may. With large caches attention is better off alone: it takes long enough for what its
    start costs to be nothing, and blocks that come early hold up those that are still multiplying.

    Args:
        name: the launch's, of :meth:`Step.launches`.
        places: of all rows in the caches.
    """
    return places < _MANY_PLACES or not name.endswith("attention")


class Caches(NamedTuple):
    """Keys and values of each layer, and the pages of each sequence; None without pages."""

    keys: Sequence[DeviceArray]
    values: Sequence[DeviceArray]
    block_table: object | None


class Layer(NamedTuple):
    """Weights of a layer: matrices in bfloat16, gains of its two norms in float32."""

    attention_gain: Any
    q: Any
    k: Any
    v: Any
    o: Any
    mlp_gain: Any
    gate: Any
    up: Any
    down: Any


@dataclass(frozen=True)
class StepModel:
    """The weights of a model in device memory.

    Attributes:
        checkpoint: the configuration, and the tensors as they lie there.
        rotary: float32 [max_len, head_dim / 2], cosines and sines of every position.
    """

    checkpoint: Checkpoint
    rotary: tuple[DeviceArray, DeviceArray]

    @property
    def config(self) -> LlamaConfig:
        """The configuration."""
        return self.checkpoint.config

    @property
    def table(self) -> Any:
        """The embedding of every token, bfloat16 [vocab_size, hidden_size]."""
        return self.checkpoint.tensors["model.embed_tokens.weight"]

    @property
    def head(self) -> Any:
        """The output matrix, bfloat16 [vocab_size, hidden_size]."""
        tied = self.config.tie_word_embeddings
        return self.table if tied else self.checkpoint.tensors["lm_head.weight"]

    @property
    def last_gain(self) -> Any:
        """The weight of the norm ahead of the output matrix, float32 [hidden_size]."""
        return self.checkpoint.tensors["model.norm.weight"]

    def layer(self, number: int) -> Layer:
        """Return the weights of a layer."""
        attention = (f"self_attn.{name}_proj" for name in "qkvo")
        mlp = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
        names = "input_layernorm", *attention, "post_attention_layernorm", *mlp
        tensors = self.checkpoint.tensors
        return Layer(*(tensors[f"model.layers.{number}.{name}.weight"] for name in names))


class Step(Protocol):
    """A way to take a token of each row to its logits.

    Attributes:
        x: float32 [rows, hidden_size], the residual stream.
        scaled: what else the first launch reads; None for nothing.
        logits: float32 [rows, vocab_size].
        best: the candidates of each row: float32 and int32, as :func:`next_token` takes them.
    """

    @property
    def x(self) -> DeviceArray: ...  # noqa: D102 - above

    @property
    def scaled(self) -> Scaled | None: ...  # noqa: D102

    @property
    def logits(self) -> DeviceArray: ...  # noqa: D102

    @property
    def best(self) -> tuple[DeviceArray, DeviceArray]: ...  # noqa: D102

    def launches(self, positions: object, caches: Caches) -> Iterator[tuple[str, KernelLaunch]]:
        """Yield the launches of a step, one behind the other, with their names."""
        ...
