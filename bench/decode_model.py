"""The model that bench/decode.py's contenders share: shape, random weights, caches, a reference.

The shape is Llama 3.2 1B's. The weights are drawn with the deviation that its training starts from
(0.02), which keeps logits near 1; the norms' lie around 1. The query, key and value matrices of a
layer lie behind each other in memory, and so do gate and up: who multiplies by them in one go has a
view, and nobody needs a copy.

The reference is written for NumPy and for PyTorch at once. It widens what it is given layer by
layer, so that a float32 copy of the model never exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from exec_pool_setting import WrongResultError
from graphkit.kernels.llama.checkpoint import LlamaConfig

from graphkit.device_array import BFLOAT16

LLAMA_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = {
    **LLAMA_1B,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 256,
}

DEVIATION = 0.02  # of the matrices: Llama's initializer_range
WINDOW = 32  # steps of one sample


@dataclass(frozen=True)
class Size:
    """One size of the comparison.

    Attributes:
        batch: sequences.
        context: places of each sequence's cache that are full before the step that is verified.
    """

    batch: int
    context: int

    @property
    def first(self) -> int:
        """The position that a window of steps begins at; ``context`` lies in its middle."""
        return self.context - WINDOW // 2 + 1

    @property
    def attended(self) -> int:
        """Positions that the verified step attends to: what was there, and the new one."""
        return self.context + 1

    @property
    def name(self) -> str:
        """What to call it."""
        return f"batch {self.batch}, context {self.context}"


def places(contexts: Sequence[int]) -> int:
    """Return the length of caches that hold every context and the window around it."""
    return max(contexts) + WINDOW


class Model:
    """Configuration, weights and what the caches are filled with.

    Attributes:
        source: the configuration as config.json has it.
        config: the same as graphkit reads it.
        tensors: bfloat16 by Hugging Face's names; on a device PyTorch's, else NumPy's.
        qkv: of each layer the query, key and value matrices as one.
        gate_up: of each layer the gate and up matrices as one.
        keys: bfloat16 [batch, kv_heads, places, head_dim] of each layer.
        values: as ``keys``.
        tokens: int64 [batch], the token that each sequence's verified step takes.
    """

    def __init__(self, source: Mapping[str, Any], draw: Draw, *, batch: int, places: int) -> None:
        self.source = dict(source)
        self.config = config = LlamaConfig.from_dict(source)
        self.places = places
        self.tensors: dict[str, Any] = {}
        self.qkv: list[Any] = []
        self.gate_up: list[Any] = []
        hidden, inner = config.hidden_size, config.intermediate_size
        query = config.num_attention_heads * config.head_dim
        key = config.num_key_value_heads * config.head_dim
        self.tensors["model.embed_tokens.weight"] = draw.normal(
            (config.vocab_size, hidden), 0.0, DEVIATION
        )
        for layer in range(config.num_hidden_layers):
            at = f"model.layers.{layer}."
            qkv = draw.normal((query + 2 * key, hidden), 0.0, DEVIATION)
            gate_up = draw.normal((2 * inner, hidden), 0.0, DEVIATION)
            self.qkv.append(qkv)
            self.gate_up.append(gate_up)
            matrices = {
                "self_attn.q_proj": qkv[:query],
                "self_attn.k_proj": qkv[query : query + key],
                "self_attn.v_proj": qkv[query + key :],
                "self_attn.o_proj": draw.normal((hidden, query), 0.0, DEVIATION),
                "mlp.gate_proj": gate_up[:inner],
                "mlp.up_proj": gate_up[inner:],
                "mlp.down_proj": draw.normal((hidden, inner), 0.0, DEVIATION),
                "input_layernorm": draw.normal((hidden,), 1.0, 0.1),
                "post_attention_layernorm": draw.normal((hidden,), 1.0, 0.1),
            }
            self.tensors |= {f"{at}{name}.weight": tensor for name, tensor in matrices.items()}
        self.tensors["model.norm.weight"] = draw.normal((hidden,), 1.0, 0.1)
        shape = (batch, config.num_key_value_heads, places, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [draw.normal(shape, 0.0, 1.0) for _ in layers]
        self.values = [draw.normal(shape, 0.0, 1.0) for _ in layers]
        self.tokens = np.random.default_rng(1).integers(0, config.vocab_size, batch)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads; of the embedding it reads all, as the head."""
        return 2 * sum(int(np.prod(shape)) for shape in self.config.tensor_shapes().values())

    @property
    def layer_count(self) -> int:
        """Number of decoder layers."""
        return int(self.config.num_hidden_layers)

    @property
    def position_bytes(self) -> int:
        """Bytes of keys and values of one position of one sequence, in all layers."""
        config = self.config
        values = config.num_key_value_heads * config.head_dim
        return int(2 * 2 * config.num_hidden_layers * values)

    def step_bytes(self, size: Size) -> int:
        """Bytes that a step must read: each weight once, and all keys and values attended to."""
        return self.weight_bytes + size.batch * size.attended * self.position_bytes


class Draw:
    """Draws bfloat16 arrays: PyTorch's on a device, NumPy's without one."""

    def __init__(self, torch: Any = None, device: str = "cpu", seed: int = 0) -> None:
        self.torch = torch
        self.device = device
        self._random: Any
        if torch is None:
            self._random = np.random.default_rng(seed)
        else:
            self._random = torch.Generator(device=device).manual_seed(seed)

    def normal(self, shape: tuple[int, ...], mean: float, deviation: float) -> Any:
        """Return an array of normally distributed values."""
        if self.torch is None:
            return self._random.normal(mean, deviation, shape).astype(BFLOAT16)
        array = self.torch.empty(shape, dtype=self.torch.bfloat16, device=self.device)
        return array.normal_(mean, deviation, generator=self._random)


# --- reference -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a step left behind.

    Attributes:
        logits: [batch, vocab_size].
        next_tokens: [batch], the chosen ones.
        appended: of some layers the key and the value at the step's position, [batch, kv_heads,
            head_dim] each.
    """

    logits: Any
    next_tokens: Any
    appended: Mapping[int, tuple[Any, Any]]


def checked_layers(config: LlamaConfig) -> tuple[int, ...]:
    """Return the layers whose caches are looked at: the first, one between, the last."""
    last = config.num_hidden_layers - 1
    return tuple(dict.fromkeys((0, last // 2, last)))


def reference(model: Model, size: Size, xp: Any, wide: Callable[[Any], Any]) -> Answer:
    """Compute the verified step of a size.

    Args:
        model: the model.
        size: batch and context.
        xp: ``numpy`` or ``torch``, whichever the model's arrays are of.
        wide: returns an array in the precision to compute in.
    """
    config, batch, context = model.config, size.batch, size.context
    heads, kv_heads, width = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    looked_at, appended = checked_layers(config), {}
    # In float64 on the host: what a contender rounds in its tables is its own error.
    angles = context * config.rotary_frequencies().astype(np.float64)
    cosines, sines = (_like(xp, model, wide, table) for table in (np.cos(angles), np.sin(angles)))

    def normed(x: Any, name: str) -> Any:
        mean = (x * x).mean(-1)[:, None]
        return x / xp.sqrt(mean + config.rms_norm_eps) * wide(model.tensors[name])

    def turned(x: Any) -> Any:
        low, high = x[..., : width // 2], x[..., width // 2 :]
        return xp.concatenate((low * cosines - high * sines, high * cosines + low * sines), -1)

    table = model.tensors["model.embed_tokens.weight"]
    x = wide(table[_index(xp, model, model.tokens[:batch])])
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        qkv = normed(x, at + "input_layernorm.weight") @ wide(model.qkv[layer]).T
        qkv = qkv.reshape(batch, heads + 2 * kv_heads, width)
        q = turned(qkv[:, :heads]).reshape(batch, kv_heads, heads // kv_heads, width)
        k, v = turned(qkv[:, heads : heads + kv_heads]), qkv[:, heads + kv_heads :]
        if layer in looked_at:
            appended[layer] = (k, v)
        keys = wide(model.keys[layer][:batch, :, :context])
        values = wide(model.values[layer][:batch, :, :context])
        scores = xp.concatenate(
            (xp.einsum("bgrd,bgld->bgrl", q, keys), xp.einsum("bgrd,bgd->bgr", q, k)[..., None]),
            -1,
        )
        scores = xp.exp(scores * width**-0.5 - xp.amax(scores, -1)[..., None] * width**-0.5)
        shares = scores / scores.sum(-1)[..., None]
        mixed = xp.einsum("bgrl,bgld->bgrd", shares[..., :context], values)
        mixed = mixed + shares[..., context:] * v[:, :, None]
        x = (
            x
            + mixed.reshape(batch, heads * width)
            @ wide(model.tensors[at + "self_attn.o_proj.weight"]).T
        )
        both = normed(x, at + "post_attention_layernorm.weight") @ wide(model.gate_up[layer]).T
        gate, up = both[:, : config.intermediate_size], both[:, config.intermediate_size :]
        inner = gate / (1 + xp.exp(-gate)) * up
        x = x + inner @ wide(model.tensors[at + "mlp.down_proj.weight"]).T
    logits = normed(x, "model.norm.weight") @ wide(table).T
    return Answer(logits, logits.argmax(-1), appended)


def _index(xp: Any, model: Model, tokens: Any) -> Any:
    if xp is np:
        return tokens
    return xp.from_numpy(tokens).to(model.tensors["model.norm.weight"].device)


def _like(xp: Any, model: Model, wide: Callable[[Any], Any], host: Any) -> Any:
    if xp is np:
        return wide(host)
    return wide(xp.from_numpy(host).to(model.tensors["model.norm.weight"].device))


def relative_error(found: Any, expected: Any) -> float:
    """Return ``||found - expected|| / ||expected||``; not a number when anything is not."""
    difference = found - expected
    return float((difference * difference).sum() ** 0.5 / (expected * expected).sum() ** 0.5)


def check_answer(who: str, found: Answer, expected: Answer, bound: float) -> float:
    """Compare what a contender's step left behind with the reference; return the logits' error.

    Raises:
        WrongResultError: an error beyond ``bound``, or a token that is not the most likely one of
            the contender's own logits.
    """
    error = relative_error(found.logits, expected.logits)
    if not error <= bound:
        raise WrongResultError(f"{who}: logits: relative error {error:.2g}, expected {bound:g}")
    # By value: of equal logits either is the most likely one.
    rows = range(len(found.next_tokens))
    chosen = found.logits[list(rows), [int(token) for token in found.next_tokens]]
    best = found.logits.max(-1)
    best = getattr(best, "values", best)
    if not bool((chosen == best).all()):
        raise WrongResultError(f"{who}: a token is not the most likely one of its own logits")
    for layer, pairs in found.appended.items():
        for what, one, other in zip(("key", "value"), pairs, expected.appended[layer], strict=True):
            off = relative_error(one, other)
            if not off <= bound:
                raise WrongResultError(
                    f"{who}: layer {layer}: appended {what}: relative error {off:.2g}, "
                    f"expected {bound:g}"
                )
    return error
