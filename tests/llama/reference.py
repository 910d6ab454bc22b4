"""A Llama in float64 NumPy, without a cache and without a line of the code under test.

It recomputes the whole text for every token, rotates by complex numbers, and takes config.json as
the dict that it is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def config(**changes):
    """A config.json of a very small Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    } | changes


def tensors(config, seed=0, dtype=np.float32):
    """Random weights, large enough that every layer matters to the logits."""
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]

    def matrix(rows, columns):
        return (rng.standard_normal((rows, columns)) * columns**-0.5).astype(dtype)

    def vector():
        return (1 + 0.2 * rng.standard_normal(hidden)).astype(dtype)

    made = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden) * dtype(4)}
    for layer in range(config["num_hidden_layers"]):
        made |= {
            f"model.layers.{layer}.{name}.weight": weight
            for name, weight in {
                "input_layernorm": vector(),
                "self_attn.q_proj": matrix(query, hidden),
                "self_attn.k_proj": matrix(key, hidden),
                "self_attn.v_proj": matrix(key, hidden),
                "self_attn.o_proj": matrix(hidden, query),
                "post_attention_layernorm": vector(),
                "mlp.gate_proj": matrix(inner, hidden),
                "mlp.up_proj": matrix(inner, hidden),
                "mlp.down_proj": matrix(hidden, inner),
            }.items()
        }
    made["model.norm.weight"] = vector()
    if not config["tie_word_embeddings"]:
        made["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    return {name: np.ascontiguousarray(array, dtype) for name, array in made.items()}


def write_model(folder, config, weights, shards=1):
    """Write a model folder as save_pretrained does, in one file or several."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    weight_map = {}
    for number in range(shards):
        part = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        names = sorted(weights)[number::shards]
        save_file({name: weights[name] for name in names}, folder / part)
        weight_map |= dict.fromkeys(names, part)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def byte_model(folder, seed=0):
    """A folder that `graphkit generate` takes: 256 bytes are its vocabulary."""
    values = config(vocab_size=256, tie_word_embeddings=True, rope_scaling=LLAMA3)
    return write_model(folder, values, tensors(values, seed, ml_dtypes.bfloat16))


def frequencies(config):
    """The inverse frequencies, one by one, as the Llama 3.1 paper's code states them."""
    scaling = config.get("rope_scaling")
    found = []
    for i in range(0, config["head_dim"], 2):
        frequency = config["rope_theta"] ** -(i / config["head_dim"])
        if scaling:
            wavelength = 2 * math.pi / frequency
            original = scaling["original_max_position_embeddings"]
            if wavelength > original / scaling["low_freq_factor"]:
                frequency /= scaling["factor"]
            elif wavelength >= original / scaling["high_freq_factor"]:
                smooth = (original / wavelength - scaling["low_freq_factor"]) / (
                    scaling["high_freq_factor"] - scaling["low_freq_factor"]
                )
                frequency = (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
        found.append(frequency)
    return np.array(found)


def forward(config, weights, tokens):
    """Logits of every position, float64, shape (length, vocabulary)."""
    weights = {name: np.asarray(array).astype(np.float64) for name, array in weights.items()}
    length, dim = len(tokens), config["head_dim"]
    group = config["num_attention_heads"] // config["num_key_value_heads"]
    turns = np.exp(1j * np.outer(np.arange(length), frequencies(config)))[:, None, :]

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight

    def rotate(x):
        turned = (x[..., : dim // 2] + 1j * x[..., dim // 2 :]) * turns
        return np.concatenate((turned.real, turned.imag), -1)

    x = weights["model.embed_tokens.weight"][list(tokens)]
    for layer in range(config["num_hidden_layers"]):

        def weight(name, layer=layer):
            return weights[f"model.layers.{layer}.{name}.weight"]

        h = norm(x, weight("input_layernorm"))
        q, k, v = (
            (h @ weight(f"self_attn.{name}_proj").T).reshape(length, -1, dim) for name in "qkv"
        )
        q, k = rotate(q), np.repeat(rotate(k), group, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(dim)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        odds = np.exp(scores - scores.max(-1, keepdims=True))
        odds /= odds.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", odds, np.repeat(v, group, axis=1))
        x = x + mixed.reshape(length, -1) @ weight("self_attn.o_proj").T
        h = norm(x, weight("post_attention_layernorm"))
        gate = h @ weight("mlp.gate_proj").T
        x = (
            x
            + (gate / (1 + np.exp(-gate)) * (h @ weight("mlp.up_proj").T))
            @ weight("mlp.down_proj").T
        )
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return norm(x, weights["model.norm.weight"]) @ weights[head].T


def greedy(config, weights, prompt, count):
    """The tokens that follow a prompt, the likeliest each time."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(forward(config, weights, tokens)[-1].argmax()))
    return tokens[len(prompt) :]
