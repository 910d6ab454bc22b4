"""The fused step whose batch grows and shrinks, against the simple kernels and through a pool."""

import numpy as np
import pytest
from decode_cases import MODELS, Fenced, bundled, model
from graphkit.kernels.decode import FusedBatchedDecoder
from graphkit.kernels.llama import BatchedDecoder

import graphkit as gk

pytestmark = pytest.mark.untraced

PROMPTS = [b"def f(", b"import os, s", b"#", b"x = ", b"class A", b"for i in ", b"    return",
           b"if __na", b"print("]  # fmt: skip
ROWS = (9, 1, 2, 3, 8, 5)  # of one step after the other
STEPS = 24
MAX_LEN = 40


def decoded(step):
    """Decode all prompts, a changing number of them at a time; return their tokens."""
    tokens = [list(prompt) for prompt in PROMPTS]
    at = [0] * len(PROMPTS)
    order = np.random.default_rng(3)
    slots = order.permutation(len(PROMPTS))
    for number in range(STEPS):
        now = order.permutation(len(PROMPTS))[: ROWS[number % len(ROWS)]]
        rows = [[tokens[i][at[i]] for i in now], [at[i] for i in now], slots[now]]
        inputs = [gk.asarray(np.array(row, np.int32)) for row in rows]
        chosen = gk.zeros(len(now), np.int32)
        step(*inputs, chosen)
        for i, token in zip(now, chosen.get().tolist(), strict=True):
            at[i] += 1
            if at[i] == len(tokens[i]):
                tokens[i].append(token)
    return tokens


def test_rows_of_any_number_choose_as_with_the_simple_kernels(runtime, stream):
    _, _, checkpoint = bundled()
    found = []
    for kind in (BatchedDecoder, FusedBatchedDecoder):
        decoder = kind(checkpoint, max_batch=len(PROMPTS), max_len=MAX_LEN)
        found.append(decoded(lambda *rows, d=decoder: d.step(*rows, stream=stream)))
    assert found[0] == found[1]
    assert sum(map(len, found[0])) > sum(map(len, PROMPTS)) + STEPS


def test_a_pool_pads_and_keeps_a_graph_for_each_size(runtime, stream):
    _, _, checkpoint = bundled()
    decoder = FusedBatchedDecoder(checkpoint, max_batch=16, max_len=MAX_LEN)
    expected = decoded(lambda *rows: decoder.step(*rows, stream=stream))
    again = FusedBatchedDecoder(checkpoint, max_batch=16, max_len=MAX_LEN)
    names = "tokens", "positions", "slots", "next_tokens"
    sizes = gk.Buckets.powers_of_two(16)
    shapes = dict.fromkeys(names, sizes)
    with gk.ExecPool(again.step, shapes, outputs=["next_tokens"], fill=again.padding) as pool:
        through_pool = decoded(lambda *rows: pool(**dict(zip(names, rows, strict=True))))
        stats = pool.stats()
    assert through_pool == expected
    assert not stats.fallbacks
    assert stats.hits > STEPS // 2


@pytest.mark.parametrize(("rows", "max_len"), [(1, MAX_LEN), (4, MAX_LEN), (63, 256), (64, 256)])
def test_a_captured_step_overlaps_its_kernels_and_not_what_is_around_it(
    runtime, stream, rows, max_len
):
    _, _, checkpoint = model(MODELS["bundled"], max_position_embeddings=256)
    decoder = FusedBatchedDecoder(checkpoint, max_batch=rows, max_len=max_len)
    inputs = [gk.zeros(rows, np.int32) for _ in range(4)]
    with gk.capture(stream) as graph:
        for _ in range(2):
            decoder.step(*inputs, stream=stream)
    order = graph.nodes
    early = {order.index(edge.to_node): edge.programmatic for edge in graph.edges}
    step = len(order) // 2
    plain = [at for at in range(1, len(order)) if not early[at]]
    kernels = [values.name for values in graph.kernels]
    attention = [at for at, name in enumerate(kernels) if "attention" in name]
    assert len(attention) == 2 * checkpoint.config.num_hidden_layers
    around = [step - 1, step, 2 * step - 1]
    assert plain == sorted([*around, *(attention if rows * max_len >= 16_384 else ())])


def test_a_row_of_padding_touches_no_cache(run, runtime, stream):
    _, _, checkpoint = model(MODELS["bundled"])
    decoder = FusedBatchedDecoder(checkpoint, max_batch=4, max_len=MAX_LEN)
    for rows in (1, 4):
        padding = [gk.asarray(np.full(rows, decoder.padding[name], np.int32))
                   for name in ("tokens", "positions", "slots")]  # fmt: skip
        decoder.step(*padding, gk.zeros(rows, np.int32), stream=stream)
        stream.synchronize()
        assert np.isfinite(decoder.logits(rows).get()).all()
    for cache in (*decoder.k_cache, *decoder.v_cache):
        assert not cache.get().astype(np.float32).any()


@pytest.mark.parametrize("slot", [-1, 4, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("rows", [2, 4])
def test_a_row_whose_slot_is_none_touches_nothing_and_changes_no_other(runtime, stream, rows, slot):
    """-1 is what pads a step of the simple kernels."""
    _, _, checkpoint = bundled()
    found = []
    for last in (rows - 1, slot):
        decoder = FusedBatchedDecoder(checkpoint, max_batch=4, max_len=MAX_LEN)
        fenced = [
            [Fenced(cache.get()) for cache in caches]
            for caches in (decoder.k_cache, decoder.v_cache)
        ]
        decoder.k_cache, decoder.v_cache = ([one.array for one in caches] for caches in fenced)
        slots = gk.asarray(np.array([*range(rows - 1), last], np.int32))
        for at, tokens in enumerate(zip(*PROMPTS[:rows], strict=False)):
            inputs = [gk.asarray(np.array(row, np.int32)) for row in (tokens, [at] * rows)]
            decoder.step(*inputs, slots, gk.zeros(rows, np.int32), stream=stream)
            stream.synchronize()
        for one in (*fenced[0], *fenced[1]):
            one.check()
        caches = [one.array.get() for one in (*fenced[0], *fenced[1])]
        found.append((decoder.logits(rows).get(), caches))
    (logits, caches), (without, kept) = found
    np.testing.assert_array_equal(without[:-1], logits[:-1])
    assert np.isfinite(without).all()
    for one, other in zip(kept, caches, strict=True):
        np.testing.assert_array_equal(one[: rows - 1], other[: rows - 1])
        assert not one[rows - 1 :].astype(np.float32).any()


def test_bad_input(runtime, stream):
    _, _, checkpoint = model(MODELS["bundled"])
    with pytest.raises(ValueError, match=r"^max_batch: expected 1 to 64, came 65"):
        FusedBatchedDecoder(checkpoint, max_batch=65)
    with pytest.raises(ValueError, match=r"^max_len: expected 2 to"):
        FusedBatchedDecoder(checkpoint, max_batch=2, max_len=1)
    with pytest.raises(TypeError, match=r"^max_batch: expected an int, came bool"):
        FusedBatchedDecoder(checkpoint, max_batch=True)
    decoder = FusedBatchedDecoder(checkpoint, max_batch=2, max_len=8)
    for rows in (0, 3, -1):
        with pytest.raises(ValueError, match=rf"^rows: expected 1 to 2, came {rows}"):
            decoder.logits(rows)
    three = [gk.zeros(3, np.int32) for _ in range(4)]
    with pytest.raises(ValueError, match=r"^tokens: expected at most 2 rows, came 3"):
        decoder.step(*three, stream=stream)
    two = [gk.zeros(2, np.int32) for _ in range(4)]
    with pytest.raises(ValueError, match=r"^slots: "):
        decoder.step(*two[:2], three[0], two[3], stream=stream)
