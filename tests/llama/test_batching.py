"""The decode step whose batch grows and shrinks, against the decoder that has one sequence."""

from itertools import pairwise

import numpy as np
import pytest
from graphkit.kernels.llama import BatchedDecoder, Checkpoint, Decoder, LlamaConfig
from llama.reference import LLAMA3, config, greedy, tensors

import graphkit as gk

pytestmark = pytest.mark.untraced

PROMPTS = [[3, 14, 15, 9, 26, 5], [1], [60, 59, 58], [7, 7], [20, 21, 22, 23]]


def checkpoint(**changes):
    values = config(**changes)
    weights = tensors(values)
    return values, weights, Checkpoint(LlamaConfig.from_dict(values), weights)


class Steps:
    """Take steps of a decoder by hand, and keep what was chosen."""

    def __init__(self, decoder, stream):
        self.decoder, self.stream = decoder, stream

    def __call__(self, tokens, positions, slots):
        inputs = [gk.asarray(np.array(row, np.int32)) for row in (tokens, positions, slots)]
        chosen = gk.zeros(len(tokens), np.int32)
        self.decoder.step(*inputs, chosen, stream=self.stream)
        return chosen.get().tolist()


def alone(loaded, prompt, count):
    decode = Decoder(loaded, max_len=40).build("eager")
    decode.decoder.start(prompt)
    for _ in range(len(prompt) - 1 + count):
        decode.launch()
    decode.stream.synchronize()
    return decode.decoder.tokens.get()[0, : len(prompt) + count].tolist()


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "rope_scaling": LLAMA3}])
def test_a_sequence_gets_what_it_gets_alone_in_any_row_and_company(runtime, stream, changes):
    values, weights, loaded = checkpoint(**changes)
    expected = [alone(loaded, prompt, 12) for prompt in PROMPTS]
    for prompt, whole in zip(PROMPTS, expected, strict=True):
        assert whole[len(prompt) :] == greedy(values, weights, prompt, 12)
    take = Steps(BatchedDecoder(loaded, max_batch=6, max_len=40), stream)
    rng = np.random.default_rng(5)
    slots = rng.permutation(6)[: len(PROMPTS)]
    tokens = [list(prompt) for prompt in PROMPTS]
    at = [0] * len(PROMPTS)
    while any(len(row) < len(whole) for row, whole in zip(tokens, expected, strict=True)):
        # Any number of those that are not done, in any order: the batch grows and shrinks.
        going = [i for i in range(len(PROMPTS)) if len(tokens[i]) < len(expected[i])]
        now = rng.permutation(going)[: rng.integers(1, len(going) + 1)]
        rows = [(tokens[i][at[i]], at[i], slots[i]) for i in now]
        for i, token in zip(now, take(*zip(*rows, strict=True)), strict=True):
            at[i] += 1
            if at[i] == len(tokens[i]):
                tokens[i].append(token)
    assert tokens == expected


def test_rows_of_padding_disturb_nothing_and_cause_no_nan(runtime, stream):
    _, _, loaded = checkpoint()
    expected = alone(loaded, PROMPTS[0], 6)
    padded, bare = (BatchedDecoder(loaded, max_batch=5, max_len=16) for _ in range(2))
    take, take_bare = Steps(padded, stream), Steps(bare, stream)
    padding = tuple(padded.padding[name] for name in ("tokens", "positions", "slots"))
    for at, (token, following) in enumerate(pairwise(expected)):
        real = (token, at, 2)
        rows = [padding, real, padding, padding]
        chosen = take(*zip(*rows, strict=True))
        assert take_bare(*zip(real, strict=True)) == [chosen[1]]
        if at >= len(PROMPTS[0]) - 1:
            assert chosen[1] == following
        assert np.isfinite(padded.llama.logits.get()).all()
    llama, bare_llama = padded.llama, bare.llama
    for caches, bare_caches in (
        (llama.k_cache, bare_llama.k_cache),
        (llama.v_cache, bare_llama.v_cache),
    ):
        for cache, bare_cache in zip(caches, bare_caches, strict=True):
            np.testing.assert_array_equal(cache.get(), bare_cache.get())
            assert not cache.get()[[0, 1, 3, 4]].any()


def test_a_slot_is_reused_without_being_cleared(runtime, stream):
    _, _, loaded = checkpoint()
    take = Steps(BatchedDecoder(loaded, max_batch=1, max_len=40), stream)
    for prompt in PROMPTS:
        expected = alone(loaded, prompt, 5)
        tokens = list(prompt)
        for at in range(len(expected) - 1):
            (token,) = take([tokens[at]], [at], [0])
            if at + 1 == len(tokens):
                tokens.append(token)
        assert tokens == expected


def test_a_step_can_be_captured_and_launched_again(runtime, stream):
    _, _, loaded = checkpoint()
    decoder = BatchedDecoder(loaded, max_batch=4, max_len=16)
    tokens, positions, slots = (
        gk.asarray(np.array(row, np.int32)) for row in ([3, 1], [0, 0], [3, 0])
    )
    eager, chosen = gk.zeros(2, np.int32), gk.zeros(2, np.int32)
    decoder.step(tokens, positions, slots, eager, stream=stream)
    stream.synchronize()
    before = [cache.get() for cache in decoder.llama.k_cache]
    with gk.capture(stream) as graph:
        decoder.step(tokens=tokens, positions=positions, slots=slots, next_tokens=chosen,
                     stream=stream)  # fmt: skip
    assert len(graph.nodes) == 14 * 2 + 4
    exec_ = graph.instantiate()
    for _ in range(2):
        exec_.launch(stream)
    np.testing.assert_array_equal(chosen.get(), eager.get())
    for cache, old in zip(decoder.llama.k_cache, before, strict=True):
        np.testing.assert_array_equal(cache.get(), old)
    # The same graph takes the sequences on: all that changes lies in the arrays.
    tokens.set(chosen.get())
    positions.set([1, 1])
    exec_.launch(stream)
    following = chosen.get().tolist()
    assert following == [alone(loaded, [first], 2)[2] for first in (3, 1)]


def test_weights_are_shared_with_another_decoder(runtime):
    _, _, loaded = checkpoint()
    decoder = BatchedDecoder(loaded, max_batch=2)
    assert decoder.max_len == 64
    used = {
        id(item)
        for entry in Decoder(decoder.llama.checkpoint).launches
        for item in entry.launch.args
    }
    assert all(id(tensor) in used for tensor in decoder.llama.checkpoint.tensors.values())


def test_arguments_are_checked_before_anything_is_launched(runtime, stream):
    _, _, loaded = checkpoint()
    with pytest.raises(ValueError, match="max_batch: expected 1 row or more, came 0"):
        BatchedDecoder(loaded, max_batch=0)
    with pytest.raises(ValueError, match="max_len: expected 2 to the model's 64 tokens, came 65"):
        BatchedDecoder(loaded, max_batch=1, max_len=65)
    for other in ("model", None):
        with pytest.raises(TypeError, match=r"^checkpoint: expected a Checkpoint, came"):
            BatchedDecoder(other, max_batch=1)
    decoder = BatchedDecoder(loaded, max_batch=2)
    good = {name: gk.zeros(2, np.int32) for name in ("tokens", "positions", "slots", "next_tokens")}
    for name, wrong, says in (
        ("tokens", gk.zeros(3, np.int32), "tokens: expected at most 2 rows, came 3"),
        ("tokens", gk.zeros((2, 1), np.int32), r"tokens: expected shape \(rows\), came \(2, 1\)"),
        ("positions", gk.zeros(1, np.int32), r"positions: expected shape \(2\), came \(1,\)"),
        ("slots", gk.zeros(2, np.int64), "slots: expected dtype int32, came int64"),
        ("next_tokens", gk.zeros(2), "next_tokens: expected dtype int32, came float32"),
    ):
        with pytest.raises(ValueError, match=says):
            decoder.step(**(good | {name: wrong}), stream=stream)
    with pytest.raises(ValueError, match=r"^positions: expected at most 2 sequences, came 3"):
        decoder.llama.launches(*(gk.zeros(3, np.int32),) * 3)
    stream.synchronize()
    assert not decoder.llama.logits.get().any()
