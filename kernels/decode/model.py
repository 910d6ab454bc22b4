"""A Llama for the fused kernels: its weights, buffers and cache, and the chain of its launches."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from typing import Any

import numpy as np

import graphkit as gk
from graphkit.arrays import describe
from graphkit.device_array import BFLOAT16, DeviceArray

from ..embedding import embedding
from ..launch import KernelLaunch
from ..llama.checkpoint import Checkpoint
from ..llama.model import DecodeLaunch, on_device
from .gate_up_silu import gate_up_silu
from .project_residual import project_residual
from .project_vocabulary import candidates, project_vocabulary
from .qkv_rope_append import qkv_rope_append
from .split_attention import found_shape, split_attention

__all__ = ["FusedLlama"]


class FusedLlama:
    """Weights, activations and KV caches of a Llama in bfloat16, for the fused kernels.

    Args:
        checkpoint: configuration and tensors; the matrices are bfloat16. Those in device memory
            are used where they lie, arrays on the host are copied.
        rows: tokens that are taken through it at once, each of another sequence.
        max_len: places of a sequence in the caches, in tokens; at most the model's
            ``max_position_embeddings``, which is the default.
        page: places of a page of the caches; 0 for caches without pages.

    Attributes:
        checkpoint: the configuration, and the tensors as they lie in device memory.
        logits: float32 [rows, vocab_size].
        x: float32 [rows, hidden_size], the residual stream: at first the tokens' embeddings.
        k_cache: bfloat16 [rows, kv_heads, max_len, head_dim] of each layer; with pages
            [rows * max_len / page, kv_heads, page, head_dim].
        v_cache: as ``k_cache``.
        block_table: int32 [rows, max_len / page], the pages of each sequence; None without pages.
            It may be set to any other numbers between launches.
        best_value: float32 [blocks, rows], the largest logits that each block saw.
        best_index: int32 [blocks, rows], where those stand.

    Raises:
        ValueError: an argument out of range, extents or a dtype that the kernels do not take, or
            more memory than is free; before anything is allocated.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, rows: int, max_len: int | None = None, page: int = 0
    ) -> None:
        config = checkpoint.config
        limit = config.max_position_embeddings
        max_len = limit if max_len is None else max_len
        if not 2 <= max_len <= limit:
            raise ValueError(f"max_len: expected 2 to the model's {limit} tokens, came {max_len}")
        if page < 0 or (page and max_len % page):
            raise ValueError(f"page: expected 0 or a divisor of max_len {max_len}, came {page}")
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        for name in ("hidden_size", "intermediate_size", "head_dim"):
            if getattr(config, name) % 8:
                raise ValueError(
                    f"{name}: expected a multiple of 8, since the kernels load 8 elements at once, "
                    f"came {getattr(config, name)}"
                )
        _check_matrices(checkpoint)
        self.config = config
        self.rows = rows
        self.max_len = max_len
        self.page = page

        width = heads * config.head_dim
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "x": ((rows, config.hidden_size), np.float32),
            "q": ((rows, width), np.float32),
            "attended": ((rows, width), np.float32),
            "found": (
                found_shape(rows, heads, kv_heads, config.head_dim, max_len),
                np.float32,
            ),
            "arrived": ((rows * heads,), np.int32),
            "inner": ((rows, config.intermediate_size), np.float32),
            "logits": ((rows, config.vocab_size), np.float32),
            "best_value": ((candidates(config.vocab_size), rows), np.float32),
            "best_index": ((candidates(config.vocab_size), rows), np.int32),
        }
        blocks, places = (rows * max_len // page, page) if page else (rows, max_len)
        cache_shape = (blocks, kv_heads, places, config.head_dim)
        _check_memory(checkpoint, shapes, cache_shape)

        self.checkpoint = on_device(checkpoint)
        self._cosines, self._sines = map(gk.asarray, config.rotary_tables(max_len))
        made = {name: gk.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
        self.x, self.logits = made["x"], made["logits"]
        self._q, self._attended, self._inner = made["q"], made["attended"], made["inner"]
        self._found, self._arrived = made["found"], made["arrived"]
        self.best_value, self.best_index = made["best_value"], made["best_index"]
        self.block_table: DeviceArray | None = None
        if page:
            table = np.arange(blocks, dtype=np.int32).reshape(rows, max_len // page)
            self.block_table = gk.asarray(table)
        layers = range(config.num_hidden_layers)
        self.k_cache = [gk.zeros(cache_shape, BFLOAT16) for _ in layers]
        self.v_cache = [gk.zeros(cache_shape, BFLOAT16) for _ in layers]

    @property
    def table(self) -> Any:
        """The embedding of every token, bfloat16 [vocab_size, hidden_size]."""
        return self.checkpoint.tensors["model.embed_tokens.weight"]

    def embed(self, tokens: object, positions: object) -> KernelLaunch:
        """Return the launch that leaves the embeddings of the tokens at the positions in ``x``."""
        return embedding(tokens, positions, self.table, self.x)

    def launches(self, positions: object) -> list[DecodeLaunch]:
        """List the launches from ``x`` to the logits of each row, one behind the other.

        Args:
            positions: int32 [rows].

        Raises:
            ValueError: when shapes or dtypes do not agree.
        """
        config, tensors = self.config, self.checkpoint.tensors
        eps = config.rms_norm_eps
        launches: list[DecodeLaunch] = []

        def add(name: str, launch: KernelLaunch) -> None:
            after = (len(launches) - 1,) if launches else ()
            launches.append(DecodeLaunch(name, launch, after, waits=True))

        for layer in range(config.num_hidden_layers):
            at = f"layers.{layer}."

            def weight(name: str, layer: int = layer) -> Any:
                return tensors[f"model.layers.{layer}.{name}.weight"]

            caches = self.k_cache[layer], self.v_cache[layer]
            projections = (weight(f"self_attn.{name}_proj") for name in "qkv")
            add(
                at + "qkv",
                qkv_rope_append(
                    *(*projections, self.x, weight("input_layernorm"), self._cosines, self._sines),
                    *(self._q, *caches, positions, eps),
                    block_table=self.block_table,
                ),
            )
            add(
                at + "attention",
                split_attention(
                    *(self._q, *caches, positions, self._found, self._arrived, self._attended),
                    block_table=self.block_table,
                ),
            )
            add(at + "o", project_residual(weight("self_attn.o_proj"), self._attended, self.x))
            gain = weight("post_attention_layernorm")
            matrices = weight("mlp.gate_proj"), weight("mlp.up_proj")
            add(at + "gate_up", gate_up_silu(*matrices, self.x, gain, self._inner, eps))
            add(at + "down", project_residual(weight("mlp.down_proj"), self._inner, self.x))
        head = self.table if config.tie_word_embeddings else tensors["lm_head.weight"]
        last = tensors["model.norm.weight"]
        best = self.best_value, self.best_index
        add("vocabulary", project_vocabulary(head, self.x, last, self.logits, *best, eps))
        return launches


def _check_matrices(checkpoint: Checkpoint) -> None:
    for name, tensor in checkpoint.tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if len(tensor.shape) == 2 and dtype != "bfloat16":
            raise ValueError(f"{name}: expected bfloat16, all that the kernels read, came {dtype}")


def _check_memory(
    checkpoint: Checkpoint,
    shapes: dict[str, tuple[tuple[int, ...], Any]],
    cache_shape: tuple[int, ...],
) -> None:
    """Refuse what does not fit, before the first of it is allocated."""
    activations = sum(int(np.prod(shape)) * 4 for shape, _ in shapes.values())
    caches = 2 * checkpoint.config.num_hidden_layers * int(np.prod(cache_shape)) * 2
    host = [tensor for tensor in checkpoint.tensors.values() if describe(tensor).on_host]
    weights = sum(int(tensor.nbytes) for tensor in host)
    free, _ = gk.current().mem_get_info()
    if activations + caches + weights > free:
        raise ValueError(
            f"max_len: expected what fits {free / 2**30:.2f} GiB of free device memory, came "
            f"{caches / 2**30:.2f} GiB of caches, {weights / 2**30:.2f} of weights to copy and "
            f"{activations / 2**30:.2f} of activations"
        )
