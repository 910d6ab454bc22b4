"""What the fused decoder does not take is said before anything is allocated."""

import numpy as np
import pytest
from batch_cases import BFLOAT16
from decode_cases import MODELS, bundled, model
from graphkit.kernels.decode import (
    FusedBatchedDecoder,
    FusedDecoder,
    FusedLlama,
    batch_gate_up,
    batch_qkv,
    batch_vocabulary,
    check_fit,
    gate_up_silu,
    project_vocabulary,
    qkv_rope_append,
)
from graphkit.kernels.decode.batch_vocabulary import vocabulary_blocks
from graphkit.kernels.decode.project_vocabulary import candidates
from graphkit.kernels.llama import Checkpoint

import graphkit as gk
from graphkit.runtime.protocol import DeviceAttribute

GOOD = MODELS["bundled"]


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({}, {"batch": 0}, "batch: expected 1 sequence or more, came 0"),
        ({}, {"batch": 65}, "batch: expected 1 to 64 sequences, came 65"),
        ({}, {"max_len": 1}, "max_len: expected 2 to the model's 64 tokens, came 1"),
        ({}, {"max_len": 65}, "max_len: expected 2 to the model's 64 tokens, came 65"),
        ({}, {"page": 5}, "page: expected 0 or a divisor of max_len 64, came 5"),
        ({}, {"page": -4}, "page: expected 0 or a divisor of max_len 64, came -4"),
        ({}, {"temperature": -1.0}, "temperature: expected 0 or more and finite, came -1.0"),
        ({}, {"top_k": -1}, "top_k: expected 0 (all) to 2**31 - 1, came -1"),
        ({}, {"top_p": 1.5}, "top_p: expected 0 to 1, came 1.5"),
        ({"head_dim": 36}, {}, "head_dim: expected a multiple of 8, since"),
        ({"hidden": 196}, {}, "hidden_size: expected a multiple of 8, since"),
        ({"intermediate": 484}, {}, "intermediate_size: expected a multiple of 8, since"),
        ({"head_dim": 264}, {}, "head_dim: expected at most 256, came 264"),
        ({"heads": 18}, {}, "num_attention_heads: expected at most 8 for each of the 2 key heads"),
        ({"head_dim": 40}, {"batch": 3}, "head_dim: expected a multiple of 16 with 3 rows or more"),
        ({"vocabulary": 257}, {"batch": 3}, "vocab_size: expected a multiple of 8 with 3 rows"),
    ],
)
def test_one_message(runtime, changes, options, says):
    _, _, checkpoint = model(GOOD._replace(**changes))
    before = gk.live_handles().get("device memory", 0)
    with pytest.raises(ValueError) as refused:
        FusedDecoder(checkpoint, **options)
    assert str(refused.value).startswith(says)
    assert gk.live_handles().get("device memory", 0) == before


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_matrices_of_another_dtype(runtime, dtype):
    _, _, checkpoint = model(GOOD, dtype=dtype)
    says = f"^model.embed_tokens.weight: expected bfloat16, .*, came {np.dtype(dtype)}"
    with pytest.raises(ValueError, match=says):
        FusedDecoder(checkpoint)
    with pytest.raises(ValueError, match=says):
        check_fit(checkpoint)


@pytest.mark.parametrize("other", ["model", None])
def test_what_is_no_checkpoint(runtime, other):
    before = gk.live_handles()
    for make in (
        lambda: FusedDecoder(other),
        lambda: FusedBatchedDecoder(other, max_batch=1),
        lambda: FusedLlama(other, rows=1),
        lambda: check_fit(other),
    ):
        with pytest.raises(TypeError, match=r"^checkpoint: expected a Checkpoint, came"):
            make()
    assert gk.live_handles() == before


def test_a_stream_that_is_not_graphkits(runtime):
    _, _, checkpoint = bundled()
    decoder = FusedDecoder(checkpoint, max_len=8)
    for build in decoder.builds:
        for stream in (0, 5, "x"):
            with pytest.raises(TypeError, match=r"^stream: expected a Stream, came"):
                decoder.build(build, stream)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_a_freed_tensor_is_called_by_its_name(runtime, name):
    _, _, checkpoint = bundled()
    freed = gk.asarray(checkpoint.tensors[name])
    freed.free()
    tensors = checkpoint.tensors | {name: freed}
    with pytest.raises(ValueError, match=f"^{name}: expected live device memory, came a freed"):
        FusedDecoder(Checkpoint(checkpoint.config, tensors))


def test_rows_of_the_model_itself(runtime):
    _, _, checkpoint = bundled()
    for rows in (0, -1, 65):
        with pytest.raises(ValueError, match=f"^rows: expected 1 to 64, came {rows}"):
            FusedLlama(checkpoint, rows=rows)
    with pytest.raises(TypeError, match=r"^rows: expected an int, came str"):
        FusedLlama(checkpoint, rows="1")


def test_a_cache_larger_than_free_memory(runtime):
    """At 64 sequences of so many tokens no device has it."""
    _, _, checkpoint = model(GOOD, max_position_embeddings=2**24)
    with pytest.raises(ValueError, match=r"^max_len: expected what fits .* GiB of free device"):
        FusedDecoder(checkpoint, batch=64)


def test_free_memory_is_what_counts(runtime, monkeypatch):
    """And no more of it than what is there at that moment."""
    _, _, checkpoint = bundled()
    monkeypatch.setattr(runtime, "mem_get_info", lambda: (1 << 20, 80 << 30))
    with pytest.raises(ValueError, match=r"^max_len: expected what fits 0\.00 GiB of free"):
        FusedDecoder(checkpoint, max_len=64)


def say(monkeypatch, runtime, which, value):
    """Let the device have another attribute."""
    ask = runtime.device_get_attribute
    monkeypatch.setattr(
        runtime,
        "device_get_attribute",
        lambda attribute, device: value if attribute is which else ask(attribute, device),
    )


@pytest.mark.parametrize("rows", [3, 64])
def test_a_device_whose_blocks_have_too_little_shared_memory(runtime, monkeypatch, rows):
    """99 KiB is what compute capability 12.0 has."""
    _, _, checkpoint = bundled()
    say(monkeypatch, runtime, DeviceAttribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 99 << 10)
    before = gk.live_handles().get("device memory", 0)
    says = rf"^device: expected \d+ bytes of dynamic shared memory for a block, .* {rows} rows take"
    with pytest.raises(ValueError, match=says):
        FusedDecoder(checkpoint, batch=rows)
    with pytest.raises(ValueError, match=says):
        FusedBatchedDecoder(checkpoint, max_batch=rows)
    with pytest.raises(ValueError, match=says):
        check_fit(checkpoint, rows)
    assert gk.live_handles().get("device memory", 0) == before
    check_fit(checkpoint, 2)


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_of_a_matrix_that_do_not_fit_a_block(runtime, monkeypatch, rows):
    _, _, checkpoint = bundled()
    say(monkeypatch, runtime, DeviceAttribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 3 << 10)
    before = gk.live_handles().get("device memory", 0)
    for make in (
        lambda: check_fit(checkpoint, rows),
        lambda: FusedDecoder(checkpoint, batch=rows),
        lambda: FusedBatchedDecoder(checkpoint, max_batch=rows),
    ):
        with pytest.raises(ValueError, match=r"^\w+: expected rows of which four fit the 3072"):
            make()
    assert gk.live_handles().get("device memory", 0) == before


def test_rotary_tables_count(runtime, monkeypatch):
    """With one narrow layer they are as large as its caches."""
    extents = GOOD._replace(kv_heads=1)
    _, _, checkpoint = model(extents, max_position_embeddings=1 << 16, num_hidden_layers=1)
    monkeypatch.setattr(runtime, "mem_get_info", lambda: (12 << 20, 80 << 30))
    before = gk.live_handles().get("device memory", 0)
    for make in (
        lambda: FusedDecoder(checkpoint, max_len=1 << 16),
        lambda: FusedBatchedDecoder(checkpoint, max_batch=1, max_len=1 << 16),
    ):
        with pytest.raises(ValueError, match=r"^max_len: expected what fits 0\.01 GiB of free"):
            make()
    assert gk.live_handles().get("device memory", 0) == before


def test_a_device_that_is_too_old(runtime, monkeypatch):
    _, _, checkpoint = bundled()
    say(monkeypatch, runtime, DeviceAttribute.COMPUTE_CAPABILITY_MAJOR, 8)
    with pytest.raises(ValueError, match=r"^device: expected compute capability 9\.0 or more"):
        FusedDecoder(checkpoint)


def test_prompts(runtime):
    _, _, checkpoint = bundled()
    decoder = FusedDecoder(checkpoint, batch=2, max_len=8)
    decoder.start(b"ab", b"cd")
    for prompts, says in (
        ((b"ab",), "prompts: expected 2, one per sequence, came 1"),
        ((b"ab", b""), "prompt: expected at least one token"),
        ((b"ab", b"x" * 8), "prompt: expected at most 7 tokens"),
        ((b"ab", [256]), "prompt: expected tokens below 256, came 256"),
    ):
        with pytest.raises(ValueError, match=says):
            decoder.start(*prompts)
    assert decoder.tokens.get()[:, :2].tolist() == [list(b"ab"), list(b"cd")]


def norms():
    """Return a call of each kernel that has a norm in it, for an eps."""
    x, gain, q = gk.zeros((1, 64)), gk.zeros(64), gk.zeros((8, 64))
    square, narrow = gk.zeros((64, 64), BFLOAT16), gk.zeros((32, 64), BFLOAT16)
    xg, squares, h = gk.zeros((8, 64), np.float16), gk.zeros((2, 8)), gk.zeros((8, 64), np.float16)
    rotary = (gk.zeros((4, 8)),) * 2
    caches = (gk.zeros((8, 2, 4, 16), BFLOAT16),) * 2
    positions = gk.zeros(8, np.int32)

    def best(blocks, batch):
        return gk.zeros((blocks, batch)), gk.zeros((blocks, batch), np.int32)

    alone, together = best(candidates(64), 1), best(vocabulary_blocks(64, 8), 8)
    vectors = (x, gain, *rotary, q[:1], *caches, positions[:1])
    matrices = (*rotary, positions, q, *caches)
    return (
        lambda eps: gate_up_silu(square, square, x, gain, gk.zeros((1, 64)), eps),
        lambda eps: qkv_rope_append(square, narrow, narrow, *vectors, eps),
        lambda eps: project_vocabulary(square, x, gain, gk.zeros((1, 64)), *alone, eps),
        lambda eps: batch_qkv(xg, squares, square, narrow, narrow, *matrices, eps=eps),
        lambda eps: batch_gate_up(xg, squares, square, square, h, eps=eps),
        lambda eps: batch_vocabulary(xg, squares, square, None, *together, eps=eps),
    )


def test_the_eps_of_a_norm(runtime):
    for make in norms():
        assert 0.5 in make(np.float32(0.5)).args
        with pytest.raises(TypeError, match=r"^eps: expected a number, came str"):
            make("1e-5")
        for eps in (0, float("nan"), 10**400):
            with pytest.raises(ValueError, match=r"^eps: expected a finite number above 0"):
                make(eps)
