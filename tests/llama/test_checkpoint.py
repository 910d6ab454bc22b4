"""Checkpoints: what is read, and what each bad one is told."""

import dataclasses
import json
import math
import re

import ml_dtypes
import numpy as np
import pytest
from graphkit.kernels.llama import (
    BUNDLED_MODEL,
    Checkpoint,
    CheckpointError,
    Llama3Scaling,
    LlamaConfig,
)
from llama.reference import LLAMA3, config, frequencies, tensors, write_model

from graphkit.errors import GraphkitError


@pytest.fixture
def folder(tmp_path):
    values = config()
    return write_model(tmp_path / "model", values, tensors(values))


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(folder)
    return str(caught.value)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_tensor_is_read_as_it_was_written(tmp_path, shards, dtype):
    values = config()
    written = tensors(values, dtype=dtype)
    checkpoint = Checkpoint.load(write_model(tmp_path / "model", values, written, shards))
    assert checkpoint.tensors.keys() == written.keys()
    for name, array in written.items():
        assert checkpoint.tensors[name].dtype == dtype
        np.testing.assert_array_equal(checkpoint.tensors[name].view(np.uint8), array.view(np.uint8))
    assert checkpoint.nbytes == sum(array.nbytes for array in written.values())


def test_the_bundled_model_is_small_and_has_everything_a_llama_has():
    checkpoint = Checkpoint.load(BUNDLED_MODEL)
    assert checkpoint.nbytes <= 4_000_000
    assert checkpoint.config.vocab_size == 256
    assert checkpoint.config.rope_scaling is not None
    assert checkpoint.config.tie_word_embeddings
    assert checkpoint.config.num_key_value_heads < checkpoint.config.num_attention_heads
    assert (BUNDLED_MODEL / "model.safetensors").stat().st_size <= 4_000_000
    assert "Python Software Foundation" in (BUNDLED_MODEL / "README.md").read_text()


def test_config_reads_huggingface_names():
    read = LlamaConfig.from_dict(config(rope_scaling=LLAMA3, eos_token_id=[7, 9]))
    assert read.num_key_value_heads == 2
    assert read.rope_scaling == Llama3Scaling(4.0, 1.0, 4.0, 16)
    assert read.eos_token_ids == (7, 9)
    assert LlamaConfig.from_dict(config(eos_token_id=3)).eos_token_ids == (3,)


def test_config_takes_what_old_and_new_transformers_write():
    old = config()
    for key in ("head_dim", "num_key_value_heads", "rope_scaling", "tie_word_embeddings"):
        del old[key]
    read = LlamaConfig.from_dict(old)
    assert (read.head_dim, read.num_key_value_heads) == (6, 4)
    assert (read.rope_scaling, read.tie_word_embeddings) == (None, False)
    new = config(rope_parameters=LLAMA3 | {"rope_theta": 77.0})
    del new["rope_theta"]
    read = LlamaConfig.from_dict(new)
    assert read.rope_theta == 77.0
    assert read.rope_scaling == Llama3Scaling(4.0, 1.0, 4.0, 16)


@pytest.mark.parametrize("scaling", [None, LLAMA3])
def test_rotary_frequencies(scaling):
    values = config(rope_scaling=scaling, head_dim=32, rope_theta=10000.0)
    read = LlamaConfig.from_dict(values)
    expected = frequencies(values)
    np.testing.assert_allclose(read.rotary_frequencies(), expected, rtol=1e-6)
    assert read.rotary_frequencies().dtype == np.float32
    cosines, sines = read.rotary_tables(40)
    assert cosines.shape == sines.shape == (40, 16)
    np.testing.assert_allclose(cosines, np.cos(np.outer(np.arange(40), expected)), atol=1e-5)
    np.testing.assert_allclose(sines, np.sin(np.outer(np.arange(40), expected)), atol=1e-5)


def test_llama3_scaling_of_llama_3_1():
    # The published configuration of Llama-3.1-8B: the fastest angles stay, the slowest are eight
    # times as slow, and some lie between.
    values = config(
        head_dim=128,
        rope_theta=500000.0,
        rope_scaling=LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 8192},
    )
    plain = LlamaConfig.from_dict(values | {"rope_scaling": None}).rotary_frequencies()
    ratio = LlamaConfig.from_dict(values).rotary_frequencies() / plain
    assert ratio[0] == 1.0
    assert ratio[-1] == 0.125
    assert np.all(np.diff(ratio) <= 0)
    assert np.sum((ratio > 0.126) & (ratio < 0.999)) >= 3


# --- bad input -----------------------------------------------------------------------------------


def test_errors_are_graphkit_errors():
    assert issubclass(CheckpointError, GraphkitError)


def test_missing_folder(tmp_path):
    assert "expected a model folder" in refusal(tmp_path / "none")


def test_missing_config(folder):
    (folder / "config.json").unlink()
    message = refusal(folder)
    assert "config.json: expected in" in message
    assert "missing" in message


NESTED = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff", NESTED, '{"a": ' + "1" * 5000 + "}"])
def test_config_that_is_no_json_object(folder, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    assert refusal(folder).startswith("config.json: expected")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("architectures", ["MistralForCausalLM"], "['LlamaForCausalLM'], came ['Mistral"),
        ("architectures", None, "expected ['LlamaForCausalLM'], came None"),
        ("vocab_size", None, "it is missing"),
        ("hidden_size", -3, "expected a whole number of 1 or more, came -3"),
        ("hidden_size", 24.5, "came 24.5"),
        ("num_key_value_heads", 3, "expected a divisor of the 4 heads, came 3"),
        ("head_dim", 5, "expected an even number"),
        ("rms_norm_eps", "small", "expected a number, came str"),
        ("rms_norm_eps", 1e-60, "expected a finite number above 0 in float32, came 1e-60"),
        ("rope_theta", 0, "expected a finite number above 0 in float32, came 0"),
        ("rope_theta", 1e300, "expected a finite number above 0 in float32, came 1e+300"),
        ("rope_theta", 10**400, "expected a finite number above 0 in float32, came 1000"),
        ("rope_theta", math.inf, "expected a finite number above 0 in float32, came inf"),
        ("rope_theta", math.nan, "expected a finite number above 0 in float32, came nan"),
        ("max_position_embeddings", 2**40, "expected 1 to 2147483647, came 1099511627776"),
        ("num_hidden_layers", 10**9, "model.layers.2.input_layernorm.weight: expected shape"),
        ("tie_word_embeddings", "no", "expected a bool, came str"),
        ("eos_token_id", "</s>", "expected an int, came str"),
        ("eos_token_id", 1.5, "expected an int, came float"),
        ("eos_token_id", True, "expected an int, came bool"),
        ("eos_token_id", {}, "expected an int, came dict"),
        ("eos_token_id", [1, None], "expected an int, came NoneType"),
        ("eos_token_id", 2**40, "expected 0 to 2147483647, came 1099511627776"),
        ("eos_token_id", [-1], "expected 0 to 2147483647, came -1"),
        ("hidden_act", "gelu", "expected 'silu'"),
        ("attention_bias", True, "expected False"),
        ("mlp_bias", True, "expected False"),
        ("quantization_config", {"bits": 4}, "expected None"),
        ("rope_scaling", 2, "expected a JSON object or null"),
        ("rope_scaling", {"rope_type": "yarn"}, "expected 'llama3' or 'default', came 'yarn'"),
        ("rope_scaling", {"rope_type": "llama3"}, "low_freq_factor: expected a number"),
        ("rope_scaling", [], "expected a JSON object or null"),
        ("rope_scaling", 0, "expected a JSON object or null"),
        ("rope_scaling", LLAMA3 | {"high_freq_factor": 0.5}, "expected more than the low 1.0"),
        ("rope_scaling", LLAMA3 | {"factor": 1e300}, "factor: expected a finite number above 0 in"),
        (
            "rope_scaling",
            LLAMA3 | {"original_max_position_embeddings": math.inf},
            "original_max_position_embeddings: expected a whole number of 1 or more, came inf",
        ),
    ],
)
def test_bad_value_in_config(folder, key, value, says):
    edit(folder, **{key: value})
    message = refusal(folder)
    assert message.startswith(("config.json: ", "model.safetensors: "))
    assert key in message or says.partition(":")[0] in message
    assert says in message


def test_heads_must_divide_the_width_where_their_own_is_not_given(folder):
    edit(folder, head_dim=None, hidden_size=26)
    assert "expected a multiple of the 4 heads, came 26" in refusal(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "came a folder with neither" in refusal(folder)


def test_missing_tensor(tmp_path):
    values = config()
    weights = tensors(values)
    del weights["model.layers.1.mlp.up_proj.weight"]
    message = refusal(write_model(tmp_path / "model", values, weights))
    assert message == (
        "model.safetensors: model.layers.1.mlp.up_proj.weight: expected shape (40, 24), "
        "it is missing"
    )


def test_missing_head_where_the_embedding_is_not_tied(tmp_path):
    values = config()
    weights = tensors(values)
    del weights["lm_head.weight"]
    assert "lm_head.weight: expected shape (61, 24)" in refusal(
        write_model(tmp_path / "model", values, weights)
    )


def test_wrong_shape(tmp_path):
    values = config()
    weights = tensors(values)
    name = "model.layers.0.self_attn.k_proj.weight"
    weights[name] = np.ascontiguousarray(weights[name].T)
    message = refusal(write_model(tmp_path / "model", values, weights))
    assert message == f"model.safetensors: {name}: expected shape (12, 24), came (24, 12)"


def test_wrong_dtype(tmp_path):
    values = config()
    weights = tensors(values)
    weights["model.norm.weight"] = np.ones(24, np.int8)
    message = refusal(write_model(tmp_path / "model", values, weights))
    assert "model.norm.weight: expected float32, bfloat16 or float16, came int8" in message


def test_tensor_of_another_model(tmp_path):
    values = config()
    weights = tensors(values)
    name = "model.layers.0.self_attn.q_proj.bias"
    weights[name] = np.zeros(24, np.float32)
    assert f"{name}: expected the tensors of a Llama" in refusal(
        write_model(tmp_path / "model", values, weights)
    )


def test_tensors_that_say_nothing_new_are_passed_over(tmp_path):
    values = config(tie_word_embeddings=True)
    weights = tensors(values)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    checkpoint = Checkpoint.load(write_model(tmp_path / "model", values, weights))
    assert "lm_head.weight" not in checkpoint.tensors


@pytest.mark.parametrize("kept", [0, 5, 300, -10])
def test_truncated_file(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(folder)
    assert message.startswith("model.safetensors: expected")
    assert "came" in message
    if kept == -10:
        assert re.search(r"expected [\d,]+ bytes, came [\d,]+: the file is truncated", message)


def test_file_that_is_no_safetensors(folder):
    (folder / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"not json" + bytes(100))
    assert refusal(folder).startswith("model.safetensors: expected a safetensors header")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_a_tensor_whose_dtype_numpy_has_not(folder, dtype):
    header = json.dumps({"odd": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert refusal(folder).startswith("model.safetensors: expected ")


def test_truncated_shard(tmp_path):
    values = config()
    folder = write_model(tmp_path / "model", values, tensors(values), shards=2)
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(folder).startswith("model-00002-of-00002.safetensors: expected")


def test_missing_shard(tmp_path):
    values = config()
    folder = write_model(tmp_path / "model", values, tensors(values), shards=2)
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert "expected shard 'model-00001-of-00002.safetensors'" in refusal(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": 3}, {"weight_map": ["a"]}])
def test_index_without_a_map(tmp_path, index):
    values = config()
    folder = write_model(tmp_path / "model", values, tensors(values), shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "weight_map: expected a JSON object" in refusal(folder)


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", 7, ["a"], {}, "x" * 5000])
def test_index_that_leads_out_of_the_folder(tmp_path, shard):
    values = config()
    folder = write_model(tmp_path / "model", values, tensors(values), shards=2)
    index = {"weight_map": {"model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"expected shard {shard!r} beside it" in refusal(folder)


def test_index_that_promises_a_tensor_which_its_shard_lacks(tmp_path):
    values = config()
    folder = write_model(tmp_path / "model", values, tensors(values), shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["extra"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    message = refusal(folder)
    assert message.startswith("model-00001-of-00002.safetensors: extra: expected by")


def test_a_config_that_is_a_folder(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert refusal(folder).startswith("config.json: expected a file, came")


@pytest.mark.parametrize("path", [None, 5, b"model", ["model"]])
def test_what_is_no_path(path):
    with pytest.raises(TypeError, match=f"^folder: expected a path, came {type(path).__name__}$"):
        Checkpoint.load(path)


def test_a_path_that_is_too_long():
    with pytest.raises(CheckpointError, match="expected a model folder, there is none"):
        Checkpoint.load("x" * 5000)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": config()}, "config: expected a LlamaConfig, came dict"),
        ({"config": None}, "config: expected a LlamaConfig, came NoneType"),
        ({"tensors": None}, "tensors: expected a Mapping, came NoneType"),
        ({"tensors": [("a", 1)]}, "tensors: expected a Mapping, came list"),
        ({"tensors": {5: np.zeros(1)}}, "tensors: expected a str, came int"),
        ({"tensors": {"model.embed_tokens.weight": [1.0]}}, "model.embed_.*an array, came list"),
        ({"source": 5}, "source: expected a str, came int"),
    ],
)
def test_a_checkpoint_of_other_types(change, says):
    values = config()
    good = {"config": LlamaConfig.from_dict(values), "tensors": tensors(values)}
    with pytest.raises(TypeError, match=f"^{says}$"):
        Checkpoint(**good | change)


@pytest.mark.parametrize("values", [None, 5, "config.json", []])
def test_values_that_are_no_mapping(values):
    with pytest.raises(TypeError, match=r"^values: expected a Mapping, came"):
        LlamaConfig.from_dict(values)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"vocab_size": "61"}, TypeError, "vocab_size: expected an int, came str"),
        ({"hidden_size": None}, TypeError, "hidden_size: expected an int, came NoneType"),
        ({"intermediate_size": 1.5}, TypeError, "intermediate_size: expected an int, came float"),
        ({"num_hidden_layers": 0}, ValueError, "num_hidden_layers: expected 1 to .*, came 0"),
        ({"num_key_value_heads": 3}, ValueError, "num_key_value_heads: expected a divisor of"),
        ({"head_dim": 5}, ValueError, "head_dim: expected an even number"),
        ({"rms_norm_eps": math.nan}, ValueError, "rms_norm_eps: expected a finite number above 0"),
        ({"rope_theta": "1"}, TypeError, "rope_theta: expected a number, came str"),
        ({"rope_scaling": {}}, TypeError, "rope_scaling: expected a Llama3Scaling, came dict"),
        ({"tie_word_embeddings": 1}, TypeError, "tie_word_embeddings: expected a bool, came int"),
        ({"eos_token_ids": 5}, TypeError, "eos_token_ids: expected a tuple, came int"),
        ({"eos_token_ids": ("a",)}, TypeError, "eos_token_ids: expected an int, came str"),
        ({"eos_token_ids": (2**40,)}, ValueError, "eos_token_ids: expected 0 to"),
    ],
)
def test_a_config_of_other_values(change, error, says):
    with pytest.raises(error, match=f"^{says}"):
        dataclasses.replace(LlamaConfig.from_dict(config()), **change)


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        (("4", 1.0, 4.0, 16), TypeError, "factor: expected a number, came str"),
        ((0.0, 1.0, 4.0, 16), ValueError, "factor: expected a finite number above 0"),
        ((1e-40, 1.0, 4.0, 16), ValueError, "factor: expected 1 or more, came 1e-40"),
        ((4.0, 4.0, 4.0000000001, 16), ValueError, "high_freq_factor: expected more than the low"),
        ((4.0, 4.0, 1.0, 16), ValueError, "high_freq_factor: expected more than the low 4.0"),
        ((4.0, 1.0, 4.0, 16.0), TypeError, "original_max_position_embeddings: expected an int"),
    ],
)
def test_a_scaling_of_other_values(values, error, says):
    with pytest.raises(error, match=f"^{says}"):
        Llama3Scaling(*values)


@pytest.mark.parametrize(("length", "error"), [("8", TypeError), (1.5, TypeError), (0, ValueError)])
def test_rotary_tables_of_no_length(length, error):
    with pytest.raises(error, match=r"^length: expected"):
        LlamaConfig.from_dict(config()).rotary_tables(length)
