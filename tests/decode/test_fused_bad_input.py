"""What the fused decoder does not take is said before anything is allocated."""

import numpy as np
import pytest
from decode_cases import MODELS, bundled, model
from graphkit.kernels.decode import FusedBatchedDecoder, FusedDecoder, FusedLlama, check_fit

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


def test_rows_of_the_model_itself(runtime):
    _, _, checkpoint = bundled()
    for rows in (0, -1, 65):
        with pytest.raises(ValueError, match=f"^rows: expected 1 to 64, came {rows}"):
            FusedLlama(checkpoint, rows=rows)


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
