"""A Llama in device memory, and the kernel launches that take one token of each row through it."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import graphkit as gk
from graphkit.arrays import ArrayInfo, describe
from graphkit.device_array import BFLOAT16
from graphkit.runtime.protocol import MemcpyKind

from ..attention import attention
from ..embedding import embedding
from ..launch import KernelLaunch, check, instance, integer
from ..matvec import matvec
from ..residual_add import residual_add
from ..rms_norm import rms_norm
from ..rope_append import rope_append
from ..silu_mul import silu_mul
from .checkpoint import Checkpoint, LlamaConfig

__all__ = ["DecodeLaunch", "Llama", "check_extent", "host_copy", "on_device"]

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class DecodeLaunch:
    """One kernel launch of a decode step.

    Attributes:
        name: what it does and where, such as ``"layers.0.attention"``.
        launch: kernel, launch configuration and arguments.
        after: the launches it waits for, by their place in the list that it stands in.
        early: whether it may begin while those are still at work, so that programmatic edges lead
            to it: it executes ``griddepcontrol.wait`` before it touches what they write.
    """

    name: str
    launch: KernelLaunch
    after: tuple[int, ...]
    early: bool = False


class Llama:
    """Weights, activations and KV caches of a Llama.

    Args:
        checkpoint: configuration and tensors. Matrices in device memory (float32 or bfloat16,
            C-ordered) are used where they lie; arrays on the host are copied.
        rows: tokens that are taken through it at once, at most; each of another sequence.
        max_len: places of a sequence in the caches, in tokens; at most the model's
            ``max_position_embeddings``, which is the default.

    Attributes:
        checkpoint: the configuration, and the tensors as they lie in device memory.
        logits: float32 [rows, vocab_size].
        k_cache: float32 [rows, kv_heads, max_len, head_dim] of each layer.
        v_cache: as ``k_cache``.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of range, before anything is allocated.
    """

    def __init__(self, checkpoint: Checkpoint, *, rows: int, max_len: int | None = None) -> None:
        config = instance("checkpoint", checkpoint, Checkpoint).config
        rows = integer("rows", rows, (1, 2**31 - 1))
        max_len = check_extent(config, max_len)
        self.config = config
        self.rows = rows
        self.max_len = max_len
        self.checkpoint = on_device(checkpoint)
        self._cosines, self._sines = map(gk.asarray, config.rotary_tables(max_len))
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._x = gk.empty((rows, config.hidden_size))
        self._normed = gk.empty((rows, config.hidden_size))
        self._q = gk.empty((rows, heads, config.head_dim))
        self._k = gk.empty((rows, kv_heads, config.head_dim))
        self._v = gk.empty((rows, kv_heads, config.head_dim))
        self._attended = gk.empty((rows, heads, config.head_dim))
        self._gate = gk.empty((rows, config.intermediate_size))
        self._up = gk.empty((rows, config.intermediate_size))
        self._branch = gk.empty((rows, config.hidden_size))
        self.logits = gk.zeros((rows, config.vocab_size), np.float32)
        # Places of the cache beyond the position are never read, but a zero is easier to look at.
        cache_shape = (rows, kv_heads, max_len, config.head_dim)
        self.k_cache = [gk.zeros(cache_shape) for _ in range(config.num_hidden_layers)]
        self.v_cache = [gk.zeros(cache_shape) for _ in range(config.num_hidden_layers)]

    def launches(
        self, tokens: object, positions: object, slots: object | None = None
    ) -> list[DecodeLaunch]:
        """List the kernel launches that take a token of each sequence to its logits.

        Launches nothing. Those of fewer sequences than ``rows`` use the first rows of everything.

        Args:
            tokens: int32 [sequences, max_len], of which the token at the position is taken; with
                ``slots`` int32 [sequences], the tokens themselves.
            positions: int32 [sequences].
            slots: int32 [sequences], the rows of the caches that they have; without it sequence b
                has row b.

        Raises:
            ValueError: when shapes or dtypes do not agree.
        """
        config, tensors = self.config, self.checkpoint.tensors
        (count,) = check("positions", positions, ("sequences",), np.int32)
        if count > self.rows:
            raise ValueError(f"positions: expected at most {self.rows} sequences, came {count}")
        x, normed, branch = self._x[:count], self._normed[:count], self._branch[:count]
        q, k, v = self._q[:count], self._k[:count], self._v[:count]
        attended, gate, up = self._attended[:count], self._gate[:count], self._up[:count]

        launches: list[DecodeLaunch] = []

        def add(name: str, launch: KernelLaunch, *after: int) -> int:
            launches.append(DecodeLaunch(name, launch, after))
            return len(launches) - 1

        table = tensors["model.embed_tokens.weight"]
        of_buffer = positions if slots is None else None
        done = add("embedding", embedding(tokens, of_buffer, table, x))
        for layer in range(config.num_hidden_layers):
            at = f"layers.{layer}."

            def weight(name: str, layer: int = layer) -> Any:
                return tensors[f"model.layers.{layer}.{name}.weight"]

            eps = config.rms_norm_eps
            norm = add(at + "norm", rms_norm(x, weight("input_layernorm"), normed, eps), done)
            to_q = add(at + "q", matvec(weight("self_attn.q_proj"), normed, q), norm)
            to_k = add(at + "k", matvec(weight("self_attn.k_proj"), normed, k), norm)
            to_v = add(at + "v", matvec(weight("self_attn.v_proj"), normed, v), norm)
            caches = self.k_cache[layer], self.v_cache[layer]
            turn = rope_append(
                *(q, k, v, self._cosines, self._sines, *caches, positions), slots=slots
            )
            rope = add(at + "rope_append", turn, to_q, to_k, to_v)
            attend = attention(
                *(q, *caches, positions, attended, config.head_dim**-0.5), slots=slots
            )
            mixed = add(at + "attention", attend, rope)
            to_o = add(at + "o", matvec(weight("self_attn.o_proj"), attended, branch), mixed)
            # In place: everything that read x before is behind `branch`.
            done = add(at + "add", residual_add(branch, x, x), to_o)
            norm = add(
                at + "mlp_norm", rms_norm(x, weight("post_attention_layernorm"), normed, eps), done
            )
            to_gate = add(at + "gate", matvec(weight("mlp.gate_proj"), normed, gate), norm)
            to_up = add(at + "up", matvec(weight("mlp.up_proj"), normed, up), norm)
            silu = add(at + "silu_mul", silu_mul(gate, up, gate), to_gate, to_up)
            down = add(at + "down", matvec(weight("mlp.down_proj"), gate, branch), silu)
            done = add(at + "mlp_add", residual_add(branch, x, x), down)
        last = tensors["model.norm.weight"]
        norm = add("norm", rms_norm(x, last, normed, config.rms_norm_eps), done)
        head = table if config.tie_word_embeddings else tensors["lm_head.weight"]
        add("lm_head", matvec(head, normed, self.logits[:count]), norm)
        return launches


def check_extent(config: LlamaConfig, max_len: int | None) -> int:
    """Return the places of a sequence: the model's by default.

    Raises:
        TypeError: it is no int.
        ValueError: less than 2, or more than the model has positions.
    """
    limit = config.max_position_embeddings
    max_len = limit if max_len is None else integer("max_len", max_len)
    if not 2 <= max_len <= limit:
        raise ValueError(f"max_len: expected 2 to the model's {limit} tokens, came {max_len}")
    return max_len


def on_device(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose tensors the kernels take; one that is so already costs nothing."""
    tensors = {
        name: (_device_matrix if len(tensor.shape) == 2 else _device_vector)(tensor, name)
        for name, tensor in checkpoint.tensors.items()
    }
    return Checkpoint(checkpoint.config, tensors, checkpoint.source)


def _device_matrix(tensor: Any, name: str) -> Any:
    """Return a matrix in device memory in a dtype that the kernels multiply by.

    Host arrays are copied; float16 becomes float32. Device arrays are used as they are.

    Raises:
        ValueError: a device array is not C-ordered, or neither float32 nor bfloat16.
    """
    info = describe(tensor, name)
    if info.on_host:
        host = host_copy(info, name)
        return gk.asarray(host if host.dtype in (_FLOAT32, BFLOAT16) else host.astype(_FLOAT32))
    if not info.contiguous or info.dtype not in (_FLOAT32, BFLOAT16):
        raise ValueError(
            f"{name}: expected float32 or bfloat16 in C order in device memory, "
            f"came {info.dtype} of shape {info.shape} with strides {info.strides}"
        )
    return tensor


def _device_vector(tensor: Any, name: str) -> Any:
    """Return a small vector in device memory as float32, copied where it is not."""
    info = describe(tensor, name)
    if info.dtype == _FLOAT32 and not info.on_host and info.contiguous:
        return tensor
    return gk.asarray(host_copy(info, name).astype(_FLOAT32))


def host_copy(info: ArrayInfo, name: str) -> NDArray[Any]:
    """Return the elements of an array on the host; one of NumPy's is returned as it is.

    Raises:
        ValueError: it is not C-ordered; the message calls it by its name.
    """
    if isinstance(info.owner, np.ndarray):
        return info.owner
    if not info.contiguous:
        raise ValueError(f"{name}: expected C order, came strides {info.strides}")
    host = np.empty(info.shape, info.dtype)
    kind = MemcpyKind.HOST_TO_HOST if info.on_host else MemcpyKind.DEVICE_TO_HOST
    runtime = gk.current()
    runtime.device_synchronize()
    runtime.memcpy(host.ctypes.data, info.ptr, info.nbytes, kind)
    return host
