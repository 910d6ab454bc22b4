"""A Llama checkpoint in Hugging Face format: config.json and safetensors, checked before use."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors asks it for
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from graphkit.arrays import is_array
from graphkit.errors import GraphkitError

from ..launch import instance, integer, number

__all__ = ["Checkpoint", "CheckpointError", "Llama3Scaling", "LlamaConfig"]

ARCHITECTURE = "LlamaForCausalLM"
DTYPES = ("float32", "bfloat16", "float16")
# In some checkpoints, and recomputed here; a tied head may be there twice.
_REDUNDANT = ("rotary_emb.inv_freq",)
_MOST = 2**31 - 1  # the kernels take extents and tokens as ints of 32 bits


class CheckpointError(GraphkitError):
    """A checkpoint cannot be used; the message names the file, what was expected and what came."""


@dataclass(frozen=True)
class Llama3Scaling:
    """The ``rope_scaling`` of Llama 3.1 and later.

    Attributes:
        factor: how much longer the context is than the one first trained on.
        low_freq_factor: below so many turns in the first context, an angle is slowed by factor.
        high_freq_factor: above so many turns in it, an angle stays as it is.
        original_max_position_embeddings: that first context, in tokens.

    Raises:
        TypeError: one that is no number.
        ValueError: one that is out of range.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            number(name, getattr(self, name), above=0.0)
        if self.factor < 1:
            raise ValueError(f"factor: expected 1 or more, came {self.factor}")
        name = "original_max_position_embeddings"
        integer(name, getattr(self, name), (1, _MOST))
        low, high = self.low_freq_factor, self.high_freq_factor
        if np.float32(low) >= np.float32(high):  # in which they are subtracted
            raise ValueError(f"high_freq_factor: expected more than the low {low}, came {high}")


_EXTENTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class LlamaConfig:
    """What config.json says of a Llama, under Hugging Face's names.

    Attributes:
        vocab_size: number of tokens.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_hidden_layers: number of decoder layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; divides the query heads.
        head_dim: width of a head.
        max_position_embeddings: longest context in tokens.
        rms_norm_eps: epsilon of every RMSNorm.
        rope_theta: base of the rotary frequencies.
        rope_scaling: None for the unscaled rotary embedding.
        tie_word_embeddings: whether the output matrix is the embedding.
        eos_token_ids: tokens that end a text; may be empty.

    Raises:
        TypeError: one of another type.
        ValueError: one that is out of range, or does not fit another.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in _EXTENTS:
            integer(name, getattr(self, name), (1, _MOST))
        for name in ("rms_norm_eps", "rope_theta"):
            number(name, getattr(self, name), above=0.0)
        if self.rope_scaling is not None:
            instance("rope_scaling", self.rope_scaling, Llama3Scaling)
        instance("tie_word_embeddings", self.tie_word_embeddings, bool)
        for token in instance("eos_token_ids", self.eos_token_ids, tuple):
            integer("eos_token_ids", token, (0, _MOST))
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            raise ValueError(
                f"num_key_value_heads: expected a divisor of the {heads} heads, came {kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                "head_dim: expected an even number, since the rotary embedding pairs, came "
                f"{self.head_dim}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> LlamaConfig:
        """Read the values of a config.json, or of ``transformers``' ``config.to_dict()``.

        Args:
            values: the parsed JSON.
            source: what to call it in an error message.

        Raises:
            CheckpointError: a missing or impossible value, or one this decoder does not compute.
            TypeError: ``values`` are no mapping.
        """
        reader = _Reader(instance("values", values, Mapping), source)
        try:
            return reader.config()
        except (TypeError, ValueError) as error:  # they name the value
            raise CheckpointError(f"{source}: {error}") from None

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that the decoder needs, by name."""
        return dict(self.each_tensor())

    def each_tensor(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of every tensor, of however many layers a file may promise."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query = self.num_attention_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            yield from {
                prefix + "input_layernorm.weight": (hidden,),
                prefix + "self_attn.q_proj.weight": (query, hidden),
                prefix + "self_attn.k_proj.weight": (key, hidden),
                prefix + "self_attn.v_proj.weight": (key, hidden),
                prefix + "self_attn.o_proj.weight": (hidden, query),
                prefix + "post_attention_layernorm.weight": (hidden,),
                prefix + "mlp.gate_proj.weight": (inner, hidden),
                prefix + "mlp.up_proj.weight": (inner, hidden),
                prefix + "mlp.down_proj.weight": (hidden, inner),
            }.items()
        yield "model.norm.weight", (hidden,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, hidden)

    def rotary_frequencies(self) -> NDArray[np.float32]:
        """Return the inverse frequencies of the rotary embedding, shape ``(head_dim / 2,)``.

        With llama3 scaling this is the formula of Meta's Llama 3.1 reference code
        (``apply_scaling`` in llama_models/llama3/model.py) and of ``_compute_llama3_parameters``
        in Hugging Face's modeling_rope_utils.py: an angle that turns often within the original
        context stays, one that turns seldom is divided by the factor, and between the two they
        are blended. float32 throughout, as there: at position 100,000 the rounding of a frequency
        shows in the angle.
        """
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        inverse = np.float32(1.0) / np.float32(self.rope_theta) ** exponents
        scaling = self.rope_scaling
        if scaling is None:
            return inverse
        low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
        wavelength = np.float32(2 * math.pi) / inverse
        turns = np.float32(scaling.original_max_position_embeddings) / wavelength
        blend = np.clip((turns - low) / (high - low), np.float32(0.0), np.float32(1.0))
        slowed = inverse / np.float32(scaling.factor)
        blended: NDArray[np.float32] = (1 - blend) * slowed + blend * inverse
        return blended

    def rotary_tables(self, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return cosines and sines of every position's angles, shape ``(length, head_dim / 2)``."""
        positions = np.arange(integer("length", length, (1, _MOST)), dtype=np.float32)
        angles = np.outer(positions, self.rotary_frequencies())
        return np.cos(angles), np.sin(angles)


class _Reader:
    """Takes the values of a config one by one, and says which one is wrong."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def fail(self, key: str, expected: str, came: object) -> CheckpointError:
        return CheckpointError(f"{self.source}: {key}: expected {expected}, came {came!r}")

    def whole(
        self, key: str, default: int | None = None, values: Mapping[str, Any] | None = None
    ) -> int:
        value = (self.values if values is None else values).get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise CheckpointError(f"{self.source}: {key}: expected a whole number, it is missing")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.fail(key, "a whole number of 1 or more", value)
        return value

    def real(self, values: Mapping[str, Any], key: str, default: float | None = None) -> float:
        value = values.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.source}: {key}: expected a number, it is missing")
        return number(key, value, above=0.0)

    def config(self) -> LlamaConfig:
        values = self.values
        architectures = values.get("architectures")
        if architectures is None and values.get("model_type") == "llama":
            architectures = [ARCHITECTURE]
        if architectures != [ARCHITECTURE]:
            raise self.fail("architectures", f"[{ARCHITECTURE!r}]", architectures)
        for key, only in (
            ("attention_bias", False),
            ("mlp_bias", False),
            ("hidden_act", "silu"),
            ("quantization_config", None),
        ):
            if values.get(key, only) != only:
                raise self.fail(key, f"{only!r}, all that this decoder computes", values[key])
        heads = self.whole("num_attention_heads")
        kv_heads = self.whole("num_key_value_heads", heads)
        hidden = self.whole("hidden_size")
        if values.get("head_dim") is None and hidden % heads:
            raise self.fail("hidden_size", f"a multiple of the {heads} heads", hidden)
        # transformers 5 keeps base and scaling together, and writes them under another name.
        given = (values.get(key) for key in ("rope_parameters", "rope_scaling"))
        rope: Any = next((one for one in given if one is not None and one != {}), {})
        if not isinstance(rope, Mapping):
            raise self.fail("rope_scaling", "a JSON object or null", rope)
        base = rope if "rope_theta" in rope else values
        tied = values.get("tie_word_embeddings")
        eos = values.get("eos_token_id")
        ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return LlamaConfig(
            vocab_size=self.whole("vocab_size"),
            hidden_size=hidden,
            intermediate_size=self.whole("intermediate_size"),
            num_hidden_layers=self.whole("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=self.whole("head_dim", max(hidden // heads, 1)),
            max_position_embeddings=self.whole("max_position_embeddings", 2048),
            rms_norm_eps=self.real(values, "rms_norm_eps", 1e-6),
            rope_theta=self.real(base, "rope_theta", 10000.0),
            rope_scaling=self.scaling(rope),
            tie_word_embeddings=False if tied is None else tied,
            eos_token_ids=tuple(integer("eos_token_id", token, (0, _MOST)) for token in ends),
        )

    def scaling(self, rope: Mapping[str, Any]) -> Llama3Scaling | None:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default":
            return None
        if kind != "llama3":
            raise self.fail("rope_scaling.rope_type", "'llama3' or 'default'", kind)
        low, high = self.real(rope, "low_freq_factor"), self.real(rope, "high_freq_factor")
        original = self.whole("original_max_position_embeddings", values=rope)
        return Llama3Scaling(self.real(rope, "factor"), low, high, original)


class Checkpoint:
    """The configuration and the tensors of a Llama, checked against each other.

    Args:
        config: what the model is.
        tensors: arrays by Hugging Face's names, of any library, on the host or the device.
        source: where the tensors came from, for error messages.

    Raises:
        CheckpointError: a tensor is missing, has another shape or dtype, or is one that a Llama
            does not have.
        TypeError: an argument of another type, or a tensor that is no array.
    """

    def __init__(
        self, config: LlamaConfig, tensors: Mapping[str, Any], source: str = "tensors"
    ) -> None:
        self.config = instance("config", config, LlamaConfig)
        self.source = instance("source", source, str)
        self.tensors: dict[str, Any] = {}
        for name in instance("tensors", tensors, Mapping):
            instance("tensors", name, str)
        for name, shape in config.each_tensor():
            if name not in tensors:
                raise CheckpointError(f"{source}: {name}: expected shape {shape}, it is missing")
            tensor = tensors[name]
            if not is_array(tensor):
                raise TypeError(f"{name}: expected an array, came {type(tensor).__name__}")
            came = tuple(tensor.shape)
            if came != shape:
                raise CheckpointError(f"{source}: {name}: expected shape {shape}, came {came}")
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype not in DTYPES:
                raise CheckpointError(
                    f"{source}: {name}: expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, "
                    f"came {dtype}"
                )
            self.tensors[name] = tensor
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        for name in tensors:
            if name not in self.tensors and name not in tied and not name.endswith(_REDUNDANT):
                raise CheckpointError(
                    f"{source}: {name}: expected the tensors of a {ARCHITECTURE} with "
                    f"{config.num_hidden_layers} layers, came one that it does not have"
                )

    @classmethod
    def load(cls, folder: str | Path) -> Checkpoint:
        """Load a model folder: config.json, and model.safetensors or the shards of its index.

        Args:
            folder: a folder as ``save_pretrained`` writes it.

        Raises:
            CheckpointError: a file is missing or truncated, the architecture is another, or the
                tensors do not fit the configuration.
            TypeError: ``folder`` is no path.
        """
        folder = path_of("folder", folder)
        if not os.path.isdir(folder):  # noqa: PTH112 - Path raises for a name that is too long
            raise CheckpointError(f"{folder}: expected a model folder, there is none")
        config = LlamaConfig.from_dict(read_json(folder / "config.json"), "config.json")
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        if single.is_file():
            return cls(config, dict(_read_tensors(single)), single.name)
        if not index.is_file():
            raise CheckpointError(
                f"{folder}: expected {single.name} or {index.name}, came a folder with neither"
            )
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            came = type(weight_map).__name__
            raise CheckpointError(f"{index.name}: weight_map: expected a JSON object, came {came}")
        tensors: dict[str, NDArray[Any]] = {}
        for shard in weight_map.values():
            # The name stands in a file: it must not lead out of the folder.
            named = isinstance(shard, str) and Path(shard).name == shard
            if not named or not os.path.isfile(folder / shard):  # noqa: PTH113 - as above
                raise CheckpointError(f"{index.name}: expected shard {shard!r} beside it, missing")
        for shard in dict.fromkeys(weight_map.values()):
            tensors |= _read_tensors(folder / shard)
        for name, shard in weight_map.items():
            if name not in tensors:
                raise CheckpointError(f"{shard}: {name}: expected by {index.name}, it is missing")
        return cls(config, tensors, index.name)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that the decoder uses."""
        return sum(int(t.nbytes) for t in self.tensors.values())


def path_of(argument: str, value: str | Path) -> Path:
    """Return a path.

    Raises:
        TypeError: when it is none; bytes are not.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{argument}: expected a path, came {type(value).__name__}")
    return Path(value)


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that must hold a JSON object.

    Raises:
        CheckpointError: the file is missing, not JSON, or not an object.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        message = f"{path.name}: expected in {path.parent}, it is missing"
        raise CheckpointError(message) from None
    except OSError as error:
        raise CheckpointError(f"{path.name}: expected a file, came {error}") from error
    except (ValueError, RecursionError) as error:  # also for text that is none, or goes too deep
        raise CheckpointError(f"{path.name}: expected JSON, came a file where {error}") from None
    if not isinstance(values, dict):
        came = type(values).__name__
        raise CheckpointError(f"{path.name}: expected a JSON object, came {came}")
    return values


def _read_tensors(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - the file has no __iter__
                yield name, file.get_tensor(name)
    except (SafetensorError, TypeError, AttributeError, ValueError) as error:
        # The last three for what NumPy has not: a dtype of 8 bits, or so many axes.
        raise CheckpointError(f"{path.name}: {_expected_size(path)} ({error})") from error


def _expected_size(path: Path) -> str:
    """Say how many bytes the file's own header promises, since safetensors does not."""
    came = path.stat().st_size
    with path.open("rb") as file:
        length = file.read(8)
        if len(length) < 8:
            return f"expected a safetensors file, came {came} bytes, less than its header"
        (size,) = struct.unpack("<Q", length)
        if size + 8 > came:
            return f"expected a header of {size:,} bytes, came a file of {came:,} bytes"
        try:
            header = json.loads(file.read(size))
            end = max(
                item["data_offsets"][1] for name, item in header.items() if name != "__metadata__"
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return "expected a safetensors header, came something else"
    if 8 + size + end > came:
        return f"expected {8 + size + end:,} bytes, came {came:,}: the file is truncated"
    return "expected tensors that NumPy can hold"
