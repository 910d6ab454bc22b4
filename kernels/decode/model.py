"""A Llama for the fused kernels: its weights, buffers and cache, and the chain of its launches."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

import graphkit as gk
from graphkit.arrays import describe
from graphkit.device_array import BFLOAT16, DeviceArray

from ..launch import KernelLaunch, instance, integer
from ..llama.checkpoint import Checkpoint, LlamaConfig
from ..llama.model import DecodeLaunch, check_extent, on_device
from .device import check_capability
from .next_token import embed_token
from .split_attention import MAX_GROUP, MAX_HEAD_DIM
from .step import Caches, Step, StepModel, array_bytes, begins_early
from .tensor_step import TensorStep
from .vector_step import VectorStep

__all__ = ["FusedLlama", "check_fit"]


class FusedLlama:
    """Weights, activations and KV caches of a Llama in bfloat16, for the fused kernels.

    One or two rows are taken through it by kernels for vectors (:class:`VectorStep`), more by
    those for matrices (:class:`TensorStep`), which round the activations to float16.

    Args:
        checkpoint: configuration and tensors; the matrices are bfloat16. Those in device memory
            are used where they lie, arrays on the host are copied.
        rows: tokens that are taken through it at once, each of another sequence; at most 64.
        max_len: places of a sequence in the caches, in tokens; at most the model's
            ``max_position_embeddings``, which is the default.
        page: places of a page of the caches; 0 for caches without pages.

    Attributes:
        checkpoint: the configuration, and the tensors as they lie in device memory.
        step: the way that a step is made, with its activations.
        logits: float32 [rows, vocab_size].
        k_cache: bfloat16 [rows, kv_heads, max_len, head_dim] of each layer; with pages
            [rows * max_len / page, kv_heads, page, head_dim].
        v_cache: as ``k_cache``.
        block_table: int32 [rows, max_len / page], the pages of each sequence; None without pages.
            It may be set to any other numbers between launches.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of range, extents or a dtype that the kernels do not take, or
            more memory than is free; before anything is allocated.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, rows: int, max_len: int | None = None, page: int = 0
    ) -> None:
        config = instance("checkpoint", checkpoint, Checkpoint).config
        family = family_of(rows)
        max_len, page = check_extent(config, max_len), integer("page", page)
        if page < 0 or (page and max_len % page):
            raise ValueError(f"page: expected 0 or a divisor of max_len {max_len}, came {page}")
        check_fit(checkpoint, rows)
        blocks, places = (rows * max_len // page, page) if page else (rows, max_len)
        cache = cache_shape(config, blocks, places)
        shapes = family.shapes(config, rows, max_len)
        activations = sum(array_bytes(*each) for each in shapes.values())
        check_memory(checkpoint, activations, cache, max_len)

        self.config = config
        self.rows = rows
        self.max_len = max_len
        self.page = page
        self.checkpoint = on_device(checkpoint)
        cosines, sines = map(gk.asarray, config.rotary_tables(max_len))
        self._model = StepModel(self.checkpoint, (cosines, sines))
        arrays = {name: gk.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
        self.step: Step = family(self._model, arrays)
        self.logits = self.step.logits
        self.block_table: DeviceArray | None = None
        if page:
            table = np.arange(blocks, dtype=np.int32).reshape(rows, max_len // page)
            self.block_table = gk.asarray(table)
        layers = range(config.num_hidden_layers)
        self.k_cache = [gk.zeros(cache, BFLOAT16) for _ in layers]
        self.v_cache = [gk.zeros(cache, BFLOAT16) for _ in layers]

    @property
    def table(self) -> Any:
        """The embedding of every token, bfloat16 [vocab_size, hidden_size]."""
        return self._model.table

    def embed(self, tokens: object, positions: object) -> KernelLaunch:
        """Return the launch that leaves each token at its position where a step begins.

        Args:
            tokens: int32 [rows, max_len].
            positions: int32 [rows].
        """
        return embed_token(tokens, positions, self.table, self.step.x, scaled=self.step.scaled)

    def launches(self, positions: object) -> list[DecodeLaunch]:
        """List the launches from embeddings to the logits of each row, one behind the other.

        Args:
            positions: int32 [rows].

        Raises:
            ValueError: when shapes or dtypes do not agree.
        """
        caches = Caches(self.k_cache, self.v_cache, self.block_table)
        places = self.rows * self.max_len
        return [
            DecodeLaunch(name, launch, (at - 1,) if at else (), begins_early(name, places))
            for at, (name, launch) in enumerate(self.step.launches(positions, caches))
        ]


def check_fit(checkpoint: Checkpoint, rows: int = 1) -> None:
    """Refuse what the fused kernels are not for; nothing is allocated.

    Args:
        checkpoint: configuration and tensors.
        rows: tokens that are taken through it at once.

    Raises:
        TypeError: an argument of another type.
        ValueError: a device of a compute capability before 9.0 or of less shared memory than they
            need, a number of rows, extents or a dtype that they do not take.
    """
    config = instance("checkpoint", checkpoint, Checkpoint).config
    family = family_of(rows)
    check_capability("device")
    _check_extents(config)
    family.check(config, rows)
    _check_matrices(checkpoint)


def cache_shape(config: LlamaConfig, blocks: int, places: int) -> tuple[int, int, int, int]:
    """Return the shape of a layer's keys, in so many slots or pages."""
    return blocks, config.num_key_value_heads, places, config.head_dim


def family_of(rows: int) -> type[VectorStep] | type[TensorStep]:
    """Return the way that so many rows are taken through a model."""
    rows = integer("rows", rows, (1, TensorStep.most_rows))
    return VectorStep if rows <= VectorStep.most_rows else TensorStep


def _check_extents(config: LlamaConfig) -> None:
    """Refuse what none of the kernels takes."""
    for name in ("hidden_size", "intermediate_size", "head_dim"):
        came = getattr(config, name)
        if came % 8:
            raise ValueError(
                f"{name}: expected a multiple of 8, since the kernels load 8 elements at once, "
                f"came {came}"
            )
    if config.head_dim > MAX_HEAD_DIM:
        raise ValueError(f"head_dim: expected at most {MAX_HEAD_DIM}, came {config.head_dim}")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads > MAX_GROUP * kv_heads:
        raise ValueError(
            f"num_attention_heads: expected at most {MAX_GROUP} for each of the {kv_heads} key "
            f"heads, came {heads}"
        )


def _check_matrices(checkpoint: Checkpoint) -> None:
    for name, tensor in checkpoint.tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if len(tensor.shape) == 2 and dtype != "bfloat16":
            raise ValueError(f"{name}: expected bfloat16, all that the kernels read, came {dtype}")


def check_memory(
    checkpoint: Checkpoint, activations: int, cache: tuple[int, ...], max_len: int
) -> None:
    """Refuse what does not fit, before the first of it is allocated.

    Args:
        checkpoint: what is copied of it, is what lies on the host.
        activations: bytes of them.
        cache: the shape of a layer's keys.
        max_len: places of the rotary tables.

    Raises:
        ValueError: more than is free.
    """
    activations += 2 * max_len * (checkpoint.config.head_dim // 2) * 4  # and those tables
    caches = 2 * checkpoint.config.num_hidden_layers * prod(cache) * BFLOAT16.itemsize
    host = [tensor for name, tensor in checkpoint.tensors.items() if describe(tensor, name).on_host]
    weights = sum(int(tensor.nbytes) for tensor in host)
    free, _ = gk.current().mem_get_info()
    if activations + caches + weights > free:
        raise ValueError(
            f"max_len: expected what fits {free / 2**30:.2f} GiB of free device memory, came "
            f"{caches / 2**30:.2f} GiB of caches, {weights / 2**30:.2f} of weights to copy and "
            f"{activations / 2**30:.2f} of activations"
        )
